//! ESM's vocabulary: a token for each residue.
//!
//! The rule: letters are taken in upper case; one terminal `*` is dropped; a letter of the vocabulary (X, B, U, Z,
//! O, `.` and `-` among them) is its token; any other byte is one unknown token.

use std::collections::HashMap;
use std::path::Path;

use super::{Encoded, Special, Tokenizer, VocabularyError};

/// Without these no protein can be embedded.
const NEEDED: [&str; 24] = [
    "<cls>", "<pad>", "<eos>", "<unk>", "A", "C", "D", "E", "F", "G", "H", "I", "K", "L", "M", "N",
    "P", "Q", "R", "S", "T", "V", "W", "Y",
];

/// The table of a vocabulary.
#[derive(Debug, Clone)]
pub struct EsmTokenizer {
    /// The id of each byte.
    table: [u32; 256],
    special: Special,
}

impl EsmTokenizer {
    /// Reads a model's `vocab.txt`: a token a line, in the order of the ids from 0.
    ///
    /// # Errors
    /// When it can't be read, or lacks a token that every protein needs.
    pub fn from_file(path: &Path) -> Result<Self, VocabularyError> {
        let text = std::fs::read_to_string(path).map_err(|source| VocabularyError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::from_vocabulary(&text)
    }

    /// The same from the file's text.
    ///
    /// # Errors
    /// When it lacks a token that every protein needs, or has one twice.
    pub fn from_vocabulary(text: &str) -> Result<Self, VocabularyError> {
        let mut ids: HashMap<&str, u32> = HashMap::new();
        for (id, token) in (0_u32..).zip(text.lines()) {
            let token = token.trim();
            if let Some(first) = ids.insert(token, id).filter(|_| !token.is_empty()) {
                return Err(VocabularyError::Twice {
                    token: token.to_owned(),
                    first,
                    second: id,
                });
            }
        }
        let tokens: Vec<String> = NEEDED
            .iter()
            .filter(|&token| !ids.contains_key(token))
            .map(|&token| token.to_owned())
            .collect();
        if !tokens.is_empty() {
            return Err(VocabularyError::Missing { tokens });
        }
        let special = Special {
            cls: ids["<cls>"],
            eos: ids["<eos>"],
            pad: ids["<pad>"],
            unk: ids["<unk>"],
        };
        let mut table = [special.unk; 256];
        for (&token, &id) in &ids {
            if let [letter @ 0x21..=0x7e] = *token.as_bytes() {
                table[usize::from(letter)] = id;
            }
        }
        for letter in b'a'..=b'z' {
            table[usize::from(letter)] = table[usize::from(letter.to_ascii_uppercase())];
        }
        Ok(Self { table, special })
    }
}

impl Tokenizer for EsmTokenizer {
    fn encode(&self, sequence: &[u8]) -> Encoded {
        let (residues, dropped_stop) = match sequence {
            [residues @ .., b'*'] => (residues, true),
            residues => (residues, false),
        };
        let unk = self.special.unk;
        let ids: Vec<u32> = residues
            .iter()
            .map(|&residue| self.table[usize::from(residue)])
            .collect();
        let unknown = ids.iter().filter(|&&id| id == unk).count();
        let first_unknown = (unknown > 0)
            .then(|| ids.iter().position(|&id| id == unk))
            .flatten();
        Encoded {
            ids,
            unknown,
            first_unknown,
            dropped_stop,
            starts: None,
        }
    }

    fn special(&self) -> Special {
        self.special
    }
}
