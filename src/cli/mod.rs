//! The command line: one file per subcommand.

pub mod bench;
mod check;
pub mod contacts;
pub mod convert;
mod disk;
pub mod doctor;
pub mod dry_run;
pub mod embed;
pub mod export;
mod failure;
pub mod fetch;
mod flags;
pub mod inputs;
pub mod manifest;
pub mod models;
pub mod plot;
pub mod progress;
pub mod report;
pub mod run;
pub mod score;
pub mod shell;
pub mod signals;
mod terminal;
pub mod verify;
pub mod virnucpro;

pub use terminal::{pass_on, print, say, shown};

/// Exit code: the run failed, for example because of a full disk or a missing library.
pub const FAILED: u8 = 1;
/// Exit code: the command line, the manifest or a model is wrong.
pub const USAGE: u8 = 2;
/// Exit code: the run finished, but some files or sequences failed.
pub const PARTLY: u8 = 3;
/// Exit code: all devices were lost. A retry, here or on another machine, may succeed
/// (`EX_TEMPFAIL` of `sysexits.h`).
pub const LOST: u8 = 75;

/// The message of an error followed by those of its causes, without causes that the message already
/// includes.
#[must_use]
pub fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.contains(&why) {
            text.extend([": ", &why]);
        }
        cause = error.source();
    }
    text
}
