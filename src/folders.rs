//! Creates folders named by the user, with an error that says what is in the way.

use std::fs;
use std::io;
use std::path::Path;

/// Creates a folder and its missing parents.
///
/// # Errors
/// If a file or a dangling link is in the way, which the error names, or if the system refuses.
pub fn make(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path).map_err(|error| match obstacle(path) {
        Some(why) => io::Error::new(error.kind(), why),
        None => error,
    })
}

/// Checks that a folder could be created and written to, without doing so.
///
/// # Errors
/// As [`make`], and if the folder, or the nearest existing one above it, is not writable.
pub fn check(path: &Path) -> io::Result<()> {
    if let Some(why) = obstacle(path) {
        return Err(io::Error::other(why));
    }
    let path = std::path::absolute(path)?;
    let existing = path.ancestors().find(|folder| folder.is_dir());
    let existing = existing.unwrap_or(Path::new("/"));
    Ok(rustix::fs::access(existing, rustix::fs::Access::WRITE_OK)?)
}

/// The error for what exists in place of the folder or of one of its parents.
fn obstacle(path: &Path) -> Option<String> {
    let (at, about) = path
        .ancestors()
        .find_map(|at| Some((at, at.symlink_metadata().ok()?)))?;
    if about.is_symlink() && !at.exists() {
        let target = fs::read_link(at).ok()?;
        return Some(format!(
            "{} is a link to {}, which does not exist: create that folder, or choose another one",
            at.display(),
            target.display()
        ));
    }
    (!at.is_dir()).then(|| {
        format!(
            "{} is a file, not a folder: choose another folder",
            at.display()
        )
    })
}
