//! `SaProt` against transformers and fair-esm.
//!
//! `tests/fixtures/saprot` is made by `onnx/reference/saprot_fixtures.py`: a checkpoint in the
//! layout of the hub and in that of the authors' own loader, and the vectors on which both packages
//! agree.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use tempfile::TempDir;

use crate::common::reference::{Exported, KERNELS, Reference, Tokens, token_ids, tokenizer};
use crate::common::{PARTLY, WRONG, assert_run, fixtures, seqembed, text};

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| Reference::open("saprot"))
}

/// The exported folder of a checkpoint, made once for all tests.
fn exported(checkpoint: &str) -> &'static Path {
    static EXPORTED: OnceLock<Exported> = OnceLock::new();
    EXPORTED
        .get_or_init(|| reference().export("saprot"))
        .folder(checkpoint)
}

fn model() -> &'static Path {
    exported("checkpoints/hub")
}

/// The lines of the input files cut pairs; lengths, windows and `--max-length` count residues.
#[test]
fn every_pooling_and_layer_in_one_batch_in_windows_and_truncated() {
    for case in reference().cases() {
        reference().check_pooled(&case.name, model());
    }
}

#[test]
fn a_vector_a_residue() {
    for case in reference().cases() {
        for kernels in KERNELS {
            let rows = reference().check_per_token(case, model(), kernels, None);
            assert_eq!(rows.vectors, case.tokens, "{}", case.name);
        }
    }
}

#[test]
fn both_layouts_give_the_same_weights_graph_and_vocabulary() {
    let other = exported("checkpoints/saprot_small.pt");
    for file in ["weights.bin", "model.onnx", "vocab.txt"] {
        assert!(
            fs::read(model().join(file)).unwrap() == fs::read(other.join(file)).unwrap(),
            "{file} differs"
        );
    }
}

#[test]
fn token_ids_are_those_of_transformers() {
    let cases: Vec<Tokens> = reference().tokens();
    let tokenizer = tokenizer(model());
    for case in cases {
        let ids = token_ids(&*tokenizer, &case.sequence);
        assert_eq!(ids, case.ids, "{}", case.sequence);
    }
    // Case is meaning.
    let one = |pair: &[u8]| tokenizer.encode(pair).ids;
    assert_ne!(one(b"Ap"), one(b"AP"));
    assert_eq!([one(b"AP"), one(b"ap"), one(b"pA")].concat(), [3, 3, 3]);
    assert_eq!(one(b"##"), [445]);
}

/// A letter is missing or too much: in all pairs behind it residues and structures are swapped.
#[test]
fn an_odd_number_of_letters_is_an_error_that_names_the_record() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("odd.fasta");
    let long = "MdEvVpQp".repeat(40);
    for (sequence, letters, options) in [
        ("MdEvV", 5, &[][..]),
        ("MdEv*", 5, &[]),
        (&format!("{long}M"), 321, &[]),
        // Of which only the beginning is read.
        (
            &format!("{long}M"),
            321,
            &["--max-length", "10", "--long", "truncate"],
        ),
    ] {
        fs::write(&input, format!(">good\nMdEv\n>bad one\n{sequence}\n")).unwrap();
        let out = folder.path().join("out");
        let mut arguments = vec!["embed", text(&input), "-m", text(model()), "-o", text(&out)];
        arguments.extend(options);
        let said = format!("it has {letters} letters");
        assert_run(&seqembed(&arguments), PARTLY, &["\"bad\"", &said]);
    }
}

fn copied(edit: impl Fn(&Path)) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let hub = fixtures().join("saprot/checkpoints/hub");
    for file in ["config.json", "vocab.txt", "pytorch_model.bin"] {
        fs::copy(hub.join(file), copy.path().join(file)).unwrap();
    }
    edit(copy.path());
    copy
}

fn refused(copy: &TempDir, words: &[&str]) {
    let target = copy.path().join("model");
    let run = seqembed(&["export", text(copy.path()), "-o", text(&target)]);
    assert_run(&run, WRONG, words);
}

#[test]
fn settings_and_vocabularies_that_are_not_saprots_are_refused() {
    let config = |from: &str, to: &str| {
        copied(|folder| {
            let path = folder.join("config.json");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{from}");
            fs::write(path, text.replace(from, to)).unwrap();
        })
    };
    let copy = config("\"mask_token_id\": 4", "\"mask_token_id\": 32");
    refused(&copy, &["mask_token_id is 32", "has id 4"]);
    let copy = config("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"relu\"");
    refused(&copy, &["hidden_act", "relu"]);
    let copy = copied(|folder| {
        let path = folder.join("vocab.txt");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, text.replace("Ap\nAy", "Ay\nAp")).unwrap();
    });
    refused(&copy, &["the vocabulary is not that of SaProt"]);
    // Without the file and the id, all is known.
    let copy = config("\"mask_token_id\": 4,", "");
    fs::remove_file(copy.path().join("vocab.txt")).unwrap();
    let target = copy.path().join("model");
    let run = seqembed(&["export", text(copy.path()), "-o", text(&target)]);
    assert_run(&run, 0, &[]);
    for file in ["weights.bin", "vocab.txt"] {
        assert!(fs::read(target.join(file)).unwrap() == fs::read(model().join(file)).unwrap());
    }
}

/// As all lengths are.
#[test]
fn the_longest_record_is_in_residues() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("one.fasta");
    fs::write(&input, format!(">one\n{}\n", "MdEvVpQpA#".repeat(4))).unwrap();
    let out = folder.path().join("out");
    let arguments = ["embed", text(&input), "-m", text(model()), "-o", text(&out)];
    let run = |most: &str| seqembed(&[&arguments[..], &["--max-record", most]].concat());
    assert_run(&run("20"), 0, &[]);
    assert_run(&run("19"), PARTLY, &["`one` is longer than 19"]);
}

/// Each of its letters is in the vocabulary, but not this pair.
#[test]
fn an_unknown_pair_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("swapped.fasta");
    fs::write(&input, ">one\nMdvK\n").unwrap();
    let out = folder.path().join("out");
    let arguments = ["embed", text(&input), "-m", text(model()), "-o", text(&out)];
    let run = seqembed(&[&arguments[..], &["--unknown", "error"]].concat());
    assert_run(&run, PARTLY, &["the pair 'v', 'K' at position 3 is not in"]);
}

/// Without structures, all pairs of residues would be one unknown token.
#[test]
fn residues_without_structures_are_refused_unless_they_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("plain.fasta");
    let plain = "MKTAYIAKQRQISFVKSHFS";
    let run = |sequence: &str, option: &str| {
        fs::write(&input, format!(">one\n{sequence}\n")).unwrap();
        let out = folder.path().join("out");
        let arguments = ["embed", text(&input), "-m", text(model()), "-o", text(&out)];
        seqembed(&[&arguments[..], &[option]].concat())
    };
    let why = ["plain.fasta", "without structures", "all of one case"];
    assert_run(&run(plain, "--long=window"), PARTLY, &why);
    assert_run(&run(&plain.to_lowercase(), "--long=window"), PARTLY, &why);
    assert_run(&run(plain, "--force-alphabet"), 0, &[]);
    let unknown: String = plain.chars().flat_map(|residue| [residue, '#']).collect();
    assert_run(&run(&unknown, "--long=window"), 0, &[]);
}

/// A journal knows rows by their records; windows of pairs are saved and found again.
#[test]
fn a_finished_run_is_not_computed_again() {
    let out = tempfile::tempdir().unwrap();
    let input = reference().folder.join("inputs/long.fasta");
    let mut arguments = vec!["embed", text(&input), "-m", text(model())];
    arguments.extend(["-o", text(out.path()), "--max-length", "40", "--resume"]);
    assert_run(&seqembed(&arguments), 0, &[]);
    let run = seqembed(&arguments);
    assert_run(&run, 0, &["not loaded"]);
}
