//! DNABERT-2 (Zhou et al., 2024) and DNABERT-S (Zhou et al., 2025): one architecture, that of
//! `MosaicBERT` (Portes et al., 2023). Post-norm blocks, `ALiBi` in both directions instead of
//! position embeddings, a gated feed-forward layer.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::attention::Attention;
use super::blocks::{Blocks, Positions, tensor};
use super::config::Config;
use super::family::{Alphabet, Family, Likeness, Publication, Published};
use super::known_values::KnownValues;
use super::post_norm;
use super::sample_bpe::sample_bpe;
use crate::checkpoint::names::{Names, plain_name};
use crate::checkpoint::{Checkpoint, Settings};
use crate::error::Error;
use crate::graph::builder::Builder;
use crate::graph::outputs::Outputs;
use crate::graph::request::GraphRequest;
use crate::head::{self, HeadForm};
use crate::tokenizer::TokenizerKind;
use crate::weights::table::{Plan, Planned, TensorSource};

/// The licence of the weights is that of the code they were published with.
const DNABERT_2: Publication = Publication {
    family: "DNABERT-2",
    letters: "bases",
    licence: "Apache-2.0",
    citation: "arXiv:2306.15006",
    pooling: "mean-all",
};

const DNABERT_S: Publication = Publication {
    family: "DNABERT-S",
    citation: "arXiv:2402.08777",
    ..DNABERT_2
};

/// From `VirNucPro`'s reference file `reference_vanilla_output/output_1_DNABERT_S.pt`
/// (broadinstitute, MIT): the reading frame `synthetic_seq_1_chunk_1R1`.
const VIRNUCPRO: KnownValues = KnownValues {
    source: Cow::Borrowed(
        "virnucpro-broad, tests/data/reference_vanilla_output/output_1_DNABERT_S.pt",
    ),
    sequence: Cow::Borrowed(
        "TTATTTCGCCGCTTCTTTCGCCGCTTTCAGTTCCGCAATCGCTTCTTTCGCCGCTTCAATCGCTTTACCTTTCGCCGCCATCGC\
         TTCCGCCGCTTTTTTAATCGCTTCTGCCAGTTCTGCACGTTTTTCAATCGCTTCTTTCAGTTCTGCAATACGTTTACCTTTGCT\
         AGCCAT",
    ),
    pooling: Some(Cow::Borrowed("mean-all")),
    values: Cow::Borrowed(&[-0.070582, 0.067121, 0.02816, -0.29252]),
    norm: Some(3.660475),
    tolerance: 5e-4,
    ..KnownValues::MEAN
};

/// Name, hub id, publication.
const PUBLISHED: [(&str, &str, Publication); 2] = [
    ("DNABERT-2", "zhihan1996/DNABERT-2-117M", DNABERT_2),
    ("DNABERT-S", "zhihan1996/DNABERT-S", DNABERT_S),
];

/// Sizes and settings of a model of this family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dnabert2 {
    /// Number of transformer blocks.
    pub layers: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width inside the feed-forward layer, of each of its two halves.
    pub intermediate: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Rows of the token type table, of which only the first is used.
    pub token_types: usize,
    /// Added to a layer norm's variance.
    pub layer_norm_eps: f32,
}

impl Dnabert2 {
    /// The published sizes, which DNABERT-2 and DNABERT-S share.
    #[must_use]
    pub fn of_published_sizes() -> Self {
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
    fn from_config(config: &Config<'_>) -> Result<Self, Error> {
        // The published configurations say "absolute", though there are none.
        config.expect("position_embedding_type", &["absolute", "alibi"])?;
        config.check_plain_encoder()?;
        Ok(Self {
            layers: config.size("num_hidden_layers")?,
            hidden: config.size("hidden_size")?,
            heads: config.size("num_attention_heads")?,
            intermediate: config.size("intermediate_size")?,
            vocabulary: config.size("vocab_size")?,
            token_types: config.size_or("type_vocab_size", 2)?,
            layer_norm_eps: config.float_or("layer_norm_eps", 1e-12)?,
        })
    }

    /// Plans a block, whose queries, keys and values are one dense layer in the checkpoint.
    fn plan_block(&self, blocks: &Blocks, plan: &mut Plan, layer: usize) {
        let (hidden, inner) = (self.hidden, self.intermediate);
        let ours = format!("layer.{layer}");
        plan.copy(
            format!("{ours}.qkv.weight"),
            tensor(layer, "attention.self.Wqkv.weight", &[3 * hidden, hidden]),
        );
        let bias = tensor(layer, "attention.self.Wqkv.bias", &[3 * hidden]);
        plan.add(
            format!("{ours}.qk.bias"),
            &[2 * hidden],
            TensorSource::Part {
                input: bias.clone(),
                first: 0,
                rows: 2 * hidden,
            },
        );
        blocks.plan_attention_output(plan, layer, bias);
        blocks.plan_norm(
            plan,
            &format!("{ours}.attention_norm"),
            &format!("encoder.layer.{layer}.attention.output.LayerNorm"),
        );
        plan.copy(
            format!("{ours}.gated.weight"),
            tensor(layer, "mlp.gated_layers.weight", &[2 * inner, hidden]),
        );
        for (kind, shape) in [("weight", &[hidden, inner][..]), ("bias", &[hidden])] {
            plan.copy(
                format!("{ours}.down.{kind}"),
                tensor(layer, &format!("mlp.wo.{kind}"), shape),
            );
        }
        blocks.plan_norm(
            plan,
            &format!("{ours}.feed_forward_norm"),
            &format!("encoder.layer.{layer}.mlp.layernorm"),
        );
    }
}

impl Family for Dnabert2 {
    fn about() -> &'static str {
        "DNABERT-2 and DNABERT-S"
    }

    fn likeness(checkpoint: &Checkpoint) -> Likeness {
        let Settings::HuggingFace { config, .. } = &checkpoint.settings else {
            return Likeness::None;
        };
        let packed = |(name, _): (&str, &[usize])| name.contains(".attention.self.Wqkv.");
        match config.get("model_type").and_then(Value::as_str) {
            Some("bert") | None if checkpoint.shapes().any(packed) => Likeness::Full,
            _ => Likeness::None,
        }
    }

    fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Error> {
        Self::from_config(&Config::of(checkpoint))
    }

    fn published() -> Vec<Published<Self>> {
        PUBLISHED
            .map(|(name, hub_id, publication)| Published {
                name,
                hub_id,
                parameters: "117M",
                publication,
                family: Self::of_published_sizes(),
            })
            .into()
    }

    fn published_values(name: &str) -> Vec<KnownValues> {
        if name == "DNABERT-S" {
            vec![VIRNUCPRO]
        } else {
            Vec::new()
        }
    }

    fn blocks(&self) -> Blocks {
        Blocks {
            epsilon: self.layer_norm_eps,
            positions: Positions::Alibi,
            gated: true,
            up_bias: false,
            ..Blocks::bert(self.layers, self.hidden, self.heads, self.intermediate)
        }
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn alphabet(&self) -> Option<Alphabet> {
        Some(Alphabet::Dna)
    }

    fn tokenizer(&self) -> TokenizerKind {
        TokenizerKind::Bpe
    }

    fn max_residues(&self) -> Option<usize> {
        // ALiBi has no limit; beyond this, the authors suggest splitting.
        Some(10_000)
    }

    fn sample_tokenizer(&self) -> Option<Vec<u8>> {
        Some(sample_bpe(self.vocabulary))
    }

    fn validate(&self) -> Result<(), String> {
        self.blocks().check(&[
            ("vocab_size", self.vocabulary),
            ("type_vocab_size", self.token_types),
        ])
    }

    fn names(&self) -> Names {
        Names {
            prefixes: &["bert."],
            encoder: &["embeddings", "encoder"],
            // Some versions of the code keep what ALiBi adds to scores of up to 512 tokens.
            unused: &["embeddings.token_type_ids", "encoder.alibi", "pooler.**"],
            spelling: plain_name,
        }
    }

    fn plan(&self) -> Vec<Planned> {
        let blocks = self.blocks();
        let mut plan = Plan::default();
        post_norm::plan_embedding(&mut plan, self.vocabulary, self.token_types, self.hidden);
        blocks.plan_norm(&mut plan, "embedding_norm", "embeddings.LayerNorm");
        for layer in 0..self.layers {
            self.plan_block(&blocks, &mut plan, layer);
        }
        plan.0
    }

    fn head(&self) -> Option<HeadForm> {
        let (hidden, epsilon) = (self.hidden, self.layer_norm_eps);
        Some(HeadForm::new(head::BERT, hidden, self.vocabulary, epsilon))
    }

    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest) {
        let blocks = self.blocks();
        let mut frame = blocks.frame(builder, request.kind);
        let attention = Attention::new(&blocks, &mut frame);
        frame.builder.scope("embedding");
        let state = frame.embedding();
        let mut outputs = Outputs::new(request);
        blocks.build_post_norm(&mut frame, &attention, &state, &mut outputs, true);
        outputs.finish(&mut frame);
    }
}
