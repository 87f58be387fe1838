//! From a protein or DNA language model's checkpoint to an ONNX graph, without Python.
//!
//! [`export`] reads a Hugging Face folder, a fair-esm `.pt` or an `esm` package's `.pth` and writes
//! a model folder; [`Model::open`] opens one, and [`Model::graph`] builds the graph for a layer and
//! a choice of outputs over the same weights file. `README.md` describes the graphs.

pub mod atomic_file;
pub mod checkpoint;
pub mod contact_head;
pub mod error;
pub mod export;
pub mod families;
mod files;
pub mod graph;
pub mod head;
pub mod inspect;
pub mod model;
pub mod positions;
mod sentence_piece;
pub mod shown;
pub mod tokenizer;
pub mod weights;

pub use contact_head::ContactHead;
pub use error::Error;
pub use export::{ExportOptions, TokenizerCheck, export, export_random};
pub use families::Architecture;
pub use families::catalog::{KnownModel, known_model, known_models};
pub use families::family::{Alphabet, Family, Publication};
pub use families::known_values::KnownValues;
pub use families::sizes::{FusedFormats, Sizes};
pub use files::is_lfs_pointer;
pub use graph::layers::Activation;
pub use graph::request::{GraphKind, GraphRequest, Output, Precision};
pub use head::{HEAD_FILE, Head, HeadForm, HeadInfo};
pub use model::{GRAPH_VERSION, Model, ModelInfo, Source, Tokenizer};
pub use tokenizer::{SpecialNames, TokenizerKind};
pub use weights::table::{Storage, TensorInfo};
pub use weights::verify::WeightsFile;
