//! ESM-2 (Lin et al., 2023): pre-norm blocks, rotary positions, erf GELU, a last layer norm.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::blocks::{Blocks, Positions};
use super::config::Config;
use super::esm::{self, FairEsm};
use super::family::{Alphabet, Family, Likeness, Publication, Published};
use super::known_values::KnownValues;
use super::nucleotide_transformer;
use super::saprot;
use super::sizes::FusedFormats;
use crate::checkpoint::names::Names;
use crate::checkpoint::{Checkpoint, Settings};
use crate::error::Error;
use crate::graph::builder::Builder;
use crate::graph::request::GraphRequest;
use crate::head::{self, HeadForm};
use crate::tokenizer::TokenizerKind;
use crate::weights::table::{Plan, Planned};

const PUBLICATION: Publication = Publication {
    family: "ESM-2",
    letters: "amino acids",
    licence: "MIT",
    citation: "doi:10.1126/science.ade2574",
    pooling: "mean",
};

/// The first three values of the first three tokens, `<cls>` among them, of the ids 0, 6, 4, 13, 5,
/// 4, 16, 12, 11, 7, 2: published by transformers' test `test_inference_no_head`.
const EXPECTED_SLICE: [[f32; 3]; 3] = [
    [0.1444, 0.5413, 0.3248],
    [0.3034, 0.0053, 0.3108],
    [0.3228, -0.2499, 0.3415],
];

/// From `VirNucPro`'s reference file `test_with_orfs_protein/output_1_ESM.pt` (broadinstitute,
/// MIT): the reading frame `synthetic_seq_2_chunk_1R2`.
const VIRNUCPRO: KnownValues = KnownValues {
    source: Cow::Borrowed("virnucpro-broad, tests/data/test_with_orfs_protein/output_1_ESM.pt"),
    sequence: Cow::Borrowed("QRFSIASFSSAIRLPFAASFAAFSSAIASFAASIALPFAAIASAAFLIASASSARF"),
    values: Cow::Borrowed(&[0.00876, -0.020596, -0.009615, -0.085218]),
    norm: Some(13.813203),
    tolerance: 5e-4,
    ..KnownValues::MEAN
};

/// Name, hub id (they share the name), parameters, [layers, hidden, heads].
const PUBLISHED: [(&str, &str, &str, [usize; 3]); 6] = [
    (
        "esm2_t6_8M_UR50D",
        "facebook/esm2_t6_8M_UR50D",
        "8M",
        [6, 320, 20],
    ),
    (
        "esm2_t12_35M_UR50D",
        "facebook/esm2_t12_35M_UR50D",
        "35M",
        [12, 480, 20],
    ),
    (
        "esm2_t30_150M_UR50D",
        "facebook/esm2_t30_150M_UR50D",
        "150M",
        [30, 640, 20],
    ),
    (
        "esm2_t33_650M_UR50D",
        "facebook/esm2_t33_650M_UR50D",
        "650M",
        [33, 1280, 20],
    ),
    (
        "esm2_t36_3B_UR50D",
        "facebook/esm2_t36_3B_UR50D",
        "3B",
        [36, 2560, 40],
    ),
    (
        "esm2_t48_15B_UR50D",
        "facebook/esm2_t48_15B_UR50D",
        "15B",
        [48, 5120, 40],
    ),
];

/// Sizes and settings of an ESM-2 model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Esm2 {
    /// Number of transformer blocks.
    pub layers: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width inside the feed-forward layer.
    pub intermediate: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Added to a layer norm's variance.
    pub layer_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rotary_base: f32,
    /// Whether embeddings are scaled by 0.88, as they were on average in training.
    pub token_dropout: bool,
    /// Whether the embeddings have a layer norm of their own.
    pub norm_before: bool,
    /// The `<mask>` token's id: its embedding is zero under token dropout.
    pub mask_id: usize,
}

impl Esm2 {
    /// A published model of these sizes.
    #[must_use]
    pub fn of_sizes(layers: usize, hidden: usize, heads: usize) -> Self {
        Self {
            layers,
            hidden,
            heads,
            intermediate: 4 * hidden,
            vocabulary: esm::VOCABULARY.len(),
            layer_norm_eps: 1e-5,
            rotary_base: 10_000.0,
            token_dropout: true,
            norm_before: false,
            mask_id: 32,
        }
    }

    /// Reads Hugging Face's `config.json`. Missing fields get the defaults of transformers'
    /// `EsmConfig`.
    fn from_config(config: &Config<'_>) -> Result<Self, Error> {
        config.expect_positions(
            "rotary",
            "ESM-2 has rotary positions, ESM-1b and ESM-1v have learned ones and 33 tokens, and Nucleotide \
             Transformer has a vocabulary of k-mers",
        )?;
        if config.flag("is_folding_model")? {
            return Err(config.error("is_folding_model is true: ESMFold cannot be exported"));
        }
        config.check_plain_encoder()?;
        Ok(Self {
            layers: config.size("num_hidden_layers")?,
            hidden: config.size("hidden_size")?,
            heads: config.size("num_attention_heads")?,
            intermediate: config.size("intermediate_size")?,
            vocabulary: config.size("vocab_size")?,
            layer_norm_eps: config.float_or("layer_norm_eps", 1e-12)?,
            rotary_base: config.esm_rope_theta_or(10_000.0)?,
            token_dropout: config.flag("token_dropout")?,
            norm_before: config.flag("emb_layer_norm_before")?,
            mask_id: config.size_or("mask_token_id", 32)?,
        })
    }

    /// Reads the settings in a fair-esm `.pt`, or derives the sizes from its tensors if it has
    /// none.
    fn from_fair_esm(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let mut model = Self::of_sizes(1, 1, 1);
        let file = FairEsm::of(checkpoint, &model.names())?;
        if let Some(arch) = esm::architecture_of(checkpoint)
            && !arch.starts_with("esm2")
        {
            let message = format!(
                "its architecture is {arch:?}; of fair-esm's models, ESM-1b, ESM-1v and ESM-2 can be exported"
            );
            return Err(Error::config(file.path, message));
        }
        if file.position_rows.is_some() {
            return Err(Error::config(
                file.path,
                "it has learned positions (embed_positions), which ESM-2 does not have; for ESM-1b and ESM-1v, use \
                 fair-esm's own file, which has the settings",
            ));
        }
        model.hidden = file.hidden()?;
        model.vocabulary = file.vocabulary();
        model.layers = file.layers();
        model.intermediate = file.intermediate(model.hidden);
        let known = PUBLISHED.iter().find_map(|(.., [layers, hidden, heads])| {
            (*layers == model.layers && *hidden == model.hidden).then_some(*heads)
        });
        model.heads = file.heads(model.hidden, known)?;
        model.token_dropout = file.flag("token_dropout").unwrap_or(model.token_dropout);
        model.norm_before = file.has("embeddings.layer_norm.weight");
        Ok(model)
    }
}

impl Family for Esm2 {
    fn about() -> &'static str {
        "ESM-2 (model_type \"esm\", or a fair-esm .pt)"
    }

    fn likeness(checkpoint: &Checkpoint) -> Likeness {
        if saprot::is_meant(checkpoint) {
            return Likeness::None;
        }
        match &checkpoint.settings {
            Settings::HuggingFace { config, .. } => {
                let text = |key: &str| config.get(key).and_then(Value::as_str);
                match (text("model_type"), text("position_embedding_type")) {
                    _ if nucleotide_transformer::is_meant(config) => Likeness::None,
                    (Some("esm"), Some("rotary")) => Likeness::Full,
                    (Some("esm"), _) => Likeness::Related,
                    _ => Likeness::None,
                }
            }
            Settings::FairEsm { .. } => {
                let has = |part: &str| checkpoint.shapes().any(|(name, _)| name.ends_with(part));
                let is = match esm::architecture_of(checkpoint) {
                    Some(arch) => arch.starts_with("esm2"),
                    None => has("layers.0.self_attn_layer_norm.weight"),
                };
                // A plain state dict may be of any layout: reading it says what is missing.
                if is && !has("embed_positions.weight") {
                    Likeness::Full
                } else {
                    Likeness::Related
                }
            }
        }
    }

    fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Error> {
        match &checkpoint.settings {
            Settings::HuggingFace { .. } => Self::from_config(&Config::of(checkpoint)),
            Settings::FairEsm { .. } => Self::from_fair_esm(checkpoint),
        }
    }

    fn published() -> Vec<Published<Self>> {
        Published::table(PUBLICATION, PUBLISHED, |[layers, hidden, heads]| {
            Self::of_sizes(layers, hidden, heads)
        })
    }

    fn published_values(name: &str) -> Vec<KnownValues> {
        match name {
            "esm2_t6_8M_UR50D" => {
                esm::expected_slice("transformers, EsmModelIntegrationTest", &EXPECTED_SLICE)
            }
            "esm2_t36_3B_UR50D" => vec![VIRNUCPRO],
            _ => Vec::new(),
        }
    }

    fn blocks(&self) -> Blocks {
        Blocks {
            epsilon: self.layer_norm_eps,
            positions: Positions::Rotary {
                base: self.rotary_base,
            },
            post_norm: false,
            fused: FusedFormats::HalfAndFp8,
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

    fn max_residues(&self) -> Option<usize> {
        // Trained on crops of 1,024 tokens, two of them special.
        Some(1022)
    }

    fn own_tokenizer(&self) -> Option<Vec<u8>> {
        esm::vocabulary_file(self.vocabulary)
    }

    fn validate(&self) -> Result<(), String> {
        self.blocks().check(&[("vocab_size", self.vocabulary)])
    }

    fn check_vocabulary(&self, text: &str) -> Result<(), String> {
        esm::check_ids(text, None, self.token_dropout.then_some(self.mask_id))
    }

    fn has_contact_head(&self) -> bool {
        true
    }

    fn names(&self) -> Names {
        esm::names(&[
            "contact_head.**",
            // Until 2025, transformers also created them for ESMs with rotary positions, which do
            // not use them, so most checkpoints have them.
            "embeddings.position_embeddings.weight",
            "encoder.contact_head.**",
            "encoder.lm_head.**",
            "lm_head.**",
            "pooler.**",
        ])
    }

    fn plan(&self) -> Vec<Planned> {
        let blocks = self.blocks();
        let mut plan = Plan::default();
        let shape = [self.vocabulary, self.hidden];
        esm::plan_words(&mut plan, shape, self.token_dropout, self.mask_id);
        if self.norm_before {
            blocks.plan_norm(&mut plan, "embedding_norm", "embeddings.layer_norm");
        }
        blocks.plan_pre_norm(&mut plan);
        plan.0
    }

    fn head(&self) -> Option<HeadForm> {
        let form = HeadForm::new(head::ESM, self.hidden, self.vocabulary, self.layer_norm_eps);
        Some(HeadForm {
            token_dropout: self.token_dropout.then_some(self.mask_id),
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
            if self.norm_before {
                state = frame.norm(&state, "embedding_norm");
            }
            state
        });
    }
}
