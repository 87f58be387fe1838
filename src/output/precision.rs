//! The floats in an output file, and how they are written and read.

use std::fmt;
use std::io::{self, Write};

use half::f16;

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

    /// Writes values, little-endian.
    pub(super) fn write(self, values: &[f32], to: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(8192);
        for part in values.chunks(2048) {
            bytes.clear();
            match self {
                OutputPrecision::Fp32 => part.iter().for_each(|v| bytes.extend(v.to_le_bytes())),
                OutputPrecision::Fp16 => part
                    .iter()
                    .for_each(|v| bytes.extend(f16::from_f32(*v).to_le_bytes())),
            }
            to.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Little-endian values as 32-bit floats.
    pub(super) fn values(self, bytes: &[u8]) -> Vec<f32> {
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

impl fmt::Display for OutputPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OutputPrecision::Fp32 => "fp32",
            OutputPrecision::Fp16 => "fp16",
        })
    }
}
