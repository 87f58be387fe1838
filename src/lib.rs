//! The parts of seqembed: manifest -> records -> tokens -> batches -> engine -> outputs.

pub mod cli;
pub mod engine;
pub mod hub;
pub mod models;
pub mod output;
pub mod records;
pub mod tokenize;
