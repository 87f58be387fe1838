//! Why a journal can't be kept.

use std::io;
use std::path::{Path, PathBuf};

use crate::output::OutputError;

/// Why the journal can't be kept.
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
        /// The system's reason.
        source: io::Error,
    },
    /// A finished file can't be put into its place, or into the cache.
    #[error(transparent)]
    Copy(#[from] OutputError),
    /// Another process works in the folder.
    #[error(
        "{} is in use by another seqembed, {holder}: wait until it ends, or use another folder", .folder.display()
    )]
    Locked {
        /// The folder.
        folder: PathBuf,
        /// Process and host.
        holder: String,
    },
}

/// The error of a file or folder that could not be read, written, made or removed (`doing`).
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
