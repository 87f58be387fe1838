//! What goes wrong on a device while a run goes on: out of memory, overflow, loss. The faults are
//! injected into engines on the CPU (`SEQEMBED_INJECT`, see `src/engine/fault_injection.rs`);
//! everything around them is what runs on GPUs too. And weights that are no numbers, or so large
//! that what is computed of them is none.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Output};

use crate::common::{
    self, DONE, PARTLY, Place, WRONG, assert_close, assert_run, attention_part, edited, exported,
    fasta, fixtures, records, text,
};
use seqembed::output::Rows;
use serde_json::Value;

/// The machine refused something.
const FAILED: i32 = 1;
/// All devices were lost: worth another try.
const LOST: i32 = 75;

/// `seqembed embed` with faults, of files of the folder, into `out`.
fn embed(place: &Place, inject: &str, model: &str, files: &[&str], options: &[&str]) -> Output {
    let mut command = Command::new(common::executable());
    command.arg("embed");
    for file in files {
        command.arg(place.path(file));
    }
    command
        .args(["-m", text(exported(model)), "-o", text(&place.path("out"))])
        .args(["--device", "cpu"])
        .args(options)
        .env("SEQEMBED_INJECT", inject);
    // As many workers as on any other machine.
    if !options.contains(&"--threads") {
        command.args(["--threads", "2"]);
    }
    command.output().unwrap()
}

/// Proteins of the fixtures, many times over with other beginnings.
fn proteins(count: usize) -> String {
    let pool: Vec<_> = records("esm2/inputs/mixed.faa")
        .into_iter()
        .filter(|(_, sequence)| sequence.len() > 60)
        .collect();
    let many: Vec<_> = (0..count)
        .map(|at| {
            let (_, sequence) = &pool[at % pool.len()];
            (format!("p{at}"), sequence[at % 17..].to_owned())
        })
        .collect();
    fasta(&many)
}

/// One sequence of a length, made of the fixtures' proteins.
fn long_protein(length: usize) -> String {
    let all: String = records("esm2/inputs/long.faa")
        .into_iter()
        .map(|(_, sequence)| sequence)
        .collect();
    all.repeat(length.div_ceil(all.len()))[..length].to_owned()
}

fn device(report: &Value, at: usize, key: &str) -> u64 {
    report["devices"][at][key].as_u64().unwrap()
}

/// The row of a record, its vectors one after the other.
fn row<'r>(rows: &'r Rows, id: &str) -> (&'r str, &'r [f32]) {
    let at = rows.ids.iter().position(|other| other == id).unwrap();
    let before: usize = rows.vectors[..at].iter().sum();
    let values = &rows.values[before * rows.hidden..(before + rows.vectors[at]) * rows.hidden];
    (&rows.status[at], values)
}

#[test]
fn two_devices_give_the_bytes_of_one() {
    let text = proteins(120);
    let files = [
        ("a.faa", text.as_bytes()),
        ("b.faa", &text.as_bytes()[..3000]),
    ];
    let (one, two) = (Place::new(&files), Place::new(&files));
    let inputs = ["a.faa", "b.faa"];
    assert_run(&embed(&one, "", "esm2", &inputs, &[]), DONE, &[]);
    let inject = "engines=2,slow=2";
    assert_run(&embed(&two, inject, "esm2", &inputs, &[]), DONE, &[]);
    for file in ["a.parquet", "b.parquet"] {
        let bytes = |place: &Place| fs::read(place.path("out").join(file)).unwrap();
        assert!(bytes(&one) == bytes(&two), "{file} differs");
    }
    let report = two.report();
    assert_eq!(report["devices"].as_array().unwrap().len(), 2);
    assert_eq!(report["loads"].as_array().unwrap().len(), 2);
    for at in [0, 1] {
        assert!(device(&report, at, "batches") > 3, "{report:#}");
        let busy = report["devices"][at]["busy"].as_f64().unwrap();
        assert!(busy > 0.1 && busy <= 1.0, "{busy}");
    }
    let tokens = device(&report, 0, "tokens") + device(&report, 1, "tokens");
    assert_eq!(tokens, report["totals"]["tokens"].as_u64().unwrap());
}

#[test]
fn a_batch_without_room_is_split_and_the_next_ones_are_smaller() {
    let text = proteins(60);
    for (model, pooling) in [("esm2", "mean"), ("esm2", "none"), ("esm2", "max")] {
        let place = Place::new(&[("a.faa", text.as_bytes())]);
        let options = ["--pooling", pooling, "--batch-tokens", "2000"];
        assert_run(&embed(&place, "", model, &["a.faa"], &options), DONE, &[]);
        let expected = place.rows("a.parquet").unwrap();
        let split = embed(&place, "oom-above=600", model, &["a.faa"], &options);
        assert_run(&split, DONE, &["split to fit into memory"]);
        let rows = place.rows("a.parquet").unwrap();
        assert_eq!((&rows.ids, &rows.status), (&expected.ids, &expected.status));
        assert_eq!(rows.vectors, expected.vectors);
        assert_close(&rows.values, &expected.values, 1e-5, pooling);
        let report = place.report();
        let learnt = device(&report, 0, "learnt_batch_tokens");
        assert!((300..=600).contains(&learnt), "{learnt}");
        // Two workers reach the limit at the same time, each at most twice: 2,000 -> 1,000 -> 500.
        // All later batches are split in advance.
        let splits = device(&report, 0, "out_of_memory_splits");
        assert!((2..=6).contains(&splits), "{splits}");
    }
}

#[test]
fn a_protein_too_large_for_the_device_is_embedded_as_in_windows_of_the_models_length() {
    let all = vec![
        ("short".to_owned(), long_protein(70)),
        ("long".to_owned(), long_protein(1300)),
    ];
    let text = fasta(&all);
    for pooling in ["mean", "mean-all", "cls", "max", "none"] {
        let place = Place::new(&[("a.faa", text.as_bytes())]);
        let options = ["--pooling", pooling];
        assert_run(&embed(&place, "", "esm2", &["a.faa"], &options), DONE, &[]);
        let expected = place.rows("a.parquet").unwrap();
        let options = ["--pooling", pooling, "--max-length", "5000"];
        let run = embed(&place, "oom-above=1100", "esm2", &["a.faa"], &options);
        assert_run(&run, DONE, &["1 in windows"]);
        let rows = place.rows("a.parquet").unwrap();
        assert_eq!(rows.status, ["ok", "windowed"]);
        assert_eq!(rows.status, expected.status);
        assert_eq!(rows.vectors, expected.vectors);
        assert_close(&rows.values, &expected.values, 1e-5, pooling);
    }
}

#[test]
fn a_sequence_below_the_models_length_is_halved_until_it_fits() {
    // The model, the file, the record, the most tokens, and the windows that follow: half of the
    // record, or a quarter.
    let (long, kmers) = ("dna/inputs/mixed.fna", "dna/inputs/kmers.fna");
    for (model, file, length, most, window) in [
        ("esm2", "esm2/inputs/long.faa", 257, 200, "128"),
        ("esm2", "esm2/inputs/long.faa", 257, 104, "64"),
        ("dnabert2", long, 4875, 800, "2437"),
        ("dnabert-3", kmers, 512, 400, "256"),
    ] {
        let all = records(file);
        let (header, _) = all
            .iter()
            .find(|(_, sequence)| sequence.len() == length)
            .unwrap();
        let id = header.split_whitespace().next().unwrap();
        let place = Place::new(&[("a.fa", fasta(&all).as_bytes())]);
        let options = ["--revcomp", if model == "esm2" { "none" } else { "mean" }];
        let inject = format!("oom-above={most}");
        assert_run(
            &embed(&place, &inject, model, &["a.fa"], &options),
            DONE,
            &[],
        );
        let rows = place.rows("a.parquet").unwrap();
        let options = [options[0], options[1], "--max-length", window];
        assert_run(&embed(&place, "", model, &["a.fa"], &options), DONE, &[]);
        let expected = place.rows("a.parquet").unwrap();
        let ((status, values), (_, expected)) = (row(&rows, id), row(&expected, id));
        assert!(status.starts_with("windowed"), "{model}: {status}");
        assert_close(values, expected, 1e-5, model);
    }
}

#[test]
fn what_may_not_be_cut_is_reported_and_the_others_are_done() {
    let all = vec![
        ("a".to_owned(), long_protein(70)),
        ("giant".to_owned(), long_protein(900)),
        ("b".to_owned(), long_protein(80)),
    ];
    let text = fasta(&all);
    for (pooling, vectors) in [("mean", [1, 1, 1]), ("none", [70, 0, 80])] {
        let place = Place::new(&[("a.faa", text.as_bytes())]);
        let options = ["--long", "truncate", "--pooling", pooling];
        assert_run(&embed(&place, "", "esm2", &["a.faa"], &options), DONE, &[]);
        let expected = place.rows("a.parquet").unwrap();
        let run = embed(&place, "oom-above=300", "esm2", &["a.faa"], &options);
        assert_run(
            &run,
            PARTLY,
            &["a.faa: record \"giant\", 900 long", "out of memory on CPU"],
        );
        let rows = place.rows("a.parquet").unwrap();
        assert_eq!(rows.ids, ["a", "giant", "b"]);
        assert_eq!(rows.status, ["ok", "skipped: out of memory on CPU", "ok"]);
        assert_eq!(rows.vectors, vectors);
        assert!(row(&rows, "giant").1.iter().all(|x| x.is_nan()));
        for id in ["a", "b"] {
            assert_close(row(&rows, id).1, row(&expected, id).1, 1e-5, id);
        }
        let report = place.report();
        assert_eq!(report["totals"]["failed_records"], 1);
        assert_eq!(report["files"][0]["failed_records"], 1);
        assert_eq!(report["totals"]["failed_files"], 0);
    }
}

#[test]
fn a_device_that_is_lost_leaves_its_work_to_the_other() {
    let text = proteins(150);
    let files = [("a.faa", text.as_bytes())];
    let (whole, lossy) = (Place::new(&files), Place::new(&files));
    assert_run(&embed(&whole, "", "esm2", &["a.faa"], &[]), DONE, &[]);
    for after in ["0", "4"] {
        let inject = format!("engines=2,slow=3,lost-after={after}");
        let run = embed(&lossy, &inject, "esm2", &["a.faa"], &[]);
        assert_run(
            &run,
            DONE,
            &["warning: CPU 0 was lost", "Its work continues on CPU 1"],
        );
        let bytes = |place: &Place| fs::read(place.path("out/a.parquet")).unwrap();
        assert!(bytes(&whole) == bytes(&lossy), "the output differs");
        let report = lossy.report();
        assert!(report["devices"][0]["lost"].is_string(), "{report:#}");
        assert!(report["devices"][1]["lost"].is_null(), "{report:#}");
    }
}

#[test]
fn with_no_device_left_the_finished_files_stay_and_the_others_are_named() {
    // The second file goes on beyond the first chunk, so that the first file is written before the
    // last batches are done.
    let (first, second) = (proteins(50), proteins(420));
    let place = Place::new(&[("a.faa", first.as_bytes()), ("b.faa", second.as_bytes())]);
    // All batches of the second file are needed, though its sequences are the first one's too.
    let whole = embed(&place, "", "esm2", &["a.faa", "b.faa"], &["--no-dedup"]);
    assert_run(&whole, DONE, &[]);
    let batches = place.report()["totals"]["batches"].as_u64().unwrap();
    let expected = fs::read(place.path("out/a.parquet")).unwrap();
    fs::remove_dir_all(place.path("out")).unwrap();

    let inject = format!("lost-after={}", batches - 4);
    let run = embed(
        &place,
        &inject,
        "esm2",
        &["a.faa", "b.faa"],
        &["--threads", "1", "--no-dedup"],
    );
    let said = [
        "error: CPU was lost",
        "1 file is finished and kept; unfinished: b.",
    ];
    assert_run(&run, LOST, &said);
    let names: BTreeSet<_> = fs::read_dir(place.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("report") && !name.starts_with(".seqembed"))
        .collect();
    assert_eq!(names, BTreeSet::from(["a.parquet".to_owned()]));
    assert!(fs::read(place.path("out/a.parquet")).unwrap() == expected);
}

#[test]
fn what_overflows_is_computed_again_in_higher_precision() {
    let text = proteins(40);
    let place = Place::new(&[("a.faa", text.as_bytes())]);
    // 100 residues and two special tokens: several of the sequences have those.
    let inject = "nonfinite-tokens=102,half";
    for pooling in ["mean", "none"] {
        let options = ["--pooling", pooling];
        assert_run(&embed(&place, "", "esm2", &["a.faa"], &options), DONE, &[]);
        let expected = place.rows("a.parquet").unwrap();
        let hit = expected
            .lengths
            .iter()
            .filter(|&&length| length == 100)
            .count();
        assert!(hit > 0);
        let run = embed(&place, inject, "esm2", &["a.faa"], &options);
        assert_run(&run, DONE, &["recomputed in higher precision"]);
        let rows = place.rows("a.parquet").unwrap();
        assert_eq!(rows.status, expected.status);
        assert_close(&rows.values, &expected.values, 1e-5, pooling);
        let report = place.report();
        assert_eq!(device(&report, 0, "recomputed_sequences"), hit as u64);
        assert!(device(&report, 0, "recomputed_batches") > 0);
        // The engine of higher precision is loaded once, and only because it was needed.
        assert_eq!(report["loads"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn numbers_that_no_precision_saves_are_reported_and_never_written() {
    let text = proteins(40);
    for (inject, why) in [
        (
            "nonfinite-tokens=102",
            "skipped: the model's numbers are not finite (fp32)",
        ),
        (
            "nonfinite-tokens=102,half,nonfinite-always",
            "in higher precision",
        ),
    ] {
        let place = Place::new(&[("a.faa", text.as_bytes())]);
        let run = embed(&place, inject, "esm2", &["a.faa"], &[]);
        assert_run(
            &run,
            PARTLY,
            &["has no embedding: the model's numbers are not finite"],
        );
        let rows = place.rows("a.parquet").unwrap();
        for (at, vector) in rows.values.chunks(rows.hidden).enumerate() {
            if rows.lengths[at] == 100 {
                assert!(rows.status[at].ends_with(why), "{}", rows.status[at]);
                assert!(vector.iter().all(|x| x.is_nan()));
            } else {
                assert_eq!(rows.status[at], "ok");
                assert!(vector.iter().all(|x| x.is_finite()));
            }
        }
    }
}

#[test]
fn the_trace_shows_every_stage_of_every_device() {
    let text = proteins(120);
    let place = Place::new(&[("a.faa", text.as_bytes())]);
    let trace = place.path("trace.json");
    let options = ["--trace", common::text(&trace)];
    assert_run(
        &embed(&place, "engines=2,slow=1", "esm2", &["a.faa"], &options),
        DONE,
        &[],
    );
    let events: Value = serde_json::from_slice(&fs::read(&trace).unwrap()).unwrap();
    let events = events.as_array().unwrap();
    let names = |kind: &str, of: &dyn Fn(&Value) -> String| -> BTreeSet<String> {
        let events = events.iter().filter(|event| event["ph"] == kind);
        events.map(of).collect()
    };
    let spans = names("X", &|event| event["name"].as_str().unwrap().to_owned());
    let stages = ["batch", "loading", "reading", "tokenizing", "writing"].map(str::to_owned);
    assert_eq!(spans, BTreeSet::from(stages));
    let lanes = names("M", &|event| {
        event["args"]["name"].as_str().unwrap().to_owned()
    });
    for lane in ["CPU 0", "CPU 1", "host", "worker 1"] {
        assert!(lanes.contains(lane), "{lanes:?}");
    }
    let batches = events.iter().filter(|event| event["name"] == "batch");
    let tokens: u64 = batches
        .map(|event| event["args"]["tokens"].as_u64().unwrap())
        .sum();
    assert_eq!(tokens, place.report()["totals"]["tokens"].as_u64().unwrap());

    let nowhere = place.path("no/such/folder/trace.json");
    let options = ["--trace", common::text(&nowhere)];
    assert_run(
        &embed(&place, "", "esm2", &["a.faa"], &options),
        FAILED,
        &[common::text(&nowhere)],
    );
}

#[test]
fn a_cpu_has_no_half_precision() {
    let place = Place::new(&[("a.faa", b">a\nMKV\n")]);
    for precision in ["fp16", "bf16", "fp8"] {
        let run = embed(&place, "", "esm2", &["a.faa"], &["--precision", precision]);
        let said = format!("precision {precision} is not available on cpu");
        assert_run(&run, WRONG, &[&said, "needs a GPU", "--device cuda"]);
    }
    for precision in ["auto", "fp32"] {
        let run = embed(&place, "", "esm2", &["a.faa"], &["--precision", precision]);
        assert_run(&run, DONE, &[]);
        let (_, layout) = seqembed::output::read(&place.path("out/a.parquet")).unwrap();
        assert_eq!(layout.provenance("precision"), Some("fp32"));
        assert_eq!(layout.provenance("device"), Some("cpu"));
    }
}

/// What the status of a record says whose numbers are not finite.
const NO_NUMBERS: &str = "skipped: the model's numbers are not finite (fp32)";

/// Checkpoints of each kind of attention: rotary, with a slope, plain.
const ATTENTIONS: [&str; 3] = [
    "esm2/checkpoints/hub-safetensors",
    "dna/dnabert2-6-heads",
    "dna/dnabert-3-plain",
];

/// Embeds `x.fa` by the models in `folders` of the place, each file with this pooling, in one run;
/// the rows of each.
fn with_models(
    place: &Place,
    folders: &[String],
    pooling: &str,
    kernels: &str,
    code: i32,
) -> Vec<Rows> {
    let files = folders.iter().fold(String::new(), |mut files, folder| {
        let (model, fasta) = (place.path(folder), place.path("x.fa"));
        let (model, fasta) = (text(&model), text(&fasta));
        writeln!(
            files,
            "- {{sample: {folder}, fasta: {fasta}, model: {model}}}"
        )
        .unwrap();
        files
    });
    let manifest = place.path("manifest.yaml");
    fs::write(&manifest, format!("pooling: {pooling}\nfiles:\n{files}")).unwrap();
    let run = Command::new(common::executable())
        .args(["run", text(&manifest), "-o", text(&place.path("out"))])
        .args(["--device", "cpu", "--threads", "2", "--kernels", kernels])
        .env("SEQEMBED_CACHE", place.path("cache"))
        .output()
        .unwrap();
    assert_run(&run, code, &[]);
    let rows = folders
        .iter()
        .map(|folder| place.rows(&format!("{folder}.parquet")).unwrap());
    rows.collect()
}

/// Sequences for a checkpoint; the last one is longer than a block of keys.
fn sequences(checkpoint: &str) -> String {
    let sequences = if checkpoint.starts_with("esm2") {
        [
            "MKTAYIAKQRQISFVKSHFSRQ".to_owned(),
            long_protein(150).replace('W', "A"),
            long_protein(299),
        ]
    } else {
        [
            "ACGTTGCAAC".to_owned(),
            "GATTACAC".repeat(40),
            "CCATGAAAGCAG".repeat(40),
        ]
    };
    let records = sequences
        .into_iter()
        .enumerate()
        .map(|(at, sequence)| (format!("s{at}"), sequence));
    fasta(&records.collect::<Vec<_>>())
}

#[test]
fn a_weight_that_is_no_number_is_told_whichever_it_is() {
    /// No embedding is made from these.
    const UNUSED: [&str; 3] = ["lm_head.", "contact_head.", "pooler."];
    for checkpoint in ATTENTIONS {
        let place = Place::new(&[("x.fa", sequences(checkpoint).as_bytes())]);
        let source = fixtures().join(checkpoint);
        let names = std::cell::RefCell::new(Vec::new());
        let note =
            |name: &str, _: &[usize], _: &mut [f32]| names.borrow_mut().push(name.to_owned());
        edited(&source, &place.path("clean"), note);
        let mut names = names.into_inner();
        // Compared with the configuration's: such a checkpoint is refused.
        names.retain(|name| !name.ends_with("inv_freq"));
        names.sort();
        let mut folders = vec!["clean".to_owned()];
        for (at, name) in names.iter().enumerate() {
            let odd = [f32::NAN, f32::INFINITY][at % 2];
            let folder = format!("m{at}");
            // The first number of each row of a matrix, whichever rows the sequences take.
            edited(&source, &place.path(&folder), |other, shape, numbers| {
                if other == name {
                    let row = shape.last().copied().unwrap_or(1);
                    numbers.iter_mut().step_by(row).for_each(|x| *x = odd);
                }
            });
            folders.push(folder);
        }
        // The maximum hides most.
        let all = with_models(&place, &folders, "max", "auto", PARTLY);
        assert_eq!(all[0].status, ["ok"; 3]);
        for (name, rows) in names.iter().zip(&all[1..]) {
            let what = format!("{name} of {checkpoint}");
            if UNUSED.iter().any(|unused| name.contains(unused)) {
                assert_eq!(rows.status, ["ok"; 3], "{what}");
                assert_eq!(rows.values, all[0].values, "{what}");
            } else {
                assert_eq!(rows.status, [NO_NUMBERS; 3], "{what}");
                assert!(rows.values.iter().all(|x| x.is_nan()), "{what}");
            }
        }
    }
}

#[test]
fn attention_that_is_no_number_is_told_in_every_pooling() {
    for checkpoint in ATTENTIONS {
        let place = Place::new(&[("x.fa", sequences(checkpoint).as_bytes())]);
        let source = fixtures().join(checkpoint);
        let part = |name: &str, at: usize, count: usize| {
            attention_part(name, at, count).filter(|_| name.ends_with("weight"))
        };
        let mut folders = Vec::new();
        for odd in [f32::NAN, f32::INFINITY] {
            for which in 0..3 {
                for all in [false, true] {
                    let folder = format!("m{}", folders.len());
                    edited(&source, &place.path(&folder), |name, _, numbers| {
                        let count = numbers.len();
                        let mut own = (0..count).filter(|at| part(name, *at, count) == Some(which));
                        let hit: Vec<usize> = if all {
                            own.collect()
                        } else {
                            own.next().into_iter().collect()
                        };
                        for at in hit {
                            numbers[at] = odd;
                        }
                    });
                    folders.push(folder);
                }
            }
        }
        // Numbers, but the scores are too large.
        let folder = "large".to_owned();
        edited(&source, &place.path(&folder), |name, _, numbers| {
            let count = numbers.len();
            for (at, number) in numbers.iter_mut().enumerate() {
                if part(name, at, count).is_some_and(|which| which < 2) {
                    *number *= 1e22;
                }
            }
        });
        folders.push(folder);
        for (kernels, pooling) in [
            ("auto", "mean"),
            ("auto", "max"),
            ("auto", "cls"),
            ("auto", "none"),
            ("portable", "mean"),
        ] {
            let all = with_models(&place, &folders, pooling, kernels, PARTLY);
            for (folder, rows) in folders.iter().zip(all) {
                let what = format!("{folder} of {checkpoint}, {kernels} {pooling}");
                assert_eq!(rows.status, [NO_NUMBERS; 3], "{what}");
            }
        }
    }
}

#[test]
fn a_letter_that_is_no_number_costs_the_sequences_that_have_it() {
    // The row of a letter's embedding, and the sequences that have the letter.
    for (checkpoint, token, hit) in [
        (ATTENTIONS[0], "W", [false, false, true]),
        (ATTENTIONS[2], "AAA", [false, false, true]),
    ] {
        let place = Place::new(&[("x.fa", sequences(checkpoint).as_bytes())]);
        let source = fixtures().join(checkpoint);
        let vocabulary = fs::read_to_string(source.join("vocab.txt")).unwrap();
        let id = vocabulary.lines().position(|line| line == token).unwrap();
        for (folder, odd) in [("clean", None), ("poisoned", Some(f32::NAN))] {
            edited(&source, &place.path(folder), |name, shape, numbers| {
                if name.ends_with("word_embeddings.weight")
                    && let Some(odd) = odd
                {
                    numbers[id * shape[1]] = odd;
                }
            });
        }
        for kernels in ["auto", "portable"] {
            for pooling in ["mean", "max", "cls", "none"] {
                let folders = ["clean".to_owned(), "poisoned".to_owned()];
                let all = with_models(&place, &folders, pooling, kernels, PARTLY);
                for (at, hit) in hit.into_iter().enumerate() {
                    let what = format!("s{at} of {checkpoint}, {kernels} {pooling}");
                    let (status, values) = row(&all[1], &format!("s{at}"));
                    if hit {
                        assert_eq!(status, NO_NUMBERS, "{what}");
                        assert!(values.iter().all(|x| x.is_nan()), "{what}");
                    } else {
                        assert_eq!((status, values), row(&all[0], &format!("s{at}")), "{what}");
                        assert_eq!(status, "ok", "{what}");
                    }
                }
            }
        }
    }
}

/// `seqembed embed` of `a.faa` by the exported model, as some program starts it.
fn started_by(mut command: Command, place: &Place, options: &[&str]) -> Output {
    command
        .args(["embed", text(&place.path("a.faa"))])
        .args(["-m", text(exported("esm2"))])
        .args(["-o", text(&place.path("out")), "--device", "cpu"])
        .args(options)
        .output()
        .unwrap()
}

#[test]
fn no_more_threads_are_started_than_help() {
    let place = Place::new(&[("a.faa", proteins(60).as_bytes())]);
    let run = embed(&place, "", "esm2", &["a.faa"], &["--threads", "5000"]);
    assert_run(&run, DONE, &["of the 5000 requested threads"]);
    let processors = std::thread::available_parallelism().unwrap().get();
    assert_eq!(place.report()["threads"], processors);
    // No word where there is nothing to say.
    let run = embed(&place, "", "esm2", &["a.faa"], &["--threads", "1"]);
    assert_run(&run, DONE, &[]);
    assert!(!String::from_utf8_lossy(&run.stderr).contains("requested threads"));
}

#[test]
fn where_the_system_gives_no_threads_there_is_an_error() {
    let place = Place::new(&[("a.faa", proteins(60).as_bytes())]);
    assert_run(&embed(&place, "", "esm2", &["a.faa"], &[]), DONE, &[]);
    let output = place.path("out/a.parquet");
    fs::copy(&output, place.path("a.parquet")).unwrap();
    let (model, input) = (exported("esm2"), place.path("a.faa"));
    let (out, drawn) = (place.path("out"), place.path("a.parquet"));
    let picture = place.path("a.svg");
    for arguments in [
        &["embed", text(&input), "-m", text(model), "-o", text(&out)][..],
        &["plot", text(&drawn), "-o", text(&picture)],
        &["convert", text(&drawn), "-o", text(&out), "--format", "npz"],
    ] {
        let run = Command::new(common::executable())
            .args(arguments)
            // No address space has room for such a stack: each thread that Rust starts is refused.
            .env("RUST_MIN_STACK", (1_u64 << 50).to_string())
            .output()
            .unwrap();
        assert_run(&run, FAILED, &["cannot start a thread", "ulimit -u"]);
    }
}

/// Each number of processes that a user may have, from none to enough: whichever thread is the
/// first that is refused, in whosever library, there is an error, and an end. Root has no such
/// limit, so that another user must be at hand for it.
#[cfg(target_os = "linux")]
#[test]
fn whichever_thread_is_refused_there_is_an_error_and_an_end() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    /// A user who has no processes.
    const USER: &str = "52817";
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let place = Place::new(&[("a.faa", proteins(60).as_bytes())]);
    let library = std::env::var("ORT_DYLIB_PATH").unwrap_or_default();
    let (model, out) = (exported("esm2"), place.path("out"));
    // What was made for the tests is theirs alone.
    for folder in [out.parent().unwrap(), model, model.parent().unwrap()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let as_user = |limit: Option<usize>| {
        let mut command = Command::new("timeout");
        command.arg("60");
        if let Some(limit) = limit {
            command.args(["prlimit", &format!("--nproc={limit}")]);
        }
        if is_root {
            command.args([
                "setpriv",
                "--reuid",
                USER,
                "--regid",
                USER,
                "--clear-groups",
            ]);
        }
        command.env("HOME", &out).env("ORT_DYLIB_PATH", &library);
        command.arg(common::executable());
        command
    };
    let free = started_by(as_user(None), &place, &[]);
    if free.status.code() != Some(DONE) {
        // Another user may not be let in where the executable lies.
        let said = String::from_utf8_lossy(&free.stderr);
        eprintln!(
            "SKIPPED: as another user it ends with {}: {said}",
            free.status
        );
        return;
    }
    let mut refused = 0;
    // Many batches, each with a thread of its own; and one, with threads of ONNX Runtime's.
    for (limit, budget) in (1..=12).flat_map(|limit| [(limit, "500"), (limit, "1000000")]) {
        let run = started_by(as_user(Some(limit)), &place, &["--batch-tokens", budget]);
        let said = String::from_utf8_lossy(&run.stderr);
        let what = format!("{limit}, {budget}: {}: {said}", run.status);
        match run.status.code() {
            Some(DONE) => {}
            Some(FAILED) => {
                refused += 1;
                assert!(said.contains("cannot start a thread"), "{what}");
                assert!(said.contains("ulimit -u"), "{what}");
            }
            _ => panic!("{what}"),
        }
        assert!(!said.contains("panicked"), "{what}");
    }
    assert!(refused > 1, "{refused} runs had too few threads");
}
