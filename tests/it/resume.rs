//! An interrupted run goes on with `--resume`, takes nothing that does not belong, and says what it
//! computes again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::interrupted::{
    assert_same, closed_pipe, copy, end, flip, kill_once_saved, leftovers, modified, proteins,
    signal, wait_for,
};
use crate::common::{self, DONE, PARTLY, Place, WRONG, assert_run, exported, seqembed, text};
use seqembed::output::{self, Format};

/// A folder with a long file, a copy of the model, and a run of both that was killed once it had
/// saved rows.
struct Killed {
    place: Place,
}

impl Killed {
    fn new() -> Self {
        let place = Place::new(&[
            ("short.faa", proteins(1, 10).as_bytes()),
            ("long.faa", proteins(2, 400).as_bytes()),
        ]);
        copy(exported("esm2"), &place.path("model"));
        let killed = Self { place };
        common::retry_if_late(|before| {
            let _ = fs::remove_dir_all(killed.path("killed"));
            let mut child = killed.command("killed", &[]);
            child.args(["--save-every", "0.01"]);
            child.env("SEQEMBED_INJECT", common::slower(before));
            let child = child.stderr(Stdio::null()).spawn().unwrap();
            kill_once_saved(child, &killed.path("killed")).then_some(())
        });
        killed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    /// `seqembed embed` of both files.
    fn command(&self, out: &str, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seqembed"));
        command
            .args([
                "embed",
                text(&self.path("short.faa")),
                text(&self.path("long.faa")),
            ])
            .args(["-m", text(&self.path("model")), "-o", text(&self.path(out))])
            .args(["--threads", "1"])
            .args(options);
        if !options.contains(&"--batch-tokens") {
            command.args(["--batch-tokens", "64"]);
        }
        command
    }

    /// Goes on with a copy of the killed run, and holds the outcome against a run from the start
    /// with the same options. Returns what was said, and how many rows were taken from what was
    /// saved.
    #[track_caller]
    fn resume(&self, name: &str, options: &[&str]) -> (String, u64) {
        if !self.path(name).exists() {
            copy(&self.path("killed"), &self.path(name));
        }
        let fresh = format!("{name}-fresh");
        let run = self.command(&fresh, options).output().unwrap();
        assert_run(&run, DONE, &[]);
        let mut with = options.to_vec();
        with.push("--resume");
        let run = self.command(name, &with).output().unwrap();
        assert_run(&run, DONE, &[]);
        for entry in fs::read_dir(self.path(&fresh)).unwrap() {
            let entry = entry.unwrap();
            let file = entry.file_name().into_string().unwrap();
            if file.starts_with('.') || file == "report.json" {
                continue;
            }
            let (expected, _) = output::read(&entry.path()).unwrap();
            let (rows, _) = output::read(&self.path(name).join(&file)).unwrap();
            assert_same(&rows, &expected, &format!("{name}: {file}"));
        }
        assert_eq!(leftovers(&self.path(name)), Vec::<String>::new());
        let restored = report(&self.path(name))["totals"]["restored"].as_u64();
        (String::from_utf8(run.stderr).unwrap(), restored.unwrap())
    }
}

fn report(out: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(out.join("report.json")).unwrap()).unwrap()
}

#[track_caller]
fn assert_says(said: &str, fragments: &[&str]) {
    for fragment in fragments {
        assert!(said.contains(fragment), "`{fragment}` is not in:\n{said}");
    }
}

#[test]
fn only_what_still_belongs_is_taken() {
    let killed = Killed::new();
    // Nothing changed, and what changes no numbers.
    let (said, all) = killed.resume("same", &[]);
    assert!(all > 10, "{all} rows\n{said}");
    assert!(!said.contains("warning"), "{said}");
    let (said, rows) = killed.resume("batches", &["--batch-tokens", "200", "--no-dedup"]);
    assert_eq!(rows, all, "{said}");
    // Rows do not depend on the format of the file that they go to.
    let (_, rows) = killed.resume("format", &["--format", "npz"]);
    assert_eq!(rows, all);
    // Each option that decides numbers.
    for (option, value, told) in [
        ("--pooling", "mean-all", "pooling was mean and is mean-all"),
        ("--layer", "1", "layer was 3 and is 1"),
        ("--long", "truncate", "long was window and is truncate"),
        ("--max-length", "50", "max_length was 1022 and is 50"),
        ("--overlap", "3", "overlap was 255 and is 3"),
        ("--unknown", "skip", "unknown was replace and is skip"),
        ("--kernels", "portable", "kernels was auto and is portable"),
    ] {
        let name = option.trim_start_matches('-');
        let (said, rows) = killed.resume(name, &[option, value]);
        assert_says(&said, &["long: recomputed: ", told]);
        assert_eq!(rows, 0, "{name}");
    }
    // A frame that was damaged, and a journal.
    copy(&killed.path("killed"), &killed.path("shard"));
    flip(&killed.path("shard/.seqembed/rows-000000"), |bytes| {
        bytes / 2
    });
    let (said, rows) = killed.resume("shard", &[]);
    assert_says(&said, &["rows-000000", "damaged", "recomputed"]);
    assert!(rows < all, "{rows}");
    copy(&killed.path("killed"), &killed.path("journal"));
    flip(&killed.path("journal/.seqembed/journal"), |bytes| {
        bytes - 20
    });
    let (said, _) = killed.resume("journal", &[]);
    assert_says(&said, &["journal", "damaged", "recomputed"]);
    // A byte of the input.
    let file = killed.path("long.faa");
    let whole = fs::read_to_string(&file).unwrap();
    // Of a long record: those run first, so its row is saved.
    let header = whole.find(">s2_11 ").unwrap();
    let at = header + whole[header..].find('\n').unwrap() + 2;
    let mut changed = whole.clone();
    changed.replace_range(at..=at, if &whole[at..=at] == "A" { "C" } else { "A" });
    fs::write(&file, changed).unwrap();
    let (said, rows) = killed.resume("input", &[]);
    assert_says(&said, &["long.faa has changed", "recomputed"]);
    assert!(rows < all && rows > 0, "{rows}");
    // A record more at the start: no row stands where it stood.
    fs::write(&file, format!(">first\nMKV\n{whole}")).unwrap();
    let (said, rows) = killed.resume("shifted", &[]);
    assert_says(&said, &["long.faa has changed"]);
    assert_eq!(rows, 0);
    fs::write(&file, whole).unwrap();
    // Another model under the same name.
    let model = killed.path("model");
    fs::remove_dir_all(&model).unwrap();
    let checkpoint = common::fixtures().join("esm2/checkpoints/hub-transformers5");
    let run = seqembed(&[
        "export",
        text(&checkpoint),
        "-o",
        text(&model),
        "--name",
        "esm2",
    ]);
    assert_run(&run, DONE, &[]);
    let info = model.join("seqembed.json");
    let mut facts: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&info).unwrap()).unwrap();
    facts["weights_sha256"] = "another".into();
    // The file's hash of itself, in the order of its keys and without the hash.
    let map = facts.as_object_mut().unwrap();
    map.remove("check").unwrap();
    map.sort_keys();
    let check = blake3::hash(facts.to_string().as_bytes())
        .to_hex()
        .to_string();
    facts["check"] = check.into();
    fs::write(&info, facts.to_string()).unwrap();
    let (said, rows) = killed.resume("weights", &[]);
    assert_says(&said, &["recomputed", "weights_sha256 differs"]);
    assert_eq!(rows, 0);
    // Without --resume nothing is taken, and what is removed is told.
    let run = killed.command("killed", &[]).output().unwrap();
    assert_run(&run, DONE, &["removed what", "with --resume"]);
    assert_eq!(report(&killed.path("killed"))["totals"]["restored"], 0);
    assert_eq!(leftovers(&killed.path("killed")), Vec::<String>::new());
}

#[test]
fn finished_files_stay_unless_they_must_be_made_again() {
    let place = Place::new(&[
        ("a.faa", b">a\nMKV\n>b\nMKVL\n"),
        ("b.faa", b">a\nGGG\n"),
        ("c.faa", b">a\nMKVW\n>broken>\nMKV\n"),
    ]);
    let files = ["a.faa", "b.faa", "c.faa"].map(|name| place.path(name));
    let out = place.path("out");
    let embed = |options: &[&str]| {
        let mut arguments = vec!["embed"];
        arguments.extend(files.iter().map(|file| text(file)));
        arguments.extend(["-m", text(exported("esm2")), "-o", text(&out)]);
        arguments.extend(options);
        seqembed(&arguments)
    };
    fs::write(&files[2], b">a\nMK>V\n").unwrap();
    assert_run(&embed(&[]), PARTLY, &["c.faa"]);
    let parquet = |name: &str| out.join(format!("{name}.parquet"));
    let first = ["a", "b"].map(|name| modified(&parquet(name)));
    // The one that failed is tried again, the others are not touched, and no model is loaded for
    // them.
    assert_run(
        &embed(&["--resume"]),
        PARTLY,
        &["2 files", "were already finished"],
    );
    fs::write(&files[2], b">a\nMKVW\n").unwrap();
    assert_run(&embed(&["--resume"]), DONE, &[]);
    assert_eq!(["a", "b"].map(|name| modified(&parquet(name))), first);
    let run = embed(&["--resume"]);
    assert_run(&run, DONE, &["model    not loaded", "3 files"]);
    let told = report(&out);
    assert_eq!(told["totals"]["kept_files"], 3);
    assert_eq!(told["totals"]["records"], 4);
    assert_eq!(told["files"][0]["records"], 2);
    assert_eq!(told["files"][2]["kept"], true);
    // An input of the same length with another byte, and outputs that are gone or were changed.
    fs::write(&files[0], b">a\nMKV\n>b\nMKVW\n").unwrap();
    fs::remove_file(parquet("b")).unwrap();
    fs::write(parquet("c"), b"something else").unwrap();
    let run = embed(&["--resume"]);
    assert_run(
        &run,
        DONE,
        &[
            "a: recomputed: ",
            "a.faa has changed",
            "b: recomputed: ",
            "b.parquet no longer exists",
            "c: recomputed: ",
            "c.parquet was changed after it was written",
        ],
    );
    let rows = place.rows("a.parquet").unwrap();
    let alone = common::rows_of("esm2", ">b\nMKVW\n", &[]);
    common::assert_close(&rows.values[rows.hidden..], &alone.values, 1e-6, "b");
    // Another format is another file.
    let run = embed(&["--resume", "--format", "npz"]);
    assert_run(&run, DONE, &["format was parquet and is npz"]);
    assert!(out.join("a.npz").exists());
}

/// The bytes of every output in a folder.
fn outputs(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(out).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let names = files.map(|entry| entry.file_name().into_string().unwrap());
    let outputs = names.filter(|name| name != "report.json");
    outputs
        .map(|name| (name.clone(), fs::read(out.join(name)).unwrap()))
        .collect()
}

/// Overwrites four bytes and puts the time back: neither length nor time tells.
fn damage(path: &Path, at: impl Fn(usize) -> usize) {
    let when = modified(path);
    let mut bytes = fs::read(path).unwrap();
    let at = at(bytes.len());
    bytes[at..at + 4].iter_mut().for_each(|byte| *byte ^= 0x11);
    fs::write(path, bytes).unwrap();
    let file = fs::File::options().append(true).open(path).unwrap();
    file.set_modified(when).unwrap();
}

/// A sample in each format, run into one folder with other options and other caches, and damaged on
/// the way.
#[test]
fn the_bytes_of_a_finished_file_decide() {
    let place = Place::new(&[("x.faa", proteins(5, 9).as_bytes())]);
    let mut manifest = format!("model: {}\nfiles:\n", text(exported("esm2")));
    for format in Format::ALL {
        writeln!(
            manifest,
            "- {{sample: {format}, fasta: x.faa, format: {format}}}"
        )
        .unwrap();
    }
    fs::write(place.path("manifest.yaml"), manifest).unwrap();
    let (manifest, out) = (place.path("manifest.yaml"), place.path("out"));
    let cache = place.path("cache");
    let files = cache.join("files");
    let run = |options: &[&str]| {
        let mut arguments = vec!["run", text(&manifest), "-o", text(&out)];
        arguments.extend(options);
        let run = seqembed(&arguments);
        assert_run(&run, DONE, &[]);
        String::from_utf8(run.stderr).unwrap()
    };
    let kept = || report(&out)["totals"]["kept_files"].as_u64().unwrap();
    let cached = ["--pooling", "mean", "--cache-dir", text(&cache)];
    let alone = ["--pooling", "max", "--resume"];
    run(&cached);
    let mean = outputs(&out);
    assert_eq!(mean.len(), 8, "npy has three files");
    run(&alone);
    let max = outputs(&out);
    for format in Format::ALL {
        let name = format!("{format}.{format}");
        assert_ne!(mean[&name], max[&name]);
        // The length tells nothing.
        if format == Format::Npy {
            assert_eq!(mean[&name].len(), max[&name].len());
        }
    }
    // The folder holds the other run's files: the cache has ours.
    let said = run(&cached);
    assert_eq!((kept(), outputs(&out) == mean), (6, true), "{said}");
    let told = "npz.npz was changed after it was written: it was restored from the copy in the \
                cache";
    assert_says(&said, &[told]);
    // And without a cache they are recomputed.
    let said = run(&alone);
    assert_eq!((kept(), outputs(&out) == max), (0, true), "{said}");
    assert_says(
        &said,
        &[
            "npz: recomputed: ",
            "npz.npz was changed after it was written",
        ],
    );
    assert!(!run(&alone).contains("warning"));
    assert_eq!(kept(), 6);
    // Four bytes anywhere.
    for (name, bytes) in &max {
        let at = bytes.len() as u64 * 7 / 11;
        damage(&out.join(name), |_| usize::try_from(at).unwrap());
        let said = run(&alone);
        assert_eq!((kept(), outputs(&out) == max), (5, true), "{name}: {said}");
        let told = format!("{name} was changed after it was written");
        assert_says(&said, &["recomputed: ", &told]);
    }
    // A file of a set that is gone, or something else in its place.
    for name in ["npy.tsv", "npy.provenance.json", "npy.npy", "h5.h5"] {
        fs::remove_file(out.join(name)).unwrap();
        let said = run(&alone);
        assert_eq!((kept(), outputs(&out) == max), (5, true), "{name}: {said}");
        assert_says(
            &said,
            &["recomputed: ", &format!("{name} no longer exists")],
        );
    }
    fs::remove_file(out.join("pt.pt")).unwrap();
    pipe(&out.join("pt.pt"));
    let refused = seqembed(&["run", text(&manifest), "-o", text(&out), "--resume"]);
    let told = "pt.pt: it is a named pipe, not a file";
    assert_run(&refused, WRONG, &["cannot write", told]);
    fs::remove_file(out.join("pt.pt")).unwrap();
    let said = run(&alone);
    assert_eq!((kept(), outputs(&out) == max), (5, true), "{said}");
    assert_says(&said, &["recomputed: ", "pt.pt no longer exists"]);
    // The cache gives whole outputs back, and none that was damaged there.
    fs::remove_dir_all(&out).unwrap();
    let said = run(&cached);
    assert_eq!((kept(), outputs(&out) == mean), (6, true), "{said}");
    assert!(!said.contains("warning"), "{said}");
    damage(&files.join("npz.npz"), |length| length / 2);
    damage(&files.join("npy.tsv"), |length| length / 2);
    fs::remove_file(files.join("h5.h5")).unwrap();
    // The copy that is gone is made again from what is there.
    assert!(!run(&cached).contains("warning"));
    fs::remove_dir_all(&out).unwrap();
    let said = run(&cached);
    assert_eq!((kept(), outputs(&out) == mean), (4, true), "{said}");
    for name in ["npz.npz", "npy.tsv"] {
        let told = format!(
            "and in the cache {} was changed",
            files.join(name).display()
        );
        assert_says(&said, &["recomputed: ", &told]);
    }
    assert!(outputs(&files) == mean);
}

/// Makes a named pipe.
fn pipe(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

/// Puts something in a file's place.
type Make<'m> = &'m dyn Fn(&Path);

#[test]
fn what_is_no_file_is_not_written_through_nor_waited_for() {
    let place = Place::new(&[("a.faa", b">a\nMKV\n"), ("precious", b"precious")]);
    let work = place.path("out/.seqembed");
    let (lock, journal) = (work.join("lock"), work.join("journal"));
    assert_run(&place.embed("esm2", "a.faa", &[]), DONE, &[]);
    let link = |path: &Path| std::os::unix::fs::symlink(place.path("precious"), path).unwrap();
    let make_folder = |path: &Path| fs::create_dir(path).unwrap();
    for (path, make, told) in [
        (&lock, &pipe as Make, "named pipe"),
        (&lock, &make_folder, "directory"),
        (&lock, &link, "symbolic link"),
        (&journal, &pipe, "named pipe"),
        (&journal, &make_folder, "folder"),
        (&work.join("rows-000007"), &pipe, "named pipe"),
    ] {
        let aside = place.path("aside");
        let was_there = fs::rename(path, &aside).is_ok();
        make(path);
        let run = place.embed("esm2", "a.faa", &["--resume"]);
        assert_run(&run, 1, &[text(path), told]);
        let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
        if was_there {
            fs::rename(&aside, path).unwrap();
        }
    }
    // Links in the place of what is written anew are replaced.
    fs::remove_file(&journal).unwrap();
    for name in ["journal", "journal.new", "rows-000000"] {
        link(&work.join(name));
    }
    link(&place.path("out/report.tmp"));
    assert_run(&place.embed("esm2", "a.faa", &[]), DONE, &[]);
    assert_eq!(fs::read(place.path("precious")).unwrap(), b"precious");
    assert!(!journal.is_symlink());
}

#[test]
fn a_folder_in_an_outputs_place_costs_that_file_alone() {
    let place = Place::new(&[("a.faa", b">a\nMKV\n"), ("b.faa", b">b\nMKVW\n")]);
    let (a, b, out) = (place.path("a.faa"), place.path("b.faa"), place.path("out"));
    for (format, name) in [("parquet", "a.parquet"), ("npy", "a.tsv")] {
        fs::create_dir_all(out.join(name)).unwrap();
        let run = seqembed(&[
            "embed",
            text(&a),
            text(&b),
            "-m",
            text(exported("esm2")),
            "-o",
            text(&out),
            "--format",
            format,
        ]);
        assert_run(&run, PARTLY, &[name, "there is a folder of this name"]);
        assert_eq!(place.rows(&format!("b.{format}")).unwrap().ids, ["b"]);
        let told = report(&out);
        assert_eq!(told["totals"]["failed_files"], 1);
        assert_eq!(told["files"][0]["sample"], "a");
        assert!(told["files"][0]["error"].as_str().unwrap().contains(name));
    }
    assert!(!out.join("a.npy").exists());
}

#[test]
fn a_cache_may_be_the_output_folders_own() {
    let place = Place::new(&[("a.faa", b">a\nMKV\n")]);
    let own = place.path("out/.seqembed");
    assert_run(
        &place.embed("esm2", "a.faa", &["--cache-dir", text(&own)]),
        DONE,
        &[],
    );
    let link = place.path("link");
    std::os::unix::fs::symlink(&own, &link).unwrap();
    for cache in [&own, &link] {
        let run = place.embed("esm2", "a.faa", &["--cache-dir", text(cache)]);
        assert_run(&run, DONE, &["not loaded"]);
    }
}

/// Writes a journal anew, each line after a change of its JSON.
fn rewrite(journal: &Path, change: impl Fn(&mut serde_json::Value)) {
    let lines = fs::read_to_string(journal).unwrap();
    let lines = lines.lines().map(|line| {
        let mut value: serde_json::Value = serde_json::from_str(&line[17..]).unwrap();
        change(&mut value);
        let json = value.to_string();
        format!("{} {json}\n", &blake3::hash(json.as_bytes()).to_hex()[..16])
    });
    fs::write(journal, lines.collect::<String>()).unwrap();
}

/// The largest numbers have no successor, and no run comes to them.
#[test]
fn numbers_that_no_run_reaches_are_not_counted_on_from() {
    let killed = Killed::new();
    copy(&killed.path("killed"), &killed.path("largest"));
    let work = killed.path("largest").join(".seqembed");
    fs::write(work.join(format!("rows-{}", u64::MAX)), "").unwrap();
    fs::write(work.join(format!("rows-{}", u64::MAX - 1)), "").unwrap();
    rewrite(&work.join("journal"), |line| {
        if let Some(attempt) = line.get_mut("attempt") {
            attempt["attempt"] = u64::MAX.into();
        }
    });
    let (_, rows) = killed.resume("largest", &[]);
    assert_eq!(rows, 0);
}

#[test]
fn a_journal_of_another_version_is_told() {
    let killed = Killed::new();
    // Nothing finished yet may be there: then there is now.
    let (_, all) = killed.resume("same", &[]);
    for version in [1, 99] {
        let name = format!("version-{version}");
        copy(&killed.path("killed"), &killed.path(&name));
        let log = killed.path(&name).join(".seqembed/journal");
        let done = fs::read_to_string(&log)
            .unwrap()
            .matches("{\"done\":")
            .count();
        rewrite(&log, |line| {
            if let Some(begin) = line.get_mut("begin") {
                begin["version"] = version.into();
            }
            if let Some(done) = line.get_mut("done") {
                done.as_object_mut().unwrap().remove("files");
                done["output"] = "short.parquet".into();
                done["bytes"] = 1.into();
            }
        });
        let (said, rows) = killed.resume(&name, &[]);
        if version == 1 {
            // Rows are as good as ours.
            assert_eq!(rows, all, "{said}");
            assert_eq!(
                said.contains("it was written by an older version of seqembed"),
                done > 0,
                "{said}"
            );
        } else {
            assert_eq!(rows, 0);
            assert_says(
                &said,
                &[
                    "journal: it was written by another version of seqembed",
                    "version 99",
                ],
            );
        }
    }
    // Nobody knows which version wrote a log without its first line.
    copy(&killed.path("killed"), &killed.path("headless"));
    flip(&killed.path("headless/.seqembed/journal"), |_| 20);
    let (said, rows) = killed.resume("headless", &[]);
    assert_says(&said, &["journal: its first line is damaged", "recomputed"]);
    assert_eq!(rows, 0);
    // Finished files of the version before are told, and made again.
    let log = killed.path("same/.seqembed/journal");
    rewrite(&log, |line| {
        if let Some(begin) = line.get_mut("begin") {
            begin["version"] = 1.into();
        }
        if let Some(done) = line.get_mut("done") {
            done.as_object_mut().unwrap().remove("files");
        }
    });
    let run = killed.command("same", &["--resume"]).output().unwrap();
    assert_run(
        &run,
        DONE,
        &[
            "an older version of seqembed",
            "2 finished files will be recomputed",
        ],
    );
    assert_eq!(report(&killed.path("same"))["totals"]["kept_files"], 0);
}

#[test]
fn a_limit_of_file_sizes_is_an_error() {
    let place = Place::new(&[("a.faa", proteins(1, 200).as_bytes())]);
    let command = |limit: &str| {
        let limited = format!("ulimit -f {limit} && exec \"$0\" \"$@\"");
        Command::new("sh")
            .args(["-c", &limited, env!("CARGO_BIN_EXE_seqembed"), "embed"])
            .args([text(&place.path("a.faa")), "-m", text(exported("esm2"))])
            .args([
                "-o",
                text(&place.path("out")),
                "--pooling",
                "none",
                "--resume",
            ])
            .output()
            .unwrap()
    };
    // 16 or 32 kB, as the shell counts.
    assert_run(
        &command("32"),
        1,
        &["File too large", "ulimit -f", "--resume"],
    );
    assert_eq!(
        leftovers(&place.path("out"))
            .iter()
            .find(|name| name.ends_with(".partial")),
        None
    );
    assert_run(&command("unlimited"), DONE, &[]);
}

#[test]
fn what_another_process_is_writing_is_not_swept() {
    let place = Place::new(&[("a.faa", b">a\nMKV\n")]);
    let out = place.path("out");
    assert_run(&place.embed("esm2", "a.faa", &[]), DONE, &[]);
    for convert in [false, true] {
        let (left, held, other) = (
            out.join(".x.npz.AbC123.partial"),
            out.join(".y.npz.AbC123.partial"),
            out.join(".z.partial"),
        );
        fs::write(&left, "left").unwrap();
        fs::write(&other, "of another program").unwrap();
        let file = fs::File::create(&held).unwrap();
        file.lock().unwrap();
        let run = if convert {
            let from = out.join("a.parquet");
            seqembed(&["convert", text(&from), "-o", text(&out), "--format", "h5"])
        } else {
            let run = place.embed("esm2", "a.faa", &["--resume"]);
            assert_run(
                &run,
                DONE,
                &["1 unfinished file of an interrupted run was removed from"],
            );
            run
        };
        assert_run(&run, DONE, &[]);
        assert!(!left.exists() && held.exists() && other.exists());
    }
}

#[test]
fn a_cache_outlives_the_output_folder() {
    let place = Place::new(&[
        ("a.faa", proteins(3, 12).as_bytes()),
        ("b.faa", b">x\nMKV\n"),
    ]);
    let cache = place.path("cache");
    let run = |out: &str, files: &[&str]| {
        let files: Vec<PathBuf> = files.iter().map(|file| place.path(file)).collect();
        let mut arguments = vec!["embed"];
        arguments.extend(files.iter().map(|file| text(file)));
        let out = place.path(out);
        arguments.extend(["-m", text(exported("esm2")), "-o", text(&out)]);
        arguments.extend(["--cache-dir", text(&cache)]);
        seqembed(&arguments)
    };
    assert_run(&run("first", &["a.faa"]), DONE, &[]);
    assert_run(&run("second", &["a.faa", "b.faa"]), DONE, &["1 file"]);
    let told = report(&place.path("second"));
    assert_eq!(told["totals"]["kept_files"], 1);
    assert_eq!(
        told["files"][0]["output"],
        text(&place.path("second/a.parquet"))
    );
    let bytes = |path: &str| fs::read(place.path(path)).unwrap();
    assert_eq!(bytes("first/a.parquet"), bytes("second/a.parquet"));
    fs::remove_dir_all(place.path("second")).unwrap();
    assert_run(&run("second", &["a.faa", "b.faa"]), DONE, &["not loaded"]);
    assert_eq!(bytes("first/a.parquet"), bytes("second/a.parquet"));
    assert!(place.path("second/b.parquet").exists());
}

#[test]
fn one_process_at_a_time() {
    let place = Place::new(&[("a.faa", b">a\nMKV\n")]);
    let out = place.path("out");
    let mut first = Command::new(env!("CARGO_BIN_EXE_seqembed"))
        .args(["embed", "-", "-m", text(exported("esm2")), "-o", text(&out)])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lock = out.join(".seqembed/lock");
    wait_for("the first run to begin", || {
        fs::read_to_string(&lock).is_ok_and(|text| text.ends_with('\n'))
    });
    let holder = format!("process {} on ", first.id());
    for options in [&[][..], &["--resume"]] {
        assert_run(
            &place.embed("esm2", "a.faa", options),
            1,
            &["in use", &holder],
        );
    }
    first.stdin.take().unwrap().write_all(b">b\nMKV\n").unwrap();
    assert_run(&end(first), DONE, &[]);
    assert!(out.join("stdin.parquet").exists());
    assert!(!out.join("a.parquet").exists());
    // The lock goes with its process.
    assert_run(&place.embed("esm2", "a.faa", &[]), DONE, &[]);
}

#[test]
fn one_bad_file_among_many() {
    let files: Vec<(String, String)> = (0..100)
        .map(|at| {
            let bytes = if at == 42 {
                ">x\nMK>V\n".to_owned()
            } else {
                proteins(at, 3)
            };
            (format!("f{at}.faa"), bytes)
        })
        .collect();
    let named: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, text)| (&name[..], text.as_bytes()))
        .collect();
    let place = Place::new(&named);
    let paths: Vec<PathBuf> = files.iter().map(|(name, _)| place.path(name)).collect();
    let out = place.path("out");
    let embed = || {
        let mut arguments = vec![
            "embed",
            "--resume",
            "-m",
            text(exported("esm2")),
            "-o",
            text(&out),
        ];
        arguments.extend(paths.iter().map(|path| text(path)));
        seqembed(&arguments)
    };
    assert_run(&embed(), PARTLY, &["f42.faa", "line 2"]);
    let there = (0..100).filter(|at| out.join(format!("f{at}.parquet")).exists());
    assert_eq!(there.count(), 99);
    assert!(!out.join("f42.parquet").exists());
    fs::write(&paths[42], ">x\nMKV\n").unwrap();
    assert_run(&embed(), DONE, &["99 files"]);
    assert_eq!(place.rows("f42.parquet").unwrap().ids, ["x"]);
}

#[test]
fn the_same_sequence_once() {
    let mut fasta = String::new();
    for at in 0..300 {
        // 30 sequences, each ten times; some in windows.
        let sequence = &proteins(at % 30, 12);
        let sequence = sequence.lines().nth(23).unwrap();
        writeln!(fasta, ">r{at}\n{sequence}").unwrap();
    }
    let other = fasta.replace(">r", ">other");
    let place = Place::new(&[("a.faa", fasta.as_bytes()), ("b.faa", other.as_bytes())]);
    for pooling in ["mean", "mean-all", "cls", "max", "none"] {
        let run = |out: &str, more: &[&str]| {
            let (a, b, out) = (place.path("a.faa"), place.path("b.faa"), place.path(out));
            let mut arguments = vec!["embed", text(&a), text(&b), "-m", text(exported("esm2"))];
            arguments.extend(["-o", text(&out), "--pooling", pooling, "--format", "npz"]);
            arguments.extend(["--max-length", "60", "--batch-tokens", "300"]);
            arguments.extend(more);
            let run = seqembed(&arguments);
            assert_run(&run, DONE, &[]);
            (report(&out), String::from_utf8(run.stderr).unwrap())
        };
        let (once, said) = run("once", &[]);
        let (each, _) = run("each", &["--no-dedup"]);
        for file in ["a.npz", "b.npz"] {
            let bytes = |out: &str| fs::read(place.path(out).join(file)).unwrap();
            assert!(bytes("once") == bytes("each"), "{pooling}: {file}");
        }
        // Vectors of residues are not kept over the border of two chunks.
        let runs = if pooling == "none" { 60 } else { 30 };
        assert_eq!(once["totals"]["repeated"], 600 - runs, "{pooling}");
        let told = format!("repeated {} records not recomputed", 600 - runs);
        assert_says(&said, &[&told]);
        assert_eq!(each["totals"]["repeated"], 0);
        let tokens = |report: &serde_json::Value| report["totals"]["tokens"].as_u64().unwrap();
        assert_eq!(tokens(&once) * 600 / runs, tokens(&each), "{pooling}");
    }
}

#[test]
fn nobody_listens() {
    // The standard output: what was to be written is told.
    let mut child = Command::new(env!("CARGO_BIN_EXE_seqembed"))
        .arg("models")
        .stdout(closed_pipe())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_says(&said, &["bytes to standard output", "Broken pipe"]);
    // The standard error of a run: the work goes on.
    let place = Place::new(&[("a.faa", b">a\nMKV\n")]);
    let run = Command::new(env!("CARGO_BIN_EXE_seqembed"))
        .args([
            "embed",
            text(&place.path("a.faa")),
            "-m",
            text(exported("esm2")),
        ])
        .args(["-o", text(&place.path("out"))])
        .stderr(closed_pipe())
        .status()
        .unwrap();
    assert_eq!(run.code(), Some(DONE));
    assert!(place.rows("a.parquet").is_some());
}

/// A file with a protein of so many leucines between two others: its windows are alike, so that it
/// takes no time.
fn leucines(length: usize) -> String {
    let long = "L".repeat(length);
    format!(">first one\nMKVLAAGIVG\n>long the long one\n{long}\n>last\nMKVLAAGIVGLL\n")
}

/// A manifest of one file in every format, with a vector for each residue.
fn in_every_format(place: &Place, file: &str) -> String {
    let mut manifest = format!("model: {}\npooling: none\nfiles:\n", text(exported("esm2")));
    for format in output::Format::ALL {
        let fasta = place.path(file);
        writeln!(
            manifest,
            "  - {{sample: {format}, fasta: {}, format: {format}}}",
            text(&fasta)
        )
        .unwrap();
    }
    manifest
}

#[test]
fn a_long_record_takes_no_more_memory_than_a_short_one() {
    const LENGTH: usize = 420_000;
    let place = Place::new(&[
        ("short.faa", leucines(5000).as_bytes()),
        ("long.faa", leucines(LENGTH).as_bytes()),
    ]);
    let mut peaks = Vec::new();
    for name in ["short", "long"] {
        let manifest = place.path(&format!("{name}.yaml"));
        fs::write(&manifest, in_every_format(&place, &format!("{name}.faa"))).unwrap();
        let run = seqembed(&["run", text(&manifest), "-o", text(&place.path(name))]);
        assert_run(&run, DONE, &[]);
        let peak = &report(&place.path(name))["totals"]["peak_memory_bytes"];
        peaks.push(peak.as_u64().unwrap());
    }
    // Its vectors alone are 80 MB.
    let more = peaks[1].saturating_sub(peaks[0]);
    assert!(more < 40 << 20, "{more} bytes more");
    // A window's vectors are those of its tokens: begin and end are those of a shorter protein, in
    // the middle is one of many that are alike.
    for format in output::Format::ALL {
        let path = |name: &str| place.path(name).join(format!("{format}.{format}"));
        let (short, _) = output::read(&path("short")).unwrap();
        let (long, _) = output::read(&path("long")).unwrap();
        assert_eq!(long.ids, ["first", "long", "last"], "{format}");
        assert_eq!(long.headers[1], "long the long one");
        assert_eq!(long.status, ["ok", "windowed", "ok"]);
        assert_eq!(long.vectors, [10, LENGTH, 12]);
        let hidden = short.hidden;
        let (front, back) = (1010 * hidden, 500 * hidden);
        assert!(short.values[..front] == long.values[..front], "{format}");
        let end = |values: &[f32]| values[values.len() - back..].to_vec();
        assert!(end(&short.values) == end(&long.values), "{format}");
        // The windows of the middle begin every 767 residues.
        let at = |residue: usize| &long.values[(10 + residue) * hidden..][..767 * hidden];
        for window in [1, 300, 500] {
            assert!(at(2000) == at(2000 + 767 * window), "{format}: {window}");
        }
    }
}

#[test]
fn many_records_take_little_memory_in_every_format() {
    const RECORDS: usize = 30_000;
    let mut records = String::new();
    for at in 0..RECORDS {
        writeln!(records, ">protein_{at} of some organism\nMKV").unwrap();
    }
    let place = Place::new(&[("many.faa", records.as_bytes())]);
    let peaks = output::Format::ALL.map(|format| {
        let (format, out) = (format.to_string(), place.path(&format.to_string()));
        let run = seqembed(&[
            "embed",
            text(&place.path("many.faa")),
            "-m",
            text(exported("esm2")),
            "-o",
            text(&out),
            "--pooling",
            "none",
            "--format",
            &format,
        ]);
        assert_run(&run, DONE, &[]);
        let peak = &report(&out)["totals"]["peak_memory_bytes"];
        (peak.as_u64().unwrap(), format)
    });
    // What a run itself takes is the same for all; Parquet gathers rows up to 32 MiB.
    let (least, _) = peaks.iter().min().unwrap();
    for (peak, format) in &peaks {
        let more = (peak - least) / RECORDS as u64;
        assert!(more < 2000, "{format}: {more} bytes a record, {peaks:?}");
    }
}

#[test]
fn a_run_that_is_stopped_within_a_long_record_goes_on_within_it() {
    let place = Place::new(&[("long.faa", leucines(400_000).as_bytes())]);
    let command = |out: &str, options: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seqembed"));
        command
            .args(["embed", text(&place.path("long.faa"))])
            .args(["-m", text(exported("esm2")), "-o", text(&place.path(out))])
            .args(["--pooling", "none", "--format", "npy", "--threads", "1"])
            .args(options);
        command
    };
    let run = command("fresh", &[]).output().unwrap();
    assert_run(&run, DONE, &[]);
    let expected = fs::read(place.path("fresh/long.npy")).unwrap();
    for (name, stop) in [("stopped", Some("TERM")), ("killed", None)] {
        let run = common::retry_if_late(|before| {
            let _ = fs::remove_dir_all(place.path(name));
            let mut child = command(name, &[]);
            child.env("SEQEMBED_INJECT", common::slower(before));
            let mut child = child.stderr(Stdio::piped()).spawn().unwrap();
            let shards = place.path(name).join(".seqembed");
            wait_for("a part that is saved", || {
                let entries = fs::read_dir(&shards).into_iter().flatten().flatten();
                let mut shards = entries
                    .filter(|entry| entry.file_name().to_string_lossy().starts_with("rows-"));
                shards.any(|entry| entry.metadata().is_ok_and(|about| about.len() > 9 << 20))
                    || child.try_wait().unwrap().is_some()
            });
            let asked = Instant::now();
            if child.try_wait().unwrap().is_none() {
                signal(&child, stop.unwrap_or("KILL"));
            }
            let run = end(child);
            assert!(asked.elapsed() < Duration::from_mins(1));
            (run.status.code() != Some(DONE)).then_some(run)
        });
        if stop.is_some() {
            assert_run(&run, 143, &["parts of long records"]);
        }
        assert!(!place.path(name).join("long.npy").exists());
        let run = command(name, &["--resume"]).output().unwrap();
        assert_run(&run, DONE, &[]);
        let totals = report(&place.path(name))["totals"].clone();
        assert!(totals["restored"].as_u64() >= Some(1), "{totals}");
        let tokens = report(&place.path("fresh"))["totals"]["tokens"].as_u64();
        assert!(totals["tokens"].as_u64() < tokens, "{totals}");
        assert!(fs::read(place.path(name).join("long.npy")).unwrap() == expected);
        assert_eq!(leftovers(&place.path(name)), Vec::<String>::new());
    }
}
