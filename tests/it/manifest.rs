//! Manifests as users write them: every layout, every layer of options, and every mistake with its
//! line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{exported, seqembed};

use seqembed::manifest::{self, Job, ManifestErrors};
use seqembed::records::Source;
use seqembed::settings::{
    Format, Layers, Long, OptionError, Overrides, Pooling, Precision, Settings, SettingsError,
    Unknown, WindowSize,
};

/// A folder with a manifest and the input files `a.faa`, `b.faa.gz` and `sub/c.fq`.
struct Place {
    folder: tempfile::TempDir,
    manifest: PathBuf,
}

impl Place {
    fn new(name: &str, text: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        for file in ["a.faa", "b.faa.gz", "sub/c.fq"] {
            fs::write(folder.path().join(file), ">x\nMK\n").unwrap();
        }
        let manifest = folder.path().join(name);
        fs::write(&manifest, text).unwrap();
        Self { folder, manifest }
    }

    fn read(&self) -> Result<Vec<Job>, ManifestErrors> {
        self.read_with(&Overrides::default())
    }

    fn read_with(&self, command_line: &Overrides) -> Result<Vec<Job>, ManifestErrors> {
        manifest::read(&self.manifest, command_line).map(|manifest| manifest.jobs)
    }

    fn source(&self, file: &str) -> Source {
        Source::Path(self.folder.path().join(file))
    }
}

/// The mistakes as `line: text`.
fn mistakes(name: &str, text: &str) -> Vec<String> {
    let place = Place::new(name, text);
    let errors = place.read().expect_err("mistakes");
    let folder = format!("{}/", place.folder.path().display());
    errors
        .mistakes
        .iter()
        .map(|mistake| {
            let line = mistake.line.map_or("-".to_owned(), |line| line.to_string());
            format!("{line}: {}", mistake.text.replace(&folder, ""))
        })
        .collect()
}

#[track_caller]
fn assert_mistakes(name: &str, text: &str, expected: &[&str]) {
    let found = mistakes(name, text);
    let fit = found.len() == expected.len()
        && found
            .iter()
            .zip(expected)
            .all(|(found, expected)| found.starts_with(expected));
    assert!(fit, "in {text:?}\nfound {found:#?}\nexpected {expected:#?}");
}

fn names(jobs: &[Job]) -> Vec<&str> {
    jobs.iter().map(|job| job.sample.as_str()).collect()
}

#[test]
fn yaml_is_read() {
    let place = Place::new(
        "manifest.yaml",
        "model: esm2_t6_8M_UR50D\npooling: max   # for all\nmax-length: 500\nfiles:\n  - sample: '007'\n    fasta: a.faa\n\
         \x20 - {sample: 1.10, fastq: sub/c.fq, model: DNABERT-S, layer: -1, format: NPZ}\n  - sample: two words\n    fasta: b.faa.gz\n",
    );
    let jobs = place.read().unwrap();
    assert_eq!(
        names(&jobs),
        ["007", "1.10", "two words"],
        "names stay as written"
    );
    assert_eq!(
        jobs[0].source,
        place.source("a.faa"),
        "paths are relative to the manifest"
    );
    assert_eq!(jobs[1].source, place.source("sub/c.fq"));
    assert_eq!(
        jobs.iter().map(|job| job.line).collect::<Vec<_>>(),
        [Some(5), Some(7), Some(8)]
    );
    let first = &jobs[0].settings;
    assert_eq!(
        (
            first.model.as_str(),
            first.pooling.clone(),
            first.max_length
        ),
        ("esm2_t6_8M_UR50D", Pooling::Max.into(), Some(500))
    );
    assert_eq!(
        (first.format, first.long, first.unknown),
        (Format::Parquet, Long::Window, Unknown::Replace)
    );
    assert_eq!(
        (first.layer.clone(), first.precision, first.batch_tokens),
        (None, Precision::Auto, None)
    );
    let second = &jobs[1].settings;
    assert_eq!(
        (second.model.as_str(), second.pooling.clone()),
        ("DNABERT-S", Pooling::Max.into())
    );
    assert_eq!(
        (second.layer.clone(), second.format),
        (Some((-1).into()), Format::Npz)
    );
}

#[test]
fn json_is_yaml() {
    let place = Place::new(
        "manifest.json",
        r#"{"model": "M", "layer": 3, "files": [{"sample": "a", "fasta": "a.faa"}]}"#,
    );
    let jobs = place.read().unwrap();
    assert_eq!(
        (
            jobs[0].settings.model.as_str(),
            jobs[0].settings.layer.clone()
        ),
        ("M", Some(3.into()))
    );
}

#[test]
fn anchors_are_followed() {
    let place = Place::new(
        "m.yaml",
        "model: &m M\nfiles:\n- {sample: a, fasta: a.faa, model: *m}\n",
    );
    assert_eq!(place.read().unwrap()[0].settings.model, "M");
}

#[test]
fn tables_are_read() {
    let expected = |place: &Place| {
        let jobs = place.read().unwrap();
        assert_eq!(names(&jobs), ["a", "b, the second", "c"]);
        assert_eq!(jobs[0].source, place.source("a.faa"));
        assert_eq!(jobs[1].settings.pooling, Pooling::MeanAll.into());
        assert_eq!(
            jobs[0].settings.pooling,
            Pooling::Mean.into(),
            "an empty cell says nothing"
        );
        assert_eq!(
            jobs.iter().map(|job| job.line).collect::<Vec<_>>(),
            [Some(2), Some(3), Some(5)]
        );
    };
    let csv = "sample,fasta,model,pooling\na,a.faa,M,\n\"b, the second\", b.faa.gz ,M,mean-all\n\nc,sub/c.fq,M,mean\n";
    expected(&Place::new("m.csv", csv));
    expected(&Place::new("m.CSV", csv.replace('\n', "\r\n")));
    expected(&Place::new("m.csv", format!("\u{feff}{csv}")));
    expected(&Place::new("samples", csv));
    let tsv = csv.replace(',', "\t").replace("b\t", "b,");
    expected(&Place::new("m.tsv", &tsv));
    expected(&Place::new("m.txt", &tsv));
    expected(&Place::new(
        "m.csv",
        csv.replace(',', ";").replace("b;", "b,"),
    ));
}

/// What spreadsheets write around a table: rows and columns of empty cells, quoted or not, on top,
/// between and at the end.
#[test]
fn empty_rows_and_columns_of_a_spreadsheet_are_passed_over() {
    let csv = ",,,,\n\n\"sample\",\"fasta\",\"model\",,\na,a.faa,M,,\n,,,,\n\"\",\"\",,\"\",\n  , ,,,\n\nb,sub/c.fq,M,,\n               c,b.faa.gz,M\nd,a.faa,M,,,,\n,,\n,,,,,,\n";
    let whole = |name: &str, text: String| {
        let jobs = Place::new(name, &text).read().unwrap_or_else(|error| {
            panic!("{name} {text:?}: {error}");
        });
        let lines: Vec<_> = jobs.iter().map(|job| job.line.unwrap()).collect();
        assert_eq!(names(&jobs), ["a", "b", "c", "d"], "{name} {text:?}");
        assert_eq!(lines, [4, 9, 10, 11], "{name} {text:?}");
    };
    for bom in ["", "\u{feff}"] {
        for end in ["\n", "\r\n"] {
            let text = format!("{bom}{}", csv.replace('\n', end));
            whole("m.csv", text.clone());
            whole("m.csv", text.replace(',', ";"));
            whole("m.tsv", text.replace(',', "\t"));
        }
    }
    assert_mistakes(
        "m.csv",
        ",,,\nsample,fasta,,model\na,a.faa,,M\nb,a.faa,max,M\nc,a.faa,,M,x\n",
        &[
            "4: `max` is in column 3, which has no name in the first row",
            "5: the row has 5 cells, but the table has 4 columns",
        ],
    );
    assert_mistakes(
        "m.csv",
        ",,\n\nsample,fasta,poling,,\na,a.faa,cls,,\n",
        &[
            "3: unknown column `poling`: did you mean `pooling`?",
            "4: no model",
        ],
    );
    assert_mistakes("m.csv", ",,,\n,,,\n", &["-: the manifest is empty"]);
}

#[test]
fn a_name_that_says_nothing_is_told_by_content() {
    for text in [
        "model: M\nfiles: [{sample: a, fasta: a.faa}]\n",
        "# a, comment\nmodel: M\nfiles: [{sample: a, fasta: a.faa}]\n",
        "{model: M, files: [{sample: a, fasta: a.faa}]}",
        "files: [{sample: a, fasta: a.faa, model: M}]\n",
        "---\nfiles: [{sample: a, fasta: a.faa, model: M}]\n",
    ] {
        assert_eq!(
            names(&Place::new("manifest", text).read().unwrap()),
            ["a"],
            "{text}"
        );
    }
    assert_mistakes(
        "m.yaml",
        ">x\nMK\n",
        &["1: this is a sequence file, not a manifest: use `seqembed embed` for it"],
    );
}

#[test]
fn layers_beat_one_another() {
    let place = Place::new(
        "m.yaml",
        "model: top\npooling: max\nlong: error\nfiles:\n- {sample: a, fasta: a.faa, model: own, pooling: cls}\n- {sample: b, fasta: a.faa}\n",
    );
    let command_line = Overrides {
        model: Some("line".to_owned()),
        unknown: Some(Unknown::Skip),
        ..Overrides::default()
    };
    let of = |settings: &Settings| {
        (
            settings.model.clone(),
            settings.pooling.clone(),
            settings.long,
            settings.unknown,
        )
    };
    let jobs = place.read().unwrap();
    assert_eq!(
        of(&jobs[0].settings),
        (
            "own".into(),
            Pooling::Cls.into(),
            Long::Error,
            Unknown::Replace
        )
    );
    assert_eq!(
        of(&jobs[1].settings),
        (
            "top".into(),
            Pooling::Max.into(),
            Long::Error,
            Unknown::Replace
        )
    );
    let jobs = place.read_with(&command_line).unwrap();
    assert_eq!(
        of(&jobs[0].settings),
        (
            "line".into(),
            Pooling::Cls.into(),
            Long::Error,
            Unknown::Skip
        )
    );
    assert_eq!(
        of(&jobs[1].settings),
        (
            "line".into(),
            Pooling::Max.into(),
            Long::Error,
            Unknown::Skip
        )
    );
}

#[test]
fn one_file_may_be_read_twice_but_not_the_standard_input() {
    let place = Place::new(
        "m.yaml",
        "model: M\nfiles:\n- {sample: a, fasta: a.faa}\n- {sample: b, fasta: a.faa, layer: 0}\n- {sample: c, fasta: \"-\"}\n",
    );
    let jobs = place.read().unwrap();
    assert_eq!(jobs[0].source, jobs[1].source);
    assert_eq!(jobs[2].source, Source::Stdin);
    assert_mistakes(
        "m.csv",
        "sample,fasta,model\na,-,M\nb,-,M\n",
        &["3: standard input (`-`) is already used on line 2"],
    );
}

#[test]
fn all_mistakes_are_reported_together() {
    let text = "\
model: M
poling: mean
layer: last
files:
  - sample: a
    fasta: missing.faa
  - sample: a
    fasta: sub
    long: windows
  - fasta: a.faa
    sampel: b
  - sample: ../c
    fasta: a.faa
  - sample: d
  - sample: e
    fasta: [a.faa, b.faa.gz]
  - a.faa
  - sample: f
    fasta: a.faa
    fastq: a.faa
    max_length: 0
    batch_tokens: many
  - sample: g
    fasta:
";
    assert_mistakes(
        "m.yaml",
        text,
        &[
            "2: unknown key `poling`: did you mean `pooling`?",
            "3: invalid value `last` for `layer`: expected a layer such as 33 or -1",
            "6: missing.faa: no such file",
            "7: the sample name `a` is already used on line 5; both would be written to the same \
             file",
            "8: sub: is a folder; name the files in it",
            "9: invalid value `windows` for `long`: expected one of window, truncate, error",
            "11: unknown key `sampel`: did you mean `sample`?",
            "12: the sample name `../c` contains a path separator",
            "14: `fasta` is missing",
            "16: `fasta` must be a single value, not a list",
            "17: a file must be given as `sample: NAME` and `fasta: PATH`",
            "20: `fasta` and `fastq` are both set, but a sample has one file",
            "21: invalid value `0` for `max_length`: expected a whole number of at least 1",
            "22: invalid value `many` for `batch_tokens`: expected a whole number of at least 1",
            "24: `fasta` has no value: give one, or remove the key",
        ],
    );
    let place = Place::new("m.yaml", text);
    let shown = place.read().unwrap_err().to_string();
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines.len(), 16);
    let start = format!("{}:2: unknown key", place.manifest.display());
    assert!(lines[0].starts_with(&start), "{}", lines[0]);
    assert_eq!(lines[15], "15 mistakes found; nothing was run");
}

#[test]
fn mistakes_in_tables_have_lines() {
    assert_mistakes(
        "m.csv",
        "sample,fasta,model,pooling\na,a.faa,M,avg\nb,nothing.faa,M,\na,a.faa\n,a.faa,M,\nd,,M,mean\n.e,a.faa,M,,x\n",
        &[
            "2: invalid value `avg` for `pooling`: expected one of mean, mean-all, cls, max, sum, none",
            "3: nothing.faa: no such file",
            "4: the row has 2 cells, but the table has 4 columns",
            "4: the sample name `a` is already used on line 2",
            "5: `sample` is missing",
            "6: `fasta` is missing",
            "7: the row has 5 cells, but the table has 4 columns",
            "7: the sample name `.e` starts with a dot",
        ],
    );
    assert_mistakes(
        "m.tsv",
        "sample\tfasta\tmodle\tsample\na\ta.faa\tM\tb\n",
        &[
            "1: unknown column `modle`: did you mean `model`?",
            "1: the column `sample` occurs twice",
            "2: no model",
        ],
    );
    assert_mistakes(
        "m.csv",
        "a,a.faa\nb,b.faa\n",
        &[
            "1: unknown column `a`",
            "1: unknown column `a.faa`",
            "1: the first row must name the columns",
        ],
    );
    assert_mistakes("m.csv", "", &["-: the manifest is empty"]);
    assert_mistakes(
        "m.csv",
        "sample,fasta,model\n",
        &["-: the manifest has no rows below the first"],
    );
    // The lines after a cell of two lines are counted rightly.
    assert_mistakes(
        "m.csv",
        "sample,fasta,model\n\"a\nb\",a.faa,M\nc,no.faa,M\n",
        &[
            "2: the sample name `a\\nb` contains a control character",
            "4: no.faa: no such file",
        ],
    );
}

#[test]
fn what_is_no_manifest_is_told() {
    assert_mistakes("m.yaml", "", &["-: the manifest is empty"]);
    assert_mistakes("m.yaml", "# nothing\n", &["-: the manifest is empty"]);
    assert_mistakes("m.yaml", "model: M\n", &["-: `files:` is missing"]);
    assert_mistakes("m.yaml", "model: M\nfiles: []\n", &["2: `files` is empty"]);
    assert_mistakes(
        "m.yaml",
        "model: M\nfiles:\n",
        &["2: `files` must be a list"],
    );
    assert_mistakes(
        "m.yaml",
        "- {sample: a, fasta: a.faa}\n",
        &["1: a manifest must start with keys"],
    );
    assert_mistakes(
        "m.yaml",
        "just words\n",
        &["1: a manifest must start with keys"],
    );
    assert_mistakes("m.yaml", "model: M\nfiles: [\n", &["3: invalid YAML"]);
    assert_mistakes(
        "m.yaml",
        "model: M\nmodel: N\nfiles: [{sample: a, fasta: a.faa}]\n",
        &["2: invalid YAML: duplicated key"],
    );
    assert_mistakes(
        "m.yaml",
        "model: M\nfiles: [{sample: a, fasta: a.faa}]\n---\nmodel: N\n",
        &["4: a second YAML document"],
    );
    assert_mistakes(
        "m.yaml",
        "? [a]\n: b\nmodel: M\nfiles: [{sample: a, fasta: a.faa}]\n",
        &["1: a key must be a plain word"],
    );
    assert_mistakes(
        "m.yaml",
        "files:\n- {sample: a, fasta: a.faa}\n- {sample: b, fasta: a.faa}\n",
        &["2: no model"],
    );

    let place = Place::new(
        "m.yaml",
        b"model: M\nfiles:\n- {sample: \xe9, fasta: a.faa}\n",
    );
    let errors = place.read().unwrap_err();
    assert_eq!(errors.mistakes[0].line, Some(3));
    assert!(errors.to_string().contains("not valid UTF-8"), "{errors}");

    let nothing = Overrides::default();
    let errors = manifest::read(Path::new("missing/m.yaml"), &nothing).unwrap_err();
    assert_eq!(errors.to_string(), "missing/m.yaml: no such file");
    let errors = manifest::read(place.folder.path(), &nothing).unwrap_err();
    assert!(
        errors.to_string().ends_with("is a folder, not a manifest"),
        "{errors}"
    );
}

#[test]
fn hostile_yaml_is_refused() {
    assert_mistakes("m.yaml", &"[".repeat(200_000), &["1: invalid YAML: "]);
    assert_mistakes(
        "m.yaml",
        &"- ".repeat(200_000),
        &["1: invalid YAML: nested too deeply"],
    );
    assert_mistakes(
        "m.yaml",
        &"{a: ".repeat(100),
        &["1: invalid YAML: nested too deeply"],
    );
    // Each line is ten of the line before.
    let mut laughs = "a0: &a0 [x]\n".to_owned();
    for depth in 1..12 {
        let ten = vec![format!("*a{}", depth - 1); 10].join(", ");
        writeln!(laughs, "a{depth}: &a{depth} [{ten}]").unwrap();
    }
    assert_mistakes("m.yaml", &laughs, &["6: invalid YAML: alias expansion"]);
}

#[test]
fn sample_names_must_be_file_names() {
    let long = "x".repeat(201);
    for (name, expected) in [
        ("\"\"", "is empty"),
        ("a/b", "contains a path separator"),
        ("'a\\b'", "contains a path separator"),
        (".hidden", "starts with a dot"),
        ("..", "starts with a dot"),
        ("-o", "starts with `-`"),
        ("\"a\\0b\"", "contains a control character"),
        (long.as_str(), "is longer than 200 bytes"),
    ] {
        let text = format!("model: M\nfiles:\n- sample: {name}\n  fasta: a.faa\n");
        let found = mistakes("m.yaml", &text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("3: the sample name") && found[0].contains(expected),
            "{found:?}"
        );
    }
    let place = Place::new(
        "m.yaml",
        "model: M\nfiles:\n- {sample: A, fasta: a.faa}\n- {sample: a, fasta: a.faa}\n- {sample: Größe (2), fasta: a.faa}\n",
    );
    assert_eq!(names(&place.read().unwrap()), ["A", "a", "Größe (2)"]);
}

#[cfg(unix)]
#[test]
fn files_are_looked_at_without_being_read() {
    use std::os::unix::fs::symlink;

    let place = Place::new(
        "m.csv",
        "sample,fasta,model\na,gone.faa,M\nb,good.faa,M\nc,pipe,M\n",
    );
    symlink("nowhere", place.folder.path().join("gone.faa")).unwrap();
    symlink("a.faa", place.folder.path().join("good.faa")).unwrap();
    let pipe = place.folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap();
    assert!(made.success());
    let errors = place.read().unwrap_err();
    assert_eq!(errors.mistakes.len(), 1, "{errors}");
    assert!(
        errors.mistakes[0]
            .text
            .ends_with("gone.faa: is a link to a file that does not exist"),
        "{errors}"
    );
}

#[test]
fn files_on_the_command_line_name_their_samples() {
    let folder = tempfile::tempdir().unwrap();
    let overrides = Overrides {
        model: Some("M".to_owned()),
        ..Overrides::default()
    };
    let paths = |names: &[&str]| -> Vec<PathBuf> {
        names
            .iter()
            .map(|name| {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, ">x\nMK\n").unwrap();
                path
            })
            .collect()
    };
    let mut files = paths(&[
        "a.faa",
        "b.fasta.gz",
        "c.v2.fa.bgz",
        "d.fq.bz2",
        "e.FASTQ.GZ",
        "f.xz",
        "g",
        "h.pep.zst",
        "i.txt",
        "sub/j.fna.xz",
    ]);
    files.push("-".into());
    let jobs = manifest::jobs_from_files(&files, &overrides).unwrap();
    assert_eq!(
        names(&jobs),
        [
            "a", "b", "c.v2", "d", "e", "f", "g", "h", "i.txt", "j", "stdin"
        ]
    );
    assert_eq!(jobs[0].source, Source::Path(files[0].clone()));
    assert_eq!(jobs[10].source, Source::Stdin);
    assert_eq!((jobs[0].settings.model.as_str(), jobs[0].line), ("M", None));

    let mut files = paths(&["a.faa", "sub/a.faa.gz", ".faa"]);
    files.push(folder.path().join("missing.faa"));
    files.push(folder.path().to_owned());
    let errors = manifest::jobs_from_files(&files, &Overrides::default())
        .unwrap_err()
        .to_string();
    let shown = errors.replace(&format!("{}", folder.path().display()), "DIR");
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(
        lines,
        [
            "no model is named: give `--model`, or set `model:` in the manifest",
            "DIR/a.faa and DIR/sub/a.faa.gz would both be written to `a`: set their sample names \
             in a manifest",
            "DIR/.faa: the sample name `.faa` starts with a dot, so the output would be a hidden \
             file; set the sample name in a manifest",
            "DIR/missing.faa: no such file",
            "DIR: is a folder; name the files in it",
            "5 mistakes found; nothing was run",
        ]
    );
}

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    overrides: Overrides,
}

#[test]
fn options_have_the_same_values_everywhere() {
    let mut overrides = Overrides::default();
    for (key, text) in [
        ("model", "M"),
        ("pooling", "mean-all"),
        ("layer", "-2"),
        ("format", "npz"),
        ("long", "truncate"),
        ("max_length", "100"),
        ("max_record", "1000"),
        ("overlap", "0"),
        ("unknown", "error"),
        ("precision", "fp32"),
        ("batch_tokens", "4096"),
    ] {
        assert!(Overrides::KEYS.contains(&key));
        overrides.set(key, text).unwrap();
    }
    // The same through the command line.
    let parsed: Cli = clap::Parser::try_parse_from([
        "seqembed",
        "-m",
        "M",
        "--pooling",
        "mean-all",
        "--layer",
        "-2",
        "--format",
        "npz",
        "--long",
        "truncate",
        "--max-length",
        "100",
        "--max-record",
        "1000",
        "--overlap",
        "0",
        "--unknown",
        "error",
        "--precision",
        "fp32",
        "--batch-tokens",
        "4096",
    ])
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(parsed.overrides, overrides);
    // And through serde, which reports use.
    let json = serde_json::to_string(&overrides).unwrap();
    assert!(json.contains(r#""pooling":"mean-all""#), "{json}");
    assert_eq!(serde_json::from_str::<Overrides>(&json).unwrap(), overrides);
    assert_eq!(Pooling::MeanAll.to_string(), "mean-all");

    assert_eq!(
        overrides.set("layers", "1"),
        Err(OptionError::NoSuchOption("layers".to_owned()))
    );
    let error = overrides.set("format", "csv").unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid value `csv` for `format`: expected one of parquet, npz, npy, h5, safetensors, pt"
    );
    assert!(<Cli as clap::Parser>::try_parse_from(["seqembed", "--max-length", "0"]).is_err());
}

/// The option's name as a manifest spells it -> whether the manifest's top takes it, whether a
/// file's entry does; what the executable says of each option that its help lists.
fn what_a_manifest_takes() -> BTreeMap<String, (bool, bool)> {
    let help = seqembed(&["run", "--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    let options = help.lines().filter_map(|line| {
        let line = line.trim_start();
        let (_, name) = line.starts_with('-').then(|| line.split_once("--"))??;
        let end = name.find(|c: char| !c.is_ascii_lowercase() && c != '-');
        Some(name[..end.unwrap_or(name.len())].replace('-', "_"))
    });
    let told = |text: &str, key: &str| {
        let place = Place::new("m.yaml", text);
        let out = place.folder.path().join("out");
        let run = seqembed(&[
            "run",
            place.manifest.to_str().unwrap(),
            "-o",
            out.to_str().unwrap(),
        ]);
        // A text that no option but a model's name can be.
        let text = String::from_utf8(run.stderr).unwrap();
        assert!(key == "model" || !out.exists(), "{key}: {text}");
        let taken = text.contains(&format!("invalid value `\u{1F41F}` for `{key}`"))
            || key == "model" && text.contains("there is no model `\u{1F41F}`");
        let place = text.contains("give it on the command line");
        assert!(taken != place, "{key}: {text}");
        assert!(place <= text.contains(&format!("`--{}`", key.replace('_', "-"))));
        taken
    };
    options
        .filter(|key| !["help", "version"].contains(&key.as_str()))
        .map(|key| {
            let model = if key == "model" { "" } else { "model: M\n" };
            let file = "files:\n- {sample: a, fasta: a.faa";
            let top = told(&format!("{model}{key}: \u{1F41F}\n{file}}}\n"), &key);
            let beside = told(&format!("{model}{file}, {key}: \u{1F41F}}}\n"), &key);
            (key, (top, beside))
        })
        .collect()
}

#[test]
fn the_docs_say_which_options_a_manifest_takes() {
    let taken = what_a_manifest_takes();
    assert!(taken.len() > 20, "{taken:?}");
    let docs =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/manifest.md")).unwrap();
    // Tables by their first column's head: the names of their rows.
    let table = |head: &str| -> BTreeSet<String> {
        let start = format!("| {head} |");
        let rows = docs.lines().skip_while(|line| !line.starts_with(&start));
        let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
        rows.map(|row| row.split('`').nth(1).unwrap().to_owned())
            .collect()
    };
    let of = |wanted: (bool, bool)| -> BTreeSet<String> {
        let fits = taken.iter().filter(|&(_, &takes)| takes == wanted);
        fits.map(|(key, _)| key.clone()).collect()
    };
    assert_eq!(table("option"), of((true, true)), "beside a file");
    assert_eq!(table("option of the run"), of((true, false)), "on top");
    let line = docs
        .split("These options can be given only on the command line")
        .nth(1)
        .unwrap();
    let line = line.split(".\n").next().unwrap();
    let named = line.split('`').skip(1).step_by(2);
    let named: BTreeSet<String> = named
        .map(|name| name.trim_start_matches('-').replace('-', "_"))
        .collect();
    assert_eq!(named, of((false, false)), "on the command line");
}

/// The sheets of Nextflow and Snakemake take what a manifest takes beside a file, and the same
/// values.
#[test]
fn sheets_of_engines_take_the_same_options() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let help = String::from_utf8(seqembed(&["run", "-h"]).stdout).unwrap();
    // The values of each option that has a list of them.
    let mut told: Vec<String> = Vec::new();
    for line in help.lines() {
        // An option, or more of what is said about it.
        match told.last_mut() {
            Some(last) if line.starts_with(&" ".repeat(7)) => {
                last.extend([" ", line.trim()]);
            }
            _ => told.push(line.trim().to_owned()),
        }
    }
    let listed: BTreeMap<String, Vec<String>> = told
        .iter()
        .filter_map(|told| {
            let name = told.split_once("--")?.1.split([' ', '[']).next()?;
            let (_, values) = told.split_once("[possible values: ")?;
            let values = values.split(']').next()?.split(", ");
            Some((name.replace('-', "_"), values.map(str::to_owned).collect()))
        })
        // These are of the type of their own in schemas.
        .filter(|(_, values): &(_, Vec<String>)| values[0] != "true")
        .collect();
    assert!(listed.len() > 6, "{listed:?}");
    let beside: BTreeSet<String> = what_a_manifest_takes()
        .into_iter()
        .filter_map(|(key, (_, beside))| beside.then_some(key))
        // A table of spans is a file of its own, which the engines do not stage.
        .filter(|key| !["spans", "whole"].contains(&key.as_str()))
        .collect();

    let mut sheets: Vec<(&str, BTreeMap<String, Vec<String>>)> = Vec::new();
    let text = fs::read_to_string(root.join("nextflow/assets/schema_input.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    let properties = schema["items"]["properties"].as_object().unwrap();
    // Poolings may be several: their names stand in the pattern.
    let words = |pattern: &str| {
        let words = pattern.split(|letter: char| !letter.is_ascii_lowercase() && letter != '-');
        // A letter alone says that capitals are as good.
        let words = words.filter(|word| word.len() > 1).map(str::to_owned);
        words.collect::<BTreeSet<String>>().into_iter().collect()
    };
    let values = |key: &str, about: &serde_json::Value| {
        if key == "pooling" {
            return words(about["pattern"].as_str().unwrap());
        }
        let values = about["enum"].as_array().into_iter().flatten();
        let values = values.map(|value| value.as_str().unwrap().to_owned());
        values.collect()
    };
    let columns = properties.iter();
    sheets.push((
        "Nextflow",
        columns
            .map(|(key, about)| (key.clone(), values(key, about)))
            .collect(),
    ));
    let path = root.join("snakemake/workflow/schemas/samples.schema.yaml");
    let text = fs::read_to_string(path).unwrap();
    let mut columns = BTreeMap::new();
    let mut column = String::new();
    for line in text
        .lines()
        .skip_while(|line| *line != "properties:")
        .skip(1)
    {
        if let Some(values) = line.strip_prefix("    enum: [") {
            let values = values.trim_end_matches(']').split(", ");
            columns.insert(column.clone(), values.map(str::to_owned).collect());
        } else if let Some(pattern) = line.strip_prefix("    pattern: ")
            && column == "pooling"
        {
            columns.insert(column.clone(), words(pattern));
        } else if line.starts_with("  ") && !line.starts_with("    ") {
            column = line.trim().trim_end_matches(':').to_owned();
            columns.insert(column.clone(), Vec::new());
        }
    }
    // All files of the workflow have one format.
    columns.insert("format".to_owned(), listed["format"].clone());
    sheets.push(("Snakemake", columns));

    for (engine, mut columns) in sheets {
        for own in ["sample", "fasta", "fastq", "group"] {
            columns.remove(own);
        }
        let names: BTreeSet<String> = columns.keys().cloned().collect();
        assert_eq!(names, beside, "{engine}");
        for (name, values) in columns {
            let mut expected = listed.get(&name).cloned().unwrap_or_default();
            if name == "pooling" {
                expected.sort();
            }
            assert_eq!(values, expected, "{engine}: {name}");
        }
    }
}

#[test]
fn options_of_the_run_on_top_hold_and_the_command_line_goes_before() {
    let place = Place::new(
        "m.yaml",
        format!(
            "model: {}\nthreads: 1\ndevice: cpu\nkernels: portable\nno_dedup: True\nsave-every: 0.5\nstrict: true\n\
             files:\n- {{sample: bad, fasta: bad.faa}}\n- {{sample: dna, fasta: dna.fna, model: {}}}\n",
            exported("esm2").display(),
            exported("dnabert2").display()
        ),
    );
    let dna = ">x\nACGTTGCAACGGATTACAGATTACA\n";
    fs::write(place.folder.path().join("dna.fna"), dna).unwrap();
    fs::write(place.folder.path().join("bad.faa"), "MK\n").unwrap();
    let run = |more: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().to_str().unwrap();
        let manifest = place.manifest.to_str().unwrap();
        let run = seqembed(&[&["run", manifest, "-o", folder], more].concat());
        let report = fs::read(out.path().join("report.json")).ok();
        let report = report.map(|text| serde_json::from_slice::<serde_json::Value>(&text).unwrap());
        (run, report)
    };
    // The first bad file ends a strict run, before the second model.
    let (strict, report) = run(&[]);
    assert_eq!(strict.status.code(), Some(3), "{strict:?}");
    let report = report.unwrap();
    assert_eq!(report["threads"], 1);
    assert!(report["files"][1]["output"].is_null(), "{report}");
    let (lax, report) = run(&["--strict=false", "--threads", "2"]);
    assert_eq!(lax.status.code(), Some(3), "{lax:?}");
    let report = report.unwrap();
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(report["threads"], most.min(2));
    assert!(report["files"][1]["output"].is_string(), "{report}");
}

#[test]
fn windows_and_layers_are_resolved_for_a_model() {
    let with = |options: &[(&str, &str)]| {
        let mut overrides = Overrides::default();
        overrides.set("model", "M").unwrap();
        for (key, text) in options {
            overrides.set(key, text).unwrap();
        }
        Settings::resolve(&[&overrides])
    };
    let window = |max_length, overlap| {
        Ok(WindowSize {
            max_length,
            overlap,
        })
    };
    assert_eq!(with(&[]).unwrap().window_of(1022), window(1022, 255));
    assert_eq!(
        with(&[("max_length", "1")]).unwrap().window_of(1022),
        window(1, 0)
    );
    assert_eq!(
        with(&[("max_length", "3000"), ("overlap", "0")])
            .unwrap()
            .window_of(1022),
        window(3000, 0)
    );
    let too_much = SettingsError::Overlap {
        overlap: 1022,
        max_length: 1022,
    };
    assert_eq!(
        with(&[("overlap", "1022")]).unwrap().window_of(1022),
        Err(too_much)
    );
    let error = with(&[("overlap", "200"), ("max_length", "100")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "option `overlap: 200` must be less than option `max_length: 100`"
    );

    for (layer, expected) in [
        ("0", Some(0)),
        ("6", Some(6)),
        ("7", None),
        ("-1", Some(6)),
        ("-7", Some(0)),
        ("-8", None),
    ] {
        let found = with(&[("layer", layer)]).unwrap().layers_of(6);
        assert_eq!(
            found.as_ref().ok().cloned(),
            expected.map(Layers::from),
            "{layer}"
        );
        if let Err(error) = found {
            let text =
                format!("there is no layer {layer}: the model has layers 0 to 6 (or -7 to -1)");
            assert_eq!(error.to_string(), text);
        }
    }
    assert_eq!(with(&[]).unwrap().layers_of(33), Ok(33.into()));
    assert_eq!(Settings::resolve(&[]), Err(SettingsError::NoModel));
}
