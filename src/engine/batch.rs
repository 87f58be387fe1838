//! The input of a session, packed token sequences, and the choice of the graph's output.

pub use crate::pooling::Reduce;

/// Token sequences packed end to end, without padding, and the ranges of tokens to be pooled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids of all sequences, special tokens included: [tokens].
    pub ids: Vec<i64>,
    /// Index in `ids` at which each sequence starts, and the end of the last one: [sequences + 1].
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

    /// Number of sequences.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }
}
