//! What fuzzing found stays found: every seed and every finding in `fuzz/` goes through its target
//! again, and through some thousand mutations, so that the targets are kept working where there is
//! no nightly Rust.

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use seqembed::journal::rows::{Mark, Writer};

/// For all mutations of a target.
const TIME: Duration = Duration::from_secs(1);

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 8] = [
    ("records", fuzz::records),
    ("manifest", fuzz::manifest),
    ("safetensors", fuzz::safetensors),
    ("pickle", fuzz::pickle),
    ("pytorch", fuzz::pytorch),
    ("tokenizer", fuzz::tokenizer),
    ("journal", fuzz::journal),
    ("rows", fuzz::rows),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of `fuzz/seeds/TARGET` and `fuzz/findings/TARGET`, and files of the other tests.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for kind in ["seeds", "findings"] {
        let folder = root().join("fuzz").join(kind).join(target);
        for entry in fs::read_dir(folder).into_iter().flatten() {
            seeds.push(fs::read(entry.unwrap().path()).unwrap());
        }
    }
    let checkpoints = root().join("tests/fixtures/esm2/checkpoints");
    match target {
        "safetensors" => {
            let mut whole =
                fs::read(checkpoints.join("hub-safetensors/model.safetensors")).unwrap();
            whole.truncate(6000);
            seeds.push(whole);
            let header = br#"{"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#;
            let mut small = (header.len() as u64).to_le_bytes().to_vec();
            small.extend(header);
            small.extend([0; 8]);
            seeds.push(small);
        }
        "rows" => {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("shard");
            let mut writer = Writer::create(&path).unwrap();
            for attempt in 0..3 {
                let mark = |index| Mark {
                    index,
                    hash: index * 3,
                    vectors: 1,
                };
                let marks = [mark(attempt), mark(attempt + 1)];
                let values = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
                let values = values.concat().into();
                writer.frame(attempt, 3, &marks, values).unwrap();
            }
            writer.sync().unwrap();
            seeds.push(fs::read(path).unwrap());
        }
        "pickle" => {
            let file = fs::File::open(checkpoints.join("esm2_small.pt")).unwrap();
            let mut archive = zip::ZipArchive::new(file).unwrap();
            let names = archive.file_names().map(|name| name.unwrap().into_owned());
            let name = names.into_iter().find(|name| name.ends_with("data.pkl"));
            let name = name.unwrap();
            let mut bytes = Vec::new();
            std::io::copy(&mut archive.by_name(&name).unwrap(), &mut bytes).unwrap();
            seeds.push(bytes);
        }
        "pytorch" => {
            for file in ["zip.pt", "legacy.pt"] {
                let path = root().join("tests/fixtures/pytorch").join(file);
                seeds.push(fs::read(path).unwrap());
            }
        }
        "tokenizer" => {
            let fixtures = root().join("tests/fixtures");
            for (kind, file) in [
                (b'0', "esm2/checkpoints/hub-bin/vocab.txt"),
                (b'1', "dna/dnabert-3/vocab.txt"),
                (b'2', "dna/dnabert2/tokenizer.json"),
                (b'2', "bert/grover/tokenizer.json"),
                (b'3', "nt/checkpoints/v1-bin/vocab.txt"),
                (b'4', "saprot/checkpoints/hub/vocab.txt"),
            ] {
                let mut seed = vec![kind];
                seed.extend(fs::read(fixtures.join(file)).unwrap());
                seeds.push(seed);
            }
        }
        _ => {}
    }
    assert!(!seeds.is_empty(), "{target} has no seeds");
    seeds
}

/// Changes, inserts, removes or repeats some bytes.
fn mutate(seed: &[u8], number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = |end: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from((state >> 16) % (end.max(1) as u64)).unwrap()
    };
    let mut bytes = seed.to_vec();
    for _ in 0..=below(4) {
        let at = below(bytes.len());
        match below(5) {
            _ if bytes.is_empty() => bytes.push(0),
            0 => bytes[at] ^= 1 << below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'\n', b'>', b'{'][below(8)],
            2 => bytes.truncate(at),
            3 => {
                let end = (at + 1 + below(9)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let end = (at + 1 + below(40)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                let to = below(bytes.len());
                bytes.splice(to..to, part);
            }
        }
    }
    bytes
}

#[test]
fn no_bytes_break_a_reader() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        for seed in &seeds {
            target(seed);
        }
        let started = Instant::now();
        let mut number = 0;
        // However slow the machine: as many as show that the target works.
        while number <= 20 || started.elapsed() < TIME {
            for seed in &seeds {
                number += 1;
                target(&mutate(seed, number));
            }
        }
        println!("{name}: {number} mutations of {} seeds", seeds.len());
    }
}
