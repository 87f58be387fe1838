//! `--device` and `doctor` on machines with GPUs, as far as that goes without one: a driver that is
//! made up for the test shows them, and libraries laid out as the wheels have them stand in for
//! ONNX Runtime's CUDA provider.
//!
//! Needs a C compiler, as any build with Rust does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use crate::common::interrupted::copy;
use crate::common::{self, DONE, WRONG, assert_run, exported, text};
use tempfile::TempDir;

/// The machine refused something.
const FAILED: i32 = 1;

/// What is advised where the driver serves CUDA 12, and CUDA 13.
const CUDA_12: &str = "pip install 'onnxruntime-gpu[cuda,cudnn]==1.26.0'";
const CUDA_13: &str = "pip install 'onnxruntime-gpu[cuda]==1.31.*' 'nvidia-cublas~=13.0'";

/// What seqembed asks of the driver. `GPUS` is how many there are, the second one having the most
/// memory free; `CUDA` is the version.
const DRIVER: &str = r#"
#include <stdlib.h>
#include <string.h>
static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}
static long current;
int cuInit(unsigned flags) { return number("GPUS", 0) ? 0 : 100; }
int cuDriverGetVersion(int *version) { *version = number("CUDA", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = number("GPUS", 0); return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, "Imaginary H100", size);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? number("MAJOR", 9) : 0;
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 80l << 30; return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)current; return 0; }
int cuCtxSetCurrent(void *context) { current = (long)context; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    /* 2: out of memory, as when another process has all of it. */
    if (number("BROKEN", -1) == device) return 2;
    *context = (void *)(long)(device + 1);
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    *total = 80l << 30;
    *free = (current == 2 ? 70l : 10l) << 30;
    return 0;
}
"#;

/// Where the real ONNX Runtime is.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let run = common::seqembed(&["doctor", "--quick"]);
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    let path = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("library"));
    path.unwrap_or_else(|| panic!("the tests need an ONNX Runtime (`make test` gets one):\n{said}"))
        .trim()
        .into()
});

/// A copy of the model, apart from the one that all tests share: 16-bit weights are stored beside
/// it.
fn model() -> &'static Path {
    static MODEL: LazyLock<TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        copy(exported("esm2"), folder.path());
        folder
    });
    MODEL.path()
}

/// A machine.
struct Machine {
    folder: TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Machine {
    /// With a driver that shows so many GPUs, and the ONNX Runtime for CPUs.
    fn new(gpus: usize) -> Self {
        let machine = Self {
            folder: tempfile::tempdir().unwrap(),
            variables: vec![("GPUS", gpus.to_string())],
        };
        machine.compile("driver/libcuda.so.1", DRIVER, &[]);
        let capi = machine.path("site-packages/onnxruntime/capi");
        fs::create_dir_all(&capi).unwrap();
        // No link that could be followed to where it came from.
        let library = capi.join("libonnxruntime.so.1.32.0");
        if fs::hard_link(&*LIBRARY, &library).is_err() {
            fs::copy(&*LIBRARY, &library).unwrap();
        }
        fs::write(machine.path("a.faa"), ">a\nMKVLA\n").unwrap();
        machine
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a shared library from C.
    fn compile(&self, name: &str, source: &str, needs: &[&Path]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let code = self.path("code.c");
        fs::write(&code, source).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wl,--no-as-needed", "-o"])
            .args([&path, &code])
            .arg(format!("-Wl,-soname,{name}"))
            .args(needs)
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
    }

    /// A CUDA provider beside ONNX Runtime that needs cuBLAS of CUDA 13, which lies in `folder`.
    fn provider(&self, folder: &str) {
        self.provider_for(13, folder);
    }

    /// The same, of another CUDA.
    fn provider_for(&self, major: u32, folder: &str) {
        let cublas = format!("{folder}/libcublas.so.{major}");
        self.compile(&cublas, "int cublas;", &[]);
        let provider = "site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so";
        self.compile(provider, "int provider;", &[&self.path(&cublas)]);
    }

    fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(common::executable());
        command
            .args(arguments)
            .args([
                "--ort-lib",
                text(&self.path("site-packages/onnxruntime/capi")),
            ])
            .env("LD_LIBRARY_PATH", self.path("driver"))
            .env_remove("CUDA_VISIBLE_DEVICES")
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.output().unwrap()
    }

    fn embed(&self, device: &str) -> Output {
        let (file, out) = (self.path("a.faa"), self.path("out"));
        let model = text(model());
        let arguments = ["embed", text(&file), "-m", model, "-o", text(&out)];
        self.command(&[&arguments[..], &["--device", device]].concat())
    }

    /// What `doctor` prints.
    fn doctor(&self) -> String {
        String::from_utf8(self.command(&["doctor", "--quick"]).stdout).unwrap()
    }
}

/// This machine has no driver, or one that the test can't take away.
fn has_driver() -> bool {
    Path::new("/proc/driver/nvidia").exists()
}

#[test]
fn without_a_driver_auto_is_the_cpu_and_cuda_an_error() {
    if has_driver() {
        return;
    }
    let machine = Machine::new(1);
    fs::remove_file(machine.path("driver/libcuda.so.1")).unwrap();
    for device in ["cuda", "cuda:1", "cuda:0,1", "cuda:all"] {
        let run = machine.embed(device);
        assert_run(&run, FAILED, &["no NVIDIA driver", "libcuda.so.1", "--nv"]);
        assert!(!machine.path("out/a.parquet").exists());
    }
    let auto = machine.embed("auto");
    assert_run(
        &auto,
        DONE,
        &["device: cpu (no NVIDIA driver was found on this machine)"],
    );
    assert!(machine.doctor().contains("none (no NVIDIA driver found)"));
}

#[test]
fn a_runtime_for_cpus_is_named_with_the_command_for_the_other() {
    let machine = Machine::new(2);
    let helps = ["is the CPU build", CUDA_13];
    assert_run(&machine.embed("cuda"), FAILED, &helps);
    // Nothing was asked for: the CPU, and why.
    let auto = machine.embed("auto");
    assert_run(&auto, DONE, &["device: cpu (", helps[0], helps[1]]);
    let doctor = machine.doctor();
    for line in [
        "cuda:1 Imaginary H100, compute capability 9.0, 70.00 GiB of 80.00 GiB free",
        helps[0],
        helps[1],
    ] {
        assert!(doctor.contains(line), "`{line}` is not in:\n{doctor}");
    }
    // A driver that CUDA 13 is too new for is not led there.
    let machine = machine.with("CUDA", "12040");
    assert_run(&machine.embed("cuda"), FAILED, &[helps[0], CUDA_12]);
}

#[test]
fn a_missing_library_of_cuda_is_named() {
    for (major, advice) in [(13, CUDA_13), (12, CUDA_12)] {
        let machine = Machine::new(1);
        machine.provider_for(major, "gone");
        fs::remove_dir_all(machine.path("gone")).unwrap();
        let library = format!("libcublas.so.{major}");
        let said = [&library, advice, "module load"];
        assert_run(&machine.embed("cuda:0"), FAILED, &said);
    }
}

/// What pip would install: names and versions; none, and why is printed, where no index can be
/// reached.
fn resolved(requirements: &[String]) -> Option<Vec<(String, String)>> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let ask = |what: &[&str]| {
        Command::new(&python)
            .args([
                "-m",
                "pip",
                "install",
                "--disable-pip-version-check",
                "--quiet",
            ])
            .args(["--dry-run", "--report", "-", "--target", "nowhere"])
            .args(["--only-binary", ":all:", "--python-version", "3.12"])
            .args(["--platform", "manylinux_2_28_x86_64"])
            .args(["--platform", "manylinux_2_27_x86_64"])
            .args(["--platform", "manylinux2014_x86_64", "--retries", "1"])
            .args(what)
            .output()
            .unwrap()
    };
    let wanted: Vec<&str> = requirements.iter().map(String::as_str).collect();
    let answer = ask(&wanted);
    if !answer.status.success() {
        let said = String::from_utf8_lossy(&answer.stderr);
        let other = ask(&["--no-deps", "packaging"]);
        assert!(
            !other.status.success(),
            "pip install {requirements:?}: {said}"
        );
        eprintln!("SKIPPED: pip reaches no index, so no advice is resolved: {said}");
        return None;
    }
    let report: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    let packages = report["install"].as_array().unwrap().iter().map(|package| {
        let about = |key: &str| package["metadata"][key].as_str().unwrap().to_owned();
        (about("name"), about("version"))
    });
    Some(packages.collect())
}

/// What a provider needs, and the wheel that holds it. `readelf -d` of the wheels' own
/// `libonnxruntime_providers_cuda.so` tells the former.
const NEEDED_12: [(&str, &str, &str); 6] = [
    ("the provider", "onnxruntime-gpu", "1.26."),
    (
        "libcublas.so.12, libcublasLt.so.12",
        "nvidia-cublas-cu12",
        "12.",
    ),
    ("libcudart.so.12", "nvidia-cuda-runtime-cu12", "12."),
    ("libcudnn.so.9", "nvidia-cudnn-cu12", "9."),
    ("libcufft.so.11", "nvidia-cufft-cu12", "11."),
    ("libcurand.so.10", "nvidia-curand-cu12", "10."),
];
const NEEDED_13: [(&str, &str, &str); 5] = [
    ("the provider", "onnxruntime-gpu", "1.31."),
    ("libcublas.so.13, libcublasLt.so.13", "nvidia-cublas", "13."),
    ("libcudart.so.13", "nvidia-cuda-runtime", "13."),
    ("libcurand.so.10", "nvidia-curand", "10."),
    ("libnvrtc.so.13", "nvidia-cuda-nvrtc", "13."),
];

/// What wheels say that they require, by extra; from their `METADATA`.
const REQUIRED: [(&str, &str, &[&str]); 6] = [
    (
        "onnxruntime-gpu==1.26.0",
        "cuda",
        &[
            "nvidia-cuda-nvrtc-cu12",
            "nvidia-cuda-runtime-cu12",
            "nvidia-cufft-cu12",
            "nvidia-curand-cu12",
        ],
    ),
    ("onnxruntime-gpu==1.26.0", "cudnn", &["nvidia-cudnn-cu12"]),
    ("nvidia-cudnn-cu12", "", &["nvidia-cublas-cu12"]),
    (
        "onnxruntime-gpu==1.31.*",
        "cuda",
        &[
            "nvidia-cuda-nvrtc",
            "nvidia-cuda-runtime",
            "nvidia-cufft",
            "nvidia-curand",
        ],
    ),
    ("onnxruntime-gpu==1.31.*", "cudnn", &["nvidia-cudnn-cu13"]),
    ("nvidia-cudnn-cu13", "", &["nvidia-cublas"]),
];

/// The requirements that are advised where a driver serves a version of CUDA, as a shell takes
/// them: words in quotes.
fn advised(cuda: &str) -> Vec<String> {
    let run = Machine::new(1).with("CUDA", cuda).embed("cuda");
    let said = String::from_utf8(run.stderr).unwrap();
    let (_, advice) = said.split_once("pip install ").unwrap();
    let words = advice
        .split('\'')
        .take_while(|word| !word.starts_with(" ("));
    let words = words.map(str::trim).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

#[test]
fn what_is_advised_brings_all_that_the_provider_needs() {
    for (driver, needed) in [("12040", &NEEDED_12[..]), ("13000", &NEEDED_13[..])] {
        let advised = advised(driver);
        let mut brought: Vec<String> = Vec::new();
        for word in &advised {
            let (name, rest) = word.split_at(word.find(['[', '=', '~', '>']).unwrap());
            let (extras, version) = match rest.strip_prefix('[') {
                Some(rest) => rest.split_once(']').unwrap(),
                None => ("", rest),
            };
            brought.push(name.to_owned());
            for extra in extras.split(',') {
                let whole = format!("{name}{version}");
                let required = REQUIRED
                    .iter()
                    .filter(|entry| (entry.0, entry.1) == (&whole, extra));
                brought.extend(
                    required
                        .flat_map(|entry| entry.2)
                        .map(|&name| name.to_owned()),
                );
            }
        }
        let also = REQUIRED
            .iter()
            .filter(|entry| brought.iter().any(|name| name == entry.0));
        let also: Vec<_> = also
            .flat_map(|entry| entry.2)
            .map(|&name| name.to_owned())
            .collect();
        brought.extend(also);
        for (library, name, _) in needed {
            let there = brought.iter().any(|other| other == name);
            assert!(
                there,
                "nothing brings {library} ({name}): {advised:?}: {brought:?}"
            );
        }
    }
}

#[test]
#[ignore = "pip downloads 3 GB to resolve it, where the index tells nothing about a wheel: make test-install"]
fn pip_resolves_what_is_advised() {
    for (driver, needed) in [("12040", &NEEDED_12[..]), ("13000", &NEEDED_13[..])] {
        let advised = advised(driver);
        let Some(packages) = resolved(&advised) else {
            return;
        };
        for (library, name, version) in needed {
            let brings = packages
                .iter()
                .any(|package| package.0 == *name && package.1.starts_with(version));
            assert!(
                brings,
                "nothing brings {library} ({name} {version}): {advised:?}: {packages:?}"
            );
        }
    }
}

#[test]
fn cuda_libraries_in_wheels_are_found_without_a_search_path() {
    for folder in ["nvidia/cu13/lib", "nvidia/cublas/lib"] {
        let machine = Machine::new(1);
        machine.provider(&format!("site-packages/{folder}"));
        let doctor = machine.doctor();
        let provider =
            machine.path("site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so");
        let line = format!("{} (CUDA 13)", provider.display());
        assert!(doctor.contains(&line), "`{line}` is not in:\n{doctor}");
    }
}

#[test]
fn an_old_driver_is_told_what_it_lacks() {
    let machine = Machine::new(1).with("CUDA", "12040");
    machine.provider("site-packages/nvidia/cu13/lib");
    let said = [
        "built for CUDA 13",
        "CUDA 12.4 at most",
        "Update the driver",
        CUDA_12,
    ];
    assert_run(&machine.embed("cuda"), FAILED, &said);
}

#[test]
fn the_gpu_that_is_chosen_works_and_has_the_most_memory() {
    let machine = Machine::new(3);
    machine.provider("site-packages/nvidia/cu13/lib");
    let said = |device: &str| String::from_utf8(machine.embed(device).stderr).unwrap();
    assert!(
        said("auto").contains("device: cuda:1 Imaginary H100, 70.00 GiB free"),
        "{}",
        said("auto")
    );
    assert!(said("cuda:2,0").contains("device: cuda:2 Imaginary H100, 10.00 GiB free; cuda:0"));
    assert!(said("cuda:all").contains("; cuda:2 Imaginary H100"));
    let run = machine.embed("cuda:7");
    assert_run(
        &run,
        FAILED,
        &["--device cuda:7", "the machine has 3, cuda:0 to cuda:2"],
    );

    let broken = Machine::new(2).with("BROKEN", "1");
    broken.provider("site-packages/nvidia/cu13/lib");
    let said = String::from_utf8(broken.embed("auto").stderr).unwrap();
    assert!(said.contains("device: cuda:0"), "{said}");
    assert_run(
        &broken.embed("cuda:1"),
        FAILED,
        &["CUDA_ERROR_OUT_OF_MEMORY"],
    );

    let old = Machine::new(1).with("MAJOR", "6");
    old.provider("site-packages/nvidia/cu13/lib");
    assert_run(
        &old.embed("cuda"),
        FAILED,
        &["compute capability is 6.0", "7.5"],
    );
}

#[test]
fn gpus_that_are_hidden_are_said_to_be() {
    let machine = Machine::new(0);
    assert_run(
        &machine.embed("cuda"),
        FAILED,
        &["reports no GPU", "nvidia-smi -L"],
    );
    let machine = machine.with("CUDA_VISIBLE_DEVICES", "9");
    assert_run(
        &machine.embed("cuda"),
        FAILED,
        &["CUDA_VISIBLE_DEVICES is \"9\""],
    );
    assert_run(
        &machine.embed("auto"),
        DONE,
        &["device: cpu (", "CUDA_VISIBLE_DEVICES"],
    );
}

#[test]
fn a_device_that_means_nothing_is_a_usage_error() {
    let machine = Machine::new(1);
    for device in [
        "gpu", "cuda:", "cuda:x", "cuda:0,", "cuda:0,0", "cuda:1-3", "CPU0",
    ] {
        assert_run(&machine.embed(device), WRONG, &["--device"]);
    }
}
