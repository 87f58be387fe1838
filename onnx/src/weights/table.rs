//! The table of tensors of the weights file, and writing the file one tensor at a time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::files::WEIGHTS_FILE;
use crate::graph::request::{GraphKind, Precision};
use crate::positions::relative_bucket;

/// Alignment of tensors in bytes, so that a memory map can be used directly.
pub const ALIGNMENT: u64 = 4096;

/// A tensor of the weights file: little-endian values, row after row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Its name, as in the graphs.
    pub name: String,
    /// Its shape; dense weights are [out, in].
    pub shape: Vec<usize>,
    /// Offset of the first byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// The layout of the weights in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Storage {
    /// Number format of the stored values.
    pub precision: Precision,
    /// Whether layer norms are folded into the dense layers behind them, see
    /// [`crate::weights::norm_fold`].
    pub folded: bool,
}

impl Storage {
    /// What graphs of a kind and number format read.
    #[must_use]
    pub fn of(kind: GraphKind, precision: Precision) -> Self {
        Self {
            precision,
            folded: kind == GraphKind::Fused,
        }
    }

    /// Path of the file.
    #[must_use]
    pub fn file(self) -> &'static str {
        match (self.precision, self.folded) {
            (Precision::Fp32, _) => WEIGHTS_FILE,
            (Precision::Fp16, false) => "weights.fp16.bin",
            (Precision::Bf16, false) => "weights.bf16.bin",
            (Precision::Fp16, true) => "weights.fp16.folded.bin",
            (Precision::Bf16, true) => "weights.bf16.folded.bin",
            (Precision::Fp8, _) => "weights.fp8.folded.bin",
        }
    }
}

impl From<Precision> for Storage {
    fn from(precision: Precision) -> Self {
        Self {
            precision,
            folded: false,
        }
    }
}

/// A tensor of a checkpoint, in Hugging Face's spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The name.
    pub name: String,
    /// The shape that it must have.
    pub shape: Vec<usize>,
}

impl Input {
    /// A tensor of this name and shape.
    #[must_use]
    pub fn new(name: String, shape: &[usize]) -> Self {
        Self {
            name,
            shape: shape.to_vec(),
        }
    }
}

/// How a tensor is made from tensors of the checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorSource {
    /// The rows of one tensor after those of another.
    Rows(Vec<Input>),
    /// The rows of tensors, one after the other, [heads * width, columns] each. In each head of the
    /// first `pairs` tensors, even rows come before odd ones, so that dimensions that were
    /// neighbours are half a head apart.
    Apart {
        /// The tensors.
        inputs: Vec<Input>,
        /// How many of them are reordered.
        pairs: usize,
        /// Rows of a head.
        width: usize,
    },
    /// What T5 adds to scores, by distance instead of by bucket: for each head, the distances from
    /// `-furthest` to `furthest`.
    Distances {
        /// The tensor, [buckets, heads].
        input: Input,
        /// The distance from which on all are in one bucket.
        furthest: usize,
    },
    /// Every value times a factor; some rows are zero.
    Scaled {
        /// The tensor, [rows, columns].
        input: Input,
        /// The factor.
        factor: f32,
        /// Rows that become zero.
        zero: Vec<usize>,
    },
    /// Some rows of a tensor.
    Part {
        /// Name of the tensor.
        input: Input,
        /// Its first row that is taken.
        first: usize,
        /// How many are.
        rows: usize,
    },
    /// Every row of a table plus the first row of another.
    Shifted {
        /// The table, [rows, columns].
        table: Input,
        /// The other one, [.., columns].
        by: Input,
    },
    /// Made in the first way, or in the second, if none of the first one's tensors are in the
    /// checkpoint.
    Either(Box<TensorSource>, Box<TensorSource>),
    /// `(bias + weight @ inner) * factor`, in f64: a bias before a dense layer moved behind it.
    Folded {
        /// The layer's own bias, [out].
        bias: Input,
        /// The layer's weight, [out, in].
        weight: Input,
        /// A tensor whose last `in` values are the bias that comes before.
        inner: Input,
        /// What the sum is multiplied by.
        factor: f32,
    },
}

impl TensorSource {
    /// Of the two ways to make a tensor of which layouts of a checkpoint differ, the one whose
    /// tensors are there; itself, where there is one way only.
    #[must_use]
    pub fn resolve(&self, weights: &dyn Weights) -> &Self {
        match self {
            Self::Either(first, second) => {
                let has = |source: &Self| source.inputs().iter().any(|input| weights.has(input));
                let chosen = if !has(first) && has(second) {
                    second
                } else {
                    first
                };
                chosen.resolve(weights)
            }
            _ => self,
        }
    }

    /// The tensors that it needs; of two ways those of the first.
    #[must_use]
    pub fn inputs(&self) -> Vec<&Input> {
        match self {
            Self::Rows(inputs) | Self::Apart { inputs, .. } => inputs.iter().collect(),
            Self::Distances { input, .. }
            | Self::Scaled { input, .. }
            | Self::Part { input, .. } => vec![input],
            Self::Shifted { table, by } => vec![table, by],
            Self::Folded {
                bias,
                weight,
                inner,
                ..
            } => vec![bias, weight, inner],
            Self::Either(first, _) => first.inputs(),
        }
    }
}

/// A tensor of the weights file.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Its name in the table and in the graphs.
    pub name: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The source of its values.
    pub source: TensorSource,
}

/// A plan under construction.
#[derive(Debug, Default)]
pub struct Plan(pub Vec<Planned>);

impl Plan {
    /// Adds a tensor.
    pub fn add(&mut self, name: String, shape: &[usize], source: TensorSource) {
        self.0.push(Planned {
            name,
            shape: shape.to_vec(),
            source,
        });
    }

    /// Adds a tensor that some checkpoints have in parts, one below the other, and some as a whole.
    pub fn either(&mut self, name: String, parts: Vec<Input>, whole: Input) {
        let shape = whole.shape.clone();
        let parts = TensorSource::Rows(parts);
        let whole = TensorSource::Rows(vec![whole]);
        let source = TensorSource::Either(Box::new(parts), Box::new(whole));
        self.add(name, &shape, source);
    }

    /// Adds a tensor as the checkpoint has it.
    pub fn copy(&mut self, name: String, input: Input) {
        let shape = input.shape.clone();
        self.add(name, &shape, TensorSource::Rows(vec![input]));
    }
}

/// Where weights come from.
pub trait Weights {
    /// Whether there is a tensor of this name.
    fn has(&self, input: &Input) -> bool;

    /// Checks that a tensor is there and has its shape.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`] or [`Error::Dtype`].
    fn check(&self, input: &Input) -> Result<(), Error>;

    /// Hands a tensor's values out in order, in pieces of any length.
    ///
    /// # Errors
    /// If the file cannot be read.
    fn stream(
        &self,
        input: &Input,
        take: &mut dyn FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error>;
}

/// The location of each tensor.
#[must_use]
pub fn place(plan: &[Planned]) -> Vec<TensorInfo> {
    place_as(plan, |_| Precision::Fp32.bytes())
}

/// The location of each tensor, by name, in a file with this number of bytes per value.
#[must_use]
pub fn place_as(plan: &[Planned], bytes: impl Fn(&str) -> u64) -> Vec<TensorInfo> {
    let mut end = 0_u64;
    plan.iter()
        .map(|planned| {
            let bytes = bytes(&planned.name)
                * planned
                    .shape
                    .iter()
                    .map(|&length| length as u64)
                    .product::<u64>();
            let offset = end.next_multiple_of(ALIGNMENT);
            end = offset + bytes;
            TensorInfo {
                name: planned.name.clone(),
                shape: planned.shape.clone(),
                offset,
                bytes,
            }
        })
        .collect()
}

/// Where the last tensor ends: the length of a weights file, in bytes.
#[must_use]
pub fn end(tensors: &[TensorInfo]) -> u64 {
    tensors
        .last()
        .map_or(0, |tensor| tensor.offset + tensor.bytes)
}

/// Hashes of a weights file, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashes {
    /// What the weights are known by.
    pub sha256: String,
    /// What they are checked with, whenever they are loaded.
    pub blake3: String,
}

/// Writes the weights file, and returns its hashes.
///
/// # Errors
/// If a tensor is missing or has another shape (checked before anything is written), or a file
/// cannot be read or written.
pub fn write(path: &Path, plan: &[Planned], source: &dyn Weights) -> Result<Hashes, Error> {
    let sources = plan.iter().map(|planned| planned.source.resolve(source));
    for input in sources.flat_map(TensorSource::inputs) {
        source.check(input)?;
    }
    let file = File::create(path).map_err(Error::io(path, "create"))?;
    let mut writer = Writer {
        path,
        file: BufWriter::with_capacity(1 << 20, file),
        hash: Sha256::new(),
        check: blake3::Hasher::new(),
        bytes: Vec::new(),
        length: 0,
    };
    for (planned, placed) in plan.iter().zip(place(plan)) {
        writer.pad(placed.offset)?;
        make(&planned.source, source, &mut writer)?;
        debug_assert_eq!(writer.length, placed.offset + placed.bytes);
    }
    writer.file.flush().map_err(Error::io(path, "write"))?;
    // After a crash, a folder that has its name has all of its weights.
    let file = writer.file.get_ref();
    file.sync_all().map_err(Error::io(path, "write"))?;
    Ok(Hashes {
        sha256: hex(&writer.hash.finalize()),
        blake3: writer.check.finalize().to_hex().to_string(),
    })
}

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

struct Writer<'path> {
    path: &'path Path,
    file: BufWriter<File>,
    hash: Sha256,
    check: blake3::Hasher,
    bytes: Vec<u8>,
    length: u64,
}

impl Writer<'_> {
    fn raw(&mut self) -> Result<(), Error> {
        self.hash.update(&self.bytes);
        self.check.update(&self.bytes);
        self.length += self.bytes.len() as u64;
        self.file
            .write_all(&self.bytes)
            .map_err(Error::io(self.path, "write"))?;
        self.bytes.clear();
        Ok(())
    }

    fn pad(&mut self, offset: u64) -> Result<(), Error> {
        let zeros = offset.saturating_sub(self.length);
        self.bytes
            .resize(usize::try_from(zeros).expect("less than a page"), 0);
        self.raw()
    }

    fn floats(&mut self, values: &[f32]) -> Result<(), Error> {
        self.bytes
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.raw()
    }
}

fn make(recipe: &TensorSource, source: &dyn Weights, writer: &mut Writer<'_>) -> Result<(), Error> {
    match recipe {
        TensorSource::Either(..) => make(recipe.resolve(source), source, writer),
        TensorSource::Rows(inputs) => inputs
            .iter()
            .try_for_each(|input| source.stream(input, &mut |values| writer.floats(values))),
        TensorSource::Apart {
            inputs,
            pairs,
            width,
        } => inputs.iter().enumerate().try_for_each(|(index, input)| {
            if index < *pairs {
                let columns = input.shape.last().copied().unwrap_or(1);
                writer.floats(&apart(&whole(input, source)?, *width, columns))
            } else {
                source.stream(input, &mut |values| writer.floats(values))
            }
        }),
        TensorSource::Distances { input, furthest } => writer.floats(&by_distance(
            &whole(input, source)?,
            &input.shape,
            *furthest,
        )),
        TensorSource::Scaled {
            input,
            factor,
            zero,
        } => {
            let width = input.shape.last().copied().unwrap_or(1).max(1);
            let mut at = 0;
            let mut scaled = Vec::new();
            source.stream(input, &mut |values| {
                scaled.clear();
                scaled.extend(values.iter().enumerate().map(|(index, value)| {
                    if zero.contains(&((at + index) / width)) {
                        0.0
                    } else {
                        value * factor
                    }
                }));
                at += values.len();
                writer.floats(&scaled)
            })
        }
        TensorSource::Part { input, first, rows } => {
            let width = input.shape[1..].iter().product::<usize>();
            let wanted = first * width..(first + rows) * width;
            let mut at = 0;
            source.stream(input, &mut |values| {
                let here = at..at + values.len();
                at = here.end;
                let from = wanted.start.clamp(here.start, here.end) - here.start;
                let to = wanted.end.clamp(here.start, here.end) - here.start;
                writer.floats(&values[from..to])
            })
        }
        TensorSource::Shifted { table, by } => {
            let width = table.shape.last().copied().unwrap_or(1);
            let by = &whole(by, source)?[..width];
            let mut at = 0;
            let mut shifted = Vec::new();
            source.stream(table, &mut |values| {
                shifted.clear();
                shifted.extend((at..).zip(values).map(|(at, value)| value + by[at % width]));
                at += values.len();
                writer.floats(&shifted)
            })
        }
        TensorSource::Folded {
            bias,
            weight,
            inner,
            factor,
        } => writer.floats(&fold([bias, weight, inner], *factor, source)?),
    }
}

/// What a head adds to scores, [heads, 2 * furthest + 1], from that of each bucket, [buckets,
/// heads].
fn by_distance(values: &[f32], shape: &[usize], furthest: usize) -> Vec<f32> {
    let (buckets, heads) = (shape[0], shape[1]);
    let most = i64::try_from(furthest).expect("a checked size");
    let of_head = |head: usize| {
        (-most..=most).map(move |distance| {
            values[relative_bucket(distance, buckets, furthest) * heads + head]
        })
    };
    (0..heads).flat_map(of_head).collect()
}

/// In each head of `width` rows, the even ones before the odd ones.
fn apart(values: &[f32], width: usize, columns: usize) -> Vec<f32> {
    let mut ordered = Vec::with_capacity(values.len());
    for head in values.chunks(width * columns) {
        for parity in [0, 1] {
            let rows = head.chunks(columns).skip(parity).step_by(2);
            ordered.extend(rows.flatten());
        }
    }
    ordered
}

/// `(bias + weight @ inner) * factor`, of the last values of `inner`, summed in f64.
fn fold(
    [bias, weight, inner]: [&Input; 3],
    factor: f32,
    source: &dyn Weights,
) -> Result<Vec<f32>, Error> {
    let inner = whole(inner, source)?;
    let columns = weight.shape.last().copied().unwrap_or(1);
    let inner = &inner[inner.len().saturating_sub(columns)..];
    let mut sums = whole(bias, source)?
        .into_iter()
        .map(f64::from)
        .collect::<Vec<_>>();
    let mut at = 0;
    source.stream(weight, &mut |values| {
        for value in values {
            sums[at / inner.len()] += f64::from(*value) * f64::from(inner[at % inner.len()]);
            at += 1;
        }
        Ok(())
    })?;
    let factor = f64::from(factor);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is intended"
    )]
    Ok(sums.into_iter().map(|sum| (sum * factor) as f32).collect())
}

/// A small tensor as a whole.
fn whole(input: &Input, source: &dyn Weights) -> Result<Vec<f32>, Error> {
    let mut all = Vec::new();
    source.stream(input, &mut |values| {
        all.extend_from_slice(values);
        Ok(())
    })?;
    Ok(all)
}
