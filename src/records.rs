//! Sequence files -> records: FASTA and FASTQ, plain or compressed, told by content.

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
