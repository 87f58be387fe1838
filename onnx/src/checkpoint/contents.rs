//! What both of `PyTorch`'s formats hold: an object, and where the storages that it refers to are.

use std::collections::BTreeMap;
use std::path::Path;

use super::pickle::Pickle;
use crate::error::Error;

/// The formats' name, for messages.
pub(super) const FORMAT: &str = "PyTorch";

/// Maximum size of the pickle in bytes; that of the largest model has a thirtieth of it.
pub(super) const LONGEST_PICKLE: u64 = 8 << 20;

/// What a file holds, and where.
pub(super) struct Contents {
    /// The object that was saved.
    pub pickle: Pickle,
    /// The storages that it refers to, by their keys behind `folder`.
    pub entries: BTreeMap<String, Entry>,
    /// The folder of the storages in an archive.
    pub folder: String,
}

/// The location of a storage's values.
pub(super) struct Entry {
    /// Their first byte in the file.
    pub start: u64,
    /// How many bytes they are.
    pub size: u64,
    /// Whether they are there as they are, without compression.
    pub stored: bool,
}

/// Values in an order of bytes that is not swapped.
pub(super) fn big_endian(path: &Path) -> Error {
    Error::malformed(
        path,
        FORMAT,
        "its values are big-endian; save the file again on a little-endian machine",
    )
}
