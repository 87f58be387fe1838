//! Text -> records, line by line, in memory near the longest record.
//!
//! Own code, because the libraries at hand lose what stands before a damaged place in their buffer, take a
//! header without a sequence for an error, or can't tell the line of a mistake.

use std::io::{self, Read};

use memchr::memchr;

use super::{Problem, Record};

/// Text is read in pieces of this size.
const BUFFER: usize = 256 * 1024;

/// Sequences up to this length are copied out of a buffer that is used again; longer ones keep it.
const COPIED: usize = 1 << 20;

/// How much of an unexpected line a message shows.
const SHOWN: usize = 24;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Fasta,
    Fastq,
}

/// Cuts text into records.
pub(super) struct Parser {
    text: Text,
    format: Option<Format>,
    sequence: Vec<u8>,
    line: Vec<u8>,
}

impl Parser {
    pub(super) fn new(input: Box<dyn Read + Send>) -> Self {
        Self {
            text: Text::new(input),
            format: None,
            sequence: Vec::new(),
            line: Vec::new(),
        }
    }

    /// The next record, or `None` at the end. Not to be called again after an error.
    pub(super) fn next_record(&mut self) -> Result<Option<Record>, Problem> {
        let format = match self.format {
            Some(format) => format,
            None => match self.start()? {
                Some(format) => *self.format.insert(format),
                None => return Ok(None),
            },
        };
        match format {
            Format::Fasta => self.fasta(),
            Format::Fastq => self.fastq(),
        }
    }

    /// Passes over a byte order mark, blank lines and comments, up to the first header.
    fn start(&mut self) -> Result<Option<Format>, Problem> {
        self.text.skip_byte_order_mark()?;
        loop {
            match self.text.peek()? {
                None => return Ok(None),
                Some(b'>') => return Ok(Some(Format::Fasta)),
                Some(b'@') if is_sam(self.text.head()) => return Err(self.not_sequences()),
                Some(b'@') => return Ok(Some(Format::Fastq)),
                Some(b';') => self.text.skip_line()?,
                Some(byte) if is_white(byte) => self.text.advance(),
                Some(_) => return Err(self.not_sequences()),
            }
        }
    }

    /// What the first line is, which is no header.
    fn not_sequences(&mut self) -> Problem {
        let line = self.text.line;
        let head = self.text.head();
        let hint = hint(head);
        let first = &head[..memchr(b'\n', head).unwrap_or(head.len())];
        let found = shown(first);
        let residues = first
            .iter()
            .all(|&byte| byte.is_ascii_alphabetic() || is_white(byte) || b"*-.".contains(&byte));
        if hint.is_empty() && residues {
            Problem::NoHeader { line, found }
        } else {
            Problem::NotSequences { line, found, hint }
        }
    }

    /// A record that starts at the `>` that comes next, if one comes.
    fn fasta(&mut self) -> Result<Option<Record>, Problem> {
        if self.text.peek()?.is_none() {
            return Ok(None);
        }
        let header_line = self.text.line;
        let (header, has_inner_return) = self.header()?;
        self.sequence.clear();
        let mut lines = 0_u64;
        loop {
            match self.text.peek()? {
                None | Some(b'>') => break,
                Some(b';') => self.text.skip_line()?,
                Some(_) => {
                    self.sequence_line(&header, true)?;
                    lines += 1;
                }
            }
        }
        if lines == 0 && has_inner_return {
            return Err(Problem::CarriageReturns { line: header_line });
        }
        Ok(Some(self.record(header)))
    }

    /// A record that starts at the `@` that comes next, if one comes.
    fn fastq(&mut self) -> Result<Option<Record>, Problem> {
        loop {
            match self.text.peek()? {
                None => return Ok(None),
                Some(b'@') => break,
                Some(byte) if is_white(byte) => self.text.advance(),
                Some(_) => {
                    let line = self.text.line;
                    let head = self.text.head();
                    let found = shown(&head[..memchr(b'\n', head).unwrap_or(head.len())]);
                    return Err(Problem::FastqHeader { line, found });
                }
            }
        }
        let (header, _) = self.header()?;
        self.sequence.clear();
        let mut lines = 0_u64;
        loop {
            match self.text.peek()? {
                None => return Err(self.cut(&header)),
                Some(b'+') => break,
                Some(_) => {
                    self.sequence_line(&header, false)?;
                    lines += 1;
                }
            }
        }
        self.text.skip_line()?;
        // The qualities are counted by lines: a line of them may itself start with `@` or `+`.
        let quality_line = self.text.line;
        let mut quality = 0_u64;
        for _ in 0..lines {
            if self.text.peek()?.is_none() {
                break;
            }
            self.text.each_piece(|piece, line| {
                if memchr(0, piece).is_some() {
                    return Err(Problem::Nul { line });
                }
                quality += piece.iter().filter(|&&byte| !is_white(byte)).count() as u64;
                Ok(())
            })?;
        }
        let sequence = self.sequence.len() as u64;
        if quality < sequence && self.text.peek()?.is_none() {
            return Err(self.cut(&header));
        }
        if quality != sequence {
            return Err(Problem::FastqQuality {
                line: quality_line,
                id: id_of(&header),
                sequence,
                quality,
            });
        }
        Ok(Some(self.record(header)))
    }

    fn cut(&self, header: &str) -> Problem {
        Problem::FastqCut {
            line: self.text.line,
            id: id_of(header),
        }
    }

    /// The header line without its mark, and whether a carriage return stands inside it.
    fn header(&mut self) -> Result<(String, bool), Problem> {
        self.line.clear();
        self.text.each_piece(|piece, line| {
            if memchr(0, piece).is_some() {
                return Err(Problem::Nul { line });
            }
            self.line.extend_from_slice(piece);
            Ok(())
        })?;
        let header = String::from_utf8_lossy(&self.line[1..])
            .trim_end()
            .to_owned();
        let has_inner_return = header.contains('\r');
        Ok((header, has_inner_return))
    }

    /// Appends a line to the sequence, without white space.
    fn sequence_line(&mut self, header: &str, is_fasta: bool) -> Result<(), Problem> {
        let sequence = &mut self.sequence;
        self.text.each_piece(|piece, line| {
            let piece = piece.strip_suffix(b"\r").unwrap_or(piece);
            // Without a branch, so that it is vectorised: nearly every line passes.
            let odd = piece.iter().fold(0, |odd, &byte| {
                odd | u8::from(byte <= b' ') | u8::from(byte == b'>')
            });
            if odd == 0 {
                sequence.extend_from_slice(piece);
                return Ok(());
            }
            for &byte in piece {
                match byte {
                    0 => return Err(Problem::Nul { line }),
                    b'>' if is_fasta => {
                        return Err(Problem::HeaderInSequence {
                            line,
                            id: id_of(header),
                        });
                    }
                    byte if is_white(byte) => {}
                    byte => sequence.push(byte),
                }
            }
            Ok(())
        })
    }

    fn record(&mut self, header: String) -> Record {
        let sequence = if self.sequence.len() <= COPIED {
            self.sequence.as_slice().to_vec()
        } else {
            let mut sequence = std::mem::take(&mut self.sequence);
            sequence.shrink_to_fit();
            sequence
        };
        Record { header, sequence }
    }
}

/// A stream of text with a buffer, and the number of the line it stands on.
struct Text {
    input: Box<dyn Read + Send>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    line: u64,
    /// An error met while looking ahead: it counts once all before it is read.
    pending: Option<io::Error>,
}

impl Text {
    fn new(input: Box<dyn Read + Send>) -> Self {
        Self {
            input,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            line: 1,
            pending: None,
        }
    }

    /// Reads on if the buffer is used up; `false` at the end.
    fn fill(&mut self) -> Result<bool, Problem> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            self.end = self.read(0)?;
        }
        Ok(self.start < self.end)
    }

    /// One read into the buffer from `at`.
    fn read(&mut self, at: usize) -> Result<usize, Problem> {
        if let Some(source) = self.pending.take() {
            return Err(Problem::Read {
                delivered: 0,
                source,
            });
        }
        loop {
            match self.input.read(&mut self.buffer[at..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => {
                    return other.map_err(|source| Problem::Read {
                        delivered: 0,
                        source,
                    });
                }
            }
        }
    }

    fn peek(&mut self) -> Result<Option<u8>, Problem> {
        Ok(self.fill()?.then(|| self.buffer[self.start]))
    }

    /// Passes over the byte that `peek` showed.
    fn advance(&mut self) {
        self.line += u64::from(self.buffer[self.start] == b'\n');
        self.start += 1;
    }

    /// The next bytes, a few more than a message shows, however they come in. They stay to be read.
    fn head(&mut self) -> &[u8] {
        if let Err(Problem::Read { source, .. }) = self.top_up(SHOWN + 2) {
            self.pending = Some(source);
        }
        &self.buffer[self.start..self.end.min(self.start + SHOWN + 2)]
    }

    /// Makes at least `wanted` bytes stand in the buffer, if there are as many.
    fn top_up(&mut self, wanted: usize) -> Result<(), Problem> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < wanted {
            let read = self.read(self.end)?;
            if read == 0 {
                break;
            }
            self.end += read;
        }
        Ok(())
    }

    fn skip_byte_order_mark(&mut self) -> Result<(), Problem> {
        const MARK: &[u8] = b"\xef\xbb\xbf";
        if self.peek()? == Some(MARK[0]) {
            self.top_up(MARK.len())?;
            if self.buffer[..self.end].starts_with(MARK) {
                self.start = MARK.len();
            }
        }
        Ok(())
    }

    fn skip_line(&mut self) -> Result<(), Problem> {
        self.each_piece(|piece, line| match memchr(0, piece) {
            Some(_) => Err(Problem::Nul { line }),
            None => Ok(()),
        })
    }

    /// Hands on the rest of the line, without its line feed, in as many pieces as the buffer makes of it.
    fn each_piece(
        &mut self,
        mut piece: impl FnMut(&[u8], u64) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        while self.fill()? {
            let rest = &self.buffer[self.start..self.end];
            let Some(length) = memchr(b'\n', rest) else {
                piece(rest, self.line)?;
                self.start = self.end;
                continue;
            };
            piece(&rest[..length], self.line)?;
            self.start += length + 1;
            self.line += 1;
            return Ok(());
        }
        Ok(())
    }
}

fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn id_of(header: &str) -> String {
    header.split_whitespace().next().unwrap_or("").to_owned()
}

/// The start of a line, fit for a message.
fn shown(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut text = line[..line.len().min(SHOWN)].escape_ascii().to_string();
    if line.len() > SHOWN {
        text.push('…');
    }
    text
}

/// Whether text starts with a header line of SAM, such as `@HD`.
fn is_sam(head: &[u8]) -> bool {
    matches!(
        head,
        [b'@', b'H', b'D', b'\t', ..] | [b'@', b'S', b'Q', b'\t', ..]
    )
}

/// What a file may be whose first bytes are these.
fn hint(head: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 13] = [
        (b"@", ": a SAM file? Convert it with `samtools fasta`"),
        (b"PK\x03\x04", ": a zip archive? Unpack it first"),
        (b"\x1f\x8b", ": gzip within a compression? Unpack it once"),
        (b"\xff\xfe", ": UTF-16 text? Save it as UTF-8"),
        (b"\xfe\xff", ": UTF-16 text? Save it as UTF-8"),
        (b"BAM\x01", ": a BAM file? Convert it with `samtools fasta`"),
        (b"CRAM", ": a CRAM file? Convert it with `samtools fasta`"),
        (b"LOCUS ", ": a GenBank file? Convert it to FASTA"),
        (
            b"ID   ",
            ": an EMBL or UniProt flat file? Convert it to FASTA",
        ),
        (b"##gff", ": a GFF file? FASTA is needed"),
        (b"CLUSTAL", ": a Clustal alignment? Convert it to FASTA"),
        (b"<", ": a web page or XML? Was the download refused?"),
        (b"{", ": JSON? FASTA is needed"),
    ];
    KNOWN
        .iter()
        .find(|(start, _)| head.starts_with(start))
        .map_or("", |&(_, hint)| hint)
}
