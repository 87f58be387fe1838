//! Rows of embeddings in memory, and the check that their columns fit each other and their file.

use super::error::OutputError;
use super::layout::Layout;
use crate::vectors::Vectors;

/// A block of consecutive rows of one output file, in input order.
///
/// Row `i` has `vectors[i]` vectors of `hidden` values each in `values` (row after row): one for a
/// pooled embedding, one for each residue for per-token output, and one vector of NaN (pooled) or
/// none at all (per-token) for a record that was skipped.
///
/// A row of many vectors may be split: its block has the first vectors, `after` is the number of
/// vectors that follow, and the next blocks start with these.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Width of a vector.
    pub hidden: usize,
    /// The first word of each record's header.
    pub ids: Vec<String>,
    /// The whole header line of each record, without its `>` or `@`.
    pub headers: Vec<String>,
    /// Residues in each record, as they were embedded (after a terminal `*` was dropped, before
    /// truncation).
    pub lengths: Vec<u64>,
    /// What happened to each record: `ok`, or one or more of `truncated`, `windowed`, `replaced`
    /// (`all-unknown` when no letter is known), `gaps` joined by a comma, or `skipped: why`.
    pub status: Vec<String>,
    /// How many vectors each row has.
    pub vectors: Vec<usize>,
    /// The vectors: `(before + sum(vectors) - after) * hidden` values, or `before * hidden` where
    /// there is no row.
    pub values: Vec<f32>,
    /// Number of vectors at the start that belong to a row started by an earlier block.
    pub before: usize,
    /// Number of vectors of the last row (or of that earlier row, if this block has no rows) that
    /// follow in later blocks.
    pub after: usize,
}

impl Rows {
    /// No rows yet, of vectors `hidden` wide.
    #[must_use]
    pub fn new(hidden: usize) -> Self {
        Rows {
            hidden,
            ..Rows::default()
        }
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Appends the rows of another block of the same width.
    pub fn append(&mut self, mut other: Rows) {
        self.ids.append(&mut other.ids);
        self.headers.append(&mut other.headers);
        self.lengths.append(&mut other.lengths);
        self.status.append(&mut other.status);
        self.vectors.append(&mut other.vectors);
        self.values.append(&mut other.values);
        self.after = other.after;
    }

    /// Appends one row of another block of the same width, whose vectors are `values`.
    pub(crate) fn push(&mut self, other: &Rows, row: usize, values: &[f32]) {
        self.ids.push(other.ids[row].clone());
        self.headers.push(other.headers[row].clone());
        self.lengths.push(other.lengths[row]);
        self.status.push(other.status[row].clone());
        self.vectors.push(other.vectors[row]);
        self.values.extend_from_slice(values);
    }

    /// Moves everything but the values of one row of another block of the same width.
    pub(super) fn push_head(&mut self, other: &mut Rows, row: usize) {
        self.ids.push(std::mem::take(&mut other.ids[row]));
        self.headers.push(std::mem::take(&mut other.headers[row]));
        self.lengths.push(other.lengths[row]);
        self.status.push(std::mem::take(&mut other.status[row]));
        self.vectors.push(other.vectors[row]);
    }
}

/// Rows on their way to a file: their values stand apart, in the precision that the engine gave.
#[derive(Debug, Clone, Default)]
pub struct Block {
    /// All but the values, of which there are none here.
    pub rows: Rows,
    /// The values, as [`Rows::values`] has them.
    pub values: Vectors,
}

impl From<Rows> for Block {
    fn from(mut rows: Rows) -> Self {
        let values = std::mem::take(&mut rows.values).into();
        Block { rows, values }
    }
}

impl From<Block> for Rows {
    fn from(block: Block) -> Self {
        Rows {
            values: block.values.to_singles(),
            ..block.rows
        }
    }
}

impl Block {
    /// The rows without values, the values here of a row that an earlier block began, and those of
    /// each row, of which the last one's may go on in later blocks.
    pub(super) fn split(self) -> (Rows, Vectors, Vec<Vectors>) {
        let Block { rows, mut values } = self;
        let first = values.split_to(rows.before * rows.hidden);
        let last = rows.len().wrapping_sub(1);
        let counts = rows.vectors.iter().enumerate().map(|(row, &vectors)| {
            let after = if row == last { rows.after } else { 0 };
            (vectors - after) * rows.hidden
        });
        let own = counts.map(|count| values.split_to(count)).collect();
        (rows, first, own)
    }

    /// Checks that the columns agree with each other and with the file they go to, so that a
    /// mistake upstream becomes an error and never a shifted matrix. `open` is what earlier blocks
    /// left to come.
    pub(super) fn check(&self, layout: &Layout, open: &mut OpenRow) -> Result<(), OutputError> {
        let wrong = |what: String| OutputError::Inconsistent {
            path: layout.path.clone(),
            what,
        };
        let rows = &self.rows;
        if rows.hidden != layout.hidden {
            return Err(wrong(format!(
                "vectors {} wide for a file of vectors {} wide",
                rows.hidden, layout.hidden
            )));
        }
        let count = rows.ids.len();
        for (name, len) in [
            ("headers", rows.headers.len()),
            ("lengths", rows.lengths.len()),
            ("status", rows.status.len()),
            ("vectors", rows.vectors.len()),
        ] {
            if len != count {
                return Err(wrong(format!("{count} ids but {len} {name}")));
            }
        }
        if let Some(row) = rows.vectors.iter().position(|&n| n != 1)
            && !layout.per_token
        {
            return Err(wrong(format!(
                "{:?} has {} vectors where a pooled row has one",
                rows.ids[row], rows.vectors[row]
            )));
        }
        let own = rows.vectors.iter().sum::<usize>();
        let vectors = if count == 0 {
            Some(rows.before)
        } else {
            (rows.before + own).checked_sub(rows.after)
        };
        if vectors.map(|vectors| vectors * rows.hidden) != Some(self.values.len()) {
            return Err(wrong(format!(
                "{} vectors of {} values, but {} values",
                rows.before + own,
                rows.hidden,
                self.values.len()
            )));
        }
        let (left, is_last_whole) = match rows.vectors.last() {
            Some(&last) => (open.left, rows.after <= last),
            None => (open.left.wrapping_sub(rows.after), true),
        };
        if rows.before != left || !is_last_whole {
            return Err(wrong(format!(
                "{} vectors of {:?} follow, {} were left",
                rows.before, open.id, open.left
            )));
        }
        self.check_halves(layout, &open.id)?;
        open.left = rows.after;
        if let Some(id) = rows.ids.last() {
            open.id.clone_from(id);
        }
        Ok(())
    }

    /// Refuses values out of range for 16-bit floats, which would silently become infinite.
    fn check_halves(&self, layout: &Layout, open: &str) -> Result<(), OutputError> {
        let Some((at, value)) = layout.precision.too_large(&self.values) else {
            return Ok(());
        };
        let rows = &self.rows;
        let vector = at / rows.hidden.max(1);
        let mut end = rows.before;
        let row = rows.vectors.iter().position(|&vectors| {
            end += vectors;
            vector < end
        });
        let row = row.filter(|_| vector >= rows.before);
        Err(OutputError::TooLarge {
            path: layout.path.clone(),
            id: row.map_or(open, |row| &rows.ids[row]).to_owned(),
            value,
        })
    }
}

/// A row being written whose vectors are not complete yet.
#[derive(Debug, Default)]
pub(super) struct OpenRow {
    id: String,
    /// How many are to come.
    left: usize,
}

impl OpenRow {
    /// Checks that none is to come.
    pub(super) fn check(&self, layout: &Layout) -> Result<(), OutputError> {
        if self.left == 0 {
            return Ok(());
        }
        Err(OutputError::Inconsistent {
            path: layout.path.clone(),
            what: format!("{} vectors of {:?} did not come", self.left, self.id),
        })
    }
}
