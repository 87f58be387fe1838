//! The inputs of graphs without padding, for a batch.
//!
//! ONNX Runtime's arena grows with every size that it has not seen before, so the number of tokens
//! in a batch is rounded up to one of few sizes: with filler sequences, no longer than the longest
//! of the batch, from which nothing is pooled. Attention stays within a sequence and pooling within
//! a range, so the batch's own rows do not depend on them.

use seqembed_onnx::graph::ort_cuda::{LENGTH_MULTIPLE, TOKEN_MULTIPLE};

use crate::engine::batch::Batch;

/// Sizes between one power of two and the next, from 2,048 on: at most 1 in 32 tokens is filler.
const STEPS: usize = 32;

/// The number of tokens that a batch of `tokens` is rounded up to.
#[must_use]
pub fn rounded_up(tokens: usize) -> usize {
    let power = (tokens.max(1) + 1).next_power_of_two() / 2;
    tokens.next_multiple_of((power / STEPS).max(TOKEN_MULTIPLE))
}

/// A batch with its filler sequences.
#[derive(Debug)]
pub struct BatchLayout<'batch> {
    batch: &'batch Batch,
    /// Start of each sequence and end of the last one, including filler sequences.
    starts: Vec<i32>,
    tokens: usize,
    length: usize,
}

impl<'batch> BatchLayout<'batch> {
    /// Adds filler sequences to a batch. A padded batch of it would have at least `least_length`
    /// columns.
    #[must_use]
    pub fn new(batch: &'batch Batch, least_length: usize) -> Self {
        let mut starts = batch.starts.clone();
        if starts.is_empty() {
            starts.push(0);
        }
        let longest = lengths(&starts).max().unwrap_or(0).max(1);
        let tokens = rounded_up(batch.tokens());
        let mut at = batch.tokens();
        while at < tokens {
            at = tokens.min(at + longest);
            starts.push(int(at));
        }
        Self {
            batch,
            starts,
            tokens,
            length: longest.max(least_length).next_multiple_of(LENGTH_MULTIPLE),
        }
    }

    /// How many tokens, filler included.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// How many sequences, filler included.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.starts.len() - 1
    }

    /// How many columns a padded batch would have.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Start of each sequence, and end of the last one.
    #[must_use]
    pub fn starts(&self) -> &[i32] {
        &self.starts
    }

    /// The batch itself.
    #[must_use]
    pub fn batch(&self) -> &'batch Batch {
        self.batch
    }

    /// Writes the token ids.
    pub fn ids(&self, target: &mut [i64]) {
        let (own, rest) = target.split_at_mut(self.batch.tokens());
        own.copy_from_slice(&self.batch.ids);
        // Filler of the batch's own tokens overflows only where the batch itself does.
        for (target, id) in rest.iter_mut().zip(self.batch.ids.iter().cycle()) {
            *target = *id;
        }
    }

    /// Writes each token's position in its sequence.
    pub fn positions(&self, target: &mut [i64]) {
        let places = lengths(&self.starts).flat_map(|length| 0_i64..long(length));
        for (target, place) in target.iter_mut().zip(places) {
            *target = place;
        }
    }

    /// Writes the offsets of all tokens in a padded batch, then those of its padding.
    pub fn offsets(&self, target: &mut [i32]) {
        let (tokens, padding) = target.split_at_mut(self.tokens);
        let (mut tokens, mut padding) = (tokens.iter_mut(), padding.iter_mut());
        for (row, length) in lengths(&self.starts).enumerate() {
            let first = row * self.length;
            let places = first..first + self.length;
            let (own, beyond) = (places.start..first + length, first + length..places.end);
            // In this order: at its end, `zip` has taken one more of what comes first.
            for (place, target) in own.zip(tokens.by_ref()) {
                *target = int(place);
            }
            for (place, target) in beyond.zip(padding.by_ref()) {
                *target = int(place);
            }
        }
    }
}

fn lengths(starts: &[i32]) -> impl Iterator<Item = usize> {
    starts
        .windows(2)
        .map(|pair| usize::try_from(pair[1] - pair[0]).unwrap_or(0))
}

/// A position in a batch. It is far below 2^31: no device has memory for so many tokens.
fn int(position: usize) -> i32 {
    i32::try_from(position).unwrap_or(i32::MAX)
}

fn long(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(lengths: &[usize]) -> Batch {
        let mut batch = Batch {
            starts: vec![0],
            ..Batch::default()
        };
        for (at, &length) in lengths.iter().enumerate() {
            batch.ids.extend(vec![long(at) + 4; length]);
            batch.starts.push(int(batch.ids.len()));
        }
        batch
    }

    #[test]
    fn few_sizes_and_little_filling() {
        let sizes: std::collections::BTreeSet<usize> = (1..=40_000).map(rounded_up).collect();
        assert!(sizes.len() <= 32 + 5 * STEPS, "{}", sizes.len());
        for tokens in 1..=40_000 {
            let filled = rounded_up(tokens);
            assert!(filled >= tokens && filled.is_multiple_of(TOKEN_MULTIPLE));
            let most = TOKEN_MULTIPLE.max(tokens / STEPS + 1);
            assert!(filled - tokens < most, "{tokens} {filled}");
        }
        // A budget that is a power of two costs nothing.
        assert_eq!(rounded_up(32_768), 32_768);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn sequences_stay_and_nothing_is_lost(
            given in prop::collection::vec(1_usize..300, 1..40),
            least in prop::sample::select(vec![64_usize, 256]),
        ) {
            let batch = batch(&given);
            let layout = BatchLayout::new(&batch, least);
            let (tokens, length) = (layout.tokens(), layout.length());
            prop_assert_eq!(tokens, rounded_up(batch.tokens()));
            prop_assert_eq!(&layout.starts()[..=given.len()], &batch.starts[..]);
            prop_assert_eq!(layout.starts().last().copied(), Some(int(tokens)));
            let all: Vec<usize> = lengths(layout.starts()).collect();
            let longest = given.iter().copied().max().unwrap();
            prop_assert!(all.iter().all(|&one| one >= 1 && one <= longest));
            prop_assert!(length >= longest.max(least) && length.is_multiple_of(LENGTH_MULTIPLE));

            let mut ids = vec![-1; tokens];
            layout.ids(&mut ids);
            prop_assert_eq!(&ids[..batch.tokens()], &batch.ids[..]);
            prop_assert!(ids.iter().all(|id| batch.ids.contains(id)));

            let mut positions = vec![-1; tokens];
            layout.positions(&mut positions);
            let mut offsets = vec![-1; layout.sequences() * length];
            layout.offsets(&mut offsets);
            let mut at = 0;
            for (row, &one) in all.iter().enumerate() {
                for place in 0..one {
                    prop_assert_eq!(positions[at], long(place));
                    prop_assert_eq!(offsets[at], int(row * length + place));
                    at += 1;
                }
            }
            // Every position of the padded batch occurs exactly once.
            offsets.sort_unstable();
            prop_assert!(offsets.iter().copied().eq(0..int(layout.sequences() * length)));
        }
    }
}
