//! Vectors from the executable against those that fair-esm and transformers agree on.
//!
//! The checkpoints, inputs and expected vectors in `tests/fixtures/esm2` are made by
//! `onnx/reference/esm2_fixtures.py`, which shares no code with this project. Every test drives the
//! built executable: `export` a checkpoint, `embed` a file, read the output back. ONNX Runtime is
//! found as the executable finds it (`ORT_DYLIB_PATH`, a Python wheel ...); `make test` provides
//! one.

use seqembed::output::{self, Rows};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::common::reference::{
    BOUND, Exported, KERNELS, Reference, embed, embed_all, export_all, row,
};
use crate::common::{assert_close, export, seqembed, text};

/// Largest difference between two ways to run the same.
const SAME: f32 = 1e-5;
/// The model's name, whatever its checkpoint is called.
const NAME: &str = "esm2_small";

/// What this family's cases have beside what all have.
#[derive(Deserialize)]
struct Models {
    checkpoints: Vec<String>,
    widths: Widths,
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

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| Reference::open("esm2"))
}

fn models() -> &'static Models {
    static MODELS: OnceLock<Models> = OnceLock::new();
    MODELS.get_or_init(|| {
        let cases = std::fs::read_to_string(reference().folder.join("cases.json")).unwrap();
        serde_json::from_str(&cases).unwrap()
    })
}

/// The exported folder of a checkpoint, made once for all tests.
fn exported(checkpoint: &str) -> &'static Path {
    static EXPORTED: OnceLock<Exported> = OnceLock::new();
    let exported = EXPORTED.get_or_init(|| {
        let widths = models().widths.models.iter().map(|w| &w.checkpoint);
        let all = models().checkpoints.iter().chain(widths);
        export_all(&reference().folder, all, NAME)
    });
    exported.folder(checkpoint)
}

/// The first checkpoint, exported.
fn model() -> &'static Path {
    exported(&models().checkpoints[0])
}

fn check_pooled(name: &str) {
    reference().check_pooled(name, model());
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
    for case in reference().cases() {
        for kernels in KERNELS {
            for &layer in &case.layers {
                let rows = reference().check_per_token(case, model(), kernels, Some(layer));
                let what = format!("{} {kernels} {layer}", case.name);
                let kept: Vec<u64> = rows.vectors.iter().map(|&count| count as u64).collect();
                if case.name == "truncated" {
                    assert!(kept.iter().all(|&count| count == 100), "{what}: {kept:?}");
                } else {
                    assert_eq!(kept, case.lengths, "{what}: a vector a residue");
                }
            }
        }
    }
}

#[test]
fn no_layer_given_means_the_last() {
    let case = reference().case("mixed");
    let input = reference().input(case);
    let last = reference().layers().to_string();
    let plain = embed(&input, model(), &[]);
    let told = embed(&input, model(), &["--layer", &last, "--pooling", "mean"]);
    assert_eq!(plain, told);
}

#[test]
fn every_checkpoint_format_gives_the_same_weights_and_vectors() {
    let case = reference().case("mixed");
    let input = reference().input(case);
    let theirs = reference().expected(&format!("mixed/mean/{}", reference().layers()));
    let weights = std::fs::read(model().join("weights.bin")).unwrap();
    let graph = std::fs::read(model().join("model.onnx")).unwrap();
    for checkpoint in &models().checkpoints {
        let model = exported(checkpoint);
        assert!(
            std::fs::read(model.join("weights.bin")).unwrap() == weights,
            "{checkpoint}: weights.bin differs from {}'s",
            models().checkpoints[0]
        );
        assert!(
            std::fs::read(model.join("model.onnx")).unwrap() == graph,
            "{checkpoint}: model.onnx differs from {}'s",
            models().checkpoints[0]
        );
        let rows = embed(&input, model, &[]);
        assert_close(&rows.values, theirs, BOUND, checkpoint);
    }
}

#[test]
fn exporting_twice_gives_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let again = scratch.path().join("again");
    let source = reference().folder.join(&models().checkpoints[0]);
    export(&source, &again, NAME);
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
    let widths = &models().widths;
    for width in &widths.models {
        let theirs = reference().expected(&format!("{}/mean/{}", width.name, width.layer));
        for kernels in KERNELS {
            let options = ["--kernels", kernels];
            let input = reference().folder.join(&widths.input);
            let rows = embed(&input, exported(&width.checkpoint), &options);
            assert_eq!(rows.hidden, width.hidden, "{}", width.name);
            let what = format!("{} {kernels}", width.name);
            assert_close(&rows.values, theirs, BOUND, &what);
        }
    }
}

#[test]
fn nothing_depends_on_batches_threads_or_the_order_of_files() {
    let whole = reference().input(reference().case("mixed"));
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
            let reference = embed(&whole, model(), &common).values;
            let check = |values: Vec<f32>, what: &str| {
                assert_close(&values, &reference, SAME, &format!("{common:?} {what}"));
                // ONNX Runtime's own operators may round otherwise where a sequence is padded
                // otherwise.
                if kernels == "auto" {
                    let mut pairs = values.iter().zip(&reference);
                    let is_same = pairs.all(|(found, other)| found.to_bits() == other.to_bits());
                    assert!(is_same, "{common:?} {what}: other bits");
                }
            };
            for threads in ["1", "2"] {
                let options = [&common[..], &["--threads", threads]].concat();
                check(embed(&whole, model(), &options).values, threads);
            }
            for budget in ["1", "64", "300", "100000"] {
                let options = [&common[..], &["--batch-tokens", budget]].concat();
                check(embed(&whole, model(), &options).values, budget);
            }
            // Batches across files, and each file's records alone.
            check(
                join(embed_all(&forward, model(), &common)),
                "a file a record",
            );
            // Each sequence twice: the second one is not computed, or is, in other batches.
            let twice = scratch.path().join("twice.faa");
            std::fs::write(&twice, fasta.repeat(2)).unwrap();
            for options in [&common[..], &[&common[..], &["--no-dedup"]].concat()] {
                let both = embed(&twice, model(), options).values;
                let (first, second) = both.split_at(reference.len());
                check(first.to_vec(), "each twice, the first");
                check(second.to_vec(), "each twice, the second");
            }
            let mut reversed = embed_all(&backward, model(), &common);
            reversed.reverse();
            check(join(reversed), "files in reverse");
        }
        // Every record in a run of its own.
        let common = ["--kernels", kernels, "--pooling", "none"];
        let reference = embed(&whole, model(), &common).values;
        let alone = forward.iter().map(|file| embed(file, model(), &common));
        assert_close(&join(alone.collect()), &reference, SAME, "a run a record");
    }
}

#[test]
fn parquet_holds_what_npz_holds() {
    let input = reference().input(reference().case("letters"));
    for pooling in ["mean", "none"] {
        let npz = embed(&input, model(), &["--pooling", pooling]);
        let options = ["--pooling", pooling, "--format", "parquet"];
        assert_eq!(embed(&input, model(), &options), npz);
    }
}

#[test]
fn a_record_skipped_for_its_letters_leaves_the_others_as_they_were() {
    let case = reference().case("letters");
    let out = tempfile::tempdir().unwrap();
    let input = reference().input(case);
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
    let theirs = reference().expected(&format!("letters/mean/{}", reference().layers()));
    let hidden = reference().hidden();
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
