//! Values of a model's output that are known, against which `seqembed verify` compares: published
//! ones, which the families list, or a user's own, from a JSON file.

use std::borrow::Cow;

use serde::Deserialize;

/// The start of one vector that a model gives for a sequence.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownValues {
    /// Who computed the values, and with what.
    #[serde(default)]
    pub source: Cow<'static, str>,
    /// The residues or bases, without special tokens.
    pub sequence: Cow<'static, str>,
    /// The pooling, as for `--pooling`; `mean` if neither this nor `residue` is given.
    #[serde(default)]
    pub pooling: Option<Cow<'static, str>>,
    /// Instead of a pooling, the residue (from 1) whose vector it is; of byte pairs and k-mers, the
    /// token.
    #[serde(default)]
    pub residue: Option<usize>,
    /// The layer, as for `--layer`; the last one if it is not given.
    #[serde(default)]
    pub layer: Option<i32>,
    /// The vector's first values, or all of them.
    #[serde(default = "no_values")]
    pub values: Cow<'static, [f32]>,
    /// The Euclidean norm of the vector.
    #[serde(default)]
    pub norm: Option<f32>,
    /// By how much a value may differ in fp32; the norm by as much for each unit of it above 1.
    #[serde(default = "tolerance")]
    pub tolerance: f32,
}

impl KnownValues {
    /// The mean over a sequence's residues, to be completed.
    pub(crate) const MEAN: Self = Self {
        source: Cow::Borrowed(""),
        sequence: Cow::Borrowed(""),
        pooling: None,
        residue: None,
        layer: None,
        values: Cow::Borrowed(&[]),
        norm: None,
        tolerance: tolerance(),
    };
}

fn no_values() -> Cow<'static, [f32]> {
    Cow::Borrowed(&[])
}

const fn tolerance() -> f32 {
    1e-4
}
