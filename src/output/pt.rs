//! pt: `PyTorch`'s `torch.save`, read by `torch.load` with `weights_only=True`.
//!
//! | key | value |
//! |---|---|
//! | `ids` | list of texts |
//! | `data` | tensor, float32 or float16, N x H (pooled) or residues of all records x H (per token) |
//! | `headers`, `status` | lists of texts |
//! | `lengths` | tensor, int64, N |
//! | `offsets` (per-token only) | tensor, int64, N + 1: record i is `data[offsets[i]:offsets[i + 1]]` |
//! | `provenance` | dict of texts |
//!
//! `ids` and `data` are what `VirNucPro`'s prediction reads from its merged files, so pooled files
//! serve there. Its own files are read by [`super::virnucpro`]. The file is a zip archive as
//! `torch.save` makes it, with its entries aligned, so that `mmap=True` works. The matrix goes to
//! the disk as it comes.

use std::io::{self, BufWriter, Write};

use seqembed_onnx::checkpoint::pickle::Value;

use super::blocks::{Blocks, Record, check_first, counts, invalid};
use super::error::{OutputError, writing};
use super::file::Written;
use super::layout::Layout;
use super::pickle::{Kind, Pickler};
use super::reader::Reader;
use super::rows::{Block, OpenRow};
use super::sink::Sink;
use super::table::{Columns, TEXTS, Table};
use super::torch_archive::{Archive, TorchFile};
use crate::text::counted;

/// Values that are encoded at a time.
const TILE: usize = 1 << 16;

/// Writes one pt file.
pub(super) struct PtSink {
    layout: Layout,
    open: OpenRow,
    archive: Archive,
    table: Table,
}

impl PtSink {
    pub(super) fn create(layout: Layout) -> Result<Self, OutputError> {
        let mut archive = Archive::create(&layout.path)?;
        archive
            .begin("data/0", true)
            .map_err(|e| writing(&layout.path, e))?;
        Ok(PtSink {
            open: OpenRow::default(),
            archive,
            table: Table::new(&layout.path),
            layout,
        })
    }

    fn complete(&mut self, columns: &mut Columns, rows: u64, vectors: u64) -> io::Result<()> {
        let layout = &self.layout;
        let archive = &mut self.archive;
        let lengths = archive.begin("data/1", true)?;
        columns.each(|row| lengths.write_all(&row.length.to_le_bytes()))?;
        if layout.per_token {
            let offsets = archive.begin("data/2", true)?;
            offsets.write_all(&0_u64.to_le_bytes())?;
            columns.ends(|end| offsets.write_all(&end.to_le_bytes()))?;
        }
        let to = archive.begin("data.pkl", true)?;
        let mut pickler = Pickler::new(BufWriter::new(to))?;
        pickler.dict(|pickler| {
            let mut texts = |pickler: &mut Pickler<_>, column: usize| -> io::Result<()> {
                pickler.text(TEXTS[column])?;
                let mut list = pickler.list()?;
                columns.each(|row| {
                    list.item(pickler)?;
                    pickler.text(&row.texts[column])
                })?;
                list.end(pickler)
            };
            texts(pickler, 0)?;
            pickler.text("data")?;
            let shape = [vectors, layout.hidden as u64];
            pickler.tensor("0", Kind::Float(layout.precision), &shape)?;
            texts(pickler, 1)?;
            texts(pickler, 2)?;
            pickler.text("lengths")?;
            pickler.tensor("1", Kind::Int64, &[rows])?;
            if layout.per_token {
                pickler.text("offsets")?;
                pickler.tensor("2", Kind::Int64, &[rows + 1])?;
            }
            pickler.text("provenance")?;
            pickler.dict(|pickler| {
                layout.provenance.iter().try_for_each(|(key, value)| {
                    pickler.text(key)?;
                    pickler.text(value)
                })
            })
        })?;
        pickler.end()?.flush()
    }
}

impl Sink for PtSink {
    fn put(&mut self, block: Block) -> Result<(), OutputError> {
        block.check(&self.layout, &mut self.open)?;
        let precision = self.layout.precision;
        let Block { rows, mut values } = block;
        let mut put = || {
            self.table.push(&rows)?;
            let mut bytes = Vec::new();
            while !values.is_empty() {
                bytes.clear();
                precision.encode(&values.split_to(TILE.min(values.len())), &mut bytes);
                self.archive.zip.write_all(&bytes)?;
            }
            Ok(())
        };
        put().map_err(|e| writing(&self.layout.path, e))
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Written>, OutputError> {
        self.open.check(&self.layout)?;
        let path = self.layout.path.clone();
        let table = std::mem::replace(&mut self.table, Table::new(&path));
        let (rows, vectors) = (table.rows, table.vectors);
        table
            .into_columns()
            .and_then(|mut columns| self.complete(&mut columns, rows, vectors))
            .map_err(|e| writing(&path, e))?;
        Ok(vec![self.archive.finish(&path)?])
    }
}

/// Reads a pt file written by seqembed, or merged by `VirNucPro`.
pub(super) fn open(file: &TorchFile) -> Result<Reader, OutputError> {
    let (Some(ids), Some(Value::Tensor(data))) = (file.texts("ids")?, file.entry("data")) else {
        return Err(file.malformed("it has no list `ids` with a tensor `data`"));
    };
    let precision = file.precision(data)?;
    let &[vectors, hidden] = data.shape.as_slice() else {
        return Err(file.malformed("its `data` is not a matrix"));
    };
    let rows = ids.len();
    let lengths = file.numbers("lengths", rows)?;
    let offsets = file.numbers("offsets", rows + 1)?;
    let headers = file.texts("headers")?;
    let status = file.texts("status")?;
    let short = |column: &Option<Vec<String>>| column.as_ref().is_some_and(|c| c.len() != rows);
    if short(&headers) || short(&status) {
        return Err(file.malformed("its lists differ in length"));
    }
    if offsets.is_none() && rows != vectors {
        return Err(file.malformed(format!(
            "it has {} for {}, so rows cannot be assigned to records",
            counted(rows as u64, "id"),
            counted(vectors as u64, "row")
        )));
    }
    let layout = Layout {
        path: file.path.to_owned(),
        columns: Vec::new(),
        hidden,
        per_token: offsets.is_some(),
        precision,
        provenance: file.facts("provenance"),
    };
    let values = file.tensor(data)?.open(file.path)?;
    let mut count: Box<dyn FnMut() -> io::Result<u64> + Send> = match offsets {
        Some(offsets) => {
            let first = offsets.first().copied().unwrap_or_default();
            check_first(first).map_err(|e| file.malformed(e))?;
            let mut ends = offsets.into_iter().skip(1);
            Box::new(counts(move || {
                ends.next().ok_or_else(|| invalid("no offset"))
            }))
        }
        None => Box::new(|| Ok(1)),
    };
    let mut ids = ids.into_iter();
    let mut headers = headers.map(Vec::into_iter);
    let mut status = status.map(Vec::into_iter);
    let mut lengths = lengths.map(Vec::into_iter);
    let next = move || {
        let id = ids.next().ok_or_else(|| invalid("no id"))?;
        Ok(Record {
            header: headers
                .as_mut()
                .and_then(Iterator::next)
                .unwrap_or_else(|| id.clone()),
            status: status
                .as_mut()
                .and_then(Iterator::next)
                .unwrap_or_else(|| "ok".to_owned()),
            length: lengths.as_mut().and_then(Iterator::next).unwrap_or(0),
            vectors: count()?,
            id,
        })
    };
    Ok(Blocks {
        layout,
        rows: rows as u64,
        vectors: vectors as u64,
        next: Box::new(next),
        values: Box::new(values),
    }
    .into_reader())
}
