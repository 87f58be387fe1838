//! What every tokenizer does.

use std::ops::Range;

use super::alphabet::Alphabet;
use super::encoded::Encoded;
use super::special::SpecialTokens;
use super::windows::Window;

/// A model's vocabulary at work.
pub trait Tokenizer: Send + Sync {
    /// The tokens of a sequence, without special tokens. Any byte is accepted as a letter; see
    /// [`Record`](crate::records::Record) for multi-byte characters.
    fn encode(&self, sequence: &[u8]) -> Encoded;

    /// The tokens of a sequence's beginning, which goes on behind it: what [`Tokenizer::encode`]
    /// drops at a sequence's end is a letter here.
    fn encode_beginning(&self, beginning: &[u8]) -> Encoded {
        self.encode(beginning)
    }

    /// The special tokens around a sequence. No other code depends on which and how many there are.
    fn special(&self) -> &SpecialTokens;

    /// The alphabet of the sequences.
    fn alphabet(&self) -> Alphabet;

    /// How many ids there are: all are below this. The model's embedding table has at least as many
    /// rows.
    fn vocabulary(&self) -> usize;

    /// How many letters a token reads where all read as many: `k` of k-mers, else 1. A sequence of
    /// fewer has no token.
    fn span(&self) -> usize {
        1
    }

    /// How many letters of a sequence describe one residue: two where its structure has a letter
    /// too. Lengths, windows and [`Encoded::letters`] then count residues.
    fn letters_per_residue(&self) -> usize {
        1
    }

    /// The most letters that a token reads, where most read as many, and none of them again: `k` of
    /// k-mers that do not overlap; of byte pairs how many they read on average. The limits of such
    /// models are in tokens, and windows are cut by tokens. `None`: windows are cut by letters.
    fn letters_per_token(&self) -> Option<usize> {
        None
    }

    /// Cuts a stretch of a sequence's tokens into windows of at most `size` letters, of which
    /// neighbours share `overlap`.
    ///
    /// Where windows are cut by tokens, they are of `size / letters_per_token` tokens, and share
    /// `overlap / letters_per_token`, whatever these read: all k-mers are those of the whole
    /// sequence, and no window has more tokens than one of k-mers alone.
    ///
    /// # Panics
    /// If `overlap` or a token is not smaller than `size`: the settings are checked before.
    fn windows(
        &self,
        encoded: &Encoded,
        tokens: Range<usize>,
        size: usize,
        overlap: usize,
    ) -> Vec<Window> {
        match self.letters_per_token() {
            None => encoded.windows_of(tokens, self.span(), size, overlap),
            Some(most) => super::windows::of_tokens(tokens, size / most, overlap / most),
        }
    }

    /// Why a sequence with this many letters has no token, for its status.
    fn why_no_tokens(&self, letters: usize) -> String {
        if letters == 0 {
            "empty sequence".to_owned()
        } else if letters < self.span() {
            format!("shorter than k = {}", self.span())
        } else {
            "no tokens".to_owned()
        }
    }
}
