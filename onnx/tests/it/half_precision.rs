//! Weights in 16 bits: values and location of the file, values out of range, several processes at
//! the same time; and graphs for ONNX Runtime's CUDA provider.
//!
//! `SEQEMBED_TEST_PYTHON` names a Python that has `onnx`, `onnxruntime` and `numpy`; `make test`
//! sets it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use seqembed_onnx::weights::table::hex;
use seqembed_onnx::{
    Error, ExportOptions, GraphKind, GraphRequest, Model, Output, Precision, Storage, export,
};
use sha2::{Digest, Sha256};

/// Runs Python; a failed assertion in the script fails the test.
fn python(arguments: &[&str]) {
    let python = std::env::var("SEQEMBED_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let run = Command::new(&python).args(arguments).output().unwrap();
    assert!(
        run.status.success(),
        "{python} (it needs onnx, onnxruntime and numpy: `make test` brings them):\n{}{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn exported(checkpoint: &str, target: &Path, half: Option<Precision>) -> Model {
    let options = ExportOptions {
        half,
        ..ExportOptions::default()
    };
    let source = repository().join("tests/fixtures").join(checkpoint);
    export(&source, target, &options).unwrap()
}

const ESM2: &str = "esm2/checkpoints/hub-safetensors";

#[test]
fn the_numbers_are_those_that_numpy_rounds_to() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model");
    let model = exported(ESM2, &target, Some(Precision::Fp16));
    assert!(target.join("weights.fp16.bin").is_file());
    assert!(!target.join("weights.bf16.bin").exists());
    for precision in [Precision::Fp16, Precision::Bf16] {
        assert_eq!(
            model.weights_in(precision, folder.path()).unwrap(),
            target,
            "{precision}"
        );
        let tensors = serde_json::to_vec(&model.tensors(precision)).unwrap();
        fs::write(target.join(format!("{precision}.json")), tensors).unwrap();
    }
    python(&[
        "-c",
        "import json, sys, numpy as np\n\
         folder = sys.argv[1]\n\
         wide = np.fromfile(folder + '/weights.bin', np.float32)\n\
         table = json.load(open(folder + '/seqembed.json'))['tensors']\n\
         for kind in ['fp16', 'bf16']:\n    \
             file = open(f'{folder}/weights.{kind}.bin', 'rb').read()\n    \
             narrow = json.load(open(f'{folder}/{kind}.json'))\n    \
             assert len(table) == len(narrow) > 20\n    \
             for a, b in zip(table, narrow):\n        \
                 assert a['name'] == b['name'] and a['shape'] == b['shape'] and b['offset'] % 4096 == 0\n        \
                 values = wide[a['offset'] // 4:][:a['bytes'] // 4]\n        \
                 if kind == 'fp16':\n            \
                     bits = values.astype(np.float16).view(np.uint16)\n        \
                 else:\n            \
                     whole = values.view(np.uint32).astype(np.uint64)\n            \
                     bits = ((whole + 0x7fff + ((whole >> 16) & 1)) >> 16).astype(np.uint16)\n        \
                 found = np.frombuffer(file, np.uint16, b['bytes'] // 2, b['offset'])\n        \
                 assert (found == bits).all(), (kind, a['name'])\n    \
             assert len(file) > b['offset'] + b['bytes']",
        target.to_str().unwrap(),
    ]);
}

#[test]
fn weights_too_large_are_named_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model");
    let model = exported(ESM2, &target, None);
    let tensor = model.info().tensors[7].clone();
    let mut weights = fs::read(target.join("weights.bin")).unwrap();
    let at = usize::try_from(tensor.offset).unwrap() + 8;
    weights[at..at + 4].copy_from_slice(&(-65_600_f32).to_le_bytes());
    fs::write(target.join("weights.bin"), &weights).unwrap();
    // As an older export, which has no more than the one hash.
    let path = target.join("seqembed.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let fields = json.as_object_mut().unwrap();
    for newer in ["check", "files", "weights_blake3"] {
        assert!(fields.remove(newer).is_some(), "{newer}");
    }
    fields["weights_sha256"] = hex(&Sha256::digest(&weights)).into();
    fs::write(&path, json.to_string()).unwrap();
    let model = Model::open(&target).unwrap();
    let files = || fs::read_dir(&target).unwrap().count();
    let before = files();
    let error = model
        .weights_in(Precision::Fp16, folder.path())
        .unwrap_err();
    assert!(matches!(error, Error::Overflow { .. }), "{error}");
    let text = error.to_string();
    for part in [&*tensor.name, "weights.bin", "-6.56e4", "fp16", "bf16"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    // The lock stays.
    assert_eq!(files(), before + 1);
    // It is within the range of the other format.
    model.weights_in(Precision::Bf16, folder.path()).unwrap();
}

#[test]
fn a_file_of_other_weights_or_a_part_of_one_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model");
    let model = exported(ESM2, &target, Some(Precision::Fp16));
    let path = target.join("weights.fp16.bin");
    let whole = fs::read(&path).unwrap();
    for damaged in [
        &whole[..whole.len() - 1],
        &whole[..whole.len() / 2],
        b"",
        &[&whole[..], b"more"].concat(),
        // The end of the hash of the weights that it was made from, which stands before its own.
        &[
            &whole[..whole.len() - 81],
            b"00000000",
            &whole[whole.len() - 73..],
        ]
        .concat(),
    ] {
        fs::write(&path, damaged).unwrap();
        model.weights_in(Precision::Fp16, folder.path()).unwrap();
        assert!(fs::read(&path).unwrap() == whole);
    }
}

/// What the processes of the next test do.
#[test]
fn child() {
    if let Ok(target) = std::env::var("SEQEMBED_TEST_HALF_OF") {
        let model = Model::open(Path::new(&target)).unwrap();
        model
            .weights_in(Precision::Fp16, Path::new("/nowhere"))
            .unwrap();
        assert!(model.folder().join("weights.fp16.bin").is_file());
    }
}

#[test]
fn several_processes_make_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model");
    let expected = exported(ESM2, &folder.path().join("expected"), Some(Precision::Fp16));
    exported(ESM2, &target, None);
    let children: Vec<_> = (0..6)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "half_precision::child"])
                .env("SEQEMBED_TEST_HALF_OF", &target)
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let bytes = |folder: &Path| fs::read(folder.join("weights.fp16.bin")).unwrap();
    assert!(bytes(&target) == bytes(expected.folder()));
    let left: Vec<_> = fs::read_dir(&target)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".partial"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

#[cfg(unix)]
#[test]
fn a_folder_that_takes_nothing_is_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model");
    let model = exported(ESM2, &target, None);
    let cache = folder.path().join("cache");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o555)).unwrap();
    let writable = fs::write(target.join("probe"), "").is_ok();
    let found = model.weights_in(Precision::Fp16, &cache);
    let again = model.weights_in(Precision::Fp16, &cache);
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
    let found = found.unwrap();
    assert_eq!(found, again.unwrap());
    assert!(found.join("weights.fp16.bin").is_file());
    // Root may write anywhere.
    if !writable {
        assert!(found.starts_with(&cache));
        assert!(!target.join("weights.fp16.bin").exists());
    }
}

#[test]
fn plain_graphs_compute_what_padded_ones_do() {
    let folder = tempfile::tempdir().unwrap();
    let script = repository().join("onnx/reference/plain.py");
    for checkpoint in [
        ESM2,
        "esm2/widths/head24-bf16",
        "esm1/checkpoints/esm1b-safetensors",
        "esm1/checkpoints/esm1v-safetensors",
        "esmc/checkpoints/hub",
        "nt/checkpoints/v1-saved",
        "nt/checkpoints/v2-safetensors",
        "dna/dnabert2",
        "dna/dnabert2-6-heads",
        "dna/dnabert-3",
        "bert/igbert",
        "bert/grover",
        "amplify/checkpoints/hub",
        "saprot/checkpoints/hub",
        "t5/checkpoints/prott5",
        "t5/checkpoints/gated",
    ] {
        let target = folder.path().join(checkpoint);
        let model = exported(checkpoint, &target, Some(Precision::Fp16));
        let mut arguments = vec![script.to_str().unwrap(), target.to_str().unwrap()];
        let graphs: Vec<PathBuf> = [Precision::Fp32, Precision::Fp16]
            .map(|precision| {
                let graph = model.graph(&GraphRequest {
                    kind: GraphKind::OrtCuda,
                    precision,
                    layers: vec![model.architecture().layers()],
                    outputs: vec![Output::Mean, Output::Max, Output::Tokens],
                });
                let path = target.join(format!("{precision}.onnx"));
                fs::write(&path, graph.unwrap()).unwrap();
                path
            })
            .into();
        arguments.extend(graphs.iter().map(|path| path.to_str().unwrap()));
        python(&arguments);
    }
}

/// The graphs of the CUDA kernels. In fused ones layer norms are folded into the weights: what the
/// graph and the file say together is what the padded graph computes.
#[test]
fn packed_and_fused_graphs_compute_what_padded_ones_do() {
    let folder = tempfile::tempdir().unwrap();
    let script = repository().join("onnx/reference/fused.py");
    for checkpoint in [
        ESM2,
        "esm2/widths/head24-bf16",
        "esm2/widths/esm2_head64-f16.pt",
        "esm1/checkpoints/esm1b-safetensors",
        "esm1/checkpoints/esm1v-safetensors",
        "nt/checkpoints/v1-saved",
        "nt/checkpoints/v2-saved",
        "esmc/checkpoints/hub",
        "dna/dnabert2",
        "dna/dnabert2-6-heads",
        "dna/dnabert-3",
        "bert/igbert",
        "bert/grover",
        "saprot/checkpoints/hub",
    ] {
        let target = folder.path().join(checkpoint);
        let model = exported(checkpoint, &target, None);
        let last = model.architecture().layers();
        for (kind, precision, least) in [
            (GraphKind::Packed, Precision::Fp16, "0.9999"),
            (GraphKind::Fused, Precision::Fp16, "0.9999"),
            (GraphKind::Fused, Precision::Fp8, "0.998"),
        ] {
            let in_eights = ["esm2", "nt/checkpoints/v2"];
            let in_eights = in_eights.iter().any(|name| checkpoint.starts_with(name));
            if precision == Precision::Fp8 && !in_eights {
                continue;
            }
            let request = GraphRequest {
                kind,
                precision,
                layers: vec![last],
                outputs: vec![Output::Mean, Output::Max, Output::Tokens],
            };
            let storage = Storage::of(request.kind, request.precision);
            assert_eq!(model.weights_in(storage, folder.path()).unwrap(), target);
            let path = target.join("fused.onnx");
            fs::write(&path, model.graph(&request).unwrap()).unwrap();
            python(&[
                script.to_str().unwrap(),
                target.to_str().unwrap(),
                least,
                path.to_str().unwrap(),
            ]);
        }
    }
}
