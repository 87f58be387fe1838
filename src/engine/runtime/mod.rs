//! ONNX Runtime: finding its library, and the environment that a process has of it.

pub mod locate;
mod telemetry;
