//! A token for each letter: ESM's vocabulary, and BERTs of single residues.
//!
//! The rule: letters are taken in upper case; one terminal `*` is dropped; a letter of the
//! vocabulary (in ESM's X, B, U, Z, O, `.` and `-` too) is its token; any other byte is one unknown
//! token. Where all letters are A, C, G, T, U and N, it is DNA's: U is read as T, unless it has U
//! and not T, and no `*` is dropped. In a BERT's vocabulary of proteins, `|` between two chains is
//! `[SEP]`, as it stands there in training (`IgBert`).

use super::alphabet::Alphabet;
use super::encoded::{Encoded, unknown_tokens};
use super::error::VocabularyError;
use super::family_rules::FamilyRules;
use super::special::{self, SpecialTokens};
use super::tokenizer::Tokenizer;
use super::vocabulary::Vocabulary;

/// The tokens that every protein needs.
const AMINO_ACIDS: [&str; 20] = [
    "A", "C", "D", "E", "F", "G", "H", "I", "K", "L", "M", "N", "P", "Q", "R", "S", "T", "V", "W",
    "Y",
];

/// The table of a vocabulary.
#[derive(Debug, Clone)]
pub struct LetterTokenizer {
    /// The id of each byte.
    table: [u32; 256],
    special: SpecialTokens,
    alphabet: Alphabet,
    size: usize,
}

impl LetterTokenizer {
    /// From the text of ESM's `vocab.txt`.
    ///
    /// # Errors
    /// When it lacks a token that every protein needs, has one twice, or a word of several letters.
    pub fn esm(text: &str) -> Result<Self, VocabularyError> {
        Self::esm_with(text, &FamilyRules::default())
    }

    /// The same, with a family's own rules.
    ///
    /// # Errors
    /// As [`LetterTokenizer::esm`].
    pub fn esm_with(text: &str, rules: &FamilyRules) -> Result<Self, VocabularyError> {
        let vocabulary = Vocabulary::read(text)?;
        let names = rules.special.unwrap_or(special::ESM);
        let mut needed = names.front.to_vec();
        needed.push(names.pad);
        needed.extend(names.behind);
        needed.push(names.unk);
        needed.extend(AMINO_ACIDS);
        vocabulary.check(&needed)?;
        let special = rules.special(special::ESM, |name| vocabulary.id(name))?;
        // transformers cuts every token of the file out of a sequence, the longest first.
        let long = vocabulary.words().filter(|(word, _)| {
            word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_alphabetic())
        });
        if let Some((token, id)) = long.min_by_key(|&(_, id)| id) {
            return Err(VocabularyError::Word {
                token: token.to_owned(),
                id,
            });
        }
        let mut tokenizer = Self::new(&vocabulary, special, rules);
        // As in a BERT's: it stands between two chains in training (`IgT5`).
        if let (["</s>"], [end]) = (names.behind, &tokenizer.special.behind[..])
            && vocabulary.id("|").is_none()
        {
            tokenizer.table[usize::from(b'|')] = *end;
        }
        Ok(tokenizer)
    }

    /// From a BERT's vocabulary of single letters.
    ///
    /// # Errors
    /// When it lacks a special token or has a word of several letters.
    pub(super) fn bert(
        vocabulary: &Vocabulary,
        rules: &FamilyRules,
    ) -> Result<Self, VocabularyError> {
        let special = rules.special(special::BERT, |name| vocabulary.id(name))?;
        let long = vocabulary.words().filter(|(word, _)| word.len() != 1);
        if let Some((token, id)) = long.min_by_key(|&(_, id)| id) {
            return Err(VocabularyError::Word {
                token: token.to_owned(),
                id,
            });
        }
        let mut tokenizer = Self::new(vocabulary, special, rules);
        let end = vocabulary.id("[SEP]");
        if let (Alphabet::Protein, Some(end)) = (tokenizer.alphabet, end)
            && tokenizer.table[usize::from(b'|')] == tokenizer.special.unk
        {
            tokenizer.table[usize::from(b'|')] = end;
        }
        Ok(tokenizer)
    }

    fn new(vocabulary: &Vocabulary, special: SpecialTokens, rules: &FamilyRules) -> Self {
        let mut table = [special.unk; 256];
        let mut alphabet = Alphabet::Dna;
        for (letter, id) in vocabulary.letters() {
            table[usize::from(letter)] = id;
            if letter.is_ascii_alphabetic() && !b"ACGTUN".contains(&letter) {
                alphabet = Alphabet::Protein;
            }
        }
        let alphabet = rules.alphabet.unwrap_or(alphabet);
        if alphabet == Alphabet::Dna && table[usize::from(b'U')] == special.unk {
            table[usize::from(b'U')] = table[usize::from(b'T')];
        }
        for letter in b'a'..=b'z' {
            table[usize::from(letter)] = table[usize::from(letter.to_ascii_uppercase())];
        }
        Self {
            table: rules.letters.compose(&table),
            special,
            alphabet,
            size: vocabulary.size(),
        }
    }

    /// The tokens of all of these letters.
    fn encode_all(&self, residues: &[u8], dropped_stop: bool) -> Encoded {
        let unk = self.special.unk;
        let ids: Vec<u32> = residues
            .iter()
            .map(|&residue| self.table[usize::from(residue)])
            .collect();
        let (unknown, first_unknown) = unknown_tokens(&ids, unk);
        Encoded {
            ids,
            letters: residues.len(),
            unknown,
            first_unknown,
            dropped_stop,
            starts: None,
        }
    }
}

impl Tokenizer for LetterTokenizer {
    fn encode(&self, sequence: &[u8]) -> Encoded {
        match sequence {
            [residues @ .., b'*'] if self.alphabet == Alphabet::Protein => {
                self.encode_all(residues, true)
            }
            residues => self.encode_all(residues, false),
        }
    }

    fn encode_beginning(&self, beginning: &[u8]) -> Encoded {
        self.encode_all(beginning, false)
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
}
