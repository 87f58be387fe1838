//! `seqembed manifest`: manifests written from files and folders, alone and for array jobs.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use seqembed::manifest::{self, Job};
use seqembed::records::Source;
use seqembed::settings::Overrides;

use crate::common::{DONE, WRONG, assert_run, executable, exported, seqembed, text};

const PROTEIN: &str = ">a\nMKVLAEFPQIMKVLAEFPQIMKVLAEFPQI\n";
const DNA: &str = ">c\nACGTACGTACGTACGTACGTACGTACGTACGTACGTACGTACGTACGTACGTACGTACGTACGT\n";

struct Place(TempDir);

impl Place {
    fn new(files: &[(&str, &str)]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, content) in files {
            let path = place.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        place
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    /// The subcommand in this folder.
    fn manifest(&self, arguments: &[&str]) -> Output {
        Command::new(executable())
            .arg("manifest")
            .args(arguments)
            .current_dir(self.0.path())
            .env("HF_HUB_OFFLINE", "1")
            .env("SEQEMBED_CACHE", self.path("cache"))
            .env("HF_HOME", self.path("hub"))
            .output()
            .unwrap()
    }

    /// The jobs of a manifest, as `run` reads them.
    fn read(&self, name: &str) -> Vec<Job> {
        let settings = Overrides {
            model: Some("m".to_owned()),
            ..Overrides::default()
        };
        manifest::read(&self.path(name), &settings).unwrap().jobs
    }

    /// Samples with the paths of their files below this folder.
    fn listed(&self, name: &str) -> Vec<(String, String)> {
        let jobs = self.read(name).into_iter();
        jobs.map(|job| {
            let Source::Path(path) = job.source else {
                panic!("{:?} is no path", job.source)
            };
            let path = path.strip_prefix(self.0.path()).unwrap();
            (job.sample, path.to_str().unwrap().to_owned())
        })
        .collect()
    }
}

fn pairs(listed: &[(String, String)]) -> Vec<(&str, &str)> {
    let pairs = listed.iter();
    pairs
        .map(|(sample, path)| (sample.as_str(), path.as_str()))
        .collect()
}

fn packed(content: &str) -> Vec<u8> {
    let mut writer = GzEncoder::new(Vec::new(), Compression::fast());
    writer.write_all(content.as_bytes()).unwrap();
    writer.finish().unwrap()
}

#[test]
fn folders_are_walked_and_names_are_made_unique_from_them() {
    let place = Place::new(&[
        ("reads/lane1/gut.faa", PROTEIN),
        ("reads/lane2/gut.faa", PROTEIN),
        ("reads/lane2/skin.faa", PROTEIN),
        ("reads/lane2/skin.pep", PROTEIN),
        ("reads/x/lane2/gut.FASTA", PROTEIN),
        (
            "reads/soil.fq",
            "@a\nMKVLAEFPQIMKVLAEFPQI\n+\nIIIIIIIIIIIIIIIIIIII\n",
        ),
        ("reads/notes.txt", "no sequences"),
        ("reads/.hidden.faa", PROTEIN),
        ("reads/.hidden/a.faa", PROTEIN),
        ("other.txt", PROTEIN),
    ]);
    fs::write(place.path("reads/packed.faa.gz"), packed(PROTEIN)).unwrap();
    // A circle of folders.
    symlink("..", place.path("reads/lane1/up")).unwrap();
    let expected = [
        ("other.txt", "other.txt"),
        ("reads_lane1_gut", "reads/lane1/gut.faa"),
        ("reads_lane2_gut", "reads/lane2/gut.faa"),
        ("skin.faa", "reads/lane2/skin.faa"),
        ("skin.pep", "reads/lane2/skin.pep"),
        ("packed", "reads/packed.faa.gz"),
        ("soil", "reads/soil.fq"),
        ("x_lane2_gut", "reads/x/lane2/gut.FASTA"),
    ];
    for format in ["yaml", "csv"] {
        let name = format!("m.{format}");
        let run = place.manifest(&["reads", "other.txt", "reads/soil.fq", "-o", &name]);
        assert_run(&run, DONE, &["8 files (8 of proteins)"]);
        let listed = place.listed(&name);
        let mut found = pairs(&listed);
        found.sort_by_key(|(_, path)| *path);
        let mut expected = expected.to_vec();
        // lane1/gut and lane2/gut differ by one folder, but a lane2 is in two places.
        expected[1].0 = "lane1_gut";
        assert_eq!(found, expected, "{format}");
        // The same, whatever the order in which they are named; and on standard output.
        let again = place.manifest(&["other.txt", "reads", "--format", format]);
        assert_run(&again, DONE, &[]);
        assert_eq!(again.stdout, fs::read(place.path(&name)).unwrap());
    }
}

#[test]
fn thousands_of_files_have_names_of_their_own_and_a_fixed_order() {
    let place = Place::new(&[]);
    for folder in 0..40 {
        let folder = place.path(&format!("run/{folder}/out"));
        fs::create_dir_all(&folder).unwrap();
        for file in 0..75 {
            fs::write(folder.join(format!("{file}.faa")), PROTEIN).unwrap();
        }
    }
    assert_run(
        &place.manifest(&["run", "-o", "m.yaml"]),
        DONE,
        &["3,000 files"],
    );
    let listed = place.listed("m.yaml");
    let samples: BTreeSet<&str> = listed.iter().map(|(sample, _)| sample.as_str()).collect();
    assert_eq!(samples.len(), 3000);
    assert!(samples.contains("17_out_3"));
    let paths: Vec<&str> = listed.iter().map(|(_, path)| path.as_str()).collect();
    assert!(paths.is_sorted());
}

#[test]
fn odd_names_are_read_back_as_they_are() {
    let names = [
        " begin.faa",
        "a b.faa",
        "a,b;c.faa",
        "quote\"s'.faa",
        "line\nbreak.faa",
        "tab\tstop\r.faa",
        "- dash.faa",
        "#x: {y}.faa",
        "null.faa",
        "007.faa",
        "back\\slash.faa",
        "Grüße 蛋白質.faa",
        "next\u{85}line\u{2028}\u{feff}.faa",
        "~.faa",
    ];
    let place = Place::new(&[]);
    fs::create_dir(place.path("in")).unwrap();
    for name in names {
        fs::write(place.path("in").join(name), PROTEIN).unwrap();
    }
    let long = format!("{}/{}", "f".repeat(150), "g".repeat(240));
    fs::create_dir_all(place.path("in").join(&long).parent().unwrap()).unwrap();
    fs::write(place.path(&format!("in/{long}.faa")), PROTEIN).unwrap();
    for name in ["m.yaml", "m.csv"] {
        assert_run(&place.manifest(&["in", "-o", name]), DONE, &[]);
        let listed = place.listed(name);
        let found: BTreeSet<&str> = listed.iter().map(|(_, path)| &path[3..]).collect();
        let long = format!("{long}.faa");
        let expected: BTreeSet<&str> = names.into_iter().chain([long.as_str()]).collect();
        assert_eq!(found, expected, "{name}");
        let sample = |path: &str| {
            let found = listed.iter().find(|(_, other)| other[3..] == *path);
            found.unwrap().0.as_str()
        };
        assert_eq!(sample("line\nbreak.faa"), "line%0abreak");
        assert_eq!(sample("- dash.faa"), "_ dash");
        assert_eq!(sample("007.faa"), "007");
        assert_eq!(sample(&long).len(), 200);
    }
    // They are embedded under these names.
    let out = place.path("out");
    let run = seqembed(&[
        "run",
        text(&place.path("m.yaml")),
        "-m",
        text(exported("esm2")),
        "-o",
        text(&out),
    ]);
    assert_run(&run, DONE, &[]);
    assert!(out.join("quote\"s'.parquet").exists());

    for (name, told) in [
        (
            OsStr::from_bytes(b"lat\xe9n.faa"),
            [r"lat\xe9n.faa", "not valid UTF-8"],
        ),
        (OsStr::new("end.txt "), ["end.txt ", "white space"]),
    ] {
        let path = place.path("").join(name);
        fs::write(&path, PROTEIN).unwrap();
        let run = Command::new(executable())
            .args(["manifest", "--format", "csv"])
            .arg(&path)
            .output()
            .unwrap();
        assert_run(&run, WRONG, &told);
        assert!(run.stdout.is_empty());
    }
}

#[test]
fn mixed_letters_and_models_that_do_not_fit_are_named() {
    let place = Place::new(&[
        ("in/a.faa", PROTEIN),
        ("in/a.fna", DNA),
        ("in/short.fa", ">s\nMK\n"),
        ("in/empty.fa", ""),
    ]);
    let mixed = place.manifest(&["in"]);
    let told = [
        "warning: 1 file of proteins",
        "a.faa",
        "1 file of DNA",
        "a.fna",
        "--letters dna",
    ];
    assert_run(&mixed, DONE, &told);
    assert_run(&mixed, DONE, &["1 file has no records", "empty.fa"]);
    let only = place.manifest(&["in", "--letters", "dna", "-o", "dna.csv"]);
    assert_run(
        &only,
        DONE,
        &["3 files (1 of DNA, 2 of too few letters to tell)"],
    );
    let listed = place.listed("dna.csv");
    let samples: Vec<&str> = listed.iter().map(|(sample, _)| sample.as_str()).collect();
    assert_eq!(samples, ["a", "empty", "short"]);

    let esm2 = text(exported("esm2"));
    let (dnabert, gone) = (text(exported("dnabert2")), "someone/unheard-of");
    for (model, told) in [
        (esm2, ["is a protein model", "a.fna", "--letters protein"]),
        // Known by name, and not on this machine.
        (
            "esm2_t33_650M_UR50D",
            ["is a protein model", "a.fna", "1 file looks like DNA"],
        ),
        (dnabert, ["is a DNA model", "a.faa", "--letters dna"]),
        (
            "esm2_t33_650M_UR5OD",
            ["did you mean", "esm2_t33_650M_UR50D", "no model"],
        ),
    ] {
        let run = place.manifest(&["in", "-m", model, "-o", "none.yaml"]);
        assert_run(&run, WRONG, &told);
        assert!(!place.path("none.yaml").exists());
    }
    let run = place.manifest(&["in", "-m", gone, "--letters", "protein"]);
    assert_run(&run, DONE, &["not on this machine", "not checked"]);
    for name in ["m.yaml", "m.csv"] {
        let run = place.manifest(&["in", "-m", esm2, "--letters", "protein", "-o", name]);
        assert_run(&run, DONE, &[]);
        let jobs = manifest::read(&place.path(name), &Overrides::default()).unwrap();
        let models = jobs.jobs.iter().map(|job| job.settings.model.as_str());
        assert_eq!(models.collect::<Vec<_>>(), [esm2; 3]);
    }
}

#[test]
fn what_cannot_be_listed_is_named_and_nothing_is_written() {
    let place = Place::new(&[
        ("good/a.faa", PROTEIN),
        ("bad/b.faa", "no sequences"),
        ("bad/c.faa.gz", "@"),
        ("none/readme.txt", ""),
    ]);
    symlink("nowhere", place.path("bad/dangling.faa")).unwrap();
    fs::write(place.path("bad/c.faa.gz"), &packed(PROTEIN)[..20]).unwrap();
    for (arguments, told) in [
        (
            &["good", "missing.faa", "-"][..],
            &["missing.faa: no such file", "standard input"][..],
        ),
        (&["none"], &["none contains no sequence file", ".faa"]),
        (
            &["bad"],
            &["dangling.faa: is a link to a file that does not exist"],
        ),
        (
            &["bad/b.faa", "bad/c.faa.gz"],
            &["b.faa", "line 1", "c.faa.gz"],
        ),
        (&["good", "--split", "2"], &["--split 2", "files (1)"]),
        (
            &["good", "-o", "good/a.faa"],
            &["a.faa would be overwritten", "an input"],
        ),
        (&["good", "-o", "good"], &["good is a folder"]),
        (&["good", "--letters", "dna"], &["--letters"]),
    ] {
        let output = ["-o", "m.yaml"];
        let own = arguments.contains(&"-o");
        let run = place.manifest(&[arguments, if own { &[] } else { &output }].concat());
        assert_run(&run, WRONG, told);
        assert!(!place.path("m.yaml").exists(), "{arguments:?}");
    }
    assert_eq!(
        fs::read_to_string(place.path("good/a.faa")).unwrap(),
        PROTEIN
    );
}

/// Files of 1 to 40 records, compressed or wrapped or not; the number of tokens of each.
fn sized(place: &Place) -> Vec<u64> {
    fs::create_dir(place.path("in")).unwrap();
    (1..=40_u64)
        .map(|records| {
            let mut content = String::new();
            for record in 0..records {
                let letters = "MKVLAEFPQI".repeat(usize::try_from(record % 7).unwrap());
                let words = "x".repeat(50);
                content += ">record with a long header ";
                content += &words;
                content += "\n";
                content += &letters.replace("PQ", "P\nQ");
                content += "\n";
            }
            let name = format!("in/{records:02}.faa");
            if records.is_multiple_of(3) {
                fs::write(place.path(&(name + ".gz")), packed(&content)).unwrap();
            } else {
                fs::write(place.path(&name), content).unwrap();
            }
            (0..records).map(|record| record % 7 * 10 + 2).sum()
        })
        .collect()
}

#[test]
fn a_split_has_every_file_once_and_parts_of_equal_tokens() {
    let place = Place::new(&[]);
    let tokens = sized(&place);
    let run = place.manifest(&["in", "--split", "6", "-o", "jobs.csv"]);
    assert_run(&run, DONE, &["jobs.1.csv to ", "jobs.6.csv: 40 files"]);
    let mut all = BTreeSet::new();
    let mut works = Vec::new();
    for part in 1..=6 {
        let listed = place.listed(&format!("jobs.{part}.csv"));
        let numbers = listed
            .iter()
            .map(|(sample, _)| sample.parse::<usize>().unwrap());
        let numbers: Vec<usize> = numbers.collect();
        assert!(numbers.is_sorted());
        works.push(
            numbers
                .iter()
                .map(|&number| tokens[number - 1])
                .sum::<u64>(),
        );
        all.extend(numbers);
    }
    assert_eq!(all, (1..=40).collect());
    let (least, most) = (works.iter().min().unwrap(), works.iter().max().unwrap());
    assert!(most - least < 60, "{works:?}");
    let said = String::from_utf8_lossy(&run.stderr).replace(',', "");
    assert!(
        said.contains(&format!("{least} to {most} tokens each")),
        "{said}"
    );
    assert!(!place.path("jobs.7.csv").exists() && !place.path("jobs.csv").exists());
    // A smaller split leaves those of the larger one, and says so.
    let fewer = place.manifest(&["in", "--split", "4", "-o", "jobs.csv"]);
    assert_run(
        &fewer,
        DONE,
        &["jobs.5.csv is of an earlier split", "delete"],
    );
    let again = fs::read(place.path("jobs.1.csv")).unwrap();
    assert_run(
        &place.manifest(&["in", "--split", "4", "-o", "jobs.csv"]),
        DONE,
        &[],
    );
    assert_eq!(fs::read(place.path("jobs.1.csv")).unwrap(), again);
    // One file that is most of the work.
    fs::write(
        place.path("in/big.faa"),
        format!(">b\n{}\n", "MKVLAEFPQI".repeat(9000)),
    )
    .unwrap();
    let run = place.manifest(&["in", "--split", "3", "-o", "big.yaml"]);
    assert_run(
        &run,
        DONE,
        &["big.faa alone has 2.", "a file is not divided"],
    );
}

/// The script of docs/slurm.md for an array job, its shell part run without SLURM: a task for each
/// number, one of them twice.
#[test]
fn the_array_script_runs_each_manifest_in_a_folder_of_its_own_and_resumes() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/slurm.md");
    let page = fs::read_to_string(page).unwrap();
    let scripts: Vec<&str> = page
        .split("```")
        .filter(|block| block.contains("SLURM_ARRAY_TASK_ID") && block.contains("#!/bin/bash"))
        .collect();
    let [script] = scripts[..] else {
        panic!("docs/slurm.md has {} array scripts", scripts.len())
    };
    let script = script.split_once('\n').unwrap().1;
    assert!(script.contains("#SBATCH --array=1-8\n"), "{script}");
    let place = Place::new(&[]);
    sized(&place);
    let run = place.manifest(&[
        "in",
        "--split",
        "3",
        "-o",
        "jobs.yaml",
        "-m",
        text(exported("esm2")),
    ]);
    assert_run(&run, DONE, &[]);
    let bin = place.path("bin");
    fs::create_dir(&bin).unwrap();
    symlink(executable(), bin.join("seqembed")).unwrap();
    let path = std::env::join_paths(
        [bin.clone()]
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let path = path.unwrap();
    let task = |number: u32| {
        let mut shell = Command::new("bash")
            .current_dir(place.0.path())
            .env("PATH", &path)
            .env("SLURM_ARRAY_TASK_ID", number.to_string())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = shell.stdin.take().unwrap();
        input.write_all(script.as_bytes()).unwrap();
        drop(input);
        shell.wait_with_output().unwrap()
    };
    for number in 1..=3 {
        assert_run(&task(number), DONE, &[]);
    }
    let mut outputs: Vec<PathBuf> = (1..=3)
        .flat_map(|part| fs::read_dir(place.path(&format!("out/{part}"))).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "parquet"))
        .collect();
    outputs.sort();
    assert_eq!(outputs.len(), 40);
    let report = |part: u32| {
        let text = fs::read(place.path(&format!("out/{part}/report.json"))).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()
    };
    assert_eq!(report(2)["totals"]["kept_files"], 0);
    assert_run(&task(2), DONE, &[]);
    assert_eq!(
        report(2)["totals"]["kept_files"],
        report(2)["totals"]["files"]
    );
    // A task without a manifest fails, and the others are not touched.
    let missing = task(4);
    assert_run(&missing, WRONG, &["jobs.4.yaml", "no such file"]);
}
