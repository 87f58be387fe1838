//! Whether a file was written to while it was read.

use std::fs::{File, Metadata};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::report::thousands;

/// A file that is read, as it was when it was opened. A pipe has no length and is not watched; and a file that is replaced by
/// another of its name is read to its own end.
#[derive(Debug)]
pub(super) struct Watch {
    file: Arc<File>,
    path: Option<PathBuf>,
    length: u64,
    written: Option<SystemTime>,
}

impl Watch {
    /// `None` where there is nothing to watch.
    pub(super) fn new(file: Arc<File>, path: Option<PathBuf>) -> Option<Self> {
        let about = file.metadata().ok().filter(Metadata::is_file)?;
        Some(Self {
            file,
            path,
            length: about.len(),
            written: about.modified().ok(),
        })
    }

    /// The length of a file that has a name.
    pub(super) fn length(&self) -> Option<u64> {
        self.path.as_ref().map(|_| self.length)
    }

    /// What is different now, in words.
    pub(super) fn change(&self) -> Option<String> {
        // A network file system may answer from a cache of some seconds, but asks its server when a file is opened.
        drop(self.path.as_ref().map(File::open));
        let about = self.file.metadata().ok()?;
        if about.len() != self.length {
            return Some(format!(
                "it had {} bytes, and has {} now",
                thousands(self.length),
                thousands(about.len())
            ));
        }
        (about.modified().ok() != self.written).then(|| "it was written to".to_owned())
    }
}
