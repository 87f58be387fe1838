//! `seqembed verify`: compares a model's vectors with published values.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use seqembed_onnx::{KnownValues, Model, known_model};

use super::embed::EngineOptions;
use super::{FAILED, USAGE, print, say, told};
use crate::embedder::EmbedError;
use crate::models;
use crate::settings::Precision;
use crate::verify::{self, Compared, VerifyError};

/// Compare a model's vectors with published values
///
/// Embeds the sequences whose published values are known, with the weights on this machine
/// (download them with `seqembed fetch`), and prints both values side by side. The exit code is 0
/// if they agree, and 1 if they do not.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// A known name (see `seqembed models`); with --values, any model
    #[arg(value_name = "NAME")]
    name: String,

    /// The model with the weights of NAME: a checkpoint or a model folder [default: NAME as
    /// downloaded]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,

    /// Compare with your own recorded values, a list in JSON; docs/models.md describes it
    #[arg(long, value_name = "FILE")]
    values: Option<PathBuf>,

    /// The floating-point format that the model computes in; in all but fp32, the tolerance is
    /// larger
    #[arg(long, value_enum, value_name = "PRECISION", default_value = "fp32")]
    precision: Precision,

    #[command(flatten)]
    engine: EngineOptions,
}

/// Compares, and prints a table.
///
/// # Errors
/// If the device is not available, the model cannot be loaded, or standard output is closed.
pub fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let known = match known_values(args) {
        Ok(known) => known,
        Err(why) => {
            say(&format!("error: {why}"));
            return Ok(USAGE.into());
        }
    };
    let named = args.model.as_ref().unwrap_or(&args.name);
    let folder = match models::resolve(named, &|line| say(line)) {
        Ok(folder) => folder,
        Err(error) => {
            say(&format!("error: {}", told(&error)));
            return Ok(USAGE.into());
        }
    };
    let model = Model::open(&folder)?;
    if model.info().random_seed.is_some() {
        say("The weights are random, so they will not agree with published values.");
    }
    let options = args.engine.embedder(args.precision)?;
    say(&format!(
        "comparing {} with known values, in {} on {}",
        folder.display(),
        args.precision
            .on(options.device != crate::device::Device::Cpu),
        options.device
    ));
    match verify::compare(&folder.to_string_lossy(), &known, &options) {
        Ok(compared) => {
            print(&table(&known, &compared))?;
            Ok(verdict(&compared))
        }
        Err(error) => {
            say(&format!("error: {}", told(&error)));
            let usage = match &error {
                VerifyError::Embed(EmbedError::Run(error)) => error.is_usage(),
                VerifyError::Embed(EmbedError::Sequences(_)) => false,
                _ => true,
            };
            Ok(if usage { USAGE } else { FAILED }.into())
        }
    }
}

/// The values to compare with; `Err` says why there are none.
fn known_values(args: &VerifyArgs) -> Result<Vec<KnownValues>, String> {
    let known = if let Some(path) = &args.values {
        let known = verify::read(path).map_err(|error| told(&error))?;
        if known.is_empty() {
            return Err(format!(
                "{} is an empty list: to compare with your own values, list them as docs/models.md \
                 describes",
                path.display()
            ));
        }
        known
    } else {
        let known = known_model(&args.name).ok_or_else(|| {
            format!(
                "`{}` is not a known name{}: run `seqembed models` for the list. To verify a model \
                 folder or a checkpoint, give the known name of the model and --model PATH, or \
                 compare with your own values (--values FILE)",
                args.name,
                models::did_you_mean(&args.name)
            )
        })?;
        known.published_values()
    };
    if known.is_empty() {
        return Err(format!(
            "no published values of {} are known: compare with your own values (--values FILE)",
            args.name
        ));
    }
    Ok(known)
}

/// Known and computed values side by side, under a line that names the source of the known ones.
fn table(known: &[KnownValues], compared: &[Compared]) -> String {
    let width = compared.iter().map(|one| one.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut source = None;
    for one in compared {
        let from = known[one.entry].source.as_ref();
        if source != Some(from) {
            source = Some(from);
            if !from.is_empty() {
                let _ = writeln!(text, "{from}:");
            }
            let _ = writeln!(
                text,
                "{:width$}  {:>12}  {:>12}  {:>10}  {:>10}",
                "", "expected", "computed", "difference", "tolerance"
            );
        }
        let _ = writeln!(
            text,
            "{:width$}  {:>12.6}  {:>12.6}  {:>10.1e}  {:>10.1e}{}",
            one.what,
            one.expected,
            one.computed,
            one.computed - one.expected,
            one.tolerance,
            if one.agrees() { "" } else { "  DIFFERS" }
        );
    }
    text
}

/// Prints whether all values agree, and returns the exit code.
fn verdict(compared: &[Compared]) -> ExitCode {
    let differ = compared.iter().filter(|one| !one.agrees()).count();
    let all = compared.len();
    if differ == 0 {
        say(&format!("all {all} values agree"));
        return ExitCode::SUCCESS;
    }
    say(&format!(
        "{differ} of {all} values differ: these are not the weights that the values were computed \
         with, or seqembed computes the model wrongly"
    ));
    FAILED.into()
}
