//! A manifest in CSV or TSV -> a draft of it. The first row names the columns; an empty cell says nothing.

use super::{Draft, Entry, Field, INPUT_KEYS, Mistakes, entry_keys, key_among};

/// The draft, unless the columns are of no use.
pub(super) fn parse(text: &str, delimiter: u8, mistakes: &mut Mistakes) -> Option<Draft> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let mut rows = reader.records();

    let header = match rows.next() {
        None => {
            mistakes.add(
                None,
                "the manifest is empty: a row with the columns `sample` and `fasta` is needed",
            );
            return None;
        }
        Some(Err(error)) => {
            mistakes.add(line_of(error.position()), error.to_string());
            return None;
        }
        Some(Ok(header)) => header,
    };
    let columns = columns(&header, mistakes)?;

    let mut draft = Draft::default();
    for row in rows {
        let row = match row {
            Ok(row) => row,
            Err(error) => {
                mistakes.add(line_of(error.position()), error.to_string());
                continue;
            }
        };
        let line = first_line(text, row.position());
        if row.iter().all(str::is_empty) {
            continue;
        }
        let is_damaged = row.len() != columns.len();
        if is_damaged {
            let text = format!(
                "{} cells, but there are {} columns",
                row.len(),
                columns.len()
            );
            mistakes.add(line, text);
        }
        let fields = columns
            .iter()
            .zip(&row)
            .filter(|(_, text)| !text.is_empty());
        draft.entries.push(Entry {
            line,
            fields: fields
                .filter_map(|(column, text)| {
                    Some(Field {
                        key: (*column)?.to_owned(),
                        text: text.to_owned(),
                        line,
                    })
                })
                .collect(),
            is_damaged,
        });
    }
    if draft.entries.is_empty() {
        mistakes.add(
            None,
            "the manifest has columns but no rows: there is nothing to embed",
        );
    }
    Some(draft)
}

/// The columns' keys: none for one that is unknown, and reported. `None` if what every row needs is not there.
fn columns(
    header: &csv::StringRecord,
    mistakes: &mut Mistakes,
) -> Option<Vec<Option<&'static str>>> {
    let known = entry_keys();
    let mut columns = Vec::new();
    for name in header {
        let column = match key_among(name, &known) {
            Ok(key) if columns.contains(&Some(key)) => {
                mistakes.add(1, format!("the column `{key}` is there twice"));
                None
            }
            Ok(key) => Some(key),
            Err(text) => {
                mistakes.add(1, text.replace("no key", "no column"));
                None
            }
        };
        columns.push(column);
    }
    let has = |keys: &[&str]| columns.iter().flatten().any(|column| keys.contains(column));
    if !has(&["sample"]) || !has(&INPUT_KEYS) {
        mistakes.add(
            1,
            "the first row must name the columns, `sample` and `fasta` among them",
        );
        return None;
    }
    Some(columns)
}

/// The line on which a row's text starts: the reader's position stands before the blank lines that it skips.
fn first_line(text: &str, position: Option<&csv::Position>) -> usize {
    let byte = position.and_then(|position| usize::try_from(position.byte()).ok());
    let ahead = text.as_bytes().get(byte.unwrap_or(0)..).unwrap_or_default();
    let blank = ahead.iter().take_while(|&byte| b"\r\n".contains(byte));
    line_of(position).unwrap_or(1) + blank.filter(|&&byte| byte == b'\n').count()
}

fn line_of(position: Option<&csv::Position>) -> Option<usize> {
    position.and_then(|position| usize::try_from(position.line()).ok())
}
