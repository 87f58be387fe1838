//! Fault injection, for the tests: an engine on the CPU fails as a GPU does when it runs out of
//! memory, is lost, or overflows.
//!
//! The environment variable `SEQEMBED_INJECT` is a comma-separated list of:
//! - `engines=N`: N engines on the CPU, as if there were N devices;
//! - `oom-above=T`: a batch of more than T tokens is too large for any device;
//! - `lost-after=N`: the first device is lost after N batches;
//! - `nonfinite-tokens=T`: a sequence of T tokens (special ones included) overflows when it is
//!   first computed;
//! - `nonfinite-always`: it overflows in higher precision, too;
//! - `half`: devices are said to compute in half precision, so that there is a higher one to fall
//!   back on;
//! - `slow=MS`: every batch takes MS milliseconds longer;
//! - `made-up`: nothing is computed, and the numbers are made up, which measures how much the rest
//!   of the program can carry (`bench/residues.py`). A run warns of it.
//!
//! Without the variable no engine is wrapped, so that this costs nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use half::f16;

use super::batch::{Batch, Reduce};
use super::error::EngineError;
use super::session::Engine;
use crate::vectors::Floats;

/// The environment variable.
pub const VARIABLE: &str = "SEQEMBED_INJECT";

/// The faults to inject.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Number of devices that the CPU simulates.
    pub engines: Option<usize>,
    /// Whether devices are said to compute in half precision.
    pub half: bool,
    oom_above: Option<usize>,
    lost_after: Option<u64>,
    nonfinite_tokens: Option<usize>,
    nonfinite_always: bool,
    slow: Option<u64>,
    /// Whether the numbers are made up.
    pub made_up: bool,
}

impl Faults {
    /// Reads the environment variable. `None` where it is not set.
    ///
    /// # Errors
    /// When a word is none of those above.
    pub fn from_env() -> Result<Option<Self>, String> {
        match std::env::var(VARIABLE) {
            Ok(text) if !text.is_empty() => Self::parse(&text).map(Some),
            _ => Ok(None),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut faults = Self::default();
        for word in text.split(',') {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let number = || {
                value
                    .parse::<usize>()
                    .map_err(|_| format!("{VARIABLE}: {word:?} needs a whole number"))
            };
            match key {
                "engines" => faults.engines = Some(number()?.max(1)),
                "half" => faults.half = true,
                "oom-above" => faults.oom_above = Some(number()?),
                "lost-after" => faults.lost_after = Some(number()? as u64),
                "nonfinite-tokens" => faults.nonfinite_tokens = Some(number()?),
                "nonfinite-always" => faults.nonfinite_always = true,
                "slow" => faults.slow = Some(number()? as u64),
                "made-up" => faults.made_up = true,
                _ => return Err(format!("{VARIABLE}: {word:?} is unknown")),
            }
        }
        Ok(faults)
    }

    /// An engine with injected faults. `hidden` is the width of its rows, `index` the number of the
    /// device, and `fallback` is true for the engine in higher precision.
    #[must_use]
    pub fn wrap(
        self,
        engine: Box<dyn Engine>,
        hidden: usize,
        index: usize,
        fallback: bool,
    ) -> Box<dyn Engine> {
        Box::new(FaultyEngine {
            engine,
            made_up: self.made_up.then(|| MadeUp::new(hidden)),
            faults: self,
            first: index == 0,
            fallback,
            batches: AtomicU64::new(0),
        })
    }
}

struct FaultyEngine {
    engine: Box<dyn Engine>,
    made_up: Option<MadeUp>,
    faults: Faults,
    first: bool,
    fallback: bool,
    batches: AtomicU64,
}

impl Engine for FaultyEngine {
    fn run(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError> {
        self.run_floats(batch, reduce).map(Floats::into_singles)
    }

    fn run_floats(&self, batch: &Batch, reduce: Reduce) -> Result<Floats, EngineError> {
        let faults = &self.faults;
        if let Some(milliseconds) = faults.slow {
            std::thread::sleep(Duration::from_millis(milliseconds));
        }
        let before = self.batches.fetch_add(1, Ordering::Relaxed);
        if self.first && faults.lost_after.is_some_and(|after| before >= after) {
            return Err(EngineError::DeviceLost("a fault was injected".to_owned()));
        }
        if faults.oom_above.is_some_and(|most| batch.tokens() > most) {
            return Err(EngineError::OutOfMemory("a fault was injected".to_owned()));
        }
        let rows = match &self.made_up {
            Some(made_up) => made_up.rows(batch, reduce),
            None => self.engine.run_floats(batch, reduce)?,
        };
        let Some(tokens) = faults.nonfinite_tokens else {
            return Ok(rows);
        };
        let mut rows = rows.into_singles();
        if faults.nonfinite_always || !self.fallback {
            overflow(&mut rows, batch, reduce, tokens);
        }
        Ok(rows.into())
    }

    fn cost(&self, batch: &Batch) -> usize {
        self.engine.cost(batch)
    }
}

/// Numbers that cost nothing: a vector for each token id, as wide as the model's.
struct MadeUp {
    hidden: usize,
    /// `VECTORS` of them, spread as embeddings are. Those of tokens have 16 bits, as on a GPU.
    values: Vec<f16>,
}

/// How many different vectors are made up.
const VECTORS: usize = 64;

impl MadeUp {
    fn new(hidden: usize) -> Self {
        let mut state = 1_u64;
        let mut uniform = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let values = (0..VECTORS * hidden).map(|_| {
            let sum: f32 = (0..4).map(|_| uniform()).sum();
            f16::from_f32(sum / 4.0)
        });
        Self {
            hidden,
            values: values.collect(),
        }
    }

    fn rows(&self, batch: &Batch, reduce: Reduce) -> Floats {
        let vector = |id: i64| {
            let at = usize::try_from(id).unwrap_or(0) % VECTORS * self.hidden;
            &self.values[at..at + self.hidden]
        };
        let first = |range: &[i32; 2]| batch.ids[usize::try_from(range[0]).unwrap_or(0)];
        let ids: Vec<i64> = match reduce {
            Reduce::Tokens => batch.ids.clone(),
            Reduce::Mean | Reduce::Max | Reduce::Both => batch.ranges.iter().map(first).collect(),
        };
        let mut rows = Vec::with_capacity(ids.len() * self.hidden);
        for id in ids {
            rows.extend_from_slice(vector(id));
        }
        let rows = Floats::Half(Box::new(rows));
        match reduce {
            Reduce::Tokens => rows,
            Reduce::Mean | Reduce::Max | Reduce::Both => rows.into_singles().into(),
        }
    }
}

/// Puts an infinity into the rows of each sequence of `tokens` tokens.
fn overflow(rows: &mut [f32], batch: &Batch, reduce: Reduce, tokens: usize) {
    let count = match reduce {
        Reduce::Tokens => batch.tokens(),
        Reduce::Mean | Reduce::Max | Reduce::Both => batch.sequences(),
    };
    let hidden = rows.len() / count.max(1);
    for (at, pair) in batch.starts.windows(2).enumerate() {
        if usize::try_from(pair[1] - pair[0]) == Ok(tokens) {
            let row = match reduce {
                Reduce::Tokens => usize::try_from(pair[0]).unwrap_or(0) + tokens / 2,
                Reduce::Mean | Reduce::Max | Reduce::Both => at,
            };
            rows[row * hidden] = f32::INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_fault_is_no_fault_passed_over() {
        assert!(Faults::parse("oom-above=7,half").is_ok());
        for text in ["oom", "oom-above", "oom-above=x", "half,,", "slow=-1"] {
            assert!(Faults::parse(text).is_err(), "{text}");
        }
    }
}
