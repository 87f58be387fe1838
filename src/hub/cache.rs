//! The hub and its cache, which is shared with Python's `huggingface_hub`.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::environment::{path_variable, user_cache, variable};
use super::event::Pace;
use super::files::is_complete;
use super::model::{HubModel, is_commit};

/// The default of `HF_ENDPOINT`.
const ENDPOINT: &str = "https://huggingface.co";

/// The hub and its cache, configured by environment variables.
pub struct Hub {
    pub(super) endpoint: String,
    pub(super) cache: PathBuf,
    pub(super) token: Option<String>,
    pub(super) token_from: String,
    pub(super) offline: bool,
    pub(super) pace: Pace,
    /// The deadline of downloads, and the time limit it was computed from.
    pub(super) deadline: Option<(Instant, Duration)>,
    /// Whether the hub has ever responded: only then are failed connections retried.
    pub(super) answered: Cell<bool>,
}

impl Hub {
    /// Reads `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH` and
    /// `HF_HUB_OFFLINE`, as Python's `huggingface_hub` does.
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
    pub(super) fn storage(&self, model: &HubModel) -> PathBuf {
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
}
