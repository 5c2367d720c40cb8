//! `prometheus`: the text exposition format.
//!
//! *In*: series and targets once, then values. *Out*: one item per sample, a valid page by itself: `# TYPE name counter`, then
//! `name{labels} value timestamp`. *Bound*: no state, no allocation per sample. *When full*: does not apply.
//!
//! - A body is a valid page too: every family stands once, its samples together under one `# TYPE` line. As a page has every series once, a batch ends
//!   where a target's next slot begins.
//! - Types as the format has them: what it has no word for is `untyped` (unknown, gauge histograms) or `gauge` (info, state sets, `_created`).
//!   A counter's family is its full name.
//! - A name that the format does not allow gets `_` for what is not allowed; with `utf8`, it stands in quotes, as Prometheus 3 reads it.
//! - NaN and ±Inf are values of the format. A staleness marker is not: dropped as `stale`. A native histogram becomes `_bucket`, `_sum` and `_count`
//!   lines, exact at the bounds that it fills.

use config::{Kind, OptionsError};
use sample::{MetricType, NativeHistogram};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Encode, Encoded, EncoderKind, Form, Framing, Sample, classic, number};
use crate::filter::Series;

/// The registry's row.
pub const KIND: EncoderKind = EncoderKind {
    kind: Kind {
        name: "prometheus",
        summary: "The Prometheus text format: a valid page per request, families together under their types.",
        schema: || schemars::schema_for!(Options),
        example: "{timestamps: false}",
        check: |options| encoder(options).map(drop),
    },
    build: |options| Ok(Box::new(encoder(options)?)),
};

/// Options of `prometheus`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Whether every sample has its time. Default true; a Pushgateway refuses pages with times.
    #[serde(default = "timestamps")]
    pub timestamps: bool,
    /// Whether names of any characters are written as they are, in quotes. Default false: what the older format does not allow becomes `_`.
    #[serde(default)]
    pub utf8: bool,
}

const fn timestamps() -> bool {
    true
}

/// Bytes before a rendered series: the lengths of its type line and of its name (u16, little endian each); the name of a family's lines is
/// written anew for a native histogram.
const HEAD_BYTES: usize = 4;

struct Prometheus {
    timestamps: bool,
    utf8: bool,
}

fn encoder(options: &Value) -> Result<Prometheus, OptionsError> {
    let Options { timestamps, utf8 } = config::options(options)?;
    Ok(Prometheus { timestamps, utf8 })
}

impl Encode for Prometheus {
    fn series(&self, series: &Series<'_>, out: &mut Vec<u8>) {
        let head = out.len();
        out.extend_from_slice(&[0; HEAD_BYTES]);
        let (family, kind) = family(series);
        out.extend_from_slice(b"# TYPE ");
        self.name(family, true, out);
        out.push(b' ');
        out.extend_from_slice(kind.as_bytes());
        out.push(b'\n');
        let type_bytes = out.len() - head - HEAD_BYTES;
        self.name(series.name, true, out);
        let name_bytes = out.len() - head - HEAD_BYTES - type_bytes;
        for (at, bytes) in [(head, type_bytes), (head + 2, name_bytes)] {
            out[at..at + 2].copy_from_slice(&u16::try_from(bytes).unwrap_or(u16::MAX).to_le_bytes());
        }
        self.pairs(series.labels, out);
    }

    fn target(&self, labels: &[(&str, &str)], out: &mut Vec<u8>) {
        self.pairs(labels, out);
    }

    fn sample(&self, sample: &Sample<'_>, out: &mut Vec<u8>) -> Encoded {
        let Some(line) = Line::new(sample) else { return Encoded::Nothing };
        if sample::is_stale(sample.value) {
            return Encoded::Inexpressible("stale");
        }
        out.extend_from_slice(line.kind);
        self.line(&line, "", None, f64::from_bits(sample.value), sample.timestamp_ms, out);
        Encoded::Item
    }

    fn histogram(&self, sample: &Sample<'_>, histogram: &NativeHistogram, out: &mut Vec<u8>) -> Encoded {
        let Some(line) = Line::new(sample) else { return Encoded::Nothing };
        let at = sample.timestamp_ms;
        out.extend_from_slice(line.kind);
        classic::buckets(histogram, |bound, count| self.line(&line, "_bucket", Some(bound), count, at, out));
        self.line(&line, "_sum", None, classic::sum(histogram), at, out);
        self.line(&line, "_count", None, classic::count(histogram), at, out);
        Encoded::Item
    }

    fn framing(&self) -> Framing {
        Framing { open: b"", separator: b"", close: b"", form: Form::Families }
    }

    fn content_type(&self) -> &'static str {
        if self.utf8 {
            "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8"
        } else {
            "text/plain; version=0.0.4; charset=utf-8"
        }
    }

    fn one_per_series(&self) -> bool {
        true
    }
}

/// The parts of a line.
struct Line<'a> {
    kind: &'a [u8],
    name: &'a [u8],
    own: &'a [u8],
    target: &'a [u8],
}

impl<'a> Line<'a> {
    fn new(sample: &Sample<'a>) -> Option<Self> {
        let (&[a, b, c, d], text) = sample.series.split_first_chunk::<HEAD_BYTES>()?;
        let (kind, rest) = text.split_at_checked(usize::from(u16::from_le_bytes([a, b])))?;
        let (name, own) = rest.split_at_checked(usize::from(u16::from_le_bytes([c, d])))?;
        Some(Self { kind, name, own, target: sample.target })
    }
}

impl Prometheus {
    fn line(&self, line: &Line<'_>, suffix: &str, le: Option<f64>, value: f64, timestamp_ms: i64, out: &mut Vec<u8>) {
        // A quoted name stands inside the braces, as their first entry.
        let quoted = line.name.strip_suffix(b"\"");
        match quoted {
            Some(name) => {
                out.push(b'{');
                out.extend_from_slice(name);
                out.extend_from_slice(suffix.as_bytes());
                out.push(b'"');
            }
            None => {
                out.extend_from_slice(line.name);
                out.extend_from_slice(suffix.as_bytes());
            }
        }
        let mut open = quoted.is_some();
        for labels in [line.own, line.target] {
            if !labels.is_empty() {
                out.push(if open { b',' } else { b'{' });
                open = true;
                out.extend_from_slice(labels);
            }
        }
        if let Some(le) = le {
            out.push(if open { b',' } else { b'{' });
            open = true;
            out.extend_from_slice(b"le=\"");
            float(le, out);
            out.push(b'"');
        }
        if open {
            out.push(b'}');
        }
        out.push(b' ');
        float(value, out);
        if self.timestamps {
            out.push(b' ');
            out.extend_from_slice(itoa::Buffer::new().format(timestamp_ms).as_bytes());
        }
        out.push(b'\n');
    }

    /// Appends `a="b",c="d"`.
    fn pairs(&self, labels: &[(&str, &str)], out: &mut Vec<u8>) {
        let start = out.len();
        for (name, value) in labels.iter().filter(|(_, value)| !value.is_empty()) {
            if out.len() > start {
                out.push(b',');
            }
            self.name(name, false, out);
            out.extend_from_slice(b"=\"");
            escape(value, out);
            out.push(b'"');
        }
    }

    /// Appends a metric's or a label's name: as it is, in quotes, or with `_` for what is not allowed.
    fn name(&self, name: &str, colons: bool, out: &mut Vec<u8>) {
        let allowed = |i: usize, b: u8| b.is_ascii_alphabetic() || b == b'_' || (colons && b == b':') || (i > 0 && b.is_ascii_digit());
        if !name.is_empty() && name.bytes().enumerate().all(|(i, b)| allowed(i, b)) {
            out.extend_from_slice(name.as_bytes());
        } else if self.utf8 {
            out.push(b'"');
            escape(name, out);
            out.push(b'"');
        } else {
            if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
                out.push(b'_');
            }
            out.extend(name.chars().map(|c| u8::try_from(c).ok().filter(|b| b.is_ascii() && allowed(1, *b)).unwrap_or(b'_')));
        }
    }
}

/// The family that a series belongs to on a page, and its type there.
fn family<'a>(series: &Series<'a>) -> (&'a str, &'static str) {
    let name = series.name;
    let of = |suffixes: &[&str]| suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).filter(|family| !family.is_empty());
    match series.kind {
        MetricType::Counter | MetricType::Histogram | MetricType::Summary if name.ends_with("_created") => (name, "gauge"),
        MetricType::Counter => (name, "counter"),
        MetricType::Histogram => (of(&["_bucket", "_sum", "_count"]).unwrap_or(name), "histogram"),
        MetricType::Summary => (of(&["_sum", "_count"]).unwrap_or(name), "summary"),
        MetricType::Gauge | MetricType::Info | MetricType::StateSet => (name, "gauge"),
        MetricType::Unknown | MetricType::GaugeHistogram => (name, "untyped"),
    }
}

fn float(value: f64, out: &mut Vec<u8>) {
    if value.is_finite() {
        number::write(value, out);
    } else if value.is_nan() {
        out.extend_from_slice(b"NaN");
    } else {
        out.extend_from_slice(if value > 0.0 { b"+Inf" } else { b"-Inf" });
    }
}

fn escape(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'"' => out.extend_from_slice(b"\\\""),
            b'\n' => out.extend_from_slice(b"\\n"),
            other => out.push(other),
        }
    }
}

/// The family that an item of this encoder is of.
pub(crate) fn family_of(item: &[u8]) -> Option<&[u8]> {
    let (kind, _) = parts(item)?;
    let name = kind.strip_prefix(b"# TYPE ")?.strip_suffix(b"\n")?;
    name.iter().rposition(|byte| *byte == b' ').map(|end| &name[..end])
}

/// The type line of an item, and its other lines.
pub(crate) fn parts(item: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr(b'\n', item)?;
    Some(item.split_at(end + 1))
}

fn memchr(byte: u8, text: &[u8]) -> Option<usize> {
    text.iter().position(|b| *b == byte)
}

#[cfg(test)]
mod tests;
