//! safetensors: tensors that every framework maps into memory, with their provenance in the header.
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `embeddings`, or `mean_33` and the like | F32 or F16 | pooled: N x H; per-token: residues of all records x H |
//! | `lengths` | I64 | N |
//! | `offsets` (per-token only) | I64 | N + 1: record i is `embeddings[offsets[i]:offsets[i + 1]]` |
//! | `ids`, `headers`, `status` | U8 | UTF-8, a line for each record: `bytes(t["ids"]).decode().split("\n")[:N]` |
//!
//! The format has no text. Its metadata could hold some, but is bounded, so only the provenance
//! stands there. The matrix goes to the disk as it comes: its size is filled in at the end, in a
//! header that has room for it. `status` may end in empty lines, so that the numbers behind it are
//! aligned.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::blocks::{Blocks, Record, check_first, counts, invalid};
use super::columns::SideBySide;
use super::error::{OutputError, writing};
use super::file::Written;
use super::layout::{Layout, names_of};
use super::matrix_file::MatrixFile;
use super::parallel::ParallelFile;
use super::precision::OutputPrecision;
use super::reader::Reader;
use super::rows::Block;
use super::sink::Sink;
use super::table::{TEXTS, read_u64};

/// The largest header that the format allows.
const LONGEST_HEADER: u64 = 100_000_000;

/// Writes one safetensors file.
pub(super) struct SafetensorsSink {
    file: MatrixFile,
    /// Bytes of the header.
    header: usize,
}

impl SafetensorsSink {
    pub(super) fn create(layout: Layout) -> Result<Self, OutputError> {
        // No number in the header has more digits than this one.
        let widest = Sizes {
            rows: u64::MAX,
            vectors: u64::MAX,
            texts: [u64::MAX / 8; 3],
        };
        let header = header(&layout, &widest).len().next_multiple_of(8);
        let file = MatrixFile::create(layout, |_, file| file.write_all(&vec![b' '; 8 + header]))?;
        Ok(SafetensorsSink { file, header })
    }

    /// Appends the other tensors. Returns the file, and its header.
    fn complete(self) -> io::Result<(ParallelFile, Vec<u8>)> {
        let room = self.header;
        let MatrixFile {
            layout,
            mut file,
            later,
            table,
            ..
        } = self.file;
        let width = layout.width() as u64 * layout.precision.bytes() as u64;
        let matrix = table.vectors.saturating_mul(width);
        // A line break ends every line.
        let mut texts = table.bytes.map(|bytes| bytes + table.rows);
        let end: u64 = matrix + texts.iter().sum::<u64>();
        let padding = end.next_multiple_of(8) - end;
        texts[2] += padding;
        let sizes = Sizes {
            rows: table.rows,
            vectors: table.vectors,
            texts,
        };
        let mut columns = table.into_columns()?;
        let mut to = BufWriter::new(&mut file);
        for column in 0..TEXTS.len() {
            columns.each(|row| {
                let text = &row.texts[column];
                if text.contains('\n') {
                    return Err(invalid(format!("{text:?} contains a line break")));
                }
                to.write_all(text.as_bytes())?;
                to.write_all(b"\n")
            })?;
        }
        (0..padding).try_for_each(|_| to.write_all(b"\n"))?;
        columns.each(|row| to.write_all(&row.length.to_le_bytes()))?;
        if layout.per_token {
            to.write_all(&0_u64.to_le_bytes())?;
            columns.ends(|end| to.write_all(&end.to_le_bytes()))?;
        }
        for mut column in later.finish()? {
            io::copy(&mut column.values, &mut to)?;
        }
        to.flush()?;
        drop(to);
        let mut head = (room as u64).to_le_bytes().to_vec();
        head.extend(header(&layout, &sizes).as_bytes());
        Ok((file, head))
    }
}

impl Sink for SafetensorsSink {
    fn put(&mut self, block: Block) -> Result<(), OutputError> {
        self.file.put(block)
    }

    fn detach(&mut self) {
        self.file.file.detach();
    }

    fn finish(self: Box<Self>) -> Result<Vec<Written>, OutputError> {
        self.file.check()?;
        let path = self.file.layout.path.clone();
        let (file, head) = self.complete().map_err(|e| writing(&path, e))?;
        Ok(vec![file.finish(&[(0, head)])?])
    }
}

/// What the header depends on.
struct Sizes {
    rows: u64,
    vectors: u64,
    /// Bytes of each text tensor.
    texts: [u64; 3],
}

/// The header: type, shape and offsets of every tensor, in file order.
fn header(layout: &Layout, sizes: &Sizes) -> String {
    let (name, width) = match layout.precision {
        OutputPrecision::Fp32 => ("F32", 4),
        OutputPrecision::Fp16 => ("F16", 2),
    };
    let metadata: Map<String, Value> = layout
        .provenance
        .iter()
        .map(|(key, value)| (key.clone(), value.clone().into()))
        .collect();
    let mut tensors = Map::new();
    tensors.insert("__metadata__".into(), metadata.into());
    let mut at = 0_u64;
    let mut add = |key: &str, kind: &str, width: u64, shape: &[u64]| {
        let bytes = shape
            .iter()
            .fold(width, |size, &side| size.saturating_mul(side));
        let end = at.saturating_add(bytes);
        let tensor = json!({"dtype": kind, "shape": shape, "data_offsets": [at, end]});
        tensors.insert(key.into(), tensor);
        at = end;
    };
    let columns = layout.names();
    let shape = layout.shape(sizes.vectors);
    add(columns[0], name, width, &shape);
    for (key, bytes) in TEXTS.iter().zip(sizes.texts) {
        add(key, "U8", 1, &[bytes]);
    }
    add("lengths", "I64", 8, &[sizes.rows]);
    if layout.per_token {
        add("offsets", "I64", 8, &[sizes.rows.saturating_add(1)]);
    }
    for column in &columns[1..] {
        add(column, name, width, &shape);
    }
    Value::from(tensors).to_string()
}

/// A tensor of the header.
#[derive(serde::Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header of a file, and the location of its tensors.
struct Header<'path> {
    path: &'path Path,
    /// Offset and total size in bytes of the tensors.
    start: u64,
    bytes: u64,
    tensors: Map<String, Value>,
}

impl<'path> Header<'path> {
    fn new(path: &'path Path) -> Result<Self, OutputError> {
        let reading = |source| OutputError::Read {
            path: path.to_owned(),
            source,
        };
        let malformed = |what: String| OutputError::malformed(path, what);
        let mut file = File::open(path).map_err(reading)?;
        let size = file.metadata().map_err(reading)?.len();
        let length = read_u64(&mut file).map_err(reading)?;
        let start = length.saturating_add(8);
        if length > LONGEST_HEADER || start > size {
            return Err(malformed(format!("its header has {length} bytes")));
        }
        let mut text = Vec::new();
        (&mut file)
            .take(length)
            .read_to_end(&mut text)
            .map_err(reading)?;
        Ok(Self {
            path,
            start,
            bytes: size - start,
            tensors: serde_json::from_slice(&text)
                .map_err(|e| malformed(format!("header: {e}")))?,
        })
    }

    /// The metadata.
    fn provenance(&mut self) -> Vec<(String, String)> {
        let Some(Value::Object(facts)) = self.tensors.remove("__metadata__") else {
            return Vec::new();
        };
        let facts = facts.into_iter();
        let texts = facts.filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())));
        texts.collect()
    }

    /// A tensor, checked to be within the file.
    fn find(&mut self, name: &str) -> Result<Option<Tensor>, OutputError> {
        let malformed = |what: String| OutputError::malformed(self.path, what);
        let Some(tensor) = self.tensors.remove(name) else {
            return Ok(None);
        };
        let tensor: Tensor = serde_json::from_value(tensor)
            .map_err(|e| malformed(format!("tensor {name:?}: {e}")))?;
        let [start, end] = tensor.data_offsets;
        let width = match tensor.dtype.as_str() {
            "U8" => 1,
            "F16" => 2,
            "F32" => 4,
            "I64" => 8,
            other => return Err(malformed(format!("tensor {name:?} is {other}"))),
        };
        let bytes = tensor
            .shape
            .iter()
            .try_fold(width, |size: u64, &side| size.checked_mul(side));
        if end > self.bytes || end.checked_sub(start) != bytes {
            return Err(malformed(format!(
                "tensor {name:?} extends beyond the end of the file"
            )));
        }
        Ok(Some(tensor))
    }

    fn need(&mut self, name: &str) -> Result<Tensor, OutputError> {
        self.find(name)?
            .ok_or_else(|| OutputError::malformed(self.path, format!("it has no tensor {name:?}")))
    }

    /// A tensor's bytes. All are read in step: each has a file handle of its own.
    fn stream(&self, tensor: &Tensor) -> Result<io::Take<BufReader<File>>, OutputError> {
        let reading = |source| OutputError::Read {
            path: self.path.to_owned(),
            source,
        };
        let [start, end] = tensor.data_offsets;
        let mut file = File::open(self.path).map_err(reading)?;
        file.seek(SeekFrom::Start(self.start + start))
            .map_err(reading)?;
        Ok(BufReader::new(file).take(end - start))
    }
}

/// The floats, the number of records, and the sides of the matrix, unless the tensors do not fit
/// together.
fn shape(
    matrices: &[Tensor],
    lengths: &Tensor,
    offsets: Option<&Tensor>,
    texts: &[Tensor],
) -> Option<(OutputPrecision, u64, [u64; 2])> {
    let embeddings = matrices.first()?;
    let is_like =
        |other: &Tensor| (&other.dtype, &other.shape) == (&embeddings.dtype, &embeddings.shape);
    if !matrices.iter().all(is_like) {
        return None;
    }
    let precision = match embeddings.dtype.as_str() {
        "F32" => OutputPrecision::Fp32,
        "F16" => OutputPrecision::Fp16,
        _ => return None,
    };
    let (&[vectors, hidden], &[rows]) = (embeddings.shape.as_slice(), lengths.shape.as_slice())
    else {
        return None;
    };
    let is_in_step = match offsets {
        Some(offsets) => offsets.shape == [rows.saturating_add(1)],
        None => vectors == rows,
    };
    let is_fit = is_in_step
        && offsets
            .into_iter()
            .chain([lengths])
            .all(|t| t.dtype == "I64")
        && texts.iter().all(|text| text.dtype == "U8");
    is_fit.then_some((precision, rows, [vectors, hidden]))
}

/// Opens a safetensors file of embeddings.
pub(super) fn open(path: &Path) -> Result<Reader, OutputError> {
    let malformed = |what: String| OutputError::malformed(path, what);
    let mut file = Header::new(path)?;
    let provenance = file.provenance();
    let columns = Layout::columns_of(&provenance);
    let mut matrices = Vec::new();
    for name in names_of(&columns) {
        matrices.push(file.need(name)?);
    }
    let lengths = file.need("lengths")?;
    let offsets = file.find("offsets")?;
    let mut texts = Vec::new();
    for name in TEXTS {
        texts.push(file.need(name)?);
    }
    let Some((precision, rows, [vectors, hidden])) =
        shape(&matrices, &lengths, offsets.as_ref(), &texts)
    else {
        return Err(malformed(
            "the types or shapes of its tensors do not match".into(),
        ));
    };
    let per_token = offsets.is_some();
    let mut count: Box<dyn FnMut() -> io::Result<u64> + Send> = match &offsets {
        Some(offsets) => {
            let mut offsets = file.stream(offsets)?;
            read_u64(&mut offsets)
                .and_then(check_first)
                .map_err(|e| malformed(e.to_string()))?;
            Box::new(counts(move || read_u64(&mut offsets)))
        }
        None => Box::new(|| Ok(1)),
    };
    let mut lines = texts
        .iter()
        .map(|text| file.stream(text))
        .collect::<Result<Vec<_>, OutputError>>()?;
    let mut numbers = file.stream(&lengths)?;
    let next = move || {
        let mut line = |column: usize| -> io::Result<String> {
            let mut text = String::new();
            lines[column].read_line(&mut text)?;
            match text.pop() {
                Some('\n') => Ok(text),
                _ => Err(invalid(format!("{} ends early", TEXTS[column]))),
            }
        };
        Ok(Record {
            id: line(0)?,
            header: line(1)?,
            status: line(2)?,
            length: read_u64(&mut numbers)?,
            vectors: count()?,
        })
    };
    let width = usize::try_from(hidden).map_err(|e| malformed(e.to_string()))?;
    let streams = matrices.iter().map(|matrix| file.stream(matrix));
    let streams = streams.collect::<Result<Vec<_>, OutputError>>()?;
    Ok(Blocks {
        layout: Layout {
            path: path.to_owned(),
            hidden: width.saturating_mul(matrices.len()),
            columns,
            per_token,
            precision,
            provenance,
        },
        rows,
        vectors,
        next: Box::new(next),
        values: SideBySide::join(streams.into_iter(), width.saturating_mul(precision.bytes())),
    }
    .into_reader())
}
