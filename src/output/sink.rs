//! What every format's writer does.

use super::error::OutputError;
use super::file::Written;
use super::rows::{Block, Rows};

/// A file being written.
pub trait Sink: Send {
    /// Appends rows. Memory use is bounded, independent of the number of rows, and of the number of
    /// vectors of a row that is split.
    ///
    /// # Errors
    /// When the disk refuses, or when the rows don't fit the file's layout: the error names the
    /// path. An error of the disk may come later, when the file is completed at the latest.
    fn put(&mut self, block: Block) -> Result<(), OutputError>;

    /// Appends copies of rows, as [`Sink::put`] does.
    ///
    /// # Errors
    /// Those of [`Sink::put`].
    fn write(&mut self, rows: &Rows) -> Result<(), OutputError> {
        self.put(rows.clone().into())
    }

    /// Lets go of the batches that the values of the last rows came with.
    fn detach(&mut self) {}

    /// Completes the file and renames it to its final path, replacing an existing file. Dropping a
    /// sink without calling this leaves no file. Returns the files written: companion files first,
    /// then the main file.
    ///
    /// # Errors
    /// When the disk refuses: the error names the path.
    fn finish(self: Box<Self>) -> Result<Vec<Written>, OutputError>;
}
