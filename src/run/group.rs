//! Jobs that share a session, because they have the same model, layers and precision.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use seqembed_onnx::{Head, Model};

use super::error::RunError;
use super::execute::Executor;
use super::loaded_device::LoadedDevice;
use super::opened_model::OpenedModel;
use super::options::Options;
use super::spans::{SpanError, Spans};
use super::task::Task;
use crate::engine::batch::Reduce;
use crate::engine::loader::GraphSpec;
use crate::engine::select::{self, SelectedDevice};
use crate::manifest::Job;
use crate::output::{Format, Sink};
use crate::pooling::{Pooling, Poolings};
use crate::records::Record;
use crate::report::FileReport;
use crate::settings::{Layers, Precision, Settings, SettingsError};
use crate::tokenize::Tokenizer;
use crate::trace::{Lane, Trace};

/// Jobs that share a session.
pub(crate) struct Group {
    pub(crate) model: Arc<Model>,
    pub(crate) layers: Layers,
    /// The poolings of jobs that have several, which all jobs of the group share.
    pub(crate) poolings: Option<Poolings>,
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
    let mut tables = HashMap::new();
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
        let layers = job.settings.layers_of(layers).map_err(misfit)?;
        check_columns(&job.settings, &layers).map_err(misfit)?;
        let window = opened.window(&job.settings).map_err(misfit)?;
        let max_tokens = opened.max_tokens(window);
        let poolings = job.settings.pooling.several();
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
                && group.layers == layers
                && group.poolings == poolings
                && group.precision == precision
        });
        let at = known.unwrap_or(groups.len());
        if known.is_none() {
            groups.push(Group {
                model: opened.model,
                tokenizer: opened.tokenizer,
                layers,
                poolings,
                precision,
                tasks: Vec::new(),
                positions: Vec::new(),
                given: None,
                head: None,
            });
        }
        let spans = match &job.settings.spans {
            Some(path) => Some(read_spans(path, &mut tables)?),
            None => None,
        };
        groups[at].tasks.push(Task {
            job,
            window,
            max_tokens,
            spans,
        });
        groups[at].positions.push(position);
    }
    check_spans(&groups)?;
    Ok(groups)
}

/// A table of spans, read once for all jobs.
fn read_spans(
    path: &Path,
    tables: &mut HashMap<PathBuf, Arc<Spans>>,
) -> Result<Arc<Spans>, SpanError> {
    if let Some(known) = tables.get(path) {
        return Ok(Arc::clone(known));
    }
    let spans = Arc::new(Spans::read(path)?);
    tables.insert(path.to_owned(), Arc::clone(&spans));
    Ok(spans)
}

/// Checks each table of spans against all files that use it.
pub(crate) fn check_spans(groups: &[Group]) -> Result<(), SpanError> {
    let mut checked: HashSet<&Path> = HashSet::new();
    for group in groups {
        for spans in group.tasks.iter().filter_map(|task| task.spans.as_ref()) {
            if !checked.insert(&spans.path) {
                continue;
            }
            let tasks = groups.iter().flat_map(|group| &group.tasks);
            let users = tasks.filter(|task| {
                let own = task.spans.as_ref();
                own.is_some_and(|own| own.path == spans.path)
            });
            spans.check(users.map(|task| &task.job.source), &*group.tokenizer)?;
        }
    }
    Ok(())
}

/// The columns of an output, such as `mean_33`: none where there is one pooling of one layer.
fn columns(poolings: &Poolings, layers: &Layers) -> Vec<String> {
    let (poolings, layers) = (poolings.as_slice(), layers.as_slice());
    if poolings.len() * layers.len() == 1 {
        return Vec::new();
    }
    let names = |pooling: &Pooling| {
        let names = layers.iter().map(|layer| format!("{pooling}_{layer}"));
        names.collect::<Vec<_>>()
    };
    poolings.iter().flat_map(names).collect()
}

/// Checks that a job's format holds the columns that it asks for.
fn check_columns(settings: &Settings, layers: &Layers) -> Result<(), SettingsError> {
    let columns = columns(&settings.pooling, layers);
    let per_token = settings.pooling.is_per_token();
    if columns.is_empty() || settings.format.holds_columns(per_token) {
        return Ok(());
    }
    Err(SettingsError::Columns {
        format: settings.format.extension(),
        per_token,
        columns,
        others: Format::holding_columns(per_token),
    })
}

impl Group {
    /// The outputs of the graph that the jobs need.
    pub(super) fn outputs(&self) -> Vec<Reduce> {
        let mut outputs = Vec::new();
        for task in &self.tasks {
            for output in task.reduce().outputs() {
                if !outputs.contains(output) {
                    outputs.push(*output);
                }
            }
        }
        outputs
    }

    /// Width of a row: for each pooling the vectors of all layers, one after the other.
    pub(crate) fn width(&self) -> usize {
        let poolings = self.poolings.as_ref().map_or(1, Poolings::count);
        let vector = match &self.head {
            Some(head) => head.form().vocabulary,
            None => self.layers.count() * self.model.architecture().hidden(),
        };
        poolings * vector
    }

    /// The columns of a task's output: none where there is one pooling of one layer.
    pub(super) fn columns(&self, task: &Task) -> Vec<String> {
        columns(&task.job.settings.pooling, &self.layers)
    }

    /// What runs the group's batches on a device, in a lane of this name in the trace.
    pub(super) fn executor<'e>(
        &'e self,
        device: &'e LoadedDevice<'e>,
        trace: &'e Trace,
        name: String,
    ) -> Executor<'e> {
        Executor {
            device,
            tasks: &self.tasks,
            tokenizer: &*self.tokenizer,
            model_limit: self.model_limit(),
            hidden: self.width(),
            maxima: self.maxima(),
            trace,
            lane: Lane {
                group: device.label.clone(),
                name,
            },
        }
    }

    /// For each pooling of jobs with several, whether it is a maximum.
    pub(crate) fn maxima(&self) -> Vec<bool> {
        self.poolings.as_ref().map_or(Vec::new(), Poolings::maxima)
    }

    /// Letters of the longest sequence that the model was made for, as [`Executor::model_limit`]
    /// has it.
    pub(super) fn model_limit(&self) -> Option<usize> {
        let longest = self.model.info().max_residues;
        longest.map(|tokens| tokens + self.tokenizer.span() - 1)
    }

    /// The graph that the group runs.
    pub(super) fn spec<'w>(&'w self, options: &Options, outputs: &'w [Reduce]) -> GraphSpec<'w> {
        GraphSpec {
            model: &self.model,
            layers: &self.layers,
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
