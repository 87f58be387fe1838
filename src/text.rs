//! Formatting of messages: numbers with nouns, and names that may not be valid UTF-8.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

/// `1 file`, `2,000 files`: a number with its noun, which is given in the singular.
#[must_use]
pub fn counted(number: u64, noun: &str) -> String {
    let plural = match noun.char_indices().next_back() {
        _ if number == 1 => noun.to_owned(),
        Some((at, 'y')) if !noun[..at].ends_with(['a', 'e', 'o', 'u']) => {
            format!("{}ies", &noun[..at])
        }
        _ if noun.ends_with(['s', 'x']) || noun.ends_with("ch") => format!("{noun}es"),
        _ => format!("{noun}s"),
    };
    format!("{} {plural}", thousands(number))
}

/// The verb for a number: `1 file is`, `2 files are`.
#[must_use]
pub fn are(number: u64) -> &'static str {
    if number == 1 { "is" } else { "are" }
}

/// The verb for a number: `1 file was`, `2 files were`.
#[must_use]
pub fn was(number: u64) -> &'static str {
    if number == 1 { "was" } else { "were" }
}

/// A number with a comma between thousands.
#[must_use]
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A name of a file, its bytes that are not UTF-8 as `\xe9`: names that differ stay different.
#[must_use]
pub fn lossless_name(name: &OsStr) -> String {
    lossless(name.as_bytes()).into_owned()
}

/// Text with bytes that are not valid UTF-8 written as `\xe9`. Different texts stay different:
/// backslashes are doubled before text that looks like an escape, so that an odd number of
/// backslashes marks an escaped byte.
pub(crate) fn lossless(bytes: &[u8]) -> Cow<'_, str> {
    fn is_escape(rest: &[u8]) -> bool {
        matches!(
            rest,
            [
                b'x',
                b'8'..=b'9' | b'a'..=b'f',
                b'0'..=b'9' | b'a'..=b'f',
                ..,
            ]
        )
    }
    if let Ok(text) = str::from_utf8(bytes)
        && !memchr::memchr_iter(b'\\', bytes).any(|at| is_escape(&bytes[at + 1..]))
    {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        let mut valid = chunk.valid();
        while let Some(at) = valid.find('\\') {
            let run = valid.len() - at - valid[at..].trim_start_matches('\\').len();
            let (before, rest) = valid.split_at(at + run);
            text.push_str(before);
            let is_before_byte = rest.is_empty() && !chunk.invalid().is_empty();
            if is_before_byte || is_escape(rest.as_bytes()) {
                text.extend(std::iter::repeat_n('\\', run));
            }
            valid = rest;
        }
        text.push_str(valid);
        text.push_str(&escape_bytes(chunk.invalid(), "\\x"));
    }
    Cow::Owned(text)
}

/// Text, its bytes that are not UTF-8 as two hexadecimal digits behind a mark.
pub(crate) fn escape_bytes(bytes: &[u8], mark: &str) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(mark);
            text.extend(
                [byte >> 4, byte & 15]
                    .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{are, counted, was};

    #[test]
    fn counts_agree_with_their_nouns() {
        for (number, noun, expected) in [
            (0, "file", "0 files"),
            (1, "file", "1 file"),
            (2, "batch", "2 batches"),
            (1, "batch", "1 batch"),
            (1_234, "entry", "1,234 entries"),
            (3, "index", "3 indexes"),
            (2, "reading frame", "2 reading frames"),
            (2, "key", "2 keys"),
        ] {
            assert_eq!(counted(number, noun), expected);
        }
        assert_eq!([was(0), was(1), was(2)], ["were", "was", "were"]);
        assert_eq!([are(0), are(1), are(2)], ["are", "is", "are"]);
    }
}
