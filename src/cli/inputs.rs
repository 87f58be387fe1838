//! Files of embeddings as they are named on the command line: one by one, or by folder.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::output::Format;

/// The files that the arguments mean: a folder gives its files of embeddings, by name.
///
/// # Errors
/// When a folder can't be read, or holds none.
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
                "{} has no file of embeddings ({}): give an output folder of `seqembed run` or `embed`",
                input.display(),
                endings.join(", ")
            );
        }
        found.sort();
        paths.extend(found);
    }
    Ok(paths)
}
