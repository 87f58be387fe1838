//! Results of windows -> the vectors of a record: where each window's result lies, and how they are joined.

use std::ops::Range;

use super::chunk::{Chunk, Item, Segment, Status};
use super::repeats::Origin;
use crate::engine::Reduce;
use crate::engine::kernels::rows::larger_or_nan;
use crate::settings::Pooling;

/// Where a segment's result lies.
#[derive(Clone, Copy)]
pub enum Place {
    /// In a batch's result: its row there (pooled) or its first token's row (per token).
    Batch {
        /// The batch, in `Chunk::batches`.
        batch: usize,
        /// The row.
        row: usize,
    },
    /// Among the rows of earlier chunks: its row there.
    Kept(usize),
}

/// Where the result of each of a chunk's segments lies.
pub fn places(chunk: &Chunk) -> Vec<Place> {
    let mut places = vec![Place::Kept(0); chunk.segments.len()];
    for (batch, segments) in chunk.batches.iter().enumerate() {
        let mut token = 0;
        for (row, &segment) in segments.iter().enumerate() {
            let at = &chunk.segments[segment];
            let row = if at.reduce == Reduce::Tokens {
                token
            } else {
                row
            };
            places[segment] = Place::Batch { batch, row };
            token += at.tokens();
        }
    }
    let mut kept = 0;
    for (at, segment) in chunk.segments.iter().enumerate() {
        match segment.origin {
            Origin::Engine { .. } => {}
            // It comes before, and is in a batch itself.
            Origin::Segment(first) => places[at] = places[first],
            Origin::Slot(_) => {
                places[at] = Place::Kept(kept);
                kept += 1;
            }
        }
    }
    places
}

/// The results that a chunk's rows are made from.
pub struct Results<'a> {
    /// The chunk.
    pub chunk: &'a Chunk,
    /// Where each of its segments' results lies.
    pub places: &'a [Place],
    /// What the engine gave for each batch, of those that returned.
    pub batches: &'a [Option<Vec<f32>>],
    /// Pooled rows of earlier chunks.
    pub kept: &'a [f32],
    /// Width of a row.
    pub hidden: usize,
}

impl Results<'_> {
    /// Appends a record's vectors: NaN for a pooled one that has no tokens.
    pub fn append(
        &self,
        row_values: &mut Vec<f32>,
        item: &Item,
        status: &Status,
        pooling: Pooling,
    ) {
        let hidden = self.hidden;
        let before = row_values.len();
        let parts = |segments: &Range<usize>| {
            segments.clone().map(|s| {
                let (values, row) = match self.places[s] {
                    Place::Batch { batch, row } => {
                        (self.batches[batch].as_deref().unwrap_or_default(), row)
                    }
                    Place::Kept(row) => (self.kept, row),
                };
                (&self.chunk.segments[s], values, row)
            })
        };
        match pooling {
            // One vector of NaN, or none at all.
            Pooling::None if status.skipped.is_some() => {}
            _ if status.skipped.is_some() => row_values.resize(before + hidden, f32::NAN),
            Pooling::None => {
                for (segment, values, row) in parts(&item.segments) {
                    row_values.extend_from_slice(slice(values, row, &segment.range, hidden));
                }
            }
            Pooling::Mean | Pooling::MeanAll | Pooling::Cls | Pooling::Max => {
                join(row_values, parts(&item.segments), pooling, hidden);
                if !item.reverse.is_empty() {
                    let mut other = Vec::new();
                    join(&mut other, parts(&item.reverse), pooling, hidden);
                    let forward = &mut row_values[before..];
                    forward
                        .iter_mut()
                        .zip(&other)
                        .for_each(|(a, b)| *a = f32::midpoint(*a, *b));
                }
            }
        }
    }
}

/// The vectors of a range of a sequence's tokens.
fn slice<'v>(values: &'v [f32], row: usize, range: &Range<usize>, hidden: usize) -> &'v [f32] {
    &values[(row + range.start) * hidden..(row + range.end) * hidden]
}

/// Appends one pooled vector, joined from those of the windows.
fn join<'v>(
    row_values: &mut Vec<f32>,
    parts: impl ExactSizeIterator<Item = (&'v Segment, &'v [f32], usize)>,
    pooling: Pooling,
    hidden: usize,
) {
    let parts = parts.map(|(segment, values, row)| {
        let part = &values[row * hidden..(row + 1) * hidden];
        (part, segment.range.len())
    });
    join_windows(row_values, parts, pooling == Pooling::Max, hidden);
}

/// Appends a vector joined from those of windows: their mean weighted by how many tokens each stands for, or their maximum.
pub fn join_windows<'v>(
    values: &mut Vec<f32>,
    parts: impl ExactSizeIterator<Item = (&'v [f32], usize)>,
    maximum: bool,
    hidden: usize,
) {
    let count = parts.len();
    let start = values.len();
    let mut total = 0;
    for (at, (part, weight)) in parts.enumerate() {
        if count == 1 || (at == 0 && maximum) {
            values.extend_from_slice(part);
            continue;
        }
        if at == 0 {
            values.resize(start + hidden, 0.0);
        }
        let joined = &mut values[start..];
        if maximum {
            joined
                .iter_mut()
                .zip(part)
                .for_each(|(best, x)| *best = larger_or_nan(*best, *x));
        } else {
            total += weight;
            joined
                .iter_mut()
                .zip(part)
                .for_each(|(sum, x)| *sum += x * weight as f32);
        }
    }
    if total > 0 {
        values[start..]
            .iter_mut()
            .for_each(|sum| *sum /= total as f32);
    }
}
