//! The main job: all files of a manifest, with one load of each model.
//!
//! What an earlier run finished or saved is taken from the journal first; what is computed is saved
//! there every few seconds. Jobs are grouped by model, layer and precision; a group is one load on
//! each device, and groups run one after the other.

mod batch_limits;
mod chunk;
mod chunker;
mod collect;
mod collect_error;
pub(crate) mod context;
mod dedup;
mod dry_run;
pub mod error;
mod execute;
mod group;
mod group_run;
mod loaded_device;
mod loading;
mod long_records;
mod measure;
mod opened_model;
pub mod options;
mod output_files;
mod pending;
mod pipeline;
#[cfg(test)]
mod pipeline_properties;
mod provenance;
mod queue;
mod record_parts;
mod results;
mod resume;
mod save;
pub mod score;
pub mod spans;
mod stored;
mod table_check;
mod task;
mod task_reader;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

pub(crate) use self::chunk::{RecordStatus, Replaced};
pub(crate) use self::chunker::apply_policies;
pub use self::collect_error::{CollectError, Observer};
pub use self::dry_run::{ModelSize, Sizes, Speed, dry_run};
pub use self::error::RunError;
pub(crate) use self::group::{Group, check_spans};
pub(crate) use self::group_run::GroupRun;
pub(crate) use self::loading::{ModelLoading, load_report};
pub(crate) use self::opened_model::OpenedModel;
pub use self::options::Options;
pub(crate) use self::provenance::{source_name, with_origin};
pub use self::save::SavedCounts;
pub(crate) use self::task::Task;
pub(crate) use self::task_reader::{FileEnd, ReadEntry, TaskReader};

use self::context::{Resources, ReusedSession, RunContext};
use self::group::group_jobs;
use self::output_files::output_path;
use self::resume::Skipped;
use crate::device::{Device, DeviceChoice};
use crate::engine::fault_injection::{Faults, VARIABLE};
use crate::engine::runtime::Runtime;
use crate::engine::select::{self, SelectedDevice};
use crate::folders;
use crate::journal::{Journal, JournalError};
use crate::manifest::Job;
use crate::models;
use crate::records::Source;
use crate::report::{FileReport, Report};
use crate::targets::{TargetError, Targets};
use crate::threads;
use crate::trace::Trace;

/// The name of a run's report in its output folder.
pub const REPORT: &str = "report.json";

/// Runs all jobs. Where a model turns out to be damaged when it is loaded, and can be exported
/// again, that is done, and the run starts over.
///
/// The outputs are written to `options.out`. A file that cannot be read to its end has no output,
/// and the report gives the reason.
///
/// # Errors
/// When nothing could be run, or the run broke off. Finished outputs stay.
pub fn run(
    jobs: Vec<Job>,
    options: &Options,
    observer: &mut dyn Observer,
    say: &dyn Fn(&str),
) -> Result<Report, RunError> {
    let result = run_once(jobs.clone(), options, observer, say);
    let damaged = result.as_ref().err().and_then(RunError::damaged_model);
    if !damaged.is_some_and(|error| models::remove_damaged(error, say)) {
        return result;
    }
    // Nothing was computed with it. Finished files of other models are kept.
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
    let mut journal = open_journal(options, observer)?;
    let faults = Faults::from_env().map_err(RunError::Faults)?;
    if faults.is_some_and(|faults| faults.made_up) {
        observer.warning(&format!(
            "{VARIABLE}: no model is run, all numbers are made up"
        ));
    }
    let context = RunContext {
        options,
        started,
        faults,
        trace: &trace,
        say,
    };
    let order = run_groups(jobs, &context, &mut journal, &mut report, observer);
    // A failure to write the trace must not discard the outputs.
    if let (Err(source), Some(path)) = (trace.finish(), options.trace.clone()) {
        observer.warning(&RunError::Trace { path, source }.to_string());
    }
    let order = order?;
    // Files were reported group by group; the report is in the order of the manifest.
    let mut files: Vec<(usize, FileReport)> = order.into_iter().zip(report.files).collect();
    files.sort_by_key(|(position, _)| *position);
    report.files = files.into_iter().map(|(_, file)| file).collect();
    ended(&mut report, started);
    Ok(report)
}

/// Opens the journal of the output folder, or of the cache.
fn open_journal(options: &Options, observer: &mut dyn Observer) -> Result<Journal, JournalError> {
    Journal::open(
        &options.out,
        options.cache_dir.as_deref(),
        options.resume || options.cache_dir.is_some(),
        &mut |text| observer.warning(text),
    )
}

/// An empty report.
pub(crate) fn begun(options: &Options) -> Report {
    Report {
        seqembed: env!("CARGO_PKG_VERSION").to_owned(),
        threads: options.threads,
        ..Report::default()
    }
}

/// Fills in the totals of a run that is over.
pub(crate) fn ended(report: &mut Report, started: Instant) {
    report.totals.seconds = started.elapsed().as_secs_f64();
    report.totals.peak_memory_bytes = peak_memory();
    report.total();
}

/// Runs the groups, and returns the jobs' positions in the manifest in the order in which their
/// files were reported.
fn run_groups(
    jobs: Vec<Job>,
    context: &RunContext,
    journal: &mut Journal,
    report: &mut Report,
    observer: &mut dyn Observer,
) -> Result<Vec<usize>, RunError> {
    let options = context.options;
    let mut resources = select_devices(context, report)?;
    let groups = group_jobs(jobs, options, &resources.devices, context.say)?;
    let mut order = Vec::new();
    let mut groups = groups.into_iter();
    while let Some(mut group) = groups.next() {
        stop_if_asked(options)?;
        let (resumed, skipped) = resume::look_up(&mut group, context, &resources.devices, journal)?;
        observer.advanced(0, 0, 0, skipped.len() as u64);
        for text in resume::messages(&resumed.files, &skipped) {
            observer.warning(&text);
        }
        for Skipped { position, file, .. } in skipped {
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
        let group_run = GroupRun {
            context,
            resources: &mut resources,
            report: &mut *report,
            observer: &mut *observer,
        };
        if let Err(error) = group_run.run(group, Some(resumed)) {
            return Err(with_all_files(error, report, groups));
        }
        if options.strict && report.files.iter().any(|file| file.error.is_some()) {
            break;
        }
    }
    Ok(order)
}

/// Selects the devices, and prints them.
fn select_devices(context: &RunContext, report: &mut Report) -> Result<Resources, RunError> {
    let options = context.options;
    let mut runtime = Runtime::new(options.ort_lib.as_deref());
    let selection = select::select(&options.device, context.faults, &mut runtime)?;
    report.totals.start_seconds = context.started.elapsed().as_secs_f64();
    if options.device != DeviceChoice::Cpu {
        (context.say)(&format!("device: {}", selection.why));
    }
    let name = |device: &SelectedDevice| match device.device {
        Device::Cpu => device.name.clone(),
        Device::Cuda(_) => format!("{} ({})", device.name, device.device),
    };
    let names: Vec<String> = selection.devices.iter().map(name).collect();
    report.device = names.join(", ");
    report.device_why = selection.why;
    Ok(Resources {
        devices: selection.devices,
        runtime,
        reused: ReusedSession::default(),
    })
}

/// The error of the run of a group. If all devices were lost, it also names the files of the other
/// groups.
fn with_all_files(
    error: RunError,
    report: &Report,
    others: impl Iterator<Item = Group>,
) -> RunError {
    let RunError::Lost {
        why,
        finished,
        mut unfinished,
    } = error
    else {
        return error;
    };
    let done = report.files.iter().filter(|file| file.output.is_some());
    let rest = others.flat_map(|group| group.tasks);
    unfinished.extend(rest.map(|task| task.job.sample));
    RunError::Lost {
        why,
        finished: finished + done.count(),
        unfinished,
    }
}

/// Ends a run that was asked to stop between groups, when there is nothing to save.
fn stop_if_asked(options: &Options) -> Result<(), RunError> {
    match options.interrupt.signal() {
        Some(signal) => Err(RunError::Interrupted {
            signal,
            saved: SavedCounts::default(),
        }),
        None => Ok(()),
    }
}

/// Creates the output folder, and checks that it is writable.
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

/// Peak memory of this process in bytes, if the system reports it.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
