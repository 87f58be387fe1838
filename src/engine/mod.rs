//! ONNX Runtime: finding the library, sessions, and the seam between batching and devices.

pub mod cpu;
pub mod cuda;
pub mod fault_injection;
pub mod loader;
pub mod mapped_files;
pub mod runtime;
pub mod select;
pub mod session;

use std::time::Instant;

use crate::threads::MORE_THREADS;

/// Token sequences laid end to end, without padding, and the ranges of tokens to be pooled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids of all sequences.
    pub ids: Vec<i64>,
    /// Where each sequence begins in `ids`, and the end of the last one.
    pub starts: Vec<i32>,
    /// For each pooled row, the tokens `[start, end)` in `ids` that it is taken over.
    pub ranges: Vec<[i32; 2]>,
}

impl Batch {
    /// How many tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// How many sequences.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }
}

/// What an engine gives back for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// The mean of each range, [ranges, hidden].
    Mean,
    /// The maximum of each range, [ranges, hidden].
    Max,
    /// All tokens, [tokens, hidden].
    Tokens,
}

impl Reduce {
    /// The graph's output that gives it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Tokens => "tokens",
        }
    }
}

/// A model on a device: a batch in, rows of numbers out.
pub trait Engine: Send + Sync {
    /// Computes a batch. May be called from several threads at once.
    ///
    /// # Errors
    /// What the device or the graph refuses.
    fn run(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError>;

    /// Tokens that a batch costs on the device, padding included.
    fn cost(&self, batch: &Batch) -> usize {
        batch.tokens()
    }

    /// When the device itself computed since this was last asked, for an engine that knows better than its callers: those may wait
    /// for a place on it. Empty: it computed all through the calls of [`Engine::run`].
    fn computed(&self) -> Vec<(Instant, Instant)> {
        Vec::new()
    }
}

/// Why a batch or a model could not be run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// ONNX Runtime refused.
    #[error("ONNX Runtime: {0}")]
    Runtime(String),
    /// The system gave ONNX Runtime no thread.
    #[error("cannot start a thread: ONNX Runtime: {0}. {advice}", advice = MORE_THREADS)]
    Threads(String),
    /// The device has not enough memory for this batch: a smaller one may do.
    #[error("out of memory on the device: {0}")]
    OutOfMemory(String),
    /// The device no longer answers, and nothing more can be run on it in this process.
    #[error("the device was lost: {0}")]
    DeviceLost(String),
    /// The model's folder has a name that ONNX Runtime does not take.
    #[error("the path is not UTF-8, and ONNX Runtime cannot open it: give the folder another name")]
    Encoding,
    /// The model has no such output.
    #[error("the graph was built without the output {0:?}")]
    Output(Reduce),
}

impl<T> From<ort::Error<T>> for EngineError {
    fn from(error: ort::Error<T>) -> Self {
        let why = error.to_string();
        // So it says where its own pool could not be started.
        if why.contains("pthread_create") {
            return Self::Threads(why);
        }
        Self::Runtime(why)
    }
}
