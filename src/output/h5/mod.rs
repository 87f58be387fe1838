//! HDF5, read by h5py and every other library of the format.
//!
//! Pooled, the file has the datasets
//!
//! | dataset | type | shape |
//! |---|---|---|
//! | `embeddings`, or `mean_33` and the like | float32 or float16 | N x H |
//! | `ids`, `headers`, `status` | text of variable length, UTF-8 | N |
//! | `lengths` | int64 | N |
//!
//! Per token, it has a dataset for each record, as `UniProt` publishes embeddings: float32 or
//! float16, residues x H, with the attributes `id`, `header`, `status` (text), `length` and `row`
//! (int64; the record's place in the input, from 0). A record that was skipped has a dataset of no
//! rows.
//!
//! A dataset is named by its record's id. In a name `/` would begin a group, so it is written as
//! `_`; the names `.` and `..` become `_` and `__`; a name beyond 255 bytes is cut there. When a
//! name is that of another record, since ids repeat or differ in such a letter only, `#2` follows,
//! or the next number that is free: an id that can be a name is always that of its first record.
//! The attribute `id` is always the id itself.
//!
//! The provenance is stored in attributes of the file; for per-token output, the attribute `hidden`
//! is H.

mod datasets;
mod pooled;
mod records;

use std::path::Path;

use rust_hdf5::{H5File, Hdf5Error};

use super::error::OutputError;
use super::layout::Layout;
use super::precision::OutputPrecision;
use super::reader::Reader;
use super::sink::Sink;

/// Writes an HDF5 file.
pub(super) fn create(layout: Layout) -> Result<Box<dyn Sink>, OutputError> {
    Ok(if layout.per_token {
        Box::new(records::RecordsSink::create(layout)?)
    } else {
        Box::new(pooled::PooledSink::create(layout)?)
    })
}

/// Opens an HDF5 file of embeddings.
pub(super) fn open(path: &Path) -> Result<Reader, OutputError> {
    let malformed = |what: &dyn std::fmt::Display| OutputError::malformed(path, what);
    let h5 = H5File::options()
        .no_locking()
        .open(path)
        .map_err(|e| match e {
            Hdf5Error::Io(source) => OutputError::Read {
                path: path.to_owned(),
                source,
            },
            other => malformed(&other),
        })?;
    let mut provenance = Vec::new();
    // Only a per-token file has it.
    let mut hidden = None;
    for key in h5.attr_names().map_err(|e| malformed(&e))? {
        let value = h5.attr_string(&key).map_err(|e| malformed(&e))?;
        if key == "hidden" {
            hidden = Some(value.parse().map_err(|e| malformed(&e))?);
            continue;
        }
        provenance.push((key, value));
    }
    let names = h5.dataset_names();
    let size = std::fs::metadata(path).map_err(|e| malformed(&e))?.len();
    let layout = Layout {
        path: path.to_owned(),
        hidden: hidden.unwrap_or(0),
        columns: Vec::new(),
        per_token: hidden.is_some(),
        precision: OutputPrecision::Fp32,
        provenance,
    };
    if layout.per_token {
        records::open(h5, &names, layout, size)
    } else {
        pooled::open(h5, layout, size)
    }
    .map_err(|e| malformed(&e))
}
