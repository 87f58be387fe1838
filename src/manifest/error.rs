//! The mistakes in a manifest, which are collected and reported together.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::text::counted;

/// All errors found in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestErrors {
    /// The manifest; `None` for a list of files on the command line.
    pub path: Option<PathBuf>,
    /// The errors in order of lines, at least one.
    pub mistakes: Vec<Mistake>,
}

/// One error in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1, if known.
    pub line: Option<usize>,
    /// What is wrong, and what to write instead.
    pub text: String,
}

impl fmt::Display for ManifestErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.mistakes.iter().enumerate() {
            if number > 0 {
                f.write_char('\n')?;
            }
            match (&self.path, mistake.line) {
                (Some(path), Some(line)) => write!(f, "{}:{line}: ", path.display())?,
                (Some(path), None) => write!(f, "{}: ", path.display())?,
                (None, _) => {}
            }
            f.write_str(&mistake.text)?;
        }
        if self.mistakes.len() > 1 {
            write!(
                f,
                "\n{} found; nothing was run",
                counted(self.mistakes.len() as u64, "mistake")
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for ManifestErrors {}

/// The errors found so far.
#[derive(Debug, Default)]
pub(super) struct Mistakes(Vec<Mistake>);

impl Mistakes {
    pub(super) fn add(&mut self, line: impl Into<Option<usize>>, text: impl Into<String>) {
        self.0.push(Mistake {
            line: line.into(),
            text: text.into(),
        });
    }

    /// Whether nothing was found so far.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The errors in order of lines, if there are any.
    pub(super) fn into_errors(mut self, path: Option<&Path>) -> Result<(), ManifestErrors> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.0.sort_by_key(|mistake| mistake.line);
        Err(ManifestErrors {
            path: path.map(Path::to_owned),
            mistakes: self.0,
        })
    }
}
