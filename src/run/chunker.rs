//! Input files -> chunks: records read in order, tokenised on all cores, cut into windows and grouped into batches.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::chunk::{Chunk, Entry, Item, Part, Replaced, Segment, Status, Task};
use super::dedup::{Origin, Repeats};
use crate::batch::{self, Window};
use crate::engine::Reduce;
use crate::journal::facts::{Input, InputHash, part_hash, record_hash};
use crate::journal::rows::{Saved, Spot};
use crate::records::{self, Reader, Record};
use crate::settings::{Long, Pooling, Revcomp, Unknown};
use crate::text::{counted, was};
use crate::tokenize::dna::{DnaCheck, reverse_complement};
use crate::tokenize::{Alphabet, Encoded, Tokenizer};

/// How much goes into a chunk, and how it is cut into batches.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens of a chunk, about.
    pub chunk_tokens: usize,
    /// Tokens of a batch.
    pub batch_tokens: usize,
    /// Whether the engine pads the sequences of a batch to one length.
    pub padded: bool,
    /// How long records are cut into parts.
    pub part_tokens: PartTokens,
}

/// Tokens of a part of a long record, about. Nothing else decides where a record is cut, so a part that was saved is found
/// again whatever the devices and batches are.
#[derive(Debug, Clone, Copy)]
pub struct PartTokens {
    /// Where the record is pooled.
    pub pooled: usize,
    /// Where each token has a vector.
    pub each: usize,
}

impl PartTokens {
    fn of(self, pooling: Pooling) -> usize {
        match pooling {
            Pooling::None => self.each,
            _ => self.pooled,
        }
    }
}

/// A record of more than so many parts is a long one: fewer are no burden as a whole.
const LONG_PARTS: usize = 8;

/// Records of a chunk, even if all of them are empty.
const CHUNK_RECORDS: usize = 65_536;

/// Makes chunks of the files of all tasks.
pub struct Chunker<'a> {
    tasks: &'a [Task],
    tokenizer: &'a dyn Tokenizer,
    limits: Limits,
    /// For each task, what an earlier run saved of it.
    saved: Arc<Vec<Saved>>,
    /// Saved rows of the file so far that were of other records.
    changed: u64,
    repeats: Option<Repeats>,
    task: usize,
    /// The index of the next record in its file.
    index: u64,
    open: Option<Open>,
    /// What of a long record is in no chunk yet. Nothing is read before it is.
    rest: Option<Rest>,
    forbidden: bool,
    number: u64,
    bytes: Arc<AtomicU64>,
    /// Time spent reading and decompressing.
    pub reading: Duration,
    /// Time spent tokenising.
    pub tokenizing: Duration,
}

impl<'a> Chunker<'a> {
    /// Starts at the first task's first record.
    pub fn new(tasks: &'a [Task], tokenizer: &'a dyn Tokenizer, limits: Limits) -> Self {
        Self {
            tasks,
            tokenizer,
            limits,
            saved: Arc::default(),
            changed: 0,
            repeats: None,
            task: 0,
            index: 0,
            open: None,
            rest: None,
            forbidden: false,
            number: 0,
            bytes: Arc::default(),
            reading: Duration::ZERO,
            tokenizing: Duration::ZERO,
        }
    }

    /// Takes these records for those of the first task's file.
    pub fn give(&mut self, records: Vec<Record>) {
        self.open = Some(Open {
            records: Records::Given(records.into_iter()),
            check: DnaCheck::default(),
            input: Arc::default(),
            length: None,
        });
    }

    /// Takes what was saved of each task from there, instead of having it computed.
    pub fn resume(&mut self, saved: Arc<Vec<Saved>>) {
        self.saved = saved;
    }

    /// Has windows with the same tokens computed once.
    pub fn share(&mut self, repeats: Repeats) {
        self.repeats = Some(repeats);
    }

    /// Whether every file was read to its end.
    pub fn is_done(&self) -> bool {
        self.task == self.tasks.len() && self.rest.is_none()
    }

    /// The next chunk, or `None` after the last.
    pub fn next(&mut self) -> Option<Chunk> {
        if self.is_done() {
            return None;
        }
        let started = Instant::now();
        let mut chunk = Chunk {
            number: self.number,
            entries: Vec::new(),
            segments: Vec::new(),
            encoded: Vec::new(),
            batches: Vec::new(),
            bytes: 0,
        };
        if let Some(repeats) = &mut self.repeats {
            repeats.begin_chunk();
        }
        self.go_on(&mut chunk);
        self.tokenizing += started.elapsed();

        let started = Instant::now();
        let mut raw = Vec::new();
        let mut letters = tokens(&chunk);
        let mut records = chunk.entries.len();
        while !self.is_done()
            && self.rest.is_none()
            && letters < self.limits.chunk_tokens
            && records < CHUNK_RECORDS
        {
            let entry = self.read();
            let mut may_be_long = false;
            if let Raw::Record(task, _, record) = &entry {
                letters += record.sequence.len() + 2;
                records += 1;
                // There are not more tokens than letters and the two special ones. What follows a long record comes after
                // its parts.
                may_be_long = self.is_long(*task, record.sequence.len() + 2);
            }
            raw.push(entry);
            if may_be_long {
                break;
            }
        }
        self.reading += started.elapsed();

        let started = Instant::now();
        self.assemble(raw, &mut chunk);
        chunk.bytes = self.bytes.load(Ordering::Relaxed);
        self.tokenizing += started.elapsed();
        self.number += 1;
        Some(chunk)
    }

    /// Whether a record of so many tokens is cut into parts.
    fn is_long(&self, task: usize, tokens: usize) -> bool {
        let part = self
            .limits
            .part_tokens
            .of(self.tasks[task].job.settings.pooling);
        tokens > part.saturating_mul(LONG_PARTS)
    }

    fn read(&mut self) -> Raw {
        let task = self.task;
        if std::mem::take(&mut self.forbidden) {
            self.open = None;
            return self.end(None);
        }
        let Open { records, check, .. } = match &mut self.open {
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
                Raw::Record(task, self.index - 1, record)
            }
            Some(Err(error)) => self.end(Some(error.to_string())),
            None => self.end(None),
        }
    }

    fn start(&self, task: usize) -> Result<Open, records::RecordError> {
        let bytes = Arc::clone(&self.bytes);
        let input = Arc::new(Mutex::new(InputHash::default()));
        let mut reader = records::open_with(&self.tasks[task].job.source, |raw| {
            let input = Arc::clone(&input);
            Box::new(Counted { raw, bytes, input })
        })?;
        reader.limit(self.limits_of(&self.tasks[task]));
        Ok(Open {
            length: reader.length(),
            records: Records::File(Box::new(reader)),
            check: DnaCheck::default(),
            input,
        })
    }

    /// How much is read of a long record: where only its beginning can be embedded, no more than that is kept.
    fn limits_of(&self, task: &Task) -> records::Limits {
        let settings = &task.job.settings;
        let is_cut = matches!(settings.long, Long::Truncate | Long::Error);
        let longest = match settings.max_record {
            None if is_cut => None,
            None => Some(self.tokenizer.alphabet().longest_record()),
            Some(longest) => Some(longest as u64),
        };
        records::Limits {
            longest,
            // One more, so that it is seen to be too long, even if that is a terminal `*`.
            keep: is_cut.then(|| task.window.max_length.saturating_add(1)),
        }
    }

    /// Why the file that is read seems to be no input for this model, unless the user said that it is.
    fn wrong_alphabet(&self, task: usize) -> Option<String> {
        let job = &self.tasks[task].job;
        let alphabet = self.tokenizer.alphabet();
        let why = self.open.as_ref()?.check.why_not(alphabet)?;
        (!job.settings.force_alphabet).then(|| {
            let (letters, help) = match alphabet {
                Alphabet::Protein => ("proteins", "translate it first"),
                Alphabet::Dna => ("DNA", "choose a protein model"),
            };
            format!(
                "{} {why}; {} is a model of {letters}: {help}, or embed it as it is with --force-alphabet",
                job.source, job.settings.model
            )
        })
    }

    fn end(&mut self, failure: Option<String>) -> Raw {
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
        Raw::End {
            task,
            warnings,
            failure,
            input,
        }
    }

    fn assemble(&mut self, raw: Vec<Raw>, chunk: &mut Chunk) {
        let encoded: Vec<Option<(Encoded, u64)>> = raw
            .par_iter()
            .with_min_len(16)
            .map(|entry| match entry {
                Raw::Record(_, _, record) => Some((
                    self.tokenizer.encode(&record.sequence),
                    record_hash(&record.header, &record.sequence),
                )),
                Raw::End { .. } => None,
            })
            .collect();
        let mut forbidden = None;
        for (entry, encoded) in raw.into_iter().zip(encoded) {
            match (entry, encoded) {
                (Raw::Record(task, index, record), Some((encoded, hash)))
                    if forbidden != Some(task) =>
                {
                    match self.item(task, (index, hash), record, encoded, chunk) {
                        Ok(item) => {
                            let item = item.map(|item| Entry::Record(task, item));
                            chunk.entries.extend(item);
                        }
                        Err(why) => {
                            chunk.entries.push(Entry::Forbidden(task, why));
                            forbidden = Some(task);
                        }
                    }
                }
                (Raw::Record(..), _) => {}
                (
                    Raw::End {
                        task,
                        mut warnings,
                        failure,
                        input,
                    },
                    _,
                ) => {
                    let changed = std::mem::take(&mut self.changed);
                    if changed > 0 {
                        warnings.push(format!(
                            "{} has changed: {} of other sequences {} saved; what changed is computed again",
                            self.tasks[task].job.source,
                            counted(changed, "row"),
                            was(changed)
                        ));
                    }
                    chunk.entries.push(Entry::End {
                        task,
                        warnings,
                        failure,
                        input,
                    });
                }
            }
        }
        self.forbidden = forbidden == Some(self.task);
        self.go_on(chunk);
        for reduce in [Reduce::Mean, Reduce::Max, Reduce::Tokens] {
            let segments: Vec<usize> = (0..chunk.segments.len())
                .filter(|&s| chunk.segments[s].reduce == reduce && chunk.segments[s].is_run())
                .collect();
            let lengths: Vec<usize> = segments
                .iter()
                .map(|&s| chunk.segments[s].tokens())
                .collect();
            let batches = batch::batches(&lengths, self.limits.batch_tokens, self.limits.padded);
            chunk.batches.extend(
                batches
                    .into_iter()
                    .map(|batch| batch.into_iter().map(|at| segments[at]).collect()),
            );
        }
    }
}

/// Tokens of a chunk's segments.
fn tokens(chunk: &Chunk) -> usize {
    chunk.segments.iter().map(Segment::tokens).sum()
}

impl Chunker<'_> {
    /// Applies the task's policies to a record, and appends its windows to the chunk. `None`: it is a long one, and in
    /// `self.rest`.
    ///
    /// # Errors
    /// What a policy forbids, in words.
    fn item(
        &mut self,
        task: usize,
        (index, hash): (u64, u64),
        record: Record,
        mut encoded: Encoded,
        chunk: &mut Chunk,
    ) -> Result<Option<Item>, String> {
        let known = self.saved.get(task);
        let saved = known.and_then(|known| known.find(index, hash));
        let has_other = saved.is_none() && known.is_some_and(|known| known.has(index));
        self.changed += u64::from(has_other);
        let (tasks, tokenizer, number) = (self.tasks, self.tokenizer, task);
        let task = &tasks[task];
        let units = tokenizer.alphabet().units();
        let settings = &task.job.settings;
        let limit = task.window.max_length;
        let length = length_of(&record, &encoded, tokenizer.alphabet());
        let id = record.id().to_owned();
        let fail = |what: String| {
            let source = &task.job.source;
            Err(format!("{source}: record {id:?}: {what}"))
        };
        let mut status = Status::default();
        let mut sequence = &record.sequence[..];
        if length > limit {
            match settings.long {
                Long::Window => status.windowed = true,
                Long::Truncate => {
                    status.truncated = true;
                    sequence = &sequence[..limit];
                    // A `*` at the cut is inside of the record, and not its end.
                    encoded = tokenizer.encode_beginning(sequence);
                }
                Long::Error => {
                    return fail(format!(
                        "{length} {units} are more than --max-length {limit} (--long window or --long truncate embed it)"
                    ));
                }
            }
        }
        if encoded.ids.is_empty() {
            status.skipped = Some(tokenizer.why_no_tokens(encoded.letters));
        }
        if let Some(at) = encoded.first_unknown {
            let letter = record.letter(at);
            let position = at + 1;
            match settings.unknown {
                Unknown::Replace => {
                    status.replaced = if encoded.unknown == encoded.ids.len() {
                        Replaced::All
                    } else {
                        Replaced::Some
                    };
                }
                Unknown::Skip => {
                    let why = format!("{letter} at position {position} is not in the vocabulary");
                    status.skipped.get_or_insert(why);
                }
                Unknown::Error => {
                    return fail(format!(
                        "{letter} at position {position} is not in the model's vocabulary (--unknown replace embeds what is not as the unknown token, --unknown skip leaves the record out)"
                    ));
                }
            }
        }
        status.gaps = memchr::memchr2(b'-', b'.', sequence).is_some();
        let mut item = Item {
            id,
            length,
            segments: 0..0,
            reverse: 0..0,
            header: record.header,
            status,
            index,
            hash,
            saved: None,
            part: None,
        };
        if item.status.skipped.is_some() {
            return Ok(Some(item));
        }
        item.saved = saved;
        if saved.is_none() {
            let other = (settings.revcomp == Revcomp::Mean)
                .then(|| tokenizer.encode(&reverse_complement(sequence)));
            // The letters are not needed any more, and may be many.
            drop(record.sequence);
            let cuts = self.cut(task, &encoded);
            let all = cuts.iter().map(|cut| cut.range.len()).sum();
            if cuts.len() > 1 && self.is_long(number, all) {
                let mut strands = vec![(encoded, cuts)];
                strands.extend(other.map(|other| {
                    let cuts = self.cut(task, &other);
                    (other, cuts)
                }));
                let rest = self.rest(number, item, all, strands);
                let is_known = rest.parts.iter().any(|part| part.saved.is_some());
                self.changed -= u64::from(has_other && is_known);
                self.rest = Some(rest);
                return Ok(None);
            }
            item.segments = self.segments(task, &Arc::new(encoded), cuts, chunk);
            if let Some(other) = other {
                let cuts = self.cut(task, &other);
                item.reverse = self.segments(task, &Arc::new(other), cuts, chunk);
            }
        }
        Ok(Some(item))
    }

    /// A long record as its parts, which are not in a chunk yet. `vectors`: how many it has.
    fn rest(
        &self,
        task: usize,
        item: Item,
        vectors: usize,
        strands: Vec<(Encoded, Vec<Cut>)>,
    ) -> Rest {
        let pooling = self.tasks[task].job.settings.pooling;
        let limit = self.limits.part_tokens.of(pooling);
        let saved = self.saved.get(task);
        let mut parts = VecDeque::new();
        for (strand, (encoded, cuts)) in strands.into_iter().enumerate() {
            let encoded = Arc::new(encoded);
            let is_reverse = strand > 0;
            let mut weight = 0;
            let mut cuts = cuts.into_iter().peekable();
            while let Some(first) = cuts.peek() {
                let before = weight;
                let mut tokens = first.window.kept.clone();
                let mut own = Vec::new();
                while weight - before < limit
                    && let Some(cut) = cuts.next()
                {
                    weight += cut.range.len();
                    tokens.end = cut.window.kept.end;
                    own.push(cut);
                }
                let hash = part_hash(item.hash, is_reverse, &tokens);
                parts.push_back(RestPart {
                    encoded: Arc::clone(&encoded),
                    cuts: own,
                    is_reverse,
                    weight,
                    hash,
                    saved: saved.and_then(|saved| saved.find(item.index, hash)),
                });
            }
        }
        if pooling != Pooling::None {
            // What is saved of a pooled part is the vector up to its end.
            for is_reverse in [true, false] {
                let is_saved =
                    |part: &RestPart| part.is_reverse == is_reverse && part.saved.is_some();
                if let Some(last) = parts.iter().rposition(is_saved) {
                    let first = parts.iter().position(|part| part.is_reverse == is_reverse);
                    parts.drain(first.unwrap_or(last)..last);
                }
            }
        }
        Rest {
            task,
            item,
            vectors,
            is_begun: false,
            parts,
        }
    }

    /// Appends parts of a long record to the chunk, until it is full.
    fn go_on(&mut self, chunk: &mut Chunk) {
        let Some(mut rest) = self.rest.take() else {
            return;
        };
        let task = &self.tasks[rest.task];
        let mut full = tokens(chunk);
        while full < self.limits.chunk_tokens
            && chunk.entries.len() < CHUNK_RECORDS
            && let Some(part) = rest.parts.pop_front()
        {
            let is_last = rest.parts.is_empty();
            let mut item = Item {
                id: rest.item.id.clone(),
                header: String::new(),
                status: rest.item.status.clone(),
                segments: 0..0,
                reverse: 0..0,
                hash: part.hash,
                saved: part.saved,
                part: Some(Part {
                    is_first: !std::mem::replace(&mut rest.is_begun, true),
                    is_last,
                    is_reverse: part.is_reverse,
                    weight: part.weight,
                    vectors: rest.vectors,
                }),
                ..rest.item
            };
            if is_last {
                item.header = std::mem::take(&mut rest.item.header);
            }
            if part.saved.is_none() {
                let segments = self.segments(task, &part.encoded, part.cuts, chunk);
                full += chunk.segments[segments.clone()]
                    .iter()
                    .map(Segment::tokens)
                    .sum::<usize>();
                if part.is_reverse {
                    item.reverse = segments;
                } else {
                    item.segments = segments;
                }
            }
            chunk.entries.push(Entry::Record(rest.task, item));
        }
        if !rest.parts.is_empty() {
            self.rest = Some(rest);
        }
    }

    /// Cuts a sequence into windows.
    fn cut(&self, task: &Task, encoded: &Encoded) -> Vec<Cut> {
        let pooling = task.job.settings.pooling;
        let crate::settings::Window {
            max_length,
            overlap,
        } = task.window;
        let mut windows = encoded.windows(self.tokenizer.span(), max_length, overlap);
        if pooling == Pooling::Cls {
            // The first window's is the sequence's: the others need not run.
            windows.truncate(1);
        }
        if let Some(first) = task.job.settings.pool_first {
            windows.retain(|window| window.kept.start < first);
            for window in &mut windows {
                window.kept.end = window.kept.end.min(first);
            }
        }
        let last = windows.len().saturating_sub(1);
        let cuts = windows.into_iter().enumerate().map(|(at, window)| {
            // Token 0 is <cls>, token 1 the window's first.
            let seen = window.seen.start;
            let kept = window.kept.start + 1 - seen..window.kept.end + 1 - seen;
            let range = match pooling {
                Pooling::Mean | Pooling::Max | Pooling::None => kept,
                Pooling::Cls => 0..1,
                Pooling::MeanAll => {
                    let start = if at == 0 { 0 } else { kept.start };
                    let end = if at == last { kept.end + 1 } else { kept.end };
                    start..end
                }
            };
            Cut { window, range }
        });
        cuts.collect()
    }

    /// Appends a sequence's tokens and windows of it to the chunk.
    fn segments(
        &mut self,
        task: &Task,
        encoded: &Arc<Encoded>,
        cuts: Vec<Cut>,
        chunk: &mut Chunk,
    ) -> Range<usize> {
        let first = chunk.segments.len();
        for Cut { window, range } in cuts {
            let mut segment = Segment {
                record: chunk.encoded.len(),
                window,
                range,
                reduce: task.reduce(),
                origin: Origin::Engine { keep: None },
            };
            if let Some(repeats) = &mut self.repeats {
                segment.origin = repeats.origin(chunk.segments.len(), &segment, &encoded.ids);
            }
            chunk.segments.push(segment);
        }
        chunk.encoded.push(Arc::clone(encoded));
        first..chunk.segments.len()
    }
}

/// A window, and the tokens of it to pool over, its first special one being 0.
struct Cut {
    window: Window,
    range: Range<usize>,
}

/// A long record whose parts are not all in a chunk.
struct Rest {
    task: usize,
    /// The record, without windows.
    item: Item,
    vectors: usize,
    is_begun: bool,
    parts: VecDeque<RestPart>,
}

/// A part of it.
struct RestPart {
    encoded: Arc<Encoded>,
    cuts: Vec<Cut>,
    is_reverse: bool,
    weight: usize,
    hash: u64,
    saved: Option<Spot>,
}

/// How many letters a record has, a terminal `*` of a protein not counted. Its rest was counted while it was read.
fn length_of(record: &Record, encoded: &Encoded, alphabet: Alphabet) -> usize {
    let Some(rest) = record.rest else {
        return encoded.letters;
    };
    let stop = rest.last == b'*' && alphabet == Alphabet::Protein;
    let more = usize::try_from(rest.letters).unwrap_or(usize::MAX);
    record.sequence.len().saturating_add(more) - usize::from(stop)
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

/// What was read, before it is tokenised.
enum Raw {
    /// Its task, its index in the file, and itself.
    Record(usize, u64, Record),
    End {
        task: usize,
        warnings: Vec<String>,
        failure: Option<String>,
        input: Option<Input>,
    },
}

/// The file that is read.
struct Open {
    records: Records,
    check: DnaCheck,
    input: Arc<Mutex<InputHash>>,
    /// The file's length, if it has one.
    length: Option<u64>,
}

/// Counts what is read from a file, for the progress bar, and hashes it, for the journal.
struct Counted {
    raw: Box<dyn Read + Send>,
    bytes: Arc<AtomicU64>,
    input: Arc<Mutex<InputHash>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.raw.read(buffer)?;
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        input.update(&buffer[..count]);
        Ok(count)
    }
}
