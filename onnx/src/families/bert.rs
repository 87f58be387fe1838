//! BERT (Devlin et al., 2019) with learned absolute positions: DNABERT (Ji et al., 2021) of k-mers,
//! `ProtBert` (Elnaggar et al., 2022) and `IgBert` (Kenlay et al., 2024) of amino acids, GROVER
//! (Sanabria et al., 2024) of byte pairs, and any other of that shape. Post-norm blocks, erf GELU.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::attention::Attention;
use super::blocks::Blocks;
use super::config::Config;
use super::esm;
use super::family::{Alphabet, Family, Likeness, Publication, Published};
use super::kmers::kmers;
use super::known_values::KnownValues;
use super::learned_positions;
use super::post_norm;
use super::sample_bpe::sample_bpe;
use crate::checkpoint::names::{Names, plain_name};
use crate::checkpoint::{Checkpoint, Settings};
use crate::error::Error;
use crate::graph::builder::Builder;
use crate::graph::outputs::Outputs;
use crate::graph::request::GraphRequest;
use crate::head::{self, HeadForm};
use crate::tokenizer::{TokenizerKind, has_byte_pairs};
use crate::weights::table::{Plan, Planned};

/// The first tokens of DNABERT's and `ProtBert`'s vocabularies; k-mers or letters follow.
const SPECIALS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// The letters of `ProtBert`'s vocabulary, which `IgBert` and others trained from it share.
const PROTBERT_LETTERS: &str = "LAGVESIKRDTPNQFYMHCWXUBZO";

/// Residues of the longest proteins that `ProtBert` was trained on. It has positions for many more,
/// whose rows of the table were never trained.
const PROTBERT_RESIDUES: usize = 2046;

/// Average number of bases per token of GROVER in the human genome.
const GROVER_BASES: usize = 4;

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
    /// How sequences become tokens: as listed in `vocab.txt`, or by byte pairs.
    #[serde(default = "listed", skip_serializing_if = "is_listed")]
    pub tokenizer: TokenizerKind,
    /// Rows of the token type table, of which only the first is used.
    pub token_types: usize,
    /// Added to a layer norm's variance.
    pub layer_norm_eps: f32,
}

/// The default for a `seqembed.json` without this field.
fn listed() -> TokenizerKind {
    TokenizerKind::Bert
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_listed(tokenizer: &TokenizerKind) -> bool {
    *tokenizer == listed()
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
            tokenizer: TokenizerKind::Bert,
            token_types: 2,
            layer_norm_eps: 1e-12,
        }
    }

    /// `ProtBert`, which is as wide as BERT-large but has 30 blocks, not 24.
    #[must_use]
    pub fn protbert() -> Self {
        Self {
            layers: 30,
            hidden: 1024,
            heads: 16,
            intermediate: 4096,
            vocabulary: SPECIALS.len() + PROTBERT_LETTERS.len(),
            positions: 40_000,
            ..Self::dnabert(3)
        }
    }

    /// GROVER: special tokens, four bases, and 600 byte pairs.
    #[must_use]
    pub fn grover() -> Self {
        Self {
            vocabulary: SPECIALS.len() + 4 + 600,
            tokenizer: TokenizerKind::Bpe,
            ..Self::dnabert(3)
        }
    }

    /// Whether the vocabulary is `ProtBert`'s, by its size, which no other BERT's of biological
    /// sequences has.
    fn has_protbert_letters(&self) -> bool {
        self.tokenizer == TokenizerKind::Bert
            && self.vocabulary == SPECIALS.len() + PROTBERT_LETTERS.len()
    }

    /// Reads Hugging Face's `config.json`. Missing fields get the defaults of transformers'
    /// `BertConfig`.
    fn from_config(config: &Config<'_>, tokenizer: TokenizerKind) -> Result<Self, Error> {
        config.expect("position_embedding_type", &["absolute"])?;
        config.check_plain_encoder()?;
        Ok(Self {
            layers: config.size("num_hidden_layers")?,
            hidden: config.size("hidden_size")?,
            heads: config.size("num_attention_heads")?,
            intermediate: config.size("intermediate_size")?,
            vocabulary: config.size("vocab_size")?,
            positions: config.size_or("max_position_embeddings", 512)?,
            tokenizer,
            token_types: config.size_or("type_vocab_size", 2)?,
            layer_norm_eps: config.float_or("layer_norm_eps", 1e-12)?,
        })
    }
}

/// The licence of the weights is that of the code they were published with.
const DNABERT: Publication = Publication {
    family: "DNABERT",
    letters: "bases",
    licence: "Apache-2.0",
    citation: "doi:10.1093/bioinformatics/btab083",
    pooling: "cls",
};

/// The licence is that of `ProtTrans`, the repository that presents the models.
const PROTBERT: Publication = Publication {
    family: "ProtBert",
    letters: "amino acids",
    licence: "AFL-3.0",
    citation: "doi:10.1109/TPAMI.2021.3095381",
    pooling: "mean",
};

const IGBERT: Publication = Publication {
    family: "IgBert",
    licence: "MIT",
    citation: "arXiv:2403.17889",
    ..PROTBERT
};

/// The licence is that of the same weights on Zenodo.
const GROVER: Publication = Publication {
    family: "GROVER",
    letters: "bases",
    licence: "CC-BY-4.0",
    citation: "doi:10.1038/s42256-024-00872-0",
    pooling: "mean",
};

/// From evo.cpp (tcztzy, Apache-2.0), `configs/evidence/oracles`: made there with transformers 4.38
/// in fp32.
const GROVER_VALUES: KnownValues = KnownValues {
    source: Cow::Borrowed("evo.cpp, configs/evidence/oracles/geneb-grover/input-1"),
    sequence: Cow::Borrowed("AAAACCCCGGGGTTTTACGTNACGTNNNNACGTTGCAACGTACGT"),
    pooling: Some(Cow::Borrowed("mean-all")),
    values: Cow::Borrowed(&[
        -1.082924, -0.206073, -0.937429, -0.050938, 0.497056, -0.757521,
    ]),
    ..KnownValues::MEAN
};

/// Name, hub id, parameters, bases of a k-mer.
const DNABERTS: [(&str, &str, &str, u32); 4] = [
    ("DNABERT-3", "zhihan1996/DNA_bert_3", "86M", 3),
    ("DNABERT-4", "zhihan1996/DNA_bert_4", "86M", 4),
    ("DNABERT-5", "zhihan1996/DNA_bert_5", "87M", 5),
    ("DNABERT-6", "zhihan1996/DNA_bert_6", "89M", 6),
];

/// Name, hub id, publication. All have the same sizes.
const PROTBERTS: [(&str, &str, Publication); 4] = [
    ("ProtBert", "Rostlab/prot_bert", PROTBERT),
    ("ProtBert-BFD", "Rostlab/prot_bert_bfd", PROTBERT),
    ("IgBert-unpaired", "Exscientia/IgBert_unpaired", IGBERT),
    ("IgBert", "Exscientia/IgBert", IGBERT),
];

/// `ProtBert`'s vocabulary, by id.
fn protbert_tokens() -> impl Iterator<Item = String> {
    let letters = PROTBERT_LETTERS.chars().map(String::from);
    SPECIALS.map(str::to_owned).into_iter().chain(letters)
}

impl Family for Bert {
    fn about() -> &'static str {
        "DNABERT, ProtBert, IgBert, GROVER and other BERTs with learned positions (model_type \"bert\")"
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
        let tokenizer = if has_byte_pairs(checkpoint.settings.path().parent()) {
            TokenizerKind::Bpe
        } else {
            TokenizerKind::Bert
        };
        Self::from_config(&config, tokenizer)
    }

    fn published() -> Vec<Published<Self>> {
        let mut all = Published::table(DNABERT, DNABERTS, Self::dnabert);
        let grover = Published {
            name: "GROVER",
            hub_id: "PoetschLab/GROVER",
            parameters: "87M",
            publication: GROVER,
            family: Self::grover(),
        };
        let protberts = PROTBERTS.map(|(name, hub_id, publication)| Published {
            name,
            hub_id,
            parameters: "420M",
            publication,
            family: Self::protbert(),
        });
        all.push(grover);
        all.extend(protberts);
        all
    }

    fn published_values(name: &str) -> Vec<KnownValues> {
        match name {
            "GROVER" => vec![GROVER_VALUES],
            _ => Vec::new(),
        }
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
        self.tokenizer
    }

    fn replaced_letters(&self) -> &'static [(u8, u8)] {
        if self.has_protbert_letters() {
            &[(b'U', b'X'), (b'Z', b'X'), (b'O', b'X'), (b'B', b'X')]
        } else {
            &[]
        }
    }

    fn check_vocabulary(&self, text: &str) -> Result<(), String> {
        // Its letters are replaced, which would be wrong for another model of as many tokens.
        if !self.has_protbert_letters() {
            return Ok(());
        }
        let theirs = text.lines().map(str::trim).chain(std::iter::repeat(""));
        let mut both = protbert_tokens().zip(theirs).enumerate();
        match both.find(|(_, (own, theirs))| own != theirs) {
            None => Ok(()),
            Some((id, (own, theirs))) => Err(format!(
                "vocab_size is that of ProtBert and IgBert, but the vocabulary is not theirs: the token \
                 with id {id} is {theirs:?}, not {own:?}"
            )),
        }
    }

    fn max_residues(&self) -> Option<usize> {
        // Two positions go to special tokens. A k-mer reaches k - 1 letters further than the one
        // where it starts.
        let tokens = self.positions - 2;
        Some(match self.tokenizer {
            TokenizerKind::Bpe => tokens.saturating_mul(GROVER_BASES),
            _ if self.has_protbert_letters() => tokens.min(PROTBERT_RESIDUES),
            _ => tokens,
        })
    }

    fn position_limit(&self) -> Option<usize> {
        Some(self.positions)
    }

    fn letters_per_token(&self) -> Option<usize> {
        (self.tokenizer == TokenizerKind::Bpe).then_some(GROVER_BASES)
    }

    /// GROVER's kind of byte pairs, `ProtBert`'s `vocab.txt`, or DNABERT's, where the number of
    /// tokens is that of all k-mers.
    fn sample_tokenizer(&self) -> Option<Vec<u8>> {
        if self.tokenizer == TokenizerKind::Bpe {
            return Some(sample_bpe(self.vocabulary));
        }
        if self.has_protbert_letters() {
            let lines = protbert_tokens().map(|token| token + "\n");
            return Some(lines.collect::<String>().into_bytes());
        }
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

    fn head(&self) -> Option<HeadForm> {
        let (hidden, epsilon) = (self.hidden, self.layer_norm_eps);
        Some(HeadForm::new(head::BERT, hidden, self.vocabulary, epsilon))
    }

    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest) {
        let blocks = self.blocks();
        let mut frame = blocks.frame(builder, request.kind);
        let attention = Attention::new(&blocks, &mut frame);
        frame.builder.scope("embedding");
        let words = frame.embedding();
        let state = learned_positions::add(&mut frame, &words);
        let mut outputs = Outputs::new(request);
        blocks.build_post_norm(&mut frame, &attention, &state, &mut outputs, false);
        outputs.finish(&mut frame);
    }
}
