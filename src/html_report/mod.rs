//! The report of a run as one page: no script, and nothing that it would have to load.
//!
//! The page is written as XML, which browsers also accept as HTML, so that a parser can check that
//! every element is closed.

pub mod histogram;
pub mod lengths;

use std::fmt::{self, Write as _};

use self::histogram::{Bin, Histogram};
use self::lengths::Lengths;
use crate::plot::heat_map::HeatMap;
use crate::plot::scatter::{ScatterPlot, escaped};
use crate::report::{FileReport, Loaded, Report};
use crate::text::{are, counted, thousands};

/// Rows of the table of files at most: more would make the page slow, and report.json has them all.
const FILES: usize = 2000;

/// A record that was skipped, or whose letters were replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// Sample name of its file.
    pub sample: String,
    /// Id of the record: the first word of its header.
    pub id: String,
    /// Length in residues or bases.
    pub length: u64,
    /// What happened to it.
    pub status: String,
}

/// Comparable embeddings, for one scatter plot.
#[derive(Debug, Clone)]
pub struct Space {
    /// Name of the model.
    pub model: String,
    /// Their two principal components; none when there is nothing to draw, and then why.
    pub plot: Result<ScatterPlot, String>,
    /// Their provenance, from the first of their files.
    pub provenance: Vec<(String, String)>,
}

/// All that the page shows.
#[derive(Debug, Clone)]
pub struct HtmlReport {
    /// The run's report.
    pub report: Report,
    /// Lengths of the sequences in the outputs.
    pub lengths: Lengths,
    /// The first of the marked records.
    pub marked: Vec<Marked>,
    /// The spaces, in the order of their first file.
    pub spaces: Vec<Space>,
    /// Scans of all single substitutions.
    pub scans: Vec<HeatMap>,
    /// Whether the outputs are scores, and not embeddings.
    pub has_scores: bool,
    /// Outputs that could not be read, and why.
    pub unread: Vec<String>,
}

impl HtmlReport {
    /// The page as XHTML, with its styles and plots in it.
    #[must_use]
    pub fn html(&self) -> String {
        let mut html = String::new();
        self.write(&mut html)
            .expect("writing to a String cannot fail");
        html
    }

    fn write(&self, html: &mut String) -> fmt::Result {
        let report = &self.report;
        let mut models: Vec<&str> = report.files.iter().map(|f| f.model.as_str()).collect();
        models.sort_unstable();
        models.dedup();
        let models = match &models[..] {
            [] => "No files".to_owned(),
            models => models.join(", "),
        };
        writeln!(
            html,
            "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <title>{title}: {what} of {files}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n\
             <header><h1>{title}</h1>\n<p>{files} {done} in {time} on {device}</p></header>",
            title = escaped(&models),
            what = if self.has_scores {
                "scores"
            } else {
                "embeddings"
            },
            done = if self.has_scores {
                "scored"
            } else {
                "embedded"
            },
            files = counted(report.totals.files, "file"),
            style = include_str!("style.css"),
            time = duration(report.totals.seconds),
            device = escaped(&report.device),
        )?;
        self.notes(html)?;
        self.tiles(html)?;
        self.plots(html)?;
        writeln!(html, "<div class=\"pair\">")?;
        self.lengths(html)?;
        self.fill(html)?;
        writeln!(html, "</div>")?;
        self.time(html)?;
        self.loads(html)?;
        self.marks(html)?;
        self.files(html)?;
        self.provenance(html)?;
        writeln!(
            html,
            "<footer>seqembed {}{}</footer>\n</main>\n</body>\n</html>",
            escaped(&report.seqembed),
            report
                .onnxruntime
                .as_ref()
                .map(|version| format!(" with ONNX Runtime {}", escaped(version)))
                .unwrap_or_default()
        )
    }

    /// Prominent warnings.
    fn notes(&self, html: &mut String) -> fmt::Result {
        if let Some(load) = self.report.loads.iter().find(|l| l.random_seed.is_some()) {
            writeln!(
                html,
                "<p class=\"note\" role=\"note\">Random weights ({}): for demonstration only, the \
                 {} are meaningless</p>",
                escaped(&load.model),
                if self.has_scores {
                    "scores"
                } else {
                    "embeddings"
                }
            )?;
        }
        let failed: Vec<&FileReport> = failed(&self.report).collect();
        if !failed.is_empty() {
            writeln!(
                html,
                "<div class=\"note bad\" role=\"note\">{} failed; no output was written<ul>",
                counted(failed.len() as u64, "file")
            )?;
            for file in failed {
                writeln!(
                    html,
                    "<li>{}: {}</li>",
                    escaped(&file.sample),
                    escaped(file.error.as_deref().unwrap_or_default())
                )?;
            }
            writeln!(html, "</ul></div>")?;
        }
        if !self.unread.is_empty() {
            writeln!(
                html,
                "<div class=\"note\" role=\"note\">{} could not be read, and {} not included in \
                 the lengths, records and embeddings below<ul>",
                counted(self.unread.len() as u64, "output"),
                are(self.unread.len() as u64)
            )?;
            for why in &self.unread {
                writeln!(html, "<li>{}</li>", escaped(why))?;
            }
            writeln!(html, "</ul></div>")?;
        }
        Ok(())
    }

    fn tiles(&self, html: &mut String) -> fmt::Result {
        let totals = &self.report.totals;
        let mut tiles = vec![
            ("Files", thousands(totals.files)),
            ("Sequences", thousands(totals.records)),
            ("Residues or bases", thousands(totals.residues)),
            ("Time", duration(totals.seconds)),
            ("Tokens per second", rounded(totals.tokens_per_second)),
            (
                if self.report.loads.len() == 1 {
                    "Model load"
                } else {
                    "Model loads"
                },
                thousands(self.report.loads.len() as u64),
            ),
        ];
        if let Some(bytes) = totals.peak_memory_bytes {
            tiles.push(("Peak memory", memory(bytes)));
        }
        writeln!(html, "<dl class=\"tiles\">")?;
        for (what, value) in tiles {
            writeln!(
                html,
                "<div><dt>{what}</dt><dd>{}</dd></div>",
                escaped(&value)
            )?;
        }
        writeln!(html, "</dl>")
    }

    fn plots(&self, html: &mut String) -> fmt::Result {
        for space in &self.spaces {
            match &space.plot {
                // The plot has the title in it.
                Ok(figure) => writeln!(
                    html,
                    "<section><h2 class=\"unseen\">Embeddings</h2>\n<figure class=\"plot\" role=\"img\" aria-label=\"{}: {}, a colour a file\">{}</figure>\n</section>",
                    escaped(&figure.title),
                    escaped(&figure.subtitle),
                    figure.svg()
                )?,
                Err(why) => writeln!(
                    html,
                    "<section><h2>Embeddings by {}</h2>\n<p class=\"soft\">No plot: {}.</p></section>",
                    escaped(&space.model),
                    escaped(why)
                )?,
            }
        }
        for map in &self.scans {
            writeln!(
                html,
                "<section><h2 class=\"unseen\">Scan</h2>\n<figure class=\"plot map\" role=\"img\" aria-label=\"{}: {}\">{}</figure>\n</section>",
                escaped(&map.title),
                escaped(&map.subtitle),
                map.svg()
            )?;
        }
        Ok(())
    }

    fn lengths(&self, html: &mut String) -> fmt::Result {
        writeln!(html, "<section><h2>Lengths</h2>")?;
        let Some([shortest, median, longest]) = self.lengths.extent() else {
            return writeln!(
                html,
                "<p class=\"soft\">There are no sequences to show.</p></section>"
            );
        };
        writeln!(
            html,
            "<p>{}: {} to {} long, half of them up to {}.</p>",
            counted(self.lengths.count(), "sequence"),
            thousands(shortest),
            thousands(longest),
            thousands(median)
        )?;
        self.lengths.histogram().write(html)?;
        writeln!(html, "</section>")
    }

    fn fill(&self, html: &mut String) -> fmt::Result {
        let totals = &self.report.totals;
        writeln!(html, "<section><h2>How full the batches were</h2>")?;
        let Some(budget) = totals.batch_tokens else {
            return writeln!(html, "<p class=\"soft\">Not in the report.</p></section>");
        };
        writeln!(
            html,
            "<p>{} of up to {} tokens, {} on average; {:.1} % of the tokens computed were \
             padding.</p>",
            counted(totals.batches, "batch"),
            thousands(budget),
            rounded(totals.tokens as f64 / totals.batches.max(1) as f64),
            100.0 * totals.padding
        )?;
        let bins = totals.batch_fill.iter().enumerate();
        let histogram = Histogram {
            title: "Number of batches by share of the token limit".to_owned(),
            counted: "Batches".to_owned(),
            axis: "Tokens in a batch, as a share of the limit".to_owned(),
            bins: bins
                .map(|(tenth, &count)| Bin {
                    label: format!("{} to {} %", 10 * tenth, 10 * (tenth + 1)),
                    count,
                })
                .collect(),
            ticks: [0, 2, 4, 6, 8, 10]
                .map(|tenth| (f64::from(tenth), format!("{} %", 10 * tenth)))
                .into(),
        };
        histogram.write(html)?;
        writeln!(html, "</section>")
    }

    fn time(&self, html: &mut String) -> fmt::Result {
        let report = &self.report;
        let (totals, stages) = (&report.totals, &report.totals.stages);
        let rows = [
            ("Loading models", totals.load_seconds),
            ("Reading and decompressing", stages.reading),
            ("Tokenizing and batching", stages.tokenizing),
            ("Computing (all workers)", stages.computing),
            ("Ordering and writing", stages.writing),
        ];
        let most = rows.iter().map(|row| row.1).fold(0.0, f64::max);
        writeln!(
            html,
            "<section><h2>Time by stage</h2>\n<p>The run took {} with {} and {} computed at a \
             time. Stages overlap, so their times do not add up to the total.{}{}</p>\n<table \
             class=\"bars\"><thead><tr><th class=\"text\" scope=\"col\">Stage</th><th \
             scope=\"col\">Seconds</th><th class=\"text\" \
             scope=\"col\">Compared</th></tr></thead><tbody>",
            duration(totals.seconds),
            counted(report.threads as u64, "thread"),
            counted(report.workers as u64, "batch"),
            totals
                .first_embedding_seconds
                .map(|seconds| format!(
                    " The first batch was finished after {}.",
                    duration(seconds)
                ))
                .unwrap_or_default(),
            self.spared(),
        )?;
        for (stage, seconds) in rows {
            writeln!(
                html,
                "<tr><th class=\"text\" scope=\"row\">{stage}</th><td>{seconds:.2}</td><td class=\"bar\">\
                 <span style=\"width:{:.1}%\"></span></td></tr>",
                if most > 0.0 {
                    100.0 * seconds / most
                } else {
                    0.0
                }
            )?;
        }
        writeln!(html, "</tbody></table></section>")
    }

    /// What did not have to be computed.
    fn spared(&self) -> String {
        let totals = &self.report.totals;
        let mut parts = Vec::new();
        if totals.kept_files > 0 {
            let files = counted(totals.kept_files, "file");
            parts.push(format!(" An earlier run had already finished {files}."));
        }
        if totals.restored > 0 {
            let rows = counted(totals.restored, "row");
            parts.push(format!(" An interrupted run had saved {rows}."));
        }
        if totals.repeated > 0 {
            let records = counted(totals.repeated, "record");
            parts.push(format!(
                " Not recomputed because the same sequence was already embedded: {records}."
            ));
        }
        parts.concat()
    }

    fn loads(&self, html: &mut String) -> fmt::Result {
        writeln!(html, "<section><h2>Loads and devices</h2>")?;
        if self.report.loads.is_empty() {
            return writeln!(
                html,
                "<p class=\"soft\">No model was loaded, because there was nothing to \
                 embed.</p></section>"
            );
        }
        writeln!(
            html,
            "<div class=\"scroll\" role=\"region\" aria-label=\"Loads\" tabindex=\"0\"><table><thead><tr>\
             <th class=\"text\" scope=\"col\">Model</th><th scope=\"col\">Layer</th><th class=\"text\" scope=\"col\">Device</th>\
             <th class=\"text\" scope=\"col\">Precision</th><th scope=\"col\">Loads</th><th scope=\"col\">Total seconds</th>\
             <th class=\"text\" scope=\"col\">SHA-256 of the weights</th></tr></thead><tbody>"
        )?;
        for Loaded {
            load,
            times,
            seconds,
        } in self.report.models()
        {
            writeln!(
                html,
                "<tr><th class=\"text\" scope=\"row\">{}</th><td>{}</td><td class=\"text\">{}</td><td class=\"text\">{}</td><td>{}</td>\
                 <td>{seconds:.2}</td><td class=\"text\"><code>{}</code></td></tr>",
                escaped(&load.model),
                load.layer,
                escaped(&load.device),
                escaped(&load.precision),
                thousands(times),
                escaped(&load.weights_sha256)
            )?;
        }
        writeln!(html, "</tbody></table></div>")?;
        self.devices(html)?;
        writeln!(html, "</section>")
    }

    fn devices(&self, html: &mut String) -> fmt::Result {
        if self.report.devices.is_empty() {
            return Ok(());
        }
        if !self.report.device_why.is_empty() {
            writeln!(html, "<p>Chosen: {}.</p>", escaped(&self.report.device_why))?;
        }
        writeln!(
            html,
            "<div class=\"scroll\" role=\"region\" aria-label=\"Devices\" tabindex=\"0\"><table><thead><tr>\
             <th class=\"text\" scope=\"col\">Device</th><th class=\"text\" scope=\"col\">Precision</th><th scope=\"col\">Batches</th>\
             <th scope=\"col\">Tokens</th><th scope=\"col\">Busy</th><th scope=\"col\">Out-of-memory splits</th>\
             <th scope=\"col\">Recomputed</th><th class=\"text\" scope=\"col\">State</th></tr></thead><tbody>"
        )?;
        for device in &self.report.devices {
            writeln!(
                html,
                "<tr{}><th class=\"text\" scope=\"row\">{}</th><td class=\"text\">{}</td><td>{}</td><td>{}</td><td>{:.1} %</td>\
                 <td>{}</td><td>{}</td><td class=\"text\">{}</td></tr>",
                if device.lost.is_some() {
                    " class=\"failed\""
                } else {
                    ""
                },
                escaped(&if device.device == "cpu" {
                    device.name.clone()
                } else {
                    format!("{} ({})", device.device, device.name)
                }),
                escaped(&device.precision),
                thousands(device.batches),
                thousands(device.tokens),
                100.0 * device.busy,
                thousands(device.out_of_memory_splits),
                thousands(device.recomputed_batches),
                device
                    .lost
                    .as_ref()
                    .map_or_else(|| "ok".to_owned(), |why| format!("lost: {}", escaped(why)))
            )?;
        }
        writeln!(html, "</tbody></table></div>")
    }

    fn marks(&self, html: &mut String) -> fmt::Result {
        let totals = &self.report.totals;
        writeln!(html, "<section><h2>Marked records</h2>")?;
        let marks = [
            (
                "failed: too large for the memory, or values that are not finite",
                totals.failed_records,
            ),
            (
                "skipped, without a result",
                totals.skipped.saturating_sub(totals.failed_records),
            ),
            ("with unknown letters, replaced", totals.replaced),
            (
                "with alignment gaps (`-` or `.`), embedded as given",
                totals.gaps,
            ),
            ("longer than the limit, truncated", totals.truncated),
            (
                "longer than the limit, embedded in windows",
                totals.windowed,
            ),
        ];
        if marks.iter().all(|(_, count)| *count == 0) {
            return writeln!(
                html,
                "<p class=\"soft\">None: every record was taken as given.</p></section>"
            );
        }
        writeln!(html, "<ul>")?;
        for (what, number) in marks.iter().filter(|(_, number)| *number > 0) {
            writeln!(
                html,
                "<li><strong>{}</strong> {what}</li>",
                thousands(*number)
            )?;
        }
        writeln!(html, "</ul>")?;
        if !self.marked.is_empty() {
            let all = totals.skipped + totals.replaced;
            let shown = self.marked.len() as u64;
            writeln!(
                html,
                "<details{}><summary>Skipped and replaced records{}</summary>\n<div class=\"scroll\" role=\"region\" \
                 aria-label=\"Marked records\" tabindex=\"0\"><table><thead><tr><th class=\"text\" scope=\"col\">Record</th>\
                 <th class=\"text\" scope=\"col\">File</th><th scope=\"col\">Length</th><th class=\"text\" scope=\"col\">Status</th>\
                 </tr></thead><tbody>",
                if shown <= 12 { " open=\"open\"" } else { "" },
                if shown < all {
                    format!(
                        ": the first {}; the outputs have all of them",
                        thousands(shown)
                    )
                } else {
                    String::new()
                }
            )?;
            for record in &self.marked {
                writeln!(
                    html,
                    "<tr><th class=\"text\" scope=\"row\">{}</th><td class=\"text\">{}</td><td>{}</td><td class=\"text\">{}</td></tr>",
                    escaped(&record.id),
                    escaped(&record.sample),
                    thousands(record.length),
                    escaped(&record.status)
                )?;
            }
            writeln!(html, "</tbody></table></div></details>")?;
        }
        writeln!(html, "</section>")
    }

    fn files(&self, html: &mut String) -> fmt::Result {
        let files = &self.report.files;
        let warned = files
            .iter()
            .any(|file| !file.warnings.is_empty() || file.error.is_some());
        writeln!(
            html,
            "<section><h2>Files</h2>\n<div class=\"scroll\" role=\"region\" aria-label=\"Files\" tabindex=\"0\"><table>{}<thead><tr>\
             <th class=\"text\" scope=\"col\">Sample</th><th class=\"text\" scope=\"col\">Input</th><th scope=\"col\">Sequences</th>\
             <th scope=\"col\">Tokens</th><th scope=\"col\">Marked</th><th scope=\"col\">Computing</th>{}</tr></thead><tbody>",
            if files.len() > FILES {
                format!(
                    "<caption>The first {} of {}; report.json has all of them</caption>",
                    thousands(FILES as u64),
                    thousands(files.len() as u64)
                )
            } else {
                String::new()
            },
            if warned {
                "<th class=\"text\" scope=\"col\">Remarks</th>"
            } else {
                ""
            }
        )?;
        for file in files.iter().take(FILES) {
            let marked = file.skipped + file.replaced + file.gaps + file.truncated + file.windowed;
            write!(
                html,
                "<tr{}><th class=\"text\" scope=\"row\">{}</th><td class=\"text\">{}</td><td>{}</td><td>{}</td><td>{}</td>\
                 <td>{:.2} s</td>",
                if file.error.is_some() {
                    " class=\"failed\""
                } else {
                    ""
                },
                escaped(&file.sample),
                escaped(&file.source),
                thousands(file.records),
                thousands(file.tokens),
                thousands(marked),
                file.computing_seconds,
            )?;
            if warned {
                let words = file.error.iter().chain(&file.warnings);
                let words: Vec<String> = words.map(|text| escaped(text)).collect();
                write!(html, "<td class=\"text\">{}</td>", words.join("<br/>"))?;
            }
            writeln!(html, "</tr>")?;
        }
        writeln!(html, "</tbody></table></div></section>")
    }

    fn provenance(&self, html: &mut String) -> fmt::Result {
        if self.spaces.is_empty() {
            return Ok(());
        }
        writeln!(html, "<section><h2>Provenance</h2>")?;
        for space in &self.spaces {
            writeln!(
                html,
                "<details><summary>{}</summary><table><tbody>",
                escaped(&space.model)
            )?;
            // Each output has its own source.
            for (key, value) in space.provenance.iter().filter(|(key, _)| key != "source") {
                writeln!(
                    html,
                    "<tr><th class=\"text\" scope=\"row\">{}</th><td class=\"text\"><code>{}</code></td></tr>",
                    escaped(key),
                    escaped(value)
                )?;
            }
            writeln!(html, "</tbody></table></details>")?;
        }
        writeln!(html, "</section>")
    }
}

fn failed(report: &Report) -> impl Iterator<Item = &FileReport> {
    report.files.iter().filter(|file| file.error.is_some())
}

/// A number of at least 0, without its fraction.
fn rounded(number: f64) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // `as` saturates, which is right here
    thousands(number.round() as u64)
}

/// Bytes as people say them.
fn memory(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1000.0 {
        format!("{mebibytes:.0} MiB")
    } else {
        format!("{:.1} GiB", mebibytes / 1024.0)
    }
}

/// Seconds as people say them.
fn duration(seconds: f64) -> String {
    if seconds < 1.0 {
        return format!("{seconds:.2} s");
    }
    if seconds < 99.5 {
        return format!("{seconds:.1} s");
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // `as` saturates, which is right here
    let whole = seconds.round() as u64;
    let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 {
        format!("{} h {minutes} min", thousands(hours))
    } else {
        format!("{minutes} min {rest} s")
    }
}
