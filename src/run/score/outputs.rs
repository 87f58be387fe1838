//! The tables of a file: its records, residues, variants and single substitutions.

use std::path::{Path, PathBuf};

use super::error::ScoreError;
use super::options::ScoreOptions;
use super::scored_records::ScoredRecord;
use super::table::{Column, Table};
use super::vocabulary::{AMINO_ACIDS, TokenNames};
use crate::output::{self, Written};

/// The tables of a file that are asked for, while they are written.
pub struct FileTables<'a> {
    options: &'a ScoreOptions,
    names: &'a TokenNames,
    columns: Vec<u32>,
    records: Option<Table>,
    residues: Option<Table>,
    scan: Option<Table>,
    variants: Option<Table>,
    /// Indices of variants and their scores, written in the order of their table at the end.
    scored: Vec<(usize, f64)>,
}

/// Which table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A row a record.
    Records,
    /// A row a token.
    Residues,
    /// A row a position, with a score for each amino acid there.
    Scan,
    /// A row a variant.
    Variants,
}

/// The tables that are asked for.
pub fn kinds(options: &ScoreOptions) -> Vec<Kind> {
    if options.variants.is_some() {
        return vec![Kind::Variants];
    }
    let mut kinds = vec![Kind::Records];
    if options.per_residue {
        kinds.push(Kind::Residues);
    }
    if options.scan {
        kinds.push(Kind::Scan);
    }
    kinds
}

/// Where a table of a file is written: `sample.parquet`, `sample.residues.parquet` ...
pub fn path(folder: &Path, sample: &str, kind: Kind, options: &ScoreOptions) -> PathBuf {
    let what = match kind {
        Kind::Records => "",
        Kind::Residues => ".residues",
        Kind::Scan => ".scan",
        Kind::Variants => ".variants",
    };
    folder.join(format!("{sample}{what}.{}", options.format.extension()))
}

/// The path of the table that the report names: of records, or of variants.
pub fn main_path(folder: &Path, sample: &str, options: &ScoreOptions) -> PathBuf {
    let kind = match options.variants {
        Some(_) => Kind::Variants,
        None => Kind::Records,
    };
    path(folder, sample, kind, options)
}

impl<'a> FileTables<'a> {
    /// Begins the tables of a file.
    pub fn create(
        folder: &Path,
        sample: &str,
        options: &'a ScoreOptions,
        (names, columns): (&'a TokenNames, Vec<u32>),
        about: &[(String, String)],
    ) -> Result<Self, ScoreError> {
        let mut tables = Self {
            options,
            names,
            columns,
            records: None,
            residues: None,
            scan: None,
            variants: None,
            scored: Vec::new(),
        };
        for kind in kinds(options) {
            let path = path(folder, sample, kind, options);
            let table = Table::create(&path, options.format, &tables.header(kind), about)?;
            *match kind {
                Kind::Records => &mut tables.records,
                Kind::Residues => &mut tables.residues,
                Kind::Scan => &mut tables.scan,
                Kind::Variants => &mut tables.variants,
            } = Some(table);
        }
        Ok(tables)
    }

    /// Names and types of a table's columns.
    fn header(&self, kind: Kind) -> Vec<(String, Column)> {
        let texts = || Column::Texts(Vec::new());
        let counts = || Column::Counts(Vec::new());
        let of = |name: &str, column: Column| (name.to_owned(), column);
        let floats = |name: String| (name, Column::Floats(Vec::new()));
        match kind {
            Kind::Records => vec![
                of("id", texts()),
                of("length", counts()),
                of("status", texts()),
                of("log_likelihood", Column::Doubles(Vec::new())),
                of("perplexity", Column::Doubles(Vec::new())),
            ],
            Kind::Residues => {
                let mut header = vec![
                    of("id", texts()),
                    of("position", counts()),
                    of("token", texts()),
                    floats("log_probability".to_owned()),
                ];
                let columns = self.columns.iter();
                header.extend(columns.map(|&id| floats(self.names.of(id).to_owned())));
                header
            }
            Kind::Scan => {
                let mut header = vec![
                    of("id", texts()),
                    of("position", counts()),
                    of("wild_type", texts()),
                ];
                header.extend(AMINO_ACIDS.map(|letter| floats(letter.to_string())));
                header
            }
            Kind::Variants => vec![
                of("id", texts()),
                of("variant", texts()),
                of("score", Column::Doubles(Vec::new())),
            ],
        }
    }

    /// Appends the scores of a record.
    pub fn put(&mut self, record: &ScoredRecord) -> Result<(), ScoreError> {
        if let Some((_, variants)) = &self.options.variants {
            let own = variants.of(&record.id).iter();
            let scores = own.map(|&variant| (variant, record.variant(variant, self.options)));
            self.scored.extend(scores);
            return Ok(());
        }
        if let Some(table) = &mut self.records {
            let (sum, count) = record.log_likelihood();
            let (sum, perplexity) = if count == 0 {
                (f64::NAN, f64::NAN)
            } else {
                (sum, (-sum / count as f64).exp())
            };
            table.put(vec![
                Column::Texts(vec![record.id.clone()]),
                Column::Counts(vec![record.length as u64]),
                Column::Texts(vec![record.status.to_string()]),
                Column::Doubles(vec![sum]),
                Column::Doubles(vec![perplexity]),
            ])?;
        }
        if record.status.skipped.is_some() {
            return Ok(());
        }
        let tokens = record.ids.len();
        let letters = record.starts.iter().map(|&start| u64::from(start) + 1);
        let width = self.columns.len();
        let column = |at: usize| {
            let values = record.matrix.iter().skip(at).step_by(width.max(1));
            values.copied().collect::<Vec<f32>>()
        };
        let head = || {
            vec![
                Column::Texts(vec![record.id.clone(); tokens]),
                Column::Counts(letters.clone().collect()),
                Column::Texts(
                    record
                        .ids
                        .iter()
                        .map(|&id| self.names.of(id).to_owned())
                        .collect(),
                ),
            ]
        };
        if let Some(table) = &mut self.residues {
            let mut columns = head();
            columns.push(Column::Floats(record.own.clone()));
            columns.extend((0..width).map(|at| Column::Floats(column(at))));
            table.put(columns)?;
        }
        if let Some(table) = &mut self.scan {
            let mut columns = head();
            columns.extend((0..AMINO_ACIDS.len()).map(|at| {
                let scores = column(at).into_iter().zip(&record.own);
                Column::Floats(scores.map(|(mutant, own)| mutant - own).collect())
            }));
            table.put(columns)?;
        }
        Ok(())
    }

    /// Completes all tables, and gives them their names.
    pub fn finish(mut self) -> Result<Vec<Written>, ScoreError> {
        if let (Some(table), Some((_, variants))) = (&mut self.variants, &self.options.variants) {
            self.scored.sort_by_key(|&(variant, _)| variant);
            let rows = self.scored.iter();
            let of = |field: fn(&super::variants::Variant) -> &String| {
                let rows = rows.clone();
                let texts = rows.map(|&(variant, _)| field(&variants.all[variant]).clone());
                Column::Texts(texts.collect())
            };
            table.put(vec![
                of(|variant| &variant.id),
                of(|variant| &variant.text),
                Column::Doubles(rows.clone().map(|&(_, score)| score).collect()),
            ])?;
        }
        // The last one is that which the report names.
        let all = [self.residues, self.scan, self.records, self.variants];
        let all = all.into_iter().flatten().map(Table::complete);
        Ok(output::publish(all.collect::<Result<_, _>>()?)?)
    }
}
