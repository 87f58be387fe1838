//! Which devices a run uses: what `--device` asks for, held against what the machine has.

use indicatif::BinaryBytes;

use super::loader::Runtime;
use crate::device::{Device, DeviceChoice};
use crate::engine::cpu::session::Kernels;
use crate::engine::cuda::driver::{self, Driver, Gpu, GpuError};
use crate::engine::cuda::provider::{self, ProviderError};
use crate::engine::fault_injection::Faults;
use crate::engine::runtime::locate::LocateError;
use crate::run::RunError;
use crate::settings::Precision;

/// A device that the run may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The device.
    pub device: Device,
    /// What its maker calls it.
    pub name: String,
    /// What the driver tells of a GPU, and its free memory in bytes.
    pub gpu: Option<(Gpu, u64)>,
}

impl Place {
    /// A device of which nothing is known but its name.
    pub(crate) fn named(device: Device) -> Self {
        Self {
            device,
            name: device.to_string(),
            gpu: None,
        }
    }
}

/// Why a device can't be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver's reason.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// There is no ONNX Runtime.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// Its CUDA provider can't be loaded.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The GPU is older than what ONNX Runtime's kernels are built for.
    #[error("{name} is too old: its compute capability is {}.{}, and 7.5 is the least that ONNX Runtime for CUDA 13 serves", .capability.0, .capability.1)]
    Old {
        /// The GPU.
        name: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The devices, at least one.
    pub places: Vec<Place>,
    /// What and why, for the user.
    pub why: String,
}

/// The least compute capability.
const OLDEST: (i32, i32) = (7, 5);

/// Decides.
///
/// # Errors
/// When a device that was asked for by name can't be had.
pub fn choose(
    choice: &DeviceChoice,
    faults: Option<Faults>,
    runtime: &mut Runtime,
) -> Result<Chosen, RunError> {
    let named = |source| RunError::Device {
        choice: choice.to_string(),
        source,
    };
    match choice {
        DeviceChoice::Cpu => Ok(cpu("it was asked for", faults)),
        DeviceChoice::Cuda(numbers) => {
            let driver = usable(runtime).map_err(named)?;
            let places = numbers
                .iter()
                .map(|&number| place(&driver, number).map_err(named));
            let places = places.collect::<Result<Vec<_>, _>>()?;
            Ok(gpus_chosen(places, "asked for"))
        }
        DeviceChoice::CudaAll => {
            let driver = usable(runtime).map_err(named)?;
            let places = (0..driver.gpus.len()).map(|number| place(&driver, number).map_err(named));
            let places = places.collect::<Result<Vec<_>, _>>()?;
            Ok(gpus_chosen(places, "all there are"))
        }
        DeviceChoice::Auto => Ok(match best(runtime) {
            Ok((place, count)) => {
                let why = match count {
                    1 => "the only GPU",
                    _ => "the GPU with the most free memory; --device cuda:all uses every one",
                };
                gpus_chosen(vec![place], why)
            }
            Err(DeviceError::Gpu(GpuError::NoDriver)) => {
                cpu("there is no NVIDIA driver on this machine", faults)
            }
            Err(error) => cpu(&error.to_string(), faults),
        }),
    }
}

fn cpu(why: &str, faults: Option<Faults>) -> Chosen {
    let count = faults.and_then(|faults| faults.engines).unwrap_or(1);
    let place = |number| Place {
        device: Device::Cpu,
        name: if count == 1 {
            "CPU".to_owned()
        } else {
            format!("CPU {number}")
        },
        gpu: None,
    };
    Chosen {
        places: (0..count).map(place).collect(),
        why: format!("cpu ({why})"),
    }
}

fn gpus_chosen(places: Vec<Place>, why: &str) -> Chosen {
    let names = places.iter().map(|place| {
        let free = place.gpu.as_ref().map_or(0, |(_, free)| *free);
        format!(
            "{} {}, {} free",
            place.device,
            place.name,
            BinaryBytes(free)
        )
    });
    Chosen {
        why: format!("{} ({why})", names.collect::<Vec<_>>().join("; ")),
        places,
    }
}

/// The driver, when ONNX Runtime can use its GPUs.
fn usable(runtime: &mut Runtime) -> Result<Driver, DeviceError> {
    let driver = driver::driver()?;
    provider::prepare(runtime.locate()?, driver.cuda)?;
    Ok(driver)
}

/// A GPU by its number, if it works.
///
/// # Errors
/// When there is none with this number, it is too old, or the driver refuses it.
pub fn place(driver: &Driver, number: usize) -> Result<Place, DeviceError> {
    let gpu = driver.gpus.get(number).ok_or(GpuError::NoSuch {
        number,
        count: driver.gpus.len(),
    })?;
    if gpu.capability < OLDEST {
        return Err(DeviceError::Old {
            name: gpu.name.clone(),
            capability: gpu.capability,
        });
    }
    let free = driver::free_memory(number)?;
    Ok(Place {
        device: Device::Cuda(number),
        name: gpu.name.clone(),
        gpu: Some((gpu.clone(), free)),
    })
}

/// The GPU with the most free memory among those that work, and how many there are.
fn best(runtime: &mut Runtime) -> Result<(Place, usize), DeviceError> {
    let driver = usable(runtime)?;
    let mut best: Option<(u64, Place)> = None;
    let mut why = None;
    for number in 0..driver.gpus.len() {
        match place(&driver, number) {
            Ok(place) => {
                let free = place.gpu.as_ref().map_or(0, |(_, free)| *free);
                // The first of several that have as much.
                let other = if best.as_ref().is_none_or(|(most, _)| free > *most) {
                    best.replace((free, place)).map(|(_, other)| other)
                } else {
                    Some(place)
                };
                if let Some((gpu, _)) = other.and_then(|other| other.gpu) {
                    driver::let_go(gpu.number);
                }
            }
            Err(error) => why = why.or(Some(error)),
        }
    }
    match (best, why) {
        (Some((_, place)), _) => Ok((place, driver.gpus.len())),
        (None, Some(why)) => Err(why),
        (None, None) => Err(GpuError::NoGpu(None).into()),
    }
}

/// Why a device has not the numbers that were asked for, and what to do.
///
/// # Errors
/// That.
pub fn check_precision(
    precision: Precision,
    place: &Place,
    kernels: Kernels,
) -> Result<(), String> {
    let Some((gpu, _)) = &place.gpu else {
        return match precision {
            Precision::Auto | Precision::Fp32 => Ok(()),
            Precision::Fp16 | Precision::Bf16 | Precision::Fp8 => Err(format!(
                "{precision} needs a GPU (--device cuda); leave `precision` out, or choose fp32"
            )),
        };
    };
    match precision {
        Precision::Bf16 | Precision::Fp8 if kernels == Kernels::Portable => Err(format!(
            "ONNX Runtime has no {precision} kernels for packed sequences; leave `--kernels portable` out, or choose fp16"
        )),
        Precision::Fp8 if gpu.capability != (9, 0) => Err(format!(
            "it needs compute capability 9.0 (H100, H200), and this GPU has {}.{}; choose fp16",
            gpu.capability.0, gpu.capability.1
        )),
        Precision::Bf16 if gpu.capability < (8, 0) => Err(format!(
            "it needs compute capability 8.0 or more, such as an A100, and this GPU has {}.{}; choose fp16",
            gpu.capability.0, gpu.capability.1
        )),
        Precision::Auto | Precision::Fp32 | Precision::Fp16 | Precision::Bf16 | Precision::Fp8 => {
            Ok(())
        }
    }
}
