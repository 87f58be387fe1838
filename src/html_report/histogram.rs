//! Histograms: a small SVG in the colours of the page, and the same data as a table.

use std::fmt::{self, Write as _};

use crate::plot::scatter::escaped;
use crate::text::thousands;

/// A bar: how many things lie between two values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bin {
    /// What is counted here; nothing for a gap.
    pub label: String,
    /// Number of things in it.
    pub count: u64,
}

/// Bars side by side.
#[derive(Debug, Clone)]
pub struct Histogram {
    /// What it shows, for who can't see it.
    pub title: String,
    /// What is counted, as the axis is labelled.
    pub counted: String,
    /// What the bins are of.
    pub axis: String,
    /// The bins, from the left.
    pub bins: Vec<Bin>,
    /// Words below the axis: where (in bins from the left), and what.
    pub ticks: Vec<(f64, String)>,
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 22.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 48.0;

impl Histogram {
    /// Writes the plot and the table.
    ///
    /// # Errors
    /// If writing to `html` fails.
    pub fn write(&self, html: &mut String) -> fmt::Result {
        let most = self.bins.iter().map(|bin| bin.count).max().unwrap_or(0);
        let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let base = TOP + height;
        let each = width / self.bins.len().max(1) as f64;
        writeln!(
            html,
            "<figure class=\"histogram\"><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" font-size=\"12\">",
            escaped(&self.title)
        )?;
        for (at, bin) in self.bins.iter().enumerate() {
            if bin.count == 0 {
                continue;
            }
            // What is there can be seen.
            let tall = (height * bin.count as f64 / most as f64).max(1.5);
            writeln!(
                html,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{tall:.1}\"><title>{}: {}</title></rect>",
                LEFT + each * at as f64 + 0.5,
                base - tall,
                (each - 1.0).max(0.5),
                escaped(&bin.label),
                thousands(bin.count)
            )?;
        }
        writeln!(
            html,
            "<path class=\"frame\" d=\"M{LEFT} {base:.1}H{}\"/>",
            LEFT + width
        )?;
        let upright = [(TOP, most), (base, 0)];
        for (y, count) in &upright[..if most > 0 { 2 } else { 1 }] {
            writeln!(
                html,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                thousands(*count)
            )?;
        }
        for (bins, words) in &self.ticks {
            let x = LEFT + each * bins;
            writeln!(
                html,
                "<path class=\"frame\" d=\"M{x:.1} {base:.1}v4\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                base + 18.0,
                escaped(words)
            )?;
        }
        writeln!(
            html,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text></svg></figure>",
            LEFT + width / 2.0,
            base + 38.0,
            escaped(&self.axis)
        )?;
        writeln!(
            html,
            "<details><summary>Show as a table</summary><table><thead><tr><th class=\"text\" \
             scope=\"col\">{}</th><th scope=\"col\">{}</th></tr></thead><tbody>",
            escaped(&self.axis),
            escaped(&self.counted)
        )?;
        for bin in self.bins.iter().filter(|bin| !bin.label.is_empty()) {
            writeln!(
                html,
                "<tr><td class=\"text\">{}</td><td>{}</td></tr>",
                escaped(&bin.label),
                thousands(bin.count)
            )?;
        }
        writeln!(html, "</tbody></table></details>")
    }
}
