//! What goes into a session, and what can be asked of it: packed token sequences, and one of the
//! graph's outputs.

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

/// What a session gives back for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// The mean of each range, [ranges, hidden].
    Mean,
    /// The maximum of each range, [ranges, hidden].
    Max,
    /// All tokens, [tokens, hidden].
    Tokens,
}

impl Reduce {
    /// The name of the graph's output that gives it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Tokens => "tokens",
        }
    }
}
