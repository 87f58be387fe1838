//! npy: one `NumPy` matrix, readable by `numpy.load` (also memory-mapped), with two companion
//! files.
//!
//! | file | what |
//! |---|---|
//! | `x.npy` | float32 or float16, N x H (pooled) or residues of all records x H (per token) |
//! | `x.tsv` | a line for each record: `ids`, `lengths`, `status`, `headers`; per token also `start` and `end`, so that a record is `matrix[start:end]` |
//! | `x.provenance.json` | where the numbers come from: a JSON object of texts |
//!
//! The matrix is written to disk as rows arrive; its shape, at the start of the file, is filled in
//! at the end. If a matrix exists, the companion files always belong to it: an old matrix is
//! removed first, and the new one is renamed last.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::blocks::{Blocks, Record, invalid, provenance, provenance_json};
use super::error::{OutputError, writing};
use super::file::{Unfinished, Written, publish};
use super::layout::Layout;
use super::matrix_file::MatrixFile;
use super::precision::OutputPrecision;
use super::reader::Reader;
use super::rows::Block;
use super::sink::Sink;
use super::table::Table;
use crate::text::counted;

/// Extensions of the companion files of a matrix: its table and its provenance.
pub(super) const BESIDE: [&str; 2] = ["tsv", "provenance.json"];

/// Bytes of the head: room for the largest shape.
const HEAD: usize = 128;

/// Writes an npy file and its companion files.
pub(super) struct NpySink(MatrixFile);

impl NpySink {
    pub(super) fn create(layout: Layout) -> Result<Self, OutputError> {
        let file = MatrixFile::create(layout, |_, file| file.write_all(&[0; HEAD]));
        Ok(NpySink(file?))
    }
}

impl Sink for NpySink {
    fn put(&mut self, block: Block) -> Result<(), OutputError> {
        self.0.put(block)
    }

    fn detach(&mut self) {
        self.0.file.detach();
    }

    fn finish(self: Box<Self>) -> Result<Vec<Written>, OutputError> {
        self.0.check()?;
        let MatrixFile {
            layout,
            file,
            table,
            ..
        } = self.0;
        let vectors = table.vectors;
        let tsv = table_path(&layout.path);
        let table = write_table(&tsv, table, layout.per_token).map_err(|e| writing(&tsv, e))?;
        let path = provenance_path(&layout.path);
        let facts = write_provenance(&path, &layout).map_err(|e| writing(&path, e))?;
        let shape = format!("({vectors}, {})", layout.hidden);
        let mut head = Vec::new();
        write_head(&mut head, descr(layout.precision), &shape, HEAD)
            .map_err(|e| writing(&layout.path, e))?;
        let file = file.complete(&[(0, head)])?;
        publish(vec![table.complete()?, facts.complete()?, file])
    }
}

/// A file that has the name of a companion file but is none: the matrix does not exist, and the
/// file does not have the layout of a companion file.
pub(super) fn stranger(path: &Path) -> Option<PathBuf> {
    if path.exists() {
        return None;
    }
    let is_ours = |file: File, is_table: bool| {
        let mut file = BufReader::new(file.take(1 << 20));
        if is_table {
            let mut line = String::new();
            file.read_line(&mut line).is_ok()
                && [false, true]
                    .map(|per_token| header(per_token).join("\t"))
                    .contains(&line.trim_end().to_owned())
        } else {
            serde_json::from_reader::<_, HashMap<String, String>>(file).is_ok()
        }
    };
    [(table_path(path), true), (provenance_path(path), false)]
        .into_iter()
        .find(|(path, is_table)| {
            path.is_file() && !File::open(path).is_ok_and(|file| is_ours(file, *is_table))
        })
        .map(|(path, _)| path)
}

/// Path of the table of a matrix.
fn table_path(path: &Path) -> PathBuf {
    path.with_extension(BESIDE[0])
}

/// Path of the provenance of a matrix.
fn provenance_path(path: &Path) -> PathBuf {
    path.with_extension(BESIDE[1])
}

/// The columns of the table, in this order.
fn header(per_token: bool) -> Vec<&'static str> {
    let mut names = vec!["ids", "lengths", "status"];
    if per_token {
        names.extend(["start", "end"]);
    }
    names.push("headers");
    names
}

fn write_table(path: &Path, table: Table, per_token: bool) -> io::Result<Unfinished> {
    let file = Unfinished::create(path).map_err(OutputError::into_io)?;
    // Fields with a tab or a quote are quoted, as pandas, polars and R read them.
    let mut tsv = csv::WriterBuilder::new()
        .delimiter(b'\t')
        .from_writer(BufWriter::new(file));
    tsv.write_record(header(per_token))?;
    let mut start = 0;
    table.into_columns()?.each(|row| {
        let [id, header, status] = &row.texts;
        let length = row.length.to_string();
        let mut fields = vec![id.as_str(), &length, status];
        let bounds = [start.to_string(), (start + row.vectors).to_string()];
        if per_token {
            fields.extend(bounds.iter().map(String::as_str));
        }
        fields.push(header);
        start += row.vectors;
        Ok(tsv.write_record(fields)?)
    })?;
    let file = tsv
        .into_inner()
        .map_err(|e| io::Error::other(e.to_string()))?;
    file.into_inner().map_err(io::IntoInnerError::into_error)
}

fn write_provenance(path: &Path, layout: &Layout) -> io::Result<Unfinished> {
    let mut file = Unfinished::create(path).map_err(OutputError::into_io)?;
    let text = serde_json::to_string_pretty(&provenance_json(layout))?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    Ok(file)
}

/// The name of a matrix's type.
pub(super) fn descr(precision: OutputPrecision) -> &'static str {
    match precision {
        OutputPrecision::Fp32 => "<f4",
        OutputPrecision::Fp16 => "<f2",
    }
}

/// The float format of a dtype name.
pub(super) fn precision(descr: &str) -> Option<OutputPrecision> {
    match descr {
        "<f4" => Some(OutputPrecision::Fp32),
        "<f2" => Some(OutputPrecision::Fp16),
        _ => None,
    }
}

/// The head of a `.npy` file, version 1.0, as `numpy.lib.format` defines it.
pub(super) fn write_header(
    to: &mut (impl Write + ?Sized),
    descr: &str,
    shape: &str,
) -> io::Result<()> {
    write_head(to, descr, shape, 0)
}

/// The same, of `least` bytes at least.
pub(super) fn write_head(
    to: &mut (impl Write + ?Sized),
    descr: &str,
    shape: &str,
    least: usize,
) -> io::Result<()> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    // The data start at a multiple of 64 bytes, after magic and version, the length of the header,
    // the header, and a newline.
    let length = 10 + header.len() + 1;
    let padding = length.max(least).next_multiple_of(64) - length;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let length = u16::try_from(header.len()).expect("a shape has few digits");
    to.write_all(b"\x93NUMPY\x01\x00")?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(header.as_bytes())
}

/// One `.npy` file: its type, its shape, and its bytes to come.
pub(super) struct Array {
    pub descr: String,
    pub shape: Vec<u64>,
    pub data: Box<dyn BufRead + Send>,
}

impl Array {
    /// Reads the magic number and the header; the data follow.
    pub fn begin(mut data: Box<dyn BufRead + Send>) -> io::Result<Self> {
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
            return Err(invalid("its header lacks the type or the shape"));
        };
        if header.contains("'fortran_order': True") {
            return Err(invalid("it is in Fortran order, which is not supported"));
        }
        let shape = shape
            .split(',')
            .map(str::trim)
            .filter(|side| !side.is_empty())
            .map(|side| {
                side.parse()
                    .map_err(|_| invalid("its shape is not a number"))
            })
            .collect::<io::Result<_>>()?;
        Ok(Array { descr, shape, data })
    }
}

/// Opens a matrix with its table and provenance.
pub(super) fn open(path: &Path) -> Result<Reader, OutputError> {
    let reading = |path: &Path| {
        let path = path.to_owned();
        move |source| OutputError::Read { path, source }
    };
    let file = File::open(path).map_err(reading(path))?;
    let matrix = Array::begin(Box::new(BufReader::new(file)))
        .map_err(|e| OutputError::malformed(path, e))?;
    let (&[vectors, hidden], Some(precision)) = (matrix.shape.as_slice(), precision(&matrix.descr))
    else {
        return Err(OutputError::malformed(
            path,
            "it is it has no matrix of float32 or float16",
        ));
    };
    let tsv = table_path(path);
    let (per_token, rows) = survey(&tsv)?;
    if !per_token && rows != vectors {
        return Err(OutputError::malformed(
            path,
            format!(
                "it has {}, and {} has {rows}",
                counted(vectors, "row"),
                tsv.display()
            ),
        ));
    }
    let beside = provenance_path(path);
    let facts = match std::fs::read_to_string(&beside) {
        Ok(text) => provenance(&beside, &text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(reading(&beside)(error)),
    };
    let mut table = read_table(&tsv)?.into_records();
    let next = move || {
        let fields = table
            .next()
            .ok_or_else(|| invalid(format!("{} ends early", tsv.display())))?
            .map_err(|e| invalid(format!("{}: {e}", tsv.display())))?;
        let field = |at: usize| fields.get(at).unwrap_or_default().to_owned();
        let number = |at: usize| {
            let text = fields.get(at).unwrap_or_default();
            text.parse::<u64>()
                .map_err(|_| invalid(format!("{}: {text:?} is not a number", tsv.display())))
        };
        let vectors = if per_token {
            number(4)?.checked_sub(number(3)?)
        } else {
            Some(1)
        };
        Ok(Record {
            id: field(0),
            length: number(1)?,
            status: field(2),
            header: field(fields.len() - 1),
            vectors: vectors.ok_or_else(|| invalid("a record ends before it starts"))?,
        })
    };
    Ok(Blocks {
        layout: Layout {
            path: path.to_owned(),
            columns: Vec::new(),
            hidden: usize::try_from(hidden).map_err(|e| OutputError::malformed(path, e))?,
            per_token,
            precision,
            provenance: facts,
        },
        rows,
        vectors,
        next: Box::new(next),
        values: matrix.data,
    }
    .into_reader())
}

/// Whether a table is of per-token output, and its number of rows, which a reader must know before
/// reading them.
fn survey(tsv: &Path) -> Result<(bool, u64), OutputError> {
    let mut table = read_table(tsv)?;
    let columns: Vec<String> = table
        .headers()
        .map_err(|e| OutputError::malformed(tsv, e))?
        .iter()
        .map(str::to_owned)
        .collect();
    let Some(per_token) = [false, true].into_iter().find(|&t| columns == header(t)) else {
        return Err(OutputError::malformed(
            tsv,
            "its columns are not those of an embedding file",
        ));
    };
    let mut rows = 0;
    let mut record = csv::StringRecord::new();
    while table
        .read_record(&mut record)
        .map_err(|e| OutputError::malformed(tsv, e))?
    {
        rows += 1;
    }
    Ok((per_token, rows))
}

fn read_table(path: &Path) -> Result<csv::Reader<File>, OutputError> {
    let file = File::open(path).map_err(|source| OutputError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(csv::ReaderBuilder::new().delimiter(b'\t').from_reader(file))
}
