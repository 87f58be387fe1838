//! Resolves the MODEL that a user names to the folder of the exported model.
//!
//! A MODEL is an exported folder, a Hugging Face folder, a fair-esm `.pt` file, a known name or a
//! repository of the hub (`ORG/NAME`, `@REVISION` after either). A checkpoint is exported once into
//! the cache, under a lock, as `models/NAME-HASH`, where the hash covers everything that affects
//! the embeddings. `index/` records which export belongs to which checkpoint. As long as the
//! checkpoint's files keep their sizes and times, even if they are moved, a later start reads
//! neither them nor the network; copies are recognised by their hashes. Existing exports are used
//! without a lock and without writing anything. Nothing is downloaded here: `seqembed fetch` does
//! that.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use seqembed_onnx::checkpoint::adapter_file;
use seqembed_onnx::model::{GRAPH_VERSION, INFO_FILE, WEIGHTS_FILE};
use seqembed_onnx::weights::verify;
use seqembed_onnx::{ExportOptions, Model, ModelInfo, known_models};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic_file::{self, AtomicFolder};
use crate::hub::{self, CONFIG, Hub, HubModel};
use crate::tokenize;

/// Why a MODEL cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Neither an existing path nor a known name.
    #[error(
        "there is no model `{spec}`{}: it is neither a file or folder nor a known name. Run `seqembed \
         models` for the known names; name any other model of the hub as ORG/NAME",
        did_you_mean(spec)
    )]
    Unknown {
        /// The name as given.
        spec: String,
    },
    /// A valid name, but the model is not on this machine.
    #[error("{model} is not on this machine (neither in {} nor in {}). Download it first, on a \
             machine with network access: seqembed fetch {model}", .cache.display(), .hub_cache.display())]
    NotFetched {
        /// The model's name.
        model: String,
        /// The cache of exported models.
        cache: PathBuf,
        /// Path of the hub's cache.
        hub_cache: PathBuf,
    },
    /// The model is in the hub's cache, but not the reference that maps the revision to a commit.
    #[error("{repository} is in the hub's cache ({}), but the cache does not record which commit \
             {revision:?} is (refs/{revision} is missing). The cache has {}; to use it, name the \
             model as {repository}@{}", .hub_cache.display(), .commits.join(", "), .commits.first().map_or("COMMIT", String::as_str))]
    NoReference {
        /// The repository.
        repository: String,
        /// The requested revision.
        revision: String,
        /// The commits that are in the cache.
        commits: Vec<String>,
        /// Path of the hub's cache.
        hub_cache: PathBuf,
    },
    /// A path that does not contain a model.
    #[error("{} is not a model: {why}", .path.display())]
    NoModel {
        /// Path that was given.
        path: PathBuf,
        /// Why it is not a model.
        why: String,
    },
    /// A file in the hub's cache that changed since it was downloaded.
    #[error("{} is damaged: its hash is {}, not {}. Run `seqembed fetch --update {model}` to \
             download it again", .damage.file.display(), .damage.found, .damage.expected)]
    Damaged {
        /// The model's name for `seqembed fetch`.
        model: String,
        /// The damaged file and its hashes.
        damage: hub::Damage,
    },
    /// The checkpoint cannot be exported.
    #[error("cannot export {}", .path.display())]
    Export {
        /// Path of the checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<seqembed_onnx::Error>,
    },
    /// The path of the cache is not UTF-8, which ONNX Runtime requires.
    #[error("the path of the cache of exported models, {}, is not valid UTF-8, so ONNX Runtime \
             cannot open models in it: set SEQEMBED_CACHE to another folder", .path.display())]
    Encoding {
        /// Path of the cache.
        path: PathBuf,
    },
    /// The cache cannot be read or written.
    #[error("cannot use the cache of exported models, {}: {source}. Set SEQEMBED_CACHE to a \
             writable folder, or run `seqembed export CHECKPOINT -o DIR` and use DIR as the model", .path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The underlying error.
        source: std::io::Error,
    },
}

/// From which likeness on, between 0 and 1, a name is taken for a known one misspelt: `esm2_650M`
/// is `esm2_t33_650M_UR50D` (0.9), `bert` is not `IgBert` (0.889).
const ALIKE: f64 = 0.89;

/// The known name that a misspelt one resembles most, in brackets; empty if it resembles none.
#[must_use]
pub fn did_you_mean(name: &str) -> String {
    // `esmc_600m` is ESMC-600M.
    let plain = |name: &str| -> String {
        let letters = name.chars().filter(|letter| letter.is_alphanumeric());
        letters.flat_map(char::to_lowercase).collect()
    };
    let given = plain(name);
    let nearest = known_models()
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&plain(known.name), &given), known.name))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    nearest.map_or_else(String::new, |(_, known)| {
        format!(" (did you mean `{known}`?)")
    })
}

/// The cache of exported models: `$SEQEMBED_CACHE`, or else `seqembed` in the user's cache folder.
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

/// The hub model for a known name or `ORG/NAME`, with or without `@REVISION`.
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

/// Resolves a MODEL to its model folder, exporting it first if necessary; `say` receives progress
/// messages.
///
/// # Errors
/// [`ModelError`], whose message says what to do.
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
    let remembered = IndexEntry::read(&entry_path(&key_of_name(&model)));
    match remembered.and_then(|entry| entry.open()) {
        Some(Export::Whole(folder)) => return Ok(folder),
        Some(Export::Broken(why)) => say(&format!("the export in the cache is damaged: {why}")),
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

/// Explains why a folder is not a model, and names models in it if there are any.
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
        [first, ..] => format!(
            ": name one of the {} models in it, such as {first}",
            models.len()
        ),
    };
    match name
        .strip_prefix("models--")
        .map(|name| name.replacen("--", "/", 1))
    {
        Some(repository) if below != folder => {
            format!(
                "it is a repository folder of the hub's cache{there}, or use the name \
                     {repository}"
            )
        }
        _ if !models.is_empty() => format!("it is a folder that contains models{there}"),
        _ => format!(
            "it has neither {INFO_FILE} (an exported model) nor {CONFIG} (a Hugging Face folder)"
        ),
    }
}

/// Exports a downloaded model into the cache.
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

/// Verifies those files of a folder that link to blobs of the hub's cache, by the hashes in the
/// blobs' names.
///
/// # Errors
/// [`ModelError::Damaged`], or [`ModelError::NoModel`] if a file cannot be read.
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

/// The entry of the index for one checkpoint.
#[derive(Debug, Serialize, Deserialize)]
struct IndexEntry {
    /// The checkpoint's path, or its name on the hub.
    checkpoint: String,
    /// Version of the exporter.
    exporter: String,
    /// The checkpoint files that were exported.
    files: Vec<Fingerprint>,
    /// Name of the export's folder in `models/`.
    export: String,
    /// [`ModelInfo::identity`](seqembed_onnx::ModelInfo::identity) of the exported model, to notice
    /// if the folder now holds another one.
    #[serde(default)]
    identity: String,
}

/// Identifies a file without reading it (name, size and times), and a copy of it by its hash.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Fingerprint {
    name: String,
    bytes: u64,
    modified_ns: u64,
    /// Time of the last change of contents, name or owner (ctime), which cannot be set by users.
    #[serde(default)]
    changed_ns: Option<u64>,
    /// The inode number, which tells files in a container image apart, where all times may be
    /// equal.
    #[serde(default)]
    inode: Option<u64>,
    #[serde(default)]
    blake3: Option<String>,
}

impl Fingerprint {
    /// Whether the system reports the same name, size and times for both.
    fn is_same(&self, other: &Self) -> bool {
        self.is_as_long(other)
            && self.modified_ns == other.modified_ns
            && self.changed_ns == other.changed_ns
    }

    /// The same for files in different folders, whose inode numbers must match too.
    fn is_same_elsewhere(&self, other: &Self) -> bool {
        self.is_same(other) && self.inode == other.inode
    }

    fn is_as_long(&self, other: &Self) -> bool {
        self.name == other.name && self.bytes == other.bytes
    }
}

/// Whether two checkpoints have the same files.
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

/// The state of an export in the cache.
enum Export {
    /// Usable; the model folder.
    Whole(PathBuf),
    /// Damaged; the reason.
    Broken(String),
}

impl IndexEntry {
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// All entries of the index.
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

    /// The export, if it still exists and is of the current version.
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

    /// Whether the checkpoint still exists.
    fn has_checkpoint(&self) -> bool {
        let named = self.checkpoint.strip_prefix("hub:");
        match named.and_then(HubModel::parse) {
            Some(model) => Hub::from_env().snapshot(&model).is_some(),
            None => Path::new(&self.checkpoint).exists(),
        }
    }
}

/// Increased whenever old exports must not be used any more although their files are readable. 2:
/// checkpoints with weights that the graph does not use are refused. 3: an entry could name the
/// export of another model with the same weights. 4: unused weights outside the encoder are refused
/// too.
const EXPORTER: u32 = 4;

/// The version string of the exporter, as recorded in the index.
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

/// The files that are read for a MODEL given as a path; empty for a name.
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
    // The folder may also contain outputs of earlier runs.
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

/// The files of a checkpoint that an export reads.
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

/// The current state of the checkpoint's files, sorted by name.
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

/// Reads the files and fills in their hashes.
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

/// The cached export of a checkpoint, found by the checkpoint's path or else by its files, even if
/// they were moved. `None` if there is none.
fn find(checkpoint: &Path, key: &str, files: &[Fingerprint]) -> Option<Export> {
    let known = IndexEntry::read(&entry_path(key))
        .filter(|entry| all(&entry.files, files, Fingerprint::is_same))
        .and_then(|entry| entry.open());
    if known.is_some() {
        return known;
    }
    // The same files under another path, for example mounted in a container.
    let others: Vec<IndexEntry> = IndexEntry::all()
        .filter(|entry| all(&entry.files, files, Fingerprint::is_as_long))
        .collect();
    let same = |entry: &&IndexEntry| all(&entry.files, files, Fingerprint::is_same_elsewhere);
    let found = others.iter().filter(same).find_map(IndexEntry::open);
    if found.is_some() || others.is_empty() {
        return found;
    }
    // Copied or touched files: compare their hashes, which is faster than exporting them.
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
            // Saves the next start from reading the files. It is no error if the cache is
            // read-only.
            let _ = remember(key, &hashed, &entry.export, &entry.identity);
            Some(found)
        })
}

/// Records the export of a checkpoint in the index.
fn remember(
    key: &str,
    files: &[Fingerprint],
    export: &str,
    identity: &str,
) -> Result<(), ModelError> {
    let place = entry_path(key);
    let entry = IndexEntry {
        checkpoint: key.to_owned(),
        exporter: exporter(),
        files: files.to_vec(),
        export: export.to_owned(),
        identity: identity.to_owned(),
    };
    let text = serde_json::to_vec_pretty(&entry).expect("an entry is plain data");
    atomic_file::write(&place, &text).map_err(at(&place))
}

/// Records in the index which export a hub name resolved to, so that it is found even after the
/// download was deleted.
fn name(named: Option<&HubModel>, files: &[Fingerprint], found: &Path) {
    let Some(key) = named.map(key_of_name) else {
        return;
    };
    let export = found.file_name().unwrap_or_default().to_string_lossy();
    let known = IndexEntry::read(&entry_path(&key));
    if known.is_some_and(|entry| entry.export == export && entry.exporter == exporter()) {
        return;
    }
    if let Ok(model) = Model::open(found) {
        // It is no error if the cache is read-only, as long as the download exists.
        let _ = remember(&key, files, &export, &model.info().identity());
    }
}

/// The cached export of a checkpoint, created if necessary.
fn export_cached(
    checkpoint: &Path,
    named: Option<&HubModel>,
    say: &dyn Fn(&str),
) -> Result<PathBuf, ModelError> {
    let no_model = |source: std::io::Error| ModelError::NoModel {
        path: checkpoint.to_path_buf(),
        why: source.to_string(),
    };
    // Checked before the work of an export.
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
    // Damaged weights would become another model. All files are read for this check, so it is done
    // only if there is no export yet.
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
        Some(Export::Broken(why)) => say(&format!(
            "exporting again, because the export in the \
                                                   cache is damaged: {why}"
        )),
        None => {}
    }

    let shown = named.map_or_else(|| checkpoint.display().to_string(), ToString::to_string);
    say(&format!(
        "exporting {shown} (done once; stored in {})",
        models.display()
    ));
    // Remove what killed exports left, before as much space is needed again.
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
    if let Some(note) = licence_note(model.info()) {
        say(&note);
    }
    hash(&absolute, &mut files).map_err(no_model)?;
    let now = fingerprints(&absolute).map_err(no_model)?;
    if !all(&now, &files, Fingerprint::is_same) {
        return Err(ModelError::NoModel {
            path: checkpoint.to_path_buf(),
            why: "its files changed while they were being read; run the same command again"
                .to_owned(),
        });
    }
    let identity = model.info().identity();
    let export = folder_name(&model.info().name, &identity);
    let folder = models.join(&export);
    // The same model was already exported, from another place or by another process: use that
    // export.
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

/// A sentence on the licence of a model's weights if it forbids commercial use.
#[must_use]
pub fn licence_note(model: &ModelInfo) -> Option<String> {
    let publication = model.published()?.publication;
    publication.non_commercial().then(|| {
        format!(
            "The licence of {}, {}, does not allow commercial use of the weights.",
            model.name, publication.licence
        )
    })
}

/// Removes a damaged file of a model if it can be recreated: one derived from `weights.bin`, or an
/// export in the cache whose checkpoint still exists. Returns whether it did.
pub fn remove_damaged(error: &seqembed_onnx::Error, say: &dyn Fn(&str)) -> bool {
    let seqembed_onnx::Error::Damaged { path, .. } = error else {
        return false;
    };
    let (Some(name), Some(folder)) = (path.file_name(), path.parent()) else {
        return false;
    };
    let name = name.to_string_lossy();
    let again = || say(&format!("recreating a damaged file: {error}"));
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
        && IndexEntry::all().any(|entry| entry.export == export && entry.has_checkpoint());
    // Rename it first: processes that have it open can continue to read it.
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

/// Waits for other processes that export the same checkpoint. On a file system without locks, both
/// export it, and the first rename wins.
fn lock(path: &Path, say: &dyn Fn(&str)) -> Result<File, ModelError> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(at(path))?;
    if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
        say("waiting for another process to finish the export of the same model");
        let _ = file.lock();
    }
    Ok(file)
}

/// `NAME-HASH`, with a name that is safe for file systems: models that differ in anything that
/// affects the embeddings get different folders.
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

/// Whether a folder contains the same export.
fn same(folder: &Path, identity: &str) -> bool {
    Model::open(folder).is_ok_and(|there| there.info().identity() == identity)
}
