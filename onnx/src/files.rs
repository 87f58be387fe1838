//! The files of a model folder, and reading small ones as a whole: configurations, indices,
//! vocabularies.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::Error;

/// What a model folder is known by.
pub const INFO_FILE: &str = "seqembed.json";
/// All weights.
pub const WEIGHTS_FILE: &str = "weights.bin";
/// The padded graph of the last layer, for any ONNX Runtime.
pub const GRAPH_FILE: &str = "model.onnx";

/// The start of a Git LFS pointer, which replaces a file until `git lfs pull` is run.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Whether a file that starts with these bytes is a Git LFS pointer.
#[must_use]
pub fn is_lfs_pointer(begin: &[u8]) -> bool {
    begin.starts_with(LFS_POINTER)
}

/// Refuses a Git LFS pointer, given the start of a file.
///
/// # Errors
/// [`Error::LfsPointer`].
pub(crate) fn refuse_lfs_pointer(path: &Path, begin: &[u8]) -> Result<(), Error> {
    if is_lfs_pointer(begin) {
        return Err(Error::LfsPointer {
            path: path.to_path_buf(),
        });
    }
    Ok(())
}

/// Reads a file of at most `most` bytes.
///
/// # Errors
/// If it cannot be read, is not a regular file, is longer, or is a Git LFS pointer.
pub(crate) fn read_small(path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    // Opening a pipe without a writer would block forever.
    let kind = std::fs::metadata(path).map_err(Error::io(path, "read"))?;
    if !kind.is_file() {
        return Err(Error::config(path, "it is not a regular file"));
    }
    let file = File::open(path).map_err(Error::io(path, "read"))?;
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > most {
        return Err(Error::config(
            path,
            format!("it has more than {most} bytes, more than any such file needs"),
        ));
    }
    refuse_lfs_pointer(path, &bytes)?;
    Ok(bytes)
}
