//! Checks of input files, and of the sample names derived from them, before a file is read.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::records::Source;
use crate::text::escape_bytes;

/// Maximum length of a sample name in bytes. File names are limited to 255 bytes; this leaves room
/// for the extension and for a temporary name.
pub(super) const LONGEST_SAMPLE: usize = 200;

/// Extensions of compressed files, removed when a sample is named after its file.
const COMPRESSION_SUFFIXES: [&str; 8] = ["gz", "bgz", "bgzf", "bz2", "xz", "zst", "zstd", "gzip"];

/// Extensions of sequence files, removed when a sample is named after its file.
pub(super) const SEQUENCE_SUFFIXES: [&str; 13] = [
    "fa", "faa", "fasta", "fas", "fna", "ffn", "frn", "fsa", "mpfa", "pep", "seq", "fq", "fastq",
];

/// Why a file cannot be read, as far as this is known without reading it.
pub(super) fn trouble_with(source: &Source) -> Option<String> {
    let Source::Path(path) = source else {
        return None;
    };
    let about = match fs::metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = if path.is_symlink() {
                "is a link to a file that does not exist"
            } else {
                "no such file"
            };
            return Some(text.to_owned());
        }
        Err(error) => return Some(format!("cannot be opened: {error}")),
    };
    if about.is_dir() {
        return Some("is a folder; name the files in it".to_owned());
    }
    // Opening and closing a named pipe here would break it for the real reader.
    if !about.is_file() {
        return None;
    }
    File::open(path)
        .err()
        .map(|error| format!("cannot be opened: {error}"))
}

/// Why a sample name cannot be used as a file name.
pub(super) fn trouble_with_name(sample: &str) -> Option<&'static str> {
    if sample.is_empty() {
        Some("is empty, but it names the output file")
    } else if sample.contains(['/', '\\']) {
        Some("contains a path separator, but it names a file in the output folder")
    } else if sample.starts_with('.') {
        Some("starts with a dot, so the output would be a hidden file")
    } else if sample.starts_with('-') {
        Some("starts with `-`, so other tools would take the output file for an option")
    } else if sample.chars().any(char::is_control) {
        Some("contains a control character, but it names the output file")
    } else if sample.len() > LONGEST_SAMPLE {
        Some("is longer than 200 bytes, but it names the output file")
    } else {
        None
    }
}

/// The name of a file without its extensions.
pub(super) fn sample_of(path: &Path) -> String {
    // Bytes that are not UTF-8, and backslashes, which are path separators on other systems, are
    // escaped as in URLs, so that different names stay different.
    let name = path.file_name().unwrap_or_default();
    let name = escape_bytes(name.as_bytes(), "%").replace('\\', "%5c");
    let bare = without_suffix(&name, &COMPRESSION_SUFFIXES);
    without_suffix(bare, &SEQUENCE_SUFFIXES).to_owned()
}

/// The name of a file without the extension of a compression.
pub(super) fn without_compression(name: &str) -> &str {
    without_suffix(name, &COMPRESSION_SUFFIXES)
}

/// Whether a file has the extension of a sequence file, compressed or not.
pub(super) fn has_sequence_suffix(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let bare = without_compression(&name);
    without_suffix(bare, &SEQUENCE_SUFFIXES) != bare
}

fn without_suffix<'a>(name: &'a str, suffixes: &[&str]) -> &'a str {
    match name.rsplit_once('.') {
        Some((bare, suffix))
            if !bare.is_empty() && suffixes.contains(&suffix.to_ascii_lowercase().as_str()) =>
        {
            bare
        }
        _ => name,
    }
}
