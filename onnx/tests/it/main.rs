//! The tests of the export, one program with a module for each subject.

#![allow(
    clippy::too_many_lines,
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may stop where its own set-up fails, and makes small files"
)]

mod support;

mod blocks;
mod checkpoint_formats;
mod esmc_layouts;
mod half_precision;
mod heads;
mod legacy_pytorch;
mod malformed_checkpoints;
mod model_folders;
