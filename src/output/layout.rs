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
    /// The provenance key that says what the numbers are; absent where they are embeddings.
    pub(crate) const OUTPUT: &str = "output";
    /// Its value for contacts: each record has a row of `n * n` numbers, the pairs of its `n`
    /// residues, as that many vectors 1 wide.
    pub(crate) const CONTACTS: &str = "contacts";

    /// Whether the numbers are contacts.
    pub(super) fn is_contacts(&self) -> bool {
        self.provenance(Self::OUTPUT) == Some(Self::CONTACTS)
    }

    /// The name of the numbers in formats that name them, and their shape for a number of vectors.
    pub(super) fn named(&self, vectors: u64) -> (&'static str, Vec<u64>) {
        if self.is_contacts() {
            ("contacts", vec![vectors])
        } else {
            ("embeddings", vec![vectors, self.hidden as u64])
        }
    }

    /// The value of a provenance key.
    #[must_use]
    pub fn provenance(&self, key: &str) -> Option<&str> {
        self.provenance
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
}
