//! Poolings: which tokens of a record are pooled, which output of the graph is needed, how the
//! windows of a long record are combined, and how many vectors result.

use std::fmt;
use std::ops::Range;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::tokenize::{SpecialTokens, Window};

/// How a record's vectors are combined into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Pooling {
    /// Mean over the residues, without special tokens
    #[default]
    Mean,
    /// Mean over all tokens, including special tokens such as <cls> and <eos>
    MeanAll,
    /// The vector of the first token, <cls>
    Cls,
    /// Maximum over the residues, in each dimension
    Max,
    /// No pooling: one vector per residue
    None,
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no value is hidden");
        f.write_str(value.get_name())
    }
}

/// A window of a record, and which of its tokens are pooled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PooledWindow {
    /// The window, in tokens of the record.
    pub window: Window,
    /// The tokens that are pooled, as the model counts them: 0 is the first special token in front.
    pub range: Range<usize>,
}

/// The output of a graph for a batch, from which all poolings are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// The mean of each range, [ranges, hidden].
    Mean,
    /// The maximum of each range, [ranges, hidden].
    Max,
    /// All tokens, [tokens, hidden].
    Tokens,
}

impl Reduce {
    /// The name of the graph's output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Tokens => "tokens",
        }
    }
}

impl Pooling {
    /// The output that the graph must have. The vector of a single token is computed as the mean
    /// over a range of one.
    #[must_use]
    pub fn reduce(self) -> Reduce {
        match self {
            Self::Mean | Self::MeanAll | Self::Cls => Reduce::Mean,
            Self::Max => Reduce::Max,
            Self::None => Reduce::Tokens,
        }
    }

    /// Whether a record has a vector for each of its tokens, and not one in all.
    #[must_use]
    pub fn is_per_token(self) -> bool {
        self == Self::None
    }

    /// Whether a model with these special tokens has what is pooled.
    #[must_use]
    pub fn is_available(self, special: &SpecialTokens) -> bool {
        self != Self::Cls || special.cls_position().is_some()
    }

    /// How many vectors a record without an embedding has: one of NaN, or none at all.
    #[must_use]
    pub fn missing_vectors(self) -> usize {
        usize::from(!self.is_per_token())
    }

    /// The tokens to pool in each window of a record, without windows in which nothing is pooled.
    /// With `pool_first`, only that many tokens from the start of the record are pooled.
    ///
    /// # Panics
    /// If the pooling is not [available](Pooling::is_available): the settings are checked before.
    #[must_use]
    pub fn of_windows(
        self,
        mut windows: Vec<Window>,
        pool_first: Option<usize>,
        special: &SpecialTokens,
    ) -> Vec<PooledWindow> {
        if self == Self::Cls {
            // The first window's [CLS] is the record's: the others need not run.
            windows.truncate(1);
        }
        if let Some(first) = pool_first {
            windows.retain(|window| window.kept.start < first);
            for window in &mut windows {
                window.kept.end = window.kept.end.min(first);
            }
        }
        let last = windows.len().saturating_sub(1);
        let windows = windows.into_iter().enumerate().map(|(at, window)| {
            let range = match self {
                Self::Mean | Self::Max | Self::None => kept_tokens(&window, special),
                Self::MeanAll => answered_tokens(&window, at == 0, at == last, special),
                Self::Cls => {
                    let cls = special.cls_position();
                    let cls = cls.expect("settings are checked against the model before");
                    cls..cls + 1
                }
            };
            PooledWindow { window, range }
        });
        windows.collect()
    }
}

/// The tokens that are taken from a window, as the model counts them.
fn kept_tokens(window: &Window, special: &SpecialTokens) -> Range<usize> {
    let front = special.front.len();
    let Window { seen, kept } = window;
    front + kept.start - seen.start..front + kept.end - seen.start
}

/// The tokens that a window answers for: of the special ones, the first window for those in front,
/// the last one for those behind.
fn answered_tokens(
    window: &Window,
    is_first: bool,
    is_last: bool,
    special: &SpecialTokens,
) -> Range<usize> {
    let Range { start, end } = kept_tokens(window, special);
    let ends_there = is_last && window.kept.end == window.seen.end;
    let start = if is_first { 0 } else { start };
    let behind = if ends_there { special.behind.len() } else { 0 };
    start..end + behind
}

/// Divides the pooled tokens `range` of a stretch `seen` of a record among the windows of this
/// stretch, without windows in which nothing is pooled.
#[must_use]
pub fn divide(
    range: &Range<usize>,
    seen: &Range<usize>,
    windows: Vec<Window>,
    special: &SpecialTokens,
) -> Vec<PooledWindow> {
    let last = windows.len().saturating_sub(1);
    let windows = windows.into_iter().enumerate().map(|(at, window)| {
        let own = answered_tokens(&window, at == 0, at == last, special);
        // Number of tokens by which the window starts later.
        let shift = window.seen.start - seen.start;
        let start = own.start.max(range.start.saturating_sub(shift));
        let end = own.end.min(range.end.saturating_sub(shift));
        PooledWindow {
            window,
            range: start..end,
        }
    });
    windows.filter(|part| !part.range.is_empty()).collect()
}

/// Number of rows that the engine returns for a sequence with this many tokens.
#[must_use]
pub fn rows_of(reduce: Reduce, tokens: usize) -> usize {
    match reduce {
        Reduce::Mean | Reduce::Max => 1,
        Reduce::Tokens => tokens,
    }
}

/// Which of the rows that the engine returns for a sequence are used: the only one, or those of the
/// tokens in `range`.
#[must_use]
pub fn pooled_rows(reduce: Reduce, range: &Range<usize>) -> Range<usize> {
    match reduce {
        Reduce::Mean | Reduce::Max => 0..1,
        Reduce::Tokens => range.clone(),
    }
}

/// Appends the vectors of a sequence, joined from its windows' [`pooled_rows`] and the number of
/// tokens that each is pooled over: the mean weighted by these numbers, the maximum, or one after
/// the other.
pub fn join_windows<'v>(
    values: &mut Vec<f32>,
    windows: impl ExactSizeIterator<Item = (&'v [f32], usize)>,
    reduce: Reduce,
) {
    let is_one = windows.len() == 1;
    let mut joined = Joined::default();
    for (part, tokens) in windows {
        if is_one || reduce == Reduce::Tokens {
            values.extend_from_slice(part);
        } else {
            joined.add(part, tokens, reduce);
        }
    }
    values.extend(joined.finish(reduce));
}

/// The mean of a vector and that of the reverse complement, in the first one's place.
pub fn join_strands(forward: &mut [f32], reverse: &[f32]) {
    let both = forward.iter_mut().zip(reverse);
    both.for_each(|(a, b)| *a = f32::midpoint(*a, *b));
}

/// The pooled vector of a sequence in several windows, up to one of them.
#[derive(Debug, Clone, Default)]
pub struct Joined {
    /// The windows' sum, each times its tokens, or their maximum.
    pub values: Vec<f32>,
    /// Total number of tokens of these windows.
    pub tokens: usize,
}

impl Joined {
    /// Adds the vector of the next window, pooled over `tokens` tokens.
    pub fn add(&mut self, part: &[f32], tokens: usize, reduce: Reduce) {
        let values = &mut self.values;
        self.tokens += tokens;
        if reduce == Reduce::Max {
            if values.is_empty() {
                values.extend_from_slice(part);
            } else {
                let both = values.iter_mut().zip(part);
                both.for_each(|(best, x)| *best = larger_or_nan(*best, *x));
            }
            return;
        }
        values.resize(part.len(), 0.0);
        let both = values.iter_mut().zip(part);
        both.for_each(|(sum, x)| *sum += x * tokens as f32);
    }

    /// Returns the vector of the whole sequence.
    #[must_use]
    pub fn finish(mut self, reduce: Reduce) -> Vec<f32> {
        if reduce != Reduce::Max && self.tokens > 0 {
            let tokens = self.tokens as f32;
            self.values.iter_mut().for_each(|sum| *sum /= tokens);
        }
        self.values
    }
}

/// The larger of two numbers, and NaN if one of them is infinite or none: a maximum hides what is
/// wrong with the others.
#[expect(
    clippy::inline_always,
    reason = "it must be a part of the kernels that are compiled for a processor's vector units"
)]
#[inline(always)]
#[must_use]
pub fn larger_or_nan(best: f32, x: f32) -> f32 {
    // NaN is not less than anything: once `best` is NaN, it stays so.
    let larger = if best < x { x } else { best };
    if x.is_finite() { larger } else { f32::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Overrides, Settings, SettingsError};

    fn special(front: u32, behind: u32, cls: Option<u32>) -> SpecialTokens {
        SpecialTokens {
            front: (0..front).collect(),
            behind: (10..10 + behind).collect(),
            cls,
            ..SpecialTokens::default()
        }
    }

    /// Two windows of 4 tokens that share one, of a sequence of 7.
    fn windows() -> Vec<Window> {
        let window = |seen, kept| Window { seen, kept };
        vec![window(0..4, 0..4), window(3..7, 4..7)]
    }

    fn ranges(windows: &[PooledWindow]) -> Vec<Range<usize>> {
        windows.iter().map(|part| part.range.clone()).collect()
    }

    #[test]
    fn ranges_count_the_special_tokens_in_front() {
        for (front, behind) in [(1, 1), (1, 0), (0, 1), (2, 1), (0, 0)] {
            let special = special(front, behind, None);
            let (front, behind) = (front as usize, behind as usize);
            let residues = vec![front..front + 4, front + 1..front + 4];
            for pooling in [Pooling::Mean, Pooling::Max, Pooling::None] {
                let pooled = pooling.of_windows(windows(), None, &special);
                assert_eq!(ranges(&pooled), residues);
            }
            let all = Pooling::MeanAll.of_windows(windows(), None, &special);
            assert_eq!(ranges(&all), [0..front + 4, front + 1..front + 4 + behind]);
            // The model sees all tokens, and the first five are pooled.
            let first = Pooling::Mean.of_windows(windows(), Some(5), &special);
            assert_eq!(ranges(&first), [front..front + 4, front + 1..front + 2]);
            let first = Pooling::Mean.of_windows(windows(), Some(3), &special);
            assert_eq!(ranges(&first), vec![front..front + 3]);
        }
    }

    #[test]
    fn cls_is_one_token_of_the_first_window() {
        for (special, at) in [(special(1, 1, Some(0)), 0), (special(2, 0, Some(1)), 1)] {
            let pooled = Pooling::Cls.of_windows(windows(), None, &special);
            assert_eq!(ranges(&pooled), vec![at..at + 1]);
        }
    }

    #[test]
    fn pooling_cls_needs_a_cls_token() {
        let overrides = |pooling| Overrides {
            model: Some("t5".to_owned()),
            pooling: Some(pooling),
            ..Overrides::default()
        };
        for pooling in Pooling::value_variants() {
            let settings = Settings::resolve(&[&overrides(*pooling)]).expect("they fit");
            assert_eq!(settings.check_pooling(&special(1, 0, Some(0))), Ok(()));
            // Nothing in front, or a token that does not stand for the sequence.
            for special in [special(0, 1, None), special(1, 1, None)] {
                let expected = match pooling {
                    Pooling::Cls => Err(SettingsError::NoCls {
                        model: "t5".to_owned(),
                    }),
                    _ => Ok(()),
                };
                assert_eq!(settings.check_pooling(&special), expected);
            }
        }
    }

    #[test]
    fn a_stretch_in_windows_keeps_its_range() {
        for (front, behind) in [(1, 1), (1, 0), (0, 1), (2, 1), (0, 0)] {
            let special = special(front, behind, None);
            let (front, behind) = (front as usize, behind as usize);
            let shifted = windows().into_iter().map(|Window { seen, kept }| Window {
                seen: seen.start + 20..seen.end + 20,
                kept: kept.start + 20..kept.end + 20,
            });
            let shifted: Vec<Window> = shifted.collect();
            let divided =
                |range: Range<usize>| ranges(&divide(&range, &(20..27), shifted.clone(), &special));
            // All tokens, the residues, the first one, and the last two.
            let all = divided(0..front + 7 + behind);
            assert_eq!(all, [0..front + 4, front + 1..front + 4 + behind]);
            let residues = divided(front..front + 7);
            assert_eq!(residues, [front..front + 4, front + 1..front + 4]);
            assert_eq!(divided(0..1), vec![0..1]);
            let last = divided(front + 5..front + 7);
            assert_eq!(last, vec![front + 2..front + 4]);
        }
    }
}
