//! Why a model could not be loaded into ONNX Runtime, or a batch not be run.

use super::batch::Reduce;
use crate::threads::MORE_THREADS;

/// Why a batch or a model could not be run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An error of ONNX Runtime.
    #[error("ONNX Runtime: {0}")]
    Runtime(String),
    /// The system gave ONNX Runtime no thread.
    #[error("cannot start a thread: ONNX Runtime: {0}. {advice}", advice = MORE_THREADS)]
    Threads(String),
    /// The device has not enough memory for this batch. A smaller one may fit.
    #[error("out of memory on the device: {0}")]
    OutOfMemory(String),
    /// The device no longer answers, and nothing more can be run on it in this process.
    #[error("the device was lost: {0}")]
    DeviceLost(String),
    /// The path of the model folder is not UTF-8, which ONNX Runtime requires.
    #[error("the path is not valid UTF-8, so ONNX Runtime cannot open it: rename the folder")]
    Encoding,
    /// The model has no such output.
    #[error("the graph was built without the output {0:?}")]
    Output(Reduce),
    /// The graph is not one of contacts, or the device has no such graphs.
    #[error("the graph was built without contacts")]
    NoContacts,
}

impl<T> From<ort::Error<T>> for EngineError {
    fn from(error: ort::Error<T>) -> Self {
        let why = error.to_string();
        // ONNX Runtime's message when its own thread pool could not be started.
        if why.contains("pthread_create") {
            return Self::Threads(why);
        }
        Self::Runtime(why)
    }
}
