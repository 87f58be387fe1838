//! The main job: all files of a manifest, with one load of each model.
//!
//! ```text
//! reader thread: files -> chunks -> batches  ==bounded==>  workers: engine  ==>  this thread: rows -> files
//! ```
//! Jobs are grouped by model and layer; a group is one load, and groups run one after the other.

mod chunk;
mod collect;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use ort::environment::Environment;
use seqembed_onnx::{Architecture, GraphKind, GraphRequest, Model};
use sha2::{Digest, Sha256};

pub use self::collect::{CollectError, Observer};

use self::chunk::{Chunk, Chunker, Limits, Task};
use self::collect::{Collector, Done, Message, output_path};
use crate::engine::locate::{self, LocateError, Located};
use crate::engine::session::{CpuEngine, Kernels, Load};
use crate::engine::{Engine, EngineError, Reduce};
use crate::manifest::Job;
use crate::models::{self, ModelError};
use crate::output::Layout;
use crate::report::{FileReport, LoadReport, Report};
use crate::settings::{Pooling, Revcomp, Settings, SettingsError, Window};
use crate::tokenize::{self, Alphabet, Tokenizer, VocabularyError};

/// What holds for the whole run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The output folder.
    pub out: PathBuf,
    /// Threads in all, at least 1.
    pub threads: usize,
    /// ONNX Runtime's library, when it is named.
    pub ort_lib: Option<PathBuf>,
    /// The graph that runs.
    pub kernels: Kernels,
    /// Stop at the first file that fails.
    pub strict: bool,
}

/// Why a run stopped, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The output folder can't be made or written to.
    #[error("cannot write to the output folder {}: {source}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A model can't be had.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An exported model can't be used.
    #[error(transparent)]
    Graph(#[from] seqembed_onnx::Error),
    /// A model's vocabulary can't be used.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// A job's options don't fit its model.
    #[error("{sample}: {source}")]
    Settings {
        /// The job's sample.
        sample: String,
        /// What does not fit.
        source: SettingsError,
    },
    /// ONNX Runtime can't be had.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// The model could not be loaded.
    #[error("cannot load {}: {source}", .folder.display())]
    Load {
        /// The model's folder.
        folder: PathBuf,
        /// Why.
        source: EngineError,
    },
    /// The run broke off.
    #[error(transparent)]
    Collect(#[from] CollectError),
}

impl RunError {
    /// Whether what the user gave is wrong, and not the machine.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Folder { .. }
                | Self::Model(_)
                | Self::Graph(_)
                | Self::Vocabulary(_)
                | Self::Settings { .. }
        )
    }
}

/// Tokens of a batch on a CPU, unless the settings say otherwise: enough for dense products at full speed, and little
/// enough that a layer's activations stay in the cache.
const BATCH_TOKENS: usize = 512;

/// Per-token output of a chunk, in bytes, is kept below this.
const CHUNK_BYTES: usize = 128 << 20;

/// Runs all jobs.
///
/// The outputs stand in `options.out`. A file that can't be read to its end has none, and its report names the reason.
///
/// # Errors
/// When nothing could be run, or the run broke off; outputs that were finished stay.
pub fn run(
    jobs: Vec<Job>,
    options: &Options,
    observer: &mut dyn Observer,
    say: &dyn Fn(&str),
) -> Result<Report, RunError> {
    let started = Instant::now();
    check_folder(&options.out)?;
    let mut report = Report {
        seqembed: env!("CARGO_PKG_VERSION").to_owned(),
        device: "CPU".to_owned(),
        threads: options.threads,
        ..Report::default()
    };
    let groups = group(jobs, say)?;
    let mut runtime = None;
    let mut order = Vec::new();
    for group in groups {
        let positions = group.positions.clone();
        let result = group.run(options, started, &mut runtime, &mut report, observer);
        order.extend(positions);
        result?;
        if options.strict && report.files.iter().any(|file| file.error.is_some()) {
            break;
        }
    }
    // Groups ran one after the other; the report is in the order of the manifest.
    let mut files: Vec<(usize, FileReport)> = order.into_iter().zip(report.files).collect();
    files.sort_by_key(|(position, _)| *position);
    report.files = files.into_iter().map(|(_, file)| file).collect();
    report.totals.seconds = started.elapsed().as_secs_f64();
    report.totals.peak_memory_bytes = peak_memory();
    report.total();
    Ok(report)
}

/// Makes the output folder, and tries whether files can be made in it.
fn check_folder(folder: &Path) -> Result<(), RunError> {
    fs::create_dir_all(folder)
        .and_then(|()| tempfile::tempfile_in(folder))
        .map(drop)
        .map_err(|source| RunError::Folder {
            path: folder.to_owned(),
            source,
        })
}

/// Jobs that share a session.
struct Group {
    model: Arc<Model>,
    layer: usize,
    tokenizer: Arc<dyn Tokenizer>,
    tasks: Vec<Task>,
    /// The jobs' positions in the manifest.
    positions: Vec<usize>,
}

/// ONNX Runtime, once it is loaded.
struct Runtime {
    environment: Environment,
    located: Located,
}

/// A model that was opened, with its vocabulary.
#[derive(Clone)]
struct Opened {
    model: Arc<Model>,
    tokenizer: Arc<dyn Tokenizer>,
}

impl Opened {
    fn new(name: &str, say: &dyn Fn(&str)) -> Result<Self, RunError> {
        let model = Model::open(&models::resolve(name, say)?)?;
        let kind = model.info().tokenizer.kind.parse()?;
        Ok(Self {
            tokenizer: tokenize::open(model.folder(), kind)?.into(),
            model: Arc::new(model),
        })
    }

    /// How a job's long sequences are cut, if its options fit the model.
    fn window(&self, settings: &Settings) -> Result<Window, SettingsError> {
        let span = self.tokenizer.span();
        // The model's own limit counts tokens of one letter, or k-mers, of which a sequence has k - 1 fewer than bases.
        let limit = self.model.info().max_residues;
        let limit = limit.map_or(usize::MAX, |tokens| tokens + span - 1);
        let window = settings.window_of(limit)?;
        let Window { max_length, .. } = window;
        if max_length < span {
            return Err(SettingsError::Short { max_length, span });
        }
        if max_length > limit && matches!(self.model.architecture(), Architecture::Bert(_)) {
            return Err(SettingsError::Long { max_length, limit });
        }
        if settings.revcomp == Revcomp::Mean && self.tokenizer.alphabet() != Alphabet::Dna {
            return Err(SettingsError::NoStrands);
        }
        Ok(window)
    }
}

/// Opens every model that the jobs name, and puts the jobs that can share a session together.
fn group(jobs: Vec<Job>, say: &dyn Fn(&str)) -> Result<Vec<Group>, RunError> {
    let mut models: HashMap<String, Opened> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (position, job) in jobs.into_iter().enumerate() {
        let name = &job.settings.model;
        let opened = if let Some(opened) = models.get(name) {
            opened.clone()
        } else {
            let opened = Opened::new(name, say)?;
            models.insert(name.clone(), opened.clone());
            opened
        };
        let misfit = |source| RunError::Settings {
            sample: job.sample.clone(),
            source,
        };
        let layers = opened.model.architecture().layers();
        let layer = job.settings.layer_of(layers).map_err(misfit)?;
        let window = opened.window(&job.settings).map_err(misfit)?;
        let folder = opened.model.folder();
        let known = groups
            .iter()
            .position(|group| group.model.folder() == folder && group.layer == layer);
        let at = known.unwrap_or(groups.len());
        if known.is_none() {
            groups.push(Group {
                model: opened.model,
                tokenizer: opened.tokenizer,
                layer,
                tasks: Vec::new(),
                positions: Vec::new(),
            });
        }
        groups[at].tasks.push(Task { job, window });
        groups[at].positions.push(position);
    }
    Ok(groups)
}

impl Group {
    fn run(
        self,
        options: &Options,
        started: Instant,
        runtime: &mut Option<Runtime>,
        report: &mut Report,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let hidden = self.model.architecture().hidden();
        let limits = self.limits(options, hidden);
        let mut chunker = Chunker::new(&self.tasks, &*self.tokenizer, limits);
        // The first chunk tells whether there is anything to run, and whether there is enough for every core.
        let Some(first) = chunker.next() else {
            return Ok(());
        };
        let (graph, outputs) = self.graph(options)?;
        let layouts = self.layouts(options, &graph, hidden);
        let files = self.tasks.iter().map(|task| FileReport {
            sample: task.job.sample.clone(),
            source: task.job.source.to_string(),
            model: self.model.info().name.clone(),
            ..FileReport::default()
        });
        let mut collector = Collector::new(&self.tasks, layouts, files.collect(), hidden);

        let engine = if first.batches.is_empty() && chunker.is_done() {
            None
        } else {
            let workers = if chunker.is_done() {
                first.batches.len().clamp(1, options.threads)
            } else {
                options.threads
            };
            report.workers = report.workers.max(workers);
            let runtime = match runtime {
                Some(runtime) => runtime,
                None => runtime.insert(Runtime::load(options)?),
            };
            report.onnxruntime = Some(runtime.located.version.clone());
            let load_started = Instant::now();
            let engine = CpuEngine::load(
                &runtime.environment,
                Load {
                    graph: &graph,
                    folder: self.model.folder(),
                    kernels: options.kernels,
                    outputs,
                    hidden,
                    pad_id: self.tokenizer.special().pad.into(),
                    threads: (options.threads / workers).max(1),
                },
            )
            .map_err(|source| RunError::Load {
                folder: self.model.folder().to_owned(),
                source,
            })?;
            let info = self.model.info();
            report.loads.push(LoadReport {
                model: info.name.clone(),
                weights_sha256: info.weights_sha256.clone(),
                layer: self.layer,
                random_seed: info.random_seed,
                seconds: load_started.elapsed().as_secs_f64(),
            });
            Some((engine, workers))
        };
        let device_tokens = flow(
            chunker,
            first,
            engine
                .as_ref()
                .map(|(engine, workers)| (engine as &dyn Engine, *workers)),
            &*self.tokenizer,
            &mut collector,
            &mut report.totals.stages,
            observer,
            options.strict,
        );
        report.totals.stages.computing += collector.computing.as_secs_f64();
        report.totals.stages.writing += collector.writing.as_secs_f64();
        report.totals.batches += collector.batches;
        if report.totals.first_embedding_seconds.is_none() {
            report.totals.first_embedding_seconds =
                collector.first.map(|first| (first - started).as_secs_f64());
        }
        report.files.append(&mut collector.files);
        report.totals.device_tokens += device_tokens?;
        Ok(())
    }

    fn limits(&self, options: &Options, hidden: usize) -> Limits {
        let settings = || self.tasks.iter().map(|task| &task.job.settings);
        let batch_tokens = settings()
            .filter_map(|settings| settings.batch_tokens)
            .min()
            .unwrap_or(BATCH_TOKENS);
        let mut chunk_tokens = (batch_tokens * options.threads * 16).max(1 << 15);
        if settings().any(|settings| settings.pooling == Pooling::None) {
            chunk_tokens = chunk_tokens.min(CHUNK_BYTES / (4 * hidden));
        }
        Limits {
            chunk_tokens,
            batch_tokens,
            padded: options.kernels == Kernels::Portable,
        }
    }

    /// The graph with the outputs that the jobs need.
    fn graph(&self, options: &Options) -> Result<(Vec<u8>, Vec<Reduce>), RunError> {
        let mut outputs = Vec::new();
        for task in &self.tasks {
            if !outputs.contains(&task.reduce()) {
                outputs.push(task.reduce());
            }
        }
        let request = GraphRequest {
            kind: match options.kernels {
                Kernels::Auto => GraphKind::Packed,
                Kernels::Portable => GraphKind::Padded,
            },
            precision: seqembed_onnx::Precision::Fp32,
            layer: self.layer,
            outputs: outputs
                .iter()
                .map(|reduce| match reduce {
                    Reduce::Mean => seqembed_onnx::Output::Mean,
                    Reduce::Max => seqembed_onnx::Output::Max,
                    Reduce::Tokens => seqembed_onnx::Output::Tokens,
                })
                .collect(),
        };
        Ok((self.model.graph(&request)?, outputs))
    }

    fn layouts(&self, options: &Options, graph: &[u8], hidden: usize) -> Vec<Layout> {
        let graph_sha256 = hex(&Sha256::digest(graph));
        let layout = |task: &Task| {
            let settings = &task.job.settings;
            Layout {
                path: output_path(&options.out, &task.job.sample, settings.format.extension()),
                hidden,
                per_token: settings.pooling == Pooling::None,
                provenance: self.provenance(task, settings, &graph_sha256),
            }
        };
        self.tasks.iter().map(layout).collect()
    }

    fn provenance(&self, task: &Task, settings: &Settings, graph: &str) -> Vec<(String, String)> {
        let info = self.model.info();
        let mut facts = vec![
            ("seqembed", env!("CARGO_PKG_VERSION").to_owned()),
            ("model", info.name.clone()),
            ("weights_sha256", info.weights_sha256.clone()),
            ("graph_sha256", graph.to_owned()),
            ("precision", settings.precision.to_string()),
            ("device", "cpu".to_owned()),
            ("layer", self.layer.to_string()),
            ("pooling", settings.pooling.to_string()),
            ("long", settings.long.to_string()),
            ("max_length", task.window.max_length.to_string()),
            ("overlap", task.window.overlap.to_string()),
            ("unknown", settings.unknown.to_string()),
            ("revcomp", settings.revcomp.to_string()),
            ("source", source_name(task)),
        ];
        if let Some(seed) = info.random_seed {
            facts.push(("random_seed", seed.to_string()));
        }
        facts
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }
}

/// The input's file name: where it lay does not matter to what was computed.
fn source_name(task: &Task) -> String {
    match &task.job.source {
        crate::records::Source::Path(path) => path.file_name().map_or_else(
            || path.display().to_string(),
            |name| name.to_string_lossy().into_owned(),
        ),
        source @ crate::records::Source::Stdin => source.to_string(),
    }
}

impl Runtime {
    fn load(options: &Options) -> Result<Self, RunError> {
        let (builder, located) = locate::load(options.ort_lib.as_deref())?;
        let environment = builder.build().map_err(|error| RunError::Load {
            folder: located.path.clone(),
            source: error.into(),
        })?;
        Ok(Self {
            environment,
            located,
        })
    }
}

/// A batch on its way to a worker.
struct Work {
    chunk: Arc<Chunk>,
    batch: usize,
}

/// Chunks that are read ahead, at work, or waiting to be written.
const CHUNKS: usize = 3;

/// Runs the threads until every chunk is written. Returns the tokens that the device worked on.
#[allow(clippy::too_many_arguments)]
fn flow(
    mut chunker: Chunker,
    first: Chunk,
    engine: Option<(&dyn Engine, usize)>,
    tokenizer: &dyn Tokenizer,
    collector: &mut Collector,
    stages: &mut crate::report::Stages,
    observer: &mut dyn Observer,
    strict: bool,
) -> Result<u64, RunError> {
    let workers = engine.map_or(0, |(_, workers)| workers);
    let special = tokenizer.special();
    let stop = AtomicBool::new(false);
    let (work_sender, work) = bounded::<Work>(2 * workers.max(1));
    let (message_sender, messages) = unbounded::<Message>();
    let (permit_sender, permits) = bounded::<()>(CHUNKS);
    std::thread::scope(|scope| {
        let reader = {
            let message_sender = message_sender.clone();
            let stop = &stop;
            scope.spawn(move || {
                let mut next = Some(first);
                while let Some(chunk) = next.take() {
                    if permit_sender.send(()).is_err() || stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let chunk = Arc::new(chunk);
                    if message_sender
                        .send(Message::Chunk(Arc::clone(&chunk)))
                        .is_err()
                    {
                        break;
                    }
                    for batch in 0..chunk.batches.len() {
                        let chunk = Arc::clone(&chunk);
                        if work_sender.send(Work { chunk, batch }).is_err() {
                            break;
                        }
                    }
                    drop(chunk);
                    next = chunker.next();
                }
                (chunker.reading, chunker.tokenizing)
            })
        };
        let mut handles = Vec::new();
        if let Some((engine, workers)) = engine {
            for _ in 0..workers {
                let (work, messages) = (work.clone(), message_sender.clone());
                let stop = &stop;
                handles.push(scope.spawn(move || worker(engine, &work, &messages, special, stop)));
            }
        }
        drop((work, message_sender));
        let result = gather(collector, &messages, &permits, observer, strict);
        stop.store(true, Ordering::Relaxed);
        // Whoever waits for room goes on, and finds that nobody listens.
        drop((messages, permits));
        let (reading, tokenizing): (Duration, Duration) = reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        stages.reading += reading.as_secs_f64();
        stages.tokenizing += tokenizing.as_secs_f64();
        let tokens = handles
            .into_iter()
            .map(|handle| {
                handle
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .sum();
        result.map(|()| tokens)
    })
}

/// Takes what returns until there is no more.
fn gather(
    collector: &mut Collector,
    messages: &Receiver<Message>,
    permits: &Receiver<()>,
    observer: &mut dyn Observer,
    strict: bool,
) -> Result<(), RunError> {
    for message in messages {
        for _ in 0..collector.take(message, observer)? {
            // A chunk left: another one may come in.
            let _ = permits.recv();
        }
        if strict && collector.any_failed() {
            break;
        }
    }
    Ok(())
}

/// Runs batches until there are no more. Returns the tokens that the device worked on.
fn worker(
    engine: &dyn Engine,
    work: &Receiver<Work>,
    messages: &Sender<Message>,
    special: crate::tokenize::Special,
    stop: &AtomicBool,
) -> u64 {
    let mut tokens = 0;
    for Work {
        chunk,
        batch: index,
    } in work
    {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let batch = chunk.batch(index, special);
        tokens += engine.cost(&batch) as u64;
        let started = Instant::now();
        let rows = engine.run(&batch, chunk.reduce(index));
        let done = Done {
            chunk: chunk.number,
            batch: index,
            rows,
            elapsed: started.elapsed(),
        };
        if messages.send(Message::Done(done)).is_err() {
            break;
        }
    }
    tokens
}

/// The most memory that this process held, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
