//! What the groups of a run share: what stays the same for all of them, and what one hands on to
//! the next.

use std::sync::Arc;
use std::time::Instant;

use super::options::Options;
use crate::engine::fault_injection::Faults;
use crate::engine::runtime::Runtime;
use crate::engine::select::SelectedDevice;
use crate::engine::session::Session;
use crate::trace::Trace;

/// What stays the same for all groups of a run.
#[derive(Clone, Copy)]
pub(crate) struct RunContext<'a> {
    pub(crate) options: &'a Options,
    /// When the run began.
    pub(crate) started: Instant,
    /// Faults to inject, in tests.
    pub(crate) faults: Option<Faults>,
    pub(crate) trace: &'a Trace,
    /// Reports what happens before the first batch.
    pub(crate) say: &'a dyn Fn(&str),
}

/// What one group hands on to the next.
pub(crate) struct Resources {
    /// The devices of the run. One that is lost leaves the list.
    pub(crate) devices: Vec<SelectedDevice>,
    pub(crate) runtime: Runtime,
    pub(crate) reused: ReusedSession,
}

/// A session that outlives the group, as an [`Embedder`](crate::Embedder) has it.
#[derive(Default)]
pub(crate) struct ReusedSession {
    /// It runs instead of sessions of the group's own.
    pub(crate) session: Option<Arc<dyn Session>>,
    /// Whether a session that is loaded is kept for whatever follows.
    pub(crate) keeps: bool,
}
