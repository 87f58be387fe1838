//! Which family a checkpoint is of, and what is asked of any model, whatever its family.

use super::family::Likeness;
use super::sizes::Sizes;
use super::{Architecture, ENTRIES};
use crate::checkpoint::{Checkpoint, Settings};
use crate::error::Error;

/// All families that can be exported, for messages.
fn known() -> String {
    let families: Vec<&str> = ENTRIES.iter().map(|entry| (entry.about)()).collect();
    families.join("; ")
}

impl Architecture {
    /// Reads the architecture from a checkpoint's configuration and the names of its tensors.
    ///
    /// # Errors
    /// [`Error::Config`] when the checkpoint is of no known family, or lacks something.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let mut best = None;
        for entry in ENTRIES {
            let likeness = (entry.likeness)(checkpoint);
            if likeness > best.map_or(Likeness::None, |(likeness, _)| likeness) {
                best = Some((likeness, entry));
            }
        }
        if let Some((_, entry)) = best {
            let architecture = (entry.read)(checkpoint)?;
            let validated = architecture.family().validate();
            validated.map_err(|why| Error::config(checkpoint.settings.path(), why))?;
            return Ok(architecture);
        }
        let known = known();
        let why = match &checkpoint.settings {
            Settings::FairEsm { .. } => "it does not belong to a supported family".to_owned(),
            Settings::HuggingFace { config, .. } => {
                match config.get("model_type").and_then(serde_json::Value::as_str) {
                    Some(other) => format!("model_type {other:?} is not supported"),
                    None => "it has no model_type, and its tensors are not those of a supported \
                             family"
                        .to_owned(),
                }
            }
        };
        Err(Error::config(
            checkpoint.settings.path(),
            format!("{why}. Models that can be exported: {known}"),
        ))
    }

    /// BLAKE3, in hexadecimal, of the family with all sizes and settings: two models may have the
    /// same weights and differ in heads, positions or a layer norm's epsilon.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "plain data always has a text")]
    pub fn blake3(&self) -> String {
        let json = serde_json::to_vec(self).expect("it is plain data");
        blake3::hash(&json).to_hex().to_string()
    }

    /// Width of a token's vector.
    #[must_use]
    pub fn hidden(&self) -> usize {
        self.sizes().hidden
    }

    /// Sizes and forms of its blocks.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.family().sizes()
    }

    /// How many blocks. Layers are counted from 0, the embeddings, to this.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.family().layers()
    }
}
