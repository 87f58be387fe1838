//! Models on the CPU: the session, the operators that it registers with ONNX Runtime, and their
//! kernels.

pub mod kernels;
pub mod operators;
pub mod session;
