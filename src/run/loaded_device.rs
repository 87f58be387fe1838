//! A device of the run with the model loaded: what its workers share, how large its batches may be,
//! and what is reported about it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::device::Device;
use crate::engine::batch::{Batch, Reduce};
use crate::engine::error::EngineError;
use crate::engine::select::SelectedDevice;
use crate::engine::session::{Engine, Session};
use crate::report::DeviceReport;
use crate::settings::Precision;
use crate::trace::{Lane, Trace};
use crate::vectors::Floats;

/// Loads the same model in a higher precision.
pub type LoadFallback<'a> =
    Box<dyn Fn() -> Result<Box<dyn Engine>, EngineError> + Send + Sync + 'a>;

/// A device with the model loaded.
pub struct LoadedDevice<'a> {
    /// Which device.
    pub device: SelectedDevice,
    /// Its name in messages, such as `cuda:0 (NVIDIA H100)`.
    pub label: String,
    /// The precision that it computes in.
    pub precision: Precision,
    /// Threads that feed it, at least 1.
    pub workers: usize,
    /// Wall time of the load; zero when the session was loaded before this run.
    pub load: Duration,
    /// The loaded model.
    pub session: Arc<dyn Session>,
    /// The session as batches are run on it, with injected faults in tests.
    engine: Arc<dyn Engine>,
    /// Loads the model in a higher precision. `None`: there is none.
    load_fallback: Option<LoadFallback<'a>>,
    /// The model in a higher precision, once it was needed, or why it could not be loaded.
    fallback: OnceLock<Result<Arc<dyn Engine>, String>>,
    /// The largest number of tokens per batch that fits into the device's memory, as far as known.
    limit: AtomicUsize,
    lost: OnceLock<String>,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    batches: u64,
    tokens: u64,
    splits: u64,
    recomputed_batches: u64,
    recomputed_sequences: u64,
    fallback_loads: Vec<f64>,
    spans: Vec<(Instant, Instant)>,
}

impl<'a> LoadedDevice<'a> {
    /// A device with one worker.
    pub fn new(
        device: SelectedDevice,
        precision: Precision,
        session: Arc<dyn Session>,
        engine: Box<dyn Engine>,
        load_fallback: Option<LoadFallback<'a>>,
    ) -> Self {
        let label = match device.device {
            Device::Cpu => device.name.clone(),
            Device::Cuda(_) => format!("{} ({})", device.device, device.name),
        };
        Self {
            device,
            label,
            precision,
            workers: 1,
            load: Duration::ZERO,
            session,
            engine: engine.into(),
            load_fallback,
            fallback: OnceLock::new(),
            limit: AtomicUsize::new(usize::MAX),
            lost: OnceLock::new(),
            tally: Mutex::default(),
        }
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a batch on the device.
    ///
    /// # Errors
    /// As for [`Session::run`](crate::engine::Session::run).
    pub fn run(
        &self,
        batch: &Batch,
        reduce: Reduce,
        trace: (&Trace, &Lane),
    ) -> Result<Floats, EngineError> {
        self.run_on(&*self.engine, "batch", batch, reduce, trace)
    }

    /// Runs a batch in higher precision. `None`: the device has none.
    ///
    /// # Errors
    /// As for [`Session::run`](crate::engine::Session::run).
    pub fn run_higher(
        &self,
        batch: &Batch,
        reduce: Reduce,
        trace: (&Trace, &Lane),
    ) -> Option<Result<Floats, EngineError>> {
        let load = self.load_fallback.as_ref()?;
        let engine = self.fallback.get_or_init(|| {
            let started = Instant::now();
            let engine: Arc<dyn Engine> = load().map_err(|error| error.to_string())?.into();
            let seconds = started.elapsed().as_secs_f64();
            self.tally().fallback_loads.push(seconds);
            Ok(engine)
        });
        Some(match engine {
            Ok(engine) => self.run_on(&**engine, "again", batch, reduce, trace),
            Err(why) => Err(EngineError::Runtime(format!(
                "the model cannot be loaded in higher precision: {why}"
            ))),
        })
    }

    fn run_on(
        &self,
        engine: &dyn Engine,
        what: &'static str,
        batch: &Batch,
        reduce: Reduce,
        (trace, lane): (&Trace, &Lane),
    ) -> Result<Floats, EngineError> {
        let started = Instant::now();
        let result = engine.run_floats(batch, reduce);
        let ended = Instant::now();
        let spans = engine.computed();
        let about = || json!({"tokens": batch.tokens(), "sequences": batch.sequences(), "done": result.is_ok()});
        trace.span(lane, what, started, ended, about);
        for &(from, to) in &spans {
            let lane = Lane {
                group: lane.group.clone(),
                name: "device".to_owned(),
            };
            trace.span(&lane, "computing", from, to, || json!({}));
        }
        let mut tally = self.tally();
        if spans.is_empty() {
            tally.spans.push((started, ended));
        } else {
            tally.spans.extend(spans);
        }
        if result.is_ok() {
            tally.batches += 1;
            tally.tokens += engine.cost(batch) as u64;
        }
        result
    }

    /// Notes that a batch with this many tokens was too large. Later batches get at most half as
    /// many.
    pub fn lower_limit(&self, tokens: usize) {
        self.limit.fetch_min((tokens / 2).max(1), Ordering::Relaxed);
        self.tally().splits += 1;
    }

    /// Maximum number of tokens per batch.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Counts sequences of a batch that are recomputed in higher precision.
    pub fn count_recomputed(&self, sequences: usize) {
        let mut tally = self.tally();
        tally.recomputed_batches += 1;
        tally.recomputed_sequences += sequences as u64;
    }

    /// Records that the device no longer answers. `false` if that was known.
    pub fn mark_lost(&self, why: String) -> bool {
        self.lost.set(why).is_ok()
    }

    /// Why the device no longer answers, if so.
    pub fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    /// Tokens that the device computed, padding included.
    pub fn tokens(&self) -> u64 {
        self.tally().tokens
    }

    /// Wall time in seconds of each load in higher precision.
    pub fn fallback_loads(&self) -> Vec<f64> {
        self.tally().fallback_loads.clone()
    }

    /// Adds what this device did to its report.
    pub fn report(&self, report: &mut DeviceReport) {
        let mut tally = self.tally();
        report.loads += u64::from(!self.load.is_zero()) + tally.fallback_loads.len() as u64;
        report.batches += tally.batches;
        report.tokens += tally.tokens;
        report.out_of_memory_splits += tally.splits;
        report.recomputed_batches += tally.recomputed_batches;
        report.recomputed_sequences += tally.recomputed_sequences;
        let (busy, wall) = busy(&mut tally.spans);
        report.computing_seconds += busy.as_secs_f64();
        report.wall_seconds += wall.as_secs_f64();
        let limit = self.limit();
        if limit < usize::MAX {
            report.learnt_batch_tokens = Some(limit);
        }
        if let Some(why) = self.lost() {
            report.lost = Some(why.to_owned());
        }
    }
}

impl Drop for LoadedDevice<'_> {
    /// Memory cannot be given back to a device that no longer answers, and trying may hang. It is
    /// left to the end of the process.
    fn drop(&mut self) {
        if self.lost().is_some() {
            std::mem::forget(Arc::clone(&self.engine));
            if let Some(Ok(engine)) = self.fallback.get() {
                std::mem::forget(Arc::clone(engine));
            }
        }
    }
}

/// For how long at least one of the spans was under way, and how long it is from the start of the
/// first to the end of the last.
fn busy(spans: &mut [(Instant, Instant)]) -> (Duration, Duration) {
    spans.sort_unstable();
    let Some(&(first, _)) = spans.first() else {
        return (Duration::ZERO, Duration::ZERO);
    };
    let (mut busy, mut end) = (Duration::ZERO, first);
    for &(from, to) in spans.iter() {
        busy += to.saturating_duration_since(from.max(end));
        end = end.max(to);
    }
    (busy, end - first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_counts_what_overlaps_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        // 0-4 and 2-3 and 3-6 overlap; 8-9 stands apart; 6-8 is idle.
        let mut spans = [
            (at(3), at(6)),
            (at(8), at(9)),
            (at(0), at(4)),
            (at(2), at(3)),
        ];
        let (busy, wall) = busy(&mut spans);
        assert_eq!((busy.as_secs(), wall.as_secs()), (7, 9));
        assert_eq!(super::busy(&mut []), (Duration::ZERO, Duration::ZERO));
    }
}
