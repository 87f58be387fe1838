//! Text -> records, line by line, in memory near the longest record.
//!
//! This is not done by a library, because the available ones lose the buffered data before a
//! damaged place, treat a header without a sequence as an error, or do not give the line of an
//! error.

use std::borrow::Cow;
use std::io::{self, Read};

use memchr::{memchr, memchr_iter};

use super::error::Problem;
use super::letters::{KINDS, Letter, Letters, Refused, is_white};
use super::record::{Limits, Record, Rest};
use crate::text::lossless;

/// Text is read in pieces of this size.
const BUFFER: usize = 256 * 1024;

/// Sequences up to this length are copied out of a buffer that is used again; longer ones keep it.
const COPIED: usize = 1 << 20;

/// How much of an unexpected line a message shows.
const SHOWN: usize = 24;

/// Maximum length of a header. The headers of NCBI's nr, which join the headers of identical
/// sequences, reach a tenth of it.
const LONGEST_HEADER: usize = 16 << 20;

/// The header of a tar archive, with its magic number.
const TAR: usize = 257 + 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Fasta,
    Fastq,
}

/// Something odd in a file that does not end it: where it is first, and how often.
#[derive(Debug)]
pub(super) struct Odd<T> {
    /// The line, the record's id, and what it is.
    pub(super) first: Option<(u64, String, T)>,
    pub(super) count: u64,
}

impl<T> Default for Odd<T> {
    fn default() -> Self {
        Self {
            first: None,
            count: 0,
        }
    }
}

impl<T> Odd<T> {
    fn add(&mut self, count: u64, first: impl FnOnce() -> (u64, String, T)) {
        if count > 0 {
            self.first.get_or_insert_with(first);
            self.count += count;
        }
    }
}

/// The warnings about a file.
#[derive(Debug, Default)]
pub(super) struct Oddities {
    /// Letters that are not ASCII: the visible ones, and the invisible ones; and masks.
    pub(super) letters: [Odd<Letter>; KINDS],
    /// Headers that are not UTF-8, with the first such byte.
    pub(super) headers: Odd<u8>,
    /// Headers of UTF-8 with a backslash that is doubled.
    pub(super) backslashes: Odd<()>,
    /// Lines that contain only `--`.
    pub(super) separators: Odd<()>,
}

/// Cuts text into records.
pub(super) struct Parser {
    text: Text,
    format: Option<Format>,
    letters: Letters,
    line: Vec<u8>,
    /// The longest sequence that is read, in residues, and how many letters each of them has.
    longest: u64,
    letters_per_residue: u64,
    pub(super) odd: Oddities,
}

impl Parser {
    pub(super) fn new(input: Box<dyn Read + Send>) -> Self {
        Self {
            text: Text::new(input),
            format: None,
            letters: Letters::default(),
            line: Vec::new(),
            longest: u64::MAX,
            letters_per_residue: 1,
            odd: Oddities::default(),
        }
    }

    pub(super) fn limit(&mut self, limits: Limits) {
        self.longest = limits.longest.unwrap_or(u64::MAX);
        self.letters_per_residue = limits.letters_per_residue;
        self.letters.keep(limits.keep.unwrap_or(usize::MAX));
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
        // The first line with `#`, in case that nothing but such lines follows.
        let mut comment = None;
        loop {
            match self.text.peek()? {
                None => {
                    return match comment {
                        Some(problem) => Err(problem),
                        None => Ok(None),
                    };
                }
                Some(b'>') => return Ok(Some(Format::Fasta)),
                Some(b'@') if is_sam(self.text.head(SHOWN)) => return Err(self.not_sequences()),
                Some(b'@') => return Ok(Some(Format::Fastq)),
                Some(b';') => self.text.skip_line()?,
                Some(b'#') if hint(self.text.head(SHOWN)).is_empty() => {
                    if comment.is_none() {
                        comment = Some(self.not_sequences());
                    }
                    self.text.skip_line()?;
                }
                Some(byte) if is_white(byte) => self.text.advance(),
                Some(BOM_START) if self.text.skip_byte_order_mark(b"") => {}
                Some(_) => return Err(self.not_sequences()),
            }
        }
    }

    /// What a first line that is not a header seems to be.
    fn not_sequences(&mut self) -> Problem {
        let line = self.text.line;
        let head = self.text.head(TAR);
        let is_tar = head.len() >= TAR && head[TAR - 5..TAR] == *b"ustar";
        let head = &head[..head.len().min(SHOWN + 2)];
        let hint = if is_tar {
            ": a tar archive? Unpack it first (`tar -xf`), and give the files in it"
        } else {
            hint(head)
        };
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

    /// Reads the record that starts with the next `>`, if there is one.
    fn fasta(&mut self) -> Result<Option<Record>, Problem> {
        if self.text.peek()?.is_none() {
            return Ok(None);
        }
        let header_line = self.text.line;
        let header = self.header()?;
        self.letters.clear();
        loop {
            match self.text.peek()? {
                None | Some(b'>') => break,
                Some(b';') => self.text.skip_line()?,
                // A file with a mark of its own was appended to another.
                Some(BOM_START) if self.text.skip_byte_order_mark(b">;") => {}
                byte => {
                    if byte == Some(b'-') && self.text.is_line(b"--") {
                        let line = self.text.line;
                        self.odd.separators.add(1, || (line, id_of(&header), ()));
                    }
                    self.sequence_line(&header, header_line, true)?;
                }
            }
        }
        Ok(Some(self.record(header)))
    }

    /// Reads the record that starts with the next `@`, if there is one.
    fn fastq(&mut self) -> Result<Option<Record>, Problem> {
        loop {
            match self.text.peek()? {
                None => return Ok(None),
                Some(b'@') => break,
                Some(byte) if is_white(byte) => self.text.advance(),
                Some(BOM_START) if self.text.skip_byte_order_mark(b"@") => {}
                Some(_) => {
                    let line = self.text.line;
                    let head = self.text.head(SHOWN);
                    let found = shown(&head[..memchr(b'\n', head).unwrap_or(head.len())]);
                    return Err(Problem::FastqHeader { line, found });
                }
            }
        }
        let header_line = self.text.line;
        let header = self.header()?;
        self.letters.clear();
        loop {
            match self.text.peek()? {
                None => return Err(self.cut(&header)),
                Some(b'+') => break,
                Some(_) => self.sequence_line(&header, header_line, false)?,
            }
        }
        self.text.skip_line()?;
        self.qualities(&header)?;
        Ok(Some(self.record(header)))
    }

    /// Passes over a FASTQ record's qualities: lines until there are as many as letters, however
    /// the sequence was wrapped. A line of them may itself start with `@` or `+`.
    fn qualities(&mut self, header: &str) -> Result<(), Problem> {
        let first_line = self.text.line;
        let sequence = self.letters.count();
        let short = |quality| Problem::FastqQuality {
            line: first_line,
            id: id_of(header),
            sequence,
            quality,
        };
        let mut quality = 0_u64;
        // How many qualities stand before a line that may be the next record's header.
        let mut before_header = None;
        while quality < sequence {
            let Some(start) = self.text.peek()? else {
                return Err(self.cut(header));
            };
            if quality > 0 && start == b'@' {
                before_header = before_header.or(Some(quality));
            }
            let mut returned = false;
            self.text.each_piece(|piece, line| {
                if memchr(0, piece).is_some() {
                    return Err(Problem::Nul { line });
                }
                // As where the next record's header follows a carriage return.
                let is_header = (returned && piece.starts_with(b"@"))
                    || memchr_iter(b'\r', piece).any(|at| piece[at + 1..].starts_with(b"@"));
                if is_header {
                    return Err(Problem::CarriageReturns { line });
                }
                returned = piece.ends_with(b"\r");
                quality += piece.iter().filter(|&&byte| !is_white(byte)).count() as u64;
                Ok(())
            })?;
            if quality > sequence {
                // A line too much that looks like the next header most likely is it.
                return Err(short(before_header.unwrap_or(quality)));
            }
        }
        // It may be as long as the qualities that are missing: then no record follows.
        if let Some(before) = before_header {
            while let Some(byte) = self.text.peek()? {
                match byte {
                    b'@' => break,
                    byte if is_white(byte) => self.text.advance(),
                    _ => return Err(short(before)),
                }
            }
        }
        Ok(())
    }

    fn cut(&self, header: &str) -> Problem {
        Problem::FastqCut {
            line: self.text.last_line(),
            id: id_of(header),
        }
    }

    /// The header line without its mark.
    fn header(&mut self) -> Result<String, Problem> {
        self.line.clear();
        let line = self.text.line;
        self.text.each_piece(|piece, line| {
            if memchr(0, piece).is_some() {
                return Err(Problem::Nul { line });
            }
            self.line.extend_from_slice(piece);
            match self.line.len() > LONGEST_HEADER {
                true if memchr(b'\r', &self.line).is_some() => {
                    Err(Problem::CarriageReturns { line })
                }
                true => Err(Problem::LongHeader { line }),
                false => Ok(()),
            }
        })?;
        let bytes = &self.line[1..];
        let text = lossless(bytes);
        let header = text.trim_end().to_owned();
        if matches!(text, Cow::Owned(_)) {
            let mut chunks = bytes.utf8_chunks();
            let id = id_of(&header);
            match chunks.find_map(|chunk| chunk.invalid().first().copied()) {
                Some(first) => self.odd.headers.add(1, || (line, id, first)),
                None => self.odd.backslashes.add(1, || (line, id, ())),
            }
        }
        if memchr(b'\r', header.as_bytes()).is_some() {
            return Err(Problem::CarriageReturns { line });
        }
        Ok(header)
    }

    /// Appends a line to the sequence, without white space.
    fn sequence_line(
        &mut self,
        header: &str,
        header_line: u64,
        is_fasta: bool,
    ) -> Result<(), Problem> {
        let Self {
            text,
            letters,
            longest,
            letters_per_residue,
            ..
        } = self;
        let most = longest.saturating_mul(*letters_per_residue);
        let begun = text.line;
        text.each_piece(|piece, line| {
            letters
                .line(piece, line, is_fasta)
                .map_err(|refused| match refused {
                    Refused::Nul => Problem::Nul { line },
                    Refused::Return => Problem::CarriageReturns { line },
                    Refused::Header => Problem::HeaderInSequence {
                        line,
                        id: id_of(header),
                    },
                })?;
            if letters.count() > most {
                return Err(Problem::TooLong {
                    line: header_line,
                    id: id_of(header),
                    longest: *longest,
                });
            }
            Ok(())
        })?;
        letters.end_line(begun);
        Ok(())
    }

    fn record(&mut self, header: String) -> Record {
        for (odd, seen) in self.odd.letters.iter_mut().zip(self.letters.seen) {
            if let Some((line, letter)) = seen.first {
                odd.add(seen.count, || (line, id_of(&header), letter));
            }
        }
        let rest = self
            .letters
            .rest()
            .map(|(letters, last)| Rest { letters, last });
        let other = self.letters.other();
        let kept = self.letters.kept();
        let sequence = if kept.len() <= COPIED {
            kept.as_slice().to_vec()
        } else {
            let mut sequence = std::mem::take(kept);
            sequence.shrink_to_fit();
            sequence
        };
        Record {
            header,
            sequence,
            rest,
            other,
        }
    }
}

/// The first byte of a byte order mark.
const BOM_START: u8 = 0xef;

/// A buffered stream of text with the current line number.
struct Text {
    input: Box<dyn Read + Send>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    line: u64,
    /// Whether the text before what the buffer holds ends with a line end.
    ended: bool,
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
            ended: false,
            pending: None,
        }
    }

    /// Reads on if the buffer is used up; `false` at the end.
    fn fill(&mut self) -> Result<bool, Problem> {
        if self.start == self.end {
            if self.end > 0 {
                self.ended = self.buffer[self.end - 1] == b'\n';
            }
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

    /// The number of the last line that has text, at the end of the text.
    fn last_line(&self) -> u64 {
        self.line - u64::from(self.ended)
    }

    fn peek(&mut self) -> Result<Option<u8>, Problem> {
        Ok(self.fill()?.then(|| self.buffer[self.start]))
    }

    /// Passes over the byte that `peek` showed.
    fn advance(&mut self) {
        self.line += u64::from(self.buffer[self.start] == b'\n');
        self.start += 1;
    }

    /// The next bytes, so many and a few more, however they come in. They stay to be read.
    fn head(&mut self, wanted: usize) -> &[u8] {
        self.top_up(wanted + 2);
        &self.buffer[self.start..self.end.min(self.start + wanted + 2)]
    }

    /// Fills the buffer with at least `wanted` bytes, if there are as many.
    fn top_up(&mut self, wanted: usize) {
        if self.end - self.start >= wanted {
            return;
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < wanted {
            match self.read(self.end) {
                Ok(0) => break,
                Ok(read) => self.end += read,
                Err(Problem::Read { source, .. }) => {
                    self.pending = Some(source);
                    break;
                }
                Err(_) => break,
            }
        }
    }

    /// Passes over a byte order mark, if one comes next, with one of these bytes (where any are
    /// named) behind it.
    fn skip_byte_order_mark(&mut self, before: &[u8]) -> bool {
        const MARK: &[u8] = b"\xef\xbb\xbf";
        self.top_up(MARK.len() + 1);
        let next = &self.buffer[self.start..self.end];
        let is_mark = match next.strip_prefix(MARK) {
            Some(_) if before.is_empty() => true,
            Some([byte, ..]) => before.contains(byte),
            _ => false,
        };
        if is_mark {
            self.start += MARK.len();
        }
        is_mark
    }

    /// Whether the next line is exactly this.
    fn is_line(&mut self, line: &[u8]) -> bool {
        self.top_up(line.len() + 2);
        let next = self.buffer[self.start..self.end].strip_prefix(line);
        matches!(next, Some([] | [b'\n', ..] | [b'\r', b'\n', ..]))
    }

    /// Passes over a comment, or the line between a FASTQ record's sequence and its qualities.
    /// Nothing but such a line is passed over, and no records that stand in one with it.
    fn skip_line(&mut self) -> Result<(), Problem> {
        let mut returned = false;
        self.each_piece(|piece, line| {
            if memchr(0, piece).is_some() {
                return Err(Problem::Nul { line });
            }
            let behind = match memchr(b'\r', piece) {
                _ if returned => piece,
                Some(at) => &piece[at..],
                None => return Ok(()),
            };
            returned = true;
            if behind.iter().all(|&byte| is_white(byte)) {
                Ok(())
            } else {
                Err(Problem::CarriageReturns { line })
            }
        })
    }

    /// Hands on the rest of the line, without its line feed, in as many pieces as the buffer makes
    /// of it.
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

/// Whether text starts with a header line of SAM, such as `@HD` with a tab, and a tag but for
/// comments.
fn is_sam(head: &[u8]) -> bool {
    match head {
        [b'@', b'C', b'O', b'\t', ..] => true,
        [b'@', a, b, b'\t', c, d, b':', ..] => {
            [*b"HD", *b"SQ", *b"RG", *b"PG"].contains(&[*a, *b])
                && c.is_ascii_alphabetic()
                && d.is_ascii_alphanumeric()
        }
        _ => false,
    }
}

/// A guess at the file type from the first bytes, for a message.
fn hint(head: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 19] = [
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
        (
            b"# STOCKHOLM",
            ": a Stockholm alignment? Convert it to FASTA (`esl-reformat fasta`)",
        ),
        (b"#NEXUS", ": a NEXUS file? Convert it to FASTA"),
        (b"##fileformat=VCF", ": a VCF file? FASTA is needed"),
        (
            b"\x5d\0\0",
            ": LZMA data? Unpack them first (`xz --format=lzma -d`)",
        ),
        (b"LZIP", ": lzip data? Unpack them first (`lzip -d`)"),
        (b"7z\xbc\xaf", ": a 7-zip archive? Unpack it first"),
        (b"<", ": a web page or XML? Was the download refused?"),
        (b"{", ": JSON? FASTA is needed"),
    ];
    KNOWN
        .iter()
        .find(|(start, _)| head.starts_with(start))
        .map_or("", |&(_, hint)| hint)
}
