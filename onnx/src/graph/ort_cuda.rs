//! What is particular to plain graphs: sequences laid end to end, with ONNX's operators and those
//! of `com.microsoft` that ONNX Runtime's CUDA provider has, and no node that it would leave to the
//! CPU.
//!
//! Every shape that a node needs is an input, because ONNX Runtime computes shapes on the CPU.

use crate::graph::builder::{Attribute, Builder, fixed, long, named};
use crate::graph::proto::ElementType;
use crate::graph::request::Output;

/// The number of tokens must be a multiple of this.
pub const TOKEN_MULTIPLE: usize = 64;
/// `token_offset` has a multiple of this many columns: attention with a bias reads whole vectors of
/// them.
pub const LENGTH_MULTIPLE: usize = 16;
/// `max` is taken over at most this many tokens.
pub const LONGEST_MAX: usize = 1 << MAX_LEVELS;

/// Doublings of the stretch that a maximum is known of.
const MAX_LEVELS: u32 = 18;
/// Threads of a block on all GPUs, of which `RotaryEmbedding` takes one for each dimension of a
/// head.
const MOST_THREADS: usize = 1024;

/// Declares the inputs of all plain graphs.
pub fn inputs(builder: &mut Builder<'_>) {
    use ElementType::{Int32, Int64};
    builder.input("input_ids", Int64, &[named("tokens")]);
    builder.input(
        "token_offset",
        Int32,
        &[named("sequences"), named("length")],
    );
    builder.input(
        "cumulative_sequence_length",
        Int32,
        &[named("sequences_and_one")],
    );
    builder.input("pool_range", Int32, &[named("ranges"), fixed(2)]);
}

/// Declares the input with the position of each token in its sequence.
pub fn position_ids(builder: &mut Builder<'_>) -> String {
    builder.input("position_ids", ElementType::Int64, &[named("tokens")])
}

/// Declares the input that holds 0, 1, ... up to the columns of `token_offset`.
fn all_positions(builder: &mut Builder<'_>) -> String {
    builder.input("all_positions", ElementType::Float, &[named("length")])
}

/// Attention within each sequence, with what is added to all scores, [1, heads, length, length].
pub fn attention(
    builder: &mut Builder<'_>,
    [query, key, value]: [&String; 3],
    added: Option<&str>,
    attributes: &[(&str, Attribute)],
) -> String {
    let mut inputs = vec![
        query.as_str(),
        key,
        value,
        "",
        "token_offset",
        "cumulative_sequence_length",
    ];
    inputs.extend(added);
    builder.op(
        "com.microsoft:PackedMultiHeadAttention",
        &inputs,
        attributes,
    )
}

/// What is added to scores by the key's position less the query's, for all positions of the longest
/// sequence, [1, heads, length, length], from `table`, [heads, 2 * furthest + 1].
pub fn relative(builder: &mut Builder<'_>, table: &str, furthest: usize) -> String {
    builder.scope("relative_positions");
    let positions = all_positions(builder);
    let zero = builder.integers("row_axis", &[1], &[0]);
    let one = builder.integers("column_axis", &[1], &[1]);
    let keys = builder.op("Unsqueeze", &[&positions, &zero], &[]);
    let queries = builder.op("Unsqueeze", &[&positions, &one], &[]);
    let distance = builder.op("Sub", &[&keys, &queries], &[]);
    // Whole numbers of this size are exact.
    let most = furthest as f32;
    let lowest = builder.floats("furthest_before", &[], &[-most]);
    let highest = builder.floats("furthest", &[], &[most]);
    let distance = builder.op("Clip", &[&distance, &lowest, &highest], &[]);
    let column = builder.op("Add", &[&distance, &highest], &[]);
    let column = builder.cast(&column, ElementType::Int64);
    let axis = [("axis", Attribute::Int(1))];
    let added = builder.op("Gather", &[table, &column], &axis);
    builder.op("Unsqueeze", &[&added, &zero], &[])
}

/// `-slope * |i - j|` for all positions of the longest sequence, [1, heads, length, length].
pub fn alibi(builder: &mut Builder<'_>, slopes: &[f32]) -> String {
    builder.scope("alibi");
    let positions = all_positions(builder);
    let element = builder.element();
    let zero = builder.integers("row_axis", &[1], &[0]);
    let one = builder.integers("column_axis", &[1], &[1]);
    let row = builder.op("Unsqueeze", &[&positions, &zero], &[]);
    let column = builder.op("Unsqueeze", &[&positions, &one], &[]);
    let distance = builder.op("Sub", &[&row, &column], &[]);
    let distance = builder.op("Abs", &[&distance], &[]);
    // Before the heads multiply the size. Whole numbers up to 2,048 are exact in fp16; beyond, no
    // weight is left.
    let distance = builder.as_type(&distance, ElementType::Float, element);
    let axes = builder.integers("two_axes", &[2], &[0, 1]);
    let distance = builder.op("Unsqueeze", &[&distance, &axes], &[]);
    let falls: Vec<f32> = slopes.iter().map(|slope| -slope).collect();
    let falls = builder.floats("alibi_falls", &[1, slopes.len(), 1, 1], &falls);
    let falls = builder.as_type(&falls, ElementType::Float, element);
    builder.op("Mul", &[&distance, &falls], &[])
}

/// Rotary embedding, arranged as the CUDA provider's operator is fastest: pairs side by side, and
/// several heads as one.
///
/// The order of dimensions inside a head is free as long as queries and keys agree, so the rows of
/// their weights are put into that order. This is done on the device in every run: it takes a
/// hundredth of the time, and no second weights file.
pub struct Rotation {
    /// Row of the weight for each dimension, int64 [hidden].
    order: String,
    /// Cosines and sines of the angles, [length, head / 2] for heads that are several.
    cos: String,
    sin: String,
    /// The position of each token, [tokens / `TOKEN_MULTIPLE`, `TOKEN_MULTIPLE`].
    positions: String,
    /// The shape of the rows to be rotated.
    rows: String,
    /// The shape of a matrix of all tokens.
    flat: String,
    /// Heads, as the operator sees them.
    heads: usize,
}

impl Rotation {
    /// Adds what all layers share; `frequencies` are those of one head of the given width.
    pub fn new(builder: &mut Builder<'_>, heads: usize, width: usize, frequencies: &[f32]) -> Self {
        builder.scope("positions");
        let wide = [4, 2, 1]
            .into_iter()
            .find(|wide| heads.is_multiple_of(*wide) && wide * width <= MOST_THREADS)
            .unwrap_or(1);
        let positions = position_ids(builder);
        // The operator's grid holds at most 65,535 rows of a sequence; as many short ones, there
        // are no limits in sight.
        let rows = builder.integers("rotary_rows", &[2], &[-1, long(TOKEN_MULTIPLE)]);
        let positions = builder.op("Reshape", &[&positions, &rows], &[]);

        let all = all_positions(builder);
        let one = builder.integers("column_axis", &[1], &[1]);
        let all = builder.op("Unsqueeze", &[&all, &one], &[]);
        let frequencies = frequencies.repeat(wide);
        let count = frequencies.len();
        let frequencies = builder.floats("rotary_frequencies", &[1, count], &frequencies);
        let angles = builder.op("Mul", &[&all, &frequencies], &[]);
        let [cos, sin] = ["Cos", "Sin"].map(|function| {
            let value = builder.op(function, &[&angles], &[]);
            builder.as_type(&value, ElementType::Float, builder.element())
        });

        let order: Vec<i64> = (0..heads)
            .flat_map(|head| {
                let first = head * width;
                (first..first + width / 2).flat_map(move |left| [left, left + width / 2])
            })
            .map(long)
            .collect();
        let order = builder.integers("rotary_order", &[heads * width], &order);
        // The first start is always 0. With it, the order is no constant, and ONNX Runtime does not
        // copy all weights into their new order when it loads them.
        let first = builder.integers("first_start", &[1], &[0]);
        let first = builder.op("Gather", &["cumulative_sequence_length", &first], &[]);
        let first = builder.cast(&first, ElementType::Int64);
        let order = builder.op("Add", &[&order, &first], &[]);

        let hidden = long(heads * width);
        Self {
            order,
            cos,
            sin,
            positions,
            rows: builder.integers("rotary_shape", &[3], &[-1, long(TOKEN_MULTIPLE), hidden]),
            flat: builder.integers("flat_rows", &[2], &[-1, hidden]),
            heads: heads / wide,
        }
    }

    /// A tensor of queries' or keys' projection with its rows in the order of the rotation.
    pub fn reorder(&self, builder: &mut Builder<'_>, tensor: &str) -> String {
        builder.op("Gather", &[tensor, &self.order], &[])
    }

    /// Queries or keys in the order of the rotation, rotated, [tokens, heads * width].
    pub fn rotate(&self, builder: &mut Builder<'_>, product: &str) -> String {
        let rows = builder.op("Reshape", &[product, &self.rows], &[]);
        let rotated = builder.op(
            "com.microsoft:RotaryEmbedding",
            &[&rows, &self.positions, &self.cos, &self.sin],
            &[
                ("interleaved", Attribute::Int(1)),
                ("num_heads", Attribute::Int(long(self.heads))),
            ],
        );
        builder.op("Reshape", &[&rotated, &self.flat], &[])
    }
}

/// Where the ranges of `pool_range` begin and end, [ranges] each.
pub fn bounds(builder: &mut Builder<'_>) -> [String; 2] {
    [("range_start", 0), ("range_end", 1)].map(|(name, column)| {
        let column = builder.integers(name, &[], &[column]);
        let axis = [("axis", Attribute::Int(1))];
        builder.op("Gather", &["pool_range", &column], &axis)
    })
}

/// The hidden states [tokens, hidden] pooled over each range, [ranges, hidden] in 32 bits.
pub fn pooled(
    builder: &mut Builder<'_>,
    state: &str,
    [start, end]: &[String; 2],
    output: Output,
) -> String {
    let element = builder.element();
    if output == Output::Mean {
        let tokens = builder.as_type(state, element, ElementType::Float);
        return mean(builder, &tokens, start, end);
    }
    let most = max(builder, state, start, end);
    builder.as_type(&most, element, ElementType::Float)
}

/// The mean over each range: a matrix of zeros and ones made from the bounds, times the tokens.
fn mean(builder: &mut Builder<'_>, tokens: &str, start: &str, end: &str) -> String {
    let all = builder.input_once("all_tokens", ElementType::Int32, &[named("tokens")]);
    let one = builder.integers("column_axis", &[1], &[1]);
    let [first, last] = [start, end].map(|at| builder.op("Unsqueeze", &[at, &one], &[]));
    let after = builder.op("GreaterOrEqual", &[&all, &first], &[]);
    let before = builder.op("Less", &[&all, &last], &[]);
    let inside = builder.op("And", &[&after, &before], &[]);
    let inside = builder.cast(&inside, ElementType::Float);
    let sum = builder.op("MatMul", &[&inside, tokens], &[]);
    let count = builder.op("Sub", &[&last, &first], &[]);
    let count = builder.cast(&count, ElementType::Float);
    builder.op("Div", &[&sum, &count], &[])
}

/// The maximum over each range, of at most [`LONGEST_MAX`] tokens.
///
/// After k doublings, a row holds the maximum of the 2^k tokens from there on; a range of 2^k to
/// 2^(k+1) tokens is covered by two such stretches, one from its start and one up to its end.
/// Memory is that of the tokens, whatever the lengths are.
fn max(builder: &mut Builder<'_>, tokens: &str, start: &str, end: &str) -> String {
    let one = builder.integers("column_axis", &[1], &[1]);
    let axis = builder.integers("row_axis", &[1], &[0]);
    let from = builder.integers("slice_start", &[1], &[0]);
    let to = builder.integers("slice_end", &[1], &[i64::MAX]);
    let nothing = builder.short_integers("nothing", &[], &[0]);
    let length = builder.op("Sub", &[end, start], &[]);
    let length = builder.op("Unsqueeze", &[&length, &one], &[]);
    let mut stretch = tokens.to_owned();
    let mut most = String::new();
    for level in 0..MAX_LEVELS {
        let size = builder.short_integers(&format!("stretch_{level}"), &[], &[1 << level]);
        let second = builder.op("Sub", &[end, &size], &[]);
        let second = builder.op("Max", &[&second, &nothing], &[]);
        let [left, right] =
            [start, &second].map(|rows| builder.op("Gather", &[&stretch, rows], &[]));
        let both = builder.op("Max", &[&left, &right], &[]);
        most = if level == 0 {
            both
        } else {
            let reached = builder.op("GreaterOrEqual", &[&length, &size], &[]);
            builder.op("Where", &[&reached, &both, &most], &[])
        };
        if level + 1 < MAX_LEVELS {
            // Rows near the end wrap around: no range reads a stretch that ends beyond the tokens.
            let shift = builder.integers(&format!("shift_{level}"), &[1], &[1 << level]);
            let tail = builder.op("Slice", &[&stretch, &shift, &to, &axis], &[]);
            let head = builder.op("Slice", &[&stretch, &from, &shift, &axis], &[]);
            let axis = [("axis", Attribute::Int(0))];
            let rolled = builder.op("Concat", &[&tail, &head], &axis);
            stretch = builder.op("Max", &[&stretch, &rolled], &[]);
        }
    }
    most
}
