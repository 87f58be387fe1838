//! Downloads the missing files of a model from the hub into the cache.

use std::path::{Path, PathBuf};

use super::cache::Hub;
use super::download::Download;
use super::error::{HubError, at};
use super::event::Event;
use super::files::{ADAPTER_CONFIG, TOKENIZER_FILES, WEIGHTS, shards};
use super::model::HubModel;
use crate::atomic_file;

/// Returns the model's folder in the cache after downloading what is missing. With `update`,
/// checks the hub for a newer revision even if the snapshot is complete, verifies the files in
/// the cache by their hashes, and downloads damaged ones again.
///
/// # Errors
/// [`HubError`]; partial downloads are kept, and the next call continues from there.
pub fn fetch(
    hub: &Hub,
    model: &HubModel,
    update: bool,
    events: &mut dyn FnMut(&Event<'_>),
) -> Result<PathBuf, HubError> {
    if let Some(folder) = hub.snapshot(model).filter(|_| !update || hub.offline) {
        return Ok(folder);
    }
    if hub.offline {
        return Err(HubError::Offline {
            model: model.to_string(),
            cache: hub.cache.clone(),
            commits: match hub.commits(model).as_slice() {
                [] => String::new(),
                there => format!(
                    " (commit {} is: to use it, name the model as {}@{})",
                    there.join(", "),
                    model.repository,
                    there[0]
                ),
            },
        });
    }
    let mut download = Download::new(hub, model, update, events)?;
    let files = download.list()?;
    let unusable = |missing: &str| HubError::Unusable {
        model: model.to_string(),
        missing: missing.to_owned(),
        has: files.join(", "),
    };
    let has = |name: &str| files.iter().any(|file| file == name);
    if has(ADAPTER_CONFIG) {
        return Err(HubError::Adapter {
            model: model.to_string(),
        });
    }
    if !has("config.json") {
        return Err(unusable("config.json"));
    }
    let weights = *WEIGHTS
        .iter()
        .find(|name| has(name))
        .ok_or_else(|| unusable("weights (model.safetensors or pytorch_model.bin)"))?;

    let folder = hub.storage(model).join("snapshots").join(download.commit());
    download.file("config.json")?;
    for name in TOKENIZER_FILES.iter().filter(|name| has(name)) {
        download.file(name)?;
    }
    download.file(weights)?;
    if weights.ends_with(".index.json") {
        let index = folder.join(weights);
        let shards = shards(&index)
            .ok_or_else(|| unusable(&format!("shards named in {}", index.display())))?;
        for shard in &shards {
            if !has(shard) {
                return Err(unusable(shard));
            }
            download.file(shard)?;
        }
    }
    if model.revision != download.commit() {
        let reference = hub.storage(model).join("refs").join(&model.revision);
        write_whole(&reference, download.commit().as_bytes())?;
    }
    Ok(folder)
}

/// Writes a small file atomically, by rename.
fn write_whole(path: &Path, content: &[u8]) -> Result<(), HubError> {
    let folder = atomic_file::folder_of(path);
    crate::folders::make(folder).map_err(at(folder))?;
    atomic_file::write(path, content).map_err(at(path))
}
