//! ESM-1b (Rives et al., 2021) and ESM-1v (Meier et al., 2021): ESM-2's blocks with learned
//! positions instead of rotary ones, and in ESM-1b a layer norm after the embeddings.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::blocks::Blocks;
use super::config::Config;
use super::esm::{self, FairEsm};
use super::family::{Alphabet, Family, Likeness, Publication, Published};
use super::known_values::KnownValues;
use super::learned_positions;
use super::sizes::FusedFormats;
use crate::checkpoint::names::Names;
use crate::checkpoint::{Checkpoint, Settings};
use crate::error::Error;
use crate::graph::builder::Builder;
use crate::graph::request::GraphRequest;
use crate::head::{self, HeadForm};
use crate::tokenizer::TokenizerKind;
use crate::weights::table::{Plan, Planned};

/// MIT is the licence of the repository that all were published with.
const ESM_1B: Publication = Publication {
    family: "ESM-1b",
    letters: "amino acids",
    licence: "MIT",
    citation: "doi:10.1073/pnas.2016239118",
    pooling: "mean",
};

const ESM_1V: Publication = Publication {
    family: "ESM-1v",
    citation: "doi:10.1101/2021.07.09.450648",
    ..ESM_1B
};

/// The first three values of the first three tokens, `<cls>` among them, of the ids 0, 6, 4, 13, 5,
/// 4, 16, 12, 11, 7, 2: published by transformers' test `test_inference_no_head` while the
/// model was being added (commit 01515708), as `facebook/esm-1b`.
const EXPECTED_SLICE: [[f32; 3]; 3] = [
    [-0.1687, 0.0673, 0.0991],
    [0.2569, 0.0041, 0.2266],
    [0.1488, 0.0387, 0.0665],
];

/// Name, hub id, and whether it has a layer norm after the embeddings. All have the same sizes.
const PUBLISHED: [(&str, &str, bool); 6] = [
    (
        "esm1b_t33_650M_UR50S",
        "facebook/esm1b_t33_650M_UR50S",
        true,
    ),
    (
        "esm1v_t33_650M_UR90S_1",
        "facebook/esm1v_t33_650M_UR90S_1",
        false,
    ),
    (
        "esm1v_t33_650M_UR90S_2",
        "facebook/esm1v_t33_650M_UR90S_2",
        false,
    ),
    (
        "esm1v_t33_650M_UR90S_3",
        "facebook/esm1v_t33_650M_UR90S_3",
        false,
    ),
    (
        "esm1v_t33_650M_UR90S_4",
        "facebook/esm1v_t33_650M_UR90S_4",
        false,
    ),
    (
        "esm1v_t33_650M_UR90S_5",
        "facebook/esm1v_t33_650M_UR90S_5",
        false,
    ),
];

/// What fair-esm calls the architecture.
const ARCHITECTURE: &str = "roberta_large";

/// Sizes and settings of an ESM-1b or ESM-1v model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Esm1 {
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
    /// Rows of the table of positions.
    pub position_rows: usize,
    /// The row of that table that the first token of a sequence has: the one after that of `<pad>`.
    pub first_position: usize,
    /// Added to a layer norm's variance.
    pub layer_norm_eps: f32,
    /// Whether embeddings are scaled by 0.88, as they were on average in training.
    pub token_dropout: bool,
    /// Whether the embeddings have a layer norm of their own: in ESM-1b, not in ESM-1v.
    pub norm_before: bool,
    /// The `<mask>` token's id: its embedding is zero under token dropout.
    pub mask_id: usize,
}

impl Esm1 {
    /// The published sizes, with or without a layer norm after the embeddings.
    #[must_use]
    pub fn of_published_sizes(norm_before: bool) -> Self {
        Self {
            layers: 33,
            hidden: 1280,
            heads: 20,
            intermediate: 5120,
            vocabulary: esm::VOCABULARY.len(),
            position_rows: 1026,
            first_position: 2,
            layer_norm_eps: 1e-5,
            token_dropout: true,
            norm_before,
            mask_id: 32,
        }
    }

    /// Reads Hugging Face's `config.json`. Missing fields get the defaults of transformers'
    /// `EsmConfig`.
    fn from_config(config: &Config<'_>) -> Result<Self, Error> {
        config.check_plain_encoder()?;
        Ok(Self {
            layers: config.size("num_hidden_layers")?,
            hidden: config.size("hidden_size")?,
            heads: config.size("num_attention_heads")?,
            intermediate: config.size("intermediate_size")?,
            vocabulary: config.size("vocab_size")?,
            position_rows: config.size_or("max_position_embeddings", 1026)?,
            first_position: config.size_or("pad_token_id", 1)?.saturating_add(1),
            layer_norm_eps: config.float_or("layer_norm_eps", 1e-12)?,
            token_dropout: config.flag("token_dropout")?,
            norm_before: config.flag("emb_layer_norm_before")?,
            mask_id: config.size_or("mask_token_id", 32)?,
        })
    }

    /// Reads the settings inside a fair-esm `.pt`.
    fn from_fair_esm(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let published = Self::of_published_sizes(true);
        let file = FairEsm::of(checkpoint, &published.names())?;
        let hidden = file.hidden()?;
        Ok(Self {
            layers: file.layers(),
            hidden,
            heads: file.heads(hidden, (hidden == 1280).then_some(20))?,
            intermediate: file.intermediate(hidden),
            vocabulary: file.vocabulary(),
            position_rows: file.position_rows.unwrap_or(published.position_rows),
            token_dropout: file.flag("token_dropout").unwrap_or(false),
            norm_before: file.has("embeddings.layer_norm.weight"),
            ..published
        })
    }

    /// Maximum number of tokens that it has positions for.
    fn positions(&self) -> usize {
        self.position_rows.saturating_sub(self.first_position)
    }
}

impl Family for Esm1 {
    fn about() -> &'static str {
        "ESM-1b and ESM-1v (model_type \"esm\" with learned positions, or a fair-esm .pt)"
    }

    fn likeness(checkpoint: &Checkpoint) -> Likeness {
        let is = match &checkpoint.settings {
            Settings::HuggingFace { config, .. } => {
                let is = |key: &str, value: Value| config.get(key) == Some(&value);
                // Models of DNA with this model_type have other vocabularies.
                is("model_type", "esm".into())
                    && is("position_embedding_type", "absolute".into())
                    && is("vocab_size", esm::VOCABULARY.len().into())
            }
            Settings::FairEsm { .. } => esm::architecture_of(checkpoint) == Some(ARCHITECTURE),
        };
        if is { Likeness::Full } else { Likeness::None }
    }

    fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let learned = |(name, _): (&str, &[usize])| {
            name.ends_with("position_embeddings.weight") || name.ends_with("embed_positions.weight")
        };
        if !checkpoint.shapes().any(learned) {
            let setting = match &checkpoint.settings {
                Settings::HuggingFace { .. } => "position_embedding_type is \"absolute\"",
                Settings::FairEsm { .. } => "its architecture is \"roberta_large\"",
            };
            return Err(Error::config(
                checkpoint.settings.path(),
                format!("{setting}, but the weights have no position_embeddings"),
            ));
        }
        match &checkpoint.settings {
            Settings::HuggingFace { .. } => Self::from_config(&Config::of(checkpoint)),
            Settings::FairEsm { .. } => Self::from_fair_esm(checkpoint),
        }
    }

    fn published() -> Vec<Published<Self>> {
        PUBLISHED
            .map(|(name, hub_id, norm_before)| Published {
                name,
                hub_id,
                parameters: "650M",
                publication: if norm_before { ESM_1B } else { ESM_1V },
                family: Self::of_published_sizes(norm_before),
            })
            .into()
    }

    fn published_values(name: &str) -> Vec<KnownValues> {
        if name != "esm1b_t33_650M_UR50S" {
            return Vec::new();
        }
        esm::expected_slice(
            "transformers, ESMModelIntegrationTest at commit 01515708",
            &EXPECTED_SLICE,
        )
    }

    fn blocks(&self) -> Blocks {
        Blocks {
            epsilon: self.layer_norm_eps,
            post_norm: false,
            // In 8 bits, vectors were not compared yet.
            fused: FusedFormats::Half,
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
        // Two positions go to <cls> and <eos>.
        Some(self.positions() - 2)
    }

    fn position_limit(&self) -> Option<usize> {
        Some(self.positions())
    }

    fn own_tokenizer(&self) -> Option<Vec<u8>> {
        esm::vocabulary_file(self.vocabulary)
    }

    fn validate(&self) -> Result<(), String> {
        self.blocks().check(&[
            ("vocab_size", self.vocabulary),
            ("max_position_embeddings", self.position_rows),
        ])?;
        if self.positions() < 3 {
            return Err(format!(
                "max_position_embeddings is {}, which leaves no position for a token between \
                 <cls> and <eos>: positions start at {}",
                self.position_rows, self.first_position
            ));
        }
        Ok(())
    }

    fn check_vocabulary(&self, text: &str) -> Result<(), String> {
        let pad = self.first_position.saturating_sub(1);
        esm::check_ids(text, Some(pad), self.token_dropout.then_some(self.mask_id))
    }

    fn has_contact_head(&self) -> bool {
        // ESM-1v was published without; the numbers that its files on the hub have are untrained.
        self.norm_before
    }

    fn names(&self) -> Names {
        esm::names(&[
            "contact_head.**",
            "encoder.contact_head.**",
            "encoder.lm_head.**",
            "lm_head.**",
            "pooler.**",
        ])
    }

    fn plan(&self) -> Vec<Planned> {
        let (hidden, blocks) = (self.hidden, self.blocks());
        let mut plan = Plan::default();
        let shape = [self.vocabulary, hidden];
        esm::plan_words(&mut plan, shape, self.token_dropout, self.mask_id);
        learned_positions::plan(&mut plan, self.position_rows, self.first_position, hidden);
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
            zeroed_by_fair_esm: Some(self.mask_id),
            ..form
        })
    }

    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest) {
        let blocks = self.blocks();
        blocks.build_pre_norm_model(builder, request, |frame| {
            let mut words = frame.embedding();
            if self.token_dropout {
                words = esm::token_dropout(frame, &words);
            }
            let mut state = learned_positions::add(frame, &words);
            if self.norm_before {
                state = frame.norm(&state, "embedding_norm");
            }
            state
        });
    }
}
