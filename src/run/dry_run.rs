//! A run without computing or writing: all checks, and the size of the work and of the output.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use super::batch_limits;
use super::chunk::{Chunk, ChunkEntry, ChunkRecord};
use super::chunker::Chunker;
use super::context::{Resources, RunContext};
use super::dedup::Dedup;
use super::error::RunError;
use super::group::{Group, group_jobs};
use super::measure::measure;
use super::options::Options;
use super::task::Task;
use super::{begun, check_targets, resume, select_devices, stop_if_asked};
use crate::engine::batch::Reduce;
use crate::engine::fault_injection::Faults;
use crate::folders;
use crate::manifest::Job;
use crate::output::Format;
use crate::settings::Layers;
use crate::trace::Trace;

/// Where the speed of a model comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    /// Nothing is said of the time.
    Unknown,
    /// Tokens per second, as given.
    Given(f64),
    /// Each model is loaded and run for about two seconds.
    Measured,
}

/// The size of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Sizes {
    /// Number of files, finished and failed ones too.
    pub files: u64,
    /// Files that an earlier run finished, with `--resume`. They are not read, and not counted in
    /// what follows.
    pub finished_files: u64,
    /// Files that cannot be embedded; `errors` has the reasons.
    pub failed_files: u64,
    /// Number of records.
    pub records: u64,
    /// Number of residues, or bases for DNA.
    pub residues: u64,
    /// Tokens to be computed, with special ones and overlaps of windows, without repeated ones.
    pub tokens: u64,
    /// Sequences and windows to be computed.
    pub windows: u64,
    /// Tokens of repeated sequences, which are not computed again.
    pub repeated_tokens: u64,
    /// Records whose sequences are all repeated.
    pub repeated: u64,
    /// Records embedded in windows.
    pub windowed: u64,
    /// Records truncated at the length limit.
    pub truncated: u64,
    /// Records without an embedding.
    pub skipped: u64,
    /// About how many bytes the outputs will have in the formats that are set.
    pub output_bytes: u64,
    /// The same, if all were of one format.
    pub output_bytes_by_format: BTreeMap<String, u64>,
    /// Each model, layer and precision.
    pub models: Vec<ModelSize>,
    /// About how long computing takes in seconds; null if no speed is known.
    pub seconds: Option<f64>,
    /// Why files fail.
    pub errors: Vec<String>,
    /// Warnings about files.
    pub warnings: Vec<String>,
}

/// The work of one model.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ModelSize {
    /// The model's name.
    pub model: String,
    /// The layer or layers whose output is embedded.
    pub layer: Layers,
    /// The precision of the computation.
    pub precision: String,
    /// The devices, or `--rate` for another machine's.
    pub device: String,
    /// Tokens to be computed.
    pub tokens: u64,
    /// Tokens per second on all devices.
    pub tokens_per_second: Option<f64>,
    /// Seconds that computing takes.
    pub seconds: Option<f64>,
}

/// Checks all jobs as [`run`](super::run) does, reads and tokenizes their files, and says how large
/// the run is. Nothing is written to the output folder.
///
/// # Errors
/// What would keep the run from starting.
pub fn dry_run(
    jobs: Vec<Job>,
    options: &Options,
    speed: Speed,
    say: &dyn Fn(&str),
) -> Result<Sizes, RunError> {
    folders::check(&options.out).map_err(|source| RunError::Folder {
        path: options.out.clone(),
        source,
    })?;
    check_targets(&jobs, options)?;
    let trace = Trace::off();
    let context = RunContext {
        options,
        started: Instant::now(),
        faults: Faults::from_env().map_err(RunError::Faults)?,
        trace: &trace,
        say,
    };
    let mut report = begun(options);
    let mut resources = select_devices(&context, &mut report)?;
    let mut sizes = Sizes {
        files: jobs.len() as u64,
        ..Sizes::default()
    };
    for format in Format::ALL {
        sizes.output_bytes_by_format.insert(format.to_string(), 0);
    }
    for mut group in group_jobs(jobs, options, &resources.devices, say)? {
        stop_if_asked(options)?;
        if options.resume || options.cache_dir.is_some() {
            let kept = resume::finished(&group, &context, &resources.devices)?;
            sizes.finished_files += kept.iter().filter(|&&kept| kept).count() as u64;
            let mut kept = kept.into_iter();
            group.tasks.retain(|_| !kept.next().unwrap_or(false));
        }
        if group.tasks.is_empty() {
            continue;
        }
        let model = size_of(&group, &context, &mut resources, speed, &mut sizes)?;
        sizes.tokens += model.tokens;
        sizes.models.push(model);
    }
    let seconds = sizes.models.iter().map(|model| model.seconds);
    sizes.seconds = seconds.sum::<Option<f64>>();
    if sizes.models.is_empty() && speed == Speed::Unknown {
        sizes.seconds = None;
    }
    Ok(sizes)
}

/// Adds a group's files to the sizes.
fn size_of(
    group: &Group,
    context: &RunContext,
    resources: &mut Resources,
    speed: Speed,
    sizes: &mut Sizes,
) -> Result<ModelSize, RunError> {
    let options = context.options;
    let hidden = group.width();
    let limits = batch_limits::limits(group, options, &resources.devices);
    let mut chunker = Chunker::new(&group.tasks, &*group.tokenizer, limits);
    if !options.no_dedup {
        chunker.share(Dedup::new(hidden));
    }
    let mut files: Vec<FileSize> = group.tasks.iter().map(|_| FileSize::default()).collect();
    let mut sample: Option<Chunk> = None;
    let mut tokens = 0;
    while let Some(chunk) = chunker.next() {
        stop_if_asked(options)?;
        tokens += count(&chunk, &mut files, sizes);
        let is_fuller = |other: &Chunk| chunk.batches.len() > other.batches.len();
        if !chunk.batches.is_empty() && sample.as_ref().is_none_or(is_fuller) {
            sample = Some(chunk);
        }
    }
    for (file, task) in files.iter().zip(&group.tasks) {
        if file.has_failed {
            sizes.failed_files += 1;
            continue;
        }
        sizes.output_bytes += file.bytes(task, hidden, task.job.settings.format);
        for format in Format::ALL {
            let bytes = sizes.output_bytes_by_format.entry(format.to_string());
            *bytes.or_default() += file.bytes(task, hidden, format);
        }
    }
    let rate = match (speed, &sample) {
        (Speed::Given(rate), _) => Some(rate),
        (Speed::Measured, Some(chunk)) => measure(group, context, resources, chunk)?,
        _ => None,
    };
    let devices = resources.devices.iter();
    let devices: Vec<String> = devices.map(|device| device.device.to_string()).collect();
    let seconds = match (speed, rate) {
        (Speed::Unknown, _) => None,
        _ if tokens == 0 => Some(0.0),
        (_, rate) => rate.map(|rate| tokens as f64 / rate),
    };
    Ok(ModelSize {
        model: group.model.info().name.clone(),
        layer: group.layers.clone(),
        precision: group.precision.to_string(),
        device: match speed {
            Speed::Given(_) => "--rate".to_owned(),
            _ => devices.join(", "),
        },
        tokens,
        tokens_per_second: rate,
        seconds,
    })
}

/// What a file's output is made of.
#[derive(Debug, Default)]
struct FileSize {
    records: u64,
    /// Vectors: one for each record, or for each of its tokens.
    vectors: u64,
    /// Bytes of ids, headers, statuses and lengths.
    text: u64,
    has_failed: bool,
}

impl FileSize {
    /// About how many bytes the output has in a format, as measured of outputs with real headers.
    fn bytes(&self, task: &Task, hidden: usize, format: Format) -> u64 {
        let settings = &task.job.settings;
        let per_token = settings.pooling.is_per_token();
        let value = settings.output_precision.bytes() as u64;
        let (fixed, record, vector, text) = match format {
            // Text is compressed, and each vector of a list has its level.
            Format::Parquet => (3_400, 0, u64::from(per_token) * 5, self.text / 3),
            Format::Npz => (1_700, 3, 0, self.text / 3),
            Format::H5 if per_token => (32_000, 470, 0, self.text),
            Format::H5 => (32_000, 105, 0, self.text),
            Format::Npy => (700, 0, 0, self.text),
            Format::Pt => (1_600, 16, 0, self.text),
            // safetensors, and what comes later.
            _ => (1_000, 8, 0, self.text),
        };
        let vectors = self.vectors * (hidden as u64 * value + vector);
        fixed + self.records * record + vectors + text
    }
}

/// Counts a chunk, and returns its tokens that are to be computed.
fn count(chunk: &Chunk, files: &mut [FileSize], sizes: &mut Sizes) -> u64 {
    let mut tokens = 0;
    for segment in &chunk.segments {
        let own = segment.input.tokens as u64;
        if segment.is_run() {
            tokens += segment.computed() as u64;
            sizes.windows += u64::from(!segment.is_shared);
        } else {
            sizes.repeated_tokens += own;
        }
    }
    for entry in &chunk.entries {
        match entry {
            ChunkEntry::Record(task, record) => {
                count_record(chunk, record, &mut files[*task], sizes);
            }
            ChunkEntry::Forbidden(task, why) => {
                files[*task].has_failed = true;
                sizes.errors.push(why.clone());
            }
            ChunkEntry::End(end) => {
                sizes.warnings.extend(end.warnings.iter().cloned());
                if let Some(why) = &end.failure {
                    files[end.task].has_failed = true;
                    sizes.errors.push(why.clone());
                }
            }
        }
    }
    tokens
}

fn count_record(chunk: &Chunk, record: &ChunkRecord, file: &mut FileSize, sizes: &mut Sizes) {
    if record.part.is_some_and(|part| !part.is_last) {
        return;
    }
    let segments = &chunk.segments[record.segments.clone()];
    let status = &record.status;
    sizes.records += 1;
    sizes.residues += record.length as u64;
    sizes.windowed += u64::from(status.windowed);
    sizes.truncated += u64::from(status.truncated);
    sizes.skipped += u64::from(status.skipped.is_some());
    let is_repeated = record.part.is_none()
        && record.has_segments()
        && segments.iter().all(|segment| !segment.is_run());
    sizes.repeated += u64::from(is_repeated);
    file.records += 1;
    let texts = record.id.len() + record.header.len() + status.to_string().len();
    file.text += texts as u64 + 8;
    let is_per_token = segments.first().map(|segment| segment.reduce) == Some(Reduce::Tokens);
    file.vectors += match record.part {
        Some(part) if is_per_token => part.vectors as u64,
        None if is_per_token => {
            let pooled = segments
                .iter()
                .map(|segment| segment.input.ranges[0].len() as u64);
            pooled.sum()
        }
        _ => 1,
    };
}
