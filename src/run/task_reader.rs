//! Reads the records of the input files, one task after the other, and returns a summary at the end
//! of each file.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::task::Task;
use crate::journal::facts::{InputFingerprint, InputHash};
use crate::records::{self, Reader, Record};
use crate::settings::Long;
use crate::tokenize::dna::DnaCheck;
use crate::tokenize::{Alphabet, Tokenizer};

/// What was read, before it is tokenized.
pub enum ReadEntry {
    /// A record.
    Record {
        /// Index of the task in the group.
        task: usize,
        /// The record's index in its file.
        index: u64,
        /// The record.
        record: Record,
    },
    /// The end of a file.
    End(FileEnd),
}

/// The end of a task's file.
pub struct FileEnd {
    /// Index of the task in the group.
    pub task: usize,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Why the file failed.
    pub failure: Option<String>,
    /// Size and hash of the input, as read.
    pub input: Option<InputFingerprint>,
}

/// Reads the files of all tasks.
pub struct TaskReader<'a> {
    tasks: &'a [Task],
    /// What the model is for.
    alphabet: Alphabet,
    /// How many letters of a record describe a residue.
    letters_per_residue: usize,
    /// The task whose file is being read.
    task: usize,
    /// The index of the next record in its file.
    index: u64,
    open: Option<OpenFile>,
    /// Whether no more of the file is read.
    is_stopped: bool,
    bytes: Arc<AtomicU64>,
}

impl<'a> TaskReader<'a> {
    /// Starts at the first task's first record.
    pub fn new(tasks: &'a [Task], tokenizer: &dyn Tokenizer) -> Self {
        Self {
            tasks,
            alphabet: tokenizer.alphabet(),
            letters_per_residue: tokenizer.letters_per_residue(),
            task: 0,
            index: 0,
            open: None,
            is_stopped: false,
            bytes: Arc::default(),
        }
    }

    /// Uses these records in place of those of the first task's file.
    pub fn give(&mut self, records: Vec<Record>) {
        self.open = Some(OpenFile {
            records: Records::Given(records.into_iter()),
            check: DnaCheck::default(),
            input: Arc::default(),
            length: None,
        });
    }

    /// Whether every file was read to its end.
    pub fn is_done(&self) -> bool {
        self.task == self.tasks.len()
    }

    /// Compressed bytes of input that were read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Reads no more of a task's file, if it is the one that is read: its end follows.
    pub fn stop(&mut self, task: usize) {
        self.is_stopped = task == self.task;
    }

    /// The next record or file end. To be called until it [is done](TaskReader::is_done).
    pub fn read(&mut self) -> ReadEntry {
        let task = self.task;
        if std::mem::take(&mut self.is_stopped) {
            self.open = None;
            return self.end(None);
        }
        let OpenFile { records, check, .. } = match &mut self.open {
            Some(open) => open,
            None => match self.start(task) {
                Ok(open) => self.open.insert(open),
                Err(error) => return self.end(Some(error.to_string())),
            },
        };
        match records.next() {
            Some(Ok(record)) => {
                let undecided = !check.is_done();
                check.add(&record.sequence);
                if undecided
                    && check.is_done()
                    && let Some(why) = self.wrong_alphabet(task)
                {
                    return self.end(Some(why));
                }
                self.index += 1;
                ReadEntry::Record {
                    task,
                    index: self.index - 1,
                    record,
                }
            }
            Some(Err(error)) => self.end(Some(error.to_string())),
            None => self.end(None),
        }
    }

    fn start(&self, task: usize) -> Result<OpenFile, records::RecordError> {
        let bytes = Arc::clone(&self.bytes);
        let input = Arc::new(Mutex::new(InputHash::default()));
        let mut reader = records::open_with(&self.tasks[task].job.source, |raw| {
            let input = Arc::clone(&input);
            Box::new(CountingReader { raw, bytes, input })
        })?;
        reader.limit(self.limits_of(&self.tasks[task]));
        Ok(OpenFile {
            length: reader.length(),
            records: Records::File(Box::new(reader)),
            check: DnaCheck::default(),
            input,
        })
    }

    /// How much of a long record is read: if only its start can be embedded, the rest is not kept.
    fn limits_of(&self, task: &Task) -> records::Limits {
        let settings = &task.job.settings;
        let is_cut = matches!(settings.long, Long::Truncate | Long::Error);
        let longest = match settings.max_record {
            None if is_cut => None,
            None => Some(self.alphabet.longest_record()),
            Some(longest) => Some(longest as u64),
        };
        records::Limits {
            longest,
            letters_per_residue: self.letters_per_residue as u64,
            // One more, so that it is seen to be too long, even if that is a terminal `*`.
            keep: is_cut.then(|| {
                let longest = task.window.max_length;
                longest
                    .saturating_mul(self.letters_per_residue)
                    .saturating_add(1)
            }),
        }
    }

    /// Why the file that is read seems to be no input for this model, unless the user said that it
    /// is.
    fn wrong_alphabet(&self, task: usize) -> Option<String> {
        let job = &self.tasks[task].job;
        let check = self.open.as_ref()?.check;
        if job.settings.force_alphabet {
            return None;
        }
        if self.letters_per_residue > 1
            && let Some(why) = check.why_no_pairs()
        {
            return Some(format!(
                "{} {why}, but {} reads pairs: write each residue in upper case and behind it its \
                 structure in lower case (foldseek's letter, or # where it is not known), or use \
                 option `force_alphabet` to embed the file anyway",
                job.source, job.settings.model
            ));
        }
        check.why_not(self.alphabet).map(|why| {
            let (letters, help) = match self.alphabet {
                Alphabet::Protein => ("protein", "translate the sequences first"),
                Alphabet::Dna => ("DNA", "choose a protein model"),
            };
            format!(
                "{} {why}, but {} is a {letters} model: {help}, or use option `force_alphabet` to embed \
                 the file anyway",
                job.source, job.settings.model
            )
        })
    }

    /// Continues with the file of the next task.
    fn end(&mut self, failure: Option<String>) -> ReadEntry {
        let task = self.task;
        let mut failure = failure.or_else(|| self.wrong_alphabet(task));
        self.task += 1;
        self.index = 0;
        let mut warnings = Vec::new();
        let mut input = None;
        if let Some(open) = self.open.take()
            && failure.is_none()
        {
            let hash = open.input.lock().unwrap_or_else(PoisonError::into_inner);
            let read = hash.finish(open.length);
            if let Records::File(reader) = &open.records {
                match reader.verify(read.read, &read.hash) {
                    Ok(()) => warnings.extend(reader.warnings()),
                    Err(error) => failure = Some(error.to_string()),
                }
            }
            input = failure.is_none().then_some(read);
        }
        ReadEntry::End(FileEnd {
            task,
            warnings,
            failure,
            input,
        })
    }
}

/// The file that is read.
struct OpenFile {
    records: Records,
    check: DnaCheck,
    input: Arc<Mutex<InputHash>>,
    /// Bytes of the file, if it has a length.
    length: Option<u64>,
}

/// Where a task's records come from.
enum Records {
    File(Box<Reader>),
    Given(std::vec::IntoIter<Record>),
}

impl Iterator for Records {
    type Item = Result<Record, records::RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::File(reader) => reader.next(),
            Self::Given(records) => records.next().map(Ok),
        }
    }
}

/// Counts what is read from a file, for the progress bar, and hashes it, for the journal.
struct CountingReader {
    raw: Box<dyn Read + Send>,
    bytes: Arc<AtomicU64>,
    input: Arc<Mutex<InputHash>>,
}

impl Read for CountingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.raw.read(buffer)?;
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        input.update(&buffer[..count]);
        Ok(count)
    }
}
