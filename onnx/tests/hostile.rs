//! Damaged and hostile checkpoints: each gives an error that names the file and what is wrong, and leaves no target.

#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use std::fs;
use std::path::Path;

use seqembed_onnx::{ExportOptions, export};
use support::{
    Format, Pickler, Tensor, fair_esm, hub_folder, renamed, shards, weights, write_archive,
    write_bin, write_config, write_fair_esm, write_raw_safetensors,
};

/// The error's text, once it is sure that nothing was left behind.
fn refused(source: &Path) -> String {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model");
    let error = export(source, &target, &ExportOptions::default()).unwrap_err();
    assert!(error.is_input(), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    error.to_string()
}

fn assert_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn refused_pickle(pickle: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    write_archive(&path, pickle, &[]);
    refused(&path)
}

#[test]
fn a_pickle_that_calls_is_refused_by_name() {
    let mut marker = std::env::temp_dir();
    marker.push(format!("seqembed-hostile-{}", std::process::id()));
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("torch.storage", "_load_from_bytes"),
        ("argparse", "ArgumentParser"),
    ] {
        let pickle = Pickler::new()
            .global(module, name)
            .raw(b"(")
            .text(&format!("touch {}", marker.display()))
            .raw(b"tR")
            .stop();
        assert_all(
            &refused_pickle(&pickle),
            &["model.pt", &format!("{module}.{name}")],
        );
        // The same by STACK_GLOBAL.
        let pickle = Pickler::new().text(module).text(name).raw(b"\x93)R").stop();
        assert_all(
            &refused_pickle(&pickle),
            &["model.pt", &format!("{module}.{name}")],
        );
    }
    assert!(!marker.exists());
}

#[test]
fn unknown_opcodes_are_named() {
    for (opcode, named) in [
        (b'i', "0x69"),
        (b'o', "0x6f"),
        (b'P', "0x50"),
        (0x82, "0x82"),
        (0xff, "0xff"),
    ] {
        let pickle = Pickler::new().raw(&[opcode]).stop();
        assert_all(
            &refused_pickle(&pickle),
            &["model.pt", "opcode", named, "byte 2"],
        );
    }
}

#[test]
fn nonsense_pickles_are_damaged_not_fatal() {
    let texts: [&[u8]; 16] = [
        b".", b"0.", b"u.", b"(0.", b"s.", b")s.", b"R.", b"NNR.", b"h\x05.", b"}Na.", b"]NNs.",
        b"}(Nu.", b"NQ.", b"b.", b"Nb.", b"\x87.",
    ];
    for text in texts {
        let pickle = Pickler::new().raw(text).bytes.clone();
        assert_all(&refused_pickle(&pickle), &["model.pt", "damaged at byte"]);
    }
    for text in [
        b"X\xff\xff\xff\xff".as_slice(),
        b"J\x01",
        b"cos",
        b"\x8b\xff\xff\xff\x7f",
        b"",
        b"(",
    ] {
        let pickle = Pickler::new().raw(text).bytes.clone();
        assert_all(&refused_pickle(&pickle), &["model.pt", "truncated"]);
    }
}

#[test]
fn deep_and_cyclic_pickles_end() {
    // A million tuples inside each other, a list that holds itself, and a memo slot of four billion.
    let mut deep = Pickler::new();
    deep.raw(b")");
    for _ in 0..1_000_000 {
        deep.raw(b"\x85");
    }
    assert_all(&refused_pickle(&deep.stop()), &["no named tensors"]);
    let cyclic = Pickler::new()
        .raw(b"]r\xff\xff\xff\xffj\xff\xff\xff\xffa")
        .stop();
    assert_all(&refused_pickle(&cyclic), &["no named tensors"]);
}

#[test]
fn every_truncation_of_a_pickle_is_an_error() {
    let pickle = Pickler::new().state_dict(&weights(), Format::F32).stop();
    for length in (0..pickle.len()).step_by(97) {
        let text = refused_pickle(&pickle[..length]);
        assert_all(&text, &["model.pt"]);
    }
}

#[test]
fn tensors_that_do_not_fit_their_entry_are_named() {
    let cases: [(&[usize], &[usize], usize, &str); 5] = [
        (&[4, 4], &[4, 1], 1, "does not fit"),
        (&[1 << 30, 1 << 30], &[1 << 30, 1], 0, "does not fit"),
        (&[4, 4], &[1, 4], 0, "contiguous"),
        (&[4, 4], &[0, 0], 0, "contiguous"),
        (&[4; 9], &[1; 9], 0, "make no sense"),
    ];
    for (shape, strides, offset, why) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.pt");
        let pickle = Pickler::new()
            .raw(b"}")
            .text("tensor.a")
            .tensor("0", "FloatStorage", offset, shape, strides)
            .raw(b"s")
            .stop();
        write_archive(&path, &pickle, &[("0".to_owned(), vec![0; 64])]);
        assert_all(&refused(&path), &["model.pt", why]);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let pickle = Pickler::new()
        .raw(b"}")
        .text("tensor.a")
        .tensor("../../etc/passwd", "FloatStorage", 0, &[1], &[1])
        .raw(b"s")
        .stop();
    write_archive(&path, &pickle, &[]);
    assert_all(
        &refused(&path),
        &["tensor.a", "which the archive does not have"],
    );
}

#[test]
fn old_and_other_files_say_what_helps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let mut old = vec![
        0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.',
    ];
    old.extend([0; 100]);
    fs::write(&path, old).unwrap();
    assert_all(
        &refused(&path),
        &["model.pt", "1.6", "torch.save", "safetensors"],
    );
    for bytes in [
        b"".as_slice(),
        b"<html>404</html>",
        b"version https://git-lfs",
    ] {
        fs::write(&path, bytes).unwrap();
        assert_all(&refused(&path), &["model.pt", "no PyTorch file"]);
    }
    assert_all(&refused(folder.path()), &["config.json", "fair-esm"]);
    write_config(folder.path());
    assert_all(
        &refused(folder.path()),
        &["neither model.safetensors nor pytorch_model.bin"],
    );
    assert_all(&refused(&folder.path().join("nowhere")), &["nowhere"]);
}

#[test]
fn truncated_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let source = hub_folder(&folder.path().join("hub"), &weights(), Format::F32);
    let path = source.join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1000]).unwrap();
    assert_all(
        &refused(&source),
        &["model.safetensors", "truncated", "encoder.layer.1"],
    );
    fs::write(&path, &whole[..20]).unwrap();
    assert_all(&refused(&source), &["model.safetensors", "does not fit"]);
    fs::write(&path, &whole[..4]).unwrap();
    assert_all(&refused(&source), &["model.safetensors", "too few"]);
    let mut longer = whole;
    longer.push(0);
    fs::write(&path, &longer).unwrap();
    assert_all(&refused(&source), &["model.safetensors", "end at byte"]);

    let source = folder.path().join("bin");
    write_config(&source);
    let path = source.join("pytorch_model.bin");
    write_bin(&path, &weights(), Format::F32);
    let whole = fs::read(&path).unwrap();
    for length in [whole.len() - 1, whole.len() / 2, 100] {
        fs::write(&path, &whole[..length]).unwrap();
        assert_all(&refused(&source), &["pytorch_model.bin", "truncated"]);
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("hub");
    write_config(&source);
    let path = source.join("model.safetensors");
    for header in [
        r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,8]}}"#,
        r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
        "{",
        "[]",
    ] {
        write_raw_safetensors(&path, header, &[0; 8]);
        assert_all(
            &refused(&source),
            &["model.safetensors", "not a sound safetensors file"],
        );
    }
    // A length beyond the file.
    let mut file = u64::MAX.to_le_bytes().to_vec();
    file.extend([b'{'; 100]);
    fs::write(&path, file).unwrap();
    assert_all(&refused(&source), &["model.safetensors", "does not fit"]);
}

#[test]
fn weights_that_do_not_fit_the_configuration_are_named_with_both_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let name = "encoder.layer.1.intermediate.dense.weight";

    let mut tensors = weights();
    tensors.get_mut(name).unwrap().shape = vec![16, 64];
    let source = hub_folder(&at("shape"), &tensors, Format::F32);
    assert_all(
        &refused(&source),
        &["model.safetensors", name, "[16, 64]", "[64, 16]"],
    );

    let mut tensors = weights();
    tensors.remove(name);
    let source = hub_folder(&at("missing"), &tensors, Format::F32);
    assert_all(&refused(&source), &[name, "no tensor"]);

    let source = hub_folder(&at("layers"), &weights(), Format::F32);
    let mut config = support::config();
    config["num_hidden_layers"] = 1.into();
    fs::write(source.join("config.json"), config.to_string()).unwrap();
    assert_all(&refused(&source), &["1 layers", "have 2"]);

    let mut tensors = weights();
    let twice = tensors[name].clone();
    tensors.insert(format!("esm.{name}"), twice);
    let source = hub_folder(&at("twice"), &tensors, Format::F32);
    assert_all(&refused(&source), &[name, "two spellings"]);

    let header = serde_json::json!({"embeddings.word_embeddings.weight":
        {"dtype": "I32", "shape": [33, 16], "data_offsets": [0, 33 * 16 * 4]}});
    let source = at("integers");
    write_config(&source);
    write_raw_safetensors(
        &source.join("model.safetensors"),
        &header.to_string(),
        &[0; 33 * 16 * 4],
    );
    assert_all(
        &refused(&source),
        &["embeddings.word_embeddings.weight", "I32"],
    );
}

#[test]
fn configurations_of_other_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = hub_folder(&folder.path().join("hub"), &weights(), Format::F32);
    for (key, value, part) in [
        ("model_type", serde_json::json!("t5"), "t5"),
        (
            "position_embedding_type",
            serde_json::json!("absolute"),
            "absolute",
        ),
        ("num_attention_heads", serde_json::json!(0), "heads"),
        ("num_attention_heads", serde_json::json!(3), "3 heads"),
        ("hidden_size", serde_json::json!(-16), "hidden_size"),
        (
            "num_hidden_layers",
            serde_json::json!(1_000_000_000),
            "layers",
        ),
        ("layer_norm_eps", serde_json::json!(-1.0), "layer_norm_eps"),
    ] {
        let mut config = support::config();
        config[key] = value;
        fs::write(source.join("config.json"), config.to_string()).unwrap();
        assert_all(&refused(&source), &["config.json", part]);
    }
    fs::write(source.join("config.json"), "{").unwrap();
    assert_all(&refused(&source), &["config.json", "line 1"]);

    fs::write(source.join("config.json"), support::config().to_string()).unwrap();
    fs::write(source.join("vocab.txt"), "<cls>\n<pad>\n").unwrap();
    assert_all(&refused(&source), &["vocab.txt", "2 tokens", "33"]);

    let path = folder.path().join("esm1b.pt");
    write_fair_esm(&path, &renamed(&weights(), fair_esm), "roberta_large");
    assert_all(&refused(&path), &["esm1b.pt", "roberta_large"]);
    let mut positions = renamed(&weights(), fair_esm);
    positions.insert(
        "encoder.sentence_encoder.embed_positions.weight".to_owned(),
        Tensor {
            shape: vec![2],
            values: vec![0.0; 2],
        },
    );
    write_bin(&path, &positions, Format::F32);
    assert_all(&refused(&path), &["esm1b.pt", "learned positions"]);
    write_bin(&path, &renamed(&weights(), fair_esm), Format::F32);
    assert_all(&refused(&path), &["esm1b.pt", "number of heads"]);
}

#[test]
fn a_shard_that_lacks_what_the_index_promises_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let source = shards(
        &folder.path().join("hub"),
        &weights(),
        "pytorch_model",
        "bin",
        |path, shard| write_bin(path, shard, Format::F32),
    );
    let index = source.join("pytorch_model.bin.index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::remove_file(source.join("pytorch_model-00002-of-00002.bin")).unwrap();
    assert_all(&refused(&source), &["pytorch_model-00002-of-00002.bin"]);
    fs::write(&index, text.replace("00002-of", "00001-of")).unwrap();
    assert_all(&refused(&source), &["index.json", "where it is not"]);
    fs::write(&index, r#"{"weight_map": {"a": "../../secret.bin"}}"#).unwrap();
    assert_all(
        &refused(&source),
        &["secret.bin", "not a file of this folder"],
    );
}

#[test]
fn a_changed_byte_never_panics() {
    let whole = Pickler::new().state_dict(&weights(), Format::F32).stop();
    let mut read = 0;
    for at in 0..whole.len() {
        for change in [0x01, 0x10, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] ^= change;
            // An error or another value: what matters is that it ends, without a panic.
            read += usize::from(seqembed_onnx::checkpoint::pickle::read(&changed).is_ok());
        }
    }
    // A changed letter of a name still reads, a changed opcode does not.
    assert!(read > 0 && read < 4 * whole.len());
}
