//! The models known by name.

use crate::architecture::Architecture;
use crate::esm2::Esm2;
use crate::weights::place;

/// A published model.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownModel {
    /// Its name.
    pub name: &'static str,
    /// Where the hub has it.
    pub hub_id: &'static str,
    /// How many parameters, as its authors count.
    pub parameters: &'static str,
    /// Architecture and sizes.
    pub architecture: Architecture,
}

impl KnownModel {
    /// The length of its weights file.
    #[must_use]
    pub fn weights_bytes(&self) -> u64 {
        place(&self.architecture.description().plan())
            .last()
            .map_or(0, |tensor| tensor.offset + tensor.bytes)
    }
}

/// Name, hub id, parameters, layers, hidden, heads.
const ESM2: [(&str, &str, &str, usize, usize, usize); 6] = [
    (
        "esm2_t6_8M_UR50D",
        "facebook/esm2_t6_8M_UR50D",
        "8M",
        6,
        320,
        20,
    ),
    (
        "esm2_t12_35M_UR50D",
        "facebook/esm2_t12_35M_UR50D",
        "35M",
        12,
        480,
        20,
    ),
    (
        "esm2_t30_150M_UR50D",
        "facebook/esm2_t30_150M_UR50D",
        "150M",
        30,
        640,
        20,
    ),
    (
        "esm2_t33_650M_UR50D",
        "facebook/esm2_t33_650M_UR50D",
        "650M",
        33,
        1280,
        20,
    ),
    (
        "esm2_t36_3B_UR50D",
        "facebook/esm2_t36_3B_UR50D",
        "3B",
        36,
        2560,
        40,
    ),
    (
        "esm2_t48_15B_UR50D",
        "facebook/esm2_t48_15B_UR50D",
        "15B",
        48,
        5120,
        40,
    ),
];

/// All known models, smallest first.
#[must_use]
pub fn known_models() -> Vec<KnownModel> {
    ESM2.into_iter()
        .map(
            |(name, hub_id, parameters, layers, hidden, heads)| KnownModel {
                name,
                hub_id,
                parameters,
                architecture: Architecture::Esm2(Esm2::published(layers, hidden, heads)),
            },
        )
        .collect()
}

/// A known model by its name or its hub id.
#[must_use]
pub fn known_model(name: &str) -> Option<KnownModel> {
    known_models()
        .into_iter()
        .find(|known| known.name == name || known.hub_id == name)
}
