//! Why scoring stopped, or could not start.

use std::path::PathBuf;

use crate::engine::error::EngineError;
use crate::journal::JournalError;
use crate::manifest::ManifestErrors;
use crate::output::OutputError;
use crate::run::error::RunError;
use crate::targets::TargetError;
use crate::threads::StartError;

/// Why scoring stopped, or could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScoreError {
    /// As in any run: the model, the options or the devices.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The model has no language-model head, or a damaged one.
    #[error(transparent)]
    Head(#[from] seqembed_onnx::Error),
    /// The method needs a token that the model's vocabulary does not have.
    #[error("{}: the vocabulary has no mask token (<mask> or [MASK]), which this method needs; use --method unmasked", .0.display())]
    NoMask(PathBuf),
    /// Variants of a model whose tokens are not single amino acids.
    #[error(
        "--variants and --scan need a protein model whose tokens are single amino acids, which {0} is not (a \
         changed base changes several of its tokens, or their borders); write the changed sequences into a \
         FASTA file, and compare their log_likelihood"
    )]
    NoLetters(String),
    /// Variants that are not in the sequences, or not variants.
    #[error("{}", .0.join("\n"))]
    Variants(Vec<String>),
    /// Standard input cannot be read twice.
    #[error(
        "--variants reads the sequences twice, which standard input does not allow: write them to a file first"
    )]
    Stdin,
    /// A table cannot be written.
    #[error("cannot write {}: {why}", .path.display())]
    Table {
        /// Path of the table.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// An output would overwrite another file.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The system refuses to start more threads.
    #[error(transparent)]
    Threads(#[from] StartError),
    /// A batch failed.
    #[error("the model failed on a batch: {0}")]
    Engine(#[from] EngineError),
    /// The files to score are missing, or would have the same output.
    #[error(transparent)]
    Files(#[from] ManifestErrors),
    /// A table cannot be completed.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl From<JournalError> for ScoreError {
    fn from(error: JournalError) -> Self {
        Self::Run(error.into())
    }
}

impl ScoreError {
    /// Whether what the user gave is wrong, and not the machine.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Run(error) => error.is_usage(),
            Self::Head(error) => error.is_input(),
            Self::NoMask(_)
            | Self::NoLetters(_)
            | Self::Variants(_)
            | Self::Stdin
            | Self::Files(_)
            | Self::Target(_) => true,
            Self::Table { .. } | Self::Output(_) | Self::Threads(_) | Self::Engine(_) => false,
        }
    }
}
