//! What is written: rows of embeddings, the trait that every output format implements, and the way back
//! from a file to rows.
//!
//! Every file appears by rename, whole or not at all: a sink writes to a hidden temporary file in the output
//! folder and [`Sink::finish`] moves it to its final name. The same rows give the same bytes, whatever the
//! blocks they came in.

mod blocks;
mod h5;
mod npy;
mod npz;
mod parquet;
mod pickle;
mod pt;
mod safetensors;
mod table;
pub mod virnucpro;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use half::f16;

use crate::atomic_file::AtomicFile;
use crate::digest::Digest;

/// A block of consecutive rows of one output file, in input order.
///
/// Row `i` has `vectors[i]` vectors of `hidden` values each in `values` (row after row): one for a pooled
/// embedding, one for each residue for per-token output, and one vector of NaN (pooled) or none at all
/// (per-token) for a record that was skipped.
///
/// A row of many vectors may come in parts: its block has the first of them and says with `after` how many follow, and
/// the next blocks begin with these.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Width of a vector.
    pub hidden: usize,
    /// The first word of each record's header.
    pub ids: Vec<String>,
    /// The whole header line of each record, without its `>` or `@`.
    pub headers: Vec<String>,
    /// Residues in each record, as they were embedded (after a terminal `*` was dropped, before truncation).
    pub lengths: Vec<u64>,
    /// What happened to each record: `ok`, or one or more of `truncated`, `windowed`, `replaced` (`all-unknown` when no letter is known), `gaps` joined by
    /// a comma, or `skipped: why`.
    pub status: Vec<String>,
    /// How many vectors each row has.
    pub vectors: Vec<usize>,
    /// The vectors: `(before + sum(vectors) - after) * hidden` values, or `before * hidden` where there is no row.
    pub values: Vec<f32>,
    /// How many vectors at the begin are of a row that an earlier block began.
    pub before: usize,
    /// How many vectors of the last row, or of that earlier one where this block has no row, later blocks begin with.
    pub after: usize,
}

impl Rows {
    /// No rows yet, of vectors `hidden` wide.
    #[must_use]
    pub fn new(hidden: usize) -> Self {
        Rows {
            hidden,
            ..Rows::default()
        }
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Appends the rows of another block of the same width.
    pub fn append(&mut self, mut other: Rows) {
        self.ids.append(&mut other.ids);
        self.headers.append(&mut other.headers);
        self.lengths.append(&mut other.lengths);
        self.status.append(&mut other.status);
        self.vectors.append(&mut other.vectors);
        self.values.append(&mut other.values);
        self.after = other.after;
    }

    /// Appends one row of another block of the same width, whose vectors are `values`.
    pub(crate) fn push(&mut self, other: &Rows, row: usize, values: &[f32]) {
        self.ids.push(other.ids[row].clone());
        self.headers.push(other.headers[row].clone());
        self.lengths.push(other.lengths[row]);
        self.status.push(other.status[row].clone());
        self.vectors.push(other.vectors[row]);
        self.values.extend_from_slice(values);
    }

    /// Checks that the columns agree with each other and with the file they go to, so that a mistake
    /// upstream becomes an error and never a shifted matrix. `open` is what earlier blocks left to come.
    fn check(&self, layout: &Layout, open: &mut OpenRow) -> Result<(), OutputError> {
        let wrong = |what: String| OutputError::Inconsistent {
            path: layout.path.clone(),
            what,
        };
        if self.hidden != layout.hidden {
            return Err(wrong(format!(
                "vectors {} wide for a file of vectors {} wide",
                self.hidden, layout.hidden
            )));
        }
        let rows = self.ids.len();
        for (name, len) in [
            ("headers", self.headers.len()),
            ("lengths", self.lengths.len()),
            ("status", self.status.len()),
            ("vectors", self.vectors.len()),
        ] {
            if len != rows {
                return Err(wrong(format!("{rows} ids but {len} {name}")));
            }
        }
        if let Some(row) = self.vectors.iter().position(|&n| n != 1)
            && !layout.per_token
        {
            return Err(wrong(format!(
                "{:?} has {} vectors where a pooled row has one",
                self.ids[row], self.vectors[row]
            )));
        }
        let own = self.vectors.iter().sum::<usize>();
        let vectors = if rows == 0 {
            Some(self.before)
        } else {
            (self.before + own).checked_sub(self.after)
        };
        if vectors.map(|vectors| vectors * self.hidden) != Some(self.values.len()) {
            return Err(wrong(format!(
                "{} vectors of {} values, but {} values",
                self.before + own,
                self.hidden,
                self.values.len()
            )));
        }
        let (left, is_last_whole) = match self.vectors.last() {
            Some(&last) => (open.left, self.after <= last),
            None => (open.left.wrapping_sub(self.after), true),
        };
        if self.before != left || !is_last_whole {
            return Err(wrong(format!(
                "{} vectors of {:?} follow, {} were left",
                self.before, open.id, open.left
            )));
        }
        if layout.precision == OutputPrecision::Fp16 {
            self.check_halves(layout, &open.id)?;
        }
        open.left = self.after;
        if let Some(id) = self.ids.last() {
            open.id.clone_from(id);
        }
        Ok(())
    }

    /// Refuses what a 16-bit float can't hold: it would become infinite without a word.
    fn check_halves(&self, layout: &Layout, open: &str) -> Result<(), OutputError> {
        /// The least that rounds to infinity; the largest 16-bit float is 65504.
        const TOO_LARGE: f32 = 65520.0;
        let wide = |value: &f32| value.is_finite() && value.abs() >= TOO_LARGE;
        let Some(at) = self.values.iter().position(wide) else {
            return Ok(());
        };
        let vector = at / self.hidden.max(1);
        let mut end = self.before;
        let row = self.vectors.iter().position(|&vectors| {
            end += vectors;
            vector < end
        });
        let row = row.filter(|_| vector >= self.before);
        Err(OutputError::TooLarge {
            path: layout.path.clone(),
            id: row.map_or(open, |row| &self.ids[row]).to_owned(),
            value: self.values[at],
        })
    }
}

/// The row of a file that is written whose vectors are not all there.
#[derive(Debug, Default)]
struct OpenRow {
    id: String,
    /// How many are to come.
    left: usize,
}

impl OpenRow {
    /// Checks that none is to come.
    fn check(&self, layout: &Layout) -> Result<(), OutputError> {
        if self.left == 0 {
            return Ok(());
        }
        Err(OutputError::Inconsistent {
            path: layout.path.clone(),
            what: format!("{} vectors of {:?} did not come", self.left, self.id),
        })
    }
}

/// What a sink must know before the first row, and what [`Reader`] tells of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The file's final path.
    pub path: PathBuf,
    /// Width of a vector.
    pub hidden: usize,
    /// Whether rows hold a vector for each residue (`--pooling none`) instead of one pooled vector.
    pub per_token: bool,
    /// The floats in the file.
    pub precision: OutputPrecision,
    /// Where the numbers come from (tool, model, weights' hash, pooling, layer ...), in a fixed order. Written
    /// into the file.
    pub provenance: Vec<(String, String)>,
}

impl Layout {
    /// The value of a provenance key.
    #[must_use]
    pub fn provenance(&self, key: &str) -> Option<&str> {
        self.provenance
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
}

/// How a file of embeddings is laid out on disk.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Apache Parquet: one row per record
    #[default]
    Parquet,
    /// NumPy arrays in a zip archive; loads without pickle
    Npz,
    /// One NumPy matrix, with the records in a .tsv file and the provenance in a .provenance.json
    /// file next to it
    Npy,
    /// HDF5: one matrix, or per residue one dataset per record, as UniProt publishes them
    H5,
    /// safetensors: tensors, with the provenance in the header
    Safetensors,
    /// PyTorch's `torch.save`, with VirNucPro's keys `ids` and `data`
    Pt,
}

/// The floats in an output file.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum OutputPrecision {
    /// 32-bit floats
    #[default]
    Fp32,
    /// 16-bit floats: half the size, about three decimal digits; a value beyond 65504 is an error
    Fp16,
}

impl OutputPrecision {
    /// Bytes of a value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            OutputPrecision::Fp32 => 4,
            OutputPrecision::Fp16 => 2,
        }
    }

    /// Writes values, little-endian.
    fn write(self, values: &[f32], to: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(8192);
        for part in values.chunks(2048) {
            bytes.clear();
            match self {
                OutputPrecision::Fp32 => part.iter().for_each(|v| bytes.extend(v.to_le_bytes())),
                OutputPrecision::Fp16 => part
                    .iter()
                    .for_each(|v| bytes.extend(f16::from_f32(*v).to_le_bytes())),
            }
            to.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Little-endian values as 32-bit floats.
    fn values(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            OutputPrecision::Fp32 => {
                let (values, _) = bytes.as_chunks();
                values.iter().map(|&v| f32::from_le_bytes(v)).collect()
            }
            OutputPrecision::Fp16 => {
                let (values, _) = bytes.as_chunks();
                let halves = values.iter().map(|&v| f16::from_le_bytes(v));
                halves.map(f32::from).collect()
            }
        }
    }
}

impl fmt::Display for OutputPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OutputPrecision::Fp32 => "fp32",
            OutputPrecision::Fp16 => "fp16",
        })
    }
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 6] = [
        Format::Parquet,
        Format::Npz,
        Format::Npy,
        Format::H5,
        Format::Safetensors,
        Format::Pt,
    ];

    /// The ending of a file's name, without the dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Npz => "npz",
            Format::Npy => "npy",
            Format::H5 => "h5",
            Format::Safetensors => "safetensors",
            Format::Pt => "pt",
        }
    }

    /// Makes sure that no folder has the name of an output, or of a file that stands beside it.
    ///
    /// # Errors
    /// When one has: it names it.
    pub fn has_room(self, path: &Path) -> Result<(), OutputError> {
        match self.files(path).into_iter().find(|path| path.is_dir()) {
            Some(path) => Err(OutputError::Folder { path }),
            None => Ok(()),
        }
    }

    /// The files that an output is made of: the one that others stand beside comes last.
    pub(crate) fn files(self, path: &Path) -> Vec<PathBuf> {
        match self {
            Format::Npy => npy::files(path).to_vec(),
            _ => vec![path.to_owned()],
        }
    }

    /// A file of somebody else's where something that belongs to an output would be written.
    pub(crate) fn stranger(self, path: &Path) -> Option<PathBuf> {
        match self {
            Format::Npy => npy::stranger(path),
            _ => None,
        }
    }

    /// The format that a file's name ends in.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?;
        Self::ALL
            .into_iter()
            .find(|format| extension == format.extension())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}

/// A file being written.
pub trait Sink: Send {
    /// Appends rows. Memory stays bounded however many follow, and however many vectors a row has that comes in parts.
    ///
    /// # Errors
    /// When the disk refuses, or when the rows don't fit the file's layout: the error names the path.
    fn write(&mut self, rows: &Rows) -> Result<(), OutputError>;

    /// Completes the file and gives it its final name, replacing a file that was there. Dropping a sink
    /// without this leaves no file behind. Returns what was written: the file, after those that stand beside it.
    ///
    /// # Errors
    /// When the disk refuses: the error names the path.
    fn finish(self: Box<Self>) -> Result<Vec<Written>, OutputError>;
}

/// A file that stands under its name, and what tells whether it still is the one that was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Written {
    /// Its name in its folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of its bytes, in hexadecimal.
    pub hash: String,
}

/// Begins a file. The folder of `layout.path` must exist; an unwritable one is told here, before any row.
///
/// # Errors
/// When the folder can't be written to: the error names the path.
pub fn create(format: Format, layout: Layout) -> Result<Box<dyn Sink>, OutputError> {
    format.has_room(&layout.path)?;
    Ok(match format {
        Format::Parquet => Box::new(parquet::ParquetSink::create(layout)?),
        Format::Npz => Box::new(npz::NpzSink::create(layout)?),
        Format::Npy => Box::new(npy::NpySink::create(layout)?),
        Format::H5 => h5::create(layout)?,
        Format::Safetensors => Box::new(safetensors::SafetensorsSink::create(layout)?),
        Format::Pt => Box::new(pt::PtSink::create(layout)?),
    })
}

/// A file of embeddings being read, block by block, in bounded memory.
pub struct Reader {
    layout: Layout,
    rows: u64,
    blocks: Box<dyn Iterator<Item = Result<Rows, OutputError>> + Send>,
}

impl Reader {
    /// Path, width, kind of rows, and provenance.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many rows the file has.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }
}

impl Iterator for Reader {
    type Item = Result<Rows, OutputError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.blocks.next()
    }
}

/// Opens a file of embeddings that [`create`] made, or one of VirNucPro's `.pt` files; its format is told by
/// content, not by name.
///
/// # Errors
/// When the file can't be read, or isn't a file of embeddings: the error names the path.
pub fn open(path: &Path) -> Result<Reader, OutputError> {
    let mut magic = Vec::new();
    File::open(path)
        .and_then(|file| file.take(9).read_to_end(&mut magic))
        .map_err(|source| OutputError::Read {
            path: path.to_owned(),
            source,
        })?;
    let reader = match magic.as_slice() {
        [b'P', b'A', b'R', b'1', ..] => parquet::open(path),
        [b'P', b'K', ..] if pt::is_one(path) => pt::open(path),
        [b'P', b'K', ..] => npz::open(path),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => npy::open(path),
        [0x89, b'H', b'D', b'F', ..] => h5::open(path),
        // No magic number, but the header's length and its first character.
        [_, _, _, 0..=5, 0, 0, 0, 0, b'{'] => safetensors::open(path),
        _ => Err(OutputError::malformed(
            path,
            "none of parquet, npz, npy, h5, safetensors and pt",
        )),
    }?;
    let hidden = reader.layout.hidden;
    // Where there is no row, nothing tells how wide VirNucPro's would be.
    if hidden > WIDEST || (hidden == 0 && reader.rows > 0) {
        return Err(OutputError::malformed(
            path,
            format!("its vectors are {hidden} wide, where 1 to {WIDEST} values are possible"),
        ));
    }
    Ok(reader)
}

/// Reads a whole file of embeddings.
///
/// # Errors
/// As [`open`].
pub fn read(path: &Path) -> Result<(Rows, Layout), OutputError> {
    let reader = open(path)?;
    let layout = reader.layout().clone();
    let mut all = Rows::new(layout.hidden);
    for rows in reader {
        all.append(rows?);
    }
    Ok((all, layout))
}

/// Why an output could not be written or read back.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The operating system refused.
    #[error("cannot write {path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A folder stands in the file's place.
    #[error("cannot write {path}: a folder has this name; move it elsewhere, or write to another folder", path = .path.display())]
    Folder {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused to read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Rows that don't fit together or don't fit the file: a fault of seqembed, not of the input.
    #[error("cannot write {path}: {what}; this is a fault of seqembed, please report it", path = .path.display())]
    Inconsistent {
        /// The file.
        path: PathBuf,
        /// What doesn't fit.
        what: String,
    },
    /// A value that a 16-bit float can't hold.
    #[error("cannot write {path}: record {id:?} has the value {value}, and 16-bit floats end at 65504; write 32-bit ones (--output-precision fp32)", path = .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The record.
        id: String,
        /// The value.
        value: f32,
    },
    /// A file that is no output of seqembed, or is damaged.
    #[error("{path} is not a whole file of embeddings: {what}", path = .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl OutputError {
    /// The system's reason alone, for a caller that knows the path.
    fn into_io(self) -> io::Error {
        match self {
            OutputError::Io { source, .. } | OutputError::Read { source, .. } => source,
            other => io::Error::other(other),
        }
    }

    fn malformed(path: &Path, what: impl fmt::Display) -> Self {
        OutputError::Malformed {
            path: path.to_owned(),
            what: what.to_string(),
        }
    }
}

/// Values of a vector at most: whatever is wider is damaged, or made to exhaust the memory. Known models have up to 5,120.
const WIDEST: usize = 1 << 20;

/// Bytes of vectors that are handled at a time, on the way in and on the way out.
const BLOCK_BYTES: usize = 4 << 20;

/// A file that has no name of its own yet: hidden, in the folder of the final one, gone when dropped.
pub(crate) struct Unfinished {
    file: AtomicFile,
    at: u64,
    digest: Digest,
}

impl Unfinished {
    pub(crate) fn create(path: &Path) -> Result<Self, OutputError> {
        let file = AtomicFile::create(path).map_err(|source| OutputError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Unfinished {
            file,
            at: 0,
            digest: Digest::default(),
        })
    }

    /// Where it stands until it has its name.
    pub(crate) fn partial(&self) -> &Path {
        self.file.partial()
    }

    /// Brings its bytes to the disk, so that not even a power cut leaves half of it.
    pub(crate) fn complete(self) -> Result<Complete, OutputError> {
        let Unfinished { file, digest, .. } = self;
        let path = file.path().to_owned();
        let told = file
            .file()
            .sync_all()
            .and_then(|()| digest.finish(file.file()));
        let (bytes, hash) = told.map_err(|source| OutputError::Io {
            path: path.clone(),
            source,
        })?;
        let name = path.file_name().unwrap_or_default();
        let written = Written {
            name: name.to_string_lossy().into_owned(),
            bytes,
            hash,
        };
        Ok(Complete { file, written })
    }

    /// Completes the file, and gives it its name.
    pub(crate) fn finish(self) -> Result<Written, OutputError> {
        self.complete()?.publish()
    }
}

/// A file that lacks nothing but its name.
pub(crate) struct Complete {
    file: AtomicFile,
    written: Written,
}

impl Complete {
    pub(crate) fn written(&self) -> &Written {
        &self.written
    }

    fn publish(self) -> Result<Written, OutputError> {
        let path = self.file.path().to_owned();
        let named = self.file.publish().map_err(|error| match error.kind() {
            io::ErrorKind::IsADirectory => OutputError::Folder { path },
            _ => OutputError::Io {
                path,
                source: error,
            },
        });
        named.map(|()| self.written)
    }
}

/// Gives files that belong together their names. At no time, whenever the process is killed, does the last one, by which a reader
/// knows the others, stand beside those of another set.
pub(crate) fn publish(files: Vec<Complete>) -> Result<Vec<Written>, OutputError> {
    if let [_, .., last] = files.as_slice() {
        let path = last.file.target();
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(OutputError::Io {
                    path: path.to_owned(),
                    source: error,
                });
            }
            _ => {}
        }
    }
    files.into_iter().map(Complete::publish).collect()
}

/// Writes a small file, whole or not at all.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), OutputError> {
    let mut file = Unfinished::create(path)?;
    file.write_all(text.as_bytes())
        .map_err(|source| OutputError::Io {
            path: path.to_owned(),
            source,
        })?;
    file.finish().map(drop)
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.wrote(self.at, &bytes[..written]);
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Unfinished {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.at = self.file.seek(to)?;
        Ok(self.at)
    }
}
