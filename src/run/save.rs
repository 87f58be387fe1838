//! Saves rows that are computed but not in a finished file yet: every few seconds they are written
//! durably to the journal.
//!
//! What a killed run loses is the time since then. A file that is finished before that never sees
//! the journal's shards.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use crate::journal::facts::InputFingerprint;
use crate::journal::rows::{Mark, RowLocation};
use crate::journal::{Journal, JournalError, Ticket};
use crate::output::Written;
use crate::report::FileReport;
use crate::text::{are, counted};
use crate::vectors::Vectors;

/// Rows wait in memory up to this many bytes.
const WAITING_BYTES: usize = 128 << 20;

/// Approximate number of values in a frame, which bounds the memory used while waiting chunks are
/// saved.
pub const FRAME_VALUES: usize = 2 << 20;

/// Consecutive rows of one file that were handed to its sink.
#[derive(Default)]
pub struct RowBlock {
    /// The file's task.
    pub task: usize,
    /// The rows; none for one that need not be saved.
    pub marks: Vec<(Mark, bool)>,
    /// Their values.
    pub values: Vectors,
    /// Whether these are parts of records.
    pub is_part: bool,
}

impl RowBlock {
    /// For parts of records of a task.
    pub fn part(task: usize) -> Self {
        Self {
            task,
            is_part: true,
            ..Self::default()
        }
    }

    /// Appends a row's mark; `is_safe` when it need not be saved.
    pub fn mark(&mut self, mark: Mark, is_safe: bool) {
        self.marks.push((mark, is_safe));
    }

    /// The rows to be saved, in the form of a frame.
    fn rows(&self, hidden: usize) -> (Vec<Mark>, Vectors) {
        let mut marks = Vec::with_capacity(self.marks.len());
        let (mut all, mut wanted) = (self.values.clone(), Vectors::default());
        for (mark, is_safe) in &self.marks {
            let own = all.split_to(mark.vectors as usize * hidden);
            if !is_safe {
                marks.push(*mark);
                wanted.append(own);
            }
        }
        (marks, wanted)
    }
}

/// Saves rows, and notes finished files.
pub struct Saver<'a> {
    journal: &'a mut Journal,
    /// What the journal knows each task's file by.
    tickets: Vec<Ticket>,
    hidden: usize,
    waiting: VecDeque<RowBlock>,
    bytes: usize,
    every: Duration,
    last: Instant,
    /// How much was saved so far.
    pub counts: SavedCounts,
}

/// How much was saved of files that are not finished.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SavedCounts {
    /// Number of saved rows.
    pub rows: u64,
    /// Parts of long records.
    pub parts: u64,
}

impl fmt::Display for SavedCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, parts } = *self;
        write!(f, "{} of other files", counted(rows, "row"))?;
        if parts > 0 {
            write!(f, " and {} of long records", counted(parts, "part"))?;
        }
        write!(f, " {}", are(rows + parts))
    }
}

impl<'a> Saver<'a> {
    /// `tickets` has one for each task. `every` is how often rows are saved; a save costs one wait
    /// for the disk.
    pub fn new(
        journal: &'a mut Journal,
        tickets: Vec<Ticket>,
        hidden: usize,
        every: Duration,
    ) -> Self {
        Self {
            journal,
            tickets,
            hidden,
            waiting: VecDeque::new(),
            bytes: 0,
            every,
            last: Instant::now(),
            counts: SavedCounts::default(),
        }
    }

    /// Keeps rows that were passed to the sink of a file, until the file is finished or the rows
    /// are saved.
    pub fn hold(&mut self, block: RowBlock) {
        self.bytes += block.values.bytes();
        self.waiting.push_back(block);
    }

    /// Whether it is time to save.
    pub fn is_due(&self) -> bool {
        self.last.elapsed() >= self.every
    }

    /// Whether so much is held that it must be written.
    pub fn is_full(&self) -> bool {
        self.bytes >= WAITING_BYTES
    }

    /// Whether what was there at that time should be saved by now.
    pub fn is_overdue(&self, since: Instant) -> bool {
        since.elapsed() >= self.every
    }

    /// Lets go of the batches of a chunk that was written. What is [full](Saver::is_full) is
    /// written in a moment, and need not be copied.
    pub fn detach(&mut self) {
        if self.is_full() {
            return;
        }
        self.waiting
            .iter_mut()
            .for_each(|block| block.values.detach());
    }

    /// Writes all rows that are held, and forgets them.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn flush(&mut self) -> Result<(), JournalError> {
        while let Some(block) = self.waiting.pop_front() {
            if let Err(error) = self.write(&block) {
                // There may be enough space after the unfinished files are removed.
                self.waiting.push_front(block);
                return Err(error);
            }
        }
        self.bytes = 0;
        Ok(())
    }

    /// Writes rows now. Returns the location of their values, if there are any, which can be read
    /// immediately where they are [parts](RowBlock::is_part).
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&mut self, block: &RowBlock) -> Result<Option<RowLocation>, JournalError> {
        let (marks, values) = block.rows(self.hidden);
        if marks.is_empty() {
            return Ok(None);
        }
        let SavedCounts { rows, parts } = &mut self.counts;
        *(if block.is_part { parts } else { rows }) += marks.len() as u64;
        let ticket = &mut self.tickets[block.task];
        let place = self.journal.save(ticket, self.hidden, &marks, values)?;
        if block.is_part {
            // Parts are large: one at a time.
            self.journal.flush()?;
        }
        Ok(Some(place))
    }

    /// Has all that was written brought to the disk, while the run goes on.
    ///
    /// # Errors
    /// When the disk refused what was written before.
    pub fn begin_sync(&mut self) -> Result<(), JournalError> {
        self.last = Instant::now();
        self.journal.begin_sync()
    }

    /// Waits until all that was written is on the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        let result = self.journal.sync();
        self.last = Instant::now();
        result
    }

    /// Forgets the rows of a file that failed.
    pub fn drop_task(&mut self, task: usize) {
        self.waiting.retain(|block| block.task != task);
        self.bytes = self.waiting.iter().map(|block| block.values.bytes()).sum();
    }

    /// Notes that a file is finished.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(
        &mut self,
        task: usize,
        input: &InputFingerprint,
        files: Vec<Written>,
        report: &FileReport,
    ) -> Result<(), JournalError> {
        self.drop_task(task);
        let ticket = &self.tickets[task];
        self.journal.finish(ticket, input, files, report)
    }
}
