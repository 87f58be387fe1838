//! Whether a file was written to while it was read.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::digest;
use crate::text::thousands;

/// A file that is read, as it was when it was opened. A pipe has no length and is not watched; and
/// a file that is replaced by another of its name is read to its own end.
#[derive(Debug)]
pub(super) struct Watch {
    file: Arc<File>,
    path: Option<PathBuf>,
    length: u64,
    written: Option<SystemTime>,
    /// Time of the last change of contents or metadata (ctime), which programs cannot set.
    touched: (i64, i64),
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
            touched: touched(&about),
        })
    }

    /// The length of a file that has a name.
    pub(super) fn length(&self) -> Option<u64> {
        self.path.as_ref().map(|_| self.length)
    }

    /// What is different now, in words.
    pub(super) fn change(&self) -> Option<String> {
        // A network file system may answer from a cache of some seconds, but asks its server when a
        // file is opened.
        drop(self.path.as_ref().map(File::open));
        let about = self.file.metadata().ok()?;
        if about.len() != self.length {
            return Some(format!(
                "it had {} bytes, and has {} now",
                thousands(self.length),
                thousands(about.len())
            ));
        }
        (about.modified().ok() != self.written).then(|| "its modification time changed".to_owned())
    }

    /// Whether the file still has the bytes that were read, of which this is the BLAKE3 hash. It is
    /// read again only if something of it changed and its length and time of writing did not: a
    /// writer may have put the time back (as with `touch -r`), or nothing but a name or a
    /// permission changed.
    pub(super) fn holds(&self, read: u64, hash: &str) -> io::Result<bool> {
        // The standard input may have begun anywhere in its file.
        if self.path.is_none() || touched(&self.file.metadata()?) == self.touched {
            return Ok(true);
        }
        Ok(digest::of_file(&self.file, read)? == hash)
    }
}

/// The time of the last change of a file's bytes, names or permissions.
fn touched(about: &Metadata) -> (i64, i64) {
    (about.ctime(), about.ctime_nsec())
}
