//! Decompression. The format is detected from the first bytes.

use std::io::{self, BufRead, Read};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::bufread::GzDecoder;

/// Compressed bytes are read in pieces of this size.
const READ_SIZE: usize = 128 * 1024;

/// Number of bytes needed to detect any format, including the extra field of a bgzip header.
const HEAD: usize = 18;

/// Number of bytes after compressed data that a message shows.
const SHOWN: usize = 16;

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
            // A digit (the block size), then the magic number of a block or of the end of an empty
            // stream.
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
pub(super) struct Decompressed {
    pub(super) text: Box<dyn Read + Send>,
    pub(super) compression: Option<Compression>,
    pub(super) end: Arc<End>,
}

/// Looks at the first bytes and puts the right decoder on top.
pub(super) fn open(raw: Box<dyn Read + Send>) -> io::Result<Decompressed> {
    let mut bytes = Bytes::new(raw);
    let head = bytes.peek(HEAD)?;
    let compression = Compression::of(head);
    // A gzip member with an extra field of bgzip's.
    let is_bgzf =
        head.len() == HEAD && head.starts_with(b"\x1f\x8b\x08\x04") && head[12..14] == *b"BC";
    let end = Arc::new(End::default());
    let text: Box<dyn Read + Send> = match compression {
        None => Box::new(bytes),
        Some(compression) => Box::new(Members {
            compression,
            is_bgzf,
            state: State::Between(bytes),
            is_empty: true,
            spare: None,
            end: Arc::clone(&end),
        }),
    };
    Ok(Decompressed {
        text,
        compression,
        end,
    })
}

/// Whether the error of a decoder means that the data are truncated.
pub(super) fn is_cut(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

/// What was found at the end of compressed data.
#[derive(Debug, Default)]
pub(super) struct End(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    behind: Option<String>,
    lacks_last_block: bool,
}

impl End {
    /// The start of the other data after the compressed data, for a message.
    pub(super) fn found_behind(&self) -> Option<String> {
        self.lock().behind.clone()
    }

    /// Whether the empty block that ends every bgzip file is missing (SAM specification, 4.1.2). A
    /// file that was truncated between two blocks is a valid gzip file, so only this block reveals
    /// it.
    pub(super) fn lacks_last_block(&self) -> bool {
        self.lock().lacks_last_block
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text of all members, streams or frames of compressed data, in order. Zero bytes after one of
/// them, with which tapes and object stores pad their blocks, are skipped; anything else is an
/// error.
struct Members {
    compression: Compression,
    is_bgzf: bool,
    state: State,
    /// Whether the member that was read last has no text.
    is_empty: bool,
    /// A decoder at rest: the blocks of a bgzip file are many, and small.
    spare: Option<Box<GzDecoder<Bytes>>>,
    end: Arc<End>,
}

enum State {
    Between(Bytes),
    Within(Decoder),
    Over,
}

impl Read for Members {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(&mut self.state, State::Over) {
                State::Over => return Ok(0),
                State::Between(mut bytes) => {
                    if self.goes_on(&mut bytes)? {
                        self.is_empty = true;
                        let decoder = match self.spare.take() {
                            Some(mut decoder) => {
                                decoder.reset(bytes);
                                Decoder::Gzip(decoder)
                            }
                            None => Decoder::new(self.compression, bytes)?,
                        };
                        self.state = State::Within(decoder);
                    }
                }
                State::Within(mut decoder) => {
                    let read = decoder.read(buffer)?;
                    if read > 0 || buffer.is_empty() {
                        self.is_empty &= read == 0;
                        self.state = State::Within(decoder);
                        return Ok(read);
                    }
                    self.state = State::Between(match decoder {
                        Decoder::Gzip(mut decoder) => {
                            let bytes = std::mem::take(decoder.get_mut());
                            self.spare = Some(decoder);
                            bytes
                        }
                        Decoder::Bzip2(decoder) => decoder.into_inner(),
                        Decoder::Xz(decoder) => decoder.into_inner(),
                        Decoder::Zstd(decoder) => decoder.finish(),
                    });
                }
            }
        }
    }
}

impl Members {
    /// Whether another member follows.
    fn goes_on(&mut self, bytes: &mut Bytes) -> io::Result<bool> {
        bytes.skip_zeros()?;
        let head = bytes.peek(HEAD)?;
        let goes_on = match self.compression {
            // An incomplete magic number may be a truncated one, which the decoder reports.
            Compression::Gzip => b"\x1f\x8b".starts_with(&head[..head.len().min(2)]),
            Compression::Bzip2 => b"BZh".starts_with(&head[..head.len().min(3)]),
            Compression::Xz => b"\xfd7zXZ\0".starts_with(&head[..head.len().min(6)]),
            Compression::Zstd => head.len() < 4 || Compression::of(head) == Some(Compression::Zstd),
        };
        if head.is_empty() {
            self.end.lock().lacks_last_block = self.is_bgzf && !self.is_empty;
            return Ok(false);
        }
        if !goes_on {
            let shown = head[..head.len().min(SHOWN)].escape_ascii();
            self.end.lock().behind = Some(shown.to_string());
        }
        Ok(goes_on)
    }
}

/// A decoder of one member.
enum Decoder {
    Gzip(Box<GzDecoder<Bytes>>),
    Bzip2(bzip2::bufread::BzDecoder<Bytes>),
    Xz(liblzma::bufread::XzDecoder<Bytes>),
    Zstd(zstd::stream::read::Decoder<'static, Bytes>),
}

impl Decoder {
    fn new(compression: Compression, bytes: Bytes) -> io::Result<Self> {
        Ok(match compression {
            Compression::Gzip => Self::Gzip(Box::new(GzDecoder::new(bytes))),
            Compression::Bzip2 => Self::Bzip2(bzip2::bufread::BzDecoder::new(bytes)),
            Compression::Xz => Self::Xz(liblzma::bufread::XzDecoder::new(bytes)),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes)?.single_frame();
                // Files made with `--long` need windows of up to 2 GB; memory is allocated only as
                // a file requires it.
                decoder.window_log_max(31)?;
                Self::Zstd(decoder)
            }
        })
    }
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Bzip2(decoder) => decoder.read(buffer),
            Self::Xz(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// Bytes through a buffer that can be looked into.
struct Bytes {
    raw: Box<dyn Read + Send>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Bytes {
    /// None.
    fn default() -> Self {
        Self {
            raw: Box::new(io::empty()),
            buffer: Box::default(),
            start: 0,
            end: 0,
        }
    }
}

impl Bytes {
    fn new(raw: Box<dyn Read + Send>) -> Self {
        Self {
            raw,
            buffer: vec![0; READ_SIZE].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// The next `wanted` bytes, or all that are left.
    fn peek(&mut self, wanted: usize) -> io::Result<&[u8]> {
        if self.end - self.start < wanted {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < wanted {
            match self.raw.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.buffer[self.start..self.end.min(self.start + wanted)])
    }

    fn skip_zeros(&mut self) -> io::Result<()> {
        loop {
            let bytes = self.fill_buf()?;
            let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
            let ends = zeros < bytes.len() || bytes.is_empty();
            self.consume(zeros);
            if ends {
                return Ok(());
            }
        }
    }
}

impl BufRead for Bytes {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            // A decoder that is interrupted can't go on.
            self.end = loop {
                match self.raw.read(&mut self.buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other?,
                }
            };
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, amount: usize) {
        self.start += amount;
    }
}

impl Read for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end && buffer.len() >= self.buffer.len() {
            return self.raw.read(buffer);
        }
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}
