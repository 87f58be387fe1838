//! Checkpoints: all formats give a list of tensors, each a run of bytes in a file, and settings.

pub mod leftovers;
pub mod pickle;
pub mod pytorch;
pub mod safetensors;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde::Deserialize;
use serde_json::Value;

use crate::error::Error;
use crate::families::Description;
use crate::families::esm2::rotary_frequencies;
use crate::files::read_small;
use crate::model::INFO_FILE;
use crate::shown;
use crate::weights::table::{Input, Weights};

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 64-bit floats; rounded to 32 bits.
    F64,
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// Something else, by its name and bytes; never read.
    Other(&'static str, usize),
}

impl Dtype {
    /// Bytes of a value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(_, bytes) => bytes,
        }
    }
}

/// Where a tensor stands: little-endian values, row after row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// The file.
    pub path: PathBuf,
    /// Its number format.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its first byte in the file.
    pub offset: u64,
}

/// A setting inside a fair-esm file.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Text.
    Text(String),
}

/// A model's configuration, as its checkpoint has it.
#[derive(Debug, Clone, PartialEq)]
pub enum Settings {
    /// `config.json`.
    HuggingFace {
        /// The file.
        path: PathBuf,
        /// What it says.
        config: Value,
    },
    /// The Namespace inside a `.pt`, empty when there is none.
    FairEsm {
        /// The file.
        path: PathBuf,
        /// What it says.
        settings: BTreeMap<String, Scalar>,
    },
}

/// A checkpoint, opened: what it holds is known, no weight is read yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The folder or file that was named.
    pub path: PathBuf,
    /// Its configuration.
    pub settings: Settings,
    /// Its weights files.
    pub files: Vec<PathBuf>,
    /// Tensors by the names that the files give them.
    tensors: BTreeMap<String, Tensor>,
}

/// What a folder of an adapter holds instead of a model's weights, or beside them: PEFT's and `AdapterHub`'s names.
const ADAPTER_FILES: [&str; 3] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
];
/// The longest is a few thousand bytes.
const LONGEST_CONFIG: u64 = 16 << 20;
/// One line a tensor.
const LONGEST_INDEX: u64 = 64 << 20;

/// By how much of itself a frequency may be off that was stored in 16 bits once: a little more than half a unit of its last place.
const HALF_ROUNDING: f32 = 1e-3;
/// The same where it still is in bfloat16.
const BF16_ROUNDING: f32 = 4e-3;
/// Half of the least number of half precision.
const HALF_SUBNORMAL: f32 = 3e-8;

/// `*.index.json` of a sharded checkpoint.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a Hugging Face folder, a weights file in one, or a fair-esm `.pt`.
    ///
    /// # Errors
    /// When it is none of these, or a header is unsound.
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
                    why: "there is no config.json beside it".to_owned(),
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
        // transformers would load the model that the adapter names, and the adapter onto it: never what else lies here.
        if let Some(file) = adapter_file(folder) {
            return Err(Error::Adapter {
                path: folder.to_path_buf(),
                file,
            });
        }
        let path = folder.join("config.json");
        if !path.is_file() {
            let why = if folder.join(INFO_FILE).is_file() {
                "the folder is an exported model already"
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
                    "it says that tensor {} is in {}, where it is not",
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
    pub fn is_part(&self, description: &dyn Description) -> bool {
        leftovers::is_part(description, self.tensors.keys().map(String::as_str))
    }

    /// Compares rotary frequencies that the files hold with those that the graph computes with. Some releases of transformers take the
    /// one, some the other: where they differ, nobody can tell which the model was trained with.
    ///
    /// # Errors
    /// [`Error::Frequencies`] when one differs by more than rounding, [`Error::Shape`] when there are more or fewer than of a head.
    pub fn check_frequencies(&self, description: &dyn Description) -> Result<(), Error> {
        let sizes = description.sizes();
        let Some(base) = sizes.rotary_base else {
            return Ok(());
        };
        let computed = rotary_frequencies(sizes.head(), base);
        let names = self.tensors.keys();
        let stored = Canonical {
            checkpoint: self,
            names: names
                .filter(|name| leftovers::are_frequencies(description, name))
                .map(|name| (name.clone(), name.as_str()))
                .collect(),
        };
        for (name, _) in stored.names() {
            let input = Input::new(name.to_owned(), &[computed.len()]);
            stored.check(&input)?;
            let (_, tensor) = stored.find(&input)?;
            let bound = match tensor.dtype {
                Dtype::Bf16 => BF16_ROUNDING,
                _ => HALF_ROUNDING,
            };
            let mut left = computed.iter();
            stored.stream(&input, &mut |values| {
                for (&stored, &computed) in values.iter().zip(left.by_ref()) {
                    let is_near = (stored - computed).abs() <= computed * bound + HALF_SUBNORMAL;
                    if !is_near {
                        return Err(Error::Frequencies {
                            path: tensor.path.clone(),
                            tensor: name.to_owned(),
                            stored,
                            computed,
                            base,
                        });
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The encoder's tensors under names that do not depend on who wrote the file, as an architecture spells them.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] when two tensors have one name then.
    pub fn canonical(&self, description: &dyn Description) -> Result<Canonical<'_>, Error> {
        let mut names: BTreeMap<String, &str> = BTreeMap::new();
        let part = self.is_part(description);
        for name in self.tensors.keys() {
            if let Some(canonical) = leftovers::canonical(description, name, part)
                && let Some(first) = names.insert(canonical, name)
            {
                return Err(Error::Ambiguous {
                    path: self.path.clone(),
                    first: first.to_owned(),
                    second: name.clone(),
                });
            }
        }
        Ok(Canonical {
            checkpoint: self,
            names,
        })
    }
}

/// The file that tells that a folder is of an adapter, if there is one.
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

/// The weights files of a folder, the better format first, with the index that names them if there is one.
#[expect(clippy::type_complexity, reason = "one caller takes it apart at once")]
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

/// A checkpoint's tensors by names that do not depend on who wrote it.
#[derive(Debug)]
pub struct Canonical<'checkpoint> {
    checkpoint: &'checkpoint Checkpoint,
    names: BTreeMap<String, &'checkpoint str>,
}

impl Canonical<'_> {
    /// All canonical names, and what the files say instead.
    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.names
            .iter()
            .map(|(canonical, name)| (canonical.as_str(), *name))
    }

    fn find(&self, input: &Input) -> Result<(&str, &Tensor), Error> {
        self.names
            .get(&input.name)
            .and_then(|name| Some((*name, self.checkpoint.tensors.get(*name)?)))
            .ok_or_else(|| Error::MissingTensor {
                path: self.checkpoint.path.clone(),
                tensor: input.name.clone(),
            })
    }
}

impl Weights for Canonical<'_> {
    fn check(&self, input: &Input) -> Result<(), Error> {
        let (name, tensor) = self.find(input)?;
        if tensor.shape != input.shape {
            return Err(Error::Shape {
                path: tensor.path.clone(),
                tensor: name.to_owned(),
                expected: input.shape.clone(),
                found: tensor.shape.clone(),
            });
        }
        if let Dtype::Other(dtype, _) = tensor.dtype {
            return Err(Error::Dtype {
                path: tensor.path.clone(),
                tensor: name.to_owned(),
                dtype: dtype.to_owned(),
            });
        }
        Ok(())
    }

    fn stream(
        &self,
        input: &Input,
        take: &mut dyn FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (_, tensor) = self.find(input)?;
        let failed = || Error::io(&tensor.path, "read");
        let mut file = File::open(&tensor.path).map_err(failed())?;
        file.seek(SeekFrom::Start(tensor.offset))
            .map_err(failed())?;
        let mut left = tensor.shape.iter().product::<usize>() * tensor.dtype.bytes();
        // A multiple of every width.
        let mut bytes = vec![0; left.min(1 << 20)];
        let mut values = Vec::with_capacity(bytes.len() / tensor.dtype.bytes());
        while left > 0 {
            let piece = left.min(bytes.len());
            file.read_exact(&mut bytes[..piece]).map_err(failed())?;
            values.clear();
            decode(tensor.dtype, &bytes[..piece], &mut values);
            take(&values)?;
            left -= piece;
        }
        Ok(())
    }
}

/// Little-endian numbers -> f32.
fn decode(dtype: Dtype, bytes: &[u8], values: &mut Vec<f32>) {
    match dtype {
        Dtype::F32 => {
            let (words, _) = bytes.as_chunks();
            values.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding to f32 is what is wanted"
        )]
        Dtype::F64 => {
            let (words, _) = bytes.as_chunks();
            values.extend(words.iter().map(|word| f64::from_le_bytes(*word) as f32));
        }
        Dtype::F16 => {
            let (words, _) = bytes.as_chunks();
            values.extend(words.iter().map(|word| f16::from_le_bytes(*word).to_f32()));
        }
        Dtype::Bf16 => {
            let (words, _) = bytes.as_chunks();
            values.extend(words.iter().map(|word| bf16::from_le_bytes(*word).to_f32()));
        }
        // Refused by `check`.
        Dtype::Other(..) => {}
    }
}

/// Where a tensor ends, checked against the file's length.
fn check_end(path: &Path, name: &str, tensor: &Tensor, length: u64) -> Result<(), Error> {
    let needed = tensor
        .shape
        .iter()
        .try_fold(tensor.dtype.bytes() as u64, |bytes, &axis| {
            bytes.checked_mul(axis as u64)
        })
        .and_then(|bytes| bytes.checked_add(tensor.offset))
        .ok_or_else(|| {
            Error::malformed(
                path,
                "weights",
                format!(
                    "tensor {} of shape {:?} is larger than any file",
                    shown::name(name),
                    tensor.shape
                ),
            )
        })?;
    if needed > length {
        return Err(Error::Truncated {
            path: path.to_path_buf(),
            tensor: name.to_owned(),
            needed,
            length,
        });
    }
    Ok(())
}
