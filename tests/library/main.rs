//! The tests of the library that need neither the executable nor ONNX Runtime: reading sequence
//! files, tokenizers, output formats, and what fuzzing found. One program, with a module for each
//! subject (`cargo test --test library records::` runs those of one).

#![allow(
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "a test may stop where its own set-up fails, and reads from top to bottom"
)]

#[path = "../common/mod.rs"]
mod common;

mod dna_tokenizers;
mod format_lists;
mod imports;
mod output_formats;
mod protein_tokenizer;
mod records;
mod regressions;
mod releases;
