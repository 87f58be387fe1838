//! Finding ONNX Runtime: where its library may be, in which order, and what to say when there is
//! none.
//!
//! Search order: `--ort-lib`, `ORT_DYLIB_PATH`, next to the executable, the Python wheel
//! `onnxruntime` or `onnxruntime-gpu` (which keeps the library in `onnxruntime/capi/`; first that
//! of the environment in whose `bin` the executable is), a conda environment's `lib`, and the
//! folders of the dynamic linker's variable.
//!
//! A library that was named explicitly (the first two) must load: anything else there is an error.
//! One that was only found is skipped when it does not load, and named in the error if no other
//! loads. Python is run only when nothing was found anywhere else.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::ffi::{CStr, OsStr};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ort::environment::EnvironmentBuilder;

/// The variable that names the library or its folder.
pub const VARIABLE: &str = "ORT_DYLIB_PATH";

/// The oldest ONNX Runtime that works, as its minor version: that of the C interface this
/// executable was built for.
pub const OLDEST: u32 = ort::MINOR_VERSION;

/// The dynamic linker's search path.
const LINKER_PATH: &str = if cfg!(target_os = "macos") {
    "DYLD_LIBRARY_PATH"
} else {
    "LD_LIBRARY_PATH"
};

/// An ONNX Runtime library that was found and loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeLibrary {
    /// The library, an absolute path with links followed.
    pub path: PathBuf,
    /// How it was found, for messages: `--ort-lib`, `next to the executable` and so on.
    pub how: String,
    /// The library's own version, such as `1.32.0`.
    pub version: String,
}

/// Why ONNX Runtime is not available.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// `--ort-lib` or `ORT_DYLIB_PATH` is neither a library nor a folder with one.
    #[error("{how} is set to {}, but {why}\nInstall ONNX Runtime with `{}` and omit {how}, or set \
             it to a {} of version 1.{OLDEST} or newer", .path.display(), install(), file_name())]
    Explicit {
        /// What named it.
        how: String,
        /// What it named.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing was found that loads.
    #[error(
        "no ONNX Runtime ({} of version 1.{OLDEST} or newer) was found. Looked for:\n{tried}Install it with: {} (Python 3.11 or newer; for older ones see docs/install.md)",
        file_name(),
        install()
    )]
    Missing {
        /// Where it was looked for, one location a line.
        tried: String,
    },
}

/// Finds and loads ONNX Runtime; `explicit` is a library or a folder that holds one.
///
/// The builder is ready for [`start`](super::start); telemetry is off.
///
/// # Errors
/// [`LocateError`], whose message lists what was tried and the command that fixes it.
pub fn load(explicit: Option<&Path>) -> Result<(EnvironmentBuilder, RuntimeLibrary), LocateError> {
    let variable = std::env::var_os(VARIABLE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    let named = explicit
        .map(|path| ("option `ort_lib`", path.to_path_buf()))
        .or_else(|| variable.map(|path| (VARIABLE, path)));
    if let Some((how, path)) = named {
        let refused = |why| LocateError::Explicit {
            how: how.to_owned(),
            path: path.clone(),
            why,
        };
        let library = named_library(&path).map_err(refused)?;
        return try_load(&library, how).map_err(refused);
    }

    let mut tried = format!("  option `ort_lib`: not given\n  {VARIABLE}: not set\n");
    for location in search_locations() {
        if let Some(loaded) = search(&location, &mut tried) {
            return Ok(loaded);
        }
    }
    // The last resort, because starting Python takes time.
    match ask_python() {
        Ok(location) => {
            if let Some(loaded) = search(&location, &mut tried) {
                return Ok(loaded);
            }
        }
        Err(why) => {
            let _ = writeln!(tried, "  the onnxruntime of `python3`: {why}");
        }
    }
    Err(LocateError::Missing { tried })
}

/// Folders where the library may be.
struct SearchLocation {
    /// What the folders are, for a reader.
    how: String,
    folders: Vec<PathBuf>,
}

/// Tries the newest library in each folder of a location, and records in `tried` what was found.
fn search(
    location: &SearchLocation,
    tried: &mut String,
) -> Option<(EnvironmentBuilder, RuntimeLibrary)> {
    let _ = write!(tried, "  {}:", location.how);
    if location.folders.is_empty() {
        tried.push_str(" none");
    }
    for folder in &location.folders {
        let _ = write!(tried, " {}", folder.display());
        if let Some(library) = newest_library(folder) {
            match try_load(&library, &location.how) {
                Ok(loaded) => return Some(loaded),
                Err(why) => {
                    let _ = write!(tried, " ({} exists, but {why})", library.display());
                }
            }
        }
    }
    tried.push('\n');
    None
}

/// Everywhere to look where no library is named, in order.
fn search_locations() -> Vec<SearchLocation> {
    let mut locations = Vec::new();
    let bin = std::env::current_exe()
        .and_then(std::fs::canonicalize)
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_path_buf));
    let prefix = bin.as_deref().and_then(Path::parent);
    let beside = bin.iter().flat_map(|bin| [bin.clone(), bin.join("lib")]);
    locations.push(SearchLocation {
        how: "next to the executable".to_owned(),
        folders: beside
            .chain(prefix.map(|prefix| prefix.join("lib")))
            .collect(),
    });
    // Where pip put both.
    locations.push(SearchLocation {
        how: "the Python packages of the executable's environment".to_owned(),
        folders: prefix.map(wheels_of_prefix).unwrap_or_default(),
    });

    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        if let Some(prefix) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
            let prefix = PathBuf::from(prefix);
            let mut folders = wheels_of_prefix(&prefix);
            folders.push(prefix.join("lib"));
            locations.push(SearchLocation {
                how: format!("${variable}"),
                folders,
            });
        }
    }
    let python_path: Vec<PathBuf> = list("PYTHONPATH")
        .iter()
        .map(|folder| capi(folder))
        .collect();
    if !python_path.is_empty() {
        locations.push(SearchLocation {
            how: "$PYTHONPATH".to_owned(),
            folders: python_path,
        });
    }
    let of_python: Vec<PathBuf> = list("PATH")
        .iter()
        .filter(|bin| bin.join("python3").exists())
        .filter_map(|bin| bin.parent())
        .flat_map(wheels_of_prefix)
        .collect();
    locations.push(SearchLocation {
        how: "the Python packages of `python3` in $PATH".to_owned(),
        folders: of_python,
    });
    let user = std::env::var_os("PYTHONUSERBASE")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".local")));
    if let Some(user) = user {
        locations.push(SearchLocation {
            how: "the user's Python packages".to_owned(),
            folders: wheels_of_prefix(&user),
        });
    }
    let linker = list(LINKER_PATH);
    if !linker.is_empty() {
        locations.push(SearchLocation {
            how: format!("${LINKER_PATH}"),
            folders: linker,
        });
    }
    locations
}

/// The absolute folders that a variable lists, such as `PATH`. Relative ones are left out: no code
/// is loaded from wherever the executable happens to be started.
fn list(variable: &str) -> Vec<PathBuf> {
    std::env::var_os(variable)
        .map(|value| {
            std::env::split_paths(&value)
                .filter(|folder| folder.is_absolute())
                .collect()
        })
        .unwrap_or_default()
}

/// Where the wheel keeps the library, in a folder of Python packages.
fn capi(packages: &Path) -> PathBuf {
    packages.join("onnxruntime").join("capi")
}

/// The wheels installed under a Python prefix (`/usr`, a virtual environment ...), the newest
/// Python first. Debian names the folder `dist-packages`, and keeps the system's own under
/// `python3`.
fn wheels_of_prefix(prefix: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(Vec<u32>, PathBuf)> = Vec::new();
    for lib in ["lib", "lib64"] {
        let Ok(entries) = std::fs::read_dir(prefix.join(lib)) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(version) = name.to_str().and_then(|name| name.strip_prefix("python")) else {
                continue;
            };
            for packages in ["site-packages", "dist-packages"] {
                let folder = capi(&entry.path().join(packages));
                if folder.is_dir() {
                    found.push((numbers(version), folder));
                }
            }
        }
    }
    let windows = capi(&prefix.join("Lib").join("site-packages"));
    if cfg!(windows) && windows.is_dir() {
        found.push((Vec::new(), windows));
    }
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, folder)| folder).collect()
}

/// Asks Python where its package is, without importing it. The current folder is not searched.
fn ask_python() -> Result<SearchLocation, String> {
    const QUESTION: &str = "import sys; sys.path = [p for p in sys.path if p]; \
        from importlib.util import find_spec as f; s = f('onnxruntime'); \
        print(s.submodule_search_locations[0] if s and s.submodule_search_locations else '')";
    let output = Command::new("python3")
        .args(["-c", QUESTION])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|error| format!("cannot be run ({error})"))?;
    let answer = String::from_utf8_lossy(&output.stdout);
    match answer.trim() {
        "" => Err("it has none".to_owned()),
        package => Ok(SearchLocation {
            how: "the package that `python3` finds".to_owned(),
            folders: vec![Path::new(package).join("capi")],
        }),
    }
}

/// The command that installs a library which works, also where pip has an older one already.
fn install() -> String {
    format!("pip install -U 'onnxruntime>=1.{OLDEST}'")
}

/// The library's file name on this system, without a version.
fn file_name() -> String {
    format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}")
}

/// The library that an explicit path means: itself, or the newest in that folder or in the
/// subfolders where a wheel or a release keeps it.
fn named_library(path: &Path) -> Result<PathBuf, String> {
    let absolute = std::path::absolute(path).map_err(|error| error.to_string())?;
    if absolute.is_dir() {
        return ["", "lib", "capi", "onnxruntime/capi"]
            .iter()
            .find_map(|below| newest_library(&absolute.join(below)))
            .ok_or_else(|| format!("the folder does not contain {}", file_name()));
    }
    if absolute.exists() {
        Ok(absolute)
    } else {
        Err("there is no such file or folder".to_owned())
    }
}

/// The newest library in a folder: wheels name it `libonnxruntime.so.1.32.0`, packages of C++ also
/// `libonnxruntime.so`.
///
/// The wheels `onnxruntime` and `onnxruntime-gpu` share one folder. Where both are installed, that
/// of the latter is taken.
fn newest_library(folder: &Path) -> Option<PathBuf> {
    let with_gpu = gpu_wheel(folder);
    let (_, _, name) = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let version = version_in(&entry.file_name())?;
            Some((with_gpu.contains(&version), version, entry.file_name()))
        })
        .max()?;
    Some(folder.join(name))
}

/// The versions of `onnxruntime-gpu` that pip recorded next to the package that contains this
/// library folder.
fn gpu_wheel(capi: &Path) -> Vec<Vec<u32>> {
    let packages = capi.parent().and_then(Path::parent);
    let entries = packages.and_then(|packages| std::fs::read_dir(packages).ok());
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let rest = name.to_str()?.strip_prefix("onnxruntime_gpu-")?;
            rest.strip_suffix(".dist-info").map(numbers)
        })
        .collect()
}

/// The version in a library's file name (empty where the name has none), or `None` for another
/// file.
fn version_in(name: &OsStr) -> Option<Vec<u32>> {
    let stem = format!("{DLL_PREFIX}onnxruntime");
    let rest = name.to_str()?.strip_prefix(&stem)?;
    let version = match DLL_SUFFIX {
        ".so" => rest.strip_prefix(".so")?,
        suffix => rest.strip_suffix(suffix)?,
    };
    let plain = version
        .chars()
        .all(|letter| letter.is_ascii_digit() || letter == '.');
    plain.then(|| numbers(version))
}

fn numbers(version: &str) -> Vec<u32> {
    version
        .split('.')
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// Loads a library into the process. After a failure another one can be tried.
fn try_load(library: &Path, how: &str) -> Result<(EnvironmentBuilder, RuntimeLibrary), String> {
    let path = std::fs::canonicalize(library).map_err(|error| error.to_string())?;
    // Held open over the second opening, so that the library is not unloaded and loaded again.
    let (_open, version) = open(&path)?;
    let builder = ort::init_from(&path).map_err(|error| match error {
        ort::LoadDynamicError::BadVersion { .. } => {
            format!("it is version {version}, but 1.{OLDEST} or newer is required")
        }
        other => other.to_string(),
    })?;
    Ok((
        builder.with_telemetry(false),
        RuntimeLibrary {
            path,
            how: how.to_owned(),
            version,
        },
    ))
}

/// Opens a library and asks it for its version.
fn open(path: &Path) -> Result<(libloading::Library, String), String> {
    // SAFETY: loading runs the library's initialisers, as it must for ONNX Runtime to be used at
    // all; the path was named by the user or found where ONNX Runtime is installed.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| {
        let why = std::error::Error::source(&error)
            .map_or_else(|| error.to_string(), ToString::to_string);
        format!("it cannot be loaded: {why}")
    })?;
    // SAFETY: this is the function's type in onnxruntime_c_api.h, unchanged since its first
    // version.
    let base = unsafe {
        library
            .get::<unsafe extern "system" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase\0")
    }
    .map_err(|_| "it is not ONNX Runtime (it has no OrtGetApiBase)".to_owned())?;
    // SAFETY: the function takes nothing and gives a pointer to a static structure, or null; the
    // version is a static, null-terminated string in the library, which is still open while it is
    // copied.
    let version = unsafe {
        let base = base().as_ref().ok_or("its OrtGetApiBase returns nothing")?;
        CStr::from_ptr((base.GetVersionString)())
            .to_string_lossy()
            .into_owned()
    };
    Ok((library, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_is_told_by_its_numbers() {
        let folder = tempfile::tempdir().expect("a folder");
        let names: Vec<String> = match DLL_SUFFIX {
            ".so" => ["", ".1", ".1.9.0", ".1.32.0", ".1.32.0.bak"]
                .map(|v| format!("libonnxruntime.so{v}"))
                .into(),
            suffix => ["", ".1.9.0", ".1.32.0"]
                .map(|v| format!("{DLL_PREFIX}onnxruntime{v}{suffix}"))
                .into(),
        };
        for name in names
            .iter()
            .chain(["libonnxruntime_providers_shared.so".to_owned()].iter())
        {
            std::fs::write(folder.path().join(name), "").expect("a file");
        }
        let newest = newest_library(folder.path()).expect("a library");
        assert!(
            newest.to_string_lossy().contains("1.32.0")
                && !newest.to_string_lossy().ends_with("bak"),
            "{newest:?}"
        );
    }
}
