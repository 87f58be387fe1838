//! Creates files and folders atomically: they appear complete or not at all.
//!
//! A file is written in its final folder as `.NAME.XXXXXX.partial`, with the permissions given by
//! the umask, and renamed once its bytes are on disk. Its writer holds a lock on it, which the
//! system releases when the process dies. So [`sweep`] can tell files left by killed processes from
//! files being written, and removes only the former.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::{Builder, NamedTempFile, TempDir};

/// Extension of partial files, whose names also start with a dot.
pub const PARTIAL: &str = ".partial";

/// Number of random letters in the temporary name.
const RANDOM: usize = 6;

/// The lock file in a partial folder, removed before the folder is renamed.
const LOCK: &str = ".lock";

/// A partial folder without a lock may be in the making by another process, unless it is older than
/// this. The same holds for everything on file systems without locks.
const ABANDONED: Duration = Duration::from_hours(24);

/// A file that does not have its final name yet: hidden, in the final folder, and removed on drop.
#[derive(Debug)]
pub struct AtomicFile {
    file: NamedTempFile,
    path: PathBuf,
    /// The file to replace: the path, or the file it links to.
    target: PathBuf,
}

impl AtomicFile {
    /// Starts the file that will become `path`, whose folder must exist. If `path` is a link to a
    /// file, that file is replaced.
    ///
    /// # Errors
    /// If the folder is not writable, the link is broken, or the path is not a file (a folder is
    /// reported at the end).
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::begin(path, target(path)?)
    }

    /// Starts the file that will become `path`, replacing whatever is there, even a link: for
    /// folders that only seqembed uses.
    ///
    /// # Errors
    /// If the folder is not writable.
    pub fn replace(path: &Path) -> io::Result<Self> {
        Self::begin(path, path.to_path_buf())
    }

    fn begin(path: &Path, target: PathBuf) -> io::Result<Self> {
        loop {
            let file = builder(&target, 0o666, |builder| {
                builder.tempfile_in(folder_of(&target))
            })?;
            // A sweep by another process between the two calls has removed it.
            if hold(file.as_file()) != Held::ByAnother && file.path().exists() {
                return Ok(Self {
                    file,
                    path: path.to_path_buf(),
                    target,
                });
            }
        }
    }

    /// The final path, as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that is replaced: the final path, or the file it links to.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The temporary path.
    #[must_use]
    pub fn partial(&self) -> &Path {
        self.file.path()
    }

    /// The open file, for writing.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Syncs the file to disk and renames it, so that not even a power failure leaves a partial
    /// file.
    ///
    /// # Errors
    /// If a write, sync or rename fails.
    pub fn finish(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.publish()
    }

    /// Renames the file, whose bytes must already be on disk.
    ///
    /// # Errors
    /// If a write, sync or rename fails.
    pub fn publish(self) -> io::Result<()> {
        self.file
            .persist(&self.target)
            .map_err(|error| error.error)?;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Read for AtomicFile {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.file.read(bytes)
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// The file that writing to `path` replaces: `path` itself, or the file it links to.
///
/// # Errors
/// If a link is broken, or the path is a pipe, device or socket, which must not be replaced by a
/// file.
pub fn target(path: &Path) -> io::Result<PathBuf> {
    let Ok(about) = fs::symlink_metadata(path) else {
        return Ok(path.to_path_buf());
    };
    let (target, kind) = if about.is_symlink() {
        let target = fs::canonicalize(path).map_err(|error| {
            let to = fs::read_link(path).unwrap_or_default();
            let why = if error.kind() == io::ErrorKind::NotFound {
                "which does not exist".to_owned()
            } else {
                error.to_string()
            };
            io::Error::new(
                error.kind(),
                format!(
                    "it is a link to {}, {why}: remove the link, or choose another file",
                    to.display()
                ),
            )
        })?;
        let kind = fs::metadata(&target)?.file_type();
        (target, kind)
    } else {
        (path.to_path_buf(), about.file_type())
    };
    match special(kind) {
        Some(what) => Err(io::Error::other(format!(
            "it is {what}, not a file: choose another one"
        ))),
        None => Ok(target),
    }
}

/// The kind of a special file, in words.
#[must_use]
pub fn special(kind: fs::FileType) -> Option<&'static str> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        if kind.is_fifo() {
            return Some("a named pipe");
        }
        if kind.is_socket() {
            return Some("a socket");
        }
    }
    let is_ordinary = kind.is_file() || kind.is_dir() || kind.is_symlink();
    (!is_ordinary).then_some("a device")
}

/// Writes a text to the user's choice of output: atomically to a file, or directly to a pipe or
/// device.
///
/// # Errors
/// If the file or device cannot be written.
pub fn write_anywhere(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|about| special(about.file_type()).is_some()) {
        return OpenOptions::new()
            .write(true)
            .open(path)?
            .write_all(bytes.as_ref());
    }
    write(path, bytes)
}

/// Writes a small file atomically.
///
/// # Errors
/// If a write, sync or rename fails.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes.as_ref())?;
    file.finish()
}

/// A folder that does not have its final name yet: hidden, in the final parent, and removed on
/// drop.
#[derive(Debug)]
pub struct AtomicFolder {
    folder: TempDir,
    /// The lock, held until the folder is renamed.
    _lock: File,
    path: PathBuf,
}

impl AtomicFolder {
    /// Starts the folder that will become `path`, whose parent must exist.
    ///
    /// # Errors
    /// If the parent is not writable.
    pub fn create(path: &Path) -> io::Result<Self> {
        let folder = builder(path, 0o777, |builder| builder.tempdir_in(folder_of(path)))?;
        let lock = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(folder.path().join(LOCK))?;
        hold(&lock);
        Ok(Self {
            folder,
            _lock: lock,
            path: path.to_path_buf(),
        })
    }

    /// The temporary path of the folder.
    #[must_use]
    pub fn partial(&self) -> &Path {
        self.folder.path()
    }

    /// Renames the folder to its final path, replacing an existing folder if `replace` is set.
    ///
    /// # Errors
    /// If the rename fails, or the path exists; what was there then remains unchanged.
    pub fn finish(self, replace: bool) -> io::Result<()> {
        fs::remove_file(self.folder.path().join(LOCK))?;
        if !replace || !self.path.exists() {
            fs::rename(self.folder.path(), &self.path)?;
            // It is no longer temporary.
            let _ = self.folder.keep();
            return Ok(());
        }
        // Move the old folder aside, and restore it if the new one cannot be renamed.
        let old = builder(&self.path, 0o777, |builder| {
            builder.tempdir_in(folder_of(&self.path))
        })?;
        let aside = old.path().join("old");
        fs::rename(&self.path, &aside)?;
        if let Err(error) = fs::rename(self.folder.path(), &self.path) {
            if fs::rename(&aside, &self.path).is_err() {
                let _ = old.keep();
            }
            return Err(error);
        }
        let _ = self.folder.keep();
        Ok(())
    }
}

/// Removes partial files and folders that killed processes left in a folder: all of them, or only
/// those for one final name. Those locked by other processes are kept. Returns the number removed.
///
/// # Errors
/// If the folder cannot be listed, or something in it cannot be removed.
pub fn sweep(folder: &Path, name: Option<&str>) -> io::Result<usize> {
    let mut swept = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.file_name();
        if !found.to_str().is_some_and(|found| is_partial(found, name)) {
            continue;
        }
        let path = entry.path();
        let kind = entry.file_type()?;
        // Hold the lock until the file is removed, so that a process that has just created it
        // notices.
        let held = if kind.is_file() {
            OpenOptions::new().append(true).open(&path)
        } else if kind.is_dir() {
            OpenOptions::new().append(true).open(path.join(LOCK))
        } else {
            continue;
        };
        let is_left = match held.as_ref().map(hold) {
            Ok(Held::ByUs) => true,
            Ok(Held::NotAtAll) => is_old(&entry),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                kind.is_dir() && is_old(&entry)
            }
            // It is being written, or belongs to another user.
            Ok(Held::ByAnother) | Err(_) => false,
        };
        if !is_left {
            continue;
        }
        let removed = if kind.is_file() {
            fs::remove_file(&path)
        } else {
            fs::remove_dir_all(&path)
        };
        match removed {
            Ok(()) => swept += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(swept)
}

/// Whether a file name is that of a partial file: `.NAME.XXXXXX.partial`.
fn is_partial(found: &str, name: Option<&str>) -> bool {
    let inner = found
        .strip_prefix('.')
        .and_then(|rest| rest.strip_suffix(PARTIAL));
    inner
        .and_then(|inner| inner.rsplit_once('.'))
        .is_some_and(|(whose, random)| {
            // Other programs also have hidden partial files.
            random.len() == RANDOM
                && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
                && name.is_none_or(|name| whose == name)
        })
}

/// Whether something is so old that no process can still be writing it.
fn is_old(entry: &fs::DirEntry) -> bool {
    let written = entry.metadata().and_then(|about| about.modified());
    written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age > ABANDONED))
}

/// The state of a file's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    ByUs,
    ByAnother,
    /// The file system does not support locks.
    NotAtAll,
}

/// Tries to lock an open file.
fn hold(file: &File) -> Held {
    match file.try_lock() {
        Ok(()) => Held::ByUs,
        Err(TryLockError::WouldBlock) => Held::ByAnother,
        Err(TryLockError::Error(_)) => Held::NotAtAll,
    }
}

/// Creates something with a hidden name in the folder of `path`. Temporary files are private by
/// default; these follow the umask.
fn builder<T>(
    path: &Path,
    mode: u32,
    make: impl FnOnce(&mut Builder) -> io::Result<T>,
) -> io::Result<T> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.");
    let mut builder = Builder::new();
    builder.prefix(&prefix).suffix(PARTIAL).rand_bytes(RANDOM);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    make(&mut builder)
}

/// The parent folder of a file.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_held_stays_and_what_was_left_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        let held = AtomicFile::create(&path).unwrap();
        let model = AtomicFolder::create(&folder.path().join("model")).unwrap();
        fs::write(folder.path().join(".x.parquet.AbC123.partial"), "left").unwrap();
        fs::write(folder.path().join(".y.parquet.AbC123.partial"), "left").unwrap();
        let left = folder.path().join(".model.AbC123.partial");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("weights.bin"), "left").unwrap();
        // A folder that another process has just created has no lock yet.
        assert_eq!(sweep(folder.path(), Some("model")).unwrap(), 0);
        fs::write(left.join(LOCK), "").unwrap();
        assert_eq!(sweep(folder.path(), Some("model")).unwrap(), 1);
        assert_eq!(sweep(folder.path(), Some("x.parquet")).unwrap(), 1);
        assert_eq!(sweep(folder.path(), None).unwrap(), 1);
        assert_eq!(names(folder.path()).len(), 2);
        held.finish().unwrap();
        model.finish(false).unwrap();
        assert_eq!(names(folder.path()), ["model", "x.parquet"]);
        assert!(names(&folder.path().join("model")).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_one_and_its_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("below");
        fs::create_dir(&below).unwrap();
        let link = |to: &str, name: &str| {
            let at = folder.path().join(name);
            std::os::unix::fs::symlink(to, &at).unwrap();
            at
        };
        fs::write(below.join("file"), "old").unwrap();
        let one = link("below/file", "one");
        let two = link("one", "two");
        write(&two, "new").unwrap();
        assert_eq!(fs::read_to_string(below.join("file")).unwrap(), "new");
        assert!(one.is_symlink() && two.is_symlink());
        let nowhere = link("below/nothing", "nowhere");
        let error = write(&nowhere, "new").unwrap_err().to_string();
        assert!(
            error.contains("below/nothing, which does not exist"),
            "{error}"
        );
        let loops = link("loops", "loops");
        write(&loops, "new").unwrap_err();
        assert!(nowhere.is_symlink() && loops.is_symlink());
        let mut file = AtomicFile::replace(&one).unwrap();
        file.write_all(b"in its place").unwrap();
        file.finish().unwrap();
        assert!(!one.is_symlink());
        assert_eq!(fs::read_to_string(below.join("file")).unwrap(), "new");
        assert_eq!(names(&below), ["file"]);
    }

    #[test]
    fn a_folder_is_replaced_only_when_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let make = |text: &str, replace| {
            let new = AtomicFolder::create(&path).unwrap();
            fs::write(new.partial().join("file"), text).unwrap();
            new.finish(replace)
        };
        make("one", false).unwrap();
        make("two", false).unwrap_err();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "one");
        make("two", true).unwrap();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "two");
        assert_eq!(names(folder.path()), ["model"]);
    }
}
