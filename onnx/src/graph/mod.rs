//! ONNX graphs: what is asked of one, its nodes, and the layers that families build it from.

pub mod builder;
#[cfg(test)]
mod every_graph;
pub mod fused;
pub mod layers;
pub mod ort_cuda;
pub mod outputs;
pub mod proto;
pub mod request;
