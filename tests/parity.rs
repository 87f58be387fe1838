//! Vectors from the executable against those that fair-esm and transformers agree on.
//!
//! The checkpoints, inputs and expected vectors in `tests/fixtures/esm2` are made by
//! `onnx/reference/esm2_fixtures.py`, which shares no code with this project. Every test drives the built
//! executable: `export` a checkpoint, `embed` a file, read the output back. ONNX Runtime is found as the
//! executable finds it (`ORT_DYLIB_PATH`, a Python wheel ...); `make test` provides one.

// The helpers' panics are failed tests too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use safetensors::SafeTensors;
use seqembed::output::{self, Rows};
use serde::Deserialize;
use tempfile::TempDir;

/// Largest difference to the reference in fp32.
const BOUND: f32 = 2e-5;
/// Largest difference between two ways to run the same.
const SAME: f32 = 1e-5;
/// The model's name, whatever its checkpoint is called.
const NAME: &str = "esm2_small";
/// Our kernels, and the padded graph of ONNX Runtime's own operators.
const KERNELS: [&str; 2] = ["auto", "portable"];

#[derive(Deserialize)]
struct Fixtures {
    hidden: usize,
    layers: usize,
    checkpoints: Vec<String>,
    widths: Widths,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Widths {
    input: String,
    models: Vec<Width>,
}

#[derive(Deserialize)]
struct Width {
    name: String,
    checkpoint: String,
    layer: usize,
    hidden: usize,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    input: String,
    options: Vec<String>,
    layers: Vec<usize>,
    poolings: Vec<String>,
    per_token_records: Vec<usize>,
    ids: Vec<String>,
    lengths: Vec<u64>,
    status: Vec<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/esm2")
}

fn fixtures() -> &'static Fixtures {
    static FIXTURES: OnceLock<Fixtures> = OnceLock::new();
    FIXTURES.get_or_init(|| {
        let text = std::fs::read_to_string(folder().join("cases.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    })
}

/// Every expected tensor by name.
fn expected(name: &str) -> &'static [f32] {
    static TENSORS: OnceLock<BTreeMap<String, Vec<f32>>> = OnceLock::new();
    let tensors = TENSORS.get_or_init(|| {
        let bytes = std::fs::read(folder().join("expected.safetensors")).unwrap();
        SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(name, tensor)| {
                let values = tensor
                    .data()
                    .chunks_exact(4)
                    .map(|value| f32::from_le_bytes(value.try_into().unwrap()))
                    .collect();
                (name, values)
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
        let widths = fixtures().widths.models.iter().map(|w| &w.checkpoint);
        let models = fixtures()
            .checkpoints
            .iter()
            .chain(widths)
            .map(|checkpoint| {
                let model = scratch.path().join(checkpoint.replace(['/', '.'], "_"));
                let source = folder().join(checkpoint);
                // The name stands in the graph: one for all, so that files can be compared.
                succeed(&["export", text(&source), "-o", text(&model), "--name", NAME]);
                (checkpoint.clone(), model)
            })
            .collect();
        (scratch, models)
    });
    &models[checkpoint]
}

/// `embed` in a fresh output folder; the rows of each input file, in the order given.
fn embed(files: &[&Path], model: &Path, options: &[&str]) -> Vec<Rows> {
    let out = tempfile::tempdir().unwrap();
    let mut arguments = vec!["embed"];
    arguments.extend(files.iter().map(|file| text(file)));
    arguments.extend(["-m", text(model), "-o", text(out.path())]);
    if !options.contains(&"--format") {
        arguments.extend(["--format", "npz"]);
    }
    arguments.extend(options);
    succeed(&arguments);
    let extension = match options.iter().position(|option| *option == "--format") {
        Some(at) => options[at + 1],
        None => "npz",
    };
    files
        .iter()
        .map(|file| {
            let name = format!("{}.{extension}", text(Path::new(file.file_stem().unwrap())));
            output::read(&out.path().join(name)).unwrap().0
        })
        .collect()
}

fn embed_one(file: &Path, model: &Path, options: &[&str]) -> Rows {
    embed(&[file], model, options).pop().unwrap()
}

/// The first checkpoint, exported.
fn model() -> &'static Path {
    exported(&fixtures().checkpoints[0])
}

fn case(name: &str) -> &'static Case {
    fixtures()
        .cases
        .iter()
        .find(|case| case.name == name)
        .unwrap()
}

fn largest_difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len(), "number of values");
    ours.iter().zip(theirs).fold(0.0, |largest, (a, b)| {
        let difference = (a - b).abs();
        // NaN must not slip through a comparison.
        if difference.is_nan() {
            f32::INFINITY
        } else {
            largest.max(difference)
        }
    })
}

fn assert_close(ours: &[f32], theirs: &[f32], bound: f32, what: &str) {
    let largest = largest_difference(ours, theirs);
    assert!(
        largest <= bound,
        "{what}: largest difference {largest:.1e}, allowed {bound:.0e}"
    );
}

/// The vectors of one row of per-token output.
fn row(rows: &Rows, record: usize) -> &[f32] {
    let before: usize = rows.vectors[..record].iter().sum();
    &rows.values[before * rows.hidden..(before + rows.vectors[record]) * rows.hidden]
}

/// Runs a case in every pooling, layer and graph; returns the largest difference seen.
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
                let rows = embed_one(&input, model(), &options);
                let what = options.join(" ");
                assert_eq!(rows.hidden, fixtures().hidden, "{what}");
                assert_eq!(rows.ids, case.ids, "{what}");
                assert_eq!(rows.lengths, case.lengths, "{what}");
                assert_eq!(rows.status, case.status, "{what}");
                let theirs = expected(&format!("{name}/{pooling}/{layer}"));
                assert_close(&rows.values, theirs, BOUND, &format!("{name} {what}"));
                worst = worst.max(largest_difference(&rows.values, theirs));
            }
        }
    }
    println!("{name}: largest difference to the reference {worst:.1e}");
}

#[test]
fn mixed_lengths_in_every_pooling_and_layer() {
    check_pooled("mixed");
}

#[test]
fn unknown_letters_lower_case_gaps_and_a_terminal_star() {
    check_pooled("letters");
}

#[test]
fn truncated_to_the_first_residues() {
    check_pooled("truncated");
}

#[test]
fn windows_joined_where_each_residue_is_most_central() {
    check_pooled("windowed");
}

#[test]
fn per_token_vectors() {
    for case in &fixtures().cases {
        for kernels in KERNELS {
            for layer in &case.layers {
                let layer = layer.to_string();
                let mut options = vec!["--kernels", kernels, "--layer", &layer];
                options.extend(["--pooling", "none"]);
                options.extend(case.options.iter().map(String::as_str));
                let rows = embed_one(&folder().join(&case.input), model(), &options);
                let what = format!("{} {}", case.name, options.join(" "));
                let kept: Vec<u64> = rows.vectors.iter().map(|&count| count as u64).collect();
                if case.name == "truncated" {
                    assert!(kept.iter().all(|&count| count == 100), "{what}: {kept:?}");
                } else {
                    assert_eq!(kept, case.lengths, "{what}: a vector a residue");
                }
                for record in &case.per_token_records {
                    let theirs = expected(&format!("{}/none/{layer}/{record}", case.name));
                    assert_close(row(&rows, *record), theirs, BOUND, &what);
                }
            }
        }
    }
}

#[test]
fn no_layer_given_means_the_last() {
    let case = case("mixed");
    let input = folder().join(&case.input);
    let last = fixtures().layers.to_string();
    let plain = embed_one(&input, model(), &[]);
    let told = embed_one(&input, model(), &["--layer", &last, "--pooling", "mean"]);
    assert_eq!(plain, told);
}

#[test]
fn every_checkpoint_format_gives_the_same_weights_and_vectors() {
    let case = case("mixed");
    let input = folder().join(&case.input);
    let theirs = expected(&format!("mixed/mean/{}", fixtures().layers));
    let weights = std::fs::read(model().join("weights.bin")).unwrap();
    let graph = std::fs::read(model().join("model.onnx")).unwrap();
    for checkpoint in &fixtures().checkpoints {
        let model = exported(checkpoint);
        assert!(
            std::fs::read(model.join("weights.bin")).unwrap() == weights,
            "{checkpoint}: weights.bin differs from {}'s",
            fixtures().checkpoints[0]
        );
        assert!(
            std::fs::read(model.join("model.onnx")).unwrap() == graph,
            "{checkpoint}: model.onnx differs from {}'s",
            fixtures().checkpoints[0]
        );
        let rows = embed_one(&input, model, &[]);
        assert_close(&rows.values, theirs, BOUND, checkpoint);
    }
}

#[test]
fn exporting_twice_gives_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let again = scratch.path().join("again");
    let source = folder().join(&fixtures().checkpoints[0]);
    succeed(&["export", text(&source), "-o", text(&again), "--name", NAME]);
    let names = |folder: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&again), names(model()));
    for name in names(model()) {
        let same = std::fs::read(again.join(&name)).unwrap()
            == std::fs::read(model().join(&name)).unwrap();
        assert!(same, "{} differs", name.display());
    }
}

#[test]
fn heads_as_wide_as_the_true_sizes_from_half_precision_files() {
    let widths = &fixtures().widths;
    for width in &widths.models {
        let theirs = expected(&format!("{}/mean/{}", width.name, width.layer));
        for kernels in KERNELS {
            let options = ["--kernels", kernels];
            let input = folder().join(&widths.input);
            let rows = embed_one(&input, exported(&width.checkpoint), &options);
            assert_eq!(rows.hidden, width.hidden, "{}", width.name);
            let what = format!("{} {kernels}", width.name);
            assert_close(&rows.values, theirs, BOUND, &what);
        }
    }
}

#[test]
fn nothing_depends_on_batches_threads_or_the_order_of_files() {
    let whole = folder().join(&case("mixed").input);
    let fasta = std::fs::read_to_string(&whole).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let parts: Vec<PathBuf> = fasta
        .split('>')
        .filter(|record| !record.is_empty())
        .enumerate()
        .map(|(number, record)| {
            let path = scratch.path().join(format!("part{number:02}.faa"));
            std::fs::write(&path, format!(">{record}")).unwrap();
            path
        })
        .collect();
    let forward: Vec<&Path> = parts.iter().map(PathBuf::as_path).collect();
    let backward: Vec<&Path> = forward.iter().rev().copied().collect();
    let join =
        |rows: Vec<Rows>| -> Vec<f32> { rows.into_iter().flat_map(|rows| rows.values).collect() };
    for kernels in KERNELS {
        for pooling in ["mean", "none"] {
            let common = ["--kernels", kernels, "--pooling", pooling];
            let reference = embed_one(&whole, model(), &common).values;
            let check = |values: Vec<f32>, what: &str| {
                assert_close(&values, &reference, SAME, &format!("{common:?} {what}"));
            };
            for threads in ["1", "2"] {
                let options = [&common[..], &["--threads", threads]].concat();
                check(embed_one(&whole, model(), &options).values, threads);
            }
            for budget in ["1", "64", "300", "100000"] {
                let options = [&common[..], &["--batch-tokens", budget]].concat();
                check(embed_one(&whole, model(), &options).values, budget);
            }
            // Batches across files, and each file's records alone.
            check(join(embed(&forward, model(), &common)), "a file a record");
            let mut reversed = embed(&backward, model(), &common);
            reversed.reverse();
            check(join(reversed), "files in reverse");
        }
        // Every record in a run of its own.
        let common = ["--kernels", kernels, "--pooling", "none"];
        let reference = embed_one(&whole, model(), &common).values;
        let alone = forward.iter().map(|file| embed_one(file, model(), &common));
        assert_close(&join(alone.collect()), &reference, SAME, "a run a record");
    }
}

#[test]
fn parquet_holds_what_npz_holds() {
    let input = folder().join(&case("letters").input);
    for pooling in ["mean", "none"] {
        let npz = embed_one(&input, model(), &["--pooling", pooling]);
        let options = ["--pooling", pooling, "--format", "parquet"];
        assert_eq!(embed_one(&input, model(), &options), npz);
    }
}

#[test]
fn a_record_skipped_for_its_letters_leaves_the_others_as_they_were() {
    let case = case("letters");
    let out = tempfile::tempdir().unwrap();
    let input = folder().join(&case.input);
    // Records were skipped, so the exit code may say so: only the output is looked at here.
    let mut arguments = vec!["embed", text(&input), "-m", text(model())];
    arguments.extend(["-o", text(out.path()), "--format", "npz"]);
    arguments.extend(["--unknown", "skip"]);
    let run = seqembed(&arguments);
    assert!(
        matches!(run.status.code(), Some(0 | 3)),
        "{}: {}",
        run.status,
        String::from_utf8_lossy(&run.stderr)
    );
    let (rows, _) = output::read(&out.path().join("letters.npz")).unwrap();
    assert_eq!(rows.ids, case.ids);
    let theirs = expected(&format!("letters/mean/{}", fixtures().layers));
    let hidden = fixtures().hidden;
    for (record, status) in case.status.iter().enumerate() {
        let ours = row(&rows, record);
        if status == "replaced" {
            assert!(ours.iter().all(|value| value.is_nan()), "record {record}");
            let found = &rows.status[record];
            assert!(found.starts_with("skipped: "), "record {record}: {found}");
        } else {
            let theirs = &theirs[record * hidden..(record + 1) * hidden];
            assert_close(ours, theirs, BOUND, &format!("record {record}"));
        }
    }
}
