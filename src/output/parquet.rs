//! Parquet: one row a record, with the columns `ids`, `headers`, `lengths`, `status` and `embeddings`.
//!
//! `embeddings` is a fixed-size list of H float32 (or float16) for pooled rows, which polars reads as an array column
//! (`to_numpy()` gives the N x H matrix) and pandas as a column of arrays (`numpy.stack`). Per-token rows are
//! a list of such fixed-size lists: one L x H array a record, an empty list for a skipped record. Provenance
//! stands in the file's key-value metadata, each key after `seqembed.`, and so in pyarrow's schema metadata.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, Int64Type};
use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, Float16Array, Float32Array, Int64Array, ListArray,
    RecordBatch, StringArray,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef};
use half::f16;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::{
    BLOCK_BYTES, Layout, OutputError, OutputPrecision, Reader, Rows, Sink, Unfinished, Written,
};

/// Bytes of vectors in a row group. A sink holds one in memory, so this bounds it; a group this large still
/// reads at full speed.
const GROUP_BYTES: usize = 32 << 20;
/// Rows in a row group at most, for short vectors with long headers.
const GROUP_ROWS: usize = 1 << 16;
/// What provenance keys begin with, beside the keys of other tools.
const PREFIX: &str = "seqembed.";

/// Writes one parquet file.
pub(super) struct ParquetSink {
    layout: Layout,
    schema: SchemaRef,
    writer: ArrowWriter<Unfinished>,
    /// Rows that are not yet a record batch. Batches and row groups end where the rows say, not where the
    /// caller's blocks do, so that the file doesn't depend on those.
    pending: Rows,
    group_bytes: usize,
    group_rows: usize,
}

impl ParquetSink {
    pub(super) fn create(layout: Layout) -> Result<Self, OutputError> {
        let schema = schema(&layout)?;
        let metadata = prefixed(&layout)
            .map(|(key, value)| KeyValue::new(key, value))
            .collect();
        let mut properties = WriterProperties::builder()
            .set_created_by(format!("seqembed {}", env!("CARGO_PKG_VERSION")))
            .set_key_value_metadata(Some(metadata))
            // For the vectors: no dictionary pays, and no statistic of a single coordinate is asked for.
            .set_dictionary_enabled(false)
            .set_encoding(Encoding::PLAIN)
            .set_compression(Compression::UNCOMPRESSED)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_max_row_group_row_count(None);
        for name in ["ids", "headers", "lengths", "status"] {
            let column = ColumnPath::from(name);
            properties = properties
                .set_column_compression(column.clone(), Compression::ZSTD(ZstdLevel::default()))
                .set_column_dictionary_enabled(column.clone(), name == "status")
                .set_column_statistics_enabled(column, EnabledStatistics::Chunk);
        }
        let file = Unfinished::create(&layout.path)?;
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties.build()))
            .map_err(|e| writing(&layout.path, e))?;
        Ok(ParquetSink {
            pending: Rows::new(layout.hidden),
            layout,
            schema,
            writer,
            group_bytes: 0,
            group_rows: 0,
        })
    }

    fn write_pending(&mut self) -> Result<(), OutputError> {
        let rows = std::mem::replace(&mut self.pending, Rows::new(self.layout.hidden));
        let batch = batch(&self.layout, &self.schema, rows)?;
        self.writer
            .write(&batch)
            .map_err(|e| writing(&self.layout.path, e))
    }
}

impl Sink for ParquetSink {
    fn write(&mut self, rows: &Rows) -> Result<(), OutputError> {
        rows.check(&self.layout)?;
        let mut at = 0;
        for row in 0..rows.len() {
            let values = rows.vectors[row] * rows.hidden;
            self.pending.push(rows, row, &rows.values[at..at + values]);
            at += values;
            self.group_bytes += values * self.layout.precision.bytes() + rows.headers[row].len();
            self.group_rows += 1;
            let group = self.group_bytes >= GROUP_BYTES || self.group_rows >= GROUP_ROWS;
            if group || self.pending.values.len() * size_of::<f32>() >= BLOCK_BYTES {
                self.write_pending()?;
            }
            if group {
                self.writer
                    .flush()
                    .map_err(|e| writing(&self.layout.path, e))?;
                (self.group_bytes, self.group_rows) = (0, 0);
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Written>, OutputError> {
        if !self.pending.is_empty() {
            self.write_pending()?;
        }
        let path = self.layout.path;
        let file = self.writer.into_inner().map_err(|e| writing(&path, e))?;
        Ok(vec![file.finish()?])
    }
}

fn prefixed(layout: &Layout) -> impl Iterator<Item = (String, String)> {
    layout
        .provenance
        .iter()
        .map(|(key, value)| (format!("{PREFIX}{key}"), value.clone()))
}

/// One pooled vector, or one residue's vector.
fn vector_field(hidden: i32, precision: OutputPrecision) -> FieldRef {
    let number = match precision {
        OutputPrecision::Fp32 => DataType::Float32,
        OutputPrecision::Fp16 => DataType::Float16,
    };
    let element = Field::new("element", number, false);
    let vector = DataType::FixedSizeList(Arc::new(element), hidden);
    Arc::new(Field::new("element", vector, false))
}

fn schema(layout: &Layout) -> Result<SchemaRef, OutputError> {
    let hidden = i32::try_from(layout.hidden)
        .ok()
        .filter(|&hidden| hidden > 0)
        .ok_or_else(|| OutputError::Inconsistent {
            path: layout.path.clone(),
            what: format!("a vector can't have {} values", layout.hidden),
        })?;
    let vector = vector_field(hidden, layout.precision);
    let embeddings = if layout.per_token {
        DataType::List(vector)
    } else {
        vector.data_type().clone()
    };
    let columns = vec![
        Field::new("ids", DataType::Utf8, false),
        Field::new("headers", DataType::Utf8, false),
        Field::new("lengths", DataType::Int64, false),
        Field::new("status", DataType::Utf8, false),
        Field::new("embeddings", embeddings, false),
    ];
    // Here too, beside the file's own metadata: where a file has an Arrow schema, pyarrow shows its metadata only.
    let metadata: HashMap<_, _> = prefixed(layout).collect();
    Ok(Arc::new(Schema::new_with_metadata(columns, metadata)))
}

fn batch(layout: &Layout, schema: &SchemaRef, rows: Rows) -> Result<RecordBatch, OutputError> {
    let inconsistent = |what: &dyn std::fmt::Display| OutputError::Inconsistent {
        path: layout.path.clone(),
        what: what.to_string(),
    };
    let lengths = rows
        .lengths
        .iter()
        .map(|&length| i64::try_from(length))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| inconsistent(&e))?;
    let hidden = i32::try_from(layout.hidden).map_err(|e| inconsistent(&e))?;
    let vector = vector_field(hidden, layout.precision);
    let DataType::FixedSizeList(element, _) = vector.data_type() else {
        unreachable!("made above")
    };
    let values: ArrayRef = match layout.precision {
        OutputPrecision::Fp32 => Arc::new(Float32Array::from(rows.values)),
        OutputPrecision::Fp16 => {
            let halves = rows.values.into_iter().map(f16::from_f32);
            Arc::new(Float16Array::from_iter_values(halves))
        }
    };
    let vectors = FixedSizeListArray::try_new(element.clone(), hidden, values, None)
        .map_err(|e| inconsistent(&e))?;
    let embeddings: ArrayRef = if layout.per_token {
        let offsets = OffsetBuffer::from_lengths(rows.vectors);
        Arc::new(
            ListArray::try_new(vector, offsets, Arc::new(vectors), None)
                .map_err(|e| inconsistent(&e))?,
        )
    } else {
        Arc::new(vectors)
    };
    RecordBatch::try_new(
        schema.clone(),
        vec![
            Arc::new(StringArray::from(rows.ids)),
            Arc::new(StringArray::from(rows.headers)),
            Arc::new(Int64Array::from(lengths)),
            Arc::new(StringArray::from(rows.status)),
            embeddings,
        ],
    )
    .map_err(|e| inconsistent(&e))
}

fn writing(path: &Path, error: ParquetError) -> OutputError {
    let source = match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(system) => *system,
            Err(other) => io::Error::other(other),
        },
        other => io::Error::other(other),
    };
    OutputError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Opens a parquet file of embeddings.
pub(super) fn open(path: &Path) -> Result<Reader, OutputError> {
    let file = std::fs::File::open(path).map_err(|source| OutputError::Read {
        path: path.to_owned(),
        source,
    })?;
    let malformed = |what: &dyn std::fmt::Display| OutputError::malformed(path, what);
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| malformed(&e))?;
    let schema = builder.schema().clone();
    let column = |name: &str| {
        schema
            .field_with_name(name)
            .map(|field| field.data_type().clone())
            .map_err(|_| malformed(&format!("it has no column {name:?}")))
    };
    for (name, kind) in [
        ("ids", DataType::Utf8),
        ("headers", DataType::Utf8),
        ("lengths", DataType::Int64),
        ("status", DataType::Utf8),
    ] {
        let found = column(name)?;
        if found != kind {
            return Err(malformed(&format!(
                "column {name:?} is {found}, not {kind}"
            )));
        }
    }
    let embeddings = column("embeddings")?;
    let (vector, per_token) = match &embeddings {
        DataType::List(inner) => (inner.data_type(), true),
        pooled => (pooled, false),
    };
    let (mut precision, mut hidden) = (None, 0);
    if let DataType::FixedSizeList(element, width) = vector {
        precision = match element.data_type() {
            DataType::Float32 => Some(OutputPrecision::Fp32),
            DataType::Float16 => Some(OutputPrecision::Fp16),
            _ => None,
        };
        hidden = usize::try_from(*width).unwrap_or_default();
    }
    let Some(precision) = precision else {
        return Err(malformed(&format!(
            "column \"embeddings\" is {embeddings}, not fixed-size lists of float32 or float16"
        )));
    };
    let metadata = builder.metadata().file_metadata();
    let provenance = metadata
        .key_value_metadata()
        .into_iter()
        .flatten()
        .filter_map(|pair| {
            let key = pair.key.strip_prefix(PREFIX)?;
            Some((key.to_owned(), pair.value.clone().unwrap_or_default()))
        })
        .collect();
    let layout = Layout {
        path: path.to_owned(),
        hidden,
        per_token,
        precision,
        provenance,
    };
    let rows = u64::try_from(metadata.num_rows()).unwrap_or_default();
    // A per-token row is taken to have some 256 residues: the block is a matter of memory, not of truth.
    let row_bytes = hidden * size_of::<f32>() * if per_token { 256 } else { 1 };
    let batches = builder
        .with_batch_size((BLOCK_BYTES / row_bytes.max(1)).clamp(1, 8192))
        .build()
        .map_err(|e| malformed(&e))?;
    let path = path.to_owned();
    let blocks = batches.map(move |batch| {
        batch
            .map_err(|e| OutputError::malformed(&path, e))
            .map(|batch| block(&batch, hidden, per_token))
    });
    Ok(Reader {
        layout,
        rows,
        blocks: Box::new(blocks),
    })
}

/// A record batch, whose column types [`open`] has checked, as rows.
fn block(batch: &RecordBatch, hidden: usize, per_token: bool) -> Rows {
    let column = |name: &str| batch.column_by_name(name).expect("open() looked for it");
    let text = |name: &str| -> Vec<String> {
        let strings = column(name).as_string::<i32>();
        strings
            .iter()
            .map(|s| s.unwrap_or_default().to_owned())
            .collect()
    };
    let lengths = column("lengths").as_primitive::<Int64Type>();
    let embeddings = column("embeddings");
    let (vectors, fixed) = if per_token {
        let list = embeddings.as_list::<i32>();
        let offsets = list.offsets();
        // The child may reach beyond the slice that this batch shows.
        let from = usize::try_from(offsets[0]).expect("offsets are not negative");
        let vectors: Vec<usize> = offsets.lengths().collect();
        let all = vectors.iter().sum();
        (vectors, list.values().slice(from, all))
    } else {
        (vec![1; batch.num_rows()], embeddings.clone())
    };
    let fixed = fixed.as_fixed_size_list();
    let values = if let Some(values) = fixed.values().as_primitive_opt::<Float32Type>() {
        values.values().to_vec()
    } else {
        let halves = fixed.values().as_primitive::<Float16Type>().values();
        halves.iter().map(|&half| half.into()).collect()
    };
    Rows {
        hidden,
        ids: text("ids"),
        headers: text("headers"),
        lengths: lengths
            .values()
            .iter()
            .map(|&n| u64::try_from(n).unwrap_or_default())
            .collect(),
        status: text("status"),
        vectors,
        values,
    }
}
