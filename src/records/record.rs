//! A sequence with its header, as a file or a caller gives it.

use super::letters::{Letter, Letters};

/// One sequence of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The whole header line without its `>` or `@`, trailing white space trimmed; bytes that are
    /// not UTF-8 are written as `\xe9`, and `\xe9` as `\\xe9`.
    pub header: String,
    /// The letters as they stand in the file, without line ends and white space, a byte each: an
    /// ASCII one as it is, and [`OTHER`](super::OTHER) for any other.
    pub sequence: Vec<u8>,
    /// What was not kept of it.
    pub rest: Option<Rest>,
    /// The first of the letters that [`OTHER`](super::OTHER) stands for.
    pub other: Option<Letter>,
}

/// What the reader counted and did not keep of a long sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    /// How many letters.
    pub letters: u64,
    /// The last one, as it would stand in [`Record::sequence`].
    pub last: u8,
}

/// What is read of a long sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// More letters than these are an error; none: there is no limit.
    pub longest: Option<u64>,
    /// Only so many letters are kept, and the rest is counted; none: all.
    pub keep: Option<usize>,
}

impl Record {
    /// A record that comes from no file. White space in the sequence stays.
    #[must_use]
    pub fn new(header: String, sequence: Vec<u8>) -> Self {
        if sequence.is_ascii() && !sequence.contains(&b'>') {
            return Self {
                header,
                sequence,
                ..Self::default()
            };
        }
        let mut letters = Letters::default();
        letters.text(&sequence);
        Self {
            header,
            other: letters.other(),
            sequence: std::mem::take(letters.kept()),
            rest: None,
        }
    }

    /// The letter at a place of the sequence; for [`OTHER`](super::OTHER), the first that it stands
    /// for.
    #[must_use]
    pub fn letter(&self, at: usize) -> Letter {
        match (self.sequence[at], self.other) {
            (byte, _) if byte.is_ascii() => Letter::Char(char::from(byte)),
            (_, Some(other)) => other,
            (byte, None) => Letter::Byte(byte),
        }
    }

    /// The first word of the header.
    #[must_use]
    pub fn id(&self) -> &str {
        self.header.split_whitespace().next().unwrap_or("")
    }
}
