//! `--spans`: each span's row is pooled from the vectors that its residues have in the whole
//! sequence, over windows, duplicates, both strands, formats and resuming; and tables that do not
//! fit are refused with the line.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::ops::Range;
use std::path::Path;

use seqembed::output::{self, Rows};
use seqembed::{Embedder, EmbedderOptions, Overrides, ScoreOptions, Silent};

use crate::common::interrupted::proteins;
use crate::common::reference::KERNELS;
use crate::common::{
    DONE, Place, WRONG, assert_close, assert_run, exported, fasta, fixtures, rows_of, seqembed,
    text,
};

/// Spans of sequences of these ids and lengths: all, the first letter, the last one, and a middle
/// part; and the same as a table.
fn some_spans(
    lengths: impl Iterator<Item = (String, usize)>,
) -> (Vec<(String, Range<usize>)>, String) {
    let mut spans = Vec::new();
    let mut table = "id\tstart\tend\tname\n".to_owned();
    for (id, length) in lengths.filter(|(_, length)| *length > 0) {
        let parts = [
            0..length,
            0..1,
            length - 1..length,
            length / 3..length / 3 + length.div_ceil(3),
        ];
        for (number, part) in parts.into_iter().enumerate() {
            let (start, end) = (part.start + 1, part.end);
            writeln!(table, "{id}\t{start}\t{end}\tpart {number}").unwrap();
            spans.push((format!("{id}/part {number}"), part));
        }
    }
    (spans, table)
}

/// The ids of a FASTA file's text, and how many letters each has, a terminal `*` not counted.
fn lengths(fasta: &str) -> Vec<(String, usize)> {
    let records = fasta.split('>').skip(1).map(|record| {
        let (header, letters) = record.split_once('\n').unwrap();
        let id = header.split_whitespace().next().unwrap_or("");
        let letters: String = letters.split_whitespace().collect();
        (id.to_owned(), letters.trim_end_matches('*').len())
    });
    records.collect()
}

/// The vectors of each record's tokens, by its id.
fn tokens(rows: &Rows) -> HashMap<&str, Vec<&[f32]>> {
    let mut vectors = rows.values.chunks(rows.hidden);
    let ids = rows.ids.iter().zip(&rows.vectors);
    ids.map(|(id, &count)| (id.as_str(), vectors.by_ref().take(count).collect()))
        .collect()
}

/// Pooled in double precision.
fn pooled(vectors: &[&[f32]], pooling: &str) -> Vec<f32> {
    let column = |at: usize| vectors.iter().map(move |vector| f64::from(vector[at]));
    let value = |at| match pooling {
        "max" => column(at).fold(f64::NEG_INFINITY, f64::max),
        "sum" => column(at).sum(),
        _ => column(at).sum::<f64>() / vectors.len() as f64,
    };
    #[allow(clippy::cast_possible_truncation, reason = "as the rows are")]
    let row = (0..vectors[0].len()).map(|at| value(at) as f32).collect();
    row
}

fn row<'r>(rows: &'r Rows, id: &str) -> &'r [f32] {
    let at = rows.ids.iter().position(|own| own == id);
    let at = at.unwrap_or_else(|| panic!("no row {id}"));
    &rows.values[at * rows.hidden..(at + 1) * rows.hidden]
}

#[test]
fn each_span_is_pooled_from_the_vectors_of_its_residues() {
    // Lengths from 1 to 60, duplicates among them, in windows of 40.
    let proteins = proteins(7, 60);
    let kmers = fs::read_to_string(fixtures().join("dna/inputs/mixed.fna")).unwrap();
    for (model, letters, each, options) in [
        ("esm2", &proteins, 1, vec!["--max-length", "40"]),
        ("esm2", &proteins, 1, vec![]),
        ("dnabert-3", &kmers, 3, vec!["--max-length", "90"]),
    ] {
        let place = Place::new(&[("p.fa", letters.as_bytes())]);
        let lengths = lengths(letters).into_iter();
        let (spans, table) = some_spans(lengths.filter(|(_, length)| *length >= each));
        fs::write(place.path("spans.tsv"), table).unwrap();
        let whole = rows_of(
            model,
            letters,
            &[&options[..], &["--pooling", "none"]].concat(),
        );
        let whole = tokens(&whole);
        for kernels in KERNELS {
            let path = place.path("spans.tsv");
            let more = ["--spans", text(&path), "--kernels", kernels];
            for pooling in ["mean", "max", "sum"] {
                let given = [&options[..], &more, &["--pooling", pooling]].concat();
                let found = rows_of(model, letters, &given);
                assert_eq!(found.ids.len(), spans.len());
                let mut largest = 0.0_f32;
                for (at, (name, span)) in spans.iter().enumerate() {
                    assert_eq!(&found.ids[at], name);
                    assert_eq!(found.lengths[at], span.len() as u64, "{name}");
                    let all = &whole[name.rsplit_once('/').unwrap().0];
                    // Tokens that read at least one of its letters.
                    let first = (span.start + 1).saturating_sub(each);
                    let own = &all[first..span.end.min(all.len())];
                    let right = pooled(own, pooling);
                    let bound = if pooling == "sum" { 2e-3 } else { 2e-5 };
                    let what = format!("{model} {kernels} {pooling} {name}");
                    largest = largest.max(assert_close(row(&found, name), &right, bound, &what));
                }
                println!("{model} {kernels} {pooling}: {largest}");
            }
        }
    }
}

#[test]
fn spans_of_a_sequence_are_computed_once_and_whole_sequences_beside_them() {
    let letters = proteins(5, 60);
    let (spans, table) = some_spans(lengths(&letters).into_iter());
    let place = Place::new(&[("p.faa", letters.as_bytes()), ("s.tsv", table.as_bytes())]);
    let path = place.path("s.tsv");
    let options = [
        "--format",
        "npz",
        "--layer",
        "1,-1",
        "--pooling",
        "mean,max",
    ];
    assert_run(&place.embed("esm2", "p.faa", &options), DONE, &[]);
    let (plain, tokens) = (
        place.rows("p.npz").unwrap(),
        place.report()["totals"]["tokens"].clone(),
    );
    let with = [&options[..], &["--spans", text(&path), "--whole"]].concat();
    assert_run(&place.embed("esm2", "p.faa", &with), DONE, &[]);
    let rows = place.rows("p.npz").unwrap();
    assert_eq!(place.report()["totals"]["tokens"], tokens);
    assert_eq!(rows.ids.len(), plain.ids.len() + spans.len());
    // To the bit, and in the same order.
    let mut wholes = rows
        .ids
        .iter()
        .enumerate()
        .filter(|(_, id)| !id.contains('/'));
    for (at, id) in plain.ids.iter().enumerate() {
        let (found, own) = wholes.next().unwrap();
        assert_eq!(own, id);
        let hidden = rows.hidden;
        let [left, right] = [(&rows, found), (&plain, at)]
            .map(|(rows, at)| &rows.values[at * hidden..(at + 1) * hidden]);
        assert!(
            left.iter()
                .zip(right)
                .all(|(a, b)| a.to_bits() == b.to_bits()),
            "{id}"
        );
    }
    // The size that is told before is that of the run.
    let dry = [&with[..], &["--dry-run", "--no-measure", "--json"]].concat();
    let run = place.embed("esm2", "p.faa", &dry);
    assert_run(&run, DONE, &[]);
    let sizes: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(sizes["tokens"], tokens);
    assert_eq!(sizes["records"], rows.ids.len());
}

#[test]
fn both_strands_of_a_span() {
    let complement = |letters: &str| -> String {
        let pair = |letter| match letter {
            'A' => 'T',
            'C' => 'G',
            'G' => 'C',
            'T' => 'A',
            other => other,
        };
        letters.chars().rev().map(pair).collect()
    };
    let letters = "ACGTTGCATTAGGCCATGACCAGTTACGGATTCAGCATGCAAC";
    let forward = fasta(&[("s".to_owned(), letters.to_owned())]);
    let backward = fasta(&[("s".to_owned(), complement(letters))]);
    let place = Place::new(&[
        ("s.bed", b"s\t7\t20\tx\n".as_slice()),
        (
            "t.bed",
            format!("s\t{}\t{}\tx\n", letters.len() - 20, letters.len() - 7).as_bytes(),
        ),
    ]);
    for model in ["dnabert-3", "dnabert2"] {
        let rows = |input: &str, table: &str, more: &[&str]| {
            let path = place.path(table);
            rows_of(model, input, &[&["--spans", text(&path)], more].concat()).values
        };
        let both = rows(&forward, "s.bed", &["--revcomp", "mean"]);
        let (one, other) = (rows(&forward, "s.bed", &[]), rows(&backward, "t.bed", &[]));
        let mean: Vec<f32> = one
            .iter()
            .zip(&other)
            .map(|(a, b)| f32::midpoint(*a, *b))
            .collect();
        assert_close(&both, &mean, 2e-6, model);
        let far = one
            .iter()
            .zip(&other)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(far > 1e-2, "the strands differ");
    }
}

/// The rows of a file of any format.
fn read(path: &Path) -> (Vec<String>, Vec<f32>) {
    let rows = output::read(path).unwrap().0;
    (rows.ids, rows.values)
}

#[test]
fn every_format_a_manifest_and_a_resumed_run_have_them() {
    let input = ">P1 one\nMKTAYIAKQRQISFVK\n>P2\nGSHMLEDPAAA\n>P3\nMKTAYIAKQRQISFVK\n";
    // The third sequence is the first one again, with another span; CRLF, a byte order mark.
    let table =
        "\u{feff}id,start,end,name\r\nP3,2,9,loop\r\nP1,1,4,\r\nP2,3,3,site\r\nP1,5,16,loop\r\n";
    let manifest = "model: MODEL\nspans: tables/s.csv\nfiles:\n  - {sample: a, fasta: p.faa}\n  \
                    - {sample: b, fasta: p.faa, pooling: max, format: npz}\n";
    let manifest = manifest.replace("MODEL", text(exported("esm2")));
    let place = Place::new(&[("p.faa", input.as_bytes())]);
    fs::create_dir(place.path("tables")).unwrap();
    fs::write(place.path("tables/s.csv"), table).unwrap();
    let path = place.path("tables/s.csv");
    let spans = ["--spans", text(&path)];
    let mut expected: Option<(Vec<String>, Vec<f32>)> = None;
    for format in ["parquet", "npz", "npy", "h5", "safetensors", "pt"] {
        let options = [&spans[..], &["--format", format]].concat();
        assert_run(&place.embed("esm2", "p.faa", &options), DONE, &[]);
        let found = read(&place.path(&format!("out/p.{format}")));
        assert_eq!(
            found.0,
            ["P1/1-4", "P1/loop", "P2/site", "P3/loop"],
            "{format}"
        );
        let expected = expected.get_or_insert_with(|| found.clone());
        assert!(*expected == found, "{format}");
    }
    assert_run(&place.run(&manifest), DONE, &[]);
    assert_eq!(
        read(&place.path("out/a.parquet")),
        expected.clone().unwrap()
    );
    // Nothing is computed again; after a change of the table, all of it is.
    let again = |fragments: &[&str]| {
        let out = place.path("out");
        let manifest = place.path("manifest.yaml");
        let run = seqembed(&["run", text(&manifest), "-o", text(&out), "--resume"]);
        assert_run(&run, DONE, fragments);
    };
    again(&[]);
    assert_eq!(place.report()["totals"]["batches"], 0);
    fs::write(&path, table.replace("P2,3,3", "P2,3,4")).unwrap();
    again(&["spans differs"]);
    let changed = read(&place.path("out/a.parquet"));
    let (before, after) = (expected.unwrap().1, changed.1);
    let width = before.len() / 4;
    assert_eq!(before[..2 * width], after[..2 * width]);
    assert_ne!(before[2 * width..3 * width], after[2 * width..3 * width]);
}

#[test]
fn tables_that_do_not_fit_are_refused_with_the_line() {
    let place = Place::new(&[("p.faa", b">P1\nMKTAYIAK\n>P2 x\nGSHM*\n")]);
    let check = |name: &str, table: &str, options: &[&str], fragments: &[&str]| {
        fs::write(place.path(name), table).unwrap();
        let path = place.path(name);
        let options = [&["--spans", text(&path)], options].concat();
        assert_run(&place.embed("esm2", "p.faa", &options), WRONG, fragments);
        assert!(!place.path("out/p.parquet").exists());
    };
    let header = "id\tstart\tend\tname\n";
    let table = |rows: &str| format!("{header}{rows}");
    check(
        "s.tsv",
        &table("P1\t3\t9\tx\n"),
        &[],
        &["s.tsv, line 2: the span 3-9 of P1 ends outside of its 8 letters"],
    );
    // A terminal `*` is no residue.
    check(
        "s.tsv",
        &table("P2\t1\t5\tx\n"),
        &[],
        &["line 2: the span 1-5 of P2 ends outside of its 4"],
    );
    check(
        "s.tsv",
        &table("P1\t1\t2\tx\nP9\t1\t2\tx\n"),
        &[],
        &["line 3: no sequence has the id \"P9\""],
    );
    check(
        "s.tsv",
        &table("P1\t1\t2\tx\nP1\t3\t4\tx\n"),
        &[],
        &["line 3: P1 has a span \"x\" on line 2 already"],
    );
    check(
        "s.tsv",
        &table("P1\t0\t2\tx\n"),
        &[],
        &["line 2: the first letter is number 1, and not 0"],
    );
    check(
        "s.tsv",
        &table("P1\t4\t3\tx\n"),
        &[],
        &["line 2: the span from 4 to 3 has no letters"],
    );
    check(
        "s.tsv",
        &table("P1\tone\t3\tx\nP1\t1\n"),
        &[],
        &[
            "line 2: the start is \"one\", and not a whole number",
            "line 3: the end is \"\", and not a whole number",
        ],
    );
    check("s.tsv", header, &[], &["s.tsv: it has no spans"]);
    check(
        "s.tsv",
        "id,start,end\nP1,1,2\n",
        &[],
        &["no column `id`", "separated by tabs"],
    );
    check(
        "s.bed",
        "P1\t3\n",
        &[],
        &["s.bed, line 1: a line of a BED file has an id"],
    );
    check(
        "s.bed",
        "P1\t3\t9\n",
        &[],
        &["line 1: the span 4-9 of P1 ends outside"],
    );
    let right = table("P1\t1\t2\tx\n");
    for pooling in ["cls", "mean-all", "mean,cls"] {
        check(
            "s.tsv",
            &right,
            &["--pooling", pooling],
            &["cannot be combined with --spans"],
        );
    }
    let run = place.embed("esm2", "p.faa", &["--whole"]);
    assert_run(&run, WRONG, &["--whole needs --spans"]);
    let run = place.embed("esm2", "p.faa", &["--spans", "/nowhere/s.tsv"]);
    assert_run(&run, WRONG, &["/nowhere/s.tsv: No such file"]);
}

#[test]
fn an_embedder_has_them_too() {
    let place = Place::new(&[("s.tsv", b"id\tstart\tend\nP1\t2\t4\n")]);
    let options = EmbedderOptions {
        settings: Overrides {
            spans: Some(place.path("s.tsv")),
            whole: Some(true),
            ..Overrides::default()
        },
        ..EmbedderOptions::default()
    };
    let mut embedder = Embedder::new(text(exported("esm2")), options).unwrap();
    let rows = embedder
        .embed([("P1", "MKTAYIAKQR"), ("P2", "GSHM")])
        .unwrap();
    assert_eq!(rows.ids, ["P1", "P1/2-4", "P2"]);
    let error = embedder.embed([("P2", "GSHM")]).unwrap_err().to_string();
    assert!(
        error.contains("line 2: no sequence has the id \"P1\""),
        "{error}"
    );
    // Scores are of whole sequences.
    fs::write(place.path("p.faa"), ">P2\nGSHM\n").unwrap();
    let (file, out) = (place.path("p.faa"), place.path("scores"));
    let report = embedder.score(&[file], &out, &ScoreOptions::default(), &mut Silent);
    assert_eq!(report.unwrap().totals.records, 1);
}

#[test]
fn what_pools_nothing_refuses_them() {
    let place = Place::new(&[
        ("p.faa", b">P1\nMKTAYIAK\n"),
        ("s.tsv", b"id\tstart\tend\nP1\t2\t4\n"),
    ]);
    let model = text(exported("esm2"));
    let manifest = format!("model: {model}\nspans: s.tsv\nfiles: [{{sample: a, fasta: p.faa}}]\n");
    fs::write(place.path("m.yaml"), manifest).unwrap();
    for command in ["score", "contacts"] {
        let (path, out) = (place.path("m.yaml"), place.path("out"));
        let arguments = [command, "--manifest", text(&path), "-o", text(&out)];
        let run = seqembed(&arguments);
        assert_run(
            &run,
            WRONG,
            &["a: `spans` in the manifest is for embeddings alone"],
        );
    }
}
