//! A sequence as tokens, and its windows.

use std::ops::Range;

use super::windows::{Window, windows};

/// A sequence as tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens without special ones.
    pub ids: Vec<u32>,
    /// How many letters the sequence has, a dropped `*` not counted; residues, where each is
    /// described by several letters.
    pub letters: usize,
    /// How many of the ids are the unknown token's, for letters that the vocabulary lacks.
    pub unknown: usize,
    /// Position of the first of these letters in the sequence, from 0.
    pub first_unknown: Option<usize>,
    /// Whether a terminal `*` was dropped.
    pub dropped_stop: bool,
    /// Where tokens have several lengths: token `i` starts at letter `starts[i]`. `None`: token `i`
    /// starts at letter `i`.
    pub starts: Option<Vec<u32>>,
}

/// How many of `ids` are the unknown token's, and the index of the first of them.
pub(super) fn unknown_tokens(ids: &[u32], unk: u32) -> (usize, Option<usize>) {
    let unknown = ids.iter().filter(|&&id| id == unk).count();
    let first = (unknown > 0)
        .then(|| ids.iter().position(|&id| id == unk))
        .flatten();
    (unknown, first)
}

impl Encoded {
    /// The tokens that start in a range of letters.
    #[must_use]
    pub fn tokens_in(&self, letters: Range<usize>) -> Range<usize> {
        let at = |letter: usize| match &self.starts {
            Some(starts) => starts.partition_point(|&start| (start as usize) < letter),
            None => letter.min(self.ids.len()),
        };
        at(letters.start)..at(letters.end)
    }

    /// Cuts a sequence into windows of `size` letters of which neighbours share `overlap`, and
    /// returns their tokens.
    ///
    /// The windows are those of `windows`, over the letters where a token of `span` letters can
    /// start; a token belongs to the letter where it starts, and is never cut in two: where tokens
    /// have several lengths, a window's last one may reach past it. A window that no token is taken
    /// from is left out.
    ///
    /// # Panics
    /// If `overlap` or `span - 1` is not smaller than `size`: the settings are checked before.
    #[must_use]
    pub fn windows(&self, span: usize, size: usize, overlap: usize) -> Vec<Window> {
        self.windows_of(0..self.ids.len(), span, size, overlap)
    }

    /// The windows of a stretch of the tokens; [`Encoded::windows`] returns those of all tokens.
    ///
    /// # Panics
    /// As [`Encoded::windows`].
    #[must_use]
    pub fn windows_of(
        &self,
        tokens: Range<usize>,
        span: usize,
        size: usize,
        overlap: usize,
    ) -> Vec<Window> {
        let less = span - 1;
        let letters = self.letters_of(tokens, span);
        let within = |part: Range<usize>| {
            self.tokens_in(letters.start + part.start..letters.start + part.end)
        };
        windows(letters.len(), size - less, overlap.saturating_sub(less))
            .into_iter()
            .map(|window| Window {
                seen: within(window.seen),
                kept: within(window.kept),
            })
            .filter(|window| !window.kept.is_empty())
            .collect()
    }

    /// The letters where the tokens of a stretch can start, a token being of `span` letters at
    /// least.
    #[must_use]
    pub fn letters_of(&self, tokens: Range<usize>, span: usize) -> Range<usize> {
        let at = |token: usize| match &self.starts {
            _ if token == 0 => 0,
            _ if token >= self.ids.len() => self.letters.saturating_sub(span - 1),
            Some(starts) => starts[token] as usize,
            None => token,
        };
        // Nothing but the whole of a sequence without tokens begins at both ends.
        let start = at(tokens.start);
        let end = if tokens.end == self.ids.len() {
            self.letters.saturating_sub(span - 1)
        } else {
            at(tokens.end)
        };
        start..end.max(start)
    }
}
