//! SIGTERM and SIGINT: the run saves what is computed and ends, in any case within ten seconds.

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

/// The process ends after this time even if the run has not finished saving.
const LIMIT: Duration = Duration::from_millis(9500);

/// Time for a run with nothing left to save to end by itself: a batch that is being computed cannot
/// be interrupted.
const IDLE: Duration = Duration::from_secs(1);

/// The exit code of a process that ends because of this signal: 128 plus its number.
#[must_use]
pub fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Makes writing beyond the file size limit (`ulimit -f`) an ordinary write error. By default, the
/// signal SIGXFSZ would end the process without a message.
pub fn outlive_file_limits() {
    // Installing a handler is enough; the flag is not read. If it cannot be installed, the default
    // remains.
    let _ = flag::register(SIGXFSZ, Arc::default());
}

/// Starts to watch for both signals. The first one asks the run to stop; a second one ends the
/// process immediately.
///
/// # Errors
/// If the handler or its thread cannot be set up.
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
                            say(
                                "stopping: saving what is computed (send the signal again to stop \
                                 immediately)",
                            );
                        }
                    }
                    Some((first, since)) => {
                        std::thread::sleep(TICK);
                        idle = if asked.is_busy() {
                            Duration::ZERO
                        } else {
                            idle + TICK
                        };
                        let again = signals.pending().next();
                        if again.is_some() || idle >= IDLE || since.elapsed() >= LIMIT {
                            let signal = again.unwrap_or(first);
                            if again.is_none() {
                                say("stopped; run the same command with --resume to continue");
                            }
                            // Other threads may still be running the model, so no exit handlers may
                            // run.
                            low_level::exit(exit_code(signal).into());
                        }
                    }
                }
            }
        })
        .map_err(|error| io::Error::new(error.kind(), StartError::from(error)))?;
    Ok(interrupt)
}

/// Ends the process with a message and the exit code of a failure when a memory-mapped file was
/// truncated (SIGBUS).
fn watch_mapped() -> io::Result<()> {
    let die = || {
        // `eprintln` must not be used here, because the interrupted thread may hold its lock. A
        // file from a copied descriptor is unbuffered and takes no lock.
        if let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() {
            let mut stderr = std::fs::File::from(stderr);
            for piece in mapped_files::message() {
                let _ = stderr.write_all(piece.as_bytes());
            }
        }
        low_level::exit(FAILED.into());
    };
    // SAFETY: the handler only makes system calls (fcntl, write, _exit) and reads data set before
    // it was installed; it neither allocates nor locks.
    unsafe { low_level::register(SIGBUS, die) }?;
    Ok(())
}

/// Interval at which the watcher checks whether the process may end.
const TICK: Duration = Duration::from_millis(50);
