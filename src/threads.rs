//! How many threads a process computes with, and starting them: an error, where the system gives no more.
//!
//! Rust's own `spawn` and the pool that rayon makes when it is first needed panic instead, and a scope then waits for ever for the threads
//! that did start. So threads are started here alone, and rayon's pool is made before anything needs it.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Why there may be no more threads, and what helps.
pub const MORE_THREADS: &str = "This user or job may have no more of them (`ulimit -u`, a cgroup's pids.max); --threads 1 takes the fewest";

/// The system gave no thread.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a thread: {0}. {advice}", advice = MORE_THREADS)]
pub struct StartError(#[from] io::Error);

/// Threads that help: as many as this process has processors, by its affinity and its cgroup's quota.
#[must_use]
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How many threads are used where so many were asked for: no more than help. More would wait for each other, and take memory.
#[must_use]
pub fn helpful(asked: Option<usize>) -> usize {
    let available = available();
    asked.unwrap_or(available).clamp(1, available)
}

/// Makes the pool in which files are hashed and sequences tokenised, unless the process has one.
///
/// # Errors
/// When the system does not give so many threads.
pub fn pool(threads: usize) -> Result<(), StartError> {
    static MADE: Mutex<bool> = Mutex::new(false);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if *made {
        return Ok(());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    if let Err(error) = pool.build_global() {
        use std::error::Error as _;
        let cause = error
            .source()
            .and_then(|cause| cause.downcast_ref::<io::Error>());
        if let Some(cause) = cause {
            return Err(io::Error::new(cause.kind(), cause.to_string()).into());
        }
        // Whoever uses the library has made a pool already.
    }
    *made = true;
    Ok(())
}

/// Starts a thread of a scope.
///
/// # Errors
/// When the system gives none. The scope waits for those that have been started: they are to be told to end.
pub fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, StartError> {
    Ok(Builder::new().spawn_scoped(scope, work)?)
}

/// Whether the system gives a thread right now: for libraries that panic without one, and what can be done without.
#[must_use]
pub fn is_there_one() -> bool {
    Builder::new()
        .spawn(|| {})
        .is_ok_and(|thread| thread.join().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_threads_than_help() {
        let available = available();
        assert_eq!(helpful(None), available);
        assert_eq!(helpful(Some(0)), 1);
        assert_eq!(helpful(Some(1)), 1);
        assert_eq!(helpful(Some(available)), available);
        assert_eq!(helpful(Some(available + 1)), available);
        assert_eq!(helpful(Some(usize::MAX)), available);
    }
}
