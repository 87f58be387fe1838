//! Bad and odd input, driven through the built executable: each gets a clear error or a status, the
//! right exit code, and nothing else is lost.
//!
//! The model is `tests/fixtures/esm2`'s small one. ONNX Runtime is found as the executable finds it
//! (`ORT_DYLIB_PATH`, a Python wheel ...); `make test` provides one.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use seqembed::output::Rows;
use tempfile::TempDir;

use crate::common::interrupted::wait_for;
use crate::common::{
    self, DONE, PARTLY, Place, WRONG, assert_run, executable, exported, fixtures, seqembed, text,
};

/// The job could not be done.
const FAILED: i32 = 1;

const GOOD: &[u8] =
    b">good one\nMKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSRQVIVQDIAYLRSLGYNIVATPRGYVLAGG\n";

fn stderr(run: &Output) -> String {
    String::from_utf8_lossy(&run.stderr).into_owned()
}

fn checkpoint() -> PathBuf {
    fixtures().join("esm2/checkpoints/hub-safetensors")
}

/// A copy of a folder's files, to be damaged.
fn copied(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// `seqembed embed` of files of the folder.
fn embed(place: &Place, files: &[&str], options: &[&str]) -> Output {
    let files: Vec<PathBuf> = files.iter().map(|file| place.path(file)).collect();
    let out = place.path("out");
    let mut arguments = vec!["embed"];
    arguments.extend(files.iter().map(|file| text(file)));
    arguments.extend(["-m", text(exported("esm2")), "-o", text(&out)]);
    arguments.extend(options);
    seqembed(&arguments)
}

/// The rows written for a sample, if its file is there.
fn rows_written(place: &Place, sample: &str) -> Option<Rows> {
    place.rows(&format!("{sample}.parquet"))
}

/// What stands in the output folder, beside the journal.
fn written(place: &Place) -> Vec<String> {
    let Ok(entries) = fs::read_dir(place.path("out")) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != ".seqembed")
        .collect();
    names.sort();
    names
}

/// A run on `a.faa` and `b.faa`. The first one is `bytes`, so many that `change` comes while it is
/// read.
fn changed_while_read(bytes: &[u8], change: impl Fn(&Place)) -> (Place, Output) {
    common::retry_if_late(|before| {
        let place = Place::new(&[("a.faa", bytes), ("b.faa", GOOD)]);
        let (a, b, out) = (place.path("a.faa"), place.path("b.faa"), place.path("out"));
        let mut run = Command::new(executable())
            .args(["embed", text(&a), text(&b), "-m", text(exported("esm2"))])
            .args(["-o", text(&out), "--no-dedup", "--threads", "1"])
            .env("SEQEMBED_INJECT", common::slower(before))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // An output that is begun shows that its input is.
        wait_for("an output to be begun", || {
            let is_begun = fs::read_dir(&out).is_ok_and(|entries| entries.count() > 1);
            is_begun || run.try_wait().unwrap().is_some()
        });
        change(&place);
        let is_late = out.join("a.parquet").exists();
        let run = run.wait_with_output().unwrap();
        (!is_late).then_some((place, run))
    })
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// One input file and what becomes of it.
struct Specimen {
    name: &'static str,
    bytes: Vec<u8>,
    code: i32,
    /// What stderr must say.
    says: &'static str,
    /// The status of each row; none: there is no output file.
    status: Option<&'static [&'static str]>,
}

// A table is as long as it must be.
#[allow(clippy::too_many_lines)]
fn specimens() -> Vec<Specimen> {
    let mut list = Vec::new();
    let mut add = |name, bytes: &[u8], code, says, status| {
        list.push(Specimen {
            name,
            bytes: bytes.to_vec(),
            code,
            says,
            status,
        });
    };
    let no_records = "has no records";
    add("empty file", b"", DONE, no_records, Some(&[]));
    add("only blank lines", b"\n \r\n", DONE, no_records, Some(&[]));
    add("empty gz", &gzip(b""), DONE, no_records, Some(&[]));
    add(
        "only a header",
        b">a",
        DONE,
        "",
        Some(&["skipped: empty sequence"]),
    );
    add(
        "header without sequence",
        b">a\n>b\nMKLV\n>c\n*\n>d\nMK\n",
        DONE,
        "",
        Some(&[
            "skipped: empty sequence",
            "ok",
            "skipped: empty sequence",
            "ok",
        ]),
    );
    add(
        "sequence before a header",
        b"MKLV\n>a\nMK\n",
        PARTLY,
        "line 1: sequence without a header",
        None,
    );
    add("no final newline", b">a\nMKLV", DONE, "", Some(&["ok"]));
    add("CRLF", b">a x\r\nMK\r\nLV\r\n", DONE, "", Some(&["ok"]));
    add("BOM", b"\xef\xbb\xbf>a\nMKLV\n", DONE, "", Some(&["ok"]));
    add(
        "NUL",
        b">a\nMK\n>b\nM\0K\n",
        PARTLY,
        "line 4: NUL byte",
        None,
    );
    add(
        "header not UTF-8",
        b">caf\xe9 x\nMKLV\n",
        DONE,
        "line 1: the header is not valid UTF-8: such bytes are written as `\\xe9`",
        Some(&["ok"]),
    );
    add(
        "gaps of an alignment",
        b">a\nMK-LV\n>b\nMKLV\n>c\nM.KJ\n",
        DONE,
        "2 with gaps",
        Some(&["gaps", "ok", "replaced,gaps"]),
    );
    add(
        "lines of grep -A",
        b">a\nMKLV\n--\n>b\nMKLV\n",
        DONE,
        "specimen.faa: line 3: a line with only `--`, which `grep -A` prints between matches",
        Some(&["gaps", "ok"]),
    );
    add(
        "an en dash",
        ">a\nMK–AY\n".as_bytes(),
        DONE,
        "specimen.faa: line 2: '–' (U+2013, en dash) in the sequence of record `a`",
        Some(&["replaced"]),
    );
    add(
        "a no-break space",
        ">a\nMK\u{a0}AY\n".as_bytes(),
        DONE,
        "specimen.faa: line 2: U+00A0 (no-break space) in the sequence of record `a`: it is invisible",
        Some(&["replaced"]),
    );
    add(
        "a mask",
        b">a\nMK<mask>LV\n",
        DONE,
        "`<mask>` in the sequence of record `a`: it counts as one letter, and is embedded \
         as an unknown letter, not as a mask",
        Some(&["replaced"]),
    );
    add(
        "zero bytes behind gzip data",
        &[&gzip(b">a\nMKLV\n")[..], &[0; 1000]].concat(),
        DONE,
        "",
        Some(&["ok"]),
    );
    add(
        "something else behind gzip data",
        &[&gzip(b">a\nMKLV\n")[..], b"junk"].concat(),
        PARTLY,
        "the gzip data are complete after 1 record (`a`) (the checksums match), but are followed \
         by other data (`junk`)",
        None,
    );
    for (name, bytes) in [
        (
            "lines that end with CR and with LF",
            &b">a\nMKT\n>b desc\rMKKKKK\r>c\rAAA\r>d\nWWW\n"[..],
        ),
        (
            "reads, some of whose lines end with CR",
            b"@r\nM\n+\nI\n@a\rMKTAY\r+\rIIIII\r@b\nMKK\n+\nIII\n",
        ),
    ] {
        add(
            name,
            bytes,
            PARTLY,
            "line ends with CR only, as on old Macs",
            None,
        );
    }
    add("spaces", b">a\nMK LV\t \n G\n", DONE, "", Some(&["ok"]));
    add("digits", b">a\n1 MKLV 4\n", DONE, "", Some(&["replaced"]));
    add(
        "unknown letters",
        b">a\nMJK*LV*\n>b\nmklvxbuzo\n",
        DONE,
        "",
        Some(&["replaced", "ok"]),
    );
    add(
        "duplicate ids",
        b">a\nMK\n>a\nLV\n>a\nMK\n",
        DONE,
        "",
        Some(&["ok", "ok", "ok"]),
    );
    add(
        "DNA",
        &[b">a\n", &b"ACGTTGCA".repeat(20)[..], b"\n"].concat(),
        PARTLY,
        "looks like DNA",
        None,
    );
    add("FASTQ", b"@a\nMKLV\n+\nIIII\n", DONE, "", Some(&["ok"]));
    add(
        "FASTQ with a quality missing",
        b"@a\nMKLV\n+\nIII\n@b\nM\n+\nI\n",
        PARTLY,
        "line 4: FASTQ record `a` has 4 residues but 3 qualities",
        None,
    );
    add(
        "binary",
        b"\x7fELF\x02\x01\x01\0\0",
        PARTLY,
        "found `\\x7fELF",
        None,
    );

    let many: Vec<u8> = (0..500)
        .flat_map(|number| {
            let letters = b"ACDEFGHIKLMNPQRSTVWY";
            let sequence = (0..30).map(|at| char::from(letters[(at * at + number * 7) % 20]));
            format!(">p{number}\n{}\n", sequence.collect::<String>()).into_bytes()
        })
        .collect();
    let mut cut = gzip(&many);
    cut.truncate(cut.len() / 2);
    add(
        "truncated gz",
        &cut,
        PARTLY,
        "the gzip data are cut short after record",
        None,
    );
    let mut crc = gzip(&many);
    let at = crc.len() - 8;
    crc[at] ^= 0xff;
    add(
        "bad CRC",
        &crc,
        PARTLY,
        "the gzip data are damaged after record",
        None,
    );
    list
}

#[test]
fn each_specimen_has_its_outcome() {
    for specimen in specimens() {
        let place = Place::new(&[("specimen.faa", &specimen.bytes)]);
        let run = embed(&place, &["specimen.faa"], &[]);
        let said = stderr(&run);
        assert_eq!(
            run.status.code(),
            Some(specimen.code),
            "{}: {said}",
            specimen.name
        );
        assert!(said.contains(specimen.says), "{}: {said}", specimen.name);
        assert!(!said.contains("panicked"), "{}: {said}", specimen.name);
        if specimen.code != DONE {
            assert!(
                said.contains("specimen.faa"),
                "{}: the file is named: {said}",
                specimen.name
            );
        }
        let rows = rows_written(&place, "specimen");
        let status = rows
            .as_ref()
            .map(|rows| rows.status.iter().map(String::as_str).collect());
        let expected = specimen.status.map(<[&str]>::to_vec);
        assert_eq!(status, expected, "{}", specimen.name);
        if let Some(rows) = rows {
            let mut values = rows.values.chunks(rows.hidden);
            for status in &rows.status {
                let vector = values.next().unwrap();
                let is_skipped = status.starts_with("skipped");
                assert!(
                    vector.iter().all(|value| value.is_nan() == is_skipped),
                    "{}",
                    specimen.name
                );
            }
        }
    }
}

#[test]
fn dna_is_embedded_by_a_protein_model_when_the_user_insists() {
    let dna = [b">a\n", &b"ACGTTGCA".repeat(20)[..], b"\n"].concat();
    let place = Place::new(&[("x.faa", &dna)]);
    assert_run(&embed(&place, &["x.faa"], &["--force-alphabet"]), DONE, &[]);
    assert_eq!(rows_written(&place, "x").unwrap().status, ["ok"]);
}

#[test]
fn headers_and_ids_are_kept() {
    let place = Place::new(&[(
        "x.faa",
        b">a first\nMK\n>a second\nLVG\n>caf\xe9 x\nMK\n>\nMK\n",
    )]);
    assert_run(&embed(&place, &["x.faa"], &[]), DONE, &[]);
    let rows = rows_written(&place, "x").unwrap();
    assert_eq!(rows.ids, ["a", "a", "caf\\xe9", ""]);
    assert_eq!(rows.headers, ["a first", "a second", "caf\\xe9 x", ""]);
    assert_eq!(rows.lengths, [2, 3, 2, 2]);
}

/// Forms of one sequence that must give one vector.
#[test]
fn the_form_of_a_sequence_does_not_matter() {
    let forms: [&[u8]; 7] = [
        b">a\nMKTVRQERLK\n",
        b">a\nMKTV\nRQERLK",
        b">a\r\nMKTVRQ\r\nERLK\r\n",
        b"\xef\xbb\xbf\n>a\n MKTV RQ\tERLK \n",
        b">a\nmktvrqerlk\n",
        b">a\nMKTVRQERLK*\n",
        b"@a\nMKTVRQERLK\n+\nIIIIIIIIII\n",
    ];
    let names: Vec<String> = (0..forms.len())
        .map(|number| format!("f{number}"))
        .collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(forms).collect();
    let place = Place::new(&files);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_run(&embed(&place, &names, &[]), DONE, &[]);
    let first = rows_written(&place, "f0").unwrap();
    assert!(first.values.iter().any(|value| value.abs() > 1e-3));
    for name in &names[1..] {
        let rows = rows_written(&place, name).unwrap();
        assert_eq!(rows.lengths, [10], "{name}");
        for (left, right) in first.values.iter().zip(&rows.values) {
            assert!((left - right).abs() < 1e-5, "{name}: {left} {right}");
        }
    }
}

#[test]
fn letters_outside_of_the_vocabulary_follow_the_policy() {
    let place = Place::new(&[("x.faa", b">a\nMKJLV\n>b\nMKLV\n")]);
    assert_run(
        &embed(&place, &["x.faa"], &["--unknown", "skip"]),
        DONE,
        &[],
    );
    let rows = rows_written(&place, "x").unwrap();
    assert!(rows.status[0].starts_with("skipped: "), "{:?}", rows.status);
    assert_eq!(rows.status[1], "ok");

    let place = Place::new(&[("x.faa", b">a\nMKJLV\n>b\nMKLV\n")]);
    let run = embed(&place, &["x.faa"], &["--unknown", "error"]);
    assert_run(&run, PARTLY, &["x.faa: record \"a\": 'J' at position 3"]);
    assert!(rows_written(&place, "x").is_none());
}

/// The `*` that is dropped is the one that ends a record, not one at the place where it is cut. As
/// the vocabulary lacks `*` and J, both are the unknown token.
#[test]
fn a_stop_at_the_cut_is_a_residue() {
    let place = Place::new(&[
        (
            "x.faa",
            b">a\nMKTA*KKRR\n>b\nMKTAJKKRR\n>c\nMKTA\n>d\nMKTAL*\n>e\nMKTA**\n>f\nMKTA*K*\n",
        ),
        ("y.faa", b">a\nMKTA*KKRR\n"),
    ]);
    let cut = ["--long", "truncate", "--max-length", "5", "--unknown"];
    let embed = |file: &str, more: &[&str]| embed(&place, &[file], &[&cut, more].concat());
    assert_run(&embed("x.faa", &["replace"]), DONE, &[]);
    let rows = rows_written(&place, "x").unwrap();
    let replaced = "truncated,replaced";
    assert_eq!(
        rows.status,
        [replaced, replaced, "ok", "ok", "replaced", replaced]
    );
    assert_eq!(rows.lengths, [9, 9, 4, 5, 5, 6]);
    let row = |at: usize| &rows.values[at * rows.hidden..(at + 1) * rows.hidden];
    for same in [1, 4, 5] {
        assert_eq!(row(0), row(same), "{same}");
    }
    assert_ne!(row(0), row(2));

    assert_run(&embed("x.faa", &["skip"]), DONE, &[]);
    let rows = rows_written(&place, "x").unwrap();
    for (at, status) in rows.status.iter().enumerate() {
        assert_eq!(
            status.contains("skipped: "),
            ![2, 3].contains(&at),
            "{status}"
        );
    }
    assert!(
        rows.status[0].contains("'*' at position 5"),
        "{:?}",
        rows.status
    );
    let run = embed("y.faa", &["error"]);
    assert_run(&run, PARTLY, &["record \"a\": '*' at position 5"]);
    let run = embed("y.faa", &["replace", "--pooling", "none"]);
    assert_run(&run, DONE, &[]);
    let rows = rows_written(&place, "y").unwrap();
    assert_eq!(rows.values.len(), 5 * rows.hidden);
}

/// Its beginning is read already, and its time of writing is put back.
#[test]
fn an_input_that_is_written_to_in_place_fails_by_name() {
    use std::os::unix::fs::FileExt as _;

    let (place, run) = changed_while_read(&GOOD.repeat(4_000), |place| {
        let file = fs::File::options().write(true).open(place.path("a.faa"));
        let file = file.unwrap();
        let written = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(b"A", 10).unwrap();
        file.set_modified(written).unwrap();
        // Of this one nothing but the permissions change.
        let mut permissions = fs::metadata(place.path("b.faa")).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(place.path("b.faa"), permissions).unwrap();
    });
    assert_run(
        &run,
        PARTLY,
        &["a.faa: changed while it was being read (its contents changed"],
    );
    assert!(rows_written(&place, "a").is_none() && rows_written(&place, "b").is_some());
}

#[test]
fn a_hundred_megabytes_on_one_line_take_no_memory() {
    let peak = |place: &Place| {
        let report = fs::read_to_string(place.path("out/report.json")).unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        report["totals"]["peak_memory_bytes"].as_u64().unwrap()
    };
    let short = Place::new(&[("short.faa", GOOD)]);
    assert_run(&embed(&short, &["short.faa"], &[]), DONE, &[]);
    let mut bytes = b">long one\n".to_vec();
    bytes.resize(100_000_010, b'K');
    bytes.extend(b"*\n>next\nMKLV\n");
    let place = Place::new(&[("long.faa", &bytes), ("other.faa", GOOD)]);
    drop(bytes);
    let truncate = ["--long", "truncate"];
    assert_run(&embed(&place, &["long.faa"], &truncate), DONE, &[]);
    let rows = rows_written(&place, "long").unwrap();
    assert_eq!(rows.status, ["truncated", "ok"]);
    // The terminal stop does not count, as it does not in a short record.
    assert_eq!(rows.lengths, [100_000_000, 4]);
    let more = peak(&place).saturating_sub(peak(&short));
    assert!(more < 30 << 20, "{more} bytes more than for a short record");

    // Whole, it is far more than any protein has: most likely line ends were lost.
    let both = ["long.faa", "other.faa"];
    let run = embed(&place, &both, &[]);
    assert_run(
        &run,
        PARTLY,
        &[
            "long.faa: line 1: record `long` is longer than 10,000,000",
            "--max-record",
        ],
    );
    assert!(rows_written(&place, "other").is_some());
    let more = peak(&place).saturating_sub(peak(&short));
    assert!(more < 90 << 20, "{more} bytes more than for a short record");

    // The limit is the user's, in a manifest too; one that is given holds for what is cut as well.
    let run = place.run(&format!(
        "model: {}\nfiles:\n- {{sample: a, fasta: other.faa, max_record: 64}}\n- {{sample: b, fasta: other.faa, max_record: 65}}\n\
         - {{sample: c, fasta: other.faa, max_record: 64, max_length: 10, long: truncate}}\n",
        text(exported("esm2"))
    ));
    assert_run(&run, PARTLY, &["record `good` is longer than 64"]);
    let is_there = ["a", "b", "c"].map(|sample| rows_written(&place, sample).is_some());
    assert_eq!(is_there, [false, true, false]);
}

/// The end of a file is read when most of it was embedded: it was changed before.
#[test]
fn an_input_that_grows_while_it_is_read_fails_by_name() {
    let many = GOOD.repeat(4_000);
    let (place, run) = changed_while_read(&many, |place| {
        let file = fs::File::options().append(true).open(place.path("a.faa"));
        file.unwrap().write_all(b">late\nMK\n").unwrap();
    });
    let length = many.len();
    let lengths = [length, length + 9].map(|length| seqembed::text::thousands(length as u64));
    assert_run(
        &run,
        PARTLY,
        &[&format!(
            "a.faa: changed while it was being read (it had {} bytes, and has {} now)",
            lengths[0], lengths[1]
        )],
    );
    assert!(rows_written(&place, "a").is_none() && rows_written(&place, "b").is_some());
}

/// Two files whose names differ in bytes that are not UTF-8 have an output each.
#[cfg(target_os = "linux")]
#[test]
fn file_names_that_are_not_utf8_stay_apart() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let place = Place::new(&[]);
    let names = [&b"caf\xe9.faa"[..], b"caf\xe8.faa", b"caf\\xe9.faa"]
        .map(|name| place.path("").join(OsStr::from_bytes(name)));
    for name in &names {
        fs::write(name, GOOD).unwrap();
    }
    let run = Command::new(executable())
        .arg("embed")
        .args(&names)
        .args(["-m", text(exported("esm2")), "-o", text(&place.path("out"))])
        .output()
        .unwrap();
    assert_run(&run, DONE, &[]);
    assert_eq!(
        written(&place),
        [
            "caf%5cxe9.parquet",
            "caf%e8.parquet",
            "caf%e9.parquet",
            "report.json"
        ]
    );
}

#[test]
fn one_bad_file_does_not_lose_the_others() {
    let mut cut = gzip(&GOOD.repeat(50));
    cut.truncate(cut.len() / 2);
    let place = Place::new(&[("a.faa", GOOD), ("bad.faa.gz", &cut), ("c.faa", GOOD)]);
    let run = embed(&place, &["a.faa", "bad.faa.gz", "c.faa"], &[]);
    assert_run(&run, PARTLY, &["bad.faa.gz", "cut short"]);
    assert_eq!(written(&place), ["a.parquet", "c.parquet", "report.json"]);
    let report = fs::read_to_string(place.path("out").join("report.json")).unwrap();
    assert!(
        report.contains("bad.faa.gz") && report.contains("cut short"),
        "{report}"
    );
    let alone = Place::new(&[("a.faa", GOOD)]);
    assert_run(&embed(&alone, &["a.faa"], &[]), DONE, &[]);
    let (with, alone) = (
        rows_written(&place, "a").unwrap(),
        rows_written(&alone, "a").unwrap(),
    );
    for (left, right) in with.values.iter().zip(&alone.values) {
        assert!((left - right).abs() < 1e-5);
    }
}

#[test]
fn failed_files_may_be_allowed() {
    let bad: &[u8] = b"MKV without a header\n";
    let place = Place::new(&[("a.faa", GOOD), ("bad.faa", bad)]);
    let run = embed(&place, &["a.faa", "bad.faa"], &["--allow-failed"]);
    assert_run(&run, DONE, &["bad.faa", "line 1"]);
    assert_eq!(written(&place), ["a.parquet", "report.json"]);
    // Other failures are not.
    let run = embed(&place, &["nowhere.faa"], &["--allow-failed"]);
    assert_run(&run, WRONG, &["nowhere.faa"]);
    let run = embed(&place, &["a.faa"], &["--allow-failed", "--strict"]);
    assert_run(&run, WRONG, &["cannot be used with"]);
}

/// The model does not exist, so that what is said first shows what is looked at first.
#[test]
fn a_wrong_manifest_is_told_before_a_model_is_looked_for() {
    let place = Place::new(&[("a.faa", GOOD)]);
    fs::create_dir(place.path("folder")).unwrap();
    let run = place.run(
        "model: /nowhere/model\nfiles:\n- {sample: a, fasta: a.faa}\n- {sample: b, fasta: missing.faa}\n\
         - {sample: c, fasta: folder}\n- {sample: a, fasta: a.faa}\n",
    );
    assert_run(
        &run,
        WRONG,
        &[
            "manifest.yaml:4: ",
            "missing.faa: no such file",
            "manifest.yaml:5: ",
            "folder: is a folder",
            "manifest.yaml:6: the sample name `a` is already used on line 3",
            "3 mistakes",
        ],
    );
    assert!(!stderr(&run).contains("/nowhere"), "{}", stderr(&run));
    assert!(written(&place).is_empty());
}

#[test]
fn wrong_files_on_the_command_line_are_told_together() {
    let place = Place::new(&[("a.faa", GOOD), ("a.fa", GOOD)]);
    let run = embed(&place, &["a.faa", "missing.faa", ".", "a.fa"], &[]);
    assert_run(
        &run,
        WRONG,
        &[
            "missing.faa: no such file",
            "is a folder",
            "would both be written to `a`",
        ],
    );
    assert!(written(&place).is_empty());
}

#[test]
fn an_output_folder_that_cannot_be_written_is_told_first() {
    let place = Place::new(&[("a.faa", GOOD), ("out", b"a file")]);
    let input = place.path("a.faa");
    for out in [
        place.path("out"),
        place.path("out/below"),
        "/proc/seqembed".into(),
    ] {
        let run = seqembed(&[
            "embed",
            text(&input),
            "-m",
            "/nowhere/model",
            "-o",
            text(&out),
        ]);
        assert_run(&run, WRONG, &[text(&out)]);
        assert!(!stderr(&run).contains("/nowhere"), "{}", stderr(&run));
    }
}

#[test]
fn the_standard_input_is_read() {
    let place = Place::new(&[("a.faa", GOOD)]);
    let out = place.path("out");
    let mut child = Command::new(executable())
        .args(["embed", "-", "-m", text(exported("esm2")), "-o", text(&out)])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&gzip(GOOD)).unwrap();
    assert_run(&child.wait_with_output().unwrap(), DONE, &[]);
    assert_eq!(rows_written(&place, "stdin").unwrap().headers, ["good one"]);
}

#[test]
fn damaged_models_are_refused() {
    let place = Place::new(&[("a.faa", GOOD)]);
    let input = place.path("a.faa");
    let out = place.path("out");
    let embed =
        |model: &Path| seqembed(&["embed", text(&input), "-m", text(model), "-o", text(&out)]);

    let cut = copied(exported("esm2"));
    let weights = cut.path().join("weights.bin");
    let length = fs::metadata(&weights).unwrap().len();
    fs::File::options()
        .write(true)
        .open(&weights)
        .unwrap()
        .set_len(length / 2)
        .unwrap();
    assert_run(&embed(cut.path()), WRONG, &["weights.bin", "truncated"]);

    let no_vocabulary = copied(exported("esm2"));
    fs::write(no_vocabulary.path().join("vocab.txt"), "<cls>\n<pad>\n").unwrap();
    assert_run(
        &embed(no_vocabulary.path()),
        WRONG,
        &["vocab.txt: the file is damaged or belongs to another model"],
    );

    assert!(rows_written(&place, "a").is_none());
}

/// A checkpoint whose safetensors file was changed by `change`.
fn lying_checkpoint(change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> TempDir {
    let copy = copied(&checkpoint());
    let path = copy.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, change(bytes)).unwrap();
    copy
}

/// The header's JSON changed, with its length put right.
fn with_header(bytes: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend(header);
    changed.extend(&bytes[8 + length..]);
    changed
}

fn first_tensor(header: &mut serde_json::Value) -> &mut serde_json::Value {
    let tensors = header.as_object_mut().unwrap();
    let (_, tensor) = tensors
        .iter_mut()
        .find(|(name, _)| name.ends_with("key.weight"))
        .unwrap();
    tensor
}

#[test]
fn checkpoints_that_lie_are_refused() {
    let specimens: [(&str, TempDir); 6] = [
        (
            "a header longer than the file",
            lying_checkpoint(|mut bytes| {
                bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
                bytes
            }),
        ),
        (
            "half a file",
            lying_checkpoint(|bytes| bytes[..bytes.len() / 2].to_vec()),
        ),
        (
            "a header that is no JSON",
            lying_checkpoint(|mut bytes| {
                bytes[8..40].fill(b'}');
                bytes
            }),
        ),
        (
            "offsets beyond the file",
            lying_checkpoint(|bytes| {
                with_header(&bytes, |header| {
                    first_tensor(header)["data_offsets"][1] = u64::MAX.into();
                })
            }),
        ),
        (
            "a shape that does not fit its bytes",
            lying_checkpoint(|bytes| {
                with_header(&bytes, |header| {
                    first_tensor(header)["shape"] = serde_json::json!([7, 7]);
                })
            }),
        ),
        (
            "a shape that overflows",
            lying_checkpoint(|bytes| {
                with_header(&bytes, |header| {
                    first_tensor(header)["shape"] = serde_json::json!([u64::MAX, u64::MAX]);
                })
            }),
        ),
    ];
    for (name, folder) in &specimens {
        let out = folder.path().join("out");
        let run = seqembed(&["export", text(folder.path()), "-o", text(&out)]);
        let said = stderr(&run);
        assert!(
            matches!(run.status.code(), Some(FAILED | WRONG)),
            "{name}: {said}"
        );
        assert!(
            said.contains("model.safetensors") && !said.contains("panicked"),
            "{name}: {said}"
        );
        assert!(
            !out.join("seqembed.json").exists(),
            "{name}: nothing is left"
        );
    }
}

/// A `PyTorch` file whose pickle calls `os.system`: it must be named, and not run.
#[test]
fn a_pickle_that_runs_commands_is_refused() {
    let folder = copied(&checkpoint());
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let trap = folder.path().join("trap");
    let command = format!("touch {}", trap.display());
    for module in ["os", "posix"] {
        // GLOBAL module.system; BINUNICODE command; TUPLE1; REDUCE; STOP
        let mut pickle = format!("\x02c{module}\nsystem\nX").into_bytes();
        pickle.insert(0, 0x80);
        pickle.extend(u32::try_from(command.len()).unwrap().to_le_bytes());
        pickle.extend(command.as_bytes());
        pickle.extend(b"\x85R.");

        let file = fs::File::create(folder.path().join("pytorch_model.bin")).unwrap();
        let mut archive = zip::ZipWriter::new(file);
        let stored = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored);
        for (name, bytes) in [
            ("data.pkl", pickle.as_slice()),
            ("version", b"3\n"),
            ("byteorder", b"little"),
        ] {
            archive
                .start_file(format!("archive/{name}"), stored)
                .unwrap();
            archive.write_all(bytes).unwrap();
        }
        archive.finish().unwrap();

        let out = folder.path().join("out");
        let run = seqembed(&["export", text(folder.path()), "-o", text(&out)]);
        let said = stderr(&run);
        assert!(matches!(run.status.code(), Some(FAILED | WRONG)), "{said}");
        assert!(said.contains("pytorch_model.bin"), "{said}");
        assert!(said.contains(&format!("{module}.system")), "{said}");
        assert!(!trap.exists(), "the command was run");
        assert!(!out.join("seqembed.json").exists());
    }
}
