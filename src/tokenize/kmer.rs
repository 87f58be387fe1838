//! DNABERT's vocabulary: a token for each k-mer, at a stride of one base.
//!
//! The rule: letters are taken in upper case, U as T; a k-mer of A, C, G and T is its token, any
//! other is one unknown token; a sequence shorter than k has none. k and the ids are the file's.

use super::alphabet::Alphabet;
use super::encoded::Encoded;
use super::error::VocabularyError;
use super::family_rules::FamilyRules;
use super::special::{self, SpecialTokens};
use super::tokenizer::Tokenizer;
use super::vocabulary::Vocabulary;

/// A letter that is not a base.
pub(super) const NO_BASE: u8 = 4;

/// Two bits for each of A, C, G, T and U, in both cases.
pub(super) const BASES: [u8; 256] = {
    let mut bases = [NO_BASE; 256];
    let letters = *b"AaCcGgTtUu";
    let mut at = 0;
    while at < letters.len() {
        bases[letters[at] as usize] = [0, 0, 1, 1, 2, 2, 3, 3, 3, 3][at];
        at += 1;
    }
    bases
};

/// The table of a vocabulary.
#[derive(Debug, Clone)]
pub struct KmerTokenizer {
    k: usize,
    /// [`BASES`], by the family's rules.
    bases: [u8; 256],
    /// The id of each k-mer, two bits a base, its first base highest.
    ids: Vec<u32>,
    special: SpecialTokens,
    size: usize,
}

impl KmerTokenizer {
    /// Derives k from the words of a vocabulary.
    ///
    /// # Errors
    /// When a special token or a k-mer is missing, or k-mers have several lengths.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        rules: &FamilyRules,
    ) -> Result<Self, VocabularyError> {
        vocabulary.check(&["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"])?;
        let special = rules.special(special::BERT, |name| vocabulary.id(name))?;
        let mut words: Vec<(&str, u32)> = vocabulary.words().collect();
        words.sort_unstable_by_key(|&(_, id)| id);
        let (k, ids) = table(&words, special.unk)?;
        Ok(Self {
            k,
            bases: rules.letters.compose(&BASES),
            ids,
            special,
            size: vocabulary.size(),
        })
    }
}

/// k, and the id of each k-mer, two bits a base, its first base highest. `words` are the k-mers of
/// a vocabulary and their ids.
///
/// # Errors
/// When a k-mer is missing, or they have several lengths.
pub(super) fn table(words: &[(&str, u32)], unk: u32) -> Result<(usize, Vec<u32>), VocabularyError> {
    let k = words.first().map_or(1, |(word, _)| word.len());
    if let Some((word, _)) = words.iter().find(|(word, _)| word.len() != k) {
        return Err(VocabularyError::SeveralK {
            first: k,
            second: word.len(),
            token: (*word).to_owned(),
        });
    }
    // No k-mer is there twice, so that as many as there can be are all.
    if u32::try_from(k).ok().and_then(|k| 4_usize.checked_pow(k)) != Some(words.len()) {
        return Err(VocabularyError::Kmers {
            k,
            found: words.len(),
        });
    }
    let mut ids = vec![unk; words.len()];
    for &(word, id) in words {
        let at = word.bytes().fold(0, |at, byte| {
            at << 2 | usize::from(BASES[usize::from(byte)])
        });
        ids[at] = id;
    }
    Ok((k, ids))
}

impl Tokenizer for KmerTokenizer {
    fn encode(&self, sequence: &[u8]) -> Encoded {
        let mut encoded = Encoded {
            letters: sequence.len(),
            ..Encoded::default()
        };
        if sequence.len() < self.k {
            return encoded;
        }
        let mask = self.ids.len() - 1;
        // The last bases, and the number of following k-mers that contain a letter that is not a
        // base.
        let (mut kmer, mut spoilt) = (0, 0);
        let mut next = |byte: u8| {
            let base = self.bases[usize::from(byte)];
            kmer = (kmer << 2 | usize::from(base)) & mask;
            spoilt = if base == NO_BASE {
                self.k
            } else {
                spoilt - usize::from(spoilt > 0)
            };
            (kmer, spoilt > 0)
        };
        let (head, tail) = sequence.split_at(self.k - 1);
        for &byte in head {
            next(byte);
        }
        let mut unknown = 0;
        encoded.ids.extend(tail.iter().map(|&byte| {
            let (kmer, spoilt) = next(byte);
            unknown += usize::from(spoilt);
            if spoilt {
                self.special.unk
            } else {
                self.ids[kmer]
            }
        }));
        encoded.unknown = unknown;
        if unknown > 0 {
            encoded.first_unknown = sequence
                .iter()
                .position(|&byte| self.bases[usize::from(byte)] == NO_BASE);
        }
        encoded
    }

    fn special(&self) -> &SpecialTokens {
        &self.special
    }

    fn alphabet(&self) -> Alphabet {
        Alphabet::Dna
    }

    fn vocabulary(&self) -> usize {
        self.size
    }

    fn span(&self) -> usize {
        self.k
    }
}
