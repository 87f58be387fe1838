//! Number formats of a checkpoint's tensors, and reading them as 32-bit floats.

use half::{bf16, f16};

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 64-bit floats; rounded to 32 bits.
    F64,
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    Bf16,
    /// Something else, by its name and bytes; never read.
    Other(&'static str, usize),
}

impl Dtype {
    /// Bytes of a value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(_, bytes) => bytes,
        }
    }
}

/// Little-endian numbers -> f32.
pub(super) fn decode(dtype: Dtype, bytes: &[u8], values: &mut Vec<f32>) {
    match dtype {
        Dtype::F32 => {
            let (words, _) = bytes.as_chunks();
            values.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding to f32 is intended"
        )]
        Dtype::F64 => {
            let (words, _) = bytes.as_chunks();
            values.extend(words.iter().map(|word| f64::from_le_bytes(*word) as f32));
        }
        Dtype::F16 => {
            let (words, _) = bytes.as_chunks();
            values.extend(words.iter().map(|word| f16::from_le_bytes(*word).to_f32()));
        }
        Dtype::Bf16 => {
            let (words, _) = bytes.as_chunks();
            values.extend(words.iter().map(|word| bf16::from_le_bytes(*word).to_f32()));
        }
        // Refused by `check`.
        Dtype::Other(..) => {}
    }
}
