//! Compares a model's vectors with known values: published ones, or a user's own.

use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use seqembed_onnx::KnownValues;

use crate::embedder::{EmbedError, Embedder, EmbedderOptions};
use crate::output::Rows;
use crate::pooling::Pooling;
use crate::settings::{LayerChoice, Overrides, Precision};

/// Why nothing could be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The file of values cannot be read.
    #[error("cannot read the values in {}", .path.display())]
    File {
        /// Path of the JSON file.
        path: PathBuf,
        /// The underlying error.
        source: std::io::Error,
    },
    /// The file is not JSON, or not in the form that `docs/models.md` describes.
    #[error("{} is not a list of known values", .path.display())]
    Form {
        /// Path of the JSON file.
        path: PathBuf,
        /// What is wrong, and in which line.
        source: serde_json::Error,
    },
    /// An entry asks for something that no model has.
    #[error("known values, entry number {number}: {why}")]
    Entry {
        /// Its position in the list, from 1.
        number: usize,
        /// What is wrong with it.
        why: String,
    },
    /// The model cannot embed the sequences.
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

/// A known value, and the same value as the model computed it.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Index of its entry in the list of known values, from 0.
    pub entry: usize,
    /// Its description: `value 3 of residue 1`, counted from 1.
    pub what: String,
    /// The known value.
    pub expected: f32,
    /// The value that the model computed.
    pub computed: f32,
    /// The largest difference allowed.
    pub tolerance: f32,
}

impl Compared {
    /// Whether the difference is within the tolerance.
    #[must_use]
    pub fn agrees(&self) -> bool {
        // NaN agrees with nothing.
        (self.computed - self.expected).abs() <= self.tolerance
    }
}

/// Reads a user's own values, a list in JSON.
///
/// # Errors
/// If the file cannot be read, or is no such list.
pub fn read(path: &Path) -> Result<Vec<KnownValues>, VerifyError> {
    let text = std::fs::read(path).map_err(|source| VerifyError::File {
        path: path.to_path_buf(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| VerifyError::Form {
        path: path.to_path_buf(),
        source,
    })
}

/// Embeds the sequences of all known values with the model at `model`, and compares. The model is
/// loaded once for each pooling and layer.
///
/// # Errors
/// If an entry of the list is impossible, or the model cannot embed its sequence.
pub fn compare(
    model: &str,
    known: &[KnownValues],
    options: &EmbedderOptions,
) -> Result<Vec<Compared>, VerifyError> {
    let mut wanted = Vec::new();
    for (entry, values) in known.iter().enumerate() {
        wanted.push((pooling(entry, values)?, values.layer));
    }
    let mut passes = wanted.clone();
    passes.sort_by_key(|(pooling, layer)| (pooling.to_string(), *layer));
    passes.dedup();
    let mut compared = Vec::new();
    for pass in passes {
        let settings = Overrides {
            pooling: Some(pass.0.into()),
            layer: pass.1.map(LayerChoice::from),
            // Who lists values of a sequence knows what it is.
            force_alphabet: Some(true),
            ..options.settings.clone()
        };
        let mut embedder = Embedder::new(
            model,
            EmbedderOptions {
                settings,
                ..options.clone()
            },
        )?;
        let entries = known.iter().zip(&wanted).enumerate();
        for (entry, (values, _)) in entries.filter(|(_, (_, wanted))| **wanted == pass) {
            let sequence = [(format!("known_{}", entry + 1), values.sequence.as_ref())];
            let rows = embedder.embed(sequence)?;
            let precision = embedder.precision().unwrap_or(Precision::Fp32);
            compared.extend(compare_entry(entry, values, &rows, precision)?);
        }
    }
    compared.sort_by_key(|compared| compared.entry);
    Ok(compared)
}

fn impossible(entry: usize, why: impl Into<String>) -> VerifyError {
    VerifyError::Entry {
        number: entry + 1,
        why: why.into(),
    }
}

/// The pooling of an entry, of which all numbers are checked.
fn pooling(entry: usize, values: &KnownValues) -> Result<Pooling, VerifyError> {
    if values.values.is_empty() && values.norm.is_none() {
        return Err(impossible(entry, "neither `values` nor `norm` is given"));
    }
    let numbers = values.values.iter().chain(&values.norm);
    if let Some(number) = numbers.copied().find(|number| !number.is_finite()) {
        let why = format!("it has the value {number}, which no vector has");
        return Err(impossible(entry, why));
    }
    if !(values.tolerance.is_finite() && values.tolerance >= 0.0) {
        let why = format!(
            "its tolerance is {}: give a finite number, 0 or more",
            values.tolerance
        );
        return Err(impossible(entry, why));
    }
    match (&values.pooling, values.residue) {
        (Some(_), Some(_)) => Err(impossible(
            entry,
            "both `pooling` and `residue` are given; a residue's vector is not pooled",
        )),
        (None, Some(_)) => Ok(Pooling::None),
        (None, None) => Ok(Pooling::Mean),
        (Some(name), None) => match Pooling::from_str(name, false) {
            Ok(Pooling::None) => Err(impossible(
                entry,
                "for a residue's vector, give `residue` instead of `pooling`",
            )),
            Ok(pooling) => Ok(pooling),
            Err(_) => Err(impossible(entry, format!("there is no pooling {name:?}"))),
        },
    }
}

/// Compares the values and the norm of an entry with the vectors of its sequence.
fn compare_entry(
    entry: usize,
    known: &KnownValues,
    rows: &Rows,
    precision: Precision,
) -> Result<Vec<Compared>, VerifyError> {
    if let Some(status) = rows.status.first()
        && status.starts_with("skipped")
    {
        let why = format!("its sequence has no vector ({status})");
        return Err(impossible(entry, why));
    }
    let at = known.residue.unwrap_or(1);
    let vector = at
        .checked_sub(1)
        .and_then(|at| rows.values.chunks_exact(rows.hidden.max(1)).nth(at))
        .ok_or_else(|| {
            let there = rows.vectors.first().copied().unwrap_or_default();
            impossible(
                entry,
                format!("there is no residue {at}: the sequence has {there}, counted from 1"),
            )
        })?;
    if known.values.len() > vector.len() {
        let (more, width) = (known.values.len(), vector.len());
        let why = format!("it has {more} values, but a vector of this model has {width}");
        return Err(impossible(entry, why));
    }
    let name = match (known.residue, &known.pooling) {
        (Some(residue), _) => format!("residue {residue}"),
        (None, Some(pooling)) => pooling.to_string(),
        (None, None) => Pooling::Mean.to_string(),
    };
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    let extra_tolerance = extra_tolerance(precision);
    let typical = norm / (vector.len() as f32).sqrt();
    let value = |(at, (&expected, &computed)): (usize, (&f32, &f32))| Compared {
        entry,
        what: format!("value {} of {name}", at + 1),
        expected,
        computed,
        tolerance: known.tolerance + extra_tolerance * typical,
    };
    let pairs = known.values.iter().zip(vector).enumerate();
    let mut compared: Vec<Compared> = pairs.map(value).collect();
    compared.extend(known.norm.map(|expected| Compared {
        entry,
        what: format!("norm of {name}"),
        expected,
        computed: norm,
        tolerance: known.tolerance * expected.max(1.0) + extra_tolerance * expected,
    }));
    Ok(compared)
}

/// Additional tolerance of a precision, as a fraction of the typical size of a value. In fp16, the
/// cosine similarity to fp32 is at least 0.9999 for known models, and in bf16 and fp8 0.999; these
/// fractions are three times the typical differences that correspond to it.
fn extra_tolerance(precision: Precision) -> f32 {
    match precision {
        Precision::Fp16 => 0.05,
        Precision::Bf16 | Precision::Fp8 => 0.15,
        Precision::Auto | Precision::Fp32 => 0.0,
    }
}
