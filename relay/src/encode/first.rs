//! `strata_v1`: the JSON of the first Strata.
//!
//! *In*: series and targets once, then values. *Out*: `{"name":…,"tags":{…},"timestamp":"2023-11-14T22:13:20.123Z","type":…,"value":…}`, one per
//! line. *Bound*: no state, no allocation per sample. *When full*: does not apply.
//!
//! - `tags` are all labels; `timestamp` is RFC 3339; `type` is one of `counter`, `gauge`, `untyped`, `summary`, `histogram`.
//! - A bucket has its family's name and the tag `bucket` (`le` by choice); a quantile has its family's name and the tag `quantile`. Sums and counts,
//!   which the first Strata lost, come under their own names.
//! - NaN was dropped and is (`nan`); infinities could not be encoded and cannot (`inf`); nor can staleness markers (`stale`) and native histograms.

use std::io::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use config::{Kind, OptionsError};
use sample::MetricType;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::json::{LINES, string};
use super::{Encode, Encoded, EncoderKind, Framing, Sample, number};
use crate::filter::Series;

/// The registry's row.
pub const KIND: EncoderKind = EncoderKind {
    kind: Kind {
        name: "strata_v1",
        summary: "The JSON of the first Strata: name, tags, RFC 3339 time, type, value; one object per line.",
        schema: || schemars::schema_for!(Options),
        example: "{bucket_tag: bucket}",
        check: |options| encoder(options).map(drop),
    },
    build: |options| Ok(Box::new(encoder(options)?)),
};

/// Options of `strata_v1`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The tag of a bucket's upper bound: `bucket` (default), as the first Strata had it, or `le`, as everybody else has.
    #[serde(default)]
    pub bucket_tag: BucketTag,
}

/// Names of a bucket's bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BucketTag {
    /// `bucket`.
    #[default]
    Bucket,
    /// `le`.
    Le,
}

struct First {
    bucket_tag: &'static str,
}

fn encoder(options: &Value) -> Result<First, OptionsError> {
    let Options { bucket_tag } = config::options(options)?;
    Ok(First { bucket_tag: if bucket_tag == BucketTag::Le { "le" } else { "bucket" } })
}

impl Encode for First {
    fn series(&self, series: &Series<'_>, out: &mut Vec<u8>) {
        let bucket = matches!(series.kind, MetricType::Histogram | MetricType::GaugeHistogram);
        let name = series.name.strip_suffix("_bucket").filter(|_| bucket).unwrap_or(series.name);
        out.extend_from_slice(b"{\"name\":");
        string(name, out);
        out.extend_from_slice(b",\"tags\":{");
        let start = out.len();
        for (name, value) in series.labels.iter().filter(|(_, value)| !value.is_empty()) {
            if out.len() > start {
                out.push(b',');
            }
            string(if bucket && *name == "le" { self.bucket_tag } else { name }, out);
            out.push(b':');
            string(value, out);
        }
    }

    fn target(&self, labels: &[(&str, &str)], out: &mut Vec<u8>) {
        super::json::pairs(labels, out);
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
        if !sample.target.is_empty() && !sample.series.ends_with(b"{") {
            out.push(b',');
        }
        out.extend_from_slice(sample.target);
        out.extend_from_slice(b"},\"timestamp\":\"");
        let since = Duration::from_millis(u64::try_from(sample.timestamp_ms).unwrap_or(0));
        let time = UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH);
        // Writing to memory does not fail; a year beyond 9999 is no RFC 3339.
        if write!(out, "{}", humantime::format_rfc3339_millis(time)).is_err() {
            return Encoded::Inexpressible("time");
        }
        out.extend_from_slice(b"\",\"type\":\"");
        out.extend_from_slice(word(sample.kind).as_bytes());
        out.extend_from_slice(b"\",\"value\":");
        number::write(value, out);
        out.push(b'}');
        Encoded::Item
    }

    fn framing(&self) -> Framing {
        LINES
    }

    fn content_type(&self) -> &'static str {
        "application/x-ndjson"
    }
}

const fn word(kind: MetricType) -> &'static str {
    match kind {
        MetricType::Counter => "counter",
        MetricType::Gauge | MetricType::Info | MetricType::StateSet => "gauge",
        MetricType::Histogram | MetricType::GaugeHistogram => "histogram",
        MetricType::Summary => "summary",
        MetricType::Unknown => "untyped",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::encode::tests::{built, built_with, encoded};

    fn of<'a>(kind: MetricType, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> Series<'a> {
        Series { name, labels, kind, cumulative: false, help: "", unit: "" }
    }

    #[test]
    fn a_line_is_exactly_this() {
        let text = |series: &Series<'_>| encoded(&*built("strata_v1"), series, &[("job", "j")], 2.5_f64.to_bits(), None).1;
        for (kind, name, labels, expect) in [
            (
                MetricType::Counter,
                "c_total",
                [("code", "200")],
                r#"{"name":"c_total","tags":{"code":"200","job":"j"},"timestamp":"2023-11-14T22:13:20.123Z","type":"counter","value":2.5}"#,
            ),
            (
                MetricType::Histogram,
                "h_bucket",
                [("le", "+Inf")],
                r#"{"name":"h","tags":{"bucket":"+Inf","job":"j"},"timestamp":"2023-11-14T22:13:20.123Z","type":"histogram","value":2.5}"#,
            ),
            (
                MetricType::Summary,
                "s",
                [("quantile", "0.5")],
                r#"{"name":"s","tags":{"quantile":"0.5","job":"j"},"timestamp":"2023-11-14T22:13:20.123Z","type":"summary","value":2.5}"#,
            ),
            (
                MetricType::Unknown,
                "u",
                [("a", "")],
                r#"{"name":"u","tags":{"job":"j"},"timestamp":"2023-11-14T22:13:20.123Z","type":"untyped","value":2.5}"#,
            ),
        ] {
            assert_eq!(text(&of(kind, name, &labels)), expect);
        }
        let le = built_with("strata_v1", json!({"bucket_tag": "le"}));
        assert!(encoded(&*le, &of(MetricType::Histogram, "h_bucket", &[("le", "1")]), &[], 0, None).1.contains(r#""tags":{"le":"1"}"#));
    }

    #[test]
    fn what_it_never_had_words_for_is_named() {
        for (bits, reason) in [(sample::STALE_NAN, "stale"), (f64::NAN.to_bits(), "nan"), (f64::INFINITY.to_bits(), "inf")] {
            let outcome = encoded(&*built("strata_v1"), &of(MetricType::Gauge, "x", &[]), &[], bits, None);
            assert_eq!(outcome, (Encoded::Inexpressible(reason), String::new()));
        }
    }
}
