//! ESM C (`EvolutionaryScale`, 2024): pre-norm blocks with rotary positions, a norm of queries and
//! keys over their full width, a feed-forward layer gated by `SiLU`, dense layers without biases,
//! and residual branches divided by the root of a thirty-sixth of the number of blocks.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::blocks::{Blocks, Positions};
use super::config::Config;
use super::family::{Alphabet, Family, Likeness, Publication, Published};
use super::known_values::KnownValues;
use super::own_vocabulary;
use super::pre_norm;
use super::sizes::FusedFormats;
use crate::checkpoint::names::{Names, in_layer};
use crate::checkpoint::{Canonical, Checkpoint, Settings};
use crate::error::Error;
use crate::graph::builder::Builder;
use crate::graph::layers::Activation;
use crate::graph::request::GraphRequest;
use crate::head::{self, HeadForm};
use crate::tokenizer::TokenizerKind;
use crate::weights::table::{Plan, Planned};

/// The licence is that of the repositories below. The `.pth` files that `EvolutionaryScale`
/// published first have its own licences, of which that of 600M forbids commercial use.
const PUBLICATION: Publication = Publication {
    family: "ESM C",
    letters: "amino acids",
    licence: "MIT",
    citation: "https://www.evolutionaryscale.ai/blog/esm-cambrian",
    pooling: "mean",
};

/// The first six values of the first three residues of the sequence of [`TRANSFORMERS`], published
/// by transformers' test `ESMCModelIntegrationTest` for ESM C 300M on a CPU.
const EXPECTED_SLICE: [[f32; 6]; 3] = [
    [0.007080, -0.008179, 0.038574, 0.038574, 0.011597, 0.039307],
    [-0.015991, -0.016968, 0.008911, 0.027710, 0.003784, 0.071777],
    [-0.003159, -0.026489, 0.002502, 0.024170, 0.024902, 0.047852],
];

const TRANSFORMERS: KnownValues = KnownValues {
    source: Cow::Borrowed("transformers, ESMCModelIntegrationTest"),
    sequence: Cow::Borrowed("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"),
    // They were computed in bf16; the test allows 1e-2.
    tolerance: 5e-3,
    ..KnownValues::MEAN
};

/// Name, hub id (they share the name), parameters, [layers, hidden].
const PUBLISHED: [(&str, &str, &str, [usize; 2]); 3] = [
    ("ESMC-300M", "biohub/ESMC-300M", "300M", [30, 960]),
    ("ESMC-600M", "biohub/ESMC-600M", "600M", [36, 1152]),
    ("ESMC-6B", "biohub/ESMC-6B", "6B", [80, 2560]),
];

/// The vocabulary by id: ESM's letters, and `|` between chains.
const VOCABULARY: [&str; 33] = [
    "<cls>", "<pad>", "<eos>", "<unk>", "L", "A", "G", "V", "S", "E", "R", "T", "I", "D", "P", "K",
    "Q", "N", "F", "Y", "M", "H", "W", "C", "X", "B", "U", "Z", "O", ".", "-", "|", "<mask>",
];

/// Width of a head in all published models; older files do not give it.
const HEAD_WIDTH: usize = 64;

/// The number of blocks whose residual branches are not scaled.
const UNSCALED_LAYERS: f64 = 36.0;

/// Sizes of an ESM C model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Esmc {
    /// Number of transformer blocks.
    pub layers: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of each half inside the feed-forward layer.
    pub intermediate: usize,
    /// Rows of the embedding table, of which the first 33 have a token.
    pub vocabulary: usize,
    /// Added to a layer norm's variance.
    pub layer_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rotary_base: f32,
}

impl Esmc {
    /// A model of these sizes, with what all published ones share.
    #[must_use]
    pub fn of_sizes(layers: usize, hidden: usize) -> Self {
        Self {
            layers,
            hidden,
            heads: hidden / HEAD_WIDTH,
            intermediate: intermediate(hidden),
            vocabulary: 64,
            layer_norm_eps: 1e-5,
            rotary_base: 10_000.0,
        }
    }

    /// Reads sizes from `config.json` under the names of either layout, else from the tensors.
    fn read(checkpoint: &Checkpoint, config: &Config<'_>) -> Result<Self, Error> {
        let [layers, hidden, inner] = sizes_of(checkpoint);
        // A size has one of two names; where both are there, they must agree.
        let size = |key: &str, other: &str, found: usize| -> Result<usize, Error> {
            let size = config.size_or(key, config.size_or(other, found)?)?;
            config.expect_size(other, size, &format!("{key} is"))?;
            Ok(size)
        };
        let hidden = size("hidden_size", "d_model", hidden)?;
        let default = Self::of_sizes(size("num_hidden_layers", "n_layers", layers)?, hidden);
        let published = PUBLISHED.iter().any(|(.., [_, width])| *width == hidden);
        let heads = size(
            "num_attention_heads",
            "n_heads",
            if published { default.heads } else { 0 },
        )?;
        if heads == 0 {
            return Err(config.error(
                "num_attention_heads is missing, and ESM C has no published model of this width",
            ));
        }
        config.expect_size("num_key_value_heads", heads, "num_attention_heads is")?;
        config.expect_size(
            "head_dim",
            hidden / heads,
            "hidden_size / num_attention_heads is",
        )?;
        for key in ["attention_bias", "mlp_bias"] {
            if config.flag(key)? {
                return Err(config.error(format!("{key} is true, but ESM C has no such biases")));
            }
        }
        Ok(Self {
            heads,
            intermediate: config.size_or("intermediate_size", inner)?,
            vocabulary: config.size_or("vocab_size", default.vocabulary)?,
            rotary_base: config.rope_theta_or(default.rotary_base)?,
            ..default
        })
    }
}

/// Width inside the feed-forward layer: 8/3 of the model's, rounded up to a multiple of 256.
fn intermediate(hidden: usize) -> usize {
    let two_thirds = hidden.saturating_mul(8).div_ceil(3);
    // What overflows is refused with the other sizes.
    two_thirds
        .checked_next_multiple_of(256)
        .unwrap_or(usize::MAX)
}

/// Number of blocks, width of a token's vector and width inside the feed-forward layer, derived
/// from the tensors; 0 where this is not possible.
fn sizes_of(checkpoint: &Checkpoint) -> [usize; 3] {
    let Ok(canonical) = Canonical::of(checkpoint, &names()) else {
        return [0; 3];
    };
    let layers = canonical
        .names()
        .filter_map(|(name, _)| in_layer(name))
        .map(|(layer, _)| layer.saturating_add(1))
        .max();
    let columns = |name: &str| {
        canonical
            .shape(name)
            .and_then(|shape| shape.get(1).copied())
            .unwrap_or(0)
    };
    [
        layers.unwrap_or(0),
        columns(pre_norm::WORD_EMBEDDINGS),
        columns("encoder.layer.0.output.dense.weight"),
    ]
}

/// How the three layouts name their tensors: transformers', the hub's with fused layers, and that
/// of the `esm` package.
fn names() -> Names {
    Names {
        prefixes: &["esmc."],
        encoder: &[
            "embed",
            "embed_tokens",
            "encoder",
            "layers",
            "norm",
            "transformer",
        ],
        unused: &["lm_head.**", "sequence_head.**"],
        spelling,
    }
}

/// A tensor's name in the spelling of Hugging Face's ESM, which the plan uses.
fn spelling(name: &str) -> String {
    match name {
        "embed_tokens.weight" | "embed.weight" => return pre_norm::WORD_EMBEDDINGS.to_owned(),
        "norm.weight" | "transformer.norm.weight" => {
            return "encoder.emb_layer_norm_after.weight".to_owned();
        }
        _ => {}
    }
    let in_block = name
        .strip_prefix("layers.")
        .or_else(|| name.strip_prefix("transformer.blocks."));
    let Some((layer, part)) = in_block.and_then(|rest| rest.split_once('.')) else {
        return name.to_owned();
    };
    let part = match part {
        "input_layernorm.weight"
        | "attn.layernorm_qkv.layer_norm_weight"
        | "attn.layernorm_qkv.0.weight" => "attention.LayerNorm.weight",
        "input_layernorm.bias"
        | "attn.layernorm_qkv.layer_norm_bias"
        | "attn.layernorm_qkv.0.bias" => "attention.LayerNorm.bias",
        "self_attn.q_proj.weight" => "attention.self.query.weight",
        "self_attn.k_proj.weight" => "attention.self.key.weight",
        "self_attn.v_proj.weight" => "attention.self.value.weight",
        "attn.layernorm_qkv.weight" | "attn.layernorm_qkv.1.weight" => "attention.self.qkv.weight",
        "self_attn.q_norm.weight" | "attn.q_ln.weight" => "attention.self.query_norm.weight",
        "self_attn.k_norm.weight" | "attn.k_ln.weight" => "attention.self.key_norm.weight",
        "self_attn.o_proj.weight" | "attn.out_proj.weight" => "attention.output.dense.weight",
        "post_attention_layernorm.weight" | "ffn.layer_norm_weight" | "ffn.0.weight" => {
            "LayerNorm.weight"
        }
        "post_attention_layernorm.bias" | "ffn.layer_norm_bias" | "ffn.0.bias" => "LayerNorm.bias",
        "mlp.gate_proj.weight" => "intermediate.gate.weight",
        "mlp.up_proj.weight" => "intermediate.up.weight",
        // The half that goes through SiLU comes first.
        "ffn.fc1_weight" | "ffn.1.weight" => "intermediate.dense.weight",
        "mlp.down_proj.weight" | "ffn.fc2_weight" | "ffn.3.weight" => "output.dense.weight",
        other => other,
    };
    format!("encoder.layer.{layer}.{part}")
}

impl Family for Esmc {
    fn about() -> &'static str {
        "ESM C (model_type \"esmc\", or the esm package's .pth)"
    }

    fn likeness(checkpoint: &Checkpoint) -> Likeness {
        let norm_of_queries = |(name, _): (&str, &[usize])| {
            name.ends_with(".attn.q_ln.weight") || name.ends_with(".self_attn.q_norm.weight")
        };
        let has = checkpoint.shapes().any(norm_of_queries);
        let is = match &checkpoint.settings {
            Settings::HuggingFace { config, .. } => {
                match config.get("model_type").and_then(Value::as_str) {
                    Some(model_type) => model_type == "esmc",
                    None => has,
                }
            }
            Settings::FairEsm { settings, .. } => settings.is_empty() && has,
        };
        if is { Likeness::Full } else { Likeness::None }
    }

    fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let config = Config::of(checkpoint);
        config.expect("hidden_act", &["silu"])?;
        config.check_encoder()?;
        Self::read(checkpoint, &config)
    }

    fn published() -> Vec<Published<Self>> {
        Published::table(PUBLICATION, PUBLISHED, |[layers, hidden]| {
            Self::of_sizes(layers, hidden)
        })
    }

    fn published_values(name: &str) -> Vec<KnownValues> {
        if name != "ESMC-300M" {
            return Vec::new();
        }
        let rows = (1..).zip(&EXPECTED_SLICE);
        rows.map(|(residue, values)| KnownValues {
            residue: Some(residue),
            values: Cow::Borrowed(values),
            ..TRANSFORMERS
        })
        .collect()
    }

    fn blocks(&self) -> Blocks {
        let heads = self.heads.max(1);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "weights are multiplied with it in 32 bits"
        )]
        let residual_scale = (UNSCALED_LAYERS / self.layers.max(1) as f64).sqrt() as f32;
        Blocks {
            final_norm_bias: false,
            epsilon: self.layer_norm_eps,
            positions: Positions::Rotary {
                base: self.rotary_base,
            },
            query_key_norm: true,
            activation: Activation::Silu,
            gated: true,
            attention_bias: false,
            up_bias: false,
            down_bias: false,
            residual_scale,
            post_norm: false,
            // In fp8, the lowest cosine similarity of the means of 64 proteins to those in fp32 was
            // 0.9983 (600M).
            fused: FusedFormats::Half,
            ..Blocks::bert(self.layers, self.hidden, heads, self.intermediate)
        }
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn tokens(&self) -> usize {
        VOCABULARY.len()
    }

    fn alphabet(&self) -> Option<Alphabet> {
        Some(Alphabet::Protein)
    }

    fn tokenizer(&self) -> TokenizerKind {
        TokenizerKind::Esm
    }

    fn max_residues(&self) -> Option<usize> {
        // Trained on crops of 2,048 tokens, two of them special.
        Some(2046)
    }

    fn own_tokenizer(&self) -> Option<Vec<u8>> {
        Some(VOCABULARY.join("\n").into_bytes())
    }

    fn check_vocabulary(&self, text: &str) -> Result<(), String> {
        own_vocabulary::check("ESM C", VOCABULARY, text)
    }

    fn validate(&self) -> Result<(), String> {
        if self.vocabulary < VOCABULARY.len() {
            return Err(format!(
                "vocab_size is {}, and ESM C has {} tokens",
                self.vocabulary,
                VOCABULARY.len()
            ));
        }
        self.blocks().check(&[
            ("num_attention_heads", self.heads),
            ("vocab_size", self.vocabulary),
        ])
    }

    fn names(&self) -> Names {
        names()
    }

    fn plan(&self) -> Vec<Planned> {
        let mut plan = Plan::default();
        let shape = [self.vocabulary, self.hidden];
        pre_norm::plan_word_embeddings(&mut plan, shape);
        self.blocks().plan_pre_norm(&mut plan);
        plan.0
    }

    fn head(&self) -> Option<HeadForm> {
        Some(HeadForm::new(
            head::ESMC,
            self.hidden,
            self.vocabulary,
            self.layer_norm_eps,
        ))
    }

    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest) {
        self.blocks()
            .build_pre_norm_model(builder, request, pre_norm::word_embeddings);
    }
}
