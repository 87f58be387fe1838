//! The operators of the domain `seqembed` on a GPU: what packed and fused graphs are made of, in 16 bits.
//!
//! The same names and shapes as on CPUs (`engine/operators.rs`), and those of fused graphs: `Dense(x, weight)`,
//! `DenseGelu(x, weight, bias)`, `DenseGeglu(x, weight)`, `DenseRotary(x, weight, bias, angles)`,
//! `RotaryAngles(sequence_starts, input_ids)` and `TurnedAttention(qkv, sequence_starts)`. Sizes are those of the model, for which the
//! kernels were compiled; each operator checks that what it gets has them.

use std::ptr;
use std::sync::Arc;

use ort::AsPointer;
use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput,
    OperatorOutput,
};
use ort::value::{TensorElementType, ValueRef};

use super::kernels::{Device, Epilogue, KernelError, Kernels};

/// All operators, ready for a session.
///
/// # Errors
/// When ONNX Runtime refuses one.
pub fn domain(kernels: &Arc<Kernels>) -> ort::Result<OperatorDomain> {
    let mut domain = OperatorDomain::new("seqembed")?;
    for what in What::ALL {
        domain = domain.add(Own {
            what,
            kernels: Arc::clone(kernels),
        })?;
    }
    Ok(domain)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    RotaryAttention,
    TurnedAttention,
    AlibiAttention,
    Attention,
    SkipLayerNorm,
    BiasGelu,
    Geglu,
    Positions,
    RotaryAngles,
    PoolMean,
    PoolMax,
    Dense,
    DenseGelu,
    DenseGeglu,
    DenseRotary,
}

impl What {
    const ALL: [Self; 15] = [
        Self::RotaryAttention,
        Self::TurnedAttention,
        Self::AlibiAttention,
        Self::Attention,
        Self::SkipLayerNorm,
        Self::BiasGelu,
        Self::Geglu,
        Self::Positions,
        Self::RotaryAngles,
        Self::PoolMean,
        Self::PoolMax,
        Self::Dense,
        Self::DenseGelu,
        Self::DenseGeglu,
        Self::DenseRotary,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::RotaryAttention => "RotaryAttention",
            Self::TurnedAttention => "TurnedAttention",
            Self::AlibiAttention => "AlibiAttention",
            Self::Attention => "Attention",
            Self::SkipLayerNorm => "SkipLayerNorm",
            Self::BiasGelu => "BiasGelu",
            Self::Geglu => "Geglu",
            Self::Positions => "Positions",
            Self::RotaryAngles => "RotaryAngles",
            Self::PoolMean => "PoolMean",
            Self::PoolMax => "PoolMax",
            Self::Dense => "Dense",
            Self::DenseGelu => "DenseGelu",
            Self::DenseGeglu => "DenseGeglu",
            Self::DenseRotary => "DenseRotary",
        }
    }
}

struct Own {
    what: What,
    kernels: Arc<Kernels>,
}

impl Operator for Own {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        self.what.name()
    }

    fn execution_provider_type(&self) -> Option<&str> {
        Some("CUDAExecutionProvider")
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        const F32: TensorElementType = TensorElementType::Float32;
        const I32: TensorElementType = TensorElementType::Int32;
        let own = self.element();
        let types = match self.what {
            What::RotaryAttention | What::Attention => vec![own, own, I32],
            What::AlibiAttention => vec![own, own, F32, I32],
            What::SkipLayerNorm => vec![own; 5],
            What::BiasGelu | What::Dense | What::DenseGeglu => vec![own, own],
            What::Geglu => vec![own],
            What::Positions | What::RotaryAngles => vec![I32, TensorElementType::Int64],
            What::PoolMean | What::PoolMax | What::TurnedAttention => vec![own, I32],
            What::DenseGelu => vec![own, own, own],
            What::DenseRotary => vec![own, own, own, F32],
        };
        types.into_iter().map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        let own = self.element();
        match self.what {
            What::Positions => vec![OperatorOutput::required(TensorElementType::Int64)],
            What::RotaryAngles | What::PoolMean | What::PoolMax => {
                vec![OperatorOutput::required(TensorElementType::Float32)]
            }
            // The second one is room to work in: ONNX Runtime's arena gives it.
            What::SkipLayerNorm | What::RotaryAttention => {
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
        if self.what == What::SkipLayerNorm && epsilon.is_none() {
            return Err(fault("SkipLayerNorm needs epsilon"));
        }
        let heads = self.kernels.sizes().heads;
        if let Some(named) = attributes.get::<i64>("num_heads")
            && usize::try_from(named) != Ok(heads)
        {
            return Err(fault(format!(
                "kernels for {heads} heads were given {named}"
            )));
        }
        let (what, kernels) = (self.what, Arc::clone(&self.kernels));
        let epsilon = epsilon.unwrap_or_default();
        Ok(Box::new(move |context: &ComputeContext| {
            Call {
                kernels: &kernels,
                context,
                stream: stream(context)?,
            }
            .run(what, epsilon)
        }))
    }
}

impl Own {
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

fn stream(context: &ComputeContext) -> ort::Result<Device> {
    // CUDA's default stream is a null pointer.
    let stream = context.stream()?;
    Ok(Device(
        stream.map_or(ptr::null_mut(), |stream| stream.as_ptr().cast()),
    ))
}

const NOTHING: Device = Device(ptr::null_mut());

/// A tensor on the device.
struct Tensor {
    memory: Device,
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

    /// Rows of a matrix that must have so many columns.
    fn rows(&self, columns: usize) -> ort::Result<usize> {
        match self.shape[..] {
            [rows, width] if width == columns => Ok(rows),
            _ => Err(fault(format!(
                "expected a matrix of {columns} columns, got shape {:?}",
                self.shape
            ))),
        }
    }

    fn check(&self, length: usize) -> ort::Result<Device> {
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

/// Where a tensor's values are.
fn memory(value: *const ort::sys::OrtValue) -> ort::Result<Device> {
    let mut data = ptr::null_mut();
    // SAFETY: a live tensor.
    let status = unsafe { (ort::api().GetTensorMutableData)(value.cast_mut(), &raw mut data) };
    // SAFETY: a status that was just returned.
    unsafe { ort::Error::result_from_status(status) }?;
    Ok(Device(data.cast()))
}

/// One call of an operator.
struct Call<'a> {
    kernels: &'a Kernels,
    context: &'a ComputeContext,
    stream: Device,
}

impl Call<'_> {
    fn input(&self, index: usize) -> ort::Result<Tensor> {
        let value = self.context.input(index)?;
        Tensor::of(&value.ok_or_else(|| fault(format!("input {index} is missing")))?)
    }

    /// Starts of the sequences, and how many there are.
    fn starts(&self, index: usize) -> ort::Result<(Device, usize)> {
        let starts = self.input(index)?;
        let sequences = starts.length().checked_sub(1);
        let sequences = sequences.filter(|count| *count > 0);
        Ok((
            starts.memory,
            sequences.ok_or_else(|| fault("no sequences"))?,
        ))
    }

    fn output(&self, index: usize, shape: &[usize]) -> ort::Result<Device> {
        let value = self.context.output(index, shape.to_vec())?;
        memory(
            value
                .ok_or_else(|| fault(format!("output {index} is missing")))?
                .ptr(),
        )
    }

    fn run(&self, what: What, epsilon: f32) -> ort::Result<()> {
        match what {
            What::RotaryAttention
            | What::TurnedAttention
            | What::AlibiAttention
            | What::Attention => self.attention(what),
            What::SkipLayerNorm => self.skip_layer_norm(epsilon),
            What::BiasGelu | What::Geglu => self.elementwise(what),
            What::Positions | What::RotaryAngles => self.by_position(what),
            What::PoolMean | What::PoolMax => self.pool(what),
            What::Dense => self.dense(Epilogue::None),
            What::DenseGelu => self.dense(Epilogue::Gelu),
            What::DenseGeglu => self.dense(Epilogue::Geglu),
            What::DenseRotary => self.dense(Epilogue::Rotary),
        }
    }

    fn attention(&self, what: What) -> ort::Result<()> {
        let sizes = self.kernels.sizes();
        let hidden = sizes.hidden;
        let qkv = self.input(0)?;
        let tokens = qkv.rows(3 * hidden)?;
        let starts = self.starts(match what {
            What::TurnedAttention => 1,
            What::AlibiAttention => 3,
            _ => 2,
        })?;
        let out = self.output(0, &[tokens, hidden])?;
        let slopes = match what {
            What::AlibiAttention => self.input(2)?.check(sizes.heads)?,
            _ => NOTHING,
        };
        let bias = match what {
            What::TurnedAttention => NOTHING,
            _ => self.input(1)?.check(2 * hidden)?,
        };
        let part = |from: Device, columns: usize| Device(from.0.wrapping_byte_add(2 * columns));
        let mut parts = [0, 1, 2].map(|index| (part(qkv.memory, index * hidden), 3 * hidden));
        let mut query_bias = bias;
        if what == What::RotaryAttention {
            let turned = self.output(1, &[tokens, 2 * hidden])?;
            // SAFETY: ONNX Runtime's tensors live until the stream is done with them; shapes were checked.
            unsafe {
                self.kernels
                    .rotate(self.stream, [qkv.memory, bias], starts, turned, tokens)
            }
            .map_err(refused)?;
            parts[0] = (turned, 2 * hidden);
            parts[1] = (part(turned, hidden), 2 * hidden);
            query_bias = NOTHING;
        }
        // SAFETY: as above.
        unsafe {
            self.kernels
                .attention(self.stream, parts, query_bias, slopes, starts, out, tokens)
        }
        .map_err(refused)
    }

    fn skip_layer_norm(&self, epsilon: f32) -> ort::Result<()> {
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
            NOTHING
        };
        // SAFETY: as in `attention`.
        unsafe {
            self.kernels
                .skip_layer_norm(self.stream, inputs, epsilon, y, sum, rows)
        }
        .map_err(refused)
    }

    fn elementwise(&self, what: What) -> ort::Result<()> {
        let width = self.kernels.sizes().intermediate;
        let x = self.input(0)?;
        if what == What::BiasGelu {
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
                    .geglu(self.stream, [x.memory, y], [rows, width])
            }
        }
        .map_err(refused)
    }

    fn by_position(&self, what: What) -> ort::Result<()> {
        let starts = self.starts(0)?;
        // Their number stands on the device alone, and in the shape of the ids.
        let tokens = self.input(1)?.length();
        if what == What::Positions {
            let places = self.output(0, &[tokens])?;
            // SAFETY: as in `attention`.
            unsafe { self.kernels.positions(self.stream, starts, places, tokens) }
        } else {
            let angles = self.output(0, &[tokens, self.kernels.sizes().head()])?;
            // SAFETY: as in `attention`.
            unsafe {
                self.kernels
                    .rotary_angles(self.stream, starts, angles, tokens)
            }
        }
        .map_err(refused)
    }

    fn pool(&self, what: What) -> ort::Result<()> {
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
                what == What::PoolMean,
                [tokens.memory, ranges.memory, out],
                count,
            )
        }
        .map_err(refused)
    }

    fn dense(&self, epilogue: Epilogue) -> ort::Result<()> {
        let (input, weight) = (self.input(0)?, self.input(1)?);
        let &[tokens, inputs] = &input.shape[..] else {
            return Err(fault(format!(
                "expected a matrix, got shape {:?}",
                input.shape
            )));
        };
        let rows = weight.rows(inputs)?;
        let outputs = match epilogue {
            Epilogue::Geglu => rows / 2,
            _ => rows,
        };
        let (bias, angles) = match epilogue {
            Epilogue::None | Epilogue::Geglu => (NOTHING, NOTHING),
            Epilogue::Gelu => (self.input(2)?.check(outputs)?, NOTHING),
            Epilogue::Rotary => {
                let sizes = self.kernels.sizes();
                let bias = self.input(2)?.check(2 * sizes.hidden)?;
                (bias, self.input(3)?.check(tokens * sizes.head())?)
            }
        };
        let output = self.output(0, &[tokens, outputs])?;
        if tokens == 0 {
            return Ok(());
        }
        // SAFETY: as in `attention`.
        unsafe {
            self.kernels.dense(
                self.stream,
                epilogue,
                [input.memory, weight.memory, output],
                bias,
                angles,
                [tokens, outputs, inputs],
            )
        }
        .map_err(refused)
    }
}
