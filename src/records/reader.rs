//! Reads one file: opens and decompresses it, returns its records, and collects warnings.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::decompress::{self, Compression, End};
use super::error::{Problem, RecordError};
use super::letters::Letter;
use super::parse::Parser;
use super::record::{Limits, Record};
use super::source::Source;
use super::watch::Watch;
use crate::text::thousands;

/// Opens a file and looks at its first bytes.
///
/// # Errors
/// If the file is missing, is a folder, or cannot be read. Errors in its text are returned by the
/// reader.
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
    /// Reads from any byte stream, compressed or not; `name` is used in messages.
    ///
    /// # Errors
    /// If the first bytes cannot be read.
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

    /// Whether a file that was read to its end still has the bytes that were read: how many, and
    /// their BLAKE3 hash. They are read again only where something changed and neither length nor
    /// time of writing tell whether it was the bytes.
    ///
    /// # Errors
    /// If it has other contents, or cannot be read again.
    pub fn verify(&self, read: u64, hash: &str) -> Result<(), RecordError> {
        let holds = self
            .watch
            .as_ref()
            .map_or(Ok(true), |watch| watch.holds(read, hash));
        match holds {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.fail(Problem::Changed {
                what: "its contents changed, although its modification time did not".to_owned(),
            })),
            Err(source) => Err(self.fail(Problem::Changed {
                what: format!("it cannot be read again: {source}"),
            })),
        }
    }

    /// The warnings about a file that was read to its end without an error.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        if !self.ended || self.failed {
            return Vec::new();
        }
        let mut told = Vec::new();
        if self.end.lacks_last_block() {
            told.push(
                "the end-of-file block of bgzip is missing: the file may be truncated".to_owned(),
            );
        } else if self.is_empty() {
            told.push("the file has no records".to_owned());
        }
        let odd = &self.parser.odd;
        if let Some((line, _, byte)) = odd.headers.first {
            told.push(format!(
                "line {line}: the header is not valid UTF-8{}: such bytes are written as \
                 `\\x{byte:02x}`, so that different ids stay different; to convert the file, run \
                 `iconv -t UTF-8 -f` with its encoding, such as LATIN1",
                more(odd.headers.count, "header is not", "headers are not")
            ));
        }
        if let Some((line, id, ())) = &odd.backslashes.first {
            told.push(format!(
                "line {line}: the header of record `{id}` contains text that looks like an \
                 escaped byte{}: its backslash is doubled, so that different ids stay different",
                more(odd.backslashes.count, "header has", "headers have")
            ));
        }
        for odd in &odd.letters {
            let Some((line, id, letter)) = &odd.first else {
                continue;
            };
            let what = match letter {
                Letter::Mask => {
                    "it counts as one letter, and is embedded as an unknown letter, not as a mask"
                }
                letter if letter.is_invisible() => {
                    "it is invisible, counts as one letter, and is embedded as an unknown letter; \
                     remove it if it is there by mistake"
                }
                _ => "it counts as one letter, and is embedded as an unknown letter",
            };
            let (one, many) = match letter {
                Letter::Mask => ("is in this file", "are in this file"),
                _ => ("letter is not ASCII", "letters are not ASCII"),
            };
            told.push(format!(
                "line {line}: {letter} in the sequence of record `{id}`{}: {what}",
                more(odd.count, one, many)
            ));
        }
        if let Some((line, id, ())) = &odd.separators.first {
            told.push(format!(
                "line {line}: a line with only `--`, which `grep -A` prints between matches, is \
                 read as two gaps of record `{id}`{}: use `grep --no-group-separator` to avoid it",
                more(odd.separators.count, "such line", "such lines")
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

    /// An error at the current position of the reader.
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
        count => format!(" ({} more {many})", thousands(count - 1)),
    }
}
