//! A heat map as one self-contained SVG, in the style of the scatter plots: a scan of all single
//! substitutions, with the sequence along its lines.

use std::fmt::Write as _;

use crate::plot::scatter::{INK, SOFT, head, text};

/// Values of which zero has no colour: below it they are orange, above it blue, which people with
/// any colour vision tell apart.
#[derive(Debug, Clone)]
pub struct HeatMap {
    /// Title of the map.
    pub title: String,
    /// Line below the title.
    pub subtitle: String,
    /// What the colours show.
    pub scale: String,
    /// Names of the rows.
    pub rows: Vec<String>,
    /// The columns, in lines of [`COLUMNS`].
    pub columns: Vec<MapColumn>,
    /// Small print below the map.
    pub notes: Vec<String>,
}

/// A column of a heat map.
#[derive(Debug, Clone)]
pub struct MapColumn {
    /// Its number along the axis.
    pub position: u64,
    /// Its letter below the map.
    pub label: String,
    /// The row that gets a dot.
    pub marked: Option<usize>,
    /// A value for each row; what is not a number is grey.
    pub values: Vec<f32>,
}

/// Columns of a line.
pub const COLUMNS: usize = 100;
const WIDTH: f64 = 960.0;
const LEFT: f64 = 44.0;
const CELL: f64 = 8.9;
const TALL: f64 = 9.0;
const TOP: f64 = 112.0;
/// Between two lines: letters, and numbers.
const GAP: f64 = 44.0;
/// Shades on each side of zero.
const SHADES: i32 = 8;
const BELOW: [f64; 3] = [213.0, 94.0, 0.0];
const ABOVE: [f64; 3] = [0.0, 114.0, 178.0];
const UNKNOWN: &str = "#c3cad3";

impl HeatMap {
    /// The map as an SVG document.
    #[must_use]
    pub fn svg(&self) -> String {
        let mut svg = String::new();
        self.draw(&mut svg)
            .expect("writing to a String cannot fail");
        svg
    }

    /// The value with the deepest colour, on both sides: one of a hundred is beyond it.
    #[must_use]
    pub fn extent(&self) -> f32 {
        let values = self.columns.iter().flat_map(|column| &column.values);
        let mut sizes: Vec<f32> = values
            .filter(|value| value.is_finite() && **value != 0.0)
            .map(|value| value.abs())
            .collect();
        sizes.sort_unstable_by(f32::total_cmp);
        let at = (sizes.len() * 99).div_ceil(100);
        sizes.get(at.saturating_sub(1)).copied().unwrap_or(1.0)
    }

    fn draw(&self, svg: &mut String) -> std::fmt::Result {
        let line = TALL * self.rows.len() as f64;
        let lines = self.columns.chunks(COLUMNS).count();
        let bottom = TOP + lines as f64 * (line + GAP);
        let height = bottom + 12.0 + 18.0 * self.notes.len() as f64;
        let titles = [self.title.as_str(), &self.subtitle];
        head(svg, [&WIDTH, &format_args!("{height:.1}")], titles)?;
        let extent = self.extent();
        self.legend(svg, extent)?;
        for (number, columns) in self.columns.chunks(COLUMNS).enumerate() {
            let top = TOP + number as f64 * (line + GAP);
            self.line(svg, columns, top, extent)?;
        }
        let small = format!("font-size=\"12\" fill=\"{SOFT}\"");
        for (number, note) in self.notes.iter().enumerate() {
            text(svg, LEFT, bottom + 4.0 + 18.0 * number as f64, &small, note)?;
        }
        writeln!(svg, "</svg>")
    }

    /// The colours and what they stand for.
    fn legend(&self, svg: &mut String, extent: f32) -> std::fmt::Result {
        let small = format!("font-size=\"12\" fill=\"{SOFT}\"");
        let mut x = LEFT;
        for shade in -SHADES..=SHADES {
            writeln!(
                svg,
                "<path d=\"M{x:.1} 82h12v10h-12z\" fill=\"{}\"/>",
                colour(shade)
            )?;
            x += 12.0;
        }
        let told = format!("-{extent:.2} to {extent:.2}: {}", self.scale);
        text(svg, x + 10.0, 91.0, &small, &told)
    }

    /// A line of columns. Cells of one colour are one path.
    fn line(
        &self,
        svg: &mut String,
        columns: &[MapColumn],
        top: f64,
        extent: f32,
    ) -> std::fmt::Result {
        let tiny = format!("font-size=\"8\" fill=\"{SOFT}\"");
        let middle = format!("{tiny} text-anchor=\"middle\"");
        for (row, name) in self.rows.iter().enumerate() {
            let y = top + TALL * (row as f64 + 1.0) - 1.5;
            text(svg, LEFT - 10.0, y, &middle, name)?;
        }
        let count = usize::try_from(2 * SHADES + 1).unwrap_or_default();
        let mut paths = vec![String::new(); count + 1];
        let mut dots = String::new();
        for (at, column) in columns.iter().enumerate() {
            let x = LEFT + CELL * at as f64;
            for (row, &value) in column.values.iter().enumerate() {
                let shade = shade(value, extent);
                let path = shade.and_then(|shade| usize::try_from(shade + SHADES).ok());
                let y = top + TALL * row as f64;
                write!(
                    paths[path.unwrap_or(count)],
                    "M{x:.1} {y:.1}h{CELL}v{TALL}h-{CELL}z"
                )?;
            }
            if let Some(row) = column.marked {
                let (x, y) = (x + CELL / 2.0, top + TALL * (row as f64 + 0.5));
                write!(dots, "M{:.1} {y:.1}h2", x - 1.0)?;
            }
            let below = top + TALL * self.rows.len() as f64 + 9.0;
            text(svg, x + CELL / 2.0, below, &middle, &column.label)?;
            if column.position % 10 == 0 || at == 0 {
                let position = column.position.to_string();
                text(svg, x + CELL / 2.0, below + 12.0, &middle, &position)?;
            }
        }
        for (shade, path) in (-SHADES..).zip(&paths) {
            let fill = if shade > SHADES {
                UNKNOWN.to_owned()
            } else {
                colour(shade)
            };
            if !path.is_empty() {
                writeln!(svg, "<path d=\"{path}\" fill=\"{fill}\"/>")?;
            }
        }
        if !dots.is_empty() {
            writeln!(
                svg,
                "<path d=\"{dots}\" stroke=\"{INK}\" stroke-width=\"2\" stroke-linecap=\"round\"/>"
            )?;
        }
        Ok(())
    }
}

/// The shade of a value, from -[`SHADES`] to [`SHADES`]; `None`: it is no number.
fn shade(value: f32, extent: f32) -> Option<i32> {
    if value.is_nan() {
        return None;
    }
    let steps = f64::from(value / extent).clamp(-1.0, 1.0) * f64::from(SHADES);
    #[expect(clippy::cast_possible_truncation, reason = "it is within the shades")]
    Some(steps.round() as i32)
}

/// The colour of a shade: from white to the deepest one.
fn colour(shade: i32) -> String {
    let deepest = if shade < 0 { BELOW } else { ABOVE };
    let depth = f64::from(shade.abs()) / f64::from(SHADES);
    let [red, green, blue] = deepest.map(|part| 255.0 + (part - 255.0) * depth);
    format!("rgb({red:.0},{green:.0},{blue:.0})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_has_no_colour_and_both_sides_have_their_own() {
        assert_eq!(shade(0.0, 2.0), Some(0));
        assert_eq!(shade(2.0, 2.0), Some(SHADES));
        assert_eq!(shade(-9.0, 2.0), Some(-SHADES));
        assert_eq!(shade(f32::NAN, 2.0), None);
        assert_eq!(colour(0), "rgb(255,255,255)");
        assert_eq!(colour(SHADES), "rgb(0,114,178)");
        assert_eq!(colour(-SHADES), "rgb(213,94,0)");
    }

    #[test]
    fn every_cell_is_drawn_once() {
        let column = |position: u64| MapColumn {
            position,
            label: "M".to_owned(),
            marked: Some(1),
            values: vec![-1.0, 0.0, 0.5, f32::NAN],
        };
        let map = HeatMap {
            title: "a < b".to_owned(),
            subtitle: String::new(),
            scale: "score".to_owned(),
            rows: ["A", "C", "D", "E"].map(str::to_owned).into(),
            columns: (1..=250).map(column).collect(),
            notes: vec!["note".to_owned()],
        };
        let svg = map.svg();
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"));
        let cell = format!("h{CELL}v{TALL}");
        assert_eq!(svg.matches(&cell).count(), 4 * 250);
        // Four colours in each of three lines, and the legend.
        assert_eq!(svg.matches("fill=\"#c3cad3\"").count(), 3);
        assert!((map.extent() - 1.0).abs() < 1e-6);
    }
}
