//! Variants to score: a table with the columns `id` and `variant`, and where they are in the
//! sequences.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::error::ScoreError;
use super::vocabulary::{TokenNames, amino_acid};
use crate::records::{self, Source};
use crate::tokenize::Tokenizer;

/// Mistakes that are shown; more are counted.
const SHOWN: usize = 20;

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
        none_of(mistakes)?;
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
}

/// Checks that every id is in one of the files, and that every wild-type letter stands where the
/// variant says. Files that cannot be read are left to the run, which reports them.
pub struct VariantCheck<'v> {
    variants: &'v Variants,
    path: &'v Path,
    mistakes: Vec<(u64, String)>,
    seen: HashSet<&'v str>,
    unread: bool,
}

impl<'v> VariantCheck<'v> {
    /// Of the variants of the table at `path`.
    pub fn new(path: &'v Path, variants: &'v Variants) -> Self {
        Self {
            variants,
            path,
            mistakes: Vec::new(),
            seen: HashSet::new(),
            unread: false,
        }
    }

    /// Compares them with the sequences of a file.
    ///
    /// # Errors
    /// If it can be read only once.
    pub fn file(
        &mut self,
        source: &Source,
        tokenizer: &dyn Tokenizer,
        names: &TokenNames,
    ) -> Result<(), ScoreError> {
        if *source == Source::Stdin {
            return Err(ScoreError::Stdin);
        }
        let Ok(reader) = records::open(source) else {
            self.unread = true;
            return Ok(());
        };
        for record in reader {
            let Ok(record) = record else {
                self.unread = true;
                break;
            };
            let Some((id, known)) = self.variants.by_id.get_key_value(record.id()) else {
                continue;
            };
            self.seen.insert(id);
            let ids = tokenizer.encode(&record.sequence).ids;
            for &at in known {
                let variant = &self.variants.all[at];
                if let Err(why) = fits(variant, &ids, names) {
                    let (line, shown) = (variant.line, self.path.display());
                    let text = format!("{shown}, line {line}: {why} ({source})");
                    self.mistakes.push((line, text));
                }
            }
        }
        Ok(())
    }

    /// To be called after all files.
    ///
    /// # Errors
    /// Every line that does not fit.
    pub fn finish(mut self) -> Result<(), ScoreError> {
        let seen = &self.seen;
        let all = self.variants.all.iter();
        let lost = all.filter(|variant| !seen.contains(variant.id.as_str()));
        // An id may be in a file that cannot be read.
        if !self.unread {
            self.mistakes.extend(lost.map(|variant| {
                let (line, id, shown) = (variant.line, &variant.id, self.path.display());
                let text = format!("{shown}, line {line}: no sequence has the id {id:?}");
                (line, text)
            }));
        }
        self.mistakes.sort();
        none_of(self.mistakes.into_iter().map(|(_, text)| text).collect())
    }
}

/// An error of all mistakes, if there are any.
fn none_of(mut mistakes: Vec<String>) -> Result<(), ScoreError> {
    if mistakes.is_empty() {
        return Ok(());
    }
    let more = mistakes.len().saturating_sub(SHOWN);
    mistakes.truncate(SHOWN);
    if more > 0 {
        mistakes.push(format!("and {more} more"));
    }
    Err(ScoreError::Variants(mistakes))
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
