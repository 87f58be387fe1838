//! `SaProt`'s vocabulary: a token for each residue and its structure, which are two letters.
//!
//! The rule: letters are taken in pairs from the beginning, each as it is, since upper case is a
//! residue and lower case a structure; a pair of the vocabulary is its token, any other is one
//! unknown token. A letter at the end that has no partner is none: a record with one is refused.

use super::alphabet::Alphabet;
use super::encoded::{Encoded, unknown_tokens};
use super::error::VocabularyError;
use super::family_rules::FamilyRules;
use super::special::{self, SpecialTokens};
use super::tokenizer::Tokenizer;
use super::vocabulary::Vocabulary;

/// The table of a vocabulary.
#[derive(Debug, Clone)]
pub struct PairTokenizer {
    /// The id of each two bytes, the first one's row after row.
    table: Vec<u32>,
    special: SpecialTokens,
    alphabet: Alphabet,
    size: usize,
}

/// Where the table has a pair.
fn place(pair: [u8; 2]) -> usize {
    usize::from(u16::from_be_bytes(pair))
}

impl PairTokenizer {
    /// From the words of a vocabulary, with a family's own rules.
    ///
    /// # Errors
    /// When a special token is missing, or a word is not of two letters.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        rules: &FamilyRules,
    ) -> Result<Self, VocabularyError> {
        let special = rules.special(special::ESM, |name| vocabulary.id(name))?;
        let mut table = vec![special.unk; 1 << 16];
        let mut others = Vec::new();
        for (word, id) in vocabulary.words() {
            match *word.as_bytes() {
                [first, second] => table[place([first, second])] = id,
                _ if word.starts_with('<') && word.ends_with('>') => {}
                _ => others.push((id, word)),
            }
        }
        if let Some((id, word)) = others.into_iter().min() {
            return Err(VocabularyError::NoPair {
                token: word.to_owned(),
                id,
            });
        }
        Ok(Self {
            table,
            special,
            alphabet: rules.alphabet.unwrap_or(Alphabet::Protein),
            size: vocabulary.size(),
        })
    }
}

impl Tokenizer for PairTokenizer {
    fn encode(&self, sequence: &[u8]) -> Encoded {
        let (pairs, _) = sequence.as_chunks();
        let unk = self.special.unk;
        let ids: Vec<u32> = pairs.iter().map(|&pair| self.table[place(pair)]).collect();
        let (unknown, first_unknown) = unknown_tokens(&ids, unk);
        Encoded {
            letters: ids.len(),
            ids,
            unknown,
            first_unknown: first_unknown.map(|pair| 2 * pair),
            dropped_stop: false,
            starts: None,
        }
    }

    fn special(&self) -> &SpecialTokens {
        &self.special
    }

    fn alphabet(&self) -> Alphabet {
        self.alphabet
    }

    fn vocabulary(&self) -> usize {
        self.size
    }

    fn letters_per_residue(&self) -> usize {
        2
    }
}
