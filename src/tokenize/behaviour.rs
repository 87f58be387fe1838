//! What a tokenizer does, as a hash: vectors of the same weights and the same vocabulary are of
//! other tokens where a family's rules for letters, special tokens or windows are others.

use super::Tokenizer;

/// BLAKE3, in hexadecimal, of the tokens that sequences with each byte have, of the special tokens,
/// and of the units that lengths and windows are counted in.
#[must_use]
pub fn behaviour(tokenizer: &dyn Tokenizer) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |what: String| {
        hasher.update(what.as_bytes());
        hasher.update(b"\n");
    };
    add(format!("{:?}", tokenizer.special()));
    add(format!(
        "{:?} {} {} {:?}",
        tokenizer.alphabet(),
        tokenizer.span(),
        tokenizer.letters_per_residue(),
        tokenizer.letters_per_token()
    ));
    for byte in 0..=u8::MAX {
        // By itself, in a pair, in k-mers, and at the end.
        let pairs = [[byte; 2], [byte, b'a'], [b'A', byte]].concat();
        let kmers = [b"ACGTTGCA", &[byte][..], b"GATTACAT", &[byte]].concat();
        for sequence in [&[byte][..], &pairs, &kmers] {
            let encoded = tokenizer.encode(sequence);
            add(format!("{:?} {:?}", encoded.ids, encoded.starts));
        }
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use seqembed_onnx::TokenizerKind;

    use super::super::{FamilyRules, LetterRules, SpecialNames, read_with};
    use super::behaviour;

    const PROTBERT: &[u8] = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nL\nA\nG\nU\nX\nZ\n";

    fn of(text: &[u8], rules: &FamilyRules) -> String {
        let tokenizer = read_with(TokenizerKind::Bert, text, rules).expect("a vocabulary");
        behaviour(tokenizer.as_ref())
    }

    #[test]
    fn any_rule_changes_it_and_nothing_else_does() {
        let plain = of(PROTBERT, &FamilyRules::default());
        assert_eq!(of(PROTBERT, &FamilyRules::default()), plain);
        let letters = FamilyRules {
            letters: LetterRules::default().read_as(b"U", b'X'),
            ..FamilyRules::default()
        };
        // The vocabulary lacks it either way.
        let same = FamilyRules {
            letters: LetterRules::default().read_as(b"J", b'O'),
            ..FamilyRules::default()
        };
        let special = FamilyRules {
            special: Some(SpecialNames {
                front: &["[CLS]"],
                behind: &[],
                cls: Some("[CLS]"),
                pad: "[PAD]",
                unk: "[UNK]",
            }),
            ..FamilyRules::default()
        };
        assert_eq!(of(PROTBERT, &same), plain);
        assert_ne!(of(PROTBERT, &letters), plain);
        assert_ne!(of(PROTBERT, &special), plain);
    }
}
