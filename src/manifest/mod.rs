//! Turns a manifest, or a list of files on the command line, into a validated list of jobs.
//!
//! A manifest is YAML (which includes JSON), CSV or TSV. All errors are reported together, with
//! line numbers, before a model is loaded: unknown keys, invalid values, missing or repeated sample
//! names, and missing input files.

mod table;
mod yaml;

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::records::Source;
use crate::settings::{OptionError, Overrides, RunOverrides, Settings};
use crate::text::{counted, escape_bytes};

/// The keys of the input file; `fastq` is a synonym.
const INPUT_KEYS: [&str; 2] = ["fasta", "fastq"];

/// Options that can be given only on the command line, because they belong to one run on one
/// machine.
pub const COMMAND_LINE_ONLY: [&str; 7] = [
    "out",
    "resume",
    "cache_dir",
    "ort_lib",
    "reload_per_file",
    "trace",
    "quiet",
];

/// Maximum length of a sample name in bytes. File names are limited to 255 bytes; this leaves room
/// for the extension and for a temporary name.
const LONGEST_SAMPLE: usize = 200;

/// Extensions of compressed files, removed when a sample is named after its file.
const COMPRESSION_SUFFIXES: [&str; 8] = ["gz", "bgz", "bgzf", "bz2", "xz", "zst", "zstd", "gzip"];

/// Extensions of sequence files, removed when a sample is named after its file.
const SEQUENCE_SUFFIXES: [&str; 13] = [
    "fa", "faa", "fasta", "fas", "fna", "ffn", "frn", "fsa", "mpfa", "pep", "seq", "fq", "fastq",
];

/// A validated manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The jobs in the manifest's order, at least one.
    pub jobs: Vec<Job>,
    /// Options of the whole run, from the top level.
    pub run: RunOverrides,
}

/// One input file, its output name and its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The sample name, which names the output file: a valid file name, unique among the jobs.
    pub sample: String,
    /// The input.
    pub source: Source,
    /// Its options.
    pub settings: Settings,
    /// The line of the manifest, from 1; `None` for a file named on the command line.
    pub line: Option<usize>,
}

/// All errors found in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestErrors {
    /// The manifest; `None` for a list of files on the command line.
    pub path: Option<PathBuf>,
    /// The errors in order of lines, at least one.
    pub mistakes: Vec<Mistake>,
}

/// One error in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1, if known.
    pub line: Option<usize>,
    /// What.
    pub text: String,
}

impl fmt::Display for ManifestErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.mistakes.iter().enumerate() {
            if number > 0 {
                f.write_char('\n')?;
            }
            match (&self.path, mistake.line) {
                (Some(path), Some(line)) => write!(f, "{}:{line}: ", path.display())?,
                (Some(path), None) => write!(f, "{}: ", path.display())?,
                (None, _) => {}
            }
            f.write_str(&mistake.text)?;
        }
        if self.mistakes.len() > 1 {
            write!(
                f,
                "\n{} found; nothing was run",
                counted(self.mistakes.len() as u64, "mistake")
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for ManifestErrors {}

/// A key with its text and line in the manifest.
#[derive(Debug, Clone)]
struct Field {
    key: String,
    text: String,
    line: usize,
}

/// The entry of one file.
#[derive(Debug)]
struct Entry {
    line: usize,
    fields: Vec<Field>,
    /// Whether a field was dropped because of an error already reported; its absence is then not
    /// reported again.
    is_damaged: bool,
}

/// A parsed manifest before validation.
#[derive(Debug, Default)]
struct Draft {
    top: Vec<Field>,
    entries: Vec<Entry>,
}

/// The errors found so far.
#[derive(Debug, Default)]
struct Mistakes(Vec<Mistake>);

impl Mistakes {
    fn add(&mut self, line: impl Into<Option<usize>>, text: impl Into<String>) {
        self.0.push(Mistake {
            line: line.into(),
            text: text.into(),
        });
    }

    /// The errors in order of lines, if there are any.
    fn into_errors(mut self, path: Option<&Path>) -> Result<(), ManifestErrors> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.0.sort_by_key(|mistake| mistake.line);
        Err(ManifestErrors {
            path: path.map(Path::to_owned),
            mistakes: self.0,
        })
    }
}

/// Reads and validates a manifest. Options in `command_line` take precedence. Paths in the manifest
/// are relative to its folder.
///
/// # Errors
/// All errors that were found.
pub fn read(path: &Path, command_line: &Overrides) -> Result<Manifest, ManifestErrors> {
    let mut mistakes = Mistakes::default();
    let mut jobs = Vec::new();
    let mut run = RunOverrides::default();
    if let Some(text) = text_of(path, &mut mistakes) {
        let draft = match kind_of(path, &text) {
            Kind::Yaml => yaml::parse(&text, &mut mistakes),
            Kind::Table(delimiter) => table::parse(&text, delimiter, &mut mistakes),
            Kind::Sequences => {
                mistakes.add(
                    1,
                    "this is a sequence file, not a manifest: use `seqembed embed` for it",
                );
                None
            }
        };
        if let Some(draft) = draft {
            let folder = path.parent().unwrap_or(Path::new(""));
            (jobs, run) = check(&draft, folder, command_line, &mut mistakes);
        }
    }
    mistakes.into_errors(Some(path))?;
    Ok(Manifest { jobs, run })
}

/// The jobs for files named on the command line. Each sample is named after its file, without the
/// extensions of sequence files and compressions (`a/b.faa.gz` gives `b`); `-` is standard input,
/// named `stdin`.
///
/// # Errors
/// All errors that were found.
pub fn jobs_from_files(
    files: &[PathBuf],
    overrides: &Overrides,
) -> Result<Vec<Job>, ManifestErrors> {
    let mut mistakes = Mistakes::default();
    let mut seen: HashMap<String, &Path> = HashMap::new();
    let mut jobs = Vec::new();
    if files.is_empty() {
        mistakes.add(None, "no input files are given");
    }
    let settings = Settings::resolve(&[overrides])
        .map_err(|error| mistakes.add(None, error.to_string()))
        .ok();
    for file in files {
        let source = Source::new(file);
        let sample = match &source {
            Source::Stdin => "stdin".to_owned(),
            Source::Path(path) => sample_of(path),
        };
        if let Some(trouble) = trouble_with(&source) {
            mistakes.add(None, format!("{}: {trouble}", file.display()));
        } else if let Some(trouble) = trouble_with_name(&sample) {
            mistakes.add(
                None,
                format!(
                    "{}: the sample name `{sample}` {trouble}; set the sample name in a manifest",
                    file.display()
                ),
            );
        }
        if let Some(first) = seen.insert(sample.clone(), file) {
            mistakes.add(
                None,
                format!(
                    "{} and {} would both be written to `{sample}`: set their sample names in a \
                     manifest",
                    first.display(),
                    file.display()
                ),
            );
        }
        if let Some(settings) = settings.clone() {
            jobs.push(Job {
                sample,
                source,
                settings,
                line: None,
            });
        }
    }
    mistakes.into_errors(None)?;
    Ok(jobs)
}

/// The manifest's text.
fn text_of(path: &Path, mistakes: &mut Mistakes) -> Option<String> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            let text = match error.kind() {
                std::io::ErrorKind::NotFound => "no such file".to_owned(),
                std::io::ErrorKind::IsADirectory => "is a folder, not a manifest".to_owned(),
                _ => format!("cannot be read: {error}"),
            };
            mistakes.add(None, text);
            return None;
        }
    };
    match String::from_utf8(bytes) {
        Ok(text) => Some(
            text.strip_prefix('\u{feff}')
                .map(str::to_owned)
                .unwrap_or(text),
        ),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.split(|&byte| byte == b'\n').count();
            mistakes.add(
                line,
                "the text is not valid UTF-8: save the manifest (YAML, CSV or TSV) as UTF-8",
            );
            None
        }
    }
}

/// The format of a manifest.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Yaml,
    Table(u8),
    Sequences,
}

/// Detects the format from the extension or, failing that, from the first line with text.
fn kind_of(path: &Path, text: &str) -> Kind {
    let suffix = path.extension().and_then(|suffix| suffix.to_str());
    let suffix = suffix.unwrap_or("").to_ascii_lowercase();
    let first = text.lines().map(str::trim).find(|line| !line.is_empty());
    let first = first.unwrap_or("");
    if first.starts_with('>') {
        return Kind::Sequences;
    }
    // Tables start with the names of their columns. In some locales, spreadsheets separate CSV with
    // `;`.
    let delimiter = ['\t', ',', ';']
        .into_iter()
        .find(|&delimiter| first.contains(delimiter));
    match (suffix.as_str(), delimiter) {
        ("yaml" | "yml" | "json", _) => Kind::Yaml,
        ("tsv", _) => Kind::Table(b'\t'),
        ("csv", Some(';')) => Kind::Table(b';'),
        ("csv", _) => Kind::Table(b','),
        (_, Some(delimiter)) if !first.starts_with(['{', '#', '-']) && !first.contains(": ") => {
            Kind::Table(u8::try_from(delimiter).expect("the delimiters are ASCII"))
        }
        _ => Kind::Yaml,
    }
}

/// Validates a draft, and turns it into jobs and options of the run.
fn check(
    draft: &Draft,
    folder: &Path,
    command_line: &Overrides,
    mistakes: &mut Mistakes,
) -> (Vec<Job>, RunOverrides) {
    let mut top = Overrides::default();
    let mut run = RunOverrides::default();
    for field in &draft.top {
        let result = if RunOverrides::KEYS.contains(&field.key.as_str()) {
            run.set(&field.key, &field.text)
        } else {
            top.set(&field.key, &field.text)
        };
        note(result, field, mistakes);
    }
    let mut jobs = Vec::new();
    let mut samples: HashMap<&str, usize> = HashMap::new();
    let mut stdin_line = None;
    let mut lacks_model = false;
    for entry in &draft.entries {
        let mut own = Overrides::default();
        let mut sample = None;
        let mut input: Option<&Field> = None;
        for field in &entry.fields {
            if field.key == "sample" {
                sample = Some(field);
            } else if INPUT_KEYS.contains(&field.key.as_str()) {
                if let Some(other) = input.replace(field) {
                    let text = format!(
                        "`{}` and `{}` are both set, but a sample has one file",
                        other.key, field.key
                    );
                    mistakes.add(field.line, text);
                }
            } else {
                note(own.set(&field.key, &field.text), field, mistakes);
            }
        }

        match sample {
            None if !entry.is_damaged => {
                mistakes.add(entry.line, "`sample` is missing; it names the output file");
            }
            None => {}
            Some(field) => {
                if let Some(trouble) = trouble_with_name(&field.text) {
                    mistakes.add(
                        field.line,
                        format!("the sample name `{}` {trouble}", field.text.escape_debug()),
                    );
                } else if let Some(first) = samples.insert(&field.text, field.line) {
                    samples.insert(&field.text, first);
                    mistakes.add(
                        field.line,
                        format!(
                            "the sample name `{}` is already used on line {first}; both would be \
                             written to the same file",
                            field.text
                        ),
                    );
                }
            }
        }

        let source = input.map(|field| resolve(folder, &field.text));
        match (input, &source) {
            (Some(field), Some(Source::Stdin)) => {
                if let Some(first) = stdin_line.replace(field.line) {
                    let text = format!("standard input (`-`) is already used on line {first}");
                    mistakes.add(field.line, text);
                }
            }
            (Some(field), _) if field.text.is_empty() => {
                mistakes.add(
                    field.line,
                    format!("`{}` is empty; it names the input file", field.key),
                );
            }
            (Some(field), Some(source)) => {
                if let Some(trouble) = trouble_with(source) {
                    mistakes.add(field.line, format!("{source}: {trouble}"));
                }
            }
            _ if !entry.is_damaged => {
                mistakes.add(entry.line, "`fasta` is missing; it names the input file");
            }
            _ => {}
        }

        let layers = [command_line, &own, &top];
        if layers.iter().all(|layer| layer.model.is_none()) {
            // Reported once, not for every line of a long table.
            if !entry.is_damaged && !std::mem::replace(&mut lacks_model, true) {
                let text = "no model is named: set `model` here or for all files, or give \
                            `--model`";
                mistakes.add(entry.line, text);
            }
            continue;
        }
        match (Settings::resolve(&layers), sample, source) {
            (Err(error), ..) => mistakes.add(entry.line, error.to_string()),
            (Ok(settings), Some(sample), Some(source)) => jobs.push(Job {
                sample: sample.text.clone(),
                source,
                settings,
                line: Some(entry.line),
            }),
            _ => {}
        }
    }
    (jobs, run)
}

fn note(result: Result<(), OptionError>, field: &Field, mistakes: &mut Mistakes) {
    if let Err(error) = result {
        mistakes.add(field.line, error.to_string());
    }
}

/// A path in a manifest, resolved relative to the manifest's folder.
fn resolve(folder: &Path, text: &str) -> Source {
    match Source::new(text) {
        Source::Path(path) => Source::Path(folder.join(path)),
        Source::Stdin => Source::Stdin,
    }
}

/// Why a file cannot be read, as far as this is known without reading it.
fn trouble_with(source: &Source) -> Option<String> {
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
fn trouble_with_name(sample: &str) -> Option<&'static str> {
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
fn sample_of(path: &Path) -> String {
    // Bytes that are not UTF-8, and backslashes, which are path separators on other systems, are
    // escaped as in URLs, so that different names stay different.
    let name = path.file_name().unwrap_or_default();
    let name = escape_bytes(name.as_bytes(), "%").replace('\\', "%5c");
    let bare = without_suffix(&name, &COMPRESSION_SUFFIXES);
    without_suffix(bare, &SEQUENCE_SUFFIXES).to_owned()
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

/// Where in a manifest a key occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Top,
    File,
    Column,
}

/// The canonical spelling of a key (`max_length` for `max-length`) if it is one of `known`, else
/// the error message.
fn key_among(key: &str, known: &[&'static str], place: Place) -> Result<&'static str, String> {
    let spelt = key.replace('-', "_");
    if let Some(&known) = known.iter().find(|&&known| known == spelt) {
        return Ok(known);
    }
    let option = spelt.replace('_', "-");
    if COMMAND_LINE_ONLY.contains(&spelt.as_str()) {
        return Err(format!(
            "`{spelt}` cannot be set in a manifest: give it on the command line (`--{option}`)"
        ));
    }
    if RunOverrides::KEYS.contains(&spelt.as_str()) {
        let top = if place == Place::Column {
            "at the top level of a YAML manifest"
        } else {
            "at the top level of the manifest"
        };
        return Err(format!(
            "`{spelt}` applies to the whole run: give it on the command line (`--{option}`) or \
             {top}"
        ));
    }
    let lower = spelt.to_lowercase();
    let nearest = known
        .iter()
        .map(|&known| (strsim::damerau_levenshtein(&lower, known), known))
        .min();
    let key = key.escape_debug();
    let word = if place == Place::Column {
        "column"
    } else {
        "key"
    };
    Err(match nearest {
        Some((distance, known)) if distance <= known.len().div_ceil(3) => {
            format!("unknown {word} `{key}`: did you mean `{known}`?")
        }
        _ => format!(
            "unknown {word} `{key}`: the known ones are {}",
            known.join(", ")
        ),
    })
}

/// The keys allowed in the entry of a file.
fn entry_keys() -> Vec<&'static str> {
    let mut keys = vec!["sample"];
    keys.extend(INPUT_KEYS);
    keys.extend(Overrides::KEYS);
    keys
}
