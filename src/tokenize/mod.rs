//! Sequences -> token ids, behind one trait. One file a kind of vocabulary.

pub mod bpe;
pub mod dna;
pub mod kmer;
pub mod letters;
mod special;
mod vocabulary;
mod windows;

use std::ops::Range;
use std::path::{Path, PathBuf};

pub use seqembed_onnx::TokenizerKind;
use seqembed_onnx::shown;

pub use self::special::SpecialTokens;
pub use self::windows::Window;
use self::windows::windows;

/// A model's vocabulary at work.
pub trait Tokenizer: Send + Sync {
    /// The tokens of a sequence, without special ones. Any bytes are taken, each as a letter: [`Record`](crate::records::Record)
    /// says how a character of several bytes comes to be one.
    fn encode(&self, sequence: &[u8]) -> Encoded;

    /// The tokens of a sequence's beginning, which goes on behind it: what [`Tokenizer::encode`] drops at a sequence's end is a
    /// letter here.
    fn encode_beginning(&self, beginning: &[u8]) -> Encoded {
        self.encode(beginning)
    }

    /// The special tokens: nothing else knows which and how many stand around a sequence.
    fn special(&self) -> &SpecialTokens;

    /// What the sequences are made of.
    fn alphabet(&self) -> Alphabet;

    /// How many ids there are: all are below this. The model's embedding table has at least as many rows.
    fn vocabulary(&self) -> usize;

    /// How many letters a token reads where all read as many: `k` of k-mers, else 1. A sequence of fewer has no token.
    fn span(&self) -> usize {
        1
    }

    /// Why a sequence of so many letters has no token, for its status.
    fn why_no_tokens(&self, letters: usize) -> String {
        if letters == 0 {
            "empty sequence".to_owned()
        } else if letters < self.span() {
            format!("shorter than k = {}", self.span())
        } else {
            "no tokens".to_owned()
        }
    }
}

/// What sequences are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alphabet {
    /// Amino acids.
    Protein,
    /// Nucleotides.
    Dna,
}

impl Alphabet {
    /// What its letters are called, and what lengths and windows count.
    #[must_use]
    pub fn units(self) -> &'static str {
        match self {
            Self::Protein => "residues",
            Self::Dna => "bases",
        }
    }

    /// The longest record that is read unless the user says otherwise: the longest protein known has some 45,000 residues, the
    /// longest human chromosome 249 million bases. What is longer most likely is many records whose headers were lost.
    #[must_use]
    pub fn longest_record(self) -> u64 {
        match self {
            Self::Protein => 10_000_000,
            Self::Dna => 300_000_000,
        }
    }
}

/// A sequence as tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens without special ones.
    pub ids: Vec<u32>,
    /// How many letters the sequence has, a dropped `*` not counted.
    pub letters: usize,
    /// How many of the ids are the unknown token's, for letters that the vocabulary lacks.
    pub unknown: usize,
    /// Where in the sequence, counted from 0, the first of those letters stands.
    pub first_unknown: Option<usize>,
    /// Whether a terminal `*` was dropped.
    pub dropped_stop: bool,
    /// Where tokens have several lengths: token `i` starts at letter `starts[i]`. `None`: token `i` starts at letter
    /// `i`.
    pub starts: Option<Vec<u32>>,
}

impl Encoded {
    /// The tokens that start in a range of letters.
    #[must_use]
    pub fn tokens_in(&self, letters: Range<usize>) -> Range<usize> {
        let at = |letter: usize| match &self.starts {
            Some(starts) => starts.partition_point(|&start| (start as usize) < letter),
            None => letter.min(self.ids.len()),
        };
        at(letters.start)..at(letters.end)
    }

    /// Cuts a sequence into windows of `size` letters of which neighbours share `overlap`, and returns their tokens.
    ///
    /// The windows are those of [`windows`], over the letters where a token of `span` letters can start; a token
    /// belongs to the letter where it starts, and is never cut in two: where tokens have several lengths, a window's last
    /// one may reach past it. A window that no token is taken from is left out.
    ///
    /// # Panics
    /// If `overlap` or `span - 1` is not smaller than `size`: the settings are checked before.
    #[must_use]
    pub fn windows(&self, span: usize, size: usize, overlap: usize) -> Vec<Window> {
        self.windows_of(0..self.ids.len(), span, size, overlap)
    }

    /// The windows of a stretch of the tokens, as [`Encoded::windows`] gives them for all.
    ///
    /// # Panics
    /// As [`Encoded::windows`].
    #[must_use]
    pub fn windows_of(
        &self,
        tokens: Range<usize>,
        span: usize,
        size: usize,
        overlap: usize,
    ) -> Vec<Window> {
        let less = span - 1;
        let letters = self.letters_of(tokens, span);
        let within = |part: Range<usize>| {
            self.tokens_in(letters.start + part.start..letters.start + part.end)
        };
        windows(letters.len(), size - less, overlap.saturating_sub(less))
            .into_iter()
            .map(|window| Window {
                seen: within(window.seen),
                kept: within(window.kept),
            })
            .filter(|window| !window.kept.is_empty())
            .collect()
    }

    /// The letters where the tokens of a stretch can start, a token being of `span` letters at least.
    #[must_use]
    pub fn letters_of(&self, tokens: Range<usize>, span: usize) -> Range<usize> {
        let at = |token: usize| match &self.starts {
            _ if token == 0 => 0,
            _ if token >= self.ids.len() => self.letters.saturating_sub(span - 1),
            Some(starts) => starts[token] as usize,
            None => token,
        };
        // Nothing but the whole of a sequence without tokens begins at both ends.
        let start = at(tokens.start);
        let end = if tokens.end == self.ids.len() {
            self.letters.saturating_sub(span - 1)
        } else {
            at(tokens.end)
        };
        start..end.max(start)
    }
}

/// Opens the tokenizer of a model folder.
///
/// # Errors
/// When its file can't be read or is no vocabulary of this kind. The error names the file.
pub fn open(folder: &Path, kind: TokenizerKind) -> Result<Box<dyn Tokenizer>, VocabularyError> {
    let path = folder.join(kind.file());
    let text = std::fs::read(&path).map_err(|source| VocabularyError::Io {
        path: path.clone(),
        source,
    })?;
    read(kind, &text).map_err(|source| VocabularyError::File {
        path,
        source: Box::new(source),
    })
}

/// The tokenizer of a file's text.
///
/// # Errors
/// When it is no vocabulary of this kind.
pub fn read(kind: TokenizerKind, text: &[u8]) -> Result<Box<dyn Tokenizer>, VocabularyError> {
    if seqembed_onnx::is_lfs_pointer(text) {
        return Err(VocabularyError::LfsPointer);
    }
    let text = std::str::from_utf8(text).map_err(|error| VocabularyError::NoText {
        at: error.valid_up_to(),
    })?;
    match kind {
        TokenizerKind::Esm => letters::LetterTokenizer::esm(text).map(|it| Box::new(it) as _),
        TokenizerKind::Bpe => bpe::BpeTokenizer::from_json(text).map(|it| Box::new(it) as _),
        TokenizerKind::Bert => bert(text),
    }
}

/// Says why sequences cannot be read with a file, for an export: it then writes nothing.
///
/// # Errors
/// The reason.
pub fn check(kind: TokenizerKind, text: &[u8]) -> Result<(), String> {
    read(kind, text)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// The tokenizer of a BERT's `vocab.txt`: k-mers if all of its words are of A, C, G and T, else single letters.
fn bert(text: &str) -> Result<Box<dyn Tokenizer>, VocabularyError> {
    let words = vocabulary::Vocabulary::read(text)?;
    let of_bases = |word: &str| word.bytes().all(|byte| b"ACGT".contains(&byte));
    if words.words().all(|(word, _)| of_bases(word)) {
        Ok(Box::new(kmer::KmerTokenizer::new(&words)?))
    } else {
        Ok(Box::new(letters::LetterTokenizer::bert(&words)?))
    }
}

/// A vocabulary that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum VocabularyError {
    /// The file can't be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not the vocabulary that it should be.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<VocabularyError>,
    },
    /// A few lines of Git LFS where the file should be.
    #[error("this is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository")]
    LfsPointer,
    /// Bytes that are no text.
    #[error("it is not text: byte {at} is not valid UTF-8")]
    NoText {
        /// Where.
        at: usize,
    },
    /// Tokens that every sequence needs are not in it.
    #[error("the vocabulary lacks {}", shown::message(&tokens.join(", ")))]
    Missing {
        /// The tokens.
        tokens: Vec<String>,
    },
    /// One token stands there twice.
    #[error(
        "the vocabulary has `{}` twice (ids {first} and {second})",
        shown::name(token)
    )]
    Twice {
        /// The token.
        token: String,
        /// Its first id.
        first: u32,
        /// Its second id.
        second: u32,
    },
    /// A word that fits no kind of vocabulary.
    #[error(
        "`{}` (id {id}) is neither a single letter nor a k-mer of A, C, G and T; word pieces are not supported",
        shown::name(token)
    )]
    Word {
        /// The word.
        token: String,
        /// Its id.
        id: u32,
    },
    /// k-mers of more than one length.
    #[error(
        "the vocabulary has k-mers of {first} and of {second} bases (`{}`), but a model must have \
         a single k",
        shown::name(token)
    )]
    SeveralK {
        /// The first length.
        first: usize,
        /// Another one.
        second: usize,
        /// A k-mer of it.
        token: String,
    },
    /// Not all k-mers.
    #[error("the vocabulary has {found} k-mers of {k} bases, but all 4^{k} are required")]
    Kmers {
        /// The k-mers' length.
        k: usize,
        /// How many there are.
        found: usize,
    },
    /// A `tokenizer.json` that is none, or of another kind.
    #[error("no BPE tokenizer: {}", shown::message(reason))]
    Bpe {
        /// What is wrong.
        reason: String,
    },
}
