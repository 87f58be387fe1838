//! Parquet: one row a record, with the columns `ids`, `headers`, `lengths`, `status` and
//! `embeddings`.
//!
//! `embeddings` is a fixed-size list of H float32 (or float16) for pooled rows, which polars reads
//! as an array column (`to_numpy()` gives the N x H matrix) and pandas as a column of arrays
//! (`numpy.stack`). Per-token rows are a list of such fixed-size lists: one L x H array a record,
//! an empty list for a skipped record. Provenance stands in the file's key-value metadata, each key
//! after `seqembed.`, and so in pyarrow's schema metadata.
//!
//! The pages of per-token vectors are laid out in [`super::parquet_pages`]. A row of
//! [`GROUP_BYTES`] or more is a row group of its own, whose vectors go into the file as they come.

use std::collections::HashMap;
use std::fs::File;
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
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::page::{Page, PageReader as _};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, FileMetaData, KeyValue, RowGroupMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;

use super::blocks;
use super::columns;
use super::error::OutputError;
use super::file::Written;
use super::layout::Layout;
use super::parallel::{ParallelFile, Part};
use super::parquet_pages::{ColumnSize, LeftOut, LongPages, Pages, Shape, Stream};
use super::precision::OutputPrecision;
use super::reader::{BLOCK_BYTES, Reader};
use super::rows::{Block, OpenRow, Rows};
use super::sink::Sink;
use crate::vectors::Vectors;

/// Bytes of vectors per row group. A sink keeps one group in memory, so this bounds its memory;
/// groups of this size are still read at full speed.
const GROUP_BYTES: usize = 32 << 20;
/// Rows in a row group at most, for short vectors with long headers.
const GROUP_ROWS: usize = 1 << 16;
/// Index of the column with the vectors.
const EMBEDDINGS: usize = 4;
/// Prefix of provenance keys, to tell them from the keys of other tools.
const PREFIX: &str = "seqembed.";

/// Writes one parquet file.
pub(super) struct ParquetSink {
    layout: Layout,
    schema: SchemaRef,
    writer: SerializedFileWriter<Stream>,
    factory: ArrowRowGroupWriterFactory,
    /// The row group being built.
    group: Option<Vec<ArrowColumnWriter>>,
    open: OpenRow,
    /// Rows that are not yet a record batch. Batches and row groups end where the rows say, not
    /// where the caller's blocks do, so that the file doesn't depend on those. Those of per-token
    /// output have their vectors in `pages`.
    pending: Rows,
    /// Where rows are per token, the pages of the row group being built.
    pages: Pages,
    /// The per-token row whose vectors are not all there.
    row: PartialRow,
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
            // For vectors, a dictionary does not pay off, and statistics of single coordinates are
            // not useful.
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
        let file = Stream::new(ParallelFile::create(&layout.path)?);
        let (writer, factory) =
            ArrowWriter::try_new(file, schema.clone(), Some(properties.build()))
                .and_then(ArrowWriter::into_serialized_writer)
                .map_err(|e| writing(&layout.path, e))?;
        let shape = Shape {
            hidden: layout.hidden,
            precision: layout.precision,
        };
        Ok(ParquetSink {
            pending: Rows::new(layout.hidden),
            layout,
            schema,
            writer,
            factory,
            group: None,
            open: OpenRow::default(),
            pages: Pages::new(shape),
            row: PartialRow::Short(Vectors::default()),
            group_bytes: 0,
            group_rows: 0,
        })
    }

    fn write_pending(&mut self) -> Result<(), OutputError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let rows = std::mem::replace(&mut self.pending, Rows::new(self.layout.hidden));
        let batch = batch(&self.layout, &self.schema, rows)?;
        self.encode(&batch)
            .map_err(|e| writing(&self.layout.path, e))
    }

    /// Appends rows to the row group being built.
    fn encode(&mut self, batch: &RecordBatch) -> Result<(), ParquetError> {
        let columns = match &mut self.group {
            Some(columns) => columns,
            none => {
                let index = self.writer.flushed_row_groups().len();
                none.insert(self.factory.create_column_writers(index)?)
            }
        };
        let mut columns = columns.iter_mut();
        for (field, array) in self.schema.fields().iter().zip(batch.columns()) {
            for leaf in compute_leaves(field, array)? {
                columns
                    .next()
                    .expect("a column for each leaf")
                    .write(&leaf)?;
            }
        }
        Ok(())
    }

    /// Writes the row group being built.
    fn end_group(&mut self) -> Result<(), OutputError> {
        self.write_pending()?;
        (self.group_bytes, self.group_rows) = (0, 0);
        let Some(columns) = self.group.take() else {
            return Ok(());
        };
        let end = || {
            let mut group = self.writer.next_row_group()?;
            for column in columns {
                column.close()?.append_to_row_group(&mut group)?;
            }
            group.close().map(drop)
        };
        end().map_err(|e| writing(&self.layout.path, e))
    }

    /// Writes a row group of per-token rows, up to the pages of their vectors.
    fn begin_token_group(&mut self, mut head: Rows, size: ColumnSize) -> Result<(), ParquetError> {
        let rows = head.len();
        // Of rows without vectors: those of these stand elsewhere.
        head.vectors = vec![0; rows];
        let batch = batch(&self.layout, &self.schema, head)
            .map_err(|e| ParquetError::External(Box::new(io::Error::other(e))))?;
        self.encode(&batch)?;
        let columns = self.group.take().into_iter().flatten().take(EMBEDDINGS);
        let columns = columns
            .map(|column| {
                let mut column = column.close()?;
                // Where the pages of this group stand is told of all columns or of none.
                let about = column.close_mut();
                (about.offset_index, about.column_index) = (None, None);
                Ok(column)
            })
            .collect::<Result<Vec<_>, ParquetError>>()?;
        let texts = columns.iter().map(|column| {
            let bytes = column.close().metadata.compressed_size();
            u64::try_from(bytes).unwrap_or_default()
        });
        let start = self.writer.bytes_written() as u64 + texts.sum::<u64>();
        self.writer.inner_mut().leave_out(start, size.bytes);
        let about = Shape::about(
            self.writer.schema_descr().column(EMBEDDINGS),
            rows as u64,
            size,
        )?;
        let mut group = self.writer.next_row_group()?;
        for column in columns {
            column.append_to_row_group(&mut group)?;
        }
        group.append_column(&LeftOut(size.bytes), about)?;
        group.close()?;
        Ok(self.writer.flush()?)
    }

    fn shape(&self) -> Shape {
        Shape {
            hidden: self.layout.hidden,
            precision: self.layout.precision,
        }
    }

    /// Puts pages in the place that a row group has for them.
    fn append_pages(&mut self, parts: Vec<Part>) -> Result<(), ParquetError> {
        let file = &mut self.writer.inner_mut().file;
        Ok(parts.into_iter().try_for_each(|part| file.append(part))?)
    }

    /// Writes the row group of per-token rows being built.
    fn end_token_group(&mut self) -> Result<(), ParquetError> {
        (self.group_bytes, self.group_rows) = (0, 0);
        let head = std::mem::replace(&mut self.pending, Rows::new(self.layout.hidden));
        if head.is_empty() {
            return Ok(());
        }
        let (parts, size) = self.pages.end()?;
        self.begin_token_group(head, size)?;
        self.append_pages(parts)
    }

    fn put_tokens(&mut self, block: Block) -> Result<(), ParquetError> {
        let (mut rows, first, values) = block.split();
        if !first.is_empty() {
            let is_last = !rows.is_empty() || rows.after == 0;
            self.append_values(first, is_last)?;
        }
        for (row, own) in values.into_iter().enumerate() {
            let vectors = rows.vectors[row];
            if self.shape().bytes(vectors) >= GROUP_BYTES {
                self.end_token_group()?;
                let pages = LongPages::new(self.shape(), vectors);
                let mut head = Rows::new(rows.hidden);
                head.push_head(&mut rows, row);
                self.begin_token_group(head, pages.size()?)?;
                self.row = PartialRow::Long(pages);
            } else {
                self.pending.push_head(&mut rows, row);
                self.row = PartialRow::Short(Vectors::default());
            }
            let is_last = row + 1 < rows.len() || rows.after == 0;
            self.append_values(own, is_last)?;
        }
        Ok(())
    }

    /// Appends vectors of the row that was begun, and ends it with its last ones.
    fn append_values(&mut self, values: Vectors, is_last: bool) -> Result<(), ParquetError> {
        let own = match &mut self.row {
            PartialRow::Long(pages) => {
                let parts = pages.append(values)?;
                return self.append_pages(parts);
            }
            PartialRow::Short(own) => own,
        };
        own.append(values);
        if !is_last {
            return Ok(());
        }
        let own = std::mem::take(own);
        let last = self.pending.len() - 1;
        let vectors = self.pending.vectors[last];
        self.pages.push(vectors, own)?;
        self.group_bytes += self.shape().bytes(vectors) + self.pending.headers[last].len();
        self.group_rows += 1;
        if self.group_bytes >= GROUP_BYTES || self.group_rows >= GROUP_ROWS {
            return self.end_token_group();
        }
        Ok(())
    }

    fn put_pooled(&mut self, block: Block) -> Result<(), OutputError> {
        let (mut rows, _, values) = block.split();
        for (row, own) in values.into_iter().enumerate() {
            self.pending.push_head(&mut rows, row);
            self.pending.values.extend(own.to_singles());
            self.end_row()?;
        }
        Ok(())
    }
}

/// The per-token row whose vectors are not all there.
enum PartialRow {
    /// The last one that is pending: those that are.
    Short(Vectors),
    /// A row group of its own.
    Long(LongPages),
}

impl Sink for ParquetSink {
    fn put(&mut self, block: Block) -> Result<(), OutputError> {
        block.check(&self.layout, &mut self.open)?;
        if !self.layout.per_token {
            return self.put_pooled(block);
        }
        self.put_tokens(block)
            .map_err(|e| writing(&self.layout.path, e))
    }

    fn detach(&mut self) {
        match &mut self.row {
            PartialRow::Short(values) => values.detach(),
            PartialRow::Long(pages) => pages.detach(),
        }
        self.pages.detach();
        self.writer.inner_mut().file.detach();
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Written>, OutputError> {
        self.open.check(&self.layout)?;
        if self.layout.per_token {
            self.end_token_group()
                .map_err(|e| writing(&self.layout.path, e))?;
        } else {
            self.end_group()?;
        }
        let path = self.layout.path;
        let stream = self.writer.into_inner().map_err(|e| writing(&path, e))?;
        Ok(vec![stream.file.finish(&[])?])
    }
}

impl ParquetSink {
    /// Ends batch and row group where they are large enough, once a pooled row is there.
    fn end_row(&mut self) -> Result<(), OutputError> {
        let last = self.pending.len() - 1;
        self.group_bytes +=
            self.layout.hidden * self.layout.precision.bytes() + self.pending.headers[last].len();
        self.group_rows += 1;
        if self.group_bytes >= GROUP_BYTES || self.group_rows >= GROUP_ROWS {
            return self.end_group();
        }
        if self.pending.values.len() * size_of::<f32>() >= BLOCK_BYTES {
            return self.write_pending();
        }
        Ok(())
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
    let hidden = i32::try_from(layout.width())
        .ok()
        .filter(|&hidden| hidden > 0)
        .ok_or_else(|| OutputError::Inconsistent {
            path: layout.path.clone(),
            what: format!("vectors of {} values are not supported", layout.hidden),
        })?;
    let vector = vector_field(hidden, layout.precision);
    let embeddings = if layout.per_token {
        DataType::List(vector)
    } else {
        vector.data_type().clone()
    };
    let mut columns = vec![
        Field::new("ids", DataType::Utf8, false),
        Field::new("headers", DataType::Utf8, false),
        Field::new("lengths", DataType::Int64, false),
        Field::new("status", DataType::Utf8, false),
    ];
    let names = layout.names().into_iter();
    columns.extend(names.map(|name| Field::new(name, embeddings.clone(), false)));
    // Here too, beside the file's own metadata: where a file has an Arrow schema, pyarrow shows its
    // metadata only.
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
    let width = i32::try_from(layout.width()).map_err(|e| inconsistent(&e))?;
    let vector = vector_field(width, layout.precision);
    let DataType::FixedSizeList(element, _) = vector.data_type() else {
        unreachable!("made above")
    };
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(rows.ids)),
        Arc::new(StringArray::from(rows.headers)),
        Arc::new(Int64Array::from(lengths)),
        Arc::new(StringArray::from(rows.status)),
    ];
    for values in columns::apart(rows.values, layout) {
        let values: ArrayRef = match layout.precision {
            OutputPrecision::Fp32 => Arc::new(Float32Array::from(values)),
            OutputPrecision::Fp16 => {
                let halves = values.into_iter().map(f16::from_f32);
                Arc::new(Float16Array::from_iter_values(halves))
            }
        };
        let vectors = FixedSizeListArray::try_new(element.clone(), width, values, None)
            .map_err(|e| inconsistent(&e))?;
        columns.push(if layout.per_token {
            let offsets = OffsetBuffer::from_lengths(rows.vectors.iter().copied());
            let lists = ListArray::try_new(vector.clone(), offsets, Arc::new(vectors), None);
            Arc::new(lists.map_err(|e| inconsistent(&e))?)
        } else {
            Arc::new(vectors)
        });
    }
    RecordBatch::try_new(schema.clone(), columns).map_err(|e| inconsistent(&e))
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

/// What seqembed wrote of itself.
fn provenance(metadata: &FileMetaData) -> Vec<(String, String)> {
    let pairs = metadata.key_value_metadata().into_iter().flatten();
    let own = pairs.filter_map(|pair| {
        let key = pair.key.strip_prefix(PREFIX)?;
        Some((key.to_owned(), pair.value.clone().unwrap_or_default()))
    });
    own.collect()
}

/// The floats of vectors, and the vectors' width.
fn vector_type(vector: &DataType) -> Option<(OutputPrecision, usize)> {
    let DataType::FixedSizeList(element, width) = vector else {
        return None;
    };
    let precision = match element.data_type() {
        DataType::Float32 => OutputPrecision::Fp32,
        DataType::Float16 => OutputPrecision::Fp16,
        _ => return None,
    };
    Some((precision, usize::try_from(*width).unwrap_or_default()))
}

/// Opens a parquet file of embeddings.
pub(super) fn open(path: &Path) -> Result<Reader, OutputError> {
    let file = std::fs::File::open(path).map_err(|source| OutputError::Read {
        path: path.to_owned(),
        source,
    })?;
    let malformed = |what: &dyn std::fmt::Display| OutputError::malformed(path, what);
    let about = ArrowReaderMetadata::load(&file, ArrowReaderOptions::default())
        .map_err(|e| malformed(&e))?;
    let schema = about.schema().clone();
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
    let metadata = about.metadata().file_metadata();
    let provenance = provenance(metadata);
    let columns = Layout::columns_of(&provenance);
    let first = columns.first().map_or("embeddings", String::as_str);
    let embeddings = column(first)?;
    for name in &columns {
        let found = column(name)?;
        if found != embeddings {
            return Err(malformed(&format!(
                "column {name:?} is {found}, and column {first:?} {embeddings}"
            )));
        }
    }
    let (vector, per_token) = match &embeddings {
        DataType::List(inner) => (inner.data_type(), true),
        pooled => (pooled, false),
    };
    let Some((precision, hidden)) = vector_type(vector) else {
        return Err(malformed(&format!(
            "column {first:?} is {embeddings}, not a fixed-size list of float32 or float16"
        )));
    };
    let layout = Layout {
        path: path.to_owned(),
        hidden: hidden.saturating_mul(columns.len().max(1)),
        columns,
        per_token,
        precision,
        provenance,
    };
    let rows = u64::try_from(metadata.num_rows()).unwrap_or_default();
    let source = Groups {
        file: Arc::new(file),
        about,
        layout: layout.clone(),
    };
    let blocks = source.steps().into_iter().flat_map(move |step| {
        source
            .blocks(step)
            .unwrap_or_else(|e| Box::new(std::iter::once(Err(malformed_at(&source.layout, &e)))))
    });
    Ok(Reader {
        layout,
        rows,
        blocks: Box::new(blocks),
    })
}

fn malformed_at(layout: &Layout, what: &dyn std::fmt::Display) -> OutputError {
    OutputError::malformed(&layout.path, what)
}

/// Row groups that are read.
struct Groups {
    file: Arc<File>,
    about: ArrowReaderMetadata,
    layout: Layout,
}

/// Row groups read at a time.
enum Step {
    /// By batches of rows.
    Rows(Vec<usize>),
    /// One long row, by its pages.
    Pages(usize),
}

type RowBlocks = Box<dyn Iterator<Item = Result<Rows, OutputError>> + Send>;

impl Groups {
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (index, group) in self.about.metadata().row_groups().iter().enumerate() {
            if self.layout.per_token && self.is_long(group) {
                steps.push(Step::Pages(index));
            } else if let Some(Step::Rows(indices)) = steps.last_mut() {
                indices.push(index);
            } else {
                steps.push(Step::Rows(vec![index]));
            }
        }
        steps
    }

    /// Whether a row group is a single long row with plain-encoded pages, as seqembed writes it.
    fn is_long(&self, group: &RowGroupMetaData) -> bool {
        let Some(column) = embeddings(group) else {
            return false;
        };
        let is_plain = column
            .encodings()
            .all(|encoding| matches!(encoding, Encoding::PLAIN | Encoding::RLE))
            && column.compression() == Compression::UNCOMPRESSED
            && column.dictionary_page_offset().is_none();
        let values = u64::try_from(column.num_values()).unwrap_or_default();
        is_plain
            && group.num_rows() == 1
            && values.saturating_mul(self.layout.precision.bytes() as u64) >= GROUP_BYTES as u64
            && values.is_multiple_of(self.layout.hidden.max(1) as u64)
    }

    fn blocks(&self, step: Step) -> Result<RowBlocks, ParquetError> {
        let Layout {
            hidden, per_token, ..
        } = self.layout;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(
            self.file.try_clone()?,
            self.about.clone(),
        );
        let layout = self.layout.clone();
        match step {
            Step::Rows(groups) => {
                // A per-token row is taken to have some 256 residues: the block is a matter of
                // memory, not of truth.
                let row_bytes = hidden * size_of::<f32>() * if per_token { 256 } else { 1 };
                let batches = builder
                    .with_row_groups(groups)
                    .with_batch_size((BLOCK_BYTES / row_bytes.max(1)).clamp(1, 8192))
                    .build()?;
                Ok(Box::new(batches.map(move |batch| {
                    batch
                        .map_err(|e| malformed_at(&layout, &e))
                        .and_then(|batch| {
                            block(&batch, &layout).map_err(|e| malformed_at(&layout, &e))
                        })
                })))
            }
            Step::Pages(index) => {
                let texts = ["ids", "headers", "lengths", "status"];
                let mask = ProjectionMask::columns(builder.parquet_schema(), texts);
                let mut batches = builder
                    .with_row_groups(vec![index])
                    .with_projection(mask)
                    .build()?;
                let batch = batches
                    .next()
                    .ok_or_else(|| ParquetError::General("a row group without its row".into()))??;
                let group = self.about.metadata().row_group(index);
                let column = embeddings(group)
                    .ok_or_else(|| ParquetError::General("no embeddings".into()))?;
                let values = usize::try_from(column.num_values())
                    .map_err(|e| ParquetError::External(Box::new(e)))?;
                let pages = SerializedPageReader::new(Arc::clone(&self.file), column, 1, None)?;
                let mut long = LongRow {
                    head: Some(head(&batch, hidden)?),
                    left: values / hidden,
                    rest: Vec::new(),
                    pages,
                    precision: layout.precision,
                };
                Ok(Box::new(std::iter::from_fn(move || {
                    let next = long.next(hidden).transpose()?;
                    if next.is_err() {
                        // Nothing follows an error.
                        (long.left, long.head) = (0, None);
                    }
                    Some(next.map_err(|e| malformed_at(&layout, &e)))
                })))
            }
        }
    }
}

/// The column of the vectors.
fn embeddings(group: &RowGroupMetaData) -> Option<&ColumnChunkMetaData> {
    group.columns().iter().find(|column| {
        column
            .column_path()
            .parts()
            .first()
            .is_some_and(|name| name == "embeddings")
    })
}

/// A long row that is read page by page.
struct LongRow {
    /// The row without its vectors, until the first of them.
    head: Option<Rows>,
    /// Number of its vectors that are still to come.
    left: usize,
    /// Values of a vector that a page cuts.
    rest: Vec<f32>,
    pages: SerializedPageReader<File>,
    precision: OutputPrecision,
}

impl LongRow {
    fn next(&mut self, hidden: usize) -> Result<Option<Rows>, ParquetError> {
        let wrong = |what: &str| ParquetError::General(what.to_owned());
        while self.left > 0 {
            let page = self
                .pages
                .get_next_page()?
                .ok_or_else(|| wrong("a row ends before its last vector"))?;
            let mut values = std::mem::take(&mut self.rest);
            let bytes = page.buffer();
            values.extend(
                self.precision
                    .decode(bytes.get(levels_end(&page)..).unwrap_or_default()),
            );
            self.rest = values.split_off(values.len() / hidden * hidden);
            let count = values.len() / hidden;
            if count == 0 {
                continue;
            }
            let left = self
                .left
                .checked_sub(count)
                .ok_or_else(|| wrong("a row has more vectors than announced"))?;
            let rows = match self.head.take() {
                Some(mut rows) => {
                    rows.vectors = vec![self.left];
                    rows
                }
                None => Rows {
                    before: count,
                    ..Rows::new(hidden)
                },
            };
            self.left = left;
            return Ok(Some(Rows {
                values,
                after: left,
                ..rows
            }));
        }
        Ok(None)
    }
}

/// Offset of the values in a page, after both kinds of levels.
fn levels_end(page: &Page) -> usize {
    match page {
        Page::DataPage { buf, .. } => {
            let behind = |start: usize| {
                let count = buf
                    .get(start..start + 4)
                    .and_then(|bytes| bytes.first_chunk());
                count.map_or(buf.len(), |count| {
                    start.saturating_add(4 + u32::from_le_bytes(*count) as usize)
                })
            };
            behind(behind(0))
        }
        Page::DataPageV2 {
            def_levels_byte_len,
            rep_levels_byte_len,
            ..
        } => *def_levels_byte_len as usize + *rep_levels_byte_len as usize,
        Page::DictionaryPage { buf, .. } => buf.len(),
    }
}

/// The columns other than the vectors, whose types [`open`] has checked, as rows without vectors.
fn head(batch: &RecordBatch, hidden: usize) -> std::io::Result<Rows> {
    let column = |name: &str| batch.column_by_name(name).expect("open() looked for it");
    let text = |name: &str| -> Vec<String> {
        let strings = column(name).as_string::<i32>();
        strings
            .iter()
            .map(|s| s.unwrap_or_default().to_owned())
            .collect()
    };
    let lengths = column("lengths").as_primitive::<Int64Type>();
    Ok(Rows {
        hidden,
        ids: text("ids"),
        headers: text("headers"),
        lengths: lengths
            .values()
            .iter()
            .map(|&number| blocks::length(number))
            .collect::<Result<_, _>>()?,
        status: text("status"),
        ..Rows::default()
    })
}

/// A record batch, whose column types [`open`] has checked, as rows.
fn block(batch: &RecordBatch, layout: &Layout) -> std::io::Result<Rows> {
    let mut vectors = Vec::new();
    let mut all = Vec::new();
    for name in layout.names() {
        let embeddings = batch.column_by_name(name).expect("open() looked for it");
        let (counts, values) = column_values(embeddings, batch.num_rows(), layout.per_token);
        if !all.is_empty() && counts != vectors {
            let what = format!("column {name:?} has other numbers of vectors");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        vectors = counts;
        all.push(values);
    }
    Ok(Rows {
        vectors,
        values: columns::side_by_side(all, layout.width()),
        ..head(batch, layout.hidden)?
    })
}

/// How many vectors each row of a column has, and all of their values.
fn column_values(embeddings: &ArrayRef, rows: usize, per_token: bool) -> (Vec<usize>, Vec<f32>) {
    let (vectors, fixed) = if per_token {
        let list = embeddings.as_list::<i32>();
        let offsets = list.offsets();
        // The child may reach beyond the slice that this batch shows.
        let from = usize::try_from(offsets[0]).expect("offsets are not negative");
        let vectors: Vec<usize> = offsets.lengths().collect();
        let all = vectors.iter().sum();
        (vectors, list.values().slice(from, all))
    } else {
        (vec![1; rows], embeddings.clone())
    };
    let fixed = fixed.as_fixed_size_list();
    let values = if let Some(values) = fixed.values().as_primitive_opt::<Float32Type>() {
        values.values().to_vec()
    } else {
        let halves = fixed.values().as_primitive::<Float16Type>().values();
        halves.iter().map(|&half| half.into()).collect()
    };
    (vectors, values)
}
