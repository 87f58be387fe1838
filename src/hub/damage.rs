//! Verifies files in the hub's cache by their hashes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use seqembed_onnx::weights::table::hex;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::files::files_of;

/// A damaged file in the hub's cache: its hash differs from the name of its blob.
#[derive(Debug)]
pub struct Damage {
    /// Path of the file in its snapshot.
    pub file: PathBuf,
    /// The name of its blob, which is the expected hash.
    pub expected: String,
    /// The hash of its bytes, in hexadecimal.
    pub found: String,
}

/// The first damaged file among those that an export of the folder reads. Reads every file that
/// links to a blob of the hub's cache.
///
/// # Errors
/// If a file cannot be read.
pub fn damage(folder: &Path) -> std::io::Result<Option<Damage>> {
    for name in files_of(folder) {
        if let Some(damage) = damage_of_file(&folder.join(name))? {
            return Ok(Some(damage));
        }
    }
    Ok(None)
}

/// The hash of a file by the method that the length of `name` implies: SHA-256, or git's SHA-1 of a
/// blob. `None` if `name` is neither.
pub(super) fn hash_as(name: &str, path: &Path) -> std::io::Result<Option<String>> {
    if !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    match name.len() {
        64 => digest(file, Sha256::new()).map(Some),
        40 => digest(file, Sha1::new_with_prefix(format!("blob {size}\0"))).map(Some),
        _ => Ok(None),
    }
}

/// The hash of a snapshot's file if it differs from the name of its blob. `None` if they are equal,
/// or if the file is not a link to a blob.
pub(super) fn damage_of_file(pointer: &Path) -> std::io::Result<Option<Damage>> {
    // The blob may itself be a link to another disk.
    let targets = [std::fs::read_link(pointer), std::fs::canonicalize(pointer)];
    for blob in targets.into_iter().flatten() {
        let folder = blob.parent().and_then(Path::file_name);
        let name = blob.file_name().and_then(|name| name.to_str());
        let (Some(folder), Some(name)) = (folder, name) else {
            continue;
        };
        if folder == "blobs"
            && let Some(found) = hash_as(name, pointer)?
        {
            return Ok((!name.eq_ignore_ascii_case(&found)).then(|| Damage {
                file: pointer.to_path_buf(),
                expected: name.to_owned(),
                found,
            }));
        }
    }
    Ok(None)
}

pub(super) fn digest(mut file: File, mut hash: impl Digest) -> std::io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}
