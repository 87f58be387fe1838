//! Folds layer norms into the dense layers that follow, for fused graphs, whose dense layers read
//! rows that are not normed yet.
//!
//! With `x` a row of `n` numbers, `m` its mean and `d` its deviation, `norm(x) = (x - m) / d *
//! gamma + beta`. So `norm(x) @ W^T = x @ V^T / d + W @ beta`, where `V` is `W * gamma` less the
//! mean of each of its rows: then it takes no notice of `m`. `V` stands in the weights file in
//! `W`'s place, [`GAIN`] times smaller, and `W @ beta` is added to the layer's bias, or, behind
//! attention, to that of the projection: a row of attention weights sums to one. Where the residual
//! is normed too, in blocks whose norms come last, `beta` is added to the bias beside it.

use std::ops::Range;

/// By how much folded weights are smaller: `x @ V^T`, not yet divided by the deviation, must fit
/// 16-bit floats on its way.
pub const GAIN: f32 = 32.0;

/// What is folded in a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folds {
    /// The dense layers behind a norm.
    pub dense: Vec<Dense>,
    /// The biases that change.
    pub biases: Vec<Bias>,
    /// The weights of feed-forward layers.
    pub feed_forward: Vec<String>,
}

/// The weight of a dense layer, [out, in], and the norm before it, as tensors of the weights file
/// are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dense {
    /// The weight.
    pub weight: String,
    /// The norm: `norm.weight` and `norm.bias`, [in].
    pub norm: String,
}

/// A bias that something is added to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bias {
    /// Its name. A tensor that is not in the plan starts as zeros.
    pub name: String,
    /// How many numbers it has.
    pub length: usize,
    /// What is added.
    pub terms: Vec<Term>,
}

/// A vector that is added to a bias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Term {
    /// The norm's bias as it is.
    Norm(String),
    /// Some rows of a dense layer, times the bias of the norm before it.
    Product(Dense, Range<usize>),
    /// The weight of this name, times such a product.
    Through(String, Dense, Range<usize>),
}

impl Folds {
    /// The norm before a dense layer.
    #[must_use]
    pub fn norm_before(&self, weight: &str) -> Option<&str> {
        let mut dense = self.dense.iter();
        let found = dense.find(|dense| dense.weight == weight)?;
        Some(&found.norm)
    }

    /// A bias that changes.
    #[must_use]
    pub fn bias(&self, name: &str) -> Option<&Bias> {
        self.biases.iter().find(|bias| bias.name == name)
    }

    /// Folds the norm `norm` into queries, keys and values of `layer`, as all architectures name
    /// them, and adds `beside` to what the projection behind attention adds.
    pub fn attention(&mut self, layer: &str, norm: String, hidden: usize, beside: Option<Term>) {
        let dense = Dense {
            weight: format!("{layer}.qkv.weight"),
            norm,
        };
        self.biases.push(Bias {
            name: format!("{layer}.qk.bias"),
            length: 2 * hidden,
            terms: vec![Term::Product(dense.clone(), 0..2 * hidden)],
        });
        let through = Term::Through(
            format!("{layer}.attention_output.weight"),
            dense.clone(),
            2 * hidden..3 * hidden,
        );
        self.biases.push(Bias {
            name: format!("{layer}.attention_output.bias"),
            length: hidden,
            terms: [through].into_iter().chain(beside).collect(),
        });
        self.dense.push(dense);
    }

    /// Folds the norm `norm` into the first dense layer of the feed-forward layer, `layer.part`, of
    /// `width` rows.
    pub fn feed_forward(&mut self, layer: &str, part: &str, norm: String, width: usize) {
        let dense = Dense {
            weight: format!("{layer}.{part}.weight"),
            norm,
        };
        self.biases.push(Bias {
            name: format!("{layer}.{part}.bias"),
            length: width,
            terms: vec![Term::Product(dense.clone(), 0..width)],
        });
        self.feed_forward.push(dense.weight.clone());
        self.feed_forward.push(format!("{layer}.down.weight"));
        self.dense.push(dense);
    }
}
