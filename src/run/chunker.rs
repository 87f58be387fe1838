//! Records -> chunks: tokenized on all cores, cut into windows and grouped into batches.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::chunk::{Chunk, ChunkEntry, ChunkRecord, RecordStatus, Replaced, Segment};
use super::dedup::{Dedup, Origin};
use super::record_parts::{PartTokens, RemainingParts};
use super::spans::{Span, Spans};
use super::task::Task;
use super::task_reader::{FileEnd, ReadEntry, TaskReader};
use crate::batch::ModelInput;
use crate::journal::facts::{record_hash, span_hash};
use crate::journal::rows::{Saved, Spot};
use crate::pooling::PooledWindow;
use crate::records::Record;
use crate::settings::{Long, Revcomp, Unknown, WindowSize};
use crate::text::{counted, was};
use crate::tokenize::dna::reverse_complement;
use crate::tokenize::{Alphabet, Encoded, Tokenizer, Window};

/// How much goes into a chunk, and how it is cut into batches.
#[derive(Debug, Clone, Copy)]
pub struct ChunkLimits {
    /// Tokens of a chunk, about.
    pub chunk_tokens: usize,
    /// Tokens of a batch.
    pub batch_tokens: usize,
    /// Whether the engine pads the sequences of a batch to one length.
    pub padded: bool,
    /// How long records are cut into parts.
    pub part_tokens: PartTokens,
}

/// Records of a chunk, even if all of them are empty.
const CHUNK_RECORDS: usize = 65_536;

/// Makes chunks of the files of all tasks.
pub struct Chunker<'a> {
    tasks: &'a [Task],
    tokenizer: &'a dyn Tokenizer,
    limits: ChunkLimits,
    reader: TaskReader<'a>,
    /// For each task, the rows saved by an earlier run.
    saved: Arc<Vec<Saved>>,
    /// Saved rows of the file so far that were of other records.
    changed: u64,
    dedup: Option<Dedup>,
    /// What of a long record is in no chunk yet. Nothing is read before it is.
    remaining: Option<RemainingParts>,
    /// Letters and tokens of all records so far: a k-mer or a byte pair has several letters.
    letters_and_tokens: [u64; 2],
    number: u64,
    /// With spans: the task of the last record, and how many rows it has so far.
    rows: (usize, u64),
    /// Time spent reading and decompressing.
    pub reading: Duration,
    /// Time spent tokenizing.
    pub tokenizing: Duration,
}

impl<'a> Chunker<'a> {
    /// Starts at the first task's first record.
    pub fn new(tasks: &'a [Task], tokenizer: &'a dyn Tokenizer, limits: ChunkLimits) -> Self {
        Self {
            tasks,
            tokenizer,
            limits,
            reader: TaskReader::new(tasks, tokenizer),
            saved: Arc::default(),
            changed: 0,
            dedup: None,
            remaining: None,
            letters_and_tokens: [0, 0],
            number: 0,
            rows: (0, 0),
            reading: Duration::ZERO,
            tokenizing: Duration::ZERO,
        }
    }

    /// Uses these records in place of those of the first task's file.
    pub fn give(&mut self, records: Vec<Record>) {
        self.reader.give(records);
    }

    /// Uses the saved rows of each task instead of recomputing them.
    pub fn resume(&mut self, saved: Arc<Vec<Saved>>) {
        self.saved = saved;
    }

    /// Has windows with the same tokens computed once.
    pub fn share(&mut self, dedup: Dedup) {
        self.dedup = Some(dedup);
    }

    /// Whether every file was read to its end.
    pub fn is_done(&self) -> bool {
        self.reader.is_done() && self.remaining.is_none()
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
            shares: false,
        };
        if let Some(dedup) = &mut self.dedup {
            dedup.begin_chunk();
        }
        self.append_parts(&mut chunk);
        self.tokenizing += started.elapsed();

        let started = Instant::now();
        let read = self.read(&chunk);
        self.reading += started.elapsed();

        let started = Instant::now();
        self.append(read, &mut chunk);
        self.append_parts(&mut chunk);
        chunk.group(self.limits.batch_tokens, self.limits.padded);
        chunk.bytes = self.reader.bytes();
        self.tokenizing += started.elapsed();
        self.number += 1;
        Some(chunk)
    }

    /// Reads what fills a chunk up.
    fn read(&mut self, chunk: &Chunk) -> Vec<ReadEntry> {
        let special = self.tokenizer.special().count();
        let mut read = Vec::new();
        let mut tokens = chunk.tokens();
        let mut records = chunk.entries.len();
        while !self.is_done()
            && self.remaining.is_none()
            && tokens < self.limits.chunk_tokens
            && records < CHUNK_RECORDS
        {
            let entry = self.reader.read();
            let mut may_be_long = false;
            if let ReadEntry::Record { task, record, .. } = &entry {
                // There are not more tokens than letters and special ones.
                let most = record.sequence.len() + special;
                tokens += self.expected_tokens(*task, record.sequence.len()) + special;
                records += 1;
                // Items after a long record follow its parts.
                may_be_long = self.is_long(*task, most);
            }
            read.push(entry);
            if may_be_long {
                break;
            }
        }
        read
    }

    /// How many tokens a record of so many letters adds to a chunk, about. Were letters counted, a
    /// chunk of DNA in 6-mers would have a sixth of its batches, and a larger part of them would be
    /// the last ones of chunks, which are not full.
    fn expected_tokens(&self, task: usize, letters: usize) -> usize {
        let [seen, tokens] = self.letters_and_tokens;
        // The output of a token takes memory: no more tokens than planned.
        if seen == 0 || self.tasks[task].job.settings.pooling.is_per_token() {
            return letters;
        }
        let expected = (letters as u64).saturating_mul(tokens) / seen;
        usize::try_from(expected).map_or(letters, |expected| expected.min(letters))
    }

    /// Whether a record with this many tokens is cut into parts.
    fn is_long(&self, task: usize, tokens: usize) -> bool {
        let pooling = &self.tasks[task].job.settings.pooling;
        self.limits.part_tokens.is_long(pooling, tokens)
    }

    /// Tokenizes what was read, and appends it to the chunk.
    fn append(&mut self, read: Vec<ReadEntry>, chunk: &mut Chunk) {
        let encoded: Vec<Option<(Encoded, u64)>> = read
            .par_iter()
            .with_min_len(16)
            .map(|entry| match entry {
                ReadEntry::Record { record, .. } => Some((
                    self.tokenizer.encode(&record.sequence),
                    record_hash(&record.header, &record.sequence),
                )),
                ReadEntry::End(_) => None,
            })
            .collect();
        for (entry, encoded) in read.iter().zip(&encoded) {
            if let (ReadEntry::Record { record, .. }, Some((encoded, _))) = (entry, encoded) {
                self.letters_and_tokens[0] += record.sequence.len() as u64;
                self.letters_and_tokens[1] += encoded.ids.len() as u64;
            }
        }
        let mut forbidden = None;
        for (entry, encoded) in read.into_iter().zip(encoded) {
            match (entry, encoded) {
                (
                    ReadEntry::Record {
                        task,
                        index,
                        record,
                    },
                    Some((encoded, hash)),
                ) if forbidden != Some(task) => {
                    let records = match self.tasks[task].spans.clone() {
                        Some(spans) => self.spans_of(task, &spans, hash, &record, encoded, chunk),
                        None => self
                            .record(task, (index, hash), record, encoded, chunk)
                            .map(|record| record.into_iter().collect()),
                    };
                    match records {
                        Ok(records) => {
                            let records = records.into_iter();
                            let entries = records.map(|record| ChunkEntry::Record(task, record));
                            chunk.entries.extend(entries);
                        }
                        Err(why) => {
                            chunk.entries.push(ChunkEntry::Forbidden(task, why));
                            forbidden = Some(task);
                        }
                    }
                }
                (ReadEntry::Record { .. }, _) => {}
                (ReadEntry::End(mut end), _) => {
                    end.warnings.extend(self.warning_of_changes(&end));
                    chunk.entries.push(ChunkEntry::End(end));
                }
            }
        }
        if let Some(task) = forbidden {
            self.reader.stop(task);
        }
    }

    /// The warning about saved rows of a file that belong to other records.
    fn warning_of_changes(&mut self, end: &FileEnd) -> Option<String> {
        let changed = std::mem::take(&mut self.changed);
        (changed > 0).then(|| {
            format!(
                "{} has changed: {} {} saved for other sequences; what changed is recomputed",
                self.tasks[end.task].job.source,
                counted(changed, "row"),
                was(changed)
            )
        })
    }

    /// Applies the task's policies to a record, and appends its windows to the chunk. `None`: it is
    /// a long one, and in `self.remaining`.
    ///
    /// # Errors
    /// What a policy forbids, in words.
    fn record(
        &mut self,
        number: usize,
        (index, hash): (u64, u64),
        record: Record,
        encoded: Encoded,
        chunk: &mut Chunk,
    ) -> Result<Option<ChunkRecord>, String> {
        let (saved, has_other) = self.saved_row(number, (index, hash));
        let (tasks, tokenizer) = (self.tasks, self.tokenizer);
        let task = &tasks[number];
        let checked = apply_policies(task, tokenizer, &record, encoded)?;
        let mut entry = ChunkRecord {
            id: record.id().to_owned(),
            length: checked.length,
            segments: 0..0,
            reverse: 0..0,
            header: record.header,
            status: checked.status,
            index,
            hash,
            saved: None,
            part: None,
        };
        let encoded = checked.encoded;
        let reverse = (task.job.settings.revcomp == Revcomp::Mean)
            .then(|| tokenizer.encode(&reverse_complement(&record.sequence[..checked.letters])));
        // The letters are not needed any more, and may be many.
        drop(record.sequence);
        // Byte pairs of the reverse complement may be more.
        let mut strands = std::iter::once(&encoded).chain(&reverse);
        entry.status.windowed = strands.any(|strand| self.is_cut(task, strand));
        if entry.status.skipped.is_some() {
            return Ok(Some(entry));
        }
        entry.saved = saved;
        if saved.is_some() {
            return Ok(Some(entry));
        }
        let windows = self.windows(task, &encoded);
        let pooled = windows.iter().map(|pooled| pooled.ranges[0].len()).sum();
        if windows.len() > 1 && self.is_long(number, pooled) {
            let mut strands = vec![(encoded, windows)];
            strands.extend(reverse.map(|reverse| {
                let windows = self.windows(task, &reverse);
                (reverse, windows)
            }));
            let how = (self.limits.part_tokens, &task.job.settings.pooling);
            let saved = self.saved.get(number);
            let remaining = RemainingParts::new(number, entry, pooled, strands, how, saved);
            self.changed -= u64::from(has_other && remaining.is_known());
            self.remaining = Some(remaining);
            return Ok(None);
        }
        entry.segments = self.segments(task, &Arc::new(encoded), windows, chunk);
        if let Some(reverse) = reverse {
            let windows = self.windows(task, &reverse);
            entry.reverse = self.segments(task, &Arc::new(reverse), windows, chunk);
        }
        Ok(Some(entry))
    }

    /// A row for each span of a record, as [`Chunker::record`] makes one of the whole, and for the
    /// whole where that is asked for. Their windows share the record's tokens, so that a batch
    /// computes them once.
    ///
    /// # Errors
    /// What a policy forbids, or which span ends outside, in words.
    fn spans_of(
        &mut self,
        number: usize,
        spans: &Spans,
        hash: u64,
        record: &Record,
        encoded: Encoded,
        chunk: &mut Chunk,
    ) -> Result<Vec<ChunkRecord>, String> {
        let (tasks, tokenizer) = (self.tasks, self.tokenizer);
        let task = &tasks[number];
        let (id, own) = (record.id(), spans.of(record.id()));
        if own.is_empty() && !task.job.settings.whole {
            return Ok(Vec::new());
        }
        let checked = apply_policies(task, tokenizer, record, encoded)?;
        let reverse = (task.job.settings.revcomp == Revcomp::Mean)
            .then(|| tokenizer.encode(&reverse_complement(&record.sequence[..checked.letters])));
        let strands: Vec<Arc<Encoded>> = std::iter::once(checked.encoded)
            .chain(reverse)
            .map(Arc::new)
            .collect();
        let is_cut = strands.iter().any(|strand| self.is_cut(task, strand));
        let kept = strands[0].letters;
        let windows: Vec<Vec<Window>> = strands
            .iter()
            .map(|strand| self.cut(task, strand))
            .collect();
        let place = chunk.encoded.len();
        chunk.encoded.extend(strands.iter().map(Arc::clone));
        // An engine that pads takes as many ranges of each sequence.
        chunk.shares = !self.limits.padded;
        let whole = task.job.settings.whole.then_some(None);
        let mut rows = Vec::new();
        for span in whole.into_iter().chain(own.iter().map(Some)) {
            if let Some(why) = span.and_then(|span| spans.why_outside(id, span, checked.length)) {
                return Err(why);
            }
            let index = self.next_row(number);
            let hash = span.map_or(hash, |span| span_hash(hash, &span.name, &span.letters));
            let mut entry = ChunkRecord {
                id: span.map_or_else(|| id.to_owned(), |span| format!("{id}/{}", span.name)),
                length: span.map_or(checked.length, |span| span.letters.len()),
                segments: 0..0,
                reverse: 0..0,
                header: record.header.clone(),
                status: checked.status.clone(),
                index,
                hash,
                saved: None,
                part: None,
            };
            entry.status.windowed = is_cut;
            if span.is_some_and(|span| span.letters.end > kept) {
                let why = format!("the span ends outside of the {kept} letters that are embedded");
                entry.status.skipped.get_or_insert(why);
            }
            if entry.status.skipped.is_none() {
                (entry.saved, _) = self.saved_row(number, (index, hash));
            }
            if entry.status.skipped.is_none() && entry.saved.is_none() {
                let strands = strands.iter().zip(&windows).enumerate();
                let mut segments = strands.map(|(at, (strand, windows))| {
                    let own = span.map(|span| {
                        let turned = (at > 0).then(|| span.reversed(kept));
                        self.tokens_of(turned.as_ref().unwrap_or(span), strand)
                    });
                    let windows = around(windows, own.as_ref());
                    let special = tokenizer.special();
                    let pooling = &task.job.settings.pooling;
                    let windows = pooling.of_windows(windows, own.as_ref(), special);
                    self.segments_at(place + at, task, strand, windows, chunk)
                });
                entry.segments = segments.next().unwrap_or_default();
                entry.reverse = segments.next().unwrap_or_default();
            }
            rows.push(entry);
        }
        Ok(rows)
    }

    /// The tokens of a span.
    fn tokens_of(&self, span: &Span, encoded: &Encoded) -> Range<usize> {
        span.tokens(encoded, self.tokenizer.span())
    }

    /// The number of the next row of a task with spans, whose records may have several or none.
    fn next_row(&mut self, task: usize) -> u64 {
        if self.rows.0 != task {
            self.rows = (task, 0);
        }
        self.rows.1 += 1;
        self.rows.1 - 1
    }

    /// The row that an earlier run saved, and whether it saved that of another record in its place,
    /// which is counted.
    fn saved_row(&mut self, task: usize, (index, hash): (u64, u64)) -> (Option<Spot>, bool) {
        let known = self.saved.get(task);
        let saved = known.and_then(|known| known.find(index, hash));
        let has_other = saved.is_none() && known.is_some_and(|known| known.has(index));
        self.changed += u64::from(has_other);
        (saved, has_other)
    }

    /// Appends parts of a long record to the chunk, until it is full.
    fn append_parts(&mut self, chunk: &mut Chunk) {
        let Some(mut remaining) = self.remaining.take() else {
            return;
        };
        let task = &self.tasks[remaining.task];
        let mut tokens = chunk.tokens();
        while tokens < self.limits.chunk_tokens
            && chunk.entries.len() < CHUNK_RECORDS
            && let Some((part, mut record)) = remaining.next()
        {
            if part.is_missing() {
                let is_reverse = part.is_reverse();
                let segments = self.segments(task, &part.encoded, part.windows, chunk);
                let added = chunk.segments[segments.clone()].iter();
                tokens += added.map(|segment| segment.input.tokens).sum::<usize>();
                if is_reverse {
                    record.reverse = segments;
                } else {
                    record.segments = segments;
                }
            }
            chunk
                .entries
                .push(ChunkEntry::Record(remaining.task, record));
        }
        if !remaining.is_empty() {
            self.remaining = Some(remaining);
        }
    }

    /// Whether a sequence is cut into windows. One of more letters than a window has may have no
    /// more tokens than fit into it, and is embedded whole.
    fn is_cut(&self, task: &Task, encoded: &Encoded) -> bool {
        let all = 0..encoded.ids.len();
        let WindowSize {
            max_length,
            overlap,
        } = task.window;
        let windows = |all| self.tokenizer.windows(encoded, all, max_length, overlap);
        !task.fits(encoded.letters, all.len()) && windows(all).len() > 1
    }

    /// Cuts a sequence into windows that are pooled.
    fn windows(&self, task: &Task, encoded: &Encoded) -> Vec<PooledWindow> {
        let settings = &task.job.settings;
        let first = settings.pool_first.map(|first| 0..first);
        let windows = self.cut(task, encoded);
        let special = self.tokenizer.special();
        settings
            .pooling
            .of_windows(windows, first.as_ref(), special)
    }

    /// Cuts a sequence into windows.
    fn cut(&self, task: &Task, encoded: &Encoded) -> Vec<Window> {
        let WindowSize {
            max_length,
            overlap,
        } = task.window;
        let all = 0..encoded.ids.len();
        if !all.is_empty() && task.fits(encoded.letters, all.len()) {
            let seen = all.clone();
            return vec![Window { seen, kept: all }];
        }
        self.tokenizer.windows(encoded, all, max_length, overlap)
    }

    /// Appends the tokens and windows of a sequence to the chunk.
    fn segments(
        &mut self,
        task: &Task,
        encoded: &Arc<Encoded>,
        windows: Vec<PooledWindow>,
        chunk: &mut Chunk,
    ) -> Range<usize> {
        let place = chunk.encoded.len();
        chunk.encoded.push(Arc::clone(encoded));
        self.segments_at(place, task, encoded, windows, chunk)
    }

    /// The same for a sequence whose tokens are in the chunk already.
    fn segments_at(
        &mut self,
        place: usize,
        task: &Task,
        encoded: &Encoded,
        windows: Vec<PooledWindow>,
        chunk: &mut Chunk,
    ) -> Range<usize> {
        let first = chunk.segments.len();
        let special = self.tokenizer.special();
        let reduce = task.reduce();
        for PooledWindow { window, ranges } in windows {
            let input = ModelInput::new(place, window.seen, ranges, special);
            let origin = match &mut self.dedup {
                Some(dedup) => dedup.origin(chunk.segments.len(), &input, reduce, &encoded.ids),
                None => Origin::Engine { keep: None },
            };
            chunk.segments.push(Segment {
                input,
                reduce,
                origin,
                is_shared: false,
            });
        }
        first..chunk.segments.len()
    }
}

/// The windows from which these tokens are taken, or all of them. A chromosome may have many of both.
fn around(windows: &[Window], pooled: Option<&Range<usize>>) -> Vec<Window> {
    let Some(pooled) = pooled else {
        return windows.to_vec();
    };
    let first = windows.partition_point(|window| window.kept.end <= pooled.start);
    let end = windows.partition_point(|window| window.kept.start < pooled.end);
    windows[first..end.max(first)].to_vec()
}

/// A record that no policy forbids.
pub(crate) struct Checked {
    pub(crate) status: RecordStatus,
    /// Letters of the whole record, a terminal `*` of a protein not counted.
    pub(crate) length: usize,
    /// How many of its letters are embedded: all, or the first ones.
    letters: usize,
    /// The tokens of these.
    pub(crate) encoded: Encoded,
}

/// Applies the task's policies for long records and for letters outside of the vocabulary.
///
/// # Errors
/// What a policy forbids, in words.
pub(crate) fn apply_policies(
    task: &Task,
    tokenizer: &dyn Tokenizer,
    record: &Record,
    mut encoded: Encoded,
) -> Result<Checked, String> {
    let units = tokenizer.alphabet().units();
    let settings = &task.job.settings;
    let length = length_of(record, &encoded, tokenizer);
    let fail = |what: String| {
        let (source, id) = (&task.job.source, record.id());
        Err(format!("{source}: record {id:?}: {what}"))
    };
    let (letters, each) = (letters_of(record), tokenizer.letters_per_residue());
    if !letters.is_multiple_of(each) {
        return fail(format!(
            "it has {letters} letters, but this model reads {each} for each residue (the amino acid \
             and its structure): add the missing letter or remove an extra one; `#` stands for an \
             unknown one"
        ));
    }
    let mut status = RecordStatus::default();
    let mut sequence = &record.sequence[..];
    if !task.fits(length, encoded.ids.len()) {
        match settings.long {
            // Whether it is cut depends on its windows.
            Long::Window => {}
            Long::Truncate => {
                status.truncated = true;
                (sequence, encoded) = truncated(task, tokenizer, sequence, encoded);
            }
            Long::Error => {
                return fail(too_long(task, units, length, encoded.ids.len()));
            }
        }
    }
    if encoded.ids.is_empty() {
        status.skipped = Some(tokenizer.why_no_tokens(encoded.letters));
    }
    if let Some(at) = encoded.first_unknown {
        let letter = named(record, at, each);
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
                    "{letter} at position {position} is not in the model's vocabulary; use \
                     option `unknown: replace` to embed it as the unknown token, or option \
                     `unknown: skip` to skip the record"
                ));
            }
        }
    }
    status.gaps = memchr::memchr2(b'-', b'.', sequence).is_some();
    Ok(Checked {
        status,
        length,
        letters: sequence.len(),
        encoded,
    })
}

/// That a record of so many letters and tokens is too long to be embedded whole, and what to do.
fn too_long(task: &Task, units: &str, length: usize, tokens: usize) -> String {
    let limit = task.window.max_length;
    let exceeds = if length > limit {
        format!("{length} {units} exceed option `max_length: {limit}`")
    } else {
        let most = task.max_tokens.unwrap_or(limit);
        format!("its {length} {units} are {tokens} tokens, more than the {most} of a window")
    };
    format!(
        "{exceeds}; use option `long: window` or option `long: truncate` to embed the record anyway"
    )
}

/// The letters of a token at a position, for messages.
fn named(record: &Record, at: usize, letters: usize) -> String {
    if letters == 1 {
        return record.letter(at).to_string();
    }
    let each = (at..at + letters).map(|at| record.letter(at).to_string());
    format!("the pair {}", each.collect::<Vec<_>>().join(", "))
}

/// The beginning of a sequence that is embedded whole, and its tokens.
fn truncated<'sequence>(
    task: &Task,
    tokenizer: &dyn Tokenizer,
    sequence: &'sequence [u8],
    encoded: Encoded,
) -> (&'sequence [u8], Encoded) {
    let mut sequence = sequence;
    let mut encoded = encoded;
    let most = task
        .window
        .max_length
        .saturating_mul(tokenizer.letters_per_residue());
    if sequence.len() > most {
        sequence = &sequence[..most];
        // A `*` at the cut is inside of the record, and not its end.
        encoded = tokenizer.encode_beginning(sequence);
    }
    let next = |most: usize| encoded.starts.as_ref()?.get(most).copied();
    if let Some(end) = task.max_tokens.and_then(next) {
        sequence = &sequence[..end as usize];
        encoded = tokenizer.encode_beginning(sequence);
    }
    (sequence, encoded)
}

/// How many letters a record has, a terminal `*` of a protein not counted. Its rest was counted
/// while it was read.
fn length_of(record: &Record, encoded: &Encoded, tokenizer: &dyn Tokenizer) -> usize {
    let Some(rest) = record.rest else {
        return encoded.letters;
    };
    let each = tokenizer.letters_per_residue();
    let stop = rest.last == b'*' && each == 1 && tokenizer.alphabet() == Alphabet::Protein;
    (letters_of(record) - usize::from(stop)) / each
}

/// How many letters a record has, all of them counted.
fn letters_of(record: &Record) -> usize {
    let more = record.rest.map_or(0, |rest| rest.letters);
    let more = usize::try_from(more).unwrap_or(usize::MAX);
    record.sequence.len().saturating_add(more)
}
