//! SIGTERM and SIGINT: the run saves what is computed and ends, within ten seconds whatever happens.

use std::io;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use super::say;
use crate::interrupt::Interrupt;

/// When the process ends even if the run is not ready.
const LIMIT: Duration = Duration::from_millis(9500);

/// How long a run with nothing left to save has to end by itself: a batch under way can't be broken off.
const IDLE: Duration = Duration::from_secs(1);

/// A process that ends for a signal has this exit code.
#[must_use]
pub fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Watches for both signals from here on. The first one asks the run to stop; a second one ends the process at once.
///
/// # Errors
/// When the system refuses.
pub fn watch() -> io::Result<Interrupt> {
    let interrupt = Interrupt::default();
    let asked = interrupt.clone();
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut came: Option<(i32, Instant)> = None;
            let mut idle = Duration::ZERO;
            loop {
                match came {
                    None => {
                        if let Some(signal) = signals.forever().next() {
                            came = Some((signal, Instant::now()));
                            asked.stop(signal);
                            say("stopping: what is computed is saved first (a second signal stops at once)");
                        }
                    }
                    Some((first, since)) => {
                        std::thread::sleep(TICK);
                        idle = if asked.is_busy() { Duration::ZERO } else { idle + TICK };
                        let again = signals.pending().next();
                        if again.is_some() || idle >= IDLE || since.elapsed() >= LIMIT {
                            let signal = again.unwrap_or(first);
                            if again.is_none() {
                                say("stopped; the same command with --resume goes on");
                            }
                            // Threads may be deep in the model: nothing that would run at an ordinary exit may run.
                            low_level::exit(exit_code(signal).into());
                        }
                    }
                }
            }
        })?;
    Ok(interrupt)
}

/// How often it is looked whether the process may end.
const TICK: Duration = Duration::from_millis(50);
