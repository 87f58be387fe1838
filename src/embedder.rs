//! The library's way in: a model that is loaded once and embeds whatever it is given, in memory or
//! from file to file.
//!
//! The executable uses the same code: reading, batching, windows and outputs are identical.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::contacts::{self, ContactsError, ContactsOptions, ContactsOutputs};
use crate::device::{Device, DeviceChoice};
use crate::engine::runtime::Runtime;
use crate::engine::select::{self, SelectedDevice};
use crate::engine::session::{self, Session};
use crate::interrupt::Interrupt;
use crate::manifest::{self, Job, ManifestErrors};
use crate::output::{Block, OutputError, Rows, Sink, Written};
use crate::records::{Record, Source};
use crate::report::{LoadReport, Report};
use crate::run::context::{Resources, ReusedSession, RunContext};
use crate::run::score::{self, ScoreError, ScoreOptions};
use crate::run::spans::Spans;
use crate::run::{self, Group, GroupRun, ModelLoading, Observer, OpenedModel, RunError, Task};
use crate::settings::{Kernels, Layers, Overrides, Precision, Settings, SettingsError};
use crate::threads;
use crate::trace::Trace;

/// How an [`Embedder`] works. The defaults are those of `seqembed embed`.
#[derive(Debug, Clone)]
pub struct EmbedderOptions {
    /// Pooling, layer, policies, format of output files ...: what is `None` has its default.
    /// `model` is not looked at.
    pub settings: Overrides,
    /// Threads in all; none: as many as this process may use. Each computes a batch of its own.
    pub threads: Option<usize>,
    /// The ONNX Runtime library, or the folder that contains it; `None`: searched for. The first
    /// library loaded in a process is used for the whole process.
    pub ort_lib: Option<PathBuf>,
    /// The kernels that the model runs with.
    pub kernels: Kernels,
    /// Where the model runs.
    pub device: Device,
}

impl Default for EmbedderOptions {
    fn default() -> Self {
        Self {
            settings: Overrides::default(),
            threads: None,
            ort_lib: None,
            kernels: Kernels::default(),
            device: Device::Cpu,
        }
    }
}

/// Why something could not be embedded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// The model is not available or cannot be loaded, or the run was aborted.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The options don't fit each other or the model.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The files to embed are missing, or would have the same output.
    #[error(transparent)]
    Files(#[from] ManifestErrors),
    /// A policy forbids one of the sequences.
    #[error("{0}")]
    Sequences(String),
    /// The session that was handed in is none of this model with these options.
    #[error("the session cannot be used for {model}: {why}")]
    Session {
        /// The model as it was named.
        model: String,
        /// What does not fit.
        why: String,
    },
}

/// A model that embeds sequences and files.
///
/// It is loaded with the first batch and kept until the embedder is dropped. A session that is
/// loaded already can be handed in ([`Embedder::with_session`]); several embedders can share one,
/// and threads as well, with an embedder each.
///
/// ```
/// use seqembed::{Embedder, EmbedderOptions, Overrides, Pooling};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let model = folder.path().join("model");
/// # let checkpoint = concat!(
/// #     env!("CARGO_MANIFEST_DIR"),
/// #     "/tests/fixtures/esm2/checkpoints/hub-safetensors"
/// # );
/// # let export = seqembed_onnx::ExportOptions::default();
/// # seqembed_onnx::export(checkpoint.as_ref(), &model, &export)?;
/// # let model = model.to_str().ok_or("a path")?;
/// let options = EmbedderOptions {
///     settings: Overrides { pooling: Some(Pooling::Mean.into()), ..Overrides::default() },
///     ..EmbedderOptions::default()
/// };
/// // A name (`esm2_t6_8M_UR50D`), a checkpoint or an exported folder. Nothing is loaded yet.
/// let mut embedder = Embedder::new(model, options.clone())?;
///
/// let rows = embedder.embed([("P1", "MKTAYIAKQR"), ("P2 with a j", "GSHMJ")])?;
/// assert_eq!(rows.ids, ["P1", "P2"]);
/// assert_eq!(rows.status, ["ok", "replaced"]);
/// assert_eq!(rows.values.len(), 2 * rows.hidden);
///
/// // The same model serves whatever follows: here, an embedder of its own for a thread.
/// let session = embedder.session()?;
/// let mut other = Embedder::with_session(model, session, options)?;
/// assert_eq!(other.embed([("P1", "MKTAYIAKQR")])?.values, rows.values[..rows.hidden]);
/// assert_eq!((embedder.loads().len(), other.loads().len()), (1, 0));
/// # Ok(())
/// # }
/// ```
pub struct Embedder {
    name: String,
    opened: OpenedModel,
    overrides: Overrides,
    settings: Settings,
    layers: Layers,
    options: run::Options,
    device: Device,
    /// The device is in the list once it was looked for, and leaves it when it is lost.
    resources: Resources,
    loads: Vec<LoadReport>,
}

impl Embedder {
    /// Opens a model: a known name, a checkpoint (exported into the cache now, if it was not yet)
    /// or an exported folder.
    ///
    /// Neither ONNX Runtime nor weights are loaded before the first batch.
    ///
    /// ```no_run
    /// use seqembed::{Embedder, EmbedderOptions, Overrides, Pooling};
    ///
    /// // 4 threads, and each vector the maximum over a sequence's residues. Nothing is loaded yet.
    /// let options = EmbedderOptions {
    ///     settings: Overrides { pooling: Some(Pooling::Max.into()), ..Overrides::default() },
    ///     threads: Some(4),
    ///     ..EmbedderOptions::default()
    /// };
    /// let embedder = Embedder::new("esm2_t6_8M_UR50D", options)?;
    /// assert!(embedder.loads().is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If there is no such model, or the options are not valid for it.
    pub fn new(model: &str, options: EmbedderOptions) -> Result<Self, EmbedError> {
        let opened = OpenedModel::open(model, &|_| {})?;
        let overrides = Overrides {
            model: Some(model.to_owned()),
            ..options.settings
        };
        let settings = Settings::resolve(&[&overrides])?;
        opened.window(&settings)?;
        let layers = settings.layers_of(opened.model.architecture().layers())?;
        let threads = threads::helpful(options.threads);
        threads::pool(threads).map_err(RunError::from)?;
        Ok(Self {
            name: model.to_owned(),
            opened,
            overrides,
            settings,
            layers,
            resources: Resources {
                devices: Vec::new(),
                runtime: Runtime::new(options.ort_lib.as_deref()),
                reused: ReusedSession {
                    keeps: true,
                    ..ReusedSession::default()
                },
            },
            options: run::Options {
                out: PathBuf::new(),
                manifest: None,
                threads,
                ort_lib: options.ort_lib,
                kernels: options.kernels,
                strict: false,
                reload_per_file: false,
                device: choice(options.device),
                trace: None,
                resume: false,
                cache_dir: None,
                save_every: Duration::MAX,
                no_dedup: false,
                interrupt: Interrupt::default(),
            },
            device: options.device,
            loads: Vec::new(),
        })
    }

    /// As [`Embedder::new`], with a session that is already loaded: another embedder's
    /// [`Embedder::session`], or any other engine that describes itself. The session's device,
    /// precision and graph are used, whatever `options` contains.
    ///
    /// # Errors
    /// If the session has other weights or settings, another layer, or lacks the output that the
    /// pooling needs.
    pub fn with_session(
        model: &str,
        session: Arc<dyn Session>,
        options: EmbedderOptions,
    ) -> Result<Self, EmbedError> {
        let loaded = session.info();
        let options = EmbedderOptions {
            device: loaded.device,
            kernels: if loaded.padded {
                Kernels::Portable
            } else {
                Kernels::Auto
            },
            ..options
        };
        let mut embedder = Self::new(model, options)?;
        let info = embedder.opened.model.info();
        let wanted = embedder.settings.pooling.reduce();
        let why = if loaded.weights_sha256 != info.weights_sha256 {
            "it has other weights".to_owned()
        } else if loaded.architecture != info.architecture.blake3() {
            "it has the same weights but another configuration (config.json)".to_owned()
        } else if loaded.layers != embedder.layers {
            format!(
                "it computes layer {}, but layer {} is required",
                loaded.layers, embedder.layers
            )
        } else if let Some(missing) = session::missing(&loaded.outputs, wanted) {
            format!(
                "pooling {} needs the output `{}`, which the session was loaded without",
                embedder.settings.pooling,
                missing.name()
            )
        } else {
            // The session runs on its device, even where nothing can be found out about that.
            let choice = &embedder.options.device;
            embedder.resources.devices =
                select::select(choice, None, &mut embedder.resources.runtime).map_or_else(
                    |_| vec![SelectedDevice::unknown(loaded.device)],
                    |selection| selection.devices,
                );
            embedder.resources.reused.session = Some(session);
            return Ok(embedder);
        };
        Err(EmbedError::Session {
            model: model.to_owned(),
            why,
        })
    }

    /// Embeds sequences: pairs of a header, whose first word becomes the id, and letters.
    ///
    /// Rows are in the order of the sequences. A sequence that could not be embedded also has a
    /// row: NaN, and a status with the reason.
    ///
    /// ```
    /// use seqembed::{Embedder, EmbedderOptions};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let model = folder.path().join("model");
    /// # let checkpoint = concat!(
    /// #     env!("CARGO_MANIFEST_DIR"),
    /// #     "/tests/fixtures/esm2/checkpoints/hub-safetensors"
    /// # );
    /// # let export = seqembed_onnx::ExportOptions::default();
    /// # seqembed_onnx::export(checkpoint.as_ref(), &model, &export)?;
    /// # let model = model.to_str().ok_or("a path")?;
    /// let mut embedder = Embedder::new(model, EmbedderOptions::default())?;
    /// let rows = embedder.embed([("P1 a kinase", "MKTAYIAKQR"), ("P2", "")])?;
    /// assert_eq!(rows.ids, ["P1", "P2"]);
    /// assert_eq!(rows.status, ["ok", "skipped: empty sequence"]);
    /// assert!(rows.values[..rows.hidden].iter().all(|value| value.is_finite()));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the model cannot be loaded or run, or a policy ([`Long::Error`](crate::Long::Error),
    /// [`Unknown::Error`](crate::Unknown::Error), letters of another alphabet) forbids a sequence.
    pub fn embed<H, L>(
        &mut self,
        sequences: impl IntoIterator<Item = (H, L)>,
    ) -> Result<Rows, EmbedError>
    where
        H: Into<String>,
        L: Into<Vec<u8>>,
    {
        let records = sequences
            .into_iter()
            .map(|(header, letters)| Record::new(header.into(), letters.into()))
            .collect::<Vec<_>>();
        self.look_for_device()?;
        let mut group = self.group(vec![self.nameless()])?;
        check_given(&group, &records)?;
        let rows = Arc::new(Mutex::new(Rows::new(group.width())));
        let sink: Box<dyn Sink> = Box::new(Gathered(Arc::clone(&rows)));
        group.given = Some((records, sink));
        let report = self.work(group, &mut Silent)?;
        if let Some(why) = report.files.into_iter().find_map(|file| file.error) {
            return Err(EmbedError::Sequences(why));
        }
        Ok(std::mem::take(&mut *lock(&rows)))
    }

    /// Embeds whole files into the folder `out`, as `seqembed embed` does: each becomes one output
    /// file, named after it.
    ///
    /// A file that cannot be read to its end has no output, and its entry in the report gives the
    /// reason.
    ///
    /// ```
    /// use seqembed::{Embedder, EmbedderOptions, Silent, read_file};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let model = folder.path().join("model");
    /// # let checkpoint = concat!(
    /// #     env!("CARGO_MANIFEST_DIR"),
    /// #     "/tests/fixtures/esm2/checkpoints/hub-safetensors"
    /// # );
    /// # let export = seqembed_onnx::ExportOptions::default();
    /// # seqembed_onnx::export(checkpoint.as_ref(), &model, &export)?;
    /// # let model = model.to_str().ok_or("a path")?;
    /// let mut embedder = Embedder::new(model, EmbedderOptions::default())?;
    /// let file = folder.path().join("a.faa");
    /// std::fs::write(&file, ">P1\nMKTAYIAKQR\n>P2\nGSHM\n")?;
    /// let out = folder.path().join("out");
    /// let report = embedder.run(&[file], &out, &mut Silent)?;
    /// assert_eq!((report.totals.records, report.totals.failed_files), (2, 0));
    /// let (rows, layout) = read_file(&out.join("a.parquet"))?;
    /// assert_eq!(rows.ids, ["P1", "P2"]);
    /// assert_eq!(layout.provenance("pooling"), Some("mean"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If a file does not exist, two files would have the same output, the model cannot be loaded,
    /// or the run was aborted.
    pub fn run(
        &mut self,
        files: &[PathBuf],
        out: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Report, EmbedError> {
        let jobs = manifest::jobs_from_files(files, &self.overrides)?;
        run::check_folder(out)?;
        out.clone_into(&mut self.options.out);
        self.look_for_device()?;
        let group = self.group(jobs)?;
        run::check_spans(std::slice::from_ref(&group)).map_err(RunError::from)?;
        self.work(group, observer)
    }

    /// Scores whole files into the folder `out`, as `seqembed score` does: each becomes a table,
    /// named after it, and more of them where `scores` asks for that. Of the settings, those of
    /// embeddings (pooling, layer, format) are not used.
    ///
    /// The model is loaded with its language-model head for this call alone.
    ///
    /// ```
    /// use seqembed::{Embedder, EmbedderOptions, ScoreMethod, ScoreOptions, Silent, TableFormat};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let model = folder.path().join("model");
    /// # let checkpoint = concat!(
    /// #     env!("CARGO_MANIFEST_DIR"),
    /// #     "/tests/fixtures/esm2/checkpoints/hub-safetensors"
    /// # );
    /// # let export = seqembed_onnx::ExportOptions::default();
    /// # seqembed_onnx::export(checkpoint.as_ref(), &model, &export)?;
    /// # let model = model.to_str().ok_or("a path")?;
    /// let mut embedder = Embedder::new(model, EmbedderOptions::default())?;
    /// let file = folder.path().join("a.faa");
    /// std::fs::write(&file, ">P1\nMKTAYIAKQR\n>P2\nGSHM\n")?;
    /// let scores = ScoreOptions {
    ///     method: ScoreMethod::Masked,
    ///     scan: true,
    ///     format: TableFormat::Tsv,
    ///     ..ScoreOptions::default()
    /// };
    /// let out = folder.path().join("out");
    /// let report = embedder.score(&[file], &out, &scores, &mut Silent)?;
    /// assert_eq!((report.totals.records, report.totals.failed_files), (2, 0));
    /// let table = std::fs::read_to_string(out.join("a.tsv"))?;
    /// assert!(table.starts_with("id\tlength\tstatus\tlog_likelihood\tperplexity\nP1\t10\tok\t-"));
    /// // A line for each position, and one with the names of the columns.
    /// assert_eq!(std::fs::read_to_string(out.join("a.scan.tsv"))?.lines().count(), 15);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If a file does not exist, two files would have the same output, the model has no head or
    /// cannot be loaded, variants do not fit the sequences, or the run was aborted.
    pub fn score(
        &mut self,
        files: &[PathBuf],
        out: &Path,
        scores: &ScoreOptions,
        observer: &mut dyn Observer,
    ) -> Result<Report, ScoreError> {
        let overrides = score::settings(self.overrides.clone());
        let jobs = manifest::jobs_from_files(files, &overrides)?;
        let options = run::Options {
            out: out.to_owned(),
            ..self.options.clone()
        };
        score::score(jobs, &options, scores, observer, &|_| {})
    }

    /// Predicts the contacts of whole files into the folder `out`, as `seqembed contacts` does:
    /// each becomes a file, named after it, with a matrix [residues, residues] of float32
    /// probabilities for each sequence, and a table of pairs where `outputs` asks for one. Of the
    /// settings, those of embeddings (pooling, layer, precision, spans, format) are not used.
    ///
    /// The model is loaded with its contact head for this call alone.
    ///
    /// ```
    /// use seqembed::{
    ///     ContactsOutputs, Embedder, EmbedderOptions, PairChoice, Silent, TopPairs,
    /// };
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let model = folder.path().join("model");
    /// # let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    /// # for (from, name) in [
    /// #     ("esm2/checkpoints", "esm2_small.pt"),
    /// #     ("contacts", "esm2_small-contact-regression.pt"),
    /// # ] {
    /// #     std::fs::copy(format!("{fixtures}/{from}/{name}"), folder.path().join(name))?;
    /// # }
    /// # let checkpoint = folder.path().join("esm2_small.pt");
    /// # let export = seqembed_onnx::ExportOptions::default();
    /// # seqembed_onnx::export(&checkpoint, &model, &export)?;
    /// # let model = model.to_str().ok_or("a path")?;
    /// let mut embedder = Embedder::new(model, EmbedderOptions::default())?;
    /// let file = folder.path().join("a.faa");
    /// std::fs::write(&file, ">P1\nMKTAYIAKQR\n>P2\nGSHM\n")?;
    /// // Also a table of the five likeliest pairs at least six residues apart.
    /// let pairs = PairChoice { top: TopPairs::Count(5), separation: 6 };
    /// let outputs = ContactsOutputs { pairs: Some(pairs), ..ContactsOutputs::default() };
    /// let out = folder.path().join("out");
    /// let report = embedder.contacts(&[file], &out, &outputs, &mut Silent)?;
    /// assert_eq!((report.totals.records, report.totals.failed_files), (2, 0));
    /// assert!(out.join("a.npz").is_file());
    /// // A line with the names of the columns, and P1's five pairs; P2 is too short for any.
    /// assert_eq!(std::fs::read_to_string(out.join("a.tsv"))?.lines().count(), 6);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If a file does not exist, two files would have the same output, the model has no contact
    /// head or cannot be loaded, the embedder is on a GPU or has portable kernels, or the run was
    /// aborted.
    pub fn contacts(
        &mut self,
        files: &[PathBuf],
        out: &Path,
        outputs: &ContactsOutputs,
        observer: &mut dyn Observer,
    ) -> Result<Report, ContactsError> {
        let jobs = manifest::jobs_from_files(files, &self.overrides)?;
        let options = ContactsOptions {
            out: out.to_owned(),
            manifest: None,
            outputs: *outputs,
            threads: self.options.threads,
            ort_lib: self.options.ort_lib.clone(),
            kernels: self.options.kernels,
            device: self.options.device.clone(),
            strict: self.options.strict,
            interrupt: self.options.interrupt.clone(),
        };
        contacts::run(jobs, &options, observer, &|_| {})
    }

    /// The session, which is loaded now if necessary. It can be passed to another embedder's
    /// [`Embedder::with_session`].
    ///
    /// ```no_run
    /// use seqembed::{Embedder, EmbedderOptions};
    ///
    /// let mut first = Embedder::new("esm2_t6_8M_UR50D", EmbedderOptions::default())?;
    /// let session = first.session()?;
    /// // A thread of its own, and one model in memory.
    /// std::thread::spawn(move || {
    ///     let mut second =
    ///         Embedder::with_session("esm2_t6_8M_UR50D", session, EmbedderOptions::default())?;
    ///     second.embed([("P1", "MKTAYIAKQR")])
    /// });
    /// first.embed([("P2", "GSHM")])?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the model cannot be loaded.
    pub fn session(&mut self) -> Result<Arc<dyn Session>, EmbedError> {
        if let Some(session) = &self.resources.reused.session {
            return Ok(Arc::clone(session));
        }
        self.look_for_device()?;
        let group = self.group(vec![self.nameless()])?;
        let trace = Trace::off();
        let context = context(&self.options, &trace);
        let mut report = Report::default();
        let mut loading = ModelLoading::new(&group, &context, &mut self.resources, &mut report);
        let session = loading.session()?;
        self.loads.append(&mut report.loads);
        self.resources.reused.session = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Moves to another device: drops the session, and loads the model on the new device.
    ///
    /// ```no_run
    /// use seqembed::{Device, Embedder, EmbedderOptions};
    ///
    /// let mut embedder = Embedder::new("esm2_t6_8M_UR50D", EmbedderOptions::default())?;
    /// embedder.to_device(Device::Cuda(0))?;
    /// assert_eq!(embedder.device(), Device::Cuda(0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the device is not available, the embedder stays on the old device. If the model cannot be
    /// loaded on the new device, the next batch loads it on the old one.
    pub fn to_device(&mut self, device: Device) -> Result<(), EmbedError> {
        if device == self.device() {
            return Ok(());
        }
        let selection = select::select(&choice(device), None, &mut self.resources.runtime)
            .map_err(RunError::from)?;
        let old = (
            self.device,
            std::mem::replace(&mut self.resources.devices, selection.devices),
        );
        self.resources.reused.session = None;
        self.device = device;
        let moved = self.session().map(drop);
        if moved.is_err() {
            (self.device, self.resources.devices) = old;
        }
        self.options.device = choice(self.device);
        moved
    }

    /// Where the model is, or will be loaded.
    #[must_use]
    pub fn device(&self) -> Device {
        self.resources
            .reused
            .session
            .as_ref()
            .map_or(self.device, |session| session.info().device)
    }

    /// The numbers that the loaded model computes with, read from what was loaded; `None` until
    /// then.
    #[must_use]
    pub fn precision(&self) -> Option<Precision> {
        let session = self.resources.reused.session.as_ref()?;
        Some(session.info().precision)
    }

    /// Every load so far: none before the first batch, or with a session that was handed in; one
    /// afterwards, and one more for each move.
    #[must_use]
    pub fn loads(&self) -> &[LoadReport] {
        &self.loads
    }

    /// Runs a group, and adds it and its loads to the report.
    fn work(&mut self, group: Group, observer: &mut dyn Observer) -> Result<Report, EmbedError> {
        let started = Instant::now();
        let mut report = run::begun(&self.options);
        report.device.clone_from(&self.resources.devices[0].name);
        let trace = Trace::off();
        let context = RunContext {
            started,
            ..context(&self.options, &trace)
        };
        let group_run = GroupRun {
            context: &context,
            resources: &mut self.resources,
            report: &mut report,
            observer,
        };
        let result = group_run.run(group, None);
        self.loads.extend_from_slice(&report.loads);
        if self.resources.devices.is_empty() {
            // The device was lost, and the session with it.
            self.resources.reused.session = None;
        }
        result?;
        run::ended(&mut report, started);
        Ok(report)
    }

    fn look_for_device(&mut self) -> Result<(), EmbedError> {
        if self.resources.devices.is_empty() {
            let selection = select::select(&self.options.device, None, &mut self.resources.runtime)
                .map_err(RunError::from)?;
            self.resources.devices = selection.devices;
        }
        let asked = self.settings.precision;
        let device = &self.resources.devices[0];
        select::check_precision(asked, device, self.options.kernels).map_err(|why| {
            SettingsError::Precision {
                precision: asked,
                device: self.device.to_string(),
                why,
            }
        })?;
        Ok(())
    }

    fn group(&self, jobs: Vec<Job>) -> Result<Group, EmbedError> {
        let window = self.opened.window(&self.settings)?;
        let max_tokens = self.opened.max_tokens(window);
        let spans = self.settings.spans.as_deref().map(Spans::read);
        let spans = spans.transpose().map_err(RunError::from)?.map(Arc::new);
        let task = |job| Task {
            job,
            window,
            max_tokens,
            spans: spans.clone(),
        };
        let precision = match &self.resources.reused.session {
            Some(session) => session.info().precision,
            None => self.opened.decide_precision(
                self.settings.precision,
                self.device,
                self.options.kernels,
                &|_| {},
            )?,
        };
        Ok(Group {
            model: Arc::clone(&self.opened.model),
            tokenizer: Arc::clone(&self.opened.tokenizer),
            layers: self.layers.clone(),
            poolings: self.settings.pooling.several(),
            precision,
            positions: (0..jobs.len()).collect(),
            tasks: jobs.into_iter().map(task).collect(),
            given: None,
            head: None,
        })
    }

    /// A job for sequences that are not from a file.
    fn nameless(&self) -> Job {
        Job {
            sample: "sequences".to_owned(),
            source: Source::Path("the sequences".into()),
            settings: Settings {
                model: self.name.clone(),
                ..self.settings.clone()
            },
            line: None,
        }
    }
}

/// Checks a table of spans against sequences that are not from files.
fn check_given(group: &Group, records: &[Record]) -> Result<(), RunError> {
    for spans in group.tasks.iter().filter_map(|task| task.spans.as_ref()) {
        spans.check_given(records, &*group.tokenizer)?;
    }
    Ok(())
}

fn choice(device: Device) -> DeviceChoice {
    match device {
        Device::Cpu => DeviceChoice::Cpu,
        Device::Cuda(number) => DeviceChoice::Cuda(vec![number]),
    }
}

fn context<'a>(options: &'a run::Options, trace: &'a Trace) -> RunContext<'a> {
    RunContext {
        options,
        started: Instant::now(),
        faults: None,
        trace,
        say: &|_| {},
    }
}

/// Rows that are kept in memory.
struct Gathered(Arc<Mutex<Rows>>);

impl Sink for Gathered {
    fn put(&mut self, block: Block) -> Result<(), OutputError> {
        lock(&self.0).append(block.into());
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Written>, OutputError> {
        Ok(Vec::new())
    }
}

fn lock(rows: &Mutex<Rows>) -> std::sync::MutexGuard<'_, Rows> {
    // Rows are appended whole or not at all.
    rows.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hears nothing: what goes wrong is in the report.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn warning(&mut self, _: &str) {}
    fn failure(&mut self, _: &str) {}
    fn advanced(&mut self, _: u64, _: u64, _: u64, _: u64) {}
}
