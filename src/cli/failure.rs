//! The message and the exit code of a run that failed.

use super::{FAILED, LOST, USAGE, say, signals, told};
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
