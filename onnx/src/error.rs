//! Errors of reading checkpoints, and of writing and opening models.

use std::path::{Path, PathBuf};

use crate::checkpoint::pickle::PickleError;
use crate::checkpoint::remedy::Remedy;
use crate::graph::request::{GraphKind, Precision};
use crate::shown;

/// Why a checkpoint could not be read, or a model not be written or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An I/O error.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The attempted operation, such as `read`.
        action: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// Invalid JSON, or JSON without a required field.
    #[error("{}: {}", path.display(), shown::message(&source.to_string()))]
    Json {
        /// Path of the file.
        path: PathBuf,
        /// The parser's error, with line and column.
        source: serde_json::Error,
    },
    /// Not a checkpoint of a known kind.
    #[error(
        "{}: {why}; a checkpoint is a Hugging Face folder (config.json with model.safetensors or \
         pytorch_model.bin, single or sharded), a .pt file of fair-esm or a .pth file of the esm package", path.display()
    )]
    NotACheckpoint {
        /// The file or folder.
        path: PathBuf,
        /// What was found instead.
        why: String,
    },
    /// The folder of an adapter (PEFT), whatever else is in it.
    #[error(
        "{}: this is an adapter (it has {file}): its weights only modify those of another model. \
         In Python, load it with PEFT, call model.merge_and_unload().save_pretrained(FOLDER), copy \
         the tokenizer files to FOLDER, and use FOLDER", path.display()
    )]
    Adapter {
        /// Path of the folder.
        path: PathBuf,
        /// The file that shows it.
        file: &'static str,
    },
    /// A Git LFS pointer instead of the file.
    #[error(
        "{}: this is a Git LFS pointer, not the file itself; run `git lfs pull` in its \
         repository, or download it with `seqembed fetch`",
        path.display()
    )]
    LfsPointer {
        /// Path of the file.
        path: PathBuf,
    },
    /// Tensors of the encoder that the graph does not use.
    #[error(
        "{}: the graph does not use {count} of {} tensors ({}{}), so the embeddings {} be those \
         of this model: {help}",
        path.display(), help.whose(), shown::name(first),
        second.as_ref().map_or_else(String::new, |second| format!(", {}{}", shown::name(second), if *count > 2 { ", ..." } else { "" })),
        help.effect()
    )]
    Leftover {
        /// Path of the checkpoint.
        path: PathBuf,
        /// Number of unused tensors.
        count: usize,
        /// Name of the first one, as in the file.
        first: String,
        /// Name of a second one, if any.
        second: Option<String>,
        /// What they probably are, and what to do.
        help: Remedy,
    },
    /// A configuration that is invalid or not supported.
    #[error("{}: {}", path.display(), shown::message(message))]
    Config {
        /// The file with the configuration.
        path: PathBuf,
        /// What is wrong with the configuration.
        message: String,
    },
    /// A tensor that the architecture needs is missing.
    #[error("{}: the checkpoint has no tensor {}", path.display(), shown::name(tensor))]
    MissingTensor {
        /// Path of the checkpoint.
        path: PathBuf,
        /// The tensor, by its Hugging Face name.
        tensor: String,
    },
    /// A tensor whose shape contradicts the configuration.
    #[error(
        "{}: tensor {} has shape {found:?}, but the configuration requires {expected:?}: the \
         weights and the configuration are not from the same model", path.display(), shown::name(tensor)
    )]
    Shape {
        /// Path of the weights file.
        path: PathBuf,
        /// The tensor, by its name in the file.
        tensor: String,
        /// The shape that the configuration requires.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor that is not of a supported floating-point type.
    #[error(
        "{}: tensor {} is of type {dtype}, but only F64, F32, F16 and BF16 are supported. If the \
         model is quantised, use the original",
        path.display(), shown::name(tensor)
    )]
    Dtype {
        /// Path of the weights file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The type, as the file names it.
        dtype: String,
    },
    /// Stored rotary frequencies that contradict the configuration.
    #[error(
        "{}: tensor {} stores the rotary frequency {stored}, but the base {base} gives \
         {computed}: positions might not be encoded as in training. In a Hugging Face folder, set \
         rope_theta in config.json to the base used in training; if the tensor is obsolete, save \
         the checkpoint again without it", path.display(), shown::name(tensor)
    )]
    Frequencies {
        /// Path of the weights file.
        path: PathBuf,
        /// The tensor, by its name in the file.
        tensor: String,
        /// The stored frequency.
        stored: f32,
        /// The frequency that the graph would use.
        computed: f32,
        /// The base of the computed frequencies.
        base: f32,
    },
    /// Two tensors with names for the same weight.
    #[error(
        "{}: tensors {} and {} are two names for the same weight",
        path.display(), shown::name(first), shown::name(second)
    )]
    Ambiguous {
        /// Path of the checkpoint.
        path: PathBuf,
        /// One name, as in the file.
        first: String,
        /// The other name, as in the file.
        second: String,
    },
    /// A weights file that is not valid.
    #[error("{}: not a valid {format} file: {}", path.display(), shown::message(message))]
    Malformed {
        /// Path of the weights file.
        path: PathBuf,
        /// The format it was read as.
        format: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A file that ends before the end of its tensors.
    #[error(
        "{}: the file is truncated: tensor {} ends at byte {needed}, but the file at byte \
         {length}; download or copy it again",
        path.display(), shown::name(tensor)
    )]
    Truncated {
        /// Path of the weights file.
        path: PathBuf,
        /// The first incomplete tensor.
        tensor: String,
        /// The end of the tensor, in bytes.
        needed: u64,
        /// The length of the file in bytes.
        length: u64,
    },
    /// A pickle that requests something no checkpoint needs.
    #[error("{}: {source}", path.display())]
    Pickle {
        /// Path of the weights file.
        path: PathBuf,
        /// What it requested.
        source: PickleError,
    },
    /// A checkpoint without tokenizer files.
    #[error(
        "{}: {file} is missing, which defines the model's {vocabulary} tokens; copy it there, or \
         give it with option `tokenizer`", path.display()
    )]
    NoTokenizer {
        /// Path of the checkpoint.
        path: PathBuf,
        /// The file that is missing.
        file: &'static str,
        /// Number of tokens of the model.
        vocabulary: usize,
    },
    /// The target folder already contains a model.
    #[error("{}: the folder already contains a model; use option `force` to replace it", path.display())]
    Exists {
        /// Path of the target folder.
        path: PathBuf,
    },
    /// The target exists and is not a model, so it must not be replaced.
    #[error("{} exists but is not a model folder (it is a file, a broken link, or a folder with \
             other content); choose a new folder", path.display())]
    Occupied {
        /// Path of the target folder.
        path: PathBuf,
    },
    /// Not the name of a known model.
    #[error("{name:?} is not the name of a known model; run `seqembed models` for the list")]
    UnknownModel {
        /// The requested value.
        name: String,
    },
    /// A folder that is not a model folder, or a damaged one.
    #[error("{}: {message}", path.display())]
    Model {
        /// The folder or the file in it.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A model without a language-model head.
    #[error("{}: the model has no language-model head, which scores need: {}", path.display(),
        if *family_has_one {
            "its checkpoint had none, or it was exported by a version of seqembed that did not \
             export heads. Run `seqembed export` again (with --force), with a checkpoint that has \
             one (tensors lm_head.* or cls.predictions.*); a folder in seqembed's cache can be \
             removed, and is made again"
        } else {
            "seqembed knows no head of this family; use ESM-2, ESM-1b, ESM-1v, ESM C, Nucleotide \
             Transformer, ProtBert, IgBert, DNABERT, DNABERT-2 or GROVER"
        })]
    NoHead {
        /// The model folder.
        path: PathBuf,
        /// Whether other models of its family have one.
        family_has_one: bool,
    },
    /// A file of a model folder that changed since the export.
    #[error(
        "{}: the file is damaged or belongs to another model: its {algorithm} is {found}, but it \
         was {expected} when the model was exported; copy the folder again, or export the model \
         again", path.display()
    )]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// Name of the hash function.
        algorithm: &'static str,
        /// The hash at the export, in hexadecimal.
        expected: String,
        /// The current hash, in hexadecimal.
        found: String,
    },
    /// A weights file that was changed or removed while in use.
    #[error(
        "{}: the weights changed while they were in use; results computed since then are \
         discarded. Restore the model (or name the new one), and run the same command again with \
         option `resume`", path.display()
    )]
    Changed {
        /// Path of the file.
        path: PathBuf,
    },
    /// A weight that is out of the range of a precision.
    #[error(
        "{}: tensor {tensor} has the value {value:e}, which is out of range for {precision}; use \
         another precision (option `precision: bf16` or option `precision: fp32`)", path.display(), tensor = shown::name(tensor)
    )]
    Overflow {
        /// Path of the weights file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// The weight.
        value: f32,
        /// The format.
        precision: Precision,
    },
    /// A kind of graph that does not support a precision.
    #[error("{precision} is not available for the {} graph{}", kind.name(), match precision {
        Precision::Fp8 => " of this model, only for ESM-2 from 150M on and Nucleotide Transformer 2; use fp16",
        _ => "",
    })]
    Precision {
        /// The kind of graph.
        kind: GraphKind,
        /// The precision.
        precision: Precision,
    },
    /// A model folder without a contact head.
    #[error("{}: the model folder has no contact head{}", path.display(), if *published {
        "; run `seqembed export` (with --force) on a checkpoint that has one: the model's files on the \
         Hugging Face hub, or fair-esm's NAME.pt with NAME-contact-regression.pt beside it"
    } else {
        ", and none was published for its family: ESM-2 and ESM-1b have one"
    })]
    NoContactHead {
        /// Path of the model folder.
        path: PathBuf,
        /// Whether models of its family were published with one.
        published: bool,
    },
    /// A kind of graph, or a number format, that contacts cannot be predicted in.
    #[error("contacts cannot be predicted with the {} graph in {precision}", kind.name())]
    NoContactGraph {
        /// The kind of graph.
        kind: GraphKind,
        /// The precision.
        precision: Precision,
    },
    /// A layer that the model does not have.
    #[error(
        "there is no layer {layer}: the model has layers 0 (the embedding layer) to {layers} (the \
         last)"
    )]
    Layer {
        /// The requested value.
        layer: usize,
        /// Index of the last layer.
        layers: usize,
    },
}

impl Error {
    /// Whether the cause is the user's input, not the machine.
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
