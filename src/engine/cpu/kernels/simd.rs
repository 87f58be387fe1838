//! Vector arithmetic that the kernels share: aligned scratch, unaligned loads, and `2^x`, `erf` and
//! the largest magnitude over a vector of any width.
//!
//! The maximum and minimum of floats treat NaN differently on each processor: x86 returns the
//! second operand, whatever the first is, NEON returns NaN, and Rust's own functions return the
//! other operand. No kernel may rely on one of these: NaN must never become a number.

use pulp::Simd;

/// Scratch memory whose start is aligned to a cache line, so that no vector straddles two of them.
#[derive(Default)]
pub struct Scratch {
    lines: Vec<Line>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Scratch {
    /// A slice of at least `len` values, whose content is not defined.
    pub fn take(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0.0; 16]));
        }
        // SAFETY: `Line` is `repr(C)` around 16 f32 with no padding, so the lines are that many f32
        // in a row.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), lines * 16) }
    }
}

/// Loads a vector.
///
/// # Safety
/// `source` must be valid for reading `S::F32_LANES` values.
#[inline(always)]
#[must_use]
pub unsafe fn load<S: Simd>(source: *const f32) -> S::f32s {
    // SAFETY: the caller's promise; any bit pattern is a vector.
    unsafe { source.cast::<S::f32s>().read_unaligned() }
}

/// Stores a vector.
///
/// # Safety
/// `target` must be valid for writing `S::F32_LANES` values.
#[inline(always)]
pub unsafe fn store<S: Simd>(target: *mut f32, value: S::f32s) {
    // SAFETY: the caller's promise.
    unsafe { target.cast::<S::f32s>().write_unaligned(value) }
}

/// The largest magnitude of all values so far, or NaN if one of them is.
///
/// Without their sign, floats are in the order of their bits, infinity above every number and NaN
/// above infinity: so this is a maximum of integers, which is the same on every processor.
#[derive(Clone, Copy)]
pub struct Largest<S: Simd> {
    whole: S::u32s,
    tail: u32,
}

/// All bits of a float but its sign.
const MAGNITUDE: u32 = 0x7fff_ffff;

impl<S: Simd> Largest<S> {
    /// Starts without any value.
    #[inline(always)]
    pub fn new(simd: S) -> Self {
        Self {
            whole: simd.splat_u32s(0),
            tail: 0,
        }
    }

    /// Adds values.
    #[inline(always)]
    pub fn see(&mut self, simd: S, values: &[f32]) {
        let magnitude = simd.splat_u32s(MAGNITUDE);
        let (whole, tail) = S::as_simd_f32s(values);
        for &value in whole {
            let bits = simd.and_u32s(simd.transmute_u32s_f32s(value), magnitude);
            self.whole = simd.max_u32s(self.whole, bits);
        }
        for value in tail {
            self.tail = self.tail.max(value.to_bits() & MAGNITUDE);
        }
    }

    /// The largest magnitude.
    #[inline(always)]
    pub fn magnitude(self, simd: S) -> f32 {
        let mut lanes = [0; 64];
        simd.partial_store_u32s(&mut lanes[..S::F32_LANES], self.whole);
        f32::from_bits(lanes.into_iter().fold(self.tail, u32::max))
    }
}

/// `2^x` of each lane for `x < 127`, to about one unit in the last place; below -126 the result is
/// about 1e-38. `x` must not be NaN, for which the result is not defined.
///
/// `x = n + r` with `|r| <= 1/2`: a polynomial for `2^r` (least squares, reweighted until its error
/// was level at 7.5e-8), and `2^n` from the exponent bits: adding 1.5 * 2^23 + 127 leaves `n + 127`
/// in the lowest bits of the sum.
#[inline(always)]
pub fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const ROUND: f32 = 12_582_912.0 + 127.0;
    let x = simd.max_f32s(x, simd.splat_f32s(-126.0));
    let shifted = simd.add_f32s(x, simd.splat_f32s(ROUND));
    let n = simd.sub_f32s(shifted, simd.splat_f32s(ROUND));
    let r = simd.sub_f32s(x, n);
    let mut p = simd.splat_f32s(0.001_327_646_8);
    for coefficient in [
        0.009_675_541,
        0.055_507_135,
        0.240_221_2,
        0.693_146_94,
        1.000_000_1,
    ] {
        p = simd.mul_add_f32s(p, r, simd.splat_f32s(coefficient));
    }
    let power = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.mul_f32s(p, simd.transmute_f32s_u32s(power))
}

/// `erf(x)` of each lane, to 4e-7: `x P(x^2) / Q(x^2)` on |x| <= 3.925, beyond which it is 1 in
/// single precision. The coefficients are a least-squares fit, reweighted towards the largest error
/// until it was level. NaN gives NaN or a number within +-1, depending on the processor.
#[inline(always)]
pub fn erf<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const P: [f32; 6] = [
        2.030_860_7e-6,
        0.000_287_491_94,
        0.003_876_337_8,
        0.053_084_385,
        0.192_972_85,
        std::f32::consts::FRAC_2_SQRT_PI,
    ];
    const Q: [f32; 6] = [
        3.803_135e-5,
        0.001_189_751_8,
        0.015_188_377,
        0.115_167_58,
        0.504_349_35,
        1.0,
    ];
    let bound = simd.splat_f32s(3.925);
    let x = simd.min_f32s(simd.max_f32s(x, simd.neg_f32s(bound)), bound);
    let t = simd.mul_f32s(x, x);
    let mut p = simd.splat_f32s(P[0]);
    let mut q = simd.splat_f32s(Q[0]);
    for (&a, &b) in P[1..].iter().zip(&Q[1..]) {
        p = simd.mul_add_f32s(p, t, simd.splat_f32s(a));
        q = simd.mul_add_f32s(q, t, simd.splat_f32s(b));
    }
    let one = simd.splat_f32s(1.0);
    let value = simd.div_f32s(simd.mul_f32s(x, p), q);
    simd.min_f32s(simd.max_f32s(value, simd.neg_f32s(one)), one)
}

/// The instruction sets that this processor has, for the tests of the kernels: they differ in how
/// they treat NaN.
#[cfg(test)]
pub(super) fn instruction_sets() -> Vec<pulp::Arch> {
    use pulp::Arch;
    let mut sets = vec![Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        sets.extend(pulp::x86::V3::try_new().map(Arch::V3));
        sets.extend(pulp::x86::V4::try_new().map(Arch::V4));
    }
    #[cfg(target_arch = "aarch64")]
    sets.extend(pulp::aarch64::Neon::try_new().map(Arch::Neon));
    sets
}

#[cfg(test)]
mod tests {
    use pulp::WithSimd;

    use super::*;

    struct LargestOf<'a>(&'a [f32]);

    impl WithSimd for LargestOf<'_> {
        type Output = f32;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            let mut largest = Largest::new(simd);
            // In pieces of two lengths, as of heads of any width.
            for piece in self.0.chunks(21) {
                largest.see(simd, piece);
            }
            largest.magnitude(simd)
        }
    }

    #[test]
    fn the_largest_magnitude_is_that_of_any_lane_and_nan_of_nan() {
        let plain: Vec<f32> = (0..40).map(|at| 0.5 - at as f32 / 80.0).collect();
        for arch in instruction_sets() {
            assert!((arch.dispatch(LargestOf(&plain)) - 0.5).abs() < 1e-9);
            assert!(arch.dispatch(LargestOf(&[])).abs() < 1e-9);
            for at in 0..plain.len() {
                for odd in [7.0, -7.0, f32::MAX, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut values = plain.clone();
                    values[at] = odd;
                    let largest = arch.dispatch(LargestOf(&values));
                    assert_eq!(largest.to_bits(), odd.abs().to_bits(), "{arch:?} {at}");
                    // Neither order of the two hides NaN.
                    for other in [at.saturating_sub(1), (at + 1).min(39)] {
                        values[other] = -f32::NAN;
                        assert!(arch.dispatch(LargestOf(&values)).is_nan(), "{arch:?} {at}");
                    }
                }
            }
        }
    }
}
