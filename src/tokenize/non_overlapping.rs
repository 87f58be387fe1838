//! Nucleotide Transformer's vocabulary: k-mers that do not overlap, and single letters.
//!
//! The rule: letters are taken in upper case, U as T; from the left, k letters that are all A, C, G
//! or T are one token, and otherwise the next letter is a token of its own: A, C, G, T and N have
//! one, any other letter is one unknown token. So the letters before an N or at the end that do not
//! fill a k-mer are single ones, and the next k-mer starts behind the N. k and the ids are the
//! file's.

use super::alphabet::Alphabet;
use super::bpe_merges::position;
use super::encoded::Encoded;
use super::error::VocabularyError;
use super::family_rules::FamilyRules;
use super::kmer::{BASES, NO_BASE};
use super::special::{self, SpecialTokens};
use super::tokenizer::Tokenizer;
use super::vocabulary::Vocabulary;

/// The table of a vocabulary.
#[derive(Debug, Clone)]
pub struct NonOverlappingTokenizer {
    k: usize,
    /// [`BASES`], by the family's rules.
    bases: [u8; 256],
    /// The id of each k-mer, two bits a base, its first base highest.
    kmers: Vec<u32>,
    /// The id of each letter by itself.
    letters: [u32; 256],
    special: SpecialTokens,
    size: usize,
}

impl NonOverlappingTokenizer {
    /// Derives k from the words of a vocabulary.
    ///
    /// # Errors
    /// When a special token, a letter or a k-mer is missing, k-mers have several lengths, or there
    /// is any other word.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        rules: &FamilyRules,
    ) -> Result<Self, VocabularyError> {
        vocabulary.check(&["A", "C", "G", "T", "N"])?;
        let special = rules.special(special::NUCLEOTIDE_TRANSFORMER, |name| vocabulary.id(name))?;
        let is_special = |word: &str| word.starts_with('<') && word.ends_with('>');
        let mut words: Vec<(&str, u32)> = vocabulary
            .words()
            .filter(|(word, _)| !is_special(word) && word.len() > 1)
            .collect();
        words.sort_unstable_by_key(|&(_, id)| id);
        let of_bases = |word: &str| word.bytes().all(|byte| b"ACGT".contains(&byte));
        if let Some((word, id)) = words.iter().find(|(word, _)| !of_bases(word)) {
            return Err(VocabularyError::Word {
                token: (*word).to_owned(),
                id: *id,
            });
        }
        let (k, kmers) = super::kmer::table(&words, special.unk)?;
        let mut letters = [special.unk; 256];
        for (letter, id) in vocabulary.letters() {
            if b"ACGTN".contains(&letter) {
                letters[usize::from(letter)] = id;
            }
        }
        letters[usize::from(b'U')] = letters[usize::from(b'T')];
        for letter in b'a'..=b'z' {
            letters[usize::from(letter)] = letters[usize::from(letter.to_ascii_uppercase())];
        }
        let around = special.front.iter().chain(&special.behind);
        let ids = around.chain(&kmers).chain(&letters);
        let highest = ids.max().map_or(0, |&id| id as usize);
        Ok(Self {
            k,
            bases: rules.letters.compose(&BASES),
            kmers,
            letters: rules.letters.compose(&letters),
            special,
            size: highest + 1,
        })
    }

    /// The id of the k-mer that begins a sequence, or else how many letters from there are single
    /// ones: the bases before the next letter that is none, and all such letters from there; or the
    /// rest.
    fn kmer(&self, sequence: &[u8]) -> Result<u32, usize> {
        let Some(letters) = sequence.get(..self.k) else {
            return Err(sequence.len());
        };
        let (mut kmer, mut any) = (0, 0);
        for &letter in letters {
            let base = self.bases[usize::from(letter)];
            any |= base;
            kmer = kmer << 2 | usize::from(base);
        }
        if any < NO_BASE {
            return Ok(self.kmers[kmer]);
        }
        let is_base = |letter: &u8| self.bases[usize::from(*letter)] != NO_BASE;
        let bases = letters.iter().take_while(|letter| is_base(letter)).count();
        let others = &sequence[bases..];
        Err(bases + others.iter().take_while(|letter| !is_base(letter)).count())
    }
}

impl Tokenizer for NonOverlappingTokenizer {
    fn encode(&self, sequence: &[u8]) -> Encoded {
        let most = sequence.len() / self.k + self.k;
        let (mut ids, mut starts) = (Vec::with_capacity(most), Vec::with_capacity(most));
        let (mut unknown, mut first_unknown) = (0, None);
        let mut at = 0;
        while at < sequence.len() {
            match self.kmer(&sequence[at..]) {
                Ok(id) => {
                    ids.push(id);
                    starts.push(position(at));
                    at += self.k;
                }
                Err(singles) => {
                    for &letter in &sequence[at..at + singles] {
                        let id = self.letters[usize::from(letter)];
                        if id == self.special.unk {
                            unknown += 1;
                            first_unknown.get_or_insert(at);
                        }
                        ids.push(id);
                        starts.push(position(at));
                        at += 1;
                    }
                }
            }
        }
        Encoded {
            ids,
            letters: sequence.len(),
            unknown,
            first_unknown,
            dropped_stop: false,
            starts: Some(starts),
        }
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

    fn letters_per_token(&self) -> Option<usize> {
        Some(self.k)
    }
}
