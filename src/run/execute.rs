//! Runs batches on a device. If a batch fails or gives values that are not finite, it is split, cut
//! into windows, or recomputed.
//!
//! - Out of memory: the batch is halved, down to one sequence, and the device's later batches are
//!   cut to what fits. One sequence that is too large alone is embedded in windows when its job has
//!   `--long window`: first of the model's own length, then of half of that, and so on. Otherwise
//!   its record has no embedding, and its status says why.
//! - Numbers that are not finite (an activation overflowed half precision): those sequences are
//!   computed again in higher precision. If that does not help either, their records have no
//!   embedding.
//!
//! Each is reported in the output's status and in the report. Other errors, such as a lost device,
//! go to the caller.

use std::ops::Range;

use super::chunk::{Chunk, ChunkEntry};
use super::loaded_device::LoadedDevice;
use super::task::Task;
use crate::batch::{self, ModelInput};
use crate::engine::batch::{Batch, Reduce};
use crate::engine::error::EngineError;
use crate::pooling::{self, Poolings, join_windows, pooled_rows, rows_of};
use crate::settings::Long;
use crate::tokenize::Tokenizer;
use crate::trace::{Lane, Trace};
use crate::vectors::Floats;

/// Why a segment was not computed as it was meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentIssue {
    /// It was too large for the device, and embedded in windows.
    Windowed,
    /// It has no numbers, and why.
    Failed(String),
}

/// The rows of a batch, and which of its segments were not computed as they were meant.
pub struct BatchResult {
    /// In the form that the engine returns for the whole batch.
    pub rows: Floats,
    /// Segments of the chunk with their issues.
    pub issues: Vec<(usize, SegmentIssue)>,
}

/// Minimum length of a window, in residues or bases.
const SHORTEST: usize = 64;

/// A sequence for the engine: a segment of the chunk, or a window of one.
#[derive(Debug, Clone)]
struct Piece {
    /// The segment, in `Chunk::segments`.
    segment: usize,
    /// What the model sees.
    input: ModelInput,
}

/// Runs the batches of a worker on its device.
pub struct Executor<'a> {
    /// The device.
    pub device: &'a LoadedDevice<'a>,
    /// All tasks of the run.
    pub tasks: &'a [Task],
    /// The model's tokenizer.
    pub tokenizer: &'a dyn Tokenizer,
    /// The model's own limit, in residues or bases.
    pub model_limit: Option<usize>,
    /// Width of a row.
    pub hidden: usize,
    /// For each pooling of jobs with several, whether it is a maximum.
    pub maxima: Vec<bool>,
    /// Where the batches are traced.
    pub trace: &'a Trace,
    /// The worker's lane in the trace.
    pub lane: Lane,
}

impl Executor<'_> {
    /// Computes a batch of a chunk.
    ///
    /// # Errors
    /// What no retry helps against.
    pub fn compute(&self, chunk: &Chunk, batch: usize) -> Result<BatchResult, EngineError> {
        let pieces: Vec<Piece> = chunk.batches[batch]
            .iter()
            .map(|&segment| Piece {
                segment,
                input: chunk.segments[segment].input.clone(),
            })
            .collect();
        let mut attempt = Attempt {
            with: self,
            chunk,
            reduce: chunk.reduce(batch),
            issues: Vec::new(),
        };
        let rows = attempt.rows(&pieces, true)?;
        Ok(BatchResult {
            rows,
            issues: attempt.issues,
        })
    }
}

struct Attempt<'a> {
    with: &'a Executor<'a>,
    chunk: &'a Chunk,
    reduce: Reduce,
    issues: Vec<(usize, SegmentIssue)>,
}

impl Piece {
    /// Tokens, with the special ones.
    fn tokens(&self) -> usize {
        self.input.tokens
    }
}

impl Attempt<'_> {
    /// Computes the rows of pieces, in as many batches as needed. With `cut`, a piece that is too
    /// large on its own is cut into windows.
    fn rows(&mut self, pieces: &[Piece], cut: bool) -> Result<Floats, EngineError> {
        let mut all = Floats::Single(Vec::new());
        let shares = self.chunk.shares_rows(self.reduce);
        for part in parts(pieces, self.with.device.limit(), shares) {
            let rows = match self.run(part) {
                Err(EngineError::OutOfMemory(_)) if part.len() > 1 => {
                    self.with
                        .device
                        .lower_limit(part.iter().map(Piece::tokens).sum());
                    let (front, back) = part.split_at(half(part));
                    let mut rows = self.rows(front, cut)?.into_singles();
                    rows.extend(self.rows(back, cut)?.into_singles());
                    rows.into()
                }
                Err(EngineError::OutOfMemory(_)) if cut => self.alone(&part[0])?.into(),
                other => other?,
            };
            all = if all.is_empty() {
                rows
            } else {
                let mut joined = all.into_singles();
                joined.extend(rows.into_singles());
                joined.into()
            };
        }
        Ok(all)
    }

    /// One batch, computed again in part if some of its numbers are not finite.
    fn run(&mut self, pieces: &[Piece]) -> Result<Floats, EngineError> {
        let with = self.with;
        let trace = (with.trace, &with.lane);
        let rows = with.device.run(&self.lay(pieces), self.reduce, trace)?;
        if rows.is_finite() {
            return Ok(rows);
        }
        let mut rows = rows.into_singles();
        let locations = self.locations(pieces);
        let bad: Vec<usize> = (0..pieces.len())
            .filter(|&at| !finite(&rows[locations[at].clone()]))
            .collect();
        let again: Vec<Piece> = bad.iter().map(|&at| pieces[at].clone()).collect();
        if let Some(better) = self.higher(&again)? {
            for (at, location) in bad.into_iter().zip(self.locations(&again)) {
                rows[locations[at].clone()].copy_from_slice(&better[location]);
            }
        }
        Ok(rows.into())
    }

    /// The rows of pieces that overflowed, in higher precision. Notes those that it does not help.
    /// `None`: there is none.
    fn higher(&mut self, pieces: &[Piece]) -> Result<Option<Vec<f32>>, EngineError> {
        let with = self.with;
        let precision = with.device.precision;
        let trace = (with.trace, &with.lane);
        let fail = |this: &mut Self, why: String| {
            let issues = pieces
                .iter()
                .map(|p| (p.segment, SegmentIssue::Failed(why.clone())));
            this.issues.extend(issues);
        };
        match with
            .device
            .run_higher(&self.lay(pieces), self.reduce, trace)
        {
            None if pieces.len() > 1 => self.each_alone(pieces).map(Some),
            None => {
                fail(
                    self,
                    format!("the model's numbers are not finite ({precision})"),
                );
                Ok(None)
            }
            Some(Ok(rows)) => {
                let mut rows = rows.into_singles();
                with.device.count_recomputed(pieces.len());
                for (piece, location) in pieces.iter().zip(self.locations(pieces)) {
                    if finite(&rows[location.clone()]) {
                        continue;
                    }
                    if pieces.len() > 1 {
                        // ONNX Runtime's own operators let a sequence spoil others of its batch.
                        let batch = self.lay(std::slice::from_ref(piece));
                        if let Some(Ok(alone)) = with.device.run_higher(&batch, self.reduce, trace)
                        {
                            let alone = alone.into_singles();
                            rows[location.clone()].copy_from_slice(&alone);
                        }
                    }
                    if !finite(&rows[location]) {
                        let why = format!(
                            "the model's numbers are not finite, neither in {precision} nor in higher precision"
                        );
                        self.issues.push((piece.segment, SegmentIssue::Failed(why)));
                    }
                }
                Ok(Some(rows))
            }
            Some(Err(error @ EngineError::DeviceLost(_))) => Err(error),
            Some(Err(EngineError::OutOfMemory(_))) if pieces.len() > 1 => {
                let (front, back) = pieces.split_at(half(pieces));
                let mut rows = Vec::new();
                for part in [front, back] {
                    let nothing = vec![f32::NAN; self.values(part)];
                    rows.extend(self.higher(part)?.unwrap_or(nothing));
                }
                Ok(Some(rows))
            }
            Some(Err(error)) => {
                fail(
                    self,
                    format!("the model's numbers overflowed {precision}: {error}"),
                );
                Ok(None)
            }
        }
    }

    /// Recomputes pieces one by one if they gave no finite values together and there is no higher
    /// precision, because with ONNX Runtime's own operators a sequence can affect others in its
    /// batch. Marks those that fail on their own.
    fn each_alone(&mut self, pieces: &[Piece]) -> Result<Vec<f32>, EngineError> {
        let with = self.with;
        let mut rows = Vec::with_capacity(self.values(pieces));
        for piece in pieces {
            let batch = self.lay(std::slice::from_ref(piece));
            let alone = with
                .device
                .run(&batch, self.reduce, (with.trace, &with.lane))?
                .into_singles();
            if !finite(&alone) {
                let precision = with.device.precision;
                let why = format!("the model's numbers are not finite ({precision})");
                self.issues.push((piece.segment, SegmentIssue::Failed(why)));
            }
            rows.extend(alone);
        }
        Ok(rows)
    }

    /// A piece that does not fit into the device's memory by itself: in windows, or not at all.
    fn alone(&mut self, piece: &Piece) -> Result<Vec<f32>, EngineError> {
        let with = self.with;
        let settings = with
            .task(self.chunk, piece.segment)
            .map(|task| &task.job.settings);
        if let Some(settings) = settings
            && settings.long == Long::Window
        {
            let encoded = &self.chunk.encoded[piece.input.record];
            let span = with.tokenizer.span();
            let letters = encoded.letters_of(piece.input.seen.clone(), span);
            let letters = letters.len() + span - 1;
            let model = with.model_limit.filter(|&limit| limit < letters);
            let mut size = model.unwrap_or(letters / 2);
            while size >= SHORTEST.max(2 * span) {
                let overlap = settings.overlap.filter(|&o| o < size).unwrap_or(size / 4);
                let windows = self.windows(piece, size, overlap);
                match self.rows(&windows, false) {
                    Ok(rows) => {
                        self.issues.push((piece.segment, SegmentIssue::Windowed));
                        return Ok(self.join(&windows, &rows.into_singles()));
                    }
                    Err(EngineError::OutOfMemory(_)) => size /= 2,
                    Err(error) => return Err(error),
                }
            }
        }
        let why = format!("out of memory on {}", with.device.label);
        self.issues.push((piece.segment, SegmentIssue::Failed(why)));
        Ok(vec![f32::NAN; self.values(std::slice::from_ref(piece))])
    }

    /// The windows of a piece in which something is pooled. If the engine returns the vectors of
    /// all tokens, those of special tokens are included.
    fn windows(&self, piece: &Piece, size: usize, overlap: usize) -> Vec<Piece> {
        let ModelInput {
            record,
            seen,
            ranges,
            tokens,
        } = &piece.input;
        let tokenizer = self.with.tokenizer;
        let special = tokenizer.special();
        let windows = tokenizer.windows(&self.chunk.encoded[*record], seen.clone(), size, overlap);
        let all = [0..*tokens];
        let ranges = match self.reduce {
            Reduce::Tokens => &all[..],
            Reduce::Mean | Reduce::Max | Reduce::Both => ranges,
        };
        let windows = pooling::divide(ranges, seen, windows, special).into_iter();
        let pieces = windows.map(|part| Piece {
            segment: piece.segment,
            input: ModelInput::new(*record, part.window.seen, part.ranges, special),
        });
        pieces.collect()
    }

    /// What the engine would have given for the whole piece, from the rows of its windows.
    fn join(&self, windows: &[Piece], rows: &[f32]) -> Vec<f32> {
        let hidden = self.with.hidden;
        let parts = self.locations(windows).into_iter().zip(windows);
        let parts = parts.map(|(location, window)| {
            let ranges = &window.input.ranges[..];
            let Range { start, end } = pooled_rows(self.reduce, ranges);
            let own = &rows[location];
            (&own[start * hidden..end * hidden], ranges)
        });
        let count = windows
            .first()
            .map_or(1, |window| window.input.ranges.len());
        let poolings = Poolings::of_rows(self.reduce, &self.with.maxima, count);
        let mut joined = Vec::new();
        join_windows(&mut joined, parts, &poolings);
        joined
    }

    /// Packs pieces end to end, with their special tokens.
    fn lay(&self, pieces: &[Piece]) -> Batch {
        let inputs = pieces.iter().map(|piece| &piece.input);
        let special = self.with.tokenizer.special();
        let shares = self.chunk.shares_rows(self.reduce);
        batch::lay(
            inputs,
            &self.chunk.encoded,
            special,
            &self.with.maxima,
            shares,
        )
    }

    /// Number of values that the engine returns for pieces.
    fn values(&self, pieces: &[Piece]) -> usize {
        self.locations(pieces).last().map_or(0, |last| last.end)
    }

    /// The range of values of each piece.
    fn locations(&self, pieces: &[Piece]) -> Vec<Range<usize>> {
        let mut end = 0;
        let locations = pieces.iter().map(|piece| {
            let start = end;
            end += rows_of(self.reduce, piece.input.tokens) * self.with.hidden;
            start..end
        });
        locations.collect()
    }
}

impl Executor<'_> {
    /// The task that a segment belongs to.
    fn task(&self, chunk: &Chunk, segment: usize) -> Option<&Task> {
        chunk.entries.iter().find_map(|entry| match entry {
            ChunkEntry::Record(task, record)
                if record.segments.contains(&segment) || record.reverse.contains(&segment) =>
            {
                self.tasks.get(*task)
            }
            _ => None,
        })
    }
}

/// Cuts pieces into batches of at most `limit` tokens, keeping their order. With `shares`, a piece
/// that sees the same as the one before adds none.
fn parts(pieces: &[Piece], limit: usize, shares: bool) -> Vec<&[Piece]> {
    let mut parts = Vec::new();
    let (mut start, mut tokens) = (0, 0_usize);
    for (at, piece) in pieces.iter().enumerate() {
        if at > start {
            if shares && pieces[at - 1].input.sight() == piece.input.sight() {
                continue;
            }
            if tokens + piece.tokens() > limit {
                parts.push(&pieces[start..at]);
                (start, tokens) = (at, 0);
            }
        }
        tokens += piece.tokens();
    }
    if start < pieces.len() {
        parts.push(&pieces[start..]);
    }
    parts
}

/// How many of at least two pieces have half of the tokens: at least one, and not all.
fn half(pieces: &[Piece]) -> usize {
    let all: usize = pieces.iter().map(Piece::tokens).sum();
    let mut tokens = 0;
    let count = pieces.iter().take_while(|piece| {
        tokens += piece.tokens();
        2 * tokens <= all
    });
    count.count().clamp(1, pieces.len() - 1)
}

/// Whether no value is infinite or NaN.
fn finite(values: &[f32]) -> bool {
    // Blocks without a way out in the middle are what the compiler turns into vector instructions.
    values
        .chunks(256)
        .all(|block| block.iter().fold(true, |all, x| all & x.is_finite()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(lengths: &[usize]) -> Vec<Piece> {
        let piece = |(segment, &length)| Piece {
            segment,
            input: ModelInput {
                record: 0,
                seen: 0..length,
                ranges: vec![1..length + 1],
                tokens: length + 2,
            },
        };
        lengths.iter().enumerate().map(piece).collect()
    }

    proptest! {
        #[test]
        fn parts_keep_the_order_and_the_limit(
            lengths in prop::collection::vec(1..500_usize, 0..40),
            limit in 1..2_000_usize,
        ) {
            let pieces = pieces(&lengths);
            let parts = parts(&pieces, limit, false);
            let order: Vec<usize> = parts.iter().flat_map(|part| part.iter().map(|p| p.segment)).collect();
            prop_assert_eq!(order, (0..lengths.len()).collect::<Vec<_>>());
            for part in parts {
                let tokens: usize = part.iter().map(Piece::tokens).sum();
                prop_assert!(part.len() == 1 || tokens <= limit);
            }
        }

        #[test]
        fn halves_are_never_empty_and_near_the_middle(lengths in prop::collection::vec(1..500_usize, 2..40)) {
            let pieces = pieces(&lengths);
            let at = half(&pieces);
            prop_assert!((1..pieces.len()).contains(&at));
            let sum = |part: &[Piece]| part.iter().map(Piece::tokens).sum::<usize>();
            let longest = pieces.iter().map(Piece::tokens).max().unwrap_or(0);
            prop_assert!(sum(&pieces[..at]).abs_diff(sum(&pieces[at..])) <= 2 * longest);
        }
    }
}
