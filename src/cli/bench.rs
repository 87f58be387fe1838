//! `seqembed bench`: measures performance on this machine, with the user's own files and model.
//!
//! `load` runs this executable as a child process for each variant, so that the times include the
//! start and end of the process.

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
use crate::plot::bar_chart::{Bar, BarChart};
use crate::plot::scatter;
use crate::records::{self, Source};
use crate::report::Report;
use crate::settings::{Overrides, Settings};
use crate::text::{counted, thousands};

/// Measure the performance of seqembed on this machine
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Load(LoadArgs),
}

/// Measure how much time is saved by loading the model once
///
/// Runs a manifest as one process, as one process that reloads the model for each file, and as one
/// process per file. If all files have the same options, it also runs all sequences as a single
/// file. Prints a table, and writes load.svg and load.json; the embeddings are discarded. The
/// variants run one after the other, so this takes at least four times as long as `seqembed run`.
#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    /// The manifest, as for `seqembed run`
    manifest: PathBuf,

    /// The folder for load.svg and load.json, and for temporary outputs; created if it does not
    /// exist
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,

    /// Number of rounds; the fastest round of each variant counts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,

    #[command(flatten)]
    engine: EngineOptions,

    #[command(flatten)]
    overrides: Overrides,
}

/// Runs the subcommand and returns the exit code of the process.
///
/// # Errors
/// If a run fails, or a result cannot be written.
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
            "error: {}: {} can be read only once, but the benchmark reads its inputs several \
             times: use files",
            job.sample, job.source
        ));
        return Ok(USAGE.into());
    }
    folders::make(&args.out)
        .with_context(|| format!("cannot create the folder {}", args.out.display()))?;
    // Remove what a killed benchmark left behind.
    let _ = atomic_file::sweep(&args.out, Some("bench"));
    let work = AtomicFolder::create(&args.out.join("bench"))
        .with_context(|| format!("cannot write to the folder {}", args.out.display()))?;
    let bench = Bench {
        executable: std::env::current_exe()
            .context("cannot determine the path of this executable")?,
        engine: args.engine.or(&top).arguments(),
        work: work.partial().to_owned(),
    };
    let ways = ways(&bench, &jobs)?;

    // Warm up, so that the first variant alone does not pay for exporting the model and for reading
    // the weights from disk.
    let apart = ways.iter().find(|way| way.name == APART);
    let apart = &apart.expect("it is among the ways").manifests;
    bench.run(&apart[..1])?;
    let before = load_average();
    let mut measured: Vec<Vec<Measured>> = ways.iter().map(|_| Vec::new()).collect();
    for round in 0..usize::from(args.rounds) {
        for at in 0..ways.len() {
            // Each round starts with another variant, so that none is always the first.
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

/// A variant: one way to run all files.
struct Variant {
    name: &'static str,
    manifests: Vec<Child>,
}

/// A child process to start.
struct Child {
    manifest: PathBuf,
    reload: bool,
}

const ONE: &str = "one process";
const RELOAD: &str = "one process, reloading for each file";
const APART: &str = "one process per file";
const WHOLE: &str = "all sequences in one file";

fn ways(bench: &Bench, jobs: &[Job]) -> anyhow::Result<Vec<Variant>> {
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
        Variant {
            name: ONE,
            manifests: vec![child(&all, false)],
        },
        Variant {
            name: RELOAD,
            manifests: vec![child(&all, true)],
        },
        Variant {
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
        ways.push(Variant {
            name: WHOLE,
            manifests: vec![child(&whole, false)],
        });
    } else {
        say(&format!(
            "the variant `{WHOLE}` is left out because the files have different options"
        ));
    }
    Ok(ways)
}

/// How the measured processes are started.
struct Bench {
    executable: PathBuf,
    engine: Vec<String>,
    work: PathBuf,
}

/// Measurements of one round of a variant.
struct Measured {
    seconds: f64,
    cpu_seconds: Option<f64>,
    reports: Vec<Report>,
}

impl Bench {
    /// Writes a manifest for some of the jobs, with their resolved options.
    fn manifest(&self, name: &str, jobs: &[Job]) -> anyhow::Result<PathBuf> {
        let files = jobs.iter().map(entry).collect::<anyhow::Result<Vec<_>>>()?;
        let path = self.work.join(format!("{name}.json"));
        fs::write(&path, json!({ "files": files }).to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Writes the sequences of all jobs to a single FASTA file.
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

    /// Runs the processes one after the other.
    fn run(&self, children: &[Child]) -> anyhow::Result<Measured> {
        let out = self.work.join("out");
        let cpu = children_cpu_seconds();
        let mut seconds = 0.0;
        let mut reports = Vec::new();
        for child in children {
            let mut command = Command::new(&self.executable);
            command.arg("run").arg(&child.manifest).arg("-o").arg(&out);
            // One process would compute a sequence shared by several files only once, several
            // processes several times. That difference has nothing to do with loading.
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
                    "a measured run ended with {}:\n{}",
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

/// The entry of a manifest for a job.
fn entry(job: &Job) -> anyhow::Result<Value> {
    let Settings { model, .. } = &job.settings;
    let mut entry = serde_json::to_value(&job.settings).context("cannot write the options")?;
    if let Value::Object(fields) = &mut entry {
        fields.retain(|_, value| !value.is_null());
        // A model path is relative to the working directory, but an input path is relative to the
        // manifest.
        fields.insert("model".to_owned(), model.as_str().into());
        fields.insert("sample".to_owned(), job.sample.as_str().into());
        if let Source::Path(path) = &job.source {
            let path = std::path::absolute(path)
                .with_context(|| format!("cannot find {}", path.display()))?;
            let text = path.to_str().with_context(|| {
                format!(
                    "the path {} is not valid UTF-8, so it cannot be written to a manifest: \
                         rename the file",
                    path.display()
                )
            })?;
            fields.insert("fasta".to_owned(), text.into());
        }
    }
    Ok(entry)
}

/// CPU time in seconds of all child processes that have ended; `None` if the system does not report
/// it.
fn children_cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name, in parentheses, may contain any character. `cutime` and `cstime` are
    // fields 16 and 17.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(13)?.parse::<u64>().ok()? + fields.get(14)?.parse::<u64>().ok()?;
    // Linux reports these in hundredths of a second, whatever the kernel's clock rate.
    Some(ticks as f64 / 100.0)
}

/// Load average of the last minute: other work on the machine slows down what is measured. `None`
/// if the system does not report it.
fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// The contents of `load.json`.
#[derive(Serialize)]
struct Results {
    #[serde(flatten)]
    about: About,
    ways: Vec<Timing>,
}

/// What was measured, and on which machine.
#[derive(Serialize)]
struct About {
    seqembed: String,
    onnxruntime: Option<String>,
    cpu: String,
    threads: usize,
    /// Load average of the machine before and after the measurements; 0 is idle.
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

/// The fastest round of a variant.
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

    /// Sentences that state how much time one process saves compared with the other variants.
    fn savings(&self) -> Vec<String> {
        let find = |name: &str| self.ways.iter().find(|way| way.way == name);
        let Some(one) = find(ONE) else {
            return Vec::new();
        };
        let mut lines = Vec::new();
        for (name, words) in [
            (RELOAD, "reloading for each file"),
            (APART, "one process per file"),
        ] {
            if let Some(other) = find(name) {
                let share = 100.0 * (other.seconds - one.seconds) / other.seconds;
                lines.push(format!(
                    "loading once takes {:.0} % {} time than {words}: {:.1} s instead of {:.1} s",
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
                "one process on {} takes {:.3} times as long as with {WHOLE}{}",
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

    fn bars(&self) -> BarChart {
        let about = &self.about;
        let mut notes = self.savings();
        notes.push(format!(
            "{}; load average of the machine before and after: {}",
            about.cpu,
            about
                .load_average
                .map(|load| load.map_or_else(|| "unknown".to_owned(), |load| load.to_string()))
                .join(" and ")
        ));
        BarChart {
            title: "Time saved by loading the model once".to_owned(),
            subtitle: self.what(),
            warning: about.random_weights.then(|| {
                "Random weights of the real shape: times are the same as with real \
                          weights"
                    .to_owned()
            }),
            axis: "Wall time in seconds".to_owned(),
            parts: vec!["loading".to_owned(), "everything else".to_owned()],
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
