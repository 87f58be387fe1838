//! A model that was opened with its vocabulary, and which of a job's options fit it.

use std::sync::Arc;

use seqembed_onnx::Model;

use super::error::RunError;
use crate::device::Device;
use crate::engine::loader;
use crate::models;
use crate::settings::{Kernels, Precision, Revcomp, Settings, SettingsError, WindowSize};
use crate::tokenize::{self, Alphabet, FamilyRules, Tokenizer};

/// A model that was opened, with its vocabulary. No weights are loaded.
#[derive(Clone)]
pub(crate) struct OpenedModel {
    pub(crate) model: Arc<Model>,
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
}

impl OpenedModel {
    /// Opens a model by its name or path. A checkpoint is exported first, unless that was done.
    pub(crate) fn open(name: &str, say: &dyn Fn(&str)) -> Result<Self, RunError> {
        let model = Model::open(&models::resolve(name, say)?)?;
        let kind = model.info().tokenizer.kind;
        let rules = FamilyRules::of(model.architecture().family());
        Ok(Self {
            tokenizer: tokenize::open_with(model.folder(), kind, &rules)?.into(),
            model: Arc::new(model),
        })
    }

    /// Decides the precision of a job on a device, and writes the weights for it where they decide:
    /// with `auto`, a GPU computes in fp16 only if all of the model's weights fit into it.
    pub(crate) fn decide_precision(
        &self,
        asked: Precision,
        device: Device,
        kernels: Kernels,
        say: &dyn Fn(&str),
    ) -> Result<Precision, RunError> {
        let precision = asked.on(device != Device::Cpu);
        if (asked, precision) != (Precision::Auto, Precision::Fp16) {
            return Ok(precision);
        }
        match loader::cache_fp16_weights(&self.model, device, kernels) {
            Ok(()) => Ok(Precision::Fp16),
            Err(error @ seqembed_onnx::Error::Overflow { .. }) => {
                say(&format!("using fp32: {error}"));
                Ok(Precision::Fp32)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// How a job's long sequences are cut into windows, if its options fit the model.
    pub(crate) fn window(&self, settings: &Settings) -> Result<WindowSize, SettingsError> {
        let span = self.tokenizer.span();
        // The model's own limit counts tokens. Of k-mers, a sequence has k - 1 fewer than bases.
        let limit = self.model.info().max_residues;
        let limit = limit.map_or(usize::MAX, |tokens| tokens + span - 1);
        let window = settings.window_of(limit)?;
        let WindowSize { max_length, .. } = window;
        let per_token = self.tokenizer.letters_per_token();
        let shortest = per_token.unwrap_or(span);
        if max_length < shortest {
            return Err(SettingsError::Short {
                max_length,
                span: shortest,
            });
        }
        let special = self.tokenizer.special();
        if let Some(positions) = self.model.architecture().family().position_limit() {
            let tokens = positions.saturating_sub(special.count());
            let limit = tokens * per_token.unwrap_or(1) + span - 1;
            if max_length > limit {
                return Err(SettingsError::Long { max_length, limit });
            }
        }
        settings.check_pooling(special)?;
        if settings.revcomp == Revcomp::Mean && self.tokenizer.alphabet() != Alphabet::Dna {
            return Err(SettingsError::NoStrands);
        }
        Ok(window)
    }

    /// The most tokens of a sequence that is embedded whole, where windows are cut by tokens: as
    /// many as fill the model's own limit in letters, or what any k-mers of a longer window need.
    /// Letters that are tokens of their own make more of them.
    pub(crate) fn max_tokens(&self, window: WindowSize) -> Option<usize> {
        let per_token = self.tokenizer.letters_per_token()?;
        let own = self.model.info().max_residues?;
        let longer = window.max_length > own;
        // Up to so many letters at the end fill no k-mer.
        let rest = if longer { per_token - 1 } else { 0 };
        Some(window.max_length.max(own) / per_token + rest)
    }
}
