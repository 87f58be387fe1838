//! T5 encoders against transformers.
//!
//! `tests/fixtures/t5` is made by `onnx/reference/t5_fixtures.py`: checkpoints as on the hub, and
//! the expected vectors and ids.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use seqembed::tokenize::{self, FamilyRules};
use seqembed_onnx::Model;
use serde::Deserialize;
use tempfile::TempDir;

use crate::common::reference::{BOUND, KERNELS, Reference, embed, row};
use crate::common::{WRONG, assert_close, assert_run, export, fixtures, seqembed, text};

const MODELS: [&str; 3] = ["prott5", "prostt5", "gated"];

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| Reference::open("t5"))
}

fn model(name: &str) -> PathBuf {
    static EXPORTED: OnceLock<TempDir> = OnceLock::new();
    let folder = EXPORTED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        for name in MODELS {
            let checkpoint = fixtures().join("t5/checkpoints").join(name);
            export(&checkpoint, &folder.path().join(name), name);
        }
        folder
    });
    folder.path().join(name)
}

fn model_of(case: &str) -> PathBuf {
    model(case.split('-').next().unwrap())
}

#[test]
fn mixed_lengths_and_unknown_letters_in_every_pooling_and_layer() {
    for case in reference().cases() {
        reference().check_pooled(&case.name, &model_of(&case.name));
    }
}

#[test]
fn per_token_vectors() {
    for case in reference().cases() {
        for kernels in KERNELS {
            for layer in &case.layers {
                let layer = layer.to_string();
                let options = ["--kernels", kernels, "--pooling", "none", "--layer", &layer];
                let rows = embed(&reference().input(case), &model_of(&case.name), &options);
                for record in &case.per_token_records {
                    let name = format!("{}/none/{layer}/{record}", case.name);
                    let theirs = reference().expected(&name);
                    assert_close(row(&rows, *record), theirs, BOUND, &name);
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct Tokens {
    sequence: String,
    ids: Vec<u32>,
}

fn ids(folder: &Path, sequence: &str) -> Vec<u32> {
    let opened = Model::open(folder).unwrap();
    let rules = FamilyRules::of(opened.architecture().family());
    let tokenizer = tokenize::open_with(folder, opened.info().tokenizer.kind, &rules).unwrap();
    let special = tokenizer.special();
    let encoded = tokenizer.encode(sequence.as_bytes());
    [&special.front[..], &encoded.ids, &special.behind].concat()
}

#[test]
fn token_ids_are_those_of_sentence_piece() {
    let text = fs::read(reference().folder.join("tokens.json")).unwrap();
    let cases: std::collections::BTreeMap<String, Vec<Tokens>> =
        serde_json::from_slice(&text).unwrap();
    assert_eq!(cases.len(), MODELS.len());
    for (name, cases) in cases {
        for case in cases {
            assert_eq!(
                ids(&model(&name), &case.sequence),
                case.ids,
                "{}",
                case.sequence
            );
        }
    }
    // Between two chains, as IgT5's authors write it.
    assert_eq!(ids(&model("prott5"), "A|C"), [3, 1, 22, 1]);
}

/// What the graph would compute otherwise is refused by its setting's name.
#[test]
fn settings_of_other_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let hub = fixtures().join("t5/checkpoints/prostt5");
    let config = fs::read_to_string(hub.join("config.json")).unwrap();
    let weights = "model.safetensors";
    fs::copy(hub.join(weights), folder.path().join(weights)).unwrap();
    let target = folder.path().join("model");
    for (from, to, named) in [
        ("\"relu\"", "\"gated-silu\"", "feed_forward_proj"),
        ("\"relu\"", "\"gated-gelu\"", "DenseReluDense.wi.weight"),
        (
            "\"relu\",",
            "\"relu\", \"dense_act_fn\": \"gelu\",",
            "dense_act_fn",
        ),
        (
            "buckets\": 32",
            "buckets\": 6",
            "relative_attention_num_buckets",
        ),
        ("buckets\": 32", "buckets\": 64", "relative_attention_bias"),
        (
            "\"model_type\"",
            "\"relative_attention_max_distance\": 8, \"model_type\"",
            "relative_attention_max_distance",
        ),
        ("\"d_kv\": 16", "\"d_kv\": 8", "SelfAttention.q.weight"),
        ("\"d_ff\": 64", "\"d_ff\": 32", "DenseReluDense.wi.weight"),
        ("\"num_layers\": 2", "\"num_layers\": 1", "1 layers"),
        (
            "\"vocab_size\": 150",
            "\"vocab_size\": 128",
            "shared.weight",
        ),
    ] {
        assert!(config.contains(from), "{from}");
        fs::write(folder.path().join("config.json"), config.replace(from, to)).unwrap();
        let run = seqembed(&["export", text(folder.path()), "-o", text(&target)]);
        assert_run(&run, WRONG, &[named]);
    }
}
