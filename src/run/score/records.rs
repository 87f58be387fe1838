//! A record's scores while they are computed.

use std::collections::HashMap;
use std::ops::Range;

use super::options::ScoreOptions;
use super::passes::{Pass, Taken};
use super::vocabulary::{AMINO_ACIDS, TokenNames, amino_acid};
use crate::run::chunk::{ChunkRecord, RecordStatus};
use crate::tokenize::SpecialTokens;

/// A record's scores.
pub struct ScoredRecord {
    /// The task that it belongs to.
    pub task: usize,
    /// The first word of its header.
    pub id: String,
    /// Residues or bases.
    pub length: usize,
    /// What was done to it.
    pub status: RecordStatus,
    /// Whether it could not be computed.
    pub failed: bool,
    /// Its windows in the chunk.
    pub segments: Range<usize>,
    /// Its tokens, where it was not skipped.
    pub ids: Vec<u32>,
    /// The log-probability of each token; NaN: it was not asked for, the vocabulary does not have
    /// the letter, or the token stands between two chains.
    pub own: Vec<f32>,
    /// The log-probabilities of the [columns](columns), a row for each token; empty if they are not
    /// asked for.
    pub matrix: Vec<f32>,
    /// What joint variants have of each substitution: the difference to the wild type.
    pub joint: HashMap<(usize, usize), f32>,
}

/// The ids of the tokens that a row of a record's matrix has.
pub fn columns(options: &ScoreOptions, names: &TokenNames) -> Vec<u32> {
    if options.vocabulary {
        return names.all().map(|(id, _)| id).collect();
    }
    let needed = options.per_residue || options.scan || options.variants.is_some();
    match names.amino_acids() {
        Some(ids) if needed => ids.to_vec(),
        _ => Vec::new(),
    }
}

impl ScoredRecord {
    /// A record without scores yet, whose tokens are `ids`.
    pub fn new(task: usize, record: ChunkRecord, ids: &[u32], columns: usize) -> Self {
        Self {
            task,
            id: record.id,
            length: record.length,
            failed: false,
            segments: record.segments,
            own: vec![f32::NAN; ids.len()],
            matrix: vec![f32::NAN; ids.len() * columns],
            ids: ids.to_vec(),
            joint: HashMap::new(),
            status: record.status,
        }
    }

    /// Takes what a pass computed: `rows` of `width` log-probabilities, from the token `first` on.
    pub fn take(
        &mut self,
        pass: &Pass,
        (rows, width): (&[f32], usize),
        first: usize,
        (columns, special): (&[u32], &SpecialTokens),
        options: &ScoreOptions,
    ) {
        if let Taken::Joint {
            variant,
            substitution,
        } = pass.what
        {
            let one = options
                .variants
                .as_ref()
                .map(|(_, variants)| variants.all[variant].substitutions[substitution]);
            let mutant = one.and_then(|one| {
                let at = amino_acid(one.mutant)?;
                rows.get(*columns.get(at)? as usize)
            });
            let own = one.and_then(|one| rows.get(*self.ids.get(one.at)? as usize));
            if let (Some(mutant), Some(own)) = (mutant, own) {
                self.joint.insert((variant, substitution), mutant - own);
            }
            return;
        }
        for (at, row) in (first..).zip(rows.chunks_exact(width)) {
            let Some(&id) = self.ids.get(at) else {
                return;
            };
            if !special.is_no_letter(id) {
                self.own[at] = row.get(id as usize).copied().unwrap_or(f32::NAN);
            }
            let own = self.matrix.chunks_exact_mut(columns.len().max(1)).nth(at);
            for (value, &column) in own.into_iter().flatten().zip(columns) {
                *value = row.get(column as usize).copied().unwrap_or(f32::NAN);
            }
        }
    }

    /// The sum of the tokens' log-probabilities, and how many there are: all but unknown letters
    /// and what stands between chains.
    pub fn log_likelihood(&self) -> (f64, usize) {
        let known = self.own.iter().filter(|value| !value.is_nan());
        let count = known.clone().count();
        (known.map(|&value| f64::from(value)).sum(), count)
    }

    /// The score of a variant: the sum over its substitutions of the new letter's log-probability
    /// less the old one's. NaN where it could not be computed.
    pub fn variant(&self, variant: usize, options: &ScoreOptions) -> f64 {
        let Some((_, variants)) = &options.variants else {
            return f64::NAN;
        };
        let substitutions = &variants.all[variant].substitutions;
        let joint = options.joint && substitutions.len() > 1;
        let scores = substitutions.iter().enumerate().map(|(number, one)| {
            if joint {
                let score = self.joint.get(&(variant, number));
                return score.map_or(f64::NAN, |&score| f64::from(score));
            }
            let mutant = amino_acid(one.mutant).and_then(|column| {
                let at = one.at.checked_mul(AMINO_ACIDS.len())?.checked_add(column)?;
                self.matrix.get(at)
            });
            match (mutant, self.own.get(one.at)) {
                (Some(&mutant), Some(&own)) => f64::from(mutant) - f64::from(own),
                _ => f64::NAN,
            }
        });
        scores.sum()
    }
}
