//! `vocab.txt`: a token a line, in the order of the ids from 0.

use std::collections::HashMap;

use super::error::VocabularyError;

/// The tokens and their ids.
#[derive(Debug)]
pub struct Vocabulary<'a> {
    ids: HashMap<&'a str, u32>,
    size: usize,
}

impl<'a> Vocabulary<'a> {
    /// Reads the file's text.
    ///
    /// # Errors
    /// If a token occurs twice.
    pub fn read(text: &'a str) -> Result<Self, VocabularyError> {
        let mut ids: HashMap<&str, u32> = HashMap::new();
        let mut size = 0;
        for (id, token) in (0_u32..).zip(text.lines()) {
            let token = token.trim();
            // Nothing can be an empty token; its line counts all the same.
            if token.is_empty() {
                continue;
            }
            size = id as usize + 1;
            if let Some(first) = ids.insert(token, id) {
                return Err(VocabularyError::Twice {
                    token: token.to_owned(),
                    first,
                    second: id,
                });
            }
        }
        Ok(Self { ids, size })
    }

    /// One more than the highest id.
    pub fn size(&self) -> usize {
        self.size
    }

    /// A token's id.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Checks that the vocabulary has these tokens.
    ///
    /// # Errors
    /// Names all that are missing.
    pub fn check(&self, tokens: &[&str]) -> Result<(), VocabularyError> {
        let missing: Vec<String> = tokens
            .iter()
            .filter(|&&token| !self.ids.contains_key(token))
            .map(|&token| token.to_owned())
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(VocabularyError::Missing { tokens: missing })
        }
    }

    /// The tokens that are single letters, digits or signs.
    pub fn letters(&self) -> impl Iterator<Item = (u8, u32)> {
        self.ids
            .iter()
            .filter_map(|(token, &id)| match *token.as_bytes() {
                [letter @ 0x21..=0x7e] => Some((letter, id)),
                _ => None,
            })
    }

    /// All tokens except special ones, which are in brackets: `[CLS]`, `[unused1]`.
    pub fn words(&self) -> impl Iterator<Item = (&'a str, u32)> {
        self.ids
            .iter()
            .map(|(&token, &id)| (token, id))
            .filter(|(token, _)| {
                !(token.len() > 2 && token.starts_with('[') && token.ends_with(']'))
            })
    }
}
