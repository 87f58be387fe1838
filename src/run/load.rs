//! Loading a model onto a device.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use ort::environment::{Environment, EnvironmentBuilder};
use seqembed_onnx::{Architecture, GraphKind, GraphRequest, Model};

use super::RunError;
use super::devices::Place;
use super::slot::Slot;
use crate::engine::budget::Shape;
use crate::engine::cuda::{self, kernels::KernelError};
use crate::engine::device::Device;
use crate::engine::faulty::Faults;
use crate::engine::locate::{self, LocateError, Located};
use crate::engine::session::{CpuEngine, Kernels, Load};
use crate::engine::{Engine, EngineError, Reduce};
use crate::models;
use crate::settings::Precision;

/// ONNX Runtime, found and loaded when it is first needed.
pub struct Runtime {
    explicit: Option<PathBuf>,
    located: Option<(Option<EnvironmentBuilder>, Located)>,
    environment: Option<Environment>,
}

impl Runtime {
    /// Nothing is looked for yet. `explicit` is `--ort-lib`.
    #[must_use]
    pub fn new(explicit: Option<&Path>) -> Self {
        Self {
            explicit: explicit.map(Path::to_owned),
            located: None,
            environment: None,
        }
    }

    /// Finds the library.
    ///
    /// # Errors
    /// When there is none.
    pub fn locate(&mut self) -> Result<&Located, LocateError> {
        let (_, located) = match &mut self.located {
            Some(known) => known,
            none => {
                let (builder, located) = locate::load(self.explicit.as_deref())?;
                none.insert((Some(builder), located))
            }
        };
        Ok(located)
    }

    /// Gets it ready for sessions.
    ///
    /// # Errors
    /// When there is none, or it refuses.
    pub fn environment(&mut self) -> Result<&Environment, RunError> {
        let folder = self.locate()?.path.clone();
        if let Some((builder, _)) = &mut self.located
            && let Some(builder) = builder.take()
        {
            let environment = builder.build().map_err(|error| RunError::Load {
                folder,
                source: error.into(),
            })?;
            self.environment = Some(environment);
        }
        self.environment.as_ref().ok_or_else(|| RunError::Load {
            folder: PathBuf::from("ONNX Runtime"),
            source: EngineError::Runtime("it refused to start before".to_owned()),
        })
    }
}

/// What is loaded onto each device: a model, up to a layer.
pub struct Loader<'a> {
    /// ONNX Runtime.
    pub environment: Environment,
    /// The model.
    pub model: &'a Model,
    /// The layer that is given.
    pub layer: usize,
    /// What is asked of it.
    pub outputs: &'a [Reduce],
    /// The graph on CPUs.
    pub kernels: Kernels,
    /// The id that fills up padded rows.
    pub pad_id: i64,
    /// Threads for one batch on a CPU.
    pub threads: usize,
    /// What is to go wrong, in tests.
    pub faults: Option<Faults>,
}

/// What a device runs: the graph, and the kernels that go with it.
pub struct Program {
    /// The graph, with its weights in a file of the model.
    pub graph: Vec<u8>,
    kind: GraphKind,
    precision: seqembed_onnx::Precision,
    kernels: Option<Arc<cuda::kernels::Kernels>>,
    /// What the user should know of it.
    pub note: Option<String>,
}

/// The program for a device.
///
/// # Errors
/// When the model's folder can't be read, or there is no graph for such a device.
pub fn program_for(
    model: &Model,
    device: Device,
    precision: Precision,
    kernels: Kernels,
    layer: usize,
    outputs: &[Reduce],
) -> Result<Program, RunError> {
    let precision = match precision {
        Precision::Auto | Precision::Fp32 => seqembed_onnx::Precision::Fp32,
        Precision::Fp16 => seqembed_onnx::Precision::Fp16,
        Precision::Bf16 | Precision::Fp8 => seqembed_onnx::Precision::Bf16,
    };
    let (kind, own, note) = match (device, kernels) {
        (Device::Cpu, Kernels::Auto) => (GraphKind::Packed, None, None),
        (Device::Cpu, Kernels::Portable) => (GraphKind::Padded, None, None),
        (Device::Cuda(_), _) if precision == seqembed_onnx::Precision::Fp32 => {
            (GraphKind::Plain, None, None)
        }
        (Device::Cuda(_), Kernels::Portable) => (GraphKind::Plain, None, None),
        (Device::Cuda(number), Kernels::Auto) => {
            match own_kernels(model, ordinal(number), precision) {
                Ok((kind, own)) => (kind, Some(Arc::new(own)), None),
                Err(error) if GraphKind::Plain.has(precision) => {
                    let note = format!(
                        "{device}: ONNX Runtime's own operators run, which are slower: {error}"
                    );
                    (GraphKind::Plain, None, Some(note))
                }
                Err(error) => {
                    return Err(RunError::Load {
                        folder: model.folder().to_owned(),
                        source: EngineError::Runtime(error.to_string()),
                    });
                }
            }
        }
    };
    let outputs = outputs.iter().map(|reduce| match reduce {
        Reduce::Mean => seqembed_onnx::Output::Mean,
        Reduce::Max => seqembed_onnx::Output::Max,
        Reduce::Tokens => seqembed_onnx::Output::Tokens,
    });
    let request = GraphRequest {
        kind,
        precision,
        layer,
        outputs: outputs.collect(),
    };
    Ok(Program {
        graph: model.graph(&request)?,
        kind,
        precision,
        kernels: own,
        note,
    })
}

/// A GPU's number, as CUDA has it.
fn ordinal(number: usize) -> u32 {
    // One that is too large is no GPU's number either.
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// seqembed's kernels for the model on a GPU, and the graph that they make up.
fn own_kernels(
    model: &Model,
    device: u32,
    precision: seqembed_onnx::Precision,
) -> Result<(GraphKind, cuda::kernels::Kernels), KernelError> {
    let sizes = model.architecture().description().sizes();
    let fused = cuda::kernels::Kernels::can_fuse(&sizes, device)?;
    let cache = models::cache().join("kernels");
    let kernels = cuda::kernels::Kernels::load(sizes, precision, fused, device, &cache)?;
    let kind = if fused {
        GraphKind::Fused
    } else {
        GraphKind::Packed
    };
    Ok((kind, kernels))
}

impl Loader<'_> {
    /// The model on a device, ready to run.
    ///
    /// # Errors
    /// When the device or ONNX Runtime refuses.
    pub fn engine_on(
        &self,
        device: Device,
        program: &Program,
    ) -> Result<Box<dyn Engine>, RunError> {
        let folder = || self.model.folder().to_owned();
        match device {
            Device::Cpu => {
                let load = Load {
                    graph: &program.graph,
                    folder: self.model.folder(),
                    kernels: self.kernels,
                    outputs: self.outputs.to_vec(),
                    hidden: self.model.architecture().hidden(),
                    pad_id: self.pad_id,
                    threads: self.threads,
                };
                let engine = CpuEngine::load(&self.environment, load);
                Ok(Box::new(engine.map_err(|source| RunError::Load {
                    folder: folder(),
                    source,
                })?))
            }
            Device::Cuda(number) => {
                let refused = |source| RunError::Load {
                    folder: folder(),
                    source,
                };
                let weights = self.model.weights_in(program.precision, &models::cache())?;
                let operators = program.kernels.as_ref().map(cuda::operators::domain);
                let operators = operators
                    .transpose()
                    .map_err(|error| refused(error.into()))?;
                let load = cuda::CudaLoad {
                    graph: &program.graph,
                    folder: &weights,
                    device: ordinal(number),
                    kind: program.kind,
                    precision: program.precision,
                    outputs: self.outputs.to_vec(),
                    hidden: self.model.architecture().hidden(),
                    memory_limit: None,
                    operators,
                };
                let engine = cuda::CudaEngine::load(&self.environment, load);
                Ok(Box::new(engine.map_err(refused)?))
            }
        }
    }

    /// The model on a device, with a way to a higher precision where that is lower than fp32.
    ///
    /// # Errors
    /// As [`Self::engine_on`].
    pub fn slot<'s>(
        &'s self,
        place: &Place,
        index: usize,
        precision: Precision,
        program: &Program,
    ) -> Result<Slot<'s>, RunError> {
        let started = Instant::now();
        let device = place.device;
        let wrap = move |engine: Box<dyn Engine>, again| match self.faults {
            Some(faults) => faults.wrap(engine, index, again),
            None => engine,
        };
        let engine = wrap(self.engine_on(device, program)?, false);
        let half = precision != Precision::Fp32 || self.faults.is_some_and(|faults| faults.half);
        let higher: Option<super::slot::Load<'s>> = half.then(|| {
            let load = move || {
                let precision = Precision::Fp32;
                program_for(
                    self.model,
                    device,
                    precision,
                    self.kernels,
                    self.layer,
                    self.outputs,
                )
                .and_then(|program| self.engine_on(device, &program))
                .map(|engine| wrap(engine, true))
                .map_err(|error| EngineError::Runtime(error.to_string()))
            };
            Box::new(load) as super::slot::Load<'s>
        });
        Ok(Slot::new(
            place.clone(),
            precision,
            engine,
            started.elapsed(),
            higher,
        ))
    }
}

/// What counts of a model's shape for its memory.
#[must_use]
pub fn shape(architecture: &Architecture) -> Shape {
    let (intermediate, gated) = match architecture {
        Architecture::Esm2(esm2) => (esm2.intermediate, false),
        Architecture::Dnabert2(dnabert2) => (dnabert2.intermediate, true),
        Architecture::Bert(bert) => (bert.intermediate, false),
    };
    Shape {
        hidden: architecture.hidden(),
        intermediate,
        gated,
    }
}
