//! Progress events of a download, and its minimum speed.

use std::time::Duration;

/// Progress of a download.
#[derive(Debug)]
pub enum Event<'a> {
    /// The download of a file starts, or resumes at byte `done`.
    Begin {
        /// Its name in the repository.
        file: &'a str,
        /// Bytes already downloaded.
        done: u64,
        /// Its size in bytes, if the hub gives it.
        size: Option<u64>,
    },
    /// Total bytes of the file downloaded so far.
    Bytes(u64),
    /// The file is complete, and its hash was verified if the hub gives one.
    End,
    /// A temporary failure: the next attempt starts after `wait`.
    Retry {
        /// What went wrong, as a message shows it.
        why: &'a str,
        /// Time until the next attempt.
        wait: Duration,
    },
    /// The hub gives no hash for this file, so it could not be verified.
    Unverified {
        /// Its name in the repository.
        file: &'a str,
        /// The URL of the hub, without secrets.
        endpoint: &'a str,
    },
    /// Another process is downloading the same file.
    Waiting {
        /// Its name in the repository.
        file: &'a str,
    },
}

/// The minimum speed of a download: slower connections are closed and reopened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Bytes per second; 0 accepts any speed.
    pub bytes: u64,
    /// How long a connection may be slower.
    pub time: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            bytes: 1000,
            time: Duration::from_secs(30),
        }
    }
}
