//! From a protein or DNA language model's checkpoint to an ONNX graph, without Python.
//!
//! [`export`] reads a Hugging Face folder or a fair-esm `.pt` and writes a model folder; [`Model::open`] opens one, and
//! [`Model::graph`] builds the graph for a layer and a choice of outputs over the same weights file. `README.md` tells
//! what the graphs hold.

pub mod atomic_file;
pub mod checkpoint;
pub mod error;
pub mod export;
pub mod families;
mod files;
pub mod graph;
pub mod inspect;
pub mod model;
pub mod shown;
pub mod tokenizer;
pub mod weights;

pub use error::Error;
pub use export::{ExportOptions, TokenizerCheck, export, export_random};
pub use families::catalog::{KnownModel, known_model, known_models};
pub use families::{Architecture, GraphKind, GraphRequest, Output, Sizes};
pub use files::is_lfs_pointer;
pub use model::{
    GRAPH_VERSION, Model, ModelInfo, Precision, Source, Storage, TensorInfo, Tokenizer,
};
pub use weights::verify::WeightsFile;
