//! What a run says while it goes: a bar on a terminal, plain lines now and then in a log.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::say;
use crate::run::Observer;
use crate::text::{counted, thousands};
use crate::threads;

/// How often a log gets a line.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Tells the user on the standard error.
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
    /// A bar if the standard error is a terminal.
    ///
    /// `total` is the size of all inputs together, 0 when that is not known; `files` is how many there are.
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
            // It takes a thread, and panics without one.
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

    /// Says something that is no warning.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            self.print(text);
        }
    }

    /// Takes the bar away.
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
