//! What every format's writer does.

use super::error::OutputError;
use super::file::Written;
use super::rows::Rows;

/// A file being written.
pub trait Sink: Send {
    /// Appends rows. Memory stays bounded however many follow, and however many vectors a row has
    /// that comes in parts.
    ///
    /// # Errors
    /// When the disk refuses, or when the rows don't fit the file's layout: the error names the
    /// path.
    fn write(&mut self, rows: &Rows) -> Result<(), OutputError>;

    /// Completes the file and gives it its final name, replacing a file that was there. Dropping a
    /// sink without this leaves no file behind. Returns what was written: the file, after those
    /// that stand beside it.
    ///
    /// # Errors
    /// When the disk refuses: the error names the path.
    fn finish(self: Box<Self>) -> Result<Vec<Written>, OutputError>;
}
