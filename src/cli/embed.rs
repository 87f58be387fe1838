//! `seqembed embed` and what it shares with `seqembed run`: the options of a run, and its end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum as _;

use super::progress::Progress;
use super::{FAILED, LOST, PARTLY, USAGE, disk, say, signals, told};
use crate::atomic_file;
use crate::device::DeviceChoice;
use crate::engine::cpu::session::Kernels;
use crate::manifest::{self, Job};
use crate::records::Source;
use crate::report::Report;
use crate::run::{self, Options, RunError};
use crate::settings::{Overrides, RunOverrides, seconds};
use crate::text::{are, counted};
use crate::threads;

/// How often the rows of unfinished files are saved.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// Embed sequence files without a manifest
///
/// Each file becomes one output file, named after it: `gut_01.faa.gz` -> `OUT/gut_01.parquet`.
#[derive(Debug, clap::Args)]
pub struct EmbedArgs {
    /// FASTA or FASTQ files, plain or compressed; `-` is the standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    #[command(flatten)]
    common: RunOptions,

    #[command(flatten)]
    overrides: Overrides,
}

/// Options of the whole run, with and without a manifest.
#[derive(Debug, clap::Args)]
// Flags of the command line are what they are.
#[allow(clippy::struct_excessive_bools)]
pub struct RunOptions {
    /// The output folder; it is made if need be
    #[arg(short, long, value_name = "FOLDER")]
    pub(super) out: PathBuf,

    #[command(flatten)]
    engine: EngineOptions,

    /// Go on with an interrupted run: finished files stay as they are, and saved rows of the others are taken. What was made from
    /// another input, model or option is computed again
    #[arg(long)]
    resume: bool,

    /// Keep the work in this folder, for workflow engines whose retries begin in an empty one: a run takes from it what is
    /// finished and saved, as with --resume. One folder serves one run at a time
    #[arg(long, value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,

    /// How often the rows of unfinished files are saved, in seconds: a killed run loses no more than that [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    save_every: Option<Duration>,

    /// Compute a sequence each time that it comes, not once a run; results are the same
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    no_dedup: Option<bool>,

    /// Stop at the first file that fails, instead of doing the others first
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    strict: Option<bool>,

    /// Load the model again for each file: slower, and there to compare with (`seqembed bench load` does)
    #[arg(long)]
    reload_per_file: bool,

    /// Write what happened when (reading, tokenizing, each batch on its device, writing) to a file that Chrome's tracing page and
    /// Perfetto show
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Say nothing but warnings and errors
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// What the models are run with.
#[derive(Debug, Clone, clap::Args)]
pub struct EngineOptions {
    /// Threads to compute with, no more than this process has processors [default: as many]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,

    /// The ONNX Runtime library, or a folder that holds it [default: it is looked for; `seqembed doctor` shows where]
    #[arg(long, value_name = "PATH")]
    ort_lib: Option<PathBuf>,

    /// Where the models run: auto, cpu, cuda (the first GPU), cuda:N, cuda:N,M or cuda:all [default: auto]
    ///
    /// auto is one GPU, the one with the most free memory, if there is one that works, and else the CPU; it says what it chose and
    /// why. A GPU that is named and can't be had is an error. Numbers count the GPUs that `CUDA_VISIBLE_DEVICES` shows.
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceChoice>,

    /// The kernels that the models run with [default: auto]
    #[arg(long, value_enum, value_name = "KERNELS")]
    kernels: Option<Kernels>,
}

impl EngineOptions {
    /// The same options on the command line of another process.
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

    /// The same options, where there is none the manifest's.
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

/// Runs the subcommand.
///
/// # Errors
/// When the run could not be begun, or broke off.
pub fn run(args: &EmbedArgs) -> anyhow::Result<ExitCode> {
    match manifest::jobs_from_files(&args.files, &args.overrides) {
        Ok(jobs) => embed(jobs, &args.common, None, &RunOverrides::default()),
        Err(errors) => {
            say(&format!("error: {errors}"));
            Ok(USAGE.into())
        }
    }
}

/// Runs jobs, with the options of the manifest at `path` where the command line has none; says how it went, and writes the report.
///
/// # Errors
/// When the run could not be begun, or broke off.
pub fn embed(
    jobs: Vec<Job>,
    options: &RunOptions,
    path: Option<&Path>,
    manifest: &RunOverrides,
) -> anyhow::Result<ExitCode> {
    let engine = options.engine.or(manifest);
    let asked = engine.threads.map(usize::from);
    let threads = threads::helpful(asked);
    if let Some(asked) = asked.filter(|&asked| asked > threads && !options.quiet) {
        say(&format!(
            "{threads} of {asked} threads are used: this process has {}, and more threads would not help",
            counted(threads as u64, "processor")
        ));
    }
    // Reading and tokenising share the cores with the model; the pool can only be set once.
    threads::pool(threads)?;
    let files = jobs.len() as u64;
    let mut progress = Progress::new(size(&jobs), files, options.quiet);
    let quiet = options.quiet;
    let interrupt = signals::watch().context("cannot watch for signals")?;
    let result = run::run(
        jobs,
        &Options {
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
        },
        &mut progress,
        &|text| {
            if !quiet {
                say(text);
            }
        },
    );
    progress.end();
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            let code = match &error {
                RunError::Interrupted { signal, .. } => signals::exit_code(*signal),
                RunError::Lost { .. } => LOST,
                error if error.is_usage() => USAGE,
                _ => FAILED,
            };
            say(&format!("error: {}", told(&error)));
            if let Some(advice) = advice(&error, options) {
                say(&advice);
            }
            return Ok(code.into());
        }
    };
    let path = options.out.join(run::REPORT);
    write_report(&report, &path)?;
    if !quiet {
        say(report.to_string().trim_end());
        say(&format!("  output   {}", options.out.display()));
        say(&format!("  report   {}", path.display()));
    }
    Ok(
        if report.totals.failed_files > 0 || report.totals.failed_records > 0 {
            PARTLY.into()
        } else {
            ExitCode::SUCCESS
        },
    )
}

/// What to do about a disk that is full, and about a limit of a file's size.
fn advice(error: &RunError, options: &RunOptions) -> Option<String> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind == Some(io::ErrorKind::FileTooLarge) {
            return Some(
                "files may not be larger here: look at `ulimit -f`, and at what the file system takes. Then run the same command \
                 with --resume: finished files stay"
                    .to_owned(),
            );
        }
        if let Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) = kind {
            let folders = [Some(&options.out), options.cache_dir.as_ref()];
            let room = folders.into_iter().flatten().filter_map(|folder| {
                let room = disk::room(folder)?;
                let inodes = if room.no_files {
                    ", but no more files can be made there: its inodes are used up"
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
                "{}{}make room, then run the same command with --resume: finished files stay",
                room.join(", "),
                if room.is_empty() { "" } else { "; " }
            ));
        }
        cause = error.source();
    }
    None
}

/// The size of all inputs, or 0 when one has no size.
fn size(jobs: &[Job]) -> u64 {
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
