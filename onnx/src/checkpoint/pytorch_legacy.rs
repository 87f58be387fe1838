//! Files saved by `PyTorch` before 1.6: five pickles in a row (a magic number, the version of the
//! format, facts about the machine, the object, and the keys of its storages), then for each key
//! the number of values in its storage, in eight bytes, and the values.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::contents::{Contents, Entry, FORMAT, LONGEST_PICKLE, big_endian};
use super::dtype::Dtype;
use super::pickle::{self, Pickle, PickleError, Value};
use crate::error::Error;
use crate::shown;

/// The first bytes of these files: pickle protocol 2, and the magic number, an integer of ten
/// bytes.
pub(super) const MAGIC: [u8; 14] = [
    0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19,
];

/// The only version of the format that was ever released.
const VERSION: i64 = 1001;

/// Bytes before a storage's values, which hold their number.
const COUNT: usize = 8;

/// Reads the saved object, and where its storages are, from a file of `length` bytes.
///
/// # Errors
/// If a pickle asks for anything but data or is damaged, or the storages are not those that the
/// object refers to. What reaches beyond the end of the file is not an error here.
pub(super) fn read(path: &Path, mut file: File, length: u64) -> Result<Contents, Error> {
    let mut head = Vec::new();
    (&mut file)
        .take(LONGEST_PICKLE)
        .read_to_end(&mut head)
        .map_err(Error::io(path, "read"))?;
    let mut pickles = Pickles {
        path,
        bytes: &head,
        at: 0,
    };
    // The magic number, which was checked before.
    pickles.next()?;
    let version = pickles.next()?;
    if *version.root() != Value::Int(VERSION) {
        return Err(Error::malformed(
            path,
            FORMAT,
            format!(
                "the version of its format is not {VERSION}, the only one that PyTorch had before 1.6"
            ),
        ));
    }
    let machine = pickles.next()?;
    match machine.entry(machine.root(), "little_endian") {
        Some(Value::Bool(true)) => {}
        Some(Value::Bool(false)) => return Err(big_endian(path)),
        _ => {
            return Err(Error::malformed(
                path,
                FORMAT,
                "it does not say the byte order of its values (little_endian)",
            ));
        }
    }
    let object = pickles.next()?;
    let keys = pickles.next()?;
    let mut values = Values {
        path,
        file,
        length,
        at: pickles.at as u64,
    };
    let entries = values.entries(&object, &keys)?;
    Ok(Contents {
        pickle: object,
        entries,
        folder: String::new(),
    })
}

/// The pickles at the beginning of a file.
struct Pickles<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl Pickles<'_> {
    fn next(&mut self) -> Result<Pickle, Error> {
        let read = pickle::read_first(&self.bytes[self.at..]);
        let (pickle, length) = read.map_err(|source| match source {
            PickleError::Truncated { .. } if self.bytes.len() as u64 == LONGEST_PICKLE => {
                Error::malformed(
                    self.path,
                    FORMAT,
                    format!(
                        "its pickles have more than {LONGEST_PICKLE} bytes, more than any \
                         checkpoint needs"
                    ),
                )
            }
            source => Error::Pickle {
                path: self.path.to_path_buf(),
                source,
            },
        })?;
        self.at += length;
        Ok(pickle)
    }
}

/// The storages' values, one storage after the other.
struct Values<'a> {
    path: &'a Path,
    file: File,
    length: u64,
    /// Where the next storage begins.
    at: u64,
}

impl Values<'_> {
    /// Where each storage's values are, in the order of their keys.
    fn entries(
        &mut self,
        object: &Pickle,
        keys: &Pickle,
    ) -> Result<BTreeMap<String, Entry>, Error> {
        let mentioned = mentioned(self.path, object)?;
        let Value::List(list) = keys.root() else {
            return Err(self.bad("it has no list of the keys of its storages"));
        };
        let mut entries = BTreeMap::new();
        for key in list {
            let Value::Text(key) = keys.get(*key) else {
                return Err(self.bad("the key of a storage is not text"));
            };
            let Some((dtype, count)) = mentioned.get(key.as_str()) else {
                return Err(self.bad(format!(
                    "it has the values of a storage {}, which nothing in it refers to",
                    shown::name(key)
                )));
            };
            let entry = self.entry(key, *dtype, *count)?;
            if entries.insert(key.clone(), entry).is_some() {
                return Err(self.bad(format!(
                    "it has the values of storage {} twice",
                    shown::name(key)
                )));
            }
        }
        Ok(entries)
    }

    /// Where the values of the next storage are, of which there must be `count`.
    fn entry(&mut self, key: &str, dtype: Dtype, count: u64) -> Result<Entry, Error> {
        if let Some(told) = self.count()?
            && told != count
        {
            return Err(self.bad(format!(
                "storage {} has {count} values, but {told} where the values are",
                shown::name(key),
            )));
        }
        let size = count.checked_mul(dtype.bytes() as u64);
        let start = self.at.checked_add(COUNT as u64);
        let end = size.zip(start).and_then(|(size, at)| at.checked_add(size));
        let (Some(size), Some(start), Some(end)) = (size, start, end) else {
            return Err(self.bad(format!(
                "storage {} of {count} values is larger than any file can be",
                shown::name(key)
            )));
        };
        self.at = end;
        Ok(Entry {
            start,
            size,
            stored: true,
        })
    }

    /// The number of values that the file gives for the next storage; `None` if it ends before.
    fn count(&mut self) -> Result<Option<u64>, Error> {
        if self.at.saturating_add(COUNT as u64) > self.length {
            return Ok(None);
        }
        let mut count = [0; COUNT];
        self.file
            .seek(SeekFrom::Start(self.at))
            .and_then(|_| self.file.read_exact(&mut count))
            .map_err(Error::io(self.path, "read"))?;
        Ok(Some(u64::from_le_bytes(count)))
    }

    fn bad(&self, what: impl std::fmt::Display) -> Error {
        Error::malformed(self.path, FORMAT, what)
    }
}

/// The number formats and the numbers of values of all storages that an object refers to, by their
/// keys.
fn mentioned<'a>(
    path: &Path,
    object: &'a Pickle,
) -> Result<BTreeMap<&'a str, (Dtype, u64)>, Error> {
    let mut mentioned = BTreeMap::new();
    for (key, dtype, count) in object.storages() {
        let Some(count) = count else {
            return Err(Error::malformed(
                path,
                FORMAT,
                format!(
                    "it does not say how many values storage {} has",
                    shown::name(key)
                ),
            ));
        };
        let now = (dtype, count);
        if *mentioned.entry(key).or_insert(now) != now {
            return Err(Error::malformed(
                path,
                FORMAT,
                format!(
                    "it refers to storage {} with two number formats or lengths",
                    shown::name(key)
                ),
            ));
        }
    }
    Ok(mentioned)
}
