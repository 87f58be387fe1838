//! Reads tables of scores back, for the page of a run.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float32Type, UInt64Type};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::vocabulary::AMINO_ACIDS;

/// What a table says of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreRow {
    /// The first word of its header.
    pub id: String,
    /// Residues or bases.
    pub length: u64,
    /// What was done to it.
    pub status: String,
}

/// A record's scores of all single substitutions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scan {
    /// The first word of the record's header.
    pub id: String,
    /// Each position, and the letter there.
    pub positions: Vec<(u64, String)>,
    /// The scores of the amino acids at each position.
    pub scores: Vec<[f32; 20]>,
}

/// Whether a table of records is one of scores, and not of embeddings.
#[must_use]
pub fn is_table(path: &Path) -> bool {
    match Rows::open(path, &["log_likelihood"]) {
        Ok(_) => true,
        Err(_) => Rows::open(path, &["variant", "score"]).is_ok(),
    }
}

/// The records of a table; none of a table of variants.
///
/// # Errors
/// Why it cannot be read.
pub fn records(path: &Path, each: &mut dyn FnMut(ScoreRow)) -> Result<(), String> {
    if Rows::open(path, &["variant", "score"]).is_ok() {
        return Ok(());
    }
    let mut rows = Rows::open(path, &["id", "length", "status"])?;
    rows.each(&mut |cells| {
        let [Cell::Text(id), Cell::Count(length), Cell::Text(status)] = cells else {
            return Err("its columns are of other types".to_owned());
        };
        each(ScoreRow {
            id: id.clone(),
            length: *length,
            status: status.clone(),
        });
        Ok(true)
    })
}

/// The table of a scan beside a table of records.
#[must_use]
pub fn scan_beside(records: &Path) -> Option<PathBuf> {
    let (stem, kind) = (records.file_stem()?, records.extension()?);
    let mut name = stem.to_owned();
    name.push(".scan.");
    name.push(kind);
    let path = records.with_file_name(name);
    path.is_file().then_some(path)
}

/// The first records of a scan: so many of them, of so many positions in all.
///
/// # Errors
/// Why it cannot be read.
pub fn scans(path: &Path, most: usize, positions: usize) -> Result<Vec<Scan>, String> {
    let letters = AMINO_ACIDS.map(|letter| letter.to_string());
    let mut columns = vec!["id", "position", "wild_type"];
    columns.extend(letters.iter().map(String::as_str));
    let mut rows = Rows::open(path, &columns)?;
    let mut scans: Vec<Scan> = Vec::new();
    let mut left = positions;
    rows.each(&mut |cells| {
        let [
            Cell::Text(id),
            Cell::Count(position),
            Cell::Text(letter),
            scores @ ..,
        ] = cells
        else {
            return Err("its columns are of other types".to_owned());
        };
        let begins = scans.last().is_none_or(|scan| {
            let last = scan.positions.last();
            scan.id != *id || last.is_some_and(|(last, _)| last >= position)
        });
        if begins && scans.len() == most || left == 0 {
            return Ok(false);
        }
        if begins {
            scans.push(Scan {
                id: id.clone(),
                ..Scan::default()
            });
        }
        left -= 1;
        if let Some(scan) = scans.last_mut() {
            scan.positions.push((*position, letter.clone()));
            let mut row = [f32::NAN; 20];
            for (value, cell) in row.iter_mut().zip(scores) {
                if let Cell::Float(score) = cell {
                    *value = *score;
                }
            }
            scan.scores.push(row);
        }
        Ok(true)
    })?;
    Ok(scans)
}

/// A value of a row.
enum Cell {
    Text(String),
    Count(u64),
    Float(f32),
}

/// The rows of a table, with some of its columns.
enum Rows {
    Parquet(Box<ParquetRecordBatchReader>, Vec<usize>),
    Text(Box<csv::Reader<File>>, Vec<usize>, Vec<String>),
}

impl Rows {
    /// Opens a table by the ending of its name.
    fn open(path: &Path, columns: &[&str]) -> Result<Self, String> {
        let shown = path.display();
        let of = |error: &dyn std::fmt::Display| format!("cannot read {shown}: {error}");
        let lacks =
            |column: &str| format!("{shown} is no table of scores: it has no column {column}");
        let file = File::open(path).map_err(|error| of(&error))?;
        let delimiter = match path.extension().and_then(|kind| kind.to_str()) {
            Some("tsv") => b'\t',
            Some("csv") => b',',
            _ => {
                let builder =
                    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| of(&error))?;
                let schema = builder.schema();
                let at = columns.iter().map(|column| {
                    let at = schema.index_of(column);
                    at.map_err(|_| lacks(column))
                });
                let at = at.collect::<Result<_, _>>()?;
                let reader = builder.build().map_err(|error| of(&error))?;
                return Ok(Self::Parquet(Box::new(reader), at));
            }
        };
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .from_reader(file);
        let header = reader.headers().map_err(|error| of(&error))?;
        let at = columns.iter().map(|column| {
            let at = header.iter().position(|name| name == *column);
            at.ok_or_else(|| lacks(column))
        });
        let at = at.collect::<Result<_, _>>()?;
        let names = columns.iter().map(|&name| name.to_owned()).collect();
        Ok(Self::Text(Box::new(reader), at, names))
    }

    /// Hands rows on, until there are no more, or `take` says that it has enough.
    fn each(
        &mut self,
        take: &mut dyn FnMut(&[Cell]) -> Result<bool, String>,
    ) -> Result<(), String> {
        match self {
            Self::Parquet(reader, columns) => {
                for batch in reader {
                    let batch = batch.map_err(|error| error.to_string())?;
                    for row in 0..batch.num_rows() {
                        let cells = columns.iter().map(|&column| cell(&batch, column, row));
                        let cells: Vec<Cell> = cells.collect::<Option<_>>().unwrap_or_default();
                        if !take(&cells)? {
                            return Ok(());
                        }
                    }
                }
                Ok(())
            }
            Self::Text(reader, columns, names) => {
                for record in reader.records() {
                    let record = record.map_err(|error| error.to_string())?;
                    let cells = columns.iter().zip(&*names).map(|(&column, name)| {
                        let text = record.get(column).unwrap_or_default();
                        match name.as_str() {
                            "id" | "status" | "wild_type" => Some(Cell::Text(text.to_owned())),
                            "length" | "position" => text.parse().ok().map(Cell::Count),
                            _ => Some(Cell::Float(text.parse().unwrap_or(f32::NAN))),
                        }
                    });
                    let cells: Vec<Cell> = cells.collect::<Option<_>>().unwrap_or_default();
                    if !take(&cells)? {
                        return Ok(());
                    }
                }
                Ok(())
            }
        }
    }
}

/// A value of a batch, of one of the types that tables of scores have.
fn cell(batch: &RecordBatch, column: usize, row: usize) -> Option<Cell> {
    let array = batch.column(column);
    if let Some(texts) = array.as_string_opt::<i32>() {
        return Some(Cell::Text(texts.value(row).to_owned()));
    }
    if let Some(counts) = array.as_primitive_opt::<UInt64Type>() {
        return Some(Cell::Count(counts.value(row)));
    }
    let numbers = array.as_primitive_opt::<Float32Type>()?;
    Some(Cell::Float(numbers.value(row)))
}
