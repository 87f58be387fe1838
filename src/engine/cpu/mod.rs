//! Models on the CPU: the session, the operators that it registers with ONNX Runtime, and their
//! kernels.

mod contact_map;
pub mod kernels;
mod operator_parts;
pub mod operators;
pub mod session;
