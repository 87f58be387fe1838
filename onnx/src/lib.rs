//! From a protein or DNA language model's checkpoint to an ONNX graph, without Python.
//!
//! [`export`] reads a Hugging Face folder or a fair-esm `.pt` and writes a model folder; [`Model::open`] opens one, and
//! [`Model::graph`] builds the graph for a layer and a choice of outputs over the same weights file. `README.md` tells
//! what the graphs hold.

pub mod architecture;
pub mod atomic_file;
pub mod bert;
pub mod block;
pub mod checkpoint;
pub mod config;
pub mod dnabert2;
pub mod eight;
pub mod error;
pub mod esm2;
pub mod export;
mod files;
pub mod folding;
pub mod frame;
pub mod fused;
pub mod graph;
pub mod inspect;
pub mod known;
pub mod leftovers;
pub mod model;
pub mod narrow;
pub mod plain;
pub mod post_norm;
pub mod proto;
pub mod random;
pub mod sample_bpe;
pub mod shown;
pub mod tokenizer;
pub mod verify;
pub mod weights;

pub use architecture::{Architecture, GraphKind, GraphRequest, Output, Sizes};
pub use error::Error;
pub use export::{ExportOptions, TokenizerCheck, export, export_random};
pub use files::is_lfs_pointer;
pub use known::{KnownModel, known_model, known_models};
pub use model::{
    GRAPH_VERSION, Model, ModelInfo, Precision, Source, Storage, TensorInfo, Tokenizer,
};
pub use verify::WeightsFile;
