//! Batching: selects which windows the model computes together, and lays out a batch with the
//! model's special tokens.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::engine::batch::Batch;
use crate::tokenize::{Encoded, SpecialTokens};

/// What the model gets for one window: a stretch of a record's tokens between the special ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInput {
    /// The record, as an index into the chunk's encoded records.
    pub record: usize,
    /// The record's tokens that the model sees, without special ones.
    pub seen: Range<usize>,
    /// For each pooling, the tokens that are pooled, as the model counts them: 0 is the first
    /// special token in front. Empty where nothing is.
    pub ranges: Vec<Range<usize>>,
    /// How many tokens the model computes, the special ones included.
    pub tokens: usize,
}

impl ModelInput {
    /// The tokens `seen` of a record with the model's special tokens around them.
    #[must_use]
    pub fn new(
        record: usize,
        seen: Range<usize>,
        ranges: Vec<Range<usize>>,
        special: &SpecialTokens,
    ) -> Self {
        Self {
            record,
            tokens: seen.len() + special.count(),
            seen,
            ranges,
        }
    }

    /// What the model sees, by which inputs of a chunk share a sequence.
    #[must_use]
    pub fn sight(&self) -> (usize, usize, usize) {
        (self.record, self.seen.start, self.seen.end)
    }
}

/// Groups sequences of the given lengths (in tokens) into batches of at most `budget` tokens, and
/// returns the indices of each batch. Every index occurs exactly once. A sequence longer than the
/// budget is a batch by itself.
///
/// The longest come first, so that the last batches of a run are the small ones that keep all
/// workers busy to the end. With `padded`, a batch costs its longest length times its count, and no
/// sequence of it is more than 3 % shorter than the longest.
#[must_use]
pub fn group(lengths: &[usize], budget: usize, padded: bool) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| Reverse(lengths[index]));
    let mut batches = Vec::new();
    let mut batch: Vec<usize> = Vec::new();
    let (mut tokens, mut longest) = (0, 0);
    for index in order {
        let length = lengths[index];
        let fits = if padded {
            longest * (batch.len() + 1) <= budget
                && longest.saturating_sub(length) * 100 <= longest * 3
        } else {
            tokens + length <= budget
        };
        if !batch.is_empty() && !fits {
            batches.push(std::mem::take(&mut batch));
            tokens = 0;
        }
        if batch.is_empty() {
            longest = length;
        }
        batch.push(index);
        tokens += length;
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

/// Lays windows end to end, each between the special tokens. `encoded`: the records that they are
/// of. `maxima`: for each range of a window, whether [`Reduce::Both`] is to give its maximum. With
/// `shares`, a window that sees the same as an earlier one is laid once: the engine must take its
/// ranges wherever they are, and return nothing but rows of ranges.
///
/// [`Reduce::Both`]: crate::engine::batch::Reduce::Both
#[must_use]
pub fn lay<'i>(
    inputs: impl Iterator<Item = &'i ModelInput> + Clone,
    encoded: &[Arc<Encoded>],
    special: &SpecialTokens,
    maxima: &[bool],
    shares: bool,
) -> Batch {
    let count = inputs.clone().count();
    let mut batch = Batch {
        ids: Vec::with_capacity(inputs.clone().map(|input| input.tokens).sum()),
        starts: Vec::with_capacity(count + 1),
        ranges: Vec::with_capacity(inputs.clone().map(|input| input.ranges.len()).sum()),
        maxima: maxima.to_vec(),
    };
    batch.starts.push(0);
    let mut laid = HashMap::new();
    for input in inputs {
        let known = shares.then(|| laid.get(&input.sight())).flatten();
        let start = known.copied().unwrap_or(batch.ids.len());
        if start == batch.ids.len() {
            let ids = &encoded[input.record].ids[input.seen.clone()];
            for ids in [&special.front, ids, &special.behind] {
                batch.ids.extend(ids.iter().map(|&id| i64::from(id)));
            }
            batch.starts.push(position(batch.ids.len()));
            if shares {
                laid.insert(input.sight(), start);
            }
        }
        batch.ranges.extend(input.ranges.iter().map(|range| {
            // Each range must have a row: that of nothing is not used.
            let end = range.end.max(range.start + 1);
            [position(start + range.start), position(start + end)]
        }));
    }
    batch
}

/// A batch's positions are 32-bit in the graph; a batch is far smaller than that, and a longer
/// sequence is refused before.
fn position(token: usize) -> i32 {
    i32::try_from(token).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn batches_lose_nothing_and_keep_the_budget(
            lengths in prop::collection::vec(1..3000_usize, 0..300),
            budget in 1..8000_usize,
            padded: bool,
        ) {
            let batches = group(&lengths, budget, padded);
            let mut all: Vec<usize> = batches.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &batches {
                let tokens: usize = batch.iter().map(|&index| lengths[index]).sum();
                let longest = batch.iter().map(|&index| lengths[index]).max().unwrap_or(0);
                let cost = if padded { longest * batch.len() } else { tokens };
                prop_assert!(batch.len() == 1 || cost <= budget);
                if padded {
                    prop_assert!(cost as f64 <= tokens as f64 * 1.031);
                }
            }
        }
    }

    #[test]
    fn a_batch_has_the_special_tokens_around_each_window() {
        let encoded = [Arc::new(Encoded {
            ids: vec![10, 11, 12, 13],
            letters: 4,
            ..Encoded::default()
        })];
        for (front, behind) in [(1, 1), (1, 0), (0, 1), (2, 1), (0, 0)] {
            let special = SpecialTokens {
                front: (100..100 + front).collect(),
                behind: (200..200 + behind).collect(),
                ..SpecialTokens::default()
            };
            let at = special.front.len();
            let inputs = [
                ModelInput::new(0, 0..3, vec![at..at + 3], &special),
                ModelInput::new(0, 2..4, vec![at + 1..at + 2], &special),
            ];
            let batch = lay(inputs.iter(), &encoded, &special, &[], false);
            let around = |ids: &[i64]| {
                let [front, behind] = [&special.front, &special.behind]
                    .map(|ids| ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>());
                [&front[..], ids, &behind[..]].concat()
            };
            let sequences = [around(&[10, 11, 12]), around(&[12, 13])];
            assert_eq!(batch.ids, sequences.concat());
            let lengths = [sequences[0].len(), sequences[1].len()];
            assert_eq!(lengths, [inputs[0].tokens, inputs[1].tokens]);
            let starts = [0, lengths[0], lengths[0] + lengths[1]];
            assert_eq!(batch.starts, starts.map(position));
            let pooled = batch.ranges.iter().map(|range| {
                let [from, to] = range.map(|at| usize::try_from(at).expect("no negative position"));
                batch.ids[from..to].to_vec()
            });
            assert_eq!(pooled.collect::<Vec<_>>(), [vec![10, 11, 12], vec![13]]);
            // A span of the first window shares its tokens.
            let spans = [
                inputs[0].clone(),
                inputs[1].clone(),
                ModelInput::new(0, 0..3, vec![at..at + 1], &special),
            ];
            let shared = lay(spans.iter(), &encoded, &special, &[], true);
            assert_eq!((&shared.ids, &shared.starts), (&batch.ids, &batch.starts));
            let last = [position(at), position(at + 1)];
            assert_eq!(shared.ranges, [&batch.ranges[..], &[last]].concat());
        }
    }
}
