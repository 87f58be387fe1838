//! The models known by name.

use crate::families::Architecture;
use crate::families::bert::Bert;
use crate::families::dnabert2::Dnabert2;
use crate::families::esm2::Esm2;
use crate::weights::table::place;

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

/// Name, hub id.
const DNABERT2: [(&str, &str); 2] = [
    ("DNABERT-2", "zhihan1996/DNABERT-2-117M"),
    ("DNABERT-S", "zhihan1996/DNABERT-S"),
];

/// Name, hub id, parameters, bases of a k-mer.
const DNABERT: [(&str, &str, &str, u32); 4] = [
    ("DNABERT-3", "zhihan1996/DNA_bert_3", "86M", 3),
    ("DNABERT-4", "zhihan1996/DNA_bert_4", "86M", 4),
    ("DNABERT-5", "zhihan1996/DNA_bert_5", "87M", 5),
    ("DNABERT-6", "zhihan1996/DNA_bert_6", "89M", 6),
];

/// All known models: of proteins, then of DNA, smallest first.
#[must_use]
pub fn known_models() -> Vec<KnownModel> {
    let esm2 = ESM2.map(
        |(name, hub_id, parameters, layers, hidden, heads)| KnownModel {
            name,
            hub_id,
            parameters,
            architecture: Architecture::Esm2(Esm2::published(layers, hidden, heads)),
        },
    );
    let dnabert = DNABERT.map(|(name, hub_id, parameters, k)| KnownModel {
        name,
        hub_id,
        parameters,
        architecture: Architecture::Bert(Bert::dnabert(k)),
    });
    let dnabert2 = DNABERT2.map(|(name, hub_id)| KnownModel {
        name,
        hub_id,
        parameters: "117M",
        architecture: Architecture::Dnabert2(Dnabert2::published()),
    });
    esm2.into_iter().chain(dnabert).chain(dnabert2).collect()
}

/// A known model by its name, its hub id, or the latter without the owner.
#[must_use]
pub fn known_model(name: &str) -> Option<KnownModel> {
    known_models().into_iter().find(|known| {
        let short = known.hub_id.rsplit_once('/').map(|(_, short)| short);
        known.name == name || known.hub_id == name || short == Some(name)
    })
}
