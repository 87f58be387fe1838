//! Model folders: random ones, their determinism, all published sizes, opening damaged ones, and
//! the graphs' soundness.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use prost::Message;
use seqembed_onnx::graph::proto::{ModelProto, OperatorSetIdProto, ValueInfoProto};
use seqembed_onnx::{
    Error, ExportOptions, GraphKind, GraphRequest, Model, Output, Precision, Storage, export,
    export_random, known_model, known_models,
};

use crate::support::{self, LAYERS};

/// A model of two small layers, exported.
fn small(folder: &Path, target: &Path) -> Model {
    let hub = folder.join("hub");
    let source = support::hub_folder(&hub, &support::weights(), support::Format::F32);
    export(&source, target, &ExportOptions::default()).unwrap()
}

const SMALLEST: &str = "esm2_t6_8M_UR50D";

fn random(target: &Path, seed: u64) -> Model {
    export_random(SMALLEST, seed, target, &ExportOptions::default()).unwrap()
}

#[test]
fn random_weights_are_the_same_bytes_twice_and_say_that_they_are_random() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let one = random(&at("one"), 5);
    random(&at("two"), 5);
    for name in ["seqembed.json", "weights.bin", "model.onnx", "vocab.txt"] {
        assert!(
            fs::read(at("one").join(name)).unwrap() == fs::read(at("two").join(name)).unwrap(),
            "{name}"
        );
    }
    assert_eq!(one.info().random_seed, Some(5));
    assert_eq!(one.info().source.format, "random");
    let other = random(&at("three"), 6);
    assert_ne!(one.info().weights_sha256, other.info().weights_sha256);
    assert_eq!(Model::open(&at("one")).unwrap().info(), one.info());
}

#[test]
fn published_sizes_have_the_published_number_of_parameters() {
    // What fair-esm's models of these sizes hold in their embedding, blocks and last layer norm.
    for (name, parameters) in [
        ("esm2_t6_8M_UR50D", 7_408_960_u64),
        ("esm2_t12_35M_UR50D", 33_269_280),
        ("esm2_t30_150M_UR50D", 147_728_000),
        ("esm2_t33_650M_UR50D", 649_400_320),
        ("esm2_t36_3B_UR50D", 2_832_442_880),
        ("esm2_t48_15B_UR50D", 15_102_868_480),
        // transformers' EsmModel without the pooler and the contact head.
        ("esm1b_t33_650M_UR50S", 650_716_160),
        ("esm1v_t33_650M_UR90S_1", 650_713_600),
        // transformers' EsmcModel.
        ("ESMC-300M", 332_011_200),
        ("ESMC-600M", 573_632_640),
        ("ESMC-6B", 6_345_280_000),
        // EsmModel's of these sizes, with 413 more tokens.
        ("SaProt_35M_AF2", 33_467_520),
        ("SaProt_650M_AF2", 649_928_960),
        // The authors' AMPLIFY, without the head and its norm.
        ("AMPLIFY_120M", 118_258_560),
        ("AMPLIFY_350M", 353_981_760),
        // T5EncoderModel of these sizes.
        ("ProtT5-XL", 1_208_141_824),
        // What BertModel and DNABERT-2's own code hold without the pooler.
        ("DNABERT-3", 85_503_744),
        ("DNABERT-4", 85_651_200),
        ("DNABERT-5", 86_241_024),
        ("DNABERT-6", 88_600_320),
        ("GROVER", 85_918_464),
        ("ProtBert", 418_881_536),
        ("IgBert", 418_881_536),
        ("DNABERT-2", 116_477_952),
        ("DNABERT-S", 116_477_952),
        // transformers' EsmModel without pooler and contact head, and for version 2 without the
        // table of positions, and with feed-forward layers twice as wide and without biases.
        ("NT-500M-human-ref", 478_798_080),
        ("NT-500M-1000g", 478_798_080),
        ("NT-2.5B-1000g", 2_530_726_400),
        ("NT-2.5B-multi-species", 2_530_726_400),
        ("NT-v2-50M", 52_484_608),
        ("NT-v2-100M", 94_468_608),
        ("NT-v2-250M", 229_795_584),
        ("NT-v2-500M", 490_984_448),
    ] {
        let known = known_model(name).unwrap();
        assert_eq!(known_model(known.hub_id).unwrap(), known);
        let plan = known.architecture.family().plan();
        let mut read = HashSet::new();
        let mut total = 0;
        for input in plan.iter().flat_map(|planned| planned.source.inputs()) {
            if read.insert(&input.name) {
                total += input
                    .shape
                    .iter()
                    .map(|&length| length as u64)
                    .product::<u64>();
            }
        }
        assert_eq!(total, parameters, "{name}");
        // The values' biases are folded away, and two rows of token types; alignment adds less than
        // a page a tensor.
        let folded = ((known.architecture.layers() + 2) * known.architecture.hidden()) as u64;
        let bytes = known.weights_bytes();
        assert!(
            bytes >= 4 * (parameters - folded) && bytes < 4 * parameters + 4096 * plan.len() as u64
        );
    }
    assert_eq!(known_models().len(), 47);
    for known in known_models() {
        let publication = known.publication;
        let citations = ["doi:10.", "arXiv:", "https://"];
        assert!(
            citations
                .iter()
                .any(|start| publication.citation.starts_with(start))
        );
        assert!(["mean", "mean-all", "cls"].contains(&publication.pooling));
        let licences = [
            "MIT",
            "Apache-2.0",
            "AFL-3.0",
            "CC-BY-4.0",
            "CC-BY-NC-SA-4.0",
            // SPDX for "the authors name none".
            "NOASSERTION",
        ];
        assert!(licences.contains(&publication.licence), "{}", known.name);
        assert_eq!(
            publication.non_commercial(),
            publication.licence.contains("NC")
        );
    }
    assert!(known_model("esm2_t7").is_none());
}

#[test]
fn targets_are_replaced_only_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let targets = folder.path().join("targets");
    let target = targets.join("model");
    fs::create_dir_all(&target).unwrap();
    small(folder.path(), &target);
    let again = |target: &Path, force: bool| {
        let options = ExportOptions {
            name: Some("mine".to_owned()),
            force,
            ..ExportOptions::default()
        };
        export(&folder.path().join("hub"), target, &options)
    };
    assert!(matches!(again(&target, false), Err(Error::Exists { .. })));
    assert_eq!(Model::open(&target).unwrap().info().name, "hub");
    again(&target, true).unwrap();
    assert_eq!(Model::open(&target).unwrap().info().name, "mine");

    let other = targets.join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("thesis.tex"), "years of work").unwrap();
    for taken in [&other, &other.join("thesis.tex")] {
        assert!(matches!(again(taken, true), Err(Error::Occupied { .. })));
    }
    let options = ExportOptions::default();
    let exported = export(&target, &targets.join("x"), &options).unwrap_err();
    assert!(exported.to_string().contains("already an exported model"));
    assert!(matches!(
        export_random("esm3", 1, &targets.join("x"), &options),
        Err(Error::UnknownModel { .. })
    ));
    // Nothing but the two targets: no temporary folder stayed.
    assert_eq!(fs::read_dir(&targets).unwrap().count(), 2);
}

#[test]
fn damaged_model_folders_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model");
    small(folder.path(), &target);
    let refused = |parts: &[&str]| {
        let text = Model::open(&target).unwrap_err().to_string();
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    };
    let json = target.join("seqembed.json");
    let whole = fs::read_to_string(&json).unwrap();
    fs::write(
        &json,
        whole.replace("\"graph_version\": 1", "\"graph_version\": 999"),
    )
    .unwrap();
    refused(&["seqembed.json", "999", "export the model again"]);
    fs::write(&json, whole.replace("\"heads\": 2", "\"heads\": 0")).unwrap();
    refused(&["seqembed.json", "heads"]);
    fs::write(&json, whole.replace("\"layers\": 2", "\"layers\": 3")).unwrap();
    refused(&["seqembed.json", "table of tensors"]);
    let other = whole.replace("\"kind\": \"esm2\"", "\"kind\": \"wordpiece\"");
    fs::write(&json, other).unwrap();
    refused(&["seqembed.json", "wordpiece"]);
    let mut unchecked: serde_json::Value = serde_json::from_str(&whole).unwrap();
    unchecked.as_object_mut().unwrap().remove("check");
    fs::write(&json, unchecked.to_string()).unwrap();
    refused(&["seqembed.json", "check", "export the model again"]);
    fs::write(&json, &whole[..whole.len() / 2]).unwrap();
    refused(&["seqembed.json"]);
    fs::write(&json, &whole).unwrap();

    let vocabulary = target.join("vocab.txt");
    fs::rename(&vocabulary, folder.path().join("vocab.txt")).unwrap();
    refused(&["vocab.txt", "missing"]);
    fs::rename(folder.path().join("vocab.txt"), &vocabulary).unwrap();

    let weights = target.join("weights.bin");
    let length = fs::metadata(&weights).unwrap().len();
    let file = fs::File::options().write(true).open(&weights).unwrap();
    file.set_len(length - 1).unwrap();
    refused(&["weights.bin", "truncated"]);
    file.set_len(length).unwrap();
    Model::open(&target).unwrap();
    fs::remove_file(&weights).unwrap();
    refused(&["weights.bin"]);
    fs::remove_file(&json).unwrap();
    refused(&["not a model folder", "seqembed export"]);
}

#[test]
fn graphs_are_sound_for_every_layer_and_output() {
    let folder = tempfile::tempdir().unwrap();
    let model = small(folder.path(), &folder.path().join("model"));
    let all = [Output::Mean, Output::Max, Output::Tokens];
    for (kind, precision) in KINDS {
        for layer in 0..=LAYERS {
            for outputs in [&all[..], &all[..1], &all[1..2], &all[2..]] {
                let request = GraphRequest {
                    kind,
                    precision,
                    layers: vec![layer],
                    outputs: outputs.to_vec(),
                };
                let bytes = model.graph(&request).unwrap();
                assert_eq!(bytes, model.graph(&request).unwrap());
                check(
                    &ModelProto::decode(bytes.as_slice()).unwrap(),
                    &model,
                    &request,
                );
            }
        }
        let request = GraphRequest {
            kind,
            precision,
            layers: vec![3],
            outputs: all.to_vec(),
        };
        assert!(matches!(
            model.graph(&request),
            Err(Error::Layer {
                layer: 3,
                layers: 2
            })
        ));
    }
}

const KINDS: [(GraphKind, Precision); 6] = [
    (GraphKind::Padded, Precision::Fp32),
    (GraphKind::Packed, Precision::Fp32),
    (GraphKind::Packed, Precision::Fp16),
    (GraphKind::Packed, Precision::Bf16),
    (GraphKind::OrtCuda, Precision::Fp32),
    (GraphKind::OrtCuda, Precision::Fp16),
];

#[test]
fn graphs_that_no_engine_can_run_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = small(folder.path(), &folder.path().join("model"));
    for (kind, precision, output, words) in [
        (
            GraphKind::Padded,
            Precision::Fp16,
            Output::Mean,
            "fp16 is not available for the padded graph",
        ),
        (
            GraphKind::OrtCuda,
            Precision::Bf16,
            Output::Mean,
            "bf16 is not available for the",
        ),
        (
            GraphKind::Padded,
            Precision::Fp32,
            Output::HalfTokens,
            "fp16 is not available for the padded graph",
        ),
    ] {
        let request = GraphRequest {
            kind,
            precision,
            layers: vec![1],
            outputs: vec![output],
        };
        let error = model.graph(&request).unwrap_err();
        assert!(matches!(error, Error::Precision { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// Values are made once and before they are used, weights lie within the file, later blocks are
/// left out.
fn check(graph: &ModelProto, model: &Model, request: &GraphRequest) {
    let layer = request.layers[0];
    let (width, element) = (
        request.precision.bytes(),
        request.precision.element() as i32,
    );
    let storage = Storage::of(request.kind, request.precision);
    let table = model.tensors(storage);
    let end = table
        .last()
        .map(|tensor| tensor.offset + tensor.bytes)
        .unwrap();
    let domains: HashSet<&str> = graph
        .opset_import
        .iter()
        .map(OperatorSetIdProto::domain)
        .collect();
    let graph = graph.graph.as_ref().unwrap();
    let mut known: HashSet<&str> = HashSet::from([""]);
    let inputs: Vec<&str> = graph.input.iter().map(ValueInfoProto::name).collect();
    known.extend(&inputs);
    for tensor in &graph.initializer {
        assert!(known.insert(tensor.name()), "{} twice", tensor.name());
        let size: i64 = tensor.dims.iter().product();
        if tensor.data_location() == 1 {
            let entry = |key: &str| {
                let entry = tensor.external_data.iter().find(|entry| entry.key() == key);
                entry.unwrap().value().to_owned()
            };
            let (offset, length): (u64, u64) = (
                entry("offset").parse().unwrap(),
                entry("length").parse().unwrap(),
            );
            assert_eq!(entry("location"), storage.file());
            assert_eq!(tensor.data_type(), element, "{}", tensor.name());
            // Query and key are rows within a tensor, and need not begin a page.
            let whole = table.iter().any(|whole| whole.name == tensor.name());
            assert_eq!(
                offset % if whole { 4096 } else { width },
                0,
                "{}",
                tensor.name()
            );
            assert_eq!(length, width * u64::try_from(size).unwrap());
            assert!(offset + length <= end);
        }
        let block = tensor.name().strip_prefix("layer.").and_then(|name| {
            let (block, _) = name.split_once('.')?;
            block.parse::<usize>().ok()
        });
        assert!(block.is_none_or(|block| block < layer), "{}", tensor.name());
    }
    let mut names = HashSet::new();
    for node in &graph.node {
        assert!(names.insert(node.name()), "{} twice", node.name());
        assert!(domains.contains(node.domain()));
        for input in &node.input {
            assert!(
                known.contains(input.as_str()),
                "{} uses {input}",
                node.name()
            );
        }
        for output in node.output.iter().filter(|output| !output.is_empty()) {
            assert!(known.insert(output), "{output} twice");
        }
    }
    let expected: Vec<&str> = request
        .outputs
        .iter()
        .map(|output| match output {
            Output::Mean => "mean",
            Output::Max => "max",
            Output::Tokens | Output::HalfTokens => "tokens",
        })
        .collect();
    // Whatever the precision: fp32 comes out.
    for output in &graph.output {
        let kind = output
            .r#type
            .as_ref()
            .unwrap()
            .tensor_type
            .as_ref()
            .unwrap();
        assert_eq!(kind.elem_type(), 1);
    }
    let found: Vec<&str> = graph.output.iter().map(ValueInfoProto::name).collect();
    assert_eq!(found, expected);
    assert!(found.iter().all(|name| known.contains(name)));
    let norms = graph
        .initializer
        .iter()
        .filter(|tensor| tensor.name().starts_with("final_norm"))
        .count();
    assert_eq!(norms, if layer == LAYERS { 2 } else { 0 });
}

/// One byte of each file in turn: whatever it is, it is noticed, and named.
#[test]
fn one_other_byte_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model");
    let model = small(folder.path(), &target);
    let info = model.info();
    let weights = fs::read(target.join("weights.bin")).unwrap();
    // What b3sum would print.
    let hash = blake3::hash(&weights).to_hex().to_string();
    assert_eq!(info.weights_blake3.as_deref(), Some(hash.as_str()));
    let verify =
        || Model::open(&target).and_then(|model| model.weights(Precision::Fp32, &target)?.verify());
    verify().unwrap();
    for name in ["weights.bin", "vocab.txt", "model.onnx", "seqembed.json"] {
        let path = target.join(name);
        let whole = fs::read(&path).unwrap();
        for at in [0, whole.len() / 2, whole.len() - 2] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            let error = verify().unwrap_err().to_string();
            assert!(error.contains(name), "{name} {at}: {error}");
        }
        fs::write(&path, whole).unwrap();
    }
    verify().unwrap();
    // Nothing in a newer export but what an older one has.
    let path = target.join("seqembed.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let fields = json.as_object_mut().unwrap();
    fields.retain(|key, _| !["check", "files", "weights_blake3"].contains(&key.as_str()));
    fs::write(&path, json.to_string()).unwrap();
    verify().unwrap();
    let mut damaged = weights.clone();
    damaged[7] ^= 128;
    fs::write(target.join("weights.bin"), damaged).unwrap();
    let error = verify().unwrap_err().to_string();
    assert!(
        error.contains("SHA-256") && error.contains(&info.weights_sha256),
        "{error}"
    );
}

/// What is made from `weights.bin` is checked as well, and not made from damaged weights.
#[test]
fn weights_in_16_bits_are_checked_too() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model");
    let model = small(folder.path(), &target);
    let half = || model.weights(Precision::Fp16, folder.path());
    half().unwrap().verify().unwrap();
    let path = target.join("weights.fp16.bin");
    let mut bytes = fs::read(&path).unwrap();
    bytes[5] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = half().unwrap().verify().unwrap_err();
    assert!(
        matches!(&error, Error::Damaged { path: found, .. } if *found == path),
        "{error}"
    );
    fs::remove_file(&path).unwrap();
    let wide = target.join("weights.bin");
    let mut bytes = fs::read(&wide).unwrap();
    bytes[5] ^= 1;
    fs::write(&wide, &bytes).unwrap();
    let error = half().unwrap_err();
    assert!(
        matches!(&error, Error::Damaged { path: found, .. } if *found == wide),
        "{error}"
    );
    assert!(!path.exists());
}

/// Written to after it was opened: noticed. Another file under its name: the open one is as good as
/// before.
#[test]
fn a_change_after_opening_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model");
    let model = small(folder.path(), &target);
    let path = target.join("weights.bin");
    let open = || {
        let weights = model.weights(Precision::Fp32, &target).unwrap();
        weights.verify().unwrap();
        weights
    };
    let bytes = fs::read(&path).unwrap();
    let weights = open();
    // Its permissions, or a second name, are no change.
    fs::hard_link(&path, target.join("second")).unwrap();
    weights.unchanged().unwrap();
    weights.is_in_place().unwrap();
    fs::remove_file(target.join("second")).unwrap();
    let aside = target.join("aside");
    fs::copy(&path, &aside).unwrap();
    fs::rename(&aside, &path).unwrap();
    weights.unchanged().unwrap();
    assert!(matches!(weights.is_in_place(), Err(Error::Changed { .. })));
    let weights = open();
    let mut other = bytes.clone();
    other[0] ^= 1;
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(&path, &other).unwrap();
    assert!(matches!(weights.unchanged(), Err(Error::Changed { .. })));
    // Even if the time is set back.
    fs::write(&path, &bytes).unwrap();
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    let weights = open();
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(&path, &other).unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(time)
        .unwrap();
    assert!(matches!(weights.unchanged(), Err(Error::Changed { .. })));
}

/// There are no fused graphs of blocks that the CUDA kernels do not compute: AMPLIFY's RMS norms.
#[test]
fn a_fused_graph_of_other_blocks_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = support::fixtures().join("amplify/checkpoints/hub");
    let model = export(&source, folder.path(), &ExportOptions::default()).unwrap();
    for precision in [Precision::Fp16, Precision::Fp8] {
        let graph = model.graph(&GraphRequest {
            kind: GraphKind::Fused,
            precision,
            layers: vec![model.architecture().layers()],
            outputs: vec![Output::Mean],
        });
        assert!(matches!(graph, Err(Error::Precision { .. })));
    }
}
