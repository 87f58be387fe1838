//! Chunks, the unit that is kept in memory: consecutive records from as many files as are needed to
//! fill a chunk, cut into windows and grouped into batches. Sequences of different files share
//! batches; rows are written in input order.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::dedup::Origin;
use super::task_reader::FileEnd;
use crate::batch::{self, ModelInput};
use crate::engine::batch::Reduce;
use crate::journal::rows::{Mark, Spot};
use crate::report::FileReport;
use crate::tokenize::Encoded;

/// A record, ready for its row, or a part of a long one.
pub struct ChunkRecord {
    /// The record's header.
    pub header: String,
    /// The first word of the header.
    pub id: String,
    /// Residues or bases, a terminal `*` not counted.
    pub length: usize,
    /// `ok`, what was done to it, or why it was skipped.
    pub status: RecordStatus,
    /// Its windows, in `Chunk::segments`. None when it is skipped.
    pub segments: Range<usize>,
    /// Those of its reverse complement, with `--revcomp mean`.
    pub reverse: Range<usize>,
    /// Its index in its file.
    pub index: u64,
    /// A hash that identifies the record, or a part of it.
    pub hash: u64,
    /// Its row, when an earlier run saved it; then it has no windows.
    pub saved: Option<Spot>,
    /// Which part of a long record it is; none when it is a whole one.
    pub part: Option<RecordPart>,
}

/// Consecutive windows of a record that has too many to keep them all in memory. The parts follow
/// each other, in this chunk and the next ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordPart {
    /// Whether it is the record's first that is still to be done.
    pub is_first: bool,
    /// Whether it is the last part of the record. Only the last part has the header.
    pub is_last: bool,
    /// Whether it is of the reverse complement.
    pub is_reverse: bool,
    /// Number of tokens that the windows of its strand cover, up to its end.
    pub weight: usize,
    /// Vectors of the whole record, where each token has one.
    pub vectors: usize,
}

impl ChunkRecord {
    /// Whether it has windows: it is not skipped, and no earlier run saved its row.
    pub fn has_segments(&self) -> bool {
        !self.segments.is_empty()
    }

    /// What the journal knows its row by.
    pub fn mark(&self, vectors: usize) -> Mark {
        Mark {
            index: self.index,
            hash: self.hash,
            vectors: u32::try_from(vectors).expect("a record has fewer than 2^32 tokens"),
        }
    }
}

/// What happened to a record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordStatus {
    /// Cut at the length limit.
    pub truncated: bool,
    /// Embedded in windows.
    pub windowed: bool,
    /// Whether letters outside of the vocabulary became the unknown token.
    pub replaced: Replaced,
    /// Has gaps of an alignment, `-` or `.`, which are letters like any others.
    pub gaps: bool,
    /// Not embedded, and why.
    pub skipped: Option<String>,
}

/// How many of a record's tokens are the unknown one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Replaced {
    /// No letter was replaced.
    #[default]
    None,
    /// Some of them.
    Some,
    /// All: there is nothing in the sequence that the model knows.
    All,
}

impl RecordStatus {
    /// Counts a record of so many residues or bases in the report of its file.
    pub fn count(&self, length: usize, file: &mut FileReport) {
        file.records += 1;
        file.residues += length as u64;
        file.windowed += u64::from(self.windowed);
        file.truncated += u64::from(self.truncated);
        file.replaced += u64::from(self.replaced != Replaced::None);
        file.gaps += u64::from(self.gaps);
        file.skipped += u64::from(self.skipped.is_some());
    }
}

impl std::fmt::Display for RecordStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(why) = &self.skipped {
            return write!(f, "skipped: {why}");
        }
        let marks = [
            (self.truncated, "truncated"),
            (self.windowed, "windowed"),
            (self.replaced == Replaced::Some, "replaced"),
            (self.replaced == Replaced::All, "all-unknown"),
            (self.gaps, "gaps"),
        ];
        let mut words = marks.iter().filter(|(is, _)| *is).map(|(_, word)| *word);
        f.write_str(words.next().unwrap_or("ok"))?;
        words.try_for_each(|word| write!(f, ",{word}"))
    }
}

/// A window of a record, as one sequence for the engine.
pub struct Segment {
    /// What the model sees, and which of its tokens are pooled.
    pub input: ModelInput,
    /// The output of the engine to use.
    pub reduce: Reduce,
    /// Where its numbers come from.
    pub origin: Origin,
    /// Whether the engine runs it as a part of an earlier segment's sequence.
    pub is_shared: bool,
}

impl Segment {
    /// Whether the engine runs it.
    pub fn is_run(&self) -> bool {
        matches!(self.origin, Origin::Engine { .. })
    }

    /// How many tokens the engine computes for it.
    pub fn computed(&self) -> usize {
        if self.is_run() && !self.is_shared {
            self.input.tokens
        } else {
            0
        }
    }
}

/// An item of a chunk, in input order.
pub enum ChunkEntry {
    /// A record of the task with this index.
    Record(usize, ChunkRecord),
    /// A record that a policy forbids: the file fails, and only its end follows.
    Forbidden(usize, String),
    /// A file's end.
    End(FileEnd),
}

/// A part of the input that is worked on as a whole.
pub struct Chunk {
    /// Number of the chunk, from 0.
    pub number: u64,
    /// Records and file ends, in input order.
    pub entries: Vec<ChunkEntry>,
    /// Windows of all records.
    pub segments: Vec<Segment>,
    /// Tokens of all records, without special ones.
    pub encoded: Vec<Arc<Encoded>>,
    /// The segments of each batch, which are of one [`Reduce`].
    pub batches: Vec<Vec<usize>>,
    /// Compressed bytes of input that were read up to here.
    pub bytes: u64,
    /// Whether windows that see the same, as spans of a sequence do, are one sequence for the
    /// engine.
    pub shares: bool,
}

impl Chunk {
    /// Groups the segments that the engine runs into batches of at most so many tokens, each of one
    /// output of the graph. `padded`: as [`batch::group`] has it.
    pub fn group(&mut self, tokens: usize, padded: bool) {
        for reduce in [Reduce::Mean, Reduce::Max, Reduce::Both, Reduce::Tokens] {
            let segments: Vec<usize> = (0..self.segments.len())
                .filter(|&s| self.segments[s].reduce == reduce && self.segments[s].is_run())
                .collect();
            let together = self.sharing(&segments, reduce);
            for &shared in together.iter().flat_map(|segments| &segments[1..]) {
                self.segments[shared].is_shared = true;
            }
            let lengths: Vec<usize> = together
                .iter()
                .map(|segments| self.segments[segments[0]].input.tokens)
                .collect();
            let batches = batch::group(&lengths, tokens, padded).into_iter();
            let batches = batches.map(|batch| {
                let segments = batch
                    .into_iter()
                    .flat_map(|at| together[at].iter().copied());
                segments.collect()
            });
            self.batches.extend(batches);
        }
    }

    /// The segments, those together that are one sequence for the engine.
    fn sharing(&self, segments: &[usize], reduce: Reduce) -> Vec<Vec<usize>> {
        if !self.shares_rows(reduce) {
            return segments.iter().map(|&segment| vec![segment]).collect();
        }
        let mut together: Vec<Vec<usize>> = Vec::new();
        let mut places = HashMap::new();
        for &segment in segments {
            let place = *places
                .entry(self.segments[segment].input.sight())
                .or_insert(together.len());
            if place == together.len() {
                together.push(Vec::new());
            }
            together[place].push(segment);
        }
        together
    }

    /// Whether windows that see the same are one sequence where this is what the engine returns: it
    /// returns the vectors of all tokens once for each sequence.
    pub fn shares_rows(&self, reduce: Reduce) -> bool {
        self.shares && reduce != Reduce::Tokens
    }

    /// Tokens of all windows, the special ones included.
    pub fn tokens(&self) -> usize {
        let segments = self.segments.iter();
        segments.map(|segment| segment.input.tokens).sum()
    }

    /// The output of the engine to use for the batch.
    pub fn reduce(&self, index: usize) -> Reduce {
        self.batches[index]
            .first()
            .map_or(Reduce::Mean, |&s| self.segments[s].reduce)
    }
}
