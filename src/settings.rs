//! The options of a job and their order of precedence: command line, then a file's entry in the
//! manifest, then the top level of the manifest, then the defaults.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::device::DeviceChoice;

pub use crate::layers::{LayerChoice, LayerError, Layers};
pub use crate::output::{Format, OutputPrecision};
use crate::pooling::PoolingsParser;
pub use crate::pooling::{Pooling, Poolings};
use crate::tokenize::SpecialTokens;

/// What to do with a sequence longer than `--max-length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Long {
    /// Embed it in overlapping windows; each residue's vector is taken from the window in which it
    /// is most central
    #[default]
    Window,
    /// Embed only its first `--max-length` residues
    Truncate,
    /// Fail its file
    Error,
}

/// What to do with a sequence that has letters outside the model's vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Unknown {
    /// Embed each such letter as the unknown token
    #[default]
    Replace,
    /// Skip the sequence: its row is kept, without an embedding
    Skip,
    /// Fail its file
    Error,
}

/// How the reverse strand of DNA is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Revcomp {
    /// Not at all: the sequence is embedded as given
    #[default]
    None,
    /// The mean of the embeddings of the sequence and of its reverse complement
    Mean,
}

/// The floating-point format that the model computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Precision {
    /// fp32 on a CPU, fp16 on a GPU
    #[default]
    Auto,
    /// 32-bit floats
    Fp32,
    /// 16-bit floats; a batch that overflows is recomputed in fp32 (GPUs only)
    Fp16,
    /// 16-bit floats with the range of fp32 but fewer digits (GPUs only)
    Bf16,
    /// As fp16, with 8-bit floats in the feed-forward layers: faster but less precise (only
    /// ESM-2 from 150M on and Nucleotide Transformer 2, on H100 and H200)
    Fp8,
}

impl Precision {
    /// Replaces `auto` by the default for a GPU or a CPU.
    #[must_use]
    pub fn on(self, gpu: bool) -> Self {
        match self {
            Self::Auto if gpu => Self::Fp16,
            Self::Auto => Self::Fp32,
            decided => decided,
        }
    }

    /// Bytes per activation value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Auto | Self::Fp32 => 4,
            Self::Fp16 | Self::Bf16 | Self::Fp8 => 2,
        }
    }
}

/// The kernels that a model runs with, which decide its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
#[non_exhaustive]
pub enum Kernels {
    /// seqembed's own kernels for everything but the dense layers, with sequences packed without
    /// padding.
    #[default]
    Auto,
    /// Only ONNX Runtime's operators: slower, for comparison. On a CPU, sequences are padded to the
    /// longest of a batch, which may change the last bits of a vector.
    Portable,
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
display_as_written!(Revcomp, Long, Unknown, Precision);

/// The options set at one level of precedence; `None` where that level does not set one.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// The model: a known name (see `seqembed models`), a checkpoint, or a model folder made by
    /// `seqembed export`
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<String>,

    /// How a record's vectors are combined into one [default: mean]
    ///
    /// Several in one pass: mean,cls,max (all but none).
    #[arg(long, value_name = "POOLING", value_parser = PoolingsParser)]
    pub pooling: Option<Poolings>,

    /// The layer whose output is used: 0 is the embedding layer (input of the first layer), -1 the
    /// last layer; or several, in one pass: 6,20,33, a range 30-33, or all [default: the last]
    #[arg(long, value_name = "LAYERS", allow_hyphen_values = true)]
    pub layer: Option<LayerChoice>,

    /// The format of the output files [default: parquet]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<Format>,

    /// The float format in the output files, independent of --precision [default: fp32]
    #[arg(long, value_enum, value_name = "PRECISION")]
    pub output_precision: Option<OutputPrecision>,

    /// What to do with a sequence longer than --max-length [default: window]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub long: Option<Long>,

    /// Longest sequence, in residues (bases for DNA), that is embedded in one piece [default: the
    /// model's limit, 1022 for ESM-2]
    #[arg(long, value_name = "LENGTH", value_parser = positive)]
    pub max_length: Option<usize>,

    /// Longest record accepted, in residues (bases for DNA); a longer record fails its file. This
    /// bounds the memory that one record can use [default: 10,000,000; for DNA 300,000,000; none
    /// with --long truncate, which keeps only what is embedded]
    #[arg(long, value_name = "LENGTH", value_parser = positive)]
    pub max_record: Option<usize>,

    /// Residues (bases for DNA) shared by two neighbouring windows; must be less than --max-length
    /// [default: a quarter of --max-length]
    #[arg(long, value_name = "LENGTH")]
    pub overlap: Option<usize>,

    /// What to do with letters outside the model's vocabulary [default: replace]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub unknown: Option<Unknown>,

    /// How the reverse strand of DNA is used [default: none]
    #[arg(long, value_enum, value_name = "STRANDS")]
    pub revcomp: Option<Revcomp>,

    /// Pool spans of the sequences (a domain, a CDR3) in place of whole ones: a table with the
    /// columns id, start, end (from 1, both included) and name, or a BED file; each span has a row
    /// of its own, ID/NAME
    #[arg(long, value_name = "TABLE")]
    pub spans: Option<PathBuf>,

    /// With --spans: also a row for each whole sequence, before those of its spans
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub whole: Option<bool>,

    /// Embed a file even if it looks like DNA and the model is a protein model, or the reverse
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub force_alphabet: Option<bool>,

    /// The floating-point format that the model computes in [default: auto]
    #[arg(long, value_enum, value_name = "PRECISION")]
    pub precision: Option<Precision>,

    /// Maximum number of tokens per batch; affects speed and memory, not results [default: chosen
    /// for the device]
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    pub batch_tokens: Option<usize>,
}

/// A whole number of at least 1.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

impl Overrides {
    /// The names of the options, as written in a manifest.
    pub const KEYS: [&str; 16] = [
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
        "spans",
        "whole",
        "force_alphabet",
        "precision",
        "batch_tokens",
    ];

    /// Sets the option `key` (one of [`Self::KEYS`]) from its text.
    ///
    /// # Errors
    /// If there is no such option, or the value is not valid for it.
    pub fn set(&mut self, key: &str, text: &str) -> Result<(), OptionError> {
        match key {
            "model" if text.is_empty() => return Err(bad(key, text, "a name or a path")),
            "model" => self.model = Some(text.to_owned()),
            "pooling" => self.pooling = Some(poolings(key, text)?),
            "layer" => {
                let wanted = "a layer such as 33 or -1, several such as 6,20,33 or 30-33, all";
                self.layer = Some(text.parse().map_err(|_| bad(key, text, wanted))?);
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
            "spans" if text.is_empty() => return Err(bad(key, text, "a path")),
            "spans" => self.spans = Some(text.into()),
            "whole" => self.whole = Some(truth(key, text)?),
            "force_alphabet" => self.force_alphabet = Some(truth(key, text)?),
            "precision" => self.precision = Some(one_of(key, text)?),
            "batch_tokens" => self.batch_tokens = Some(count(key, text)?),
            _ => return Err(OptionError::NoSuchOption(key.to_owned())),
        }
        Ok(())
    }
}

/// Options of the whole run that the top level of a manifest may set; the command line takes
/// precedence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunOverrides {
    /// Number of CPU threads, at least 1.
    pub threads: Option<u16>,
    /// The device or devices that run the models.
    pub device: Option<DeviceChoice>,
    /// The kernels that the models run with.
    pub kernels: Option<Kernels>,
    /// Interval at which the rows of unfinished files are saved.
    pub save_every: Option<Duration>,
    /// Whether repeated sequences are computed every time they occur.
    pub no_dedup: Option<bool>,
    /// Whether the run stops at the first file that fails.
    pub strict: Option<bool>,
}

impl RunOverrides {
    /// The names of the options, as written in a manifest.
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
    /// If there is no such option, or the value is not valid for it.
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

/// Parses a duration in seconds, fractions allowed.
///
/// # Errors
/// If the text is not a number of seconds, or is negative.
pub fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "expected a number of seconds, 0 or more".to_owned())
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

/// Parses poolings, which may be several.
fn poolings(key: &str, text: &str) -> Result<Poolings, OptionError> {
    text.parse().map_err(|why: String| {
        let wanted = why.strip_prefix("expected ").map(str::to_owned);
        match wanted {
            Some(wanted) => bad(key, text, wanted),
            None => OptionError::Impossible {
                option: key.to_owned(),
                value: text.to_owned(),
                why,
            },
        }
    })
}

fn count(key: &str, text: &str) -> Result<usize, OptionError> {
    positive(text).map_err(|_| bad(key, text, "a whole number of at least 1"))
}

/// Parses the value of an option that has a fixed set of values.
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

/// An option that does not exist, or a value that is not valid for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// The name is not one of [`Overrides::KEYS`] or [`RunOverrides::KEYS`].
    #[error("there is no option `{0}`")]
    NoSuchOption(String),
    /// The value does not fit.
    #[error("invalid value `{value}` for `{option}`: expected {}{wanted}",
        if wanted.contains(", ") && !wanted.starts_with("a ") { "one of " } else { "" })]
    BadValue {
        /// Name of the option, as in a manifest.
        option: String,
        /// The value, as given.
        value: String,
        /// What is needed, or all that is possible.
        wanted: String,
    },
    /// Values that do not go together.
    #[error("invalid value `{value}` for `{option}`: {why}")]
    Impossible {
        /// Name of the option, as in a manifest.
        option: String,
        /// The value, as given.
        value: String,
        /// The reason.
        why: String,
    },
}

/// Options that contradict each other, or a required option that is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// No level of precedence names a model.
    #[error("no model is named: give `--model`, or set `model:` in the manifest")]
    NoModel,
    /// Windows that overlap completely would never advance.
    #[error("option `overlap: {overlap}` must be less than option `max_length: {max_length}`")]
    Overlap {
        /// The requested overlap, in residues or bases.
        overlap: usize,
        /// The window length, in residues or bases.
        max_length: usize,
    },
    /// A window must hold at least one token.
    #[error(
        "option `max_length: {max_length}` is shorter than one token of the model, which spans \
         {span} bases"
    )]
    Short {
        /// The window length, in residues or bases.
        max_length: usize,
        /// The bases of a token.
        span: usize,
    },
    /// The model has no positions beyond its limit.
    #[error(
        "option `max_length: {max_length}` is too long: the model has positions for at most \
         {limit}"
    )]
    Long {
        /// The window length, in residues or bases.
        max_length: usize,
        /// The longest window that the model has positions for.
        limit: usize,
    },
    /// The device does not support the precision.
    #[error("precision {precision} is not available on {device}: {why}")]
    Precision {
        /// The requested value.
        precision: Precision,
        /// Name of the device, such as `cpu`.
        device: String,
        /// Why not, and what to do.
        why: String,
    },
    /// The tokens of the two strands do not correspond one to one.
    #[error(
        "option `revcomp: mean` cannot be combined with option `pooling: none`, because the two \
         strands have different tokens; choose another pooling"
    )]
    Strands,
    /// The model has no token whose vector represents the whole sequence.
    #[error(
        "option `pooling: cls` is not available, because {model} has no [CLS] token in front of a \
         sequence; choose mean, mean-all, max or none"
    )]
    NoCls {
        /// The model.
        model: String,
    },
    /// A span has no special tokens.
    #[error(
        "option `pooling: {pooling}` cannot be combined with option `spans`, because it pools \
         special tokens, which belong to no span; choose mean, max, sum or none"
    )]
    SpanPooling {
        /// The pooling.
        pooling: Pooling,
    },
    /// Without spans, all rows are of whole sequences.
    #[error("option `whole` needs option `spans`")]
    WholeAlone,
    /// Proteins have no reverse strand.
    #[error("option `revcomp: mean` works with DNA models only")]
    NoStrands,
    /// The model has no such layers.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// Several poolings or layers in a format that holds one.
    #[error("option `format: {format}` holds one pooling of one layer{each}, and {columns} are \
             asked for; use {others}, or a run for each", columns = .columns.join(", "),
        each = if *.per_token { " where each residue has a vector" } else { "" })]
    Columns {
        /// The format.
        format: &'static str,
        /// Whether each residue has a vector.
        per_token: bool,
        /// What is asked for, such as `mean_33`.
        columns: Vec<String>,
        /// The formats that hold several, in words.
        others: String,
    },
}

/// The options of one job, decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Settings {
    /// A known name, a checkpoint or a model folder.
    pub model: String,
    /// How a record's vectors are combined into one.
    pub pooling: Poolings,
    /// The requested layers; `None`: the last. See [`Settings::layers_of`].
    pub layer: Option<LayerChoice>,
    /// The format of the output file.
    pub format: Format,
    /// The float format in the output file.
    pub output_precision: OutputPrecision,
    /// What to do with sequences longer than the window.
    pub long: Long,
    /// Pool only over this many tokens from the start of a record, although the model sees all of
    /// them; `None`: over all. No command-line option sets it.
    pub pool_first: Option<usize>,
    /// Residues (bases for DNA) per window; `None`: the model's limit. See [`Settings::window_of`].
    pub max_length: Option<usize>,
    /// Longest record accepted, in residues (bases for DNA); `None`: the default of the alphabet,
    /// see [`Alphabet::longest_record`](crate::tokenize::Alphabet::longest_record).
    pub max_record: Option<usize>,
    /// Residues that neighbouring windows share; `None`: a quarter of `max_length`. See
    /// [`Settings::window_of`].
    pub overlap: Option<usize>,
    /// What to do with letters outside the vocabulary.
    pub unknown: Unknown,
    /// How the reverse strand of DNA is used.
    pub revcomp: Revcomp,
    /// The table of the spans that are pooled in place of whole sequences; `None`: none.
    pub spans: Option<PathBuf>,
    /// Whether whole sequences have a row beside their spans.
    pub whole: bool,
    /// Whether a file is embedded even if its alphabet does not match the model's.
    pub force_alphabet: bool,
    /// The floating-point format that the model computes in.
    pub precision: Precision,
    /// Maximum number of tokens per batch; `None`: chosen by the engine.
    pub batch_tokens: Option<usize>,
}

/// The windows into which long sequences are cut for one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WindowSize {
    /// Residues (bases for DNA) per window, at least 1.
    pub max_length: usize,
    /// Residues (bases for DNA) that neighbouring windows share, less than `max_length`.
    pub overlap: usize,
}

impl Settings {
    /// Merges the levels of precedence, strongest first; options that none of them sets get their
    /// defaults.
    ///
    /// # Errors
    /// If no level names a model, or the options contradict each other.
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
            spans: first(layers, |layer| &layer.spans),
            whole: first(layers, |layer| &layer.whole).unwrap_or_default(),
            force_alphabet: first(layers, |layer| &layer.force_alphabet).unwrap_or_default(),
            precision: first(layers, |layer| &layer.precision).unwrap_or_default(),
            batch_tokens: first(layers, |layer| &layer.batch_tokens),
        };
        if let Some(max_length) = settings.max_length {
            settings.window_of(max_length)?;
        }
        if settings.revcomp == Revcomp::Mean && settings.pooling.is_per_token() {
            return Err(SettingsError::Strands);
        }
        settings.check_spans()?;
        Ok(settings)
    }

    fn check_spans(&self) -> Result<(), SettingsError> {
        if self.spans.is_none() {
            return if self.whole {
                Err(SettingsError::WholeAlone)
            } else {
                Ok(())
            };
        }
        let mut poolings = self.pooling.as_slice().iter();
        match poolings.find(|pooling| matches!(pooling, Pooling::Cls | Pooling::MeanAll)) {
            Some(&pooling) => Err(SettingsError::SpanPooling { pooling }),
            None => Ok(()),
        }
    }

    /// The window for a model whose own limit is `model_limit` residues (bases for DNA).
    ///
    /// # Errors
    /// If the overlap is not less than the window.
    pub fn window_of(&self, model_limit: usize) -> Result<WindowSize, SettingsError> {
        let max_length = self.max_length.unwrap_or(model_limit);
        let overlap = self.overlap.unwrap_or(max_length / 4);
        if overlap >= max_length {
            return Err(SettingsError::Overlap {
                overlap,
                max_length,
            });
        }
        Ok(WindowSize {
            max_length,
            overlap,
        })
    }

    /// Checks that a model with these special tokens has what is pooled.
    ///
    /// # Errors
    /// If the pooling is `cls` and the model has no [CLS] token.
    pub fn check_pooling(&self, special: &SpecialTokens) -> Result<(), SettingsError> {
        let mut poolings = self.pooling.as_slice().iter();
        if poolings.all(|pooling| pooling.is_available(special)) {
            return Ok(());
        }
        Err(SettingsError::NoCls {
            model: self.model.clone(),
        })
    }

    /// The selected layers in a model of `layers` layers.
    ///
    /// # Errors
    /// If the model has no such layer.
    pub fn layers_of(&self, layers: usize) -> Result<Layers, SettingsError> {
        match &self.layer {
            None => Ok(layers.into()),
            Some(choice) => Ok(choice.in_model(layers)?),
        }
    }
}
