//! ESM-1b and ESM-1v against fair-esm and transformers.
//!
//! `tests/fixtures/esm1` is made by `onnx/reference/esm1_fixtures.py`: checkpoints in the layouts
//! of the hub and of fair-esm, and the vectors on which both packages agree.

use std::path::Path;
use std::sync::OnceLock;

use crate::common::reference::{Exported, KERNELS, Reference, embed};
use crate::common::{seqembed, text};

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| Reference::open("esm1"))
}

/// The exported folder of a checkpoint, made once for all tests.
fn exported(checkpoint: &str) -> &'static Path {
    static EXPORTED: OnceLock<Exported> = OnceLock::new();
    EXPORTED
        .get_or_init(|| reference().export("esm1"))
        .folder(checkpoint)
}

#[test]
fn mixed_lengths_and_unknown_letters_in_every_pooling_and_layer() {
    for case in reference().cases() {
        reference().check_pooled(&case.name, exported(&case.models[0]));
    }
}

#[test]
fn per_token_vectors() {
    for case in reference().cases() {
        for kernels in KERNELS {
            reference().check_per_token(case, exported(&case.models[0]), kernels, None);
        }
    }
}

#[test]
fn every_layout_of_a_checkpoint_gives_the_same_weights_and_graph() {
    for case in reference().cases() {
        let first = exported(&case.models[0]);
        for checkpoint in &case.models[1..] {
            let other = exported(checkpoint);
            for file in ["weights.bin", "model.onnx"] {
                let same = std::fs::read(first.join(file)).unwrap()
                    == std::fs::read(other.join(file)).unwrap();
                assert!(same, "{checkpoint}: {file} differs");
            }
        }
    }
}

/// There are positions for 300 tokens, of which <cls> and <eos> take two: a record of 298 residues
/// or fewer is embedded whole, a longer one in windows, and more at a time cannot be asked for.
#[test]
fn no_sequence_is_longer_than_the_table_of_positions() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("long.faa");
    let fits = "MKV".repeat(100)[..298].to_owned();
    std::fs::write(&input, format!(">fits\n{fits}\n>long\n{fits}A\n")).unwrap();
    let model = exported(&reference().cases()[0].models[0]);
    let rows = embed(&input, model, &[]);
    assert_eq!(rows.status, ["ok", "windowed"]);
    let out = folder.path().join("out");
    let mut arguments = vec!["embed", text(&input), "-m", text(model), "-o", text(&out)];
    arguments.extend(["--max-length", "299"]);
    let run = seqembed(&arguments);
    assert_eq!(run.status.code(), Some(2));
    let message = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(
        message.contains("299") && message.contains("298"),
        "{message}"
    );
}
