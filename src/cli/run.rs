//! `seqembed run`: the main job, from a manifest.

use std::path::PathBuf;
use std::process::ExitCode;

use super::dry_run::{self, DryRunOptions};
use super::embed::{RunOptions, embed, prepare};
use super::failure::FailureOptions;
use super::{USAGE, say};
use crate::manifest;
use crate::settings::Overrides;

/// Embed all files of a manifest, loading each model once
///
/// The manifest is YAML, CSV or TSV. In YAML, `files` lists a `sample` and a `fasta` for each file,
/// and options stand at the top level or next to a file. CSV and TSV have the columns `sample` and
/// `fasta`, and one column per option. docs/manifest.md lists the options. An option given here
/// overrides a file's, which overrides the one at the top level. All errors in the manifest are
/// reported together, before any model is loaded.
///
/// Exit codes: 0 success; 1 failure; 2 invalid command line, manifest or model; 3 finished, but
/// some files or sequences failed; 75 all GPUs were lost; 143 and 130 stopped by SIGTERM and
/// SIGINT. Run the same command with --resume to continue a run that ended early.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The manifest file (YAML, CSV or TSV)
    manifest: PathBuf,

    #[command(flatten)]
    common: RunOptions,

    #[command(flatten)]
    failures: FailureOptions,

    #[command(flatten)]
    dry: DryRunOptions,

    #[command(flatten)]
    overrides: Overrides,
}

/// Runs the subcommand and returns the exit code of the process.
///
/// # Errors
/// If the run could not start, or was aborted.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let code = match manifest::read(&args.manifest, &args.overrides) {
        Ok(manifest) if args.dry.is_asked() => {
            let options = prepare(&args.common, Some(&args.manifest), &manifest.run)?;
            dry_run::dry_run(manifest.jobs, &options, &args.dry, args.common.quiet)
        }
        Ok(manifest) => embed(
            manifest.jobs,
            &args.common,
            Some(&args.manifest),
            &manifest.run,
        ),
        Err(errors) => {
            say(&format!("error: {errors}"));
            Ok(USAGE.into())
        }
    };
    code.map(|code| args.failures.accept(code))
}
