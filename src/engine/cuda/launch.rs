//! What kernels need of CUDA's driver: a device's properties, functions of loaded code, how the
//! tensor memory accelerator reads a matrix, and launches.

use std::ffi::{CString, c_void};

use cudarc::driver::result as driver;
use cudarc::driver::sys;

use super::compile::CompileError;

/// Why a model has no kernels on a device.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// They could not be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A call of the CUDA driver failed.
    #[error("CUDA error {0}: {1}")]
    Driver(u32, String),
    /// The model or the device is not one that they are for.
    #[error("{0}")]
    Unsupported(String),
}

impl From<driver::DriverError> for KernelError {
    fn from(error: driver::DriverError) -> Self {
        let text = error.error_string().map_or_else(
            |_| String::new(),
            |text| text.to_string_lossy().into_owned(),
        );
        Self::Driver(error.0 as u32, text)
    }
}

/// A kernel on the device.
#[derive(Clone, Copy)]
pub(super) struct Function {
    pub handle: sys::CUfunction,
    pub shared: u32,
}

/// Memory on the device.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct DevicePtr(pub *mut c_void);

/// No memory.
pub const NULL: DevicePtr = DevicePtr(std::ptr::null_mut());

/// A kernel's argument.
#[derive(Clone, Copy)]
pub(super) enum Argument {
    Pointer(DevicePtr),
    Int(i32),
    Long(u64),
    Float(f32),
    Matrix(TensorMap),
}

/// How a matrix in memory is read by the tensor memory accelerator.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct TensorMap(sys::CUtensorMap);

/// What a matrix is made of.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Element {
    Fp16,
    Bf16,
    Fp8,
}

fn as_int(number: usize) -> Result<i32, KernelError> {
    i32::try_from(number)
        .map_err(|_| KernelError::Unsupported(format!("{number} exceeds the limit for a batch")))
}

pub(super) fn int(number: usize) -> Result<Argument, KernelError> {
    as_int(number).map(Argument::Int)
}

pub(super) fn cu_device(device: u32) -> Result<sys::CUdevice, KernelError> {
    // SAFETY: only asks whether the library can be loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(KernelError::Unsupported(
            "there is no NVIDIA driver (libcuda.so.1)".to_owned(),
        ));
    }
    driver::init()?;
    Ok(driver::device::get(as_int(device as usize)?)?)
}

fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<u32, KernelError> {
    // SAFETY: the device exists.
    let value = unsafe { driver::device::get_attribute(device, which) }?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// The device's compute capability.
pub(super) fn capability(device: u32) -> Result<(u32, u32), KernelError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    };
    let device = cu_device(device)?;
    Ok((
        attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ))
}

pub(super) fn processors(device: sys::CUdevice) -> Result<u32, KernelError> {
    attribute(
        device,
        sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
    )
}

pub(super) fn function(
    module: sys::CUmodule,
    name: &str,
    shared: u32,
) -> Result<Function, KernelError> {
    let name = CString::new(name).expect("names of kernels have no zero");
    // SAFETY: the module was loaded, and is never unloaded.
    let handle = unsafe { driver::module::get_function(module, name) }?;
    if shared > 0 {
        // SAFETY: the function was just found.
        unsafe {
            driver::function::set_function_attribute(
                handle,
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                i32::try_from(shared).expect("less than a megabyte"),
            )
        }?;
    }
    Ok(Function { handle, shared })
}

/// A matrix that is read in boxes with this number of rows of 128 bytes each.
pub(super) fn tensor_map(
    memory: DevicePtr,
    [rows, columns]: [usize; 2],
    box_rows: u32,
    element: Element,
) -> Result<TensorMap, KernelError> {
    use sys::{
        CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
        CUtensorMapL2promotion, CUtensorMapSwizzle,
    };
    let (element, bytes) = match element {
        Element::Fp16 => (CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2),
        Element::Bf16 => (CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2),
        Element::Fp8 => (CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8, 1),
    };
    let sizes = [columns as u64, rows as u64];
    let row_bytes = [u64::from(bytes) * columns as u64];
    let tile = [128 / bytes, box_rows];
    let steps = [1_u32, 1];
    // SAFETY: it is plain data, and is written to before it is used.
    let mut map: TensorMap = unsafe { std::mem::zeroed() };
    // SAFETY: the arrays are as long as two dimensions need.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map.0,
            element,
            2,
            memory.0,
            sizes.as_ptr(),
            row_bytes.as_ptr(),
            tile.as_ptr(),
            steps.as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()?;
    Ok(map)
}

/// # Safety
/// The arguments must be those of the kernel, and memory stay until the stream's work is done.
pub(super) unsafe fn launch(
    function: Function,
    stream: DevicePtr,
    [x, y]: [usize; 2],
    threads: u32,
    arguments: &[Argument],
) -> Result<(), KernelError> {
    if x == 0 || y == 0 {
        return Ok(());
    }
    let size = |blocks: usize| {
        u32::try_from(blocks)
            .map_err(|_| KernelError::Unsupported(format!("{blocks} blocks are too many")))
    };
    let mut values = arguments.to_vec();
    let mut pointers: Vec<*mut c_void> = values
        .iter_mut()
        .map(|value| match value {
            Argument::Pointer(pointer) => (&raw mut *pointer).cast(),
            Argument::Int(number) => (&raw mut *number).cast(),
            Argument::Long(number) => (&raw mut *number).cast(),
            Argument::Float(number) => (&raw mut *number).cast(),
            Argument::Matrix(map) => (&raw mut *map).cast(),
        })
        .collect();
    // SAFETY: the caller's promise; `values` outlives the call, which copies them.
    unsafe {
        driver::launch_kernel(
            function.handle,
            (size(x)?, size(y)?, 1),
            (threads, 1, 1),
            function.shared,
            stream.0.cast(),
            &mut pointers,
        )
    }?;
    Ok(())
}
