//! `seqembed plot`: a table of embedding files, and a scatter plot of their first two principal
//! components.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use ndarray::ArrayView2;

use super::{inputs, print};
use crate::output::{self, Layout, Reader, Rows};
use crate::plot::pca::Moments;
use crate::plot::scatter::{PictureKind, Point, ScatterPlot, Series};
use crate::targets::Targets;
use crate::text::{counted, thousands};
use crate::threads;

/// Maximum number of points drawn: more would only overlap, and make the file large.
const POINTS: u64 = 10_000;
/// Widest vectors accepted: their covariance matrix takes 2 GiB.
const WIDEST: usize = 1 << 14;
/// The properties that two files must share for their vectors to be comparable.
pub(super) const SPACE: [&str; 4] = ["model", "layer", "pooling", "random_seed"];

/// Plot embeddings in two dimensions, coloured by file
///
/// Reads pooled outputs, prints a table of the files, and draws a scatter plot of the first two
/// principal components, which are computed from all rows. If there are more than 10,000 rows,
/// 10,000 evenly spaced ones are drawn.
#[derive(Debug, clap::Args)]
pub struct PlotArgs {
    /// Embedding files, or folders of them (an output folder of `run` or `embed`)
    #[arg(value_name = "FILE|FOLDER", required = true)]
    inputs: Vec<PathBuf>,

    /// The plot to write: .svg, or .html for a page with the same plot and tooltips
    #[arg(short, long, value_name = "FILE", default_value = "plot.svg", value_parser = picture)]
    output: Picture,

    /// Of files with several poolings or layers, the column to plot, such as `mean_33` [default:
    /// the first]
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
}

/// Prints the table and writes the plot.
///
/// # Errors
/// If there is nothing to draw, if the files' vectors are not comparable, or if a file cannot be
/// read or written.
pub fn run(args: &PlotArgs) -> anyhow::Result<ExitCode> {
    let mut files = files(&args.inputs)?;
    for file in &mut files {
        file.column.clone_from(&args.column);
    }
    let mut targets = Targets::default();
    for file in &files {
        targets.reads_output("a file to plot", &file.path);
    }
    targets.is_not_read(&args.output.path, &args.output.path)?;
    let first = first_layout(&files)?;
    let (summaries, moments) = survey(&files, first.hidden, &mut |_, _| {})?;
    let table = table(&files, &summaries, first.hidden);
    if moments.rows() == 0 {
        print(&table)?;
        bail!("there is nothing to plot: no row of these files has an embedding");
    }
    let figure = figure(&files, &first, &summaries, moments, POINTS)?;
    figure
        .write(&args.output.path, args.output.kind)
        .with_context(|| format!("cannot write {}", args.output.path.display()))?;
    print(&format!("{table}plot: {}\n", args.output.path.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Draws a scatter plot of files with comparable vectors that were surveyed before, with at most
/// `most` points.
///
/// # Errors
/// If a file cannot be read.
pub(super) fn figure(
    files: &[PlotFile],
    first: &Layout,
    summaries: &[Summary],
    moments: Moments,
    most: u64,
) -> anyhow::Result<ScatterPlot> {
    let shown = moments.rows();
    let projection = moments.projection();
    Ok(ScatterPlot {
        title: first.provenance("model").unwrap_or("Embeddings").to_owned(),
        subtitle: format!(
            "{} from {} · {} embeddings in {} dimensions, first two principal components",
            counted(shown, "sequence"),
            counted(files.len() as u64, "file"),
            match first.provenance("pooling") {
                Some(pooling) => format!("{pooling}-pooled"),
                None => "pooled".to_owned(),
            },
            first.hidden,
        ),
        warning: first.provenance("random_seed").map(|seed| {
            format!(
                "Random weights (seed {seed}): for demonstration only, distances are \
                     meaningless"
            )
        }),
        axes: [0, 1].map(|axis| {
            format!(
                "PC{} ({:.1} % of variance)",
                axis + 1,
                100.0 * projection.explained[axis]
            )
        }),
        notes: notes(summaries, shown, most),
        series: points(files, shown, most, &|row| projection.project(row))?,
    })
}

/// The path of the plot and the file type that its extension asks for.
#[derive(Debug, Clone)]
struct Picture {
    path: PathBuf,
    kind: PictureKind,
}

fn picture(path: &str) -> Result<Picture, &'static str> {
    let path = PathBuf::from(path);
    let kind = match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => PictureKind::Svg,
        Some("html" | "htm") => PictureKind::Html,
        _ => return Err("the plot must have the extension .svg or .html"),
    };
    Ok(Picture { path, kind })
}

/// A file to draw, with the name shown for it.
pub(super) struct PlotFile {
    pub(super) path: PathBuf,
    pub(super) label: String,
    /// The column whose vectors are shown; `None`: the first.
    pub(super) column: Option<String>,
}

/// One row of the table: counts for one file.
#[derive(Default)]
pub(super) struct Summary {
    rows: u64,
    residues: u64,
    status: BTreeMap<String, u64>,
    /// Rows without an embedding, because the record was skipped.
    without: u64,
}

/// The files named by the arguments, each with a name that is unique in the plot.
fn files(inputs: &[PathBuf]) -> anyhow::Result<Vec<PlotFile>> {
    let paths = inputs::expand(inputs)?;
    let stem = |path: &Path| {
        path.file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let mut stems: HashMap<String, usize> = HashMap::new();
    for path in &paths {
        *stems.entry(stem(path)).or_default() += 1;
    }
    Ok(paths
        .into_iter()
        .map(|path| {
            let stem = stem(&path);
            let label = if stems[&stem] == 1 {
                stem
            } else {
                path.display().to_string()
            };
            PlotFile {
                path,
                label,
                column: None,
            }
        })
        .collect())
}

/// Checks that all files hold pooled and comparable vectors, before any work is done.
fn first_layout(files: &[PlotFile]) -> anyhow::Result<Layout> {
    let mut first: Option<Layout> = None;
    for file in files {
        let layout = open(file)?.layout().clone();
        let path = file.path.display();
        if layout.per_token {
            bail!(
                "{path} has one vector per residue, which cannot be plotted: use the output of a \
                 run with one vector per record (--pooling mean)"
            );
        }
        let Some(first) = &first else {
            first = Some(layout);
            continue;
        };
        let other = first.path.display();
        for key in SPACE {
            let (a, b) = (first.provenance(key), layout.provenance(key));
            if a != b {
                bail!(
                    "the vectors of {path} and {other} are not comparable, because {key} is {} \
                     and {}: plot the files separately",
                    b.unwrap_or("not given"),
                    a.unwrap_or("not given"),
                );
            }
        }
        if layout.hidden != first.hidden {
            bail!(
                "the vectors of {path} and {other} are not comparable, because they have {} and \
                 {} dimensions: plot the files separately",
                layout.hidden,
                first.hidden,
            );
        }
    }
    first.context("there is no file to plot")
}

/// First pass over all rows, for the table and the principal components; each block is also passed
/// to `look`.
///
/// # Errors
/// If a file cannot be read.
pub(super) fn survey(
    files: &[PlotFile],
    hidden: usize,
    look: &mut dyn FnMut(&PlotFile, &Rows),
) -> anyhow::Result<(Vec<Summary>, Moments)> {
    if !(1..=WIDEST).contains(&hidden) {
        bail!(
            "vectors of {hidden} dimensions cannot be plotted: 1 to {WIDEST} dimensions are \
               supported"
        );
    }
    threads::pool(threads::helpful(None))?;
    let mut moments = Moments::new(hidden);
    let mut summaries = Vec::new();
    for file in files {
        let mut summary = Summary::default();
        for rows in open(file)? {
            let rows = rows?;
            look(file, &rows);
            summary.rows += rows.len() as u64;
            // The readers accept lengths close to 2^64, whose sum would overflow.
            let residues = rows.lengths.iter().copied();
            summary.residues = residues.fold(summary.residues, u64::saturating_add);
            for status in &rows.status {
                let names = match status.split_once(':') {
                    Some((name, _why)) => name,
                    None => status,
                };
                for name in names.split(',') {
                    *summary.status.entry(name.to_owned()).or_default() += 1;
                }
            }
            let mut finite = Vec::with_capacity(rows.values.len());
            for row in rows.values.chunks_exact(hidden) {
                if is_embedded(row) {
                    finite.extend_from_slice(row);
                } else {
                    summary.without += 1;
                }
            }
            let count = finite.len() / hidden;
            let view = ArrayView2::from_shape((count, hidden), &finite)
                .expect("whole rows were collected");
            moments.add(&view);
        }
        summaries.push(summary);
    }
    Ok((summaries, moments))
}

/// Second pass, with known axes: projects the rows and keeps the points to draw.
fn points(
    files: &[PlotFile],
    shown: u64,
    most: u64,
    project: &dyn Fn(&[f32]) -> [f64; 2],
) -> anyhow::Result<Vec<Series>> {
    let drawn = shown.min(most);
    let mut index = 0;
    let mut all = Vec::new();
    for file in files {
        let mut series = Series {
            label: file.label.clone(),
            rows: 0,
            points: Vec::new(),
        };
        for rows in open(file)? {
            let rows = rows?;
            for (row, vector) in rows.values.chunks_exact(rows.hidden).enumerate() {
                if !is_embedded(vector) {
                    continue;
                }
                series.rows += 1;
                // This holds for exactly `drawn` indices, evenly spaced.
                let is_drawn = index * drawn / shown != (index + 1) * drawn / shown;
                index += 1;
                if is_drawn {
                    series.points.push(Point {
                        at: project(vector),
                        label: rows.headers[row].clone(),
                        note: format!("{} residues, {}", rows.lengths[row], rows.status[row]),
                    });
                }
            }
        }
        all.push(series);
    }
    Ok(all)
}

fn open(file: &PlotFile) -> anyhow::Result<Reader> {
    Ok(output::open(&file.path)?.column(file.column.as_deref())?)
}

/// The row of a skipped record is all NaN.
fn is_embedded(row: &[f32]) -> bool {
    row.iter().all(|x| x.is_finite())
}

fn notes(summaries: &[Summary], shown: u64, most: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if shown > most {
        notes.push(format!(
            "{} of {} points drawn, evenly spaced in input order; components from all",
            thousands(most),
            thousands(shown)
        ));
    }
    let without: u64 = summaries.iter().map(|summary| summary.without).sum();
    if without > 0 {
        notes.push(format!(
            "{} skipped and not drawn",
            counted(without, "record")
        ));
    }
    notes
}

/// One line per file, one column per status that occurs, and a line of totals.
fn table(files: &[PlotFile], summaries: &[Summary], hidden: usize) -> String {
    let mut total = Summary::default();
    for summary in summaries {
        total.rows += summary.rows;
        total.residues += summary.residues;
        for (status, count) in &summary.status {
            *total.status.entry(status.clone()).or_default() += count;
        }
    }
    let mut statuses: Vec<&String> = total.status.keys().collect();
    statuses.sort_by_key(|status| (*status != "ok", *status));
    let mut lines = vec![
        ["file", "rows", "dimensions", "mean length"]
            .into_iter()
            .chain(statuses.iter().map(|status| status.as_str()))
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    ];
    let mut line = |label: &str, summary: &Summary| {
        let mut cells = vec![
            label.to_owned(),
            thousands(summary.rows),
            hidden.to_string(),
            match summary.rows {
                0 => "-".to_owned(),
                rows => format!("{:.1}", summary.residues as f64 / rows as f64),
            },
        ];
        cells.extend(
            statuses
                .iter()
                .map(|&status| thousands(summary.status.get(status).copied().unwrap_or(0))),
        );
        lines.push(cells);
    };
    for (file, summary) in files.iter().zip(summaries) {
        line(&file.label, summary);
    }
    if files.len() > 1 {
        line("all", &total);
    }
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|column| {
            let cells = lines.iter().map(|cells| cells[column].chars().count());
            cells.max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for cells in lines {
        for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let written = if column == 0 {
                write!(text, "{cell:width$}")
            } else {
                write!(text, "  {cell:>width$}")
            };
            written.expect("writing to a String cannot fail");
        }
        text.push('\n');
    }
    text
}
