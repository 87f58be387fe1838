//! Encoders of T5 (Raffel et al., 2020) that read a token for each residue: `ProtT5` (Elnaggar et
//! al., 2022), `ProstT5` (Heinzinger et al., 2024) and `IgT5` (Kenlay et al., 2024). Pre-norm
//! blocks with RMS norms and without biases; what is added to scores depends on the distance, the
//! same in all layers, and scores are not scaled. The decoder of a checkpoint is passed over.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::attention::RELATIVE_TABLE;
use super::blocks::{Blocks, Positions};
use super::config::{Config, check_sizes};
use super::family::{Alphabet, Family, Likeness, Publication, Published};
use super::pre_norm;
use super::sizes::FusedFormats;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::names::Names;
use crate::error::Error;
use crate::graph::builder::Builder;
use crate::graph::layers::{Activation, Norm};
use crate::graph::request::GraphRequest;
use crate::tokenizer::{SpecialNames, TokenizerKind};
use crate::weights::table::{Input, Plan, Planned, TensorSource};

const PROTT5: Publication = Publication {
    family: "ProtT5",
    letters: "amino acids",
    licence: "AFL-3.0",
    citation: "doi:10.1109/TPAMI.2021.3095381",
    pooling: "mean",
};

const PROSTT5: Publication = Publication {
    family: "ProstT5",
    licence: "MIT",
    citation: "doi:10.1093/nargab/lqae150",
    ..PROTT5
};

const IGT5: Publication = Publication {
    family: "IgT5",
    licence: "MIT",
    citation: "arXiv:2403.17889",
    ..PROTT5
};

/// Name, hub id, what else is known, tokens.
const PUBLISHED: [(&str, &str, Publication, usize); 6] = [
    (
        "ProtT5-XL",
        "Rostlab/prot_t5_xl_uniref50",
        PROTT5,
        PROTT5_TOKENS,
    ),
    (
        "ProtT5-XL-half",
        "Rostlab/prot_t5_xl_half_uniref50-enc",
        PROTT5,
        PROTT5_TOKENS,
    ),
    (
        "ProtT5-XL-BFD",
        "Rostlab/prot_t5_xl_bfd",
        PROTT5,
        PROTT5_TOKENS,
    ),
    ("ProstT5", "Rostlab/ProstT5", PROSTT5, PROSTT5_TOKENS),
    ("IgT5", "Exscientia/IgT5", IGT5, PROTT5_TOKENS),
    (
        "IgT5-unpaired",
        "Exscientia/IgT5_unpaired",
        IGT5,
        PROTT5_TOKENS,
    ),
];

/// The residues of `ProtT5`'s vocabulary, behind `<pad>`, `</s>` and `<unk>`.
const RESIDUES: &str = "ALGVSREDTIPKFQNYMHWCXBOUZ";

/// Tokens of `ProtT5`: the residues, and 100 that stood for masked ones in training.
const PROTT5_TOKENS: usize = 128;

/// `ProstT5` has 20 letters of structures more, and a token for each direction of translation.
const PROSTT5_TOKENS: usize = 150;

/// Says in front of residues that they are to be translated into structures.
const FROM_RESIDUES: &str = "<AA2fold>";

/// Residues of a window, unless the user says otherwise. There is no limit to positions: all
/// distances from 128 on are alike. Sequences in training had at most 512 residues.
const MOST_RESIDUES: usize = 5000;

/// What each bucket of distances adds to scores, in the spelling of the graph's plan.
const RELATIVE_BIAS: &str = "encoder.layer.0.attention.relative_attention_bias.weight";

/// Sizes of a T5 encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct T5 {
    /// Blocks.
    pub layers: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of a head: heads times this need not be `hidden`.
    pub head_width: usize,
    /// Width inside the feed-forward layer.
    pub intermediate: usize,
    /// Whether the feed-forward layer is gated by GELU, in its approximation by tanh, instead of
    /// having `ReLU`.
    pub gated: bool,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Buckets of distances, of both directions.
    pub buckets: usize,
    /// From this distance on, all are in one bucket.
    pub furthest: usize,
    /// Added to the mean of a row's squares.
    pub norm_eps: f32,
}

impl T5 {
    /// `ProtT5`-XL with so many tokens.
    #[must_use]
    pub fn xl(vocabulary: usize) -> Self {
        Self {
            layers: 24,
            hidden: 1024,
            heads: 32,
            head_width: 128,
            intermediate: 16_384,
            gated: false,
            vocabulary,
            buckets: 32,
            furthest: 128,
            norm_eps: 1e-6,
        }
    }

    /// Whether sequences begin with the direction of translation, as `ProstT5`'s.
    fn translates(&self) -> bool {
        self.vocabulary == PROSTT5_TOKENS
    }

    /// The vocabulary of `ProtT5` or `ProstT5` by id.
    fn known_tokens(&self) -> Vec<String> {
        let specials = ["<pad>", "</s>", "<unk>"].map(str::to_owned);
        let mut tokens: Vec<String> = specials.into();
        tokens.extend(RESIDUES.chars().map(String::from));
        // The last of those that stood for masked residues has number 0.
        let masks = PROTT5_TOKENS - tokens.len();
        tokens.extend(
            (0..masks)
                .rev()
                .map(|number| format!("<extra_id_{number}>")),
        );
        if self.translates() {
            let structures = RESIDUES[..20].to_ascii_lowercase();
            tokens.extend(structures.chars().map(String::from));
            tokens.extend(["<fold2AA>", FROM_RESIDUES].map(str::to_owned));
        }
        tokens
    }
}

/// The spelling of the graph's plan.
fn spelling(name: &str) -> String {
    match name {
        "shared.weight" | "encoder.embed_tokens.weight" => {
            return pre_norm::WORD_EMBEDDINGS.to_owned();
        }
        "encoder.final_layer_norm.weight" => {
            return "encoder.emb_layer_norm_after.weight".to_owned();
        }
        _ => {}
    }
    let in_block = name.strip_prefix("encoder.block.");
    let Some((layer, part)) = in_block.and_then(|rest| rest.split_once('.')) else {
        return name.to_owned();
    };
    let part = match part {
        "layer.0.layer_norm.weight" => "attention.LayerNorm.weight",
        "layer.0.SelfAttention.q.weight" => "attention.self.query.weight",
        "layer.0.SelfAttention.k.weight" => "attention.self.key.weight",
        "layer.0.SelfAttention.v.weight" => "attention.self.value.weight",
        "layer.0.SelfAttention.o.weight" => "attention.output.dense.weight",
        "layer.0.SelfAttention.relative_attention_bias.weight" => {
            "attention.relative_attention_bias.weight"
        }
        "layer.1.layer_norm.weight" => "LayerNorm.weight",
        "layer.1.DenseReluDense.wi.weight" => "intermediate.dense.weight",
        "layer.1.DenseReluDense.wi_0.weight" => "intermediate.gate.weight",
        "layer.1.DenseReluDense.wi_1.weight" => "intermediate.up.weight",
        "layer.1.DenseReluDense.wo.weight" => "output.dense.weight",
        other => other,
    };
    format!("encoder.layer.{layer}.{part}")
}

impl Family for T5 {
    fn about() -> &'static str {
        "ProtT5, ProstT5, IgT5 (model_type \"t5\")"
    }

    fn likeness(checkpoint: &Checkpoint) -> Likeness {
        Likeness::by_model_type(checkpoint, "t5")
    }

    fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let config = Config::of(checkpoint);
        config.check_encoder()?;
        config.expect("feed_forward_proj", &["relu", "gated-gelu"])?;
        let form = config.value.get("feed_forward_proj");
        let gated = form.and_then(Value::as_str) == Some("gated-gelu");
        let activation: &[&str] = if gated { &["gelu_new"] } else { &["relu"] };
        config.expect("dense_act_fn", activation)?;
        Ok(Self {
            layers: config.size("num_layers")?,
            hidden: config.size("d_model")?,
            heads: config.size("num_heads")?,
            head_width: config.size("d_kv")?,
            intermediate: config.size("d_ff")?,
            gated,
            vocabulary: config.size("vocab_size")?,
            buckets: config.size_or("relative_attention_num_buckets", 32)?,
            furthest: config.size_or("relative_attention_max_distance", 128)?,
            norm_eps: config.float_or("layer_norm_epsilon", 1e-6)?,
        })
    }

    fn published() -> Vec<Published<Self>> {
        PUBLISHED
            .map(|(name, hub_id, publication, tokens)| Published {
                name,
                hub_id,
                parameters: "1.2B",
                publication,
                family: Self::xl(tokens),
            })
            .into()
    }

    fn blocks(&self) -> Blocks {
        Blocks {
            head_width: self.head_width,
            norm: Norm::RmsNorm,
            epsilon: self.norm_eps,
            positions: Positions::Relative {
                buckets: self.buckets,
                furthest: self.furthest,
            },
            activation: if self.gated {
                Activation::GeluTanh
            } else {
                Activation::Relu
            },
            gated: self.gated,
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
            front: if self.translates() {
                &[FROM_RESIDUES]
            } else {
                &[]
            },
            behind: &["</s>"],
            cls: None,
            pad: "<pad>",
            unk: "<unk>",
        })
    }

    fn replaced_letters(&self) -> &'static [(u8, u8)] {
        &[(b'U', b'X'), (b'Z', b'X'), (b'O', b'X'), (b'B', b'X')]
    }

    fn max_residues(&self) -> Option<usize> {
        Some(MOST_RESIDUES)
    }

    fn pieces(&self) -> Option<Vec<String>> {
        Some(self.known_tokens())
    }

    fn own_tokenizer(&self) -> Option<Vec<u8>> {
        let tokens = self.known_tokens();
        (tokens.len() == self.vocabulary).then(|| (tokens.join("\n") + "\n").into_bytes())
    }

    fn validate(&self) -> Result<(), String> {
        check_sizes(
            ("num_layers", self.layers),
            &[
                ("d_model", self.hidden),
                ("num_heads", self.heads),
                ("d_kv", self.head_width),
                ("d_ff", self.intermediate),
                ("vocab_size", self.vocabulary),
                ("relative_attention_num_buckets", self.buckets),
                ("relative_attention_max_distance", self.furthest),
            ],
        )?;
        if self.buckets < 4 || !self.buckets.is_multiple_of(4) || self.furthest <= self.buckets / 4
        {
            return Err(format!(
                "{} buckets (relative_attention_num_buckets) up to a distance of {} \
                 (relative_attention_max_distance): the first must be a multiple of 4, and the \
                 second more than a quarter of it",
                self.buckets, self.furthest
            ));
        }
        if self.heads.saturating_mul(self.furthest) > 1 << 24 {
            return Err(format!(
                "relative_attention_max_distance {} is out of range",
                self.furthest
            ));
        }
        if !(0.0..1.0).contains(&self.norm_eps) {
            return Err(format!(
                "layer_norm_epsilon {} is out of range",
                self.norm_eps
            ));
        }
        Ok(())
    }

    fn names(&self) -> Names {
        Names {
            prefixes: &[],
            encoder: &["embeddings", "encoder", "shared"],
            unused: &["decoder.**"],
            spelling,
        }
    }

    fn plan(&self) -> Vec<Planned> {
        let mut plan = Plan::default();
        let shape = [self.vocabulary, self.hidden];
        pre_norm::plan_word_embeddings(&mut plan, shape);
        let input = Input::new(RELATIVE_BIAS.to_owned(), &[self.buckets, self.heads]);
        let furthest = self.furthest;
        plan.add(
            RELATIVE_TABLE.to_owned(),
            &[self.heads, 2 * furthest + 1],
            TensorSource::Distances { input, furthest },
        );
        self.blocks().plan_pre_norm(&mut plan);
        plan.0
    }

    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest) {
        self.blocks()
            .build_pre_norm_model(builder, request, pre_norm::word_embeddings);
    }
}
