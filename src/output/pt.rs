//! pt: `PyTorch`'s `torch.save`, read by `torch.load` with `weights_only=True`.
//!
//! | key | value |
//! |---|---|
//! | `ids` | list of texts |
//! | `data` | tensor, float32 or float16, N x H (pooled) or residues of all records x H (per token) |
//! | `headers`, `status` | lists of texts |
//! | `lengths` | tensor, int64, N |
//! | `offsets` (per-token only) | tensor, int64, N + 1: record i is `data[offsets[i]:offsets[i + 1]]` |
//! | `provenance` | dict of texts |
//!
//! `ids` and `data` are what `VirNucPro`'s prediction reads from its merged files, so pooled files serve there. Its
//! own files are read too, see [`super::virnucpro`]. The file is a zip archive as `torch.save` makes it, with its
//! entries aligned, so that `mmap=True` works. The matrix goes to the disk as it comes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use seqembed_onnx::checkpoint::Dtype;
use seqembed_onnx::checkpoint::pickle::{self, Described, Pickle, Value};
use zip::read::{ArchiveOffset, Config};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::blocks::{Blocks, Record, check_first, counts, invalid};
use super::pickle::{Kind, Pickler};
use super::table::{Columns, TEXTS, Table};
use super::{
    Layout, OpenRow, OutputError, OutputPrecision, Reader, Rows, Sink, Unfinished, Written,
    virnucpro,
};
use crate::text::counted;

/// The folder in the archive.
const FOLDER: &str = "archive";

/// An archive as `torch.save` makes it.
pub(super) struct Archive {
    zip: ZipWriter<BufWriter<Unfinished>>,
}

impl Archive {
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        let file = Unfinished::create(path)?;
        Ok(Self {
            zip: ZipWriter::new(BufWriter::new(file)),
        })
    }

    /// Begins an entry, which may become of any size when it is `large`.
    pub fn begin(&mut self, name: &str, large: bool) -> io::Result<&mut dyn Write> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            // No time of day: the same rows give the same bytes.
            .last_modified_time(zip::DateTime::default())
            .unix_permissions(0o644)
            .with_alignment(64)
            .large_file(large);
        self.zip.start_file(format!("{FOLDER}/{name}"), options)?;
        Ok(&mut self.zip)
    }

    /// Writes what every archive has, and gives the file its name.
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

/// Writes one pt file.
pub(super) struct PtSink {
    layout: Layout,
    open: OpenRow,
    archive: Archive,
    table: Table,
}

impl PtSink {
    pub(super) fn create(layout: Layout) -> Result<Self, OutputError> {
        let mut archive = Archive::create(&layout.path)?;
        archive
            .begin("data/0", true)
            .map_err(|e| writing(&layout.path, e))?;
        Ok(PtSink {
            open: OpenRow::default(),
            archive,
            table: Table::new(&layout.path),
            layout,
        })
    }

    fn complete(&mut self, columns: &mut Columns, rows: u64, vectors: u64) -> io::Result<()> {
        let layout = &self.layout;
        let archive = &mut self.archive;
        let lengths = archive.begin("data/1", true)?;
        columns.each(|row| lengths.write_all(&row.length.to_le_bytes()))?;
        if layout.per_token {
            let offsets = archive.begin("data/2", true)?;
            offsets.write_all(&0_u64.to_le_bytes())?;
            columns.ends(|end| offsets.write_all(&end.to_le_bytes()))?;
        }
        let to = archive.begin("data.pkl", true)?;
        let mut pickler = Pickler::new(BufWriter::new(to))?;
        pickler.dict(|pickler| {
            let mut texts = |pickler: &mut Pickler<_>, column: usize| -> io::Result<()> {
                pickler.text(TEXTS[column])?;
                let mut list = pickler.list()?;
                columns.each(|row| {
                    list.item(pickler)?;
                    pickler.text(&row.texts[column])
                })?;
                list.end(pickler)
            };
            texts(pickler, 0)?;
            pickler.text("data")?;
            let shape = [vectors, layout.hidden as u64];
            pickler.tensor("0", Kind::Float(layout.precision), &shape)?;
            texts(pickler, 1)?;
            texts(pickler, 2)?;
            pickler.text("lengths")?;
            pickler.tensor("1", Kind::Int64, &[rows])?;
            if layout.per_token {
                pickler.text("offsets")?;
                pickler.tensor("2", Kind::Int64, &[rows + 1])?;
            }
            pickler.text("provenance")?;
            pickler.dict(|pickler| {
                layout.provenance.iter().try_for_each(|(key, value)| {
                    pickler.text(key)?;
                    pickler.text(value)
                })
            })
        })?;
        pickler.end()?.flush()
    }
}

impl Sink for PtSink {
    fn write(&mut self, rows: &Rows) -> Result<(), OutputError> {
        rows.check(&self.layout, &mut self.open)?;
        let precision = self.layout.precision;
        self.table
            .push(rows)
            .and_then(|()| precision.write(&rows.values, &mut self.archive.zip))
            .map_err(|e| writing(&self.layout.path, e))
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Written>, OutputError> {
        self.open.check(&self.layout)?;
        let path = self.layout.path.clone();
        let table = std::mem::replace(&mut self.table, Table::new(&path));
        let (rows, vectors) = (table.rows, table.vectors);
        table
            .into_columns()
            .and_then(|mut columns| self.complete(&mut columns, rows, vectors))
            .map_err(|e| writing(&path, e))?;
        Ok(vec![self.archive.finish(&path)?])
    }
}

pub(super) fn writing(path: &Path, source: io::Error) -> OutputError {
    OutputError::Io {
        path: path.to_owned(),
        source,
    }
}

/// A zip archive with nothing before it. Left to find out what there is, the reader can take the second entry of what `PyTorch` wrote
/// for the first.
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

/// An archive that is read: its pickle, and where the values of its tensors stand.
pub(super) struct Opened<'path> {
    pub path: &'path Path,
    pub pickle: Pickle,
    /// Begin and length of every `data/KEY` in the file.
    entries: HashMap<String, (u64, u64)>,
}

impl<'path> Opened<'path> {
    fn new(path: &'path Path) -> Result<Self, OutputError> {
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

    /// What stands under a key of the outermost dict.
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
            .ok_or_else(|| self.malformed(format!("{key:?} is no list of texts")))
    }

    /// A tensor of so many whole numbers.
    fn numbers(&self, key: &str, count: usize) -> Result<Option<Vec<u64>>, OutputError> {
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
            _ => Err(self.malformed(format!("{key:?} is no tensor of {count} int64"))),
        }
    }

    /// A dict of texts; what is none is left out.
    fn facts(&self, key: &str) -> Vec<(String, String)> {
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

    /// The bytes of a tensor whose values stand row after row.
    pub fn tensor(&self, tensor: &Described) -> Result<Stream, OutputError> {
        let width = tensor.dtype.bytes() as u64;
        let mut step = 1_u64;
        for (&side, &stride) in tensor.shape.iter().zip(&tensor.strides).rev() {
            if side != 1 && stride != step && !tensor.shape.contains(&0) {
                return Err(self.malformed(
                    "a tensor is not stored row after row; save it again after .contiguous()",
                ));
            }
            step = step.saturating_mul(side as u64);
        }
        let bytes = step.saturating_mul(width);
        let from = tensor.offset.saturating_mul(width);
        let place = self.entries.get(&tensor.key);
        let Some((start, _)) = place.filter(|(_, size)| from.saturating_add(bytes) <= *size) else {
            return Err(self.malformed("a tensor does not fit into its entry of the archive"));
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

/// Where a tensor's bytes stand.
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

/// Opens a pt file of embeddings, or one of `VirNucPro`'s three kinds.
pub(super) fn open(path: &Path) -> Result<Reader, OutputError> {
    let file = Opened::new(path)?;
    if let Some(reader) = virnucpro::open(&file)? {
        return Ok(reader);
    }
    let (Some(ids), Some(Value::Tensor(data))) = (file.texts("ids")?, file.entry("data")) else {
        return Err(file.malformed("it has no list `ids` with a tensor `data`"));
    };
    let precision = file.precision(data)?;
    let &[vectors, hidden] = data.shape.as_slice() else {
        return Err(file.malformed("its `data` is no matrix"));
    };
    let rows = ids.len();
    let lengths = file.numbers("lengths", rows)?;
    let offsets = file.numbers("offsets", rows + 1)?;
    let headers = file.texts("headers")?;
    let status = file.texts("status")?;
    let short = |column: &Option<Vec<String>>| column.as_ref().is_some_and(|c| c.len() != rows);
    if short(&headers) || short(&status) {
        return Err(file.malformed("its lists are not equally long"));
    }
    if offsets.is_none() && rows != vectors {
        return Err(file.malformed(format!(
            "it has {} for {}, so nobody can tell which row is whose",
            counted(rows as u64, "id"),
            counted(vectors as u64, "row")
        )));
    }
    let layout = Layout {
        path: path.to_owned(),
        hidden,
        per_token: offsets.is_some(),
        precision,
        provenance: file.facts("provenance"),
    };
    let values = file.tensor(data)?.open(path)?;
    let mut count: Box<dyn FnMut() -> io::Result<u64> + Send> = match offsets {
        Some(offsets) => {
            let first = offsets.first().copied().unwrap_or_default();
            check_first(first).map_err(|e| file.malformed(e))?;
            let mut ends = offsets.into_iter().skip(1);
            Box::new(counts(move || {
                ends.next().ok_or_else(|| invalid("no offset"))
            }))
        }
        None => Box::new(|| Ok(1)),
    };
    let mut ids = ids.into_iter();
    let mut headers = headers.map(Vec::into_iter);
    let mut status = status.map(Vec::into_iter);
    let mut lengths = lengths.map(Vec::into_iter);
    let next = move || {
        let id = ids.next().ok_or_else(|| invalid("no id"))?;
        Ok(Record {
            header: headers
                .as_mut()
                .and_then(Iterator::next)
                .unwrap_or_else(|| id.clone()),
            status: status
                .as_mut()
                .and_then(Iterator::next)
                .unwrap_or_else(|| "ok".to_owned()),
            length: lengths.as_mut().and_then(Iterator::next).unwrap_or(0),
            vectors: count()?,
            id,
        })
    };
    Ok(Blocks {
        layout,
        rows: rows as u64,
        vectors: vectors as u64,
        next: Box::new(next),
        values: Box::new(values),
    }
    .into_reader())
}
