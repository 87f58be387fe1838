//! What can be named as a MODEL, and the cache of exported models: exported once, found again, and never a stale one.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::prelude::*;

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
            "no fused graph in fp8 of this model",
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
        .stderr(predicate::str::contains("esm2_t33_650M_UR50D"));
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
        &[name, "no place for 1", "merge_and_unload()"],
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
