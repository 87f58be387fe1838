//! Writes a new manifest as YAML or CSV, and checks that it reads as what was written.

use std::path::{Path, PathBuf};

use saphyr::{Mapping, Scalar, Yaml, YamlEmitter};

use super::error::{ManifestErrors, Mistakes};
use super::{table, yaml};
use crate::text::lossless_name;

/// A sample and its file, to be written to a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The sample name, unique in the manifest.
    pub sample: String,
    /// The absolute path of the sequence file.
    pub path: PathBuf,
}

/// The format of a manifest that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ManifestFormat {
    /// `model:` once, and a list of files.
    #[default]
    Yaml,
    /// A row per file, with the columns `sample`, `fasta` and, if a model is named, `model`.
    Csv,
}

impl ManifestFormat {
    /// The extension of a file in this format.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Yaml => "yaml",
            Self::Csv => "csv",
        }
    }

    /// The format of a file by its extension, if it has one of a manifest that can be written.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "yaml" | "yml" => Some(Self::Yaml),
            "csv" => Some(Self::Csv),
            _ => None,
        }
    }
}

/// The text of a manifest.
///
/// # Errors
/// If a path or name would not be read back as it is, such as a path that ends in white space.
pub fn text(
    entries: &[Entry],
    model: Option<&str>,
    format: ManifestFormat,
) -> Result<String, ManifestErrors> {
    let text = match format {
        ManifestFormat::Yaml => yaml_text(entries, model),
        ManifestFormat::Csv => csv_text(entries, model),
    };
    check(&text, entries, format)?;
    Ok(text)
}

fn yaml_text(entries: &[Entry], model: Option<&str>) -> String {
    let word = |text: &str| Yaml::Value(Scalar::String(text.to_owned().into()));
    let mapping = |pairs: &[(&str, Yaml<'static>)]| {
        let pairs = pairs.iter().map(|(key, value)| (word(key), value.clone()));
        Yaml::Mapping(pairs.collect::<Mapping>())
    };
    let files = entries.iter().map(|entry| {
        mapping(&[
            ("sample", word(&entry.sample)),
            ("fasta", word(&entry.path.to_string_lossy())),
        ])
    });
    let files = Yaml::Sequence(files.collect());
    let model = model.map(|model| ("model", word(model)));
    let top: Vec<_> = model.into_iter().chain([("files", files)]).collect();
    let mut text = String::new();
    let mut emitter = YamlEmitter::new(&mut text);
    emitter
        .dump(&mapping(&top))
        .expect("writing to a String cannot fail");
    // The mark of a document's start is not needed, and not what people write.
    let text = text.strip_prefix("---\n").unwrap_or(&text);
    format!("{text}\n")
}

fn csv_text(entries: &[Entry], model: Option<&str>) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let columns = ["sample", "fasta", "model"];
    let used = 2 + usize::from(model.is_some());
    let mut row = |cells: [&str; 3]| {
        writer
            .write_record(&cells[..used])
            .expect("writing to memory cannot fail");
    };
    row(columns);
    for entry in entries {
        let path = entry.path.to_string_lossy();
        row([&entry.sample, &path, model.unwrap_or_default()]);
    }
    let bytes = writer.into_inner().expect("writing to memory cannot fail");
    String::from_utf8(bytes).expect("what was written is UTF-8")
}

/// Reads a text back and compares it with the entries.
fn check(text: &str, entries: &[Entry], format: ManifestFormat) -> Result<(), ManifestErrors> {
    let mut mistakes = Mistakes::default();
    let draft = match format {
        ManifestFormat::Yaml => yaml::parse(text, &mut mistakes),
        ManifestFormat::Csv => table::parse(text, b',', &mut mistakes),
    };
    mistakes.into_errors(None)?;
    let read = draft.map(|draft| draft.entries).unwrap_or_default();
    let mut mistakes = Mistakes::default();
    for (at, entry) in entries.iter().enumerate() {
        let value = |key: &str| {
            let fields = read.get(at)?.fields.iter();
            fields
                .filter(|field| field.key == key)
                .map(|field| field.text.as_str())
                .next()
        };
        if value("sample") != Some(&entry.sample) || value("fasta") != entry.path.to_str() {
            mistakes.add(
                None,
                format!(
                    "{}: the path cannot be written to a manifest, because it would be read as \
                     another one (it may end in white space): rename the file",
                    lossless_name(entry.path.as_os_str()).escape_debug()
                ),
            );
        }
    }
    mistakes.into_errors(None)
}
