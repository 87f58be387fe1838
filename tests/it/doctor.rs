//! `seqembed doctor`, and how ONNX Runtime is found: in folders laid out as wheels, environments
//! and installations are.
//!
//! `ORT_DYLIB_PATH` (set by `make test`), or whatever `doctor` finds by itself, gives the library
//! that the folders link to.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use assert_cmd::Command;
use predicates::prelude::*;

use crate::common::{copy_executable, write_script};

/// A real library.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let output = Command::new(env!("CARGO_BIN_EXE_seqembed"))
        .args(["doctor", "--quick"])
        .output()
        .expect("doctor runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("library"))
        .map(|path| path.trim().into());
    found
        .unwrap_or_else(|| panic!("the tests need an ONNX Runtime (`make test` gets one):\n{text}"))
});

/// An empty home, with a copy of the executable in `bin`.
struct Scene {
    home: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(home.path().join("bin")).expect("a folder");
        let executable = Path::new(env!("CARGO_BIN_EXE_seqembed"));
        let here = home.path().join("bin/seqembed");
        if std::fs::hard_link(executable, &here).is_err() {
            copy_executable(executable, &here);
        }
        Self { home }
    }

    /// Puts the library at a path below the home.
    fn install(&self, path: &str) -> PathBuf {
        let path = self.home.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::os::unix::fs::symlink(&*LIBRARY, &path).expect("a link");
        path
    }

    /// `doctor` that knows nothing but this home, and only looks.
    fn doctor(&self) -> Command {
        let mut command = self.whole_doctor();
        command.arg("--quick");
        command
    }

    /// The same, trying the devices too.
    fn whole_doctor(&self) -> Command {
        let mut command = Command::new(self.home.path().join("bin/seqembed"));
        command
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", self.home.path().join("bin"))
            .arg("doctor");
        command
    }
}

fn found_by(how: &str) -> impl Predicate<str> + use<> {
    let how = how.to_owned();
    predicate::function(move |text: &str| {
        text.lines().any(|line| {
            line.trim()
                .strip_prefix("found by")
                .is_some_and(|by| by.trim() == how)
        })
    })
}

fn says(text: &str) -> impl Predicate<str> + use<> {
    predicate::str::contains(text)
}

#[test]
fn it_reports_the_machine() {
    let scene = Scene::new();
    scene.install("bin/libonnxruntime.so");
    let mut all = scene.whole_doctor().assert().success();
    all = all.stdout(says("cpu fp32: good, cosine 1.000000"));
    for line in [
        "seqembed",
        "ONNX Runtime",
        "library",
        "providers",
        "CPU",
        "threads",
        "memory",
        "check",
        "cache",
        "hub's cache",
    ] {
        all =
            all.stdout(predicate::str::is_match(format!(r"(?m)^ *{line} +\S")).expect("a pattern"));
    }
    all.stdout(says(env!("CARGO_PKG_VERSION")).and(says("Nothing is missing.")));
}

#[test]
fn without_a_runtime_it_lists_what_was_tried_and_the_command() {
    let scene = Scene::new();
    let tried = [
        "--ort-lib",
        "ORT_DYLIB_PATH",
        "next to the executable",
        "$PATH",
        "the user's Python packages",
        "`python3`",
    ];
    let mut failed = scene.doctor().assert().code(1);
    for place in tried {
        failed = failed.stdout(says(place));
    }
    // Also where an older one is installed, pip does something then.
    failed.stdout(says("pip install -U 'onnxruntime>=1.24'").and(says("Python 3.11 or newer")));
}

#[test]
fn each_place_is_found() {
    let wheel = "site-packages/onnxruntime/capi/libonnxruntime.so.1.32.0";
    let places = [
        ("bin/libonnxruntime.so.1", "next to the executable", None),
        ("bin/lib/libonnxruntime.so", "next to the executable", None),
        ("lib/libonnxruntime.so", "next to the executable", None),
        (
            &format!("lib/python3.12/{wheel}"),
            "the Python packages of the executable's environment",
            None,
        ),
        (
            &format!("venv/lib/python3.12/{wheel}"),
            "$VIRTUAL_ENV",
            Some(("VIRTUAL_ENV", "venv")),
        ),
        (
            &format!("conda/lib/python3.12/{wheel}"),
            "$CONDA_PREFIX",
            Some(("CONDA_PREFIX", "conda")),
        ),
        (
            "conda/lib/libonnxruntime.so",
            "$CONDA_PREFIX",
            Some(("CONDA_PREFIX", "conda")),
        ),
        (
            &format!("a/{wheel}"),
            "$PYTHONPATH",
            Some(("PYTHONPATH", "a/site-packages")),
        ),
        (
            &format!(".local/lib/python3.9/{wheel}"),
            "the user's Python packages",
            None,
        ),
        (
            "more/libonnxruntime.so",
            "$LD_LIBRARY_PATH",
            Some(("LD_LIBRARY_PATH", "more")),
        ),
    ];
    for (path, how, variable) in places {
        let scene = Scene::new();
        scene.install(path);
        let mut doctor = scene.doctor();
        if let Some((name, value)) = variable {
            doctor.env(name, scene.home.path().join(value));
        }
        doctor.assert().success().stdout(found_by(how));
    }
}

#[test]
fn a_python_in_the_path_is_looked_into_without_running_it() {
    let scene = Scene::new();
    scene.install("usr/lib/python3.11/dist-packages/onnxruntime/capi/libonnxruntime.so.1.32.0");
    // A python3 that would give no answer, and leaves a trace if it is asked for one.
    let python = scene.home.path().join("usr/bin/python3");
    std::fs::create_dir(scene.home.path().join("usr/bin")).expect("a folder");
    let script = format!("#!/bin/sh\n: > {}/asked\n", scene.home.path().display());
    write_script(&python, &script);
    scene
        .doctor()
        .env("PATH", scene.home.path().join("usr/bin"))
        .assert()
        .success()
        .stdout(found_by("the Python packages of `python3` in $PATH"));
    assert!(!scene.home.path().join("asked").exists());
}

#[test]
fn python_is_asked_last() {
    let scene = Scene::new();
    let library = scene.install("odd/place/onnxruntime/capi/libonnxruntime.so.1.32.0");
    let package = library.parent().and_then(Path::parent).expect("a package");
    let python = scene.home.path().join("bin/python3");
    write_script(&python, &format!("#!/bin/sh\necho {}\n", package.display()));
    scene
        .doctor()
        .assert()
        .success()
        .stdout(found_by("the package that `python3` finds"));
}

#[test]
fn the_order_is_option_variable_executable_wheel() {
    let scene = Scene::new();
    let variable = scene.install("variable/libonnxruntime.so");
    let option = scene.install("option/libonnxruntime.so.1.32.0");
    scene.install("bin/libonnxruntime.so");
    scene.install("venv/lib/python3.12/site-packages/onnxruntime/capi/libonnxruntime.so.1.32.0");
    let doctor = || {
        let mut doctor = scene.doctor();
        doctor.env("VIRTUAL_ENV", scene.home.path().join("venv"));
        doctor
    };
    doctor()
        .assert()
        .success()
        .stdout(found_by("next to the executable"));
    doctor()
        .env("ORT_DYLIB_PATH", &variable)
        .assert()
        .success()
        .stdout(found_by("ORT_DYLIB_PATH"));
    let folder = option.parent().expect("a folder");
    for option in [&option, folder] {
        let mut both = doctor();
        both.env("ORT_DYLIB_PATH", &variable)
            .arg("--ort-lib")
            .arg(option);
        both.assert().success().stdout(found_by("--ort-lib"));
    }
}

#[test]
fn where_both_wheels_share_a_folder_the_one_for_gpus_is_taken() {
    let packages = "lib/python3.12/site-packages";
    let cpu = format!("{packages}/onnxruntime/capi/libonnxruntime.so.1.32.0");
    let gpu = format!("{packages}/onnxruntime/capi/libonnxruntime.so.1.31.1");
    // Both are links to one file: it is a broken one that tells which was tried first.
    for (broken, other, wheel) in [
        (&gpu, &cpu, Some("onnxruntime_gpu-1.31.1.dist-info")),
        (&cpu, &gpu, Some("onnxruntime-1.32.0.dist-info")),
        (&cpu, &gpu, None),
    ] {
        let scene = Scene::new();
        scene.install(other);
        let broken = scene.home.path().join(broken);
        std::fs::write(&broken, "no library").expect("a file");
        if let Some(wheel) = wheel {
            std::fs::create_dir(scene.home.path().join(packages).join(wheel)).expect("a folder");
        }
        let text = format!("{} exists, but", broken.display());
        scene.doctor().assert().code(1).stdout(says(&text));
    }
}

#[test]
fn what_was_asked_for_is_not_passed_over() {
    let scene = Scene::new();
    scene.install("bin/libonnxruntime.so");
    let broken = scene.home.path().join("broken.so");
    std::fs::write(&broken, "no library").expect("a file");
    for wrong in [
        broken.clone(),
        scene.home.path().join("nowhere"),
        scene.home.path().to_path_buf(),
    ] {
        let named =
            || says(&wrong.to_string_lossy()).and(says("pip install -U 'onnxruntime>=1.24'"));
        scene
            .doctor()
            .arg("--ort-lib")
            .arg(&wrong)
            .assert()
            .code(1)
            .stdout(named());
        scene
            .doctor()
            .env("ORT_DYLIB_PATH", &wrong)
            .assert()
            .code(1)
            .stdout(named());
    }
    // A library that is none of ONNX Runtime's.
    let other = Path::new("/lib/x86_64-linux-gnu/libc.so.6");
    if other.exists() {
        scene
            .doctor()
            .arg("--ort-lib")
            .arg(other)
            .assert()
            .code(1)
            .stdout(says("OrtGetApiBase"));
    }
}

#[test]
fn a_broken_library_that_was_only_found_is_passed_over_and_named() {
    let scene = Scene::new();
    std::fs::write(
        scene.home.path().join("bin/libonnxruntime.so"),
        "no library",
    )
    .expect("a file");
    scene
        .doctor()
        .assert()
        .code(1)
        .stdout(says("libonnxruntime.so exists, but"));
    scene.install("venv/lib/python3.12/site-packages/onnxruntime/capi/libonnxruntime.so.1.32.0");
    let mut doctor = scene.doctor();
    doctor.env("VIRTUAL_ENV", scene.home.path().join("venv"));
    doctor.assert().success().stdout(found_by("$VIRTUAL_ENV"));
}

#[test]
fn the_version_needs_none_of_it() {
    let scene = Scene::new();
    let mut command = Command::new(scene.home.path().join("bin/seqembed"));
    command
        .env_clear()
        .env("ORT_DYLIB_PATH", "/nowhere")
        .arg("--version");
    command
        .assert()
        .success()
        .stdout(format!("seqembed {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_cache_that_cannot_be_written_is_told_with_what_helps() {
    let scene = Scene::new();
    scene.install("bin/libonnxruntime.so");
    let mut doctor = scene.doctor();
    // No folder can be made below a file that is none, not even by root.
    doctor.env("SEQEMBED_CACHE", "/proc/self/nothing");
    doctor
        .assert()
        .success()
        .stdout(says("WARNING").and(says("SEQEMBED_CACHE")));
}

#[test]
fn the_room_is_that_of_the_folders_own_file_system() {
    use std::process::Command;
    let scene = Scene::new();
    scene.install("bin/libonnxruntime.so");
    let mount = scene.home.path().join("small");
    std::fs::create_dir(&mount).expect("a folder");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"])
        .arg(&mount)
        .output();
    if !mounted.is_ok_and(|run| run.status.success()) {
        eprintln!("SKIPPED: this process may not mount a file system");
        return;
    }
    let mut doctor = scene.doctor();
    // It would be made there.
    doctor.env("SEQEMBED_CACHE", mount.join("not/yet"));
    let told = doctor.output().expect("doctor runs");
    let unmounted = Command::new("umount").arg("-l").arg(&mount).status();
    assert!(unmounted.expect("umount runs").success());
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let line = told
        .lines()
        .find(|line| line.starts_with("cache"))
        .unwrap_or_default();
    assert!(line.ends_with("(not created yet, 3.00 MiB free)"), "{told}");
}

/// As in a container whose root is read-only: a run works there, and so does the check, in memory.
#[test]
fn without_a_folder_for_temporary_files_nothing_is_called_missing() {
    let scene = Scene::new();
    scene.install("bin/libonnxruntime.so");
    let mut doctor = scene.whole_doctor();
    doctor.env("TMPDIR", "/proc/self/nothing");
    let told = doctor.output().expect("doctor runs");
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.status.success() && !text.contains("MISSING"), "{text}");
    let checked = text.contains("cpu fp32: good");
    assert_eq!(checked, Path::new("/dev/shm").is_dir(), "{text}");
    assert!(
        checked || text.contains("the devices were not tested"),
        "{text}"
    );
}
