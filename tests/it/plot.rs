//! `seqembed plot` on files that the library wrote: what it draws, prints and refuses.
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::str::contains;
use seqembed::output::{self, Format, Layout, OutputPrecision, Rows};

fn plot(folder: &Path, args: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("seqembed")
        .unwrap()
        .current_dir(folder)
        .arg("plot")
        .args(args)
        .assert()
}

fn provenance(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|&(key, value)| (key.into(), value.into()))
        .collect()
}

/// Points of three dimensions; a NaN row for a skipped record.
fn write(path: &Path, format: Format, points: &[[f32; 3]], told: &[(&str, &str)]) -> PathBuf {
    let mut rows = Rows::new(3);
    for (at, point) in points.iter().enumerate() {
        let skipped = point[0].is_nan();
        rows.ids.push(format!("P{at}"));
        rows.headers.push(format!("P{at} <kinase> & \"co\""));
        rows.lengths.push(100);
        rows.status.push(
            if skipped {
                "skipped: no residues"
            } else {
                ["ok", "truncated,replaced"][at % 2]
            }
            .into(),
        );
        rows.vectors.push(1);
        rows.values.extend(point);
    }
    let layout = Layout {
        path: path.to_owned(),
        columns: Vec::new(),
        hidden: 3,
        per_token: false,
        precision: OutputPrecision::Fp32,
        provenance: provenance(told),
    };
    let mut sink = output::create(format, layout).unwrap();
    sink.write(&rows).unwrap();
    sink.finish().unwrap();
    path.to_owned()
}

const TOLD: [(&str, &str); 2] = [("model", "esm2_t6_8M_UR50D"), ("pooling", "mean")];

#[test]
fn a_run_is_drawn_and_its_files_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    // Variances 8, 2 and 0 along the coordinates: 80 % and 20 %.
    let (a, b) = (4.0, 2.0);
    write(
        &out.join("gut_01.parquet"),
        Format::Parquet,
        &[[a, 0.0, 5.0], [-a, 0.0, 5.0], [f32::NAN; 3]],
        &TOLD,
    );
    write(
        &out.join("gut_02.npz"),
        Format::Npz,
        &[[0.0, b, 5.0], [0.0, -b, 5.0]],
        &TOLD,
    );
    std::fs::write(out.join("report.json"), "{}").unwrap();
    plot(folder.path(), &["out", "-o", "plot.svg"])
        .success()
        .stdout(
            "file    rows  dimensions  mean length  ok  replaced  skipped  truncated\n\
         gut_01     3           3        100.0   1         1        1          1\n\
         gut_02     2           3        100.0   1         1        0          1\n\
         all        5           3        100.0   2         2        1          2\n\
         plot: plot.svg\n",
        );
    let svg = std::fs::read_to_string(folder.path().join("plot.svg")).unwrap();
    for part in [
        "esm2_t6_8M_UR50D",
        "4 sequences from 2 files",
        "PC1 (80.0 % of variance)",
        "PC2 (20.0 % of variance)",
        "1 record skipped and not drawn",
        "<title>P0 &lt;kinase&gt; &amp; &quot;co&quot;\ngut_01\n100 residues, ok</title>",
    ] {
        assert!(svg.contains(part), "no {part:?} in\n{svg}");
    }
    assert!(!svg.contains("Random weights"));
    assert_eq!(svg.matches("residues, ").count(), 4, "one mark a point");

    plot(folder.path(), &["out", "-o", "again.svg"]).success();
    let again = std::fs::read_to_string(folder.path().join("again.svg")).unwrap();
    assert_eq!(svg, again);

    plot(folder.path(), &["out", "-o", "plot.html"]).success();
    let page = std::fs::read_to_string(folder.path().join("plot.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains(&svg));
}

#[test]
fn random_weights_are_told_in_the_picture() {
    let folder = tempfile::tempdir().unwrap();
    let told = [TOLD[0], TOLD[1], ("random_seed", "7")];
    write(
        &folder.path().join("a.parquet"),
        Format::Parquet,
        &[[0.0, 1.0, 2.0], [3.0, 4.0, 6.0]],
        &told,
    );
    plot(folder.path(), &["a.parquet"]).success();
    let svg = std::fs::read_to_string(folder.path().join("plot.svg")).unwrap();
    assert!(svg.contains("Random weights (seed 7): for demonstration only"));
}

#[test]
fn of_many_rows_a_stated_number_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let points: Vec<[f32; 3]> = (0..10_500)
        .map(|i| [i as f32, (i % 7) as f32, 0.0])
        .collect();
    for name in ["a", "b"] {
        let path = folder.path().join(format!("{name}.parquet"));
        write(&path, Format::Parquet, &points, &TOLD);
    }
    plot(folder.path(), &["a.parquet", "b.parquet"])
        .success()
        .stdout(contains("all   21,000"));
    let svg = std::fs::read_to_string(folder.path().join("plot.svg")).unwrap();
    assert!(svg.contains("10,000 of 21,000 points drawn, evenly spaced"));
    assert_eq!(svg.matches("residues, ").count(), 10_000);
}

#[test]
fn one_row_equal_rows_and_200_files_are_drawn() {
    let folder = tempfile::tempdir().unwrap();
    write(
        &folder.path().join("one.npz"),
        Format::Npz,
        &[[1.0, 2.0, 3.0]],
        &TOLD,
    );
    plot(folder.path(), &["one.npz", "-o", "one.svg"]).success();
    let many = folder.path().join("many");
    std::fs::create_dir(&many).unwrap();
    for file in 0..200 {
        let path = many.join(format!("sample_{file:03}.npz"));
        write(&path, Format::Npz, &[[0.1; 3]; 2], &TOLD);
    }
    plot(folder.path(), &["many", "-o", "many.svg"])
        .success()
        .stdout(contains("sample_199"));
    for name in ["one.svg", "many.svg"] {
        let svg = std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(svg.contains("PC1 (0.0 % of variance)"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}

#[test]
fn what_cannot_be_drawn_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let points = [[0.0, 1.0, 2.0], [3.0, 4.0, 6.0]];
    write(&at("a.npz"), Format::Npz, &points, &TOLD);
    write(
        &at("cls.npz"),
        Format::Npz,
        &points,
        &[TOLD[0], ("pooling", "cls")],
    );
    write(&at("skipped.npz"), Format::Npz, &[[f32::NAN; 3]], &TOLD);
    let layout = Layout {
        path: at("residues.npz"),
        columns: Vec::new(),
        hidden: 3,
        per_token: true,
        precision: OutputPrecision::Fp32,
        provenance: provenance(&TOLD),
    };
    output::create(Format::Npz, layout)
        .unwrap()
        .finish()
        .unwrap();
    std::fs::create_dir(at("empty")).unwrap();
    std::fs::write(at("text.npz"), "no").unwrap();
    for (args, message) in [
        (
            vec!["a.npz", "-o", "plot.png"],
            "the plot must have the extension .svg or .html",
        ),
        (
            vec!["a.npz", "cls.npz"],
            "are not comparable, because pooling is cls and mean",
        ),
        (
            vec!["skipped.npz"],
            "no row of these files has an embedding",
        ),
        (
            vec!["residues.npz"],
            "residues.npz has one vector per residue",
        ),
        (vec!["empty"], "empty contains no embedding file"),
        (
            vec!["text.npz"],
            "text.npz is not a complete embedding file: it is none of parquet",
        ),
        (vec!["missing.npz"], "cannot read missing.npz"),
        (
            vec!["a.npz", "-o", "missing/plot.svg"],
            "cannot write missing/plot.svg",
        ),
    ] {
        plot(folder.path(), &args)
            .failure()
            .stderr(contains(message));
    }
    plot(folder.path(), &["a.npz", "-o", "plot.png"]).code(2);
    assert!(!at("plot.svg").exists());
}
