//! What scores depend on: the provenance of tables, and what of an earlier run is still right.

use std::path::PathBuf;

use seqembed_onnx::HeadInfo;

use super::error::ScoreError;
use super::method::Method;
use super::options::ScoreOptions;
use super::outputs;
use crate::engine::loader::PreparedModel;
use crate::engine::select::SelectedDevice;
use crate::journal::facts::Facts;
use crate::journal::{Journal, Request};
use crate::output::OutputError;
use crate::run::group::Group;
use crate::run::options::Options;
use crate::run::provenance::{device_kind, source_name, with_origin};
use crate::run::resume::{self, Left, SOURCE, Skipped};
use crate::run::task::Task;

/// Everything that affects the scores of a task's file, except its sequences.
pub fn provenance(
    group: &Group,
    task: &Task,
    scores: &ScoreOptions,
    device: &SelectedDevice,
    graph_sha256: &str,
) -> Vec<(String, String)> {
    let settings = &task.job.settings;
    let info = group.model.info();
    let head = info.head.as_ref().map(|HeadInfo { blake3, .. }| blake3);
    let method = match scores.method {
        Method::Unmasked => "unmasked",
        Method::Masked => "masked",
    };
    let mut entries = vec![
        ("seqembed", env!("CARGO_PKG_VERSION").to_owned()),
        ("model", info.name.clone()),
        ("weights_sha256", info.weights_sha256.clone()),
        ("head_blake3", head.cloned().unwrap_or_default()),
        ("graph_sha256", graph_sha256.to_owned()),
        ("precision", group.precision.to_string()),
        ("device", device_kind(device.device).to_owned()),
        ("method", method.to_owned()),
        ("tables", tables(scores).join(",")),
        ("long", settings.long.to_string()),
        ("max_length", task.window.max_length.to_string()),
        ("overlap", task.window.overlap.to_string()),
        ("unknown", settings.unknown.to_string()),
        (SOURCE, source_name(task)),
    ];
    if let Some((_, variants)) = &scores.variants {
        entries.push(("variants_blake3", variants.blake3.clone()));
        entries.push(("joint", scores.joint.to_string()));
    }
    with_origin(entries, info)
}

/// The names of the tables that are asked for.
fn tables(scores: &ScoreOptions) -> Vec<&'static str> {
    let names = outputs::kinds(scores).into_iter().map(|kind| match kind {
        outputs::Kind::Records => "records",
        outputs::Kind::Residues if scores.vocabulary => "residues of all tokens",
        outputs::Kind::Residues => "residues",
        outputs::Kind::Scan => "scan",
        outputs::Kind::Variants => "variants",
    });
    names.collect()
}

/// Looks up each file of a group in the journal, and removes those that are finished, or that have
/// a folder in the place of one of their tables.
///
/// # Errors
/// If a finished file cannot be restored.
pub fn look_up(
    group: &mut Group,
    options: &Options,
    scores: &ScoreOptions,
    device: &SelectedDevice,
    prepared: &PreparedModel,
    journal: &mut Journal,
) -> Result<(Left, Vec<Skipped>), ScoreError> {
    let mut skipped = resume::without_room(group, &|task| {
        let kinds = outputs::kinds(scores).into_iter();
        let paths = kinds.map(|kind| outputs::path(&options.out, &task.job.sample, kind, scores));
        match paths.into_iter().find(|path| path.is_dir()) {
            Some(path) => Err(OutputError::Folder { path }),
            None => Ok(()),
        }
    });
    let tokenizer = resume::of_tokenizer(group);
    let outputs: Vec<PathBuf> = group
        .tasks
        .iter()
        .map(|task| outputs::main_path(&options.out, &task.job.sample, scores))
        .collect();
    let tasks = group.tasks.iter().zip(&outputs);
    let requests = tasks.map(|(task, output)| {
        let facts = provenance(group, task, scores, device, &prepared.graph_sha256);
        Request {
            sample: &task.job.sample,
            source: &task.job.source,
            facts: Facts(resume::without_settings(options, task, facts, &tokenizer)),
            format: format!("scores in {}", scores.format.extension()),
            name: source_name(task),
            output: output.clone(),
        }
    });
    let plans = journal.plan(requests.collect())?;
    let (left, finished) = resume::divide(group, plans, outputs);
    skipped.extend(finished);
    Ok((left, skipped))
}
