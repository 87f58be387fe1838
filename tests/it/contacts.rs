//! `seqembed contacts` against the contacts that fair-esm and transformers agree on, which
//! `onnx/reference/contacts_fixtures.py` recorded, and what its files, options and errors are.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use safetensors::SafeTensors;
use seqembed::{
    ContactsError, ContactsFormat, ContactsOutputs, Embedder, EmbedderOptions, Kernels, Overrides,
    PairChoice, Pooling, Silent, TopPairs,
};
use tempfile::TempDir;

use crate::common::{
    DONE, PARTLY, Place, WRONG, assert_close, assert_run, edited, export, exported, fixtures,
    python, seqembed, text,
};

/// How far a contact may be from the reference's, which is a probability.
const BOUND: f32 = 2e-5;

/// Rows of a map that are recorded: every one of short sequences.
const STEP: usize = 12;
const SHORT: usize = 40;

fn numbers(bytes: &[u8]) -> Vec<f32> {
    let numbers = bytes.chunks_exact(4);
    numbers
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

fn whole(bytes: &[u8]) -> Vec<usize> {
    let numbers = bytes.chunks_exact(8);
    numbers
        .map(|bytes| usize::try_from(i64::from_le_bytes(bytes.try_into().unwrap())).unwrap())
        .collect()
}

/// The tensors of a file of floats.
fn floats(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = tensors.iter();
    tensors
        .map(|(name, tensor)| (name.to_owned(), numbers(tensor.data())))
        .collect()
}

fn proteins() -> PathBuf {
    fixtures().join("contacts/proteins.faa")
}

/// A checkpoint of the hub's layout, with the recorded head of a model.
fn hub_checkpoint(model: &str, checkpoint: &str, folder: &Path) {
    let head = floats(&fixtures().join(format!("contacts/{model}.safetensors")));
    edited(&fixtures().join(checkpoint), folder, |name, _, values| {
        for part in ["weight", "bias"] {
            if name.ends_with(&format!("contact_head.regression.{part}")) {
                values.copy_from_slice(&head[part]);
            }
        }
    });
}

/// fair-esm's file, with the recorded head beside it.
fn fair_esm_checkpoint(checkpoint: &str, folder: &Path) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let from = fixtures().join(checkpoint);
    let to = folder.join(from.file_name().unwrap());
    fs::copy(&from, &to).unwrap();
    let stem = from.file_stem().unwrap().to_str().unwrap();
    let name = format!("{stem}-contact-regression.pt");
    fs::copy(fixtures().join("contacts").join(&name), folder.join(name)).unwrap();
    to
}

/// Exported models with heads: both layouts of both families.
fn models() -> &'static BTreeMap<&'static str, PathBuf> {
    static MODELS: OnceLock<(TempDir, BTreeMap<&str, PathBuf>)> = OnceLock::new();
    let (_, models) = MODELS.get_or_init(|| {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let mut models = BTreeMap::new();
        for (name, model, hub, pt) in [
            ("esm2", "esm2", "esm2/checkpoints/hub-safetensors", None),
            ("esm1b", "esm1b", "esm1/checkpoints/esm1b-safetensors", None),
            (
                "esm2-pt",
                "esm2",
                "",
                Some("esm2/checkpoints/esm2_small.pt"),
            ),
            (
                "esm1b-pt",
                "esm1b",
                "",
                Some("esm1/checkpoints/esm1b_small.pt"),
            ),
        ] {
            let folder = at(&format!("{name}-checkpoint"));
            let checkpoint = if let Some(pt) = pt {
                fair_esm_checkpoint(pt, &folder)
            } else {
                hub_checkpoint(model, hub, &folder);
                folder
            };
            export(&checkpoint, &at(name), name);
            models.insert(name, at(name));
        }
        (scratch, models)
    });
    models
}

/// A file of contacts.
struct Contacts {
    ids: Vec<String>,
    status: Vec<String>,
    lengths: Vec<usize>,
    /// Those of each record, [residues, residues].
    maps: Vec<Vec<f32>>,
}

fn read(path: &Path) -> Contacts {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let lines = |name: &str, count: usize| {
        let text = std::str::from_utf8(tensors.tensor(name).unwrap().data()).unwrap();
        text.split('\n').take(count).map(str::to_owned).collect()
    };
    let contacts = tensors.tensor("contacts").unwrap();
    let values = numbers(contacts.data());
    assert_eq!(contacts.shape(), [values.len()]);
    let lengths = whole(tensors.tensor("lengths").unwrap().data());
    let offsets = whole(tensors.tensor("offsets").unwrap().data());
    Contacts {
        ids: lines("ids", lengths.len()),
        status: lines("status", lengths.len()),
        maps: offsets
            .windows(2)
            .map(|pair| values[pair[0]..pair[1]].to_vec())
            .collect(),
        lengths,
    }
}

/// `seqembed contacts` of a file into safetensors.
fn predict(model: &Path, file: &Path, out: &Path, options: &[&str]) -> Contacts {
    let mut arguments = vec!["contacts", text(file), "-m", text(model), "-o", text(out)];
    arguments.extend(["--format", "safetensors", "--device", "cpu"]);
    arguments.extend(options);
    assert_run(&seqembed(&arguments), DONE, &[]);
    let name = file.file_stem().unwrap().to_str().unwrap();
    read(&out.join(format!("{name}.safetensors")))
}

#[test]
fn contacts_are_those_of_fair_esm_and_transformers() {
    let place = Place::new(&[]);
    for (name, folder) in models() {
        let model = name.trim_end_matches("-pt");
        let expected = floats(&fixtures().join(format!("contacts/{model}.safetensors")));
        let found = predict(folder, &proteins(), &place.path(name), &[]);
        assert_eq!(found.ids.len(), 7);
        assert!(found.status.iter().all(|status| status == "ok"));
        for ((id, length), map) in found.ids.iter().zip(&found.lengths).zip(&found.maps) {
            assert_eq!(map.len(), length * length, "{name} {id}");
            let step = if *length <= SHORT { 1 } else { STEP };
            let rows = map.chunks_exact(*length).step_by(step);
            let rows: Vec<f32> = rows.flatten().copied().collect();
            let known = &expected[&format!("contacts/{id}")];
            assert_close(&rows, known, BOUND, &format!("{name} {id}"));
            for i in 0..*length {
                for j in 0..i {
                    let [one, other] = [map[i * length + j], map[j * length + i]];
                    assert_eq!(one.to_bits(), other.to_bits(), "{name} {id} {i} {j}");
                }
            }
        }
    }
}

#[test]
fn contacts_do_not_depend_on_the_batch_or_the_threads() {
    let place = Place::new(&[]);
    for name in ["esm2", "esm1b"] {
        let bits = |folder: &str, options: &[&str]| -> Vec<Vec<u32>> {
            let out = place.path(&format!("{name}-{folder}"));
            let found = predict(&models()[name], &proteins(), &out, options);
            let maps = found.maps.into_iter();
            maps.map(|map| map.into_iter().map(f32::to_bits).collect())
                .collect()
        };
        let alone = bits("alone", &["--batch-tokens", "1", "--threads", "1"]);
        let together = bits("together", &["--batch-tokens", "100000", "--threads", "1"]);
        assert_eq!(alone, together, "{name}");
        let threads = bits("threads", &["--batch-tokens", "100000", "--threads", "2"]);
        assert_eq!(alone, threads, "{name}");
    }
}

#[test]
fn npz_and_h5_have_the_same_numbers_and_the_table_the_highest() {
    const SCRIPT: &str = r#"
import sys, numpy as np, h5py
npz, h5, tsv = sys.argv[1:]
t = np.load(npz)
assert t["contacts"].dtype == np.float32 and t["contacts"].ndim == 1
assert list(t["ids"]) == ["a", "one", "long", "two", "seven", "middle", "seventeen"]
assert t["headers"][0] == "a of 33" and set(t["status"]) == {"ok"}
assert t["offsets"][-1] == len(t["contacts"]) == sum(n * n for n in t["lengths"])
lines = open(tsv).read().splitlines()
assert lines[0] == "id\ti\tj\tprobability"
listed = [line.split("\t") for line in lines[1:]]
with h5py.File(h5) as f:
    assert f.attrs["output"] == "contacts"
    for row, (name, n) in enumerate(zip(t["ids"], t["lengths"])):
        own = t["contacts"][t["offsets"][row]:t["offsets"][row + 1]].reshape(n, n)
        assert (f[name][()] == own).all() and f[name].attrs["row"] == row, name
        pairs = [(-own[i, j], i + 1, j + 1) for i in range(n) for j in range(i + 6, n)]
        best = [(i, j, -p) for p, i, j in sorted(pairs)[:max(n // 5, 1)]]
        told = [(int(i), int(j), np.float32(p)) for key, i, j, p in listed if key == name]
        assert told == best, (name, told, best)
"#;
    let place = Place::new(&[]);
    let (file, out, model) = (proteins(), place.path("out"), &models()["esm2"]);
    for options in [&["--format", "h5"][..], &["--top", "L/5"]] {
        let mut arguments = vec!["contacts", text(&file), "-m", text(model), "-o", text(&out)];
        arguments.extend(["--device", "cpu"]);
        arguments.extend(options);
        assert_run(&seqembed(&arguments), DONE, &["7 sequences"]);
    }
    let [npz, h5, tsv] = ["npz", "h5", "tsv"].map(|end| out.join(format!("proteins.{end}")));
    python(
        "numpy and h5py",
        SCRIPT,
        &[text(&npz), text(&h5), text(&tsv)],
    );
}

#[test]
fn long_and_empty_sequences_are_skipped_and_a_bad_file_fails_alone() {
    let faa = b">short\nMKTAYIAKQR\n>empty\n>long\nMKTAYIAKQRQISFVK\n>last\nGSHM*\n";
    let place = Place::new(&[("x.faa", faa), ("bad.faa", b"no header\n"), ("y.faa", b"")]);
    let manifest = "model,sample,fasta\nM,x,x.faa\nM,bad,bad.faa\nM,y,y.faa\n";
    let manifest = manifest.replace("M,", &format!("{},", models()["esm2"].display()));
    let path = place.path("manifest.csv");
    fs::write(&path, manifest).unwrap();
    let out = place.path("out");
    let mut arguments = vec!["contacts", "--manifest", text(&path), "-o", text(&out)];
    arguments.extend(["--max-length", "12", "--format", "safetensors"]);
    assert_run(&seqembed(&arguments), PARTLY, &["bad.faa"]);
    let found = read(&out.join("x.safetensors"));
    assert_eq!(found.ids, ["short", "empty", "long", "last"]);
    assert_eq!(found.lengths, [10, 0, 16, 4]);
    let counts: Vec<usize> = found.maps.iter().map(Vec::len).collect();
    assert_eq!(counts, [100, 0, 0, 16]);
    assert_eq!(found.status[1], "skipped: empty sequence");
    let long = "skipped: its 16 residues are more than the 12 that contacts can be predicted for";
    assert_eq!(found.status[2], long);
    assert!(read(&out.join("y.safetensors")).ids.is_empty());
    assert!(!out.join("bad.safetensors").exists());
    let report = place.report();
    assert_eq!(report["totals"]["skipped"], 2);
    assert_eq!(report["totals"]["failed_files"], 1);
    assert_eq!(report["files"][0]["sample"], "x");
    assert_eq!(report["loads"].as_array().unwrap().len(), 1);
    arguments.push("--allow-failed");
    assert_run(&seqembed(&arguments), DONE, &[]);
}

#[test]
fn what_cannot_be_done_is_said() {
    let place = Place::new(&[]);
    let (file, out) = (proteins(), place.path("out"));
    let run = |model: &Path, options: &[&str]| {
        let mut arguments = vec!["contacts", text(&file), "-m", text(model), "-o", text(&out)];
        arguments.extend(options);
        seqembed(&arguments)
    };
    // The fixture's own head is zero: as good as none.
    let none = run(exported("esm2"), &["--device", "cpu"]);
    assert_run(
        &none,
        WRONG,
        &[
            "no contact head",
            "seqembed export",
            "NAME-contact-regression.pt",
        ],
    );
    let none = run(exported("dnabert2"), &["--device", "cpu"]);
    assert_run(&none, WRONG, &["no contact head", "ESM-2 and ESM-1b"]);
    let portable = run(&models()["esm2"], &["--kernels", "portable"]);
    assert_run(&portable, WRONG, &["--kernels portable"]);
    let top = run(&models()["esm2"], &["--top", "many"]);
    assert_run(&top, WRONG, &["L/2"]);
    let both = run(&models()["esm2"], &["--manifest", "m.csv"]);
    assert_run(&both, WRONG, &["--manifest"]);
}

#[test]
fn a_head_changes_nothing_but_its_own_file() {
    let (plain, with) = (exported("esm2"), &models()["esm2"]);
    for file in ["weights.bin", "model.onnx", "vocab.txt"] {
        let [plain, with] = [plain, with].map(|folder| fs::read(folder.join(file)).unwrap());
        assert!(plain == with, "{file}");
    }
    assert!(!plain.join("contact_head.json").exists());
    let place = Place::new(&[]);
    let damaged = place.path("model");
    fs::create_dir(&damaged).unwrap();
    for entry in fs::read_dir(with).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, damaged.join(path.file_name().unwrap())).unwrap();
    }
    let head = damaged.join("contact_head.json");
    let text_of = fs::read_to_string(&head).unwrap();
    fs::write(&head, text_of.replacen("-1.5", "-2.5", 1)).unwrap();
    let (file, out) = (proteins(), place.path("out"));
    let run = seqembed(&[
        "contacts",
        text(&file),
        "-m",
        text(&damaged),
        "-o",
        text(&out),
    ]);
    assert_run(&run, WRONG, &["contact_head.json", "damaged"]);
}

#[test]
fn the_library_writes_what_the_executable_does() {
    let dna = format!(">D\n{}\n", "ACGT".repeat(100));
    let place = Place::new(&[("DNA.fna", dna.as_bytes())]);
    let model = text(&models()["esm2"]);
    // Settings of embeddings, which contacts do not use, are no obstacle.
    fs::write(place.path("s.tsv"), "id\tstart\tend\nnone\t2\t4\n").unwrap();
    let options = EmbedderOptions {
        settings: Overrides {
            spans: Some(place.path("s.tsv")),
            pooling: Some(Pooling::Max.into()),
            ..Overrides::default()
        },
        threads: Some(2),
        ..EmbedderOptions::default()
    };
    let mut embedder = Embedder::new(model, options.clone()).unwrap();
    for (format, name) in [
        (ContactsFormat::Npz, "npz"),
        (ContactsFormat::H5, "h5"),
        (ContactsFormat::Safetensors, "safetensors"),
    ] {
        let (ours, theirs) = (place.path("library"), place.path("executable"));
        let pairs = Some(PairChoice {
            top: TopPairs::Length(5),
            separation: 3,
        });
        let outputs = ContactsOutputs { format, pairs };
        let report = embedder
            .contacts(&[proteins()], &ours, &outputs, &mut Silent)
            .unwrap();
        assert_eq!((report.totals.records, report.totals.failed_files), (7, 0));
        let file = proteins();
        let mut arguments = vec!["contacts", text(&file), "-m", model, "-o", text(&theirs)];
        arguments.extend(["--format", name, "--device", "cpu", "--threads", "2"]);
        arguments.extend(["--top", "L/5", "--min-separation", "3"]);
        assert_run(&seqembed(&arguments), DONE, &[]);
        for written in [format!("proteins.{name}"), "proteins.tsv".to_owned()] {
            let [ours, theirs] = [&ours, &theirs].map(|out| fs::read(out.join(&written)).unwrap());
            assert!(ours == theirs, "{written}");
        }
    }
    // A file of another alphabet fails, and the report says why; a missing one is an error.
    let (out, outputs) = (place.path("failed"), ContactsOutputs::default());
    let mut predict = |file: PathBuf| embedder.contacts(&[file], &out, &outputs, &mut Silent);
    let report = predict(place.path("DNA.fna")).unwrap();
    assert_eq!(report.totals.failed_files, 1);
    assert!(report.files[0].error.is_some());
    let error = predict(place.path("missing.faa")).unwrap_err();
    assert!(
        error.is_usage() && error.to_string().contains("missing.faa"),
        "{error}"
    );
    let portable = EmbedderOptions {
        kernels: Kernels::Portable,
        ..options
    };
    let mut portable = Embedder::new(model, portable).unwrap();
    let error = portable.contacts(&[proteins()], &out, &outputs, &mut Silent);
    assert!(matches!(error, Err(ContactsError::Kernels)));
}
