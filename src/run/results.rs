//! Assembles the vectors of a record from the results of batches.

use std::ops::Range;

use super::chunk::{Chunk, ChunkRecord, RecordStatus, Segment};
use super::dedup::Origin;
use crate::pooling::{Joined, Pooling, join_strands, join_windows, pooled_rows, rows_of};

/// The location of a segment's result.
#[derive(Clone, Copy)]
pub enum ResultLocation {
    /// In a batch's result.
    Batch {
        /// The batch, as an index into `Chunk::batches`.
        batch: usize,
        /// Index of its first row there.
        row: usize,
    },
    /// This row of those that were taken out of the cache.
    Cached(usize),
}

/// The location of the result of each segment of a chunk.
pub fn locate(chunk: &Chunk) -> Vec<ResultLocation> {
    let mut locations = vec![ResultLocation::Cached(0); chunk.segments.len()];
    for (batch, segments) in chunk.batches.iter().enumerate() {
        let mut row = 0;
        for &at in segments {
            let segment = &chunk.segments[at];
            locations[at] = ResultLocation::Batch { batch, row };
            row += rows_of(segment.reduce, segment.input.tokens);
        }
    }
    let mut cached = 0;
    for (at, segment) in chunk.segments.iter().enumerate() {
        match segment.origin {
            Origin::Engine { .. } => {}
            // The referenced segment is an earlier one, and is in a batch itself.
            Origin::Segment(first) => locations[at] = locations[first],
            Origin::Cached(_) => {
                locations[at] = ResultLocation::Cached(cached);
                cached += 1;
            }
        }
    }
    locations
}

/// The results that the rows of a chunk are made from.
pub struct Results<'a> {
    /// The chunk.
    pub chunk: &'a Chunk,
    /// The location of the result of each of its segments.
    pub locations: &'a [ResultLocation],
    /// What the engine gave for each batch, of those that returned.
    pub batches: &'a [Option<Vec<f32>>],
    /// Pooled rows of earlier chunks.
    pub cached: &'a [f32],
    /// Width of a row.
    pub hidden: usize,
}

impl<'a> Results<'a> {
    /// Appends a record's vectors: NaN for a pooled one without an embedding.
    pub fn append(
        &self,
        values: &mut Vec<f32>,
        record: &ChunkRecord,
        status: &RecordStatus,
        pooling: Pooling,
    ) {
        let before = values.len();
        if status.skipped.is_some() {
            values.resize(before + pooling.missing_vectors() * self.hidden, f32::NAN);
            return;
        }
        let reduce = pooling.reduce();
        join_windows(values, self.parts(record.segments.clone()), reduce);
        if !record.reverse.is_empty() {
            let mut reverse = Vec::new();
            join_windows(&mut reverse, self.parts(record.reverse.clone()), reduce);
            join_strands(&mut values[before..], &reverse);
        }
    }

    /// Joins the pooled rows of segments to those of the windows before.
    pub fn join(&self, joined: &mut Joined, segments: Range<usize>, pooling: Pooling) {
        for (part, tokens) in self.parts(segments) {
            joined.add(part, tokens, pooling.reduce());
        }
    }

    /// What is pooled of a segment.
    pub fn pooled(&self, segment: usize) -> &'a [f32] {
        let mut parts = self.parts(segment..segment + 1);
        parts.next().map_or(&[], |(part, _)| part)
    }

    /// What is pooled of each segment, and over how many tokens.
    fn parts(&self, segments: Range<usize>) -> impl ExactSizeIterator<Item = (&'a [f32], usize)> {
        let Self {
            chunk,
            locations,
            batches,
            cached,
            hidden,
        } = *self;
        segments.map(move |at| {
            let Segment { input, reduce, .. } = &chunk.segments[at];
            let (values, row) = match locations[at] {
                ResultLocation::Batch { batch, row } => {
                    (batches[batch].as_deref().unwrap_or_default(), row)
                }
                ResultLocation::Cached(row) => (cached, row),
            };
            let Range { start, end } = pooled_rows(*reduce, &input.range);
            let part = &values[(row + start) * hidden..(row + end) * hidden];
            (part, input.range.len())
        })
    }
}
