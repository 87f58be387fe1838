//! Damaged and hostile checkpoints: each gives an error that names the file and what is wrong, and
//! leaves no target.

use std::fs;
use std::path::Path;

use crate::support::{
    self, Format, Pickler, Tensor, Tensors, fair_esm, hub_folder, renamed, shards, weights,
    write_archive, write_bin, write_config, write_fair_esm, write_raw_safetensors,
};
use seqembed_onnx::{ExportOptions, Family, Model, TokenizerKind, export};

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
    // A million tuples inside each other, a list that holds itself, and a memo slot of four
    // billion.
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
    let cases: [(&[usize], &[usize], usize, &str); 9] = [
        (&[4, 4], &[4, 1], 1, "does not fit"),
        (&[4, 4], &[1, 4], 1, "does not fit"),
        (&[1 << 30, 1 << 30], &[1 << 30, 1], 0, "does not fit"),
        (&[1 << 30, 1 << 30], &[1, 1 << 30], 0, "does not fit"),
        (&[4, 4], &[1, 5], 0, "contiguous"),
        (&[2, 4], &[1, 4], 0, "contiguous"),
        (&[2, 2, 2], &[1, 2, 4], 0, "contiguous"),
        (&[4, 4], &[0, 0], 0, "contiguous"),
        (&[4; 9], &[1; 9], 0, "are invalid"),
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
        &["tensor.a", "which is not in the archive"],
    );
}

#[test]
fn other_files_say_what_helps() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    for bytes in [b"".as_slice(), b"<html>404</html>"] {
        fs::write(&path, bytes).unwrap();
        assert_all(&refused(&path), &["model.pt", "not a PyTorch file"]);
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
            &["model.safetensors", "not a valid safetensors file"],
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
    assert_all(&refused(&source), &[name, "two names for the same weight"]);

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
        ("model_type", serde_json::json!("mt5"), "mt5"),
        (
            "position_embedding_type",
            serde_json::json!("relative_key"),
            "relative_key",
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

    let path = folder.path().join("esm1.pt");
    write_fair_esm(&path, &renamed(&weights(), fair_esm), "protein_bert_base");
    assert_all(&refused(&path), &["esm1.pt", "protein_bert_base"]);
    // ESM-1b has positions, which these weights lack.
    write_fair_esm(&path, &renamed(&weights(), fair_esm), "roberta_large");
    assert_all(&refused(&path), &["esm1.pt", "position_embeddings"]);
    let mut positions = renamed(&weights(), fair_esm);
    positions.insert(
        "encoder.sentence_encoder.embed_positions.weight".to_owned(),
        Tensor {
            shape: vec![2],
            values: vec![0.0; 2],
        },
    );
    write_bin(&path, &positions, Format::F32);
    assert_all(&refused(&path), &["esm1.pt", "learned positions"]);
    write_bin(&path, &renamed(&weights(), fair_esm), Format::F32);
    assert_all(&refused(&path), &["esm1.pt", "number of heads"]);
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
    assert_all(
        &refused(&source),
        &["index.json", "but that file does not have it"],
    );
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

/// What `git lfs` leaves where it was not told to bring the file.
const LFS_POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 31381482\n";

#[test]
fn git_lfs_pointers_are_told_from_damage() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let assert_pointer = |text: &str, file: &str| {
        assert_all(text, &[file, "Git LFS pointer", "git lfs pull"]);
    };
    fs::write(at("model.pt"), LFS_POINTER).unwrap();
    assert_pointer(&refused(&at("model.pt")), "model.pt");

    let make = |name: &str, stem: &str, extension: &str| {
        let source = at(name);
        match (stem, extension) {
            ("", "safetensors") => hub_folder(&source, &weights(), Format::F32),
            ("", _) => {
                write_config(&source);
                write_bin(&source.join("pytorch_model.bin"), &weights(), Format::F32);
                source
            }
            _ => shards(&source, &weights(), stem, extension, |path, shard| {
                if extension == "bin" {
                    write_bin(path, shard, Format::F32);
                } else {
                    support::write_safetensors(path, shard, Format::F32);
                }
            }),
        }
    };
    for (number, (stem, extension, file)) in [
        ("", "safetensors", "model.safetensors"),
        ("", "safetensors", "config.json"),
        ("", "safetensors", "vocab.txt"),
        ("", "bin", "pytorch_model.bin"),
        ("model", "safetensors", "model.safetensors.index.json"),
        ("model", "safetensors", "model-00002-of-00002.safetensors"),
        ("pytorch_model", "bin", "pytorch_model-00001-of-00002.bin"),
    ]
    .into_iter()
    .enumerate()
    {
        let source = make(&number.to_string(), stem, extension);
        fs::write(source.join(file), LFS_POINTER).unwrap();
        assert_pointer(&refused(&source), file);
    }
    // A model of DNA, whose vocabulary is another file, and what was exported before it was put
    // under Git LFS.
    let source = copied("dna/dnabert-s", &at("dna"));
    fs::write(source.join("tokenizer.json"), LFS_POINTER).unwrap();
    assert_pointer(&refused(&source), "tokenizer.json");
    for file in ["seqembed.json", "weights.bin"] {
        let target = at("exported");
        let source = make("plain", "", "safetensors");
        let options = ExportOptions {
            force: true,
            ..ExportOptions::default()
        };
        export(&source, &target, &options).unwrap();
        fs::write(target.join(file), LFS_POINTER).unwrap();
        assert_pointer(&Model::open(&target).unwrap_err().to_string(), file);
        fs::remove_dir_all(&target).unwrap();
    }
}

/// A copy of a fixture's small files, without weights.
fn copied(fixture: &str, to: &Path) -> std::path::PathBuf {
    fs::create_dir_all(to).unwrap();
    for file in [
        "config.json",
        "vocab.txt",
        "tokenizer.json",
        "model.safetensors",
    ] {
        let _ = fs::copy(support::fixtures().join(fixture).join(file), to.join(file));
    }
    to.to_path_buf()
}

/// What fine-tuning and compression leave in a checkpoint: below a module of the encoder or beside
/// it, and what is said of it. `{}` is a dense layer of the encoder.
const LEFTOVERS: [(&str, &str); 24] = [
    ("{}.lora_A.default.weight", "merge_and_unload()"),
    ("{}.lora_embedding_A", "merge_and_unload()"),
    ("{}.base_layer.weight", "merge_and_unload()"),
    (
        "{}.lora_magnitude_vector.default.weight",
        "merge_and_unload()",
    ),
    ("{}.ia3_l", "merge_and_unload()"),
    ("embeddings.prompt_embeddings.weight", "learned prompts"),
    ("prompt_embeddings.weight", "learned prompts"),
    ("prompt_encoder.default.embedding.weight", "learned prompts"),
    ("prefix_encoder.embedding.weight", "learned prompts"),
    (
        "encoder.layer.1.output.adapter.down.weight",
        "adapter layers",
    ),
    (
        "encoder.layer.0.adapters.mine.adapter_up.weight",
        "adapter layers",
    ),
    ("{}.qweight", "quantised"),
    ("{}.weight_scale", "quantised"),
    ("{}.SCB", "quantised"),
    ("{}.weight.quant_state.bitsandbytes__nf4", "quantised"),
    ("{}.weight_g", "remove_weight_norm"),
    (
        "{}.parametrizations.weight.original0",
        "remove_parametrizations",
    ),
    ("{}.weight_mask", "prune.remove"),
    (
        "encoder.layer.0.crossattention.self.query.weight",
        "decoder",
    ),
    (
        "encoder.layer.0.attention.self.distance_embedding.weight",
        "variant",
    ),
    ("encoder.layer.1.pre_attention_ln.weight", "variant"),
    ("encoder.layer.x.output.dense.weight", "variant"),
    ("embeddings.extra.weight", "variant"),
    ("encoder.norm.weight", "variant"),
];

fn assert_leftovers(source: &Path, names: &[&str], help: &str) {
    let text = refused(source);
    let count = format!("does not use {} of the encoder's tensors", names.len());
    assert_all(&text, &[&count, help]);
    assert_all(&text, names);
}

#[test]
fn weights_that_the_graph_has_no_place_for_are_refused_in_every_family_and_format() {
    let folder = tempfile::tempdir().unwrap();
    let tensor = || Tensor {
        shape: vec![2],
        values: vec![1.0; 2],
    };
    for (family, prefix, dense) in [
        (
            "esm2/checkpoints/hub-safetensors",
            "esm.",
            "attention.self.query",
        ),
        ("dna/dnabert-3-plain", "bert.", "intermediate.dense"),
        ("dna/dnabert-s", "bert.", "mlp.wo"),
        (
            "nt/checkpoints/v2-safetensors",
            "esm.",
            "attention.self.query",
        ),
        ("nt/checkpoints/v1-saved", "esm.", "intermediate.dense"),
    ] {
        let whole = support::fixture(family);
        let whole = renamed(&whole, |name| {
            name.strip_prefix(prefix).unwrap_or(name).to_owned()
        });
        let source = copied(family, &folder.path().join(family));
        let (safetensors, bin) = (
            source.join("model.safetensors"),
            source.join("pytorch_model.bin"),
        );
        for (number, (name, help)) in LEFTOVERS.into_iter().enumerate() {
            let name = name.replace("{}", &format!("encoder.layer.1.{dense}"));
            let feeds = name.starts_with("prompt") || name.starts_with("prefix");
            // As a model of its own, and as a part of a larger one.
            let prefix = if number % 2 == 0 { prefix } else { "" };
            let mut tensors = renamed(&whole, |name| format!("{prefix}{name}"));
            let [one, two] = ["", "2"].map(|end| {
                let prefix = if feeds { "" } else { prefix };
                format!("{prefix}{name}{end}")
            });
            tensors.insert(one.clone(), tensor());
            let _ = fs::remove_file(&safetensors);
            let _ = fs::remove_file(&bin);
            if number % 3 == 0 {
                write_bin(&bin, &tensors, Format::F32);
            } else {
                support::write_safetensors(&safetensors, &tensors, Format::F32);
            }
            assert_leftovers(&source, &[&one], help);
            if help == "variant" {
                tensors.insert(two.clone(), tensor());
                support::write_safetensors(&safetensors, &tensors, Format::F32);
                assert_leftovers(&source, &[&one, &two], help);
            }
        }
    }
    // fair-esm's own spelling.
    let path = folder.path().join("tuned.pt");
    for (name, help) in [
        (
            "layers.0.self_attn.q_proj.lora_A.weight",
            "merge_and_unload()",
        ),
        ("layers.0.self_attn.bias_k", "variant"),
        ("layers.1.adapter.down.bias", "adapter layers"),
        ("embed_positions.extra", "variant"),
    ] {
        for prefix in ["encoder.sentence_encoder.", ""] {
            let mut tensors: Tensors = renamed(&weights(), |name| {
                fair_esm(name).replace("encoder.sentence_encoder.", prefix)
            });
            let name = format!("{prefix}{name}");
            tensors.insert(name.clone(), tensor());
            write_fair_esm(&path, &tensors, "esm2");
            assert_leftovers(&path, &[&name], help);
        }
    }
}

/// Of families whose tensors have names of their own, too.
#[test]
fn adapters_in_the_spelling_of_a_family_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (family, name, help) in [
        (
            "amplify/checkpoints/hub",
            "transformer_encoder.1.q.lora_A.default.weight",
            "merge_and_unload()",
        ),
        (
            "amplify/checkpoints/hub",
            "transformer_encoder.0.adapter.down.weight",
            "adapter layers",
        ),
        (
            "amplify/checkpoints/hub",
            "transformer_encoder.0.q.bias",
            "variant",
        ),
        (
            "t5/checkpoints/prostt5",
            "encoder.block.1.layer.0.SelfAttention.q.lora_A.default.weight",
            "merge_and_unload()",
        ),
        (
            "t5/checkpoints/prostt5",
            "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
            "variant",
        ),
        (
            "bert/igbert",
            "encoder.layer.0.attention.self.query.lora_A.default.weight",
            "merge_and_unload()",
        ),
    ] {
        let source = copied(family, &folder.path().join(family));
        let mut tensors = support::fixture(family);
        let tensor = Tensor {
            shape: vec![2],
            values: vec![1.0; 2],
        };
        tensors.insert(name.to_owned(), tensor);
        support::write_safetensors(&source.join("model.safetensors"), &tensors, Format::F16);
        assert_leftovers(&source, &[name], help);
    }
}

/// T5's table of words may be there under both of its names, with the same values.
#[test]
fn a_table_under_two_names_has_the_same_values_under_both() {
    let folder = tempfile::tempdir().unwrap();
    let source = copied("t5/checkpoints/prostt5", &folder.path().join("t5"));
    let mut tensors = support::fixture("t5/checkpoints/prostt5");
    let shared = &tensors["shared.weight"];
    let (shape, values) = (shared.shape.clone(), shared.values.clone());
    for (at, other) in [(None, "same"), (Some(7), "other")] {
        let mut values = values.clone();
        if let Some(at) = at {
            values[at] += 1.0;
        }
        let shape = shape.clone();
        tensors.insert(
            "encoder.embed_tokens.weight".to_owned(),
            Tensor { shape, values },
        );
        support::write_safetensors(&source.join("model.safetensors"), &tensors, Format::F16);
        let target = folder.path().join(other);
        match export(&source, &target, &ExportOptions::default()) {
            Ok(_) => assert_eq!(at, None),
            Err(error) => {
                let message = error.to_string();
                assert!(
                    at.is_some() && message.contains("shared.weight"),
                    "{message}"
                );
                assert!(message.contains("encoder.embed_tokens.weight"), "{message}");
            }
        }
    }
}

/// The encoder's own names have the prefix; what makes its input is a module of its own, without
/// one.
#[test]
fn what_feeds_the_encoder_from_beside_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (family, prefix) in [
        ("esm2/checkpoints/hub-safetensors", "esm."),
        ("dna/dnabert-3-plain", "bert."),
        ("dna/dnabert-s", "bert."),
        ("nt/checkpoints/v2-safetensors", "esm."),
    ] {
        let whole = support::fixture(family);
        let bare = |name: &str| name.strip_prefix(prefix).unwrap_or(name).to_owned();
        let source = copied(family, &folder.path().join(family));
        let refused_with = |prefix: &str, name: &str, words: &[&str]| {
            let mut tensors = renamed(&whole, |name| format!("{prefix}{}", bare(name)));
            let tensor = Tensor {
                shape: vec![2],
                values: vec![1.0; 2],
            };
            tensors.insert(name.to_owned(), tensor);
            support::write_safetensors(&source.join("model.safetensors"), &tensors, Format::F32);
            let text = refused(&source);
            assert_all(&text, &[name, "does not use 1 of"]);
            assert_all(&text, words);
        };
        for (name, help) in [
            ("soft_prompts.weight", "learned prompts"),
            ("prefix_tokens", "learned prompts"),
            ("prompt.weight", "learned prompts"),
            ("prompts", "learned prompts"),
            ("lora.layer1.A", "merge_and_unload()"),
            ("blocks.0.lora_A", "merge_and_unload()"),
            ("adapter_layers.0.down.weight", "adapter layers"),
            ("input_proj.weight", "the input of the encoder"),
            ("embed_project.weight", "the input of the encoder"),
            ("cls_token", "the input of the encoder"),
        ] {
            refused_with(prefix, name, &[help]);
        }
        // Without a prefix, a name that says nothing may be a part of the encoder.
        for name in ["my_module.weight", "norm.bias"] {
            refused_with(
                "",
                name,
                &["not part of the encoder", "save_pretrained(FOLDER)"],
            );
        }
    }
}

#[test]
fn a_model_within_another_says_how_to_get_it_out() {
    let folder = tempfile::tempdir().unwrap();
    for (number, (prefix, help)) in [
        ("base_model.model.esm.", "merge_and_unload()"),
        ("module.esm.", "module."),
        ("model.", "the state dict of the inner model"),
    ]
    .into_iter()
    .enumerate()
    {
        let tensors = renamed(&weights(), |name| format!("{prefix}{name}"));
        let source = hub_folder(
            &folder.path().join(number.to_string()),
            &tensors,
            Format::F32,
        );
        assert_all(&refused(&source), &[help, prefix]);
    }
}

#[test]
fn an_adapters_folder_says_how_to_merge_it() {
    let folder = tempfile::tempdir().unwrap();
    let bare = folder.path().join("bare");
    fs::create_dir(&bare).unwrap();
    let beside = hub_folder(&folder.path().join("beside"), &weights(), Format::F32);
    for source in [bare, beside] {
        fs::write(
            source.join("adapter_config.json"),
            "{\"peft_type\": \"LORA\"}",
        )
        .unwrap();
        let text = refused(&source);
        assert_all(
            &text,
            &[
                "adapter_config.json",
                "merge_and_unload()",
                "save_pretrained",
            ],
        );
    }
}

#[test]
fn settings_that_change_what_a_model_computes_are_refused_by_name() {
    use serde_json::json;
    let folder = tempfile::tempdir().unwrap();
    let every = [
        ("hidden_act", json!("relu")),
        ("hidden_act", json!("gelu_new")),
        ("is_decoder", json!(true)),
        ("is_decoder", json!("no")),
        ("add_cross_attention", json!(true)),
        ("pruned_heads", json!({"0": [1]})),
        ("layer_norm_eps", json!("1e-5")),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
    ];
    let own = [
        (
            "esm2/checkpoints/hub-safetensors",
            vec![
                ("position_embedding_type", json!("absolute")),
                ("position_embedding_type", json!("relative_key")),
                ("token_dropout", json!(1)),
                ("emb_layer_norm_before", json!("false")),
                ("is_folding_model", json!(true)),
                ("rope_theta", json!("10000")),
                ("rope_parameters", json!({"rope_type": "yarn"})),
                ("num_hidden_layers", json!(2)),
            ],
        ),
        (
            "dna/dnabert-3-plain",
            vec![
                ("position_embedding_type", json!("relative_key")),
                ("type_vocab_size", json!("2")),
                ("num_hidden_layers", json!(1)),
                ("num_hidden_layers", json!(1_000_000)),
            ],
        ),
        (
            "dna/dnabert-s",
            vec![
                ("position_embedding_type", json!("relative_key")),
                ("num_hidden_layers", json!(1)),
                ("num_hidden_layers", json!(1_000_000)),
            ],
        ),
    ];
    for (family, own) in own {
        let source = copied(family, &folder.path().join(family));
        let path = source.join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        for (key, value) in every.iter().cloned().chain(own) {
            let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
            config[key] = value;
            fs::write(&path, config.to_string()).unwrap();
            let told = if config[key] == 1 || config[key] == 2 {
                "layers"
            } else {
                key
            };
            let told = if key == "token_dropout" { key } else { told };
            assert_all(&refused(&source), &[told]);
        }
        // What changes nothing.
        for (key, value) in [
            ("use_cache", json!(false)),
            ("hidden_act", json!(null)),
            ("attention_probs_dropout_prob", json!(0.5)),
            ("rope_scaling", json!(null)),
            ("pruned_heads", json!({})),
            ("torch_dtype", json!("bfloat16")),
        ] {
            let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
            config[key] = value;
            fs::write(&path, config.to_string()).unwrap();
            let target = source.join("exported");
            export(&source, &target, &ExportOptions::default())
                .unwrap_or_else(|error| panic!("{key}: {error}"));
            fs::remove_dir_all(&target).unwrap();
        }
    }
}

#[test]
fn a_vocabulary_that_no_tokenizer_fits_is_refused_before_weights_are_written() {
    fn refuses(family: &dyn Family, file: &[u8]) -> Result<(), String> {
        assert_eq!(
            (family.tokenizer(), file.first()),
            (TokenizerKind::Bert, Some(&b'['))
        );
        Err("no tokenizer of mine".to_owned())
    }
    let folder = tempfile::tempdir().unwrap();
    let options = ExportOptions {
        check_tokenizer: Some(refuses),
        ..ExportOptions::default()
    };
    let source = support::fixtures().join("dna/dnabert-3-plain");
    let error = export(&source, &folder.path().join("model"), &options).unwrap_err();
    assert_all(&error.to_string(), &["vocab.txt", "no tokenizer of mine"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Names that would move a terminal's cursor, from wherever a checkpoint has them.
#[test]
fn names_are_shown_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let evil = "\u{1b}]0;x\u{7}\u{9b}2J\r";
    let mut texts = Vec::new();
    let pickle = Pickler::new()
        .text(evil)
        .text("f\u{1b}")
        .raw(b"\x93)R")
        .stop();
    texts.push(refused_pickle(&pickle));
    let mut number = 0;
    let mut make = |tensors: &Tensors| {
        number += 1;
        hub_folder(
            &folder.path().join(number.to_string()),
            tensors,
            Format::F32,
        )
    };
    let with = |name: String| {
        let mut tensors = weights();
        let tensor = tensors["encoder.layer.0.LayerNorm.bias"].clone();
        tensors.insert(name, tensor);
        tensors
    };
    texts.push(refused(&make(&with(format!("encoder.{evil}.weight")))));
    let source = make(&weights());
    let path = source.join("model.safetensors");
    for header in [
        format!(
            "{{\"a\":{{\"dtype\":{},\"shape\":[1],\"data_offsets\":[0,4]}}}}",
            serde_json::json!(evil)
        ),
        format!(
            "{{{}:{{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,4]}}}}",
            serde_json::json!(evil)
        ),
    ] {
        write_raw_safetensors(&path, &header, &[0; 4]);
        texts.push(refused(&source));
    }
    for (key, value) in [("model_type", evil), ("position_embedding_type", evil)] {
        let source = make(&weights());
        let mut config = support::config();
        config[key] = value.into();
        fs::write(source.join("config.json"), config.to_string()).unwrap();
        texts.push(refused(&source));
    }
    let source = shards(
        &folder.path().join("shards"),
        &weights(),
        "model",
        "safetensors",
        |path, shard| {
            support::write_safetensors(path, shard, Format::F32);
        },
    );
    let index = serde_json::json!({"weight_map": {evil: "model-00001-of-00002.safetensors"}});
    fs::write(
        source.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    texts.push(refused(&source));
    let index = serde_json::json!({"weight_map": {"a": evil}});
    fs::write(
        source.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    texts.push(refused(&source));
    assert_eq!(texts.len(), 8);
    for text in texts {
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

#[test]
fn numbers_that_overflow_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let empty = |shape: &[usize]| Tensor {
        shape: shape.to_vec(),
        values: Vec::new(),
    };
    let last = format!("layers.{}.fc1.weight", usize::MAX);
    for (name, shape) in [
        (last.as_str(), vec![0]),
        ("layers.0.self_attn.rot_emb.inv_freq", vec![1 << 62, 0]),
        ("embed_tokens.weight", vec![0, 1 << 62]),
        ("embed_tokens.weight", vec![1 << 40, 0]),
    ] {
        let tensors = Tensors::from([(name.to_owned(), empty(&shape))]);
        write_bin(&path, &tensors, Format::F32);
        refused(&path);
    }
}

/// A dict within the state dict is not passed over, and one that stands there under many names does
/// not fill the memory.
#[test]
fn dicts_within_a_state_dict_count_and_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let tensors = renamed(&weights(), fair_esm);
    let values = support::values(&tensors, Format::F32);
    let pickle = |inner: bool| {
        let mut pickler = Pickler::new();
        pickler.raw(b"}(").text("args").raw(b"}");
        pickler
            .text("encoder_attention_heads")
            .int(support::HEADS)
            .raw(b"s");
        pickler.text("model").state_dict(&tensors, Format::F32);
        if inner {
            pickler
                .text("layers.0.lora_A")
                .raw(b"}")
                .text("default.weight");
            pickler
                .tensor("0", "FloatStorage", 0, &[1], &[1])
                .raw(b"ss");
        }
        pickler.raw(b"u").stop()
    };
    write_archive(&path, &pickle(false), &values);
    let target = folder.path().join("model");
    export(&path, &target, &ExportOptions::default()).unwrap();
    write_archive(&path, &pickle(true), &values);
    assert_all(
        &refused(&path),
        &["layers.0.lora_A.default.weight", "merge_and_unload()"],
    );

    let mut many = Pickler::new();
    many.raw(b"}q\x01(");
    for number in 0..20_000 {
        many.text(&number.to_string());
        if number == 0 {
            many.tensor("0", "FloatStorage", 0, &[1], &[1])
                .raw(b"q\x02");
        } else {
            many.raw(b"h\x02");
        }
    }
    many.raw(b"u0}(");
    for number in 0..20_000 {
        many.text(&number.to_string()).raw(b"h\x01");
    }
    write_archive(&path, &many.raw(b"u").stop(), &values);
    assert_all(&refused(&path), &["more than a hundred thousand tensors"]);
}

/// transformers 4 computes with the frequencies that the file holds, transformers 5 with the
/// configuration's.
#[test]
fn rotary_frequencies_that_are_not_the_configurations_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let with = |layer: usize, values: &[f32]| {
        let mut tensors = weights();
        let name = format!("encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq");
        let tensor = Tensor {
            shape: vec![values.len()],
            values: values.to_vec(),
        };
        tensors.insert(name.clone(), tensor);
        (tensors, name)
    };
    let mut number = 0;
    let mut path = || {
        number += 1;
        folder.path().join(number.to_string())
    };
    // 10,000^(-2i/8), one of them off by 0.2 %; 500^(-2i/8); no numbers; those of heads of half the
    // width.
    for (layer, values) in [
        (0, vec![1.0, 0.1, 0.010_02, 0.001]),
        (1, vec![1.0, 0.211_47, 0.044_72, 0.009_457]),
        (1, vec![1.0, 0.1, f32::NAN, 0.001]),
        (1, vec![1.0, 0.01]),
    ] {
        let (tensors, name) = with(layer, &values);
        let source = hub_folder(&path(), &tensors, Format::F32);
        assert_all(&refused(&source), &["model.safetensors", &name]);
        let fair = path().with_extension("pt");
        let told = format!("layers.{layer}.self_attn.rot_emb.inv_freq");
        let tensors = renamed(&tensors, |name| {
            if name.ends_with("inv_freq") {
                format!("encoder.sentence_encoder.{told}")
            } else {
                fair_esm(name)
            }
        });
        write_fair_esm(&fair, &tensors, "esm2");
        assert_all(&refused(&fair), &[".pt", &told]);
    }
    // The base that they are of.
    let (tensors, _) = with(1, &[1.0, 0.211_47, 0.044_72, 0.009_457]);
    let source = hub_folder(&path(), &tensors, Format::F32);
    let mut config = support::config();
    config["rope_theta"] = 500.into();
    fs::write(source.join("config.json"), config.to_string()).unwrap();
    export(&source, &path(), &ExportOptions::default()).unwrap();
}

/// Of families whose sizes are derived from others, too.
#[test]
fn impossible_sizes_are_refused_in_every_family() {
    for fixture in [
        "esmc/checkpoints/hub",
        "esm1/checkpoints/esm1b-safetensors",
        "dna/dnabert-3-plain",
        "dna/dnabert-s",
        "nt/checkpoints/v1-saved",
        "amplify/checkpoints/hub",
        "t5/checkpoints/prostt5",
        "nt/checkpoints/v2-saved",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let original = support::fixtures().join(fixture);
        for file in [
            "config.json",
            "model.safetensors",
            "vocab.txt",
            "tokenizer.json",
        ] {
            if original.join(file).exists() {
                fs::copy(original.join(file), folder.path().join(file)).unwrap();
            }
        }
        let path = folder.path().join("config.json");
        let config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for key in [
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "vocab_size",
            "max_position_embeddings",
            "pad_token_id",
        ] {
            // What a family does not read, it does not refuse either.
            let read = match key {
                "max_position_embeddings" => ["esm1", "dnabert-3", "nt/"]
                    .iter()
                    .any(|part| fixture.contains(part)),
                "pad_token_id" => fixture.contains("esm1") || fixture.contains("nt/"),
                _ => true,
            };
            let key = match key {
                "hidden_size" if fixture.contains("t5") => "d_model",
                "num_hidden_layers" if fixture.contains("t5") => "num_layers",
                "num_attention_heads" if fixture.contains("t5") => "num_heads",
                "intermediate_size" if fixture.contains("t5") => "d_ff",
                key => key,
            };
            for size in [u64::MAX, u64::MAX / 3, 1 << 40] {
                let mut config = config.clone();
                config[key] = serde_json::json!(size);
                fs::write(&path, config.to_string()).unwrap();
                if read {
                    assert_all(&refused(folder.path()), &["config.json"]);
                }
            }
        }
    }
}

/// transformers computes something else with each of these, or does not load the model.
#[test]
fn settings_of_newer_families_are_refused_by_name() {
    use serde_json::json;
    let newest = "esmc/checkpoints/hub";
    let older = "esm1/checkpoints/esm1v-safetensors";
    let rotary = "esm2/checkpoints/hub-transformers5";
    let amplify = "amplify/checkpoints/hub";
    let [first, second] = ["v1", "v2"].map(|version| format!("nt/checkpoints/{version}-saved"));
    let (first, second) = (first.as_str(), second.as_str());
    for (fixture, key, value, named) in [
        (newest, "rope_theta", json!(700), "rope_theta"),
        (
            newest,
            "rope_scaling",
            json!({"rope_theta": 300, "rope_type": "default"}),
            "rope_theta",
        ),
        (newest, "rope_parameters", json!([1]), "rope_parameters"),
        (
            newest,
            "num_key_value_heads",
            json!(1),
            "num_key_value_heads",
        ),
        (newest, "head_dim", json!(32), "head_dim"),
        (newest, "n_heads", json!(4), "n_heads"),
        (newest, "d_model", json!(64), "d_model"),
        (newest, "n_layers", json!(3), "n_layers"),
        (newest, "attention_bias", json!(true), "attention_bias"),
        (newest, "mlp_bias", json!(true), "mlp_bias"),
        (newest, "hidden_act", json!("gelu"), "hidden_act"),
        // Of this width, no published model tells how many heads there are.
        (
            newest,
            "num_attention_heads",
            json!(null),
            "num_attention_heads",
        ),
        // Tokens of this id have no position, and are not counted.
        (older, "pad_token_id", json!(0), "pad_token_id"),
        (older, "pad_token_id", json!(4), "pad_token_id"),
        (older, "mask_token_id", json!(5), "mask_token_id"),
        (rotary, "mask_token_id", json!(5), "mask_token_id"),
        // The frequencies of all blocks are in one tensor, with an asterisk in its name.
        (rotary, "rope_theta", json!(700), "rotary"),
        // There, transformers does not read it.
        (
            first,
            "rope_parameters",
            json!({"rope_theta": 50, "rope_type": "default"}),
            "rope_theta is 50 in rope_parameters",
        ),
        (first, "pad_token_id", json!(0), "pad_token_id"),
        (first, "mask_token_id", json!(4), "mask_token_id"),
        (first, "vocab_size", json!(72), "Nucleotide Transformer"),
        (first, "add_bias_fnn", json!(false), "add_bias_fnn"),
        (first, "hidden_act", json!("silu"), "hidden_act"),
        (
            first,
            "max_position_embeddings",
            json!(3),
            "max_position_embeddings",
        ),
        (
            first,
            "max_position_embeddings",
            json!(50),
            "position_embeddings",
        ),
        (
            first,
            "position_embedding_type",
            json!("relative_key"),
            "position_embedding_type",
        ),
        (second, "vocab_size", json!(72), "vocab_size"),
        // That of version 1, whose special tokens stand elsewhere.
        (second, "vocab_size", json!(73), "the token with id 4 is"),
        (
            second,
            "add_bias_fnn",
            json!(true),
            "intermediate.dense.bias",
        ),
        (second, "hidden_act", json!("gelu"), "hidden_act"),
        (second, "rope_theta", json!(500), "rope_theta"),
        (second, "rescaling_factor", json!(2.0), "rescaling_factor"),
        (second, "is_folding_model", json!(true), "is_folding_model"),
        (amplify, "rope_theta", json!(500), "rope_theta"),
        (
            amplify,
            "rope_parameters",
            json!({"rope_theta": 300, "rope_type": "default"}),
            "rope_theta",
        ),
        (amplify, "rms_norm", json!(false), "rms_norm"),
        (second, "intermediate_size", json!(32), "intermediate.dense"),
        (
            second,
            "position_embedding_type",
            json!("absolute"),
            "position_embeddings",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let original = support::fixtures().join(fixture);
        for file in ["config.json", "model.safetensors", "vocab.txt"] {
            if original.join(file).exists() {
                fs::copy(original.join(file), folder.path().join(file)).unwrap();
            }
        }
        let path = folder.path().join("config.json");
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
        assert_all(&refused(folder.path()), &[named]);
    }
    // The vocabulary of ESM C is that of all of its models.
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(
            support::fixtures().join(newest).join(file),
            folder.path().join(file),
        )
        .unwrap();
    }
    let other = support::fixtures().join(older).join("vocab.txt");
    fs::copy(other, folder.path().join("vocab.txt")).unwrap();
    assert_all(&refused(folder.path()), &["vocabulary", "ESM C"]);
}

/// Nucleotide Transformer's vocabulary follows from the number of its rows.
#[test]
fn another_vocabulary_than_that_of_the_family_is_refused() {
    let published = support::fixtures().join("nt/checkpoints/v2-safetensors");
    let text = fs::read_to_string(published.join("vocab.txt")).unwrap();
    for (changed, words) in [
        // In the order of the alphabet.
        (
            text.replace("AAT", "-")
                .replace("AAC", "AAT")
                .replace('-', "AAC"),
            &["vocab.txt", "id 7", "\"AAC\"", "\"AAT\""][..],
        ),
        (text.replace("<eos>\n<bos>\n", ""), &["73 tokens", "75"]),
        (format!("{text}\nR"), &["76 tokens", "75"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(published.join(file), folder.path().join(file)).unwrap();
        }
        fs::write(folder.path().join("vocab.txt"), &changed).unwrap();
        let said = refused(folder.path());
        assert_all(&said, words.strip_prefix(&["vocab.txt"]).unwrap_or(words));
        // A line break at the end is no token.
        fs::write(folder.path().join("vocab.txt"), format!("{text}\n")).unwrap();
        let target = folder.path().join("model");
        export(folder.path(), &target, &ExportOptions::default()).unwrap();
    }
}

/// Letters are replaced for models of as many tokens as `ProtBert` has: in another vocabulary they
/// would be other tokens.
#[test]
fn a_vocabulary_as_large_as_protberts_and_in_another_order_is_refused() {
    let published = support::fixtures().join("bert/igbert");
    let text = fs::read_to_string(published.join("vocab.txt")).unwrap();
    let swapped = text.replace("L\nA\n", "A\nL\n");
    assert_ne!(swapped, text);
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(published.join(file), folder.path().join(file)).unwrap();
    }
    fs::write(folder.path().join("vocab.txt"), swapped).unwrap();
    assert_all(
        &refused(folder.path()),
        &["ProtBert", "id 5 is \"A\", not \"L\""],
    );
}

/// Where there is no vocab.txt, that of 6-mers is known; other models may have as many rows as
/// there are for 3-mers.
#[test]
fn the_vocabulary_of_6_mers_is_known() {
    let published = support::fixtures().join("nt/checkpoints/v1-saved");
    let folder = tempfile::tempdir().unwrap();
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(published.join("config.json")).unwrap()).unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let weights = folder.path().join("model.safetensors");
    fs::copy(published.join("model.safetensors"), &weights).unwrap();
    assert_all(&refused(folder.path()), &["vocab.txt is missing"]);

    let rows = 4105;
    config["vocab_size"] = rows.into();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut tensors = support::fixture("nt/checkpoints/v1-saved");
    let name = "esm.embeddings.word_embeddings.weight";
    let width = tensors[name].shape[1];
    tensors.insert(
        name.to_owned(),
        Tensor {
            shape: vec![rows, width],
            values: vec![1.0; rows * width],
        },
    );
    support::write_safetensors(&weights, &tensors, Format::F16);
    let target = folder.path().join("model");
    let model = export(folder.path(), &target, &ExportOptions::default()).unwrap();
    assert_eq!(model.info().max_residues, Some(99 * 6));
    let vocabulary = fs::read_to_string(target.join("vocab.txt")).unwrap();
    let lines: Vec<&str> = vocabulary.lines().collect();
    assert_eq!(lines.len(), rows + 2);
    assert_eq!(lines[3..6], ["<cls>", "AAAAAA", "AAAAAT"]);
    assert_eq!(lines[rows - 1..], ["N", "<eos>", "<bos>"]);
}
