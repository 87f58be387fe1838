//! The command line: one file a subcommand.

use std::io::Write as _;

use anyhow::Context as _;

use crate::report::counted;

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
pub mod virnucpro;

/// Exit code: the machine refused something.
pub const FAILED: u8 = 1;
/// Exit code: the command line, the manifest or a model is wrong.
pub const USAGE: u8 = 2;
/// Exit code: done, but some files failed.
pub const PARTLY: u8 = 3;
/// Exit code: all devices were lost, and another machine, or the same one later, may well do (`EX_TEMPFAIL` of `sysexits.h`).
pub const LOST: u8 = 75;

/// Tells the user something. Where nobody listens any more, as behind a closed pipe, the work goes on.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes to the standard output.
///
/// # Errors
/// When it is closed or full: the message says how much was to be written.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .with_context(|| {
            format!(
                "cannot write {} to the standard output",
                counted(text.len() as u64, "byte")
            )
        })
}

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
