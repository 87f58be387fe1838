//! The kernels that work row by row: layer norm with residual, bias with GELU, gated GELU, and
//! pooling over ranges of rows.

use pulp::{Arch, Simd, WithSimd};

use super::simd::{erf, load, store};
use crate::pooling::larger_or_nan;

/// `sum = x + skip + bias` and `y = LayerNorm(sum)`, for rows of `gamma.len()` values.
pub struct SkipLayerNorm<'a> {
    /// [rows, hidden].
    pub x: &'a [f32],
    /// [rows, hidden].
    pub skip: &'a [f32],
    /// Scale, [hidden].
    pub gamma: &'a [f32],
    /// Shift, [hidden].
    pub beta: &'a [f32],
    /// Bias of the dense layer that produced `x`, [hidden].
    pub bias: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
    /// [rows, hidden].
    pub y: &'a mut [f32],
    /// [rows, hidden], when the sum is used again.
    pub sum: Option<&'a mut [f32]>,
}

impl SkipLayerNorm<'_> {
    /// Runs the kernel on all rows, in parallel.
    pub fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for SkipLayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let hidden = self.gamma.len();
        assert!(
            self.beta.len() == hidden
                && self.bias.len() == hidden
                && self.x.len() == self.skip.len(),
            "inputs of SkipLayerNorm differ in shape"
        );
        let (bias, bias_tail) = S::as_simd_f32s(self.bias);
        let (gamma, gamma_tail) = S::as_simd_f32s(self.gamma);
        let (beta, beta_tail) = S::as_simd_f32s(self.beta);
        let mut sums = self.sum;
        for (at, ((x, skip), y)) in self
            .x
            .chunks_exact(hidden)
            .zip(self.skip.chunks_exact(hidden))
            .zip(self.y.chunks_exact_mut(hidden))
            .enumerate()
        {
            let (x, x_tail) = S::as_simd_f32s(x);
            let (skip, skip_tail) = S::as_simd_f32s(skip);
            let (y, y_tail) = S::as_mut_simd_f32s(y);
            let mut total = simd.splat_f32s(0.0);
            let mut total_tail = 0.0;
            for i in 0..x.len() {
                let value = simd.add_f32s(simd.add_f32s(x[i], skip[i]), bias[i]);
                total = simd.add_f32s(total, value);
                y[i] = value;
            }
            for i in 0..x_tail.len() {
                let value = x_tail[i] + skip_tail[i] + bias_tail[i];
                total_tail += value;
                y_tail[i] = value;
            }
            if let Some(sums) = &mut sums {
                let (sum, sum_tail) =
                    S::as_mut_simd_f32s(&mut sums[at * hidden..(at + 1) * hidden]);
                sum.copy_from_slice(y);
                sum_tail.copy_from_slice(y_tail);
            }
            let mean = (simd.reduce_sum_f32s(total) + total_tail) / hidden as f32;
            let mean_vector = simd.splat_f32s(mean);
            let mut squares = simd.splat_f32s(0.0);
            let mut squares_tail = 0.0;
            for value in y.iter() {
                let difference = simd.sub_f32s(*value, mean_vector);
                squares = simd.mul_add_f32s(difference, difference, squares);
            }
            for value in y_tail.iter() {
                squares_tail += (value - mean) * (value - mean);
            }
            let variance = (simd.reduce_sum_f32s(squares) + squares_tail) / hidden as f32;
            // The inverse of a variance that overflowed is 0, and the whole row would be `beta`:
            // the overflow would go unnoticed.
            let inverse = if variance < f32::INFINITY {
                1.0 / (variance + self.epsilon).sqrt()
            } else {
                f32::NAN
            };
            let inverse_vector = simd.splat_f32s(inverse);
            for i in 0..y.len() {
                let normal = simd.mul_f32s(simd.sub_f32s(y[i], mean_vector), inverse_vector);
                y[i] = simd.mul_add_f32s(normal, gamma[i], beta[i]);
            }
            for i in 0..y_tail.len() {
                y_tail[i] = (y_tail[i] - mean) * inverse * gamma_tail[i] + beta_tail[i];
            }
        }
    }
}

/// `y = gelu(x + bias)` with the exact (erf) GELU, for rows of `bias.len()` values. `x` and `y` may
/// be the same memory.
pub struct BiasGelu<'a> {
    /// [rows, width].
    pub x: *const f32,
    /// [width].
    pub bias: &'a [f32],
    /// [rows, width].
    pub y: *mut f32,
    /// How many rows.
    pub rows: usize,
}

impl BiasGelu<'_> {
    /// Runs the kernel on all rows, in parallel.
    ///
    /// # Safety
    /// `x` must be valid for reading and `y` for writing `rows * bias.len()` values, and they are
    /// the same memory or do not overlap.
    pub unsafe fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for BiasGelu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.bias.len();
        let whole = width - width % S::F32_LANES;
        for row in 0..self.rows {
            // SAFETY: the promise of `run`; within a row every value is read before it is written.
            unsafe {
                let x = self.x.add(row * width);
                let y = self.y.add(row * width);
                for i in (0..whole).step_by(S::F32_LANES) {
                    let bias = load::<S>(self.bias.as_ptr().add(i));
                    let value = simd.add_f32s(load::<S>(x.add(i)), bias);
                    store::<S>(y.add(i), gelu(simd, value));
                }
                if whole < width {
                    let tail = width - whole;
                    let x = std::slice::from_raw_parts(x.add(whole), tail);
                    let value = simd.add_f32s(
                        simd.partial_load_f32s(x),
                        simd.partial_load_f32s(&self.bias[whole..]),
                    );
                    let y = std::slice::from_raw_parts_mut(y.add(whole), tail);
                    simd.partial_store_f32s(y, gelu(simd, value));
                }
            }
        }
    }
}

/// `y = gelu(left) * right` with the exact (erf) GELU, where a row of `x` is `left` followed by
/// `right` (Shazeer 2020, "GLU Variants Improve Transformer").
pub struct Geglu<'a> {
    /// [rows, 2 * width].
    pub x: &'a [f32],
    /// How wide a half is.
    pub width: usize,
    /// [rows, width].
    pub y: &'a mut [f32],
}

impl Geglu<'_> {
    /// Runs the kernel on all rows, in parallel.
    pub fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for Geglu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (x, y) in self
            .x
            .chunks_exact(2 * self.width)
            .zip(self.y.chunks_exact_mut(self.width))
        {
            let (left, right) = x.split_at(self.width);
            let (left, left_tail) = S::as_simd_f32s(left);
            let (right, right_tail) = S::as_simd_f32s(right);
            let (y, y_tail) = S::as_mut_simd_f32s(y);
            for ((y, left), right) in y.iter_mut().zip(left).zip(right) {
                *y = simd.mul_f32s(gelu(simd, *left), *right);
            }
            if !y_tail.is_empty() {
                let left = simd.partial_load_f32s(left_tail);
                let right = simd.partial_load_f32s(right_tail);
                simd.partial_store_f32s(y_tail, simd.mul_f32s(gelu(simd, left), right));
            }
        }
    }
}

/// NaN stays NaN whatever `erf` returns, because that is multiplied by `x`; infinity stays
/// infinite, and minus infinity becomes NaN.
#[inline(always)]
fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let e = erf(
        simd,
        simd.mul_f32s(x, simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2)),
    );
    let half = simd.mul_f32s(x, simd.splat_f32s(0.5));
    simd.mul_add_f32s(half, e, half)
}

/// How a range of rows is pooled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// The arithmetic mean of each column.
    Mean,
    /// The largest value of each column.
    Max,
}

/// Pools rows `start..end` of `tokens` [rows, hidden] into `pooled` [hidden]. An empty range yields
/// NaN.
pub fn pool(
    how: Pool,
    tokens: &[f32],
    hidden: usize,
    start: usize,
    end: usize,
    pooled: &mut [f32],
) {
    if start >= end {
        pooled.fill(f32::NAN);
        return;
    }
    let rows = &tokens[start * hidden..end * hidden];
    match how {
        Pool::Mean => {
            // Long sequences are summed in blocks, so that rounding does not grow with the length.
            pooled.fill(0.0);
            let mut part = vec![0.0_f32; hidden];
            for block in rows.chunks(64 * hidden) {
                part.fill(0.0);
                for row in block.chunks_exact(hidden) {
                    part.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                }
                pooled.iter_mut().zip(&part).for_each(|(sum, x)| *sum += x);
            }
            let count = (end - start) as f32;
            for sum in pooled {
                *sum /= count;
            }
        }
        Pool::Max => {
            pooled.copy_from_slice(&rows[..hidden]);
            for row in rows.chunks_exact(hidden) {
                pooled
                    .iter_mut()
                    .zip(row)
                    .for_each(|(best, x)| *best = larger_or_nan(*best, *x));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::kernels::simd::instruction_sets;

    /// Wide enough for whole vectors of each instruction set and a rest of them.
    const WIDTH: usize = 39;

    const ODD: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

    fn rows() -> Vec<f32> {
        (0..3 * WIDTH)
            .map(|at| (at * 37 % 101) as f32 / 50.0 - 1.0)
            .collect()
    }

    /// Asserts that of three rows the one in the middle has a value that is no number, and the
    /// others are those expected to the bit.
    #[track_caller]
    fn assert_middle(found: &[f32], expected: &[f32], width: usize, what: &str) {
        let middle = width..2 * width;
        assert!(
            found[middle.clone()].iter().any(|x| !x.is_finite()),
            "{what}: {:?}",
            &found[middle]
        );
        for at in [0, 2] {
            let bits = |values: &[f32]| -> Vec<u32> {
                let row = &values[at * width..(at + 1) * width];
                row.iter().map(|x| x.to_bits()).collect()
            };
            assert_eq!(bits(found), bits(expected), "{what}: row {at}");
        }
    }

    #[test]
    fn no_kernel_makes_a_number_of_what_is_none() {
        let clean = rows();
        let ones = [1.0; WIDTH];
        for arch in instruction_sets() {
            let norm = |x: &[f32], skip: &[f32]| {
                let mut y = vec![0.0; 3 * WIDTH];
                arch.dispatch(SkipLayerNorm {
                    x,
                    skip,
                    gamma: &ones,
                    beta: &ones,
                    bias: &ones,
                    epsilon: 1e-5,
                    y: &mut y,
                    sum: None,
                });
                y
            };
            let bias_gelu = |x: &[f32]| {
                let mut y = vec![0.0; 3 * WIDTH];
                arch.dispatch(BiasGelu {
                    x: x.as_ptr(),
                    bias: &ones,
                    y: y.as_mut_ptr(),
                    rows: 3,
                });
                y
            };
            let geglu = |left: &[f32], right: &[f32]| {
                let halves = left.chunks(WIDTH).zip(right.chunks(WIDTH));
                let x: Vec<f32> = halves
                    .flat_map(|(left, right)| [left, right].concat())
                    .collect();
                let mut y = vec![0.0; 3 * WIDTH];
                arch.dispatch(Geglu {
                    x: &x,
                    width: WIDTH,
                    y: &mut y,
                });
                y
            };
            for at in WIDTH..2 * WIDTH {
                for odd in ODD {
                    let mut x = clean.clone();
                    x[at] = odd;
                    let what = format!("{arch:?}, {odd} at {at}");
                    let expected = norm(&clean, &clean);
                    assert_middle(&norm(&x, &clean), &expected, WIDTH, &what);
                    assert_middle(&norm(&clean, &x), &expected, WIDTH, &what);
                    assert_middle(&bias_gelu(&x), &bias_gelu(&clean), WIDTH, &what);
                    let expected = geglu(&clean, &clean);
                    assert_middle(&geglu(&x, &clean), &expected, WIDTH, &what);
                    assert_middle(&geglu(&clean, &x), &expected, WIDTH, &what);
                }
                // Numbers, but their squares are too large.
                let mut x = clean.clone();
                x[at] = -1e25;
                let what = format!("{arch:?}, overflow at {at}");
                assert_middle(&norm(&x, &clean), &norm(&clean, &clean), WIDTH, &what);
            }
        }
    }

    #[test]
    fn no_pooling_makes_a_number_of_what_is_none() {
        for how in [Pool::Mean, Pool::Max] {
            for at in 0..3 * WIDTH {
                for odd in ODD {
                    let mut tokens = rows();
                    tokens[at] = odd;
                    let mut pooled = [0.0; WIDTH];
                    pool(how, &tokens, WIDTH, 0, 3, &mut pooled);
                    for (column, value) in pooled.iter().enumerate() {
                        let is_hit = column == at % WIDTH;
                        assert_eq!(!value.is_finite(), is_hit, "{how:?} {odd} at {at}");
                    }
                }
            }
        }
    }
}
