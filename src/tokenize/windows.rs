//! How a long sequence is cut into windows, and which residues each of them answers for.

use std::ops::Range;

/// A window: the stretch of a sequence that the model sees, and the residues whose vectors are
/// taken from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The residues that the model sees.
    pub seen: Range<usize>,
    /// The residues whose vectors are taken from this window, a part of `seen`. In the windows of a
    /// sequence, every residue occurs exactly once.
    pub kept: Range<usize>,
}

/// Cuts a sequence into windows of `size` residues of which neighbours share `overlap`.
///
/// Window `k` starts at `k * (size - overlap)`; the last one ends with the sequence, so its overlap
/// may be larger. A residue is taken from the window whose middle is closest to it, the earlier one
/// of two equally close windows. A sequence that fits is one window; an empty one has none.
///
/// # Panics
/// If `overlap` is not smaller than `size`: the settings are checked before.
#[must_use]
pub fn windows(length: usize, size: usize, overlap: usize) -> Vec<Window> {
    assert!(overlap < size, "an overlap is smaller than its window");
    if length == 0 {
        return Vec::new();
    }
    if length <= size {
        return vec![Window {
            seen: 0..length,
            kept: 0..length,
        }];
    }
    let step = size - overlap;
    let count = (length - size).div_ceil(step) + 1;
    let start = |k: usize| (k * step).min(length - size);
    // Midpoint between the middles of two neighbouring windows.
    let border = |k: usize| (start(k) + start(k + 1) + size - 1) / 2 + 1;
    (0..count)
        .map(|k| Window {
            seen: start(k)..start(k) + size,
            kept: if k == 0 { 0 } else { border(k - 1) }..if k + 1 == count {
                length
            } else {
                border(k)
            },
        })
        .collect()
}

/// Cuts a stretch of tokens into windows of `size` tokens of which neighbours share `overlap`, or
/// as many as they can.
///
/// # Panics
/// If `size` is 0: the settings are checked before.
#[must_use]
pub fn of_tokens(tokens: Range<usize>, size: usize, overlap: usize) -> Vec<Window> {
    let within = |part: Range<usize>| tokens.start + part.start..tokens.start + part.end;
    let windows = windows(tokens.len(), size, overlap.min(size.saturating_sub(1)));
    let windows = windows.into_iter().map(|window| Window {
        seen: within(window.seen),
        kept: within(window.kept),
    });
    windows.collect()
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn windows_keep_every_residue_once_and_in_order(
            length in 0..5000_usize,
            (size, overlap) in (1..600_usize).prop_flat_map(|size| (Just(size), 0..size)),
        ) {
            let windows = windows(length, size, overlap);
            let kept: Vec<usize> = windows.iter().flat_map(|window| window.kept.clone()).collect();
            prop_assert_eq!(kept, (0..length).collect::<Vec<_>>());
            for window in &windows {
                prop_assert!(window.seen.len() == size.min(length));
                prop_assert!(window.seen.start <= window.kept.start && window.kept.end <= window.seen.end);
            }
        }

        #[test]
        fn a_residue_comes_from_the_window_where_it_is_most_central(
            length in 1..900_usize,
            (size, overlap) in (1..200_usize).prop_flat_map(|size| (Just(size), 0..size)),
        ) {
            let windows = windows(length, size, overlap);
            let centrality = |window: &Window, residue: usize| {
                (window.seen.contains(&residue))
                    .then(|| (residue - window.seen.start).min(window.seen.end - 1 - residue))
            };
            for residue in 0..length {
                let taken = windows.iter().position(|window| window.kept.contains(&residue));
                let best = (0..windows.len())
                    .max_by_key(|&k| (centrality(&windows[k], residue), Reverse(k)));
                prop_assert_eq!(taken, best);
            }
        }
    }
}
