//! Reads the precision of a finished graph from the graph itself, not from what was requested.

use prost::Message;

use crate::graph::proto::ModelProto;

/// The lowest number format that a graph keeps a weight in or casts a value to: `fp32`, `bf16`,
/// `fp16` or `fp8`.
///
/// `None` if the bytes are not a graph, or if the graph has no floats.
#[must_use]
pub fn lowest_precision(graph: &[u8]) -> Option<&'static str> {
    let graph = ModelProto::decode(graph).ok()?.graph?;
    let weights = graph
        .initializer
        .iter()
        .filter_map(|tensor| tensor.data_type);
    let casts = graph
        .node
        .iter()
        .filter(|node| node.op_type.as_deref() == Some("Cast"))
        .flat_map(|node| &node.attribute)
        .filter(|attribute| attribute.name.as_deref() == Some("to"))
        .filter_map(|attribute| i32::try_from(attribute.i?).ok());
    weights.chain(casts).filter_map(format).max().map(name)
}

/// How low a format is, of `TensorProto.DataType`; no integers, but bytes, as which 8-bit floats
/// are handed on.
fn format(data_type: i32) -> Option<u8> {
    match data_type {
        1 | 11 => Some(0),
        16 => Some(1),
        10 => Some(2),
        2 | 17..=20 => Some(3),
        _ => None,
    }
}

fn name(format: u8) -> &'static str {
    ["fp32", "bf16", "fp16", "fp8"][usize::from(format)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};

    fn graph(weights: &[i32], casts: &[i64]) -> Vec<u8> {
        let initializer = weights.iter().map(|&kind| TensorProto {
            data_type: Some(kind),
            ..TensorProto::default()
        });
        let node = casts.iter().map(|&to| NodeProto {
            op_type: Some("Cast".to_owned()),
            attribute: vec![AttributeProto {
                name: Some("to".to_owned()),
                i: Some(to),
                ..AttributeProto::default()
            }],
            ..NodeProto::default()
        });
        ModelProto {
            graph: Some(GraphProto {
                initializer: initializer.collect(),
                node: node.collect(),
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn one_low_weight_or_cast_makes_a_graph_low() {
        assert_eq!(lowest_precision(&graph(&[1, 7, 6], &[1, 7])), Some("fp32"));
        assert_eq!(lowest_precision(&graph(&[1, 10], &[1])), Some("fp16"));
        assert_eq!(lowest_precision(&graph(&[1], &[16, 1])), Some("bf16"));
        assert_eq!(lowest_precision(&graph(&[10, 17], &[])), Some("fp8"));
        assert_eq!(lowest_precision(&graph(&[10, 2], &[])), Some("fp8"));
        assert_eq!(lowest_precision(&graph(&[7], &[])), None);
        assert_eq!(lowest_precision(b"no graph"), None);
    }
}
