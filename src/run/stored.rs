//! Vectors that are not in memory: saved by an earlier run, in this run's journal, or in an unnamed
//! file.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::atomic_file::folder_of;
use crate::journal::JournalError;
use crate::journal::rows::{RowLocation, RowReader, Saved, Spot, read_values};
use crate::output::OutputPrecision;

/// Where vectors are.
#[derive(Clone)]
pub enum Stored {
    /// In a shard of an earlier run.
    Saved(Spot),
    /// In a shard of this run, with this number of values.
    Shard(RowLocation, usize),
    /// In the spool file, with a byte offset and a number of values.
    Spool(u64, usize),
    /// In memory.
    Values(Vec<f32>),
}

/// Reads vectors from wherever they are.
pub struct StoredRows {
    /// For each task, the rows of an earlier run.
    restored: Arc<Vec<Saved>>,
    reader: RowReader,
    /// Where parts of long records are without a journal.
    pub spool: Spool,
    hidden: usize,
}

impl StoredRows {
    /// For rows of `hidden` values. `restored`: for each task, the rows of an earlier run.
    pub fn new(restored: Arc<Vec<Saved>>, hidden: usize) -> Self {
        Self {
            restored,
            reader: RowReader::default(),
            spool: Spool::default(),
            hidden,
        }
    }

    /// Appends stored vectors of a task, whose output file is `path`, to `values`.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn read(
        &mut self,
        task: usize,
        path: &Path,
        stored: &Stored,
        values: &mut Vec<f32>,
    ) -> Result<(), JournalError> {
        let read = match stored {
            Stored::Saved(spot) => {
                let saved = &self.restored[task];
                let read = self.reader.read(saved, *spot, self.hidden, values);
                read.map(drop)
            }
            Stored::Shard(place, count) => place.read(*count, values),
            Stored::Spool(start, count) => {
                let read = self.spool.read(*start, *count, values);
                read.map_err(|error| (path.to_owned(), error))
            }
            Stored::Values(own) => {
                values.extend_from_slice(own);
                Ok(())
            }
        };
        read.map_err(|(path, source)| JournalError::Io {
            path,
            doing: "read",
            source,
        })
    }
}

/// An unnamed file of vectors in the folder of the output, where no journal is.
#[derive(Default)]
pub struct Spool {
    file: Option<File>,
    bytes: u64,
}

impl Spool {
    /// Appends values, in the folder of the output file `path`.
    ///
    /// # Errors
    /// When the disk refuses, with the file's path.
    pub fn put(&mut self, path: &Path, values: &[f32]) -> Result<Stored, (PathBuf, io::Error)> {
        let start = self.bytes;
        let mut put = || {
            let file = match &mut self.file {
                Some(file) => file,
                none => none.insert(tempfile::tempfile_in(folder_of(path))?),
            };
            let mut bytes = Vec::with_capacity(1 << 16);
            for part in values.chunks(1 << 14) {
                bytes.clear();
                bytes.extend(part.iter().flat_map(|value| value.to_le_bytes()));
                file.write_all(&bytes)?;
                self.bytes += bytes.len() as u64;
            }
            Ok(())
        };
        put().map_err(|error| (path.to_owned(), error))?;
        Ok(Stored::Spool(start, values.len()))
    }

    /// Appends values that were put there to `values`.
    ///
    /// # Errors
    /// If they cannot be read.
    fn read(&self, start: u64, count: usize, values: &mut Vec<f32>) -> io::Result<()> {
        match &self.file {
            Some(file) => read_values(file, start, count, OutputPrecision::Fp32, values),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Discards all stored vectors.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
