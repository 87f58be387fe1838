//! The published models, by name.

use super::family::Publication;
use super::known_values::KnownValues;
use super::{Architecture, ENTRIES};
use crate::weights::table::{end, place};

/// A published model.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownModel {
    /// Its name for `--model`.
    pub name: &'static str,
    /// Its repository on the Hugging Face hub.
    pub hub_id: &'static str,
    /// How many parameters, as its authors count them.
    pub parameters: &'static str,
    /// Its licence, its paper and the usual pooling.
    pub publication: Publication,
    /// Its family, with sizes and settings.
    pub architecture: Architecture,
}

impl KnownModel {
    /// The length of its weights file in 32 bits, in bytes.
    #[must_use]
    pub fn weights_bytes(&self) -> u64 {
        end(&place(&self.architecture.family().plan()))
    }

    /// Published values of its vectors, computed with the real weights.
    #[must_use]
    pub fn published_values(&self) -> Vec<KnownValues> {
        let families = ENTRIES.iter();
        families
            .flat_map(|entry| (entry.published_values)(self.name))
            .collect()
    }
}

/// All known models, grouped by family, the smallest of each first.
#[must_use]
pub fn known_models() -> Vec<KnownModel> {
    let published = ENTRIES.iter().flat_map(|entry| (entry.published)());
    published
        .map(|model| KnownModel {
            name: model.name,
            hub_id: model.hub_id,
            parameters: model.parameters,
            publication: model.publication,
            architecture: model.family,
        })
        .collect()
}

/// A known model by its name, its hub id, or the latter without the owner.
#[must_use]
pub fn known_model(name: &str) -> Option<KnownModel> {
    known_models().into_iter().find(|known| {
        let short = known.hub_id.rsplit_once('/').map(|(_, short)| short);
        known.name == name || known.hub_id == name || short == Some(name)
    })
}
