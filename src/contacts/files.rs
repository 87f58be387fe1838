//! The output files of contacts: one for each input, and a table of pairs beside it.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::chunk::ContactRecord;
use super::pairs::{PairTable, Top, top_pairs};
use crate::output::{self, Format, Layout, OutputError, Rows, Sink};

/// A format that holds contacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ContactsFormat {
    /// NumPy arrays
    #[default]
    Npz,
    /// HDF5, a matrix per sequence
    H5,
    /// safetensors
    Safetensors,
}

impl From<ContactsFormat> for Format {
    fn from(format: ContactsFormat) -> Self {
        match format {
            ContactsFormat::Npz => Self::Npz,
            ContactsFormat::H5 => Self::H5,
            ContactsFormat::Safetensors => Self::Safetensors,
        }
    }
}

/// What is written of each input. By default, npz and no table.
#[derive(Debug, Clone, Copy, Default)]
pub struct ContactsOutputs {
    /// The format of the matrices.
    pub format: ContactsFormat,
    /// Which pairs are listed in a table; `None`: there is no table.
    pub pairs: Option<PairChoice>,
}

/// The path of a sample's output.
#[must_use]
pub fn output_path(out: &Path, sample: &str, format: Format) -> PathBuf {
    out.join(format!("{sample}.{}", format.extension()))
}

/// The path of a sample's table of pairs.
#[must_use]
pub fn table_path(out: &Path, sample: &str) -> PathBuf {
    out.join(format!("{sample}.tsv"))
}

/// Which pairs are listed.
#[derive(Debug, Clone, Copy)]
pub struct PairChoice {
    /// How many of a sequence.
    pub top: Top,
    /// Least distance of the two in the sequence.
    pub separation: usize,
}

/// The files of one input that is being read.
pub struct OpenFiles {
    sink: Box<dyn Sink>,
    table: Option<(PairTable, PairChoice)>,
}

impl OpenFiles {
    /// Creates them. `table`: the path of a table of pairs, and which are listed.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn create(
        format: Format,
        layout: Layout,
        table: Option<(PathBuf, PairChoice)>,
    ) -> Result<Self, OutputError> {
        Ok(Self {
            sink: output::create(format, layout)?,
            table: table
                .map(|(path, choice)| Ok::<_, OutputError>((PairTable::create(&path)?, choice)))
                .transpose()?,
        })
    }

    /// Appends a record with its contacts, [residues, residues], or none where it was skipped.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn push(&mut self, record: ContactRecord, contacts: Vec<f32>) -> Result<(), OutputError> {
        if let Some((table, choice)) = &mut self.table
            && !contacts.is_empty()
        {
            let residues = contacts.len().isqrt();
            let count = choice.top.of(residues);
            let pairs = top_pairs(&contacts, residues, choice.separation, count);
            table.push(&record.id, &pairs)?;
        }
        let rows = Rows {
            ids: vec![record.id],
            headers: vec![record.header],
            lengths: vec![record.length as u64],
            status: vec![record.status.to_string()],
            vectors: vec![contacts.len()],
            values: contacts,
            ..Rows::new(1)
        };
        self.sink.put(rows.into())?;
        self.sink.detach();
        Ok(())
    }

    /// Completes the files and gives them their names.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(self) -> Result<(), OutputError> {
        if let Some((table, _)) = self.table {
            table.finish()?;
        }
        self.sink.finish().map(drop)
    }
}
