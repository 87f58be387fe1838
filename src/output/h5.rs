//! HDF5, read by h5py and every other library of the format.
//!
//! Pooled, the file has the datasets
//!
//! | dataset | type | shape |
//! |---|---|---|
//! | `embeddings` | float32 or float16 | N x H |
//! | `ids`, `headers`, `status` | text of variable length, UTF-8 | N |
//! | `lengths` | int64 | N |
//!
//! Per token, it has a dataset for each record, as `UniProt` publishes embeddings: float32 or float16, residues x H,
//! with the attributes `id`, `header`, `status` (text), `length` and `row` (int64; the record's place in the input,
//! from 0). A record that was skipped has a dataset of no rows.
//!
//! A dataset is named by its record's id. In a name `/` would begin a group, so it is written as `_`; the names `.` and
//! `..` become `_` and `__`; a name beyond 255 bytes is cut there. When a name is that of another record, since ids
//! repeat or differ in such a letter only, `#2` follows, or the next number that is free: an id that can be a name is
//! always that of its first record. The attribute `id` is always the id itself.
//!
//! Provenance stands in the attributes of the file; per token, `hidden` is H.

mod records;

use std::io;
use std::path::Path;

use half::f16;
use rust_hdf5::format::messages::datatype::DatatypeMessage;
use rust_hdf5::{H5Dataset, H5File, Hdf5Error};

use super::{
    BLOCK_BYTES, Layout, OpenRow, OutputError, OutputPrecision, Reader, Rows, Sink, Unfinished,
    WIDEST, Written, blocks,
};

/// Bytes of a chunk of a pooled matrix.
const CHUNK_BYTES: usize = 128 << 10;
/// Rows in a chunk of a column, and of a matrix at most.
const CHUNK_ROWS: usize = 256;
/// The text columns of a pooled file.
const TEXTS: [&str; 3] = ["ids", "headers", "status"];

/// Writes an HDF5 file.
pub(super) fn create(layout: Layout) -> Result<Box<dyn Sink>, OutputError> {
    Ok(if layout.per_token {
        Box::new(records::RecordsSink::create(layout)?)
    } else {
        Box::new(PooledSink::create(layout)?)
    })
}

/// Writes one HDF5 file with a row for each record.
struct PooledSink {
    layout: Layout,
    // Before the file, so that nothing is written to a name that is gone.
    h5: H5File,
    file: Unfinished,
    pooled: Pooled,
    /// Rows that are not yet in the file: rows go there by the chunk, not by the caller's blocks, so that
    /// the file doesn't depend on those.
    pending: Rows,
    open: OpenRow,
}

/// The datasets of a pooled file.
struct Pooled {
    embeddings: H5Dataset,
    lengths: H5Dataset,
}

impl PooledSink {
    fn create(layout: Layout) -> Result<Self, OutputError> {
        let file = Unfinished::create(&layout.path)?;
        let begin = || {
            // The file has a name that nobody else knows, and file systems of clusters may know no locks.
            let h5 = H5File::options().no_locking().create(file.partial())?;
            h5.set_track_times(false)?;
            for (key, value) in &layout.provenance {
                h5.set_attr_string(key, value)?;
            }
            let pooled = Pooled::create(&h5, &layout)?;
            Ok((h5, pooled))
        };
        let (h5, pooled) = begin().map_err(|e| writing(&layout.path, e))?;
        Ok(PooledSink {
            h5,
            file,
            pooled,
            pending: Rows::new(layout.hidden),
            open: OpenRow::default(),
            layout,
        })
    }

    /// Puts all pending rows into the file.
    fn flush(&mut self) -> Result<(), Hdf5Error> {
        let rows = std::mem::replace(&mut self.pending, Rows::new(self.layout.hidden));
        if rows.is_empty() {
            return Ok(());
        }
        for (name, texts) in TEXTS.iter().zip([&rows.ids, &rows.headers, &rows.status]) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            self.h5.append_vlen_strings(name, &texts)?;
        }
        self.pooled.lengths.append(&signed(&rows.lengths))?;
        match self.layout.precision {
            OutputPrecision::Fp32 => self.pooled.embeddings.append(&rows.values),
            OutputPrecision::Fp16 => self.pooled.embeddings.append(&bits(&rows.values)),
        }
    }

    fn append(&mut self, rows: &Rows) -> Result<(), Hdf5Error> {
        for (row, values) in rows.values.chunks_exact(rows.hidden.max(1)).enumerate() {
            self.pending.push(rows, row, values);
            if self.pending.len() == CHUNK_ROWS {
                self.flush()?;
            }
        }
        Ok(())
    }
}

impl Pooled {
    fn create(h5: &H5File, layout: &Layout) -> Result<Self, Hdf5Error> {
        for name in TEXTS {
            h5.create_appendable_vlen_dataset(name, CHUNK_ROWS, None)?;
        }
        let lengths = h5
            .new_dataset::<i64>()
            .shape([0_usize])
            .chunk(&[CHUNK_ROWS])
            .max_shape(&[None])
            .create("lengths")?;
        let hidden = layout.hidden;
        let rows = CHUNK_BYTES / (hidden * layout.precision.bytes()).max(1);
        let chunk = [rows.clamp(1, CHUNK_ROWS), hidden];
        let most = [None, Some(hidden)];
        let embeddings = match layout.precision {
            OutputPrecision::Fp32 => h5
                .new_dataset::<f32>()
                .shape([0, hidden])
                .chunk(&chunk)
                .max_shape(&most)
                .create("embeddings")?,
            OutputPrecision::Fp16 => h5
                .new_dataset::<u16>()
                .datatype(DatatypeMessage::f16_type())
                .shape([0, hidden])
                .chunk(&chunk)
                .max_shape(&most)
                .create("embeddings")?,
        };
        Ok(Self {
            embeddings,
            lengths,
        })
    }
}

impl Sink for PooledSink {
    fn write(&mut self, rows: &Rows) -> Result<(), OutputError> {
        rows.check(&self.layout, &mut self.open)?;
        self.append(rows).map_err(|e| writing(&self.layout.path, e))
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Written>, OutputError> {
        self.open.check(&self.layout)?;
        self.flush().map_err(|e| writing(&self.layout.path, e))?;
        let PooledSink {
            layout,
            h5,
            file,
            pooled,
            ..
        } = *self;
        drop(pooled);
        // The bytes are brought to the disk below, as those of every format.
        h5.close_no_sync().map_err(|e| writing(&layout.path, e))?;
        Ok(vec![file.finish()?])
    }
}

/// Lengths as signed numbers, which every reader has.
fn signed(lengths: &[u64]) -> Vec<i64> {
    let lengths = lengths.iter();
    lengths
        .map(|&length| i64::try_from(length).unwrap_or(i64::MAX))
        .collect()
}

/// The bits of 16-bit floats.
fn bits(values: &[f32]) -> Vec<u16> {
    let halves = values.iter().map(|&value| f16::from_f32(value));
    halves.map(f16::to_bits).collect()
}

fn writing(path: &Path, error: Hdf5Error) -> OutputError {
    let source = match error {
        Hdf5Error::Io(error) => error,
        other => io::Error::other(other.to_string()),
    };
    OutputError::Io {
        path: path.to_owned(),
        source,
    }
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
        per_token: hidden.is_some(),
        precision: OutputPrecision::Fp32,
        provenance,
    };
    if layout.per_token {
        open_per_token(h5, &names, layout, size)
    } else {
        open_pooled(h5, layout, size)
    }
    .map_err(|e| malformed(&e))
}

/// The floats of a dataset, if it is a matrix of them.
fn precision(dataset: &H5Dataset) -> Result<OutputPrecision, Hdf5Error> {
    let kind = dataset.datatype()?;
    let is_matrix = dataset.ndims() == 2;
    [
        (DatatypeMessage::f32_type(), OutputPrecision::Fp32),
        (DatatypeMessage::f16_type(), OutputPrecision::Fp16),
    ]
    .into_iter()
    .find(|(known, _)| is_matrix && *known == kind)
    .map(|(_, precision)| precision)
    .ok_or_else(|| Hdf5Error::TypeMismatch("no matrix of float32 or float16".into()))
}

/// Rows of a matrix.
fn rows_of(
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

fn open_pooled(h5: H5File, mut layout: Layout, size: u64) -> Result<Reader, Hdf5Error> {
    let embeddings = h5.dataset("embeddings")?;
    layout.precision = precision(&embeddings)?;
    let &[rows, hidden] = embeddings.shape().as_slice() else {
        return Err(Hdf5Error::TypeMismatch("no matrix".into()));
    };
    layout.hidden = hidden;
    check_shape(rows, hidden, layout.precision, size)?;
    let texts = |name: &str| -> Result<Vec<String>, Hdf5Error> {
        let dataset = h5.dataset(name)?;
        if dataset.shape() != [rows] {
            return Err(unequal());
        }
        if rows == 0 {
            return Ok(Vec::new());
        }
        dataset.read_vlen_strings()
    };
    let (ids, headers, status) = (texts("ids")?, texts("headers")?, texts("status")?);
    let lengths = h5.dataset("lengths")?;
    if lengths.shape() != [rows] {
        return Err(unequal());
    }
    let lengths = if rows == 0 {
        Vec::new()
    } else {
        let numbers = lengths.read_raw::<i64>()?.into_iter();
        numbers.map(length).collect::<Result<Vec<_>, _>>()?
    };
    let columns = [ids.len(), headers.len(), status.len(), lengths.len()];
    if columns.iter().any(|&column| column != rows) {
        return Err(unequal());
    }
    let step = (BLOCK_BYTES / (4 * hidden).max(1)).clamp(1, 1 << 16);
    let (path, kind) = (layout.path.clone(), layout.precision);
    let mut at = 0;
    let mut columns = (
        ids.into_iter(),
        headers.into_iter(),
        status.into_iter(),
        lengths.into_iter(),
    );
    let blocks = std::iter::from_fn(move || {
        let count = step.min(rows - at);
        if count == 0 {
            return None;
        }
        let values = rows_of(&embeddings, kind, at, count, hidden);
        at = if values.is_ok() { at + count } else { rows };
        let block = values.map(|values| Rows {
            hidden,
            ids: columns.0.by_ref().take(count).collect(),
            headers: columns.1.by_ref().take(count).collect(),
            status: columns.2.by_ref().take(count).collect(),
            lengths: columns.3.by_ref().take(count).collect(),
            vectors: vec![1; count],
            values,
            ..Rows::default()
        });
        // The file stays open as long as its datasets are read.
        let _ = &h5;
        Some(block.map_err(|e| OutputError::malformed(&path, e)))
    });
    Ok(Reader {
        layout,
        rows: rows as u64,
        blocks: Box::new(blocks),
    })
}

/// A length that was written as a signed number.
fn length(number: i64) -> Result<u64, Hdf5Error> {
    blocks::length(number).map_err(|e| Hdf5Error::InvalidState(e.to_string()))
}

fn unequal() -> Hdf5Error {
    Hdf5Error::InvalidState("its columns are not equally long".into())
}

/// Refuses a matrix that the file can't hold: what is not there is zeros to HDF5, as many as the shape says.
fn check_shape(
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
        "a matrix of {rows} x {hidden} values can't be in a file of {size} bytes"
    )))
}

fn open_per_token(
    h5: H5File,
    names: &[String],
    mut layout: Layout,
    size: u64,
) -> Result<Reader, Hdf5Error> {
    let mut records = Vec::with_capacity(names.len());
    for name in names {
        let dataset = h5.dataset(name)?;
        let row = dataset.attr("row")?.read_numeric::<i64>()?;
        let kind = precision(&dataset)?;
        let [rows, hidden] = [dataset.shape()[0], dataset.shape()[1]];
        check_shape(rows, hidden, kind, size)?;
        if records.is_empty() {
            (layout.precision, layout.hidden) = (kind, hidden);
        }
        if (kind, hidden) != (layout.precision, layout.hidden) {
            return Err(Hdf5Error::TypeMismatch(format!(
                "dataset {name:?} is of another type or width than the others"
            )));
        }
        records.push((row, name.clone()));
    }
    records.sort();
    let count = records.len() as u64;
    let (path, kind, hidden) = (layout.path.clone(), layout.precision, layout.hidden);
    let mut records = records.into_iter();
    let most = (BLOCK_BYTES / (4 * hidden).max(1)).max(1);
    // The dataset that was read in part, and up to where.
    let mut part: Option<(String, usize)> = None;
    let read = move |rows: &mut Rows, name: &str, from: usize| -> Result<usize, Hdf5Error> {
        let dataset = h5.dataset(name)?;
        let vectors = dataset.shape()[0];
        let count = (vectors - from).min(most - rows.values.len() / hidden.max(1));
        if from == 0 {
            let text = |key: &str| dataset.attr(key)?.read_string();
            rows.ids.push(text("id")?);
            rows.headers.push(text("header")?);
            rows.status.push(text("status")?);
            let number = dataset.attr("length")?.read_numeric::<i64>()?;
            rows.lengths.push(length(number)?);
            rows.vectors.push(vectors);
        } else {
            rows.before = count;
        }
        let values = rows_of(&dataset, kind, from, count, hidden)?;
        rows.values.extend(values);
        rows.after = vectors - from - count;
        Ok(from + count)
    };
    let blocks = std::iter::from_fn(move || {
        let mut rows = Rows::new(hidden);
        while rows.values.len() < most * hidden
            && let Some((name, from)) = part.take().or_else(|| Some((records.next()?.1, 0)))
        {
            match read(&mut rows, &name, from) {
                Ok(end) if rows.after > 0 => part = Some((name, end)),
                Ok(_) => {}
                Err(error) => {
                    records = Vec::new().into_iter();
                    let what = format!("dataset {name:?}: {error}");
                    return Some(Err(OutputError::malformed(&path, what)));
                }
            }
        }
        let is_nothing = rows.is_empty() && rows.before == 0;
        (!is_nothing).then_some(Ok(rows))
    });
    Ok(Reader {
        layout,
        rows: count,
        blocks: Box::new(blocks),
    })
}
