//! The modules of seqembed: manifest -> records -> tokens -> batches -> engine -> outputs.

// All messages to the user go through `cli::terminal`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod batch;
pub mod cli;
pub mod device;
pub mod digest;
pub mod embedder;
pub mod engine;
pub mod folders;
pub mod html_report;
pub mod hub;
pub mod interrupt;
pub mod journal;
pub mod manifest;
pub mod models;
pub mod output;
pub mod plot;
pub mod pooling;
pub mod records;
pub mod report;
pub mod run;
pub mod settings;
pub mod targets;
pub mod text;
pub mod threads;
pub mod tokenize;
pub mod trace;
pub mod virnucpro;

pub use embedder::{Embedder, EmbedderOptions};
pub use seqembed_onnx::atomic_file;
