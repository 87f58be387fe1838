//! From what a user names as a MODEL to the folder of its exported graph.
//!
//! A MODEL is an exported folder, a Hugging Face folder, a fair-esm `.pt` file, a known name or a repository of the hub
//! (`ORG/NAME`, `@REVISION` after either). What is not exported yet is exported once into the cache, under a lock, as
//! `models/NAME-HASH` by the hash of all that decides its numbers. `index/` remembers which export a checkpoint gave: as long as its files keep
//! their sizes and times, wherever they lie, a later start reads neither them nor the network; copies are told by their hashes. What is there
//! is used without a lock and without writing anything. Nothing is downloaded here: `seqembed fetch` does that.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use seqembed_onnx::checkpoint::adapter_file;
use seqembed_onnx::model::{GRAPH_VERSION, INFO_FILE, WEIGHTS_FILE};
use seqembed_onnx::weights::verify;
use seqembed_onnx::{ExportOptions, Model, known_models};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic_file::{self, AtomicFolder};
use crate::hub::{self, CONFIG, Hub, HubModel};
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
    /// A model that is on this machine, but not which commit the name stands for.
    #[error("{repository} is in the hub's cache ({}), but not which commit {revision:?} is (there is no refs/{revision}). There is {}: name it as {repository}@{}", .hub_cache.display(), .commits.join(", "), .commits.first().map_or("COMMIT", String::as_str))]
    NoReference {
        /// The repository.
        repository: String,
        /// What was asked for.
        revision: String,
        /// The commits that are there.
        commits: Vec<String>,
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
    /// A file in the hub's cache that is not what it was when it was downloaded.
    #[error("{} is damaged: its hash is {}, not {}; `seqembed fetch --update {model}` downloads it again", .damage.file.display(), .damage.found, .damage.expected)]
    Damaged {
        /// The model, as `fetch` takes it.
        model: String,
        /// The file.
        damage: hub::Damage,
    },
    /// The checkpoint can't be exported.
    #[error("cannot export {}", .path.display())]
    Export {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<seqembed_onnx::Error>,
    },
    /// The cache has a name that ONNX Runtime does not take.
    #[error("the cache of exported models, {}, has a path that is not UTF-8, and ONNX Runtime cannot open a model there: set SEQEMBED_CACHE to another folder", .path.display())]
    Encoding {
        /// The cache.
        path: PathBuf,
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
        if !path.join(CONFIG).is_file() && adapter_file(path).is_none() {
            return Err(ModelError::NoModel {
                path: path.to_path_buf(),
                why: why_none(path),
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
    match remembered.and_then(|entry| entry.open()) {
        Some(Export::Whole(folder)) => return Ok(folder),
        Some(Export::Broken(why)) => say(&format!("damaged in the cache: {why}")),
        None => {}
    }
    let commits = hub.commits(&model);
    if !commits.is_empty() {
        return Err(ModelError::NoReference {
            repository: model.repository.clone(),
            revision: model.revision.clone(),
            commits,
            hub_cache: hub.cache().to_path_buf(),
        });
    }
    Err(ModelError::NotFetched {
        model: spec.to_owned(),
        cache: cache(),
        hub_cache: hub.cache().to_path_buf(),
    })
}

/// What a folder without a model has instead.
fn why_none(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let below = if folder.join("snapshots").is_dir() {
        folder.join("snapshots")
    } else {
        folder.to_path_buf()
    };
    let entries = std::fs::read_dir(&below).into_iter().flatten().flatten();
    let mut models: Vec<String> = entries
        .map(|entry| entry.path())
        .filter(|path| path.join(CONFIG).is_file() || is_exported(path))
        .map(|path| path.display().to_string())
        .collect();
    models.sort();
    let there = match models.as_slice() {
        [] => String::new(),
        [one] => format!(": name {one}"),
        [first, ..] => format!(": name one of its {} models, such as {first}", models.len()),
    };
    match name
        .strip_prefix("models--")
        .map(|name| name.replacen("--", "/", 1))
    {
        Some(repository) if below != folder => {
            format!("it is the folder of a repository in the hub's cache{there}, or {repository}")
        }
        _ if !models.is_empty() => format!("it is a folder of models{there}"),
        _ => format!(
            "it has neither {INFO_FILE} (an exported model) nor {CONFIG} (a Hugging Face folder)"
        ),
    }
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

/// Compares a folder's files, as far as they link to the hub's blobs, with the hashes that these are named by.
///
/// # Errors
/// [`ModelError::Damaged`], or [`ModelError::NoModel`] when one can't be read.
pub fn check_intact(folder: &Path, named: Option<&HubModel>) -> Result<(), ModelError> {
    let damage = hub::damage(folder).map_err(|source| ModelError::NoModel {
        path: folder.to_path_buf(),
        why: source.to_string(),
    })?;
    damage.map_or(Ok(()), |damage| {
        let absolute = std::fs::canonicalize(folder).unwrap_or_default();
        let model = named.cloned().or_else(|| hub::model_of(&absolute));
        Err(ModelError::Damaged {
            model: model.map_or_else(|| "MODEL".to_owned(), |model| model.to_string()),
            damage,
        })
    })
}

/// What the index remembers of a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// The checkpoint: its path, or its name at the hub.
    checkpoint: String,
    /// The version of the exporter.
    exporter: String,
    /// The files of the checkpoint that its export was made from.
    files: Vec<Fingerprint>,
    /// The export's folder below `models/`.
    export: String,
    /// [`ModelInfo::identity`](seqembed_onnx::ModelInfo::identity) of the model in that folder: another one that lies there now is not
    /// this checkpoint's.
    #[serde(default)]
    identity: String,
}

/// What tells that a file is still the same, without reading it; and what tells it of a copy, when it is read.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Fingerprint {
    name: String,
    bytes: u64,
    modified_ns: u64,
    /// When it was last written to, renamed or given away, which nobody can set back.
    #[serde(default)]
    changed_ns: Option<u64>,
    /// Images for containers give all of their files one time: this tells two files in one of them apart.
    #[serde(default)]
    inode: Option<u64>,
    #[serde(default)]
    blake3: Option<String>,
}

impl Fingerprint {
    /// Whether the system tells the same of both.
    fn is_same(&self, other: &Self) -> bool {
        self.is_as_long(other)
            && self.modified_ns == other.modified_ns
            && self.changed_ns == other.changed_ns
    }

    /// The same, of a file that lies elsewhere now.
    fn is_same_elsewhere(&self, other: &Self) -> bool {
        self.is_same(other) && self.inode == other.inode
    }

    fn is_as_long(&self, other: &Self) -> bool {
        self.name == other.name && self.bytes == other.bytes
    }
}

/// Whether all files of one checkpoint are those of another.
fn all(
    files: &[Fingerprint],
    others: &[Fingerprint],
    same: impl Fn(&Fingerprint, &Fingerprint) -> bool,
) -> bool {
    files.len() == others.len()
        && files
            .iter()
            .zip(others)
            .all(|(file, other)| same(file, other))
}

/// An export in the cache.
enum Export {
    /// It can be used.
    Whole(PathBuf),
    /// It can't, and why.
    Broken(String),
}

impl Entry {
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// All that the cache remembers.
    fn all() -> impl Iterator<Item = Self> {
        let entries = std::fs::read_dir(cache().join("index"));
        entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
            .filter_map(|path| Self::read(&path))
    }

    /// The export, if it is still there and of this version.
    fn open(&self) -> Option<Export> {
        let plain = !self.export.contains(['/', '\\']) && !self.export.starts_with('.');
        let folder = cache().join("models").join(&self.export);
        if !plain || self.exporter != exporter() || !folder.is_dir() {
            return None;
        }
        Some(match Model::open(&folder) {
            Ok(model) if model.info().identity() != self.identity => return None,
            Ok(_) => Export::Whole(folder),
            Err(error) => Export::Broken(error.to_string()),
        })
    }

    /// Whether what it was exported from is there.
    fn has_checkpoint(&self) -> bool {
        let named = self.checkpoint.strip_prefix("hub:");
        match named.and_then(HubModel::parse) {
            Some(model) => Hub::from_env().snapshot(&model).is_some(),
            None => Path::new(&self.checkpoint).exists(),
        }
    }
}

/// Counts up whenever an old export must not be used any more, though its files could still be read: 2, since checkpoints are refused
/// that hold weights which the graph has no place for; 3, since an entry may have named the export of another model of the same weights;
/// 4, since such weights beside the encoder are refused too.
const EXPORTER: u32 = 4;

/// The program that made an export, as the index has it.
fn exporter() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("{version} exporter {EXPORTER} graph {GRAPH_VERSION}")
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

/// The files of a MODEL that is named by a path, those that are read; none for a name.
#[must_use]
pub fn files_of(spec: &str) -> Vec<PathBuf> {
    let path = Path::new(spec);
    let folder = if path.is_file() && path.file_name().is_some_and(|name| name == INFO_FILE) {
        atomic_file::folder_of(path)
    } else {
        path
    };
    if !is_exported(folder) {
        return if path.exists() {
            checkpoint_files(path)
        } else {
            Vec::new()
        };
    }
    // Outputs of earlier runs may stand there, too.
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| {
            let ending = path.extension().and_then(|ending| ending.to_str());
            path.file_name().is_some_and(|name| name == INFO_FILE)
                || matches!(ending, Some("bin" | "onnx" | "txt"))
                || path
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("tokenizer"))
        })
        .collect()
}

/// The checkpoint's files, those that are read when it is exported.
fn checkpoint_files(checkpoint: &Path) -> Vec<PathBuf> {
    let beside = checkpoint.with_file_name(CONFIG);
    if checkpoint.is_dir() {
        let names = hub::files_of(checkpoint).into_iter();
        names.map(|name| checkpoint.join(name)).collect()
    } else if beside.is_file() {
        let names = hub::tokenizer_files_of(checkpoint.parent().unwrap_or(Path::new(".")));
        let mut paths = vec![checkpoint.to_path_buf(), beside];
        paths.extend(names.map(|name| checkpoint.with_file_name(name)));
        paths
    } else {
        vec![checkpoint.to_path_buf()]
    }
}

/// The checkpoint's files as they are now, sorted by name.
fn fingerprints(checkpoint: &Path) -> std::io::Result<Vec<Fingerprint>> {
    let mut files = Vec::new();
    for path in checkpoint_files(checkpoint) {
        let about = std::fs::metadata(&path)?;
        let nanoseconds = |seconds: i64, rest: i64| {
            let seconds = u64::try_from(seconds).unwrap_or_default();
            seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(u64::try_from(rest).unwrap_or_default())
        };
        files.push(Fingerprint {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            bytes: about.len(),
            modified_ns: nanoseconds(about.mtime(), about.mtime_nsec()),
            changed_ns: Some(nanoseconds(about.ctime(), about.ctime_nsec())),
            inode: Some(about.ino()),
            blake3: None,
        });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

/// Reads the files and adds their hashes.
fn hash(checkpoint: &Path, files: &mut [Fingerprint]) -> std::io::Result<()> {
    for file in files {
        let path = if checkpoint.is_dir() {
            checkpoint.join(&file.name)
        } else {
            checkpoint.with_file_name(&file.name)
        };
        file.blake3 = Some(verify::blake3_of(&File::open(path)?, file.bytes)?);
    }
    Ok(())
}

/// The export of a checkpoint that the cache has: by the checkpoint's path, else by its files, wherever they lie now. `None`: there is
/// none.
fn find(checkpoint: &Path, key: &str, files: &[Fingerprint]) -> Option<Export> {
    let known = Entry::read(&entry_path(key))
        .filter(|entry| all(&entry.files, files, Fingerprint::is_same))
        .and_then(|entry| entry.open());
    if known.is_some() {
        return known;
    }
    // The same files by another way: mounted elsewhere, as in a container, say.
    let others: Vec<Entry> = Entry::all()
        .filter(|entry| all(&entry.files, files, Fingerprint::is_as_long))
        .collect();
    let same = |entry: &&Entry| all(&entry.files, files, Fingerprint::is_same_elsewhere);
    let found = others.iter().filter(same).find_map(Entry::open);
    if found.is_some() || others.is_empty() {
        return found;
    }
    // Copied, or touched: the files themselves must tell, which is quicker than to export them.
    let mut hashed = files.to_vec();
    hash(checkpoint, &mut hashed).ok()?;
    others
        .iter()
        .filter(|entry| {
            all(&entry.files, &hashed, |one, other| {
                one.blake3.is_some() && one.blake3 == other.blake3
            })
        })
        .find_map(|entry| {
            let found = entry.open()?;
            // The next start need not read them. A cache that can't be written to is as good.
            let _ = remember(key, &hashed, &entry.export, &entry.identity);
            Some(found)
        })
}

/// Notes which export a checkpoint gave.
fn remember(
    key: &str,
    files: &[Fingerprint],
    export: &str,
    identity: &str,
) -> Result<(), ModelError> {
    let place = entry_path(key);
    let entry = Entry {
        checkpoint: key.to_owned(),
        exporter: exporter(),
        files: files.to_vec(),
        export: export.to_owned(),
        identity: identity.to_owned(),
    };
    let text = serde_json::to_vec_pretty(&entry).expect("an entry is plain data");
    atomic_file::write(&place, &text).map_err(at(&place))
}

/// Notes that a name of the hub means the model that was found, unless that is noted: later the download may be gone.
fn name(named: Option<&HubModel>, files: &[Fingerprint], found: &Path) {
    let Some(key) = named.map(key_of_name) else {
        return;
    };
    let export = found.file_name().unwrap_or_default().to_string_lossy();
    let known = Entry::read(&entry_path(&key));
    if known.is_some_and(|entry| entry.export == export && entry.exporter == exporter()) {
        return;
    }
    if let Ok(model) = Model::open(found) {
        // A cache that can't be written to is as good, as long as the download is there.
        let _ = remember(&key, files, &export, &model.info().identity());
    }
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
    // Before the work of an export.
    if cache().to_str().is_none() {
        return Err(ModelError::Encoding { path: cache() });
    }
    let absolute = std::fs::canonicalize(checkpoint).map_err(no_model)?;
    let mut files = fingerprints(&absolute).map_err(no_model)?;
    let key = absolute.to_string_lossy().into_owned();
    if let Some(Export::Whole(folder)) = find(&absolute, &key, &files) {
        name(named, &files, &folder);
        return Ok(folder);
    }
    // Another weight is another model. All files are read for it, so only where there is no export yet.
    if absolute.is_dir() {
        check_intact(&absolute, named)?;
    }

    let models = cache().join("models");
    for folder in [&models, &cache().join("index")] {
        crate::folders::make(folder).map_err(at(folder))?;
    }
    let _lock = lock(&entry_path(&key).with_extension("lock"), say)?;
    match find(&absolute, &key, &files) {
        Some(Export::Whole(folder)) => {
            name(named, &files, &folder);
            return Ok(folder);
        }
        Some(Export::Broken(why)) => say(&format!("damaged in the cache, made again: {why}")),
        None => {}
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
    let options = ExportOptions {
        name: named
            .and_then(|model| model.repository.rsplit('/').next())
            .map(str::to_owned),
        check_tokenizer: Some(tokenize::check),
        ..ExportOptions::default()
    };
    let model = seqembed_onnx::export(&absolute, &target, &options).map_err(|source| {
        ModelError::Export {
            path: checkpoint.to_path_buf(),
            source: Box::new(source),
        }
    })?;
    hash(&absolute, &mut files).map_err(no_model)?;
    let now = fingerprints(&absolute).map_err(no_model)?;
    if !all(&now, &files, Fingerprint::is_same) {
        return Err(ModelError::NoModel {
            path: checkpoint.to_path_buf(),
            why: "its files were changed while they were read; run the same command again"
                .to_owned(),
        });
    }
    let identity = model.info().identity();
    let export = folder_name(&model.info().name, &identity);
    let folder = models.join(&export);
    // The same model from elsewhere, exported before or just now: theirs is as good.
    if std::fs::rename(&target, &folder).is_err() && !same(&folder, &identity) {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::rename(&target, &folder).map_err(at(&folder))?;
    }
    remember(&key, &files, &export, &identity)?;
    if let Some(model) = named {
        remember(&key_of_name(model), &files, &export, &identity)?;
    }
    Ok(folder)
}

/// Removes a damaged file of a model, if it can be made again: what was made from `weights.bin`, or an export in the cache whose
/// checkpoint is still there. Whether it did.
pub fn remove_damaged(error: &seqembed_onnx::Error, say: &dyn Fn(&str)) -> bool {
    let seqembed_onnx::Error::Damaged { path, .. } = error else {
        return false;
    };
    let (Some(name), Some(folder)) = (path.file_name(), path.parent()) else {
        return false;
    };
    let name = name.to_string_lossy();
    let again = || say(&format!("damaged, made again: {error}"));
    if name != WEIGHTS_FILE && name.starts_with("weights.") {
        let removed = std::fs::remove_file(path).is_ok();
        if removed {
            again();
        }
        return removed;
    }
    let models = cache().join("models");
    let export = folder.file_name().unwrap_or_default().to_string_lossy();
    let can = folder.parent() == Some(&models)
        && Entry::all().any(|entry| entry.export == export && entry.has_checkpoint());
    // Out of the way first: whoever has it open keeps what it has.
    let removed = can
        && AtomicFolder::create(&models.join("damaged"))
            .and_then(|aside| std::fs::rename(folder, aside.partial().join("model")))
            .is_ok();
    if removed {
        again();
    }
    removed
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

/// `NAME-HASH`, the name made safe for a file system: models that differ in whatever decides numbers stand side by side.
fn folder_name(name: &str, identity: &str) -> String {
    let safe: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    format!("{}-{}", safe.trim_start_matches('.'), &identity[..16])
}

/// Whether a folder holds the same export.
fn same(folder: &Path, identity: &str) -> bool {
    Model::open(folder).is_ok_and(|there| there.info().identity() == identity)
}
