//! `scripts/release.py`: all files that have the version of seqembed have the same one, and a new
//! one is written into all of them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn release(folder: &Path, arguments: &[&str]) -> Output {
    let python = std::env::var("SEQEMBED_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    Command::new(python)
        .arg(folder.join("scripts/release.py"))
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn assert_done(run: &Output) {
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{stderr}");
}

#[test]
fn all_files_have_the_version_of_cargo() {
    assert_done(&release(root(), &["check"]));
    assert_done(&release(root(), &["notes", "Unreleased"]));
}

#[test]
fn a_new_version_is_written_into_all_files() {
    let copy = tempfile::tempdir().unwrap();
    let script = fs::read_to_string(root().join("scripts/release.py")).unwrap();
    // Lines such as `("Cargo.toml", r'...'),`.
    let listed = script.lines().filter(|line| line.starts_with("    (\""));
    let mut files: Vec<_> = listed
        .filter_map(|line| line.split('"').nth(1))
        .map(str::to_owned)
        .collect();
    assert!(files.len() > 15, "{files:?}");
    files.extend(["scripts/release.py".into(), "CHANGELOG.md".into()]);
    for file in &files {
        let target = copy.path().join(file);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(root().join(file), target).unwrap();
    }
    assert_done(&release(copy.path(), &["set", "98.7.6"]));
    assert_done(&release(copy.path(), &["check", "v98.7.6"]));
    let wrapper = copy.path().join("snakemake/wrapper/environment.yaml");
    assert!(fs::read_to_string(wrapper).unwrap().contains("=98.7\n"));

    // Another tag, and a file that was forgotten.
    let citation = copy.path().join("CITATION.cff");
    let text = fs::read_to_string(&citation).unwrap();
    fs::write(&citation, text.replace("98.7.6", "98.7.5")).unwrap();
    let run = release(copy.path(), &["check", "v98.7.7"]);
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{stderr}");
    for mistake in [
        "CITATION.cff: 98.7.5 instead of 98.7.6",
        "the tag is v98.7.7",
    ] {
        assert!(stderr.contains(mistake), "{stderr}");
    }
}
