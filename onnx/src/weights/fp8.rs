//! 8-bit floats: e4m3, a sign, 4 bits of exponent and 3 of fraction (Micikevicius et al. 2022, "FP8
//! formats for deep learning"). From 2^-6 to 448 they have 4 bits of precision, down to 2^-9 fewer;
//! there is no infinity.
//!
//! Scales are powers of two, and the same for all models: over 15 of them the format loses nothing.

/// The largest number.
pub const MOST: f32 = 448.0;

/// By how much weights are larger: those up to 28 fit, and those from a thousandth on have full
/// precision.
pub const WEIGHT_SCALE: f32 = 16.0;

/// The same for what is handed on between the two dense layers of a feed-forward layer, which is
/// smaller: up to 896 fits, and what lies below a thirty-second counts for little beside the rest.
pub const ACTIVATION_SCALE: f32 = 0.5;

/// The order in which a dense layer hands on each 16 columns of 8 bits: as tensor cores leave them,
/// so that they are four in a row in one thread. The weights of the layer behind it stand in the
/// same order.
pub const ORDER: [usize; 16] = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15];

/// The nearest e4m3 value, with ties to even. NaN, and values beyond the largest number, become
/// NaN.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the numbers are small, and not negative"
)]
pub fn encode(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let size = x.abs();
    let code = if size.is_nan() || size > MOST {
        0x7f
    } else if size < 1.0 / 64.0 {
        // Without a leading one: steps of 2^-9. The eighth step is the first number that has one.
        (size * 512.0).round_ties_even() as u8
    } else {
        // Three bits of the fraction stay, and the exponent's bias goes from 127 to 7.
        let bits = size.to_bits();
        let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
        ((rounded >> 20) - (120 << 3)) as u8
    };
    sign | code
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// By the format's definition.
    fn decode(code: u8) -> f32 {
        let fraction = f32::from(code & 7) / 8.0;
        let size = match code >> 3 & 15 {
            15 if code & 7 == 7 => f32::NAN,
            0 => fraction / 64.0,
            exponent => (1.0 + fraction) * 2_f32.powi(i32::from(exponent) - 7),
        };
        if code & 0x80 == 0 { size } else { -size }
    }

    #[test]
    fn every_code_is_its_number_and_what_lies_beyond_is_none() {
        for code in 0..=u8::MAX {
            let number = decode(code);
            assert!(encode(number) == code || number.is_nan(), "{code:#x}");
        }
        assert_eq!(decode(0x7e).to_bits(), MOST.to_bits());
        for none in [f32::NAN, f32::INFINITY, 449.0, -1e9] {
            assert!(decode(encode(none)).is_nan());
        }
    }

    #[test]
    fn no_other_code_is_nearer() {
        let codes: Vec<(u8, f64)> = (0..=u8::MAX)
            .map(|code| (code, f64::from(decode(code))))
            .filter(|(_, number)| !number.is_nan())
            .collect();
        for bits in 0..=u16::MAX {
            let x = f16::from_bits(bits).to_f32();
            if x.is_nan() || x.abs() > MOST {
                continue;
            }
            let code = encode(x);
            let off = |number: f64| (number - f64::from(x)).abs();
            let own = f64::from(decode(code));
            for &(other, number) in &codes {
                // Of two that are as near, the even one.
                let good = off(own) < off(number)
                    || code == other
                    || off(own) <= off(number) && code & 1 == 0;
                assert!(good, "{x}: {code:#x} or {other:#x}");
            }
        }
    }

    #[test]
    fn the_order_has_every_column_once() {
        let mut columns = ORDER;
        columns.sort_unstable();
        assert!(columns.into_iter().eq(0..16));
    }
}
