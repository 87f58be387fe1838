//! Learned positions: a table with a vector for each place in a sequence, which is added to that of
//! its token.

use crate::graph::layers::Frame;
use crate::graph::ort_cuda;
use crate::graph::request::GraphKind;
use crate::weights::table::{Input, Plan, TensorSource};

/// Plans the table, [rows - first, hidden]: the first token of a sequence has row `first` of the
/// checkpoint's `rows`.
pub fn plan(plan: &mut Plan, rows: usize, first: usize, hidden: usize) {
    let table = Input::new(
        "embeddings.position_embeddings.weight".to_owned(),
        &[rows, hidden],
    );
    if first == 0 {
        return plan.copy("positions".to_owned(), table);
    }
    let source = TensorSource::Part {
        input: table,
        first,
        rows: rows - first,
    };
    plan.add("positions".to_owned(), &[rows - first, hidden], source);
}

/// The embeddings of words, [tokens, hidden], with those of their places.
pub fn add(frame: &mut Frame<'_, '_>, words: &str) -> String {
    let table = frame.builder.weight("positions");
    match frame.kind {
        GraphKind::Padded => {
            let positions = frame.positions();
            let positions = frame.builder.op("Gather", &[&table, &positions], &[]);
            let words = frame.as_rows(words, frame.hidden());
            let sum = frame.builder.op("Add", &[&words, &positions], &[]);
            frame.as_flat(&sum, frame.hidden())
        }
        GraphKind::Packed | GraphKind::Fused | GraphKind::OrtCuda => {
            let positions = if frame.kind == GraphKind::OrtCuda {
                ort_cuda::position_ids(frame.builder)
            } else {
                let inputs = ["sequence_starts", "input_ids"];
                frame.builder.op("seqembed:Positions", &inputs, &[])
            };
            let positions = frame.builder.op("Gather", &[&table, &positions], &[]);
            frame.builder.op("Add", &[words, &positions], &[])
        }
    }
}
