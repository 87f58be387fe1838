//! Contacts of residues, as the contact head of ESM-2 and ESM-1b predicts them from attention maps:
//! for each sequence, a matrix with the probability of each pair. `seqembed contacts` uses it.
//!
//! A sequence is computed whole, since windows would leave out the contacts between them: longer
//! ones than the model was trained for are skipped, and their status says so.

mod chunk;
mod compute;
mod error;
mod files;
mod pairs;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

pub use self::error::ContactsError;
pub use self::files::{ContactsFormat, ContactsOutputs, PairChoice};
pub use self::pairs::Top;

use self::chunk::{Chunk, Chunks, ContactRecord, Entry};
use self::files::{OpenFiles, output_path, table_path};
use crate::device::{Device, DeviceChoice};
use crate::engine::loader::{GraphSpec, Loader};
use crate::engine::runtime::Runtime;
use crate::engine::session::Session;
use crate::interrupt::Interrupt;
use crate::manifest::Job;
use crate::output::{Layout, OutputPrecision};
use crate::report::{DeviceReport, FileReport, Report};
use crate::run::{
    self, FileEnd, Observer, OpenedModel, REPORT, Replaced, RunError, SavedCounts, Task,
};
use crate::settings::{Kernels, Layers, Precision};
use crate::targets::Targets;

/// Tokens of a batch, as for embeddings on a CPU.
const BATCH_TOKENS: usize = 512;

/// How contacts are predicted.
#[derive(Debug, Clone)]
pub struct ContactsOptions {
    /// The output folder.
    pub out: PathBuf,
    /// The manifest that the jobs come from, if there is one.
    pub manifest: Option<PathBuf>,
    /// The files of each input.
    pub outputs: ContactsOutputs,
    /// Threads in all.
    pub threads: usize,
    /// ONNX Runtime's library, where it is named.
    pub ort_lib: Option<PathBuf>,
    /// The kernels to run with.
    pub kernels: Kernels,
    /// The device to run on.
    pub device: DeviceChoice,
    /// Stop at the first file that fails.
    pub strict: bool,
    /// Asks the run to stop.
    pub interrupt: Interrupt,
}

/// Predicts the contacts of all jobs' records, and writes them to `options.out`.
///
/// # Errors
/// When nothing could be run, or the run broke off. Finished outputs stay.
pub fn run(
    jobs: Vec<Job>,
    options: &ContactsOptions,
    observer: &mut dyn Observer,
    say: &dyn Fn(&str),
) -> Result<Report, ContactsError> {
    let started = Instant::now();
    check_device(options)?;
    run::check_folder(&options.out)?;
    check_targets(&jobs, options)?;
    let mut report = Report {
        seqembed: env!("CARGO_PKG_VERSION").to_owned(),
        threads: options.threads,
        device: "CPU".to_owned(),
        device_why: "contacts are predicted on the CPU".to_owned(),
        ..Report::default()
    };
    let groups = groups(jobs, say)?;
    let mut runtime = Runtime::new(options.ort_lib.as_deref());
    report.totals.start_seconds = started.elapsed().as_secs_f64();
    let mut files: Vec<(usize, FileReport)> = Vec::new();
    for group in groups {
        let work = Work {
            group: &group,
            options,
            observer: &mut *observer,
            say,
            report: &mut report,
            files: group.reports(),
            open: None,
        };
        files.extend(work.run(&mut runtime)?);
        if options.strict && files.iter().any(|(_, file)| file.error.is_some()) {
            break;
        }
    }
    files.sort_by_key(|(position, _)| *position);
    report.files = files.into_iter().map(|(_, file)| file).collect();
    run::ended(&mut report, started);
    Ok(report)
}

fn check_device(options: &ContactsOptions) -> Result<(), ContactsError> {
    if options.kernels == Kernels::Portable {
        return Err(ContactsError::Kernels);
    }
    match &options.device {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(()),
        choice @ (DeviceChoice::Cuda(_) | DeviceChoice::CudaAll) => Err(ContactsError::Device {
            choice: choice.to_string(),
        }),
    }
}

/// Checks that nothing that will be written is what is read.
fn check_targets(jobs: &[Job], options: &ContactsOptions) -> Result<(), ContactsError> {
    let mut targets = Targets::default();
    if let Some(manifest) = &options.manifest {
        targets.reads("the manifest", manifest);
    }
    for job in jobs {
        if let crate::records::Source::Path(path) = &job.source {
            targets.reads("an input", path);
        }
        targets.reads_model(&job.settings.model);
    }
    for job in jobs {
        let path = output_path(&options.out, &job.sample, options.outputs.format.into());
        targets.writes("an output", &path).map_err(RunError::from)?;
        if options.outputs.pairs.is_some() {
            let path = table_path(&options.out, &job.sample);
            targets
                .writes("a table of pairs", &path)
                .map_err(RunError::from)?;
        }
    }
    let report = options.out.join(REPORT);
    Ok(targets
        .writes("the report", &report)
        .map_err(RunError::from)?)
}

/// The jobs of one model.
struct Group {
    opened: OpenedModel,
    tasks: Vec<Task>,
    /// The place of each task in the order of the jobs.
    positions: Vec<usize>,
}

/// Opens the models, and puts each job to its model.
fn groups(jobs: Vec<Job>, say: &dyn Fn(&str)) -> Result<Vec<Group>, ContactsError> {
    let mut groups: Vec<(String, Group)> = Vec::new();
    for (position, job) in jobs.into_iter().enumerate() {
        let name = job.settings.model.clone();
        let known = groups.iter().position(|(known, _)| *known == name);
        let at = known.unwrap_or(groups.len());
        if known.is_none() {
            let opened = OpenedModel::open(&name, say)?;
            opened.model.contact_head().map_err(RunError::from)?;
            let group = Group {
                opened,
                tasks: Vec::new(),
                positions: Vec::new(),
            };
            groups.push((name, group));
        }
        let group = &mut groups[at].1;
        let window = group
            .opened
            .window(&job.settings)
            .map_err(|source| RunError::Settings {
                sample: job.sample.clone(),
                source,
            })?;
        let max_tokens = group.opened.max_tokens(window);
        group.tasks.push(Task {
            job,
            window,
            max_tokens,
            spans: None,
        });
        group.positions.push(position);
    }
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

impl Group {
    /// A report for each file, before anything was done with it.
    fn reports(&self) -> Vec<FileReport> {
        let tasks = self.tasks.iter();
        tasks
            .map(|task| FileReport {
                sample: task.job.sample.clone(),
                source: task.job.source.to_string(),
                model: self.opened.model.info().name.clone(),
                ..FileReport::default()
            })
            .collect()
    }
}

/// The work on a group's files.
struct Work<'a> {
    group: &'a Group,
    options: &'a ContactsOptions,
    observer: &'a mut dyn Observer,
    say: &'a dyn Fn(&str),
    report: &'a mut Report,
    files: Vec<FileReport>,
    /// The files of the task that is being written.
    open: Option<(usize, OpenFiles)>,
}

/// What a chunk is computed with.
struct Loaded {
    session: Arc<dyn Session>,
    workers: usize,
}

impl Work<'_> {
    /// Returns the reports of the files, with their places.
    fn run(mut self, runtime: &mut Runtime) -> Result<Vec<(usize, FileReport)>, ContactsError> {
        let tasks = &self.group.tasks;
        let asked = tasks.iter().filter_map(|t| t.job.settings.batch_tokens);
        let budget = asked.min().unwrap_or(BATCH_TOKENS);
        let mut chunks = Chunks::new(tasks, &*self.group.opened.tokenizer, budget);
        let mut loaded: Option<Loaded> = None;
        while let Some(chunk) = chunks.next() {
            if loaded.is_none() && !chunk.batches.is_empty() {
                // With fewer batches than threads, each gets several.
                let workers = if chunks.reader.is_done() {
                    chunk.batches.len().clamp(1, self.options.threads)
                } else {
                    self.options.threads
                };
                loaded = Some(self.load(runtime, workers)?);
            }
            let computed = match &loaded {
                Some(loaded) => self.compute(loaded, &chunk)?,
                None => Vec::new(),
            };
            self.write(chunk, computed, loaded.as_ref(), chunks.reader.bytes())?;
            if self.options.strict && self.files.iter().any(|file| file.error.is_some()) {
                break;
            }
        }
        let positions = self.group.positions.iter().copied();
        Ok(positions.zip(self.files).collect())
    }

    fn load(&mut self, runtime: &mut Runtime, workers: usize) -> Result<Loaded, ContactsError> {
        let started = Instant::now();
        let model = &self.group.opened.model;
        let environment = runtime.environment().map_err(RunError::from)?.clone();
        self.report.onnxruntime = runtime.version().map(str::to_owned);
        let layers = Layers::from(model.architecture().layers());
        let spec = GraphSpec {
            model,
            layers: &layers,
            outputs: &[],
            kernels: self.options.kernels,
            head: None,
            contacts: true,
        };
        let prepared = spec
            .prepare(Device::Cpu, Precision::Fp32, self.say)
            .map_err(RunError::from)?;
        let loader = Loader {
            environment,
            spec,
            pad_id: self.group.opened.tokenizer.special().pad.into(),
            threads: (self.options.threads / workers).max(1),
            faults: None,
        };
        let session = loader.load(&prepared).map_err(RunError::from)?;
        self.report.workers = self.report.workers.max(workers);
        let seconds = started.elapsed().as_secs_f64();
        let load = run::load_report(model, &layers, Device::Cpu, Precision::Fp32, seconds);
        self.report.loads.push(load);
        Ok(Loaded { session, workers })
    }

    /// The contacts of a chunk's inputs.
    fn compute(&mut self, loaded: &Loaded, chunk: &Chunk) -> Result<Vec<Vec<f32>>, ContactsError> {
        let started = Instant::now();
        let special = self.group.opened.tokenizer.special();
        let engine = compute::Compute {
            engine: &*loaded.session,
            special,
            interrupt: &self.options.interrupt,
            workers: loaded.workers,
        };
        let computed = engine.chunk(chunk)?;
        if let Some(signal) = self.options.interrupt.signal() {
            return Err(ContactsError::Run(RunError::Interrupted {
                signal,
                saved: SavedCounts::default(),
            }));
        }
        let seconds = started.elapsed().as_secs_f64();
        let tokens: usize = chunk.inputs.iter().map(|input| input.tokens).sum();
        let totals = &mut self.report.totals;
        totals.batches += chunk.batches.len() as u64;
        totals.device_tokens += tokens as u64;
        totals.stages.computing += seconds;
        if self.report.devices.is_empty() {
            self.report.devices.push(DeviceReport {
                device: Device::Cpu.to_string(),
                name: "CPU".to_owned(),
                precision: Precision::Fp32.to_string(),
                loads: 1,
                ..DeviceReport::default()
            });
        }
        let device = &mut self.report.devices[0];
        device.batches += chunk.batches.len() as u64;
        device.tokens += tokens as u64;
        device.computing_seconds += seconds;
        device.wall_seconds += seconds;
        Ok(computed)
    }

    /// Writes a chunk's records, in their order.
    fn write(
        &mut self,
        chunk: Chunk,
        mut computed: Vec<Vec<f32>>,
        loaded: Option<&Loaded>,
        bytes: u64,
    ) -> Result<(), ContactsError> {
        let started = Instant::now();
        let (mut sequences, mut tokens, mut ended) = (0, 0, 0);
        for entry in chunk.entries {
            match entry {
                Entry::Record(task, record) => {
                    let mut values = Vec::new();
                    if let Some(input) = record.input {
                        tokens += chunk.inputs[input].tokens as u64;
                        self.files[task].tokens += chunk.inputs[input].tokens as u64;
                        values = std::mem::take(&mut computed[input]);
                    }
                    sequences += 1;
                    self.record(task, record, values, loaded)?;
                }
                Entry::Forbidden(task, why) => self.fail(task, why),
                Entry::End(end) => {
                    self.end(end, loaded)?;
                    ended += 1;
                }
            }
        }
        self.report.totals.stages.writing += started.elapsed().as_secs_f64();
        self.observer.advanced(sequences, tokens, bytes, ended);
        Ok(())
    }

    fn record(
        &mut self,
        task: usize,
        mut record: ContactRecord,
        mut values: Vec<f32>,
        loaded: Option<&Loaded>,
    ) -> Result<(), ContactsError> {
        if self.files[task].error.is_some() {
            return Ok(());
        }
        let has_failed = !values.iter().all(|value| value.is_finite());
        if has_failed {
            values = Vec::new();
            record.status.skipped = Some("the model's numbers are not finite (fp32)".to_owned());
            let source = &self.group.tasks[task].job.source;
            let text = format!("{source}: record {:?}: {}", record.id, record.status);
            self.observer.warning(&text);
        }
        let file = &mut self.files[task];
        file.records += 1;
        file.residues += record.length as u64;
        let status = &record.status;
        let is_skipped = status.skipped.is_some();
        file.skipped += u64::from(is_skipped);
        file.failed_records += u64::from(has_failed);
        file.truncated += u64::from(status.truncated && !is_skipped);
        file.replaced += u64::from(status.replaced != Replaced::None && !is_skipped);
        file.gaps += u64::from(status.gaps && !is_skipped);
        let files = self.files_of(task, loaded)?;
        Ok(files.push(record, values)?)
    }

    /// The open files of a task.
    fn files_of(
        &mut self,
        task: usize,
        loaded: Option<&Loaded>,
    ) -> Result<&mut OpenFiles, ContactsError> {
        if self.open.as_ref().is_none_or(|(known, _)| *known != task) {
            let options = self.options;
            let sample = &self.group.tasks[task].job.sample;
            let table = options
                .outputs
                .pairs
                .map(|choice| (table_path(&options.out, sample), choice));
            let layout = self.layout(task, loaded);
            let files = OpenFiles::create(options.outputs.format.into(), layout, table)?;
            self.open = Some((task, files));
        }
        let (_, files) = self.open.as_mut().expect("they were just created");
        Ok(files)
    }

    fn layout(&self, task: usize, loaded: Option<&Loaded>) -> Layout {
        let task = &self.group.tasks[task];
        let info = self.group.opened.model.info();
        let graph = loaded.map(|loaded| loaded.session.info().graph_sha256.clone());
        let entries = vec![
            ("seqembed", env!("CARGO_PKG_VERSION").to_owned()),
            (Layout::OUTPUT, Layout::CONTACTS.to_owned()),
            ("model", info.name.clone()),
            ("weights_sha256", info.weights_sha256.clone()),
            ("graph_sha256", graph.unwrap_or_default()),
            ("precision", Precision::Fp32.to_string()),
            ("device", Device::Cpu.to_string()),
            ("max_length", task.window.max_length.to_string()),
            ("unknown", task.job.settings.unknown.to_string()),
            ("source", run::source_name(task)),
        ];
        Layout {
            path: output_path(
                &self.options.out,
                &task.job.sample,
                self.options.outputs.format.into(),
            ),
            columns: Vec::new(),
            hidden: 1,
            per_token: true,
            precision: OutputPrecision::Fp32,
            provenance: run::with_origin(entries, info),
        }
    }

    /// Notes that a task's file has failed, and drops what was written of it.
    fn fail(&mut self, task: usize, why: String) {
        self.open = None;
        self.observer.failure(&why);
        self.files[task].error = Some(why);
    }

    fn end(&mut self, end: FileEnd, loaded: Option<&Loaded>) -> Result<(), ContactsError> {
        let task = end.task;
        for warning in end.warnings {
            self.observer.warning(&warning);
            self.files[task].warnings.push(warning);
        }
        if let Some(why) = end.failure {
            self.fail(task, why);
        }
        if self.files[task].error.is_some() {
            return Ok(());
        }
        self.files_of(task, loaded)?;
        if let Some((_, files)) = self.open.take() {
            files.finish()?;
        }
        let sample = &self.group.tasks[task].job.sample;
        let path = output_path(
            &self.options.out,
            sample,
            self.options.outputs.format.into(),
        );
        self.files[task].output = Some(path);
        Ok(())
    }
}
