//! What is in memory at once: consecutive records, of as many files as it takes to fill a chunk, cut into windows and
//! grouped into batches. Sequences of different files share batches; rows leave in input order.

use std::ops::Range;
use std::sync::Arc;

use super::dedup::Origin;
use crate::batch::Window;
use crate::engine::Reduce;
use crate::journal::facts::Input;
use crate::journal::rows::{Mark, Spot};
use crate::manifest::Job;
use crate::tokenize::Encoded;

/// A job of the run, with what the model decides filled in.
pub struct Task {
    /// The job.
    pub job: Job,
    /// The most residues at once, and what neighbouring windows share.
    pub window: crate::settings::Window,
}

impl Task {
    /// What the engine has to give for this job's pooling.
    pub fn reduce(&self) -> Reduce {
        Reduce::of(self.job.settings.pooling)
    }
}

/// A record, ready for its row.
pub struct Item {
    /// The record's header.
    pub header: String,
    /// The first word of it.
    pub id: String,
    /// Residues or bases, a terminal `*` not counted.
    pub length: usize,
    /// `ok`, what was done to it, or why it was skipped.
    pub status: Status,
    /// Its windows, in `Chunk::segments`. None when it is skipped.
    pub segments: Range<usize>,
    /// Those of its reverse complement, with `--revcomp mean`.
    pub reverse: Range<usize>,
    /// Its index in its file.
    pub index: u64,
    /// Tells it from other records, or a part from other parts.
    pub hash: u64,
    /// Its row, when an earlier run saved it; then it has no windows.
    pub saved: Option<Spot>,
    /// Which part of a long record it is; none when it is a whole one.
    pub part: Option<Part>,
}

/// Consecutive windows of a record that has too many to be in memory at once. Its parts follow each other, in this chunk
/// and the next ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Whether it is the record's first that is still to be done.
    pub is_first: bool,
    /// Whether it is the record's last. It alone has the header.
    pub is_last: bool,
    /// Whether it is of the reverse complement.
    pub is_reverse: bool,
    /// Tokens that its strand's windows stand for, up to its end.
    pub weight: usize,
    /// Vectors of the whole record, where each token has one.
    pub vectors: usize,
}

impl Item {
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
pub struct Status {
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
    /// None, or none that stands for a letter outside of the vocabulary.
    #[default]
    None,
    /// Some of them.
    Some,
    /// All: there is nothing in the sequence that the model knows.
    All,
}

impl std::fmt::Display for Status {
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
    /// The record's tokens, in `Chunk::encoded`.
    pub record: usize,
    /// What is seen and what is kept.
    pub window: Window,
    /// The tokens `[start, end)` to pool over, the first special token being 0.
    pub range: Range<usize>,
    /// What the engine gives for it.
    pub reduce: Reduce,
    /// Where its numbers come from.
    pub origin: Origin,
}

impl Segment {
    /// Tokens, with the special ones.
    pub fn tokens(&self) -> usize {
        self.window.seen.len() + 2
    }

    /// Whether the engine runs it.
    pub fn is_run(&self) -> bool {
        matches!(self.origin, Origin::Engine { .. })
    }
}

/// What a chunk holds, in input order.
pub enum Entry {
    /// A record of the task with this index.
    Record(usize, Item),
    /// A record that its policy forbids: the file fails, and no more of it follows but its end.
    Forbidden(usize, String),
    /// A file's end: its task, what to tell the user, and why it failed if it did.
    End {
        /// The task's index.
        task: usize,
        /// What the user should know.
        warnings: Vec<String>,
        /// Why the file failed.
        failure: Option<String>,
        /// What was read.
        input: Option<Input>,
    },
}

/// A part of the input that is worked on as a whole.
pub struct Chunk {
    /// From 0.
    pub number: u64,
    /// Records and file ends, in input order.
    pub entries: Vec<Entry>,
    /// Windows of all records.
    pub segments: Vec<Segment>,
    /// Tokens of all records, without special ones.
    pub encoded: Vec<Arc<Encoded>>,
    /// Segments of each batch.
    pub batches: Vec<Vec<usize>>,
    /// Compressed bytes of input that were read up to here.
    pub bytes: u64,
}

impl Chunk {
    /// What the engine gives for a batch.
    pub fn reduce(&self, index: usize) -> Reduce {
        self.batches[index]
            .first()
            .map_or(Reduce::Mean, |&s| self.segments[s].reduce)
    }
}
