//! Why contacts could not be predicted.

use crate::engine::error::EngineError;
use crate::manifest::ManifestErrors;
use crate::output::OutputError;
use crate::run::RunError;

/// Why contacts could not be predicted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContactsError {
    /// As for embeddings: the model, a device, the output folder or an output.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The input files are missing, or would have the same output.
    #[error(transparent)]
    Files(#[from] ManifestErrors),
    /// An output cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// ONNX Runtime refused a batch.
    #[error("cannot compute a batch: {0}")]
    Engine(#[from] EngineError),
    /// ONNX Runtime's own operators do not return attention maps.
    #[error(
        "contacts need seqembed's own kernels, because ONNX Runtime's operators return no \
         attention maps; leave out `--kernels portable`"
    )]
    Kernels,
    /// There are no kernels for GPUs.
    #[error("contacts cannot be predicted on GPUs (option `device: {choice}`); use `--device cpu`")]
    Device {
        /// The device that was asked for.
        choice: String,
    },
}

impl ContactsError {
    /// Whether what the user gave is wrong, and not the machine.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Run(error) => error.is_usage(),
            Self::Output(_) | Self::Engine(_) => false,
            Self::Files(_) | Self::Kernels | Self::Device { .. } => true,
        }
    }
}
