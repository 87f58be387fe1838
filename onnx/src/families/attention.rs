//! Multi-head attention of a block, on its way from normalised states to the projection after it,
//! for every kind of graph and of positions.

use super::blocks::{Blocks, Positions};
use super::contact_maps::ContactMaps;
use crate::graph::builder::{Attribute, long};
use crate::graph::fused::Stream;
use crate::graph::layers::Frame;
use crate::graph::ort_cuda;
use crate::graph::proto::ElementType;
use crate::graph::request::GraphKind;
use crate::positions::{alibi_slopes, rotary_frequencies};

/// The name, in the weights file, of what is added to scores by distance.
pub const RELATIVE_TABLE: &str = "relative_table";

/// What all layers share of attention.
pub struct Attention<'blocks> {
    blocks: &'blocks Blocks,
    positions: Prepared,
}

/// How positions come into attention in this kind of graph.
enum Prepared {
    /// They do not.
    None,
    /// Added to all scores, [1, heads, length, length]; packed the heads' slopes, [heads].
    Alibi(String),
    /// Added to all scores, [1, heads, length, length]; packed the heads' tables by distance,
    /// [heads, distances]. Scores are not scaled.
    Relative(String),
    /// Queries and keys are rotated by an operator of its own in each layer.
    RotaryPadded(Angles),
    /// The same, in the order that is fastest on a GPU.
    RotaryOrtCuda(ort_cuda::Rotation),
    /// Inside of the attention operator.
    RotaryInside(f32),
    /// Where queries and keys leave their product, by the angles of each token.
    RotaryFused(String),
    /// By the CUDA kernel that normalises queries and keys, by the angles of each token.
    RotaryNormed(String),
}

/// Padded: cosines and sines of the angles, [length, head / 2], and the first position, 0.
struct Angles {
    cos: String,
    sin: String,
    zero: String,
}

impl<'blocks> Attention<'blocks> {
    /// Adds what all layers share. To be called before the embeddings are added.
    pub fn new(blocks: &'blocks Blocks, frame: &mut Frame<'_, '_>) -> Self {
        let positions = match (blocks.positions, frame.kind) {
            (Positions::None, _) => Prepared::None,
            (Positions::Alibi, GraphKind::Padded) => {
                Prepared::Alibi(alibi(frame, &alibi_slopes(blocks.heads)))
            }
            (Positions::Alibi, GraphKind::OrtCuda) => {
                let slopes = alibi_slopes(blocks.heads);
                Prepared::Alibi(ort_cuda::alibi(frame.builder, &slopes))
            }
            (Positions::Alibi, GraphKind::Packed | GraphKind::Fused) => {
                let slopes = alibi_slopes(blocks.heads);
                let slopes = frame
                    .builder
                    .floats("alibi_slopes", &[blocks.heads], &slopes);
                Prepared::Alibi(slopes)
            }
            (Positions::Relative { furthest, .. }, kind) => {
                let table = frame.builder.weight(RELATIVE_TABLE);
                Prepared::Relative(match kind {
                    GraphKind::Padded => relative(frame, &table, furthest),
                    GraphKind::OrtCuda => ort_cuda::relative(frame.builder, &table, furthest),
                    GraphKind::Packed | GraphKind::Fused => table,
                })
            }
            (Positions::Rotary { base }, GraphKind::Padded) => {
                Prepared::RotaryPadded(angles(frame, blocks.head_width, base))
            }
            (Positions::Rotary { base }, GraphKind::OrtCuda) => {
                let width = blocks.head_width;
                Prepared::RotaryOrtCuda(ort_cuda::Rotation::new(
                    frame.builder,
                    blocks.heads,
                    width,
                    &rotary_frequencies(width, base),
                ))
            }
            (Positions::Rotary { base }, GraphKind::Fused) if blocks.sizes().can_fuse_rotary() => {
                Prepared::RotaryFused(fused_angles(frame, blocks.head_width, base))
            }
            (Positions::Rotary { base }, _)
                if blocks.query_key_norm && frame.has_cuda_operators() =>
            {
                Prepared::RotaryNormed(fused_angles(frame, blocks.head_width, base))
            }
            (Positions::Rotary { base }, GraphKind::Packed | GraphKind::Fused) => {
                Prepared::RotaryInside(base)
            }
        };
        Self { blocks, positions }
    }

    /// Attention over normalised states, [tokens, heads * width of a head].
    pub fn attend(&self, frame: &mut Frame<'_, '_>, state: &str, layer: &str) -> String {
        let heads = self.blocks.heads;
        match frame.kind {
            GraphKind::Padded | GraphKind::OrtCuda => {
                let parts = [0, 1, 2].map(|index| self.part(frame, state, layer, index));
                let parts = self.rotate_padded(frame, parts);
                let (added, scale) = match &self.positions {
                    Prepared::Alibi(added) => (Some(added.as_str()), None),
                    Prepared::Relative(added) => (Some(added.as_str()), Some(1.0)),
                    _ => (None, None),
                };
                frame.attention(&parts, heads, added, scale)
            }
            GraphKind::Packed | GraphKind::Fused
                if self.blocks.query_key_norm && !frame.has_cuda_operators() =>
            {
                let parts = [0, 1, 2].map(|index| self.part(frame, state, layer, index));
                let parts = [parts[0].as_str(), &parts[1], &parts[2]];
                let axis = [("axis", Attribute::Int(1))];
                let qkv = frame.builder.op("Concat", &parts, &axis);
                let bias = frame.no_bias();
                self.packed(frame, &[qkv, bias], layer)
            }
            GraphKind::Packed | GraphKind::Fused => {
                let qkv = frame.qkv(state, layer, self.blocks.attention_bias);
                self.packed(frame, &qkv, layer)
            }
        }
    }

    /// The same in graphs of contacts, for packed sequences: also adds the maps of the heads.
    /// Nothing after the last map: then the name is empty.
    pub fn attend_and_map(
        &self,
        frame: &mut Frame<'_, '_>,
        state: &str,
        layer: &str,
        maps: &mut ContactMaps,
    ) -> String {
        let qkv = frame.qkv(state, layer, self.blocks.attention_bias);
        maps.add(frame, |frame, weight, sum| {
            self.contact_map(frame, &qkv, weight, sum)
        });
        if maps.is_whole() {
            return String::new();
        }
        self.packed(frame, &qkv, layer)
    }

    /// Packed: `sum`, [pairs, 1], and the symmetrised and corrected attention maps of all heads,
    /// each times its weight, from queries, keys and values side by side and the bias of queries
    /// and keys. Nothing comes before the first block's: then `sum` is empty.
    pub fn contact_map(
        &self,
        frame: &mut Frame<'_, '_>,
        [qkv, bias]: &[String; 2],
        weight: &str,
        sum: &str,
    ) -> String {
        let mut attributes = vec![("num_heads", Attribute::Int(long(self.blocks.heads)))];
        if let Prepared::RotaryInside(base) = &self.positions {
            attributes.push(("rotary_base", Attribute::Float(*base)));
        }
        let mut inputs = vec![qkv, bias, "sequence_starts", "pool_range", weight];
        if !sum.is_empty() {
            inputs.push(sum);
        }
        frame
            .builder
            .op("seqembed:ContactMap", &inputs, &attributes)
    }

    /// [`Attention::attend`] in fused graphs, from states that no norm has passed over yet.
    pub fn attend_stream(&self, frame: &mut Frame<'_, '_>, stream: &Stream, layer: &str) -> String {
        let Prepared::RotaryFused(angles) = &self.positions else {
            let qkv = stream.qkv(frame, layer);
            return self.packed(frame, &qkv, layer);
        };
        let bias = frame.builder.weight(&format!("{layer}.qk.bias"));
        let weight = format!("{layer}.qkv.weight");
        let rotated = stream.dense(frame, "seqembed:NormDenseRotary", &weight, &[&bias, angles]);
        let heads = ("num_heads", Attribute::Int(long(self.blocks.heads)));
        let inputs = [rotated.as_str(), "sequence_starts"];
        frame
            .builder
            .op("seqembed:PreRotatedAttention", &inputs, &[heads])
    }

    /// Packed and fused: attention of queries, keys and values side by side, [tokens, 3 * width],
    /// and the bias of queries and keys.
    pub fn packed(
        &self,
        frame: &mut Frame<'_, '_>,
        [qkv, bias]: &[String; 2],
        layer: &str,
    ) -> String {
        let heads = ("num_heads", Attribute::Int(long(self.blocks.heads)));
        let starts = "sequence_starts";
        match &self.positions {
            Prepared::RotaryInside(base) => {
                let attributes = [heads, ("rotary_base", Attribute::Float(*base))];
                // On GPUs, which compute in 16 bits, queries and keys are rotated on their way
                // through memory: the operator needs room for them.
                let room = frame.builder.element() != ElementType::Float;
                let [attended, _] = frame.builder.ops(
                    "seqembed:RotaryAttention",
                    &[qkv, bias, starts],
                    &attributes,
                    [true, room],
                );
                attended
            }
            Prepared::RotaryNormed(angles) => {
                let [queries, keys] = ["query_norm", "key_norm"]
                    .map(|norm| frame.builder.weight(&format!("{layer}.{norm}.weight")));
                let inputs = [qkv.as_str(), bias, &queries, &keys, angles];
                let epsilon = [frame.epsilon()];
                let operator = "seqembed:QueryKeyNormRotary";
                let rotated = frame.builder.op(operator, &inputs, &epsilon);
                let inputs = [rotated.as_str(), qkv, starts];
                frame
                    .builder
                    .op("seqembed:SplitAttention", &inputs, &[heads])
            }
            Prepared::Alibi(slopes) => {
                let inputs = [qkv.as_str(), bias, slopes, starts];
                frame
                    .builder
                    .op("seqembed:AlibiAttention", &inputs, &[heads])
            }
            Prepared::Relative(table) => {
                let inputs = [qkv.as_str(), bias, table, starts];
                frame
                    .builder
                    .op("seqembed:RelativeAttention", &inputs, &[heads])
            }
            _ => frame
                .builder
                .op("seqembed:Attention", &[qkv, bias, starts], &[heads]),
        }
    }

    /// Queries (0), keys (1) or values (2), normalised where the model does so, and rotated in
    /// graphs of ONNX Runtime's CUDA operators: padded [batch, length, width], else [tokens,
    /// width].
    fn part(&self, frame: &mut Frame<'_, '_>, state: &str, layer: &str, index: usize) -> String {
        let (weight, bias) = frame.projection(layer, index, self.blocks.attention_bias);
        let norm = (self.blocks.query_key_norm && index < 2)
            .then(|| format!("{layer}.{}.weight", ["query_norm", "key_norm"][index]));
        if let Prepared::RotaryOrtCuda(rotation) = &self.positions {
            let gamma = norm.map(|norm| frame.builder.weight(&norm));
            let rotate = index < 2;
            let [weight, bias, gamma] = [Some(weight), bias, gamma].map(|tensor| {
                let tensor = tensor?;
                Some(if rotate {
                    rotation.reorder(frame.builder, &tensor)
                } else {
                    tensor
                })
            });
            let weight = weight.expect("a projection has a weight");
            let mut product = frame.dense(state, &weight, bias.as_deref());
            if let Some(gamma) = gamma {
                product = frame.norm_without_bias(&product, &gamma);
            }
            return if rotate {
                rotation.rotate(frame.builder, &product)
            } else {
                product
            };
        }
        let mut flat = frame.dense(state, &weight, bias.as_deref());
        if let Some(norm) = norm {
            let gamma = frame.builder.weight(&norm);
            flat = frame.norm_without_bias(&flat, &gamma);
        }
        match frame.kind {
            GraphKind::Padded => frame.as_rows(&flat, self.blocks.attention_width()),
            GraphKind::Packed | GraphKind::Fused | GraphKind::OrtCuda => flat,
        }
    }

    /// Padded: rotates queries and keys, if positions are rotary.
    fn rotate_padded(
        &self,
        frame: &mut Frame<'_, '_>,
        [query, key, value]: [String; 3],
    ) -> [String; 3] {
        let Prepared::RotaryPadded(Angles { cos, sin, zero }) = &self.positions else {
            return [query, key, value];
        };
        let [query, key] = [query, key].map(|rows| {
            frame.builder.op(
                "com.microsoft:RotaryEmbedding",
                &[&rows, zero, cos, sin],
                &[("interleaved", Attribute::Int(0))],
            )
        });
        [query, key, value]
    }
}

/// Packed: the angles of all tokens.
fn fused_angles(frame: &mut Frame<'_, '_>, head_width: usize, base: f32) -> String {
    frame.builder.scope("positions");
    let attributes = [
        ("head", Attribute::Int(long(head_width))),
        ("rotary_base", Attribute::Float(base)),
    ];
    let inputs = ["sequence_starts", "input_ids"];
    frame
        .builder
        .op("seqembed:RotaryAngles", &inputs, &attributes)
}

/// Padded: the angles of all positions.
fn angles(frame: &mut Frame<'_, '_>, head_width: usize, base: f32) -> Angles {
    frame.builder.scope("positions");
    // Angles are computed in the graph, in f32: no length is baked in.
    let positions = frame.positions();
    let builder = &mut *frame.builder;
    let positions = builder.op(
        "Cast",
        &[&positions],
        &[("to", Attribute::Int(ElementType::Float as i64))],
    );
    let last = builder.integers("one", &[1], &[1]);
    let column = builder.op("Unsqueeze", &[&positions, &last], &[]);
    let frequencies = rotary_frequencies(head_width, base);
    let frequencies = builder.floats("rotary_frequencies", &[1, head_width / 2], &frequencies);
    let angles = builder.op("Mul", &[&column, &frequencies], &[]);
    let cos = builder.op("Cos", &[&angles], &[]);
    let sin = builder.op("Sin", &[&angles], &[]);
    let zero = builder.integers("zero", &[1], &[0]);
    Angles { cos, sin, zero }
}

/// Padded: what is added to all scores, `-slope * |i - j|`, [1, heads, length, length].
fn alibi(frame: &mut Frame<'_, '_>, slopes: &[f32]) -> String {
    frame.builder.scope("alibi");
    let positions = frame.positions();
    let builder = &mut *frame.builder;
    let positions = builder.op(
        "Cast",
        &[&positions],
        &[("to", Attribute::Int(ElementType::Float as i64))],
    );
    let zero = builder.integers("zero", &[1], &[0]);
    let one = builder.integers("one", &[1], &[1]);
    let row = builder.op("Unsqueeze", &[&positions, &zero], &[]);
    let column = builder.op("Unsqueeze", &[&positions, &one], &[]);
    let distance = builder.op("Sub", &[&row, &column], &[]);
    let distance = builder.op("Abs", &[&distance], &[]);
    let axes = builder.integers("two_axes", &[2], &[0, 1]);
    let distance = builder.op("Unsqueeze", &[&distance, &axes], &[]);
    let falls: Vec<f32> = slopes.iter().map(|slope| -slope).collect();
    let falls = builder.floats("alibi_falls", &[1, slopes.len(), 1, 1], &falls);
    builder.op("Mul", &[&distance, &falls], &[])
}

/// Padded: what is added to all scores, by the key's position less the query's, [1, heads, length,
/// length].
fn relative(frame: &mut Frame<'_, '_>, table: &str, furthest: usize) -> String {
    frame.builder.scope("relative_positions");
    let positions = frame.positions();
    let builder = &mut *frame.builder;
    let zero = builder.integers("zero", &[1], &[0]);
    let one = builder.integers("one", &[1], &[1]);
    let keys = builder.op("Unsqueeze", &[&positions, &zero], &[]);
    let queries = builder.op("Unsqueeze", &[&positions, &one], &[]);
    let distance = builder.op("Sub", &[&keys, &queries], &[]);
    let most = long(furthest);
    let [lowest, highest] = [("furthest_before", -most), ("furthest", most)]
        .map(|(name, value)| builder.integers(name, &[], &[value]));
    let distance = builder.op("Clip", &[&distance, &lowest, &highest], &[]);
    let column = builder.op("Add", &[&distance, &highest], &[]);
    let axis = [("axis", Attribute::Int(1))];
    let added = builder.op("Gather", &[table, &column], &axis);
    builder.op("Unsqueeze", &[&added, &zero], &[])
}
