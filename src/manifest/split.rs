//! Divides files among several manifests of about equal work.

/// The indices of the files of each part, in order: the largest file first, each to the part with
/// the least work so far. The parts are not empty, and the same for the same sizes.
///
/// # Panics
/// If there are fewer sizes than parts, or no parts.
#[must_use]
pub fn split(sizes: &[u64], parts: usize) -> Vec<Vec<usize>> {
    assert!(0 < parts && parts <= sizes.len(), "a file for each part");
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&at| (std::cmp::Reverse(sizes[at]), at));
    let mut files: Vec<Vec<usize>> = vec![Vec::new(); parts];
    let mut sums = vec![0_u64; parts];
    for at in order {
        // Of parts with equal work, the one with the fewest files: files without records spread.
        let least = (0..parts).min_by_key(|&part| (sums[part], files[part].len()));
        let least = least.expect("there is a part");
        files[least].push(at);
        sums[least] += sizes[at];
    }
    for part in &mut files {
        part.sort_unstable();
    }
    files
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::split;

    proptest! {
        #[test]
        fn every_file_is_in_one_part_and_no_part_has_more_than_its_share_and_a_file(
            sizes in proptest::collection::vec(0..10_000_u64, 1..200),
            parts in 1..40_usize,
        ) {
            let parts = parts.min(sizes.len());
            let files = split(&sizes, parts);
            let mut all: Vec<usize> = files.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..sizes.len()).collect::<Vec<_>>());
            let share = sizes.iter().sum::<u64>() / parts as u64;
            let largest = sizes.iter().max().copied().unwrap_or(0);
            for part in &files {
                prop_assert!(!part.is_empty());
                let work: u64 = part.iter().map(|&at| sizes[at]).sum();
                prop_assert!(work <= share + largest);
            }
        }
    }
}
