//! `seqembed virnucpro`: computes the features that `VirNucPro` predicts from.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::embed::{RunOptions, embed};
use super::{USAGE, say};
use crate::folders;
use crate::manifest;
use crate::settings::{Overrides, Precision, RunOverrides};
use crate::text::counted;
use crate::virnucpro::features::{self, Models, Truncation};
use crate::virnucpro::{self, Found, SamplePaths, Side};

/// Compute VirNucPro's features for contigs, loading each model once
///
/// Cuts contigs into chunks, translates all six reading frames, embeds the frames that have no stop
/// codon (bases with DNABERT-S, translations with ESM-2 3B), and merges both, following VirNucPro's
/// rules and file names: `OUT/x_nucleotide/output_1_DNABERT_S.pt`, `OUT/x_protein/output_1_ESM.pt`,
/// and `OUT/x_merged/output_1_merged.pt`, which its prediction step reads. A frame without a vector
/// is an error, so rows are never shifted.
#[derive(Debug, clap::Args)]
pub struct VirnucproArgs {
    /// FASTA files of contigs, plain or compressed
    #[arg(required = true, value_name = "CONTIGS")]
    contigs: Vec<PathBuf>,

    #[command(flatten)]
    common: RunOptions,

    /// Chunk length in bases: 300 or 500, whichever the prediction model was trained for
    #[arg(long, value_name = "BASES", default_value_t = 500, value_parser = at_least_3)]
    chunk: usize,

    /// How proteins longer than 1,022 residues (from chunks longer than 3,000 bases) are handled,
    /// and how the ESM-2 file is ordered: by length, or as in the FASTA file (v1, v2)
    #[arg(long, value_enum, default_value_t, value_name = "VERSION")]
    truncation: Truncation,

    /// The DNA model: a known name, a checkpoint, or a model folder
    #[arg(long, value_name = "MODEL", default_value = "DNABERT-S")]
    dna_model: String,

    /// The protein model: a known name, a checkpoint, or a model folder
    #[arg(long, value_name = "MODEL", default_value = "esm2_t36_3B_UR50D")]
    protein_model: String,

    /// Longest contig accepted, in bases; a longer one is an error [default: 300,000,000]
    #[arg(long, value_name = "BASES", value_parser = clap::value_parser!(u32).range(1..))]
    max_record: Option<u32>,

    /// Maximum number of reading frames per file
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    records_per_file: u32,

    /// Only write the FASTA files of chunks and reading frames; load no model
    #[arg(long)]
    frames_only: bool,

    /// The floating-point format that the models compute in [default: fp32, as VirNucPro]
    #[arg(long, value_enum, value_name = "PRECISION")]
    precision: Option<Precision>,

    /// Maximum number of tokens per batch; affects speed and memory, not results [default: chosen
    /// for the device]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    batch_tokens: Option<u32>,
}

/// A chunk length: at least one codon.
fn at_least_3(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bases) if bases >= 3 => Ok(bases),
        _ => Err("expected a whole number of at least 3".to_owned()),
    }
}

/// Runs the subcommand and returns the exit code of the process.
///
/// # Errors
/// If contigs cannot be read, a reading frame has no vector, or a file cannot be written.
pub fn run(args: &VirnucproArgs) -> anyhow::Result<ExitCode> {
    let models = Models {
        nucleotide: args.dna_model.clone(),
        protein: args.protein_model.clone(),
        truncation: args.truncation,
        precision: args.precision.or(Some(Precision::Fp32)),
        batch_tokens: args.batch_tokens.map(|tokens| tokens as usize),
    };
    // The inputs are named and checked in the same way as those of `embed`.
    let named = Overrides {
        model: Some(models.nucleotide.clone()),
        ..Overrides::default()
    };
    let inputs = match manifest::jobs_from_files(&args.contigs, &named) {
        Ok(inputs) => inputs,
        Err(errors) => {
            say(&format!("error: {errors}"));
            return Ok(USAGE.into());
        }
    };
    let settings = [
        models.settings(Side::Nucleotide)?,
        models.settings(Side::Protein)?,
    ];
    let out = &args.common.out;
    folders::make(out).with_context(|| format!("cannot create the folder {}", out.display()))?;
    let mut all: Vec<(SamplePaths, Found)> = Vec::new();
    let mut jobs = Vec::new();
    for input in inputs {
        let places = SamplePaths {
            out: out.clone(),
            sample: input.sample,
        };
        let per_file = args.records_per_file as usize;
        let found = virnucpro::prepare(
            &places,
            &input.source,
            args.chunk,
            per_file,
            args.max_record.map(|most| most as usize),
        )?;
        for warning in &found.warnings {
            say(&format!("warning: {warning}"));
        }
        if !args.common.quiet {
            say(&format!(
                "{}: {}, {}, {} without a stop codon",
                places.sample,
                counted(found.contigs, "contig"),
                counted(found.chunks, "chunk"),
                counted(found.frames, "reading frame")
            ));
        }
        for part in 1..=found.parts {
            let sides = [Side::Nucleotide, Side::Protein].into_iter().zip(&settings);
            jobs.extend(
                sides.map(|(side, settings)| features::job(&places, side, part, settings.clone())),
            );
        }
        all.push((places, found));
    }
    if args.frames_only || jobs.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let code = embed(jobs, &args.common, None, &RunOverrides::default())?;
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }
    merge(&all, args)?;
    Ok(ExitCode::SUCCESS)
}

/// Joins the features of both models, and writes where they come from.
fn merge(all: &[(SamplePaths, Found)], args: &VirnucproArgs) -> anyhow::Result<()> {
    for (places, found) in all {
        let mut told = None;
        for part in 1..=found.parts {
            told = Some(features::merge(places, part, args.truncation)?);
        }
        if let Some(layouts) = told {
            features::write_provenance(places, args.chunk, args.truncation, &layouts)?;
        }
        if !args.common.quiet {
            say(&format!(
                "  merged   {} in {}",
                counted(found.frames, "row"),
                places
                    .merged(1)
                    .parent()
                    .unwrap_or(&args.common.out)
                    .display()
            ));
        }
    }
    Ok(())
}
