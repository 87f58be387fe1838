//! Files that a command will write, compared with those that it reads, before either is done: no output takes the place of an
//! input, of a model, or of a file of somebody else's.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::atomic_file;
use crate::models;
use crate::output::Format;

/// Why a file is not written.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It is read, too.
    #[error("{} would be overwritten, which is {what}: name another output", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What it is read as.
        what: &'static str,
    },
    /// Two things would have the same file.
    #[error("{} would be written twice, as {one} and as {other}: name another file for one of them", .path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// What it would be.
        one: &'static str,
        /// And this.
        other: &'static str,
    },
    /// No file can be there.
    #[error("cannot write {}: {source}", .path.display())]
    Special {
        /// The path.
        path: PathBuf,
        /// What is there.
        source: io::Error,
    },
    /// A file beside an output has the name that one of the output's own files would get.
    #[error("{} was not written by seqembed, but {} would have a file of this name beside it: move it away, or take another folder, sample name or format", .path.display(), .output.display())]
    Stranger {
        /// The file.
        path: PathBuf,
        /// The output.
        output: PathBuf,
    },
}

/// What is read, and what is to be written.
#[derive(Default)]
pub struct Targets {
    read: HashMap<(u64, u64), &'static str>,
    written: HashMap<PathBuf, &'static str>,
    /// Folders by the names that they were given, and by their own.
    folders: HashMap<PathBuf, PathBuf>,
}

impl Targets {
    /// Notes a file that is read. One that is not there is for its reader to tell.
    pub fn reads(&mut self, what: &'static str, path: &Path) {
        if let Ok(about) = fs::metadata(path)
            && about.is_file()
        {
            self.read.entry((about.dev(), about.ino())).or_insert(what);
        }
    }

    /// Notes a file of embeddings that is read, with what belongs to it.
    pub fn reads_output(&mut self, what: &'static str, path: &Path) {
        match Format::of(path) {
            Some(format) => {
                for path in format.files(path) {
                    self.reads(what, &path);
                }
            }
            None => self.reads(what, path),
        }
    }

    /// Notes the files of a model that is named by a path.
    pub fn reads_model(&mut self, named: &str) {
        for path in models::files_of(named) {
            self.reads("a file of the model", &path);
        }
    }

    /// Notes a file that is to be written, after all that is read.
    ///
    /// # Errors
    /// When it is read or written as something else too, or no file can be there.
    pub fn writes(&mut self, what: &'static str, path: &Path) -> Result<(), TargetError> {
        let target = atomic_file::target(path).map_err(|source| TargetError::Special {
            path: path.to_owned(),
            source,
        })?;
        self.is_not_read(&target, path)?;
        let folder = atomic_file::folder_of(&target);
        let own = match self.folders.get(folder) {
            Some(own) => own,
            None => self
                .folders
                .entry(folder.to_owned())
                .or_insert(fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned())),
        };
        let key = own.join(target.file_name().unwrap_or_default());
        match self.written.insert(key, what) {
            None => Ok(()),
            Some(one) => Err(TargetError::Twice {
                path: path.to_owned(),
                one,
                other: what,
            }),
        }
    }

    /// Notes a file of embeddings that is to be written, with what will stand beside it.
    ///
    /// # Errors
    /// As [`Self::writes`], and when a file of somebody else's has the name of one that belongs to it.
    pub fn writes_output(&mut self, format: Format, path: &Path) -> Result<(), TargetError> {
        for file in format.files(path) {
            self.writes("an output", &file)?;
        }
        match format.stranger(path) {
            None => Ok(()),
            Some(file) => Err(TargetError::Stranger {
                path: file,
                output: path.to_owned(),
            }),
        }
    }

    /// Checks a file that gets a text of its own, or a pipe or a device that does.
    ///
    /// # Errors
    /// When it is read as something else.
    pub fn is_not_read(&self, target: &Path, named: &Path) -> Result<(), TargetError> {
        let about = fs::metadata(target).ok();
        let read = about.and_then(|about| self.read.get(&(about.dev(), about.ino())));
        match read {
            None => Ok(()),
            Some(what) => Err(TargetError::Read {
                path: named.to_owned(),
                what,
            }),
        }
    }
}
