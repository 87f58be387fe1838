//! `seqembed export`: a checkpoint -> a model folder.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use seqembed_onnx::{Error, ExportOptions, Model, Precision, export, export_random};

use super::say;

use crate::{models, tokenize};

/// Export a checkpoint to a model folder (ONNX)
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// A Hugging Face folder (config.json with `model.safetensors` or `pytorch_model.bin`, single
    /// or sharded), a .pt file of fair-esm, or a .pth file of the esm package (ESM C)
    #[arg(required_unless_present = "random", conflicts_with = "random")]
    pub checkpoint: Option<PathBuf>,
    /// The model folder to create
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// The model name to record in every output [default: the name of the checkpoint's folder or
    /// file]
    #[arg(long)]
    pub name: Option<String>,
    /// Replace an existing model folder
    #[arg(long)]
    pub force: bool,
    /// The tokenizer file (vocab.txt, tokenizer.json or spiece.model) [default: the one in the
    /// checkpoint's folder]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Also write the weights in this precision. GPUs use fp16 by default, and the first run that
    /// needs the file creates it; create it here if many runs will start at the same time, or if
    /// they cannot write to the model folder
    #[arg(long, value_name = "PRECISION", default_value = "fp32", value_parser = precision_parser())]
    pub precision: Precision,
    /// Instead of reading a checkpoint, make random weights in the shape of this known model, for
    /// testing
    #[arg(long, value_name = "NAME")]
    pub random: Option<String>,
    /// The seed for the random weights
    #[arg(long, default_value_t = 0, requires = "random")]
    pub seed: u64,
}

/// Takes `fp32`, `fp16`, `bf16` and `fp8`.
pub(super) fn precision_parser() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(Precision::ALL.map(Precision::name)).map(|name| {
        Precision::of_name(&name).expect("only the names of formats are possible values")
    })
}

/// Exports the checkpoint and prints a summary of the model folder.
///
/// # Errors
/// If the folder cannot be written.
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
        (None, None) => anyhow::bail!(
            "no checkpoint was given: name one, or use --random with \
                                       the name of a known model"
        ),
    };
    match outcome {
        Ok(model) => {
            report(&model);
            Ok(ExitCode::SUCCESS)
        }
        // What the user gave is wrong: 2, as for any other usage error.
        Err(error) if error.is_input() => {
            let hint = match &error {
                Error::UnknownModel { name } => models::did_you_mean(name),
                _ => String::new(),
            };
            say(&format!("error: {error}{hint}"));
            Ok(ExitCode::from(2))
        }
        Err(error) => Err::<_, Error>(error).context("the export failed"),
    }
}

fn report(model: &Model) {
    let info = model.info();
    say(&format!(
        "{}: {}, {} layers, {} dimensions, weights {}...",
        model.folder().display(),
        info.name,
        info.architecture.layers(),
        info.architecture.hidden(),
        &info.weights_sha256[..12]
    ));
    if let Some(seed) = info.random_seed {
        say(&format!(
            "The weights are random (seed {seed}), so the embeddings are meaningless."
        ));
    }
    if let Some(note) = models::licence_note(info) {
        say(&note);
    }
}
