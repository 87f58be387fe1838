//! BERT (Devlin et al., 2019) with learned absolute positions: DNABERT (Ji et al., 2021), and any other of that shape.
//! Post-norm blocks, erf GELU.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::leftovers::Names;
use crate::error::Error;
use crate::families::block;
use crate::families::config::{Config, check_sizes};
use crate::families::post_norm;
use crate::families::post_norm::Blocks;
use crate::families::{Description, GraphKind, GraphRequest, Sizes};
use crate::graph::builder::Builder;
use crate::graph::layers::Frame;
use crate::graph::ort_cuda;
use crate::weights::norm_fold::Folds;
use crate::weights::table::{Input, Plan, Planned};

/// The first tokens of DNABERT's vocabulary; k-mers follow.
const SPECIALS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Sizes of a BERT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bert {
    /// Blocks.
    pub layers: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside the feed-forward layer.
    pub intermediate: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Rows of the table of positions: the most tokens that a sequence can have, special ones among them.
    pub positions: usize,
    /// Rows of the table of token types, of which the first alone is used.
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

    /// Reads Hugging Face's `config.json`. What is missing is what transformers' `BertConfig` takes then.
    ///
    /// # Errors
    /// [`Error::Config`] when a size is missing or impossible, or it is a BERT of another kind.
    pub fn from_config(path: &Path, value: &Value) -> Result<Self, Error> {
        let config = Config { path, value };
        config.expect("position_embedding_type", &["absolute"])?;
        config.check_plain_encoder()?;
        let model = Self {
            layers: config.size("num_hidden_layers")?,
            hidden: config.size("hidden_size")?,
            heads: config.size("num_attention_heads")?,
            intermediate: config.size("intermediate_size")?,
            vocabulary: config.size("vocab_size")?,
            positions: config.size_or("max_position_embeddings", 512)?,
            token_types: config.size_or("type_vocab_size", 2)?,
            layer_norm_eps: config.float_or("layer_norm_eps", 1e-12)?,
        };
        model.validate().map_err(|message| config.error(message))?;
        Ok(model)
    }

    /// Word and position embeddings, summed; the token type's row is in the words' table.
    fn embedding(frame: &mut Frame<'_, '_>) -> String {
        let words = frame.embedding();
        let table = frame.builder.weight("positions");
        match frame.kind {
            GraphKind::Padded => {
                let positions = frame.positions();
                let positions = frame.builder.op("Gather", &[&table, &positions], &[]);
                let words = frame.as_rows(&words);
                let sum = frame.builder.op("Add", &[&words, &positions], &[]);
                frame.as_flat(&sum)
            }
            GraphKind::Packed | GraphKind::Fused | GraphKind::Plain => {
                let positions = if frame.kind == GraphKind::Plain {
                    ort_cuda::position_ids(frame.builder)
                } else {
                    let inputs = ["sequence_starts", "input_ids"];
                    frame.builder.op("seqembed:Positions", &inputs, &[])
                };
                let positions = frame.builder.op("Gather", &[&table, &positions], &[]);
                frame.builder.op("Add", &[&words, &positions], &[])
            }
        }
    }
}

impl Description for Bert {
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
            alibi: false,
            gated: false,
            post_norm: true,
        }
    }

    fn max_residues(&self) -> Option<usize> {
        // Two positions go to special tokens. A k-mer reaches k - 1 letters further than the one where it starts.
        Some(self.positions - 2)
    }

    fn tokenizer(&self) -> &'static str {
        "bert"
    }

    /// DNABERT's `vocab.txt`, where the number of tokens is that of all k-mers.
    fn sample_tokenizer(&self) -> Option<Vec<u8>> {
        let k = (1..=8).find(|k| 4_usize.pow(*k) + SPECIALS.len() == self.vocabulary)?;
        let mut text = SPECIALS.join("\n");
        for kmer in 0..4_usize.pow(k) {
            text.push('\n');
            text.extend(
                (0..k)
                    .rev()
                    .map(|place| ['A', 'T', 'C', 'G'][kmer >> (2 * place) & 3]),
            );
        }
        text.push('\n');
        Some(text.into_bytes())
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
                ("max_position_embeddings", self.positions),
            ],
        )?;
        if self.positions < 3 {
            return Err(format!(
                "max_position_embeddings is {}, which leaves no room beside [CLS] and [SEP]",
                self.positions
            ));
        }
        post_norm::check(self.hidden, self.heads, self.layer_norm_eps)
    }

    fn names(&self) -> Names {
        Names {
            prefixes: &["bert."],
            encoder: &["embeddings", "encoder"],
            unused: &["embeddings.token_type_ids", "pooler.**"],
        }
    }

    fn plan(&self) -> Vec<Planned> {
        let hidden = self.hidden;
        let mut plan = Plan::default();
        post_norm::plan_embedding(&mut plan, self.vocabulary, self.token_types, hidden);
        plan.copy(
            "positions".to_owned(),
            Input::new(
                "embeddings.position_embeddings.weight".to_owned(),
                &[self.positions, hidden],
            ),
        );
        plan.norm("embedding_norm", "embeddings.LayerNorm", hidden);
        for layer in 0..self.layers {
            let (ours, theirs) = (format!("layer.{layer}"), format!("encoder.layer.{layer}"));
            block::plan_attention(&mut plan, layer, hidden);
            plan.norm(
                &format!("{ours}.attention_norm"),
                &format!("{theirs}.attention.output.LayerNorm"),
                hidden,
            );
            block::plan_feed_forward(&mut plan, layer, hidden, self.intermediate);
            plan.norm(
                &format!("{ours}.feed_forward_norm"),
                &format!("{theirs}.output.LayerNorm"),
                hidden,
            );
        }
        plan.0
    }

    fn folds(&self) -> Folds {
        post_norm::folds(self.layers, self.hidden, self.intermediate, false)
    }

    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest) {
        let mut frame = Frame::new(builder, request.kind, self.hidden, self.layer_norm_eps);
        frame.builder.scope("embedding");
        let state = Self::embedding(&mut frame);
        let blocks = Blocks {
            layers: request.layer,
            heads: self.heads,
            alibi: None,
            of_words: false,
            gated: None,
        };
        let state = blocks.build(&mut frame, &state);
        frame.outputs(&state, request);
    }
}
