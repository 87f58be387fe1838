//! A pickle read as data, executing nothing.
//!
//! `PyTorch`'s files say what they hold in Python's pickle format, a program for a stack machine
//! that may name any Python function to be called. This machine knows the opcodes that checkpoints
//! use and the few globals that describe tensors; anything else is an error that names it. Values
//! live in one list and refer to each other by index, so that deep nesting costs no recursion and
//! cycles are harmless; each opcode adds a bounded amount, so memory is bounded by the length.

use std::collections::HashMap;

use super::dtype::Dtype;
use crate::shown;

/// Why a pickle was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// A global that is not on the list of allowed ones.
    #[error(
        "its pickle refers to the global {}.{}, which no checkpoint needs; nothing was executed. \
         Save only the weights (the state dict), or use safetensors",
        shown::name(module),
        shown::name(name)
    )]
    Global {
        /// The Python module.
        module: String,
        /// The name in it.
        name: String,
    },
    /// An opcode that is not supported.
    #[error(
        "its pickle has the unsupported opcode 0x{opcode:02x} ({shown:?}) at byte {at}; nothing \
         was executed"
    )]
    Opcode {
        /// The opcode.
        opcode: u8,
        /// The opcode as a character.
        shown: char,
        /// Offset in the pickle, in bytes.
        at: usize,
    },
    /// The pickle ends before its STOP.
    #[error("its pickle is truncated after {length} bytes")]
    Truncated {
        /// Its length in bytes.
        length: usize,
    },
    /// Supported opcodes in an invalid combination.
    #[error("its pickle is damaged at byte {at}: {what}")]
    Damaged {
        /// Offset in the pickle, in bytes.
        at: usize,
        /// What makes no sense.
        what: String,
    },
}

/// Index of a value.
pub type Id = usize;

/// A supported global.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `argparse.Namespace`.
    Namespace,
    /// `torch._utils._rebuild_tensor_v2`.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// `torch.Size`.
    Size,
    /// `torch.FloatStorage` and its like.
    Storage(Dtype),
}

/// The globals that are known.
fn global(module: &str, name: &str) -> Option<Class> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Class::OrderedDict,
        ("argparse", "Namespace") => Class::Namespace,
        ("torch._utils", "_rebuild_tensor_v2") => Class::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Class::RebuildParameter,
        ("torch", "Size") => Class::Size,
        ("torch", "DoubleStorage") => Class::Storage(Dtype::F64),
        ("torch", "FloatStorage") => Class::Storage(Dtype::F32),
        ("torch", "HalfStorage") => Class::Storage(Dtype::F16),
        ("torch", "BFloat16Storage") => Class::Storage(Dtype::Bf16),
        ("torch", "LongStorage") => Class::Storage(Dtype::Other("int64", 8)),
        ("torch", "IntStorage") => Class::Storage(Dtype::Other("int32", 4)),
        ("torch", "ShortStorage") => Class::Storage(Dtype::Other("int16", 2)),
        ("torch", "CharStorage") => Class::Storage(Dtype::Other("int8", 1)),
        ("torch", "ByteStorage") => Class::Storage(Dtype::Other("uint8", 1)),
        ("torch", "BoolStorage") => Class::Storage(Dtype::Other("bool", 1)),
        _ => return None,
    })
}

/// A tensor as its pickle describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Name of the entry with its values.
    pub key: String,
    /// Number format of the stored values.
    pub dtype: Dtype,
    /// Values before its first one.
    pub offset: u64,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Values from one row, column ... to the next.
    pub strides: Vec<u64>,
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True`, `False`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number of more than 64 bits, of no use here.
    Large,
    /// A number.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes, of no use here.
    Bytes,
    /// A list or a set.
    List(Vec<Id>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A dict: keys and values in order.
    Dict(Vec<(Id, Id)>),
    /// A global.
    Class(Class),
    /// A Namespace, and the dict of its attributes.
    Namespace(Option<Id>),
    /// Values in an entry of the archive.
    Storage {
        /// Name of the entry.
        key: String,
        /// Number format of the stored values.
        dtype: Dtype,
        /// How many values it has, where that is told.
        count: Option<u64>,
    },
    /// A tensor.
    Tensor(Box<Described>),
}

/// What a pickle held.
#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    /// The outermost value.
    #[must_use]
    pub fn root(&self) -> &Value {
        &self.values[self.root]
    }

    /// A value that another one refers to.
    #[must_use]
    pub fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// Every mention of a storage, in order: its key, number format, and how many values it has.
    pub fn storages(&self) -> impl Iterator<Item = (&str, Dtype, Option<u64>)> {
        self.values.iter().filter_map(|value| match value {
            Value::Storage { key, dtype, count } => Some((key.as_str(), *dtype, *count)),
            _ => None,
        })
    }

    /// The last value that a dict has under a key.
    #[must_use]
    pub fn entry(&self, dict: &Value, key: &str) -> Option<&Value> {
        let Value::Dict(entries) = dict else {
            return None;
        };
        entries
            .iter()
            .rev()
            .find(|(name, _)| matches!(self.get(*name), Value::Text(name) if name == key))
            .map(|(_, value)| self.get(*value))
    }
}

/// Reads a pickle.
///
/// # Errors
/// [`PickleError`] when it asks for anything but data, or is damaged.
pub fn read(bytes: &[u8]) -> Result<Pickle, PickleError> {
    read_first(bytes).map(|(pickle, _)| pickle)
}

/// Reads the pickle that these bytes begin with, and returns its length in bytes.
///
/// # Errors
/// As [`read`].
pub fn read_first(bytes: &[u8]) -> Result<(Pickle, usize), PickleError> {
    let mut machine = Machine {
        bytes,
        at: 0,
        opcode_at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    let pickle = Pickle {
        values: machine.values,
        root,
    };
    Ok((pickle, machine.at))
}

struct Machine<'bytes> {
    bytes: &'bytes [u8],
    at: usize,
    opcode_at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

type Outcome<T = ()> = Result<T, PickleError>;

impl<'bytes> Machine<'bytes> {
    fn damaged<T>(&self, what: impl Into<String>) -> Outcome<T> {
        Err(PickleError::Damaged {
            at: self.opcode_at,
            what: what.into(),
        })
    }

    fn take(&mut self, count: usize) -> Outcome<&'bytes [u8]> {
        let end = self
            .at
            .checked_add(count)
            .filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(PickleError::Truncated {
                length: self.bytes.len(),
            });
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Outcome<usize> {
        Ok(usize::from(self.array::<1>()?[0]))
    }

    fn u32(&mut self) -> Outcome<usize> {
        let long = u32::from_le_bytes(self.array()?);
        usize::try_from(long).or_else(|_| {
            self.damaged(
                "a length that is too large for this \
                                                        machine",
            )
        })
    }

    fn u64(&mut self) -> Outcome<usize> {
        let long = u64::from_le_bytes(self.array()?);
        usize::try_from(long).or_else(|_| {
            self.damaged(
                "a length that is too large for this \
                                                        machine",
            )
        })
    }

    /// The rest of the line.
    fn line(&mut self) -> Outcome<&'bytes str> {
        let Some(length) = self.bytes[self.at..].iter().position(|byte| *byte == b'\n') else {
            return Err(PickleError::Truncated {
                length: self.bytes.len(),
            });
        };
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length]).or_else(|_| self.damaged("a name that is not UTF-8"))
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Outcome<Id> {
        if self
            .marks
            .last()
            .is_some_and(|mark| *mark >= self.stack.len())
        {
            return self.damaged("no value above the mark");
        }
        match self.stack.pop() {
            Some(id) => Ok(id),
            None => self.damaged("the stack is empty"),
        }
    }

    fn top(&self) -> Outcome<Id> {
        match self.stack.last() {
            Some(id) => Ok(*id),
            None => self.damaged("the stack is empty"),
        }
    }

    /// All above the last mark.
    fn marked(&mut self) -> Outcome<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => self.damaged("no mark"),
        }
    }

    fn text(&mut self, length: usize) -> Outcome {
        let bytes = self.take(length)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => self.push(Value::Text(text.to_owned())),
            Err(_) => return self.damaged("text that is not UTF-8"),
        }
        Ok(())
    }

    fn bytes(&mut self, length: usize) -> Outcome {
        self.take(length)?;
        self.push(Value::Bytes);
        Ok(())
    }

    /// A string of Python 2, which may be text or bytes: kept if it is ASCII.
    fn short_text(&mut self, length: usize) -> Outcome {
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes)
            .ok()
            .filter(|text| text.is_ascii());
        self.push(text.map_or(Value::Bytes, |text| Value::Text(text.to_owned())));
        Ok(())
    }

    /// A whole number of any length, two's complement.
    fn long(&mut self, length: usize) -> Outcome {
        let bytes = self.take(length)?;
        let value = if bytes.len() <= 8 {
            let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
            let mut wide = [if negative { 0xff } else { 0 }; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(wide))
        } else {
            Value::Large
        };
        self.push(value);
        Ok(())
    }

    fn remember(&mut self, slot: usize) -> Outcome {
        let id = self.top()?;
        self.memo.insert(slot, id);
        Ok(())
    }

    fn recall(&mut self, slot: usize) -> Outcome {
        match self.memo.get(&slot) {
            Some(id) => self.stack.push(*id),
            None => return self.damaged(format!("nothing was stored under {slot}")),
        }
        Ok(())
    }

    fn tuple(&mut self, count: usize) -> Outcome {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Outcome {
        let list = self.top()?;
        match &mut self.values[list] {
            Value::List(list) => list.extend(items),
            _ => return self.damaged("appends to a value that is not a list"),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Outcome {
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.values[dict] {
            Value::Dict(entries) if rest.is_empty() => {
                entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
            }
            _ => return self.damaged("sets items of a value that is not a dict"),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Outcome {
        let Some(class) = global(module, name) else {
            // A name may be as long as the file: a message should not.
            let short = |text: &str| text.chars().take(200).collect::<String>();
            return Err(PickleError::Global {
                module: short(module),
                name: short(name),
            });
        };
        self.push(Value::Class(class));
        Ok(())
    }

    #[expect(
        clippy::too_many_lines,
        reason = "a table of opcodes reads best as one"
    )]
    fn run(&mut self) -> Outcome<Id> {
        loop {
            self.opcode_at = self.at;
            let [opcode] = self.array()?;
            match opcode {
                // PROTO and FRAME say nothing that matters here.
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.marked()?),
                b'2' => {
                    let id = self.top()?;
                    self.stack.push(id);
                }
                b'N' => self.push(Value::None),
                0x88 => self.push(Value::Bool(true)),
                0x89 => self.push(Value::Bool(false)),
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(i64::from(value)));
                }
                b'K' => {
                    let [value] = self.array()?;
                    self.push(Value::Int(i64::from(value)));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(i64::from(value)));
                }
                0x8a => {
                    let length = self.u8()?;
                    self.long(length)?;
                }
                0x8b => {
                    let length = self.u32()?;
                    self.long(length)?;
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Value::Float(value));
                }
                b'X' => {
                    let length = self.u32()?;
                    self.text(length)?;
                }
                0x8c => {
                    let length = self.u8()?;
                    self.text(length)?;
                }
                0x8d => {
                    let length = self.u64()?;
                    self.text(length)?;
                }
                b'U' => {
                    let length = self.u8()?;
                    self.short_text(length)?;
                }
                b'T' => {
                    let length = self.u32()?;
                    self.short_text(length)?;
                }
                b'C' => {
                    let length = self.u8()?;
                    self.bytes(length)?;
                }
                b'B' => {
                    let length = self.u32()?;
                    self.bytes(length)?;
                }
                0x8e => {
                    let length = self.u64()?;
                    self.bytes(length)?;
                }
                b']' | 0x8f => self.push(Value::List(Vec::new())),
                b')' => self.push(Value::Tuple(Vec::new())),
                b'}' => self.push(Value::Dict(Vec::new())),
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.marked()?;
                    self.append(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set(&[key, value])?;
                }
                b'u' => {
                    let items = self.marked()?;
                    self.set(&items)?;
                }
                b't' => {
                    let items = self.marked()?;
                    self.push(Value::Tuple(items));
                }
                b'l' | 0x91 => {
                    let items = self.marked()?;
                    self.push(Value::List(items));
                }
                b'd' => {
                    let items = self.marked()?;
                    self.push(Value::Dict(Vec::new()));
                    self.set(&items)?;
                }
                0x85..=0x87 => self.tuple(usize::from(opcode - 0x84))?,
                b'q' => {
                    let slot = self.u8()?;
                    self.remember(slot)?;
                }
                b'r' => {
                    let slot = self.u32()?;
                    self.remember(slot)?;
                }
                0x94 => self.remember(self.memo.len())?,
                b'h' => {
                    let slot = self.u8()?;
                    self.recall(slot)?;
                }
                b'j' => {
                    let slot = self.u32()?;
                    self.recall(slot)?;
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (&self.values[module], &self.values[name]) {
                        (Value::Text(module), Value::Text(name)) => {
                            let (module, name) = (module.clone(), name.clone());
                            self.global(&module, &name)?;
                        }
                        _ => return self.damaged("a global whose name is not text"),
                    }
                }
                b'R' | 0x81 => self.call()?,
                b'b' => self.build()?,
                b'Q' => self.storage()?,
                _ => {
                    return Err(PickleError::Opcode {
                        opcode,
                        shown: char::from(opcode),
                        at: self.opcode_at,
                    });
                }
            }
        }
    }

    /// Calls one of the known globals.
    fn call(&mut self) -> Outcome {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Value::Class(class) = self.values[callee] else {
            return self.damaged("calls a value that is not a global");
        };
        let Value::Tuple(arguments) = &self.values[arguments] else {
            return self.damaged("a call whose arguments are not a tuple");
        };
        match (class, arguments.as_slice()) {
            (Class::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            (Class::Namespace, []) => self.push(Value::Namespace(None)),
            (Class::Size, [shape]) | (Class::RebuildParameter, [shape, ..]) => {
                self.stack.push(*shape);
            }
            (Class::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                let tensor = self.tensor(*storage, *offset, *shape, *strides)?;
                self.push(Value::Tensor(Box::new(tensor)));
            }
            _ => {
                return self.damaged(format!(
                    "{class:?} called with {} arguments",
                    arguments.len()
                ));
            }
        }
        Ok(())
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Outcome<Described> {
        /// More dimensions than any weight has.
        const DIMENSIONS: usize = 8;
        let Value::Storage { key, dtype, .. } = &self.values[storage] else {
            return self.damaged("a tensor without a storage");
        };
        let Value::Int(offset) = self.values[offset] else {
            return self.damaged("the offset of a tensor is not a whole number");
        };
        let lengths = |id: Id| {
            let Value::Tuple(items) = &self.values[id] else {
                return None;
            };
            if items.len() > DIMENSIONS {
                return None;
            }
            items
                .iter()
                .map(|item| match self.values[*item] {
                    Value::Int(length) => u64::try_from(length).ok(),
                    _ => None,
                })
                .collect::<Option<Vec<u64>>>()
        };
        let shape = lengths(shape).and_then(|shape| {
            shape
                .into_iter()
                .map(|length| usize::try_from(length).ok())
                .collect::<Option<Vec<_>>>()
        });
        match (u64::try_from(offset), shape, lengths(strides)) {
            (Ok(offset), Some(shape), Some(strides)) if shape.len() == strides.len() => {
                Ok(Described {
                    key: key.clone(),
                    dtype: *dtype,
                    offset,
                    shape,
                    strides,
                })
            }
            _ => self.damaged("the offset, shape or strides of a tensor are invalid"),
        }
    }

    /// Sets the state of an object (BUILD).
    fn build(&mut self) -> Outcome {
        let state = self.pop()?;
        let target = self.top()?;
        let is_dict = matches!(self.values[state], Value::Dict(_));
        match &mut self.values[target] {
            Value::Namespace(attributes) if is_dict => *attributes = Some(state),
            // A state dict carries its version history as an attribute.
            Value::Dict(_) => {}
            _ => return self.damaged("sets the state of a value that has none"),
        }
        Ok(())
    }

    /// `('storage', class, key, device, length)`: the way in which `PyTorch` names an entry of its
    /// archive. Before 1.6, a sixth part said which stretch of another storage it is, or `None`.
    fn storage(&mut self) -> Outcome {
        let id = self.pop()?;
        let Value::Tuple(parts) = &self.values[id] else {
            return self.damaged("a persistent id that is not a tuple");
        };
        let [kind, class, key, rest @ ..] = parts.as_slice() else {
            return self.damaged("a persistent id that is too short");
        };
        if rest
            .get(2)
            .is_some_and(|view| self.values[*view] != Value::None)
        {
            return self.damaged("a storage that is a part of another one, which is not supported");
        }
        let count = match rest.get(1).map(|count| &self.values[*count]) {
            Some(Value::Int(count)) => u64::try_from(*count).ok(),
            _ => None,
        };
        match (
            &self.values[*kind],
            &self.values[*class],
            &self.values[*key],
        ) {
            (Value::Text(kind), Value::Class(Class::Storage(dtype)), Value::Text(key))
                if kind == "storage" && key.len() <= 64 =>
            {
                let storage = Value::Storage {
                    key: key.clone(),
                    dtype: *dtype,
                    count,
                };
                self.push(storage);
                Ok(())
            }
            _ => self.damaged("a persistent id that does not name a storage"),
        }
    }
}
