//! `--dry-run`: what it says of a run is what the run then does, and it writes nothing.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{DONE, PARTLY, WRONG, assert_run, exported, seqembed, text};

struct Place(TempDir);

impl Place {
    /// Two files with repeated, long, empty and odd sequences, and a manifest.
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let long = "MKVLAEFPQIWY".repeat(300);
        let mut a = format!(">long\n{long}\n>empty\n>x\nMKJ!V*\n");
        for record in 0..60 {
            let letters = &long[record % 12..20 + record % 30];
            writeln!(
                a,
                ">r{record} with some words
{letters}"
            )
            .unwrap();
        }
        fs::write(place.path("a.faa"), &a).unwrap();
        fs::write(place.path("b.faa"), a.replace(">r", ">other")).unwrap();
        let model = text(exported("esm2"));
        let manifest = format!(
            "model: {model}\nfiles:\n- {{sample: a, fasta: a.faa}}\n- {{sample: b, fasta: b.faa, pooling: none, format: npy}}\n"
        );
        fs::write(place.path("m.yaml"), manifest).unwrap();
        place
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    fn run(&self, more: &[&str]) -> std::process::Output {
        let (manifest, out) = (self.path("m.yaml"), self.path("out"));
        let fixed = [
            "run",
            text(&manifest),
            "-o",
            text(&out),
            "--max-length",
            "200",
        ];
        seqembed(&[&fixed, more].concat())
    }

    fn sizes(&self, more: &[&str]) -> Value {
        let run = self.run(&[&["--dry-run", "--json"], more].concat());
        assert_run(&run, DONE, &[]);
        serde_json::from_slice(&run.stdout).unwrap()
    }
}

/// Every path below a folder, with its contents.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path.clone());
            } else {
                all.push((path.clone(), fs::read(&path).unwrap()));
            }
        }
    }
    all.sort();
    all
}

#[test]
fn what_is_said_is_what_the_run_does() {
    let place = Place::new();
    for more in [&[][..], &["--no-dedup"], &["--long", "truncate"]] {
        let sizes = place.sizes(&[more, &["--rate", "1000"]].concat());
        assert!(!place.path("out").exists());
        assert_run(&place.run(more), DONE, &[]);
        let report = fs::read(place.path("out/report.json")).unwrap();
        let totals = serde_json::from_slice::<Value>(&report).unwrap()["totals"].clone();
        let keys = [
            "files",
            "records",
            "residues",
            "tokens",
            "windowed",
            "truncated",
            "skipped",
            "repeated",
        ];
        for key in keys {
            assert_eq!(sizes[key], totals[key], "{key} {more:?}");
        }
        let tokens = sizes["tokens"].as_f64().unwrap();
        assert!((sizes["seconds"].as_f64().unwrap() - tokens / 1000.0).abs() < 1e-6);
        let written: u64 = contents(&place.path("out"))
            .iter()
            .filter(|(path, _)| !text(path).contains(".seqembed") && !path.ends_with("report.json"))
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        let told = sizes["output_bytes"].as_f64().unwrap();
        assert!(
            (told / written as f64 - 1.0).abs() < 0.1,
            "{told} {written}"
        );
        fs::remove_dir_all(place.path("out")).unwrap();
    }
}

#[test]
fn every_format_has_about_the_size_that_is_told() {
    let place = Place::new();
    for pooling in ["mean", "none"] {
        for format in ["parquet", "npz", "npy", "h5", "safetensors", "pt"] {
            let out = place.path(&format!("{pooling}-{format}"));
            let embed = [
                "embed",
                text(&place.path("a.faa")),
                "-m",
                text(exported("esm2")),
                "-o",
                text(&out),
                "--pooling",
                pooling,
                "--format",
                format,
            ]
            .map(str::to_owned);
            let embed: Vec<&str> = embed.iter().map(String::as_str).collect();
            let dry = seqembed(&[&embed[..], &["--dry-run", "--no-measure", "--json"]].concat());
            assert_run(&dry, DONE, &[]);
            assert!(!out.exists());
            let sizes: Value = serde_json::from_slice(&dry.stdout).unwrap();
            assert_eq!(sizes["seconds"], Value::Null);
            assert_run(&seqembed(&embed), DONE, &[]);
            let own = contents(&out);
            let own = own
                .iter()
                .filter(|(path, _)| !text(path).contains(".seqembed"));
            let written: u64 = own
                .filter(|(path, _)| !path.ends_with("report.json"))
                .map(|(_, bytes)| bytes.len() as u64)
                .sum();
            let told = sizes["output_bytes"].as_f64().unwrap();
            assert_eq!(
                sizes["output_bytes_by_format"][format],
                sizes["output_bytes"]
            );
            // HDF5 reserves space in chunks, which shows in a small file.
            let reserved = if format == "h5" { 32_768.0 } else { 0.0 };
            assert!(
                (told - written as f64).abs() < 0.25 * written as f64 + reserved,
                "{pooling} {format}: {told} {written}"
            );
        }
    }
}

#[test]
fn finished_files_are_counted_with_resume_and_nothing_is_touched() {
    let place = Place::new();
    assert_run(&place.run(&[]), DONE, &[]);
    let before = contents(&place.path("out"));
    let kept = |more: &[&str]| {
        let sizes = place.sizes(&[&["--no-measure"], more].concat());
        (
            sizes["finished_files"].as_u64().unwrap(),
            sizes["records"].as_u64().unwrap(),
        )
    };
    assert_eq!(kept(&[]), (0, 126));
    assert_eq!(kept(&["--resume"]), (2, 0));
    assert_eq!(kept(&["--resume", "--overlap", "10"]), (0, 126));
    assert_eq!(contents(&place.path("out")), before);
    fs::write(place.path("out/a.parquet"), "else").unwrap();
    assert_eq!(kept(&["--resume"]), (1, 63));
    fs::write(place.path("b.faa"), ">a\nMKV\n").unwrap();
    assert_eq!(kept(&["--resume"]), (0, 64));
    // A cache has its own journal and copies of finished files, which are not put into place.
    let cache = place.path("cache");
    let cache = ["--cache-dir", text(&cache)];
    assert_run(&place.run(&cache), DONE, &[]);
    fs::remove_dir_all(place.path("out")).unwrap();
    assert_eq!(kept(&cache), (2, 0));
    assert!(!place.path("out").exists());
}

#[test]
fn the_speed_is_measured_and_said_and_failing_files_are_named() {
    let place = Place::new();
    let run = place.run(&["--dry-run"]);
    assert_run(&run, DONE, &[]);
    let said = String::from_utf8(run.stdout).unwrap();
    for told in [
        "dry run",
        "files",
        "126",
        "tokens/s (cpu)",
        "time ",
        "parquet ",
        " in windows",
    ] {
        assert!(said.contains(told), "{told}: {said}");
    }
    assert!(!place.path("out").exists());
    fs::write(place.path("b.faa"), "no sequences").unwrap();
    let run = place.run(&["--dry-run", "--no-measure"]);
    assert_run(&run, PARTLY, &["b.faa", "line 1"]);
    let said = String::from_utf8(run.stdout).unwrap();
    assert!(
        said.contains("2 (1 would fail)") && !said.contains("tokens/s"),
        "{said}"
    );
    // What would keep the run from starting.
    fs::write(place.path("out"), "a file").unwrap();
    assert_run(
        &place.run(&["--dry-run"]),
        WRONG,
        &["is a file, not a folder"],
    );
    assert_run(&place.run(&["--rate", "5"]), WRONG, &["--dry-run"]);
    assert_run(
        &place.run(&["--dry-run", "--rate", "0"]),
        WRONG,
        &["greater than 0"],
    );
    assert_run(&place.run(&["--dry-run", "--layer", "99"]), WRONG, &[]);
}
