//! The provenance of an output: everything that affects its values, except the sequences.

use seqembed_onnx::ModelInfo;

use super::group::Group;
use super::options::Options;
use super::output_files::output_path;
use super::task::Task;
use crate::device::Device;
use crate::engine::loader::PreparedModel;
use crate::engine::session::SessionInfo;
use crate::output::{COLUMNS, Layout};
use crate::records::Source;
use crate::settings::Precision;
use crate::text;

/// What computes the numbers of an output.
pub(super) struct ComputedBy {
    device: Device,
    precision: Precision,
    graph_sha256: String,
}

impl ComputedBy {
    /// A loaded session. Its own description is recorded, not what was planned.
    pub(super) fn session(info: &SessionInfo) -> Self {
        Self {
            device: info.device,
            precision: info.precision,
            graph_sha256: info.graph_sha256.clone(),
        }
    }

    /// What is planned, before anything is loaded, or where there is nothing to compute.
    pub(super) fn planned(
        prepared: Option<&PreparedModel>,
        device: Device,
        precision: Precision,
    ) -> Self {
        Self {
            device,
            precision,
            graph_sha256: prepared
                .map(|prepared| prepared.graph_sha256.clone())
                .unwrap_or_default(),
        }
    }
}

/// The layouts of a group's outputs, one for each task.
pub(super) fn layouts(group: &Group, options: &Options, by: &ComputedBy) -> Vec<Layout> {
    let layout = |task: &Task| {
        let settings = &task.job.settings;
        let columns = group.columns(task);
        Layout {
            path: output_path(&options.out, &task.job.sample, settings.format.extension()),
            hidden: group.width(),
            per_token: settings.pooling.is_per_token(),
            precision: settings.output_precision,
            provenance: provenance(group, task, by, &columns),
            columns,
        }
    };
    group.tasks.iter().map(layout).collect()
}

fn provenance(
    group: &Group,
    task: &Task,
    by: &ComputedBy,
    columns: &[String],
) -> Vec<(String, String)> {
    let settings = &task.job.settings;
    let info = group.model.info();
    let mut entries = vec![
        ("seqembed", env!("CARGO_PKG_VERSION").to_owned()),
        ("model", info.name.clone()),
        ("weights_sha256", info.weights_sha256.clone()),
        ("graph_sha256", by.graph_sha256.clone()),
        ("precision", by.precision.to_string()),
        ("output_precision", settings.output_precision.to_string()),
        ("device", device_kind(by.device).to_owned()),
        ("layer", group.layers.to_string()),
        ("pooling", settings.pooling.to_string()),
        ("long", settings.long.to_string()),
        ("max_length", task.window.max_length.to_string()),
        ("overlap", task.window.overlap.to_string()),
        ("unknown", settings.unknown.to_string()),
        ("revcomp", settings.revcomp.to_string()),
        ("source", source_name(task)),
    ];
    if let Some(spans) = &task.spans {
        entries.push(("spans", spans.hash.clone()));
        entries.push(("whole", settings.whole.to_string()));
    }
    if !columns.is_empty() {
        entries.push((COLUMNS, columns.join(",")));
    }
    with_origin(entries, info)
}

/// Entries of a file's provenance, and where the model's weights come from.
pub(crate) fn with_origin(
    mut entries: Vec<(&str, String)>,
    model: &ModelInfo,
) -> Vec<(String, String)> {
    if let Some(seed) = model.random_seed {
        entries.push(("random_seed", seed.to_string()));
    }
    if let Some(known) = model.published() {
        entries.push(("licence", known.publication.licence.to_owned()));
    }
    let entries = entries.into_iter();
    entries
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// The input's file name. Its folder does not matter to what was computed.
pub(crate) fn source_name(task: &Task) -> String {
    match &task.job.source {
        Source::Path(path) => text::lossless_name(path.file_name().unwrap_or(path.as_os_str())),
        source @ Source::Stdin => source.to_string(),
    }
}

/// The device without its number: which of several GPUs computed is chance.
pub(super) fn device_kind(device: Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
    }
}
