//! Embedding files as they are named on the command line: individually, or by folder.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::output::Format;

/// The files named by the arguments; a folder stands for the embedding files in it, sorted by name.
///
/// # Errors
/// If a folder cannot be read, or contains no embedding file.
pub fn expand(inputs: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for input in inputs {
        if !input.is_dir() {
            paths.push(input.clone());
            continue;
        }
        let entries = std::fs::read_dir(input)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("cannot read {}", input.display()))?;
        let mut found: Vec<PathBuf> = entries
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                !name.starts_with('.') && Format::of(path).is_some()
            })
            .collect();
        if found.is_empty() {
            let endings: Vec<String> = Format::ALL.iter().map(|f| format!(".{f}")).collect();
            bail!(
                "{} contains no embedding file ({}): give an output folder of `seqembed run` or \
                 `seqembed embed`",
                input.display(),
                endings.join(", ")
            );
        }
        found.sort();
        paths.extend(found);
    }
    Ok(paths)
}
