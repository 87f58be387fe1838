//! Folders of the user: where they would be made, whether they can be written, and the room that is left there.

use std::fmt;
use std::path::{Path, PathBuf};

use indicatif::BinaryBytes;
use rustix::fs::statvfs;

/// What is left on a file system for this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// Whether not one more file can be made, however many bytes there are.
    pub no_files: bool,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} free", BinaryBytes(self.bytes))?;
        if self.no_files {
            f.write_str(", but no more files can be made: its inodes are used up")?;
        }
        Ok(())
    }
}

/// The nearest folder at or above a path that exists.
fn nearest(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    absolute
        .ancestors()
        .find(|folder| folder.is_dir())
        .map(Path::to_path_buf)
}

/// The room on the file system that a folder is on, or would be made on.
pub fn room(path: &Path) -> Option<Room> {
    // The system is asked for this very folder: a list of disks lacks what is in memory or on the network.
    let about = statvfs(nearest(path)?).ok()?;
    Some(Room {
        bytes: about.f_bavail.saturating_mul(about.f_frsize),
        // File systems that make inodes as they need them count none at all.
        no_files: about.f_files > 0 && about.f_favail == 0,
    })
}

/// Whether files can be made in a folder, or where it would be made.
pub fn writable(path: &Path) -> bool {
    nearest(path).is_some_and(|folder| tempfile::tempfile_in(folder).is_ok())
}
