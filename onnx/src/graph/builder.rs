//! A small builder of ONNX graphs with weights in `weights.bin`, or in a 16-bit file made from it.

use std::collections::HashSet;

use prost::Message;

use crate::contact_head::ContactHead;
use crate::graph::proto::{
    AttributeProto, Dimension, DimensionProto, ElementType, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto,
    TypeProto, ValueInfoProto,
};
use crate::graph::request::Precision;
use crate::weights::table::{Storage, TensorInfo};

/// ONNX's operator set, and the file format that came with it. 18 is the first with axes as inputs
/// everywhere.
const OPSET: i64 = 18;
const IR_VERSION: i64 = 8;

/// An attribute's value.
#[derive(Debug, Clone)]
pub enum Attribute {
    /// A float.
    Float(f32),
    /// An integer.
    Int(i64),
}

/// What all outputs of a graph go through.
pub trait OutputHead {
    /// Adds its nodes: from hidden states [.., hidden] of this type, [.., width] in fp32.
    fn build(&self, builder: &mut Builder<'_>, hidden: &str, element: ElementType) -> String;

    /// Width of its rows.
    fn width(&self) -> usize;
}

/// Collects nodes and weights.
pub struct Builder<'table> {
    tensors: &'table [TensorInfo],
    storage: Storage,
    location: String,
    graph: GraphProto,
    known: HashSet<String>,
    domains: Vec<&'static str>,
    scope: String,
    head: Option<&'table dyn OutputHead>,
    contact_head: Option<ContactHead>,
}

impl<'table> Builder<'table> {
    /// Creates a graph over these weights, with this layout of their file.
    #[must_use]
    pub fn new(tensors: &'table [TensorInfo], storage: Storage) -> Self {
        Self {
            tensors,
            storage,
            location: storage.file().to_owned(),
            graph: GraphProto {
                name: Some("seqembed".to_owned()),
                ..GraphProto::default()
            },
            known: HashSet::new(),
            domains: Vec::new(),
            scope: String::new(),
            head: None,
            contact_head: None,
        }
    }

    /// Makes the graph one of contacts: the output `contacts` in the place of hidden states.
    pub fn predict_contacts(&mut self, head: ContactHead) {
        self.contact_head = Some(head);
    }

    /// The contact head, in a graph of contacts.
    #[must_use]
    pub fn contact_head(&self) -> Option<&ContactHead> {
        self.contact_head.as_ref()
    }

    /// The name of the weights' file, where it is not [`Storage::file`].
    pub fn at(&mut self, location: &str) {
        location.clone_into(&mut self.location);
    }

    /// What all outputs go through, if anything.
    pub fn head(&mut self, head: Option<&'table dyn OutputHead>) {
        self.head = head;
    }

    /// Whether outputs go through a language-model head.
    #[must_use]
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// The type of the weights.
    #[must_use]
    pub fn element(&self) -> ElementType {
        self.storage.precision.element()
    }

    /// The number format of the weights.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.storage.precision
    }

    /// Nodes that follow are named `scope/...`.
    pub fn scope(&mut self, scope: &str) {
        scope.clone_into(&mut self.scope);
    }

    /// Declares an input.
    pub fn input(&mut self, name: &str, element: ElementType, shape: &[Dimension]) -> String {
        self.graph.input.push(value_info(name, element, shape));
        name.to_owned()
    }

    /// Declares an input, if there is none of this name yet.
    pub fn input_once(&mut self, name: &str, element: ElementType, shape: &[Dimension]) -> String {
        let inputs = &self.graph.input;
        if inputs
            .iter()
            .any(|input| input.name.as_deref() == Some(name))
        {
            return name.to_owned();
        }
        self.input(name, element, shape)
    }

    /// Declares that the value `from` is the output `name`.
    pub fn output(&mut self, name: &str, from: &str, shape: &[Dimension]) {
        self.output_of(ElementType::Float, name, from, shape);
    }

    /// Declares that the value `from`, of this type, is the output `name`.
    /// Where the graph has a head, the output is what that makes of the value.
    pub fn output_of(&mut self, element: ElementType, name: &str, from: &str, shape: &[Dimension]) {
        if let Some(head) = self.head {
            let from = head.build(self, from, element);
            let mut shape = shape.to_vec();
            if let Some(width) = shape.last_mut() {
                *width = fixed(head.width());
            }
            self.declare(ElementType::Float, name, &from, &shape);
        } else {
            self.declare(element, name, from, shape);
        }
    }

    fn declare(&mut self, element: ElementType, name: &str, from: &str, shape: &[Dimension]) {
        self.graph.node.push(NodeProto {
            input: vec![from.to_owned()],
            output: vec![name.to_owned()],
            name: Some(format!("output/{name}")),
            op_type: Some("Identity".to_owned()),
            ..NodeProto::default()
        });
        self.graph.output.push(value_info(name, element, shape));
    }

    /// A value as another type.
    pub fn cast(&mut self, value: &str, to: ElementType) -> String {
        self.op("Cast", &[value], &[("to", Attribute::Int(to as i64))])
    }

    /// A value of one type as another, if they differ.
    pub fn as_type(&mut self, value: &str, from: ElementType, to: ElementType) -> String {
        if from == to {
            value.to_owned()
        } else {
            self.cast(value, to)
        }
    }

    /// Whether the weights file has a tensor of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors.iter().any(|tensor| tensor.name == name)
    }

    /// A tensor of the weights file.
    pub fn weight(&mut self, name: &str) -> String {
        let (shape, offset, bytes) = self.placed(name);
        self.external(name, &shape, offset, bytes)
    }

    /// Rows `first .. first + rows` of a tensor of the weights file, under a name of their own.
    pub fn weight_rows(&mut self, name: &str, alias: &str, first: usize, rows: usize) -> String {
        let (mut shape, offset, bytes) = self.placed(name);
        let row = bytes / shape.first().map_or(1, |&all| all.max(1) as u64);
        if let Some(count) = shape.first_mut() {
            *count = rows;
        }
        self.external(
            alias,
            &shape,
            offset + row * first as u64,
            row * rows as u64,
        )
    }

    fn placed(&self, name: &str) -> (Vec<usize>, u64, u64) {
        let tensor = self
            .tensors
            .iter()
            .find(|tensor| tensor.name == name)
            .expect("the table was checked against the family's own list");
        (tensor.shape.clone(), tensor.offset, tensor.bytes)
    }

    fn external(&mut self, name: &str, shape: &[usize], offset: u64, bytes: u64) -> String {
        let numbers: u64 = shape.iter().map(|&length| length as u64).product();
        let element = if bytes == numbers {
            ElementType::Uint8
        } else {
            self.storage.precision.element()
        };
        if self.known.insert(name.to_owned()) {
            let entry = |key: &str, value: String| StringStringEntryProto {
                key: Some(key.to_owned()),
                value: Some(value),
            };
            self.graph.initializer.push(TensorProto {
                dims: shape.iter().map(|&length| long(length)).collect(),
                data_type: Some(element as i32),
                name: Some(name.to_owned()),
                external_data: vec![
                    entry("location", self.location.clone()),
                    entry("offset", offset.to_string()),
                    entry("length", bytes.to_string()),
                ],
                data_location: Some(1),
                ..TensorProto::default()
            });
        }
        name.to_owned()
    }

    /// A constant in the graph. A name is used only once: the same name must have the same values.
    pub fn integers(&mut self, name: &str, shape: &[usize], values: &[i64]) -> String {
        let raw = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.constant(name, ElementType::Int64, shape, raw)
    }

    /// A constant of 32-bit integers in the graph. A name is used only once: the same name must
    /// have the same values.
    pub fn short_integers(&mut self, name: &str, shape: &[usize], values: &[i32]) -> String {
        let raw = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.constant(name, ElementType::Int32, shape, raw)
    }

    /// A constant in the graph. A name is used only once: the same name must have the same values.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> String {
        let raw = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.constant(name, ElementType::Float, shape, raw)
    }

    fn constant(
        &mut self,
        name: &str,
        element: ElementType,
        shape: &[usize],
        raw: Vec<u8>,
    ) -> String {
        if self.known.insert(name.to_owned()) {
            self.graph.initializer.push(TensorProto {
                dims: shape.iter().map(|&length| long(length)).collect(),
                data_type: Some(element as i32),
                name: Some(name.to_owned()),
                raw_data: Some(raw),
                ..TensorProto::default()
            });
        }
        name.to_owned()
    }

    /// Adds a node with one output. An operator of another set is written `domain:Operator`.
    pub fn op(
        &mut self,
        operator: &'static str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> String {
        let [output] = self.ops(operator, inputs, attributes, [true]);
        output
    }

    /// Adds a node with several outputs, of which only the used ones get names.
    pub fn ops<const N: usize>(
        &mut self,
        operator: &'static str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
        wanted: [bool; N],
    ) -> [String; N] {
        let (domain, operator) = operator.rsplit_once(':').unwrap_or(("", operator));
        if !domain.is_empty() && !self.domains.contains(&domain) {
            self.domains.push(domain);
        }
        let name = format!("{}/{operator}_{}", self.scope, self.graph.node.len());
        let outputs = std::array::from_fn(|index| {
            if wanted[index] {
                format!("{name}:{index}")
            } else {
                String::new()
            }
        });
        let mut listed = outputs.to_vec();
        while listed.last().is_some_and(String::is_empty) {
            listed.pop();
        }
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: listed,
            name: Some(name),
            op_type: Some(operator.to_owned()),
            attribute: attributes
                .iter()
                .map(|(name, value)| attribute(name, value))
                .collect(),
            domain: (!domain.is_empty()).then(|| domain.to_owned()),
        });
        outputs
    }

    /// The file's bytes.
    #[must_use]
    pub fn finish(self, metadata: &[(&str, &str)]) -> Vec<u8> {
        let mut opsets = vec![OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(OPSET),
        }];
        opsets.extend(self.domains.iter().map(|&domain| OperatorSetIdProto {
            domain: Some(domain.to_owned()),
            version: Some(1),
        }));
        ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some("seqembed".to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(self.graph),
            opset_import: opsets,
            metadata_props: metadata
                .iter()
                .map(|&(key, value)| StringStringEntryProto {
                    key: Some(key.to_owned()),
                    value: Some(value.to_owned()),
                })
                .collect(),
        }
        .encode_to_vec()
    }
}

/// A length as ONNX has it.
///
/// # Panics
/// Never for a length that fits into memory.
#[must_use]
pub fn long(length: usize) -> i64 {
    i64::try_from(length).expect("no length reaches 2^63")
}

/// A named dimension.
#[must_use]
pub fn named(name: &str) -> Dimension {
    Dimension::Named(name.to_owned())
}

/// A fixed dimension.
#[must_use]
pub fn fixed(length: usize) -> Dimension {
    Dimension::Fixed(long(length))
}

fn value_info(name: &str, element: ElementType, shape: &[Dimension]) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: Some(element as i32),
                shape: Some(TensorShapeProto {
                    dim: shape
                        .iter()
                        .map(|dimension| DimensionProto {
                            value: Some(dimension.clone()),
                        })
                        .collect(),
                }),
            }),
        }),
    }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut attribute = AttributeProto {
        name: Some(name.to_owned()),
        ..AttributeProto::default()
    };
    match value {
        Attribute::Float(value) => {
            attribute.f = Some(*value);
            attribute.kind = Some(1);
        }
        Attribute::Int(value) => {
            attribute.i = Some(*value);
            attribute.kind = Some(2);
        }
    }
    attribute
}
