//! What an earlier run left, for each file of a group: which are finished, which rows of the others are saved, and what
//! of it can't be used any more.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::collect::output_path;
use super::group::{Computed, Group};
use super::save::Saver;
use super::task::Task;
use super::{Options, RunError, Shared};
use crate::engine::loader::Program;
use crate::engine::select::Place;
use crate::journal::facts::Facts;
use crate::journal::rows::Saved;
use crate::journal::{Journal, Plan, Request};
use crate::output::Layout;
use crate::report::FileReport;

/// A group's files that are to be computed, with an entry for each of its tasks.
pub(crate) struct Journaled<'j> {
    /// What runs on the first device, if that is known.
    pub program: Option<Program>,
    /// What saves the files' rows; none where nothing is kept.
    pub saver: Option<Saver<'j>>,
    /// Their rows that are saved.
    pub saved: Arc<Vec<Saved>>,
    /// What is told of them.
    pub files: Vec<FileReport>,
}

impl Journaled<'_> {
    /// Where nothing is kept.
    pub fn none(files: Vec<FileReport>) -> Self {
        Self {
            program: None,
            saver: None,
            saved: Arc::default(),
            files,
        }
    }
}

/// A file that is not to be computed, and its position in the manifest.
pub(crate) struct Ended {
    pub position: usize,
    /// What is told of it: that an earlier run finished it, or why it can't be.
    pub file: FileReport,
    /// What the user should know of a finished one.
    pub note: Option<String>,
}

/// Options that decide nothing in the numbers, or stand among the facts under their final value.
const NO_FACTS: [&str; 8] = [
    "model",
    "layer",
    "format",
    "max_length",
    "max_record",
    "overlap",
    "force_alphabet",
    "batch_tokens",
];

/// The input's name among an output's facts: it decides no numbers.
const SOURCE: &str = "source";

/// How many samples a message names.
const NAMED: usize = 3;

impl Group {
    /// Looks each file up in the journal. Those that are finished, or that a folder stands in the place of, leave the group for
    /// the report.
    ///
    /// # Errors
    /// When the graph can't be made, or a finished file can't be put in its place.
    pub(super) fn prepare<'j>(
        &mut self,
        run: &Shared,
        places: &[Place],
        journal: &'j mut Journal,
    ) -> Result<(Journaled<'j>, Vec<Ended>), RunError> {
        let options = run.options;
        let mut ended = self.without_room(&options.out);
        let outputs = self.outputs();
        let wanted = self.wanted(options, &outputs);
        // The other devices' wait until there is something to compute.
        let device = places[0].device;
        let program = wanted.program(device, self.precision, run.say)?;
        let planned = Computed::of(None, Some(&program), device, self.precision);
        let layouts = self.layouts(options, &planned);
        let vocabulary = self.vocabulary();
        let requests = self
            .tasks
            .iter()
            .zip(&layouts)
            .map(|(task, layout)| Request {
                sample: &task.job.sample,
                source: &task.job.source,
                facts: facts(options, task, layout, &vocabulary),
                format: task.job.settings.format.to_string(),
                name: layout.provenance(SOURCE).unwrap_or_default().to_owned(),
                output: layout.path.clone(),
            });
        let plans = journal.plan(requests.collect())?;

        let mut files = Vec::new();
        let mut tickets = Vec::new();
        let mut saved = Vec::new();
        let tasks = std::mem::take(&mut self.tasks);
        let positions = std::mem::take(&mut self.positions);
        for (((task, position), layout), plan) in
            tasks.into_iter().zip(positions).zip(layouts).zip(plans)
        {
            match plan {
                Plan::Finished { mut report, note } => {
                    report.kept = true;
                    report.source = task.job.source.to_string();
                    report.output = Some(layout.path);
                    ended.push(Ended {
                        position,
                        file: *report,
                        note,
                    });
                }
                Plan::Compute {
                    ticket,
                    saved: rows,
                    why_again,
                } => {
                    files.push(FileReport {
                        warnings: why_again.as_deref().map(again).into_iter().collect(),
                        ..self.file_report(&task)
                    });
                    tickets.push(ticket);
                    saved.push(rows);
                    self.tasks.push(task);
                    self.positions.push(position);
                }
            }
        }
        let hidden = self.model.architecture().hidden();
        let journaled = Journaled {
            program: Some(program),
            saver: Some(Saver::new(journal, tickets, hidden, options.save_every)),
            saved: Arc::new(saved),
            files,
        };
        Ok((journaled, ended))
    }

    /// Takes the files out whose place a folder has, before anything is computed for them.
    fn without_room(&mut self, out: &Path) -> Vec<Ended> {
        let mut ended = Vec::new();
        let tasks = std::mem::take(&mut self.tasks);
        let positions = std::mem::take(&mut self.positions);
        for (task, position) in tasks.into_iter().zip(positions) {
            let format = task.job.settings.format;
            let path = output_path(out, &task.job.sample, format.extension());
            if let Err(error) = format.has_room(&path) {
                let file = FileReport {
                    error: Some(error.to_string()),
                    ..self.file_report(&task)
                };
                ended.push(Ended {
                    position,
                    file,
                    note: None,
                });
            } else {
                self.tasks.push(task);
                self.positions.push(position);
            }
        }
        ended
    }

    fn file_report(&self, task: &Task) -> FileReport {
        FileReport {
            sample: task.job.sample.clone(),
            source: task.job.source.to_string(),
            model: self.model.info().name.clone(),
            ..FileReport::default()
        }
    }

    /// The hash of the tokenizer's files.
    fn vocabulary(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for name in &self.model.info().tokenizer.files {
            // A file that can't be read was told when the model was opened.
            hasher.update(&fs::read(self.model.folder().join(name)).unwrap_or_default());
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn again(why: &str) -> String {
    format!("computed again: {why}")
}

/// All that decides the numbers of a file beside its sequences: what its output says of itself, and the rest of the options.
fn facts(options: &Options, task: &Task, layout: &Layout, vocabulary: &str) -> Facts {
    let mut facts = layout.provenance.clone();
    facts.retain(|(key, _)| key != SOURCE);
    let kernels = format!("{:?}", options.kernels).to_lowercase();
    facts.push(("kernels".to_owned(), kernels));
    facts.push(("vocabulary".to_owned(), vocabulary.to_owned()));
    let settings = serde_json::to_value(&task.job.settings);
    if let Ok(serde_json::Value::Object(settings)) = settings {
        for (key, value) in settings {
            let is_there = facts.iter().any(|(name, _)| *name == key);
            if !is_there && !NO_FACTS.contains(&key.as_str()) {
                let text = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                facts.push((key, text));
            }
        }
    }
    Facts(facts)
}

/// What is computed again or was put in its place, and why: a line for each reason.
pub fn told(files: &[FileReport], ended: &[Ended]) -> Vec<String> {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in files {
        for why in &file.warnings {
            reasons.entry(why).or_default().push(&file.sample);
        }
    }
    for Ended { file, note, .. } in ended {
        if let Some(note) = note {
            reasons.entry(note).or_default().push(&file.sample);
        }
    }
    let line = |(why, samples): (&str, Vec<&str>)| {
        let more = match samples.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named = samples[..samples.len().min(NAMED)].join(", ");
        format!("{named}{more}: {why}")
    };
    reasons.into_iter().map(line).collect()
}
