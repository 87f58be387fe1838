//! Reading embedding files: the interface that the readers of all formats implement.

use super::columns;
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

    /// One of the columns alone, as a file of this pooling and layer would be read; without a name,
    /// the first.
    ///
    /// # Errors
    /// [`OutputError::NoColumn`] where there is none of this name.
    pub fn column(self, name: Option<&str>) -> Result<Self, OutputError> {
        let names = self.layout.names();
        let at = name.map_or(Some(0), |name| names.iter().position(|own| *own == name));
        let Some(at) = at else {
            return Err(OutputError::NoColumn {
                name: name.unwrap_or_default().to_owned(),
                columns: names.join(", "),
                path: self.layout.path,
            });
        };
        if self.layout.columns.is_empty() {
            return Ok(self);
        }
        let (width, count) = (self.layout.width(), names.len());
        let layout = self.layout.of_column(at);
        let one = move |rows: Rows| Rows {
            hidden: width,
            values: columns::one(&rows.values, at, width, count),
            ..rows
        };
        let blocks = self.blocks.map(move |rows| rows.map(one));
        Ok(Self {
            layout,
            rows: self.rows,
            blocks: Box::new(blocks),
        })
    }
}

impl Iterator for Reader {
    type Item = Result<Rows, OutputError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.blocks.next()
    }
}
