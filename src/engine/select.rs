//! Which devices a run uses: what `--device` asks for, and what the machine has.

use indicatif::BinaryBytes;

use super::cuda::driver::{self, Driver, Gpu, GpuError};
use super::cuda::provider::{self, ProviderError};
use super::fault_injection::Faults;
use super::runtime::Runtime;
use super::runtime::locate::LocateError;
use crate::device::{Device, DeviceChoice};
use crate::settings::{Kernels, Precision};

/// A device that the run may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedDevice {
    /// The device.
    pub device: Device,
    /// The name for a reader: `CPU`, or what the driver calls the GPU.
    pub name: String,
    /// What the driver says about a GPU, and its free memory in bytes when it was selected.
    pub gpu: Option<(Gpu, u64)>,
}

impl SelectedDevice {
    /// The CPU.
    #[must_use]
    pub fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            name: "CPU".to_owned(),
            gpu: None,
        }
    }

    /// A device about which only its number is known.
    pub(crate) fn unknown(device: Device) -> Self {
        Self {
            device,
            name: device.to_string(),
            gpu: None,
        }
    }
}

/// Why a requested device cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{choice} is not available (option `device: {choice}`): {source}")]
pub struct SelectError {
    /// The request, as given.
    pub choice: String,
    /// What is missing, and what helps.
    pub source: DeviceError,
}

/// What is missing for a device to be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver's reason.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// ONNX Runtime is not available.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// ONNX Runtime's CUDA provider cannot be loaded.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The GPU is older than what ONNX Runtime's kernels are built for.
    #[error("{name} is too old: its compute capability is {}.{}, but ONNX Runtime for CUDA 13 \
             needs at least 7.5", .capability.0, .capability.1)]
    Old {
        /// The GPU's name.
        name: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
}

/// The devices of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The devices, at least one.
    pub devices: Vec<SelectedDevice>,
    /// Which devices these are and why, for the user.
    pub why: String,
}

/// The lowest compute capability that ONNX Runtime's CUDA provider has kernels for.
const OLDEST: (i32, i32) = (7, 5);

/// Selects the devices of a run. `auto` never fails: it selects the CPU if no GPU is usable.
///
/// # Errors
/// If a device requested by name cannot be used.
pub fn select(
    choice: &DeviceChoice,
    faults: Option<Faults>,
    runtime: &mut Runtime,
) -> Result<Selection, SelectError> {
    let named = |source| SelectError {
        choice: choice.to_string(),
        source,
    };
    match choice {
        DeviceChoice::Cpu => Ok(cpu("as requested", faults)),
        DeviceChoice::Cuda(numbers) => {
            let driver = usable_driver(runtime).map_err(named)?;
            let devices = numbers
                .iter()
                .map(|&number| gpu(&driver, number).map_err(named));
            let devices = devices.collect::<Result<Vec<_>, _>>()?;
            Ok(gpus(devices, "as requested"))
        }
        DeviceChoice::CudaAll => {
            let driver = usable_driver(runtime).map_err(named)?;
            let devices = (0..driver.gpus.len()).map(|number| gpu(&driver, number).map_err(named));
            let devices = devices.collect::<Result<Vec<_>, _>>()?;
            Ok(gpus(devices, "all GPUs"))
        }
        DeviceChoice::Auto => Ok(match most_free_gpu(runtime) {
            Ok((device, count)) => {
                let why = match count {
                    1 => "the only GPU",
                    _ => {
                        "the GPU with the most free memory; option `device: cuda:all` uses all of them"
                    }
                };
                gpus(vec![device], why)
            }
            Err(DeviceError::Gpu(GpuError::NoDriver)) => {
                cpu("no NVIDIA driver was found on this machine", faults)
            }
            Err(error) => cpu(&error.to_string(), faults),
        }),
    }
}

/// The CPU, or as many simulated copies of it as a test requests.
fn cpu(why: &str, faults: Option<Faults>) -> Selection {
    let count = faults.and_then(|faults| faults.engines).unwrap_or(1);
    let device = |number| {
        let mut device = SelectedDevice::cpu();
        if count > 1 {
            device.name = format!("CPU {number}");
        }
        device
    };
    Selection {
        devices: (0..count).map(device).collect(),
        why: format!("cpu ({why})"),
    }
}

fn gpus(devices: Vec<SelectedDevice>, why: &str) -> Selection {
    let names = devices.iter().map(|device| {
        let free = device.gpu.as_ref().map_or(0, |(_, free)| *free);
        format!(
            "{} {}, {} free",
            device.device,
            device.name,
            BinaryBytes(free)
        )
    });
    Selection {
        why: format!("{} ({why})", names.collect::<Vec<_>>().join("; ")),
        devices,
    }
}

/// The NVIDIA driver, where ONNX Runtime can use its GPUs.
fn usable_driver(runtime: &mut Runtime) -> Result<Driver, DeviceError> {
    let driver = driver::driver()?;
    provider::prepare(runtime.locate()?, driver.cuda)?;
    Ok(driver)
}

/// A GPU by its number, if it works.
///
/// # Errors
/// When there is none with this number, it is too old, or the driver refuses it.
pub fn gpu(driver: &Driver, number: usize) -> Result<SelectedDevice, DeviceError> {
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
    Ok(SelectedDevice {
        device: Device::Cuda(number),
        name: gpu.name.clone(),
        gpu: Some((gpu.clone(), free)),
    })
}

/// The usable GPU with the most free memory, and the number of GPUs.
fn most_free_gpu(runtime: &mut Runtime) -> Result<(SelectedDevice, usize), DeviceError> {
    let driver = usable_driver(runtime)?;
    let mut best: Option<(u64, SelectedDevice)> = None;
    let mut why = None;
    for number in 0..driver.gpus.len() {
        match gpu(&driver, number) {
            Ok(device) => {
                let free = device.gpu.as_ref().map_or(0, |(_, free)| *free);
                // Of several that have as much, the first one stays.
                let other = if best.as_ref().is_none_or(|(most, _)| free > *most) {
                    best.replace((free, device)).map(|(_, other)| other)
                } else {
                    Some(device)
                };
                if let Some((gpu, _)) = other.and_then(|other| other.gpu) {
                    driver::release_context(gpu.number);
                }
            }
            Err(error) => why = why.or(Some(error)),
        }
    }
    match (best, why) {
        (Some((_, device)), _) => Ok((device, driver.gpus.len())),
        (None, Some(why)) => Err(why),
        (None, None) => Err(GpuError::NoGpu(None).into()),
    }
}

/// Checks that a device can compute in a precision.
///
/// # Errors
/// Why it cannot, and what to do.
pub fn check_precision(
    precision: Precision,
    device: &SelectedDevice,
    kernels: Kernels,
) -> Result<(), String> {
    let Some((gpu, _)) = &device.gpu else {
        return match precision {
            Precision::Auto | Precision::Fp32 => Ok(()),
            Precision::Fp16 | Precision::Bf16 | Precision::Fp8 => Err(format!(
                "{precision} needs a GPU (option `device: cuda`); omit `precision`, or use fp32"
            )),
        };
    };
    match precision {
        Precision::Bf16 | Precision::Fp8 if kernels == Kernels::Portable => Err(format!(
            "ONNX Runtime has no {precision} kernels for packed sequences; omit option \
             `kernels: portable`, or use fp16"
        )),
        Precision::Fp8 if gpu.capability != (9, 0) => Err(format!(
            "it needs compute capability 9.0 (H100, H200), but this GPU has {}.{}; use fp16",
            gpu.capability.0, gpu.capability.1
        )),
        Precision::Bf16 if gpu.capability < (8, 0) => Err(format!(
            "it needs compute capability 8.0 or higher (such as an A100), but this GPU has {}.{}; \
             use fp16",
            gpu.capability.0, gpu.capability.1
        )),
        Precision::Auto | Precision::Fp32 | Precision::Fp16 | Precision::Bf16 | Precision::Fp8 => {
            Ok(())
        }
    }
}
