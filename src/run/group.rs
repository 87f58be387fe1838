//! Jobs that share a session, because they have the same model, layer and precision.

use std::collections::HashMap;
use std::sync::Arc;

use seqembed_onnx::{Head, Model};

use super::error::RunError;
use super::opened_model::OpenedModel;
use super::options::Options;
use super::task::Task;
use crate::engine::batch::Reduce;
use crate::engine::loader::GraphSpec;
use crate::engine::select::{self, SelectedDevice};
use crate::manifest::Job;
use crate::output::Sink;
use crate::records::Record;
use crate::report::FileReport;
use crate::settings::{Precision, SettingsError};
use crate::tokenize::Tokenizer;

/// Jobs that share a session.
pub(crate) struct Group {
    pub(crate) model: Arc<Model>,
    pub(crate) layer: usize,
    /// The precision that is computed in, never `auto`.
    pub(crate) precision: Precision,
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
    pub(crate) tasks: Vec<Task>,
    /// The jobs' positions in the manifest.
    pub(crate) positions: Vec<usize>,
    /// Records in memory instead of the only job's file, and where their rows go instead of its
    /// output.
    pub(crate) given: Option<(Vec<Record>, Box<dyn Sink>)>,
    /// The head that rows are scored with; `None`: they are embedded.
    pub(crate) head: Option<Head>,
}

/// Opens every model that the jobs name, and puts jobs that can share a session together, unless
/// each is to have its own.
pub(super) fn group_jobs(
    jobs: Vec<Job>,
    options: &Options,
    devices: &[SelectedDevice],
    say: &dyn Fn(&str),
) -> Result<Vec<Group>, RunError> {
    let mut models: HashMap<String, OpenedModel> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (position, job) in jobs.into_iter().enumerate() {
        let name = &job.settings.model;
        let opened = if let Some(opened) = models.get(name) {
            opened.clone()
        } else {
            let opened = OpenedModel::open(name, say)?;
            models.insert(name.clone(), opened.clone());
            opened
        };
        let misfit = |source| RunError::Settings {
            sample: job.sample.clone(),
            source,
        };
        let layers = opened.model.architecture().layers();
        let layer = job.settings.layer_of(layers).map_err(misfit)?;
        let window = opened.window(&job.settings).map_err(misfit)?;
        let max_tokens = opened.max_tokens(window);
        let asked = job.settings.precision;
        for device in devices {
            select::check_precision(asked, device, options.kernels).map_err(|why| {
                misfit(SettingsError::Precision {
                    precision: asked,
                    device: device.device.to_string(),
                    why,
                })
            })?;
        }
        let precision = opened.decide_precision(asked, devices[0].device, options.kernels, say)?;
        let folder = opened.model.folder();
        let known = groups.iter().position(|group| {
            !options.reload_per_file
                && group.model.folder() == folder
                && group.layer == layer
                && group.precision == precision
        });
        let at = known.unwrap_or(groups.len());
        if known.is_none() {
            groups.push(Group {
                model: opened.model,
                tokenizer: opened.tokenizer,
                layer,
                precision,
                tasks: Vec::new(),
                positions: Vec::new(),
                given: None,
                head: None,
            });
        }
        groups[at].tasks.push(Task {
            job,
            window,
            max_tokens,
        });
        groups[at].positions.push(position);
    }
    Ok(groups)
}

impl Group {
    /// The outputs of the graph that the jobs need.
    pub(super) fn outputs(&self) -> Vec<Reduce> {
        let mut outputs = Vec::new();
        for task in &self.tasks {
            if !outputs.contains(&task.reduce()) {
                outputs.push(task.reduce());
            }
        }
        outputs
    }

    /// Letters of the longest sequence that the model was made for, as [`Executor::model_limit`]
    /// has it.
    ///
    /// [`Executor::model_limit`]: super::execute::Executor::model_limit
    pub(super) fn model_limit(&self) -> Option<usize> {
        let longest = self.model.info().max_residues;
        longest.map(|tokens| tokens + self.tokenizer.span() - 1)
    }

    /// The graph that the group runs.
    pub(super) fn spec<'w>(&'w self, options: &Options, outputs: &'w [Reduce]) -> GraphSpec<'w> {
        GraphSpec {
            model: &self.model,
            layer: self.layer,
            outputs,
            kernels: options.kernels,
            head: self.head.as_ref(),
            contacts: false,
        }
    }

    /// The report of a file, before anything was done with it.
    pub(super) fn file_report(&self, task: &Task) -> FileReport {
        FileReport {
            sample: task.job.sample.clone(),
            source: task.job.source.to_string(),
            model: self.model.info().name.clone(),
            ..FileReport::default()
        }
    }
}
