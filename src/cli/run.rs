//! `seqembed run`: the main job, from a manifest.

use std::path::PathBuf;
use std::process::ExitCode;

use super::embed::{RunOptions, embed};
use super::{USAGE, say};
use crate::manifest;
use crate::settings::Overrides;

/// Embed all files of a manifest with one load of each model
///
/// The manifest is YAML, CSV or TSV. YAML has `files`, a list of `sample` and `fasta`, and options of this command on top or
/// beside a file; CSV and TSV have columns `sample,fasta` and options. docs/manifest.md lists which of them. Options given here
/// beat a file's, which beat the manifest's top. All mistakes are reported together, before a model is loaded.
///
/// Exit code: 0 all done, 1 failed, 2 the command line, the manifest or the model is wrong, 3 done but for files or
/// sequences that failed, 75 all GPUs were lost, 143 and 130 stopped by SIGTERM and SIGINT. A run that ended before its
/// time goes on with --resume.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The manifest
    manifest: PathBuf,

    #[command(flatten)]
    common: RunOptions,

    #[command(flatten)]
    overrides: Overrides,
}

/// Runs the subcommand.
///
/// # Errors
/// When the run could not be begun, or broke off.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    match manifest::read(&args.manifest, &args.overrides) {
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
    }
}
