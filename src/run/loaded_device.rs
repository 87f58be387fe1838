//! A device of the run with the model on it: what its workers share, what it learnt, and what is told of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::device::Device;
use crate::engine::select::Place;
use crate::engine::session::Session;
use crate::engine::{Batch, Engine, EngineError, Reduce};
use crate::report::DeviceReport;
use crate::settings::Precision;
use crate::trace::{Lane, Trace};

/// Loads the same model in a higher precision.
pub type Load<'a> = Box<dyn Fn() -> Result<Box<dyn Engine>, EngineError> + Send + Sync + 'a>;

/// An engine, and what belongs to its device.
pub struct Slot<'a> {
    /// The device.
    pub place: Place,
    /// What tells it apart in messages: `cuda:0 (NVIDIA H100)`.
    pub label: String,
    /// The numbers it computes with.
    pub precision: Precision,
    /// Threads that feed it.
    pub workers: usize,
    /// Wall time of the load; zero when it was loaded before.
    pub load: Duration,
    /// What was loaded.
    pub session: Arc<dyn Session>,
    /// How it is run.
    engine: Arc<dyn Engine>,
    /// How to get, and the engine of, a higher precision. `None`: there is none.
    higher: Option<Load<'a>>,
    higher_engine: OnceLock<Result<Arc<dyn Engine>, String>>,
    /// Tokens of a batch that did not exhaust its memory, as far as is known.
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
    higher_loads: Vec<f64>,
    spans: Vec<(Instant, Instant)>,
}

impl<'a> Slot<'a> {
    /// A device with its engine, loaded in `load`.
    pub fn new(
        place: Place,
        precision: Precision,
        session: Arc<dyn Session>,
        engine: Box<dyn Engine>,
        load: Duration,
        higher: Option<Load<'a>>,
    ) -> Self {
        let label = match place.device {
            Device::Cpu => place.name.clone(),
            Device::Cuda(_) => format!("{} ({})", place.device, place.name),
        };
        Self {
            place,
            label,
            precision,
            workers: 1,
            load,
            session,
            engine: engine.into(),
            higher,
            higher_engine: OnceLock::new(),
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
    /// The engine's.
    pub fn run(
        &self,
        batch: &Batch,
        reduce: Reduce,
        trace: (&Trace, &Lane),
    ) -> Result<Vec<f32>, EngineError> {
        self.run_on(&*self.engine, "batch", batch, reduce, trace)
    }

    /// Runs a batch in higher precision. `None`: the device has none.
    ///
    /// # Errors
    /// The engine's.
    pub fn run_higher(
        &self,
        batch: &Batch,
        reduce: Reduce,
        trace: (&Trace, &Lane),
    ) -> Option<Result<Vec<f32>, EngineError>> {
        let load = self.higher.as_ref()?;
        let engine = self.higher_engine.get_or_init(|| {
            let started = Instant::now();
            let engine: Arc<dyn Engine> = load().map_err(|error| error.to_string())?.into();
            let seconds = started.elapsed().as_secs_f64();
            self.tally().higher_loads.push(seconds);
            Ok(engine)
        });
        Some(match engine {
            Ok(engine) => self.run_on(&**engine, "again", batch, reduce, trace),
            Err(why) => Err(EngineError::Runtime(format!(
                "it can't be loaded in higher precision: {why}"
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
    ) -> Result<Vec<f32>, EngineError> {
        let started = Instant::now();
        let result = engine.run(batch, reduce);
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

    /// A batch of so many tokens was too large: those to come are cut to half of it.
    pub fn learn(&self, tokens: usize) {
        self.limit.fetch_min((tokens / 2).max(1), Ordering::Relaxed);
        self.tally().splits += 1;
    }

    /// Tokens that a batch may have.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// So many sequences of a batch are computed again.
    pub fn recomputes(&self, sequences: usize) {
        let mut tally = self.tally();
        tally.recomputed_batches += 1;
        tally.recomputed_sequences += sequences as u64;
    }

    /// The device is gone. Whether this is news.
    pub fn lose(&self, why: String) -> bool {
        self.lost.set(why).is_ok()
    }

    /// Why the device is gone, if it is.
    pub fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    /// Tokens that the device worked on.
    pub fn tokens(&self) -> u64 {
        self.tally().tokens
    }

    /// Seconds of each load in higher precision.
    pub fn higher_loads(&self) -> Vec<f64> {
        self.tally().higher_loads.clone()
    }

    /// Adds what was done here to the report of the device.
    pub fn report(&self, report: &mut DeviceReport) {
        let mut tally = self.tally();
        report.loads += u64::from(!self.load.is_zero()) + tally.higher_loads.len() as u64;
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

impl Drop for Slot<'_> {
    /// Nothing can be given back to a device that is gone, and whoever tries may wait for ever: what was there is left to the end of the
    /// process.
    fn drop(&mut self) {
        if self.lost().is_some() {
            std::mem::forget(Arc::clone(&self.engine));
            if let Some(Ok(engine)) = self.higher_engine.get() {
                std::mem::forget(Arc::clone(engine));
            }
        }
    }
}

/// How long at least one of the spans was under way, and how long it was from the first one's start to the last one's end.
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
