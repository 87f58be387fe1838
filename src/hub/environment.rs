//! Variables of the environment, as Python's `huggingface_hub` reads them.

use std::path::PathBuf;

/// The value of an environment variable, if it is set and not empty.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name)
        .ok()
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
}

/// A folder from an environment variable; a leading `~/` is the user's home.
pub(super) fn path_variable(name: &str) -> Option<PathBuf> {
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
