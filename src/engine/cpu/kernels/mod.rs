//! Kernels for CPUs where ONNX Runtime's own were found to be slow: packed attention, layer norm
//! with residual, GELU, and pooling. Dense products stay ONNX Runtime's. Each runs on AVX-512,
//! AVX2, NEON or plain code, whichever the processor has.

// What is inlined into a function with AVX-512 is compiled for it: left to the compiler, it would
// be a call to plain code.
#![allow(clippy::inline_always)]

pub mod attention;
pub mod rows;
pub mod simd;
