//! Why a vocabulary cannot be used.

use std::path::PathBuf;

use seqembed_onnx::shown;

/// Why a vocabulary cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VocabularyError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The underlying error.
        source: std::io::Error,
    },
    /// The file is not the vocabulary that it should be.
    #[error("{path}: {source}")]
    File {
        /// Path of the file.
        path: PathBuf,
        /// A description of the error.
        source: Box<VocabularyError>,
    },
    /// A few lines of Git LFS where the file should be.
    #[error("this is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository")]
    LfsPointer,
    /// Bytes that are not UTF-8.
    #[error("it is not text: byte {at} is not valid UTF-8")]
    NoText {
        /// Offset of the first invalid byte.
        at: usize,
    },
    /// Tokens that every sequence needs are not in it.
    #[error("the vocabulary lacks {}", shown::message(&tokens.join(", ")))]
    Missing {
        /// The missing tokens.
        tokens: Vec<String>,
    },
    /// A token occurs twice.
    #[error(
        "the vocabulary has `{}` twice (ids {first} and {second})",
        shown::name(token)
    )]
    Twice {
        /// The repeated token.
        token: String,
        /// Id of its first occurrence.
        first: u32,
        /// Id of its second occurrence.
        second: u32,
    },
    /// A word that fits no kind of vocabulary.
    #[error(
        "`{}` (id {id}) is neither a single letter nor a k-mer of A, C, G and T; word pieces are not supported",
        shown::name(token)
    )]
    Word {
        /// The unsupported token.
        token: String,
        /// Id of the token.
        id: u32,
    },
    /// A word that is not a residue and a structure.
    #[error(
        "`{}` (id {id}) is not a pair of letters, a residue and a structure",
        shown::name(token)
    )]
    NoPair {
        /// The unsupported token.
        token: String,
        /// Id of the token.
        id: u32,
    },
    /// k-mers of more than one length.
    #[error(
        "the vocabulary has k-mers of {first} and of {second} bases (`{}`), but a model must have \
         a single k",
        shown::name(token)
    )]
    SeveralK {
        /// One k-mer length in the vocabulary.
        first: usize,
        /// Another k-mer length in the vocabulary.
        second: usize,
        /// One of these k-mers.
        token: String,
    },
    /// Some of the 4^k k-mers are missing.
    #[error("the vocabulary has {found} k-mers of {k} bases, but all 4^{k} are required")]
    Kmers {
        /// Length of the k-mers, in bases.
        k: usize,
        /// How many there are.
        found: usize,
    },
    /// A `tokenizer.json` that is none, or of another kind.
    #[error("no BPE tokenizer: {}", shown::message(reason))]
    Bpe {
        /// A description of the error.
        reason: String,
    },
}
