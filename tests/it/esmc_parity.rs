//! ESM C against transformers.
//!
//! `tests/fixtures/esmc` is made by `onnx/reference/esmc_fixtures.py`, which also prints how far
//! the typical mistakes of the family move a vector: at least a thousand times the bound that holds
//! here.

use std::path::Path;
use std::sync::OnceLock;

use crate::common::reference::{Exported, KERNELS, Reference, assert_independent_of_batches};

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| Reference::open("esmc"))
}

/// The exported folder, made once for all tests.
fn model() -> &'static Path {
    static EXPORTED: OnceLock<Exported> = OnceLock::new();
    EXPORTED
        .get_or_init(|| reference().export("esmc"))
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
        reference().check_per_token(case, model(), kernels, None);
    }
}

/// With seqembed's kernels, a sequence has the same bits whatever else is in its batch.
#[test]
fn nothing_depends_on_batches_or_threads() {
    let input = reference().input(reference().case("mixed"));
    assert_independent_of_batches(&input, model());
}
