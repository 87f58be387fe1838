//! The seam between architectures and everything else: one file an architecture, listed here.
//!
//! A new one implements [`Description`] in a file of its own, is a variant of [`Architecture`], and is told apart in
//! [`Architecture::of`].

pub mod bert;
pub mod block;
pub mod catalog;
pub mod config;
pub mod dnabert2;
pub mod esm2;
pub mod post_norm;
pub mod sample_bpe;

use serde::{Deserialize, Serialize};

use crate::checkpoint::leftovers::Names;
use crate::checkpoint::{Checkpoint, Settings};
use crate::error::Error;
use crate::families::bert::Bert;
use crate::families::config::plain_name;
use crate::families::dnabert2::Dnabert2;
use crate::families::esm2::Esm2;
use crate::graph::builder::Builder;
use crate::model::Precision;
use crate::weights::norm_fold::Folds;
use crate::weights::table::Planned;

/// Which engine a graph is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GraphKind {
    /// Rows of equal length, the shorter ones filled up: ONNX's operators and ONNX Runtime's own, for any ONNX Runtime.
    Padded,
    /// Sequences laid end to end, with the operators of the domain `seqembed` (version 1), which seqembed registers.
    Packed,
    /// As packed, and dense layers are operators of the domain `seqembed`, too, which do what stands around them on the way out, layer
    /// norms and residuals among it: for GPUs that have such kernels, see [`Sizes::can_fuse`].
    Fused,
    /// Sequences laid end to end, with the operators of ONNX Runtime's CUDA provider alone.
    Plain,
}

impl GraphKind {
    /// Whether the kind has graphs of this number format.
    #[must_use]
    pub fn has(self, precision: Precision) -> bool {
        match self {
            Self::Padded => precision == Precision::Fp32,
            Self::Packed => precision != Precision::Fp8,
            Self::Fused => precision != Precision::Fp32,
            // ONNX Runtime's PackedMultiHeadAttention has no kernel for bfloat16.
            Self::Plain => matches!(precision, Precision::Fp32 | Precision::Fp16),
        }
    }
}

/// What a graph gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// `mean`: the mean over each range of tokens, [ranges, hidden].
    Mean,
    /// `max`: the maximum over each range of tokens, [ranges, hidden].
    Max,
    /// `tokens`: every token's vector, [tokens, hidden]; padded [batch, length, hidden].
    Tokens,
    /// `tokens`, as 16-bit floats: half of what comes back from a device. Not in padded graphs.
    HalfTokens,
}

/// Which graph to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphRequest {
    /// For which engine.
    pub kind: GraphKind,
    /// Number format of the weights and of all that is computed from them. Pooled rows come out in fp32 always.
    pub precision: Precision,
    /// Whose hidden states: 0 is the embeddings, n what comes out of block n. As in fair-esm's `repr_layers` and
    /// transformers' `hidden_states`, the last layer alone has the final layer norm.
    pub layer: usize,
    /// What the graph gives back.
    pub outputs: Vec<Output>,
}

/// The sizes that kernels are made for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    /// Width of a token's vector.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside the feed-forward layer.
    pub intermediate: usize,
    /// Base of the rotary frequencies, where positions are rotary.
    pub rotary_base: Option<f32>,
    /// Whether scores are lowered by distance (`ALiBi`).
    pub alibi: bool,
    /// Whether the feed-forward layer is gated (GEGLU).
    pub gated: bool,
    /// Whether layer norms come behind the sums, and the residual is normed, too.
    pub post_norm: bool,
}

impl Sizes {
    /// Width of a head.
    #[must_use]
    pub fn head(&self) -> usize {
        self.hidden / self.heads.max(1)
    }

    /// Whether there are fused graphs in this number format, and the dense layers have the sizes that their kernels work on: tiles of
    /// 64, twice as deep in 8 bits, and products long enough for the last tile's epilogue to run beside them. In 8 bits not where
    /// norms come last: each of them makes the noise of what was added as large as what it was added to, and vectors end up too far
    /// from what they should be.
    #[must_use]
    pub fn can_fuse(&self, precision: Precision) -> bool {
        let eight = precision == Precision::Fp8;
        let tile = if eight { 128 } else { 64 };
        GraphKind::Fused.has(precision)
            && self.hidden >= 512
            && self.intermediate >= 512
            && self.hidden.is_multiple_of(tile)
            && self.intermediate.is_multiple_of(tile)
            && !(eight && self.post_norm)
    }

    /// Whether rotary positions can be applied where queries and keys leave their product.
    #[must_use]
    pub fn can_fuse_rotary(&self) -> bool {
        self.rotary_base.is_some() && matches!(self.head(), 32 | 64)
    }
}

/// What an architecture tells about itself.
pub trait Description {
    /// Width of a token's vector.
    fn hidden(&self) -> usize;
    /// How many blocks.
    fn layers(&self) -> usize;
    /// How many rows the embedding table has.
    fn vocabulary(&self) -> usize;
    /// What kernels for it are made for.
    fn sizes(&self) -> Sizes;
    /// The longest input that the model is meant for, without special tokens: residues, bases or k-mers.
    fn max_residues(&self) -> Option<usize>;
    /// Which tokenizer it needs: `esm2` and `bert` have a `vocab.txt`, `bpe` a `tokenizer.json`.
    fn tokenizer(&self) -> &'static str;
    /// The tokenizer's file, where all models of the architecture share one.
    fn own_tokenizer(&self) -> Option<Vec<u8>> {
        None
    }
    /// A tokenizer's file that goes with random weights.
    fn sample_tokenizer(&self) -> Option<Vec<u8>> {
        self.own_tokenizer()
    }
    /// Whether the sizes can be those of a model at all.
    ///
    /// # Errors
    /// What is impossible about them.
    fn validate(&self) -> Result<(), String>;
    /// How its checkpoints name their tensors.
    fn names(&self) -> Names;
    /// Hugging Face's spelling of a tensor's name without a prefix. A name that the architecture does not know stays as it is.
    fn spelling(&self, name: &str) -> String {
        plain_name(name)
    }
    /// All tensors of the weights file in the graph's order, and what each is made from.
    fn plan(&self) -> Vec<Planned>;
    /// The layer norms that are folded into dense layers where a weights file is for fused graphs.
    fn folds(&self) -> Folds;
    /// Adds inputs, nodes and outputs.
    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest);
}

/// A model's architecture and sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Architecture {
    /// ESM-2.
    Esm2(Esm2),
    /// DNABERT-2 and DNABERT-S.
    Dnabert2(Dnabert2),
    /// DNABERT, and other BERTs with learned positions.
    Bert(Bert),
}

/// What can be exported, for messages.
pub const KNOWN: &str = "ESM-2 (model_type \"esm\", or a fair-esm .pt), DNABERT-2 and DNABERT-S, and DNABERT or any other BERT \
                         with learned positions (model_type \"bert\")";

impl Architecture {
    /// Reads the architecture from a checkpoint's configuration.
    ///
    /// # Errors
    /// [`Error::Config`] when it is none that is known, or lacks something.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, Error> {
        match &checkpoint.settings {
            Settings::HuggingFace { path, config } => {
                let has = |part: &str| checkpoint.shapes().any(|(name, _)| name.contains(part));
                // Older files of BERTs do not say what they are. Their tensors do.
                match config.get("model_type").and_then(serde_json::Value::as_str) {
                    Some("esm") => Esm2::from_config(path, config).map(Self::Esm2),
                    Some("bert") | None if has(".attention.self.Wqkv.") => {
                        Dnabert2::from_config(path, config).map(Self::Dnabert2)
                    }
                    Some("bert") | None if has(".attention.self.query.") => {
                        Bert::from_config(path, config).map(Self::Bert)
                    }
                    Some("bert") => Err(Error::config(
                        path,
                        "model_type is \"bert\", but the weights have neither BERT's tensors (attention.self.query) nor \
                         DNABERT-2's (attention.self.Wqkv)",
                    )),
                    Some(other) => Err(Error::config(
                        path,
                        format!("model_type is {other:?}, which is not known; known are {KNOWN}"),
                    )),
                    None => Err(Error::config(
                        path,
                        format!(
                            "it says no model_type, and its tensors are of no known model; known are {KNOWN}"
                        ),
                    )),
                }
            }
            Settings::FairEsm { .. } => Esm2::from_fair_esm(checkpoint).map(Self::Esm2),
        }
    }

    /// What the architecture tells about itself.
    #[must_use]
    pub fn description(&self) -> &dyn Description {
        match self {
            Self::Esm2(esm2) => esm2,
            Self::Dnabert2(dnabert2) => dnabert2,
            Self::Bert(bert) => bert,
        }
    }

    /// BLAKE3, in hexadecimal, of the architecture with all of its settings: weights alone do not tell heads, positions or what is added
    /// to a variance.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "plain data always has a text")]
    pub fn blake3(&self) -> String {
        let json = serde_json::to_vec(self).expect("it is plain data");
        blake3::hash(&json).to_hex().to_string()
    }

    /// Width of a token's vector.
    #[must_use]
    pub fn hidden(&self) -> usize {
        self.description().hidden()
    }

    /// Sizes of its layers.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.description().sizes()
    }

    /// How many blocks; layers are counted from 0, the embeddings, to this.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.description().layers()
    }
}
