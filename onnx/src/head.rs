//! Language-model heads: from a token's hidden state to the log-probabilities of all tokens, for
//! pseudo-likelihoods and variant scores.
//!
//! The heads of all families are alike: a dense layer, GELU, a layer norm, and a dense layer as
//! wide as the vocabulary. A head is in a file of its own, so that `weights.bin` and the graphs of
//! embeddings are the same with and without one. It is small, and computed in fp32 always.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Canonical, Checkpoint};
use crate::error::Error;
use crate::files::read_small;
use crate::graph::builder::{Attribute, Builder, OutputHead};
use crate::graph::proto::ElementType;
use crate::weights::table::{
    Input, Plan, Planned, TensorInfo, TensorSource, Weights, place, write,
};

/// The head of a model folder, where the checkpoint had one.
pub const HEAD_FILE: &str = "lm_head.bin";

/// Far more than the largest head of a known model has.
const LARGEST_FILE: u64 = 1 << 30;

/// What a family's head looks like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadForm {
    /// How its checkpoints name the head's tensors.
    pub names: HeadNames,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Rows of the embedding table: how many tokens the head gives probabilities of.
    pub vocabulary: usize,
    /// Added to the variance in the head's layer norm.
    pub epsilon: f32,
    /// The id of `<mask>`, where the embeddings of a sequence are scaled by how many of its tokens
    /// are masked (token dropout).
    pub token_dropout: Option<usize>,
    /// A row of the decoder that fair-esm zeroes when it loads a file of its own: it zeroes that
    /// of `<mask>` in the embeddings of its older models, which the decoder shares.
    pub zeroed_by_fair_esm: Option<usize>,
}

/// Names of a head's parts; each has a `weight` and a `bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadNames {
    /// The first dense layer, as any of these.
    pub dense: &'static [&'static str],
    /// The layer norm, as any of these; older files say `gamma` and `beta`.
    pub norm: &'static [&'static str],
    /// The second dense layer's weight, as any of these; the last ones are the embedding table,
    /// with which it is shared.
    pub decoder: &'static [&'static str],
    /// The second dense layer's bias, as any of these.
    pub decoder_bias: &'static [&'static str],
}

/// Names of Hugging Face's and fair-esm's ESMs.
pub const ESM: HeadNames = HeadNames {
    dense: &["lm_head.dense"],
    norm: &["lm_head.layer_norm"],
    decoder: &[
        "lm_head.decoder.weight",
        "lm_head.weight",
        "embeddings.word_embeddings.weight",
        "embed_tokens.weight",
    ],
    decoder_bias: &["lm_head.bias", "lm_head.decoder.bias"],
};

/// Names of ESM C's: the hub's, and those of the `esm` package.
pub const ESMC: HeadNames = HeadNames {
    dense: &["lm_head.dense", "sequence_head.0"],
    norm: &["lm_head.layer_norm", "sequence_head.2"],
    decoder: &["lm_head.decoder.weight", "sequence_head.3.weight"],
    decoder_bias: &["lm_head.decoder.bias", "sequence_head.3.bias"],
};

/// Names of BERT's, and of DNABERT-2's authors, whose class has the same name: without a decoder of
/// its own, it is the table of word embeddings.
pub const BERT: HeadNames = HeadNames {
    dense: &["cls.predictions.transform.dense"],
    norm: &["cls.predictions.transform.LayerNorm"],
    decoder: &[
        "cls.predictions.decoder.weight",
        "embeddings.word_embeddings.weight",
    ],
    decoder_bias: &["cls.predictions.bias", "cls.predictions.decoder.bias"],
};

/// What `seqembed.json` says of a head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadInfo {
    /// BLAKE3 of [`HEAD_FILE`], in hexadecimal.
    pub blake3: String,
    /// All tensors of the file, in its order.
    pub tensors: Vec<TensorInfo>,
}

/// A head that was read, with its dense weights as [in, out].
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    form: HeadForm,
    tensors: BTreeMap<String, Vec<f32>>,
}

impl HeadForm {
    /// A head whose embeddings are not scaled, and whose decoder is as the checkpoint has it.
    pub(crate) fn new(names: HeadNames, hidden: usize, vocabulary: usize, epsilon: f32) -> Self {
        Self {
            names,
            hidden,
            vocabulary,
            epsilon,
            token_dropout: None,
            zeroed_by_fair_esm: None,
        }
    }

    /// The tensors of the file. `zero_row`: a row of the decoder that is zero, whatever the
    /// checkpoint has there.
    pub(crate) fn plan(&self, zero_row: Option<usize>) -> Vec<Planned> {
        let mut plan = Plan::default();
        let mut add = |name: &str, shape: &[usize]| {
            let name = format!("lm_head.{name}");
            let input = Input::new(name.clone(), shape);
            match zero_row.filter(|_| name == "lm_head.decoder.weight") {
                None => plan.copy(name, input),
                Some(row) => {
                    let source = TensorSource::Scaled {
                        input,
                        factor: 1.0,
                        zero: vec![row],
                    };
                    plan.add(name, shape, source);
                }
            }
        };
        add("dense.weight", &[self.hidden, self.hidden]);
        add("dense.bias", &[self.hidden]);
        add("layer_norm.weight", &[self.hidden]);
        add("layer_norm.bias", &[self.hidden]);
        add("decoder.weight", &[self.vocabulary, self.hidden]);
        add("decoder.bias", &[self.vocabulary]);
        plan.0
    }

    /// The head's tensors in a checkpoint; `None` if it has no head of this form.
    pub(crate) fn find<'checkpoint>(
        &self,
        checkpoint: &'checkpoint Checkpoint,
    ) -> Option<Canonical<'checkpoint>> {
        let find = |wanted: &str| {
            let is = |name: &str| {
                name.strip_suffix(wanted)
                    .is_some_and(|before| before.is_empty() || before.ends_with('.'))
            };
            checkpoint
                .shapes()
                .map(|(name, _)| name)
                .find(|name| is(name))
        };
        let HeadNames {
            dense,
            norm,
            decoder,
            decoder_bias,
        } = self.names;
        let mut names = BTreeMap::new();
        for (ours, theirs) in [("dense", dense), ("layer_norm", norm)] {
            for (kind, older) in [("weight", "gamma"), ("bias", "beta")] {
                let found = theirs.iter().find_map(|name| {
                    find(&format!("{name}.{kind}")).or_else(|| find(&format!("{name}.{older}")))
                })?;
                names.insert(format!("lm_head.{ours}.{kind}"), found);
            }
        }
        for (kind, all) in [("weight", decoder), ("bias", decoder_bias)] {
            let found = all.iter().find_map(|name| find(name))?;
            names.insert(format!("lm_head.decoder.{kind}"), found);
        }
        let head = Canonical::renamed(checkpoint, names);
        let plan = self.plan(None);
        let mut inputs = plan.iter().flat_map(|planned| planned.source.inputs());
        inputs
            .all(|input| head.check(input).is_ok())
            .then_some(head)
    }

    /// Writes the head's file into a folder. `zero_row` as for [`HeadForm::plan`].
    pub(crate) fn write(
        &self,
        folder: &Path,
        weights: &dyn Weights,
        zero_row: Option<usize>,
    ) -> Result<HeadInfo, Error> {
        let plan = self.plan(zero_row);
        let hashes = write(&folder.join(HEAD_FILE), &plan, weights)?;
        Ok(HeadInfo {
            blake3: hashes.blake3,
            tensors: place(&plan),
        })
    }

    /// Reads the head's file of a model folder, and verifies it.
    pub(crate) fn read(self, folder: &Path, info: &HeadInfo) -> Result<Head, Error> {
        let path = folder.join(HEAD_FILE);
        let bytes = read_small(&path, LARGEST_FILE)?;
        let found = blake3::hash(&bytes).to_hex().to_string();
        let damaged = || Error::Damaged {
            path: path.clone(),
            algorithm: "BLAKE3",
            expected: info.blake3.clone(),
            found: found.clone(),
        };
        if found != info.blake3 {
            return Err(damaged());
        }
        let mut tensors = BTreeMap::new();
        for tensor in &info.tensors {
            let at = usize::try_from(tensor.offset).map_err(|_| damaged())?;
            let length = usize::try_from(tensor.bytes).map_err(|_| damaged())?;
            let values = at
                .checked_add(length)
                .and_then(|end| bytes.get(at..end))
                .ok_or_else(damaged)?
                .as_chunks()
                .0
                .iter()
                .map(|&value| f32::from_le_bytes(value))
                .collect::<Vec<_>>();
            let values = match tensor.shape[..] {
                [rows, columns] => transposed(&values, rows, columns),
                _ => values,
            };
            tensors.insert(tensor.name.clone(), values);
        }
        Ok(Head {
            form: self,
            tensors,
        })
    }
}

/// A matrix [rows, columns] as [columns, rows].
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let column = |column: usize| (0..rows).map(move |row| values[row * columns + column]);
    (0..columns).flat_map(column).collect()
}

impl Head {
    /// What it looks like.
    #[must_use]
    pub fn form(&self) -> &HeadForm {
        &self.form
    }
}

impl OutputHead for Head {
    fn width(&self) -> usize {
        self.form.vocabulary
    }

    /// The log-probabilities of all tokens, [.., vocabulary].
    fn build(&self, builder: &mut Builder<'_>, hidden: &str, element: ElementType) -> String {
        let HeadForm {
            hidden: width,
            vocabulary,
            epsilon,
            ..
        } = self.form;
        builder.scope("lm_head");
        let hidden = builder.as_type(hidden, element, ElementType::Float);
        let mut tensor = |name: &str, shape: &[usize]| {
            let name = format!("lm_head.{name}");
            let values = self.tensors.get(&name);
            let values = values.expect("the table was checked against the form");
            builder.floats(&name, shape, values)
        };
        let dense = tensor("dense.weight", &[width, width]);
        let dense_bias = tensor("dense.bias", &[width]);
        let gamma = tensor("layer_norm.weight", &[width]);
        let beta = tensor("layer_norm.bias", &[width]);
        let decoder = tensor("decoder.weight", &[width, vocabulary]);
        let decoder_bias = tensor("decoder.bias", &[vocabulary]);
        let inner = builder.op("MatMul", &[&hidden, &dense], &[]);
        let inner = builder.op("Add", &[&inner, &dense_bias], &[]);
        let inner = builder.op("com.microsoft:Gelu", &[&inner], &[]);
        let axis = ("axis", Attribute::Int(-1));
        let norm = [axis.clone(), ("epsilon", Attribute::Float(epsilon))];
        let inner = builder.op("LayerNormalization", &[&inner, &gamma, &beta], &norm);
        let logits = builder.op("MatMul", &[&inner, &decoder], &[]);
        let logits = builder.op("Add", &[&logits, &decoder_bias], &[]);
        builder.op("LogSoftmax", &[&logits], &[axis])
    }
}
