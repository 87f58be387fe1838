//! DNA models: vectors from the executable against those of DNABERT-2's own code and of transformers' `BertModel`.
//!
//! The checkpoints, inputs and expected vectors in `tests/fixtures/dna` are made by `onnx/reference/dna_fixtures.py`,
//! which shares no code with this project. Every test drives the built executable: `export` a checkpoint, `embed` a
//! file, read the output back.

// The helpers' panics are failed tests too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use safetensors::SafeTensors;
use seqembed::output::{self, Rows};
use serde::Deserialize;
use tempfile::TempDir;

/// Largest difference to the reference in fp32.
const BOUND: f32 = 2e-5;
/// Our kernels, and the padded graph of ONNX Runtime's own operators.
const KERNELS: [&str; 2] = ["auto", "portable"];
/// The model's name, whatever its checkpoint is called.
const NAME: &str = "small";

#[derive(Deserialize)]
struct Fixtures {
    hidden: usize,
    layers: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    models: Vec<String>,
    input: String,
    options: Vec<String>,
    layers: Vec<usize>,
    poolings: Vec<String>,
    per_token_records: Vec<usize>,
    ids: Vec<String>,
    lengths: Vec<u64>,
    tokens: Vec<usize>,
    status: Vec<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dna")
}

fn fixtures() -> &'static Fixtures {
    static FIXTURES: OnceLock<Fixtures> = OnceLock::new();
    FIXTURES.get_or_init(|| {
        let text = fs::read_to_string(folder().join("cases.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    })
}

fn case(name: &str) -> &'static Case {
    let mut cases = fixtures().cases.iter();
    cases.find(|case| case.name == name).unwrap()
}

/// The expected vectors of a name, as one row of numbers.
fn expected(name: &str) -> &'static [f32] {
    static TENSORS: OnceLock<BTreeMap<String, Vec<f32>>> = OnceLock::new();
    let tensors = TENSORS.get_or_init(|| {
        let bytes = fs::read(folder().join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let vectors = tensors
            .tensors()
            .into_iter()
            .filter(|(name, _)| !name.contains("/ids/"));
        vectors
            .map(|(name, tensor)| {
                let words = tensor.data().chunks_exact(4);
                let values = words.map(|word| f32::from_le_bytes(word.try_into().unwrap()));
                (name, values.collect())
            })
            .collect()
    });
    &tensors[name]
}

fn seqembed(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_seqembed"))
        .args(arguments)
        .output()
        .unwrap()
}

fn succeed(arguments: &[&str]) {
    let run = seqembed(arguments);
    assert!(
        run.status.success(),
        "seqembed {}\n{}: {}",
        arguments.join(" "),
        run.status,
        String::from_utf8_lossy(&run.stderr)
    );
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The exported folder of a checkpoint, made once for all tests.
fn exported(checkpoint: &str) -> &'static Path {
    static MODELS: OnceLock<(TempDir, BTreeMap<String, PathBuf>)> = OnceLock::new();
    let (_, models) = MODELS.get_or_init(|| {
        let scratch = tempfile::tempdir().unwrap();
        let names: std::collections::BTreeSet<&String> = fixtures()
            .cases
            .iter()
            .flat_map(|case| &case.models)
            .collect();
        let models = names
            .into_iter()
            .map(|checkpoint| {
                let model = scratch.path().join(checkpoint);
                let source = folder().join(checkpoint);
                succeed(&["export", text(&source), "-o", text(&model), "--name", NAME]);
                (checkpoint.clone(), model)
            })
            .collect();
        (scratch, models)
    });
    &models[checkpoint]
}

fn embed(input: &Path, model: &Path, options: &[&str]) -> Rows {
    let out = tempfile::tempdir().unwrap();
    let mut arguments = vec![
        "embed",
        text(input),
        "-m",
        text(model),
        "-o",
        text(out.path()),
    ];
    arguments.extend(["--format", "npz"]);
    arguments.extend(options);
    succeed(&arguments);
    let name = format!("{}.npz", text(Path::new(input.file_stem().unwrap())));
    output::read(&out.path().join(name)).unwrap().0
}

fn assert_close(ours: &[f32], theirs: &[f32], bound: f32, what: &str) -> f32 {
    assert_eq!(ours.len(), theirs.len(), "{what}: number of values");
    let largest = ours.iter().zip(theirs).fold(0.0_f32, |largest, (a, b)| {
        let difference = (a - b).abs();
        // NaN must not slip through a comparison.
        if difference.is_nan() {
            f32::INFINITY
        } else {
            largest.max(difference)
        }
    });
    assert!(
        largest <= bound,
        "{what}: largest difference {largest:.1e}, allowed {bound:.0e}"
    );
    largest
}

/// Runs a case in every pooling, layer and graph.
fn check_pooled(name: &str) {
    let case = case(name);
    let input = folder().join(&case.input);
    let mut worst = 0.0_f32;
    for kernels in KERNELS {
        for layer in &case.layers {
            for pooling in &case.poolings {
                let layer = layer.to_string();
                let mut options = vec!["--kernels", kernels, "--layer", &layer];
                options.extend(["--pooling", pooling]);
                options.extend(case.options.iter().map(String::as_str));
                let rows = embed(&input, exported(&case.models[0]), &options);
                let what = format!("{name} {}", options.join(" "));
                assert_eq!(rows.hidden, fixtures().hidden, "{what}");
                assert_eq!(rows.ids, case.ids, "{what}");
                assert_eq!(rows.lengths, case.lengths, "{what}");
                assert_eq!(rows.status, case.status, "{what}");
                let theirs = expected(&format!("{name}/{pooling}/{layer}"));
                worst = worst.max(assert_close(&rows.values, theirs, BOUND, &what));
            }
        }
    }
    println!("{name}: largest difference to the reference {worst:.1e}");
}

#[test]
fn dnabert2_from_1_to_1500_tokens_in_one_batch() {
    assert!(case("dnabert2-mixed").tokens.contains(&1500));
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
    assert!(case("dnabert-3-kmers").tokens.contains(&510));
    check_pooled("dnabert-3-kmers");
}

#[test]
fn per_token_vectors() {
    for case in fixtures()
        .cases
        .iter()
        .filter(|case| case.options.is_empty())
    {
        for kernels in KERNELS {
            for layer in &case.layers {
                let layer = layer.to_string();
                let options = ["--kernels", kernels, "--layer", &layer, "--pooling", "none"];
                let rows = embed(
                    &folder().join(&case.input),
                    exported(&case.models[0]),
                    &options,
                );
                let what = format!("{} {}", case.name, options.join(" "));
                assert_eq!(rows.vectors, case.tokens, "{what}: a vector a token");
                for &record in &case.per_token_records {
                    let before: usize = rows.vectors[..record].iter().sum();
                    let span = before * rows.hidden..(before + rows.vectors[record]) * rows.hidden;
                    let theirs = expected(&format!("{}/none/{layer}/{record}", case.name));
                    assert_close(&rows.values[span], theirs, BOUND, &what);
                }
            }
        }
    }
}

#[test]
fn every_spelling_of_a_checkpoint_gives_the_same_weights_graph_and_vectors() {
    for case in fixtures().cases.iter().filter(|case| case.models.len() > 1) {
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
        let rows = embed(&folder().join(&case.input), exported(last), &options);
        let theirs = expected(&format!("{}/mean/{}", case.name, fixtures().layers));
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
    let case = case("dnabert2-mixed");
    let input = folder().join(&case.input);
    let theirs = expected("dnabert2-mixed/mean/2");
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
            let rows = embed(&input, exported(&case.models[0]), &options);
            assert_close(&rows.values, theirs, BOUND, &options.join(" "));
        }
    }
}

/// A copy of a checkpoint of which a file's text is changed.
fn altered(checkpoint: &str, file: &str, from: &str, to: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder().join(checkpoint)).unwrap() {
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
    let message = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(2), "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
    assert!(!target.exists(), "{message}");
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
    refused(copy.path(), &["tokenizer.json", "512 tokens", "511 rows"]);
    let copy = altered(
        "dnabert2",
        "tokenizer.json",
        "\"type\":\"BPE\"",
        "\"type\":\"WordPiece\"",
    );
    refused(copy.path(), &["tokenizer.json", "WordPiece"]);
    let copy = altered("dnabert-3-plain", "vocab.txt", "AAA\n", "");
    refused(copy.path(), &["vocab.txt", "68 tokens", "69 rows"]);
    let copy = altered("dnabert2", "tokenizer.json", "{", "{");
    fs::remove_file(copy.path().join("tokenizer.json")).unwrap();
    refused(copy.path(), &["no tokenizer.json", "--tokenizer"]);
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
