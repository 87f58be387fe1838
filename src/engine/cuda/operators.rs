//! The operators of the domain `seqembed` on a GPU, of which packed and fused graphs consist, in
//! fp16 or bf16, and some in fp8.
//!
//! Packed graphs have the same operators as on CPUs ([`crate::engine::cpu::operators`]), with the
//! same names and shapes. Fused graphs have these:
//! - `NormDense(x, moments, weight)`, `NormDenseGelu`, `NormDenseGeglu` and `NormDenseSwiglu(x,
//!   moments, weight, bias)`, `NormDenseRotary(x, moments, weight, bias, angles)`;
//! - `DenseResidual(x, weight, bias, skip)` and `DenseResidualNorm(x, weight, bias, skip, moments,
//!   gamma)`, which give the sum and its moments;
//! - `TokenRows(table, input_ids)`, `LayerNorm(x, gamma, beta)`, `RowMoments(x)`;
//! - `RotaryAngles(sequence_starts, input_ids)` and `PreRotatedAttention(qkv, sequence_starts)`;
//! - in fp8, `QuantizeRows(x, moments)`, which gives rows and a factor for each,
//!   `NormDenseGeluFp8`, `NormDenseGegluFp8` and `NormDenseSwigluFp8(rows, factors, weight, bias)`,
//!   and `DenseResidualFp8`, which is `DenseResidual` in fp8.
//!
//! Both have `QueryKeyNormRotary(qkv, bias, query_gamma, key_gamma, angles)`, which normalises and
//! rotates queries and keys, and `SplitAttention(queries_keys, qkv, sequence_starts)`, which takes
//! the values alone from its second input.
//!
//! The kernels are compiled for the sizes of one model. Each operator checks that its inputs have
//! them.

use std::ptr;
use std::sync::Arc;

use ort::AsPointer;
use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput,
    OperatorOutput,
};
use ort::value::{TensorElementType, ValueRef};
use seqembed_onnx::Activation;

use super::kernels::{CudaKernels, EpilogueArguments};
use super::launch::{DevicePtr, KernelError, NULL};
use super::programs::{Epilogue, Layer};

/// All operators, ready for a session.
///
/// # Errors
/// When ONNX Runtime refuses one.
pub fn domain(kernels: &Arc<CudaKernels>) -> ort::Result<OperatorDomain> {
    let mut domain = OperatorDomain::new("seqembed")?;
    for (kind, name) in OpKind::ALL {
        domain = domain.add(CudaOperator {
            kind,
            name,
            kernels: Arc::clone(kernels),
        })?;
    }
    Ok(domain)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpKind {
    RotaryAttention,
    PreRotatedAttention,
    SplitAttention,
    AlibiAttention,
    Attention,
    SkipLayerNorm,
    LayerNorm,
    BiasGelu,
    Geglu,
    Swiglu,
    QueryKeyNormRotary,
    Positions,
    RotaryAngles,
    PoolMean,
    PoolMax,
    TokenRows,
    RowMoments,
    NormDense,
    NormDenseGelu,
    NormDenseGeglu,
    NormDenseSwiglu,
    NormDenseRotary,
    DenseResidual,
    DenseResidualNorm,
    QuantizeRows,
    NormDenseGeluFp8,
    NormDenseGegluFp8,
    NormDenseSwigluFp8,
    DenseResidualFp8,
}

impl OpKind {
    /// All operators with their names in graphs.
    const ALL: [(Self, &'static str); 29] = [
        (Self::RotaryAttention, "RotaryAttention"),
        (Self::PreRotatedAttention, "PreRotatedAttention"),
        (Self::SplitAttention, "SplitAttention"),
        (Self::AlibiAttention, "AlibiAttention"),
        (Self::Attention, "Attention"),
        (Self::SkipLayerNorm, "SkipLayerNorm"),
        (Self::LayerNorm, "LayerNorm"),
        (Self::BiasGelu, "BiasGelu"),
        (Self::Geglu, "Geglu"),
        (Self::Swiglu, "Swiglu"),
        (Self::QueryKeyNormRotary, "QueryKeyNormRotary"),
        (Self::Positions, "Positions"),
        (Self::RotaryAngles, "RotaryAngles"),
        (Self::PoolMean, "PoolMean"),
        (Self::PoolMax, "PoolMax"),
        (Self::TokenRows, "TokenRows"),
        (Self::RowMoments, "RowMoments"),
        (Self::NormDense, "NormDense"),
        (Self::NormDenseGelu, "NormDenseGelu"),
        (Self::NormDenseGeglu, "NormDenseGeglu"),
        (Self::NormDenseSwiglu, "NormDenseSwiglu"),
        (Self::NormDenseRotary, "NormDenseRotary"),
        (Self::DenseResidual, "DenseResidual"),
        (Self::DenseResidualNorm, "DenseResidualNorm"),
        (Self::QuantizeRows, "QuantizeRows"),
        (Self::NormDenseGeluFp8, "NormDenseGeluFp8"),
        (Self::NormDenseGegluFp8, "NormDenseGegluFp8"),
        (Self::NormDenseSwigluFp8, "NormDenseSwigluFp8"),
        (Self::DenseResidualFp8, "DenseResidualFp8"),
    ];

    /// Whether it has the attribute `epsilon` of a layer norm.
    fn norms(self) -> bool {
        matches!(
            self,
            Self::SkipLayerNorm
                | Self::LayerNorm
                | Self::NormDense
                | Self::NormDenseGelu
                | Self::NormDenseGeglu
                | Self::NormDenseSwiglu
                | Self::NormDenseRotary
                | Self::DenseResidualNorm
                | Self::QuantizeRows
                | Self::QueryKeyNormRotary
        )
    }

    /// The activation that it includes.
    fn activation(self) -> Option<Activation> {
        match self {
            Self::BiasGelu
            | Self::Geglu
            | Self::NormDenseGelu
            | Self::NormDenseGeglu
            | Self::NormDenseGeluFp8
            | Self::NormDenseGegluFp8 => Some(Activation::Gelu),
            Self::Swiglu | Self::NormDenseSwiglu | Self::NormDenseSwigluFp8 => {
                Some(Activation::Silu)
            }
            _ => None,
        }
    }
}

struct CudaOperator {
    kind: OpKind,
    name: &'static str,
    kernels: Arc<CudaKernels>,
}

impl Operator for CudaOperator {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        self.name
    }

    fn execution_provider_type(&self) -> Option<&str> {
        Some("CUDAExecutionProvider")
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        const F32: TensorElementType = TensorElementType::Float32;
        const I32: TensorElementType = TensorElementType::Int32;
        const U8: TensorElementType = TensorElementType::Uint8;
        let own = self.element();
        let types = match self.kind {
            OpKind::RotaryAttention | OpKind::Attention | OpKind::SplitAttention => {
                vec![own, own, I32]
            }
            OpKind::AlibiAttention => vec![own, own, F32, I32],
            OpKind::SkipLayerNorm => vec![own; 5],
            OpKind::LayerNorm => vec![own; 3],
            OpKind::BiasGelu => vec![own, own],
            OpKind::Geglu | OpKind::Swiglu | OpKind::RowMoments => vec![own],
            OpKind::QueryKeyNormRotary => vec![own, own, own, own, F32],
            OpKind::Positions | OpKind::RotaryAngles => vec![I32, TensorElementType::Int64],
            OpKind::PoolMean | OpKind::PoolMax | OpKind::PreRotatedAttention => vec![own, I32],
            OpKind::TokenRows => vec![own, TensorElementType::Int64],
            OpKind::NormDense => vec![own, F32, own],
            OpKind::NormDenseGelu | OpKind::NormDenseGeglu | OpKind::NormDenseSwiglu => {
                vec![own, F32, own, own]
            }
            OpKind::NormDenseRotary => vec![own, F32, own, own, F32],
            OpKind::DenseResidual => vec![own; 4],
            OpKind::DenseResidualNorm => vec![own, own, own, own, F32, own],
            OpKind::QuantizeRows => vec![own, F32],
            OpKind::NormDenseGeluFp8 | OpKind::NormDenseGegluFp8 | OpKind::NormDenseSwigluFp8 => {
                vec![U8, F32, U8, own]
            }
            OpKind::DenseResidualFp8 => vec![U8, U8, own, own],
        };
        types.into_iter().map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        let own = self.element();
        match self.kind {
            OpKind::Positions => vec![OperatorOutput::required(TensorElementType::Int64)],
            OpKind::RotaryAngles | OpKind::PoolMean | OpKind::PoolMax | OpKind::RowMoments => {
                vec![OperatorOutput::required(TensorElementType::Float32)]
            }
            OpKind::DenseResidual | OpKind::DenseResidualNorm | OpKind::DenseResidualFp8 => vec![
                OperatorOutput::required(own),
                OperatorOutput::required(TensorElementType::Float32),
            ],
            OpKind::QuantizeRows => vec![
                OperatorOutput::required(TensorElementType::Uint8),
                OperatorOutput::required(TensorElementType::Float32),
            ],
            OpKind::NormDenseGeluFp8 | OpKind::NormDenseGegluFp8 | OpKind::NormDenseSwigluFp8 => {
                vec![OperatorOutput::required(TensorElementType::Uint8)]
            }
            // The second one is scratch memory, from ONNX Runtime's arena.
            OpKind::SkipLayerNorm | OpKind::RotaryAttention => {
                vec![OperatorOutput::required(own), OperatorOutput::optional(own)]
            }
            _ => vec![OperatorOutput::required(own)],
        }
    }

    fn create_kernel<'attr>(
        &self,
        attributes: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        let epsilon = attributes.get::<f32>("epsilon");
        if self.kind.norms() && epsilon.is_none() {
            return Err(fault(format!("{} needs epsilon", self.name)));
        }
        let sizes = self.kernels.sizes();
        if self
            .kind
            .activation()
            .is_some_and(|own| own != sizes.activation)
        {
            return Err(fault(format!(
                "kernels for {:?} were given {}",
                sizes.activation, self.name
            )));
        }
        let heads = sizes.heads;
        if let Some(named) = attributes.get::<i64>("num_heads")
            && usize::try_from(named) != Ok(heads)
        {
            return Err(fault(format!(
                "kernels for {heads} heads were given {named}"
            )));
        }
        let (kind, kernels) = (self.kind, Arc::clone(&self.kernels));
        let epsilon = epsilon.unwrap_or_default();
        let gain = attributes.get::<f32>("gain").unwrap_or(1.0);
        Ok(Box::new(move |context: &ComputeContext| {
            Call {
                kernels: &kernels,
                context,
                stream: stream(context)?,
                epsilon,
                gain,
            }
            .run(kind)
        }))
    }
}

impl CudaOperator {
    fn element(&self) -> TensorElementType {
        if self.kernels.bf16() {
            TensorElementType::Bfloat16
        } else {
            TensorElementType::Float16
        }
    }
}

fn fault(message: impl Into<String>) -> ort::Error {
    ort::Error::new(message.into())
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is what `map_err` hands over"
)]
fn refused(error: KernelError) -> ort::Error {
    fault(error.to_string())
}

fn stream(context: &ComputeContext) -> ort::Result<DevicePtr> {
    // CUDA's default stream is a null pointer.
    let stream = context.stream()?;
    Ok(DevicePtr(
        stream.map_or(ptr::null_mut(), |stream| stream.as_ptr().cast()),
    ))
}

/// A dense layer in the model's 16-bit format.
fn dense_16_bit(epilogue: Epilogue) -> Layer {
    Layer {
        epilogue,
        fp8: false,
    }
}

/// A dense layer in fp8.
fn dense_fp8(epilogue: Epilogue) -> Layer {
    Layer {
        epilogue,
        fp8: true,
    }
}

/// A tensor on the device.
struct Tensor {
    memory: DevicePtr,
    shape: Vec<usize>,
}

impl Tensor {
    fn of(value: &ValueRef<'_>) -> ort::Result<Self> {
        let shape = value.dtype().tensor_shape();
        let shape = shape.ok_or_else(|| fault("expected a tensor"))?;
        Ok(Self {
            memory: memory(value.ptr())?,
            shape: shape
                .iter()
                .map(|&length| usize::try_from(length).unwrap_or(0))
                .collect(),
        })
    }

    fn length(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows of a matrix that must have this number of columns.
    fn rows(&self, columns: usize) -> ort::Result<usize> {
        match self.shape[..] {
            [rows, width] if width == columns => Ok(rows),
            _ => Err(fault(format!(
                "expected a matrix of {columns} columns, got shape {:?}",
                self.shape
            ))),
        }
    }

    fn check(&self, length: usize) -> ort::Result<DevicePtr> {
        if self.length() == length {
            Ok(self.memory)
        } else {
            Err(fault(format!(
                "expected {length} values, got shape {:?}",
                self.shape
            )))
        }
    }
}

/// The address of a tensor's values.
fn memory(value: *const ort::sys::OrtValue) -> ort::Result<DevicePtr> {
    let mut data = ptr::null_mut();
    // SAFETY: a live tensor.
    let status = unsafe { (ort::api().GetTensorMutableData)(value.cast_mut(), &raw mut data) };
    // SAFETY: a status that was just returned.
    unsafe { ort::Error::result_from_status(status) }?;
    Ok(DevicePtr(data.cast()))
}

/// One call of an operator.
struct Call<'a> {
    kernels: &'a CudaKernels,
    context: &'a ComputeContext,
    stream: DevicePtr,
    /// Attributes of the node, for operators that have them.
    epsilon: f32,
    gain: f32,
}

impl Call<'_> {
    fn input(&self, index: usize) -> ort::Result<Tensor> {
        let value = self.context.input(index)?;
        Tensor::of(&value.ok_or_else(|| fault(format!("input {index} is missing")))?)
    }

    /// Where the sequences start, and how many there are.
    fn starts(&self, index: usize) -> ort::Result<(DevicePtr, usize)> {
        let starts = self.input(index)?;
        let sequences = starts.length().checked_sub(1);
        let sequences = sequences.filter(|count| *count > 0);
        Ok((
            starts.memory,
            sequences.ok_or_else(|| fault("no sequences"))?,
        ))
    }

    fn output(&self, index: usize, shape: &[usize]) -> ort::Result<DevicePtr> {
        let value = self.context.output(index, shape.to_vec())?;
        memory(
            value
                .ok_or_else(|| fault(format!("output {index} is missing")))?
                .ptr(),
        )
    }

    fn run(&self, kind: OpKind) -> ort::Result<()> {
        match kind {
            OpKind::RotaryAttention
            | OpKind::PreRotatedAttention
            | OpKind::AlibiAttention
            | OpKind::Attention => self.attention(kind),
            OpKind::SplitAttention => self.split_attention(),
            OpKind::SkipLayerNorm => self.skip_layer_norm(),
            OpKind::LayerNorm => self.layer_norm(),
            OpKind::BiasGelu | OpKind::Geglu | OpKind::Swiglu => self.elementwise(kind),
            OpKind::QueryKeyNormRotary => self.query_key_norm_rotary(),
            OpKind::Positions | OpKind::RotaryAngles => self.by_position(kind),
            OpKind::PoolMean | OpKind::PoolMax => self.pool(kind),
            OpKind::TokenRows => self.token_rows(),
            OpKind::RowMoments => self.row_moments(),
            OpKind::NormDense => self.norm_dense(dense_16_bit(Epilogue::Norm)),
            OpKind::NormDenseGelu => self.norm_dense(dense_16_bit(Epilogue::NormActivation)),
            OpKind::NormDenseGeglu | OpKind::NormDenseSwiglu => {
                self.norm_dense(dense_16_bit(Epilogue::NormGated))
            }
            OpKind::NormDenseRotary => self.norm_dense(dense_16_bit(Epilogue::NormRotary)),
            OpKind::DenseResidual => self.residual(dense_16_bit(Epilogue::Residual)),
            OpKind::DenseResidualNorm => self.residual(dense_16_bit(Epilogue::ResidualNorm)),
            OpKind::QuantizeRows => self.quantize_rows(),
            OpKind::NormDenseGeluFp8 => self.norm_dense(dense_fp8(Epilogue::NormActivation)),
            OpKind::NormDenseGegluFp8 | OpKind::NormDenseSwigluFp8 => {
                self.norm_dense(dense_fp8(Epilogue::NormGated))
            }
            OpKind::DenseResidualFp8 => self.residual(dense_fp8(Epilogue::Residual)),
        }
    }

    fn attention(&self, kind: OpKind) -> ort::Result<()> {
        let sizes = self.kernels.sizes();
        let hidden = sizes.hidden;
        let qkv = self.input(0)?;
        let tokens = qkv.rows(3 * hidden)?;
        let starts = self.starts(match kind {
            OpKind::PreRotatedAttention => 1,
            OpKind::AlibiAttention => 3,
            _ => 2,
        })?;
        let out = self.output(0, &[tokens, hidden])?;
        let slopes = match kind {
            OpKind::AlibiAttention => self.input(2)?.check(sizes.heads)?,
            _ => NULL,
        };
        let bias = match kind {
            OpKind::PreRotatedAttention => NULL,
            _ => self.input(1)?.check(2 * hidden)?,
        };
        let mut queries_keys = (qkv.memory, 3 * hidden);
        let mut query_bias = bias;
        if kind == OpKind::RotaryAttention {
            let rotated = self.output(1, &[tokens, 2 * hidden])?;
            // SAFETY: ONNX Runtime's tensors live until the stream is done with them; shapes were
            // checked.
            unsafe {
                self.kernels
                    .rotate(self.stream, [qkv.memory, bias], starts, rotated, tokens)
            }
            .map_err(refused)?;
            queries_keys = (rotated, 2 * hidden);
            query_bias = NULL;
        }
        // SAFETY: as above.
        unsafe {
            self.kernels.attention(
                self.stream,
                queries_keys,
                qkv.memory,
                query_bias,
                slopes,
                starts,
                out,
                tokens,
            )
        }
        .map_err(refused)
    }

    fn split_attention(&self) -> ort::Result<()> {
        let hidden = self.kernels.sizes().hidden;
        let (queries_keys, qkv) = (self.input(0)?, self.input(1)?);
        let tokens = qkv.rows(3 * hidden)?;
        let queries_keys = queries_keys.check(tokens * 2 * hidden)?;
        let starts = self.starts(2)?;
        let out = self.output(0, &[tokens, hidden])?;
        // SAFETY: as in `attention`.
        unsafe {
            self.kernels.attention(
                self.stream,
                (queries_keys, 2 * hidden),
                qkv.memory,
                NULL,
                NULL,
                starts,
                out,
                tokens,
            )
        }
        .map_err(refused)
    }

    fn query_key_norm_rotary(&self) -> ort::Result<()> {
        let sizes = self.kernels.sizes();
        let hidden = sizes.hidden;
        let qkv = self.input(0)?;
        let tokens = qkv.rows(3 * hidden)?;
        let memory = [
            qkv.memory,
            self.input(1)?.check(2 * hidden)?,
            self.input(2)?.check(hidden)?,
            self.input(3)?.check(hidden)?,
            self.input(4)?.check(tokens * sizes.head_width)?,
        ];
        let normed = self.output(0, &[tokens, 2 * hidden])?;
        // SAFETY: as in `attention`.
        unsafe {
            self.kernels
                .query_key_norm_rotary(self.stream, memory, self.epsilon, normed, tokens)
        }
        .map_err(refused)
    }

    fn skip_layer_norm(&self) -> ort::Result<()> {
        let hidden = self.kernels.sizes().hidden;
        let x = self.input(0)?;
        let rows = x.rows(hidden)?;
        let skip = self.input(1)?.check(rows * hidden)?;
        let vector = |index| self.input(index)?.check(hidden);
        let inputs = [x.memory, skip, vector(2)?, vector(3)?, vector(4)?];
        let y = self.output(0, &[rows, hidden])?;
        let sum = if self.context.num_outputs()? > 1 {
            self.output(1, &[rows, hidden])?
        } else {
            NULL
        };
        // SAFETY: as in `attention`.
        unsafe {
            self.kernels
                .skip_layer_norm(self.stream, inputs, self.epsilon, y, sum, rows)
        }
        .map_err(refused)
    }

    fn layer_norm(&self) -> ort::Result<()> {
        let hidden = self.kernels.sizes().hidden;
        let x = self.input(0)?;
        let rows = x.rows(hidden)?;
        let vector = |index| self.input(index)?.check(hidden);
        let y = self.output(0, &[rows, hidden])?;
        let memory = [x.memory, vector(1)?, vector(2)?, y];
        // SAFETY: as in `attention`.
        unsafe {
            self.kernels
                .layer_norm(self.stream, memory, self.epsilon, rows)
        }
        .map_err(refused)
    }

    fn elementwise(&self, kind: OpKind) -> ort::Result<()> {
        let width = self.kernels.sizes().intermediate;
        let x = self.input(0)?;
        if kind == OpKind::BiasGelu {
            let rows = x.rows(width)?;
            let bias = self.input(1)?.check(width)?;
            let y = self.output(0, &[rows, width])?;
            // SAFETY: as in `attention`.
            unsafe {
                self.kernels
                    .bias_gelu(self.stream, [x.memory, bias, y], [rows, width])
            }
        } else {
            let rows = x.rows(2 * width)?;
            let y = self.output(0, &[rows, width])?;
            // SAFETY: as in `attention`.
            unsafe {
                self.kernels
                    .gated(self.stream, [x.memory, y], [rows, width])
            }
        }
        .map_err(refused)
    }

    fn by_position(&self, kind: OpKind) -> ort::Result<()> {
        let starts = self.starts(0)?;
        // The number of tokens is in the shape of the ids; the starts are in the device's memory.
        let tokens = self.input(1)?.length();
        if kind == OpKind::Positions {
            let positions = self.output(0, &[tokens])?;
            // SAFETY: as in `attention`.
            unsafe {
                self.kernels
                    .positions(self.stream, starts, positions, tokens)
            }
        } else {
            let angles = self.output(0, &[tokens, self.kernels.sizes().head_width])?;
            // SAFETY: as in `attention`.
            unsafe {
                self.kernels
                    .rotary_angles(self.stream, starts, angles, tokens)
            }
        }
        .map_err(refused)
    }

    fn pool(&self, kind: OpKind) -> ort::Result<()> {
        let hidden = self.kernels.sizes().hidden;
        let tokens = self.input(0)?;
        tokens.rows(hidden)?;
        let ranges = self.input(1)?;
        let count = ranges.rows(2)?;
        let out = self.output(0, &[count, hidden])?;
        // SAFETY: as in `attention`.
        unsafe {
            self.kernels.pool(
                self.stream,
                kind == OpKind::PoolMean,
                [tokens.memory, ranges.memory, out],
                count,
            )
        }
        .map_err(refused)
    }

    fn token_rows(&self) -> ort::Result<()> {
        let (table, ids) = (self.input(0)?, self.input(1)?);
        let shape = match table.shape[..] {
            [rows, width] if rows > 0 && width.is_multiple_of(8) => [rows, width],
            _ => return Err(fault(format!("no table of rows: {:?}", table.shape))),
        };
        let tokens = ids.length();
        let out = self.output(0, &[tokens, shape[1]])?;
        let memory = [table.memory, ids.memory, out];
        // SAFETY: as in `attention`.
        unsafe { self.kernels.token_rows(self.stream, memory, shape, tokens) }.map_err(refused)
    }

    /// The shape of the moments of this number of rows.
    fn moments(&self, rows: usize) -> [usize; 3] {
        [rows, self.kernels.moment_parts(), 2]
    }

    fn row_moments(&self) -> ort::Result<()> {
        let x = self.input(0)?;
        let rows = x.rows(self.kernels.sizes().hidden)?;
        let moments = self.output(0, &self.moments(rows))?;
        // SAFETY: as in `attention`.
        unsafe {
            self.kernels
                .row_moments(self.stream, [x.memory, moments], rows)
        }
        .map_err(refused)
    }

    fn quantize_rows(&self) -> ort::Result<()> {
        let hidden = self.kernels.sizes().hidden;
        let x = self.input(0)?;
        let rows = x.rows(hidden)?;
        let moments = self.input(1)?;
        let moments = moments.check(self.moments(rows).iter().product())?;
        let y = self.output(0, &[rows, hidden])?;
        let factors = self.output(1, &[rows])?;
        let memory = [x.memory, moments, y, factors];
        // SAFETY: as in `attention`.
        unsafe {
            self.kernels
                .quantize_rows(self.stream, memory, self.epsilon, rows)
        }
        .map_err(refused)
    }

    fn norm_dense(&self, layer: Layer) -> ort::Result<()> {
        let sizes = self.kernels.sizes();
        let (input, weight) = (self.input(0)?, self.input(2)?);
        let tokens = input.rows(sizes.hidden)?;
        let rows = weight.rows(sizes.hidden)?;
        let outputs = match layer.epilogue {
            Epilogue::NormGated => rows / 2,
            _ => rows,
        };
        let mut arguments = self.epilogue_arguments();
        if layer.fp8 {
            arguments.factors = self.input(1)?.check(tokens)?;
        } else {
            let moments = self.moments(tokens).iter().product();
            arguments.moments = self.input(1)?.check(moments)?;
        }
        match layer.epilogue {
            Epilogue::NormActivation | Epilogue::NormGated => {
                arguments.bias = self.input(3)?.check(rows)?;
            }
            Epilogue::NormRotary => {
                arguments.bias = self.input(3)?.check(2 * sizes.hidden)?;
                arguments.angles = self.input(4)?.check(tokens * sizes.head_width)?;
            }
            _ => {}
        }
        let output = self.output(0, &[tokens, outputs])?;
        let shape = [tokens, outputs, sizes.hidden];
        self.dense(
            layer,
            [input.memory, weight.memory, output],
            arguments,
            shape,
        )
    }

    fn residual(&self, layer: Layer) -> ort::Result<()> {
        let hidden = self.kernels.sizes().hidden;
        let (input, weight) = (self.input(0)?, self.input(1)?);
        let &[tokens, inputs] = &input.shape[..] else {
            return Err(fault(format!(
                "expected a matrix, got shape {:?}",
                input.shape
            )));
        };
        weight.check(hidden * inputs)?;
        let moments = self.moments(tokens);
        let mut arguments = self.epilogue_arguments();
        arguments.bias = self.input(2)?.check(hidden)?;
        arguments.skip = self.input(3)?.check(tokens * hidden)?;
        if layer.epilogue == Epilogue::ResidualNorm {
            arguments.moments = self.input(4)?.check(moments.iter().product())?;
            arguments.gamma = self.input(5)?.check(hidden)?;
        }
        let output = self.output(0, &[tokens, hidden])?;
        arguments.sums = self.output(1, &moments)?;
        let shape = [tokens, hidden, inputs];
        self.dense(
            layer,
            [input.memory, weight.memory, output],
            arguments,
            shape,
        )
    }

    /// The arguments of an epilogue that needs nothing but the node's attributes.
    fn epilogue_arguments(&self) -> EpilogueArguments {
        EpilogueArguments {
            bias: NULL,
            angles: NULL,
            moments: NULL,
            skip: NULL,
            gamma: NULL,
            sums: NULL,
            factors: NULL,
            epsilon: self.epsilon,
            gain: self.gain,
        }
    }

    fn dense(
        &self,
        layer: Layer,
        memory: [DevicePtr; 3],
        arguments: EpilogueArguments,
        shape: [usize; 3],
    ) -> ort::Result<()> {
        if shape[0] == 0 {
            return Ok(());
        }
        // SAFETY: as in `attention`.
        unsafe {
            self.kernels
                .dense(self.stream, layer, memory, arguments, shape)
        }
        .map_err(refused)
    }
}
