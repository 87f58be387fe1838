//! Reading Hugging Face's `config.json`.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::{Checkpoint, Settings};
use crate::error::Error;

/// A configuration and the file it was read from.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// The parsed contents.
    pub value: &'a Value,
}

/// What a checkpoint without a `config.json` says.
const NOTHING: Value = Value::Null;

impl<'a> Config<'a> {
    /// The `config.json` of a checkpoint; without one, no setting is there.
    #[must_use]
    pub fn of(checkpoint: &'a Checkpoint) -> Self {
        let value = match &checkpoint.settings {
            Settings::HuggingFace { config, .. } => config,
            Settings::FairEsm { .. } => &NOTHING,
        };
        Self {
            path: checkpoint.settings.path(),
            value,
        }
    }

    /// A required size.
    ///
    /// # Errors
    /// [`Error::Config`] when it is missing or no whole number.
    pub fn size(&self, key: &str) -> Result<usize, Error> {
        self.value
            .get(key)
            .and_then(Value::as_u64)
            .and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| self.error(format!("{key} is missing or not a whole number")))
    }

    /// A size, or the default if it is missing.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not a whole number.
    pub fn size_or(&self, key: &str, otherwise: usize) -> Result<usize, Error> {
        match self.value.get(key) {
            None | Some(Value::Null) => Ok(otherwise),
            Some(_) => self.size(key),
        }
    }

    /// A number, or the default if it is missing.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not a number.
    pub fn float_or(&self, key: &str, otherwise: f32) -> Result<f32, Error> {
        Ok(self.float(key)?.unwrap_or(otherwise))
    }

    /// A number, if it is there.
    fn float(&self, key: &str) -> Result<Option<f32>, Error> {
        #[expect(clippy::cast_possible_truncation, reason = "the model computes in f32")]
        match self.value.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_f64()
                .map(|value| Some(value as f32))
                .ok_or_else(|| self.error(format!("{key} is {value}, which is not a number"))),
        }
    }

    /// Whether something is said to be so.
    ///
    /// # Errors
    /// [`Error::Config`] when it is neither true nor false.
    pub fn flag(&self, key: &str) -> Result<bool, Error> {
        match self.value.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => {
                Err(self.error(format!("{key} is {other}, which is neither true nor false")))
            }
        }
    }

    /// Checks that a setting, where it is there, has one of these values: the graph computes with
    /// no other.
    ///
    /// # Errors
    /// [`Error::Config`] with the setting's name and value.
    pub fn expect(&self, key: &str, wanted: &[&str]) -> Result<(), Error> {
        match self.value.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(Value::String(text)) if wanted.contains(&text.as_str()) => Ok(()),
            Some(other) => Err(self.error(format!(
                "{key} is {other}, but only models with {:?} can be exported",
                wanted[0]
            ))),
        }
    }

    /// Checks the kind of positions, which a configuration must have.
    ///
    /// # Errors
    /// [`Error::Config`] with what it is instead; `why` says which positions the family has.
    pub fn expect_positions(&self, wanted: &str, why: &str) -> Result<(), Error> {
        let key = "position_embedding_type";
        match self.value.get(key).and_then(Value::as_str) {
            Some(kind) if kind == wanted => Ok(()),
            Some(other) => Err(self.error(format!("{key} is {other:?}; {why}"))),
            None => Err(self.error(format!("{key} is missing; {why}"))),
        }
    }

    /// Checks the settings of all families that would change what a model computes, and that the
    /// graphs do not have.
    ///
    /// # Errors
    /// [`Error::Config`] with the setting's name.
    pub fn check_plain_encoder(&self) -> Result<(), Error> {
        // erf GELU, under its two names.
        self.expect("hidden_act", &["gelu", "gelu_python"])?;
        self.check_encoder()
    }

    /// The same whatever the activation.
    ///
    /// # Errors
    /// [`Error::Config`] with the setting's name.
    pub fn check_encoder(&self) -> Result<(), Error> {
        if self.flag("is_decoder")? {
            return Err(self.error("is_decoder is true, but decoders cannot be exported"));
        }
        if self.flag("add_cross_attention")? {
            return Err(self.error(
                "add_cross_attention is true, but models with cross-attention cannot be exported",
            ));
        }
        let pruned = self.value.get("pruned_heads").and_then(Value::as_object);
        if pruned.is_some_and(|pruned| !pruned.is_empty()) {
            return Err(self.error(
                "pruned_heads is not empty, but models with pruned heads cannot be \
                            exported",
            ));
        }
        let scaled = ["rope_scaling", "rope_parameters"]
            .into_iter()
            .filter_map(|key| Some((key, self.value.get(key)?)))
            .find_map(|(key, rope)| {
                let kind = rope.get("rope_type").or_else(|| rope.get("type"))?;
                (kind != "default").then(|| format!("{key} is of type {kind}"))
            });
        match scaled {
            Some(scaled) => Err(self.error(format!(
                "{scaled}: models with scaled rotary positions cannot be exported"
            ))),
            None => Ok(()),
        }
    }

    /// The base of the rotary frequencies, which may stand in three places, or what a model has
    /// that does not tell it.
    ///
    /// # Errors
    /// [`Error::Config`] when one is no number, or they differ: releases of transformers read them
    /// in different orders.
    pub fn rope_theta_or(&self, otherwise: f32) -> Result<f32, Error> {
        let mut found = None;
        let mut places = vec![self.value];
        for outer in ["rope_scaling", "rope_parameters"] {
            match self.value.get(outer) {
                None | Some(Value::Null) => {}
                Some(value) if value.is_object() => places.push(value),
                Some(other) => {
                    return Err(self.error(format!("{outer} is {other}, which is not an object")));
                }
            }
        }
        for value in places {
            let place = Config { value, ..*self };
            match (found, place.float("rope_theta")?) {
                (Some(other), Some(base)) if f32::to_bits(other) != base.to_bits() => {
                    return Err(self.error(format!(
                        "rope_theta is {other} in one place and {base} in another \
                         (rope_scaling, rope_parameters, top level): keep the right one"
                    )));
                }
                (_, base) => found = found.or(base),
            }
        }
        Ok(found.unwrap_or(otherwise))
    }

    /// The base of the rotary frequencies of models of the type `esm`: transformers reads it at the
    /// top level, and nowhere else.
    ///
    /// # Errors
    /// [`Error::Config`] when it is no number, or something else stands in another place.
    pub fn esm_rope_theta_or(&self, otherwise: f32) -> Result<f32, Error> {
        let (any, read) = (
            self.rope_theta_or(otherwise)?,
            self.float_or("rope_theta", otherwise)?,
        );
        if any.to_bits() == read.to_bits() {
            return Ok(read);
        }
        Err(self.error(format!(
            "rope_theta is {any} in rope_parameters or rope_scaling, where transformers does not read \
             it for model_type \"esm\" and computes with {read}: if {any} is right, write rope_theta at \
             the top level, else remove it"
        )))
    }

    /// Checks that a base of rotary frequencies is the one of the authors' own code, which does not
    /// read it.
    ///
    /// # Errors
    /// [`Error::Config`] with both.
    pub fn expect_rope_theta(&self, base: f32, fixed: f32, family: &str) -> Result<(), Error> {
        if base.to_bits() == fixed.to_bits() {
            return Ok(());
        }
        Err(self.error(format!(
            "rope_theta is {base}, but {family}'s own code computes with {fixed}, whatever the \
             configuration says"
        )))
    }

    /// Checks that a size, where it is there, has the value that follows from others.
    ///
    /// # Errors
    /// [`Error::Config`] with both.
    pub fn expect_size(&self, key: &str, wanted: usize, why: &str) -> Result<(), Error> {
        let size = self.size_or(key, wanted)?;
        if size == wanted {
            return Ok(());
        }
        Err(self.error(format!(
            "{key} is {size}, but {why} {wanted}: such models cannot be exported"
        )))
    }

    /// An error about this configuration.
    #[must_use]
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::config(self.path, message)
    }
}

/// Checks sizes that every model has, and how many blocks. `sizes` are names and values.
///
/// # Errors
/// Which is impossible.
pub fn check_sizes(layers: (&str, usize), sizes: &[(&str, usize)]) -> Result<(), String> {
    const MOST: usize = 1 << 20;
    const MOST_LAYERS: usize = 1 << 12;
    let mut sizes = sizes.iter().map(|&(what, size)| (what, size, MOST));
    let layers = (layers.0, layers.1, MOST_LAYERS);
    match std::iter::once(layers)
        .chain(&mut sizes)
        .find(|(_, size, most)| *size == 0 || size > most)
    {
        Some((what, size, _)) => Err(format!("{what} is {size}, which is out of range")),
        None => Ok(()),
    }
}
