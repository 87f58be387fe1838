//! `seqembed bench`: measurements on this machine, with the user's own files and model.
//!
//! `load` runs this executable itself, once a way, so that start-up and the end of each process are in what it measures.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use indicatif::BinaryBytes;
use serde::Serialize;
use serde_json::{Value, json};
use sysinfo::System;

use super::embed::EngineOptions;
use super::{USAGE, print, say};
use crate::atomic_file::{self, AtomicFolder};
use crate::folders;
use crate::manifest::{self, Job};
use crate::plot::bar_chart::{Bar, Bars};
use crate::plot::scatter;
use crate::records::{self, Source};
use crate::report::Report;
use crate::settings::{Overrides, Settings};
use crate::text::{counted, thousands};

/// Measure what seqembed does on this machine
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Load(LoadArgs),
}

/// Measure what loading the model once saves
///
/// Runs a manifest as one process, as one process that loads the model again for each file, and as a process for each file; and
/// where all files have the same options, all their sequences as one file. Prints a table, and writes load.svg and
/// load.json. The outputs themselves are thrown away. All ways run one after the other: that takes some four times as long as
/// `seqembed run`, and more.
#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    /// The manifest, as `seqembed run` takes it
    manifest: PathBuf,

    /// The folder for load.svg and load.json, and for the outputs while it measures; it is made if need be
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,

    /// Rounds; each way's fastest counts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,

    #[command(flatten)]
    engine: EngineOptions,

    #[command(flatten)]
    overrides: Overrides,
}

/// Runs the subcommand.
///
/// # Errors
/// When a run fails, or a result can't be written.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Load(args) => load(args),
    }
}

fn load(args: &LoadArgs) -> anyhow::Result<ExitCode> {
    let (jobs, top) = match manifest::read(&args.manifest, &args.overrides) {
        Ok(manifest) => (manifest.jobs, manifest.run),
        Err(errors) => {
            say(&format!("error: {errors}"));
            return Ok(USAGE.into());
        }
    };
    if let Some(job) = jobs.iter().find(|job| job.source == Source::Stdin) {
        say(&format!(
            "error: {}: {} can be read only once: measure with files",
            job.sample, job.source
        ));
        return Ok(USAGE.into());
    }
    folders::make(&args.out)
        .with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    // What a killed one left.
    let _ = atomic_file::sweep(&args.out, Some("bench"));
    let work = AtomicFolder::create(&args.out.join("bench"))
        .with_context(|| format!("cannot write to the folder {}", args.out.display()))?;
    let bench = Bench {
        executable: std::env::current_exe().context("cannot find this executable")?,
        engine: args.engine.or(&top).arguments(),
        work: work.partial().to_owned(),
    };
    let ways = ways(&bench, &jobs)?;

    // What only the first process would pay for: an export into the cache, and reading the weights from the disk.
    let apart = ways.iter().find(|way| way.name == APART);
    let apart = &apart.expect("it is among the ways").manifests;
    bench.run(&apart[..1])?;
    let before = load_average();
    let mut measured: Vec<Vec<Measured>> = ways.iter().map(|_| Vec::new()).collect();
    for round in 0..usize::from(args.rounds) {
        for at in 0..ways.len() {
            // Each round begins with another way, so that none is always the first.
            let at = (at + round) % ways.len();
            say(&format!(
                "round {} of {}: {} ...",
                round + 1,
                args.rounds,
                ways[at].name
            ));
            measured[at].push(bench.run(&ways[at].manifests)?);
        }
    }
    let results = Results {
        about: About::of(&bench, &jobs, &measured[0][0], [before, load_average()]),
        ways: ways
            .iter()
            .zip(&measured)
            .map(|(way, rounds)| Timing::of(way.name, way.manifests.len(), rounds))
            .collect(),
    };
    let picture = args.out.join("load.svg");
    scatter::write(&picture, &results.bars().svg())
        .with_context(|| format!("cannot write {}", picture.display()))?;
    let path = args.out.join("load.json");
    let text = serde_json::to_string_pretty(&results).context("cannot write the results")?;
    scatter::write(&path, &(text + "\n"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    print(&format!(
        "{}picture: {}\nnumbers: {}\n",
        results.table(),
        picture.display(),
        path.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// A way to run all files.
struct Plan {
    name: &'static str,
    manifests: Vec<Child>,
}

/// A process to start.
struct Child {
    manifest: PathBuf,
    reload: bool,
}

const ONE: &str = "one process";
const RELOAD: &str = "one process, a load a file";
const APART: &str = "a process a file";
const WHOLE: &str = "one file with everything";

fn ways(bench: &Bench, jobs: &[Job]) -> anyhow::Result<Vec<Plan>> {
    let all = bench.manifest("all", jobs)?;
    let child = |manifest: &Path, reload| Child {
        manifest: manifest.to_owned(),
        reload,
    };
    let apart = jobs
        .iter()
        .enumerate()
        .map(|(at, job)| {
            let manifest = bench.manifest(&format!("file-{at}"), std::slice::from_ref(job))?;
            Ok(child(&manifest, false))
        })
        .collect::<anyhow::Result<_>>()?;
    let mut ways = vec![
        Plan {
            name: ONE,
            manifests: vec![child(&all, false)],
        },
        Plan {
            name: RELOAD,
            manifests: vec![child(&all, true)],
        },
        Plan {
            name: APART,
            manifests: apart,
        },
    ];
    let first = &jobs[0];
    if jobs.iter().all(|job| job.settings == first.settings) {
        let job = Job {
            sample: "everything".to_owned(),
            source: Source::Path(bench.everything(jobs)?),
            ..first.clone()
        };
        let whole = bench.manifest("everything", &[job])?;
        ways.push(Plan {
            name: WHOLE,
            manifests: vec![child(&whole, false)],
        });
    } else {
        say(&format!(
            "the files have different options: `{WHOLE}` is left out"
        ));
    }
    Ok(ways)
}

/// How the measured processes are run.
struct Bench {
    executable: PathBuf,
    engine: Vec<String>,
    work: PathBuf,
}

/// What one round of a way took.
struct Measured {
    seconds: f64,
    cpu_seconds: Option<f64>,
    reports: Vec<Report>,
}

impl Bench {
    /// Writes a manifest of its own for some jobs, with all that was decided for them.
    fn manifest(&self, name: &str, jobs: &[Job]) -> anyhow::Result<PathBuf> {
        let files = jobs.iter().map(entry).collect::<anyhow::Result<Vec<_>>>()?;
        let path = self.work.join(format!("{name}.json"));
        fs::write(&path, json!({ "files": files }).to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Writes the sequences of all jobs into one file.
    fn everything(&self, jobs: &[Job]) -> anyhow::Result<PathBuf> {
        let path = self.work.join("everything.fasta");
        let wrong = || format!("cannot write {}", path.display());
        let mut file = std::io::BufWriter::new(fs::File::create(&path).with_context(wrong)?);
        for job in jobs {
            for record in records::open(&job.source)? {
                let record = record?;
                writeln!(file, ">{}", record.header)
                    .and_then(|()| file.write_all(&record.sequence))
                    .and_then(|()| file.write_all(b"\n"))
                    .with_context(wrong)?;
            }
        }
        file.flush().with_context(wrong)?;
        Ok(path)
    }

    /// Runs processes one after the other.
    fn run(&self, children: &[Child]) -> anyhow::Result<Measured> {
        let out = self.work.join("out");
        let cpu = children_cpu_seconds();
        let mut seconds = 0.0;
        let mut reports = Vec::new();
        for child in children {
            let mut command = Command::new(&self.executable);
            command.arg("run").arg(&child.manifest).arg("-o").arg(&out);
            // What one process computes once for all files, several compute again: that is no load.
            command.args(["--quiet", "--no-dedup"]).args(&self.engine);
            if child.reload {
                command.arg("--reload-per-file");
            }
            let started = Instant::now();
            let output = command
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("cannot run {}", self.executable.display()))?;
            seconds += started.elapsed().as_secs_f64();
            if !output.status.success() {
                bail!(
                    "a run ended with {}, so there is nothing to compare:\n{}",
                    output.status,
                    String::from_utf8_lossy(&output.stderr).trim_end()
                );
            }
            let report = out.join("report.json");
            let text =
                fs::read(&report).with_context(|| format!("cannot read {}", report.display()))?;
            reports.push(
                serde_json::from_slice(&text)
                    .with_context(|| format!("cannot read {}", report.display()))?,
            );
            fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
        }
        Ok(Measured {
            seconds,
            cpu_seconds: cpu
                .zip(children_cpu_seconds())
                .map(|(before, after)| after - before),
            reports,
        })
    }
}

/// A job as an entry of a manifest.
fn entry(job: &Job) -> anyhow::Result<Value> {
    let Settings { model, .. } = &job.settings;
    let mut entry = serde_json::to_value(&job.settings).context("cannot write the options")?;
    if let Value::Object(fields) = &mut entry {
        fields.retain(|_, value| !value.is_null());
        // A model that is a path is relative to where the command is run, and an input to its manifest.
        fields.insert("model".to_owned(), model.as_str().into());
        fields.insert("sample".to_owned(), job.sample.as_str().into());
        if let Source::Path(path) = &job.source {
            let path = std::path::absolute(path)
                .with_context(|| format!("cannot find {}", path.display()))?;
            let text = path.to_str().with_context(|| {
                format!("{} is no UTF-8, which a manifest must be", path.display())
            })?;
            fields.insert("fasta".to_owned(), text.into());
        }
    }
    Ok(entry)
}

/// CPU time of all processes that this one started and that ended, where the system tells.
fn children_cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in parentheses, may hold anything. `cutime` and `cstime` are the 16th and 17th field.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(13)?.parse::<u64>().ok()? + fields.get(14)?.parse::<u64>().ok()?;
    // Linux tells users hundredths, whatever the kernel's own clock.
    Some(ticks as f64 / 100.0)
}

/// How busy the machine was over the last minute, where the system tells: others' work makes what is measured slower.
fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// All that was measured: `load.json`.
#[derive(Serialize)]
struct Results {
    #[serde(flatten)]
    about: About,
    ways: Vec<Timing>,
}

/// What was run, and where.
#[derive(Serialize)]
struct About {
    seqembed: String,
    onnxruntime: Option<String>,
    cpu: String,
    threads: usize,
    /// Of the machine, before and after: 0 is idle.
    load_average: [Option<f64>; 2],
    options: Vec<String>,
    models: Vec<String>,
    random_weights: bool,
    files: u64,
    sequences: u64,
    residues: u64,
    tokens: u64,
}

impl About {
    fn of(bench: &Bench, jobs: &[Job], one: &Measured, load_average: [Option<f64>; 2]) -> Self {
        let report = &one.reports[0];
        let mut models: Vec<String> = Vec::new();
        for load in &report.loads {
            if !models.contains(&load.model) {
                models.push(load.model.clone());
            }
        }
        let mut system = System::new();
        system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
        let cpu = system.cpus().first().map(|cpu| cpu.brand().trim());
        About {
            seqembed: report.seqembed.clone(),
            onnxruntime: report.onnxruntime.clone(),
            cpu: cpu.unwrap_or(std::env::consts::ARCH).to_owned(),
            threads: report.threads,
            load_average,
            options: bench.engine.clone(),
            models,
            random_weights: report.loads.iter().any(|load| load.random_seed.is_some()),
            files: jobs.len() as u64,
            sequences: report.totals.records,
            residues: report.totals.residues,
            tokens: report.totals.tokens,
        }
    }
}

/// One way: its fastest round.
#[derive(Serialize)]
struct Timing {
    way: &'static str,
    processes: usize,
    seconds: f64,
    loads: usize,
    load_seconds: f64,
    cpu_seconds: Option<f64>,
    peak_memory_bytes: Option<u64>,
    seconds_of_each_round: Vec<f64>,
}

impl Timing {
    fn of(name: &'static str, processes: usize, rounds: &[Measured]) -> Self {
        let fastest = rounds
            .iter()
            .min_by(|a, b| a.seconds.total_cmp(&b.seconds))
            .expect("there is a round at least");
        let reports = &fastest.reports;
        Timing {
            way: name,
            processes,
            seconds: fastest.seconds,
            loads: reports.iter().map(|report| report.loads.len()).sum(),
            load_seconds: reports
                .iter()
                .map(|report| report.totals.load_seconds)
                .sum(),
            cpu_seconds: fastest.cpu_seconds,
            peak_memory_bytes: reports
                .iter()
                .filter_map(|report| report.totals.peak_memory_bytes)
                .max(),
            seconds_of_each_round: rounds.iter().map(|round| round.seconds).collect(),
        }
    }
}

impl Results {
    fn what(&self) -> String {
        let about = &self.about;
        format!(
            "{}: {} ({}) in {}, {}",
            about.models.join(", "),
            counted(about.sequences, "sequence"),
            counted(about.tokens, "token"),
            counted(about.files, "file"),
            counted(about.threads as u64, "thread")
        )
    }

    /// What one process saves over the other ways, in words.
    fn savings(&self) -> Vec<String> {
        let find = |name: &str| self.ways.iter().find(|way| way.way == name);
        let Some(one) = find(ONE) else {
            return Vec::new();
        };
        let mut lines = Vec::new();
        for (name, words) in [
            (RELOAD, "a load for each file"),
            (APART, "a process for each file"),
        ] {
            if let Some(other) = find(name) {
                let share = 100.0 * (other.seconds - one.seconds) / other.seconds;
                lines.push(format!(
                    "one load takes {:.0} % {} time than {words}: {:.1} s and {:.1} s",
                    share.abs(),
                    if share < 0.0 { "more" } else { "less" },
                    one.seconds,
                    other.seconds,
                ));
            }
        }
        if let Some(whole) = find(WHOLE) {
            let cpu = one.cpu_seconds.zip(whole.cpu_seconds);
            lines.push(format!(
                "one process on {} takes {:.3} times as long as on {WHOLE}{}",
                counted(self.about.files, "file"),
                one.seconds / whole.seconds,
                cpu.filter(|(_, whole)| *whole > 0.0)
                    .map(|(one, whole)| format!(" (CPU time: {:.3} times)", one / whole))
                    .unwrap_or_default()
            ));
        }
        lines
    }

    fn table(&self) -> String {
        let dash = || "-".to_owned();
        let mut lines =
            vec![["", "wall", "loads", "loading", "CPU", "peak memory"].map(str::to_owned)];
        lines.extend(self.ways.iter().map(|way| {
            [
                way.way.to_owned(),
                format!("{:.2} s", way.seconds),
                thousands(way.loads as u64),
                format!("{:.2} s", way.load_seconds),
                way.cpu_seconds
                    .map_or_else(dash, |seconds| format!("{seconds:.1} s")),
                way.peak_memory_bytes
                    .map_or_else(dash, |bytes| BinaryBytes(bytes).to_string()),
            ]
        }));
        let widths: Vec<usize> = (0..6)
            .map(|column| {
                lines
                    .iter()
                    .map(|line| line[column].len())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = self.what() + "\n";
        for line in &lines {
            let mut row = format!("{:width$}", line[0], width = widths[0]);
            for (cell, width) in line.iter().zip(&widths).skip(1) {
                let _ = write!(row, "  {cell:>width$}");
            }
            text.extend([row.trim_end(), "\n"]);
        }
        for saving in self.savings() {
            text.extend([&saving, "\n"]);
        }
        text
    }

    fn bars(&self) -> Bars {
        let about = &self.about;
        let mut notes = self.savings();
        notes.push(format!(
            "{}; other work on the machine (load average before and after): {}",
            about.cpu,
            about
                .load_average
                .map(|load| load.map_or_else(|| "unknown".to_owned(), |load| load.to_string()))
                .join(" and ")
        ));
        Bars {
            title: "What loading the model once saves".to_owned(),
            subtitle: self.what(),
            warning: about
                .random_weights
                .then(|| "Random weights of the true shape: times as with real ones".to_owned()),
            axis: "Wall time in seconds".to_owned(),
            parts: vec!["loading".to_owned(), "all else".to_owned()],
            bars: self
                .ways
                .iter()
                .map(|way| Bar {
                    label: way.way.to_owned(),
                    note: match way.loads {
                        1 => "1 load".to_owned(),
                        loads => format!("{} loads", thousands(loads as u64)),
                    },
                    values: vec![way.load_seconds, (way.seconds - way.load_seconds).max(0.0)],
                    told: format!("{:.1} s", way.seconds),
                })
                .collect(),
            notes,
        }
    }
}
