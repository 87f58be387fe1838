//! Random weights from a seed, for testing without a checkpoint. They are the same on every
//! machine, because only integers are used, up to one exact scaling.

use crate::error::Error;
use crate::weights::table::{Input, Weights};

/// Random weights of any shape.
#[derive(Debug, Clone, Copy)]
pub struct Random {
    /// The seed.
    pub seed: u64,
}

/// One step of `SplitMix64` (Steele, Lea and Flood, 2014).
pub(crate) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Nearly normal, mean 0, deviation 1: the sum of four 16-bit uniform numbers.
fn normal(state: &mut u64) -> f32 {
    let bits = split_mix(state);
    let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum();
    // Four uniform numbers of 0..=65535: mean 131,070, deviation 65,536 / sqrt(3).
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is intended"
    )]
    let value = ((sum as f64 - 131_070.0) * (3.0_f64.sqrt() / 65_536.0)) as f32;
    value
}

/// Mean and deviation of a tensor's values: layer norms near 1, biases small, dense layers such
/// that vectors keep their length, and what a block adds small beside what passes by it.
fn scale(input: &Input) -> (f32, f32) {
    let name = input.name.as_str();
    let norm = name.to_ascii_lowercase().contains("norm");
    match input.shape.as_slice() {
        [_, columns] if !name.contains("embedding") => {
            let gain = if name.contains("output.dense") {
                0.5
            } else {
                1.0
            };
            (0.0, gain / (*columns as f32).sqrt())
        }
        [_, _] => (0.0, 1.0),
        _ if norm && name.ends_with("weight") => (1.0, 0.1),
        _ => (0.0, 0.1),
    }
}

impl Weights for Random {
    fn has(&self, _: &Input) -> bool {
        true
    }

    fn check(&self, _: &Input) -> Result<(), Error> {
        Ok(())
    }

    fn stream(
        &self,
        input: &Input,
        take: &mut dyn FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // The values of a tensor depend on its name (by FNV-1a), not on the order of tensors.
        let mut state = input
            .name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            })
            ^ split_mix(&mut self.seed.clone());
        let (mean, deviation) = scale(input);
        let mut left: usize = input.shape.iter().product();
        let mut piece = Vec::new();
        while left > 0 {
            let count = left.min(1 << 16);
            piece.clear();
            piece.extend((0..count).map(|_| mean + deviation * normal(&mut state)));
            take(&piece)?;
            left -= count;
        }
        Ok(())
    }
}
