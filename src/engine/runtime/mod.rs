//! ONNX Runtime: finding its library ([`locate`]), and starting it, once in a process.

pub mod locate;
mod telemetry;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::{Environment, EnvironmentBuilder};

use self::locate::{LocateError, RuntimeLibrary};
use super::cpu::operators;
use super::error::EngineError;

/// Why ONNX Runtime cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No library was found, or none that can be loaded.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// The library was found and loaded, and did not start.
    #[error("cannot load {}: {source}", .library.display())]
    Start {
        /// Path or name of the library.
        library: PathBuf,
        /// The error of ONNX Runtime.
        source: EngineError,
    },
}

/// ONNX Runtime, found and started when it is first needed.
pub struct Runtime {
    explicit: Option<PathBuf>,
    located: Option<(Option<EnvironmentBuilder>, RuntimeLibrary)>,
    environment: Option<Environment>,
}

impl Runtime {
    /// Does not search yet. `explicit` is the library, or the folder that contains it.
    #[must_use]
    pub fn new(explicit: Option<&Path>) -> Self {
        Self {
            explicit: explicit.map(Path::to_owned),
            located: None,
            environment: None,
        }
    }

    /// Finds the library and loads it, unless that was done before.
    ///
    /// # Errors
    /// When there is none that can be loaded.
    pub fn locate(&mut self) -> Result<&RuntimeLibrary, LocateError> {
        let (_, located) = match &mut self.located {
            Some(known) => known,
            none => {
                let (builder, located) = locate::load(self.explicit.as_deref())?;
                none.insert((Some(builder), located))
            }
        };
        Ok(located)
    }

    /// The library's version, such as `1.32.0`, once it was found.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        let (_, located) = self.located.as_ref()?;
        Some(&located.version)
    }

    /// Gets ONNX Runtime ready for sessions, unless that was done before.
    ///
    /// # Errors
    /// If no library can be loaded, or it fails to start.
    pub fn environment(&mut self) -> Result<&Environment, RuntimeError> {
        let library = self.locate()?.path.clone();
        if let Some((builder, located)) = &mut self.located
            && let Some(builder) = builder.take()
        {
            let environment = start(builder, located)
                .map_err(|source| RuntimeError::Start { library, source })?;
            self.environment = Some(environment);
        }
        self.environment
            .as_ref()
            .ok_or_else(|| RuntimeError::Start {
                library: PathBuf::from("ONNX Runtime"),
                source: EngineError::Runtime("it failed to start earlier in this run".to_owned()),
            })
    }
}

/// Starts a library that [`locate::load`] gave, or shares the environment that the process has: it
/// has one, which lasts as long as the process.
///
/// # Errors
/// When ONNX Runtime refuses, or the process started another library before.
pub fn start(
    builder: EnvironmentBuilder,
    library: &RuntimeLibrary,
) -> Result<Environment, EngineError> {
    static STARTED: Mutex<Option<(Environment, PathBuf)>> = Mutex::new(None);
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((environment, path)) = &*started {
        if *path == library.path {
            return Ok(environment.clone());
        }
        return Err(EngineError::Runtime(format!(
            "{} is already loaded in this process, so {} cannot be loaded as well",
            path.display(),
            library.path.display()
        )));
    }
    let environment = builder.build()?;
    operators::register_domain(&environment)?;
    *started = Some((environment.clone(), library.path.clone()));
    Ok(environment)
}
