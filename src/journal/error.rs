//! Errors of the journal.

use std::io;
use std::path::{Path, PathBuf};

use crate::output::OutputError;

/// Why the journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The operating system refused.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// `read` or `write`.
        doing: &'static str,
        /// The underlying error.
        source: io::Error,
    },
    /// A finished file cannot be restored, or copied to the cache.
    #[error(transparent)]
    Copy(#[from] OutputError),
    /// Another process works in the folder.
    #[error(
        "{} is in use by another seqembed, {holder}: wait until it ends, or use another folder", .folder.display()
    )]
    Locked {
        /// The work folder, or the cache, that is locked.
        folder: PathBuf,
        /// Who holds it: process number and host name.
        holder: String,
    },
}

/// The error for a file or folder that could not be read, written, created or removed (`doing`).
pub(super) fn cannot<'p>(
    doing: &'static str,
    path: &'p Path,
) -> impl FnOnce(io::Error) -> JournalError + 'p {
    move |source| JournalError::Io {
        path: path.to_owned(),
        doing,
        source,
    }
}
