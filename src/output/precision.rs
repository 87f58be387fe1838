//! The floats in an output file, and how they are written and read.

use std::fmt;

use half::f16;
use half::slice::HalfFloatSliceExt as _;

use crate::vectors::{Stretch, Vectors};

/// The floats in an output file.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OutputPrecision {
    /// 32-bit floats
    #[default]
    Fp32,
    /// 16-bit floats: half the size, about three decimal digits; a value beyond 65504 is an error
    Fp16,
}

impl OutputPrecision {
    /// Bytes of a value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            OutputPrecision::Fp32 => 4,
            OutputPrecision::Fp16 => 2,
        }
    }

    /// Appends values, little-endian.
    pub(crate) fn encode(self, values: &Vectors, to: &mut Vec<u8>) {
        /// Values that are converted at a time, in the processor's nearest cache.
        const TILE: usize = 2048;
        for stretch in values.stretches() {
            match (stretch, self) {
                (Stretch::Single(values), OutputPrecision::Fp32) => singles(values, to),
                (Stretch::Half(values), OutputPrecision::Fp16) => halves(values, to),
                (Stretch::Single(values), OutputPrecision::Fp16) => {
                    let mut tile = [f16::ZERO; TILE];
                    for values in values.chunks(TILE) {
                        let tile = &mut tile[..values.len()];
                        tile.convert_from_f32_slice(values);
                        halves(tile, to);
                    }
                }
                (Stretch::Half(values), OutputPrecision::Fp32) => {
                    let mut tile = [0.0; TILE];
                    for values in values.chunks(TILE) {
                        let tile = &mut tile[..values.len()];
                        values.convert_to_f32_slice(tile);
                        singles(tile, to);
                    }
                }
            }
        }
    }

    /// The first value that would silently become infinite, if there is one, and its index.
    pub(super) fn too_large(self, values: &Vectors) -> Option<(usize, f32)> {
        /// The smallest value that rounds to infinity; the largest 16-bit float is 65504.
        const TOO_LARGE: f32 = 65520.0;
        if self == OutputPrecision::Fp32 {
            return None;
        }
        let is_wide = |value: &f32| value.is_finite() && value.abs() >= TOO_LARGE;
        let mut before = 0;
        for stretch in values.stretches() {
            match stretch {
                Stretch::Half(values) => before += values.len(),
                Stretch::Single(values) => {
                    for block in values.chunks(256) {
                        // Without a way out in the middle, vector instructions do this.
                        if block.iter().fold(false, |any, value| any | is_wide(value)) {
                            let at = block.iter().position(is_wide)?;
                            return Some((before + at, block[at]));
                        }
                        before += block.len();
                    }
                }
            }
        }
        None
    }

    /// Little-endian values as 32-bit floats.
    #[must_use]
    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            OutputPrecision::Fp32 => {
                let (values, _) = bytes.as_chunks();
                values.iter().map(|&v| f32::from_le_bytes(v)).collect()
            }
            OutputPrecision::Fp16 => {
                let (values, _) = bytes.as_chunks();
                let halves = values.iter().map(|&v| f16::from_le_bytes(v));
                halves.map(f32::from).collect()
            }
        }
    }
}

fn singles(values: &[f32], to: &mut Vec<u8>) {
    let start = to.len();
    to.resize(start + size_of_val(values), 0);
    let (bytes, _) = to[start..].as_chunks_mut();
    for (bytes, value) in bytes.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
}

fn halves(values: &[f16], to: &mut Vec<u8>) {
    let start = to.len();
    to.resize(start + size_of_val(values), 0);
    let (bytes, _) = to[start..].as_chunks_mut();
    for (bytes, value) in bytes.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
}

impl fmt::Display for OutputPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OutputPrecision::Fp32 => "fp32",
            OutputPrecision::Fp16 => "fp16",
        })
    }
}
