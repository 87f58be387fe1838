//! The device tests of `seqembed doctor`: a small batch on each device, compared with ONNX
//! Runtime's own operators on the CPU.
//!
//! The model has the shape of ESM-2 8M and random weights.

use std::path::Path;
use std::time::Instant;

use seqembed_onnx::{ExportOptions, export_random};
use tempfile::TempDir;

use crate::device::Device;
use crate::engine::loader::{GraphSpec, Loader};
use crate::engine::runtime::Runtime;
use crate::engine::select::{self, SelectedDevice};
use crate::engine::{Batch, Engine, Reduce};
use crate::settings::{Kernels, Layers, Precision};

/// The result of one device and precision.
pub struct Check {
    /// The device and the precision, such as `cuda:0 fp16`.
    pub what: String,
    /// The smallest cosine between a sequence's vector and the CPU's, and the milliseconds of the
    /// second of two batches; or why the device failed.
    pub result: anyhow::Result<(f64, f64)>,
    /// Whether the cosine is large enough for the precision.
    pub good: bool,
}

/// Lengths of the test sequences, in residues.
const LENGTHS: [usize; 4] = [1, 30, 60, 150];

/// The small model, in a temporary folder that is deleted on drop.
pub struct Model {
    model: seqembed_onnx::Model,
    _folder: TempDir,
}

impl Model {
    /// Writes the model to the folder for temporary files, or to memory if that is not writable, as
    /// in a container with a read-only root.
    ///
    /// # Errors
    /// If it can be written to neither.
    pub fn new() -> anyhow::Result<Self> {
        let usual = std::env::temp_dir();
        Self::below(&usual).or_else(|error| {
            Self::below(Path::new("/dev/shm")).map_err(|_| {
                error.context(format!(
                    "cannot write a small test model to {}",
                    usual.display()
                ))
            })
        })
    }

    fn below(place: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir_in(place)?;
        let path = folder.path().join("model");
        Ok(Self {
            model: export_random("esm2_t6_8M_UR50D", 1, &path, &ExportOptions::default())?,
            _folder: folder,
        })
    }
}

/// Runs the batch on the CPU and on each GPU, in each precision that it supports. Problems that do
/// not prevent this are passed to `say`.
///
/// # Errors
/// If not even ONNX Runtime's own operators run on the CPU.
pub fn run(
    model: &Model,
    runtime: &mut Runtime,
    gpus: &[SelectedDevice],
    say: &dyn Fn(&str),
) -> anyhow::Result<Vec<Check>> {
    let model = &model.model;
    let environment = runtime.environment()?.clone();
    let last = Layers::from(model.architecture().layers());
    let engine = |device: Device, precision: Precision, kernels: Kernels| {
        let spec = GraphSpec {
            model,
            layers: &last,
            outputs: &[Reduce::Mean],
            kernels,
            head: None,
            contacts: false,
        };
        let prepared = spec.prepare(device, precision, say)?;
        let loader = Loader {
            environment: environment.clone(),
            spec,
            pad_id: 1,
            threads: 1,
            faults: None,
        };
        loader.load(&prepared)
    };
    let batch = batch();
    let reference = engine(Device::Cpu, Precision::Fp32, Kernels::Portable)?;
    let reference = reference.run(&batch, Reduce::Mean)?;
    let cpu = SelectedDevice::cpu();
    let mut checks = Vec::new();
    for selected in std::iter::once(&cpu).chain(gpus) {
        // fp8 is left out because the small model has no layers wide enough for it.
        for precision in [Precision::Fp32, Precision::Fp16, Precision::Bf16] {
            if select::check_precision(precision, selected, Kernels::Auto).is_err() {
                continue;
            }
            let result = engine(selected.device, precision, Kernels::Auto)
                .map_err(anyhow::Error::from)
                .and_then(|engine| measure(&*engine, &batch, &reference));
            let bound = match precision {
                Precision::Auto | Precision::Fp32 => 0.999_99,
                Precision::Fp16 => 0.999_9,
                Precision::Bf16 | Precision::Fp8 => 0.999,
            };
            checks.push(Check {
                what: format!("{} {precision}", selected.device),
                good: result.as_ref().is_ok_and(|(cosine, _)| *cosine >= bound),
                result,
            });
        }
    }
    Ok(checks)
}

/// The test sequences: pseudo-random residues between <cls> and <eos>.
fn batch() -> Batch {
    let mut batch = Batch {
        starts: vec![0],
        ..Batch::default()
    };
    let mut state = 1_u32;
    for length in LENGTHS {
        let start = batch.ids.len();
        batch.ids.push(0);
        for _ in 0..length {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // The twenty amino acids are tokens 4 to 23.
            batch.ids.push(4 + i64::from(state >> 16) % 20);
        }
        batch.ids.push(2);
        let position = |at: usize| i32::try_from(at).expect("a small batch");
        batch.starts.push(position(batch.ids.len()));
        batch
            .ranges
            .push([position(start + 1), position(batch.ids.len() - 1)]);
    }
    batch
}

fn measure(engine: &dyn Engine, batch: &Batch, reference: &[f32]) -> anyhow::Result<(f64, f64)> {
    // The first batch is not timed, because it includes one-time set-up.
    engine.run(batch, Reduce::Mean)?;
    let started = Instant::now();
    let rows = engine.run(batch, Reduce::Mean)?;
    let milliseconds = started.elapsed().as_secs_f64() * 1e3;
    anyhow::ensure!(
        rows.len() == reference.len(),
        "it returned {} values instead of {}",
        rows.len(),
        reference.len()
    );
    let hidden = rows.len() / LENGTHS.len();
    let cosines = rows
        .chunks_exact(hidden)
        .zip(reference.chunks_exact(hidden))
        .map(|(a, b)| cosine(a, b));
    Ok((cosines.fold(1.0, f64::min), milliseconds))
}

/// The cosine between two vectors, or -1 if any of their values is not finite.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y));
        products.sum()
    };
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    if cosine.is_finite() { cosine } else { -1.0 }
}
