//! Resuming: for each file of a group, determines whether an earlier run finished it, which rows
//! are saved, and what is no longer valid.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::context::RunContext;
use super::error::RunError;
use super::group::Group;
use super::options::Options;
use super::output_files::output_path;
use super::provenance::{self, ComputedBy};
use super::save::Saver;
use super::task::Task;
use crate::engine::loader::PreparedModel;
use crate::engine::select::SelectedDevice;
use crate::journal::facts::Facts;
use crate::journal::rows::Saved;
use crate::journal::{self, Journal, Request, ResumePlan, Ticket};
use crate::output::{Layout, OutputError};
use crate::report::FileReport;
use crate::tokenize;

/// How a group's files continue, with an entry for each of the tasks that are left.
pub(crate) struct Resumed<'j> {
    /// The model as the first device will run it, if that is known.
    pub prepared: Option<PreparedModel>,
    /// Saves rows of unfinished files; `None` where nothing is saved.
    pub saver: Option<Saver<'j>>,
    /// Rows that an earlier run saved.
    pub saved: Arc<Vec<Saved>>,
    /// The files' reports so far.
    pub files: Vec<FileReport>,
}

impl Resumed<'_> {
    /// All files from the start, without saving anything.
    pub fn nothing(group: &Group) -> Self {
        let files = group.tasks.iter().map(|task| group.file_report(task));
        Self {
            prepared: None,
            saver: None,
            saved: Arc::default(),
            files: files.collect(),
        }
    }
}

/// A file that is not computed.
pub(crate) struct Skipped {
    /// Its position in the manifest.
    pub position: usize,
    /// Its report: that an earlier run finished it, or why it cannot be written.
    pub file: FileReport,
    /// What the user should know about a finished one.
    pub note: Option<String>,
}

/// Options that do not change the numbers, or are in the provenance with the value that they got.
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

/// The key of the input's name in the provenance.
pub(super) const SOURCE: &str = "source";

/// Keys of the provenance that do not change the numbers: a file that was finished before more was
/// known of a model is still right.
const NO_NUMBERS: [&str; 2] = [SOURCE, "licence"];

/// Maximum number of samples named in a message.
const NAMED: usize = 3;

/// Looks up each file of a group in the journal. Removes files from the group that are finished, or
/// whose output path is a folder.
///
/// # Errors
/// If the graph cannot be built, or a finished file cannot be restored.
pub(super) fn look_up<'j>(
    group: &mut Group,
    context: &RunContext,
    devices: &[SelectedDevice],
    journal: &'j mut Journal,
) -> Result<(Resumed<'j>, Vec<Skipped>), RunError> {
    let options = context.options;
    let mut skipped = without_room(group, &|task| {
        let format = task.job.settings.format;
        let path = output_path(&options.out, &task.job.sample, format.extension());
        format.has_room(&path)
    });
    let outputs = group.outputs();
    let spec = group.spec(options, &outputs);
    // The model is prepared for other devices when there is something to compute.
    let device = devices[0].device;
    let prepared = spec.prepare(device, group.precision, context.say)?;
    let planned = ComputedBy::planned(Some(&prepared), device, group.precision);
    let layouts = provenance::layouts(group, options, &planned);
    let requests = requests(group, options, &layouts);
    let plans = journal.plan(requests)?;
    let outputs = layouts.into_iter().map(|layout| layout.path).collect();
    let (left, finished) = divide(group, plans, outputs);
    skipped.extend(finished);
    let hidden = group.width();
    let resumed = Resumed {
        prepared: Some(prepared),
        saver: Some(Saver::new(
            journal,
            left.tickets,
            hidden,
            options.save_every,
        )),
        saved: Arc::new(left.saved),
        files: left.files,
    };
    Ok((resumed, skipped))
}

/// What is known of each file that is left to compute.
#[derive(Default)]
pub(super) struct Left {
    /// What the journal knows it by.
    pub tickets: Vec<Ticket>,
    /// Rows that an earlier run saved.
    pub saved: Vec<Saved>,
    /// Its report so far.
    pub files: Vec<FileReport>,
}

/// Removes finished files from a group. `outputs`: the path of each file's output.
pub(super) fn divide(
    group: &mut Group,
    plans: Vec<ResumePlan>,
    outputs: Vec<PathBuf>,
) -> (Left, Vec<Skipped>) {
    let (mut left, mut skipped) = (Left::default(), Vec::new());
    let tasks = std::mem::take(&mut group.tasks);
    let positions = std::mem::take(&mut group.positions);
    for (((task, position), output), plan) in
        tasks.into_iter().zip(positions).zip(outputs).zip(plans)
    {
        match plan {
            ResumePlan::Finished { mut report, note } => {
                report.kept = true;
                report.source = task.job.source.to_string();
                report.output = Some(output);
                skipped.push(Skipped {
                    position,
                    file: *report,
                    note,
                });
            }
            ResumePlan::Compute {
                ticket,
                saved: rows,
                why_again,
            } => {
                left.files.push(FileReport {
                    warnings: why_again.as_deref().map(again).into_iter().collect(),
                    ..group.file_report(&task)
                });
                left.tickets.push(ticket);
                left.saved.push(rows);
                group.tasks.push(task);
                group.positions.push(position);
            }
        }
    }
    (left, skipped)
}

/// What the journal is asked about each file of a group.
fn requests<'g>(group: &'g Group, options: &Options, layouts: &[Layout]) -> Vec<Request<'g>> {
    let tokenizer = of_tokenizer(group);
    let tasks = group.tasks.iter().zip(layouts);
    let requests = tasks.map(|(task, layout)| Request {
        sample: &task.job.sample,
        source: &task.job.source,
        facts: facts(options, task, layout, &tokenizer),
        format: task.job.settings.format.to_string(),
        name: layout.provenance(SOURCE).unwrap_or_default().to_owned(),
        output: layout.path.clone(),
    });
    requests.collect()
}

/// Which files of a group a run with `--resume` would keep. Nothing is written to the output
/// folder.
///
/// # Errors
/// If the graph cannot be built, or the journal cannot be read.
pub(super) fn finished(
    group: &Group,
    context: &RunContext,
    devices: &[SelectedDevice],
) -> Result<Vec<bool>, RunError> {
    let options = context.options;
    let outputs = group.outputs();
    let device = devices[0].device;
    let spec = group.spec(options, &outputs);
    let prepared = spec.prepare(device, group.precision, context.say)?;
    let planned = ComputedBy::planned(Some(&prepared), device, group.precision);
    let layouts = provenance::layouts(group, options, &planned);
    let requests = requests(group, options, &layouts);
    Ok(journal::finished(
        &options.out,
        options.cache_dir.as_deref(),
        &requests,
    )?)
}

/// Removes files from a group whose output path is a folder, before anything is computed for them.
pub(super) fn without_room(
    group: &mut Group,
    has_room: &dyn Fn(&Task) -> Result<(), OutputError>,
) -> Vec<Skipped> {
    let mut skipped = Vec::new();
    let tasks = std::mem::take(&mut group.tasks);
    let positions = std::mem::take(&mut group.positions);
    for (task, position) in tasks.into_iter().zip(positions) {
        if let Err(error) = has_room(&task) {
            let file = FileReport {
                error: Some(error.to_string()),
                ..group.file_report(&task)
            };
            skipped.push(Skipped {
                position,
                file,
                note: None,
            });
        } else {
            group.tasks.push(task);
            group.positions.push(position);
        }
    }
    skipped
}

/// What the tokens of a sequence depend on.
pub(super) fn of_tokenizer(group: &Group) -> [(&'static str, String); 2] {
    [
        ("vocabulary", vocabulary(group)),
        ("tokens", tokenize::behaviour(group.tokenizer.as_ref())),
    ]
}

/// BLAKE3, in hexadecimal, of the tokenizer's files.
fn vocabulary(group: &Group) -> String {
    let mut hasher = blake3::Hasher::new();
    for name in &group.model.info().tokenizer.files {
        // A file that cannot be read was reported when the model was opened.
        hasher.update(&fs::read(group.model.folder().join(name)).unwrap_or_default());
    }
    hasher.finalize().to_hex().to_string()
}

fn again(why: &str) -> String {
    format!("recomputed: {why}")
}

/// Everything that affects the values of a file, except its sequences: the provenance, and the
/// remaining options.
fn facts(options: &Options, task: &Task, layout: &Layout, tokenizer: &[(&str, String)]) -> Facts {
    let mut facts = without_settings(options, task, layout.provenance.clone(), tokenizer);
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

/// The provenance but for what does not change the numbers, the kernels, and how sequences become
/// tokens.
pub(super) fn without_settings(
    options: &Options,
    task: &Task,
    provenance: Vec<(String, String)>,
    tokenizer: &[(&str, String)],
) -> Vec<(String, String)> {
    let mut facts = provenance;
    facts.retain(|(key, _)| !NO_NUMBERS.contains(&key.as_str()));
    let kernels = format!("{:?}", options.kernels).to_lowercase();
    facts.push(("kernels".to_owned(), kernels));
    let tokenizer = tokenizer.iter();
    facts.extend(tokenizer.map(|(key, value)| ((*key).to_owned(), value.clone())));
    if let Some(most) = task.max_tokens {
        facts.push(("max_tokens".to_owned(), most.to_string()));
    }
    facts
}

/// Which files are computed again or were put in their place, and why: a line for each reason.
pub fn messages(files: &[FileReport], skipped: &[Skipped]) -> Vec<String> {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in files {
        for why in &file.warnings {
            reasons.entry(why).or_default().push(&file.sample);
        }
    }
    for Skipped { file, note, .. } in skipped {
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
