//! The number of threads to compute with, and starting threads without panicking where the system
//! refuses.
//!
//! `std::thread::spawn` and rayon's lazily created pool panic if no thread can be started, and a
//! scope then waits forever for the threads that did start. Therefore all threads are started here,
//! and rayon's pool is created before anything needs it.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Advice for when the system refuses to start a thread.
pub const MORE_THREADS: &str = "The limit on threads of this user or job may be reached (`ulimit \
                                -u`, or pids.max of its cgroup); option `threads: 1` uses the fewest";

/// The system refused to start a thread.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a thread: {0}. {advice}", advice = MORE_THREADS)]
pub struct StartError(#[from] io::Error);

/// Number of processors available to this process, by its affinity and the CPU quota of its cgroup.
#[must_use]
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The number of threads to use if `asked` are requested: at most the available processors, as more
/// threads would only wait and use memory.
#[must_use]
pub fn helpful(asked: Option<usize>) -> usize {
    let available = available();
    asked.unwrap_or(available).clamp(1, available)
}

/// Creates the thread pool for hashing files and tokenizing sequences, unless the process already
/// has one.
///
/// # Errors
/// If the system refuses to start that many threads.
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
        // The program that uses this library has already created a pool.
    }
    *made = true;
    Ok(())
}

/// Starts a thread in a scope.
///
/// # Errors
/// If the system refuses. The scope still waits for threads that were already started, so the
/// caller must make them end.
pub fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, StartError> {
    Ok(Builder::new().spawn_scoped(scope, work)?)
}

/// Starts a thread that nobody waits for.
///
/// # Errors
/// If the system refuses.
pub fn start_alone(work: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
    Ok(Builder::new().spawn(work).map(drop)?)
}

/// Whether a thread can be started right now: to be checked before calling libraries that panic
/// otherwise.
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
