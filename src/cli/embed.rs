//! `seqembed embed`, and what it shares with `seqembed run`: the options of a run, and its exit
//! code and report.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum as _;

use super::dry_run::{self, DryRunOptions};
use super::failure::{FailureOptions, failed};
use super::progress::Progress;
use super::{PARTLY, USAGE, disk, say, signals};
use crate::atomic_file;
use crate::device::{Device, DeviceChoice};
use crate::embedder::EmbedderOptions;
use crate::engine::runtime::Runtime;
use crate::engine::select;
use crate::manifest::{self, Job};
use crate::records::Source;
use crate::report::Report;
use crate::run::{self, Options, RunError};
use crate::settings::{Kernels, Overrides, Precision, RunOverrides, seconds};
use crate::text::{are, counted};
use crate::threads;

/// How often the rows of unfinished files are saved.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// Embed sequence files, without a manifest
///
/// Writes one output file per input file, named after it: `gut_01.faa.gz` -> `OUT/gut_01.parquet`.
#[derive(Debug, clap::Args)]
pub struct EmbedArgs {
    /// FASTA or FASTQ files, plain or compressed; `-` reads standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    #[command(flatten)]
    common: RunOptions,

    #[command(flatten)]
    failures: FailureOptions,

    #[command(flatten)]
    dry: DryRunOptions,

    #[command(flatten)]
    overrides: Overrides,
}

/// Options of the whole run, shared by `run`, `embed` and `virnucpro`.
#[derive(Debug, clap::Args)]
// Flags of the command line are what they are.
#[allow(clippy::struct_excessive_bools)]
pub struct RunOptions {
    /// The output folder; created if it does not exist
    #[arg(short, long, value_name = "FOLDER")]
    pub(super) out: PathBuf,

    #[command(flatten)]
    engine: EngineOptions,

    /// Continue an interrupted run: keep finished files and reuse the saved rows of unfinished
    /// ones. Anything made from another input, model or option is recomputed
    #[arg(long)]
    pub(super) resume: bool,

    /// Keep finished and saved work in this folder, for workflow engines whose retries start in an
    /// empty one; implies --resume. Only one run at a time can use the folder
    #[arg(long, value_name = "FOLDER")]
    pub(super) cache_dir: Option<PathBuf>,

    /// Save the rows of unfinished files every so many seconds; a killed run loses no more work
    /// than that [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) save_every: Option<Duration>,

    /// Compute repeated sequences each time they occur instead of once per run; the results are the
    /// same
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    no_dedup: Option<bool>,

    /// Stop at the first file that fails, instead of finishing the others
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(super) strict: Option<bool>,

    /// Reload the model for each file: slower, only useful for comparison (`seqembed bench load`
    /// uses it)
    #[arg(long)]
    reload_per_file: bool,

    /// Write a timeline of the run (reading, tokenizing, each batch on its device, writing) to this
    /// file, to be opened in Perfetto or in Chrome's tracing page
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Print only warnings and errors
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// Options that choose the hardware and the ONNX Runtime library.
#[derive(Debug, Clone, clap::Args)]
pub struct EngineOptions {
    /// Number of CPU threads, at most the number of processors available to this process [default:
    /// that number]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,

    /// The ONNX Runtime library, or the folder that contains it [default: searched for; `seqembed
    /// doctor` shows where]
    #[arg(long, value_name = "PATH")]
    ort_lib: Option<PathBuf>,

    /// The device to run the models on: auto, cpu, cuda (the first GPU), cuda:N, cuda:N,M or
    /// cuda:all [default: auto]
    ///
    /// auto uses one GPU, the one with the most free memory, or the CPU if no GPU is usable, and
    /// prints its choice and the reason. It is an error if a GPU that you name is not available. N
    /// counts the GPUs that are visible through `CUDA_VISIBLE_DEVICES`, from 0.
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceChoice>,

    /// The kernels to run the models with [default: auto]
    #[arg(long, value_enum, value_name = "KERNELS")]
    kernels: Option<Kernels>,
}

impl EngineOptions {
    /// The threads that were asked for.
    pub(super) fn threads(&self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    /// ONNX Runtime's library, where it is named.
    pub(super) fn ort_lib(&self) -> Option<PathBuf> {
        self.ort_lib.clone()
    }

    /// The device that was asked for, or the default.
    pub(super) fn device(&self) -> DeviceChoice {
        self.device.clone().unwrap_or_default()
    }

    /// The kernels that were asked for, or the default.
    pub(super) fn kernels(&self) -> Kernels {
        self.kernels.unwrap_or_default()
    }

    /// These options as command-line arguments for a child process.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if let Some(threads) = self.threads {
            arguments.extend(["--threads".to_owned(), threads.to_string()]);
        }
        if let Some(device) = &self.device {
            arguments.extend(["--device".to_owned(), device.to_string()]);
        }
        if let Some(path) = &self.ort_lib {
            arguments.extend(["--ort-lib".to_owned(), path.display().to_string()]);
        }
        if let Some(kernels) = self.kernels.and_then(|kernels| kernels.to_possible_value()) {
            arguments.extend(["--kernels".to_owned(), kernels.get_name().to_owned()]);
        }
        arguments
    }

    /// These options for an embedder, which uses one device.
    ///
    /// # Errors
    /// If the device is not available.
    pub(super) fn embedder(&self, precision: Precision) -> anyhow::Result<EmbedderOptions> {
        let mut runtime = Runtime::new(self.ort_lib.as_deref());
        let device = self.device.clone().unwrap_or_default();
        let selection = select::select(&device, None, &mut runtime)?;
        let first = selection.devices.first();
        Ok(EmbedderOptions {
            settings: Overrides {
                precision: Some(precision),
                ..Overrides::default()
            },
            threads: self.threads.map(usize::from),
            ort_lib: self.ort_lib.clone(),
            kernels: self.kernels.unwrap_or_default(),
            device: first.map_or(Device::Cpu, |selected| selected.device),
        })
    }

    /// These options, with the manifest's where the command line sets none.
    #[must_use]
    pub(super) fn or(&self, manifest: &RunOverrides) -> Self {
        Self {
            threads: self.threads.or(manifest.threads),
            ort_lib: self.ort_lib.clone(),
            device: self.device.clone().or_else(|| manifest.device.clone()),
            kernels: self.kernels.or(manifest.kernels),
        }
    }
}

/// Runs the subcommand and returns the exit code of the process.
///
/// # Errors
/// If the run could not start, or was aborted.
pub fn run(args: &EmbedArgs) -> anyhow::Result<ExitCode> {
    let code = match manifest::jobs_from_files(&args.files, &args.overrides) {
        Ok(jobs) if args.dry.is_asked() => {
            let options = prepare(&args.common, None, &RunOverrides::default())?;
            dry_run::dry_run(jobs, &options, &args.dry, args.common.quiet)
        }
        Ok(jobs) => embed(jobs, &args.common, None, &RunOverrides::default()),
        Err(errors) => {
            say(&format!("error: {errors}"));
            Ok(USAGE.into())
        }
    };
    code.map(|code| args.failures.accept(code))
}

/// Sets the number of threads and watches signals, and returns the options of the run: the
/// manifest's at `path` where the command line sets none.
///
/// # Errors
/// If the system refuses threads or handlers of signals.
pub(super) fn prepare(
    options: &RunOptions,
    path: Option<&Path>,
    manifest: &RunOverrides,
) -> anyhow::Result<Options> {
    let engine = options.engine.or(manifest);
    let asked = engine.threads.map(usize::from);
    let threads = threads::helpful(asked);
    if let Some(asked) = asked.filter(|&asked| asked > threads && !options.quiet) {
        say(&format!(
            "using {threads} of the {asked} requested threads, because this process has {}",
            counted(threads as u64, "processor")
        ));
    }
    // Reading and tokenizing share the cores with the model. The thread pool can be set only once
    // per process.
    threads::pool(threads)?;
    let interrupt =
        signals::watch().context("cannot install the handler for SIGTERM and SIGINT")?;
    Ok(Options {
        out: options.out.clone(),
        manifest: path.map(Path::to_owned),
        threads,
        ort_lib: engine.ort_lib,
        kernels: engine.kernels.unwrap_or_default(),
        strict: options.strict.or(manifest.strict).unwrap_or(false),
        device: engine.device.unwrap_or_default(),
        trace: options.trace.clone(),
        reload_per_file: options.reload_per_file,
        resume: options.resume,
        cache_dir: options.cache_dir.clone(),
        save_every: options
            .save_every
            .or(manifest.save_every)
            .unwrap_or(SAVE_EVERY),
        no_dedup: options.no_dedup.or(manifest.no_dedup).unwrap_or(false),
        interrupt,
    })
}

impl RunOptions {
    /// Nothing else than these, for commands that have a part of the options.
    pub(super) fn plain(engine: &EngineOptions, out: &Path, quiet: bool) -> Self {
        Self {
            out: out.to_owned(),
            engine: engine.clone(),
            resume: false,
            cache_dir: None,
            save_every: None,
            no_dedup: None,
            strict: None,
            reload_per_file: false,
            trace: None,
            quiet,
        }
    }
}

/// Runs the jobs, with the options of the manifest at `path` where the command line sets none;
/// writes `report.json` and prints the summary.
///
/// # Errors
/// If the run could not start, or was aborted.
pub fn embed(
    jobs: Vec<Job>,
    options: &RunOptions,
    path: Option<&Path>,
    manifest: &RunOverrides,
) -> anyhow::Result<ExitCode> {
    let run_options = prepare(options, path, manifest)?;
    let files = jobs.len() as u64;
    let mut progress = Progress::new(size(&jobs), files, options.quiet);
    let quiet = options.quiet;
    let result = run::run(jobs, &run_options, &mut progress, &|text| {
        if !quiet {
            say(text);
        }
    });
    progress.end();
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            let code = failed(&error);
            if let Some(advice) = advice(&error, options) {
                say(&advice);
            }
            return Ok(code.into());
        }
    };
    finished(&report, &options.out, quiet)
}

/// Writes a report into the output folder and prints it. Returns the exit code of the process.
///
/// # Errors
/// If the report cannot be written.
pub(super) fn finished(report: &Report, out: &Path, quiet: bool) -> anyhow::Result<ExitCode> {
    let path = out.join(run::REPORT);
    write_report(report, &path)?;
    if !quiet {
        say(report.to_string().trim_end());
        say(&format!("  output   {}", out.display()));
        say(&format!("  report   {}", path.display()));
    }
    let is_partly = report.totals.failed_files > 0 || report.totals.failed_records > 0;
    Ok(if is_partly {
        PARTLY.into()
    } else {
        ExitCode::SUCCESS
    })
}

/// Advice for errors caused by a full disk or a limit on file size.
fn advice(error: &RunError, options: &RunOptions) -> Option<String> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind == Some(io::ErrorKind::FileTooLarge) {
            return Some(
                "the file size limit was reached: check `ulimit -f` and the limits of the file \
                 system, then run the same command with --resume (finished files are kept)"
                    .to_owned(),
            );
        }
        if let Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) = kind {
            let folders = [Some(&options.out), options.cache_dir.as_ref()];
            let room = folders.into_iter().flatten().filter_map(|folder| {
                let room = disk::room(folder)?;
                let inodes = if room.no_files {
                    ", but no more files can be created there: the file system is out of inodes"
                } else {
                    ""
                };
                Some(format!(
                    "{} {} free in {}{inodes}",
                    counted(room.bytes, "byte"),
                    are(room.bytes),
                    folder.display()
                ))
            });
            let room: Vec<String> = room.collect();
            return Some(format!(
                "{}{}free some space, then run the same command with --resume (finished files are \
                 kept)",
                room.join(", "),
                if room.is_empty() { "" } else { "; " }
            ));
        }
        cause = error.source();
    }
    None
}

/// Total size of the inputs in bytes, or 0 if the size of any of them is unknown (a pipe, for
/// example).
pub(super) fn size(jobs: &[Job]) -> u64 {
    jobs.iter()
        .map(|job| match &job.source {
            Source::Path(path) => fs::metadata(path)
                .ok()
                .filter(fs::Metadata::is_file)
                .map(|about| about.len()),
            Source::Stdin => None,
        })
        .sum::<Option<u64>>()
        .unwrap_or(0)
}

/// Writes `report.json`, whole or not at all.
fn write_report(report: &Report, path: &Path) -> anyhow::Result<()> {
    let write = || -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(report)?;
        text.push(b'\n');
        Ok(atomic_file::write(path, text)?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
