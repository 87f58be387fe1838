//! The NVIDIA GPUs of this machine, asked of the CUDA driver.
//!
//! The driver numbers those that `CUDA_VISIBLE_DEVICES` shows, as every CUDA program sees them.
//! Nothing here needs ONNX Runtime.

use cudarc::driver::result::{self, DriverError, ctx, device, primary_ctx};
use cudarc::driver::sys;

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Number of the GPU, as in `cuda:N`.
    pub number: usize,
    /// Its product name, such as `NVIDIA H100 PCIe`.
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub capability: (i32, i32),
    /// All of its memory, in bytes.
    pub total_memory: u64,
}

/// The driver, and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// The newest version of CUDA that the driver serves, such as (13, 0).
    pub cuda: (i32, i32),
    /// The GPUs that are visible to this process.
    pub gpus: Vec<Gpu>,
}

/// Why a GPU cannot be used, as far as the driver knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// The driver is not installed.
    #[error(
        "no NVIDIA driver was found on this machine (libcuda.so.1 is missing). Install the \
         driver; in a container, start it with access to the GPU (docker run --gpus all, apptainer \
         exec --nv)"
    )]
    NoDriver,
    /// There is one, and it shows no GPU.
    #[error("the NVIDIA driver reports no GPU{}", hidden(.0.as_deref()))]
    NoGpu(Option<String>),
    /// The number is too high.
    #[error("there is no GPU {number}: {}", numbers(*.count))]
    NoSuch {
        /// The requested number.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// A call of the CUDA driver failed.
    #[error("the NVIDIA driver failed ({0}). Run `nvidia-smi` to check it")]
    Refused(String),
}

fn hidden(visible: Option<&str>) -> String {
    visible.map_or_else(
        || {
            ". Run `nvidia-smi -L` to list the GPUs of the machine; a batch job must request one \
            (SLURM: --gres=gpu:1)"
                .to_owned()
        },
        |list| {
            format!(
                ": CUDA_VISIBLE_DEVICES is {list:?}. Unset it, or set it to a GPU listed \
                        by `nvidia-smi -L`"
            )
        },
    )
}

fn numbers(count: usize) -> String {
    match count {
        1 => "the only GPU is cuda:0".to_owned(),
        count => format!("the machine has {count}, cuda:0 to cuda:{}", count - 1),
    }
}

impl GpuError {
    fn of(error: DriverError) -> Self {
        match error.0 {
            sys::CUresult::CUDA_ERROR_NO_DEVICE => {
                Self::NoGpu(std::env::var("CUDA_VISIBLE_DEVICES").ok())
            }
            // The driver's own texts are looked up in a table that has every code.
            code => Self::Refused(format!("{code:?}")),
        }
    }
}

/// Asks the driver for all GPUs.
///
/// # Errors
/// [`GpuError`] if there is no driver, it reports no GPU, or it fails.
pub fn driver() -> Result<Driver, GpuError> {
    // SAFETY: opening the driver's library runs its initialisers, as any CUDA program does.
    if !unsafe { sys::is_culib_present() } {
        return Err(GpuError::NoDriver);
    }
    result::init().map_err(GpuError::of)?;
    let mut version = 0;
    // SAFETY: the place outlives the call.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(GpuError::of)?;
    let count = device::get_count().map_err(GpuError::of)?;
    let gpus = (0..count)
        .map(|at| gpu(at).map_err(GpuError::of))
        .collect::<Result<Vec<_>, _>>()?;
    if gpus.is_empty() {
        return Err(GpuError::NoGpu(std::env::var("CUDA_VISIBLE_DEVICES").ok()));
    }
    Ok(Driver {
        cuda: (version / 1000, version % 1000 / 10),
        gpus,
    })
}

fn gpu(ordinal: i32) -> Result<Gpu, DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let handle = device::get(ordinal)?;
    // SAFETY: the driver gave the handle, and is never shut down.
    let (major, minor, total) = unsafe {
        (
            device::get_attribute(
                handle,
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            )?,
            device::get_attribute(
                handle,
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )?,
            device::total_mem(handle)?,
        )
    };
    Ok(Gpu {
        number: usize::try_from(ordinal).unwrap_or(0),
        name: device::get_name(handle)?,
        capability: (major, minor),
        total_memory: total as u64,
    })
}

/// The free memory of a GPU in bytes; a GPU that answers is usable. This creates the device's
/// context, which takes about 0.2 s and is kept for sessions on the device. Use [`release_context`]
/// if there will be none.
///
/// # Errors
/// What the driver refuses, such as a GPU that another process has to itself.
pub fn free_memory(number: usize) -> Result<u64, GpuError> {
    let ask = || -> Result<usize, DriverError> {
        let handle = handle(number)?;
        // SAFETY: the handle is the driver's; the context is current on this thread while it is
        // asked, and the one that was current before is put back.
        unsafe {
            let before = ctx::get_current()?;
            let context = primary_ctx::retain(handle)?;
            let asked = ctx::set_current(context).and_then(|()| result::mem_get_info());
            ctx::set_current(before.unwrap_or(std::ptr::null_mut()))?;
            asked.map(|(free, _)| free)
        }
    };
    ask().map(|free| free as u64).map_err(GpuError::of)
}

/// Releases the context of a GPU that was queried for its free memory but is not used.
pub fn release_context(number: usize) {
    // Errors do not matter: a context that is not released now ends with the process.
    let _ = handle(number).and_then(|handle| {
        // SAFETY: the handle is the driver's, and `free_memory` retained the context.
        unsafe { primary_ctx::release(handle) }
    });
}

fn handle(number: usize) -> Result<sys::CUdevice, DriverError> {
    device::get(i32::try_from(number).unwrap_or(i32::MAX))
}
