//! Parses a manifest in CSV or TSV. The first row with text names the columns. Empty cells set
//! nothing, and empty rows and columns, which spreadsheets write as `,,,`, are ignored.

use super::draft::{Draft, Field, FileEntry};
use super::error::Mistakes;
use super::keys::{INPUT_KEYS, KeyPosition, entry_keys, key_among};
use crate::text::counted;

/// A column, as named in the first row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Known(&'static str),
    /// An unknown name, which was already reported.
    Unknown,
    /// No name; its cells must be empty as well.
    Unnamed,
}

/// Parses the table; `None` if its columns are unusable.
pub(super) fn parse(text: &str, delimiter: u8, mistakes: &mut Mistakes) -> Option<Draft> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let mut rows = reader.records();

    let is_blank = |row: &csv::StringRecord| row.iter().all(str::is_empty);
    let header = rows.find(|row| !row.as_ref().is_ok_and(is_blank));
    let header = match header {
        None => {
            mistakes.add(
                None,
                "the manifest is empty; it needs a first row that names the columns `sample` and \
                 `fasta`",
            );
            return None;
        }
        Some(Err(error)) => {
            mistakes.add(line_of(error.position()), error.to_string());
            return None;
        }
        Some(Ok(header)) => header,
    };
    let columns = columns(&header, first_line(text, header.position()), mistakes)?;

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
        if is_blank(&row) {
            continue;
        }
        draft.entries.push(entry(&row, line, &columns, mistakes));
    }
    if draft.entries.is_empty() {
        mistakes.add(
            None,
            "the manifest has no rows below the first, so there is nothing to embed",
        );
    }
    Some(draft)
}

/// The entry of a file, from one row.
fn entry(
    row: &csv::StringRecord,
    line: usize,
    columns: &[Column],
    mistakes: &mut Mistakes,
) -> FileEntry {
    let blank = row.iter().rev().take_while(|text| text.is_empty()).count();
    let filled = row.len() - blank;
    let named = named(columns);
    let is_damaged = row.len() < named || filled > columns.len();
    if is_damaged {
        let cells = row.len().min(filled.max(named));
        let text = format!(
            "the row has {}, but the table has {}",
            counted(cells as u64, "cell"),
            counted(named as u64, "column")
        );
        mistakes.add(line, text);
    }
    let mut fields = Vec::new();
    for (number, (column, text)) in columns.iter().zip(row).enumerate() {
        match column {
            Column::Known(key) if !text.is_empty() => fields.push(Field {
                key: (*key).to_owned(),
                text: text.to_owned(),
                line,
            }),
            Column::Unnamed if !text.is_empty() => mistakes.add(
                line,
                format!(
                    "`{}` is in column {}, which has no name in the first row",
                    text.escape_debug(),
                    number + 1
                ),
            ),
            _ => {}
        }
    }
    FileEntry {
        line,
        fields,
        is_damaged,
    }
}

/// The columns, or `None` if a required one is missing.
fn columns(
    header: &csv::StringRecord,
    line: usize,
    mistakes: &mut Mistakes,
) -> Option<Vec<Column>> {
    let known = entry_keys();
    let mut columns = Vec::new();
    for name in header {
        let column = match key_among(name, &known, KeyPosition::Column) {
            _ if name.is_empty() => Column::Unnamed,
            Ok(key) if columns.contains(&Column::Known(key)) => {
                mistakes.add(line, format!("the column `{key}` occurs twice"));
                Column::Unknown
            }
            Ok(key) => Column::Known(key),
            Err(text) => {
                mistakes.add(line, text);
                Column::Unknown
            }
        };
        columns.push(column);
    }
    let has = |keys: &[&'static str]| {
        keys.iter()
            .any(|&key| columns.contains(&Column::Known(key)))
    };
    if !has(&["sample"]) || !has(&INPUT_KEYS) {
        mistakes.add(
            line,
            "the first row must name the columns, including `sample` and `fasta`",
        );
        return None;
    }
    Some(columns)
}

/// How many columns there are up to the last one with a name.
fn named(columns: &[Column]) -> usize {
    columns
        .iter()
        .rposition(|&column| column != Column::Unnamed)
        .map_or(0, |last| last + 1)
}

/// The line on which the text of a row starts. The reader's position is before the blank lines that
/// it skips.
fn first_line(text: &str, position: Option<&csv::Position>) -> usize {
    let byte = position.and_then(|position| usize::try_from(position.byte()).ok());
    let ahead = text.as_bytes().get(byte.unwrap_or(0)..).unwrap_or_default();
    let blank = ahead.iter().take_while(|&byte| b"\r\n".contains(byte));
    line_of(position).unwrap_or(1) + blank.filter(|&&byte| byte == b'\n').count()
}

fn line_of(position: Option<&csv::Position>) -> Option<usize> {
    position.and_then(|position| usize::try_from(position.line()).ok())
}
