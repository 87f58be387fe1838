//! `.safetensors`: a JSON header, then the tensors. Only the header is read here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::Dtype as Stored;
use safetensors::tensor::Metadata;

use super::dtype::Dtype;
use super::tensor::{Tensor, check_end};
use crate::error::Error;
use crate::files::refuse_lfs_pointer;

const FORMAT: &str = "safetensors";
/// As the format's own library has it.
const LONGEST_HEADER: u64 = 100_000_000;

/// Reads the header.
///
/// # Errors
/// If it is invalid, or the file is shorter or longer than it says.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, Error> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let length = file.metadata().map_err(Error::io(path, "read"))?.len();
    let mut size = [0; 8];
    if length < 8 {
        return Err(Error::malformed(
            path,
            FORMAT,
            format!("{length} bytes are too few for a header"),
        ));
    }
    file.read_exact(&mut size)
        .map_err(Error::io(path, "read"))?;
    if size == *b"version " {
        let mut begin = size.to_vec();
        (&mut file)
            .take(64)
            .read_to_end(&mut begin)
            .map_err(Error::io(path, "read"))?;
        refuse_lfs_pointer(path, &begin)?;
    }
    let size = u64::from_le_bytes(size);
    if size > LONGEST_HEADER || size + 8 > length {
        return Err(Error::malformed(
            path,
            FORMAT,
            format!("a header of {size} bytes does not fit a file of {length}"),
        ));
    }
    let mut header = Vec::new();
    file.take(size)
        .read_to_end(&mut header)
        .map_err(Error::io(path, "read"))?;
    // This also checks the size of each tensor against its shape, and that tensors are contiguous
    // in the file.
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| Error::malformed(path, FORMAT, error))?;
    let begin = 8 + size;
    let mut tensors = BTreeMap::new();
    // In the file's order, so that the first one cut off is named.
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else {
            continue;
        };
        let tensor = Tensor {
            path: path.to_path_buf(),
            dtype: dtype(info.dtype),
            shape: info.shape.clone(),
            offset: begin + info.data_offsets.0 as u64,
            column_major: false,
        };
        check_end(path, &name, &tensor, length)?;
        tensors.insert(name, tensor);
    }
    let end = begin + metadata.data_len() as u64;
    if end != length {
        return Err(Error::malformed(
            path,
            FORMAT,
            format!("its tensors end at byte {end}, but the file at byte {length}"),
        ));
    }
    Ok(tensors)
}

fn dtype(stored: Stored) -> Dtype {
    match stored {
        Stored::F64 => Dtype::F64,
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
        Stored::BF16 => Dtype::Bf16,
        Stored::BOOL => Dtype::Other("BOOL", 1),
        Stored::U8 => Dtype::Other("U8", 1),
        Stored::I8 => Dtype::Other("I8", 1),
        Stored::U16 => Dtype::Other("U16", 2),
        Stored::I16 => Dtype::Other("I16", 2),
        Stored::U32 => Dtype::Other("U32", 4),
        Stored::I32 => Dtype::Other("I32", 4),
        Stored::U64 => Dtype::Other("U64", 8),
        Stored::I64 => Dtype::Other("I64", 8),
        // Several values may share a byte: the end is known from the offsets alone.
        _ => Dtype::Other("an 8-bit or smaller float", 0),
    }
}
