//! BERT (Devlin et al., 2019) with learned absolute positions: DNABERT (Ji et al., 2021), and any
//! other of that shape. Post-norm blocks, erf GELU.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::attention::Attention;
use super::blocks::Blocks;
use super::config::Config;
use super::esm;
use super::family::{Alphabet, Family, Likeness, Publication, Published};
use super::kmers::kmers;
use super::learned_positions;
use super::post_norm;
use crate::checkpoint::names::{Names, plain_name};
use crate::checkpoint::{Checkpoint, Settings};
use crate::error::Error;
use crate::graph::builder::Builder;
use crate::graph::request::GraphRequest;
use crate::tokenizer::TokenizerKind;
use crate::weights::table::{Plan, Planned};

/// The first tokens of DNABERT's vocabulary; k-mers follow.
const SPECIALS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Sizes of a BERT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bert {
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
    /// Rows of the position table: the maximum number of tokens of a sequence, including special
    /// tokens.
    pub positions: usize,
    /// Rows of the token type table, of which only the first is used.
    pub token_types: usize,
    /// Added to a layer norm's variance.
    pub layer_norm_eps: f32,
}

impl Bert {
    /// DNABERT for k-mers of `k` bases, as published.
    #[must_use]
    pub fn dnabert(k: u32) -> Self {
        Self {
            layers: 12,
            hidden: 768,
            heads: 12,
            intermediate: 3072,
            vocabulary: 4_usize.pow(k) + SPECIALS.len(),
            positions: 512,
            token_types: 2,
            layer_norm_eps: 1e-12,
        }
    }

    /// Reads Hugging Face's `config.json`. Missing fields get the defaults of transformers'
    /// `BertConfig`.
    fn from_config(config: &Config<'_>) -> Result<Self, Error> {
        config.expect("position_embedding_type", &["absolute"])?;
        config.check_plain_encoder()?;
        Ok(Self {
            layers: config.size("num_hidden_layers")?,
            hidden: config.size("hidden_size")?,
            heads: config.size("num_attention_heads")?,
            intermediate: config.size("intermediate_size")?,
            vocabulary: config.size("vocab_size")?,
            positions: config.size_or("max_position_embeddings", 512)?,
            token_types: config.size_or("type_vocab_size", 2)?,
            layer_norm_eps: config.float_or("layer_norm_eps", 1e-12)?,
        })
    }
}

/// The licence of the weights is that of the code they were published with.
const PUBLICATION: Publication = Publication {
    family: "DNABERT",
    letters: "bases",
    licence: "Apache-2.0",
    citation: "doi:10.1093/bioinformatics/btab083",
    pooling: "cls",
};

/// Name, hub id, parameters, bases of a k-mer.
const PUBLISHED: [(&str, &str, &str, u32); 4] = [
    ("DNABERT-3", "zhihan1996/DNA_bert_3", "86M", 3),
    ("DNABERT-4", "zhihan1996/DNA_bert_4", "86M", 4),
    ("DNABERT-5", "zhihan1996/DNA_bert_5", "87M", 5),
    ("DNABERT-6", "zhihan1996/DNA_bert_6", "89M", 6),
];

impl Family for Bert {
    fn about() -> &'static str {
        "DNABERT and other BERTs with learned positions (model_type \"bert\")"
    }

    fn likeness(checkpoint: &Checkpoint) -> Likeness {
        let Settings::HuggingFace { config, .. } = &checkpoint.settings else {
            return Likeness::None;
        };
        let has = |part: &str| checkpoint.shapes().any(|(name, _)| name.contains(part));
        // Older files do not say what they are. Their tensors do.
        match config.get("model_type").and_then(Value::as_str) {
            Some("bert") | None
                if has(".attention.self.query.")
                    && !has(".attention.self.Wqkv.")
                    && !esm::has_its_tensors(checkpoint) =>
            {
                Likeness::Full
            }
            Some("bert") => Likeness::Related,
            _ => Likeness::None,
        }
    }

    fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let config = Config::of(checkpoint);
        if Self::likeness(checkpoint) != Likeness::Full {
            return Err(config.error(
                "model_type is \"bert\", but the weights have neither BERT's tensors (attention.self.query) nor \
                 DNABERT-2's (attention.self.Wqkv)",
            ));
        }
        Self::from_config(&config)
    }

    fn published() -> Vec<Published<Self>> {
        PUBLISHED
            .map(|(name, hub_id, parameters, k)| Published {
                name,
                hub_id,
                parameters,
                publication: PUBLICATION,
                family: Self::dnabert(k),
            })
            .into()
    }

    fn blocks(&self) -> Blocks {
        Blocks {
            epsilon: self.layer_norm_eps,
            ..Blocks::bert(self.layers, self.hidden, self.heads, self.intermediate)
        }
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn alphabet(&self) -> Option<Alphabet> {
        // k-mers of bases or letters of proteins, depending on the vocabulary.
        None
    }

    fn tokenizer(&self) -> TokenizerKind {
        TokenizerKind::Bert
    }

    fn max_residues(&self) -> Option<usize> {
        // Two positions go to special tokens. A k-mer reaches k - 1 letters further than the one
        // where it starts.
        Some(self.positions - 2)
    }

    fn position_limit(&self) -> Option<usize> {
        Some(self.positions)
    }

    /// DNABERT's `vocab.txt`, where the number of tokens is that of all k-mers.
    fn sample_tokenizer(&self) -> Option<Vec<u8>> {
        let k = (1..=8).find(|k| 4_usize.pow(*k) + SPECIALS.len() == self.vocabulary)?;
        let mut text = SPECIALS.join("\n");
        for kmer in kmers(k) {
            text.push('\n');
            text.push_str(&kmer);
        }
        text.push('\n');
        Some(text.into_bytes())
    }

    fn validate(&self) -> Result<(), String> {
        self.blocks().check(&[
            ("vocab_size", self.vocabulary),
            ("type_vocab_size", self.token_types),
            ("max_position_embeddings", self.positions),
        ])?;
        if self.positions < 3 {
            return Err(format!(
                "max_position_embeddings is {}, which leaves no position for a token between \
                 [CLS] and [SEP]",
                self.positions
            ));
        }
        Ok(())
    }

    fn names(&self) -> Names {
        Names {
            prefixes: &["bert."],
            encoder: &["embeddings", "encoder"],
            unused: &["embeddings.token_type_ids", "pooler.**"],
            spelling: plain_name,
        }
    }

    fn plan(&self) -> Vec<Planned> {
        let (hidden, blocks) = (self.hidden, self.blocks());
        let mut plan = Plan::default();
        post_norm::plan_embedding(&mut plan, self.vocabulary, self.token_types, hidden);
        learned_positions::plan(&mut plan, self.positions, 0, hidden);
        blocks.plan_norm(&mut plan, "embedding_norm", "embeddings.LayerNorm");
        blocks.plan_post_norm(&mut plan);
        plan.0
    }

    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest) {
        let blocks = self.blocks();
        let mut frame = blocks.frame(builder, request.kind);
        let attention = Attention::new(&blocks, &mut frame);
        frame.builder.scope("embedding");
        let words = frame.embedding();
        let state = learned_positions::add(&mut frame, &words);
        let state = blocks.build_post_norm(&mut frame, &attention, &state, request.layer, false);
        frame.outputs(&state, request);
    }
}
