//! Kernels for CPUs where ONNX Runtime's own were found to be slow: packed attention, layer norm
//! with residual, GELU, and pooling. Dense products stay ONNX Runtime's. Each runs on AVX-512,
//! AVX2, NEON or scalar code, whichever the processor has.

// A function that is inlined into one with AVX-512 is compiled for AVX-512. Without these
// attributes it may become a call to code for the baseline instruction set.
#![allow(clippy::inline_always)]

pub mod attention;
pub mod contacts;
pub mod rows;
pub mod simd;
