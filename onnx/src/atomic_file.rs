//! The one way to make a file or a folder that appears whole or not at all.
//!
//! It is written beside its place as `.NAME.XXXXXX.partial`, with the permissions that the umask gives to any new file, and gets its name by
//! rename once its bytes are on the disk. While it is written, its writer holds a lock on it, which the system takes back when
//! the process dies: what a killed process left can be told from what is being written, and [`sweep`] removes the former alone.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::{Builder, NamedTempFile, TempDir};

/// Ending of what is being written; it begins with a dot.
pub const PARTIAL: &str = ".partial";

/// Random letters of the name.
const RANDOM: usize = 6;

/// A folder's lock stands in it; it is gone before the folder gets its name.
const LOCK: &str = ".lock";

/// A folder without a lock is being begun or finished by another process, unless that was so long ago; and so is anything where
/// the file system has no locks.
const ABANDONED: Duration = Duration::from_hours(24);

/// A file that has no name of its own yet: hidden, in the folder of the final one, gone when dropped.
#[derive(Debug)]
pub struct AtomicFile {
    file: NamedTempFile,
    path: PathBuf,
    /// What gets the bytes: the path, or what it links to.
    target: PathBuf,
}

impl AtomicFile {
    /// Begins the file that will be `path`, whose folder must exist. Where that is a link to a file, the file gets the bytes.
    ///
    /// # Errors
    /// When the folder can't be written to, the link leads nowhere, or something else than a file has the name (a folder is told
    /// of at the end).
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::begin(path, target(path)?)
    }

    /// Begins the file that will be `path`, in the place of whatever stands there, a link too: for folders that are ours alone.
    ///
    /// # Errors
    /// When the folder can't be written to.
    pub fn replace(path: &Path) -> io::Result<Self> {
        Self::begin(path, path.to_path_buf())
    }

    fn begin(path: &Path, target: PathBuf) -> io::Result<Self> {
        loop {
            let file = builder(&target, 0o666, |builder| {
                builder.tempfile_in(folder_of(&target))
            })?;
            // Whoever swept between the two calls has removed it.
            if hold(file.as_file()) != Held::ByAnother && file.path().exists() {
                return Ok(Self {
                    file,
                    path: path.to_path_buf(),
                    target,
                });
            }
        }
    }

    /// Where it will stand.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that gets the bytes: the same, or what that links to.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where it stands until then.
    #[must_use]
    pub fn partial(&self) -> &Path {
        self.file.path()
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Gives the file its name once its bytes are on the disk, so that not even a power cut leaves half of it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.publish()
    }

    /// Gives the file its name, for one whose bytes are on the disk already.
    ///
    /// # Errors
    /// When the disk refuses.
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

/// What a file that is to be written replaces: `path` itself, or the file that it links to.
///
/// # Errors
/// When a link leads nowhere, or a pipe, a device or a socket has the name, which no file may replace.
pub fn target(path: &Path) -> io::Result<PathBuf> {
    let Ok(about) = fs::symlink_metadata(path) else {
        return Ok(path.to_path_buf());
    };
    let (target, kind) = if about.is_symlink() {
        let target = fs::canonicalize(path).map_err(|error| {
            let to = fs::read_link(path).unwrap_or_default();
            let why = if error.kind() == io::ErrorKind::NotFound {
                "which is not there".to_owned()
            } else {
                error.to_string()
            };
            io::Error::new(
                error.kind(),
                format!(
                    "it is a link to {}, {why}: remove the link, or name another file",
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
            "it is {what}, not a file: name another one"
        ))),
        None => Ok(target),
    }
}

/// What something is that is neither a file nor a folder nor a link.
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

/// Writes one text to wherever the user says: a file, whole or not at all; or a pipe or a device, which takes it as it comes.
///
/// # Errors
/// When the disk or the device refuses.
pub fn write_anywhere(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|about| special(about.file_type()).is_some()) {
        return OpenOptions::new()
            .write(true)
            .open(path)?
            .write_all(bytes.as_ref());
    }
    write(path, bytes)
}

/// Writes a small file, whole or not at all.
///
/// # Errors
/// When the disk refuses.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes.as_ref())?;
    file.finish()
}

/// A folder that has no name of its own yet: hidden, beside its place, gone when dropped.
#[derive(Debug)]
pub struct AtomicFolder {
    folder: TempDir,
    /// Held until the folder has its name.
    _lock: File,
    path: PathBuf,
}

impl AtomicFolder {
    /// Begins the folder that will be `path`, whose parent must exist.
    ///
    /// # Errors
    /// When the parent can't be written to.
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

    /// Where it stands until it has its name.
    #[must_use]
    pub fn partial(&self) -> &Path {
        self.folder.path()
    }

    /// Gives the folder its name. A folder that has the name already is replaced if `replace`.
    ///
    /// # Errors
    /// When the disk refuses, or the name is taken; what had the name is then as it was.
    pub fn finish(self, replace: bool) -> io::Result<()> {
        fs::remove_file(self.folder.path().join(LOCK))?;
        if !replace || !self.path.exists() {
            fs::rename(self.folder.path(), &self.path)?;
            // It is not the temporary one any more.
            let _ = self.folder.keep();
            return Ok(());
        }
        // What was there goes aside, and comes back if the new one can't take its place.
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

/// Removes what killed processes left of files and folders that they were making in a folder: all, or only those that were to get one
/// name. What another process holds stays. Returns how many there were.
///
/// # Errors
/// When the folder can't be listed, or something in it can't be removed.
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
        // Held until the file is gone: its maker, if it has just made it, sees that.
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
            // Somebody is writing it, or it is another user's.
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

/// Whether a file's name is that of something being written: `.NAME.XXXXXX.partial`.
fn is_partial(found: &str, name: Option<&str>) -> bool {
    let inner = found
        .strip_prefix('.')
        .and_then(|rest| rest.strip_suffix(PARTIAL));
    inner
        .and_then(|inner| inner.rsplit_once('.'))
        .is_some_and(|(whose, random)| {
            // Other programs hide their unfinished files, too.
            random.len() == RANDOM
                && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
                && name.is_none_or(|name| whose == name)
        })
}

/// Whether nobody can be at work on something any more.
fn is_old(entry: &fs::DirEntry) -> bool {
    let written = entry.metadata().and_then(|about| about.modified());
    written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age > ABANDONED))
}

/// Whose the lock of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    ByUs,
    ByAnother,
    /// The file system has no locks.
    NotAtAll,
}

/// Takes the lock of an open file.
fn hold(file: &File) -> Held {
    match file.try_lock() {
        Ok(()) => Held::ByUs,
        Err(TryLockError::WouldBlock) => Held::ByAnother,
        Err(TryLockError::Error(_)) => Held::NotAtAll,
    }
}

/// Makes something beside `path` with a hidden name. A temporary file is private by default; ours follow the umask.
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

/// The folder that a file stands in.
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
        // One that another process has just begun has no lock yet.
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
            error.contains("below/nothing, which is not there"),
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
