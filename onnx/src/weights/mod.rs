//! The weights file: its tensors and their layout, how each tensor is made, precisions, and hashes.

pub mod cast;
pub mod fp8;
pub mod norm_fold;
pub mod random;
pub mod table;
pub mod verify;
