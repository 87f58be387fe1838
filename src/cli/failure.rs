//! The message and the exit code of a run that failed, or in which files failed.

use std::process::ExitCode;

use super::{FAILED, LOST, PARTLY, USAGE, say, signals, told};
use crate::run::RunError;

/// Prints why a run failed, and returns the exit code of the process.
pub(super) fn failed(error: &RunError) -> u8 {
    say(&format!("error: {}", told(error)));
    match error {
        RunError::Interrupted { signal, .. } => signals::exit_code(*signal),
        RunError::Lost { .. } => LOST,
        error if error.is_usage() => USAGE,
        _ => FAILED,
    }
}

/// Whether failed files make the command fail.
#[derive(Debug, clap::Args)]
pub(super) struct FailureOptions {
    /// Exit with 0 instead of 3 if some files or sequences failed, for workflow engines that would
    /// discard the others; `report.json` lists those that failed
    #[arg(long, conflicts_with = "strict")]
    allow_failed: bool,
}

impl FailureOptions {
    /// The exit code of a run that ended with `code`.
    pub(super) fn accept(&self, code: ExitCode) -> ExitCode {
        if self.allow_failed && code == PARTLY.into() {
            ExitCode::SUCCESS
        } else {
            code
        }
    }
}
