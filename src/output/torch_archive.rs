//! The zip archive that `PyTorch`'s `torch.save` makes: a pickle, and an entry for the values of
//! each tensor.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use seqembed_onnx::checkpoint::Dtype;
use seqembed_onnx::checkpoint::pickle::{self, Described, Pickle, Value};
use zip::read::{ArchiveOffset, Config};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::error::{OutputError, writing};
use super::file::{Unfinished, Written};
use super::precision::OutputPrecision;

/// The folder in the archive.
const FOLDER: &str = "archive";

/// An archive as `torch.save` makes it.
pub(super) struct Archive {
    pub zip: ZipWriter<BufWriter<Unfinished>>,
}

impl Archive {
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        let file = Unfinished::create(path)?;
        Ok(Self {
            zip: ZipWriter::new(BufWriter::new(file)),
        })
    }

    /// Starts an entry, which may exceed 4 GiB if it is `large`.
    pub fn begin(&mut self, name: &str, large: bool) -> io::Result<&mut dyn Write> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            // No time stamps, so that the same rows give the same bytes.
            .last_modified_time(zip::DateTime::default())
            .unix_permissions(0o644)
            .with_alignment(64)
            .large_file(large);
        self.zip.start_file(format!("{FOLDER}/{name}"), options)?;
        Ok(&mut self.zip)
    }

    /// Writes the entries that every archive has, and renames the file.
    pub fn finish(mut self, path: &Path) -> Result<Written, OutputError> {
        let mut end = || {
            self.begin("byteorder", false)?.write_all(b"little")?;
            self.begin("version", false)?.write_all(b"3\n")
        };
        end()
            .and_then(|()| self.zip.finish().map_err(io::Error::from))
            .and_then(|file| file.into_inner().map_err(io::IntoInnerError::into_error))
            .map_err(|e| writing(path, e))?
            .finish()
    }
}

/// A zip archive with nothing before it. Left to find out what there is, the reader can take the
/// second entry of what `PyTorch` wrote for the first.
fn archive(file: File) -> zip::result::ZipResult<ZipArchive<BufReader<File>>> {
    let archive_offset = ArchiveOffset::Known(0);
    ZipArchive::with_config(Config { archive_offset }, BufReader::new(file))
}

/// Whether a zip archive is one of `PyTorch`.
pub(super) fn is_one(path: &Path) -> bool {
    File::open(path)
        .ok()
        .and_then(|file| archive(file).ok())
        .is_some_and(|zip| {
            zip.file_names()
                .any(|name| name.is_ok_and(|name| is_pickle(&name)))
        })
}

fn is_pickle(name: &str) -> bool {
    name.split_once('/')
        .is_some_and(|(_, rest)| rest == "data.pkl")
}

/// An archive opened for reading: its pickle, and the location of its tensors' values.
pub(super) struct TorchFile<'path> {
    pub path: &'path Path,
    pub pickle: Pickle,
    /// Offset and length of every `data/KEY` in the file.
    entries: HashMap<String, (u64, u64)>,
}

impl<'path> TorchFile<'path> {
    /// Reads the pickle and the location of the tensors' values.
    pub fn open(path: &'path Path) -> Result<Self, OutputError> {
        let reading = |source| OutputError::Read {
            path: path.to_owned(),
            source,
        };
        let malformed = |what: &dyn std::fmt::Display| OutputError::malformed(path, what);
        let file = File::open(path).map_err(reading)?;
        let mut zip = archive(file).map_err(|e| malformed(&e))?;
        let mut bytes = Vec::new();
        let mut entries = HashMap::new();
        for index in 0..zip.len() {
            let mut entry = zip.by_index(index).map_err(|e| malformed(&e))?;
            if entry.compression() != CompressionMethod::Stored {
                return Err(malformed(
                    &"an entry is compressed, which PyTorch never does",
                ));
            }
            let name = entry.name().map_err(|e| malformed(&e))?.into_owned();
            if is_pickle(&name) {
                entry.read_to_end(&mut bytes).map_err(|e| malformed(&e))?;
            } else if let Some((_, key)) = name.split_once("/data/") {
                let start = entry.data_start().ok_or_else(|| malformed(&"no data"))?;
                entries.insert(key.to_owned(), (start, entry.size()));
            }
        }
        let pickle = pickle::read(&bytes).map_err(|e| malformed(&e))?;
        Ok(Self {
            path,
            pickle,
            entries,
        })
    }

    /// The value of a key in the outermost dict.
    pub fn entry(&self, key: &str) -> Option<&Value> {
        self.pickle.entry(self.pickle.root(), key)
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>, OutputError> {
        let Some(value) = self.entry(key) else {
            return Ok(None);
        };
        let texts = match value {
            Value::List(items) => items
                .iter()
                .map(|&item| match self.pickle.get(item) {
                    Value::Text(text) => Some(text.clone()),
                    _ => None,
                })
                .collect(),
            _ => None,
        };
        let texts: Option<Vec<String>> = texts;
        texts
            .map(Some)
            .ok_or_else(|| self.malformed(format!("{key:?} is not a list of strings")))
    }

    /// A tensor of `count` integers.
    pub fn numbers(&self, key: &str, count: usize) -> Result<Option<Vec<u64>>, OutputError> {
        let Some(value) = self.entry(key) else {
            return Ok(None);
        };
        match value {
            Value::Tensor(tensor)
                if tensor.dtype == Dtype::Other("int64", 8) && tensor.shape == [count] =>
            {
                let mut bytes = Vec::new();
                self.tensor(tensor)?
                    .open(self.path)?
                    .read_to_end(&mut bytes)
                    .map_err(|e| self.malformed(e))?;
                let (numbers, _) = bytes.as_chunks();
                Ok(Some(
                    numbers.iter().map(|&n| u64::from_le_bytes(n)).collect(),
                ))
            }
            _ => Err(self.malformed(format!("{key:?} is not a tensor of {count} int64 values"))),
        }
    }

    /// A dict of texts; what is none is left out.
    pub fn facts(&self, key: &str) -> Vec<(String, String)> {
        let Some(Value::Dict(items)) = self.entry(key) else {
            return Vec::new();
        };
        let get = |id| match self.pickle.get(id) {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        };
        let pairs = items.iter();
        pairs
            .filter_map(|&(key, value)| Some((get(key)?, get(value)?)))
            .collect()
    }

    pub fn malformed(&self, what: impl std::fmt::Display) -> OutputError {
        OutputError::malformed(self.path, what)
    }

    /// The bytes of a contiguous tensor.
    pub fn tensor(&self, tensor: &Described) -> Result<Stream, OutputError> {
        let width = tensor.dtype.bytes() as u64;
        let mut step = 1_u64;
        for (&side, &stride) in tensor.shape.iter().zip(&tensor.strides).rev() {
            if side != 1 && stride != step && !tensor.shape.contains(&0) {
                return Err(
                    self.malformed("a tensor is not contiguous; save it again after .contiguous()")
                );
            }
            step = step.saturating_mul(side as u64);
        }
        let bytes = step.saturating_mul(width);
        let from = tensor.offset.saturating_mul(width);
        let entry = self.entries.get(&tensor.key);
        let Some((start, _)) = entry.filter(|(_, size)| from.saturating_add(bytes) <= *size) else {
            return Err(self.malformed("a tensor is larger than its entry in the archive"));
        };
        Ok(Stream {
            start: start + from,
            bytes,
        })
    }

    /// The floats that a tensor has.
    pub fn precision(&self, tensor: &Described) -> Result<OutputPrecision, OutputError> {
        match tensor.dtype {
            Dtype::F32 => Ok(OutputPrecision::Fp32),
            Dtype::F16 => Ok(OutputPrecision::Fp16),
            _ => Err(self.malformed("its tensor is neither float32 nor float16")),
        }
    }
}

/// The location of a tensor's bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    pub start: u64,
    pub bytes: u64,
}

impl Stream {
    pub fn open(self, path: &Path) -> Result<io::Take<BufReader<File>>, OutputError> {
        let reading = |source| OutputError::Read {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(reading)?;
        file.seek(SeekFrom::Start(self.start)).map_err(reading)?;
        Ok(BufReader::new(file).take(self.bytes))
    }
}
