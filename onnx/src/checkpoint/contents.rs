//! The content of `PyTorch`'s files, in both formats: an object, and the positions of its storages.

use std::collections::BTreeMap;
use std::path::Path;

use super::pickle::Pickle;
use crate::error::Error;

/// Name of the format in messages.
pub(super) const FORMAT: &str = "PyTorch";

/// Maximum size of the pickle in bytes; that of the largest model has a thirtieth of it.
pub(super) const LONGEST_PICKLE: u64 = 8 << 20;

/// A file's object, and the positions of its storages.
pub(super) struct Contents {
    /// The object that was saved.
    pub pickle: Pickle,
    /// The storages that it refers to, by `folder` followed by their keys.
    pub entries: BTreeMap<String, Entry>,
    /// The folder of the storages in an archive, with a slash; empty in the older format.
    pub folder: String,
}

/// The location of a storage's values.
pub(super) struct Entry {
    /// Offset of their first byte in the file.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
    /// Whether they are stored without compression.
    pub stored: bool,
}

/// The error for a big-endian file, whose values are not converted.
pub(super) fn big_endian(path: &Path) -> Error {
    Error::malformed(
        path,
        FORMAT,
        "its values are big-endian; save the file again on a little-endian machine",
    )
}
