//! BLAKE3 of files: of files being written, on the fly, and of existing files, on all cores. The
//! hashes are those that `b3sum` prints.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt as _};
use rayon::prelude::*;
use seqembed_onnx::weights::verify::blake3_of_parts;

/// Block size in bytes: each block, except the last, is a complete subtree of BLAKE3's tree and is
/// hashed separately.
pub const BLOCK: u64 = 1 << 20;

/// The hash of the first `length` bytes of a file, in hexadecimal.
///
/// # Errors
/// If they cannot be read.
pub fn of_file(file: &File, length: u64) -> io::Result<String> {
    of_blocks(file, length, &[])
}

/// The hash of a block of a file that has more than one: [`BLOCK`] bytes, or the last ones, from
/// the offset `at`.
pub fn of_block(at: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(at);
    hasher.update(bytes).finalize_non_root()
}

/// The hash of the first `length` bytes of a file, in hexadecimal, without reading blocks whose
/// hash is already known.
///
/// # Errors
/// If a block cannot be read.
pub fn of_blocks(file: &File, length: u64, known: &[Option<ChainingValue>]) -> io::Result<String> {
    let read = |block: u64| -> io::Result<Vec<u8>> {
        let at = block * BLOCK;
        let bytes = usize::try_from((length - at).min(BLOCK)).map_err(io::Error::other)?;
        let mut buffer = vec![0; bytes];
        file.read_exact_at(&mut buffer, at)?;
        Ok(buffer)
    };
    // BLAKE3 hashes the root of the tree differently from inner nodes.
    if length <= BLOCK {
        return Ok(blake3::hash(&read(0)?).to_hex().to_string());
    }
    let value = |block: u64| {
        let known = usize::try_from(block).ok().and_then(|at| *known.get(at)?);
        if let Some(value) = known {
            return Ok(value);
        }
        Ok(of_block(block * BLOCK, &read(block)?))
    };
    let blocks = (0..length.div_ceil(BLOCK)).into_par_iter();
    let values: Vec<ChainingValue> = blocks.map(value).collect::<io::Result<_>>()?;
    Ok(blake3_of_parts(&values))
}

/// Hashes a file while it is written. Blocks that are overwritten later, such as a header, are read
/// again at the end.
#[derive(Debug, Default)]
pub struct Digest {
    /// Hashes of the full blocks; `None` for a block that was overwritten since.
    blocks: Vec<Option<ChainingValue>>,
    /// The current, incomplete block.
    hasher: Hasher,
    /// Whether the current block was overwritten.
    is_stale: bool,
    /// Number of bytes written sequentially.
    length: u64,
    /// Whether some bytes were not written sequentially, so that the whole file must be read again.
    is_lost: bool,
}

impl Digest {
    /// Notes that bytes were written at an offset.
    pub fn wrote(&mut self, at: u64, mut bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        if at != self.length {
            self.is_lost |= end > self.length;
            if at < end && end <= self.length {
                let first = usize::try_from(at / BLOCK).unwrap_or(usize::MAX);
                let last = usize::try_from((end - 1) / BLOCK).unwrap_or(usize::MAX);
                self.is_stale |= last >= self.blocks.len();
                let changed = self.blocks.iter_mut().take(last + 1).skip(first);
                changed.for_each(|block| *block = None);
            }
            return;
        }
        while !bytes.is_empty() && !self.is_lost {
            let room = BLOCK - self.length % BLOCK;
            let room = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
            let (now, later) = bytes.split_at(room);
            self.hasher.update(now);
            self.length += now.len() as u64;
            bytes = later;
            if self.length.is_multiple_of(BLOCK) {
                self.end_block();
                self.hasher.set_input_offset(self.length);
            }
        }
    }

    fn end_block(&mut self) {
        let value = std::mem::take(&mut self.hasher).finalize_non_root();
        self.blocks.push((!self.is_stale).then_some(value));
        self.is_stale = false;
    }

    /// Length in bytes and hash of the file. All bytes must have been passed to the system before.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn finish(mut self, file: &File) -> io::Result<(u64, String)> {
        let length = file.metadata()?.len();
        if self.is_lost || self.length != length {
            // The file was also written in other ways.
            self.blocks.clear();
        } else if !length.is_multiple_of(BLOCK) {
            self.end_block();
        }
        Ok((length, of_blocks(file, length, &self.blocks)?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Seek as _, SeekFrom, Write as _};

    use proptest::prelude::*;

    use super::*;

    /// Test data that differs at each offset.
    fn bytes(from: u64, length: u64) -> Vec<u8> {
        let byte = |at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        (from..from + length).map(byte).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn it_is_blake3_of_the_bytes_that_the_file_holds(
            // Bytes appended, and then overwritten: an offset from the end, and a length.
            steps in prop::collection::vec(
                (prop_oneof![0..9_u64, 0..BLOCK * 2, Just(BLOCK), Just(BLOCK * 4)],
                 prop::option::weighted(0.3, (0..BLOCK * 5, 0..BLOCK * 2))),
                0..5,
            ),
            by_another in prop::bool::weighted(0.1),
        ) {
            let mut file = tempfile::tempfile().unwrap();
            let mut digest = Digest::default();
            let mut expected = Vec::new();
            for (append, over) in steps {
                let new = bytes(expected.len() as u64, append);
                let end = file.seek(SeekFrom::End(0)).unwrap();
                file.write_all(&new).unwrap();
                digest.wrote(end, &new);
                expected.extend(new);
                if let Some((back, length)) = over {
                    let at = (expected.len() as u64).saturating_sub(back);
                    let new = bytes(at + 77, length);
                    file.seek(SeekFrom::Start(at)).unwrap();
                    file.write_all(&new).unwrap();
                    digest.wrote(at, &new);
                    let at = usize::try_from(at).unwrap();
                    let end = (at + new.len()).max(expected.len());
                    expected.resize(end, 0);
                    expected[at..at + new.len()].copy_from_slice(&new);
                }
            }
            if by_another {
                file.seek(SeekFrom::End(0)).unwrap();
                file.write_all(b"more").unwrap();
                expected.extend(b"more");
            }
            let hash = blake3::hash(&expected).to_hex().to_string();
            let length = expected.len() as u64;
            prop_assert_eq!(of_file(&file, length).unwrap(), hash.clone());
            prop_assert_eq!(digest.finish(&file).unwrap(), (length, hash));
        }
    }
}
