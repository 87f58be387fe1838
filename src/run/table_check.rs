//! What tables about sequences have in common, those of spans and of variants: their ids are looked
//! for in the files before anything is computed, and each mistake has its line.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::Path;

use crate::records::{self, Record, Source};

/// Mistakes that are shown; more are counted.
const SHOWN: usize = 20;

/// What is wrong with a row of a table, and on which line it stands.
pub type Mistake = (u64, String);

/// A table, compared with the sequences that it is about.
pub struct TableCheck<'t> {
    path: &'t Path,
    seen: HashSet<&'t str>,
    mistakes: Vec<Mistake>,
    /// Whether an id may be in a part of a file that could not be read.
    is_incomplete: bool,
}

impl<'t> TableCheck<'t> {
    /// Of the table at this path.
    pub fn new(path: &'t Path) -> Self {
        Self {
            path,
            seen: HashSet::new(),
            mistakes: Vec::new(),
            is_incomplete: false,
        }
    }

    /// Compares the table with the sequences of a file. `compare`: a sequence's id in the table, and
    /// what is wrong with its rows; `None`: the table does not have it. A file that cannot be read is
    /// left to the run, which reports it.
    pub fn file(
        &mut self,
        source: &Source,
        mut compare: impl FnMut(&Record) -> Option<(&'t str, Vec<Mistake>)>,
    ) {
        let Ok(reader) = records::open(source) else {
            self.is_incomplete = true;
            return;
        };
        for record in reader {
            let Ok(record) = record else {
                self.is_incomplete = true;
                return;
            };
            self.sequence(compare(&record), &format_args!(" ({source})"));
        }
    }

    /// Notes what was found of one sequence, with the file that it is in.
    pub fn sequence(&mut self, found: Option<(&'t str, Vec<Mistake>)>, source: &dyn Display) {
        let Some((id, mistakes)) = found else {
            return;
        };
        self.seen.insert(id);
        let mistakes = mistakes.into_iter();
        self.mistakes
            .extend(mistakes.map(|(line, why)| (line, format!("{why}{source}"))));
    }

    /// To be called after all sequences, with the line and the id of each row.
    ///
    /// # Errors
    /// Every line that does not fit.
    pub fn finish(mut self, rows: impl Iterator<Item = (u64, &'t str)>) -> Result<(), Vec<String>> {
        if !self.is_incomplete {
            let lost = rows.filter(|(_, id)| !self.seen.contains(id));
            let lost = lost.map(|(line, id)| (line, format!("no sequence has the id {id:?}")));
            self.mistakes.extend(lost);
        }
        none_of(self.path, self.mistakes)
    }
}

/// An error of all mistakes in a table, in the order of its lines, if there are any.
///
/// # Errors
/// If there are.
pub fn none_of(path: &Path, mut mistakes: Vec<Mistake>) -> Result<(), Vec<String>> {
    mistakes.sort();
    let mistakes = mistakes.into_iter();
    first_of(
        mistakes
            .map(|(line, why)| on_line(path, line, &why))
            .collect(),
    )
}

/// The first of all mistakes as an error, and how many more there are; if there are any.
///
/// # Errors
/// If there are.
pub fn first_of(mut mistakes: Vec<String>) -> Result<(), Vec<String>> {
    if mistakes.is_empty() {
        return Ok(());
    }
    let more = mistakes.len().saturating_sub(SHOWN);
    mistakes.truncate(SHOWN);
    if more > 0 {
        mistakes.push(format!("and {more} more"));
    }
    Err(mistakes)
}

/// What is wrong, with its place.
pub fn on_line(path: &Path, line: u64, why: &str) -> String {
    format!("{}, line {line}: {why}", path.display())
}
