//! Checks of the user's folders: whether they are writable, and how much space is left on their
//! file systems.

use std::fmt;
use std::path::{Path, PathBuf};

use indicatif::BinaryBytes;
use rustix::fs::statvfs;

/// Free space on a file system for this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Free space in bytes.
    pub bytes: u64,
    /// Whether the file system is out of inodes, so that no file can be created.
    pub no_files: bool,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} free", BinaryBytes(self.bytes))?;
        if self.no_files {
            f.write_str(", but no more files can be created: the file system is out of inodes")?;
        }
        Ok(())
    }
}

/// The nearest existing folder at or above a path.
fn nearest(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    absolute
        .ancestors()
        .find(|folder| folder.is_dir())
        .map(Path::to_path_buf)
}

/// Free space on the file system of a folder, which need not exist yet.
pub fn room(path: &Path) -> Option<Room> {
    // `statvfs` on the folder itself is used, because a list of disks lacks file systems in memory
    // or on the network.
    let about = statvfs(nearest(path)?).ok()?;
    Some(Room {
        bytes: about.f_bavail.saturating_mul(about.f_frsize),
        // File systems that allocate inodes dynamically report a total of 0.
        no_files: about.f_files > 0 && about.f_favail == 0,
    })
}

/// Whether files can be created in a folder, or, if it does not exist, in its nearest existing
/// parent.
pub fn writable(path: &Path) -> bool {
    nearest(path).is_some_and(|folder| tempfile::tempfile_in(folder).is_ok())
}
