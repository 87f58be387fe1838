//! A manifest as it is written, before its values are checked.

/// A key with its text and line in the manifest.
#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) key: String,
    pub(super) text: String,
    pub(super) line: usize,
}

/// The entry of one file.
#[derive(Debug)]
pub(super) struct FileEntry {
    pub(super) line: usize,
    pub(super) fields: Vec<Field>,
    /// Whether a field was dropped because of an error already reported; its absence is then not
    /// reported again.
    pub(super) is_damaged: bool,
}

/// A parsed manifest before validation.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) top: Vec<Field>,
    pub(super) entries: Vec<FileEntry>,
}
