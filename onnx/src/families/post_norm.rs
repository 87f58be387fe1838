//! What BERT (Devlin et al., 2019) and DNABERT-2 have in common: word embeddings with the first token type's row in them, and
//! blocks whose two halves, attention and feed-forward layer, are each added to what came in and then normalised.

use crate::families::GraphKind;
use crate::graph::builder::{Attribute, long};
use crate::graph::fused::Stream;
use crate::graph::layers::Frame;
use crate::weights::norm_fold::{Bias, Folds, Term};
use crate::weights::table::{Input, Plan, Recipe};

/// What must hold of the sizes that both have.
///
/// # Errors
/// What does not, in words.
pub fn check(hidden: usize, heads: usize, layer_norm_eps: f32) -> Result<(), String> {
    if !hidden.is_multiple_of(heads) {
        return Err(format!(
            "a width of {hidden} can't be split among {heads} heads"
        ));
    }
    if !(0.0..1.0).contains(&layer_norm_eps) {
        return Err(format!("layer_norm_eps {layer_norm_eps} is out of range"));
    }
    Ok(())
}

/// Plans the table of words, [vocabulary, hidden]: every token is of the first type.
pub fn plan_embedding(plan: &mut Plan, vocabulary: usize, token_types: usize, hidden: usize) {
    let table =
        |name: &str, rows: usize| Input::new(format!("embeddings.{name}.weight"), &[rows, hidden]);
    plan.add(
        "embedding".to_owned(),
        &[vocabulary, hidden],
        Recipe::Shifted {
            table: table("word_embeddings", vocabulary),
            by: table("token_type_embeddings", token_types),
        },
    );
}

/// The layer norms before the dense layers of both. `gated`: the feed-forward layer is, of twice `intermediate` columns.
#[must_use]
pub fn folds(layers: usize, hidden: usize, intermediate: usize, gated: bool) -> Folds {
    let mut folds = Folds::default();
    let mut due = "embedding_norm".to_owned();
    for layer in 0..layers {
        let name = format!("layer.{layer}");
        folds.attention(&name, due.clone(), hidden, Some(Term::Norm(due)));
        due = format!("{name}.attention_norm");
        let (part, width) = if gated {
            ("gated", 2 * intermediate)
        } else {
            ("up", intermediate)
        };
        folds.feed_forward(&name, part, due.clone(), width);
        folds.biases.push(Bias {
            name: format!("{name}.down.bias"),
            length: hidden,
            terms: vec![Term::Norm(due)],
        });
        due = format!("{name}.feed_forward_norm");
    }
    folds
}

/// How blocks are made.
pub struct Blocks {
    /// How many.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// `ALiBi`, if there is: padded and plain what is added to all scores, packed the heads' slopes.
    pub alibi: Option<String>,
    /// Whether the embeddings are those of words alone, without positions.
    pub of_words: bool,
    /// Columns of each half of a gated feed-forward layer; `None`: it is not gated.
    pub gated: Option<usize>,
}

impl Blocks {
    /// The hidden states [tokens, hidden] behind all blocks, from the sum of the embeddings.
    pub fn build(&self, frame: &mut Frame<'_, '_>, embedded: &str) -> String {
        if frame.kind == GraphKind::Fused {
            return self.fused(frame, embedded);
        }
        let mut state = frame.norm(embedded, "embedding_norm");
        for layer in 0..self.layers {
            let name = format!("layer.{layer}");
            frame.builder.scope(&name);
            let attended = match frame.kind {
                GraphKind::Padded | GraphKind::Plain => {
                    let parts = frame.split_qkv(&state, &name);
                    frame.attention(&parts, self.heads, self.alibi.as_deref())
                }
                GraphKind::Packed | GraphKind::Fused => {
                    let qkv = frame.qkv(&state, &name);
                    self.attention(frame, &qkv)
                }
            };
            let attended = frame.project(&attended, &name);
            let bias = format!("{name}.attention_output.bias");
            let norm = format!("{name}.attention_norm");
            [state, _] = frame.skip_norm(&attended, &state, &bias, &norm, false);
            let fed = match self.gated {
                Some(half) => Self::gated(frame, &state, &name, half),
                None => frame.feed_forward(&state, &name),
            };
            let bias = format!("{name}.down.bias");
            let norm = format!("{name}.feed_forward_norm");
            [state, _] = frame.skip_norm(&fed, &state, &bias, &norm, false);
        }
        state
    }

    fn fused(&self, frame: &mut Frame<'_, '_>, embedded: &str) -> String {
        let mut norm = "embedding_norm".to_owned();
        let mut stream = Stream::begin_normed(frame, embedded, &norm);
        for layer in 0..self.layers {
            let name = format!("layer.{layer}");
            frame.builder.scope(&name);
            let qkv = if layer == 0 && self.of_words {
                Stream::qkv_of_words(frame, &name)
            } else {
                stream.qkv(frame, &name)
            };
            let attended = self.attention(frame, &qkv);
            stream.add_attention(frame, &attended, &name);
            stream.due(format!("{name}.attention_norm"));
            stream.add_feed_forward(frame, &name, self.gated.is_some());
            norm = format!("{name}.feed_forward_norm");
            stream.due(norm.clone());
        }
        frame.norm(&stream.state, &norm)
    }

    /// Attention of packed queries, keys and values, and the bias of queries and keys.
    fn attention(&self, frame: &mut Frame<'_, '_>, [qkv, bias]: &[String; 2]) -> String {
        let operator = match self.alibi {
            Some(_) => "seqembed:AlibiAttention",
            None => "seqembed:Attention",
        };
        let mut inputs = vec![qkv.as_str(), bias];
        inputs.extend(self.alibi.as_deref());
        inputs.push("sequence_starts");
        let heads = ("num_heads", Attribute::Int(long(self.heads)));
        frame.builder.op(operator, &inputs, &[heads])
    }

    /// `(gelu(first half) * second half) @ down^T`, its bias left to what follows.
    fn gated(frame: &mut Frame<'_, '_>, state: &str, name: &str, half: usize) -> String {
        let gated = format!("{name}.gated.weight");
        let product = match frame.kind {
            GraphKind::Padded | GraphKind::Plain => {
                // Two views of the one weight, as with queries, keys and values.
                let [left, right] = [("left", 0), ("right", half)].map(|(side, first)| {
                    let alias = format!("{name}.gated_{side}.weight");
                    let weight = frame.builder.weight_rows(&gated, &alias, first, half);
                    frame.dense(state, &weight, None)
                });
                let left = frame.builder.op("com.microsoft:Gelu", &[&left], &[]);
                frame.builder.op("Mul", &[&left, &right], &[])
            }
            GraphKind::Packed | GraphKind::Fused => {
                let weight = frame.builder.weight(&gated);
                let both = frame.dense(state, &weight, None);
                frame.builder.op("seqembed:Geglu", &[&both], &[])
            }
        };
        let weight = frame.builder.weight(&format!("{name}.down.weight"));
        frame.dense(&product, &weight, None)
    }
}
