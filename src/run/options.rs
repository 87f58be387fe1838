//! Options of a run.

use std::path::PathBuf;
use std::time::Duration;

use crate::device::DeviceChoice;
use crate::interrupt::Interrupt;
use crate::settings::Kernels;

/// Options of a whole run, in contrast to those of single jobs.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct Options {
    /// Path of the output folder.
    pub out: PathBuf,
    /// The manifest that the jobs come from, if there is one. No output may overwrite it.
    pub manifest: Option<PathBuf>,
    /// Threads in all, at least 1.
    pub threads: usize,
    /// ONNX Runtime's library, where it is named.
    pub ort_lib: Option<PathBuf>,
    /// The kernels that the models run with.
    pub kernels: Kernels,
    /// Stop at the first file that fails.
    pub strict: bool,
    /// Load the model again for each file, to compare with.
    pub reload_per_file: bool,
    /// Where the models run.
    pub device: DeviceChoice,
    /// The file that a trace is written to.
    pub trace: Option<PathBuf>,
    /// Continue what an interrupted run left in the output folder.
    pub resume: bool,
    /// Where unfinished work is kept instead of the output folder, with a copy of every finished
    /// file. With it, every run continues an earlier one.
    pub cache_dir: Option<PathBuf>,
    /// How often rows of unfinished files are saved.
    pub save_every: Duration,
    /// Compute a sequence again each time that it occurs.
    pub no_dedup: bool,
    /// Asks the run to stop.
    pub interrupt: Interrupt,
}
