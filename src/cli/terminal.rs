//! Output to the user: all messages, tables and texts go through this file.
//!
//! Ids, headers, file names and names from the hub are untrusted. Characters that a terminal would
//! interpret instead of showing (colours, titles, clipboard access, text direction) are escaped as
//! in Rust and Python literals.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Context as _;

use super::flags::with_flags;
use crate::text::counted;

/// Escapes everything that a terminal would interpret, except line ends and tabs.
#[must_use]
pub fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_control(letter) {
            write!(shown, "{}", letter.escape_default()).expect("writing to a String cannot fail");
        } else {
            shown.push(letter);
        }
    }
    Cow::Owned(shown)
}

/// Whether a character is a control character (C0, DEL or C1), changes the text direction, breaks
/// lines, or is invisible.
fn is_control(letter: char) -> bool {
    let unseen = matches!(
        letter,
        '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{e0000}'..='\u{e007f}'
    );
    unseen || (letter.is_control() && !matches!(letter, '\n' | '\t'))
}

/// Prints a line to standard error. Write errors, such as a closed pipe, are ignored so that the
/// run continues.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{}", shown(&with_flags(text)));
}

/// Writes text for a human reader to standard output, escaped by [`shown`].
///
/// # Errors
/// If standard output is closed or its disk is full; the message says how many bytes were to be
/// written.
pub fn print(text: &str) -> anyhow::Result<()> {
    write(shown(&with_flags(text)).as_bytes())
}

/// Writes text for another program (a path, a script) to standard output, unescaped unless that is
/// a terminal.
///
/// # Errors
/// As [`print`].
pub fn pass_on(text: &str) -> anyhow::Result<()> {
    if io::stdout().is_terminal() {
        print(text)
    } else {
        write(text.as_bytes())
    }
}

fn write(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .with_context(|| {
            format!(
                "cannot write {} to standard output",
                counted(bytes.len() as u64, "byte")
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        for (text, expected) in [
            ("\u{1b}[31mred\u{1b}[0m", r"\u{1b}[31mred\u{1b}[0m"),
            ("\u{1b}]0;title\u{7}", r"\u{1b}]0;title\u{7}"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("a\rb\u{8}\u{7f}\0", r"a\rb\u{8}\u{7f}\u{0}"),
            ("\u{202e}gnp.exe\u{2066}", r"\u{202e}gnp.exe\u{2066}"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }

    #[test]
    fn text_stays_as_it_is() {
        let text = "lines\n\tand tabs, Grüße, 蛋白質, 🧬";
        assert!(matches!(shown(text), Cow::Borrowed(same) if same == text));
    }
}
