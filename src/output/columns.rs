//! Several columns of vectors in a file: one for each pooling and layer of a run that has more than
//! one. In memory a row's vectors stand side by side; in a file each column is an array of its own.

use std::io::{self, Read, Write as _};

use tempfile::SpooledTempFile;

use super::layout::Layout;
use super::table::{rewound, spool};
use crate::vectors::Vectors;

/// The values of column `at`, of rows of `count` vectors `width` wide.
pub(super) fn one(values: &[f32], at: usize, width: usize, count: usize) -> Vec<f32> {
    let vectors = values.chunks(width.max(1)).skip(at).step_by(count);
    vectors.flatten().copied().collect()
}

/// The values of each column of a file's rows.
pub(super) fn apart(values: Vec<f32>, layout: &Layout) -> Vec<Vec<f32>> {
    let (width, count) = (layout.width(), layout.names().len());
    if count == 1 {
        return vec![values];
    }
    let columns = (0..count).map(|at| one(&values, at, width, count));
    columns.collect()
}

/// The rows of columns with vectors `width` wide, of which there are as many in each.
pub(super) fn side_by_side(mut columns: Vec<Vec<f32>>, width: usize) -> Vec<f32> {
    if columns.len() == 1
        && let Some(only) = columns.pop()
    {
        return only;
    }
    let count = columns.iter().map(Vec::len).sum();
    let mut values = Vec::with_capacity(count);
    let vectors = columns
        .first()
        .map_or(0, |first| first.len() / width.max(1));
    for vector in 0..vectors {
        for column in &columns {
            values.extend_from_slice(&column[vector * width..(vector + 1) * width]);
        }
    }
    values
}

/// The columns after the first, which wait beside the output until the first is complete.
pub(super) struct LaterColumns {
    spools: Vec<io::BufWriter<SpooledTempFile>>,
    sums: Vec<crc32fast::Hasher>,
    bytes: Vec<u8>,
}

/// A column that is complete.
pub(super) struct LaterColumn {
    /// Its values, from the start.
    pub values: SpooledTempFile,
    /// Of these.
    pub sum: crc32fast::Hasher,
}

impl LaterColumns {
    pub fn new(layout: &Layout) -> Self {
        let later = layout.names().len() - 1;
        Self {
            spools: (0..later).map(|_| spool(&layout.path)).collect(),
            sums: vec![crc32fast::Hasher::new(); later],
            bytes: Vec::new(),
        }
    }

    /// Keeps what belongs to the later columns, and returns the first.
    pub fn put(&mut self, values: Vectors, layout: &Layout) -> io::Result<Vectors> {
        if self.spools.is_empty() {
            return Ok(values);
        }
        let mut columns = values
            .columns(layout.width(), layout.names().len())
            .into_iter();
        let first = columns.next().unwrap_or_default();
        for ((column, spool), sum) in columns.zip(&mut self.spools).zip(&mut self.sums) {
            self.bytes.clear();
            layout.precision.encode(&column, &mut self.bytes);
            sum.update(&self.bytes);
            spool.write_all(&self.bytes)?;
        }
        Ok(first)
    }

    /// The columns, in their order.
    pub fn finish(self) -> io::Result<Vec<LaterColumn>> {
        let columns = self.spools.into_iter().zip(self.sums);
        let column = |(spool, sum)| {
            let values = rewound(spool)?;
            Ok(LaterColumn { values, sum })
        };
        columns.map(column).collect()
    }
}

/// Columns that are read in step: the vectors of a row from one after the other.
pub(super) struct SideBySide {
    columns: Vec<Box<dyn Read + Send>>,
    /// Bytes of a vector of one column.
    width: usize,
    /// Which column is read, and how many bytes of its vector are left.
    at: usize,
    left: usize,
}

impl SideBySide {
    /// Columns of vectors of `width` bytes; one is given back as it is.
    pub fn join<R: Read + Send + 'static>(
        columns: impl Iterator<Item = R>,
        width: usize,
    ) -> Box<dyn Read + Send> {
        let boxed = columns.map(|column| -> Box<dyn Read + Send> { Box::new(column) });
        let mut columns: Vec<_> = boxed.collect();
        if columns.len() == 1
            && let Some(only) = columns.pop()
        {
            return only;
        }
        Box::new(Self {
            columns,
            width,
            at: 0,
            left: width,
        })
    }
}

impl Read for SideBySide {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            self.at = (self.at + 1) % self.columns.len().max(1);
            self.left = self.width;
        }
        let Some(column) = self.columns.get_mut(self.at) else {
            return Ok(0);
        };
        let most = buffer.len().min(self.left);
        let count = column.read(&mut buffer[..most])?;
        self.left -= count;
        Ok(count)
    }
}
