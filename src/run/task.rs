//! A file of the run with its options, as the model decides them.

use crate::engine::batch::Reduce;
use crate::manifest::Job;
use crate::settings::WindowSize;

/// A job of the run, with what the model decides filled in.
pub struct Task {
    /// The job.
    pub job: Job,
    /// The most residues at once, and what neighbouring windows share.
    pub window: WindowSize,
}

impl Task {
    /// What the engine has to give for this job's pooling.
    pub fn reduce(&self) -> Reduce {
        self.job.settings.pooling.reduce()
    }
}
