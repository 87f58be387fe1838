//! `seqembed convert`: from every format to every other one, by the built executable.
use std::path::Path;

use crate::common::{self, DONE, Place, WRONG, assert_run, python, seqembed, text};
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
    // report.json, and the files that belong to a matrix, are no inputs.
    assert_run(
        &convert(&[&from], &options),
        DONE,
        &["x.npz (4 rows)", "y.npz (1 row)"],
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
            "the output format is not known",
        ),
        (
            vec![&*x],
            vec!["-o", text(&file), "--format", "h5"],
            "new.npz does not have the extension .h5",
        ),
        (
            vec![&*x, &*twin],
            vec!["-o", text(&file)],
            "new.npz is a single file, but there are 2 files to convert",
        ),
        (
            vec![&*x, &*twin],
            vec!["-o", text(&folder), "--format", "pt"],
            "would both be converted to",
        ),
        (
            vec![&*x],
            vec!["-o", text(&x)],
            "x.parquet is one of the inputs",
        ),
    ] {
        assert_run(&convert(&inputs, &options), WRONG, &[message]);
    }
    assert!(!file.exists());
    let no = convert(
        &[&place.path("text.npz")],
        &["-o", text(&place.path("x.h5"))],
    );
    assert_run(&no, 1, &["text.npz is not a complete embedding file"]);
    assert!(!place.path("x.h5").exists());
}

/// An archive whose folder has a name of 21 letters, as `torch.save` calls it after the file: the
/// entry of its pickle is then as long as the records that `PyTorch` puts behind the directory.
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

/// Files of every format whose shapes say what can't be: no width, more than any memory holds,
/// offsets out of order.
const CRAFTED: &str = r#"
import io, json, os, struct, sys, zipfile
import h5py, numpy as np, pyarrow as pa, pyarrow.parquet as pq
folder = sys.argv[1]
at = lambda name: os.path.join(folder, name)
WIDTHS = [0, 10**7, 10**12, 2**62, 2**64 - 1]

def head(shape, kind="<f4"):
    text = "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }" % (kind, shape)
    text += " " * (63 - (10 + len(text)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()

def npz(name, rows, matrix, offsets=None, length=3):
    with zipfile.ZipFile(at(name), "w") as z:
        for key in "ids", "headers", "status":
            z.writestr(key + ".npy", head(f"{rows},", "<U2") + b"a\0\0\0\0\0\0\0" * min(rows, 2))
        z.writestr("lengths.npy", head(f"{rows},", "<i8") + struct.pack("<q", length) * min(rows, 2))
        if offsets:
            z.writestr("offsets.npy", head(f"{len(offsets)},", "<i8") + struct.pack(f"<{len(offsets)}Q", *offsets))
        z.writestr("embeddings.npy", head(matrix) + bytes(16))

def safetensors(name, rows, width, data):
    texts = {key: {"dtype": "U8", "shape": [2 * rows], "data_offsets": [0, 2 * rows]} for key in ("ids", "headers", "status")}
    header = {"embeddings": {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, 0]}, **texts}
    header["lengths"] = {"dtype": "I64", "shape": [rows], "data_offsets": [2 * rows, 10 * rows]}
    header = json.dumps(header).encode()
    open(at(name), "wb").write(struct.pack("<Q", len(header)) + header + data)

def pt(name, shape, strides, ids):
    out = io.BytesIO(b"\x80\x02}(")
    out.seek(0, 2)
    text = lambda t: out.write(b"X" + struct.pack("<I", len(t)) + t.encode())
    number = lambda n: out.write(b"\x8a\x09" + n.to_bytes(9, "little"))
    text("ids"); out.write(b"](")
    for i in ids: text(i)
    out.write(b"e"); text("data"); out.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
    text("storage"); out.write(b"ctorch\nFloatStorage\n"); text("0"); text("cpu"); number(4); out.write(b"tQK\0(")
    for n in shape: number(n)
    out.write(b"t(")
    for n in strides: number(n)
    out.write(b"t\x89ccollections\nOrderedDict\n)RtRu.")
    with zipfile.ZipFile(at(name), "w") as z:
        z.writestr("x/data.pkl", out.getvalue()); z.writestr("x/data/0", bytes(16)); z.writestr("x/version", "3\n")

for width in WIDTHS:
    for rows in 0, 1:
        open(at(f"a{rows}x{width}.npy"), "wb").write(head(f"{rows}, {width}") + bytes(16))
        open(at(f"a{rows}x{width}.tsv"), "w").write("ids\tlengths\tstatus\theaders\n" + "a\t3\tok\ta\n" * rows)
        npz(f"b{rows}x{width}.npz", rows, f"{rows}, {width}")
    safetensors(f"c0x{width}.safetensors", 0, width, b"")
    pt(f"d0x{width}.pt", (0, width), (width, 1), [])
npz("b-rows.npz", 10**15, f"{10**15}, 4")
for end in 10**12, 2**63 - 1, 2**64 - 1:
    npz(f"b-end{end}.npz", 1, f"{end}, 4", [0, end])
npz("b-back.npz", 1, "2, 2", [5, 2])
npz("b-negative.npz", 2, "2, 2", length=-3)
npz("b-negative-offset.npz", 1, "2, 2", [2**64 - 2, 2])
open(at("a-negative.npy"), "wb").write(head("1, 4") + bytes(16))
open(at("a-negative.tsv"), "w").write("ids\tlengths\tstatus\theaders\na\t-3\tok\ta\n")
def negative_safetensors(name):
    keys = "ids", "headers", "status"
    header = {key: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for key in keys}
    header["lengths"] = {"dtype": "I64", "shape": [2], "data_offsets": [4, 20]}
    header["embeddings"] = {"dtype": "F32", "shape": [2, 1], "data_offsets": [20, 28]}
    header = json.dumps(header).encode()
    open(at(name), "wb").write(struct.pack("<Q", len(header)) + header + b"a\na\n" + struct.pack("<qq", -3, -3) + bytes(8))
negative_safetensors("c-negative.safetensors")
safetensors("c1x0.safetensors", 1, 0, b"a\n" + struct.pack("<q", 3))
pt("d1x0.pt", (1, 0), (0, 1), ["a"])
pt("d-broadcast.pt", (1, 10**12), (0, 0), ["a"])

def h5(name, rows, width, per_token):
    shape = dict(shape=(rows, width), maxshape=(None, max(width, 1)), chunks=(1, min(max(width, 1), 1024)), dtype="<f4")
    with h5py.File(at(name), "w") as f:
        if per_token:
            f.attrs["hidden"] = str(width)
            d = f.create_dataset("a", **shape)
            d.attrs.update({"id": "a", "header": "a", "status": "ok", "length": np.int64(3), "row": np.int64(0)})
            return
        f.create_dataset("embeddings", **shape)
        for key in "ids", "headers", "status":
            f.create_dataset(key, shape=(rows,), dtype=h5py.string_dtype(), maxshape=(None,), chunks=(4,))
        f.create_dataset("lengths", shape=(rows,), dtype="<i8", maxshape=(None,), chunks=(4,))

for rows, width in (0, 10**12), (1, 0), (1, 10**9), (1, 10**12), (10**12, 4), (2**40, 2**20):
    h5(f"e{rows}x{width}.h5", rows, width, False)
    h5(f"f{rows}x{width}.h5", rows, width, True)
h5("e-negative.h5", 2, 2, False)
with h5py.File(at("e-negative.h5"), "a") as f:
    f["lengths"][...] = -3
h5("f-negative.h5", 2, 2, True)
with h5py.File(at("f-negative.h5"), "a") as f:
    f["a"].attrs["length"] = np.int64(-3)

def parquet(name, rows, embeddings, length=3):
    n = len(embeddings)
    text = pa.array(["a"] * n, pa.string())
    table = {"ids": text, "headers": text, "lengths": pa.array([length] * n, pa.int64()), "status": text, "embeddings": embeddings}
    pq.write_table(pa.table(table), at(name))

for width in 0, 10**7, 2**31 - 1:
    parquet(f"g0x{width}.parquet", 0, pa.array([], pa.list_(pa.float32(), width)))
parquet("g-null.parquet", 1, pa.array([None], pa.list_(pa.float32(), 4)))
parquet("g-some.parquet", 1, pa.array([[None, 1, 2, 3]], pa.list_(pa.float32(), 4)))
parquet("g-list.parquet", 2, pa.array([None, [[1.0, 2.0]]], pa.list_(pa.list_(pa.float32(), 2))))
parquet("g-negative.parquet", 2, pa.array([[1.0, 2.0]] * 2, pa.list_(pa.float32(), 2)), -3)
"#;

#[test]
fn shapes_that_cannot_be_are_errors() {
    let place = Place::new(&[]);
    let folder = place.path("crafted");
    std::fs::create_dir(&folder).unwrap();
    python("h5py, numpy and pyarrow", CRAFTED, &[text(&folder)]);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending != "tsv"))
        .collect();
    files.sort();
    assert!(files.len() > 50, "{files:?}");
    let (picture, matrix) = (place.path("p.svg"), place.path("m.h5"));
    for file in &files {
        for command in [
            ["plot", text(file), "-o", text(&picture)],
            ["convert", text(file), "-o", text(&matrix)],
        ] {
            // What would be taken for vectors that are not there does not fit into that.
            let run = std::process::Command::new("sh")
                .args(["-c", "ulimit -v 4000000; exec \"$0\" \"$@\""])
                .arg(common::executable())
                .args(command)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&run.stderr);
            let code = run.status.code();
            assert!(matches!(code, Some(0..=2)), "{command:?}: {code:?}: {said}");
            assert!(!said.contains("panicked"), "{command:?}: {said}");
            let name = file.file_name().unwrap().to_str().unwrap();
            // A vector for each residue is not drawn, whatever its length.
            if name.contains("-negative")
                && (command[0] == "convert" || !said.contains("per residue"))
            {
                assert_eq!(code, Some(1), "{command:?}: {said}");
                let told = said.contains("not a complete embedding file") && said.contains(name);
                let why = [
                    "negative length -3",
                    "first offset is -2",
                    "\"-3\" is not a number",
                ];
                assert!(
                    told && why.iter().any(|why| said.contains(why)),
                    "{command:?}: {said}"
                );
            }
            if code != Some(0) && !name.contains("-some") {
                let told = said.contains(name)
                    || said.contains("m.h5")
                    || said.contains("cannot be plotted")
                    || said.contains("no row");
                assert!(told, "{command:?}: {said}");
            }
        }
    }
}
