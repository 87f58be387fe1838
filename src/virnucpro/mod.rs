//! `VirNucPro`'s features of contigs: chunks, reading frames, embeddings with DNABERT-S and ESM-2,
//! and their merge. Rules and file names are those of `VirNucPro`, whose prediction step reads the
//! result.
//!
//! For the contigs `x.fasta`, in the output folder:
//!
//! | file | what |
//! |---|---|
//! | `x_chunked500.fa` | the contigs in chunks |
//! | `x_identified_nucleotide.fa`, `x_identified_protein.faa` | the reading frames without a stop, and their translations |
//! | `x_nucleotide/output_N.fa`, `x_protein/output_N.fa` | the same, 10,000 a file |
//! | `x_nucleotide/output_N_DNABERT_S.pt`, `x_protein/output_N_ESM.pt` | their vectors |
//! | `x_merged/output_N_merged.pt` | both vectors of each reading frame, side by side |
//! | `x_provenance.json` | the models and options; the `.pt` files have no room for it |
//!
//! A row is joined by its place, and its id is compared on both sides: a row never moves to another
//! id, not even when two contigs have the same name.

pub mod chunks;
pub mod features;
pub mod frames;

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use self::frames::Frame;
use crate::atomic_file;
use crate::output::{OutputError, Unfinished};
use crate::records::{self, Limits, RecordError, Source};
use crate::text::counted;
use crate::tokenize::Alphabet;
use crate::tokenize::dna::DnaCheck;

/// Why the features could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum VirnucproError {
    /// The contigs cannot be read.
    #[error(transparent)]
    Contigs(#[from] RecordError),
    /// Contigs have bases.
    #[error("{contigs} {why}, but VirNucPro needs DNA: use the contigs, not their proteins")]
    Proteins {
        /// The file of contigs.
        contigs: String,
        /// How that is seen.
        why: String,
    },
    /// A file cannot be written, or read back.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A folder cannot be created.
    #[error("cannot make the folder {path}: {source}", path = .path.display())]
    Folder {
        /// Path of the folder.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// A reading frame has no vector.
    #[error("{path}: record {id:?} has no vector ({why}); nothing was merged, because rows would \
             be shifted", path = .path.display())]
    Missing {
        /// The file with the sequence.
        path: PathBuf,
        /// Id of the reading frame.
        id: String,
        /// Its status, which says why it was not embedded.
        why: String,
    },
    /// The two sides do not belong together.
    #[error("{nucleotides} and {proteins} do not match: {why}; nothing was merged", nucleotides = .nucleotides.display(), proteins = .proteins.display())]
    Mismatch {
        /// The file of the frames' nucleotide features.
        nucleotides: PathBuf,
        /// The file of the frames' protein features.
        proteins: PathBuf,
        /// The first record in which they differ.
        why: String,
    },
}

/// The paths of the files of one input.
#[derive(Debug, Clone)]
pub struct SamplePaths {
    /// The folder that all outputs are written to.
    pub out: PathBuf,
    /// Name of the input, after which its files are named.
    pub sample: String,
}

/// The two sides of a reading frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Its bases, for DNABERT-S.
    Nucleotide,
    /// Its translation, for ESM-2.
    Protein,
}

impl Side {
    /// The word in the names of folders.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Side::Nucleotide => "nucleotide",
            Side::Protein => "protein",
        }
    }
}

impl SamplePaths {
    fn file(&self, ending: &str) -> PathBuf {
        self.out.join(format!("{}_{ending}", self.sample))
    }

    /// The folder with a side's parts.
    #[must_use]
    pub fn folder(&self, side: Side) -> PathBuf {
        self.file(side.word())
    }

    /// A part's sequences. Parts count from 1.
    #[must_use]
    pub fn part(&self, side: Side, part: usize) -> PathBuf {
        self.folder(side).join(format!("output_{part}.fa"))
    }

    /// Path of the vectors of a part, which is counted from 1.
    #[must_use]
    pub fn vectors(&self, side: Side, part: usize) -> PathBuf {
        let model = match side {
            Side::Nucleotide => "DNABERT_S",
            Side::Protein => "ESM",
        };
        self.folder(side).join(format!("output_{part}_{model}.pt"))
    }

    /// A part's merged vectors.
    #[must_use]
    pub fn merged(&self, part: usize) -> PathBuf {
        self.file("merged").join(format!("output_{part}_merged.pt"))
    }

    /// Where the numbers come from.
    #[must_use]
    pub fn provenance(&self) -> PathBuf {
        self.file("provenance.json")
    }
}

/// What was found in one input.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Number of contigs.
    pub contigs: u64,
    /// Number of chunks that the contigs were cut into.
    pub chunks: u64,
    /// The reading frames that were kept.
    pub frames: u64,
    /// Number of files that the frames were written to, on each side.
    pub parts: usize,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl Found {
    /// Warnings: contigs with the name of another one, contigs without bases, and no usable frame
    /// at all.
    fn warn(&mut self, contigs: &Source, repeated: u64, empty: u64) {
        if repeated > 0 {
            self.warnings.push(format!(
            "{contigs}: {} the name of an earlier one; both have their own rows, but the same ids",
            if repeated == 1 {
                "1 contig has".to_owned()
            } else {
                counted(repeated, "contig") + " have"
            }
        ));
        }
        if empty > 0 {
            self.warnings.push(format!(
                "{contigs}: {} no sequence and so no chunk",
                if empty == 1 {
                    "1 contig has".to_owned()
                } else {
                    counted(empty, "contig") + " have"
                }
            ));
        }
        if self.contigs > 0 && self.frames == 0 {
            self.warnings.push(format!(
                "{contigs}: every reading frame has a stop codon, so there is nothing to embed"
            ));
        }
    }
}

/// Cuts contigs into chunks, reads their frames, and writes both as FASTA.
///
/// `per_file` reading frames go into a part. A contig of more than `longest` bases (none: as many
/// as is usual) is refused.
///
/// # Errors
/// If the contigs cannot be read or the files cannot be written.
pub fn prepare(
    places: &SamplePaths,
    contigs: &Source,
    chunk: usize,
    per_file: usize,
    longest: Option<usize>,
) -> Result<Found, VirnucproError> {
    for side in [Side::Nucleotide, Side::Protein] {
        make(&places.folder(side))?;
    }
    let mut chunked = Fasta::create(&places.file(&format!("chunked{chunk}.fa")))?;
    let whole = [
        Fasta::create(&places.file("identified_nucleotide.fa"))?,
        Fasta::create(&places.file("identified_protein.faa"))?,
    ];
    let mut frames = FrameFiles {
        places,
        per_file: per_file as u64,
        whole,
        part: None,
    };
    let mut found = Found::default();
    let mut seen = HashSet::new();
    let mut repeated = 0_u64;
    let mut empty = 0_u64;
    let mut reader = records::open(contigs)?;
    reader.limit(Limits {
        longest: Some(longest.map_or(Alphabet::Dna.longest_record(), |most| most as u64)),
        ..Limits::default()
    });
    let mut check = DnaCheck::default();
    let proteins = |check: &DnaCheck| match check.why_not(Alphabet::Dna) {
        Some(why) => Err(VirnucproError::Proteins {
            contigs: contigs.to_string(),
            why,
        }),
        None => Ok(()),
    };
    for record in reader.by_ref() {
        let mut record = record?;
        if !check.is_done() {
            check.add(&record.sequence);
            if check.is_done() {
                proteins(&check)?;
            }
        }
        // A non-ASCII character is not a base, and must be a single letter in the output.
        for letter in record.sequence.iter_mut().filter(|byte| !byte.is_ascii()) {
            *letter = b'N';
        }
        let id = record.id();
        found.contigs += 1;
        repeated += u64::from(!seen.insert(id.to_owned()));
        empty += u64::from(record.sequence.is_empty());
        let chunks = chunks::chunks(record.sequence.len(), chunk);
        for (number, range) in chunks.enumerate() {
            let sequence = &record.sequence[range];
            let id = format!("{id}_chunk_{}", number + 1);
            chunked.wrapped(&id, sequence)?;
            found.chunks += 1;
            for frame in frames::frames(sequence) {
                frames.write(&id, &frame, &mut found)?;
            }
        }
    }
    proteins(&check)?;
    chunked.finish()?;
    frames.finish()?;
    found.warnings.extend(reader.warnings());
    found.warn(contigs, repeated, empty);
    Ok(found)
}

/// Makes a folder, and removes what a killed process left in it.
fn make(folder: &Path) -> Result<(), VirnucproError> {
    crate::folders::make(folder).map_err(|source| VirnucproError::Folder {
        path: folder.to_owned(),
        source,
    })?;
    // A leftover only takes up space.
    let _ = atomic_file::sweep(folder, None);
    Ok(())
}

/// The reading frames, in files of all and in parts, each as nucleotides and as protein.
struct FrameFiles<'p> {
    places: &'p SamplePaths,
    /// Frames in a part.
    per_file: u64,
    whole: [Fasta; 2],
    part: Option<[Fasta; 2]>,
}

impl FrameFiles<'_> {
    /// Writes a frame of a chunk, into a new part where the last one is full.
    fn write(&mut self, chunk: &str, frame: &Frame, found: &mut Found) -> Result<(), OutputError> {
        if found.frames.is_multiple_of(self.per_file) {
            finish(self.part.take())?;
            found.parts += 1;
            self.part = Some([
                Fasta::create(&self.places.part(Side::Nucleotide, found.parts))?,
                Fasta::create(&self.places.part(Side::Protein, found.parts))?,
            ]);
        }
        let id = format!("{chunk}{}", frame.name);
        let files = self.whole.iter_mut().chain(self.part.iter_mut().flatten());
        let sequences = [&frame.nucleotides, &frame.protein];
        for (file, sequence) in files.zip(sequences.into_iter().cycle()) {
            file.line(&id, sequence)?;
        }
        found.frames += 1;
        Ok(())
    }

    fn finish(self) -> Result<(), OutputError> {
        finish(self.part)?;
        finish(Some(self.whole))
    }
}

fn finish(files: Option<[Fasta; 2]>) -> Result<(), OutputError> {
    files.into_iter().flatten().try_for_each(Fasta::finish)
}

/// A FASTA file being written.
struct Fasta {
    path: PathBuf,
    file: BufWriter<Unfinished>,
}

impl Fasta {
    fn create(path: &Path) -> Result<Self, OutputError> {
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::new(Unfinished::create(path)?),
        })
    }

    fn told<T>(&self, result: io::Result<T>) -> Result<T, OutputError> {
        result.map_err(|source| OutputError::Io {
            path: self.path.clone(),
            source,
        })
    }

    /// A record with its sequence in one line.
    fn line(&mut self, id: &str, sequence: &[u8]) -> Result<(), OutputError> {
        let mut write = || {
            writeln!(self.file, ">{id}")?;
            self.file.write_all(sequence)?;
            self.file.write_all(b"\n")
        };
        let result = write();
        self.told(result)
    }

    /// A record with its sequence in lines of 60, as Biopython writes it.
    fn wrapped(&mut self, id: &str, sequence: &[u8]) -> Result<(), OutputError> {
        let mut write = || {
            writeln!(self.file, ">{id}")?;
            sequence.chunks(60).try_for_each(|line| {
                self.file.write_all(line)?;
                self.file.write_all(b"\n")
            })
        };
        let result = write();
        self.told(result)
    }

    fn finish(self) -> Result<(), OutputError> {
        let Self { path, file } = self;
        file.into_inner()
            .map_err(|e| OutputError::Io {
                path,
                source: e.into_error(),
            })?
            .finish()
            .map(drop)
    }
}
