//! Sequences -> token ids, behind one trait. One file a kind of vocabulary.

pub mod dna;
pub mod esm;

/// A model's vocabulary at work.
pub trait Tokenizer: Send + Sync {
    /// The tokens of a sequence, without special ones. Any bytes are taken.
    fn encode(&self, sequence: &[u8]) -> Encoded;

    /// The ids of the special tokens.
    fn special(&self) -> Special;
}

/// Ids of the special tokens, under ESM's names (`BERT`: `[CLS]`, `[SEP]`, `[PAD]`, `[UNK]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Special {
    /// Stands first.
    pub cls: u32,
    /// Stands last.
    pub eos: u32,
    /// Fills a batch up.
    pub pad: u32,
    /// Stands for what the vocabulary lacks.
    pub unk: u32,
}

/// A sequence as tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens without special ones.
    pub ids: Vec<u32>,
    /// How many of the ids are the unknown token's, for letters that the vocabulary lacks.
    pub unknown: usize,
    /// Where in the sequence, counted from 0, the first of those letters stands.
    pub first_unknown: Option<usize>,
    /// Whether a terminal `*` was dropped.
    pub dropped_stop: bool,
    /// Where a token is not a letter: token `i` starts at letter `starts[i]`. `None`: token `i` is letter `i`.
    pub starts: Option<Vec<u32>>,
}

/// A vocabulary that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum VocabularyError {
    /// The file can't be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Tokens that every sequence needs are not in it.
    #[error("the vocabulary lacks {}", tokens.join(", "))]
    Missing {
        /// The tokens.
        tokens: Vec<String>,
    },
    /// One token stands there twice.
    #[error("the vocabulary has `{token}` twice (ids {first} and {second})")]
    Twice {
        /// The token.
        token: String,
        /// Its first id.
        first: u32,
        /// Its second id.
        second: u32,
    },
}
