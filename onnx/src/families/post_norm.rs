//! Blocks whose norms come last, as those of BERT (Devlin et al., 2019): each half of a block,
//! attention and feed-forward layer, adds its output to its input and normalises the sum. The
//! embeddings are normalised before the first block.

use super::attention::Attention;
use super::blocks::Blocks;
use crate::graph::fused::Stream;
use crate::graph::layers::Frame;
use crate::graph::outputs::Outputs;
use crate::graph::request::GraphKind;
use crate::weights::norm_fold::{Bias, Folds, Term};
use crate::weights::table::{Input, Plan, TensorSource};

/// Plans the table of word embeddings, [vocabulary, hidden], plus the row of the first token type,
/// which every token has.
pub fn plan_embedding(plan: &mut Plan, vocabulary: usize, token_types: usize, hidden: usize) {
    let table =
        |name: &str, rows: usize| Input::new(format!("embeddings.{name}.weight"), &[rows, hidden]);
    plan.add(
        "embedding".to_owned(),
        &[vocabulary, hidden],
        TensorSource::Shifted {
            table: table("word_embeddings", vocabulary),
            by: table("token_type_embeddings", token_types),
        },
    );
}

impl Blocks {
    /// Plans all blocks, from tensors as Hugging Face spells those of BERT.
    pub fn plan_post_norm(&self, plan: &mut Plan) {
        for layer in 0..self.layers {
            let (ours, theirs) = (format!("layer.{layer}"), format!("encoder.layer.{layer}"));
            self.plan_attention(plan, layer);
            self.plan_norm(
                plan,
                &format!("{ours}.attention_norm"),
                &format!("{theirs}.attention.output.LayerNorm"),
            );
            self.plan_feed_forward(plan, layer);
            self.plan_norm(
                plan,
                &format!("{ours}.feed_forward_norm"),
                &format!("{theirs}.output.LayerNorm"),
            );
        }
    }

    /// The norms that fused graphs fold into the dense layers after them.
    #[must_use]
    pub fn fold_post_norm(&self) -> Folds {
        let mut folds = Folds::default();
        let mut due = "embedding_norm".to_owned();
        for layer in 0..self.layers {
            let name = format!("layer.{layer}");
            folds.attention(&name, due.clone(), self.hidden, Some(Term::Norm(due)));
            due = format!("{name}.attention_norm");
            self.fold_feed_forward(&mut folds, &name, due.clone());
            folds.biases.push(Bias {
                name: format!("{name}.down.bias"),
                length: self.hidden,
                terms: vec![Term::Norm(due)],
            });
            due = format!("{name}.feed_forward_norm");
        }
        folds
    }

    /// Builds the blocks that the outputs need, from the sum of the embeddings, [tokens, hidden].
    /// `of_words`: the embeddings are those of words alone, without positions.
    pub fn build_post_norm(
        &self,
        frame: &mut Frame<'_, '_>,
        attention: &Attention<'_>,
        embedded: &str,
        outputs: &mut Outputs<'_>,
        of_words: bool,
    ) {
        if frame.kind == GraphKind::Fused {
            self.build_fused_post_norm(frame, attention, embedded, outputs, of_words);
            return;
        }
        let mut state = frame.norm(embedded, "embedding_norm");
        outputs.add(frame, 0, &state);
        for layer in 0..outputs.last() {
            let name = format!("layer.{layer}");
            frame.builder.scope(&name);
            let attended = attention.attend(frame, &state, &name);
            let attended = frame.project(&attended, &name);
            let bias = format!("{name}.attention_output.bias");
            let bias = self.attention_bias.then_some(bias.as_str());
            let norm = format!("{name}.attention_norm");
            [state, _] = frame.skip_norm(&attended, &state, bias, &norm, false);
            let fed = frame.feed_forward(&state, &name, self.feed_forward());
            let bias = format!("{name}.down.bias");
            let bias = self.down_bias.then_some(bias.as_str());
            let norm = format!("{name}.feed_forward_norm");
            [state, _] = frame.skip_norm(&fed, &state, bias, &norm, false);
            outputs.add(frame, layer + 1, &state);
        }
    }

    /// The same for fused graphs, whose dense layers include norms and residuals.
    fn build_fused_post_norm(
        &self,
        frame: &mut Frame<'_, '_>,
        attention: &Attention<'_>,
        embedded: &str,
        outputs: &mut Outputs<'_>,
        of_words: bool,
    ) {
        let mut norm = "embedding_norm".to_owned();
        let mut stream = Stream::begin_normed(frame, embedded, &norm);
        Self::add_normed(frame, &stream, &norm, 0, outputs);
        for layer in 0..outputs.last() {
            let name = format!("layer.{layer}");
            frame.builder.scope(&name);
            let attended = if layer == 0 && of_words {
                let qkv = Stream::qkv_of_words(frame, &name);
                attention.packed(frame, &qkv, &name)
            } else {
                attention.attend_stream(frame, &stream, &name)
            };
            stream.add_attention(frame, &attended, &name);
            stream.due(format!("{name}.attention_norm"));
            stream.add_feed_forward(frame, &name, self.feed_forward());
            norm = format!("{name}.feed_forward_norm");
            stream.due(norm.clone());
            Self::add_normed(frame, &stream, &norm, layer + 1, outputs);
        }
    }

    /// The hidden states of a layer, after the norm that is due, if they are asked for.
    fn add_normed(
        frame: &mut Frame<'_, '_>,
        stream: &Stream,
        norm: &str,
        layer: usize,
        outputs: &mut Outputs<'_>,
    ) {
        if outputs.is_wanted(layer) {
            let normed = frame.norm(&stream.state, norm);
            outputs.add(frame, layer, &normed);
        }
    }
}
