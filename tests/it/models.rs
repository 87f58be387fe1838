//! What can be named as a MODEL, and the cache of exported models: exported once, found again, and
//! never a stale one.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::prelude::*;

use crate::common::interrupted::wait_for;
use crate::common::retry_if_late;

/// Small checkpoints with random weights, all of one model.
const CHECKPOINTS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/esm2/checkpoints"
);
const COMMIT: &str = "c731040fcd8d73dceaa04b0a8e6329b345b0f5df";

/// A home of its own, with a copy of a checkpoint.
struct Scene {
    home: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        std::fs::write(home.path().join("a.faa"), ">one\nMKTAYIAKQR\n").expect("a file");
        Self { home }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.home.path().join(below)
    }

    fn copy(&self, checkpoint: &str, to: &str) -> PathBuf {
        let (from, to) = (Path::new(CHECKPOINTS).join(checkpoint), self.path(to));
        if from.is_file() {
            std::fs::copy(from, &to).expect("a copy");
            return to;
        }
        std::fs::create_dir_all(&to).expect("a folder");
        for entry in std::fs::read_dir(from).expect("a checkpoint").flatten() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
        to
    }

    /// A snapshot of `facebook/esm2_t6_8M_UR50D` in the hub's cache.
    fn snapshot(&self) -> PathBuf {
        let storage = "hf/hub/models--facebook--esm2_t6_8M_UR50D";
        let folder = self.copy("hub-safetensors", &format!("{storage}/snapshots/{COMMIT}"));
        std::fs::create_dir_all(self.path(storage).join("refs")).expect("a folder");
        std::fs::write(self.path(storage).join("refs/main"), COMMIT).expect("a reference");
        folder
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seqembed"));
        command
            .env("HF_HOME", self.path("hf"))
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_HUB_OFFLINE");
        command
            .env("HF_ENDPOINT", "http://127.0.0.1:1")
            .env("SEQEMBED_CACHE", self.path("cache"));
        command.current_dir(self.home.path());
        command
    }

    fn embed(&self, model: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.command();
        let out = tempfile::tempdir_in(self.home.path())
            .expect("a folder")
            .keep();
        command
            .args(["embed", "a.faa", "-o"])
            .arg(out.join("out"))
            .arg("-m")
            .arg(model);
        command
    }

    /// The names of the exports in the cache.
    fn exports(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("cache/models"))
            .into_iter()
            .flatten()
            .flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn exports() -> impl Predicate<str> {
    predicate::str::contains("exporting")
}

#[test]
fn a_checkpoint_is_exported_once() {
    let scene = Scene::new();
    let folder = scene.copy("hub-safetensors", "tiny");
    scene.embed(&folder).assert().success().stderr(exports());
    let first = scene.exports();
    assert!(
        first.len() == 1 && first[0].starts_with("tiny-"),
        "{first:?}"
    );
    // By another way to it as well.
    for name in ["tiny", "./tiny", "tiny/../tiny"] {
        scene.embed(name).assert().success().stderr(exports().not());
    }
    assert_eq!(scene.exports(), first);
    // An export is a model itself, by its folder or its seqembed.json.
    let export = scene.path("cache/models").join(&first[0]);
    scene
        .embed(&export)
        .assert()
        .success()
        .stderr(exports().not());
    scene
        .embed(export.join("seqembed.json"))
        .assert()
        .success()
        .stderr(exports().not());
}

#[test]
fn the_licence_of_a_known_model_is_listed_and_recorded() {
    let scene = Scene::new();
    let listed = scene.command().arg("models").output().expect("it runs");
    let listed = String::from_utf8(listed.stdout).expect("text");
    let title = listed.lines().next().unwrap_or_default();
    for column in ["FAMILY", "LETTERS", "LICENCE"] {
        assert!(title.contains(column), "{title}");
    }
    let words = |name: &str| {
        let line = listed.lines().find(|line| line.starts_with(name));
        line.unwrap_or_default().replace("  ", "")
    };
    for word in ["ESM-2", "amino acids", "MIT"] {
        assert!(words("esm2_t6_8M_UR50D ").contains(word), "{listed}");
    }
    assert!(words("DNABERT-2 ").contains("Apache-2.0"), "{listed}");

    scene.copy("hub-safetensors", "tiny");
    for (model, licence) in [
        ("esm2_t6_8M_UR50D", Some("MIT")),
        ("mine", None),
        // That of another family's model.
        ("ESMC-300M", None),
    ] {
        let mut export = scene.command();
        export.args(["export", "tiny", "--name", model, "-o", model]);
        export.assert().success();
        let out = scene.path(&format!("out_{model}"));
        let run = [model, "--format", "npy", "-o"];
        let mut command = scene.command();
        command.args(["embed", "a.faa", "-m"]).args(run).arg(&out);
        command.assert().success();
        let json = |file: &str| -> serde_json::Value {
            let text = std::fs::read(out.join(file)).expect("a file");
            serde_json::from_slice(&text).expect("JSON")
        };
        let recorded = json("a.provenance.json")["licence"].clone();
        assert_eq!(recorded.as_str(), licence, "{model}");
        let reported = json("report.json")["loads"][0]["licence"].clone();
        assert_eq!(reported.as_str(), licence, "{model}");
    }
}

/// Once, by whichever command exports the model, and never of models that may be used freely.
#[test]
fn an_export_says_that_commercial_use_is_not_allowed() {
    let scene = Scene::new();
    let fixtures = Path::new(CHECKPOINTS).join("../../nt/checkpoints/v2-safetensors");
    let note = predicate::str::contains("CC-BY-NC-SA-4.0, does not allow commercial use");
    let mut export = scene.command();
    export.arg("export").arg(&fixtures);
    let named = export.args(["--name", "NT-v2-50M", "-o", "named"]).assert();
    named.success().stderr(note.clone().count(1));

    let id = "InstaDeepAI/nucleotide-transformer-v2-50m-multi-species";
    let storage = scene.path(&format!("hf/hub/models--{}", id.replace('/', "--")));
    let snapshot = storage.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).expect("a folder");
    std::fs::create_dir_all(storage.join("refs")).expect("a folder");
    std::fs::write(storage.join("refs/main"), COMMIT).expect("a reference");
    for entry in std::fs::read_dir(&fixtures)
        .expect("a checkpoint")
        .flatten()
    {
        std::fs::copy(entry.path(), snapshot.join(entry.file_name())).expect("a copy");
    }
    std::fs::write(scene.path("a.faa"), ">one\nACGTACGATTGACA\n").expect("a file");
    let first = scene.embed("NT-v2-50M").assert().success();
    first.stderr(note.clone().count(1));
    let second = scene.embed("NT-v2-50M").assert().success();
    second.stderr(note.clone().not());
    scene.snapshot();
    let free = scene.embed("esm2_t6_8M_UR50D").assert().success();
    free.stderr(exports().and(note.not()));
}

#[test]
fn a_misspelt_name_is_recognised() {
    let scene = Scene::new();
    for (spelt, meant) in [
        ("esm2_650M", "esm2_t33_650M_UR50D"),
        ("esm2_t33_650M", "esm2_t33_650M_UR50D"),
        ("esm2_t6_8M_UR50S", "esm2_t6_8M_UR50D"),
        ("esmc_600m", "ESMC-600M"),
        ("dnabert2", "DNABERT-2"),
        ("DNABERTS", "DNABERT-S"),
    ] {
        let meant = predicate::str::contains(format!("(did you mean `{meant}`?)"));
        let named = scene.embed(spelt).assert().code(2);
        named.stderr(meant.clone());
        let mut random = scene.command();
        random.args(["export", "--random", spelt, "-o", "random"]);
        random.assert().code(2).stderr(meant);
    }
    for other in ["bert", "word2vec", "model"] {
        let said = scene.embed(other).assert().code(2);
        said.stderr(predicate::str::contains("did you mean").not());
    }
}

#[test]
fn a_fair_esm_file_is_a_model() {
    let scene = Scene::new();
    let file = scene.copy("esm2_small.pt", "small.pt");
    scene.embed(&file).assert().success().stderr(exports());
    scene
        .embed(&file)
        .assert()
        .success()
        .stderr(exports().not());
}

#[test]
fn a_checkpoint_that_changed_is_exported_again() {
    let scene = Scene::new();
    let folder = scene.copy("hub-safetensors", "tiny");
    scene.embed(&folder).assert().success();
    let weights = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    let header = 8 + usize::from(bytes[0]) + (usize::from(bytes[1]) << 8);
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..header]).expect("a header");
    let at = &tensors["esm.embeddings.word_embeddings.weight"]["data_offsets"][0];
    bytes[header + usize::try_from(at.as_u64().expect("an offset")).expect("small")] ^= 1;
    std::fs::write(&weights, bytes).expect("weights");
    scene.embed(&folder).assert().success().stderr(exports());
    assert_eq!(scene.exports().len(), 2);
}

#[test]
fn a_deleted_or_damaged_cache_is_made_again() {
    let scene = Scene::new();
    let folder = scene.copy("hub-safetensors", "tiny");
    scene.embed(&folder).assert().success();
    std::fs::remove_dir_all(scene.path("cache/models")).expect("a cache");
    scene.embed(&folder).assert().success().stderr(exports());
    for entry in std::fs::read_dir(scene.path("cache/index"))
        .expect("an index")
        .flatten()
    {
        std::fs::write(entry.path(), "{").expect("an entry");
    }
    scene.embed(&folder).assert().success().stderr(exports());
    assert_eq!(scene.exports().len(), 1);
}

#[test]
fn processes_at_the_same_time_export_once() {
    let scene = Scene::new();
    let folder = scene.copy("hub-safetensors", "tiny");
    let said: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| scene.embed(&folder).assert().success()))
            .collect();
        let done = runs.into_iter().map(|run| run.join().expect("a run"));
        done.map(|done| String::from_utf8_lossy(&done.get_output().stderr).into_owned())
            .collect()
    });
    assert_eq!(
        said.iter()
            .filter(|text| text.contains("exporting"))
            .count(),
        1,
        "{said:?}"
    );
    assert_eq!(scene.exports().len(), 1);
}

#[test]
fn a_name_is_found_in_the_hubs_cache_and_later_in_ours() {
    let scene = Scene::new();
    let wanted = predicate::str::contains("seqembed fetch esm2_t6_8M_UR50D");
    scene
        .embed("esm2_t6_8M_UR50D")
        .assert()
        .code(2)
        .stderr(wanted);
    scene.snapshot();
    scene
        .embed("esm2_t6_8M_UR50D")
        .assert()
        .success()
        .stderr(exports());
    let export = scene.exports();
    assert!(
        export.len() == 1 && export[0].starts_with("esm2_t6_8M_UR50D-"),
        "{export:?}"
    );
    for name in [
        "esm2_t6_8m_ur50d".to_owned(),
        format!("facebook/esm2_t6_8M_UR50D@{COMMIT}"),
    ] {
        scene.embed(name).assert().success().stderr(exports().not());
    }
    // The download is not needed any more.
    std::fs::remove_dir_all(scene.path("hf")).expect("a cache");
    scene
        .embed("facebook/esm2_t6_8M_UR50D")
        .assert()
        .success()
        .stderr(exports().not());
}

#[test]
fn fetch_exports_what_is_there() {
    let scene = Scene::new();
    scene.snapshot();
    let run = || {
        let done = scene
            .command()
            .args(["fetch", "esm2_t6_8M_UR50D"])
            .assert()
            .success();
        String::from_utf8_lossy(&done.get_output().stdout)
            .trim()
            .to_owned()
    };
    let folder = run();
    assert!(
        Path::new(&folder).join("seqembed.json").is_file(),
        "{folder}"
    );
    assert_eq!(run(), folder);
}

#[test]
fn sixteen_bit_weights_are_written_when_asked_for() {
    let scene = Scene::new();
    let checkpoint = scene.copy("hub-safetensors", "checkpoint");
    let export = |options: &[&str]| {
        let mut command = scene.command();
        command.arg("export").arg(&checkpoint).args(options);
        command
    };
    for (precision, files) in [
        ("fp32", [false, false]),
        ("fp16", [true, false]),
        ("bf16", [false, true]),
    ] {
        export(&["-o", precision, "--precision", precision])
            .assert()
            .success();
        let found = ["fp16", "bf16"].map(|kind| {
            let file = format!("{precision}/weights.{kind}.bin");
            scene.path(&file).is_file()
        });
        assert_eq!(found, files, "{precision}");
    }
    let half = std::fs::metadata(scene.path("fp16/weights.fp16.bin")).expect("a file");
    let full = std::fs::metadata(scene.path("fp16/weights.bin")).expect("a file");
    assert!(half.len() < full.len());
    export(&["-o", "x", "--precision", "fp4"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("fp32, fp16, bf16, fp8"));
    export(&["-o", "x", "--precision", "fp8"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains(
            "fp8 is not available for the fused graph of this model",
        ));
    assert!(!scene.path("x").exists());

    scene.snapshot();
    let model = "facebook/esm2_t6_8M_UR50D";
    let fetched = scene
        .command()
        .args(["fetch", model, "--precision", "fp16"])
        .assert()
        .success();
    let folder = String::from_utf8_lossy(&fetched.get_output().stdout).into_owned();
    let file = Path::new(folder.trim()).join("weights.fp16.bin");
    assert!(file.is_file(), "{}", file.display());
}

#[test]
fn what_is_no_model_is_refused_with_a_reason() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("empty")).expect("a folder");
    scene
        .embed("empty")
        .assert()
        .code(2)
        .stderr(predicate::str::contains("config.json"));
    scene
        .embed("a.faa")
        .assert()
        .code(2)
        .stderr(predicate::str::contains("a.faa"));
    scene
        .embed("esm9")
        .assert()
        .code(2)
        .stderr(predicate::str::contains("seqembed models"));
    assert_eq!(scene.exports(), Vec::<String>::new());
}

/// Whether a command failed on its input, and said these words; nothing was exported.
fn refused(scene: &Scene, model: &str, words: &[&str]) {
    for assert in [
        scene.embed(model).assert(),
        scene
            .command()
            .args(["export", model, "-o", "exported"])
            .assert(),
    ] {
        let mut assert = assert.code(2);
        for word in words {
            assert = assert.stderr(predicate::str::contains(*word));
        }
    }
    assert_eq!(scene.exports(), Vec::<String>::new());
    assert!(!scene.path("exported").exists());
}

#[test]
fn an_adapter_says_how_to_merge_it() {
    let words = ["adapter_config.json", "merge_and_unload()"];
    let scene = Scene::new();
    let beside = scene.copy("hub-safetensors", "beside");
    std::fs::create_dir(scene.path("bare")).expect("a folder");
    for folder in [beside, scene.path("bare")] {
        std::fs::write(folder.join("adapter_config.json"), "{}").expect("a file");
    }
    refused(&scene, "beside", &words);
    refused(&scene, "bare", &words);
}

#[test]
fn a_tensor_that_the_graph_has_no_place_for_is_named() {
    let scene = Scene::new();
    let path = scene
        .copy("hub-safetensors", "tuned")
        .join("model.safetensors");
    let bytes = std::fs::read(&path).expect("weights");
    let length =
        usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("eight"))).expect("small");
    let mut header: serde_json::Value =
        serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let end = bytes.len() - 8 - length;
    let name = "esm.encoder.layer.0.attention.self.query.lora_A.default.weight";
    header[name] =
        serde_json::json!({"dtype": "F32", "shape": [1, 1], "data_offsets": [end, end + 4]});
    let header = header.to_string();
    let mut tuned = (header.len() as u64).to_le_bytes().to_vec();
    tuned.extend(header.as_bytes());
    tuned.extend(&bytes[8 + length..]);
    tuned.extend([0; 4]);
    std::fs::write(&path, tuned).expect("weights");
    refused(
        &scene,
        "tuned",
        &[name, "does not use 1", "merge_and_unload()"],
    );
}

#[test]
fn a_git_lfs_pointer_is_told() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    for file in ["model.safetensors", "vocab.txt"] {
        let scene = Scene::new();
        let folder = scene.copy("hub-safetensors", "tiny");
        std::fs::write(folder.join(file), pointer).expect("a file");
        refused(&scene, "tiny", &[file, "git lfs pull"]);
    }
}

/// The number of tokens is right, so that the weights alone would not show it.
#[test]
fn a_vocabulary_that_no_tokenizer_fits_is_told_before_the_export() {
    let scene = Scene::new();
    for (checkpoint, from, to, word) in [
        (
            "../../dna/dnabert-3-plain",
            "AAA\n",
            "##ing\n",
            "word pieces are not supported",
        ),
        (
            "../../dna/dnabert-3-plain",
            "[CLS]\n",
            "<s>\n",
            "lacks [CLS]",
        ),
        ("hub-safetensors", "<cls>\n", "[CLS]\n", "lacks <cls>"),
        (
            "../../dna/dnabert-s",
            "\"continuing_subword_prefix\":null",
            "\"continuing_subword_prefix\":\"#########\"",
            "continuing_subword_prefix",
        ),
        (
            "../../dna/dnabert-s",
            "\"post_processor\":",
            "\"post_processor\": null, \"other\":",
            "post_processor",
        ),
        (
            "../../dna/dnabert-s",
            "\"[MASK]\"",
            "\"ACG\"",
            "added_tokens",
        ),
        ("hub-safetensors", "<null_1>\n", "GP\n", "`GP` (id 31)"),
    ] {
        let folder = scene.copy(checkpoint, "other");
        let file = if checkpoint.ends_with("-s") {
            "tokenizer.json"
        } else {
            "vocab.txt"
        };
        let text = std::fs::read_to_string(folder.join(file)).expect("a vocabulary");
        let text = text.replace(
            "\"continuing_subword_prefix\": null",
            "\"continuing_subword_prefix\":null",
        );
        assert!(text.contains(from), "{from}");
        std::fs::write(folder.join(file), text.replacen(from, to, 1)).expect("a vocabulary");
        refused(&scene, "other", &[file, word]);
        std::fs::remove_dir_all(folder).expect("a folder");
    }
}

#[test]
fn a_cache_that_cannot_be_written_says_what_to_do() {
    let scene = Scene::new();
    let folder = scene.copy("hub-safetensors", "tiny");
    let mut embed = scene.embed(&folder);
    embed.env("SEQEMBED_CACHE", scene.path("a.faa/cache"));
    embed
        .assert()
        .failure()
        .stderr(predicate::str::contains("SEQEMBED_CACHE"));
}

/// Every regular file below a folder, with its permissions.
#[cfg(unix)]
fn modes(folder: &Path, found: &mut Vec<(PathBuf, u32)>) {
    use std::os::unix::fs::PermissionsExt as _;
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let about = std::fs::symlink_metadata(entry.path()).expect("an entry");
        if about.is_dir() {
            modes(&entry.path(), found);
        }
        if !about.is_symlink() {
            found.push((entry.path(), about.permissions().mode() & 0o777));
        }
    }
}

#[cfg(unix)]
#[test]
fn the_umask_decides_who_may_read_what_is_made() {
    for (umask, file, folder) in [("022", 0o644, 0o755), ("002", 0o664, 0o775)] {
        let scene = Scene::new();
        scene.copy("hub-safetensors", "tiny");
        let run = |arguments: &[&str]| {
            let mut shell = Command::new("sh");
            shell
                .args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")])
                .arg(env!("CARGO_BIN_EXE_seqembed"))
                .env("SEQEMBED_CACHE", scene.path("cache"))
                .current_dir(scene.home.path())
                .args(arguments)
                .assert()
                .success();
        };
        for format in ["parquet", "npz", "npy", "h5", "safetensors", "pt"] {
            let out = format!("made/{format}");
            let embed = ["embed", "a.faa", "-m", "tiny", "-o", out.as_str()];
            let options = ["--format", format, "--cache-dir", "made/results"];
            run(&[&embed[..], &options].concat());
        }
        run(&["report", "made/parquet", "-o", "made/report.html"]);
        run(&["convert", "made/parquet/a.parquet", "-o", "made/b.npy"]);
        run(&["export", "tiny", "-o", "made/model", "--precision", "fp16"]);
        let mut found = Vec::new();
        modes(&scene.path("made"), &mut found);
        modes(&scene.path("cache"), &mut found);
        assert!(found.len() > 30, "{found:?}");
        found.retain(|(path, mode)| *mode != if path.is_dir() { folder } else { file });
        assert!(found.is_empty(), "umask {umask}: {found:?}");
    }
}

/// The rows of a run, and what it said.
fn rows(command: &mut Command) -> (Vec<f32>, String) {
    let done = command.assert().success();
    let arguments: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    let at = arguments.iter().position(|argument| argument == "-o");
    let out = Path::new(&arguments[at.expect("an output") + 1]);
    let (rows, _) = seqembed::output::read(&out.join("a.parquet")).expect("an output");
    let said = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    (rows.values, said)
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("a file");
    bytes[at] ^= 0x40;
    std::fs::write(path, bytes).expect("a file");
}

#[test]
fn damaged_weights_of_the_users_are_an_error() {
    let scene = Scene::new();
    let checkpoint = scene.copy("hub-safetensors", "tiny");
    let export = |to: &str| {
        let mut command = scene.command();
        command.arg("export").arg(&checkpoint).args(["-o", to]);
        command.assert().success();
    };
    export("model");
    let (good, _) = rows(&mut scene.embed("model"));
    let weights = scene.path("model/weights.bin");
    let expected = blake3::hash(&std::fs::read(&weights).expect("weights")).to_hex();
    // Some byte of an embedding, where only some sequences would tell.
    flip(&weights, 4099);
    let found = blake3::hash(&std::fs::read(&weights).expect("weights")).to_hex();
    let wanted = predicate::str::contains("model/weights.bin")
        .and(predicate::str::contains(expected.as_str()))
        .and(predicate::str::contains(found.as_str()))
        .and(predicate::str::contains("export the model again"));
    scene.embed("model").assert().code(2).stderr(wanted);
    flip(&weights, 4099);
    assert_eq!(rows(&mut scene.embed("model")).0, good);
    // Another model's file of the same size.
    let other = std::fs::read(&weights).expect("weights").into_iter().rev();
    std::fs::write(&weights, other.collect::<Vec<u8>>()).expect("weights");
    let wanted = predicate::str::contains("belongs to another model");
    scene.embed("model").assert().code(2).stderr(wanted);
}

#[test]
fn a_damaged_export_in_the_cache_is_made_again() {
    let scene = Scene::new();
    let folder = scene.copy("hub-safetensors", "tiny");
    let (good, _) = rows(&mut scene.embed(&folder));
    let export = scene.path("cache/models").join(&scene.exports()[0]);
    let weights = export.join("weights.bin");
    let length = std::fs::metadata(&weights).expect("weights").len();
    let cut = |to| {
        let file = std::fs::File::options().write(true).open(&weights);
        file.and_then(|file| file.set_len(to)).expect("a cut");
    };
    let damages: [(&str, &dyn Fn()); 4] = [
        ("weights.bin", &|| flip(&weights, 5000)),
        ("weights.bin", &|| cut(length / 2)),
        ("vocab.txt", &|| flip(&export.join("vocab.txt"), 40)),
        ("seqembed.json", &|| flip(&export.join("seqembed.json"), 40)),
    ];
    for (name, damage) in damages {
        damage();
        let (again, said) = rows(&mut scene.embed(&folder));
        assert!(said.contains(name) && said.contains("exporting"), "{said}");
        assert_eq!(again, good, "{name}");
        assert_eq!(scene.exports().len(), 1);
    }
    // Without the checkpoint there is nothing to make it from: nothing is removed.
    std::fs::remove_dir_all(&folder).expect("a checkpoint");
    flip(&weights, 5000);
    let wanted = predicate::str::contains("weights.bin");
    scene.embed(&export).assert().code(2).stderr(wanted);
    assert!(weights.is_file());
}

/// Starts a run that takes some seconds, and does something to the weights once its first file is
/// there.
#[cfg(unix)]
fn changed_on_the_way(change: impl Fn(&Path)) {
    let scene = Scene::new();
    let checkpoint = scene.copy("hub-safetensors", "tiny");
    let export = ["export", "tiny", "-o", "model"];
    scene.command().args(export).assert().success();
    assert!(checkpoint.is_dir());
    // More than two chunks, of which the first has all of the first file.
    let letters = b"ACDEFGHIKLMNPQRSTVWY";
    let mut state = 7_u32;
    let mut text = String::new();
    for record in 0..300 {
        let _ = writeln!(text, ">r{record}");
        for _ in 0..300 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            text.push(char::from(letters[(state >> 16) as usize % letters.len()]));
        }
        text.push('\n');
    }
    std::fs::write(scene.path("b.faa"), text).expect("a file");
    let arguments = [
        "embed",
        "a.faa",
        "b.faa",
        "-m",
        "model",
        "--threads",
        "1",
        "-o",
    ];
    let weights = scene.path("model/weights.bin");
    let whole = std::fs::read(&weights).expect("weights");
    scene
        .command()
        .args(arguments)
        .arg("clean")
        .assert()
        .success();
    let run = retry_if_late(|before| {
        let _ = std::fs::remove_dir_all(scene.path("out"));
        std::fs::write(&weights, &whole).expect("weights");
        let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_seqembed"))
            .args(arguments)
            .args(["out", "--save-every", "0.05"])
            .env("SEQEMBED_INJECT", format!("slow={}", 20 + 100 * before))
            .current_dir(scene.home.path())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("a run");
        wait_for("the first file", || {
            scene.path("out/a.parquet").exists() || run.try_wait().expect("it runs").is_some()
        });
        change(&weights);
        let is_late = scene.path("out/b.parquet").exists();
        let run = run.wait_with_output().expect("a run");
        (!is_late).then_some(run)
    });
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(said.contains("model/weights.bin"), "{said}");
    assert!(
        said.contains("--resume") && !said.contains("panicked"),
        "{said}"
    );
    assert!(!scene.path("out/b.parquet").exists());
    std::fs::write(&weights, whole).expect("weights");
    let again = ["out", "--resume"];
    scene
        .command()
        .args(arguments)
        .args(again)
        .assert()
        .success();
    for name in ["a.parquet", "b.parquet"] {
        let read = |out: &str| std::fs::read(scene.path(out).join(name)).expect("an output");
        assert!(read("out") == read("clean"), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn weights_that_change_during_a_run_are_noticed() {
    changed_on_the_way(|weights| {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::options().write(true).open(weights);
        let file = file.expect("weights");
        let length = file.metadata().expect("weights").len();
        file.write_all_at(&[7; 4096], length / 2).expect("a change");
    });
}

#[cfg(unix)]
#[test]
fn weights_that_are_cut_during_a_run_end_it_with_a_message() {
    changed_on_the_way(|weights| {
        let file = std::fs::File::options().write(true).open(weights);
        file.and_then(|file| file.set_len(0)).expect("a cut");
    });
}

/// As git-annex, DVC, Nix and the hub's cache lay files out.
#[cfg(unix)]
#[test]
fn an_export_of_links_is_a_model() {
    let scene = Scene::new();
    scene.copy("hub-safetensors", "tiny");
    let export = ["export", "tiny", "-o", "model"];
    scene.command().args(export).assert().success();
    let read = |out: &Path| std::fs::read(out.join("a.parquet")).expect("an output");
    let embed = |out: &str, kernels: &str| {
        let command = [
            "embed",
            "a.faa",
            "-m",
            "model",
            "-o",
            out,
            "--kernels",
            kernels,
        ];
        scene.command().args(command).assert().success();
        read(&scene.path(out))
    };
    let plain = ["auto", "portable"].map(|kernels| embed(kernels, kernels));
    std::fs::create_dir(scene.path("blobs")).expect("a folder");
    for entry in std::fs::read_dir(scene.path("model"))
        .expect("a model")
        .flatten()
    {
        let blob = format!("SHA256E-s1--{}", entry.file_name().to_string_lossy().len());
        let target = scene.path("blobs").join(blob);
        std::fs::rename(entry.path(), &target).expect("a move");
        std::os::unix::fs::symlink(target, entry.path()).expect("a link");
    }
    let linked = ["auto", "portable"].map(|kernels| embed(&format!("{kernels}-linked"), kernels));
    assert!(linked == plain, "the bytes differ");
}

/// All below a folder, with what was written when.
fn listing(folder: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let about = entry.metadata().expect("an entry");
        all.push((entry.path(), about.modified().expect("a time")));
        if about.is_dir() {
            all.append(&mut listing(&entry.path()));
        }
    }
    all.sort();
    all
}

/// Filled on one machine, and read on another where it is mounted elsewhere: found, and nothing is
/// written.
#[test]
fn a_cache_that_moved_is_used_as_it_is() {
    let scene = Scene::new();
    scene.snapshot();
    let local = scene.copy("hub-safetensors", "tiny");
    scene.embed("esm2_t6_8M_UR50D").assert().success();
    scene.embed(&local).assert().success();
    let moved = scene.path("mnt");
    std::fs::create_dir(&moved).expect("a folder");
    for name in ["hf", "cache", "tiny"] {
        std::fs::rename(scene.path(name), moved.join(name)).expect("a move");
    }
    let before = listing(&moved);
    let embed = |model: &std::ffi::OsStr| {
        let mut command = scene.embed(model);
        command
            .env("HF_HOME", moved.join("hf"))
            .env("SEQEMBED_CACHE", moved.join("cache"));
        command.assert().success().stderr(exports().not());
    };
    embed("esm2_t6_8M_UR50D".as_ref());
    embed(moved.join("tiny").as_os_str());
    assert_eq!(listing(&moved), before);
    // Copied, its files have other times: their hashes tell.
    let copy = scene.copy("hub-safetensors", "copy");
    std::fs::write(copy.join("README.md"), "not read").expect("a file");
    embed(copy.as_os_str());
    let weights = copy.join("model.safetensors");
    let length = std::fs::metadata(&weights).expect("weights").len();
    flip(&weights, usize::try_from(length).expect("small") - 3);
    let mut other = scene.embed(&copy);
    other.env("SEQEMBED_CACHE", moved.join("cache"));
    other.assert().success().stderr(exports());
}

#[test]
fn what_a_killed_export_left_is_swept() {
    let scene = Scene::new();
    scene.copy("hub-safetensors", "tiny");
    let arguments = ["export", "--random", "esm2_t6_8M_UR50D", "-o", "models/big"];
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_seqembed"))
        .args(arguments)
        .current_dir(scene.home.path())
        .spawn()
        .expect("a run");
    let hidden = || -> Vec<String> {
        let entries = std::fs::read_dir(scene.path("models"))
            .into_iter()
            .flatten();
        let names = entries.flatten().map(|entry| entry.file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    };
    let size = |name: &str| {
        let weights = scene.path("models").join(name).join("weights.bin");
        std::fs::metadata(weights).map_or(0, |about| about.len())
    };
    while !hidden().iter().any(|name| size(name) > 1 << 20) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // Another model's, beside it, does not touch what is being written.
    let beside = ["export", "tiny", "-o", "models/small"];
    scene.command().args(beside).assert().success();
    assert_eq!(hidden().len(), 2, "{:?}", hidden());
    run.kill().expect("it runs");
    run.wait().expect("it ran");
    assert_eq!(hidden().len(), 2, "{:?}", hidden());
    let again = ["export", "tiny", "-o", "models/big"];
    scene.command().args(again).assert().success();
    let mut left = hidden();
    left.sort();
    assert_eq!(left, ["big", "small"]);
    // In the cache too, whatever it was.
    let left = scene.path("cache/models/.export.AbC123.partial");
    std::fs::create_dir_all(&left).expect("a folder");
    std::fs::write(left.join(".lock"), "").expect("a file");
    scene.embed("tiny").assert().success();
    assert!(!left.exists());
}

#[test]
fn folders_around_models_are_told() {
    let scene = Scene::new();
    let snapshot = scene.snapshot();
    let says = |text: &str| predicate::str::contains(text.to_owned());
    let repository = scene.path("hf/hub/models--facebook--esm2_t6_8M_UR50D");
    scene
        .embed(&repository)
        .assert()
        .code(2)
        .stderr(says(&snapshot.display().to_string()).and(says("facebook/esm2_t6_8M_UR50D")));
    scene
        .embed(repository.join("snapshots"))
        .assert()
        .code(2)
        .stderr(says(&snapshot.display().to_string()));
    // Copied without what says which commit `main` is.
    std::fs::remove_dir_all(repository.join("refs")).expect("references");
    let named = format!("facebook/esm2_t6_8M_UR50D@{COMMIT}");
    scene
        .embed("esm2_t6_8M_UR50D")
        .assert()
        .code(2)
        .stderr(says(&named).and(says("refs/main")));
    let mut fetch = scene.command();
    fetch.env("HF_HUB_OFFLINE", "1");
    fetch
        .args(["fetch", "esm2_t6_8M_UR50D"])
        .assert()
        .code(1)
        .stderr(says(&named));
    scene.embed(named).assert().success();
}

/// Takes the rotary frequencies out of a checkpoint, which are of its own heads and base.
fn without_frequencies(folder: &Path) {
    use safetensors::tensor::{SafeTensors, serialize_to_file};
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("weights");
    let mut left = tensors.tensors();
    left.retain(|(name, _)| !name.ends_with("inv_freq"));
    assert!(left.len() < tensors.len());
    serialize_to_file(left, None, &path).expect("weights");
}

/// Two letters' rows of the embedding table change places.
fn swap_letters(folder: &Path) {
    let path = folder.join("vocab.txt");
    if path.exists() {
        return edit(&path, "\nL\nA\n", "\nA\nL\n");
    }
    let path = folder.join("tokenizer.json");
    let text = std::fs::read(&path).expect("a vocabulary");
    let mut json: serde_json::Value = serde_json::from_slice(&text).expect("a vocabulary");
    let ids = &mut json["model"]["vocab"];
    let (a, c) = (ids["A"].take(), ids["C"].take());
    (ids["A"], ids["C"]) = (c, a);
    std::fs::write(&path, json.to_string()).expect("a vocabulary");
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).expect("a file");
    assert!(text.contains(from), "{from}");
    std::fs::write(path, text.replacen(from, to, 1)).expect("a file");
}

/// The weights alone do not make a model: whatever else decides its numbers does so in the cache
/// too, and for what is resumed.
#[test]
fn settings_and_vocabulary_make_another_model_of_the_same_weights() {
    type Change = fn(&Path);
    let esm2: [Change; 4] = [
        |folder| {
            let (from, to) = ("\"num_attention_heads\": 4", "\"num_attention_heads\": 2");
            edit(&folder.join("config.json"), from, to);
        },
        |folder| {
            let (from, to) = ("\"layer_norm_eps\": 1e-05", "\"layer_norm_eps\": 1e-01");
            edit(&folder.join("config.json"), from, to);
        },
        |folder| edit(&folder.join("config.json"), "{", "{\"rope_theta\": 50.0,"),
        swap_letters,
    ];
    let dnabert2: [Change; 1] = [swap_letters];
    let cases: [(&str, &str, &[Change]); 2] = [
        ("hub-safetensors", ">one\nMKTAYIAKQLL\n", &esm2),
        ("../../dna/dnabert2", ">one\nACCATTGACCA\n", &dnabert2),
    ];
    for (checkpoint, sequence, changes) in cases {
        let scene = Scene::new();
        std::fs::write(scene.path("a.faa"), sequence).expect("a file");
        let folder = scene.copy(checkpoint, "tiny");
        if checkpoint == "hub-safetensors" {
            without_frequencies(&folder);
        }
        let resumed = || {
            let mut command = scene.command();
            command.args(["embed", "a.faa", "-m", "tiny", "--resume", "-o"]);
            rows(command.arg(scene.path("kept"))).0
        };
        let mut seen = vec![resumed()];
        for change in changes {
            change(&folder);
            let mut apart = scene.embed("tiny");
            let own = tempfile::tempdir().expect("a folder");
            apart.env("SEQEMBED_CACHE", own.path());
            let right = rows(&mut apart).0;
            assert!(!seen.contains(&right), "{} changes", seen.len());
            assert_eq!(rows(&mut scene.embed("tiny")).0, right);
            assert_eq!(resumed(), right);
            seen.push(right);
        }
        assert_eq!(scene.exports().len(), seen.len(), "{:?}", scene.exports());
    }
}

/// In one run: no session, no rows of a repeated sequence and no export is another model's.
#[test]
fn models_of_one_name_and_the_same_weights_stay_apart_in_a_run() {
    let scene = Scene::new();
    let names = ["a", "b", "c"];
    let [_, heads, letters] = names.map(|name| {
        let folder = scene.copy("hub-safetensors", &format!("{name}/tiny"));
        without_frequencies(&folder);
        folder
    });
    let (from, to) = ("\"num_attention_heads\": 4", "\"num_attention_heads\": 2");
    edit(&heads.join("config.json"), from, to);
    swap_letters(&letters);
    let mut manifest = "files:\n".to_owned();
    for name in names {
        let _ = writeln!(
            manifest,
            "- {{fasta: a.faa, sample: {name}, model: {name}/tiny}}"
        );
    }
    std::fs::write(scene.path("m.yaml"), manifest).expect("a manifest");
    let mut run = scene.command();
    run.args(["run", "m.yaml", "-o", "out"]).assert().success();
    assert_eq!(scene.exports().len(), names.len(), "{:?}", scene.exports());
    let found = names.map(|name| {
        let output = scene.path("out").join(format!("{name}.parquet"));
        seqembed::output::read(&output).expect("an output").0.values
    });
    for (name, found) in names.iter().zip(&found) {
        let mut apart = scene.embed(format!("{name}/tiny"));
        apart.env("SEQEMBED_CACHE", scene.path(name));
        assert_eq!(rows(&mut apart).0, *found, "{name}");
    }
    assert!(found[0] != found[1] && found[0] != found[2] && found[1] != found[2]);
    // One that lies in the place of another is not taken for it.
    let [first, second] = [0, 1].map(|at| scene.path("cache/models").join(&scene.exports()[at]));
    std::fs::remove_dir_all(&second).expect("an export");
    std::fs::rename(first, second).expect("a move");
    for (name, found) in names.iter().zip(&found) {
        assert_eq!(rows(&mut scene.embed(format!("{name}/tiny"))).0, *found);
    }
}

/// A name of the hub means the revision that was used last, when the download is gone.
#[test]
fn a_revision_with_another_vocabulary_is_another_model() {
    const NEXT: &str = "0123456789abcdef0123456789abcdef01234567";
    let scene = Scene::new();
    std::fs::write(scene.path("a.faa"), ">one\nMKTAYIAKQLL\n").expect("a file");
    let first = scene.snapshot();
    let next = first.with_file_name(NEXT);
    let from = format!("hf/hub/models--facebook--esm2_t6_8M_UR50D/snapshots/{NEXT}");
    assert_eq!(scene.copy("hub-safetensors", &from), next);
    swap_letters(&next);
    let main = scene.path("hf/hub/models--facebook--esm2_t6_8M_UR50D/refs/main");
    let embed = || rows(&mut scene.embed("esm2_t6_8M_UR50D"));
    let old = embed().0;
    std::fs::write(&main, NEXT).expect("a reference");
    let (new, said) = embed();
    assert!(said.contains("exporting") && new != old, "{said}");
    // Back again: both are there.
    std::fs::write(&main, COMMIT).expect("a reference");
    let (back, said) = embed();
    assert!(!said.contains("exporting") && back == old, "{said}");
    std::fs::remove_dir_all(scene.path("hf")).expect("a cache");
    assert_eq!(embed().0, old);
}
