//! Bad and odd input for models of DNA, driven through the built executable: each gets a clear
//! error or a status, the right exit code, and no vector is wrong in silence.
//!
//! The models are the small ones of `tests/fixtures/dna`.

use std::fs;
use std::path::Path;

use crate::common::{
    DNA_MODELS, DONE, PARTLY, Place, WRONG, assert_close, assert_run, fasta, fixtures, python,
    records, rows_of, seqembed, text,
};
use seqembed::output::Rows;
use tempfile::TempDir;

const PROTEIN: &[u8] =
    b">kinase\nMKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSRQVIVQDIAYLRSLGYNIVATPRGYVLAGG\n";

/// Largest difference between runs that should agree: batches differ, and sums with them.
const SAME: f32 = 1e-6;

/// Plain DNA of two lengths, in upper case.
fn plain() -> Vec<(String, String)> {
    let mut records = records("dna/inputs/kmers.fna");
    records.retain(|(_, sequence)| sequence.len() > 100 && sequence.len() < 400);
    assert_eq!(records.len(), 2);
    records
}

/// Applies a change to each sequence.
fn changed(records: &[(String, String)], change: impl Fn(&str) -> String) -> Vec<(String, String)> {
    let changed = records
        .iter()
        .map(|(header, sequence)| (header.clone(), change(sequence)));
    changed.collect()
}

#[test]
fn proteins_are_no_input_for_a_model_of_dna_unless_forced() {
    for model in DNA_MODELS {
        let place = Place::new(&[("x.faa", PROTEIN)]);
        let run = place.embed(model, "x.faa", &[]);
        assert_run(
            &run,
            PARTLY,
            &["x.faa", "looks like protein", "--force-alphabet"],
        );
        assert!(place.rows("x.parquet").is_none(), "{model}");

        assert_run(
            &place.embed(model, "x.faa", &["--force-alphabet"]),
            DONE,
            &[],
        );
        let rows = place.rows("x.parquet").unwrap();
        assert_eq!(rows.status, ["replaced"], "{model}");
        assert!(rows.values.iter().all(|value| value.is_finite()), "{model}");
    }
}

#[test]
fn dna_is_no_input_for_a_model_of_proteins_unless_forced() {
    let place = Place::new(&[("x.fna", fasta(&plain()).as_bytes())]);
    let run = place.embed("esm2", "x.fna", &[]);
    assert_run(
        &run,
        PARTLY,
        &["x.fna", "looks like DNA", "--force-alphabet"],
    );
    assert!(place.rows("x.parquet").is_none());
    assert_run(
        &place.embed("esm2", "x.fna", &["--force-alphabet"]),
        DONE,
        &[],
    );
    assert_eq!(place.rows("x.parquet").unwrap().status, ["ok", "ok"]);
}

#[test]
fn rna_lower_case_and_reads_give_the_vectors_of_the_dna() {
    let dna = plain();
    let rna = changed(&dna, |sequence| sequence.replace('T', "U"));
    let lower = changed(&dna, str::to_lowercase);
    let lower_rna = changed(&rna, str::to_lowercase);
    let lines = changed(&dna, |sequence| {
        let (first, rest) = sequence.split_at(61);
        format!("{first}\r\n{rest}\r\n")
    });
    let mut reads = String::new();
    for (header, sequence) in &dna {
        let quality = "I".repeat(sequence.len());
        reads.extend(["@", header, "\n", sequence, "\n+\n", &quality, "\n"]);
    }
    for model in DNA_MODELS {
        let expected = rows_of(model, &fasta(&dna), &[]);
        assert_eq!(expected.status, ["ok", "ok"], "{model}");
        let forms = [fasta(&rna), fasta(&lower), fasta(&lower_rna), fasta(&lines)];
        for (form, what) in forms.iter().chain([&reads]).zip([
            "RNA",
            "lower case",
            "RNA in lower case",
            "lines",
            "FASTQ",
        ]) {
            let rows = rows_of(model, form, &[]);
            let what = format!("{model}: {what}");
            assert_eq!(rows.ids, expected.ids, "{what}");
            assert_eq!(rows.lengths, expected.lengths, "{what}");
            assert_eq!(rows.status, expected.status, "{what}");
            assert_close(&rows.values, &expected.values, SAME, &what);
        }
    }
}

/// Writes records of random characters, of one to four bytes each, and of bytes that are not UTF-8;
/// beside it the same with `J` for each that is not ASCII; and tells how long Python finds them.
const UNICODE: &str = r"
import json, random, sys

random.seed(7)
letters = sys.argv[3]

def character():
    kind = random.random()
    if kind < 0.7:
        return random.choice(letters)
    if kind < 0.8:
        return random.choice('–—\u00a0\u200b\u00ad\ufeff\u202eé😀')
    if kind < 0.9:
        return chr(random.choice([random.randint(0xa1, 0xd7ff), random.randint(0xe000, 0x10ffff)]))
    return chr(random.randint(0xdc80, 0xdcff))

with open(sys.argv[1], 'wb') as file:
    for number in range(60):
        lines = [''.join(character() for _ in range(random.randint(1, 30))) for _ in range(random.randint(1, 5))]
        file.write(f'>r{number}\n'.encode())
        for line in lines:
            file.write(line.encode('utf-8', 'surrogateescape') + b'\n')

# Bytes that were put side by side may be a character: what is read counts.
with open(sys.argv[1], encoding='utf-8', errors='surrogateescape', newline='\n') as file:
    records = [record.split('\n') for record in file.read().split('>')[1:]]
sequences = [''.join(lines) for _, *lines in records]
with open(sys.argv[2], 'w') as file:
    for number, sequence in enumerate(sequences):
        file.write(f'>r{number}\n' + ''.join(c if c.isascii() else 'J' for c in sequence) + '\n')
print(json.dumps([len(sequence) for sequence in sequences]))
";

/// With a vector for each residue, the vector at `i` is that of Python's `sequence[i]`.
#[test]
fn letters_are_counted_as_python_counts_them() {
    for (model, letters) in [
        ("esm2", "MKTVRQELSAGYW"),
        ("dnabert2", "ACGT"),
        ("dnabert-3", "ACGT"),
    ] {
        let place = Place::new(&[]);
        let (unicode, ascii) = (place.path("unicode.fna"), place.path("ascii.fna"));
        let lengths = python(
            "the standard library",
            UNICODE,
            &[text(&unicode), text(&ascii), letters],
        );
        let lengths: Vec<u64> = serde_json::from_str(&lengths).unwrap();
        for options in [
            &["--pooling", "none"][..],
            &["--max-length", "20"],
            &["--max-length", "20", "--long", "truncate"],
        ] {
            let [given, plain] = ["unicode", "ascii"].map(|name| {
                let mut all = vec!["--force-alphabet", "--no-dedup"];
                all.extend(options);
                assert_run(&place.embed(model, &format!("{name}.fna"), &all), DONE, &[]);
                place.rows(&format!("{name}.parquet")).unwrap()
            });
            let what = format!("{model} {options:?}");
            assert_eq!(given.lengths, lengths, "{what}");
            assert_eq!(given.status, plain.status, "{what}");
            assert_eq!(given.vectors, plain.vectors, "{what}");
            if model == "esm2" && options.contains(&"none") {
                let vectors: Vec<u64> = given.vectors.iter().map(|&count| count as u64).collect();
                assert_eq!(vectors, lengths, "{what}");
            }
            let bits = |rows: &Rows| {
                rows.values
                    .iter()
                    .map(|value| value.to_bits())
                    .collect::<Vec<_>>()
            };
            assert!(bits(&given) == bits(&plain), "{what}");
        }
        if model != "esm2" {
            let run = place.embed(
                model,
                "unicode.fna",
                &["--force-alphabet", "--revcomp", "mean"],
            );
            assert_run(&run, DONE, &[]);
            assert_eq!(
                place.rows("unicode.parquet").unwrap().lengths,
                lengths,
                "{model}"
            );
        }
    }
}

#[test]
fn letters_that_are_not_ascii_are_told_with_their_place() {
    for (sequence, told) in [
        ("ACGTAC–GTTACG", "'–' (U+2013, en dash) at position 7"),
        (
            "ACGTA\u{a0}CGTTACG",
            "U+00A0 (no-break space) at position 6",
        ),
        ("ACGT<mask>ACGTTACG", "`<mask>` at position 5"),
        ("ACG-TACGTTACG", "'-' at position 4"),
    ] {
        for model in DNA_MODELS {
            let rows = rows_of(model, &format!(">a\n{sequence}\n"), &["--unknown", "skip"]);
            assert_eq!(
                rows.status,
                [format!("skipped: {told} is not in the vocabulary")],
                "{model}"
            );
        }
    }
    for model in DNA_MODELS {
        let rows = rows_of(model, ">a\nACG-TACGTTACG\n>b\nACGTACGT\n", &[]);
        assert_eq!(rows.status, ["replaced,gaps", "ok"], "{model}");
    }
}

#[test]
fn a_run_of_n_is_told_and_has_a_vector() {
    let text = format!(">n\n{}\n>good\nACGTTGCAACGTTAG\n", "N".repeat(200));
    for model in DNA_MODELS {
        let rows = rows_of(model, &text, &[]);
        assert_eq!(rows.status, ["all-unknown", "ok"], "{model}");
        assert_eq!(rows.lengths, [200, 15], "{model}");
        assert!(rows.values.iter().all(|value| value.is_finite()), "{model}");

        // Each N, or each k-mer with one, is a token of its own.
        let tokens = rows_of(model, &text, &["--pooling", "none"]);
        let expected = if model == "dnabert2" { 200 } else { 198 };
        assert_eq!(tokens.vectors[0], expected, "{model}");

        let rows = rows_of(model, &text, &["--unknown", "skip"]);
        let skipped = "skipped: 'N' at position 1 is not in the vocabulary";
        assert_eq!(rows.status, [skipped, "ok"], "{model}");
        let (skipped, good) = rows.values.split_at(rows.hidden);
        assert!(skipped.iter().all(|value| value.is_nan()), "{model}");
        assert!(good.iter().all(|value| value.is_finite()), "{model}");

        let place = Place::new(&[("x.fna", text.as_bytes())]);
        let run = place.embed(model, "x.fna", &["--unknown", "error"]);
        assert_run(&run, PARTLY, &["x.fna: record \"n\": 'N' at position 1"]);
        assert!(place.rows("x.parquet").is_none(), "{model}");
    }
}

#[test]
fn a_sequence_shorter_than_k_is_skipped() {
    let text = ">two\nAC\n>three\nACG\n>none\n\n";
    let rows = rows_of("dnabert-3", text, &[]);
    let empty = "skipped: empty sequence";
    let short = "skipped: shorter than k = 3";
    assert_eq!(rows.status, [short, "ok", empty]);
    assert_eq!(rows.lengths, [2, 3, 0]);
    let nan: Vec<bool> = rows
        .values
        .chunks(rows.hidden)
        .map(|row| row.iter().all(|value| value.is_nan()))
        .collect();
    assert_eq!(nan, [true, false, true]);
    let tokens = rows_of("dnabert-3", text, &["--pooling", "none"]);
    assert_eq!(tokens.vectors, [0, 1, 0]);

    let rows = rows_of("dnabert2", text, &[]);
    assert_eq!(rows.status, ["ok", "ok", empty]);
}

/// A copy of a fixture's checkpoint, to be damaged.
fn copied(checkpoint: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures().join("dna").join(checkpoint)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// Replaces a value of a checkpoint's config.json.
fn configure(checkpoint: &Path, key: &str, value: serde_json::Value) {
    let path = checkpoint.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(&path, config.to_string()).unwrap();
}

/// Exports a checkpoint that can't be, and checks that nothing is left behind.
#[track_caller]
fn assert_refused(checkpoint: &Path, fragments: &[&str]) {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("model");
    let run = seqembed(&["export", text(checkpoint), "-o", text(&out)]);
    assert_run(&run, WRONG, fragments);
    assert!(!out.exists(), "a damaged model was left");

    // `embed` exports by itself, and must be no less careful.
    let place = Place::new(&[("x.fna", b">a\nACGTACGTAA\n")]);
    let run = seqembed(&[
        "embed",
        text(&place.path("x.fna")),
        "-m",
        text(checkpoint),
        "-o",
        text(&place.path("out")),
    ]);
    assert_run(&run, WRONG, fragments);
    assert!(place.rows("x.parquet").is_none());
}

#[test]
fn a_tokenizer_of_another_vocabulary_is_refused() {
    let checkpoint = copied("dnabert2");
    fs::copy(
        fixtures().join("dna_tokens/tokenizer.json"),
        checkpoint.path().join("tokenizer.json"),
    )
    .unwrap();
    assert_refused(checkpoint.path(), &["tokenizer.json", "1024", "512"]);

    let checkpoint = copied("dnabert-3");
    let mut words = fs::read_to_string(checkpoint.path().join("vocab.txt")).unwrap();
    words.truncate(words.trim_end().rfind('\n').unwrap());
    words.push_str("\nGGG\nGGGA\n");
    fs::write(checkpoint.path().join("vocab.txt"), words).unwrap();
    assert_refused(checkpoint.path(), &["vocab.txt", "70", "69"]);
}

#[test]
fn a_configuration_of_another_model_is_refused_by_tensor_and_shapes() {
    let cases = [
        (
            "dnabert2",
            "intermediate_size",
            128,
            ["gated_layers", "[192, 48]", "[256, 48]"],
        ),
        (
            "dnabert2",
            "vocab_size",
            600,
            ["word_embeddings", "[512, 48]", "[600, 48]"],
        ),
        (
            "dnabert-3",
            "intermediate_size",
            128,
            ["intermediate.dense", "[96, 48]", "[128, 48]"],
        ),
        (
            "dnabert-3",
            "max_position_embeddings",
            1024,
            ["position_embeddings", "[512, 48]", "[1024, 48]"],
        ),
    ];
    for (checkpoint, key, value, fragments) in cases {
        let checkpoint = copied(checkpoint);
        configure(checkpoint.path(), key, value.into());
        assert_refused(checkpoint.path(), &fragments);
    }
    let checkpoint = copied("dnabert2");
    configure(checkpoint.path(), "num_hidden_layers", 3.into());
    assert_refused(
        checkpoint.path(),
        &["no tensor", "encoder.layer.2.attention.self"],
    );
}

#[test]
fn an_unknown_architecture_is_named_with_those_that_are_known() {
    let checkpoint = copied("dnabert-s");
    configure(checkpoint.path(), "model_type", "hyenadna".into());
    configure(
        checkpoint.path(),
        "architectures",
        serde_json::json!(["HyenaDNAForCausalLM"]),
    );
    configure(checkpoint.path(), "auto_map", serde_json::json!({}));
    assert_refused(
        checkpoint.path(),
        &["hyenadna", "ESM-2", "DNABERT-2", "BERT"],
    );
}

/// The other strand of plain DNA.
fn reverse_complement(sequence: &str) -> String {
    let other = |base| match base {
        'A' => 'T',
        'C' => 'G',
        'G' => 'C',
        'T' => 'A',
        other => other,
    };
    sequence.chars().rev().map(other).collect()
}

#[test]
fn both_strands_are_the_mean_of_two_runs() {
    let dna = plain();
    let other = changed(&dna, reverse_complement);
    for model in DNA_MODELS {
        for pooling in ["mean", "mean-all", "cls", "max"] {
            for windows in [&["--max-length", "90"][..], &[]] {
                let mut options = vec!["--pooling", pooling];
                options.extend(windows);
                let what = format!("{model} {}", options.join(" "));
                let first = rows_of(model, &fasta(&dna), &options);
                let second = rows_of(model, &fasta(&other), &options);
                options.extend(["--revcomp", "mean"]);
                let both = rows_of(model, &fasta(&dna), &options);
                assert_eq!(both.status, first.status, "{what}");
                let strands = first.values.iter().zip(&second.values);
                let mean: Vec<f32> = strands.map(|(a, b)| f32::midpoint(*a, *b)).collect();
                assert_close(&both.values, &mean, SAME, &what);
                assert!(first.values != second.values, "{what}: no strands");
            }
        }
    }
}

#[test]
fn both_strands_need_dna_and_a_pooling() {
    let place = Place::new(&[("x.fna", fasta(&plain()).as_bytes()), ("x.faa", PROTEIN)]);
    for model in DNA_MODELS {
        let options = ["--revcomp", "mean", "--pooling", "none"];
        assert_run(
            &place.embed(model, "x.fna", &options),
            WRONG,
            &["revcomp", "none"],
        );
    }
    assert_run(
        &place.embed("esm2", "x.faa", &["--revcomp", "mean"]),
        WRONG,
        &["revcomp", "works with DNA models only"],
    );
    assert!(!place.path("out/x.parquet").exists());
}

#[test]
fn a_window_beyond_the_positions_is_refused() {
    let place = Place::new(&[("x.fna", fasta(&plain()).as_bytes())]);
    // 512 positions: 510 k-mers, and those of 512 bases.
    let run = place.embed("dnabert-3", "x.fna", &["--max-length", "513"]);
    assert_run(&run, WRONG, &["513", "at most 512"]);
    let run = place.embed("dnabert-3", "x.fna", &["--max-length", "512"]);
    assert_run(&run, DONE, &[]);
    // ALiBi has no positions.
    let run = place.embed("dnabert2", "x.fna", &["--max-length", "60000"]);
    assert_run(&run, DONE, &[]);
    let run = place.embed(
        "dnabert-3",
        "x.fna",
        &["--max-length", "2", "--overlap", "0"],
    );
    assert_run(&run, WRONG, &["--max-length 2 ", "3 bases"]);
}

#[test]
fn windows_are_in_bases_and_lose_no_token() {
    let dna = records("dna/inputs/kmers.fna");
    let text = fasta(&dna);
    for model in DNA_MODELS {
        let whole = rows_of(model, &text, &["--pooling", "none"]);
        for overlap in ["25", "0", "99"] {
            let cut = ["--max-length", "100", "--overlap", overlap];
            let what = format!("{model}, overlap {overlap}");
            let tokens = rows_of(model, &text, &[&cut[..], &["--pooling", "none"]].concat());
            assert_eq!(tokens.vectors, whole.vectors, "{what}");
            for (status, (_, sequence)) in tokens.status.iter().zip(&dna) {
                let is_long = sequence.len() > 100;
                assert_eq!(status, if is_long { "windowed" } else { "ok" }, "{what}");
            }
            assert!(tokens.values.iter().all(|v| v.is_finite()), "{what}");

            if model == "dnabert-3" && overlap == "0" {
                // The first window sees the 98 k-mers of the first 100 bases, and nothing else.
                let (header, sequence) = &dna[0];
                let first = [(header.clone(), sequence[..100].to_owned())];
                let alone = rows_of(model, &fasta(&first), &["--pooling", "none"]);
                assert_eq!(alone.vectors, [98]);
                let values = &tokens.values[..alone.values.len()];
                assert_close(values, &alone.values, SAME, &what);
            }

            // The mean is that of the tokens that the windows give.
            let means = rows_of(model, &text, &cut);
            let mut rest = &tokens.values[..];
            let mut expected = Vec::new();
            for &count in &tokens.vectors {
                let (row, next) = rest.split_at(count * tokens.hidden);
                rest = next;
                for at in 0..tokens.hidden {
                    let values = row.iter().skip(at).step_by(tokens.hidden);
                    let sum: f64 = values.map(|&value| f64::from(value)).sum();
                    #[allow(clippy::cast_possible_truncation)]
                    expected.push((sum / count as f64) as f32);
                }
            }
            assert_close(&means.values, &expected, 1e-5, &what);
            for pooling in ["mean-all", "cls", "max"] {
                let rows = rows_of(model, &text, &[&cut[..], &["--pooling", pooling]].concat());
                assert!(
                    rows.values.iter().all(|value| value.is_finite()),
                    "{what} {pooling}"
                );
            }
        }
    }
}

#[test]
fn truncation_is_what_a_cut_by_hand_is() {
    let dna = records("dna/inputs/kmers.fna");
    let by_hand = changed(&dna, |sequence| {
        sequence[..sequence.len().min(100)].to_owned()
    });
    for model in DNA_MODELS {
        let truncate = ["--long", "truncate", "--max-length", "100"];
        for options in [&[][..], &["--pooling", "none"], &["--revcomp", "mean"]] {
            let what = format!("{model} {options:?}");
            let expected = rows_of(model, &fasta(&by_hand), options);
            let rows = rows_of(model, &fasta(&dna), &[&truncate[..], options].concat());
            assert_eq!(rows.vectors, expected.vectors, "{what}");
            for ((status, length), (_, sequence)) in rows.status.iter().zip(&rows.lengths).zip(&dna)
            {
                let is_long = sequence.len() > 100;
                assert_eq!(status, if is_long { "truncated" } else { "ok" }, "{what}");
                assert_eq!(*length, sequence.len() as u64, "{what}");
            }
            assert_close(&rows.values, &expected.values, SAME, &what);
        }
        let place = Place::new(&[("x.fna", fasta(&dna).as_bytes())]);
        let run = place.embed(model, "x.fna", &["--long", "error", "--max-length", "100"]);
        assert_run(&run, PARTLY, &["x.fna: record", "bases exceed"]);
    }
}
