//! Fused graphs: the hidden states between blocks. There are no separate layer norms: dense layers
//! include them (their weights are folded, see [`crate::weights::norm_fold`]), add the residual,
//! and output what the next norm needs of each row. In fp8, the rows between the dense layers of a
//! feed-forward layer have 8 bits.

use crate::graph::builder::Attribute;
use crate::graph::layers::{Activation, FeedForward, Frame};
use crate::graph::request::Precision;
use crate::weights::fp8;
use crate::weights::norm_fold::GAIN;

/// The hidden states on their way through the blocks.
pub struct Stream {
    /// Before any norm, [tokens, hidden].
    pub state: String,
    /// The sum and the sum of squares of each row, in parts, [tokens, parts, 2].
    moments: String,
    /// Where the residual is normed: the norm that is due.
    due: Option<String>,
}

impl Stream {
    /// For pre-norm blocks.
    pub fn begin(frame: &mut Frame<'_, '_>, state: &str) -> Self {
        Self {
            state: state.to_owned(),
            moments: frame.builder.op("seqembed:RowMoments", &[state], &[]),
            due: None,
        }
    }

    /// For post-norm blocks: `norm` is the norm of the embeddings.
    pub fn begin_normed(frame: &mut Frame<'_, '_>, state: &str, norm: &str) -> Self {
        Self {
            due: Some(norm.to_owned()),
            ..Self::begin(frame, state)
        }
    }

    /// A dense layer after a norm, with what else its operator takes, [tokens, rows of the
    /// weight].
    pub fn dense(
        &self,
        frame: &mut Frame<'_, '_>,
        operator: &'static str,
        weight: &str,
        others: &[&str],
    ) -> String {
        let weight = frame.builder.weight(weight);
        let mut inputs = vec![self.state.as_str(), &self.moments, &weight];
        inputs.extend(others);
        let attributes = [frame.epsilon(), ("gain", Attribute::Float(GAIN))];
        frame.builder.op(operator, &inputs, &attributes)
    }

    /// Queries, keys and values without bias, [tokens, 3 * hidden], and the bias of queries and
    /// keys.
    pub fn qkv(&self, frame: &mut Frame<'_, '_>, layer: &str) -> [String; 2] {
        let qkv = self.dense(
            frame,
            "seqembed:NormDense",
            &format!("{layer}.qkv.weight"),
            &[],
        );
        [qkv, frame.builder.weight(&format!("{layer}.qk.bias"))]
    }

    /// The same of the first block, where nothing but the word makes a token's embedding: in each
    /// batch, they are computed once for each word of the table `embedding`, and looked up.
    pub fn qkv_of_words(frame: &mut Frame<'_, '_>, layer: &str) -> [String; 2] {
        let table = frame.builder.weight("embedding");
        let [words, bias] = Self::begin(frame, &table).qkv(frame, layer);
        [frame.token_rows(&words), bias]
    }

    /// Adds attention's projection, `layer.attention_output`.
    pub fn add_attention(&mut self, frame: &mut Frame<'_, '_>, attended: &str, layer: &str) {
        self.add(frame, attended, layer, "attention_output");
    }

    /// Adds the feed-forward layer: `layer.down` of `layer.up` with its activation, or of
    /// `layer.gated`, where the activation of the first half of the columns multiplies the second.
    pub fn add_feed_forward(&mut self, frame: &mut Frame<'_, '_>, layer: &str, form: FeedForward) {
        let (part, operator, fp8_operator) = match (form.half, form.activation) {
            (Some(_), Activation::Silu) => (
                "gated",
                "seqembed:NormDenseSwiglu",
                "seqembed:NormDenseSwigluFp8",
            ),
            (Some(_), _) => (
                "gated",
                "seqembed:NormDenseGeglu",
                "seqembed:NormDenseGegluFp8",
            ),
            (None, _) => ("up", "seqembed:NormDenseGelu", "seqembed:NormDenseGeluFp8"),
        };
        let weight = format!("{layer}.{part}.weight");
        let bias = frame.builder.weight(&format!("{layer}.{part}.bias"));
        if frame.builder.precision() == Precision::Fp8 {
            return self.add_feed_forward_fp8(frame, layer, fp8_operator, [&weight, &bias]);
        }
        let up = self.dense(frame, operator, &weight, &[&bias]);
        self.add(frame, &up, layer, "down");
    }

    /// The feed-forward layer in fp8, which only pre-norm blocks have.
    fn add_feed_forward_fp8(
        &mut self,
        frame: &mut Frame<'_, '_>,
        layer: &str,
        operator: &'static str,
        [weight, bias]: [&str; 2],
    ) {
        let epsilon = frame.epsilon();
        let builder = &mut *frame.builder;
        let gain = |scale: f32| ("gain", Attribute::Float(1.0 / scale));
        let inputs = [self.state.as_str(), &self.moments];
        let [rows, factors] =
            builder.ops("seqembed:QuantizeRows", &inputs, &[epsilon], [true, true]);
        let weight = builder.weight(weight);
        let up = builder.op(
            operator,
            &[&rows, &factors, &weight, bias],
            &[gain(fp8::WEIGHT_SCALE)],
        );
        let [weight, bias] =
            ["weight", "bias"].map(|part| builder.weight(&format!("{layer}.down.{part}")));
        [self.state, self.moments] = builder.ops(
            "seqembed:DenseResidualFp8",
            &[&up, &weight, &bias, &self.state],
            &[gain(fp8::WEIGHT_SCALE * fp8::ACTIVATION_SCALE)],
            [true, true],
        );
    }

    /// Adds the dense layer `layer.part` of `x`.
    fn add(&mut self, frame: &mut Frame<'_, '_>, x: &str, layer: &str, part: &str) {
        let weight = frame.builder.weight(&format!("{layer}.{part}.weight"));
        let bias = frame.builder.weight(&format!("{layer}.{part}.bias"));
        let mut inputs = vec![x, &weight, &bias, &self.state];
        let gamma = self
            .due
            .as_ref()
            .map(|norm| frame.builder.weight(&format!("{norm}.weight")));
        let outputs = match &gamma {
            Some(gamma) => {
                inputs.extend([self.moments.as_str(), gamma]);
                let epsilon = [frame.epsilon()];
                let operator = "seqembed:DenseResidualNorm";
                frame.builder.ops(operator, &inputs, &epsilon, [true, true])
            }
            None => frame
                .builder
                .ops("seqembed:DenseResidual", &inputs, &[], [true, true]),
        };
        [self.state, self.moments] = outputs;
    }

    /// The norm that is due from here on.
    pub fn due(&mut self, norm: String) {
        self.due = Some(norm);
    }
}
