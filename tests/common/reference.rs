//! Vectors that other programs computed, in `tests/fixtures`, and what the executable gives for the
//! same input.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use seqembed::output::{self, Rows};
use seqembed::tokenize::{self, FamilyRules, Tokenizer};
use seqembed_onnx::Model;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use super::{DONE, assert_close, assert_run, export, fixtures, seqembed, text};

/// Largest difference to the reference in fp32.
pub const BOUND: f32 = 2e-5;
/// Our kernels, and the padded graph of ONNX Runtime's own operators.
pub const KERNELS: [&str; 2] = ["auto", "portable"];

/// The inputs, options and expected vectors of one family of models.
pub struct Reference {
    /// Where its files stand.
    pub folder: PathBuf,
    about: About,
    tensors: BTreeMap<String, Vec<f32>>,
}

#[derive(Deserialize)]
struct About {
    hidden: usize,
    layers: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    /// Checkpoints whose vectors are these; where there are none, all of them.
    #[serde(default)]
    pub models: Vec<String>,
    pub input: String,
    pub options: Vec<String>,
    pub layers: Vec<usize>,
    pub poolings: Vec<String>,
    pub per_token_records: Vec<usize>,
    pub ids: Vec<String>,
    pub lengths: Vec<u64>,
    #[serde(default)]
    pub tokens: Vec<usize>,
    pub status: Vec<String>,
}

impl Reference {
    /// That of `tests/fixtures/FAMILY`.
    pub fn open(family: &str) -> Self {
        let folder = fixtures().join(family);
        let about = fs::read_to_string(folder.join("cases.json")).unwrap();
        let bytes = fs::read(folder.join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        let vectors = tensors
            .into_iter()
            .filter(|(name, _)| !name.contains("/ids/"));
        let tensors = vectors.map(|(name, tensor)| {
            let words = tensor.data().chunks_exact(4);
            let values = words.map(|word| f32::from_le_bytes(word.try_into().unwrap()));
            (name, values.collect())
        });
        Self {
            about: serde_json::from_str(&about).unwrap(),
            tensors: tensors.collect(),
            folder,
        }
    }

    pub fn hidden(&self) -> usize {
        self.about.hidden
    }

    pub fn layers(&self) -> usize {
        self.about.layers
    }

    pub fn cases(&self) -> &[Case] {
        &self.about.cases
    }

    pub fn case(&self, name: &str) -> &Case {
        let mut cases = self.cases().iter();
        cases.find(|case| case.name == name).unwrap()
    }

    pub fn input(&self, case: &Case) -> PathBuf {
        self.folder.join(&case.input)
    }

    /// The expected vectors of a name, as one row of numbers.
    pub fn expected(&self, name: &str) -> &[f32] {
        &self.tensors[name]
    }

    /// Runs a case in every pooling, layer and graph.
    #[track_caller]
    pub fn check_pooled(&self, name: &str, model: &Path) {
        let case = self.case(name);
        let mut worst = 0.0_f32;
        for kernels in KERNELS {
            for layer in &case.layers {
                for pooling in &case.poolings {
                    let layer = layer.to_string();
                    let mut options = vec!["--kernels", kernels, "--layer", &layer];
                    options.extend(["--pooling", pooling]);
                    options.extend(case.options.iter().map(String::as_str));
                    let rows = embed(&self.input(case), model, &options);
                    let what = format!("{name} {}", options.join(" "));
                    assert_eq!(rows.hidden, self.hidden(), "{what}");
                    assert_eq!(rows.ids, case.ids, "{what}");
                    assert_eq!(rows.lengths, case.lengths, "{what}");
                    assert_eq!(rows.status, case.status, "{what}");
                    let theirs = self.expected(&format!("{name}/{pooling}/{layer}"));
                    worst = worst.max(assert_close(&rows.values, theirs, BOUND, &what));
                }
            }
        }
        println!("{name}: largest difference to the reference {worst:.1e}");
    }

    /// Runs a case per token with one of [`KERNELS`]: the recorded rows are those expected.
    /// `layer`: the last, without the option, where none is given.
    #[track_caller]
    pub fn check_per_token(
        &self,
        case: &Case,
        model: &Path,
        kernels: &str,
        layer: Option<usize>,
    ) -> Rows {
        let number = layer.unwrap_or(self.layers()).to_string();
        let mut options = vec!["--kernels", kernels, "--pooling", "none"];
        if layer.is_some() {
            options.extend(["--layer", &number]);
        }
        options.extend(case.options.iter().map(String::as_str));
        let rows = embed(&self.input(case), model, &options);
        for &record in &case.per_token_records {
            let name = format!("{}/none/{number}/{record}", case.name);
            assert_close(row(&rows, record), self.expected(&name), BOUND, &name);
        }
        rows
    }

    /// Exports all checkpoints of its cases, under one model's name.
    pub fn export(&self, name: &str) -> Exported {
        let cases = self.cases().iter();
        let all: BTreeSet<&String> = cases.flat_map(|case| &case.models).collect();
        export_all(&self.folder, all, name)
    }

    /// What `tokens.json` has: [`Tokens`], by model where there are several.
    pub fn tokens<T: DeserializeOwned>(&self) -> T {
        let text = fs::read(self.folder.join("tokens.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }
}

/// Checkpoints of a family, exported.
pub struct Exported {
    _scratch: TempDir,
    folders: BTreeMap<String, PathBuf>,
}

impl Exported {
    /// The model folder of a checkpoint.
    pub fn folder(&self, checkpoint: &str) -> &Path {
        &self.folders[checkpoint]
    }
}

/// Exports checkpoints of a family under one model's name, into folders called after them.
pub fn export_all<'c>(
    family: &Path,
    checkpoints: impl IntoIterator<Item = &'c String>,
    name: &str,
) -> Exported {
    let scratch = tempfile::tempdir().unwrap();
    let mut folders = BTreeMap::new();
    for checkpoint in checkpoints {
        let model = scratch.path().join(checkpoint.replace(['/', '.'], "_"));
        // The name stands in the graph: one for all, so that files can be compared.
        export(&family.join(checkpoint), &model, name);
        folders.insert(checkpoint.clone(), model);
    }
    Exported {
        _scratch: scratch,
        folders,
    }
}

/// A sequence, and its token ids with the special ones, by the authors' tokenizer.
#[derive(Deserialize)]
pub struct Tokens {
    pub sequence: String,
    pub ids: Vec<u32>,
}

/// The tokenizer of an exported model, with its family's rules.
pub fn tokenizer(model: &Path) -> Arc<dyn Tokenizer> {
    let opened = Model::open(model).unwrap();
    let rules = FamilyRules::of(opened.architecture().family());
    tokenize::open_with(model, opened.info().tokenizer.kind, &rules)
        .unwrap()
        .into()
}

/// The token ids of a sequence with the special ones.
pub fn token_ids(tokenizer: &dyn Tokenizer, sequence: &str) -> Vec<u32> {
    let special = tokenizer.special();
    let encoded = tokenizer.encode(sequence.as_bytes());
    [&special.front[..], &encoded.ids, &special.behind].concat()
}

/// Asserts that with seqembed's kernels a sequence has the same bits whatever else is in its batch.
#[track_caller]
pub fn assert_independent_of_batches(input: &Path, model: &Path) {
    let whole = embed(input, model, &["--pooling", "none"]).values;
    for options in [
        ["--batch-tokens", "1"],
        ["--batch-tokens", "100000"],
        ["--threads", "1"],
    ] {
        let options = [&["--pooling", "none"], &options[..]].concat();
        let again = embed(input, model, &options).values;
        let same = whole
            .iter()
            .zip(&again)
            .all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same && whole.len() == again.len(), "{options:?}");
    }
}

/// `embed` in a fresh output folder; the rows of each input file, in the order given.
pub fn embed_all(files: &[&Path], model: &Path, options: &[&str]) -> Vec<Rows> {
    let out = tempfile::tempdir().unwrap();
    let mut arguments = vec!["embed"];
    arguments.extend(files.iter().map(|file| text(file)));
    arguments.extend(["-m", text(model), "-o", text(out.path())]);
    let given = options.iter().position(|option| *option == "--format");
    let extension = given.map_or("npz", |at| options[at + 1]);
    if given.is_none() {
        arguments.extend(["--format", extension]);
    }
    arguments.extend(options);
    assert_run(&seqembed(&arguments), DONE, &[]);
    let rows = files.iter().map(|file| {
        let name = format!("{}.{extension}", text(Path::new(file.file_stem().unwrap())));
        output::read(&out.path().join(name)).unwrap().0
    });
    rows.collect()
}

/// The same for one file.
pub fn embed(file: &Path, model: &Path, options: &[&str]) -> Rows {
    embed_all(&[file], model, options).pop().unwrap()
}

/// The vectors of one record of per-token output.
pub fn row(rows: &Rows, record: usize) -> &[f32] {
    let before: usize = rows.vectors[..record].iter().sum();
    &rows.values[before * rows.hidden..(before + rows.vectors[record]) * rows.hidden]
}
