//! The request for a graph: engine, precision, layer and outputs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::proto::ElementType;

/// A number format of weights and of what is computed from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    Fp32,
    /// 16-bit floats: 11 bits of precision, up to 65,504.
    Fp16,
    /// 16-bit floats of another kind: 8 bits of precision, and the range of 32-bit ones.
    Bf16,
    /// As `Fp16`, but the dense layers of feed-forward layers multiply 8-bit floats (e4m3, with 4
    /// bits of precision).
    Fp8,
}

impl Precision {
    /// All formats.
    pub const ALL: [Self; 4] = [Self::Fp32, Self::Fp16, Self::Bf16, Self::Fp8];

    /// Its name: `fp32`, `fp16`, `bf16` or `fp8`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        }
    }

    /// The format of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|precision| precision.name() == name)
    }

    /// Bytes of a number; `Fp8`: outside of feed-forward layers.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Fp32 => 4,
            Self::Fp16 | Self::Bf16 | Self::Fp8 => 2,
        }
    }

    /// The same for ONNX; `Fp8`: outside of feed-forward layers.
    #[must_use]
    pub fn element(self) -> ElementType {
        match self {
            Self::Fp32 => ElementType::Float,
            Self::Fp16 | Self::Fp8 => ElementType::Float16,
            Self::Bf16 => ElementType::BFloat16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// Which engine a graph is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GraphKind {
    /// Rows of equal length, the shorter ones filled up: ONNX's operators and ONNX Runtime's own,
    /// for any ONNX Runtime.
    Padded,
    /// Sequences packed end to end, with the operators of the domain `seqembed` (version 1), which
    /// seqembed registers.
    Packed,
    /// As packed, but dense layers are also operators of the domain `seqembed`, which include
    /// surrounding operations such as layer norms and residuals. For GPUs with such kernels; see
    /// [`Sizes::can_fuse`].
    Fused,
    /// Sequences packed end to end, with only the operators of ONNX Runtime's CUDA provider.
    OrtCuda,
}

impl GraphKind {
    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Padded => "padded",
            Self::Packed => "packed",
            Self::Fused => "fused",
            Self::OrtCuda => "portable CUDA",
        }
    }

    /// Whether the kind has graphs of this number format.
    #[must_use]
    pub fn has(self, precision: Precision) -> bool {
        match self {
            Self::Padded => precision == Precision::Fp32,
            Self::Packed => precision != Precision::Fp8,
            Self::Fused => precision != Precision::Fp32,
            // ONNX Runtime's PackedMultiHeadAttention has no kernel for bfloat16.
            Self::OrtCuda => matches!(precision, Precision::Fp32 | Precision::Fp16),
        }
    }
}

/// An output of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// `mean`: the mean over each range of tokens, [ranges, layers * hidden].
    Mean,
    /// `max`: the maximum over each range of tokens, [ranges, layers * hidden].
    Max,
    /// `tokens`: every token's vectors, [tokens, layers * hidden]; padded [batch, length, layers *
    /// hidden].
    Tokens,
    /// `tokens`, as 16-bit floats, which halves the transfer from the device. Not available in
    /// padded graphs.
    HalfTokens,
}

/// Which graph to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphRequest {
    /// The engine that the graph is for.
    pub kind: GraphKind,
    /// Number format of the weights and of all that is computed from them. Pooled rows come out in
    /// fp32 always.
    pub precision: Precision,
    /// The layers whose hidden states are output, in ascending order: 0 is the embedding layer, n
    /// the output of block n. As in fair-esm's `repr_layers` and transformers' `hidden_states`,
    /// only the last layer has the final layer norm. Of several, a row has one vector after the
    /// other.
    pub layers: Vec<usize>,
    /// The outputs of the graph.
    pub outputs: Vec<Output>,
}
