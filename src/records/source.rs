//! Where records come from: a path, or the standard input.

use std::fmt;
use std::path::PathBuf;

use crate::text::lossless_name;

/// Where records come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A file, or anything that opens as one, such as a named pipe.
    Path(PathBuf),
    /// The standard input.
    Stdin,
}

impl Source {
    /// `-` is the standard input, all else a path.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        if path.as_os_str() == "-" {
            Self::Stdin
        } else {
            Self::Path(path)
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(&lossless_name(path.as_os_str())),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}
