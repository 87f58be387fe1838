//! Why a run stopped, or could not start.

use std::path::PathBuf;

use super::collect_error::CollectError;
use super::save::SavedCounts;
use super::spans::SpanError;
use crate::engine::loader::LoadError;
use crate::engine::runtime::RuntimeError;
use crate::engine::select::SelectError;
use crate::journal::JournalError;
use crate::models::ModelError;
use crate::settings::SettingsError;
use crate::targets::TargetError;
use crate::threads::StartError;
use crate::tokenize::VocabularyError;

/// Why a run stopped, or could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The output folder cannot be made or written to.
    #[error("cannot write to the output folder {}: {source}", .path.display())]
    Folder {
        /// Path of the folder.
        path: PathBuf,
        /// The underlying error.
        source: std::io::Error,
    },
    /// An output would overwrite another file.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// There is no such model, or it cannot be exported.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An exported model is damaged.
    #[error(transparent)]
    Graph(#[from] seqembed_onnx::Error),
    /// A model's vocabulary cannot be read.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// A job's options do not fit its model or the device.
    #[error("{sample}: {source}")]
    Settings {
        /// The job's sample.
        sample: String,
        /// What does not fit.
        source: SettingsError,
    },
    /// A table of spans is wrong, or does not fit the sequences.
    #[error(transparent)]
    Spans(#[from] SpanError),
    /// The system refuses to start more threads.
    #[error(transparent)]
    Threads(#[from] StartError),
    /// ONNX Runtime was not found, or does not start.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A requested device cannot be used.
    #[error(transparent)]
    Device(#[from] SelectError),
    /// No device is left.
    #[error("{why}. No device is left. {}; unfinished: {}. Run the same command again with \
             option `resume` to finish them",
        files(*.finished), names(.unfinished))]
    Lost {
        /// The lost devices, with the reasons.
        why: String,
        /// How many files are done.
        finished: usize,
        /// The samples that are not.
        unfinished: Vec<String>,
    },
    /// The faults that a test asks for are not known.
    #[error("{0}")]
    Faults(String),
    /// The trace cannot be written.
    #[error("cannot write the trace {}: {source}", .path.display())]
    Trace {
        /// Path of the file.
        path: PathBuf,
        /// The underlying error.
        source: std::io::Error,
    },
    /// The model could not be loaded onto a device.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A batch or an output failed for good.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// The journal cannot be written or read, or another process works in the folder.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The run was asked to stop.
    #[error(
        "stopped by {}: finished files are complete, and {saved} saved; run the same command with \
         option `resume` to continue",
        match signal { 2 => "SIGINT".to_owned(), 15 => "SIGTERM".to_owned(), other => format!("signal {other}") }
    )]
    Interrupted {
        /// The signal's number.
        signal: i32,
        /// What of unfinished files this run saved.
        saved: SavedCounts,
    },
}

fn files(count: usize) -> String {
    match count {
        0 => "No file was finished".to_owned(),
        1 => "1 file is finished and kept".to_owned(),
        count => format!("{count} files are finished and kept"),
    }
}

/// The first 20 names, and how many more there are.
fn names(all: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown = all.iter().take(SHOWN).map(String::as_str);
    let shown = shown.collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl RunError {
    /// Whether what the user gave is wrong, and not the machine.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Folder { .. }
                | Self::Target(_)
                | Self::Model(_)
                | Self::Graph(_)
                | Self::Load(LoadError::Model(_))
                | Self::Vocabulary(_)
                | Self::Settings { .. }
                | Self::Spans(_)
                | Self::Faults(_)
        )
    }

    /// What is wrong with the exported model, where that is why the run stopped.
    pub(super) fn damaged_model(&self) -> Option<&seqembed_onnx::Error> {
        match self {
            Self::Graph(error) | Self::Load(LoadError::Model(error)) => Some(error),
            _ => None,
        }
    }
}
