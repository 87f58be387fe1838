//! `seqembed contacts`: contacts of residues, from attention maps.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::embed::{EngineOptions, finished, size};
use super::failure::{FailureOptions, failed};
use super::progress::Progress;
use super::{FAILED, USAGE, say, signals, told};
use crate::contacts::{
    self, ContactsError, ContactsFormat, ContactsOptions, ContactsOutputs, PairChoice, Top,
};
use crate::manifest::{self, Job};
use crate::settings::{Overrides, Unknown, positive};
use crate::threads;

/// Predict contacts of residues with the contact head of ESM-2 or ESM-1b
///
/// Writes a file per input file, named after it (`gut_01.faa.gz` -> `OUT/gut_01.npz`), with a
/// matrix per sequence: the probability of each pair of residues to be in contact. Sequences longer
/// than the model's limit are skipped, because windows would leave out the contacts between them.
///
/// The model must have been exported with its contact head: from the Hugging Face hub's files, or
/// from fair-esm's NAME.pt with NAME-contact-regression.pt beside it. docs/contacts.md describes
/// the files.
///
/// Exit codes: 0 success; 1 failure; 2 invalid command line, manifest or model; 3 finished, but
/// some files or sequences failed; 143 and 130 stopped by SIGTERM and SIGINT. There is no --resume:
/// a stopped command keeps the files that it finished, and computes all of them when it is run
/// again.
#[derive(Debug, clap::Args)]
pub struct ContactsArgs {
    /// FASTA or FASTQ files, plain or compressed; `-` reads standard input
    #[arg(
        value_name = "FILE",
        required_unless_present = "manifest",
        conflicts_with = "manifest"
    )]
    files: Vec<PathBuf>,

    /// The files of a manifest (YAML, CSV or TSV) in place of files on the command line.
    /// docs/contacts.md lists the options that are used of it
    #[arg(long, value_name = "MANIFEST")]
    manifest: Option<PathBuf>,

    /// The output folder; created if it does not exist
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,

    /// The model: a known name (see `seqembed models`), a checkpoint, or a model folder made by
    /// `seqembed export`
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,

    /// The format of the output files
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "npz")]
    format: ContactsFormat,

    /// Also write a table OUT/NAME.tsv with the pairs of highest probability of each sequence: as
    /// many as it has residues (L), a part of that (L/2, L/5), or a number
    #[arg(long, value_name = "L|L/2|L/5|N")]
    top: Option<Top>,

    /// Least distance in the sequence, |i - j|, of the pairs that --top lists
    #[arg(long, value_name = "RESIDUES", default_value_t = 6)]
    min_separation: usize,

    /// Longest sequence, in residues, that is computed; longer ones are skipped [default: the
    /// model's limit, 1022 for ESM-2]
    #[arg(long, value_name = "LENGTH", value_parser = positive)]
    max_length: Option<usize>,

    /// What to do with letters outside the model's vocabulary [default: replace]
    #[arg(long, value_enum, value_name = "POLICY")]
    unknown: Option<Unknown>,

    /// Compute a file even if it looks like DNA
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    force_alphabet: Option<bool>,

    /// Maximum number of tokens per batch; affects speed and memory, not results [default: 512]
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    batch_tokens: Option<usize>,

    #[command(flatten)]
    engine: EngineOptions,

    /// Stop at the first file that fails, instead of finishing the others
    #[arg(long)]
    strict: bool,

    #[command(flatten)]
    failures: FailureOptions,

    /// Print only warnings and errors
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the subcommand and returns the exit code of the process.
///
/// # Errors
/// If the run could not start.
pub fn run(args: &ContactsArgs) -> anyhow::Result<ExitCode> {
    let overrides = Overrides {
        model: args.model.clone(),
        max_length: args.max_length,
        unknown: args.unknown,
        force_alphabet: args.force_alphabet,
        batch_tokens: args.batch_tokens,
        ..Overrides::default()
    };
    let jobs = match &args.manifest {
        Some(path) => manifest::read(path, &overrides).map(|manifest| {
            let strict = args.strict || manifest.run.strict.unwrap_or(false);
            (manifest.jobs, args.engine.or(&manifest.run), strict)
        }),
        None => manifest::jobs_from_files(&args.files, &overrides)
            .map(|jobs| (jobs, args.engine.clone(), args.strict)),
    };
    match jobs {
        Ok((jobs, engine, strict)) => {
            if let Some(why) = manifest::why_no_spans(&jobs) {
                say(&format!("error: {why}"));
                return Ok(USAGE.into());
            }
            let code = predict(jobs, args, &engine, strict)?;
            Ok(args.failures.accept(code))
        }
        Err(errors) => {
            say(&format!("error: {errors}"));
            Ok(USAGE.into())
        }
    }
}

fn predict(
    jobs: Vec<Job>,
    args: &ContactsArgs,
    engine: &EngineOptions,
    strict: bool,
) -> anyhow::Result<ExitCode> {
    let threads = threads::helpful(engine.threads());
    threads::pool(threads)?;
    let interrupt =
        signals::watch().context("cannot install the handler for SIGTERM and SIGINT")?;
    let options = ContactsOptions {
        out: args.out.clone(),
        manifest: args.manifest.clone(),
        outputs: ContactsOutputs {
            format: args.format,
            pairs: args.top.map(|top| PairChoice {
                top,
                separation: args.min_separation,
            }),
        },
        threads,
        ort_lib: engine.ort_lib(),
        kernels: engine.kernels(),
        device: engine.device(),
        strict,
        interrupt,
    };
    let files = jobs.len() as u64;
    let mut progress = Progress::new(size(&jobs), files, args.quiet);
    let result = contacts::run(jobs, &options, &mut progress, &|text| {
        if !args.quiet {
            say(text);
        }
    });
    progress.end();
    let report = match result {
        Ok(report) => report,
        Err(ContactsError::Run(error)) => return Ok(failed(&error).into()),
        Err(error) => {
            say(&format!("error: {}", told(&error)));
            return Ok(if error.is_usage() { USAGE } else { FAILED }.into());
        }
    };
    finished(&report, &options.out, args.quiet)
}
