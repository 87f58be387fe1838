//! Results -> rows -> files: puts what the workers return back into input order and writes it.
//!
//! Batches return in any order. A chunk is written when all of its batches are there and every earlier chunk was
//! written, so each file's rows stand in input order, and at most a few chunks wait in memory.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::chunk::{Chunk, ChunkEntry, ChunkRecord, RecordPart, RecordStatus, Replaced};
use super::dedup::{Origin, RowCache};
use super::execute::{BatchResult, SegmentIssue};
use super::long::{LongRecord, Spool, Stored};
use super::results::{ResultLocation, Results, locate};
use super::save::{FRAME_VALUES, RowBlock, SavedCounts, Saver};
use super::task::Task;
use super::task_reader::FileEnd;
use crate::engine::error::EngineError;
use crate::engine::session::Session;
use crate::interrupt::Interrupt;
use crate::journal::JournalError;
use crate::journal::facts::Input;
use crate::journal::rows::{RowReader, Saved};
use crate::output::{self, Layout, OutputError, Rows, Sink};
use crate::pooling::{Joined, Pooling, join_strands};
use crate::report::FileReport;
use crate::text::counted;

/// What a worker returns for a batch.
pub struct FinishedBatch {
    /// The chunk's number.
    pub chunk: u64,
    /// The batch's index in it.
    pub batch: usize,
    /// Rows of the engine, and what happened on the way.
    pub result: Result<BatchResult, EngineError>,
    /// How long the engine took.
    pub elapsed: Duration,
}

/// What reaches the collector.
pub enum Message {
    /// A chunk whose batches are under way.
    Chunk(Arc<Chunk>),
    /// A batch that is done.
    Done(FinishedBatch),
}

/// Why collecting stopped.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// An output could not be written.
    #[error("{source} (after {} of its vectors)", counted(*bytes, "byte"))]
    Output {
        /// Bytes of vectors that it was given.
        bytes: u64,
        /// Why.
        source: OutputError,
    },
    /// What is needed to go on later could not be kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The model's weights were changed while it ran.
    #[error(transparent)]
    Weights(#[from] seqembed_onnx::Error),
    /// A batch failed.
    #[error("{files}: the model failed on a batch of {}: {source}",
        counted(*sequences as u64, "sequence"))]
    Engine {
        /// The files whose sequences were in the batch.
        files: String,
        /// How many sequences.
        sequences: usize,
        /// Why.
        source: EngineError,
    },
    /// A long record was on its way to its file, and the run was asked to stop.
    #[error("the run was asked to stop")]
    Stopped,
}

/// What the user is told as it happens.
pub trait Observer {
    /// Something that does not stop the file.
    fn warning(&mut self, text: &str);
    /// A file failed.
    fn failure(&mut self, text: &str);
    /// Sequences and tokens that were done since the last call, input bytes that were read in all, and files ended.
    fn advanced(&mut self, sequences: u64, tokens: u64, bytes: u64, files: u64);
}

struct PendingChunk {
    chunk: Arc<Chunk>,
    results: Vec<Option<Vec<f32>>>,
    issues: HashMap<usize, SegmentIssue>,
    /// The entries whose rows were saved before they are written.
    saved: Vec<bool>,
    /// Those of them that are parts of long records, and where they are.
    stored: HashMap<usize, Stored>,
    left: usize,
}

impl PendingChunk {
    /// Whether something happened on its device to what a segment's numbers come from.
    fn has_issue(&self, segment: usize) -> bool {
        let first = match self.chunk.segments[segment].origin {
            Origin::Segment(first) => first,
            Origin::Engine { .. } | Origin::Cached(_) => segment,
        };
        self.issues.contains_key(&first)
    }
}

/// A record's status, with what happened to it on its device.
fn status_of(record: &ChunkRecord, issues: &HashMap<usize, SegmentIssue>) -> RecordStatus {
    let mut status = record.status.clone();
    if !issues.is_empty() {
        for segment in record.segments.clone().chain(record.reverse.clone()) {
            match issues.get(&segment) {
                Some(SegmentIssue::Windowed) => status.windowed = true,
                Some(SegmentIssue::Failed(why)) => status.skipped = Some(why.clone()),
                None => {}
            }
        }
    }
    status
}

/// A task's file while it is written.
#[derive(Default)]
struct FileState {
    sink: Option<Box<dyn Sink>>,
    /// Bytes of vectors that the sink was given.
    bytes: u64,
    failed: bool,
}

/// Writes the files of all tasks.
pub struct Collector<'a> {
    tasks: &'a [Task],
    layouts: Vec<Layout>,
    hidden: usize,
    pending: BTreeMap<u64, PendingChunk>,
    next: u64,
    states: Vec<FileState>,
    rows: Rows,
    /// Those of `rows`, for the journal.
    block: RowBlock,
    /// None where nothing is to be gone on with.
    saver: Option<Saver<'a>>,
    /// What computes.
    pub sessions: Vec<Arc<dyn Session>>,
    /// For each task, the rows of an earlier run.
    restored: Arc<Vec<Saved>>,
    reader: RowReader,
    /// The record whose parts are coming in.
    long: LongRecord,
    /// Its vectors, where nothing is saved.
    spool: Spool,
    /// Whether the rows go to a sink that was given, and not to files.
    is_given: bool,
    cache: RowCache,
    /// What happened to cached rows.
    cached_issues: HashMap<u32, SegmentIssue>,
    /// What is told of each file.
    pub files: Vec<FileReport>,
    /// Time spent writing.
    pub writing: Duration,
    /// Time of the engine, all workers together.
    pub computing: Duration,
    /// When the first batch returned.
    pub first: Option<Instant>,
    /// Batches that returned.
    pub batches: u64,
    /// The most tokens of a batch, unless a single sequence has more.
    pub budget: usize,
    /// How many batches were filled up to each tenth of the budget.
    pub fill: [u64; 10],
    /// Asks to stop.
    pub interrupt: Interrupt,
}

/// What is counted of a record.
#[derive(Clone, Copy)]
struct RecordCounts {
    /// Tokens that were computed.
    tokens: u64,
    /// Whether an earlier run saved it, or some of it.
    is_restored: bool,
    /// Whether there was something to compute, or to take from an equal sequence.
    has_segments: bool,
}

/// Values in a block of rows that goes to a sink at once.
const BLOCK: usize = 1 << 21;

/// Files that get their names at once, at most: so many more are open meanwhile.
const FINISHED_AT_ONCE: usize = 16;

impl<'a> Collector<'a> {
    /// `layouts`, `files` and `restored` have an entry for each task, as the saver has.
    pub fn new(
        tasks: &'a [Task],
        layouts: Vec<Layout>,
        files: Vec<FileReport>,
        hidden: usize,
        saver: Option<Saver<'a>>,
        restored: Arc<Vec<Saved>>,
    ) -> Self {
        Self {
            tasks,
            layouts,
            hidden,
            pending: BTreeMap::new(),
            next: 0,
            states: tasks.iter().map(|_| FileState::default()).collect(),
            rows: Rows::new(hidden),
            block: RowBlock::default(),
            saver,
            sessions: Vec::new(),
            restored,
            reader: RowReader::default(),
            long: LongRecord::default(),
            spool: Spool::default(),
            is_given: false,
            cache: RowCache::default(),
            cached_issues: HashMap::new(),
            files,
            writing: Duration::ZERO,
            computing: Duration::ZERO,
            first: None,
            batches: 0,
            budget: 0,
            fill: [0; 10],
            interrupt: Interrupt::default(),
        }
    }

    /// Takes a sink for the first task's, instead of making its file.
    pub fn give(&mut self, sink: Box<dyn Sink>) {
        self.is_given = true;
        if let Some(state) = self.states.first_mut() {
            state.sink = Some(sink);
        }
    }

    /// Takes a message, and writes all chunks that are complete. Returns how many were.
    ///
    /// # Errors
    /// When a batch failed or a file can't be written.
    pub fn take(
        &mut self,
        message: Message,
        observer: &mut dyn Observer,
    ) -> Result<usize, CollectError> {
        match message {
            Message::Chunk(chunk) => {
                let left = chunk.batches.len();
                let pending = PendingChunk {
                    results: (0..left).map(|_| None).collect(),
                    issues: HashMap::new(),
                    saved: Vec::new(),
                    stored: HashMap::new(),
                    left,
                    chunk,
                };
                self.pending.insert(pending.chunk.number, pending);
            }
            Message::Done(done) => self.returned(done)?,
        }
        let mut written = 0;
        while let Some(entry) = self.pending.first_entry()
            && *entry.key() == self.next
            && entry.get().left == 0
        {
            let pending = entry.remove();
            let started = Instant::now();
            self.write(&pending, observer)?;
            self.writing += started.elapsed();
            self.next += 1;
            written += 1;
        }
        self.tick()?;
        Ok(written)
    }

    /// Saves what was computed, if it is time.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn tick(&mut self) -> Result<(), CollectError> {
        if self.saver.as_ref().is_some_and(Saver::is_due) {
            let started = Instant::now();
            self.save()?;
            self.writing += started.elapsed();
        }
        Ok(())
    }

    /// Makes durable what was computed for files that are not finished.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&mut self) -> Result<(), CollectError> {
        if self.saver.is_some() {
            self.check_weights()?;
        }
        let Some(saver) = &mut self.saver else {
            return Ok(());
        };
        saver.flush()?;
        for pending in self.pending.values_mut() {
            let mut flags = std::mem::take(&mut pending.saved);
            let chunk = Arc::clone(&pending.chunk);
            let locations = locate(&chunk);
            let results = Results {
                chunk: &chunk,
                locations: &locations,
                batches: &pending.results,
                cached: &[],
                hidden: self.hidden,
            };
            flags.resize(chunk.entries.len(), false);
            let mut block = RowBlock::default();
            for (at, (entry, is_saved)) in chunk.entries.iter().zip(&mut flags).enumerate() {
                let ChunkEntry::Record(task, record) = entry else {
                    continue;
                };
                let mut parts = record.segments.clone().chain(record.reverse.clone());
                let is_there = record.has_segments()
                    && parts.all(|s| match locations[s] {
                        ResultLocation::Batch { batch, .. } => {
                            pending.results[batch].is_some() && !pending.has_issue(s)
                        }
                        // Known when the chunk is written: before, it may hold what an earlier chunk needs.
                        ResultLocation::Cached(_) => false,
                    });
                if *is_saved || self.states[*task].failed || !is_there {
                    continue;
                }
                let pooling = self.tasks[*task].job.settings.pooling;
                if record.part.is_some() {
                    // A pooled one joins those before it, which may not be there.
                    if pooling.is_per_token() {
                        let mut part = RowBlock::part(*task);
                        results.append(&mut part.values, record, &record.status, pooling);
                        let count = part.values.len();
                        part.mark(record.mark(count / self.hidden.max(1)), false);
                        if let Some(place) = saver.write(&part)? {
                            pending.stored.insert(at, Stored::Shard(place, count));
                        }
                        *is_saved = true;
                    }
                    continue;
                }
                if block.task != *task || block.values.len() >= FRAME_VALUES {
                    saver.write(&std::mem::take(&mut block))?;
                    block.task = *task;
                }
                let before = block.values.len();
                results.append(&mut block.values, record, &record.status, pooling);
                let vectors = (block.values.len() - before) / self.hidden.max(1);
                block.mark(record.mark(vectors), false);
                *is_saved = true;
            }
            pending.saved = flags;
            saver.write(&block)?;
        }
        Ok(saver.sync()?)
    }

    /// Whether all that was computed so far was computed with the weights that were loaded.
    fn check_weights(&self) -> Result<(), CollectError> {
        let weights = self.sessions.iter().filter_map(|session| session.weights());
        for weights in weights {
            weights.unchanged()?;
        }
        Ok(())
    }

    /// Ends a run that can't go on: files that are not finished leave nothing under their names, and what was computed
    /// for them is saved if that can be. Returns how much was saved in all.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn abandon(&mut self) -> Result<SavedCounts, CollectError> {
        for state in &mut self.states {
            state.sink = None;
        }
        self.save()?;
        Ok(self
            .saver
            .as_ref()
            .map_or(SavedCounts::default(), |saver| saver.counts))
    }

    fn returned(&mut self, done: FinishedBatch) -> Result<(), CollectError> {
        self.first.get_or_insert_with(Instant::now);
        self.computing += done.elapsed;
        self.batches += 1;
        let pending = self
            .pending
            .get_mut(&done.chunk)
            .expect("a chunk is announced before its batches are");
        let segments = pending.chunk.batches[done.batch].iter();
        let tokens: usize = segments
            .map(|&s| pending.chunk.segments[s].input.tokens)
            .sum();
        // 1 to 10 % is the first tenth; a sequence of more than the budget fills it.
        self.fill[(10 * tokens).div_ceil(self.budget.max(1)).clamp(1, 10) - 1] += 1;
        match done.result {
            Ok(BatchResult { rows, issues }) => {
                pending.results[done.batch] = Some(rows);
                for (segment, issue) in issues {
                    // A failure says more than that windows were tried before.
                    if issue != SegmentIssue::Windowed || !pending.issues.contains_key(&segment) {
                        pending.issues.insert(segment, issue);
                    }
                }
                pending.left -= 1;
                Ok(())
            }
            Err(source) => {
                let chunk = Arc::clone(&pending.chunk);
                let segments = &chunk.batches[done.batch];
                Err(CollectError::Engine {
                    files: self.names(&chunk, segments),
                    sequences: segments.len(),
                    source,
                })
            }
        }
    }

    /// The files that a batch's sequences come from.
    fn names(&self, chunk: &Chunk, segments: &[usize]) -> String {
        let mut names: Vec<String> = Vec::new();
        for entry in &chunk.entries {
            if let ChunkEntry::Record(task, record) = entry
                && segments
                    .iter()
                    .any(|s| record.segments.contains(s) || record.reverse.contains(s))
            {
                let name = self.tasks[*task].job.source.to_string();
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names.join(", ")
    }

    fn write(
        &mut self,
        pending: &PendingChunk,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        let mut whole = Vec::new();
        let put = self.put(pending, &mut whole, observer);
        // Also where a later file was refused.
        let finished = self.finish(&mut whole, observer);
        let (sequences, tokens, ended) = put?;
        finished?;
        observer.advanced(sequences, tokens, pending.chunk.bytes, ended);
        Ok(())
    }

    /// Puts a chunk's rows into the files. Those that have all of theirs are left in `whole`. Returns sequences, tokens and files that
    /// ended.
    fn put<'c>(
        &mut self,
        pending: &'c PendingChunk,
        whole: &mut Vec<(usize, Option<&'c Input>)>,
        observer: &mut dyn Observer,
    ) -> Result<(u64, u64, u64), CollectError> {
        let chunk = &pending.chunk;
        let locations = locate(chunk);
        let (cached, issues) = self.exchange(pending, &locations);
        let results = Results {
            chunk,
            locations: &locations,
            batches: &pending.results,
            cached: &cached,
            hidden: self.hidden,
        };
        let (mut sequences, mut tokens, mut ended) = (0, 0, 0);
        let mut current = None;
        for (at, entry) in chunk.entries.iter().enumerate() {
            match entry {
                ChunkEntry::Record(task, record) => {
                    if current != Some(*task) {
                        self.flush(current, observer)?;
                        current = Some(*task);
                    }
                    let segments = record.segments.clone().chain(record.reverse.clone());
                    let run = segments.filter(|&s| chunk.segments[s].is_run());
                    let count = run.map(|s| chunk.segments[s].input.tokens as u64).sum();
                    tokens += count;
                    let status = status_of(record, &issues);
                    if let Some(part) = record.part {
                        let stored = pending.stored.get(&at);
                        sequences += u64::from(part.is_last);
                        self.part(
                            *task,
                            record,
                            part,
                            (&status, count),
                            &results,
                            stored,
                            observer,
                        )?;
                        continue;
                    }
                    sequences += 1;
                    let counted = RecordCounts {
                        tokens: count,
                        is_restored: record.saved.is_some(),
                        has_segments: record.has_segments(),
                    };
                    self.count(*task, record, &status, counted, observer);
                    if !self.states[*task].failed {
                        let is_saved = pending.saved.get(at).is_some_and(|is_saved| *is_saved);
                        self.push(*task, record, &status, &results, is_saved)?;
                        if self.rows.values.len() >= BLOCK {
                            self.flush(current, observer)?;
                        }
                    }
                }
                ChunkEntry::Forbidden(task, why) => {
                    self.flush(current, observer)?;
                    current = None;
                    self.fail(*task, why, observer);
                }
                ChunkEntry::End(FileEnd {
                    task,
                    warnings,
                    failure,
                    input,
                }) => {
                    self.flush(current, observer)?;
                    current = None;
                    ended += 1;
                    for warning in warnings {
                        observer.warning(warning);
                    }
                    self.files[*task].warnings.extend_from_slice(warnings);
                    match (failure, input) {
                        (Some(why), _) => self.fail(*task, why, observer),
                        (None, input) => whole.push((*task, input.as_ref())),
                    }
                    if whole.len() == FINISHED_AT_ONCE {
                        self.finish(whole, observer)?;
                    }
                }
            }
        }
        self.flush(current, observer)?;
        Ok((sequences, tokens, ended))
    }

    fn count(
        &mut self,
        task: usize,
        record: &ChunkRecord,
        status: &RecordStatus,
        counted: RecordCounts,
        observer: &mut dyn Observer,
    ) {
        let RecordCounts {
            tokens,
            is_restored,
            has_segments,
        } = counted;
        let file = &mut self.files[task];
        if let (Some(why), None) = (&status.skipped, &record.status.skipped) {
            file.failed_records += 1;
            observer.warning(&format!(
                "{}: record {:?}, {} long, has no embedding: {why}",
                self.tasks[task].job.source, record.id, record.length
            ));
        }
        file.records += 1;
        file.residues += record.length as u64;
        file.tokens += tokens;
        file.restored += u64::from(is_restored);
        file.repeated += u64::from(tokens == 0 && has_segments);
        file.windowed += u64::from(status.windowed);
        file.truncated += u64::from(status.truncated);
        file.replaced += u64::from(status.replaced != Replaced::None);
        file.gaps += u64::from(status.gaps);
        file.skipped += u64::from(status.skipped.is_some());
    }

    /// Takes a part of a long record, and writes the record after the last. `stored`: where its vectors are, if they were
    /// saved already.
    // What belongs to a part.
    #[allow(clippy::too_many_arguments)]
    fn part(
        &mut self,
        task: usize,
        record: &ChunkRecord,
        part: RecordPart,
        (status, tokens): (&RecordStatus, u64),
        results: &Results,
        stored: Option<&Stored>,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        if part.is_first {
            self.long = LongRecord {
                status: record.status.clone(),
                ..LongRecord::default()
            };
            self.spool.clear();
        }
        let has_issue = *status != record.status;
        let long = &mut self.long;
        long.has_issue |= has_issue;
        long.status.windowed |= status.windowed;
        if let Some(why) = &status.skipped {
            long.status.skipped.get_or_insert_with(|| why.clone());
        }
        long.tokens += tokens;
        long.is_restored |= record.saved.is_some();
        long.has_segments |= record.has_segments();
        let pooling = self.tasks[task].job.settings.pooling;
        if long.status.skipped.is_none() && !self.states[task].failed {
            if pooling.is_per_token() {
                let stored = match (record.saved, stored) {
                    (Some(spot), _) => Stored::Saved(spot),
                    (None, Some(stored)) => stored.clone(),
                    (None, None) => self.store(task, record, results, has_issue)?,
                };
                self.long.parts.push(stored);
            } else {
                self.join(task, record, part, results, pooling)?;
            }
        }
        if !part.is_last {
            return Ok(());
        }
        let long = std::mem::take(&mut self.long);
        let counted = RecordCounts {
            tokens: long.tokens,
            is_restored: long.is_restored,
            has_segments: long.has_segments,
        };
        self.count(task, record, &long.status, counted, observer);
        if self.states[task].failed {
            return Ok(());
        }
        let mut values = Vec::new();
        let is_whole = long.status.skipped.is_none();
        if pooling.is_per_token() {
            if is_whole {
                return self.write_long(task, record, part, &long, observer);
            }
        } else if is_whole {
            let [forward, reverse] = long.strands;
            values = forward.finish(pooling.reduce());
            let other = reverse.finish(pooling.reduce());
            join_strands(&mut values, &other);
        } else {
            values.resize(self.hidden, f32::NAN);
        }
        let vectors = values.len() / self.hidden.max(1);
        self.head(record, &long.status, vectors);
        self.rows.values.extend(values);
        // Its parts are saved.
        self.block.mark(record.mark(vectors), true);
        Ok(())
    }

    /// Keeps the vectors of a long record's part until its last one is there.
    fn store(
        &mut self,
        task: usize,
        record: &ChunkRecord,
        results: &Results,
        has_issue: bool,
    ) -> Result<Stored, CollectError> {
        let mut block = RowBlock::part(task);
        results.append(&mut block.values, record, &record.status, Pooling::None);
        let count = block.values.len();
        let mut mark = record.mark(count / self.hidden.max(1));
        if has_issue {
            // What a device could not do as it was meant is tried again by the next run, which must not find it.
            mark.index = u64::MAX;
        }
        block.mark(mark, false);
        if self.saver.is_some() {
            self.check_weights()?;
        }
        if let Some(saver) = &mut self.saver
            && let Some(place) = saver.write(&block)?
        {
            return Ok(Stored::Shard(place, count));
        }
        if self.is_given {
            return Ok(Stored::Values(block.values));
        }
        let stored = self.spool.put(&self.layouts[task], &block.values);
        stored.map_err(|(path, source)| CollectError::Output {
            bytes: self.states[task].bytes,
            source: OutputError::Io { path, source },
        })
    }

    /// Joins a pooled part to those before it.
    fn join(
        &mut self,
        task: usize,
        record: &ChunkRecord,
        part: RecordPart,
        results: &Results,
        pooling: Pooling,
    ) -> Result<(), CollectError> {
        let strand = usize::from(part.is_reverse);
        if let Some(spot) = record.saved {
            let mut values = Vec::new();
            self.read(task, &Stored::Saved(spot), &mut values)?;
            self.long.strands[strand] = Joined {
                values,
                tokens: part.weight,
            };
            return Ok(());
        }
        let joined = &mut self.long.strands[strand];
        for segments in [&record.segments, &record.reverse] {
            results.join(joined, segments.clone(), pooling);
        }
        if let Some(saver) = &mut self.saver
            && !self.long.has_issue
        {
            let mut block = RowBlock::part(task);
            block.values.clone_from(&joined.values);
            block.mark(record.mark(1), false);
            saver.hold(block);
        }
        Ok(())
    }

    /// Appends the vectors of a part.
    fn read(
        &mut self,
        task: usize,
        stored: &Stored,
        values: &mut Vec<f32>,
    ) -> Result<(), JournalError> {
        let read = match stored {
            Stored::Saved(spot) => {
                let saved = &self.restored[task];
                let read = self.reader.read(saved, *spot, self.hidden, values);
                read.map(drop)
            }
            Stored::Shard(place, count) => place.read(*count, values),
            Stored::Spool(start, count) => {
                let read = self.spool.read(*start, *count, values);
                read.map_err(|error| (self.layouts[task].path.clone(), error))
            }
            Stored::Values(own) => {
                values.extend_from_slice(own);
                Ok(())
            }
        };
        read.map_err(|(path, source)| JournalError::Io {
            path,
            doing: "read",
            source,
        })
    }

    /// Writes a long record whose tokens have a vector each, part by part.
    fn write_long(
        &mut self,
        task: usize,
        record: &ChunkRecord,
        part: RecordPart,
        long: &LongRecord,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        self.flush(Some(task), observer)?;
        if self.states[task].failed {
            return Ok(());
        }
        self.head(record, &long.status, part.vectors);
        let mut rows = std::mem::replace(&mut self.rows, Rows::new(self.hidden));
        let mut left = part.vectors;
        for stored in &long.parts {
            if self.interrupt.signal().is_some() {
                return Err(CollectError::Stopped);
            }
            self.read(task, stored, &mut rows.values)?;
            let count = rows.values.len() / self.hidden.max(1);
            left = left.saturating_sub(count);
            rows.after = left;
            if rows.is_empty() {
                rows.before = count;
            }
            let bytes = (rows.values.len() * size_of::<f32>()) as u64;
            self.states[task].bytes += bytes;
            let result = self.sink(task).and_then(|sink| sink.write(&rows));
            if let Err(source) = result {
                return self.refused(task, source, observer);
            }
            rows = Rows::new(self.hidden);
        }
        self.spool.clear();
        Ok(())
    }

    /// Begins a row.
    fn head(&mut self, record: &ChunkRecord, status: &RecordStatus, vectors: usize) {
        let rows = &mut self.rows;
        rows.ids.push(record.id.clone());
        rows.headers.push(record.header.clone());
        rows.lengths.push(record.length as u64);
        rows.status.push(status.to_string());
        rows.vectors.push(vectors);
    }

    /// Keeps the pooled rows that later chunks may need, and takes those out that this one needs of earlier chunks. Returns
    /// these, and what happened on the devices to what each segment's numbers come from.
    fn exchange(
        &mut self,
        pending: &PendingChunk,
        locations: &[ResultLocation],
    ) -> (Vec<f32>, HashMap<usize, SegmentIssue>) {
        let mut cached = Vec::new();
        let mut issues = pending.issues.clone();
        for (at, (segment, location)) in pending.chunk.segments.iter().zip(locations).enumerate() {
            match (segment.origin, *location) {
                (Origin::Engine { keep: Some(place) }, ResultLocation::Batch { batch, row }) => {
                    let values = pending.results[batch].as_deref().unwrap_or_default();
                    let row = &values[row * self.hidden..(row + 1) * self.hidden];
                    self.cache.put(place, row);
                    match issues.get(&at) {
                        Some(issue) => self.cached_issues.insert(place, issue.clone()),
                        None => self.cached_issues.remove(&place),
                    };
                }
                (Origin::Engine { .. }, _) => {}
                (Origin::Segment(first), _) => {
                    if let Some(issue) = issues.get(&first).cloned() {
                        issues.insert(at, issue);
                    }
                }
                (Origin::Cached(place), _) => {
                    cached.extend_from_slice(self.cache.get(place, self.hidden));
                    if let Some(issue) = self.cached_issues.get(&place) {
                        issues.insert(at, issue.clone());
                    }
                }
            }
        }
        (cached, issues)
    }

    /// Appends a record's row. `is_saved`: the journal has it already.
    fn push(
        &mut self,
        task: usize,
        record: &ChunkRecord,
        status: &RecordStatus,
        results: &Results,
        is_saved: bool,
    ) -> Result<(), CollectError> {
        let pooling = self.tasks[task].job.settings.pooling;
        let before = self.rows.values.len();
        if let Some(spot) = record.saved {
            let mut values = std::mem::take(&mut self.rows.values);
            let read = self.read(task, &Stored::Saved(spot), &mut values);
            self.rows.values = values;
            read?;
        } else {
            results.append(&mut self.rows.values, record, status, pooling);
        }
        let vectors = (self.rows.values.len() - before) / self.hidden.max(1);
        self.head(record, status, vectors);
        // What a device could not do as it was meant is tried again by the next run.
        let is_safe = is_saved || !record.has_segments() || *status != record.status;
        self.block.mark(record.mark(vectors), is_safe);
        Ok(())
    }

    /// Hands the rows that were gathered to their file.
    fn flush(
        &mut self,
        task: Option<usize>,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        if let Some(task) = task {
            let rows = std::mem::replace(&mut self.rows, Rows::new(self.hidden));
            let result = self.sink(task).and_then(|sink| sink.write(&rows));
            let bytes = (rows.values.len() * size_of::<f32>()) as u64;
            self.states[task].bytes += bytes;
            let mut block = std::mem::take(&mut self.block);
            block.task = task;
            block.values = rows.values;
            if let Some(saver) = &mut self.saver {
                saver.hold(block);
            }
            if let Err(source) = result {
                self.refused(task, source, observer)?;
            }
        }
        Ok(())
    }

    /// An output can't be written. Where it is its own fault, others can be.
    fn refused(
        &mut self,
        task: usize,
        source: OutputError,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        if let OutputError::Folder { .. } = source {
            self.fail(task, &source.to_string(), observer);
            return Ok(());
        }
        Err(CollectError::Output {
            bytes: self.states[task].bytes,
            source,
        })
    }

    fn sink(&mut self, task: usize) -> Result<&mut Box<dyn Sink>, OutputError> {
        let format = self.tasks[task].job.settings.format;
        let sink = &mut self.states[task].sink;
        if sink.is_none() {
            *sink = Some(output::create(format, self.layouts[task].clone())?);
        }
        Ok(sink.as_mut().expect("it was just made"))
    }

    /// Gives files their names that have all of their rows: several at a time, as each waits for the disk.
    fn finish(
        &mut self,
        whole: &mut Vec<(usize, Option<&Input>)>,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        whole.retain(|&(task, _)| !self.states[task].failed);
        if !whole.is_empty() {
            self.check_weights()?;
        }
        let sinks = whole.iter().map(|&(task, _)| {
            // A file without records has an output too: empty, and whole.
            self.sink(task)?;
            Ok(self.states[task].sink.take())
        });
        let sinks: Vec<Result<_, OutputError>> = sinks.collect();
        let finished: Vec<_> = sinks
            .into_par_iter()
            .map(|sink| sink?.map_or(Ok(Vec::new()), Sink::finish))
            .collect();
        for ((task, input), result) in whole.drain(..).zip(finished) {
            let files = match result {
                Ok(files) => files,
                Err(source) => {
                    self.refused(task, source, observer)?;
                    continue;
                }
            };
            self.files[task].output = Some(self.layouts[task].path.clone());
            // A record without numbers for the device's sake is tried again by the next run.
            if let (Some(saver), Some(input)) = (&mut self.saver, input)
                && self.files[task].failed_records == 0
            {
                saver.finish(task, input, files, &self.files[task])?;
            }
        }
        Ok(())
    }

    fn fail(&mut self, task: usize, why: &str, observer: &mut dyn Observer) {
        let state = &mut self.states[task];
        state.sink = None;
        if let Some(saver) = &mut self.saver {
            saver.drop_task(task);
        }
        if !std::mem::replace(&mut state.failed, true) {
            self.files[task].error = Some(why.to_owned());
            observer.failure(why);
        }
    }

    /// Whether a task has failed so far.
    pub fn any_failed(&self) -> bool {
        self.states.iter().any(|state| state.failed)
    }
}

/// The final path of a sample's file.
#[must_use]
pub fn output_path(folder: &Path, sample: &str, extension: &str) -> PathBuf {
    folder.join(format!("{sample}.{extension}"))
}
