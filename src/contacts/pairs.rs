//! The pairs of residues with the highest probabilities of a contact, as a table.

use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::output::{OutputError, Unfinished, Written};

/// How many pairs of a sequence are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Top {
    /// A part of the sequence's length: `L` is 1, `L/5` is 5. At least one pair.
    Length(usize),
    /// This many.
    Count(usize),
}

impl Top {
    /// How many pairs of a sequence of so many residues are listed, if there are as many.
    #[must_use]
    pub fn of(self, residues: usize) -> usize {
        match self {
            Self::Length(part) => (residues / part).max(1),
            Self::Count(count) => count,
        }
    }
}

impl FromStr for Top {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|&number: &usize| number > 0);
        let top = match text {
            "L" => Some(Self::Length(1)),
            _ => match text.strip_prefix("L/") {
                Some(part) => number(part).map(Self::Length),
                None => number(text).map(Self::Count),
            },
        };
        top.ok_or_else(|| "expected L, a part of it such as L/2 or L/5, or a number".to_owned())
    }
}

/// A pair of residues, counted from 1, and the probability that they are in contact.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// The first residue.
    pub i: usize,
    /// The second residue, which comes later in the sequence.
    pub j: usize,
    /// The probability.
    pub probability: f32,
}

/// The `count` pairs with the highest probabilities, highest first, of a map [residues, residues].
/// Pairs closer in the sequence than `separation` are left out. Of equal ones, the earlier come
/// first.
#[must_use]
pub fn top_pairs(contacts: &[f32], residues: usize, separation: usize, count: usize) -> Vec<Pair> {
    let separation = separation.max(1);
    let mut pairs = Vec::new();
    for (row, values) in contacts.chunks_exact(residues.max(1)).enumerate() {
        let others = values.iter().enumerate().skip(row + separation);
        pairs.extend(others.map(|(column, &probability)| Pair {
            i: row + 1,
            j: column + 1,
            probability,
        }));
    }
    let order = |a: &Pair, b: &Pair| {
        let by_value = b.probability.total_cmp(&a.probability);
        by_value.then_with(|| (a.i, a.j).cmp(&(b.i, b.j)))
    };
    if pairs.len() > count && count > 0 {
        pairs.select_nth_unstable_by(count - 1, order);
        pairs.truncate(count);
    }
    pairs.sort_unstable_by(order);
    pairs
}

/// A table of pairs being written: `id`, `i`, `j`, `probability`, separated by tabs.
pub struct PairTable {
    path: PathBuf,
    file: BufWriter<Unfinished>,
}

impl PairTable {
    /// Creates it, with its header.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        let mut table = Self {
            path: path.to_owned(),
            file: BufWriter::new(Unfinished::create(path)?),
        };
        table.write("id\ti\tj\tprobability\n")?;
        Ok(table)
    }

    /// Appends the pairs of a record.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn push(&mut self, id: &str, pairs: &[Pair]) -> Result<(), OutputError> {
        let mut lines = String::new();
        for Pair { i, j, probability } in pairs {
            let _ = writeln!(lines, "{id}\t{i}\t{j}\t{probability}");
        }
        self.write(&lines)
    }

    fn write(&mut self, text: &str) -> Result<(), OutputError> {
        self.file
            .write_all(text.as_bytes())
            .map_err(|source| OutputError::Io {
                path: self.path.clone(),
                source,
            })
    }

    /// Completes the file and gives it its name.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(self) -> Result<Written, OutputError> {
        let Self { path, file } = self;
        let file = file.into_inner().map_err(|error| OutputError::Io {
            path,
            source: error.into_error(),
        })?;
        file.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_come_first_and_neighbours_are_left_out() {
        // The probability of i and j, from 0, is their sum over 100; two are equal.
        let map: Vec<f32> = (0..36).map(|at| (at / 6 + at % 6) as f32 / 100.0).collect();
        let found = top_pairs(&map, 6, 3, 3);
        let places: Vec<_> = found.iter().map(|pair| (pair.i, pair.j)).collect();
        assert_eq!(places, [(3, 6), (2, 6), (1, 6)]);
        assert_eq!(top_pairs(&map, 6, 4, 10).len(), 3);
        assert_eq!(top_pairs(&map, 6, 0, 100).len(), 15);
        assert!(top_pairs(&[0.5], 1, 1, 5).is_empty());
        assert!(top_pairs(&[], 0, 6, 5).is_empty());
    }

    #[test]
    fn how_many_is_a_number_or_a_part_of_the_length() {
        for (text, of_11) in [("L", 11), ("L/2", 5), ("L/5", 2), ("L/50", 1), ("7", 7)] {
            assert_eq!(text.parse::<Top>().map(|top| top.of(11)), Ok(of_11));
        }
        for text in ["", "0", "L/0", "l", "-1", "L/2.5"] {
            assert!(text.parse::<Top>().is_err(), "{text}");
        }
    }
}
