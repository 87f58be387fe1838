//! A scatter plot as one self-contained file: an SVG, or an HTML page around the same SVG.
//!
//! Colours are Okabe and Ito's (*Color Universal Design*, 2008), which people with any colour
//! vision tell apart; their yellow and black, too faint and too loud on white, are replaced by an
//! olive and a grey. After eight series the marks change, after six marks they become hollow, and
//! after 96 series all begins again.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use crate::atomic_file;

/// A point of a series.
#[derive(Debug, Clone)]
pub struct Point {
    /// Its coordinates.
    pub at: [f64; 2],
    /// Shown when pointed at: what it is.
    pub label: String,
    /// Shown below the label.
    pub note: String,
}

/// Points that share a colour and a mark.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name in the legend.
    pub label: String,
    /// How many rows it stands for, drawn or not.
    pub rows: u64,
    /// The points to draw.
    pub points: Vec<Point>,
}

/// A scatter plot with a legend of its series.
#[derive(Debug, Clone)]
pub struct ScatterPlot {
    /// Title of the plot.
    pub title: String,
    /// Line below the title.
    pub subtitle: String,
    /// Prominent warnings.
    pub warning: Option<String>,
    /// What the axes show.
    pub axes: [String; 2],
    /// Lines of small print below the plot.
    pub notes: Vec<String>,
    /// The points, in the legend's order.
    pub series: Vec<Series>,
}

/// What kind of file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PictureKind {
    /// An image, which browsers, editors and papers take.
    Svg,
    /// A page that shows what is pointed at, and a series alone when its name is.
    Html,
}

pub(crate) const COLOURS: [&str; 8] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a1f", "#4d5560",
];
const MARKS: usize = 6;
pub(crate) const FONT: &str = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif";
pub(crate) const INK: &str = "#1f2933";
pub(crate) const SOFT: &str = "#5f6b7a";

/// The field that points lie in.
const FIELD_LEFT: f64 = 76.0;
const FIELD_HEIGHT: f64 = 500.0;
/// Series whose names fit beside the field; more stand below it, in columns.
const BESIDE: usize = 21;
const LEGEND_ROW: f64 = 22.0;
const LEGEND_WIDTH: f64 = 236.0;
const PAGE_WIDTH: f64 = 960.0;

/// Where the points lie: the field's place on the page, and what its edges stand for.
struct Field {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    scales: [Scale; 2],
}

impl Field {
    fn x(&self, value: f64) -> f64 {
        self.left + self.width * self.scales[0].share(value)
    }

    fn y(&self, value: f64) -> f64 {
        self.top + self.height * (1.0 - self.scales[1].share(value))
    }
}

/// Writes a text: a file, which appears whole or not at all, or a pipe or a device.
///
/// # Errors
/// When the disk refuses.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    atomic_file::write_anywhere(path, text)
}

impl ScatterPlot {
    /// Writes the figure to a file, which appears whole or not at all.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, path: &Path, kind: PictureKind) -> io::Result<()> {
        let text = match kind {
            PictureKind::Svg => self.svg(),
            PictureKind::Html => self.html(),
        };
        write(path, &text)
    }

    /// The figure as an SVG document.
    #[must_use]
    pub fn svg(&self) -> String {
        let mut svg = String::new();
        self.draw(&mut svg)
            .expect("writing to a String cannot fail");
        svg
    }

    /// The figure as a page.
    #[must_use]
    pub fn html(&self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{}</title>\n\
             <style>{}</style>\n<main>\n{}</main>\n<div id=\"tip\" hidden></div>\n\
             <script>{}</script>\n</html>\n",
            escaped(&self.title),
            STYLE,
            self.svg(),
            SCRIPT,
        )
    }

    fn draw(&self, svg: &mut String) -> std::fmt::Result {
        let top = if self.warning.is_some() { 124.0 } else { 88.0 };
        let beside = self.series.len() <= BESIDE;
        let columns = if beside { 1 } else { 4 };
        let legend_rows = self.series.len().div_ceil(columns);
        let field_end = top + FIELD_HEIGHT + 56.0;
        let legend_end = if beside {
            field_end
        } else {
            field_end + 26.0 + legend_rows as f64 * LEGEND_ROW
        };
        let height = legend_end + 18.0 * self.notes.len() as f64 + 12.0;
        writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {PAGE_WIDTH} {height}\" \
             width=\"{PAGE_WIDTH}\" height=\"{height}\" font-family=\"{FONT}\" font-size=\"13\" fill=\"{INK}\">"
        )?;
        writeln!(
            svg,
            "<rect width=\"{PAGE_WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>"
        )?;
        text(
            svg,
            24.0,
            40.0,
            "font-size=\"22\" font-weight=\"600\"",
            &short(&self.title, 70),
        )?;
        text(
            svg,
            24.0,
            64.0,
            &format!("font-size=\"14\" fill=\"{SOFT}\""),
            &self.subtitle,
        )?;
        if let Some(warning) = &self.warning {
            banner(svg, PAGE_WIDTH, warning)?;
        }
        let field = Field {
            left: FIELD_LEFT,
            top,
            width: if beside {
                600.0
            } else {
                PAGE_WIDTH - FIELD_LEFT - 24.0
            },
            height: FIELD_HEIGHT,
            scales: [0, 1].map(|axis| {
                let all = self.series.iter().flat_map(|series| &series.points);
                Scale::of(all.map(|point| point.at[axis]))
            }),
        };
        self.draw_field(svg, &field)?;
        self.draw_points(svg, &field)?;
        if beside {
            let left = field.left + field.width + 24.0;
            let style = format!("font-size=\"12\" fill=\"{SOFT}\"");
            text(svg, left, top + 10.0, &style, "File")?;
            let style = format!("{style} text-anchor=\"end\"");
            text(
                svg,
                left + LEGEND_WIDTH - 26.0,
                top + 10.0,
                &style,
                "Sequences",
            )?;
            self.draw_legend(svg, left, top + 32.0, legend_rows)?;
        } else {
            self.draw_legend(svg, 24.0, field_end + 22.0, legend_rows)?;
        }
        for (line, note) in self.notes.iter().enumerate() {
            let y = legend_end + 8.0 + 18.0 * line as f64;
            text(
                svg,
                24.0,
                y,
                &format!("font-size=\"12\" fill=\"{SOFT}\""),
                note,
            )?;
        }
        writeln!(svg, "</svg>")
    }

    fn draw_field(&self, svg: &mut String, field: &Field) -> std::fmt::Result {
        let &Field {
            left,
            top,
            width,
            height,
            ..
        } = field;
        let (right, bottom) = (left + width, top + height);
        let line = |tick: f64| if tick == 0.0 { "#c3cad3" } else { "#eceff3" };
        let small = format!("font-size=\"12\" fill=\"{SOFT}\"");
        let [across, up] = &field.scales;
        for tick in across.ticks() {
            let (x, colour) = (field.x(tick), line(tick));
            writeln!(
                svg,
                "<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"{colour}\"/>"
            )?;
            let style = format!("{small} text-anchor=\"middle\"");
            text(svg, x, bottom + 18.0, &style, &across.written(tick))?;
        }
        for tick in up.ticks() {
            let (y, colour) = (field.y(tick), line(tick));
            writeln!(
                svg,
                "<path d=\"M{left} {y:.1}H{right}\" stroke=\"{colour}\"/>"
            )?;
            let style = format!("{small} text-anchor=\"end\"");
            text(svg, left - 8.0, y + 4.0, &style, &up.written(tick))?;
        }
        writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#c3cad3\"/>"
        )?;
        let middle = left + width / 2.0;
        text(
            svg,
            middle,
            bottom + 42.0,
            "text-anchor=\"middle\"",
            &self.axes[0],
        )?;
        let middle = top + height / 2.0;
        let style = format!("text-anchor=\"middle\" transform=\"rotate(-90 22 {middle})\"");
        text(svg, 22.0, middle, &style, &self.axes[1])
    }

    fn draw_points(&self, svg: &mut String, field: &Field) -> std::fmt::Result {
        let count: usize = self.series.iter().map(|series| series.points.len()).sum();
        let radius = match count {
            0..=400 => 4.5,
            401..=2000 => 3.5,
            _ => 2.5,
        };
        // The largest lie lowest, so that they don't cover the smaller ones.
        let mut order: Vec<usize> = (0..self.series.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(self.series[index].points.len()));
        for index in order {
            let series = &self.series[index];
            writeln!(
                svg,
                "<g class=\"series\" data-series=\"{index}\" {}>",
                style_of(index)
            )?;
            for point in &series.points {
                writeln!(
                    svg,
                    "{}<title>{}\n{}\n{}</title></path>",
                    mark(index, field.x(point.at[0]), field.y(point.at[1]), radius),
                    escaped(&short(&point.label, 160)),
                    escaped(&series.label),
                    escaped(&point.note),
                )?;
            }
            writeln!(svg, "</g>")?;
        }
        Ok(())
    }

    fn draw_legend(&self, svg: &mut String, left: f64, top: f64, rows: usize) -> std::fmt::Result {
        for (index, series) in self.series.iter().enumerate() {
            let x = left + LEGEND_WIDTH * (index / rows) as f64;
            let y = top + LEGEND_ROW * (index % rows) as f64;
            let count = series.rows.to_string();
            // Some 7 units a letter: what is left beside the count.
            let name = short(&series.label, 25 - count.len().min(10));
            writeln!(
                svg,
                "<g class=\"name\" data-series=\"{index}\"><g {}>{}</path></g>",
                style_of(index),
                mark(index, x + 6.0, y, 5.0)
            )?;
            text(svg, x + 20.0, y + 4.5, "", &name)?;
            let style = format!("font-size=\"12\" text-anchor=\"end\" fill=\"{SOFT}\"");
            text(svg, x + LEGEND_WIDTH - 26.0, y + 4.5, &style, &count)?;
            writeln!(svg, "<title>{}</title></g>", escaped(&series.label))?;
        }
        Ok(())
    }
}

/// The colour of a series, and whether its marks are filled.
fn style_of(index: usize) -> String {
    let colour = COLOURS[index % COLOURS.len()];
    let is_hollow = index / (COLOURS.len() * MARKS) % 2 == 1;
    if is_hollow {
        format!("fill=\"#ffffff\" fill-opacity=\".6\" stroke=\"{colour}\" stroke-width=\"1.5\"")
    } else {
        format!("fill=\"{colour}\" fill-opacity=\".8\" stroke=\"#ffffff\" stroke-width=\".7\"")
    }
}

/// The opening tag of a series' mark, whose area does not depend on its shape.
fn mark(index: usize, x: f64, y: f64, radius: f64) -> String {
    let r = radius;
    let path = match index / COLOURS.len() % MARKS {
        0 => format!(
            "M{:.1} {y:.1}a{r} {r} 0 1 0 {} 0a{r} {r} 0 1 0 -{} 0z",
            x - r,
            2.0 * r,
            2.0 * r
        ),
        1 => {
            let a = 1.77 * r;
            format!(
                "M{:.1} {:.1}h{a:.2}v{a:.2}h-{a:.2}z",
                x - a / 2.0,
                y - a / 2.0
            )
        }
        2 => {
            let a = 2.7 * r;
            format!(
                "M{x:.1} {:.1}l{:.2} {:.2}h-{a:.2}z",
                y - 0.577 * a,
                a / 2.0,
                0.866 * a
            )
        }
        3 => {
            let a = 1.25 * r;
            format!(
                "M{x:.1} {:.1}l{a:.2} {a:.2}l-{a:.2} {a:.2}l-{a:.2} -{a:.2}z",
                y - a
            )
        }
        4 => {
            let a = 2.7 * r;
            format!(
                "M{x:.1} {:.1}l{:.2} -{:.2}h-{a:.2}z",
                y + 0.577 * a,
                a / 2.0,
                0.866 * a
            )
        }
        _ => {
            let a = 0.8 * r;
            format!(
                "M{:.1} {:.1}h{a:.2}v{a:.2}h{a:.2}v{a:.2}h-{a:.2}v{a:.2}h-{a:.2}v-{a:.2}h-{a:.2}v-{a:.2}h{a:.2}z",
                x - a / 2.0,
                y - 1.5 * a
            )
        }
    };
    format!("<path d=\"{path}\">")
}

/// From values to places along an axis, with a margin.
pub(crate) struct Scale {
    from: f64,
    to: f64,
    step: f64,
}

impl Scale {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
            (low.min(x), high.max(x))
        });
        let (low, high) = if low < high {
            (low, high)
        } else if low.is_finite() {
            (low - 1.0, low + 1.0)
        } else {
            (-1.0, 1.0)
        };
        let margin = 0.05 * (high - low);
        let (from, to) = (low - margin, high + margin);
        // Ticks at 1, 2 or 5 times a power of ten, at most seven of them.
        let rough = (to - from) / 7.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|times| times * power)
            .find(|&step| step >= rough)
            .unwrap_or(10.0 * power);
        Scale { from, to, step }
    }

    /// From zero to the largest value.
    pub(crate) fn from_zero(values: impl Iterator<Item = f64>) -> Self {
        let mut scale = Self::of(values.chain([0.0]));
        scale.from = 0.0;
        scale
    }

    pub(crate) fn share(&self, value: f64) -> f64 {
        (value - self.from) / (self.to - self.from)
    }

    pub(crate) fn ticks(&self) -> impl Iterator<Item = f64> {
        let first = (self.from / self.step).ceil();
        (0..10)
            .map(move |at| (first + f64::from(at)) * self.step)
            .take_while(|&tick| tick <= self.to)
    }

    pub(crate) fn written(&self, tick: f64) -> String {
        if self.step < 1e-4 || self.step >= 1e5 {
            return format!("{tick:.1e}").replace('-', "−");
        }
        let decimals = (0..5)
            .find(|&places| (self.step * 10_f64.powi(places)).fract().abs() < 1e-6)
            .unwrap_or(5);
        let decimals = usize::try_from(decimals).unwrap_or(0);
        let tick = if tick == 0.0 { 0.0 } else { tick };
        format!("{tick:.decimals$}").replace('-', "−")
    }
}

/// The start of a picture: its size, a white ground, title and subtitle.
pub(crate) fn head(
    svg: &mut String,
    [width, height]: [&dyn std::fmt::Display; 2],
    [title, subtitle]: [&str; 2],
) -> std::fmt::Result {
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"{FONT}\" font-size=\"13\" fill=\"{INK}\" role=\"img\">\n\
         <title>{}</title>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>",
        escaped(title)
    )?;
    let style = "font-size=\"22\" font-weight=\"600\"";
    text(svg, 24.0, 40.0, style, title)?;
    let style = format!("font-size=\"14\" fill=\"{SOFT}\"");
    text(svg, 24.0, 64.0, &style, subtitle)
}

/// What nobody may overlook, below the subtitle.
pub(crate) fn banner(svg: &mut String, page: f64, words: &str) -> std::fmt::Result {
    let width = page - 48.0;
    writeln!(
        svg,
        "<rect x=\"24\" y=\"78\" width=\"{width}\" height=\"30\" rx=\"4\" fill=\"#fdf0d5\"/>\
         <rect x=\"24\" y=\"78\" width=\"4\" height=\"30\" fill=\"#d55e00\"/>"
    )?;
    text(
        svg,
        40.0,
        98.0,
        "font-weight=\"600\" fill=\"#8a3b00\"",
        words,
    )
}

pub(crate) fn text(svg: &mut String, x: f64, y: f64, style: &str, words: &str) -> std::fmt::Result {
    writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{}</text>",
        escaped(words)
    )
}

/// Text as XML allows it: other control characters have no place in XML at all.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\t' => safe.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// Text of at most so many characters: what goes is the middle, since names differ at their ends.
pub(crate) fn short(text: &str, characters: usize) -> String {
    let count = text.chars().count();
    if count <= characters {
        return text.to_owned();
    }
    let tail = (characters - 1) / 2;
    let head = characters - 1 - tail;
    let end: String = text.chars().skip(count - tail).collect();
    let start: String = text.chars().take(head).collect();
    format!("{start}…{end}")
}

const STYLE: &str = "
body { margin: 0; background: #f6f7f9; }
main { max-width: 960px; margin: 24px auto; background: #fff; border-radius: 6px;
  box-shadow: 0 1px 4px #1f293326; overflow: hidden; }
svg { display: block; width: 100%; height: auto; }
.series path:hover { stroke: #1f2933; stroke-width: 1.5; fill-opacity: 1; }
.name { cursor: default; }
.focus .series:not(.on), .focus .name:not(.on) { opacity: .12; }
#tip { position: fixed; max-width: 340px; padding: 6px 10px; border-radius: 4px; background: #1f2933;
  color: #fff; font: 13px/1.45 system-ui, sans-serif; white-space: pre-line; pointer-events: none; }
";

/// Shows the title of a point without delay, and highlights a series while the pointer is on its
/// name. The page says the same without it, as the titles are the browser's tooltips.
const SCRIPT: &str = "
const tip = document.getElementById('tip'), svg = document.querySelector('svg');
for (const point of document.querySelectorAll('.series path')) {
  const title = point.querySelector('title');
  point.dataset.title = title.textContent;
  title.remove();
}
svg.addEventListener('mousemove', event => {
  const words = event.target.dataset && event.target.dataset.title;
  tip.hidden = !words;
  if (!words) return;
  tip.textContent = words;
  tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + 'px';
  tip.style.top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8) + 'px';
});
svg.addEventListener('mouseleave', () => tip.hidden = true);
for (const name of document.querySelectorAll('.name')) {
  const same = svg.querySelectorAll(`[data-series='${name.dataset.series}']`);
  const focus = on => {
    svg.classList.toggle('focus', on);
    same.forEach(part => part.classList.toggle('on', on));
  };
  name.addEventListener('mouseenter', () => focus(true));
  name.addEventListener('mouseleave', () => focus(false));
}
";
