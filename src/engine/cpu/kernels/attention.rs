//! Attention over packed sequences: the kernel behind `seqembed.RotaryAttention`,
//! `seqembed.AlibiAttention`, `seqembed.RelativeAttention` and `seqembed.Attention`, which differ
//! in their position encoding ([`PositionEncoding`]).
//!
//! A batch is packed end to end, and each sequence attends only to itself: there is no padding and
//! no mask. For one head of one sequence the scores are kept transposed, a key a row and a query a
//! lane, so that the maximum, the exponential and the sum of the softmax are plain vertical
//! arithmetic, keys and values are read by broadcast in the layout they come in, and the width of a
//! head needs no padding to the width of a vector. Keys are taken in blocks with a running maximum
//! (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"), so that memory does
//! not grow with the square of the length.
//!
//! An infinity or a NaN anywhere in a sequence's queries, keys or values of a head makes all rows
//! of that head NaN, and so do queries and keys whose products might overflow. Both are detected
//! while keys and values are gathered, which takes little time beside the products (linear in the
//! length, not quadratic). The code after that sees finite numbers only, and uses the processor's
//! own maximum and power of two.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use pulp::{Arch, Simd, WithSimd};
use seqembed_onnx::positions::rotary_frequencies;

use super::simd::{Largest, Scratch, exp2, load, store};

/// Keys in a block: scores of a block and its keys stay in the first-level cache.
const KEY_BLOCK: usize = 128;

/// Exponents of weights are clamped to this, which makes their total exceed `OVERFLOW`.
const HIGHEST: f32 = 100.0;

/// A total this large means that the running maximum was too low.
const OVERFLOW: f32 = 1e30;

/// How far below a query's best score, in powers of two, a key's score may be before the key is
/// skipped: 2^-60 does not change a sum of 1 in single precision, for any number of keys.
const FAR: f32 = 60.0;

/// Scores must be less than this, so that neither their differences nor the partial sums of their
/// products overflow.
const MOST_SCORE: f32 = 1e38;

/// How positions change queries, keys and scores.
pub trait PositionEncoding: Sync {
    /// Whether scores fall with the distance between query and key.
    const SLOPED: bool = false;

    /// By how much a head's scores fall with each position of distance.
    #[inline(always)]
    fn slope(&self, _head: usize) -> f32 {
        0.0
    }

    /// Whether something is added to scores that depends on the signed distance.
    const TABLED: bool = false;

    /// What is added to a head's scores, by the key's position less the query's: for the distances
    /// `-n..=n`, where 2n + 1 is the length. Those further away get what the last one gets.
    #[inline(always)]
    fn table(&self, _head: usize) -> &[f32] {
        &[]
    }

    /// What products of queries and keys of this width are divided by.
    #[inline(always)]
    fn divisor(&self, width: usize) -> f32 {
        (width as f32).sqrt()
    }

    /// The key at a position from its row of the dense product, [head width] each: without
    /// rotation, with its bias.
    #[inline(always)]
    fn key(&self, _position: usize, source: &[f32], bias: &[f32], key: &mut [f32]) {
        for ((key, value), bias) in key.iter_mut().zip(source).zip(bias) {
            *key = value + bias;
        }
    }

    /// The query at a position, likewise, times `scale`, written to every `stride`th place of
    /// `query`.
    #[inline(always)]
    fn query(
        &self,
        _position: usize,
        source: &[f32],
        bias: &[f32],
        scale: f32,
        query: &mut [f32],
        stride: usize,
    ) {
        for ((query, value), bias) in query.iter_mut().step_by(stride).zip(source).zip(bias) {
            *query = (value + bias) * scale;
        }
    }
}

/// The inputs of attention.
pub struct Packed<'a, P> {
    /// Queries, keys and values, [tokens, 3 * hidden], without bias.
    pub qkv: &'a [f32],
    /// Bias of the queries, then of the keys, [2 * hidden]. The values' is folded into the output
    /// projection.
    pub bias: &'a [f32],
    /// heads * head width.
    pub hidden: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// How positions change queries, keys and scores.
    pub positions: &'a P,
}

/// Attention does not depend on positions: they are added to the embeddings.
pub struct NoPositions;

impl PositionEncoding for NoPositions {}

/// Scores fall linearly with distance, in either direction (Press et al. 2022, "Train Short, Test
/// Long", `ALiBi`).
pub struct Alibi<'a> {
    /// A positive slope a head.
    pub slopes: &'a [f32],
}

impl PositionEncoding for Alibi<'_> {
    const SLOPED: bool = true;

    #[inline(always)]
    fn slope(&self, head: usize) -> f32 {
        self.slopes[head]
    }
}

/// What is added to a score depends on the signed distance, and nothing is divided (Raffel et al.
/// 2020, T5).
pub struct Relative<'a> {
    /// What is added, [heads, 2n + 1], by the distance from key to query, -n to n.
    pub table: &'a [f32],
    /// Number of attention heads.
    pub heads: usize,
}

impl PositionEncoding for Relative<'_> {
    const TABLED: bool = true;

    #[inline(always)]
    fn table(&self, head: usize) -> &[f32] {
        let width = self.table.len() / self.heads;
        &self.table[head * width..(head + 1) * width]
    }

    #[inline(always)]
    fn divisor(&self, _: usize) -> f32 {
        1.0
    }
}

/// Cosines and sines of rotary embedding (Su et al. 2021, `RoFormer`), [positions, head width / 2]
/// each.
pub struct Rotary {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    /// The table for `positions` positions: angle `p * base^(-2i / width)`, rounded where the
    /// checkpoints' own code rounds.
    #[allow(clippy::cast_possible_truncation)] // the tables are single precision
    fn new(width: usize, base: f32, positions: usize) -> Self {
        let frequencies = rotary_frequencies(width, base);
        let angles = || {
            (0..positions).flat_map(|position| {
                frequencies
                    .iter()
                    .map(move |frequency| f64::from(position as f32 * frequency))
            })
        };
        Self {
            half: width / 2,
            cos: angles().map(|angle| angle.cos() as f32).collect(),
            sin: angles().map(|angle| angle.sin() as f32).collect(),
        }
    }

    /// A table of at least `positions` positions, shared by all layers and grown by doubling.
    pub fn shared(width: usize, base: f32, positions: usize) -> Arc<Self> {
        type Key = (usize, u32);
        static TABLES: Mutex<Vec<(Key, Arc<Rotary>)>> = Mutex::new(Vec::new());
        let key = (width, base.to_bits());
        let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = tables.iter().position(|(k, _)| *k == key) {
            if tables[at].1.cos.len() < positions * (width / 2) {
                tables[at].1 = Arc::new(Self::new(width, base, positions.next_power_of_two()));
            }
            return Arc::clone(&tables[at].1);
        }
        let table = Arc::new(Self::new(
            width,
            base,
            positions.next_power_of_two().max(1024),
        ));
        tables.push((key, Arc::clone(&table)));
        table
    }

    fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let at = position * self.half..(position + 1) * self.half;
        (&self.cos[at.clone()], &self.sin[at])
    }
}

impl PositionEncoding for Rotary {
    #[inline(always)]
    fn key(&self, position: usize, source: &[f32], bias: &[f32], key: &mut [f32]) {
        let half = self.half;
        let (bias_low, bias_high) = bias.split_at(half);
        let (low, high) = source.split_at(half);
        let (cos, sin) = self.row(position);
        let (key_low, key_high) = key.split_at_mut(half);
        for i in 0..half {
            let a = low[i] + bias_low[i];
            let b = high[i] + bias_high[i];
            key_low[i] = a * cos[i] - b * sin[i];
            key_high[i] = b * cos[i] + a * sin[i];
        }
    }

    #[inline(always)]
    fn query(
        &self,
        position: usize,
        source: &[f32],
        bias: &[f32],
        scale: f32,
        query: &mut [f32],
        stride: usize,
    ) {
        let half = self.half;
        let (bias_low, bias_high) = bias.split_at(half);
        let (low, high) = source.split_at(half);
        let (cos, sin) = self.row(position);
        for i in 0..half {
            let a = (low[i] + bias_low[i]) * scale;
            let b = (high[i] + bias_high[i]) * scale;
            query[i * stride] = a * cos[i] - b * sin[i];
            query[(i + half) * stride] = b * cos[i] + a * sin[i];
        }
    }
}

/// Scratch memory that a thread keeps between calls.
#[derive(Default)]
struct Workspace {
    keys: Scratch,
    values: Scratch,
    queries: Scratch,
    scores: Scratch,
    output: Scratch,
    state: Scratch,
    table: Scratch,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

impl<P: PositionEncoding> Packed<'_, P> {
    /// Attention of one head over the tokens `start..end`, written into `output` [tokens, hidden].
    ///
    /// # Safety
    /// `output` must be valid for `tokens * hidden` values, and no other thread may write to this
    /// head's columns of these rows at the same time.
    pub unsafe fn head(&self, head: usize, start: usize, end: usize, output: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { self.head_on(Arch::new(), head, start, end, output) }
    }

    /// As [`Self::head`], with the instructions of `arch`.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn head_on(&self, arch: Arch, head: usize, start: usize, end: usize, output: *mut f32) {
        debug_assert!(self.qkv.len() >= end * 3 * self.hidden);
        WORKSPACE.with_borrow_mut(|workspace| {
            arch.dispatch(Head {
                packed: self,
                index: head,
                start,
                length: end - start,
                output,
                workspace,
            });
        });
    }
}

struct Head<'a, P> {
    packed: &'a Packed<'a, P>,
    index: usize,
    start: usize,
    length: usize,
    output: *mut f32,
    workspace: &'a mut Workspace,
}

impl<P: PositionEncoding> WithSimd for Head<'_, P> {
    type Output = ();

    #[inline(always)]
    #[expect(
        clippy::too_many_lines,
        reason = "keys and values are gathered and used at one place"
    )]
    fn with_simd<S: Simd>(self, simd: S) {
        let Packed {
            qkv,
            bias,
            hidden,
            heads,
            positions,
        } = *self.packed;
        let width = hidden / heads;
        let column = self.index * width;
        let stride = 3 * hidden;
        let rows = &qkv[self.start * stride..(self.start + self.length) * stride];
        // This head's columns of a row of the sequence in the output.
        let (output, start) = (self.output, self.start);
        let row_of = |position: usize| {
            let at = (start + position) * hidden + column;
            // SAFETY: the row lies inside of `output` (the caller's promise), and these columns are
            // ours.
            unsafe { std::slice::from_raw_parts_mut(output.add(at), width) }
        };
        // Scores in units of ln 2, for a softmax by powers of two.
        let scale = std::f32::consts::LOG2_E / positions.divisor(width);
        let slope = positions.slope(self.index) * std::f32::consts::LOG2_E;
        // Whether it is worth finding out which keys are too far away.
        let nearby = P::SLOPED && slope * self.length as f32 > 2.0 * FAR;

        // Keys, with bias and rotation, and values are gathered: in `qkv` their distance in memory
        // is such that many of them fall into the same few sets of the cache.
        let keys = self.workspace.keys.take(self.length * width);
        let values = self.workspace.values.take(self.length * width);
        let query_bias = &bias[column..column + width];
        let key_bias = &bias[hidden + column..hidden + column + width];
        let mut longest_key = 0.0_f32;
        let [mut most_query, mut most_bias, mut most_key, mut most_value] = [Largest::new(simd); 4];
        most_bias.see(simd, query_bias);
        for (position, ((row, key), value)) in rows
            .chunks_exact(stride)
            .zip(keys.chunks_exact_mut(width))
            .zip(values.chunks_exact_mut(width))
            .enumerate()
        {
            most_query.see(simd, &row[column..column + width]);
            value.copy_from_slice(&row[2 * hidden + column..2 * hidden + column + width]);
            most_value.see(simd, value);
            let row = &row[hidden + column..hidden + column + width];
            positions.key(position, row, key_bias, key);
            most_key.see(simd, key);
            if nearby {
                longest_key = longer(longest_key, square(simd, key));
            }
        }
        // Rotation increases a value by a factor of at most the square root of two.
        let most_query = 2.0 * scale * (most_query.magnitude(simd) + most_bias.magnitude(simd));
        let most_key = most_key.magnitude(simd);
        let most_score = width as f32 * most_query * most_key + slope * self.length as f32;
        let by_distance = positions.table(self.index);
        let mut most_added = Largest::new(simd);
        most_added.see(simd, by_distance);
        let most_score = most_score + std::f32::consts::LOG2_E * most_added.magnitude(simd);
        let all_numbers = most_query < MOST_SCORE
            && most_score < MOST_SCORE
            && most_value.magnitude(simd) < f32::INFINITY;
        if !all_numbers {
            for position in 0..self.length {
                row_of(position).fill(f32::NAN);
            }
            return;
        }

        // Two vectors of queries at a time, and one for the rest.
        let lanes = S::F32_LANES;
        let queries = self.workspace.queries.take(2 * lanes * width);
        let scores = self.workspace.scores.take(2 * lanes * KEY_BLOCK);
        let sums = self.workspace.output.take(2 * lanes * width);
        let state = self.workspace.state.take(6 * lanes);
        let furthest = by_distance.len() / 2;
        let table = self.workspace.table.take(2 * (furthest + lanes));
        if P::TABLED {
            spread(by_distance, lanes, table);
        }
        let mut first = 0;
        while first < self.length {
            let left = self.length - first;
            let vectors = if left > lanes { 2 } else { 1 };
            let block = vectors * lanes;
            let count = left.min(block);
            queries[..block * width].fill(0.0);
            for lane in 0..count {
                let position = first + lane;
                let row = &rows[position * stride + column..position * stride + column + width];
                let query = &mut queries[lane..];
                positions.query(position, row, query_bias, scale, query, block);
            }
            if P::SLOPED {
                for (lane, position) in state[4 * lanes..].iter_mut().enumerate().take(block) {
                    *position = (first + lane) as f32;
                }
            }
            let mut reached = 0..self.length;
            if nearby {
                let longest_query = longest_lane(&queries[..block * width], &mut state[..block]);
                let reach = reach(slope, longest_query, longest_key);
                reached.start = first.saturating_sub(reach);
                reached.end = (first + count).saturating_add(reach).min(self.length);
            }
            let task = Block {
                queries: queries.as_ptr(),
                keys: keys.as_ptr(),
                values: values.as_ptr(),
                width,
                // With a slope, it is the block of the queries themselves: scores of keys far away
                // are so low that their weights are zero.
                nearest: if P::SLOPED {
                    (first - reached.start) / KEY_BLOCK
                } else {
                    0
                },
                reached,
                scores: scores.as_mut_ptr(),
                sums: sums.as_mut_ptr(),
                state: state.as_mut_ptr(),
                slope,
                first,
                furthest,
                table: table.as_ptr(),
            };
            // SAFETY: the scratch slices were taken with room for two vectors a row, and `keys` and
            // `values` hold `length` rows of `width` values, more than `reached` ends at.
            unsafe {
                if vectors == 2 {
                    task.run::<S, P, 2>(simd);
                } else {
                    task.run::<S, P, 1>(simd);
                }
            }
            for lane in 0..count {
                for (d, value) in row_of(first + lane).iter_mut().enumerate() {
                    *value = sums[d * block + lane];
                }
            }
            first += count;
        }
    }
}

/// Writes what is added to scores, in units of ln 2, so that a vector of it is that of as many
/// queries in a row and one key: by the query's position less the key's, from `-(n + lanes)` to
/// `n + lanes - 1`, where `by_distance` is from `-n` to `n`, the other way round.
fn spread(by_distance: &[f32], lanes: usize, table: &mut [f32]) {
    let last = by_distance.len() - 1;
    for (at, value) in table.iter_mut().enumerate() {
        let distance = at.saturating_sub(lanes).min(last);
        *value = std::f32::consts::LOG2_E * by_distance[last - distance];
    }
}

/// The squared length of a vector.
#[inline(always)]
fn square<S: Simd>(simd: S, vector: &[f32]) -> f32 {
    let (whole, tail) = S::as_simd_f32s(vector);
    let sum = whole
        .iter()
        .fold(simd.splat_f32s(0.0), |sum, &x| simd.mul_add_f32s(x, x, sum));
    simd.reduce_sum_f32s(sum) + tail.iter().map(|x| x * x).sum::<f32>()
}

/// The largest squared length of vectors that are side by side in rows of `squares.len()`.
#[inline(always)]
fn longest_lane(rows: &[f32], squares: &mut [f32]) -> f32 {
    squares.fill(0.0);
    for row in rows.chunks_exact(squares.len()) {
        for (square, x) in squares.iter_mut().zip(row) {
            *square += x * x;
        }
    }
    squares.iter().copied().fold(0.0, longer)
}

/// The larger of two squared lengths, or NaN if one of them is.
#[inline(always)]
fn longer(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// The distance beyond which no key can matter to a query, from the squared lengths of the longest
/// of each.
///
/// A query's best score is at least that with the key at its own position. A key at distance `d`
/// has, by Cauchy and Schwarz, a score of at most `2 |query| |key| - slope * d` above it.
#[inline(always)]
fn reach(slope: f32, longest_query: f32, longest_key: f32) -> usize {
    let bound = (FAR + 2.0 * longest_query.sqrt() * longest_key.sqrt()) / slope;
    if (0.0..1e9).contains(&bound) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounded down on purpose, and between 0 and 1e9"
        )]
        let whole = bound as usize;
        whole + 1
    } else {
        usize::MAX
    }
}

/// A block of queries against the keys. Rows of `queries`, `scores` and `sums` are `V` vectors
/// wide.
struct Block {
    queries: *const f32,
    keys: *const f32,
    values: *const f32,
    width: usize,
    /// The range of keys that are not skipped.
    reached: Range<usize>,
    /// The block of these keys that most likely has the largest scores.
    nearest: usize,
    scores: *mut f32,
    sums: *mut f32,
    /// Rows: maximum, total, and the queries' positions.
    state: *mut f32,
    slope: f32,
    /// Position of the first query.
    first: usize,
    /// The distance that [`PositionEncoding::table`] ends at.
    furthest: usize,
    /// What is added to scores, as [`spread`] writes it.
    table: *const f32,
}

impl Block {
    #[inline(always)]
    unsafe fn run<S: Simd, P: PositionEncoding, const V: usize>(&self, simd: S) {
        // SAFETY: the caller's promise is that of `attend`.
        unsafe {
            if !self.attend::<S, P, V, false>(simd) {
                self.attend::<S, P, V, true>(simd);
            }
        }
    }

    /// With `CAREFUL`, every block of keys may raise the maximum that weights are relative to.
    /// Without, it stays that of the first block, which saves two passes over the scores. Weights
    /// far above 1 are as exact, unless they overflow: then `false` is returned, and the result is
    /// not valid.
    #[inline(always)]
    unsafe fn attend<S: Simd, P: PositionEncoding, const V: usize, const CAREFUL: bool>(
        &self,
        simd: S,
    ) -> bool {
        let lanes = S::F32_LANES;
        let row = V * lanes;
        // SAFETY: every pointer is valid for the rows named in `Block` (the caller's promise), and
        // the loops stay within `width` and `reached`.
        unsafe {
            let (maximum, total) = (self.state, self.state.add(row));
            for v in 0..V {
                store::<S>(maximum.add(v * lanes), simd.splat_f32s(f32::NEG_INFINITY));
                store::<S>(total.add(v * lanes), simd.splat_f32s(0.0));
            }
            for i in 0..self.width * V {
                store::<S>(self.sums.add(i * lanes), simd.splat_f32s(0.0));
            }
            for turn in 0..self.reached.len().div_ceil(KEY_BLOCK) {
                // The nearest block of keys comes first, then the others from left to right.
                let block = match turn {
                    0 => self.nearest,
                    turn if turn <= self.nearest => turn - 1,
                    turn => turn,
                };
                let first = self.reached.start + block * KEY_BLOCK;
                let count = KEY_BLOCK.min(self.reached.end - first);
                if CAREFUL || turn == 0 {
                    self.score::<S, P, V, false>(simd, first, count);
                    self.softmax::<S, V>(simd, count, maximum, total);
                } else {
                    self.score::<S, P, V, true>(simd, first, count);
                    self.weigh::<S, V>(simd, count, total);
                }
                self.accumulate::<S, V>(simd, first, count);
            }
            let mut largest = 0.0_f32;
            for v in 0..V {
                let total = load::<S>(total.add(v * lanes));
                largest = largest.max(simd.reduce_max_f32s(total));
                let inverse = simd.div_f32s(simd.splat_f32s(1.0), total);
                for d in 0..self.width {
                    let at = self.sums.add(d * row + v * lanes);
                    store::<S>(at, simd.mul_f32s(load::<S>(at), inverse));
                }
            }
            largest < OVERFLOW
        }
    }

    /// `scores[key, query] = keys . queries`, minus the slope times the distance. With `RELATIVE`,
    /// also minus the maximum so far.
    #[inline(always)]
    unsafe fn score<S: Simd, P: PositionEncoding, const V: usize, const RELATIVE: bool>(
        &self,
        simd: S,
        first: usize,
        count: usize,
    ) {
        // SAFETY: as in `run`.
        unsafe {
            let mut key = 0;
            if S::REGISTER_COUNT >= 32 {
                while key + 12 <= count {
                    self.score_tile::<S, P, V, 12, RELATIVE>(simd, first + key, key);
                    key += 12;
                }
            }
            while key + 4 <= count {
                self.score_tile::<S, P, V, 4, RELATIVE>(simd, first + key, key);
                key += 4;
            }
            while key < count {
                self.score_tile::<S, P, V, 1, RELATIVE>(simd, first + key, key);
                key += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn score_tile<
        S: Simd,
        P: PositionEncoding,
        const V: usize,
        const K: usize,
        const RELATIVE: bool,
    >(
        &self,
        simd: S,
        key: usize,
        row: usize,
    ) {
        let lanes = S::F32_LANES;
        // SAFETY: as in `run`.
        unsafe {
            let keys = self.keys.add(key * self.width);
            let mut start = [simd.splat_f32s(0.0); V];
            if RELATIVE {
                for (v, start) in start.iter_mut().enumerate() {
                    *start = simd.neg_f32s(load::<S>(self.state.add(v * lanes)));
                }
            }
            let mut sums = [start; K];
            for d in 0..self.width {
                let mut query = [simd.splat_f32s(0.0); V];
                for (v, query) in query.iter_mut().enumerate() {
                    *query = load::<S>(self.queries.add((d * V + v) * lanes));
                }
                for (k, sums) in sums.iter_mut().enumerate() {
                    let value = simd.splat_f32s(*keys.add(k * self.width + d));
                    for (sum, query) in sums.iter_mut().zip(query) {
                        *sum = simd.mul_add_f32s(value, query, *sum);
                    }
                }
            }
            if P::SLOPED {
                let positions = self.state.add(4 * lanes);
                let slope = simd.splat_f32s(-self.slope);
                for (k, sums) in sums.iter_mut().enumerate() {
                    let at = simd.splat_f32s((key + k) as f32);
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let query = load::<S>(positions.add(v * lanes));
                        let distance = simd.abs_f32s(simd.sub_f32s(query, at));
                        *sum = simd.mul_add_f32s(distance, slope, *sum);
                    }
                }
            }
            if P::TABLED {
                for (k, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let at = (self.first + v * lanes + self.furthest + lanes)
                            .saturating_sub(key + k)
                            .min(2 * self.furthest + lanes);
                        *sum = simd.add_f32s(*sum, load::<S>(self.table.add(at)));
                    }
                }
            }
            for (k, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    store::<S>(self.scores.add(((row + k) * V + v) * lanes), *sum);
                }
            }
        }
    }

    /// Turns a block's scores into weights, and scales what was summed so far down to the new
    /// maximum.
    #[inline(always)]
    unsafe fn softmax<S: Simd, const V: usize>(
        &self,
        simd: S,
        count: usize,
        maximum: *mut f32,
        total: *mut f32,
    ) {
        let lanes = S::F32_LANES;
        let row = V * lanes;
        // SAFETY: as in `run`.
        unsafe {
            for v in 0..V {
                let before = load::<S>(maximum.add(v * lanes));
                let column = self.scores.add(v * lanes);
                // Four independent chains, so that a maximum need not wait for the one before.
                let mut best = [before; 4];
                let mut key = 0;
                while key + 4 <= count {
                    for (i, best) in best.iter_mut().enumerate() {
                        *best = simd.max_f32s(*best, load::<S>(column.add((key + i) * row)));
                    }
                    key += 4;
                }
                while key < count {
                    best[0] = simd.max_f32s(best[0], load::<S>(column.add(key * row)));
                    key += 1;
                }
                let now = simd.max_f32s(
                    simd.max_f32s(best[0], best[1]),
                    simd.max_f32s(best[2], best[3]),
                );
                let mut sum = simd.splat_f32s(0.0);
                for key in 0..count {
                    let at = column.add(key * row);
                    let weight = exp2(simd, simd.sub_f32s(load::<S>(at), now));
                    store::<S>(at, weight);
                    sum = simd.add_f32s(sum, weight);
                }
                let shrink = exp2(simd, simd.sub_f32s(before, now));
                let total = total.add(v * lanes);
                store::<S>(total, simd.mul_add_f32s(load::<S>(total), shrink, sum));
                store::<S>(maximum.add(v * lanes), now);
                for d in 0..self.width {
                    let at = self.sums.add(d * row + v * lanes);
                    store::<S>(at, simd.mul_f32s(load::<S>(at), shrink));
                }
            }
        }
    }

    /// Turns a block's scores relative to the maximum into weights.
    #[inline(always)]
    unsafe fn weigh<S: Simd, const V: usize>(&self, simd: S, count: usize, total: *mut f32) {
        let lanes = S::F32_LANES;
        // SAFETY: as in `run`.
        unsafe {
            for v in 0..V {
                let column = self.scores.add(v * lanes);
                let total = total.add(v * lanes);
                let mut sum = load::<S>(total);
                for key in 0..count {
                    let at = column.add(key * V * lanes);
                    let score = simd.min_f32s(load::<S>(at), simd.splat_f32s(HIGHEST));
                    let weight = exp2(simd, score);
                    store::<S>(at, weight);
                    sum = simd.add_f32s(sum, weight);
                }
                store::<S>(total, sum);
            }
        }
    }

    /// `sums[d, query] += scores[key, query] * values[key, d]`.
    #[inline(always)]
    unsafe fn accumulate<S: Simd, const V: usize>(&self, simd: S, first: usize, count: usize) {
        // SAFETY: as in `run`.
        unsafe {
            let mut d = 0;
            if S::REGISTER_COUNT >= 32 {
                while d + 8 <= self.width {
                    self.accumulate_tile::<S, V, 8>(simd, first, count, d);
                    d += 8;
                }
            }
            while d + 4 <= self.width {
                self.accumulate_tile::<S, V, 4>(simd, first, count, d);
                d += 4;
            }
            while d < self.width {
                self.accumulate_tile::<S, V, 1>(simd, first, count, d);
                d += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn accumulate_tile<S: Simd, const V: usize, const D: usize>(
        &self,
        simd: S,
        first: usize,
        count: usize,
        d: usize,
    ) {
        let lanes = S::F32_LANES;
        // SAFETY: as in `run`.
        unsafe {
            let mut sums = [[simd.splat_f32s(0.0); V]; D];
            for (i, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = load::<S>(self.sums.add(((d + i) * V + v) * lanes));
                }
            }
            for key in 0..count {
                let mut weight = [simd.splat_f32s(0.0); V];
                for (v, weight) in weight.iter_mut().enumerate() {
                    *weight = load::<S>(self.scores.add((key * V + v) * lanes));
                }
                let values = self.values.add((first + key) * self.width + d);
                for (i, sums) in sums.iter_mut().enumerate() {
                    let value = simd.splat_f32s(*values.add(i));
                    for (sum, weight) in sums.iter_mut().zip(weight) {
                        *sum = simd.mul_add_f32s(value, weight, *sum);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    store::<S>(self.sums.add(((d + i) * V + v) * lanes), *sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::cpu::kernels::simd::instruction_sets;

    /// What positions may do.
    #[derive(Debug, Clone, Copy)]
    enum Kind {
        Rotary,
        Alibi,
        Relative,
        NoPositions,
    }

    /// Sequences packed end to end in a batch.
    #[derive(Debug, Clone)]
    struct Case {
        kind: Kind,
        width: usize,
        lengths: [usize; 3],
        seed: u32,
    }

    /// Heads of each case.
    const HEADS: usize = 2;

    /// What is added by the distances -3 to 3, of each head.
    const TABLE: [f32; 14] = [
        0.5, -1.0, 2.0, 0.25, -3.0, 1.5, 4.0, -0.5, 0.0, 7.0, -2.0, 1.0, 0.75, -6.0,
    ];

    impl Case {
        fn hidden(&self) -> usize {
            HEADS * self.width
        }

        fn starts(&self) -> [usize; 4] {
            let [a, b, c] = self.lengths;
            [0, a, a + b, a + b + c]
        }

        /// Numbers between -2 and 2: the dense product, and the bias.
        fn numbers(&self) -> (Vec<f32>, Vec<f32>) {
            let mut state = self.seed;
            let mut random = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 4_194_304.0 - 2.0
            };
            let tokens: usize = self.lengths.iter().sum();
            let qkv = (0..tokens * 3 * self.hidden()).map(&mut random).collect();
            (qkv, (0..2 * self.hidden()).map(&mut random).collect())
        }

        /// All heads of all sequences.
        fn attend(&self, arch: Arch, qkv: &[f32], bias: &[f32]) -> Vec<f32> {
            match self.kind {
                Kind::Rotary => {
                    let longest = self.lengths.into_iter().max().unwrap_or(0);
                    self.attend_at(&*Rotary::shared(self.width, 1e4, longest), arch, qkv, bias)
                }
                Kind::Alibi => {
                    // Far keys are left out by the first one.
                    let slopes = &[1.5, 0.004];
                    self.attend_at(&Alibi { slopes }, arch, qkv, bias)
                }
                Kind::Relative => {
                    let table = &TABLE;
                    let heads = HEADS;
                    self.attend_at(&Relative { table, heads }, arch, qkv, bias)
                }
                Kind::NoPositions => self.attend_at(&NoPositions, arch, qkv, bias),
            }
        }

        fn attend_at<P: PositionEncoding>(
            &self,
            positions: &P,
            arch: Arch,
            qkv: &[f32],
            bias: &[f32],
        ) -> Vec<f32> {
            let packed = Packed {
                qkv,
                bias,
                hidden: self.hidden(),
                heads: HEADS,
                positions,
            };
            let starts = self.starts();
            let mut output = vec![0.0; starts[3] * self.hidden()];
            for head in 0..HEADS {
                for pair in starts.windows(2) {
                    // SAFETY: `output` holds all rows, and nobody else writes to it.
                    unsafe { packed.head_on(arch, head, pair[0], pair[1], output.as_mut_ptr()) };
                }
            }
            output
        }

        /// A head's part of a row.
        fn part<'o>(&self, output: &'o [f32], row: usize, head: usize) -> &'o [f32] {
            let at = row * self.hidden() + head * self.width;
            &output[at..at + self.width]
        }
    }

    fn cases() -> impl Strategy<Value = Case> {
        let kinds = prop_oneof![
            Just(Kind::Rotary),
            Just(Kind::Alibi),
            Just(Kind::Relative),
            Just(Kind::NoPositions)
        ];
        let widths = prop::sample::select(vec![2, 4, 10, 12, 16, 20, 32]);
        // Around blocks of keys and of queries, and beyond what far keys are left out at.
        let length = prop_oneof![
            1..40_usize,
            KEY_BLOCK - 2..KEY_BLOCK + 3,
            2 * KEY_BLOCK - 2..2 * KEY_BLOCK + 40,
        ];
        (
            kinds,
            widths,
            1..20_usize,
            length,
            1..20_usize,
            any::<u32>(),
        )
            .prop_map(|(kind, width, before, length, behind, seed)| Case {
                kind,
                width,
                lengths: [before, length, behind],
                seed,
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// Infinity or NaN in one query, key, value or bias: all rows of that head of the sequence
        /// are NaN, and all other rows have the same bits as without it.
        #[test]
        fn what_is_no_number_stays_none(
            case in cases(),
            odd in prop::sample::select(vec![f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
            which in 0..3_usize,
            in_bias in prop::bool::weighted(0.1),
            head in 0..HEADS,
            at in any::<prop::sample::Index>(),
            dimension in any::<prop::sample::Index>(),
        ) {
            let (qkv, bias) = case.numbers();
            let starts = case.starts();
            let (mut bad_qkv, mut bad_bias) = (qkv.clone(), bias.clone());
            let column = head * case.width + dimension.index(case.width);
            let in_bias = in_bias && which < 2;
            let position = starts[1] + at.index(case.lengths[1]);
            if in_bias {
                bad_bias[which * case.hidden() + column] = odd;
            } else {
                bad_qkv[(3 * position + which) * case.hidden() + column] = odd;
            }
            for arch in instruction_sets() {
                let expected = case.attend(arch, &qkv, &bias);
                let found = case.attend(arch, &bad_qkv, &bad_bias);
                prop_assert!(expected.iter().all(|x| x.is_finite()));
                for row in 0..starts[3] {
                    for other in 0..HEADS {
                        let found = case.part(&found, row, other);
                        let is_hit = (in_bias || (starts[1]..starts[2]).contains(&row)) && other == head;
                        if is_hit {
                            prop_assert!(found.iter().any(|x| !x.is_finite()), "{arch:?} row {row}: {found:?}");
                        } else {
                            let bits = |part: &[f32]| part.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                            let expected = case.part(&expected, row, other);
                            prop_assert_eq!(bits(found), bits(expected), "{:?} row {}", arch, row);
                        }
                    }
                }
            }
        }

        /// Numbers of any size: a row is a mean of the values, or it has something that is no
        /// number; and that it has, where the score of a key is larger than a float can be.
        #[test]
        fn scores_that_overflow_give_no_numbers(case in cases(), power in 0..38_i32, share in 0.0..1.0_f64) {
            let (mut qkv, bias) = case.numbers();
            let hidden = case.hidden();
            // Queries take a share of the power, keys the rest: a score is about 10^(2 * power).
            let query = 10_f64.powf(f64::from(2 * power) * share).min(1e37);
            let key = 10_f64.powf(f64::from(2 * power) * (1.0 - share)).min(1e37);
            #[expect(clippy::cast_possible_truncation, reason = "at most 1e37")]
            for row in qkv.chunks_exact_mut(3 * hidden) {
                row[..hidden].iter_mut().for_each(|x| *x *= query as f32);
                row[hidden..2 * hidden].iter_mut().for_each(|x| *x *= key as f32);
            }
            let starts = case.starts();
            let own = |row: usize, part: usize, head: usize| {
                let at = (3 * row + part) * hidden + head * case.width;
                &qkv[at..at + case.width]
            };
            for arch in instruction_sets() {
                let output = case.attend(arch, &qkv, &bias);
                for (sequence, head) in (0..3).flat_map(|sequence| [(sequence, 0), (sequence, 1)]) {
                    let rows = starts[sequence]..starts[sequence + 1];
                    for row in rows.clone() {
                        let found = case.part(&output, row, head);
                        if found.iter().any(|x| !x.is_finite()) {
                            prop_assert!(query * key > 1e25, "{arch:?}: {found:?} of scores near {:e}", query * key);
                            continue;
                        }
                        for (d, x) in found.iter().enumerate() {
                            let values = rows.clone().map(|key| own(key, 2, head)[d]);
                            let (low, high) = values.fold((9.0_f32, -9.0_f32), |(low, high), x| (low.min(x), high.max(x)));
                            prop_assert!((low - 1e-4..=high + 1e-4).contains(x), "{arch:?}: {x} of {low} to {high}");
                        }
                        // Rotation keeps the score of a query and the key at its own place, and so
                        // does distance.
                        let with = |part: usize| {
                            let bias = &bias[part * hidden + head * case.width..][..case.width];
                            let own = own(row, part, head).iter().zip(bias);
                            own.map(|(x, b)| f64::from(*x) + f64::from(*b)).collect::<Vec<_>>()
                        };
                        let score: f64 = with(0).iter().zip(with(1)).map(|(q, k)| q * k).sum();
                        let score = score / (case.width as f64).sqrt();
                        prop_assert!(score.abs() < f64::from(f32::MAX), "{arch:?}: {found:?} of a score of {score:e}");
                    }
                }
            }
        }
    }

    /// Scores far above those of the first block of keys, where weights relative to that block's
    /// maximum overflow.
    #[test]
    fn a_late_key_may_outweigh_all_before_it() {
        const WIDTH: usize = 4;
        for score in [0.0_f32, 50.0, 90.0, 200.0, 5000.0] {
            let length = 3 * KEY_BLOCK + 5;
            let late = length - 3;
            let mut qkv = vec![0.0; length * 3 * WIDTH];
            for (position, row) in qkv.chunks_exact_mut(3 * WIDTH).enumerate() {
                row[0] = 1.0;
                row[WIDTH] = if position == late { 2.0 * score } else { 0.0 };
                row[2 * WIDTH] = if position == late { 7.0 } else { 1.0 };
            }
            let packed = Packed {
                qkv: &qkv,
                bias: &[0.0; 2 * WIDTH],
                hidden: WIDTH,
                heads: 1,
                positions: &NoPositions,
            };
            let mut output = vec![0.0; length * WIDTH];
            // SAFETY: `output` holds `length` rows, and nobody else writes to it.
            unsafe { packed.head(0, 0, length, output.as_mut_ptr()) };
            let weight = f64::from(score).exp();
            let others = (length - 1) as f64;
            let expected = if weight.is_finite() {
                (7.0 * weight + others) / (weight + others)
            } else {
                7.0
            };
            for row in output.chunks_exact(WIDTH) {
                let difference = (f64::from(row[0]) - expected).abs();
                assert!(
                    difference < 1e-5,
                    "score {score}: {} for {expected}",
                    row[0]
                );
            }
        }
    }

    /// Against the definition in double precision, where distance leaves keys out and where it does
    /// not.
    #[test]
    fn scores_fall_with_distance() {
        const WIDTH: usize = 8;
        let slopes = [0.5, 0.0625, 0.0039];
        let hidden = WIDTH * slopes.len();
        let length = 5 * KEY_BLOCK + 5;
        let mut state = 1_u32;
        let mut random = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 4_194_304.0 - 2.0
        };
        let qkv: Vec<f32> = (0..length * 3 * hidden).map(&mut random).collect();
        let bias: Vec<f32> = (0..2 * hidden).map(&mut random).collect();
        let packed = Packed {
            qkv: &qkv,
            bias: &bias,
            hidden,
            heads: slopes.len(),
            positions: &Alibi { slopes: &slopes },
        };
        let mut output = vec![0.0; length * hidden];
        for (head, &slope) in slopes.iter().enumerate() {
            // SAFETY: `output` holds `length` rows, and nobody else writes to it.
            unsafe { packed.head(head, 0, length, output.as_mut_ptr()) };
            let column = head * WIDTH;
            // Values have no bias here.
            let biases = [&bias[column..], &bias[hidden + column..], &[0.0; WIDTH]];
            let part = |position: usize, which: usize| {
                let at = (3 * position + which) * hidden + column;
                let row = qkv[at..at + WIDTH].iter().zip(biases[which]);
                row.map(|(x, b)| f64::from(*x) + f64::from(*b))
                    .collect::<Vec<_>>()
            };
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            for query in (0..length).step_by(31) {
                let q = part(query, 0);
                let weights: Vec<f64> = (0..length)
                    .map(|key| {
                        let distance = query.abs_diff(key) as f64;
                        let score = dot(&q, &part(key, 1)) / (WIDTH as f64).sqrt();
                        (score - f64::from(slope) * distance).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for d in 0..WIDTH {
                    let values: Vec<f64> = (0..length).map(|key| part(key, 2)[d]).collect();
                    let expected = dot(&weights, &values) / total;
                    let found = f64::from(output[query * hidden + column + d]);
                    assert!(
                        (found - expected).abs() < 5e-6,
                        "slope {slope}, query {query}: {found} for {expected}"
                    );
                }
            }
        }
    }

    /// Against the definition in double precision, for heads whose tables end within a vector of
    /// queries, at a block of keys, and beyond the sequence.
    #[test]
    fn scores_have_what_the_table_says_of_their_distance() {
        const WIDTH: usize = 6;
        let length = 3 * KEY_BLOCK + 7;
        for furthest in [1, 7, KEY_BLOCK, 4 * KEY_BLOCK] {
            let mut state = 1_u32;
            let mut random = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 4_194_304.0 - 2.0
            };
            let hidden = HEADS * WIDTH;
            let qkv: Vec<f32> = (0..length * 3 * hidden).map(&mut random).collect();
            let table: Vec<f32> = (0..HEADS * (2 * furthest + 1)).map(&mut random).collect();
            let (heads, table) = (HEADS, &table[..]);
            let packed = Packed {
                qkv: &qkv,
                bias: &[0.0; 2 * HEADS * WIDTH],
                hidden,
                heads,
                positions: &Relative { table, heads },
            };
            for arch in instruction_sets() {
                let mut output = vec![0.0; length * hidden];
                for head in 0..HEADS {
                    // SAFETY: `output` holds all rows, and nobody else writes to it.
                    unsafe { packed.head_on(arch, head, 0, length, output.as_mut_ptr()) };
                    let own = &table[head * (2 * furthest + 1)..];
                    let part = |position: usize, which: usize| {
                        let at = (3 * position + which) * hidden + head * WIDTH;
                        qkv[at..at + WIDTH].iter().map(|x| f64::from(*x))
                    };
                    for query in (0..length).step_by(29) {
                        let weight = |key: usize| {
                            let behind = query.saturating_sub(key).min(furthest);
                            let ahead = key.saturating_sub(query).min(furthest);
                            let added = f64::from(own[furthest + ahead - behind]);
                            let score: f64 =
                                part(query, 0).zip(part(key, 1)).map(|(q, k)| q * k).sum();
                            (score + added).exp()
                        };
                        let weights: Vec<f64> = (0..length).map(weight).collect();
                        let total: f64 = weights.iter().sum();
                        for d in 0..WIDTH {
                            let value = |key| part(key, 2).nth(d).expect("a column of the head");
                            let sum: f64 = (0..length).map(|key| weights[key] * value(key)).sum();
                            let found = f64::from(output[query * hidden + head * WIDTH + d]);
                            assert!(
                                (found - sum / total).abs() < 1e-5,
                                "{arch:?} {furthest}, query {query}: {found} for {}",
                                sum / total
                            );
                        }
                    }
                }
            }
        }
    }
}
