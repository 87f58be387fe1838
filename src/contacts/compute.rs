//! Runs the batches of a chunk on several threads.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::chunk::{Chunk, pairs};
use super::error::ContactsError;
use crate::batch;
use crate::engine::error::EngineError;
use crate::engine::session::Session;
use crate::interrupt::Interrupt;
use crate::run::RunError;
use crate::threads;
use crate::tokenize::SpecialTokens;

/// What batches are computed with.
pub struct Compute<'a> {
    /// The model.
    pub engine: &'a dyn Session,
    /// Its special tokens.
    pub special: &'a SpecialTokens,
    /// Asks to stop between batches.
    pub interrupt: &'a Interrupt,
    /// Batches that are computed at the same time.
    pub workers: usize,
}

impl Compute<'_> {
    /// The contacts of each input of a chunk, [residues, residues]. Inputs that were not computed,
    /// since the run was asked to stop, have none.
    ///
    /// # Errors
    /// When a thread cannot be started, or the engine refuses a batch.
    pub fn chunk(&self, chunk: &Chunk) -> Result<Vec<Vec<f32>>, ContactsError> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(vec![Vec::new(); chunk.inputs.len()]);
        let work = || -> Result<(), EngineError> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(batch) = chunk.batches.get(at) else {
                    return Ok(());
                };
                if self.interrupt.signal().is_some() {
                    return Ok(());
                }
                let values = self.batch(chunk, batch).inspect_err(|_| {
                    // The others need not go on.
                    next.store(chunk.batches.len(), Ordering::Relaxed);
                })?;
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                let mut start = 0;
                for &input in batch {
                    let end = start + pairs(&chunk.inputs[input]);
                    done[input] = values[start..end].to_vec();
                    start = end;
                }
            }
        };
        let workers = self.workers.min(chunk.batches.len());
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..workers).map(|_| threads::start(scope, work)).collect();
            let mut result = work().map_err(ContactsError::from);
            for other in others {
                let other = match other {
                    Ok(thread) => thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                        .map_err(ContactsError::from),
                    Err(error) => Err(RunError::from(error).into()),
                };
                result = result.and(other);
            }
            result
        })?;
        Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn batch(&self, chunk: &Chunk, inputs: &[usize]) -> Result<Vec<f32>, EngineError> {
        let inputs = inputs.iter().map(|&input| &chunk.inputs[input]);
        self.engine.contacts(&batch::lay(
            inputs,
            &chunk.encoded,
            self.special,
            &[],
            false,
        ))
    }
}
