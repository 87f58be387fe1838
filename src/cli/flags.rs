//! Options by the names that the command line has for them.
//!
//! The library's messages name options as its users and manifests do: option `max_length`, or
//! option `long: truncate` with a value. Whoever reads them in a terminal types `--max-length` and
//! `--long truncate`.

use std::borrow::Cow;

use crate::manifest::COMMAND_LINE_ONLY;
use crate::settings::{Overrides, RunOverrides};

/// How a message names an option.
const MARK: &str = "option `";

/// Options of `export` and `fetch`, which manifests do not have.
const OTHERS: [&str; 4] = ["force", "speed_limit", "timeout", "tokenizer"];

/// The message with a flag for each option that it names.
pub(super) fn with_flags(message: &str) -> Cow<'_, str> {
    if !message.contains(MARK) {
        return Cow::Borrowed(message);
    }
    let mut text = String::with_capacity(message.len());
    let mut rest = message;
    while let Some((before, behind)) = rest.split_once(MARK) {
        text.push_str(before);
        match behind.split_once('`') {
            Some((named, after)) if flag(named, &mut text) => rest = after,
            _ => {
                text.push_str(MARK);
                rest = behind;
            }
        }
    }
    text.push_str(rest);
    Cow::Owned(text)
}

/// Appends the flag of `name`, or of `name: value`; `false` if there is no such option.
fn flag(named: &str, text: &mut String) -> bool {
    let (name, value) = match named.split_once(": ") {
        Some((name, value)) => (name, Some(value)),
        None => (named, None),
    };
    let groups: [&[&str]; 4] = [
        &Overrides::KEYS,
        &RunOverrides::KEYS,
        &COMMAND_LINE_ONLY,
        &OTHERS,
    ];
    let is_known = groups.iter().any(|names| names.contains(&name));
    if is_known {
        text.push_str("--");
        text.push_str(&name.replace('_', "-"));
        if let Some(value) = value {
            text.push(' ');
            text.push_str(value);
        }
    }
    is_known
}

#[cfg(test)]
mod tests {
    use super::with_flags;

    #[test]
    fn options_are_flags_and_the_rest_stays() {
        for (message, expected) in [
            (
                "12 residues exceed option `max_length: 8`; use option `long: truncate`",
                "12 residues exceed --max-length 8; use --long truncate",
            ),
            (
                "it is too long (option `max_record`)",
                "it is too long (--max-record)",
            ),
            (
                "option `device: cuda:0,1` is not available",
                "--device cuda:0,1 is not available",
            ),
            (
                "no option `colour`, and `pooling`",
                "no option `colour`, and `pooling`",
            ),
            ("an option `without an end", "an option `without an end"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(with_flags(message), expected);
        }
    }
}
