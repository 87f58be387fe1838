//! Writes the tables of all files, and saves the scores of files that are not finished.

use std::time::{Duration, Instant};

use super::continued;
use super::error::ScoreError;
use super::options::ScoreOptions;
use super::outputs::{self, FileTables};
use super::scored_records::ScoredRecord;
use super::scoring::{Entry, Scored};
use super::vocabulary::TokenNames;
use crate::engine::select::SelectedDevice;
use crate::report::{FileReport, Totals};
use crate::run::collect_error::Observer;
use crate::run::group::Group;
use crate::run::loaded_device::LoadedDevice;
use crate::run::options::Options;
use crate::run::save::{RowBlock, SavedCounts, Saver};
use crate::run::stored::{Stored, StoredRows};
use crate::run::task_reader::FileEnd;

/// The tables of a group's files.
pub struct ScoreWriter<'a> {
    /// The jobs.
    pub group: &'a Group,
    /// What is scored, and how.
    pub scores: &'a ScoreOptions,
    /// Names of the model's tokens.
    pub names: &'a TokenNames,
    /// The ids of the tokens that a row of a record's matrix has.
    pub columns: &'a [u32],
    /// Options of the whole run.
    pub options: &'a Options,
    /// The devices with the model on them.
    pub devices: &'a [LoadedDevice<'a>],
    /// What the provenance names: the first device, and the graph.
    pub computed_by: (&'a SelectedDevice, &'a str),
    /// Saves scores of files that are not finished.
    pub saver: Saver<'a>,
    /// Scores that an earlier run saved.
    pub restored: StoredRows,
    /// The task whose tables are being written, and these.
    pub file: Option<(usize, FileTables<'a>)>,
    /// The report of each file.
    pub reports: Vec<FileReport>,
    /// Batches by how full they were.
    pub fill: [u64; 10],
    /// How long it was computed.
    pub computing: Duration,
    /// How long it was written.
    pub writing: Duration,
}

impl<'a> ScoreWriter<'a> {
    /// Whether any file has failed.
    pub fn any_failed(&self) -> bool {
        self.reports.iter().any(|file| file.error.is_some())
    }

    /// Writes what was scored.
    pub fn take(&mut self, scored: Scored, observer: &mut dyn Observer) -> Result<(), ScoreError> {
        let started = Instant::now();
        let mut computed = 0;
        for (task, tokens) in scored.tokens {
            self.reports[task].tokens += tokens;
            computed += tokens;
        }
        for (sum, count) in self.fill.iter_mut().zip(scored.fill) {
            *sum += count;
        }
        self.computing += scored.computing;
        let (mut sequences, mut files) = (0, 0);
        let mut block = RowBlock::default();
        for entry in scored.entries {
            match entry {
                Entry::Record(record) => {
                    if block.task != record.task {
                        self.hold(&mut block, record.task);
                    }
                    self.record(*record, &mut block, observer)?;
                    sequences += 1;
                }
                Entry::Forbidden(task, why) => self.fail(task, why, observer),
                Entry::End(end) => {
                    self.hold(&mut block, end.task);
                    self.end(end, observer)?;
                    files += 1;
                }
            }
        }
        self.hold(&mut block, 0);
        if self.saver.is_full() || self.saver.is_due() {
            self.check_weights()?;
            self.saver.flush()?;
            self.saver.begin_sync()?;
        }
        self.writing += started.elapsed();
        observer.advanced(sequences, computed, scored.bytes, files);
        Ok(())
    }

    /// Adds what was done to the totals of the run. `budget`: tokens of a batch.
    pub fn account(&self, budget: usize, totals: &mut Totals) {
        totals.stages.computing += self.computing.as_secs_f64();
        totals.stages.writing += self.writing.as_secs_f64();
        totals.filled(budget, &self.fill);
        totals.batches += self.fill.iter().sum::<u64>();
    }

    /// Ends a run that cannot go on: what was scored of files that are not finished is saved.
    pub fn abandon(&mut self) -> Result<SavedCounts, ScoreError> {
        self.file = None;
        self.check_weights()?;
        self.saver.flush()?;
        self.saver.sync()?;
        Ok(self.saver.counts)
    }

    /// What was computed with weights that changed since they were loaded is not kept.
    fn check_weights(&self) -> Result<(), ScoreError> {
        let sessions = self.devices.iter().map(|device| &device.session);
        for weights in sessions.filter_map(|session| session.weights()) {
            weights.unchanged()?;
        }
        Ok(())
    }

    /// Hands rows to the saver; those that follow are of this task.
    fn hold(&mut self, block: &mut RowBlock, next: usize) {
        let full = std::mem::replace(
            block,
            RowBlock {
                task: next,
                ..RowBlock::default()
            },
        );
        if !full.marks.is_empty() {
            self.saver.hold(full);
        }
    }

    fn record(
        &mut self,
        mut record: ScoredRecord,
        block: &mut RowBlock,
        observer: &mut dyn Observer,
    ) -> Result<(), ScoreError> {
        let (task, columns) = (record.task, self.columns.len());
        if self.reports[task].error.is_some() {
            return Ok(());
        }
        if let Some(spot) = record.saved {
            let mut values = Vec::new();
            let path = outputs::main_path(
                &self.options.out,
                &self.group.tasks[task].job.sample,
                self.scores,
            );
            let stored = Stored::Saved(spot);
            self.restored.read(task, &path, &stored, &mut values)?;
            record.restore(&values, columns, self.scores);
        } else if !record.ids.is_empty() && !record.failed {
            let (mark, values) = record.row(columns, self.scores);
            block.mark(mark, false);
            block.values.extend_from_slice(&values);
        }
        if let (true, Some(why)) = (record.failed, &record.status.skipped) {
            observer.warning(&format!(
                "{}: record {:?}, {} long, has no score: {why}",
                self.group.tasks[task].job.source, record.id, record.length
            ));
        }
        let report = &mut self.reports[task];
        record.status.count(record.length, report);
        report.failed_records += u64::from(record.failed);
        report.restored += u64::from(record.saved.is_some());
        self.tables(task)?.put(&record)
    }

    /// The tables of a task's file.
    fn tables(&mut self, task: usize) -> Result<&mut FileTables<'a>, ScoreError> {
        let tables = match self.file.take() {
            Some((open, tables)) if open == task => tables,
            _ => {
                let (device, graph) = self.computed_by;
                let of = &self.group.tasks[task];
                FileTables::create(
                    &self.options.out,
                    &of.job.sample,
                    self.scores,
                    (self.names, self.columns.to_vec()),
                    &continued::provenance(self.group, of, self.scores, device, graph),
                )?
            }
        };
        Ok(&mut self.file.insert((task, tables)).1)
    }

    fn fail(&mut self, task: usize, why: String, observer: &mut dyn Observer) {
        observer.failure(&why);
        self.reports[task].error = Some(why);
        self.saver.drop_task(task);
        self.file = None;
    }

    fn end(&mut self, end: FileEnd, observer: &mut dyn Observer) -> Result<(), ScoreError> {
        let task = end.task;
        for warning in &end.warnings {
            observer.warning(warning);
        }
        self.reports[task].warnings.extend(end.warnings);
        if let Some(why) = end.failure {
            self.fail(task, why, observer);
        }
        if self.reports[task].error.is_some() {
            return Ok(());
        }
        self.check_weights()?;
        // A file without records has tables without rows.
        self.tables(task)?;
        let Some((_, tables)) = self.file.take() else {
            return Ok(());
        };
        let written = tables.finish()?;
        let sample = &self.group.tasks[task].job.sample;
        let path = outputs::main_path(&self.options.out, sample, self.scores);
        self.reports[task].output = Some(path);
        match end.input {
            // A record that the device could not compute is tried again by the next run.
            Some(input) if self.reports[task].failed_records == 0 => {
                let report = &self.reports[task];
                Ok(self.saver.finish(task, &input, written, report)?)
            }
            _ => {
                self.saver.drop_task(task);
                Ok(())
            }
        }
    }
}
