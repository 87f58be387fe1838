//! The run's report: what was done to each file and in all, where the time went, and how it is told at the end.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize, Serializer};

use crate::text::{counted, escape_bytes, thousands, was};

/// `report.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// This tool's version.
    pub seqembed: String,
    /// Version of ONNX Runtime, when a model was loaded.
    pub onnxruntime: Option<String>,
    /// Where the models ran.
    pub device: String,
    /// Why there.
    pub device_why: String,
    /// Threads in all.
    pub threads: usize,
    /// Batches at work at the same time.
    pub workers: usize,
    /// Every load of a model.
    pub loads: Vec<LoadReport>,
    /// Each device that was used, once for each precision.
    pub devices: Vec<DeviceReport>,
    /// All files together.
    pub totals: Totals,
    /// Each file, in the order of the manifest.
    pub files: Vec<FileReport>,
}

/// One load of a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadReport {
    /// The model's name.
    pub model: String,
    /// SHA-256 of its weights.
    pub weights_sha256: String,
    /// The layer that is given.
    pub layer: usize,
    /// The seed, when the weights are random ones.
    pub random_seed: Option<u64>,
    /// The device that it was loaded to.
    pub device: String,
    /// The numbers that it computes with there.
    pub precision: String,
    /// Wall time of the load.
    pub seconds: f64,
}

/// What a device did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceReport {
    /// `cpu`, `cuda:0` ...
    pub device: String,
    /// What its maker calls it.
    pub name: String,
    /// The numbers that it computed with.
    pub precision: String,
    /// Loads of models, those in higher precision for batches that overflowed too.
    pub loads: u64,
    /// Batches that it computed.
    pub batches: u64,
    /// Tokens that it worked on, padding too.
    pub tokens: u64,
    /// Seconds in which it computed at least one batch.
    pub computing_seconds: f64,
    /// Seconds from its first batch's start to its last one's end, for each model by itself.
    pub wall_seconds: f64,
    /// `computing_seconds / wall_seconds`.
    pub busy: f64,
    /// How often a batch did not fit into its memory and was split.
    pub out_of_memory_splits: u64,
    /// Tokens of a batch, as out-of-memory errors taught it.
    pub learnt_batch_tokens: Option<usize>,
    /// Batches of which a part was computed again in higher precision.
    pub recomputed_batches: u64,
    /// The sequences in these.
    pub recomputed_sequences: u64,
    /// Why the device was lost, if it was.
    pub lost: Option<String>,
}

/// Sums over all files.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Totals {
    /// Files.
    pub files: u64,
    /// Files that failed.
    pub failed_files: u64,
    /// Records.
    pub records: u64,
    /// Residues.
    pub residues: u64,
    /// Tokens that the model saw, special ones and overlaps of windows too, padding not. Files of an earlier run do not count.
    pub tokens: u64,
    /// Tokens that the device worked on, padding too.
    pub device_tokens: u64,
    /// `1 - tokens / device_tokens`.
    pub padding: f64,
    /// Batches.
    pub batches: u64,
    /// The most tokens in a batch, unless a single sequence has more; none when nothing was embedded.
    #[serde(default)]
    pub batch_tokens: Option<u64>,
    /// How many batches were filled up to 10 % of `batch_tokens`, to 20 % ... to 100 %.
    #[serde(default)]
    pub batch_fill: [u64; 10],
    /// Records embedded in windows.
    pub windowed: u64,
    /// Records cut at the length limit.
    pub truncated: u64,
    /// Records with letters outside of the vocabulary.
    pub replaced: u64,
    /// Records with gaps of an alignment, `-` or `.`.
    #[serde(default)]
    pub gaps: u64,
    /// Records without an embedding.
    pub skipped: u64,
    /// Those of them that could not be computed: too large for the memory, or numbers that are not finite.
    pub failed_records: u64,
    /// Records whose sequence was computed for another record of the run.
    #[serde(default)]
    pub repeated: u64,
    /// Records whose row an interrupted run had saved.
    #[serde(default)]
    pub restored: u64,
    /// Files that an earlier run had finished.
    #[serde(default)]
    pub kept_files: u64,
    /// Wall time of the run, loads included, in seconds.
    pub seconds: f64,
    /// Wall time of all loads.
    pub load_seconds: f64,
    /// Wall time until the devices were found and awake, before anything was read.
    pub start_seconds: f64,
    /// From the start of the run to the first batch's end.
    pub first_embedding_seconds: Option<f64>,
    /// Time by stage. Stages overlap, and computing is the sum over all workers.
    pub stages: Stages,
    /// Tokens a second, without the loads.
    pub tokens_per_second: f64,
    /// The most memory that the process held, in bytes.
    pub peak_memory_bytes: Option<u64>,
}

/// Seconds by stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stages {
    /// Reading and decompressing.
    pub reading: f64,
    /// Tokenising and batching.
    pub tokenizing: f64,
    /// The model, all workers together.
    pub computing: f64,
    /// Ordering and writing.
    pub writing: f64,
}

/// One file of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FileReport {
    /// The sample's name.
    pub sample: String,
    /// The input.
    pub source: String,
    /// The output, when the file was done. Bytes of its path that are not UTF-8 are escaped: `\xe9`.
    #[serde(serialize_with = "escaped")]
    #[schemars(with = "Option<PathBuf>")]
    pub output: Option<PathBuf>,
    /// The model.
    pub model: String,
    /// Why the file failed.
    pub error: Option<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Records.
    pub records: u64,
    /// Residues.
    pub residues: u64,
    /// Tokens that the model saw.
    pub tokens: u64,
    /// Records embedded in windows.
    pub windowed: u64,
    /// Records cut at the length limit.
    pub truncated: u64,
    /// Records with letters outside of the vocabulary.
    pub replaced: u64,
    /// Records with gaps of an alignment, `-` or `.`.
    #[serde(default)]
    pub gaps: u64,
    /// Records without an embedding.
    pub skipped: u64,
    /// Those of them that could not be computed: too large for the memory, or numbers that are not finite.
    pub failed_records: u64,
    /// Records whose sequence was computed for another record of the run.
    #[serde(default)]
    pub repeated: u64,
    /// Records whose row an interrupted run had saved.
    #[serde(default)]
    pub restored: u64,
    /// Whether an earlier run had finished the file. Its numbers are that run's.
    #[serde(default)]
    pub kept: bool,
    /// The model's time for this file, all workers together: its share of each batch by tokens.
    pub computing_seconds: f64,
}

/// A path as a text, which JSON needs.
#[expect(clippy::ref_option, reason = "serde calls it with the field")]
fn escaped<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    let text = path
        .as_ref()
        .map(|path| escape_bytes(path.as_os_str().as_encoded_bytes(), "\\x"));
    text.serialize(to)
}

impl Totals {
    /// How many sequences have which marks, for the summary; none if there are none.
    fn marks(&self) -> Option<String> {
        let marks = [
            (self.windowed, "in windows"),
            (self.truncated, "truncated"),
            (self.replaced, "with replaced letters"),
            (self.gaps, "with gaps"),
            (self.skipped, "skipped"),
        ];
        let marks: Vec<String> = marks
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{} {what}", thousands(*count)))
            .collect();
        (!marks.is_empty()).then(|| marks.join(", "))
    }

    /// Adds how many batches were filled up to each tenth of their budget.
    pub fn filled(&mut self, budget: usize, batches: &[u64; 10]) {
        if batches.iter().any(|&count| count > 0) {
            // Groups of one run have one budget, unless a file has its own: then the largest is told.
            self.batch_tokens = self.batch_tokens.max(Some(budget as u64));
        }
        for (sum, count) in self.batch_fill.iter_mut().zip(batches) {
            *sum += count;
        }
    }

    /// Tokens a second, for a reader.
    fn rate(&self) -> String {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // `as` saturates, which is right here
        thousands(self.tokens_per_second.round() as u64)
    }
}

impl Report {
    /// Sums the files up, and derives what follows from the sums.
    pub fn total(&mut self) {
        let totals = &mut self.totals;
        totals.files = self.files.len() as u64;
        totals.failed_files = self.files.iter().filter(|f| f.error.is_some()).count() as u64;
        let sum = |field: fn(&FileReport) -> u64| self.files.iter().map(field).sum();
        totals.records = sum(|f| f.records);
        totals.residues = sum(|f| f.residues);
        totals.tokens = sum(|f| if f.kept { 0 } else { f.tokens });
        totals.windowed = sum(|f| f.windowed);
        totals.truncated = sum(|f| f.truncated);
        totals.replaced = sum(|f| f.replaced);
        totals.gaps = sum(|f| f.gaps);
        totals.skipped = sum(|f| f.skipped);
        totals.failed_records = sum(|f| f.failed_records);
        totals.repeated = sum(|f| if f.kept { 0 } else { f.repeated });
        totals.restored = sum(|f| if f.kept { 0 } else { f.restored });
        totals.kept_files = sum(|f| u64::from(f.kept));
        totals.load_seconds = self.loads.iter().map(|load| load.seconds).sum();
        if totals.device_tokens > 0 {
            totals.padding = 1.0 - totals.tokens as f64 / totals.device_tokens as f64;
        }
        let seconds = totals.seconds - totals.load_seconds - totals.start_seconds;
        if seconds > 0.0 {
            totals.tokens_per_second = totals.tokens as f64 / seconds;
        }
        for device in &mut self.devices {
            if device.wall_seconds > 0.0 {
                device.busy = device.computing_seconds / device.wall_seconds;
            }
        }
        if totals.tokens > 0 {
            let each = totals.stages.computing / totals.tokens as f64;
            for file in self.files.iter_mut().filter(|file| !file.kept) {
                file.computing_seconds = each * file.tokens as f64;
            }
        }
    }
}

impl Report {
    /// The JSON schema of what is written, as `docs/report.schema.json` has it.
    #[must_use]
    pub fn schema() -> serde_json::Value {
        SchemaSettings::draft2020_12()
            .for_serialize()
            .into_generator()
            .into_root_schema_for::<Self>()
            .to_value()
    }
}

/// The loads of one model and layer on one device.
pub struct Loaded<'r> {
    /// The first of them.
    pub load: &'r LoadReport,
    /// How many.
    pub times: u64,
    /// Wall time of all.
    pub seconds: f64,
}

impl Report {
    /// The loads by model, layer, device and precision, in the order of the first.
    #[must_use]
    pub fn models(&self) -> Vec<Loaded<'_>> {
        let mut models: Vec<Loaded> = Vec::new();
        for load in &self.loads {
            let same = models.iter_mut().find(|known| {
                known.load.weights_sha256 == load.weights_sha256
                    && known.load.layer == load.layer
                    && known.load.model == load.model
                    && known.load.device == load.device
                    && known.load.precision == load.precision
            });
            match same {
                Some(known) => {
                    known.times += 1;
                    known.seconds += load.seconds;
                }
                None => models.push(Loaded {
                    load,
                    times: 1,
                    seconds: load.seconds,
                }),
            }
        }
        models
    }
}

/// The summary that stands at the end of a run.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = &self.totals;
        writeln!(
            f,
            "{} and {} in {:.1} s ({} tokens/s)",
            counted(totals.files, "file"),
            counted(totals.records, "sequence"),
            totals.seconds,
            totals.rate(),
        )?;
        if self.loads.is_empty() {
            writeln!(f, "  model    not loaded: there was nothing to embed")?;
        }
        let models = self.models();
        for Loaded {
            load,
            times,
            seconds,
        } in &models
        {
            let layer = if models.len() > 1 {
                format!(" (layer {})", load.layer)
            } else {
                String::new()
            };
            // On a CPU there is one load of each; on GPUs one for each of them.
            let times = match times {
                1 if models.len() > 1 && load.device.starts_with("cuda") => {
                    format!("on {} in {}", load.device, load.precision)
                }
                1 => "once".to_owned(),
                times => format!("{} times", thousands(*times)),
            };
            writeln!(
                f,
                "  model    {}{layer}, loaded {times} in {seconds:.2} s{}",
                load.model,
                random(load)
            )?;
        }
        writeln!(
            f,
            "  device   {}, {}",
            self.device,
            counted(self.threads as u64, "thread")
        )?;
        for device in &self.devices {
            write!(f, "{device}")?;
        }
        if totals.kept_files + totals.restored > 0 {
            let mut parts = Vec::new();
            if totals.kept_files > 0 {
                parts.push(format!(
                    "{} {} finished before",
                    counted(totals.kept_files, "file"),
                    was(totals.kept_files)
                ));
            }
            if totals.restored > 0 {
                let rows = counted(totals.restored, "row");
                parts.push(format!("{rows} of others had been saved"));
            }
            writeln!(f, "  resumed  {}", parts.join(", "))?;
        }
        if totals.repeated > 0 {
            writeln!(
                f,
                "  repeated {} did not run again: {} had been embedded",
                counted(totals.repeated, "record"),
                if totals.repeated == 1 {
                    "its sequence"
                } else {
                    "their sequences"
                },
            )?;
        }
        if let Some(marks) = totals.marks() {
            writeln!(f, "  marked   {marks}")?;
        }
        if totals.failed_records > 0 {
            writeln!(
                f,
                "  failed   {}, named above; the status says why",
                counted(totals.failed_records, "sequence")
            )?;
        }
        if totals.failed_files > 0 {
            writeln!(
                f,
                "  failed   {}, named above and in the report",
                counted(totals.failed_files, "file")
            )?;
        }
        Ok(())
    }
}

/// What is worth a line: how busy a GPU was, and whatever went wrong on any device.
impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if self.device != "cpu" {
            words.push(format!(
                "{}, busy {:.1} %",
                counted(self.batches, "batch"),
                100.0 * self.busy
            ));
        }
        if self.out_of_memory_splits > 0 {
            words.push(format!(
                "{} split for want of memory",
                counted(self.out_of_memory_splits, "batch")
            ));
        }
        if self.recomputed_batches > 0 {
            words.push(format!(
                "{} of {} computed again in higher precision",
                counted(self.recomputed_sequences, "sequence"),
                counted(self.recomputed_batches, "batch")
            ));
        }
        if let Some(why) = &self.lost {
            words.push(format!("LOST: {why}"));
        }
        if words.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "    {}  {}, {}",
            self.device,
            self.precision,
            words.join(", ")
        )
    }
}

fn random(load: &LoadReport) -> String {
    load.random_seed
        .map(|seed| format!(" - RANDOM WEIGHTS (seed {seed}): the numbers mean nothing"))
        .unwrap_or_default()
}
