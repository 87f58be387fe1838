//! A file of the run with its options, as the model decides them.

use std::sync::Arc;

use super::spans::Spans;
use crate::engine::batch::Reduce;
use crate::manifest::Job;
use crate::settings::WindowSize;

/// A job of the run, with what the model decides filled in.
pub struct Task {
    /// The job.
    pub job: Job,
    /// Length of a window, and overlap of neighbouring windows.
    pub window: WindowSize,
    /// The most tokens of a sequence that is embedded whole, where the model's limit is in tokens
    /// that read several letters each.
    pub max_tokens: Option<usize>,
    /// The spans that are pooled in place of whole sequences.
    pub spans: Option<Arc<Spans>>,
}

impl Task {
    /// Whether a sequence of so many letters and tokens is embedded whole, and not cut.
    pub fn fits(&self, letters: usize, tokens: usize) -> bool {
        letters <= self.window.max_length && self.max_tokens.is_none_or(|most| tokens <= most)
    }

    /// The engine output that the pooling of this job needs.
    pub fn reduce(&self) -> Reduce {
        self.job.settings.pooling.reduce()
    }
}
