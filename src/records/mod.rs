//! Sequence files -> records: FASTA and FASTQ, plain or compressed, told by content.
//!
//! What is read as what:
//! - gzip (all members, so bgzip too), bzip2, xz and zstd are told by their first bytes, FASTA and FASTQ by
//!   the first `>` or `@`. A name's suffix is never looked at.
//! - A UTF-8 byte order mark (also one before a header, where files were joined), blank lines and CRLF line ends are passed
//!   over; a last line needs no line end.
//! - White space inside a sequence (of ASCII) is dropped. Every other character is one letter: what a model does not
//!   know, the tokenizer replaces and counts. A character that is not ASCII is one too, as in Python's `len`, and so is each
//!   byte that is not UTF-8; so is `<mask>` ([`OTHER`]).
//! - Bytes of a header that are not UTF-8 are written as `\xe9`, and a header's own `\xe9` as `\\xe9`, so that
//!   what was different stays different.
//! - Lines end with a line feed. A carriage return inside a header, a comment or FASTQ's `+` line is an error, and so is one in a
//!   sequence or qualities with what begins the next such line behind it: it ended a line, and records would be lost.
//! - Lines of a FASTA file that start with `;` are comments, as in Pearson's original format, and skipped; so are lines that
//!   start with `#` before the first header.
//! - FASTQ may be wrapped: qualities are read until there are as many as letters.
//! - Zero bytes behind compressed data are passed over.
//! - A header without a sequence is a record with an empty sequence. A file without any record is no error:
//!   [`Reader::warning`] tells.
//!
//! All that stands before a damaged place is delivered before the error is.

mod decompress;
mod error;
mod letters;
mod parse;
mod watch;

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use decompress::{Compression, End};
use letters::Letters;
use parse::Parser;
use watch::Watch;

pub use error::{Problem, RecordError};
pub use letters::{Letter, OTHER};

/// One sequence of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The whole header line without its `>` or `@`, trailing white space trimmed; bytes that are not UTF-8 are written as
    /// `\xe9`, and `\xe9` as `\\xe9`.
    pub header: String,
    /// The letters as they stand in the file, without line ends and white space, a byte each: an ASCII one as it is, and
    /// [`OTHER`] for any other.
    pub sequence: Vec<u8>,
    /// What was not kept of it.
    pub rest: Option<Rest>,
    /// The first of the letters that [`OTHER`] stands for.
    pub other: Option<Letter>,
}

/// What the reader counted and did not keep of a long sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    /// How many letters.
    pub letters: u64,
    /// The last one, as it would stand in [`Record::sequence`].
    pub last: u8,
}

/// What is read of a long sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// More letters than these are an error; none: there is no limit.
    pub longest: Option<u64>,
    /// Only so many letters are kept, and the rest is counted; none: all.
    pub keep: Option<usize>,
}

impl Record {
    /// A record that comes from no file. White space in the sequence stays.
    #[must_use]
    pub fn new(header: String, sequence: Vec<u8>) -> Self {
        if sequence.is_ascii() && !sequence.contains(&b'>') {
            return Self {
                header,
                sequence,
                ..Self::default()
            };
        }
        let mut letters = Letters::default();
        letters.text(&sequence);
        Self {
            header,
            other: letters.other(),
            sequence: std::mem::take(letters.kept()),
            rest: None,
        }
    }

    /// The letter at a place of the sequence; for [`OTHER`], the first that it stands for.
    #[must_use]
    pub fn letter(&self, at: usize) -> Letter {
        match (self.sequence[at], self.other) {
            (byte, _) if byte.is_ascii() => Letter::Char(char::from(byte)),
            (_, Some(other)) => other,
            (byte, None) => Letter::Byte(byte),
        }
    }

    /// The first word of the header.
    #[must_use]
    pub fn id(&self) -> &str {
        self.header.split_whitespace().next().unwrap_or("")
    }
}

/// Where records come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A file, or anything that opens as one, such as a named pipe.
    Path(PathBuf),
    /// The standard input.
    Stdin,
}

impl Source {
    /// `-` is the standard input, all else a path.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        if path.as_os_str() == "-" {
            Self::Stdin
        } else {
            Self::Path(path)
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(&shown(path.as_os_str())),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}

/// A name of a file, its bytes that are not UTF-8 as `\xe9`: names that differ stay different.
#[must_use]
pub fn shown(name: &OsStr) -> String {
    distinct(name.as_bytes()).into_owned()
}

/// Text, its bytes that are not UTF-8 as `\xe9`. No two texts become one: backslashes are doubled where such letters stand
/// behind them, so that an odd number of them tells a byte.
fn distinct(bytes: &[u8]) -> Cow<'_, str> {
    fn is_escape(rest: &[u8]) -> bool {
        matches!(
            rest,
            [
                b'x',
                b'8'..=b'9' | b'a'..=b'f',
                b'0'..=b'9' | b'a'..=b'f',
                ..,
            ]
        )
    }
    if let Ok(text) = str::from_utf8(bytes)
        && !memchr::memchr_iter(b'\\', bytes).any(|at| is_escape(&bytes[at + 1..]))
    {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        let mut valid = chunk.valid();
        while let Some(at) = valid.find('\\') {
            let run = valid.len() - at - valid[at..].trim_start_matches('\\').len();
            let (before, rest) = valid.split_at(at + run);
            text.push_str(before);
            let is_before_byte = rest.is_empty() && !chunk.invalid().is_empty();
            if is_before_byte || is_escape(rest.as_bytes()) {
                text.extend(std::iter::repeat_n('\\', run));
            }
            valid = rest;
        }
        text.push_str(valid);
        text.push_str(&escaped(chunk.invalid(), "\\x"));
    }
    Cow::Owned(text)
}

/// Text, its bytes that are not UTF-8 as two digits behind a mark.
pub(crate) fn escaped(bytes: &[u8], mark: &str) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(mark);
            text.extend(
                [byte >> 4, byte & 15]
                    .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])),
            );
        }
    }
    text
}

/// Opens a file and looks at its first bytes.
///
/// # Errors
/// When the file is missing, is a folder or can't be read. What is wrong with its text comes from the reader.
pub fn open(source: &Source) -> Result<Reader, RecordError> {
    open_with(source, |raw| raw)
}

/// As [`open`], reading the file's bytes through what `wrap` makes of them (to count them, say).
///
/// # Errors
/// As [`open`].
pub fn open_with(
    source: &Source,
    wrap: impl FnOnce(Box<dyn Read + Send>) -> Box<dyn Read + Send>,
) -> Result<Reader, RecordError> {
    let name = source.to_string();
    let fail = |problem| RecordError::new(&name, problem);
    let (raw, watch): (Box<dyn Read + Send>, _) = match source {
        Source::Stdin => {
            // It may be a file too.
            let file = io::stdin().as_fd().try_clone_to_owned().map(File::from);
            let watch = file.ok().and_then(|file| Watch::new(Arc::new(file), None));
            (Box::new(io::stdin()), watch)
        }
        Source::Path(path) => {
            let file = File::open(path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => fail(Problem::Missing),
                _ => fail(Problem::Open(error)),
            })?;
            if file.metadata().is_ok_and(|about| about.is_dir()) {
                return Err(fail(Problem::Folder));
            }
            let file = Arc::new(file);
            let watch = Watch::new(Arc::clone(&file), Some(path.clone()));
            (Box::new(file), watch)
        }
    };
    let mut reader = Reader::new(&name, wrap(raw))?;
    reader.watch = watch;
    Ok(reader)
}

/// The records of one file, in its order. Ends after the first error.
pub struct Reader {
    name: String,
    compression: Option<Compression>,
    end: Arc<End>,
    watch: Option<Watch>,
    parser: Parser,
    delivered: u64,
    last_id: String,
    ended: bool,
    failed: bool,
}

impl Reader {
    /// Reads from any stream of bytes, compressed or not; `name` stands in messages.
    ///
    /// # Errors
    /// When the first bytes can't be read.
    pub fn new(name: &str, raw: Box<dyn Read + Send>) -> Result<Self, RecordError> {
        let opened =
            decompress::open(raw).map_err(|error| RecordError::new(name, Problem::Open(error)))?;
        Ok(Self {
            name: name.to_owned(),
            compression: opened.compression,
            end: opened.end,
            watch: None,
            parser: Parser::new(opened.text),
            delivered: 0,
            last_id: String::new(),
            ended: false,
            failed: false,
        })
    }

    /// Sets what is read of long sequences, before the first one is.
    pub fn limit(&mut self, limits: Limits) {
        self.parser.limit(limits);
    }

    /// The length of the file when it was opened; none where a name leads to no file.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.watch.as_ref().and_then(Watch::length)
    }

    /// How many records were delivered so far.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Whether the file was read to its end and has no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ended && !self.failed && self.delivered == 0
    }

    /// Whether a file that was read to its end still has the bytes that were read: how many, and their BLAKE3 hash. They are read
    /// again only where something changed and neither length nor time of writing tell whether it was the bytes.
    ///
    /// # Errors
    /// When it has others, or can't be read again.
    pub fn verify(&self, read: u64, hash: &str) -> Result<(), RecordError> {
        let holds = self
            .watch
            .as_ref()
            .map_or(Ok(true), |watch| watch.holds(read, hash));
        match holds {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.fail(Problem::Changed {
                what: "other bytes stand there now, though its time of writing is as it was"
                    .to_owned(),
            })),
            Err(source) => Err(self.fail(Problem::Changed {
                what: format!("it cannot be read again: {source}"),
            })),
        }
    }

    /// What the user should be told about a file that was read to its end without an error.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        if !self.ended || self.failed {
            return Vec::new();
        }
        let mut told = Vec::new();
        if self.end.lacks_last_block() {
            told.push(
                "the end-of-file block of bgzip is missing: the file may be cut short".to_owned(),
            );
        } else if self.is_empty() {
            told.push("the file has no records".to_owned());
        }
        let odd = &self.parser.odd;
        if let Some((line, _, byte)) = odd.headers.first {
            told.push(format!(
                "line {line}: the header is not UTF-8{}: such bytes are written as `\\x{byte:02x}`, so that ids that differ stay \
                 different; `iconv -t UTF-8 -f` and the file's encoding, such as LATIN1, converts it",
                more(odd.headers.count, "header is not", "headers are not")
            ));
        }
        if let Some((line, id, ())) = &odd.backslashes.first {
            told.push(format!(
                "line {line}: the header of record `{id}` has a backslash that looks like a byte that is not UTF-8{}: it is \
                 doubled, so that ids that differ stay different",
                more(odd.backslashes.count, "header has", "headers have")
            ));
        }
        for odd in &odd.letters {
            let Some((line, id, letter)) = &odd.first else {
                continue;
            };
            let what = match letter {
                Letter::Mask => {
                    "it counts as one letter, and is embedded as an unknown one, not as a mask"
                }
                letter if letter.is_invisible() => {
                    "it is invisible, counts as one letter, and is embedded as an unknown one; take it out if it is there by mistake"
                }
                _ => "it counts as one letter, and is embedded as an unknown one",
            };
            let (one, many) = match letter {
                Letter::Mask => ("is in this file", "are in this file"),
                _ => ("letter is not ASCII", "letters are not ASCII"),
            };
            told.push(format!(
                "line {line}: {letter} stands in the sequence of record `{id}`{}: {what}",
                more(odd.count, one, many)
            ));
        }
        if let Some((line, id, ())) = &odd.separators.first {
            told.push(format!(
                "line {line}: `--` alone on its line, which `grep -A` puts between matches, is read as two gaps of record `{id}`{}: \
                 `grep --no-group-separator` leaves it out",
                more(odd.separators.count, "line is like it", "lines are like it")
            ));
        }
        for text in &mut told {
            *text = format!("{}: {text}", self.name);
        }
        told
    }

    /// What ends a file that seems to be read to its end, or that can't be read on.
    fn trouble_at_end(&self) -> Option<Problem> {
        if let Some(what) = self.watch.as_ref().and_then(Watch::change) {
            return Some(Problem::Changed { what });
        }
        let (found, compression) = (self.end.found_behind()?, self.compression?);
        Some(Problem::Behind {
            compression: compression.name(),
            delivered: self.delivered,
            last: self.last_id.clone(),
            found,
        })
    }

    /// An error at the place where the reader stands.
    fn fail(&self, problem: Problem) -> RecordError {
        let problem = match (problem, self.compression) {
            // The system's own errors carry its code; the decoders' don't.
            (Problem::Read { source, .. }, Some(compression))
                if source.raw_os_error().is_none() =>
            {
                Problem::Damaged {
                    compression: compression.name(),
                    check: compression.check(),
                    cut: decompress::is_cut(&source),
                    delivered: self.delivered,
                    last: self.last_id.clone(),
                    source,
                }
            }
            (Problem::Read { source, .. }, _) => Problem::Read {
                delivered: self.delivered,
                source,
            },
            (problem, _) => problem,
        };
        RecordError::new(&self.name, problem)
    }
}

impl Iterator for Reader {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.parser.next_record() {
            Ok(Some(record)) => {
                self.delivered += 1;
                self.last_id.clear();
                self.last_id.push_str(record.id());
                Some(Ok(record))
            }
            Ok(None) => {
                self.ended = true;
                let problem = self.trouble_at_end()?;
                self.failed = true;
                Some(Err(self.fail(problem)))
            }
            Err(problem) => {
                self.ended = true;
                self.failed = true;
                let change = self.watch.as_ref().and_then(Watch::change);
                let problem = change.map_or(problem, |what| Problem::Changed { what });
                Some(Err(self.fail(problem)))
            }
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("name", &self.name)
            .field("compression", &self.compression)
            .field("delivered", &self.delivered)
            .finish_non_exhaustive()
    }
}

/// ` (3 more headers are not)`, unless there is but one.
fn more(count: u64, one: &str, many: &str) -> String {
    match count {
        0 | 1 => String::new(),
        2 => format!(" (1 more {one})"),
        count => format!(" ({} more {many})", crate::report::thousands(count - 1)),
    }
}

fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}
