//! Bytes of a sequence -> letters, a byte each, so that all that counts bytes behind this counts
//! letters.
//!
//! A non-ASCII character counts as one letter, as with Python's `len`, and so does each byte that
//! is not valid UTF-8. `<mask>` also counts as one letter, not six, but is not treated as a mask,
//! because ESM-2 scales a sequence by the share of its masks, which the exported graphs do not do.

use std::fmt;

/// Represents a non-ASCII letter, or `<mask>`. It is not in any vocabulary.
pub const OTHER: u8 = 0xff;

/// What `>` makes a mask of.
const BEGUN_MASK: &[u8; 5] = b"<mask";

/// The kinds of letters that [`OTHER`] represents.
pub(super) const KINDS: usize = 3;

/// A letter as in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Letter {
    /// A character.
    Char(char),
    /// A byte that is not UTF-8.
    Byte(u8),
    /// `<mask>`.
    Mask,
}

impl Letter {
    /// Whether the character is invisible, or only shows as space.
    #[must_use]
    pub fn is_invisible(self) -> bool {
        let Self::Char(letter) = self else {
            return false;
        };
        letter.is_whitespace()
            || letter.is_control()
            || matches!(
                letter,
                '\u{ad}'
                    | '\u{34f}'
                    | '\u{61c}'
                    | '\u{180e}'
                    | '\u{200b}'..='\u{200f}'
                    | '\u{202a}'..='\u{202e}'
                    | '\u{2060}'..='\u{206f}'
                    | '\u{3164}'
                    | '\u{fe00}'..='\u{fe0f}'
                    | '\u{feff}'
                    | '\u{ffa0}'
                    | '\u{e0000}'..='\u{e0fff}'
            )
    }

    /// Unicode's name of those that come in by copying from text editors and web pages.
    fn name(self) -> Option<&'static str> {
        let Self::Char(letter) = self else {
            return None;
        };
        Some(match letter {
            '\u{a0}' => "no-break space",
            '\u{ad}' => "soft hyphen",
            '\u{2000}'..='\u{200a}' => "a space of fixed width",
            '\u{200b}' => "zero width space",
            '\u{200c}' => "zero width non-joiner",
            '\u{200d}' => "zero width joiner",
            '\u{200e}' => "left-to-right mark",
            '\u{200f}' => "right-to-left mark",
            '\u{2010}' => "hyphen",
            '\u{2011}' => "non-breaking hyphen",
            '\u{2013}' => "en dash",
            '\u{2014}' => "em dash",
            '\u{2028}' => "line separator",
            '\u{2029}' => "paragraph separator",
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => "a text direction mark",
            '\u{202f}' => "narrow no-break space",
            '\u{2060}' => "word joiner",
            '\u{2212}' => "minus sign",
            '\u{3000}' => "ideographic space",
            '\u{fe00}'..='\u{fe0f}' => "a variation selector",
            '\u{feff}' => "byte order mark, or zero width no-break space",
            _ => return None,
        })
    }
}

/// As a message shows it: an ASCII letter in quotes, any other with its code point.
impl fmt::Display for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Mask => f.write_str("`<mask>`"),
            Self::Byte(byte) => write!(f, "the byte 0x{byte:02X}, which is not UTF-8,"),
            Self::Char(letter) if letter.is_ascii() => write!(f, "{letter:?}"),
            Self::Char(letter) => {
                let code = u32::from(letter);
                if self.is_invisible() {
                    write!(f, "U+{code:04X}")?;
                } else {
                    write!(f, "'{letter}' (U+{code:04X}")?;
                }
                match (self.name(), self.is_invisible()) {
                    (Some(name), true) => write!(f, " ({name})"),
                    (None, true) => Ok(()),
                    (Some(name), false) => write!(f, ", {name})"),
                    (None, false) => f.write_str(")"),
                }
            }
        }
    }
}

/// Letters of one kind that [`OTHER`] represents.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// The first, with its line.
    pub(super) first: Option<(u64, Letter)>,
    /// Number of letters.
    pub(super) count: u64,
}

/// A byte that is not allowed in a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Nul,
    Header,
    /// A carriage return that seems to have ended a line.
    Return,
}

/// The letters of a sequence that is read.
#[derive(Debug)]
pub(super) struct Letters {
    /// The first of them.
    kept: Vec<u8>,
    /// How many are kept at most.
    keep: usize,
    /// How many there are.
    count: u64,
    /// The last ones, where not all are kept.
    tail: [u8; BEGUN_MASK.len()],
    /// A character of several bytes that has begun.
    begun: Vec<u8>,
    /// The first letter that [`OTHER`] represents.
    other: Option<Letter>,
    /// Whether the last byte of the line so far is a carriage return.
    returned: bool,
    /// The letters that [`OTHER`] represents: visible ones, invisible ones, and masks.
    pub(super) seen: [Seen; KINDS],
}

impl Default for Letters {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            keep: usize::MAX,
            count: 0,
            tail: [0; BEGUN_MASK.len()],
            begun: Vec::new(),
            other: None,
            returned: false,
            seen: [Seen::default(); KINDS],
        }
    }
}

impl Letters {
    /// Keeps no more than the first letters of a sequence, and counts the rest.
    pub(super) fn keep(&mut self, keep: usize) {
        self.keep = keep;
    }

    /// Starts another sequence.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
        self.count = 0;
        self.tail = [0; BEGUN_MASK.len()];
        self.begun.clear();
        self.other = None;
        self.returned = false;
        self.seen = [Seen::default(); KINDS];
    }

    /// How many letters there are.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The letters that are not kept: how many, and the last one.
    pub(super) fn rest(&self) -> Option<(u64, u8)> {
        let rest = self.count - self.kept.len() as u64;
        (rest > 0).then(|| (rest, self.tail[BEGUN_MASK.len() - 1]))
    }

    /// The first letter that [`OTHER`] represents.
    pub(super) fn other(&self) -> Option<Letter> {
        self.other
    }

    pub(super) fn kept(&mut self) -> &mut Vec<u8> {
        &mut self.kept
    }

    /// Adds a piece of a line of a file. White space is dropped.
    pub(super) fn line(&mut self, piece: &[u8], line: u64, is_fasta: bool) -> Result<(), Refused> {
        let plain = piece.strip_suffix(b"\r").unwrap_or(piece);
        // Without a branch, so that it is vectorised: nearly every line passes. With a sign, what
        // is not ASCII is below zero.
        let odd = plain.iter().fold(0, |odd, &byte| {
            odd | u8::from(byte.cast_signed() <= 0x20) | u8::from(byte == b'>')
        });
        if odd == 0 && self.begun.is_empty() && !self.returned {
            self.append(plain);
            self.returned = plain.len() < piece.len();
            return Ok(());
        }
        for &byte in piece {
            // The characters that start a line of FASTA or FASTQ other than a sequence line.
            if std::mem::replace(&mut self.returned, byte == b'\r') && b">@+;".contains(&byte) {
                return Err(Refused::Return);
            }
            if self.of_several_bytes(byte, line) {
                continue;
            }
            match byte {
                0 => return Err(Refused::Nul),
                b'>' if self.ends_a_mask(line) => {}
                b'>' if is_fasta => return Err(Refused::Header),
                byte if is_white(byte) => {}
                byte => self.append(&[byte]),
            }
        }
        Ok(())
    }

    /// Ends a line: letters cannot continue on the next line.
    pub(super) fn end_line(&mut self, line: u64) {
        self.returned = false;
        if !self.begun.is_empty() {
            for byte in std::mem::take(&mut self.begun) {
                self.push_other(Letter::Byte(byte), line);
            }
        }
    }

    /// Adds letters that come from no file, as they are.
    pub(super) fn text(&mut self, text: &[u8]) {
        for &byte in text {
            let is_taken = self.of_several_bytes(byte, 0) || (byte == b'>' && self.ends_a_mask(0));
            if !is_taken {
                self.append(&[byte]);
            }
        }
        self.end_line(0);
    }

    fn append(&mut self, letters: &[u8]) {
        let room = self.keep - self.kept.len();
        if letters.len() <= room {
            self.kept.extend_from_slice(letters);
        } else {
            let (kept, rest) = letters.split_at(room);
            let was_whole = self.count == self.kept.len() as u64;
            self.kept.extend_from_slice(kept);
            if was_whole {
                shift(&mut self.tail, &self.kept);
            }
            shift(&mut self.tail, rest);
        }
        self.count += letters.len() as u64;
    }

    /// Handles a byte of a multi-byte character, or an invalid one; returns `false` for ASCII.
    fn of_several_bytes(&mut self, byte: u8, line: u64) -> bool {
        if byte.is_ascii() && self.begun.is_empty() {
            return false;
        }
        self.begun.push(byte);
        while let Some(&first) = self.begun.first() {
            if first.is_ascii() {
                // Only the byte that came now can be.
                self.begun.clear();
                return false;
            }
            match std::str::from_utf8(&self.begun) {
                Ok(text) => {
                    let letter = text.chars().next().expect("it is not empty");
                    self.begun.clear();
                    self.push_other(Letter::Char(letter), line);
                }
                Err(error) if error.error_len().is_none() => break,
                Err(_) => {
                    self.begun.remove(0);
                    self.push_other(Letter::Byte(first), line);
                }
            }
        }
        true
    }

    fn push_other(&mut self, letter: Letter, line: u64) {
        self.see(letter, line);
        self.append(&[OTHER]);
    }

    fn see(&mut self, letter: Letter, line: u64) {
        self.other.get_or_insert(letter);
        let kind = match letter {
            Letter::Mask => 2,
            letter => usize::from(letter.is_invisible()),
        };
        let seen = &mut self.seen[kind];
        seen.first.get_or_insert((line, letter));
        seen.count += 1;
    }

    /// Whether a `>` at this point ends a `<mask>`, which is then one letter.
    fn ends_a_mask(&mut self, line: u64) -> bool {
        let last = if self.count == self.kept.len() as u64 {
            let start = self.kept.len().saturating_sub(BEGUN_MASK.len());
            &self.kept[start..]
        } else {
            &self.tail
        };
        if !last.eq_ignore_ascii_case(BEGUN_MASK) {
            return false;
        }
        self.count -= BEGUN_MASK.len() as u64;
        let before = usize::try_from(self.count).unwrap_or(usize::MAX);
        self.kept.truncate(before);
        self.tail = [0; BEGUN_MASK.len()];
        if before == self.kept.len() {
            self.push_other(Letter::Mask, line);
        } else {
            self.see(Letter::Mask, line);
            shift(&mut self.tail, &[OTHER]);
            self.count += 1;
        }
        true
    }
}

/// The last of some letters and of those that follow.
fn shift(tail: &mut [u8; BEGUN_MASK.len()], letters: &[u8]) {
    let letters = &letters[letters.len().saturating_sub(tail.len())..];
    tail.copy_within(letters.len().., 0);
    let start = tail.len() - letters.len();
    tail[start..].copy_from_slice(letters);
}

/// ASCII white space, which is not a letter.
pub(super) fn is_white(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is kept, the count and the last letter are those of all, and what is kept is
        /// their beginning.
        #[test]
        fn what_is_not_kept_is_counted(
            parts in proptest::collection::vec("<mask>|<ma|sk>|[A-Z*<]{0,9}|[é–\u{a0}😀]{0,3}", 0..12),
            keep in 0..20_usize,
        ) {
            let (mut all, mut some) = (Letters::default(), Letters::default());
            some.keep(keep);
            for part in &parts {
                all.text(part.as_bytes());
                some.text(part.as_bytes());
            }
            let whole = all.kept().clone();
            prop_assert_eq!(all.count(), whole.len() as u64);
            prop_assert_eq!(some.count(), all.count());
            prop_assert_eq!(&some.kept()[..], &whole[..whole.len().min(keep)]);
            let rest = (whole.len() > keep).then(|| ((whole.len() - keep) as u64, whole[whole.len() - 1]));
            prop_assert_eq!(some.rest(), rest);
        }

        /// As Rust's own `chars` counts them, a byte that is not UTF-8 being one by itself.
        #[test]
        fn a_character_is_a_letter(bytes in proptest::collection::vec(
            prop_oneof![Just(b'A'), 0x80..=0xff_u8, Just(0xe2), Just(0x80), Just(0x93)], 0..40,
        )) {
            let mut letters = Letters::default();
            letters.text(&bytes);
            let expected: usize = bytes
                .utf8_chunks()
                .map(|chunk| chunk.valid().chars().count() + chunk.invalid().len())
                .sum();
            prop_assert_eq!(letters.count(), expected as u64);
        }
    }
}
