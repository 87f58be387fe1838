//! A manifest's text, and how it is written: YAML, CSV or TSV.

use std::fs;
use std::path::Path;

use super::error::Mistakes;

/// The manifest's text.
pub(super) fn text_of(path: &Path, mistakes: &mut Mistakes) -> Option<String> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            let text = match error.kind() {
                std::io::ErrorKind::NotFound => "no such file".to_owned(),
                std::io::ErrorKind::IsADirectory => "is a folder, not a manifest".to_owned(),
                _ => format!("cannot be read: {error}"),
            };
            mistakes.add(None, text);
            return None;
        }
    };
    match String::from_utf8(bytes) {
        Ok(text) => Some(
            text.strip_prefix('\u{feff}')
                .map(str::to_owned)
                .unwrap_or(text),
        ),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.split(|&byte| byte == b'\n').count();
            mistakes.add(
                line,
                "the text is not valid UTF-8: save the manifest (YAML, CSV or TSV) as UTF-8",
            );
            None
        }
    }
}

/// The format of a manifest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Yaml,
    Table(u8),
    Sequences,
}

/// Detects the format from the extension or, failing that, from the first line with text.
pub(super) fn kind_of(path: &Path, text: &str) -> Kind {
    let suffix = path.extension().and_then(|suffix| suffix.to_str());
    let suffix = suffix.unwrap_or("").to_ascii_lowercase();
    let first = text.lines().map(str::trim).find(|line| !line.is_empty());
    let first = first.unwrap_or("");
    if first.starts_with('>') {
        return Kind::Sequences;
    }
    // Tables start with the names of their columns. In some locales, spreadsheets separate CSV with
    // `;`.
    let delimiter = ['\t', ',', ';']
        .into_iter()
        .find(|&delimiter| first.contains(delimiter));
    match (suffix.as_str(), delimiter) {
        ("yaml" | "yml" | "json", _) => Kind::Yaml,
        ("tsv", _) => Kind::Table(b'\t'),
        ("csv", Some(';')) => Kind::Table(b';'),
        ("csv", _) => Kind::Table(b','),
        (_, Some(delimiter)) if !first.starts_with(['{', '#', '-']) && !first.contains(": ") => {
            Kind::Table(u8::try_from(delimiter).expect("the delimiters are ASCII"))
        }
        _ => Kind::Yaml,
    }
}
