//! Results -> rows -> files: puts what the workers return back into input order and writes it.
//!
//! Batches return in any order. A chunk is written when all of its batches are there and every earlier chunk was
//! written, so each file's rows stand in input order, and at most a few chunks wait in memory.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::chunk::{Chunk, Entry, Item, Replaced, Segment, Status, Task};
use super::retry::{Note, Outcome};
use crate::engine::{EngineError, Reduce};
use crate::output::{self, Layout, OutputError, Rows, Sink};
use crate::report::FileReport;
use crate::settings::Pooling;

/// What a worker returns for a batch.
pub struct Done {
    /// The chunk's number.
    pub chunk: u64,
    /// The batch's index in it.
    pub batch: usize,
    /// Rows of the engine, and what happened on the way.
    pub outcome: Result<Outcome, EngineError>,
    /// How long the engine took.
    pub elapsed: Duration,
}

/// What reaches the collector.
pub enum Message {
    /// A chunk whose batches are under way.
    Chunk(Arc<Chunk>),
    /// A batch that is done.
    Done(Done),
}

/// Why collecting stopped.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// An output could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A batch failed.
    #[error("{files}: the model could not be run on a batch of {sequences} sequences: {source}")]
    Engine {
        /// The files whose sequences were in the batch.
        files: String,
        /// How many sequences.
        sequences: usize,
        /// Why.
        source: EngineError,
    },
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

struct Pending {
    chunk: Arc<Chunk>,
    results: Vec<Option<Vec<f32>>>,
    notes: HashMap<usize, Note>,
    left: usize,
}

impl Pending {
    /// A record's status, with what happened to it on its device.
    fn status(&self, item: &Item) -> Status {
        let mut status = item.status.clone();
        if !self.notes.is_empty() {
            for segment in item.segments.clone().chain(item.reverse.clone()) {
                match self.notes.get(&segment) {
                    Some(Note::Windowed) => status.windowed = true,
                    Some(Note::Failed(why)) => status.skipped = Some(why.clone()),
                    None => {}
                }
            }
        }
        status
    }
}

/// A task's file while it is written.
#[derive(Default)]
struct State {
    sink: Option<Box<dyn Sink>>,
    failed: bool,
}

/// Writes the files of all tasks.
pub struct Collector<'a> {
    tasks: &'a [Task],
    layouts: Vec<Layout>,
    hidden: usize,
    pending: BTreeMap<u64, Pending>,
    next: u64,
    states: Vec<State>,
    rows: Rows,
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
}

/// Values in a block of rows that goes to a sink at once.
const BLOCK: usize = 1 << 21;

impl<'a> Collector<'a> {
    /// `layouts` and `files` have an entry for each task.
    pub fn new(
        tasks: &'a [Task],
        layouts: Vec<Layout>,
        files: Vec<FileReport>,
        hidden: usize,
    ) -> Self {
        Self {
            tasks,
            layouts,
            hidden,
            pending: BTreeMap::new(),
            next: 0,
            states: tasks.iter().map(|_| State::default()).collect(),
            rows: Rows::new(hidden),
            files,
            writing: Duration::ZERO,
            computing: Duration::ZERO,
            first: None,
            batches: 0,
            budget: 0,
            fill: [0; 10],
        }
    }

    /// Takes a sink for the first task's, instead of making its file.
    pub fn give(&mut self, sink: Box<dyn Sink>) {
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
                let pending = Pending {
                    results: (0..left).map(|_| None).collect(),
                    notes: HashMap::new(),
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
        Ok(written)
    }

    fn returned(&mut self, done: Done) -> Result<(), CollectError> {
        self.first.get_or_insert_with(Instant::now);
        self.computing += done.elapsed;
        self.batches += 1;
        let pending = self
            .pending
            .get_mut(&done.chunk)
            .expect("a chunk is announced before its batches are");
        let segments = pending.chunk.batches[done.batch].iter();
        let tokens: usize = segments.map(|&s| pending.chunk.segments[s].tokens()).sum();
        // 1 to 10 % is the first tenth; a sequence of more than the budget fills it.
        self.fill[(10 * tokens).div_ceil(self.budget.max(1)).clamp(1, 10) - 1] += 1;
        match done.outcome {
            Ok(Outcome { rows, notes }) => {
                pending.results[done.batch] = Some(rows);
                for (segment, note) in notes {
                    // A failure says more than that windows were tried before.
                    if note != Note::Windowed || !pending.notes.contains_key(&segment) {
                        pending.notes.insert(segment, note);
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
            if let Entry::Record(task, item) = entry
                && segments
                    .iter()
                    .any(|s| item.segments.contains(s) || item.reverse.contains(s))
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
        pending: &Pending,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        let chunk = &pending.chunk;
        let places = places(chunk);
        let (mut sequences, mut tokens, mut ended) = (0, 0, 0);
        let mut current = None;
        for entry in &chunk.entries {
            match entry {
                Entry::Record(task, item) => {
                    if current != Some(*task) {
                        self.flush(current)?;
                        current = Some(*task);
                    }
                    let segments = item.segments.clone().chain(item.reverse.clone());
                    let count = segments.map(|s| chunk.segments[s].tokens() as u64).sum();
                    sequences += 1;
                    tokens += count;
                    let status = pending.status(item);
                    self.count(*task, item, &status, count, observer);
                    if !self.states[*task].failed {
                        self.push(*task, item, &status, chunk, &places, &pending.results);
                        if self.rows.values.len() >= BLOCK {
                            self.flush(current)?;
                        }
                    }
                }
                Entry::Forbidden(task, why) => {
                    self.flush(current)?;
                    current = None;
                    self.fail(*task, why, observer);
                }
                Entry::End {
                    task,
                    warnings,
                    failure,
                } => {
                    self.flush(current)?;
                    current = None;
                    ended += 1;
                    for warning in warnings {
                        observer.warning(warning);
                    }
                    self.files[*task].warnings.clone_from(warnings);
                    match failure {
                        Some(why) => self.fail(*task, why, observer),
                        None => self.finish(*task)?,
                    }
                }
            }
        }
        self.flush(current)?;
        observer.advanced(sequences, tokens, chunk.bytes, ended);
        Ok(())
    }

    fn count(
        &mut self,
        task: usize,
        item: &Item,
        status: &Status,
        tokens: u64,
        observer: &mut dyn Observer,
    ) {
        let file = &mut self.files[task];
        if let (Some(why), None) = (&status.skipped, &item.status.skipped) {
            file.failed_records += 1;
            observer.warning(&format!(
                "{}: record {:?}, {} long, has no embedding: {why}",
                self.tasks[task].job.source, item.id, item.length
            ));
        }
        file.records += 1;
        file.residues += item.length as u64;
        file.tokens += tokens;
        file.windowed += u64::from(status.windowed);
        file.truncated += u64::from(status.truncated);
        file.replaced += u64::from(status.replaced != Replaced::None);
        file.skipped += u64::from(status.skipped.is_some());
    }

    /// Appends a record's row.
    fn push(
        &mut self,
        task: usize,
        item: &Item,
        status: &Status,
        chunk: &Chunk,
        places: &[Place],
        results: &[Option<Vec<f32>>],
    ) {
        let rows = &mut self.rows;
        rows.ids.push(item.id.clone());
        rows.headers.push(item.header.clone());
        rows.lengths.push(item.length as u64);
        rows.status.push(status.to_string());
        let pooling = self.tasks[task].job.settings.pooling;
        let before = rows.values.len();
        let parts = |segments: &Range<usize>| {
            segments.clone().map(|s| {
                let Place { batch, row } = places[s];
                let values = results[batch].as_deref().unwrap_or_default();
                (&chunk.segments[s], values, row)
            })
        };
        match pooling {
            // One vector of NaN, or none at all.
            Pooling::None if status.skipped.is_some() => {}
            _ if status.skipped.is_some() => rows.values.resize(before + self.hidden, f32::NAN),
            Pooling::None => {
                for (segment, values, row) in parts(&item.segments) {
                    rows.values
                        .extend_from_slice(slice(values, row, &segment.range, self.hidden));
                }
            }
            Pooling::Mean | Pooling::MeanAll | Pooling::Cls | Pooling::Max => {
                join(rows, parts(&item.segments), pooling, self.hidden);
                if !item.reverse.is_empty() {
                    let mut other = Rows::new(self.hidden);
                    join(&mut other, parts(&item.reverse), pooling, self.hidden);
                    let forward = &mut rows.values[before..];
                    forward
                        .iter_mut()
                        .zip(&other.values)
                        .for_each(|(a, b)| *a = f32::midpoint(*a, *b));
                }
            }
        }
        rows.vectors
            .push((rows.values.len() - before) / self.hidden.max(1));
    }

    /// Hands the rows that were gathered to their file.
    fn flush(&mut self, task: Option<usize>) -> Result<(), CollectError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        if let Some(task) = task {
            let rows = std::mem::replace(&mut self.rows, Rows::new(self.hidden));
            self.sink(task)?.write(&rows)?;
        }
        Ok(())
    }

    fn sink(&mut self, task: usize) -> Result<&mut Box<dyn Sink>, OutputError> {
        let format = self.tasks[task].job.settings.format;
        let sink = &mut self.states[task].sink;
        if sink.is_none() {
            *sink = Some(output::create(format, self.layouts[task].clone())?);
        }
        Ok(sink.as_mut().expect("it was just made"))
    }

    fn finish(&mut self, task: usize) -> Result<(), CollectError> {
        if self.states[task].failed {
            return Ok(());
        }
        // A file without records has an output too: empty, and whole.
        self.sink(task)?;
        if let Some(sink) = self.states[task].sink.take() {
            sink.finish()?;
        }
        self.files[task].output = Some(self.layouts[task].path.clone());
        Ok(())
    }

    fn fail(&mut self, task: usize, why: &str, observer: &mut dyn Observer) {
        let state = &mut self.states[task];
        state.sink = None;
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

/// Where a segment's result lies: its batch, and its row there (pooled) or its first token's row (per token).
#[derive(Clone, Copy, Default)]
struct Place {
    batch: usize,
    row: usize,
}

fn places(chunk: &Chunk) -> Vec<Place> {
    let mut places = vec![Place::default(); chunk.segments.len()];
    for (batch, segments) in chunk.batches.iter().enumerate() {
        let mut token = 0;
        for (row, &segment) in segments.iter().enumerate() {
            let at = &chunk.segments[segment];
            let row = if at.reduce == Reduce::Tokens {
                token
            } else {
                row
            };
            places[segment] = Place { batch, row };
            token += at.tokens();
        }
    }
    places
}

/// The vectors of a range of a sequence's tokens.
fn slice<'v>(values: &'v [f32], row: usize, range: &Range<usize>, hidden: usize) -> &'v [f32] {
    &values[(row + range.start) * hidden..(row + range.end) * hidden]
}

/// Appends one pooled vector, joined from those of the windows.
fn join<'v>(
    rows: &mut Rows,
    parts: impl ExactSizeIterator<Item = (&'v Segment, &'v [f32], usize)>,
    pooling: Pooling,
    hidden: usize,
) {
    let parts = parts.map(|(segment, values, row)| {
        let part = &values[row * hidden..(row + 1) * hidden];
        (part, segment.range.len())
    });
    join_windows(&mut rows.values, parts, pooling == Pooling::Max, hidden);
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
                .for_each(|(best, x)| *best = best.max(*x));
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

/// The final path of a sample's file.
#[must_use]
pub fn output_path(folder: &Path, sample: &str, extension: &str) -> PathBuf {
    folder.join(format!("{sample}.{extension}"))
}
