//! Switches off ONNX Runtime's telemetry.
//!
//! Since 1.29, the builds for Linux that Microsoft publishes, those for GPUs too, write a device's
//! id and a queue of events into `~/.cache/Microsoft` as soon as an environment is made, and send
//! the queue to a collector from a thread of their own. They do neither when
//! `ORT_DISABLE_TELEMETRY=1` is in the process's environment by then; the call of the C interface
//! (`DisableTelemetryEvents`) comes after the first event. Builds before 1.29 have telemetry on
//! Windows only, where that call is all there is.
//!
//! Setting a variable is sound only while no other thread may read one. So it is set before `main`,
//! in each program that this library is part of: an [`Embedder`](crate::Embedder) in a program with
//! threads finds it set, too. A library that is loaded into a running process with `dlopen` would
//! come too late for that: such a process has to be started with the variable set.

use std::ffi::CStr;

/// The variables that disable telemetry: as the releases spell it, and as builds between them did.
const VARIABLES: [&CStr; 2] = [c"ORT_DISABLE_TELEMETRY", c"ORT_TELEMETRY_DISABLED"];

ctor::declarative::ctor! {
    /// Runs before `main`, whatever the variables were before.
    #[ctor(unsafe)]
    fn disable() {
        for variable in VARIABLES {
            // SAFETY: both are texts that end in a zero, and setenv copies them. The linker's
            // start-up code runs this before `main` begins, when this thread is the only one, so
            // that nobody reads the environment meanwhile. Nothing of Rust's standard library is
            // used, which need not be ready yet.
            unsafe { libc::setenv(variable.as_ptr(), c"1".as_ptr(), 1) };
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_off_before_anything_begins() {
        for variable in super::VARIABLES {
            let name = variable.to_str().expect("ASCII");
            assert_eq!(std::env::var(name).as_deref(), Ok("1"), "{name}");
        }
    }
}
