//! seqembed's own kernels on one GPU for one model: loaded, and launched on ONNX Runtime's stream.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::result as driver;
use cudarc::driver::sys::{CUdevice, CUmodule};
use rayon::prelude::*;
use seqembed_onnx::{Precision, Sizes};

use super::compile::machine_code;
use super::launch::{
    Argument, DevicePtr, Element, Function, KernelError, capability, cu_device, function, int,
    launch, processors, tensor_map,
};
use super::programs::{Epilogue, Layer, Program, ProgramKind, check, programs};
use super::streams::Streams;

/// Rows and columns of a block's output tile in `dense_sm90.cu`.
const TILE: [u32; 2] = [128, 256];
/// Bytes of shared memory of a block there: four stages of both input tiles, two staging buffers
/// for each warpgroup, barriers, and two vectors of a tile's columns for each warpgroup.
const DENSE_SHARED: u32 = 4 * 2 * 64 * (128 + 256) + 4 * 8192 + (2 * 4 + 4) * 8 + 2 * 2 * 512;

/// Bytes of shared memory of a block of `attention_sm90.cu`, for each of two teams: two times two
/// tiles of queries, a ring of four tiles of keys and of values, barriers, and two tasks.
const ATTENTION_SHARED: u32 = 2 * ((2 * 2 + 4 * 2) * 64 * 64 * 2 + (2 * 4 + 2 * 2) * 8 + 2 * 16);

/// What the epilogue of a dense layer reads and writes beside the layer's input, weight and output.
/// Pointers that it has no use for are [`NULL`].
#[derive(Clone, Copy)]
pub struct EpilogueArguments {
    /// The bias: [outputs], gated [2 * outputs], rotary [2 * hidden].
    pub bias: DevicePtr,
    /// Cosine and sine of the rotary angles, [rows, head / 2, 2] in fp32.
    pub angles: DevicePtr,
    /// Moments of the rows that are normed, the input's or the residual's, [rows, parts, 2] in
    /// fp32.
    pub moments: DevicePtr,
    /// The residual, [rows, outputs].
    pub skip: DevicePtr,
    /// The weights of the residual's layer norm, [outputs].
    pub gamma: DevicePtr,
    /// Residual: where the moments of the output are written, as above.
    pub sums: DevicePtr,
    /// What the layer norm adds to the variance.
    pub epsilon: f32,
    /// Of normed rows in fp8: what their products are multiplied by, [rows] in fp32.
    pub factors: DevicePtr,
    /// What all products are multiplied by.
    pub gain: f32,
}

/// Compiles programs, or takes them from the cache, and loads them onto a GPU: a module for each.
fn load_modules(
    programs: &[Program],
    arch: &str,
    device: CUdevice,
    cache: &Path,
) -> Result<Vec<CUmodule>, KernelError> {
    // Each takes a second or more.
    let codes = programs
        .par_iter()
        .map(|program| machine_code(&program.source, &program.options, arch, cache))
        .collect::<Result<Vec<_>, _>>()?;
    // The context that ONNX Runtime also uses. It is kept, because the kernels are loaded in it.
    // SAFETY: the device exists.
    let context = unsafe { driver::primary_ctx::retain(device) }?;
    // SAFETY: the context was just retained.
    unsafe { driver::ctx::set_current(context) }?;
    let modules = codes.iter().map(|code| {
        // SAFETY: machine code as the compiler made it.
        unsafe { driver::module::load_data(code.as_ptr().cast()) }.map_err(KernelError::from)
    });
    modules.collect()
}

/// The kernels of dense layers, in the modules of their programs.
fn dense_functions(
    programs: &[Program],
    modules: &[CUmodule],
) -> Result<Vec<(Layer, Function)>, KernelError> {
    let layers = programs.iter().zip(modules);
    let layers = layers.filter_map(|(program, &module)| match program.kind {
        ProgramKind::Dense(layer) => Some((layer, module)),
        _ => None,
    });
    layers
        .map(|(layer, module)| Ok((layer, function(module, "dense_layer", DENSE_SHARED)?)))
        .collect()
}

/// The kernels of one model, loaded onto one GPU.
pub struct CudaKernels {
    sizes: Sizes,
    bf16: bool,
    processors: u32,
    /// The streams that attention was launched on.
    streams: Mutex<Streams>,
    skip_layer_norm: Function,
    layer_norm: Function,
    bias_gelu: Function,
    gated: Function,
    query_key_norm_rotary: Option<Function>,
    positions: Function,
    rotate: Option<Function>,
    rotary_angles: Option<Function>,
    token_rows: Function,
    row_moments: Function,
    quantize_rows: Option<Function>,
    pool_mean: Function,
    pool_max: Function,
    /// Attention for short sequences and for long ones, each with its queries a block; empty where
    /// Hopper's attention serves all.
    attention: Vec<(u32, Function)>,
    dense: Vec<(Layer, Function)>,
    /// Hopper's attention, for its heads.
    attention_sm90: Option<Function>,
}

// SAFETY: handles of functions are valid in every thread, and launching is what the driver
// synchronises.
unsafe impl Send for CudaKernels {}
// SAFETY: as above.
unsafe impl Sync for CudaKernels {}

impl CudaKernels {
    /// Whether dense layers can be fused with the operators around them on this GPU.
    ///
    /// # Errors
    /// If the device cannot be queried.
    pub fn can_fuse(sizes: &Sizes, precision: Precision, device: u32) -> Result<bool, KernelError> {
        Ok(sizes.can_fuse(precision) && capability(device)? == (9, 0))
    }

    /// Compiles the kernels, or reads them from the cache, and loads them.
    ///
    /// # Errors
    /// When they cannot be compiled or loaded, or do not fit the model or the device.
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
                "they need a GPU of compute capability 8.0 or higher, but this one has \
                 {major}.{minor}"
            )));
        }
        let hopper = (major, minor) == (9, 0);
        if precision == Precision::Fp8 && !fused {
            return Err(KernelError::Unsupported(
                "fp8 kernels need a GPU of compute capability 9.0 (H100, H200) and an ESM-2 or \
                 Nucleotide Transformer 2 model whose width is a multiple of 128"
                    .to_owned(),
            ));
        }
        let arch = format!("sm_{major}{minor}{}", if hopper { "a" } else { "" });
        let programs = programs(&sizes, precision, fused, hopper);
        let handle = cu_device(device)?;
        let modules = load_modules(&programs, &arch, handle, cache)?;
        let rows = modules[0];
        let of = |kind| {
            let all = programs.iter().zip(&modules);
            all.filter(move |(program, _)| program.kind == kind)
                .map(|(_, &module)| module)
        };
        let attention = of(ProgramKind::Attention)
            .enumerate()
            .map(|(index, module)| {
                let short = sizes.head_width > 64 || index == 0;
                let queries = if short { 64 } else { 128 };
                Ok((queries, function(module, "attention", 0)?))
            })
            .collect::<Result<Vec<_>, KernelError>>()?;
        let attention_sm90 = of(ProgramKind::AttentionSm90)
            .next()
            .map(|module| function(module, "attention_sm90", ATTENTION_SHARED))
            .transpose()?;
        let rotary = |name: &str| {
            let wanted = sizes.rotary_base.is_some();
            wanted.then(|| function(rows, name, 0)).transpose()
        };
        Ok(Self {
            skip_layer_norm: function(rows, "skip_layer_norm", 0)?,
            layer_norm: function(rows, "layer_norm", 0)?,
            bias_gelu: function(rows, "bias_gelu", 0)?,
            gated: function(rows, "gated", 0)?,
            query_key_norm_rotary: sizes
                .query_key_norm
                .then(|| function(rows, "query_key_norm_rotary", 0))
                .transpose()?,
            positions: function(rows, "positions", 0)?,
            rotate: rotary("rotate")?,
            rotary_angles: rotary("rotary_angles")?,
            token_rows: function(rows, "token_rows", 0)?,
            row_moments: function(rows, "row_moments", 0)?,
            quantize_rows: (precision == Precision::Fp8)
                .then(|| function(rows, "quantize_rows", 0))
                .transpose()?,
            pool_mean: function(rows, "pool_mean", 0)?,
            pool_max: function(rows, "pool_max", 0)?,
            attention,
            dense: dense_functions(&programs, &modules)?,
            attention_sm90,
            processors: processors(handle)?,
            streams: Mutex::default(),
            bf16: precision == Precision::Bf16,
            sizes,
        })
    }

    /// The sizes of the model that they are compiled for.
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
    /// Here and below: memory must be on the device, have the given shapes, and remain valid until
    /// the work on the stream is finished.
    ///
    /// # Errors
    /// Here and below: when the driver refuses.
    pub unsafe fn skip_layer_norm(
        &self,
        stream: DevicePtr,
        [x, skip, gamma, beta, bias]: [DevicePtr; 5],
        epsilon: f32,
        y: DevicePtr,
        sum: DevicePtr,
        rows: usize,
    ) -> Result<(), KernelError> {
        use Argument::{Float, Pointer};
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
        let blocks = self.norm_blocks(rows);
        // SAFETY: the caller's promise.
        unsafe { launch(self.skip_layer_norm, stream, blocks, 256, &arguments) }
    }

    /// `y = layer norm of x`, [rows, hidden].
    ///
    /// # Safety
    /// See [`CudaKernels::skip_layer_norm`].
    ///
    /// # Errors
    /// The same as for [`CudaKernels::skip_layer_norm`].
    pub unsafe fn layer_norm(
        &self,
        stream: DevicePtr,
        [x, gamma, beta, y]: [DevicePtr; 4],
        epsilon: f32,
        rows: usize,
    ) -> Result<(), KernelError> {
        use Argument::{Float, Pointer};
        let arguments = [
            Pointer(x),
            Pointer(gamma),
            Pointer(beta),
            Float(epsilon),
            Pointer(y),
            int(rows)?,
        ];
        let blocks = self.norm_blocks(rows);
        // SAFETY: the caller's promise.
        unsafe { launch(self.layer_norm, stream, blocks, 256, &arguments) }
    }

    /// Blocks of a layer norm, for the number of warps a row that `rows.cu` uses.
    fn norm_blocks(&self, rows: usize) -> [usize; 2] {
        let warps = match self.sizes.hidden / 8 {
            ..=192 => 1,
            193..=384 => 2,
            385..=768 => 4,
            _ => 8,
        };
        [(rows * warps).div_ceil(8), 1]
    }

    /// `y = gelu(x + bias)`, [rows, width].
    ///
    /// # Safety
    /// See [`CudaKernels::skip_layer_norm`].
    ///
    /// # Errors
    /// The same as for [`CudaKernels::skip_layer_norm`].
    pub unsafe fn bias_gelu(
        &self,
        stream: DevicePtr,
        [x, bias, y]: [DevicePtr; 3],
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
                [self.all_processors(), 1],
                256,
                &arguments,
            )
        }
    }

    /// `y = activation(first half of x) * second half`, [rows, width].
    ///
    /// # Safety
    /// See [`CudaKernels::skip_layer_norm`].
    ///
    /// # Errors
    /// The same as for [`CudaKernels::skip_layer_norm`].
    pub unsafe fn gated(
        &self,
        stream: DevicePtr,
        [x, y]: [DevicePtr; 2],
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
                self.gated,
                stream,
                [self.all_processors(), 1],
                256,
                &arguments,
            )
        }
    }

    /// The position of each token in its sequence, [tokens] in 64-bit integers.
    ///
    /// # Safety
    /// See [`CudaKernels::skip_layer_norm`].
    ///
    /// # Errors
    /// The same as for [`CudaKernels::skip_layer_norm`].
    pub unsafe fn positions(
        &self,
        stream: DevicePtr,
        starts: (DevicePtr, usize),
        positions: DevicePtr,
        tokens: usize,
    ) -> Result<(), KernelError> {
        use Argument::Pointer;
        let arguments = [
            Pointer(starts.0),
            int(starts.1)?,
            Pointer(positions),
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

    /// Cosine and sine of the rotary angles, [tokens, head / 2, 2] in fp32.
    ///
    /// # Safety
    /// See [`CudaKernels::skip_layer_norm`].
    ///
    /// # Errors
    /// The same as for [`CudaKernels::skip_layer_norm`].
    pub unsafe fn rotary_angles(
        &self,
        stream: DevicePtr,
        starts: (DevicePtr, usize),
        angles: DevicePtr,
        tokens: usize,
    ) -> Result<(), KernelError> {
        use Argument::Pointer;
        let arguments = [
            Pointer(starts.0),
            int(starts.1)?,
            Pointer(angles),
            int(tokens)?,
        ];
        let blocks = (tokens * self.sizes.head_width / 2).div_ceil(256);
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

    /// Queries and keys with bias and rotary embedding: [tokens, 2 * hidden] out of
    /// [tokens, 3 * hidden].
    ///
    /// # Safety
    /// See [`CudaKernels::skip_layer_norm`].
    ///
    /// # Errors
    /// The same as for [`CudaKernels::skip_layer_norm`].
    pub unsafe fn rotate(
        &self,
        stream: DevicePtr,
        [qkv, bias]: [DevicePtr; 2],
        starts: (DevicePtr, usize),
        rotated: DevicePtr,
        tokens: usize,
    ) -> Result<(), KernelError> {
        use Argument::Pointer;
        let arguments = [
            Pointer(qkv),
            Pointer(bias),
            Pointer(starts.0),
            int(starts.1)?,
            Pointer(rotated),
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

    /// Queries and keys with bias, normalised and rotated: [tokens, 2 * hidden] out of [tokens,
    /// 3 * hidden]. The norms' weights are [hidden], the bias [2 * hidden], and the angles those of
    /// [`CudaKernels::rotary_angles`].
    ///
    /// # Safety
    /// See [`CudaKernels::skip_layer_norm`].
    ///
    /// # Errors
    /// The same as for [`CudaKernels::skip_layer_norm`].
    pub unsafe fn query_key_norm_rotary(
        &self,
        stream: DevicePtr,
        [qkv, bias, query_gamma, key_gamma, angles]: [DevicePtr; 5],
        epsilon: f32,
        normed: DevicePtr,
        tokens: usize,
    ) -> Result<(), KernelError> {
        use Argument::{Float, Pointer};
        let function = self.query_key_norm_rotary.ok_or_else(|| {
            KernelError::Unsupported("the model has no norms of queries and keys".to_owned())
        })?;
        let arguments = [
            Pointer(qkv),
            Pointer(bias),
            Pointer(query_gamma),
            Pointer(key_gamma),
            Pointer(angles),
            Float(epsilon),
            Pointer(normed),
            int(tokens)?,
        ];
        let blocks = self.norm_blocks(2 * tokens);
        // SAFETY: the caller's promise.
        unsafe { launch(function, stream, blocks, 256, &arguments) }
    }

    /// Attention of `tokens` tokens, [tokens, hidden]. Queries and keys are the first columns of a
    /// matrix that comes with its width, and values the last of `qkv`, [tokens, 3 * hidden].
    ///
    /// # Safety
    /// See [`CudaKernels::skip_layer_norm`].
    ///
    /// # Errors
    /// The same as for [`CudaKernels::skip_layer_norm`].
    #[expect(clippy::too_many_arguments, reason = "the kernel's")]
    pub unsafe fn attention(
        &self,
        stream: DevicePtr,
        queries_keys: (DevicePtr, usize),
        qkv: DevicePtr,
        query_bias: DevicePtr,
        slopes: DevicePtr,
        starts: (DevicePtr, usize),
        out: DevicePtr,
        tokens: usize,
    ) -> Result<(), KernelError> {
        use Argument::Pointer;
        if let Some(function) = self.attention_sm90 {
            let memory = [qkv, query_bias, slopes, starts.0, out];
            // SAFETY: the caller's promise.
            return unsafe {
                self.hopper_attention(function, stream, queries_keys, memory, starts.1, tokens)
            };
        }
        let hidden = self.sizes.hidden;
        let part =
            |from: DevicePtr, columns: usize| DevicePtr(from.0.wrapping_byte_add(2 * columns));
        // Where sequences are short, blocks of half as many queries leave fewer of them empty.
        let short = tokens < 192 * starts.1;
        let Some(&(queries, function)) = self.attention.get(usize::from(!short)) else {
            return Err(KernelError::Unsupported(
                "attention was not compiled".to_owned(),
            ));
        };
        let (queries_at, width) = queries_keys;
        let arguments = [
            Pointer(queries_at),
            int(width)?,
            Pointer(part(queries_at, hidden)),
            int(width)?,
            Pointer(part(qkv, 2 * hidden)),
            int(3 * hidden)?,
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
    /// See [`CudaKernels::skip_layer_norm`].
    unsafe fn hopper_attention(
        &self,
        function: Function,
        stream: DevicePtr,
        (queries_keys, width): (DevicePtr, usize),
        [qkv, query_bias, slopes, starts, out]: [DevicePtr; 5],
        sequences: usize,
        tokens: usize,
    ) -> Result<(), KernelError> {
        use Argument::{Matrix, Pointer};
        let all = [tokens, 3 * self.sizes.hidden];
        let query_tiles = tokens / 128 + sequences;
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let number = streams.number(stream.0.addr());
        drop(streams);
        let arguments = [
            Matrix(tensor_map(
                queries_keys,
                [tokens, width],
                64,
                self.element(),
            )?),
            Matrix(tensor_map(qkv, all, 64, self.element())?),
            Pointer(query_bias),
            Pointer(slopes),
            Pointer(starts),
            int(sequences)?,
            int(query_tiles)?,
            int(number)?,
            Pointer(out),
        ];
        // Two tasks at a time on a multiprocessor.
        let tasks = query_tiles * self.sizes.hidden / 64;
        let blocks = tasks.div_ceil(2).min(self.processors as usize);
        // SAFETY: the caller's promise.
        unsafe { launch(function, stream, [blocks, 1], 640, &arguments) }
    }

    /// The mean or the maximum over ranges of tokens, [ranges, hidden] in fp32.
    ///
    /// # Safety
    /// See [`CudaKernels::skip_layer_norm`].
    ///
    /// # Errors
    /// The same as for [`CudaKernels::skip_layer_norm`].
    pub unsafe fn pool(
        &self,
        stream: DevicePtr,
        mean: bool,
        [tokens, ranges, out]: [DevicePtr; 3],
        count: usize,
    ) -> Result<(), KernelError> {
        use Argument::Pointer;
        let function = if mean { self.pool_mean } else { self.pool_max };
        let arguments = [Pointer(tokens), Pointer(ranges), Pointer(out)];
        let grid = [count, self.sizes.hidden.div_ceil(64)];
        // SAFETY: the caller's promise.
        unsafe { launch(function, stream, grid, 256, &arguments) }
    }

    /// Embedding lookup: the rows of a table, [rows, width], by token ids: [tokens, width]. The
    /// width is a multiple of 8.
    ///
    /// # Safety
    /// See [`CudaKernels::skip_layer_norm`].
    ///
    /// # Errors
    /// The same as for [`CudaKernels::skip_layer_norm`].
    pub unsafe fn token_rows(
        &self,
        stream: DevicePtr,
        [table, ids, out]: [DevicePtr; 3],
        [table_rows, width]: [usize; 2],
        tokens: usize,
    ) -> Result<(), KernelError> {
        use Argument::Pointer;
        let arguments = [
            Pointer(table),
            Pointer(ids),
            Pointer(out),
            int(width / 8)?,
            int(table_rows)?,
            int(tokens)?,
        ];
        let blocks = [tokens.div_ceil(8), 1];
        // SAFETY: the caller's promise.
        unsafe { launch(self.token_rows, stream, blocks, 256, &arguments) }
    }

    /// The sum and the sum of squares of each row, [rows, parts, 2] in fp32.
    ///
    /// # Safety
    /// See [`CudaKernels::skip_layer_norm`].
    ///
    /// # Errors
    /// The same as for [`CudaKernels::skip_layer_norm`].
    pub unsafe fn row_moments(
        &self,
        stream: DevicePtr,
        [x, moments]: [DevicePtr; 2],
        rows: usize,
    ) -> Result<(), KernelError> {
        use Argument::Pointer;
        let arguments = [Pointer(x), Pointer(moments), int(rows)?];
        let blocks = rows.div_ceil(8);
        // SAFETY: the caller's promise.
        unsafe { launch(self.row_moments, stream, [blocks, 1], 256, &arguments) }
    }

    /// Rows in fp8, [rows, hidden], and the factors that scale products of these rows to products
    /// of the normed rows, [rows] in fp32.
    ///
    /// # Safety
    /// See [`CudaKernels::skip_layer_norm`].
    ///
    /// # Errors
    /// The same as for [`CudaKernels::skip_layer_norm`].
    pub unsafe fn quantize_rows(
        &self,
        stream: DevicePtr,
        [x, moments, y, factors]: [DevicePtr; 4],
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

    /// How many parts the moments of a row have: one for each tile of columns.
    #[must_use]
    pub fn moment_parts(&self) -> usize {
        self.sizes.hidden.div_ceil(TILE[1] as usize)
    }

    /// `output = input @ weight^T` with an epilogue, for an input [rows, inputs] and a weight
    /// [outputs, inputs] (gated: twice as many rows); the output is [rows, outputs].
    ///
    /// # Safety
    /// See [`CudaKernels::skip_layer_norm`].
    ///
    /// # Errors
    /// The same as for [`CudaKernels::skip_layer_norm`].
    pub unsafe fn dense(
        &self,
        stream: DevicePtr,
        layer: Layer,
        [input, weight, output]: [DevicePtr; 3],
        epilogue: EpilogueArguments,
        [rows, outputs, inputs]: [usize; 3],
    ) -> Result<(), KernelError> {
        use Argument::{Float, Matrix, Pointer};
        let function = self
            .dense
            .iter()
            .find(|(known, _)| *known == layer)
            .map(|(_, function)| *function)
            .ok_or_else(|| KernelError::Unsupported("dense layers were not compiled".to_owned()))?;
        let [tile_rows, tile_columns] = TILE;
        let weight_rows = match layer.epilogue {
            Epilogue::NormGated => 2 * outputs,
            _ => outputs,
        };
        let own = self.element();
        let product = if layer.fp8 { Element::Fp8 } else { own };
        let output_element = if layer.outputs_fp8() {
            Element::Fp8
        } else {
            own
        };
        // Without a residual, the kernel does not read it, and any matrix will do.
        let skip = if epilogue.skip.0.is_null() {
            output
        } else {
            epilogue.skip
        };
        let rotated_columns = match layer.epilogue {
            Epilogue::NormRotary => 2 * self.sizes.hidden,
            _ => 0,
        };
        let (result, half) = ([rows, outputs], tile_rows / 2);
        let arguments = [
            Matrix(tensor_map(input, [rows, inputs], tile_rows, product)?),
            // Each of the two blocks of a cluster loads half of a weight tile.
            Matrix(tensor_map(
                weight,
                [weight_rows, inputs],
                tile_columns / 2,
                product,
            )?),
            Matrix(tensor_map(output, result, half, output_element)?),
            Matrix(tensor_map(skip, result, half, own)?),
            Pointer(epilogue.bias),
            Pointer(epilogue.angles),
            Pointer(epilogue.moments),
            Pointer(epilogue.factors),
            Pointer(epilogue.gamma),
            Pointer(epilogue.sums),
            int(rotated_columns)?,
            Float(epilogue.epsilon),
            Float(epilogue.gain),
            int(rows)?,
            int(outputs)?,
            int(inputs)?,
        ];
        let blocks = self.processors as usize / 2 * 2;
        // SAFETY: the caller's promise.
        unsafe { launch(function, stream, [blocks, 1], 384, &arguments) }
    }

    /// The 16-bit number format of the model.
    fn element(&self) -> Element {
        if self.bf16 {
            Element::Bf16
        } else {
            Element::Fp16
        }
    }

    fn all_processors(&self) -> usize {
        8 * self.processors as usize
    }
}

fn rotary(function: Option<Function>) -> Result<Function, KernelError> {
    function.ok_or_else(|| KernelError::Unsupported("the model has no rotary positions".to_owned()))
}
