//! `seqembed verify`: what a model computes beside values that are known.

use std::path::PathBuf;
use std::process::Output;

use serde_json::{Value, json};

use crate::common::{
    DONE, Place, WRONG, assert_run, export, exported, fixtures, rows_of, seqembed, text,
};

const SEQUENCE: &str = "MKTAYIAKQR";

/// What the model computed for the sequence, row after row.
fn computed(model: &str, pooling: &str) -> Vec<Vec<f32>> {
    let fasta = format!(">one\n{SEQUENCE}\n");
    let rows = rows_of(model, &fasta, &["--pooling", pooling]);
    let vectors = rows.values.chunks(rows.hidden);
    vectors.map(<[f32]>::to_vec).collect()
}

fn verify(model: &str, values: &Value, options: &[&str]) -> Output {
    let place = Place::new(&[("values.json", values.to_string().as_bytes())]);
    let path = place.path("values.json");
    let mut arguments = vec!["verify", model, "--values", text(&path)];
    arguments.extend(options);
    seqembed(&arguments)
}

#[test]
fn recorded_values_agree_and_changed_ones_do_not() {
    let (mean, residues) = (computed("esm2", "mean"), computed("esm2", "none"));
    let norm = mean[0].iter().map(|x| x * x).sum::<f32>().sqrt();
    let mut values = json!([
        {"sequence": SEQUENCE, "values": mean[0], "norm": norm, "source": "this test"},
        {"sequence": SEQUENCE, "residue": 3, "values": residues[2][..4], "tolerance": 1e-5},
        {"sequence": SEQUENCE, "pooling": "cls", "values": computed("esm2", "cls")[0][..2]},
    ]);
    let model = text(exported("esm2"));
    let all = mean[0].len() + 1 + 4 + 2;
    let run = verify(model, &values, &["--device", "cpu"]);
    assert_run(&run, DONE, &[&format!("all {all} values agree")]);
    let table = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(
        table.contains("this test:") && !table.contains("DIFFERS"),
        "{table}"
    );
    assert_eq!(table.matches("value 4 of residue 3 ").count(), 1, "{table}");

    // One value by a little more than its tolerance, and the norm.
    values[1]["values"][3] = json!(residues[2][3] + 2e-5);
    values[0]["norm"] = json!(norm * 1.01);
    let run = verify(model, &values, &[]);
    assert_run(&run, 1, &[&format!("2 of {all} values differ")]);
    let table = String::from_utf8_lossy(&run.stdout).into_owned();
    let differing: Vec<&str> = table
        .lines()
        .filter(|line| line.ends_with("DIFFERS"))
        .collect();
    assert_eq!(differing.len(), 2, "{table}");
    assert!(differing[0].starts_with("norm of mean "), "{table}");
    // Both numbers are in the line.
    let both = [residues[2][3] + 2e-5, residues[2][3]].map(|x| format!("{x:.6}"));
    assert!(both.iter().all(|x| differing[1].contains(x)), "{table}");
}

#[test]
fn layers_and_bases() {
    let fasta = format!(">one\n{SEQUENCE}\n");
    let first = rows_of("esm2", &fasta, &["--layer", "1"]).values;
    let values = json!([{"sequence": SEQUENCE, "layer": 1, "values": first}]);
    assert_run(&verify(text(exported("esm2")), &values, &[]), DONE, &[]);
    let last = json!([{"sequence": SEQUENCE, "values": first}]);
    assert_run(&verify(text(exported("esm2")), &last, &[]), 1, &["differ"]);

    let rows = rows_of(
        "dnabert2",
        ">d\nACGTTGCAACGTACG\n",
        &["--pooling", "mean-all"],
    );
    let values =
        json!([{"sequence": "ACGTTGCAACGTACG", "pooling": "mean-all", "values": rows.values}]);
    assert_run(&verify(text(exported("dnabert2")), &values, &[]), DONE, &[]);
}

/// Its letters are also bases, and many: `verify` has no option that says which they are.
#[test]
fn a_sequence_of_which_values_are_known_is_what_the_model_is_for() {
    let sequence = "GATTACA".repeat(10);
    let fasta = format!(">one\n{sequence}\n");
    let rows = rows_of("esm2", &fasta, &["--force-alphabet"]).values;
    let values = json!([{"sequence": sequence, "values": rows}]);
    assert_run(&verify(text(exported("esm2")), &values, &[]), DONE, &[]);
}

/// Weights that are not the published ones, under the published name.
#[test]
fn other_weights_do_not_give_published_values() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    let checkpoint = fixtures().join("esm2/checkpoints/hub-safetensors");
    export(&checkpoint, &model, "esm2_t6_8M_UR50D");
    let run = seqembed(&["verify", "esm2_t6_8M_UR50D", "--model", text(&model)]);
    assert_run(&run, 1, &["of 9 values differ"]);
    let table = String::from_utf8_lossy(&run.stdout).into_owned();
    for published in ["0.144400", "0.541300", "0.341500", "transformers"] {
        assert!(table.contains(published), "{table}");
    }
}

#[test]
fn what_cannot_be_compared_is_said() {
    let model = text(exported("esm2"));
    let cases = [
        (
            json!([{"sequence": "MKT"}]),
            "number 1: neither `values` nor `norm`",
        ),
        (
            json!([{"sequence": "MKT", "norm": 1, "pooling": "median"}]),
            "no pooling \"median\"",
        ),
        (
            json!([{"sequence": "MKT", "norm": 1, "pooling": "none"}]),
            "give `residue`",
        ),
        (
            json!([{"sequence": "MKT", "norm": 1, "pooling": "cls", "residue": 1}]),
            "both `pooling` and `residue`",
        ),
        (
            json!([{"sequence": "MKT", "norm": 1}, {"sequence": "MKT", "norm": 1, "residue": 4}]),
            "number 2: there is no residue 4: the sequence has 3",
        ),
        (
            json!([{"sequence": "MKT", "norm": 1, "residue": 0}]),
            "no residue 0",
        ),
        (
            json!([{"sequence": "MKT", "values": vec![0.0; 9999]}]),
            "it has 9999 values",
        ),
        (json!([{"sequence": "MKT", "norm": 1, "layer": 99}]), "99"),
        (
            json!([{"sequence": "MKT", "norm": 1, "colour": 1}]),
            "colour",
        ),
        (
            json!([{"sequence": "MKT", "values": [1e39]}]),
            "number 1: it has the value inf",
        ),
        (
            json!([{"sequence": "MKT", "norm": -1e39}]),
            "number 1: it has the value -inf",
        ),
        // Within it, any numbers would agree.
        (
            json!([{"sequence": "MKT", "norm": 1, "tolerance": 1e39}]),
            "its tolerance is inf",
        ),
        (
            json!([{"sequence": "MKT", "norm": 1, "tolerance": -1e-4}]),
            "its tolerance is -0.0001",
        ),
        (
            json!([{"sequence": "", "norm": 1}]),
            "number 1: its sequence has no vector (skipped: empty sequence)",
        ),
        (json!([]), "compare with your own"),
        (json!([]), "values.json is an empty list"),
        (json!({}), "not a list of known values"),
    ];
    for (values, why) in cases {
        let run = verify(model, &values, &[]);
        assert_run(&run, WRONG, &["error: ", why]);
        assert!(run.stdout.is_empty());
    }
    let none = PathBuf::from("/nowhere/values.json");
    let run = seqembed(&["verify", model, "--values", text(&none)]);
    assert_run(
        &run,
        WRONG,
        &["cannot read the values in /nowhere/values.json"],
    );
    // Nothing is published of it, there is no such model, and it was not downloaded.
    assert_run(
        &seqembed(&["verify", "DNABERT-3"]),
        WRONG,
        &["--values FILE"],
    );
    let run = seqembed(&["verify", "esm2_650M"]);
    assert_run(
        &run,
        WRONG,
        &["did you mean `esm2_t33_650M_UR50D`", "--values FILE"],
    );
    let place = Place::new(&[]);
    let missing = text(&place.path("none")).to_owned();
    let run = seqembed(&["verify", "DNABERT-S", "-m", &missing]);
    assert_run(&run, WRONG, &["there is no model"]);
}
