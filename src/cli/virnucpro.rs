//! `seqembed virnucpro`: `VirNucPro`'s features of contigs.

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
use crate::virnucpro::{self, Found, Places, Side};

/// Compute VirNucPro's features of contigs, with one load of each model
///
/// Cuts contigs into chunks, reads all six frames, embeds the frames without a stop (bases with DNABERT-S, translations with
/// ESM-2 3B), and merges both, all by VirNucPro's rules and under its file names: `OUT/x_nucleotide/output_1_DNABERT_S.pt`,
/// `OUT/x_protein/output_1_ESM.pt`, and `OUT/x_merged/output_1_merged.pt`, which its prediction reads. No row is ever at another's
/// place: a frame without a vector is an error.
#[derive(Debug, clap::Args)]
pub struct VirnucproArgs {
    /// FASTA files of contigs, plain or compressed
    #[arg(required = true, value_name = "CONTIGS")]
    contigs: Vec<PathBuf>,

    #[command(flatten)]
    common: RunOptions,

    /// Bases of a chunk: 300 or 500, as the model of the prediction wants
    #[arg(long, value_name = "BASES", default_value_t = 500, value_parser = at_least_3)]
    chunk: usize,

    /// What becomes of proteins beyond 1,022 residues (of chunks beyond 3,000 bases), and the order of the ESM-2 file: by length, or as
    /// in the FASTA file (v1, v2)
    #[arg(long, value_enum, default_value_t, value_name = "VERSION")]
    truncation: Truncation,

    /// The model of DNA: a known name, a checkpoint, or an exported folder
    #[arg(long, value_name = "MODEL", default_value = "DNABERT-S")]
    dna_model: String,

    /// The model of proteins
    #[arg(long, value_name = "MODEL", default_value = "esm2_t36_3B_UR50D")]
    protein_model: String,

    /// The most bases of a contig; a longer one is an error [default: 300,000,000]
    #[arg(long, value_name = "BASES", value_parser = clap::value_parser!(u32).range(1..))]
    max_record: Option<u32>,

    /// Reading frames in a file
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    records_per_file: u32,

    /// Only cut the chunks and read the frames: write their FASTA files, and load no model
    #[arg(long)]
    frames_only: bool,

    /// The numbers that the models compute with [default: fp32, as VirNucPro]
    #[arg(long, value_enum, value_name = "PRECISION")]
    precision: Option<Precision>,

    /// The most tokens in a batch; it changes speed and memory, not results [default: chosen for the device]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    batch_tokens: Option<u32>,
}

/// A chunk holds a codon at least.
fn at_least_3(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bases) if bases >= 3 => Ok(bases),
        _ => Err("a whole number of at least 3 is needed".to_owned()),
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When contigs can't be read, a reading frame has no vector, or a file can't be written.
pub fn run(args: &VirnucproArgs) -> anyhow::Result<ExitCode> {
    let models = Models {
        nucleotide: args.dna_model.clone(),
        protein: args.protein_model.clone(),
        truncation: args.truncation,
        precision: args.precision.or(Some(Precision::Fp32)),
        batch_tokens: args.batch_tokens.map(|tokens| tokens as usize),
    };
    // Names and checks the inputs, as those of `embed`.
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
    folders::make(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let mut all: Vec<(Places, Found)> = Vec::new();
    let mut jobs = Vec::new();
    for input in inputs {
        let places = Places {
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
                "{}: {}, {}, {} without a stop",
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
    for (places, found) in all {
        let mut told = None;
        for part in 1..=found.parts {
            told = Some(features::merge(&places, part, args.truncation)?);
        }
        if let Some(layouts) = told {
            features::write_provenance(&places, args.chunk, args.truncation, &layouts)?;
        }
        if !args.common.quiet {
            say(&format!(
                "  merged   {} in {}",
                counted(found.frames, "row"),
                places.merged(1).parent().unwrap_or(out).display()
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}
