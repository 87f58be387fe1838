//! The column of per-token vectors in a parquet file: its pages, and how they come into the file.
//!
//! The crate's writer takes some 50 ns for each value, since it makes levels of it, and lays all
//! values of a row into one page. Here pages are laid out without looking at the values, which are
//! stored as they are, one after the other: splitting them into streams of bytes and compressing
//! these (zstd, level 1) saves 8 % of the vectors of ESM-2 in 16 bits and 9 % in 32, for one second
//! more per GB to write and one to read, on one core. What a page costs is then encoding and
//! writing its values, which other threads do ([`ParallelFile`]). Where the crate copies the pages
//! of a column into the file, [`Stream`] puts these in their place.

use std::io::{self, Write};

use parquet::basic::{Compression, Encoding};
use parquet::column::page::{CompressedPage, Page, PageWriter as _};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;

use super::parallel::{ParallelFile, Part};
use super::precision::OutputPrecision;
use crate::vectors::Vectors;

/// Bytes of vectors after which a page ends, with the row; and those of each page of a long row.
const PAGE_BYTES: usize = 1 << 20;

/// The vectors of a row in a page: how many, and whether its first one is among them.
type Run = (usize, bool);

/// How the vectors of a file are stored.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub hidden: usize,
    pub precision: OutputPrecision,
}

/// How large a column of pages is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ColumnSize {
    /// In the file.
    pub bytes: u64,
    /// Levels: one for each value, and for each row without vectors.
    pub levels: u64,
}

impl Shape {
    /// Bytes of a row's vectors.
    pub fn bytes(self, vectors: usize) -> usize {
        vectors
            .saturating_mul(self.hidden)
            .saturating_mul(self.precision.bytes())
    }

    /// What stands before the values of a page, and how many levels it has. The first value of a
    /// row has repetition level 0, that of another vector 1, every other 2; none is missing, which
    /// is definition level 2; a row without vectors has both levels 0.
    fn head(self, runs: &[Run]) -> Result<(Vec<u8>, usize), ParquetError> {
        let mut bytes = Vec::new();
        let vectors: usize = runs.iter().map(|(vectors, _)| vectors).sum();
        let empty = runs.iter().filter(|(vectors, _)| *vectors == 0).count();
        levels(&mut bytes, |bytes| {
            for &(vectors, is_begun) in runs {
                if vectors == 0 {
                    run(bytes, 0, 1);
                }
                for vector in 0..vectors {
                    run(bytes, u8::from(vector > 0 || !is_begun), 1);
                    run(bytes, 2, self.hidden - 1);
                }
            }
        });
        levels(&mut bytes, |bytes| {
            let mut full = 0;
            for &(vectors, _) in runs {
                if vectors == 0 {
                    run(bytes, 2, std::mem::take(&mut full));
                    run(bytes, 0, 1);
                }
                full += vectors * self.hidden;
            }
            run(bytes, 2, full);
        });
        let count = vectors * self.hidden + empty;
        let size = bytes.len() + self.bytes(vectors);
        // The header says how large the page is, and nothing of what is in it.
        let page = Page::DataPage {
            buf: vec![0; size].into(),
            num_values: u32::try_from(count).map_err(external)?,
            encoding: Encoding::PLAIN,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let mut written = TrackedWrite::new(Vec::new());
        SerializedPageWriter::new(&mut written).write_page(CompressedPage::new(page, size))?;
        let mut head = written.into_inner()?;
        head.truncate(head.len() - size);
        head.append(&mut bytes);
        Ok((head, count))
    }

    /// What the file says of a column.
    pub fn about(
        column: ColumnDescPtr,
        rows: u64,
        size: ColumnSize,
    ) -> Result<ColumnCloseResult, ParquetError> {
        let signed = |number: u64| i64::try_from(number).map_err(external);
        let bytes = signed(size.bytes)?;
        let metadata = ColumnChunkMetaData::builder(column)
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
            .set_compression(Compression::UNCOMPRESSED)
            .set_num_values(signed(size.levels)?)
            .set_total_compressed_size(bytes)
            .set_total_uncompressed_size(bytes)
            .set_data_page_offset(0)
            .build()?;
        Ok(ColumnCloseResult {
            bytes_written: size.bytes,
            rows_written: rows,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: None,
        })
    }
}

fn external(error: std::num::TryFromIntError) -> ParquetError {
    ParquetError::External(Box::new(error))
}

/// The pages of rows, each of which is in one page.
pub(super) struct Pages {
    shape: Shape,
    runs: Vec<Run>,
    values: Vectors,
    parts: Vec<Part>,
    size: ColumnSize,
}

impl Pages {
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            runs: Vec::new(),
            values: Vectors::default(),
            parts: Vec::new(),
            size: ColumnSize::default(),
        }
    }

    /// Appends a row.
    pub fn push(&mut self, vectors: usize, values: Vectors) -> Result<(), ParquetError> {
        self.runs.push((vectors, true));
        self.values.append(values);
        if self.values.len() * self.shape.precision.bytes() >= PAGE_BYTES {
            self.end_page()?;
        }
        Ok(())
    }

    fn end_page(&mut self) -> Result<(), ParquetError> {
        let (head, levels) = self.shape.head(&std::mem::take(&mut self.runs))?;
        let values = Part::values(std::mem::take(&mut self.values), self.shape.precision);
        self.size.bytes += (head.len() + values.len()) as u64;
        self.size.levels += levels as u64;
        self.parts.extend([Part::Bytes(head), values]);
        Ok(())
    }

    /// All pages, and how large they are.
    pub fn end(&mut self) -> Result<(Vec<Part>, ColumnSize), ParquetError> {
        if !self.runs.is_empty() {
            self.end_page()?;
        }
        let size = std::mem::take(&mut self.size);
        Ok((std::mem::take(&mut self.parts), size))
    }

    /// Lets go of the batches that the values came with.
    pub fn detach(&mut self) {
        self.values.detach();
        for part in &mut self.parts {
            part.detach();
        }
    }
}

/// The pages of a long row, which come into the file with its vectors.
pub(super) struct LongPages {
    shape: Shape,
    /// Vectors of a page.
    each: usize,
    /// Vectors that are in no page yet.
    left: usize,
    is_begun: bool,
    values: Vectors,
}

impl LongPages {
    /// For a row of so many vectors.
    pub fn new(shape: Shape, vectors: usize) -> Self {
        Self {
            shape,
            each: (PAGE_BYTES / shape.bytes(1).max(1)).max(1),
            left: vectors,
            is_begun: false,
            values: Vectors::default(),
        }
    }

    /// How large the pages will be. Nothing has been appended yet.
    pub fn size(&self) -> Result<ColumnSize, ParquetError> {
        let mut size = ColumnSize::default();
        // The first page, those like the second, and the last.
        let middle = (self.left.div_ceil(self.each)).saturating_sub(2);
        let first = self.each.min(self.left);
        let last = self.left - first - middle * self.each;
        for (vectors, is_first, pages) in [
            (first, true, 1),
            (self.each, false, middle),
            (last, false, 1),
        ] {
            if vectors == 0 || pages == 0 {
                continue;
            }
            let (head, levels) = self.shape.head(&[(vectors, is_first)])?;
            size.bytes += (pages * (head.len() + self.shape.bytes(vectors))) as u64;
            size.levels += (pages * levels) as u64;
        }
        Ok(size)
    }

    /// Appends values, and returns the parts that are complete.
    pub fn append(&mut self, values: Vectors) -> Result<Vec<Part>, ParquetError> {
        self.values.append(values);
        let mut parts = Vec::new();
        loop {
            let vectors = self.each.min(self.left);
            let count = vectors * self.shape.hidden;
            if vectors == 0 || self.values.len() < count {
                return Ok(parts);
            }
            let (head, _) = self.shape.head(&[(vectors, !self.is_begun)])?;
            let values = Part::values(self.values.split_to(count), self.shape.precision);
            parts.extend([Part::Bytes(head), values]);
            self.is_begun = true;
            self.left -= vectors;
        }
    }

    /// Lets go of the batches that the values came with.
    pub fn detach(&mut self) {
        self.values.detach();
    }
}

/// Levels, after their count of bytes.
fn levels(bytes: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend([0; 4]);
    write(bytes);
    let count = u32::try_from(bytes.len() - start - 4).expect("a page is small");
    bytes[start..start + 4].copy_from_slice(&count.to_le_bytes());
}

/// So many times the same level, as parquet's run-length encoding has it: twice the count in 7 bits
/// a byte, and the level.
fn run(bytes: &mut Vec<u8>, level: u8, count: usize) {
    if count == 0 {
        return;
    }
    let mut left = 2 * count;
    while left >= 0x80 {
        bytes.push(left.to_le_bytes()[0] | 0x80);
        left >>= 7;
    }
    bytes.extend([left.to_le_bytes()[0], level]);
}

/// What the crate writes the file to. It holds the place of bytes that stand elsewhere: the crate
/// must copy them one by one, which a single thread would do.
pub(super) struct Stream {
    pub file: ParallelFile,
    /// Bytes that came from the crate.
    received: u64,
    /// From which of them on how many are not written.
    elsewhere: Option<(u64, u64)>,
}

impl Stream {
    pub fn new(file: ParallelFile) -> Self {
        Self {
            file,
            received: 0,
            elsewhere: None,
        }
    }

    /// Leaves out `count` bytes from the byte `from` on, which are appended to the file when
    /// everything before them is there.
    pub fn leave_out(&mut self, from: u64, count: u64) {
        self.elsewhere = Some((from, count)).filter(|_| count > 0);
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let here =
            |most: u64| usize::try_from(most).map_or(bytes.len(), |most| most.min(bytes.len()));
        let count = match &mut self.elsewhere {
            Some((from, count)) if self.received >= *from => {
                let left_out = here(*count);
                *count -= left_out as u64;
                if *count == 0 {
                    self.elsewhere = None;
                }
                left_out
            }
            other => {
                let count = other.map_or(bytes.len(), |(from, _)| here(from - self.received));
                self.file.append(Part::Bytes(bytes[..count].to_vec()))?;
                count
            }
        };
        self.received += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes that are left out.
pub(super) struct LeftOut(pub u64);

impl Length for LeftOut {
    fn len(&self) -> u64 {
        self.0
    }
}

impl ChunkReader for LeftOut {
    type T = io::Take<io::Repeat>;

    fn get_read(&self, _: u64) -> Result<Self::T, ParquetError> {
        Ok(io::Read::take(io::repeat(0), self.0))
    }

    fn get_bytes(&self, _: u64, length: usize) -> Result<bytes::Bytes, ParquetError> {
        Ok(vec![0; length].into())
    }
}
