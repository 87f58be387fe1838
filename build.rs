//! Tells the executable from which commit it was built, so that `seqembed --version` can print it.
//!
//! Only in release builds: otherwise each commit would rebuild the whole crate. Archives without
//! git name the commit in `.cargo_vcs_info.json` (packages of Cargo) or in `SEQEMBED_COMMIT`
//! (containers). If there is none of these, only the version is printed.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// Digits of a commit that are printed.
const DIGITS: usize = 10;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SEQEMBED_COMMIT");
    if env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    let given = env::var("SEQEMBED_COMMIT").ok();
    let commit = given.filter(|commit| !commit.is_empty()).or_else(packaged);
    if let Some(commit) = commit.or_else(checked_out) {
        let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
        println!("cargo::rustc-env=SEQEMBED_VERSION={version} ({commit})");
    }
}

/// The commit in a package made by `cargo package`.
fn packaged() -> Option<String> {
    let text = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = text.split_once("\"sha1\"")?;
    let commit = rest.split('"').nth(1)?;
    commit.get(..DIGITS).map(str::to_owned)
}

/// The commit that is checked out, marked `-dirty` if tracked files differ from it.
fn checked_out() -> Option<String> {
    // The repository around an unpacked archive is another one.
    if !Path::new(".git").exists() {
        return None;
    }
    for path in [".git/HEAD", ".git/index", "Cargo.lock", "src", "onnx"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let run = Command::new("git")
        .args(["describe", "--always", "--dirty", "--exclude=*"])
        .arg(format!("--abbrev={DIGITS}"))
        .output()
        .ok()?;
    let text = String::from_utf8(run.stdout).ok()?;
    let commit = text.trim();
    (run.status.success() && !commit.is_empty()).then(|| commit.to_owned())
}
