//! Known values of a model's vectors, with which `seqembed verify` compares: published ones, which
//! the families list, or a user's own, from a JSON file.

use std::borrow::Cow;

use serde::Deserialize;

/// The first values of a vector that a model computes for a sequence, its norm, or both.
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
    /// The largest difference of a value in fp32; for a norm above 1, multiplied by the norm.
    #[serde(default = "tolerance")]
    pub tolerance: f32,
}

impl KnownValues {
    /// Defaults for the mean over the residues; sequence and values are still to be set.
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
