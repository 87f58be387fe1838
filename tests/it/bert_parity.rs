//! `ProtBert`, `IgBert` and GROVER against transformers' `BertModel` and tokenizers.
//!
//! `tests/fixtures/bert` is made by `onnx/reference/bert_fixtures.py`: checkpoints as they are
//! published, and the expected vectors and ids.

use seqembed_onnx::Model;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::common::reference::{Exported, KERNELS, Reference, Tokens, embed, token_ids, tokenizer};
use crate::common::{DONE, PARTLY, WRONG, assert_run, seqembed, text};

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| Reference::open("bert"))
}

/// The exported folder of a checkpoint, made once for all tests.
fn exported(checkpoint: &str) -> &'static Path {
    static EXPORTED: OnceLock<Exported> = OnceLock::new();
    EXPORTED
        .get_or_init(|| reference().export("bert"))
        .folder(checkpoint)
}

#[test]
fn every_pooling_and_layer_in_one_batch_in_windows_and_truncated() {
    for case in reference().cases() {
        reference().check_pooled(&case.name, exported(&case.models[0]));
    }
}

#[test]
fn per_token_vectors() {
    for case in reference().cases() {
        for kernels in KERNELS {
            let model = exported(&case.models[0]);
            let rows = reference().check_per_token(case, model, kernels, None);
            assert_eq!(rows.vectors, case.tokens, "{}: a vector a token", case.name);
        }
    }
}

/// `ProtBert`'s file is of before PyTorch 1.6, and its configuration lacks what is usual.
#[test]
fn every_layout_of_a_checkpoint_gives_the_same_weights_and_graph() {
    let (old, new) = (exported("protbert"), exported("igbert"));
    for file in ["weights.bin", "model.onnx", "vocab.txt"] {
        assert!(
            fs::read(old.join(file)).unwrap() == fs::read(new.join(file)).unwrap(),
            "{file} differs"
        );
    }
}

#[test]
fn token_ids_are_those_of_the_authors_tokenizers() {
    let all: BTreeMap<String, Vec<Tokens>> = reference().tokens();
    assert_eq!(all.len(), 2);
    for (name, cases) in all {
        let tokenizer = tokenizer(exported(&name));
        for case in cases {
            let ids = token_ids(&*tokenizer, &case.sequence);
            assert_eq!(ids, case.ids, "{name}: {}", case.sequence);
        }
    }
}

/// GROVER's tokenizer has a token of no letters, with an id that its model has no row for.
#[test]
fn a_token_of_no_letters_needs_no_row() {
    let file = fs::read_to_string(exported("grover").join("tokenizer.json")).unwrap();
    assert!(
        file.contains("\"\":109") && file.contains("\"A \""),
        "{file}"
    );
    let model = Model::open(exported("grover")).unwrap();
    assert_eq!(model.architecture().family().vocabulary(), 109);
}

/// There are positions for 130 tokens, whatever length in bases they are.
#[test]
fn a_record_of_too_many_tokens_is_refused_where_windows_are_not_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("n.fna");
    fs::write(&input, format!(">many\nACGT{}\n", "N".repeat(130))).unwrap();
    let out = folder.path().join("out");
    let mut arguments = vec!["embed", text(&input), "-m", text(exported("grover"))];
    arguments.extend(["-o", text(&out), "--long", "error"]);
    let run = seqembed(&arguments);
    assert_run(
        &run,
        PARTLY,
        &["many", "its 134 bases are", "more than the 128"],
    );
}

/// 600 bases are more than the 512 that stand for 128 byte pairs, but here they are 100 of them.
#[test]
fn a_record_of_more_letters_and_no_more_tokens_than_a_window_is_not_called_windowed() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("dense.fna");
    let [dense, long] = [100, 150].map(|count| "CATCCA".repeat(count));
    fs::write(&input, format!(">dense\n{dense}\n>long\n{long}\n")).unwrap();
    for options in [
        &["--pooling", "none"][..],
        &["--pooling", "none", "--long", "window"],
    ] {
        let rows = embed(&input, exported("grover"), options);
        assert_eq!(rows.vectors, [100, 150]);
        assert_eq!(rows.status, ["ok", "windowed"]);
    }
}

/// Many folders have other libraries' files of the same vocabulary besides `vocab.txt`.
#[test]
fn a_tokenizer_file_of_another_kind_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("protbert");
    fs::create_dir(&source).unwrap();
    for file in ["config.json", "vocab.txt", "pytorch_model.bin"] {
        let from = reference().folder.join("protbert").join(file);
        fs::copy(from, source.join(file)).unwrap();
    }
    let target = folder.path().join("model");
    for other in [r#"{"model": {"type": "WordPiece", "vocab": {}}}"#, "{"] {
        fs::write(source.join("tokenizer.json"), other).unwrap();
        let run = seqembed(&["export", text(&source), "-o", text(&target), "--force"]);
        assert_run(&run, DONE, &[]);
        assert!(target.join("vocab.txt").is_file() && !target.join("tokenizer.json").exists());
    }
    // Where it is the only one, what is wrong with it is said.
    fs::remove_file(source.join("vocab.txt")).unwrap();
    let run = seqembed(&["export", text(&source), "-o", text(&target), "--force"]);
    assert_run(&run, WRONG, &["tokenizer.json"]);
}
