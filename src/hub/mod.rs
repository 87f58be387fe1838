//! The Hugging Face hub: a model's files, downloaded into the cache that Python's `huggingface_hub` uses too.
//!
//! The cache is `models--ORG--NAME/{blobs,refs,snapshots}` below `$HF_HUB_CACHE`; a snapshot's files are links to blobs named
//! by their hash. A snapshot that is complete is used without the network. A download goes to `blobs/HASH.incomplete` under
//! the lock that Python takes as well, is resumed where it broke off, and becomes the blob by rename once its hash is right:
//! SHA-256 for large files, git's SHA-1 for small ones, as the hub names them in its `ETag`.
//!
//! The token is sent to the endpoint alone, never to where it redirects.

mod download;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::atomic_file;

/// Where models come from unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// Tells that a repository is of an adapter, whatever else it holds.
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// The files of a tokenizer, as far as a repository has them.
const TOKENIZER_FILES: [&str; 6] = [
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
];

/// What a Hugging Face folder is known by.
pub const CONFIG: &str = "config.json";

/// The weights, the best form first: one file, or an index that names its shards.
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
    /// A branch, tag or commit; `main` unless something else was asked for.
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
            // The hub and the cache's folders have commits in lower case.
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

/// What happens during a download, for whoever shows it.
#[derive(Debug)]
pub enum Event<'a> {
    /// A file begins, at byte `done` if it was begun before.
    Begin {
        /// Its name in the repository.
        file: &'a str,
        /// Bytes that are there already.
        done: u64,
        /// Its size, if the hub tells.
        size: Option<u64>,
    },
    /// This many bytes of the file are there.
    Bytes(u64),
    /// The file is complete and its hash is right.
    End,
    /// Something went wrong that may pass: the next attempt begins after this wait.
    Retry {
        /// What went wrong.
        why: &'a str,
        /// How long until the next attempt.
        wait: Duration,
    },
    /// The hub announces no hash of this file, so nobody knows whether it is the right one.
    Unverified {
        /// Its name in the repository.
        file: &'a str,
        /// The hub, as messages show it.
        endpoint: &'a str,
    },
    /// Another process is downloading the same file.
    Waiting {
        /// Its name in the repository.
        file: &'a str,
    },
}

/// Why a model could not be had from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// `HF_HUB_OFFLINE` is set, and the cache has no complete copy.
    #[error("{model} is not in the cache ({}){commits}, and HF_HUB_OFFLINE forbids downloading it: unset HF_HUB_OFFLINE, or copy the model's folder from another machine and name that folder as the model", .cache.display())]
    Offline {
        /// The model.
        model: String,
        /// The hub's cache.
        cache: PathBuf,
        /// Which commits of it are there after all.
        commits: String,
    },
    /// No answer at all.
    #[error("the hub at {endpoint} can't be reached ({why}). Behind a firewall, set HTTPS_PROXY, or HF_ENDPOINT to a mirror; without any network, download the model elsewhere and copy its folder here (HF_HUB_CACHE is {}), then set HF_HUB_OFFLINE=1 or name that folder as the model", .cache.display())]
    Network {
        /// Where it was looked for.
        endpoint: String,
        /// What went wrong.
        why: String,
        /// The hub's cache.
        cache: PathBuf,
    },
    /// 401 or 403.
    #[error(
        "the hub refuses {what} ({status}): the model may be gated or private, or its name may be misspelt. {token}"
    )]
    Refused {
        /// The model or file.
        what: String,
        /// The status and what the hub says of it.
        status: String,
        /// What to do about the token.
        token: String,
    },
    /// 404: no such model, revision or file.
    #[error("there is no {what} at {endpoint} (404{said})")]
    NotFound {
        /// The model, revision or file.
        what: String,
        /// Where it was looked for.
        endpoint: String,
        /// What the hub says of it.
        said: String,
    },
    /// Any other refusal, after all attempts.
    #[error("{url} answers with {status}: try again later, or set HF_ENDPOINT to a mirror")]
    Status {
        /// The request.
        url: String,
        /// The answer.
        status: String,
    },
    /// The connection broke, and went on breaking.
    #[error(
        "the download of {url} broke off again and again ({why}): run the same command again, it goes on where it stopped"
    )]
    Broken {
        /// The request.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// An answer that no hub gives.
    #[error("{url} does not answer as a Hugging Face hub does: {why} (is HF_ENDPOINT right?)")]
    Answer {
        /// The request.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The bytes are not the ones that the hub announced.
    #[error(
        "{file} of {model} arrived damaged: its hash is {found}, not {expected}. It was discarded; run the same command again, and if that does not help, the mirror or proxy in between changes files"
    )]
    Hash {
        /// The file.
        file: String,
        /// The model.
        model: String,
        /// The hub's hash.
        expected: String,
        /// The file's.
        found: String,
    },
    /// As many bytes as the hub never announced.
    #[error(
        "{file} of {model}: the hub announces {announced} bytes, and {came} came, again and again: the hub, or a mirror or proxy in between, is at fault. What came was discarded; try again later, or set HF_ENDPOINT to a mirror"
    )]
    Size {
        /// The file.
        file: String,
        /// The model.
        model: String,
        /// Bytes that were announced.
        announced: u64,
        /// Bytes that came.
        came: String,
    },
    /// It took longer than was allowed.
    #[error(
        "it did not end within {seconds} s (--timeout){why}: run the same command again, it goes on where it stopped"
    )]
    Timeout {
        /// How long was allowed.
        seconds: u64,
        /// What went wrong on the way.
        why: String,
    },
    /// A repository that is no model for this program.
    #[error("{model} has no {missing} (it has: {has}): it is no model that can be used here")]
    Unusable {
        /// The model.
        model: String,
        /// What is missing.
        missing: String,
        /// What there is.
        has: String,
    },
    /// An adapter's repository.
    #[error(
        "{model} is an adapter (it has {ADAPTER_CONFIG}), whose weights are changes to those of another model. In Python, load it with PEFT, \
         then model.merge_and_unload().save_pretrained(FOLDER), put the tokenizer's files there too, and name that folder"
    )]
    Adapter {
        /// The repository.
        model: String,
    },
    /// A variable with a value that can't be used.
    #[error("{variable} is {value}: {why}")]
    Variable {
        /// Its name.
        variable: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// The disk refused.
    #[error("cannot write {}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Attaches a path to the system's error.
fn at(path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
    let path = path.to_path_buf();
    move |source| HubError::Io { path, source }
}

/// The least speed of a download: a slower connection is given up, and another one tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Bytes a second; 0: any speed will do.
    pub bytes: u64,
    /// For how long it must have been slower.
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

/// The hub and its cache, as the environment sets them.
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    token_from: String,
    offline: bool,
    pace: Pace,
    /// When downloads must have ended, and how long they had.
    deadline: Option<(Instant, Duration)>,
    /// Whether the hub ever answered: from then on a broken connection is worth repeating.
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

    /// The same, for downloads of a least speed, which end within a time.
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

    /// The cache's folder, whether it exists or not.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The folder of a model in the cache.
    fn storage(&self, model: &HubModel) -> PathBuf {
        self.cache
            .join(format!("models--{}", model.repository.replace('/', "--")))
    }

    /// The model's complete snapshot in the cache, if there is one.
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

    /// The commits whose complete snapshots are in the cache, where the model's revision is not known to be one of them.
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

    /// The model's folder in the cache, downloaded as far as it is not there. With `update` the hub is asked for a newer
    /// revision even if a complete one is there, and what is there is compared with its hash and downloaded again if it is damaged.
    ///
    /// # Errors
    /// [`HubError`]; what was downloaded so far is kept, and the next call goes on from there.
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
                        " (its commit {} is there: name it as {}@{})",
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

/// A variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name)
        .ok()
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
}

/// A folder from a variable, with `~/` for the user's home.
fn path_variable(name: &str) -> Option<PathBuf> {
    let Some(value) = variable(name) else {
        // A folder's name may be in another encoding than UTF-8.
        let value = std::env::var_os(name)?;
        return value.to_str().is_none().then(|| PathBuf::from(value));
    };
    match (value.strip_prefix("~/"), std::env::home_dir()) {
        (Some(below), Some(home)) => Some(home.join(below)),
        _ => Some(PathBuf::from(value)),
    }
}

/// The user's folder for caches: `$XDG_CACHE_HOME`, else `~/.cache`.
#[must_use]
pub fn user_cache() -> PathBuf {
    path_variable("XDG_CACHE_HOME")
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A file in the hub's cache that is not the one which its blob is named by.
#[derive(Debug)]
pub struct Damage {
    /// The file in its snapshot.
    pub file: PathBuf,
    /// The name of its blob, which is its right hash.
    pub expected: String,
    /// Its hash.
    pub found: String,
}

/// The first damaged file of those that an export of a folder reads. All that links to the hub's blobs is read for it.
///
/// # Errors
/// When a file can't be read.
pub fn damage(folder: &Path) -> std::io::Result<Option<Damage>> {
    for name in files_of(folder) {
        if let Some(damage) = download::damage(&folder.join(name))? {
            return Ok(Some(damage));
        }
    }
    Ok(None)
}

/// The hub's model whose snapshot a folder of the cache is.
#[must_use]
pub fn model_of(snapshot: &Path) -> Option<HubModel> {
    let commit = snapshot.file_name()?.to_str()?;
    let storage = snapshot.parent()?.parent()?.file_name()?.to_str()?;
    let repository = storage.strip_prefix("models--")?.replacen("--", "/", 1);
    HubModel::parse(&format!("{repository}@{commit}"))
}

/// The files of a Hugging Face folder that an export reads, as far as they are there.
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

/// A folder's files of a tokenizer.
pub fn tokenizer_files_of(folder: &Path) -> impl Iterator<Item = &'static str> {
    TOKENIZER_FILES
        .into_iter()
        .filter(move |name| folder.join(name).is_file())
}

/// Whether a folder holds all that a model needs: its config, all of its weights, its vocabulary.
fn is_complete(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    let weights = WEIGHTS.iter().find(|name| has(name)).is_some_and(|name| {
        !name.ends_with(".index.json")
            || shards(&folder.join(name))
                .is_some_and(|shards| shards.iter().all(|shard| has(shard)))
    });
    weights && has("config.json") && (has("vocab.txt") || has("tokenizer.json"))
}

/// The files that an index of weights names; `None` for a broken index, or one that points out of the folder.
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

/// Writes a small file by rename.
fn write_whole(path: &Path, content: &[u8]) -> Result<(), HubError> {
    let folder = atomic_file::folder_of(path);
    crate::folders::make(folder).map_err(at(folder))?;
    atomic_file::write(path, content).map_err(at(path))
}
