//! The weights file: which tensors it has and where, how each is made, its number formats, and its hashes.

pub mod cast;
pub mod fp8;
pub mod norm_fold;
pub mod random;
pub mod table;
pub mod verify;
