//! Progress of a run: a bar on a terminal, otherwise a line every 30 seconds.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::say;
use crate::run::Observer;
use crate::text::{counted, thousands};
use crate::threads;

/// Interval between progress lines when standard error is not a terminal.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Shows progress, warnings and errors on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    started: Instant,
    told: Instant,
    bytes: u64,
    total: u64,
    files: (u64, u64),
    sequences: u64,
    tokens: u64,
}

impl Progress {
    /// Creates the display: a progress bar if standard error is a terminal.
    ///
    /// `total` is the total size of the inputs in bytes, 0 if unknown; `files` is their number.
    #[must_use]
    pub fn new(total: u64, files: u64, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(
                (total > 0).then_some(total),
                ProgressDrawTarget::stderr_with_hz(8),
            );
            let template = if total > 0 {
                "{bar:30} {percent:>3}%  {msg}  {eta} left"
            } else {
                "{spinner} {msg}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            // The steady tick needs a thread, and indicatif panics if it cannot start one.
            if threads::is_there_one() {
                bar.enable_steady_tick(Duration::from_millis(250));
            }
            bar
        });
        let now = Instant::now();
        Self {
            bar,
            quiet,
            started: now,
            told: now,
            bytes: 0,
            total,
            files: (0, files),
            sequences: 0,
            tokens: 0,
        }
    }

    /// Prints an informational line, unless `quiet` is set.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            self.print(text);
        }
    }

    /// Removes the bar from the terminal.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    fn state(&self) -> String {
        let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        format!(
            "{}/{}  {}  {} tokens/s",
            thousands(self.files.0),
            counted(self.files.1, "file"),
            counted(self.sequences, "sequence"),
            thousands(1000 * self.tokens / milliseconds.max(1)),
        )
    }
}

impl Observer for Progress {
    fn warning(&mut self, text: &str) {
        self.print(&format!("warning: {text}"));
    }

    fn failure(&mut self, text: &str) {
        self.print(&format!("error: {text}"));
    }

    fn advanced(&mut self, sequences: u64, tokens: u64, bytes: u64, files: u64) {
        self.sequences += sequences;
        self.tokens += tokens;
        self.bytes = bytes.min(self.total.max(bytes));
        self.files.0 += files;
        let state = self.state();
        if let Some(bar) = &self.bar {
            bar.set_message(state);
            bar.set_position(self.bytes);
        } else if !self.quiet && self.told.elapsed() >= LOG_EVERY {
            self.told = Instant::now();
            let read = if self.total > 0 {
                format!(
                    "{} of {} read",
                    HumanBytes(self.bytes),
                    HumanBytes(self.total)
                )
            } else {
                format!("{} read", HumanBytes(self.bytes))
            };
            say(&format!("{state}  {read}"));
        }
    }
}
