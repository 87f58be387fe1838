//! ESM-2 (Lin et al., 2023): pre-norm blocks, rotary positions, erf GELU, a last layer norm.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::architecture::{Architecture, Description, GraphKind, GraphRequest, Output};
use crate::checkpoint::{Checkpoint, Scalar, Settings};
use crate::error::Error;
use crate::graph::{Attribute, Builder, fixed, long, named};
use crate::known::known_models;
use crate::proto::ElementType;
use crate::weights::{Input, Planned, Recipe};

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
    /// [`Error::Config`] when a size is missing or impossible, or positions are not rotary.
    pub fn from_config(path: &Path, config: &Value) -> Result<Self, Error> {
        let size = |key: &str| {
            config
                .get(key)
                .and_then(Value::as_u64)
                .and_then(|size| usize::try_from(size).ok())
                .ok_or_else(|| Error::config(path, format!("{key} is missing or no whole number")))
        };
        let flag = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
        match config
            .get("position_embedding_type")
            .and_then(Value::as_str)
        {
            Some("rotary") => {}
            other => {
                return Err(Error::config(
                    path,
                    format!(
                        "position_embedding_type is {}; ESM-2 has rotary positions, and ESM-1 models cannot be exported",
                        other.map_or_else(|| "missing".to_owned(), |other| format!("{other:?}"))
                    ),
                ));
            }
        }
        if flag("is_folding_model") {
            return Err(Error::config(
                path,
                "is_folding_model is true: ESMFold cannot be exported",
            ));
        }
        let float = |value: Option<&Value>, otherwise: f64| {
            value.and_then(Value::as_f64).unwrap_or(otherwise)
        };
        let rotary_base = config
            .get("rope_theta")
            .or_else(|| config.get("rope_parameters")?.get("rope_theta"));
        #[expect(clippy::cast_possible_truncation, reason = "the model computes in f32")]
        let model = Self {
            layers: size("num_hidden_layers")?,
            hidden: size("hidden_size")?,
            heads: size("num_attention_heads")?,
            intermediate: size("intermediate_size")?,
            vocabulary: size("vocab_size")?,
            layer_norm_eps: float(config.get("layer_norm_eps"), 1e-12) as f32,
            rotary_base: float(rotary_base, 10_000.0) as f32,
            token_dropout: flag("token_dropout"),
            norm_before: flag("emb_layer_norm_before"),
            mask_id: size("mask_token_id").unwrap_or(32),
        };
        model
            .validate()
            .map_err(|message| Error::config(path, message))?;
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
        let size = |key: &str| match settings.get(key) {
            Some(Scalar::Int(size)) => usize::try_from(*size).ok(),
            _ => None,
        };
        let mut probe = Self::published(1, 1, 1);
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
            if let Some(name) = probe.canonical(name) {
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
                .filter_map(|name| layer_of(name))
                .max()
                .map_or(0, |last| last + 1)
        });
        probe.intermediate =
            table("encoder.layer.0.intermediate.dense.weight", 0).unwrap_or(4 * probe.hidden);
        probe.heads = size("encoder_attention_heads")
            .or_else(|| {
                frequencies
                    .filter(|half| *half > 0)
                    .map(|half| probe.hidden / (2 * half))
            })
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

/// The block that a tensor belongs to.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("encoder.layer.")?
        .split('.')
        .next()?
        .parse()
        .ok()
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

    fn canonical(&self, name: &str) -> Option<String> {
        let name = if let Some(stem) = name.strip_suffix(".gamma") {
            format!("{stem}.weight")
        } else if let Some(stem) = name.strip_suffix(".beta") {
            format!("{stem}.bias")
        } else {
            name.to_owned()
        };
        // fair-esm's own files, then a plain state dict of its model.
        let fair = [
            "encoder.sentence_encoder.",
            "sentence_encoder.",
            "encoder.",
            "",
        ]
        .iter()
        .filter_map(|prefix| name.strip_prefix(prefix))
        .find_map(from_fair_esm);
        if fair.is_some() {
            return fair;
        }
        let name = name.strip_prefix("esm.").unwrap_or(&name).to_owned();
        let used = name == "embeddings.word_embeddings.weight"
            || name.starts_with("embeddings.layer_norm.")
            || name.starts_with("encoder.emb_layer_norm_after.")
            || (layer_of(&name).is_some()
                && matches!(name.rsplit_once('.'), Some((_, "weight" | "bias"))));
        used.then_some(name)
    }

    fn check_names(&self, names: &mut dyn Iterator<Item = &str>) -> Result<(), String> {
        match names.filter_map(layer_of).max() {
            Some(last) if last >= self.layers => Err(format!(
                "the configuration says {} layers, the weights have {}",
                self.layers,
                last + 1
            )),
            _ => Ok(()),
        }
    }

    #[expect(
        clippy::too_many_lines,
        reason = "a list of tensors in their order reads best as one"
    )]
    fn plan(&self) -> Vec<Planned> {
        let (hidden, intermediate) = (self.hidden, self.intermediate);
        let input = |name: String, shape: &[usize]| Input {
            name,
            shape: shape.to_vec(),
        };
        let mut plan = Vec::new();
        let mut add = |name: String, shape: &[usize], recipe: Recipe| {
            plan.push(Planned {
                name,
                shape: shape.to_vec(),
                recipe,
            });
        };
        let table = input(
            "embeddings.word_embeddings.weight".to_owned(),
            &[self.vocabulary, hidden],
        );
        add(
            "embedding".to_owned(),
            &[self.vocabulary, hidden],
            if self.token_dropout {
                Recipe::Scaled {
                    input: table,
                    factor: TOKEN_DROPOUT_SCALE,
                    zero: vec![self.mask_id],
                }
            } else {
                Recipe::Rows(vec![table])
            },
        );
        let norm = |ours: &str, theirs: &str, add: &mut dyn FnMut(String, &[usize], Recipe)| {
            for part in ["weight", "bias"] {
                add(
                    format!("{ours}.{part}"),
                    &[hidden],
                    Recipe::Rows(vec![input(format!("{theirs}.{part}"), &[hidden])]),
                );
            }
        };
        if self.norm_before {
            norm("embedding_norm", "embeddings.layer_norm", &mut add);
        }
        for layer in 0..self.layers {
            let (ours, theirs) = (format!("layer.{layer}"), format!("encoder.layer.{layer}"));
            let dense = |part: &str, kind: &str, shape: &[usize]| {
                input(format!("{theirs}.{part}.{kind}"), shape)
            };
            norm(
                &format!("{ours}.attention_norm"),
                &format!("{theirs}.attention.LayerNorm"),
                &mut add,
            );
            let three = ["query", "key", "value"].map(|part| format!("attention.self.{part}"));
            add(
                format!("{ours}.qkv.weight"),
                &[3 * hidden, hidden],
                Recipe::Rows(
                    three
                        .iter()
                        .map(|part| dense(part, "weight", &[hidden, hidden]))
                        .collect(),
                ),
            );
            add(
                format!("{ours}.qk.bias"),
                &[2 * hidden],
                Recipe::Rows(
                    three[..2]
                        .iter()
                        .map(|part| dense(part, "bias", &[hidden]))
                        .collect(),
                ),
            );
            let out = dense("attention.output.dense", "weight", &[hidden, hidden]);
            add(
                format!("{ours}.attention_output.weight"),
                &[hidden, hidden],
                Recipe::Rows(vec![out.clone()]),
            );
            // A row of attention weights sums to one, so the value's bias passes through attention as it is.
            add(
                format!("{ours}.attention_output.bias"),
                &[hidden],
                Recipe::Folded {
                    bias: dense("attention.output.dense", "bias", &[hidden]),
                    weight: out,
                    inner: dense("attention.self.value", "bias", &[hidden]),
                },
            );
            norm(
                &format!("{ours}.feed_forward_norm"),
                &format!("{theirs}.LayerNorm"),
                &mut add,
            );
            for (name, part, to, from) in [
                ("up", "intermediate.dense", intermediate, hidden),
                ("down", "output.dense", hidden, intermediate),
            ] {
                add(
                    format!("{ours}.{name}.weight"),
                    &[to, from],
                    Recipe::Rows(vec![dense(part, "weight", &[to, from])]),
                );
                add(
                    format!("{ours}.{name}.bias"),
                    &[to],
                    Recipe::Rows(vec![dense(part, "bias", &[to])]),
                );
            }
        }
        norm("final_norm", "encoder.emb_layer_norm_after", &mut add);
        plan
    }

    fn build(&self, builder: &mut Builder<'_>, request: &GraphRequest) {
        let graph = Graph {
            model: self,
            kind: request.kind,
            builder,
        };
        graph.build(request);
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
    let (part, kind) = part.rsplit_once('.')?;
    let part = match part {
        "self_attn.q_proj" => "attention.self.query",
        "self_attn.k_proj" => "attention.self.key",
        "self_attn.v_proj" => "attention.self.value",
        "self_attn.out_proj" => "attention.output.dense",
        "self_attn_layer_norm" => "attention.LayerNorm",
        "fc1" => "intermediate.dense",
        "fc2" => "output.dense",
        "final_layer_norm" => "LayerNorm",
        _ => return None,
    };
    Some(format!("encoder.layer.{layer}.{part}.{kind}"))
}

/// The values that attention and pooling of all layers share, by kind of graph.
struct Shared {
    /// Padded: the shape [batch, length, hidden].
    rows: String,
    /// Padded: cosines and sines of the rotary angles, [length, head/2].
    cos: String,
    sin: String,
    /// Padded: the first position, 0.
    zero: String,
}

struct Graph<'builder, 'model, 'table> {
    model: &'model Esm2,
    kind: GraphKind,
    builder: &'builder mut Builder<'table>,
}

impl Graph<'_, '_, '_> {
    fn build(mut self, request: &GraphRequest) {
        let hidden = self.model.hidden;
        match self.kind {
            GraphKind::Padded => {
                let rows = [named("batch"), named("length")];
                self.builder.input("input_ids", ElementType::Int64, &rows);
                self.builder
                    .input("lengths", ElementType::Int32, &[named("batch")]);
                self.builder.input(
                    "pool_range",
                    ElementType::Int64,
                    &[named("batch"), fixed(2)],
                );
            }
            GraphKind::Packed => {
                self.builder
                    .input("input_ids", ElementType::Int64, &[named("tokens")]);
                self.builder.input(
                    "sequence_starts",
                    ElementType::Int32,
                    &[named("sequences_and_one")],
                );
                self.builder.input(
                    "pool_range",
                    ElementType::Int32,
                    &[named("ranges"), fixed(2)],
                );
            }
        }
        self.builder.scope("embedding");
        let shared = (self.kind == GraphKind::Padded).then(|| self.shared());
        let mut state = self.embedding();
        if request.layer > 0 {
            state = self.blocks(state, shared.as_ref(), request.layer);
        }
        self.builder.scope("pool");
        match &shared {
            Some(shared) => {
                let tokens = self.builder.op("Reshape", &[&state, &shared.rows], &[]);
                self.padded_outputs(&tokens, request);
            }
            None => {
                for output in &request.outputs {
                    let (name, from) = match output {
                        Output::Tokens => {
                            self.builder.output(
                                "tokens",
                                &state,
                                &[named("tokens"), fixed(hidden)],
                            );
                            continue;
                        }
                        Output::Mean => (
                            "mean",
                            self.builder
                                .op("seqembed:PoolMean", &[&state, "pool_range"], &[]),
                        ),
                        Output::Max => (
                            "max",
                            self.builder
                                .op("seqembed:PoolMax", &[&state, "pool_range"], &[]),
                        ),
                    };
                    self.builder
                        .output(name, &from, &[named("ranges"), fixed(hidden)]);
                }
            }
        }
    }

    /// The embeddings, [tokens, hidden].
    fn embedding(&mut self) -> String {
        let table = self.builder.weight("embedding");
        let ids = if self.kind == GraphKind::Padded {
            let flat = self.builder.integers("flat", &[1], &[-1]);
            self.builder.op("Reshape", &["input_ids", &flat], &[])
        } else {
            "input_ids".to_owned()
        };
        let state = self.builder.op("Gather", &[&table, &ids], &[]);
        if self.model.norm_before {
            self.norm(&state, "embedding_norm")
        } else {
            state
        }
    }

    fn epsilon(&self) -> (&'static str, Attribute) {
        ("epsilon", Attribute::Float(self.model.layer_norm_eps))
    }

    fn norm(&mut self, state: &str, name: &str) -> String {
        let gamma = self.builder.weight(&format!("{name}.weight"));
        let beta = self.builder.weight(&format!("{name}.bias"));
        let attributes = [("axis", Attribute::Int(-1)), self.epsilon()];
        self.builder
            .op("LayerNormalization", &[state, &gamma, &beta], &attributes)
    }

    /// `sum = state + skip + bias` and its layer norm, as (norm, sum).
    fn skip_norm(
        &mut self,
        state: &str,
        skip: &str,
        bias: &str,
        name: &str,
        want_sum: bool,
    ) -> [String; 2] {
        let gamma = self.builder.weight(&format!("{name}.weight"));
        let beta = self.builder.weight(&format!("{name}.bias"));
        let bias = self.builder.weight(bias);
        let inputs = [state, skip, &gamma, &beta, &bias];
        let attributes = [self.epsilon()];
        match self.kind {
            GraphKind::Padded => {
                let [norm, _, _, sum] = self.builder.ops(
                    "com.microsoft:SkipLayerNormalization",
                    &inputs,
                    &attributes,
                    [true, false, false, want_sum],
                );
                [norm, sum]
            }
            GraphKind::Packed => self.builder.ops(
                "seqembed:SkipLayerNorm",
                &inputs,
                &attributes,
                [true, want_sum],
            ),
        }
    }

    fn dense(&mut self, state: &str, weight: &str, bias: Option<&str>) -> String {
        let mut inputs = vec![state, weight];
        inputs.extend(bias);
        self.builder
            .op("Gemm", &inputs, &[("transB", Attribute::Int(1))])
    }

    /// Blocks 1 to `last`: from the embeddings to that layer's hidden states.
    fn blocks(&mut self, embedding: String, shared: Option<&Shared>, last: usize) -> String {
        self.builder.scope("layer.0");
        let mut norm = self.norm(&embedding, "layer.0.attention_norm");
        let mut state = embedding;
        for layer in 0..last {
            let name = format!("layer.{layer}");
            self.builder.scope(&name);
            let attended = match shared {
                Some(shared) => self.padded_attention(&norm, &name, shared),
                None => self.packed_attention(&norm, &name),
            };
            let weight = self
                .builder
                .weight(&format!("{name}.attention_output.weight"));
            let attended = self.dense(&attended, &weight, None);
            [norm, state] = self.skip_norm(
                &attended,
                &state,
                &format!("{name}.attention_output.bias"),
                &format!("{name}.feed_forward_norm"),
                true,
            );
            let weight = self.builder.weight(&format!("{name}.up.weight"));
            let up = self.dense(&norm, &weight, None);
            let bias = self.builder.weight(&format!("{name}.up.bias"));
            let gelu = match self.kind {
                GraphKind::Padded => "com.microsoft:BiasGelu",
                GraphKind::Packed => "seqembed:BiasGelu",
            };
            let up = self.builder.op(gelu, &[&up, &bias], &[]);
            let weight = self.builder.weight(&format!("{name}.down.weight"));
            let down = self.dense(&up, &weight, None);
            let bias = format!("{name}.down.bias");
            if layer + 1 < last {
                let next = format!("layer.{}.attention_norm", layer + 1);
                [norm, state] = self.skip_norm(&down, &state, &bias, &next, true);
            } else if last == self.model.layers {
                [state, _] = self.skip_norm(&down, &state, &bias, "final_norm", false);
            } else {
                let bias = self.builder.weight(&bias);
                let sum = self.builder.op("Add", &[&down, &state], &[]);
                state = self.builder.op("Add", &[&sum, &bias], &[]);
            }
        }
        state
    }

    fn packed_attention(&mut self, norm: &str, name: &str) -> String {
        let weight = self.builder.weight(&format!("{name}.qkv.weight"));
        let bias = self.builder.weight(&format!("{name}.qk.bias"));
        let qkv = self.dense(norm, &weight, None);
        let attributes = [
            ("num_heads", Attribute::Int(long(self.model.heads))),
            ("rotary_base", Attribute::Float(self.model.rotary_base)),
        ];
        self.builder.op(
            "seqembed:RotaryAttention",
            &[&qkv, &bias, "sequence_starts"],
            &attributes,
        )
    }

    fn padded_attention(&mut self, norm: &str, name: &str, shared: &Shared) -> String {
        let hidden = self.model.hidden;
        // Three views of the one weight: no splitting of what comes out.
        let part = |graph: &mut Self, index: usize, what: &str| {
            let weight = graph.builder.weight_rows(
                &format!("{name}.qkv.weight"),
                &format!("{name}.{what}.weight"),
                index * hidden,
                hidden,
            );
            let bias = (index < 2).then(|| {
                graph.builder.weight_rows(
                    &format!("{name}.qk.bias"),
                    &format!("{name}.{what}.bias"),
                    index * hidden,
                    hidden,
                )
            });
            let flat = graph.dense(norm, &weight, bias.as_deref());
            let rows = graph.builder.op("Reshape", &[&flat, &shared.rows], &[]);
            if index == 2 {
                return rows;
            }
            graph.builder.op(
                "com.microsoft:RotaryEmbedding",
                &[&rows, &shared.zero, &shared.cos, &shared.sin],
                &[("interleaved", Attribute::Int(0))],
            )
        };
        let query = part(self, 0, "query");
        let key = part(self, 1, "key");
        let value = part(self, 2, "value");
        let rows = self.builder.op(
            "com.microsoft:MultiHeadAttention",
            &[&query, &key, &value, "", "lengths"],
            &[("num_heads", Attribute::Int(long(self.model.heads)))],
        );
        let flat = self
            .builder
            .integers("flat_rows", &[2], &[-1, long(hidden)]);
        self.builder.op("Reshape", &[&rows, &flat], &[])
    }

    /// What all layers of a padded graph use.
    fn shared(&mut self) -> Shared {
        let width = self.model.head();
        let builder = &mut *self.builder;
        builder.scope("positions");
        let shape = builder.op("Shape", &["input_ids"], &[]);
        let hidden = builder.integers("hidden", &[1], &[long(self.model.hidden)]);
        let rows = builder.op("Concat", &[&shape, &hidden], &[("axis", Attribute::Int(0))]);
        // Angles are computed in the graph, in f32: no length is baked in.
        let positions = positions(builder);
        let positions = builder.op(
            "Cast",
            &[&positions],
            &[("to", Attribute::Int(ElementType::Float as i64))],
        );
        let last = builder.integers("one", &[1], &[1]);
        let column = builder.op("Unsqueeze", &[&positions, &last], &[]);
        let frequencies = rotary_frequencies(width, self.model.rotary_base);
        let frequencies = builder.floats("rotary_frequencies", &[1, width / 2], &frequencies);
        let angles = builder.op("Mul", &[&column, &frequencies], &[]);
        let cos = builder.op("Cos", &[&angles], &[]);
        let sin = builder.op("Sin", &[&angles], &[]);
        let zero = builder.integers("zero", &[1], &[0]);
        Shared {
            rows,
            cos,
            sin,
            zero,
        }
    }

    fn padded_outputs(&mut self, tokens: &str, request: &GraphRequest) {
        let hidden = self.model.hidden;
        let builder = &mut *self.builder;
        let pooled = request
            .outputs
            .iter()
            .any(|output| *output != Output::Tokens);
        let mask = pooled.then(|| {
            let positions = positions(builder);
            let two = builder.integers("two_columns", &[2], &[1, 1]);
            let [start, end] = builder.ops(
                "Split",
                &["pool_range", &two],
                &[("axis", Attribute::Int(1))],
                [true, true],
            );
            let after = builder.op("GreaterOrEqual", &[&positions, &start], &[]);
            let before = builder.op("Less", &[&positions, &end], &[]);
            builder.op("And", &[&after, &before], &[])
        });
        let one = builder.integers("one", &[1], &[1]);
        let rows = [named("batch"), fixed(hidden)];
        for output in &request.outputs {
            match (output, &mask) {
                (Output::Mean, Some(mask)) => {
                    let weights = builder.op(
                        "Cast",
                        &[mask],
                        &[("to", Attribute::Int(ElementType::Float as i64))],
                    );
                    let count = builder.op(
                        "ReduceSum",
                        &[&weights, &one],
                        &[("keepdims", Attribute::Int(1))],
                    );
                    let weights = builder.op("Unsqueeze", &[&weights, &one], &[]);
                    let sum = builder.op("MatMul", &[&weights, tokens], &[]);
                    let sum = builder.op("Squeeze", &[&sum, &one], &[]);
                    let mean = builder.op("Div", &[&sum, &count], &[]);
                    builder.output("mean", &mean, &rows);
                }
                (Output::Max, Some(mask)) => {
                    let last = builder.integers("two", &[1], &[2]);
                    let mask = builder.op("Unsqueeze", &[mask, &last], &[]);
                    let lowest = builder.floats("lowest", &[], &[f32::NEG_INFINITY]);
                    let inside = builder.op("Where", &[&mask, tokens, &lowest], &[]);
                    let max = builder.op(
                        "ReduceMax",
                        &[&inside, &one],
                        &[("keepdims", Attribute::Int(0))],
                    );
                    builder.output("max", &max, &rows);
                }
                _ => builder.output(
                    "tokens",
                    tokens,
                    &[named("batch"), named("length"), fixed(hidden)],
                ),
            }
        }
    }
}

/// 0, 1, ... up to a row's length, int64 [length].
fn positions(builder: &mut Builder<'_>) -> String {
    let length = builder.op(
        "Shape",
        &["input_ids"],
        &[("start", Attribute::Int(1)), ("end", Attribute::Int(2))],
    );
    let axis = builder.integers("zero", &[1], &[0]);
    let length = builder.op("Squeeze", &[&length, &axis], &[]);
    let first = builder.integers("first", &[], &[0]);
    let step = builder.integers("step", &[], &[1]);
    builder.op("Range", &[&first, &length, &step], &[])
}
