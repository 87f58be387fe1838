//! npz: `NumPy` arrays in a zip archive, readable by `numpy.load` with `allow_pickle=False`.
//!
//! | array | type | shape |
//! |---|---|---|
//! | `ids`, `headers`, `status` | text (`<U`) | N |
//! | `lengths` | int64 | N |
//! | `embeddings`, or `mean_33` and the like | float32 or float16 | pooled: N x H; per-token: sum of the rows' vectors x H |
//! | `offsets` (per-token only) | int64 | N + 1: row i is `embeddings[offsets[i]:offsets[i + 1]]` |
//! | `provenance` | text, a JSON object | none |
//! | `long_text` (only where needed) | text, JSON lines `["headers", row, "the whole text"]` | none |
//!
//! Every element of a text array is as wide as its longest. One header of many kilobytes would so
//! blow up the whole array, in memory too. A text of more than [`TEXT_WIDTH`] characters therefore
//! stands in its array up to there, with `…` as its last character, and whole in `long_text`.
//!
//! The matrix goes to the disk as it comes, and its shape is filled in at the end. How many rows
//! there are is only known then, but an array begins with its shape: so the small columns are
//! spooled. Vectors are stored as they are, since floats hardly compress, and text, mostly zero
//! bytes, is deflated.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use zip::{CompressionMethod, ZipArchive};

use super::blocks::{Blocks, Record, check_first, counts, invalid, provenance, provenance_json};
use super::columns::SideBySide;
use super::error::{OutputError, writing};
use super::file::Written;
use super::layout::{Layout, names_of};
use super::matrix_file::MatrixFile;
use super::npy::{self, Array};
use super::parallel::ParallelFile;
use super::precision::OutputPrecision;
use super::reader::Reader;
use super::rows::Block;
use super::sink::Sink;
use super::table::{Columns, TEXTS, Table, read_u64, rewound, spool};
use super::zip_entry::{self, Entry};

/// Characters of a text array's element at most.
const TEXT_WIDTH: usize = 1000;

/// Bytes of the matrix's head: room for the largest shape.
const HEAD: usize = 128;

/// Writes one npz file.
pub(super) struct NpzSink(MatrixFile);

/// An archive whose matrix is written, and the entries that it has.
struct Archive {
    file: ParallelFile,
    entries: Vec<Entry>,
    /// The output, beside which small columns are spooled.
    path: PathBuf,
}

impl NpzSink {
    pub(super) fn create(layout: Layout) -> Result<Self, OutputError> {
        let file = MatrixFile::create(layout, |layout, file| {
            // What is written here is only known at the end.
            let header = matrix(layout.names()[0], 0, 0, &[]).local_header();
            file.write_all(&vec![0; header.len() + HEAD])?;
            file.begin_sum();
            Ok(())
        });
        Ok(NpzSink(file?))
    }

    /// Appends the other arrays. Returns the file, and what stands before the matrix.
    fn assemble(self) -> io::Result<(ParallelFile, Vec<u8>)> {
        let MatrixFile {
            layout,
            mut file,
            later,
            table,
            ..
        } = self.0;
        let sum = file.end_sum()?;
        let shape = match layout.shape(table.vectors)[..] {
            [vectors] => format!("({vectors},)"),
            _ => format!("({}, {})", table.vectors, layout.width()),
        };
        let mut head = Vec::new();
        npy::write_head(&mut head, npy::descr(layout.precision), &shape, HEAD)?;
        let width = layout.precision.bytes() as u64 * layout.width() as u64;
        let bytes = table.vectors.saturating_mul(width);
        let names = layout.names();
        let first = matrix(names[0], sum, bytes, &head);
        let mut front = first.local_header();
        front.extend(&head);
        let mut archive = Archive {
            file,
            entries: vec![first],
            path: layout.path.clone(),
        };
        for (name, mut column) in names[1..].iter().zip(later.finish()?) {
            let mut entry = matrix(name, column.sum.finalize(), bytes, &head);
            entry.at = archive.file.at();
            archive.file.write_all(&entry.local_header())?;
            archive.file.write_all(&head)?;
            io::copy(&mut column.values, &mut archive.file)?;
            archive.entries.push(entry);
        }
        archive.columns(&layout, table)?;
        let at = archive.file.at();
        zip_entry::write_directory(&mut archive.file, at, &archive.entries)?;
        Ok((archive.file, front))
    }
}

/// The entry of a matrix: `sum` is the CRC-32 of its `bytes` bytes, before which comes `head`.
fn matrix(name: &str, sum: u32, bytes: u64, head: &[u8]) -> Entry {
    let values = crc32fast::Hasher::new_with_initial_len(sum, bytes);
    let mut all = crc32fast::Hasher::new();
    all.update(head);
    all.combine(&values);
    let size = HEAD as u64 + bytes;
    Entry {
        name: format!("{name}.npy"),
        is_deflated: false,
        at: 0,
        sum: all.finalize(),
        stored: size,
        size,
    }
}

impl Archive {
    /// Appends all arrays but the matrix.
    fn columns(&mut self, layout: &Layout, table: Table) -> io::Result<()> {
        let (rows, widths) = (table.rows, table.widths);
        let mut columns = table.into_columns()?;
        for (column, name) in TEXTS.iter().enumerate() {
            let width = widths[column].clamp(1, TEXT_WIDTH);
            self.add(name, |to| {
                npy::write_header(to, &format!("<U{width}"), &format!("({rows},)"))?;
                columns.each(|row| write_text(to, &row.texts[column], width))
            })?;
        }
        self.add("lengths", |to| {
            npy::write_header(to, "<i8", &format!("({rows},)"))?;
            columns.each(|row| to.write_all(&row.length.to_le_bytes()))
        })?;
        if layout.per_token {
            self.add("offsets", |to| {
                npy::write_header(to, "<i8", &format!("({},)", rows + 1))?;
                to.write_all(&0_u64.to_le_bytes())?;
                columns.ends(|end| to.write_all(&end.to_le_bytes()))
            })?;
        }
        if widths.iter().any(|&width| width > TEXT_WIDTH) {
            // Two passes, because an array starts with its width.
            let mut width = 0;
            long_lines(&mut columns, |line| {
                width += line.chars().count();
                Ok(())
            })?;
            self.add("long_text", |to| {
                npy::write_header(to, &format!("<U{width}"), "()")?;
                long_lines(&mut columns, |line| {
                    write_text(to, line, line.chars().count())
                })
            })?;
        }
        let provenance = provenance_json(layout).to_string();
        let width = provenance.chars().count();
        self.add("provenance", |to| {
            npy::write_header(to, &format!("<U{width}"), "()")?;
            write_text(to, &provenance, width)
        })
    }

    /// Appends an array.
    fn add(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let spool = spool(&self.path);
        let mut deflated = CrcWriter {
            to: DeflateEncoder::new(spool, Compression::default()),
            sum: crc32fast::Hasher::new(),
            size: 0,
        };
        write(&mut deflated)?;
        let CrcWriter { to, sum, size } = deflated;
        let mut spool = rewound(to.finish()?)?;
        let stored = spool.seek(SeekFrom::End(0))?;
        spool.seek(SeekFrom::Start(0))?;
        let entry = Entry {
            name: format!("{name}.npy"),
            is_deflated: true,
            at: self.file.at(),
            sum: sum.finalize(),
            stored,
            size,
        };
        self.file.write_all(&entry.local_header())?;
        io::copy(&mut spool, &mut self.file)?;
        self.entries.push(entry);
        Ok(())
    }
}

/// Takes the CRC-32 of what passes.
struct CrcWriter<W> {
    to: W,
    sum: crc32fast::Hasher,
    size: u64,
}

impl<W: Write> Write for CrcWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.sum.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl Sink for NpzSink {
    fn put(&mut self, block: Block) -> Result<(), OutputError> {
        self.0.put(block)
    }

    fn detach(&mut self) {
        self.0.file.detach();
    }

    fn finish(self: Box<Self>) -> Result<Vec<Written>, OutputError> {
        self.0.check()?;
        let path = self.0.layout.path.clone();
        let (file, front) = self.assemble().map_err(|e| writing(&path, e))?;
        Ok(vec![file.finish(&[(0, front)])?])
    }
}

/// One element of a text array: UCS-4, padded with zeros to `width` characters.
fn write_text(to: &mut dyn Write, text: &str, width: usize) -> io::Result<()> {
    let mut element = Vec::with_capacity(4 * width);
    let mut chars = text.chars();
    for char in chars.by_ref().take(width) {
        element.extend(u32::from(char).to_le_bytes());
    }
    if chars.next().is_some() {
        element.truncate(4 * (width - 1));
        element.extend(u32::from('…').to_le_bytes());
    }
    element.resize(4 * width, 0);
    to.write_all(&element)
}

fn long_lines(columns: &mut Columns, mut f: impl FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    let mut number = 0_u64;
    columns.each(|row| {
        for (name, text) in TEXTS.iter().zip(&row.texts) {
            if text.chars().count() > TEXT_WIDTH {
                f(&format!("{}\n", serde_json::json!([name, number, text])))?;
            }
        }
        number += 1;
        Ok(())
    })
}

/// Opens an npz file of embeddings.
pub(super) fn open(path: &Path) -> Result<Reader, OutputError> {
    let reading = |source| OutputError::Read {
        path: path.to_owned(),
        source,
    };
    let malformed = |what: String| OutputError::malformed(path, what);
    let mut zip = ZipArchive::new(BufReader::new(File::open(path).map_err(reading)?))
        .map_err(|e| malformed(e.to_string()))?;
    let mut array = |name: &str| {
        member(path, &mut zip, name).map_err(|e| malformed(format!("array {name:?}: {e}")))
    };
    let mut need =
        |name: &str| array(name)?.ok_or_else(|| malformed(format!("it has no array {name:?}")));
    let (ids, headers, status) = (need("ids")?, need("headers")?, need("status")?);
    let lengths = need("lengths")?;
    let offsets = array("offsets")?;
    let facts = array("provenance")?;
    let long_text = array("long_text")?;
    let whole = |array: Option<Array>| match array {
        Some(mut array) => text(&mut array).map_err(reading),
        None => Ok(String::new()),
    };
    let provenance = match whole(facts)?.as_str() {
        "" => Vec::new(),
        facts => provenance(path, facts)?,
    };
    let columns = Layout::columns_of(&provenance);
    let mut matrices = Vec::new();
    for name in names_of(&columns) {
        let matrix = array(name)?;
        matrices.push(matrix.ok_or_else(|| malformed(format!("it has no array {name:?}")))?);
    }

    let &[rows] = ids.shape.as_slice() else {
        return Err(malformed("array \"ids\" is not one-dimensional".into()));
    };
    let Some(([vectors, hidden], precision)) = shape(&matrices) else {
        let names = names_of(&columns).join(", ");
        return Err(malformed(format!(
            "array {names:?} is not a matrix of floats"
        )));
    };
    let texts = [ids, headers, status];
    let is_in_step = texts.iter().chain([&lengths]).all(|a| a.shape == [rows])
        && texts.iter().all(|a| text_width(a).is_some())
        && offsets.iter().chain([&lengths]).all(|a| a.descr == "<i8")
        && match &offsets {
            Some(offsets) => offsets.shape == [rows.saturating_add(1)],
            None => vectors == rows,
        };
    if !is_in_step {
        return Err(malformed(
            "the types or shapes of its arrays do not match".into(),
        ));
    }
    let long = long_texts(path, &whole(long_text)?)?;
    let width = usize::try_from(hidden).map_err(|e| malformed(e.to_string()))?;
    let layout = Layout {
        path: path.to_owned(),
        hidden: width.saturating_mul(matrices.len()),
        columns,
        per_token: offsets.is_some(),
        precision,
        provenance,
    };
    let count = vectors_of_rows(path, offsets)?;
    let streams = matrices.into_iter().map(|matrix| matrix.data);
    Ok(Blocks {
        layout,
        rows,
        vectors,
        next: records(texts, long, lengths, count),
        values: SideBySide::join(streams, width.saturating_mul(precision.bytes())),
    }
    .into_reader())
}

/// Reads the records, each with its texts, of which the long ones stand elsewhere.
fn records(
    mut texts: [Array; 3],
    mut long: HashMap<(usize, u64), String>,
    mut lengths: Array,
    mut count: Box<dyn FnMut() -> io::Result<u64> + Send>,
) -> Box<dyn FnMut() -> io::Result<Record> + Send> {
    let mut row = 0;
    Box::new(move || {
        let mut column = |column: usize| -> io::Result<String> {
            let text = text(&mut texts[column])?;
            Ok(long.remove(&(column, row)).unwrap_or(text))
        };
        let (id, header, status) = (column(0)?, column(1)?, column(2)?);
        row += 1;
        Ok(Record {
            id,
            header,
            status,
            length: read_u64(&mut lengths.data)?,
            vectors: count()?,
        })
    })
}

/// The sides of matrices of floats, and which floats, if all are the same.
fn shape(matrices: &[Array]) -> Option<([u64; 2], OutputPrecision)> {
    let first = matrices.first()?;
    let &[vectors, hidden] = first.shape.as_slice() else {
        return None;
    };
    let is_like = |other: &Array| (&other.descr, &other.shape) == (&first.descr, &first.shape);
    let precision = npy::precision(&first.descr)?;
    matrices
        .iter()
        .all(is_like)
        .then_some(([vectors, hidden], precision))
}

/// Number of vectors per row, from the offsets; 1 without offsets.
fn vectors_of_rows(
    path: &Path,
    offsets: Option<Array>,
) -> Result<Box<dyn FnMut() -> io::Result<u64> + Send>, OutputError> {
    let Some(mut offsets) = offsets else {
        return Ok(Box::new(|| Ok(1)));
    };
    // After the first, which is 0, each row reads where it ends.
    let first = read_u64(&mut offsets.data).map_err(|source| OutputError::Read {
        path: path.to_owned(),
        source,
    })?;
    check_first(first).map_err(|e| OutputError::malformed(path, e))?;
    Ok(Box::new(counts(move || read_u64(&mut offsets.data))))
}

/// The texts that do not fit into their arrays, by column and row.
fn long_texts(path: &Path, lines: &str) -> Result<HashMap<(usize, u64), String>, OutputError> {
    let mut long = HashMap::new();
    for line in lines.lines() {
        let (name, row, text): (String, u64, String) = serde_json::from_str(line)
            .map_err(|e| OutputError::malformed(path, format!("long_text: {e}")))?;
        if let Some(column) = TEXTS.iter().position(|&column| column == name) {
            long.insert((column, row), text);
        }
    }
    Ok(long)
}

/// An array of the archive.
fn member(
    path: &Path,
    zip: &mut ZipArchive<BufReader<File>>,
    name: &str,
) -> io::Result<Option<Array>> {
    let Some(index) = zip.index_for_name(&format!("{name}.npy")) else {
        return Ok(None);
    };
    // A member of the archive lends the whole archive, and the arrays are read in step: each has a
    // file handle of its own.
    let (start, size, method) = {
        let member = zip.by_index(index)?;
        let start = member.data_start().ok_or_else(|| invalid("no data"))?;
        (start, member.compressed_size(), member.compression())
    };
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let bytes = BufReader::new(file.take(size));
    match method {
        CompressionMethod::Stored => Array::begin(Box::new(bytes)),
        CompressionMethod::Deflated => {
            Array::begin(Box::new(BufReader::new(DeflateDecoder::new(bytes))))
        }
        other => Err(invalid(format!("compressed by {other}"))),
    }
    .map(Some)
}

/// Characters in each element of a text array.
fn text_width(array: &Array) -> Option<u64> {
    array.descr.strip_prefix("<U")?.parse().ok()
}

/// The next element of a text array.
fn text(array: &mut Array) -> io::Result<String> {
    let width = text_width(array).ok_or_else(|| invalid("not text"))?;
    let mut text = String::new();
    for _ in 0..width {
        let mut char = [0; 4];
        array.data.read_exact(&mut char)?;
        let char = u32::from_le_bytes(char);
        text.push(char::from_u32(char).ok_or_else(|| invalid("not text"))?);
    }
    text.truncate(text.trim_end_matches('\0').len());
    Ok(text)
}
