//! AMPLIFY (Fournier et al., 2024): pre-norm blocks with RMS norms, rotary positions, a
//! feed-forward layer gated by `SiLU`, and no biases. The norm after the last block belongs to the
//! head: it is not applied to the authors' hidden states, nor to those of the graphs.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::blocks::{Blocks, Positions};
use super::config::Config;
use super::family::{Alphabet, Family, Likeness, Publication, Published};
use super::own_vocabulary;
use super::pre_norm;
use super::sizes::FusedFormats;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::names::Names;
use crate::error::Error;
use crate::graph::builder::Builder;
use crate::graph::layers::{Activation, Norm};
use crate::graph::request::GraphRequest;
use crate::tokenizer::{SpecialNames, TokenizerKind};
use crate::weights::table::{Plan, Planned};

const PUBLICATION: Publication = Publication {
    family: "AMPLIFY",
    letters: "amino acids",
    licence: "MIT",
    citation: "doi:10.1101/2024.09.23.614603",
    pooling: "mean",
};

/// Name, hub id (they share the name), parameters, [layers, hidden]. The `base` models were trained
/// on proteins of at most 510 residues, although their configuration gives the same limit as that
/// of the others.
const PUBLISHED: [(&str, &str, &str, [usize; 2]); 4] = [
    (
        "AMPLIFY_120M_base",
        "chandar-lab/AMPLIFY_120M_base",
        "120M",
        [24, 640],
    ),
    (
        "AMPLIFY_120M",
        "chandar-lab/AMPLIFY_120M",
        "120M",
        [24, 640],
    ),
    (
        "AMPLIFY_350M_base",
        "chandar-lab/AMPLIFY_350M_base",
        "350M",
        [32, 960],
    ),
    (
        "AMPLIFY_350M",
        "chandar-lab/AMPLIFY_350M",
        "350M",
        [32, 960],
    ),
];

/// The vocabulary by id; `|` separates chains.
const VOCABULARY: [&str; 27] = [
    "<pad>", "<unk>", "<mask>", "<bos>", "<eos>", "|", "L", "A", "G", "V", "S", "E", "R", "T", "I",
    "D", "P", "K", "Q", "N", "F", "Y", "M", "H", "W", "C", "B",
];

/// Base of the rotary frequencies of all models.
const ROTARY_BASE: f32 = 10_000.0;

/// Width of a head in all published models.
const HEAD_WIDTH: usize = 64;

/// Sizes of an AMPLIFY model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Amplify {
    /// Number of transformer blocks.
    pub layers: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of each half inside the feed-forward layer.
    pub intermediate: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Added to the mean of a row's squares.
    pub norm_eps: f32,
    /// Default length of a window, in residues.
    pub residues: usize,
}

/// Width of each half inside the feed-forward layer: two thirds of the configuration's
/// `intermediate_size`, which is that of a layer without gate, rounded up to a multiple of 8.
fn gated_width(intermediate: usize) -> usize {
    let two_thirds = intermediate.saturating_mul(2) / 3;
    // What overflows is refused with the other sizes.
    two_thirds.checked_next_multiple_of(8).unwrap_or(usize::MAX)
}

impl Amplify {
    /// A published model of these sizes.
    #[must_use]
    pub fn of_sizes(layers: usize, hidden: usize) -> Self {
        Self {
            layers,
            hidden,
            heads: hidden / HEAD_WIDTH,
            intermediate: gated_width(4 * hidden),
            vocabulary: VOCABULARY.len(),
            norm_eps: 1e-5,
            residues: 2046,
        }
    }
}

/// A tensor's name in the spelling of Hugging Face's ESM, which the plan uses.
fn spelling(name: &str) -> String {
    if name == "encoder.weight" {
        return pre_norm::WORD_EMBEDDINGS.to_owned();
    }
    let in_block = name.strip_prefix("transformer_encoder.");
    let Some((layer, part)) = in_block.and_then(|rest| rest.split_once('.')) else {
        return name.to_owned();
    };
    let part = match part {
        "attention_norm.weight" => "attention.LayerNorm.weight",
        "q.weight" => "attention.self.query.weight",
        "k.weight" => "attention.self.key.weight",
        "v.weight" => "attention.self.value.weight",
        "wo.weight" => "attention.output.dense.weight",
        "ffn_norm.weight" => "LayerNorm.weight",
        // The half that goes through SiLU comes first.
        "ffn.w12.weight" => "intermediate.dense.weight",
        "ffn.w3.weight" => "output.dense.weight",
        other => other,
    };
    format!("encoder.layer.{layer}.{part}")
}

impl Family for Amplify {
    fn about() -> &'static str {
        "AMPLIFY (model_type \"AMPLIFY\")"
    }

    fn likeness(checkpoint: &Checkpoint) -> Likeness {
        Likeness::by_model_type(checkpoint, "AMPLIFY")
    }

    fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let config = Config::of(checkpoint);
        config.expect("hidden_act", &["SwiGLU", "swiglu"])?;
        config.check_encoder()?;
        // Setting, supported value, and the authors' default for a missing setting.
        for (key, wanted, otherwise) in [
            ("rms_norm", true, true),
            ("layer_norm_after_embedding", false, false),
            ("ffn_bias", false, false),
            ("att_bias", false, false),
        ] {
            let value = match config.value.get(key) {
                None | Some(Value::Null) => otherwise,
                Some(_) => config.flag(key)?,
            };
            if value != wanted {
                return Err(config.error(format!(
                    "{key} is {value}, but only models with {wanted} can be exported"
                )));
            }
        }
        let base = config.rope_theta_or(ROTARY_BASE)?;
        config.expect_rope_theta(base, ROTARY_BASE, "AMPLIFY")?;
        let hidden = config.size("hidden_size")?;
        let longest = config.size_or("max_length", 2048)?;
        Ok(Self {
            layers: config.size("num_hidden_layers")?,
            hidden,
            heads: config.size("num_attention_heads")?,
            intermediate: gated_width(config.size("intermediate_size")?),
            vocabulary: config.size_or("vocab_size", VOCABULARY.len())?,
            norm_eps: config.float_or("norm_eps", 1e-5)?,
            residues: longest.saturating_sub(2),
        })
    }

    fn published() -> Vec<Published<Self>> {
        Published::table(PUBLICATION, PUBLISHED, |[layers, hidden]| {
            Self::of_sizes(layers, hidden)
        })
    }

    fn blocks(&self) -> Blocks {
        Blocks {
            norm: Norm::RmsNorm,
            final_norm: false,
            epsilon: self.norm_eps,
            positions: Positions::Rotary { base: ROTARY_BASE },
            rotated_neighbours: true,
            activation: Activation::Silu,
            gated: true,
            attention_bias: false,
            up_bias: false,
            down_bias: false,
            post_norm: false,
            fused: FusedFormats::None,
            ..Blocks::bert(self.layers, self.hidden, self.heads, self.intermediate)
        }
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn alphabet(&self) -> Option<Alphabet> {
        Some(Alphabet::Protein)
    }

    fn tokenizer(&self) -> TokenizerKind {
        TokenizerKind::Esm
    }

    fn special_tokens(&self) -> Option<SpecialNames<'static>> {
        Some(SpecialNames {
            front: &["<bos>"],
            behind: &["<eos>"],
            cls: Some("<bos>"),
            pad: "<pad>",
            unk: "<unk>",
        })
    }

    fn max_residues(&self) -> Option<usize> {
        Some(self.residues)
    }

    fn own_tokenizer(&self) -> Option<Vec<u8>> {
        Some(VOCABULARY.join("\n").into_bytes())
    }

    fn check_vocabulary(&self, text: &str) -> Result<(), String> {
        own_vocabulary::check("AMPLIFY", VOCABULARY, text)
    }

    fn validate(&self) -> Result<(), String> {
        if self.vocabulary != VOCABULARY.len() {
            return Err(format!(
                "vocab_size is {}, and AMPLIFY has {} tokens",
                self.vocabulary,
                VOCABULARY.len()
            ));
        }
        if self.residues == 0 {
            return Err(
                "max_length leaves no token between <bos> and <eos>, which takes 3".to_owned(),
            );
        }
        self.blocks().check(&[])
    }

    fn names(&self) -> Names {
        Names {
            prefixes: &[],
            encoder: &["embeddings", "encoder", "transformer_encoder"],
            // The norm is the head's.
            unused: &["decoder.**", "layer_norm_2.weight"],
            spelling,
        }
    }

    fn plan(&self) -> Vec<Planned> {
        let mut plan = Plan::default();
        let shape = [self.vocabulary, self.hidden];
        pre_norm::plan_word_embeddings(&mut plan, shape);
        self.blocks().plan_pre_norm(&mut plan);
        plan.0
    }

    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest) {
        self.blocks()
            .build_pre_norm_model(builder, request, pre_norm::word_embeddings);
    }
}
