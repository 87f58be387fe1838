//! Turns a manifest, or a list of files on the command line, into a validated list of jobs, and
//! writes new manifests of files and folders.
//!
//! A manifest is YAML (which includes JSON), CSV or TSV. All errors are reported together, with
//! line numbers, before a model is loaded: unknown keys, invalid values, missing or repeated sample
//! names, and missing input files.

mod check;
mod collect;
mod draft;
mod error;
mod inputs;
mod job;
mod keys;
mod kind;
mod samples;
mod sniff;
mod split;
mod table;
mod write;
mod yaml;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use self::check::check;
use self::error::Mistakes;
use self::inputs::{sample_of, trouble_with, trouble_with_name};
use self::kind::{Kind, kind_of, text_of};
use crate::records::Source;
use crate::settings::{Overrides, RunOverrides, Settings};

pub use self::collect::sequence_files;
pub use self::error::{ManifestErrors, Mistake};
pub use self::job::Job;
pub use self::keys::COMMAND_LINE_ONLY;
pub use self::samples::sample_names;
pub use self::sniff::{Sniffed, sniff};
pub use self::split::split;
pub use self::write::{Entry, ManifestFormat, text};

/// A validated manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The jobs in the manifest's order, at least one.
    pub jobs: Vec<Job>,
    /// Options of the whole run, from the top level.
    pub run: RunOverrides,
}

/// Reads and validates a manifest. Options in `command_line` take precedence. Paths in the manifest
/// are relative to its folder.
///
/// # Errors
/// All errors that were found.
pub fn read(path: &Path, command_line: &Overrides) -> Result<Manifest, ManifestErrors> {
    let mut mistakes = Mistakes::default();
    let mut jobs = Vec::new();
    let mut run = RunOverrides::default();
    if let Some(text) = text_of(path, &mut mistakes) {
        let draft = match kind_of(path, &text) {
            Kind::Yaml => yaml::parse(&text, &mut mistakes),
            Kind::Table(delimiter) => table::parse(&text, delimiter, &mut mistakes),
            Kind::Sequences => {
                mistakes.add(
                    1,
                    "this is a sequence file, not a manifest: use `seqembed embed` for it",
                );
                None
            }
        };
        if let Some(draft) = draft {
            let folder = path.parent().unwrap_or(Path::new(""));
            (jobs, run) = check(&draft, folder, command_line, &mut mistakes);
        }
    }
    mistakes.into_errors(Some(path))?;
    Ok(Manifest { jobs, run })
}

/// Why jobs whose spans are to be pooled cannot be done by what pools nothing.
pub(crate) fn why_no_spans(jobs: &[Job]) -> Option<String> {
    let job = jobs.iter().find(|job| job.settings.spans.is_some())?;
    Some(format!(
        "{}: `spans` in the manifest is for embeddings alone; remove it to use whole sequences",
        job.sample
    ))
}

/// The jobs for files named on the command line. Each sample is named after its file, without the
/// extensions of sequence files and compressions (`a/b.faa.gz` gives `b`); `-` is standard input,
/// named `stdin`.
///
/// # Errors
/// All errors that were found.
pub fn jobs_from_files(
    files: &[PathBuf],
    overrides: &Overrides,
) -> Result<Vec<Job>, ManifestErrors> {
    let mut mistakes = Mistakes::default();
    let mut seen: HashMap<String, &Path> = HashMap::new();
    let mut jobs = Vec::new();
    if files.is_empty() {
        mistakes.add(None, "no input files are given");
    }
    let settings = Settings::resolve(&[overrides])
        .map_err(|error| mistakes.add(None, error.to_string()))
        .ok();
    for file in files {
        let source = Source::new(file);
        let sample = match &source {
            Source::Stdin => "stdin".to_owned(),
            Source::Path(path) => sample_of(path),
        };
        if let Some(trouble) = trouble_with(&source) {
            mistakes.add(None, format!("{}: {trouble}", file.display()));
        } else if let Some(trouble) = trouble_with_name(&sample) {
            mistakes.add(
                None,
                format!(
                    "{}: the sample name `{sample}` {trouble}; set the sample name in a manifest",
                    file.display()
                ),
            );
        }
        if let Some(first) = seen.insert(sample.clone(), file) {
            mistakes.add(
                None,
                format!(
                    "{} and {} would both be written to `{sample}`: set their sample names in a \
                     manifest",
                    first.display(),
                    file.display()
                ),
            );
        }
        if let Some(settings) = settings.clone() {
            jobs.push(Job {
                sample,
                source,
                settings,
                line: None,
            });
        }
    }
    mistakes.into_errors(None)?;
    Ok(jobs)
}
