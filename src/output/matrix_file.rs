//! A file whose matrix goes to the disk as rows come, and whose other columns are kept for the end:
//! what npy, npz and safetensors share.

use std::io;

use super::columns::LaterColumns;
use super::error::{OutputError, writing};
use super::layout::Layout;
use super::parallel::ParallelFile;
use super::rows::{Block, OpenRow};
use super::table::Table;

/// Such a file, while rows come.
pub(super) struct MatrixFile {
    pub layout: Layout,
    /// The file, with the matrix of the first column so far.
    pub file: ParallelFile,
    /// The matrices of the columns after it.
    pub later: LaterColumns,
    /// Ids, headers, lengths and statuses.
    pub table: Table,
    open: OpenRow,
}

impl MatrixFile {
    /// Creates the file. `begin` writes what stands before the matrix.
    pub fn create(
        layout: Layout,
        begin: impl FnOnce(&Layout, &mut ParallelFile) -> io::Result<()>,
    ) -> Result<Self, OutputError> {
        let mut file = ParallelFile::create(&layout.path)?;
        begin(&layout, &mut file).map_err(|e| writing(&layout.path, e))?;
        Ok(Self {
            file,
            later: LaterColumns::new(&layout),
            table: Table::new(&layout.path),
            open: OpenRow::default(),
            layout,
        })
    }

    /// Appends rows.
    pub fn put(&mut self, block: Block) -> Result<(), OutputError> {
        block.check(&self.layout, &mut self.open)?;
        let precision = self.layout.precision;
        self.table
            .push(&block.rows)
            .and_then(|()| self.later.put(block.values, &self.layout))
            .and_then(|first| self.file.append_values(first, precision))
            .map_err(|e| writing(&self.layout.path, e))
    }

    /// Checks that no vectors of the last row are to come.
    pub fn check(&self) -> Result<(), OutputError> {
        self.open.check(&self.layout)
    }
}
