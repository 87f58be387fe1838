//! Allows one process at a time in a folder, by an advisory lock that the system releases when the
//! process dies.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;

use super::error::JournalError;
use super::ordinary;

/// Name of the locked file in the work folder.
const NAME: &str = "lock";

/// A folder that is this process's own while it lives.
#[derive(Debug)]
pub struct Lock {
    /// The lock goes with the open file.
    _file: File,
    /// Whether the file system keeps locks at all.
    pub is_kept: bool,
}

impl Lock {
    /// Locks the folder, which must exist.
    ///
    /// # Errors
    /// [`JournalError::Locked`] with who has it; else what the system refused.
    pub fn take(folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join(NAME);
        let io = |source| JournalError::Io {
            path: path.clone(),
            doing: "write",
            source,
        };
        let mut file = ordinary::write(&path).map_err(io)?;
        let is_kept = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => {
                return Err(JournalError::Locked {
                    folder: folder.to_owned(),
                    holder: holder(&mut file).unwrap_or_else(|_| "another process".to_owned()),
                });
            }
            // Some network file systems have no locks: better to run than to refuse.
            Err(TryLockError::Error(_)) => false,
        };
        let host = sysinfo::System::host_name().unwrap_or_else(|| "an unknown host".to_owned());
        let name = format!("process {} on {host}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(name.as_bytes()))
            .map_err(io)?;
        Ok(Self {
            _file: file,
            is_kept,
        })
    }
}

/// Who wrote the lock's file.
fn holder(file: &mut File) -> io::Result<String> {
    let mut text = String::new();
    file.take(200).read_to_string(&mut text)?;
    let text = text.trim();
    Ok(if text.is_empty() {
        "another process".to_owned()
    } else {
        text.to_owned()
    })
}
