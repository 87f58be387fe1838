//! Several layers and poolings in one pass: each is, to the bit, what a run of its own gives, in
//! every format, and stays so over duplicates, windows, both strands, resuming and conversions.

use std::fs;
use std::path::Path;

use seqembed::output::{self, Rows};

use crate::common::interrupted::proteins;
use crate::common::reference::KERNELS;
use crate::common::{DONE, Place, WRONG, assert_run, exported, fixtures, seqembed, text};

const POOLINGS: [&str; 5] = ["cls", "mean", "max", "sum", "mean-all"];
const FORMATS: [&str; 4] = ["parquet", "npz", "h5", "safetensors"];

/// `embed` of one file into a folder; returns the path of its output.
fn embed(
    input: &Path,
    model: &Path,
    out: &Path,
    format: &str,
    options: &[&str],
) -> std::path::PathBuf {
    let mut arguments = vec!["embed", text(input), "-m", text(model), "-o", text(out)];
    arguments.extend(["--format", format]);
    arguments.extend(options);
    assert_run(&seqembed(&arguments), DONE, &[]);
    let stem = text(Path::new(input.file_stem().unwrap()));
    out.join(format!("{stem}.{format}"))
}

/// One column of a file, with the bits of its values.
fn column(path: &Path, name: Option<&str>) -> (Rows, Vec<u32>) {
    let reader = output::open(path).unwrap().column(name).unwrap();
    let mut all = Rows::new(reader.layout().hidden);
    for rows in reader {
        all.append(rows.unwrap());
    }
    let bits = all.values.iter().map(|value| value.to_bits()).collect();
    all.values.clear();
    (all, bits)
}

#[track_caller]
fn assert_same(found: &Path, name: &str, expected: &Path) {
    let what = format!("{name} of {}", found.display());
    let (rows, bits) = column(found, Some(name));
    let (own, own_bits) = column(expected, None);
    assert!(rows == own, "{what}: other rows");
    assert!(bits == own_bits, "{what}: other values");
}

#[test]
fn each_layer_and_pooling_is_that_of_a_run_of_its_own() {
    let records = proteins(7, 60);
    let place = Place::new(&[("p.faa", records.as_bytes())]);
    let dna = fixtures().join("dna/inputs/mixed.fna");
    // Duplicates, empty records and windows; both strands of DNA; norms in front and behind.
    for (model, input, layers, options) in [
        ("esm2", place.path("p.faa"), 4, vec!["--max-length", "40"]),
        (
            "dnabert2",
            dna,
            3,
            vec!["--revcomp", "mean", "--max-length", "300"],
        ),
    ] {
        let poolings = POOLINGS.join(",");
        for kernels in KERNELS {
            let folder = tempfile::tempdir().unwrap();
            let options = [&options[..], &["--kernels", kernels]].concat();
            let several = [&options[..], &["--layer", "all", "--pooling", &poolings]].concat();
            let all = embed(&input, exported(model), folder.path(), "npz", &several);
            for layer in 0..layers {
                for pooling in POOLINGS {
                    let layer = layer.to_string();
                    let own = [&options[..], &["--layer", &layer, "--pooling", pooling]].concat();
                    let out = folder.path().join(format!("{pooling}-{layer}"));
                    let one = embed(&input, exported(model), &out, "npz", &own);
                    assert_same(&all, &format!("{pooling}_{layer}"), &one);
                }
            }
        }
    }
}

#[test]
fn every_format_holds_the_columns_and_is_converted_into_every_other() {
    let input = fixtures().join("esm2/inputs/mixed.faa");
    let folder = tempfile::tempdir().unwrap();
    let options = ["--layer", "1,-1", "--pooling", "mean,max"];
    let files = FORMATS.map(|format| {
        let out = folder.path().join(format);
        embed(&input, exported("esm2"), &out, format, &options)
    });
    let names = ["mean_1", "mean_3", "max_1", "max_3"];
    let (expected, layout) = output::read(&files[0]).unwrap();
    assert_eq!(layout.columns, names);
    assert_eq!(layout.hidden, 4 * layout.width());
    for (from, path) in FORMATS.iter().zip(&files) {
        assert!(output::read(path).unwrap().0 == expected, "{from}");
        for to in FORMATS {
            let target = folder.path().join(format!("{from}.{to}"));
            let run = seqembed(&["convert", text(path), "-o", text(&target)]);
            assert_run(&run, DONE, &[]);
            let (rows, layout) = output::read(&target).unwrap();
            assert!(rows == expected, "{from} to {to}");
            assert_eq!(layout.columns, names, "{from} to {to}");
        }
    }
    // One alone, as a run of its own would have it, but for the hash of the graph.
    let target = folder.path().join("one.npy");
    let arguments = [
        "convert",
        text(&files[1]),
        "-o",
        text(&target),
        "--column",
        "max_1",
    ];
    assert_run(&seqembed(&arguments), DONE, &[]);
    assert_same(&files[2], "max_1", &target);
    let layout = output::read(&target).unwrap().1;
    assert_eq!(layout.provenance("pooling"), Some("max"));
    assert_eq!(layout.provenance("layer"), Some("1"));
    assert_eq!(layout.provenance("columns"), None);
    let run = seqembed(&[
        "convert",
        text(&files[1]),
        "-o",
        text(&target),
        "--column",
        "max_2",
    ]);
    assert_run(
        &run,
        1,
        &["no column max_2: it has mean_1, mean_3, max_1, max_3"],
    );
    let plot = folder.path().join("plot.svg");
    for file in &files {
        let run = seqembed(&["plot", text(file), "-o", text(&plot), "--column", "mean_1"]);
        assert_run(&run, DONE, &[]);
        assert!(fs::read_to_string(&plot).unwrap().contains("mean-pooled"));
    }
}

#[test]
fn residues_of_several_layers() {
    let input = fixtures().join("esm2/inputs/mixed.faa");
    let folder = tempfile::tempdir().unwrap();
    for format in ["npz", "safetensors"] {
        for precision in ["fp32", "fp16"] {
            let options = ["--pooling", "none", "--output-precision", precision];
            let out = folder.path().join(format!("{format}-{precision}"));
            let several = [&options[..], &["--layer", "0,2-3"]].concat();
            let all = embed(&input, exported("esm2"), &out, format, &several);
            for layer in ["0", "2", "3"] {
                let own = [&options[..], &["--layer", layer]].concat();
                let one = embed(&input, exported("esm2"), &out.join(layer), format, &own);
                assert_same(&all, &format!("none_{layer}"), &one);
            }
        }
    }
}

#[test]
fn a_finished_run_is_kept_and_other_columns_are_computed() {
    let input = fixtures().join("esm2/inputs/mixed.faa");
    let out = tempfile::tempdir().unwrap();
    let mut arguments = vec!["embed", text(&input), "-m", text(exported("esm2"))];
    arguments.extend(["-o", text(out.path()), "--resume"]);
    let run = |options: &[&str]| seqembed(&[&arguments[..], options].concat());
    assert_run(&run(&["--layer", "1,2"]), DONE, &[]);
    assert_run(&run(&["--layer", "2,1"]), DONE, &["not loaded"]);
    assert_run(
        &run(&["--layer", "1,2", "--pooling", "mean,cls"]),
        DONE,
        &["pooling was mean"],
    );
    assert_run(&run(&["--layer", "1"]), DONE, &["layer was 1,2"]);
}

#[test]
fn one_load_serves_files_with_different_lists() {
    let input = fixtures().join("esm2/inputs/mixed.faa");
    let out = tempfile::tempdir().unwrap();
    let manifest = out.path().join("m.yaml");
    let (model, fasta) = (text(exported("esm2")), text(&input));
    let text = format!(
        "model: {model}\nlayer: 1,3\nformat: npz\nfiles:\n\
         - {{sample: a, fasta: {fasta}, pooling: mean}}\n\
         - {{sample: b, fasta: {fasta}, pooling: max}}\n"
    );
    fs::write(&manifest, text).unwrap();
    let run = seqembed(&[
        "run",
        manifest.to_str().unwrap(),
        "-o",
        out.path().to_str().unwrap(),
    ]);
    assert_run(&run, DONE, &[]);
    let report = fs::read_to_string(out.path().join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["loads"].as_array().unwrap().len(), 1);
    assert_eq!(report["loads"][0]["layer"], serde_json::json!([1, 3]));
    for (sample, pooling) in [("a", "mean"), ("b", "max")] {
        let (_, layout) = output::read(&out.path().join(format!("{sample}.npz"))).unwrap();
        assert_eq!(
            layout.columns,
            [format!("{pooling}_1"), format!("{pooling}_3")]
        );
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let input = fixtures().join("esm2/inputs/mixed.faa");
    let out = tempfile::tempdir().unwrap();
    let arguments = [
        "embed",
        text(&input),
        "-m",
        text(exported("esm2")),
        "-o",
        text(out.path()),
    ];
    for (options, said) in [
        (&["--layer", "0,9"][..], "there is no layer 9"),
        (&["--layer", "3-1"], "the layers 3-1 end before they begin"),
        (&["--layer", "1-x"], "6,20,33"),
        (
            &["--pooling", "mean,none"],
            "cannot be combined with others",
        ),
        (&["--pooling", "mean,mean"], "mean is given twice"),
        (&["--pooling", "mean,first"], "expected mean, mean-all"),
        (
            &["--pooling", "mean,max", "--format", "npy"],
            "use parquet, npz, h5 or safetensors",
        ),
        (
            &["--pooling", "none", "--layer", "1,2"],
            "use npz or safetensors",
        ),
    ] {
        assert_run(
            &seqembed(&[&arguments[..], options].concat()),
            WRONG,
            &[said],
        );
    }
}
