//! `statsd` and `dogstatsd`: one statsd line per sample, labels in the name or as tags.
//!
//! *In*: series and targets once, then values; increases of cumulative series. *Out*: `name:3|c`, `name:0.5|g`. *Bound*: no state,
//! no allocation per sample. *When full*: does not apply.
//!
//! - A cumulative series goes out as its increase (`|c`); a zero increase, or none yet, says nothing. All others are gauges (`|g`).
//! - `statsd` writes labels into the name: `prefix` + name, then `.label.value` for each label, the series' own first, then the
//!   target's, each sorted: `http_requests_total.code.200.instance.web-1_9100.job.api`. Whatever is not `A-Z a-z 0-9 _ -` becomes `_`.
//! - A signed gauge is relative in statsd, so a negative one is two lines of one item: `name:0|g`, then `name:-5|g`.
//! - `dogstatsd` writes labels as tags: `name:3|c|#code:200,job:api`; in the name, whatever is not `A-Z a-z 0-9 _ .` becomes `_`; in
//!   tags, the characters that end them (`,`, `|`, white space, control characters; `:` in a tag's name) become `_`. Its gauges are absolute.
//! - A classic histogram or summary is its series: buckets, sum and count as increases, quantiles as gauges. A native histogram is the increases of its
//!   count and sum, `name_count` and `name_sum`; its buckets, which come and go, are not sent.
//! - NaN, infinities and staleness markers cannot be said.

use config::{Kind, OptionsError};
use sample::NativeHistogram;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Encode, Encoded, EncoderKind, Form, Framing, Sample, number};
use crate::filter::Series;

/// The registry's row of `statsd`.
pub const STATSD: EncoderKind = EncoderKind {
    kind: Kind {
        name: "statsd",
        summary: "One statsd line per sample, labels in the name; cumulative series as increases.",
        schema: || schemars::schema_for!(Options),
        example: "{prefix: 'strata.', labels: [job, code]}",
        check: |options| statsd(options, false).map(drop),
    },
    build: |options| Ok(Box::new(statsd(options, false)?)),
};

/// The registry's row of `dogstatsd`.
pub const DOGSTATSD: EncoderKind = EncoderKind {
    kind: Kind {
        name: "dogstatsd",
        summary: "One DogStatsD line per sample, labels as tags; cumulative series as increases.",
        schema: || schemars::schema_for!(Options),
        example: "{prefix: 'strata.'}",
        check: |options| statsd(options, true).map(drop),
    },
    build: |options| Ok(Box::new(statsd(options, true)?)),
};

/// Options of `statsd` and `dogstatsd`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Put before every name. Default: nothing.
    #[serde(default)]
    pub prefix: String,
    /// Labels that are written. Default: all. Series that differ in other labels fall together: increases add up, of gauges the last one stays.
    #[serde(default)]
    pub labels: Option<Vec<String>>,
}

struct Statsd {
    prefix: String,
    labels: Option<Vec<String>>,
    tags: bool,
}

/// Bytes before the text of a rendered series: `c` or `g`, and the length of its name (u32, little endian).
const HEAD_BYTES: usize = 5;

fn statsd(options: &Value, tags: bool) -> Result<Statsd, OptionsError> {
    let Options { prefix, labels } = config::options(options)?;
    let allowed = |byte: u8| name_byte(byte) || byte == b'.';
    if let Some(bad) = prefix.chars().find(|c| !u8::try_from(*c).is_ok_and(allowed)) {
        return Err(OptionsError::new("prefix", format!("'{bad}' cannot be in a statsd name: A-Z a-z 0-9 _ - . can")));
    }
    Ok(Statsd { prefix, labels, tags })
}

impl Encode for Statsd {
    fn series(&self, series: &Series<'_>, out: &mut Vec<u8>) {
        let head = out.len();
        out.push(if series.cumulative { b'c' } else { b'g' });
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(self.prefix.as_bytes());
        let tags = self.tags;
        replace(series.name, out, |byte| if tags { byte != b'-' && name_byte(byte) || byte == b'.' } else { name_byte(byte) });
        let name_bytes = u32::try_from(out.len() - head - HEAD_BYTES).unwrap_or(u32::MAX);
        out[head + 1..head + HEAD_BYTES].copy_from_slice(&name_bytes.to_le_bytes());
        self.labels(series.labels, out);
    }

    fn target(&self, labels: &[(&str, &str)], out: &mut Vec<u8>) {
        self.labels(labels, out);
    }

    fn sample(&self, sample: &Sample<'_>, out: &mut Vec<u8>) -> Encoded {
        let Some((&[kind, a, b, c, d], text)) = sample.series.split_first_chunk::<HEAD_BYTES>() else {
            return Encoded::Nothing;
        };
        if sample::is_stale(sample.value) {
            return Encoded::Inexpressible("stale");
        }
        let value = match (kind, sample.delta) {
            (b'c', Some(delta)) => delta,
            (b'c', None) if f64::from_bits(sample.value).is_finite() => return Encoded::Nothing,
            _ => f64::from_bits(sample.value),
        };
        if value.is_nan() {
            return Encoded::Inexpressible("nan");
        }
        if value.is_infinite() {
            return Encoded::Inexpressible("inf");
        }
        // Neither is `-0.0` a number that statsd should see as signed.
        let value = if value == 0.0 { 0.0 } else { value };
        if kind == b'c' && value == 0.0 {
            return Encoded::Nothing;
        }
        let (name, labels) = text.split_at(text.len().min(u32::from_le_bytes([a, b, c, d]) as usize));
        let line = Line { name, suffix: b"", labels, target: sample.target, tags: self.tags, kind };
        if kind == b'g' && value < 0.0 && !self.tags {
            line.write(0.0, out);
            out.push(b'\n');
        }
        line.write(value, out);
        Encoded::Item
    }

    fn histogram(&self, sample: &Sample<'_>, _: &NativeHistogram, out: &mut Vec<u8>) -> Encoded {
        let Some((&[kind, a, b, c, d], text)) = sample.series.split_first_chunk::<HEAD_BYTES>() else {
            return Encoded::Nothing;
        };
        if kind != b'c' {
            return Encoded::Inexpressible("native_histogram");
        }
        let (Some(count), Some(sum)) = (sample.delta, sample.sum_delta) else { return Encoded::Nothing };
        let (name, labels) = text.split_at(text.len().min(u32::from_le_bytes([a, b, c, d]) as usize));
        let start = out.len();
        for (suffix, value) in [(&b"_count"[..], count), (b"_sum", sum)] {
            if value != 0.0 {
                if out.len() > start {
                    out.push(b'\n');
                }
                Line { name, suffix, labels, target: sample.target, tags: self.tags, kind }.write(value, out);
            }
        }
        if out.len() == start { Encoded::Nothing } else { Encoded::Item }
    }

    fn framing(&self) -> Framing {
        Framing { open: b"", separator: b"\n", close: b"\n", form: Form::Whole }
    }

    fn content_type(&self) -> &'static str {
        "text/plain; charset=utf-8"
    }

    fn wants_deltas(&self) -> bool {
        true
    }
}

impl Statsd {
    /// Appends labels as they stand in a line: `.a.b` in a name, `a:b,` as tags, each with its own end.
    fn labels(&self, labels: &[(&str, &str)], out: &mut Vec<u8>) {
        for (name, value) in labels {
            let wanted = self.labels.as_ref().is_none_or(|wanted| wanted.iter().any(|w| w == name));
            if value.is_empty() || !wanted {
                continue;
            }
            if self.tags {
                replace(name, out, |byte| byte != b':' && tag_byte(byte));
                out.push(b':');
                replace(value, out, tag_byte);
                out.push(b',');
            } else {
                out.push(b'.');
                replace(name, out, name_byte);
                out.push(b'.');
                replace(value, out, name_byte);
            }
        }
    }
}

/// The parts of one line.
struct Line<'a> {
    name: &'a [u8],
    suffix: &'static [u8],
    labels: &'a [u8],
    target: &'a [u8],
    tags: bool,
    kind: u8,
}

impl Line<'_> {
    fn write(&self, value: f64, out: &mut Vec<u8>) {
        out.extend_from_slice(self.name);
        out.extend_from_slice(self.suffix);
        if !self.tags {
            out.extend_from_slice(self.labels);
            out.extend_from_slice(self.target);
        }
        out.push(b':');
        number::write(value, out);
        out.extend([b'|', self.kind]);
        if self.tags && !(self.labels.is_empty() && self.target.is_empty()) {
            out.extend_from_slice(b"|#");
            out.extend_from_slice(self.labels);
            out.extend_from_slice(self.target);
            out.pop(); // every tag ends with a comma
        }
    }
}

const fn name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

const fn tag_byte(byte: u8) -> bool {
    !(byte == b',' || byte == b'|' || byte == b'#' || byte.is_ascii_whitespace() || byte.is_ascii_control())
}

/// Appends a text with one `_` for every character that is not allowed; a character beyond ASCII is asked for by its first byte.
fn replace(text: &str, out: &mut Vec<u8>, allowed: impl Fn(u8) -> bool) {
    let mut utf8 = [0; 4];
    for char in text.chars() {
        let bytes = char.encode_utf8(&mut utf8).as_bytes();
        if allowed(bytes[0]) {
            out.extend_from_slice(bytes);
        } else {
            out.push(b'_');
        }
    }
}

#[cfg(test)]
mod tests;
