//! Sequence files -> records: FASTA and FASTQ, plain or compressed, told by content.
//!
//! What is read as what:
//! - gzip (all members, so bgzip too), bzip2, xz and zstd are told by their first bytes, FASTA and FASTQ by
//!   the first `>` or `@`. A name's suffix is never looked at.
//! - A UTF-8 byte order mark, blank lines and CRLF line ends are passed over; a last line needs no line end.
//! - White space inside a sequence is dropped. Every other byte is kept as it is: what a model does not
//!   know, the tokenizer replaces and counts.
//! - Lines of a FASTA file that start with `;` are comments, as in Pearson's original format, and skipped.
//! - FASTQ may be wrapped, if the qualities are wrapped as the sequence is.
//! - A header without a sequence is a record with an empty sequence. A file without any record is no error:
//!   [`Reader::warning`] tells.
//!
//! All that stands before a damaged place is delivered before the error is.

mod decompress;
mod error;
mod parse;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use decompress::{BgzfEnd, Compression};
use parse::Parser;

pub use error::{Problem, RecordError};

/// One sequence of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The whole header line without its `>` or `@`, trailing white space trimmed; bytes that are not UTF-8 become U+FFFD.
    pub header: String,
    /// The sequence as it stands in the file, without line ends and white space.
    pub sequence: Vec<u8>,
}

impl Record {
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
            Self::Path(path) => path.display().fmt(f),
            Self::Stdin => f.write_str("standard input"),
        }
    }
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
    let raw: Box<dyn Read + Send> = match source {
        Source::Stdin => Box::new(io::stdin()),
        Source::Path(path) => {
            let file = File::open(path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => fail(Problem::Missing),
                _ => fail(Problem::Open(error)),
            })?;
            if file.metadata().is_ok_and(|about| about.is_dir()) {
                return Err(fail(Problem::Folder));
            }
            Box::new(file)
        }
    };
    Reader::new(&name, wrap(raw))
}

/// The records of one file, in its order. Ends after the first error.
pub struct Reader {
    name: String,
    compression: Option<Compression>,
    bgzf_end: Option<BgzfEnd>,
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
            bgzf_end: opened.bgzf_end,
            parser: Parser::new(opened.text),
            delivered: 0,
            last_id: String::new(),
            ended: false,
            failed: false,
        })
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

    /// What the user should be told about a file that was read to its end without an error.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        if !self.ended || self.failed {
            return None;
        }
        if self.bgzf_end.as_ref().is_some_and(BgzfEnd::is_missing) {
            return Some(format!(
                "{}: the end-of-file block of bgzip is missing: the file may be cut short",
                self.name
            ));
        }
        self.is_empty()
            .then(|| format!("{}: the file has no records", self.name))
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
                None
            }
            Err(problem) => {
                self.ended = true;
                self.failed = true;
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
