//! `seqembed score`: pseudo-likelihoods of sequences, log-probabilities of residues, and scores of
//! variants.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::embed::{self, EngineOptions, RunOptions};
use super::failure::FailureOptions;
use super::progress::Progress;
use super::{FAILED, LOST, USAGE, say, told};
use crate::engine::error::EngineError;
use crate::manifest::{self, Manifest};
use crate::run::score::{self, Method, ScoreError, ScoreOptions, TableFormat, Variants};
use crate::settings::{Overrides, Precision, RunOverrides, seconds};

/// Score sequences and variants with a masked language model
///
/// Writes a table per input file, named after it, with a row for each record: the sum of the
/// log-probabilities of its residues (`log_likelihood`), and the perplexity. With --variants, the
/// table has the score of each variant: the log-probability of the new letter less that of the old
/// one. Models: ESM-2, ESM-1b, ESM-1v, ESM C, Nucleotide Transformer, DNABERT, DNABERT-2, GROVER
/// and BERTs of proteins, exported from a checkpoint that has its language-model head. Run the same
/// command with --resume to continue a run that ended early.
#[derive(Debug, clap::Args)]
// Flags of the command line are what they are.
#[allow(clippy::struct_excessive_bools)]
pub struct ScoreArgs {
    /// FASTA or FASTQ files, plain or compressed; `-` reads standard input
    #[arg(
        value_name = "FILE",
        required_unless_present = "manifest",
        conflicts_with = "manifest"
    )]
    files: Vec<PathBuf>,

    /// The files of a manifest (YAML, CSV or TSV) in place of files on the command line.
    /// docs/scores.md lists the options that are used of it
    #[arg(long, value_name = "MANIFEST")]
    manifest: Option<PathBuf>,

    /// The model: a known name (see `seqembed models`), a checkpoint, or a model folder made by
    /// `seqembed export`
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,

    /// The output folder; created if it does not exist
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,

    /// How a position's log-probabilities are computed
    #[arg(long, value_enum, value_name = "METHOD", default_value_t)]
    method: Method,

    /// Also write `SAMPLE.residues`: a row for each residue, with its log-probability and those of
    /// the 20 amino acids there
    #[arg(long)]
    per_residue: bool,

    /// With --per-residue: the log-probabilities of all tokens in place of the 20 amino acids
    #[arg(long, requires = "per_residue", conflicts_with_all = ["scan", "variants"])]
    vocabulary: bool,

    /// Also write `SAMPLE.scan`: a row for each residue, with the score of every single
    /// substitution there
    #[arg(long)]
    scan: bool,

    /// Score these variants, in place of all else: a table (TSV, or CSV by its name) with the
    /// columns `id` and `variant`, such as `A42G`, or `A42G:L50P`; positions count from 1
    #[arg(long, value_name = "TABLE", conflicts_with_all = ["scan", "per_residue"])]
    variants: Option<PathBuf>,

    /// Mask all positions of a variant together, in place of one by one; needs --method masked
    #[arg(long, requires = "variants")]
    joint: bool,

    /// The format of the tables
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    format: TableFormat,

    /// Longest sequence, in residues (bases for DNA), that is scored in one piece; a longer one is
    /// scored in windows, each residue where it is most central [default: the model's limit]
    #[arg(long, value_name = "LENGTH", value_parser = clap::value_parser!(u32).range(1..))]
    max_length: Option<u32>,

    /// Residues (bases for DNA) shared by two neighbouring windows; must be less than --max-length
    /// [default: a quarter of --max-length]
    #[arg(long, value_name = "LENGTH")]
    overlap: Option<u32>,

    /// Score a file even if it looks like DNA and the model is a protein model, or the reverse
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    force_alphabet: Option<bool>,

    /// The floating-point format that the model computes in; the head always computes in fp32
    /// [default: auto]
    #[arg(long, value_enum, value_name = "PRECISION")]
    precision: Option<Precision>,

    /// Maximum number of tokens per batch; affects speed and memory, not results [default: chosen
    /// for the device]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    batch_tokens: Option<u32>,

    #[command(flatten)]
    engine: EngineOptions,

    #[command(flatten)]
    failures: FailureOptions,

    /// Continue an interrupted run: keep finished files and reuse the saved scores of unfinished
    /// ones. Anything made from another input, model or option is computed again
    #[arg(long)]
    resume: bool,

    /// Keep finished and saved work in this folder, for workflow engines whose retries start in an
    /// empty one; implies --resume. Only one run at a time can use the folder
    #[arg(long, value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,

    /// Save the scores of unfinished files every so many seconds; a killed run loses no more work
    /// than that [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    save_every: Option<Duration>,

    /// Stop at the first file that fails, instead of finishing the others
    #[arg(long)]
    strict: bool,

    /// Print only warnings and errors
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the subcommand and returns the exit code of the process.
///
/// # Errors
/// If the run could not start, or the report cannot be written.
pub fn run(args: &ScoreArgs) -> anyhow::Result<ExitCode> {
    let overrides = Overrides {
        model: args.model.clone(),
        max_length: args.max_length.map(|length| length as usize),
        overlap: args.overlap.map(|length| length as usize),
        force_alphabet: args.force_alphabet,
        precision: args.precision,
        batch_tokens: args.batch_tokens.map(|tokens| tokens as usize),
        ..Overrides::default()
    };
    let overrides = score::settings(overrides);
    if args.joint && args.method != Method::Masked {
        say("error: --joint needs --method masked");
        return Ok(USAGE.into());
    }
    let manifest = match &args.manifest {
        Some(path) => manifest::read(path, &overrides),
        None => manifest::jobs_from_files(&args.files, &overrides).map(|jobs| Manifest {
            jobs,
            run: RunOverrides::default(),
        }),
    };
    let Manifest { jobs, run } = match manifest {
        Ok(manifest) => manifest,
        Err(errors) => {
            say(&format!("error: {errors}"));
            return Ok(USAGE.into());
        }
    };
    if let Some(why) = manifest::why_no_spans(&jobs) {
        say(&format!("error: {why}"));
        return Ok(USAGE.into());
    }
    let variants = match &args.variants {
        None => None,
        Some(path) => match Variants::read(path) {
            Ok(variants) => Some((path.clone(), variants)),
            Err(error) => return Ok(failed(&error).into()),
        },
    };
    let scores = ScoreOptions {
        method: args.method,
        per_residue: args.per_residue,
        vocabulary: args.vocabulary,
        scan: args.scan,
        variants,
        joint: args.joint,
        format: args.format,
    };
    let mut options = RunOptions::plain(&args.engine, &args.out, args.quiet);
    options.resume = args.resume;
    options.cache_dir.clone_from(&args.cache_dir);
    options.save_every = args.save_every;
    options.strict = args.strict.then_some(true);
    let options = embed::prepare(&options, args.manifest.as_deref(), &run)?;
    let files = jobs.len() as u64;
    let mut progress = Progress::new(embed::size(&jobs), files, args.quiet);
    let result = score::score(jobs, &options, &scores, &mut progress, &|text| {
        if !args.quiet {
            say(text);
        }
    });
    progress.end();
    let report = match result {
        Ok(report) => report,
        Err(error) => return Ok(failed(&error).into()),
    };
    let code = embed::finished(&report, &args.out, args.quiet)?;
    Ok(args.failures.accept(code))
}

/// Prints why a run failed, and returns the exit code of the process.
fn failed(error: &ScoreError) -> u8 {
    if let ScoreError::Run(error) = error {
        return super::failure::failed(error);
    }
    say(&format!("error: {}", told(error)));
    match error {
        ScoreError::Engine(EngineError::DeviceLost(_)) => LOST,
        error if error.is_usage() => USAGE,
        _ => FAILED,
    }
}
