//! Errors of collecting results, and the interface for reporting progress.

use crate::engine::error::EngineError;
use crate::journal::JournalError;
use crate::output::OutputError;
use crate::text::counted;

/// Why collecting stopped.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// An output could not be written.
    #[error("{source} (after {} of its vectors)", counted(*bytes, "byte"))]
    Output {
        /// Bytes of vectors that it was given.
        bytes: u64,
        /// The underlying error.
        source: OutputError,
    },
    /// What is needed to go on later could not be kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The model's weights were changed while it ran.
    #[error(transparent)]
    Weights(#[from] seqembed_onnx::Error),
    /// A batch failed.
    #[error("{files}: the model failed on a batch of {}: {source}",
        counted(*sequences as u64, "sequence"))]
    Engine {
        /// The files whose sequences were in the batch.
        files: String,
        /// Number of sequences.
        sequences: usize,
        /// The underlying error.
        source: EngineError,
    },
    /// A long record was on its way to its file, and the run was asked to stop.
    #[error("the run was asked to stop")]
    Stopped,
}

/// Receives progress, warnings and failures as they happen.
pub trait Observer {
    /// Something that does not stop the file.
    fn warning(&mut self, text: &str);
    /// A file failed.
    fn failure(&mut self, text: &str);
    /// Sequences and tokens that were done since the last call, input bytes that were read in all,
    /// and files ended.
    fn advanced(&mut self, sequences: u64, tokens: u64, bytes: u64, files: u64);
}
