//! Files that appear whole or not at all, with the hash by which they are known later.

use std::io::{self, Seek, Write};
use std::path::Path;

use super::error::{OutputError, writing};
use crate::atomic_file::AtomicFile;
use crate::digest::Digest;

/// A finished file with its size and hash, which identify its contents.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Written {
    /// Its name in its folder.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// BLAKE3 of its bytes, in hexadecimal.
    pub hash: String,
}

/// A file that does not have its final name yet: hidden, in the final folder, and removed on drop.
pub(crate) struct Unfinished {
    file: AtomicFile,
    at: u64,
    digest: Digest,
}

impl Unfinished {
    pub(crate) fn create(path: &Path) -> Result<Self, OutputError> {
        let file = AtomicFile::create(path).map_err(|e| writing(path, e))?;
        Ok(Unfinished {
            file,
            at: 0,
            digest: Digest::default(),
        })
    }

    /// The temporary path.
    pub(crate) fn partial(&self) -> &Path {
        self.file.partial()
    }

    /// Syncs the file to disk, so that not even a power failure leaves a partial file.
    pub(crate) fn complete(self) -> Result<Complete, OutputError> {
        let Unfinished { file, digest, .. } = self;
        let path = file.path().to_owned();
        let told = file
            .file()
            .sync_all()
            .and_then(|()| digest.finish(file.file()));
        let (bytes, hash) = told.map_err(|e| writing(&path, e))?;
        let name = path.file_name().unwrap_or_default();
        let written = Written {
            name: name.to_string_lossy().into_owned(),
            bytes,
            hash,
        };
        Ok(Complete { file, written })
    }

    /// Completes the file, and renames it to its final path.
    pub(crate) fn finish(self) -> Result<Written, OutputError> {
        self.complete()?.publish()
    }
}

/// A file that lacks nothing but its name.
pub(crate) struct Complete {
    file: AtomicFile,
    written: Written,
}

impl Complete {
    pub(crate) fn written(&self) -> &Written {
        &self.written
    }

    pub(super) fn new(file: AtomicFile, written: Written) -> Self {
        Self { file, written }
    }

    pub(super) fn publish(self) -> Result<Written, OutputError> {
        let path = self.file.path().to_owned();
        let named = self.file.publish().map_err(|error| match error.kind() {
            io::ErrorKind::IsADirectory => OutputError::Folder { path },
            _ => OutputError::Io {
                path,
                source: error,
            },
        });
        named.map(|()| self.written)
    }
}

/// Renames files that belong together. Even if the process is killed, the last one, which
/// identifies the set for readers, is never next to files of another set.
pub(crate) fn publish(files: Vec<Complete>) -> Result<Vec<Written>, OutputError> {
    if let [_, .., last] = files.as_slice() {
        let path = last.file.target();
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(writing(path, error));
            }
            _ => {}
        }
    }
    files.into_iter().map(Complete::publish).collect()
}

/// Writes a small file, whole or not at all.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), OutputError> {
    let mut file = Unfinished::create(path)?;
    file.write_all(text.as_bytes())
        .map_err(|e| writing(path, e))?;
    file.finish().map(drop)
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.wrote(self.at, &bytes[..written]);
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Unfinished {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.at = self.file.seek(to)?;
        Ok(self.at)
    }
}
