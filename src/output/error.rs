//! Why an output could not be written or read back.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why an output could not be written or read back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The operating system refused.
    #[error("cannot write {path}: {source}", path = .path.display())]
    Io {
        /// Path of the output, or of a file that belongs to it.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The path of the file is an existing folder.
    #[error("cannot write {path}: there is a folder of this name; move it, or use another output \
             folder", path = .path.display())]
    Folder {
        /// Path of the output, or of a file that belongs to it.
        path: PathBuf,
    },
    /// The operating system refused to read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read {
        /// Path of the output, or of a file that belongs to it.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Rows that don't fit together or don't fit the file: a fault of seqembed, not of the input.
    #[error("cannot write {path}: {what}; this is a bug in seqembed, please report it", path = .path.display())]
    Inconsistent {
        /// Path of the output, or of a file that belongs to it.
        path: PathBuf,
        /// Which columns or sizes do not match.
        what: String,
    },
    /// A value that is out of range for 16-bit floats.
    #[error("cannot write {path}: record {id:?} has the value {value}, but the largest 16-bit \
             float is 65504; use option `output_precision: fp32`", path = .path.display())]
    TooLarge {
        /// Path of the output, or of a file that belongs to it.
        path: PathBuf,
        /// Id of the record: the first word of its header.
        id: String,
        /// The first value that is out of range.
        value: f32,
    },
    /// Several poolings or layers in a format that holds one.
    #[error("cannot write {path}: {format} holds one pooling of one layer{each}, and there are \
             {columns}; use {others}, or a run for each", path = .path.display(),
        each = if *.per_token { " where each residue has a vector" } else { "" })]
    Columns {
        /// Path of the output.
        path: PathBuf,
        /// Name of the format.
        format: &'static str,
        /// Whether each residue has a vector.
        per_token: bool,
        /// The columns, with commas.
        columns: String,
        /// The formats that hold several, in words.
        others: String,
    },
    /// A column that a file does not have.
    #[error("{path} has no column {name}: it has {columns}", path = .path.display())]
    NoColumn {
        /// Path of the file.
        path: PathBuf,
        /// The name that was asked for.
        name: String,
        /// Those that there are, with commas.
        columns: String,
    },
    /// A file that is not an embedding file, or is damaged.
    #[error("{path} is not a complete embedding file: {what}", path = .path.display())]
    Malformed {
        /// Path of the output, or of a file that belongs to it.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl OutputError {
    /// The error without the path, for a caller that knows it.
    pub(super) fn into_io(self) -> io::Error {
        match self {
            OutputError::Io { source, .. } | OutputError::Read { source, .. } => source,
            other => io::Error::other(other),
        }
    }

    pub(super) fn malformed(path: &Path, what: impl fmt::Display) -> Self {
        OutputError::Malformed {
            path: path.to_owned(),
            what: what.to_string(),
        }
    }
}

/// The error of a file that the system refused to write.
pub(super) fn writing(path: &Path, source: io::Error) -> OutputError {
    OutputError::Io {
        path: path.to_owned(),
        source,
    }
}
