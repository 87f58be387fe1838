//! Scores the records of chunks, while the next chunk is read and earlier records are written.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use super::compute::Devices;
use super::error::ScoreError;
use super::options::ScoreOptions;
use super::passes::{self, Pass, PassLayout, Taken};
use super::scored_records::ScoredRecord;
use crate::run::chunk::{Chunk, ChunkEntry};
use crate::run::task_reader::FileEnd;

/// What is done next, in the order of the input.
pub enum Entry {
    /// A record of this task.
    Record(Box<ScoredRecord>),
    /// A record that a policy forbids: the file fails, and only its end follows.
    Forbidden(usize, String),
    /// A file's end.
    End(FileEnd),
}

/// What was scored since the last message.
#[derive(Default)]
pub struct Scored {
    /// Records and ends of files.
    pub entries: Vec<Entry>,
    /// Tokens that were computed for each task.
    pub tokens: Vec<(usize, u64)>,
    /// Batches that were computed: how many of up to a tenth of the budget, two tenths ...
    pub fill: [u64; 10],
    /// Bytes of input that were read in all.
    pub bytes: u64,
    /// How long it was computed.
    pub computing: Duration,
}

/// Scores chunks.
pub struct Scorer<'a> {
    /// What is scored, and how.
    pub scores: &'a ScoreOptions,
    /// The ids of the tokens that a row of a record's matrix has.
    pub columns: &'a [u32],
    /// What computes.
    pub devices: Devices<'a>,
    /// How passes are laid out.
    pub layout: PassLayout<'a>,
    /// Tokens of passes that are computed together.
    pub portion: usize,
}

impl Scorer<'_> {
    /// Scores all chunks, until there are no more, or nobody takes what was scored.
    pub fn run(&self, chunks: Receiver<Chunk>, to: &SyncSender<Scored>) -> Result<(), ScoreError> {
        for chunk in chunks {
            if !self.chunk(chunk, to)? {
                break;
            }
        }
        Ok(())
    }

    /// Scores the records of a chunk. Returns whether somebody takes more.
    fn chunk(&self, mut chunk: Chunk, to: &SyncSender<Scored>) -> Result<bool, ScoreError> {
        let mut records: Vec<Option<Box<ScoredRecord>>> = Vec::new();
        let mut entries: VecDeque<Option<Entry>> = VecDeque::new();
        for entry in std::mem::take(&mut chunk.entries) {
            entries.push_back(match entry {
                ChunkEntry::Record(task, record) => {
                    let first = chunk.segments.get(record.segments.start);
                    let first = first.filter(|_| record.has_segments());
                    let encoded = first.map(|segment| &*chunk.encoded[segment.input.record]);
                    let columns = self.columns.len();
                    let record = ScoredRecord::new(task, record, encoded, columns);
                    records.push(Some(Box::new(record)));
                    None
                }
                ChunkEntry::Forbidden(task, why) => Some(Entry::Forbidden(task, why)),
                ChunkEntry::End(end) => Some(Entry::End(end)),
            });
        }
        let windows = records.iter().flatten();
        let windows = windows.map(|record| (record.id.as_str(), record.segments.clone()));
        let passes = passes::of_chunk(&chunk, windows, self.scores, self.layout.special);
        let mut rest = &passes[..];
        let mut sent = 0;
        loop {
            let mut tokens = 0;
            let fits = rest.iter().take_while(|pass| {
                let before = tokens;
                tokens += chunk.segments[pass.segment].input.tokens;
                before == 0 || tokens <= self.portion
            });
            let (now, later) = rest.split_at(fits.count());
            let mut scored = if now.is_empty() {
                Scored::default()
            } else {
                self.compute(now, &chunk, &mut records)?
            };
            rest = later;
            // Records whose passes are done, and what stands between them.
            let whole = rest.first().map_or(records.len(), |pass| pass.record);
            while let Some(entry) = entries.front_mut() {
                let entry = match entry.take() {
                    Some(entry) => entry,
                    None if sent < whole => match records[sent].take() {
                        Some(record) => {
                            sent += 1;
                            Entry::Record(record)
                        }
                        None => break,
                    },
                    None => break,
                };
                scored.entries.push(entry);
                entries.pop_front();
            }
            scored.bytes = chunk.bytes;
            if to.send(scored).is_err() {
                return Ok(false);
            }
            if rest.is_empty() {
                return Ok(true);
            }
        }
    }

    /// Computes passes, and hands their rows to the records.
    fn compute(
        &self,
        passes: &[Pass],
        chunk: &Chunk,
        records: &mut [Option<Box<ScoredRecord>>],
    ) -> Result<Scored, ScoreError> {
        let started = Instant::now();
        let special = self.layout.special;
        let laid = self.layout.chunk(passes, chunk);
        let rows = self.devices.run(&laid)?;
        let width = self.devices.width;
        let results = rows.results(&laid, width);
        let mut scored = Scored::default();
        for batch in &laid.batches {
            let tokens = batch.iter().map(|&at| laid.segments[at].input.tokens);
            let tokens: usize = tokens.sum();
            let tenth = (10 * tokens).div_ceil(self.layout.batch_tokens.max(1));
            scored.fill[tenth.clamp(1, 10) - 1] += 1;
        }
        for (segment, why) in &rows.failed {
            if let Some(record) = &mut records[passes[*segment].record] {
                record.failed = true;
                record.status.skipped.get_or_insert(why.clone());
            }
        }
        for (at, pass) in passes.iter().enumerate() {
            let Some(record) = &mut records[pass.record] else {
                continue;
            };
            let input = &laid.segments[at].input;
            if laid.segments[at].is_run() {
                let tokens = input.tokens as u64;
                match scored.tokens.last_mut() {
                    Some((task, sum)) if *task == record.task => *sum += tokens,
                    _ => scored.tokens.push((record.task, tokens)),
                }
            }
            let window = &chunk.segments[pass.segment].input;
            let first = match pass.what {
                Taken::Masked(at) => at,
                _ => passes::kept(window, special).start,
            };
            let rows = results.pooled(at);
            record.take(
                pass,
                (&rows, width),
                first,
                (self.columns, special),
                self.scores,
            );
        }
        scored.computing = started.elapsed();
        Ok(scored)
    }
}
