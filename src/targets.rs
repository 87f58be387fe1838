//! Checks, before anything is read or written, that the outputs of a command do not overwrite an
//! input, a model file, or a file that seqembed did not write.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::atomic_file;
use crate::models;
use crate::output::Format;

/// Why a file must not be written.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The file is also read.
    #[error("{} would be overwritten, but it is {what}: choose another output", .path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// What the file is read as, such as `an input`.
        what: &'static str,
    },
    /// Two outputs would be written to the same file.
    #[error("{} would be written twice, as {one} and as {other}: choose another file for one of \
             them", .path.display())]
    Twice {
        /// Path of the file.
        path: PathBuf,
        /// What one output is.
        one: &'static str,
        /// What the other output is.
        other: &'static str,
    },
    /// No file can be created at the path.
    #[error("cannot write {}: {source}", .path.display())]
    Special {
        /// Path that was given.
        path: PathBuf,
        /// What is there instead.
        source: io::Error,
    },
    /// A file has the name that one of an output's companion files would get.
    #[error("{} was not written by seqembed, and would be overwritten by a companion file of {}: \
             move it, or choose another folder, sample name or format", .path.display(), .output.display())]
    Stranger {
        /// Path of the file.
        path: PathBuf,
        /// Path of the output.
        output: PathBuf,
    },
}

/// The files to be read and to be written.
#[derive(Default)]
pub struct Targets {
    read: HashMap<(u64, u64), &'static str>,
    written: HashMap<PathBuf, &'static str>,
    /// Canonical paths of folders, by the paths that were given.
    folders: HashMap<PathBuf, PathBuf>,
}

impl Targets {
    /// Registers a file that is read. A missing file is ignored here; reading it will report the
    /// error.
    pub fn reads(&mut self, what: &'static str, path: &Path) {
        if let Ok(about) = fs::metadata(path)
            && about.is_file()
        {
            self.read.entry((about.dev(), about.ino())).or_insert(what);
        }
    }

    /// Registers an embedding file that is read, with its companion files.
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

    /// Registers the files of a model given as a path.
    pub fn reads_model(&mut self, named: &str) {
        for path in models::files_of(named) {
            self.reads("a file of the model", &path);
        }
    }

    /// Registers a file to be written. Call this after all files that are read are registered.
    ///
    /// # Errors
    /// If the file is also read, is written twice, or cannot be created.
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

    /// Registers an embedding file to be written, with its companion files.
    ///
    /// # Errors
    /// As [`Self::writes`], and if a companion file would overwrite a file not written by seqembed.
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

    /// Checks a text file (or a pipe or device) that is written besides embeddings.
    ///
    /// # Errors
    /// If the file is also read.
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
