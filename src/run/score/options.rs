//! What is scored, and how.

use std::path::PathBuf;

use super::method::Method;
use super::table::TableFormat;
use super::variants::Variants;

/// What is scored, and how.
#[derive(Debug, Clone, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct ScoreOptions {
    /// How a position's log-probabilities are computed.
    pub method: Method,
    /// A second table, with the log-probabilities at each residue.
    pub per_residue: bool,
    /// Of all tokens in place of the 20 amino acids.
    pub vocabulary: bool,
    /// A second table, with the score of every single substitution.
    pub scan: bool,
    /// In place of all other tables: one of these variants, from this file.
    pub variants: Option<(PathBuf, Variants)>,
    /// Masks all positions of a variant together.
    pub joint: bool,
    /// The format of the tables.
    pub format: TableFormat,
}
