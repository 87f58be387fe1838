//! The journal's log: one line a fact, each with its checksum, so that a line that was cut or
//! damaged is known for it.
//!
//! ```text
//! 16 hexadecimal digits of BLAKE3, a space, JSON, a line feed
//! ```

use serde::{Deserialize, Serialize};

use super::facts::{Facts, InputFingerprint};
use crate::output::Written;
use crate::report::FileReport;

/// Version of the log format, increased when older logs cannot be continued.
pub const VERSION: u32 = 2;

/// The previous version, without hashes of finished files; its saved rows can still be used.
pub const WITHOUT_HASHES: u32 = 1;

/// A line of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// The first line.
    Begin {
        /// [`VERSION`].
        version: u32,
    },
    /// Facts, under the number that later lines call them by.
    Facts {
        /// The number by which other lines refer to them.
        id: u64,
        /// What the results of a file depend on.
        facts: Facts,
    },
    /// Rows saved with this attempt's number are of this file with these facts.
    Attempt(Attempt),
    /// A file that is finished.
    Done(Box<Done>),
}

/// A file that was begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attempt {
    /// Name of the sample, which is that of its output without the ending.
    pub sample: String,
    /// The number of its facts.
    pub facts: u64,
    /// No other attempt in this folder has it.
    pub attempt: u64,
}

/// A file that is finished.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    /// Name of the sample, which is that of its output without the ending.
    pub sample: String,
    /// The number of its facts.
    pub facts: u64,
    /// The output format, which decides the layout of the file.
    pub format: String,
    /// The name of the input, which is recorded in the output.
    pub source: String,
    /// The input (size and hash) that it was made from.
    pub input: InputFingerprint,
    /// The files of the output, with sizes and hashes; the main file comes last. Empty in logs of
    /// version [`WITHOUT_HASHES`].
    #[serde(default)]
    pub files: Vec<Written>,
    /// The warnings about the file.
    pub report: FileReport,
}

/// A line's text.
///
/// # Panics
/// Never: everything in a line can be written as JSON.
#[must_use]
pub fn write(line: &Line) -> String {
    let json = serde_json::to_string(line).expect("everything in a line can be written as JSON");
    format!("{} {json}\n", check(json.as_bytes()))
}

/// The lines of a log, and how many were damaged. A last line without its end was being written
/// when all ended: it counts as not written.
#[must_use]
pub fn parse(text: &[u8]) -> (Vec<Line>, usize) {
    let mut lines = Vec::new();
    let mut damaged = 0;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let Some(line) = line.strip_suffix(b"\n") else {
            break;
        };
        match parse_line(line) {
            Some(line) => lines.push(line),
            None => damaged += 1,
        }
    }
    (lines, damaged)
}

fn parse_line(line: &[u8]) -> Option<Line> {
    let (sum, rest) = line.split_at_checked(16)?;
    let json = rest.strip_prefix(b" ")?;
    (check(json).as_bytes() == sum).then(|| serde_json::from_slice(json).ok())?
}

fn check(json: &[u8]) -> String {
    blake3::hash(json).to_hex()[..16].to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_line_costs_itself_alone_and_a_cut_one_nothing() {
        let lines: Vec<String> = (0..3)
            .map(|attempt| {
                write(&Line::Attempt(Attempt {
                    sample: format!("s{attempt}"),
                    facts: 1,
                    attempt,
                }))
            })
            .collect();
        let mut text = lines.concat().into_bytes();
        text.extend(b"0123456789abcdef {\"begin");
        let (read, damaged) = parse(&text);
        assert_eq!((read.len(), damaged), (3, 0));
        let at = lines[0].len() + 30;
        text[at] ^= 1;
        let (read, damaged) = parse(&text);
        assert_eq!((read.len(), damaged), (2, 1));
        let Line::Attempt(last) = &read[1] else {
            panic!("{read:?}")
        };
        assert_eq!(last.sample, "s2");
    }
}
