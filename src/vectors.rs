//! Vectors on their way from an engine to a file: shared, not copied, and in the precision in which
//! they were computed.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt as _;

/// The numbers that an engine returns for a batch, row after row.
pub enum Floats {
    /// In 32 bits.
    Single(Vec<f32>),
    /// In 16 bits, in whatever memory the engine put them.
    Half(Box<dyn AsRef<[f16]> + Send + Sync>),
}

/// Consecutive numbers in either precision.
#[derive(Clone, Copy)]
pub enum Stretch<'a> {
    /// In 32 bits.
    Single(&'a [f32]),
    /// In 16 bits.
    Half(&'a [f16]),
}

impl Floats {
    /// How many numbers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Floats::Single(values) => values.len(),
            Floats::Half(values) => (**values).as_ref().len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers with these indices.
    #[must_use]
    pub fn stretch(&self, range: Range<usize>) -> Stretch<'_> {
        match self {
            Floats::Single(values) => Stretch::Single(&values[range]),
            Floats::Half(values) => Stretch::Half(&(**values).as_ref()[range]),
        }
    }

    /// The numbers with these indices in 32 bits.
    #[must_use]
    pub fn singles(&self, range: Range<usize>) -> Cow<'_, [f32]> {
        match self.stretch(range) {
            Stretch::Single(values) => Cow::Borrowed(values),
            Stretch::Half(values) => Cow::Owned(wide(values)),
        }
    }

    /// All numbers in 32 bits.
    #[must_use]
    pub fn into_singles(self) -> Vec<f32> {
        match self {
            Floats::Single(values) => values,
            Floats::Half(values) => wide((*values).as_ref()),
        }
    }

    /// Whether none of the numbers is infinite or NaN.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        /// The exponent of what is infinite or NaN.
        const NO_NUMBER: u16 = 0x7c00;
        // Blocks without a way out in the middle are what the compiler turns into vector
        // instructions.
        match self.stretch(0..self.len()) {
            Stretch::Single(values) => values
                .chunks(256)
                .all(|block| block.iter().fold(true, |all, x| all & x.is_finite())),
            Stretch::Half(values) => values.chunks(512).all(|block| {
                let finite = |x: &f16| x.to_bits() & NO_NUMBER != NO_NUMBER;
                block.iter().fold(true, |all, x| all & finite(x))
            }),
        }
    }
}

impl From<Vec<f32>> for Floats {
    fn from(values: Vec<f32>) -> Self {
        Floats::Single(values)
    }
}

impl fmt::Debug for Floats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = match self {
            Floats::Single(_) => 32,
            Floats::Half(_) => 16,
        };
        write!(f, "{} numbers in {bits} bits", self.len())
    }
}

fn wide(values: &[f16]) -> Vec<f32> {
    let mut wide = vec![0.0; values.len()];
    values.convert_to_f32_slice(&mut wide);
    wide
}

/// Numbers in a row, in one or more pieces that share what an engine returned. As long as one of
/// them is there, all numbers of its batch stay in memory.
#[derive(Debug, Clone, Default)]
pub struct Vectors {
    parts: VecDeque<Part>,
    len: usize,
}

#[derive(Debug, Clone)]
struct Part {
    floats: Arc<Floats>,
    range: Range<usize>,
}

impl Vectors {
    /// How many numbers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a part of what an engine returned.
    pub fn share(&mut self, floats: &Arc<Floats>, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        self.len += range.len();
        if let Some(last) = self.parts.back_mut()
            && Arc::ptr_eq(&last.floats, floats)
            && last.range.end == range.start
        {
            last.range.end = range.end;
            return;
        }
        let floats = Arc::clone(floats);
        self.parts.push_back(Part { floats, range });
    }

    /// Appends copies of numbers.
    pub fn extend_from_slice(&mut self, values: &[f32]) {
        if values.is_empty() {
            return;
        }
        self.len += values.len();
        if let Some(Part { floats, range }) = self.parts.back_mut()
            && let Some(Floats::Single(own)) = Arc::get_mut(floats)
            && own.len() == range.end
        {
            own.extend_from_slice(values);
            range.end = own.len();
            return;
        }
        self.parts.push_back(Part {
            floats: Arc::new(Floats::Single(values.to_vec())),
            range: 0..values.len(),
        });
    }

    /// Appends others.
    pub fn append(&mut self, mut others: Vectors) {
        self.len += others.len;
        self.parts.append(&mut others.parts);
    }

    /// Takes the first `count` numbers, of which there are at least so many.
    #[must_use]
    pub fn split_to(&mut self, count: usize) -> Vectors {
        let mut taken = Vectors::default();
        while taken.len < count
            && let Some(mut part) = self.parts.pop_front()
        {
            let here = part.range.len().min(count - taken.len);
            if here < part.range.len() {
                let mut rest = part.clone();
                rest.range.start += here;
                part.range.end = rest.range.start;
                self.parts.push_front(rest);
            }
            taken.len += here;
            taken.parts.push_back(part);
        }
        self.len -= taken.len;
        taken
    }

    /// Of vectors `count * width` wide, the parts of each column, `width` wide.
    #[must_use]
    pub fn columns(mut self, width: usize, count: usize) -> Vec<Vectors> {
        let mut columns = vec![Vectors::default(); count];
        while !self.is_empty() {
            for column in &mut columns {
                column.append(self.split_to(width));
            }
        }
        columns
    }

    /// The pieces, in order.
    pub fn stretches(&self) -> impl Iterator<Item = Stretch<'_>> {
        let parts = self.parts.iter();
        parts.map(|part| part.floats.stretch(part.range.clone()))
    }

    /// All numbers in 32 bits.
    #[must_use]
    pub fn to_singles(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.len);
        for part in &self.parts {
            values.extend_from_slice(&part.floats.singles(part.range.clone()));
        }
        values
    }

    /// Whether all numbers have 16 bits, and there is one.
    #[must_use]
    pub fn are_halves(&self) -> bool {
        let is_half = |stretch| matches!(stretch, Stretch::Half(_));
        !self.is_empty() && self.stretches().all(is_half)
    }

    /// Bytes of the numbers in their own precision.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let bytes = self.stretches().map(|stretch| match stretch {
            Stretch::Single(values) => size_of_val(values),
            Stretch::Half(values) => size_of_val(values),
        });
        bytes.sum()
    }

    /// Copies the numbers, so that the batches that they came with can go.
    pub fn detach(&mut self) {
        if self.is_empty() {
            return;
        }
        let floats = if self.are_halves() {
            let mut values: Vec<f16> = Vec::with_capacity(self.len);
            for stretch in self.stretches() {
                if let Stretch::Half(part) = stretch {
                    values.extend_from_slice(part);
                }
            }
            Floats::Half(Box::new(values))
        } else {
            Floats::Single(self.to_singles())
        };
        self.parts = VecDeque::from([Part {
            floats: Arc::new(floats),
            range: 0..self.len,
        }]);
    }
}

impl From<Vec<f32>> for Vectors {
    fn from(values: Vec<f32>) -> Self {
        let len = values.len();
        let mut vectors = Vectors::default();
        vectors.share(&Arc::new(Floats::Single(values)), 0..len);
        vectors
    }
}

#[cfg(test)]
// The numbers are whole.
#[allow(clippy::float_cmp)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_keep_their_order_however_they_are_shared_and_cut(
            parts in prop::collection::vec((0..9_usize, any::<bool>(), any::<bool>()), 0..12),
            cuts in prop::collection::vec(0..9_usize, 0..12),
            detached: bool,
        ) {
            let mut next = 0_u16;
            let mut expected: Vec<f32> = Vec::new();
            let mut vectors = Vectors::default();
            for (count, is_half, is_shared) in parts {
                let values: Vec<f32> = (0..count + 2).map(|_| { next += 1; f32::from(next) }).collect();
                if is_shared {
                    let floats = if is_half {
                        let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
                        Floats::Half(Box::new(halves))
                    } else {
                        Floats::Single(values.clone())
                    };
                    vectors.share(&Arc::new(floats), 1..1 + count);
                    expected.extend(&values[1..=count]);
                } else {
                    vectors.extend_from_slice(&values);
                    expected.extend(values);
                }
            }
            let mut found = Vec::new();
            for cut in cuts {
                let cut = cut.min(vectors.len());
                let mut front = vectors.split_to(cut);
                prop_assert_eq!(front.len(), cut);
                if detached {
                    front.detach();
                }
                found.extend(front.to_singles());
            }
            found.extend(vectors.to_singles());
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn one_bad_number_is_found_anywhere() {
        for at in [0, 255, 256, 999] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![1.0; 1000];
                assert!(Floats::from(values.clone()).is_finite());
                values[at] = bad;
                let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
                assert!(!Floats::from(values).is_finite());
                assert!(!Floats::Half(Box::new(halves)).is_finite());
            }
        }
        let halves = [f16::MAX, f16::MIN, f16::ZERO, f16::NEG_ZERO];
        assert!(Floats::Half(Box::new(halves)).is_finite());
    }
}
