//! What is fuzzed: each function takes any bytes, and must neither panic, nor hang, nor break its
//! law.

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::OnceLock;

use seqembed::journal::{log, rows};
use seqembed::manifest;
use seqembed::records::Reader;
use seqembed::settings::Overrides;
use seqembed::tokenize::{self, TokenizerKind};
use seqembed_onnx::checkpoint::{pickle as pickles, pytorch as archives, safetensors as tensors};

/// A small file may unpack to a large one: what comes after so many bytes is let be.
const UNPACKED: usize = 4 << 20;

/// The reader of sequences, through all decompressors.
pub fn records(data: &[u8]) {
    let Ok(mut reader) = Reader::new("fuzzed", Box::new(Cursor::new(data.to_vec()))) else {
        return;
    };
    let mut read = 0;
    let mut count = 0;
    for record in reader.by_ref() {
        let Ok(record) = record else {
            break;
        };
        assert!(
            !record
                .sequence
                .iter()
                .any(|byte| b"\n\r \t\0".contains(byte))
        );
        assert!(!record.header.contains('\n'));
        count += 1;
        read += record.sequence.len() + record.header.len() + 1;
        if read > UNPACKED {
            break;
        }
    }
    assert_eq!(reader.delivered(), count);
    let _ = reader.warnings();
}

/// The manifest, its kind by the first byte.
pub fn manifest(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else {
        return;
    };
    let name = ["m.yaml", "m.csv", "m.tsv", "m"][usize::from(kind % 4)];
    let path = file(name, text);
    match manifest::read(&path, &Overrides::default()) {
        Ok(manifest) => assert!(!manifest.jobs.is_empty()),
        Err(errors) => {
            assert!(!errors.mistakes.is_empty());
            let _ = errors.to_string();
        }
    }
}

/// The header of a safetensors file.
pub fn safetensors(data: &[u8]) {
    let path = file("x.safetensors", data);
    if let Ok(tensors) = tensors::read(&path) {
        for tensor in tensors.values() {
            assert!(tensor.offset <= data.len() as u64);
        }
    }
}

/// The pickle of a PyTorch checkpoint.
pub fn pickle(data: &[u8]) {
    if let Ok(pickle) = pickles::read(data) {
        let _ = pickle.entry(pickle.root(), "model");
    }
}

/// A PyTorch checkpoint, as a zip archive or of before 1.6.
pub fn pytorch(data: &[u8]) {
    let path = file("x.bin", data);
    if let Ok(archive) = archives::read(&path) {
        for tensor in archive.tensors.values() {
            assert!(tensor.offset <= data.len() as u64);
        }
    }
}

/// A tokenizer's file, its kind by the first byte: a file that is taken gives ids that it has, for
/// any letters.
pub fn tokenizer(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else {
        return;
    };
    let kinds = [
        TokenizerKind::Esm,
        TokenizerKind::Bert,
        TokenizerKind::Bpe,
        TokenizerKind::NonOverlapping,
        TokenizerKind::Pairs,
    ];
    let kind = kinds[usize::from(kind.wrapping_sub(b'0') % 5)];
    match tokenize::read(kind, text) {
        Ok(tokenizer) => {
            for sequence in [b"ACGTTGCANNACGTMKV".as_slice(), b"", b"A C\xff[CLS]*"] {
                let encoded = tokenizer.encode(sequence);
                assert!(
                    encoded
                        .ids
                        .iter()
                        .all(|&id| (id as usize) < tokenizer.vocabulary())
                );
            }
        }
        Err(error) => assert!(!error.to_string().contains('\u{1b}')),
    }
}

/// The journal's log: what is read and written again is read as the same.
pub fn journal(data: &[u8]) {
    let (lines, _) = log::parse(data);
    let text: String = lines.iter().map(log::write).collect();
    let (again, damaged) = log::parse(text.as_bytes());
    assert_eq!(damaged, 0);
    assert_eq!(format!("{again:?}"), format!("{lines:?}"));
}

/// A shard of saved rows.
pub fn rows(data: &[u8]) {
    let length = data.len() as u64;
    let scanned = rows::scan(&mut Cursor::new(data), |frame| {
        let vectors: u64 = frame.marks.iter().map(|mark| u64::from(mark.vectors)).sum();
        assert!(frame.values_at + vectors * u64::from(frame.hidden) * 4 < length);
    });
    assert!(scanned.is_ok());
}

/// A file with these bytes, for the readers that want one.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder =
        FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder for files that are fuzzed"));
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("the folder can be written to");
    path
}
