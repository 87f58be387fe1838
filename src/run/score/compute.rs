//! Runs passes on all devices.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::error::ScoreError;
use crate::engine::error::EngineError;
use crate::interrupt::Interrupt;
use crate::run::chunk::Chunk;
use crate::run::execute::{BatchResult, Executor, SegmentIssue};
use crate::run::group::Group;
use crate::run::loaded_device::LoadedDevice;
use crate::run::results::{ResultLocation, locate};
use crate::threads;
use crate::trace::{Lane, Trace};
use crate::vectors::Floats;

/// The devices with the model on them, and what their workers share.
pub struct Devices<'a> {
    /// The devices.
    pub all: &'a [LoadedDevice<'a>],
    /// The jobs' group.
    pub group: &'a Group,
    /// Numbers in a row.
    pub width: usize,
    /// Asks the run to stop.
    pub interrupt: &'a Interrupt,
    /// A trace that is not written.
    pub trace: &'a Trace,
}

/// The rows of a chunk's segments.
pub struct PassRows {
    locations: Vec<ResultLocation>,
    batches: Vec<Option<Floats>>,
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
            for device in self.all {
                for number in 1..=device.workers.min(chunk.batches.len()) {
                    let executor = self.executor(device, number);
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
                            let mut results =
                                results.lock().unwrap_or_else(PoisonError::into_inner);
                            results.push((batch, result));
                        }
                    };
                    if let Err(error) = threads::start(scope, work) {
                        stop.store(true, Ordering::Relaxed);
                        return Err(error.into());
                    }
                }
            }
            Ok(())
        })?;
        if let Some(signal) = self.interrupt.signal() {
            return Err(ScoreError::Interrupted(signal));
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
            rows.batches[batch] = Some(floats);
            for (segment, issue) in issues {
                if let SegmentIssue::Failed(why) = issue {
                    rows.failed.push((segment, why));
                }
            }
        }
        Ok(rows)
    }

    fn executor<'e>(&'e self, device: &'e LoadedDevice<'e>, number: usize) -> Executor<'e> {
        Executor {
            device,
            tasks: &self.group.tasks,
            tokenizer: &*self.group.tokenizer,
            model_limit: self.group.model_limit(),
            hidden: self.width,
            maxima: Vec::new(),
            trace: self.trace,
            lane: Lane {
                group: device.label.clone(),
                name: format!("worker {number}"),
            },
        }
    }
}

impl PassRows {
    /// The rows `range` of a segment's result, of `width` numbers each.
    pub fn of(
        &self,
        segment: usize,
        range: std::ops::Range<usize>,
        width: usize,
    ) -> std::borrow::Cow<'_, [f32]> {
        match self.locations[segment] {
            ResultLocation::Batch { batch, row } => match &self.batches[batch] {
                Some(floats) => {
                    floats.singles((row + range.start) * width..(row + range.end) * width)
                }
                None => std::borrow::Cow::default(),
            },
            ResultLocation::Cached(_) => std::borrow::Cow::default(),
        }
    }
}
