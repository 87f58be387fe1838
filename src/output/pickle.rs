//! Python's pickle format, protocol 2, as `torch.save` writes it: the few opcodes that dicts,
//! lists, text, numbers and tensors need. The values of tensors are not in the pickle, but in
//! entries of the archive.

use std::io::{self, Write};

use super::precision::OutputPrecision;

/// Number of list items per APPENDS opcode, as in Python's own pickler.
const BATCH: usize = 1000;

/// Writes one pickle, opcode by opcode.
pub(super) struct Pickler<W> {
    to: W,
}

/// The values of a tensor.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Float(OutputPrecision),
    Int64,
}

impl Kind {
    /// The storage class for such values.
    fn storage(self) -> &'static str {
        match self {
            Kind::Float(OutputPrecision::Fp32) => "FloatStorage",
            Kind::Float(OutputPrecision::Fp16) => "HalfStorage",
            Kind::Int64 => "LongStorage",
        }
    }
}

impl<W: Write> Pickler<W> {
    /// Starts a pickle.
    pub fn new(mut to: W) -> io::Result<Self> {
        to.write_all(b"\x80\x02")?;
        Ok(Self { to })
    }

    /// Writes the opcode that ends a pickle, and gives the writer back.
    pub fn end(mut self) -> io::Result<W> {
        self.to.write_all(b".")?;
        Ok(self.to)
    }

    /// A dict: `items` writes a text and a value for each item.
    pub fn dict(&mut self, items: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        self.to.write_all(b"}(")?;
        items(self)?;
        self.to.write_all(b"u")
    }

    /// Starts a list; [`List::item`] must be called before each item, and [`List::end`] after the
    /// last.
    pub fn list(&mut self) -> io::Result<List> {
        self.to.write_all(b"]")?;
        Ok(List { items: 0 })
    }

    /// Appends a text, as `BINUNICODE`.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        self.to.write_all(b"X")?;
        self.to.write_all(&length.to_le_bytes())?;
        self.to.write_all(text.as_bytes())
    }

    /// Appends a whole number, in as few bytes as its size needs.
    pub fn int(&mut self, number: u64) -> io::Result<()> {
        if let Ok(byte) = u8::try_from(number) {
            self.to.write_all(&[b'K', byte])
        } else if let Ok(short) = u16::try_from(number) {
            self.to.write_all(b"M")?;
            self.to.write_all(&short.to_le_bytes())
        } else if let Ok(long) = i32::try_from(number) {
            self.to.write_all(b"J")?;
            self.to.write_all(&long.to_le_bytes())
        } else {
            // Nine bytes, so that the number is never taken for a negative one.
            self.to.write_all(b"\x8a\x09")?;
            self.to.write_all(&number.to_le_bytes())?;
            self.to.write_all(b"\0")
        }
    }

    /// A float of 64 bits, which is what Python has.
    pub fn float(&mut self, number: f64) -> io::Result<()> {
        self.to.write_all(b"G")?;
        self.to.write_all(&number.to_be_bytes())
    }

    /// A tensor: all values of the entry `data/KEY`, row after row.
    pub fn tensor(&mut self, key: &str, kind: Kind, shape: &[u64]) -> io::Result<()> {
        let count = shape.iter().product();
        self.to
            .write_all(b"ctorch._utils\n_rebuild_tensor_v2\n((")?;
        self.text("storage")?;
        let storage = kind.storage();
        self.to
            .write_all(format!("ctorch\n{storage}\n").as_bytes())?;
        self.text(key)?;
        self.text("cpu")?;
        self.int(count)?;
        // The persistent id ends; offset 0; shape; strides; no gradient; no hooks.
        self.to.write_all(b"tQK\0(")?;
        shape.iter().try_for_each(|&side| self.int(side))?;
        self.to.write_all(b"t(")?;
        for axis in 0..shape.len() {
            self.int(shape[axis + 1..].iter().product())?;
        }
        self.to.write_all(b"t\x89ccollections\nOrderedDict\n)RtR")
    }
}

/// A list under way.
pub(super) struct List {
    items: usize,
}

impl List {
    /// Must be called before each item.
    pub fn item(&mut self, pickler: &mut Pickler<impl Write>) -> io::Result<()> {
        if self.items == BATCH {
            pickler.to.write_all(b"e")?;
            self.items = 0;
        }
        if self.items == 0 {
            pickler.to.write_all(b"(")?;
        }
        self.items += 1;
        Ok(())
    }

    /// Must be called after the last item.
    pub fn end(self, pickler: &mut Pickler<impl Write>) -> io::Result<()> {
        if self.items > 0 {
            pickler.to.write_all(b"e")?;
        }
        Ok(())
    }
}
