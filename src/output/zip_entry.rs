//! Entries of a zip archive whose bytes are checksummed as they are written, by several threads:
//! their headers. The crate `zip` takes checksums itself, of bytes that pass one after the other.
//!
//! Every entry has 64-bit sizes in its local header, as `numpy.savez` writes them, so that the
//! header's length does not depend on what is filled in later.

use std::io::{self, Write};

/// An entry, without its bytes.
pub(super) struct Entry {
    pub name: String,
    pub is_deflated: bool,
    /// Offset of its local header.
    pub at: u64,
    /// CRC-32 of its contents.
    pub sum: u32,
    /// Bytes in the archive.
    pub stored: u64,
    /// Bytes of its contents.
    pub size: u64,
}

/// Version of the format that has 64-bit sizes.
const VERSION: u16 = 45;
/// 1980-01-01, the earliest date that there is: the same rows give the same bytes.
const DATE: u16 = 0x21;
/// An ordinary file, readable by all and writable by its owner.
const MODE: u32 = 0o100_644;
/// In place of 32 bits, where 64 stand elsewhere.
const ELSEWHERE: u32 = u32::MAX;
/// The names are UTF-8.
const FLAGS: u16 = 1 << 11;

impl Entry {
    /// The local header, which stands in front of the bytes.
    pub fn local_header(&self) -> Vec<u8> {
        let mut header = Vec::new();
        header.extend(b"PK\x03\x04");
        self.common(&mut header);
        for size in [ELSEWHERE, ELSEWHERE] {
            header.extend(size.to_le_bytes());
        }
        header.extend(short(self.name.len()).to_le_bytes());
        header.extend(20_u16.to_le_bytes());
        header.extend(self.name.as_bytes());
        wide(&mut header, &[self.size, self.stored]);
        header
    }

    fn common(&self, header: &mut Vec<u8>) {
        let method = if self.is_deflated { 8 } else { 0 };
        for number in [VERSION, FLAGS, method, 0, DATE] {
            header.extend(number.to_le_bytes());
        }
        header.extend(self.sum.to_le_bytes());
    }

    /// Its part of the central directory.
    fn central_header(&self) -> Vec<u8> {
        let mut header = Vec::new();
        header.extend(b"PK\x01\x02");
        // Made by this version, on Unix.
        header.extend((3 << 8 | VERSION).to_le_bytes());
        self.common(&mut header);
        let is_wide = |number: u64| number >= u64::from(ELSEWHERE);
        let all = [self.stored, self.size, self.at];
        let narrow = all.map(|number| u32::try_from(number).unwrap_or(ELSEWHERE));
        header.extend(narrow[0].to_le_bytes());
        header.extend(narrow[1].to_le_bytes());
        header.extend(short(self.name.len()).to_le_bytes());
        // In the order of the format: size, stored, offset.
        let far: Vec<u64> = [self.size, self.stored, self.at]
            .into_iter()
            .filter(|&number| is_wide(number))
            .collect();
        let extra = if far.is_empty() { 0 } else { 4 + 8 * far.len() };
        // Lengths of the extra field and the comment, disk, internal attributes.
        for number in [short(extra), 0, 0, 0] {
            header.extend(number.to_le_bytes());
        }
        header.extend((MODE << 16).to_le_bytes());
        header.extend(narrow[2].to_le_bytes());
        header.extend(self.name.as_bytes());
        if !far.is_empty() {
            wide(&mut header, &far);
        }
        header
    }
}

/// A length that is known to be small.
fn short(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

/// The extra field with 64-bit numbers.
fn wide(header: &mut Vec<u8>, numbers: &[u64]) {
    header.extend(1_u16.to_le_bytes());
    header.extend(short(8 * numbers.len()).to_le_bytes());
    for number in numbers {
        header.extend(number.to_le_bytes());
    }
}

/// Writes the central directory of these entries, which starts at the offset `at`, and the end of
/// the archive.
pub(super) fn write_directory(to: &mut impl Write, at: u64, entries: &[Entry]) -> io::Result<()> {
    let mut size = 0;
    for entry in entries {
        let header = entry.central_header();
        to.write_all(&header)?;
        size += header.len() as u64;
    }
    let count = entries.len() as u64;
    let mut end = Vec::new();
    if at + size >= u64::from(ELSEWHERE) {
        end.extend(b"PK\x06\x06");
        end.extend(44_u64.to_le_bytes());
        end.extend((3 << 8 | VERSION).to_le_bytes());
        end.extend(VERSION.to_le_bytes());
        end.extend([0; 8]);
        for number in [count, count, size, at] {
            end.extend(number.to_le_bytes());
        }
        end.extend(b"PK\x06\x07");
        end.extend([0; 4]);
        end.extend((at + size).to_le_bytes());
        end.extend(1_u32.to_le_bytes());
    }
    end.extend(b"PK\x05\x06");
    end.extend([0; 4]);
    for _ in 0..2 {
        end.extend(short(entries.len()).to_le_bytes());
    }
    for number in [size, at] {
        let number = u32::try_from(number).unwrap_or(ELSEWHERE);
        end.extend(number.to_le_bytes());
    }
    end.extend([0; 2]);
    to.write_all(&end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Cursor, Read as _, Seek as _, SeekFrom};

    use super::*;

    /// Of entries with gaps of many gigabytes between them, in a file that is mostly a hole.
    #[test]
    fn an_archive_of_any_size_is_what_the_crate_reads() {
        for gap in [0, 3 << 30, 5 << 30] {
            let mut file = tempfile::tempfile().unwrap();
            let mut entries = Vec::new();
            for (number, text) in ["one", "two two", ""].into_iter().enumerate() {
                let at = file.seek(SeekFrom::End(0)).unwrap();
                let entry = Entry {
                    name: format!("entry {number}"),
                    is_deflated: false,
                    at,
                    sum: crc32fast::hash(text.as_bytes()),
                    stored: text.len() as u64,
                    size: text.len() as u64,
                };
                file.write_all(&entry.local_header()).unwrap();
                file.write_all(text.as_bytes()).unwrap();
                let end = file.stream_position().unwrap();
                file.set_len(end + gap).unwrap();
                entries.push(entry);
            }
            let at = file.seek(SeekFrom::End(0)).unwrap();
            write_directory(&mut file, at, &entries).unwrap();
            let mut zip = zip::ZipArchive::new(&mut file).unwrap();
            for (number, expected) in ["one", "two two", ""].into_iter().enumerate() {
                let mut text = String::new();
                let mut entry = zip.by_index(number).unwrap();
                assert_eq!(entry.name().unwrap(), format!("entry {number}"));
                entry.read_to_string(&mut text).unwrap();
                assert_eq!(text, expected);
            }
        }
    }

    #[test]
    fn an_entry_of_many_gigabytes_has_its_size() {
        let entry = Entry {
            name: "large".to_owned(),
            is_deflated: false,
            at: 0,
            sum: 7,
            stored: 6 << 30,
            size: 6 << 30,
        };
        let mut bytes = entry.local_header();
        let at = bytes.len() as u64 + (6 << 30);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file.set_len(at).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        bytes.clear();
        write_directory(&mut bytes, at, &[entry]).unwrap();
        file.write_all(&bytes).unwrap();
        let mut zip = zip::ZipArchive::new(&mut file).unwrap();
        let large = zip.by_index(0).unwrap();
        assert_eq!((large.size(), large.crc32()), (6 << 30, 7));
        let mut nothing = Vec::new();
        write_directory(&mut nothing, 0, &[]).unwrap();
        assert!(
            zip::ZipArchive::new(Cursor::new(nothing))
                .unwrap()
                .is_empty()
        );
    }
}
