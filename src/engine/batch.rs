//! What goes into a session, and what can be asked of it: packed token sequences, and one of the
//! graph's outputs.

pub use crate::pooling::Reduce;

/// Token sequences laid end to end, without padding, and the ranges of tokens to be pooled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids of all sequences, special tokens included: [tokens].
    pub ids: Vec<i64>,
    /// Where each sequence begins in `ids`, and the end of the last one: [sequences + 1].
    pub starts: Vec<i32>,
    /// For each pooled row, the tokens `[start, end)` in `ids` that it is taken over.
    pub ranges: Vec<[i32; 2]>,
}

impl Batch {
    /// How many tokens all sequences have together.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// How many sequences.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }
}
