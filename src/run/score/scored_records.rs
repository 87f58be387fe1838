//! A record's scores while they are computed.

use std::collections::HashMap;
use std::ops::Range;

use super::options::ScoreOptions;
use super::passes::{Pass, Taken};
use super::vocabulary::{AMINO_ACIDS, TokenNames, amino_acid};
use crate::journal::rows::{Mark, Spot};
use crate::run::chunk::{ChunkRecord, RecordStatus};
use crate::tokenize::{Encoded, SpecialTokens};

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
    /// Where each begins: the index of its first letter.
    pub starts: Vec<u32>,
    /// Its index in its file, and what identifies it.
    mark: (u64, u64),
    /// Where an earlier run saved its scores.
    pub saved: Option<Spot>,
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

/// A whole number that was saved as a float.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it was one"
)]
fn whole(number: f32) -> u32 {
    number as u32
}

/// Numbers that are saved of a token.
pub fn saved_width(columns: usize) -> usize {
    4 + columns
}

impl ScoredRecord {
    /// A record without scores yet. `encoded`: its tokens, where it has windows.
    pub fn new(
        task: usize,
        record: ChunkRecord,
        encoded: Option<&Encoded>,
        columns: usize,
    ) -> Self {
        let ids = encoded.map(|encoded| encoded.ids.clone());
        let ids = ids.unwrap_or_default();
        let starts = encoded.and_then(|encoded| encoded.starts.clone());
        Self {
            task,
            mark: (record.index, record.hash),
            saved: record.saved,
            id: record.id,
            length: record.length,
            failed: false,
            segments: record.segments,
            own: vec![f32::NAN; ids.len()],
            matrix: vec![f32::NAN; ids.len() * columns],
            starts: starts.unwrap_or_else(|| (0..).take(ids.len()).collect()),
            ids,
            joint: HashMap::new(),
            status: record.status,
        }
    }

    /// What the journal keeps of it: for each token its id, where it begins, its own
    /// log-probability and those of the columns, and what joint variants have, [`saved_width`]
    /// numbers each.
    pub fn row(&self, columns: usize, options: &ScoreOptions) -> (Mark, Vec<f32>) {
        let width = saved_width(columns);
        let mut values = Vec::with_capacity(self.ids.len() * width);
        for (at, (&id, &start)) in self.ids.iter().zip(&self.starts).enumerate() {
            // Whole numbers below 2^24 are exact.
            values.extend([id, start >> 16, start & 0xffff].map(|number| number as f32));
            values.push(self.own[at]);
            values.extend(&self.matrix[at * columns..(at + 1) * columns]);
        }
        let joint = self.joint_places(options);
        let joint = joint.map(|place| self.joint.get(&place).copied().unwrap_or(f32::NAN));
        values.extend(joint);
        values.resize(values.len().next_multiple_of(width), f32::NAN);
        let (index, hash) = self.mark;
        let vectors = u32::try_from(values.len() / width);
        let mark = Mark {
            index,
            hash,
            vectors: vectors.expect("a record has fewer than 2^32 tokens"),
        };
        (mark, values)
    }

    /// Takes back what [`ScoredRecord::row`] gave.
    pub fn restore(&mut self, values: &[f32], columns: usize, options: &ScoreOptions) {
        let joint: Vec<_> = self.joint_places(options).collect();
        let width = saved_width(columns);
        let rows = (values.len() / width).saturating_sub(joint.len().div_ceil(width));
        let (tokens, rest) = values.split_at(rows * width);
        for row in tokens.chunks_exact(width) {
            if let [id, high, low, own, matrix @ ..] = row {
                self.ids.push(whole(*id));
                self.starts.push(whole(*high) << 16 | whole(*low));
                self.own.push(*own);
                self.matrix.extend(matrix);
            }
        }
        let known = joint.into_iter().zip(rest.iter().copied());
        self.joint = known.filter(|(_, score)| !score.is_nan()).collect();
    }

    /// All that joint variants have a score of: the variant and the substitution.
    fn joint_places(&self, options: &ScoreOptions) -> impl Iterator<Item = (usize, usize)> {
        let variants = options.variants.as_ref().filter(|_| options.joint);
        let own = variants.map(|(_, variants)| {
            let own = variants.of(&self.id).iter();
            own.map(|&at| (at, variants.all[at].substitutions.len()))
        });
        own.into_iter()
            .flatten()
            .filter(|&(_, count)| count > 1)
            .flat_map(|(at, count)| (0..count).map(move |substitution| (at, substitution)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::score::Variants;

    #[test]
    fn a_row_gives_back_what_it_was_made_of() {
        let folder = tempfile::tempdir().expect("a folder");
        let table = folder.path().join("variants.tsv");
        let lines = "id\tvariant\na\tA1C:C2D:D3E\na\tA1C\na\tA1C:D3E\nb\tA1C:C2D\n";
        std::fs::write(&table, lines).expect("a table");
        let variants = Variants::read(&table).expect("variants");
        let record = || ChunkRecord {
            header: "a".to_owned(),
            id: "a".to_owned(),
            length: 70_010,
            status: RecordStatus::default(),
            segments: 0..0,
            reverse: 0..0,
            index: 3,
            hash: 4,
            saved: None,
            part: None,
        };
        let encoded = Encoded {
            ids: vec![5, 70_000, 7],
            starts: Some(vec![0, 6, 70_001]),
            ..Encoded::default()
        };
        for joint in [false, true] {
            for columns in [0, 2] {
                let options = ScoreOptions {
                    variants: Some((table.clone(), variants.clone())),
                    joint,
                    ..ScoreOptions::default()
                };
                let mut made = ScoredRecord::new(0, record(), Some(&encoded), columns);
                made.own = vec![-0.5, f32::NAN, -2.0];
                made.matrix = (0..3 * columns).map(|at| at as f32).collect();
                if joint {
                    made.joint = HashMap::from([((0, 0), 1.5), ((0, 2), -1.0), ((2, 1), 0.25)]);
                }
                let (mark, values) = made.row(columns, &options);
                assert_eq!((mark.index, mark.hash), (3, 4));
                assert_eq!(mark.vectors as usize * saved_width(columns), values.len());
                let mut found = ScoredRecord::new(0, record(), None, columns);
                found.restore(&values, columns, &options);
                assert_eq!(found.ids, made.ids);
                assert_eq!(found.starts, made.starts);
                assert_eq!(found.matrix, made.matrix);
                assert_eq!(found.joint, made.joint);
                assert_eq!(found.own.len(), 3);
                assert!(found.own[1].is_nan());
                assert_eq!(found.own[2].to_bits(), made.own[2].to_bits());
            }
        }
    }
}
