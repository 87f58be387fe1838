//! `seqembed doctor`: reports what is installed on this machine, what is missing, and the command
//! that fixes it. `check.rs` tests the devices.

use std::cell::RefCell;
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::BinaryBytes;
use sysinfo::System;

use super::disk::{room, writable};
use super::{check, told};
use crate::engine::cuda::driver::{self, GpuError};
use crate::engine::cuda::provider;
use crate::engine::runtime::Runtime;
use crate::engine::select::{self, SelectedDevice};
use crate::hub::Hub;
use crate::models;
use crate::text::counted;
use crate::threads;

/// Check the installation: show what was found on this machine and what is missing
///
/// Runs a small batch on each device and compares the results with those of ONNX Runtime's own
/// operators on the CPU. The exit code is 1 if no ONNX Runtime can be loaded, or if a device
/// computes wrong results.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// The ONNX Runtime library, or the folder that contains it [default: searched for]
    #[arg(long, value_name = "PATH")]
    ort_lib: Option<PathBuf>,

    /// Do not run anything on the devices
    #[arg(long)]
    quick: bool,
}

/// Prints what was found, and the problems.
///
/// # Errors
/// If standard output cannot be written. Problems of the machine are no errors but part of the
/// report.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    report.line("seqembed", env!("CARGO_PKG_VERSION"));
    let mut onnxruntime = Runtime::new(args.ort_lib.as_deref());
    let found = runtime(&mut report, &mut onnxruntime);
    processor(&mut report);
    memory(&mut report);
    let gpus = gpus(&mut report, &mut onnxruntime);
    if found && !args.quick {
        check(&mut report, &mut onnxruntime, &gpus);
    }
    caches(&mut report);
    models(&mut report);

    let verdict = if report.problems.is_empty() {
        "Nothing is missing.\n"
    } else {
        report.problems.as_str()
    };
    super::print(&format!("{}\n{verdict}", report.lines))?;
    Ok(if report.fatal {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The lines to print: what was found, and the problems.
#[derive(Default)]
struct Report {
    lines: String,
    problems: String,
    /// Whether seqembed cannot work at all because of the problems.
    fatal: bool,
}

impl Report {
    fn line(&mut self, label: &str, value: impl std::fmt::Display) {
        self.lines
            .push_str(format!("{label:<16} {value}").trim_end());
        self.lines.push('\n');
    }

    /// Adds a problem that does not prevent all work, with the command that fixes it.
    fn warn(&mut self, problem: &str) {
        self.problems.extend(["WARNING: ", problem, "\n"]);
    }

    fn missing(&mut self, problem: &str) {
        self.problems.extend(["MISSING: ", problem, "\n"]);
        self.fatal = true;
    }
}

/// Reports on ONNX Runtime, and returns whether it was found.
fn runtime(report: &mut Report, runtime: &mut Runtime) -> bool {
    match runtime.locate() {
        Ok(found) => {
            report.line("ONNX Runtime", &found.version);
            report.line("  library", found.path.display());
            report.line("  found by", &found.how);
            report.line("  providers", providers().join(", "));
            true
        }
        Err(error) => {
            report.line("ONNX Runtime", "not found");
            report.missing(&error.to_string());
            false
        }
    }
}

/// The execution providers of the loaded library, without the suffix `ExecutionProvider`.
fn providers() -> Vec<String> {
    let api = ort::api();
    let mut names = std::ptr::null_mut();
    let mut count = 0;
    // SAFETY: the library is loaded, and both places outlive the call. The status is null on
    // success, which is all that this call gives; what it allocated is copied and then given back
    // once.
    unsafe {
        if !(api.GetAvailableProviders)(&raw mut names, &raw mut count)
            .0
            .is_null()
            || names.is_null()
        {
            return Vec::new();
        }
        let found = (0..usize::try_from(count).unwrap_or(0))
            .map(|i| {
                CStr::from_ptr(*names.add(i))
                    .to_string_lossy()
                    .trim_end_matches("ExecutionProvider")
                    .to_owned()
            })
            .collect();
        let _ = (api.ReleaseAvailableProviders)(names, count);
        found
    }
}

fn processor(report: &mut Report) {
    let mut system = System::new();
    system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    let name = system
        .cpus()
        .first()
        .map(|cpu| cpu.brand().trim().to_owned())
        .filter(|name| !name.is_empty());
    report.line(
        "CPU",
        name.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
    );
    let cores =
        System::physical_core_count().map_or_else(|| "?".to_owned(), |cores| cores.to_string());
    report.line(
        "  cores",
        format!(
            "{cores} ({} in the machine)",
            counted(system.cpus().len() as u64, "thread")
        ),
    );
    report.line("  vectors", simd());
    report.line(
        "  threads",
        format!("{} available to this process", threads::available()),
    );
}

/// The widest SIMD instruction set of the CPU.
fn simd() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512vnni") {
            "AVX-512 with VNNI"
        } else if is_x86_feature_detected!("avx512f") {
            "AVX-512"
        } else if is_x86_feature_detected!("avx2") {
            "AVX2"
        } else {
            "SSE (slow: no AVX2)"
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        "NEON"
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        "unknown"
    }
}

fn memory(report: &mut Report) {
    let mut system = System::new();
    system.refresh_memory();
    let (total, available) = (system.total_memory(), system.available_memory());
    report.line(
        "memory",
        format!(
            "{}, {} available",
            BinaryBytes(total),
            BinaryBytes(available)
        ),
    );
    let limit = memory_limit().filter(|&limit| limit < total);
    if let Some(limit) = limit {
        report.line(
            "  limit",
            format!("{} (of this job or container)", BinaryBytes(limit)),
        );
    }
    let usable = limit.unwrap_or(total).min(available);
    if usable < 1 << 30 {
        let text = format!(
            "only {} of memory are available, and even ESM-2 8M needs about 1 GiB",
            BinaryBytes(usable)
        );
        report.warn(&text);
    }
}

/// The smallest memory limit in bytes among this process's control groups and their parents, as set
/// by SLURM and containers.
fn memory_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups
        .lines()
        .filter_map(|group| {
            let mut fields = group.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let (root, file) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                list if list.split(',').any(|name| name == "memory") => {
                    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
                }
                _ => return None,
            };
            // In a container, the path may be the host's; then only the file in the root exists.
            let folder = Path::new(root).join(path.trim_start_matches('/'));
            folder
                .ancestors()
                .take_while(|folder| folder.starts_with(root))
                .filter_map(|folder| {
                    std::fs::read_to_string(folder.join(file))
                        .ok()?
                        .trim()
                        .parse::<u64>()
                        .ok()
                })
                .min()
        })
        .min()
}

/// Lists the GPUs, and returns the usable ones.
fn gpus(report: &mut Report, runtime: &mut Runtime) -> Vec<SelectedDevice> {
    let driver = match driver::driver() {
        Ok(driver) => driver,
        Err(GpuError::NoDriver) => {
            report.line("NVIDIA GPUs", "none (no NVIDIA driver found)");
            return Vec::new();
        }
        Err(error) => {
            report.line("NVIDIA GPUs", "none");
            report.warn(&error.to_string());
            return Vec::new();
        }
    };
    let version = std::fs::read_to_string("/sys/module/nvidia/version")
        .map(|version| format!("{}, ", version.trim()))
        .unwrap_or_default();
    report.line(
        "NVIDIA driver",
        format!("{version}CUDA {}.{}", driver.cuda.0, driver.cuda.1),
    );
    let mut usable = Vec::new();
    for (at, gpu) in driver.gpus.iter().enumerate() {
        let label = if at == 0 { "NVIDIA GPUs" } else { "" };
        let selected = select::gpu(&driver, gpu.number);
        let free = match &selected {
            Ok(SelectedDevice {
                gpu: Some((_, free)),
                ..
            }) => format!("{} of ", BinaryBytes(*free)),
            _ => String::new(),
        };
        report.line(
            label,
            format!(
                "cuda:{} {}, compute capability {}.{}, {free}{}{}",
                gpu.number,
                gpu.name,
                gpu.capability.0,
                gpu.capability.1,
                BinaryBytes(gpu.total_memory),
                if free.is_empty() { "" } else { " free" },
            ),
        );
        match selected {
            Ok(selected) => usable.push(selected),
            Err(error) => report.warn(&format!("cuda:{} is not usable: {error}", gpu.number)),
        }
    }
    let Ok(located) = runtime.locate() else {
        return Vec::new();
    };
    match provider::prepare(located, driver.cuda) {
        Ok(provider) => {
            let cuda = provider
                .cuda
                .map(|major| format!(" (CUDA {major})"))
                .unwrap_or_default();
            report.line("  provider", format!("{}{cuda}", provider.path.display()));
            usable
        }
        Err(error) => {
            report.line("  provider", "not usable");
            report.warn(&format!("the GPUs are not usable: {error}"));
            Vec::new()
        }
    }
}

/// Runs a small batch on each device.
fn check(report: &mut Report, runtime: &mut Runtime, gpus: &[SelectedDevice]) {
    // If the model cannot be written, that says nothing about the devices.
    let model = match check::Model::new() {
        Ok(model) => model,
        Err(error) => {
            report.line("check", "left out");
            report.warn(&format!(
                "the devices were not tested: {error:#}. Set TMPDIR to a writable folder (export \
                 TMPDIR=DIR)"
            ));
            return;
        }
    };
    let said = RefCell::new(Vec::new());
    let checks = check::run(&model, runtime, gpus, &|text| {
        said.borrow_mut().push(text.to_owned());
    });
    for text in said.into_inner() {
        report.warn(&text);
    }
    let checks = match checks {
        Ok(checks) => checks,
        Err(error) => {
            report.line("check", "failed");
            report.missing(&format!("the CPU is not usable: {}", told(error.as_ref())));
            return;
        }
    };
    for (at, check) in checks.iter().enumerate() {
        let label = if at == 0 { "check" } else { "" };
        match &check.result {
            Ok((cosine, milliseconds)) => {
                let verdict = if check.good { "good" } else { "WRONG" };
                report.line(
                    label,
                    format!(
                        "{}: {verdict}, cosine {cosine:.6} to ONNX Runtime's operators on the CPU, {milliseconds:.1} ms",
                        check.what
                    ),
                );
                if !check.good {
                    report.missing(&format!(
                        "{} gives other results than ONNX Runtime's own operators (cosine \
                         {cosine:.6}): do not use it, and please report this",
                        check.what
                    ));
                }
            }
            Err(error) => {
                report.line(label, format!("{}: failed", check.what));
                report.missing(&format!(
                    "{} is not usable: {}",
                    check.what,
                    told(error.as_ref())
                ));
            }
        }
    }
}

fn caches(report: &mut Report) {
    let own = models::cache();
    report.line("cache", describe(&own));
    if !writable(&own) {
        let text = format!(
            "{} is not writable: set SEQEMBED_CACHE to a writable folder (export \
             SEQEMBED_CACHE=DIR)",
            own.display()
        );
        report.warn(&text);
    }
    let hub = Hub::from_env();
    report.line("hub's cache", describe(hub.cache()));
    if !writable(hub.cache()) {
        let text = format!(
            "{} is not writable: its models can be used, but none can be downloaded. Set \
             HF_HUB_CACHE to a writable folder (export HF_HUB_CACHE=DIR)",
            hub.cache().display()
        );
        report.warn(&text);
    }
}

/// The path of a cache, its size, and the free space on its file system.
fn describe(folder: &Path) -> String {
    let size = if folder.is_dir() {
        BinaryBytes(size_of(folder)).to_string()
    } else {
        "not created yet".to_owned()
    };
    let room = room(folder)
        .map(|room| format!(", {room}"))
        .unwrap_or_default();
    format!("{} ({size}{room})", folder.display())
}

/// Total size in bytes of all files below a folder; links are not followed.
fn size_of(folder: &Path) -> u64 {
    let mut total = 0;
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => total += metadata.len(),
                Err(_) => {}
            }
        }
    }
    total
}

fn models(report: &mut Report) {
    let cached = models::cached();
    if cached.is_empty() {
        report.line(
            "models",
            "none exported yet (run seqembed fetch esm2_t6_8M_UR50D)",
        );
    }
    for (i, folder) in cached.iter().enumerate() {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        report.line(
            if i == 0 { "models" } else { "" },
            format!("{name} ({})", BinaryBytes(size_of(folder))),
        );
    }
}
