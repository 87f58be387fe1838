//! npz: `NumPy` arrays in a zip archive, readable by `numpy.load` with `allow_pickle=False`.
//!
//! | array | type | shape |
//! |---|---|---|
//! | `ids`, `headers`, `status` | text (`<U`) | N |
//! | `lengths` | int64 | N |
//! | `embeddings` | float32 | pooled: N x H; per-token: sum of the rows' vectors x H |
//! | `offsets` (per-token only) | int64 | N + 1: row i is `embeddings[offsets[i]:offsets[i + 1]]` |
//! | `provenance` | text, a JSON object | none |
//! | `long_text` (only where needed) | text, JSON lines `["headers", row, "the whole text"]` | none |
//!
//! Every element of a text array is as wide as its longest. One header of many kilobytes would so blow up
//! the whole array, in memory too. A text of more than [`TEXT_WIDTH`] characters therefore stands in its
//! array up to there, with `…` as its last character, and whole in `long_text`.
//!
//! How many rows there are is only known at the end, but an array begins with its shape. So rows are spooled
//! (in memory while small, then in an unnamed temporary file in the output folder) and assembled at the end,
//! in bounded memory. Vectors are stored as they are, since floats hardly compress, and text, mostly zero
//! bytes, is deflated.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::read::DeflateDecoder;
use tempfile::SpooledTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::{BLOCK_BYTES, Layout, OutputError, Reader, Rows, Sink, Unfinished, folder};

/// Characters of a text array's element at most.
const TEXT_WIDTH: usize = 1000;
/// What is spooled in memory before a temporary file is used: small outputs never touch the disk twice.
const SPOOL_BYTES: usize = 1 << 20;
/// The text columns, in the order they are spooled in.
const TEXTS: [&str; 3] = ["ids", "headers", "status"];

/// Writes one npz file.
pub(super) struct NpzSink {
    layout: Layout,
    file: Unfinished,
    /// The vectors, as in the file.
    values: BufWriter<SpooledTempFile>,
    /// For each row: residues and vectors as u64, then for each text its bytes' count as u64 and its UTF-8.
    columns: BufWriter<SpooledTempFile>,
    /// Characters of the longest text of each column.
    widths: [usize; 3],
    rows: u64,
    vectors: u64,
}

impl NpzSink {
    pub(super) fn create(layout: Layout) -> Result<Self, OutputError> {
        let file = Unfinished::create(&layout.path)?;
        let spool = || BufWriter::new(SpooledTempFile::new_in(SPOOL_BYTES, folder(&layout.path)));
        Ok(NpzSink {
            file,
            values: spool(),
            columns: spool(),
            layout,
            widths: [0; 3],
            rows: 0,
            vectors: 0,
        })
    }

    fn spool(&mut self, rows: &Rows) -> io::Result<()> {
        for row in 0..rows.len() {
            let columns = &mut self.columns;
            columns.write_all(&rows.lengths[row].to_le_bytes())?;
            columns.write_all(&(rows.vectors[row] as u64).to_le_bytes())?;
            let texts = [&rows.ids[row], &rows.headers[row], &rows.status[row]];
            for (text, width) in texts.into_iter().zip(&mut self.widths) {
                *width = text.chars().count().max(*width);
                columns.write_all(&(text.len() as u64).to_le_bytes())?;
                columns.write_all(text.as_bytes())?;
            }
            self.vectors += rows.vectors[row] as u64;
        }
        for value in &rows.values {
            self.values.write_all(&value.to_le_bytes())?;
        }
        self.rows += rows.len() as u64;
        Ok(())
    }

    fn assemble(self) -> io::Result<Unfinished> {
        let NpzSink {
            layout,
            file,
            values,
            columns,
            widths,
            rows,
            vectors,
        } = self;
        let mut values = rewound(values)?;
        let mut columns = Columns {
            spool: BufReader::new(rewound(columns)?),
            rows,
        };
        let mut zip = ZipWriter::new(BufWriter::new(file));

        for (column, name) in TEXTS.iter().enumerate() {
            let width = widths[column].clamp(1, TEXT_WIDTH);
            let size = rows.saturating_mul(4 * width as u64);
            begin(&mut zip, name, CompressionMethod::Deflated, size)?;
            write_header(&mut zip, &format!("<U{width}"), &format!("({rows},)"))?;
            columns.each(|row| write_text(&mut zip, &row.texts[column], width))?;
        }
        begin(
            &mut zip,
            "lengths",
            CompressionMethod::Deflated,
            rows.saturating_mul(8),
        )?;
        write_header(&mut zip, "<i8", &format!("({rows},)"))?;
        columns.each(|row| zip.write_all(&row.length.to_le_bytes()))?;
        if layout.per_token {
            begin(
                &mut zip,
                "offsets",
                CompressionMethod::Deflated,
                rows.saturating_mul(8),
            )?;
            write_header(&mut zip, "<i8", &format!("({},)", rows + 1))?;
            let mut offset = 0_u64;
            zip.write_all(&offset.to_le_bytes())?;
            columns.each(|row| {
                offset += row.vectors;
                zip.write_all(&offset.to_le_bytes())
            })?;
        }
        if widths.iter().any(|&width| width > TEXT_WIDTH) {
            write_long_text(&mut zip, &mut columns)?;
        }
        let provenance: serde_json::Map<String, serde_json::Value> = layout
            .provenance
            .iter()
            .map(|(key, value)| (key.clone(), value.clone().into()))
            .collect();
        let provenance = serde_json::Value::from(provenance).to_string();
        let width = provenance.chars().count();
        begin(
            &mut zip,
            "provenance",
            CompressionMethod::Deflated,
            4 * width as u64,
        )?;
        write_header(&mut zip, &format!("<U{width}"), "()")?;
        write_text(&mut zip, &provenance, width)?;

        let hidden = layout.hidden as u64;
        let size = vectors.saturating_mul(4 * hidden);
        begin(&mut zip, "embeddings", CompressionMethod::Stored, size)?;
        write_header(&mut zip, "<f4", &format!("({vectors}, {hidden})"))?;
        io::copy(&mut values, &mut zip)?;

        let file = zip.finish()?;
        file.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

impl Sink for NpzSink {
    fn write(&mut self, rows: &Rows) -> Result<(), OutputError> {
        rows.check(&self.layout)?;
        self.spool(rows).map_err(|source| OutputError::Io {
            path: self.layout.path.clone(),
            source,
        })
    }

    fn finish(self: Box<Self>) -> Result<(), OutputError> {
        let path = self.layout.path.clone();
        let file = self
            .assemble()
            .map_err(|source| OutputError::Io { path, source })?;
        file.finish()
    }
}

/// The small columns of a sink, to be gone through once for each array.
struct Columns {
    spool: BufReader<SpooledTempFile>,
    rows: u64,
}

struct Row {
    length: u64,
    vectors: u64,
    texts: [String; 3],
}

impl Columns {
    fn each(&mut self, mut f: impl FnMut(&Row) -> io::Result<()>) -> io::Result<()> {
        self.spool.seek(SeekFrom::Start(0))?;
        let mut row = Row {
            length: 0,
            vectors: 0,
            texts: Default::default(),
        };
        for _ in 0..self.rows {
            row.length = read_u64(&mut self.spool)?;
            row.vectors = read_u64(&mut self.spool)?;
            for text in &mut row.texts {
                let bytes = read_u64(&mut self.spool)?;
                text.clear();
                (&mut self.spool).take(bytes).read_to_string(text)?;
            }
            f(&row)?;
        }
        Ok(())
    }
}

fn read_u64(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn rewound(spool: BufWriter<SpooledTempFile>) -> io::Result<SpooledTempFile> {
    let mut spool = spool.into_inner().map_err(io::IntoInnerError::into_error)?;
    spool.seek(SeekFrom::Start(0))?;
    Ok(spool)
}

/// Begins an array of about `size` bytes in the archive.
fn begin(
    zip: &mut ZipWriter<impl Write + Seek>,
    name: &str,
    method: CompressionMethod,
    size: u64,
) -> io::Result<()> {
    let options = SimpleFileOptions::default()
        .compression_method(method)
        // No time of day: the same rows give the same bytes.
        .last_modified_time(zip::DateTime::default())
        .unix_permissions(0o644)
        // Zip's 64-bit sizes where 32 bits might not do: the header and deflate's overhead need some room.
        .large_file(size > 0xF000_0000);
    Ok(zip.start_file(format!("{name}.npy"), options)?)
}

/// The head of a `.npy` file, version 1.0, as `numpy.lib.format` defines it.
fn write_header(to: &mut impl Write, descr: &str, shape: &str) -> io::Result<()> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    // The data begin at a multiple of 64 bytes: magic and version, the header's length, the header, a newline.
    let padding = (10 + header.len() + 1).next_multiple_of(64) - (10 + header.len() + 1);
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let length = u16::try_from(header.len()).expect("a shape has few digits");
    to.write_all(b"\x93NUMPY\x01\x00")?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(header.as_bytes())
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
    // Twice the same walk: an array begins with its width.
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
    write_header(zip, &format!("<U{width}"), "()")?;
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
    let (layout, rows, arrays) = arrays(path)?;
    let path = path.to_owned();
    let mut arrays = Some(arrays);
    let blocks = std::iter::from_fn(move || {
        let block = arrays.as_mut()?.block();
        match block {
            Ok(Some(rows)) => Some(Ok(rows)),
            Ok(None) => None,
            Err(error) => {
                // The streams stand nobody knows where: nothing follows an error.
                arrays = None;
                Some(Err(OutputError::malformed(&path, error)))
            }
        }
    });
    Ok(Reader {
        layout,
        rows,
        blocks: Box::new(blocks),
    })
}

/// The arrays of a file, each a stream of its own, read in step.
struct Arrays {
    texts: [Npy; 3],
    lengths: Npy,
    offsets: Option<Npy>,
    embeddings: Npy,
    hidden: usize,
    /// Whole texts that are cut in their arrays, by column and row.
    long: HashMap<(usize, u64), String>,
    row: u64,
    rows: u64,
    offset: u64,
}

fn arrays(path: &Path) -> Result<(Layout, u64, Arrays), OutputError> {
    let reading = |source| OutputError::Read {
        path: path.to_owned(),
        source,
    };
    let malformed = |what: String| OutputError::malformed(path, what);
    let mut zip = ZipArchive::new(BufReader::new(File::open(path).map_err(reading)?))
        .map_err(|e| malformed(e.to_string()))?;
    let mut array = |name: &str| {
        Npy::open(path, &mut zip, name).map_err(|e| malformed(format!("array {name:?}: {e}")))
    };
    let need = |name: &str, array: Option<Npy>| {
        array.ok_or_else(|| malformed(format!("it has no array {name:?}")))
    };
    let ids = need("ids", array("ids")?)?;
    let headers = need("headers", array("headers")?)?;
    let status = need("status", array("status")?)?;
    let lengths = need("lengths", array("lengths")?)?;
    let embeddings = need("embeddings", array("embeddings")?)?;
    let mut offsets = array("offsets")?;
    let provenance = array("provenance")?;
    let long_text = array("long_text")?;

    let &[rows] = ids.shape.as_slice() else {
        return Err(malformed("array \"ids\" is not one-dimensional".into()));
    };
    let &[vectors, hidden] = embeddings.shape.as_slice() else {
        return Err(malformed("array \"embeddings\" is not a matrix".into()));
    };
    let texts = [ids, headers, status];
    let integers = offsets.iter().chain([&lengths]).all(|a| a.descr == "<i8");
    let in_step = texts.iter().chain([&lengths]).all(|a| a.shape == [rows])
        && texts.iter().all(|a| a.text_width().is_some())
        && match &offsets {
            Some(offsets) => offsets.shape == [rows.saturating_add(1)],
            None => vectors == rows,
        };
    if !integers || !in_step || embeddings.descr != "<f4" {
        return Err(malformed(
            "its arrays' types or shapes don't fit together".into(),
        ));
    }
    let text = |array: Option<Npy>| match array {
        Some(mut array) => array.text().map_err(reading),
        None => Ok(String::new()),
    };
    let provenance = text(provenance)?;
    let provenance: serde_json::Map<String, serde_json::Value> = if provenance.is_empty() {
        serde_json::Map::new()
    } else {
        serde_json::from_str(&provenance).map_err(|e| malformed(format!("provenance: {e}")))?
    };
    let mut long = HashMap::new();
    for line in text(long_text)?.lines() {
        let (name, row, text): (String, u64, String) =
            serde_json::from_str(line).map_err(|e| malformed(format!("long_text: {e}")))?;
        if let Some(column) = TEXTS.iter().position(|&column| column == name) {
            long.insert((column, row), text);
        }
    }
    if let Some(offsets) = &mut offsets {
        // The first is 0: each row reads where it ends.
        offsets.skip(8).map_err(reading)?;
    }
    let hidden = usize::try_from(hidden).map_err(|e| malformed(e.to_string()))?;
    let layout = Layout {
        path: path.to_owned(),
        hidden,
        per_token: offsets.is_some(),
        provenance: provenance
            .into_iter()
            .map(|(key, value)| match value {
                serde_json::Value::String(value) => (key, value),
                other => (key, other.to_string()),
            })
            .collect(),
    };
    let arrays = Arrays {
        texts,
        lengths,
        offsets,
        embeddings,
        hidden,
        long,
        row: 0,
        rows,
        offset: 0,
    };
    Ok((layout, rows, arrays))
}

impl Arrays {
    fn block(&mut self) -> io::Result<Option<Rows>> {
        if self.row == self.rows {
            return Ok(None);
        }
        let mut rows = Rows::new(self.hidden);
        let mut vectors = 0;
        while self.row < self.rows
            && self.hidden.saturating_mul(4 * vectors) < BLOCK_BYTES
            && rows.len() < 1 << 16
        {
            let texts = [&mut rows.ids, &mut rows.headers, &mut rows.status];
            for (column, (array, texts)) in self.texts.iter_mut().zip(texts).enumerate() {
                let text = array.text()?;
                texts.push(self.long.remove(&(column, self.row)).unwrap_or(text));
            }
            rows.lengths.push(read_u64(&mut self.lengths.data)?);
            let count = match &mut self.offsets {
                Some(offsets) => {
                    let end = read_u64(&mut offsets.data)?;
                    let count = end.checked_sub(self.offset);
                    self.offset = end;
                    count
                        .filter(|_| end <= self.embeddings.shape[0])
                        .and_then(|count| usize::try_from(count).ok())
                        .ok_or_else(|| invalid("offsets don't ascend"))?
                }
                None => 1,
            };
            rows.vectors.push(count);
            vectors = vectors.saturating_add(count).min(usize::MAX / 4);
            self.row += 1;
        }
        let mut bytes = Vec::new();
        let want = vectors * self.hidden * size_of::<f32>();
        (&mut self.embeddings.data)
            .take(want as u64)
            .read_to_end(&mut bytes)?;
        if bytes.len() < want {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        rows.values = bytes
            .as_chunks()
            .0
            .iter()
            .map(|&value| f32::from_le_bytes(value))
            .collect();
        Ok(Some(rows))
    }
}

/// One `.npy` file in an archive: its type, its shape, and its bytes to come.
struct Npy {
    descr: String,
    shape: Vec<u64>,
    data: Box<dyn BufRead + Send>,
}

impl Npy {
    fn open(
        path: &Path,
        zip: &mut ZipArchive<BufReader<File>>,
        name: &str,
    ) -> io::Result<Option<Self>> {
        let Some(index) = zip.index_for_name(&format!("{name}.npy")) else {
            return Ok(None);
        };
        // A member of the archive lends the whole archive, and the arrays are read in step: each has a file
        // handle of its own.
        let (start, size, method) = {
            let member = zip.by_index(index)?;
            let start = member.data_start().ok_or_else(|| invalid("no data"))?;
            (start, member.compressed_size(), member.compression())
        };
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(start))?;
        let bytes = BufReader::new(file.take(size));
        let mut data: Box<dyn BufRead + Send> = match method {
            CompressionMethod::Stored => Box::new(bytes),
            CompressionMethod::Deflated => Box::new(BufReader::new(DeflateDecoder::new(bytes))),
            other => return Err(invalid(&format!("compressed by {other}"))),
        };
        let mut magic = [0; 10];
        data.read_exact(&mut magic)?;
        if !magic.starts_with(b"\x93NUMPY\x01\x00") {
            return Err(invalid("not a .npy file of version 1.0"));
        }
        let mut header = vec![0; usize::from(u16::from_le_bytes([magic[8], magic[9]]))];
        data.read_exact(&mut header)?;
        let header = String::from_utf8_lossy(&header);
        let between = |from: &str, to: char| {
            let rest = &header[header.find(from)? + from.len()..];
            Some(rest[..rest.find(to)?].to_owned())
        };
        let (Some(descr), Some(shape)) = (between("'descr': '", '\''), between("'shape': (", ')'))
        else {
            return Err(invalid("its header gives no type or no shape"));
        };
        if header.contains("'fortran_order': True") {
            return Err(invalid("its header says Fortran order"));
        }
        let shape = shape
            .split(',')
            .map(str::trim)
            .filter(|side| !side.is_empty())
            .map(|side| side.parse().map_err(|_| invalid("its shape is no number")))
            .collect::<io::Result<_>>()?;
        Ok(Some(Npy { descr, shape, data }))
    }

    /// Characters in each element of a text array.
    fn text_width(&self) -> Option<u64> {
        self.descr.strip_prefix("<U")?.parse().ok()
    }

    /// The next element of a text array.
    fn text(&mut self) -> io::Result<String> {
        let width = self.text_width().ok_or_else(|| invalid("not text"))?;
        let mut text = String::new();
        for _ in 0..width {
            let mut char = [0; 4];
            self.data.read_exact(&mut char)?;
            let char = u32::from_le_bytes(char);
            text.push(char::from_u32(char).ok_or_else(|| invalid("not text"))?);
        }
        text.truncate(text.trim_end_matches('\0').len());
        Ok(text)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        io::copy(&mut (&mut self.data).take(bytes), &mut io::sink())?;
        Ok(())
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
