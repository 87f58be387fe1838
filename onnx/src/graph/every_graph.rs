//! Graphs of every kind and precision, of all known models and of models with other sizes and
//! settings: what a graph refers to is there, and a kind that the sizes say is there can be built.

use std::collections::HashSet;
use std::path::PathBuf;

use prost::Message;
use serde_json::{Value, json};

use super::proto::{ModelProto, ValueInfoProto};
use super::request::{GraphKind, GraphRequest, Output, Precision};
use crate::families::Architecture;
use crate::families::catalog::known_models;
use crate::families::sizes::FusedFormats;
use crate::model::{GRAPH_VERSION, Model, ModelInfo, Source, Tokenizer};
use crate::weights::table::{Storage, place};

const KINDS: [GraphKind; 4] = [
    GraphKind::Padded,
    GraphKind::Packed,
    GraphKind::Fused,
    GraphKind::OrtCuda,
];

/// What is asked of models with two layers.
const LAYERS: [&[usize]; 4] = [&[0], &[1], &[2], &[0, 1, 2]];

/// A model without a folder.
fn model(architecture: Architecture) -> Model {
    let tensors = place(&architecture.family().plan());
    let info = ModelInfo {
        name: "made up".to_owned(),
        weights_sha256: String::new(),
        graph_version: GRAPH_VERSION,
        precision: Precision::Fp32,
        source: Source {
            format: "random".to_owned(),
            files: Vec::new(),
        },
        random_seed: Some(0),
        tokenizer: Tokenizer {
            kind: architecture.family().tokenizer(),
            files: Vec::new(),
        },
        max_residues: None,
        weights_blake3: None,
        files: std::collections::BTreeMap::new(),
        tensors,
        head: None,
        check: None,
        architecture,
    };
    Model::new(PathBuf::new(), info)
}

/// Two blocks of a known model, and the same with other sizes and settings, where such a model can
/// be.
fn variants(known: &Architecture) -> Vec<Architecture> {
    let mut small = serde_json::to_value(known).expect("it is plain data");
    small["layers"] = json!(2);
    let hidden = small["hidden"].as_u64().expect("all have a width");
    let mut all = vec![small.clone()];
    let mut with = |key: &str, value: Value| {
        let mut other = small.clone();
        other[key] = value;
        all.push(other);
    };
    for width in [1, 2, 4, 8, 12, 16, 24, 32, 40, 64, 80, 128, 256, 512] {
        if hidden.is_multiple_of(width) {
            with("heads", json!(hidden / width));
        }
    }
    for intermediate in [2, 100, 512, 576, 1000] {
        with("intermediate", json!(intermediate));
    }
    for (key, value) in small.as_object().expect("it has fields") {
        if let Value::Bool(flag) = value {
            with(key, json!(!flag));
        }
        if key == "rotary_base" {
            with(key, json!(500.0));
            with(key, Value::Null);
        }
    }
    let known = all
        .into_iter()
        .filter_map(|json| serde_json::from_value::<Architecture>(json).ok());
    known
        .filter(|architecture| architecture.family().validate().is_ok())
        .collect()
}

/// All inputs of nodes are there before them, and all weights lie in the file.
fn check(model: &Model, request: &GraphRequest, bytes: &[u8], what: &str) {
    let graph = ModelProto::decode(bytes).expect("it is a graph").graph;
    let graph = graph.expect("it has nodes");
    let table = model.tensors(Storage::of(request.kind, request.precision));
    let end = table.last().map_or(0, |last| last.offset + last.bytes);
    let mut known: HashSet<&str> = HashSet::from([""]);
    known.extend(graph.input.iter().map(ValueInfoProto::name));
    for tensor in &graph.initializer {
        known.insert(tensor.name());
        let number = |key: &str| {
            let entry = tensor.external_data.iter().find(|entry| entry.key() == key);
            entry.map_or(0, |entry| entry.value().parse().expect("a number"))
        };
        let reach: u64 = number("offset") + number("length");
        assert!(reach <= end, "{what}: {}", tensor.name());
    }
    for node in &graph.node {
        for input in &node.input {
            let is_there = known.contains(input.as_str());
            assert!(is_there, "{what}: {} of {}", input, node.name());
        }
        known.extend(node.output.iter().map(String::as_str));
    }
    for output in &graph.output {
        assert!(known.contains(output.name()), "{what}: {}", output.name());
    }
}

#[test]
fn every_kind_that_the_sizes_have_can_be_built() {
    let mut built = 0;
    let mut seen = HashSet::new();
    for known in known_models() {
        for architecture in variants(&known.architecture) {
            if !seen.insert(architecture.blake3()) {
                continue;
            }
            let model = model(architecture);
            let sizes = model.architecture().sizes();
            for (kind, precision, layers) in KINDS
                .into_iter()
                .flat_map(|kind| Precision::ALL.map(|precision| (kind, precision)))
                .flat_map(|(kind, precision)| LAYERS.map(|layers| (kind, precision, layers)))
            {
                let request = GraphRequest {
                    kind,
                    precision,
                    layers: layers.to_vec(),
                    outputs: vec![Output::Mean, Output::Max, Output::Tokens],
                };
                let is = kind.has(precision)
                    && (kind != GraphKind::Fused || sizes.fused != FusedFormats::None);
                let what = format!(
                    "{} {:?} {kind:?} {precision} {layers:?}",
                    known.name,
                    model.architecture()
                );
                match model.graph(&request) {
                    Ok(bytes) => check(&model, &request, &bytes, &what),
                    Err(error) => {
                        assert!(!is, "{what}: {error}");
                        continue;
                    }
                }
                assert!(is, "{what}: it was built");
                built += 1;
            }
        }
    }
    assert!(built > 5000, "{built}");
}
