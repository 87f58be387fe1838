//! Tables of scores: columns of texts, counts and numbers, in parquet, TSV or CSV.

use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, Float32Array, Float64Array, RecordBatch, StringArray, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use clap::ValueEnum;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::error::ScoreError;
use crate::output::{Complete, Unfinished};

/// The format of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum TableFormat {
    /// Parquet, for polars, pandas and R
    #[default]
    Parquet,
    /// Text, columns separated by tabs
    Tsv,
    /// Text, columns separated by commas
    Csv,
}

impl TableFormat {
    /// The extension of its files.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Tsv => "tsv",
            Self::Csv => "csv",
        }
    }
}

/// The values of a column in some rows. What is not known is NaN: empty in text.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// Texts.
    Texts(Vec<String>),
    /// Whole numbers.
    Counts(Vec<u64>),
    /// Numbers.
    Floats(Vec<f32>),
    /// Sums.
    Doubles(Vec<f64>),
}

impl Column {
    fn data_type(&self) -> DataType {
        match self {
            Self::Texts(_) => DataType::Utf8,
            Self::Counts(_) => DataType::UInt64,
            Self::Floats(_) => DataType::Float32,
            Self::Doubles(_) => DataType::Float64,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Counts(counts) => counts.len(),
            Self::Floats(numbers) => numbers.len(),
            Self::Doubles(numbers) => numbers.len(),
        }
    }

    fn array(self) -> ArrayRef {
        match self {
            Self::Texts(texts) => Arc::new(StringArray::from(texts)),
            Self::Counts(counts) => Arc::new(UInt64Array::from(counts)),
            Self::Floats(numbers) => Arc::new(Float32Array::from(numbers)),
            Self::Doubles(numbers) => Arc::new(Float64Array::from(numbers)),
        }
    }

    /// The text of a value: the shortest that gives the same number again.
    fn text(&self, row: usize) -> String {
        match self {
            Self::Texts(texts) => texts[row].clone(),
            Self::Counts(counts) => counts[row].to_string(),
            Self::Floats(numbers) if numbers[row].is_nan() => String::new(),
            Self::Floats(numbers) => numbers[row].to_string(),
            Self::Doubles(numbers) if numbers[row].is_nan() => String::new(),
            Self::Doubles(numbers) => numbers[row].to_string(),
        }
    }
}

/// A table that is written row by row. It has its name when it is finished.
pub struct Table {
    path: PathBuf,
    to: Target,
}

enum Target {
    Parquet(SchemaRef, Box<ArrowWriter<Unfinished>>),
    Text(Box<csv::Writer<BufWriter<Unfinished>>>),
}

impl Table {
    /// Begins a table with these columns, of which only names and types are used. `about`: what a
    /// parquet file says of itself.
    pub fn create(
        path: &Path,
        format: TableFormat,
        columns: &[(String, Column)],
        about: &[(String, String)],
    ) -> Result<Self, ScoreError> {
        let failed = |why: String| ScoreError::Table {
            path: path.to_owned(),
            why,
        };
        let file = Unfinished::create(path)?;
        let to = match format {
            TableFormat::Parquet => {
                let fields = columns
                    .iter()
                    .map(|(name, column)| Field::new(name, column.data_type(), false));
                let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
                let about = about.iter().map(|(key, value)| {
                    KeyValue::new(format!("seqembed.{key}"), Some(value.clone()))
                });
                let properties = WriterProperties::builder()
                    .set_created_by(format!("seqembed {}", env!("CARGO_PKG_VERSION")))
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .set_key_value_metadata(Some(about.collect()))
                    .build();
                let writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties))
                    .map_err(|error| failed(error.to_string()))?;
                Target::Parquet(schema, Box::new(writer))
            }
            TableFormat::Tsv | TableFormat::Csv => {
                let delimiter = if format == TableFormat::Tsv {
                    b'\t'
                } else {
                    b','
                };
                let mut writer = csv::WriterBuilder::new()
                    .delimiter(delimiter)
                    .from_writer(BufWriter::new(file));
                let names = columns.iter().map(|(name, _)| name);
                writer
                    .write_record(names)
                    .map_err(|error| failed(error.to_string()))?;
                Target::Text(Box::new(writer))
            }
        };
        Ok(Self {
            path: path.to_owned(),
            to,
        })
    }

    /// Appends rows: all of their columns, in order.
    pub fn put(&mut self, columns: Vec<Column>) -> Result<(), ScoreError> {
        let rows = columns.first().map_or(0, Column::len);
        if rows == 0 {
            return Ok(());
        }
        let done = match &mut self.to {
            Target::Parquet(schema, writer) => {
                let arrays = columns.into_iter().map(Column::array).collect();
                RecordBatch::try_new(Arc::clone(schema), arrays)
                    .map_err(|error| error.to_string())
                    .and_then(|batch| writer.write(&batch).map_err(|error| error.to_string()))
            }
            Target::Text(writer) => (0..rows)
                .try_for_each(|row| {
                    writer.write_record(columns.iter().map(|column| column.text(row)))
                })
                .map_err(|error| error.to_string()),
        };
        done.map_err(|why| self.failed(why))
    }

    /// Completes the table, which lacks its name then.
    pub fn complete(self) -> Result<Complete, ScoreError> {
        let Self { path, to } = self;
        let file = match to {
            Target::Parquet(_, writer) => writer.into_inner().map_err(|error| error.to_string()),
            Target::Text(writer) => writer
                .into_inner()
                .map_err(|error| error.to_string())
                .and_then(|buffer| buffer.into_inner().map_err(|error| error.to_string())),
        };
        let file = file.map_err(|why| ScoreError::Table { path, why })?;
        Ok(file.complete()?)
    }

    fn failed(&self, why: String) -> ScoreError {
        ScoreError::Table {
            path: self.path.clone(),
            why,
        }
    }
}
