//! Files that ONNX Runtime maps into memory: what is to be told if one of them can no longer be read.
//!
//! A mapped file that is cut, or whose disk fails, ends the process by SIGBUS. Whoever handles that signal may neither allocate nor wait
//! for a lock: the message is ready before.

use std::path::Path;
use std::sync::OnceLock;

/// More models than this are not named.
static MESSAGES: [OnceLock<String>; 8] = [const { OnceLock::new() }; 8];

/// From now on this file is mapped.
pub fn note(path: &Path) {
    let message = format!("  {}\n", path.display());
    for place in &MESSAGES {
        if *place.get_or_init(|| message.clone()) == message {
            return;
        }
    }
}

/// What is to be told, in pieces. Neither allocates nor waits.
pub fn told() -> impl Iterator<Item = &'static str> {
    let first = "error: a file with a model's weights could no longer be read (SIGBUS): it was cut or replaced while it was used, or its \
                 disk failed. Finished files stay; put the model back, and run the same command again with --resume. The file is one of:\n";
    let files = MESSAGES.iter().map_while(OnceLock::get);
    std::iter::once(first).chain(files.map(String::as_str))
}
