//! Every format and spelling of one checkpoint gives the same weights file, and the weights file
//! holds what it should.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::{
    self, Format, HEADS, HIDDEN, LAYERS, Tensor, Tensors, fair_esm, hub_folder, renamed, shards,
    weights, write_bin, write_config, write_fair_esm, write_legacy, write_safetensors,
    write_torch_archive,
};
use seqembed_onnx::checkpoint::{Checkpoint, Scalar, Settings};
use seqembed_onnx::{Architecture, ExportOptions, Model, export};

fn exported(source: &Path) -> (Model, Vec<u8>) {
    let target = source.with_extension("exported");
    let model = export(source, &target, &ExportOptions::default()).unwrap();
    assert_eq!(Model::open(&target).unwrap().info(), model.info());
    let bytes = fs::read(target.join("weights.bin")).unwrap();
    (model, bytes)
}

#[test]
fn all_formats_give_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tensors = weights();
    let mut sources = Vec::new();
    for format in [Format::F32, Format::F64, Format::F16, Format::Bf16] {
        sources.push(hub_folder(
            &at(&format!("safetensors-{format:?}")),
            &tensors,
            format,
        ));
        let bin = at(&format!("bin-{format:?}"));
        write_config(&bin);
        write_bin(&bin.join("pytorch_model.bin"), &tensors, format);
        sources.push(bin);
        let legacy = at(&format!("legacy-{format:?}"));
        write_config(&legacy);
        write_legacy(&legacy.join("pytorch_model.bin"), &tensors, format);
        sources.push(legacy);
    }
    let prefixed = renamed(&tensors, |name| format!("esm.{name}"));
    sources.push(hub_folder(&at("prefixed"), &prefixed, Format::F32));
    let greek = renamed(&tensors, |name| {
        if name.to_lowercase().contains("norm") {
            name.replace(".weight", ".gamma").replace(".bias", ".beta")
        } else {
            name.to_owned()
        }
    });
    sources.push(hub_folder(&at("gamma-beta"), &greek, Format::F32));
    let mut more = prefixed.clone();
    for name in [
        "esm.embeddings.position_embeddings.weight",
        "esm.embeddings.position_ids",
        "esm.contact_head.regression.weight",
        "lm_head.dense.weight",
        "lm_head.bias",
        "pooler.dense.weight",
    ] {
        let unused = Tensor {
            shape: vec![3],
            values: vec![9.0; 3],
        };
        more.insert(name.to_owned(), unused);
    }
    // 10,000^(-2i/8), as every release of transformers computes them.
    let frequencies = Tensor {
        shape: vec![HIDDEN / HEADS / 2],
        values: vec![1.0, 0.1, 0.01, 0.001],
    };
    // transformers 5 saves one tensor for all blocks, under a name with an asterisk.
    for block in ["0", "*"] {
        more.insert(
            format!("esm.encoder.layer.{block}.attention.self.rotary_embeddings.inv_freq"),
            frequencies.clone(),
        );
    }
    sources.push(hub_folder(&at("unused"), &more, Format::F32));
    // Rounded as the weights are, which are exact in all of these.
    sources.push(hub_folder(&at("unused-f16"), &more, Format::F16));
    sources.push(hub_folder(&at("unused-bf16"), &more, Format::Bf16));
    sources.push(shards(
        &at("sharded-safetensors"),
        &prefixed,
        "model",
        "safetensors",
        |path, shard| write_safetensors(path, shard, Format::F32),
    ));
    sources.push(shards(
        &at("sharded-bin"),
        &tensors,
        "pytorch_model",
        "bin",
        |path, shard| write_bin(path, shard, Format::F32),
    ));
    sources.push(shards(
        &at("sharded-legacy"),
        &tensors,
        "pytorch_model",
        "bin",
        |path, shard| write_legacy(path, shard, Format::F16),
    ));
    let fair = renamed(&tensors, fair_esm);
    write_fair_esm(&at("fair.pt"), &fair, "esm2");
    sources.push(at("fair.pt"));
    // Its own model's state dict, without settings: the heads are told by the frequencies.
    let mut bare = renamed(&fair, |name| name.replace("encoder.sentence_encoder.", ""));
    bare.insert(
        "layers.0.self_attn.rot_emb.inv_freq".to_owned(),
        frequencies,
    );
    write_bin(&at("bare.pt"), &bare, Format::F32);
    sources.push(at("bare.pt"));

    let (first, expected) = exported(&sources[0]);
    let Architecture::Esm2(sizes) = first.architecture() else {
        panic!("no ESM-2: {:?}", first.architecture())
    };
    assert_eq!(
        (sizes.layers, sizes.hidden, sizes.heads),
        (LAYERS, HIDDEN, HEADS)
    );
    let graph = fs::read(first.folder().join("model.onnx")).unwrap();
    for source in &sources[1..] {
        let (model, bytes) = exported(source);
        assert_eq!(bytes, expected, "{}", source.display());
        assert_eq!(
            model.architecture(),
            first.architecture(),
            "{}",
            source.display()
        );
        assert_eq!(model.info().weights_sha256, first.info().weights_sha256);
        assert_eq!(fs::read(model.folder().join("model.onnx")).unwrap(), graph);
    }
}

fn stored(model: &Model, bytes: &[u8], name: &str) -> Vec<f32> {
    let tensor = model
        .info()
        .tensors
        .iter()
        .find(|tensor| tensor.name == name)
        .unwrap();
    assert_eq!(tensor.offset % 4096, 0);
    let begin = usize::try_from(tensor.offset).unwrap();
    let length = usize::try_from(tensor.bytes).unwrap();
    bytes[begin..begin + length]
        .chunks_exact(4)
        .map(|word| f32::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

#[test]
fn embeddings_are_scaled_and_the_value_bias_is_folded() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = weights();
    let (model, bytes) = exported(&hub_folder(
        &folder.path().join("hub"),
        &tensors,
        Format::F32,
    ));
    let of = |name: &str| &tensors[name].values;

    let table = of("embeddings.word_embeddings.weight");
    let embedding = stored(&model, &bytes, "embedding");
    for (index, (value, scaled)) in table.iter().zip(&embedding).enumerate() {
        // <mask> is 32, and token dropout makes its embedding zero.
        let expected = if index / HIDDEN == 32 {
            0.0
        } else {
            value * 0.88
        };
        assert!(
            (scaled - expected).abs() < 1e-7,
            "{index}: {scaled} {expected}"
        );
    }

    let part = |name: &str, kind: &str| of(&format!("encoder.layer.1.attention.{name}.{kind}"));
    let merged: Vec<f32> = ["self.query", "self.key", "self.value"]
        .iter()
        .flat_map(|name| part(name, "weight"))
        .copied()
        .collect();
    assert_eq!(stored(&model, &bytes, "layer.1.qkv.weight"), merged);
    let biases: Vec<f32> = ["self.query", "self.key"]
        .iter()
        .flat_map(|name| part(name, "bias"))
        .copied()
        .collect();
    assert_eq!(stored(&model, &bytes, "layer.1.qk.bias"), biases);
    let weight = part("output.dense", "weight");
    let value_bias = part("self.value", "bias");
    let moved = stored(&model, &bytes, "layer.1.attention_output.bias");
    for (row, value) in moved.iter().enumerate() {
        let product: f32 = (0..HIDDEN)
            .map(|column| weight[row * HIDDEN + column] * value_bias[column])
            .sum();
        let expected = part("output.dense", "bias")[row] + product;
        assert!((value - expected).abs() < 1e-5, "{row}: {value} {expected}");
    }
}

#[test]
fn without_token_dropout_embeddings_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = weights();
    let source = hub_folder(&folder.path().join("hub"), &tensors, Format::F32);
    let mut config = support::config();
    config["token_dropout"] = false.into();
    fs::write(source.join("config.json"), config.to_string()).unwrap();
    let (model, bytes) = exported(&source);
    assert_eq!(
        stored(&model, &bytes, "embedding"),
        tensors["embeddings.word_embeddings.weight"].values
    );
}

#[test]
fn a_tensor_that_shares_its_storage_is_read_from_its_offset() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = weights();
    let whole = folder.path().join("whole");
    write_config(&whole);
    write_bin(&whole.join("pytorch_model.bin"), &tensors, Format::F32);
    let (_, expected) = exported(&whole);

    // All tensors in one storage, one after another.
    let mut pickler = support::Pickler::new();
    pickler.global("collections", "OrderedDict").raw(b")R(");
    let mut all = Vec::new();
    for (name, tensor) in &tensors {
        let strides: Vec<usize> = (0..tensor.shape.len())
            .map(|axis| tensor.shape[axis + 1..].iter().product())
            .collect();
        pickler
            .text(name)
            .tensor("0", "FloatStorage", all.len() / 4, &tensor.shape, &strides);
        all.extend(Format::F32.bytes(&tensor.values));
    }
    let pickle = pickler.raw(b"u").stop();
    let shared = folder.path().join("shared");
    write_config(&shared);
    support::write_archive(
        &shared.join("pytorch_model.bin"),
        &pickle,
        &[("0".to_owned(), all)],
    );
    assert_eq!(exported(&shared).1, expected);
}

/// As weights that were converted from JAX are saved: the transpose of a matrix.
#[test]
fn matrices_may_be_stored_column_after_column() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = weights();
    for format in [Format::F32, Format::Bf16] {
        let rows = folder.path().join(format!("rows-{format:?}"));
        write_config(&rows);
        write_bin(&rows.join("pytorch_model.bin"), &tensors, format);

        let mut pickler = support::Pickler::new();
        pickler.global("collections", "OrderedDict").raw(b")R(");
        let mut entries = Vec::new();
        for (key, (name, tensor)) in tensors.iter().enumerate() {
            let (strides, values) = match tensor.shape[..] {
                [rows, columns] => {
                    let at = |column: usize, row: usize| tensor.values[row * columns + column];
                    let values =
                        (0..columns).flat_map(|column| (0..rows).map(move |row| (column, row)));
                    let values = values.map(|(column, row)| at(column, row)).collect();
                    (vec![1, rows], values)
                }
                _ => (vec![1], tensor.values.clone()),
            };
            let key = key.to_string();
            pickler
                .text(name)
                .tensor(&key, format.storage(), 0, &tensor.shape, &strides);
            entries.push((key, format.bytes(&values)));
        }
        let pickle = pickler.raw(b"u").stop();
        let columns = folder.path().join(format!("columns-{format:?}"));
        write_config(&columns);
        support::write_archive(&columns.join("pytorch_model.bin"), &pickle, &entries);
        assert_eq!(exported(&columns).1, exported(&rows).1);
    }
}

#[test]
fn exporting_twice_writes_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let tensors: Tensors = weights();
    let source = hub_folder(&folder.path().join("hub"), &tensors, Format::F32);
    let read = |target: &Path| {
        export(&source, target, &ExportOptions::default()).unwrap();
        ["seqembed.json", "weights.bin", "model.onnx", "vocab.txt"]
            .map(|name| fs::read(target.join(name)).unwrap())
    };
    assert_eq!(
        read(&folder.path().join("one")),
        read(&folder.path().join("two"))
    );
}

/// The entries of an archive without their folder, in its order.
fn entries(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut zip = zip::ZipArchive::new(fs::File::open(path).unwrap()).unwrap();
    (0..zip.len())
        .map(|index| {
            let mut entry = zip.by_index(index).unwrap();
            let mut data = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut data).unwrap();
            let name = entry.name().unwrap().into_owned();
            (name.split_once('/').unwrap().1.to_owned(), data)
        })
        .collect()
}

/// fair-esm's settings, without the file that they stand in.
fn settings(checkpoint: &Checkpoint) -> &BTreeMap<String, Scalar> {
    match &checkpoint.settings {
        Settings::FairEsm { settings, .. } => settings,
        Settings::HuggingFace { .. } => panic!("no fair-esm file"),
    }
}

/// PyTorch calls the folder in its archive as the file, without its end, and pads by the length of
/// that name.
#[test]
fn a_pytorch_file_may_have_a_name_of_any_length() {
    let folder = tempfile::tempdir().unwrap();
    let original = support::fixtures().join("esm2/checkpoints/esm2_small.pt");
    let entries = entries(&original);
    // What PyTorch wrote, so that what follows is what it would write.
    let path = folder.path().join("again.pt");
    write_torch_archive(&path, "esm2_small", &entries);
    assert!(fs::read(&path).unwrap() == fs::read(&original).unwrap());
    let expected = Checkpoint::open(&original).unwrap();
    for length in 1..=100 {
        write_torch_archive(&path, &"s".repeat(length), &entries);
        let found = Checkpoint::open(&path).unwrap_or_else(|error| panic!("{length}: {error}"));
        assert_eq!(settings(&found), settings(&expected), "{length}");
        assert!(found.shapes().eq(expected.shapes()), "{length}");
    }
    // And of the one that was taken amiss, every weight.
    let path = folder.path().join("sssssssssssssssssssss.pt");
    write_torch_archive(&path, &"s".repeat(21), &entries);
    let (read, from) = (exported(&path).1, folder.path().join("model"));
    export(&original, &from, &ExportOptions::default()).unwrap();
    assert!(read == fs::read(from.join("weights.bin")).unwrap());
}

/// Heads of other people's, beside a base model or within it, are no part of what is embedded.
#[test]
fn heads_and_buffers_of_all_kinds_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    for (family, prefix, beside) in [
        // Without a prefix, what is clearly a head.
        (
            "dna/dnabert-3-plain",
            "",
            [
                "my_head.weight",
                "fc.weight",
                "linear2.weight",
                "mlp.0.weight",
                "proj.weight",
            ],
        ),
        (
            "esm2/widths/head16-f16",
            "",
            [
                "esm.pooler.dense.weight",
                "esm.embeddings.position_embeddings.weight",
                "classifier.out_proj.weight",
                "mlm_head.weight",
                "regression_of_mine.0.weight",
            ],
        ),
        (
            "dna/dnabert-3-plain",
            "bert.",
            [
                "bert.embeddings.position_ids",
                "cls.predictions.decoder.bias",
                "cls.seq_relationship.weight",
                "qa_outputs.weight",
                "rnn.weight_ih_l0",
            ],
        ),
        (
            "dna/dnabert-s",
            "bert.",
            [
                "bert.embeddings.position_ids",
                "bert.pooler.dense.extra",
                "cls.predictions.bias",
                "score.weight",
                "contrast_head.0.weight",
            ],
        ),
    ] {
        let from = support::fixtures().join(family);
        let plain = folder.path().join("plain");
        export(&from, &plain, &ExportOptions::default()).unwrap();
        let mut tensors = renamed(&support::fixture(family), |name| format!("{prefix}{name}"));
        for name in beside {
            let tensor = Tensor {
                shape: vec![3],
                values: vec![9.0; 3],
            };
            tensors.insert(name.to_owned(), tensor);
        }
        let more = folder.path().join("more");
        fs::create_dir(&more).unwrap();
        for file in ["config.json", "vocab.txt", "tokenizer.json"] {
            let _ = fs::copy(from.join(file), more.join(file));
        }
        write_safetensors(&more.join("model.safetensors"), &tensors, Format::F32);
        assert!(
            exported(&more).1 == fs::read(plain.join("weights.bin")).unwrap(),
            "{family}"
        );
        for folder in [&plain, &more, &more.with_extension("exported")] {
            fs::remove_dir_all(folder).unwrap();
        }
    }
}
