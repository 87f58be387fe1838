//! The Nextflow pipeline, run by the real engine on the local executor, and by way of pretended
//! SLURM and Docker commands.
//!
//! `scripts/nextflow.sh` gets the engine. If Java or Maven is not available, the tests are skipped
//! with a message.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::common::{self, DONE, assert_run, exported, seqembed, text};
use seqembed::output;
use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn nextflow() -> Command {
    Command::new(root().join("scripts/nextflow.sh"))
}

/// Whether the engine is there; fetched once for all tests.
fn is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        let run = nextflow().arg("-version").output().unwrap();
        if run.status.code() == Some(69) {
            // Not a macro: a passed test's macros print nothing.
            let mut stderr = std::io::stderr();
            writeln!(stderr, "SKIPPED: the tests of the Nextflow pipeline").unwrap();
            stderr.write_all(&run.stderr).unwrap();
            return false;
        }
        assert_run(&run, DONE, &[]);
        true
    })
}

/// A folder to run the pipeline in, with a `bin` that holds `seqembed` and goes before all else.
struct Pipeline {
    folder: TempDir,
}

impl Pipeline {
    fn new(samplesheet: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Self { folder };
        fs::create_dir(place.path("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_seqembed"), place.path("bin/seqembed")).unwrap();
        fs::write(place.path("samples.csv"), samplesheet).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a command of ours before the machine's.
    fn command(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        common::write_script(&path, &format!("#!/bin/bash\nset -u\n{script}"));
    }

    /// `nextflow run` of the pipeline.
    fn run(&self, parser: &str, arguments: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap();
        nextflow()
            .args(["run", text(&root().join("nextflow"))])
            .args(["--input", text(&self.path("samples.csv"))])
            .args(["--cpus", "1", "--memory", "1 GB"])
            .args(arguments)
            .env("PATH", format!("{}:{path}", text(&self.path("bin"))))
            .env("NXF_SYNTAX_PARSER", parser)
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    fn read(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// (process, status, exit code) of each attempt, in all traces so far.
    fn attempts(&self, process: &str) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        for entry in fs::read_dir(self.path("results/pipeline_info")).unwrap() {
            let path = entry.unwrap().path();
            if !text(&path).contains("trace_") {
                continue;
            }
            for line in fs::read_to_string(path).unwrap().lines().skip(1) {
                let cells: Vec<_> = line.split('\t').collect();
                if cells[3].starts_with(process) {
                    rows.push((cells[4].to_owned(), cells[5].to_owned()));
                }
            }
        }
        rows.sort();
        rows
    }

    /// The texts of one file of every task of a process.
    fn tasks(&self, name: &str) -> Vec<String> {
        let mut texts = Vec::new();
        for outer in fs::read_dir(self.path("work")).unwrap() {
            for task in fs::read_dir(outer.unwrap().path()).unwrap() {
                texts.extend(fs::read_to_string(task.unwrap().path().join(name)).ok());
            }
        }
        texts
    }
}

/// Asserts the exit code and what stands in both streams.
#[track_caller]
fn assert_said(run: &Output, code: i32, fragments: &[&str]) -> String {
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
    assert_eq!(run.status.code(), Some(code), "{said}");
    for fragment in fragments {
        assert!(said.contains(fragment), "`{fragment}` is not in:\n{said}");
    }
    said
}

fn example(name: &str) -> String {
    text(&root().join("examples").join(name)).to_owned()
}

#[test]
fn many_files_a_task_and_resume() {
    if !is_there() {
        return;
    }
    // A name with spaces, quotes and commas, one file twice, and an option of one file.
    let place = Pipeline::new(&format!(
        "sample,fasta,pooling\n\
         phiX174,{phix},\n\
         \"it's (b), ß\",{phix},cls\n\
         Lambda,{lambda},\n\
         Lassa,{lassa},\n\
         Measles,strange name's.faa,\n",
        phix = example("phix174.faa"),
        lambda = example("lambda.faa.gz"),
        lassa = example("lassa.faa"),
    ));
    fs::copy(example("measles.faa"), place.path("strange name's.faa")).unwrap();
    // A checkpoint, which is exported once for all tasks.
    let model = common::fixtures().join("esm2/checkpoints/hub-safetensors");
    // 3,125 bytes, the same, 2 x 9,963, 3,583, 5,648.
    let arguments = ["-profile", "local", "--group_tokens", "27000", "--model"];
    let arguments = [&arguments[..], &[text(&model)]].concat();
    // The strict parser, which Nextflow's next releases have alone; other tests run by the older
    // one.
    let run = place.run("v2", &arguments);
    assert_said(&run, DONE, &["5 files in 2 tasks", "SEQEMBED_EXPORT"]);

    let direct = tempfile::tempdir().unwrap();
    for (sample, file, pooling) in [
        ("phiX174", example("phix174.faa"), "mean"),
        ("it's (b), ß", example("phix174.faa"), "cls"),
        ("Lambda", example("lambda.faa.gz"), "mean"),
        ("Lassa", example("lassa.faa"), "mean"),
        ("Measles", example("measles.faa"), "mean"),
    ] {
        let out = direct.path().join(sample);
        let model = text(exported("esm2"));
        assert_run(
            &seqembed(&[
                "embed",
                &file,
                "-m",
                model,
                "--pooling",
                pooling,
                "-o",
                text(&out),
            ]),
            DONE,
            &[],
        );
        let stem = Path::new(&file).file_name().unwrap().to_str().unwrap();
        let stem = stem.split('.').next().unwrap();
        let (expected, _) = output::read(&out.join(format!("{stem}.parquet"))).unwrap();
        let published = place.path(&format!("results/embeddings/{sample}.parquet"));
        let (rows, _) = output::read(&published).unwrap();
        assert_eq!(rows.ids, expected.ids, "{sample}");
        common::assert_close(&rows.values, &expected.values, 1e-5, sample);
    }

    let report: serde_json::Value =
        serde_json::from_str(&place.read("results/report.json")).unwrap();
    assert_eq!(report["loads"].as_array().unwrap().len(), 2);
    assert_eq!(report["totals"]["files"], 5);
    assert_eq!(report["totals"]["records"], 11 + 11 + 73 + 4 + 8);
    assert_eq!(report["files"][2]["source"], example("lambda.faa.gz"));
    let samples = place.read("results/samples.tsv");
    let groups: Vec<_> = samples
        .lines()
        .skip(1)
        .map(|line| line.split('\t').nth(1).unwrap())
        .collect();
    let (first, second) = (groups[0], groups[3]);
    assert!(first != second && first.starts_with("group_"), "{groups:?}");
    assert_eq!(groups, [first, first, first, second, second]);
    let version = format!("seqembed: {}", env!("CARGO_PKG_VERSION"));
    assert!(
        place
            .read("results/pipeline_info/versions.yml")
            .contains(&version)
    );

    // A file more: the groups before it are found, the last one is embedded.
    let sheet = place.read("samples.csv") + &format!("HIV-1,{},\n", example("hiv_1.faa"));
    fs::write(place.path("samples.csv"), sheet).unwrap();
    let run = place.run("v2", &[&arguments[..], &["-resume"]].concat());
    let said = assert_said(
        &run,
        DONE,
        &[
            &format!("Cached process > SEQEMBED_RUN ({first})"),
            &format!("Submitted process > SEQEMBED_RUN ({second})"),
        ],
    );
    assert!(said.contains("Cached process > SEQEMBED_EXPORT"), "{said}");
    assert!(place.path("results/embeddings/HIV-1.parquet").exists());
}

#[test]
fn a_killed_task_is_tried_again() {
    if !is_there() {
        return;
    }
    let place = Pipeline::new(&format!(
        "sample,fasta\nHCoV,{}\nSARS,{}\n",
        example("hcov_229e.faa"),
        example("sars_cov_2.faa")
    ));
    let model = exported("esm2");
    // The first task is ended in the middle of its work, as a scheduler ends it. It would go on for
    // so long that it is in the middle, however late this comes.
    place.command(
        "seqembed",
        &format!(
            "real={}\n\
             if [ \"$1\" = run ] && mkdir '{}' 2>/dev/null; then\n\
               SEQEMBED_INJECT=slow=20000 \"$real\" \"$@\" & pid=$!\n\
               while ! ls */.seqembed/lock && kill -0 $pid; do sleep 0.1; done\n\
               sleep 0.4; kill -TERM $pid; wait $pid; code=$?\n\
               ls */ > '{}/outputs'\n\
               exit $code\n\
             fi\n\
             exec \"$real\" \"$@\"\n",
            env!("CARGO_BIN_EXE_seqembed"),
            text(&place.path("killed")),
            text(&place.path("killed")),
        ),
    );
    let mut arguments = vec!["-profile", "local", "--model", text(model)];
    arguments.extend(["--format", "npy"]);
    let help = seqembed(&["run", "--help"]);
    let resumes = String::from_utf8_lossy(&help.stdout).contains("--cache-dir");
    let cache = place.path("cache");
    if resumes {
        arguments.extend(["--cache_dir", text(&cache)]);
    }
    let run = place.run("v1", &arguments);
    assert_said(&run, DONE, &["Execution is retried (1)"]);
    let outputs = place.read("killed/outputs");
    assert!(!outputs.contains("SARS.npy"), "{outputs}");
    assert_eq!(
        place.attempts("SEQEMBED_RUN"),
        [
            ("COMPLETED".into(), "0".into()),
            ("FAILED".into(), "143".into())
        ]
    );
    for (sample, records) in [("HCoV", 8), ("SARS", 12)] {
        let path = place.path(&format!("results/embeddings/{sample}.npy"));
        assert_eq!(output::read(&path).unwrap().0.ids.len(), records);
        let beside = path.with_extension("provenance.json");
        assert!(beside.exists(), "{}", beside.display());
    }
    if resumes {
        assert!(
            fs::read_dir(&cache).unwrap().next().is_some(),
            "the cache is empty"
        );
    }
}

/// Only the group of a row that is taken out of the sheet is computed again, and its neighbour at
/// most.
#[test]
fn a_sheet_with_a_row_less_has_the_other_groups() {
    if !is_there() {
        return;
    }
    let file = example("phix174.faa");
    let sheet = |without: Option<usize>| {
        let rows = (0..200).filter(|at| Some(*at) != without);
        let rows = rows.map(|at| format!("s{at},{file}\n"));
        "sample,fasta\n".to_owned() + &rows.collect::<String>()
    };
    let place = Pipeline::new(&sheet(None));
    let arguments = ["-stub", "-profile", "local", "--group_files", "40"];
    let arguments = [&arguments[..], &["--model", text(exported("esm2"))]].concat();
    let said = assert_said(&place.run("v2", &arguments), DONE, &["200 files in "]);
    let tasks = said.matches("Submitted process > SEQEMBED_RUN (").count();
    // At most 40 files each, and at least 20.
    assert!((5..=10).contains(&tasks), "{tasks}");
    for without in [0, 25, 117] {
        fs::write(place.path("samples.csv"), sheet(Some(without))).unwrap();
        let run = place.run("v2", &[&arguments[..], &["-resume"]].concat());
        let said = assert_said(&run, DONE, &["199 files in "]);
        let again = said.matches("Submitted process > SEQEMBED_RUN (").count();
        let cached = said.matches("Cached process > SEQEMBED_RUN (").count();
        assert!(
            again <= 2 && cached >= tasks - 2,
            "{again}, {cached}: {said}"
        );
    }
}

/// Memory grows after a task ran out of it, time after it ran out of that, and neither after it was
/// preempted; both up to their limits.
#[test]
fn a_retry_gets_more_of_what_was_short() {
    if !is_there() {
        return;
    }
    let place = Pipeline::new(&format!("sample,fasta\nx,{}\n", example("phix174.faa")));
    let count = place.path("count");
    place.command(
        "seqembed",
        &format!(
            "real={}\n\
             [ \"$1\" = run ] || exec \"$real\" \"$@\"\n\
             echo x >> '{count}'\n\
             case $(wc -l < '{count}') in 1) exit 143;; 2) exit 137;; 3) exit 140;; 4) exit 137;; esac\n\
             exec \"$real\" \"$@\"\n",
            env!("CARGO_BIN_EXE_seqembed"),
            count = text(&count),
        ),
    );
    let arguments = ["-profile", "local", "--max_retries", "4", "--time", "1h"];
    let limits = ["--max_memory", "3 GB", "--max_time", "1.5h"];
    let model = ["--model", text(exported("esm2"))];
    let fields = place.path("trace.config");
    fs::write(
        &fields,
        "trace.fields = 'task_id,hash,native_id,name,status,exit,attempt,memory,time'\n",
    )
    .unwrap();
    let config = ["-c", text(&fields)];
    let run = place.run("v1", &[&arguments[..], &limits, &model, &config].concat());
    assert_said(&run, DONE, &["Execution is retried (4)"]);
    let folder = place.path("results/pipeline_info");
    let mut files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let trace = files.find(|path| text(path).contains("trace_")).unwrap();
    let mut attempts: Vec<(String, String, String)> = fs::read_to_string(trace)
        .unwrap()
        .lines()
        .skip(1)
        .map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>())
        .filter(|cells| cells[3].starts_with("SEQEMBED_RUN ("))
        .map(|cells| (cells[6].clone(), cells[7].clone(), cells[8].clone()))
        .collect();
    attempts.sort();
    let expected = [
        ("1", "1 GB", "1h"),
        ("2", "1 GB", "1h"),
        ("3", "2 GB", "1h"),
        ("4", "2 GB", "1h 30m"),
        ("5", "3 GB", "1h 30m"),
    ];
    let expected = expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()));
    assert_eq!(attempts, expected);
}

#[test]
fn bad_input_is_not_tried_again() {
    if !is_there() {
        return;
    }
    let place = Pipeline::new(&format!(
        "sample,fasta\ngood,{}\nbad,bad.faa\n",
        example("phix174.faa")
    ));
    fs::write(place.path("bad.faa"), "MKV without a header\n").unwrap();
    let model = exported("esm2");
    let arguments = ["-profile", "local", "--model", text(model)];
    let run = place.run("v1", &arguments);
    let said = assert_said(
        &run,
        1,
        &["1 file failed", "bad: ", "line 1", "--allow_failed"],
    );
    assert!(!said.contains("retried"), "{said}");
    assert!(place.path("results/embeddings/good.parquet").exists());
    assert!(place.read("results/failed.tsv").contains("bad\t"));

    let run = place.run(
        "v1",
        &[&arguments[..], &["--allow_failed", "-resume"]].concat(),
    );
    assert_said(
        &run,
        DONE,
        &["Cached process > SEQEMBED_RUN", "1 file failed"],
    );

    // An option that is wrong ends the task with 2.
    let run = place.run(
        "v1",
        &[
            &arguments[..],
            &["--args=--max-length 0", "--outdir", "other"],
        ]
        .concat(),
    );
    let said = assert_said(&run, 1, &["exit status (2)", "max-length"]);
    assert!(!said.contains("retried"), "{said}");
}

#[test]
fn mistakes_are_told_before_any_task() {
    if !is_there() {
        return;
    }
    // As a spreadsheet saves it: a byte order mark, empty rows and columns, CRLF, quotes.
    let place = Pipeline::new(
        "\u{feff},,\r\n\"sample\",fasta,pooling,,\r\n,,,,\r\na,nowhere.faa,,,\r\n\"\",,\r\na,samples.csv,meen,\r\n\
         ../b,samples.csv\r\n\"c\nd\",samples.csv\r\n\r\ne,a$b.faa\r\nf,a`b.faa,,x\r\ng,a*b.faa\r\n",
    );
    let run = place.run("v2", &["--group-files", "3", "--model", "m"]);
    assert_said(
        &run,
        1,
        &["--groupFiles: unknown parameter: did you mean --group_files?"],
    );
    let run = place.run("v2", &["--model", "m"]);
    assert_said(
        &run,
        1,
        &[
            "samples.csv:4: nowhere.faa: no such file",
            "samples.csv:6: invalid value `meen` for `pooling`: expected one of mean, mean-all, cls, max, sum, none",
            "samples.csv:6: the sample name `a` is already used on line 4",
            "samples.csv:7: invalid value `../b` for `sample`: it names the output file",
            "samples.csv:8: invalid value `c d` for `sample`: it names the output file",
            "samples.csv:11: a$b.faa: Nextflow cannot stage a path with a `$`",
            "samples.csv:12: a`b.faa: Nextflow cannot stage a path with a backtick",
            "samples.csv:12: `x` is in column 4, which has no name",
            "samples.csv:13: a*b.faa: Nextflow cannot stage a path with a `*` or `?`",
            "9 mistakes",
        ],
    );
    fs::write(
        place.path("samples.csv"),
        "sample,fasta,poling\na,samples.csv,cls\n",
    )
    .unwrap();
    let run = place.run("v1", &["--model", "m"]);
    assert_said(
        &run,
        1,
        &["samples.csv:1: unknown column `poling`: did you mean `pooling`?"],
    );
}

#[test]
fn slurm_docker_and_gpus() {
    if !is_there() {
        return;
    }
    let place = Pipeline::new(&format!(
        "sample,fasta\nit's (b),{}\nLassa,{}\n",
        example("phix174.faa"),
        example("lassa.faa")
    ));
    // What SLURM and Docker do with these, less the cluster and the container.
    place.command(
        "sbatch",
        "echo \"$@\" >> sbatch.txt\n(setsid bash \"${@: -1}\" >/dev/null 2>&1 &)\necho Submitted batch job $RANDOM\n",
    );
    place.command("squeue", "true\n");
    place.command("scancel", "true\n");
    place.command(
        "docker",
        "[ \"$1\" = run ] || exit 0\nwhile [[ \"$1\" != seqembed:* ]]; do shift; done\nshift\nexec \"$@\"\n",
    );
    fs::write(
        place.path("fast.config"),
        "executor { pollInterval = '200ms'; exitReadTimeout = '30s'; queueStatInterval = '1s' }\n",
    )
    .unwrap();
    let cache = place.path("cache");
    let run = place.run(
        "v1",
        &[
            "-c",
            text(&place.path("fast.config")),
            "-stub",
            "-profile",
            "slurm,docker,gpu",
            "--model",
            text(exported("esm2")),
            "--group_files",
            "1",
            "--gpus",
            "2",
            "--gpu_type",
            "a100",
            "--queue",
            "long",
            "--cluster_options=--account=lab",
            "--cache_dir",
            text(&cache),
        ],
    );
    assert_said(&run, DONE, &["2 files in 2 tasks"]);
    assert!(place.path("results/embeddings/it's (b).parquet").exists());
    assert!(place.path("results/embeddings/Lassa.parquet").exists());
    assert!(
        place
            .read("results/samples.tsv")
            .contains("it's (b)\tgroup_")
    );
    assert!(cache.is_dir(), "a container mounts it");
    let cache = format!("-v {0}:{0}", text(&cache));
    let wrappers = place.tasks(".command.run");
    assert_eq!(wrappers.len(), 2);
    for wrapper in &wrappers {
        for asked in [
            "#SBATCH -p long",
            "--gres=gpu:a100:2",
            "--account=lab",
            "#SBATCH --mem 1024M",
            "--gpus all",
            "seqembed:0.1.0-gpu",
            &cache,
        ] {
            assert!(wrapper.contains(asked), "`{asked}` is not in:\n{wrapper}");
        }
    }
}

#[test]
fn clusters_get_what_is_asked() {
    if !is_there() {
        return;
    }
    for (profile, lines) in [
        (
            "kubernetes,gpu",
            &[
                "executor = 'k8s'",
                "request:1",
                "container = 'seqembed:0.1.0-gpu'",
            ][..],
        ),
        (
            "awsbatch,gpu",
            &["executor = 'awsbatch'", "request:1", "maxSpotAttempts = 5"][..],
        ),
        (
            "local,conda",
            &[
                "executor = 'local'",
                "conf/environment.yml'",
                "conda {",
                "container = 'seqembed:0.1.0'",
            ][..],
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let run = nextflow()
            .args([
                "config",
                text(&root().join("nextflow")),
                "-profile",
                profile,
            ])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert_said(&run, DONE, lines);
    }
}

#[test]
fn the_module_of_scores_has_sequences_and_variants() {
    if !is_there() {
        return;
    }
    let place = Pipeline::new("");
    let model = place.path("model");
    let checkpoint = common::fixtures().join("esm2/checkpoints/hub-safetensors");
    common::export(&checkpoint, &model, "esm2");
    let proteins = common::fixtures().join("scores/proteins.faa");
    fs::write(place.path("variants.tsv"), "id\tvariant\na\tM1K\n").unwrap();
    let script = format!(
        "include {{ SEQEMBED_SCORE }} from '{module}'\n\
         include {{ SEQEMBED_SCORE as VARIANTS }} from '{module}'\n\
         workflow {{\n\
         def model = [[id: 'esm2'], file('{model}')]\n\
         def names = [[sample: \"it's (a)\", max_length: 20], [sample: 'b']]\n\
         SEQEMBED_SCORE([[id: 'all'], names, [file('{fasta}'), file('{fasta}')], []], model, 'tsv')\n\
         VARIANTS([[id: 'some'], [], file('{fasta}'), file('variants.tsv')], model, 'csv')\n\
         }}\n",
        module = text(&root().join("nextflow/modules/seqembed/score/main")),
        model = text(&model),
        fasta = text(&proteins),
    );
    fs::write(place.path("main.nf"), script).unwrap();
    let config = "process {\n  publishDir = [path: 'out', mode: 'copy']\n  \
                  withName: SEQEMBED_SCORE { ext.args = '--method masked --scan' }\n  \
                  withName: VARIANTS { ext.args = '--method wt-marginals' }\n}\n";
    fs::write(place.path("nextflow.config"), config).unwrap();
    let run = |more: &[&str]| {
        let path = std::env::var("PATH").unwrap();
        let mut run = nextflow();
        run.args(["run", "main.nf"]).args(more);
        run.env("PATH", format!("{}:{path}", text(&place.path("bin"))));
        run.current_dir(place.folder.path()).output().unwrap()
    };
    assert_said(&run(&["-stub"]), DONE, &[]);
    assert!(place.path("out/some/proteins.variants.csv").exists());
    fs::remove_dir_all(place.path("out")).unwrap();
    assert_said(&run(&[]), DONE, &[]);
    // The module's tables are those of the command.
    let direct = place.path("direct");
    for (options, name) in [(vec![], "b"), (vec!["--max-length", "20"], "it's (a)")] {
        let mut arguments = vec!["score", text(&proteins), "-m", text(&model)];
        arguments.extend(["-o", text(&direct), "--format", "tsv"]);
        arguments.extend(["--method", "masked", "--scan", "--threads", "1"]);
        arguments.extend(options);
        assert_run(&seqembed(&arguments), DONE, &[]);
        for table in ["", ".scan"] {
            let expected = fs::read_to_string(direct.join(format!("proteins{table}.tsv"))).unwrap();
            assert_eq!(
                place.read(&format!("out/all/{name}{table}.tsv")),
                expected,
                "{name}"
            );
        }
    }
    let scores = place.read("out/some/proteins.variants.csv");
    assert!(scores.starts_with("id,variant,score\na,M1K,"), "{scores}");
    let report: serde_json::Value =
        serde_json::from_str(&place.read("out/all.report.json")).unwrap();
    assert_eq!(report["loads"].as_array().unwrap().len(), 1);
}
