//! [`Blocks`], with which families describe their transformer blocks: sizes, norms, positions,
//! activations, gates and biases. `pre_norm.rs` and `post_norm.rs` build graphs from it.

use super::config::check_sizes;
use super::sizes::{FusedFormats, Sizes};
use crate::graph::builder::Builder;
use crate::graph::layers::{Activation, FeedForward, Frame, Norm};
use crate::graph::request::GraphKind;
use crate::weights::norm_fold::Folds;
use crate::weights::table::{Input, Plan, TensorSource};

/// Widths of heads in which the CUDA kernels normalise queries and keys: a lane of a warp has eight
/// numbers of a head, and their partners in its other half are in another lane.
const NORMED_HEADS: [usize; 4] = [16, 32, 64, 128];

/// How attention knows where a token is. Learned positions are added to the embeddings, before any
/// block: for the blocks they are [`Positions::None`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Positions {
    /// It does not.
    None,
    /// Queries and keys are rotated by angles that grow with the position (Su et al., 2021).
    Rotary {
        /// Base of the frequencies.
        base: f32,
    },
    /// Scores fall with the distance, on either side (Press et al., 2022).
    Alibi,
    /// To scores, which are not scaled by the width of a head, is added what each head has learned
    /// of their distance's bucket, the same in all layers (Raffel et al., 2020).
    Relative {
        /// Number of buckets, for both directions.
        buckets: usize,
        /// From this distance on, all are in one bucket.
        furthest: usize,
    },
}

/// The structure of the blocks of a model. All blocks of a model are alike.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says whether a part is there"
)]
pub struct Blocks {
    /// Number of transformer blocks.
    pub layers: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of a head. Heads times this need not be `hidden`.
    pub head_width: usize,
    /// Width inside the feed-forward layer; of each half, where it is gated.
    pub intermediate: usize,
    /// How rows are normalised.
    pub norm: Norm,
    /// Whether there is a norm after the last block. Only where norms come before each half.
    pub final_norm: bool,
    /// Whether the norm after the last block has a bias, where those of the blocks have one.
    pub final_norm_bias: bool,
    /// Added to the variance (or mean square) before its root is taken.
    pub epsilon: f32,
    /// How attention knows positions.
    pub positions: Positions,
    /// Whether the dimensions that are rotated together are neighbours in the checkpoint. In the
    /// weights file they are half a head apart, always.
    pub rotated_neighbours: bool,
    /// Whether queries and keys are normalised over their full width before they are rotated, with
    /// a weight each and no bias.
    pub query_key_norm: bool,
    /// The activation between the two dense layers of the feed-forward layer.
    pub activation: Activation,
    /// Whether the feed-forward layer is gated: `activation(left) * right`.
    pub gated: bool,
    /// Whether the dense layers of attention have biases.
    pub attention_bias: bool,
    /// Whether the first dense layer of the feed-forward layer has a bias.
    pub up_bias: bool,
    /// Whether the second one has.
    pub down_bias: bool,
    /// Whether norms come after the sums (`post_norm.rs`), or before each half (`pre_norm.rs`).
    pub post_norm: bool,
    /// The number formats in which the family's fused graphs keep the vectors close to those of 32
    /// bits.
    pub fused: FusedFormats,
    /// What both branches of a block are multiplied by before they are added: it is multiplied into
    /// their last dense layers at export.
    pub residual_scale: f32,
}

impl Blocks {
    /// Blocks as BERT's (Devlin et al., 2019), but for positions: layer norms and dense layers with
    /// biases, erf GELU, heads that share the width.
    #[must_use]
    pub fn bert(layers: usize, hidden: usize, heads: usize, intermediate: usize) -> Self {
        Self {
            layers,
            hidden,
            heads,
            head_width: hidden / heads.max(1),
            intermediate,
            norm: Norm::LayerNorm { bias: true },
            final_norm: true,
            final_norm_bias: true,
            epsilon: 1e-12,
            positions: Positions::None,
            rotated_neighbours: false,
            query_key_norm: false,
            activation: Activation::Gelu,
            gated: false,
            attention_bias: true,
            up_bias: true,
            down_bias: true,
            post_norm: true,
            fused: FusedFormats::Half,
            residual_scale: 1.0,
        }
    }

    /// Width of all heads together.
    #[must_use]
    pub fn attention_width(&self) -> usize {
        self.heads * self.head_width
    }

    /// The name, in the weights file, of the first dense layer of the feed-forward layer.
    #[must_use]
    pub fn up(&self) -> &'static str {
        if self.gated { "gated" } else { "up" }
    }

    /// Rows of the first dense layer of the feed-forward layer.
    #[must_use]
    pub fn up_rows(&self) -> usize {
        if self.gated {
            2 * self.intermediate
        } else {
            self.intermediate
        }
    }

    /// Begins a graph of this kind: declares its inputs.
    pub fn frame<'builder, 'table>(
        &self,
        builder: &'builder mut Builder<'table>,
        kind: GraphKind,
    ) -> Frame<'builder, 'table> {
        let widths = [self.hidden, self.attention_width()];
        Frame::new(builder, kind, widths, (self.norm, self.epsilon))
    }

    /// The feed-forward layer, as graphs compute it.
    #[must_use]
    pub fn feed_forward(&self) -> FeedForward {
        FeedForward {
            activation: self.activation,
            half: self.gated.then_some(self.intermediate),
            up_bias: self.up_bias,
        }
    }

    /// The sizes that kernels are chosen by. There are no fused graphs of forms without kernels.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let rotary = matches!(self.positions, Positions::Rotary { .. });
        let activation = match self.activation {
            Activation::Gelu => self.gated || self.up_bias,
            Activation::Silu => self.gated,
            Activation::GeluTanh | Activation::Relu => false,
        };
        let has_kernels = self.norm == Norm::LayerNorm { bias: true }
            && !matches!(self.positions, Positions::Relative { .. })
            && self.final_norm
            && self.attention_width() == self.hidden
            && activation
            && (!self.query_key_norm || rotary && NORMED_HEADS.contains(&self.head_width));
        Sizes {
            hidden: self.hidden,
            heads: self.heads,
            head_width: self.head_width,
            intermediate: self.intermediate,
            rotary_base: match self.positions {
                Positions::Rotary { base } => Some(base),
                Positions::None | Positions::Alibi | Positions::Relative { .. } => None,
            },
            alibi: self.positions == Positions::Alibi,
            gated: self.gated,
            activation: self.activation,
            query_key_norm: self.query_key_norm,
            post_norm: self.post_norm,
            has_cuda_kernels: has_kernels,
            fused: if has_kernels {
                self.fused
            } else {
                FusedFormats::None
            },
        }
    }

    /// Checks that the sizes can be those of a model. `others` are the family's own, by the names
    /// that its configuration has for them.
    ///
    /// # Errors
    /// What is impossible about them.
    pub fn check(&self, others: &[(&str, usize)]) -> Result<(), String> {
        let sizes = [
            ("hidden_size", self.hidden),
            ("num_attention_heads", self.heads),
            ("intermediate_size", self.intermediate),
        ];
        check_sizes(
            ("num_hidden_layers", self.layers),
            &[&sizes, others].concat(),
        )?;
        if !self.hidden.is_multiple_of(self.heads) {
            return Err(format!(
                "a width of {} cannot be split into {} heads",
                self.hidden, self.heads
            ));
        }
        if let Positions::Rotary { base } = self.positions {
            if !self.head_width.is_multiple_of(2) {
                return Err(format!(
                    "a width of {} cannot be split into {} heads of even width",
                    self.hidden, self.heads
                ));
            }
            if base.is_nan() || base <= 1.0 {
                return Err(format!("the rotary base {base} is out of range"));
            }
        }
        if !(0.0..1.0).contains(&self.epsilon) {
            return Err(format!("layer_norm_eps {} is out of range", self.epsilon));
        }
        Ok(())
    }

    /// Plans a norm of the model's kind.
    pub fn plan_norm(&self, plan: &mut Plan, ours: &str, theirs: &str) {
        let bias = self.norm == Norm::LayerNorm { bias: true };
        self.plan_norm_with(plan, ours, theirs, bias);
    }

    /// Plans the norm after the last block.
    pub fn plan_final_norm(&self, plan: &mut Plan, theirs: &str) {
        if !self.final_norm {
            return;
        }
        let bias = self.norm == Norm::LayerNorm { bias: true } && self.final_norm_bias;
        self.plan_norm_with(plan, "final_norm", theirs, bias);
    }

    fn plan_norm_with(&self, plan: &mut Plan, ours: &str, theirs: &str, bias: bool) {
        let parts: &[&str] = if bias {
            &["weight", "bias"]
        } else {
            &["weight"]
        };
        for part in parts {
            plan.copy(
                format!("{ours}.{part}"),
                Input::new(format!("{theirs}.{part}"), &[self.hidden]),
            );
        }
    }

    /// Plans a layer's attention. In the checkpoint, queries, keys and values are dense layers of
    /// their own, or one, `attention.self.qkv`, without biases.
    pub fn plan_attention(&self, plan: &mut Plan, layer: usize) {
        let (hidden, width) = (self.hidden, self.attention_width());
        let three = ["query", "key", "value"].map(|part| format!("attention.self.{part}"));
        let weights = three
            .iter()
            .map(|part| tensor(layer, &format!("{part}.weight"), &[width, hidden]));
        let ours = format!("layer.{layer}.qkv.weight");
        if self.rotated_neighbours {
            let source = TensorSource::Apart {
                inputs: weights.collect(),
                pairs: 2,
                width: self.head_width,
            };
            plan.add(ours, &[3 * width, hidden], source);
        } else {
            let packed = tensor(layer, "attention.self.qkv.weight", &[3 * width, hidden]);
            plan.either(ours, weights.collect(), packed);
        }
        let [query, key, value] =
            three.map(|part| tensor(layer, &format!("{part}.bias"), &[width]));
        if self.attention_bias {
            plan.add(
                format!("layer.{layer}.qk.bias"),
                &[2 * width],
                TensorSource::Rows(vec![query, key]),
            );
        }
        if self.query_key_norm {
            for part in ["query_norm", "key_norm"] {
                let theirs = tensor(layer, &format!("attention.self.{part}.weight"), &[width]);
                plan.copy(format!("layer.{layer}.{part}.weight"), theirs);
            }
        }
        self.plan_attention_output(plan, layer, value);
    }

    /// Plans a layer's output projection of attention. `value_bias` ends with the values' bias,
    /// which is folded into the projection's: a row of attention weights sums to one, so it passes
    /// through attention as it is.
    pub fn plan_attention_output(&self, plan: &mut Plan, layer: usize, value_bias: Input) {
        let ours = format!("layer.{layer}.attention_output");
        let shape = [self.hidden, self.attention_width()];
        let weight = tensor(layer, "attention.output.dense.weight", &shape);
        self.plan_scaled(plan, format!("{ours}.weight"), weight.clone());
        if self.attention_bias {
            plan.add(
                format!("{ours}.bias"),
                &[self.hidden],
                TensorSource::Folded {
                    bias: tensor(layer, "attention.output.dense.bias", &[self.hidden]),
                    weight,
                    inner: value_bias,
                    factor: self.residual_scale,
                },
            );
        }
    }

    /// Plans a layer's feed-forward layer. In the checkpoint, the halves of a gated one are dense
    /// layers of their own, `intermediate.gate` and `intermediate.up`, or one,
    /// `intermediate.dense`.
    pub fn plan_feed_forward(&self, plan: &mut Plan, layer: usize) {
        let (up, rows) = (self.up(), self.up_rows());
        let theirs = tensor(layer, "intermediate.dense.weight", &[rows, self.hidden]);
        let ours = format!("layer.{layer}.{up}.weight");
        if self.gated {
            let half = [self.intermediate, self.hidden];
            let halves = ["gate", "up"]
                .map(|part| tensor(layer, &format!("intermediate.{part}.weight"), &half));
            plan.either(ours, halves.into(), theirs);
        } else {
            plan.copy(ours, theirs);
        }
        if self.up_bias {
            let theirs = tensor(layer, "intermediate.dense.bias", &[rows]);
            plan.copy(format!("layer.{layer}.{up}.bias"), theirs);
        }
        let shape = [self.hidden, self.intermediate];
        let theirs = tensor(layer, "output.dense.weight", &shape);
        self.plan_scaled(plan, format!("layer.{layer}.down.weight"), theirs);
        if self.down_bias {
            let theirs = tensor(layer, "output.dense.bias", &[self.hidden]);
            self.plan_scaled(plan, format!("layer.{layer}.down.bias"), theirs);
        }
    }

    /// Plans a tensor that is added to the residual.
    fn plan_scaled(&self, plan: &mut Plan, name: String, input: Input) {
        if (self.residual_scale - 1.0).abs() < f32::EPSILON {
            return plan.copy(name, input);
        }
        let shape = input.shape.clone();
        let source = TensorSource::Scaled {
            input,
            factor: self.residual_scale,
            zero: Vec::new(),
        };
        plan.add(name, &shape, source);
    }

    /// Folds the norm `norm` into the first dense layer of a layer's feed-forward layer.
    pub fn fold_feed_forward(&self, folds: &mut Folds, layer: &str, norm: String) {
        folds.feed_forward(layer, self.up(), norm, self.up_rows());
    }
}

/// A tensor of a layer of the checkpoint.
#[must_use]
pub fn tensor(layer: usize, name: &str, shape: &[usize]) -> Input {
    Input::new(format!("encoder.layer.{layer}.{name}"), shape)
}
