//! `SaProt` (Su et al., 2024): ESM-2 over pairs of letters, a residue and the structure around it,
//! in foldseek's 3Di alphabet.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::blocks::Blocks;
use super::config::Config;
use super::esm2::Esm2;
use super::family::{Alphabet, Family, Likeness, Publication, Published};
use super::own_vocabulary;
use crate::checkpoint::names::Names;
use crate::checkpoint::{Checkpoint, Settings};
use crate::error::Error;
use crate::graph::builder::Builder;
use crate::graph::request::GraphRequest;
use crate::tokenizer::TokenizerKind;
use crate::weights::table::Planned;

const PUBLICATION: Publication = Publication {
    family: "SaProt",
    letters: "residues and structure",
    licence: "MIT",
    citation: "doi:10.1101/2023.10.01.560349",
    pooling: "mean",
};

/// Name, hub id (they share the name), parameters, [layers, hidden]. All have 20 heads.
const PUBLISHED: [(&str, &str, &str, [usize; 2]); 3] = [
    (
        "SaProt_35M_AF2",
        "westlake-repl/SaProt_35M_AF2",
        "35M",
        [12, 480],
    ),
    (
        "SaProt_650M_PDB",
        "westlake-repl/SaProt_650M_PDB",
        "650M",
        [33, 1280],
    ),
    (
        "SaProt_650M_AF2",
        "westlake-repl/SaProt_650M_AF2",
        "650M",
        [33, 1280],
    ),
];

/// The first tokens of the vocabulary; pairs follow. In ESM-2's, `<mask>` is the last token.
const SPECIALS: [&str; 5] = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>"];
/// The id of `<mask>`.
const MASK: usize = 4;
/// The first letters of pairs, in their order: residues, and one that is not known.
const RESIDUES: &str = "ACDEFGHIKLMNPQRSTVWY#";
/// The second letters: foldseek's 3Di alphabet, and a structure that is not known.
const STRUCTURES: &str = "pynwrqhgdlvtmfsaeikc#";
/// Number of tokens: 446.
const TOKENS: usize = SPECIALS.len() + RESIDUES.len() * STRUCTURES.len();

/// The text of `vocab.txt`, one token per line.
fn vocabulary() -> String {
    let pairs = RESIDUES.chars().flat_map(|residue| {
        STRUCTURES
            .chars()
            .map(move |structure| format!("{residue}{structure}"))
    });
    let tokens: Vec<String> = SPECIALS
        .map(str::to_owned)
        .into_iter()
        .chain(pairs)
        .collect();
    tokens.join("\n")
}

/// Whether a checkpoint that looks like ESM-2's has `SaProt`'s number of tokens.
pub(super) fn is_meant(checkpoint: &Checkpoint) -> bool {
    match &checkpoint.settings {
        Settings::HuggingFace { config, .. } => {
            let text = |key: &str| config.get(key).and_then(Value::as_str);
            text("model_type") == Some("esm")
                && text("position_embedding_type") == Some("rotary")
                && config.get("vocab_size").and_then(Value::as_u64) == Some(TOKENS as u64)
        }
        Settings::FairEsm { .. } => checkpoint.shapes().any(|(name, shape)| {
            name.ends_with("embed_tokens.weight") && shape.first() == Some(&TOKENS)
        }),
    }
}

/// An ESM-2 of `SaProt`'s vocabulary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Saprot(Esm2);

impl Saprot {
    /// A published model of these sizes.
    #[must_use]
    pub fn of_sizes(layers: usize, hidden: usize) -> Self {
        Self(Esm2 {
            vocabulary: TOKENS,
            mask_id: MASK,
            ..Esm2::of_sizes(layers, hidden, 20)
        })
    }
}

impl Family for Saprot {
    fn about() -> &'static str {
        "SaProt (model_type \"esm\" with 446 tokens, or its .pt)"
    }

    fn likeness(checkpoint: &Checkpoint) -> Likeness {
        if is_meant(checkpoint) {
            Likeness::Full
        } else {
            Likeness::None
        }
    }

    fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let mut model = Esm2::from_checkpoint(checkpoint)?;
        model.mask_id = Config::of(checkpoint).size_or("mask_token_id", MASK)?;
        Ok(Self(model))
    }

    fn published() -> Vec<Published<Self>> {
        Published::table(PUBLICATION, PUBLISHED, |[layers, hidden]| {
            Self::of_sizes(layers, hidden)
        })
    }

    fn blocks(&self) -> Blocks {
        self.0.blocks()
    }

    fn vocabulary(&self) -> usize {
        self.0.vocabulary
    }

    fn alphabet(&self) -> Option<Alphabet> {
        Some(Alphabet::Protein)
    }

    fn tokenizer(&self) -> TokenizerKind {
        TokenizerKind::Pairs
    }

    fn max_residues(&self) -> Option<usize> {
        // Trained on crops of 1,024 tokens, two of them special.
        Some(1022)
    }

    fn own_tokenizer(&self) -> Option<Vec<u8>> {
        Some(vocabulary().into_bytes())
    }

    fn check_vocabulary(&self, text: &str) -> Result<(), String> {
        if self.0.token_dropout && self.0.mask_id != MASK {
            return Err(format!(
                "mask_token_id is {}, but <mask> has id {MASK} in SaProt's vocabulary",
                self.0.mask_id
            ));
        }
        own_vocabulary::check("SaProt", vocabulary().lines(), text)
    }

    fn validate(&self) -> Result<(), String> {
        self.0.validate()
    }

    fn names(&self) -> Names {
        self.0.names()
    }

    fn plan(&self) -> Vec<Planned> {
        self.0.plan()
    }

    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest) {
        self.0.build(builder, request);
    }
}
