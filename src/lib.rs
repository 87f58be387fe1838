//! Embeddings of protein and DNA sequences by language models (the ESM and DNABERT families), with
//! one load of the model however many sequences and files there are.
//!
//! Start with [`Embedder`]: [`Embedder::embed`] computes [`Rows`] from sequences, and
//! [`Embedder::run`] writes an embedding file for each input file. [`open_file`] and [`read_file`]
//! read such files, in any [`Format`].
//!
//! ```no_run
//! use seqembed::{Embedder, EmbedderOptions};
//!
//! let mut embedder = Embedder::new("esm2_t6_8M_UR50D", EmbedderOptions::default())?;
//! let rows = embedder.embed([("P1 first", "MKTAYIAKQR"), ("P2 second", "GSHMKL")])?;
//! for (id, vector) in rows.ids.iter().zip(rows.values.chunks_exact(rows.hidden)) {
//!     println!("{id}: {} values, the first of them {}", vector.len(), vector[0]);
//! }
//! # Ok::<(), seqembed::EmbedError>(())
//! ```
//!
//! A name such as `esm2_t6_8M_UR50D` must have been downloaded before (`seqembed fetch`); a
//! checkpoint or an exported folder is named by its path.
//!
//! The modules are the executable's: manifest -> records -> tokens -> batches -> engine -> outputs.
//! Those that its tests need can be reached, but are no part of the interface.

// All messages to the user go through `cli::terminal`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod batch;
#[doc(hidden)]
pub mod cli;
mod contacts;
#[doc(hidden)]
pub mod device;
mod digest;
#[doc(hidden)]
pub mod embedder;
#[doc(hidden)]
pub mod engine;
mod folders;
mod html_report;
mod hub;
mod interrupt;
mod jobs;
#[doc(hidden)]
pub mod journal;
mod layers;
#[doc(hidden)]
pub mod manifest;
mod models;
#[doc(hidden)]
pub mod output;
mod page_cache;
mod plot;
mod pooling;
#[doc(hidden)]
pub mod records;
mod report;
#[doc(hidden)]
pub mod run;
#[doc(hidden)]
pub mod settings;
mod targets;
#[doc(hidden)]
pub mod text;
mod threads;
#[doc(hidden)]
pub mod tokenize;
mod trace;
#[doc(hidden)]
pub mod vectors;
mod verify;
mod virnucpro;

pub use contacts::{ContactsError, ContactsFormat, ContactsOutputs, PairChoice, Top as TopPairs};
pub use device::Device;
pub use embedder::{EmbedError, Embedder, EmbedderOptions, Silent};
pub use engine::session::{Session, SessionInfo};
pub use output::{
    Format, Layout, OutputError, OutputPrecision, Reader, Rows, open as open_file,
    read as read_file,
};
pub use report::{FileReport, LoadReport, Report};
pub use run::Observer;
pub use run::score::{Method as ScoreMethod, ScoreError, ScoreOptions, TableFormat, Variants};
use seqembed_onnx::atomic_file;
pub use settings::{
    Kernels, LayerChoice, Layers, Long, Overrides, Pooling, Poolings, Precision, Revcomp, Unknown,
};
