//! The files of a model folder, and reading small ones as a whole: configurations, indices, vocabularies.

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

/// How a Git LFS pointer begins, the few lines that stand where `git lfs pull` has not brought the file itself.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Whether a file that begins so is a Git LFS pointer.
#[must_use]
pub fn is_lfs_pointer(begin: &[u8]) -> bool {
    begin.starts_with(LFS_POINTER)
}

/// Refuses a file that begins as a Git LFS pointer does.
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

/// Reads a file of at most so many bytes.
///
/// # Errors
/// When it can't be read, is no file, is longer, or is a Git LFS pointer.
pub(crate) fn read_small(path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    // A pipe without a writer would never be opened.
    let kind = std::fs::metadata(path).map_err(Error::io(path, "read"))?;
    if !kind.is_file() {
        return Err(Error::config(path, "it is no regular file"));
    }
    let file = File::open(path).map_err(Error::io(path, "read"))?;
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > most {
        return Err(Error::config(
            path,
            format!("it has more than {most} bytes, which no such file needs"),
        ));
    }
    refuse_lfs_pointer(path, &bytes)?;
    Ok(bytes)
}
