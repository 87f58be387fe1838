//! The files of a model's folder: which there are, and which it needs.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde::Deserialize;

/// A repository with this file is an adapter, whatever else it contains.
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Tokenizer files, downloaded if the repository has them.
pub(super) const TOKENIZER_FILES: [&str; 7] = [
    "vocab.txt",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
];

/// The file that identifies a Hugging Face folder.
pub const CONFIG: &str = "config.json";

/// Weights files in order of preference: a single file, or an index that names its shards.
pub(super) const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// The existing files of a Hugging Face folder that an export reads.
#[must_use]
pub fn files_of(folder: &Path) -> Vec<String> {
    let has = |name: &str| folder.join(name).is_file();
    let mut files: Vec<String> = tokenizer_files_of(folder).map(str::to_owned).collect();
    files.extend(has(CONFIG).then(|| CONFIG.to_owned()));
    if let Some(weights) = WEIGHTS.iter().find(|name| has(name)) {
        files.push((*weights).to_owned());
        if weights.ends_with(".index.json") {
            let shards = shards(&folder.join(weights)).unwrap_or_default();
            files.extend(shards.into_iter().filter(|shard| has(shard)));
        }
    }
    files
}

/// The tokenizer files in a folder.
pub fn tokenizer_files_of(folder: &Path) -> impl Iterator<Item = &'static str> {
    TOKENIZER_FILES
        .into_iter()
        .filter(move |name| folder.join(name).is_file())
}

/// Whether a folder is complete: config, all weights, and vocabulary.
pub(super) fn is_complete(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    let weights = WEIGHTS.iter().find(|name| has(name)).is_some_and(|name| {
        !name.ends_with(".index.json")
            || shards(&folder.join(name))
                .is_some_and(|shards| shards.iter().all(|shard| has(shard)))
    });
    weights
        && has("config.json")
        && ["vocab.txt", "tokenizer.json", "spiece.model"]
            .into_iter()
            .any(has)
}

/// The shards named by an index of weights; `None` if the index is invalid or names files outside
/// the folder.
pub(super) fn shards(index: &Path) -> Option<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).ok()?;
    let shards: BTreeSet<String> = serde_json::from_str::<Index>(&text)
        .ok()?
        .weight_map
        .into_values()
        .collect();
    let plain = |name: &String| {
        let mut parts = Path::new(name).components();
        matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(_)), None)
        )
    };
    (!shards.is_empty() && shards.iter().all(plain)).then_some(shards)
}
