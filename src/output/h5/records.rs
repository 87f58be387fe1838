//! A dataset for each record, written as the records come.
//!
//! `rust_hdf5::H5File` keeps all that it knows of each dataset, some 4 KB, until the file is
//! closed. Here the parts of the file are put one after another instead: a record's vectors, then,
//! for many records together, their texts and the headers of their datasets; at the end the index
//! of the names, the root and the superblock. `rust-hdf5` lays out and encodes each of them. Of a
//! record in the file, its id and the place of its header are kept.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use rust_hdf5::format::creation_order::CreationOrder;
use rust_hdf5::format::dense_attr::build_dense_attributes;
use rust_hdf5::format::dense_link::build_dense_links;
use rust_hdf5::format::fractal_heap_write::HeapBlock;
use rust_hdf5::format::global_heap::{
    GlobalHeapCollection, GlobalHeapObject, encode_vlen_reference, vlen_seq_len,
};
use rust_hdf5::format::messages::attr_info::AttributeInfoMessage;
use rust_hdf5::format::messages::attribute::{AttributeEntry, AttributeMessage};
use rust_hdf5::format::messages::data_layout::DataLayoutMessage;
use rust_hdf5::format::messages::dataspace::DataspaceMessage;
use rust_hdf5::format::messages::datatype::DatatypeMessage;
use rust_hdf5::format::messages::fill_value::FillValueMessage;
use rust_hdf5::format::messages::group_info::GroupInfoMessage;
use rust_hdf5::format::messages::link::LinkMessage;
use rust_hdf5::format::messages::{
    MSG_ATTR_INFO, MSG_ATTRIBUTE, MSG_DATA_LAYOUT, MSG_DATASPACE, MSG_DATATYPE, MSG_FILL_VALUE,
    MSG_FLAG_CONSTANT, MSG_FLAG_DONTSHARE, MSG_GROUP_INFO, MSG_LINK_INFO,
};
use rust_hdf5::format::object_header::ObjectHeader;
use rust_hdf5::format::superblock::{SUPERBLOCK_V2, SuperblockV2V3};
use rust_hdf5::format::{FormatContext, FormatError, UNDEF_ADDR};
use rust_hdf5::{H5File, Hdf5Error};

use super::super::error::OutputError;
use super::super::file::Written;
use super::super::layout::Layout;
use super::super::parallel::ParallelFile;
use super::super::precision::OutputPrecision;
use super::super::reader::{BLOCK_BYTES, Reader};
use super::super::rows::{Block, OpenRow, Rows};
use super::super::sink::Sink;
use super::datasets::{check_shape, length, precision, rows_of, signed, writing};
use crate::vectors::Vectors;

/// Bytes of a dataset's name at most.
const NAME_BYTES: usize = 255;
/// Bytes of texts that are put into the file together. A heap of them holds 65,535 texts at most,
/// each of which counts as `TEXT_BYTES` more than it has.
const TEXTS_BYTES: usize = 64 << 10;
const TEXT_BYTES: usize = 16;
/// Addresses and lengths have 8 bytes.
const CONTEXT: FormatContext = FormatContext {
    sizeof_addr: 8,
    sizeof_size: 8,
};

/// Writes one file with a dataset for each record.
pub(super) struct RecordsSink {
    layout: Layout,
    file: Parts,
    open: OpenRow,
    row: i64,
    /// Records whose headers are not in the file yet, and the size of their texts in bytes.
    pending: Vec<Record>,
    pending_bytes: usize,
    /// Each record's id, and where the header of its dataset is.
    links: Vec<(Box<str>, u64)>,
}

/// A record whose vectors are in the file, possibly except the last ones.
struct Record {
    id: Box<str>,
    /// Offset and number of its vectors.
    address: u64,
    vectors: usize,
    texts: [(&'static str, String); 3],
    numbers: [(&'static str, i64); 2],
}

impl RecordsSink {
    pub(super) fn create(layout: Layout) -> Result<Self, OutputError> {
        let mut file = Parts(ParallelFile::create(&layout.path)?);
        // The superblock is written at the end.
        file.write_all(&[0; 64])
            .map_err(|e| writing(&layout.path, e.into()))?;
        Ok(RecordsSink {
            file,
            open: OpenRow::default(),
            row: 0,
            pending: Vec::new(),
            pending_bytes: 0,
            links: Vec::new(),
            layout,
        })
    }

    fn append(&mut self, block: Block) -> Result<(), Hdf5Error> {
        let precision = self.layout.precision;
        let (mut rows, first, values) = block.split();
        self.file.append_values(first, precision)?;
        let lengths = signed(&rows.lengths);
        for (row, (own, length)) in values.into_iter().zip(lengths).enumerate() {
            if self.pending_bytes >= TEXTS_BYTES {
                self.write_headers()?;
            }
            let id = rows.ids[row].as_str().into();
            let texts = [
                ("id", std::mem::take(&mut rows.ids[row])),
                ("header", std::mem::take(&mut rows.headers[row])),
                ("status", std::mem::take(&mut rows.status[row])),
            ];
            self.pending_bytes += texts
                .iter()
                .map(|(_, text)| text.len() + TEXT_BYTES)
                .sum::<usize>();
            self.pending.push(Record {
                id,
                address: self.file.begin()?,
                vectors: rows.vectors[row],
                texts,
                numbers: [("length", length), ("row", self.row)],
            });
            self.file.append_values(own, precision)?;
            self.row += 1;
        }
        Ok(())
    }

    /// Puts the texts of the pending records and the headers of their datasets behind their
    /// vectors.
    fn write_headers(&mut self) -> Result<(), Hdf5Error> {
        self.pending_bytes = 0;
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return Ok(());
        }
        let mut texts = Texts::new(self.file.begin()?);
        let mut headers = Vec::with_capacity(pending.len());
        for record in &pending {
            headers.push(record.header(&self.layout, &mut texts)?);
        }
        self.file.write_all(&texts.heap.encode(&CONTEXT))?;
        for (record, header) in pending.into_iter().zip(headers) {
            let address = self.file.begin()?;
            self.file.write_all(&header.encode()?)?;
            self.links.push((record.id, address));
        }
        Ok(())
    }

    /// Writes what makes the parts a file. Returns the superblock, which stands at its start.
    fn end(&mut self) -> Result<Vec<u8>, Hdf5Error> {
        self.write_headers()?;
        let mut root = ObjectHeader::new();
        let records = std::mem::take(&mut self.links);
        let mut names = Names::of(records.iter().map(|(id, _)| &**id));
        let links: Vec<LinkMessage> = records
            .iter()
            .map(|(id, address)| LinkMessage::hard(&names.name(id), *address))
            .collect();
        drop(names);
        drop(records);
        let order = CreationOrder::Untracked;
        let index = self.file.blocks(|allocate| {
            let built = build_dense_links(&links, &CONTEXT, order, allocate)?;
            Ok((built.linfo, built.blocks))
        })?;
        drop(links);
        root.add_message(MSG_LINK_INFO, 0, index.encode(&CONTEXT));
        let group = GroupInfoMessage::default().encode();
        root.add_message(MSG_GROUP_INFO, MSG_FLAG_CONSTANT, group);

        let mut texts = Texts::new(self.file.begin()?);
        let hidden = self.layout.hidden.to_string();
        let provenance = self.layout.provenance.iter();
        let attributes = provenance
            .map(|(key, value)| (key.as_str(), value))
            .chain([("hidden", &hidden)])
            .map(|(key, value)| Ok(texts.attribute(key, value)?.into()))
            .collect::<Result<Vec<AttributeEntry>, FormatError>>()?;
        self.file.write_all(&texts.heap.encode(&CONTEXT))?;
        let index = self.file.blocks(|allocate| {
            let built = build_dense_attributes(&attributes, &CONTEXT, order, allocate)?;
            Ok((built.ainfo, built.blocks))
        })?;
        root.add_message(MSG_ATTR_INFO, MSG_FLAG_DONTSHARE, index.encode(&CONTEXT));

        let address = self.file.begin()?;
        self.file.write_all(&root.encode()?)?;
        let superblock = SuperblockV2V3 {
            version: SUPERBLOCK_V2,
            sizeof_offsets: CONTEXT.sizeof_addr,
            sizeof_lengths: CONTEXT.sizeof_size,
            file_consistency_flags: 0,
            base_address: 0,
            superblock_extension_address: UNDEF_ADDR,
            end_of_file_address: self.file.0.at(),
            root_group_object_header_address: address,
        };
        Ok(superblock.encode())
    }
}

impl Sink for RecordsSink {
    fn put(&mut self, block: Block) -> Result<(), OutputError> {
        block.check(&self.layout, &mut self.open)?;
        self.append(block)
            .map_err(|e| writing(&self.layout.path, e))
    }

    fn detach(&mut self) {
        self.file.0.detach();
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<Written>, OutputError> {
        self.open.check(&self.layout)?;
        let superblock = self.end().map_err(|e| writing(&self.layout.path, e))?;
        Ok(vec![self.file.0.finish(&[(0, superblock)])?])
    }
}

impl Record {
    /// The header of its dataset.
    fn header(&self, layout: &Layout, texts: &mut Texts) -> Result<ObjectHeader, FormatError> {
        let mut header = ObjectHeader::new();
        let shape = if layout.is_contacts() {
            [self.vectors.isqrt() as u64; 2]
        } else {
            [self.vectors as u64, layout.hidden as u64]
        };
        let shape = DataspaceMessage::simple(&shape);
        header.add_message(MSG_DATASPACE, 0, shape.encode(&CONTEXT));
        let kind = match layout.precision {
            OutputPrecision::Fp32 => DatatypeMessage::f32_type(),
            OutputPrecision::Fp16 => DatatypeMessage::f16_type(),
        };
        header.add_message(MSG_DATATYPE, MSG_FLAG_CONSTANT, kind.encode(&CONTEXT));
        let fill = FillValueMessage::default().encode();
        header.add_message(MSG_FILL_VALUE, MSG_FLAG_CONSTANT, fill);
        let bytes = (self.vectors * layout.hidden * layout.precision.bytes()) as u64;
        let address = if bytes == 0 { UNDEF_ADDR } else { self.address };
        let place = DataLayoutMessage::contiguous(address, bytes).encode(&CONTEXT);
        header.add_message(MSG_DATA_LAYOUT, 0, place);
        let info = AttributeInfoMessage::compact().encode(&CONTEXT);
        header.add_message(MSG_ATTR_INFO, MSG_FLAG_DONTSHARE, info);
        for (name, text) in &self.texts {
            let attribute = texts.attribute(name, text)?;
            header.add_message(MSG_ATTRIBUTE, 0, attribute.encode(&CONTEXT));
        }
        for (name, number) in self.numbers {
            let kind = DatatypeMessage::i64_type();
            let attribute =
                AttributeMessage::scalar_numeric(name, kind, number.to_le_bytes().to_vec());
            header.add_message(MSG_ATTRIBUTE, 0, attribute.encode(&CONTEXT));
        }
        Ok(header)
    }
}

/// Texts of attributes, which are put into the file together.
struct Texts {
    address: u64,
    heap: GlobalHeapCollection,
}

impl Texts {
    /// Texts to be written at that offset.
    fn new(address: u64) -> Self {
        let heap = GlobalHeapCollection::new();
        Texts { address, heap }
    }

    /// An attribute that refers to its text.
    fn attribute(&mut self, name: &str, text: &str) -> Result<AttributeMessage, FormatError> {
        let index = u16::try_from(self.heap.objects.len() + 1)
            .map_err(|_| FormatError::InvalidData("too many texts in a heap".into()))?;
        self.heap.objects.push(GlobalHeapObject {
            index,
            ref_count: 0,
            data: text.as_bytes().to_vec(),
        });
        let length = vlen_seq_len(text.len())?;
        Ok(AttributeMessage {
            name: name.to_owned(),
            datatype: DatatypeMessage::vlen_string_utf8(),
            dataspace: DataspaceMessage::scalar(),
            data: encode_vlen_reference(length, self.address, index.into(), &CONTEXT),
        })
    }
}

/// A file whose parts are written one after another.
struct Parts(ParallelFile);

impl Parts {
    /// Offset of the next part, a multiple of 8.
    fn begin(&mut self) -> io::Result<u64> {
        self.fill(self.0.at().next_multiple_of(8))?;
        Ok(self.0.at())
    }

    fn append_values(&mut self, values: Vectors, precision: OutputPrecision) -> io::Result<()> {
        self.0.append_values(values, precision)
    }

    /// Writes zeros up to that place.
    fn fill(&mut self, to: u64) -> io::Result<()> {
        let zeros = to.saturating_sub(self.0.at());
        io::copy(&mut io::Read::take(io::repeat(0), zeros), self)?;
        Ok(())
    }

    /// Writes blocks that are built for the places that are given to them.
    fn blocks<T>(
        &mut self,
        build: impl FnOnce(&mut dyn FnMut(u64) -> u64) -> Result<(T, Vec<HeapBlock>), FormatError>,
    ) -> Result<T, Hdf5Error> {
        let mut end = self.begin()?;
        let mut allocate = |bytes: u64| {
            let address = end;
            end += bytes;
            address
        };
        let (index, mut blocks) = build(&mut allocate)?;
        blocks.sort_unstable_by_key(|block| block.addr);
        for block in blocks {
            self.fill(block.addr)?;
            self.write_all(&block.image)?;
        }
        self.fill(end)?;
        Ok(index)
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Assigns each record a unique name: its id, if it is a valid name that no earlier record has.
struct Names<'i> {
    /// The ids that are names, until their first records have them.
    own: HashSet<&'i str>,
    /// For each name that a record has or will have, the number that may follow it next.
    taken: HashMap<String, u64>,
}

impl<'i> Names<'i> {
    /// Of records with these ids. Whoever looks up an id must find that record and no other, so no
    /// name that is made up is the id of another record, whichever comes first.
    fn of(ids: impl Iterator<Item = &'i str>) -> Self {
        let own: HashSet<&str> = ids.filter(|id| plain(id) == *id).collect();
        let taken = own.iter().map(|&id| (id.to_owned(), 2)).collect();
        Names { own, taken }
    }

    /// The name of the next record.
    fn name(&mut self, id: &str) -> String {
        if self.own.remove(id) {
            return id.to_owned();
        }
        let name = plain(id);
        let Some(number) = self.taken.get_mut(&name) else {
            self.taken.insert(name.clone(), 2);
            return name;
        };
        let mut next = *number;
        let free = loop {
            let numbered = format!("{name}#{next}");
            next += 1;
            if !self.taken.contains_key(&numbered) {
                break numbered;
            }
        };
        self.taken.insert(name, next);
        self.taken.insert(free.clone(), 2);
        free
    }
}

/// An id as a dataset's name.
fn plain(id: &str) -> String {
    let mut name = id.replace(['/', '\0'], "_");
    if matches!(name.as_str(), "" | "." | "..") {
        name = "_".repeat(name.len().max(1));
    }
    let end = (0..=NAME_BYTES.min(name.len()))
        .rev()
        .find(|&end| name.is_char_boundary(end));
    name.truncate(end.unwrap_or(0));
    name
}

/// Reads such a file of `size` bytes, with datasets of these names.
pub(super) fn open(
    h5: H5File,
    names: &[String],
    mut layout: Layout,
    size: u64,
) -> Result<Reader, Hdf5Error> {
    let mut records = Vec::with_capacity(names.len());
    for name in names {
        let dataset = h5.dataset(name)?;
        let row = dataset.attr("row")?.read_numeric::<i64>()?;
        let kind = precision(&dataset)?;
        let [rows, hidden] = [dataset.shape()[0], dataset.shape()[1]];
        check_shape(rows, hidden, kind, size)?;
        if records.is_empty() {
            (layout.precision, layout.hidden) = (kind, hidden);
        }
        if (kind, hidden) != (layout.precision, layout.hidden) {
            return Err(Hdf5Error::TypeMismatch(format!(
                "dataset {name:?} differs from the others in type or width"
            )));
        }
        records.push((row, name.clone()));
    }
    records.sort();
    let count = records.len() as u64;
    let (path, kind, hidden) = (layout.path.clone(), layout.precision, layout.hidden);
    let mut records = records.into_iter();
    let most = (BLOCK_BYTES / (4 * hidden).max(1)).max(1);
    // The dataset that was read in part, and up to where.
    let mut part: Option<(String, usize)> = None;
    let read = move |rows: &mut Rows, name: &str, from: usize| -> Result<usize, Hdf5Error> {
        let dataset = h5.dataset(name)?;
        let vectors = dataset.shape()[0];
        let count = (vectors - from).min(most - rows.values.len() / hidden.max(1));
        if from == 0 {
            let text = |key: &str| dataset.attr(key)?.read_string();
            rows.ids.push(text("id")?);
            rows.headers.push(text("header")?);
            rows.status.push(text("status")?);
            let number = dataset.attr("length")?.read_numeric::<i64>()?;
            rows.lengths.push(length(number)?);
            rows.vectors.push(vectors);
        } else {
            rows.before = count;
        }
        let values = rows_of(&dataset, kind, from, count, hidden)?;
        rows.values.extend(values);
        rows.after = vectors - from - count;
        Ok(from + count)
    };
    let blocks = std::iter::from_fn(move || {
        let mut rows = Rows::new(hidden);
        while rows.values.len() < most * hidden
            && let Some((name, from)) = part.take().or_else(|| Some((records.next()?.1, 0)))
        {
            match read(&mut rows, &name, from) {
                Ok(end) if rows.after > 0 => part = Some((name, end)),
                Ok(_) => {}
                Err(error) => {
                    records = Vec::new().into_iter();
                    let what = format!("dataset {name:?}: {error}");
                    return Some(Err(OutputError::malformed(&path, what)));
                }
            }
        }
        let is_nothing = rows.is_empty() && rows.before == 0;
        (!is_nothing).then_some(Ok(rows))
    });
    Ok(Reader {
        layout,
        rows: count,
        blocks: Box::new(blocks),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_can_be_a_name_is_that_of_its_first_record() {
        let ids = ["a/b", "a_b", "a", "a", "a#2", "a/b", ".", "_", "a"];
        let mut names = Names::of(ids.into_iter());
        let given = ids.map(|id| names.name(id));
        let expected = [
            "a_b#2", "a_b", "a", "a#3", "a#2", "a_b#3", "_#2", "_", "a#4",
        ];
        assert_eq!(given, expected);
    }
}
