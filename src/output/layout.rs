//! The layout of an embedding file: properties that all its rows share.

use std::path::PathBuf;

use super::precision::OutputPrecision;

/// The properties that a sink needs before the first row, and that [`Reader`] returns for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The file's final path.
    pub path: PathBuf,
    /// Width of a vector.
    pub hidden: usize,
    /// Whether rows have one vector per residue (`--pooling none`) instead of one pooled vector.
    pub per_token: bool,
    /// The floats in the file.
    pub precision: OutputPrecision,
    /// Where the numbers come from (tool, model, weights' hash, pooling, layer ...), in a fixed
    /// order. Written into the file.
    pub provenance: Vec<(String, String)>,
}

impl Layout {
    /// The value of a provenance key.
    #[must_use]
    pub fn provenance(&self, key: &str) -> Option<&str> {
        self.provenance
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
}
