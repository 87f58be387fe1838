//! What pooled and per-token files have in common: types, shapes, and errors of the library.

use std::io;
use std::path::Path;

use half::f16;
use rust_hdf5::format::messages::datatype::DatatypeMessage;
use rust_hdf5::{H5Dataset, Hdf5Error};

use super::super::blocks;
use super::super::error::OutputError;
use super::super::precision::OutputPrecision;
use super::super::reader::WIDEST;

/// Lengths as signed numbers, which every reader has.
pub(super) fn signed(lengths: &[u64]) -> Vec<i64> {
    let lengths = lengths.iter();
    lengths
        .map(|&length| i64::try_from(length).unwrap_or(i64::MAX))
        .collect()
}

/// The bits of 16-bit floats.
pub(super) fn bits(values: &[f32]) -> Vec<u16> {
    let halves = values.iter().map(|&value| f16::from_f32(value));
    halves.map(f16::to_bits).collect()
}

pub(super) fn writing(path: &Path, error: Hdf5Error) -> OutputError {
    let source = match error {
        Hdf5Error::Io(error) => error,
        other => io::Error::other(other.to_string()),
    };
    OutputError::Io {
        path: path.to_owned(),
        source,
    }
}

/// The floats of a dataset, if it is a matrix of them.
pub(super) fn precision(dataset: &H5Dataset) -> Result<OutputPrecision, Hdf5Error> {
    let kind = dataset.datatype()?;
    let is_matrix = dataset.ndims() == 2;
    [
        (DatatypeMessage::f32_type(), OutputPrecision::Fp32),
        (DatatypeMessage::f16_type(), OutputPrecision::Fp16),
    ]
    .into_iter()
    .find(|(known, _)| is_matrix && *known == kind)
    .map(|(_, precision)| precision)
    .ok_or_else(|| Hdf5Error::TypeMismatch("it has no matrix of float32 or float16".into()))
}

/// Rows of a matrix.
pub(super) fn rows_of(
    dataset: &H5Dataset,
    precision: OutputPrecision,
    start: usize,
    count: usize,
    hidden: usize,
) -> Result<Vec<f32>, Hdf5Error> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let (starts, counts) = ([start, 0], [count, hidden]);
    Ok(match precision {
        OutputPrecision::Fp32 => dataset.read_slice::<f32>(&starts, &counts)?,
        OutputPrecision::Fp16 => {
            let bits = dataset.read_slice::<u16>(&starts, &counts)?;
            bits.into_iter().map(|b| f16::from_bits(b).into()).collect()
        }
    })
}

/// A length that was written as a signed number.
pub(super) fn length(number: i64) -> Result<u64, Hdf5Error> {
    blocks::length(number).map_err(|e| Hdf5Error::InvalidState(e.to_string()))
}

pub(super) fn unequal() -> Hdf5Error {
    Hdf5Error::InvalidState("its columns differ in length".into())
}

/// Refuses a matrix larger than the file, because HDF5 would return zeros for missing data.
pub(super) fn check_shape(
    rows: usize,
    hidden: usize,
    precision: OutputPrecision,
    size: u64,
) -> Result<(), Hdf5Error> {
    /// Deflate makes data smaller by this factor at most.
    const DENSEST: u64 = 1032;
    let bytes = rows
        .checked_mul(hidden)
        .and_then(|values| values.checked_mul(precision.bytes()));
    if bytes.is_some_and(|bytes| bytes as u64 <= size.saturating_mul(DENSEST))
        && hidden <= WIDEST
        && (hidden > 0 || rows == 0)
    {
        return Ok(());
    }
    Err(Hdf5Error::InvalidState(format!(
        "a matrix of {rows} x {hidden} values cannot be in a file of {size} bytes"
    )))
}
