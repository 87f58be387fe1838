//! The small columns of a file while it is written: ids, headers, lengths and status, spooled until
//! their number is known.
//!
//! How many rows there are is only known at the end, but most formats begin an array with its
//! shape. So these columns are spooled (in memory while small, then in an unnamed temporary file in
//! the output folder) and gone through once for each array at the end, in bounded memory.

use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use tempfile::SpooledTempFile;

use super::rows::Rows;
use crate::atomic_file::folder_of;

/// What is spooled in memory before a temporary file is used: small outputs never touch the disk
/// twice.
const SPOOL_BYTES: usize = 1 << 20;
/// The text columns, in the order they are spooled in.
pub(super) const TEXTS: [&str; 3] = ["ids", "headers", "status"];

/// Spools data of unknown length to a temporary file in the folder of the output.
pub(super) fn spool(path: &Path) -> BufWriter<SpooledTempFile> {
    BufWriter::new(SpooledTempFile::new_in(SPOOL_BYTES, folder_of(path)))
}

/// A reader of the spooled data, from the start.
pub(super) fn rewound(spool: BufWriter<SpooledTempFile>) -> io::Result<SpooledTempFile> {
    let mut spool = spool.into_inner().map_err(io::IntoInnerError::into_error)?;
    spool.seek(SeekFrom::Start(0))?;
    Ok(spool)
}

/// The columns of all rows so far.
pub(super) struct Table {
    /// For each row: residues and vectors as u64, then for each text its bytes' count as u64 and
    /// its UTF-8.
    columns: BufWriter<SpooledTempFile>,
    /// Characters of the longest text of each column.
    pub widths: [usize; 3],
    /// Bytes of each column's texts.
    pub bytes: [u64; 3],
    /// Number of rows so far.
    pub rows: u64,
    /// Number of vectors that all rows have together.
    pub vectors: u64,
}

impl Table {
    /// An empty table, spooled in the folder of the output `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            columns: spool(path),
            widths: [0; 3],
            bytes: [0; 3],
            rows: 0,
            vectors: 0,
        }
    }

    /// Appends rows, their values left out.
    pub fn push(&mut self, rows: &Rows) -> io::Result<()> {
        for row in 0..rows.len() {
            let columns = &mut self.columns;
            columns.write_all(&rows.lengths[row].to_le_bytes())?;
            columns.write_all(&(rows.vectors[row] as u64).to_le_bytes())?;
            let texts = [&rows.ids[row], &rows.headers[row], &rows.status[row]];
            for (column, text) in texts.into_iter().enumerate() {
                self.widths[column] = self.widths[column].max(text.chars().count());
                self.bytes[column] += text.len() as u64;
                columns.write_all(&(text.len() as u64).to_le_bytes())?;
                columns.write_all(text.as_bytes())?;
            }
            self.vectors += rows.vectors[row] as u64;
        }
        self.rows += rows.len() as u64;
        Ok(())
    }

    /// All rows, which can be iterated several times.
    pub fn into_columns(self) -> io::Result<Columns> {
        Ok(Columns {
            spool: BufReader::new(rewound(self.columns)?),
            rows: self.rows,
        })
    }
}

/// The columns of a table that is complete.
pub(super) struct Columns {
    spool: BufReader<SpooledTempFile>,
    rows: u64,
}

/// A row of the table.
pub(super) struct Row {
    /// Residues or bases of the record.
    pub length: u64,
    /// Number of vectors: 1 when pooled, else one per residue.
    pub vectors: u64,
    /// The texts, in the order of [`TEXTS`].
    pub texts: [String; 3],
}

impl Columns {
    /// Calls `f` with every row.
    pub fn each(&mut self, mut f: impl FnMut(&Row) -> io::Result<()>) -> io::Result<()> {
        self.spool.seek(SeekFrom::Start(0))?;
        let mut row = Row {
            length: 0,
            vectors: 0,
            texts: Default::default(),
        };
        for _ in 0..self.rows {
            row.length = read_u64(&mut self.spool)?;
            row.vectors = read_u64(&mut self.spool)?;
            for text in &mut row.texts {
                let bytes = read_u64(&mut self.spool)?;
                text.clear();
                (&mut self.spool).take(bytes).read_to_string(text)?;
            }
            f(&row)?;
        }
        Ok(())
    }

    /// Calls `f` with the end of every row in the matrix of all vectors.
    pub fn ends(&mut self, mut f: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        let mut end = 0;
        self.each(|row| {
            end += row.vectors;
            f(end)
        })
    }
}

/// A little-endian number of 64 bits.
pub(super) fn read_u64(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
