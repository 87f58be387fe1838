//! `seqembed score` of the files of a manifest, and runs that were stopped and go on: what was
//! scored is taken where nothing that it depends on has changed.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::interrupted::{PROTEIN, copy, kill_once_saved, leftovers, proteins};
use crate::common::{
    self, DONE, PARTLY, Place, WRONG, assert_run, edited, export, fixtures, seqembed, text,
};
use crate::score::{exported, input, table};

const ESM2: &str = "esm2/checkpoints/hub-safetensors";

fn report(out: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(out.join("report.json")).unwrap()).unwrap()
}

/// The tables in a folder, by their names.
fn tables(out: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let tables = entries.filter(|path| path.extension().is_some_and(|kind| kind == "tsv"));
    let mut tables: Vec<_> = tables
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    tables.sort();
    tables
}

#[test]
fn a_killed_run_goes_on_with_what_it_saved() {
    let place = Place::new(&[
        ("short.faa", proteins(1, 5).as_bytes()),
        ("long.faa", proteins(2, 60).as_bytes()),
    ]);
    let model = exported(ESM2, "esm2", &place.path(""));
    let ids = fs::read_to_string(place.path("long.faa")).unwrap();
    let mut variants = "id\tvariant\n".to_owned();
    for record in ids.split('>').skip(1) {
        let (id, sequence) = record.split_once('\n').unwrap();
        let sequence = sequence.as_bytes();
        let ends = sequence.first().zip(sequence.get(2));
        let known = |letter: &u8| PROTEIN.contains(letter);
        let Some((&first, &third)) = ends.filter(|(one, other)| known(one) && known(other)) else {
            continue;
        };
        let id = id.split(' ').next().unwrap();
        let (first, third) = (char::from(first), char::from(third));
        let _ = write!(variants, "{id}\t{first}1W:{third}3C\n{id}\t{first}1W\n");
    }
    let variants_path = place.path("variants.tsv");
    fs::write(&variants_path, variants).unwrap();
    for (name, options) in [
        ("tables", vec!["--per-residue", "--scan"]),
        (
            "variants",
            vec!["--variants", text(&variants_path), "--joint"],
        ),
    ] {
        let command = |out: &Path, more: &[&str]| {
            let mut command = Command::new(common::executable());
            let files = [place.path("short.faa"), place.path("long.faa")];
            command
                .arg("score")
                .args(files)
                .args(["-m", text(&model), "-o", text(out)]);
            command.args(["--method", "masked", "--format", "tsv", "--threads", "1"]);
            command
                .args(["--batch-tokens", "256"])
                .args(&options)
                .args(more);
            command
        };
        let out = place.path(&format!("{name}-killed"));
        common::retry_if_late(|before| {
            let _ = fs::remove_dir_all(&out);
            let mut child = command(&out, &["--save-every", "0.01"]);
            child.env("SEQEMBED_INJECT", common::slower(before));
            let child = child.stderr(Stdio::null()).spawn().unwrap();
            kill_once_saved(child, &out).then_some(())
        });
        let other = place.path(&format!("{name}-other"));
        copy(&out, &other);
        let fresh = place.path(&format!("{name}-fresh"));
        assert_run(&command(&fresh, &[]).output().unwrap(), DONE, &[]);
        assert_run(&command(&out, &["--resume"]).output().unwrap(), DONE, &[]);
        assert_eq!(tables(&out), tables(&fresh), "{name}");
        assert_eq!(leftovers(&out), Vec::<String>::new());
        let (resumed, whole) = (report(&out), report(&fresh));
        let restored = resumed["totals"]["restored"].as_u64().unwrap();
        let kept = resumed["files"][0]["kept"] == true;
        assert!(restored > 0, "{name}: {resumed}");
        let tokens = |report: &serde_json::Value| report["totals"]["tokens"].as_u64().unwrap();
        assert!(tokens(&resumed) < tokens(&whole), "{name}, kept {kept}");
        // What was saved is of other options.
        let (mut changed, why) = if name == "tables" {
            (
                command(&other, &["--overlap", "3"]),
                "overlap was 255 and is 3",
            )
        } else {
            let text = fs::read_to_string(&variants_path).unwrap();
            fs::write(&variants_path, text + "\n").unwrap();
            (command(&other, &[]), "variants_blake3 differs")
        };
        let run = changed.arg("--resume").output().unwrap();
        assert_run(&run, DONE, &["recomputed: ", why]);
        assert_eq!(report(&other)["totals"]["restored"], 0, "{name}");
    }
}

#[test]
fn what_is_finished_is_kept_unless_it_would_be_another() {
    let place = Place::new(&[("more.faa", proteins(3, 4).as_bytes())]);
    let model = exported(ESM2, "esm2", &place.path(""));
    let manifest = place.path("files.csv");
    let lines = format!(
        "sample,fasta\none,{}\ntwo,more.faa\n",
        input("proteins.faa").display()
    );
    fs::write(&manifest, lines).unwrap();
    let out = place.path("out");
    let score = |model: &Path, options: &[&str], fragments: &[&str]| {
        let arguments = ["score", "--manifest", text(&manifest), "-m", text(model)];
        let run = [&arguments[..], &["-o", text(&out), "--resume"], options].concat();
        assert_run(&seqembed(&run), DONE, fragments);
        let files = report(&out)["files"].as_array().unwrap().clone();
        assert_eq!(files.len(), 2);
        assert_eq!(files[0]["sample"], "one");
        files.iter().filter(|file| file["kept"] == true).count()
    };
    assert_eq!(score(&model, &[], &[]), 0);
    assert_eq!(score(&model, &[], &[]), 2);
    assert_eq!(report(&out)["totals"]["tokens"], 0);
    for (options, why) in [
        (vec!["--per-residue"], "tables was records and is"),
        (
            vec!["--format", "tsv"],
            "format was scores in parquet and is scores in tsv",
        ),
        (
            vec!["--method", "masked"],
            "method was unmasked and is masked",
        ),
        (vec!["--max-length", "20"], "max_length was 1022 and is 20"),
        (
            vec!["--kernels", "portable"],
            "kernels was auto and is portable",
        ),
    ] {
        assert_eq!(score(&model, &options, &[why]), 0, "{options:?}");
        assert_eq!(score(&model, &options, &[]), 2, "{options:?}");
        assert_eq!(score(&model, &[], &[]), 0);
    }
    // A file that was changed, and its output.
    fs::write(place.path("more.faa"), proteins(4, 4)).unwrap();
    assert_eq!(score(&model, &[], &["more.faa has changed"]), 1);
    fs::write(out.join("one.parquet"), "x").unwrap();
    assert_eq!(score(&model, &[], &["one.parquet was changed"]), 1);
    // The same weights with another head.
    let checkpoint = place.path("checkpoint");
    edited(&fixtures().join(ESM2), &checkpoint, |name, _, values| {
        if name == "lm_head.bias" {
            values[5] += 1.0;
        }
    });
    let other = place.path("other");
    export(&checkpoint, &other, "esm2");
    assert_eq!(score(&other, &[], &["head_blake3 differs"]), 0);
    let without = [
        "score",
        "--manifest",
        text(&manifest),
        "-m",
        text(&model),
        "-o",
        text(&out),
    ];
    assert_run(&seqembed(&without), DONE, &[]);
    assert_eq!(report(&out)["files"][0]["kept"], false);
}

#[test]
fn a_folder_in_a_tables_place_costs_that_file_alone() {
    let place = Place::new(&[("a.faa", b">a\nMKTA\n"), ("b.faa", b">b\nMKTA\n")]);
    let model = exported(ESM2, "esm2", &place.path(""));
    let out = place.path("out");
    fs::create_dir_all(out.join("a.scan.tsv")).unwrap();
    let (a, b) = (place.path("a.faa"), place.path("b.faa"));
    let run = [
        "score",
        text(&a),
        text(&b),
        "-m",
        text(&model),
        "-o",
        text(&out),
    ];
    let run = [&run[..], &["--scan", "--format", "tsv"]].concat();
    assert_run(&seqembed(&run), PARTLY, &["a.scan.tsv: there is a folder"]);
    assert!(!out.join("a.tsv").exists() && out.join("b.scan.tsv").is_file());
    let files = report(&out)["files"].as_array().unwrap().clone();
    assert!(files[0]["error"].is_string() && files[1]["error"].is_null());
}

#[test]
fn a_manifest_has_options_and_models_of_its_own() {
    let place = Place::new(&[("broken.faa", b"MK\n"), ("d.fna", b">d\nACGTACGTTGCAAC\n")]);
    let esm2 = exported(ESM2, "esm2", &place.path(""));
    let cambrian = exported("esmc/checkpoints/hub", "esmc", &place.path(""));
    let nt = exported("nt/checkpoints/v1-bin", "nt", &place.path(""));
    let [proteins, chains] = [
        input("proteins.faa"),
        fixtures().join("bert/inputs/chains.faa"),
    ];
    let manifest = place.path("files.yaml");
    // What is of embeddings is not used.
    let of = |files: &[(&str, &Path, &Path, &str)]| {
        let mut lines = "pooling: mean,cls\nlayer: 1\nformat: npy\nfiles:\n".to_owned();
        for (sample, file, model, more) in files {
            let (file, model) = (file.display(), model.display());
            let _ = writeln!(
                lines,
                "- {{sample: {sample}, fasta: {file}, model: {model}{more}}}"
            );
        }
        fs::write(&manifest, lines).unwrap();
    };
    of(&[
        ("c", &proteins, &cambrian, ""),
        ("whole", &proteins, &esm2, ""),
        ("d", &place.path("d.fna"), &nt, ", revcomp: mean"),
        ("cut", &proteins, &esm2, ", max_length: 20, overlap: 5"),
        ("bad", &place.path("broken.faa"), &esm2, ""),
    ]);
    let out = place.path("out");
    let run = |options: &[&str]| {
        let arguments = ["score", "--manifest", text(&manifest), "-o", text(&out)];
        seqembed(&[&arguments[..], &["--format", "tsv"], options].concat())
    };
    assert_run(&run(&[]), PARTLY, &["broken.faa"]);
    let files = report(&out)["files"].as_array().unwrap().clone();
    let samples: Vec<&str> = files
        .iter()
        .map(|file| file["sample"].as_str().unwrap())
        .collect();
    assert_eq!(samples, ["c", "whole", "d", "cut", "bad"]);
    let status = |name: &str| -> Vec<String> {
        let rows = table(&out.join(format!("{name}.tsv")));
        rows.iter().map(|row| row["status"].clone()).collect()
    };
    assert_eq!(status("whole"), ["ok"; 4]);
    assert_eq!(status("cut"), ["windowed", "ok", "ok", "windowed"]);
    assert_eq!((status("c").len(), status("d").len()), (4, 1));
    // Each model's scores are those of a run of its own.
    for (sample, file, model) in [
        ("c", &proteins, &cambrian),
        ("d", &place.path("d.fna"), &nt),
    ] {
        let alone = place.path(&format!("alone-{sample}"));
        let run = [
            text(file),
            "-m",
            text(model),
            "-o",
            text(&alone),
            "--format",
            "tsv",
        ];
        assert_run(&seqembed(&[&["score"], &run[..]].concat()), DONE, &[]);
        let stem = file.file_stem().unwrap().to_str().unwrap();
        let alone = fs::read_to_string(alone.join(format!("{stem}.tsv"))).unwrap();
        assert_eq!(
            fs::read_to_string(out.join(format!("{sample}.tsv"))).unwrap(),
            alone
        );
    }
    // Variants are looked for in the files of all models.
    let variants: PathBuf = place.path("variants.tsv");
    fs::write(&variants, "id\tvariant\na\tM1K\nlight\tE1K\n").unwrap();
    of(&[
        ("one", &proteins, &esm2, ""),
        ("two", &chains, &cambrian, ""),
    ]);
    assert_run(&run(&["--variants", text(&variants)]), DONE, &[]);
    for (sample, id) in [("one", "a"), ("two", "light")] {
        let rows = table(&out.join(format!("{sample}.variants.tsv")));
        assert_eq!((rows.len(), rows[0]["id"].as_str()), (1, id));
    }
    fs::write(&variants, "id\tvariant\nb\tM1K\nzz\tE1K\n").unwrap();
    let run = run(&["--variants", text(&variants)]);
    assert_run(&run, WRONG, &["line 3: no sequence has the id \"zz\""]);
}
