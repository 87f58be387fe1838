//! ONNX Runtime: finding the library, sessions, devices.

pub mod locate;
