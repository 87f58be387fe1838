//! `pip install .` in a fresh environment: what comes with it, and that the executable finds ONNX
//! Runtime with no variable set.
//!
//! `make test-install` runs it. The wheel is built with the profile of the tests (`--profile dev`).
//! Where pip can't install, the test says so and checks nothing.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn said(run: &Output) -> String {
    String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr)
}

/// Tells, past the test harness, that nothing is checked.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: pip can't install: {why}");
}

/// A fresh environment into which pip has installed the repository; none where it can't.
fn installed(folder: &TempDir) -> Option<PathBuf> {
    let tools = repository().join(".venv-maturin");
    let made = Command::new("sh")
        .arg(repository().join("scripts/python-env.sh"))
        .args([&tools, &repository().join("tests/maturin.txt")])
        .output()
        .unwrap();
    if !made.status.success() {
        skipped(&said(&made));
        return None;
    }
    let wheels = folder.path().join("wheels");
    // Without what Cargo tells this test: build scripts would run again for it.
    let cargo = std::env::vars_os().map(|(name, _)| name);
    let cargo = cargo.filter(|name| name.to_string_lossy().starts_with("CARGO_"));
    let mut build = Command::new(tools.join("bin/maturin"));
    for name in cargo.filter(|name| name != "CARGO_HOME") {
        build.env_remove(name);
    }
    let build = build
        .args(["build", "--locked", "--profile", "dev", "--out"])
        .arg(&wheels)
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(build.status.success(), "{}", said(&build));
    let wheel = fs::read_dir(&wheels).unwrap().next().unwrap().unwrap();

    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let fresh = folder.path().join("fresh");
    let venv = Command::new(&python)
        .args(["-m", "venv", "--without-pip"])
        .arg(&fresh)
        .output()
        .unwrap();
    assert!(venv.status.success(), "{}", said(&venv));
    let pip = Command::new(&python)
        .args(["-m", "pip", "--disable-pip-version-check", "--python"])
        .arg(fresh.join("bin/python"))
        .args(["install", "--quiet"])
        .arg(wheel.path())
        .output()
        .unwrap();
    if !pip.status.success() {
        skipped(&said(&pip));
        return None;
    }
    Some(fresh)
}

#[test]
#[ignore = "it builds once more: make test-install"]
fn pip_brings_an_executable_that_finds_its_library() {
    let folder = tempfile::tempdir().unwrap();
    let Some(fresh) = installed(&folder) else {
        return;
    };
    let doctor = Command::new(fresh.join("bin/seqembed"))
        .arg("doctor")
        .env_clear()
        .env("HOME", folder.path())
        .output()
        .unwrap();
    let text = said(&doctor);
    assert!(doctor.status.success(), "{text}");
    assert!(
        text.contains("the Python packages of the executable's environment"),
        "{text}"
    );
    let library = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("library"))
        .unwrap();
    let here = fs::canonicalize(&fresh).unwrap();
    assert!(library.trim().starts_with(here.to_str().unwrap()), "{text}");

    // What the extra asks for never has the same version as the base: the two share a folder.
    let listing = Command::new("sh")
        .args([
            "-c",
            "cat \"$0\"/lib/python*/site-packages/seqembed-*.dist-info/METADATA",
        ])
        .arg(&fresh)
        .output()
        .unwrap();
    let metadata = said(&listing);
    let required = |name: &str| {
        let prefix = format!("Requires-Dist: {name}");
        let line = metadata.lines().find_map(|line| line.strip_prefix(&prefix));
        line.unwrap_or_else(|| panic!("{name}: {metadata}"))
            .to_owned()
    };
    let gpu = required("onnxruntime-gpu");
    let series = gpu
        .split("==")
        .nth(1)
        .unwrap()
        .split(&[' ', ';'][..])
        .next()
        .unwrap();
    assert!(
        gpu.contains("extra == 'gpu'") || gpu.contains("extra == \"gpu\""),
        "{gpu}"
    );
    assert!(
        required("onnxruntime>").contains(&format!("!={series}")),
        "{metadata}"
    );
    assert!(
        metadata.contains(&format!("\nVersion: {}\n", env!("CARGO_PKG_VERSION"))),
        "{metadata}"
    );
}
