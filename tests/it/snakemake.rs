//! The Snakemake workflow and wrapper in `snakemake/`, run by Snakemake itself.
//!
//! Snakemake comes from `PyPI` into `.venv-snakemake/`. Where it can't be installed, these tests
//! say so and check nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::common::{
    DONE, assert_close, assert_run, export, exported, fixtures, seqembed, text, write_script,
};
use seqembed::output;
use tempfile::TempDir;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of Snakemake's executables; `None` if Snakemake is not available.
fn engine() -> Option<&'static Path> {
    static ENGINE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = ENGINE.get_or_init(|| {
        let venv = repository().join(".venv-snakemake");
        let made = Command::new("sh")
            .arg(repository().join("scripts/python-env.sh"))
            .args([&venv, &repository().join("snakemake/requirements.txt")])
            .output()
            .unwrap();
        if made.status.success() {
            return Some(venv.join("bin"));
        }
        let why = String::from_utf8_lossy(&made.stderr).into_owned();
        // Past the test harness, which keeps what a passing test prints to itself.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: Snakemake can't be installed, and its tests check nothing:\n{why}"
        );
        None
    });
    found.as_deref()
}

/// A copy of `snakemake/` to work in, with `seqembed` in its own folder of executables.
struct Scene {
    folder: TempDir,
    engine: &'static Path,
}

impl Scene {
    fn new(engine: &'static Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let copied = Command::new("cp")
            .args(["-r", text(&repository().join("snakemake"))])
            .arg(folder.path().join("flow"))
            .status()
            .unwrap();
        assert!(copied.success());
        let scene = Self { folder, engine };
        scene.executable("exec \"$SEQEMBED\" \"$@\"");
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("flow").join(name)
    }

    /// Makes `seqembed` a script; the manifests that it gets are noted in `calls`.
    fn executable(&self, script: &str) {
        let bin = self.folder.path().join("bin");
        fs::create_dir_all(&bin).unwrap();
        let script = format!(
            "#!/bin/sh\nSEQEMBED='{}'\necho \"$2\" >> '{}'\n{script}\n",
            env!("CARGO_BIN_EXE_seqembed"),
            text(&self.path("calls")),
        );
        write_script(&bin.join("seqembed"), &script);
    }

    /// How often seqembed was started.
    fn calls(&self) -> usize {
        fs::read_to_string(self.path("calls")).map_or(0, |calls| calls.lines().count())
    }

    /// A sample sheet of the examples.
    fn sheet(&self, rows: &[(&str, &Path)]) {
        let mut sheet = "sample\tfasta\n".to_owned();
        for (sample, file) in rows {
            sheet.extend([*sample, "\t", text(file), "\n"]);
        }
        fs::write(self.path("config/samples.tsv"), sheet).unwrap();
    }

    /// The job whose folder has the output of a sample.
    fn job(&self, sample: &str) -> Option<String> {
        let jobs = fs::read_dir(self.path("results/jobs")).ok()?;
        jobs.map(|job| job.unwrap())
            .find(|job| job.path().join(format!("{sample}.parquet")).exists())
            .map(|job| job.file_name().into_string().unwrap())
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut folders = vec![self.folder.path().join("bin"), self.engine.to_path_buf()];
        folders.extend(std::env::split_paths(
            &std::env::var_os("PATH").unwrap_or_default(),
        ));
        let mut command = Command::new(self.engine.join(program));
        command
            .args(arguments)
            .current_dir(self.folder.path().join("flow"))
            .env("PATH", std::env::join_paths(folders).unwrap())
            .env("XDG_CACHE_HOME", self.folder.path().join("cache"))
            .stdin(Stdio::null());
        command
    }

    /// The workflow, with the small model, some files a job.
    fn flow(&self, files_per_job: usize, more: &[&str]) -> Command {
        let mut command = self.command("snakemake", more);
        command.args(["--cores", "1", "--config", "threads=1"]);
        command.arg(format!("model={}", text(exported("esm2"))));
        command.arg(format!("files_per_job={files_per_job}"));
        command
    }

    /// Asserts that a log names something, and no path that is gone; gives the log.
    #[track_caller]
    fn assert_log(&self, name: &str, named: &str) -> String {
        let log = fs::read_to_string(self.path(name)).unwrap();
        assert!(log.contains(named), "{named}: {log}");
        for word in log.split_whitespace() {
            let path = word.trim_end_matches([':', ',']);
            if path.starts_with(text(self.folder.path())) {
                assert!(Path::new(path).exists(), "{path} is gone:\n{log}");
            }
        }
        assert!(!log.contains(".seqembed-"), "{log}");
        log
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments).output().unwrap()
    }
}

#[track_caller]
fn assert_success(run: &Output) {
    assert!(run.status.success(), "{}", said(run));
}

fn said(run: &Output) -> String {
    String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr)
}

fn example(name: &str) -> PathBuf {
    repository().join("examples").join(name)
}

/// The three files of the tests.
fn examples() -> [(&'static str, PathBuf); 3] {
    [
        ("Hepatitis_B", example("hepatitis_b.faa")),
        ("HIV-1", example("hiv_1.faa")),
        ("phiX174", example("phix174.faa")),
    ]
}

/// Asserts that an output is what seqembed gives without Snakemake.
#[track_caller]
fn assert_vectors(made: &Path, fasta: &Path, options: &[&str]) {
    let alone = tempfile::tempdir().unwrap();
    let mut arguments = vec!["embed", text(fasta), "-o", text(alone.path()), "-m"];
    arguments.push(text(exported("esm2")));
    arguments.extend(options);
    assert_run(&seqembed(&arguments), DONE, &[]);
    let stem = fasta.file_stem().unwrap();
    let (expected, _) = output::read(&alone.path().join(stem).with_extension("parquet")).unwrap();
    let (rows, _) = output::read(made).unwrap();
    assert_eq!(rows.ids, expected.ids);
    assert_close(&rows.values, &expected.values, 1e-5, text(made));
}

#[test]
fn a_workflow_killed_in_the_middle_goes_on_where_it_was() {
    let Some(engine) = engine() else { return };
    let scene = Scene::new(engine);
    let files = examples();
    scene.sheet(
        &files
            .each_ref()
            .map(|(sample, path)| (*sample, path.as_path())),
    );
    let output = |sample: &str| scene.path(&format!("results/embeddings/{sample}.parquet"));

    // Two jobs, of two files and of one, in any order. The second has computed its files, and hangs
    // before it hands them over.
    scene.executable(
        "\"$SEQEMBED\" \"$@\" || exit\nif [ \"$(wc -l < calls)\" -eq 2 ]; then echo $$ > hanging; exec sleep 600; fi",
    );
    let mut engine = scene
        .flow(2, &[])
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !scene.path("hanging").exists() {
        assert!(begun.elapsed() < Duration::from_mins(10), "no second job");
        assert!(engine.try_wait().unwrap().is_none(), "Snakemake ended");
        std::thread::sleep(Duration::from_millis(50));
    }
    let group = format!("-{}", engine.id());
    assert!(
        Command::new("kill")
            .args(["-9", "--", &group])
            .status()
            .unwrap()
            .success()
    );
    engine.wait().unwrap();
    let job = fs::read_to_string(scene.path("hanging")).unwrap();
    let _ = Command::new("kill").args(["-9", job.trim()]).output();
    assert_eq!(scene.calls(), 2);
    // The report is a job's last output: where it is, the job was done.
    let written = |sample: &str| {
        let job = scene.job(sample)?;
        fs::metadata(scene.path(&format!("results/reports/{job}.json"))).ok()?;
        let made = format!("results/jobs/{job}/{sample}.parquet");
        fs::metadata(scene.path(&made)).ok()?.modified().ok()
    };
    let before: Vec<_> = files
        .iter()
        .filter_map(|(sample, _)| Some((sample, written(sample)?)))
        .collect();
    assert!((1..=2).contains(&before.len()), "{before:?}");

    scene.executable("exec \"$SEQEMBED\" \"$@\"");
    assert_success(&scene.flow(2, &["--unlock"]).output().unwrap());
    assert_success(&scene.flow(2, &["--rerun-incomplete"]).output().unwrap());
    assert_eq!(scene.calls(), 3, "what was done is not done again");
    for (sample, time) in before {
        assert_eq!(written(sample).unwrap(), time, "{sample}");
    }
    for (sample, fasta) in &files {
        assert_vectors(&output(sample), fasta, &[]);
    }
    let mut names: Vec<_> = fs::read_dir(scene.path("results/embeddings"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        // Snakemake's own, in each folder that is an output.
        .filter(|name| name != ".snakemake_timestamp")
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["HIV-1.parquet", "Hepatitis_B.parquet", "phiX174.parquet"],
        "nothing is left over from the job that was killed"
    );
    // The first job or the last has two files: those of the sample in the middle.
    let job = scene.job(files[1].0).unwrap();
    let report = scene.path(&format!("results/reports/{job}.json"));
    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap();
    assert_eq!(report["totals"]["files"], 2);
    // None where this was the job that was killed: what it had computed is taken from its cache.
    assert!(report["loads"].as_array().unwrap().len() <= 1, "{report}");
}

/// Only the job of a row that is taken out of the sheet runs again, and its neighbour at most.
#[test]
fn a_sheet_with_a_row_less_has_the_other_jobs() {
    let Some(engine) = engine() else { return };
    let scene = Scene::new(engine);
    let file = example("phix174.faa");
    let names: Vec<String> = (0..200).map(|at| format!("s{at}")).collect();
    // Each planned job with its files, as Snakemake tells them.
    let planned = |without: Option<usize>| {
        let rows = names.iter().enumerate();
        let rows = rows.filter(|(at, _)| Some(*at) != without);
        let rows: Vec<_> = rows
            .map(|(_, name)| (name.as_str(), file.as_path()))
            .collect();
        scene.sheet(&rows);
        let plan = scene.flow(40, &["--dry-run"]).output().unwrap();
        assert_success(&plan);
        let said = said(&plan);
        let jobs = said.lines().filter(|line| line.contains("Embedding "));
        let jobs = jobs.map(|line| line[line.find("Embedding ").unwrap()..].to_owned());
        jobs.collect::<BTreeSet<_>>()
    };
    let all = planned(None);
    assert!((5..=10).contains(&all.len()), "{all:?}");
    for without in [0, 25, 117] {
        let others = planned(Some(without));
        let again = others.difference(&all).count();
        assert!(again <= 2, "{without}: {all:?} {others:?}");
    }
}

#[test]
fn a_bad_file_is_told_at_the_end_and_all_others_arrive() {
    let Some(engine) = engine() else { return };
    let scene = Scene::new(engine);
    let (bad, dna) = (scene.path("bad.faa"), scene.path("dna.fna"));
    fs::write(&bad, "no FASTA").unwrap();
    fs::write(&dna, ">contig\nACGTTGCAACGGATTACAGATTACA\n").unwrap();
    let mut sheet = "sample\tfasta\tpooling\tmodel\n".to_owned();
    for row in [
        ["bad", text(&bad), "", ""],
        ["good", text(&example("hepatitis_b.faa")), "max", ""],
        ["too", text(&example("phix174.faa")), "", ""],
        ["dna", text(&dna), "", text(exported("dnabert2"))],
    ] {
        sheet.extend([&row.join("\t"), "\n"]);
    }
    fs::write(scene.path("config/samples.tsv"), sheet).unwrap();
    // With the other two of its job, and the retries of the cluster's profile.
    let run = scene.flow(3, &["--retries", "2"]).output().unwrap();
    assert_eq!(run.status.code(), Some(1), "{}", said(&run));
    for told in ["1 file failed", "bad: ", "line 1", "allow_failed"] {
        assert!(said(&run).contains(told), "{told}: {}", said(&run));
    }
    assert_eq!(scene.calls(), 2, "a job with a bad file is not tried again");
    let made = |sample: &str| scene.path(&format!("results/embeddings/{sample}.parquet"));
    assert_vectors(
        &made("good"),
        &example("hepatitis_b.faa"),
        &["--pooling", "max"],
    );
    let (rows, _) = output::read(&made("dna")).unwrap();
    assert_eq!(rows.ids, ["contig"]);
    assert_vectors(&made("too"), &example("phix174.faa"), &[]);
    assert!(!made("bad").exists());
    let failed = fs::read_to_string(scene.path("results/failed.tsv")).unwrap();
    assert!(
        failed.lines().nth(1).unwrap().starts_with("bad\t"),
        "{failed}"
    );
    assert_eq!(failed.lines().count(), 2, "{failed}");
    let job = scene.job("good").unwrap();
    let log = scene.assert_log(&format!("logs/embed/{job}.log"), "bad.faa");
    assert!(log.contains(&format!("results/jobs/{job}")), "{log}");

    // Accepted: nothing is computed again.
    let run = scene
        .flow(3, &[])
        .arg("allow_failed=True")
        .output()
        .unwrap();
    assert_success(&run);
    assert!(said(&run).contains("1 file failed"), "{}", said(&run));
    assert_eq!(scene.calls(), 2);

    // Corrected: its job runs again, and takes the others from its cache.
    fs::write(&bad, ">r\nMKV\n").unwrap();
    assert_success(&scene.flow(3, &[]).output().unwrap());
    assert_eq!(scene.calls(), 3);
    assert_vectors(&made("bad"), &bad, &[]);
    let report = scene.path(&format!("results/reports/{job}.json"));
    let report = fs::read_to_string(report).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["totals"]["kept_files"], 2, "{report}");
    let samples = fs::read_to_string(scene.path("results/samples.tsv")).unwrap();
    assert_eq!(samples.lines().count(), 5, "{samples}");
    let cache = fs::read_dir(scene.path(".seqembed")).unwrap().count();
    assert_eq!(cache, 0, "what is done leaves nothing in the cache");
}

/// As a spreadsheet saves it, and with mistakes that only a job would find otherwise.
#[test]
fn mistakes_of_the_sheet_are_told_before_any_job() {
    let Some(engine) = engine() else { return };
    let scene = Scene::new(engine);
    let good = text(&example("phix174.faa")).to_owned();
    let plan = |sheet: &str| {
        fs::write(scene.path("config/samples.tsv"), sheet).unwrap();
        scene.flow(3, &["--dry-run"]).output().unwrap()
    };
    let sheet = format!(
        "\u{feff}\t\t\t\r\n\"sample\"\tfasta\tpooling\tmax-length\t\r\n\t\t\t\t\r\na\t{good}\tMAX\t10\t\r\n\r\nb\t{good}\r\n"
    );
    let run = plan(&sheet);
    assert_success(&run);
    assert!(said(&run).contains("Embedding 2 files"), "{}", said(&run));

    let run = plan(&sheet.replace("pooling", "poling"));
    assert_eq!(run.status.code(), Some(1));
    let told = "config/samples.tsv:2: unknown column `poling`: did you mean `pooling`?";
    assert!(said(&run).contains(told), "{}", said(&run));

    let run = plan(&format!(
        "{sheet}a\t{good}\tmeen\t0\r\n../c\t{{x}}.faa\t\t\r\nd\t\t\t\tx\r\n"
    ));
    assert_eq!(run.status.code(), Some(1));
    for told in [
        "samples.tsv:7: invalid value 'meen' for `pooling`: expected one of mean, mean-all, cls, max, sum, none",
        "samples.tsv:7: invalid value '0' for `max_length`: expected a whole number of at least 1",
        "samples.tsv:7: the sample name `a` is already used on line 4",
        "samples.tsv:8: invalid value '../c' for `sample`: it names the output file",
        "samples.tsv:8: invalid value '{x}.faa' for `fasta`: Snakemake reads braces",
        "samples.tsv:9: `x` is in column 5, which has no name",
        "samples.tsv:9: 'fasta' is a required property",
        "7 mistakes found; nothing was run",
    ] {
        assert!(said(&run).contains(told), "{told}: {}", said(&run));
    }
}

/// What `make lint` refuses to see committed, told by `scripts/leftovers.sh`.
#[test]
fn what_engines_leave_behind_is_refused() {
    let told = |names: &str| {
        let mut child = Command::new("sh")
            .arg(repository().join("scripts/leftovers.sh"))
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(names.as_bytes()).unwrap();
        drop(input);
        child.wait_with_output().unwrap()
    };
    let ours = "Makefile\n.gitignore\n.ci/run\nsnakemake/.snakemake-workflow-catalog.yml\nsnakemake/wrapper/wrapper.py\n\
                nextflow/nextflow.config\nbench/results/a.json\nsrc/cli/core.rs\nsrc/run/work.rs\ntests/python/logs.py\n";
    assert_success(&told(ours));
    for left in [
        "snakemake/.snakemake/log/x.log",
        ".nextflow/history",
        "nextflow/.nextflow.log",
        ".nextflow.log.1",
        "work/ab/cdef/.command.run",
        "nextflow/results/a.parquet",
        "bench/__pycache__/common.cpython-312.pyc",
        "a.pyc",
        "docs/.DS_Store",
        "src/main.rs.orig",
        "README.md~",
        "snakemake/.seqembed/0/x",
        ".venv-snakemake/bin/python",
    ] {
        let run = told(&format!("{ours}{left}\n"));
        assert_eq!(run.status.code(), Some(1), "{left}");
        assert!(said(&run).contains(left), "{}", said(&run));
    }
}

#[test]
fn the_wrapper_runs_as_its_repository_runs_it() {
    let Some(engine) = engine() else { return };
    let scene = Scene::new(engine);
    let test = scene.path("wrapper/test");
    let place = scene.path("prefix/master/bio");
    fs::create_dir_all(&place).unwrap();
    symlink(scene.path("wrapper"), place.join("seqembed")).unwrap();
    symlink(exported("esm2"), test.join("model")).unwrap();
    let prefix = format!("file:{}/", text(&scene.path("prefix")));
    let mut arguments = vec!["--cores", "2", "--directory", text(&test)];
    let snakefile = test.join("Snakefile");
    arguments.extend(["-s", text(&snakefile), "--wrapper-prefix", &prefix]);
    arguments.extend(["--workflow-profile", "none"]);
    arguments.extend(["embeddings/hepatitis_b.parquet", "embeddings/phix174.npz"]);
    assert_success(&scene.run("snakemake", &arguments));
    let log = scene.assert_log("wrapper/test/logs/seqembed.log", "embeddings/report.json");
    assert!(log.contains("output   embeddings"), "{log}");
    let proteins = |name: &str| test.join("proteins").join(name);
    let made = |name: &str| test.join("embeddings").join(name);
    assert!(made("report.json").exists());
    assert_vectors(
        &made("hepatitis_b.parquet"),
        &proteins("hepatitis_b.faa"),
        &[],
    );
    assert_vectors(
        &made("phix174.npz"),
        &proteins("phix174.faa"),
        &["--pooling", "max", "--max-length", "500"],
    );
}

#[test]
fn lint_format_and_profiles() {
    let Some(engine) = engine() else { return };
    let scene = Scene::new(engine);
    let snakefile = scene.path("wrapper/test/Snakefile");
    for arguments in [&["--lint"][..], &["--lint", "-s", text(&snakefile)]] {
        let lint = scene.run("snakemake", arguments);
        assert_success(&lint);
        assert!(
            said(&lint).contains("in a good condition"),
            "{}",
            said(&lint)
        );
    }
    assert_success(&scene.run("black", &["--check", "wrapper"]));
    let files = ["--check", "workflow", "wrapper/test/Snakefile"];
    assert_success(&scene.run("snakefmt", &files));

    // The cluster's profile: one job for both files, with what sbatch is told.
    scene.sheet(&[("a", &example("lassa.faa")), ("b", &example("measles.faa"))]);
    let plan = scene.run(
        "snakemake",
        &[
            "--workflow-profile",
            "slurm",
            "--dry-run",
            "--config",
            "gpus=1",
        ],
    );
    assert_success(&plan);
    for told in [
        "embed_esm2_t6_8M_UR50D_",
        "GPUs: 1)",
        "mem_mb=16000",
        "runtime=240",
    ] {
        assert!(said(&plan).contains(told), "{told}: {}", said(&plan));
    }
}

#[test]
fn scores_of_each_job_are_those_of_the_command() {
    let Some(engine) = engine() else { return };
    let scene = Scene::new(engine);
    let files = examples();
    let rows = files
        .each_ref()
        .map(|(sample, path)| (*sample, path.as_path()));
    scene.sheet(&rows);
    let model = scene.path("model");
    let checkpoint = fixtures().join("esm2/checkpoints/hub-safetensors");
    export(&checkpoint, &model, "esm2");
    let mut flow = scene.command("snakemake", &["--cores", "1", "--config"]);
    flow.args(["threads=1", "files_per_job=2", "model=model", "scores=True"]);
    flow.arg("score_extra=--format tsv --per-residue");
    assert_success(&flow.output().unwrap());
    let alone = tempfile::tempdir().unwrap();
    for (sample, fasta) in &files {
        let job = scene.job(sample).unwrap();
        let folder = scene.path(&format!("results/scores/{job}"));
        let mut arguments = vec!["score", text(fasta), "-m", text(&model)];
        arguments.extend(["-o", text(alone.path()), "--threads", "1", "--per-residue"]);
        arguments.extend(["--format", "tsv"]);
        assert_run(&seqembed(&arguments), DONE, &[]);
        let stem = fasta.file_stem().unwrap().to_str().unwrap();
        for table in ["", ".residues"] {
            let expected = alone.path().join(format!("{stem}{table}.tsv"));
            let made = folder.join(format!("{sample}{table}.tsv"));
            let [made, expected] = [made, expected].map(|path| fs::read_to_string(path).unwrap());
            assert_eq!(made, expected, "{sample}{table}");
        }
        assert!(!folder.join(".seqembed").exists());
        let report = scene.path(&format!("results/score_reports/{job}.json"));
        let report: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap();
        assert_eq!(report["totals"]["failed_files"], 0);
        assert_eq!(report["loads"].as_array().unwrap().len(), 1);
    }
}
