//! What is done and what is saved of a run, so that the next one can go on with it.
//!
//! The work folder (`.seqembed` in the output folder, or `--cache-dir`) holds:
//! - `lock`: see [`lock`];
//! - `journal`: which files are finished, from which input, model, graph and options ([`log`]);
//! - `rows-*`: rows of files that are not finished ([`rows`]); a shard goes when all its files are
//!   finished;
//! - `files/` (only with `--cache-dir`): a copy of every finished file.
//!
//! Data are reused only if they are proven to match. All files of a finished output must have the
//! contents that were written, and its input the contents that were read. A saved row must match
//! its checksum, and its record must have the header and sequence it was computed from. Model,
//! graph and options must be the same for both. Sizes and times prove nothing: another run may
//! write a file of the same size to the folder, and a copy may keep the times.

mod error;
pub mod facts;
mod finished;
pub mod lock;
pub mod log;
mod ordinary;
pub mod rows;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use self::error::cannot;
use self::facts::{Facts, InputFingerprint};
use self::lock::Lock;
use self::log::{Attempt, Done, Line};
use self::rows::{Mark, RowLocation, Saved};
use crate::atomic_file::{self, AtomicFile};
use crate::digest;
use crate::folders;
use crate::jobs::Promise;
use crate::output::{self, Unfinished, Written};
use crate::records::Source;
use crate::report::FileReport;
use crate::text::{counted, was};
use crate::vectors::Vectors;

pub use self::error::JournalError;
pub use self::finished::finished;

/// The work folder's name in an output folder.
pub const FOLDER: &str = ".seqembed";
/// Name of the log in the work folder.
const LOG: &str = "journal";
/// Prefix of the names of shards.
const SHARD: &str = "rows-";
/// Where a cache keeps finished files.
const FILES: &str = "files";
/// A shard is closed when it is longer, in bytes.
const SHARD_BYTES: u64 = 256 << 20;
/// Limit on the numbers of shards and attempts, which no run reaches. Larger numbers, which could
/// overflow, are not continued from.
const UNREACHED: u64 = 1 << 62;

/// An output file to be written.
pub struct Request<'a> {
    /// The sample; no other file of the run has it.
    pub sample: &'a str,
    /// Where the sequences come from.
    pub source: &'a Source,
    /// What decides its numbers.
    pub facts: Facts,
    /// The output format, which decides the layout of the file.
    pub format: String,
    /// The name of the input, as recorded in the output.
    pub name: String,
    /// The output's final path.
    pub output: PathBuf,
}

/// What an earlier run left of a file.
pub enum ResumePlan {
    /// All: it is finished.
    Finished {
        /// The warnings about the file.
        report: Box<FileReport>,
        /// Why an existing file cannot be kept, if there was one.
        note: Option<String>,
    },
    /// Some rows, or none.
    Compute {
        /// What the journal knows it by.
        ticket: Ticket,
        /// The rows that were saved; none where there are none that can be used.
        saved: Saved,
        /// Why the existing data cannot be used.
        why_again: Option<String>,
    },
}

/// A file in the journal.
#[derive(Debug)]
pub struct Ticket {
    sample: String,
    facts: Facts,
    format: String,
    name: String,
    output: PathBuf,
    attempt: Option<u64>,
}

/// The journal of a run, open for writing.
pub struct Journal {
    folder: PathBuf,
    out: PathBuf,
    cache: Option<PathBuf>,
    _locks: Vec<Lock>,
    log: File,
    log_path: PathBuf,
    unsynced: bool,
    /// Whether the log may end within a line.
    torn: bool,
    facts: HashMap<Facts, u64>,
    done: HashMap<String, (Facts, Done)>,
    attempts: HashMap<String, (Facts, u64)>,
    saved: HashMap<u64, Saved>,
    next_attempt: u64,
    shard: Option<(PathBuf, rows::Writer)>,
    /// What other threads are bringing to the disk.
    syncing: Vec<Background>,
    next_shard: u64,
    /// The unfinished attempts with rows in each shard.
    live: BTreeMap<PathBuf, HashSet<u64>>,
}

/// What an earlier run left in a work folder.
#[derive(Default)]
struct Past {
    facts: HashMap<u64, Facts>,
    done: HashMap<String, Done>,
    attempts: HashMap<String, Attempt>,
}

impl Past {
    /// The contents of a log, and the reasons why parts of it cannot be used.
    fn of(lines: Vec<Line>) -> (Self, Option<String>) {
        let mut past = Past::default();
        let mut lines = lines.into_iter();
        let Some(Line::Begin { version }) = lines.next() else {
            return (
                past,
                Some(format!("its first line is damaged. {ALL_AGAIN}")),
            );
        };
        if ![log::VERSION, log::WITHOUT_HASHES].contains(&version) {
            let why = format!(
                "it was written by another version of seqembed (format version {version}; this \
                 version reads {} and {}). {ALL_AGAIN}",
                log::WITHOUT_HASHES,
                log::VERSION
            );
            return (past, Some(why));
        }
        for line in lines {
            match line {
                Line::Begin { .. } => {}
                Line::Facts { id, facts } => {
                    past.facts.insert(id, facts);
                }
                Line::Attempt(attempt) => {
                    past.done.remove(&attempt.sample);
                    past.attempts.insert(attempt.sample.clone(), attempt);
                }
                Line::Done(done) => {
                    past.attempts.remove(&done.sample);
                    past.done.insert(done.sample.clone(), *done);
                }
            }
        }
        let before = past.done.len();
        past.done.retain(|_, done| !done.files.is_empty());
        let dropped = before - past.done.len();
        let why = (dropped > 0).then(|| {
            format!(
                "it was written by an older version of seqembed, without hashes of finished \
                 files: {} will be recomputed; saved rows of other files are reused",
                counted(dropped as u64, "finished file")
            )
        });
        (past, why)
    }
}

const ALL_AGAIN: &str = "Finished files and saved rows recorded only there are recomputed";

impl Journal {
    /// Opens the journal of an output folder, which must exist, and locks it. With `resume`, data
    /// of an earlier run can be queried; otherwise they are removed. Warnings are passed to `note`.
    ///
    /// # Errors
    /// When another process has the folder, or the system refuses.
    pub fn open(
        out: &Path,
        cache: Option<&Path>,
        resume: bool,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self, JournalError> {
        let own = out.join(FOLDER);
        let mut locks = Vec::new();
        let mut taken = HashSet::new();
        for (folder, of) in [
            Some((own.as_path(), out)),
            cache.map(|cache| (cache, cache)),
        ]
        .into_iter()
        .flatten()
        {
            folders::make(folder).map_err(cannot("make", folder))?;
            // The cache may be the output folder's own, by whatever name.
            let about = fs::metadata(folder).map_err(cannot("read", folder))?;
            if taken.insert((about.dev(), about.ino())) {
                locks.push((Lock::take(folder)?, of));
            }
        }
        if let Some((_, folder)) = locks.iter().find(|(lock, _)| !lock.is_kept) {
            note(&format!(
                "the file system of {} does not support locks: make sure that no other seqembed \
                 uses the folder",
                folder.display()
            ));
        }
        let folder = cache.map_or(own, Path::to_owned);
        if cache.is_some() {
            let files = folder.join(FILES);
            folders::make(&files).map_err(cannot("make", &files))?;
            atomic_file::sweep(&files, None).map_err(cannot("remove", &files))?;
        }
        let swept = atomic_file::sweep(out, None).map_err(cannot("remove", out))?;
        if swept > 0 {
            note(&format!(
                "{} of an interrupted run {} removed from {}",
                counted(swept as u64, "unfinished file"),
                was(swept as u64),
                out.display()
            ));
        }
        let shards = shards(&folder)?;
        let log_path = folder.join(LOG);
        let mut journal = Self {
            out: out.to_owned(),
            cache: cache.map(Path::to_owned),
            _locks: locks.into_iter().map(|(lock, _)| lock).collect(),
            log: tempfile::tempfile_in(&folder).map_err(cannot("write", &folder))?,
            unsynced: false,
            torn: false,
            facts: HashMap::new(),
            done: HashMap::new(),
            attempts: HashMap::new(),
            saved: HashMap::new(),
            next_attempt: 0,
            shard: None,
            syncing: Vec::new(),
            next_shard: (shards.iter().rev())
                .find(|(number, _)| *number < UNREACHED)
                .map_or(0, |(number, _)| number + 1),
            live: BTreeMap::new(),
            log_path,
            folder,
        };
        if resume {
            journal.take_up(shards, note)?;
        } else {
            discard(&shards, note)?;
        }
        journal.rewrite()?;
        Ok(journal)
    }

    /// Reads what an earlier run left.
    fn take_up(
        &mut self,
        shards: Vec<(u64, PathBuf)>,
        note: &mut dyn FnMut(&str),
    ) -> Result<(), JournalError> {
        let mut text = Vec::new();
        let past = match ordinary::read(&self.log_path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Past::default(),
            other => {
                other
                    .and_then(|mut log| log.read_to_end(&mut text))
                    .map_err(cannot("read", &self.log_path))?;
                let (lines, damaged) = log::parse(&text);
                if damaged > 0 {
                    note(&format!(
                        "{}: {}: what was recorded there is recomputed",
                        self.log_path.display(),
                        counted(damaged as u64, "damaged line")
                    ));
                }
                let (past, why) = Past::of(lines);
                if let Some(why) = why {
                    note(&format!("{}: {why}", self.log_path.display()));
                }
                past
            }
        };
        for (sample, done) in past.done {
            if let Some(facts) = past.facts.get(&done.facts) {
                self.done.insert(sample, (facts.clone(), done));
            }
        }
        for (sample, attempt) in past.attempts {
            if attempt.attempt >= UNREACHED {
                continue;
            }
            self.next_attempt = self.next_attempt.max(attempt.attempt + 1);
            if let Some(facts) = past.facts.get(&attempt.facts) {
                self.attempts
                    .insert(sample, (facts.clone(), attempt.attempt));
            }
        }
        let wanted: HashSet<u64> = self.attempts.values().map(|(_, number)| *number).collect();
        let mut kept = Vec::new();
        for (_, path) in shards {
            let mut live = HashSet::new();
            let mut shard = ordinary::read(&path).map_err(cannot("read", &path))?;
            let number = u32::try_from(kept.len()).unwrap_or(u32::MAX);
            let damaged = rows::scan(&mut shard, |frame| {
                if frame.attempt < UNREACHED {
                    self.next_attempt = self.next_attempt.max(frame.attempt + 1);
                }
                if wanted.contains(&frame.attempt) {
                    live.insert(frame.attempt);
                    let saved = self.saved.entry(frame.attempt).or_default();
                    saved.add(number, &frame);
                }
            })
            .map_err(cannot("read", &path))?;
            if damaged > 0 {
                note(&format!(
                    "{}: {}: the sequences saved there are recomputed",
                    path.display(),
                    counted(damaged as u64, "damaged place")
                ));
            }
            if live.is_empty() {
                fs::remove_file(&path).map_err(cannot("remove", &path))?;
            } else {
                kept.push(path.clone());
                self.live.insert(path, live);
            }
        }
        let kept = Arc::new(kept);
        for saved in self.saved.values_mut() {
            saved.seal(Arc::clone(&kept));
        }
        self.attempts
            .retain(|_, (_, number)| self.saved.contains_key(number));
        Ok(())
    }

    /// Rewrites the log with the entries that are still valid.
    fn rewrite(&mut self) -> Result<(), JournalError> {
        let path = self.log_path.clone();
        let new = AtomicFile::replace(&path).map_err(cannot("write", &path))?;
        self.log = new.file().try_clone().map_err(cannot("write", &path))?;
        self.append(&Line::Begin {
            version: log::VERSION,
        })?;
        let mut done: Vec<_> = self.done.values().cloned().collect();
        done.sort_by(|(_, a), (_, b)| a.sample.cmp(&b.sample));
        for (facts, done) in done {
            let facts = self.facts_id(&facts)?;
            self.append(&Line::Done(Box::new(Done { facts, ..done })))?;
        }
        for (sample, (facts, attempt)) in self.attempts.clone() {
            let facts = self.facts_id(&facts)?;
            self.append(&Line::Attempt(Attempt {
                sample,
                facts,
                attempt,
            }))?;
        }
        new.finish().map_err(cannot("write", &path))
    }

    /// Determines for each file what exists of it, and restores finished files that are only in the
    /// cache.
    ///
    /// # Errors
    /// If a finished file cannot be restored.
    pub fn plan(&mut self, requests: Vec<Request>) -> Result<Vec<ResumePlan>, JournalError> {
        // Hashing all inputs and outputs is worth all cores.
        let verdicts: Vec<Verdict> = requests
            .par_iter()
            .map(|request| self.verdict(request))
            .collect::<Result<_, _>>()?;
        let mut plans = Vec::with_capacity(requests.len());
        for (request, verdict) in requests.into_iter().zip(verdicts) {
            let mut why_again = None;
            match verdict {
                Verdict::Finished { note } => {
                    let (_, done) = &self.done[request.sample];
                    plans.push(ResumePlan::Finished {
                        report: Box::new(done.report.clone()),
                        note,
                    });
                    continue;
                }
                Verdict::Again(why) => {
                    self.done.remove(request.sample);
                    why_again = Some(why);
                }
                Verdict::New => {}
            }
            let mut saved = Saved::default();
            let mut attempt = None;
            if let Some((facts, number)) = self.attempts.remove(request.sample) {
                match request.facts.changes(&facts) {
                    None => {
                        saved = self.saved.remove(&number).unwrap_or_default();
                        attempt = Some(number);
                    }
                    Some(changes) => {
                        self.release(number)?;
                        why_again = Some(changes);
                    }
                }
            }
            plans.push(ResumePlan::Compute {
                ticket: Ticket {
                    sample: request.sample.to_owned(),
                    facts: request.facts,
                    format: request.format,
                    name: request.name,
                    output: request.output,
                    attempt,
                },
                saved,
                why_again,
            });
        }
        Ok(plans)
    }

    /// The folder of finished files in the cache; `None` without a cache.
    fn cached(&self) -> Option<PathBuf> {
        let cache = self.cache.as_ref()?;
        Some(cache.join(FILES))
    }

    /// Whether a file is finished. One that only the cache has is put into its place.
    fn verdict(&self, request: &Request) -> Result<Verdict, JournalError> {
        let Some((facts, done)) = self.done.get(request.sample) else {
            return Ok(Verdict::New);
        };
        if let Some(verdict) = difference(request, facts, done) {
            return Ok(verdict);
        }
        let again = |why: String| Ok(Verdict::Again(why));
        let here = request.output.parent().unwrap_or(Path::new(""));
        let Err(why) = are_as_written(here, &done.files) else {
            if let Some(cache) = self.cached()
                && !done.files.iter().all(|file| has_length(&cache, file))
            {
                // Whatever happened to the copy in the output folder.
                copy(here, &cache, &done.files)?;
            }
            return Ok(Verdict::Finished { note: None });
        };
        let Some(cache) = self.cached() else {
            return again(why);
        };
        let is_there = done.files.iter().any(|file| here.join(&file.name).exists());
        if copy(&cache, here, &done.files)? {
            // An empty output folder is the normal case with a cache, so it needs no message.
            let note = is_there.then(|| {
                format!(
                    "{why}: it was restored from the copy in the \
                                                 cache"
                )
            });
            return Ok(Verdict::Finished { note });
        }
        again(match are_as_written(&cache, &done.files) {
            Err(copy) => format!("{why}, and in the cache {copy}"),
            Ok(()) => why,
        })
    }

    /// Saves rows of an unfinished file. They are durable after [`Self::sync`]. Returns the
    /// location of their values.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(
        &mut self,
        ticket: &mut Ticket,
        hidden: usize,
        marks: &[Mark],
        values: Vectors,
    ) -> Result<RowLocation, JournalError> {
        let attempt = if let Some(attempt) = ticket.attempt {
            attempt
        } else {
            let attempt = self.next_attempt;
            self.next_attempt += 1;
            let facts = self.facts_id(&ticket.facts)?;
            self.append(&Line::Attempt(Attempt {
                sample: ticket.sample.clone(),
                facts,
                attempt,
            }))?;
            ticket.attempt = Some(attempt);
            attempt
        };
        if let Some((path, writer)) = self
            .shard
            .take_if(|(_, writer)| writer.bytes >= SHARD_BYTES)
        {
            let syncing = Background::new(path, move || writer.sync());
            self.syncing.push(syncing);
        }
        let (path, mut writer) = if let Some(shard) = self.shard.take() {
            shard
        } else {
            let path = self.folder.join(format!("{SHARD}{:06}", self.next_shard));
            let writer = rows::Writer::create(&path).map_err(cannot("write", &path))?;
            self.next_shard += 1;
            (path, writer)
        };
        // A shard that ends within a frame is not written to again.
        let (offset, precision) = writer
            .frame(attempt, hidden, marks, values)
            .map_err(cannot("write", &path))?;
        self.live.entry(path.clone()).or_default().insert(attempt);
        self.shard = Some((path.clone(), writer));
        Ok(RowLocation {
            path,
            offset,
            precision,
        })
    }

    /// Waits until all saved rows can be read.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn flush(&mut self) -> Result<(), JournalError> {
        for syncing in self.syncing.drain(..) {
            syncing.wait()?;
        }
        match &self.shard {
            Some((path, writer)) => writer.flush().map_err(cannot("write", path)),
            None => Ok(()),
        }
    }

    /// Has everything recorded so far brought to the disk, by another thread, unless one is still
    /// doing so.
    ///
    /// # Errors
    /// When the disk refused what was recorded before.
    pub fn begin_sync(&mut self) -> Result<(), JournalError> {
        for syncing in self
            .syncing
            .extract_if(.., |syncing| syncing.result.is_done())
        {
            syncing.wait()?;
        }
        if !self.syncing.is_empty() {
            return Ok(());
        }
        let log = if std::mem::take(&mut self.unsynced) {
            let log = self.log.try_clone();
            Some(log.map_err(cannot("write", &self.log_path))?)
        } else {
            None
        };
        let mut shard = None;
        if let Some((path, writer)) = &self.shard {
            writer.flush().map_err(cannot("write", path))?;
            shard = Some(writer.file());
        }
        let out = self.out.clone();
        let work = move || {
            if let Some(log) = log {
                let _ = File::open(&out).and_then(|folder| folder.sync_all());
                log.sync_data()?;
            }
            shard.map_or(Ok(()), |shard| rows::sync(&shard))
        };
        self.syncing
            .push(Background::new(self.folder.clone(), work));
        Ok(())
    }

    /// Waits until everything recorded so far is on disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        if std::mem::take(&mut self.unsynced) {
            // Sync the directory entries of finished files first, because the log states that these
            // files exist.
            let _ = File::open(&self.out).and_then(|folder| folder.sync_all());
            self.log
                .sync_data()
                .map_err(cannot("write", &self.log_path))?;
        }
        self.flush()?;
        if let Some((path, writer)) = &self.shard {
            writer.sync().map_err(cannot("write", path))?;
        }
        Ok(())
    }

    /// Records that an output is complete and consists of `files`. Its saved rows are removed.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(
        &mut self,
        ticket: &Ticket,
        input: &InputFingerprint,
        files: Vec<Written>,
        report: &FileReport,
    ) -> Result<(), JournalError> {
        if let Some(cache) = self.cached() {
            let here = ticket.output.parent().unwrap_or(Path::new(""));
            copy(here, &cache, &files)?;
        }
        let facts = self.facts_id(&ticket.facts)?;
        self.append(&Line::Done(Box::new(Done {
            sample: ticket.sample.clone(),
            facts,
            format: ticket.format.clone(),
            source: ticket.name.clone(),
            input: input.clone(),
            files,
            report: report.clone(),
        })))?;
        match ticket.attempt {
            Some(attempt) => self.release(attempt),
            None => Ok(()),
        }
    }

    /// Forgets the rows of an attempt, and removes shards that have no others.
    fn release(&mut self, attempt: u64) -> Result<(), JournalError> {
        let mut empty = Vec::new();
        for (path, live) in &mut self.live {
            if live.remove(&attempt) && live.is_empty() {
                empty.push(path.clone());
            }
        }
        for path in empty {
            self.live.remove(&path);
            if self.shard.as_ref().is_some_and(|(open, _)| *open == path) {
                self.shard = None;
            }
            fs::remove_file(&path).map_err(cannot("remove", &path))?;
        }
        Ok(())
    }

    /// The number of facts, which are written down when they are new.
    fn facts_id(&mut self, facts: &Facts) -> Result<u64, JournalError> {
        if let Some(id) = self.facts.get(facts) {
            return Ok(*id);
        }
        let id = self.facts.len() as u64;
        self.append(&Line::Facts {
            id,
            facts: facts.clone(),
        })?;
        self.facts.insert(facts.clone(), id);
        Ok(id)
    }

    fn append(&mut self, line: &Line) -> Result<(), JournalError> {
        self.unsynced = true;
        let mut text = log::write(line);
        if self.torn {
            text.insert(0, '\n');
        }
        let written = self.log.write_all(text.as_bytes());
        self.torn = written.is_err();
        written.map_err(cannot("write", &self.log_path))
    }
}

/// Work that another thread does.
struct Background {
    /// The path that errors are about.
    path: PathBuf,
    result: Promise<io::Result<()>>,
}

impl Background {
    fn new(path: PathBuf, work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Self {
        let result = Promise::new(work);
        Self { path, result }
    }

    fn wait(self) -> Result<(), JournalError> {
        let result = self.result.wait();
        let result = result.unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into()));
        result.map_err(cannot("write", &self.path))
    }
}

enum Verdict {
    New,
    Finished { note: Option<String> },
    Again(String),
}

fn has_length(folder: &Path, file: &Written) -> bool {
    fs::metadata(folder.join(&file.name)).is_ok_and(|at| at.is_file() && at.len() == file.bytes)
}

/// Whether files still have the contents that were written; otherwise the first one that does not.
fn are_as_written(folder: &Path, files: &[Written]) -> Result<(), String> {
    files.iter().try_for_each(|written| {
        let path = folder.join(&written.name);
        let file = match ordinary::read(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(format!("{} no longer exists", path.display()));
            }
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        };
        let is_same = has_length(folder, written)
            && digest::of_file(&file, written.bytes).is_ok_and(|hash| hash == written.hash);
        let why = || format!("{} was changed after it was written", path.display());
        is_same.then_some(()).ok_or_else(why)
    })
}

/// Why a file that is done is to be computed again for this request, whatever became of its output.
/// `None`: it is of the same input, model and options.
fn difference(request: &Request, facts: &Facts, done: &Done) -> Option<Verdict> {
    let again = |why: String| Some(Verdict::Again(why));
    if let Some(changes) = request.facts.changes(facts) {
        return again(changes);
    }
    if done.format != request.format {
        return again(format!(
            "format was {} and is {}",
            done.format, request.format
        ));
    }
    if done.source != request.name {
        return again(format!(
            "its input was {} and is {}",
            done.source, request.name
        ));
    }
    match request.source {
        Source::Stdin => again("standard input cannot be compared with the earlier run".to_owned()),
        Source::Path(path) => match done.input.is_still(path) {
            Ok(true) => None,
            Ok(false) => again(format!("{} has changed", path.display())),
            // If this fails, opening the file again will report the error.
            Err(_) => Some(Verdict::New),
        },
    }
}

/// Copies files that belong together to a folder, where they appear whole and as they were written,
/// or not at all. False: in the folder that they come from they are not as they were written.
fn copy(from: &Path, to: &Path, files: &[Written]) -> Result<bool, JournalError> {
    let mut copies = Vec::with_capacity(files.len());
    for written in files {
        let source = ordinary::read(&from.join(&written.name));
        let Ok(mut source) = source else {
            return Ok(false);
        };
        if !has_length(from, written) {
            return Ok(false);
        }
        let target = to.join(&written.name);
        let mut copy = Unfinished::create(&target)?;
        let mut block = vec![0; 1 << 18];
        loop {
            match source.read(&mut block) {
                Ok(0) => break,
                Ok(read) => copy
                    .write_all(&block[..read])
                    .map_err(cannot("write", &target))?,
                Err(_) => return Ok(false),
            }
        }
        let copy = copy.complete()?;
        if copy.written() != written {
            return Ok(false);
        }
        copies.push(copy);
    }
    output::publish(copies)?;
    Ok(true)
}

/// The shards in a work folder with their numbers, in order.
fn shards(folder: &Path) -> Result<Vec<(u64, PathBuf)>, JournalError> {
    let mut shards = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot("read", folder))? {
        let entry = entry.map_err(cannot("read", folder))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(SHARD));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            shards.push((number, entry.path()));
        }
    }
    shards.sort();
    Ok(shards)
}

/// Removes the shards of a run that is not continued.
fn discard(shards: &[(u64, PathBuf)], note: &mut dyn FnMut(&str)) -> Result<(), JournalError> {
    let mut bytes = 0;
    for (_, path) in shards {
        bytes += fs::metadata(path).map_or(0, |about| about.len());
        fs::remove_file(path).map_err(cannot("remove", path))?;
    }
    if let Some((_, first)) = shards.first() {
        note(&format!(
            "removed what an interrupted run had saved in {} ({}); run with option \
             `resume` to continue such a run instead",
            first.parent().unwrap_or(Path::new("")).display(),
            counted(bytes, "byte")
        ));
    }
    Ok(())
}
