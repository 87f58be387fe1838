//! Makes text from files safe for messages: nothing in it may control the terminal or change the
//! text direction.

use std::fmt::{self, Display, Write};

/// Longest name shown in a message, in characters.
const LONGEST_NAME: usize = 200;

/// A name from a file for a message: escaped as in [`message`], and shortened if it is very long.
#[must_use]
pub fn name(text: &str) -> Shown<'_> {
    Shown {
        text,
        most: LONGEST_NAME,
    }
}

/// Text for a message that may contain names from a file: characters that a terminal would
/// interpret or not show are escaped as in Rust. Escaping is idempotent.
#[must_use]
pub fn message(text: &str) -> Shown<'_> {
    Shown {
        text,
        most: usize::MAX,
    }
}

/// Text that is escaped when it is formatted.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'text> {
    text: &'text str,
    most: usize,
}

impl Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut letters = self.text.chars();
        for letter in letters.by_ref().take(self.most) {
            if is_shown(letter) {
                formatter.write_char(letter)?;
            } else {
                Display::fmt(&letter.escape_debug(), formatter)?;
            }
        }
        if letters.next().is_some() {
            formatter.write_str("...")?;
        }
        Ok(())
    }
}

/// Whether a character is neither a control character, nor invisible, nor changes the text
/// direction.
fn is_shown(letter: char) -> bool {
    !letter.is_control()
        && !matches!(letter,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_the_rest_stays() {
        for (text, shown) in [
            ("esm.encoder.layer.0", "esm.encoder.layer.0"),
            ("it's \"Über\" \\ 漢", "it's \"Über\" \\ 漢"),
            ("\u{1b}[31m\u{7}\r\n\0", "\\u{1b}[31m\\u{7}\\r\\n\\0"),
            ("\u{9b}2J\u{202e}\u{200b}", "\\u{9b}2J\\u{202e}\\u{200b}"),
        ] {
            assert_eq!(message(text).to_string(), shown);
            assert_eq!(message(shown).to_string(), shown);
        }
        let long = "x".repeat(300);
        assert_eq!(name(&long).to_string().len(), 203);
        assert_eq!(message(&long).to_string(), long);
    }
}
