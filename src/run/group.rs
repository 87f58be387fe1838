//! Files that share a model, a layer and a precision: opening the model, loading it onto the devices, and running them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use seqembed_onnx::{Architecture, Model};
use serde_json::json;

use super::chunk::Chunk;
use super::chunker::{ChunkLimits, Chunker};
use super::collect::{Collector, output_path};
use super::dedup::Dedup;
use super::loaded_device::Slot;
use super::pipeline::{self, Pipeline};
use super::record_parts::PartTokens;
use super::resume::Journaled;
use super::task::Task;
use super::{Held, Observer, Options, RunError, Shared};
use crate::device::Device;
use crate::engine::Reduce;
use crate::engine::cpu::session::Kernels;
use crate::engine::cuda::{budget, permits};
use crate::engine::fault_injection::Faults;
use crate::engine::loader::{self as load, Loader, Program, Runtime, Wanted};
use crate::engine::select::{self as devices, Place};
use crate::engine::session::{Facts, Session};
use crate::manifest::Job;
use crate::models;
use crate::output::{Layout, Sink};
use crate::records::Record;
use crate::report::{DeviceReport, FileReport, LoadReport, Report};
use crate::settings::{Precision, Revcomp, Settings, SettingsError, WindowSize};
use crate::threads;
use crate::tokenize::{self, Alphabet, Tokenizer};
use crate::trace::{Lane, Trace};

/// Tokens of a batch on a CPU, unless the settings say otherwise: enough for dense products at full speed, and little
/// enough that a layer's activations stay in the cache.
const BATCH_TOKENS: usize = 512;

/// Per-token output of a chunk, in bytes, is kept below this.
const CHUNK_BYTES: usize = 128 << 20;

/// The same where GPUs compute, whose batches are larger.
const GPU_CHUNK_BYTES: usize = 1 << 30;

/// Bytes of vectors in a part of a long record whose tokens have a vector each. What is saved of a record is known by its
/// parts, so another size makes what an earlier release saved useless.
const PART_BYTES: usize = 8 << 20;

/// Tokens in a part of a long record that is pooled.
const PART_TOKENS: usize = 1 << 15;

/// Batches of a chunk for each GPU.
const BATCHES_AHEAD: usize = 16;

/// Jobs that share a session.
pub(crate) struct Group {
    pub(crate) model: Arc<Model>,
    pub(crate) layer: usize,
    /// The numbers that are computed with, decided.
    pub(crate) precision: Precision,
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
    pub(crate) tasks: Vec<Task>,
    /// The jobs' positions in the manifest.
    pub(crate) positions: Vec<usize>,
    /// Records that stand in for the only job's file, and where their rows go instead of its output.
    pub(crate) given: Option<(Vec<Record>, Box<dyn Sink>)>,
}

/// A model that was opened, with its vocabulary.
#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) model: Arc<Model>,
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
}

impl Opened {
    pub(crate) fn new(name: &str, say: &dyn Fn(&str)) -> Result<Self, RunError> {
        let model = Model::open(&models::resolve(name, say)?)?;
        let kind = model.info().tokenizer.kind.parse()?;
        Ok(Self {
            tokenizer: tokenize::open(model.folder(), kind)?.into(),
            model: Arc::new(model),
        })
    }

    /// The numbers that are computed with. Of its own accord no GPU gets fp16 for a model with weights that are too large for it.
    pub(crate) fn precision(
        &self,
        asked: Precision,
        device: Device,
        kernels: Kernels,
        say: &dyn Fn(&str),
    ) -> Result<Precision, RunError> {
        let precision = asked.on(device != Device::Cpu);
        if (asked, precision) == (Precision::Auto, Precision::Fp16) {
            let half = load::half_storage(&self.model, device, kernels);
            match self.model.weights_in(half, &models::cache()) {
                Err(error @ seqembed_onnx::Error::Overflow { .. }) => {
                    say(&format!("fp32 is used: {error}"));
                    return Ok(Precision::Fp32);
                }
                other => drop(other?),
            }
        }
        Ok(precision)
    }

    /// How a job's long sequences are cut, if its options fit the model.
    pub(crate) fn window(&self, settings: &Settings) -> Result<WindowSize, SettingsError> {
        let span = self.tokenizer.span();
        // The model's own limit counts tokens of one letter, or k-mers, of which a sequence has k - 1 fewer than bases.
        let limit = self.model.info().max_residues;
        let limit = limit.map_or(usize::MAX, |tokens| tokens + span - 1);
        let window = settings.window_of(limit)?;
        let WindowSize { max_length, .. } = window;
        if max_length < span {
            return Err(SettingsError::Short { max_length, span });
        }
        if max_length > limit && matches!(self.model.architecture(), Architecture::Bert(_)) {
            return Err(SettingsError::Long { max_length, limit });
        }
        settings.check_pooling(self.tokenizer.special())?;
        if settings.revcomp == Revcomp::Mean && self.tokenizer.alphabet() != Alphabet::Dna {
            return Err(SettingsError::NoStrands);
        }
        Ok(window)
    }
}

/// Opens every model that the jobs name, and puts the jobs that can share a session together, unless each is to have its own.
pub(super) fn group(
    jobs: Vec<Job>,
    options: &Options,
    places: &[Place],
    say: &dyn Fn(&str),
) -> Result<Vec<Group>, RunError> {
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
        for place in places {
            let asked = job.settings.precision;
            devices::check_precision(asked, place, options.kernels).map_err(|why| {
                misfit(SettingsError::Precision {
                    precision: asked,
                    device: place.device.to_string(),
                    why,
                })
            })?;
        }
        let precision = opened.precision(
            job.settings.precision,
            places[0].device,
            options.kernels,
            say,
        )?;
        let folder = opened.model.folder();
        let known = groups.iter().position(|group| {
            !options.reload_per_file
                && group.model.folder() == folder
                && group.layer == layer
                && group.precision == precision
        });
        let at = known.unwrap_or(groups.len());
        if known.is_none() {
            groups.push(Group {
                model: opened.model,
                tokenizer: opened.tokenizer,
                layer,
                precision,
                tasks: Vec::new(),
                positions: Vec::new(),
                given: None,
            });
        }
        groups[at].tasks.push(Task { job, window });
        groups[at].positions.push(position);
    }
    Ok(groups)
}

impl Group {
    /// Runs the group's jobs. Devices that are lost on the way leave `places`. Without `journaled`, nothing is kept to be gone on
    /// with.
    // What the stages of a run share.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn run(
        mut self,
        shared: &Shared,
        journaled: Option<Journaled>,
        places: &mut Vec<Place>,
        runtime: &mut Runtime,
        held: &mut Held,
        report: &mut Report,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let options = shared.options;
        let hidden = self.model.architecture().hidden();
        let limits = self.limits(options, places, hidden);
        let (records, sink) = self.given.take().unzip();
        let mut chunker = Chunker::new(&self.tasks, &*self.tokenizer, limits);
        if let Some(records) = records {
            chunker.give(records);
        }
        let journaled = journaled.unwrap_or_else(|| Journaled::none(self.file_reports()));
        chunker.resume(Arc::clone(&journaled.saved));
        if !options.no_dedup {
            chunker.share(Dedup::new(hidden));
        }
        // The first chunk tells whether there is anything to run, and whether there is enough for every core.
        let reading = Instant::now();
        let Some(first) = first_chunk(&mut chunker, places, runtime, held)? else {
            return Ok(());
        };
        pipeline::trace_chunk(
            shared.trace,
            reading,
            (chunker.reading, chunker.tokenizing),
            &first,
        );
        let nothing = first.batches.is_empty() && chunker.is_done();
        let before = report.loads.len();
        if held.keeps && held.session.is_none() && !nothing {
            held.session = Some(self.session(shared, &places[0], runtime, report)?);
        }
        let outputs = self.outputs();
        let wanted = self.wanted(options, &outputs);
        let programs = if held.session.is_some() {
            Vec::new()
        } else {
            self.programs(wanted, journaled.program, places, shared.say)?
        };
        // A session that stays has one thread for a batch: what follows may be more than this.
        let workers = if chunker.is_done() && !held.keeps {
            first.batches.len().clamp(1, options.threads)
        } else {
            options.threads
        };
        let loader = if nothing {
            None
        } else {
            let threads = (options.threads / workers).max(1);
            Some(self.loader(wanted, shared.faults, threads, runtime, report)?)
        };
        let slots = match (&loader, &held.session) {
            (Some(loader), Some(session)) => {
                let load = report.loads[before..].iter().map(|load| load.seconds).sum();
                let load = Duration::from_secs_f64(load);
                vec![Self::held_slot(loader, places, workers, session, load)]
            }
            (Some(loader), None) => {
                let slots = self.slots(loader, places, workers, &programs, shared.trace)?;
                report.loads.extend(slots.iter().map(|slot| {
                    self.load_report(slot.place.device, self.precision, slot.load.as_secs_f64())
                }));
                slots
            }
            (None, _) => Vec::new(),
        };
        let facts = slots.first().map(|slot| slot.session.facts());
        let computed = Computed::of(facts, programs.first(), places[0].device, self.precision);
        let layouts = self.layouts(options, &computed);
        let mut collector = Collector::new(
            &self.tasks,
            layouts,
            journaled.files,
            hidden,
            journaled.saver,
            journaled.saved,
        );
        collector.budget = limits.batch_tokens;
        collector.sessions = slots.iter().map(|slot| Arc::clone(&slot.session)).collect();
        collector.interrupt = options.interrupt.clone();
        if let Some(sink) = sink {
            collector.give(sink);
        }
        let at_once = slots.iter().map(|slot| slot.workers).sum();
        report.workers = report.workers.max(at_once);

        let pipeline = self.pipeline(shared, &slots, hidden);
        let result = pipeline.run(
            chunker,
            first,
            &mut collector,
            &mut report.totals.stages,
            observer,
        );
        report.totals.filled(limits.batch_tokens, &collector.fill);
        self.account(&slots, &collector, shared.started, report);
        places.retain(|place| {
            let lost = |slot: &Slot| slot.place == *place && slot.lost().is_some();
            !slots.iter().any(lost)
        });
        result?;
        report.files.append(&mut collector.files);
        Ok(())
    }

    /// What each device is to run, of which the first one's may be `known`.
    fn programs(
        &self,
        wanted: Wanted,
        mut known: Option<Program>,
        places: &[Place],
        say: &dyn Fn(&str),
    ) -> Result<Vec<Program>, RunError> {
        let programs = places.iter().map(|place| match known.take() {
            Some(first) => Ok(first),
            None => wanted.program(place.device, self.precision, say),
        });
        programs.collect()
    }

    fn pipeline<'f>(
        &'f self,
        shared: &'f Shared,
        slots: &'f [Slot<'f>],
        hidden: usize,
    ) -> Pipeline<'f> {
        let longest = self.model.info().max_residues;
        Pipeline {
            slots,
            tasks: &self.tasks,
            tokenizer: &*self.tokenizer,
            model_limit: longest.map(|tokens| tokens + self.tokenizer.span() - 1),
            hidden,
            strict: shared.options.strict,
            trace: shared.trace,
            interrupt: &shared.options.interrupt,
        }
    }

    /// What is told of each file, before anything is done.
    fn file_reports(&self) -> Vec<FileReport> {
        let reports = self.tasks.iter().map(|task| FileReport {
            sample: task.job.sample.clone(),
            source: task.job.source.to_string(),
            model: self.model.info().name.clone(),
            ..FileReport::default()
        });
        reports.collect()
    }

    /// Adds what the devices did, and what the collector saw, to the report.
    fn account(
        &self,
        slots: &[Slot],
        collector: &Collector,
        started: Instant,
        report: &mut Report,
    ) {
        report.totals.stages.computing += collector.computing.as_secs_f64();
        report.totals.stages.writing += collector.writing.as_secs_f64();
        report.totals.batches += collector.batches;
        if report.totals.first_embedding_seconds.is_none() {
            report.totals.first_embedding_seconds =
                collector.first.map(|first| (first - started).as_secs_f64());
        }
        for slot in slots {
            report.totals.device_tokens += slot.tokens();
            slot.report(device_report(report, slot));
            for seconds in slot.higher_loads() {
                let load = self.load_report(slot.place.device, Precision::Fp32, seconds);
                report.loads.push(load);
            }
        }
    }

    /// The session that is held, as a device. `load`: how long it took in this run.
    fn held_slot<'s>(
        loader: &'s Loader<'s>,
        places: &[Place],
        workers: usize,
        session: &Arc<dyn Session>,
        load: Duration,
    ) -> Slot<'s> {
        let precision = session.facts().precision;
        let mut slot = loader.slot(&places[0], 0, precision, Arc::clone(session), load);
        slot.workers = workers_on(places[0].device, workers, 1, loader.wanted.model);
        slot
    }

    /// Loads a session for whatever follows.
    pub(crate) fn session(
        &self,
        shared: &Shared,
        place: &Place,
        runtime: &mut Runtime,
        report: &mut Report,
    ) -> Result<Arc<dyn Session>, RunError> {
        let outputs = self.outputs();
        let wanted = self.wanted(shared.options, &outputs);
        let program = wanted.program(place.device, self.precision, shared.say)?;
        let loader = self.loader(wanted, shared.faults, 1, runtime, report)?;
        let started = Instant::now();
        let session = loader.engine_on(&program)?;
        let seconds = (program.spent + started.elapsed()).as_secs_f64();
        let precision = session.facts().precision;
        report
            .loads
            .push(self.load_report(place.device, precision, seconds));
        Ok(session)
    }

    pub(super) fn wanted<'w>(&'w self, options: &Options, outputs: &'w [Reduce]) -> Wanted<'w> {
        Wanted {
            model: &self.model,
            layer: self.layer,
            outputs,
            kernels: options.kernels,
        }
    }

    fn loader<'w>(
        &self,
        wanted: Wanted<'w>,
        faults: Option<Faults>,
        threads: usize,
        runtime: &mut Runtime,
        report: &mut Report,
    ) -> Result<Loader<'w>, RunError> {
        let environment = runtime.environment()?.clone();
        report.onnxruntime = Some(runtime.locate()?.version.clone());
        Ok(Loader {
            environment,
            wanted,
            pad_id: self.tokenizer.special().pad.into(),
            threads,
            faults,
        })
    }

    /// The model on every device.
    fn slots<'s>(
        &self,
        loader: &'s Loader<'s>,
        places: &[Place],
        workers: usize,
        programs: &[Program],
        trace: &Trace,
    ) -> Result<Vec<Slot<'s>>, RunError> {
        let mut slots = Vec::with_capacity(places.len());
        for (index, (place, program)) in places.iter().zip(programs).enumerate() {
            let started = Instant::now();
            let session = loader.engine_on(program)?;
            let load = program.spent + started.elapsed();
            let mut slot = loader.slot(place, index, self.precision, session, load);
            slot.workers = workers_on(place.device, workers, places.len(), &self.model);
            let lane = Lane {
                group: slot.label.clone(),
                name: "loading".to_owned(),
            };
            trace.span(
                &lane,
                "loading",
                started,
                Instant::now(),
                || json!({"model": self.model.info().name}),
            );
            slots.push(slot);
        }
        Ok(slots)
    }

    fn load_report(&self, device: Device, precision: Precision, seconds: f64) -> LoadReport {
        let info = self.model.info();
        LoadReport {
            model: info.name.clone(),
            weights_sha256: info.weights_sha256.clone(),
            layer: self.layer,
            random_seed: info.random_seed,
            device: device.to_string(),
            precision: precision.to_string(),
            seconds,
        }
    }

    fn limits(&self, options: &Options, places: &[Place], hidden: usize) -> ChunkLimits {
        let settings = || self.tasks.iter().map(|task| &task.job.settings);
        let asked = settings()
            .filter_map(|settings| settings.batch_tokens)
            .min();
        let per_token = settings().any(|settings| settings.pooling.is_per_token());
        let part_tokens = PartTokens {
            pooled: PART_TOKENS,
            each: (PART_BYTES / (4 * hidden).max(1)).max(1),
        };
        let free = places.iter().filter_map(|place| place.gpu.as_ref());
        let limits = if let Some(free) = free.map(|(_, free)| *free).min() {
            let bytes = self.precision.bytes();
            let batch_tokens = asked.unwrap_or_else(|| {
                let weights = self.model.weights_bytes() / 4 * bytes as u64;
                let sizes = self.model.architecture().sizes();
                budget::batch_tokens(free, weights, &sizes, bytes)
            });
            // The more batches in a chunk, the fewer are cut short at its end; and none of the devices must wait for the next.
            let mut chunk_tokens = batch_tokens * places.len() * BATCHES_AHEAD;
            if per_token {
                chunk_tokens = chunk_tokens.min(GPU_CHUNK_BYTES / (4 * hidden));
            }
            ChunkLimits {
                chunk_tokens,
                batch_tokens,
                padded: false,
                part_tokens,
            }
        } else {
            let batch_tokens = asked.unwrap_or(BATCH_TOKENS);
            let mut chunk_tokens = (batch_tokens * options.threads * 16).max(1 << 15);
            if per_token {
                chunk_tokens = chunk_tokens.min(CHUNK_BYTES / (4 * hidden));
            }
            ChunkLimits {
                chunk_tokens,
                batch_tokens,
                padded: options.kernels == Kernels::Portable,
                part_tokens,
            }
        };
        ChunkLimits {
            chunk_tokens: limits.chunk_tokens.max(1),
            ..limits
        }
    }

    /// The outputs of the graph that the jobs need.
    pub(super) fn outputs(&self) -> Vec<Reduce> {
        let mut outputs = Vec::new();
        for task in &self.tasks {
            if !outputs.contains(&task.reduce()) {
                outputs.push(task.reduce());
            }
        }
        outputs
    }

    pub(super) fn layouts(&self, options: &Options, computed: &Computed) -> Vec<Layout> {
        let layout = |task: &Task| {
            let settings = &task.job.settings;
            Layout {
                path: output_path(&options.out, &task.job.sample, settings.format.extension()),
                hidden: self.model.architecture().hidden(),
                per_token: settings.pooling.is_per_token(),
                precision: settings.output_precision,
                provenance: self.provenance(task, computed),
            }
        };
        self.tasks.iter().map(layout).collect()
    }

    fn provenance(&self, task: &Task, computed: &Computed) -> Vec<(String, String)> {
        let settings = &task.job.settings;
        let info = self.model.info();
        let mut facts = vec![
            ("seqembed", env!("CARGO_PKG_VERSION").to_owned()),
            ("model", info.name.clone()),
            ("weights_sha256", info.weights_sha256.clone()),
            ("graph_sha256", computed.graph_sha256.clone()),
            ("precision", computed.precision.to_string()),
            ("output_precision", settings.output_precision.to_string()),
            ("device", kind(computed.device).to_owned()),
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

/// What the numbers of an output come from.
pub(super) struct Computed {
    device: Device,
    precision: Precision,
    graph_sha256: String,
}

impl Computed {
    /// What was loaded tells of itself; where nothing was, there are no numbers, and the plan is all there is to tell.
    pub(super) fn of(
        loaded: Option<&Facts>,
        program: Option<&Program>,
        device: Device,
        precision: Precision,
    ) -> Self {
        if let Some(facts) = loaded {
            return Self {
                device: facts.device,
                precision: facts.precision,
                graph_sha256: facts.graph_sha256.clone(),
            };
        }
        Self {
            device,
            precision,
            graph_sha256: program
                .map(|program| program.graph_sha256.clone())
                .unwrap_or_default(),
        }
    }
}

/// The first chunk. Where a model is to be loaded onto a GPU, ONNX Runtime was found already, and starts meanwhile.
fn first_chunk(
    chunker: &mut Chunker,
    places: &[Place],
    runtime: &mut Runtime,
    held: &Held,
) -> Result<Option<Chunk>, RunError> {
    let starts = held.session.is_none() && places.iter().any(|place| place.gpu.is_some());
    std::thread::scope(|scope| {
        let starting = if starts {
            Some(threads::start(scope, || runtime.environment().map(drop))?)
        } else {
            None
        };
        let first = chunker.next();
        if let Some(starting) = starting {
            let started = starting.join();
            started.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(first)
    })
}

/// Threads that feed one of so many devices.
fn workers_on(device: Device, threads: usize, devices: usize, model: &Model) -> usize {
    match device {
        Device::Cpu => (threads / devices).max(1),
        // While the GPU computes, one takes the rows of the last batch and prepares the next.
        Device::Cuda(_) => 1 + permits::at_once(&model.architecture().sizes()),
    }
}

/// The input's file name: where it lay does not matter to what was computed.
fn source_name(task: &Task) -> String {
    match &task.job.source {
        crate::records::Source::Path(path) => {
            crate::text::lossless_name(path.file_name().unwrap_or(path.as_os_str()))
        }
        source @ crate::records::Source::Stdin => source.to_string(),
    }
}

/// A kind of device, as an output's provenance has it: which of several GPUs did it is chance.
fn kind(device: Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
    }
}

/// The report of a slot's device.
fn device_report<'r>(report: &'r mut Report, slot: &Slot) -> &'r mut DeviceReport {
    let device = slot.place.device.to_string();
    let precision = slot.precision.to_string();
    let name = &slot.place.name;
    let known = report.devices.iter().position(|other| {
        other.device == device && other.name == *name && other.precision == precision
    });
    let at = known.unwrap_or_else(|| {
        report.devices.push(DeviceReport {
            device,
            name: name.clone(),
            precision,
            ..DeviceReport::default()
        });
        report.devices.len() - 1
    });
    &mut report.devices[at]
}
