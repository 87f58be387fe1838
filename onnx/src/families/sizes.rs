//! The sizes and forms of a model's blocks that determine its kernels.

use crate::graph::layers::Activation;
use crate::graph::request::{GraphKind, Precision};

/// Widths of heads whose queries and keys the fused kernels rotate.
const FUSED_ROTARY_HEADS: [usize; 2] = [32, 64];

/// The sizes that kernels are made for.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says whether a part is there"
)]
pub struct Sizes {
    /// Width of a token's vector.
    pub hidden: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// Width inside the feed-forward layer.
    pub intermediate: usize,
    /// Base of the rotary frequencies, where positions are rotary.
    pub rotary_base: Option<f32>,
    /// Whether scores are lowered by distance (`ALiBi`).
    pub alibi: bool,
    /// Whether the feed-forward layer is gated.
    pub gated: bool,
    /// The activation in the feed-forward layer.
    pub activation: Activation,
    /// Whether queries and keys are normalised over their full width before they are rotated.
    pub query_key_norm: bool,
    /// Whether layer norms come after the sums, so that the residual is normalised too.
    pub post_norm: bool,
    /// Whether seqembed's CUDA kernels compute all parts of the blocks. If not, a GPU runs the
    /// model with the operators of ONNX Runtime.
    pub has_cuda_kernels: bool,
    /// The number formats in which the family has fused graphs, where their kernels fit the sizes.
    pub fused: FusedFormats,
}

/// Number formats in which fused graphs keep the vectors close to those of 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FusedFormats {
    /// None: the blocks have a form that the kernels do not compute.
    None,
    /// fp16 and bf16. In 8 bits vectors end up too far off: norms that come last make the noise of
    /// what was added as large as what it was added to.
    Half,
    /// fp16, bf16 and fp8.
    HalfAndFp8,
}

impl Sizes {
    /// Whether there are fused graphs in this number format, and the dense layers have the sizes
    /// that their kernels work on: tiles of 64, twice as deep in 8 bits, and products long enough
    /// for the last tile's epilogue to run beside them.
    #[must_use]
    pub fn can_fuse(&self, precision: Precision) -> bool {
        let fp8 = precision == Precision::Fp8;
        let tile = if fp8 { 128 } else { 64 };
        let allowed = match self.fused {
            FusedFormats::None => false,
            FusedFormats::Half => !fp8,
            FusedFormats::HalfAndFp8 => true,
        };
        allowed
            && GraphKind::Fused.has(precision)
            && self.hidden >= 512
            && self.intermediate >= 512
            && self.hidden.is_multiple_of(tile)
            && self.intermediate.is_multiple_of(tile)
    }

    /// Whether rotary positions can be applied where queries and keys leave their product.
    #[must_use]
    pub fn can_fuse_rotary(&self) -> bool {
        self.rotary_base.is_some()
            && !self.query_key_norm
            && FUSED_ROTARY_HEADS.contains(&self.head_width)
    }
}
