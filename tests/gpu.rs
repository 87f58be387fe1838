//! Models on a GPU against the same models on the CPU in fp32, which the other tests compare with
//! independent implementations. For machines with a GPU: `make test-gpu`.
//!
//! A program of its own, so that it can be carried to a machine without cargo. There,
//! `SEQEMBED_TEST_EXECUTABLE` names the executable, and `SEQEMBED_TEST_ROOT` the folder that has
//! `tests/fixtures`.
//!
//! `SEQEMBED_TEST_GPU` names the device (`cuda` by default). ONNX Runtime must be one with the CUDA
//! provider.

#![allow(clippy::too_many_lines, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use common::{
    DONE, PARTLY, Place, assert_run, attention_part, edited, executable, fixtures, seqembed, text,
};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use seqembed::output::{self, Rows};
use tempfile::TempDir;

/// seqembed's own kernels, and ONNX Runtime's operators alone.
const KERNELS: [&str; 2] = ["auto", "portable"];
/// What every GPU computes in with both.
const PRECISIONS: [&str; 2] = ["fp32", "fp16"];
/// Least cosine of a vector with its counterpart in fp32 on the CPU.
const HALF_COSINE: f64 = 0.9999;
/// The same for bf16, which has eight bits, and for fp8, which has four in feed-forward layers.
const LOW_COSINE: f64 = 0.999;
/// The same in fp8 for the vector of one token, in which its noise does not average out.
const LOWEST_COSINE: f64 = 0.998;
/// Largest difference in fp32, relative to the vector's root mean square.
const FULL_BOUND: f64 = 1e-4;

/// Name, checkpoint below `tests/fixtures`. Heads of 12, 16, 24, 32, 64, 4, 8, 12, 16, 16, 64, 16,
/// 16, 16, 16, 16, 32, 16 and 16 dimensions: ONNX Runtime chooses its attention by that.
const MODELS: [(&str, &str); 19] = [
    ("esm2-head12", "esm2/checkpoints/hub-safetensors"),
    ("esm2-head16", "esm2/widths/head16-f16"),
    ("esm2-head24", "esm2/widths/head24-bf16"),
    ("esm2-head32", "esm2/widths/head32-f16"),
    ("esm2-head64", "esm2/widths/esm2_head64-f16.pt"),
    ("dnabert2", "dna/dnabert2"),
    ("dnabert2-6-heads", "dna/dnabert2-6-heads"),
    ("dnabert-3", "dna/dnabert-3"),
    ("esm1b", "esm1/checkpoints/esm1b-safetensors"),
    ("esm1v", "esm1/checkpoints/esm1v-safetensors"),
    ("esmc", "esmc/checkpoints/hub"),
    ("nt-v1", "nt/checkpoints/v1-saved"),
    ("nt-v2", "nt/checkpoints/v2-saved"),
    ("saprot", "saprot/checkpoints/hub"),
    ("protbert", "bert/protbert"),
    ("grover", "bert/grover"),
    ("amplify", "amplify/checkpoints/hub"),
    ("prott5", "t5/checkpoints/prott5"),
    ("t5-gated", "t5/checkpoints/gated"),
];

/// Heads whose width is no multiple of 8 and families for which seqembed has no kernels: those of
/// ONNX Runtime run, and they have no bf16.
const WITHOUT_KERNELS: [&str; 6] = [
    "esm2-head12",
    "dnabert2",
    "dnabert-3",
    "amplify",
    "prott5",
    "t5-gated",
];

/// Models whose tokenizers put no token for the whole sequence in front.
const WITHOUT_CLS: [&str; 2] = ["prott5", "t5-gated"];

/// Known models with random weights, in whose blocks the dense layers take norms and residuals in,
/// on GPUs that have kernels for that. Heads of 64 dimensions, those of 150M of 32.
const WIDE: [(&str, &str); 5] = [
    ("esmc-1152", "ESMC-600M"),
    ("nt-v2-1024", "NT-v2-500M"),
    ("esm2-640", "esm2_t30_150M_UR50D"),
    ("esm2-1280", "esm2_t33_650M_UR50D"),
    ("dnabert2-768", "DNABERT-2"),
];

/// What every GPU computes in, with both.
fn everywhere() -> impl Iterator<Item = (&'static str, &'static str)> + Clone {
    let precisions = PRECISIONS.into_iter();
    precisions.flat_map(|precision| KERNELS.map(|kernels| (precision, kernels)))
}

fn device() -> String {
    std::env::var("SEQEMBED_TEST_GPU")
        .ok()
        .filter(|device| device.starts_with("cuda"))
        .unwrap_or_else(|| "cuda".to_owned())
}

type Folders = (TempDir, BTreeMap<&'static str, PathBuf>);

/// The exported folder of one of [`MODELS`] or [`WIDE`].
fn model(name: &str) -> &'static Path {
    static SMALL: OnceLock<Folders> = OnceLock::new();
    static LARGE: OnceLock<Folders> = OnceLock::new();
    let (_, folders) = if WIDE.iter().any(|(wide, _)| *wide == name) {
        LARGE.get_or_init(|| exported(&WIDE, |known| vec!["--random".to_owned(), known.to_owned()]))
    } else {
        SMALL.get_or_init(|| {
            exported(&MODELS, |below| {
                vec![text(&fixtures().join(below)).to_owned()]
            })
        })
    };
    &folders[name]
}

/// Exports models by name; `from` tells from what.
fn exported(
    models: &'static [(&'static str, &'static str)],
    from: impl Fn(&str) -> Vec<String>,
) -> Folders {
    let scratch = tempfile::tempdir().unwrap();
    let mut folders = BTreeMap::new();
    for (name, source) in models {
        let folder = scratch.path().join(name);
        let source = from(source);
        let mut arguments = vec!["export"];
        arguments.extend(source.iter().map(String::as_str));
        arguments.extend(["-o", text(&folder)]);
        assert_run(&seqembed(&arguments), DONE, &[]);
        folders.insert(*name, folder);
    }
    (scratch, folders)
}

fn is_protein(name: &str) -> bool {
    let dna = ["dnabert", "nt-", "grover"];
    !dna.iter().any(|family| name.starts_with(family))
}

/// One of the fixtures' files for a model.
fn fixture(name: &str) -> PathBuf {
    fixtures().join(if name == "saprot" {
        "saprot/inputs/pairs.fasta"
    } else if is_protein(name) {
        "esm2/inputs/mixed.faa"
    } else if name == "dnabert-3" {
        "dna/inputs/kmers.fna"
    } else {
        "dna/inputs/mixed.fna"
    })
}

/// Embeds a file, without a failure.
fn embed(name: &str, file: &Path, options: &[&str]) -> Result<Rows, String> {
    let out = tempfile::tempdir().unwrap();
    let mut arguments = vec!["embed", text(file), "-m", text(model(name))];
    arguments.extend(["-o", text(out.path())]);
    arguments.extend(options);
    succeed(&arguments)?;
    let stem = file.file_stem().unwrap().to_str().unwrap();
    rows(&out.path().join(format!("{stem}.parquet")))
}

fn succeed(arguments: &[&str]) -> Result<(), String> {
    let run = seqembed(arguments);
    if run.status.code() == Some(DONE) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&run.stderr);
    Err(format!("{}: {said}", run.status))
}

fn rows(path: &Path) -> Result<Rows, String> {
    let read = output::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(read.0)
}

fn on_cpu(name: &str, file: &Path, options: &[&str]) -> Rows {
    embed(name, file, &[options, &["--device", "cpu"]].concat()).unwrap()
}

fn on_gpu(
    name: &str,
    file: &Path,
    precision: &str,
    kernels: &str,
    options: &[&str],
) -> Result<Rows, String> {
    let device = device();
    let chosen = [
        "--device",
        &device,
        "--precision",
        precision,
        "--kernels",
        kernels,
    ];
    embed(name, file, &[options, &chosen].concat())
}

/// The least cosine of two files' vectors, and their largest difference relative to a vector's root
/// mean square.
fn compare(found: &Rows, expected: &Rows) -> Result<(f64, f64), String> {
    if found.ids != expected.ids
        || found.vectors != expected.vectors
        || found.values.len() != expected.values.len()
        || expected.values.is_empty()
    {
        return Err("other rows".to_owned());
    }
    let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
    let pairs = found
        .values
        .chunks_exact(found.hidden)
        .zip(expected.values.chunks_exact(found.hidden));
    for (row, (found, expected)) in pairs.enumerate() {
        let sum = |left: &[f32], right: &[f32]| {
            left.iter()
                .zip(right)
                .map(|(left, right)| f64::from(*left) * f64::from(*right))
                .sum::<f64>()
        };
        let (ours, theirs) = (sum(found, found), sum(expected, expected));
        let cosine = sum(found, expected) / (ours * theirs).sqrt();
        if !cosine.is_finite() {
            return Err(format!("row {row}: no numbers"));
        }
        let largest = found
            .iter()
            .zip(expected)
            .map(|(left, right)| f64::from((left - right).abs()))
            .fold(0.0, f64::max);
        least = least.min(cosine);
        most = most.max(largest / (theirs / expected.len() as f64).sqrt());
    }
    Ok((least, most))
}

/// What went wrong, of all that was tried: a machine with a GPU is not always at hand.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    /// Notes vectors that are not those expected, as far as the precision goes.
    fn compare(
        &mut self,
        what: &str,
        precision: &str,
        found: Result<&Rows, &String>,
        expected: &Rows,
    ) {
        let outcome = found
            .map_err(Clone::clone)
            .and_then(|found| compare(found, expected));
        match outcome {
            Ok((cosine, difference)) => {
                println!("{what}: cosine {cosine:.7}, largest difference {difference:.1e}");
                let right = match precision {
                    "fp32" => difference <= FULL_BOUND,
                    "bf16" | "fp8" => cosine >= LOW_COSINE,
                    "fp8, one token" => cosine >= LOWEST_COSINE,
                    _ => cosine >= HALF_COSINE,
                };
                if !right {
                    self.0.push(format!(
                        "{what}: cosine {cosine}, difference {difference:e}"
                    ));
                }
            }
            Err(error) => self.0.push(format!("{what}: {error}")),
        }
    }
}

impl Drop for Problems {
    fn drop(&mut self) {
        assert!(
            self.0.is_empty() || std::thread::panicking(),
            "{} problems:\n{}",
            self.0.len(),
            self.0.join("\n")
        );
    }
}

/// Letters from a fixed sequence of random numbers.
fn letters(alphabet: &[u8], length: usize, state: &mut u64) -> String {
    (0..length)
        .map(|_| {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let at = usize::try_from(*state >> 33).unwrap() % alphabet.len();
            char::from(alphabet[at])
        })
        .collect()
}

/// A folder with `x.fa`: sequences of these lengths.
fn random_place(name: &str, lengths: &[usize]) -> Place {
    let alphabet: &[u8] = if is_protein(name) {
        b"ACDEFGHIKLMNPQRSTVWY"
    } else {
        b"ACGT"
    };
    let mut state = 17;
    let fasta = lengths
        .iter()
        .enumerate()
        .fold(String::new(), |mut fasta, (at, &length)| {
            let sequence = letters(alphabet, length, &mut state);
            writeln!(fasta, ">s{at}\n{sequence}").unwrap();
            fasta
        });
    Place::new(&[("x.fa", fasta.as_bytes())])
}

/// Pooling and layer of the files of one run.
const FILES: [(&str, usize); 7] = [
    ("mean", 1),
    ("max", 1),
    ("none", 1),
    ("cls", 1),
    ("mean-all", 1),
    ("mean", 0),
    ("mean", 2),
];

/// Those of [`FILES`] that a model has: one has no layer 2.
fn files_of(name: &str) -> impl Iterator<Item = (&'static str, usize)> + Clone {
    let has_cls = !WITHOUT_CLS.contains(&name);
    let layers = if name == "esm2-head64" { 1 } else { 2 };
    FILES
        .into_iter()
        .filter(move |(pooling, layer)| *layer <= layers && (has_cls || *pooling != "cls"))
}

/// The outputs of one run for all of [`files_of`] a model.
fn run_all(name: &str, options: &[&str], precision: &str) -> Result<Vec<Rows>, String> {
    let out = tempfile::tempdir().unwrap();
    let mut manifest = format!(
        "model: {}\nprecision: {precision}\nfiles:\n",
        text(model(name))
    );
    let files = files_of(name);
    for (pooling, layer) in files.clone() {
        let file = fixture(name);
        writeln!(
            manifest,
            "- {{sample: {pooling}-{layer}, fasta: {}, pooling: {pooling}, layer: {layer}}}",
            text(&file)
        )
        .unwrap();
    }
    let path = out.path().join("manifest.yaml");
    std::fs::write(&path, manifest).unwrap();
    succeed(&[&["run", text(&path), "-o", text(out.path())], options].concat())?;
    files
        .map(|(pooling, layer)| rows(&out.path().join(format!("{pooling}-{layer}.parquet"))))
        .collect()
}

/// The same of pooled files, from one run of all layers and poolings.
fn run_in_one_pass(name: &str, options: &[&str]) -> Result<Vec<Rows>, String> {
    let out = tempfile::tempdir().unwrap();
    let file = fixture(name);
    let layers = if name == "esm2-head64" {
        "0,1"
    } else {
        "0,1,2"
    };
    let poolings = if WITHOUT_CLS.contains(&name) {
        "mean,max,mean-all"
    } else {
        "mean,max,mean-all,cls"
    };
    let mut arguments = vec!["embed", text(&file), "-m", text(model(name))];
    arguments.extend([
        "-o",
        text(out.path()),
        "--layer",
        layers,
        "--pooling",
        poolings,
    ]);
    arguments.extend(options);
    succeed(&arguments)?;
    let stem = file.file_stem().unwrap().to_str().unwrap();
    let path = out.path().join(format!("{stem}.parquet"));
    let column = |(pooling, layer)| {
        let name = format!("{pooling}_{layer}");
        let reader = output::open(&path).and_then(|reader| reader.column(Some(&name)));
        let reader = reader.map_err(|error| error.to_string())?;
        let mut all = Rows::new(reader.layout().hidden);
        for rows in reader {
            all.append(rows.map_err(|error| error.to_string())?);
        }
        Ok(all)
    };
    pooled_files_of(name).map(column).collect()
}

/// Those of [`files_of`] that have one vector a record.
fn pooled_files_of(name: &str) -> impl Iterator<Item = (&'static str, usize)> + Clone {
    files_of(name).filter(|(pooling, _)| *pooling != "none")
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn one_pass_of_all_layers_and_poolings_is_that_of_the_cpu() {
    let mut problems = Problems::default();
    let device = device();
    for name in MODELS.map(|(name, _)| name).into_iter().chain(["esm2-640"]) {
        let expected = run_in_one_pass(name, &["--device", "cpu"]).unwrap();
        for (precision, kernels) in everywhere() {
            let mut options = vec!["--device", &device, "--kernels", kernels];
            options.extend(["--precision", precision]);
            let found = run_in_one_pass(name, &options);
            for (at, (pooling, layer)) in pooled_files_of(name).enumerate() {
                problems.compare(
                    &format!("{name} {pooling}_{layer} {precision} {kernels}"),
                    precision,
                    found.as_ref().map(|all| &all[at]),
                    &expected[at],
                );
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn every_pooling_and_layer_is_that_of_the_cpu() {
    let mut problems = Problems::default();
    let device = device();
    // ONNX Runtime's own attention has no kernel for bf16.
    let kinds = everywhere().chain([("bf16", "auto")]);
    for (name, _) in MODELS {
        let expected = run_all(name, &["--device", "cpu"], "fp32").unwrap();
        for (precision, kernels) in kinds.clone() {
            let options = ["--device", &device, "--kernels", kernels];
            let found = run_all(name, &options, precision);
            if precision == "bf16" && WITHOUT_KERNELS.contains(&name) {
                let why = found.expect_err("there are no kernels for it");
                let no_kernels = [
                    "there are no bf16 kernels for",
                    "there are none for the blocks",
                ];
                assert!(no_kernels.iter().any(|said| why.contains(said)), "{why}");
                continue;
            }
            for (at, (pooling, layer)) in files_of(name).enumerate() {
                problems.compare(
                    &format!("{name} {pooling} layer {layer} {precision} {kernels}"),
                    precision,
                    found.as_ref().map(|all| &all[at]),
                    &expected[at],
                );
            }
        }
    }
}

/// In fp16 the graph gives 16 bits, which go to the file as they are.
#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn vectors_of_residues_are_the_same_in_every_format() {
    let name = "esm2-head64";
    let lengths: Vec<usize> = (0..300).map(|at| 1 + at * 37 % 411).collect();
    let place = random_place(name, &lengths);
    let file = place.path("x.fa");
    let embed = |format: output::Format, precision: &str| {
        let (device, format) = (device(), format.to_string());
        let out = tempfile::tempdir().unwrap();
        let model = text(model(name)).to_owned();
        let options = [
            "embed",
            text(&file),
            "-m",
            &model,
            "-o",
            text(out.path()),
            "--device",
            &device,
            "--precision",
            "fp16",
            "--pooling",
            "none",
            "--format",
            &format,
            "--output-precision",
            precision,
        ];
        succeed(&options).unwrap();
        let path = out.path().join(format!("x.{format}"));
        output::read(&path).unwrap().0
    };
    let expected = embed(output::Format::Parquet, "fp32");
    assert_eq!(expected.vectors, lengths);
    assert!(expected.values.iter().all(|value| value.is_finite()));
    for format in output::Format::ALL {
        for precision in ["fp16", "fp32"] {
            let found = embed(format, precision);
            assert!(found == expected, "{format} {precision}");
        }
    }
}

/// What `seqembed score` writes of a file's residues: their own log-probabilities, and those of the
/// columns behind.
fn residues(name: &str, file: &Path, options: &[&str]) -> Result<Vec<f64>, String> {
    let out = tempfile::tempdir().unwrap();
    let mut arguments = vec!["score", text(file), "-m", text(model(name))];
    arguments.extend(["-o", text(out.path()), "--format", "tsv", "--quiet"]);
    arguments.extend(["--per-residue", "--vocabulary"]);
    arguments.extend(options);
    succeed(&arguments)?;
    let stem = text(file).rsplit('/').next().unwrap().split('.').next();
    let table = out.path().join(format!("{}.residues.tsv", stem.unwrap()));
    let table = std::fs::read_to_string(table).map_err(|error| error.to_string())?;
    let rows = table
        .lines()
        .skip(1)
        .flat_map(|line| line.split('\t').skip(3));
    let numbers = rows.map(|number| number.parse().map_err(|_| format!("{number:?}")));
    numbers.collect()
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn log_probabilities_are_those_of_the_cpu() {
    let mut worst = Vec::new();
    for (name, file) in [
        ("esm2-head12", "proteins.faa"),
        ("esm2-head64", "proteins.faa"),
        ("esm1b", "proteins.faa"),
        ("esm1v", "proteins.faa"),
        ("esmc", "proteins.faa"),
        ("esm2-1280", "proteins.faa"),
        ("protbert", "proteins.faa"),
        ("dnabert-3", "bases.fna"),
        ("grover", "bases.fna"),
        ("dnabert2", "bases.fna"),
    ] {
        let file = fixtures().join("scores").join(file);
        for method in ["unmasked", "masked"] {
            let expected = residues(name, &file, &["--device", "cpu", "--method", method]).unwrap();
            // Random weights give values far below those of a trained model.
            let lowest = expected.iter().copied().fold(-10.0, f64::min).abs();
            for precision in PRECISIONS {
                for kernels in KERNELS {
                    let device = device();
                    let options = [
                        "--device",
                        &device,
                        "--precision",
                        precision,
                        "--kernels",
                        kernels,
                        "--method",
                        method,
                    ];
                    let what = format!("{name} {method} {precision} {kernels}");
                    let found = residues(name, &file, &options)
                        .unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_eq!(found.len(), expected.len(), "{what}");
                    let pairs = found.iter().zip(&expected);
                    let differences = pairs.map(|(found, expected)| (found - expected).abs());
                    let difference = differences.fold(0.0, f64::max) / lowest;
                    println!("{what}: {difference:e}");
                    let bound = if precision == "fp32" { 1e-5 } else { 2e-2 };
                    if difference > bound {
                        worst.push(format!("{what}: {difference:e}"));
                    }
                }
            }
        }
    }
    assert!(worst.is_empty(), "{worst:#?}");
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn lengths_from_one_to_thirty_thousand_in_one_batch() {
    let lengths = [
        1, 2, 3, 5, 14, 15, 16, 61, 62, 63, 64, 127, 254, 255, 256, 257, 1022, 1023, 4999, 30_000,
    ];
    let mut problems = Problems::default();
    // Heads that ONNX Runtime has fast attention for: for others it takes memory by the square of
    // the length.
    for name in ["esm2-head16", "esm2-head64", "dnabert2-6-heads"] {
        let lengths: Vec<usize> = lengths
            .into_iter()
            // A DNA model reads several bases a token, and one base is none at all for some.
            .map(|length| if is_protein(name) { length } else { length + 9 })
            .collect();
        let place = random_place(name, &lengths);
        let file = place.path("x.fa");
        let options = [
            "--max-length",
            "30100",
            "--overlap",
            "100",
            "--batch-tokens",
            "65536",
        ];
        for pooling in ["mean", "max"] {
            let options = [&options[..], &["--pooling", pooling]].concat();
            let expected = on_cpu(name, &file, &options);
            for precision in PRECISIONS {
                for kernels in KERNELS {
                    let found = on_gpu(name, &file, precision, kernels, &options);
                    let what = format!("{name} {pooling} {precision} {kernels}");
                    problems.compare(&what, precision, found.as_ref(), &expected);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn a_sequence_alone_is_the_same_as_among_others() {
    let lengths: Vec<usize> = (0..100).map(|at| 20 + at * 37 % 411).collect();
    let mut problems = Problems::default();
    for name in [
        "esm2-head12",
        "esm2-head32",
        "dnabert2-6-heads",
        "dnabert-3",
    ] {
        let place = random_place(name, &lengths);
        let file = place.path("x.fa");
        let expected = on_cpu(name, &file, &[]);
        for precision in PRECISIONS {
            for kernels in KERNELS {
                let what = format!("{name} {precision} {kernels}");
                let together = on_gpu(name, &file, precision, kernels, &[]);
                problems.compare(&what, precision, together.as_ref(), &expected);
                let Ok(together) = together else {
                    continue;
                };
                let alone = on_gpu(name, &file, precision, kernels, &["--batch-tokens", "1"]);
                problems.compare(
                    &format!("{what}, alone"),
                    precision,
                    alone.as_ref(),
                    &together,
                );
                let again = on_gpu(name, &file, precision, kernels, &[]);
                if again.is_ok_and(|again| again.values != together.values) {
                    problems.0.push(format!("{what}: two runs differ"));
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn wide_layers_are_those_of_the_cpu() {
    let lengths: Vec<usize> = (0..60).map(|at| 10 + at * 53 % 700).collect();
    let mut problems = Problems::default();
    for (name, _) in WIDE {
        let place = random_place(name, &lengths);
        let file = place.path("x.fa");
        // A few blocks show whatever is wrong in any, and take a CPU less time.
        let options = ["--layer", "3"];
        let expected = on_cpu(name, &file, &options);
        for precision in ["fp16", "bf16", "fp8"] {
            let together = on_gpu(name, &file, precision, "auto", &options);
            let what = format!("{name} {precision}");
            if precision == "fp8" {
                match &together {
                    Err(why) if why.contains("compute capability 9.0") => {
                        println!("{what}: {why}");
                        continue;
                    }
                    Ok(_) if ["dnabert2-768", "esmc-1152"].contains(&name) => {
                        problems.0.push(format!("{what} was not refused"));
                    }
                    _ => {}
                }
            }
            problems.compare(&what, precision, together.as_ref(), &expected);
            let alone = [&options[..], &["--batch-tokens", "1"]].concat();
            let alone = on_gpu(name, &file, precision, "auto", &alone);
            problems.compare(
                &format!("{what}, alone"),
                precision,
                alone.as_ref(),
                &expected,
            );
        }
    }
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn what_else_is_in_a_batch_changes_no_bit() {
    let lengths: Vec<usize> = (0..1500).map(|at| 20 + at * 389 % 601).collect();
    let mut problems = Problems::default();
    for (name, _) in WIDE {
        let place = random_place(name, &lengths);
        let file = place.path("x.fa");
        for precision in ["fp16", "bf16", "fp8"] {
            let in_batches_of = |tokens| {
                let options = ["--batch-tokens", tokens];
                on_gpu(name, &file, precision, "auto", &options)
            };
            let what = format!("{name} {precision}");
            let many = match in_batches_of("65536") {
                Ok(many) => many,
                // Which models and GPUs have no fp8 is for the test of wide layers.
                Err(_) if precision == "fp8" => continue,
                Err(why) => {
                    problems.0.push(format!("{what}: {why}"));
                    continue;
                }
            };
            let few = in_batches_of("3000");
            problems.compare(&what, precision, few.as_ref(), &many);
            // cuBLAS has several ways to multiply, and chooses by the number of tokens; seqembed's
            // dense layers have one.
            if let Ok(few) = few
                && has_dense_layers()
            {
                let pairs = many.values.chunks(many.hidden);
                let pairs = pairs.zip(few.values.chunks(few.hidden));
                let others = pairs.filter(|(many, few)| many != few).count();
                let said = format!("{what}: {others} vectors differ");
                println!("{said}");
                if others > 0 {
                    problems.0.push(said);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn very_long_sequences_end_well_in_windows_and_whole() {
    let mut problems = Problems::default();
    for (name, length) in [("esm2-1280", 36_000), ("dnabert2-768", 1_000_000)] {
        let embed = |lengths: &[usize], options: &[&str]| {
            let place = random_place(name, lengths);
            on_gpu(name, &place.path("x.fa"), "fp16", "auto", options)
        };
        let short = embed(&[50], &[]).unwrap();
        let whole = length.to_string();
        for options in [&[][..], &["--max-length", &whole, "--overlap", "100"]] {
            let what = format!("{name}, {length} long, {options:?}");
            let both = embed(&[50, length], options).map(|mut rows| {
                println!("{what}: {}", rows.status[1]);
                if rows.vectors != [1, 1] || rows.values.iter().any(|value| !value.is_finite()) {
                    problems.0.push(format!("{what}: not two vectors"));
                }
                rows.ids.truncate(1);
                rows.vectors.truncate(1);
                rows.values.truncate(rows.hidden);
                rows
            });
            problems.compare(&what, "fp16", both.as_ref(), &short);
        }
    }
}

/// Whether the GPU is one for which seqembed has dense layers: fp8 needs them.
fn has_dense_layers() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| on_gpu("esm2-1280", &fixture("esm2-1280"), "fp8", "auto", &[]).is_ok())
}

/// A checkpoint that is grown from a small one of the fixtures, with random weights: wide enough
/// for the kernels of each GPU.
struct Grown {
    name: &'static str,
    /// The small one, below `tests/fixtures`.
    from: &'static str,
    heads: usize,
    /// A token, its row in the embedding table, and an alphabet without it.
    poison: (&'static str, usize, &'static [u8]),
}

const GROWN: [Grown; 4] = [
    Grown {
        name: "esm2, heads of 32",
        from: "esm2/checkpoints/hub-safetensors",
        heads: 16,
        poison: ("W", 22, b"ACDEFGHIKLMNPQRSTVY"),
    },
    Grown {
        name: "esm2, heads of 64",
        from: "esm2/checkpoints/hub-safetensors",
        heads: 8,
        poison: ("W", 22, b"ACDEFGHIKLMNPQRSTVY"),
    },
    Grown {
        name: "esmc, heads of 64",
        from: "esmc/checkpoints/hub",
        heads: 8,
        poison: ("W", 22, b"ACDEFGHIKLMNPQRSTVY"),
    },
    Grown {
        name: "dnabert2, heads of 64",
        from: "dna/dnabert2-6-heads",
        heads: 8,
        // An unknown letter.
        poison: ("N", 0, b"ACGT"),
    },
];

impl Grown {
    /// The width of those that are grown.
    const WIDTH: usize = 512;

    /// Writes it into a folder.
    fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        let source = fixtures().join(self.from);
        for entry in std::fs::read_dir(&source).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
        let config = std::fs::read_to_string(source.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let size = |key: &str| usize::try_from(config[key].as_u64().unwrap()).unwrap();
        let (width, narrow) = (size("hidden_size"), size("intermediate_size"));
        if config.get("num_key_value_heads").is_some() {
            config["num_key_value_heads"] = self.heads.into();
        }
        config["hidden_size"] = Self::WIDTH.into();
        config["intermediate_size"] = (4 * Self::WIDTH).into();
        config["num_attention_heads"] = self.heads.into();
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();

        // Sizes of the small one, and what becomes of them.
        let sizes = [
            (width, Self::WIDTH),
            (3 * width, 3 * Self::WIDTH),
            (narrow, 4 * Self::WIDTH),
            (2 * narrow, 8 * Self::WIDTH),
        ];
        let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
        let small = SafeTensors::deserialize(&bytes).unwrap();
        let mut state = 5_u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        };
        let mut tensors = Vec::new();
        let mut names = small.names();
        names.sort_unstable();
        for name in names {
            if ["lm_head", "contact", "pooler", "position_ids", "inv_freq"]
                .iter()
                .any(|unused| name.contains(unused))
            {
                continue;
            }
            let shape = small.tensor(name).unwrap().shape().to_vec();
            // Rows of an embedding table are tokens.
            let is_table = ["embeddings.weight", "embed_tokens.weight"];
            let is_table = is_table.iter().any(|table| name.ends_with(table));
            let fixed = usize::from(is_table);
            let wide = |(at, &size): (usize, &usize)| {
                let grown = sizes.iter().find(|(small, _)| *small == size);
                match grown {
                    Some((_, wide)) if at >= fixed => *wide,
                    _ => size,
                }
            };
            let shape: Vec<usize> = shape.iter().enumerate().map(wide).collect();
            let is_norm =
                name.contains("orm.") && !name.ends_with("bias") && !name.ends_with("beta");
            let (offset, spread) = match shape[..] {
                [_] => (f32::from(u8::from(is_norm)), 0.1),
                _ => (0.0, (3.0 / Self::WIDTH as f32).sqrt()),
            };
            let numbers = (0..shape.iter().product()).map(|_| offset + spread * random());
            let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
            tensors.push((name.to_owned(), shape, bytes));
        }
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
            (name, view)
        });
        let path = folder.join("model.safetensors");
        safetensors::serialize_to_file(views, None, &path).unwrap();
    }

    /// Sequences of many lengths; a third of them have the token that is poisoned.
    fn sequences(&self) -> String {
        let (token, _, alphabet) = self.poison;
        let mut state = 11;
        (0..40).fold(String::new(), |mut fasta, at| {
            let length = 12 + at * 53 % 700;
            // Far keys are left out in long ones alone, and a token of DNA has several letters.
            let length = if token == "N" { 4 * length } else { length };
            let mut sequence = letters(alphabet, length, &mut state);
            if at % 3 == 0 {
                sequence.insert_str(length * (at % 5) / 5, token);
            }
            writeln!(fasta, ">s{at}\n{sequence}").unwrap();
            fasta
        })
    }
}

/// What is done to the second layer of a checkpoint, and what must come of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Edit {
    Nothing,
    /// One weight of queries (0), keys (1) or values (2) is NaN.
    Attention(usize),
    /// Queries beyond what fp16 holds, and keys as much smaller: scores are as before.
    Queries,
    /// What the activation makes is beyond what fp16 holds.
    FeedForward,
    /// One number of a token's embedding.
    Token,
}

/// Infinite weights are refused by name in 16 bits: queries that overflow are infinite where they
/// are used.
const EDITS: [Edit; 7] = [
    Edit::Nothing,
    Edit::Token,
    Edit::Attention(0),
    Edit::Attention(1),
    Edit::Attention(2),
    Edit::Queries,
    Edit::FeedForward,
];

/// How many of them are tried with ONNX Runtime's own operators, which serve fp32 whatever the
/// kernels are: each takes a load or two.
const FOR_OPERATORS: usize = 3;

impl Edit {
    fn apply(self, token: usize, name: &str, shape: &[usize], numbers: &mut [f32]) {
        const LARGE: f32 = 3e5;
        let count = numbers.len();
        let part = |at| attention_part(name, at, count);
        match self {
            Self::Attention(which) if name.ends_with("weight") => {
                if let Some(at) = (0..count).find(|&at| part(at) == Some(which)) {
                    numbers[at] = f32::NAN;
                }
            }
            Self::Queries => {
                let is_weight = name.ends_with("weight");
                for (at, number) in numbers.iter_mut().enumerate() {
                    match part(at) {
                        Some(0) if is_weight => *number *= LARGE,
                        // Of the keys' bias, too: large queries times it would hide all else from
                        // the softmax.
                        Some(1) => *number /= LARGE,
                        _ => {}
                    }
                }
            }
            Self::FeedForward => {
                let first = [
                    "layer.1.intermediate.dense.weight",
                    "layer.1.mlp.gated_layers.weight",
                    "layers.1.mlp.gate_proj.weight",
                ];
                if first.iter().any(|first| name.ends_with(first)) {
                    for number in numbers {
                        // The biases into which norms are folded still fit into 16 bits.
                        *number *= LARGE / 3.0;
                    }
                }
            }
            Self::Token
                if name.ends_with("word_embeddings.weight")
                    || name.ends_with("embed_tokens.weight") =>
            {
                numbers[token * shape[1]] = f32::NAN;
            }
            Self::Nothing | Self::Attention(..) | Self::Token => {}
        }
    }

    /// Whether the second layer of a sequence, one of every three with the token, gives no numbers.
    fn spoils(self, at: usize) -> bool {
        match self {
            Self::Attention(..) => true,
            Self::Token => at.is_multiple_of(3),
            Self::Nothing | Self::Queries | Self::FeedForward => false,
        }
    }

    /// The sequences whose numbers or status are not what they should be; `clean` has those of the
    /// checkpoint without edits. Kernels other than seqembed's give a sequence other last bits in
    /// another batch, and spoilt ones are tried alone, in fp32.
    fn wrong(self, own: &Rows, clean: &Rows, to_the_bit: bool) -> Vec<String> {
        let is_wrong = |&row: &usize| {
            let vector = |rows: &Rows| -> Vec<f32> {
                rows.values[row * rows.hidden..(row + 1) * rows.hidden].to_vec()
            };
            let is_told = own.status[row].contains("the model's numbers are not finite");
            if self.spoils(row) {
                return !is_told || vector(own).iter().any(|x| !x.is_nan());
            }
            let mut pairs = vector(own).into_iter().zip(vector(clean));
            let is_same = pairs.all(|(own, clean)| {
                own.to_bits() == clean.to_bits()
                    || (!to_the_bit && (own - clean).abs() <= 0.02 * (1.0 + clean.abs()))
            });
            let is_other = own.status[row] != clean.status[row] || !is_same;
            is_told || (self == Self::Token && is_other)
        };
        let told = |row| format!("{} ({})", own.ids[row], own.status[row]);
        (0..own.ids.len()).filter(is_wrong).map(told).collect()
    }
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn what_is_no_number_is_told_and_costs_no_other_sequence_a_bit() {
    const POOLINGS: [&str; 3] = ["mean", "max", "cls"];
    let mut problems = Problems::default();
    let device = device();
    for grown in &GROWN {
        let place = Place::new(&[("x.fa", grown.sequences().as_bytes())]);
        grown.write(&place.path("grown"));
        let mut files = Vec::new();
        let samples: Vec<(Edit, &str)> = EDITS
            .into_iter()
            .flat_map(|edit| POOLINGS.map(|pooling| (edit, pooling)))
            .collect();
        for (at, (edit, pooling)) in samples.iter().enumerate() {
            let model = place.path(&format!("m{}", at / POOLINGS.len()));
            if at % POOLINGS.len() == 0 {
                edited(&place.path("grown"), &model, |name, shape, numbers| {
                    edit.apply(grown.poison.1, name, shape, numbers);
                });
            }
            let (model, fasta) = (text(&model), place.path("x.fa"));
            let fasta = text(&fasta);
            files.push(format!(
                "- {{sample: y{at}, fasta: {fasta}, model: {model}, pooling: {pooling}}}\n"
            ));
        }
        // The first so many of the samples.
        let run = |count: usize, options: &[&str]| -> Result<Vec<Rows>, String> {
            let out = tempfile::tempdir().unwrap();
            let manifest = format!("files:\n{}", files[..count].concat());
            std::fs::write(place.path("manifest.yaml"), manifest).unwrap();
            let run = Command::new(executable())
                .args(["run", text(&place.path("manifest.yaml"))])
                .args(["-o", text(out.path())])
                .args(options)
                .env("SEQEMBED_CACHE", place.path("cache"))
                .output()
                .unwrap();
            if run.status.code() != Some(PARTLY) {
                let said = String::from_utf8_lossy(&run.stderr);
                return Err(format!("{}: {said}", run.status));
            }
            let outputs = (0..count).map(|at| out.path().join(format!("y{at}.parquet")));
            outputs.map(|output| rows(&output)).collect()
        };
        let expected = run(samples.len(), &["--device", "cpu"]).unwrap();
        for (precision, kernels) in [
            ("fp16", "auto"),
            ("bf16", "auto"),
            ("fp8", "auto"),
            ("fp16", "portable"),
            ("fp32", "portable"),
        ] {
            let what = format!("{} {precision} {kernels}", grown.name);
            let options = ["--device", &device, "--precision", precision];
            let edits = match (kernels, precision) {
                // Such weights of feed-forward layers are refused by name in 8 bits.
                ("auto", "fp8") => EDITS.len() - 1,
                ("auto", _) => EDITS.len(),
                _ => FOR_OPERATORS,
            };
            let options = [&options[..], &["--kernels", kernels]].concat();
            let started = std::time::Instant::now();
            let found = run(edits * POOLINGS.len(), &options);
            println!("{what}: {:.1} s", started.elapsed().as_secs_f64());
            let found = match found {
                Ok(found) => found,
                // Which models and GPUs have no fp8 is for the test of wide layers.
                Err(why) if precision == "fp8" && why.contains("fp8") => {
                    println!("{what}: {why}");
                    continue;
                }
                Err(why) => {
                    problems.0.push(format!("{what}: {why}"));
                    continue;
                }
            };
            for (at, (edit, pooling)) in samples.iter().take(found.len()).enumerate() {
                let what = format!("{what}, {edit:?}, {pooling}");
                let (own, clean) = (&found[at], &found[at % POOLINGS.len()]);
                let wrong = edit.wrong(own, clean, kernels == "auto");
                if !wrong.is_empty() {
                    problems.0.push(format!("{what}: {}", wrong.join(", ")));
                }
                if matches!(edit, Edit::Nothing | Edit::Queries | Edit::FeedForward) {
                    // Where fp16 overflows, fp32 takes its place.
                    let again = *edit != Edit::Nothing && matches!(precision, "fp16" | "fp8");
                    let precision = match precision {
                        _ if again => "fp32",
                        "fp8" if *pooling == "cls" => "fp8, one token",
                        precision => precision,
                    };
                    problems.compare(&what, precision, Ok(own), &expected[at]);
                }
            }
        }
    }
}
