//! Places on a device: how many batches may be on it at once, and how one gets it to itself.
//!
//! With two, one fills the gaps of the other: where its kernels begin and end, and while its inputs and outputs are copied. Measured on an
//! H100, in tokens a second beside one at a time:
//!
//! - DNABERT-2 (width 768, heads of 64): 2 to 3 % more, of 500 bases up to 8. All of its large kernels are persistent, and each takes
//!   whole processors.
//! - ESM-2 650M (1,280): 1 % less, 3B as many. The gaps are nothing beside the kernels, and two take each other's place in the cache.
//! - ESM-2 150M (640, heads of 32): 0.7 % more, for which twice the memory is too much. Before its attention was persistent, too, 5 to
//!   11 % less: the blocks of one batch's left no processor free for the other's dense layers.
//! - ESM-2 8M (320): 7 to 16 % more proteins, reading frames as many. It waits for the host most of the time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use seqembed_onnx::Sizes;

/// Batches of a model that may be on a device at once.
#[must_use]
pub fn at_once(sizes: &Sizes) -> usize {
    let small = sizes.hidden < 512;
    let persistent = sizes.hidden < 1_024 && sizes.head() == 64;
    if small || persistent { 2 } else { 1 }
}

/// The places of a device.
pub struct Places {
    count: usize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    free: usize,
    /// Those who wait for all places: nobody takes one meanwhile, or they would wait for ever.
    want_all: usize,
}

/// Places that are taken until this is dropped.
pub struct Taken<'p> {
    places: &'p Places,
    count: usize,
}

impl Places {
    /// So many of them.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let state = State {
            free: count,
            want_all: 0,
        };
        Self {
            count,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Waits for one place.
    pub fn one(&self) -> Taken<'_> {
        let mut state = self.wait(|state| state.free == 0 || state.want_all > 0, self.lock());
        state.free -= 1;
        drop(state);
        Taken {
            places: self,
            count: 1,
        }
    }

    /// Waits for all places.
    pub fn all(&self) -> Taken<'_> {
        let mut state = self.lock();
        state.want_all += 1;
        let mut state = self.wait(|state| state.free < self.count, state);
        state.want_all -= 1;
        state.free = 0;
        drop(state);
        Taken {
            places: self,
            count: self.count,
        }
    }

    /// The state. It is whole whoever panicked: nothing here can do so half-way.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'g>(
        &self,
        busy: impl Fn(&mut State) -> bool,
        state: MutexGuard<'g, State>,
    ) -> MutexGuard<'g, State> {
        self.changed
            .wait_while(state, busy)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.places.lock().free += self.count;
        self.places.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn there_are_never_more_than_places_and_whoever_wants_all_is_alone() {
        let places = Places::new(2);
        let (here, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for number in 0..6 {
                let (places, here, most) = (&places, &here, &most);
                scope.spawn(move || {
                    for _ in 0..300 {
                        let alone = number == 0;
                        let taken = if alone { places.all() } else { places.one() };
                        let others = here.fetch_add(1, Ordering::SeqCst);
                        assert!(others < if alone { 1 } else { 2 });
                        most.fetch_max(others + 1, Ordering::SeqCst);
                        thread::yield_now();
                        here.fetch_sub(1, Ordering::SeqCst);
                        drop(taken);
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 2);
    }
}
