//! ESM-2 (Lin et al., 2023): pre-norm blocks, rotary positions, erf GELU, a last layer norm.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::leftovers::{self, Names};
use crate::checkpoint::{Checkpoint, Scalar, Settings};
use crate::error::Error;
use crate::families::block;
use crate::families::catalog::known_models;
use crate::families::config::{Config, in_layer, plain_name};
use crate::families::{Architecture, Description, GraphKind, GraphRequest, Sizes};
use crate::graph::builder::{Attribute, Builder, long};
use crate::graph::fused;
use crate::graph::layers::Frame;
use crate::graph::ort_cuda;
use crate::graph::proto::ElementType;
use crate::weights::norm_fold::Folds;
use crate::weights::table::{Input, Plan, Planned, Recipe};

/// One token a residue: the vocabulary of all ESM-2 models, by id.
pub const VOCABULARY: [&str; 33] = [
    "<cls>", "<pad>", "<eos>", "<unk>", "L", "A", "G", "V", "S", "E", "R", "T", "I", "D", "P", "K",
    "Q", "N", "F", "Y", "M", "H", "W", "C", "X", "B", "U", "Z", "O", ".", "-", "<null_1>",
    "<mask>",
];

/// What token dropout leaves of an embedding on average: 15 % of the tokens are chosen in training, 80 % of them masked.
const TOKEN_DROPOUT_SCALE: f32 = 0.88;

/// Sizes of an ESM-2 model, and what its configuration leaves open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Esm2 {
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
    pub fn published(layers: usize, hidden: usize, heads: usize) -> Self {
        Self {
            layers,
            hidden,
            heads,
            intermediate: 4 * hidden,
            vocabulary: VOCABULARY.len(),
            layer_norm_eps: 1e-5,
            rotary_base: 10_000.0,
            token_dropout: true,
            norm_before: false,
            mask_id: 32,
        }
    }

    /// Reads Hugging Face's `config.json`. What is missing is what transformers' `EsmConfig` takes then.
    ///
    /// # Errors
    /// [`Error::Config`] when a size is missing or impossible, positions are not rotary, or it is an ESM of another kind.
    pub fn from_config(path: &Path, value: &Value) -> Result<Self, Error> {
        let config = Config { path, value };
        match value.get("position_embedding_type").and_then(Value::as_str) {
            Some("rotary") => {}
            other => {
                return Err(config.error(format!(
                    "position_embedding_type is {}; ESM-2 has rotary positions, and ESM-1 models cannot be exported",
                    other.map_or_else(|| "missing".to_owned(), |other| format!("{other:?}"))
                )));
            }
        }
        if config.flag("is_folding_model")? {
            return Err(config.error("is_folding_model is true: ESMFold cannot be exported"));
        }
        config.check_plain_encoder()?;
        let rope = Config {
            path,
            value: value.get("rope_parameters").unwrap_or(&Value::Null),
        };
        let model = Self {
            layers: config.size("num_hidden_layers")?,
            hidden: config.size("hidden_size")?,
            heads: config.size("num_attention_heads")?,
            intermediate: config.size("intermediate_size")?,
            vocabulary: config.size("vocab_size")?,
            layer_norm_eps: config.float_or("layer_norm_eps", 1e-12)?,
            rotary_base: config.float_or("rope_theta", rope.float_or("rope_theta", 10_000.0)?)?,
            token_dropout: config.flag("token_dropout")?,
            norm_before: config.flag("emb_layer_norm_before")?,
            mask_id: config.size_or("mask_token_id", 32)?,
        };
        model.validate().map_err(|message| config.error(message))?;
        Ok(model)
    }

    /// Reads the settings inside a fair-esm `.pt`, or takes the sizes from its tensors where it has none.
    ///
    /// # Errors
    /// [`Error::Config`] when the file is of another model than ESM-2, or the number of heads is told nowhere.
    pub fn from_fair_esm(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let Settings::FairEsm { path, settings } = &checkpoint.settings else {
            return Err(Error::config(&checkpoint.path, "not a fair-esm file"));
        };
        if let Some(Scalar::Text(arch)) = settings.get("arch")
            && !arch.starts_with("esm2")
        {
            return Err(Error::config(
                path,
                format!("its architecture is {arch:?}; only ESM-2 can be exported"),
            ));
        }
        if let Some(Scalar::Text(activation)) = settings.get("activation_fn")
            && activation != "gelu"
        {
            return Err(Error::config(
                path,
                format!(
                    "its activation_fn is {activation:?}; of such models, those with \"gelu\" alone can be exported"
                ),
            ));
        }
        let size = |key: &str| match settings.get(key) {
            Some(Scalar::Int(size)) => usize::try_from(*size).ok(),
            _ => None,
        };
        let mut probe = Self::published(1, 1, 1);
        let part = checkpoint.is_part(&probe);
        let mut shapes = std::collections::BTreeMap::new();
        let mut frequencies = None;
        for (name, shape) in checkpoint.shapes() {
            if name.ends_with("layers.0.self_attn.rot_emb.inv_freq") {
                frequencies = shape.first().copied();
            }
            if name.ends_with("embed_positions.weight") {
                return Err(Error::config(
                    path,
                    "it has learned positions (embed_positions), which ESM-2 has not; ESM-1 models cannot be exported",
                ));
            }
            if let Some(name) = leftovers::canonical(&probe, name, part) {
                shapes.insert(name, shape);
            }
        }
        let table =
            |name: &str, axis: usize| shapes.get(name).and_then(|shape| shape.get(axis)).copied();
        let missing = |what: &str| {
            Error::config(
                path,
                format!(
                    "neither its settings nor its tensors tell the {what}; is it an ESM-2 checkpoint?"
                ),
            )
        };
        let embedding = "embeddings.word_embeddings.weight";
        probe.hidden = size("encoder_embed_dim")
            .or_else(|| table(embedding, 1))
            .ok_or_else(|| missing("width (encoder_embed_dim)"))?;
        probe.vocabulary = table(embedding, 0).unwrap_or(VOCABULARY.len());
        probe.layers = size("encoder_layers").unwrap_or_else(|| {
            shapes
                .keys()
                .filter_map(|name| in_layer(name))
                .map(|(last, _)| last.saturating_add(1))
                .max()
                .unwrap_or(0)
        });
        probe.intermediate = table("encoder.layer.0.intermediate.dense.weight", 0)
            .unwrap_or(probe.hidden.saturating_mul(4));
        probe.heads = size("encoder_attention_heads")
            .or_else(|| frequencies.and_then(|half| probe.hidden.checked_div(half.checked_mul(2)?)))
            .or_else(|| {
                known_models().into_iter().find_map(|known| {
                    let Architecture::Esm2(known) = known.architecture else {
                        return None;
                    };
                    (known.layers == probe.layers && known.hidden == probe.hidden)
                        .then_some(known.heads)
                })
            })
            .ok_or_else(|| missing("number of heads (encoder_attention_heads)"))?;
        if let Some(Scalar::Bool(dropout)) = settings.get("token_dropout") {
            probe.token_dropout = *dropout;
        }
        probe.norm_before = shapes.contains_key("embeddings.layer_norm.weight");
        probe
            .validate()
            .map_err(|message| Error::config(path, message))?;
        Ok(probe)
    }

    /// Width of a head.
    #[must_use]
    pub fn head(&self) -> usize {
        self.hidden / self.heads
    }
}

/// The rotary frequencies of a head, `base^(-2i/width)` for i < width/2, rounded where `PyTorch` rounds.
#[must_use]
pub fn rotary_frequencies(width: usize, base: f32) -> Vec<f32> {
    (0..width / 2)
        .map(|index| {
            let exponent = (2 * index) as f32 / width as f32;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "rounding to f32 is what is wanted"
            )]
            let power = f64::from(base).powf(f64::from(exponent)) as f32;
            1.0 / power
        })
        .collect()
}

impl Description for Esm2 {
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
            rotary_base: Some(self.rotary_base),
            alibi: false,
            gated: false,
            post_norm: false,
        }
    }

    fn max_residues(&self) -> Option<usize> {
        // Trained on crops of 1,024 tokens, two of them special.
        Some(1022)
    }

    fn tokenizer(&self) -> &'static str {
        "esm2"
    }

    fn own_tokenizer(&self) -> Option<Vec<u8>> {
        (self.vocabulary == VOCABULARY.len()).then(|| VOCABULARY.join("\n").into_bytes())
    }

    fn validate(&self) -> Result<(), String> {
        const MOST: usize = 1 << 20;
        let sizes = [
            ("layers", self.layers, 1 << 12),
            ("hidden", self.hidden, MOST),
            ("heads", self.heads, MOST),
            ("intermediate", self.intermediate, MOST),
            ("vocabulary", self.vocabulary, MOST),
        ];
        for (what, size, most) in sizes {
            if size == 0 || size > most {
                return Err(format!("{what} is {size}, which no model has"));
            }
        }
        if !self.hidden.is_multiple_of(2 * self.heads) {
            return Err(format!(
                "a width of {} can't be split among {} heads of even width",
                self.hidden, self.heads
            ));
        }
        if !(self.layer_norm_eps >= 0.0 && self.layer_norm_eps < 1.0 && self.rotary_base > 1.0) {
            return Err(format!(
                "layer_norm_eps {} or rotary base {} is out of range",
                self.layer_norm_eps, self.rotary_base
            ));
        }
        Ok(())
    }

    fn names(&self) -> Names {
        Names {
            // fair-esm's own files begin with the second; a plain state dict of its model has no prefix.
            prefixes: &["esm.", "encoder.sentence_encoder.", "sentence_encoder."],
            encoder: &[
                "embed_positions",
                "embed_tokens",
                "embeddings",
                "encoder",
                "layers",
            ],
            unused: &[
                "contact_head.**",
                // Until 2025, transformers made them for rotary ESMs too, which do not use them: most checkpoints have them.
                "embeddings.position_embeddings.weight",
                "encoder.contact_head.**",
                "encoder.lm_head.**",
                "lm_head.**",
                "pooler.**",
            ],
        }
    }

    fn spelling(&self, name: &str) -> String {
        let name = plain_name(name);
        from_fair_esm(name.strip_prefix("encoder.").unwrap_or(&name)).unwrap_or(name)
    }

    fn plan(&self) -> Vec<Planned> {
        let hidden = self.hidden;
        let mut plan = Plan::default();
        let table = Input::new(
            "embeddings.word_embeddings.weight".to_owned(),
            &[self.vocabulary, hidden],
        );
        if self.token_dropout {
            plan.add(
                "embedding".to_owned(),
                &[self.vocabulary, hidden],
                Recipe::Scaled {
                    input: table,
                    factor: TOKEN_DROPOUT_SCALE,
                    zero: vec![self.mask_id],
                },
            );
        } else {
            plan.copy("embedding".to_owned(), table);
        }
        if self.norm_before {
            plan.norm("embedding_norm", "embeddings.layer_norm", hidden);
        }
        for layer in 0..self.layers {
            let (ours, theirs) = (format!("layer.{layer}"), format!("encoder.layer.{layer}"));
            plan.norm(
                &format!("{ours}.attention_norm"),
                &format!("{theirs}.attention.LayerNorm"),
                hidden,
            );
            block::plan_attention(&mut plan, layer, hidden);
            plan.norm(
                &format!("{ours}.feed_forward_norm"),
                &format!("{theirs}.LayerNorm"),
                hidden,
            );
            block::plan_feed_forward(&mut plan, layer, hidden, self.intermediate);
        }
        plan.norm("final_norm", "encoder.emb_layer_norm_after", hidden);
        plan.0
    }

    fn folds(&self) -> Folds {
        let mut folds = Folds::default();
        for layer in 0..self.layers {
            let name = format!("layer.{layer}");
            folds.attention(&name, format!("{name}.attention_norm"), self.hidden, None);
            let norm = format!("{name}.feed_forward_norm");
            folds.feed_forward(&name, "up", norm, self.intermediate);
        }
        folds
    }

    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest) {
        let mut frame = Frame::new(builder, request.kind, self.hidden, self.layer_norm_eps);
        let rotation = match request.kind {
            GraphKind::Padded => Rotation::Padded(self.angles(&mut frame)),
            GraphKind::Plain => Rotation::Plain(ort_cuda::Rotation::new(
                frame.builder,
                self.heads,
                self.head(),
                &rotary_frequencies(self.head(), self.rotary_base),
            )),
            GraphKind::Fused if self.sizes().can_fuse_rotary() => {
                Rotation::Fused(self.fused_angles(&mut frame))
            }
            GraphKind::Packed | GraphKind::Fused => Rotation::Inside,
        };
        frame.builder.scope("embedding");
        let mut state = frame.embedding();
        if self.norm_before {
            state = frame.norm(&state, "embedding_norm");
        }
        if request.layer > 0 {
            state = if request.kind == GraphKind::Fused {
                self.fused_blocks(&mut frame, &state, &rotation, request.layer)
            } else {
                self.blocks(&mut frame, state, &rotation, request.layer)
            };
        }
        frame.outputs(&state, request);
    }
}

/// fair-esm's name, without its prefix, in Hugging Face's spelling.
fn from_fair_esm(name: &str) -> Option<String> {
    let renamed = |from: &str, to: &str| name.strip_prefix(from).map(|rest| format!("{to}{rest}"));
    if name == "embed_tokens.weight" {
        return Some("embeddings.word_embeddings.weight".to_owned());
    }
    if let Some(name) = renamed("emb_layer_norm_before.", "embeddings.layer_norm.")
        .or_else(|| renamed("emb_layer_norm_after.", "encoder.emb_layer_norm_after."))
    {
        // Hugging Face's own name for the latter begins with `encoder.`, too, and means the same.
        return Some(name);
    }
    let (layer, part) = name.strip_prefix("layers.")?.split_once('.')?;
    layer.parse::<usize>().ok()?;
    let (module, kind) = part.rsplit_once('.')?;
    let part = match module {
        "self_attn.q_proj" => "attention.self.query",
        "self_attn.k_proj" => "attention.self.key",
        "self_attn.v_proj" => "attention.self.value",
        "self_attn.out_proj" => "attention.output.dense",
        "self_attn_layer_norm" => "attention.LayerNorm",
        "fc1" => "intermediate.dense",
        "fc2" => "output.dense",
        "final_layer_norm" => "LayerNorm",
        other => other,
    };
    Some(format!("encoder.layer.{layer}.{part}.{kind}"))
}

/// How queries and keys are rotated in all layers.
enum Rotation {
    /// By an operator of its own in each layer.
    Padded(Angles),
    /// The same, in the order that is fastest on a GPU.
    Plain(ort_cuda::Rotation),
    /// Inside of the attention operator.
    Inside,
    /// Where queries and keys leave their product, by these angles.
    Fused(String),
}

/// Padded: what the rotary embedding of all layers uses.
struct Angles {
    /// Cosines and sines of the angles, [length, head/2].
    cos: String,
    sin: String,
    /// The first position, 0.
    zero: String,
}

impl Esm2 {
    /// Blocks 1 to `last`: from the embeddings to that layer's hidden states.
    fn blocks(
        &self,
        frame: &mut Frame<'_, '_>,
        embedding: String,
        rotation: &Rotation,
        last: usize,
    ) -> String {
        frame.builder.scope("layer.0");
        let mut norm = frame.norm(&embedding, "layer.0.attention_norm");
        let mut state = embedding;
        for layer in 0..last {
            let name = format!("layer.{layer}");
            frame.builder.scope(&name);
            let attended = match rotation {
                Rotation::Padded(angles) => self.padded_attention(frame, &norm, &name, angles),
                Rotation::Plain(rotation) => {
                    let parts = [0, 1, 2].map(|index| {
                        let projection = frame.projection(&name, index);
                        rotation.project(frame.builder, &norm, projection, index < 2)
                    });
                    frame.attention(&parts, self.heads, None)
                }
                Rotation::Inside | Rotation::Fused(_) => {
                    let qkv = frame.qkv(&norm, &name);
                    self.packed_attention(frame, &qkv)
                }
            };
            let attended = frame.project(&attended, &name);
            [norm, state] = frame.skip_norm(
                &attended,
                &state,
                &format!("{name}.attention_output.bias"),
                &format!("{name}.feed_forward_norm"),
                true,
            );
            let down = frame.feed_forward(&norm, &name);
            let bias = format!("{name}.down.bias");
            if layer + 1 < last {
                let next = format!("layer.{}.attention_norm", layer + 1);
                [norm, state] = frame.skip_norm(&down, &state, &bias, &next, true);
            } else if last == self.layers {
                [state, _] = frame.skip_norm(&down, &state, &bias, "final_norm", false);
            } else {
                let bias = frame.builder.weight(&bias);
                let sum = frame.builder.op("Add", &[&down, &state], &[]);
                state = frame.builder.op("Add", &[&sum, &bias], &[]);
            }
        }
        state
    }

    /// The same where dense layers take norms and residuals in.
    fn fused_blocks(
        &self,
        frame: &mut Frame<'_, '_>,
        embedding: &str,
        rotation: &Rotation,
        last: usize,
    ) -> String {
        let mut stream = fused::Stream::begin(frame, embedding);
        for layer in 0..last {
            let name = format!("layer.{layer}");
            frame.builder.scope(&name);
            let attended = if let Rotation::Fused(angles) = rotation {
                let bias = frame.builder.weight(&format!("{name}.qk.bias"));
                let weight = format!("{name}.qkv.weight");
                let turned =
                    stream.dense(frame, "seqembed:NormDenseRotary", &weight, &[&bias, angles]);
                let heads = ("num_heads", Attribute::Int(long(self.heads)));
                let inputs = [turned.as_str(), "sequence_starts"];
                frame
                    .builder
                    .op("seqembed:TurnedAttention", &inputs, &[heads])
            } else {
                let qkv = stream.qkv(frame, &name);
                self.packed_attention(frame, &qkv)
            };
            stream.add_attention(frame, &attended, &name);
            stream.add_feed_forward(frame, &name, false);
        }
        if last == self.layers {
            frame.norm(&stream.state, "final_norm")
        } else {
            stream.state
        }
    }

    fn packed_attention(&self, frame: &mut Frame<'_, '_>, [qkv, bias]: &[String; 2]) -> String {
        let attributes = [
            ("num_heads", Attribute::Int(long(self.heads))),
            ("rotary_base", Attribute::Float(self.rotary_base)),
        ];
        // On GPUs, which compute in 16 bits, queries and keys are turned on their way through memory.
        let room = frame.builder.element() != ElementType::Float;
        let [attended, _] = frame.builder.ops(
            "seqembed:RotaryAttention",
            &[qkv, bias, "sequence_starts"],
            &attributes,
            [true, room],
        );
        attended
    }

    fn fused_angles(&self, frame: &mut Frame<'_, '_>) -> String {
        frame.builder.scope("positions");
        let attributes = [
            ("head", Attribute::Int(long(self.head()))),
            ("rotary_base", Attribute::Float(self.rotary_base)),
        ];
        let inputs = ["sequence_starts", "input_ids"];
        frame
            .builder
            .op("seqembed:RotaryAngles", &inputs, &attributes)
    }

    fn padded_attention(
        &self,
        frame: &mut Frame<'_, '_>,
        norm: &str,
        name: &str,
        angles: &Angles,
    ) -> String {
        let [query, key, value] = frame.split_qkv(norm, name);
        let [query, key] = [query, key].map(|rows| {
            frame.builder.op(
                "com.microsoft:RotaryEmbedding",
                &[&rows, &angles.zero, &angles.cos, &angles.sin],
                &[("interleaved", Attribute::Int(0))],
            )
        });
        frame.attention(&[query, key, value], self.heads, None)
    }

    fn angles(&self, frame: &mut Frame<'_, '_>) -> Angles {
        let width = self.head();
        frame.builder.scope("positions");
        // Angles are computed in the graph, in f32: no length is baked in.
        let positions = frame.positions();
        let builder = &mut *frame.builder;
        let positions = builder.op(
            "Cast",
            &[&positions],
            &[("to", Attribute::Int(ElementType::Float as i64))],
        );
        let last = builder.integers("one", &[1], &[1]);
        let column = builder.op("Unsqueeze", &[&positions, &last], &[]);
        let frequencies = rotary_frequencies(width, self.rotary_base);
        let frequencies = builder.floats("rotary_frequencies", &[1, width / 2], &frequencies);
        let angles = builder.op("Mul", &[&column, &frequencies], &[]);
        let cos = builder.op("Cos", &[&angles], &[]);
        let sin = builder.op("Sin", &[&angles], &[]);
        let zero = builder.integers("zero", &[1], &[0]);
        Angles { cos, sin, zero }
    }
}
