//! Sequence files as they come: every compression, every odd line, and damage.

use std::fs;
use std::io::{self, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder, write::GzEncoder};
use proptest::prelude::*;
use seqembed::records::{self, Problem, Reader, Record, RecordError, Source};

/// Writes a file under a name that says nothing of its content.
fn file(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("input");
    fs::write(&path, bytes).unwrap();
    path
}

/// All records of a file, and the error that ended it.
fn read(bytes: &[u8]) -> (Vec<Record>, Option<RecordError>) {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), bytes);
    collect(records::open(&Source::Path(path)).unwrap()).0
}

type Outcome = (Vec<Record>, Option<RecordError>);

fn collect(mut reader: Reader) -> (Outcome, Reader) {
    let mut all = Vec::new();
    let mut last = None;
    for record in reader.by_ref() {
        match record {
            Ok(record) => all.push(record),
            Err(error) => last = Some(error),
        }
    }
    assert!(reader.next().is_none(), "a reader ends once");
    ((all, last), reader)
}

/// All records of a file that must be whole.
fn good(bytes: &[u8]) -> Vec<Record> {
    let (all, error) = read(bytes);
    assert!(error.is_none(), "{error:?}");
    all
}

fn pairs(records: &[Record]) -> Vec<(&str, &str)> {
    records
        .iter()
        .map(|record| {
            (
                record.header.as_str(),
                str::from_utf8(&record.sequence).unwrap(),
            )
        })
        .collect()
}

fn bad(bytes: &[u8]) -> (usize, String) {
    let (all, error) = read(bytes);
    (all.len(), error.expect("an error").to_string())
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// One block as bgzip writes it: a gzip member that tells its own size in an extra field.
fn bgzf_block(text: &[u8]) -> Vec<u8> {
    let build = |size: [u8; 2]| {
        let extra = [&b"BC\x02\0"[..], &size].concat();
        let mut encoder = GzBuilder::new()
            .extra(extra)
            .write(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    };
    let size = u16::try_from(build([0, 0]).len() - 1).unwrap();
    let mut block = build(size.to_le_bytes());
    block[9] = 0xff; // bgzip leaves the operating system unknown
    block
}

const BGZF_END: &[u8] = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0\x1b\0\x03\0\0\0\0\0\0\0\0\0";

fn bzip2(text: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn xz(text: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// Many records of letters that do not compress to nothing, so that damage lands within them.
fn proteome(records: usize) -> Vec<u8> {
    let mut text = Vec::new();
    let mut state = 1_u64;
    for number in 0..records {
        writeln!(text, ">protein_{number} made up").unwrap();
        for _ in 0..5 {
            for _ in 0..60 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                text.push(b"ACDEFGHIKLMNPQRSTVWY"[usize::try_from(state >> 33).unwrap() % 20]);
            }
            text.push(b'\n');
        }
    }
    text
}

type Encode = fn(&[u8]) -> Vec<u8>;
const ENCODERS: [(&str, Encode); 5] = [
    ("gzip", gzip),
    ("gzip", bgzf_block),
    ("bzip2", bzip2),
    ("xz", xz),
    ("zstd", zstd),
];

#[test]
fn every_compression_is_told_by_content() {
    let text = proteome(100);
    let plain = good(&text);
    assert_eq!(plain.len(), 100);
    assert_eq!(plain[7].header, "protein_7 made up");
    assert_eq!(plain[7].sequence.len(), 300);
    for (name, encode) in ENCODERS {
        assert_eq!(good(&encode(&text)), plain, "{name}");
    }
}

#[test]
fn all_members_streams_and_frames_are_read() {
    // Cut within a sequence line, so that a part that is lost can't go unseen.
    let text = proteome(60);
    let plain = good(&text);
    for (name, encode) in ENCODERS {
        let parts: Vec<u8> = text.chunks(2_345).flat_map(encode).collect();
        assert_eq!(good(&parts), plain, "{name}");
    }
}

#[test]
fn skippable_zstd_frames_are_passed_over() {
    let mut bytes = b"\x50\x2a\x4d\x18\x04\0\0\0skip".to_vec();
    bytes.extend(zstd(b">a\nMK\n"));
    assert_eq!(pairs(&good(&bytes)), [("a", "MK")]);
}

#[test]
fn zstd_with_a_long_window_is_read() {
    let text = proteome(50);
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    encoder.long_distance_matching(true).unwrap();
    encoder.window_log(30).unwrap();
    encoder.write_all(&text).unwrap();
    assert_eq!(good(&encoder.finish().unwrap()), good(&text));
}

#[test]
fn a_cut_file_delivers_what_stands_before_the_cut() {
    let text = proteome(3_000);
    let plain = good(&text);
    for (name, encode) in ENCODERS {
        let whole: Vec<u8> = text.chunks(40_000).flat_map(encode).collect();
        let (before, error) = read(&whole[..whole.len() * 2 / 3]);
        let error = error.unwrap_or_else(|| panic!("{name}: no error"));
        assert!(before.len() > 1_000, "{name}: {}", before.len());
        assert_eq!(before, plain[..before.len()], "{name}");
        let text = error.to_string();
        assert!(
            text.contains(&format!("the {name} data are cut short")),
            "{text}"
        );
        let last = before.len();
        assert!(
            text.contains(&format!("after record {last} (`protein_{}`)", last - 1)),
            "{text}"
        );
    }
}

#[test]
fn a_file_cut_within_its_first_bytes_is_an_error() {
    for (name, encode) in ENCODERS {
        let whole = encode(&proteome(20));
        for length in [7, 12, 20] {
            let (before, error) = read(&whole[..length]);
            assert!(before.is_empty());
            let error = error.unwrap_or_else(|| panic!("{name}: no error at {length}"));
            assert!(
                matches!(*error.problem, Problem::Damaged { cut: true, .. }),
                "{error}"
            );
        }
    }
}

#[test]
fn a_wrong_checksum_is_an_error() {
    let text = proteome(200);
    let crc_of: [(&str, Encode, usize); 3] =
        [("gzip", gzip, 8), ("zstd", zstd, 2), ("bzip2", bzip2, 3)];
    for (name, encode, from_end) in crc_of {
        let mut bytes = encode(&text);
        let at = bytes.len() - from_end;
        bytes[at] ^= 0x55;
        let (before, error) = read(&bytes);
        let error = error.unwrap_or_else(|| panic!("{name}: no error"));
        assert!(
            matches!(*error.problem, Problem::Damaged { .. }),
            "{name}: {error}"
        );
        // The last record may go on behind the damage, so it is not delivered.
        assert!(before.len() < 200, "{name}");
    }
}

#[test]
fn damage_in_the_middle_is_an_error() {
    let text = proteome(2_000);
    let plain = good(&text);
    for (name, encode) in ENCODERS {
        let mut bytes: Vec<u8> = text.chunks(40_000).flat_map(encode).collect();
        let middle = bytes.len() / 2;
        for byte in &mut bytes[middle..middle + 64] {
            *byte = !*byte;
        }
        let (before, error) = read(&bytes);
        let error = error.unwrap_or_else(|| panic!("{name}: no error"));
        assert!(
            matches!(*error.problem, Problem::Damaged { .. }),
            "{name}: {error}"
        );
        assert!(before.len() > 100, "{name}: {}", before.len());
        // A block may be delivered before its checksum is seen to be wrong: all blocks before it
        // are right.
        assert_eq!(
            before[..before.len() - 100],
            plain[..before.len() - 100],
            "{name}"
        );
    }
}

/// `gzip -t` and `xz -t` say nothing of zero bytes behind the data, with which tapes and object
/// stores fill their blocks.
#[test]
fn zero_bytes_behind_the_data_are_passed_over() {
    let text = proteome(50);
    let plain = good(&text);
    let (first, second) = text.split_at(5_000);
    for (name, encode) in ENCODERS {
        for zeros in [1, 3, 4, 512, 300_000] {
            let padding = vec![0; zeros];
            let bytes = [&encode(&text)[..], &padding].concat();
            assert_eq!(good(&bytes), plain, "{name}, {zeros}");
            // As when padded files are joined.
            let bytes = [&encode(first)[..], &padding, &encode(second), &padding].concat();
            assert_eq!(good(&bytes), plain, "{name}, {zeros}");
        }
    }
}

#[test]
fn what_else_stands_behind_the_data_is_told_after_all_records() {
    let text = proteome(50);
    let plain = good(&text);
    for (name, encode) in ENCODERS {
        for junk in [
            &b"garbage"[..],
            b"\0\0\0\0garbage",
            b">late\nMK\n",
            b"PK\x03\x04",
        ] {
            let (before, error) = read(&[&encode(&text)[..], junk].concat());
            assert_eq!(before, plain, "{name}: all stand before it");
            let message = error
                .unwrap_or_else(|| panic!("{name}: no error"))
                .to_string();
            for part in [
                &format!(
                    "the {name} data are complete after all 50 records (the last is `protein_49`)"
                ),
                "are followed by other data",
                &junk[junk.len() - 3..].escape_ascii().to_string(),
            ] {
                assert!(
                    message.contains(part),
                    "{name}: `{part}` is not in {message}"
                );
            }
        }
    }
}

#[test]
fn a_bgzip_file_without_its_end_block_is_warned_about() {
    let text = proteome(10);
    let mut bytes = bgzf_block(&text);
    let warning_of = |bytes: &[u8]| {
        let reader = Reader::new("a.faa.gz", Box::new(Cursor::new(bytes.to_vec()))).unwrap();
        let ((all, error), reader) = collect(reader);
        assert_eq!((all.len(), error.is_none()), (10, true));
        reader.warnings()
    };
    let warnings = warning_of(&bytes);
    assert!(
        warnings[0].contains("a.faa.gz: the end-of-file block of bgzip is missing"),
        "{warnings:?}"
    );
    bytes.extend(BGZF_END);
    assert_eq!(warning_of(&bytes), [""; 0]);
    bytes.extend([0; 512]);
    assert_eq!(warning_of(&bytes), [""; 0], "filled up with zero bytes");
    assert_eq!(warning_of(&gzip(&text)), [""; 0], "gzip has no such block");
}

#[test]
fn an_empty_file_has_no_records_and_a_warning() {
    let texts: [Vec<u8>; 8] = [
        Vec::new(),
        b"\n \r\n\n".to_vec(),
        b"\xef\xbb\xbf".to_vec(),
        b"; only a comment\n".to_vec(),
        gzip(b""),
        BGZF_END.to_vec(),
        bzip2(b""),
        zstd(b"\n"),
    ];
    for text in texts {
        let reader = Reader::new("input", Box::new(Cursor::new(text))).unwrap();
        assert!(!reader.is_empty(), "not known before the end");
        let ((all, error), reader) = collect(reader);
        assert!(all.is_empty() && error.is_none(), "{error:?}");
        assert!(reader.is_empty());
        assert_eq!(reader.warnings(), ["input: the file has no records"]);
    }
}

#[test]
fn odd_but_clear_fasta_is_read() {
    for (text, expected) in [
        (&b">a"[..], vec![("a", "")]),
        (b">a\n", vec![("a", "")]),
        (b">\nMK\n", vec![("", "MK")]),
        (b">a\n>b\nMK\n>c\n", vec![("a", ""), ("b", "MK"), ("c", "")]),
        (b">a\nMK", vec![("a", "MK")]),
        (
            b">a one\r\nMK\r\nLV\r\n>b\r\nG\r\n",
            vec![("a one", "MKLV"), ("b", "G")],
        ),
        (b"\xef\xbb\xbf>a\nMK\n", vec![("a", "MK")]),
        (b"\xef\xbb\xbf\n\n  \n>a\nMK\n", vec![("a", "MK")]),
        (
            b">a\nM K\tL\x0bV\x0c \n\n  G\n\n\n>b\nA\n",
            vec![("a", "MKLVG"), ("b", "A")],
        ),
        (b">a\n1 MKLV 4\n5 GJ*- 8\n", vec![("a", "1MKLV45GJ*-8")]),
        (b">a\nmklv\n", vec![("a", "mklv")]),
        (b";head\n>a\n;inside\nMK\n; more\nLV\n", vec![("a", "MKLV")]),
        (
            b">a  with  spaces \t \nMK\n",
            vec![("a  with  spaces", "MK")],
        ),
        (b">a\nM\n>a\nK\n", vec![("a", "M"), ("a", "K")]),
        (b">a>b\nMK\n", vec![("a>b", "MK")]),
        (b">a\x01gi|2\nMK\n", vec![("a\u{1}gi|2", "MK")]),
        // Files joined, each with a mark of its own.
        (
            b"\xef\xbb\xbf>a\nMK\n\xef\xbb\xbf>b\nLV\n\xef\xbb\xbf>c\n",
            vec![("a", "MK"), ("b", "LV"), ("c", "")],
        ),
        (b"# made by\n#\n\n>a\nMK\n", vec![("a", "MK")]),
    ] {
        let all = good(text);
        assert_eq!(pairs(&all), expected, "{}", text.escape_ascii());
    }
}

/// All records of a text that must be whole, and what is told of it.
fn told(text: &[u8]) -> (Vec<Record>, Vec<String>) {
    let ((all, error), reader) =
        collect(Reader::new("input", Box::new(Cursor::new(text.to_vec()))).unwrap());
    assert!(error.is_none(), "{error:?}");
    (all, reader.warnings())
}

/// Text of lines that end with a carriage return alone, in a file or joined with one whose lines
/// end otherwise: it would be taken for one line, and its records lost.
#[test]
fn records_behind_lone_carriage_returns_are_not_lost() {
    for (text, whole, line) in [
        (&b">a\rMKTAY\r>b\nMKKAY\n"[..], 0, 1),
        (b">a\nMKT\n>b desc\rMKKKKK\r>c\rAAA\r>d\nWWW\n", 1, 3),
        (b">a\nMKT\n>b desc\rmore\nWWW\n", 1, 3),
        (b">a\nMKT\r>b\rMKK\n", 0, 2),
        (b">a\nMKT\r>b\nMKK\n", 0, 2),
        (b">a\nMKT\n\r>b\nMKK\n", 0, 3),
        (b">a\nMKT\r@b\rMKK\r+\rIII\n", 0, 2),
        (b">a\nM<mask\r>b\nMKK\n", 0, 2),
        // Comments, which are passed over.
        (b";note\r>a\rMKT\n>b\nMKK\n", 0, 1),
        (b"# note\r>a\rMKT\n>b\nMKK\n", 0, 1),
        (b">a\nMKT\n;note\rAYI\n", 0, 3),
        (b">a\nMKT\r;note\nAYI\n", 0, 2),
        (b"@a\rMKTAY\r+\rIIIII\r@b\nMKK\n+\nIII\n", 0, 1),
        (b"@a\nMKT\r+\rIII\n", 0, 2),
        (b"@a\nMKT\n+\rIII\r@b\rMKK\r+\nIII\n", 0, 3),
        // As many qualities as residues.
        (b"@a\nMKTAYIAKQ\n+\nII\r@b\rMK\r+\rII\n", 0, 4),
        (b"@r\nG\n+\nI\n@a\nMKT\n+\nIII\r@b\rMKK\r+\rIII\n", 1, 8),
    ] {
        for bytes in [text.to_vec(), gzip(text)] {
            let (before, error) = read(&bytes);
            let error = error.unwrap_or_else(|| panic!("{}: no error", text.escape_ascii()));
            let expected = format!("line {line}: line ends with CR only, as on old Macs");
            let said = error.to_string();
            assert!(said.contains(&expected), "{}: {said}", text.escape_ascii());
            assert_eq!(before.len(), whole, "{}", text.escape_ascii());
            let reader = Reader::new("input", Box::new(Dripping(Cursor::new(bytes)))).unwrap();
            let ((_, dripping), _) = collect(reader);
            assert!(dripping.unwrap().to_string().contains(&expected));
        }
    }
    // White space among others, where nothing says that it ends a line.
    for text in [
        &b">a\r\r\nMK\rLV\r\r\n\r\n"[..],
        b"@a\r\r\nMK\rLV\n+\r\r\nII\rII\r\r\n",
    ] {
        assert_eq!(pairs(&good(text)), [("a", "MKLV")]);
    }
}

#[test]
fn headers_that_are_not_utf8_are_kept_apart() {
    let (all, warnings) = told(b">caf\xe9 \xff x\nMK\n>caf\xe8\nMK\n>caf\xc3\xa9\nMK\n");
    // What Python makes of them: `bytes.decode("utf-8", "backslashreplace")`.
    assert_eq!(all[0].header, "caf\\xe9 \\xff x");
    let ids: Vec<_> = all.iter().map(Record::id).collect();
    assert_eq!(ids, ["caf\\xe9", "caf\\xe8", "café"]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("input: line 1: the header is not valid UTF-8 (1 more header is not)"),
        "{warnings:?}"
    );
    // The same in letters.
    let (all, warnings) = told(b">caf\xe9 x\nMK\n>a\\b\\x7f\nMK\n>caf\\xe9 y\nMK\n>c\\\xe9\nMK\n");
    let ids: Vec<_> = all.iter().map(Record::id).collect();
    assert_eq!(ids, ["caf\\xe9", "a\\b\\x7f", "caf\\\\xe9", "c\\\\\\xe9"]);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let expected = r"input: line 5: the header of record `caf\\xe9` contains text that looks like an escaped byte";
    assert!(warnings[1].starts_with(expected), "{warnings:?}");
    let (all, warnings) = told(">señal α\nMK\n".as_bytes());
    assert_eq!(all[0].header, "señal α");
    assert_eq!(warnings, [""; 0]);
}

/// Python's `len` of each text, a byte that is not UTF-8 being one by itself.
#[test]
fn a_character_of_several_bytes_is_one_letter() {
    let other = char::from(records::OTHER);
    for (text, expected, letter) in [
        ("MK–AY".as_bytes(), "MK.AY", "'–' (U+2013, en dash)"),
        ("MK\u{a0}AY".as_bytes(), "MK.AY", "U+00A0 (no-break space)"),
        ("MK😀AY".as_bytes(), "MK.AY", "'😀' (U+1F600)"),
        (
            "M\u{200b}\u{ad}K".as_bytes(),
            "M..K",
            "U+200B (zero width space)",
        ),
        ("M\u{feff}K".as_bytes(), "M.K", "U+FEFF (byte order mark"),
        (
            "M\u{202e}K".as_bytes(),
            "M.K",
            "U+202E (a text direction mark)",
        ),
        ("MKé".as_bytes(), "MK.", "'é' (U+00E9)"),
        (b"M\xe9K", "M.K", "the byte 0xE9, which is not UTF-8,"),
        (b"M\xe2\x80K", "M..K", "the byte 0xE2, which is not UTF-8,"),
        (b"M\xe2\x80", "M..", "the byte 0xE2, which is not UTF-8,"),
        (
            b"M\xf0\x9f\xe2\x80\x93K",
            "M...K",
            "the byte 0xF0, which is not UTF-8,",
        ),
        // Cut by a line's end.
        (
            b"M\xe2\n\x80\x93K",
            "M...K",
            "the byte 0xE2, which is not UTF-8,",
        ),
    ] {
        let fasta = [b">a\nMK\n>b x\n", text, b"\nLV\n"].concat();
        let (all, warnings) = told(&fasta);
        let sequence: String = all[1].sequence.iter().copied().map(char::from).collect();
        assert_eq!(sequence, expected.replace('.', &other.to_string()) + "LV");
        let at = expected.find('.').unwrap();
        assert!(
            all[1].letter(at).to_string().contains(letter),
            "{}",
            all[1].letter(at)
        );
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        for part in ["input: line 4: ", letter, "record `b`"] {
            assert!(
                warnings[0].contains(part),
                "`{part}` is not in {warnings:?}"
            );
        }
        assert_eq!(
            warnings[0].contains("invisible"),
            letter.starts_with("U+"),
            "{warnings:?}"
        );
        // The same from memory.
        let record = Record::new("b x".to_owned(), [text, b"LV"].concat());
        if !text.contains(&b'\n') {
            assert_eq!(record, all[1]);
        }
        // And as a FASTQ record, whose qualities are a letter's each.
        let qualities = "I".repeat(expected.len());
        let reads = [b"@b x\n", text, b"\n+\n", qualities.as_bytes(), b"\n"].concat();
        assert_eq!(told(&reads).0[0].sequence.len(), expected.len());
    }
}

#[test]
fn a_mask_is_one_letter_and_is_told() {
    let other = char::from(records::OTHER);
    for text in ["M<mask>K", "M<MASK>K", "M<ma\nsk>K", "M< mask>K"] {
        let (all, warnings) = told(format!(">a\n{text}\n").as_bytes());
        let sequence: String = all[0].sequence.iter().copied().map(char::from).collect();
        assert_eq!(sequence, format!("M{other}K"), "{text}");
        assert_eq!(all[0].letter(1).to_string(), "`<mask>`");
        assert!(warnings[0].contains("`<mask>` in the sequence of record `a`"));
        assert!(warnings[0].contains("not as a mask"), "{warnings:?}");
    }
    assert_eq!(
        Record::new(String::new(), b"M<mask>K".to_vec()).sequence,
        b"M\xffK"
    );
    // It is ASCII, and not one of the letters that are not.
    let (_, warnings) = told(">a\nM<mask>K\n>b\nM–K\n<mask>\n".as_bytes());
    let stand = "in the sequence of record";
    for (warning, expected) in warnings.iter().zip([
        format!("line 4: '–' (U+2013, en dash) {stand} `b`: it"),
        format!("line 2: `<mask>` {stand} `a` (1 more is in this file): it"),
    ]) {
        assert!(warning.contains(&expected), "{warning}");
    }
    assert_eq!(warnings.len(), 2);
    let (_, message) = bad(b">a\nM<pad>K\n");
    assert!(
        message.contains("line 2: `>` within the sequence"),
        "{message}"
    );
}

#[test]
fn lines_that_grep_puts_between_matches_are_told() {
    let (all, warnings) = told(b">a\nMK\n--\n>b\nM--K\n--\r\n>c\n--MK\n--");
    let expected = [("a", "MK--"), ("b", "M--K--"), ("c", "--MK--")];
    assert_eq!(pairs(&all), expected);
    assert_eq!(warnings.len(), 1);
    for part in [
        "line 3: a line with only `--`",
        "record `a`",
        "2 more such lines",
    ] {
        assert!(warnings[0].contains(part), "{warnings:?}");
    }
}

/// A record that is longer than the limit is told by its name, and no more of it is held than that.
#[test]
fn a_record_beyond_the_limit_is_an_error() {
    let text = [
        b">a\nMK\n>long one\n",
        &b"MKLV\n".repeat(100_000)[..],
        b">c\nMK\n",
    ]
    .concat();
    let read = |limits| {
        let mut reader = Reader::new("input", Box::new(Cursor::new(text.clone()))).unwrap();
        reader.limit(limits);
        collect(reader).0
    };
    let longest = |letters| records::Limits {
        longest: Some(letters),
        ..records::Limits::default()
    };
    let (all, error) = read(longest(400_000));
    assert!(error.is_none() && all.len() == 3, "{error:?}");
    let (before, error) = read(longest(399_999));
    assert_eq!(before.len(), 1);
    let message = error.unwrap().to_string();
    for part in [
        "line 3: record `long` is longer than 399,999",
        "option `max_record`",
    ] {
        assert!(message.contains(part), "{message}");
    }
    // Where only the beginning is wanted, the rest is counted.
    let (all, error) = read(records::Limits {
        keep: Some(10),
        ..records::Limits::default()
    });
    assert!(error.is_none(), "{error:?}");
    assert_eq!(all[1].sequence, b"MKLVMKLVMK");
    let rest = all[1].rest.unwrap();
    assert_eq!((rest.letters, rest.last), (399_990, b'V'));
    assert_eq!(
        (all[2].sequence.as_slice(), all[2].rest),
        (&b"MK"[..], None)
    );
}

type Change<'a> = &'a dyn Fn(&Path);

#[test]
fn a_file_that_is_written_to_while_it_is_read_is_an_error() {
    use std::fs::OpenOptions;
    use std::time::{Duration, SystemTime};

    let text = proteome(3_000);
    let half = text.len() as u64 / 2;
    let later = SystemTime::now() + Duration::from_mins(1);
    let path_of = |folder: &Path| folder.join("input");
    let write = |folder: &Path| {
        OpenOptions::new()
            .write(true)
            .open(path_of(folder))
            .unwrap()
    };
    let cut: Change = &|folder| write(folder).set_len(half).unwrap();
    let appended: Change = &|folder| {
        let mut file = OpenOptions::new()
            .append(true)
            .open(path_of(folder))
            .unwrap();
        file.write_all(b">late\nMK\n").unwrap();
    };
    let overwritten: Change = &|folder| {
        let mut file = write(folder);
        file.write_all(b">other").unwrap();
        // As if that had taken its time.
        file.set_modified(later).unwrap();
    };
    let replaced: Change = &|folder| {
        fs::write(folder.join("new"), b">new\nMK\n").unwrap();
        fs::rename(folder.join("new"), path_of(folder)).unwrap();
    };
    let removed: Change = &|folder| fs::remove_file(path_of(folder)).unwrap();
    for (change, is_told) in [
        (cut, true),
        (appended, true),
        (overwritten, true),
        // The file that was opened is whole.
        (replaced, false),
        (removed, false),
    ] {
        for encode in [<[u8]>::to_vec as Encode, gzip] {
            let folder = tempfile::tempdir().unwrap();
            let path = file(folder.path(), &encode(&text));
            let mut reader = records::open(&Source::Path(path)).unwrap();
            reader.next().unwrap().unwrap();
            change(folder.path());
            let ((rest, error), _) = collect(reader);
            if is_told {
                let message = error.expect("an error").to_string();
                assert!(
                    message.contains("input: changed while it was being read"),
                    "{message}"
                );
            } else {
                assert!(error.is_none(), "{error:?}");
                assert_eq!(rest.len(), 2_999);
            }
        }
    }
}

/// The time of writing is put back, as some copying programs do. A new name or permission is no
/// change.
#[test]
fn a_file_that_is_written_to_in_place_is_read_again_at_its_end() {
    use std::os::unix::fs::PermissionsExt as _;

    let text = proteome(100);
    let path_of = |folder: &Path| folder.join("input");
    let rewrite = |folder: &Path, at: u64, byte: &[u8]| {
        use std::os::unix::fs::FileExt as _;
        let file = fs::File::options()
            .write(true)
            .open(path_of(folder))
            .unwrap();
        let written = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(byte, at).unwrap();
        file.set_modified(written).unwrap();
    };
    let first: Change = &|folder| rewrite(folder, 0, b"%");
    let middle: Change = &|folder| rewrite(folder, 5_000, b"\0\0");
    let same: Change = &|folder| rewrite(folder, 0, b"");
    let permissions: Change = &|folder| {
        fs::set_permissions(path_of(folder), fs::Permissions::from_mode(0o600)).unwrap();
    };
    let linked: Change = &|folder| fs::hard_link(path_of(folder), folder.join("other")).unwrap();
    let renamed: Change = &|folder| fs::rename(path_of(folder), folder.join("other")).unwrap();
    let removed: Change = &|folder| fs::remove_file(path_of(folder)).unwrap();
    let nothing: Change = &|_| ();
    for (change, is_told) in [
        (first, true),
        (middle, true),
        (same, false),
        (permissions, false),
        (linked, false),
        (renamed, false),
        (removed, false),
        (nothing, false),
    ] {
        for encode in [<[u8]>::to_vec as Encode, gzip] {
            let folder = tempfile::tempdir().unwrap();
            let bytes = encode(&text);
            let path = file(folder.path(), &bytes);
            let ((all, error), reader) = collect(records::open(&Source::Path(path)).unwrap());
            assert!(all.len() == 100 && error.is_none(), "{error:?}");
            // The clock of a file system may tick in steps of some milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change(folder.path());
            let hash = blake3::hash(&bytes).to_hex();
            let outcome = reader.verify(bytes.len() as u64, &hash);
            assert_eq!(outcome.is_err(), is_told, "{outcome:?}");
            if let Err(error) = outcome {
                assert!(
                    error
                        .to_string()
                        .contains("changed while it was being read")
                );
            }
        }
    }
}

#[test]
fn ids_are_first_words() {
    let id = |header: &str| {
        let record = Record::new(header.to_owned(), Vec::new());
        record.id().to_owned()
    };
    assert_eq!(id("sp|P1|X_Y a protein"), "sp|P1|X_Y");
    assert_eq!(id(" led by a blank"), "led");
    assert_eq!(id(""), "");
}

#[test]
fn fastq_is_read() {
    for (text, expected) in [
        (
            &b"@r1 x\nACGT\n+\nIIII\n@r2\nGG\n+r2\n@+\n"[..],
            vec![("r1 x", "ACGT"), ("r2", "GG")],
        ),
        (b"@r1\r\nACGT\r\n+\r\nIIII\r\n", vec![("r1", "ACGT")]),
        (b"@r1\nACGT\n+\nIIII", vec![("r1", "ACGT")]),
        // Wrapped, and a line of qualities that looks like a header.
        (
            b"@r1\nACGT\nAC\n+\n@III\n+I\n@r2\nG\n+\nI\n",
            vec![("r1", "ACGTAC"), ("r2", "G")],
        ),
        // Qualities wrapped otherwise than the sequence.
        (
            b"@r1\nACGTAC\n+\n@II\n@II\n@r2\nAC\nGT\n+\n@+@+\n@r3\nA\nC\n+\n\nII\n",
            vec![("r1", "ACGTAC"), ("r2", "ACGT"), ("r3", "AC")],
        ),
        (
            b"\xef\xbb\xbf@r1\nA\n+\nI\n\xef\xbb\xbf@r2\nC\n+\nI\n",
            vec![("r1", "A"), ("r2", "C")],
        ),
        // A name as of a SAM header's line, without its tag.
        (b"@PG\tx\nA\n+\nI\n", vec![("PG\tx", "A")]),
        (b"@r1\n\n+\n\n@r2\nG\n+\nI\n", vec![("r1", ""), ("r2", "G")]),
        (b"@r1\n+\n@r2\nG\n+\nI\n", vec![("r1", ""), ("r2", "G")]),
        (
            b"\n\n@r1\nG\n+\nI\n\n\n@r2\nA\n+\nI\n\n",
            vec![("r1", "G"), ("r2", "A")],
        ),
    ] {
        let all = good(text);
        assert_eq!(pairs(&all), expected, "{}", text.escape_ascii());
    }
}

// A table is as long as it must be.
#[allow(clippy::too_many_lines)]
#[test]
fn mistakes_are_told_with_line_and_record() {
    for (text, whole, expected) in [
        (
            &b"MKLV\n>a\nMK\n"[..],
            0,
            "line 1: sequence without a header (`MKLV`)",
        ),
        (b"\n\nMKLV\n", 0, "line 3: sequence without a header"),
        (
            b"#name\tx\n",
            0,
            "line 1: expected `>` (FASTA) or `@` (FASTQ), found `#name\\tx`",
        ),
        (b"%PDF-1.7\n\x80\x81", 0, "found `%PDF-1.7`"),
        (b"\x7fELF\x02\x01\0", 0, "found `\\x7fELF\\x02\\x01\\x00`"),
        (b"PK\x03\x04\x14\0", 0, "a zip archive? Unpack it first"),
        (b"\xff\xfe>\0a\0\n\0", 0, "UTF-16 text? Save it as UTF-8"),
        (b"LOCUS       AB000001\n", 0, "a GenBank file?"),
        (b"@HD\tVN:1.6\n@SQ\tSN:x\n", 0, "a SAM file?"),
        (b"@PG\tID:bwa\tPN:bwa\n", 0, "a SAM file?"),
        (b"@RG\tID:1\n@PG\tID:bwa\n", 0, "a SAM file?"),
        (b"@CO\tmade by hand\n", 0, "a SAM file?"),
        (b"# STOCKHOLM 1.0\n", 0, "a Stockholm alignment?"),
        (b"##fileformat=VCFv4.2\n#CHROM\tPOS\n", 0, "a VCF file?"),
        (b"# name\tx\na\t1\n", 0, "line 2: expected `>`"),
        (
            b"\x5d\0\0\x80\0\xff\xff\xff",
            0,
            "LZMA data? Unpack them first",
        ),
        (b"<!DOCTYPE html>\n", 0, "a web page or XML?"),
        (b">a\nMK\n>b\nM\0K\n", 1, "line 4: NUL byte"),
        (b">a\0b\nMK\n", 0, "line 1: NUL byte"),
        (b">a\nMK\n\0\0\0\0", 0, "line 3: NUL byte"),
        (
            b">a\nMK\n>b\nMKLV>c\nGG\n",
            1,
            "line 4: `>` within the sequence of record `b`",
        ),
        (
            b">a x\rMKLV\r>b\rGG\r",
            0,
            "line 1: line ends with CR only, as on old Macs",
        ),
        (
            b"@r1 x\rACGT\r+\rIIII\r@r2\rA\r+\rI\r",
            0,
            "line 1: line ends with CR only, as on old Macs",
        ),
        (
            b"@r1\nG\n+\nI\n@r2\nACGT\n+\nIII\n@r3\nG\n+\nI\n",
            1,
            "line 8: FASTQ record `r2` has 4 residues but 3 qualities",
        ),
        // The next header is as long as what is missing, and shorter.
        (
            b"@r1\nG\n+\nI\n@r2\nACGTAC\n+\nIII\n@r3\nG\n+\nI\n",
            1,
            "line 8: FASTQ record `r2` has 6 residues but 3 qualities",
        ),
        (
            b"@r1\nG\n+\nI\n@r2\nACGTACG\n+\nIII\n@r3\nGG\n+\nII\n",
            1,
            "line 8: FASTQ record `r2` has 7 residues but 3 qualities",
        ),
        (
            b"@r1\nACGT\n+\nIIIII\n",
            0,
            "line 4: FASTQ record `r1` has 4 residues but 5 qualities",
        ),
        (
            b"@r1\nG\n+\nI\n>r2\nG\n",
            1,
            "line 5: expected a FASTQ header (`@`), found `>r2`",
        ),
        (
            b"@r1\nG\n+\nI\n@r2\nACGT",
            1,
            "line 6: the file ends within FASTQ record `r2`",
        ),
        (
            b"@r1\nG\n+\nI\n@r2\nACGT\n+\nII\n",
            1,
            "line 8: the file ends within FASTQ record `r2`",
        ),
        (
            b"@r1\nG\n+\nI\n@r2\nACGT\n+\nII",
            1,
            "line 8: the file ends within FASTQ record `r2`",
        ),
        (
            b"@r1\nG\n+\nI\n@r2\nACGT\n+\n",
            1,
            "the file ends within FASTQ record `r2`",
        ),
        (b"@r1\nAC\n+\n\0I\n", 0, "line 4: NUL byte"),
    ] {
        let (before, message) = bad(text);
        assert!(
            message.contains(expected),
            "{}: {message}",
            text.escape_ascii()
        );
        assert_eq!(before, whole, "{}", text.escape_ascii());
        assert!(message.contains("input: "), "the file is named: {message}");
    }
    let mut tar = b"proteins.faa".to_vec();
    tar.resize(257, 0);
    tar.extend(b"ustar  \0");
    tar.resize(1024, 0);
    for bytes in [tar.clone(), gzip(&tar)] {
        let (_, message) = bad(&bytes);
        assert!(
            message.contains("a tar archive? Unpack it first"),
            "{message}"
        );
    }
    let (_, message) = bad(&gzip(&gzip(b">a\nMK\n")));
    assert!(message.contains("gzip within a compression?"), "{message}");
}

#[test]
fn messages_show_little_of_long_lines() {
    let (_, message) = bad(&b"M".repeat(1_000_000));
    assert!(message.len() < 300, "{}", message.len());
}

#[test]
fn what_cannot_be_opened_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let error = records::open(&Source::Path(folder.path().to_owned())).unwrap_err();
    assert!(matches!(*error.problem, Problem::Folder), "{error}");
    let missing = folder.path().join("missing.faa");
    let error = records::open(&Source::Path(missing)).unwrap_err();
    assert!(
        error.to_string().ends_with("missing.faa: no such file"),
        "{error}"
    );
}

/// A stream that gives a few bytes at a time, then fails as a disk does.
struct Failing(Cursor<Vec<u8>>);

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(3);
        match self.0.read(&mut buffer[..length])? {
            // EIO
            0 => Err(io::Error::from_raw_os_error(5)),
            read => Ok(read),
        }
    }
}

#[test]
fn a_failing_disk_is_not_taken_for_a_damaged_file() {
    let text = b">a\nMK\n>b\nMKLVMKLVMKLV\n";
    for bytes in [text.to_vec(), gzip(text)] {
        let reader = Reader::new("input", Box::new(Failing(Cursor::new(bytes)))).unwrap();
        let ((all, error), _) = collect(reader);
        let error = error.unwrap();
        assert!(
            matches!(*error.problem, Problem::Read { delivered: 1, .. }),
            "{error}"
        );
        assert_eq!(pairs(&all), [("a", "MK")]);
    }
}

/// The decoder meets the damage while the first header is looked at.
#[test]
fn damage_near_the_start_is_not_lost() {
    for text in [&b"@r\nG\n+\nI\n"[..], b">r\nG\n", b"\xef\xbb\xbf>r\nG\n"] {
        for (name, encode) in ENCODERS {
            let mut bytes = encode(text);
            bytes.truncate(bytes.len() - 1);
            let (_, error) = read(&bytes);
            let error = error.unwrap_or_else(|| panic!("{name}: no error"));
            assert!(
                matches!(*error.problem, Problem::Damaged { .. }),
                "{name}: {error}"
            );
        }
    }
}

/// A stream that gives one byte at a time, as slow pipes do.
struct Dripping(Cursor<Vec<u8>>);

impl Read for Dripping {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(1);
        self.0.read(&mut buffer[..length])
    }
}

#[test]
fn the_size_of_reads_does_not_matter() {
    let texts = [
        b"\xef\xbb\xbf\r\n>a b\r\nMK L\r\nV\r\n>c\r\n".to_vec(),
        b"@a\r\nAC\r\nG\r\n+\r\nII\r\nI\r\n@b\nA\n+\n@".to_vec(),
    ];
    for text in texts {
        for bytes in [
            text.clone(),
            gzip(&text),
            bgzf_block(&text),
            zstd(&text),
            xz(&text),
            bzip2(&text),
        ] {
            let reader = Reader::new("input", Box::new(Dripping(Cursor::new(bytes)))).unwrap();
            let ((all, error), _) = collect(reader);
            assert!(error.is_none(), "{error:?}");
            assert_eq!(all, good(&text));
        }
    }
    let reader = Reader::new(
        "input",
        Box::new(Dripping(Cursor::new(b"LOCUS       X\n".to_vec()))),
    )
    .unwrap();
    let ((_, error), _) = collect(reader);
    assert!(error.unwrap().to_string().contains("a GenBank file?"));
}

#[test]
fn one_very_long_line_is_read() {
    let mut text = b">long\n".to_vec();
    text.resize(20_000_000, b'K');
    text.extend(b"\n>next\nM\n");
    let all = good(&text);
    assert_eq!(all[0].sequence.len(), 20_000_000 - 6);
    assert_eq!(
        all[0].sequence.capacity(),
        all[0].sequence.len(),
        "no memory beyond the line is kept"
    );
    assert_eq!(pairs(&all[1..]), [("next", "M")]);
}

#[cfg(unix)]
#[test]
fn a_named_pipe_is_read() {
    use std::process::Command;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    let writer = std::thread::spawn({
        let path = path.clone();
        move || fs::write(path, gzip(b">a\nMK\n")).unwrap()
    });
    let ((all, error), _) = collect(records::open(&Source::Path(path)).unwrap());
    writer.join().unwrap();
    assert!(error.is_none());
    assert_eq!(pairs(&all), [("a", "MK")]);
}

proptest! {
    /// Whatever the bytes, and whatever the size of the reads: no panic, and one outcome.
    #[test]
    fn any_bytes_are_taken(bytes in proptest::collection::vec(
        prop_oneof![
            Just(b'>'), Just(b'\n'), Just(b'@'), Just(b'+'), Just(b'A'), Just(b'\r'), Just(0xef), Just(0xbb), Just(0xbf), any::<u8>(),
        ],
        0..200,
    )) {
        let outcome = |raw: Box<dyn Read + Send>| {
            let ((all, error), _) = collect(Reader::new("x", raw).unwrap());
            (all, error.map(|error| error.to_string()))
        };
        let whole = outcome(Box::new(Cursor::new(bytes.clone())));
        let dripping = outcome(Box::new(Dripping(Cursor::new(bytes))));
        prop_assert_eq!(whole, dripping);
    }

    /// Headers of one file that differ stay different, whatever their bytes.
    #[test]
    fn headers_that_differ_stay_different(
        headers in proptest::collection::vec(proptest::collection::vec(
            proptest::sample::select(vec![
                &b"\\"[..], b"x", b"\\xe9", b"e9", b"\xe9", b"\xc3\xa9", b"\xf0\x9f", b"A",
            ]),
            0..6,
        ), 2),
    ) {
        let headers: Vec<Vec<u8>> = headers.iter().map(|parts| parts.concat()).collect();
        let text = headers.iter().map(|header| [b">", &header[..], b"\nMK\n"].concat()).collect::<Vec<_>>().concat();
        let all = good(&text);
        prop_assert_eq!(all[0].id() == all[1].id(), headers[0] == headers[1]);
    }

    /// However the lines of a file end, it gives its records or an error, and never others.
    #[test]
    fn lone_carriage_returns_make_no_other_records(
        written in proptest::collection::vec(("[a-z ]{0,5}", "[A-Z*.-]{0,20}", "[@+I]{20}"), 1..6),
        ends in proptest::collection::vec(0..8_usize, 8),
        width in 1_usize..20,
        is_fastq in any::<bool>(),
    ) {
        let mut lines = Vec::new();
        for (header, sequence, qualities) in &written {
            let wrapped = |text: &str| {
                let lines = text.as_bytes().chunks(width);
                lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect::<Vec<_>>()
            };
            lines.push(format!("{}{header}", if is_fastq { "@" } else { ">" }));
            if !is_fastq {
                lines.push("; a comment".to_owned());
            }
            lines.extend(wrapped(sequence));
            if is_fastq {
                lines.push("+".to_owned());
                lines.extend(wrapped(&qualities[..sequence.len()]));
            }
        }
        let text: String = lines
            .iter()
            .zip(ends.iter().cycle())
            .flat_map(|(line, &end)| [line.as_str(), ["\r", "\r\n", "\n"][end.min(2)]])
            .collect();
        let (all, error) = read(text.as_bytes());
        if let Some(error) = error {
            prop_assert!(text.contains('\r'), "{error}");
        } else {
            let expected: Vec<_> = written
                .iter()
                .map(|(header, sequence, _)| (header.trim_end(), sequence.as_str()))
                .collect();
            prop_assert_eq!(pairs(&all), expected);
        }
    }

    /// What is written as FASTA or FASTQ is read back, however it is wrapped.
    #[test]
    fn records_come_back(
        written in proptest::collection::vec(("[a-zA-Z0-9_|. ]{0,30}", "[A-Za-z*.-]{0,200}"), 1..20),
        width in 1_usize..80,
        quality_width in 1_usize..80,
        crlf in any::<bool>(),
        is_fastq in any::<bool>(),
    ) {
        let end = if crlf { "\r\n" } else { "\n" };
        let wrapped = |sequence: &str, width: usize| {
            let lines = sequence.as_bytes().chunks(width);
            lines.map(|line| String::from_utf8_lossy(line).into_owned() + end).collect::<String>()
        };
        let mut text = String::new();
        for (header, sequence) in &written {
            let mark = if is_fastq { "@" } else { ">" };
            text.extend([mark, header, end, &wrapped(sequence, width)]);
            if is_fastq {
                text.extend(["+", end, &wrapped(&"@".repeat(sequence.len()), quality_width)]);
            }
        }
        let all = good(text.as_bytes());
        let expected: Vec<_> = written
            .iter()
            .map(|(header, sequence)| (header.trim_end(), sequence.as_str()))
            .collect();
        prop_assert_eq!(pairs(&all), expected);
    }
}
