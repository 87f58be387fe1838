//! `seqembed fetch`: downloads a model from the Hugging Face hub into the cache and exports it, so
//! that it can be used offline.
#![expect(
    clippy::doc_markdown,
    reason = "the flags' comments are printed as help"
)]

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use seqembed_onnx::{Model, Precision};

use super::export::precision_parser;
use super::flags::with_flags;
use super::{USAGE, pass_on, say, shown};
use crate::hub::{self, Event, Hub, HubModel, Pace};
use crate::models;

/// Interval between progress lines of a long download when standard error is not a terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Download a model from the Hugging Face hub and export it
///
/// Files are stored in the cache shared with Python's huggingface_hub, and files already there are
/// not downloaded again. HF_ENDPOINT (a mirror), HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE,
/// HTTPS_PROXY and SSL_CERT_FILE are respected. Prints the path of the exported model folder.
#[derive(Debug, clap::Args)]
pub struct FetchArgs {
    /// A known name (esm2_t33_650M_UR50D) or a hub repository (facebook/esm2_t33_650M_UR50D)
    #[arg(value_name = "MODEL")]
    model: String,

    /// A branch, tag or commit [default: main]
    #[arg(long)]
    revision: Option<String>,

    /// Check the hub for a newer revision even if the model is in the cache, and download damaged
    /// files again
    #[arg(long)]
    update: bool,

    /// Give up if the download takes longer than this many seconds; the next attempt continues
    /// where it stopped [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,

    /// Reconnect if a download is slower than this many bytes per second for --speed-time seconds;
    /// 0 accepts any speed
    #[arg(long, value_name = "BYTES", default_value_t = 1000)]
    speed_limit: u64,

    /// How many seconds a connection may stay below --speed-limit
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    speed_time: u64,

    /// Only download; the model is exported when it is first used
    #[arg(long)]
    no_export: bool,

    /// Also write the weights in this precision. GPUs use fp16 by default, and otherwise the first
    /// run creates the file
    #[arg(long, value_name = "PRECISION", default_value = "fp32", value_parser = precision_parser(), conflicts_with = "no_export")]
    precision: Precision,
}

/// Downloads and exports a model.
///
/// # Errors
/// If the name is invalid, the hub cannot be reached or refuses, or the files are damaged or cannot
/// be written.
pub fn run(args: &FetchArgs) -> anyhow::Result<ExitCode> {
    let Some(model) = named(args) else {
        return Ok(USAGE.into());
    };
    let pace = Pace {
        bytes: args.speed_limit,
        time: Duration::from_secs(args.speed_time),
    };
    let hub = Hub::from_env().within(pace, args.timeout.map(Duration::from_secs));
    let mut progress = Progress::default();
    let folder = hub::fetch(&hub, &model, args.update, &mut |event| progress.show(event))
        .with_context(|| format!("cannot fetch {model}"))?;
    say(&format!("{model}: {}", folder.display()));
    let folder = if args.no_export {
        folder
    } else {
        let folder = models::export_hub(&model, &folder, &|line| say(line))?;
        let model = Model::open(&folder)?;
        for storage in model.storages(args.precision)? {
            model.weights_in(storage, &models::cache())?;
        }
        folder
    };
    // For a script: `$(seqembed fetch NAME)`.
    pass_on(&format!("{}\n", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The model named by the arguments; prints an error and returns `None` if they are invalid.
fn named(args: &FetchArgs) -> Option<HubModel> {
    let model = models::hub_model(&args.model)
        .inspect_err(|error| say(&format!("error: {error}")))
        .ok()?;
    let Some(revision) = &args.revision else {
        return Some(model);
    };
    let model = HubModel::parse(&format!("{}@{revision}", model.repository));
    if model.is_none() {
        say(&format!(
            "error: --revision {revision} is not a valid name of a branch, tag or commit"
        ));
    }
    model
}

/// Shows a download: a bar on a terminal, lines in a log.
#[derive(Default)]
struct Progress {
    bar: Option<ProgressBar>,
    file: String,
    size: Option<u64>,
    said: Option<Instant>,
}

impl Progress {
    fn show(&mut self, event: &Event<'_>) {
        match *event {
            Event::Begin { file, done, size } => {
                file.clone_into(&mut self.file);
                self.size = size;
                self.said = Some(Instant::now());
                if std::io::stderr().is_terminal() {
                    let bar = size
                        .map_or_else(ProgressBar::no_length, ProgressBar::new)
                        .with_style(style());
                    bar.set_message(shown(&self.file).into_owned());
                    bar.set_position(done);
                    bar.reset_eta();
                    self.bar = Some(bar);
                } else {
                    let size = size
                        .map(|size| format!(", {}", DecimalBytes(size)))
                        .unwrap_or_default();
                    let from = if done > 0 {
                        format!(", continuing at {}", DecimalBytes(done))
                    } else {
                        String::new()
                    };
                    say(&format!("{file}{size}{from}"));
                }
            }
            Event::Bytes(done) => {
                if let Some(bar) = &self.bar {
                    bar.set_position(done);
                } else if self.said.is_none_or(|said| said.elapsed() >= LOG_INTERVAL) {
                    self.said = Some(Instant::now());
                    let of = self
                        .size
                        .map(|size| format!(" of {}", DecimalBytes(size)))
                        .unwrap_or_default();
                    say(&format!("{}: {}{of}", self.file, DecimalBytes(done)));
                }
            }
            Event::End => {
                if let Some(bar) = self.bar.take() {
                    bar.finish();
                }
            }
            Event::Retry { why, wait } => {
                self.say(&format!("{why}; retrying in {} s", wait.as_secs()));
            }
            Event::Unverified { file, endpoint } => self.say(&format!(
                "warning: {file} could not be verified because the hub at {endpoint} gives no \
                 hash for it"
            )),
            Event::Waiting { file } => self.say(&format!(
                "{file}: waiting for another process to finish downloading it"
            )),
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(shown(&with_flags(line))),
            None => say(line),
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{msg:28!} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
    )
    .expect("the template is valid")
}
