//! What is to be done with one input file.

use crate::records::Source;
use crate::settings::Settings;

/// One input file, its output name and its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The sample name, which names the output file: a valid file name, unique among the jobs.
    pub sample: String,
    /// Where the sequences come from.
    pub source: Source,
    /// The options that hold for this file, all decided.
    pub settings: Settings,
    /// The line of the manifest, from 1; `None` for a file named on the command line.
    pub line: Option<usize>,
}
