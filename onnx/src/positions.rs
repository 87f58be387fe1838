//! Numbers that encode positions: rotary frequencies, `ALiBi`'s slopes, and the buckets of T5's
//! distances.

/// The rotary frequencies of a head, `base^(-2i/width)` for i < width/2, rounded where `PyTorch`
/// rounds.
#[must_use]
pub fn rotary_frequencies(width: usize, base: f32) -> Vec<f32> {
    (0..width / 2)
        .map(|index| {
            let exponent = (2 * index) as f32 / width as f32;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "rounding to f32 is intended"
            )]
            let power = f64::from(base).powf(f64::from(exponent)) as f32;
            1.0 / power
        })
        .collect()
}

/// A positive slope for each head (Press et al. 2022, and their rule for numbers that are no power
/// of two: the slopes of the next smaller power, then every second one of the next larger power's).
#[must_use]
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let of_power = |power: usize| {
        let first = -8.0 / power as f64;
        (1..=power).map(move |head| (first * head as f64).exp2())
    };
    let smaller = if heads.is_power_of_two() {
        heads
    } else {
        heads.next_power_of_two() / 2
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is intended"
    )]
    of_power(smaller)
        .chain(of_power(2 * smaller).step_by(2))
        .take(heads)
        .map(|slope| slope as f32)
        .collect()
}

/// The bucket of a distance, the key's position less the query's (Raffel et al. 2020, in both
/// directions): half of the buckets are for each direction, of which the first half is for a
/// distance each, and the others for ranges that grow up to `furthest`. All distances from there on
/// are in the last bucket.
///
/// `buckets` is at least 4, and `furthest` more than a quarter of it.
#[must_use]
pub fn relative_bucket(distance: i64, buckets: usize, furthest: usize) -> usize {
    let half = buckets / 2;
    let first = if distance > 0 { half } else { 0 };
    let far = usize::try_from(distance.unsigned_abs()).unwrap_or(usize::MAX);
    let exact = half / 2;
    if far < exact {
        return first + far;
    }
    if far >= furthest {
        return first + half - 1;
    }
    let ratio = |distance: usize| (distance as f64 / exact as f64).ln();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rounded down on purpose, and neither negative nor large"
    )]
    let range = (ratio(far) / ratio(furthest) * (half - exact) as f64) as usize;
    first + (exact + range).min(half - 1)
}
