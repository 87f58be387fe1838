//! `PyTorch`'s files of before 1.6, its own and some made by hand: they give what a zip archive of
//! the same tensors gives, and damaged or hostile ones give an error that names the file, never a
//! panic.
//! `checkpoint_formats.rs` compares their weights with those of the other formats.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::{
    self, Format, Pickler, fair_esm, legacy_file, legacy_values, renamed, weights, write_config,
    write_fair_esm, write_legacy,
};
use seqembed_onnx::checkpoint::{Checkpoint, Dtype, Settings, pytorch};
use seqembed_onnx::{ExportOptions, export};

/// One tensor of two values, in a storage `7` of `count` values.
fn one_tensor(count: usize) -> Vec<u8> {
    let mut pickler = Pickler::legacy();
    pickler.raw(b"}").text("tensor.a");
    pickler
        .tensor("7", "FloatStorage", 0, &[count], &[1])
        .raw(b"s")
        .stop()
}

/// What is said of a file of these bytes.
fn refused(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    fs::write(&path, bytes).unwrap();
    let error = pytorch::read(&path).unwrap_err();
    assert!(error.is_input(), "{error}");
    let text = error.to_string();
    assert!(text.contains("model.pt"), "{text}");
    text
}

fn assert_refused(bytes: &[u8], parts: &[&str]) {
    let text = refused(bytes);
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn values(count: usize) -> Vec<u8> {
    (0..count).flat_map(|_| 1.5_f32.to_le_bytes()).collect()
}

/// `PyTorch`'s own files of one object, made by `onnx/reference/pytorch_files.py`.
#[test]
fn what_pytorch_wrote_is_read_as_its_zip_archive_is() {
    let read = |name: &str| {
        let path = support::fixtures().join("pytorch").join(name);
        let bytes = fs::read(&path).unwrap();
        let archive = pytorch::read(&path).unwrap();
        let tensors = archive.tensors.into_iter().map(|(name, tensor)| {
            let begin = usize::try_from(tensor.offset).unwrap();
            let values: usize = tensor.shape.iter().product();
            let values = bytes[begin..begin + values * tensor.dtype.bytes()].to_vec();
            (name, (tensor.dtype, tensor.shape, values))
        });
        (tensors.collect::<BTreeMap<_, _>>(), archive.settings)
    };
    let (tensors, settings) = read("legacy.pt");
    assert_eq!(
        (&tensors, &settings),
        (&read("zip.pt").0, &read("zip.pt").1)
    );
    assert_eq!((tensors.len(), settings.len()), (9, 4));
    let (dtype, shape, values) = &tensors["part.weight"];
    assert_eq!((*dtype, shape.as_slice()), (Dtype::F32, [2, 3].as_slice()));
    let expected = (3_u8..9).map(|value| f32::from(value) / 8.0);
    assert_eq!(
        *values,
        expected.flat_map(f32::to_le_bytes).collect::<Vec<_>>()
    );
}

#[test]
fn tensors_settings_and_order_of_storages() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // fair-esm's own layout, of which the settings count.
    let tensors = renamed(&weights(), fair_esm);
    write_fair_esm(&at("zip.pt"), &tensors, "esm2");
    let mut pickler = Pickler::legacy();
    pickler.raw(b"}(").text("cfg").raw(b"}(").text("model");
    pickler.global("argparse", "Namespace").raw(b")\x81}(");
    for (key, value) in [
        ("encoder_layers", support::LAYERS),
        ("encoder_embed_dim", support::HIDDEN),
        ("encoder_attention_heads", support::HEADS),
    ] {
        pickler.text(key).int(value);
    }
    pickler.text("arch").text("esm2").text("token_dropout");
    pickler.raw(b"\x88ubu").text("model");
    pickler.state_dict(&tensors, Format::F32);
    let pickle = pickler.raw(b"u").stop();
    let mut storages = legacy_values(&tensors, Format::F32);
    fs::write(at("legacy.pt"), legacy_file(&pickle, &storages, true)).unwrap();
    storages.reverse();
    fs::write(at("reversed.pt"), legacy_file(&pickle, &storages, true)).unwrap();

    let weights = |name: &str| {
        let target = at("model");
        let options = ExportOptions {
            force: true,
            ..ExportOptions::default()
        };
        export(&at(name), &target, &options).unwrap();
        fs::read(target.join("weights.bin")).unwrap()
    };
    let settings = |name: &str| match Checkpoint::open(&at(name)).unwrap().settings {
        Settings::FairEsm { settings, .. } => settings,
        Settings::HuggingFace { .. } => panic!("no fair-esm file"),
    };
    let expected = weights("zip.pt");
    for name in ["legacy.pt", "reversed.pt"] {
        assert!(weights(name) == expected, "{name}");
        assert_eq!(settings(name), settings("zip.pt"));
    }
}

#[test]
fn tensors_that_share_a_storage_are_read_from_their_offsets() {
    let mut pickler = Pickler::legacy();
    pickler.raw(b"}(");
    for (name, offset) in [("a", 0), ("b", 2)] {
        pickler.text(name);
        pickler.tensor("7", "FloatStorage", offset, &[2], &[1]);
    }
    // Each says that the storage has two values.
    let pickle = pickler.raw(b"u").stop();
    let file = legacy_file(&pickle, &[("7".to_owned(), 2, values(2))], true);
    assert_refused(&file, &["tensor b", "does not fit its 8 bytes"]);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let shared = pickle
        .split(|byte| *byte == b'Q')
        .map(<[u8]>::to_vec)
        .collect::<Vec<_>>();
    assert_eq!(shared.len(), 3);
    // The number of values stands before the end of the persistent id: `J`, four bytes, `Nt`.
    let mut whole = Vec::new();
    for (index, part) in shared.iter().enumerate() {
        let mut part = part.clone();
        if index < 2 {
            let at = part.len() - 6;
            assert_eq!(part[at - 1], b'J');
            part[at] = 4;
            part.push(b'Q');
        }
        whole.extend(part);
    }
    let file = legacy_file(&whole, &[("7".to_owned(), 4, values(4))], true);
    fs::write(&path, &file).unwrap();
    let tensors = pytorch::read(&path).unwrap().tensors;
    assert_eq!(tensors["b"].offset, tensors["a"].offset + 8);
    assert_eq!(tensors["b"].offset + 8, file.len() as u64);
}

#[test]
fn what_is_not_data_is_refused_by_name() {
    let hostile = Pickler::legacy()
        .global("os", "system")
        .raw(b"(")
        .text("true")
        .raw(b"tR")
        .stop();
    let none = Vec::new();
    assert_refused(
        &legacy_file(&hostile, &none, true),
        &["os.system", "nothing was executed"],
    );
    // In the pickles before and behind it, too.
    let file = legacy_file(&one_tensor(2), &[("7".to_owned(), 2, values(2))], true);
    let version = Pickler::new().raw(b"M\xe9\x03").stop();
    let at = file
        .windows(version.len())
        .position(|part| part == version)
        .unwrap();
    let mut changed = file[..at].to_vec();
    changed.extend(&hostile);
    changed.extend(&file[at + version.len()..]);
    assert_refused(&changed, &["os.system"]);
    let keys = [b"\x80\x02](X\x01\0\0\0".as_slice(), b"7e."].concat();
    let at = file
        .windows(keys.len())
        .position(|part| part == keys)
        .unwrap();
    let mut changed = file[..at].to_vec();
    changed.extend(&hostile);
    assert_refused(&changed, &["os.system"]);
}

#[test]
fn values_of_another_machine_or_another_format_are_refused() {
    let storages = [("7".to_owned(), 2, values(2))];
    let file = legacy_file(&one_tensor(2), &storages, true);
    assert_refused(
        &legacy_file(&one_tensor(2), &storages, false),
        &["big-endian", "little-endian machine"],
    );
    let replaced = |from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let at = file
            .windows(from.len())
            .position(|part| part == from)
            .unwrap();
        let mut file = file.clone();
        file[at..at + to.len()].copy_from_slice(to);
        file
    };
    assert_refused(
        &replaced(b"M\xe9\x03.", b"M\xea\x03."),
        &["version of its format", "1001"],
    );
    assert_refused(
        &replaced(b"little_endian", b"middle_endian"),
        &["byte order"],
    );
    // Views of other storages, which PyTorch 0.3 had.
    assert_refused(&replaced(b"NtQ", b")tQ"), &["part of another one"]);
}

#[test]
fn storages_that_are_not_as_the_object_says_are_named() {
    let two = || ("7".to_owned(), 2, values(2));
    let file = |storages: &[(String, usize, Vec<u8>)]| legacy_file(&one_tensor(2), storages, true);
    assert_refused(&file(&[]), &["tensor.a", "refers to 7"]);
    assert_refused(
        &file(&[("7".to_owned(), 3, values(3))]),
        &["storage 7 has 2 values, but 3"],
    );
    assert_refused(
        &file(&[two(), ("8".to_owned(), 1, values(1))]),
        &["storage 8", "refers to"],
    );
    assert_refused(&file(&[two(), two()]), &["storage 7 twice"]);
    // Not data that the reader would look for beyond the end of the file.
    assert_refused(
        &file(&[("7".to_owned(), 2, values(1))]),
        &["truncated", "tensor.a"],
    );
    let huge = usize::try_from(i64::MAX).unwrap();
    for count in [huge, huge / 4, 1 << 40] {
        let storage = ("7".to_owned(), count, values(2));
        refused(&legacy_file(&one_tensor(count), &[storage], true));
    }
    // Two tensors that differ about their storage.
    let mut pickler = Pickler::legacy();
    pickler.raw(b"}(");
    for (name, dtype) in [("a", "FloatStorage"), ("b", "HalfStorage")] {
        pickler.text(name).tensor("7", dtype, 0, &[2], &[1]);
    }
    let pickle = pickler.raw(b"u").stop();
    assert_refused(
        &legacy_file(&pickle, &[two()], true),
        &["storage 7", "two number formats"],
    );
}

/// A file that ends anywhere is an error, and one that goes on is not: PyTorch leaves the rest.
#[test]
fn every_truncation_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    let tensors = support::weights()
        .into_iter()
        .filter(|(name, _)| name.contains("LayerNorm"))
        .collect();
    write_legacy(&path, &tensors, Format::F16);
    let whole = fs::read(&path).unwrap();
    assert_eq!(pytorch::read(&path).unwrap().tensors.len(), tensors.len());
    for length in 0..whole.len() {
        refused(&whole[..length]);
    }
    let longer = [whole.as_slice(), b"more"].concat();
    fs::write(&path, longer).unwrap();
    assert_eq!(pytorch::read(&path).unwrap().tensors.len(), tensors.len());
}

#[test]
fn a_changed_byte_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let tensors = support::weights()
        .into_iter()
        .filter(|(name, _)| name.contains("layer.0.LayerNorm") || name.contains("after"))
        .collect();
    write_legacy(&path, &tensors, Format::F16);
    let whole = fs::read(&path).unwrap();
    let mut read = 0;
    for at in 0..whole.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] ^= change;
            fs::write(&path, &changed).unwrap();
            // An error or other values: what matters is that it ends, without a panic, and that
            // no tensor lies outside of the file.
            if let Ok(archive) = pytorch::read(&path) {
                read += 1;
                for tensor in archive.tensors.values() {
                    let values: usize = tensor.shape.iter().product();
                    let end = tensor.offset + (values * tensor.dtype.bytes()) as u64;
                    assert!(end <= whole.len() as u64);
                }
            }
        }
    }
    // A changed value still reads, a changed opcode does not.
    assert!(read > 0 && read < 3 * whole.len());
}

/// A file with its settings in `config.json`, and a pickle longer than any checkpoint's.
#[test]
fn a_folder_and_an_endless_pickle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    write_config(folder.path());
    write_legacy(&path, &weights(), Format::F32);
    let model = export(
        folder.path(),
        &folder.path().join("model"),
        &ExportOptions::default(),
    );
    assert_eq!(
        model.unwrap().architecture().family().layers(),
        support::LAYERS
    );

    let mut endless = Pickler::legacy();
    endless.raw(&vec![b'N'; 9 << 20]);
    let file = legacy_file(&endless.stop(), &[], true);
    assert_refused(&file, &["more than any checkpoint needs"]);
    assert!(Path::new(&path).is_file());
}
