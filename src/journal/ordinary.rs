//! Opens files of the work folder, which must be regular files. Anything else under their names is
//! an error: writing through a link would overwrite another file, and a pipe could block forever.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::atomic_file;

/// Opens a file to read and write it, and makes it if it is not there; never through a link.
///
/// # Errors
/// When the system refuses, or something else than a file has the name.
pub fn write(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let is_link = path.is_symlink();
    checked(file.map_err(|error| {
        if is_link {
            io::Error::other(
                "it is a symbolic link, which seqembed does not follow here: remove it",
            )
        } else {
            error
        }
    })?)
}

/// Opens a file for reading, also through a link.
///
/// # Errors
/// When the system refuses, or something else than a file has the name.
pub fn read(path: &Path) -> io::Result<File> {
    // A pipe without a writer is opened without blocking, and then recognised as a pipe.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    checked(file)
}

fn checked(file: File) -> io::Result<File> {
    let kind = file.metadata()?.file_type();
    let what = if kind.is_dir() {
        Some("a folder")
    } else {
        atomic_file::special(kind)
    };
    match what {
        None => Ok(file),
        Some(what) => Err(io::Error::other(format!(
            "it is {what}, not a file: remove it"
        ))),
    }
}
