//! What is written can be read by the tools that people use: each test writes through the library
//! and reads with `NumPy`, pandas, h5py, safetensors, pyarrow, or torch where that is installed.
//!
//! `SEQEMBED_TEST_PYTHON` names a Python that has them; `make test` sets it.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum as _;
use half::f16;

use crate::common::{self, text};
use seqembed::output::{self, Block, Format, Layout, OutputError, OutputPrecision, Rows};
use seqembed::vectors::{Floats, Vectors};

/// Runs Python on `script` with the file as its first argument; the script fails the test by an
/// assertion.
fn python(script: &str, file: &Path) -> String {
    let needs = "numpy, pandas, pyarrow, h5py and safetensors";
    common::python(needs, script, &[text(file)])
}

fn layout(path: &Path, hidden: usize, per_token: bool) -> Layout {
    Layout {
        path: path.to_owned(),
        columns: Vec::new(),
        hidden,
        per_token,
        precision: OutputPrecision::Fp32,
        provenance: vec![
            ("model".into(), "esm2_t6_8M_UR50D".into()),
            ("note".into(), "Ångström \"quoted\"".into()),
        ],
    }
}

/// A value that Python can compute again, exact in float32.
fn value(vector: usize, at: usize) -> f32 {
    (vector % 4096) as f32 + at as f32 / 1024.0
}

/// Pooled rows `from..to`.
fn pooled(hidden: usize, from: usize, to: usize) -> Rows {
    let mut rows = Rows::new(hidden);
    for row in from..to {
        rows.ids.push(format!("p{row}"));
        rows.headers.push(format!("p{row} protein {row}"));
        rows.lengths.push(row as u64 + 1);
        rows.status.push("ok".into());
        rows.vectors.push(1);
        rows.values.extend((0..hidden).map(|at| value(row, at)));
    }
    rows
}

/// Rows that are hard in every way that a row can be.
fn specimens(hidden: usize) -> Rows {
    let mut rows = pooled(hidden, 0, 4);
    rows.ids = ["é1", "dup", "dup", "蛋白🧬"].map(String::from).to_vec();
    rows.headers = [
        "é1 Ångström, \"quoted\"\twith a tab",
        "dup",
        "dup another",
        "蛋白🧬 ",
    ]
    .map(String::from)
    .to_vec();
    rows.status = [
        "ok",
        "windowed,replaced",
        "skipped: no residues",
        "truncated",
    ]
    .map(String::from)
    .to_vec();
    rows.values[2 * hidden..3 * hidden].fill(f32::NAN);
    rows
}

fn write(format: Format, layout: Layout, blocks: &[Rows]) -> PathBuf {
    let path = layout.path.clone();
    let mut sink = output::create(format, layout).unwrap();
    for rows in blocks {
        sink.write(rows).unwrap();
    }
    assert!(!path.exists(), "a file appears when it is whole");
    sink.finish().unwrap();
    path
}

fn file(folder: &tempfile::TempDir, format: Format) -> PathBuf {
    folder.path().join(format!("out.{format}"))
}

/// Reads any format into the same names.
const LOAD: &str = concat!(
    include_str!("../python/torch_file.py"),
    include_str!("../python/embeddings.py"),
    r#"
assert provenance == {"model": "esm2_t6_8M_UR50D", "note": 'Ångström "quoted"'}, provenance
def want(vectors, hidden):
    return (np.asarray(vectors)[:, None] % 4096 + np.arange(hidden) / 1024).astype(np.float32)
"#
);

#[test]
fn pooled_rows_are_what_numpy_and_pyarrow_read() {
    for format in Format::ALL {
        let folder = tempfile::tempdir().unwrap();
        let rows = specimens(320);
        let path = write(
            format,
            layout(&file(&folder, format), 320, false),
            std::slice::from_ref(&rows),
        );
        python(
            &format!(
                "{LOAD}
assert ids == ['é1', 'dup', 'dup', '蛋白🧬'], ids
assert headers == ['é1 Ångström, \"quoted\"\\twith a tab', 'dup', 'dup another', '蛋白🧬 '], headers
assert status == ['ok', 'windowed,replaced', 'skipped: no residues', 'truncated'], status
assert lengths.tolist() == [1, 2, 3, 4]
assert embeddings.shape == (4, 320) and embeddings.dtype == np.float32, embeddings.shape
assert np.isnan(embeddings[2]).all()
assert (embeddings[[0, 1, 3]] == want([0, 1, 3], 320)).all()"
            ),
            &path,
        );
        let (back, told) = output::read(&path).unwrap();
        assert_eq!(told, layout(&path, 320, false));
        assert!(back.values[2 * 320..3 * 320].iter().all(|v| v.is_nan()));
        let (mut back, mut rows) = (back, rows);
        back.values[2 * 320..3 * 320].fill(0.0);
        rows.values[2 * 320..3 * 320].fill(0.0);
        assert_eq!(back, rows);
    }
}

#[test]
fn per_token_rows_keep_their_bounds() {
    for format in Format::ALL {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = specimens(8);
        rows.vectors = vec![3, 1, 0, 5];
        rows.values = (0..9 * 8).map(|i| value(i / 8, i % 8)).collect();
        let path = write(
            format,
            layout(&file(&folder, format), 8, true),
            std::slice::from_ref(&rows),
        );
        python(
            &format!(
                "{LOAD}
assert [len(r) for r in rows] == [3, 1, 0, 5], rows
assert (embeddings == want(range(9), 8)).all()
assert (rows[3] == want(range(4, 9), 8)).all()"
            ),
            &path,
        );
        assert_eq!(output::read(&path).unwrap(), (rows, layout(&path, 8, true)));
    }
}

/// Wherever writing a new output stops, no old matrix is left with the new table.
#[test]
fn a_matrix_is_never_beside_another_ones_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(
        Format::Npy,
        layout(&file(&folder, Format::Npy), 4, false),
        &[pooled(4, 0, 3)],
    );
    let mut sink = output::create(Format::Npy, layout(&path, 4, false)).unwrap();
    sink.write(&pooled(4, 3, 6)).unwrap();
    // The second of the three files can't have its name.
    let provenance = path.with_extension("provenance.json");
    std::fs::remove_file(&provenance).unwrap();
    std::fs::create_dir(&provenance).unwrap();
    let error = sink.finish().unwrap_err();
    assert!(matches!(error, OutputError::Folder { .. }), "{error}");
    let table = std::fs::read_to_string(path.with_extension("tsv")).unwrap();
    assert!(table.contains("p3") && !path.exists(), "{table}");
}

#[test]
fn what_was_written_is_told_with_its_hash() {
    for format in Format::ALL {
        let folder = tempfile::tempdir().unwrap();
        // More than a block of the hash, and heads that are filled in at the end.
        let path = file(&folder, format);
        let mut sink = output::create(format, layout(&path, 1000, false)).unwrap();
        sink.write(&pooled(1000, 0, 700)).unwrap();
        let written = sink.finish().unwrap();
        assert_eq!(written.len(), if format == Format::Npy { 3 } else { 1 });
        assert_eq!(written.last().unwrap().name, format!("out.{format}"));
        for file in written {
            let bytes = std::fs::read(folder.path().join(&file.name)).unwrap();
            assert_eq!(file.bytes, bytes.len() as u64);
            assert_eq!(file.hash, blake3::hash(&bytes).to_hex().to_string());
        }
    }
}

#[test]
fn no_rows_are_a_valid_file() {
    for format in Format::ALL {
        for per_token in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let path = write(format, layout(&file(&folder, format), 640, per_token), &[]);
            python(
                &format!(
                    "{LOAD}\nassert ids == [] and len(lengths) == 0 and len(rows) == 0\nassert embeddings.shape == (0, 640), embeddings.shape"
                ),
                &path,
            );
            let expected = (Rows::new(640), layout(&path, 640, per_token));
            assert_eq!(output::read(&path).unwrap(), expected);
        }
    }
}

/// 10,000 rows of 1,280 values are 51 MB: several row groups of parquet. 2,000 are several blocks
/// of the others, and spools on the disk.
#[test]
fn many_rows_come_back_in_order_and_in_blocks() {
    for format in Format::ALL {
        let folder = tempfile::tempdir().unwrap();
        let count = if format == Format::Parquet { 10 } else { 2 };
        let blocks: Vec<Rows> = (0..count)
            .map(|b| pooled(1280, b * 1000, (b + 1) * 1000))
            .collect();
        let count = count * 1000;
        let path = write(format, layout(&file(&folder, format), 1280, false), &blocks);
        let groups = python(
            &format!(
                "{LOAD}
assert ids == [f'p{{i}}' for i in range({count})]
assert embeddings.shape == ({count}, 1280)
assert (embeddings == want(range({count}), 1280)).all()
print(pq.ParquetFile(path).num_row_groups if path.endswith('parquet') else 5)"
            ),
            &path,
        );
        assert!(groups.trim().parse::<u32>().unwrap() > 1);
        let reader = output::open(&path).unwrap();
        assert_eq!(reader.rows(), count as u64);
        let (mut row, mut blocks) = (0, 0);
        for block in reader {
            let block = block.unwrap();
            assert_eq!(block, pooled(1280, row, row + block.len()));
            assert!(
                block.values.len() <= 4 << 20,
                "a block is a small part of the file"
            );
            (row, blocks) = (row + block.len(), blocks + 1);
        }
        assert_eq!(row, count);
        assert!(blocks > 1);
    }
}

#[test]
fn bytes_do_not_depend_on_the_blocks() {
    for format in Format::ALL {
        let folder = tempfile::tempdir().unwrap();
        let bytes = |name: &str, blocks: &[Rows]| {
            let path = folder.path().join(name);
            let mut layout = layout(&path, 64, false);
            layout
                .provenance
                .extend((0..20).map(|i| (format!("key {i}"), i.to_string())));
            std::fs::read(write(format, layout, blocks)).unwrap()
        };
        let whole = bytes("whole", &[pooled(64, 0, 30_000)]);
        let parts: Vec<Rows> = [0, 1, 17, 20_000, 20_000, 30_000]
            .windows(2)
            .map(|w| pooled(64, w[0], w[1]))
            .collect();
        assert!(whole == bytes("parts", &parts));
    }
}

/// Rows in blocks of at most so many vectors, a row in several where it has more.
fn cut(rows: &Rows, most: usize) -> Vec<Rows> {
    let hidden = rows.hidden;
    let (mut blocks, mut at) = (Vec::new(), 0);
    for (row, &vectors) in rows.vectors.iter().enumerate() {
        let mut left = vectors;
        loop {
            let here = left.min(most);
            left -= here;
            let mut block = Rows::new(hidden);
            if left + here == vectors {
                block.ids.push(rows.ids[row].clone());
                block.headers.push(rows.headers[row].clone());
                block.lengths.push(rows.lengths[row]);
                block.status.push(rows.status[row].clone());
                block.vectors.push(vectors);
            } else {
                block.before = here;
            }
            block.after = left;
            block.values = rows.values[at..at + here * hidden].to_vec();
            at += here * hidden;
            blocks.push(block);
            if left == 0 {
                break;
            }
        }
    }
    blocks
}

#[test]
fn a_row_of_many_vectors_goes_in_and_comes_back_in_parts() {
    let hidden = 512;
    let mut rows = specimens(hidden);
    // The second is larger than a row group of parquet.
    rows.vectors = vec![3, 16_401, 0, 100];
    let all: usize = rows.vectors.iter().sum();
    rows.values = (0..all * hidden)
        .map(|i| value(i / hidden, i % hidden))
        .collect();
    for format in Format::ALL {
        let folder = tempfile::tempdir().unwrap();
        let bytes = |name: &str, blocks: &[Rows]| {
            let path = folder.path().join(name).with_extension(format.extension());
            std::fs::read(write(format, layout(&path, hidden, true), blocks)).unwrap()
        };
        let whole = bytes("whole", std::slice::from_ref(&rows));
        assert!(whole == bytes("parts", &cut(&rows, 3000)), "{format}");
        let path = folder
            .path()
            .join("parts")
            .with_extension(format.extension());
        python(
            &format!(
                "{LOAD}
assert [len(r) for r in rows] == [3, 16401, 0, 100], [len(r) for r in rows]
assert lengths.tolist() == [1, 2, 3, 4] and ids[1] == 'dup' and status[1] == 'windowed,replaced'
assert (np.asarray(embeddings) == want(range(16504), {hidden})).all()"
            ),
            &path,
        );
        let mut back = Rows::new(hidden);
        for block in output::open(&path).unwrap() {
            let block = block.unwrap();
            assert!(
                block.values.len() * 4 <= 5 << 20,
                "{format}: {}",
                block.values.len()
            );
            back.append(block);
        }
        assert!(back == rows, "{format}");
    }
}

#[test]
fn parts_of_a_row_that_do_not_follow_each_other_are_refused() {
    let mut rows = pooled(4, 0, 3);
    rows.vectors = vec![2, 9, 1];
    rows.values = vec![1.0; 12 * 4];
    for format in Format::ALL {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(&file(&folder, format), 4, true);
        let blocks = cut(&rows, 4);
        write(format, layout.clone(), &blocks);
        std::fs::remove_file(&layout.path).unwrap();
        // Without one, with one twice, and without the end.
        let orders: [&[usize]; 4] = [&[0, 1, 3, 4], &[0, 1, 2, 2, 3, 4], &[0, 2, 3], &[0, 1, 2]];
        for order in orders {
            let mut sink = output::create(format, layout.clone()).unwrap();
            let written = order.iter().try_for_each(|&at| sink.write(&blocks[at]));
            let refused = written.and_then(|()| sink.finish());
            assert!(
                matches!(refused, Err(OutputError::Inconsistent { .. })),
                "{format} {order:?}"
            );
            assert!(!layout.path.exists());
        }
    }
}

#[test]
fn one_long_header_does_not_widen_every_row_and_is_kept_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = pooled(4, 0, 1000);
    rows.headers[7] = format!("p7 {}", "é".repeat(200_000));
    for format in Format::ALL {
        let path = write(
            format,
            layout(&file(&folder, format), 4, false),
            std::slice::from_ref(&rows),
        );
        assert!(std::fs::metadata(&path).unwrap().len() < 700_000);
        assert_eq!(output::read(&path).unwrap().0, rows);
    }
    python(
        &format!(
            "{LOAD}
assert z['headers'].dtype == '<U1000' and headers[7] == 'p7 ' + 996 * 'é' + '…'
(name, row, text), = map(json.loads, str(z['long_text']).splitlines())
assert (name, row) == ('headers', 7) and text == 'p7 ' + 200_000 * 'é'"
        ),
        &file(&folder, Format::Npz),
    );
}

#[test]
fn a_dropped_sink_leaves_nothing() {
    for format in Format::ALL {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = output::create(format, layout(&file(&folder, format), 1280, false)).unwrap();
        sink.write(&pooled(1280, 0, 10_000)).unwrap();
        drop(sink);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_finished_file_replaces_the_old_one_and_is_alone() {
    for format in Format::ALL {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, format);
        std::fs::write(&path, "old").unwrap();
        let mut sink = output::create(format, layout(&path, 16, false)).unwrap();
        sink.write(&pooled(16, 0, 3)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        sink.finish().unwrap();
        assert_eq!(output::read(&path).unwrap().0, pooled(16, 0, 3));
        // A matrix has two files beside it, other formats none.
        let beside = if format == Format::Npy { 2 } else { 0 };
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1 + beside
        );
    }
}

#[cfg(unix)]
#[test]
fn an_output_is_readable_as_the_umask_says() {
    use std::os::unix::fs::PermissionsExt;
    for format in Format::ALL {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        let path = write(format, layout(&file(&folder, format), 4, false), &[]);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_told_before_any_row() {
    let folder = tempfile::tempdir().unwrap();
    // A file where a folder should be: refused even to root.
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    for format in Format::ALL {
        let path = plain.join("out");
        let Err(error) = output::create(format, layout(&path, 4, false)) else {
            panic!("{format}: created")
        };
        assert!(matches!(error, OutputError::Io { .. }));
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
    }
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let broken: [fn(&mut Rows); 4] = [
        |rows| rows.hidden = 8,
        |rows| rows.values.truncate(11),
        |rows| rows.status.truncate(2),
        |rows| {
            rows.vectors[0] = 2;
            rows.values.extend([0.0; 4]);
        },
    ];
    for format in Format::ALL {
        for (case, breaks) in broken.iter().enumerate() {
            let mut rows = pooled(4, 0, 3);
            breaks(&mut rows);
            let mut sink =
                output::create(format, layout(&file(&folder, format), 4, false)).unwrap();
            let refused = sink.write(&rows);
            assert!(
                matches!(refused, Err(OutputError::Inconsistent { .. })),
                "{format}, case {case}: {refused:?}"
            );
        }
    }
}

#[test]
fn what_is_no_output_is_told_and_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    std::fs::write(&path, ">a\nMK\n").unwrap();
    let error = output::read(&path).unwrap_err().to_string();
    assert!(error.contains("none of parquet, npz"), "{error}");

    for format in Format::ALL {
        let whole = std::fs::read(write(
            format,
            layout(&file(&folder, format), 16, false),
            &[pooled(16, 0, 50)],
        ))
        .unwrap();
        for cut in [4, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let error = output::read(&path).unwrap_err();
            assert!(
                error.to_string().contains(path.to_str().unwrap()),
                "{error}"
            );
        }
        // Any byte may be wrong: an error or other numbers, but never a crash.
        for at in (0..whole.len()).step_by((whole.len() / 1500).max(7)) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            std::fs::write(&path, &damaged).unwrap();
            let _ = output::read(&path);
        }
    }
}

#[test]
fn halves_on_request_in_every_format() {
    for format in Format::ALL {
        for per_token in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let mut layout = layout(&file(&folder, format), 16, per_token);
            layout.precision = OutputPrecision::Fp16;
            let mut rows = pooled(16, 0, 40);
            // Exact in 16 bits, which hold 11 binary digits.
            rows.values = (0..40 * 16).map(|i| i as f32 / 4.0).collect();
            rows.values[16..32].fill(f32::NAN);
            let path = write(format, layout.clone(), std::slice::from_ref(&rows));
            python(
                &format!(
                    "{LOAD}
assert embeddings.dtype == np.float16, embeddings.dtype
assert np.isnan(embeddings[1]).all()
want = (np.arange(640) / 4).astype(np.float16).reshape(40, 16)
assert (embeddings[2:] == want[2:]).all() and (embeddings[0] == want[0]).all()
assert (rows[3] == want[3]).all()"
                ),
                &path,
            );
            let (mut back, told) = output::read(&path).unwrap();
            assert_eq!(told, layout, "{format}");
            assert!(back.values[16..32].iter().all(|v| v.is_nan()));
            back.values[16..32].fill(0.0);
            rows.values[16..32].fill(0.0);
            assert_eq!(back, rows, "{format}");
        }
    }
}

/// Vectors as a GPU gives them: in 16 bits, batch by batch, in an order of the batches' own.
#[test]
fn vectors_of_16_bits_go_to_the_file_as_the_engine_gave_them() {
    let hidden = 96;
    let lengths: Vec<usize> = (0..500).map(|row| (row * 37) % 131).collect();
    let number = |vector: usize, at: usize| ((vector * 31 + at) % 2048) as f32 / 4.0;
    let mut rows = pooled(hidden, 0, lengths.len());
    rows.vectors.clone_from(&lengths);
    let all: usize = lengths.iter().sum();
    rows.values = (0..all * hidden)
        .map(|i| number(i / hidden, i % hidden))
        .collect();
    // Rows are in batches by their numbers modulo 7.
    let mut batches = vec![Vec::new(); 7];
    let mut places = Vec::new();
    let mut first = 0;
    for (row, &vectors) in lengths.iter().enumerate() {
        let batch: &mut Vec<f16> = &mut batches[row % 7];
        places.push(batch.len()..batch.len() + vectors * hidden);
        let own = &rows.values[first..first + vectors * hidden];
        batch.extend(own.iter().map(|&value| f16::from_f32(value)));
        first += own.len();
    }
    let batches: Vec<Arc<Floats>> = batches
        .into_iter()
        .map(|batch| Arc::new(Floats::Half(Box::new(batch))))
        .collect();
    for (format, precision) in Format::ALL.into_iter().flat_map(|format| {
        OutputPrecision::value_variants()
            .iter()
            .map(move |&p| (format, p))
    }) {
        let folder = tempfile::tempdir().unwrap();
        let layout = |name: &str| Layout {
            precision,
            ..layout(
                &folder.path().join(name).with_extension(format.extension()),
                hidden,
                true,
            )
        };
        let whole = write(format, layout("whole"), std::slice::from_ref(&rows));
        let mut sink = output::create(format, layout("parts")).unwrap();
        let mut row = 0;
        while row < rows.len() {
            let mut block = Block::from(pooled(hidden, row, rows.len().min(row + 60)));
            block.values = Vectors::default();
            block.rows.vectors.clear();
            for _ in 0..block.rows.len() {
                block.rows.vectors.push(lengths[row]);
                block.values.share(&batches[row % 7], places[row].clone());
                row += 1;
            }
            sink.put(block).unwrap();
            sink.detach();
        }
        sink.finish().unwrap();
        let path = layout("parts").path;
        assert!(
            std::fs::read(whole).unwrap() == std::fs::read(&path).unwrap(),
            "{format}"
        );
        python(
            &format!(
                "{LOAD}
import itertools
lengths = [row * 37 % 131 for row in range(500)]
assert [len(r) for r in rows] == lengths
assert embeddings.dtype == np.float{}, embeddings.dtype
want = (np.arange({all})[:, None] * 31 + np.arange({hidden})) % 2048 / 4
assert (embeddings == want).all()
assert all((r == want[e - n : e]).all() for r, n, e in zip(rows, lengths, itertools.accumulate(lengths)))",
                8 * precision.bytes()
            ),
            &path,
        );
        let (back, told) = output::read(&path).unwrap();
        assert_eq!(told, layout("parts"));
        assert!(back == rows, "{format}");
    }
}

#[test]
fn a_value_beyond_16_bits_is_refused_and_named() {
    for format in Format::ALL {
        let folder = tempfile::tempdir().unwrap();
        let mut layout = layout(&file(&folder, format), 4, true);
        layout.precision = OutputPrecision::Fp16;
        let mut rows = pooled(4, 0, 3);
        rows.vectors = vec![0, 2, 1];
        rows.values[5] = -65_520.0;
        rows.values[0] = 65_519.0;
        let mut sink = output::create(format, layout).unwrap();
        let error = sink.write(&rows).unwrap_err().to_string();
        assert!(
            error.contains("record \"p1\" has the value -65520"),
            "{error}"
        );
    }
}

/// Ids that would be folders, or one another, and stay themselves in the attribute.
#[test]
fn datasets_of_h5_have_names_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let ids = [
        "a/b",
        "a_b",
        "a_b#2",
        "a/b",
        ".",
        "..",
        "_",
        "x\u{e9}",
        "",
        "ids",
        "embeddings",
    ];
    let mut rows = pooled(4, 0, ids.len());
    rows.ids = ids.map(String::from).to_vec();
    rows.ids.push("x".repeat(300));
    rows.ids.push("x".repeat(301));
    let more = pooled(4, ids.len(), ids.len() + 2);
    rows.headers.extend(more.headers);
    rows.lengths.extend(more.lengths);
    rows.status.extend(more.status);
    rows.vectors.extend(more.vectors);
    rows.values.extend(more.values);
    let path = write(
        Format::H5,
        layout(&file(&folder, Format::H5), 4, true),
        std::slice::from_ref(&rows),
    );
    python(
        &format!(
            "{LOAD}
assert names == ['a_b#3', 'a_b', 'a_b#2', 'a_b#4', '_#2', '__', '_', 'xé', '_#3', 'ids', 'embeddings', 'x' * 255, 'x' * 255 + '#2'], names
assert ids[:4] == ['a/b', 'a_b', 'a_b#2', 'a/b'] and ids[-1] == 'x' * 301
assert [(f[n][0] == want([i], 4)[0]).all() for i, n in enumerate(names)]"
        ),
        &path,
    );
    assert_eq!(output::read(&path).unwrap().0, rows);
}

/// The texts and headers of some hundred records go into the file together.
#[test]
fn many_datasets_of_h5_are_each_found_and_can_be_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(
        Format::H5,
        layout(&file(&folder, Format::H5), 4, true),
        &[pooled(4, 0, 7), pooled(4, 7, 5000), pooled(4, 5000, 5001)],
    );
    python(
        &format!(
            "{LOAD}
assert len(f) == 5001 and set(f) == {{f'p{{i}}' for i in range(5001)}}
for i in range(5001):
    about = dict(f[f'p{{i}}'].attrs)
    assert about == dict(id=f'p{{i}}', header=f'p{{i}} protein {{i}}', status='ok', length=i + 1, row=i), about
    assert (f[f'p{{i}}'][:] == want([i], 4)).all(), i
f.close()
with h5py.File(path, 'r+') as f:
    del f['p3'], f['p4'].attrs['id']
    f['p5'].attrs['note'], f['p6'][0, 0], f['new'] = 'x' * 300, 9, want([1, 2], 4)
    f.attrs['note'] = 'y' * 300
with h5py.File(path) as f:
    assert len(f) == 5001 and f.attrs['note'] == 'y' * 300 and f['p5'].attrs['note'] == 'x' * 300
    assert f['p6'][0, 0] == 9 and (f['new'][:] == want([1, 2], 4)).all() and 'id' not in f['p4'].attrs
    assert (f['p5000'][:] == want([5000], 4)).all() and f.attrs['model'] == 'esm2_t6_8M_UR50D'"
        ),
        &path,
    );
}
