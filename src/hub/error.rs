//! Errors of fetching models from the hub.

use std::path::{Path, PathBuf};

use super::files::ADAPTER_CONFIG;

/// Why a model could not be fetched from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// `HF_HUB_OFFLINE` is set, and the cache has no complete copy.
    #[error("{model} is not in the cache ({}){commits}, and it cannot be downloaded because \
             HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE, or copy the model folder from another \
             machine and use that folder as the model", .cache.display())]
    Offline {
        /// The model as `ORG/NAME`, with its revision where that is not `main`.
        model: String,
        /// Folder of the hub's cache.
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
        /// What went wrong, as a message shows it.
        why: String,
        /// Folder of the hub's cache.
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
        /// HTTP status, with the hub's own explanation if it gives one.
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
        /// What went wrong, as a message shows it.
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
        /// Name of the file in the repository.
        file: String,
        /// The model as `ORG/NAME`, with its revision where that is not `main`.
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
        /// Name of the file in the repository.
        file: String,
        /// The model as `ORG/NAME`, with its revision where that is not `main`.
        model: String,
        /// Size in bytes given by the hub.
        announced: u64,
        /// Number of bytes received, as text.
        came: String,
    },
    /// The download took longer than the time limit.
    #[error(
        "the download did not finish within {seconds} s (option `timeout`){why}: run the same command \
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
        /// The model as `ORG/NAME`, with its revision where that is not `main`.
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
        /// The repository as `ORG/NAME`.
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
        /// What the operating system says.
        source: std::io::Error,
    },
}

/// Adds the path to an I/O error.
pub(super) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
    let path = path.to_path_buf();
    move |source| HubError::Io { path, source }
}
