//! What is to be done with one input file.

use crate::records::Source;
use crate::settings::Settings;

/// One input file, its output name and its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The sample name, which names the output file: a valid file name, unique among the jobs.
    pub sample: String,
    /// The input.
    pub source: Source,
    /// Its options.
    pub settings: Settings,
    /// The line of the manifest, from 1; `None` for a file named on the command line.
    pub line: Option<usize>,
}
