//! Records and the matrix of their vectors, each a stream of its own -> blocks of rows, in bounded
//! memory.

use std::io::{self, Read};
use std::path::Path;

use super::error::OutputError;
use super::layout::Layout;
use super::reader::{BLOCK_BYTES, Reader};
use super::rows::Rows;

/// Rows of a block at most, for short vectors.
const BLOCK_ROWS: usize = 1 << 16;

/// The columns of a record other than its vectors.
pub(super) struct Record {
    pub id: String,
    pub header: String,
    pub length: u64,
    pub status: String,
    /// How many vectors it has.
    pub vectors: u64,
}

/// A file's records and values, read in step.
pub(super) struct Blocks {
    pub layout: Layout,
    /// How many records there are.
    pub rows: u64,
    /// How many vectors all of them have.
    pub vectors: u64,
    /// Returns the next record.
    pub next: Box<dyn FnMut() -> io::Result<Record> + Send>,
    /// The vectors of all records, end to end, in the layout's precision.
    pub values: Box<dyn Read + Send>,
}

impl Blocks {
    /// A reader that gives the records in blocks of bounded size.
    pub fn into_reader(self) -> Reader {
        let layout = self.layout.clone();
        let rows = self.rows;
        let mut state = Some((self, ReadPosition::default()));
        let blocks = std::iter::from_fn(move || {
            let (blocks, place) = state.as_mut()?;
            match blocks.block(place) {
                Ok(Some(rows)) => Some(Ok(rows)),
                Ok(None) => None,
                Err(error) => {
                    let path = blocks.layout.path.clone();
                    // The positions of the streams are unknown after an error, so nothing follows
                    // it.
                    state = None;
                    Some(Err(OutputError::malformed(&path, error)))
                }
            }
        });
        Reader {
            layout,
            rows,
            blocks: Box::new(blocks),
        }
    }

    fn block(&mut self, place: &mut ReadPosition) -> io::Result<Option<Rows>> {
        if place.row == self.rows && place.left == 0 {
            if self.vectors > 0 {
                return Err(invalid("it has vectors that do not belong to any record"));
            }
            return Ok(None);
        }
        let Layout {
            hidden,
            precision,
            per_token,
            ..
        } = self.layout;
        let most = (BLOCK_BYTES / hidden.saturating_mul(4).max(1)).max(1);
        let mut rows = Rows::new(hidden);
        rows.before = place.left.min(most);
        place.left -= rows.before;
        let mut vectors = rows.before;
        while place.row < self.rows && vectors < most && rows.len() < BLOCK_ROWS {
            let record = (self.next)()?;
            if !per_token && record.vectors != 1 {
                return Err(invalid("a pooled record must have exactly one vector"));
            }
            self.vectors = self
                .vectors
                .checked_sub(record.vectors)
                .ok_or_else(|| invalid("its records refer to more vectors than it has"))?;
            let count = usize::try_from(record.vectors).map_err(|_| invalid("too many vectors"))?;
            // Files have signed numbers: a negative one reads as one that is too large.
            length(record.length.cast_signed())?;
            rows.ids.push(record.id);
            rows.headers.push(record.header);
            rows.lengths.push(record.length);
            rows.status.push(record.status);
            rows.vectors.push(count);
            place.row += 1;
            // The rest of a long row follows in the next blocks.
            let here = count.min(most - vectors);
            vectors += here;
            place.left = count - here;
        }
        rows.after = place.left;
        let want = vectors
            .checked_mul(hidden * precision.bytes())
            .ok_or_else(|| invalid("too many vectors"))?;
        let mut bytes = Vec::new();
        (&mut self.values)
            .take(want as u64)
            .read_to_end(&mut bytes)?;
        if bytes.len() < want {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        rows.values = precision.decode(&bytes);
        Ok(Some(rows))
    }
}

/// How far a file was read.
#[derive(Default)]
struct ReadPosition {
    /// Records that were read.
    row: u64,
    /// Vectors of the last one that were not.
    left: usize,
}

/// A record's length, from the signed number that files have.
pub(super) fn length(number: i64) -> io::Result<u64> {
    u64::try_from(number).map_err(|_| invalid(format!("a record has the negative length {number}")))
}

/// Checks the offset of the first record.
pub(super) fn check_first(offset: u64) -> io::Result<()> {
    match offset {
        0 => Ok(()),
        other => Err(invalid(format!(
            "its first offset is {}, not 0",
            other.cast_signed()
        ))),
    }
}

/// How many vectors each record has, from where each ends.
pub(super) fn counts(mut end: impl FnMut() -> io::Result<u64>) -> impl FnMut() -> io::Result<u64> {
    let mut before = 0;
    move || {
        let end = end()?;
        let count = end.checked_sub(before);
        before = end;
        count.ok_or_else(|| invalid("its offsets do not increase"))
    }
}

/// The error of data that are damaged, or not laid out as an output is.
pub(super) fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Provenance from the text of a JSON object.
pub(super) fn provenance(path: &Path, text: &str) -> Result<Vec<(String, String)>, OutputError> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)
        .map_err(|e| OutputError::malformed(path, format!("provenance: {e}")))?;
    let facts = object.into_iter().map(|(key, value)| match value {
        serde_json::Value::String(value) => (key, value),
        other => (key, other.to_string()),
    });
    Ok(facts.collect())
}

/// Provenance as a JSON object, in its order.
pub(super) fn provenance_json(layout: &Layout) -> serde_json::Value {
    let facts = layout.provenance.iter();
    facts
        .map(|(key, value)| (key.clone(), value.clone().into()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
