//! DNA models: vectors from the executable against those of DNABERT-2's own code and of
//! transformers' `BertModel`.
//!
//! The checkpoints, inputs and expected vectors in `tests/fixtures/dna` are made by
//! `onnx/reference/dna_fixtures.py`, which shares no code with this project. Every test drives the
//! built executable: `export` a checkpoint, `embed` a file, read the output back.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use tempfile::TempDir;

use crate::common::reference::{BOUND, Case, Exported, KERNELS, Reference, embed};
use crate::common::{WRONG, assert_close, assert_run, seqembed, text};

/// The model's name, whatever its checkpoint is called.
const NAME: &str = "small";

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| Reference::open("dna"))
}

/// The exported folder of a checkpoint, made once for all tests.
fn exported(checkpoint: &str) -> &'static Path {
    static EXPORTED: OnceLock<Exported> = OnceLock::new();
    EXPORTED
        .get_or_init(|| reference().export(NAME))
        .folder(checkpoint)
}

/// The case's first model, exported.
fn model(case: &Case) -> &'static Path {
    exported(&case.models[0])
}

fn check_pooled(name: &str) {
    reference().check_pooled(name, model(reference().case(name)));
}

#[test]
fn dnabert2_from_1_to_1500_tokens_in_one_batch() {
    assert!(reference().case("dnabert2-mixed").tokens.contains(&1500));
    check_pooled("dnabert2-mixed");
}

#[test]
fn six_heads() {
    check_pooled("dnabert2-6-heads-mixed");
}

#[test]
fn lower_case_rna_and_unknown_bases() {
    check_pooled("dnabert2-letters");
    check_pooled("dnabert-3-letters");
}

#[test]
fn the_mean_of_both_strands() {
    check_pooled("dnabert2-letters-revcomp");
}

#[test]
fn dnabert_up_to_its_last_position() {
    assert!(reference().case("dnabert-3-kmers").tokens.contains(&510));
    check_pooled("dnabert-3-kmers");
}

#[test]
fn per_token_vectors() {
    let cases = reference().cases().iter();
    for case in cases.filter(|case| case.options.is_empty()) {
        for kernels in KERNELS {
            for &layer in &case.layers {
                let rows = reference().check_per_token(case, model(case), kernels, Some(layer));
                let what = format!("{} {kernels} {layer}", case.name);
                assert_eq!(rows.vectors, case.tokens, "{what}: a vector a token");
            }
        }
    }
}

#[test]
fn every_spelling_of_a_checkpoint_gives_the_same_weights_graph_and_vectors() {
    let cases = reference().cases().iter();
    for case in cases.filter(|case| case.models.len() > 1) {
        let read = |model: &str, file: &str| fs::read(exported(model).join(file)).unwrap();
        let (first, others) = case.models.split_first().unwrap();
        for other in others {
            for file in ["weights.bin", "model.onnx"] {
                assert!(
                    read(first, file) == read(other, file),
                    "{first} and {other}: {file}"
                );
            }
        }
        let last = case.models.last().unwrap();
        let options: Vec<&str> = case.options.iter().map(String::as_str).collect();
        let rows = embed(&reference().input(case), exported(last), &options);
        let theirs = reference().expected(&format!("{}/mean/{}", case.name, reference().layers()));
        assert_close(
            &rows.values,
            theirs,
            BOUND,
            &format!("{} {last}", case.name),
        );
    }
}

#[test]
fn nothing_depends_on_batches_or_threads() {
    let case = reference().case("dnabert2-mixed");
    let input = reference().input(case);
    let theirs = reference().expected("dnabert2-mixed/mean/2");
    for kernels in KERNELS {
        for (threads, budget) in [("1", "1"), ("2", "64"), ("1", "700"), ("2", "100000")] {
            let options = [
                "--kernels",
                kernels,
                "--threads",
                threads,
                "--batch-tokens",
                budget,
            ];
            let rows = embed(&input, model(case), &options);
            assert_close(&rows.values, theirs, BOUND, &options.join(" "));
        }
    }
}

/// A copy of a checkpoint of which a file's text is changed.
fn altered(checkpoint: &str, file: &str, from: &str, to: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(reference().folder.join(checkpoint)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = copy.path().join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    fs::write(&path, text.replace(from, to)).unwrap();
    copy
}

/// Exports what can't be exported, and looks for words in the message.
fn refused(checkpoint: &Path, words: &[&str]) {
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("model");
    let run = seqembed(&["export", text(checkpoint), "-o", text(&target)]);
    assert_run(&run, WRONG, words);
    assert!(!target.exists());
}

#[test]
fn weights_and_configuration_that_disagree_are_named() {
    let copy = altered(
        "dnabert2",
        "config.json",
        "\"intermediate_size\": 96",
        "\"intermediate_size\": 192",
    );
    refused(
        copy.path(),
        &[
            "encoder.layer.0.mlp.gated_layers.weight",
            "[384, 48]",
            "[192, 48]",
        ],
    );
    let copy = altered(
        "dnabert2",
        "config.json",
        "\"num_hidden_layers\": 2",
        "\"num_hidden_layers\": 1",
    );
    refused(copy.path(), &["1 layers", "the weights have 2"]);
    let copy = altered(
        "dnabert2",
        "config.json",
        "\"num_hidden_layers\": 2",
        "\"num_hidden_layers\": 3",
    );
    refused(copy.path(), &["no tensor encoder.layer.2."]);
    let copy = altered(
        "dnabert-3-plain",
        "config.json",
        "\"vocab_size\": 69",
        "\"vocab_size\": 261",
    );
    refused(copy.path(), &["261"]);
    let positions = (
        "\"max_position_embeddings\": 512",
        "\"max_position_embeddings\": 1024",
    );
    let copy = altered("dnabert-3-plain", "config.json", positions.0, positions.1);
    refused(
        copy.path(),
        &["position_embeddings", "[1024, 48]", "[512, 48]"],
    );
}

#[test]
fn a_tokenizer_that_does_not_fit_the_weights_is_refused() {
    let copy = altered(
        "dnabert2",
        "config.json",
        "\"vocab_size\": 512",
        "\"vocab_size\": 511",
    );
    refused(
        copy.path(),
        &["tokenizer.json", "512 tokens", "the model has 511"],
    );
    let copy = altered(
        "dnabert2",
        "tokenizer.json",
        "\"type\":\"BPE\"",
        "\"type\":\"WordPiece\"",
    );
    refused(copy.path(), &["tokenizer.json", "WordPiece"]);
    let copy = altered("dnabert-3-plain", "vocab.txt", "AAA\n", "");
    refused(copy.path(), &["vocab.txt", "68 tokens", "the model has 69"]);
    let copy = altered("dnabert2", "tokenizer.json", "{", "{");
    fs::remove_file(copy.path().join("tokenizer.json")).unwrap();
    refused(copy.path(), &["tokenizer.json is missing", "--tokenizer"]);
}

#[test]
fn unknown_architectures_are_named_with_the_known_ones() {
    let copy = altered(
        "dnabert2",
        "config.json",
        "\"model_type\": \"bert\"",
        "\"model_type\": \"hyena\"",
    );
    refused(copy.path(), &["\"hyena\"", "ESM-2", "DNABERT-2", "BERT"]);
    let relative = (
        "\"hidden_act\": \"gelu\"",
        "\"position_embedding_type\": \"relative_key\"",
    );
    let copy = altered("dnabert-3-plain", "config.json", relative.0, relative.1);
    refused(copy.path(), &["position_embedding_type", "relative_key"]);
    let copy = altered("dnabert-3-plain", "config.json", "\"gelu\"", "\"relu\"");
    refused(copy.path(), &["hidden_act", "relu"]);
}
