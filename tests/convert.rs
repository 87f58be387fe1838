//! `seqembed convert`: from every format to every other one, by the built executable.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::path::Path;

use common::{DONE, Place, WRONG, assert_run, python, seqembed, text};
use seqembed::output::{self, Format, OutputPrecision, Rows};

const PROTEINS: &[u8] = b">a first one\nMKTAYIAKQR\n>a again\nMKV\n>empty\n\n>b/c odd\nGGJW\n";

/// The rows of an output whose skipped row is told by zeros, since NaN is not equal to itself.
fn rows(path: &Path) -> Rows {
    let mut rows = output::read(path).unwrap().0;
    rows.values
        .iter_mut()
        .filter(|value| value.is_nan())
        .for_each(|value| *value = 0.0);
    rows
}

fn convert(arguments: &[&Path], options: &[&str]) -> std::process::Output {
    let mut all = vec!["convert"];
    all.extend(arguments.iter().map(|path| text(path)));
    all.extend(options);
    seqembed(&all)
}

/// Through every format in turn and back: all is as it was, but for the names of the files.
#[test]
fn every_format_becomes_every_other_one() {
    for pooling in ["mean", "none"] {
        let place = Place::new(&[("x.faa", PROTEINS)]);
        assert_run(
            &place.embed("esm2", "x.faa", &["--pooling", pooling]),
            DONE,
            &[],
        );
        let first = place.path("out/x.parquet");
        let expected = rows(&first);
        let told = output::open(&first).unwrap().layout().clone();
        assert_eq!(told.provenance("output_precision"), Some("fp32"));
        let mut at = first;
        for (step, format) in Format::ALL.into_iter().cycle().skip(1).take(6).enumerate() {
            let folder = place.path(&format!("step{step}"));
            let name = format.to_string();
            let run = convert(&[&at], &["-o", text(&folder), "--format", &name]);
            assert_run(&run, DONE, &["(4 rows)"]);
            at = folder.join(format!("x.{format}"));
            assert_eq!(rows(&at), expected, "{pooling} {format}");
            let mut now = output::open(&at).unwrap().layout().clone();
            now.path.clone_from(&told.path);
            now.provenance.sort();
            let mut told = told.clone();
            told.provenance.sort();
            assert_eq!(now, told, "{pooling} {format}");
        }
    }
}

#[test]
fn halves_and_a_folder_of_files() {
    let place = Place::new(&[("x.faa", PROTEINS), ("y.faa", b">y\nMKW\n")]);
    let halves = ["--format", "h5", "--output-precision", "fp16"];
    assert_run(&place.embed("esm2", "x.faa", &halves), DONE, &[]);
    assert_run(
        &place.embed("esm2", "y.faa", &["--format", "npy"]),
        DONE,
        &[],
    );
    let from = place.path("out");
    let wide = ["--format", "npz", "--output-precision", "fp32"];
    let to = place.path("npz");
    let mut options = vec!["-o", text(&to)];
    options.extend(wide);
    // report.json, and what stands beside a matrix, are no inputs.
    assert_run(
        &convert(&[&from], &options),
        DONE,
        &["x.npz (4 rows)", "y.npz (1 rows)"],
    );
    let half = output::open(&from.join("x.h5")).unwrap().layout().clone();
    assert_eq!(half.precision, OutputPrecision::Fp16);
    assert_eq!(half.provenance("output_precision"), Some("fp16"));
    let whole = output::open(&to.join("x.npz")).unwrap().layout().clone();
    assert_eq!(whole.precision, OutputPrecision::Fp32);
    assert_eq!(whole.provenance("output_precision"), Some("fp32"));
    assert_eq!(rows(&from.join("x.h5")), rows(&to.join("x.npz")));

    let plot = seqembed(&[
        "plot",
        text(&from.join("y.npy")),
        text(&to.join("x.npz")),
        "-o",
        text(&place.path("plot.svg")),
    ]);
    assert_run(&plot, DONE, &[]);
}

#[test]
fn what_cannot_be_converted_is_told_before_anything_is_written() {
    let place = Place::new(&[("x.faa", PROTEINS), ("text.npz", b"no")]);
    assert_run(&place.embed("esm2", "x.faa", &[]), DONE, &[]);
    let x = place.path("out/x.parquet");
    std::fs::create_dir(place.path("other")).unwrap();
    let twin = place.path("other/x.parquet");
    std::fs::copy(&x, &twin).unwrap();
    let (folder, file) = (place.path("new"), place.path("new.npz"));
    for (inputs, options, message) in [
        (
            vec![&*x],
            vec!["-o", text(&folder)],
            "name the format to write",
        ),
        (
            vec![&*x],
            vec!["-o", text(&file), "--format", "h5"],
            "new.npz does not end in .h5",
        ),
        (
            vec![&*x, &*twin],
            vec!["-o", text(&file)],
            "new.npz is one file, but there are 2 to convert",
        ),
        (
            vec![&*x, &*twin],
            vec!["-o", text(&folder), "--format", "pt"],
            "would both become",
        ),
        (vec![&*x], vec!["-o", text(&x)], "x.parquet is an input"),
    ] {
        assert_run(&convert(&inputs, &options), WRONG, &[message]);
    }
    assert!(!file.exists());
    let no = convert(
        &[&place.path("text.npz")],
        &["-o", text(&place.path("x.h5"))],
    );
    assert_run(&no, 1, &["text.npz is not a whole file of embeddings"]);
    assert!(!place.path("x.h5").exists());
}

/// An archive whose folder has a name of 21 letters, as `torch.save` calls it after the file: the entry of its pickle is then as long as the
/// records that `PyTorch` puts behind the directory.
#[test]
fn what_pytorch_saved_again_is_read_whatever_its_name() {
    const SCRIPT: &str = r#"
import struct, sys, zipfile
source, target, folder = sys.argv[1:]
entries = zipfile.ZipFile(source)
out, directory = bytearray(), bytearray()
for entry in entries.infolist():
    name, data = (folder + "/" + entry.filename.split("/", 1)[1]).encode(), entries.read(entry)
    begin, padding = len(out), -(len(out) + 34 + len(name)) % 64
    sizes = struct.pack("<III", entry.CRC, len(data), len(data))
    out += struct.pack("<4s5HIII2H", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(name), padding + 4) + name
    out += b"FB" + struct.pack("<H", padding) + b"Z" * padding + data + b"PK\7\x08" + sizes
    directory += b"PK\1\2" + struct.pack("<6H", 0, 0, 0x808, 0, 0, 0) + sizes
    directory += struct.pack("<5HII", len(name), 0, 0, 0, 0, 0, begin) + name
begin, count = len(out), len(entries.infolist())
out += directory
end = len(out)
out += b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 0x31e, 45, 0, 0, count, count, len(directory), begin)
out += b"PK\6\7" + struct.pack("<IQI", 0, end, 1)
out += b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), begin, 0)
open(target, "wb").write(out)
"#;
    let place = Place::new(&[("x.faa", b">a first one\nMKTAYIAKQR\n")]);
    let run = place.embed("esm2", "x.faa", &["--pooling", "mean", "--format", "pt"]);
    assert_run(&run, DONE, &[]);
    let first = place.path("out/x.pt");
    for letters in [20, 21, 22] {
        let folder = "s".repeat(letters);
        let again = place.path(&format!("{folder}.pt"));
        python("nothing", SCRIPT, &[text(&first), text(&again), &folder]);
        let out = place.path("converted");
        let run = convert(&[&again], &["-o", text(&out), "--format", "parquet"]);
        assert_run(&run, DONE, &["(1 row"]);
    }
}
