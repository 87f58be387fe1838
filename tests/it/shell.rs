//! Completions and manual pages, as a shell and `man` use them; and seqembed among pipes, terminals
//! and folders.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::interrupted::closed_pipe;
use crate::common::{self, DONE, Place, WRONG, assert_run, exported, fixtures, seqembed, text};

/// Exit code: the machine refused something.
const FAILED: i32 = 1;

fn printed(arguments: &[&str]) -> String {
    let run = seqembed(arguments);
    assert_run(&run, DONE, &[]);
    String::from_utf8(run.stdout).expect("text")
}

/// What bash offers for the last word.
fn completed(words: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("completions");
    fs::write(&script, printed(&["completions", "bash"])).expect("a file");
    let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
    let ask = format!(
        "source '{}'; COMP_WORDS=({}); COMP_CWORD={}; _seqembed seqembed '{last}' '{before}'; echo \"${{COMPREPLY[@]}}\"",
        text(&script),
        words.join(" "),
        words.len() - 1,
    );
    let bash = Command::new("bash")
        .args(["-c", &ask])
        .output()
        .expect("bash");
    assert!(
        bash.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&bash.stderr)
    );
    let offered = String::from_utf8(bash.stdout).expect("text");
    offered.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_subcommands_options_and_values() {
    assert_eq!(completed(&["seqembed", "emb"]), ["embed"]);
    assert_eq!(completed(&["seqembed", "run", "--pool"]), ["--pooling"]);
    let values = completed(&["seqembed", "embed", "--pooling", "m"]);
    assert_eq!(values, ["mean", "mean-all", "max"]);
}

#[test]
fn other_shells_have_completions() {
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(printed(&["completions", shell]).contains("seqembed"));
    }
}

#[test]
fn every_subcommand_has_a_manual_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let pages = folder.path().join("share/man1");
    assert_run(&seqembed(&["man", "-o", text(&pages)]), DONE, &[]);
    let help = printed(&["--help"]);
    let commands = help.split("Commands:\n").nth(1).expect("commands");
    let names: Vec<_> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        // What is further to the right goes on with a summary.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|&name| name != "help")
        .collect();
    assert!(names.contains(&"run"));
    for name in names {
        let page = pages.join(format!("seqembed-{name}.1"));
        let page = fs::read_to_string(page).expect(name);
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    let run = printed(&["man", "run"]);
    assert!(
        run.contains("seqembed\\-run") && run.contains("\\-\\-pooling"),
        "{run}"
    );
    let wrong = seqembed(&["man", "nothing"]);
    assert_run(&wrong, WRONG, &["`nothing`", "seqembed help"]);
}

/// The standard output, the standard error, or both are pipes whose reader is gone.
#[test]
fn a_closed_pipe_is_no_panic_and_the_work_is_done() {
    let place = Place::new(&[("a.faa", b">a\nMKVLA\n>b\nMKV\n")]);
    assert_run(&place.embed("esm2", "a.faa", &[]), DONE, &[]);
    let path = |name: &str| text(&place.path(name)).to_owned();
    let (out, file) = (path("out"), path("a.faa"));
    fs::write(
        place.path("m.yaml"),
        format!(
            "model: {}\nfiles:\n  - {{sample: a, fasta: a.faa}}\n",
            text(exported("esm2"))
        ),
    )
    .expect("a manifest");
    let (svg, page, npz, model) = (path("p.svg"), path("p.html"), path("n.npz"), path("model"));
    let (manifest, bench, frames) = (path("m.yaml"), path("bench"), path("frames"));
    // What it makes, and whether it prints something that is then lost.
    let commands: [(&[&str], &str, bool); 12] = [
        (&["plot", &out, "-o", &svg], "p.svg", true),
        (&["report", &out, "-o", &page], "p.html", true),
        (&["report", "--schema"], "", true),
        (&["convert", &out, "-o", &npz], "n.npz", false),
        (
            &["export", "--random", "esm2_t6_8M_UR50D", "-o", &model],
            "model/seqembed.json",
            false,
        ),
        (
            &["bench", "load", &manifest, "-o", &bench],
            "bench/load.json",
            true,
        ),
        (
            &["virnucpro", "--frames-only", &file, "-o", &frames],
            "frames",
            false,
        ),
        (&["models"], "", true),
        (&["doctor", "--quick"], "", true),
        (&["completions", "bash"], "", true),
        (&["man"], "", true),
        (&["--help"], "", false),
    ];
    for (arguments, made, prints) in commands {
        for (stdout, stderr) in [(true, false), (false, true), (true, true)] {
            if !made.is_empty() {
                let _ = fs::remove_file(place.path(made));
                let _ = fs::remove_dir_all(place.path(made.split('/').next().unwrap_or(made)));
            }
            let pipe = |closed| {
                if closed {
                    closed_pipe()
                } else {
                    Stdio::piped()
                }
            };
            let run = Command::new(common::executable())
                .args(arguments)
                .stdout(pipe(stdout))
                .stderr(pipe(stderr))
                .output()
                .expect("it runs");
            let said = String::from_utf8_lossy(&run.stderr);
            let code = i32::from(prints && stdout);
            assert_eq!(run.status.code(), Some(code), "{arguments:?}: {said}");
            assert!(place.path(made).exists(), "{arguments:?}");
            if code != 0 && !stderr {
                assert!(said.contains("to standard output"), "{arguments:?}: {said}");
            }
        }
    }
    // What fetch says goes to the standard error alone.
    let fetch = Command::new(common::executable())
        .args(["fetch", "nobody/nothing"])
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HUB_CACHE", place.path("hub"))
        .stderr(closed_pipe())
        .status();
    assert_eq!(fetch.expect("it runs").code(), Some(1));
}

/// Ids, names of files, types and the globals of a pickle are written by strangers.
#[test]
fn nothing_that_a_terminal_obeys_is_printed() {
    // Red, a bell, a title; C1's CSI; the direction of writing turned.
    let evil = "a\u{1b}[31m\u{7}\u{1b}]0;owned\u{7}\u{9b}1m\u{202e}z";
    let fasta = format!(">{evil} {evil}\nMKV!LA\n>{evil}\nMKV\n");
    let place = Place::new(&[("a.faa", fasta.as_bytes())]);
    let name = |ending: &str| place.path(&format!("{evil}.{ending}"));
    let write = |ending: &str, bytes: &[u8]| {
        let path = name(ending);
        fs::write(&path, bytes).expect("a file");
        text(&path).to_owned()
    };
    let proteins = write("faa", fasta.as_bytes());
    let header = format!(
        "{{\"embeddings\": {{\"dtype\": \"{evil}\", \"shape\": [0, 4], \"data_offsets\": [0, 0]}}}}"
    );
    let header = header
        .replace('\u{1b}', "\\u001b")
        .replace('\u{7}', "\\u0007");
    let mut tensors = (header.len() as u64).to_le_bytes().to_vec();
    tensors.extend(header.as_bytes());
    let tensors = write("safetensors", &tensors);
    let global = format!("c{evil}\n{evil}\n)R.");
    let pickle = common::python(
        "no package",
        "import sys, zipfile\nwith zipfile.ZipFile(sys.argv[1], 'w') as z: z.writestr('x/data.pkl', sys.argv[2])",
        &[text(&name("pt")), &global],
    );
    assert_eq!(pickle, "");
    let pickle = text(&name("pt")).to_owned();
    let manifest = write(
        "yaml",
        format!("model: \"{evil}\"\nfiles: [{{sample: a, fast: b}}]\n")
            .replace('\u{1b}', "\\e")
            .replace('\u{7}', "\\a")
            .as_bytes(),
    );
    let (out, model) = (text(&place.path("out")).to_owned(), text(exported("esm2")));
    let (svg, html) = (name("svg"), name("html"));
    assert_run(&place.embed("esm2", "a.faa", &[]), DONE, &[]);
    let strange = text(&place.path("a.faa")).to_owned();
    let model_folder = text(&place.path("exported")).to_owned();
    let commands: [(&[&str], bool); 12] = [
        (&["embed", &proteins, "-m", model, "-o", &out], true),
        (
            &[
                "embed",
                &strange,
                "-m",
                model,
                "-o",
                &out,
                "--unknown",
                "error",
            ],
            true,
        ),
        (&["embed", &proteins, "-m", evil, "-o", &out], true),
        (&["embed", &proteins, "-m", &pickle, "-o", &out], true),
        (&["run", &manifest, "-o", &out], true),
        (&["plot", &out, "-o", text(&svg)], true),
        (&["report", &out, "-o", text(&html)], true),
        (&["convert", &tensors, "-o", &out, "--format", "npz"], true),
        (&["convert", &pickle, "-o", &out, "--format", "npz"], true),
        (&["export", &pickle, "-o", &model_folder], true),
        (&["fetch", evil], true),
        (&["embed", &format!("--{evil}")], true),
    ];
    for (arguments, shows) in commands {
        let run = Command::new(common::executable())
            .args(arguments)
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .expect("it runs");
        let said = [run.stdout, run.stderr].map(|bytes| String::from_utf8(bytes).expect("text"));
        let said = said.concat();
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
        for letter in said.chars() {
            let plain = !letter.is_control() || matches!(letter, '\n' | '\t');
            assert!(plain && letter != '\u{202e}', "{arguments:?}: {said:?}");
        }
        assert_eq!(said.contains(r"\u{202e}"), shows, "{arguments:?}: {said}");
    }
    // A path for a script is the path: nothing is escaped in a pipe. The file is really there,
    // under its name.
    assert!(svg.exists() && html.exists());
}

#[test]
fn what_stands_in_the_way_of_a_folder_is_named() {
    let place = Place::new(&[("a.faa", b">a\nMKVLA\n"), ("file", b"precious")]);
    assert_run(&place.embed("esm2", "a.faa", &[]), DONE, &[]);
    std::os::unix::fs::symlink("no/where", place.path("dangling")).expect("a link");
    let path = |name: &str| text(&place.path(name)).to_owned();
    let (fasta, out, model) = (path("a.faa"), path("out"), text(exported("esm2")));
    let embed = ["embed", &fasta, "-m", model];
    let commands: [&[&str]; 5] = [
        &embed,
        &["convert", &out, "--format", "npz"],
        &["virnucpro", "--frames-only", &fasta],
        &["man"],
        &["export", "--random", "esm2_t6_8M_UR50D"],
    ];
    for (name, why) in [
        ("file", "is a file"),
        ("file/below", "is a file"),
        ("dangling", "is a link to no/where, which does not exist"),
        (
            "dangling/below",
            "is a link to no/where, which does not exist",
        ),
    ] {
        for command in commands {
            if command[0] == "export" {
                continue;
            }
            let run = seqembed(&[command, &["-o", &path(name)]].concat());
            let code = run.status.code().expect("it ends");
            assert!(matches!(code, 1 | 2), "{command:?}: {code}");
            let place = path(name.split('/').next().unwrap_or(name));
            assert_run(&run, code, &[&place, why]);
        }
        let cache = path(name);
        let run = seqembed(&[&embed[..], &["-o", &out, "--cache-dir", &cache]].concat());
        assert_run(&run, 1, &[why]);
    }
    for name in ["file", "dangling"] {
        let run = seqembed(&[commands[4], &["-o", &path(name)]].concat());
        assert_run(&run, WRONG, &[name, "is not a model folder"]);
    }
    assert_eq!(fs::read(place.path("file")).expect("a file"), b"precious");
}

/// Makes a named pipe.
fn pipe(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().expect("mkfifo");
    assert!(made.success());
}

#[test]
fn a_page_goes_into_a_pipe_and_an_output_never_replaces_one() {
    let place = Place::new(&[("a.faa", b">a\nMKVLA\n>b\nMKV\n>c\nWWC\n")]);
    assert_run(&place.embed("esm2", "a.faa", &[]), DONE, &[]);
    let out = text(&place.path("out")).to_owned();
    for (command, name, begin) in [
        ("report", "page", "<!doctype html>"),
        ("plot", "f.svg", "<svg"),
    ] {
        let path = place.path(name);
        pipe(&path);
        let reader = Command::new("timeout")
            .args(["60", "cat", text(&path)])
            .stdout(Stdio::piped())
            .spawn()
            .expect("cat");
        assert_run(&seqembed(&[command, &out, "-o", text(&path)]), DONE, &[]);
        let read = reader.wait_with_output().expect("its output").stdout;
        let read = String::from_utf8(read).expect("UTF-8").to_lowercase();
        assert!(read.starts_with(begin) && read.contains("</svg>"), "{read}");
        assert!(
            fs::symlink_metadata(&path)
                .expect("a pipe")
                .file_type()
                .is_fifo()
        );
    }
    let parquet = place.path("out/a.parquet");
    for name in ["f.npz", "report.json", "b.parquet", "trace"] {
        let path = place.path("new").join(name);
        let _ = fs::create_dir(place.path("new"));
        pipe(&path);
        let (new, fasta) = (place.path("new"), place.path("b.faa"));
        fs::copy(place.path("a.faa"), &fasta).expect("a copy");
        let mut command = vec![
            "embed",
            text(&fasta),
            "-m",
            text(exported("esm2")),
            "-o",
            text(&new),
        ];
        match name {
            "f.npz" => command = vec!["convert", text(&parquet), "-o", text(&path)],
            "trace" => command.extend(["--trace", text(&path)]),
            _ => {}
        }
        assert_run(
            &seqembed(&command),
            WRONG,
            &[text(&path), "is a named pipe"],
        );
        assert!(
            fs::symlink_metadata(&path)
                .expect("a pipe")
                .file_type()
                .is_fifo()
        );
        fs::remove_file(&path).expect("gone");
    }
    // A link stays one, and its file is what is written.
    std::os::unix::fs::symlink("real", place.path("link")).expect("a link");
    let report = ["report", &out, "-o", text(&place.path("link"))].map(str::to_owned);
    let report: Vec<&str> = report.iter().map(String::as_str).collect();
    assert_run(
        &seqembed(&report),
        FAILED,
        &["is a link to real, which does not exist"],
    );
    fs::write(place.path("real"), "old").expect("a file");
    assert_run(&seqembed(&report), DONE, &[]);
    assert!(place.path("link").is_symlink());
    assert!(
        fs::read_to_string(place.path("real"))
            .expect("a page")
            .to_lowercase()
            .starts_with("<!doctype")
    );
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one command after the other, in folders made alike"
)]
fn nothing_that_is_read_is_overwritten() {
    let place = Place::new(&[]);
    let checkpoint = fixtures().join("esm2/checkpoints/esm2_small.pt");
    fs::copy(checkpoint, place.path("esm2_small.pt")).expect("a copy");
    let model = exported("esm2").display();
    for (name, content) in [
        ("esm2_small.faa", ">a\nMKV\n".to_owned()),
        ("report.json", ">a\nMKV\n".to_owned()),
        ("samples.faa", ">a\nMKV\n".to_owned()),
        ("samples.tsv", "sample\tage\n1\t2\n".to_owned()),
        ("other.provenance.json", "[1]".to_owned()),
        ("other.faa", ">a\nMKV\n".to_owned()),
        (
            "manifest.tsv",
            format!("sample\tfasta\tmodel\tformat\nmanifest\tother.faa\t{model}\tnpy\n"),
        ),
    ] {
        fs::write(place.path(name), content).expect("a file");
    }
    let contents = || {
        let entries = fs::read_dir(place.path("")).expect("a folder");
        let files = entries.map(|entry| entry.expect("an entry").path());
        let files = files.filter(|path| path.is_file());
        files
            .map(|path| (path.clone(), fs::read(path).expect("a file")))
            .collect::<BTreeMap<_, _>>()
    };
    let path = |name: &str| text(&place.path(name)).to_owned();
    let before = contents();
    let (model, checkpoint) = (text(exported("esm2")), path("esm2_small.pt"));
    let embed = |fasta: &str, model: &str, out: &str, more: &[&str]| {
        let (fasta, out) = (path(fasta), path(out));
        seqembed(&[&["embed", &fasta, "-m", model, "-o", &out], more].concat())
    };
    for (fasta, model, out, more, told) in [
        (
            "esm2_small.faa",
            checkpoint.as_str(),
            "",
            ["--format", "pt"],
            ["esm2_small.pt", "a file of the model"],
        ),
        (
            "samples.faa",
            model,
            "",
            ["--format", "npy"],
            ["samples.tsv", "not written by seqembed"],
        ),
        (
            "other.faa",
            model,
            "",
            ["--format", "npy"],
            ["other.provenance.json", "not written by seqembed"],
        ),
        (
            "report.json",
            model,
            "",
            ["--format", "parquet"],
            ["report.json", "an input"],
        ),
        (
            "other.faa",
            model,
            "out",
            ["--trace", &path("other.faa")],
            ["other.faa", "an input"],
        ),
        (
            "other.faa",
            model,
            "out",
            ["--trace", &format!("{model}/weights.bin")],
            ["weights.bin", "a file of the model"],
        ),
        (
            "other.faa",
            model,
            "out",
            ["--trace", &path("out/other.parquet")],
            ["other.parquet", "as an output and as the trace"],
        ),
    ] {
        assert_run(&embed(fasta, model, out, &more), WRONG, &told);
        assert!(contents() == before, "{fasta} {more:?}");
    }
    assert_run(
        &seqembed(&["run", &path("manifest.tsv"), "-o", &path("")]),
        WRONG,
        &["manifest.tsv", "the manifest"],
    );
    assert!(contents() == before);
    assert_run(&embed("samples.faa", model, "out", &[]), DONE, &[]);
    let (parquet, report) = (path("out/samples.parquet"), path("out/report.json"));
    let convert = ["convert", &parquet, "-o", &path("samples.npy")].map(str::to_owned);
    let convert: Vec<&str> = convert.iter().map(String::as_str).collect();
    assert_run(
        &seqembed(&convert),
        WRONG,
        &["samples.tsv", "not written by seqembed"],
    );
    for (page, told) in [
        (&parquet, "an output of the run"),
        (&report, "the report that the page is made from"),
        (&path("samples.faa"), "an input of the run"),
    ] {
        let was = fs::read(page).expect("a file");
        assert_run(
            &seqembed(&["report", &path("out"), "-o", page]),
            FAILED,
            &[page, told],
        );
        assert!(fs::read(page).expect("a file") == was);
    }
    assert!(contents() == before);
    // What seqembed wrote itself is replaced, though its matrix be gone.
    fs::remove_file(place.path("samples.tsv")).expect("gone");
    assert_run(&seqembed(&convert), DONE, &[]);
    fs::remove_file(place.path("samples.npy")).expect("gone");
    assert_run(&seqembed(&convert), DONE, &[]);
}

#[cfg(target_os = "linux")]
#[test]
fn paths_need_not_be_utf8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let place = Place::new(&[("a.faa", b">a\nMKV\n")]);
    let latin = place.path("").join(OsStr::from_bytes(b"o\xe9ut"));
    let fasta = place.path("a.faa");
    let run = |model: &Path, out: &Path| {
        Command::new(common::executable())
            .args(["embed", text(&fasta), "-m", text(model), "-o"])
            .arg(out)
            .arg("--resume")
            .env("SEQEMBED_CACHE", latin.join("cache"))
            .output()
            .expect("it runs")
    };
    for kept in [0, 1] {
        assert_run(&run(exported("esm2"), &latin), DONE, &[]);
        let report = fs::read(latin.join("report.json")).expect("a report");
        let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
        assert_eq!(report["totals"]["kept_files"], kept);
        let output = report["files"][0]["output"].as_str().expect("a text");
        assert!(output.ends_with(r"o\xe9ut/a.parquet"), "{output}");
    }
    let page = place.path("page.html");
    let report = Command::new(common::executable())
        .arg("report")
        .arg(&latin)
        .args(["-o", text(&page)])
        .output();
    assert_run(&report.expect("it runs"), DONE, &[]);
    assert!(fs::read_to_string(&page).expect("a page").contains("<svg"));
    // ONNX Runtime takes no such path for the model.
    let checkpoint = fixtures().join("esm2/checkpoints/hub-safetensors");
    let refused = run(&checkpoint, &place.path("out"));
    assert_run(&refused, WRONG, &["not valid UTF-8", "set SEQEMBED_CACHE"]);
    assert!(!String::from_utf8_lossy(&refused.stderr).contains("exporting"));
    assert!(!latin.join("cache/models").exists());
}
