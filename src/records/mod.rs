//! Reads records from sequence files: FASTA and FASTQ, plain or compressed, detected from the
//! content.
//!
//! What is read as what:
//! - gzip (all members, so bgzip too), bzip2, xz and zstd are detected from their first bytes,
//!   FASTA and FASTQ from the first `>` or `@`. File extensions are ignored.
//! - A UTF-8 byte order mark (also one before a header, where files were joined), blank lines and
//!   CRLF line ends are passed over; a last line needs no line end.
//! - White space inside a sequence (of ASCII) is dropped. Every other character is one letter: what
//!   a model does not know, the tokenizer replaces and counts. A character that is not ASCII is one
//!   too, as in Python's `len`, and so is each byte that is not UTF-8; so is `<mask>` ([`OTHER`]).
//! - Bytes of a header that are not UTF-8 are written as `\xe9`, and a header's own `\xe9` as
//!   `\\xe9`, so that what was different stays different.
//! - Lines end with a line feed. A carriage return inside a header, a comment or FASTQ's `+` line
//!   is an error, and so is one in a sequence or qualities with what begins the next such line
//!   behind it: it ended a line, and records would be lost.
//! - Lines of a FASTA file that start with `;` are comments, as in Pearson's original format, and
//!   skipped; so are lines that start with `#` before the first header.
//! - FASTQ may be wrapped: qualities are read until there are as many as letters.
//! - Zero bytes behind compressed data are passed over.
//! - A header without a sequence is a record with an empty sequence. A file without any record is
//!   no error: [`Reader::warning`] tells.
//!
//! Everything before a damaged place is delivered before the error.

mod decompress;
mod error;
mod letters;
mod parse;
mod reader;
mod record;
mod source;
mod watch;

pub use error::{Problem, RecordError};
pub use letters::{Letter, OTHER};
pub use reader::{Reader, open, open_with};
pub use record::{Limits, Record, Rest};
pub use source::Source;
