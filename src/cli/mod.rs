//! The command line: one file a subcommand.

pub mod bench;
mod check;
pub mod convert;
mod disk;
pub mod doctor;
pub mod embed;
pub mod export;
pub mod fetch;
pub mod inputs;
pub mod models;
pub mod plot;
pub mod progress;
pub mod report;
pub mod run;
pub mod shell;
pub mod signals;
mod terminal;
pub mod virnucpro;

pub use terminal::{pass_on, print, say, shown};

/// Exit code: the machine refused something.
pub const FAILED: u8 = 1;
/// Exit code: the command line, the manifest or a model is wrong.
pub const USAGE: u8 = 2;
/// Exit code: done, but some files failed.
pub const PARTLY: u8 = 3;
/// Exit code: all devices were lost, and another machine, or the same one later, may well do (`EX_TEMPFAIL` of `sysexits.h`).
pub const LOST: u8 = 75;

/// An error with its causes, those left out that the text before has in it already.
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
