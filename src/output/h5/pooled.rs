//! A row for each record: datasets for the matrix and each column.

use rust_hdf5::format::messages::datatype::DatatypeMessage;
use rust_hdf5::{H5Dataset, H5File, Hdf5Error};

use super::super::columns;
use super::super::error::OutputError;
use super::super::file::{Unfinished, Written};
use super::super::layout::Layout;
use super::super::precision::OutputPrecision;
use super::super::reader::{BLOCK_BYTES, Reader};
use super::super::rows::{Block, OpenRow, Rows};
use super::super::sink::Sink;
use super::datasets::{bits, check_shape, length, precision, rows_of, signed, unequal, writing};

/// Bytes of a chunk of a pooled matrix.
const CHUNK_BYTES: usize = 128 << 10;
/// Rows in a chunk of a column, and of a matrix at most.
const CHUNK_ROWS: usize = 256;
/// The text columns of a pooled file.
const TEXTS: [&str; 3] = ["ids", "headers", "status"];

/// Writes one HDF5 file with a row for each record.
pub(super) struct PooledSink {
    layout: Layout,
    // Dropped before the file, so that nothing is written after the file was removed.
    h5: H5File,
    file: Unfinished,
    pooled: Pooled,
    /// Rows that are not yet in the file: rows go there by the chunk, not by the caller's blocks,
    /// so that the file doesn't depend on those.
    pending: Rows,
    open: OpenRow,
}

/// The datasets of a pooled file.
struct Pooled {
    /// One for each column.
    embeddings: Vec<H5Dataset>,
    lengths: H5Dataset,
}

impl PooledSink {
    pub(super) fn create(layout: Layout) -> Result<Self, OutputError> {
        let file = Unfinished::create(&layout.path)?;
        let begin = || {
            // Locking is switched off, because no other process knows the temporary name, and file
            // systems of clusters may not support locks.
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
        let columns = columns::apart(rows.values, &self.layout);
        for (dataset, values) in self.pooled.embeddings.iter().zip(columns) {
            match self.layout.precision {
                OutputPrecision::Fp32 => dataset.append(&values)?,
                OutputPrecision::Fp16 => dataset.append(&bits(&values))?,
            }
        }
        Ok(())
    }

    fn append(&mut self, block: Block) -> Result<(), Hdf5Error> {
        let (mut rows, _, values) = block.split();
        for (row, own) in values.into_iter().enumerate() {
            self.pending.push_head(&mut rows, row);
            self.pending.values.extend(own.to_singles());
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
        let hidden = layout.width();
        let rows = CHUNK_BYTES / (hidden * layout.precision.bytes()).max(1);
        let chunk = [rows.clamp(1, CHUNK_ROWS), hidden];
        let most = [None, Some(hidden)];
        let create = |name: &str| match layout.precision {
            OutputPrecision::Fp32 => h5
                .new_dataset::<f32>()
                .shape([0, hidden])
                .chunk(&chunk)
                .max_shape(&most)
                .create(name),
            OutputPrecision::Fp16 => h5
                .new_dataset::<u16>()
                .datatype(DatatypeMessage::f16_type())
                .shape([0, hidden])
                .chunk(&chunk)
                .max_shape(&most)
                .create(name),
        };
        let embeddings = layout.names().into_iter().map(create);
        Ok(Self {
            embeddings: embeddings.collect::<Result<_, _>>()?,
            lengths,
        })
    }
}

impl Sink for PooledSink {
    fn put(&mut self, block: Block) -> Result<(), OutputError> {
        block.check(&self.layout, &mut self.open)?;
        self.append(block)
            .map_err(|e| writing(&self.layout.path, e))
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

/// Reads such a file, `size` bytes long.
pub(super) fn open(h5: H5File, mut layout: Layout, size: u64) -> Result<Reader, Hdf5Error> {
    layout.columns = Layout::columns_of(&layout.provenance);
    let names = layout.names().into_iter();
    let embeddings: Vec<_> = names
        .map(|name| h5.dataset(name))
        .collect::<Result<_, _>>()?;
    layout.precision = precision(&embeddings[0])?;
    let &[rows, width] = embeddings[0].shape().as_slice() else {
        return Err(Hdf5Error::TypeMismatch("no matrix".into()));
    };
    for other in &embeddings[1..] {
        if precision(other)? != layout.precision || other.shape() != [rows, width] {
            return Err(unequal());
        }
    }
    let hidden = width.saturating_mul(embeddings.len());
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
    let counts = [ids.len(), headers.len(), status.len(), lengths.len()];
    if counts.iter().any(|&column| column != rows) {
        return Err(unequal());
    }
    let step = (BLOCK_BYTES / (4 * hidden).max(1)).clamp(1, 1 << 16);
    let (path, kind) = (layout.path.clone(), layout.precision);
    let mut at = 0;
    let mut texts = (
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
        let parts = embeddings.iter();
        let parts = parts.map(|dataset| rows_of(dataset, kind, at, count, width));
        let values = parts.collect::<Result<Vec<_>, _>>();
        let values = values.map(|parts| columns::side_by_side(parts, width));
        at = if values.is_ok() { at + count } else { rows };
        let block = values.map(|values| Rows {
            hidden,
            ids: texts.0.by_ref().take(count).collect(),
            headers: texts.1.by_ref().take(count).collect(),
            status: texts.2.by_ref().take(count).collect(),
            lengths: texts.3.by_ref().take(count).collect(),
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
