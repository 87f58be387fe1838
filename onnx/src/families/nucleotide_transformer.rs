//! Nucleotide Transformer (Dalla-Torre et al., 2025): blocks like those of ESM over non-overlapping
//! k-mers of DNA. Version 1 has learned positions and feed-forward layers as ESM-1v; version 2 has
//! rotary positions, and feed-forward layers gated by `SiLU`, without biases.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::blocks::{Blocks, Positions};
use super::config::Config;
use super::esm;
use super::family::{Alphabet, Family, Likeness, Publication, Published};
use super::kmers::{BASES, kmers};
use super::known_values::KnownValues;
use super::learned_positions;
use super::own_vocabulary;
use super::sizes::FusedFormats;
use crate::checkpoint::names::Names;
use crate::checkpoint::{Canonical, Checkpoint, Settings};
use crate::error::Error;
use crate::graph::builder::Builder;
use crate::graph::layers::Activation;
use crate::graph::request::GraphRequest;
use crate::head::{self, HeadForm};
use crate::tokenizer::TokenizerKind;
use crate::weights::table::{Plan, Planned};

/// The pooling is that of the authors' example, which averages over all tokens.
const PUBLICATION: Publication = Publication {
    family: "Nucleotide Transformer",
    letters: "bases",
    licence: "CC-BY-NC-SA-4.0",
    citation: "doi:10.1038/s41592-024-02523-z",
    pooling: "mean-all",
};

/// Version 1: name, hub id, parameters, [layers, hidden]. All have 20 heads.
const VERSION_1: [(&str, &str, &str, [usize; 2]); 4] = [
    (
        "NT-500M-human-ref",
        "InstaDeepAI/nucleotide-transformer-500m-human-ref",
        "500M",
        [24, 1280],
    ),
    (
        "NT-500M-1000g",
        "InstaDeepAI/nucleotide-transformer-500m-1000g",
        "500M",
        [24, 1280],
    ),
    (
        "NT-2.5B-1000g",
        "InstaDeepAI/nucleotide-transformer-2.5b-1000g",
        "2.5B",
        [32, 2560],
    ),
    (
        "NT-2.5B-multi-species",
        "InstaDeepAI/nucleotide-transformer-2.5b-multi-species",
        "2.5B",
        [32, 2560],
    ),
];

/// Version 2: name, hub id, parameters, [layers, hidden]. All have 16 heads.
const VERSION_2: [(&str, &str, &str, [usize; 2]); 4] = [
    (
        "NT-v2-50M",
        "InstaDeepAI/nucleotide-transformer-v2-50m-multi-species",
        "50M",
        [12, 512],
    ),
    (
        "NT-v2-100M",
        "InstaDeepAI/nucleotide-transformer-v2-100m-multi-species",
        "100M",
        [22, 512],
    ),
    (
        "NT-v2-250M",
        "InstaDeepAI/nucleotide-transformer-v2-250m-multi-species",
        "250M",
        [24, 768],
    ),
    (
        "NT-v2-500M",
        "InstaDeepAI/nucleotide-transformer-v2-500m-multi-species",
        "500M",
        [29, 1024],
    ),
];

/// From evo.cpp (tcztzy, Apache-2.0), `configs/evidence/oracles`: made there with the authors' code
/// and transformers 4.32 in fp32.
const EVO_CPP: KnownValues = KnownValues {
    sequence: Cow::Borrowed("ATTCCGATTCCGATTCCG"),
    pooling: Some(Cow::Borrowed("mean-all")),
    ..KnownValues::MEAN
};

/// Name of a model, and its known values.
const KNOWN_VALUES: [(&str, KnownValues); 4] = [
    (
        "NT-2.5B-multi-species",
        KnownValues {
            source: Cow::Borrowed("evo.cpp, configs/evidence/oracles/geneb-nt-2-5b-ms/input-1"),
            sequence: Cow::Borrowed("AAAACCCCGGGGTTTTACGTNACGTNNNNACGTTGCAACGTACGT"),
            values: Cow::Borrowed(&[-0.46224, 0.35001, 0.24490, -0.16984, 0.38868, -0.51841]),
            ..EVO_CPP
        },
    ),
    (
        "NT-v2-50M",
        KnownValues {
            source: Cow::Borrowed("evo.cpp, configs/evidence/oracles/geneb-nt-v2-50m-ms"),
            values: Cow::Borrowed(&[0.04834, 0.20188, 0.20500, 0.03803, 0.28360, -0.11514]),
            ..EVO_CPP
        },
    ),
    (
        "NT-v2-100M",
        KnownValues {
            source: Cow::Borrowed("evo.cpp, configs/evidence/oracles/geneb-nt-v2-100m-ms"),
            values: Cow::Borrowed(&[-0.14281, 0.19848, 0.19471, 0.04004, -0.24540, -0.46183]),
            ..EVO_CPP
        },
    ),
    (
        "NT-v2-250M",
        KnownValues {
            source: Cow::Borrowed("evo.cpp, configs/evidence/oracles/geneb-nt-v2-250m-ms"),
            values: Cow::Borrowed(&[0.11706, 0.10428, 1.11145, 0.10295, -0.13930, -0.36446]),
            ..EVO_CPP
        },
    ),
];

/// Bases of a k-mer in all models but one, which has 3-mers.
const K: u32 = 6;

/// The first tokens of every vocabulary.
const SPECIALS: [&str; 4] = ["<unk>", "<pad>", "<mask>", "<cls>"];
/// Two more, which no sequence has. Version 1 has no rows for them.
const ENDS: [&str; 2] = ["<eos>", "<bos>"];
/// Ids of `<pad>` and `<mask>`.
const PAD: usize = 1;
const MASK: usize = 2;
/// The row of the table of positions that the first token of a sequence has.
const FIRST_POSITION: usize = PAD + 1;
/// Base of the rotary frequencies of all models.
const ROTARY_BASE: f32 = 10_000.0;

/// The file's tensors that no vector depends on. The second list is for rotary positions: a table
/// of learned ones is created even so.
const UNUSED: [&str; 3] = ["contact_head.**", "lm_head.**", "pooler.**"];
const UNUSED_IF_ROTARY: [&str; 4] = [
    "contact_head.**",
    "embeddings.position_embeddings.weight",
    "lm_head.**",
    "pooler.**",
];

/// A vocabulary: special tokens, all k-mers, and single letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Vocabulary {
    /// Bases of a k-mer.
    k: u32,
    /// Whether [`ENDS`] stand before the k-mers, as in version 2, and have rows.
    ends_first: bool,
}

impl Vocabulary {
    /// The vocabulary for which an embedding table has this many rows. With 2-mers it would have as
    /// many as one of amino acids may have.
    fn of_rows(rows: usize) -> Option<Self> {
        let letters = BASES.len() + 1;
        (3..=8).find_map(|k| {
            let specials = rows.checked_sub(4_usize.pow(k) + letters)?;
            let ends_first = match specials {
                4 => false,
                6 => true,
                _ => return None,
            };
            Some(Self { k, ends_first })
        })
    }

    /// All tokens, by id.
    fn tokens(self) -> Vec<String> {
        let owned = |tokens: &[&str]| tokens.iter().map(|&token| token.to_owned()).collect();
        let [mut tokens, ends]: [Vec<String>; 2] = [owned(&SPECIALS), owned(&ENDS)];
        let words = kmers(self.k)
            .chain(BASES.map(String::from))
            .chain(["N".to_owned()]);
        if self.ends_first {
            tokens.extend(ends);
            tokens.extend(words);
        } else {
            tokens.extend(words);
            tokens.extend(ends);
        }
        tokens
    }
}

/// Sizes and settings of a Nucleotide Transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says whether a part is there"
)]
pub struct NucleotideTransformer {
    /// Number of transformer blocks.
    pub layers: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width inside the feed-forward layer; of each half, where it is gated.
    pub intermediate: usize,
    /// Rows of the embedding table, from which k and the order of the vocabulary are derived.
    pub vocabulary: usize,
    /// Rows of the table of positions, two more than the tokens of the longest input in training.
    /// Only learned positions use it.
    pub position_rows: usize,
    /// Base of the rotary frequencies; `None`: positions are learned.
    pub rotary_base: Option<f32>,
    /// Whether feed-forward layers are gated by `SiLU`; otherwise they have an erf GELU.
    pub gated: bool,
    /// Whether the dense layers of feed-forward layers have biases.
    pub feed_forward_bias: bool,
    /// Added to a layer norm's variance.
    pub layer_norm_eps: f32,
    /// Whether embeddings are scaled by 0.88, as they were on average in training.
    pub token_dropout: bool,
    /// Whether the embeddings have a layer norm of their own.
    pub norm_before: bool,
}

impl NucleotideTransformer {
    /// A published model of version 1, of these sizes.
    #[must_use]
    pub fn version_1(layers: usize, hidden: usize) -> Self {
        Self {
            layers,
            hidden,
            heads: 20,
            intermediate: 4 * hidden,
            vocabulary: 4105,
            position_rows: 1002,
            rotary_base: None,
            gated: false,
            feed_forward_bias: true,
            layer_norm_eps: 1e-12,
            token_dropout: true,
            norm_before: false,
        }
    }

    /// A published model of version 2, of these sizes.
    #[must_use]
    pub fn version_2(layers: usize, hidden: usize) -> Self {
        Self {
            heads: 16,
            vocabulary: 4107,
            position_rows: 2050,
            rotary_base: Some(ROTARY_BASE),
            gated: true,
            feed_forward_bias: false,
            token_dropout: false,
            ..Self::version_1(layers, hidden)
        }
    }

    /// Reads Hugging Face's `config.json`. Missing fields get the defaults of transformers'
    /// `EsmConfig`, and of the authors' own.
    fn from_config(config: &Config<'_>, checkpoint: &Checkpoint) -> Result<Self, Error> {
        let vocabulary = config.size("vocab_size")?;
        if Vocabulary::of_rows(vocabulary).is_none() {
            return Err(config.error(format!(
                "vocab_size is {vocabulary}, but models of Nucleotide Transformer have rows for all \
                 k-mers, A, T, C, G and N, and 4 special tokens (version 1: 4,105 rows for 6-mers) or \
                 6 (version 2: 4,107)"
            )));
        }
        for (key, id, why) in [
            ("pad_token_id", PAD, "<pad> has the id"),
            ("mask_token_id", MASK, "<mask> has the id"),
        ] {
            config.expect_size(key, id, why)?;
        }
        if config.flag("is_folding_model")? {
            return Err(config.error("is_folding_model is true: ESMFold cannot be exported"));
        }
        // SegmentNT, whose rotary positions are stretched.
        if let Some(factor) = config
            .value
            .get("rescaling_factor")
            .filter(|it| !it.is_null())
        {
            return Err(config.error(format!(
                "rescaling_factor is {factor}: models with rescaled rotary positions cannot be \
                 exported"
            )));
        }
        config.expect("position_embedding_type", &["absolute", "rotary"])?;
        let position = config.value.get("position_embedding_type");
        let is_rotary = position.and_then(Value::as_str) == Some("rotary");
        let intermediate = config.size("intermediate_size")?;
        let (gated, feed_forward_bias) = feed_forward(config, checkpoint, intermediate)?;
        let base = config.esm_rope_theta_or(ROTARY_BASE)?;
        if gated {
            config.expect_rope_theta(base, ROTARY_BASE, "Nucleotide Transformer")?;
        }
        Ok(Self {
            layers: config.size("num_hidden_layers")?,
            hidden: config.size("hidden_size")?,
            heads: config.size("num_attention_heads")?,
            intermediate,
            vocabulary,
            position_rows: config.size_or("max_position_embeddings", 1026)?,
            rotary_base: is_rotary.then_some(base),
            gated,
            feed_forward_bias,
            layer_norm_eps: config.float_or("layer_norm_eps", 1e-12)?,
            token_dropout: config.flag("token_dropout")?,
            norm_before: config.flag("emb_layer_norm_before")?,
        })
    }

    /// Its vocabulary, which was checked to be one.
    fn words(&self) -> Vocabulary {
        // What fits none is refused with the other sizes.
        Vocabulary::of_rows(self.vocabulary).unwrap_or(Vocabulary {
            k: K,
            ends_first: false,
        })
    }

    /// Tokens of the longest input in training, with `<cls>`.
    fn positions(&self) -> usize {
        self.position_rows.saturating_sub(FIRST_POSITION)
    }
}

/// Whether feed-forward layers are gated, and whether they have biases: the weights tell the one,
/// a setting of the authors' own code the other.
fn feed_forward(
    config: &Config<'_>,
    checkpoint: &Checkpoint,
    intermediate: usize,
) -> Result<(bool, bool), Error> {
    let canonical = Canonical::of(checkpoint, &esm::names(&UNUSED_IF_ROTARY))?;
    let rows = canonical
        .shape("encoder.layer.0.intermediate.dense.weight")
        .and_then(|shape| shape.first().copied());
    let gated = rows.is_some() && rows == intermediate.checked_mul(2);
    let setting = config.value.get("add_bias_fnn");
    if gated {
        config.expect("hidden_act", &["silu", "swish"])?;
        config.check_encoder()?;
        return Ok((true, setting.is_none() || config.flag("add_bias_fnn")?));
    }
    config.check_plain_encoder()?;
    match (setting, rows) {
        (Some(setting), Some(rows)) => Err(config.error(format!(
            "add_bias_fnn is {setting}, a setting of models whose feed-forward layers are gated, but \
             intermediate.dense has {rows} rows and not twice intermediate_size ({intermediate})"
        ))),
        _ => Ok((false, true)),
    }
}

/// Whether a configuration is of this family, by its vocabulary or by a setting that only the
/// authors' code has.
#[must_use]
pub fn is_meant(config: &Value) -> bool {
    has_its_vocabulary(config) || config.get("add_bias_fnn").is_some()
}

fn has_its_vocabulary(config: &Value) -> bool {
    let rows = config.get("vocab_size").and_then(Value::as_u64);
    let rows = rows.and_then(|rows| usize::try_from(rows).ok());
    rows.is_some_and(|rows| Vocabulary::of_rows(rows).is_some())
}

impl Family for NucleotideTransformer {
    fn about() -> &'static str {
        "Nucleotide Transformer (model_type \"esm\" with a vocabulary of k-mers)"
    }

    fn likeness(checkpoint: &Checkpoint) -> Likeness {
        let Settings::HuggingFace { config, .. } = &checkpoint.settings else {
            return Likeness::None;
        };
        let is_esm = match config.get("model_type").and_then(Value::as_str) {
            Some(model_type) => model_type == "esm",
            // Files of version 2 do not say what they are. Their tensors do.
            None => esm::has_its_tensors(checkpoint),
        };
        match (is_esm, has_its_vocabulary(config)) {
            (true, true) => Likeness::Full,
            (true, false) if is_meant(config) => Likeness::Related,
            _ => Likeness::None,
        }
    }

    fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Error> {
        Self::from_config(&Config::of(checkpoint), checkpoint)
    }

    fn published() -> Vec<Published<Self>> {
        let mut all = Published::table(PUBLICATION, VERSION_1, |[layers, hidden]| {
            Self::version_1(layers, hidden)
        });
        all.extend(Published::table(
            PUBLICATION,
            VERSION_2,
            |[layers, hidden]| Self::version_2(layers, hidden),
        ));
        all
    }

    fn published_values(name: &str) -> Vec<KnownValues> {
        let known = KNOWN_VALUES.into_iter().filter(|(model, _)| *model == name);
        known.map(|(_, values)| values).collect()
    }

    fn blocks(&self) -> Blocks {
        Blocks {
            epsilon: self.layer_norm_eps,
            positions: match self.rotary_base {
                Some(base) => Positions::Rotary { base },
                None => Positions::None,
            },
            activation: if self.gated {
                Activation::Silu
            } else {
                Activation::Gelu
            },
            gated: self.gated,
            up_bias: self.feed_forward_bias,
            down_bias: self.feed_forward_bias,
            post_norm: false,
            fused: if self.gated {
                FusedFormats::HalfAndFp8
            } else {
                FusedFormats::Half
            },
            ..Blocks::bert(self.layers, self.hidden, self.heads, self.intermediate)
        }
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn tokens(&self) -> usize {
        // Two without rows among them, in version 1.
        self.words().tokens().len()
    }

    fn alphabet(&self) -> Option<Alphabet> {
        Some(Alphabet::Dna)
    }

    fn tokenizer(&self) -> TokenizerKind {
        TokenizerKind::NonOverlapping
    }

    fn max_residues(&self) -> Option<usize> {
        // A position goes to <cls>.
        let tokens = self.positions().saturating_sub(1);
        Some(tokens.saturating_mul(self.words().k as usize))
    }

    fn position_limit(&self) -> Option<usize> {
        self.rotary_base.is_none().then(|| self.positions())
    }

    fn own_tokenizer(&self) -> Option<Vec<u8>> {
        // Other models may have as many rows as there are for other k, such as models of codons.
        let words = self.words();
        (words.k == K).then(|| words.tokens().join("\n").into_bytes())
    }

    fn check_vocabulary(&self, text: &str) -> Result<(), String> {
        let own = self.words().tokens();
        let own = own.iter().map(String::as_str);
        own_vocabulary::check("Nucleotide Transformer", own, text)
    }

    fn validate(&self) -> Result<(), String> {
        self.blocks().check(&[
            ("vocab_size", self.vocabulary),
            ("max_position_embeddings", self.position_rows),
        ])?;
        if self.positions() < 2 {
            return Err(format!(
                "max_position_embeddings is {}, which leaves no position for a token after <cls>: \
                 positions start at {FIRST_POSITION}",
                self.position_rows
            ));
        }
        Ok(())
    }

    fn names(&self) -> Names {
        if self.rotary_base.is_some() {
            esm::names(&UNUSED_IF_ROTARY)
        } else {
            esm::names(&UNUSED)
        }
    }

    fn plan(&self) -> Vec<Planned> {
        let (hidden, blocks) = (self.hidden, self.blocks());
        let mut plan = Plan::default();
        let shape = [self.vocabulary, hidden];
        esm::plan_words(&mut plan, shape, self.token_dropout, MASK);
        if self.rotary_base.is_none() {
            learned_positions::plan(&mut plan, self.position_rows, FIRST_POSITION, hidden);
        }
        if self.norm_before {
            blocks.plan_norm(&mut plan, "embedding_norm", "embeddings.layer_norm");
        }
        blocks.plan_pre_norm(&mut plan);
        plan.0
    }

    fn head(&self) -> Option<HeadForm> {
        let form = HeadForm::new(head::ESM, self.hidden, self.vocabulary, self.layer_norm_eps);
        Some(HeadForm {
            token_dropout: self.token_dropout.then_some(MASK),
            ..form
        })
    }

    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest) {
        let blocks = self.blocks();
        blocks.build_pre_norm_model(builder, request, |frame| {
            let mut state = frame.embedding();
            if self.token_dropout {
                state = esm::token_dropout(frame, &state);
            }
            if self.rotary_base.is_none() {
                state = learned_positions::add(frame, &state);
            }
            if self.norm_before {
                state = frame.norm(&state, "embedding_norm");
            }
            state
        });
    }
}
