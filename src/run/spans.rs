//! Spans of sequences that are pooled on their own, such as a domain or a CDR3: a table with the
//! columns `id`, `start`, `end` and, if wanted, `name`, or a BED file.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::table_check::{Mistake, TableCheck, none_of, on_line};
use crate::records::{Record, Source};
use crate::tokenize::{Encoded, Tokenizer};

/// What is wrong with a table of spans, or with it and the sequences.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpanError {
    /// Each with its line, as far as it has one.
    #[error("{}", .0.join("\n"))]
    Mistakes(Vec<String>),
    /// The sequences can be read only once.
    #[error(
        "option `spans` cannot be used with standard input, because the table is checked against \
         the sequences before the run: write them to a file first"
    )]
    Stdin,
}

/// A span of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its line in the table, from 1.
    pub line: u64,
    /// Its name; without one, `START-END`, from 1 and both ends included.
    pub name: String,
    /// Its residues (bases for DNA), from 0.
    pub letters: Range<usize>,
}

impl Span {
    /// The tokens that read at least one of its letters; `shortest` is how many letters a token has
    /// at least.
    #[must_use]
    pub fn tokens(&self, encoded: &Encoded, shortest: usize) -> Range<usize> {
        let Range { start, end } = self.letters.clone();
        let first = match &encoded.starts {
            Some(starts) => starts.partition_point(|&at| at as usize <= start).max(1) - 1,
            None => (start + 1).saturating_sub(shortest),
        };
        let last = encoded.tokens_in(0..end).end;
        first.min(last)..last
    }

    /// Why it does not lie within the sequence `id` of so many letters.
    fn why_outside(&self, id: &str, letters: usize) -> Option<String> {
        let Range { start, end } = self.letters.clone();
        (end > letters).then(|| {
            format!(
                "the span {}-{end} of {id} ends outside of its {letters} letters",
                start + 1
            )
        })
    }

    /// The span as it is on the reverse strand of a sequence of so many letters.
    #[must_use]
    pub fn reversed(&self, letters: usize) -> Self {
        Self {
            letters: letters.saturating_sub(self.letters.end)
                ..letters.saturating_sub(self.letters.start),
            ..self.clone()
        }
    }
}

/// All spans of a table.
#[derive(Debug, Clone)]
pub struct Spans {
    /// The table.
    pub path: PathBuf,
    /// BLAKE3 of its bytes, in hexadecimal.
    pub hash: String,
    by_id: HashMap<String, Vec<Span>>,
}

impl Spans {
    /// Reads a table: BED where the name ends in `.bed`, else separated by tabs, or by commas in
    /// `.csv`.
    ///
    /// # Errors
    /// Every line that is no span, and why.
    pub fn read(path: &Path) -> Result<Self, SpanError> {
        let shown = path.display();
        let one = |why: String| SpanError::Mistakes(vec![format!("{shown}: {why}")]);
        let bytes = std::fs::read(path).map_err(|error| one(error.to_string()))?;
        let text = std::str::from_utf8(&bytes).map_err(|_| one("it is not text".to_owned()))?;
        let text = text.trim_start_matches('\u{feff}');
        let is = |wanted: &str| {
            path.extension()
                .is_some_and(|e| e.eq_ignore_ascii_case(wanted))
        };
        let (rows, mut mistakes) = if is("bed") {
            bed(text)
        } else {
            table(text, if is("csv") { ',' } else { '\t' }).map_err(one)?
        };
        let mut spans = Self {
            path: path.to_owned(),
            hash: blake3::hash(&bytes).to_hex().to_string(),
            by_id: HashMap::new(),
        };
        for (id, span) in rows {
            let line = span.line;
            let of_id = spans.by_id.entry(id.clone()).or_default();
            match of_id.iter().find(|other| other.name == span.name) {
                Some(other) => mistakes.push((
                    line,
                    format!(
                        "{id} has a span {:?} on line {} already",
                        span.name, other.line
                    ),
                )),
                None => of_id.push(span),
            }
        }
        if spans.by_id.is_empty() && mistakes.is_empty() {
            return Err(one("it has no spans".to_owned()));
        }
        none_of(path, mistakes).map_err(SpanError::Mistakes)?;
        Ok(spans)
    }

    /// The spans of a sequence, in the table's order.
    #[must_use]
    pub fn of(&self, id: &str) -> &[Span] {
        self.by_id.get(id).map_or(&[], Vec::as_slice)
    }

    /// Why a span does not lie within a sequence of so many letters.
    #[must_use]
    pub fn why_outside(&self, id: &str, span: &Span, letters: usize) -> Option<String> {
        let why = span.why_outside(id, letters)?;
        Some(on_line(&self.path, span.line, &why))
    }

    /// Checks that every id is in one of the files, and every span within its sequence. Files that
    /// cannot be read are left to the run, which reports them.
    ///
    /// # Errors
    /// Every line that does not fit.
    pub(super) fn check<'s>(
        &self,
        sources: impl Iterator<Item = &'s Source>,
        tokenizer: &dyn Tokenizer,
    ) -> Result<(), SpanError> {
        let mut check = TableCheck::new(&self.path);
        for source in sources {
            if *source == Source::Stdin {
                return Err(SpanError::Stdin);
            }
            check.file(source, |record| self.compare(record, tokenizer));
        }
        check.finish(self.rows()).map_err(SpanError::Mistakes)
    }

    /// The same for sequences that are not from files.
    ///
    /// # Errors
    /// Every line that does not fit.
    pub(crate) fn check_given(
        &self,
        records: &[Record],
        tokenizer: &dyn Tokenizer,
    ) -> Result<(), SpanError> {
        let mut check = TableCheck::new(&self.path);
        for record in records {
            check.sequence(self.compare(record, tokenizer), &"");
        }
        check.finish(self.rows()).map_err(SpanError::Mistakes)
    }

    /// The id of a sequence that has spans, and those that end outside of it.
    fn compare(&self, record: &Record, tokenizer: &dyn Tokenizer) -> Option<(&str, Vec<Mistake>)> {
        let (id, own) = self.by_id.get_key_value(record.id())?;
        let letters = tokenizer.encode(&record.sequence).letters;
        let outside = own
            .iter()
            .filter_map(|span| Some((span.line, span.why_outside(id, letters)?)));
        Some((id, outside.collect()))
    }

    /// Each id, with the line of its first span.
    fn rows(&self) -> impl Iterator<Item = (u64, &str)> {
        let ids = self.by_id.iter();
        ids.filter_map(|(id, own)| Some((own.first()?.line, id.as_str())))
    }
}

/// Rows of a table with their lines, and what is wrong with other lines.
type Parsed = (Vec<(String, Span)>, Vec<Mistake>);

/// A table with a header: positions from 1, both ends included.
fn table(text: &str, delimiter: char) -> Result<Parsed, String> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter as u8)
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        // A name that is not there needs no delimiter.
        .flexible(true)
        .from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| error.to_string())?;
    let position = |name: &str| header.iter().position(|column| column == name);
    let column = |name: &str| {
        position(name).ok_or_else(|| {
            format!(
                "the first line names no column `{name}`; a table of spans has the columns `id`, \
                 `start`, `end` and, if wanted, `name`, separated by {}",
                if delimiter == ',' { "commas" } else { "tabs" }
            )
        })
    };
    let (id, start, end) = (column("id")?, column("start")?, column("end")?);
    let name = position("name");
    let mut parsed = Parsed::default();
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                parsed.1.push((line, error.to_string()));
                continue;
            }
        };
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |at: usize| record.get(at).unwrap_or_default();
        let name = name.map_or("", cell);
        match span(line, cell(start), cell(end), 1, name) {
            Ok(span) => parsed.0.push((cell(id).to_owned(), span)),
            Err(why) => parsed.1.push((line, why)),
        }
    }
    Ok(parsed)
}

/// BED: positions from 0, the end not included.
fn bed(text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for (number, row) in (1..).zip(text.lines()) {
        let is_about = ["#", "track", "browser"]
            .iter()
            .any(|word| row.starts_with(word));
        if row.trim().is_empty() || is_about {
            continue;
        }
        let columns: Vec<&str> = if row.contains('\t') {
            row.trim_end().split('\t').collect()
        } else {
            row.split_whitespace().collect()
        };
        let [id, start, end, ..] = columns[..] else {
            let why = "a line of a BED file has an id, a start and an end, separated by tabs";
            parsed.1.push((number, why.to_owned()));
            continue;
        };
        let name = columns.get(3).map_or("", |name| name.trim());
        match span(number, start, end, 0, if name == "." { "" } else { name }) {
            Ok(span) => parsed.0.push((id.to_owned(), span)),
            Err(why) => parsed.1.push((number, why)),
        }
    }
    parsed
}

/// A span from its texts; `from` is the number of a sequence's first letter.
fn span(line: u64, start: &str, end: &str, from: usize, name: &str) -> Result<Span, String> {
    let number = |what: &str, text: &str| {
        text.trim()
            .parse::<usize>()
            .map_err(|_| format!("the {what} is {text:?}, and not a whole number"))
    };
    let (start, end) = (number("start", start)?, number("end", end)?);
    if start < from {
        return Err(format!(
            "the first letter is number {from}, and not {start}"
        ));
    }
    let letters = start - from..end;
    if letters.is_empty() {
        return Err(format!("the span from {start} to {end} has no letters"));
    }
    let mut name = name.to_owned();
    if name.is_empty() {
        let _ = write!(name, "{}-{}", letters.start + 1, letters.end);
    }
    Ok(Span {
        line,
        name,
        letters,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, is_bed: bool) -> Vec<(String, String, Range<usize>)> {
        let (rows, mistakes) = if is_bed {
            bed(text)
        } else {
            table(text, '\t').expect("a header")
        };
        assert_eq!(mistakes, []);
        let row = |(id, span): (String, Span)| (id, span.name, span.letters);
        rows.into_iter().map(row).collect()
    }

    #[test]
    fn tables_count_from_one_and_bed_from_zero() {
        let table = parsed("id\tstart\tend\tname\nP1\t3\t5\tloop\nP1\t1\t1\t\n", false);
        let bed = parsed("track x\n#c\nP1\t2\t5\tloop\n\nP1 0 1\r\n", true);
        let expected = [("P1", "loop", 2..5), ("P1", "1-1", 0..1)];
        let expected = expected.map(|(id, name, span)| (id.to_owned(), name.to_owned(), span));
        assert_eq!(table, expected);
        assert_eq!(bed, expected);
    }

    #[test]
    fn a_span_has_the_tokens_that_read_its_letters() {
        let span = |letters| Span {
            line: 1,
            name: String::new(),
            letters,
        };
        let encoded = |tokens: usize, letters, starts: Option<Vec<u32>>| Encoded {
            ids: vec![0; tokens],
            letters,
            starts,
            ..Encoded::default()
        };
        // A letter a token; overlapping 3-mers; words of 4, 1 and 3 letters.
        let letters = encoded(8, 8, None);
        assert_eq!(span(2..5).tokens(&letters, 1), 2..5);
        assert_eq!(span(0..8).tokens(&letters, 1), 0..8);
        let kmers = encoded(6, 8, None);
        assert_eq!(span(3..4).tokens(&kmers, 3), 1..4);
        assert_eq!(span(0..1).tokens(&kmers, 3), 0..1);
        assert_eq!(span(7..8).tokens(&kmers, 3), 5..6);
        let words = encoded(3, 8, Some(vec![0, 4, 5]));
        assert_eq!(span(1..2).tokens(&words, 1), 0..1);
        assert_eq!(span(3..6).tokens(&words, 1), 0..3);
        assert_eq!(span(5..8).tokens(&words, 1), 2..3);
        assert_eq!(span(1..3).reversed(8).letters, 5..7);
    }
}
