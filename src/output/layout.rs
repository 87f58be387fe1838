//! The layout of an embedding file: properties that all its rows share.

use std::path::PathBuf;

use super::precision::OutputPrecision;

/// The provenance key that names the columns, where there are several.
pub const COLUMNS: &str = "columns";

/// The properties that a sink needs before the first row, and that [`Reader`] returns for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The file's final path.
    pub path: PathBuf,
    /// Width of a row's vector: of all columns together.
    pub hidden: usize,
    /// Names of the columns where there are several, such as `mean_33`: a vector has one part for
    /// each, of the same width. Empty where there is one, called `embeddings`.
    pub columns: Vec<String>,
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

    /// The sides of the array of a column, for a number of vectors.
    pub(super) fn shape(&self, vectors: u64) -> Vec<u64> {
        if self.is_contacts() {
            vec![vectors]
        } else {
            vec![vectors, self.width() as u64]
        }
    }

    /// The names of the columns in the file.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        if self.is_contacts() {
            return vec![Self::CONTACTS];
        }
        names_of(&self.columns)
    }

    /// Width of a vector of one column.
    #[must_use]
    pub fn width(&self) -> usize {
        self.hidden / self.columns.len().max(1)
    }

    /// What a file of one column alone has.
    pub(super) fn of_column(&self, at: usize) -> Self {
        let mut layout = self.clone();
        layout.hidden = self.width();
        layout.columns = Vec::new();
        layout.provenance.retain(|(key, _)| key != COLUMNS);
        if let Some((pooling, layer)) = self.columns[at].rsplit_once('_') {
            for (key, value) in &mut layout.provenance {
                match key.as_str() {
                    "pooling" => pooling.clone_into(value),
                    "layer" => layer.clone_into(value),
                    _ => {}
                }
            }
        }
        layout
    }

    /// The columns that provenance tells of, none where there is one.
    pub(super) fn columns_of(provenance: &[(String, String)]) -> Vec<String> {
        let told = provenance.iter().find(|(key, _)| key == COLUMNS);
        let names = told.into_iter().flat_map(|(_, names)| names.split(','));
        names.map(str::to_owned).collect()
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

/// The names of columns in a file: one that is called nothing else is `embeddings`.
pub(super) fn names_of(columns: &[String]) -> Vec<&str> {
    if columns.is_empty() {
        return vec!["embeddings"];
    }
    columns.iter().map(String::as_str).collect()
}
