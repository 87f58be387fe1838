//! Stacked bars as one self-contained SVG, in the style of the scatter plots.

use std::fmt::Write as _;

use crate::plot::scatter::{COLOURS, SOFT, Scale, banner, escaped, head, text};

/// One bar, with its label at the left and its length written at the right.
#[derive(Debug, Clone)]
pub struct Bar {
    /// The label of the bar.
    pub label: String,
    /// Small print below the label.
    pub note: String,
    /// How long its parts are; as many as [`BarChart::parts`].
    pub values: Vec<f64>,
    /// What is written at its end.
    pub told: String,
}

/// A chart of horizontal bars, each of which is stacked of the same parts.
#[derive(Debug, Clone)]
pub struct BarChart {
    /// Title of the chart.
    pub title: String,
    /// Line below the title.
    pub subtitle: String,
    /// Prominent warnings.
    pub warning: Option<String>,
    /// What the axis shows.
    pub axis: String,
    /// What the parts of a bar are.
    pub parts: Vec<String>,
    /// The bars, from above.
    pub bars: Vec<Bar>,
    /// Lines of small print below the chart.
    pub notes: Vec<String>,
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = 110.0;
const ROW: f64 = 54.0;

impl BarChart {
    /// The bars as an SVG document.
    #[must_use]
    pub fn svg(&self) -> String {
        let mut svg = String::new();
        self.draw(&mut svg)
            .expect("writing to a String cannot fail");
        svg
    }

    fn draw(&self, svg: &mut String) -> std::fmt::Result {
        let legend = if self.warning.is_some() { 132.0 } else { 98.0 };
        let top = legend + 24.0;
        let bottom = top + ROW * self.bars.len() as f64;
        let height = bottom + 62.0 + 18.0 * self.notes.len() as f64;
        let titles = [self.title.as_str(), &self.subtitle];
        head(svg, [&WIDTH, &height], titles)?;
        if let Some(warning) = &self.warning {
            banner(svg, WIDTH, warning)?;
        }
        self.draw_legend(svg, legend)?;

        let sums = self.bars.iter().map(|bar| bar.values.iter().sum());
        let scale = Scale::from_zero(sums);
        let x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * scale.share(value);
        let small = format!("font-size=\"12\" fill=\"{SOFT}\"");
        for tick in scale.ticks() {
            let (x, colour) = (x(tick), if tick == 0.0 { "#c3cad3" } else { "#eceff3" });
            writeln!(
                svg,
                "<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"{colour}\"/>"
            )?;
            let style = format!("{small} text-anchor=\"middle\"");
            text(svg, x, bottom + 18.0, &style, &scale.written(tick))?;
        }
        let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
        text(
            svg,
            middle,
            bottom + 40.0,
            "text-anchor=\"middle\"",
            &self.axis,
        )?;
        for (at, bar) in self.bars.iter().enumerate() {
            let y = top + ROW * at as f64;
            let style = "text-anchor=\"end\" font-weight=\"600\"";
            text(svg, LEFT - 14.0, y + 24.0, style, &bar.label)?;
            let style = format!("{small} text-anchor=\"end\"");
            text(svg, LEFT - 14.0, y + 41.0, &style, &bar.note)?;
            let mut from = 0.0;
            for (part, value) in bar.values.iter().enumerate() {
                writeln!(
                    svg,
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"><title>{}: {value:.2}</title></rect>",
                    x(from),
                    y + 12.0,
                    x(from + value) - x(from),
                    ROW - 24.0,
                    COLOURS[part % COLOURS.len()],
                    escaped(&self.parts[part]),
                )?;
                from += value;
            }
            text(
                svg,
                x(from) + 8.0,
                y + 32.0,
                "font-weight=\"600\"",
                &bar.told,
            )?;
        }
        for (line, note) in self.notes.iter().enumerate() {
            text(svg, 24.0, bottom + 66.0 + 18.0 * line as f64, &small, note)?;
        }
        writeln!(svg, "</svg>")
    }

    fn draw_legend(&self, svg: &mut String, y: f64) -> std::fmt::Result {
        let mut x = LEFT;
        for (part, name) in self.parts.iter().enumerate() {
            writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{}\"/>",
                y - 10.0,
                COLOURS[part % COLOURS.len()]
            )?;
            text(svg, x + 18.0, y, "", name)?;
            x += 48.0 + 7.0 * name.chars().count() as f64;
        }
        Ok(())
    }
}
