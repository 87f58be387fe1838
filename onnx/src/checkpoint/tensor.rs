//! A tensor in a weights file, as described by the header.

use std::path::{Path, PathBuf};

use super::dtype::Dtype;
use crate::error::Error;
use crate::shown;

/// The location of a tensor: little-endian values, all of them side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Path of the file.
    pub path: PathBuf,
    /// Number format of the stored values.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its first byte in the file.
    pub offset: u64,
    /// Whether it is a matrix that is stored column after column. `PyTorch` saves the transpose of
    /// a matrix so, and the weights of models that were converted from JAX are such transposes.
    pub column_major: bool,
}

/// Where a tensor ends, checked against the file's length.
pub(super) fn check_end(
    path: &Path,
    name: &str,
    tensor: &Tensor,
    length: u64,
) -> Result<(), Error> {
    let needed = tensor
        .shape
        .iter()
        .try_fold(tensor.dtype.bytes() as u64, |bytes, &axis| {
            bytes.checked_mul(axis as u64)
        })
        .and_then(|bytes| bytes.checked_add(tensor.offset))
        .ok_or_else(|| {
            Error::malformed(
                path,
                "weights",
                format!(
                    "tensor {} of shape {:?} is larger than any file can be",
                    shown::name(name),
                    tensor.shape
                ),
            )
        })?;
    if needed > length {
        return Err(Error::Truncated {
            path: path.to_path_buf(),
            tensor: name.to_owned(),
            needed,
            length,
        });
    }
    Ok(())
}
