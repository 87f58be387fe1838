//! The files that ONNX Runtime maps into memory, for the message if one of them can no longer be
//! read.
//!
//! Where a mapped file is truncated, or its disk fails, the system sends SIGBUS. A handler of that
//! signal may neither allocate memory nor wait for a lock, so the message is prepared before.

use std::path::Path;
use std::sync::OnceLock;

/// A line of the message for each file. Files beyond the eighth are not named.
static MESSAGES: [OnceLock<String>; 8] = [const { OnceLock::new() }; 8];

/// Adds a file to the message.
pub fn register(path: &Path) {
    let message = format!("  {}\n", path.display());
    for slot in &MESSAGES {
        if *slot.get_or_init(|| message.clone()) == message {
            return;
        }
    }
}

/// The message, in pieces. Safe in a signal handler: it neither allocates nor waits.
pub fn message() -> impl Iterator<Item = &'static str> {
    let first = "error: a weights file could no longer be read (SIGBUS): it was truncated or \
                 replaced while in use, or its disk failed. Finished files are kept; restore the \
                 model, and run the same command again with --resume. The file is one of:\n";
    let files = MESSAGES.iter().map_while(OnceLock::get);
    std::iter::once(first).chain(files.map(String::as_str))
}
