//! Finds the sequence files in folders, for a new manifest.

use std::collections::HashSet;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::{ManifestErrors, Mistakes};
use super::inputs::{SEQUENCE_SUFFIXES, has_sequence_suffix, trouble_with};
use crate::records::Source;
use crate::text::lossless_name;

/// The files that are named, and those in the folders that are named and in the folders below them,
/// as absolute paths in the order of their bytes, each once. In a folder, only files with the
/// extension of a sequence file count, compressed or not; hidden files and folders are passed over.
///
/// # Errors
/// All inputs that cannot be listed, and folders without a sequence file.
pub fn sequence_files(inputs: &[PathBuf]) -> Result<Vec<PathBuf>, ManifestErrors> {
    let mut mistakes = Mistakes::default();
    let mut paths = Vec::new();
    for input in inputs {
        let shown = lossless_name(input.as_os_str());
        if input.as_os_str() == "-" {
            mistakes.add(
                None,
                "standard input (`-`) cannot be listed here: name files or folders",
            );
            continue;
        }
        let path = match std::path::absolute(input) {
            Ok(path) => path,
            Err(error) => {
                mistakes.add(None, format!("{shown}: {error}"));
                continue;
            }
        };
        if !path.is_dir() {
            match trouble_with(&Source::Path(path.clone())) {
                Some(trouble) => mistakes.add(None, format!("{shown}: {trouble}")),
                None => paths.push(path),
            }
            continue;
        }
        let before = paths.len();
        walk(path, &mut paths, &mut mistakes);
        if paths.len() == before && mistakes.is_empty() {
            mistakes.add(
                None,
                format!(
                    "{shown} contains no sequence file: in a folder, only files that end in .{} \
                     count, also compressed (.gz, .bz2, .xz, .zst); name other files one by one",
                    SEQUENCE_SUFFIXES.join(", .")
                ),
            );
        }
    }
    for path in &paths {
        if path.to_str().is_none() {
            mistakes.add(
                None,
                format!(
                    "{}: the path is not valid UTF-8, so it cannot be written to a manifest: \
                     rename the file or its folder",
                    lossless_name(path.as_os_str())
                ),
            );
        }
    }
    mistakes.into_errors(None)?;
    paths.sort_by(|one, other| one.as_os_str().as_bytes().cmp(other.as_os_str().as_bytes()));
    paths.dedup();
    Ok(paths)
}

/// Appends the sequence files in and below a folder. Links are followed, each folder once.
fn walk(folder: PathBuf, paths: &mut Vec<PathBuf>, mistakes: &mut Mistakes) {
    let mut seen = HashSet::new();
    let mut open = vec![folder];
    while let Some(folder) = open.pop() {
        let is_new = fs::metadata(&folder).map(|about| seen.insert((about.dev(), about.ino())));
        match is_new {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                mistakes.add(None, format!("{}: {error}", folder.display()));
                continue;
            }
        }
        let entries = fs::read_dir(&folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut entries: Vec<PathBuf> = match entries {
            Ok(entries) => entries.into_iter().map(|entry| entry.path()).collect(),
            Err(error) => {
                mistakes.add(
                    None,
                    format!("{} cannot be read: {error}", folder.display()),
                );
                continue;
            }
        };
        // The order decides by which path a folder is reached that has two.
        entries.sort();
        entries.retain(|path| !is_hidden(path));
        for path in entries.iter().rev().filter(|path| path.is_dir()) {
            open.push(path.clone());
        }
        for path in entries {
            if path.is_dir() || !has_sequence_suffix(&path) {
                continue;
            }
            match trouble_with(&Source::Path(path.clone())) {
                Some(trouble) => mistakes.add(
                    None,
                    format!("{}: {trouble}", lossless_name(path.as_os_str())),
                ),
                None => paths.push(path),
            }
        }
    }
}

fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_bytes().starts_with(b".")
}
