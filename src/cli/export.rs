//! `seqembed export`: a checkpoint -> a model folder.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use seqembed_onnx::{Error, ExportOptions, Model, Precision, export, export_random};

use super::say;

use crate::{models, tokenize};

/// Make a model folder (ONNX) from a checkpoint
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// A Hugging Face folder (config.json with `model.safetensors` or `pytorch_model.bin`, whole or sharded), or a fair-esm .pt
    #[arg(required_unless_present = "random", conflicts_with = "random")]
    pub checkpoint: Option<PathBuf>,
    /// The model folder to make
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// The model's name in every output [default: that of the checkpoint's folder or file]
    #[arg(long)]
    pub name: Option<String>,
    /// Replace a model that is there already
    #[arg(long)]
    pub force: bool,
    /// The tokenizer's file (vocab.txt or tokenizer.json) [default: the one in the checkpoint's folder]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Write the weights in this number format too. A GPU uses fp16 unless told otherwise, and the first run that needs the
    /// file makes it; do it here when many runs will start at once, or when they may not write to the model's folder
    #[arg(long, value_name = "PRECISION", default_value = "fp32", value_parser = precision_parser())]
    pub precision: Precision,
    /// Instead of a checkpoint: random weights in the shape of a known model, for trying things out
    #[arg(long, value_name = "NAME")]
    pub random: Option<String>,
    /// The seed of random weights
    #[arg(long, default_value_t = 0, requires = "random")]
    pub seed: u64,
}

/// Takes `fp32`, `fp16`, `bf16` and `fp8`.
pub(super) fn precision_parser() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(Precision::ALL.map(Precision::name)).map(|name| {
        Precision::of_name(&name).expect("only the names of formats are possible values")
    })
}

/// Exports, and says what was written.
///
/// # Errors
/// When the folder can't be written.
pub fn run(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    let options = ExportOptions {
        name: args.name.clone(),
        force: args.force,
        tokenizer: args.tokenizer.clone(),
        check_tokenizer: Some(tokenize::check),
        half: Some(args.precision),
    };
    let outcome = match (&args.random, &args.checkpoint) {
        (Some(known), _) => export_random(known, args.seed, &args.output, &options),
        (None, Some(checkpoint)) => {
            models::check_intact(checkpoint, None)?;
            export(checkpoint, &args.output, &options)
        }
        (None, None) => anyhow::bail!("name a checkpoint, or --random and a known model"),
    };
    match outcome {
        Ok(model) => {
            report(&model);
            Ok(ExitCode::SUCCESS)
        }
        // What the user gave is wrong: 2, as for any other usage error.
        Err(error) if error.is_input() => {
            say(&format!("error: {error}"));
            Ok(ExitCode::from(2))
        }
        Err(error) => Err::<_, Error>(error).context("the export failed"),
    }
}

fn report(model: &Model) {
    let info = model.info();
    say(&format!(
        "{}: {}, {} layers of {}, weights {}...",
        model.folder().display(),
        info.name,
        info.architecture.layers(),
        info.architecture.hidden(),
        &info.weights_sha256[..12]
    ));
    if let Some(seed) = info.random_seed {
        say(&format!(
            "The weights are random numbers (seed {seed}): its embeddings mean nothing."
        ));
    }
}
