//! The Hugging Face hub: downloads the files of a model into the cache shared with Python's
//! `huggingface_hub`.
//!
//! The cache is `models--ORG--NAME/{blobs,refs,snapshots}` below `$HF_HUB_CACHE`; a snapshot's
//! files are links to blobs named by their hash. A complete snapshot is used without the network. A
//! download goes to `blobs/HASH.incomplete` under the same lock that Python takes, resumes where it
//! was interrupted, and is renamed to the blob once its hash is verified: SHA-256 for large files,
//! git's SHA-1 for small ones, as given in the hub's `ETag`.
//!
//! The token is sent only to the endpoint itself, never to a redirect target.

mod download;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::atomic_file;

/// The default of `HF_ENDPOINT`.
const ENDPOINT: &str = "https://huggingface.co";

/// A repository with this file is an adapter, whatever else it contains.
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Tokenizer files, downloaded if the repository has them.
const TOKENIZER_FILES: [&str; 6] = [
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
];

/// The file that identifies a Hugging Face folder.
pub const CONFIG: &str = "config.json";

/// Weights files in order of preference: a single file, or an index that names its shards.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// A model on the hub: `ORG/NAME`, and a branch, tag or commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// `ORG/NAME`.
    pub repository: String,
    /// A branch, tag or commit; `main` by default.
    pub revision: String,
}

impl HubModel {
    /// Reads `ORG/NAME` or `ORG/NAME@REVISION`; `None` for anything else.
    #[must_use]
    pub fn parse(spec: &str) -> Option<Self> {
        let (repository, revision) = spec.split_once('@').unwrap_or((spec, "main"));
        let (org, name) = repository.split_once('/')?;
        let word = |word: &str| {
            !word.is_empty()
                && !word.starts_with(['.', '-'])
                && !word.contains("..")
                && word
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let good = word(org) && word(name) && revision.split('/').all(word);
        good.then(|| Self {
            repository: repository.to_owned(),
            // The hub and the cache's folders write commits in lower case.
            revision: if is_commit(revision) {
                revision.to_ascii_lowercase()
            } else {
                revision.to_owned()
            },
        })
    }
}

impl std::fmt::Display for HubModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.repository)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

/// Progress of a download.
#[derive(Debug)]
pub enum Event<'a> {
    /// The download of a file starts, or resumes at byte `done`.
    Begin {
        /// Its name in the repository.
        file: &'a str,
        /// Bytes already downloaded.
        done: u64,
        /// Its size in bytes, if the hub gives it.
        size: Option<u64>,
    },
    /// Total bytes of the file downloaded so far.
    Bytes(u64),
    /// The file is complete, and its hash was verified if the hub gives one.
    End,
    /// A temporary failure: the next attempt starts after `wait`.
    Retry {
        /// What went wrong.
        why: &'a str,
        /// Time until the next attempt.
        wait: Duration,
    },
    /// The hub gives no hash for this file, so it could not be verified.
    Unverified {
        /// Its name in the repository.
        file: &'a str,
        /// The URL of the hub, without secrets.
        endpoint: &'a str,
    },
    /// Another process is downloading the same file.
    Waiting {
        /// Its name in the repository.
        file: &'a str,
    },
}

/// Why a model could not be fetched from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// `HF_HUB_OFFLINE` is set, and the cache has no complete copy.
    #[error("{model} is not in the cache ({}){commits}, and it cannot be downloaded because \
             HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE, or copy the model folder from another \
             machine and use that folder as the model", .cache.display())]
    Offline {
        /// The model.
        model: String,
        /// The hub's cache.
        cache: PathBuf,
        /// Which commits of the model are in the cache, as text for the message; empty if there are
        /// none.
        commits: String,
    },
    /// No response from the hub.
    #[error("the hub at {endpoint} cannot be reached ({why}). Behind a firewall, set HTTPS_PROXY, \
             or set HF_ENDPOINT to a mirror. Without a network, download the model on another \
             machine and copy its folder here (HF_HUB_CACHE is {}), then set HF_HUB_OFFLINE=1 or \
             use that folder as the model", .cache.display())]
    Network {
        /// The URL of the hub, without secrets.
        endpoint: String,
        /// What went wrong.
        why: String,
        /// The hub's cache.
        cache: PathBuf,
    },
    /// HTTP status 401 or 403.
    #[error(
        "the hub refused access to {what} ({status}): the model may be gated or private, or its \
         name may be misspelt. {token}"
    )]
    Refused {
        /// The model or file.
        what: String,
        /// The HTTP status and the hub's message.
        status: String,
        /// Advice about the token.
        token: String,
    },
    /// HTTP status 404: no such model, revision or file.
    #[error("there is no {what} at {endpoint} (404{said})")]
    NotFound {
        /// The model, revision or file.
        what: String,
        /// The URL of the hub, without secrets.
        endpoint: String,
        /// The hub's message, if any.
        said: String,
    },
    /// Any other HTTP error, after all attempts.
    #[error("{url} returned HTTP status {status}: try again later, or set HF_ENDPOINT to a mirror")]
    Status {
        /// The URL that was requested, without secrets.
        url: String,
        /// The HTTP status.
        status: String,
    },
    /// The connection failed repeatedly.
    #[error(
        "the download of {url} failed repeatedly ({why}): run the same command again to continue \
         where it stopped"
    )]
    Broken {
        /// The URL that was requested, without secrets.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// A response that a Hugging Face hub would not give.
    #[error("the response of {url} is not that of a Hugging Face hub: {why} (check HF_ENDPOINT)")]
    Answer {
        /// The URL that was requested, without secrets.
        url: String,
        /// Why it is invalid.
        why: String,
    },
    /// The downloaded bytes do not have the hash that the hub gives.
    #[error(
        "{file} of {model} was damaged in the download: its hash is {found}, not {expected}. The \
         file was discarded; run the same command again. If it fails again, a mirror or proxy may \
         be changing the files"
    )]
    Hash {
        /// The file.
        file: String,
        /// The model.
        model: String,
        /// The hash given by the hub.
        expected: String,
        /// The hash of the downloaded file.
        found: String,
    },
    /// The hub repeatedly sent more or fewer bytes than it announced.
    #[error(
        "{file} of {model}: the hub announced {announced} bytes but repeatedly sent {came}; the \
         fault lies with the hub, or with a mirror or proxy. The download was discarded; try again \
         later, or set HF_ENDPOINT to a mirror"
    )]
    Size {
        /// The file.
        file: String,
        /// The model.
        model: String,
        /// Size in bytes given by the hub.
        announced: u64,
        /// Number of bytes received, as text.
        came: String,
    },
    /// The download took longer than the time limit.
    #[error(
        "the download did not finish within {seconds} s (--timeout){why}: run the same command \
         again to continue where it stopped"
    )]
    Timeout {
        /// The time limit in seconds.
        seconds: u64,
        /// The last error, if any.
        why: String,
    },
    /// The repository does not contain a model that seqembed can use.
    #[error("{model} cannot be used, because the repository has no {missing} (it has {has})")]
    Unusable {
        /// The model.
        model: String,
        /// The file that is missing.
        missing: String,
        /// The files in the repository.
        has: String,
    },
    /// The repository is an adapter (PEFT), not a complete model.
    #[error(
        "{model} is an adapter (it has {ADAPTER_CONFIG}): its weights only modify those of \
         another model. In Python, load it with PEFT, call \
         model.merge_and_unload().save_pretrained(FOLDER), copy the tokenizer files to FOLDER, and \
         use FOLDER as the model"
    )]
    Adapter {
        /// The repository.
        model: String,
    },
    /// An environment variable has an invalid value.
    #[error("{variable} is set to {value}: {why}")]
    Variable {
        /// Name of the variable.
        variable: String,
        /// Value of the variable, without secrets.
        value: String,
        /// Why it is invalid.
        why: String,
    },
    /// A file in the cache cannot be written.
    #[error("cannot write {}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Adds the path to an I/O error.
fn at(path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
    let path = path.to_path_buf();
    move |source| HubError::Io { path, source }
}

/// The minimum speed of a download: slower connections are closed and reopened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Bytes per second; 0 accepts any speed.
    pub bytes: u64,
    /// How long a connection may be slower.
    pub time: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            bytes: 1000,
            time: Duration::from_secs(30),
        }
    }
}

/// The hub and its cache, configured by environment variables.
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    token_from: String,
    offline: bool,
    pace: Pace,
    /// The deadline of downloads, and the time limit it was computed from.
    deadline: Option<(Instant, Duration)>,
    /// Whether the hub has ever responded: only then are failed connections retried.
    answered: Cell<bool>,
}

impl Hub {
    /// Reads `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH` and `HF_HUB_OFFLINE`, as Python's
    /// `huggingface_hub` does.
    #[must_use]
    pub fn from_env() -> Self {
        let home = path_variable("HF_HOME").unwrap_or_else(|| user_cache().join("huggingface"));
        let cache = path_variable("HF_HUB_CACHE")
            .or_else(|| path_variable("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| home.join("hub"));
        let token_file = path_variable("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let from_variable = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
            .iter()
            .find_map(|name| Some((variable(name)?, (*name).to_owned())));
        let from_file = || {
            let token = std::fs::read_to_string(&token_file).ok()?.trim().to_owned();
            (!token.is_empty()).then(|| (token, token_file.display().to_string()))
        };
        let (token, token_from) = from_variable.or_else(from_file).unzip();
        let truth = |value: String| {
            matches!(
                value.to_ascii_uppercase().as_str(),
                "1" | "ON" | "YES" | "TRUE"
            )
        };
        Self {
            endpoint: variable("HF_ENDPOINT").map_or(ENDPOINT.to_owned(), |url| {
                url.trim_end_matches('/').to_owned()
            }),
            cache,
            token,
            token_from: token_from.unwrap_or_default(),
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
                .iter()
                .any(|name| variable(name).is_some_and(truth)),
            pace: Pace::default(),
            deadline: None,
            answered: Cell::new(false),
        }
    }

    /// Sets the minimum speed and the time limit of downloads.
    #[must_use]
    pub fn within(self, pace: Pace, timeout: Option<Duration>) -> Self {
        let deadline =
            timeout.and_then(|timeout| Some((Instant::now().checked_add(timeout)?, timeout)));
        Self {
            pace,
            deadline,
            ..self
        }
    }

    /// The path of the cache, which need not exist.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The folder of a model in the cache (`models--ORG--NAME`).
    fn storage(&self, model: &HubModel) -> PathBuf {
        self.cache
            .join(format!("models--{}", model.repository.replace('/', "--")))
    }

    /// The model's snapshot in the cache, if it is complete.
    #[must_use]
    pub fn snapshot(&self, model: &HubModel) -> Option<PathBuf> {
        let storage = self.storage(model);
        let commit = if is_commit(&model.revision) {
            model.revision.clone()
        } else {
            std::fs::read_to_string(storage.join("refs").join(&model.revision))
                .ok()?
                .trim()
                .to_owned()
        };
        let folder = storage
            .join("snapshots")
            .join(is_commit(&commit).then_some(commit)?);
        is_complete(&folder).then_some(folder)
    }

    /// The commits with a complete snapshot in the cache, for a revision that the cache cannot map
    /// to a commit.
    #[must_use]
    pub fn commits(&self, model: &HubModel) -> Vec<String> {
        if is_commit(&model.revision) {
            return Vec::new();
        }
        let snapshots = self.storage(model).join("snapshots");
        let entries = std::fs::read_dir(snapshots).into_iter().flatten().flatten();
        let mut commits: Vec<String> = entries
            .filter(|entry| is_complete(&entry.path()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_commit(name))
            .collect();
        commits.sort();
        commits
    }

    /// Returns the model's folder in the cache after downloading what is missing. With `update`,
    /// checks the hub for a newer revision even if the snapshot is complete, verifies the files in
    /// the cache by their hashes, and downloads damaged ones again.
    ///
    /// # Errors
    /// [`HubError`]; partial downloads are kept, and the next call continues from there.
    pub fn fetch(
        &self,
        model: &HubModel,
        update: bool,
        events: &mut dyn FnMut(&Event<'_>),
    ) -> Result<PathBuf, HubError> {
        if let Some(folder) = self.snapshot(model).filter(|_| !update || self.offline) {
            return Ok(folder);
        }
        if self.offline {
            return Err(HubError::Offline {
                model: model.to_string(),
                cache: self.cache.clone(),
                commits: match self.commits(model).as_slice() {
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
        let mut download = download::Download::new(self, model, update, events)?;
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

        let folder = self
            .storage(model)
            .join("snapshots")
            .join(download.commit());
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
            let reference = self.storage(model).join("refs").join(&model.revision);
            write_whole(&reference, download.commit().as_bytes())?;
        }
        Ok(folder)
    }
}

/// The value of an environment variable, if it is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name)
        .ok()
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
}

/// A folder from an environment variable; a leading `~/` is the user's home.
fn path_variable(name: &str) -> Option<PathBuf> {
    let Some(value) = variable(name) else {
        // The path need not be UTF-8.
        let value = std::env::var_os(name)?;
        return value.to_str().is_none().then(|| PathBuf::from(value));
    };
    match (value.strip_prefix("~/"), std::env::home_dir()) {
        (Some(below), Some(home)) => Some(home.join(below)),
        _ => Some(PathBuf::from(value)),
    }
}

/// The user's cache folder: `$XDG_CACHE_HOME`, or else `~/.cache`.
#[must_use]
pub fn user_cache() -> PathBuf {
    path_variable("XDG_CACHE_HOME")
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A damaged file in the hub's cache: its hash differs from the name of its blob.
#[derive(Debug)]
pub struct Damage {
    /// Path of the file in its snapshot.
    pub file: PathBuf,
    /// The name of its blob, which is the expected hash.
    pub expected: String,
    /// Its hash.
    pub found: String,
}

/// The first damaged file among those that an export of the folder reads. Reads every file that
/// links to a blob of the hub's cache.
///
/// # Errors
/// If a file cannot be read.
pub fn damage(folder: &Path) -> std::io::Result<Option<Damage>> {
    for name in files_of(folder) {
        if let Some(damage) = download::damage(&folder.join(name))? {
            return Ok(Some(damage));
        }
    }
    Ok(None)
}

/// The hub model of a snapshot folder in the cache.
#[must_use]
pub fn model_of(snapshot: &Path) -> Option<HubModel> {
    let commit = snapshot.file_name()?.to_str()?;
    let storage = snapshot.parent()?.parent()?.file_name()?.to_str()?;
    let repository = storage.strip_prefix("models--")?.replacen("--", "/", 1);
    HubModel::parse(&format!("{repository}@{commit}"))
}

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
fn is_complete(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    let weights = WEIGHTS.iter().find(|name| has(name)).is_some_and(|name| {
        !name.ends_with(".index.json")
            || shards(&folder.join(name))
                .is_some_and(|shards| shards.iter().all(|shard| has(shard)))
    });
    weights && has("config.json") && (has("vocab.txt") || has("tokenizer.json"))
}

/// The shards named by an index of weights; `None` if the index is invalid or names files outside
/// the folder.
fn shards(index: &Path) -> Option<BTreeSet<String>> {
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

/// Writes a small file atomically, by rename.
fn write_whole(path: &Path, content: &[u8]) -> Result<(), HubError> {
    let folder = atomic_file::folder_of(path);
    crate::folders::make(folder).map_err(at(folder))?;
    atomic_file::write(path, content).map_err(at(path))
}
