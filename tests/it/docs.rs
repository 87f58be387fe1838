//! Every command in the README and in `docs/`, run as it stands there.
//!
//! A fenced block's info string says what is done with it:
//!
//! - `sh` or `console` (there the lines after `$ `): run, in a folder of its own for each file,
//!   block after block;
//! - `sh needs-gpu`, `-network`, `-cluster`, `-build`: nothing is run, but each `seqembed` in it
//!   must parse;
//! - `yaml NAME`, `csv NAME`, `tsv NAME`: written to the file NAME, for the commands after it;
//! - `python`: run by `$SEQEMBED_TEST_PYTHON`, where that is set.
//!
//! The folder has `reads/`, `examples/`, `proteins.faa` and `contigs.fna`; small models stand in
//! for those of the hub, in a cache as `seqembed fetch` fills it.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use crate::common::write_script;

/// What stands in for a model of the hub: one of `tests/fixtures`, by the family.
const STAND_INS: [(&str, &str); 15] = [
    ("esm1b", "esm1/checkpoints/esm1b-safetensors"),
    ("esm1v", "esm1/checkpoints/esm1v-safetensors"),
    ("esm2", "esm2/checkpoints/hub-safetensors"),
    ("ESMC", "esmc/checkpoints/hub"),
    ("NT-", "nt/checkpoints/v2-saved"),
    ("DNABERT-3", "dna/dnabert-3"),
    ("DNABERT", "dna/dnabert-s"),
    ("GROVER", "bert/grover"),
    ("ProtBert", "bert/protbert"),
    ("IgBert", "bert/igbert"),
    ("SaProt", "saprot/checkpoints/hub"),
    ("AMPLIFY", "amplify/checkpoints/hub"),
    ("ProtT5", "t5/checkpoints/prott5"),
    ("ProstT5", "t5/checkpoints/prostt5"),
    ("IgT5", "t5/checkpoints/prott5"),
];

/// Programs that only parsed blocks may name: each looks for a `seqembed` among its arguments.
const OUTSIDE: [&str; 18] = [
    "apptainer",
    "awk",
    "cargo",
    "unzip",
    "conda",
    "docker",
    "git",
    "module",
    "nextflow",
    "nvidia-smi",
    "pip",
    "pixi",
    "rattler-build",
    "rsync",
    "sbatch",
    "snakemake",
    "srun",
    "ssh",
];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A fenced block.
#[derive(Debug)]
struct Block {
    /// The line of its fence, from 1.
    line: usize,
    language: String,
    /// The second word of the info string.
    word: String,
    text: String,
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (at, line) in markdown.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (open, fence) {
            (false, Some(info)) => {
                let mut words = info.split_whitespace().map(str::to_owned);
                blocks.push(Block {
                    line: at + 1,
                    language: words.next().unwrap_or_default(),
                    word: words.next().unwrap_or_default(),
                    text: String::new(),
                });
                open = true;
            }
            (true, Some(_)) => open = false,
            (true, None) => {
                let text = &mut blocks.last_mut().unwrap().text;
                text.extend([line, "\n"]);
            }
            (false, None) => {}
        }
    }
    blocks
}

/// The commands of a block, without what they print.
fn commands(block: &Block) -> String {
    if block.language != "console" {
        return block.text.clone();
    }
    let typed = block
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("$ "));
    typed.flat_map(|line| [line, "\n"]).collect()
}

struct Sandbox {
    folder: TempDir,
}

impl Sandbox {
    fn new() -> Self {
        let sandbox = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for folder in ["work/reads", "work/examples", "home", "bin", "parse"] {
            fs::create_dir_all(sandbox.path(folder)).unwrap();
        }
        for entry in fs::read_dir(repository().join("examples")).unwrap() {
            let from = entry.unwrap().path();
            let to = sandbox
                .path("work/examples")
                .join(from.file_name().unwrap());
            fs::write(to, shortened(&from)).unwrap();
        }
        for (from, to) in [
            ("lambda.faa.gz", "reads/gut_01.faa.gz"),
            ("hepatitis_b.faa", "reads/gut_02.faa"),
            ("phix174.faa", "proteins.faa"),
        ] {
            let from = sandbox.path("work/examples").join(from);
            fs::copy(from, sandbox.path("work").join(to)).unwrap();
        }
        for file in ["reads/gut_03.fna", "contigs.fna"] {
            fs::write(sandbox.path("work").join(file), contigs()).unwrap();
        }
        sandbox.hub();
        symlink(env!("CARGO_BIN_EXE_seqembed"), sandbox.path("bin/seqembed")).unwrap();
        sandbox.script(
            "parse/seqembed",
            &format!(
                "'{}' \"$@\" --help > /dev/null && echo parsed",
                env!("CARGO_BIN_EXE_seqembed")
            ),
        );
        for program in OUTSIDE {
            sandbox.script(
                &format!("parse/{program}"),
                "while [ $# -gt 1 ]; do\n  case \"$1 $2\" in 'seqembed seqembed') ;; 'seqembed '[a-z]*) shift; exec seqembed \"$@\" ;; esac\n  shift\ndone",
            );
        }
        sandbox.script(
            "parse/python3",
            "if [ \"$2\" = venv ]; then mkdir -p \"$3/bin\" && : > \"$3/bin/activate\"; fi",
        );
        // Targets must be there.
        sandbox.script(
            "parse/make",
            &format!(
                "exec /usr/bin/env PATH=\"$REAL_PATH\" make --dry-run --silent -C '{}' \"$@\" > /dev/null",
                repository().display()
            ),
        );
        sandbox
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn script(&self, below: &str, text: &str) {
        write_script(&self.path(below), &format!("#!/bin/sh\n{text}\n"));
    }

    /// The cache of a hub from which every known model was fetched.
    fn hub(&self) {
        const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
        let models = Command::new(env!("CARGO_BIN_EXE_seqembed"))
            .arg("models")
            .output()
            .unwrap();
        for line in String::from_utf8(models.stdout).unwrap().lines().skip(1) {
            let name = line.split_whitespace().next().unwrap();
            let id = line.split_whitespace().last().unwrap();
            let stand_in = STAND_INS
                .iter()
                .find(|(family, _)| name.starts_with(family));
            let (_, checkpoint) = stand_in.unwrap_or_else(|| panic!("nothing for {name}"));
            let storage = format!("home/hf/hub/models--{}", id.replace('/', "--"));
            let snapshot = self.path(&storage).join("snapshots").join(COMMIT);
            fs::create_dir_all(self.path(&storage).join("refs")).unwrap();
            fs::write(self.path(&storage).join("refs/main"), COMMIT).unwrap();
            let checkpoint = repository().join("tests/fixtures").join(checkpoint);
            fs::create_dir_all(&snapshot).unwrap();
            for entry in fs::read_dir(checkpoint).unwrap() {
                let file = entry.unwrap();
                symlink(file.path(), snapshot.join(file.file_name())).unwrap();
            }
            if !snapshot.join("vocab.txt").exists() && !snapshot.join("tokenizer.json").exists() {
                // All repositories have one; ESM C's vocabulary is that of the family.
                fs::write(snapshot.join("tokenizer.json"), "{}").unwrap();
            }
        }
    }

    fn command(&self, program: &str, first: &str) -> Command {
        let real = std::env::var_os("PATH").unwrap_or_default();
        let mut path = OsString::from(self.path(first));
        path.push(":");
        path.push(&real);
        let mut command = Command::new(program);
        command
            .current_dir(self.path("work"))
            .env("PATH", path)
            .env("REAL_PATH", real)
            .env("HOME", self.path("home"))
            .env("HF_HOME", self.path("home/hf"))
            .env_remove("HF_HUB_CACHE")
            .env("HF_HUB_OFFLINE", "1")
            .env("SEQEMBED_CACHE", self.path("home/seqembed"))
            // As in a task of an array job.
            .env("SLURM_ARRAY_TASK_ID", "1")
            .stdin(Stdio::null());
        command
    }

    /// Does with a block what its info string says; `Err` tells what went wrong.
    fn follow(&self, block: &Block) -> Result<(), String> {
        let command = match (block.language.as_str(), block.word.as_str()) {
            ("yaml" | "csv" | "tsv", name) => {
                if !name.is_empty() {
                    fs::write(self.path("work").join(name), &block.text).unwrap();
                }
                return Ok(());
            }
            ("python", "") => {
                let Some(python) = std::env::var_os("SEQEMBED_TEST_PYTHON") else {
                    return Ok(());
                };
                let mut command = self.command(python.to_str().unwrap(), "bin");
                command.args(["-c", &block.text]);
                command
            }
            ("sh" | "console", "") => self.shell(block, "bin"),
            ("sh" | "console", "needs-gpu" | "needs-network" | "needs-cluster" | "needs-build") => {
                self.shell(block, "parse")
            }
            // Rust is the documentation tests' matter, and Groovy that of the pipeline's.
            ("text" | "rust" | "groovy" | "", "") => return Ok(()),
            (language, word) => return Err(format!("what is a block `{language} {word}`?")),
        };
        run(command)
    }

    fn shell(&self, block: &Block, first: &str) -> Command {
        let mut command = self.command("sh", first);
        command.args(["-euc", &commands(block)]);
        command
    }
}

fn run(mut command: Command) -> Result<(), String> {
    let output = command.output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// A file of the examples; of sequences, the first three of at most 300 residues.
fn shortened(file: &Path) -> Vec<u8> {
    let mut bytes = fs::read(file).unwrap();
    let packed = bytes.starts_with(&[0x1f, 0x8b]);
    if packed {
        let mut plain = Vec::new();
        MultiGzDecoder::new(&bytes[..])
            .read_to_end(&mut plain)
            .unwrap();
        bytes = plain;
    }
    let text = String::from_utf8(bytes).unwrap();
    if !text.starts_with('>') {
        return text.into_bytes();
    }
    let short = text
        .split_inclusive('>')
        .filter(|record| (2..350).contains(&record.len()));
    let short: String = short
        .take(3)
        .flat_map(|record| [">", record.trim_end_matches('>')])
        .collect();
    if packed {
        let mut writer = GzEncoder::new(Vec::new(), Compression::fast());
        writer.write_all(short.as_bytes()).unwrap();
        return writer.finish().unwrap();
    }
    short.into_bytes()
}

/// Three contigs of 702 bases, of a linear congruential generator. No codon begins with T: the
/// first frame has no stop.
fn contigs() -> String {
    let mut state: u32 = 1;
    let mut text = String::new();
    for contig in 1..=3 {
        let _ = writeln!(text, ">contig_{contig}");
        for base in 0..702 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let letter = b"ACGT"[(state >> 30) as usize];
            let letter = if base % 3 == 0 && letter == b'T' {
                b'A'
            } else {
                letter
            };
            text.push(char::from(letter));
        }
        text.push('\n');
    }
    text
}

/// The licence and the paper of every known model stand in the table of families, and the paper in
/// CITATION.cff.
#[test]
fn known_models_are_in_the_table_and_cited() {
    let read = |file: &str| fs::read_to_string(repository().join(file)).unwrap();
    let (models, cited) = (read("docs/models.md"), read("CITATION.cff"));
    for known in seqembed_onnx::known_models() {
        let publication = known.publication;
        let paper = publication.citation.split_once(':').unwrap().1;
        let rows = models.lines().filter(|line| line.starts_with("| "));
        let mut rows = rows.filter(|row| row.contains(paper));
        let licence = format!("| {} |", publication.licence);
        let pooling = format!("| `{}` |", publication.pooling);
        assert!(
            rows.any(|row| row.contains(&licence) && row.contains(&pooling)),
            "docs/models.md has no row for {}: {publication:?}",
            known.name
        );
        assert!(cited.contains(paper), "CITATION.cff lacks {paper}");
    }
}

/// Follows a file from its first block to its last.
#[track_caller]
fn follow(file: &str) {
    let text = fs::read_to_string(repository().join(file)).unwrap();
    let blocks = blocks(&text);
    assert!(!blocks.is_empty(), "{file} has no blocks");
    let sandbox = Sandbox::new();
    for block in &blocks {
        if let Err(why) = sandbox.follow(block) {
            panic!("{file}:{}: {why}\n{}", block.line, block.text);
        }
    }
}

#[test]
fn readme() {
    follow("README.md");
}

#[test]
fn snakemake() {
    follow("snakemake/README.md");
}

#[test]
fn nextflow() {
    follow("nextflow/README.md");
}

#[test]
fn galaxy() {
    follow("galaxy/README.md");
}

#[test]
fn every_page_of_docs() {
    let mut pages: Vec<_> = fs::read_dir(repository().join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "md"))
        .collect();
    pages.sort();
    std::thread::scope(|scope| {
        for page in &pages {
            scope.spawn(move || follow(&format!("docs/{page}")));
        }
    });
}

/// The SLURM script that puts itself back into the queue, with commands that stand in for SLURM's
/// and for a run.
#[test]
fn a_job_near_its_time_limit_saves_and_queues_again() {
    let text = fs::read_to_string(repository().join("docs/offline.md")).unwrap();
    let mut scripts = blocks(&text);
    scripts.retain(|block| block.text.contains("scontrol requeue"));
    let [script] = &scripts[..] else {
        panic!("one script requeues, not {}", scripts.len())
    };
    for asked in ["--signal=B:USR1@30", "--requeue", "--open-mode=append"] {
        assert!(
            script.text.contains(&format!("#SBATCH {asked}\n")),
            "{asked}"
        );
    }
    let sandbox = Sandbox::new();
    fs::remove_file(sandbox.path("bin/seqembed")).unwrap();
    // It lets the script come to its `wait`, in which it sleeps, before the signal is sent.
    sandbox.script(
        "bin/seqembed",
        "[ -e saved ] && exit 0\ntrap 'sleep 0.2; echo saved > saved; exit 143' TERM\nsleep 0.5\n\
         while [ -e /proc/$PPID/status ] && ! grep -q '^State:.S' /proc/$PPID/status; do sleep 0.05; done\n\
         : > started\nwhile :; do sleep 0.05; done",
    );
    sandbox.script(
        "bin/scontrol",
        "[ -e saved ] && echo \"$@\" >> scontrol.txt",
    );
    let start = || {
        let mut command = sandbox.command("bash", "bin");
        command
            .args(["-c", &script.text])
            .env("SLURM_JOB_ID", "4242");
        command.spawn().unwrap()
    };
    let mut job = start();
    let begun = Instant::now();
    while !sandbox.path("work/started").exists() {
        assert!(begun.elapsed() < Duration::from_mins(5), "not started");
        std::thread::sleep(Duration::from_millis(20));
    }
    let id = job.id().to_string();
    let sent = Command::new("kill").args(["-USR1", &id]).status().unwrap();
    assert!(sent.success());
    let begun = Instant::now();
    while job.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_mins(5) {
            let _ = job.kill();
            panic!("the script goes on after the signal");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let told = fs::read_to_string(sandbox.path("work/scontrol.txt"))
        .expect("requeued, after the run has saved");
    assert_eq!(told, "requeue 4242\n");
    // The next attempt ends well, and queues nothing.
    assert!(start().wait().unwrap().success());
    let told = fs::read_to_string(sandbox.path("work/scontrol.txt")).unwrap();
    assert_eq!(told, "requeue 4242\n");
}

/// Links within the repository lead somewhere.
#[test]
fn links() {
    let mut pages = vec![
        repository().join("README.md"),
        repository().join("snakemake/README.md"),
        repository().join("nextflow/README.md"),
        repository().join("galaxy/README.md"),
        repository().join("CONTRIBUTING.md"),
        repository().join("RELEASING.md"),
    ];
    for entry in fs::read_dir(repository().join("docs")).unwrap() {
        pages.push(entry.unwrap().path());
    }
    pages.retain(|page| page.extension().is_some_and(|end| end == "md"));
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for part in text.split("](").skip(1) {
            let link = part.split(')').next().unwrap();
            let path = link.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            let target = page.parent().unwrap().join(path);
            assert!(target.exists(), "{}: {link}", page.display());
        }
    }
}
