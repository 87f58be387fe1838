//! The parts of seqembed: manifest -> records -> tokens -> batches -> engine -> outputs.

pub mod batch;
pub mod engine;
pub mod manifest;
pub mod output;
pub mod records;
pub mod settings;
pub mod tokenize;
