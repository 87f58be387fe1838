//! Checkpoints: every format is read as a list of tensors, each a byte range in a file, and
//! settings.

mod canonical;
mod contents;
pub mod dtype;
mod frequencies;
pub mod leftovers;
pub mod names;
mod open;
pub mod pickle;
pub mod pytorch;
mod pytorch_legacy;
pub mod remedy;
pub mod safetensors;
mod settings;
mod tensor;

pub use canonical::Canonical;
pub use dtype::Dtype;
pub use frequencies::check_frequencies;
pub use open::{Checkpoint, adapter_file};
pub use settings::{Scalar, Settings};
pub use tensor::Tensor;
