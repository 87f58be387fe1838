//! A model on an NVIDIA GPU: ONNX Runtime's CUDA provider.
//!
//! Nothing falls back to the CPU: a session that could not run every node on the device is refused.
//! One or two batches are on the device at the same time ([`super::permits`]), each on a stream of
//! its own. A batch that runs out of memory is tried again when it has the device to itself.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use half::f16;
use ort::AsPointer;
use ort::environment::Environment;
use ort::ep::{ArenaExtendStrategy, CUDA};
use ort::logging::LogLevel;
use ort::memory::Allocator;
use ort::operator::OperatorDomain;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, Session};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorElementType};
use seqembed_onnx::graph::ort_cuda::LONGEST_MAX;
use seqembed_onnx::{GraphKind, Precision};

use super::errors::engine_error;
use super::layout::{BatchLayout, rounded_up};
use super::permits::Permits;
use crate::device::Device;
use crate::engine::batch::{Batch, Reduce};
use crate::engine::error::EngineError;
use crate::engine::session::{self, Engine, SessionInfo};
use crate::vectors::Floats;

/// What a session on a GPU is loaded from.
pub struct CudaSessionOptions<'a> {
    /// The graph, of a kind without padding, with its weights in a file.
    pub graph: &'a [u8],
    /// The folder of the file with the weights.
    pub folder: &'a Path,
    /// Which GPU, as CUDA counts them.
    pub device: u32,
    /// The graph's kind.
    pub kind: GraphKind,
    /// The number format that the graph computes in.
    pub precision: Precision,
    /// The graph's outputs.
    pub outputs: Vec<Reduce>,
    /// Numbers in a row.
    pub hidden: usize,
    /// The id of `<mask>`, where the graph has the input `embedding_factor`.
    pub mask_id: Option<i64>,
    /// How many batches may be on the device at the same time.
    pub concurrent_batches: usize,
    /// Maximum number of bytes that ONNX Runtime may use on the device; `None`: all of its memory.
    pub memory_limit: Option<u64>,
    /// The operators of the domain `seqembed` for GPUs, which packed and fused graphs need.
    pub operators: Option<OperatorDomain>,
}

/// An input of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Ids,
    Starts,
    CumulativeLengths,
    Range,
    Positions,
    Offsets,
    AllPositions,
    AllTokens,
    EmbeddingFactor,
}

/// All inputs that graphs without padding may have, by name.
const INPUTS: [(&CStr, Input); 9] = [
    (c"input_ids", Input::Ids),
    (c"sequence_starts", Input::Starts),
    (c"cumulative_sequence_length", Input::CumulativeLengths),
    (c"pool_range", Input::Range),
    (c"position_ids", Input::Positions),
    (c"token_offset", Input::Offsets),
    (c"all_positions", Input::AllPositions),
    (c"all_tokens", Input::AllTokens),
    (c"embedding_factor", Input::EmbeddingFactor),
];

/// A model on a GPU.
pub struct CudaSession {
    info: SessionInfo,
    permits: Permits,
    /// When each batch began and ended, of those that [`Engine::computed`] has not given yet.
    spans: Mutex<Vec<(Instant, Instant)>>,
    session: Session,
    device: u32,
    inputs: Vec<(&'static CStr, Input)>,
    kind: GraphKind,
    outputs: Vec<Reduce>,
    half_tokens: bool,
    hidden: usize,
    mask_id: Option<i64>,
    least_length: usize,
}

impl CudaSession {
    /// Loads the model.
    ///
    /// # Errors
    /// When ONNX Runtime has no CUDA provider or cannot use it, when the device has not enough
    /// memory, or when a part of the graph cannot be computed on it.
    pub fn load(
        environment: &Environment,
        mut load: CudaSessionOptions,
    ) -> Result<Self, EngineError> {
        let device = i32::try_from(load.device)
            .map_err(|_| EngineError::Runtime(format!("there is no GPU {}", load.device)))?;
        let mut provider = CUDA::default()
            .with_device_id(device)
            .with_tf32(false)
            .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested);
        if let Some(limit) = load.memory_limit {
            provider = provider.with_memory_limit(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        let mut builder = Session::builder(environment)
            .map_err(engine_error)?
            .with_no_environment_execution_providers()
            .map_err(engine_error)?
            .with_execution_providers([provider.build().error_on_failure()])
            .map_err(engine_error)?
            .with_disable_cpu_fallback()
            .map_err(engine_error)?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(engine_error)?
            // Errors come back to the caller, who reports them; out of memory is not even one.
            .with_log_level(LogLevel::Fatal)
            .map_err(engine_error)?
            .with_intra_threads(1)
            .map_err(engine_error)?
            .with_inter_threads(1)
            .map_err(engine_error)?
            // Every batch has a shape of its own: memory plans for all of them would pile up.
            .with_memory_pattern(false)
            .map_err(engine_error)?
            // Weights in the arena would fragment the memory that batches need.
            .with_device_allocated_initializers()
            .map_err(engine_error)?
            .with_config_entry(
                "session.model_external_initializers_file_folder_path",
                load.folder.to_str().ok_or(EngineError::Encoding)?,
            )
            .map_err(engine_error)?;
        if let Some(operators) = load.operators.take() {
            builder = builder.with_operators(operators).map_err(engine_error)?;
        }
        let session = builder
            .commit_from_memory(load.graph)
            .map_err(engine_error)?;
        Self::around(session, load)
    }

    /// The engine around a session of ONNX Runtime.
    fn around(session: Session, load: CudaSessionOptions) -> Result<Self, EngineError> {
        let mut inputs = Vec::new();
        for input in session.inputs() {
            let known = INPUTS
                .into_iter()
                .find(|(name, _)| name.to_bytes() == input.name().as_bytes());
            inputs.push(known.ok_or_else(|| {
                EngineError::Runtime(format!("the graph has an unknown input {:?}", input.name()))
            })?);
        }
        let half_tokens = session.outputs().iter().any(|output| {
            output.name() == "tokens"
                && output.dtype().tensor_type() == Some(TensorElementType::Float16)
        });
        let device = Device::Cuda(usize::try_from(load.device).unwrap_or(usize::MAX));
        Ok(Self {
            info: SessionInfo::of(&session, load.graph, device)?,
            permits: Permits::new(load.concurrent_batches),
            spans: Mutex::default(),
            device: load.device,
            inputs,
            kind: load.kind,
            outputs: load.outputs,
            half_tokens,
            hidden: load.hidden,
            mask_id: load.mask_id,
            // Below these, ONNX Runtime's attention in fp32 takes memory that grows with the square
            // of the length for every sequence, and RotaryEmbedding needs as many columns as its
            // rows have.
            least_length: match load.precision {
                Precision::Fp32 => 256,
                Precision::Fp16 | Precision::Bf16 | Precision::Fp8 => 64,
            },
            session,
        })
    }

    /// When batches began and ended on the device, since this was last asked. Times in which
    /// callers waited for a permit do not count.
    pub fn take_computed(&self) -> Vec<(Instant, Instant)> {
        std::mem::take(&mut *self.spans.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A tensor in the host's memory, its values not yet set. Page-locked memory would save less
    /// than a thousandth of a batch's time, and ONNX Runtime refuses it for outputs: it takes it
    /// for memory of the device.
    fn tensor<T: PrimitiveTensorElementType + std::fmt::Debug>(
        shape: &[usize],
    ) -> Result<Tensor<T>, EngineError> {
        Tensor::new(&Allocator::default(), shape).map_err(engine_error)
    }

    /// A tensor with values.
    fn filled<T: PrimitiveTensorElementType + std::fmt::Debug>(
        shape: &[usize],
        fill: impl FnOnce(&mut [T]),
    ) -> Result<DynValue, EngineError> {
        let mut tensor = Self::tensor(shape)?;
        fill(tensor.extract_tensor_mut().1);
        Ok(tensor.into_dyn())
    }

    fn input(&self, layout: &BatchLayout, input: Input) -> Result<DynValue, EngineError> {
        let (tokens, length) = (layout.tokens(), layout.length());
        match input {
            Input::Ids => Self::filled(&[tokens], |target| layout.ids(target)),
            Input::Starts | Input::CumulativeLengths => {
                let starts = layout.starts();
                Self::filled(&[starts.len()], |target| target.copy_from_slice(starts))
            }
            Input::Range => {
                let ranges = layout.batch().ranges.as_flattened();
                Self::filled(&[ranges.len() / 2, 2], |target| {
                    target.copy_from_slice(ranges);
                })
            }
            Input::Positions => Self::filled(&[tokens], |target| layout.positions(target)),
            Input::Offsets => Self::filled(&[layout.sequences(), length], |target| {
                layout.offsets(target);
            }),
            Input::AllPositions => Self::filled(&[length], |target: &mut [f32]| {
                for (at, target) in target.iter_mut().enumerate() {
                    *target = at as f32;
                }
            }),
            Input::AllTokens => Self::filled(&[tokens], |target: &mut [i32]| {
                for (target, at) in target.iter_mut().zip(0..) {
                    *target = at;
                }
            }),
            Input::EmbeddingFactor => Self::filled(&[tokens, 1], |target: &mut [f32]| {
                target.fill(1.0);
                if let Some(mask) = self.mask_id {
                    let factors = layout.batch().embedding_factors(mask);
                    target[..factors.len()].copy_from_slice(&factors);
                }
            }),
        }
    }

    /// Computes outputs, each into a tensor.
    fn compute(
        &self,
        inputs: &[DynValue],
        outputs: &[&CStr],
        targets: &mut [DynValue],
    ) -> Result<(), EngineError> {
        let mut infer = || {
            let started = Instant::now();
            let done = self.infer(inputs, outputs, targets, None);
            let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
            spans.push((started, Instant::now()));
            done
        };
        let permit = self.permits.acquire();
        let done = infer();
        if !matches!(done, Err(EngineError::OutOfMemory(_))) {
            return done;
        }
        drop(permit);
        // The memory may be in use by another batch, or kept in the arena by earlier ones.
        let _alone = self.permits.acquire_all();
        self.shrink()?;
        let done = infer();
        if matches!(done, Err(EngineError::OutOfMemory(_))) {
            // What this attempt left in the arena may be what a smaller batch lacks.
            self.shrink()?;
        }
        done
    }

    /// Runs the session.
    fn infer(
        &self,
        inputs: &[DynValue],
        outputs: &[&CStr],
        targets: &mut [DynValue],
        options: Option<&RunOptions>,
    ) -> Result<(), EngineError> {
        let names: Vec<*const c_char> = self.inputs.iter().map(|(name, _)| name.as_ptr()).collect();
        let values: Vec<_> = inputs.iter().map(AsPointer::ptr).collect();
        let outputs: Vec<*const c_char> = outputs.iter().map(|name| name.as_ptr()).collect();
        let mut results: Vec<_> = targets.iter_mut().map(AsPointer::ptr_mut).collect();
        // SAFETY: names are C strings and values live tensors, as many as told; the session
        // outlives the call. The results are written into `targets`, one for each output, which are
        // of the outputs' types and shapes, or ONNX Runtime refuses.
        unsafe {
            let status = (ort::api().Run)(
                self.session.ptr().cast_mut(),
                options.map_or(ptr::null(), AsPointer::ptr),
                names.as_ptr(),
                values.as_ptr(),
                values.len(),
                outputs.as_ptr(),
                outputs.len(),
                results.as_mut_ptr(),
            );
            ort::Error::result_from_status(status).map_err(engine_error)
        }
    }

    /// Gives all memory that no batch uses back to the device. ONNX Runtime does so at the end of a
    /// run, here of the smallest batch there is.
    fn shrink(&self) -> Result<(), EngineError> {
        let batch = Batch {
            ids: vec![0],
            starts: vec![0, 1],
            ranges: vec![[0, 1]],
            maxima: Vec::new(),
        };
        let Some(&reduce) = self.outputs.first() else {
            return Ok(());
        };
        let mut options = RunOptions::new().map_err(engine_error)?;
        options
            .set(
                "memory.enable_memory_arena_shrinkage",
                format!("gpu:{}", self.device),
            )
            .map_err(engine_error)?;
        let layout = BatchLayout::new(&batch, self.least_length);
        let inputs = self.inputs(&layout)?;
        let mut targets = self.targets(&layout, reduce)?;
        match self.infer(&inputs, names(reduce), &mut targets, Some(&options)) {
            // Not even that fits. The next batch will report it.
            Err(EngineError::OutOfMemory(_)) => Ok(()),
            done => done,
        }
    }

    fn inputs(&self, layout: &BatchLayout) -> Result<Vec<DynValue>, EngineError> {
        self.inputs
            .iter()
            .map(|&(_, input)| self.input(layout, input))
            .collect()
    }

    /// The tensors that the outputs go to.
    fn targets(&self, layout: &BatchLayout, reduce: Reduce) -> Result<Vec<DynValue>, EngineError> {
        let outputs = reduce.outputs().iter();
        outputs.map(|&output| self.target(layout, output)).collect()
    }

    /// The tensor that an output goes to.
    fn target(&self, layout: &BatchLayout, reduce: Reduce) -> Result<DynValue, EngineError> {
        match reduce {
            Reduce::Tokens if self.half_tokens => {
                let tensor = Self::tensor::<f16>(&[layout.tokens(), self.hidden])?;
                Ok(tensor.into_dyn())
            }
            Reduce::Tokens => {
                let tensor = Self::tensor::<f32>(&[layout.tokens(), self.hidden])?;
                Ok(tensor.into_dyn())
            }
            Reduce::Mean | Reduce::Max | Reduce::Both => {
                let ranges = layout.batch().ranges.len();
                Ok(Self::tensor::<f32>(&[ranges, self.hidden])?.into_dyn())
            }
        }
    }
}

/// The vectors of tokens, where ONNX Runtime put them.
struct HalfTokens {
    tensor: DynValue,
    /// How many of the values are those of tokens: the rest are those of the padding.
    count: usize,
}

impl HalfTokens {
    fn new(tensor: DynValue, count: usize) -> Result<Self, EngineError> {
        let (_, values) = tensor.try_extract_tensor::<f16>().map_err(engine_error)?;
        if values.len() < count {
            return Err(EngineError::Runtime(format!(
                "the graph returned {} values instead of {count}",
                values.len()
            )));
        }
        Ok(Self { tensor, count })
    }
}

impl AsRef<[f16]> for HalfTokens {
    fn as_ref(&self) -> &[f16] {
        let values = self.tensor.try_extract_tensor::<f16>();
        let (_, values) = values.expect("it was looked at before");
        &values[..self.count]
    }
}

impl session::Session for CudaSession {
    fn info(&self) -> &SessionInfo {
        &self.info
    }
}

impl Engine for CudaSession {
    fn run(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError> {
        self.run_floats(batch, reduce).map(Floats::into_singles)
    }

    fn run_floats(&self, batch: &Batch, reduce: Reduce) -> Result<Floats, EngineError> {
        if let Some(missing) = session::missing(&self.outputs, reduce) {
            return Err(EngineError::Output(missing));
        }
        // Operators of ONNX Runtime count the values of a tensor in 31 bits, and the widest tensor
        // has several times `hidden` values a token.
        let most = i32::MAX as usize / (4 * self.hidden);
        if batch.tokens() > most {
            return Err(EngineError::OutOfMemory(format!(
                "the batch has {} tokens, but ONNX Runtime supports at most {most}",
                batch.tokens()
            )));
        }
        let rows = match reduce {
            Reduce::Tokens => batch.tokens(),
            Reduce::Mean | Reduce::Max | Reduce::Both => batch.ranges.len(),
        };
        if rows == 0 {
            return Ok(Vec::new().into());
        }
        if self.kind == GraphKind::OrtCuda && matches!(reduce, Reduce::Max | Reduce::Both) {
            let longest = batch.ranges.iter().map(|[start, end]| end - start).max();
            if longest.is_some_and(|longest| usize::try_from(longest).unwrap_or(0) > LONGEST_MAX) {
                return Err(EngineError::Runtime(format!(
                    "portable kernels cannot compute the maximum over more than {LONGEST_MAX} \
                     tokens; use shorter windows (option `max_length`)"
                )));
            }
        }
        let layout = BatchLayout::new(batch, self.least_length);
        let inputs = self.inputs(&layout)?;
        let mut targets = self.targets(&layout, reduce)?;
        self.compute(&inputs, names(reduce), &mut targets)?;
        let count = rows * self.hidden;
        let mut targets = targets.into_iter();
        let target = targets.next().ok_or(EngineError::Output(reduce))?;
        if reduce == Reduce::Tokens && self.half_tokens {
            let values = HalfTokens::new(target, count)?;
            return Ok(Floats::Half(Box::new(values)));
        }
        let values = |target: &DynValue| {
            let values = target.try_extract_tensor::<f32>().map_err(engine_error);
            values.map(|(_, values)| values[..count].to_vec())
        };
        let own = values(&target)?;
        match targets.next() {
            Some(maxima) => Ok(batch.either(own, &values(&maxima)?, self.hidden).into()),
            None => Ok(own.into()),
        }
    }

    fn cost(&self, batch: &Batch) -> usize {
        rounded_up(batch.tokens())
    }

    fn computed(&self) -> Vec<(Instant, Instant)> {
        self.take_computed()
    }
}

fn names(reduce: Reduce) -> &'static [&'static CStr] {
    match reduce {
        Reduce::Mean => &[c"mean"],
        Reduce::Max => &[c"max"],
        Reduce::Both => &[c"mean", c"max"],
        Reduce::Tokens => &[c"tokens"],
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use seqembed_onnx::{ExportOptions, GraphRequest, Model, Output};

    use super::*;
    use crate::engine::cpu::operators;
    use crate::engine::cpu::session::{CpuSession, CpuSessionOptions};
    use crate::engine::runtime::{self, locate};
    use crate::settings::Kernels;

    fn environment() -> &'static Environment {
        static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
        ENVIRONMENT.get_or_init(|| {
            let (builder, located) =
                locate::load(None).expect("ONNX Runtime: ORT_DYLIB_PATH names it");
            runtime::start(builder, &located).expect("an environment")
        })
    }

    fn graph(model: &Model, tokens: Output) -> Vec<u8> {
        let request = GraphRequest {
            kind: GraphKind::Packed,
            precision: Precision::Fp32,
            layers: vec![2],
            outputs: vec![Output::Mean, Output::Max, tokens],
        };
        model.graph(&request).expect("a graph")
    }

    fn load<'a>(graph: &'a [u8], model: &'a Model) -> CudaSessionOptions<'a> {
        CudaSessionOptions {
            graph,
            folder: model.folder(),
            device: 0,
            kind: GraphKind::Packed,
            precision: Precision::Fp32,
            outputs: vec![Reduce::Mean, Reduce::Max, Reduce::Tokens],
            hidden: model.architecture().hidden(),
            mask_id: None,
            concurrent_batches: 2,
            memory_limit: None,
            operators: None,
        }
    }

    fn model(folder: &Path, fixture: &str) -> Model {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(fixture);
        let target = folder.join("model");
        seqembed_onnx::export(&source, &target, &ExportOptions::default()).expect("an export")
    }

    fn batch(lengths: &[usize]) -> Batch {
        let mut batch = Batch {
            starts: vec![0],
            ..Batch::default()
        };
        for (row, &length) in lengths.iter().enumerate() {
            let start = i32::try_from(batch.ids.len()).expect("short");
            batch.ids.extend((0..length).map(|at| {
                let letter = i64::try_from(at * 7 + row * 3).expect("short");
                4 + letter % 20
            }));
            let end = i32::try_from(batch.ids.len()).expect("short");
            batch.starts.push(end);
            batch.ranges.push([start + 1, end - 1]);
        }
        batch
    }

    /// A graph of the kind that runs on CPUs too, in a session of the CPU: all but the device is
    /// the same.
    #[test]
    fn filling_up_changes_no_row() {
        for fixture in ["esm2/checkpoints/hub-safetensors", "dna/dnabert-3"] {
            let folder = tempfile::tempdir().expect("a folder");
            let model = model(folder.path(), fixture);
            for tokens in [Output::Tokens, Output::HalfTokens] {
                let graph = graph(&model, tokens);
                let session = Session::builder(environment())
                    .and_then(|builder| {
                        builder
                            .with_operators(operators::domain()?)?
                            .with_config_entry(
                                "session.model_external_initializers_file_folder_path",
                                model.folder().display().to_string(),
                            )?
                            .commit_from_memory(&graph)
                    })
                    .expect("a session");
                let load = load(&graph, &model);
                let engine = CudaSession::around(session, load).expect("known inputs");
                let reference = CpuSession::load(
                    environment(),
                    CpuSessionOptions {
                        graph: &super::tests::graph(&model, Output::Tokens),
                        folder: model.folder(),
                        kernels: Kernels::Auto,
                        outputs: vec![Reduce::Mean, Reduce::Max, Reduce::Tokens],
                        hidden: model.architecture().hidden(),
                        pad_id: 1,
                        mask_id: None,
                        threads: 1,
                    },
                )
                .expect("a session");
                for lengths in [&[3][..], &[40, 24], &[70, 17, 3, 64], &[9; 30]] {
                    let batch = batch(lengths);
                    for reduce in [Reduce::Mean, Reduce::Max, Reduce::Tokens] {
                        let found = engine.run(&batch, reduce).expect("a result");
                        let expected = reference.run(&batch, reduce).expect("a result");
                        assert_eq!(found.len(), expected.len(), "{reduce:?}");
                        let half = tokens == Output::HalfTokens && reduce == Reduce::Tokens;
                        let bound = if half { 2e-3 } else { 1e-6 };
                        for (found, expected) in found.iter().zip(&expected) {
                            let most = bound * expected.abs().max(1.0);
                            assert!((found - expected).abs() <= most, "{found} {expected}");
                        }
                    }
                }
                assert_eq!(engine.take_computed().len(), 12);
                // Concurrent callers do not affect each other's rows.
                let batches = [&[3][..], &[40, 24], &[9; 30], &[70, 17, 3, 64]].map(batch);
                let alone = batches
                    .each_ref()
                    .map(|batch| engine.run(batch, Reduce::Mean));
                std::thread::scope(|scope| {
                    for (batch, alone) in batches.iter().zip(&alone) {
                        let engine = &engine;
                        scope.spawn(move || {
                            for _ in 0..20 {
                                let rows = engine.run(batch, Reduce::Mean).expect("a result");
                                assert_eq!(alone.as_ref().expect("a result"), &rows);
                            }
                        });
                    }
                });
                assert_eq!(engine.take_computed().len(), 84);
                // An empty batch computes nothing.
                assert_eq!(engine.take_computed(), []);
                let nothing = engine.run(&Batch::default(), Reduce::Mean);
                assert!(nothing.expect("no rows").is_empty());
            }
        }
    }

    #[test]
    fn without_a_provider_nothing_runs_elsewhere() {
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(folder.path(), "esm2/checkpoints/hub-safetensors");
        let graph = graph(&model, Output::Tokens);
        let loaded = CudaSession::load(environment(), load(&graph, &model));
        // On a machine with a GPU, its provider refuses operators that are for CPUs.
        let error = loaded.err().expect("an error");
        assert!(matches!(error, EngineError::Runtime(_)), "{error}");
        println!("{error}");
    }
}
