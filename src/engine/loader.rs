//! Loads a model onto a device: chooses the graph, the weights and the kernels, and creates the
//! session.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ort::environment::Environment;
use seqembed_onnx::weights::table::hex;
use seqembed_onnx::{GraphKind, GraphRequest, Head, Model, Output, Storage, WeightsFile};
use sha2::{Digest, Sha256};

use super::batch::Reduce;
use super::cpu::session::{CpuSession, CpuSessionOptions};
use super::cuda::kernels::CudaKernels;
use super::cuda::launch::KernelError;
use super::cuda::session::{CudaSession, CudaSessionOptions};
use super::cuda::{budget, operators, permits};
use super::error::EngineError;
use super::fault_injection::Faults;
use super::mapped_files;
use super::session::{Engine, Session, SessionInfo, VerifiedSession};
use crate::device::Device;
use crate::models;
use crate::settings::{Kernels, Layers, Precision};
use crate::threads::{self, StartError};

/// Why a model could not be loaded onto a device.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The exported model is damaged, or has no such graph.
    #[error(transparent)]
    Model(#[from] seqembed_onnx::Error),
    /// The system refuses to start more threads.
    #[error(transparent)]
    Threads(#[from] StartError),
    /// ONNX Runtime, the device or its kernels refused.
    #[error("cannot load {}: {source}", .folder.display())]
    Session {
        /// Path of the model folder.
        folder: PathBuf,
        /// The reason.
        source: EngineError,
    },
}

/// Which graph of a model to run, whatever the device.
#[derive(Clone, Copy)]
pub struct GraphSpec<'a> {
    /// The exported model.
    pub model: &'a Model,
    /// The layers whose hidden states are output; 0 is the embedding layer.
    pub layers: &'a Layers,
    /// The outputs that the graph must have.
    pub outputs: &'a [Reduce],
    /// Whether seqembed's or ONNX Runtime's kernels are used.
    pub kernels: Kernels,
    /// The language-model head: rows are then log-probabilities of all tokens in place of vectors.
    pub head: Option<&'a Head>,
    /// Whether contacts are predicted, in place of all outputs.
    pub contacts: bool,
}

/// A model made ready for one device: its graph, the file with its weights, and the kernels that
/// the graph needs. It is not loaded into ONNX Runtime yet.
pub struct PreparedModel {
    /// The device.
    pub device: Device,
    /// The precision that the graph computes in.
    pub precision: Precision,
    /// The graph, an ONNX model that names its weights file.
    pub graph: Vec<u8>,
    /// What kind of graph it is.
    pub kind: GraphKind,
    /// SHA-256 of the graph, in hexadecimal, whatever its weights file is called.
    pub graph_sha256: String,
    /// The weights, as the graph reads them.
    pub weights: Arc<WeightsFile>,
    /// seqembed's kernels, where a graph for a GPU needs them.
    kernels: Option<Arc<CudaKernels>>,
    /// How long it took: waking the device up, compiling kernels, writing weights.
    pub spent: Duration,
}

impl GraphSpec<'_> {
    /// Prepares the model for a device: compiles kernels, and writes the weights in the device's
    /// precision to the cache, unless they exist.
    ///
    /// If seqembed's own kernels cannot be used on a GPU, ONNX Runtime's operators are used instead
    /// in fp16, and the reason is passed to `say`.
    ///
    /// # Errors
    /// If the model folder cannot be read, a weight is out of range for the precision, or there is
    /// no graph in this precision.
    pub fn prepare(
        &self,
        device: Device,
        precision: Precision,
        say: &dyn Fn(&str),
    ) -> Result<PreparedModel, LoadError> {
        let started = Instant::now();
        let (kind, kernels) = self.graph_kind(device, precision, say)?;
        let numbers = number_format(precision);
        let request = GraphRequest {
            kind,
            precision: numbers,
            layers: self.layers.as_slice().to_vec(),
            outputs: self.graph_outputs(device, precision),
        };
        let storage = Storage::of(kind, numbers);
        let weights = self.model.weights(storage, &models::cache())?;
        Ok(PreparedModel {
            device,
            precision,
            graph: self.graph(&request, weights.name())?,
            graph_sha256: hex(&Sha256::digest(self.graph(&request, storage.file())?)),
            weights: Arc::new(weights),
            kind,
            kernels,
            spent: started.elapsed(),
        })
    }

    fn graph(&self, request: &GraphRequest, file: &str) -> Result<Vec<u8>, seqembed_onnx::Error> {
        match self.head {
            _ if self.contacts => {
                self.model
                    .contact_graph_at(request.kind, request.precision, file)
            }
            Some(head) => self.model.head_graph_at(request, file, head),
            None => self.model.graph_at(request, file),
        }
    }

    /// Numbers in a row.
    fn width(&self) -> usize {
        match self.head {
            Some(head) => head.form().vocabulary,
            None => self.layers.count() * self.model.architecture().hidden(),
        }
    }

    /// The id of `<mask>`, where the graph asks how many tokens of a sequence are masked.
    fn mask_id(&self) -> Option<i64> {
        let mask = self.head?.form().token_dropout?;
        i64::try_from(mask).ok()
    }

    /// The kind of graph for a device, with seqembed's kernels where it needs them.
    fn graph_kind(
        &self,
        device: Device,
        precision: Precision,
        say: &dyn Fn(&str),
    ) -> Result<(GraphKind, Option<Arc<CudaKernels>>), LoadError> {
        match (device, self.kernels) {
            (Device::Cpu, Kernels::Auto) => Ok((GraphKind::Packed, None)),
            (Device::Cpu, Kernels::Portable) => Ok((GraphKind::Padded, None)),
            // seqembed's kernels have no fp32.
            (Device::Cuda(number), Kernels::Auto) if precision != Precision::Fp32 => {
                match self.load_kernels(number, precision) {
                    Ok((kind, kernels)) => Ok((kind, Some(Arc::new(kernels)))),
                    Err(error) if precision == Precision::Fp16 => {
                        say(&format!(
                            "{device}: using ONNX Runtime's slower operators, because seqembed's \
                             own kernels are not available: {error}"
                        ));
                        Ok((GraphKind::OrtCuda, None))
                    }
                    Err(error) => Err(LoadError::Session {
                        folder: self.model.folder().to_owned(),
                        source: EngineError::Runtime(format!(
                            "{precision} needs seqembed's own kernels, which are not available: \
                             {error}"
                        )),
                    }),
                }
            }
            (Device::Cuda(_), _) => Ok((GraphKind::OrtCuda, None)),
        }
    }

    /// seqembed's kernels, loaded onto a GPU, and the kind of graph that uses them.
    fn load_kernels(
        &self,
        number: usize,
        precision: Precision,
    ) -> Result<(GraphKind, CudaKernels), KernelError> {
        let sizes = self.model.architecture().sizes();
        let number = cuda_number(number);
        let numbers = number_format(precision);
        let fused = CudaKernels::can_fuse(&sizes, numbers, number)?;
        let cache = models::cache().join("kernels");
        let kernels = CudaKernels::load(sizes, numbers, fused, number, &cache)?;
        let kind = if fused {
            GraphKind::Fused
        } else {
            GraphKind::Packed
        };
        Ok((kind, kernels))
    }

    fn graph_outputs(&self, device: Device, precision: Precision) -> Vec<Output> {
        let half = device != Device::Cpu && matches!(precision, Precision::Fp16 | Precision::Fp8);
        let outputs = self.outputs.iter().map(|reduce| match reduce {
            Reduce::Mean | Reduce::Both => Output::Mean,
            Reduce::Max => Output::Max,
            // The last layer's numbers have 16 bits anyway, and half as many bytes are copied back.
            Reduce::Tokens if half && self.head.is_none() => Output::HalfTokens,
            Reduce::Tokens => Output::Tokens,
        });
        outputs.collect()
    }
}

/// Writes a model's fp16 weights to the cache in the layout that a device reads, unless they exist.
/// This also checks that all weights are in the range of fp16.
///
/// # Errors
/// [`seqembed_onnx::Error::Overflow`] when a weight is too large for fp16; or when a file cannot
/// be read or written.
pub fn cache_fp16_weights(
    model: &Model,
    device: Device,
    kernels: Kernels,
) -> Result<(), seqembed_onnx::Error> {
    let sizes = model.architecture().sizes();
    let precision = seqembed_onnx::Precision::Fp16;
    // Whether the graph will be fused, as far as can be said before kernels are loaded.
    let folded = match device {
        Device::Cuda(number) if kernels == Kernels::Auto => {
            CudaKernels::can_fuse(&sizes, precision, cuda_number(number)).unwrap_or(false)
        }
        Device::Cuda(_) | Device::Cpu => false,
    };
    model
        .weights_in(Storage { precision, folded }, &models::cache())
        .map(drop)
}

/// The number format of the weights, and of what flows between layers.
fn number_format(precision: Precision) -> seqembed_onnx::Precision {
    match precision {
        Precision::Auto | Precision::Fp32 => seqembed_onnx::Precision::Fp32,
        Precision::Fp16 => seqembed_onnx::Precision::Fp16,
        Precision::Bf16 => seqembed_onnx::Precision::Bf16,
        Precision::Fp8 => seqembed_onnx::Precision::Fp8,
    }
}

/// Loads one model onto any number of devices.
pub struct Loader<'a> {
    /// ONNX Runtime, started.
    pub environment: Environment,
    /// The model and its graph.
    pub spec: GraphSpec<'a>,
    /// The token id that rows of padded graphs are filled up with.
    pub pad_id: i64,
    /// Threads for one batch on a CPU.
    pub threads: usize,
    /// Faults to inject, in tests.
    pub faults: Option<Faults>,
}

impl Loader<'_> {
    /// Loads a prepared model onto its device. Its weights are verified at the same time.
    ///
    /// # Errors
    /// When the device or ONNX Runtime refuses, or the weights are not those that were exported.
    pub fn load(&self, prepared: &PreparedModel) -> Result<Arc<dyn Session>, LoadError> {
        let weights = &prepared.weights;
        std::thread::scope(|scope| {
            mapped_files::register(weights.path());
            let verifying = threads::start(scope, || weights.verify())?;
            let loaded = self.session(prepared);
            let verified = verifying.join();
            verified.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            let session = loaded?;
            // The file that ONNX Runtime opened by its name is the one that was hashed.
            weights.is_in_place()?;
            let info = SessionInfo {
                graph_sha256: prepared.graph_sha256.clone(),
                ..session.info().clone()
            };
            // A GPU has a copy of its own; on a CPU some weights are read where the file is mapped.
            let weights = (prepared.device == Device::Cpu).then(|| Arc::clone(weights));
            let session = VerifiedSession {
                session,
                info,
                weights,
            };
            Ok(Arc::new(session) as Arc<dyn Session>)
        })
    }

    /// The same model on the same device in fp32, for batches that overflow in `precision`.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub fn load_fp32(&self, device: Device) -> Result<Arc<dyn Session>, LoadError> {
        let prepared = self.spec.prepare(device, Precision::Fp32, &|_| {})?;
        self.load(&prepared)
    }

    /// Wraps a session with the faults requested by a test, if any. `index` is the number of the
    /// device, and `fallback` is true for the session in higher precision.
    pub fn engine(
        &self,
        session: Arc<dyn Session>,
        index: usize,
        fallback: bool,
    ) -> Box<dyn Engine> {
        match self.faults {
            Some(faults) => {
                let hidden = session.info().hidden;
                faults.wrap(Box::new(session), hidden, index, fallback)
            }
            None => Box::new(session),
        }
    }

    fn session(&self, prepared: &PreparedModel) -> Result<Arc<dyn Session>, LoadError> {
        let refused = |source| LoadError::Session {
            folder: self.spec.model.folder().to_owned(),
            source,
        };
        let outputs = self.spec.outputs.to_vec();
        let (hidden, mask_id) = (self.spec.width(), self.spec.mask_id());
        let Device::Cuda(number) = prepared.device else {
            let options = CpuSessionOptions {
                graph: &prepared.graph,
                folder: prepared.weights.folder(),
                kernels: self.spec.kernels,
                outputs,
                hidden,
                pad_id: self.pad_id,
                mask_id,
                threads: self.threads,
            };
            let session = CpuSession::load(&self.environment, options).map_err(refused)?;
            return Ok(Arc::new(session));
        };
        let kernels = prepared.kernels.as_ref();
        let operators = kernels
            .map(operators::domain)
            .transpose()
            .map_err(|error| refused(error.into()))?;
        let sizes = self.spec.model.architecture().sizes();
        let options = CudaSessionOptions {
            graph: &prepared.graph,
            folder: prepared.weights.folder(),
            device: cuda_number(number),
            kind: prepared.kind,
            precision: number_format(prepared.precision),
            hidden,
            mask_id,
            // ONNX Runtime's own kernels were not measured with two.
            concurrent_batches: if kernels.is_some() {
                permits::concurrent_batches(&sizes, outputs.contains(&Reduce::Tokens))
            } else {
                1
            },
            outputs,
            memory_limit: None,
            operators,
        };
        let session = CudaSession::load(&self.environment, options).map_err(refused)?;
        Ok(Arc::new(session))
    }
}

/// A GPU's number as CUDA has it.
fn cuda_number(number: usize) -> u32 {
    u32::try_from(number).expect("the driver counts its GPUs in 32 bits")
}

/// How many threads feed one of several devices, where a run has `threads` for all of them.
/// `per_token`: whether the vectors of all tokens are an output.
#[must_use]
pub fn workers_for(
    device: Device,
    threads: usize,
    devices: usize,
    model: &Model,
    per_token: bool,
) -> usize {
    match device {
        Device::Cpu => (threads / devices).max(1),
        // While the GPU computes, one worker handles the rows of the last batch and prepares the
        // next one.
        Device::Cuda(_) => {
            1 + permits::concurrent_batches(&model.architecture().sizes(), per_token)
        }
    }
}

/// Number of tokens of a batch that fit on a GPU with `free` bytes of memory, in addition to the
/// model's weights. `per_token`: whether their vectors are an output.
#[must_use]
pub fn gpu_batch_tokens(model: &Model, precision: Precision, free: u64, per_token: bool) -> usize {
    let bytes = precision.bytes();
    let weights = model.weights_bytes() / 4 * bytes as u64;
    let sizes = model.architecture().sizes();
    let concurrent = permits::concurrent_batches(&sizes, per_token);
    budget::batch_tokens(free, weights, &sizes, bytes, concurrent)
}
