//! Loading once and loading again: `--reload-per-file`, and `seqembed bench load`, which measures
//! the difference. And what ONNX Runtime, once loaded, must not do: its telemetry writes into the
//! home and asks for a host on the network.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{self, DONE, PARTLY, Place, WRONG, assert_run, exported, seqembed, text};

const FILES: [(&str, &[u8]); 3] = [
    ("a.faa", b">a1\nMKTAYIAKQR\n>a2\nGSHMLEDP\n"),
    ("b.faa", b">b1\nMKLV\n"),
    ("c.faa", b">c1\nGSHM\n>c2\nMKTAYIAKQRGSHMLEDP\n>c3\nM\n"),
];

fn manifest(options: &str) -> String {
    format!(
        "model: {}\nfiles:\n  - {{sample: a, fasta: a.faa}}\n  - {{sample: b, fasta: b.faa{options}}}\n  - {{sample: c, fasta: c.faa}}\n",
        text(exported("esm2"))
    )
}

#[test]
fn a_load_a_file_is_counted_and_gives_the_same() {
    let place = Place::new(&FILES);
    assert_run(&place.run(&manifest("")), DONE, &[", loaded once in "]);
    let once: Vec<_> = ["a.parquet", "b.parquet", "c.parquet"]
        .map(|name| place.rows(name).unwrap())
        .into();
    assert_eq!(place.report()["loads"].as_array().unwrap().len(), 1);

    let path = place.path("manifest.yaml");
    let out = place.path("out");
    fs::remove_dir_all(&out).unwrap();
    let run = seqembed(&["run", text(&path), "-o", text(&out), "--reload-per-file"]);
    assert_run(&run, DONE, &[", loaded 3 times in "]);
    let report = place.report();
    assert_eq!(report["loads"].as_array().unwrap().len(), 3);
    let samples: Vec<_> = report["files"].as_array().unwrap().iter().collect();
    assert_eq!(samples.len(), 3);
    for (at, name) in ["a", "b", "c"].into_iter().enumerate() {
        assert_eq!(samples[at]["sample"], name);
        let rows = place.rows(&format!("{name}.parquet")).unwrap();
        assert_eq!(rows.ids, once[at].ids);
        common::assert_close(&rows.values, &once[at].values, 1e-5, name);
    }
}

#[test]
fn every_batch_is_in_the_histogram_of_how_full_they_are() {
    let long = ">x\n".to_owned() + &"MKTAYIAKQR".repeat(9);
    let place = Place::new(&[("a.faa", FILES[0].1), ("long.faa", long.as_bytes())]);
    let out = place.path("out");
    let run = seqembed(&[
        "embed",
        text(&place.path("a.faa")),
        text(&place.path("long.faa")),
        "-m",
        text(exported("esm2")),
        "-o",
        text(&out),
        "--batch-tokens",
        "40",
    ]);
    assert_run(&run, DONE, &[]);
    let totals = &place.report()["totals"];
    assert_eq!(totals["batch_tokens"], 40);
    // 92 tokens alone are more than 40; 12 and 10 share a batch, and fill 22 of 40.
    assert_eq!(
        totals["batch_fill"],
        serde_json::json!([0, 0, 0, 0, 0, 1, 0, 0, 0, 1])
    );
}

#[test]
fn bench_load_compares_the_ways() {
    let place = Place::new(&FILES);
    fs::write(place.path("manifest.yaml"), manifest("")).unwrap();
    let (path, out) = (place.path("manifest.yaml"), place.path("bench"));
    let run = seqembed(&[
        "bench",
        "load",
        text(&path),
        "-o",
        text(&out),
        "--threads",
        "1",
        "--rounds",
        "2",
    ]);
    assert_run(&run, DONE, &[]);
    let said = String::from_utf8(run.stdout).unwrap();
    for part in [
        "esm2: 6 sequences",
        "in 3 files, 1 thread",
        "one process, reloading for each file",
        "time than one process per file",
        "times as long as with all sequences in one file",
    ] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("load.json")).unwrap()).unwrap();
    let ways = json["ways"].as_array().unwrap();
    let column =
        |key: &str| -> Vec<u64> { ways.iter().map(|way| way[key].as_u64().unwrap()).collect() };
    assert_eq!(column("processes"), [1, 1, 3, 1]);
    assert_eq!(column("loads"), [1, 3, 3, 1]);
    for way in ways {
        let rounds = way["seconds_of_each_round"].as_array().unwrap();
        let fastest = rounds.iter().map(|s| s.as_f64().unwrap());
        assert_eq!(rounds.len(), 2);
        assert_eq!(way["seconds"].as_f64(), fastest.reduce(f64::min));
        assert!(way["load_seconds"].as_f64() > Some(0.0));
        assert!(way["load_seconds"].as_f64() < way["seconds"].as_f64());
        if cfg!(target_os = "linux") {
            assert!(way["peak_memory_bytes"].as_u64() > Some(1 << 20));
            assert!(way["cpu_seconds"].as_f64() > Some(0.0));
        }
    }
    assert_eq!(json["sequences"], 6);
    let svg = fs::read_to_string(out.join("load.svg")).unwrap();
    assert!(svg.contains("Time saved by loading the model once") && svg.contains("3 loads"));
    // Nothing else is left.
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
}

#[test]
fn bench_load_leaves_out_what_cannot_be_compared() {
    let place = Place::new(&FILES);
    fs::write(place.path("manifest.yaml"), manifest(", pooling: cls")).unwrap();
    let (path, out) = (place.path("manifest.yaml"), place.path("bench"));
    let load = || seqembed(&["bench", "load", text(&path), "-o", text(&out)]);
    let run = load();
    assert_run(
        &run,
        DONE,
        &["the variant `all sequences in one file` is left out"],
    );
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(!said.contains("all sequences in one file"), "{said}");

    // A file that fails makes every figure meaningless.
    fs::write(place.path("c.faa"), ">c1\nMKV\n").unwrap();
    fs::write(
        place.path("b.faa"),
        format!(">b1\n{}\n", "ACGT".repeat(300)),
    )
    .unwrap();
    let run = load();
    assert_run(
        &run,
        1,
        &["a measured run ended with exit status: 3", "b.faa"],
    );
    assert_eq!(PARTLY, 3);

    fs::write(
        &path,
        "model: esm2\nfiles:\n  - {sample: a, fasta: \"-\"}\n",
    )
    .unwrap();
    assert_run(&load(), WRONG, &["standard input can be read only once"]);
    fs::write(&path, "files:\n  - {sample: a, fasta: no.faa}\n").unwrap();
    assert_run(&load(), WRONG, &["no model", "no.faa"]);
}

/// What is in a folder, all the way down.
fn contents(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            found.push(text(path.strip_prefix(folder).unwrap()).to_owned());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found
}

/// A user whose home, working folder and folder for temporary files are empty. Nothing tells that a
/// test is running, and no variable of the test's own is handed on but the library's.
struct Newcomer {
    place: Place,
    traced: bool,
}

impl Newcomer {
    const EMPTY: [&str; 3] = ["home", "work", "tmp"];

    fn new() -> Self {
        let place = Place::new(&FILES);
        for folder in Self::EMPTY {
            fs::create_dir(place.path(folder)).unwrap();
        }
        let traced = cfg!(target_os = "linux") && may_trace(&place.path("probe"));
        Self { place, traced }
    }

    fn run(&self, arguments: &[&str], variables: &[(&str, &str)], code: i32) {
        let executable = common::executable();
        let trace = self.place.path("trace");
        let mut command = if self.traced {
            let mut strace = Command::new("strace");
            strace.args([
                "-f",
                "-qq",
                "-e",
                "trace=socket,connect",
                "-o",
                text(&trace),
            ]);
            strace.arg(executable);
            strace
        } else {
            Command::new(executable)
        };
        let of_the_library = ["PATH", "ORT_DYLIB_PATH", "LD_LIBRARY_PATH"];
        let kept = of_the_library
            .iter()
            .filter_map(|name| Some((*name, std::env::var_os(name)?)));
        let run = command
            .args(arguments)
            .current_dir(self.place.path("work"))
            .env_clear()
            .envs(kept)
            .env("HOME", self.place.path("home"))
            .env("TMPDIR", self.place.path("tmp"))
            .env("SEQEMBED_CACHE", self.place.path("cache"))
            .env("HF_HUB_CACHE", self.place.path("hub"))
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        assert_run(&run, code, &[]);
        for folder in Self::EMPTY {
            let found = contents(&self.place.path(folder));
            assert_eq!(
                found,
                Vec::<String>::new(),
                "{arguments:?} left in {folder}"
            );
        }
    }

    /// The calls of the last command that made or connected a socket.
    fn sockets(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.place.path("trace")).unwrap_or_default();
        calls
            .lines()
            .filter(|call| call.contains('('))
            .map(str::to_owned)
            .collect()
    }
}

/// Whether this process may watch another one's system calls.
fn may_trace(out: &Path) -> bool {
    let probe = Command::new("strace")
        .args(["-f", "-o", text(out), "true"])
        .output()
        .unwrap_or_else(|error| {
            panic!("the test needs strace (Debian and Ubuntu: apt-get install strace): {error}")
        });
    let said = String::from_utf8_lossy(&probe.stderr);
    if !probe.status.success() {
        let forbidden = said.contains("ptrace") || said.contains("PTRACE");
        assert!(forbidden, "{said}");
        eprintln!("SKIPPED: nobody looks for sockets, since ptrace is not permitted here: {said}");
    }
    probe.status.success()
}

#[test]
fn nothing_is_left_in_the_home_and_no_network_is_used() {
    let user = Newcomer::new();
    let place = |name: &str| text(&user.place.path(name)).to_owned();
    let (file, out, other) = (place("a.faa"), place("out"), place("other"));
    let path = user.place.path("manifest.yaml");
    fs::write(&path, manifest("")).unwrap();
    let model = text(exported("esm2"));
    let commands: [&[&str]; 11] = [
        &["doctor"],
        &["embed", &file, "-m", model, "-o", &out],
        &[
            "embed",
            &file,
            "-m",
            model,
            "-o",
            &out,
            "--kernels",
            "portable",
        ],
        &["run", text(&path), "-o", &out],
        &["bench", "load", text(&path), "-o", &other],
        &["convert", &out, "-o", &other, "--format", "npz"],
        &["plot", &out, "-o", &place("plot.svg")],
        &["report", &out, "-o", &place("report.html")],
        &[
            "export",
            "--random",
            "esm2_t6_8M_UR50D",
            "-o",
            &place("random"),
        ],
        &["models"],
        &["completions", "bash"],
    ];
    for arguments in commands {
        user.run(arguments, &[], DONE);
        assert_eq!(user.sockets(), Vec::<String>::new(), "{arguments:?}");
        // Not even when the user's own environment asks for telemetry.
        if arguments[0] == "doctor" {
            user.run(arguments, &[("ORT_DISABLE_TELEMETRY", "0")], DONE);
        }
    }
}

/// It shows as well that sockets would be seen.
#[test]
fn fetch_talks_to_the_hub_alone() {
    let user = Newcomer::new();
    let hub = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = hub.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for connection in hub.incoming() {
            let mut connection = connection.unwrap();
            let _ = std::io::Read::read(&mut connection, &mut [0; 4096]);
            let answer =
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = std::io::Write::write_all(&mut connection, answer);
        }
    });
    let endpoint = format!("http://127.0.0.1:{port}");
    user.run(
        &["fetch", "nobody/nothing"],
        &[("HF_ENDPOINT", &endpoint)],
        1,
    );
    if user.traced {
        let sockets = user.sockets();
        let reached: Vec<&String> = sockets
            .iter()
            .filter(|call| call.contains("connect("))
            .collect();
        assert!(!reached.is_empty(), "{sockets:?}");
        for call in reached {
            assert!(call.contains(&format!("sin_port=htons({port})")), "{call}");
        }
    }
}
