//! A file that all cores put together: its parts are appended in order, and encoded, hashed and
//! written in blocks, in any order, by rayon's threads.
//!
//! ```text
//! append: parts -> blocks of 1 MiB ==> any thread: values -> bytes -> BLAKE3 (and CRC-32) -> disk
//! ```
//!
//! Where each part is to stand is known when it is appended, so the bytes of the file do not depend
//! on the threads. When too many blocks wait, whoever appends writes some of them ([`Jobs`]).

use std::cell::RefCell;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blake3::hazmat::ChainingValue;

use super::error::{OutputError, writing};
use super::file::{Complete, Written};
use super::precision::OutputPrecision;
use crate::atomic_file::AtomicFile;
use crate::digest;
use crate::jobs::Jobs;
use crate::page_cache;
use crate::vectors::Vectors;

/// Bytes of a block: what is hashed on its own.
const BLOCK: usize = 1 << 20;
const _: () = assert!(BLOCK as u64 == digest::BLOCK);

/// Bytes of a file after which the system is asked to bring them to the disk.
const SYNC_BYTES: usize = 256 << 20;

/// Consecutive bytes of a file.
pub(super) enum Part {
    /// As they are.
    Bytes(Vec<u8>),
    /// Values to be encoded.
    Values {
        values: Vectors,
        precision: OutputPrecision,
        /// Bytes of the first value that are in an earlier block.
        skipped: usize,
        /// Bytes from there to the part's end.
        length: usize,
    },
}

impl Part {
    /// Values, one after the other.
    pub fn values(values: Vectors, precision: OutputPrecision) -> Self {
        let length = values.len() * precision.bytes();
        Part::Values {
            values,
            precision,
            skipped: 0,
            length,
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Part::Bytes(bytes) => bytes.len(),
            Part::Values { length, .. } => *length,
        }
    }

    /// Takes the first `count` bytes, of which there are at least so many.
    fn split_to(&mut self, count: usize) -> Part {
        match self {
            Part::Bytes(bytes) => {
                let rest = bytes.split_off(count);
                Part::Bytes(std::mem::replace(bytes, rest))
            }
            Part::Values {
                values,
                precision,
                skipped,
                length,
            } => {
                let end = *skipped + count;
                let whole = end / precision.bytes();
                let mut front = values.split_to(whole);
                let cut = end - whole * precision.bytes();
                if cut > 0 {
                    front.append(values.clone().split_to(1));
                }
                let front = Part::Values {
                    values: front,
                    precision: *precision,
                    skipped: *skipped,
                    length: count,
                };
                *skipped = cut;
                *length -= count;
                front
            }
        }
    }

    /// Lets go of the batches that values came with.
    pub fn detach(&mut self) {
        if let Part::Values { values, .. } = self {
            values.detach();
        }
    }

    /// Appends the part's bytes.
    fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Part::Bytes(bytes) => to.extend_from_slice(bytes),
            Part::Values {
                values,
                precision,
                skipped,
                length,
            } => {
                let start = to.len();
                if *skipped > 0 {
                    let mut rest = values.clone();
                    precision.encode(&rest.split_to(1), to);
                    to.drain(start..start + skipped);
                    precision.encode(&rest, to);
                } else {
                    precision.encode(values, to);
                }
                to.truncate(start + length);
            }
        }
    }
}

/// A file that does not have its final name yet: hidden, in the final folder, and removed on drop.
pub(super) struct ParallelFile {
    // Dropped before the file: what waits is not written any more.
    jobs: Jobs,
    shared: Arc<Shared>,
    /// Bytes that were appended.
    at: u64,
    block: Block,
    /// Bytes that the system may not have begun to bring to the disk.
    unsynced: usize,
}

/// A block to be written.
#[derive(Default)]
struct Block {
    index: usize,
    parts: Vec<Part>,
    length: usize,
    /// Where in the block the bytes start of which the CRC-32 is wanted, and where they end.
    checked: Option<(usize, usize)>,
}

struct Shared {
    file: AtomicFile,
    blocks: Mutex<Blocks>,
    /// Whether a thread is bringing the file to the disk.
    is_syncing: AtomicBool,
}

/// What is known of the blocks that were written.
#[derive(Default)]
struct Blocks {
    hashes: Vec<Option<ChainingValue>>,
    sums: Vec<Option<crc32fast::Hasher>>,
}

impl Shared {
    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, block: &Block) -> io::Result<()> {
        thread_local! {
            /// Kept, because memory that is new costs as much as the encoding.
            static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BYTES.with_borrow_mut(|bytes| {
            bytes.clear();
            bytes.reserve(BLOCK);
            for part in &block.parts {
                part.encode(bytes);
            }
            debug_assert_eq!(bytes.len(), block.length);
            let at = block.index as u64 * digest::BLOCK;
            self.file.file().write_all_at(bytes, at)?;
            let hash = digest::of_block(at, bytes);
            let sum = block.checked.map(|(start, end)| {
                let mut sum = crc32fast::Hasher::new();
                sum.update(&bytes[start..end]);
                sum
            });
            let mut blocks = self.blocks();
            if blocks.hashes.len() <= block.index {
                blocks.hashes.resize(block.index + 1, None);
                blocks.sums.resize(block.index + 1, None);
            }
            blocks.hashes[block.index] = Some(hash);
            blocks.sums[block.index] = sum;
            Ok(())
        })
    }
}

impl ParallelFile {
    pub fn create(path: &Path) -> Result<Self, OutputError> {
        let file = AtomicFile::create(path).map_err(|e| writing(path, e))?;
        let shared = Shared {
            file,
            blocks: Mutex::default(),
            is_syncing: AtomicBool::new(false),
        };
        Ok(Self {
            jobs: Jobs::default(),
            shared: Arc::new(shared),
            at: 0,
            block: Block::default(),
            unsynced: 0,
        })
    }

    /// How many bytes were appended.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Appends a part. An error may be that of an earlier one.
    pub fn append(&mut self, mut part: Part) -> io::Result<()> {
        while part.len() > 0 {
            let room = BLOCK - self.block.length;
            let here = if part.len() <= room {
                std::mem::replace(&mut part, Part::Bytes(Vec::new()))
            } else {
                part.split_to(room)
            };
            let bytes = here.len();
            self.block.parts.push(here);
            self.grew(bytes)?;
        }
        Ok(())
    }

    /// Counts bytes that the block has got, and has it written when it is full.
    fn grew(&mut self, bytes: usize) -> io::Result<()> {
        self.at += bytes as u64;
        self.block.length += bytes;
        if self.block.length == BLOCK {
            self.send()?;
        }
        Ok(())
    }

    /// Values, one after the other.
    pub fn append_values(&mut self, values: Vectors, precision: OutputPrecision) -> io::Result<()> {
        self.append(Part::values(values, precision))
    }

    /// From here on the CRC-32 is taken.
    pub fn begin_sum(&mut self) {
        self.block.checked = Some((self.block.length, BLOCK));
    }

    /// The CRC-32 of what was appended since [`ParallelFile::begin_sum`].
    pub fn end_sum(&mut self) -> io::Result<u32> {
        if let Some((_, end)) = &mut self.block.checked {
            *end = self.block.length;
        }
        // The rest of the block comes later: it is encoded twice.
        let mut bytes = Vec::new();
        for part in &self.block.parts {
            part.encode(&mut bytes);
        }
        let last = self.block.checked.take();
        self.jobs.wait()?;
        let mut all = crc32fast::Hasher::new();
        for sum in self
            .shared
            .blocks()
            .sums
            .iter_mut()
            .filter_map(Option::take)
        {
            all.combine(&sum);
        }
        if let Some((start, end)) = last {
            all.update(&bytes[start..end]);
        }
        Ok(all.finalize())
    }

    /// Lets go of the batches that the last values came with.
    pub fn detach(&mut self) {
        self.block.parts.iter_mut().for_each(Part::detach);
    }

    /// Has the block written.
    fn send(&mut self) -> io::Result<()> {
        let next = Block {
            index: self.block.index + 1,
            checked: self.block.checked.map(|_| (0, BLOCK)),
            ..Block::default()
        };
        let block = std::mem::replace(&mut self.block, next);
        self.unsynced += block.length;
        let shared = Arc::clone(&self.shared);
        self.jobs.add(block.length, move || shared.write(&block))?;
        if self.unsynced >= SYNC_BYTES {
            // The disk is to be busy before the file is complete.
            self.unsynced = 0;
            let shared = Arc::clone(&self.shared);
            self.jobs.add(0, move || {
                if shared.is_syncing.swap(true, Ordering::Relaxed) {
                    return Ok(());
                }
                let synced = shared.file.file().sync_data();
                page_cache::let_go(shared.file.file());
                shared.is_syncing.store(false, Ordering::Relaxed);
                synced
            })?;
        }
        Ok(())
    }

    /// Writes what is left, and then, where they belong, the bytes that only now are known. Syncs
    /// the file to disk, so that not even a power failure leaves a partial file.
    pub fn complete(mut self, late: &[(u64, Vec<u8>)]) -> Result<Complete, OutputError> {
        let path = self.shared.file.path().to_owned();
        let mut complete = || {
            if self.block.length > 0 {
                self.block.checked = None;
                self.send()?;
            }
            self.jobs.wait()?;
            let mut hashes = std::mem::take(&mut self.shared.blocks().hashes);
            for (at, bytes) in late {
                self.shared.file.file().write_all_at(bytes, *at)?;
                let end = at + bytes.len() as u64;
                for block in at / digest::BLOCK..end.div_ceil(digest::BLOCK) {
                    let block = usize::try_from(block).map_err(io::Error::other)?;
                    hashes[block] = None;
                }
            }
            self.shared.file.file().sync_all()?;
            let hash = digest::of_blocks(self.shared.file.file(), self.at, &hashes);
            page_cache::let_go(self.shared.file.file());
            hash
        };
        let hash = complete().map_err(|e| writing(&path, e))?;
        let bytes = self.at;
        let shared = Arc::into_inner(self.shared).expect("no job is left that has it");
        let name = path.file_name().unwrap_or_default();
        let written = Written {
            name: name.to_string_lossy().into_owned(),
            bytes,
            hash,
        };
        Ok(Complete::new(shared.file, written))
    }

    /// Completes the file as [`ParallelFile::complete`] does, and renames it to its final path.
    pub fn finish(self, late: &[(u64, Vec<u8>)]) -> Result<Written, OutputError> {
        self.complete(late)?.publish()
    }
}

impl Write for ParallelFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // No more than the block has room for: whoever writes goes on with the rest.
        let count = bytes.len().min(BLOCK - self.block.length);
        if let Some(Part::Bytes(last)) = self.block.parts.last_mut() {
            last.extend_from_slice(&bytes[..count]);
            self.grew(count)?;
        } else {
            self.append(Part::Bytes(bytes[..count].to_vec()))?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use half::f16;
    use proptest::prelude::*;

    use super::*;
    use crate::vectors::Floats;

    /// Number `at`, exact in 16 bits.
    fn number(at: usize) -> f32 {
        (at % 2039) as f32
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_bytes_are_those_of_the_parts_in_their_order(
            parts in prop::collection::vec(
                prop_oneof![
                    // Bytes; values, in 16 bits or not, written in 16 bits or not.
                    (0..9_usize).prop_map(|count| (count, None)),
                    (0..BLOCK).prop_map(|count| (count, None)),
                    (0..BLOCK, any::<bool>(), any::<bool>())
                        .prop_map(|(count, half, narrow)| (count, Some((half, narrow)))),
                ],
                0..8,
            ),
            summed in 0..8_usize,
            late in prop::option::of((any::<prop::sample::Index>(), 1..20_usize)),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file");
            let mut file = ParallelFile::create(&path).unwrap();
            let mut expected: Vec<u8> = Vec::new();
            let mut start = None;
            for (at, (count, kind)) in parts.into_iter().enumerate() {
                if at == summed {
                    file.begin_sum();
                    start = Some(expected.len());
                }
                let Some((is_half, is_narrow)) = kind else {
                    let bytes: Vec<u8> = (0..=250).cycle().take(count).collect();
                    expected.extend(&bytes);
                    file.write_all(&bytes).unwrap();
                    continue;
                };
                let halves = (0..count).map(|at| f16::from_f32(number(at)));
                let floats = if is_half {
                    Floats::Half(Box::new(halves.clone().collect::<Vec<_>>()))
                } else {
                    (0..count).map(number).collect::<Vec<_>>().into()
                };
                let mut values = Vectors::default();
                values.share(&Arc::new(floats), 0..count);
                let precision = if is_narrow {
                    expected.extend(halves.flat_map(f16::to_le_bytes));
                    OutputPrecision::Fp16
                } else {
                    expected.extend((0..count).flat_map(|at| number(at).to_le_bytes()));
                    OutputPrecision::Fp32
                };
                file.append_values(values, precision).unwrap();
                if count % 3 == 0 {
                    file.detach();
                }
            }
            prop_assert_eq!(file.at(), expected.len() as u64);
            if let Some(start) = start {
                prop_assert_eq!(file.end_sum().unwrap(), crc32fast::hash(&expected[start..]));
            }
            let mut patches = Vec::new();
            if let Some((at, count)) = late && !expected.is_empty() {
                let at = at.index(expected.len());
                let count = count.min(expected.len() - at);
                expected[at..at + count].fill(77);
                patches.push((at as u64, vec![77; count]));
            }
            let written = file.finish(&patches).unwrap();
            prop_assert!(std::fs::read(&path).unwrap() == expected);
            prop_assert_eq!(written.bytes, expected.len() as u64);
            prop_assert_eq!(written.hash, blake3::hash(&expected).to_hex().to_string());
        }
    }

    #[test]
    fn a_file_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = ParallelFile::create(&folder.path().join("file")).unwrap();
        for _ in 0..40 {
            file.write_all(&vec![1; BLOCK]).unwrap();
        }
        drop(file);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
