//! Errors of ONNX Runtime's CUDA provider: out of memory, device lost, or something else.
//!
//! ONNX Runtime has one error code for all of these, so the message decides. It quotes CUDA as
//! `CUDA failure N: ...` with the number of `cudaError_t`, and cuBLAS as
//! `CUBLAS failure N: CUBLAS_STATUS_...`.

use crate::engine::error::EngineError;

/// Messages of the arena and of cuBLAS when memory is short. A cuBLAS that could not be initialised
/// had no memory for its handle.
const OUT_OF_MEMORY: [&str; 8] = [
    "Failed to allocate memory for requested buffer",
    "is smaller than requested bytes of",
    "Failed to find a free memory block",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
    "out of memory",
];

/// Messages of libraries when the device itself has failed.
const LOST: [&str; 10] = [
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUBLAS_STATUS_MAPPING_ERROR",
    "an illegal memory access was encountered",
    "unspecified launch failure",
    "device-side assert triggered",
    "uncorrectable ECC error",
    "GPU has fallen off the bus",
    "device(s) is/are busy or unavailable",
    "device is lost",
];

/// `cudaError_t` numbers of calls that were wrong, or of devices that never were there, after which
/// other calls work. All other errors are sticky: they stay with the process until it ends.
const HARMLESS: [u32; 14] = [1, 3, 8, 9, 35, 98, 99, 100, 101, 200, 209, 222, 701, 801];

/// The number after `CUDA failure` or `CUDA error`.
fn number(message: &str) -> Option<u32> {
    let rest = ["CUDA failure ", "CUDA error "]
        .iter()
        .find_map(|words| Some(message.split_once(words)?.1))?;
    let digits = rest.find(|c: char| !c.is_ascii_digit())?;
    rest[..digits].parse().ok()
}

/// Classifies an error by its message.
#[must_use]
pub fn classify(message: &str) -> EngineError {
    const OUT_OF_MEMORY_NUMBER: u32 = 2;
    let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
    let number = number(message);
    // A lost device may say that it has no memory, but not the other way round.
    if says(&LOST) {
        EngineError::DeviceLost(message.to_owned())
    } else if number == Some(OUT_OF_MEMORY_NUMBER) || says(&OUT_OF_MEMORY) {
        EngineError::OutOfMemory(message.to_owned())
    } else if number.is_some_and(|number| !HARMLESS.contains(&number)) {
        EngineError::DeviceLost(message.to_owned())
    } else {
        EngineError::Runtime(message.to_owned())
    }
}

/// The error of a call to ONNX Runtime, classified.
#[expect(
    clippy::needless_pass_by_value,
    reason = "it is what `map_err` hands over"
)]
pub fn engine_error<T>(error: ort::Error<T>) -> EngineError {
    classify(error.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages as they were reported to ONNX Runtime's authors, shortened in the middle.
    const OUT_OF_MEMORY: [&str; 6] = [
        "Non-zero status code returned while running Conv node. Name:'/patch_embed/Conv' Status Message: \
         /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, \
         bool, onnxruntime::Stream*, bool, onnxruntime::WaitNotificationFn) Failed to allocate memory for requested buffer of \
         size 939524096\n",
        "Non-zero status code returned while running Gemm node. Name:'fc1' Status Message: Available memory of 1048576 is \
         smaller than requested bytes of 33554432",
        "Exception during initialization: /onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:121 CUBLAS failure 3: \
         CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=egg ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/\
         cuda_execution_provider.cc ; line=164 ; expr=cublasCreate(&cublas_handle_); ",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/\
         cuda_allocator.cc ; line=48 ; expr=cudaMalloc((void**)&p, size); ",
        "CUBLAS failure 1: CUBLAS_STATUS_NOT_INITIALIZED ; GPU=1 ; hostname=a ; expr=cublasCreate(&cublas_handle_); ",
        "CUDA failure 2: Speicherfehler ; GPU=0 ; hostname=a ; expr=cudaMalloc((void**)&p, size); ",
    ];

    const LOST: [&str; 7] = [
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=10cb601a4a05 ; file=/home/runner/\
         onnxruntime/core/providers/cuda/gpu_data_transfer.cc ; line=63 ; expr=cudaMemcpyAsync(dst_data, src_data, bytes, \
         cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream.GetHandle())); ",
        "CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=a ; expr=cudaStreamSynchronize(stream_); ",
        "CUDA failure 214: uncorrectable ECC error encountered ; GPU=3 ; hostname=a ; expr=cudaGetLastError(); ",
        "CUDA failure 46: all CUDA-capable devices are busy or unavailable ; GPU=0 ; hostname=a ; expr=cudaSetDevice(0); ",
        "CUDA failure 999: unknown error ; GPU=0 ; hostname=a ; expr=cudaEventRecord(event, stream); ",
        "Non-zero status code returned while running Gemm node. Name:'layer.3/Gemm_40' Status Message: CUBLAS failure 13: \
         CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=a ; expr=cublasGemmHelper(handle, transb, transa); ",
        "CUDA failure 710: device-side assert triggered ; GPU=0 ; hostname=a ; expr=cudaMalloc: out of memory; ",
    ];

    const OTHER: [&str; 6] = [
        "CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=a ; expr=cudaSetDevice(info_.device_id); ",
        "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=a ; \
         expr=cudaSetDevice(info_.device_id); ",
        "CUDA failure 1: invalid argument ; GPU=1 ; hostname=a ; expr=cudaMemcpyAsync(output.MutableDataRaw(), 4); ",
        "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object file: \
         No such file or directory",
        "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has been explicitly \
         disabled by the user.",
        "CUDA failure ",
    ];

    #[test]
    fn messages_are_told_apart() {
        for message in OUT_OF_MEMORY {
            assert!(
                matches!(classify(message), EngineError::OutOfMemory(_)),
                "{message}"
            );
        }
        for message in LOST {
            assert!(
                matches!(classify(message), EngineError::DeviceLost(_)),
                "{message}"
            );
        }
        for message in OTHER {
            assert!(
                matches!(classify(message), EngineError::Runtime(_)),
                "{message}"
            );
        }
    }
}
