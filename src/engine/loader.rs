//! Loading a model onto a device: the graph for it, its weights, its kernels, and the engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ort::environment::{Environment, EnvironmentBuilder};
use seqembed_onnx::weights::table::hex;
use seqembed_onnx::{GraphKind, GraphRequest, Model, Output, Storage, WeightsFile};
use sha2::{Digest, Sha256};

use super::select::Place;
use crate::device::Device;
use crate::engine::cpu::session::{CpuEngine, Kernels, Load};
use crate::engine::cuda::kernels::Kernels as GpuKernels;
use crate::engine::cuda::launch::KernelError;
use crate::engine::cuda::session::{CudaEngine, CudaLoad};
use crate::engine::cuda::{operators, permits};
use crate::engine::fault_injection::Faults;
use crate::engine::mapped_files;
use crate::engine::runtime::locate::{self, LocateError, Located};
use crate::engine::session::{Facts, Session, Verified};
use crate::engine::{Engine, EngineError, Reduce};
use crate::models;
use crate::run::RunError;
use crate::run::loaded_device::{Load as LoadHigher, Slot};
use crate::settings::Precision;
use crate::threads;

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
        if let Some((builder, located)) = &mut self.located
            && let Some(builder) = builder.take()
        {
            let environment = locate::environment(builder, located)
                .map_err(|source| RunError::Load { folder, source })?;
            self.environment = Some(environment);
        }
        self.environment.as_ref().ok_or_else(|| RunError::Load {
            folder: PathBuf::from("ONNX Runtime"),
            source: EngineError::Runtime("it refused to start before".to_owned()),
        })
    }
}

/// Which model, and what is wanted of it.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// The model.
    pub model: &'a Model,
    /// The layer that is given.
    pub layer: usize,
    /// What is asked of it.
    pub outputs: &'a [Reduce],
    /// Whose kernels: seqembed's or ONNX Runtime's.
    pub kernels: Kernels,
}

/// What a device runs.
pub struct Program {
    /// The device.
    pub device: Device,
    /// The numbers that it computes with.
    pub precision: Precision,
    /// The graph.
    pub graph: Vec<u8>,
    /// The graph's kind.
    pub kind: GraphKind,
    /// SHA-256 of the graph, in hexadecimal, whatever its weights' file is called.
    pub graph_sha256: String,
    /// The file with its weights.
    pub weights: Arc<WeightsFile>,
    /// seqembed's kernels, where a graph for a GPU needs them.
    kernels: Option<Arc<GpuKernels>>,
    /// What it took so far: waking the device up, and loading kernels onto it.
    pub spent: Duration,
}

impl Wanted<'_> {
    /// What a device is to run. Where seqembed's own kernels can't be had on a GPU, ONNX Runtime's operators take their place, and
    /// `say` tells why.
    ///
    /// # Errors
    /// When the model's folder can't be read, a weight has no such number, or there is no graph in these numbers.
    pub fn program(
        &self,
        device: Device,
        precision: Precision,
        say: &dyn Fn(&str),
    ) -> Result<Program, RunError> {
        let started = Instant::now();
        let (kind, kernels) = match (device, self.kernels) {
            (Device::Cpu, Kernels::Auto) => (GraphKind::Packed, None),
            (Device::Cpu, Kernels::Portable) => (GraphKind::Padded, None),
            // seqembed's kernels compute in 16 bits alone.
            (Device::Cuda(number), Kernels::Auto) if precision != Precision::Fp32 => {
                match self.kernels_on(number, precision) {
                    Ok((kind, kernels)) => (kind, Some(Arc::new(kernels))),
                    Err(error) if precision == Precision::Fp16 => {
                        say(&format!(
                            "{device}: ONNX Runtime's operators are used, which are slower, for seqembed's own kernels can't be: {error}"
                        ));
                        (GraphKind::Plain, None)
                    }
                    Err(error) => {
                        return Err(RunError::Load {
                            folder: self.model.folder().to_owned(),
                            source: EngineError::Runtime(format!(
                                "{precision} needs seqembed's own kernels, which can't be used: {error}"
                            )),
                        });
                    }
                }
            }
            (Device::Cuda(_), _) => (GraphKind::Plain, None),
        };
        let half = device != Device::Cpu && matches!(precision, Precision::Fp16 | Precision::Fp8);
        let outputs = self.outputs.iter().map(|reduce| match reduce {
            Reduce::Mean => Output::Mean,
            Reduce::Max => Output::Max,
            // The last layer's numbers are of 16 bits anyway, and half as many bytes come back.
            Reduce::Tokens if half => Output::HalfTokens,
            Reduce::Tokens => Output::Tokens,
        });
        let numbers = stored(precision);
        let request = GraphRequest {
            kind,
            precision: numbers,
            layer: self.layer,
            outputs: outputs.collect(),
        };
        let weights = self
            .model
            .weights(Storage::of(kind, numbers), &models::cache())?;
        Ok(Program {
            device,
            precision,
            graph: self.model.graph_at(&request, weights.name())?,
            graph_sha256: hex(&Sha256::digest(self.model.graph(&request)?)),
            weights: Arc::new(weights),
            kind,
            kernels,
            spent: started.elapsed(),
        })
    }

    /// seqembed's kernels on a GPU, and the graph that uses them.
    fn kernels_on(
        &self,
        number: usize,
        precision: Precision,
    ) -> Result<(GraphKind, GpuKernels), KernelError> {
        let sizes = self.model.architecture().sizes();
        let number = cuda_number(number);
        let numbers = stored(precision);
        let fused = GpuKernels::can_fuse(&sizes, numbers, number)?;
        let cache = models::cache().join("kernels");
        let kernels = GpuKernels::load(sizes, numbers, fused, number, &cache)?;
        let kind = if fused {
            GraphKind::Fused
        } else {
            GraphKind::Packed
        };
        Ok((kind, kernels))
    }
}

/// How the weights stand that a device reads in 16 bits, as far as can be told before kernels are loaded.
#[must_use]
pub fn half_storage(model: &Model, device: Device, kernels: Kernels) -> Storage {
    let sizes = model.architecture().sizes();
    let precision = seqembed_onnx::Precision::Fp16;
    let folded = match device {
        Device::Cuda(number) if kernels == Kernels::Auto => {
            GpuKernels::can_fuse(&sizes, precision, cuda_number(number)).unwrap_or(false)
        }
        Device::Cuda(_) | Device::Cpu => false,
    };
    Storage { precision, folded }
}

/// The numbers of the weights and between the layers.
fn stored(precision: Precision) -> seqembed_onnx::Precision {
    match precision {
        Precision::Auto | Precision::Fp32 => seqembed_onnx::Precision::Fp32,
        Precision::Fp16 => seqembed_onnx::Precision::Fp16,
        Precision::Bf16 => seqembed_onnx::Precision::Bf16,
        Precision::Fp8 => seqembed_onnx::Precision::Fp8,
    }
}

/// What is loaded onto each device.
pub struct Loader<'a> {
    /// ONNX Runtime.
    pub environment: Environment,
    /// The model.
    pub wanted: Wanted<'a>,
    /// The id that fills up padded rows.
    pub pad_id: i64,
    /// Threads for one batch on a CPU.
    pub threads: usize,
    /// What is to go wrong, in tests.
    pub faults: Option<Faults>,
}

impl Loader<'_> {
    /// The model on a device, ready to run. Meanwhile its weights are verified.
    ///
    /// # Errors
    /// When the device or ONNX Runtime refuses, or the weights are not those that were exported.
    pub fn engine_on(&self, program: &Program) -> Result<Arc<dyn Session>, RunError> {
        let weights = &program.weights;
        std::thread::scope(|scope| {
            mapped_files::note(weights.path());
            let verifying = threads::start(scope, || weights.verify())?;
            let loaded = self.loaded_on(program);
            let verified = verifying.join();
            verified.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let session = loaded?;
            // What ONNX Runtime opened by its name is what was hashed.
            weights.is_in_place()?;
            let facts = Facts {
                graph_sha256: program.graph_sha256.clone(),
                ..session.facts().clone()
            };
            // A GPU has its own copy; on a CPU some of the weights are read where the file is mapped.
            let weights = (program.device == Device::Cpu).then(|| Arc::clone(weights));
            let session = Verified {
                session,
                facts,
                weights,
            };
            Ok(Arc::new(session) as Arc<dyn Session>)
        })
    }

    fn loaded_on(&self, program: &Program) -> Result<Arc<dyn Session>, RunError> {
        let refused = |source| RunError::Load {
            folder: self.wanted.model.folder().to_owned(),
            source,
        };
        let outputs = self.wanted.outputs.to_vec();
        let hidden = self.wanted.model.architecture().hidden();
        let Device::Cuda(number) = program.device else {
            let load = Load {
                graph: &program.graph,
                folder: program.weights.folder(),
                kernels: self.wanted.kernels,
                outputs,
                hidden,
                pad_id: self.pad_id,
                threads: self.threads,
            };
            let engine = CpuEngine::load(&self.environment, load).map_err(refused)?;
            return Ok(Arc::new(engine));
        };
        let kernels = program.kernels.as_ref();
        let operators = kernels
            .map(operators::domain)
            .transpose()
            .map_err(|error| refused(error.into()))?;
        let sizes = self.wanted.model.architecture().sizes();
        let load = CudaLoad {
            graph: &program.graph,
            folder: program.weights.folder(),
            device: cuda_number(number),
            kind: program.kind,
            precision: stored(program.precision),
            outputs,
            hidden,
            // ONNX Runtime's own kernels were not measured with two.
            at_once: if kernels.is_some() {
                permits::at_once(&sizes)
            } else {
                1
            },
            memory_limit: None,
            operators,
        };
        let engine = CudaEngine::load(&self.environment, load).map_err(refused)?;
        Ok(Arc::new(engine))
    }

    /// A session that was loaded in `load`, with a way to a higher precision where its own is lower than fp32.
    pub fn slot<'s>(
        &'s self,
        place: &Place,
        index: usize,
        precision: Precision,
        session: Arc<dyn Session>,
        load: Duration,
    ) -> Slot<'s> {
        let wrap = move |engine: Box<dyn Engine>, again| match self.faults {
            Some(faults) => faults.wrap(engine, index, again),
            None => engine,
        };
        let engine = wrap(Box::new(Arc::clone(&session)), false);
        let half = precision != Precision::Fp32 || self.faults.is_some_and(|faults| faults.half);
        let device = place.device;
        let higher: Option<LoadHigher<'s>> = half.then(|| {
            let load = move || {
                self.wanted
                    .program(device, Precision::Fp32, &|_| {})
                    .and_then(|program| self.engine_on(&program))
                    .map(|session| wrap(Box::new(session), true))
                    .map_err(|error| EngineError::Runtime(error.to_string()))
            };
            Box::new(load) as LoadHigher<'s>
        });
        Slot::new(place.clone(), precision, session, engine, load, higher)
    }
}

/// A GPU's number as CUDA has it.
fn cuda_number(number: usize) -> u32 {
    u32::try_from(number).expect("the driver counts its GPUs in 32 bits")
}
