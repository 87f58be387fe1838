//! What can be wrong with a sequence file, in words that say what to do.

use std::io;

use crate::text::{counted, thousands};

/// Why a file cannot be opened, or reading it failed.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct RecordError {
    /// The file, as the user named it.
    pub file: String,
    /// What is wrong with it, and what to do.
    #[source]
    pub problem: Box<Problem>,
}

impl RecordError {
    pub(super) fn new(file: &str, problem: Problem) -> Self {
        Self {
            file: file.to_owned(),
            problem: Box::new(problem),
        }
    }
}

/// What is wrong. Lines are counted from 1, in the decompressed text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file does not exist.
    #[error("no such file")]
    Missing,
    /// A folder where a file is needed.
    #[error("is a folder; name the files in it")]
    Folder,
    /// The system refused to open it.
    #[error("cannot be opened: {0}")]
    Open(io::Error),
    /// The system failed while reading.
    #[error("reading failed after {}: {source}", counted(*delivered, "whole record"))]
    Read {
        /// Whole records that were read before it.
        delivered: u64,
        /// The underlying error.
        source: io::Error,
    },
    /// The compressed data end too soon, or a checksum does not fit.
    #[error("the {compression} data are {}{}: {source}; download or copy the file again, or check \
             it with `{check}`",
        if *cut { "cut short" } else { "damaged" }, after(*delivered, last))]
    Damaged {
        /// Its name, such as `gzip`.
        compression: &'static str,
        /// A command that checks such a file.
        check: &'static str,
        /// Whether the end is missing, rather than the bytes wrong.
        cut: bool,
        /// Whole records that were read before it.
        delivered: u64,
        /// The id of the last of them.
        last: String,
        /// The error of the decoder.
        source: io::Error,
    },
    /// There are other data after the compressed data.
    #[error("the {compression} data are complete after {} (the checksums match), but are followed \
             by other data (`{found}`): {}",
        records(*delivered, last), junk(compression))]
    Behind {
        /// Its name, such as `gzip`.
        compression: &'static str,
        /// Whole records that were read before it.
        delivered: u64,
        /// The id of the last of them.
        last: String,
        /// How it starts, unprintable bytes escaped.
        found: String,
    },
    /// The file was written to by somebody else.
    #[error(
        "changed while it was being read ({what}): its results are discarded; run again when the \
         file is complete"
    )]
    Changed {
        /// What changed: the file's length, or the time when it was last written.
        what: String,
    },
    /// Not a sequence file.
    #[error("line {line}: expected `>` (FASTA) or `@` (FASTQ), found `{found}`{hint}")]
    NotSequences {
        /// The first line with text.
        line: u64,
        /// How it starts, unprintable bytes escaped.
        found: String,
        /// What the file may be instead, or nothing.
        hint: &'static str,
    },
    /// FASTA text that starts without a header.
    #[error(
        "line {line}: sequence without a header (`{found}`): the file must start with a header \
         line (`>`)"
    )]
    NoHeader {
        /// Number of the line in the decompressed text, from 1.
        line: u64,
        /// The first bytes of the line, unprintable ones escaped.
        found: String,
    },
    /// A NUL byte.
    #[error("line {line}: NUL byte: is this a binary or damaged file?")]
    Nul {
        /// Number of the line in the decompressed text, from 1.
        line: u64,
    },
    /// A `>` that does not start its line.
    #[error(
        "line {line}: `>` within the sequence of record `{id}`: were files concatenated without a \
         line break between them?"
    )]
    HeaderInSequence {
        /// Number of the line in the decompressed text, from 1.
        line: u64,
        /// Id of the record: the first word of its header.
        id: String,
    },
    /// More letters than are read.
    #[error(
        "line {line}: record `{id}` is longer than {}, the limit for one record (option `max_record`): \
         is a header or a line break missing? If it is a single sequence, increase option \
         `max_record`, or use option `long: truncate`", thousands(*longest)
    )]
    TooLong {
        /// The line of its header.
        line: u64,
        /// Id of the record: the first word of its header.
        id: String,
        /// Maximum number of letters.
        longest: u64,
    },
    /// A header that is none.
    #[error("line {line}: header of more than 16 MB: is this a text file with line breaks?")]
    LongHeader {
        /// Number of the line in the decompressed text, from 1.
        line: u64,
    },
    /// Lines end with a lone carriage return.
    #[error(
        "line {line}: line ends with CR only, as on old Macs: convert the file, for example with \
         `tr '\\r' '\\n'`"
    )]
    CarriageReturns {
        /// Number of the line in the decompressed text, from 1.
        line: u64,
    },
    /// FASTQ: a record does not start with `@`.
    #[error("line {line}: expected a FASTQ header (`@`), found `{found}`")]
    FastqHeader {
        /// Number of the line in the decompressed text, from 1.
        line: u64,
        /// The first bytes of the line, unprintable ones escaped.
        found: String,
    },
    /// FASTQ: as many qualities as residues must stand there.
    #[error("line {line}: FASTQ record `{id}` has {} but {}",
        counted(*sequence, "residue"), counted(*quality, "quality"))]
    FastqQuality {
        /// The line on which the qualities start.
        line: u64,
        /// Id of the record: the first word of its header.
        id: String,
        /// Number of letters of its sequence.
        sequence: u64,
        /// Number of letters of its qualities.
        quality: u64,
    },
    /// FASTQ: the file ends within a record.
    #[error("line {line}: the file ends within FASTQ record `{id}`: is it truncated?")]
    FastqCut {
        /// Number of the last line in the decompressed text.
        line: u64,
        /// Id of the record: the first word of its header.
        id: String,
    },
}

/// ` after record 17 (`id`)`
fn after(delivered: u64, last: &str) -> String {
    if delivered == 0 {
        " before the end of the first record".to_owned()
    } else {
        format!(" after record {delivered} (`{last}`)")
    }
}

/// `all of its 17 records (the last is `id`)`
fn records(delivered: u64, last: &str) -> String {
    match delivered {
        0 => "no record".to_owned(),
        1 => format!("1 record (`{last}`)"),
        all => format!("all {all} records (the last is `{last}`)"),
    }
}

fn junk(compression: &str) -> String {
    format!(
        "download or copy the file again, or decompress it with `{compression} -dc` and use \
             the result"
    )
}
