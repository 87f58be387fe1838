//! That what is loaded is what was exported: hashes of a model's files, and the weights file while
//! it is used.
//!
//! Weights are verified every time they are loaded. Several threads compute the BLAKE3 hash in
//! parts, and read the same pages as the load, so the disk is read only once. The metadata of a
//! file (size, times, inode) is not trusted across processes: after copies, restored backups and on
//! network mounts, it may be unchanged although the contents changed, or the reverse. Within one
//! process, it reveals whether the file was written to after it was hashed.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::num::NonZero;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use blake3::Hasher;
use blake3::hazmat::{self, ChainingValue, HasherExt as _, Mode};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::weights::table::hex;

/// Bytes that a thread hashes at a time; a power of two, as BLAKE3's tree wants it.
const PART: u64 = 8 << 20;
/// Bytes that are read at a time: they are hashed while they are in the core's cache.
const PIECE: usize = 256 << 10;
/// More threads than this do not read faster.
const MOST_THREADS: usize = 8;

/// BLAKE3 of the first `length` bytes of a file, in hexadecimal, as `b3sum` prints it.
///
/// # Errors
/// If the file is shorter, or cannot be read.
pub fn blake3_of(file: &File, length: u64) -> io::Result<String> {
    let parts = usize::try_from(length.div_ceil(PART)).map_err(io::Error::other)?;
    if parts <= 1 {
        let mut hasher = Hasher::new();
        read(file, 0, length, &mut hasher)?;
        return Ok(hasher.finalize().to_hex().to_string());
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return Ok(done);
            }
            let from = part as u64 * PART;
            let mut hasher = Hasher::new();
            hasher.set_input_offset(from);
            let read = read(file, from, PART.min(length - from), &mut hasher);
            // The others need not go on.
            read.inspect_err(|_| next.store(parts, Ordering::Relaxed))?;
            done.push((part, hasher.finalize_non_root()));
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = threads.min(MOST_THREADS).min(parts);
    let mut hashed: Vec<(usize, ChainingValue)> = thread::scope(|scope| {
        // If the system refuses to start more threads, fewer are used; this thread also works.
        let workers: Vec<_> = (1..threads)
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let own: io::Result<Vec<_>> = work();
        let others = workers.into_iter().map(|worker| {
            let done: io::Result<Vec<_>> = worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done
        });
        std::iter::once(own)
            .chain(others)
            .collect::<io::Result<Vec<_>>>()
    })?
    .into_iter()
    .flatten()
    .collect();
    hashed.sort_unstable_by_key(|&(part, _)| part);
    let values: Vec<ChainingValue> = hashed.into_iter().map(|(_, value)| value).collect();
    Ok(blake3_of_parts(&values))
}

/// BLAKE3, in hexadecimal, of what was hashed in two or more parts: each of the same power of two
/// of KiB, but for the last one, which may be shorter.
#[must_use]
pub fn blake3_of_parts(values: &[ChainingValue]) -> String {
    let (left, right) = halves(values);
    let root = hazmat::merge_subtrees_root(&merged(left), &merged(right), Mode::Hash);
    root.to_hex().to_string()
}

/// The two sides of a tree: the left one has the largest power of two of parts that leaves
/// something for the right one.
fn halves(values: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    values.split_at(values.len().div_ceil(2).next_power_of_two())
}

/// The value of a subtree that is not the whole.
fn merged(values: &[ChainingValue]) -> ChainingValue {
    if let [one] = values {
        return *one;
    }
    let (left, right) = halves(values);
    hazmat::merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
}

/// Hashes a range of a file. It is read and not mapped: a file that is cut meanwhile is an error
/// and no signal.
fn read(file: &File, from: u64, length: u64, hasher: &mut Hasher) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        let left = usize::try_from(length - at).unwrap_or(PIECE);
        let piece = &mut buffer[..left.min(PIECE)];
        file.read_exact_at(piece, from + at)?;
        hasher.update(piece);
        at += piece.len() as u64;
    }
    Ok(())
}

/// SHA-256 of the first `length` bytes of a file.
fn sha256_of(file: &File, length: u64) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        let left = usize::try_from(length - at).unwrap_or(buffer.len());
        let size = left.min(buffer.len());
        file.read_exact_at(&mut buffer[..size], at)?;
        hasher.update(&buffer[..size]);
        at += size as u64;
    }
    Ok(hex(&hasher.finalize()))
}

/// Checks a small file against its BLAKE3.
pub(crate) fn small(path: &Path, expected: &str) -> Result<(), Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(Error::io(path, "read"))?;
    let found = blake3::hash(&bytes).to_hex();
    if found.as_str() == expected {
        return Ok(());
    }
    Err(Error::Damaged {
        path: path.to_path_buf(),
        algorithm: "BLAKE3",
        expected: expected.to_owned(),
        found: found.to_string(),
    })
}

/// What the bytes of a weights file must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expected {
    /// What exports have.
    Blake3(String),
    /// All that older exports have; slower.
    Sha256(String),
}

/// The metadata of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stamp {
    file: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(about: &Metadata) -> Self {
        Self {
            file: (about.dev(), about.ino()),
            bytes: about.size(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        }
    }
}

/// What this process has hashed, and as what: a file that serves several devices or groups of
/// outputs is read once.
static HASHED: Mutex<Vec<(Stamp, u64, String)>> = Mutex::new(Vec::new());

/// A weights file that is used: open, so that it stays what it is even if another one gets its
/// name.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    folder: PathBuf,
    name: String,
    file: File,
    length: u64,
    expected: Expected,
    stamp: Mutex<Stamp>,
}

impl WeightsFile {
    pub(crate) fn open(path: PathBuf, length: u64, expected: Expected) -> Result<Self, Error> {
        // ONNX Runtime needs the file in the given folder, and does not follow links out of it.
        let is_link = fs::symlink_metadata(&path).is_ok_and(|about| about.is_symlink());
        let real = if is_link {
            fs::canonicalize(&path).map_err(Error::io(&path, "find"))?
        } else {
            path.clone()
        };
        let name = real.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::Model {
            path: real.clone(),
            message: "its name is not valid UTF-8, which ONNX Runtime cannot open".to_owned(),
        })?;
        let file = File::open(&real).map_err(Error::io(&path, "open"))?;
        let about = file.metadata().map_err(Error::io(&path, "open"))?;
        Ok(Self {
            folder: crate::atomic_file::folder_of(&real).to_path_buf(),
            name: name.to_owned(),
            file,
            length,
            expected,
            stamp: Mutex::new(Stamp::of(&about)),
            path,
        })
    }

    /// The file, as the model's folder has it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the file itself: the model folder, unless the file there is a link.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The name of the file in that folder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hashes the whole file, unless this process has already done so, and compares the hash with
    /// that of the export.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the hashes differ, or an error if the file cannot be read.
    pub fn verify(&self) -> Result<(), Error> {
        let stamp = *self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        let (algorithm, expected) = match &self.expected {
            Expected::Blake3(hash) => ("BLAKE3", hash),
            Expected::Sha256(hash) => ("SHA-256", hash),
        };
        let known = || {
            let hashed = HASHED.lock().unwrap_or_else(PoisonError::into_inner);
            hashed
                .iter()
                .any(|(of, length, hash)| (of, length, hash) == (&stamp, &self.length, expected))
        };
        if known() {
            return Ok(());
        }
        let found = match &self.expected {
            Expected::Blake3(_) => blake3_of(&self.file, self.length),
            Expected::Sha256(_) => sha256_of(&self.file, self.length),
        };
        let found = found.map_err(Error::io(&self.path, "read"))?;
        if found != *expected {
            return Err(Error::Damaged {
                path: self.path.clone(),
                algorithm,
                expected: expected.clone(),
                found,
            });
        }
        self.unchanged()?;
        let mut hashed = HASHED.lock().unwrap_or_else(PoisonError::into_inner);
        hashed.push((stamp, self.length, found));
        Ok(())
    }

    /// Whether the path still is the opened file, so that a loader that uses the path opens the
    /// same file.
    ///
    /// # Errors
    /// [`Error::Changed`] when another file has its name by now, or it was written to.
    pub fn is_in_place(&self) -> Result<(), Error> {
        let real = self.folder.join(&self.name);
        let now = fs::metadata(&real).map_err(Error::io(&self.path, "find"))?;
        let stamp = *self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        if Stamp::of(&now).file != stamp.file {
            return Err(self.changed());
        }
        self.unchanged()
    }

    /// Whether the file was not written to since it was opened. Replacing it by another file is
    /// harmless, because the opened file remains.
    ///
    /// # Errors
    /// [`Error::Changed`] when somebody has.
    pub fn unchanged(&self) -> Result<(), Error> {
        let before = *self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        // Opened anew, a network file system looks at the server.
        let now = File::open(self.folder.join(&self.name))
            .and_then(|file| file.metadata())
            .map(|about| Stamp::of(&about));
        let now = match now {
            Ok(now) if now.file == before.file => now,
            _ => {
                let about = self.file.metadata();
                Stamp::of(&about.map_err(Error::io(&self.path, "look at"))?)
            }
        };
        if now == before {
            return Ok(());
        }
        let same = Stamp {
            changed: before.changed,
            ..now
        };
        if same != before {
            return Err(self.changed());
        }
        // Its permissions, its name, its links: or somebody has written to it and set the time
        // back.
        let found = match &self.expected {
            Expected::Blake3(hash) => (blake3_of(&self.file, self.length), hash),
            Expected::Sha256(hash) => (sha256_of(&self.file, self.length), hash),
        };
        if found.0.map_err(Error::io(&self.path, "read"))? != *found.1 {
            return Err(self.changed());
        }
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) = now;
        Ok(())
    }

    fn changed(&self) -> Error {
        Error::Changed {
            path: self.path.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom, Write as _};

    use super::*;

    /// Against the crate's own hash of the whole, at lengths around those where the tree changes
    /// its shape.
    #[test]
    fn parts_give_the_hash_of_the_whole() {
        let mut file = tempfile::tempfile().unwrap();
        let part = usize::try_from(PART).unwrap();
        let mut state = 1_u32;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(5 * part + 1)
        .collect();
        file.write_all(&bytes).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        for length in [
            0,
            1,
            PIECE + 1,
            part - 1,
            part,
            part + 1,
            2 * part,
            3 * part,
            3 * part + 5,
            4 * part,
            5 * part + 1,
        ] {
            let expected = blake3::hash(&bytes[..length]).to_hex().to_string();
            let found = blake3_of(&file, length as u64).unwrap();
            assert_eq!(found, expected, "{length}");
        }
        blake3_of(&file, bytes.len() as u64 + 1).unwrap_err();
    }
}
