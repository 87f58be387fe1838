//! The threads of a run: one that reads, some that feed the devices, and this one that writes.
//!
//! ```text
//! reader: chunks -> batches  ==queue==>  workers of every device  ==>  this thread: rows -> files
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use serde_json::json;

use super::chunk::Chunk;
use super::chunker::Chunker;
use super::collect::{Collector, FinishedBatch, Message};
use super::collect_error::{CollectError, Observer};
use super::error::RunError;
use super::execute::Executor;
use super::loaded_device::LoadedDevice;
use super::queue::Queue;
use super::task::Task;
use crate::engine::error::EngineError;
use crate::interrupt::Interrupt;
use crate::report::Stages;
use crate::threads;
use crate::tokenize::Tokenizer;
use crate::trace::{Lane, Trace};

/// A batch on its way to a worker.
struct Work {
    chunk: Arc<Chunk>,
    batch: usize,
}

/// Messages from the workers and the reader to this thread.
enum Event {
    /// For the collector.
    Collect(Message),
    /// Something for the user.
    Warning(String),
}

/// Chunks that are read ahead, at work, or waiting to be written.
const CHUNKS: usize = 3;

/// How often it is looked whether there is something to save, or to stop for.
const TICK: Duration = Duration::from_millis(100);

/// How long a run that was asked to stop waits for batches under way.
const GRACE: Duration = Duration::from_secs(4);

/// What the threads of a run share.
pub struct Pipeline<'a> {
    /// The devices with the model on them. None when there is nothing to compute.
    pub devices: &'a [LoadedDevice<'a>],
    /// All jobs.
    pub tasks: &'a [Task],
    /// The model's tokenizer.
    pub tokenizer: &'a dyn Tokenizer,
    /// The model's own limit, in residues or bases.
    pub model_limit: Option<usize>,
    /// Width of a row.
    pub hidden: usize,
    /// For each pooling of jobs with several, whether it is a maximum.
    pub maxima: Vec<bool>,
    /// Whether the first file that fails ends it.
    pub strict: bool,
    /// Where it is traced.
    pub trace: &'a Trace,
    /// Asks the run to stop.
    pub interrupt: &'a Interrupt,
}

impl Pipeline<'_> {
    /// Runs the threads until every chunk is written.
    ///
    /// # Errors
    /// When a batch or a file fails for good, or no device is left.
    pub fn run(
        &self,
        chunker: Chunker,
        first: Chunk,
        collector: &mut Collector,
        stages: &mut Stages,
        observer: &mut dyn Observer,
    ) -> Result<(), RunError> {
        let workers: usize = self.devices.iter().map(|device| device.workers).sum();
        let queue = Queue::new(2 * workers);
        let stop = AtomicBool::new(false);
        let (sender, events) = unbounded::<Event>();
        let (permit_sender, permits) = bounded::<()>(CHUNKS);
        let result = std::thread::scope(|scope| {
            let end = || {
                stop.store(true, Ordering::Relaxed);
                queue.stop();
            };
            let reader = {
                let (sender, queue, stop) = (sender.clone(), &queue, &stop);
                threads::start(scope, move || {
                    self.read(chunker, first, queue, &sender, &permit_sender, stop)
                })?
            };
            for device in self.devices {
                for number in 1..=device.workers {
                    let (sender, queue) = (sender.clone(), &queue);
                    let lane = Lane {
                        group: device.label.clone(),
                        name: format!("worker {number}"),
                    };
                    let work = move || self.work(device, lane, queue, &sender);
                    if let Err(error) = threads::start(scope, work) {
                        // Those that were started go home, or the scope would wait for them.
                        end();
                        drop((permits, events));
                        return Err(error.into());
                    }
                }
            }
            drop(sender);
            self.interrupt.set_busy(true);
            let result = self.gather(collector, &events, permits, observer, &end);
            self.interrupt.set_busy(false);
            end();
            // A thread waiting for space in the channel wakes up, and finds the channel closed.
            drop(events);
            let (reading, tokenizing) = reader
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            stages.reading += reading.as_secs_f64();
            stages.tokenizing += tokenizing.as_secs_f64();
            result
        });
        result?;
        if !self.devices.is_empty() && self.devices.iter().all(|device| device.lost().is_some()) {
            return Err(self.lost(collector));
        }
        Ok(())
    }

    fn read(
        &self,
        mut chunker: Chunker,
        first: Chunk,
        queue: &Queue<Work>,
        sender: &Sender<Event>,
        permits: &Sender<()>,
        stop: &AtomicBool,
    ) -> (Duration, Duration) {
        let mut next = Some(first);
        'chunks: while let Some(chunk) = next.take() {
            if permits.send(()).is_err() || stop.load(Ordering::Relaxed) {
                break;
            }
            let chunk = Arc::new(chunk);
            let message = Message::Chunk(Arc::clone(&chunk));
            if sender.send(Event::Collect(message)).is_err() {
                break;
            }
            for batch in 0..chunk.batches.len() {
                let chunk = Arc::clone(&chunk);
                if !queue.push(Work { chunk, batch }) {
                    break 'chunks;
                }
            }
            drop(chunk);
            let (before, started) = ((chunker.reading, chunker.tokenizing), Instant::now());
            next = chunker.next();
            if let Some(chunk) = &next {
                let spent = (
                    chunker.reading.saturating_sub(before.0),
                    chunker.tokenizing.saturating_sub(before.1),
                );
                trace_chunk(self.trace, started, spent, chunk);
            }
        }
        queue.close();
        (chunker.reading, chunker.tokenizing)
    }

    /// Runs batches on a device until there are no more, or until the device is lost.
    fn work(&self, device: &LoadedDevice, lane: Lane, queue: &Queue<Work>, sender: &Sender<Event>) {
        let executor = Executor {
            device,
            tasks: self.tasks,
            tokenizer: self.tokenizer,
            model_limit: self.model_limit,
            hidden: self.hidden,
            maxima: self.maxima.clone(),
            trace: self.trace,
            lane,
        };
        while let Some(taken) = queue.take() {
            // Another worker of the device found out.
            if device.lost().is_some() {
                taken.give_back();
                return;
            }
            let Work { chunk, batch } = taken.item();
            let started = Instant::now();
            let result = executor.compute(chunk, *batch);
            if let Err(EngineError::DeviceLost(why)) = result {
                taken.give_back();
                self.lose(device, why, queue, sender);
                return;
            }
            let done = FinishedBatch {
                chunk: chunk.number,
                batch: *batch,
                result,
                elapsed: started.elapsed(),
            };
            if sender.send(Event::Collect(Message::Done(done))).is_err() {
                return;
            }
        }
    }

    /// Removes a device from the run. The run ends with the last device.
    fn lose(
        &self,
        device: &LoadedDevice,
        why: String,
        queue: &Queue<Work>,
        sender: &Sender<Event>,
    ) {
        let text = format!("{} was lost: {why}", device.label);
        if !device.mark_lost(why) {
            return;
        }
        let left = self.devices.iter().filter(|device| device.lost().is_none());
        let left: Vec<&str> = left.map(|device| device.label.as_str()).collect();
        if left.is_empty() {
            queue.stop();
        } else {
            let text = format!("{text}. Its work continues on {}", left.join(", "));
            // The channel is closed if the run ended for another reason.
            let _ = sender.send(Event::Warning(text));
        }
    }

    /// Collects results until there are no more, or the run is asked to stop. Results of unfinished
    /// files are then saved.
    fn gather(
        &self,
        collector: &mut Collector,
        events: &Receiver<Event>,
        permits: Receiver<()>,
        observer: &mut dyn Observer,
        end: &dyn Fn(),
    ) -> Result<(), RunError> {
        let taken = self.take_all(collector, events, permits, observer, end);
        if let Err(error) = taken
            && !matches!(error, RunError::Collect(CollectError::Stopped))
        {
            // The first error is the relevant one; saving often fails for the same reason.
            let _ = collector.abandon(observer);
            return Err(error);
        }
        let saved = collector.abandon(observer)?;
        match self.interrupt.signal() {
            Some(signal) => Err(RunError::Interrupted { signal, saved }),
            None => Ok(()),
        }
    }

    fn take_all(
        &self,
        collector: &mut Collector,
        events: &Receiver<Event>,
        permits: Receiver<()>,
        observer: &mut dyn Observer,
        end: &dyn Fn(),
    ) -> Result<(), RunError> {
        let lane = Lane::host("writing");
        let mut permits = Some(permits);
        let mut asked: Option<Instant> = None;
        loop {
            if asked.is_none() && self.interrupt.signal().is_some() {
                asked = Some(Instant::now());
                // No more batches are taken, and no more chunks come in.
                end();
                permits = None;
            }
            if asked.is_some_and(|asked| asked.elapsed() >= GRACE) {
                return Ok(());
            }
            let message = match events.recv_timeout(TICK) {
                Ok(Event::Collect(message)) => message,
                Ok(Event::Warning(text)) => {
                    observer.warning(&text);
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {
                    collector.tick(observer)?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let started = Instant::now();
            let written = collector.take(message, observer)?;
            if written > 0 {
                let about = || json!({"chunks": written});
                self.trace
                    .span(&lane, "writing", started, Instant::now(), about);
            }
            if let Some(permits) = &permits {
                for _ in 0..written {
                    // A chunk left: another one may come in.
                    let _ = permits.recv();
                }
            }
            if self.strict && collector.files.any_failed() {
                return Ok(());
            }
        }
    }

    /// The error of a run that has lost all devices.
    fn lost(&self, collector: &Collector) -> RunError {
        let why = self.devices.iter().filter_map(|device| {
            let why = device.lost()?;
            Some(format!("{} was lost: {why}", device.label))
        });
        let mut finished = 0;
        let mut unfinished = Vec::new();
        for file in &collector.files.reports {
            if file.output.is_some() {
                finished += 1;
            } else if file.error.is_none() {
                unfinished.push(file.sample.clone());
            }
        }
        RunError::Lost {
            why: why.collect::<Vec<_>>().join("; "),
            finished,
            unfinished,
        }
    }
}

/// Notes when a chunk was read and, after that, tokenised.
pub fn trace_chunk(
    trace: &Trace,
    started: Instant,
    (reading, tokenizing): (Duration, Duration),
    chunk: &Chunk,
) {
    let read = started + reading;
    let about = || json!({"chunk": chunk.number, "records": chunk.entries.len()});
    trace.span(&Lane::host("reading"), "reading", started, read, about);
    let about = || json!({"chunk": chunk.number, "batches": chunk.batches.len()});
    trace.span(
        &Lane::host("tokenizing"),
        "tokenizing",
        read,
        read + tokenizing,
        about,
    );
}
