//! Reading Hugging Face's `config.json`, and what the spellings of its tensors have in common.

use std::path::Path;

use serde_json::Value;

use crate::error::Error;

/// A configuration and the file that it stands in.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// What it says.
    pub value: &'a Value,
}

impl Config<'_> {
    /// A size that must be there.
    ///
    /// # Errors
    /// [`Error::Config`] when it is missing or no whole number.
    pub fn size(&self, key: &str) -> Result<usize, Error> {
        self.value
            .get(key)
            .and_then(Value::as_u64)
            .and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| self.error(format!("{key} is missing or no whole number")))
    }

    /// A size, or what a model has that does not tell it.
    ///
    /// # Errors
    /// [`Error::Config`] when it is no whole number.
    pub fn size_or(&self, key: &str, otherwise: usize) -> Result<usize, Error> {
        match self.value.get(key) {
            None | Some(Value::Null) => Ok(otherwise),
            Some(_) => self.size(key),
        }
    }

    /// A number, or what a model has that does not tell it.
    #[must_use]
    pub fn float_or(&self, key: &str, otherwise: f32) -> f32 {
        #[expect(clippy::cast_possible_truncation, reason = "the model computes in f32")]
        let read = |value: &Value| value.as_f64().map(|value| value as f32);
        self.value.get(key).and_then(read).unwrap_or(otherwise)
    }

    /// Whether something is said to be so.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.value
            .get(key)
            .and_then(Value::as_bool)
            .unwrap_or(false)
    }

    /// A word.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.value.get(key).and_then(Value::as_str)
    }

    /// An error about this configuration.
    #[must_use]
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::config(self.path, message)
    }
}

/// A BERT's tensor name without the prefix that task heads bring along, its layer norm's parts called weight and bias.
#[must_use]
pub fn plain_name(name: &str) -> String {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    if let Some(stem) = name.strip_suffix(".gamma") {
        format!("{stem}.weight")
    } else if let Some(stem) = name.strip_suffix(".beta") {
        format!("{stem}.bias")
    } else {
        name.to_owned()
    }
}

/// Whether a tensor is a weight or a bias, and no buffer.
#[must_use]
pub fn is_parameter(name: &str) -> bool {
    matches!(name.rsplit_once('.'), Some((_, "weight" | "bias")))
}

/// The block that a tensor belongs to, and its name within.
#[must_use]
pub fn in_layer(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("encoder.layer.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

/// Checks that no tensor belongs to a block that the configuration has no place for.
///
/// # Errors
/// How many blocks each has.
pub fn check_layers(layers: usize, names: &mut dyn Iterator<Item = &str>) -> Result<(), String> {
    match names.filter_map(in_layer).map(|(layer, _)| layer).max() {
        Some(last) if last >= layers => Err(format!(
            "the configuration says {layers} layers, the weights have {}",
            last + 1
        )),
        _ => Ok(()),
    }
}

/// Checks sizes that every model has. `sizes` are names and values.
///
/// # Errors
/// Which is impossible.
pub fn check_sizes(sizes: &[(&str, usize)]) -> Result<(), String> {
    const MOST: usize = 1 << 20;
    match sizes.iter().find(|(_, size)| *size == 0 || *size > MOST) {
        Some((what, size)) => Err(format!("{what} is {size}, which no model has")),
        None => Ok(()),
    }
}
