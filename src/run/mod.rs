//! The main job: all files of a manifest, with one load of each model.
//!
//! What an earlier run finished or saved is taken from the journal first; what is computed goes there every few seconds.
//! Jobs are grouped by model, layer and precision; a group is one load on each device, and groups run one after the other.

mod chunk;
mod collect;
pub mod devices;
mod flow;
#[cfg(test)]
mod laws;
pub mod load;
mod queue;
mod repeats;
mod resume;
mod retry;
mod save;
mod slot;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use seqembed_onnx::{Architecture, Model};
use serde_json::json;
use sha2::{Digest, Sha256};

pub(crate) use self::chunk::Task;
pub use self::collect::{CollectError, Observer};

use self::chunk::{Chunker, Limits};
use self::collect::{Collector, output_path};
use self::devices::{DeviceError, Place};
use self::flow::Flow;
use self::load::{Loader, Program, Runtime, Wanted};
use self::repeats::Repeats;
use self::resume::Journaled;
use self::slot::Slot;
use crate::engine::device::{Device, DeviceChoice};
use crate::engine::facts::{Facts, Session, hex};
use crate::engine::faulty::Faults;
use crate::engine::locate::LocateError;
use crate::engine::session::Kernels;
use crate::engine::{EngineError, Reduce, budget};
use crate::interrupt::Interrupt;
use crate::journal::{Journal, JournalError};
use crate::manifest::Job;
use crate::models::{self, ModelError};
use crate::output::{Layout, Sink};
use crate::records::Record;
use crate::report::{DeviceReport, FileReport, LoadReport, Report};
use crate::settings::{Pooling, Precision, Revcomp, Settings, SettingsError, Window};
use crate::tokenize::{self, Alphabet, Tokenizer, VocabularyError};
use crate::trace::{Lane, Trace};

/// What holds for the whole run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The output folder.
    pub out: PathBuf,
    /// Threads in all, at least 1.
    pub threads: usize,
    /// ONNX Runtime's library, when it is named.
    pub ort_lib: Option<PathBuf>,
    /// The graph that runs.
    pub kernels: Kernels,
    /// Stop at the first file that fails.
    pub strict: bool,
    /// Load the model again for each file, which is there to compare with.
    pub reload_per_file: bool,
    /// Where the models run.
    pub device: DeviceChoice,
    /// The file for a trace.
    pub trace: Option<PathBuf>,
    /// Go on with what an interrupted run left in the output folder.
    pub resume: bool,
    /// Where the work is kept instead of the output folder, with a copy of every finished file; then a run always goes on.
    pub cache_dir: Option<PathBuf>,
    /// How often rows of unfinished files are saved.
    pub save_every: Duration,
    /// Compute a sequence each time that it comes.
    pub no_dedup: bool,
    /// Asks the run to stop.
    pub interrupt: Interrupt,
}

/// Why a run stopped, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The output folder can't be made or written to.
    #[error("cannot write to the output folder {}: {source}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A model can't be had.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An exported model can't be used.
    #[error(transparent)]
    Graph(#[from] seqembed_onnx::Error),
    /// A model's vocabulary can't be used.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// A job's options don't fit its model.
    #[error("{sample}: {source}")]
    Settings {
        /// The job's sample.
        sample: String,
        /// What does not fit.
        source: SettingsError,
    },
    /// ONNX Runtime can't be had.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// A device that was asked for can't be had.
    #[error("--device {choice} can't be had: {source}")]
    Device {
        /// What was asked for.
        choice: String,
        /// What is missing, and what helps.
        source: DeviceError,
    },
    /// No device is left.
    #[error("{why}. No device is left. {}, not finished: {}. Run the same command again with --resume for these",
        files(*.finished), names(.unfinished))]
    Lost {
        /// Each device, and why it is gone.
        why: String,
        /// How many files are done.
        finished: usize,
        /// The samples that are not.
        unfinished: Vec<String>,
    },
    /// The faults that a test asks for make no sense.
    #[error("{0}")]
    Faults(String),
    /// The trace can't be written.
    #[error("cannot write the trace {}: {source}", .path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The model could not be loaded.
    #[error("cannot load {}: {source}", .folder.display())]
    Load {
        /// The model's folder.
        folder: PathBuf,
        /// Why.
        source: EngineError,
    },
    /// The run broke off.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// What is needed to go on later can't be kept, or another process works in the folder.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The run was asked to stop.
    #[error(
        "stopped by {}: finished files are in place, and {rows} rows of others are saved; the same command with --resume goes on",
        match signal { 2 => "SIGINT".to_owned(), 15 => "SIGTERM".to_owned(), other => format!("signal {other}") }
    )]
    Interrupted {
        /// The signal's number.
        signal: i32,
        /// Rows of unfinished files that this run saved.
        rows: u64,
    },
}

fn files(count: usize) -> String {
    match count {
        0 => "No file was finished".to_owned(),
        1 => "1 file was finished and is kept".to_owned(),
        count => format!("{count} files were finished and are kept"),
    }
}

/// The first few of many names.
fn names(all: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown = all.iter().take(SHOWN).map(String::as_str);
    let shown = shown.collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl RunError {
    /// Whether what the user gave is wrong, and not the machine.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Folder { .. }
                | Self::Model(_)
                | Self::Graph(_)
                | Self::Vocabulary(_)
                | Self::Settings { .. }
                | Self::Faults(_)
        )
    }
}

/// Tokens of a batch on a CPU, unless the settings say otherwise: enough for dense products at full speed, and little
/// enough that a layer's activations stay in the cache.
const BATCH_TOKENS: usize = 512;

/// Per-token output of a chunk, in bytes, is kept below this.
const CHUNK_BYTES: usize = 128 << 20;

/// The same where GPUs compute, whose batches are larger.
const GPU_CHUNK_BYTES: usize = 1 << 30;

/// Batches of a chunk for each GPU.
const BATCHES_AHEAD: usize = 16;

/// While a GPU computes one batch, the other worker copies and prepares the next.
const WORKERS_PER_GPU: usize = 2;

/// Runs all jobs.
///
/// The outputs stand in `options.out`. A file that can't be read to its end has none, and its report names the reason.
///
/// # Errors
/// When nothing could be run, or the run broke off; outputs that were finished stay.
pub fn run(
    jobs: Vec<Job>,
    options: &Options,
    observer: &mut dyn Observer,
    say: &dyn Fn(&str),
) -> Result<Report, RunError> {
    let started = Instant::now();
    check_folder(&options.out)?;
    let trace = Trace::new(options.trace.as_deref()).map_err(|source| RunError::Trace {
        path: options.trace.clone().unwrap_or_default(),
        source,
    })?;
    let mut report = begun(options);
    let resume = options.resume || options.cache_dir.is_some();
    let mut journal = Journal::open(
        &options.out,
        options.cache_dir.as_deref(),
        resume,
        &mut |text| observer.warning(text),
    )?;
    let run = Shared {
        options,
        started,
        faults: Faults::from_env().map_err(RunError::Faults)?,
        trace: &trace,
        say,
    };
    let order = run_groups(jobs, &run, &mut journal, &mut report, observer);
    trace.finish().map_err(|source| RunError::Trace {
        path: options.trace.clone().unwrap_or_default(),
        source,
    })?;
    let order = order?;
    // Groups ran one after the other; the report is in the order of the manifest.
    let mut files: Vec<(usize, FileReport)> = order.into_iter().zip(report.files).collect();
    files.sort_by_key(|(position, _)| *position);
    report.files = files.into_iter().map(|(_, file)| file).collect();
    ended(&mut report, started);
    Ok(report)
}

/// The report of a run that begins.
pub(crate) fn begun(options: &Options) -> Report {
    Report {
        seqembed: env!("CARGO_PKG_VERSION").to_owned(),
        threads: options.threads,
        ..Report::default()
    }
}

/// Sums up a run that is over.
pub(crate) fn ended(report: &mut Report, started: Instant) {
    report.totals.seconds = started.elapsed().as_secs_f64();
    report.totals.peak_memory_bytes = peak_memory();
    report.total();
}

/// Runs the groups, and returns the jobs' positions in the manifest in the order in which their files were reported.
fn run_groups(
    jobs: Vec<Job>,
    run: &Shared,
    journal: &mut Journal,
    report: &mut Report,
    observer: &mut dyn Observer,
) -> Result<Vec<usize>, RunError> {
    let Shared {
        options,
        started,
        faults,
        say,
        ..
    } = *run;
    let mut runtime = Runtime::new(options.ort_lib.as_deref());
    let chosen = devices::choose(&options.device, faults, &mut runtime)?;
    report.totals.start_seconds = started.elapsed().as_secs_f64();
    if options.device != DeviceChoice::Cpu {
        say(&format!("device: {}", chosen.why));
    }
    let mut places = chosen.places;
    let names = places.iter().map(|place| match place.device {
        Device::Cpu => place.name.clone(),
        Device::Cuda(_) => format!("{} ({})", place.name, place.device),
    });
    report.device = names.collect::<Vec<_>>().join(", ");
    report.device_why.clone_from(&chosen.why);
    let groups = group(jobs, options, &places, say)?;
    let mut held = Held::default();
    let mut order = Vec::new();
    let mut groups = groups.into_iter();
    while let Some(mut group) = groups.next() {
        stop_if_asked(options)?;
        let (journaled, finished) = group.prepare(run, &places, journal)?;
        observer.advanced(0, 0, 0, finished.len() as u64);
        for (position, file) in finished {
            order.push(position);
            report.files.push(file);
        }
        for text in resume::told(&journaled.files) {
            observer.warning(&text);
        }
        order.extend(&group.positions);
        let journaled = Some(journaled);
        let result = group.run(
            run,
            journaled,
            &mut places,
            &mut runtime,
            &mut held,
            report,
            observer,
        );
        match result {
            Err(RunError::Lost {
                why,
                finished,
                mut unfinished,
            }) => {
                let done = report.files.iter().filter(|file| file.output.is_some());
                let finished = finished + done.count();
                let rest = groups.flat_map(|group| group.tasks);
                unfinished.extend(rest.map(|task| task.job.sample));
                return Err(RunError::Lost {
                    why,
                    finished,
                    unfinished,
                });
            }
            other => other?,
        }
        if options.strict && report.files.iter().any(|file| file.error.is_some()) {
            break;
        }
    }
    Ok(order)
}

/// What all groups share.
pub(crate) struct Shared<'a> {
    pub(crate) options: &'a Options,
    pub(crate) started: Instant,
    pub(crate) faults: Option<Faults>,
    pub(crate) trace: &'a Trace,
    pub(crate) say: &'a dyn Fn(&str),
}

/// A session that outlives the group.
#[derive(Default)]
pub(crate) struct Held {
    /// What runs instead of sessions of the group's own.
    pub(crate) session: Option<Arc<dyn Session>>,
    /// Whether one that is loaded stays, to serve whatever follows.
    pub(crate) keeps: bool,
}

/// Ends a run that was asked to stop where there is nothing to save.
fn stop_if_asked(options: &Options) -> Result<(), RunError> {
    match options.interrupt.signal() {
        Some(signal) => Err(RunError::Interrupted { signal, rows: 0 }),
        None => Ok(()),
    }
}

/// Makes the output folder, and tries whether files can be made in it.
pub(crate) fn check_folder(folder: &Path) -> Result<(), RunError> {
    fs::create_dir_all(folder)
        .and_then(|()| tempfile::tempfile_in(folder))
        .map(drop)
        .map_err(|source| RunError::Folder {
            path: folder.to_owned(),
            source,
        })
}

/// Jobs that share a session.
pub(crate) struct Group {
    pub(crate) model: Arc<Model>,
    pub(crate) layer: usize,
    /// The numbers that are computed with, decided.
    pub(crate) precision: Precision,
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
    pub(crate) tasks: Vec<Task>,
    /// The jobs' positions in the manifest.
    pub(crate) positions: Vec<usize>,
    /// Records that stand in for the only job's file, and where their rows go instead of its output.
    pub(crate) given: Option<(Vec<Record>, Box<dyn Sink>)>,
}

/// A model that was opened, with its vocabulary.
#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) model: Arc<Model>,
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
}

impl Opened {
    pub(crate) fn new(name: &str, say: &dyn Fn(&str)) -> Result<Self, RunError> {
        let model = Model::open(&models::resolve(name, say)?)?;
        let kind = model.info().tokenizer.kind.parse()?;
        Ok(Self {
            tokenizer: tokenize::open(model.folder(), kind)?.into(),
            model: Arc::new(model),
        })
    }

    /// The numbers that are computed with. Of its own accord no GPU gets fp16 for a model with weights that are too large for it.
    pub(crate) fn precision(
        &self,
        asked: Precision,
        gpu: bool,
        say: &dyn Fn(&str),
    ) -> Result<Precision, RunError> {
        let precision = asked.on(gpu);
        if (asked, precision) == (Precision::Auto, Precision::Fp16) {
            let half = seqembed_onnx::Precision::Fp16;
            match self.model.weights_in(half, &models::cache()) {
                Err(error @ seqembed_onnx::Error::Overflow { .. }) => {
                    say(&format!("fp32 is used: {error}"));
                    return Ok(Precision::Fp32);
                }
                other => drop(other?),
            }
        }
        Ok(precision)
    }

    /// How a job's long sequences are cut, if its options fit the model.
    pub(crate) fn window(&self, settings: &Settings) -> Result<Window, SettingsError> {
        let span = self.tokenizer.span();
        // The model's own limit counts tokens of one letter, or k-mers, of which a sequence has k - 1 fewer than bases.
        let limit = self.model.info().max_residues;
        let limit = limit.map_or(usize::MAX, |tokens| tokens + span - 1);
        let window = settings.window_of(limit)?;
        let Window { max_length, .. } = window;
        if max_length < span {
            return Err(SettingsError::Short { max_length, span });
        }
        if max_length > limit && matches!(self.model.architecture(), Architecture::Bert(_)) {
            return Err(SettingsError::Long { max_length, limit });
        }
        if settings.revcomp == Revcomp::Mean && self.tokenizer.alphabet() != Alphabet::Dna {
            return Err(SettingsError::NoStrands);
        }
        Ok(window)
    }
}

/// Opens every model that the jobs name, and puts the jobs that can share a session together, unless each is to have its own.
fn group(
    jobs: Vec<Job>,
    options: &Options,
    places: &[Place],
    say: &dyn Fn(&str),
) -> Result<Vec<Group>, RunError> {
    let mut models: HashMap<String, Opened> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (position, job) in jobs.into_iter().enumerate() {
        let name = &job.settings.model;
        let opened = if let Some(opened) = models.get(name) {
            opened.clone()
        } else {
            let opened = Opened::new(name, say)?;
            models.insert(name.clone(), opened.clone());
            opened
        };
        let misfit = |source| RunError::Settings {
            sample: job.sample.clone(),
            source,
        };
        let layers = opened.model.architecture().layers();
        let layer = job.settings.layer_of(layers).map_err(misfit)?;
        let window = opened.window(&job.settings).map_err(misfit)?;
        for place in places {
            let asked = job.settings.precision;
            devices::check_precision(asked, place, options.kernels).map_err(|why| {
                misfit(SettingsError::Precision {
                    precision: asked,
                    device: place.device.to_string(),
                    why,
                })
            })?;
        }
        let gpu = places.iter().any(|place| place.gpu.is_some());
        let precision = opened.precision(job.settings.precision, gpu, say)?;
        let folder = opened.model.folder();
        let known = groups.iter().position(|group| {
            !options.reload_per_file
                && group.model.folder() == folder
                && group.layer == layer
                && group.precision == precision
        });
        let at = known.unwrap_or(groups.len());
        if known.is_none() {
            groups.push(Group {
                model: opened.model,
                tokenizer: opened.tokenizer,
                layer,
                precision,
                tasks: Vec::new(),
                positions: Vec::new(),
                given: None,
            });
        }
        groups[at].tasks.push(Task { job, window });
        groups[at].positions.push(position);
    }
    Ok(groups)
}

impl Group {
    /// Runs the group's jobs. Devices that are lost on the way leave `places`. Without `journaled`, nothing is kept to be gone on
    /// with.
    // What the stages of a run share.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn run(
        mut self,
        shared: &Shared,
        journaled: Option<Journaled>,
        places: &mut Vec<Place>,
        runtime: &mut Runtime,
        held: &mut Held,
        report: &mut Report,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let options = shared.options;
        let hidden = self.model.architecture().hidden();
        let limits = self.limits(options, places, hidden);
        let (records, sink) = self.given.take().unzip();
        let mut chunker = Chunker::new(&self.tasks, &*self.tokenizer, limits);
        if let Some(records) = records {
            chunker.give(records);
        }
        let journaled = journaled.unwrap_or_else(|| Journaled::none(self.file_reports()));
        chunker.resume(Arc::clone(&journaled.saved));
        if !options.no_dedup {
            chunker.share(Repeats::new(hidden));
        }
        // The first chunk tells whether there is anything to run, and whether there is enough for every core.
        let reading = Instant::now();
        let Some(first) = chunker.next() else {
            return Ok(());
        };
        flow::trace_chunk(
            shared.trace,
            reading,
            (chunker.reading, chunker.tokenizing),
            &first,
        );
        let nothing = first.batches.is_empty() && chunker.is_done();
        let before = report.loads.len();
        if held.keeps && held.session.is_none() && !nothing {
            held.session = Some(self.session(shared, &places[0], runtime, report)?);
        }
        let outputs = self.outputs();
        let wanted = self.wanted(options, &outputs);
        let programs = match &held.session {
            Some(_) => Vec::new(),
            None if !journaled.programs.is_empty() => journaled.programs,
            None => places
                .iter()
                .map(|place| wanted.program(place.device, self.precision, shared.say))
                .collect::<Result<Vec<_>, _>>()?,
        };
        // A session that stays has one thread for a batch: what follows may be more than this.
        let workers = if chunker.is_done() && !held.keeps {
            first.batches.len().clamp(1, options.threads)
        } else {
            options.threads
        };
        let loader = if nothing {
            None
        } else {
            let threads = (options.threads / workers).max(1);
            Some(self.loader(wanted, shared.faults, threads, runtime, report)?)
        };
        let slots = match (&loader, &held.session) {
            (Some(loader), Some(session)) => {
                let load = report.loads[before..].iter().map(|load| load.seconds).sum();
                let load = Duration::from_secs_f64(load);
                vec![Self::held_slot(loader, places, workers, session, load)]
            }
            (Some(loader), None) => {
                let slots = self.slots(loader, places, workers, &programs, shared.trace)?;
                report.loads.extend(slots.iter().map(|slot| {
                    self.load_report(slot.place.device, self.precision, slot.load.as_secs_f64())
                }));
                slots
            }
            (None, _) => Vec::new(),
        };
        let facts = slots.first().map(|slot| slot.session.facts());
        let computed = Computed::of(facts, programs.first(), places[0].device, self.precision);
        let layouts = self.layouts(options, &computed);
        let mut collector = Collector::new(
            &self.tasks,
            layouts,
            journaled.files,
            hidden,
            journaled.saver,
            journaled.saved,
        );
        collector.budget = limits.batch_tokens;
        if let Some(sink) = sink {
            collector.give(sink);
        }
        let at_once = slots.iter().map(|slot| slot.workers).sum();
        report.workers = report.workers.max(at_once);

        let flow = Flow {
            slots: &slots,
            tasks: &self.tasks,
            tokenizer: &*self.tokenizer,
            model_limit: self
                .model
                .info()
                .max_residues
                .map(|tokens| tokens + self.tokenizer.span() - 1),
            hidden,
            strict: options.strict,
            trace: shared.trace,
            interrupt: &options.interrupt,
        };
        let result = flow.run(
            chunker,
            first,
            &mut collector,
            &mut report.totals.stages,
            observer,
        );
        report.totals.filled(limits.batch_tokens, &collector.fill);
        self.account(&slots, &collector, shared.started, report);
        places.retain(|place| {
            let lost = |slot: &Slot| slot.place == *place && slot.lost().is_some();
            !slots.iter().any(lost)
        });
        result?;
        report.files.append(&mut collector.files);
        Ok(())
    }

    /// What is told of each file, before anything is done.
    fn file_reports(&self) -> Vec<FileReport> {
        let reports = self.tasks.iter().map(|task| FileReport {
            sample: task.job.sample.clone(),
            source: task.job.source.to_string(),
            model: self.model.info().name.clone(),
            ..FileReport::default()
        });
        reports.collect()
    }

    /// Adds what the devices did, and what the collector saw, to the report.
    fn account(
        &self,
        slots: &[Slot],
        collector: &Collector,
        started: Instant,
        report: &mut Report,
    ) {
        report.totals.stages.computing += collector.computing.as_secs_f64();
        report.totals.stages.writing += collector.writing.as_secs_f64();
        report.totals.batches += collector.batches;
        if report.totals.first_embedding_seconds.is_none() {
            report.totals.first_embedding_seconds =
                collector.first.map(|first| (first - started).as_secs_f64());
        }
        for slot in slots {
            report.totals.device_tokens += slot.tokens();
            slot.report(device_report(report, slot));
            for seconds in slot.higher_loads() {
                let load = self.load_report(slot.place.device, Precision::Fp32, seconds);
                report.loads.push(load);
            }
        }
    }

    /// The session that is held, as a device. `load`: how long it took in this run.
    fn held_slot<'s>(
        loader: &'s Loader<'s>,
        places: &[Place],
        workers: usize,
        session: &Arc<dyn Session>,
        load: Duration,
    ) -> Slot<'s> {
        let precision = session.facts().precision;
        let mut slot = loader.slot(&places[0], 0, precision, Arc::clone(session), load);
        slot.workers = workers_on(places[0].device, workers, 1);
        slot
    }

    /// Loads a session for whatever follows.
    pub(crate) fn session(
        &self,
        shared: &Shared,
        place: &Place,
        runtime: &mut Runtime,
        report: &mut Report,
    ) -> Result<Arc<dyn Session>, RunError> {
        let outputs = self.outputs();
        let wanted = self.wanted(shared.options, &outputs);
        let program = wanted.program(place.device, self.precision, shared.say)?;
        let loader = self.loader(wanted, shared.faults, 1, runtime, report)?;
        let started = Instant::now();
        let session = loader.engine_on(&program)?;
        let seconds = (program.spent + started.elapsed()).as_secs_f64();
        let precision = session.facts().precision;
        report
            .loads
            .push(self.load_report(place.device, precision, seconds));
        Ok(session)
    }

    fn wanted<'w>(&'w self, options: &Options, outputs: &'w [Reduce]) -> Wanted<'w> {
        Wanted {
            model: &self.model,
            layer: self.layer,
            outputs,
            kernels: options.kernels,
        }
    }

    fn loader<'w>(
        &self,
        wanted: Wanted<'w>,
        faults: Option<Faults>,
        threads: usize,
        runtime: &mut Runtime,
        report: &mut Report,
    ) -> Result<Loader<'w>, RunError> {
        let environment = runtime.environment()?.clone();
        report.onnxruntime = Some(runtime.locate()?.version.clone());
        Ok(Loader {
            environment,
            wanted,
            pad_id: self.tokenizer.special().pad.into(),
            threads,
            faults,
        })
    }

    /// The model on every device.
    fn slots<'s>(
        &self,
        loader: &'s Loader<'s>,
        places: &[Place],
        workers: usize,
        programs: &[Program],
        trace: &Trace,
    ) -> Result<Vec<Slot<'s>>, RunError> {
        let mut slots = Vec::with_capacity(places.len());
        for (index, (place, program)) in places.iter().zip(programs).enumerate() {
            let started = Instant::now();
            let session = loader.engine_on(program)?;
            let load = program.spent + started.elapsed();
            let mut slot = loader.slot(place, index, self.precision, session, load);
            slot.workers = workers_on(place.device, workers, places.len());
            let lane = Lane {
                group: slot.label.clone(),
                name: "loading".to_owned(),
            };
            trace.span(
                &lane,
                "loading",
                started,
                Instant::now(),
                || json!({"model": self.model.info().name}),
            );
            slots.push(slot);
        }
        Ok(slots)
    }

    fn load_report(&self, device: Device, precision: Precision, seconds: f64) -> LoadReport {
        let info = self.model.info();
        LoadReport {
            model: info.name.clone(),
            weights_sha256: info.weights_sha256.clone(),
            layer: self.layer,
            random_seed: info.random_seed,
            device: device.to_string(),
            precision: precision.to_string(),
            seconds,
        }
    }

    fn limits(&self, options: &Options, places: &[Place], hidden: usize) -> Limits {
        let settings = || self.tasks.iter().map(|task| &task.job.settings);
        let asked = settings()
            .filter_map(|settings| settings.batch_tokens)
            .min();
        let per_token = settings().any(|settings| settings.pooling == Pooling::None);
        let free = places.iter().filter_map(|place| place.gpu.as_ref());
        let limits = if let Some(free) = free.map(|(_, free)| *free).min() {
            let bytes = self.precision.bytes();
            let batch_tokens = asked.unwrap_or_else(|| {
                let weights = self.model.weights_bytes() / 4 * bytes as u64;
                let sizes = self.model.architecture().description().sizes();
                budget::batch_tokens(free, weights, &sizes, bytes)
            });
            // The more batches in a chunk, the fewer are cut short at its end; and none of the devices must wait for the next.
            let mut chunk_tokens = batch_tokens * places.len() * BATCHES_AHEAD;
            if per_token {
                chunk_tokens = chunk_tokens.min(GPU_CHUNK_BYTES / (4 * hidden));
            }
            Limits {
                chunk_tokens,
                batch_tokens,
                padded: false,
            }
        } else {
            let batch_tokens = asked.unwrap_or(BATCH_TOKENS);
            let mut chunk_tokens = (batch_tokens * options.threads * 16).max(1 << 15);
            if per_token {
                chunk_tokens = chunk_tokens.min(CHUNK_BYTES / (4 * hidden));
            }
            Limits {
                chunk_tokens,
                batch_tokens,
                padded: options.kernels == Kernels::Portable,
            }
        };
        Limits {
            chunk_tokens: limits.chunk_tokens.max(1),
            ..limits
        }
    }

    /// The outputs of the graph that the jobs need.
    fn outputs(&self) -> Vec<Reduce> {
        let mut outputs = Vec::new();
        for task in &self.tasks {
            if !outputs.contains(&task.reduce()) {
                outputs.push(task.reduce());
            }
        }
        outputs
    }

    fn layouts(&self, options: &Options, computed: &Computed) -> Vec<Layout> {
        let layout = |task: &Task| {
            let settings = &task.job.settings;
            Layout {
                path: output_path(&options.out, &task.job.sample, settings.format.extension()),
                hidden: self.model.architecture().hidden(),
                per_token: settings.pooling == Pooling::None,
                precision: settings.output_precision,
                provenance: self.provenance(task, computed),
            }
        };
        self.tasks.iter().map(layout).collect()
    }

    fn provenance(&self, task: &Task, computed: &Computed) -> Vec<(String, String)> {
        let settings = &task.job.settings;
        let info = self.model.info();
        let mut facts = vec![
            ("seqembed", env!("CARGO_PKG_VERSION").to_owned()),
            ("model", info.name.clone()),
            ("weights_sha256", info.weights_sha256.clone()),
            ("graph_sha256", computed.graph_sha256.clone()),
            ("precision", computed.precision.to_string()),
            ("output_precision", settings.output_precision.to_string()),
            ("device", kind(computed.device).to_owned()),
            ("layer", self.layer.to_string()),
            ("pooling", settings.pooling.to_string()),
            ("long", settings.long.to_string()),
            ("max_length", task.window.max_length.to_string()),
            ("overlap", task.window.overlap.to_string()),
            ("unknown", settings.unknown.to_string()),
            ("revcomp", settings.revcomp.to_string()),
            ("source", source_name(task)),
        ];
        if let Some(seed) = info.random_seed {
            facts.push(("random_seed", seed.to_string()));
        }
        facts
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }
}

/// What the numbers of an output come from.
struct Computed {
    device: Device,
    precision: Precision,
    graph_sha256: String,
}

impl Computed {
    /// What was loaded tells of itself; where nothing was, there are no numbers, and the plan is all there is to tell.
    fn of(
        loaded: Option<&Facts>,
        program: Option<&Program>,
        device: Device,
        precision: Precision,
    ) -> Self {
        if let Some(facts) = loaded {
            return Self {
                device: facts.device,
                precision: facts.precision,
                graph_sha256: facts.graph_sha256.clone(),
            };
        }
        Self {
            device,
            precision,
            graph_sha256: program
                .map(|program| hex(&Sha256::digest(&program.graph)))
                .unwrap_or_default(),
        }
    }
}

/// Threads that feed one of so many devices.
fn workers_on(device: Device, threads: usize, devices: usize) -> usize {
    match device {
        Device::Cpu => (threads / devices).max(1),
        Device::Cuda(_) => WORKERS_PER_GPU,
    }
}

/// The input's file name: where it lay does not matter to what was computed.
fn source_name(task: &Task) -> String {
    match &task.job.source {
        crate::records::Source::Path(path) => path.file_name().map_or_else(
            || path.display().to_string(),
            |name| name.to_string_lossy().into_owned(),
        ),
        source @ crate::records::Source::Stdin => source.to_string(),
    }
}

/// A kind of device, as an output's provenance has it: which of several GPUs did it is chance.
fn kind(device: Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
    }
}

/// The report of a slot's device.
fn device_report<'r>(report: &'r mut Report, slot: &Slot) -> &'r mut DeviceReport {
    let device = slot.place.device.to_string();
    let precision = slot.precision.to_string();
    let name = &slot.place.name;
    let known = report.devices.iter().position(|other| {
        other.device == device && other.name == *name && other.precision == precision
    });
    let at = known.unwrap_or_else(|| {
        report.devices.push(DeviceReport {
            device,
            name: name.clone(),
            precision,
            ..DeviceReport::default()
        });
        report.devices.len() - 1
    });
    &mut report.devices[at]
}

/// The most memory that this process held, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
