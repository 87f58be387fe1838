//! Models on NVIDIA GPUs: the session on ONNX Runtime's CUDA provider, and seqembed's own kernels
//! (CUDA C++ in `kernels/`), which are compiled at run time for the model and the GPU.

pub mod budget;
pub mod compile;
pub mod driver;
pub mod errors;
pub mod kernels;
pub mod launch;
pub mod layout;
pub mod operators;
pub mod permits;
pub mod programs;
pub mod provider;
pub mod session;
mod streams;
