//! SIGTERM and SIGINT: the run saves what is computed and ends, within ten seconds whatever happens.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGBUS, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};

use super::{FAILED, say};
use crate::engine::mapped_files;
use crate::interrupt::Interrupt;
use crate::threads::StartError;

/// When the process ends even if the run is not ready.
const LIMIT: Duration = Duration::from_millis(9500);

/// How long a run with nothing left to save has to end by itself: a batch under way can't be broken off.
const IDLE: Duration = Duration::from_secs(1);

/// A process that ends for a signal has this exit code.
#[must_use]
pub fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// A file that would grow beyond the limit of this process (`ulimit -f`) is an error of whoever writes it: left alone, the signal
/// ends the process without a word.
pub fn outlive_file_limits() {
    // That there is a handler is enough; nobody asks for the flag. Where there can be none, all is as it was.
    let _ = flag::register(SIGXFSZ, Arc::default());
}

/// Watches for both signals from here on. The first one asks the run to stop; a second one ends the process at once.
///
/// # Errors
/// When the system refuses.
pub fn watch() -> io::Result<Interrupt> {
    watch_mapped()?;
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
        })
        .map_err(|error| io::Error::new(error.kind(), StartError::from(error)))?;
    Ok(interrupt)
}

/// A file that is mapped into memory and was cut ends the process: with a message, and the exit code of a failure.
fn watch_mapped() -> io::Result<()> {
    let die = || {
        // Neither `eprintln` nor its lock: this thread may have been anywhere. A file from a copied descriptor writes at once.
        if let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() {
            let mut stderr = std::fs::File::from(stderr);
            for piece in mapped_files::told() {
                let _ = stderr.write_all(piece.as_bytes());
            }
        }
        low_level::exit(FAILED.into());
    };
    // SAFETY: it only makes system calls (fcntl, write, _exit) and reads what was set before: nothing allocates or locks.
    unsafe { low_level::register(SIGBUS, die) }?;
    Ok(())
}

/// How often it is looked whether the process may end.
const TICK: Duration = Duration::from_millis(50);
