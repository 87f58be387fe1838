//! Work that is done by rayon's threads while the thread that hands it out goes on, in bounded
//! memory.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use crate::threads;

/// Bytes that jobs may hold for each thread, all together. Whoever adds more does some of the work.
const WAITING_BYTES: usize = 2 << 20;

/// Bytes that jobs hold, all together.
static WAITING: AtomicUsize = AtomicUsize::new(0);

type Work = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// Jobs that belong together, done in any order. Dropped, it drops those that were not begun, and
/// waits for the others.
#[derive(Default)]
pub struct Jobs(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Tells that a job is done.
    done: Condvar,
}

#[derive(Default)]
struct State {
    /// With the bytes that they hold.
    waiting: VecDeque<(usize, Work)>,
    /// Jobs that some thread is doing.
    running: usize,
    error: Option<io::Error>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a job. `false`: none waits.
    fn do_one(&self) -> bool {
        let mut state = self.state();
        let Some((bytes, work)) = state.waiting.pop_front() else {
            return false;
        };
        state.running += 1;
        drop(state);
        let result = work();
        WAITING.fetch_sub(bytes, Ordering::Relaxed);
        let mut state = self.state();
        if let Err(error) = result {
            state.error.get_or_insert(error);
            // The first error is the relevant one, and nothing helps after it.
            let dropped = std::mem::take(&mut state.waiting);
            let bytes = dropped.iter().map(|(bytes, _)| bytes).sum();
            WAITING.fetch_sub(bytes, Ordering::Relaxed);
        }
        state.running -= 1;
        drop(state);
        self.done.notify_all();
        true
    }

    fn wait(&self) -> MutexGuard<'_, State> {
        while self.do_one() {}
        let is_busy = |state: &mut State| state.running > 0;
        let waited = self.done.wait_while(self.state(), is_busy);
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The error of an earlier job. It is told again each time.
    fn check(&mut self) -> io::Result<()> {
        match self.error.take() {
            Some(error) => {
                self.error = Some(match error.raw_os_error() {
                    Some(code) => io::Error::from_raw_os_error(code),
                    None => io::Error::new(error.kind(), error.to_string()),
                });
                Err(error)
            }
            None => Ok(()),
        }
    }
}

impl Jobs {
    /// Adds a job that holds so many bytes.
    ///
    /// # Errors
    /// That of an earlier job.
    pub fn add(
        &self,
        bytes: usize,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let mut state = self.0.state();
        state.check()?;
        let waiting = WAITING.fetch_add(bytes, Ordering::Relaxed) + bytes;
        state.waiting.push_back((bytes, Box::new(work)));
        drop(state);
        let shared = Arc::downgrade(&self.0);
        rayon::spawn(move || {
            if let Some(shared) = shared.upgrade() {
                shared.do_one();
            }
        });
        let most = WAITING_BYTES * rayon::current_num_threads();
        if waiting > most {
            while WAITING.load(Ordering::Relaxed) > most && self.0.do_one() {}
        }
        Ok(())
    }

    /// Waits until all are done, and helps.
    ///
    /// # Errors
    /// That of a job.
    pub fn wait(&self) -> io::Result<()> {
        self.0.wait().check()
    }
}

/// The result of what a thread of its own does, because it waits for the disk.
pub struct Promise<T>(Receiver<T>);

impl<T: Send + 'static> Promise<T> {
    /// Has a new thread do the work. Where none can be started, this one does it.
    pub fn new<W: FnOnce() -> T + Send + 'static>(work: W) -> Self {
        let (sender, result) = bounded(1);
        let work = Arc::new(Mutex::new(Some(work)));
        let theirs = (Arc::clone(&work), sender.clone());
        if threads::start_alone(move || keep(&theirs.0, &theirs.1)).is_err() {
            keep(&work, &sender);
        }
        Self(result)
    }

    /// Whether the result is there.
    pub fn is_done(&self) -> bool {
        !self.0.is_empty()
    }

    /// The result, once it is there. `None`: the thread is gone.
    pub fn wait(&self) -> Option<T> {
        /// How long a thread that finds nothing else to do waits.
        const TICK: Duration = Duration::from_millis(1);
        // If this is one of rayon's threads, all of them may be waiting like it, and the work may
        // need one.
        while let Some(did) = rayon::yield_now() {
            match self.0.try_recv() {
                Ok(result) => return Some(result),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) if did == rayon::Yield::Idle => {
                    std::thread::sleep(TICK);
                }
                Err(TryRecvError::Empty) => {}
            }
        }
        self.0.recv().ok()
    }
}

/// Does the work and sends its result, unless it is done.
fn keep<T, W: FnOnce() -> T>(work: &Mutex<Option<W>>, to: &Sender<T>) {
    let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(work) = work {
        // Nobody may wait for it any more.
        let _ = to.send(work());
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        let dropped = std::mem::take(&mut self.0.state().waiting);
        let bytes = dropped.iter().map(|(bytes, _)| bytes).sum();
        WAITING.fetch_sub(bytes, Ordering::Relaxed);
        drop(self.0.wait());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_the_pool_can_wait_for_each_other() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let result = pool.unwrap().install(|| {
            let promise = Promise::new(|| rayon::join(|| 3, || 4));
            promise.wait()
        });
        assert_eq!(result, Some((3, 4)));
        assert_eq!(Promise::new(|| 8).wait(), Some(8));
    }

    #[test]
    fn all_jobs_are_done_and_the_first_error_is_told() {
        let count = Arc::new(AtomicUsize::new(0));
        let jobs = Jobs::default();
        for _ in 0..100 {
            let count = Arc::clone(&count);
            let work = move || {
                count.fetch_add(1, Ordering::Relaxed);
                Ok(())
            };
            // The last ones are done by this thread.
            jobs.add(WAITING_BYTES, work).unwrap();
        }
        jobs.wait().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 100);
        jobs.add(1, || Err(io::ErrorKind::StorageFull.into()))
            .unwrap();
        for _ in 0..2 {
            let error = jobs.wait().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
        assert!(jobs.add(1, || Ok(())).is_err());
    }
}
