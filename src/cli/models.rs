//! `seqembed models`: the models known by name.

use std::process::ExitCode;

use seqembed_onnx::{KnownModel, known_models};

use super::print;

/// List the models known by name
#[derive(Debug, clap::Args)]
pub struct ModelsArgs {}

/// Titles of the columns; those of numbers are aligned to the right.
const TITLES: [&str; 9] = [
    "NAME",
    "FAMILY",
    "LETTERS",
    "PARAMETERS",
    "LAYERS",
    "WIDTH",
    "FP32 SIZE",
    "LICENCE",
    "HUB ID",
];

/// Which columns have numbers.
const NUMBERS: std::ops::Range<usize> = 3..7;

/// Prints the table of known models.
///
/// # Errors
/// If standard output is closed.
pub fn run(_: &ModelsArgs) -> anyhow::Result<ExitCode> {
    let mut rows = vec![TITLES.map(str::to_owned)];
    rows.extend(known_models().iter().map(row));
    print(&table(&rows))?;
    Ok(ExitCode::SUCCESS)
}

fn row(known: &KnownModel) -> [String; TITLES.len()] {
    let publication = known.publication;
    let restriction = if publication.non_commercial() {
        " (no commercial use)"
    } else {
        ""
    };
    [
        known.name.to_owned(),
        publication.family.to_owned(),
        publication.letters.to_owned(),
        known.parameters.to_owned(),
        known.architecture.layers().to_string(),
        known.architecture.hidden().to_string(),
        format!("{:.0} MB", known.weights_bytes() as f64 / 1e6),
        format!("{}{restriction}", publication.licence),
        known.hub_id.to_owned(),
    ]
}

/// The rows with columns as wide as their longest text.
fn table(rows: &[[String; TITLES.len()]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max();
    let widths: Vec<usize> = (0..TITLES.len()).filter_map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let line: Vec<String> = cells
            .map(|(column, (cell, &width))| {
                if NUMBERS.contains(&column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            })
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    text
}
