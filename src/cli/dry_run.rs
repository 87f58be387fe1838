//! `--dry-run` of `seqembed run` and `seqembed embed`: prints the size of a run, as text or JSON.

use std::fmt::Write as _;
use std::process::ExitCode;

use indicatif::BinaryBytes;

use super::failure::failed;
use super::{PARTLY, pass_on, print, say};
use crate::manifest::Job;
use crate::run::{self, Options, Sizes, Speed};
use crate::text::{counted, thousands};

/// Options of a run that is only sized.
#[derive(Debug, Clone, clap::Args)]
pub struct DryRunOptions {
    /// Check everything and print how large the run is, without computing embeddings or writing to
    /// the output folder
    ///
    /// All files are read and tokenized. Printed are the numbers of files, records and tokens, what
    /// --resume would keep, the size of the output in each format, and the time that computing
    /// takes on this machine. For that, each model is loaded and run for two seconds.
    #[arg(long)]
    dry_run: bool,

    /// With --dry-run: do not load a model to measure its speed
    #[arg(long, requires = "dry_run")]
    no_measure: bool,

    /// With --dry-run: calculate the time with this speed, of another machine, instead of measuring
    /// it: `device_tokens` per second in the report of a run there
    #[arg(
        long,
        requires = "dry_run",
        conflicts_with = "no_measure",
        value_name = "TOKENS_PER_SECOND",
        value_parser = rate
    )]
    rate: Option<f64>,

    /// With --dry-run: print JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
}

/// A speed of more than 0.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("expected a number of tokens per second, greater than 0".to_owned()),
    }
}

impl DryRunOptions {
    /// Whether the run is only sized.
    pub(super) fn is_asked(&self) -> bool {
        self.dry_run
    }
}

/// Prints the size of the run.
///
/// # Errors
/// If standard output cannot be written.
pub(super) fn dry_run(
    jobs: Vec<Job>,
    options: &Options,
    dry: &DryRunOptions,
    quiet: bool,
) -> anyhow::Result<ExitCode> {
    let speed = match dry.rate {
        Some(rate) => Speed::Given(rate),
        None if dry.no_measure => Speed::Unknown,
        None => Speed::Measured,
    };
    let tell = |text: &str| {
        if !quiet {
            say(text);
        }
    };
    let sizes = match run::dry_run(jobs, options, speed, &tell) {
        Ok(sizes) => sizes,
        Err(error) => return Ok(failed(&error).into()),
    };
    if dry.json {
        pass_on(&format!("{}\n", serde_json::to_string_pretty(&sizes)?))?;
    } else {
        for text in sizes.errors.iter().chain(&sizes.warnings) {
            say(text);
        }
        print(&text(&sizes))?;
    }
    Ok(if sizes.failed_files > 0 {
        PARTLY.into()
    } else {
        ExitCode::SUCCESS
    })
}

fn text(sizes: &Sizes) -> String {
    let mut text = "dry run: nothing was computed or written\n".to_owned();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<9} {value}");
    };
    let counts = |counts: &[(u64, &str)]| {
        let some = counts.iter().filter(|(count, _)| *count > 0);
        let some: Vec<String> = some
            .map(|(count, what)| format!("{} {what}", thousands(*count)))
            .collect();
        if some.is_empty() {
            String::new()
        } else {
            format!(" ({})", some.join(", "))
        }
    };
    let files = counts(&[
        (sizes.finished_files, "finished already"),
        (sizes.failed_files, "would fail"),
    ]);
    line("files", format!("{}{files}", thousands(sizes.files)));
    let records = counts(&[
        (sizes.repeated, "repeated"),
        (sizes.windowed, "in windows"),
        (sizes.truncated, "truncated"),
        (sizes.skipped, "without an embedding"),
    ]);
    line("records", format!("{}{records}", thousands(sizes.records)));
    line("letters", thousands(sizes.residues));
    let repeated = counts(&[(
        sizes.repeated_tokens,
        "repeated ones are not computed again",
    )]);
    line(
        "tokens",
        format!(
            "{} in {}{repeated}",
            thousands(sizes.tokens),
            counted(sizes.windows, "window")
        ),
    );
    let formats: Vec<String> = sizes
        .output_bytes_by_format
        .iter()
        .map(|(format, bytes)| format!("{format} {}", BinaryBytes(*bytes)))
        .collect();
    line(
        "output",
        format!(
            "about {} as set ({})",
            BinaryBytes(sizes.output_bytes),
            formats.join(", ")
        ),
    );
    for model in &sizes.models {
        let speed = model.tokens_per_second.map_or(String::new(), |rate| {
            format!(", {rate:.0} tokens/s ({})", model.device)
        });
        line(
            "model",
            format!(
                "{} in {}: {}{speed}",
                model.model,
                model.precision,
                counted(model.tokens, "token")
            ),
        );
    }
    if let Some(seconds) = sizes.seconds {
        line("time", format!("about {} of computing", duration(seconds)));
    }
    text
}

/// `45 s`, `12 min`, `3.4 h`
fn duration(seconds: f64) -> String {
    if seconds < 90.0 {
        format!("{seconds:.1} s")
    } else if seconds < 5400.0 {
        format!("{:.1} min", seconds / 60.0)
    } else {
        format!("{:.1} h", seconds / 3600.0)
    }
}
