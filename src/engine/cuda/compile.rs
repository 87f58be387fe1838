//! Compiles CUDA C++ to machine code for the GPU at hand, with NVRTC. Compiled code is cached on
//! disk.
//!
//! So neither a CUDA compiler nor CUDA's headers are needed to build seqembed, the sizes of the
//! model are constants in its kernels, and the code is for the very GPU that runs it.

use std::ffi::{CString, c_char};
use std::fs;
use std::path::Path;

use cudarc::nvrtc::result as nvrtc;
use cudarc::nvrtc::sys;
use seqembed_onnx::weights::table::hex;
use sha2::{Digest, Sha256};

use crate::atomic_file;

/// Why kernels cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The library of the compiler was not found.
    #[error(
        "CUDA's run-time compiler (libnvrtc) was not found; install the CUDA toolkit, or run pip \
         install nvidia-cuda-nvrtc"
    )]
    Missing,
    /// The library could not be used.
    #[error("CUDA's run-time compiler failed: {0}")]
    Library(String),
    /// It refused the source.
    #[error("CUDA's run-time compiler could not compile a kernel for {arch}: {log}")]
    Source {
        /// The architecture, such as `sm_90a`.
        arch: String,
        /// The message of the compiler.
        log: String,
    },
}

impl From<nvrtc::NvrtcError> for CompileError {
    fn from(error: nvrtc::NvrtcError) -> Self {
        Self::Library(format!("{:?}", error.0))
    }
}

/// The machine code of a source for an architecture such as `sm_90a`, from the cache or newly
/// compiled.
///
/// # Errors
/// If there is no compiler, or it fails.
pub fn machine_code(
    source: &str,
    options: &[String],
    arch: &str,
    cache: &Path,
) -> Result<Vec<u8>, CompileError> {
    // SAFETY: only asks whether the library can be loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(CompileError::Missing);
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are written to.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result()?;
    let mut key = Sha256::new();
    for part in [source, arch, &options.join("\0")] {
        key.update(part);
        key.update([0]);
    }
    key.update([major.to_le_bytes(), minor.to_le_bytes()].concat());
    let path = cache.join(format!("{}.cubin", hex(&key.finalize()[..16])));
    if let Ok(code) = fs::read(&path) {
        return Ok(code);
    }
    let code = compile(source, options, arch)?;
    // If the cache cannot be written, the next process compiles again.
    let _ = keep(&path, &code);
    Ok(code)
}

fn keep(path: &Path, code: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(atomic_file::folder_of(path))?;
    atomic_file::write(path, code)
}

fn compile(source: &str, options: &[String], arch: &str) -> Result<Vec<u8>, CompileError> {
    let source = CString::new(source).map_err(|error| CompileError::Library(error.to_string()))?;
    let program = nvrtc::create_program(&source, Some(c"seqembed.cu"))?;
    let mut all = vec![
        format!("--gpu-architecture={arch}"),
        "--std=c++17".to_owned(),
    ];
    all.extend_from_slice(options);
    // SAFETY: the program is not destroyed before the end, and the source outlives it.
    let result = unsafe {
        match nvrtc::compile_program(program, &all) {
            Ok(()) => machine_code_of(program),
            Err(_) => Err(CompileError::Source {
                arch: arch.to_owned(),
                log: log_of(program),
            }),
        }
    };
    // SAFETY: it was created above, and is not used any more.
    unsafe { nvrtc::destroy_program(program) }?;
    result
}

/// # Safety
/// The program must have been compiled.
unsafe fn machine_code_of(program: sys::nvrtcProgram) -> Result<Vec<u8>, CompileError> {
    let mut size = 0;
    // SAFETY: the caller's promise; the buffer is as large as told.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &raw mut size).result()?;
        let mut code = vec![0_u8; size];
        sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast::<c_char>()).result()?;
        Ok(code)
    }
}

/// # Safety
/// The program must exist.
unsafe fn log_of(program: sys::nvrtcProgram) -> String {
    // SAFETY: the caller's promise.
    let log = unsafe { nvrtc::get_program_log(program) }.unwrap_or_default();
    let bytes: Vec<u8> = log.iter().map(|&byte| byte.cast_unsigned()).collect();
    String::from_utf8_lossy(&bytes)
        .trim_matches(['\0', '\n', ' '])
        .to_owned()
}
