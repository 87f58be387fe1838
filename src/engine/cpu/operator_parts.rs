//! What the operators share: their inputs and outputs, the sequences of a batch, and tensors that
//! several threads write to.

use ort::operator::{ComputeContext, KernelContext};
use ort::value::{ValueRef, ValueRefMut};

pub(super) fn fault(message: impl Into<String>) -> ort::Error {
    ort::Error::new(message.into())
}

pub(super) fn input(context: &ComputeContext, index: usize) -> ort::Result<ValueRef<'_>> {
    context
        .input(index)?
        .ok_or_else(|| fault(format!("input {index} is missing")))
}

pub(super) fn output(
    context: &ComputeContext,
    index: usize,
    shape: [usize; 2],
) -> ort::Result<ValueRefMut<'_>> {
    context
        .output(index, shape)?
        .ok_or_else(|| fault(format!("output {index} is missing")))
}

/// The shape of a matrix.
pub(super) fn matrix(shape: &[i64]) -> ort::Result<[usize; 2]> {
    match *shape {
        [rows, columns] => Ok([
            usize::try_from(rows).unwrap_or(0),
            usize::try_from(columns).unwrap_or(0),
        ]),
        _ => Err(fault(format!("expected a matrix, got shape {shape:?}"))),
    }
}

/// A position from the batch, checked to be within it.
pub(super) fn bounded(value: i32, rows: usize) -> ort::Result<usize> {
    usize::try_from(value)
        .ok()
        .filter(|at| *at <= rows)
        .ok_or_else(|| fault(format!("position {value} lies outside of {rows} tokens")))
}

/// The attribute `num_heads` of the operator `name`.
pub(super) fn heads_of(attributes: &KernelContext<'_>, name: &str) -> ort::Result<usize> {
    attributes
        .get::<i64>("num_heads")
        .and_then(|heads| usize::try_from(heads).ok())
        .filter(|heads| *heads > 0)
        .ok_or_else(|| fault(format!("{name} needs num_heads")))
}

/// The sequences that an attention operator works on.
pub(super) struct Sequences {
    /// Rows of the input.
    pub(super) tokens: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    /// Start of each sequence, and the end of the last one.
    pub(super) starts: Vec<usize>,
}

impl Sequences {
    /// From the packed product (input 0) and the starts (input `starts`), checked against each
    /// other.
    pub(super) fn of(context: &ComputeContext, starts: usize, heads: usize) -> ort::Result<Self> {
        let (qkv, starts) = (input(context, 0)?, input(context, starts)?);
        let (shape, _) = qkv.try_extract_tensor::<f32>()?;
        let (_, starts) = starts.try_extract_tensor::<i32>()?;
        let [tokens, width] = matrix(shape)?;
        let hidden = width / 3;
        if width % 3 != 0 || hidden % heads != 0 {
            return Err(fault(format!(
                "{heads} heads do not fit a width of {width}"
            )));
        }
        let starts = starts
            .iter()
            .map(|&start| bounded(start, tokens))
            .collect::<ort::Result<Vec<_>>>()?;
        if starts.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err(fault("sequence_starts must ascend"));
        }
        Ok(Self {
            tokens,
            hidden,
            heads,
            starts,
        })
    }

    /// How many tokens the longest has.
    pub(super) fn longest(&self) -> usize {
        let lengths = self.starts.windows(2).map(|pair| pair[1] - pair[0]);
        lengths.max().unwrap_or(0)
    }
}

/// A tensor that several threads write to, each to a part of its own.
#[derive(Clone, Copy)]
pub(super) struct Target(pub(super) *mut f32);
// SAFETY: every task writes to rows or columns that no other task touches.
unsafe impl Sync for Target {}
// SAFETY: as above.
unsafe impl Send for Target {}

impl Target {
    pub(super) fn of(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// `length` values from `first` on, to write.
    ///
    /// # Safety
    /// The values must exist, and no other task may use them.
    pub(super) unsafe fn part<'a>(self, first: usize, length: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(first), length) }
    }

    /// `length` values from `first` on, to read.
    ///
    /// # Safety
    /// The values must exist, and no task may write to them meanwhile.
    pub(super) unsafe fn shared<'a>(self, first: usize, length: usize) -> &'a [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.0.add(first), length) }
    }

    /// Rows `from..to` of a matrix of `width` columns.
    ///
    /// # Safety
    /// The rows must exist, and no other task may use them.
    pub(super) unsafe fn rows<'a>(self, from: usize, to: usize, width: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(from * width), (to - from) * width) }
    }
}
