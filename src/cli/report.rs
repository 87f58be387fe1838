//! `seqembed report`: the report of a run as an HTML page.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::plot::{self, PlotFile, SPACE};
use super::{pass_on, print, say};
use crate::html_report::lengths::Lengths;
use crate::html_report::{HtmlReport, Marked, Space};
use crate::output::{self, Layout, Rows};
use crate::plot::heat_map::{HeatMap, MapColumn};
use crate::plot::scatter::{self, Series};
use crate::report::Report;
use crate::run::REPORT;
use crate::run::score::{self, AMINO_ACIDS, Scan};
use crate::targets::{TargetError, Targets};
use crate::text::counted;

/// Make an HTML page from a run's report
///
/// The page shows the files, the sequence lengths, the batches, the time per stage, the model
/// loads, the skipped and otherwise marked records, and the scatter plot that `plot` draws; of
/// scores, heat maps of the first sequences with all single substitutions (--scan). It is a single
/// file that needs no network and no scripts, made from report.json and the outputs in the same
/// folder.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// The output folder of `seqembed run`, `seqembed embed` or `seqembed score`
    #[arg(value_name = "FOLDER", required_unless_present = "schema")]
    folder: Option<PathBuf>,

    /// The HTML file to write
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,

    /// Print the JSON schema of report.json instead
    #[arg(long, conflicts_with_all = ["folder", "output"])]
    schema: bool,
}

/// Maximum number of points in the scatter plot; each takes about 300 bytes.
const POINTS: u64 = 4000;
/// Maximum number of files that get a colour of their own.
const COLOURED: usize = 48;
/// Maximum number of skipped and replaced records to list.
const MARKED: usize = 500;
/// Maximum number of sequences whose scans are drawn, and of their positions in all.
const SCANS: usize = 6;
const POSITIONS: usize = 2000;

/// Writes the HTML page, or prints the schema.
///
/// # Errors
/// If there is no report, or the page cannot be written. Outputs that cannot be read are listed in
/// the page instead.
pub fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let Some(folder) = args.folder.as_ref().filter(|_| !args.schema) else {
        let schema = Report::schema();
        pass_on(&format!("{}\n", serde_json::to_string_pretty(&schema)?))?;
        return Ok(ExitCode::SUCCESS);
    };
    let report = read(folder)?;
    not_read(&report, folder, &args.output)?;
    let page = page(report, folder);
    scatter::write(&args.output, &page.html())
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    let text = format!("page: {}\n", args.output.display());
    if args.output.is_file() {
        print(&text)?;
    } else {
        // The output may be a pipe to standard output, so nothing but the page is written there.
        say(text.trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks that the page would not overwrite the report, an output or an input of the run.
fn not_read(report: &Report, folder: &Path, page: &Path) -> Result<(), TargetError> {
    let mut targets = Targets::default();
    targets.reads(
        "the report that the page is made from",
        &folder.join(REPORT),
    );
    for file in &report.files {
        targets.reads("an input of the run", Path::new(&file.source));
        if let Some(output) = &file.output {
            targets.reads_output("an output of the run", &place(output, folder));
        }
    }
    targets.is_not_read(page, page)
}

fn read(folder: &Path) -> anyhow::Result<Report> {
    let path = folder.join(REPORT);
    if !path.is_file() {
        bail!(
            "{} has no report.json: give an output folder of `seqembed run`, `seqembed embed` or \
             `seqembed score`",
            folder.display()
        );
    }
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is not a report that this version of seqembed ({}) can read",
            path.display(),
            env!("CARGO_PKG_VERSION")
        )
    })
}

/// Reads from the outputs what `report.json` does not contain: lengths, marked records and vectors.
fn page(report: Report, folder: &Path) -> HtmlReport {
    let mut page = HtmlReport {
        lengths: Lengths::default(),
        marked: Vec::new(),
        spaces: Vec::new(),
        scans: Vec::new(),
        has_scores: false,
        unread: Vec::new(),
        report,
    };
    // Groups of files whose vectors are comparable, in order of first appearance.
    let mut groups: Vec<(Layout, Vec<PlotFile>)> = Vec::new();
    let mut known: HashMap<Vec<String>, usize> = HashMap::new();
    for file in std::mem::take(&mut page.report.files) {
        let Some(output) = &file.output else {
            page.report.files.push(file);
            continue;
        };
        let path = place(output, folder);
        if score::is_table(&path) {
            scores(&mut page, &path, &file.sample);
            page.report.files.push(file);
            continue;
        }
        match output::open(&path).and_then(|reader| reader.column(None)) {
            Ok(reader) => {
                let layout = reader.layout();
                let at = *known.entry(space(layout)).or_insert_with(|| {
                    groups.push((layout.clone(), Vec::new()));
                    groups.len() - 1
                });
                groups[at].1.push(PlotFile {
                    path,
                    label: file.sample.clone(),
                    column: None,
                });
            }
            Err(error) => page.unread.push(error.to_string()),
        }
        page.report.files.push(file);
    }
    for (layout, files) in groups {
        let mut look = |file: &PlotFile, rows: &Rows| {
            for (at, status) in rows.status.iter().enumerate() {
                let (id, length) = (&rows.ids[at], rows.lengths[at]);
                count(&mut page, &file.label, (id, length, status));
            }
        };
        let plot = scatter_plot(&layout, &files, &mut look);
        page.spaces.push(Space {
            model: layout.provenance("model").unwrap_or("?").to_owned(),
            plot: plot.map_err(|error| format!("{error:#}")),
            provenance: layout.provenance,
        });
    }
    page
}

/// Counts a record, and lists it if it is marked.
fn count(page: &mut HtmlReport, sample: &str, (id, length, status): (&str, u64, &str)) {
    page.lengths.add(length);
    let mut marks = status.split(',');
    let told = status.starts_with("skipped")
        || marks.any(|mark| matches!(mark, "replaced" | "all-unknown"));
    if told && page.marked.len() < MARKED {
        page.marked.push(Marked {
            sample: sample.to_owned(),
            id: id.to_owned(),
            length,
            status: status.to_owned(),
        });
    }
}

/// Reads a file's tables of scores.
fn scores(page: &mut HtmlReport, path: &Path, sample: &str) {
    page.has_scores = true;
    let read = score::records(path, &mut |row| {
        count(page, sample, (&row.id, row.length, &row.status));
    });
    if let Err(why) = read {
        page.unread.push(why);
    }
    let Some(scan) = score::scan_beside(path) else {
        return;
    };
    let drawn = page.scans.iter().map(|map| map.columns.len()).sum();
    let left = POSITIONS.saturating_sub(drawn);
    match score::scans(&scan, SCANS - page.scans.len().min(SCANS), left) {
        Ok(scans) => page
            .scans
            .extend(scans.iter().map(|scan| map(scan, sample))),
        Err(why) => page.unread.push(why),
    }
}

/// A scan as a picture.
fn map(scan: &Scan, sample: &str) -> HeatMap {
    let columns = scan.positions.iter().zip(&scan.scores);
    let columns = columns.map(|((position, letter), scores)| MapColumn {
        position: *position,
        label: letter.clone(),
        marked: AMINO_ACIDS
            .iter()
            .position(|known| *letter == known.to_string()),
        values: scores.to_vec(),
    });
    HeatMap {
        title: format!("All single substitutions of {}", scan.id),
        subtitle: format!("{sample}: {}", counted(scan.positions.len() as u64, "position")),
        scale: "log-probability of the letter in place of the one that stands there, less that of the latter"
            .to_owned(),
        rows: AMINO_ACIDS.map(|letter| letter.to_string()).into(),
        columns: columns.collect(),
        notes: vec![
            "A dot marks the letter that stands there. One value of a hundred is beyond the deepest colour."
                .to_owned(),
        ],
    }
}

/// The current path of an output: in the folder of the report, or else where it was written.
fn place(output: &Path, folder: &Path) -> PathBuf {
    let beside = output.file_name().map(|name| folder.join(name));
    beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| output.to_owned())
}

/// The properties that two files must share for their vectors to be comparable.
fn space(layout: &Layout) -> Vec<String> {
    SPACE
        .iter()
        .map(|key| layout.provenance(key).unwrap_or_default().to_owned())
        .chain([layout.hidden.to_string(), layout.per_token.to_string()])
        .collect()
}

/// Reads the files, and draws a scatter plot if there is something to draw.
fn scatter_plot(
    layout: &Layout,
    files: &[PlotFile],
    look: &mut dyn FnMut(&PlotFile, &Rows),
) -> anyhow::Result<crate::plot::scatter::ScatterPlot> {
    if layout.per_token {
        for file in files {
            for rows in output::open(&file.path)? {
                look(file, &rows?);
            }
        }
        bail!("the outputs have one vector per residue, not one per record");
    }
    let (summaries, moments) = plot::survey(files, layout.hidden, look)?;
    if moments.rows() < 2 {
        bail!("there are fewer than two embeddings to plot");
    }
    let mut figure = plot::figure(files, layout, &summaries, moments, POINTS)?;
    figure.title = format!("Embeddings by {}", figure.title);
    // The page has its own banner for random weights.
    figure.warning = None;
    gather(&mut figure.series);
    Ok(figure)
}

/// Merges the smallest files into one series if there are more files than colours.
fn gather(series: &mut Vec<Series>) {
    if series.len() <= COLOURED {
        return;
    }
    let mut sizes: Vec<u64> = series.iter().map(|series| series.rows).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    // Among files as large as the smallest one with a colour, the first ones get a colour.
    let least = sizes[COLOURED - 2];
    let mut equal = COLOURED - 1 - sizes.iter().filter(|&&size| size > least).count();
    let (own, others): (Vec<Series>, Vec<Series>) =
        std::mem::take(series).into_iter().partition(|series| {
            let fits = series.rows == least && equal > 0;
            equal -= usize::from(fits);
            fits || series.rows > least
        });
    *series = own;
    series.push(Series {
        label: counted(others.len() as u64, "other file"),
        rows: others.iter().map(|series| series.rows).sum(),
        points: others
            .into_iter()
            .flat_map(|series| series.points)
            .collect(),
    });
}
