//! Assembles the vectors of a record from the results of batches.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::chunk::{Chunk, ChunkRecord, RecordStatus, Segment};
use super::dedup::Origin;
use crate::pooling::{Joined, Poolings, Reduce, join_strands, join_windows, pooled_rows, rows_of};
use crate::vectors::{Floats, Vectors};

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
#[derive(Clone, Copy)]
pub struct Results<'a> {
    /// The chunk.
    pub chunk: &'a Chunk,
    /// The location of the result of each of its segments.
    pub locations: &'a [ResultLocation],
    /// What the engine gave for each batch, of those that returned.
    pub batches: &'a [Option<Arc<Floats>>],
    /// Pooled rows of earlier chunks.
    pub cached: &'a [f32],
    /// Width of a row.
    pub hidden: usize,
}

impl<'a> Results<'a> {
    /// Appends a record's vectors: NaN for a pooled one without an embedding.
    pub fn append(
        &self,
        vectors: &mut Vectors,
        record: &ChunkRecord,
        status: &RecordStatus,
        poolings: &Poolings,
    ) {
        if status.skipped.is_some() {
            vectors.extend_from_slice(&vec![f32::NAN; poolings.missing_rows() * self.hidden]);
            return;
        }
        if poolings.reduce() == Reduce::Tokens && record.reverse.is_empty() {
            for segment in record.segments.clone() {
                self.share(vectors, segment);
            }
            return;
        }
        let strand = |segments: &Range<usize>| {
            let parts: Vec<_> = self.parts(segments.clone()).collect();
            let parts = parts.iter().map(|(part, ranges)| (&**part, *ranges));
            let mut values = Vec::new();
            join_windows(&mut values, parts, poolings);
            values
        };
        let mut values = strand(&record.segments);
        if !record.reverse.is_empty() {
            join_strands(&mut values, &strand(&record.reverse));
        }
        vectors.extend_from_slice(&values);
    }

    /// Appends the vectors of a segment's tokens, as the engine gave them.
    fn share(&self, vectors: &mut Vectors, segment: usize) {
        let (location, rows) = self.location(segment);
        match location {
            ResultLocation::Batch { batch, .. } => {
                if let Some(floats) = &self.batches[batch] {
                    vectors.share(floats, rows);
                }
            }
            ResultLocation::Cached(_) => vectors.extend_from_slice(&self.cached[rows]),
        }
    }

    /// Where the result of a segment is, and which numbers there are its own.
    fn location(&self, segment: usize) -> (ResultLocation, Range<usize>) {
        let Segment { input, reduce, .. } = &self.chunk.segments[segment];
        let location = self.locations[segment];
        let (ResultLocation::Batch { row, .. } | ResultLocation::Cached(row)) = location;
        let Range { start, end } = pooled_rows(*reduce, &input.ranges);
        (
            location,
            (row + start) * self.hidden..(row + end) * self.hidden,
        )
    }

    /// Joins the pooled rows of segments to those of the windows before.
    pub fn join(&self, joined: &mut Joined, segments: Range<usize>, poolings: &Poolings) {
        for (part, ranges) in self.parts(segments) {
            joined.add(&part, ranges, poolings);
        }
    }

    /// What is pooled of a segment.
    pub fn pooled(&self, segment: usize) -> Cow<'a, [f32]> {
        let mut parts = self.parts(segment..segment + 1);
        parts.next().map_or(Cow::default(), |(part, _)| part)
    }

    /// What is pooled of each segment, and over which tokens.
    fn parts(
        &self,
        segments: Range<usize>,
    ) -> impl Iterator<Item = (Cow<'a, [f32]>, &'a [Range<usize>])> {
        let results = *self;
        segments.map(move |at| {
            let (location, rows) = results.location(at);
            let part = match location {
                ResultLocation::Batch { batch, .. } => match &results.batches[batch] {
                    Some(floats) => floats.singles(rows),
                    None => Cow::default(),
                },
                ResultLocation::Cached(_) => Cow::Borrowed(&results.cached[rows]),
            };
            (part, &*results.chunk.segments[at].input.ranges)
        })
    }
}
