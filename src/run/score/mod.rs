//! Scores of sequences and variants by a model's language-model head: pseudo-likelihoods, the
//! log-probabilities of residues, and the effects of substitutions.
//!
//! Files are read, tokenized and cut into windows as for embeddings. Each record's windows, or a
//! copy of one for each masked position, are passes ([`passes`]), which share batches.

mod compute;
mod error;
mod method;
mod options;
mod outputs;
mod passes;
mod records;
mod table;
mod variants;
mod vocabulary;

use std::time::Instant;

pub use self::error::ScoreError;
pub use self::method::Method;
pub use self::options::ScoreOptions;
pub use self::table::TableFormat;
pub use self::variants::{Substitution, Variant, Variants};

use self::compute::Devices;
use self::outputs::FileTables;
use self::passes::{Pass, PassLayout};
use self::records::ScoredRecord;
use self::vocabulary::TokenNames;
use super::batch_limits;
use super::chunk::{Chunk, ChunkEntry};
use super::chunker::{ChunkLimits, Chunker};
use super::collect_error::Observer;
use super::context::{Resources, RunContext};
use super::group::{Group, group_jobs};
use super::group_run::device_report;
use super::loading::ModelLoading;
use super::options::Options;
use super::record_parts::PartTokens;
use super::task_reader::FileEnd;
use super::{REPORT, RunError, begun, check_folder, ended, select_devices};
use crate::engine::fault_injection::Faults;
use crate::manifest::Job;
use crate::records::Source;
use crate::report::{FileReport, Report};
use crate::targets::Targets;
use crate::threads;
use crate::trace::Trace;

/// Bytes of rows that are in memory at the same time.
const ROW_BYTES: usize = 256 << 20;

/// Batches of a worker that are laid out together.
const BATCHES_AHEAD: usize = 8;

/// Scores the sequences of all jobs, which are of one model, and writes the tables into
/// `options.out`. A file that cannot be read to its end has no tables, and the report says why.
///
/// # Errors
/// When nothing could be scored, or the run broke off. Finished tables stay.
pub fn score(
    jobs: Vec<Job>,
    options: &Options,
    scores: &ScoreOptions,
    observer: &mut dyn Observer,
    say: &dyn Fn(&str),
) -> Result<Report, ScoreError> {
    let started = Instant::now();
    threads::pool(options.threads)?;
    check_folder(&options.out)?;
    check_targets(&jobs, options, scores)?;
    let trace = Trace::off();
    let context = RunContext {
        options,
        started,
        faults: Faults::from_env().map_err(RunError::Faults)?,
        trace: &trace,
        say,
    };
    let mut report = begun(options);
    let mut resources = select_devices(&context, &mut report)?;
    for group in group_jobs(jobs, options, &resources.devices, say)? {
        let run = GroupScores {
            context: &context,
            resources: &mut resources,
            report: &mut report,
            scores,
        };
        run.run(group, observer)?;
    }
    ended(&mut report, started);
    Ok(report)
}

/// A group whose jobs are scored.
struct GroupScores<'a> {
    context: &'a RunContext<'a>,
    resources: &'a mut Resources,
    report: &'a mut Report,
    scores: &'a ScoreOptions,
}

impl GroupScores<'_> {
    fn run(self, mut group: Group, observer: &mut dyn Observer) -> Result<(), ScoreError> {
        let (options, scores) = (self.context.options, self.scores);
        let head = group.model.head()?;
        let width = head.form().vocabulary;
        group.head = Some(head);
        let names = TokenNames::read(&group.model, &*group.tokenizer, width)?;
        check_options(&group, scores, &names)?;
        let mask = match scores.method {
            Method::Unmasked => None,
            Method::Masked => Some(names.mask(group.model.folder())?),
        };
        let group = &group;
        let mut limits = limits(group, options, self.resources);
        let reduce = [scores.method.reduce()];
        let spec = group.spec(options, &reduce);
        let report = self.report;
        let mut loading = ModelLoading::new(group, self.context, self.resources, report);
        let prepared = loading.prepare(spec, None)?;
        let loader = loading.loader(spec, 1)?;
        let devices = loading.onto_devices(&loader, &prepared, options.threads)?;
        let workers: usize = devices.iter().map(|device| device.workers).sum();
        report.workers = report.workers.max(workers);
        let most = match scores.method {
            Method::Unmasked => (ROW_BYTES / (4 * width)).max(1),
            Method::Masked => usize::MAX,
        };
        let batch_tokens = limits.batch_tokens.min(most);
        let portion = (batch_tokens * workers * BATCHES_AHEAD).min(most);
        if scores.method == Method::Unmasked {
            // A chunk of records is a portion: rows are as wide as the vocabulary, not as vectors.
            limits.chunk_tokens = portion;
        }
        let reports = group.tasks.iter().map(|task| group.file_report(task));
        let mut run = ScoreRun {
            scores,
            names: &names,
            columns: records::columns(scores, &names),
            group,
            devices: Devices {
                all: &devices,
                group,
                width,
                interrupt: &options.interrupt,
                trace: self.context.trace,
            },
            layout: PassLayout {
                options: scores,
                special: group.tokenizer.special(),
                mask,
                batch_tokens,
                padded: limits.padded,
            },
            portion,
            options,
            file: None,
            reports: reports.collect(),
            batches: 0,
        };
        let mut chunker = Chunker::new(&group.tasks, &*group.tokenizer, limits);
        while let Some(chunk) = chunker.next() {
            run.chunk(chunk, observer)?;
            if options.strict && run.reports.iter().any(|file| file.error.is_some()) {
                break;
            }
        }
        report.totals.batches += run.batches;
        report.files.extend(run.reports);
        for device in &devices {
            report.totals.device_tokens += device.tokens();
            device.report(device_report(report, device));
        }
        Ok(())
    }
}

/// How much is read and laid out at a time.
fn limits(group: &Group, options: &Options, resources: &Resources) -> ChunkLimits {
    ChunkLimits {
        // No record is scored in parts.
        part_tokens: PartTokens {
            pooled: usize::MAX,
            each: usize::MAX,
        },
        ..batch_limits::limits(group, options, &resources.devices)
    }
}

/// Checks what the options ask of the model, and variants against the sequences.
fn check_options(
    group: &Group,
    scores: &ScoreOptions,
    names: &TokenNames,
) -> Result<(), ScoreError> {
    if (scores.scan || scores.variants.is_some()) && names.amino_acids().is_none() {
        return Err(ScoreError::NoLetters(group.model.info().name.clone()));
    }
    let Some((path, variants)) = &scores.variants else {
        return Ok(());
    };
    let jobs: Vec<Job> = group.tasks.iter().map(|task| task.job.clone()).collect();
    variants.check(path, &jobs, &*group.tokenizer, names)
}

/// Checks that nothing that is written is what is read.
fn check_targets(jobs: &[Job], options: &Options, scores: &ScoreOptions) -> Result<(), ScoreError> {
    let mut targets = Targets::default();
    if let Some((path, _)) = &scores.variants {
        targets.reads("the table of variants", path);
    }
    for job in jobs {
        if let Source::Path(path) = &job.source {
            targets.reads("an input", path);
        }
        targets.reads_model(&job.settings.model);
    }
    for job in jobs {
        for kind in outputs::kinds(scores) {
            let path = outputs::path(&options.out, &job.sample, kind, scores);
            targets.writes("an output", &path)?;
        }
    }
    targets.writes("the report", &options.out.join(REPORT))?;
    Ok(())
}

/// A group on its way.
struct ScoreRun<'a> {
    scores: &'a ScoreOptions,
    names: &'a TokenNames,
    columns: Vec<u32>,
    group: &'a Group,
    devices: Devices<'a>,
    layout: PassLayout<'a>,
    /// Tokens of passes that are computed together.
    portion: usize,
    options: &'a Options,
    /// The task whose file is being written, and its tables.
    file: Option<(usize, FileTables<'a>)>,
    reports: Vec<FileReport>,
    batches: u64,
}

impl<'a> ScoreRun<'a> {
    /// Scores the records of a chunk, and writes them.
    fn chunk(&mut self, mut chunk: Chunk, observer: &mut dyn Observer) -> Result<(), ScoreError> {
        let mut records = Vec::new();
        let mut entries = Vec::new();
        for entry in std::mem::take(&mut chunk.entries) {
            match entry {
                ChunkEntry::Record(task, record) => {
                    let ids = chunk
                        .segments
                        .get(record.segments.start)
                        .filter(|_| record.has_segments())
                        .map(|segment| &chunk.encoded[segment.input.record].ids[..]);
                    let ids = ids.unwrap_or_default();
                    entries.push(Entry::Record(records.len()));
                    records.push(ScoredRecord::new(task, record, ids, self.columns.len()));
                }
                ChunkEntry::Forbidden(task, why) => entries.push(Entry::Forbidden(task, why)),
                ChunkEntry::End(end) => entries.push(Entry::End(end)),
            }
        }
        let windows = records
            .iter()
            .map(|record| (record.id.as_str(), record.segments.clone()));
        let passes = passes::of_chunk(&chunk, windows, self.scores, self.layout.special);
        let mut rest = &passes[..];
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest.iter().take_while(|pass| {
                let before = tokens;
                tokens += chunk.segments[pass.segment].input.tokens;
                before == 0 || tokens <= self.portion
            });
            let (now, later) = rest.split_at(fits.count());
            self.compute(now, &chunk, &mut records, observer)?;
            rest = later;
        }
        let sequences = records.len() as u64;
        for entry in entries {
            match entry {
                Entry::Record(at) => self.write(&records[at], &chunk)?,
                Entry::Forbidden(task, why) => self.fail(task, why, observer),
                Entry::End(end) => self.end(end, observer)?,
            }
        }
        observer.advanced(sequences, 0, chunk.bytes, 0);
        Ok(())
    }

    /// Computes passes, and hands their rows to the records.
    fn compute(
        &mut self,
        passes: &[Pass],
        chunk: &Chunk,
        records: &mut [ScoredRecord],
        observer: &mut dyn Observer,
    ) -> Result<(), ScoreError> {
        let laid = self.layout.chunk(passes, chunk);
        let rows = self.devices.run(&laid)?;
        let width = self.devices.width;
        let results = rows.results(&laid, width);
        self.batches += laid.batches.len() as u64;
        for (segment, why) in &rows.failed {
            let record = &mut records[passes[*segment].record];
            record.failed = true;
            record.status.skipped.get_or_insert(why.clone());
        }
        let mut computed = 0;
        for (at, pass) in passes.iter().enumerate() {
            let input = &laid.segments[at].input;
            if laid.segments[at].is_run() {
                computed += input.tokens as u64;
                self.reports[records[pass.record].task].tokens += input.tokens as u64;
            }
            let own = results.pooled(at);
            let window = &chunk.segments[pass.segment].input;
            let first = match pass.what {
                passes::Taken::Masked(at) => at,
                _ => passes::kept(window, self.layout.special).start,
            };
            let columns = (&self.columns[..], self.layout.special);
            records[pass.record].take(pass, (&own, width), first, columns, self.scores);
        }
        observer.advanced(0, computed, chunk.bytes, 0);
        Ok(())
    }

    /// The tables of a task's file.
    fn tables(&mut self, task: usize) -> Result<Option<&mut FileTables<'a>>, ScoreError> {
        if self.reports[task].error.is_some() {
            return Ok(None);
        }
        if self.file.as_ref().is_none_or(|(open, _)| *open != task) {
            let info = self.group.model.info();
            let method = match self.scores.method {
                Method::Unmasked => "unmasked",
                Method::Masked => "masked",
            };
            let about = [
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
                ("model", info.name.clone()),
                ("weights_sha256", info.weights_sha256.clone()),
                ("method", method.to_owned()),
                ("precision", self.group.precision.to_string()),
            ];
            let sample = &self.group.tasks[task].job.sample;
            let columns = self.columns.clone();
            let tables = FileTables::create(
                &self.options.out,
                sample,
                self.scores,
                (self.names, columns),
                &about,
            )?;
            self.file = Some((task, tables));
        }
        Ok(self.file.as_mut().map(|(_, tables)| tables))
    }

    fn write(&mut self, record: &ScoredRecord, chunk: &Chunk) -> Result<(), ScoreError> {
        let report = &mut self.reports[record.task];
        record.status.count(record.length, report);
        report.failed_records += u64::from(record.failed);
        let encoded = chunk
            .segments
            .get(record.segments.start)
            .filter(|_| !record.segments.is_empty())
            .map(|segment| &*chunk.encoded[segment.input.record]);
        match self.tables(record.task)? {
            Some(tables) => tables.put(record, encoded),
            None => Ok(()),
        }
    }

    fn fail(&mut self, task: usize, why: String, observer: &mut dyn Observer) {
        observer.failure(&why);
        self.reports[task].error = Some(why);
        self.file = None;
    }

    fn end(&mut self, end: FileEnd, observer: &mut dyn Observer) -> Result<(), ScoreError> {
        for warning in &end.warnings {
            observer.warning(warning);
        }
        self.reports[end.task].warnings.extend(end.warnings);
        if let Some(why) = end.failure {
            self.fail(end.task, why, observer);
        }
        // What was computed with weights that changed since they were loaded gets no name.
        for weights in self
            .devices
            .all
            .iter()
            .filter_map(|device| device.session.weights())
        {
            weights.unchanged()?;
        }
        // A file without records has tables without rows.
        self.tables(end.task)?;
        if let Some((_, tables)) = self.file.take() {
            self.reports[end.task].output = tables.finish()?;
        }
        observer.advanced(0, 0, 0, 1);
        Ok(())
    }
}

/// An item of a chunk whose records are scored.
enum Entry {
    Record(usize),
    Forbidden(usize, String),
    End(FileEnd),
}
