//! DNABERT-2 (Zhou et al., 2024) and DNABERT-S (Zhou et al., 2025): one architecture, that of `MosaicBERT` (Portes et al., 2023).
//! Post-norm blocks, `ALiBi` in both directions instead of position embeddings, a gated feed-forward layer.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::leftovers::Names;
use crate::error::Error;
use crate::families::block;
use crate::families::config::{Config, check_sizes};
use crate::families::post_norm;
use crate::families::post_norm::Blocks;
use crate::families::sample_bpe::sample_bpe;
use crate::families::{Description, GraphKind, GraphRequest, Sizes};
use crate::graph::builder::{Attribute, Builder};
use crate::graph::layers::Frame;
use crate::graph::ort_cuda;
use crate::graph::proto::ElementType;
use crate::weights::norm_fold::Folds;
use crate::weights::table::{Input, Plan, Planned, Recipe};

/// Sizes of a model of this architecture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dnabert2 {
    /// Blocks.
    pub layers: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside the feed-forward layer, of each of its two halves.
    pub intermediate: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Rows of the table of token types, of which the first alone is used.
    pub token_types: usize,
    /// Added to a layer norm's variance.
    pub layer_norm_eps: f32,
}

impl Dnabert2 {
    /// The published sizes, which DNABERT-2 and DNABERT-S share.
    #[must_use]
    pub fn published() -> Self {
        Self {
            layers: 12,
            hidden: 768,
            heads: 12,
            intermediate: 3072,
            vocabulary: 4096,
            token_types: 2,
            layer_norm_eps: 1e-12,
        }
    }

    /// Reads Hugging Face's `config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] when a size is missing or impossible, or something else is asked for than the architecture has.
    pub fn from_config(path: &Path, value: &Value) -> Result<Self, Error> {
        let config = Config { path, value };
        // The published configurations say "absolute", though there are none.
        config.expect("position_embedding_type", &["absolute", "alibi"])?;
        config.check_plain_encoder()?;
        let model = Self {
            layers: config.size("num_hidden_layers")?,
            hidden: config.size("hidden_size")?,
            heads: config.size("num_attention_heads")?,
            intermediate: config.size("intermediate_size")?,
            vocabulary: config.size("vocab_size")?,
            token_types: config.size_or("type_vocab_size", 2)?,
            layer_norm_eps: config.float_or("layer_norm_eps", 1e-12)?,
        };
        model.validate().map_err(|message| config.error(message))?;
        Ok(model)
    }

    /// What is added to all scores in a padded graph: `-slope * |i - j|`, [1, heads, length, length].
    fn alibi(&self, frame: &mut Frame<'_, '_>) -> String {
        frame.builder.scope("alibi");
        let positions = frame.positions();
        let builder = &mut *frame.builder;
        let positions = builder.op(
            "Cast",
            &[&positions],
            &[("to", Attribute::Int(ElementType::Float as i64))],
        );
        let zero = builder.integers("zero", &[1], &[0]);
        let one = builder.integers("one", &[1], &[1]);
        let row = builder.op("Unsqueeze", &[&positions, &zero], &[]);
        let column = builder.op("Unsqueeze", &[&positions, &one], &[]);
        let distance = builder.op("Sub", &[&row, &column], &[]);
        let distance = builder.op("Abs", &[&distance], &[]);
        let axes = builder.integers("two_axes", &[2], &[0, 1]);
        let distance = builder.op("Unsqueeze", &[&distance, &axes], &[]);
        let falls: Vec<f32> = alibi_slopes(self.heads)
            .iter()
            .map(|slope| -slope)
            .collect();
        let falls = builder.floats("alibi_falls", &[1, self.heads, 1, 1], &falls);
        builder.op("Mul", &[&distance, &falls], &[])
    }
}

/// A positive slope for each head (Press et al. 2022, and their rule for numbers that are no power of two: the slopes of
/// the next smaller power, then every second one of the next larger power's).
#[must_use]
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let of_power = |power: usize| {
        let first = -8.0 / power as f64;
        (1..=power).map(move |head| (first * head as f64).exp2())
    };
    let smaller = if heads.is_power_of_two() {
        heads
    } else {
        heads.next_power_of_two() / 2
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is what is wanted"
    )]
    of_power(smaller)
        .chain(of_power(2 * smaller).step_by(2))
        .take(heads)
        .map(|slope| slope as f32)
        .collect()
}

impl Description for Dnabert2 {
    fn hidden(&self) -> usize {
        self.hidden
    }

    fn layers(&self) -> usize {
        self.layers
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.hidden,
            heads: self.heads,
            intermediate: self.intermediate,
            rotary_base: None,
            alibi: true,
            gated: true,
            post_norm: true,
        }
    }

    fn max_residues(&self) -> Option<usize> {
        // ALiBi has no limit; beyond this, the authors suggest splitting.
        Some(10_000)
    }

    fn tokenizer(&self) -> &'static str {
        "bpe"
    }

    fn sample_tokenizer(&self) -> Option<Vec<u8>> {
        Some(sample_bpe(self.vocabulary))
    }

    fn validate(&self) -> Result<(), String> {
        check_sizes(
            ("num_hidden_layers", self.layers),
            &[
                ("hidden_size", self.hidden),
                ("num_attention_heads", self.heads),
                ("intermediate_size", self.intermediate),
                ("vocab_size", self.vocabulary),
                ("type_vocab_size", self.token_types),
            ],
        )?;
        post_norm::check(self.hidden, self.heads, self.layer_norm_eps)
    }

    fn names(&self) -> Names {
        Names {
            prefixes: &["bert."],
            encoder: &["embeddings", "encoder"],
            // Some versions of the code keep what ALiBi adds to scores of up to 512 tokens.
            unused: &["embeddings.token_type_ids", "encoder.alibi", "pooler.**"],
        }
    }

    fn plan(&self) -> Vec<Planned> {
        let (hidden, inner) = (self.hidden, self.intermediate);
        let mut plan = Plan::default();
        post_norm::plan_embedding(&mut plan, self.vocabulary, self.token_types, hidden);
        plan.norm("embedding_norm", "embeddings.LayerNorm", hidden);
        for layer in 0..self.layers {
            let ours = format!("layer.{layer}");
            let tensor = |name: &str, shape: &[usize]| {
                Input::new(format!("encoder.layer.{layer}.{name}"), shape)
            };
            plan.copy(
                format!("{ours}.qkv.weight"),
                tensor("attention.self.Wqkv.weight", &[3 * hidden, hidden]),
            );
            let bias = tensor("attention.self.Wqkv.bias", &[3 * hidden]);
            plan.add(
                format!("{ours}.qk.bias"),
                &[2 * hidden],
                Recipe::Part {
                    input: bias.clone(),
                    first: 0,
                    rows: 2 * hidden,
                },
            );
            block::plan_attention_output(&mut plan, layer, hidden, bias);
            plan.norm(
                &format!("{ours}.attention_norm"),
                &format!("encoder.layer.{layer}.attention.output.LayerNorm"),
                hidden,
            );
            plan.copy(
                format!("{ours}.gated.weight"),
                tensor("mlp.gated_layers.weight", &[2 * inner, hidden]),
            );
            plan.copy(
                format!("{ours}.down.weight"),
                tensor("mlp.wo.weight", &[hidden, inner]),
            );
            plan.copy(
                format!("{ours}.down.bias"),
                tensor("mlp.wo.bias", &[hidden]),
            );
            plan.norm(
                &format!("{ours}.feed_forward_norm"),
                &format!("encoder.layer.{layer}.mlp.layernorm"),
                hidden,
            );
        }
        plan.0
    }

    fn folds(&self) -> Folds {
        post_norm::folds(self.layers, self.hidden, self.intermediate, true)
    }

    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest) {
        let mut frame = Frame::new(builder, request.kind, self.hidden, self.layer_norm_eps);
        let alibi = match request.kind {
            GraphKind::Padded => self.alibi(&mut frame),
            GraphKind::Plain => ort_cuda::alibi(frame.builder, &alibi_slopes(self.heads)),
            GraphKind::Packed | GraphKind::Fused => {
                frame
                    .builder
                    .floats("alibi_slopes", &[self.heads], &alibi_slopes(self.heads))
            }
        };
        frame.builder.scope("embedding");
        let state = frame.embedding();
        let blocks = Blocks {
            layers: request.layer,
            heads: self.heads,
            alibi: Some(alibi),
            of_words: true,
            gated: Some(self.intermediate),
        };
        let state = blocks.build(&mut frame, &state);
        frame.outputs(&state, request);
    }
}
