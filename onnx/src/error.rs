//! What can go wrong between a checkpoint and a graph.

use std::path::{Path, PathBuf};

use crate::checkpoint::pickle::PickleError;
use crate::checkpoint::remedy::Remedy;
use crate::graph::request::{GraphKind, Precision};
use crate::shown;

/// Why a checkpoint could not be read, or a model not be written or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A JSON file that is none, or that lacks something.
    #[error("{}: {}", path.display(), shown::message(&source.to_string()))]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// Neither of the known kinds of checkpoint.
    #[error(
        "{}: {why}; a checkpoint is a Hugging Face folder (config.json with model.safetensors or pytorch_model.bin, \
         whole or sharded) or a fair-esm .pt file", path.display()
    )]
    NotACheckpoint {
        /// The file or folder.
        path: PathBuf,
        /// What was found instead.
        why: String,
    },
    /// A folder of an adapter, whatever else lies in it.
    #[error(
        "{}: it is an adapter's (there is {file}), whose weights are changes to those of another model. In Python, load it with PEFT, then \
         model.merge_and_unload().save_pretrained(FOLDER), put the tokenizer's files there too, and name that folder", path.display()
    )]
    Adapter {
        /// The folder.
        path: PathBuf,
        /// The file that tells.
        file: &'static str,
    },
    /// A few lines of Git LFS where a file should be.
    #[error(
        "{}: it is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository, or download it with `seqembed fetch`",
        path.display()
    )]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// Tensors of the encoder that the graph would leave out.
    #[error(
        "{}: the graph has no place for {count} of {} tensors ({}{}), so the vectors {} be this model's: {help}",
        path.display(), help.whose(), shown::name(first),
        second.as_ref().map_or_else(String::new, |second| format!(", {}{}", shown::name(second), if *count > 2 { ", ..." } else { "" })),
        help.effect()
    )]
    Leftover {
        /// The checkpoint.
        path: PathBuf,
        /// How many there are.
        count: usize,
        /// The first, as the file spells it.
        first: String,
        /// Another one.
        second: Option<String>,
        /// What helps.
        help: Remedy,
    },
    /// A configuration that describes no model that can be exported.
    #[error("{}: {}", path.display(), shown::message(message))]
    Config {
        /// The file with the configuration.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A weight that the architecture needs is in none of the files.
    #[error("{}: the checkpoint has no tensor {}", path.display(), shown::name(tensor))]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor, in Hugging Face's spelling.
        tensor: String,
    },
    /// A weight whose shape is not the one that the configuration asks for.
    #[error(
        "{}: tensor {} has shape {found:?}, but the configuration asks for {expected:?}: weights and configuration \
         are not of the same model", path.display(), shown::name(tensor)
    )]
    Shape {
        /// The weights file.
        path: PathBuf,
        /// The tensor, as the file spells it.
        tensor: String,
        /// What the configuration asks for.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
    },
    /// A weight in a number format that is no float.
    #[error(
        "{}: tensor {} is of type {dtype}; F64, F32, F16 and BF16 can be read. Of a quantised model, name the original",
        path.display(), shown::name(tensor)
    )]
    Dtype {
        /// The weights file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// Rotary frequencies that are not those of the configuration.
    #[error(
        "{}: tensor {} holds the rotary frequency {stored}, and {computed} is computed of the base {base}: positions would not be \
         those that the model was trained with. In a Hugging Face folder, set rope_theta in config.json to the base of its training, \
         or, where the tensor is of no use, save the checkpoint again without it", path.display(), shown::name(tensor)
    )]
    Frequencies {
        /// The weights file.
        path: PathBuf,
        /// The tensor, as the file spells it.
        tensor: String,
        /// What it holds.
        stored: f32,
        /// What the graph would compute with.
        computed: f32,
        /// The base of the computed ones.
        base: f32,
    },
    /// One weight under two spellings.
    #[error(
        "{}: tensors {} and {} are the same weight in two spellings",
        path.display(), shown::name(first), shown::name(second)
    )]
    Ambiguous {
        /// The checkpoint.
        path: PathBuf,
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
    /// A weights file whose header contradicts itself or the file.
    #[error("{}: not a sound {format} file: {}", path.display(), shown::message(message))]
    Malformed {
        /// The weights file.
        path: PathBuf,
        /// Which format it was read as.
        format: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A file that ends before its weights do.
    #[error(
        "{}: truncated: tensor {} ends at byte {needed}, the file at {length}; fetch or copy it again",
        path.display(), shown::name(tensor)
    )]
    Truncated {
        /// The weights file.
        path: PathBuf,
        /// The first tensor that is cut off.
        tensor: String,
        /// Where it should end.
        needed: u64,
        /// Where the file ends.
        length: u64,
    },
    /// A file of `PyTorch` before 1.6.
    #[error(
        "{}: written in PyTorch's format of before version 1.6, which cannot be read here; load it and save it again with \
         a current PyTorch (torch.save), or as safetensors", path.display()
    )]
    OldPyTorch {
        /// The weights file.
        path: PathBuf,
    },
    /// A pickle that asks for something that a checkpoint has no need of.
    #[error("{}: {source}", path.display())]
    Pickle {
        /// The weights file.
        path: PathBuf,
        /// What it asked for.
        source: PickleError,
    },
    /// A checkpoint without a tokenizer.
    #[error(
        "{}: there is no {file}, and the model's {vocabulary} tokens can't be told without it; put it there, or name it \
         (--tokenizer)", path.display()
    )]
    NoTokenizer {
        /// The checkpoint.
        path: PathBuf,
        /// The file that is missing.
        file: &'static str,
        /// How many tokens the model has.
        vocabulary: usize,
    },
    /// The target is a model already.
    #[error("{}: holds a model already; --force replaces it", path.display())]
    Exists {
        /// The target folder.
        path: PathBuf,
    },
    /// The target is something else that must not be lost.
    #[error("{} is in the way: no model, but a file, a link to nothing, or a folder with other things; name a new folder", path.display())]
    Occupied {
        /// The target folder.
        path: PathBuf,
    },
    /// No such known model.
    #[error("no known model is called {name:?}; `seqembed models` lists them")]
    UnknownModel {
        /// What was asked for.
        name: String,
    },
    /// A folder that is no exported model, or a damaged one.
    #[error("{}: {message}", path.display())]
    Model {
        /// The folder or the file in it.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A file of a model whose bytes are not those that were exported.
    #[error(
        "{}: damaged, or another model's: its {algorithm} is {found}, and {expected} was written down when the model was \
         exported; copy the folder again, or export the model again", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which hash.
        algorithm: &'static str,
        /// What it was, in hexadecimal.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A weights file that somebody wrote to, or took away, while it was used.
    #[error(
        "{}: the model's weights were changed while they were used; what was computed with them since is not kept. Put \
         the model back (or name the new one), and run the same command again with --resume", path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A weight that a number format can't hold.
    #[error(
        "{}: tensor {tensor} holds {value:e}, which {precision} has no number for; compute in another precision \
         (--precision bf16 or --precision fp32)", path.display(), tensor = shown::name(tensor)
    )]
    Overflow {
        /// The weights file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The weight.
        value: f32,
        /// The format.
        precision: Precision,
    },
    /// A kind of graph that there is not in a number format.
    #[error("there is no {} graph in {precision}{}", match kind {
        GraphKind::Padded => "padded",
        GraphKind::Packed => "packed",
        GraphKind::Fused => "fused",
        GraphKind::OrtCuda => "portable CUDA",
    }, match precision {
        Precision::Fp8 => " of this model: there are some of ESM-2 alone, from 150M on; choose fp16",
        _ => "",
    })]
    Precision {
        /// The kind.
        kind: GraphKind,
        /// The number format.
        precision: Precision,
    },
    /// A layer that the model does not have.
    #[error(
        "layer {layer} was asked for; the model has layers 0 (the embeddings) to {layers} (the last)"
    )]
    Layer {
        /// What was asked for.
        layer: usize,
        /// The last one.
        layers: usize,
    },
}

impl Error {
    /// Whether it is the input that is wrong, and not the machine.
    #[must_use]
    pub fn is_input(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            _ => true,
        }
    }

    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }

    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Json { path, source }
    }

    pub(crate) fn malformed(
        path: &Path,
        format: &'static str,
        message: impl std::fmt::Display,
    ) -> Self {
        Self::Malformed {
            path: path.to_path_buf(),
            format,
            message: message.to_string(),
        }
    }

    pub(crate) fn config(path: &Path, message: impl Into<String>) -> Self {
        Self::Config {
            path: path.to_path_buf(),
            message: message.into(),
        }
    }
}
