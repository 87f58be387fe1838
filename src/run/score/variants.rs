//! Variants to score: a table with the columns `id` and `variant`, and where they are in the
//! sequences.

use std::collections::HashMap;
use std::path::Path;

use super::error::ScoreError;
use super::vocabulary::{TokenNames, amino_acid};
use crate::records::Record;
use crate::run::table_check::{Mistake, first_of};
use crate::tokenize::Tokenizer;

/// A substitution of a residue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Substitution {
    /// The residue's index in its sequence, from 0.
    pub at: usize,
    /// The letter there.
    pub wild_type: u8,
    /// The letter in its place.
    pub mutant: u8,
}

/// One or several substitutions in a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    /// Its line in the table, from 1.
    pub line: u64,
    /// The sequence's id.
    pub id: String,
    /// As it was written.
    pub text: String,
    /// Its substitutions, of different residues.
    pub substitutions: Vec<Substitution>,
}

/// All variants of a table.
#[derive(Debug, Clone, Default)]
pub struct Variants {
    /// In the table's order.
    pub all: Vec<Variant>,
    /// BLAKE3 of the table's bytes, in hexadecimal.
    pub blake3: String,
    by_id: HashMap<String, Vec<usize>>,
}

impl Variants {
    /// Reads a table, separated by tabs or, if its name ends in `.csv`, by commas.
    ///
    /// # Errors
    /// Every line that has no variant, and why.
    pub fn read(path: &Path) -> Result<Self, ScoreError> {
        let is_csv = path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        let shown = path.display();
        let one = |why: String| ScoreError::Variants(vec![format!("{shown}: {why}")]);
        let bytes = std::fs::read(path).map_err(|error| one(error.to_string()))?;
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(if is_csv { b',' } else { b'\t' })
            .trim(csv::Trim::All)
            .comment(Some(b'#'))
            .from_reader(&bytes[..]);
        let header = reader.headers().map_err(|error| one(error.to_string()))?;
        let column = |name: &str| {
            let found = header.iter().position(|column| column == name);
            found.ok_or_else(|| {
                one(format!(
                    "the first line names no column `{name}`; a table of variants has the columns \
                     `id` and `variant`, separated by {}",
                    if is_csv { "commas" } else { "tabs" }
                ))
            })
        };
        let (id, variant) = (column("id")?, column("variant")?);
        let mut mistakes = Vec::new();
        let mut variants = Self {
            blake3: blake3::hash(&bytes).to_hex().to_string(),
            ..Self::default()
        };
        for record in reader.records() {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    mistakes.push(format!("{shown}: {error}"));
                    continue;
                }
            };
            let line = record.position().map_or(0, csv::Position::line);
            let (id, text) = (&record[id], &record[variant]);
            match substitutions(text) {
                Ok(substitutions) => variants.add(Variant {
                    line,
                    id: id.to_owned(),
                    text: text.to_owned(),
                    substitutions,
                }),
                Err(why) => mistakes.push(format!("{shown}, line {line}: {why}")),
            }
        }
        if variants.all.is_empty() && mistakes.is_empty() {
            mistakes.push(format!("{shown}: it has no variants"));
        }
        first_of(mistakes).map_err(ScoreError::Variants)?;
        Ok(variants)
    }

    fn add(&mut self, variant: Variant) {
        let at = self.all.len();
        self.by_id.entry(variant.id.clone()).or_default().push(at);
        self.all.push(variant);
    }

    /// The indices of a sequence's variants.
    pub fn of(&self, id: &str) -> &[usize] {
        self.by_id.get(id).map_or(&[], Vec::as_slice)
    }

    /// Each variant's line and id.
    pub fn rows(&self) -> impl Iterator<Item = (u64, &str)> {
        let all = self.all.iter();
        all.map(|variant| (variant.line, variant.id.as_str()))
    }

    /// The id of a sequence that has variants, and those whose wild-type letters do not stand where
    /// they say.
    pub fn compare(
        &self,
        record: &Record,
        tokenizer: &dyn Tokenizer,
        names: &TokenNames,
    ) -> Option<(&str, Vec<Mistake>)> {
        let (id, known) = self.by_id.get_key_value(record.id())?;
        let ids = tokenizer.encode(&record.sequence).ids;
        let misfits = known.iter().filter_map(|&at| {
            let variant = &self.all[at];
            Some((variant.line, fits(variant, &ids, names).err()?))
        });
        Some((id, misfits.collect()))
    }
}

/// The substitutions of `A42G` or `A42G:L50P`.
fn substitutions(text: &str) -> Result<Vec<Substitution>, String> {
    let mut all: Vec<Substitution> = Vec::new();
    for part in text.split(':') {
        let wrong = || {
            format!(
                "{part:?} is not a substitution: write the letter, the position from 1 and the new \
                 letter, such as A42G, and several of them as A42G:L50P"
            )
        };
        let bytes = part.as_bytes();
        let (&wild_type, rest) = bytes.split_first().ok_or_else(wrong)?;
        let (&mutant, number) = rest.split_last().ok_or_else(wrong)?;
        let number = std::str::from_utf8(number).ok();
        let number = number.filter(|number| number.bytes().all(|digit| digit.is_ascii_digit()));
        let position: usize = number
            .and_then(|number| number.parse().ok())
            .ok_or_else(wrong)?;
        if !wild_type.is_ascii_uppercase() || !mutant.is_ascii_uppercase() || position == 0 {
            return Err(wrong());
        }
        let at = position - 1;
        if all.iter().any(|known| known.at == at) {
            return Err(format!("{text:?} has position {position} twice"));
        }
        all.push(Substitution {
            at,
            wild_type,
            mutant,
        });
    }
    Ok(all)
}

/// Whether a variant's wild-type letters stand in a sequence, and its new letters are amino acids.
fn fits(variant: &Variant, ids: &[u32], names: &TokenNames) -> Result<(), String> {
    for &Substitution {
        at,
        wild_type,
        mutant,
    } in &variant.substitutions
    {
        let is_amino_acid = amino_acid(mutant).is_some();
        let (wild_type, mutant) = (char::from(wild_type), char::from(mutant));
        let position = at + 1;
        let Some(&id) = ids.get(at) else {
            return Err(format!(
                "{}: sequence {:?} has {} residues, and no position {position}",
                variant.text,
                variant.id,
                ids.len()
            ));
        };
        let found = names.of(id);
        if *found != *wild_type.to_string() {
            return Err(format!(
                "{}: position {position} of sequence {:?} is {found}, not {wild_type}",
                variant.text, variant.id
            ));
        }
        if !is_amino_acid {
            return Err(format!(
                "{}: {mutant} is not one of the 20 amino acids",
                variant.text
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn substitutions_are_read_from_one() {
        let one = Substitution {
            at: 41,
            wild_type: b'A',
            mutant: b'G',
        };
        assert_eq!(substitutions("A42G"), Ok(vec![one]));
        let two = substitutions("A42G:M1L").expect("two");
        assert_eq!(two.iter().map(|one| one.at).collect::<Vec<_>>(), [41, 0]);
        for wrong in [
            "",
            "A",
            "42",
            "A42",
            "42G",
            "A0G",
            "a42G",
            "A42g",
            "A4-2G",
            "A42G:",
            "A+2G",
            "Ä42G",
            "A99999999999999999999G",
            "A42G:A42L",
            "A42G A43G",
        ] {
            assert!(substitutions(wrong).is_err(), "{wrong}");
        }
    }
}
