//! A small ESM-2 checkpoint, written in every format by hand.

#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "shared by tests that each use a part of it"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

pub const LAYERS: usize = 2;
pub const HIDDEN: usize = 16;
pub const HEADS: usize = 2;
pub const VOCABULARY: usize = 33;

#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

pub type Tensors = BTreeMap<String, Tensor>;

/// Weights in Hugging Face's spelling, all of them exact in 8 bits of mantissa: every float format
/// holds them.
pub fn weights() -> Tensors {
    let mut tensors = Tensors::new();
    let mut state = 7_u32;
    let mut add = |name: String, shape: &[usize]| {
        let values = (0..shape.iter().product::<usize>())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 25) as f32 / 64.0 - 1.0
            })
            .collect();
        tensors.insert(
            name,
            Tensor {
                shape: shape.to_vec(),
                values,
            },
        );
    };
    add(
        "embeddings.word_embeddings.weight".into(),
        &[VOCABULARY, HIDDEN],
    );
    for layer in 0..LAYERS {
        for (part, out, inside) in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", 4 * HIDDEN, HIDDEN),
            ("output.dense", HIDDEN, 4 * HIDDEN),
        ] {
            add(
                format!("encoder.layer.{layer}.{part}.weight"),
                &[out, inside],
            );
            add(format!("encoder.layer.{layer}.{part}.bias"), &[out]);
        }
        for part in ["attention.LayerNorm", "LayerNorm"] {
            add(format!("encoder.layer.{layer}.{part}.weight"), &[HIDDEN]);
            add(format!("encoder.layer.{layer}.{part}.bias"), &[HIDDEN]);
        }
    }
    add("encoder.emb_layer_norm_after.weight".into(), &[HIDDEN]);
    add("encoder.emb_layer_norm_after.bias".into(), &[HIDDEN]);
    tensors
}

/// The same tensors under other names.
pub fn renamed(tensors: &Tensors, rename: impl Fn(&str) -> String) -> Tensors {
    tensors
        .iter()
        .map(|(name, tensor)| (rename(name), tensor.clone()))
        .collect()
}

/// fair-esm's spelling, as in its own files.
pub fn fair_esm(name: &str) -> String {
    let name = name
        .replace("embeddings.word_embeddings", "embed_tokens")
        .replace("encoder.emb_layer_norm_after", "emb_layer_norm_after")
        .replace("encoder.layer.", "layers.")
        .replace("attention.self.query", "self_attn.q_proj")
        .replace("attention.self.key", "self_attn.k_proj")
        .replace("attention.self.value", "self_attn.v_proj")
        .replace("attention.output.dense", "self_attn.out_proj")
        .replace("attention.LayerNorm", "self_attn_layer_norm")
        .replace("intermediate.dense", "fc1")
        .replace("output.dense", "fc2")
        .replace("LayerNorm", "final_layer_norm");
    format!("encoder.sentence_encoder.{name}")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    F64,
    F32,
    F16,
    Bf16,
}

impl Format {
    pub fn bytes(self, values: &[f32]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| match self {
                Self::F64 => f64::from(*value).to_le_bytes().to_vec(),
                Self::F32 => value.to_le_bytes().to_vec(),
                Self::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
                Self::Bf16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
            })
            .collect()
    }

    fn safetensors(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    pub fn storage(self) -> &'static str {
        match self {
            Self::F64 => "DoubleStorage",
            Self::F32 => "FloatStorage",
            Self::F16 => "HalfStorage",
            Self::Bf16 => "BFloat16Storage",
        }
    }
}

pub fn config() -> serde_json::Value {
    serde_json::json!({
        "model_type": "esm", "num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": HEADS,
        "intermediate_size": 4 * HIDDEN, "vocab_size": VOCABULARY, "layer_norm_eps": 1e-5, "token_dropout": true,
        "emb_layer_norm_before": false, "position_embedding_type": "rotary", "mask_token_id": 32,
    })
}

pub fn write_config(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config().to_string()).unwrap();
}

pub fn write_safetensors(path: &Path, tensors: &Tensors, format: Format) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let begin = data.len();
        data.extend(format.bytes(&tensor.values));
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": format.safetensors(), "shape": tensor.shape, "data_offsets": [begin, data.len()]}),
        );
    }
    let header = serde_json::Value::Object(header).to_string();
    write_raw_safetensors(path, &header, &data);
}

pub fn write_raw_safetensors(path: &Path, header: &str, data: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.write_all(data).unwrap();
}

/// A Hugging Face folder with one safetensors file.
pub fn hub_folder(folder: &Path, tensors: &Tensors, format: Format) -> PathBuf {
    write_config(folder);
    write_safetensors(&folder.join("model.safetensors"), tensors, format);
    folder.to_path_buf()
}

/// Two shards of a sharded checkpoint, and their index.
pub fn shards(
    folder: &Path,
    tensors: &Tensors,
    stem: &str,
    extension: &str,
    write: impl Fn(&Path, &Tensors),
) -> PathBuf {
    write_config(folder);
    let mut map = serde_json::Map::new();
    for part in 0..2 {
        let file = format!("{stem}-0000{}-of-00002.{extension}", part + 1);
        let shard: Tensors = tensors
            .iter()
            .enumerate()
            .filter(|(index, _)| index % 2 == part)
            .map(|(_, (name, tensor))| (name.clone(), tensor.clone()))
            .collect();
        for name in shard.keys() {
            map.insert(name.clone(), file.clone().into());
        }
        write(&folder.join(&file), &shard);
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::write(
        folder.join(format!("{stem}.{extension}.index.json")),
        index.to_string(),
    )
    .unwrap();
    folder.to_path_buf()
}

/// A pickle of protocol 2, opcode by opcode.
#[derive(Debug, Default)]
pub struct Pickler {
    pub bytes: Vec<u8>,
    /// Whether it describes storages as `PyTorch` did before 1.6.
    pub legacy: bool,
}

impl Pickler {
    pub fn new() -> Self {
        Self {
            bytes: vec![0x80, 2],
            legacy: false,
        }
    }

    pub fn legacy() -> Self {
        Self {
            legacy: true,
            ..Self::new()
        }
    }

    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend(bytes);
        self
    }

    pub fn text(&mut self, text: &str) -> &mut Self {
        self.raw(b"X")
            .raw(&(text.len() as u32).to_le_bytes())
            .raw(text.as_bytes())
    }

    pub fn int(&mut self, value: usize) -> &mut Self {
        match i32::try_from(value) {
            Ok(value) => self.raw(b"J").raw(&value.to_le_bytes()),
            Err(_) => self.raw(b"\x8a\x08").raw(&(value as u64).to_le_bytes()),
        }
    }

    pub fn global(&mut self, module: &str, name: &str) -> &mut Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    pub fn ints(&mut self, values: &[usize]) -> &mut Self {
        self.raw(b"(");
        for value in values {
            self.int(*value);
        }
        self.raw(b"t")
    }

    /// A tensor whose values are entry `key`.
    pub fn tensor(
        &mut self,
        key: &str,
        storage: &str,
        offset: usize,
        shape: &[usize],
        strides: &[usize],
    ) -> &mut Self {
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.raw(b"((")
            .text("storage")
            .global("torch", storage)
            .text(key)
            .text("cpu")
            .int(shape.iter().product());
        // It is no part of another storage.
        self.raw(if self.legacy { b"NtQ" } else { b"tQ" });
        self.int(offset).ints(shape).ints(strides).raw(b"\x89");
        // No backward hooks: an empty OrderedDict.
        self.global("collections", "OrderedDict").raw(b")RtR")
    }

    /// A state dict; entry N holds the values of the N-th tensor.
    pub fn state_dict(&mut self, tensors: &Tensors, format: Format) -> &mut Self {
        self.global("collections", "OrderedDict").raw(b")R(");
        for (key, (name, tensor)) in tensors.iter().enumerate() {
            let mut strides: Vec<usize> = Vec::new();
            let mut step = 1;
            for axis in tensor.shape.iter().rev() {
                strides.insert(0, step);
                step *= axis;
            }
            self.text(name).tensor(
                &key.to_string(),
                format.storage(),
                0,
                &tensor.shape,
                &strides,
            );
        }
        self.raw(b"u")
    }

    pub fn stop(&mut self) -> Vec<u8> {
        self.raw(b".");
        std::mem::take(&mut self.bytes)
    }
}

/// `PyTorch`'s archive around a pickle.
pub fn write_archive(path: &Path, pickle: &[u8], entries: &[(String, Vec<u8>)]) {
    let mut zip = ZipWriter::new(File::create(path).unwrap());
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", stored).unwrap();
    zip.write_all(pickle).unwrap();
    zip.start_file("archive/byteorder", stored).unwrap();
    zip.write_all(b"little").unwrap();
    for (name, bytes) in entries {
        zip.start_file(format!("archive/data/{name}"), stored)
            .unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

pub fn values(tensors: &Tensors, format: Format) -> Vec<(String, Vec<u8>)> {
    tensors
        .values()
        .enumerate()
        .map(|(key, tensor)| (key.to_string(), format.bytes(&tensor.values)))
        .collect()
}

/// `torch.save(state_dict)`.
pub fn write_bin(path: &Path, tensors: &Tensors, format: Format) {
    let pickle = Pickler::new().state_dict(tensors, format).stop();
    write_archive(path, &pickle, &values(tensors, format));
}

/// The bytes of a file of before `PyTorch` 1.6, of which `pickle` describes the object: with its
/// storages, by key, and how many values each has.
pub fn legacy_file(pickle: &[u8], storages: &[(String, usize, Vec<u8>)], little: bool) -> Vec<u8> {
    let mut file = Pickler::new()
        .raw(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")
        .stop();
    file.extend(Pickler::new().raw(b"M\xe9\x03").stop());
    let mut machine = Pickler::new();
    machine.raw(b"}(").text("protocol_version").int(1001);
    machine.text("little_endian");
    machine.raw(if little { b"\x88" } else { b"\x89" });
    file.extend(machine.raw(b"u").stop());
    file.extend(pickle);
    let mut keys = Pickler::new();
    keys.raw(b"](");
    for (key, ..) in storages {
        keys.text(key);
    }
    file.extend(keys.raw(b"e").stop());
    for (_, count, values) in storages {
        file.extend((*count as u64).to_le_bytes());
        file.extend(values);
    }
    file
}

/// The storages of a state dict for [`legacy_file`].
pub fn legacy_values(tensors: &Tensors, format: Format) -> Vec<(String, usize, Vec<u8>)> {
    let counts = tensors.values().map(|tensor| tensor.values.len());
    let values = values(tensors, format).into_iter().zip(counts);
    values
        .map(|((key, values), count)| (key, count, values))
        .collect()
}

/// `torch.save(state_dict, _use_new_zipfile_serialization=False)`.
pub fn write_legacy(path: &Path, tensors: &Tensors, format: Format) {
    let pickle = Pickler::legacy().state_dict(tensors, format).stop();
    let file = legacy_file(&pickle, &legacy_values(tensors, format), true);
    fs::write(path, file).unwrap();
}

/// fair-esm's own file: `{"cfg": {"model": Namespace(...)}, "model": state_dict}`.
pub fn write_fair_esm(path: &Path, tensors: &Tensors, arch: &str) {
    let mut pickler = Pickler::new();
    pickler.raw(b"}(").text("cfg").raw(b"}(").text("model");
    pickler.global("argparse", "Namespace").raw(b")\x81}(");
    pickler.text("arch").text(arch);
    pickler.text("encoder_layers").int(LAYERS);
    pickler.text("encoder_embed_dim").int(HIDDEN);
    pickler.text("encoder_attention_heads").int(HEADS);
    pickler.text("token_dropout").raw(b"\x88");
    pickler.raw(b"ubu").text("model");
    pickler.state_dict(tensors, Format::F32);
    let pickle = pickler.raw(b"u").stop();
    write_archive(path, &pickle, &values(tensors, Format::F32));
}

/// An archive byte for byte as `PyTorch`'s writer makes it: entries stored at multiples of 64
/// bytes, for which a field of padding (`FB`) stands in their local headers, sizes and checksums
/// behind their data, and zip64 records behind the directory always.
pub fn write_torch_archive(path: &Path, folder: &str, entries: &[(String, Vec<u8>)]) {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let put = |to: &mut Vec<u8>, halves: &[u16]| {
        to.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    };
    let words = |to: &mut Vec<u8>, words: &[u32]| {
        to.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    };
    let longs = |to: &mut Vec<u8>, longs: &[u64]| {
        to.extend(longs.iter().flat_map(|long| long.to_le_bytes()));
    };
    for (name, data) in entries {
        let name = format!("{folder}/{name}");
        let (begin, length) = (file.len() as u32, data.len() as u32);
        let start = file.len() + 30 + name.len() + 4;
        let padding = start.next_multiple_of(64) - start;
        let checksum = crc32fast::hash(data);
        file.extend(b"PK\x03\x04");
        put(&mut file, &[0, 0x808, 0, 0, 0]);
        words(&mut file, &[0, 0, 0]);
        put(&mut file, &[name.len() as u16, padding as u16 + 4]);
        file.extend(name.as_bytes());
        file.extend(b"FB");
        put(&mut file, &[padding as u16]);
        file.resize(file.len() + padding, b'Z');
        file.extend(data);
        file.extend(b"PK\x07\x08");
        words(&mut file, &[checksum, length, length]);

        directory.extend(b"PK\x01\x02");
        put(&mut directory, &[0, 0, 0x808, 0, 0, 0]);
        words(&mut directory, &[checksum, length, length]);
        put(&mut directory, &[name.len() as u16, 0, 0, 0, 0]);
        words(&mut directory, &[0, begin]);
        directory.extend(name.as_bytes());
    }
    let (begin, length) = (file.len() as u64, directory.len() as u64);
    let count = entries.len() as u64;
    file.extend(directory);
    let end = file.len() as u64;
    file.extend(b"PK\x06\x06");
    longs(&mut file, &[44]);
    put(&mut file, &[0x31e, 45]);
    words(&mut file, &[0, 0]);
    longs(&mut file, &[count, count, length, begin]);
    file.extend(b"PK\x06\x07");
    words(&mut file, &[0]);
    longs(&mut file, &[end]);
    words(&mut file, &[1]);
    file.extend(b"PK\x05\x06");
    put(&mut file, &[0, 0, count as u16, count as u16]);
    words(&mut file, &[length as u32, begin as u32]);
    put(&mut file, &[0]);
    fs::write(path, file).unwrap();
}

/// The repository's fixtures, whose files `PyTorch` and transformers wrote.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// The tensors of a fixture's `model.safetensors` that are floats, of 16 bits or 32.
pub fn fixture(folder: &str) -> Tensors {
    let file = fs::read(fixtures().join(folder).join("model.safetensors")).unwrap();
    let (length, rest) = file.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header).unwrap();
    let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
    let tensors = header.into_iter().filter_map(|(name, info)| {
        let offsets = info.get("data_offsets")?;
        let bytes = &data[number(&offsets[0])..number(&offsets[1])];
        let values = match info["dtype"].as_str()? {
            "F16" => bytes
                .as_chunks()
                .0
                .iter()
                .map(|half| f16::from_le_bytes(*half).to_f32())
                .collect(),
            "F32" => bytes
                .as_chunks()
                .0
                .iter()
                .map(|word| f32::from_le_bytes(*word))
                .collect(),
            _ => return None,
        };
        let shape = info["shape"].as_array()?.iter().map(number).collect();
        Some((name, Tensor { shape, values }))
    });
    tensors.collect()
}
