//! Tokenizers: convert sequences to token ids, with a common trait. There is one file per kind of
//! vocabulary; [`read_with`] selects the kind.

mod alphabet;
mod behaviour;
pub mod bpe;
mod bpe_file;
mod bpe_merges;
pub mod dna;
mod encoded;
mod error;
mod family_rules;
pub mod kmer;
pub mod letters;
mod non_overlapping;
mod pairs;
mod special;
mod tokenizer;
mod vocabulary;
mod windows;

use seqembed_onnx::Family;
pub use seqembed_onnx::TokenizerKind;

pub use self::alphabet::Alphabet;
pub use self::behaviour::behaviour;
pub use self::encoded::Encoded;
pub use self::error::VocabularyError;
pub use self::family_rules::{FamilyRules, LetterRules};
pub use self::special::{SpecialNames, SpecialTokens};
pub use self::tokenizer::Tokenizer;
pub use self::windows::Window;

use std::path::Path;

use self::bpe::BpeTokenizer;
use self::kmer::KmerTokenizer;
use self::letters::LetterTokenizer;
use self::non_overlapping::NonOverlappingTokenizer;
use self::pairs::PairTokenizer;
use self::vocabulary::Vocabulary;

/// Opens the tokenizer of a model folder.
///
/// # Errors
/// If its file cannot be read or is not a vocabulary of this kind. The error names the file.
pub fn open(folder: &Path, kind: TokenizerKind) -> Result<Box<dyn Tokenizer>, VocabularyError> {
    open_with(folder, kind, &FamilyRules::default())
}

/// Opens the tokenizer of a model folder, with the rules of the model's family.
///
/// # Errors
/// As [`open`].
pub fn open_with(
    folder: &Path,
    kind: TokenizerKind,
    rules: &FamilyRules,
) -> Result<Box<dyn Tokenizer>, VocabularyError> {
    let path = folder.join(kind.file());
    let text = std::fs::read(&path).map_err(|source| VocabularyError::Io {
        path: path.clone(),
        source,
    })?;
    read_with(kind, &text, rules).map_err(|source| VocabularyError::File {
        path,
        source: Box::new(source),
    })
}

/// The tokenizer of a file's text.
///
/// # Errors
/// If it is not a vocabulary of this kind.
pub fn read(kind: TokenizerKind, text: &[u8]) -> Result<Box<dyn Tokenizer>, VocabularyError> {
    read_with(kind, text, &FamilyRules::default())
}

/// The tokenizer of a file's text, with the rules of the model's family.
///
/// # Errors
/// As [`read`].
pub fn read_with(
    kind: TokenizerKind,
    text: &[u8],
    rules: &FamilyRules,
) -> Result<Box<dyn Tokenizer>, VocabularyError> {
    if seqembed_onnx::is_lfs_pointer(text) {
        return Err(VocabularyError::LfsPointer);
    }
    let text = std::str::from_utf8(text).map_err(|error| VocabularyError::NoText {
        at: error.valid_up_to(),
    })?;
    Ok(match kind {
        TokenizerKind::Esm => Box::new(LetterTokenizer::esm_with(text, rules)?),
        TokenizerKind::Bpe => Box::new(BpeTokenizer::from_json_with(text, rules)?),
        TokenizerKind::Bert => bert(text, rules)?,
        TokenizerKind::Pairs => Box::new(PairTokenizer::new(&Vocabulary::read(text)?, rules)?),
        TokenizerKind::NonOverlapping => Box::new(NonOverlappingTokenizer::new(
            &Vocabulary::read(text)?,
            rules,
        )?),
    })
}

/// Checks for an export that sequences can be tokenized with a file; on an error, the export writes
/// nothing.
///
/// # Errors
/// The reason.
pub fn check(family: &dyn Family, text: &[u8]) -> Result<(), String> {
    read_with(family.tokenizer(), text, &FamilyRules::of(family))
        .map(drop)
        .map_err(|error| error.to_string())
}

/// The tokenizer of a BERT's `vocab.txt`: k-mers if all of its words are of A, C, G and T, else
/// single letters.
fn bert(text: &str, rules: &FamilyRules) -> Result<Box<dyn Tokenizer>, VocabularyError> {
    let words = Vocabulary::read(text)?;
    let of_bases = |word: &str| word.bytes().all(|byte| b"ACGT".contains(&byte));
    Ok(if words.words().all(|(word, _)| of_bases(word)) {
        Box::new(KmerTokenizer::new(&words, rules)?)
    } else {
        Box::new(LetterTokenizer::bert(&words, rules)?)
    })
}
