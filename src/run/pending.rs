//! Chunks whose batches are being computed: the results returned so far, and which of them are
//! saved before they are written.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::chunk::{Chunk, ChunkEntry, ChunkRecord};
use super::dedup::Origin;
use super::execute::{BatchResult, SegmentIssue};
use super::results::{ResultLocation, Results, locate};
use super::save::{FRAME_VALUES, RowBlock, Saver};
use super::stored::Stored;
use super::task::Task;
use crate::journal::JournalError;
use crate::vectors::Floats;

/// A chunk that is not written yet.
pub struct PendingChunk {
    /// The chunk.
    pub chunk: Arc<Chunk>,
    /// By segment, what was not computed as it was meant.
    pub issues: HashMap<usize, SegmentIssue>,
    /// What the engine gave for each batch, of those that returned.
    batches: Vec<Option<Arc<Floats>>>,
    /// For each entry, whether its rows were saved before they are written.
    saved: Vec<bool>,
    /// By entry, where those are that are parts of long records.
    stored: HashMap<usize, Stored>,
    /// Batches that did not return yet.
    left: usize,
    /// When the first batch returned.
    since: Option<Instant>,
}

impl PendingChunk {
    /// A chunk of which no batch has returned yet.
    pub fn new(chunk: Arc<Chunk>) -> Self {
        let left = chunk.batches.len();
        Self {
            issues: HashMap::new(),
            batches: (0..left).map(|_| None).collect(),
            saved: vec![false; chunk.entries.len()],
            stored: HashMap::new(),
            left,
            since: None,
            chunk,
        }
    }

    /// Stores the results of a batch.
    pub fn add(&mut self, batch: usize, result: BatchResult) {
        self.since.get_or_insert_with(Instant::now);
        self.batches[batch] = Some(Arc::new(result.rows));
        for (segment, issue) in result.issues {
            // A failure takes precedence over the status that windows were tried before.
            if issue != SegmentIssue::Windowed || !self.issues.contains_key(&segment) {
                self.issues.insert(segment, issue);
            }
        }
        self.left -= 1;
    }

    /// Whether all batches returned.
    pub fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// When the first batch returned, if one did.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Whether an entry's rows were saved already.
    pub fn is_saved(&self, entry: usize) -> bool {
        self.saved[entry]
    }

    /// Where the vectors of an entry that is a part of a long record were saved, if they were.
    pub fn stored(&self, entry: usize) -> Option<&Stored> {
        self.stored.get(&entry)
    }

    /// The results that the rows of the chunk are made from. `cached` are rows of earlier chunks.
    pub fn results<'p>(
        &'p self,
        locations: &'p [ResultLocation],
        cached: &'p [f32],
        hidden: usize,
    ) -> Results<'p> {
        Results {
            chunk: &self.chunk,
            locations,
            batches: &self.batches,
            cached,
            hidden,
        }
    }

    /// Saves the records whose batches have returned, except those of failed files.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(
        &mut self,
        saver: &mut Saver,
        tasks: &[Task],
        hidden: usize,
        is_failed: impl Fn(usize) -> bool,
    ) -> Result<(), JournalError> {
        let chunk = Arc::clone(&self.chunk);
        let locations = locate(&chunk);
        let mut block = RowBlock::default();
        for (at, entry) in chunk.entries.iter().enumerate() {
            let ChunkEntry::Record(task, record) = entry else {
                continue;
            };
            if self.saved[at] || is_failed(*task) || !self.is_computed(record, &locations) {
                continue;
            }
            let pooling = &tasks[*task].job.settings.pooling;
            let results = self.results(&locations, &[], hidden);
            if record.part.is_none() {
                if block.task != *task || block.values.len() >= FRAME_VALUES {
                    saver.write(&std::mem::take(&mut block))?;
                    block.task = *task;
                }
                let before = block.values.len();
                results.append(&mut block.values, record, &record.status, pooling);
                let vectors = (block.values.len() - before) / hidden.max(1);
                block.mark(record.mark(vectors), false);
                self.saved[at] = true;
            } else if pooling.is_per_token() {
                let mut part = RowBlock::part(*task);
                results.append(&mut part.values, record, &record.status, pooling);
                let count = part.values.len();
                part.mark(record.mark(count / hidden.max(1)), false);
                if let Some(place) = saver.write(&part)? {
                    self.stored.insert(at, Stored::Shard(place, count));
                }
                self.saved[at] = true;
            }
            // A pooled part joins those before it, which may not be there.
        }
        saver.write(&block)?;
        Ok(())
    }

    /// Whether a record's windows were computed, as they were meant. Cached rows are known when the
    /// chunk is written: before, their places may hold what an earlier chunk needs.
    fn is_computed(&self, record: &ChunkRecord, locations: &[ResultLocation]) -> bool {
        let mut segments = record.segments.clone().chain(record.reverse.clone());
        record.has_segments()
            && segments.all(|segment| match locations[segment] {
                ResultLocation::Batch { batch, .. } => {
                    self.batches[batch].is_some() && !self.has_issue(segment)
                }
                ResultLocation::Cached(_) => false,
            })
    }

    /// Whether what a segment's numbers come from was not computed as it was meant.
    fn has_issue(&self, segment: usize) -> bool {
        let first = match self.chunk.segments[segment].origin {
            Origin::Segment(first) => first,
            Origin::Engine { .. } | Origin::Cached(_) => segment,
        };
        self.issues.contains_key(&first)
    }
}
