//! A sequence with its header, from a file or a caller.

use super::letters::{Letter, Letters};

/// One sequence of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The whole header line without its `>` or `@`, trailing white space trimmed; bytes that are
    /// not UTF-8 are written as `\xe9`, and `\xe9` as `\\xe9`.
    pub header: String,
    /// The letters in the file, without line ends and white space, one byte each: ASCII letters
    /// unchanged, and [`OTHER`](super::OTHER) for any other.
    pub sequence: Vec<u8>,
    /// The part of the sequence that was not kept.
    pub rest: Option<Rest>,
    /// The first letter that [`OTHER`](super::OTHER) represents.
    pub other: Option<Letter>,
}

/// What the reader counted and did not keep of a long sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    /// Number of letters.
    pub letters: u64,
    /// The last letter, as it would be in [`Record::sequence`].
    pub last: u8,
}

/// What is read of a long sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// More residues are an error; `None`: no limit.
    pub longest: Option<u64>,
    /// How many letters a residue has.
    pub letters_per_residue: u64,
    /// Only this many letters are kept, the rest is counted; `None`: all are kept.
    pub keep: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            longest: None,
            letters_per_residue: 1,
            keep: None,
        }
    }
}

impl Record {
    /// A record that is not from a file. White space in the sequence is kept.
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

    /// The letter at a position of the sequence; for [`OTHER`](super::OTHER), the first letter that
    /// it represents.
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
