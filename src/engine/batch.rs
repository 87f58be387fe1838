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

    /// What the embedding of each token is multiplied by under token dropout, [tokens]: in a
    /// sequence of `n` tokens of which `m` are `<mask>`, `n / (n - m)`.
    #[must_use]
    pub fn embedding_factors(&self, mask_id: i64) -> Vec<f32> {
        let mut factors = Vec::with_capacity(self.tokens());
        let mut start = 0;
        for &end in self.starts.iter().skip(1) {
            let end = usize::try_from(end).unwrap_or(start);
            let ids = self.ids.get(start..end).unwrap_or_default();
            let masked = ids.iter().filter(|&&id| id == mask_id).count();
            let rest = ids.len() - masked;
            // All embeddings of a sequence of masks alone are zero.
            let factor = ids.len() as f32 / rest.max(1) as f32;
            factors.resize(end.max(start), factor);
            start = end;
        }
        factors
    }
}
