//! What the ESM families share: the vocabulary, fair-esm's `.pt` files, names of tensors, and what
//! token dropout leaves of the embeddings.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::names::{self, Names, in_layer, plain_name};
use crate::checkpoint::{Checkpoint, Scalar, Settings};
use crate::error::Error;
use crate::families::known_values::KnownValues;
use crate::families::pre_norm::{WORD_EMBEDDINGS, plan_word_embeddings};
use crate::graph::builder::{fixed, named};
use crate::graph::layers::Frame;
use crate::graph::proto::ElementType;
use crate::weights::table::{Input, Plan, TensorSource};

/// One token a residue: the vocabulary of ESM-1b, ESM-1v and ESM-2, by id.
pub const VOCABULARY: [&str; 33] = [
    "<cls>", "<pad>", "<eos>", "<unk>", "L", "A", "G", "V", "S", "E", "R", "T", "I", "D", "P", "K",
    "Q", "N", "F", "Y", "M", "H", "W", "C", "X", "B", "U", "Z", "O", ".", "-", "<null_1>",
    "<mask>",
];

/// What token dropout leaves of an embedding on average: 15 % of the tokens are chosen in training,
/// 80 % of them masked.
const TOKEN_DROPOUT_SCALE: f32 = 0.88;

/// The tokenizer file of models whose vocabulary has the size of ESM's.
#[must_use]
pub fn vocabulary_file(rows: usize) -> Option<Vec<u8>> {
    (rows == VOCABULARY.len()).then(|| VOCABULARY.join("\n").into_bytes())
}

/// Checks ids that the configuration gives against the vocabulary's text: positions are counted
/// without `<pad>`, and under token dropout `<mask>` counts for nothing.
///
/// # Errors
/// Which setting is another token's id.
pub fn check_ids(text: &str, pad: Option<usize>, mask: Option<usize>) -> Result<(), String> {
    for (setting, id, token) in [
        ("pad_token_id", pad, "<pad>"),
        ("mask_token_id", mask, "<mask>"),
    ] {
        let found = text.lines().position(|line| line.trim() == token);
        if let (Some(id), Some(found)) = (id, found)
            && id != found
        {
            return Err(format!(
                "{setting} is {id}, but {token} has id {found} in the vocabulary"
            ));
        }
    }
    Ok(())
}

/// The first values of `<cls>` and of the first residues of GLDALQITV, which transformers' tests
/// compare for several models (`expected_slice`).
#[must_use]
pub fn expected_slice(source: &'static str, rows: &'static [[f32; 3]; 3]) -> Vec<KnownValues> {
    let row = |(token, values): (usize, &'static [f32; 3])| KnownValues {
        source: Cow::Borrowed(source),
        sequence: Cow::Borrowed("GLDALQITV"),
        pooling: (token == 0).then_some(Cow::Borrowed("cls")),
        residue: (token > 0).then_some(token),
        values: Cow::Borrowed(values),
        ..KnownValues::MEAN
    };
    rows.iter().enumerate().map(row).collect()
}

/// How both layouts of ESM checkpoints name their tensors. `unused` are those that no vector
/// depends on.
#[must_use]
pub fn names(unused: &'static [&'static str]) -> Names {
    Names {
        // fair-esm's own files use the second prefix; a plain state dict of its model has no
        // prefix.
        prefixes: &["esm.", "encoder.sentence_encoder.", "sentence_encoder."],
        encoder: &[
            "embed_positions",
            "embed_tokens",
            "embeddings",
            "encoder",
            "layers",
        ],
        unused,
        spelling: |name| {
            let name = plain_name(name);
            from_fair_esm(name.strip_prefix("encoder.").unwrap_or(&name)).unwrap_or(name)
        },
    }
}

/// fair-esm's name, without its prefix, in Hugging Face's spelling.
fn from_fair_esm(name: &str) -> Option<String> {
    let renamed = |from: &str, to: &str| name.strip_prefix(from).map(|rest| format!("{to}{rest}"));
    if name == "embed_tokens.weight" {
        return Some(WORD_EMBEDDINGS.to_owned());
    }
    if name == "embed_positions.weight" {
        return Some("embeddings.position_embeddings.weight".to_owned());
    }
    if let Some(name) = renamed("emb_layer_norm_before.", "embeddings.layer_norm.")
        .or_else(|| renamed("emb_layer_norm_after.", "encoder.emb_layer_norm_after."))
    {
        // Hugging Face's own name for the latter also starts with `encoder.`, and means the same.
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

/// Plans the table of word embeddings: under token dropout, every row is scaled, and that of
/// `<mask>` is zero.
pub fn plan_words(plan: &mut Plan, shape: [usize; 2], token_dropout: bool, mask_id: usize) {
    if token_dropout {
        let source = TensorSource::Scaled {
            input: Input::new(WORD_EMBEDDINGS.to_owned(), &shape),
            factor: TOKEN_DROPOUT_SCALE,
            zero: vec![mask_id],
        };
        plan.add("embedding".to_owned(), &shape, source);
    } else {
        plan_word_embeddings(plan, shape);
    }
}

/// Under token dropout, embeddings grow as more of a sequence is masked. The table has them for
/// sequences without masks; graphs with a language-model head multiply them by the input
/// `embedding_factor`, [tokens, 1].
pub fn token_dropout(frame: &mut Frame<'_, '_>, embedding: &str) -> String {
    let builder = &mut *frame.builder;
    if !builder.has_head() {
        return embedding.to_owned();
    }
    let shape = [named("tokens"), fixed(1)];
    let factor = builder.input("embedding_factor", ElementType::Float, &shape);
    let element = builder.element();
    let wide = builder.as_type(embedding, element, ElementType::Float);
    let scaled = builder.op("Mul", &[&wide, &factor], &[]);
    builder.as_type(&scaled, ElementType::Float, element)
}

/// Whether a checkpoint has tensors with Hugging Face's names for ESM: attention, and the norm
/// after the last block.
#[must_use]
pub fn has_its_tensors(checkpoint: &Checkpoint) -> bool {
    let has = |part: &str| checkpoint.shapes().any(|(name, _)| name.contains(part));
    has("encoder.emb_layer_norm_after.") && has(".attention.self.query.")
}

/// The architecture that a fair-esm `.pt` names (`arch`); `None` if it names none, or the
/// checkpoint is not such a file.
#[must_use]
pub fn architecture_of(checkpoint: &Checkpoint) -> Option<&str> {
    match &checkpoint.settings {
        Settings::FairEsm { settings, .. } => match settings.get("arch") {
            Some(Scalar::Text(arch)) => Some(arch),
            _ => None,
        },
        Settings::HuggingFace { .. } => None,
    }
}

/// A fair-esm `.pt`: its settings, and the shapes of its tensors where it has none.
pub struct FairEsm<'a> {
    /// Path of the file.
    pub path: &'a Path,
    settings: &'a BTreeMap<String, Scalar>,
    shapes: BTreeMap<String, &'a [usize]>,
    /// How many rotary frequencies the first layer has.
    frequencies: Option<usize>,
    /// Rows of the table of learned positions, if there is one.
    pub position_rows: Option<usize>,
}

impl<'a> FairEsm<'a> {
    /// Reads settings and shapes.
    ///
    /// # Errors
    /// [`Error::Config`] when the checkpoint is no `.pt`, or has another activation than erf GELU.
    pub fn of(checkpoint: &'a Checkpoint, names: &Names) -> Result<Self, Error> {
        let Settings::FairEsm { path, settings } = &checkpoint.settings else {
            return Err(Error::config(&checkpoint.path, "not a fair-esm file"));
        };
        if let Some(Scalar::Text(activation)) = settings.get("activation_fn")
            && activation != "gelu"
        {
            return Err(Error::config(
                path,
                format!(
                    "its activation_fn is {activation:?}; only models with \"gelu\" can be \
                     exported"
                ),
            ));
        }
        let part = checkpoint.is_part(names);
        let mut shapes = BTreeMap::new();
        let (mut frequencies, mut position_rows) = (None, None);
        for (name, shape) in checkpoint.shapes() {
            if name.ends_with("layers.0.self_attn.rot_emb.inv_freq") {
                frequencies = shape.first().copied();
            }
            if name.ends_with("embed_positions.weight") {
                position_rows = shape.first().copied();
            }
            if let Some(name) = names::canonical(names, name, part) {
                shapes.insert(name, shape);
            }
        }
        Ok(Self {
            path,
            settings,
            shapes,
            frequencies,
            position_rows,
        })
    }

    fn size(&self, key: &str) -> Option<usize> {
        match self.settings.get(key) {
            Some(Scalar::Int(size)) => usize::try_from(*size).ok(),
            _ => None,
        }
    }

    fn axis(&self, name: &str, axis: usize) -> Option<usize> {
        self.shapes.get(name)?.get(axis).copied()
    }

    /// A boolean setting, if it is present.
    #[must_use]
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.settings.get(key) {
            Some(Scalar::Bool(flag)) => Some(*flag),
            _ => None,
        }
    }

    /// Whether the file has a tensor of this name, in Hugging Face's spelling.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }

    /// Rows of the embedding table.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.axis(WORD_EMBEDDINGS, 0).unwrap_or(VOCABULARY.len())
    }

    /// Width of a token's vector.
    ///
    /// # Errors
    /// If neither the settings nor the tensors give it.
    pub fn hidden(&self) -> Result<usize, Error> {
        self.size("encoder_embed_dim")
            .or_else(|| self.axis(WORD_EMBEDDINGS, 1))
            .ok_or_else(|| self.missing("width (encoder_embed_dim)"))
    }

    /// Number of transformer blocks.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.size("encoder_layers").unwrap_or_else(|| {
            self.shapes
                .keys()
                .filter_map(|name| in_layer(name))
                .map(|(last, _)| last.saturating_add(1))
                .max()
                .unwrap_or(0)
        })
    }

    /// Width inside the feed-forward layer of a model whose vectors are `hidden` wide.
    #[must_use]
    pub fn intermediate(&self, hidden: usize) -> usize {
        self.axis("encoder.layer.0.intermediate.dense.weight", 0)
            .unwrap_or(hidden.saturating_mul(4))
    }

    /// Attention heads; `known` gives those of a published model of these sizes.
    ///
    /// # Errors
    /// When it is told nowhere.
    pub fn heads(&self, hidden: usize, known: Option<usize>) -> Result<usize, Error> {
        let of_frequencies = |half: usize| hidden.checked_div(half.checked_mul(2)?);
        self.size("encoder_attention_heads")
            .or_else(|| self.frequencies.and_then(of_frequencies))
            .or(known)
            .ok_or_else(|| self.missing("number of heads (encoder_attention_heads)"))
    }

    fn missing(&self, what: &str) -> Error {
        Error::config(
            self.path,
            format!(
                "neither its settings nor its tensors give the {what}; is it an ESM checkpoint?"
            ),
        )
    }
}
