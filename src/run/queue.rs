//! The queue between the reader and the workers of all devices.
//!
//! It differs from a channel in one thing: what was taken can come back. When a device is lost, its
//! batch goes to the others, so a worker that finds the queue empty waits until nothing that was
//! taken is under way any more.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Things to do, in order, for any number of workers.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    capacity: usize,
}

struct State<T> {
    waiting: VecDeque<T>,
    taken: usize,
    closed: bool,
    stopped: bool,
}

/// An item taken by a worker; dropping it marks the item as done.
pub struct Taken<'q, T> {
    queue: &'q Queue<T>,
    item: Option<T>,
}

impl<T> Queue<T> {
    /// `capacity` things wait at most.
    pub fn new(capacity: usize) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                taken: 0,
                closed: false,
                stopped: false,
            }),
            changed: Condvar::new(),
            capacity: capacity.max(1),
        }
    }

    /// The state. A worker that panicked left it whole: nothing here can panic half-way.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for space and appends the item. Returns `false` if the queue was stopped; the item is
    /// then dropped.
    pub fn push(&self, item: T) -> bool {
        let full = |state: &mut State<T>| !state.stopped && state.waiting.len() >= self.capacity;
        let mut state = self
            .changed
            .wait_while(self.lock(), full)
            .unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            return false;
        }
        state.waiting.push_back(item);
        drop(state);
        self.changed.notify_all();
        true
    }

    /// Nothing more will be pushed.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Everybody goes home, whatever is left.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// The next thing. `None`: there will be none, for either everything is done, or the queue was
    /// stopped.
    pub fn take(&self) -> Option<Taken<'_, T>> {
        let idle = |state: &mut State<T>| {
            !state.stopped && state.waiting.is_empty() && !(state.closed && state.taken == 0)
        };
        let mut state = self
            .changed
            .wait_while(self.lock(), idle)
            .unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            return None;
        }
        let item = state.waiting.pop_front()?;
        state.taken += 1;
        drop(state);
        self.changed.notify_all();
        Some(Taken {
            queue: self,
            item: Some(item),
        })
    }
}

impl<T> Taken<'_, T> {
    /// The item taken from the queue.
    pub fn item(&self) -> &T {
        self.item.as_ref().expect("it goes when `self` does")
    }

    /// Puts it back at the front.
    pub fn give_back(mut self) {
        if let Some(item) = self.item.take() {
            self.queue.lock().waiting.push_front(item);
        }
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        self.queue.lock().taken -= 1;
        self.queue.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn what_a_worker_gives_back_another_does() {
        let queue = Queue::new(2);
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for lost in [true, false, false] {
                let (queue, done) = (&queue, &done);
                scope.spawn(move || {
                    while let Some(taken) = queue.take() {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                        if lost {
                            // At the end everybody else has nothing left to do but to wait for
                            // this.
                            std::thread::sleep(std::time::Duration::from_millis(50));
                            taken.give_back();
                            break;
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for item in 0..20 {
                assert!(queue.push(item));
            }
            queue.close();
        });
        assert_eq!(done.into_inner(), 20);
    }

    #[test]
    fn nobody_waits_for_a_queue_that_was_stopped() {
        let queue = Queue::new(1);
        assert!(queue.push(1));
        std::thread::scope(|scope| {
            let pushed = scope.spawn(|| queue.push(2));
            queue.stop();
            assert!(!pushed.join().expect("no panic"));
        });
        assert!(queue.take().is_none());
    }
}
