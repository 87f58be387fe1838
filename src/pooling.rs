//! Poolings: which tokens of a record are pooled, which output of the graph is needed, how the
//! windows of a long record are combined, and how many vectors result.

use std::ffi::OsStr;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use clap::ValueEnum;
use clap::builder::{PossibleValue, TypedValueParser};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
    /// Sum over the residues: the mean times their number
    Sum,
    /// No pooling: one vector per residue
    None,
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no value is hidden");
        f.write_str(value.get_name())
    }
}

/// The poolings of a job, one or several, each once: of several, a record's row has one vector
/// after the other.
///
/// ```
/// use seqembed::{Pooling, Poolings};
///
/// let poolings: Poolings = "mean,cls".parse()?;
/// assert_eq!(poolings.as_slice(), [Pooling::Mean, Pooling::Cls]);
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Poolings(Vec<Pooling>);

impl Poolings {
    /// The poolings, in the order given.
    #[must_use]
    pub fn as_slice(&self) -> &[Pooling] {
        &self.0
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether a record has a vector for each of its tokens, and not one in all.
    #[must_use]
    pub fn is_per_token(&self) -> bool {
        self.0 == [Pooling::None]
    }

    /// How many rows a record without an embedding has: one of NaN, or none at all.
    #[must_use]
    pub fn missing_rows(&self) -> usize {
        usize::from(!self.is_per_token())
    }

    /// The output that the graph must have.
    #[must_use]
    pub fn reduce(&self) -> Reduce {
        let mut all = self.0.iter().map(|pooling| pooling.reduce());
        let first = all.next().unwrap_or(Reduce::Mean);
        if all.all(|other| other == first) {
            first
        } else {
            Reduce::Both
        }
    }

    /// For each pooling, whether it is a maximum: what [`Reduce::Both`] takes of each range.
    #[must_use]
    pub fn maxima(&self) -> Vec<bool> {
        let is_max = |pooling: &Pooling| pooling.reduce() == Reduce::Max;
        self.0.iter().map(is_max).collect()
    }

    /// Poolings that join the engine's rows of windows to what it would give for all of them: one
    /// for each of so many ranges. `maxima` is for [`Reduce::Both`].
    #[must_use]
    pub fn of_rows(reduce: Reduce, maxima: &[bool], ranges: usize) -> Self {
        Self(match reduce {
            Reduce::Tokens => vec![Pooling::None],
            Reduce::Mean => vec![Pooling::Mean; ranges],
            Reduce::Max => vec![Pooling::Max; ranges],
            Reduce::Both => maxima
                .iter()
                .map(|&is_max| if is_max { Pooling::Max } else { Pooling::Mean })
                .collect(),
        })
    }

    /// The tokens to pool in each window of a record, without windows in which nothing is pooled.
    /// With `pooled`, only these tokens of the record are.
    ///
    /// # Panics
    /// If a pooling is not [available](Pooling::is_available): the settings are checked before.
    #[must_use]
    pub fn of_windows(
        &self,
        mut windows: Vec<Window>,
        pooled: Option<&Range<usize>>,
        special: &SpecialTokens,
    ) -> Vec<PooledWindow> {
        if let Some(pooled) = pooled {
            windows
                .retain(|Window { kept, .. }| kept.start < pooled.end && pooled.start < kept.end);
            for Window { kept, .. } in &mut windows {
                *kept = kept.start.max(pooled.start)..kept.end.min(pooled.end);
            }
        }
        let last = windows.len().saturating_sub(1);
        let windows = windows.into_iter().enumerate().map(|(at, window)| {
            let poolings = self.0.iter();
            let ranges = poolings.map(|one| one.range(&window, at == 0, at == last, special));
            PooledWindow {
                ranges: ranges.collect(),
                window,
            }
        });
        windows.filter(PooledWindow::is_pooled).collect()
    }

    /// Themselves, if there are several.
    #[must_use]
    pub fn several(&self) -> Option<Self> {
        (self.count() > 1).then(|| self.clone())
    }
}

impl From<Pooling> for Poolings {
    fn from(pooling: Pooling) -> Self {
        Self(vec![pooling])
    }
}

impl Default for Poolings {
    fn default() -> Self {
        Pooling::default().into()
    }
}

impl fmt::Display for Poolings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(Pooling::to_string).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for Poolings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Vec::new();
        for name in text.split(',') {
            let pooling = <Pooling as ValueEnum>::from_str(name.trim(), true).map_err(|_| {
                let names = Pooling::value_variants().iter().map(Pooling::to_string);
                let names = names.collect::<Vec<_>>().join(", ");
                format!("expected {names}, or several of them with commas")
            })?;
            if all.contains(&pooling) {
                return Err(format!("{pooling} is given twice"));
            }
            all.push(pooling);
        }
        if all.len() > 1 && all.contains(&Pooling::None) {
            return Err(
                "none, which gives a vector per residue, cannot be combined with others: use a \
                 run of its own"
                    .to_owned(),
            );
        }
        Ok(Self(all))
    }
}

/// Reads [`Poolings`] on the command line, and lists what there is in the help.
#[derive(Debug, Clone)]
pub struct PoolingsParser;

impl TypedValueParser for PoolingsParser {
    type Value = Poolings;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Poolings, clap::Error> {
        let parse = |text: &str| text.parse::<Poolings>();
        TypedValueParser::parse_ref(&parse, command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let all = Pooling::value_variants().iter();
        Some(Box::new(all.filter_map(ValueEnum::to_possible_value)))
    }
}

impl Serialize for Poolings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Poolings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A window of a record, and which of its tokens are pooled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PooledWindow {
    /// The window, in tokens of the record.
    pub window: Window,
    /// For each pooling, the tokens that are pooled, as the model counts them: 0 is the first
    /// special token in front. Empty where the window has none of them.
    pub ranges: Vec<Range<usize>>,
}

impl PooledWindow {
    /// Whether anything is pooled in it.
    fn is_pooled(&self) -> bool {
        self.ranges.iter().any(|range| !range.is_empty())
    }
}

/// The output of a graph for a batch, from which all poolings are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduce {
    /// The mean of each range, [ranges, hidden].
    Mean,
    /// The maximum of each range, [ranges, hidden].
    Max,
    /// For each range its mean or its maximum, [ranges, hidden].
    Both,
    /// All tokens, [tokens, hidden].
    Tokens,
}

impl Reduce {
    /// The graph's outputs that it is made of.
    #[must_use]
    pub fn outputs(self) -> &'static [Self] {
        match self {
            Self::Mean => &[Self::Mean],
            Self::Max => &[Self::Max],
            Self::Both => &[Self::Mean, Self::Max],
            Self::Tokens => &[Self::Tokens],
        }
    }

    /// The name of the graph's output; of both, that of the first.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean | Self::Both => "mean",
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
            Self::Mean | Self::MeanAll | Self::Cls | Self::Sum => Reduce::Mean,
            Self::Max => Reduce::Max,
            Self::None => Reduce::Tokens,
        }
    }

    /// Whether a model with these special tokens has what is pooled.
    #[must_use]
    pub fn is_available(self, special: &SpecialTokens) -> bool {
        self != Self::Cls || special.cls_position().is_some()
    }

    /// The tokens to pool in a window of a record, which may be its first or last one.
    fn range(
        self,
        window: &Window,
        is_first: bool,
        is_last: bool,
        special: &SpecialTokens,
    ) -> Range<usize> {
        match self {
            Self::Mean | Self::Max | Self::Sum | Self::None => kept_tokens(window, special),
            Self::MeanAll => answered_tokens(window, is_first, is_last, special),
            Self::Cls if is_first => {
                let cls = special.cls_position();
                let cls = cls.expect("settings are checked against the model before");
                cls..cls + 1
            }
            // The first window's [CLS] is the record's.
            Self::Cls => 0..0,
        }
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

/// Divides the pooled tokens `ranges` of a stretch `seen` of a record among the windows of this
/// stretch, without windows in which nothing is pooled.
#[must_use]
pub fn divide(
    ranges: &[Range<usize>],
    seen: &Range<usize>,
    windows: Vec<Window>,
    special: &SpecialTokens,
) -> Vec<PooledWindow> {
    let last = windows.len().saturating_sub(1);
    let windows = windows.into_iter().enumerate().map(|(at, window)| {
        let own = answered_tokens(&window, at == 0, at == last, special);
        // Number of tokens by which the window starts later.
        let shift = window.seen.start - seen.start;
        let divided = ranges.iter().map(|range| {
            let start = own.start.max(range.start.saturating_sub(shift));
            let end = own.end.min(range.end.saturating_sub(shift));
            // What is empty lies within the window, too.
            if start < end {
                start..end
            } else {
                own.start..own.start
            }
        });
        PooledWindow {
            window,
            ranges: divided.collect(),
        }
    });
    windows.filter(PooledWindow::is_pooled).collect()
}

/// Number of rows that the engine returns for a sequence with this many tokens; those of all its
/// ranges together are one.
#[must_use]
pub fn rows_of(reduce: Reduce, tokens: usize) -> usize {
    match reduce {
        Reduce::Mean | Reduce::Max | Reduce::Both => 1,
        Reduce::Tokens => tokens,
    }
}

/// Which of the rows that the engine returns for a sequence are used: the only one, or those of the
/// tokens in the only range.
#[must_use]
pub fn pooled_rows(reduce: Reduce, ranges: &[Range<usize>]) -> Range<usize> {
    match reduce {
        Reduce::Mean | Reduce::Max | Reduce::Both => 0..1,
        Reduce::Tokens => ranges.first().cloned().unwrap_or(0..0),
    }
}

/// Appends the vectors of a sequence, joined from its windows' [`pooled_rows`] and their ranges:
/// for each pooling the mean weighted by the numbers of tokens, the sum, the maximum, or one after
/// the other.
pub fn join_windows<'v>(
    values: &mut Vec<f32>,
    windows: impl ExactSizeIterator<Item = (&'v [f32], &'v [Range<usize>])>,
    poolings: &Poolings,
) {
    let is_one = windows.len() == 1;
    let mut joined = Joined::default();
    for (part, ranges) in windows {
        if poolings.is_per_token() {
            values.extend_from_slice(part);
        } else if is_one {
            let start = values.len();
            values.extend_from_slice(part);
            let width = part.len() / poolings.count();
            let vectors = values[start..].chunks_mut(width.max(1));
            for ((vector, range), pooling) in vectors.zip(ranges).zip(poolings.as_slice()) {
                if *pooling == Pooling::Sum {
                    for x in vector {
                        *x *= range.len() as f32;
                    }
                }
            }
        } else {
            joined.add(part, ranges, poolings);
        }
    }
    values.extend(joined.finish(poolings));
}

/// The mean of a vector and that of the reverse complement, in the first one's place.
pub fn join_strands(forward: &mut [f32], reverse: &[f32]) {
    let both = forward.iter_mut().zip(reverse);
    both.for_each(|(a, b)| *a = f32::midpoint(*a, *b));
}

/// The pooled vectors of a sequence in several windows, up to one of them.
#[derive(Debug, Clone, Default)]
pub struct Joined {
    /// One vector after the other: the windows' sum, each times its tokens, or their maximum.
    pub values: Vec<f32>,
    /// For each pooling, the number of tokens of these windows.
    pub tokens: Vec<usize>,
}

impl Joined {
    /// Adds the vectors of the next window, pooled over these ranges.
    pub fn add(&mut self, part: &[f32], ranges: &[Range<usize>], poolings: &Poolings) {
        self.values.resize(part.len(), 0.0);
        self.tokens.resize(poolings.count(), 0);
        let width = (part.len() / poolings.count()).max(1);
        let vectors = self.values.chunks_mut(width).zip(part.chunks(width));
        let pooled = self.tokens.iter_mut().zip(ranges).zip(poolings.as_slice());
        for ((values, part), ((before, range), pooling)) in vectors.zip(pooled) {
            let tokens = range.len();
            let both = values.iter_mut().zip(part);
            match pooling {
                _ if tokens == 0 => {}
                Pooling::Max if *before == 0 => both.for_each(|(best, x)| *best = *x),
                Pooling::Max => both.for_each(|(best, x)| *best = larger_or_nan(*best, *x)),
                _ => both.for_each(|(sum, x)| *sum += x * tokens as f32),
            }
            *before += tokens;
        }
    }

    /// Returns the vectors of the whole sequence.
    #[must_use]
    pub fn finish(mut self, poolings: &Poolings) -> Vec<f32> {
        let width = (self.values.len() / poolings.count()).max(1);
        let vectors = self.values.chunks_mut(width).zip(&self.tokens);
        for ((values, &tokens), pooling) in vectors.zip(poolings.as_slice()) {
            if !matches!(pooling, Pooling::Max | Pooling::Sum) && tokens > 0 {
                for sum in values {
                    *sum /= tokens as f32;
                }
            }
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
        windows.iter().map(|part| part.ranges[0].clone()).collect()
    }

    #[test]
    fn ranges_count_the_special_tokens_in_front() {
        for (front, behind) in [(1, 1), (1, 0), (0, 1), (2, 1), (0, 0)] {
            let special = special(front, behind, None);
            let (front, behind) = (front as usize, behind as usize);
            let residues = vec![front..front + 4, front + 1..front + 4];
            for pooling in [Pooling::Mean, Pooling::Max, Pooling::Sum, Pooling::None] {
                let pooled = Poolings::from(pooling).of_windows(windows(), None, &special);
                assert_eq!(ranges(&pooled), residues);
            }
            let all = Poolings::from(Pooling::MeanAll).of_windows(windows(), None, &special);
            assert_eq!(ranges(&all), [0..front + 4, front + 1..front + 4 + behind]);
            // The model sees all tokens, and the first five are pooled.
            let first =
                Poolings::from(Pooling::Mean).of_windows(windows(), Some(&(0..5)), &special);
            assert_eq!(ranges(&first), [front..front + 4, front + 1..front + 2]);
            let first =
                Poolings::from(Pooling::Mean).of_windows(windows(), Some(&(0..3)), &special);
            assert_eq!(ranges(&first), vec![front..front + 3]);
        }
    }

    #[test]
    fn cls_is_one_token_of_the_first_window() {
        for (special, at) in [(special(1, 1, Some(0)), 0), (special(2, 0, Some(1)), 1)] {
            let pooled = Poolings::from(Pooling::Cls).of_windows(windows(), None, &special);
            assert_eq!(ranges(&pooled), vec![at..at + 1]);
        }
    }

    #[test]
    fn several_poolings_have_a_range_each_in_every_window() {
        let special = special(1, 1, Some(0));
        let poolings: Poolings = "cls,mean,max,mean-all".parse().expect("poolings");
        let pooled = poolings.of_windows(windows(), None, &special);
        let ranges: Vec<_> = pooled.into_iter().map(|part| part.ranges).collect();
        assert_eq!(
            ranges,
            [vec![0..1, 1..5, 1..5, 0..5], vec![0..0, 2..5, 2..5, 2..6]]
        );
        assert_eq!(poolings.reduce(), Reduce::Both);
        assert_eq!(poolings.maxima(), [false, false, true, false]);
    }

    #[test]
    fn lists_of_poolings() {
        for text in ["mean", "mean,cls", "max,sum,mean-all", "none"] {
            let poolings: Poolings = text.parse().expect("poolings");
            assert_eq!(poolings.to_string(), text);
        }
        assert_eq!(
            "MEAN, max".parse(),
            Ok(Poolings(vec![Pooling::Mean, Pooling::Max]))
        );
        for (text, why) in [
            ("mean,", "expected mean, mean-all"),
            ("means", "expected mean, mean-all"),
            ("mean,mean", "mean is given twice"),
            ("mean,none", "cannot be combined"),
        ] {
            let error = text.parse::<Poolings>().expect_err(text);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn windows_are_joined_for_each_pooling() {
        let poolings: Poolings = "mean,sum,max,cls".parse().expect("poolings");
        let windows = [
            ([1.0, 1.0, 5.0, 7.0], [1..3, 1..3, 1..3, 0..1]),
            ([4.0, 4.0, 3.0, 9.0], [1..2, 1..2, 1..2, 0..0]),
        ];
        let parts = || windows.iter().map(|(row, ranges)| (&row[..], &ranges[..]));
        let mut joined = Vec::new();
        join_windows(&mut joined, parts(), &poolings);
        assert_eq!(joined, [2.0, 6.0, 5.0, 7.0]);
        let mut one = Vec::new();
        join_windows(&mut one, parts().take(1), &poolings);
        assert_eq!(one, [1.0, 2.0, 5.0, 7.0]);
    }

    #[test]
    fn pooling_cls_needs_a_cls_token() {
        let overrides = |pooling| Overrides {
            model: Some("t5".to_owned()),
            pooling: Some(Poolings::from(pooling)),
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
            let divided = |range: Range<usize>| {
                ranges(&divide(&[range], &(20..27), shifted.clone(), &special))
            };
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
