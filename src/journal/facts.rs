//! What results depend on: the model, the graph and the options as facts, and the input's bytes as
//! a hash.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest;

/// Names and values of everything that affects the values of a file, except its sequences.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Facts(pub Vec<(String, String)>);

/// Longer values, such as hashes, are not shown in messages; it is enough to say that they differ.
const TOLD: usize = 32;

impl Facts {
    fn get(&self, key: &str) -> Option<&str> {
        let pair = self.0.iter().find(|(name, _)| name == key);
        pair.map(|(_, value)| value.as_str())
    }

    /// What differs from the facts of before, in words; none when nothing does.
    #[must_use]
    pub fn changes(&self, before: &Facts) -> Option<String> {
        let mut changes = Vec::new();
        for (key, now) in &self.0 {
            match before.get(key) {
                Some(then) if then == now => {}
                Some(then) if then.len().max(now.len()) <= TOLD => {
                    changes.push(format!("{key} was {then} and is {now}"));
                }
                Some(_) => changes.push(format!("{key} differs")),
                None if now.len() <= TOLD => changes.push(format!("{key} is {now}")),
                None => changes.push(format!("{key} was not recorded")),
            }
        }
        for (key, _) in &before.0 {
            if self.get(key).is_none() {
                changes.push(format!("{key} is missing now"));
            }
        }
        (!changes.is_empty()).then(|| changes.join(", "))
    }
}

/// The bytes of an input file, as they were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFingerprint {
    /// How many bytes were read: all but what may follow a compressed stream's end.
    pub read: u64,
    /// BLAKE3 of them, in hexadecimal.
    pub hash: String,
    /// The file's length; none when it has none, as a pipe.
    pub length: Option<u64>,
}

impl InputFingerprint {
    /// Whether a file still has these contents.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn is_still(&self, path: &Path) -> io::Result<bool> {
        // The type is checked before the file is opened, because opening and closing a pipe would
        // disturb its writer.
        let about = fs::metadata(path)?;
        if !about.is_file() || self.length != Some(about.len()) {
            return Ok(false);
        }
        let file = File::open(path)?;
        Ok(digest::of_file(&file, self.read)? == self.hash)
    }
}

/// Hashes an input while it is read.
#[derive(Debug, Default)]
pub struct InputHash {
    hasher: blake3::Hasher,
    read: u64,
}

impl InputHash {
    /// Bytes that were read next.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.read += bytes.len() as u64;
    }

    /// The input up to here.
    #[must_use]
    pub fn finish(&self, length: Option<u64>) -> InputFingerprint {
        InputFingerprint {
            read: self.read,
            hash: self.hasher.finalize().to_hex().to_string(),
            length,
        }
    }
}

/// A 64-bit hash of the header and the sequence that identifies a record.
#[must_use]
pub fn record_hash(header: &str, sequence: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(header.len() as u64).to_le_bytes());
    hasher.update(header.as_bytes());
    hasher.update(sequence);
    first_bits(&hasher)
}

/// Identifies a span of a record: its name, and its range of letters.
#[must_use]
pub fn span_hash(record: u64, name: &str, letters: &Range<usize>) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"span");
    for number in [record, letters.start as u64, letters.end as u64] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(name.as_bytes());
    first_bits(&hasher)
}

/// The first 64 bits of a hash.
fn first_bits(hasher: &blake3::Hasher) -> u64 {
    let hash = hasher.finalize();
    let (words, _) = hash.as_bytes().as_chunks();
    u64::from_le_bytes(words[0])
}

/// Identifies a part of a record: its strand, and its range of tokens in the strand.
#[must_use]
pub fn part_hash(record: u64, is_reverse: bool, tokens: &Range<usize>) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"part");
    hasher.update(&[u8::from(is_reverse)]);
    for number in [record, tokens.start as u64, tokens.end as u64] {
        hasher.update(&number.to_le_bytes());
    }
    first_bits(&hasher)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(pairs: &[(&str, &str)]) -> Facts {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Facts(pairs.iter().map(own).collect())
    }

    #[test]
    fn changes_are_told_by_name() {
        let before = facts(&[("pooling", "mean"), ("weights", &"a".repeat(64))]);
        assert_eq!(before.changes(&before), None);
        let now = facts(&[("pooling", "cls"), ("weights", &"b".repeat(64)), ("x", "1")]);
        assert_eq!(
            now.changes(&before).as_deref(),
            Some("pooling was mean and is cls, weights differs, x is 1")
        );
        let hash = facts(&[("tokens", &"c".repeat(64))]);
        assert_eq!(
            hash.changes(&facts(&[])).as_deref(),
            Some("tokens was not recorded")
        );
        assert_eq!(
            facts(&[]).changes(&facts(&[("x", "1")])).as_deref(),
            Some("x is missing now")
        );
    }
}
