//! Reads sequence files for a new manifest: whether they are proteins or DNA, and how large they
//! are.

use std::path::PathBuf;

use rayon::prelude::*;

use super::error::{ManifestErrors, Mistakes};
use crate::records::{self, Limits, RecordError, Source};
use crate::tokenize::Alphabet;
use crate::tokenize::dna::DnaCheck;

/// Letters of a record that are looked at; the rest is counted.
const KEPT: usize = 100_000;

/// Tokens of a sequence that stand for no letter: one in front of it and one behind, in most
/// models.
const SPECIAL: u64 = 2;

/// What was found in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sniffed {
    /// What its letters look like; `None` if they are too few, or could be either.
    pub alphabet: Option<Alphabet>,
    /// Whether there is no record in it.
    pub is_empty: bool,
    /// About how many tokens a model with a token per letter sees, or 0 if this was not counted.
    pub tokens: u64,
}

/// Looks into all files: at their first 100,000 letters, or, to count their tokens, at everything.
///
/// # Errors
/// Every file that cannot be read, or is no sequence file.
pub fn sniff(paths: &[PathBuf], count: bool) -> Result<Vec<Sniffed>, ManifestErrors> {
    let sniffed: Vec<_> = paths
        .par_iter()
        .map(|path| sniff_one(&Source::Path(path.clone()), count))
        .collect();
    let mut mistakes = Mistakes::default();
    let mut found = Vec::with_capacity(paths.len());
    for result in sniffed {
        match result {
            Ok(sniffed) => found.push(sniffed),
            Err(error) => mistakes.add(None, error.to_string()),
        }
    }
    mistakes.into_errors(None)?;
    Ok(found)
}

fn sniff_one(source: &Source, count: bool) -> Result<Sniffed, RecordError> {
    let mut reader = records::open(source)?;
    reader.limit(Limits {
        keep: Some(KEPT),
        ..Limits::default()
    });
    let mut check = DnaCheck::default();
    let mut tokens = 0;
    let mut is_empty = true;
    for record in reader {
        let record = record?;
        is_empty = false;
        check.add(&record.sequence);
        let rest = record.rest.map_or(0, |rest| rest.letters);
        tokens += record.sequence.len() as u64 + rest + SPECIAL;
        if !count && check.is_done() {
            break;
        }
    }
    let alphabet = if check.looks_like_dna() {
        Some(Alphabet::Dna)
    } else if check.looks_like_protein() {
        Some(Alphabet::Protein)
    } else {
        None
    };
    Ok(Sniffed {
        alphabet,
        is_empty,
        tokens: if count { tokens } else { 0 },
    })
}
