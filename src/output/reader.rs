//! Reading embedding files: the interface that the readers of all formats implement.

use super::error::OutputError;
use super::layout::Layout;
use super::rows::Rows;

/// Maximum number of dimensions: wider files are damaged, or crafted to exhaust the memory. Known
/// models have up to 5,120.
pub(super) const WIDEST: usize = 1 << 20;

/// Bytes of vectors that are handled at a time, on the way in and on the way out.
pub(super) const BLOCK_BYTES: usize = 4 << 20;

/// A file of embeddings being read, block by block, in bounded memory.
pub struct Reader {
    pub(super) layout: Layout,
    pub(super) rows: u64,
    pub(super) blocks: Box<dyn Iterator<Item = Result<Rows, OutputError>> + Send>,
}

impl Reader {
    /// Path, width, kind of rows, and provenance.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many rows the file has.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }
}

impl Iterator for Reader {
    type Item = Result<Rows, OutputError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.blocks.next()
    }
}
