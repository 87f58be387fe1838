//! Results of windows -> the vectors of a record: where each window's result lies, and how they are joined.

use std::ops::Range;

use super::chunk::{Chunk, Item, Segment, Status};
use super::dedup::Origin;
use crate::engine::Reduce;
use crate::engine::cpu::kernels::rows::larger_or_nan;
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
        let parts = |segments: &Range<usize>| self.parts(segments.clone());
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

impl<'a> Results<'a> {
    /// Segments with the values that their results are among, and the row there.
    fn parts(
        &self,
        segments: Range<usize>,
    ) -> impl ExactSizeIterator<Item = (&'a Segment, &'a [f32], usize)> {
        let Self {
            chunk,
            places,
            batches,
            kept,
            ..
        } = *self;
        segments.map(move |s| {
            let (values, row) = match places[s] {
                Place::Batch { batch, row } => (batches[batch].as_deref().unwrap_or_default(), row),
                Place::Kept(row) => (kept, row),
            };
            (&chunk.segments[s], values, row)
        })
    }

    /// Joins the pooled rows of segments to those of the windows before.
    pub fn join(&self, joined: &mut Joined, segments: Range<usize>, pooling: Pooling) {
        for (segment, values, row) in self.parts(segments) {
            let part = &values[row * self.hidden..(row + 1) * self.hidden];
            joined.add(part, segment.range.len(), pooling == Pooling::Max);
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
    join_windows(row_values, parts, pooling == Pooling::Max);
}

/// Appends a vector joined from those of windows: their mean weighted by how many tokens each stands for, or their maximum.
pub fn join_windows<'v>(
    values: &mut Vec<f32>,
    parts: impl ExactSizeIterator<Item = (&'v [f32], usize)>,
    maximum: bool,
) {
    let mut joined = Joined::default();
    let is_one = parts.len() == 1;
    for (part, weight) in parts {
        if is_one {
            values.extend_from_slice(part);
            return;
        }
        joined.add(part, weight, maximum);
    }
    values.extend(joined.finish(maximum));
}

/// The vector of a sequence in several windows, up to one of them.
#[derive(Debug, Clone, Default)]
pub struct Joined {
    /// Their sum, each times its weight, or their maximum.
    pub values: Vec<f32>,
    /// Their weights together.
    pub weight: usize,
}

impl Joined {
    /// The next window's vector, and how many tokens it stands for.
    pub fn add(&mut self, part: &[f32], weight: usize, maximum: bool) {
        let values = &mut self.values;
        self.weight += weight;
        if maximum {
            if values.is_empty() {
                values.extend_from_slice(part);
            } else {
                let both = values.iter_mut().zip(part);
                both.for_each(|(best, x)| *best = larger_or_nan(*best, *x));
            }
            return;
        }
        values.resize(part.len(), 0.0);
        let both = values.iter_mut().zip(part);
        both.for_each(|(sum, x)| *sum += x * weight as f32);
    }

    /// The sequence's vector.
    pub fn finish(mut self, maximum: bool) -> Vec<f32> {
        if !maximum && self.weight > 0 {
            let weight = self.weight as f32;
            self.values.iter_mut().for_each(|sum| *sum /= weight);
        }
        self.values
    }
}
