//! The name of a model on the hub.

use std::path::Path;

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

/// The hub model of a snapshot folder in the cache.
#[must_use]
pub fn model_of(snapshot: &Path) -> Option<HubModel> {
    let commit = snapshot.file_name()?.to_str()?;
    let storage = snapshot.parent()?.parent()?.file_name()?.to_str()?;
    let repository = storage.strip_prefix("models--")?.replacen("--", "/", 1);
    HubModel::parse(&format!("{repository}@{commit}"))
}

/// Whether a revision is a commit's whole hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
