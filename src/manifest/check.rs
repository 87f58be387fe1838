//! Validates a parsed manifest and turns it into jobs.

use std::collections::HashMap;
use std::path::Path;

use super::draft::{Draft, Field, FileEntry};
use super::error::Mistakes;
use super::inputs::{trouble_with, trouble_with_name};
use super::job::Job;
use super::keys::INPUT_KEYS;
use crate::records::Source;
use crate::settings::{OptionError, Overrides, RunOverrides, Settings};

/// Validates a draft, and turns it into jobs and options of the run. Paths are relative to
/// `folder`.
pub(super) fn check(
    draft: &Draft,
    folder: &Path,
    command_line: &Overrides,
    mistakes: &mut Mistakes,
) -> (Vec<Job>, RunOverrides) {
    let mut top = Overrides::default();
    let mut run = RunOverrides::default();
    for field in &draft.top {
        let result = if RunOverrides::KEYS.contains(&field.key.as_str()) {
            run.set(&field.key, &field.text)
        } else {
            top.set(&field.key, &field.text)
        };
        note(result, field, mistakes);
        locate_spans(folder, &mut top, field, mistakes);
    }
    let mut files = Files {
        folder,
        command_line,
        top: &top,
        samples: HashMap::new(),
        stdin_line: None,
        lacks_model: false,
    };
    let jobs = draft.entries.iter();
    let jobs = jobs
        .filter_map(|entry| files.job(entry, mistakes))
        .collect();
    (jobs, run)
}

/// A table of spans is relative to the manifest, as sequence files are.
fn locate_spans(folder: &Path, own: &mut Overrides, field: &Field, mistakes: &mut Mistakes) {
    if field.key != "spans" {
        return;
    }
    own.spans = own.spans.take().map(|path| folder.join(path));
    if own.spans.as_ref().is_some_and(|path| !path.is_file()) {
        let text = &field.text;
        mistakes.add(
            field.line,
            format!("invalid value `{text}` for `spans`: no such file"),
        );
    }
}

/// Options of all files, and what was found in the entries checked so far.
struct Files<'d> {
    folder: &'d Path,
    command_line: &'d Overrides,
    top: &'d Overrides,
    /// The line of each sample's name.
    samples: HashMap<&'d str, usize>,
    stdin_line: Option<usize>,
    /// Whether a missing model was already reported.
    lacks_model: bool,
}

impl<'d> Files<'d> {
    /// The job of a file's entry, unless something is wrong with it.
    fn job(&mut self, entry: &'d FileEntry, mistakes: &mut Mistakes) -> Option<Job> {
        let mut own = Overrides::default();
        let mut sample = None;
        let mut input: Option<&Field> = None;
        for field in &entry.fields {
            if field.key == "sample" {
                sample = Some(field);
            } else if INPUT_KEYS.contains(&field.key.as_str()) {
                if let Some(other) = input.replace(field) {
                    let text = format!(
                        "`{}` and `{}` are both set, but a sample has one file",
                        other.key, field.key
                    );
                    mistakes.add(field.line, text);
                }
            } else {
                note(own.set(&field.key, &field.text), field, mistakes);
                locate_spans(self.folder, &mut own, field, mistakes);
            }
        }
        self.check_sample(entry, sample, mistakes);
        let source = input.map(|field| resolve(self.folder, &field.text));
        self.check_input(entry, input, source.as_ref(), mistakes);

        let layers = [self.command_line, &own, self.top];
        if layers.iter().all(|layer| layer.model.is_none()) {
            // Reported once, not for every line of a long table.
            if !entry.is_damaged && !std::mem::replace(&mut self.lacks_model, true) {
                let text = "no model is named: set `model` here or for all files, or give \
                            `--model`";
                mistakes.add(entry.line, text);
            }
            return None;
        }
        match (Settings::resolve(&layers), sample, source) {
            (Err(error), ..) => {
                mistakes.add(entry.line, error.to_string());
                None
            }
            (Ok(settings), Some(sample), Some(source)) => Some(Job {
                sample: sample.text.clone(),
                source,
                settings,
                line: Some(entry.line),
            }),
            _ => None,
        }
    }

    fn check_sample(
        &mut self,
        entry: &FileEntry,
        sample: Option<&'d Field>,
        mistakes: &mut Mistakes,
    ) {
        match sample {
            None if !entry.is_damaged => {
                mistakes.add(entry.line, "`sample` is missing; it names the output file");
            }
            None => {}
            Some(field) => {
                if let Some(trouble) = trouble_with_name(&field.text) {
                    mistakes.add(
                        field.line,
                        format!("the sample name `{}` {trouble}", field.text.escape_debug()),
                    );
                } else if let Some(first) = self.samples.insert(&field.text, field.line) {
                    self.samples.insert(&field.text, first);
                    mistakes.add(
                        field.line,
                        format!(
                            "the sample name `{}` is already used on line {first}; both would be \
                             written to the same file",
                            field.text
                        ),
                    );
                }
            }
        }
    }

    fn check_input(
        &mut self,
        entry: &FileEntry,
        input: Option<&Field>,
        source: Option<&Source>,
        mistakes: &mut Mistakes,
    ) {
        match (input, source) {
            (Some(field), Some(Source::Stdin)) => {
                if let Some(first) = self.stdin_line.replace(field.line) {
                    let text = format!("standard input (`-`) is already used on line {first}");
                    mistakes.add(field.line, text);
                }
            }
            (Some(field), _) if field.text.is_empty() => {
                mistakes.add(
                    field.line,
                    format!("`{}` is empty; it names the input file", field.key),
                );
            }
            (Some(field), Some(source)) => {
                if let Some(trouble) = trouble_with(source) {
                    mistakes.add(field.line, format!("{source}: {trouble}"));
                }
            }
            _ if !entry.is_damaged => {
                mistakes.add(entry.line, "`fasta` is missing; it names the input file");
            }
            _ => {}
        }
    }
}

fn note(result: Result<(), OptionError>, field: &Field, mistakes: &mut Mistakes) {
    if let Err(error) = result {
        mistakes.add(field.line, error.to_string());
    }
}

/// A path in a manifest, resolved relative to the manifest's folder.
fn resolve(folder: &Path, text: &str) -> Source {
    match Source::new(text) {
        Source::Path(path) => Source::Path(folder.join(path)),
        Source::Stdin => Source::Stdin,
    }
}
