//! The input of a session, packed token sequences, and the choice of the graph's output.

pub use crate::pooling::Reduce;

/// Token sequences packed end to end, without padding, and the ranges of tokens to be pooled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids of all sequences, special tokens included: [tokens].
    pub ids: Vec<i64>,
    /// Index in `ids` at which each sequence starts, and the end of the last one: [sequences + 1].
    pub starts: Vec<i32>,
    /// For each pooled row, the tokens `[start, end)` in `ids` that it is taken over. As many for
    /// each sequence, in the order of the sequences.
    pub ranges: Vec<[i32; 2]>,
    /// For [`Reduce::Both`]: for each range of a sequence, whether its row is the maximum and not
    /// the mean.
    pub maxima: Vec<bool>,
}

impl Batch {
    /// How many tokens all sequences have together.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// For [`Reduce::Both`]: takes each row, `hidden` wide, from the means or from the maxima of
    /// all ranges.
    #[must_use]
    pub fn either(&self, mut means: Vec<f32>, maxima: &[f32], hidden: usize) -> Vec<f32> {
        let rows = means.chunks_mut(hidden).zip(maxima.chunks(hidden));
        for ((row, maximum), &is_max) in rows.zip(self.maxima.iter().cycle()) {
            if is_max {
                row.copy_from_slice(maximum);
            }
        }
        means
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
