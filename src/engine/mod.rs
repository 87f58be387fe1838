//! Running models with ONNX Runtime, on CPUs and on NVIDIA GPUs.
//!
//! From top to bottom: [`select`] decides which devices a run uses, and [`loader`] loads a model
//! onto each of them. The result is a [`Session`], which computes rows of numbers from a [`Batch`].
//! [`runtime`] finds ONNX Runtime itself.

pub mod batch;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod fault_injection;
pub mod loader;
pub mod mapped_files;
pub mod runtime;
pub mod select;
pub mod session;

pub use self::batch::{Batch, Reduce};
pub use self::error::EngineError;
pub use self::session::{Engine, Session, SessionInfo};
