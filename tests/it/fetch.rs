//! `seqembed fetch` against a small hub on 127.0.0.1 that answers as the real one does: its API,
//! `resolve` with `ETag` for small files, and a redirect to another server (as to the real one's
//! storage) for large ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use assert_cmd::Command;
use predicates::prelude::*;
use sha2::{Digest, Sha256};

use crate::common::retry_if_late;

const REPOSITORY: &str = "facebook/esm2_t6_8M_UR50D";
const COMMIT: &str = "c731040fcd8d73dceaa04b0a8e6329b345b0f5df";
/// The small files and what `git hash-object` says of them.
const CONFIG: (&str, &str) = (
    "{\"model_type\": \"esm\"}\n",
    "1ae315a7c31695ab801abb6974d7dc39e9939ac4",
);
const VOCAB: (&str, &str) = ("<cls>\n<pad>\n", "bbc0a2702b3089ceebd4b3c73c5212be671c8be6");

/// A request as it came.
#[derive(Debug, Clone)]
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

/// An answer; `cut` closes the connection after so many bytes of the body.
#[derive(Default)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
    /// Sends byte after byte, with such a pause.
    drip: Option<Duration>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: body.into(),
            ..Self::default()
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A server on a free port, one thread a connection, one request a connection; it notes all
/// requests.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (noted, answer) = (Arc::clone(&requests), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (noted, answer) = (Arc::clone(&noted), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &noted, &*answer));
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests
            .lock()
            .expect("no panic in the server")
            .clone()
    }

    /// How often a body was asked for.
    fn downloads(&self, name: &str) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.method == "GET" && request.path.contains(name))
            .count()
    }
}

fn serve(mut stream: TcpStream, noted: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Answer) {
    let mut lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
    let Some(Ok(first)) = lines.next() else {
        return;
    };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let headers = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.split_once(": ")
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        })
        .collect();
    let request = Request {
        method,
        path,
        headers,
    };
    noted
        .lock()
        .expect("no panic in the server")
        .push(request.clone());
    let answer = answer(&request);
    let mut head = format!(
        "HTTP/1.1 {} x\r\nConnection: close\r\nContent-Length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in &answer.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    if request.method != "HEAD" {
        let end = answer.cut.unwrap_or(answer.body.len());
        if let Some(pause) = answer.drip {
            for byte in answer.body {
                if stream.write_all(&[byte]).is_err() {
                    return;
                }
                std::thread::sleep(pause);
            }
            return;
        }
        let _ = stream.write_all(&answer.body[..end]);
    }
}

/// The bytes from where `Range` begins, with 206; all of them with 200 if it is not there.
fn ranged(request: &Request, bytes: &[u8]) -> Answer {
    let Some(range) = request.headers.get("range") else {
        return Answer::new(200, bytes);
    };
    let from = range
        .strip_prefix("bytes=")
        .and_then(|range| range.strip_suffix('-'))
        .expect("an open range");
    let from: usize = from.parse().expect("a number");
    Answer::new(206, &bytes[from..]).with(
        "Content-Range",
        format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()),
    )
}

fn weights() -> Vec<u8> {
    (0..300_000_u32)
        .map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn listing(files: &[&str]) -> String {
    let files: Vec<String> = files
        .iter()
        .map(|name| format!("{{\"rfilename\": \"{name}\"}}"))
        .collect();
    format!(
        "{{\"id\": \"{REPOSITORY}\", \"sha\": \"{COMMIT}\", \"siblings\": [{}]}}",
        files.join(", ")
    )
}

/// What the real hub answers, with the weights at another server.
fn hub(request: &Request, storage: &str) -> Answer {
    let resolve = format!("/{REPOSITORY}/resolve/{COMMIT}/");
    if request.path == format!("/api/models/{REPOSITORY}/revision/main") {
        let files = [
            "README.md",
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "tf_model.h5",
            "vocab.txt",
        ];
        return Answer::new(200, listing(&files));
    }
    let small = |(content, etag): (&str, &str)| {
        ranged(request, content.as_bytes()).with("ETag", format!("\"{etag}\""))
    };
    match request.path.strip_prefix(&resolve) {
        Some("config.json") => small(CONFIG),
        Some("vocab.txt") => small(VOCAB),
        Some("model.safetensors") => Answer::new(302, "")
            .with(
                "Location",
                format!("{storage}/blob/model.safetensors?signature=x"),
            )
            .with("ETag", "\"0123\"")
            .with("X-Linked-Etag", format!("\"{}\"", sha256(&weights())))
            .with("X-Linked-Size", weights().len().to_string()),
        _ => Answer::new(404, "Entry not found").with("X-Error-Code", "EntryNotFound"),
    }
}

/// The hub with its storage, and an empty home.
struct Scene {
    hub: Server,
    storage: Server,
    home: tempfile::TempDir,
}

impl Scene {
    /// The real hub, with this storage.
    fn new(storage: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let storage = Server::start(storage);
        let url = storage.url.clone();
        let hub = Server::start(move |request| hub(request, &url));
        Self {
            hub,
            storage,
            home: tempfile::tempdir().expect("a folder"),
        }
    }

    fn good() -> Self {
        Self::new(|request| ranged(request, &weights()))
    }

    /// Another hub.
    fn with_hub(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            hub: Server::start(answer),
            ..Self::good()
        }
    }

    /// `seqembed fetch --no-export` with nothing of this machine's own settings.
    fn fetch(&self, model: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seqembed"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("HF_")
                || name.to_ascii_lowercase().ends_with("_proxy")
                || name.ends_with("OFFLINE")
            {
                command.env_remove(name);
            }
        }
        command
            .env("HF_HOME", self.home.path())
            .env("HF_ENDPOINT", &self.hub.url);
        command.args(["fetch", "--no-export", model]);
        command
    }

    fn folder(&self) -> PathBuf {
        self.home
            .path()
            .join("hub/models--facebook--esm2_t6_8M_UR50D")
    }

    fn snapshot(&self) -> PathBuf {
        self.folder().join("snapshots").join(COMMIT)
    }

    fn part(&self) -> PathBuf {
        self.folder()
            .join("blobs")
            .join(format!("{}.incomplete", sha256(&weights())))
    }

    fn begin(&self, bytes: &[u8]) {
        std::fs::create_dir_all(self.folder().join("blobs")).expect("a folder");
        std::fs::write(self.part(), bytes).expect("a part");
    }

    #[track_caller]
    fn assert_complete(&self) {
        let read =
            |name: &str| std::fs::read(self.snapshot().join(name)).expect("a file of the snapshot");
        assert_eq!(read("config.json"), CONFIG.0.as_bytes());
        assert_eq!(read("vocab.txt"), VOCAB.0.as_bytes());
        assert!(read("model.safetensors") == weights(), "the weights differ");
        assert_eq!(
            files(&self.snapshot()),
            ["config.json", "model.safetensors", "vocab.txt"]
        );
        let mut blobs = vec![CONFIG.1.to_owned(), VOCAB.1.to_owned(), sha256(&weights())];
        blobs.sort();
        assert_eq!(files(&self.folder().join("blobs")), blobs);
    }
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn says(text: &str) -> impl Predicate<str> + use<> {
    predicate::str::contains(text)
}

#[test]
fn a_model_lands_in_the_layout_of_huggingface_hub() {
    let scene = Scene::good();
    let printed = scene
        .fetch("esm2_t6_8M_UR50D")
        .assert()
        .success()
        .get_output()
        .stdout
        .clone();
    assert_eq!(
        String::from_utf8_lossy(&printed).trim(),
        scene.snapshot().to_string_lossy()
    );
    scene.assert_complete();
    let reference = std::fs::read_to_string(scene.folder().join("refs/main")).expect("a reference");
    assert_eq!(reference, COMMIT);
    #[cfg(unix)]
    assert_eq!(
        std::fs::read_link(scene.snapshot().join("config.json")).expect("a link"),
        Path::new("../../blobs").join(CONFIG.1)
    );
}

/// With a base model beside it or without: nothing of it is downloaded.
#[test]
fn an_adapters_repository_says_how_to_merge_it() {
    for files in [
        &["adapter_config.json", "adapter_model.safetensors"][..],
        &[
            "adapter_config.json",
            "config.json",
            "model.safetensors",
            "vocab.txt",
        ],
    ] {
        let scene = Scene::with_hub(move |request| {
            if request.path.starts_with("/api/") {
                Answer::new(200, listing(files))
            } else {
                hub(request, "http://127.0.0.1:1")
            }
        });
        scene
            .fetch(REPOSITORY)
            .assert()
            .failure()
            .stderr(says("adapter_config.json").and(says("merge_and_unload()")));
        assert_eq!(scene.hub.requests().len(), 1);
        assert!(!scene.snapshot().exists());
    }
}

#[test]
fn what_is_there_needs_no_network() {
    let scene = Scene::good();
    scene.fetch(REPOSITORY).assert().success();
    let asked = scene.hub.requests().len();
    scene.fetch(REPOSITORY).assert().success();
    scene
        .fetch(REPOSITORY)
        .env("HF_HUB_OFFLINE", "1")
        .assert()
        .success();
    scene
        .fetch(REPOSITORY)
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .assert()
        .success();
    scene
        .fetch(&format!("{REPOSITORY}@{COMMIT}"))
        .env("HF_HUB_OFFLINE", "1")
        .assert()
        .success();
    assert_eq!(scene.hub.requests().len(), asked);
    // Asked for an update, it looks, and downloads nothing twice.
    scene.fetch(REPOSITORY).arg("--update").assert().success();
    assert_eq!(scene.hub.requests().len(), asked + 1);
    assert_eq!(scene.storage.downloads("model.safetensors"), 1);
}

#[test]
fn offline_without_a_copy_says_so() {
    let scene = Scene::good();
    let wanted = says("HF_HUB_OFFLINE").and(says(REPOSITORY));
    scene
        .fetch("esm2_t6_8M_UR50D")
        .env("HF_HUB_OFFLINE", "1")
        .assert()
        .code(1)
        .stderr(wanted);
    assert!(scene.hub.requests().is_empty());
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let asked = AtomicUsize::new(0);
    let scene = Scene::new(move |request| {
        let mut answer = ranged(request, &weights());
        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            answer.cut = Some(100_000);
        }
        answer
    });
    scene
        .fetch(REPOSITORY)
        .assert()
        .success()
        .stderr(says("retrying in"));
    scene.assert_complete();
    let ranges: Vec<_> = scene
        .storage
        .requests()
        .iter()
        .map(|request| request.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".to_owned())]);
}

#[test]
fn an_interrupted_download_goes_on_in_the_next_run() {
    let scene = Scene::good();
    scene.begin(&weights()[..123_456]);
    scene.fetch(REPOSITORY).assert().success();
    scene.assert_complete();
    assert_eq!(
        scene.storage.requests()[0]
            .headers
            .get("range")
            .map(String::as_str),
        Some("bytes=123456-")
    );
}

#[test]
fn a_damaged_part_is_downloaded_again_from_the_beginning() {
    let scene = Scene::good();
    scene.begin(&[7; 1000]);
    scene.fetch(REPOSITORY).assert().success();
    scene.assert_complete();
    assert_eq!(scene.storage.requests().len(), 2);
}

#[test]
fn a_server_without_ranges_sends_the_whole() {
    let scene = Scene::new(|_| Answer::new(200, weights()));
    scene.begin(&weights()[..1000]);
    scene.fetch(REPOSITORY).assert().success();
    scene.assert_complete();
}

#[test]
fn a_wrong_hash_is_refused_and_nothing_stays() {
    let scene = Scene::new(|request| {
        let mut bytes = weights();
        bytes[200_000] ^= 1;
        ranged(request, &bytes)
    });
    let wanted = says("model.safetensors").and(says(&sha256(&weights())));
    scene.fetch(REPOSITORY).assert().code(1).stderr(wanted);
    assert_eq!(files(&scene.snapshot()), ["config.json", "vocab.txt"]);
    assert!(!scene.part().exists() && !scene.part().with_extension("").exists());
    // Half a model is no model.
    scene
        .fetch(REPOSITORY)
        .env("HF_HUB_OFFLINE", "1")
        .assert()
        .code(1);
}

#[test]
fn a_wrong_small_file_is_refused_too() {
    let scene = Scene::with_hub(|request| {
        let mut answer = hub(request, "http://127.0.0.1:1");
        if request.path.ends_with("vocab.txt") {
            answer.body = b"<cls>\n<eos>\n".to_vec();
        }
        answer
    });
    scene
        .fetch(REPOSITORY)
        .assert()
        .code(1)
        .stderr(says("vocab.txt").and(says("damaged")));
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let scene = Scene::good();
    scene
        .fetch(REPOSITORY)
        .env("HF_TOKEN", "hf_secret")
        .assert()
        .success();
    let sent = |server: &Server| -> Vec<Option<String>> {
        server
            .requests()
            .iter()
            .map(|request| request.headers.get("authorization").cloned())
            .collect()
    };
    assert!(
        sent(&scene.hub)
            .iter()
            .all(|token| token.as_deref() == Some("Bearer hf_secret"))
    );
    assert_eq!(sent(&scene.storage), [None]);
}

#[test]
fn the_token_of_a_login_is_used() {
    let scene = Scene::good();
    std::fs::write(scene.home.path().join("token"), "hf_from_file\n").expect("a token");
    scene.fetch(REPOSITORY).assert().success();
    let sent = scene.hub.requests()[0]
        .headers
        .get("authorization")
        .cloned();
    assert_eq!(sent.as_deref(), Some("Bearer hf_from_file"));
}

#[test]
fn a_gated_model_asks_for_a_token() {
    let scene = Scene::with_hub(|_| Answer::new(401, "").with("X-Error-Code", "GatedRepo"));
    scene
        .fetch(REPOSITORY)
        .assert()
        .code(1)
        .stderr(says("HF_TOKEN").and(says("401")));
    // With a token that the hub does not take, it says which one was sent, but not what it is.
    let wanted = says("The token from HF_TOKEN").and(says("hf_secret").not());
    scene
        .fetch(REPOSITORY)
        .env("HF_TOKEN", "hf_secret")
        .assert()
        .code(1)
        .stderr(wanted);
}

#[test]
fn what_does_not_exist_is_named() {
    let scene = Scene::good();
    scene
        .fetch("facebook/esm9")
        .assert()
        .code(1)
        .stderr(says("model facebook/esm9").and(says("404")));
    scene
        .fetch("esm9")
        .assert()
        .code(2)
        .stderr(says("seqembed models"));
    scene
        .fetch("../esm9")
        .assert()
        .code(2)
        .stderr(says("../esm9"));
    scene
        .fetch(REPOSITORY)
        .args(["--revision", "../../x"])
        .assert()
        .code(2)
        .stderr(says("../../x"));
    let scene = Scene::with_hub(|_| Answer::new(404, "").with("X-Error-Code", "RevisionNotFound"));
    scene
        .fetch(REPOSITORY)
        .args(["--revision", "v9"])
        .assert()
        .code(1)
        .stderr(says("revision v9"));
}

#[test]
fn a_repository_without_weights_is_refused() {
    let scene =
        Scene::with_hub(|_| Answer::new(200, listing(&["config.json", "flax_model.msgpack"])));
    scene
        .fetch(REPOSITORY)
        .assert()
        .code(1)
        .stderr(says("model.safetensors").and(says("flax_model.msgpack")));
}

#[test]
fn a_busy_hub_is_asked_again() {
    let asked = AtomicUsize::new(0);
    let storage = Server::start(|request| ranged(request, &weights()));
    let url = storage.url;
    let scene = Scene::with_hub(move |request| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::new(429, "").with("Retry-After", "0"),
        1 => Answer::new(503, "").with("Retry-After", "0"),
        _ => hub(request, &url),
    });
    scene
        .fetch(REPOSITORY)
        .assert()
        .success()
        .stderr(says("429").and(says("503")));
    scene.assert_complete();
}

#[test]
fn no_network_says_what_can_be_done() {
    let scene = Scene::good();
    let wanted = says("HF_ENDPOINT").and(says("http://127.0.0.1:1"));
    scene
        .fetch(REPOSITORY)
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .assert()
        .code(1)
        .stderr(wanted);
    scene
        .fetch(REPOSITORY)
        .env("HF_ENDPOINT", "mirror")
        .assert()
        .code(1)
        .stderr(says("HF_ENDPOINT is set to mirror"));
}

#[test]
fn a_server_that_is_no_hub_is_told() {
    let scene = Scene::with_hub(|_| Answer::new(200, "<html>Please log in</html>"));
    scene
        .fetch(REPOSITORY)
        .assert()
        .code(1)
        .stderr(says("HF_ENDPOINT"));
}

/// A hub whose files are all small: `name` to content, beside config.json and vocab.txt.
fn plain_hub(files: &'static [(&'static str, &'static str)]) -> Scene {
    Scene::with_hub(move |request| {
        let name = request.path.rsplit('/').next().unwrap_or_default();
        if name == "main" {
            let mut names = vec!["config.json", "vocab.txt"];
            names.extend(files.iter().map(|(name, _)| name));
            return Answer::new(200, listing(&names));
        }
        let all = [("config.json", CONFIG.0), ("vocab.txt", VOCAB.0)];
        let body = all
            .iter()
            .chain(files)
            .find(|file| file.0 == name)
            .map_or("", |file| file.1);
        ranged(request, body.as_bytes()).with("ETag", sha256(body.as_bytes()))
    })
}

#[test]
fn shards_are_found_by_their_index() {
    let scene = plain_hub(&[
        (
            "model.safetensors.index.json",
            r#"{"metadata": {}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}"#,
        ),
        ("1.safetensors", "first"),
        ("2.safetensors", "second"),
        ("3.safetensors", "of something else"),
    ]);
    scene.fetch(REPOSITORY).assert().success();
    let read = |name: &str| std::fs::read_to_string(scene.snapshot().join(name)).expect("a shard");
    assert_eq!(
        (read("1.safetensors"), read("2.safetensors")),
        ("first".to_owned(), "second".to_owned())
    );
    assert!(!scene.snapshot().join("3.safetensors").exists());
    // Without one of them the snapshot is not complete.
    scene
        .fetch(REPOSITORY)
        .env("HF_HUB_OFFLINE", "1")
        .assert()
        .success();
    std::fs::remove_file(scene.snapshot().join("2.safetensors")).expect("a shard to remove");
    scene
        .fetch(REPOSITORY)
        .env("HF_HUB_OFFLINE", "1")
        .assert()
        .code(1);
}

#[test]
fn an_index_that_points_out_of_its_folder_is_refused() {
    let scene = plain_hub(&[(
        "model.safetensors.index.json",
        r#"{"weight_map": {"a": "../../../../evil.safetensors"}}"#,
    )]);
    scene
        .fetch(REPOSITORY)
        .assert()
        .code(1)
        .stderr(says("model.safetensors.index.json"));
    assert_eq!(files(scene.home.path()), ["hub"]);
}

#[test]
fn processes_at_the_same_time_download_once() {
    let scene = Scene::new(|request| {
        std::thread::sleep(Duration::from_millis(300));
        ranged(request, &weights())
    });
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| scene.fetch(REPOSITORY).assert().success());
        }
    });
    scene.assert_complete();
    assert_eq!(scene.storage.downloads("model.safetensors"), 1);
}

/// Nothing is slow here, so that each is where another is: some took away what others had just
/// looked at.
#[test]
fn six_processes_at_once_are_in_nobodys_way() {
    for _ in 0..4 {
        let scene = Scene::good();
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| scene.fetch(REPOSITORY).assert().success());
            }
        });
        scene.assert_complete();
    }
}

/// A blob of the right size, and one that is cut: neither gives numbers, and `--update` mends them.
#[test]
fn a_damaged_blob_is_told_and_downloaded_again() {
    let damages: [fn(&mut Vec<u8>); 2] = [|bytes| bytes[1000] ^= 1, |bytes| bytes.truncate(1000)];
    for damage in damages {
        let scene = Scene::good();
        scene.fetch(REPOSITORY).assert().success();
        for (name, hash) in [
            ("model.safetensors", sha256(&weights())),
            ("vocab.txt", VOCAB.1.to_owned()),
        ] {
            let blob = scene.folder().join("blobs").join(&hash);
            let mut bytes = std::fs::read(&blob).expect("a blob");
            bytes.resize(bytes.len().max(1001), b'A');
            damage(&mut bytes);
            std::fs::write(&blob, bytes).expect("a blob");
            let snapshot = scene.snapshot();
            let out = scene.home.path().join("export");
            for (arguments, named) in [
                (vec!["fetch", REPOSITORY], REPOSITORY.to_owned()),
                (
                    vec![
                        "export",
                        snapshot.to_str().expect("UTF-8"),
                        "-o",
                        out.to_str().expect("UTF-8"),
                    ],
                    format!("{REPOSITORY}@{COMMIT}"),
                ),
            ] {
                let mut command = Command::new(env!("CARGO_BIN_EXE_seqembed"));
                command
                    .env("HF_HOME", scene.home.path())
                    .env_remove("HF_HUB_CACHE")
                    .env("HF_ENDPOINT", "http://127.0.0.1:1")
                    .env("SEQEMBED_CACHE", scene.home.path().join("exports"));
                command.args(arguments).assert().failure().stderr(
                    says(name)
                        .and(says("is damaged"))
                        .and(says(&hash))
                        .and(says(&format!("seqembed fetch --update {named}`"))),
                );
            }
            scene.fetch(REPOSITORY).arg("--update").assert().success();
            scene.assert_complete();
        }
        // One that no snapshot links to yet is looked at, too.
        let blob = scene.folder().join("blobs").join(CONFIG.1);
        std::fs::write(&blob, CONFIG.0.to_uppercase()).expect("a blob");
        std::fs::remove_file(scene.snapshot().join("config.json")).expect("a link");
        scene.fetch(REPOSITORY).assert().success();
        scene.assert_complete();
    }
}

#[test]
fn a_file_without_a_hash_is_told() {
    let storage = Server::start(|request| ranged(request, &weights()));
    let url = storage.url.clone();
    let scene = Scene::with_hub(move |request| {
        let mut answer = hub(request, &url);
        for (name, value) in &mut answer.headers {
            if *name == "ETag" && request.path.ends_with("vocab.txt") {
                "\"d41d8cd98f00b204e9800998ecf8427e\"".clone_into(value);
            }
        }
        answer
    });
    scene.fetch(REPOSITORY).assert().success().stderr(
        says("warning: vocab.txt could not be verified because the hub at http://127.0.0.1:")
            .and(says("gives no hash for it"))
            .and(says("config.json could not").not()),
    );
}

#[test]
fn a_password_in_the_endpoint_is_not_told() {
    let hub = Server::start(|request| match request.path.as_str() {
        path if path.contains("gated") => Answer::new(401, ""),
        path if path.contains("gone") => Answer::new(404, ""),
        path if path.contains("teapot") => Answer::new(418, ""),
        _ => Answer::new(200, "<html>"),
    });
    let host = hub.url.strip_prefix("http://").expect("a URL").to_owned();
    let scene = Scene::good();
    for (endpoint, model) in [
        (format!("http://me:secret@{host}"), "org/page"),
        (format!("http://me:secret@{host}"), "org/gated"),
        (format!("http://me:secret@{host}"), "org/gone"),
        (format!("http://me:secret@{host}"), "org/teapot"),
        ("http://me:secret@127.0.0.1:1".to_owned(), "org/closed"),
        ("http://me:sec/secret@mirror".to_owned(), "org/wrong"),
        ("me:secret@mirror".to_owned(), "org/wrong"),
    ] {
        scene
            .fetch(model)
            .env("HF_ENDPOINT", &endpoint)
            .assert()
            .code(1)
            .stderr(
                says("***@")
                    .and(says("secret").not())
                    .and(says("me:").not()),
            );
    }
}

#[test]
fn a_commit_may_be_written_in_upper_case() {
    let scene = Scene::good();
    scene.fetch(REPOSITORY).assert().success();
    scene
        .fetch(&format!("{REPOSITORY}@{}", COMMIT.to_uppercase()))
        .env("HF_HUB_OFFLINE", "1")
        .assert()
        .success();
}

#[test]
fn a_link_to_nothing_is_replaced() {
    let scene = Scene::good();
    scene.fetch(REPOSITORY).assert().success();
    std::fs::remove_file(scene.folder().join("blobs").join(CONFIG.1)).expect("a blob");
    scene.fetch(REPOSITORY).assert().success();
    scene.assert_complete();
}

/// Bytes that come again are no progress, however many: it ends, says how many were announced and
/// came, and leaves nothing.
#[test]
fn a_file_of_another_size_than_announced_ends() {
    let good = weights();
    let size = good.len();
    let long = [&good[..], &[0; 10]].concat();
    // What storage has, what the hub says of its size, and what is told.
    for (stored, announced, told) in [
        (good[..size - 10].to_vec(), size, (size - 10).to_string()),
        (long, size, format!("more than {size}")),
        (good.clone(), 2 * size, size.to_string()),
        (good.clone(), size / 2, format!("more than {}", size / 2)),
    ] {
        let storage = Server::start(move |request| {
            let from = request.headers.get("range").map(|range| {
                let digits = range.chars().filter(char::is_ascii_digit);
                digits
                    .collect::<String>()
                    .parse::<usize>()
                    .expect("a number")
            });
            if from.is_some_and(|from| from >= stored.len()) {
                return Answer::new(416, "");
            }
            ranged(request, &stored)
        });
        let url = storage.url.clone();
        let scene = Scene::with_hub(move |request| {
            let mut answer = hub(request, &url);
            for (name, value) in &mut answer.headers {
                if *name == "X-Linked-Size" {
                    *value = announced.to_string();
                }
            }
            answer
        });
        let wanted = says("model.safetensors")
            .and(says(&format!("announced {announced} bytes")))
            .and(says(&format!("repeatedly sent {told};")));
        scene.fetch(REPOSITORY).assert().code(1).stderr(wanted);
        assert!(storage.requests().len() <= 3, "{told}");
        assert_eq!(files(&scene.folder().join("blobs")).len(), 2, "{told}");
    }
}

#[test]
fn a_connection_that_brings_next_to_nothing_is_given_up() {
    // Where the server itself is held up, the connection breaks before it is found to be slow.
    retry_if_late(|_| {
        let asked = AtomicUsize::new(0);
        let scene = Scene::new(move |request| {
            let mut answer = ranged(request, &weights());
            if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                answer.drip = Some(Duration::from_millis(200));
            }
            answer
        });
        let run = scene
            .fetch(REPOSITORY)
            .args(["--speed-time", "1"])
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&run.stderr);
        println!("{said}");
        let is_told = said.contains("--speed-limit") && said.contains("retrying in");
        (is_told && run.status.success()).then(|| scene.assert_complete())
    });
}

#[test]
fn a_download_ends_when_its_time_is_over() {
    // At this speed, all would take 16 hours.
    let scene = Scene::new(|request| {
        let mut answer = ranged(request, &weights());
        answer.drip = Some(Duration::from_millis(200));
        answer
    });
    retry_if_late(|before| {
        let seconds: u64 = 2 << (2 * before);
        let started = Instant::now();
        let run = scene
            .fetch(REPOSITORY)
            .args(["--timeout", &seconds.to_string()])
            .assert();
        assert!(started.elapsed() < Duration::from_secs(seconds) + Duration::from_mins(1));
        // What came is kept; nothing did if the time was over before the download began.
        let part = std::fs::metadata(scene.part()).ok()?;
        let wanted = says("--timeout").and(says("continue where it stopped"));
        (part.len() > 0).then(|| run.code(1).stderr(wanted))
    });
}
