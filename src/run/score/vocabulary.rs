//! The names of a model's tokens, and those that scores are of.

use std::collections::BTreeMap;
use std::path::Path;

use seqembed_onnx::{Model, TokenizerKind};
use serde_json::Value;

use super::error::ScoreError;
use crate::run::error::RunError;
use crate::tokenize::{Alphabet, Tokenizer, VocabularyError};

/// The amino acids, in the order of their columns.
pub const AMINO_ACIDS: [char; 20] = [
    'A', 'C', 'D', 'E', 'F', 'G', 'H', 'I', 'K', 'L', 'M', 'N', 'P', 'Q', 'R', 'S', 'T', 'V', 'W',
    'Y',
];

/// Far more than the tokens of any model.
const LARGEST_ID: u64 = 1 << 24;

/// An amino acid's place among [`AMINO_ACIDS`].
pub fn amino_acid(letter: u8) -> Option<usize> {
    AMINO_ACIDS
        .iter()
        .position(|&known| known == char::from(letter))
}

/// The tokens of a model by their ids.
#[derive(Debug, Clone)]
pub struct TokenNames {
    names: Vec<String>,
    /// Where rows of log-probabilities have the amino acids; `None`: tokens are not single letters
    /// of a protein.
    amino_acids: Option<[u32; 20]>,
    mask: Option<u32>,
}

impl TokenNames {
    /// Reads them from a model folder. `width`: how many tokens the head knows.
    ///
    /// # Errors
    /// If the vocabulary cannot be read.
    pub fn read(
        model: &Model,
        tokenizer: &dyn Tokenizer,
        width: usize,
    ) -> Result<Self, ScoreError> {
        let kind = model.info().tokenizer.kind;
        let path = model.folder().join(kind.file());
        let text = std::fs::read_to_string(&path).map_err(|source| {
            ScoreError::Run(RunError::Vocabulary(VocabularyError::Io {
                path: path.clone(),
                source,
            }))
        })?;
        let names = match kind {
            TokenizerKind::Bpe => bpe_names(&text)
                .map_err(|why| VocabularyError::File {
                    path,
                    source: Box::new(VocabularyError::Bpe { reason: why }),
                })
                .map_err(RunError::Vocabulary)?,
            _ => text.lines().map(|line| line.trim().to_owned()).collect(),
        };
        Ok(Self::new(names, tokenizer, width))
    }

    /// `names`: by their ids.
    fn new(mut names: Vec<String>, tokenizer: &dyn Tokenizer, width: usize) -> Self {
        // The table of embeddings may have rows without a token, and tokens may have no row.
        names.resize(width, String::new());
        let id = |name: &str| {
            let at = names.iter().position(|known| known == name)?;
            u32::try_from(at).ok()
        };
        let single = tokenizer.alphabet() == Alphabet::Protein
            && tokenizer.span() == 1
            && tokenizer.letters_per_residue() == 1
            && tokenizer.letters_per_token().is_none();
        let letters = AMINO_ACIDS.map(|letter| id(&letter.to_string()));
        let amino_acids = (single && letters.iter().all(Option::is_some))
            .then(|| letters.map(Option::unwrap_or_default));
        Self {
            amino_acids,
            mask: id("<mask>").or_else(|| id("[MASK]")),
            names,
        }
    }

    /// A token's name.
    pub fn of(&self, id: u32) -> &str {
        self.names.get(id as usize).map_or("", String::as_str)
    }

    /// The ids of the amino acids, where tokens are single letters.
    pub fn amino_acids(&self) -> Option<&[u32; 20]> {
        self.amino_acids.as_ref()
    }

    /// All tokens that have a name, and their ids.
    pub fn all(&self) -> impl Iterator<Item = (u32, &str)> {
        let names = (0..).zip(self.names.iter().map(String::as_str));
        names.filter(|(_, name)| !name.is_empty())
    }

    /// The id of the mask token.
    ///
    /// # Errors
    /// If there is none.
    pub fn mask(&self, folder: &Path) -> Result<u32, ScoreError> {
        self.mask
            .ok_or_else(|| ScoreError::NoMask(folder.to_owned()))
    }
}

/// The tokens of a `tokenizer.json` by their ids.
///
/// # Errors
/// If it is not one.
fn bpe_names(text: &str) -> Result<Vec<String>, String> {
    let file: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let own = file["model"]["vocab"].as_object().into_iter().flatten();
    let own = own.map(|(name, id)| (name.as_str(), id.as_u64()));
    let added = file["added_tokens"].as_array().into_iter().flatten();
    let added = added.map(|token| {
        let name = token["content"].as_str().unwrap_or_default();
        (name, token["id"].as_u64())
    });
    let mut names = BTreeMap::new();
    names.extend(own.chain(added).filter_map(|(name, id)| Some((id?, name))));
    // Ids without a token have no name.
    let ids = 0..=names
        .last_key_value()
        .map_or(0, |(&last, _)| last.min(LARGEST_ID));
    let name = |id: u64| names.get(&id).copied().unwrap_or_default().to_owned();
    Ok(ids.map(name).collect())
}
