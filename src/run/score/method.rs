//! How a position's log-probabilities are computed.

use clap::ValueEnum;

/// How a position's log-probabilities are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Method {
    /// One pass over the sequence as it is (for variants: wt-marginals)
    #[default]
    #[value(alias = "wt-marginals")]
    Unmasked,
    /// One pass for each position, with this position masked (for variants: masked-marginals):
    /// exact pseudo-likelihoods, at as many times the cost as a sequence has residues
    #[value(alias = "masked-marginals")]
    Masked,
}
