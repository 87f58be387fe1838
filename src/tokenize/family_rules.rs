//! The rules of a model family for the letters of its sequences, in addition to the vocabulary;
//! tokenizers apply them first.

use seqembed_onnx::Family;

use super::alphabet::Alphabet;
use super::error::VocabularyError;
use super::special::{self, SpecialNames, SpecialTokens};

/// A model family's own rules. The default is what each kind of tokenizer does by itself.
#[derive(Debug, Clone, Default)]
pub struct FamilyRules {
    /// The alphabet of the sequences; `None`: derived from the vocabulary.
    pub alphabet: Option<Alphabet>,
    /// Letters that are read as others.
    pub letters: LetterRules,
    /// The special tokens; `None`: those that are usual for the kind of tokenizer.
    pub special: Option<SpecialNames<'static>>,
    /// How many letters byte pairs read on average, where windows are cut by tokens.
    pub letters_per_token: Option<usize>,
}

impl FamilyRules {
    /// The rules of a model's family.
    #[must_use]
    pub fn of(family: &dyn Family) -> Self {
        let mut letters = LetterRules::default();
        for &(letter, other) in family.replaced_letters() {
            letters = letters.read_as(&[letter], other);
        }
        Self {
            alphabet: family.alphabet().map(Alphabet::from),
            letters,
            special: family.special_tokens(),
            letters_per_token: family.letters_per_token(),
        }
    }

    /// The ids of the special tokens: the family's, or else the `usual` ones.
    ///
    /// # Errors
    /// Names all tokens that the vocabulary lacks.
    pub(super) fn special(
        &self,
        usual: SpecialNames,
        id_of: impl Fn(&str) -> Option<u32>,
    ) -> Result<SpecialTokens, VocabularyError> {
        special::ids(&self.special.unwrap_or(usual), id_of)
    }
}

/// Letters that are read as others before they are looked up, in upper and lower case alike:
/// `ProtT5` and `ProtBert` read `U`, `Z`, `O` and `B` as `X`. None by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterRules {
    table: [u8; 256],
}

impl Default for LetterRules {
    fn default() -> Self {
        let mut table = [0; 256];
        for (byte, to) in (0..=u8::MAX).zip(&mut table) {
            *to = byte;
        }
        Self { table }
    }
}

impl LetterRules {
    /// These rules, and each of `letters` read as `other`.
    #[must_use]
    pub fn read_as(mut self, letters: &[u8], other: u8) -> Self {
        for &letter in letters {
            for letter in [letter.to_ascii_uppercase(), letter.to_ascii_lowercase()] {
                self.table[usize::from(letter)] = other;
            }
        }
        self
    }

    /// What a letter is read as.
    #[must_use]
    pub fn apply(&self, letter: u8) -> u8 {
        self.table[usize::from(letter)]
    }

    /// A table by letter, as these rules change it.
    pub(super) fn compose<T: Copy>(&self, table: &[T; 256]) -> [T; 256] {
        self.table.map(|letter| table[usize::from(letter)])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::TokenizerKind;
    use super::super::special::ESM;
    use super::*;

    /// A vocabulary of amino acids with ESM's special tokens, and one with BERT's.
    fn proteins(special: [&str; 4]) -> String {
        let letters = "ACDEFGHIKLMNPQRSTVWYX".split("").filter(|s| !s.is_empty());
        let lines: Vec<&str> = special.into_iter().chain(letters).collect();
        lines.join("\n")
    }

    fn kmers(k: usize) -> String {
        let mut lines: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
            .map(str::to_owned)
            .to_vec();
        for number in 0..4_usize.pow(u32::try_from(k).expect("a small number")) {
            let letter = |at: usize| char::from(b"ACGT"[number >> (2 * at) & 3]);
            lines.push((0..k).rev().map(letter).collect());
        }
        lines.join("\n")
    }

    /// Byte-pair encoding with each of A, C, G, T and the pair AC.
    fn pairs() -> String {
        let special = |id: u32, token: &str| {
            serde_json::json!({"id": id, "content": token, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false})
        };
        serde_json::json!({
            "version": "1.0",
            "added_tokens": [special(0, "[UNK]"), special(1, "[CLS]"), special(2, "[SEP]"), special(3, "[PAD]")],
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
                ],
                "pair": [],
                "special_tokens": {
                    "[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
                    "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]},
                },
            },
            "model": {
                "type": "BPE",
                "unk_token": "[UNK]",
                "fuse_unk": false,
                "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3,
                    "A": 4, "C": 5, "G": 6, "T": 7, "AC": 8},
                "merges": ["A C"],
            },
        })
        .to_string()
    }

    proptest! {
        /// A sequence with rules has the tokens that the sequence with its letters replaced has
        /// without.
        #[test]
        fn letters_are_replaced_before_they_become_tokens(
            sequence in prop::collection::vec(prop::sample::select(&b"ACGTNRUZOBuzobXx-*\xff"[..]), 0..60),
            other in prop::sample::select(&b"ACGTXN"[..]),
        ) {
            let letters = LetterRules::default().read_as(b"UZob", other);
            let mut replaced = sequence.clone();
            for letter in &mut replaced {
                if b"UZOBuzob".contains(letter) {
                    *letter = other;
                }
            }
            let rules = FamilyRules { letters, ..FamilyRules::default() };
            for (kind, text) in [
                (TokenizerKind::Esm, proteins(["<cls>", "<pad>", "<eos>", "<unk>"])),
                (TokenizerKind::Bert, proteins(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])),
                (TokenizerKind::Bert, kmers(3)),
                (TokenizerKind::Bpe, pairs()),
            ] {
                let plain = super::super::read(kind, text.as_bytes()).expect("a vocabulary");
                let ruled = super::super::read_with(kind, text.as_bytes(), &rules).expect("a vocabulary");
                prop_assert_eq!(ruled.encode(&sequence), plain.encode(&replaced));
                prop_assert_eq!(ruled.encode_beginning(&sequence), plain.encode_beginning(&replaced));
                prop_assert_eq!(ruled.special(), plain.special());
            }
        }
    }

    #[test]
    fn no_rule_changes_nothing() {
        let rules = LetterRules::default();
        assert!((0..=u8::MAX).all(|letter| rules.apply(letter) == letter));
    }

    #[test]
    fn a_family_has_its_own_special_tokens_and_alphabet() {
        let text = proteins(["<cls>", "<pad>", "<eos>", "<unk>"]);
        let read = |special| {
            let rules = FamilyRules {
                special: Some(special),
                alphabet: Some(Alphabet::Dna),
                ..FamilyRules::default()
            };
            super::super::read_with(TokenizerKind::Esm, text.as_bytes(), &rules)
        };
        for (front, behind) in [(1, 1), (1, 0), (0, 1), (0, 0)] {
            let names = SpecialNames {
                front: &ESM.front[..front],
                behind: &ESM.behind[..behind],
                cls: ESM.cls.filter(|_| front > 0),
                ..ESM
            };
            let tokenizer = read(names).expect("a vocabulary");
            let special = tokenizer.special();
            assert_eq!(special.front, [0][..front]);
            assert_eq!(special.behind, [2][..behind]);
            assert_eq!(special.cls, (front > 0).then_some(0));
            assert_eq!(tokenizer.alphabet(), Alphabet::Dna);
            // It is DNA, so a `*` is a letter.
            assert_eq!(tokenizer.encode(b"ACGT*").ids.len(), 5);
        }
        let two = SpecialNames {
            front: &["<AA2fold>", "<cls>"],
            ..ESM
        };
        let error = read(two).err().expect("there is no <AA2fold>");
        assert_eq!(error.to_string(), "the vocabulary lacks <AA2fold>");
    }

    #[test]
    fn rules_of_a_known_family() {
        let models = seqembed_onnx::known_models();
        let known = models.first().expect("models are known");
        let rules = FamilyRules::of(known.architecture.family());
        assert_eq!(rules.letters, LetterRules::default());
        assert_eq!(rules.alphabet, Some(Alphabet::Protein));
    }
}
