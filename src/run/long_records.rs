//! Long records, which arrive in parts: the state between the first and the last part, and how the
//! row is written to its file.
//!
//! For per-token output, the vectors of the parts wait on disk until the last part confirms that
//! none failed, because a failed record has no vectors. If there is a journal, they are stored in
//! its shards, so that an interrupted run continues after the last one.

use super::chunk::{ChunkRecord, RecordPart, RecordStatus};
use super::collect_error::CollectError;
use super::collect_error::Observer;
use super::output_files::{OutputFiles, RecordCounts};
use super::results::Results;
use super::save::RowBlock;
use super::stored::{Stored, StoredRows};
use crate::interrupt::Interrupt;
use crate::output::{OutputError, Rows};
use crate::pooling::{Joined, Poolings, join_strands};

/// A part that was computed, or saved by an earlier run.
#[derive(Clone, Copy)]
pub struct FinishedPart<'p> {
    /// Index of the task in the group.
    pub task: usize,
    /// The part.
    pub record: &'p ChunkRecord,
    /// Where in its record it is.
    pub part: RecordPart,
    /// Its status, with what happened on its device.
    pub status: &'p RecordStatus,
    /// Tokens that were computed.
    pub tokens: u64,
    /// The results that its vectors are made from.
    pub results: &'p Results<'p>,
    /// Where its vectors are, if this run saved them already.
    pub stored: Option<&'p Stored>,
    /// The task's pooling.
    pub pooling: &'p Poolings,
}

/// The long record whose parts are being received.
#[derive(Default)]
pub struct LongRecord {
    /// What happened to the record so far.
    status: RecordStatus,
    /// Whether a device had trouble with it: then it is tried again by the next run.
    has_issue: bool,
    /// Tokens that were computed.
    tokens: u64,
    /// Whether a part of it was saved by an earlier run.
    is_restored: bool,
    /// Whether a part of it was computed by this run.
    has_segments: bool,
    /// Where each token has a vector: those of its parts.
    parts: Vec<Stored>,
    /// Where it is pooled: its vector so far, and that of the reverse complement.
    strands: [Joined; 2],
}

impl LongRecord {
    /// Handles the next part, and writes the record after the last one.
    pub fn take(
        &mut self,
        part: FinishedPart,
        files: &mut OutputFiles,
        rows: &mut StoredRows,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        if part.part.is_first {
            *self = Self {
                status: part.record.status.clone(),
                ..Self::default()
            };
            rows.spool.clear();
        }
        let has_issue = *part.status != part.record.status;
        self.has_issue |= has_issue;
        self.status.windowed |= part.status.windowed;
        if let Some(why) = &part.status.skipped {
            self.status.skipped.get_or_insert_with(|| why.clone());
        }
        self.tokens += part.tokens;
        self.is_restored |= part.record.saved.is_some();
        self.has_segments |= part.record.has_segments();
        if self.status.skipped.is_none() && !files.has_failed(part.task) {
            if part.pooling.is_per_token() {
                let stored = match (part.record.saved, part.stored) {
                    (Some(spot), _) => Stored::Saved(spot),
                    (None, Some(stored)) => stored.clone(),
                    (None, None) => store(part, has_issue, files, rows)?,
                };
                self.parts.push(stored);
            } else {
                self.join(part, files, rows)?;
            }
        }
        if part.part.is_last {
            return std::mem::take(self).finish(part, files, rows, interrupt, observer);
        }
        Ok(())
    }

    /// Joins a pooled part to those before it.
    fn join(
        &mut self,
        part: FinishedPart,
        files: &mut OutputFiles,
        rows: &mut StoredRows,
    ) -> Result<(), CollectError> {
        let FinishedPart { task, record, .. } = part;
        let strand = usize::from(part.part.is_reverse);
        if let Some(spot) = record.saved {
            let mut values = Vec::new();
            let path = &files.layout(task).path;
            rows.read(task, path, &Stored::Saved(spot), &mut values)?;
            self.strands[strand] = Joined {
                values,
                tokens: vec![part.part.weight],
            };
            return Ok(());
        }
        let joined = &mut self.strands[strand];
        for segments in [&record.segments, &record.reverse] {
            part.results.join(joined, segments.clone(), part.pooling);
        }
        if let Some(saver) = &mut files.saver
            && !self.has_issue
        {
            let mut block = RowBlock::part(task);
            block.values.extend_from_slice(&joined.values);
            block.mark(record.mark(1), false);
            saver.hold(block);
        }
        Ok(())
    }

    /// Counts the record, and writes its row. `last`: its last part.
    fn finish(
        self,
        last: FinishedPart,
        files: &mut OutputFiles,
        rows: &mut StoredRows,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        let FinishedPart {
            task,
            record,
            pooling,
            ..
        } = last;
        let counts = RecordCounts {
            tokens: self.tokens,
            is_restored: self.is_restored,
            is_repeated: self.has_segments && self.tokens == 0,
        };
        files.count(task, record, &self.status, counts, observer);
        if files.has_failed(task) {
            return Ok(());
        }
        let is_whole = self.status.skipped.is_none();
        if is_whole && pooling.is_per_token() {
            return self.write_parts(last, files, rows, interrupt, observer);
        }
        let vectors = pooling.missing_rows();
        files.begin_row(record, &self.status, vectors);
        if is_whole {
            let [forward, reverse] = self.strands;
            let mut vector = forward.finish(pooling);
            join_strands(&mut vector, &reverse.finish(pooling));
            files.values().append(vector.into());
        } else {
            let missing = vec![f32::NAN; vectors * last.results.hidden];
            files.values().append(missing.into());
        }
        // Its parts are saved.
        files.mark(record.mark(vectors), true);
        Ok(())
    }

    /// Writes a record with per-token output, part by part.
    fn write_parts(
        self,
        last: FinishedPart,
        files: &mut OutputFiles,
        stored: &mut StoredRows,
        interrupt: &Interrupt,
        observer: &mut dyn Observer,
    ) -> Result<(), CollectError> {
        let FinishedPart { task, record, .. } = last;
        let hidden = last.results.hidden;
        files.flush(Some(task), observer)?;
        if files.has_failed(task) {
            return Ok(());
        }
        let mut left = last.part.vectors;
        files.begin_row(record, &self.status, left);
        let mut block = files.take_rows();
        for part in &self.parts {
            if interrupt.signal().is_some() {
                return Err(CollectError::Stopped);
            }
            let mut values = Vec::new();
            stored.read(task, &files.layout(task).path, part, &mut values)?;
            let count = values.len() / hidden.max(1);
            block.values = values.into();
            left = left.saturating_sub(count);
            block.rows.after = left;
            if block.rows.is_empty() {
                block.rows.before = count;
            }
            if let Err(source) = files.write(task, block) {
                return files.refused(task, source, observer);
            }
            block = Rows::new(hidden).into();
        }
        stored.spool.clear();
        Ok(())
    }
}

/// Stores the vectors of a part until the last part of the record arrives.
fn store(
    part: FinishedPart,
    has_issue: bool,
    files: &mut OutputFiles,
    rows: &mut StoredRows,
) -> Result<Stored, CollectError> {
    let FinishedPart {
        task,
        record,
        results,
        ..
    } = part;
    let mut block = RowBlock::part(task);
    results.append(&mut block.values, record, &record.status, part.pooling);
    let count = block.values.len();
    let mut mark = record.mark(count / results.hidden.max(1));
    if has_issue {
        // Results that a device could not compute as intended must not be saved, so that the next
        // run tries again.
        mark.index = u64::MAX;
    }
    block.mark(mark, false);
    if files.saver.is_some() {
        files.check_weights()?;
    }
    if let Some(saver) = &mut files.saver
        && let Some(place) = saver.write(&block)?
    {
        return Ok(Stored::Shard(place, count));
    }
    if files.is_given() {
        return Ok(Stored::Values(block.values.to_singles()));
    }
    let stored = rows
        .spool
        .put(&files.layout(task).path, &block.values.to_singles());
    stored.map_err(|(path, source)| files.error(task, OutputError::Io { path, source }))
}
