//! Compressed bytes -> text. The compression is told by the first bytes.

use std::io::{self, BufReader, Cursor, Read};
use std::sync::{Arc, Mutex, PoisonError};

/// Compressed bytes are read in pieces of this size.
const READ_SIZE: usize = 128 * 1024;

/// Enough first bytes to tell every format, with the extra field of a bgzip header.
const HEAD: usize = 18;

/// The empty block that ends every bgzip file (SAM specification, 4.1.2).
const BGZF_END: [u8; 28] =
    *b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0\x1b\0\x03\0\0\0\0\0\0\0\0\0";

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

impl Compression {
    /// By the magic number of each format.
    fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            // A digit (the block size), then the magic number of a block or of the end of an empty stream.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31 | 0x17, ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            // A frame, or a skippable one: pzstd and seekable files may start with it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    /// As the user knows it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }

    /// A command that checks such a file.
    pub(super) fn check(self) -> &'static str {
        match self {
            Self::Gzip => "gzip -t",
            Self::Bzip2 => "bzip2 -t",
            Self::Xz => "xz -t",
            Self::Zstd => "zstd -t",
        }
    }
}

/// A stream of text, and what was found on opening it.
pub(super) struct Opened {
    pub(super) text: Box<dyn Read + Send>,
    pub(super) compression: Option<Compression>,
    pub(super) bgzf_end: Option<BgzfEnd>,
}

/// Looks at the first bytes and puts the right decoder on top. Every decoder reads on over all members,
/// streams or frames.
pub(super) fn open(mut raw: Box<dyn Read + Send>) -> io::Result<Opened> {
    let mut head = Vec::with_capacity(HEAD);
    raw.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    let compression = Compression::of(&head);
    let is_bgzf = head.len() == HEAD && head.starts_with(&BGZF_END[..4]) && head[12..14] == *b"BC";
    let bytes = Cursor::new(head).chain(raw);

    let mut bgzf_end = None;
    let text: Box<dyn Read + Send> = match compression {
        None => Box::new(bytes),
        Some(Compression::Gzip) if is_bgzf => {
            let end = BgzfEnd::default();
            let watched = Watched {
                bytes,
                end: end.clone(),
            };
            bgzf_end = Some(end);
            Box::new(flate2::bufread::MultiGzDecoder::new(buffered(watched)))
        }
        Some(Compression::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(buffered(bytes))),
        Some(Compression::Bzip2) => Box::new(bzip2::bufread::MultiBzDecoder::new(buffered(bytes))),
        Some(Compression::Xz) => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(
            buffered(bytes),
        )),
        Some(Compression::Zstd) => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered(bytes))?;
            // Files made with `--long` need windows up to 2 GB; memory is taken only as a file asks for it.
            decoder.window_log_max(31)?;
            Box::new(decoder)
        }
    };
    Ok(Opened {
        text,
        compression,
        bgzf_end,
    })
}

fn buffered<R: Read>(bytes: R) -> BufReader<R> {
    BufReader::with_capacity(READ_SIZE, bytes)
}

/// Whether a decoder's error says that the data end too soon.
pub(super) fn is_cut(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

/// The last bytes of a bgzip file. A file that was cut between two blocks is a valid gzip file: only the
/// missing end block tells.
#[derive(Debug, Clone, Default)]
pub(super) struct BgzfEnd(Arc<Mutex<Vec<u8>>>);

impl BgzfEnd {
    pub(super) fn is_missing(&self) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) != BGZF_END
    }

    /// Keeps the last bytes of all that was read.
    fn push(&self, bytes: &[u8]) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.extend_from_slice(&bytes[bytes.len().saturating_sub(BGZF_END.len())..]);
        let surplus = last.len().saturating_sub(BGZF_END.len());
        last.drain(..surplus);
    }
}

/// A stream whose last bytes are kept.
struct Watched<R> {
    bytes: R,
    end: BgzfEnd,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        self.end.push(&buffer[..read]);
        Ok(read)
    }
}
