//! Records with too many windows to keep them all in memory: cuts them into parts, which go into
//! this chunk and the next ones.

use std::collections::VecDeque;
use std::sync::Arc;

use super::chunk::{ChunkRecord, RecordPart};
use crate::journal::facts::part_hash;
use crate::journal::rows::{Saved, Spot};
use crate::pooling::{PooledWindow, Poolings};
use crate::tokenize::Encoded;

/// Tokens of a part of a long record, about. Nothing else decides where a record is cut, so a part
/// that was saved is found again whatever the devices and batches are.
#[derive(Debug, Clone, Copy)]
pub struct PartTokens {
    /// Where the record is pooled.
    pub pooled: usize,
    /// Where each token has a vector.
    pub each: usize,
}

/// Minimum number of parts of a long record: shorter records are kept whole.
const LONG_PARTS: usize = 8;

impl PartTokens {
    fn of(self, pooling: &Poolings) -> usize {
        if pooling.is_per_token() {
            self.each
        } else {
            self.pooled
        }
    }

    /// Whether a record with this many tokens is cut into parts. With several poolings none is:
    /// what is saved of a part is one sum.
    pub fn is_long(self, pooling: &Poolings, tokens: usize) -> bool {
        pooling.count() == 1 && tokens > self.of(pooling).saturating_mul(LONG_PARTS)
    }
}

/// A long record of which some parts are not in a chunk yet.
pub struct RemainingParts {
    /// Index of the task in the group.
    pub task: usize,
    /// The record, without windows.
    record: ChunkRecord,
    /// Number of tokens that are pooled, or that have a vector each.
    vectors: usize,
    is_begun: bool,
    parts: VecDeque<CutPart>,
}

/// Consecutive windows of a strand of the record.
pub struct CutPart {
    /// The strand's tokens.
    pub encoded: Arc<Encoded>,
    /// The windows. None where the part was saved by an earlier run.
    pub windows: Vec<PooledWindow>,
    is_reverse: bool,
    /// Tokens of the strand that are pooled up to the part's end.
    weight: usize,
    hash: u64,
    saved: Option<Spot>,
}

impl RemainingParts {
    /// Cuts a record of `vectors` pooled tokens into parts. `strands`: its tokens and their
    /// windows, and where they are embedded too, those of its reverse complement. `saved`: what an
    /// earlier run saved of its file.
    pub fn new(
        task: usize,
        record: ChunkRecord,
        vectors: usize,
        strands: Vec<(Encoded, Vec<PooledWindow>)>,
        (part_tokens, pooling): (PartTokens, &Poolings),
        saved: Option<&Saved>,
    ) -> Self {
        let limit = part_tokens.of(pooling);
        let mut parts = VecDeque::new();
        for (strand, (encoded, windows)) in strands.into_iter().enumerate() {
            let encoded = Arc::new(encoded);
            let is_reverse = strand > 0;
            let mut weight = 0;
            let mut windows = windows.into_iter().peekable();
            while let Some(first) = windows.peek() {
                let before = weight;
                let mut tokens = first.window.kept.clone();
                let mut own = Vec::new();
                while weight - before < limit
                    && let Some(pooled) = windows.next()
                {
                    weight += pooled.ranges[0].len();
                    tokens.end = pooled.window.kept.end;
                    own.push(pooled);
                }
                let hash = part_hash(record.hash, is_reverse, &tokens);
                parts.push_back(CutPart {
                    encoded: Arc::clone(&encoded),
                    windows: own,
                    is_reverse,
                    weight,
                    hash,
                    saved: saved.and_then(|saved| saved.find(record.index, hash)),
                });
            }
        }
        if !pooling.is_per_token() {
            drop_joined(&mut parts);
        }
        Self {
            task,
            record,
            vectors,
            is_begun: false,
            parts,
        }
    }

    /// Whether a part of it was saved by an earlier run.
    pub fn is_known(&self) -> bool {
        self.parts.iter().any(|part| part.saved.is_some())
    }

    /// Whether all parts were taken.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The next part and its entry, which has no windows yet.
    pub fn next(&mut self) -> Option<(CutPart, ChunkRecord)> {
        let part = self.parts.pop_front()?;
        let is_last = self.parts.is_empty();
        let mut record = ChunkRecord {
            id: self.record.id.clone(),
            header: String::new(),
            status: self.record.status.clone(),
            segments: 0..0,
            reverse: 0..0,
            hash: part.hash,
            saved: part.saved,
            part: Some(RecordPart {
                is_first: !std::mem::replace(&mut self.is_begun, true),
                is_last,
                is_reverse: part.is_reverse,
                weight: part.weight,
                vectors: self.vectors,
            }),
            ..self.record
        };
        if is_last {
            record.header = std::mem::take(&mut self.record.header);
        }
        Some((part, record))
    }
}

impl CutPart {
    /// Whether it must be computed.
    pub fn is_missing(&self) -> bool {
        self.saved.is_none()
    }

    /// Whether it is of the reverse complement.
    pub fn is_reverse(&self) -> bool {
        self.is_reverse
    }
}

/// Drops the parts of each strand before the last one that is saved: of a pooled part, the vector
/// up to its end is.
fn drop_joined(parts: &mut VecDeque<CutPart>) {
    for is_reverse in [true, false] {
        let is_saved = |part: &CutPart| part.is_reverse == is_reverse && part.saved.is_some();
        if let Some(last) = parts.iter().rposition(is_saved) {
            let first = parts.iter().position(|part| part.is_reverse == is_reverse);
            parts.drain(first.unwrap_or(last)..last);
        }
    }
}
