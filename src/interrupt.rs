//! Asks a run to stop: the signal handler and the run share an [`Interrupt`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Set by the signal handler, checked by the run.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<State>);

#[derive(Debug, Default)]
struct State {
    signal: AtomicI32,
    busy: AtomicBool,
}

impl Interrupt {
    /// Asks the run to stop because of a signal, given by its number.
    pub fn stop(&self, signal: i32) {
        self.0.signal.store(signal, Ordering::SeqCst);
    }

    /// The signal's number if the run must stop, else `None`.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        let signal = self.0.signal.load(Ordering::SeqCst);
        (signal != 0).then_some(signal)
    }

    /// Called by the run: whether something must be saved before the process may end.
    pub fn set_busy(&self, busy: bool) {
        self.0.busy.store(busy, Ordering::SeqCst);
    }

    /// Whether the run is still saving, so that the process must not end yet.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.0.busy.load(Ordering::SeqCst)
    }
}
