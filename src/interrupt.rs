//! A run that is asked to stop: who asks and who obeys share an [`Interrupt`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Set by a signal, looked at by a run.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<State>);

#[derive(Debug, Default)]
struct State {
    signal: AtomicI32,
    busy: AtomicBool,
}

impl Interrupt {
    /// Asks the run to stop, for a signal's number.
    pub fn stop(&self, signal: i32) {
        self.0.signal.store(signal, Ordering::SeqCst);
    }

    /// The signal, if the run is to stop.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        let signal = self.0.signal.load(Ordering::SeqCst);
        (signal != 0).then_some(signal)
    }

    /// The run says whether it has something that must be saved before the process may end.
    pub fn set_busy(&self, busy: bool) {
        self.0.busy.store(busy, Ordering::SeqCst);
    }

    /// Whether the process must not end yet.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.0.busy.load(Ordering::SeqCst)
    }
}
