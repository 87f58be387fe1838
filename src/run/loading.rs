//! Loads a group's model onto the devices of the run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use seqembed_onnx::Model;
use serde_json::json;

use super::context::{Resources, RunContext};
use super::error::RunError;
use super::group::Group;
use super::loaded_device::{LoadFallback, LoadedDevice};
use crate::device::Device;
use crate::engine::batch::Reduce;
use crate::engine::error::EngineError;
use crate::engine::loader::{self, GraphSpec, Loader, PreparedModel};
use crate::engine::runtime::Runtime;
use crate::engine::select::SelectedDevice;
use crate::engine::session::Session;
use crate::report::{LoadReport, Report};
use crate::settings::{Layers, Precision};
use crate::trace::Lane;

/// What loading a group's model needs, and where it is reported.
pub(crate) struct ModelLoading<'a> {
    pub(crate) group: &'a Group,
    pub(crate) context: &'a RunContext<'a>,
    pub(crate) devices: &'a [SelectedDevice],
    pub(crate) runtime: &'a mut Runtime,
    pub(crate) report: &'a mut Report,
}

impl<'a> ModelLoading<'a> {
    pub(crate) fn new(
        group: &'a Group,
        context: &'a RunContext<'a>,
        resources: &'a mut Resources,
        report: &'a mut Report,
    ) -> Self {
        Self {
            group,
            context,
            devices: &resources.devices,
            runtime: &mut resources.runtime,
            report,
        }
    }

    /// Makes the model ready for each device. That for the first one may be known already.
    pub(super) fn prepare(
        &self,
        spec: GraphSpec,
        mut known: Option<PreparedModel>,
    ) -> Result<Vec<PreparedModel>, RunError> {
        let prepared = self.devices.iter().map(|device| match known.take() {
            Some(first) => Ok(first),
            None => spec.prepare(device.device, self.group.precision, self.context.say),
        });
        Ok(prepared.collect::<Result<_, _>>()?)
    }

    /// Starts ONNX Runtime, with the number of threads per batch on a CPU.
    pub(super) fn loader<'s>(
        &mut self,
        spec: GraphSpec<'s>,
        threads: usize,
    ) -> Result<Loader<'s>, RunError> {
        let environment = self.runtime.environment()?.clone();
        self.report.onnxruntime = self.runtime.version().map(str::to_owned);
        Ok(Loader {
            environment,
            spec,
            pad_id: self.group.tokenizer.special().pad.into(),
            threads,
            faults: self.context.faults,
        })
    }

    /// Loads a session on the first device, for this group and whatever follows.
    pub(crate) fn session(&mut self) -> Result<Arc<dyn Session>, RunError> {
        let outputs = self.group.outputs();
        let spec = self.group.spec(self.context.options, &outputs);
        let device = self.devices[0].device;
        let prepared = spec.prepare(device, self.group.precision, self.context.say)?;
        let loader = self.loader(spec, 1)?;
        let started = Instant::now();
        let session = loader.load(&prepared)?;
        let seconds = (prepared.spent + started.elapsed()).as_secs_f64();
        let precision = session.info().precision;
        let Group { model, layers, .. } = self.group;
        let load = load_report(model, layers, device, precision, seconds);
        self.report.loads.push(load);
        Ok(session)
    }

    /// Loads the model onto every device.
    pub(super) fn onto_devices<'l>(
        &mut self,
        loader: &'l Loader<'l>,
        prepared: &[PreparedModel],
        workers: usize,
    ) -> Result<Vec<LoadedDevice<'l>>, RunError> {
        let model = &self.group.model;
        let mut all = Vec::with_capacity(self.devices.len());
        for (index, (device, prepared)) in self.devices.iter().zip(prepared).enumerate() {
            let started = Instant::now();
            let session = loader.load(prepared)?;
            let load = prepared.spent + started.elapsed();
            let mut device = loaded_device(loader, device, index, session, self.group.precision);
            device.load = load;
            device.workers = loader::workers_for(
                device.device.device,
                workers,
                self.devices.len(),
                model,
                self.per_token(),
            );
            let lane = Lane {
                group: device.label.clone(),
                name: "loading".to_owned(),
            };
            self.context.trace.span(
                &lane,
                "loading",
                started,
                Instant::now(),
                || json!({"model": model.info().name}),
            );
            all.push(device);
        }
        self.report.loads.extend(all.iter().map(|device| {
            let seconds = device.load.as_secs_f64();
            let Group {
                model,
                layers,
                precision,
                ..
            } = self.group;
            load_report(model, layers, device.device.device, *precision, seconds)
        }));
        Ok(all)
    }

    /// Whether the vectors of all tokens are an output.
    fn per_token(&self) -> bool {
        self.group.outputs().contains(&Reduce::Tokens)
    }

    /// The session that outlives the group, on the first device. `load`: how long it took in this
    /// run.
    pub(super) fn reused<'l>(
        &self,
        loader: &'l Loader<'l>,
        session: &Arc<dyn Session>,
        workers: usize,
        load: Duration,
    ) -> LoadedDevice<'l> {
        let selected = &self.devices[0];
        let precision = session.info().precision;
        let mut device = loaded_device(loader, selected, 0, Arc::clone(session), precision);
        device.load = load;
        device.workers = loader::workers_for(
            selected.device,
            workers,
            1,
            &self.group.model,
            self.per_token(),
        );
        device
    }
}

/// A device with a session, and a way to a higher precision where its own is lower than fp32.
fn loaded_device<'l>(
    loader: &'l Loader<'l>,
    selected: &SelectedDevice,
    index: usize,
    session: Arc<dyn Session>,
    precision: Precision,
) -> LoadedDevice<'l> {
    let engine = loader.engine(Arc::clone(&session), index, false);
    let half = precision != Precision::Fp32 || loader.faults.is_some_and(|faults| faults.half);
    let device = selected.device;
    let fallback: Option<LoadFallback<'l>> = half.then(|| {
        let load = move || {
            loader
                .load_fp32(device)
                .map(|session| loader.engine(session, index, true))
                .map_err(|error| EngineError::Runtime(error.to_string()))
        };
        Box::new(load) as LoadFallback<'l>
    });
    LoadedDevice::new(selected.clone(), precision, session, engine, fallback)
}

/// The report of a load of a model, of which these layers are output.
pub(crate) fn load_report(
    model: &Model,
    layers: &Layers,
    device: Device,
    precision: Precision,
    seconds: f64,
) -> LoadReport {
    let info = model.info();
    LoadReport {
        model: info.name.clone(),
        weights_sha256: info.weights_sha256.clone(),
        layer: layers.clone(),
        random_seed: info.random_seed,
        licence: info
            .published()
            .map(|known| known.publication.licence.to_owned()),
        device: device.to_string(),
        precision: precision.to_string(),
        seconds,
    }
}
