//! ESM C against transformers.
//!
//! `tests/fixtures/esmc` is made by `onnx/reference/esmc_fixtures.py`, which also prints how far
//! the typical mistakes of the family move a vector: at least a thousand times the bound that holds
//! here.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::common::reference::{BOUND, KERNELS, Reference, embed, row};
use crate::common::{assert_close, export};

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| Reference::open("esmc"))
}

/// The exported folder, made once for all tests.
fn model() -> &'static Path {
    static EXPORTED: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, model) = EXPORTED.get_or_init(|| {
        let scratch = tempfile::tempdir().unwrap();
        let source = reference().folder.join("checkpoints/hub");
        let model = scratch.path().join("model");
        export(&source, &model, "esmc");
        (scratch, model)
    });
    model
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
        let options = ["--kernels", kernels, "--pooling", "none"];
        let rows = embed(&reference().input(case), model(), &options);
        for record in &case.per_token_records {
            let name = format!("mixed/none/{}/{record}", reference().layers());
            assert_close(
                row(&rows, *record),
                reference().expected(&name),
                BOUND,
                &name,
            );
        }
    }
}

/// With seqembed's kernels, a sequence has the same bits whatever else is in its batch.
#[test]
fn nothing_depends_on_batches_or_threads() {
    let input = reference().input(reference().case("mixed"));
    let whole = embed(&input, model(), &["--pooling", "none"]).values;
    for options in [
        ["--batch-tokens", "1"],
        ["--batch-tokens", "100000"],
        ["--threads", "1"],
    ] {
        let options = [&["--pooling", "none"], &options[..]].concat();
        let again = embed(&input, model(), &options).values;
        let same = whole
            .iter()
            .zip(&again)
            .all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same && whole.len() == again.len(), "{options:?}");
    }
}
