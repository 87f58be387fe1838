//! Records on their way to the model: read, tokenized and grouped into batches, whose size is
//! limited by their tokens and by the pairs of residues that they give.

use std::cmp::Reverse;
use std::sync::Arc;

use rayon::prelude::*;

use crate::batch::ModelInput;
use crate::run::{FileEnd, ReadEntry, RecordStatus, Task, TaskReader, apply_policies};
use crate::tokenize::{Encoded, Tokenizer};

/// Pairs of a batch, unless one sequence has more: 4 MiB, a sequence of 1,024 residues.
const BATCH_PAIRS: usize = 1 << 20;

/// Pairs of a chunk: 128 MiB.
const CHUNK_PAIRS: usize = 32 << 20;

/// Records of a chunk, even if all of them are empty.
const CHUNK_RECORDS: usize = 16_384;

/// A record that was read.
pub struct ContactRecord {
    /// The whole header line.
    pub header: String,
    /// The first word of it.
    pub id: String,
    /// Residues, a terminal `*` not counted.
    pub length: usize,
    /// `ok`, or what was done to it, or why it was skipped.
    pub status: RecordStatus,
    /// Its place among the chunk's inputs; `None` if it was skipped.
    pub input: Option<usize>,
}

/// What was read, in its order.
pub enum Entry {
    /// A record, and the index of its task.
    Record(usize, ContactRecord),
    /// Why a policy forbids a task's file.
    Forbidden(usize, String),
    /// The end of a file.
    End(FileEnd),
}

/// Records that are in memory at the same time.
#[derive(Default)]
pub struct Chunk {
    /// What was read.
    pub entries: Vec<Entry>,
    /// What the model gets.
    pub inputs: Vec<ModelInput>,
    /// The tokens of the inputs.
    pub encoded: Vec<Arc<Encoded>>,
    /// Inputs that are computed together.
    pub batches: Vec<Vec<usize>>,
}

/// How many pairs an input gives.
#[must_use]
pub fn pairs(input: &ModelInput) -> usize {
    let residues = input.ranges.first().map_or(0, ExactSizeIterator::len);
    residues * residues
}

/// Makes chunks of the files of all tasks.
pub struct Chunks<'a> {
    tasks: &'a [Task],
    tokenizer: &'a dyn Tokenizer,
    batch_tokens: usize,
    /// Reads the files.
    pub reader: TaskReader<'a>,
}

impl<'a> Chunks<'a> {
    /// Starts at the first task's first record.
    pub fn new(tasks: &'a [Task], tokenizer: &'a dyn Tokenizer, batch_tokens: usize) -> Self {
        Self {
            tasks,
            tokenizer,
            batch_tokens,
            reader: TaskReader::new(tasks, tokenizer),
        }
    }

    /// The next chunk, or `None` after the last.
    pub fn next(&mut self) -> Option<Chunk> {
        if self.reader.is_done() {
            return None;
        }
        let read = self.read();
        let encoded: Vec<Option<Encoded>> = read
            .par_iter()
            .with_min_len(16)
            .map(|entry| match entry {
                ReadEntry::Record { record, .. } => Some(self.tokenizer.encode(&record.sequence)),
                ReadEntry::End(_) => None,
            })
            .collect();
        let mut chunk = Chunk::default();
        let mut forbidden = None;
        for (entry, encoded) in read.into_iter().zip(encoded) {
            match (entry, encoded) {
                (ReadEntry::Record { task, record, .. }, Some(encoded))
                    if forbidden != Some(task) =>
                {
                    let checked =
                        apply_policies(&self.tasks[task], self.tokenizer, &record, encoded);
                    match checked {
                        Ok(checked) => {
                            let record = ContactRecord {
                                id: record.id().to_owned(),
                                header: record.header,
                                length: checked.length,
                                status: checked.status,
                                input: None,
                            };
                            let record = self.place(task, record, checked.encoded, &mut chunk);
                            chunk.entries.push(Entry::Record(task, record));
                        }
                        Err(why) => {
                            chunk.entries.push(Entry::Forbidden(task, why));
                            forbidden = Some(task);
                        }
                    }
                }
                (ReadEntry::Record { .. }, _) => {}
                (ReadEntry::End(end), _) => chunk.entries.push(Entry::End(end)),
            }
        }
        if let Some(task) = forbidden {
            self.reader.stop(task);
        }
        chunk.batches = group(&chunk.inputs, self.batch_tokens);
        Some(chunk)
    }

    fn read(&mut self) -> Vec<ReadEntry> {
        let mut read = Vec::new();
        let mut all = 0_usize;
        while !self.reader.is_done() && all < CHUNK_PAIRS && read.len() < CHUNK_RECORDS {
            let entry = self.reader.read();
            if let ReadEntry::Record { task, record, .. } = &entry {
                let letters = record.sequence.len();
                if letters <= self.tasks[*task].window.max_length {
                    all = all.saturating_add(letters * letters);
                }
            }
            read.push(entry);
        }
        read
    }

    /// Appends a record's tokens to the chunk, if the model gets it.
    fn place(
        &self,
        task: usize,
        mut record: ContactRecord,
        encoded: Encoded,
        chunk: &mut Chunk,
    ) -> ContactRecord {
        let task = &self.tasks[task];
        let tokens = encoded.ids.len();
        if record.status.skipped.is_none() && !task.fits(record.length, tokens) {
            record.status.skipped = Some(format!(
                "its {} residues are more than the {} that contacts can be predicted for",
                record.length, task.window.max_length
            ));
        }
        if record.status.skipped.is_none() {
            let special = self.tokenizer.special();
            let front = special.front.len();
            let input = ModelInput::new(
                chunk.encoded.len(),
                0..tokens,
                vec![front..front + tokens],
                special,
            );
            record.input = Some(chunk.inputs.len());
            chunk.inputs.push(input);
            chunk.encoded.push(Arc::new(encoded));
        }
        record
    }
}

/// Groups inputs into batches of at most `budget` tokens and [`BATCH_PAIRS`] pairs, the longest
/// first. Every input is in one batch; one that is larger than a limit is alone.
fn group(inputs: &[ModelInput], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..inputs.len()).collect();
    order.sort_by_key(|&at| Reverse(inputs[at].tokens));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let (mut tokens, mut all) = (0, 0);
    for at in order {
        let (own, pairs) = (inputs[at].tokens, pairs(&inputs[at]));
        match batches.last_mut() {
            Some(batch) if tokens + own <= budget && all + pairs <= BATCH_PAIRS => batch.push(at),
            _ => {
                batches.push(vec![at]);
                (tokens, all) = (0, 0);
            }
        }
        tokens += own;
        all += pairs;
    }
    batches
}
