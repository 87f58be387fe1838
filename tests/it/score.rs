//! `seqembed score` against log-probabilities that transformers, fair-esm and DNABERT-2's own code
//! computed (`onnx/reference/score_fixtures.py`), with our kernels and with ONNX Runtime's own operators.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tempfile::TempDir;

use crate::common::{DONE, PARTLY, WRONG, assert_run, export, fixtures, seqembed, text};

const AMINO_ACIDS: &str = "ACDEFGHIKLMNPQRSTVWY";
const KERNELS: [&str; 2] = ["auto", "portable"];
/// Each model's checkpoint, and the sequences that it scores.
const MODELS: [(&str, &str, &str); 9] = [
    ("esm2", "esm2/checkpoints/hub-safetensors", "proteins.faa"),
    ("esm1b", "esm1/checkpoints/esm1b_small.pt", "proteins.faa"),
    ("esm1v", "esm1/checkpoints/esm1v_small.pt", "proteins.faa"),
    ("esmc", "esmc/checkpoints/hub", "proteins.faa"),
    ("nt", "nt/checkpoints/v1-bin", "bases.fna"),
    ("protbert", "bert/protbert", "proteins.faa"),
    ("dnabert", "dna/dnabert-3", "bases.fna"),
    ("grover", "bert/grover", "bases.fna"),
    ("dnabert2", "dna/dnabert2", "bases.fna"),
];

/// Expected values of a model by their names, and how many columns they have.
fn expected(model: &str) -> (BTreeMap<String, Vec<f32>>, usize) {
    let path = fixtures().join(format!("scores/{model}.safetensors"));
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let columns = tensors[0].1.shape()[1];
    let values = tensors.into_iter().map(|(name, tensor)| {
        let words = tensor.data().chunks_exact(4);
        let values = words.map(|word| f32::from_le_bytes(word.try_into().unwrap()));
        (name, values.collect())
    });
    (values.collect(), columns)
}

pub fn exported(checkpoint: &str, name: &str, folder: &Path) -> PathBuf {
    let target = folder.join(name);
    export(&fixtures().join(checkpoint), &target, name);
    target
}

pub fn input(file: &str) -> PathBuf {
    fixtures().join("scores").join(file)
}

/// The rows of a table in TSV, by the names of its columns.
pub fn table(path: &Path) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(b'\t')
        .from_path(path)
        .unwrap();
    reader.deserialize().map(|row| row.unwrap()).collect()
}

/// The tokens of a model by their ids.
fn tokens(model: &Path) -> Vec<String> {
    if let Ok(text) = fs::read_to_string(model.join("vocab.txt")) {
        return text.lines().map(str::to_owned).collect();
    }
    let text = fs::read_to_string(model.join("tokenizer.json")).unwrap();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap();
    let known = file["model"]["vocab"].as_object().unwrap().iter();
    let mut known: Vec<_> = known
        .map(|(name, id)| (id.as_u64(), name.clone()))
        .collect();
    known.sort();
    known.into_iter().map(|(_, name)| name).collect()
}

/// Scores a file, and returns the output folder.
#[track_caller]
fn score(file: &Path, model: &Path, options: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let out = text(folder.path());
    let mut arguments = vec!["score", text(file), "-m", text(model), "-o", out];
    arguments.extend(["--format", "tsv", "--quiet"]);
    arguments.extend(options);
    assert_run(&seqembed(&arguments), DONE, &[]);
    folder
}

/// Equal to 2e-5 where a row's log-probabilities are as a trained model's, down to -8, and in
/// proportion where random weights give lower ones: `lowest` is the lowest one.
#[track_caller]
fn assert_close(found: f64, expected: f32, lowest: f32, what: &str) {
    let bound = 2e-5 * f64::from(lowest.abs() / 8.0).max(1.0);
    assert!(
        (found - f64::from(expected)).abs() <= bound,
        "{what}: {found}, not {expected}"
    );
}

fn lowest(values: &[f32]) -> f32 {
    values.iter().copied().fold(0.0, f32::min)
}

fn number(row: &BTreeMap<String, String>, column: &str) -> f64 {
    row[column].parse().unwrap()
}

#[test]
fn log_probabilities_are_those_of_the_references() {
    let folder = tempfile::tempdir().unwrap();
    for (name, checkpoint, file) in MODELS {
        let model = exported(checkpoint, name, folder.path());
        let (expected, columns) = expected(name);
        let all = columns != AMINO_ACIDS.len();
        for method in ["unmasked", "masked"] {
            for kernels in KERNELS {
                let mut options = vec!["--method", method, "--kernels", kernels, "--per-residue"];
                options.extend(all.then_some("--vocabulary"));
                let out = score(&input(file), &model, &options);
                let stem = file.split('.').next().unwrap();
                let residues = table(&out.path().join(format!("{stem}.residues.tsv")));
                let records = table(&out.path().join(format!("{stem}.tsv")));
                for record in &records {
                    let id = &record["id"];
                    let what = format!("{name} {method} {kernels} {id}");
                    let values = &expected[&format!("{method}/{id}")];
                    let rows: Vec<_> = residues.iter().filter(|row| row["id"] == *id).collect();
                    assert_eq!(rows.len() * columns, values.len(), "{what}");
                    let mut sum = 0.0;
                    for (row, values) in rows.iter().zip(values.chunks(columns)) {
                        let lowest = lowest(values);
                        let own = number(row, "log_probability");
                        sum += own;
                        let (tokens, at): (Vec<String>, usize) = if all {
                            let tokens = tokens(&model);
                            let at = tokens.iter().position(|token| *token == row["token"]);
                            (tokens[..columns].to_vec(), at.unwrap())
                        } else {
                            let at = AMINO_ACIDS.find(row["token"].as_str());
                            let letters = AMINO_ACIDS.chars().map(String::from).collect();
                            (letters, at.unwrap_or(usize::MAX))
                        };
                        for (token, &value) in tokens.iter().zip(values) {
                            assert_close(number(row, token), value, lowest, &what);
                        }
                        if let Some(&value) = values.get(at) {
                            assert_close(own, value, lowest, &what);
                        }
                    }
                    let likelihood = number(record, "log_likelihood");
                    assert!(
                        (likelihood - sum).abs() < 2e-4,
                        "{what}: {likelihood} {sum}"
                    );
                    let mean = -sum / rows.len() as f64;
                    let perplexity = number(record, "perplexity");
                    assert!((perplexity.ln() - mean).abs() < 1e-4, "{what}");
                    assert_eq!(record["status"], "ok");
                }
            }
        }
    }
}

#[test]
fn variants_are_scored_by_both_methods_alone_and_together() {
    let folder = tempfile::tempdir().unwrap();
    let model = exported(MODELS[0].1, "esm2", folder.path());
    let (expected, columns) = expected("esm2");
    let all = lowest(&expected["masked/d"]);
    let column = |letter: char| AMINO_ACIDS.find(letter).unwrap();
    let single = |method: &str, id: &str, at: usize, from: char, to: char| {
        let row = &expected[&format!("{method}/{id}")][(at - 1) * columns..at * columns];
        row[column(to)] - row[column(from)]
    };
    // Sequence a is MKTAYIAKQR..., d is MADEEKLPPG...
    let variants = folder.path().join("variants.tsv");
    let lines = "variant\tnote\tid\nT3G\tx\ta\nE5P\t\td\nT3G:A7W\t\ta\nM1M\t\ta\nD3A:L7K\t\td\n";
    fs::write(&variants, lines).unwrap();
    let order = ["T3G", "E5P", "T3G:A7W", "M1M", "D3A:L7K"];
    for (method, alias) in [("unmasked", "wt-marginals"), ("masked", "masked-marginals")] {
        let sums = [
            single(method, "a", 3, 'T', 'G'),
            single(method, "d", 5, 'E', 'P'),
            single(method, "a", 3, 'T', 'G') + single(method, "a", 7, 'A', 'W'),
            0.0,
            single(method, "d", 3, 'D', 'A') + single(method, "d", 7, 'L', 'K'),
        ];
        for kernels in KERNELS {
            let options = [
                "--variants",
                text(&variants),
                "--method",
                alias,
                "--kernels",
                kernels,
            ];
            let out = score(&input("proteins.faa"), &model, &options);
            let rows = table(&out.path().join("proteins.variants.tsv"));
            assert!(!out.path().join("proteins.tsv").exists());
            let names: Vec<&str> = rows.iter().map(|row| row["variant"].as_str()).collect();
            assert_eq!(names, order);
            for (row, sum) in rows.iter().zip(sums) {
                assert_close(number(row, "score"), sum, all, &row["variant"]);
            }
        }
    }
    let options = [
        "--variants",
        text(&variants),
        "--method",
        "masked",
        "--joint",
    ];
    let out = score(&input("proteins.faa"), &model, &options);
    let rows = table(&out.path().join("proteins.variants.tsv"));
    let joint = |id: &str, pairs: [(char, char); 2]| {
        let values = &expected[&format!("joint/{id}")];
        let scores = values.chunks(columns).zip(pairs);
        let scores = scores.map(|(row, (from, to))| row[column(to)] - row[column(from)]);
        scores.sum::<f32>()
    };
    assert_close(
        number(&rows[2], "score"),
        joint("a", [('T', 'G'), ('A', 'W')]),
        all,
        "a",
    );
    assert_close(
        number(&rows[4], "score"),
        joint("d", [('D', 'A'), ('L', 'K')]),
        all,
        "d",
    );
    let alone = single("masked", "a", 3, 'T', 'G');
    assert_close(number(&rows[0], "score"), alone, all, "a single one");
}

#[test]
fn a_scan_has_the_score_of_every_variant() {
    let folder = tempfile::tempdir().unwrap();
    let model = exported(MODELS[0].1, "esm2", folder.path());
    let (expected, columns) = expected("esm2");
    let options = ["--scan", "--method", "masked"];
    let out = score(&input("proteins.faa"), &model, &options);
    let scan = table(&out.path().join("proteins.scan.tsv"));
    let rows: Vec<_> = scan.iter().filter(|row| row["id"] == "a").collect();
    for (row, values) in rows.iter().zip(expected["masked/a"].chunks(columns)) {
        let own = values[AMINO_ACIDS.find(&row["wild_type"]).unwrap()];
        for (letter, value) in AMINO_ACIDS.chars().zip(values) {
            let found = number(row, &letter.to_string());
            assert_close(found, value - own, lowest(values), &format!("{row:?}"));
        }
    }
    assert_eq!(rows.len(), 33);
}

#[test]
fn each_position_is_scored_in_the_window_where_it_is_most_central() {
    let folder = tempfile::tempdir().unwrap();
    let model = exported(MODELS[0].1, "esm2", folder.path());
    let (first, second) = ("MKTAYIAKQRQISFVKSHFS", "QISFVKSHFSRQLEERLGLI");
    let file = folder.path().join("long.faa");
    let whole = format!("{first}{}", &second[10..]);
    fs::write(
        &file,
        format!(">long\n{whole}\n>one\n{first}\n>two\n{second}\n"),
    )
    .unwrap();
    for method in ["unmasked", "masked"] {
        let options = [
            "--method",
            method,
            "--per-residue",
            "--max-length",
            "20",
            "--overlap",
            "10",
        ];
        let out = score(&file, &model, &options);
        let rows = table(&out.path().join("long.residues.tsv"));
        let of = |id: &str| -> Vec<f32> {
            let rows = rows.iter().filter(|row| row["id"] == id);
            rows.map(|row| row["log_probability"].parse().unwrap())
                .collect()
        };
        let (long, one, two) = (of("long"), of("one"), of("two"));
        let joined = [&one[..15], &two[5..]].concat();
        assert_eq!(long.len(), 30);
        for (found, expected) in long.iter().zip(joined) {
            assert_close(f64::from(*found), expected, lowest(&long), method);
        }
        let records = table(&out.path().join("long.tsv"));
        assert_eq!(records[0]["status"], "windowed");
    }
}

#[test]
fn batches_files_and_formats_change_no_score() {
    let folder = tempfile::tempdir().unwrap();
    let model = exported(MODELS[0].1, "esm2", folder.path());
    let copy = folder.path().join("copy.faa");
    fs::copy(input("proteins.faa"), &copy).unwrap();
    let out = folder.path().join("out");
    let proteins = input("proteins.faa");
    for format in ["tsv", "csv", "parquet"] {
        let run = seqembed(&[
            "score",
            text(&proteins),
            text(&copy),
            "-m",
            text(&model),
            "-o",
            text(&out),
            "--method",
            "masked",
            "--batch-tokens",
            "70",
            "--format",
            format,
        ]);
        assert_run(&run, DONE, &["2 files and 8 sequences"]);
    }
    let alone = score(&input("proteins.faa"), &model, &["--method", "masked"]);
    let alone = table(&alone.path().join("proteins.tsv"));
    let [one, two] = ["proteins", "copy"].map(|name| table(&out.join(format!("{name}.tsv"))));
    assert_eq!(one, two);
    let commas = fs::read_to_string(out.join("copy.csv")).unwrap();
    let tabs = fs::read_to_string(out.join("copy.tsv")).unwrap();
    assert_eq!(commas.replace(',', "\t"), tabs);
    for (row, alone) in one.iter().zip(&alone) {
        let [found, expected] = [row, alone].map(|row| number(row, "log_likelihood"));
        assert!((found - expected).abs() < 2e-4);
    }
    let report = fs::read_to_string(out.join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["totals"]["records"], 8);
    assert!(report["totals"]["tokens"].as_u64() > Some(99 * 20));
    assert_eq!(
        report["files"][1]["output"],
        text(&out.join("copy.parquet"))
    );
    let bytes = bytes::Bytes::from(fs::read(out.join("copy.parquet")).unwrap());
    let reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(bytes, 100).unwrap();
    let mut rows = 0;
    for batch in reader {
        let batch = batch.unwrap();
        let sums = arrow_array::cast::AsArray::as_primitive::<arrow_array::types::Float64Type>(
            batch.column_by_name("log_likelihood").unwrap(),
        );
        for at in 0..batch.num_rows() {
            assert_eq!(sums.value(at).to_string(), one[rows + at]["log_likelihood"]);
        }
        rows += batch.num_rows();
    }
    assert_eq!(rows, 4);
}

#[test]
fn sequences_without_tokens_and_unknown_letters_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let model = exported(MODELS[0].1, "esm2", folder.path());
    let file = folder.path().join("odd.faa");
    fs::write(&file, ">none\n>odd\nMKJA\n>known\nMKTA*\n").unwrap();
    let out = score(&file, &model, &["--per-residue"]);
    let rows = table(&out.path().join("odd.tsv"));
    assert_eq!(rows[0]["status"], "skipped: empty sequence");
    assert_eq!(
        (&*rows[0]["log_likelihood"], &*rows[0]["perplexity"]),
        ("", "")
    );
    assert_eq!(
        (&*rows[1]["status"], &*rows[1]["length"]),
        ("replaced", "4")
    );
    assert_eq!((&*rows[2]["status"], &*rows[2]["length"]), ("ok", "4"));
    let residues = table(&out.path().join("odd.residues.tsv"));
    assert_eq!(residues.len(), 8);
    // What the vocabulary does not have has no probability, and is not counted.
    assert_eq!(residues[2]["log_probability"], "");
    let sum: f64 = [0, 1, 3]
        .iter()
        .map(|&at| number(&residues[at], "log_probability"))
        .sum();
    assert!((number(&rows[1], "log_likelihood") - sum).abs() < 1e-4);
}

#[test]
fn what_stands_between_two_chains_is_no_residue() {
    let folder = tempfile::tempdir().unwrap();
    let model = exported("bert/protbert", "protbert", folder.path());
    let file = folder.path().join("chains.faa");
    fs::write(&file, ">pair\nQVQ|EV\n").unwrap();
    for method in ["unmasked", "masked"] {
        let out = score(&file, &model, &["--per-residue", "--method", method]);
        let residues = table(&out.path().join("chains.residues.tsv"));
        let column =
            |name: &str| -> Vec<&str> { residues.iter().map(|row| row[name].as_str()).collect() };
        assert_eq!(column("token"), ["Q", "V", "Q", "[SEP]", "E", "V"]);
        assert_eq!(column("position"), ["1", "2", "3", "4", "5", "6"]);
        assert_eq!(column("log_probability")[3], "");
        let own = [0, 1, 2, 4, 5].map(|at| number(&residues[at], "log_probability"));
        let sum: f64 = own.iter().sum();
        let row = &table(&out.path().join("chains.tsv"))[0];
        assert!((number(row, "log_likelihood") - sum).abs() < 1e-4);
        assert!((number(row, "perplexity").ln() + sum / 5.0).abs() < 1e-4);
    }
}

#[test]
fn positions_are_those_of_the_tokens_first_letters() {
    let folder = tempfile::tempdir().unwrap();
    for (name, checkpoint, file) in &MODELS[6..] {
        let model = exported(checkpoint, name, folder.path());
        let out = score(&input(file), &model, &["--per-residue"]);
        let residues = table(&out.path().join("bases.residues.tsv"));
        let sequence = "ACGTACGTTGCAAC";
        let rows: Vec<_> = residues.iter().filter(|row| row["id"] == "a").collect();
        let mut last = 0;
        for row in &rows {
            let (at, token) = (row["position"].parse::<usize>().unwrap(), &row["token"]);
            assert!(
                at > last && sequence[at - 1..].starts_with(token.as_str()),
                "{name} {row:?}"
            );
            last = at;
        }
        let apart: usize = rows.iter().map(|row| row["token"].len()).sum();
        // K-mers overlap; byte pairs do not.
        assert_eq!(apart, if *name == "dnabert" { 36 } else { 14 }, "{name}");
    }
}

#[test]
fn a_file_that_cannot_be_read_has_no_tables() {
    let folder = tempfile::tempdir().unwrap();
    let model = exported(MODELS[0].1, "esm2", folder.path());
    let broken = folder.path().join("broken.faa");
    fs::write(&broken, "MKTA\n>a\nMKTA\n").unwrap();
    let out = folder.path().join("out");
    let proteins = input("proteins.faa");
    let arguments = [
        "score",
        text(&broken),
        text(&proteins),
        "-m",
        text(&model),
        "-o",
        text(&out),
    ];
    assert_run(&seqembed(&arguments), PARTLY, &["broken.faa"]);
    assert!(!out.join("broken.parquet").exists() && out.join("proteins.parquet").exists());
    let run = seqembed(&[&arguments[..], &["--allow-failed"]].concat());
    assert_run(&run, DONE, &[]);
}

#[test]
fn variants_that_are_not_in_the_sequences_are_errors_with_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let model = exported(MODELS[0].1, "esm2", folder.path());
    let variants = folder.path().join("variants.csv");
    let proteins = input("proteins.faa");
    let out = folder.path().join("out");
    let run = |lines: &str, fragments: &[&str]| {
        fs::write(&variants, lines).unwrap();
        let run = seqembed(&[
            "score",
            text(&proteins),
            "-m",
            text(&model),
            "-o",
            text(&out),
            "--variants",
            text(&variants),
        ]);
        assert_run(&run, WRONG, fragments);
        assert!(!out.join("proteins.variants.parquet").exists());
    };
    run(
        "id,variant\na,M1K\na,A2G\nzz,M1K\nb,M2K\nc,A5B\n",
        &[
            "variants.csv, line 3: A2G: position 2 of sequence \"a\" is K, not A",
            "line 4: no sequence has the id \"zz\"",
            "line 5: M2K: sequence \"b\" has 1 residues, and no position 2",
            "line 6: A5B: B is not one of the 20 amino acids",
        ],
    );
    run(
        "id,variant\na,M1\n",
        &["line 2: \"M1\" is not a substitution", "A42G"],
    );
    run("id,change\na,M1K\n", &["no column `variant`"]);
    run("id,variant\n", &["it has no variants"]);
}

#[test]
fn models_that_cannot_be_scored_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let bare = exported("esm2/checkpoints/hub-transformers5", "bare", folder.path());
    let amplify = exported("amplify/checkpoints/hub", "amplify", folder.path());
    let nt = exported("nt/checkpoints/v1-bin", "nt", folder.path());
    let run = |file: &str, model: &Path, options: &[&str], fragments: &[&str]| {
        let file = input(file);
        let arguments = ["score", text(&file), "-m", text(model), "-o", text(&out)];
        let run = seqembed(&[&arguments[..], options].concat());
        assert_run(&run, WRONG, fragments);
    };
    run(
        "proteins.faa",
        &bare,
        &[],
        &["no language-model head", "seqembed export"],
    );
    run(
        "proteins.faa",
        &amplify,
        &[],
        &["knows no head of this family"],
    );
    run("bases.fna", &nt, &["--scan"], &["single amino acids"]);
    let igbert = exported("bert/igbert", "igbert", folder.path());
    run(
        "proteins.faa",
        &igbert,
        &[],
        &["no language-model head", "cls.predictions"],
    );
    let variants = folder.path().join("variants.tsv");
    fs::write(&variants, "id\tvariant\na\tA1C\n").unwrap();
    for (name, checkpoint, file) in &MODELS[6..] {
        let model = exported(checkpoint, name, folder.path());
        for options in [&["--scan"][..], &["--variants", text(&variants)]] {
            run(
                file,
                &model,
                options,
                &["single amino acids", name, "changed sequences"],
            );
        }
    }
    let esm = exported(MODELS[0].1, "esm2", folder.path());
    run(
        "proteins.faa",
        &esm,
        &["--joint", "--variants", "x"],
        &["--joint needs --method masked"],
    );
}
