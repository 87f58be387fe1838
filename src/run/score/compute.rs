//! Runs passes on all devices.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::ScoreError;
use crate::engine::error::EngineError;
use crate::interrupt::Interrupt;
use crate::run::chunk::Chunk;
use crate::run::error::RunError;
use crate::run::execute::{BatchResult, Executor, SegmentIssue};
use crate::run::results::{ResultLocation, Results, locate};
use crate::run::save::SavedCounts;
use crate::threads;
use crate::vectors::Floats;

/// The devices with the model on them, and what their workers share.
pub struct Devices<'a> {
    /// What runs batches: one for each worker of each device.
    pub workers: Vec<Executor<'a>>,
    /// Numbers in a row.
    pub width: usize,
    /// Asks the run to stop.
    pub interrupt: &'a Interrupt,
}

/// The rows of a chunk's segments.
pub struct PassRows {
    locations: Vec<ResultLocation>,
    batches: Vec<Option<Arc<Floats>>>,
    /// Segments without rows, and why.
    pub failed: Vec<(usize, String)>,
}

impl Devices<'_> {
    /// Computes all batches of a chunk.
    pub fn run(&self, chunk: &Chunk) -> Result<PassRows, ScoreError> {
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let results: Mutex<Vec<(usize, Result<BatchResult, EngineError>)>> = Mutex::default();
        std::thread::scope(|scope| -> Result<(), ScoreError> {
            for executor in &self.workers {
                let (next, stop, results) = (&next, &stop, &results);
                let interrupt = self.interrupt;
                let work = move || {
                    while !stop.load(Ordering::Relaxed) && interrupt.signal().is_none() {
                        let batch = next.fetch_add(1, Ordering::Relaxed);
                        if batch >= chunk.batches.len() {
                            return;
                        }
                        let result = executor.compute(chunk, batch);
                        if result.is_err() {
                            stop.store(true, Ordering::Relaxed);
                        }
                        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                        results.push((batch, result));
                    }
                };
                if let Err(error) = threads::start(scope, work) {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error.into());
                }
            }
            Ok(())
        })?;
        if let Some(signal) = self.interrupt.signal() {
            let saved = SavedCounts::default();
            return Err(RunError::Interrupted { signal, saved }.into());
        }
        let mut rows = PassRows {
            locations: locate(chunk),
            batches: chunk.batches.iter().map(|_| None).collect(),
            failed: Vec::new(),
        };
        for (batch, result) in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let BatchResult {
                rows: floats,
                issues,
            } = result?;
            rows.batches[batch] = Some(Arc::new(floats));
            for (segment, issue) in issues {
                if let SegmentIssue::Failed(why) = issue {
                    rows.failed.push((segment, why));
                }
            }
        }
        Ok(rows)
    }
}

impl PassRows {
    /// From where each segment's rows are read. `hidden`: numbers in a row.
    pub fn results<'r>(&'r self, chunk: &'r Chunk, hidden: usize) -> Results<'r> {
        Results {
            chunk,
            locations: &self.locations,
            batches: &self.batches,
            cached: &[],
            hidden,
        }
    }
}
