//! A long record between its first part and its last: what is known of it, and where the vectors of its parts are kept until
//! they can all go to the file.
//!
//! They can't before, for only the last part tells that none failed, and a record that failed has no vectors. Where a journal
//! is, they are in its shards, and a run that is stopped goes on behind the last of them.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;

use super::chunk::RecordStatus;
use crate::atomic_file::folder_of;
use crate::journal::rows::{Place, Spot, read_values};
use crate::output::Layout;
use crate::pooling::Joined;

/// A long record of which some parts were taken.
#[derive(Default)]
pub struct LongRecord {
    /// What happened to the record so far.
    pub status: RecordStatus,
    /// Whether a device had trouble with it: then it is tried again by the next run.
    pub has_issue: bool,
    /// Tokens that were computed.
    pub tokens: u64,
    /// Whether something of it was saved by an earlier run.
    pub is_restored: bool,
    /// Whether something of it was not.
    pub has_segments: bool,
    /// Where each token has a vector: those of its parts.
    pub parts: Vec<Stored>,
    /// Where it is pooled: its vector so far, and that of the reverse complement.
    pub strands: [Joined; 2],
}

/// Where the vectors of a part are.
#[derive(Clone)]
pub enum Stored {
    /// In a shard of an earlier run.
    Saved(Spot),
    /// In a shard of this run, so many values.
    Shard(Place, usize),
    /// In the spool, from this byte on, so many values.
    Spool(u64, usize),
    /// In memory.
    Values(Vec<f32>),
}

/// An unnamed file of vectors in the folder of the output, where no journal is.
#[derive(Default)]
pub struct Spool {
    file: Option<File>,
    bytes: u64,
}

impl Spool {
    /// Appends values, in the folder of a file.
    ///
    /// # Errors
    /// When the disk refuses, with the file's path.
    pub fn put(&mut self, layout: &Layout, values: &[f32]) -> Result<Stored, (PathBuf, io::Error)> {
        let start = self.bytes;
        let mut put = || {
            let file = match &mut self.file {
                Some(file) => file,
                none => none.insert(tempfile::tempfile_in(folder_of(&layout.path))?),
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
        put().map_err(|error| (layout.path.clone(), error))?;
        Ok(Stored::Spool(start, values.len()))
    }

    /// Appends values that were put there to `values`.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn read(&self, start: u64, count: usize, values: &mut Vec<f32>) -> io::Result<()> {
        match &self.file {
            Some(file) => read_values(file, start, count, values),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Forgets all of it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
