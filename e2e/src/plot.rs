//! Bars as an SVG picture.
//!
//! *In*: names and numbers. *Out*: the text of an SVG file that is readable on light and on dark pages. *Bound*: a line per bar.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const LABELS: f64 = 220.0;
const LINE: f64 = 28.0;

/// Horizontal bars under a title, from 0 to the largest.
pub fn bars(title: &str, bars: &[(&str, f64)]) -> String {
    let largest = bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let height = LINE * (bars.len() as f64 + 1.5);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#888\">\n\
         <text x=\"0\" y=\"18\" font-weight=\"bold\">{}</text>\n",
        escaped(title)
    );
    for (number, (name, value)) in bars.iter().enumerate() {
        let y = LINE * (number as f64 + 1.25);
        let width = (WIDTH - LABELS - 80.0) * value / largest;
        let (text, after) = (y + 14.0, LABELS + width + 8.0);
        writeln!(
            svg,
            "<text x=\"0\" y=\"{text:.0}\">{}</text><rect x=\"{LABELS}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"18\" fill=\"#3b82c4\"/>\
             <text x=\"{after:.0}\" y=\"{text:.0}\">{value:.2}</text>",
            escaped(name)
        )
        .expect("a string takes all");
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
