//! What the tests of several models share: the built executable, the exported fixtures, a folder to
//! work in.

// Each test program uses a part of it, and a test may stop where its own set-up fails.
#![allow(dead_code, clippy::unwrap_used)]

pub mod interrupted;
pub mod reference;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use seqembed::output::{self, Rows};
use tempfile::TempDir;

/// All done.
pub const DONE: i32 = 0;
/// The usage, the manifest or the input is wrong, seen before a model is loaded.
pub const WRONG: i32 = 2;
/// Done, but some files failed.
pub const PARTLY: i32 = 3;

/// The models' checkpoints in `tests/fixtures`, under the names that the tests give them.
const CHECKPOINTS: [(&str, &str); 3] = [
    ("esm2", "esm2/checkpoints/hub-safetensors"),
    ("dnabert2", "dna/dnabert2"),
    ("dnabert-3", "dna/dnabert-3"),
];

/// A DNABERT-2, which reads byte pairs, and a DNABERT, which reads 3-mers.
pub const DNA_MODELS: [&str; 2] = ["dnabert2", "dnabert-3"];

/// The built executable. A machine without cargo, to which test programs are carried, names its
/// own.
pub fn executable() -> String {
    std::env::var("SEQEMBED_TEST_EXECUTABLE")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_seqembed").to_owned())
}

pub fn seqembed(arguments: &[&str]) -> Output {
    Command::new(executable()).args(arguments).output().unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Writes an executable script, by another process: a file that this one has open for writing is
/// inherited by a program that another test is starting, and until that has started, nobody can run
/// the file ("Text file busy").
pub fn write_script(path: &Path, script: &str) {
    let mut shell = Command::new("sh")
        .args(["-c", "rm -f \"$0\" && cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = shell.stdin.take().unwrap();
    input.write_all(script.as_bytes()).unwrap();
    drop(input);
    assert!(shell.wait().unwrap().success(), "{}", path.display());
}

/// Copies an executable, by another process for the reason given at [`write_script`].
pub fn copy_executable(from: &Path, to: &Path) {
    let copied = Command::new("cp").args([from, to]).status().unwrap();
    assert!(copied.success(), "{}", to.display());
}

/// Runs something again, at most six times, while it gives none: this process was held up by other
/// work on the machine, and came too late for what it was to do to a running program. It is told
/// how often it ran before.
#[track_caller]
pub fn retry_if_late<T>(attempt: impl FnMut(u32) -> Option<T>) -> T {
    let outcome = (0..6).find_map(attempt);
    outcome.expect("one attempt of six to be in time")
}

/// A value of `SEQEMBED_INJECT`: each batch takes longer the more attempts were too late before.
pub fn slower(before: u32) -> String {
    if before == 0 {
        return String::new();
    }
    format!("slow={}", 50 * before)
}

/// Asserts the exit code, that each fragment stands in stderr, and that nothing panicked.
#[track_caller]
pub fn assert_run(run: &Output, code: i32, fragments: &[&str]) {
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(code), "{said}");
    for fragment in fragments {
        assert!(said.contains(fragment), "`{fragment}` is not in:\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

pub fn fixtures() -> PathBuf {
    let root = std::env::var("SEQEMBED_TEST_ROOT")
        .unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    Path::new(&root).join("tests/fixtures")
}

/// Exports a checkpoint into a folder, under a name.
#[track_caller]
pub fn export(checkpoint: &Path, folder: &Path, name: &str) {
    let (checkpoint, folder) = (text(checkpoint), text(folder));
    let run = seqembed(&["export", checkpoint, "-o", folder, "--name", name]);
    assert_run(&run, DONE, &[]);
}

/// A copy, in `folder`, of a checkpoint in safetensors: `edit` gets each tensor's name, its shape
/// and its numbers, which are stored in single precision.
pub fn edited(checkpoint: &Path, folder: &Path, edit: impl Fn(&str, &[usize], &mut [f32])) {
    fs::create_dir_all(folder).unwrap();
    for entry in fs::read_dir(checkpoint).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let bytes = fs::read(checkpoint.join("model.safetensors")).unwrap();
    let tensors: Vec<_> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, tensor)| {
            let data = tensor.data();
            let mut numbers: Vec<f32> = match tensor.dtype() {
                Dtype::F32 => data
                    .chunks(4)
                    .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
                    .collect(),
                Dtype::F16 => data
                    .chunks(2)
                    .map(|bytes| half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f32())
                    .collect(),
                // Positions.
                other => {
                    return (
                        name.to_owned(),
                        other,
                        tensor.shape().to_vec(),
                        data.to_vec(),
                    );
                }
            };
            edit(name, tensor.shape(), &mut numbers);
            let data = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            (name.to_owned(), Dtype::F32, tensor.shape().to_vec(), data)
        })
        .collect();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name, view)
    });
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
}

/// Whether a number of the second layer's attention, at `at` of a tensor's `count`, makes queries
/// (0), keys (1) or values (2).
pub fn attention_part(name: &str, at: usize, count: usize) -> Option<usize> {
    if !name.contains("layer.1.attention.self.") && !name.contains("layers.1.self_attn.") {
        return None;
    }
    let parts = [["query", "q_proj"], ["key", "k_proj"], ["value", "v_proj"]];
    let is = |spellings: &[&str; 2]| spellings.iter().any(|part| name.contains(part));
    let own = parts.iter().position(is);
    own.or(name.contains("Wqkv").then(|| at / (count / 3)))
}

/// The folder that holds an exported model, all made once for a test program.
pub fn exported(model: &str) -> &'static Path {
    static MODELS: OnceLock<(TempDir, BTreeMap<&str, PathBuf>)> = OnceLock::new();
    let (_, models) = MODELS.get_or_init(|| {
        let scratch = tempfile::tempdir().unwrap();
        let mut models = BTreeMap::new();
        for (name, checkpoint) in CHECKPOINTS {
            let folder = scratch.path().join(name);
            let checkpoint = fixtures().join(checkpoint);
            export(&checkpoint, &folder, name);
            models.insert(name, folder);
        }
        (scratch, models)
    });
    &models[model]
}

/// A folder with input files and a folder for the output.
pub struct Place {
    folder: TempDir,
}

impl Place {
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `seqembed embed` of a file of the folder.
    pub fn embed(&self, model: &str, file: &str, options: &[&str]) -> Output {
        let (file, out) = (self.path(file), self.path("out"));
        let mut arguments = vec!["embed", text(&file), "-m", text(exported(model))];
        arguments.extend(["-o", text(&out)]);
        arguments.extend(options);
        seqembed(&arguments)
    }

    /// `seqembed run` of a manifest.
    pub fn run(&self, manifest: &str) -> Output {
        let path = self.path("manifest.yaml");
        fs::write(&path, manifest).unwrap();
        seqembed(&["run", text(&path), "-o", text(&self.path("out"))])
    }

    /// The rows of an output, if it is there.
    pub fn rows(&self, output: &str) -> Option<Rows> {
        let path = self.path("out").join(output);
        path.exists().then(|| output::read(&path).unwrap().0)
    }

    /// The run's `report.json`.
    pub fn report(&self) -> serde_json::Value {
        let text = fs::read_to_string(self.path("out/report.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

/// The rows of one FASTA file's text, embedded without a failure.
#[track_caller]
pub fn rows_of(model: &str, fasta: &str, options: &[&str]) -> Rows {
    let place = Place::new(&[("x.fna", fasta.as_bytes())]);
    assert_run(&place.embed(model, "x.fna", options), DONE, &[]);
    place.rows("x.parquet").unwrap()
}

/// Headers and sequences of one of the fixtures' files.
pub fn records(file: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(fixtures().join(file)).unwrap();
    let records = text.split('>').skip(1).map(|record| {
        let (header, sequence) = record.split_once('\n').unwrap();
        (header.to_owned(), sequence.replace('\n', ""))
    });
    records.collect()
}

/// Records as a FASTA file.
pub fn fasta(records: &[(String, String)]) -> String {
    let lines = records
        .iter()
        .map(|(header, sequence)| format!(">{header}\n{sequence}\n"));
    lines.collect()
}

/// Asserts that two runs gave the same numbers, within a bound, and returns by how much they differ
/// at most. Neither may hold NaN.
#[track_caller]
pub fn assert_close(left: &[f32], right: &[f32], bound: f32, what: &str) -> f32 {
    assert_eq!(left.len(), right.len(), "{what}: number of values");
    assert!(
        left.iter().any(|value| value.abs() > 1e-3),
        "{what}: only zeros"
    );
    let mut largest = 0.0_f32;
    for (at, (left, right)) in left.iter().zip(right).enumerate() {
        let difference = (left - right).abs();
        assert!(difference <= bound, "{what}: value {at}: {left} {right}");
        largest = largest.max(difference);
    }
    largest
}

/// Runs Python, which `needs` some packages, and returns what it printed; a failed assertion in the
/// script fails the test.
#[track_caller]
pub fn python(needs: &str, script: &str, arguments: &[&str]) -> String {
    let python = std::env::var("SEQEMBED_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let run = Command::new(&python)
        .args(["-c", script])
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{python} (it needs {needs}: `make test` brings them):\n{}",
        String::from_utf8_lossy(&run.stderr)
    );
    String::from_utf8(run.stdout).unwrap()
}
