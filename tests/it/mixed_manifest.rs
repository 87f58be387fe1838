//! A manifest that mixes models of proteins and of DNA: each is loaded once, and every output is
//! the one that its file gives when it is run apart.
//!
//! The models are the small ones of `tests/fixtures`.

use std::fmt::Write as _;

use crate::common::{
    self, DONE, PARTLY, Place, assert_close, assert_run, exported, fasta, records, text,
};

/// A file of the manifest.
struct File {
    sample: &'static str,
    input: &'static str,
    model: &'static str,
    format: &'static str,
    options: &'static [(&'static str, &'static str)],
}

const fn file(
    sample: &'static str,
    input: &'static str,
    model: &'static str,
    format: &'static str,
    options: &'static [(&'static str, &'static str)],
) -> File {
    File {
        sample,
        input,
        model,
        format,
        options,
    }
}

/// No two neighbours are of one model.
const FILES: [File; 8] = [
    file("p1", "a.faa", "esm2", "parquet", &[]),
    file("d1", "a.fna", "dnabert2", "npz", &[]),
    file("k1", "b.fna", "dnabert-3", "parquet", &[]),
    file(
        "d2",
        "b.fna",
        "dnabert2",
        "parquet",
        &[("pooling", "mean-all")],
    ),
    file("p2", "b.faa", "esm2", "npz", &[("pooling", "none")]),
    file(
        "k2",
        "c.fna",
        "dnabert-3",
        "npz",
        &[("max-length", "90"), ("revcomp", "mean")],
    ),
    file("p3", "c.faa", "esm2", "parquet", &[("pooling", "max")]),
    file(
        "d3",
        "c.fna",
        "dnabert2",
        "npz",
        &[("pooling", "none"), ("max-length", "120")],
    ),
];

/// The manifest of the files, its option keys as it spells them.
fn manifest(files: &[File]) -> String {
    let mut text = "files:\n".to_owned();
    for file in files {
        let File {
            sample,
            input,
            model,
            format,
            ..
        } = file;
        let model = common::text(exported(model));
        write!(
            text,
            "- {{sample: {sample}, fasta: {input}, model: \"{model}\", format: {format}"
        )
        .unwrap();
        for (key, value) in file.options {
            write!(text, ", {}: {value}", key.replace('-', "_")).unwrap();
        }
        text.push_str("}\n");
    }
    text
}

/// Proteins and DNA, each in three files.
fn place() -> Place {
    let mut all: Vec<_> = ["letters.faa", "long.faa", "mixed.faa"]
        .iter()
        .flat_map(|name| records(&format!("esm2/inputs/{name}")))
        .filter(|(_, sequence)| sequence.len() > 20 && sequence.len() < 400)
        .collect();
    all.sort();
    assert!(all.len() >= 6, "{} proteins", all.len());
    let (dna, kmers) = (
        records("dna/inputs/letters.fna"),
        records("dna/inputs/kmers.fna"),
    );
    let files = [
        ("a.faa", fasta(&all[..2])),
        ("b.faa", fasta(&all[2..5])),
        ("c.faa", fasta(&all[5..])),
        ("a.fna", fasta(&records("dna/inputs/mixed.fna"))),
        ("b.fna", fasta(&dna)),
        ("c.fna", fasta(&kmers)),
    ];
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, text)| (*name, text.as_bytes()))
        .collect();
    Place::new(&files)
}

/// Runs a file apart, and holds the output in `mixed` against it.
fn assert_as_apart(mixed: &Place, file: &File) {
    let apart = place();
    let mut options = vec!["--format".to_owned(), file.format.to_owned()];
    for (key, value) in file.options {
        options.extend([format!("--{key}"), (*value).to_owned()]);
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    assert_run(&apart.embed(file.model, file.input, &options), DONE, &[]);
    let (stem, _) = file.input.split_once('.').unwrap();
    let expected = apart.rows(&format!("{stem}.{}", file.format)).unwrap();
    let rows = mixed
        .rows(&format!("{}.{}", file.sample, file.format))
        .unwrap();
    let what = file.sample;
    assert_eq!(rows.hidden, expected.hidden, "{what}");
    assert_eq!(rows.ids, expected.ids, "{what}");
    assert_eq!(rows.headers, expected.headers, "{what}");
    assert_eq!(rows.lengths, expected.lengths, "{what}");
    assert_eq!(rows.status, expected.status, "{what}");
    assert_eq!(rows.vectors, expected.vectors, "{what}");
    assert_close(&rows.values, &expected.values, 1e-5, what);
}

/// The strings under a key, of each of a list's objects.
fn strings<'a>(list: &'a serde_json::Value, key: &str) -> Vec<&'a str> {
    let list = list.as_array().unwrap().iter();
    list.map(|object| object[key].as_str().unwrap()).collect()
}

#[test]
fn each_output_is_that_of_its_file_apart_and_each_model_is_loaded_once() {
    let mixed = place();
    assert_run(&mixed.run(&manifest(&FILES)), DONE, &[]);
    for file in &FILES {
        assert_as_apart(&mixed, file);
    }
    let report = mixed.report();
    let mut loads = strings(&report["loads"], "model");
    loads.sort_unstable();
    assert_eq!(loads, ["dnabert-3", "dnabert2", "esm2"]);
    let files = &report["files"];
    let samples: Vec<&str> = FILES.iter().map(|file| file.sample).collect();
    assert_eq!(strings(files, "sample"), samples);
    let models: Vec<&str> = FILES.iter().map(|file| file.model).collect();
    assert_eq!(strings(files, "model"), models);
    for (about, file) in files.as_array().unwrap().iter().zip(&FILES) {
        let rows = mixed
            .rows(&format!("{}.{}", file.sample, file.format))
            .unwrap();
        assert_eq!(about["records"], rows.len(), "{}", file.sample);
        let output = mixed
            .path("out")
            .join(format!("{}.{}", file.sample, file.format));
        assert_eq!(about["output"], text(&output), "{}", file.sample);
    }
}

#[test]
fn a_file_that_fails_costs_no_other_file() {
    // A protein file among those of DNA.
    let mut files = FILES;
    files[3].input = "c.faa";
    let mixed = place();
    assert_run(
        &mixed.run(&manifest(&files)),
        PARTLY,
        &["c.faa", "looks like protein"],
    );
    for (at, file) in files.iter().enumerate() {
        if at == 3 {
            let output = format!("{}.{}", file.sample, file.format);
            assert!(mixed.rows(&output).is_none());
        } else {
            assert_as_apart(&mixed, file);
        }
    }
    let report = mixed.report();
    assert_eq!(report["totals"]["failed_files"], 1);
    assert_eq!(report["loads"].as_array().unwrap().len(), 3);
    for (at, file) in report["files"].as_array().unwrap().iter().enumerate() {
        assert_eq!(file["sample"], files[at].sample);
        assert_eq!(file["error"].is_null(), at != 3, "{file}");
    }
}
