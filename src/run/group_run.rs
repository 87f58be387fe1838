//! Runs a group: reads its first records, loads the model, and lets the pipeline do the rest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch_limits;
use super::chunk::Chunk;
use super::chunker::{ChunkLimits, Chunker};
use super::collect::Collector;
use super::collect_error::Observer;
use super::context::{Resources, RunContext};
use super::dedup::Dedup;
use super::error::RunError;
use super::group::Group;
use super::loaded_device::LoadedDevice;
use super::loading::{ModelLoading, load_report};
use super::output_files::OutputFiles;
use super::pipeline::{self, Pipeline};
use super::provenance::{self, ComputedBy};
use super::resume::Resumed;
use crate::engine::loader::{Loader, PreparedModel};
use crate::records::Record;
use crate::report::{DeviceReport, Report};
use crate::settings::Precision;
use crate::threads;

/// A group on its way through the run.
pub(crate) struct GroupRun<'a> {
    pub(crate) context: &'a RunContext<'a>,
    pub(crate) resources: &'a mut Resources,
    pub(crate) report: &'a mut Report,
    pub(crate) observer: &'a mut dyn Observer,
}

impl GroupRun<'_> {
    /// Runs the group's jobs. Devices that are lost on the way leave the resources. Without
    /// `resumed`, all is computed from the start, and no unfinished work is saved.
    pub(crate) fn run(
        mut self,
        mut group: Group,
        resumed: Option<Resumed>,
    ) -> Result<(), RunError> {
        let options = self.context.options;
        let (records, sink) = group.given.take().unzip();
        let group = &group;
        let resumed = resumed.unwrap_or_else(|| Resumed::nothing(group));
        let limits = batch_limits::limits(group, options, &self.resources.devices);
        let mut chunker = self.chunker(group, limits, records, &resumed);
        // The first chunk shows whether there is anything to run, and whether there is enough for
        // every core.
        let reading = Instant::now();
        let Some(first) = self.first_chunk(&mut chunker)? else {
            return Ok(());
        };
        let spent = (chunker.reading, chunker.tokenizing);
        pipeline::trace_chunk(self.context.trace, reading, spent, &first);
        let nothing = first.batches.is_empty() && chunker.is_done();
        let before = self.report.loads.len();
        let keeps = self.resources.reused.keeps;
        if keeps && self.resources.reused.session.is_none() && !nothing {
            let session = self.loading(group).session()?;
            self.resources.reused.session = Some(session);
        }
        let outputs = group.outputs();
        let spec = group.spec(options, &outputs);
        let prepared = if self.resources.reused.session.is_some() {
            Vec::new()
        } else {
            self.loading(group).prepare(spec, resumed.prepared)?
        };
        // A session that is kept has one thread for a batch: later batches may be more than these.
        let workers = if chunker.is_done() && !keeps {
            first.batches.len().clamp(1, options.threads)
        } else {
            options.threads
        };
        let loader = if nothing {
            None
        } else {
            let threads = (options.threads / workers).max(1);
            Some(self.loading(group).loader(spec, threads)?)
        };
        let devices = match &loader {
            Some(loader) => self.load(group, loader, &prepared, workers, before)?,
            None => Vec::new(),
        };
        let by = devices.first().map_or_else(
            || {
                let device = self.resources.devices[0].device;
                ComputedBy::planned(prepared.first(), device, group.precision)
            },
            |device| ComputedBy::session(device.session.info()),
        );
        let hidden = group.width();
        let layouts = provenance::layouts(group, options, &by);
        let saver = resumed.saver;
        let mut files = OutputFiles::new(&group.tasks, layouts, resumed.files, hidden, saver);
        files.sessions = sessions(&devices);
        if let Some(sink) = sink {
            files.give(sink);
        }
        let mut collector = Collector::new(&group.tasks, files, hidden, resumed.saved);
        collector.budget = limits.batch_tokens;
        collector.interrupt = options.interrupt.clone();
        let pipeline = self.pipeline(group, &devices);
        let stages = &mut self.report.totals.stages;
        let result = pipeline.run(chunker, first, &mut collector, stages, self.observer);
        self.account(group, &devices, &collector);
        self.drop_lost(&devices);
        result?;
        self.report.files.append(&mut collector.files.reports);
        Ok(())
    }

    fn loading<'g>(&'g mut self, group: &'g Group) -> ModelLoading<'g> {
        ModelLoading::new(group, self.context, self.resources, self.report)
    }

    fn chunker<'g>(
        &self,
        group: &'g Group,
        limits: ChunkLimits,
        records: Option<Vec<Record>>,
        resumed: &Resumed,
    ) -> Chunker<'g> {
        let mut chunker = Chunker::new(&group.tasks, &*group.tokenizer, limits);
        if let Some(records) = records {
            chunker.give(records);
        }
        chunker.resume(Arc::clone(&resumed.saved));
        if !self.context.options.no_dedup {
            chunker.share(Dedup::new(group.width()));
        }
        chunker
    }

    /// The first chunk. Where a model is to be loaded onto a GPU, ONNX Runtime starts meanwhile: it
    /// was found when the GPU was selected.
    fn first_chunk(&mut self, chunker: &mut Chunker) -> Result<Option<Chunk>, RunError> {
        let Resources {
            devices,
            runtime,
            reused,
        } = &mut *self.resources;
        let starts = reused.session.is_none() && devices.iter().any(|device| device.gpu.is_some());
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

    /// The devices with the model on them. `before`: how many loads the report had before this
    /// group's.
    fn load<'l>(
        &mut self,
        group: &Group,
        loader: &'l Loader<'l>,
        prepared: &[PreparedModel],
        workers: usize,
        before: usize,
    ) -> Result<Vec<LoadedDevice<'l>>, RunError> {
        let reused = self.resources.reused.session.clone();
        let devices = if let Some(session) = reused {
            let loads = self.report.loads[before..].iter();
            let load = Duration::from_secs_f64(loads.map(|load| load.seconds).sum());
            let loading = self.loading(group);
            vec![loading.reused(loader, &session, workers, load)]
        } else {
            let mut loading = self.loading(group);
            loading.onto_devices(loader, prepared, workers)?
        };
        let workers = devices.iter().map(|device| device.workers).sum();
        self.report.workers = self.report.workers.max(workers);
        Ok(devices)
    }

    fn pipeline<'f>(&self, group: &'f Group, devices: &'f [LoadedDevice<'f>]) -> Pipeline<'f>
    where
        Self: 'f,
    {
        Pipeline {
            devices,
            tasks: &group.tasks,
            tokenizer: &*group.tokenizer,
            model_limit: group.model_limit(),
            hidden: group.width(),
            maxima: group.maxima(),
            strict: self.context.options.strict,
            trace: self.context.trace,
            interrupt: &self.context.options.interrupt,
        }
    }

    /// Adds what the devices did, and what the collector saw, to the report.
    fn account(&mut self, group: &Group, devices: &[LoadedDevice], collector: &Collector) {
        let report = &mut *self.report;
        report.totals.filled(collector.budget, &collector.fill);
        report.totals.stages.computing += collector.computing.as_secs_f64();
        report.totals.stages.writing += collector.writing.as_secs_f64();
        report.totals.batches += collector.batches;
        if report.totals.first_embedding_seconds.is_none() {
            let started = self.context.started;
            report.totals.first_embedding_seconds =
                collector.first.map(|first| (first - started).as_secs_f64());
        }
        for device in devices {
            report.totals.device_tokens += device.tokens();
            device.report(device_report(report, device));
            for seconds in device.fallback_loads() {
                let Group { model, layers, .. } = group;
                let device = device.device.device;
                let load = load_report(model, layers, device, Precision::Fp32, seconds);
                report.loads.push(load);
            }
        }
    }

    /// Removes the devices that were lost.
    fn drop_lost(&mut self, devices: &[LoadedDevice]) {
        self.resources.devices.retain(|selected| {
            let lost =
                |device: &LoadedDevice| device.device == *selected && device.lost().is_some();
            !devices.iter().any(lost)
        });
    }
}

fn sessions(devices: &[LoadedDevice]) -> Vec<Arc<dyn crate::engine::session::Session>> {
    let sessions = devices.iter().map(|device| Arc::clone(&device.session));
    sessions.collect()
}

/// The report of a device, found among the others or added.
pub(super) fn device_report<'r>(
    report: &'r mut Report,
    device: &LoadedDevice,
) -> &'r mut DeviceReport {
    let name = &device.device.name;
    let precision = device.precision.to_string();
    let device = device.device.device.to_string();
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
