//! Laws of the tokenizers.

use proptest::prelude::*;
use seqembed::tokenize::dna::looks_like_dna;
use seqembed::tokenize::letters::LetterTokenizer;
use seqembed::tokenize::{self, Tokenizer, TokenizerKind, VocabularyError};

/// ESM-2's `vocab.txt`.
const VOCABULARY: &str = "<cls>\n<pad>\n<eos>\n<unk>\nL\nA\nG\nV\nS\nE\nR\nT\nI\nD\nP\nK\nQ\nN\nF\nY\nM\nH\nW\nC\nX\nB\nU\nZ\nO\n.\n-\n<null_1>\n<mask>\n";
const LETTERS: &[u8] = b"LAGVSERTIDPKQNFYMHWCXBUZO.-";

fn esm() -> LetterTokenizer {
    LetterTokenizer::esm(VOCABULARY).unwrap()
}

#[test]
fn residues_have_the_ids_of_the_vocabulary() {
    let tokenizer = esm();
    let special = tokenizer.special();
    assert_eq!(
        (&special.front[..], &special.behind[..]),
        (&[0][..], &[2][..])
    );
    assert_eq!((special.cls, special.pad, special.unk), (Some(0), 1, 3));
    // fair-esm: alphabet.encode("MKTVRQERLK"), and the letters in the order of its alphabet.
    assert_eq!(
        tokenizer.encode(b"MKTVRQERLK").ids,
        [20, 15, 11, 7, 10, 16, 9, 10, 4, 15]
    );
    assert_eq!(tokenizer.encode(LETTERS).ids, (4..31).collect::<Vec<u32>>());
    assert_eq!(
        tokenizer.encode(b"acdxbuzo").ids,
        tokenizer.encode(b"ACDXBUZO").ids
    );
}

#[test]
fn what_the_vocabulary_lacks_is_one_token_each() {
    let encoded = esm().encode(b"MJJ*K1\xff");
    assert_eq!(encoded.ids, [20, 3, 3, 3, 15, 3, 3]);
    assert_eq!((encoded.unknown, encoded.first_unknown), (5, Some(1)));
    assert!(!encoded.dropped_stop);
}

#[test]
fn one_terminal_stop_is_dropped() {
    let tokenizer = esm();
    let encoded = tokenizer.encode(b"MK*");
    assert_eq!(
        (encoded.ids.len(), encoded.unknown, encoded.dropped_stop),
        (2, 0, true)
    );
    let encoded = tokenizer.encode(b"MK**");
    assert_eq!(
        (encoded.ids.len(), encoded.unknown, encoded.dropped_stop),
        (3, 1, true)
    );
    let encoded = tokenizer.encode(b"*");
    assert_eq!(
        (encoded.ids.len(), encoded.unknown, encoded.dropped_stop),
        (0, 0, true)
    );
    assert_eq!(tokenizer.encode(b"").ids.len(), 0);
}

#[test]
fn a_vocabulary_must_have_what_proteins_need() {
    let error = LetterTokenizer::esm(&VOCABULARY.replace("<eos>\n", "").replace("\nW\n", "\n"));
    let error = error.unwrap_err();
    assert_eq!(error.to_string(), "the vocabulary lacks <eos>, W");
    let error = LetterTokenizer::esm(&VOCABULARY.replace("\nW\n", "\nL\n")).unwrap_err();
    assert!(
        matches!(
            error,
            VocabularyError::Twice {
                first: 4,
                second: 22,
                ..
            }
        ),
        "{error}"
    );
    let error = tokenize::open("/nowhere".as_ref(), TokenizerKind::Esm)
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .starts_with("cannot read /nowhere/vocab.txt: ")
    );
    let windows = LetterTokenizer::esm(&VOCABULARY.replace('\n', "\r\n")).unwrap();
    assert_eq!(windows.encode(b"MK").ids, [20, 15]);
}

#[test]
fn dna_is_told_from_proteins() {
    assert!(looks_like_dna(
        &b"ACGTTGCANNacgtACGURACGTTGCAACGT".repeat(3)
    ));
    assert!(!looks_like_dna(b"ACGTACGT"), "too short to tell");
    assert!(!looks_like_dna(
        &b"MKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSRQVIVQDIAYLRSLGYN".repeat(3)
    ));
    assert!(!looks_like_dna(&b"GAGAGSGAGAGY".repeat(10)), "silk");
    assert!(!looks_like_dna(&[b'1'; 500]));
}

proptest! {
    #[test]
    fn every_residue_is_a_token(sequence in proptest::collection::vec(any::<u8>(), 0..300)) {
        let tokenizer = esm();
        let encoded = tokenizer.encode(&sequence);
        let residues = sequence.len() - usize::from(sequence.last() == Some(&b'*'));
        prop_assert_eq!(encoded.ids.len(), residues);
        prop_assert_eq!(encoded.dropped_stop, residues < sequence.len());
        let lacks = |byte: &u8| !LETTERS.contains(&byte.to_ascii_uppercase());
        prop_assert_eq!(encoded.unknown, sequence[..residues].iter().filter(|byte| lacks(byte)).count());
        prop_assert_eq!(encoded.first_unknown, sequence[..residues].iter().position(lacks));
        prop_assert!(encoded.ids.iter().all(|&id| id == 3 || (4..31).contains(&id)));
    }

    #[test]
    fn case_does_not_matter(sequence in "[A-Za-z*.-]{0,200}") {
        let tokenizer = esm();
        let upper = tokenizer.encode(sequence.to_uppercase().as_bytes());
        prop_assert_eq!(tokenizer.encode(sequence.to_lowercase().as_bytes()), upper);
    }

    /// A token depends on its own letter alone, so the tokens of two parts are those of the whole.
    #[test]
    fn parts_make_the_whole(left in "[A-Za-z.-]{0,100}", right in "[A-Za-z.-]{0,100}") {
        let tokenizer = esm();
        let mut parts = tokenizer.encode(left.as_bytes()).ids;
        parts.extend(tokenizer.encode(right.as_bytes()).ids);
        prop_assert_eq!(tokenizer.encode((left + &right).as_bytes()).ids, parts);
    }
}
