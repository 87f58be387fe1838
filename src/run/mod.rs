//! The main job: all files of a manifest, with one load of each model.
//!
//! What an earlier run finished or saved is taken from the journal first; what is computed goes there every few seconds.
//! Jobs are grouped by model, layer and precision; a group is one load on each device, and groups run one after the other.

mod chunk;
mod chunker;
mod collect;
mod dedup;
mod execute;
mod group;
pub(crate) mod loaded_device;
mod long;
mod pipeline;
#[cfg(test)]
mod pipeline_properties;
mod queue;
mod record_parts;
mod results;
mod resume;
mod save;
mod task;
mod task_reader;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::collect::{CollectError, Observer};
pub(crate) use self::group::{Group, Opened};
pub(crate) use self::task::Task;

use self::collect::output_path;
use self::group::group;
use self::resume::Ended;
pub use self::save::SavedCounts;
use crate::device::{Device, DeviceChoice};
use crate::engine::EngineError;
use crate::engine::cpu::session::Kernels;
use crate::engine::fault_injection::Faults;
use crate::engine::loader::Runtime;
use crate::engine::runtime::locate::LocateError;
use crate::engine::select::{self as devices, DeviceError};
use crate::engine::session::Session;
use crate::folders;
use crate::interrupt::Interrupt;
use crate::journal::{Journal, JournalError};
use crate::manifest::Job;
use crate::models::{self, ModelError};
use crate::records::Source;
use crate::report::{FileReport, Report};
use crate::settings::SettingsError;
use crate::targets::{TargetError, Targets};
use crate::threads::{self, StartError};
use crate::tokenize::VocabularyError;
use crate::trace::Trace;

/// The name of a run's report in its output folder.
pub const REPORT: &str = "report.json";

/// What holds for the whole run.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct Options {
    /// The output folder.
    pub out: PathBuf,
    /// The manifest that the jobs come from, if there is one: no output takes its place.
    pub manifest: Option<PathBuf>,
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
    /// An output would take another file's place.
    #[error(transparent)]
    Target(#[from] TargetError),
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
    /// The system gives no more threads.
    #[error(transparent)]
    Threads(#[from] StartError),
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
        "stopped by {}: finished files are in place, and {saved} saved; the same command with --resume goes on",
        match signal { 2 => "SIGINT".to_owned(), 15 => "SIGTERM".to_owned(), other => format!("signal {other}") }
    )]
    Interrupted {
        /// The signal's number.
        signal: i32,
        /// What of unfinished files this run saved.
        saved: SavedCounts,
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
                | Self::Target(_)
                | Self::Model(_)
                | Self::Graph(_)
                | Self::Vocabulary(_)
                | Self::Settings { .. }
                | Self::Faults(_)
        )
    }
}

/// Runs all jobs. Where a model turns out to be damaged when it is loaded, and can be made again, it is, and the run goes on.
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
    let result = run_once(jobs.clone(), options, observer, say);
    let Err(RunError::Graph(error)) = &result else {
        return result;
    };
    if !models::remove_damaged(error, say) {
        return result;
    }
    // Nothing was computed with it; what other models' files are finished is kept.
    let options = Options {
        resume: true,
        ..options.clone()
    };
    run_once(jobs, &options, observer, say)
}

fn run_once(
    jobs: Vec<Job>,
    options: &Options,
    observer: &mut dyn Observer,
    say: &dyn Fn(&str),
) -> Result<Report, RunError> {
    let started = Instant::now();
    threads::pool(options.threads)?;
    check_folder(&options.out)?;
    check_targets(&jobs, options)?;
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
    // The outputs are worth more than it.
    if let (Err(source), Some(path)) = (trace.finish(), options.trace.clone()) {
        observer.warning(&RunError::Trace { path, source }.to_string());
    }
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
        let (journaled, ended) = group.prepare(run, &places, journal)?;
        observer.advanced(0, 0, 0, ended.len() as u64);
        for text in resume::told(&journaled.files, &ended) {
            observer.warning(&text);
        }
        for Ended { position, file, .. } in ended {
            if let Some(error) = &file.error {
                observer.failure(error);
            }
            order.push(position);
            report.files.push(file);
        }
        if options.strict && report.files.iter().any(|file| file.error.is_some()) {
            break;
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
        Some(signal) => Err(RunError::Interrupted {
            signal,
            saved: SavedCounts::default(),
        }),
        None => Ok(()),
    }
}

/// Makes the output folder, and tries whether files can be made in it.
pub(crate) fn check_folder(folder: &Path) -> Result<(), RunError> {
    folders::make(folder)
        .and_then(|()| tempfile::tempfile_in(folder))
        .map(drop)
        .map_err(|source| RunError::Folder {
            path: folder.to_owned(),
            source,
        })
}

/// Checks that nothing that the run will write is what it reads, or somebody else's.
fn check_targets(jobs: &[Job], options: &Options) -> Result<(), TargetError> {
    let mut targets = Targets::default();
    let mut models: HashSet<&str> = HashSet::new();
    if let Some(manifest) = &options.manifest {
        targets.reads("the manifest", manifest);
    }
    for job in jobs {
        if let Source::Path(path) = &job.source {
            targets.reads("an input", path);
        }
        if models.insert(&job.settings.model) {
            targets.reads_model(&job.settings.model);
        }
    }
    for job in jobs {
        let format = job.settings.format;
        let path = output_path(&options.out, &job.sample, format.extension());
        targets.writes_output(format, &path)?;
    }
    targets.writes("the report", &options.out.join(REPORT))?;
    if let Some(trace) = &options.trace {
        targets.writes("the trace", trace)?;
    }
    Ok(())
}

/// The most memory that this process held, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
