//! `PyTorch`'s files. Since 1.6, they are zip archives: `NAME/data.pkl` says what is in them, and
//! `NAME/data/N` are the values, stored without compression. `pytorch_legacy.rs` reads older files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use super::contents::{Contents, Entry, FORMAT, LONGEST_PICKLE, big_endian};
use super::pickle::{self, Described, Id, Pickle, Value};
use super::pytorch_legacy;
use super::settings::Scalar;
use super::tensor::{Tensor, check_end};
use crate::error::Error;
use crate::files::refuse_lfs_pointer;
use crate::shown;

/// Maximum number of tensors; the largest model has a hundredth of it. A dict can occur under many
/// names in a pickle, each time with all its tensors.
const MOST_TENSORS: usize = 1 << 17;

/// Tensors and settings of a checkpoint.
#[derive(Debug)]
pub struct Archive {
    /// The tensors of its state dict, by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// fair-esm's settings, where it has them.
    pub settings: BTreeMap<String, Scalar>,
}

/// Reads the list of tensors and the settings.
///
/// # Errors
/// If it is not such a file, is truncated, or its pickle requests anything but data.
pub fn read(path: &Path) -> Result<Archive, Error> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let length = file.metadata().map_err(Error::io(path, "read"))?.len();
    let mut begin = Vec::new();
    (&mut file)
        .take(64)
        .read_to_end(&mut begin)
        .map_err(Error::io(path, "read"))?;
    file.rewind().map_err(Error::io(path, "read"))?;
    let contents = if begin.starts_with(&pytorch_legacy::MAGIC) {
        pytorch_legacy::read(path, file, length)?
    } else {
        refuse_lfs_pointer(path, &begin)?;
        if !begin.starts_with(b"PK") {
            return Err(Error::NotACheckpoint {
                path: path.to_path_buf(),
                why:
                    "the file is not a PyTorch file: it is neither a zip archive nor in the format \
                      of PyTorch before 1.6; download or copy it again"
                        .to_owned(),
            });
        }
        read_zip(path, file)?
    };
    let tensors = tensors(path, &contents, length)?;
    Ok(Archive {
        tensors,
        settings: settings(&contents.pickle),
    })
}

/// Reads a zip archive.
fn read_zip(path: &Path, file: File) -> Result<Contents, Error> {
    let mut zip = open_archive(path, file)?;
    let entries = entries(path, &mut zip)?;
    let Some((name, (index, entry))) = entries.iter().find(|(name, _)| {
        name.split_once('/')
            .is_some_and(|(_, rest)| rest == "data.pkl")
    }) else {
        return Err(Error::malformed(
            path,
            FORMAT,
            "the archive has no data.pkl; TorchScript and other zip files are not supported",
        ));
    };
    let folder = name.strip_suffix("data.pkl").unwrap_or("");
    if entry.size > LONGEST_PICKLE {
        return Err(Error::malformed(
            path,
            FORMAT,
            format!(
                "its pickle has {} bytes, more than any checkpoint needs",
                entry.size
            ),
        ));
    }
    if let Some((order, _)) = entries.get(&format!("{folder}byteorder")) {
        let order = small(path, &mut zip, *order)?;
        if order != b"little" {
            return Err(big_endian(path));
        }
    }
    let bytes = small(path, &mut zip, *index)?;
    let pickle = pickle::read(&bytes).map_err(|source| Error::Pickle {
        path: path.to_path_buf(),
        source,
    })?;
    let folder = format!("{folder}data/");
    let entries = entries
        .into_iter()
        .map(|(name, (_, entry))| (name, entry))
        .collect();
    Ok(Contents {
        pickle,
        entries,
        folder,
    })
}

/// Opens a file as a zip archive.
fn open_archive(path: &Path, file: File) -> Result<Zip, Error> {
    // Nothing stands before the archive. Left to find that out, the reader takes the directory to
    // end where its zip32 record begins, but PyTorch writes zip64 records between the two, 76 bytes
    // long: an entry of that length, one whose name has 30 letters, is then taken for the first.
    let config = Config {
        archive_offset: ArchiveOffset::Known(0),
    };
    ZipArchive::with_config(config, BufReader::new(file)).map_err(|error| {
        Error::malformed(
            path,
            FORMAT,
            format!("{error}; the file may be truncated: download or copy it again"),
        )
    })
}

/// The tensors of a state dict, by their names.
fn tensors(
    path: &Path,
    contents: &Contents,
    length: u64,
) -> Result<BTreeMap<String, Tensor>, Error> {
    let mut tensors = BTreeMap::new();
    let state_dict = state_dict(&contents.pickle);
    if state_dict.len() >= MOST_TENSORS {
        return Err(Error::malformed(
            path,
            FORMAT,
            "it has more than a hundred thousand tensors, more than any checkpoint",
        ));
    }
    for (name, described) in state_dict {
        let tensor = place(path, &name, described, contents, length)?;
        tensors.insert(name.into_owned(), tensor);
    }
    if tensors.is_empty() {
        return Err(Error::NotACheckpoint {
            path: path.to_path_buf(),
            why: "the file contains no named tensors".to_owned(),
        });
    }
    Ok(tensors)
}

type Zip = ZipArchive<BufReader<File>>;

/// The entries of an archive and their numbers, by their names.
fn entries(path: &Path, zip: &mut Zip) -> Result<BTreeMap<String, (usize, Entry)>, Error> {
    let mut entries = BTreeMap::new();
    for index in 0..zip.len() {
        let file = zip
            .by_index_raw(index)
            .map_err(|error| Error::malformed(path, FORMAT, error))?;
        let (Ok(name), Some(start)) = (
            file.name().map(std::borrow::Cow::into_owned),
            file.data_start(),
        ) else {
            return Err(Error::malformed(
                path,
                FORMAT,
                format!("entry {index} of the archive cannot be found"),
            ));
        };
        let entry = Entry {
            start,
            size: file.size(),
            stored: file.compression() == CompressionMethod::Stored,
        };
        entries.insert(name, (index, entry));
    }
    Ok(entries)
}

/// A small entry's bytes, checked against its checksum.
fn small(path: &Path, zip: &mut Zip, index: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    zip.by_index(index)
        .map_err(|error| Error::malformed(path, FORMAT, error))?
        .take(LONGEST_PICKLE)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::malformed(path, FORMAT, error))?;
    Ok(bytes)
}

/// The named tensors: of the outermost dict, or of the one that it has under `model` or
/// `state_dict`. A dict in there counts with its tensors, as `KEY.NAME`: what is done with the
/// others would else be done without them.
fn state_dict(pickle: &Pickle) -> Vec<(Cow<'_, str>, &Described)> {
    let root = pickle.root();
    let dict = ["model", "state_dict", "model_state_dict"]
        .iter()
        .find_map(|key| {
            pickle
                .entry(root, key)
                .filter(|value| matches!(value, Value::Dict(_)))
        })
        .unwrap_or(root);
    let Value::Dict(entries) = dict else {
        return Vec::new();
    };
    let mut tensors = Vec::new();
    for (name, value) in named(pickle, entries) {
        if tensors.len() >= MOST_TENSORS {
            break;
        }
        match value {
            Value::Tensor(tensor) => tensors.push((Cow::Borrowed(name), tensor.as_ref())),
            Value::Dict(inner) => {
                let inner = named(pickle, inner).filter_map(|(inner, value)| match value {
                    Value::Tensor(tensor) => {
                        Some((Cow::Owned(format!("{name}.{inner}")), tensor.as_ref()))
                    }
                    _ => None,
                });
                tensors.extend(inner.take(MOST_TENSORS - tensors.len()));
            }
            _ => {}
        }
    }
    tensors
}

/// The entries of a dict that have text keys.
fn named<'pickle>(
    pickle: &'pickle Pickle,
    entries: &'pickle [(Id, Id)],
) -> impl Iterator<Item = (&'pickle str, &'pickle Value)> {
    entries
        .iter()
        .filter_map(|(key, value)| match pickle.get(*key) {
            Value::Text(key) => Some((key.as_str(), pickle.get(*value))),
            _ => None,
        })
}

/// fair-esm's settings: the Namespace under `cfg`, `model`, or under `args`.
fn settings(pickle: &Pickle) -> BTreeMap<String, Scalar> {
    let root = pickle.root();
    let found = pickle
        .entry(root, "cfg")
        .and_then(|cfg| pickle.entry(cfg, "model"))
        .or_else(|| pickle.entry(root, "args"));
    let attributes = match found {
        Some(Value::Namespace(Some(attributes))) => pickle.get(*attributes),
        Some(dict) => dict,
        None => return BTreeMap::new(),
    };
    let Value::Dict(entries) = attributes else {
        return BTreeMap::new();
    };
    entries
        .iter()
        .filter_map(|(key, value)| {
            let Value::Text(key) = pickle.get(*key) else {
                return None;
            };
            let value = match pickle.get(*value) {
                Value::Bool(value) => Scalar::Bool(*value),
                Value::Int(value) => Scalar::Int(*value),
                Value::Float(value) => Scalar::Float(*value),
                Value::Text(value) => Scalar::Text(value.clone()),
                _ => return None,
            };
            Some((key.clone(), value))
        })
        .collect()
}

/// The order of a tensor's values, which lie side by side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Row after row.
    Rows,
    /// A matrix, column after column.
    Columns,
}

impl Order {
    /// By shape and strides; `None`: in another order, or with gaps.
    fn of(described: &Described) -> Option<Self> {
        let Described { shape, strides, .. } = described;
        // The stride of the last axis is 1, and that of each other axis is the size of everything
        // inside it. Strides of axes of length 1 do not matter.
        let mut step = Some(1_u64);
        let mut in_rows = true;
        for (axis, stride) in shape.iter().zip(strides).rev() {
            in_rows &= *axis == 1 || step == Some(*stride);
            step = step.and_then(|step| step.checked_mul(*axis as u64));
        }
        match (&shape[..], &strides[..]) {
            _ if in_rows || shape.contains(&0) => Some(Self::Rows),
            (&[rows, _], &[1, stride]) if stride == rows as u64 => Some(Self::Columns),
            _ => None,
        }
    }
}

fn place(
    path: &Path,
    name: &str,
    described: &Described,
    contents: &Contents,
    length: u64,
) -> Result<Tensor, Error> {
    let bad = |what: String| {
        Error::malformed(path, FORMAT, format!("tensor {} {what}", shown::name(name)))
    };
    let key = format!("{}{}", contents.folder, described.key);
    let entry = contents.entries.get(&key).ok_or_else(|| {
        bad(format!(
            "refers to {}, which is not in the archive",
            shown::name(&key)
        ))
    })?;
    if !entry.stored {
        return Err(bad("is compressed, which PyTorch never does".to_owned()));
    }
    let Some(order) = Order::of(described) else {
        return Err(bad(
            "is not contiguous; save it again after .contiguous()".to_owned()
        ));
    };
    let mut axes = described.shape.iter();
    let values = axes.try_fold(1_u64, |values, &axis| values.checked_mul(axis as u64));
    let width = described.dtype.bytes() as u64;
    let offset = described.offset.checked_mul(width);
    let end = values.and_then(|values| values.checked_mul(width)?.checked_add(offset?));
    match (offset, end) {
        (Some(offset), Some(end)) if end <= entry.size => {
            let tensor = Tensor {
                path: path.to_path_buf(),
                dtype: described.dtype,
                shape: described.shape.clone(),
                offset: entry.start.saturating_add(offset),
                column_major: order == Order::Columns,
            };
            check_end(path, name, &tensor, length)?;
            Ok(tensor)
        }
        _ => Err(bad(format!(
            "of shape {:?} does not fit its {} bytes in {}",
            described.shape,
            entry.size,
            shown::name(&key)
        ))),
    }
}
