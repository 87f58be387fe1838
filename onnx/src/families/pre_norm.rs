//! Blocks whose norms come first, as those of ESM (Rives et al., 2021; Lin et al., 2023): each half
//! of a block, attention and feed-forward layer, normalises its input and adds its output to the
//! input. Most of these models have a final norm after the last block.

use super::attention::Attention;
use super::blocks::Blocks;
use super::contact_maps::ContactMaps;
use crate::graph::builder::Builder;
use crate::graph::fused::Stream;
use crate::graph::layers::Frame;
use crate::graph::outputs::Outputs;
use crate::graph::request::{GraphKind, GraphRequest};
use crate::weights::norm_fold::{Bias, Folds};
use crate::weights::table::{Input, Plan};

/// The table of word embeddings, in the spelling of Hugging Face's ESM, which the plans use.
pub const WORD_EMBEDDINGS: &str = "embeddings.word_embeddings.weight";

/// Plans the table of word embeddings, [vocabulary, hidden], as it is in the checkpoint.
pub fn plan_word_embeddings(plan: &mut Plan, shape: [usize; 2]) {
    plan.copy(
        "embedding".to_owned(),
        Input::new(WORD_EMBEDDINGS.to_owned(), &shape),
    );
}

impl Blocks {
    /// Plans all blocks and the last norm, from tensors as Hugging Face spells those of ESM.
    pub fn plan_pre_norm(&self, plan: &mut Plan) {
        for layer in 0..self.layers {
            let (ours, theirs) = (format!("layer.{layer}"), format!("encoder.layer.{layer}"));
            self.plan_norm(
                plan,
                &format!("{ours}.attention_norm"),
                &format!("{theirs}.attention.LayerNorm"),
            );
            self.plan_attention(plan, layer);
            self.plan_norm(
                plan,
                &format!("{ours}.feed_forward_norm"),
                &format!("{theirs}.LayerNorm"),
            );
            self.plan_feed_forward(plan, layer);
        }
        self.plan_final_norm(plan, "encoder.emb_layer_norm_after");
    }

    /// The norms that fused graphs fold into the dense layers after them.
    #[must_use]
    pub fn fold_pre_norm(&self) -> Folds {
        let mut folds = Folds::default();
        for layer in 0..self.layers {
            let name = format!("layer.{layer}");
            folds.attention(&name, format!("{name}.attention_norm"), self.hidden, None);
            self.fold_feed_forward(&mut folds, &name, format!("{name}.feed_forward_norm"));
            // Where the model has none, the fused dense layer adds zeros.
            if !self.down_bias {
                folds.biases.push(Bias {
                    name: format!("{name}.down.bias"),
                    length: self.hidden,
                    terms: Vec::new(),
                });
            }
        }
        folds
    }

    /// Builds the graph of a model with such blocks. `embed` adds the embeddings, [tokens, hidden].
    pub fn build_pre_norm_model(
        &self,
        builder: &mut Builder<'_>,
        request: &GraphRequest,
        embed: impl FnOnce(&mut Frame<'_, '_>) -> String,
    ) {
        let mut frame = self.frame(builder, request.kind);
        let attention = Attention::new(self, &mut frame);
        frame.builder.scope("embedding");
        let embedding = embed(&mut frame);
        let mut outputs = Outputs::new(request);
        if let Some(head) = frame.builder.contact_head().cloned() {
            let mut maps = ContactMaps::new(head, self.layers, self.heads);
            let added = Some(&mut maps);
            self.build_blocks(&mut frame, &attention, embedding, &mut outputs, added);
            maps.finish(&mut frame);
            return;
        }
        self.build_pre_norm(&mut frame, &attention, embedding, &mut outputs);
        outputs.finish(&mut frame);
    }

    /// Builds the blocks that the outputs need, from the embeddings, [tokens, hidden]. The hidden
    /// states of the last block have passed the last norm, if there is one.
    pub fn build_pre_norm(
        &self,
        frame: &mut Frame<'_, '_>,
        attention: &Attention<'_>,
        embedding: String,
        outputs: &mut Outputs<'_>,
    ) {
        self.build_blocks(frame, attention, embedding, outputs, None);
    }

    /// As [`Blocks::build_pre_norm`]. In a graph of contacts, the blocks end with the queries and
    /// keys of the last one.
    fn build_blocks(
        &self,
        frame: &mut Frame<'_, '_>,
        attention: &Attention<'_>,
        embedding: String,
        outputs: &mut Outputs<'_>,
        mut maps: Option<&mut ContactMaps>,
    ) {
        let last = outputs.last();
        outputs.add(frame, 0, &embedding);
        if last == 0 {
            return;
        }
        if frame.kind == GraphKind::Fused {
            self.build_fused(frame, attention, &embedding, outputs);
            return;
        }
        frame.builder.scope("layer.0");
        let mut norm = frame.norm(&embedding, "layer.0.attention_norm");
        let mut state = embedding;
        for layer in 0..last {
            let name = format!("layer.{layer}");
            frame.builder.scope(&name);
            let attended = match maps.as_deref_mut() {
                Some(maps) => attention.attend_and_map(frame, &norm, &name, maps),
                None => attention.attend(frame, &norm, &name),
            };
            if maps.as_ref().is_some_and(|maps| maps.is_whole()) {
                return;
            }
            let attended = frame.project(&attended, &name);
            let bias = format!("{name}.attention_output.bias");
            [norm, state] = frame.skip_norm(
                &attended,
                &state,
                self.attention_bias.then_some(bias.as_str()),
                &format!("{name}.feed_forward_norm"),
                true,
            );
            let down = frame.feed_forward(&norm, &name, self.feed_forward());
            let bias = format!("{name}.down.bias");
            let bias = self.down_bias.then_some(bias.as_str());
            if layer + 1 < last {
                let next = format!("layer.{}.attention_norm", layer + 1);
                [norm, state] = frame.skip_norm(&down, &state, bias, &next, true);
            } else if last == self.layers && self.final_norm {
                [state, _] = frame.skip_norm(&down, &state, bias, "final_norm", false);
            } else {
                let bias = bias.map(|bias| frame.builder.weight(bias));
                state = frame.builder.op("Add", &[&down, &state], &[]);
                if let Some(bias) = bias {
                    state = frame.builder.op("Add", &[&state, &bias], &[]);
                }
            }
            outputs.add(frame, layer + 1, &state);
        }
    }

    /// The same for fused graphs, whose dense layers include norms and residuals.
    fn build_fused(
        &self,
        frame: &mut Frame<'_, '_>,
        attention: &Attention<'_>,
        embedding: &str,
        outputs: &mut Outputs<'_>,
    ) {
        let mut stream = Stream::begin(frame, embedding);
        for layer in 0..outputs.last() {
            let name = format!("layer.{layer}");
            frame.builder.scope(&name);
            let attended = attention.attend_stream(frame, &stream, &name);
            stream.add_attention(frame, &attended, &name);
            stream.add_feed_forward(frame, &name, self.feed_forward());
            if layer + 1 < self.layers {
                outputs.add(frame, layer + 1, &stream.state);
            }
        }
        if outputs.last() == self.layers {
            let normed = frame.norm(&stream.state, "final_norm");
            outputs.add(frame, self.layers, &normed);
        }
    }
}

/// The embeddings of words alone, [tokens, hidden], for [`Blocks::build_pre_norm_model`].
pub fn word_embeddings(frame: &mut Frame<'_, '_>) -> String {
    frame.embedding()
}
