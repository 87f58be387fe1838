//! Shards: files of rows that were computed for outputs which are not finished, safe against cuts
//! and flipped bits.
//!
//! A shard is a sequence of frames, all numbers little-endian:
//! ```text
//! head    "SQEROWS1", attempt u64, rows u32, hidden u32, bytes of values u64, 16 bytes of BLAKE3 of all that
//! table   for each row: the record's index in its file u64, the record's hash u64, vectors u32
//! values  the rows' vectors as f32, or as f16 behind "SQEROWS2", row after row
//! check   16 bytes of BLAKE3 of head, table and values
//! ```
//! A frame that does not fit its check is passed over, and the next one is looked for.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::jobs::Jobs;
use crate::output::OutputPrecision;
use crate::page_cache;
use crate::vectors::Vectors;

/// What every frame begins with, before a digit.
const MAGIC: &[u8; 7] = b"SQEROWS";
/// The digit of frames of 32-bit values.
const SINGLES: u8 = b'1';
/// The digit of frames of 16-bit values.
const HALVES: u8 = b'2';
const HEAD: usize = 48;
const ENTRY: usize = 20;
const CHECK: usize = 16;
/// Values that are read or written at a time.
const TILE: usize = 1 << 16;

/// A row of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The record's index in its input file.
    pub index: u64,
    /// See [`super::facts::record_hash`].
    pub hash: u64,
    /// How many vectors it has.
    pub vectors: u32,
}

/// The location of the values of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowLocation {
    /// The shard.
    pub path: PathBuf,
    /// Number of bytes in the shard before them.
    pub offset: u64,
    /// Their floats.
    pub precision: OutputPrecision,
}

impl RowLocation {
    /// Appends values from the frame, which must be written.
    ///
    /// # Errors
    /// If the shard cannot be read, with its path.
    pub fn read(&self, count: usize, values: &mut Vec<f32>) -> Result<(), (PathBuf, io::Error)> {
        File::open(&self.path)
            .and_then(|file| read_values(&file, self.offset, count, self.precision, values))
            .map_err(|error| (self.path.clone(), error))
    }
}

/// Appends values read from a file.
///
/// # Errors
/// If it cannot be read.
pub fn read_values(
    file: &File,
    offset: u64,
    count: usize,
    precision: OutputPrecision,
    values: &mut Vec<f32>,
) -> io::Result<()> {
    let mut at = offset;
    let mut left = count;
    let mut bytes = vec![0; TILE.min(count) * precision.bytes()];
    values.reserve(count);
    while left > 0 {
        let bytes = &mut bytes[..TILE.min(left) * precision.bytes()];
        file.read_exact_at(bytes, at)?;
        values.extend(precision.decode(bytes));
        at += bytes.len() as u64;
        left -= TILE.min(left);
    }
    Ok(())
}

/// The header and table of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The file that the rows belong to.
    pub attempt: u64,
    /// Width of a vector.
    pub hidden: u32,
    /// What is noted of each row, in the order of their values.
    pub marks: Vec<Mark>,
    /// Offset of the values in the shard.
    pub values_at: u64,
    /// Their floats.
    pub precision: OutputPrecision,
}

/// Writes frames to a new shard, several at a time.
pub struct Writer {
    // Dropped before the file: what waits is not written any more.
    jobs: Jobs,
    file: Arc<File>,
    /// Length of the shard so far, in bytes.
    pub bytes: u64,
}

impl Writer {
    /// Creates a shard.
    ///
    /// # Errors
    /// If the file cannot be created; an existing file is never overwritten.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(Self {
            jobs: Jobs::default(),
            file: Arc::new(file),
            bytes: 0,
        })
    }

    /// Appends a frame of the marks' rows, whose values are in the marks' order; in 16 bits where
    /// all of them have 16. Returns their offset in the shard, and their floats. It may be written
    /// later: [`Writer::flush`] waits for it.
    ///
    /// # Errors
    /// When the disk refuses, or the values are not as many as the marks say. The error may be that
    /// of an earlier frame.
    pub fn frame(
        &mut self,
        attempt: u64,
        hidden: usize,
        marks: &[Mark],
        values: Vectors,
    ) -> io::Result<(u64, OutputPrecision)> {
        let wrong = || io::Error::other("rows and values of a frame do not fit together");
        let vectors: u64 = marks.iter().map(|mark| u64::from(mark.vectors)).sum();
        if vectors * hidden as u64 != values.len() as u64 {
            return Err(wrong());
        }
        let (digit, precision) = if values.are_halves() {
            (HALVES, OutputPrecision::Fp16)
        } else {
            (SINGLES, OutputPrecision::Fp32)
        };
        let size = values.len() * precision.bytes();
        let mut head = Vec::with_capacity(HEAD + marks.len() * ENTRY);
        head.extend(MAGIC);
        head.push(digit);
        head.extend(attempt.to_le_bytes());
        let rows = u32::try_from(marks.len()).map_err(|_| wrong())?;
        head.extend(rows.to_le_bytes());
        head.extend(u32::try_from(hidden).map_err(|_| wrong())?.to_le_bytes());
        head.extend((size as u64).to_le_bytes());
        head.extend(check(&blake3::hash(&head)));
        for mark in marks {
            head.extend(mark.index.to_le_bytes());
            head.extend(mark.hash.to_le_bytes());
            head.extend(mark.vectors.to_le_bytes());
        }
        let at = self.bytes;
        let start = at + head.len() as u64;
        self.bytes = start + (size + CHECK) as u64;
        let file = Arc::clone(&self.file);
        self.jobs.add(size, move || {
            let (mut values, mut bytes, mut at) = (values, head, at);
            let mut hasher = blake3::Hasher::new();
            loop {
                hasher.update(&bytes);
                file.write_all_at(&bytes, at)?;
                at += bytes.len() as u64;
                if values.is_empty() {
                    return file.write_all_at(&check(&hasher.finalize()), at);
                }
                bytes.clear();
                let part = values.split_to(TILE.min(values.len()));
                precision.encode(&part, &mut bytes);
            }
        })?;
        Ok((start, precision))
    }

    /// Waits until all frames can be read.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn flush(&self) -> io::Result<()> {
        self.jobs.wait()
    }

    /// Waits until all frames are on the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> io::Result<()> {
        self.flush()?;
        sync(&self.file)
    }

    /// The file, which can be synced to the disk by another thread.
    #[must_use]
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }
}

/// Brings a shard's frames to the disk. They are only read by a later run.
///
/// # Errors
/// When the disk refuses.
pub fn sync(shard: &File) -> io::Result<()> {
    shard.sync_data()?;
    page_cache::let_go(shard);
    Ok(())
}

fn check(hash: &blake3::Hash) -> [u8; CHECK] {
    let (first, _) = hash
        .as_bytes()
        .split_first_chunk()
        .expect("a hash has 32 bytes");
    *first
}

/// Hands on each whole frame of a shard, and returns how many damaged places were passed over. A
/// frame that the end of the shard cuts is none of them: it was being written when all ended.
///
/// # Errors
/// If the shard cannot be read.
pub fn scan(shard: &mut (impl Read + Seek), mut each: impl FnMut(Frame)) -> io::Result<usize> {
    let length = shard.seek(SeekFrom::End(0))?;
    let mut at = 0;
    let mut damaged = 0;
    while at < length {
        match frame(shard, at, length)? {
            Found::Frame(frame, end) => {
                each(frame);
                at = end;
            }
            Found::Damaged(end) => {
                damaged += 1;
                at = end;
            }
            Found::NoHead => {
                let Some(next) = next_magic(shard, at + 1)? else {
                    // All zeros, as some file systems leave them after a power cut, or part of a
                    // head: cut.
                    damaged += usize::from(length - at >= HEAD as u64 && !is_zero(shard, at)?);
                    break;
                };
                damaged += 1;
                at = next;
            }
            Found::Cut => match next_magic(shard, at + 1)? {
                Some(next) => {
                    damaged += 1;
                    at = next;
                }
                None => break,
            },
        }
    }
    Ok(damaged)
}

enum Found {
    /// A whole frame, and its end.
    Frame(Frame, u64),
    /// A frame with a good head that does not fit its check, and its end.
    Damaged(u64),
    /// No frame starts here.
    NoHead,
    /// A frame that is longer than the shard.
    Cut,
}

fn frame(shard: &mut (impl Read + Seek), at: u64, length: u64) -> io::Result<Found> {
    shard.seek(SeekFrom::Start(at))?;
    let mut head = [0; HEAD];
    if length - at < HEAD as u64 {
        return Ok(Found::NoHead);
    }
    shard.read_exact(&mut head)?;
    let (told, sum) = head.split_at(HEAD - CHECK);
    let precision = match told[MAGIC.len()] {
        SINGLES => OutputPrecision::Fp32,
        HALVES => OutputPrecision::Fp16,
        _ => return Ok(Found::NoHead),
    };
    if !told.starts_with(MAGIC) || check(&blake3::hash(told)) != *sum {
        return Ok(Found::NoHead);
    }
    let word = |at: usize| u64::from_le_bytes(told[at..at + 8].try_into().expect("eight bytes"));
    let (attempt, sizes, bytes) = (word(8), word(16), word(24));
    let rows = sizes & 0xffff_ffff;
    let hidden = u32::try_from(sizes >> 32).expect("half of the bits are left");
    let table_bytes = rows * ENTRY as u64;
    let end = (at + HEAD as u64)
        .checked_add(table_bytes)
        .and_then(|end| end.checked_add(bytes))
        .and_then(|end| end.checked_add(CHECK as u64))
        .filter(|&end| end <= length);
    let Some(end) = end else {
        return Ok(Found::Cut);
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head);
    let mut table = vec![0; usize::try_from(table_bytes).map_err(io::Error::other)?];
    shard.read_exact(&mut table)?;
    hasher.update(&table);
    let mut block = vec![0; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
        shard.read_exact(&mut block[..part])?;
        hasher.update(&block[..part]);
        left -= part as u64;
    }
    let mut sum = [0; CHECK];
    shard.read_exact(&mut sum)?;
    let marks: Vec<Mark> = table.chunks_exact(ENTRY).map(mark).collect();
    let vectors: u64 = marks.iter().map(|mark| u64::from(mark.vectors)).sum();
    let is_whole = check(&hasher.finalize()) == sum
        && vectors.checked_mul(precision.bytes() as u64 * u64::from(hidden)) == Some(bytes);
    if !is_whole {
        return Ok(Found::Damaged(end));
    }
    let frame = Frame {
        attempt,
        hidden,
        marks,
        values_at: at + (HEAD as u64) + table_bytes,
        precision,
    };
    Ok(Found::Frame(frame, end))
}

fn mark(entry: &[u8]) -> Mark {
    let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
    Mark {
        index: word(0),
        hash: word(8),
        vectors: u32::from_le_bytes(entry[16..20].try_into().expect("four bytes")),
    }
}

/// Where the next frame may start.
fn next_magic(shard: &mut (impl Read + Seek), from: u64) -> io::Result<Option<u64>> {
    let mut at = from;
    let mut block = vec![0; 1 << 16];
    loop {
        shard.seek(SeekFrom::Start(at))?;
        let mut filled = 0;
        while filled < block.len() {
            match shard.read(&mut block[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        if let Some(found) = memchr::memmem::find(&block[..filled], MAGIC) {
            return Ok(Some(at + found as u64));
        }
        if filled < block.len() {
            return Ok(None);
        }
        // The marker may span two blocks.
        at += (filled - (MAGIC.len() - 1)) as u64;
    }
}

fn is_zero(shard: &mut (impl Read + Seek), from: u64) -> io::Result<bool> {
    shard.seek(SeekFrom::Start(from))?;
    for byte in BufReader::new(shard).bytes() {
        if byte? != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A row in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    shard: u32,
    vectors: u32,
    offset: u64,
    precision: OutputPrecision,
}

/// The saved rows of one unfinished file.
#[derive(Debug, Clone, Default)]
pub struct Saved {
    /// Index and hash of each record, and where its row is; in the order of indices.
    rows: Vec<(u64, u64, Spot)>,
    shards: Arc<Vec<PathBuf>>,
}

impl Saved {
    /// Adds the rows of a frame.
    pub fn add(&mut self, shard: u32, frame: &Frame) {
        let mut offset = frame.values_at;
        for mark in &frame.marks {
            let Mark {
                index,
                hash,
                vectors,
            } = *mark;
            self.rows.push((
                index,
                hash,
                Spot {
                    shard,
                    vectors,
                    offset,
                    precision: frame.precision,
                },
            ));
            let bytes = frame.precision.bytes() as u64;
            offset += u64::from(vectors) * u64::from(frame.hidden) * bytes;
        }
    }

    /// Must be called after all frames were added; `shards` are the files, by number.
    pub fn seal(&mut self, shards: Arc<Vec<PathBuf>>) {
        self.shards = shards;
        self.rows
            .sort_unstable_by_key(|(index, hash, _)| (*index, *hash));
        self.rows.dedup_by_key(|(index, hash, _)| (*index, *hash));
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The row of a record, if it is the very record that was there when it was saved.
    #[must_use]
    pub fn find(&self, index: u64, hash: u64) -> Option<Spot> {
        let at = self
            .rows
            .binary_search_by_key(&(index, hash), |(index, hash, _)| (*index, *hash));
        at.ok().map(|at| self.rows[at].2)
    }

    /// Whether there is a row for an index, whatever record it is of.
    #[must_use]
    pub fn has(&self, index: u64) -> bool {
        let at = self.rows.partition_point(|(saved, _, _)| *saved < index);
        self.rows
            .get(at)
            .is_some_and(|(saved, _, _)| *saved == index)
    }

    fn path(&self, spot: Spot) -> &Path {
        &self.shards[spot.shard as usize]
    }
}

/// Reads rows back, with one shard open at a time.
#[derive(Debug, Default)]
pub struct RowReader {
    open: Option<(u32, File)>,
    bytes: Vec<u8>,
}

impl RowReader {
    /// Appends a row's vectors, and returns how many.
    ///
    /// # Errors
    /// If the shard cannot be read, with its path.
    pub fn read(
        &mut self,
        saved: &Saved,
        spot: Spot,
        hidden: usize,
        values: &mut Vec<f32>,
    ) -> Result<usize, (PathBuf, io::Error)> {
        let path = saved.path(spot);
        let vectors = spot.vectors as usize;
        let bytes = spot.precision.bytes();
        self.bytes.resize(vectors * hidden * bytes, 0);
        self.file(path, spot.shard)
            .and_then(|(file, bytes)| file.read_exact_at(bytes, spot.offset))
            .map_err(|error| (path.to_owned(), error))?;
        values.extend(spot.precision.decode(&self.bytes));
        Ok(vectors)
    }

    fn file(&mut self, path: &Path, shard: u32) -> io::Result<(&File, &mut Vec<u8>)> {
        let file = match self.open.take() {
            Some((open, file)) if open == shard => file,
            _ => File::open(path)?,
        };
        let (_, file) = self.open.insert((shard, file));
        Ok((file, &mut self.bytes))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Cursor;

    use half::f16;
    use proptest::prelude::*;

    use super::*;
    use crate::vectors::Floats;

    /// Row `index`, of `vectors` vectors.
    fn row(index: u64, vectors: u32, hidden: usize) -> (Mark, Vec<f32>) {
        let mark = Mark {
            index,
            hash: index * 7 + 1,
            vectors,
        };
        // Exact in 16 bits.
        let values = (0..vectors as usize * hidden).map(|at| (index * 50) as f32 + at as f32);
        (mark, values.collect())
    }

    fn shard(folder: &Path, hidden: usize, frames: &[Vec<(Mark, Vec<f32>)>]) -> PathBuf {
        let path = folder.join("shard");
        let _ = std::fs::remove_file(&path);
        let mut writer = Writer::create(&path).unwrap();
        for (attempt, rows) in frames.iter().enumerate() {
            let marks: Vec<Mark> = rows.iter().map(|(mark, _)| *mark).collect();
            let values = rows.iter().flat_map(|(_, values)| values.clone());
            let values: Vec<f32> = values.collect();
            let values = if attempt % 2 == 1 {
                let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
                let mut vectors = Vectors::default();
                vectors.share(&Arc::new(Floats::Half(Box::new(halves))), 0..values.len());
                vectors
            } else {
                values.into()
            };
            writer
                .frame(attempt as u64, hidden, &marks, values)
                .unwrap();
        }
        writer.sync().unwrap();
        path
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written_whatever_is_damaged(
            sizes in prop::collection::vec(prop::collection::vec(0..4_u32, 0..6), 0..6),
            hidden in 1..5_usize,
            cut in any::<prop::sample::Index>(),
            flip in any::<prop::sample::Index>(),
            damage in 0..3_u8,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut index = 0;
            let frames: Vec<Vec<(Mark, Vec<f32>)>> = sizes
                .iter()
                .map(|sizes| {
                    sizes.iter().map(|&vectors| { index += 1; row(index, vectors, hidden) }).collect()
                })
                .collect();
            let path = shard(folder.path(), hidden, &frames);
            let mut bytes = std::fs::read(&path).unwrap();
            match damage {
                1 if !bytes.is_empty() => {
                    let at = flip.index(bytes.len());
                    bytes[at] ^= 0x10;
                }
                2 if !bytes.is_empty() => bytes.truncate(cut.index(bytes.len())),
                _ => {}
            }
            std::fs::write(&path, &bytes).unwrap();
            let mut found = Vec::new();
            let damaged = scan(&mut Cursor::new(&bytes), |frame| found.push(frame)).unwrap();
            match damage {
                0 => prop_assert_eq!((found.len(), damaged), (frames.len(), 0)),
                // A flipped bit invalidates one frame, and is reported unless it makes the last
                // frame look truncated.
                1 => prop_assert!(found.len() + 1 >= frames.len()),
                _ => prop_assert_eq!(damaged, 0),
            }
            let shards = Arc::new(vec![path]);
            let mut reader = RowReader::default();
            for frame in &found {
                let original = &frames[usize::try_from(frame.attempt).unwrap()];
                let mut saved = Saved::default();
                saved.add(0, frame);
                saved.seal(Arc::clone(&shards));
                prop_assert_eq!(saved.len(), original.len());
                for (mark, expected) in original {
                    let spot = saved.find(mark.index, mark.hash).unwrap();
                    prop_assert!(saved.find(mark.index, mark.hash + 1).is_none());
                    let mut values = Vec::new();
                    reader.read(&saved, spot, hidden, &mut values).unwrap();
                    prop_assert_eq!(&values, expected);
                }
            }
        }
    }
}
