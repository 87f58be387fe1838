//! The lengths of all sequences, kept as how many there are of each.

use std::collections::BTreeMap;

use super::histogram::{Bin, Histogram};
use crate::text::thousands;

/// How many sequences have each length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lengths(BTreeMap<u64, u64>);

/// Bins that are aimed at.
const BINS: f64 = 26.0;

impl Lengths {
    /// Counts a sequence of `length` residues or bases.
    pub fn add(&mut self, length: u64) {
        *self.0.entry(length).or_default() += 1;
    }

    /// Number of sequences that were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// Shortest, median and longest; none without sequences.
    #[must_use]
    pub fn extent(&self) -> Option<[u64; 3]> {
        let middle = self.count().div_ceil(2);
        let mut before = 0;
        let median = self.0.iter().find(|(_, count)| {
            before += **count;
            before >= middle
        })?;
        let (shortest, longest) = (self.0.first_key_value()?, self.0.last_key_value()?);
        Some([*shortest.0, *median.0, *longest.0])
    }

    /// Bars of equal width on a logarithmic axis; sequences without letters are counted separately.
    #[must_use]
    pub fn histogram(&self) -> Histogram {
        let lengths = || self.0.range(1..).map(|(&length, &count)| (length, count));
        let lowest = lengths().next().map_or(1, |(length, _)| length) as f64;
        let highest = lengths().next_back().map_or(1, |(length, _)| length) as f64;
        // Bins start at 10^(k / bins per decade), for whole k.
        let decade = (BINS / (highest / lowest).log10().max(0.4)).round();
        let place = |length: f64| decade * length.log10();
        // Rounding must not put a length at the start of a bin below it.
        let bin = |length: u64| (place(length as f64) + 1e-9).floor();
        let first = (place(lowest) + 1e-9).floor();
        let count = (place(highest) + 1e-9).floor() - first + 1.0;
        let begin = |at: f64| 10_f64.powf((first + at) / decade);
        let mut bins: Vec<Bin> = Vec::new();
        let mut at = 0.0;
        while at < count {
            let from = (begin(at) - 1e-6).ceil();
            let to = (begin(at + 1.0) - 1e-6).ceil() - 1.0;
            bins.push(Bin {
                // Below 10 there are bins between whole numbers, which keep the axis even.
                label: match to - from {
                    more if more > 0.5 => format!("{from:.0} to {to:.0}"),
                    more if more > -0.5 => format!("{from:.0}"),
                    _ => String::new(),
                },
                count: lengths()
                    .filter(|(length, _)| (bin(*length) - first - at).abs() < 0.5)
                    .map(|(_, count)| count)
                    .sum(),
            });
            at += 1.0;
        }
        let mut ticks: Vec<(f64, String)> = Vec::new();
        let fine = highest / lowest < 20.0;
        for power in 0..12 {
            for times in if fine {
                &[1_u64, 2, 3, 4, 5, 6, 8][..]
            } else {
                &[1, 3]
            } {
                let length = times * 10_u64.pow(power);
                let x = place(length as f64) - first;
                // Words need room.
                let room = ticks
                    .last()
                    .is_none_or(|(before, _)| (x - before) / count > 0.085);
                if x >= -1e-6 && x <= count && room {
                    ticks.push((x, thousands(length)));
                }
            }
        }
        Histogram {
            title: "Number of sequences by length".to_owned(),
            counted: "Sequences".to_owned(),
            axis: "Length in residues or bases (logarithmic scale)".to_owned(),
            bins,
            ticks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every sequence with letters is in the bin with the matching label.
        #[test]
        fn every_sequence_is_counted_where_the_label_says(
            all in proptest::collection::vec(prop_oneof![0..30_u64, 0..40_000_u64, 900..1_100_u64], 1..200)
        ) {
            let mut lengths = Lengths::default();
            for &length in &all {
                lengths.add(length);
            }
            let histogram = lengths.histogram();
            let mut before = 0;
            for bin in &histogram.bins {
                if bin.label.is_empty() {
                    prop_assert_eq!(bin.count, 0);
                    continue;
                }
                let numbers: Vec<u64> = bin.label.split(" to ").map(|n| n.parse().unwrap()).collect();
                let (from, to) = (numbers[0], numbers[numbers.len() - 1]);
                prop_assert!(before == 0 || from == before + 1, "{} after {}", bin.label, before);
                before = to;
                let inside = all.iter().filter(|&&length| from <= length && length <= to).count() as u64;
                prop_assert_eq!(bin.count, inside, "{}", bin.label);
            }
            let with_letters = all.iter().filter(|&&length| length > 0).count() as u64;
            prop_assert_eq!(histogram.bins.iter().map(|bin| bin.count).sum::<u64>(), with_letters);
            prop_assert!(histogram.bins.len() <= 100);
            let mut sorted = all.clone();
            sorted.sort_unstable();
            prop_assert_eq!(
                lengths.extent(),
                Some([sorted[0], sorted[(sorted.len() - 1) / 2], sorted[sorted.len() - 1]])
            );
        }
    }

    #[test]
    fn nothing_and_one_length_are_drawn() {
        assert_eq!(Lengths::default().extent(), None);
        assert!(
            Lengths::default()
                .histogram()
                .bins
                .iter()
                .all(|bin| bin.count == 0)
        );
        let mut one = Lengths::default();
        (0..5).for_each(|_| one.add(500));
        assert_eq!(one.extent(), Some([500; 3]));
        assert_eq!(one.histogram().bins.len(), 1);
    }
}
