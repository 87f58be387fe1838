//! `VirNucPro`'s own files, written and read: three kinds of `torch.save`.
//!
//! | file | what it holds |
//! |---|---|
//! | `*_DNABERT_S.pt` | `{'nucleotide': [id], 'data': [{'label': id, 'mean_representation': [float]}]}` |
//! | `*_ESM.pt` | `{'proteins': [id], 'data': [tensor]}` |
//! | `*_merged.pt` | `{'ids': [id], 'data': tensor(N, DNABERT-S's width + ESM-2's)}` |
//!
//! They contain no lengths: every length is read as 0.

use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use seqembed_onnx::checkpoint::pickle::Value;

use super::blocks::{Blocks, Record, invalid};
use super::error::{OutputError, writing};
use super::layout::Layout;
use super::pickle::{Kind, Pickler};
use super::precision::OutputPrecision;
use super::reader::Reader;
use super::torch_archive::{Archive, TorchFile};

/// Ids and their vectors, end to end.
#[derive(Debug, Clone, Copy)]
pub struct Vectors<'a> {
    /// Id of each record, in the order of the vectors.
    pub ids: &'a [String],
    /// Values of a vector.
    pub hidden: usize,
    /// `ids.len() * hidden` values.
    pub values: &'a [f32],
}

impl<'a> Vectors<'a> {
    fn each(self) -> impl Iterator<Item = (&'a String, &'a [f32])> {
        self.ids
            .iter()
            .zip(self.values.chunks_exact(self.hidden.max(1)))
    }

    fn check(&self, path: &Path) -> Result<(), OutputError> {
        if self.ids.len() * self.hidden == self.values.len() {
            return Ok(());
        }
        Err(OutputError::Inconsistent {
            path: path.to_owned(),
            what: format!(
                "{} ids with vectors of {} values, but {} values",
                self.ids.len(),
                self.hidden,
                self.values.len()
            ),
        })
    }
}

/// Writes a file of DNABERT-S features.
///
/// # Errors
/// If it cannot be written.
pub fn write_nucleotides(path: &Path, vectors: Vectors) -> Result<(), OutputError> {
    vectors.check(path)?;
    write(path, std::iter::empty(), |pickler| {
        pickler.text("nucleotide")?;
        ids(pickler, vectors.ids)?;
        pickler.text("data")?;
        let mut list = pickler.list()?;
        for (id, values) in vectors.each() {
            list.item(pickler)?;
            pickler.dict(|pickler| {
                pickler.text("label")?;
                pickler.text(id)?;
                pickler.text("mean_representation")?;
                let mut numbers = pickler.list()?;
                for &value in values {
                    numbers.item(pickler)?;
                    pickler.float(value.into())?;
                }
                numbers.end(pickler)
            })?;
        }
        list.end(pickler)
    })
}

/// Writes a file of ESM-2 features, in which each vector is a separate tensor, as in VirNucPro.
///
/// # Errors
/// If it cannot be written.
pub fn write_proteins(path: &Path, vectors: Vectors) -> Result<(), OutputError> {
    vectors.check(path)?;
    write(path, vectors.each().map(|(_, values)| values), |pickler| {
        pickler.text("proteins")?;
        ids(pickler, vectors.ids)?;
        pickler.text("data")?;
        let mut list = pickler.list()?;
        for key in 0..vectors.ids.len() {
            list.item(pickler)?;
            let shape = [vectors.hidden as u64];
            pickler.tensor(&key.to_string(), FLOATS, &shape)?;
        }
        list.end(pickler)
    })
}

/// Writes a merged file, which the prediction reads.
///
/// # Errors
/// If it cannot be written.
pub fn write_merged(path: &Path, vectors: Vectors) -> Result<(), OutputError> {
    vectors.check(path)?;
    write(path, std::iter::once(vectors.values), |pickler| {
        pickler.text("ids")?;
        ids(pickler, vectors.ids)?;
        pickler.text("data")?;
        let shape = [vectors.ids.len() as u64, vectors.hidden as u64];
        pickler.tensor("0", FLOATS, &shape)
    })
}

const FLOATS: Kind = Kind::Float(OutputPrecision::Fp32);

/// Writes an archive: the values of its tensors, in the order of their keys, and the items of its
/// dict.
fn write<'a>(
    path: &Path,
    entries: impl Iterator<Item = &'a [f32]>,
    items: impl FnOnce(&mut Pickler<&mut dyn Write>) -> io::Result<()>,
) -> Result<(), OutputError> {
    let mut archive = Archive::create(path)?;
    let fill = |archive: &mut Archive| {
        for (key, values) in entries.enumerate() {
            let large = size_of_val(values) as u64 > u64::from(u32::MAX / 2);
            let entry = archive.begin(&format!("data/{key}"), large)?;
            let mut bytes = Vec::new();
            for part in values.chunks(1 << 14) {
                bytes.clear();
                bytes.extend(part.iter().flat_map(|value| value.to_le_bytes()));
                entry.write_all(&bytes)?;
            }
        }
        let mut entry = BufWriter::new(archive.begin("data.pkl", true)?);
        let mut pickler = Pickler::new(&mut entry as &mut dyn Write)?;
        pickler.dict(items)?;
        pickler.end()?;
        entry.flush()
    };
    fill(&mut archive).map_err(|e| writing(path, e))?;
    archive.finish(path).map(drop)
}

fn ids(pickler: &mut Pickler<&mut dyn Write>, ids: &[String]) -> io::Result<()> {
    let mut list = pickler.list()?;
    for id in ids {
        list.item(pickler)?;
        pickler.text(id)?;
    }
    list.end(pickler)
}

/// Reads a file of DNABERT-S or ESM-2 features; `None` when it is another kind of file.
pub(super) fn open(file: &TorchFile) -> Result<Option<Reader>, OutputError> {
    let (ids, is_protein) = match (file.texts("nucleotide")?, file.texts("proteins")?) {
        (Some(ids), _) => (ids, false),
        (None, Some(ids)) => (ids, true),
        (None, None) => return Ok(None),
    };
    let Some(Value::List(data)) = file.entry("data") else {
        return Err(file.malformed("its `data` is not a list"));
    };
    if data.len() != ids.len() {
        return Err(file.malformed(format!(
            "it has {} ids for {} vectors, so vectors cannot be assigned to records",
            ids.len(),
            data.len()
        )));
    }
    let vectors = data.iter().zip(&ids).map(|(&item, id)| {
        let vector = match file.pickle.get(item) {
            Value::Tensor(tensor) if is_protein && tensor.shape.len() == 1 => {
                let precision = file.precision(tensor)?;
                let mut bytes = Vec::new();
                file.tensor(tensor)?
                    .open(file.path)?
                    .read_to_end(&mut bytes)
                    .map_err(|e| file.malformed(e))?;
                Some(precision.decode(&bytes))
            }
            dict @ Value::Dict(_) if !is_protein => {
                let label = file.pickle.entry(dict, "label");
                if !matches!(label, Some(Value::Text(label)) if label == id) {
                    return Err(file.malformed(format!(
                        "the vector in the position of {id:?} has another label: ids and vectors \
                         are shifted"
                    )));
                }
                numbers(file, dict)
            }
            _ => None,
        };
        vector.ok_or_else(|| {
            file.malformed(format!(
                "the vector of {id:?} is not a list of \
                                                     numbers"
            ))
        })
    });
    let vectors = vectors.collect::<Result<Vec<Vec<f32>>, _>>()?;
    let hidden = vectors.first().map_or(0, Vec::len);
    if vectors.iter().any(|vector| vector.len() != hidden) {
        return Err(file.malformed("its vectors differ in length"));
    }
    let rows = ids.len() as u64;
    let values = vectors.iter().flatten();
    let values: Vec<u8> = values.flat_map(|v| v.to_le_bytes()).collect();
    let mut ids = ids.into_iter();
    let next = move || {
        let id = ids.next().ok_or_else(|| invalid("no id"))?;
        Ok(Record {
            header: id.clone(),
            id,
            length: 0,
            status: "ok".to_owned(),
            vectors: 1,
        })
    };
    let blocks = Blocks {
        layout: Layout {
            path: file.path.to_owned(),
            columns: Vec::new(),
            hidden,
            per_token: false,
            precision: OutputPrecision::Fp32,
            provenance: Vec::new(),
        },
        rows,
        vectors: rows,
        next: Box::new(next),
        values: Box::new(io::Cursor::new(values)),
    };
    Ok(Some(blocks.into_reader()))
}

/// The list of floats that a dict has as its `mean_representation`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "32-bit floats were written there"
)]
fn numbers(file: &TorchFile, dict: &Value) -> Option<Vec<f32>> {
    let Value::List(items) = file.pickle.entry(dict, "mean_representation")? else {
        return None;
    };
    items
        .iter()
        .map(|&item| match file.pickle.get(item) {
            Value::Float(number) => Some(*number as f32),
            _ => None,
        })
        .collect()
}
