//! T5 encoders against transformers.
//!
//! `tests/fixtures/t5` is made by `onnx/reference/t5_fixtures.py`: checkpoints as on the hub, and
//! the expected vectors and ids.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::common::reference::{Exported, KERNELS, Reference, Tokens, token_ids, tokenizer};
use crate::common::{WRONG, assert_run, fixtures, seqembed, text};

const MODELS: [&str; 3] = ["prott5", "prostt5", "gated"];

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| Reference::open("t5"))
}

fn model(name: &str) -> &'static Path {
    static EXPORTED: OnceLock<Exported> = OnceLock::new();
    EXPORTED
        .get_or_init(|| reference().export("t5"))
        .folder(&format!("checkpoints/{name}"))
}

fn model_of(case: &str) -> &'static Path {
    model(case.split('-').next().unwrap())
}

#[test]
fn mixed_lengths_and_unknown_letters_in_every_pooling_and_layer() {
    for case in reference().cases() {
        reference().check_pooled(&case.name, model_of(&case.name));
    }
}

#[test]
fn per_token_vectors() {
    for case in reference().cases() {
        for kernels in KERNELS {
            for &layer in &case.layers {
                reference().check_per_token(case, model_of(&case.name), kernels, Some(layer));
            }
        }
    }
}

#[test]
fn token_ids_are_those_of_sentence_piece() {
    let cases: BTreeMap<String, Vec<Tokens>> = reference().tokens();
    assert_eq!(cases.len(), MODELS.len());
    for (name, cases) in cases {
        let tokenizer = tokenizer(model(&name));
        for case in cases {
            let ids = token_ids(&*tokenizer, &case.sequence);
            assert_eq!(ids, case.ids, "{}", case.sequence);
        }
    }
    // Between two chains, as IgT5's authors write it.
    let tokenizer = tokenizer(model("prott5"));
    assert_eq!(token_ids(&*tokenizer, "A|C"), [3, 1, 22, 1]);
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
