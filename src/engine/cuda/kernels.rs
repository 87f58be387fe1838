//! seqembed's own kernels on one GPU for one model: compiled, loaded, and launched on ONNX Runtime's stream.
//!
//! The sources, with what each kernel does and its shapes, are in `onnx/kernels/`.

use std::ffi::{CString, c_void};
use std::fmt::Write as _;
use std::path::Path;

use cudarc::driver::result as driver;
use cudarc::driver::sys;
use rayon::prelude::*;
use seqembed_onnx::esm2::rotary_frequencies;
use seqembed_onnx::{Precision, Sizes, eight};

use super::compile::{CompileError, machine_code};

const NUMBERS: &str = include_str!("../../../onnx/kernels/numbers.cuh");
const ATTENTION: &str = include_str!("../../../onnx/kernels/attention.cu");
const ROWS: &str = include_str!("../../../onnx/kernels/rows.cu");
const DENSE: &str = include_str!("../../../onnx/kernels/dense_sm90.cu");
const ATTENTION_SM90: &str = include_str!("../../../onnx/kernels/attention_sm90.cu");

/// Rows and columns of a block's tile in `dense_sm90.cu`.
const TILE: [u32; 2] = [128, 256];
/// Shared memory of a block there: four stages of both tiles, two staging buffers for each warpgroup, barriers, and two vectors of a
/// tile's columns for each warpgroup.
const DENSE_SHARED: u32 = 4 * 2 * 64 * (128 + 256) + 4 * 8192 + (2 * 4 + 4) * 8 + 2 * 2 * 512;

/// Shared memory of a block of `attention_sm90.cu`, for each of two teams: two times two tiles of queries, a ring of four of keys and
/// values, barriers, and two tasks.
const ATTENTION_SHARED: u32 = 2 * ((2 * 2 + 4 * 2) * 64 * 64 * 2 + (2 * 4 + 2 * 2) * 8 + 2 * 16);

/// Why there are no kernels for a model on a device.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// They could not be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The driver refused.
    #[error("CUDA error {0}: {1}")]
    Driver(u32, String),
    /// The model or the device is not one that they are for.
    #[error("{0}")]
    Unsupported(String),
}

impl From<driver::DriverError> for KernelError {
    fn from(error: driver::DriverError) -> Self {
        let text = error.error_string().map_or_else(
            |_| String::new(),
            |text| text.to_string_lossy().into_owned(),
        );
        Self::Driver(error.0 as u32, text)
    }
}

/// A kernel on the device.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    shared: u32,
}

/// What stands around a dense layer and is done on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// The layer norm before it.
    Norm,
    /// That, bias and GELU.
    NormGelu,
    /// That, bias, and the first half of the columns, through GELU, times the second half.
    NormGeglu,
    /// That, and bias and rotary positions of queries and keys.
    NormRotary,
    /// Bias and residual.
    Residual,
    /// Bias and the layer norm of the residual.
    ResidualNorm,
}

impl Epilogue {
    /// Its name in `dense_sm90.cu`.
    fn name(self) -> &'static str {
        match self {
            Self::Norm => "NORM",
            Self::NormGelu => "NORM_GELU",
            Self::NormGeglu => "NORM_GEGLU",
            Self::NormRotary => "NORM_ROTARY",
            Self::Residual => "RESIDUAL",
            Self::ResidualNorm => "RESIDUAL_NORM",
        }
    }
}

/// What a dense layer reads and writes beside its input, weight and output. What its epilogue has no use for is [`NOTHING`].
#[derive(Clone, Copy)]
pub struct Around {
    /// [outputs], gated [2 * outputs], rotary [2 * hidden].
    pub bias: Device,
    /// Cosine and sine of all angles, [rows, 32, 2] in 32 bits.
    pub angles: Device,
    /// Of the rows that are normed, the input's or the residual's, [rows, parts, 2] in 32 bits.
    pub moments: Device,
    /// The residual, [rows, outputs].
    pub skip: Device,
    /// The weights of the residual's norm, [outputs].
    pub gamma: Device,
    /// Residual: where the moments of the output go, as above.
    pub sums: Device,
    /// Added to the variance.
    pub epsilon: f32,
    /// Of rows in 8 bits that are normed: what their products are multiplied by, [rows] in 32 bits.
    pub factors: Device,
    /// Products are multiplied by it.
    pub gain: f32,
}

/// A dense layer's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// What stands around it.
    pub epilogue: Epilogue,
    /// Whether inputs and weights are of 8 bits, and what comes out of GELU.
    pub eight: bool,
}

impl Layer {
    /// Whether the output is of 8 bits.
    fn hands_on_eights(self) -> bool {
        self.eight && self.epilogue == Epilogue::NormGelu
    }
}

/// The kernels of a model, loaded on a device.
pub struct Kernels {
    sizes: Sizes,
    bf16: bool,
    processors: u32,
    skip_layer_norm: Function,
    bias_gelu: Function,
    geglu: Function,
    positions: Function,
    rotate: Option<Function>,
    rotary_angles: Option<Function>,
    row_moments: Function,
    quantize_rows: Option<Function>,
    pool_mean: Function,
    pool_max: Function,
    /// For short sequences, and for long ones.
    attention: [(u32, Function); 2],
    dense: Vec<(Layer, Function)>,
    /// For long sequences, where the device and the heads are those that it is for.
    attention_sm90: Option<Function>,
}

// SAFETY: handles of functions are valid in every thread, and launching is what the driver synchronises.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

/// Memory on the device.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Device(pub *mut c_void);

/// No memory.
pub const NOTHING: Device = Device(std::ptr::null_mut());

/// A kernel's argument.
#[derive(Clone, Copy)]
enum Argument {
    Pointer(Device),
    Int(i32),
    Long(u64),
    Float(f32),
}

/// How a matrix in memory is read by the tensor memory accelerator.
#[repr(C, align(64))]
struct TensorMap(sys::CUtensorMap);

impl Kernels {
    /// Whether dense layers can be fused on this device with what stands around them.
    ///
    /// # Errors
    /// When the device can't be asked.
    pub fn can_fuse(sizes: &Sizes, device: u32) -> Result<bool, KernelError> {
        Ok(sizes.can_fuse() && capability(device)? == (9, 0))
    }

    /// Compiles the kernels, or takes them from the cache, and loads them.
    ///
    /// # Errors
    /// When they can't be compiled or loaded, or don't fit the model or the device.
    pub fn load(
        sizes: Sizes,
        precision: Precision,
        fused: bool,
        device: u32,
        cache: &Path,
    ) -> Result<Self, KernelError> {
        check(&sizes, precision)?;
        let (major, minor) = capability(device)?;
        if major < 8 {
            return Err(KernelError::Unsupported(format!(
                "kernels need a GPU of compute capability 8.0 or higher, this one has {major}.{minor}"
            )));
        }
        let hopper = (major, minor) == (9, 0);
        if precision == Precision::Fp8 && !(fused && hopper && sizes.can_fuse_eights()) {
            return Err(KernelError::Unsupported(
                "there are some for GPUs of compute capability 9.0 (H100, H200) and models of the ESM-2 kind with layers of a multiple of 128 columns alone".to_owned(),
            ));
        }
        let arch = format!("sm_{major}{minor}{}", if hopper { "a" } else { "" });
        let programs = programs(&sizes, precision, fused, hopper && sizes.head() == 64);
        // Each takes a second or more.
        let codes = programs
            .par_iter()
            .map(|program| machine_code(&program.source, &program.options, &arch, cache))
            .collect::<Result<Vec<_>, _>>()?;
        let handle = cu_device(device)?;
        // The context that ONNX Runtime uses, too. It is kept: the kernels live in it.
        // SAFETY: the device exists.
        let context = unsafe { driver::primary_ctx::retain(handle) }?;
        // SAFETY: the context was just retained.
        unsafe { driver::ctx::set_current(context) }?;
        let modules = codes
            .iter()
            .map(|code| {
                // SAFETY: machine code as the compiler made it.
                unsafe { driver::module::load_data(code.as_ptr().cast()) }
                    .map_err(KernelError::from)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let rows = modules[0];
        let attention = |index: usize| {
            let queries = if sizes.head() > 64 || index == 0 {
                64
            } else {
                128
            };
            function(modules[1 + index], "attention", 0).map(|function| (queries, function))
        };
        let dense = programs
            .iter()
            .zip(&modules)
            .filter_map(|(program, &module)| match program.part {
                Part::Dense(layer) => Some((layer, module)),
                _ => None,
            })
            .map(|(layer, module)| Ok((layer, function(module, "dense_layer", DENSE_SHARED)?)))
            .collect::<Result<Vec<_>, KernelError>>()?;
        let attention_sm90 = programs
            .iter()
            .zip(&modules)
            .find(|(program, _)| program.part == Part::AttentionSm90)
            .map(|(_, &module)| function(module, "attention_sm90", ATTENTION_SHARED))
            .transpose()?;
        let rotary = |name: &str| {
            let wanted = sizes.rotary_base.is_some();
            wanted.then(|| function(rows, name, 0)).transpose()
        };
        Ok(Self {
            skip_layer_norm: function(rows, "skip_layer_norm", 0)?,
            bias_gelu: function(rows, "bias_gelu", 0)?,
            geglu: function(rows, "geglu", 0)?,
            positions: function(rows, "positions", 0)?,
            rotate: rotary("rotate")?,
            rotary_angles: rotary("rotary_angles")?,
            row_moments: function(rows, "row_moments", 0)?,
            quantize_rows: (precision == Precision::Fp8)
                .then(|| function(rows, "quantize_rows", 0))
                .transpose()?,
            pool_mean: function(rows, "pool_mean", 0)?,
            pool_max: function(rows, "pool_max", 0)?,
            attention: [attention(0)?, attention(1)?],
            dense,
            attention_sm90,
            processors: processors(handle)?,
            bf16: precision == Precision::Bf16,
            sizes,
        })
    }

    /// The sizes that they are made for.
    #[must_use]
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Whether they compute in bfloat16, and not in fp16.
    #[must_use]
    pub fn bf16(&self) -> bool {
        self.bf16
    }

    /// `sum = x + skip + bias` and its layer norm, [rows, hidden].
    ///
    /// # Safety
    /// Here and below: memory must be on the device, of the shapes told, and stay until the stream's work is done.
    ///
    /// # Errors
    /// Here and below: when the driver refuses.
    pub unsafe fn skip_layer_norm(
        &self,
        stream: Device,
        [x, skip, gamma, beta, bias]: [Device; 5],
        epsilon: f32,
        y: Device,
        sum: Device,
        rows: usize,
    ) -> Result<(), KernelError> {
        use Argument::{Float, Pointer};
        let warps = match self.sizes.hidden / 8 {
            ..=192 => 1,
            193..=384 => 2,
            385..=768 => 4,
            _ => 8,
        };
        let arguments = [
            Pointer(x),
            Pointer(skip),
            Pointer(gamma),
            Pointer(beta),
            Pointer(bias),
            Float(epsilon),
            Pointer(y),
            Pointer(sum),
            int(rows)?,
        ];
        let blocks = (rows * warps).div_ceil(8);
        // SAFETY: the caller's promise.
        unsafe { launch(self.skip_layer_norm, stream, [blocks, 1], 256, &arguments) }
    }

    /// `y = gelu(x + bias)`, [rows, width].
    ///
    /// # Safety
    /// See [`Kernels::skip_layer_norm`].
    ///
    /// # Errors
    /// As there.
    pub unsafe fn bias_gelu(
        &self,
        stream: Device,
        [x, bias, y]: [Device; 3],
        [rows, width]: [usize; 2],
    ) -> Result<(), KernelError> {
        use Argument::{Long, Pointer};
        let arguments = [
            Pointer(x),
            Pointer(bias),
            Pointer(y),
            int(width)?,
            Long((rows * width / 8) as u64),
        ];
        // SAFETY: the caller's promise.
        unsafe {
            launch(
                self.bias_gelu,
                stream,
                [self.every_processor(), 1],
                256,
                &arguments,
            )
        }
    }

    /// `y = gelu(first half of x) * second half`, [rows, width].
    ///
    /// # Safety
    /// See [`Kernels::skip_layer_norm`].
    ///
    /// # Errors
    /// As there.
    pub unsafe fn geglu(
        &self,
        stream: Device,
        [x, y]: [Device; 2],
        [rows, width]: [usize; 2],
    ) -> Result<(), KernelError> {
        use Argument::{Long, Pointer};
        let arguments = [
            Pointer(x),
            Pointer(y),
            int(width)?,
            Long((rows * width / 8) as u64),
        ];
        // SAFETY: the caller's promise.
        unsafe {
            launch(
                self.geglu,
                stream,
                [self.every_processor(), 1],
                256,
                &arguments,
            )
        }
    }

    /// The place of each token in its sequence, 64-bit integers.
    ///
    /// # Safety
    /// See [`Kernels::skip_layer_norm`].
    ///
    /// # Errors
    /// As there.
    pub unsafe fn positions(
        &self,
        stream: Device,
        starts: (Device, usize),
        places: Device,
        tokens: usize,
    ) -> Result<(), KernelError> {
        use Argument::Pointer;
        let arguments = [
            Pointer(starts.0),
            int(starts.1)?,
            Pointer(places),
            int(tokens)?,
        ];
        // SAFETY: the caller's promise.
        unsafe {
            launch(
                self.positions,
                stream,
                [tokens.div_ceil(256), 1],
                256,
                &arguments,
            )
        }
    }

    /// Cosine and sine of all angles, [tokens, head / 2, 2] in 32 bits.
    ///
    /// # Safety
    /// See [`Kernels::skip_layer_norm`].
    ///
    /// # Errors
    /// As there.
    pub unsafe fn rotary_angles(
        &self,
        stream: Device,
        starts: (Device, usize),
        angles: Device,
        tokens: usize,
    ) -> Result<(), KernelError> {
        use Argument::Pointer;
        let arguments = [
            Pointer(starts.0),
            int(starts.1)?,
            Pointer(angles),
            int(tokens)?,
        ];
        let blocks = (tokens * self.sizes.head() / 2).div_ceil(256);
        // SAFETY: the caller's promise.
        unsafe {
            launch(
                rotary(self.rotary_angles)?,
                stream,
                [blocks, 1],
                256,
                &arguments,
            )
        }
    }

    /// Queries and keys with bias, turned: [tokens, 2 * hidden] out of [tokens, 3 * hidden].
    ///
    /// # Safety
    /// See [`Kernels::skip_layer_norm`].
    ///
    /// # Errors
    /// As there.
    pub unsafe fn rotate(
        &self,
        stream: Device,
        [qkv, bias]: [Device; 2],
        starts: (Device, usize),
        turned: Device,
        tokens: usize,
    ) -> Result<(), KernelError> {
        use Argument::Pointer;
        let arguments = [
            Pointer(qkv),
            Pointer(bias),
            Pointer(starts.0),
            int(starts.1)?,
            Pointer(turned),
            int(tokens)?,
        ];
        // SAFETY: the caller's promise.
        unsafe {
            launch(
                rotary(self.rotate)?,
                stream,
                [tokens.div_ceil(4), 1],
                256,
                &arguments,
            )
        }
    }

    /// Attention of `tokens` tokens, [tokens, hidden]. Queries, keys and values come with the width of a row.
    ///
    /// # Safety
    /// See [`Kernels::skip_layer_norm`].
    ///
    /// # Errors
    /// As there.
    #[expect(clippy::too_many_arguments, reason = "the kernel's")]
    pub unsafe fn attention(
        &self,
        stream: Device,
        parts: [(Device, usize); 3],
        query_bias: Device,
        slopes: Device,
        starts: (Device, usize),
        out: Device,
        tokens: usize,
    ) -> Result<(), KernelError> {
        use Argument::Pointer;
        let width = parts[0].1;
        let together = width == 3 * self.sizes.hidden && parts.iter().all(|part| part.1 == width);
        if let Some(function) = self.attention_sm90.filter(|_| together) {
            let memory = [query_bias, slopes, starts.0, out];
            // SAFETY: the caller's promise.
            return unsafe {
                self.long_attention(function, stream, parts[0].0, memory, starts.1, tokens)
            };
        }
        // Where sequences are short, blocks of half as many queries leave fewer of them empty.
        let short = tokens < 192 * starts.1;
        let (queries, function) = self.attention[usize::from(!short)];
        let [queries_at, keys, values] = parts;
        let arguments = [
            Pointer(queries_at.0),
            int(queries_at.1)?,
            Pointer(keys.0),
            int(keys.1)?,
            Pointer(values.0),
            int(values.1)?,
            Pointer(query_bias),
            Pointer(slopes),
            Pointer(starts.0),
            int(starts.1)?,
            Pointer(out),
        ];
        let blocks = tokens / queries as usize + starts.1;
        // SAFETY: the caller's promise.
        unsafe {
            launch(
                function,
                stream,
                [blocks, self.sizes.heads],
                128,
                &arguments,
            )
        }
    }

    /// # Safety
    /// See [`Kernels::skip_layer_norm`].
    unsafe fn long_attention(
        &self,
        function: Function,
        stream: Device,
        qkv: Device,
        [mut query_bias, mut slopes, mut starts, mut out]: [Device; 4],
        sequences: usize,
        tokens: usize,
    ) -> Result<(), KernelError> {
        let element = if self.bf16 {
            Element::Bf16
        } else {
            Element::Fp16
        };
        let mut map = tensor_map(qkv, [tokens, 3 * self.sizes.hidden], 64, element)?;
        let mut count = as_int(sequences)?;
        let mut places = as_int(tokens / 128 + sequences)?;
        let mut arguments: [*mut c_void; 7] = [
            (&raw mut map).cast(),
            (&raw mut query_bias).cast(),
            (&raw mut slopes).cast(),
            (&raw mut starts).cast(),
            (&raw mut count).cast(),
            (&raw mut places).cast(),
            (&raw mut out).cast(),
        ];
        let tasks = places.unsigned_abs() * as_int(self.sizes.heads)?.unsigned_abs();
        let blocks = tasks.div_ceil(2).min(self.processors);
        // SAFETY: the caller's promise; the arguments are those of the kernel.
        unsafe {
            driver::launch_kernel(
                function.handle,
                (blocks, 1, 1),
                (640, 1, 1),
                function.shared,
                stream.0.cast(),
                &mut arguments,
            )
        }?;
        Ok(())
    }

    /// The mean or the maximum over ranges of tokens, [ranges, hidden] in 32 bits.
    ///
    /// # Safety
    /// See [`Kernels::skip_layer_norm`].
    ///
    /// # Errors
    /// As there.
    pub unsafe fn pool(
        &self,
        stream: Device,
        mean: bool,
        [tokens, ranges, out]: [Device; 3],
        count: usize,
    ) -> Result<(), KernelError> {
        use Argument::Pointer;
        let function = if mean { self.pool_mean } else { self.pool_max };
        let arguments = [Pointer(tokens), Pointer(ranges), Pointer(out)];
        let grid = [count, self.sizes.hidden.div_ceil(64)];
        // SAFETY: the caller's promise.
        unsafe { launch(function, stream, grid, 256, &arguments) }
    }

    /// The sum and the sum of squares of each row, [rows, parts, 2] in 32 bits.
    ///
    /// # Safety
    /// See [`Kernels::skip_layer_norm`].
    ///
    /// # Errors
    /// As there.
    pub unsafe fn row_moments(
        &self,
        stream: Device,
        [x, moments]: [Device; 2],
        rows: usize,
    ) -> Result<(), KernelError> {
        use Argument::Pointer;
        let arguments = [Pointer(x), Pointer(moments), int(rows)?];
        let blocks = rows.div_ceil(8);
        // SAFETY: the caller's promise.
        unsafe { launch(self.row_moments, stream, [blocks, 1], 256, &arguments) }
    }

    /// Rows in 8 bits, [rows, hidden], and what products of them are multiplied by to be those of the normed rows, [rows] in 32 bits.
    ///
    /// # Safety
    /// See [`Kernels::skip_layer_norm`].
    ///
    /// # Errors
    /// As there.
    pub unsafe fn quantize_rows(
        &self,
        stream: Device,
        [x, moments, y, factors]: [Device; 4],
        epsilon: f32,
        rows: usize,
    ) -> Result<(), KernelError> {
        use Argument::{Float, Pointer};
        let function = self.quantize_rows.ok_or_else(|| {
            KernelError::Unsupported("kernels for 8 bits were not compiled".to_owned())
        })?;
        let arguments = [
            Pointer(x),
            Pointer(moments),
            Pointer(y),
            Pointer(factors),
            Float(epsilon),
            int(rows)?,
        ];
        // SAFETY: the caller's promise.
        unsafe { launch(function, stream, [rows.div_ceil(8), 1], 256, &arguments) }
    }

    /// In how many parts the moments of a row come: one for each tile of columns.
    #[must_use]
    pub fn moment_parts(&self) -> usize {
        self.sizes.hidden.div_ceil(TILE[1] as usize)
    }

    /// `output = input @ weight^T` and what stands around it, for an input [rows, inputs] and a weight [outputs, inputs] (gated: twice
    /// as many rows); the output is [rows, outputs].
    ///
    /// # Safety
    /// See [`Kernels::skip_layer_norm`].
    ///
    /// # Errors
    /// As there.
    pub unsafe fn dense(
        &self,
        stream: Device,
        layer: Layer,
        [input, weight, output]: [Device; 3],
        mut around: Around,
        [rows, outputs, inputs]: [usize; 3],
    ) -> Result<(), KernelError> {
        let function = self
            .dense
            .iter()
            .find(|(known, _)| *known == layer)
            .map(|(_, function)| *function)
            .ok_or_else(|| KernelError::Unsupported("dense layers were not compiled".to_owned()))?;
        let [tile_rows, tile_columns] = TILE;
        let weight_rows = match layer.epilogue {
            Epilogue::NormGeglu => 2 * outputs,
            _ => outputs,
        };
        let own = if self.bf16 {
            Element::Bf16
        } else {
            Element::Fp16
        };
        let product = if layer.eight { Element::Fp8 } else { own };
        let handed_on = if layer.hands_on_eights() {
            Element::Fp8
        } else {
            own
        };
        // Half of a weight tile each is what the two blocks of a cluster load.
        let mut maps = [
            tensor_map(input, [rows, inputs], tile_rows, product)?,
            tensor_map(weight, [weight_rows, inputs], tile_columns / 2, product)?,
            tensor_map(output, [rows, outputs], tile_rows / 2, handed_on)?,
            // Where nothing is added, no residual is read: any matrix will do.
            tensor_map(
                if around.skip.0.is_null() {
                    output
                } else {
                    around.skip
                },
                [rows, outputs],
                tile_rows / 2,
                own,
            )?,
        ];
        let mut turning = match layer.epilogue {
            Epilogue::NormRotary => as_int(2 * self.sizes.hidden)?,
            _ => 0,
        };
        let mut sizes = [as_int(rows)?, as_int(outputs)?, as_int(inputs)?];
        let mut arguments: Vec<*mut c_void> =
            maps.iter_mut().map(|map| (&raw mut *map).cast()).collect();
        arguments.extend([
            (&raw mut around.bias).cast(),
            (&raw mut around.angles).cast(),
            (&raw mut around.moments).cast(),
            (&raw mut around.factors).cast(),
            (&raw mut around.gamma).cast(),
            (&raw mut around.sums).cast(),
            (&raw mut turning).cast(),
            (&raw mut around.epsilon).cast(),
            (&raw mut around.gain).cast::<c_void>(),
        ]);
        arguments.extend(
            sizes
                .iter_mut()
                .map(|size| (&raw mut *size).cast::<c_void>()),
        );
        let blocks = self.processors / 2 * 2;
        // SAFETY: the caller's promise; the arguments are those of the kernel.
        unsafe {
            driver::launch_kernel(
                function.handle,
                (blocks, 1, 1),
                (384, 1, 1),
                function.shared,
                stream.0.cast(),
                &mut arguments,
            )
        }?;
        Ok(())
    }

    fn every_processor(&self) -> usize {
        8 * self.processors as usize
    }
}

/// What a source is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Rows,
    Attention,
    AttentionSm90,
    Dense(Layer),
}

/// A source to compile.
struct Program {
    source: String,
    options: Vec<String>,
    part: Part,
}

/// What a model needs: rows, attention for short and for long sequences, dense layers.
fn programs(sizes: &Sizes, precision: Precision, fused: bool, long: bool) -> Vec<Program> {
    let define = |name: &str, value: usize| format!("-D{name}={value}");
    let base = vec![define("BF16", usize::from(precision == Precision::Bf16))];
    let mut options = base.clone();
    options.extend([
        define("HEAD", sizes.head()),
        define("HEADS", sizes.heads),
        define("HIDDEN", sizes.hidden),
    ]);
    let mut rows = Program {
        source: NUMBERS.to_owned(),
        options: options.clone(),
        part: Part::Rows,
    };
    if let Some(base) = sizes.rotary_base {
        let frequencies = rotary_frequencies(sizes.head(), base);
        let _ = write!(
            rows.source,
            "__constant__ float rotary_frequencies[{}] = {{",
            frequencies.len()
        );
        for frequency in frequencies {
            let _ = write!(rows.source, "{frequency:e}f,");
        }
        rows.source.push_str("};\n");
        rows.options.push("-DROTARY".to_owned());
    }
    if precision == Precision::Fp8 {
        rows.options.extend(eights());
    }
    rows.source.push_str(ROWS);
    let mut programs = vec![rows];
    for groups in [1, 2] {
        let mut options = options.clone();
        options.push(define("ALIBI", usize::from(sizes.alibi)));
        if sizes.head() <= 64 {
            options.push(define("GROUPS", groups));
        }
        programs.push(Program {
            source: [NUMBERS, ATTENTION].concat(),
            options,
            part: Part::Attention,
        });
    }
    if long {
        let mut options = options;
        options.push(define("ALIBI", usize::from(sizes.alibi)));
        programs.push(Program {
            source: [NUMBERS, DENSE, ATTENTION_SM90].concat(),
            options,
            part: Part::AttentionSm90,
        });
    }
    if fused {
        let layer = |epilogue, eight| Layer { epilogue, eight };
        let up = if sizes.gated {
            Epilogue::NormGeglu
        } else {
            Epilogue::NormGelu
        };
        let residual = if sizes.post_norm {
            Epilogue::ResidualNorm
        } else {
            Epilogue::Residual
        };
        let qkv = if sizes.can_fuse_rotary() {
            Epilogue::NormRotary
        } else {
            Epilogue::Norm
        };
        let eight = precision == Precision::Fp8;
        let mut wanted = vec![layer(qkv, false), layer(residual, false), layer(up, eight)];
        if eight {
            wanted.push(layer(residual, true));
        }
        programs.extend(wanted.into_iter().map(|layer| {
            let mut options = base.clone();
            options.push(define("HIDDEN", sizes.hidden));
            if layer.eight {
                options.extend(eights());
            }
            Program {
                source: format!(
                    "{NUMBERS}{DENSE}\nDENSE(dense_layer, {}, {})\n",
                    layer.epilogue.name(),
                    units(sizes, layer)
                ),
                options,
                part: Part::Dense(layer),
            }
        }));
    }
    programs
}

/// What kernels for 8 bits are compiled with.
fn eights() -> [String; 2] {
    [
        "-DFP8=1".to_owned(),
        format!("-DEIGHT_SCALE={:?}f", eight::ACTIVATION_SCALE),
    ]
}

/// How many units of an epilogue go out in two steps: as few as the shortest product leaves room for.
fn units(sizes: &Sizes, layer: Layer) -> usize {
    let mut units = match sizes.hidden.min(sizes.intermediate) {
        2048.. => 1,
        1024..2048 => 2,
        _ => 4,
    };
    if layer.epilogue == Epilogue::NormGeglu {
        // Half as many columns come out.
        units = (units / 2).max(1);
    }
    // Steps are twice as deep.
    if layer.eight { 2 * units } else { units }
}

/// Whether the kernels are for a model like this.
fn check(sizes: &Sizes, precision: Precision) -> Result<(), KernelError> {
    let fits = precision != Precision::Fp32
        && sizes.hidden.is_multiple_of(8)
        && sizes.intermediate.is_multiple_of(8)
        && sizes.head().is_multiple_of(8)
        && sizes.head() <= 128
        && sizes.hidden <= 8192;
    if fits {
        Ok(())
    } else {
        Err(KernelError::Unsupported(format!(
            "there are no kernels for {} heads of {} and a width of {} in {precision}",
            sizes.heads,
            sizes.head(),
            sizes.hidden
        )))
    }
}

fn rotary(function: Option<Function>) -> Result<Function, KernelError> {
    function.ok_or_else(|| KernelError::Unsupported("the model has no rotary positions".to_owned()))
}

fn as_int(number: usize) -> Result<i32, KernelError> {
    i32::try_from(number)
        .map_err(|_| KernelError::Unsupported(format!("{number} is more than a batch may have")))
}

fn int(number: usize) -> Result<Argument, KernelError> {
    as_int(number).map(Argument::Int)
}

fn cu_device(device: u32) -> Result<sys::CUdevice, KernelError> {
    // SAFETY: only asks whether the library can be loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(KernelError::Unsupported(
            "there is no NVIDIA driver (libcuda.so.1)".to_owned(),
        ));
    }
    driver::init()?;
    Ok(driver::device::get(as_int(device as usize)?)?)
}

fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<u32, KernelError> {
    // SAFETY: the device exists.
    let value = unsafe { driver::device::get_attribute(device, which) }?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// The device's compute capability.
fn capability(device: u32) -> Result<(u32, u32), KernelError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    };
    let device = cu_device(device)?;
    Ok((
        attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ))
}

fn processors(device: sys::CUdevice) -> Result<u32, KernelError> {
    attribute(
        device,
        sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
    )
}

fn function(module: sys::CUmodule, name: &str, shared: u32) -> Result<Function, KernelError> {
    let name = CString::new(name).expect("names of kernels have no zero");
    // SAFETY: the module was loaded, and is never unloaded.
    let handle = unsafe { driver::module::get_function(module, name) }?;
    if shared > 0 {
        // SAFETY: the function was just found.
        unsafe {
            driver::function::set_function_attribute(
                handle,
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                i32::try_from(shared).expect("less than a megabyte"),
            )
        }?;
    }
    Ok(Function { handle, shared })
}

/// What a matrix is made of.
#[derive(Clone, Copy, PartialEq)]
enum Element {
    Fp16,
    Bf16,
    Fp8,
}

/// A matrix that is read in boxes of so many rows, of 128 bytes each.
fn tensor_map(
    memory: Device,
    [rows, columns]: [usize; 2],
    box_rows: u32,
    element: Element,
) -> Result<TensorMap, KernelError> {
    use sys::{
        CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
        CUtensorMapL2promotion, CUtensorMapSwizzle,
    };
    let (element, bytes) = match element {
        Element::Fp16 => (CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2),
        Element::Bf16 => (CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2),
        Element::Fp8 => (CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8, 1),
    };
    let sizes = [columns as u64, rows as u64];
    let row_bytes = [u64::from(bytes) * columns as u64];
    let tile = [128 / bytes, box_rows];
    let steps = [1_u32, 1];
    // SAFETY: it is plain data, and is written to before it is used.
    let mut map: TensorMap = unsafe { std::mem::zeroed() };
    // SAFETY: the arrays are as long as two dimensions need.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map.0,
            element,
            2,
            memory.0,
            sizes.as_ptr(),
            row_bytes.as_ptr(),
            tile.as_ptr(),
            steps.as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()?;
    Ok(map)
}

/// # Safety
/// The arguments must be those of the kernel, and memory stay until the stream's work is done.
unsafe fn launch(
    function: Function,
    stream: Device,
    [x, y]: [usize; 2],
    threads: u32,
    arguments: &[Argument],
) -> Result<(), KernelError> {
    if x == 0 || y == 0 {
        return Ok(());
    }
    let size = |blocks: usize| {
        u32::try_from(blocks)
            .map_err(|_| KernelError::Unsupported(format!("{blocks} blocks are too many")))
    };
    let mut values = arguments.to_vec();
    let mut pointers: Vec<*mut c_void> = values
        .iter_mut()
        .map(|value| match value {
            Argument::Pointer(pointer) => (&raw mut *pointer).cast(),
            Argument::Int(number) => (&raw mut *number).cast(),
            Argument::Long(number) => (&raw mut *number).cast(),
            Argument::Float(number) => (&raw mut *number).cast(),
        })
        .collect();
    // SAFETY: the caller's promise; `values` outlives the call, which copies them.
    unsafe {
        driver::launch_kernel(
            function.handle,
            (size(x)?, size(y)?, 1),
            (threads, 1, 1),
            function.shared,
            stream.0.cast(),
            &mut pointers,
        )
    }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels of models of all kinds compile for all GPUs that are served. Needs NVRTC, which `make test` brings on Linux, and
    /// no GPU.
    #[test]
    fn they_compile_for_every_gpu() {
        crate::engine::provider::open_compiler_of_tests();
        // SAFETY: only asks whether the library can be loaded.
        if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
            eprintln!("SKIPPED: CUDA's run-time compiler is not here");
            return;
        }
        let sizes = |hidden, heads, rotary: bool, gated| Sizes {
            hidden,
            heads,
            intermediate: 4 * hidden,
            rotary_base: rotary.then_some(10_000.0),
            alibi: gated,
            gated,
            post_norm: gated,
        };
        let cache = tempfile::tempdir().expect("a folder");
        for (arch, fused) in [
            ("sm_80", false),
            ("sm_89", false),
            ("sm_90a", true),
            ("sm_100", false),
            ("sm_120", false),
        ] {
            // ESM-2 8M (heads of 16), 35M (24), 650M, 15B (128), and DNABERT-2.
            for sizes in [
                sizes(320, 20, true, false),
                sizes(480, 20, true, false),
                sizes(1_280, 20, true, false),
                sizes(5_120, 40, true, false),
                sizes(768, 12, false, true),
            ] {
                let fused = fused && sizes.can_fuse();
                // The other formats differ in how numbers are packed: one model says enough.
                let all = [Precision::Fp16, Precision::Bf16, Precision::Fp8];
                let formats = match sizes.hidden {
                    1_280 if fused => 3,
                    1_280 => 2,
                    _ => 1,
                };
                for precision in all.into_iter().take(formats) {
                    check(&sizes, precision).expect("sizes that there are kernels for");
                    let long = fused && sizes.head() == 64;
                    programs(&sizes, precision, fused, long)
                        .par_iter()
                        .for_each(|program| {
                            let code =
                                machine_code(&program.source, &program.options, arch, cache.path());
                            assert!(
                                code.is_ok_and(|code| code.starts_with(b"\x7fELF")),
                                "{arch} {sizes:?}"
                            );
                        });
                }
            }
        }
    }
}
