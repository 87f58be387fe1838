//! How many batches may be on a GPU at the same time, and how one batch gets the GPU to itself.
//!
//! With two, one fills the gaps of the other: where its kernels begin and end, and while its inputs
//! and outputs are copied. Measured on an H100, in tokens a second against one at a time:
//!
//! - DNABERT-2 (width 768, heads of 64): 2 to 3 % more, from 500 bases to 8. All of its large
//!   kernels are persistent, and each takes whole multiprocessors.
//! - ESM-2 650M (1,280): 1 % less, 3B as many. The gaps are nothing beside the kernels, and the two
//!   evict each other's data from the cache.
//! - ESM-2 150M (640, heads of 32): 0.7 % more, which is not worth twice the memory. Before its
//!   attention was persistent, too, 5 to 11 % less: the blocks of one batch's attention left no
//!   multiprocessor free for the other's dense layers.
//! - ESM-2 8M (320): 7 to 16 % more proteins, and as many reading frames. It waits for the host
//!   most of the time.
//!
//! Where the vectors of all tokens are copied back (a gigabyte for each second of 650M, in 16
//! bits), the GPU would wait for the copies, so there are always two.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use seqembed_onnx::Sizes;

/// How many batches of a model may be on a GPU at the same time. `per_token`: whether the vectors
/// of all tokens are copied back.
#[must_use]
pub fn concurrent_batches(sizes: &Sizes, per_token: bool) -> usize {
    let small = sizes.hidden < 512;
    let persistent = sizes.hidden < 1_024 && sizes.head_width == 64;
    if small || persistent || per_token {
        2
    } else {
        1
    }
}

/// The permits of a GPU, one per batch that may be on it: a semaphore from which all permits can be
/// acquired together.
pub struct Permits {
    count: usize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    free: usize,
    /// Number of threads waiting for all permits. Meanwhile no single permit is given out, because
    /// otherwise they could wait forever.
    want_all: usize,
}

/// Permits that are held until this is dropped.
pub struct Permit<'p> {
    permits: &'p Permits,
    count: usize,
}

impl Permits {
    /// `count` free permits.
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

    /// Waits for one permit.
    pub fn acquire(&self) -> Permit<'_> {
        let mut state = self.wait(|state| state.free == 0 || state.want_all > 0, self.lock());
        state.free -= 1;
        drop(state);
        Permit {
            permits: self,
            count: 1,
        }
    }

    /// Waits for all permits.
    pub fn acquire_all(&self) -> Permit<'_> {
        let mut state = self.lock();
        state.want_all += 1;
        let mut state = self.wait(|state| state.free < self.count, state);
        state.want_all -= 1;
        state.free = 0;
        drop(state);
        Permit {
            permits: self,
            count: self.count,
        }
    }

    /// The state. It is consistent even where a thread panicked: nothing here does so in between.
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

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.permits.lock().free += self.count;
        self.permits.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn no_more_batches_than_permits_and_all_permits_mean_alone() {
        let permits = Permits::new(2);
        let (here, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for number in 0..6 {
                let (permits, here, most) = (&permits, &here, &most);
                scope.spawn(move || {
                    for _ in 0..300 {
                        let alone = number == 0;
                        let taken = if alone {
                            permits.acquire_all()
                        } else {
                            permits.acquire()
                        };
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
