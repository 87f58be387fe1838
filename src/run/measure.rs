//! Measures how fast a group's model runs on the devices of the run, with batches of its own files.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::chunk::Chunk;
use super::context::{Resources, RunContext};
use super::error::RunError;
use super::execute::Executor;
use super::group::Group;
use super::loading::ModelLoading;
use crate::engine::error::EngineError;
use crate::interrupt::Interrupt;
use crate::report::Report;
use crate::threads;

/// How long batches are run, not counting the first one of each worker.
const LONG: Duration = Duration::from_secs(2);

/// Tokens per second on all devices together; `None` where a batch failed, which is said.
///
/// # Errors
/// If the model cannot be loaded.
pub(super) fn measure(
    group: &Group,
    context: &RunContext,
    resources: &mut Resources,
    chunk: &Chunk,
) -> Result<Option<f64>, RunError> {
    let outputs = group.outputs();
    let spec = group.spec(context.options, &outputs);
    let mut report = Report::default();
    let mut loading = ModelLoading::new(group, context, resources, &mut report);
    let prepared = loading.prepare(spec, None)?;
    let loader = loading.loader(spec, 1)?;
    let devices = loading.onto_devices(&loader, &prepared, context.options.threads)?;
    let next = AtomicUsize::new(0);
    let rates = std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for device in &devices {
            for _ in 0..device.workers {
                let executor = group.executor(device, context.trace, "measuring".to_owned());
                let (next, interrupt) = (&next, &context.options.interrupt);
                let work = move || rate(&executor, chunk, next, interrupt);
                workers.push(threads::start(scope, work)?);
            }
        }
        let rates = workers.into_iter().map(|worker| {
            let joined = worker.join();
            joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        Ok::<_, RunError>(rates.collect::<Result<Vec<f64>, EngineError>>())
    })?;
    match rates {
        Ok(rates) => Ok(Some(rates.iter().sum())),
        Err(error) => {
            (context.say)(&format!("the speed could not be measured: {error}"));
            Ok(None)
        }
    }
}

/// Tokens per second of one worker.
fn rate(
    executor: &Executor,
    chunk: &Chunk,
    next: &AtomicUsize,
    interrupt: &Interrupt,
) -> Result<f64, EngineError> {
    let batch = || next.fetch_add(1, Ordering::Relaxed) % chunk.batches.len();
    // The first batch includes one-time set-up.
    executor.compute(chunk, batch())?;
    let started = Instant::now();
    let mut tokens = 0;
    while tokens == 0 || (started.elapsed() < LONG && interrupt.signal().is_none()) {
        let batch = batch();
        executor.compute(chunk, batch)?;
        let segments = chunk.batches[batch].iter();
        tokens += segments
            .map(|&at| chunk.segments[at].input.tokens)
            .sum::<usize>();
    }
    Ok(tokens as f64 / started.elapsed().as_secs_f64())
}
