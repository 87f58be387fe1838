//! A file of the run with its options, as the model decides them.

use crate::engine::batch::Reduce;
use crate::manifest::Job;
use crate::settings::WindowSize;

/// A job of the run, with what the model decides filled in.
pub struct Task {
    /// The job.
    pub job: Job,
    /// Length of a window, and overlap of neighbouring windows.
    pub window: WindowSize,
}

impl Task {
    /// The engine output that the pooling of this job needs.
    pub fn reduce(&self) -> Reduce {
        self.job.settings.pooling.reduce()
    }
}
