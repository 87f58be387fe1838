//! A contig in chunks of one size that overlap evenly, as `VirNucPro` cuts it.

use std::ops::Range;

/// The chunks of a contig of `length` bases: none when it is empty.
///
/// There are as few as cover the contig. What they cover twice is spread over the steps between
/// them, the first steps taking a base more where it can't be spread evenly. Where that would leave
/// more than one base for a step, the last chunk is shorter than `size` instead.
pub fn chunks(length: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let count = length.div_ceil(size.max(1));
    let surplus = count * size - length;
    let least = surplus.checked_div(count).unwrap_or(0);
    let steps = count.saturating_sub(1);
    let longer = surplus - least * steps;
    (0..count).map(move |chunk| {
        let back = chunk * least + chunk.min(longer);
        let start = chunk * size - back;
        start..(start + size).min(length)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(length: usize, size: usize) -> Vec<Range<usize>> {
        chunks(length, size).collect()
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "one chunk is meant")]
    fn the_documented_cases() {
        assert!(all(0, 500).is_empty());
        assert_eq!(all(1, 500), vec![0..1]);
        assert_eq!(all(500, 500), vec![0..500]);
        assert_eq!(all(501, 500), [0..500, 250..501]);
        assert_eq!(all(700, 500), [0..500, 349..700]);
        assert_eq!(all(1001, 500), [0..500, 333..833, 666..1001]);
        assert_eq!(all(1500, 500), [0..500, 500..1000, 1000..1500]);
    }

    /// The rule as it is told: lists of steps, summed up.
    fn told(length: usize, size: usize) -> Vec<Range<usize>> {
        let n = length.div_ceil(size);
        let rep = n * size - length;
        let lo = rep / n;
        let need = rep - lo * (n - 1);
        let mut steps = vec![lo + 1; need];
        steps.extend(vec![lo; (n - 1).saturating_sub(need)]);
        steps.push(0);
        (0..n)
            .map(|i| {
                let start = i * size - steps[..i].iter().sum::<usize>();
                start..(start + size).min(length)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn every_base_is_in_a_chunk_and_the_rule_is_kept(length in 1_usize..20_000, size in 3_usize..700) {
            let chunks = all(length, size);
            prop_assert_eq!(&chunks, &told(length, size));
            prop_assert_eq!(chunks[0].start, 0);
            prop_assert_eq!(chunks[chunks.len() - 1].end, length);
            for pair in chunks.windows(2) {
                prop_assert!(pair[0].start < pair[1].start && pair[1].start <= pair[0].end);
                prop_assert_eq!(pair[0].len(), size);
            }
        }
    }
}
