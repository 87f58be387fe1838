//! AMPLIFY against its authors' code.
//!
//! `tests/fixtures/amplify` is made by `onnx/reference/amplify_fixtures.py`: a checkpoint as on the
//! hub, and the expected vectors and ids.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::common::reference::{Exported, KERNELS, Reference, Tokens, token_ids, tokenizer};
use crate::common::{WRONG, assert_run, fixtures, seqembed, text};

const HUB: &str = "amplify/checkpoints/hub";

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| Reference::open("amplify"))
}

fn model() -> &'static Path {
    static EXPORTED: OnceLock<Exported> = OnceLock::new();
    EXPORTED
        .get_or_init(|| reference().export("amplify"))
        .folder("checkpoints/hub")
}

#[test]
fn mixed_lengths_and_unknown_letters_in_every_pooling_and_layer() {
    for case in reference().cases() {
        reference().check_pooled(&case.name, model());
    }
}

#[test]
fn per_token_vectors() {
    let case = reference().case("mixed");
    for kernels in KERNELS {
        for &layer in &case.layers {
            reference().check_per_token(case, model(), kernels, Some(layer));
        }
    }
}

#[test]
fn token_ids_are_those_of_the_authors_tokenizer() {
    let cases: Vec<Tokens> = reference().tokens();
    let tokenizer = tokenizer(model());
    for case in cases {
        let ids = token_ids(&*tokenizer, &case.sequence);
        assert_eq!(ids, case.ids, "{}", case.sequence);
    }
}

/// What the graph would compute otherwise is refused by its setting's name.
#[test]
fn settings_and_tensors_that_are_not_amplifys_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let hub = fixtures().join(HUB);
    let config = fs::read_to_string(hub.join("config.json")).unwrap();
    fs::copy(
        hub.join("model.safetensors"),
        folder.path().join("model.safetensors"),
    )
    .unwrap();
    let target = folder.path().join("model");
    let refused = |words: &[&str]| {
        let run = seqembed(&["export", text(folder.path()), "-o", text(&target)]);
        assert_run(&run, WRONG, words);
    };
    for (from, to, named) in [
        ("\"SwiGLU\"", "\"GELU\"", "hidden_act"),
        ("\"rms_norm\": true", "\"rms_norm\": false", "rms_norm"),
        ("\"att_bias\": false", "\"att_bias\": true", "att_bias"),
        ("\"ffn_bias\": false", "\"ffn_bias\": true", "ffn_bias"),
        (
            "\"layer_norm_after_embedding\": false",
            "\"layer_norm_after_embedding\": true",
            "layer_norm_after_embedding",
        ),
        ("\"vocab_size\": 27", "\"vocab_size\": 32", "vocab_size"),
        ("\"max_length\": 2048", "\"max_length\": 2", "max_length"),
        (
            "\"num_attention_heads\": 2",
            "\"num_attention_heads\": 3",
            "3 heads",
        ),
        (
            "\"intermediate_size\": 100",
            "\"intermediate_size\": 1000",
            "ffn.w12.weight",
        ),
        (
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 1",
            "1 layers",
        ),
    ] {
        assert!(config.contains(from), "{from}");
        fs::write(folder.path().join("config.json"), config.replace(from, to)).unwrap();
        refused(&[named]);
    }
}
