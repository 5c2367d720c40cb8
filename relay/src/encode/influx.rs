//! `influx`: InfluxDB's line protocol.
//!
//! *In*: series and targets once, then values. *Out*: `name,label=value value=1.5 1700000000123000000`. *Bound*: no state, no allocation per
//! sample. *When full*: does not apply.
//!
//! - The measurement is the metric's name, the labels are tags (the series' own first, then the target's), the value is the field `value`, always
//!   a float. A label without a value is no tag.
//! - Escaped with a backslash: `,` and space in measurements; `,`, `=` and space in tags. What the protocol cannot carry is replaced: a line end becomes
//!   a space, other control characters too; a backslash becomes `/` where it would escape what follows it (before an escaped character or at the end).
//!   A measurement that begins with `#`, which would be a comment, begins with `_`.
//! - NaN and infinities do not exist in the protocol: dropped as `nan`, `inf`, staleness markers as `stale`.
//! - A native histogram is one line: the fields `count`, `sum` and one per bound that it fills (`0.5=3,+Inf=7`), cumulative.

use config::{Kind, OptionsError};
use sample::NativeHistogram;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Encode, Encoded, EncoderKind, Form, Framing, Sample, classic, number};
use crate::filter::Series;

/// The registry's row.
pub const KIND: EncoderKind = EncoderKind {
    kind: Kind {
        name: "influx",
        summary: "InfluxDB line protocol: the name as measurement, labels as tags, one float field.",
        schema: || schemars::schema_for!(Options),
        example: "{precision: ms}",
        check: |options| encoder(options).map(drop),
    },
    build: |options| Ok(Box::new(encoder(options)?)),
};

/// Options of `influx`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Unit of the times, which the receiver must be told too (`precision=` in its address). Default `ns`, which it takes untold.
    #[serde(default)]
    pub precision: Precision,
    /// The field that holds the value. Default `value`.
    #[serde(default = "field")]
    pub field: String,
}

fn field() -> String {
    "value".to_owned()
}

/// A unit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Nanoseconds.
    #[default]
    Ns,
    /// Microseconds.
    Us,
    /// Milliseconds.
    Ms,
    /// Seconds.
    S,
}

impl Precision {
    /// A time of this unit; what is below it is cut off.
    fn of(self, ms: i64) -> i64 {
        match self {
            Self::Ns => ms.saturating_mul(1_000_000),
            Self::Us => ms.saturating_mul(1000),
            Self::Ms => ms,
            Self::S => ms.div_euclid(1000),
        }
    }
}

struct Influx {
    precision: Precision,
    /// ` value=`, escaped.
    field: Vec<u8>,
}

fn encoder(options: &Value) -> Result<Influx, OptionsError> {
    let Options { precision, field } = config::options(options)?;
    if field.is_empty() || field == "time" {
        return Err(OptionsError::new("field", "a field needs a name, and 'time' is not one: 'value' is the default"));
    }
    let mut text = vec![b' '];
    escape(&field, b",= ", &mut text);
    text.push(b'=');
    Ok(Influx { precision, field: text })
}

impl Encode for Influx {
    fn series(&self, series: &Series<'_>, out: &mut Vec<u8>) {
        let (first, rest) = match series.name.strip_prefix('#') {
            Some(rest) => ("_", rest),
            None => ("", series.name),
        };
        out.extend_from_slice(first.as_bytes());
        escape(rest, b", ", out);
        tags(series.labels, out);
    }

    fn target(&self, labels: &[(&str, &str)], out: &mut Vec<u8>) {
        tags(labels, out);
    }

    fn sample(&self, sample: &Sample<'_>, out: &mut Vec<u8>) -> Encoded {
        let value = f64::from_bits(sample.value);
        if sample::is_stale(sample.value) {
            return Encoded::Inexpressible("stale");
        }
        if !value.is_finite() {
            return Encoded::Inexpressible(if value.is_nan() { "nan" } else { "inf" });
        }
        out.extend_from_slice(sample.series);
        out.extend_from_slice(sample.target);
        out.extend_from_slice(&self.field);
        number::write(value, out);
        self.time(sample, out);
        Encoded::Item
    }

    fn histogram(&self, sample: &Sample<'_>, histogram: &NativeHistogram, out: &mut Vec<u8>) -> Encoded {
        out.extend_from_slice(sample.series);
        out.extend_from_slice(sample.target);
        out.extend_from_slice(b" count=");
        number::write(classic::count(histogram), out);
        let sum = classic::sum(histogram);
        if sum.is_finite() {
            out.extend_from_slice(b",sum=");
            number::write(sum, out);
        }
        classic::buckets(histogram, |bound, count| {
            out.push(b',');
            if bound.is_finite() {
                number::write(bound, out);
            } else {
                out.extend_from_slice(b"+Inf");
            }
            out.push(b'=');
            number::write(count, out);
        });
        self.time(sample, out);
        Encoded::Item
    }

    fn framing(&self) -> Framing {
        Framing { open: b"", separator: b"\n", close: b"\n", form: Form::Whole }
    }

    fn content_type(&self) -> &'static str {
        "text/plain; charset=utf-8"
    }
}

impl Influx {
    fn time(&self, sample: &Sample<'_>, out: &mut Vec<u8>) {
        out.push(b' ');
        out.extend_from_slice(itoa::Buffer::new().format(self.precision.of(sample.timestamp_ms)).as_bytes());
    }
}

/// Appends `,a=b` for every label that has a value.
fn tags(labels: &[(&str, &str)], out: &mut Vec<u8>) {
    for (name, value) in labels.iter().filter(|(name, value)| !name.is_empty() && !value.is_empty()) {
        out.push(b',');
        escape(name, b",= ", out);
        out.push(b'=');
        escape(value, b",= ", out);
    }
}

/// Appends a text with a backslash before each of these, and without what the protocol cannot carry.
fn escape(text: &str, special: &[u8], out: &mut Vec<u8>) {
    let mut bytes = text.bytes().map(|b| if b.is_ascii_control() { b' ' } else { b }).peekable();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' && bytes.peek().is_none_or(|next| b",= \\\"".contains(next)) {
            out.push(b'/');
            continue;
        }
        if special.contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

#[cfg(test)]
mod tests;
