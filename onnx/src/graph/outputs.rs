//! What a graph returns: the hidden states of one or several layers, pooled or for each token.
//!
//! Of several layers, a row has one vector after the other: [rows, layers * hidden]. Each layer is
//! pooled as soon as its block is built, so that a graph of all layers need not keep their hidden
//! states.

use crate::graph::builder::{Attribute, Builder, fixed, named};
use crate::graph::layers::Frame;
use crate::graph::ort_cuda;
use crate::graph::proto::{Dimension, ElementType};
use crate::graph::request::{GraphKind, GraphRequest, Output};

/// The outputs of a graph under construction.
pub struct Outputs<'r> {
    request: &'r GraphRequest,
    /// For each output, what it has of each layer so far. Nothing where there is one layer: then
    /// outputs are declared immediately.
    parts: Vec<Vec<String>>,
    /// Padded: which tokens are in each sequence's range, [batch, length].
    mask: Option<String>,
    /// [`GraphKind::OrtCuda`]: where ranges begin and end, [ranges] each.
    bounds: Option<[String; 2]>,
}

impl<'r> Outputs<'r> {
    /// Those of a request.
    #[must_use]
    pub fn new(request: &'r GraphRequest) -> Self {
        Self {
            request,
            parts: vec![Vec::new(); request.outputs.len()],
            mask: None,
            bounds: None,
        }
    }

    /// The last layer that is needed.
    #[must_use]
    pub fn last(&self) -> usize {
        self.request.layers.last().copied().unwrap_or(0)
    }

    /// Takes the hidden states of a layer, [tokens, hidden], if they are asked for.
    pub fn add(&mut self, frame: &mut Frame<'_, '_>, layer: usize, state: &str) {
        if self.is_wanted(layer) {
            self.add_wanted(frame, state);
        }
    }

    /// Whether a layer is asked for.
    #[must_use]
    pub fn is_wanted(&self, layer: usize) -> bool {
        self.request.layers.contains(&layer)
    }

    fn add_wanted(&mut self, frame: &mut Frame<'_, '_>, state: &str) {
        frame.builder.scope("pool");
        let state = if frame.kind == GraphKind::Padded {
            let rows = frame.as_rows(state, frame.hidden());
            self.make_mask(frame);
            frame.builder.integers("one", &[1], &[1]);
            rows
        } else {
            state.to_owned()
        };
        for (at, &output) in self.request.outputs.iter().enumerate() {
            let part = self.pooled(frame, &state, output);
            if self.request.layers.len() == 1 {
                declare(frame.builder, frame.kind, output, &part, frame.hidden());
            } else {
                self.parts[at].push(part);
            }
        }
    }

    /// Declares the outputs of several layers, when all are there.
    pub fn finish(self, frame: &mut Frame<'_, '_>) {
        let layers = self.request.layers.len();
        if layers == 1 {
            return;
        }
        frame.builder.scope("outputs");
        for (&output, parts) in self.request.outputs.iter().zip(self.parts) {
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let axis = [("axis", Attribute::Int(-1))];
            let all = frame.builder.op("Concat", &parts, &axis);
            let width = layers * frame.hidden();
            declare(frame.builder, frame.kind, output, &all, width);
        }
    }

    /// An output's part of one layer. Padded: from [batch, length, hidden].
    fn pooled(&mut self, frame: &mut Frame<'_, '_>, state: &str, output: Output) -> String {
        let element = frame.builder.element();
        match (frame.kind, output) {
            (GraphKind::Padded, Output::Tokens | Output::HalfTokens) => state.to_owned(),
            (GraphKind::Padded, _) => {
                let mask = self.mask.as_deref().expect("made for all pooled outputs");
                padded(frame.builder, state, mask, output)
            }
            (_, Output::Tokens) => frame.builder.as_type(state, element, ElementType::Float),
            (_, Output::HalfTokens) => frame.builder.as_type(state, element, ElementType::Float16),
            (GraphKind::OrtCuda, _) => {
                let bounds = self
                    .bounds
                    .get_or_insert_with(|| ort_cuda::bounds(frame.builder));
                ort_cuda::pooled(frame.builder, state, bounds, output)
            }
            (GraphKind::Packed | GraphKind::Fused, Output::Mean) => {
                let inputs = [state, "pool_range"];
                frame.builder.op("seqembed:PoolMean", &inputs, &[])
            }
            (GraphKind::Packed | GraphKind::Fused, Output::Max) => {
                let inputs = [state, "pool_range"];
                frame.builder.op("seqembed:PoolMax", &inputs, &[])
            }
        }
    }

    /// Padded: which tokens are pooled.
    fn make_mask(&mut self, frame: &mut Frame<'_, '_>) {
        let is_pooled = |output: &Output| matches!(output, Output::Mean | Output::Max);
        if self.mask.is_some() || !self.request.outputs.iter().any(is_pooled) {
            return;
        }
        let positions = frame.positions();
        let builder = &mut *frame.builder;
        let two = builder.integers("two_columns", &[2], &[1, 1]);
        let axis = [("axis", Attribute::Int(1))];
        let [start, end] = builder.ops("Split", &["pool_range", &two], &axis, [true, true]);
        let after = builder.op("GreaterOrEqual", &[&positions, &start], &[]);
        let before = builder.op("Less", &[&positions, &end], &[]);
        self.mask = Some(builder.op("And", &[&after, &before], &[]));
    }
}

/// Rows [batch, length, hidden] pooled where the mask is set, [batch, hidden].
fn padded(builder: &mut Builder<'_>, rows: &str, mask: &str, output: Output) -> String {
    let one = builder.integers("one", &[1], &[1]);
    if output == Output::Max {
        let last = builder.integers("two", &[1], &[2]);
        let mask = builder.op("Unsqueeze", &[mask, &last], &[]);
        let lowest = builder.floats("lowest", &[], &[f32::NEG_INFINITY]);
        let inside = builder.op("Where", &[&mask, rows, &lowest], &[]);
        let dropped = [("keepdims", Attribute::Int(0))];
        return builder.op("ReduceMax", &[&inside, &one], &dropped);
    }
    let weights = builder.cast(mask, ElementType::Float);
    let kept = [("keepdims", Attribute::Int(1))];
    let count = builder.op("ReduceSum", &[&weights, &one], &kept);
    let weights = builder.op("Unsqueeze", &[&weights, &one], &[]);
    let sum = builder.op("MatMul", &[&weights, rows], &[]);
    let sum = builder.op("Squeeze", &[&sum, &one], &[]);
    builder.op("Div", &[&sum, &count], &[])
}

/// Declares that a value of rows `width` wide is an output.
fn declare(builder: &mut Builder<'_>, kind: GraphKind, output: Output, from: &str, width: usize) {
    let (name, element) = match output {
        Output::Mean => ("mean", ElementType::Float),
        Output::Max => ("max", ElementType::Float),
        Output::Tokens => ("tokens", ElementType::Float),
        Output::HalfTokens => ("tokens", ElementType::Float16),
    };
    let rows: &[Dimension] = match (kind, output) {
        (GraphKind::Padded, Output::Mean | Output::Max) => &[named("batch")],
        (GraphKind::Padded, _) => &[named("batch"), named("length")],
        (_, Output::Mean | Output::Max) => &[named("ranges")],
        (_, _) => &[named("tokens")],
    };
    let shape = [rows, &[fixed(width)]].concat();
    builder.output_of(element, name, from, &shape);
}
