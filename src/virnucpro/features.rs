//! The jobs that compute the vectors, and merging their rows into `VirNucPro`'s files.

use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::json;

use super::{SamplePaths, Side, VirnucproError, make};
use crate::manifest::Job;
use crate::output::virnucpro::{Vectors, write_merged, write_nucleotides, write_proteins};
use crate::output::{self, Format, Layout, OutputError, Rows};
use crate::records::Source;
use crate::settings::{Long, Overrides, Pooling, Precision, Settings, SettingsError};
use crate::text::counted;

/// What becomes of long proteins, which `VirNucPro`'s versions treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Truncation {
    /// Computes the whole protein and pools the first 1,024 residues, as the original does
    #[default]
    Vanilla,
    /// Computes only the first 1,024 residues, as its first rewrite
    V1,
    /// Computes only the first 1,022 residues, as its second rewrite
    V2,
}

impl Truncation {
    /// The name on the command line.
    fn name(self) -> &'static str {
        match self {
            Truncation::Vanilla => "vanilla",
            Truncation::V1 => "v1",
            Truncation::V2 => "v2",
        }
    }
}

/// The models, and how they run.
#[derive(Debug, Clone)]
pub struct Models {
    /// The model of DNA.
    pub nucleotide: String,
    /// The model of proteins.
    pub protein: String,
    /// What becomes of long proteins.
    pub truncation: Truncation,
    /// The numbers that both compute with.
    pub precision: Option<Precision>,
    /// Tokens of a batch.
    pub batch_tokens: Option<usize>,
}

impl Models {
    /// The options of a side's jobs.
    ///
    /// DNA is pooled over all tokens, `[CLS]` and `[SEP]` too; proteins over their residues.
    ///
    /// # Errors
    /// If an option is invalid.
    pub fn settings(&self, side: Side) -> Result<Settings, SettingsError> {
        let common = Overrides {
            // What is written between the model and the merge.
            format: Some(Format::Safetensors),
            // The letters were chosen here: a short protein may well look like DNA.
            force_alphabet: Some(true),
            precision: self.precision,
            batch_tokens: self.batch_tokens,
            ..Overrides::default()
        };
        let own = match side {
            Side::Nucleotide => Overrides {
                model: Some(self.nucleotide.clone()),
                pooling: Some(Pooling::MeanAll.into()),
                ..Overrides::default()
            },
            Side::Protein => Overrides {
                model: Some(self.protein.clone()),
                pooling: Some(Pooling::Mean.into()),
                long: Some(Long::Truncate),
                max_length: Some(match self.truncation {
                    Truncation::Vanilla => usize::MAX,
                    Truncation::V1 => 1024,
                    Truncation::V2 => 1022,
                }),
                ..Overrides::default()
            },
        };
        let mut settings = Settings::resolve(&[&own, &common])?;
        if side == Side::Protein && self.truncation == Truncation::Vanilla {
            settings.pool_first = Some(1024);
        }
        Ok(settings)
    }
}

/// The job that embeds one side of a part.
#[must_use]
pub fn job(places: &SamplePaths, side: Side, part: usize, settings: Settings) -> Job {
    Job {
        sample: format!("{}_{}_output_{part}", places.sample, side.word()),
        source: Source::Path(places.part(side, part)),
        settings,
        line: None,
    }
}

/// The file with the rows of a job until they are merged.
fn rows_path(places: &SamplePaths, side: Side, part: usize) -> PathBuf {
    let name = format!(
        "{}_{}_output_{part}.{}",
        places.sample,
        side.word(),
        Format::Safetensors
    );
    places.out.join(name)
}

/// Makes a part's three files from the rows of its two jobs, and removes those.
///
/// # Errors
/// If a reading frame has no vector, the two sides do not match, or a file cannot be read or
/// written.
pub fn merge(
    places: &SamplePaths,
    part: usize,
    truncation: Truncation,
) -> Result<[Layout; 2], VirnucproError> {
    let paths = [Side::Nucleotide, Side::Protein].map(|side| rows_path(places, side, part));
    let (nucleotides, dna) = output::read(&paths[0])?;
    let (proteins, protein) = output::read(&paths[1])?;
    check(&nucleotides, &places.part(Side::Nucleotide, part))?;
    check(&proteins, &places.part(Side::Protein, part))?;
    let mismatch = |why: String| VirnucproError::Mismatch {
        nucleotides: places.part(Side::Nucleotide, part),
        proteins: places.part(Side::Protein, part),
        why,
    };
    if nucleotides.len() != proteins.len() {
        return Err(mismatch(format!(
            "{} and {}",
            counted(nucleotides.len() as u64, "record"),
            proteins.len()
        )));
    }
    let sides = nucleotides.ids.iter().zip(&proteins.ids);
    if let Some((row, (a, b))) = sides.enumerate().find(|(_, (a, b))| a != b) {
        return Err(mismatch(format!("record {} is {a:?} and {b:?}", row + 1)));
    }
    // Remove the old merged file first, so that the prediction never reads it together with vectors
    // of another run.
    let merged = places.merged(part);
    for path in [&merged, &places.provenance()] {
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                let path = path.clone();
                return Err(OutputError::Io { path, source }.into());
            }
            _ => {}
        }
    }
    write_nucleotides(
        &places.vectors(Side::Nucleotide, part),
        vectors(&nucleotides),
    )?;
    let ordered = match truncation {
        Truncation::Vanilla => by_length(&proteins),
        Truncation::V1 | Truncation::V2 => proteins.clone(),
    };
    write_proteins(&places.vectors(Side::Protein, part), vectors(&ordered))?;
    let mut values = Vec::with_capacity(nucleotides.values.len() + proteins.values.len());
    let left = nucleotides.values.chunks_exact(nucleotides.hidden);
    let right = proteins.values.chunks_exact(proteins.hidden);
    for (left, right) in left.zip(right) {
        values.extend_from_slice(left);
        values.extend_from_slice(right);
    }
    make(merged.parent().unwrap_or(Path::new(".")))?;
    write_merged(
        &merged,
        Vectors {
            ids: &nucleotides.ids,
            hidden: nucleotides.hidden + proteins.hidden,
            values: &values,
        },
    )?;
    for path in &paths {
        std::fs::remove_file(path).map_err(|source| OutputError::Io {
            path: path.clone(),
            source,
        })?;
    }
    Ok([dna, protein])
}

/// Makes sure that every record has a vector.
fn check(rows: &Rows, path: &Path) -> Result<(), VirnucproError> {
    let vectors = rows.values.chunks_exact(rows.hidden.max(1));
    for ((id, status), vector) in rows.ids.iter().zip(&rows.status).zip(vectors) {
        if vector.iter().any(|value| !value.is_finite()) {
            return Err(VirnucproError::Missing {
                path: path.to_owned(),
                id: id.clone(),
                why: status.clone(),
            });
        }
    }
    Ok(())
}

fn vectors(rows: &Rows) -> Vectors<'_> {
    Vectors {
        ids: &rows.ids,
        hidden: rows.hidden,
        values: &rows.values,
    }
}

/// The rows by rising length, equal ones in their order: the original batches its proteins so, and
/// writes them as they come.
fn by_length(rows: &Rows) -> Rows {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&row| rows.lengths[row]);
    let mut sorted = Rows::new(rows.hidden);
    for row in order {
        let values = &rows.values[row * rows.hidden..(row + 1) * rows.hidden];
        sorted.push(rows, row, values);
    }
    sorted
}

/// Writes where an input's numbers come from.
///
/// # Errors
/// If the file cannot be written.
pub fn write_provenance(
    places: &SamplePaths,
    chunk: usize,
    truncation: Truncation,
    [nucleotide, protein]: &[Layout; 2],
) -> Result<(), VirnucproError> {
    let facts = |layout: &Layout| -> serde_json::Map<String, serde_json::Value> {
        let facts = layout.provenance.iter();
        facts
            .filter(|(key, _)| key != "source")
            .map(|(key, value)| (key.clone(), value.clone().into()))
            .collect()
    };
    let told = json!({
        "seqembed": env!("CARGO_PKG_VERSION"),
        "chunk": chunk,
        "truncation": truncation.name(),
        "nucleotide": facts(nucleotide),
        "protein": facts(protein),
    });
    output::write_text(&places.provenance(), &format!("{told:#}\n"))?;
    Ok(())
}
