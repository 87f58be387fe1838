//! The tests of the executable: one program, with a module for each subject (`cargo test --test it
//! fetch::` runs those of one).
//!
//! They run side by side in one process, on machines that may be busy:
//!
//! - Environment variables, the current directory and limits are set for the programs that a test
//!   starts, never for this process. Each test has a folder of its own.
//! - A folder that several tests share (`common::exported`) is only read.
//! - Any thread may be held up for many seconds: no test measures time, and one that must catch a
//!   running program at some point says how it knows, or tries again (`common::retry_if_late`).
//! - Scripts and executables are written by `common::write_script` and `common::copy_executable`.
//!
//! What needs neither the executable nor ONNX Runtime is in `tests/library`, what needs a GPU in
//! `tests/gpu.rs`.

#![allow(
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "a test may stop where its own set-up fails, and reads from top to bottom"
)]

#[path = "../common/mod.rs"]
mod common;

mod amplify_parity;
mod bert_parity;
mod contacts;
mod convert;
#[cfg(target_os = "linux")]
mod devices;
mod dna_parity;
mod docs;
mod doctor;
mod dry_run;
mod embedder;
mod esm1_parity;
mod esm2_parity;
mod esmc_parity;
mod exported_graph;
mod faults;
mod fetch;
mod install;
mod loading;
mod malformed_dna;
mod malformed_input;
mod manifest;
mod mixed_manifest;
mod models;
mod new_manifest;
mod nextflow;
mod nt_parity;
mod one_pass;
mod plot;
mod report;
mod resume;
mod saprot_parity;
mod score;
mod score_resume;
mod shell;
mod snakemake;
mod soak;
mod spans;
mod t5_parity;
mod verify;
mod virnucpro;
