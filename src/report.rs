//! The run's report: the contents of `report.json`, and the summary printed at the end of a run.

use std::fmt;
use std::path::PathBuf;

use crate::settings::Layers;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize, Serializer};

use crate::text::{counted, escape_bytes, thousands, was};

/// The contents of `report.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// Version of seqembed.
    pub seqembed: String,
    /// Version of ONNX Runtime; absent if no model was loaded.
    pub onnxruntime: Option<String>,
    /// The device or devices that the models ran on.
    pub device: String,
    /// Why these devices were chosen.
    pub device_why: String,
    /// Total number of CPU threads.
    pub threads: usize,
    /// Number of batches computed at the same time.
    pub workers: usize,
    /// Every load of a model, in order.
    pub loads: Vec<LoadReport>,
    /// Each device that was used, with one entry per precision.
    pub devices: Vec<DeviceReport>,
    /// Sums over all files.
    pub totals: Totals,
    /// Each file, in the order of the manifest.
    pub files: Vec<FileReport>,
}

/// One load of a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadReport {
    /// The model's name.
    pub model: String,
    /// SHA-256 of the model's weights, in hexadecimal.
    pub weights_sha256: String,
    /// The layer whose output is embedded, or a list of several; 0 is the input of the first layer.
    pub layer: Layers,
    /// The seed of random weights; absent for real weights.
    pub random_seed: Option<u64>,
    /// The licence of the weights, as an SPDX identifier: that of the published model of this name
    /// and family; absent for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// The device that the model was loaded on.
    pub device: String,
    /// The precision of the loaded model.
    pub precision: String,
    /// Wall time of the load in seconds.
    pub seconds: f64,
}

/// The work of one device in one precision.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceReport {
    /// The device: `cpu`, `cuda:0` and so on.
    pub device: String,
    /// The product name of the device.
    pub name: String,
    /// The precision of the computation.
    pub precision: String,
    /// Number of model loads, including those in higher precision for batches that overflowed.
    pub loads: u64,
    /// Number of batches computed.
    pub batches: u64,
    /// Number of tokens computed, including padding.
    pub tokens: u64,
    /// Seconds during which at least one batch was being computed.
    pub computing_seconds: f64,
    /// Seconds from the start of the first batch to the end of the last one, summed over models.
    pub wall_seconds: f64,
    /// Share of the time in which the device was busy: `computing_seconds / wall_seconds`.
    pub busy: f64,
    /// How often a batch did not fit into the device's memory and was split.
    pub out_of_memory_splits: u64,
    /// The reduced limit of tokens per batch after out-of-memory errors.
    pub learnt_batch_tokens: Option<usize>,
    /// Batches of which a part was recomputed in higher precision.
    pub recomputed_batches: u64,
    /// Sequences recomputed in higher precision.
    pub recomputed_sequences: u64,
    /// Why the device was lost; absent if it was not.
    pub lost: Option<String>,
}

/// Sums over all files.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Totals {
    /// Number of files.
    pub files: u64,
    /// Number of files that failed.
    pub failed_files: u64,
    /// Number of records.
    pub records: u64,
    /// Number of residues, or bases for DNA.
    pub residues: u64,
    /// Number of tokens that the model computed, with special tokens and overlaps of windows but
    /// without padding. Files finished by an earlier run are not counted.
    pub tokens: u64,
    /// Number of tokens computed, including padding.
    pub device_tokens: u64,
    /// Share of padding: `1 - tokens / device_tokens`.
    pub padding: f64,
    /// Number of batches.
    pub batches: u64,
    /// Maximum number of tokens per batch, unless a single sequence has more; null if nothing was
    /// embedded.
    #[serde(default)]
    pub batch_tokens: Option<u64>,
    /// Histogram of how full the batches were: how many up to 10 % of `batch_tokens`, up to 20 %
    /// ... up to 100 %.
    #[serde(default)]
    pub batch_fill: [u64; 10],
    /// Number of records embedded in windows.
    pub windowed: u64,
    /// Number of records truncated at the length limit.
    pub truncated: u64,
    /// Number of records with letters outside the vocabulary.
    pub replaced: u64,
    /// Number of records with alignment gaps, `-` or `.`.
    #[serde(default)]
    pub gaps: u64,
    /// Number of records without an embedding.
    pub skipped: u64,
    /// How many of the skipped records failed: they did not fit into memory, or gave values that
    /// are not finite.
    pub failed_records: u64,
    /// Number of records whose sequence was already computed for another record of the run.
    #[serde(default)]
    pub repeated: u64,
    /// Number of records whose row was saved by an interrupted run.
    #[serde(default)]
    pub restored: u64,
    /// Number of files finished by an earlier run.
    #[serde(default)]
    pub kept_files: u64,
    /// Wall time of the run in seconds, including loads.
    pub seconds: f64,
    /// Wall time of all loads in seconds.
    pub load_seconds: f64,
    /// Wall time in seconds until the devices were ready, before anything was read.
    pub start_seconds: f64,
    /// Seconds from the start of the run to the end of the first batch.
    pub first_embedding_seconds: Option<f64>,
    /// Seconds by stage. Stages overlap, and computing is the sum over all workers.
    pub stages: Stages,
    /// Tokens per second, not counting loads and the start.
    pub tokens_per_second: f64,
    /// Peak memory of the process in bytes.
    pub peak_memory_bytes: Option<u64>,
}

/// Seconds spent in each stage, summed over threads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stages {
    /// Reading and decompressing.
    pub reading: f64,
    /// Tokenizing and batching.
    pub tokenizing: f64,
    /// Running the model, summed over all workers.
    pub computing: f64,
    /// Ordering and writing.
    pub writing: f64,
}

/// The result of one file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FileReport {
    /// Sample name.
    pub sample: String,
    /// Path of the input.
    pub source: String,
    /// Path of the output, if the file was finished. Bytes of the path that are not UTF-8 are
    /// escaped, as in `\xe9`.
    #[serde(serialize_with = "escaped")]
    #[schemars(with = "Option<PathBuf>")]
    pub output: Option<PathBuf>,
    /// The model, as it was named.
    pub model: String,
    /// Why the file failed; absent if it did not.
    pub error: Option<String>,
    /// Warnings about the file.
    pub warnings: Vec<String>,
    /// Number of records.
    pub records: u64,
    /// Number of residues, or bases for DNA.
    pub residues: u64,
    /// Number of tokens that the model computed.
    pub tokens: u64,
    /// Number of records embedded in windows.
    pub windowed: u64,
    /// Number of records truncated at the length limit.
    pub truncated: u64,
    /// Number of records with letters outside the vocabulary.
    pub replaced: u64,
    /// Number of records with alignment gaps, `-` or `.`.
    #[serde(default)]
    pub gaps: u64,
    /// Number of records without an embedding.
    pub skipped: u64,
    /// How many of the skipped records failed: they did not fit into memory, or gave values that
    /// are not finite.
    pub failed_records: u64,
    /// Number of records whose sequence was already computed for another record of the run.
    #[serde(default)]
    pub repeated: u64,
    /// Number of records whose row was saved by an interrupted run.
    #[serde(default)]
    pub restored: u64,
    /// Whether the file was finished by an earlier run; its numbers are then from that run.
    #[serde(default)]
    pub kept: bool,
    /// Seconds of computing attributed to this file, in proportion to its tokens and summed over
    /// all workers.
    pub computing_seconds: f64,
}

/// Serializes a path as text.
#[expect(clippy::ref_option, reason = "serde calls it with the field")]
fn escaped<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    let text = path
        .as_ref()
        .map(|path| escape_bytes(path.as_os_str().as_encoded_bytes(), "\\x"));
    text.serialize(to)
}

impl Totals {
    /// The line of the summary that counts marked sequences; `None` if there are none.
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

    /// Adds the counts of batches by how full they were, in tenths of their budget.
    pub fn filled(&mut self, budget: usize, batches: &[u64; 10]) {
        if batches.iter().any(|&count| count > 0) {
            // All groups of a run have the same budget, unless a file sets its own: then the
            // largest is reported.
            self.batch_tokens = self.batch_tokens.max(Some(budget as u64));
        }
        for (sum, count) in self.batch_fill.iter_mut().zip(batches) {
            *sum += count;
        }
    }

    /// Tokens per second as text.
    fn rate(&self) -> String {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // `as` saturates, which is right here
        thousands(self.tokens_per_second.round() as u64)
    }
}

impl Report {
    /// Computes the totals from the files, and the values derived from them.
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
    /// The JSON schema of the report, as in `docs/report.schema.json`.
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
    /// The first of these loads.
    pub load: &'r LoadReport,
    /// Number of loads.
    pub times: u64,
    /// Wall time of these loads in seconds.
    pub seconds: f64,
}

impl Report {
    /// The loads grouped by model, layer, device and precision, in order of first appearance.
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

/// Parts of the summary.
impl Report {
    /// A line for each model.
    fn write_models(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.loads.is_empty() {
            writeln!(
                f,
                "  model    not loaded, because there was nothing to embed"
            )?;
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
            // A CPU loads each model once; GPUs load it once each.
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
        Ok(())
    }
}

impl Totals {
    /// What an earlier run had done, if it had done anything.
    fn write_resumed(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kept_files + self.restored > 0 {
            let mut parts = Vec::new();
            if self.kept_files > 0 {
                parts.push(format!(
                    "{} {} already finished",
                    counted(self.kept_files, "file"),
                    was(self.kept_files)
                ));
            }
            if self.restored > 0 {
                let rows = counted(self.restored, "row");
                parts.push(format!("{rows} of other files restored"));
            }
            writeln!(f, "  resumed  {}", parts.join(", "))?;
        }
        Ok(())
    }
}

/// The summary printed at the end of a run.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = &self.totals;
        // What was read of a file that failed then has no output.
        let failed = self.files.iter().filter(|file| file.error.is_some());
        let lost: u64 = failed.map(|file| file.records).sum();
        let files = match totals.failed_files {
            0 => counted(totals.files, "file"),
            failed => format!(
                "{} of {}",
                thousands(totals.files.saturating_sub(failed)),
                counted(totals.files, "file")
            ),
        };
        writeln!(
            f,
            "{files} and {} in {:.1} s ({} tokens/s)",
            counted(totals.records.saturating_sub(lost), "sequence"),
            totals.seconds,
            totals.rate(),
        )?;
        self.write_models(f)?;
        writeln!(
            f,
            "  device   {}, {}",
            self.device,
            counted(self.threads as u64, "thread")
        )?;
        for device in &self.devices {
            write!(f, "{device}")?;
        }
        totals.write_resumed(f)?;
        if totals.repeated > 0 {
            writeln!(
                f,
                "  repeated {} not recomputed, because {} already embedded",
                counted(totals.repeated, "record"),
                if totals.repeated == 1 {
                    "its sequence was"
                } else {
                    "their sequences were"
                },
            )?;
        }
        if let Some(marks) = totals.marks() {
            writeln!(f, "  marked   {marks}")?;
        }
        if totals.failed_records > 0 {
            writeln!(
                f,
                "  failed   {}, listed above; their status gives the reason",
                counted(totals.failed_records, "sequence")
            )?;
        }
        if totals.failed_files > 0 {
            writeln!(
                f,
                "  failed   {}, listed above and in the report",
                counted(totals.failed_files, "file")
            )?;
        }
        Ok(())
    }
}

/// The line of the summary about a device: how busy a GPU was, and any problems.
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
                "{} split to fit into memory",
                counted(self.out_of_memory_splits, "batch")
            ));
        }
        if self.recomputed_batches > 0 {
            words.push(format!(
                "{} of {} recomputed in higher precision",
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
        .map(|seed| format!(" - RANDOM WEIGHTS (seed {seed}): the embeddings are meaningless"))
        .unwrap_or_default()
}
