//! Folders that a user names: made where they are not, or a word about what stands in their place.

use std::fs;
use std::io;
use std::path::Path;

/// Makes a folder and those above it, as far as they are not there.
///
/// # Errors
/// When a file or a dangling link stands in the way, which the error names, or the system refuses.
pub fn make(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path).map_err(|error| match obstacle(path) {
        Some(why) => io::Error::new(error.kind(), why),
        None => error,
    })
}

/// What stands where a folder, or one above it, would be made.
fn obstacle(path: &Path) -> Option<String> {
    let (at, about) = path
        .ancestors()
        .find_map(|at| Some((at, at.symlink_metadata().ok()?)))?;
    if about.is_symlink() && !at.exists() {
        let target = fs::read_link(at).ok()?;
        return Some(format!(
            "{} is a link to {}, which is not there: make that folder, or name another one",
            at.display(),
            target.display()
        ));
    }
    (!at.is_dir()).then(|| {
        format!(
            "{} is a file, and no folder: name another one",
            at.display()
        )
    })
}
