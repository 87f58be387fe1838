//! The contact head's part of a block: the kernel behind `seqembed.ContactMap`.
//!
//! Of one head of one sequence, the attention map of the residues (without the special tokens,
//! which softmax goes over, too) is symmetrised, `s = a + a^T`; what its row and column would give
//! on their own is taken off, `s[i, j] - r[i] r[j] / t`, with the sums of rows `r` and of all `t`
//! (the average product correction of Dunn et al., 2008); and a multiple of that is added to the
//! sum of the heads and blocks before. A map is there for one head at a time.
//!
//! A row is computed the same way whatever else is in the batch and however many threads there are.
//! An infinity or NaN in a row of scores makes the row NaN, and so all contacts of the sequence.

use std::cell::RefCell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::attention::{Packed, PositionEncoding};
use super::simd::{Largest, Scratch, exp2, load, store};

/// Rows of a map that are computed at a time.
pub const BAND: usize = 16;

/// Queries that share a load of keys.
const QUERIES: usize = 4;

/// Rows of keys are filled up to a multiple of this, which every vector's width divides.
const LANES: usize = 64;

/// One sequence of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Its tokens, special ones included.
    pub tokens: Range<usize>,
    /// Its residues, of the same count: those that contacts are predicted of.
    pub residues: Range<usize>,
}

impl Sequence {
    /// How many contacts it has: all pairs of residues, in both orders.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.residues.len() * self.residues.len()
    }

    /// Columns of the keys' matrix.
    fn stride(&self) -> usize {
        self.tokens.len().next_multiple_of(LANES)
    }

    /// Numbers that the keys of one head take.
    #[must_use]
    pub fn keys(&self, width: usize) -> usize {
        self.stride() * width
    }

    /// How many bands its map has.
    #[must_use]
    pub fn bands(&self) -> usize {
        self.residues.len().div_ceil(BAND)
    }

    /// The rows of a band.
    #[must_use]
    pub fn band(&self, band: usize) -> Range<usize> {
        band * BAND..((band + 1) * BAND).min(self.residues.len())
    }
}

thread_local! {
    /// Queries and scores, which a thread keeps between calls.
    static WORKSPACE: RefCell<[Scratch; 2]> = RefCell::default();
}

/// Writes the keys of one head, with bias and rotation, as [`Sequence::keys`] numbers: a row for
/// each number of a key, a column for each token.
pub fn gather_keys<P: PositionEncoding>(
    packed: &Packed<'_, P>,
    head: usize,
    sequence: &Sequence,
    keys: &mut [f32],
) {
    let width = packed.hidden / packed.heads;
    let stride = sequence.stride();
    let column = packed.hidden + head * width;
    let bias = &packed.bias[column..column + width];
    let mut key = vec![0.0; width];
    keys.fill(0.0);
    for (position, token) in sequence.tokens.clone().enumerate() {
        let row = &packed.qkv[token * 3 * packed.hidden + column..][..width];
        packed.positions.key(position, row, bias, &mut key);
        for (row, value) in keys.chunks_exact_mut(stride).zip(&key) {
            row[position] = *value;
        }
    }
}

/// Rows `band` of a map, [rows, residues], from the keys that [`gather_keys`] wrote.
pub fn map_rows<P: PositionEncoding>(
    packed: &Packed<'_, P>,
    head: usize,
    sequence: &Sequence,
    keys: &[f32],
    band: Range<usize>,
    map: &mut [f32],
) {
    WORKSPACE.with_borrow_mut(|[queries, scores]| {
        Arch::new().dispatch(Rows {
            packed,
            head,
            sequence,
            keys,
            band,
            map,
            queries,
            scores,
        });
    });
}

struct Rows<'a, 'p, P> {
    packed: &'a Packed<'p, P>,
    head: usize,
    sequence: &'a Sequence,
    keys: &'a [f32],
    band: Range<usize>,
    map: &'a mut [f32],
    queries: &'a mut Scratch,
    scores: &'a mut Scratch,
}

impl<P: PositionEncoding> WithSimd for Rows<'_, '_, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let packed = self.packed;
        let width = packed.hidden / packed.heads;
        let column = self.head * width;
        let bias = &packed.bias[column..column + width];
        let scale = std::f32::consts::LOG2_E / packed.positions.divisor(width);
        let Sequence { tokens, residues } = self.sequence;
        let (length, stride) = (tokens.len(), self.sequence.stride());
        let inside = residues.start - tokens.start..residues.end - tokens.start;
        let queries = &mut self.queries.take(QUERIES * width)[..QUERIES * width];
        let scores = &mut self.scores.take(QUERIES * stride)[..QUERIES * stride];
        for first in self.band.clone().step_by(QUERIES) {
            let count = QUERIES.min(self.band.end - first);
            queries.fill(0.0);
            for (row, query) in queries.chunks_exact_mut(width).enumerate().take(count) {
                let position = inside.start + first + row;
                let token = tokens.start + position;
                let source = &packed.qkv[token * 3 * packed.hidden + column..][..width];
                packed
                    .positions
                    .query(position, source, bias, scale, query, 1);
            }
            score(simd, queries, self.keys, scores);
            for (row, scores) in scores.chunks_exact_mut(stride).enumerate().take(count) {
                softmax(simd, scores, length);
                let at = (first - self.band.start + row) * residues.len();
                self.map[at..at + residues.len()].copy_from_slice(&scores[inside.clone()]);
            }
        }
    }
}

/// The products of [`QUERIES`] queries, one after the other, with all keys: a row for each query.
#[inline(always)]
fn score<S: Simd>(simd: S, queries: &[f32], keys: &[f32], scores: &mut [f32]) {
    let (width, stride) = (queries.len() / QUERIES, scores.len() / QUERIES);
    let lanes = S::F32_LANES;
    debug_assert!(LANES.is_multiple_of(lanes) && keys.len() >= width * stride);
    // Two vectors of keys at a time.
    for at in (0..stride).step_by(2 * lanes) {
        let mut sums = [[simd.splat_f32s(0.0); 2]; QUERIES];
        for d in 0..width {
            // SAFETY: `stride` is a multiple of two vectors, and `keys` has `width` such rows.
            let keys = unsafe {
                let row = keys.as_ptr().add(d * stride + at);
                [load::<S>(row), load::<S>(row.add(lanes))]
            };
            for (row, sums) in sums.iter_mut().enumerate() {
                let query = simd.splat_f32s(queries[row * width + d]);
                for (sum, key) in sums.iter_mut().zip(keys) {
                    *sum = simd.mul_add_f32s(query, key, *sum);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: `scores` has a row of `stride` numbers for each query.
                unsafe {
                    store::<S>(scores.as_mut_ptr().add(row * stride + at + v * lanes), sum);
                }
            }
        }
    }
}

/// Turns the first `length` scores, in units of ln 2, into weights whose sum is 1.
#[inline(always)]
fn softmax<S: Simd>(simd: S, scores: &mut [f32], length: usize) {
    let mut largest = Largest::new(simd);
    largest.see(simd, &scores[..length]);
    // Differences of larger ones might overflow.
    let largest = largest.magnitude(simd);
    if largest.is_nan() || largest >= f32::MAX / 4.0 {
        scores.fill(f32::NAN);
        return;
    }
    scores[length..].fill(f32::MIN / 4.0);
    let (vectors, rest) = S::as_mut_simd_f32s(scores);
    debug_assert!(rest.is_empty());
    let mut highest = simd.splat_f32s(f32::MIN);
    for &mut score in &mut *vectors {
        highest = simd.max_f32s(highest, score);
    }
    let highest = simd.splat_f32s(simd.reduce_max_f32s(highest));
    let mut total = simd.splat_f32s(0.0);
    for score in &mut *vectors {
        *score = exp2(simd, simd.sub_f32s(*score, highest));
        total = simd.add_f32s(total, *score);
    }
    let inverse = simd.splat_f32s(1.0 / simd.reduce_sum_f32s(total));
    for score in vectors {
        *score = simd.mul_f32s(*score, inverse);
    }
}

/// The sums of rows `band` of a symmetrised map, from the whole map, [residues, residues].
pub fn row_sums(map: &[f32], residues: usize, band: Range<usize>, sums: &mut [f32]) {
    sums.fill(0.0);
    for (sum, row) in sums.iter_mut().zip(band.clone()) {
        *sum = map[row * residues..(row + 1) * residues].iter().sum();
    }
    // Of the columns, those of a band are beside each other.
    for row in map.chunks_exact(residues) {
        for (sum, value) in sums.iter_mut().zip(&row[band.clone()]) {
            *sum += value;
        }
    }
}

/// Adds `weight` times rows `band` of a symmetrised and corrected map to those of `sum`, [rows,
/// residues], from the whole map and the sums of all its rows.
pub fn add_rows(map: &[f32], sums: &[f32], weight: f32, band: Range<usize>, sum: &mut [f32]) {
    let residues = sums.len();
    // A product of both sums, whose order does not matter: contacts are symmetric to the bit.
    let inverse = 1.0 / sums.iter().sum::<f32>();
    for first in (0..residues).step_by(BAND) {
        let columns = first..(first + BAND).min(residues);
        for (row, sum) in band.clone().zip(sum.chunks_exact_mut(residues)) {
            let values = &map[row * residues..(row + 1) * residues];
            for column in columns.clone() {
                let both = values[column] + map[column * residues + row];
                sum[column] += weight * (both - sums[row] * sums[column] * inverse);
            }
        }
    }
}
