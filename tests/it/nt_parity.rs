//! Nucleotide Transformer against transformers.
//!
//! `tests/fixtures/nt` is made by `onnx/reference/nt_fixtures.py`: checkpoints of both versions as
//! published and as saved again, and their vectors. It also prints how far the typical mistakes of
//! the family move a vector: at least a thousand times the bound that holds here.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::common::reference::{
    Exported, KERNELS, Reference, assert_independent_of_batches, embed,
};
use crate::common::{DONE, PARTLY, WRONG, assert_run, seqembed, text};

/// Positions of version 1, one of them for `<cls>`; what both read in a token.
const POSITIONS: usize = 100;
const K: usize = 3;

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| Reference::open("nt"))
}

/// The exported folder of a checkpoint, made once for all tests.
fn exported(checkpoint: &str) -> &'static Path {
    static EXPORTED: OnceLock<Exported> = OnceLock::new();
    EXPORTED
        .get_or_init(|| reference().export("nt"))
        .folder(checkpoint)
}

#[test]
fn every_pooling_and_layer_of_mixed_lengths_letters_and_windows() {
    for case in reference().cases() {
        reference().check_pooled(&case.name, exported(&case.models[0]));
    }
}

#[test]
fn per_token_vectors() {
    for case in reference().cases() {
        for kernels in KERNELS {
            let model = exported(&case.models[0]);
            let rows = reference().check_per_token(case, model, kernels, None);
            assert_eq!(rows.vectors, case.tokens, "{}: a vector a token", case.name);
        }
    }
}

/// As published, and as saved again: with and without settings and tensors that nothing depends on,
/// matrices row after row and column after column.
#[test]
fn every_layout_of_a_checkpoint_gives_the_same_model() {
    for case in reference().cases() {
        let read = |model: &str, file: &str| fs::read(exported(model).join(file)).unwrap();
        let (first, others) = case.models.split_first().unwrap();
        for other in others {
            for file in ["weights.bin", "model.onnx", "vocab.txt"] {
                let same = read(first, file) == read(other, file);
                assert!(same, "{first} and {other}: {file}");
            }
        }
    }
}

/// Records around the limit, all of bases or with N: `ids`, `sequences`, and how many tokens each
/// has.
fn around_the_limit() -> Vec<(String, usize)> {
    let bases = |length: usize| {
        "ACGTTGCAAGTC"
            .chars()
            .cycle()
            .take(length)
            .collect::<String>()
    };
    let most = (POSITIONS - 1) * K;
    let mut records = Vec::new();
    for length in most - 4..most + 4 {
        records.push((bases(length), length / K + length % K));
    }
    // Each N is a token, and so are the bases before it that fill no 3-mer.
    for count in [1, 40, POSITIONS - 1, POSITIONS, 500] {
        records.push(("N".repeat(count), count));
    }
    let spoilt = format!("{}{}", "ACN".repeat(33), bases(3));
    records.push((spoilt.clone(), POSITIONS));
    records.push((spoilt[..spoilt.len() - K].to_owned(), POSITIONS - 1));
    records
}

/// There are positions for 99 tokens and `<cls>`. What has more tokens is embedded in windows, even
/// if it has no more bases than 99 3-mers.
#[test]
fn no_window_has_more_tokens_than_there_are_positions() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("x.fna");
    let records = around_the_limit();
    let mut fasta = String::new();
    for (at, (sequence, _)) in records.iter().enumerate() {
        writeln!(fasta, ">{at}\n{sequence}").unwrap();
    }
    fs::write(&input, fasta).unwrap();
    let model = exported("checkpoints/v1-bin");
    for kernels in KERNELS {
        let rows = embed(&input, model, &["--kernels", kernels]);
        for (at, (sequence, tokens)) in records.iter().enumerate() {
            let is_long = *tokens > POSITIONS - 1 || sequence.len() > (POSITIONS - 1) * K;
            let expected = if is_long { "windowed" } else { "ok" };
            assert_eq!(rows.status[at], expected, "{tokens} tokens: {sequence}");
        }
        assert!(rows.values.iter().all(|value| value.is_finite()));
        let rows = embed(&input, model, &["--kernels", kernels, "--pooling", "none"]);
        let tokens: Vec<usize> = records.iter().map(|(_, tokens)| *tokens).collect();
        assert_eq!(rows.vectors, tokens);
    }
}

/// A truncated record is embedded as its beginning: the bases that fit, and of these as many as
/// have positions.
#[test]
fn a_truncated_record_is_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let (long, short) = (
        folder.path().join("long.fna"),
        folder.path().join("short.fna"),
    );
    let bases = "ACGTTGCAAGTC".repeat(40);
    let spoilt = format!("{}{bases}", "N".repeat(50));
    let all_n = "N".repeat(200);
    fs::write(&long, format!(">a\n{bases}\n>b\n{spoilt}\n>c\n{all_n}\n")).unwrap();
    let begun = [&bases[..297], &spoilt[..50 + 49 * K], &all_n[..99]];
    fs::write(
        &short,
        format!(">a\n{}\n>b\n{}\n>c\n{}\n", begun[0], begun[1], begun[2]),
    )
    .unwrap();
    let model = exported("checkpoints/v1-bin");
    for pooling in ["mean", "none"] {
        for strands in ["none", "mean"] {
            if pooling == "none" && strands == "mean" {
                continue;
            }
            let options = ["--pooling", pooling, "--revcomp", strands];
            let cut = [&options[..], &["--long", "truncate"]].concat();
            let whole = embed(&short, model, &options);
            let truncated = embed(&long, model, &cut);
            assert_eq!(truncated.status, ["truncated"; 3]);
            assert_eq!(whole.status, ["ok"; 3]);
            assert_eq!(truncated.values, whole.values);
        }
    }
    // What has too many tokens is too long, though it has fewer bases.
    let out = folder.path().join("out");
    let fasta = folder.path().join("n.fna");
    fs::write(&fasta, format!(">c\n{all_n}\n")).unwrap();
    let arguments = ["embed", text(&fasta), "-m", text(model), "-o", text(&out)];
    let run = seqembed(&[&arguments[..], &["--long", "error"]].concat());
    let words = [
        "200 bases are 200 tokens, more than the 99",
        "--long window",
    ];
    assert_run(&run, PARTLY, &words);
}

#[test]
fn a_window_has_positions_and_at_least_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let input = reference().input(reference().case("v1-mixed"));
    let out = folder.path().join("out");
    let run = |model: &str, length: &str| {
        let model = exported(model);
        let arguments = ["embed", text(&input), "-m", text(model), "-o", text(&out)];
        seqembed(&[&arguments[..], &["--max-length", length]].concat())
    };
    assert_run(&run("checkpoints/v1-bin", "298"), WRONG, &["298", "297"]);
    assert_run(&run("checkpoints/v1-bin", "2"), WRONG, &["2", "spans 3"]);
    assert_run(&run("checkpoints/v1-bin", "3"), DONE, &[]);
    // Rotary positions have no limit of their own.
    assert_run(&run("checkpoints/v2-saved", "5000"), DONE, &[]);
}

/// With seqembed's kernels, a sequence has the same bits whatever else is in its batch.
#[test]
fn nothing_depends_on_batches_or_threads() {
    for version in ["v1", "v2"] {
        let case = reference().case(&format!("{version}-long"));
        assert_independent_of_batches(&reference().input(case), exported(&case.models[0]));
    }
}

/// A chunk is so many tokens, however many letters a token has: most batches are full.
#[test]
fn batches_are_filled_with_tokens_not_letters() {
    const RECORDS: usize = 2_000;
    const BATCH: usize = 2_560;
    let folder = tempfile::tempdir().unwrap();
    // All of them different: 100 tokens and <cls>.
    let fasta = (0..RECORDS).fold(String::new(), |mut fasta, at| {
        let base = |place: usize| ["A", "C", "G", "T"][at >> (2 * (place % 6)) & 3];
        let sequence: String = (0..100 * K).map(base).collect();
        writeln!(fasta, ">s{at}\n{sequence}").unwrap();
        fasta
    });
    let input = folder.path().join("x.fna");
    fs::write(&input, fasta).unwrap();
    let out = folder.path().join("out");
    let mut arguments = vec!["embed", text(&input), "-o", text(&out)];
    let model = exported("checkpoints/v2-saved");
    let batch = BATCH.to_string();
    arguments.extend(["-m", text(model), "--device", "cpu", "--threads", "1"]);
    arguments.extend(["--batch-tokens", &batch]);
    assert_run(&seqembed(&arguments), DONE, &[]);
    let report = fs::read_to_string(out.join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let totals = &report["totals"];
    assert_eq!(totals["tokens"], RECORDS * (100 + 1));
    // At 25 records each they are 80. A chunk by letters would have 137 records, in six batches.
    let batches = totals["batches"].as_u64().unwrap();
    assert!((80..=85).contains(&batches), "{batches}");
}
