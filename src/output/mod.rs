//! What is written: rows of embeddings, and the trait that every output format implements.
//!
//! Every file appears by rename, whole or not at all: a sink writes to a temporary file in the output
//! folder and [`Sink::finish`] moves it to its final name.

use std::path::PathBuf;

/// A block of consecutive rows of one output file, in input order.
///
/// Row `i` has `vectors[i]` vectors of `hidden` values each in `values` (row after row): one for a pooled
/// embedding, one for each residue for per-token output, and one vector of NaN (pooled) or none at all
/// (per-token) for a record that was skipped.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Width of a vector.
    pub hidden: usize,
    /// The first word of each record's header.
    pub ids: Vec<String>,
    /// The whole header line of each record, without its `>` or `@`.
    pub headers: Vec<String>,
    /// Residues in each record, as they were embedded (after a terminal `*` was dropped, before truncation).
    pub lengths: Vec<u64>,
    /// What happened to each record: `ok`, or one or more of `truncated`, `windowed`, `replaced` joined by
    /// a comma, or `skipped: why`.
    pub status: Vec<String>,
    /// How many vectors each row has.
    pub vectors: Vec<usize>,
    /// The vectors, `sum(vectors) * hidden` values.
    pub values: Vec<f32>,
}

/// What a sink must know before the first row.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The file's final path.
    pub path: PathBuf,
    /// Width of a vector.
    pub hidden: usize,
    /// Whether rows hold a vector for each residue (`--pooling none`) instead of one pooled vector.
    pub per_token: bool,
    /// Where the numbers come from (tool, model, weights' hash, pooling, layer ...), in a fixed order. Written
    /// into the file.
    pub provenance: Vec<(String, String)>,
}

/// A file being written.
pub trait Sink: Send {
    /// Appends rows. Memory stays bounded however many follow.
    ///
    /// # Errors
    /// When the disk refuses: the error names the path.
    fn write(&mut self, rows: &Rows) -> Result<(), OutputError>;

    /// Completes the file and gives it its final name. Dropping a sink without this leaves no file behind.
    ///
    /// # Errors
    /// When the disk refuses: the error names the path.
    fn finish(self: Box<Self>) -> Result<(), OutputError>;
}

/// Why an output could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The operating system refused.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}
