//! The options of a job, and how their layers lie: the command line beats a file's entry in the manifest, which
//! beats the manifest's top, which beats the defaults.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::device::DeviceChoice;
use crate::engine::cpu::session::Kernels;

pub use crate::output::{Format, OutputPrecision};

/// How a record's vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The mean over the residues, without special tokens
    #[default]
    Mean,
    /// The mean over all tokens, special ones such as <cls> and <eos> too
    MeanAll,
    /// The vector of the first token, <cls>
    Cls,
    /// The greatest value over the residues, in each dimension
    Max,
    /// No pooling: a vector for each residue
    None,
}

/// What is done with a sequence that is longer than `--max-length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Long {
    /// Embed it in windows that overlap; each residue's vector is taken from the window where it lies most central
    #[default]
    Window,
    /// Embed its first `--max-length` residues
    Truncate,
    /// Fail its file
    Error,
}

/// What is done with a sequence that has letters outside of the model's vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unknown {
    /// Embed each such letter as the unknown token
    #[default]
    Replace,
    /// Skip the sequence: its row is there, without numbers
    Skip,
    /// Fail its file
    Error,
}

/// What is done with the other strand of DNA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Revcomp {
    /// Nothing: the sequence is embedded as it stands
    #[default]
    None,
    /// The mean of the sequence's embedding and its reverse complement's
    Mean,
}

/// The numbers that the model computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// fp32 on a CPU, fp16 on a GPU
    #[default]
    Auto,
    /// 32-bit floats
    Fp32,
    /// 16-bit floats; a batch that overflows them is computed again in fp32 (GPUs only)
    Fp16,
    /// 16-bit floats with the range of 32-bit ones and less precision (GPUs only)
    Bf16,
    /// As fp16, and 8-bit floats in feed-forward layers: faster, and less precise (ESM-2 on H100 and H200 only)
    Fp8,
}

impl Precision {
    /// What it is on a device of which it is known whether it is a GPU.
    #[must_use]
    pub fn on(self, gpu: bool) -> Self {
        match self {
            Self::Auto if gpu => Self::Fp16,
            Self::Auto => Self::Fp32,
            decided => decided,
        }
    }

    /// Bytes of a number that flows through the model.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Auto | Self::Fp32 => 4,
            Self::Fp16 | Self::Bf16 | Self::Fp8 => 2,
        }
    }
}

/// `Display` as the value is written on the command line.
macro_rules! display_as_written {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let value = self.to_possible_value().expect("no value is hidden");
                f.write_str(value.get_name())
            }
        }
    )*};
}
display_as_written!(Pooling, Revcomp, Long, Unknown, Precision);

/// What one layer says about the options: nothing, unless it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// The model: a known name (`seqembed models`), a checkpoint, or an exported folder
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<String>,

    /// How a record's vectors become one [default: mean]
    #[arg(long, value_enum, value_name = "POOLING")]
    pub pooling: Option<Pooling>,

    /// The layer whose output is taken: 0 is the input of the first layer, -1 the last layer [default: the last]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub layer: Option<i32>,

    /// The format of the output files [default: parquet]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<Format>,

    /// The floats in the output files, whatever the model computes with [default: fp32]
    #[arg(long, value_enum, value_name = "PRECISION")]
    pub output_precision: Option<OutputPrecision>,

    /// What is done with a sequence that is longer than --max-length [default: window]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub long: Option<Long>,

    /// The most residues (of DNA: bases) that are embedded at once [default: the model's, 1022 for ESM-2]
    #[arg(long, value_name = "LENGTH", value_parser = positive)]
    pub max_length: Option<usize>,

    /// The most residues (of DNA: bases) of a record; a longer one fails its file. It bounds the memory that a record can take
    /// [default: 10,000,000, of DNA 300,000,000; with --long truncate, which keeps only what is embedded, none]
    #[arg(long, value_name = "LENGTH", value_parser = positive)]
    pub max_record: Option<usize>,

    /// How many residues or bases two neighbouring windows share; less than --max-length [default: a quarter of it]
    #[arg(long, value_name = "LENGTH")]
    pub overlap: Option<usize>,

    /// What is done with letters outside of the model's vocabulary [default: replace]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub unknown: Option<Unknown>,

    /// What is done with the other strand of DNA [default: none]
    #[arg(long, value_enum, value_name = "STRANDS")]
    pub revcomp: Option<Revcomp>,

    /// Embed a file even if its letters look like those of DNA and the model is one of proteins, or the other way
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub force_alphabet: Option<bool>,

    /// The numbers that the model computes with [default: auto]
    #[arg(long, value_enum, value_name = "PRECISION")]
    pub precision: Option<Precision>,

    /// The most tokens in a batch; it changes speed and memory, not results [default: chosen for the device]
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub batch_tokens: Option<usize>,
}

/// A whole number of at least 1.
fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a whole number of at least 1 is needed".to_owned()),
        Ok(number) => Ok(number),
    }
}

impl Overrides {
    /// The options' names, as a manifest spells them.
    pub const KEYS: [&str; 14] = [
        "model",
        "pooling",
        "layer",
        "format",
        "output_precision",
        "long",
        "max_length",
        "max_record",
        "overlap",
        "unknown",
        "revcomp",
        "force_alphabet",
        "precision",
        "batch_tokens",
    ];

    /// Sets the option `key` (one of [`Self::KEYS`]) from its text.
    ///
    /// # Errors
    /// When there is no such option, or it can't have this value.
    pub fn set(&mut self, key: &str, text: &str) -> Result<(), OptionError> {
        match key {
            "model" if text.is_empty() => return Err(bad(key, text, "a name or a path")),
            "model" => self.model = Some(text.to_owned()),
            "pooling" => self.pooling = Some(one_of(key, text)?),
            "layer" => {
                let layer = text.parse();
                self.layer = Some(layer.map_err(|_| bad(key, text, "a whole number"))?);
            }
            "format" => self.format = Some(one_of(key, text)?),
            "output_precision" => self.output_precision = Some(one_of(key, text)?),
            "long" => self.long = Some(one_of(key, text)?),
            "max_length" => self.max_length = Some(count(key, text)?),
            "max_record" => self.max_record = Some(count(key, text)?),
            "overlap" => {
                let overlap = text.parse();
                self.overlap =
                    Some(overlap.map_err(|_| bad(key, text, "a whole number, 0 or more"))?);
            }
            "unknown" => self.unknown = Some(one_of(key, text)?),
            "revcomp" => self.revcomp = Some(one_of(key, text)?),
            "force_alphabet" => self.force_alphabet = Some(truth(key, text)?),
            "precision" => self.precision = Some(one_of(key, text)?),
            "batch_tokens" => self.batch_tokens = Some(count(key, text)?),
            _ => return Err(OptionError::NoSuchOption(key.to_owned())),
        }
        Ok(())
    }
}

/// What a manifest's top says about the run as a whole: nothing, unless it is there. The options of the command line go before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunOverrides {
    /// Threads to compute with.
    pub threads: Option<u16>,
    /// Where the models run.
    pub device: Option<DeviceChoice>,
    /// Whose kernels the models run with.
    pub kernels: Option<Kernels>,
    /// How often the rows of unfinished files are saved.
    pub save_every: Option<Duration>,
    /// Whether a sequence is computed each time that it comes.
    pub no_dedup: Option<bool>,
    /// Whether the run stops at the first file that fails.
    pub strict: Option<bool>,
}

impl RunOverrides {
    /// The options' names, as a manifest spells them.
    pub const KEYS: [&str; 6] = [
        "threads",
        "device",
        "kernels",
        "save_every",
        "no_dedup",
        "strict",
    ];

    /// Sets the option `key` (one of [`Self::KEYS`]) from its text.
    ///
    /// # Errors
    /// When there is no such option, or it can't have this value.
    pub fn set(&mut self, key: &str, text: &str) -> Result<(), OptionError> {
        match key {
            "threads" => {
                let threads = text.parse().ok().filter(|&threads: &u16| threads > 0);
                let wanted = "a whole number from 1 to 65535";
                self.threads = Some(threads.ok_or_else(|| bad(key, text, wanted))?);
            }
            "device" => {
                let device = text.parse::<DeviceChoice>();
                let wanted = "auto, cpu, cuda, cuda:N, cuda:N,M, cuda:all";
                self.device = Some(device.map_err(|_| bad(key, text, wanted))?);
            }
            "kernels" => self.kernels = Some(one_of(key, text)?),
            "save_every" => {
                let wanted = "a number of seconds, 0 or more";
                self.save_every = Some(seconds(text).map_err(|_| bad(key, text, wanted))?);
            }
            "no_dedup" => self.no_dedup = Some(truth(key, text)?),
            "strict" => self.strict = Some(truth(key, text)?),
            _ => return Err(OptionError::NoSuchOption(key.to_owned())),
        }
        Ok(())
    }
}

/// A time in seconds.
///
/// # Errors
/// With what is needed instead.
pub fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a number of seconds is needed, 0 or more".to_owned())
}

fn truth(key: &str, text: &str) -> Result<bool, OptionError> {
    let lower = text.to_ascii_lowercase();
    lower.parse().map_err(|_| bad(key, text, "true, false"))
}

fn bad(option: &str, value: &str, wanted: impl Into<String>) -> OptionError {
    OptionError::BadValue {
        option: option.to_owned(),
        value: value.to_owned(),
        wanted: wanted.into(),
    }
}

fn count(key: &str, text: &str) -> Result<usize, OptionError> {
    positive(text).map_err(|_| bad(key, text, "a whole number of at least 1"))
}

/// A value of an option that has a fixed set of them.
fn one_of<T: ValueEnum>(key: &str, text: &str) -> Result<T, OptionError> {
    T::from_str(text, true).map_err(|_| {
        let names: Vec<_> = T::value_variants()
            .iter()
            .filter_map(ValueEnum::to_possible_value)
            .map(|value| value.get_name().to_owned())
            .collect();
        bad(key, text, names.join(", "))
    })
}

/// An option that does not exist, or a value that it can't have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// The name is not one of [`Overrides::KEYS`] or [`RunOverrides::KEYS`].
    #[error("there is no option `{0}`")]
    NoSuchOption(String),
    /// The value does not fit.
    #[error("`{option}` can't be `{value}`: {}{wanted}",
        if wanted.contains(", ") && !wanted.starts_with("a ") { "it is one of " } else { "it is " })]
    BadValue {
        /// The option.
        option: String,
        /// What was given.
        value: String,
        /// What is needed, or all that is possible.
        wanted: String,
    },
}

/// Options that do not go together, or lack one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// No layer names a model.
    #[error("no model: give `--model`, or `model:` in the manifest")]
    NoModel,
    /// Windows that overlap wholly never get on.
    #[error("`overlap` ({overlap}) must be less than `max_length` ({max_length})")]
    Overlap {
        /// The overlap.
        overlap: usize,
        /// The window.
        max_length: usize,
    },
    /// A window must hold a token.
    #[error(
        "`max_length` ({max_length}) is less than one token of the model, which reads {span} bases"
    )]
    Short {
        /// The window.
        max_length: usize,
        /// The bases of a token.
        span: usize,
    },
    /// The model has no positions beyond its limit.
    #[error("`max_length` can't be {max_length}: the model has positions for {limit} at most")]
    Long {
        /// The window.
        max_length: usize,
        /// The model's limit.
        limit: usize,
    },
    /// The device has no such numbers.
    #[error("`precision` can't be {precision} on {device}: {why}")]
    Precision {
        /// What was asked for.
        precision: Precision,
        /// The device.
        device: String,
        /// Why not, and what to do.
        why: String,
    },
    /// The strands' tokens do not lie side by side.
    #[error(
        "`revcomp: mean` needs a pooling other than `none`: the two strands have different tokens"
    )]
    Strands,
    /// There is no other strand.
    #[error("`revcomp: mean` is for models of DNA")]
    NoStrands,
    /// The model has fewer layers.
    #[error("`layer` can't be {layer}: the model has layers 0 to {layers} (or -{} to -1)", layers + 1)]
    Layer {
        /// What was asked for.
        layer: i32,
        /// The model's number of layers.
        layers: usize,
    },
}

/// The options of one job, decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Settings {
    /// A known name, a checkpoint or an exported folder.
    pub model: String,
    /// How a record's vectors become one.
    pub pooling: Pooling,
    /// The layer asked for; none: the last. See [`Settings::layer_of`].
    pub layer: Option<i32>,
    /// The format of the output file.
    pub format: Format,
    /// The floats in the output file.
    pub output_precision: OutputPrecision,
    /// What is done with sequences that are too long.
    pub long: Long,
    /// Only so many of a record's first tokens are pooled over, while the model sees all; none: all. No option sets it.
    pub pool_first: Option<usize>,
    /// The most residues at once; none: the model's. See [`Settings::window_of`].
    pub max_length: Option<usize>,
    /// The most residues of a record; none: as many as is usual, see [`Alphabet::longest_record`](crate::tokenize::Alphabet::longest_record).
    pub max_record: Option<usize>,
    /// Residues that neighbouring windows share; none: a quarter of `max_length`. See [`Settings::window_of`].
    pub overlap: Option<usize>,
    /// What is done with letters outside of the vocabulary.
    pub unknown: Unknown,
    /// What is done with the other strand of DNA.
    pub revcomp: Revcomp,
    /// Whether a file is embedded even if it looks like something else than the model is for.
    pub force_alphabet: bool,
    /// The numbers computed with.
    pub precision: Precision,
    /// The most tokens in a batch; none: the engine's choice.
    pub batch_tokens: Option<usize>,
}

/// How long sequences are cut for one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// The most residues at once, at least 1.
    pub max_length: usize,
    /// Residues that neighbouring windows share, less than `max_length`.
    pub overlap: usize,
}

impl Settings {
    /// Lays the layers over one another, the strongest first, and the defaults under them.
    ///
    /// # Errors
    /// When no layer names a model, or the options do not go together.
    pub fn resolve(layers: &[&Overrides]) -> Result<Self, SettingsError> {
        fn first<T: Clone>(
            layers: &[&Overrides],
            option: impl Fn(&Overrides) -> &Option<T>,
        ) -> Option<T> {
            layers.iter().find_map(|layer| option(layer).clone())
        }
        let settings = Self {
            model: first(layers, |layer| &layer.model).ok_or(SettingsError::NoModel)?,
            pooling: first(layers, |layer| &layer.pooling).unwrap_or_default(),
            layer: first(layers, |layer| &layer.layer),
            format: first(layers, |layer| &layer.format).unwrap_or_default(),
            output_precision: first(layers, |layer| &layer.output_precision).unwrap_or_default(),
            long: first(layers, |layer| &layer.long).unwrap_or_default(),
            pool_first: None,
            max_length: first(layers, |layer| &layer.max_length),
            max_record: first(layers, |layer| &layer.max_record),
            overlap: first(layers, |layer| &layer.overlap),
            unknown: first(layers, |layer| &layer.unknown).unwrap_or_default(),
            revcomp: first(layers, |layer| &layer.revcomp).unwrap_or_default(),
            force_alphabet: first(layers, |layer| &layer.force_alphabet).unwrap_or_default(),
            precision: first(layers, |layer| &layer.precision).unwrap_or_default(),
            batch_tokens: first(layers, |layer| &layer.batch_tokens),
        };
        if let Some(max_length) = settings.max_length {
            settings.window_of(max_length)?;
        }
        if settings.revcomp == Revcomp::Mean && settings.pooling == Pooling::None {
            return Err(SettingsError::Strands);
        }
        Ok(settings)
    }

    /// The window for a model whose own limit is `model_limit` residues.
    ///
    /// # Errors
    /// When the overlap is not less than the window.
    pub fn window_of(&self, model_limit: usize) -> Result<Window, SettingsError> {
        let max_length = self.max_length.unwrap_or(model_limit);
        let overlap = self.overlap.unwrap_or(max_length / 4);
        if overlap >= max_length {
            return Err(SettingsError::Overlap {
                overlap,
                max_length,
            });
        }
        Ok(Window {
            max_length,
            overlap,
        })
    }

    /// The layer for a model of `layers` layers: 0 is the input of the first, `layers` the output of the last.
    ///
    /// # Errors
    /// When the model has no such layer.
    pub fn layer_of(&self, layers: usize) -> Result<usize, SettingsError> {
        let Some(layer) = self.layer else {
            return Ok(layers);
        };
        let distance = usize::try_from(layer.unsigned_abs()).unwrap_or(usize::MAX);
        let index = if layer < 0 {
            (layers + 1).checked_sub(distance)
        } else {
            Some(distance)
        };
        index
            .filter(|&index| index <= layers)
            .ok_or(SettingsError::Layer { layer, layers })
    }
}
