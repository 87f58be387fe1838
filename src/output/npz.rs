//! npz: `NumPy` arrays in a zip archive, readable by `numpy.load` with `allow_pickle=False`.
//!
//! | array | type | shape |
//! |---|---|---|
//! | `ids`, `headers`, `status` | text (`<U`) | N |
//! | `lengths` | int64 | N |
//! | `embeddings` | float32 or float16 | pooled: N x H; per-token: sum of the rows' vectors x H |
//! | `offsets` (per-token only) | int64 | N + 1: row i is `embeddings[offsets[i]:offsets[i + 1]]` |
//! | `provenance` | text, a JSON object | none |
//! | `long_text` (only where needed) | text, JSON lines `["headers", row, "the whole text"]` | none |
//!
//! Every element of a text array is as wide as its longest. One header of many kilobytes would so
//! blow up the whole array, in memory too. A text of more than [`TEXT_WIDTH`] characters therefore
//! stands in its array up to there, with `…` as its last character, and whole in `long_text`.
//!
//! How many rows there are is only known at the end, but an array begins with its shape. So rows
//! are spooled (in memory while small, then in an unnamed temporary file in the output folder) and
//! assembled at the end, in bounded memory. Vectors are stored as they are, since floats hardly
//! compress, and text, mostly zero bytes, is deflated.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::read::DeflateDecoder;
use tempfile::SpooledTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::blocks::{Blocks, Record, check_first, counts, invalid, provenance, provenance_json};
use super::error::{OutputError, writing};
use super::file::{Unfinished, Written};
use super::layout::Layout;
use super::npy::{self, Array};
use super::reader::Reader;
use super::rows::{OpenRow, Rows};
use super::sink::Sink;
use super::table::{Columns, TEXTS, Table, read_u64, rewound, spool};

/// Characters of a text array's element at most.
const TEXT_WIDTH: usize = 1000;

/// Writes one npz file.
pub(super) struct NpzSink {
    layout: Layout,
    open: OpenRow,
    file: Unfinished,
    /// The vectors, as in the file.
    values: BufWriter<SpooledTempFile>,
    table: Table,
}

impl NpzSink {
    pub(super) fn create(layout: Layout) -> Result<Self, OutputError> {
        Ok(NpzSink {
            open: OpenRow::default(),
            file: Unfinished::create(&layout.path)?,
            values: spool(&layout.path),
            table: Table::new(&layout.path),
            layout,
        })
    }

    fn spool(&mut self, rows: &Rows) -> io::Result<()> {
        self.table.push(rows)?;
        self.layout.precision.write(&rows.values, &mut self.values)
    }

    fn assemble(self) -> io::Result<Unfinished> {
        let NpzSink {
            layout,
            file,
            values,
            table,
            ..
        } = self;
        let mut values = rewound(values)?;
        let (rows, vectors, widths) = (table.rows, table.vectors, table.widths);
        let mut columns = table.into_columns()?;
        let mut zip = ZipWriter::new(BufWriter::new(file));

        for (column, name) in TEXTS.iter().enumerate() {
            let width = widths[column].clamp(1, TEXT_WIDTH);
            let size = rows.saturating_mul(4 * width as u64);
            begin(&mut zip, name, CompressionMethod::Deflated, size)?;
            npy::write_header(&mut zip, &format!("<U{width}"), &format!("({rows},)"))?;
            columns.each(|row| write_text(&mut zip, &row.texts[column], width))?;
        }
        begin(
            &mut zip,
            "lengths",
            CompressionMethod::Deflated,
            rows.saturating_mul(8),
        )?;
        npy::write_header(&mut zip, "<i8", &format!("({rows},)"))?;
        columns.each(|row| zip.write_all(&row.length.to_le_bytes()))?;
        if layout.per_token {
            begin(
                &mut zip,
                "offsets",
                CompressionMethod::Deflated,
                rows.saturating_mul(8),
            )?;
            npy::write_header(&mut zip, "<i8", &format!("({},)", rows + 1))?;
            zip.write_all(&0_u64.to_le_bytes())?;
            columns.ends(|end| zip.write_all(&end.to_le_bytes()))?;
        }
        if widths.iter().any(|&width| width > TEXT_WIDTH) {
            write_long_text(&mut zip, &mut columns)?;
        }
        let provenance = provenance_json(&layout).to_string();
        let width = provenance.chars().count();
        begin(
            &mut zip,
            "provenance",
            CompressionMethod::Deflated,
            4 * width as u64,
        )?;
        npy::write_header(&mut zip, &format!("<U{width}"), "()")?;
        write_text(&mut zip, &provenance, width)?;

        let hidden = layout.hidden as u64;
        let size = vectors.saturating_mul(layout.precision.bytes() as u64 * hidden);
        begin(&mut zip, "embeddings", CompressionMethod::Stored, size)?;
        let shape = format!("({vectors}, {hidden})");
        npy::write_header(&mut zip, npy::descr(layout.precision), &shape)?;
        io::copy(&mut values, &mut zip)?;

        let file = zip.finish()?;
        file.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

impl Sink for NpzSink {
    fn write(&mut self, rows: &Rows) -> Result<(), OutputError> {
        rows.check(&self.layout, &mut self.open)?;
        self.spool(rows).map_err(|e| writing(&self.layout.path, e))
    }

    fn finish(self: Box<Self>) -> Result<Vec<Written>, OutputError> {
        self.open.check(&self.layout)?;
        let path = self.layout.path.clone();
        let file = self.assemble().map_err(|e| writing(&path, e))?;
        Ok(vec![file.finish()?])
    }
}

/// Starts an array of about `size` bytes in the archive.
fn begin(
    zip: &mut ZipWriter<impl Write + Seek>,
    name: &str,
    method: CompressionMethod,
    size: u64,
) -> io::Result<()> {
    let options = SimpleFileOptions::default()
        .compression_method(method)
        // No time stamps, so that the same rows give the same bytes.
        .last_modified_time(zip::DateTime::default())
        .unix_permissions(0o644)
        // Zip's 64-bit sizes where 32 bits might not do: the header and deflate's overhead need
        // some room.
        .large_file(size > 0xF000_0000);
    Ok(zip.start_file(format!("{name}.npy"), options)?)
}

/// One element of a text array: UCS-4, padded with zeros to `width` characters.
fn write_text(to: &mut impl Write, text: &str, width: usize) -> io::Result<()> {
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

fn write_long_text(
    zip: &mut ZipWriter<impl Write + Seek>,
    columns: &mut Columns,
) -> io::Result<()> {
    // Two passes, because an array starts with its width.
    let mut width = 0;
    long_lines(columns, |line| {
        width += line.chars().count();
        Ok(())
    })?;
    begin(
        zip,
        "long_text",
        CompressionMethod::Deflated,
        4 * width as u64,
    )?;
    npy::write_header(zip, &format!("<U{width}"), "()")?;
    long_lines(columns, |line| write_text(zip, line, line.chars().count()))
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
    let mut lengths = need("lengths")?;
    let embeddings = need("embeddings")?;
    let offsets = array("offsets")?;
    let facts = array("provenance")?;
    let long_text = array("long_text")?;

    let &[rows] = ids.shape.as_slice() else {
        return Err(malformed("array \"ids\" is not one-dimensional".into()));
    };
    let &[vectors, hidden] = embeddings.shape.as_slice() else {
        return Err(malformed("array \"embeddings\" is not a matrix".into()));
    };
    let mut texts = [ids, headers, status];
    let is_in_step = texts.iter().chain([&lengths]).all(|a| a.shape == [rows])
        && texts.iter().all(|a| text_width(a).is_some())
        && offsets.iter().chain([&lengths]).all(|a| a.descr == "<i8")
        && match &offsets {
            Some(offsets) => offsets.shape == [rows.saturating_add(1)],
            None => vectors == rows,
        };
    let precision = npy::precision(&embeddings.descr);
    let Some(precision) = precision.filter(|_| is_in_step) else {
        return Err(malformed(
            "the types or shapes of its arrays do not match".into(),
        ));
    };
    let whole = |array: Option<Array>| match array {
        Some(mut array) => text(&mut array).map_err(reading),
        None => Ok(String::new()),
    };
    let facts = whole(facts)?;
    let mut long = long_texts(path, &whole(long_text)?)?;
    let per_token = offsets.is_some();
    let mut count = vectors_of_rows(path, offsets)?;
    let mut row = 0;
    let next = move || {
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
    };
    Ok(Blocks {
        layout: Layout {
            path: path.to_owned(),
            hidden: usize::try_from(hidden).map_err(|e| malformed(e.to_string()))?,
            per_token,
            precision,
            provenance: match facts.as_str() {
                "" => Vec::new(),
                facts => provenance(path, facts)?,
            },
        },
        rows,
        vectors,
        next: Box::new(next),
        values: Box::new(embeddings.data),
    }
    .into_reader())
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
