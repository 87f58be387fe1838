//! From what a user names as a MODEL to the folder of its exported graph.
//!
//! A MODEL is an exported folder, a Hugging Face folder, a fair-esm `.pt` file, a known name or a repository of the hub
//! (`ORG/NAME`, `@REVISION` after either). What is not exported yet is exported once into the cache, under a lock, as
//! `models/NAME-HASH` by the hash of its weights. `index/` remembers which export a checkpoint gave: as long as its files keep
//! their sizes and times, a later start reads neither them nor the network. Nothing is downloaded here: `seqembed fetch` does that.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use seqembed_onnx::checkpoint::adapter_file;
use seqembed_onnx::model::{GRAPH_VERSION, INFO_FILE};
use seqembed_onnx::{ExportOptions, Model, known_models};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic_file::{self, AtomicFolder};
use crate::hub::{self, Hub, HubModel};
use crate::tokenize;

/// Why a MODEL can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Neither a path nor a name.
    #[error(
        "there is no model `{spec}`: it is no file or folder, and no known name. Known: {}; any other model of the hub is named ORG/NAME",
        known_names()
    )]
    Unknown {
        /// What was named.
        spec: String,
    },
    /// A name that is right, but the model is not on this machine.
    #[error("{model} is not on this machine (neither in {} nor in {}). Download it first, where there is a network: seqembed fetch {model}", .cache.display(), .hub_cache.display())]
    NotFetched {
        /// The model's name.
        model: String,
        /// The cache of exported models.
        cache: PathBuf,
        /// The hub's cache.
        hub_cache: PathBuf,
    },
    /// A path that holds no model.
    #[error("{} is no model: {why}", .path.display())]
    NoModel {
        /// The path.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// The checkpoint can't be exported.
    #[error("cannot export {}", .path.display())]
    Export {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        source: seqembed_onnx::Error,
    },
    /// The cache can't be used.
    #[error("cannot use the cache of exported models, {}: {source}. Set SEQEMBED_CACHE to a folder that can be written, or export with `seqembed export CHECKPOINT -o DIR` and name DIR as the model", .path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

fn known_names() -> String {
    known_models()
        .iter()
        .map(|known| known.name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The folder for exported models: `$SEQEMBED_CACHE`, else `seqembed` in the user's folder for caches.
#[must_use]
pub fn cache() -> PathBuf {
    std::env::var_os("SEQEMBED_CACHE")
        .filter(|value| !value.is_empty())
        .map_or_else(|| hub::user_cache().join("seqembed"), PathBuf::from)
}

/// The folders of all exported models in the cache.
#[must_use]
pub fn cached() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cache().join("models"))
        .into_iter()
        .flatten()
        .flatten();
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|folder| is_exported(folder))
        .collect();
    folders.sort();
    folders
}

fn is_exported(folder: &Path) -> bool {
    folder.join(INFO_FILE).is_file()
}

/// The hub's model that a name means: a known name or `ORG/NAME`, with `@REVISION` or without.
///
/// # Errors
/// [`ModelError::Unknown`] for anything else.
pub fn hub_model(spec: &str) -> Result<HubModel, ModelError> {
    let (name, revision) = spec
        .split_once('@')
        .map_or((spec, ""), |(name, _)| (name, &spec[name.len()..]));
    let known = known_models()
        .into_iter()
        .find(|known| known.name.eq_ignore_ascii_case(name));
    let repository = known.map_or(name, |known| known.hub_id);
    HubModel::parse(&format!("{repository}{revision}")).ok_or_else(|| ModelError::Unknown {
        spec: spec.to_owned(),
    })
}

/// The exported folder of a MODEL, exported now if need be; `say` hears what takes time.
///
/// # Errors
/// [`ModelError`]: its message says what to do.
pub fn resolve(spec: &str, say: &dyn Fn(&str)) -> Result<PathBuf, ModelError> {
    let path = Path::new(spec);
    if path.is_dir() {
        if is_exported(path) {
            return Ok(path.to_path_buf());
        }
        if !path.join("config.json").is_file() && adapter_file(path).is_none() {
            let why = format!(
                "it has neither {INFO_FILE} (an exported model) nor config.json (a Hugging Face folder)"
            );
            return Err(ModelError::NoModel {
                path: path.to_path_buf(),
                why,
            });
        }
        return export_cached(path, None, say);
    }
    if path.is_file() {
        if path.file_name().is_some_and(|name| name == INFO_FILE) {
            return Ok(path.parent().unwrap_or(Path::new(".")).to_path_buf());
        }
        return export_cached(path, None, say);
    }
    let model = hub_model(spec)?;
    let hub = Hub::from_env();
    if let Some(snapshot) = hub.snapshot(&model) {
        return export_cached(&snapshot, Some(&model), say);
    }
    // The download may have been deleted since it was exported.
    let remembered = Entry::read(&entry_path(&key_of_name(&model)));
    remembered
        .and_then(|entry| entry.folder())
        .ok_or_else(|| ModelError::NotFetched {
            model: spec.to_owned(),
            cache: cache(),
            hub_cache: hub.cache().to_path_buf(),
        })
}

/// Exports a model that was downloaded, into the cache.
///
/// # Errors
/// As [`resolve`].
pub fn export_hub(
    model: &HubModel,
    snapshot: &Path,
    say: &dyn Fn(&str),
) -> Result<PathBuf, ModelError> {
    export_cached(snapshot, Some(model), say)
}

/// What the index remembers of a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// The checkpoint: its path, or its name at the hub.
    checkpoint: String,
    /// The version of the exporter.
    exporter: String,
    /// The files of the checkpoint.
    files: Vec<Fingerprint>,
    /// The export's folder below `models/`.
    export: String,
}

/// What tells that a file is still the same, without reading it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Fingerprint {
    name: String,
    bytes: u64,
    modified_ns: u64,
}

impl Entry {
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// The export, if it is still there and of this version.
    fn folder(&self) -> Option<PathBuf> {
        let plain = !self.export.contains(['/', '\\']) && !self.export.starts_with('.');
        let folder = cache().join("models").join(&self.export);
        (plain && self.exporter == exporter() && is_exported(&folder)).then_some(folder)
    }
}

/// Changes whenever an old export must not be used any more.
fn exporter() -> String {
    format!("{} graph {}", env!("CARGO_PKG_VERSION"), GRAPH_VERSION)
}

fn key_of_name(model: &HubModel) -> String {
    format!("hub:{}@{}", model.repository, model.revision)
}

fn entry_path(key: &str) -> PathBuf {
    let hash = Sha256::digest(key)
        .iter()
        .take(16)
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    cache().join("index").join(format!("{hash}.json"))
}

/// The checkpoint's files as they are now, sorted by name.
fn fingerprints(checkpoint: &Path) -> std::io::Result<Vec<Fingerprint>> {
    let mut paths = vec![checkpoint.to_path_buf()];
    if checkpoint.is_dir() {
        let entries = std::fs::read_dir(checkpoint)?.collect::<Result<Vec<_>, _>>()?;
        paths = entries
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .collect();
    }
    let mut files = Vec::new();
    for path in paths {
        let metadata = std::fs::metadata(&path)?;
        let modified = metadata
            .modified()?
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        files.push(Fingerprint {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            bytes: metadata.len(),
            modified_ns: u64::try_from(modified).unwrap_or(u64::MAX),
        });
    }
    files.sort();
    Ok(files)
}

/// The export of a checkpoint in the cache, made now if need be.
fn export_cached(
    checkpoint: &Path,
    named: Option<&HubModel>,
    say: &dyn Fn(&str),
) -> Result<PathBuf, ModelError> {
    let no_model = |source: std::io::Error| ModelError::NoModel {
        path: checkpoint.to_path_buf(),
        why: source.to_string(),
    };
    let absolute = std::fs::canonicalize(checkpoint).map_err(no_model)?;
    let files = fingerprints(&absolute).map_err(no_model)?;
    let key = absolute.to_string_lossy().into_owned();
    let place = entry_path(&key);
    let known = || {
        Entry::read(&place)
            .filter(|entry| entry.files == files)
            .and_then(|entry| entry.folder())
    };
    if let Some(folder) = known() {
        return Ok(folder);
    }

    let models = cache().join("models");
    for folder in [&models, &cache().join("index")] {
        std::fs::create_dir_all(folder).map_err(at(folder))?;
    }
    let _lock = lock(&place.with_extension("lock"), say)?;
    if let Some(folder) = known() {
        return Ok(folder);
    }

    let shown = named.map_or_else(|| checkpoint.display().to_string(), ToString::to_string);
    say(&format!(
        "exporting {shown} (once; kept in {})",
        models.display()
    ));
    // What killed exports left, before there is need for as much again.
    let _ = atomic_file::sweep(&models, None);
    let work = AtomicFolder::create(&models.join("export")).map_err(at(&models))?;
    let target = work.partial().join("model");
    let name = named
        .and_then(|model| model.repository.rsplit('/').next())
        .map(str::to_owned);
    let options = ExportOptions {
        name,
        check_tokenizer: Some(tokenize::check),
        ..ExportOptions::default()
    };
    let model = seqembed_onnx::export(&absolute, &target, &options).map_err(|source| {
        ModelError::Export {
            path: checkpoint.to_path_buf(),
            source,
        }
    })?;
    let export = folder_name(&model);
    let folder = models.join(&export);
    // The same weights from elsewhere, exported before or just now: theirs is as good.
    if std::fs::rename(&target, &folder).is_err() && !same(&folder, &model) {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::rename(&target, &folder).map_err(at(&folder))?;
    }

    let mut keys = vec![key];
    keys.extend(named.map(key_of_name));
    for key in keys {
        let place = entry_path(&key);
        let entry = Entry {
            checkpoint: key,
            exporter: exporter(),
            files: files.clone(),
            export: export.clone(),
        };
        let text = serde_json::to_vec_pretty(&entry).expect("an entry is plain data");
        atomic_file::write(&place, &text).map_err(at(&place))?;
    }
    Ok(folder)
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> ModelError {
    let path = path.to_path_buf();
    move |source| ModelError::Cache { path, source }
}

/// Waits for any other process that exports the same checkpoint. A file system without locks goes without: then both export,
/// and the last rename loses.
fn lock(path: &Path, say: &dyn Fn(&str)) -> Result<File, ModelError> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(at(path))?;
    if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
        say("waiting for another process that exports the same model");
        let _ = file.lock();
    }
    Ok(file)
}

/// `NAME-HASH`, the name made safe for a file system.
fn folder_name(model: &Model) -> String {
    let info = model.info();
    let safe: String = info
        .name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    format!(
        "{}-{}",
        safe.trim_start_matches('.'),
        &info.weights_sha256[..16]
    )
}

/// Whether a folder holds the same export.
fn same(folder: &Path, model: &Model) -> bool {
    Model::open(folder).is_ok_and(|there| {
        let (there, wanted) = (there.info(), model.info());
        there.weights_sha256 == wanted.weights_sha256 && there.graph_version == wanted.graph_version
    })
}
