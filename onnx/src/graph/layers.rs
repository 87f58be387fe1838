//! What the graphs of all architectures share: inputs, layer norms, dense layers, multi-head attention, pooled outputs.

use crate::families::{GraphKind, GraphRequest, Output};
use crate::graph::builder::{Attribute, Builder, fixed, long, named};
use crate::graph::ort_cuda;
use crate::graph::proto::ElementType;

/// A graph under construction, with its inputs declared.
pub struct Frame<'builder, 'table> {
    /// Takes nodes and weights.
    pub builder: &'builder mut Builder<'table>,
    /// For which engine.
    pub kind: GraphKind,
    hidden: usize,
    epsilon: f32,
    /// Padded: the shape [batch, length, hidden].
    rows: Option<String>,
}

impl<'builder, 'table> Frame<'builder, 'table> {
    /// Declares the inputs: token ids, how they are divided into sequences, and the ranges to pool.
    pub fn new(
        builder: &'builder mut Builder<'table>,
        kind: GraphKind,
        hidden: usize,
        epsilon: f32,
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
            GraphKind::Plain => ort_cuda::inputs(builder),
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
            epsilon,
            rows,
        }
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
            GraphKind::Packed | GraphKind::Plain => {
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

    /// Padded: a matrix of all tokens as [batch, length, hidden].
    ///
    /// # Panics
    /// In a packed graph.
    pub fn as_rows(&mut self, flat: &str) -> String {
        let rows = self
            .rows
            .as_ref()
            .expect("asked for of padded graphs alone");
        self.builder.op("Reshape", &[flat, rows], &[])
    }

    /// Padded: [batch, length, hidden] as a matrix of all tokens.
    pub fn as_flat(&mut self, rows: &str) -> String {
        let flat = self
            .builder
            .integers("flat_rows", &[2], &[-1, long(self.hidden)]);
        self.builder.op("Reshape", &[rows, &flat], &[])
    }

    /// The attribute `epsilon` of all layer norms.
    #[must_use]
    pub fn epsilon(&self) -> (&'static str, Attribute) {
        ("epsilon", Attribute::Float(self.epsilon))
    }

    /// The layer norm called `name`.
    pub fn norm(&mut self, state: &str, name: &str) -> String {
        let gamma = self.builder.weight(&format!("{name}.weight"));
        let beta = self.builder.weight(&format!("{name}.bias"));
        let inputs = [state, &gamma, &beta];
        let epsilon = self.epsilon();
        if self.kind == GraphKind::Fused {
            return self.builder.op("seqembed:LayerNorm", &inputs, &[epsilon]);
        }
        let attributes = [("axis", Attribute::Int(-1)), epsilon];
        self.builder.op("LayerNormalization", &inputs, &attributes)
    }

    /// `sum = state + skip + bias` and its layer norm, as (norm, sum).
    pub fn skip_norm(
        &mut self,
        state: &str,
        skip: &str,
        bias: &str,
        name: &str,
        want_sum: bool,
    ) -> [String; 2] {
        let gamma = self.builder.weight(&format!("{name}.weight"));
        let beta = self.builder.weight(&format!("{name}.bias"));
        let bias = self.builder.weight(bias);
        let inputs = [state, skip, &gamma, &beta, &bias];
        let attributes = [self.epsilon()];
        match self.kind {
            GraphKind::Padded | GraphKind::Plain => {
                let [norm, _, _, sum] = self.builder.ops(
                    "com.microsoft:SkipLayerNormalization",
                    &inputs,
                    &attributes,
                    [true, false, false, want_sum],
                );
                [norm, sum]
            }
            GraphKind::Packed | GraphKind::Fused => self.builder.ops(
                "seqembed:SkipLayerNorm",
                &inputs,
                &attributes,
                [true, want_sum],
            ),
        }
    }

    /// `state @ weight^T + bias`.
    pub fn dense(&mut self, state: &str, weight: &str, bias: Option<&str>) -> String {
        let mut inputs = vec![state, weight];
        inputs.extend(bias);
        self.builder
            .op("Gemm", &inputs, &[("transB", Attribute::Int(1))])
    }

    /// The dense layer `layer.up`, bias and GELU, and the product of `layer.down`, whose bias is left to what follows.
    pub fn feed_forward(&mut self, state: &str, layer: &str) -> String {
        let weight = self.builder.weight(&format!("{layer}.up.weight"));
        let bias = self.builder.weight(&format!("{layer}.up.bias"));
        let gelu = match self.kind {
            GraphKind::Padded | GraphKind::Plain => "com.microsoft:BiasGelu",
            GraphKind::Packed | GraphKind::Fused => "seqembed:BiasGelu",
        };
        let up = self.dense(state, &weight, None);
        let up = self.builder.op(gelu, &[&up, &bias], &[]);
        let weight = self.builder.weight(&format!("{layer}.down.weight"));
        self.dense(&up, &weight, None)
    }

    /// The product of the output projection of a layer's attention, whose bias is left to what follows.
    pub fn project(&mut self, attended: &str, layer: &str) -> String {
        let weight = self
            .builder
            .weight(&format!("{layer}.attention_output.weight"));
        self.dense(attended, &weight, None)
    }

    /// Packed: queries, keys and values without bias, [tokens, 3 * hidden], and the bias of queries and keys.
    pub fn qkv(&mut self, state: &str, layer: &str) -> [String; 2] {
        let weight = self.builder.weight(&format!("{layer}.qkv.weight"));
        let bias = self.builder.weight(&format!("{layer}.qk.bias"));
        [self.dense(state, &weight, None), bias]
    }

    /// Weight and bias of one of queries (0), keys (1) and values (2): a view of the one tensor of all three, so that
    /// nothing has to be split afterwards. Values have no bias.
    pub fn projection(&mut self, layer: &str, index: usize) -> (String, Option<String>) {
        let hidden = self.hidden;
        let what = ["query", "key", "value"][index];
        let mut part = |of: &str, kind: &str| {
            self.builder.weight_rows(
                &format!("{layer}.{of}.{kind}"),
                &format!("{layer}.{what}.{kind}"),
                index * hidden,
                hidden,
            )
        };
        let weight = part("qkv", "weight");
        let bias = (index < 2).then(|| part("qk", "bias"));
        (weight, bias)
    }

    /// Queries, keys and values: padded [batch, length, hidden] each, plain [tokens, hidden].
    pub fn split_qkv(&mut self, state: &str, layer: &str) -> [String; 3] {
        [0, 1, 2].map(|index| {
            let (weight, bias) = self.projection(layer, index);
            let flat = self.dense(state, &weight, bias.as_deref());
            match self.kind {
                GraphKind::Padded => self.as_rows(&flat),
                GraphKind::Packed | GraphKind::Fused | GraphKind::Plain => flat,
            }
        })
    }

    /// Padded and plain: attention, with what is added to all scores ([1, heads, length, length]), as [tokens, hidden].
    pub fn attention(
        &mut self,
        [query, key, value]: &[String; 3],
        heads: usize,
        added: Option<&str>,
    ) -> String {
        if self.kind == GraphKind::Plain {
            return ort_cuda::attention(self.builder, [query, key, value], heads, added);
        }
        let mut inputs = vec![query.as_str(), key, value, "", "lengths"];
        inputs.extend(added);
        let rows = self.builder.op(
            "com.microsoft:MultiHeadAttention",
            &inputs,
            &[("num_heads", Attribute::Int(long(heads)))],
        );
        self.as_flat(&rows)
    }

    /// Declares what the graph gives back: the hidden states `state` [tokens, hidden], pooled or not.
    pub fn outputs(&mut self, state: &str, request: &GraphRequest) {
        self.builder.scope("pool");
        match self.kind {
            GraphKind::Padded => self.padded_outputs(state, request),
            GraphKind::Packed | GraphKind::Fused => self.packed_outputs(state, request),
            GraphKind::Plain => ort_cuda::outputs(self.builder, self.hidden, state, request),
        }
    }

    /// Without padding: the output `tokens`.
    fn tokens(&mut self, state: &str, output: Output) {
        let element = match output {
            Output::HalfTokens => ElementType::Float16,
            _ => ElementType::Float,
        };
        let builder = &mut *self.builder;
        let state = builder.as_type(state, builder.element(), element);
        builder.output_of(
            element,
            "tokens",
            &state,
            &[named("tokens"), fixed(self.hidden)],
        );
    }

    fn packed_outputs(&mut self, state: &str, request: &GraphRequest) {
        let width = fixed(self.hidden);
        for output in &request.outputs {
            let (name, operator) = match output {
                Output::Tokens | Output::HalfTokens => {
                    self.tokens(state, *output);
                    continue;
                }
                Output::Mean => ("mean", "seqembed:PoolMean"),
                Output::Max => ("max", "seqembed:PoolMax"),
            };
            let pooled = self.builder.op(operator, &[state, "pool_range"], &[]);
            self.builder
                .output(name, &pooled, &[named("ranges"), width.clone()]);
        }
    }

    fn padded_outputs(&mut self, state: &str, request: &GraphRequest) {
        let tokens = &self.as_rows(state);
        let pooled = request
            .outputs
            .iter()
            .any(|output| matches!(output, Output::Mean | Output::Max));
        let mask = pooled.then(|| {
            let positions = self.positions();
            let two = self.builder.integers("two_columns", &[2], &[1, 1]);
            let [start, end] = self.builder.ops(
                "Split",
                &["pool_range", &two],
                &[("axis", Attribute::Int(1))],
                [true, true],
            );
            let after = self
                .builder
                .op("GreaterOrEqual", &[&positions, &start], &[]);
            let before = self.builder.op("Less", &[&positions, &end], &[]);
            self.builder.op("And", &[&after, &before], &[])
        });
        let hidden = fixed(self.hidden);
        let builder = &mut *self.builder;
        let one = builder.integers("one", &[1], &[1]);
        let rows = [named("batch"), hidden.clone()];
        for output in &request.outputs {
            match (output, &mask) {
                (Output::Mean, Some(mask)) => {
                    let weights = builder.op(
                        "Cast",
                        &[mask],
                        &[("to", Attribute::Int(ElementType::Float as i64))],
                    );
                    let count = builder.op(
                        "ReduceSum",
                        &[&weights, &one],
                        &[("keepdims", Attribute::Int(1))],
                    );
                    let weights = builder.op("Unsqueeze", &[&weights, &one], &[]);
                    let sum = builder.op("MatMul", &[&weights, tokens], &[]);
                    let sum = builder.op("Squeeze", &[&sum, &one], &[]);
                    let mean = builder.op("Div", &[&sum, &count], &[]);
                    builder.output("mean", &mean, &rows);
                }
                (Output::Max, Some(mask)) => {
                    let last = builder.integers("two", &[1], &[2]);
                    let mask = builder.op("Unsqueeze", &[mask, &last], &[]);
                    let lowest = builder.floats("lowest", &[], &[f32::NEG_INFINITY]);
                    let inside = builder.op("Where", &[&mask, tokens, &lowest], &[]);
                    let max = builder.op(
                        "ReduceMax",
                        &[&inside, &one],
                        &[("keepdims", Attribute::Int(0))],
                    );
                    builder.output("max", &max, &rows);
                }
                _ => builder.output(
                    "tokens",
                    tokens,
                    &[named("batch"), named("length"), hidden.clone()],
                ),
            }
        }
    }
}
