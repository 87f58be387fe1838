//! Opening a checkpoint: a Hugging Face folder, a weights file in one, or a fair-esm `.pt`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::names::{self, Names};
use super::settings::Settings;
use super::tensor::Tensor;
use super::{pytorch, safetensors};
use crate::error::Error;
use crate::files::{INFO_FILE, read_small};
use crate::shown;

/// An opened checkpoint: its contents are known, but no weights are read yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The folder or file that was named.
    pub path: PathBuf,
    /// Its configuration.
    pub settings: Settings,
    /// Its weights files.
    pub files: Vec<PathBuf>,
    /// Tensors by their names in the files.
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

/// Files that identify the folder of an adapter, by PEFT's and `AdapterHub`'s names.
const ADAPTER_FILES: [&str; 3] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
];
/// The longest is a few thousand bytes.
const LONGEST_CONFIG: u64 = 16 << 20;
/// One line a tensor.
const LONGEST_INDEX: u64 = 64 << 20;

/// `*.index.json` of a sharded checkpoint.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a Hugging Face folder, a weights file in one, or a fair-esm `.pt`.
    ///
    /// # Errors
    /// If it is none of these, or a header is invalid.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let kind = fs::metadata(path).map_err(Error::io(path, "open"))?;
        if kind.is_dir() {
            return Self::folder(path, None);
        }
        let config = path.with_file_name("config.json");
        let of_hub = path
            .extension()
            .is_some_and(|extension| extension == "safetensors" || extension == "bin");
        if of_hub {
            if !config.is_file() {
                return Err(Error::NotACheckpoint {
                    path: path.to_path_buf(),
                    why: "there is no config.json in the same folder".to_owned(),
                });
            }
            let folder = path.parent().unwrap_or(Path::new("."));
            return Self::folder(folder, Some(path));
        }
        let archive = pytorch::read(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            settings: Settings::FairEsm {
                path: path.to_path_buf(),
                settings: archive.settings,
            },
            files: vec![path.to_path_buf()],
            tensors: archive.tensors,
        })
    }

    fn folder(folder: &Path, file: Option<&Path>) -> Result<Self, Error> {
        let not = |why: String| Error::NotACheckpoint {
            path: folder.to_path_buf(),
            why,
        };
        // transformers would load the model that the adapter names and apply the adapter to it, and
        // never use other files in this folder.
        if let Some(file) = adapter_file(folder) {
            return Err(Error::Adapter {
                path: folder.to_path_buf(),
                file,
            });
        }
        let path = folder.join("config.json");
        if !path.is_file() {
            let why = if folder.join(INFO_FILE).is_file() {
                "the folder is already an exported model"
            } else {
                "the folder has no config.json"
            };
            return Err(not(why.to_owned()));
        }
        let text = read_small(&path, LONGEST_CONFIG)?;
        let config = serde_json::from_slice(&text).map_err(Error::json(&path))?;
        let (files, index) = match file {
            Some(file) => (vec![file.to_path_buf()], None),
            None => weights_files(folder)?.ok_or_else(|| {
                not("the folder has neither model.safetensors nor pytorch_model.bin".to_owned())
            })?,
        };
        let mut tensors = BTreeMap::new();
        for file in &files {
            let found = if file
                .extension()
                .is_some_and(|extension| extension == "safetensors")
            {
                safetensors::read(file)?
            } else {
                pytorch::read(file)?.tensors
            };
            tensors.extend(found);
        }
        if let Some((index, map)) = index
            && let Some((tensor, file)) = map.iter().find(|(tensor, file)| {
                tensors
                    .get(*tensor)
                    .is_none_or(|found| found.path != folder.join(file))
            })
        {
            return Err(Error::malformed(
                &index,
                "shard index",
                format!(
                    "it lists tensor {} in {}, but that file does not have it",
                    shown::name(tensor),
                    shown::name(file)
                ),
            ));
        }
        Ok(Self {
            path: folder.to_path_buf(),
            settings: Settings::HuggingFace { path, config },
            files,
            tensors,
        })
    }

    /// Names, as the files spell them, and shapes of all tensors.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()))
    }

    /// Whether the base model is a part of a larger one, by the names.
    #[must_use]
    pub fn is_part(&self, names: &Names) -> bool {
        names::is_part(names, self.tensors.keys().map(String::as_str))
    }
}

/// The file that identifies a folder as that of an adapter, if there is one.
#[must_use]
pub fn adapter_file(folder: &Path) -> Option<&'static str> {
    let mut files = ADAPTER_FILES.into_iter();
    files.find(|file| folder.join(file).is_file())
}

/// Whether a name is that of a file in a folder, and can be shown.
fn is_plain(name: &str) -> bool {
    const LONGEST: usize = 255;
    !matches!(name, "" | "." | "..")
        && name.len() <= LONGEST
        && !name.contains(|c: char| matches!(c, '/' | '\\') || c.is_control())
}

/// The weights files of a folder, the better format first, with the index that names them if there
/// is one.
#[expect(
    clippy::type_complexity,
    reason = "the only caller destructures it immediately"
)]
fn weights_files(
    folder: &Path,
) -> Result<Option<(Vec<PathBuf>, Option<(PathBuf, BTreeMap<String, String>)>)>, Error> {
    for name in ["model.safetensors", "pytorch_model.bin"] {
        let whole = folder.join(name);
        if whole.is_file() {
            return Ok(Some((vec![whole], None)));
        }
        let index = folder.join(format!("{name}.index.json"));
        if !index.is_file() {
            continue;
        }
        let text = read_small(&index, LONGEST_INDEX)?;
        let map = serde_json::from_slice::<ShardIndex>(&text)
            .map_err(Error::json(&index))?
            .weight_map;
        let shards: BTreeSet<&String> = map.values().collect();
        if let Some(outside) = shards.iter().find(|shard| !is_plain(shard)) {
            return Err(Error::malformed(
                &index,
                "shard index",
                format!("{} is not a file of this folder", shown::name(outside)),
            ));
        }
        let files = shards.into_iter().map(|shard| folder.join(shard)).collect();
        return Ok(Some((files, Some((index, map)))));
    }
    Ok(None)
}
