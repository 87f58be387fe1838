//! Output files: gathers the rows of each file, passes them to its sink and to the journal, and
//! renames complete files.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::chunk::{ChunkRecord, RecordStatus};
use super::collect_error::{CollectError, Observer};
use super::save::{RowBlock, Saver};
use super::task::Task;
use crate::engine::session::Session;
use crate::jobs::Promise;
use crate::journal::facts::InputFingerprint;
use crate::journal::rows::Mark;
use crate::output::{self, Block, Layout, OutputError, Rows, Sink, Written};
use crate::report::FileReport;
use crate::vectors::Vectors;

/// Number of values in a block of rows that is written to a sink.
const BLOCK_VALUES: usize = 1 << 21;

/// What is counted of a record.
#[derive(Clone, Copy)]
pub struct RecordCounts {
    /// Tokens that were computed.
    pub tokens: u64,
    /// Whether it was saved by an earlier run, at least in part.
    pub is_restored: bool,
    /// Whether it was copied from an identical sequence.
    pub is_repeated: bool,
}

/// A task's file while it is written.
#[derive(Default)]
struct FileState {
    sink: Option<Box<dyn Sink>>,
    /// Bytes of vectors that the sink was given.
    bytes: u64,
    has_failed: bool,
}

/// A complete file that another thread is bringing to the disk.
struct Finishing {
    task: usize,
    /// What was read for it.
    input: Option<InputFingerprint>,
    written: Promise<Result<Vec<Written>, OutputError>>,
}

/// Maximum number of files renamed at the same time, which stay open meanwhile.
const FINISHED_AT_ONCE: usize = 16;

/// The output files of all tasks.
pub struct OutputFiles<'a> {
    tasks: &'a [Task],
    layouts: Vec<Layout>,
    hidden: usize,
    states: Vec<FileState>,
    finishing: VecDeque<Finishing>,
    /// Rows of one file that its sink does not have yet.
    rows: Block,
    /// The same, for the journal.
    block: RowBlock,
    /// None where nothing is kept for a later run.
    pub saver: Option<Saver<'a>>,
    /// The sessions in use, which are recorded in the provenance.
    pub sessions: Vec<Arc<dyn Session>>,
    /// Whether the rows go to a sink that was given, and not to files.
    is_given: bool,
    /// The report of each file.
    pub reports: Vec<FileReport>,
}

impl<'a> OutputFiles<'a> {
    /// `layouts` and `reports` have an entry for each task, as the saver has.
    pub fn new(
        tasks: &'a [Task],
        layouts: Vec<Layout>,
        reports: Vec<FileReport>,
        hidden: usize,
        saver: Option<Saver<'a>>,
    ) -> Self {
        Self {
            tasks,
            layouts,
            hidden,
            states: tasks.iter().map(|_| FileState::default()).collect(),
            finishing: VecDeque::new(),
            rows: empty(hidden),
            block: RowBlock::default(),
            saver,
            sessions: Vec::new(),
            is_given: false,
            reports,
        }
    }

    /// Uses this sink for the first task instead of creating its file.
    pub fn give(&mut self, sink: Box<dyn Sink>) {
        self.is_given = true;
        if let Some(state) = self.states.first_mut() {
            state.sink = Some(sink);
        }
    }

    /// Whether the rows go to a sink that was given, and not to files.
    pub fn is_given(&self) -> bool {
        self.is_given
    }

    /// What a task's file is to be.
    pub fn layout(&self, task: usize) -> &Layout {
        &self.layouts[task]
    }

    /// Whether a task's file has failed.
    pub fn has_failed(&self, task: usize) -> bool {
        self.states[task].has_failed
    }

    /// Whether any file has failed so far.
    pub fn any_failed(&self) -> bool {
        self.states.iter().any(|state| state.has_failed)
    }

    /// Checks that all that was computed so far was computed with the weights that were loaded.
    ///
    /// # Errors
    /// When they have changed since.
    pub fn check_weights(&self) -> Result<(), CollectError> {
        let weights = self.sessions.iter().filter_map(|session| session.weights());
        for weights in weights {
            weights.unchanged()?;
        }
        Ok(())
    }

    /// Counts a record in its file's report.
    pub fn count(
        &mut self,
        task: usize,
        record: &ChunkRecord,
        status: &RecordStatus,
        counts: RecordCounts,
        observer: &mut dyn Observer,
    ) {
        let file = &mut self.reports[task];
        if let (Some(why), None) = (&status.skipped, &record.status.skipped) {
            file.failed_records += 1;
            observer.warning(&format!(
                "{}: record {:?}, {} long, has no embedding: {why}",
                self.tasks[task].job.source, record.id, record.length
            ));
        }
        status.count(record.length, file);
        file.tokens += counts.tokens;
        file.restored += u64::from(counts.is_restored);
        file.repeated += u64::from(counts.is_repeated);
    }

    /// The values of the rows that are gathered: a record's are appended before its row is
    /// [begun](OutputFiles::begin_row), or after it.
    pub fn values(&mut self) -> &mut Vectors {
        &mut self.rows.values
    }

    /// Starts the row of a record with this many vectors.
    pub fn begin_row(&mut self, record: &ChunkRecord, status: &RecordStatus, vectors: usize) {
        let rows = &mut self.rows.rows;
        rows.ids.push(record.id.clone());
        rows.headers.push(record.header.clone());
        rows.lengths.push(record.length as u64);
        rows.status.push(status.to_string());
        rows.vectors.push(vectors);
    }

    /// What the journal knows the row by; `is_safe` when it need not be saved.
    pub fn mark(&mut self, mark: Mark, is_safe: bool) {
        self.block.mark(mark, is_safe);
    }

    /// Whether enough rows are gathered for a sink.
    pub fn is_full(&self) -> bool {
        self.rows.values.len() >= BLOCK_VALUES
    }

    /// Returns the gathered rows.
    pub fn take_rows(&mut self) -> Block {
        std::mem::replace(&mut self.rows, empty(self.hidden))
    }

    /// Hands the rows that were gathered to their file.
    pub fn flush(
        &mut self,
        task: Option<usize>,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        let Some(task) = task.filter(|_| !self.rows.rows.is_empty()) else {
            return Ok(());
        };
        let rows = self.take_rows();
        let mut block = std::mem::take(&mut self.block);
        if let Some(saver) = &mut self.saver {
            block.task = task;
            block.values = rows.values.clone();
            saver.hold(block);
        }
        let result = self.write(task, rows);
        result.or_else(|source| self.refused(task, source, observer))
    }

    /// Hands rows to a task's sink.
    pub fn write(&mut self, task: usize, rows: Block) -> Result<(), OutputError> {
        self.states[task].bytes += (rows.values.len() * size_of::<f32>()) as u64;
        self.sink(task)?.put(rows)
    }

    /// Lets go of the batches of a chunk that was written.
    pub fn detach(&mut self) {
        for sink in self
            .states
            .iter_mut()
            .filter_map(|state| state.sink.as_mut())
        {
            sink.detach();
        }
        if let Some(saver) = &mut self.saver {
            saver.detach();
        }
    }

    /// Fails a file that cannot be written, if the cause does not affect other files.
    ///
    /// # Errors
    /// Where it is not.
    pub fn refused(
        &mut self,
        task: usize,
        source: OutputError,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        if let OutputError::Folder { .. } = source {
            self.fail(task, &source.to_string(), observer);
            return Ok(());
        }
        Err(self.error(task, source))
    }

    /// Why a task's file ends the run.
    pub fn error(&self, task: usize, source: OutputError) -> CollectError {
        CollectError::Output {
            bytes: self.states[task].bytes,
            source,
        }
    }

    fn sink(&mut self, task: usize) -> Result<&mut Box<dyn Sink>, OutputError> {
        let format = self.tasks[task].job.settings.format;
        let sink = &mut self.states[task].sink;
        if sink.is_none() {
            *sink = Some(output::create(format, self.layouts[task].clone())?);
        }
        Ok(sink.as_mut().expect("it was just made"))
    }

    /// Has complete files renamed by other threads, because each one waits for the disk.
    pub fn finish(
        &mut self,
        whole: &mut Vec<(usize, Option<&InputFingerprint>)>,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        whole.retain(|&(task, _)| !self.states[task].has_failed);
        if !whole.is_empty() {
            self.check_weights()?;
        }
        for (task, input) in whole.drain(..) {
            self.settle(
                self.finishing.len().saturating_sub(FINISHED_AT_ONCE - 1),
                observer,
            )?;
            // A file without records has an output too: empty, and whole.
            let sink = match self.sink(task) {
                Ok(_) => self.states[task].sink.take(),
                Err(source) => {
                    self.refused(task, source, observer)?;
                    continue;
                }
            };
            let finish = move || sink.map_or(Ok(Vec::new()), Sink::finish);
            self.finishing.push_back(Finishing {
                task,
                input: input.cloned(),
                written: Promise::new(finish),
            });
        }
        Ok(())
    }

    /// Notes which files have their names by now, in order. Waits for the first `count`.
    pub fn settle(
        &mut self,
        mut count: usize,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        while let Some(first) = self.finishing.front() {
            if count == 0 && !first.written.is_done() {
                break;
            }
            count = count.saturating_sub(1);
            let received = first.written.wait();
            let Some(Finishing { task, input, .. }) = self.finishing.pop_front() else {
                break;
            };
            let result = received.unwrap_or_else(|| {
                Err(OutputError::Inconsistent {
                    path: self.layouts[task].path.clone(),
                    what: "the thread that completed it is gone".to_owned(),
                })
            });
            let written = match result {
                Ok(written) => written,
                Err(source) => {
                    self.refused(task, source, observer)?;
                    continue;
                }
            };
            self.reports[task].output = Some(self.layouts[task].path.clone());
            // A record without numbers for the device's sake is tried again by the next run.
            if let (Some(saver), Some(input)) = (&mut self.saver, input)
                && self.reports[task].failed_records == 0
            {
                saver.finish(task, &input, written, &self.reports[task])?;
            }
        }
        Ok(())
    }

    /// Leaves a task's file out.
    pub fn fail(&mut self, task: usize, why: &str, observer: &mut dyn Observer) {
        let state = &mut self.states[task];
        state.sink = None;
        if let Some(saver) = &mut self.saver {
            saver.drop_task(task);
        }
        if !std::mem::replace(&mut state.has_failed, true) {
            self.reports[task].error = Some(why.to_owned());
            observer.failure(why);
        }
    }

    /// Leaves nothing of files that are not finished.
    pub fn abandon(&mut self) {
        for state in &mut self.states {
            state.sink = None;
        }
    }
}

/// No rows yet, of vectors `hidden` wide.
fn empty(hidden: usize) -> Block {
    Rows::new(hidden).into()
}

/// The final path of a sample's file.
#[must_use]
pub fn output_path(folder: &Path, sample: &str, extension: &str) -> PathBuf {
    folder.join(format!("{sample}.{extension}"))
}
