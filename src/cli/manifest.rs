//! `seqembed manifest`: writes a manifest, or several for the tasks of an array job, from files and
//! folders.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::builder::PossibleValue;
use seqembed_onnx::known_models;

use super::{USAGE, pass_on, say, told};
use crate::atomic_file;
use crate::manifest::{self, Entry, ManifestFormat, Sniffed};
use crate::models::ModelError;
use crate::run::{OpenedModel, RunError};
use crate::targets::Targets;
use crate::text::{counted, thousands};
use crate::threads;
use crate::tokenize::Alphabet;

/// Files that a message names.
const NAMED: usize = 3;

/// From which share of the average work on a manifest is said to be uneven.
const UNEVEN: f64 = 1.2;

/// Write a manifest from files and folders
///
/// Lists the files that are named, and those in folders and the folders below: FASTA and FASTQ,
/// plain or compressed, by their extensions. A sample is named after its file; where two files have
/// the same name, after their folders too (`lane1/gut.faa` -> `lane1_gut`). The first letters of
/// each file are read, to find out whether they are proteins or DNA. Paths are absolute, and the
/// order is that of the paths, so that the same files always give the same manifest.
///
/// With --split N, N manifests of about equal work are written, for the tasks of an array job:
/// `-o jobs.yaml --split 3` writes jobs.1.yaml, jobs.2.yaml and jobs.3.yaml. For this, all files
/// are read, and their letters counted.
#[derive(Debug, clap::Args)]
pub struct ManifestArgs {
    /// Sequence files, or folders of them
    #[arg(required = true, value_name = "FILE|FOLDER")]
    inputs: Vec<PathBuf>,

    /// The model to name in the manifest. Files that do not fit it are an error
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,

    /// The format of the manifest [default: by the extension of FILE, else yaml]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<ManifestFormat>,

    /// The manifest to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// List only files of these letters, where folders contain both
    #[arg(long, value_enum, value_name = "LETTERS")]
    letters: Option<Letters>,

    /// Write this many manifests of about equal numbers of residues or bases, FILE.1, FILE.2, ...
    /// (before its extension); at most one for each file
    #[arg(
        long,
        value_name = "N",
        requires = "output",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    split: Option<u32>,

    /// Print only warnings and errors
    #[arg(short, long)]
    quiet: bool,
}

/// The letters of sequences, as named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Letters(Alphabet);

impl clap::ValueEnum for Letters {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self(Alphabet::Protein), Self(Alphabet::Dna)]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(word(self.0)))
    }
}

/// A file to be listed.
struct Listed {
    entry: Entry,
    sniffed: Sniffed,
}

/// Runs the subcommand and returns the exit code of the process.
///
/// # Errors
/// If a manifest cannot be written.
pub fn run(args: &ManifestArgs) -> anyhow::Result<ExitCode> {
    threads::pool(threads::helpful(None))?;
    let plan = match plan(args) {
        Ok(plan) => plan,
        Err(error) => {
            say(&format!("error: {}", told(error.as_ref())));
            return Ok(USAGE.into());
        }
    };
    for warning in &plan.warnings {
        say(&format!("warning: {warning}"));
    }
    let Some(output) = &args.output else {
        for (_, text) in &plan.files {
            pass_on(text)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    for (path, text) in &plan.files {
        atomic_file::write_anywhere(path, text)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !args.quiet {
        say(&plan.summary);
    }
    if let Some(parts) = args.split {
        say_of_leftovers(output, parts);
    }
    Ok(ExitCode::SUCCESS)
}

/// What is to be written and said.
struct Plan {
    /// Paths and texts; the path is empty for standard output.
    files: Vec<(PathBuf, String)>,
    warnings: Vec<String>,
    summary: String,
}

fn plan(args: &ManifestArgs) -> anyhow::Result<Plan> {
    let format = args.format.or_else(|| {
        let output = args.output.as_deref();
        output.and_then(ManifestFormat::of)
    });
    let format = format.unwrap_or_default();
    let (model, alphabet) = match &args.model {
        Some(model) => model_of(model)?,
        None => (None, None),
    };
    let paths = manifest::sequence_files(&args.inputs)?;
    let sniffed = manifest::sniff(&paths, args.split.is_some())?;
    let wanted = |sniffed: &Sniffed| {
        let letters = args.letters.map(|letters| letters.0);
        letters.is_none() || sniffed.alphabet.is_none() || sniffed.alphabet == letters
    };
    let (paths, sniffed): (Vec<_>, Vec<_>) = paths
        .into_iter()
        .zip(sniffed)
        .filter(|(_, sniffed)| wanted(sniffed))
        .unzip();
    let names = manifest::sample_names(&paths).into_iter();
    let listed: Vec<Listed> = names
        .zip(paths)
        .zip(sniffed)
        .map(|((sample, path), sniffed)| Listed {
            entry: Entry { sample, path },
            sniffed,
        })
        .collect();
    anyhow::ensure!(
        !listed.is_empty(),
        "no file is of the letters that --letters asks for"
    );
    if let (Some(alphabet), Some(name)) = (alphabet, &args.model) {
        check_model(&listed, name, alphabet)?;
    }
    let warnings = warnings(&listed, args.model.is_some() && alphabet.is_none());
    let parts = parts(&listed, args)?;
    let text = |part: &[usize]| {
        let entries = part.iter().map(|&at| listed[at].entry.clone());
        manifest::text(&entries.collect::<Vec<_>>(), model.as_deref(), format)
    };
    let mut files = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let path = match (&args.output, args.split) {
            (Some(output), Some(_)) => numbered(output, at + 1),
            (Some(output), None) => output.clone(),
            (None, _) => PathBuf::new(),
        };
        files.push((path, text(part)?));
    }
    check_targets(&listed, &files)?;
    let summary = summary(&listed, &parts, args);
    Ok(Plan {
        files,
        warnings,
        summary,
    })
}

/// The name of a model as a manifest anywhere can have it, and which letters it is for, if this is
/// known on this machine.
fn model_of(model: &str) -> anyhow::Result<(Option<String>, Option<Alphabet>)> {
    let is_path = Path::new(model).exists();
    let name = if is_path {
        let path = std::path::absolute(model)?;
        let path = path.to_str().map(str::to_owned);
        path.context("the path of the model is not valid UTF-8, so it cannot be in a manifest")?
    } else {
        model.to_owned()
    };
    let mut known = known_models().into_iter();
    let known = known.find(|known| known.name.eq_ignore_ascii_case(model));
    let alphabet = known.and_then(|known| known.architecture.family().alphabet());
    if !is_path && let Some(alphabet) = alphabet {
        return Ok((Some(name), Some(alphabet.into())));
    }
    match OpenedModel::open(model, &|text| say(text)) {
        Ok(opened) => Ok((Some(name), Some(opened.tokenizer.alphabet()))),
        Err(RunError::Model(ModelError::NotFetched { .. })) => Ok((Some(name), None)),
        Err(error) => Err(error.into()),
    }
}

fn word(alphabet: Alphabet) -> &'static str {
    match alphabet {
        Alphabet::Protein => "protein",
        Alphabet::Dna => "dna",
    }
}

/// As in a sentence.
fn letters(alphabet: Alphabet) -> &'static str {
    match alphabet {
        Alphabet::Protein => "protein",
        Alphabet::Dna => "DNA",
    }
}

/// The first files that a condition holds for, as text, and how many there are.
fn some<'l>(listed: &'l [Listed], is: impl Fn(&Sniffed) -> bool) -> Option<(u64, String)> {
    let all: Vec<&'l Listed> = listed.iter().filter(|file| is(&file.sniffed)).collect();
    let named = all.iter().take(NAMED);
    let mut text: Vec<String> = named
        .map(|file| file.entry.path.display().to_string())
        .collect();
    if all.len() > NAMED {
        text.push(format!(
            "and {} more",
            thousands((all.len() - NAMED) as u64)
        ));
    }
    (!all.is_empty()).then(|| (all.len() as u64, text.join(", ")))
}

fn check_model(listed: &[Listed], model: &str, alphabet: Alphabet) -> anyhow::Result<()> {
    let other = match alphabet {
        Alphabet::Protein => Alphabet::Dna,
        Alphabet::Dna => Alphabet::Protein,
    };
    if let Some((count, files)) = some(listed, |sniffed| sniffed.alphabet == Some(other)) {
        anyhow::bail!(
            "{model} is a {} model, but {} like {}: {files}. Leave them out with --letters {}, or \
             choose another model",
            letters(alphabet),
            if count == 1 {
                "1 file looks".to_owned()
            } else {
                format!("{} look", counted(count, "file"))
            },
            letters(other),
            word(alphabet)
        );
    }
    Ok(())
}

fn warnings(listed: &[Listed], is_unchecked: bool) -> Vec<String> {
    let of = |alphabet| some(listed, move |sniffed| sniffed.alphabet == Some(alphabet));
    let mut warnings = Vec::new();
    if let (Some((proteins, one)), Some((dna, other))) = (of(Alphabet::Protein), of(Alphabet::Dna))
    {
        warnings.push(format!(
            "{} of proteins ({one}) and {} of DNA ({other}) are listed together, but no model \
             embeds both: write a manifest for each, with --letters protein and --letters dna",
            counted(proteins, "file"),
            counted(dna, "file")
        ));
    }
    if let Some((count, files)) = some(listed, |sniffed| sniffed.is_empty) {
        let have = if count == 1 { "has" } else { "have" };
        warnings.push(format!(
            "{} {have} no records: {files}",
            counted(count, "file")
        ));
    }
    if is_unchecked {
        warnings.push(
            "the model is not on this machine, so whether it fits the files was not checked"
                .to_owned(),
        );
    }
    warnings
}

/// The indices of the files of each manifest.
fn parts(listed: &[Listed], args: &ManifestArgs) -> anyhow::Result<Vec<Vec<usize>>> {
    let Some(parts) = args.split else {
        return Ok(vec![(0..listed.len()).collect()]);
    };
    anyhow::ensure!(
        parts as usize <= listed.len(),
        "--split {parts} asks for more manifests than there are files ({}): a file is not divided",
        listed.len()
    );
    let sizes: Vec<u64> = listed.iter().map(|file| file.sniffed.tokens).collect();
    Ok(manifest::split(&sizes, parts as usize))
}

/// `jobs.yaml` -> `jobs.3.yaml`
fn numbered(output: &Path, number: usize) -> PathBuf {
    let mut name = output.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".{number}"));
    if let Some(extension) = output.extension() {
        name.push(".");
        name.push(extension);
    }
    output.with_file_name(name)
}

fn check_targets(listed: &[Listed], files: &[(PathBuf, String)]) -> anyhow::Result<()> {
    let mut targets = Targets::default();
    for file in listed {
        targets.reads("an input", &file.entry.path);
    }
    for (path, _) in files.iter().filter(|(path, _)| path != Path::new("")) {
        anyhow::ensure!(
            !path.is_dir(),
            "{} is a folder: name a file",
            path.display()
        );
        targets.is_not_read(path, path)?;
    }
    Ok(())
}

fn summary(listed: &[Listed], parts: &[Vec<usize>], args: &ManifestArgs) -> String {
    let count = |alphabet| {
        let files = listed.iter();
        files
            .filter(|file| file.sniffed.alphabet == alphabet)
            .count() as u64
    };
    let kinds = [
        (count(Some(Alphabet::Protein)), "of proteins"),
        (count(Some(Alphabet::Dna)), "of DNA"),
        (count(None), "of too few letters to tell"),
    ];
    let kinds: Vec<String> = kinds
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, kind)| format!("{} {kind}", thousands(*count)))
        .collect();
    let output = args.output.as_deref().unwrap_or(Path::new(""));
    let files = format!(
        "{} ({})",
        counted(listed.len() as u64, "file"),
        kinds.join(", ")
    );
    if args.split.is_none() {
        return format!("{}: {files}", output.display());
    }
    let work =
        |part: &Vec<usize>| -> u64 { part.iter().map(|&at| listed[at].sniffed.tokens).sum() };
    let works: Vec<u64> = parts.iter().map(work).collect();
    let (least, most) = (works.iter().min(), works.iter().max());
    let (least, most) = (least.copied().unwrap_or(0), most.copied().unwrap_or(0));
    let mut text = format!(
        "{} to {}: {files}, {} to {} each",
        numbered(output, 1).display(),
        numbered(output, parts.len()).display(),
        thousands(least),
        counted(most, "token")
    );
    let mean = works.iter().sum::<u64>() as f64 / parts.len() as f64;
    let largest = listed.iter().max_by_key(|file| file.sniffed.tokens);
    if let Some(largest) = largest
        && largest.sniffed.tokens as f64 > UNEVEN * mean
    {
        let _ = write!(
            text,
            "\n{} alone has {} times the average: a file is not divided, so fewer manifests would \
             take as long",
            largest.entry.path.display(),
            (largest.sniffed.tokens as f64 / mean * 10.0).round() / 10.0
        );
    }
    text
}

/// Names the next manifest of an earlier, larger split, whose files now are in others.
fn say_of_leftovers(output: &Path, parts: u32) {
    let next = numbered(output, parts as usize + 1);
    if next.exists() {
        say(&format!(
            "warning: {} is of an earlier split into more manifests, and lists files that are in \
             these too: delete it and those after it",
            next.display()
        ));
    }
}
