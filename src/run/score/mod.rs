//! Scores of sequences and variants by a model's language-model head: pseudo-likelihoods, the
//! log-probabilities of residues, and the effects of substitutions.
//!
//! Files are read, tokenized and cut into windows as for embeddings. Each record's windows, or a
//! copy of one for each masked position, are passes ([`passes`]), which share batches. One thread
//! reads, one lays passes out for the devices ([`scoring`]), and one writes ([`writing`]). What is
//! finished or saved is in the journal, as of embeddings ([`continued`]).

mod compute;
mod continued;
mod error;
mod method;
mod options;
mod outputs;
mod passes;
mod reading;
mod scored_records;
mod scoring;
mod table;
mod variants;
mod vocabulary;
mod writing;

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

pub use self::error::ScoreError;
pub use self::method::Method;
pub use self::options::ScoreOptions;
pub use self::reading::{Scan, ScoreRow, is_table, records, scan_beside, scans};
pub use self::table::TableFormat;
pub use self::variants::{Substitution, Variant, Variants};
pub use self::vocabulary::AMINO_ACIDS;

use self::compute::Devices;
use self::passes::PassLayout;
use self::scoring::Scorer;
use self::vocabulary::TokenNames;
use self::writing::ScoreWriter;
use super::batch_limits;
use super::chunker::{ChunkLimits, Chunker};
use super::collect_error::Observer;
use super::context::{Resources, RunContext};
use super::execute::Executor;
use super::group::{Group, group_jobs};
use super::group_run::device_report;
use super::loaded_device::LoadedDevice;
use super::loading::ModelLoading;
use super::options::Options;
use super::record_parts::PartTokens;
use super::resume::{self, Skipped};
use super::save::Saver;
use super::stored::StoredRows;
use super::table_check::TableCheck;
use super::{
    REPORT, RunError, begun, check_folder, ended, open_journal, select_devices, stop_if_asked,
};
use crate::engine::fault_injection::Faults;
use crate::engine::loader::PreparedModel;
use crate::journal::Journal;
use crate::journal::rows::Saved;
use crate::layers::LayerChoice;
use crate::manifest::Job;
use crate::output::Format;
use crate::records::Source;
use crate::report::{FileReport, Report};
use crate::settings::{Overrides, Pooling, Revcomp};
use crate::targets::Targets;
use crate::threads;
use crate::trace::Trace;

/// Bytes of rows that are in memory at the same time.
const ROW_BYTES: usize = 256 << 20;

/// Batches of a worker that are laid out together.
const BATCHES_AHEAD: usize = 8;

/// Scores the sequences of all jobs, and writes the tables into `options.out`. A file that cannot
/// be read to its end has no tables, and the report says why.
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
    let mut report = begun(options);
    let mut journal = open_journal(options, observer)?;
    let context = RunContext {
        options,
        started,
        faults: Faults::from_env().map_err(RunError::Faults)?,
        trace: &trace,
        say,
    };
    let mut resources = select_devices(&context, &mut report)?;
    let groups = group_jobs(jobs, options, &resources.devices, say)?;
    let groups = groups.into_iter().map(|group| with_names(group, scores));
    let groups: Vec<(Group, TokenNames)> = groups.collect::<Result<_, _>>()?;
    check_variants(&groups, scores)?;
    let mut files: Vec<(usize, FileReport)> = Vec::new();
    for (group, names) in groups {
        stop_if_asked(options)?;
        let run = GroupScores {
            context: &context,
            resources: &mut resources,
            report: &mut report,
            scores,
            names: &names,
        };
        files.extend(run.run(group, &mut journal, observer)?);
        if options.strict && files.iter().any(|(_, file)| file.error.is_some()) {
            break;
        }
    }
    files.sort_by_key(|(position, _)| *position);
    report.files = files.into_iter().map(|(_, file)| file).collect();
    ended(&mut report, started);
    Ok(report)
}

/// Settings of jobs that are scored: whatever these say of embeddings, it is not used.
#[must_use]
pub fn settings(overrides: Overrides) -> Overrides {
    Overrides {
        pooling: Some(Pooling::None.into()),
        layer: Some(LayerChoice::from(-1)),
        format: Some(Format::default()),
        revcomp: Some(Revcomp::default()),
        spans: None,
        whole: None,
        ..overrides
    }
}

/// A group with its head, and the names of its tokens. Checks that it can do what is asked for.
fn with_names(mut group: Group, scores: &ScoreOptions) -> Result<(Group, TokenNames), ScoreError> {
    let head = group.model.head()?;
    let width = head.form().vocabulary;
    group.head = Some(head);
    let names = TokenNames::read(&group.model, &*group.tokenizer, width)?;
    if (scores.scan || scores.variants.is_some()) && names.amino_acids().is_none() {
        return Err(ScoreError::NoLetters(group.model.info().name.clone()));
    }
    if scores.method == Method::Masked {
        names.mask(group.model.folder())?;
    }
    Ok((group, names))
}

/// Compares variants with the sequences of all files.
fn check_variants(groups: &[(Group, TokenNames)], scores: &ScoreOptions) -> Result<(), ScoreError> {
    let Some((path, variants)) = &scores.variants else {
        return Ok(());
    };
    let mut check = TableCheck::new(path);
    for (group, names) in groups {
        for task in &group.tasks {
            let source = &task.job.source;
            if *source == Source::Stdin {
                return Err(ScoreError::Stdin);
            }
            let compare = |record: &_| variants.compare(record, &*group.tokenizer, names);
            check.file(source, compare);
        }
    }
    check.finish(variants.rows()).map_err(ScoreError::Variants)
}

/// A group whose jobs are scored.
struct GroupScores<'a> {
    context: &'a RunContext<'a>,
    resources: &'a mut Resources,
    report: &'a mut Report,
    scores: &'a ScoreOptions,
    names: &'a TokenNames,
}

impl GroupScores<'_> {
    /// Scores the files that an earlier run did not finish. Returns each one's position among the
    /// jobs, and its report.
    fn run(
        self,
        mut group: Group,
        journal: &mut Journal,
        observer: &mut dyn Observer,
    ) -> Result<Vec<(usize, FileReport)>, ScoreError> {
        let (options, scores) = (self.context.options, self.scores);
        let reduce = [scores.method.reduce()];
        let spec = group.spec(options, &reduce);
        let device = &self.resources.devices[0];
        let prepared = spec
            .prepare(device.device, group.precision, self.context.say)
            .map_err(RunError::from)?;
        let (left, skipped) =
            continued::look_up(&mut group, options, scores, device, &prepared, journal)?;
        for text in resume::messages(&left.files, &skipped) {
            observer.warning(&text);
        }
        for error in skipped
            .iter()
            .filter_map(|skipped| skipped.file.error.as_ref())
        {
            observer.failure(error);
        }
        observer.advanced(0, 0, 0, skipped.len() as u64);
        let skipped = skipped.into_iter();
        let mut files: Vec<_> = skipped
            .map(|Skipped { position, file, .. }| (position, file))
            .collect();
        if group.tasks.is_empty() {
            return Ok(files);
        }
        let columns = scored_records::columns(scores, self.names);
        let width = scored_records::saved_width(columns.len());
        let saver = Saver::new(journal, left.tickets, width, options.save_every);
        let work = GroupWork {
            group: &group,
            columns: &columns,
            width,
            saver,
            saved: Arc::new(left.saved),
            files: left.files,
        };
        let reports = self.compute(work, prepared, observer)?;
        files.extend(group.positions.iter().copied().zip(reports));
        Ok(files)
    }

    /// Scores all files of the group, and returns their reports.
    fn compute(
        self,
        work: GroupWork,
        prepared: PreparedModel,
        observer: &mut dyn Observer,
    ) -> Result<Vec<FileReport>, ScoreError> {
        let (options, scores, group) = (self.context.options, self.scores, work.group);
        let mut limits = limits(group, options, self.resources);
        let reduce = [scores.method.reduce()];
        let spec = group.spec(options, &reduce);
        let graph = prepared.graph_sha256.clone();
        let report = self.report;
        let mut loading = ModelLoading::new(group, self.context, self.resources, report);
        let prepared = loading.prepare(spec, Some(prepared))?;
        let loader = loading.loader(spec, 1)?;
        let devices = loading.onto_devices(&loader, &prepared, options.threads)?;
        let workers: usize = devices.iter().map(|device| device.workers).sum();
        report.workers = report.workers.max(workers);
        let width = group.width();
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
        let computation = Scorer {
            scores,
            columns: work.columns,
            devices: Devices {
                workers: executors(group, &devices, self.context.trace),
                width,
                interrupt: &options.interrupt,
            },
            layout: PassLayout {
                options: scores,
                special: group.tokenizer.special(),
                mask: match scores.method {
                    Method::Unmasked => None,
                    Method::Masked => Some(self.names.mask(group.model.folder())?),
                },
                batch_tokens,
                padded: limits.padded,
            },
            portion,
        };
        let mut writer = ScoreWriter {
            group,
            scores,
            names: self.names,
            columns: work.columns,
            options,
            devices: &devices,
            computed_by: (&self.resources.devices[0], &graph),
            saver: work.saver,
            restored: StoredRows::new(Arc::clone(&work.saved), work.width),
            file: None,
            reports: work.files,
            fill: [0; 10],
            computing: Duration::ZERO,
            writing: Duration::ZERO,
        };
        let mut chunker = Chunker::new(&group.tasks, &*group.tokenizer, limits);
        chunker.resume(work.saved);
        let done = overlapped(chunker, &computation, &mut writer, observer);
        let (reading, tokenizing) = match done {
            Ok(spent) => spent,
            Err(error) => return Err(with_saved(error, &mut writer)),
        };
        let totals = &mut report.totals;
        totals.stages.reading += reading.as_secs_f64();
        totals.stages.tokenizing += tokenizing.as_secs_f64();
        writer.account(batch_tokens, totals);
        for device in &devices {
            report.totals.device_tokens += device.tokens();
            device.report(device_report(report, device));
        }
        Ok(writer.reports)
    }
}

/// What is left to do of a group.
struct GroupWork<'a> {
    group: &'a Group,
    columns: &'a [u32],
    /// Numbers of a token that are saved.
    width: usize,
    saver: Saver<'a>,
    saved: Arc<Vec<Saved>>,
    files: Vec<FileReport>,
}

/// What runs batches: one for each worker of each device.
fn executors<'e>(
    group: &'e Group,
    devices: &'e [LoadedDevice<'e>],
    trace: &'e Trace,
) -> Vec<Executor<'e>> {
    let workers = devices
        .iter()
        .flat_map(|device| (1..=device.workers).map(move |number| (device, number)));
    workers
        .map(|(device, number)| group.executor(device, trace, format!("worker {number}")))
        .collect()
}

/// Reads, scores and writes at the same time. Returns how long was read and tokenized.
fn overlapped(
    mut chunker: Chunker,
    computation: &Scorer,
    writer: &mut ScoreWriter,
    observer: &mut dyn Observer,
) -> Result<(Duration, Duration), ScoreError> {
    let strict = writer.options.strict;
    std::thread::scope(|scope| {
        // Nothing waits in between: each has one thing ready while the next one is at work, which
        // bounds the memory.
        let (give, chunks) = sync_channel(0);
        let (hand_on, scored) = sync_channel(0);
        let reading = threads::start(scope, move || {
            while let Some(chunk) = chunker.next() {
                if give.send(chunk).is_err() {
                    break;
                }
            }
            (chunker.reading, chunker.tokenizing)
        })?;
        let scoring = threads::start(scope, move || computation.run(chunks, &hand_on))?;
        let mut written = Ok(());
        for scored in scored {
            written = writer.take(scored, observer);
            if written.is_err() || (strict && writer.any_failed()) {
                break;
            }
        }
        let done = scoring.join();
        let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let spent = reading.join();
        let spent = spent.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(done).map(|()| spent)
    })
}

/// Saves what was scored of unfinished files, and returns why the run ends.
fn with_saved(error: ScoreError, writer: &mut ScoreWriter) -> ScoreError {
    let counts = writer.abandon();
    match (error, counts) {
        (ScoreError::Run(RunError::Interrupted { signal, .. }), Ok(saved)) => {
            RunError::Interrupted { signal, saved }.into()
        }
        (error, _) => error,
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

/// Checks that nothing that is written is what is read.
fn check_targets(jobs: &[Job], options: &Options, scores: &ScoreOptions) -> Result<(), ScoreError> {
    let mut targets = Targets::default();
    if let Some(manifest) = &options.manifest {
        targets.reads("the manifest", manifest);
    }
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
