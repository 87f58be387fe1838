//! What the tests of interrupted runs share: inputs long enough to be interrupted in, and rows
//! compared one by one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use seqembed::output::{self, Format, Layout, Rows};
use tempfile::TempDir;

use super::{exported, text};

/// Numbers that look random and are the same in each run (xorshift).
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    /// A protein, or DNA.
    pub fn sequence(&mut self, letters: &[u8], length: u64) -> String {
        let letter = |chance: &mut Self| {
            let at = usize::try_from(chance.below(letters.len() as u64)).unwrap();
            char::from(letters[at])
        };
        (0..length).map(|_| letter(self)).collect()
    }
}

pub const PROTEIN: &[u8] = b"ACDEFGHIKLMNPQRSTVWY";

/// FASTA text of proteins: most are short, some come again, some are empty, have odd letters, or
/// are long.
pub fn proteins(seed: u64, count: u64) -> String {
    let mut chance = Chance::new(seed);
    let mut text = String::new();
    let mut last = String::new();
    for number in 0..count {
        let sequence = match number % 13 {
            5 => last.clone(),
            7 => String::new(),
            9 => format!("{}X1", chance.sequence(PROTEIN, 12)),
            11 => chance.sequence(PROTEIN, 90),
            _ => {
                let length = 5 + chance.below(25);
                chance.sequence(PROTEIN, length)
            }
        };
        writeln!(text, ">s{seed}_{number} a protein\n{sequence}").unwrap();
        last = sequence;
    }
    text
}

/// Inputs, a manifest, and the rows of a run that nobody disturbed.
pub struct Soak {
    folder: TempDir,
    outputs: Vec<String>,
    expected: Vec<(Rows, Layout)>,
    /// How long the undisturbed run took.
    pub seconds: Duration,
}

impl Soak {
    /// Files of the sizes given, each with one of several poolings and formats.
    pub fn new(sizes: &[u64]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut manifest = format!(
            "model: {}\nmax_length: 60\nfiles:\n",
            text(exported("esm2"))
        );
        let mut outputs = Vec::new();
        for (at, &size) in sizes.iter().enumerate() {
            let fasta = proteins(at as u64 + 1, size);
            fs::write(folder.path().join(format!("f{at}.faa")), fasta).unwrap();
            let pooling = ["mean", "none", "max", "cls"][at % 4];
            let format = Format::ALL[at % Format::ALL.len()];
            writeln!(
                manifest,
                "- {{sample: f{at}, fasta: f{at}.faa, pooling: {pooling}, format: {format}}}"
            )
            .unwrap();
            outputs.push(format!("f{at}.{format}"));
        }
        fs::write(folder.path().join("manifest.yaml"), manifest).unwrap();
        let mut soak = Self {
            folder,
            outputs,
            expected: Vec::new(),
            seconds: Duration::ZERO,
        };
        let started = Instant::now();
        let run = soak.command("undisturbed", &[]).output().unwrap();
        super::assert_run(&run, super::DONE, &[]);
        soak.seconds = started.elapsed();
        let read = |name: &String| output::read(&soak.path("undisturbed").join(name)).unwrap();
        soak.expected = soak.outputs.iter().map(read).collect();
        soak
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `seqembed run` into a folder beside the inputs, saving all the time.
    pub fn command(&self, out: &str, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seqembed"));
        command
            .args(["run", text(&self.path("manifest.yaml"))])
            .args(["-o", text(&self.path(out)), "--save-every", "0.02"])
            .args(["--batch-tokens", "64", "--threads", "2"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Checks that every file with a final name is complete and correct, with its companion files.
    /// Returns the number of files.
    #[track_caller]
    pub fn check(&self, out: &str) -> usize {
        self.check_but(out, &Damaged::default())
    }

    /// The same, those left out that were damaged and have not been made again.
    #[track_caller]
    pub fn check_but(&self, out: &str, damaged: &Damaged) -> usize {
        let mut there = 0;
        for (name, (expected, layout)) in self.outputs.iter().zip(&self.expected) {
            let path = self.path(out).join(name);
            if path.exists() && !damaged.is_still(&path) {
                let (rows, told) = output::read(&path).unwrap();
                assert_same(&rows, expected, name);
                assert_eq!(told.provenance, layout.provenance, "{name}");
                there += 1;
            }
        }
        there
    }

    /// All files are there, and nothing unfinished.
    #[track_caller]
    pub fn check_all(&self, out: &str) {
        assert_eq!(self.check(out), self.outputs.len());
        assert_eq!(leftovers(&self.path(out)), Vec::<String>::new());
    }
}

/// Finished files that were damaged, with the bytes that they were left with; none for one that was
/// removed.
#[derive(Default)]
pub struct Damaged(BTreeMap<PathBuf, Option<Vec<u8>>>);

impl Damaged {
    /// Damages a finished file or companion file in a folder: changes four bytes, truncates it, or
    /// removes it.
    pub fn hit(&mut self, folder: &Path, chance: &mut Chance) {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.retain(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            path.is_file() && !name.starts_with('.') && name != "report.json"
        });
        files.sort();
        if files.is_empty() {
            return;
        }
        let below =
            |chance: &mut Chance, end: usize| usize::try_from(chance.below(end as u64)).unwrap();
        let path = files.swap_remove(below(chance, files.len()));
        let mut bytes = fs::read(&path).unwrap();
        let at = below(chance, bytes.len().saturating_sub(4).max(1));
        let left = match chance.below(4) {
            0 => None,
            1 => {
                bytes.truncate(at);
                Some(bytes)
            }
            _ => {
                let end = bytes.len().min(at + 4);
                bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0x5a);
                Some(bytes)
            }
        };
        match &left {
            None => fs::remove_file(&path).unwrap(),
            Some(bytes) => fs::write(&path, bytes).unwrap(),
        }
        self.0.insert(path, left);
    }

    /// Whether an output, or a file beside it, is as the damage left it.
    fn is_still(&self, output: &Path) -> bool {
        let stem = |path: &Path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.split('.').next().unwrap().to_owned()
        };
        let beside = self
            .0
            .iter()
            .filter(|(path, _)| path.parent() == output.parent() && stem(path) == stem(output));
        let mut left = beside.map(|(path, left)| fs::read(path).ok() == *left);
        left.any(|is_left| is_left)
    }
}

/// Files that were being written, and saved rows.
pub fn leftovers(out: &Path) -> Vec<String> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.collect()
    };
    let mut left: Vec<String> = names(out);
    left.retain(|name| name.ends_with(".partial"));
    let mut shards = names(&out.join(".seqembed"));
    shards.retain(|name| name.starts_with("rows-"));
    left.extend(shards);
    left
}

/// Each id has the very same vector, and stands where it stood.
#[track_caller]
pub fn assert_same(rows: &Rows, expected: &Rows, what: &str) {
    assert_eq!(rows.ids, expected.ids, "{what}");
    assert_eq!(rows.headers, expected.headers, "{what}");
    assert_eq!(rows.lengths, expected.lengths, "{what}");
    assert_eq!(rows.status, expected.status, "{what}");
    assert_eq!(rows.vectors, expected.vectors, "{what}");
    let mut at = 0;
    for (row, id) in rows.ids.iter().enumerate() {
        let end = at + rows.vectors[row] * rows.hidden;
        let same = rows.values[at..end]
            .iter()
            .zip(&expected.values[at..end])
            .all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
        assert!(same, "{what}: the vector of {id}");
        at = end;
    }
}

/// Sends a signal by its name.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

/// Waits until a condition holds. Fails after five minutes.
#[track_caller]
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(
            started.elapsed() < Duration::from_mins(5),
            "waited for {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills a run once it has saved rows; says whether it came to that before the run ended by itself.
pub fn kill_once_saved(mut child: Child, out: &Path) -> bool {
    loop {
        let entries = fs::read_dir(out.join(".seqembed"))
            .into_iter()
            .flatten()
            .flatten();
        let has_rows = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("rows-"))
            .any(|entry| entry.metadata().is_ok_and(|about| about.len() > 4000));
        if has_rows {
            child.kill().unwrap();
            return child.wait().unwrap().code().is_none();
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The end of a child, with what it said.
#[track_caller]
pub fn end(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

/// A file system in memory, unmounted when dropped; none where this process may not mount.
pub struct Mount {
    path: PathBuf,
}

impl Mount {
    pub fn new(path: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs", text(path)])
            .output()
            .is_ok_and(|run| run.status.success());
        mounted.then(|| Self {
            path: path.to_owned(),
        })
    }

    pub fn remount(&self, options: &str) {
        let run = Command::new("mount")
            .args(["-o", &format!("remount,{options}"), text(&self.path)])
            .output()
            .unwrap();
        assert!(run.status.success(), "{run:?}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}

/// A copy of a folder.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}

/// Flips one bit in the middle of a file.
pub fn flip(path: &Path, at: impl Fn(u64) -> u64) {
    let mut bytes = fs::read(path).unwrap();
    let at = usize::try_from(at(bytes.len() as u64)).unwrap();
    bytes[at] ^= 0x20;
    fs::write(path, bytes).unwrap();
}

/// A pipe whose reader is gone.
pub fn closed_pipe() -> Stdio {
    let (reader, mut writer) = std::io::pipe().unwrap();
    drop(reader);
    // A program that another test is starting may have inherited the reader, until it has started.
    wait_for("the reader to be gone", || writer.write_all(b"?").is_err());
    writer.into()
}

/// When a file was written last.
pub fn modified(path: &Path) -> std::time::SystemTime {
    File::open(path)
        .unwrap()
        .metadata()
        .unwrap()
        .modified()
        .unwrap()
}
