//! What the graphs of all families share: inputs, norms, dense layers, multi-head attention.

use crate::graph::builder::{Attribute, Builder, fixed, long, named};
use crate::graph::ort_cuda;
use crate::graph::proto::ElementType;
use crate::graph::request::GraphKind;

/// How rows are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Less their mean, divided by their deviation (Ba et al., 2016), times a weight.
    LayerNorm {
        /// Whether a bias is added.
        bias: bool,
    },
    /// Divided by the root of the mean of their squares (Zhang and Sennrich, 2019), times a weight.
    RmsNorm,
}

/// The activation between two dense layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * P(X <= x)`, X standard normal, by the error function (Hendrycks and Gimpel, 2016).
    Gelu,
    /// The same approximated by tanh, `gelu_new` in transformers.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x * sigmoid(x)`, also called Swish.
    Silu,
}

/// A feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedForward {
    /// The activation between its dense layers.
    pub activation: Activation,
    /// Gated (Shazeer, 2020): how many columns each half has that the first dense layer gives;
    /// `activation(left) * right` goes on.
    pub half: Option<usize>,
    /// Whether the first dense layer has a bias.
    pub up_bias: bool,
}

/// A graph under construction, with its inputs declared.
pub struct Frame<'builder, 'table> {
    /// Receives nodes and weights.
    pub builder: &'builder mut Builder<'table>,
    /// The engine that the graph is for.
    pub kind: GraphKind,
    hidden: usize,
    norm: Norm,
    epsilon: f32,
    /// Width of all heads together.
    attention_width: usize,
    /// Padded: the shape [batch, length, hidden].
    rows: Option<String>,
}

impl<'builder, 'table> Frame<'builder, 'table> {
    /// Declares the inputs: token ids, how they are divided into sequences, and the ranges to pool.
    /// The widths are those of a token's vector and of all heads together; `norm` is the kind of
    /// all norms, and what is added to a variance.
    pub fn new(
        builder: &'builder mut Builder<'table>,
        kind: GraphKind,
        [hidden, attention_width]: [usize; 2],
        norm: (Norm, f32),
    ) -> Self {
        let mut rows = None;
        match kind {
            GraphKind::Padded => {
                builder.input(
                    "input_ids",
                    ElementType::Int64,
                    &[named("batch"), named("length")],
                );
                builder.input("lengths", ElementType::Int32, &[named("batch")]);
                builder.input(
                    "pool_range",
                    ElementType::Int64,
                    &[named("batch"), fixed(2)],
                );
                builder.scope("positions");
                let shape = builder.op("Shape", &["input_ids"], &[]);
                let width = builder.integers("hidden", &[1], &[long(hidden)]);
                rows =
                    Some(builder.op("Concat", &[&shape, &width], &[("axis", Attribute::Int(0))]));
            }
            GraphKind::OrtCuda => ort_cuda::inputs(builder),
            GraphKind::Packed | GraphKind::Fused => {
                builder.input("input_ids", ElementType::Int64, &[named("tokens")]);
                builder.input(
                    "sequence_starts",
                    ElementType::Int32,
                    &[named("sequences_and_one")],
                );
                builder.input(
                    "pool_range",
                    ElementType::Int32,
                    &[named("ranges"), fixed(2)],
                );
            }
        }
        Self {
            builder,
            kind,
            hidden,
            norm: norm.0,
            epsilon: norm.1,
            attention_width,
            rows,
        }
    }

    /// Width of a token's vector.
    #[must_use]
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// The rows of the table `embedding` for all tokens, [tokens, hidden].
    pub fn embedding(&mut self) -> String {
        let table = self.builder.weight("embedding");
        self.token_rows(&table)
    }

    /// The rows of a table for all tokens, [tokens, columns of the table].
    pub fn token_rows(&mut self, table: &str) -> String {
        let builder = &mut *self.builder;
        match self.kind {
            GraphKind::Padded => {
                let flat = builder.integers("flat", &[1], &[-1]);
                let ids = builder.op("Reshape", &["input_ids", &flat], &[]);
                builder.op("Gather", &[table, &ids], &[])
            }
            GraphKind::Packed | GraphKind::OrtCuda => {
                builder.op("Gather", &[table, "input_ids"], &[])
            }
            GraphKind::Fused => builder.op("seqembed:TokenRows", &[table, "input_ids"], &[]),
        }
    }

    /// Padded: 0, 1, ... up to a row's length, int64 [length].
    pub fn positions(&mut self) -> String {
        let builder = &mut *self.builder;
        let length = builder.op(
            "Shape",
            &["input_ids"],
            &[("start", Attribute::Int(1)), ("end", Attribute::Int(2))],
        );
        let axis = builder.integers("zero", &[1], &[0]);
        let length = builder.op("Squeeze", &[&length, &axis], &[]);
        let first = builder.integers("first", &[], &[0]);
        let step = builder.integers("step", &[], &[1]);
        builder.op("Range", &[&first, &length, &step], &[])
    }

    /// Padded: a matrix of all tokens, of so many columns, as [batch, length, width].
    ///
    /// # Panics
    /// In a packed graph.
    pub fn as_rows(&mut self, flat: &str, width: usize) -> String {
        let rows = self.rows.clone().expect("only padded graphs have rows");
        let rows = if width == self.hidden {
            rows
        } else {
            let shape = self.builder.op("Shape", &["input_ids"], &[]);
            let width = self.builder.integers("heads_width", &[1], &[long(width)]);
            let axis = [("axis", Attribute::Int(0))];
            self.builder.op("Concat", &[&shape, &width], &axis)
        };
        self.builder.op("Reshape", &[flat, &rows], &[])
    }

    /// Padded: [batch, length, width] as a matrix of all tokens.
    pub fn as_flat(&mut self, rows: &str, width: usize) -> String {
        let name = if width == self.hidden {
            "flat_rows"
        } else {
            "flat_heads"
        };
        let flat = self.builder.integers(name, &[2], &[-1, long(width)]);
        self.builder.op("Reshape", &[rows, &flat], &[])
    }

    /// Whether the graph's operators are those of seqembed's CUDA kernels, which compute in 16
    /// bits.
    #[must_use]
    pub fn has_cuda_operators(&self) -> bool {
        matches!(self.kind, GraphKind::Packed | GraphKind::Fused)
            && self.builder.element() != ElementType::Float
    }

    /// Zeros in the place of a bias that a model lacks, [width].
    fn zeros(&mut self, name: &'static str, width: usize) -> String {
        let zeros = self.builder.floats(name, &[width], &vec![0.0; width]);
        let element = self.builder.element();
        self.builder.as_type(&zeros, ElementType::Float, element)
    }

    /// The attribute `epsilon` of all layer norms.
    #[must_use]
    pub fn epsilon(&self) -> (&'static str, Attribute) {
        ("epsilon", Attribute::Float(self.epsilon))
    }

    /// The norm called `name`.
    pub fn norm(&mut self, state: &str, name: &str) -> String {
        let gamma = self.builder.weight(&format!("{name}.weight"));
        let beta = self.beta(name);
        self.norm_by(state, &gamma, beta.as_deref())
    }

    /// A norm without bias by the tensor `gamma`.
    pub fn norm_without_bias(&mut self, state: &str, gamma: &str) -> String {
        self.norm_by(state, gamma, None)
    }

    /// The bias of the norm called `name`, if it has one.
    fn beta(&mut self, name: &str) -> Option<String> {
        let bias = format!("{name}.bias");
        self.builder.has(&bias).then(|| self.builder.weight(&bias))
    }

    fn norm_by(&mut self, state: &str, gamma: &str, beta: Option<&str>) -> String {
        let epsilon = self.epsilon();
        if self.kind == GraphKind::Fused {
            let beta = beta.map_or_else(|| self.zeros("no_norm_bias", self.hidden), str::to_owned);
            let inputs = [state, gamma, &beta];
            return self.builder.op("seqembed:LayerNorm", &inputs, &[epsilon]);
        }
        let mut inputs = vec![state, gamma];
        inputs.extend(beta);
        let operator = match self.norm {
            Norm::LayerNorm { .. } => "LayerNormalization",
            Norm::RmsNorm => "SimplifiedLayerNormalization",
        };
        let attributes = [("axis", Attribute::Int(-1)), epsilon];
        self.builder.op(operator, &inputs, &attributes)
    }

    /// `sum = state + skip + bias` and its norm, as (norm, sum).
    pub fn skip_norm(
        &mut self,
        state: &str,
        skip: &str,
        bias: Option<&str>,
        name: &str,
        want_sum: bool,
    ) -> [String; 2] {
        let gamma = self.builder.weight(&format!("{name}.weight"));
        let mut beta = self.beta(name);
        let mut bias = bias.map(|bias| self.builder.weight(bias));
        if self.has_cuda_operators() {
            for bias in [&mut beta, &mut bias] {
                bias.get_or_insert_with(|| self.zeros("no_norm_bias", self.hidden));
            }
        }
        let attributes = [self.epsilon()];
        let ours = matches!(self.kind, GraphKind::Packed | GraphKind::Fused);
        if let (true, Some(beta), Some(bias)) = (ours, &beta, &bias) {
            return self.builder.ops(
                "seqembed:SkipLayerNorm",
                &[state, skip, &gamma, beta, bias],
                &attributes,
                [true, want_sum],
            );
        }
        let mut inputs = vec![state, skip, &gamma];
        let operator = match self.norm {
            Norm::LayerNorm { .. } => {
                if beta.is_some() || bias.is_some() {
                    // An empty name is an input that is left out.
                    inputs.push(beta.as_deref().unwrap_or_default());
                }
                "com.microsoft:SkipLayerNormalization"
            }
            Norm::RmsNorm => "com.microsoft:SkipSimplifiedLayerNormalization",
        };
        inputs.extend(bias.as_deref());
        let wanted = [true, false, false, want_sum];
        let [norm, _, _, sum] = self.builder.ops(operator, &inputs, &attributes, wanted);
        [norm, sum]
    }

    /// `state @ weight^T + bias`.
    pub fn dense(&mut self, state: &str, weight: &str, bias: Option<&str>) -> String {
        let mut inputs = vec![state, weight];
        inputs.extend(bias);
        self.builder
            .op("Gemm", &inputs, &[("transB", Attribute::Int(1))])
    }

    /// The feed-forward layer of `layer`: its first dense layer is `up`, or `gated`, and its second
    /// `down`, whose bias is left to what follows.
    pub fn feed_forward(&mut self, state: &str, layer: &str, form: FeedForward) -> String {
        let inner = match form.half {
            Some(half) => self.gated(state, layer, form, half),
            None => self.plain_up(state, layer, form),
        };
        let weight = self.builder.weight(&format!("{layer}.down.weight"));
        self.dense(&inner, &weight, None)
    }

    fn plain_up(&mut self, state: &str, layer: &str, form: FeedForward) -> String {
        let weight = self.builder.weight(&format!("{layer}.up.weight"));
        let bias = form
            .up_bias
            .then(|| self.builder.weight(&format!("{layer}.up.bias")));
        if let (Activation::Gelu, Some(bias)) = (form.activation, &bias) {
            let gelu = match self.kind {
                GraphKind::Padded | GraphKind::OrtCuda => "com.microsoft:BiasGelu",
                GraphKind::Packed | GraphKind::Fused => "seqembed:BiasGelu",
            };
            let up = self.dense(state, &weight, None);
            return self.builder.op(gelu, &[&up, bias], &[]);
        }
        let up = self.dense(state, &weight, bias.as_deref());
        self.activated(&up, form.activation)
    }

    /// `activation(left) * right`, of the two halves of the dense layer `gated`.
    fn gated(&mut self, state: &str, layer: &str, form: FeedForward, half: usize) -> String {
        let gated = format!("{layer}.gated.weight");
        let packed = matches!(self.kind, GraphKind::Packed | GraphKind::Fused);
        let operator = match form.activation {
            Activation::Gelu if packed => Some("seqembed:Geglu"),
            Activation::Silu if self.has_cuda_operators() => Some("seqembed:Swiglu"),
            _ => None,
        };
        if let (Some(operator), false) = (operator, form.up_bias) {
            let weight = self.builder.weight(&gated);
            let both = self.dense(state, &weight, None);
            return self.builder.op(operator, &[&both], &[]);
        }
        // Two views of the one weight, as with queries, keys and values.
        let [left, right] = [("left", 0), ("right", half)].map(|(side, first)| {
            let mut view = |kind: &str| {
                self.builder.weight_rows(
                    &format!("{layer}.gated.{kind}"),
                    &format!("{layer}.gated_{side}.{kind}"),
                    first,
                    half,
                )
            };
            let weight = view("weight");
            let bias = form.up_bias.then(|| view("bias"));
            self.dense(state, &weight, bias.as_deref())
        });
        let left = self.activated(&left, form.activation);
        self.builder.op("Mul", &[&left, &right], &[])
    }

    fn activated(&mut self, x: &str, activation: Activation) -> String {
        match activation {
            Activation::Gelu => self.builder.op("com.microsoft:Gelu", &[x], &[]),
            Activation::GeluTanh => self.builder.op("com.microsoft:FastGelu", &[x], &[]),
            Activation::Relu => self.builder.op("Relu", &[x], &[]),
            Activation::Silu => {
                let alpha = [("alpha", Attribute::Float(1.0))];
                self.builder.op("com.microsoft:QuickGelu", &[x], &alpha)
            }
        }
    }

    /// The product of the output projection of a layer's attention, whose bias is left to what
    /// follows.
    pub fn project(&mut self, attended: &str, layer: &str) -> String {
        let weight = self
            .builder
            .weight(&format!("{layer}.attention_output.weight"));
        self.dense(attended, &weight, None)
    }

    /// Packed: queries, keys and values without bias, [tokens, 3 * width], and the bias of queries
    /// and keys.
    pub fn qkv(&mut self, state: &str, layer: &str, bias: bool) -> [String; 2] {
        let weight = self.builder.weight(&format!("{layer}.qkv.weight"));
        let bias = if bias {
            self.builder.weight(&format!("{layer}.qk.bias"))
        } else {
            self.no_bias()
        };
        [self.dense(state, &weight, None), bias]
    }

    /// Zeros for the bias of queries and keys, where a model has none.
    pub fn no_bias(&mut self) -> String {
        self.zeros("no_bias", 2 * self.attention_width)
    }

    /// Weight and bias of one of queries (0), keys (1) and values (2): a view of the one tensor of
    /// all three, so that nothing has to be split afterwards. Values have no bias: it is folded
    /// into what follows.
    pub fn projection(
        &mut self,
        layer: &str,
        index: usize,
        bias: bool,
    ) -> (String, Option<String>) {
        let width = self.attention_width;
        let what = ["query", "key", "value"][index];
        let mut part = |of: &str, kind: &str| {
            self.builder.weight_rows(
                &format!("{layer}.{of}.{kind}"),
                &format!("{layer}.{what}.{kind}"),
                index * width,
                width,
            )
        };
        let weight = part("qkv", "weight");
        let bias = (bias && index < 2).then(|| part("qk", "bias"));
        (weight, bias)
    }

    /// Padded, and with ONNX Runtime's CUDA operators: attention, with what is added to all scores
    /// ([1, heads, length, length]), as [tokens, hidden]. Products are multiplied by `scale`, else
    /// divided by the root of a head's width.
    pub fn attention(
        &mut self,
        [query, key, value]: &[String; 3],
        heads: usize,
        added: Option<&str>,
        scale: Option<f32>,
    ) -> String {
        let mut attributes = vec![("num_heads", Attribute::Int(long(heads)))];
        attributes.extend(scale.map(|scale| ("scale", Attribute::Float(scale))));
        if self.kind == GraphKind::OrtCuda {
            return ort_cuda::attention(self.builder, [query, key, value], added, &attributes);
        }
        let mut inputs = vec![query.as_str(), key, value, "", "lengths"];
        inputs.extend(added);
        let rows = self
            .builder
            .op("com.microsoft:MultiHeadAttention", &inputs, &attributes);
        self.as_flat(&rows, self.attention_width)
    }
}
