//! ONNX Runtime's CUDA provider: checks that it is in the folder of the library that was found, and
//! that the libraries it needs can be loaded.
//!
//! The provider is a library of its own that ONNX Runtime opens when a session asks for it. It must
//! not be opened before (it needs symbols of ONNX Runtime that are not there yet), so the list of
//! libraries that it needs is read from the file, and each of those is opened instead: from the
//! CUDA wheels beside ONNX Runtime's (`nvidia/cu13/lib`, `nvidia/cublas/lib` ...), by full path, so
//! that nobody has to set `LD_LIBRARY_PATH`; else wherever the dynamic linker finds it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use object::Endianness;
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::ReadCache;
use object::read::elf::{Dyn as _, ElfFile};

use crate::engine::runtime::locate::RuntimeLibrary;

/// File name of the provider, in the folder of ONNX Runtime.
const PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// A provider that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its file.
    pub path: PathBuf,
    /// The major version of CUDA that it is built for, according to the names of its libraries.
    pub cuda: Option<i32>,
}

/// Why the provider cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// There is no CUDA provider in the folder of the library that was found.
    #[error(
        "the ONNX Runtime that was found, {}, is the CPU build: there is no {PROVIDER} in the \
         same folder. Install the GPU build with: {} (in an environment without `onnxruntime`), or \
         name it with option `ort_lib`", .path.display(), install(*.driver)
    )]
    CpuBuild {
        /// Path or name of the library.
        path: PathBuf,
        /// The newest CUDA that the driver serves.
        driver: i32,
    },
    /// A library that it needs cannot be loaded.
    #[error(
        "ONNX Runtime's CUDA provider needs {library}, which cannot be loaded: {why}. Install the \
         CUDA libraries with: {}; or load your system's CUDA{} (module load cuda, or \
         LD_LIBRARY_PATH)", libraries(*.cuda), of(*.cuda)
    )]
    Library {
        /// Path or name of the library.
        library: String,
        /// The message of the dynamic linker.
        why: String,
        /// The major version of CUDA that the provider is built for.
        cuda: Option<i32>,
    },
    /// The file cannot be read as a library.
    #[error("cannot read {}: {why}", .path.display())]
    Broken {
        /// The provider.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The driver is older than the provider's CUDA.
    #[error(
        "ONNX Runtime's CUDA provider is built for CUDA {needs}, but the NVIDIA driver supports \
         CUDA {}.{} at most. Update the driver{}", .has.0, .has.1, older(.has.0)
    )]
    Driver {
        /// The provider's CUDA.
        needs: i32,
        /// The driver's.
        has: (i32, i32),
    },
}

fn of(cuda: Option<i32>) -> String {
    cuda.map(|major| format!(" {major}")).unwrap_or_default()
}

/// The last release whose provider is built for CUDA 12. It links cuDNN and cuFFT, too, and only
/// its extra `cudnn` installs cuBLAS.
const CUDA_12: &str = "pip install 'onnxruntime-gpu[cuda,cudnn]==1.26.0'";
/// The releases for CUDA 13, which do not link cuDNN. None of their own extras installs cuBLAS
/// without it.
const CUDA_13: &str = "pip install 'onnxruntime-gpu[cuda]==1.31.*' 'nvidia-cublas~=13.0'";

/// The command that installs a provider, and all that it needs, for a driver that supports this
/// version of CUDA at most.
fn install(driver: i32) -> &'static str {
    if driver < 13 { CUDA_12 } else { CUDA_13 }
}

/// The command that installs the libraries of a provider that is built for this version of CUDA.
fn libraries(cuda: Option<i32>) -> &'static str {
    install(cuda.unwrap_or(13))
}

/// What to do where the driver cannot be updated.
fn older(driver: i32) -> String {
    if driver < 12 {
        return String::new();
    }
    format!(", or install the last ONNX Runtime for CUDA 12: {CUDA_12}")
}

/// Looks for the provider in the folder of ONNX Runtime, and loads the libraries that it needs.
/// `driver` is the newest CUDA version that the driver supports.
///
/// # Errors
/// [`ProviderError`], which names what is missing and the command that helps.
pub fn prepare(library: &RuntimeLibrary, driver: (i32, i32)) -> Result<Provider, ProviderError> {
    static DONE: OnceLock<Result<Provider, ProviderError>> = OnceLock::new();
    DONE.get_or_init(|| prepare_once(&library.path, driver))
        .clone()
}

fn prepare_once(runtime: &Path, driver: (i32, i32)) -> Result<Provider, ProviderError> {
    let folder = runtime.parent().unwrap_or(Path::new("/"));
    let path = folder.join(PROVIDER);
    if !path.exists() {
        return Err(ProviderError::CpuBuild {
            path: runtime.to_owned(),
            driver: driver.0,
        });
    }
    let needed = needed(&path).map_err(|why| ProviderError::Broken {
        path: path.clone(),
        why,
    })?;
    let cuda = needed.iter().find_map(|library| cuda_of(library));
    if let Some(needs) = cuda
        && needs > driver.0
    {
        return Err(ProviderError::Driver { needs, has: driver });
    }
    // site-packages/onnxruntime/capi
    let packages = folder.parent().and_then(Path::parent);
    let wheels = packages.map(wheels).unwrap_or_default();
    for library in &needed {
        // ONNX Runtime's own part of the provider is loaded by ONNX Runtime.
        if library.starts_with("libonnxruntime") {
            continue;
        }
        load(library, &wheels).map_err(|why| ProviderError::Library {
            library: library.clone(),
            why,
            cuda,
        })?;
    }
    open_compiler(&wheels);
    Ok(Provider { path, cuda })
}

/// The names of the libraries that a library needs.
fn needed(path: &Path) -> Result<Vec<String>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let cache = ReadCache::new(file);
    let read = || -> object::read::Result<Vec<String>> {
        let elf = ElfFile::<FileHeader64<Endianness>, _>::parse(&cache)?;
        let (endian, data) = (elf.endian(), elf.data());
        let sections = elf.elf_section_table();
        let Some((entries, link)) = sections.dynamic(endian, data)? else {
            return Ok(Vec::new());
        };
        let strings = sections.strings(endian, data, link)?;
        entries
            .iter()
            .filter(|entry| entry.tag32(endian).map(i64::from) == Some(DT_NEEDED))
            .map(|entry| {
                let name = entry.string(endian, strings)?;
                Ok(String::from_utf8_lossy(name).into_owned())
            })
            .collect()
    };
    read().map_err(|error| format!("it is not a library for 64-bit Linux ({error})"))
}

/// The version of CUDA in the name of one of its versioned libraries: 13 of `libcudart.so.13`.
fn cuda_of(library: &str) -> Option<i32> {
    ["libcudart.so.", "libcublas.so.", "libcublasLt.so."]
        .iter()
        .find_map(|stem| library.strip_prefix(stem))
        .and_then(|version| version.split('.').next()?.parse().ok())
}

/// Opens NVRTC, the compiler of seqembed's own kernels, and its built-ins, which it looks for by
/// name alone. Without NVRTC, ONNX Runtime's kernels run.
fn open_compiler(wheels: &BTreeMap<String, PathBuf>) {
    for name in ["libnvrtc-builtins.so.", "libnvrtc.so."] {
        for (_, library) in wheels.iter().filter(|(file, _)| file.starts_with(name)) {
            let _ = open(library.as_os_str());
        }
    }
}

/// Opens the compiler that the tests' Python environment has, if it has one.
#[cfg(test)]
pub(crate) fn open_compiler_of_tests() {
    let python = std::env::var_os("SEQEMBED_TEST_PYTHON").map(PathBuf::from);
    let environment = python
        .as_deref()
        .and_then(|python| python.parent()?.parent());
    let versions = environment.map(|folder| std::fs::read_dir(folder.join("lib")));
    for version in versions.into_iter().flatten().flatten().flatten() {
        open_compiler(&wheels(&version.path().join("site-packages")));
    }
}

/// The CUDA libraries among Python packages, by file name.
fn wheels(packages: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let Ok(parts) = std::fs::read_dir(packages.join("nvidia")) else {
        return found;
    };
    for part in parts.flatten() {
        for file in std::fs::read_dir(part.path().join("lib"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = file.file_name().to_string_lossy().into_owned();
            if name.contains(".so") {
                found.insert(name, file.path());
            }
        }
    }
    found
}

/// Opens a library for good, and before it those that it needs itself, as far as the wheels have
/// them.
fn load(library: &str, wheels: &BTreeMap<String, PathBuf>) -> Result<(), String> {
    let Some(path) = wheels.get(library) else {
        return open(OsStr::new(library));
    };
    for other in needed(path).unwrap_or_default() {
        if wheels.contains_key(&other) && other != library {
            load(&other, wheels)?;
        }
    }
    open(path.as_os_str())
}

/// Opens a library so that everything that is loaded later finds its symbols, and never closes it.
#[cfg(unix)]
fn open(name: &OsStr) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
    // SAFETY: loading runs the library's initialisers, as ONNX Runtime would a moment later.
    let library =
        unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_GLOBAL) }.map_err(|error| {
            std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
        })?;
    std::mem::forget(library);
    Ok(())
}

#[cfg(not(unix))]
fn open(_: &OsStr) -> Result<(), String> {
    Err("CUDA is supported only on Linux".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_cuda_is_in_its_libraries_names() {
        assert_eq!(cuda_of("libcudart.so.13"), Some(13));
        assert_eq!(cuda_of("libcublasLt.so.12"), Some(12));
        assert_eq!(cuda_of("libcurand.so.10"), None);
        assert_eq!(cuda_of("libstdc++.so.6"), None);
    }

    #[test]
    fn an_executable_tells_what_it_needs() {
        let this = std::env::current_exe().expect("a path");
        let needed = needed(&this).expect("an ELF file");
        assert!(
            needed.iter().any(|name| name.starts_with("libc.so")),
            "{needed:?}"
        );
    }
}
