//! Which CUDA programs are compiled for a model, and with which constants.
//!
//! The sources, which say what each kernel does and on what shapes, are in `kernels/`.

use std::fmt::Write as _;

use seqembed_onnx::positions::rotary_frequencies;
use seqembed_onnx::weights::fp8;
use seqembed_onnx::{Activation, Precision, Sizes};

use super::launch::KernelError;
use super::streams::STREAMS;

const NUMBERS: &str = include_str!("kernels/numbers.cuh");
const ATTENTION: &str = include_str!("kernels/attention.cu");
const ROWS: &str = include_str!("kernels/rows.cu");
const DENSE: &str = include_str!("kernels/dense_sm90.cu");
const ATTENTION_SM90: &str = include_str!("kernels/attention_sm90.cu");

/// The operators around a dense layer that its kernel includes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// A layer norm before it.
    Norm,
    /// A layer norm before it; bias and activation after it.
    NormActivation,
    /// A layer norm before it; bias and gating after it: the activation of the first half of the
    /// columns times the second half.
    NormGated,
    /// A layer norm before it; bias and rotary embedding of queries and keys after it.
    NormRotary,
    /// Bias and residual after it.
    Residual,
    /// Bias and the layer norm of the residual after it.
    ResidualNorm,
}

impl Epilogue {
    /// The constant's name in `dense_sm90.cu`.
    fn name(self) -> &'static str {
        match self {
            Self::Norm => "NORM",
            Self::NormActivation => "NORM_ACTIVATION",
            Self::NormGated => "NORM_GATED",
            Self::NormRotary => "NORM_ROTARY",
            Self::Residual => "RESIDUAL",
            Self::ResidualNorm => "RESIDUAL_NORM",
        }
    }
}

/// A dense layer's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// The operations other than the product.
    pub epilogue: Epilogue,
    /// Whether its input and weights are fp8, and its output after an activation.
    pub fp8: bool,
}

impl Layer {
    /// Whether its output is fp8.
    pub(super) fn outputs_fp8(self) -> bool {
        self.fp8
            && matches!(
                self.epilogue,
                Epilogue::NormActivation | Epilogue::NormGated
            )
    }
}

/// Which kernels a program has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProgramKind {
    Rows,
    Attention,
    AttentionSm90,
    Dense(Layer),
}

/// A program to compile.
pub(super) struct Program {
    pub source: String,
    pub options: Vec<String>,
    pub kind: ProgramKind,
}

/// The programs of a model: kernels for rows, attention for short and for long sequences or that
/// for Hopper, and dense layers. The one for rows comes first.
pub(super) fn programs(
    sizes: &Sizes,
    precision: Precision,
    fused: bool,
    hopper: bool,
) -> Vec<Program> {
    let mut programs = vec![row_program(sizes, precision)];
    if hopper && has_hopper_attention(sizes) {
        programs.push(hopper_attention_program(sizes, precision));
    } else {
        programs.extend([1, 2].map(|groups| attention_program(sizes, precision, groups)));
    }
    if fused {
        let layers = dense_layers(sizes, precision).into_iter();
        programs.extend(layers.map(|layer| dense_program(sizes, precision, layer)));
    }
    programs
}

/// An option that defines a constant.
fn define(name: &str, value: usize) -> String {
    format!("-D{name}={value}")
}

fn define_bf16(precision: Precision) -> String {
    define("BF16", usize::from(precision == Precision::Bf16))
}

/// The constant for the activation of feed-forward layers; GELU needs none.
fn define_activation(sizes: &Sizes) -> Option<String> {
    (sizes.activation == Activation::Silu).then(|| define("SILU", 1))
}

/// The constants of programs for rows and attention.
fn defines(sizes: &Sizes, precision: Precision) -> Vec<String> {
    vec![
        define_bf16(precision),
        define("HEAD", sizes.head_width),
        define("HEADS", sizes.heads),
        define("HIDDEN", sizes.hidden),
    ]
}

fn row_program(sizes: &Sizes, precision: Precision) -> Program {
    let mut program = Program {
        source: NUMBERS.to_owned(),
        options: defines(sizes, precision),
        kind: ProgramKind::Rows,
    };
    program.options.extend(define_activation(sizes));
    if sizes.query_key_norm {
        program.options.push(define("QUERY_KEY_NORM", 1));
    }
    if let Some(base) = sizes.rotary_base {
        let frequencies = rotary_frequencies(sizes.head_width, base);
        let _ = write!(
            program.source,
            "__constant__ float rotary_frequencies[{}] = {{",
            frequencies.len()
        );
        for frequency in frequencies {
            let _ = write!(program.source, "{frequency:e}f,");
        }
        program.source.push_str("};\n");
        program.options.push("-DROTARY".to_owned());
    }
    if precision == Precision::Fp8 {
        program.options.extend(fp8_defines());
    }
    program.source.push_str(ROWS);
    program
}

/// `groups`: groups of 16 queries a warp, 1 for short sequences and 2 for long ones.
fn attention_program(sizes: &Sizes, precision: Precision, groups: usize) -> Program {
    let mut options = defines(sizes, precision);
    options.push(define("ALIBI", usize::from(sizes.alibi)));
    if sizes.head_width <= 64 {
        options.push(define("GROUPS", groups));
    }
    Program {
        source: [NUMBERS, ATTENTION].concat(),
        options,
        kind: ProgramKind::Attention,
    }
}

fn hopper_attention_program(sizes: &Sizes, precision: Precision) -> Program {
    let mut options = defines(sizes, precision);
    options.push(define("ALIBI", usize::from(sizes.alibi)));
    options.push(define("STREAMS", STREAMS));
    Program {
        source: [NUMBERS, DENSE, ATTENTION_SM90].concat(),
        options,
        kind: ProgramKind::AttentionSm90,
    }
}

/// The dense layers of a fused graph.
fn dense_layers(sizes: &Sizes, precision: Precision) -> Vec<Layer> {
    let layer = |epilogue, fp8| Layer { epilogue, fp8 };
    let up = if sizes.gated {
        Epilogue::NormGated
    } else {
        Epilogue::NormActivation
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
    let fp8 = precision == Precision::Fp8;
    let mut layers = vec![layer(qkv, false), layer(residual, false), layer(up, fp8)];
    if fp8 {
        layers.push(layer(residual, true));
    }
    layers
}

fn dense_program(sizes: &Sizes, precision: Precision, layer: Layer) -> Program {
    let mut options = vec![
        define_bf16(precision),
        define("HEAD", sizes.head_width),
        define("HIDDEN", sizes.hidden),
    ];
    options.extend(define_activation(sizes));
    if layer.fp8 {
        options.extend(fp8_defines());
    }
    Program {
        source: format!(
            "{NUMBERS}{DENSE}\nDENSE(dense_layer, {}, {})\n",
            layer.epilogue.name(),
            units(sizes, layer)
        ),
        options,
        kind: ProgramKind::Dense(layer),
    }
}

/// Whether Hopper's attention serves a model of these sizes.
fn has_hopper_attention(sizes: &Sizes) -> bool {
    match sizes.head_width {
        64 => true,
        // Two heads at a time.
        32 => sizes.heads.is_multiple_of(2) && !sizes.alibi,
        _ => false,
    }
}

/// The constants that kernels for fp8 are compiled with.
fn fp8_defines() -> [String; 2] {
    [
        "-DFP8=1".to_owned(),
        format!("-DFP8_SCALE={:?}f", fp8::ACTIVATION_SCALE),
    ]
}

/// How many units of an epilogue run during two steps of the next tile: as few as the shortest
/// product allows.
fn units(sizes: &Sizes, layer: Layer) -> usize {
    let mut units = match sizes.hidden.min(sizes.intermediate) {
        2048.. => 1,
        1024..2048 => 2,
        _ => 4,
    };
    if layer.epilogue == Epilogue::NormGated {
        // The output has half as many columns.
        units = (units / 2).max(1);
    }
    // Steps are twice as deep.
    if layer.fp8 { 2 * units } else { units }
}

/// Checks that there are kernels for a model of these sizes.
pub(super) fn check(sizes: &Sizes, precision: Precision) -> Result<(), KernelError> {
    if !sizes.has_cuda_kernels {
        return Err(KernelError::Unsupported(
            "there are none for the blocks of this model's family yet".to_owned(),
        ));
    }
    let fits = precision != Precision::Fp32
        && sizes.hidden.is_multiple_of(8)
        && sizes.intermediate.is_multiple_of(8)
        && sizes.head_width.is_multiple_of(8)
        && sizes.head_width <= 128
        && sizes.hidden <= 8192;
    if fits {
        Ok(())
    } else {
        Err(KernelError::Unsupported(format!(
            "there are no {precision} kernels for {} heads of {} dimensions and a width of {}",
            sizes.heads, sizes.head_width, sizes.hidden
        )))
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use seqembed_onnx::FusedFormats;

    use super::*;
    use crate::engine::cuda::compile::machine_code;

    /// Blocks as ESM-2's, gated as DNABERT-2's.
    fn sizes(hidden: usize, heads: usize, rotary: bool, gated: bool) -> Sizes {
        Sizes {
            hidden,
            heads,
            head_width: hidden / heads,
            intermediate: 4 * hidden,
            rotary_base: rotary.then_some(10_000.0),
            alibi: gated,
            gated,
            activation: Activation::Gelu,
            query_key_norm: false,
            post_norm: gated,
            has_cuda_kernels: true,
            fused: if gated {
                FusedFormats::Half
            } else {
                FusedFormats::HalfAndFp8
            },
        }
    }

    /// Nucleotide Transformer 2, 500M, in which a gate is computed in fp8.
    fn gated_by_silu() -> Sizes {
        Sizes {
            alibi: false,
            activation: Activation::Silu,
            post_norm: false,
            fused: FusedFormats::HalfAndFp8,
            ..sizes(1_024, 16, true, true)
        }
    }

    /// ESM C 600M.
    fn normed_queries() -> Sizes {
        Sizes {
            hidden: 1_152,
            heads: 18,
            intermediate: 3_072,
            query_key_norm: true,
            fused: FusedFormats::Half,
            ..gated_by_silu()
        }
    }

    /// The kernels of models of all kinds compile for all supported GPUs. This needs NVRTC, which
    /// `make test` installs on Linux, and no GPU.
    #[test]
    fn they_compile_for_every_gpu() {
        crate::engine::cuda::provider::open_compiler_of_tests();
        // SAFETY: only asks whether the library can be loaded.
        if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
            eprintln!("SKIPPED: CUDA's run-time compiler is not here");
            return;
        }
        let cache = tempfile::tempdir().expect("a folder");
        for (arch, hopper) in [
            ("sm_80", false),
            ("sm_89", false),
            ("sm_90a", true),
            ("sm_100", false),
            ("sm_120", false),
        ] {
            // ESM-2 8M (heads of 16), 35M (24), 150M (32), 650M (64), 15B (128), ESM-1b, and
            // DNABERT-2.
            for sizes in [
                sizes(320, 20, true, false),
                sizes(480, 20, true, false),
                sizes(640, 20, true, false),
                sizes(1_280, 20, true, false),
                sizes(5_120, 40, true, false),
                sizes(1_280, 20, false, false),
                sizes(768, 12, false, true),
                normed_queries(),
                gated_by_silu(),
            ] {
                // ESM-1b's kernels and Nucleotide Transformer's are those of others, but for how
                // they are combined on Hopper; and ESM C's hold nothing that only some GPUs have.
                let once = arch == "sm_80" && sizes.query_key_norm;
                let silu = sizes.activation == Activation::Silu;
                let plain = sizes.rotary_base.is_none() && !sizes.alibi;
                if !hopper && (plain || silu && !once) {
                    continue;
                }
                // Other precisions only differ in how values are packed, so one model is enough.
                let all = [Precision::Fp16, Precision::Bf16, Precision::Fp8];
                let formats = match sizes.hidden {
                    1_024 => 3,
                    1_280 if hopper && sizes.rotary_base.is_some() => 3,
                    1_280 if sizes.rotary_base.is_some() => 2,
                    _ => 1,
                };
                for precision in all.into_iter().take(formats) {
                    check(&sizes, precision).expect("sizes that there are kernels for");
                    let fused = hopper && sizes.can_fuse(precision);
                    programs(&sizes, precision, fused, hopper)
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
