//! Results -> rows -> files: puts what the workers return back into input order and writes it.
//!
//! Batches return in any order. A chunk is written when all its batches have returned and all
//! earlier chunks were written, so that the rows of each file are in input order and at most a few
//! chunks wait in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::chunk::{Chunk, ChunkEntry, ChunkRecord, RecordStatus, Segment};
use super::collect_error::{CollectError, Observer};
use super::dedup::{Origin, RowCache};
use super::execute::{BatchResult, SegmentIssue};
use super::long_records::{FinishedPart, LongRecord};
use super::output_files::{OutputFiles, RecordCounts};
use super::pending::PendingChunk;
use super::results::{ResultLocation, Results, locate};
use super::save::{SavedCounts, Saver};
use super::stored::{Stored, StoredRows};
use super::task::Task;
use super::task_reader::FileEnd;
use crate::engine::error::EngineError;
use crate::interrupt::Interrupt;
use crate::journal::facts::InputFingerprint;
use crate::journal::rows::Saved;

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
    /// A chunk whose batches are being computed.
    Chunk(Arc<Chunk>),
    /// A batch that is done.
    Done(FinishedBatch),
}

/// Writes the files of all tasks.
pub struct Collector<'a> {
    tasks: &'a [Task],
    hidden: usize,
    /// Chunks that are not written yet, by their numbers.
    pending: BTreeMap<u64, PendingChunk>,
    /// The number of the chunk that is written next.
    next: u64,
    /// Where the rows go.
    pub files: OutputFiles<'a>,
    /// Rows that are not in memory.
    stored: StoredRows,
    /// The long record whose parts are being received.
    long: LongRecord,
    cache: RowCache,
    /// What happened to cached rows.
    cached_issues: HashMap<u32, SegmentIssue>,
    /// Time spent writing.
    pub writing: Duration,
    /// Time of the engine, all workers together.
    pub computing: Duration,
    /// When the first batch returned.
    pub first: Option<Instant>,
    /// Batches that returned.
    pub batches: u64,
    /// Maximum number of tokens per batch, unless a single sequence has more.
    pub budget: usize,
    /// How many batches were filled up to each tenth of the budget.
    pub fill: [u64; 10],
    /// Asks to stop.
    pub interrupt: Interrupt,
}

/// The progress made by a chunk.
#[derive(Default)]
struct Progress {
    sequences: u64,
    tokens: u64,
    /// Files that ended.
    ended: u64,
}

/// Files that have all of their rows, and what was read for each.
type Whole<'c> = Vec<(usize, Option<&'c InputFingerprint>)>;

impl<'a> Collector<'a> {
    /// `restored`: for each task, the rows of an earlier run.
    pub fn new(
        tasks: &'a [Task],
        files: OutputFiles<'a>,
        hidden: usize,
        restored: Arc<Vec<Saved>>,
    ) -> Self {
        Self {
            tasks,
            hidden,
            pending: BTreeMap::new(),
            next: 0,
            files,
            stored: StoredRows::new(restored, hidden),
            long: LongRecord::default(),
            cache: RowCache::default(),
            cached_issues: HashMap::new(),
            writing: Duration::ZERO,
            computing: Duration::ZERO,
            first: None,
            batches: 0,
            budget: 0,
            fill: [0; 10],
            interrupt: Interrupt::default(),
        }
    }

    /// Handles a message, and writes all chunks that are complete. Returns the number of chunks
    /// written.
    ///
    /// # Errors
    /// If a batch failed, or a file cannot be written.
    pub fn take(
        &mut self,
        message: Message,
        observer: &mut dyn Observer,
    ) -> Result<usize, CollectError> {
        match message {
            Message::Chunk(chunk) => {
                self.pending.insert(chunk.number, PendingChunk::new(chunk));
            }
            Message::Done(done) => self.returned(done)?,
        }
        let mut written = 0;
        while let Some(entry) = self.pending.first_entry()
            && *entry.key() == self.next
            && entry.get().is_complete()
        {
            let pending = entry.remove();
            let started = Instant::now();
            self.write(&pending, observer)?;
            self.writing += started.elapsed();
            self.next += 1;
            written += 1;
        }
        self.tick(observer)?;
        Ok(written)
    }

    /// Saves what was computed, if it is time.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn tick(&mut self, observer: &mut dyn Observer) -> Result<(), CollectError> {
        let started = Instant::now();
        self.files.settle(0, observer)?;
        let Some(saver) = &self.files.saver else {
            return Ok(());
        };
        if saver.is_due() {
            self.save(false)?;
        } else if saver.is_full() {
            self.files.check_weights()?;
            if let Some(saver) = &mut self.files.saver {
                saver.flush()?;
            }
        }
        self.writing += started.elapsed();
        Ok(())
    }

    /// Saves what was computed for files that are not finished. Where it is the last time, all of
    /// it, and it is on the disk in the end; else what a chunk that will soon be written has is
    /// left.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&mut self, is_last: bool) -> Result<(), CollectError> {
        let Some(mut saver) = self.files.saver.take() else {
            return Ok(());
        };
        let result = self.save_to(&mut saver, is_last);
        self.files.saver = Some(saver);
        result
    }

    fn save_to(&mut self, saver: &mut Saver, is_last: bool) -> Result<(), CollectError> {
        self.files.check_weights()?;
        saver.flush()?;
        let files = &self.files;
        for pending in self.pending.values_mut() {
            if is_last || pending.since().is_some_and(|since| saver.is_overdue(since)) {
                pending.save(saver, self.tasks, self.hidden, |task| {
                    files.has_failed(task)
                })?;
            }
        }
        if is_last {
            saver.sync()?;
        } else {
            saver.begin_sync()?;
        }
        Ok(())
    }

    /// Ends a run that can't go on: files that are not finished leave nothing under their names,
    /// and what was computed for them is saved if that can be. Returns how much was saved in all.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn abandon(&mut self, observer: &mut dyn Observer) -> Result<SavedCounts, CollectError> {
        self.files.abandon();
        let settled = self.files.settle(usize::MAX, observer);
        self.save(true)?;
        settled?;
        let saver = self.files.saver.as_ref();
        Ok(saver.map_or(SavedCounts::default(), |saver| saver.counts))
    }

    fn returned(&mut self, done: FinishedBatch) -> Result<(), CollectError> {
        self.first.get_or_insert_with(Instant::now);
        self.computing += done.elapsed;
        self.batches += 1;
        let pending = self
            .pending
            .get_mut(&done.chunk)
            .expect("a chunk is announced before its batches are");
        let segments = &pending.chunk.batches[done.batch];
        let run = segments.iter().map(|&s| &pending.chunk.segments[s]);
        let tokens = run.map(Segment::computed).sum::<usize>();
        // 1 to 10 % is the first tenth; a sequence of more than the budget fills it.
        self.fill[(10 * tokens).div_ceil(self.budget.max(1)).clamp(1, 10) - 1] += 1;
        match done.result {
            Ok(result) => {
                pending.add(done.batch, result);
                Ok(())
            }
            Err(source) => Err(CollectError::Engine {
                files: names(self.tasks, &pending.chunk, segments),
                sequences: segments.len(),
                source,
            }),
        }
    }

    fn write(
        &mut self,
        pending: &PendingChunk,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        let mut whole = Vec::new();
        let written = self.write_entries(pending, &mut whole, observer);
        // Also where a later file was refused.
        let finished = self.files.finish(&mut whole, observer);
        let Progress {
            sequences,
            tokens,
            ended,
        } = written?;
        finished?;
        observer.advanced(sequences, tokens, pending.chunk.bytes, ended);
        Ok(())
    }

    /// Writes the rows of a chunk to the files, and adds files that are complete to `whole`.
    fn write_entries<'c>(
        &mut self,
        pending: &'c PendingChunk,
        whole: &mut Whole<'c>,
        observer: &mut dyn Observer,
    ) -> Result<Progress, CollectError> {
        let locations = locate(&pending.chunk);
        let (cached, issues) = self.exchange(pending, &locations);
        let results = pending.results(&locations, &cached, self.hidden);
        let mut progress = Progress::default();
        let mut current = None;
        for (at, entry) in pending.chunk.entries.iter().enumerate() {
            match entry {
                ChunkEntry::Record(task, record) => {
                    if current != Some(*task) {
                        self.files.flush(current, observer)?;
                        current = Some(*task);
                    }
                    let status = status_of(record, &issues);
                    let is_last = record.part.is_none_or(|part| part.is_last);
                    progress.sequences += u64::from(is_last);
                    let stored = pending.stored(at);
                    let is_saved = pending.is_saved(at);
                    let tokens = self.record(
                        *task,
                        record,
                        &status,
                        &results,
                        (stored, is_saved),
                        observer,
                    )?;
                    progress.tokens += tokens;
                }
                ChunkEntry::Forbidden(task, why) => {
                    self.files.flush(current.take(), observer)?;
                    self.files.fail(*task, why, observer);
                }
                ChunkEntry::End(end) => {
                    self.files.flush(current.take(), observer)?;
                    progress.ended += 1;
                    self.end(end, whole, observer);
                    self.files.finish(whole, observer)?;
                }
            }
        }
        self.files.flush(current, observer)?;
        self.files.detach();
        Ok(progress)
    }

    /// Writes a record, or handles a part of a long one. `stored` and `is_saved` refer to rows
    /// saved by an earlier run. Returns the number of tokens computed.
    fn record(
        &mut self,
        task: usize,
        record: &ChunkRecord,
        status: &RecordStatus,
        results: &Results,
        (stored, is_saved): (Option<&Stored>, bool),
        observer: &mut dyn Observer,
    ) -> Result<u64, CollectError> {
        let segments = record.segments.clone().chain(record.reverse.clone());
        let segments = segments.map(|at| &results.chunk.segments[at]);
        let is_run = segments.clone().any(Segment::is_run);
        let tokens = segments.map(|segment| segment.computed() as u64).sum();
        if let Some(part) = record.part {
            let part = FinishedPart {
                task,
                record,
                part,
                status,
                tokens,
                results,
                stored,
                pooling: &self.tasks[task].job.settings.pooling,
            };
            let Self {
                files,
                stored: rows,
                interrupt,
                long,
                ..
            } = self;
            long.take(part, files, rows, interrupt, observer)?;
            return Ok(tokens);
        }
        let counts = RecordCounts {
            tokens,
            is_restored: record.saved.is_some(),
            is_repeated: record.has_segments() && !is_run,
        };
        self.files.count(task, record, status, counts, observer);
        if !self.files.has_failed(task) {
            self.push(task, record, status, results, is_saved)?;
            if self.files.is_full() {
                self.files.flush(Some(task), observer)?;
            }
        }
        Ok(tokens)
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
        let pooling = &self.tasks[task].job.settings.pooling;
        let before = self.files.values().len();
        if let Some(spot) = record.saved {
            let path = self.files.layout(task).path.clone();
            let mut values = Vec::new();
            let stored = Stored::Saved(spot);
            self.stored.read(task, &path, &stored, &mut values)?;
            self.files.values().append(values.into());
        } else {
            results.append(self.files.values(), record, status, pooling);
        }
        let vectors = (self.files.values().len() - before) / self.hidden.max(1);
        self.files.begin_row(record, status, vectors);
        // Results that a device could not compute as intended are not saved, so that the next run
        // tries again.
        let is_safe = is_saved || !record.has_segments() || *status != record.status;
        self.files.mark(record.mark(vectors), is_safe);
        Ok(())
    }

    /// Handles the end of a file, and adds the file to `whole` if it did not fail.
    fn end<'c>(&mut self, end: &'c FileEnd, whole: &mut Whole<'c>, observer: &mut dyn Observer) {
        let FileEnd {
            task,
            warnings,
            failure,
            input,
        } = end;
        for warning in warnings {
            observer.warning(warning);
        }
        self.files.reports[*task]
            .warnings
            .extend_from_slice(warnings);
        match failure {
            Some(why) => self.files.fail(*task, why, observer),
            None => whole.push((*task, input.as_ref())),
        }
    }

    /// Keeps the pooled rows that later chunks may need, and takes those out that this one needs of
    /// earlier chunks. Returns these, and what happened on the devices to what each segment's
    /// numbers come from.
    fn exchange(
        &mut self,
        pending: &PendingChunk,
        locations: &[ResultLocation],
    ) -> (Vec<f32>, HashMap<usize, SegmentIssue>) {
        let mut cached = Vec::new();
        let mut issues = pending.issues.clone();
        let results = pending.results(locations, &[], self.hidden);
        for (at, segment) in pending.chunk.segments.iter().enumerate() {
            match segment.origin {
                Origin::Engine { keep: Some(place) } => {
                    self.cache.put(place, &results.pooled(at));
                    match issues.get(&at) {
                        Some(issue) => self.cached_issues.insert(place, issue.clone()),
                        None => self.cached_issues.remove(&place),
                    };
                }
                Origin::Engine { keep: None } => {}
                Origin::Segment(first) => {
                    if let Some(issue) = issues.get(&first).cloned() {
                        issues.insert(at, issue);
                    }
                }
                Origin::Cached(place) => {
                    cached.extend_from_slice(self.cache.get(place, self.hidden));
                    if let Some(issue) = self.cached_issues.get(&place) {
                        issues.insert(at, issue.clone());
                    }
                }
            }
        }
        (cached, issues)
    }
}

/// The files that a batch's sequences come from.
fn names(tasks: &[Task], chunk: &Chunk, segments: &[usize]) -> String {
    let mut names: Vec<String> = Vec::new();
    for entry in &chunk.entries {
        if let ChunkEntry::Record(task, record) = entry
            && segments
                .iter()
                .any(|s| record.segments.contains(s) || record.reverse.contains(s))
        {
            let name = tasks[*task].job.source.to_string();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names.join(", ")
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
