//! Kernels for CPUs where ONNX Runtime's own were found to be slow: packed attention, layer norm with residual,
//! GELU, and pooling. Dense products stay ONNX Runtime's. Each runs on AVX-512, AVX2, NEON or
//! plain code, whichever the processor has.

pub mod attention;
pub mod rows;
pub mod simd;
