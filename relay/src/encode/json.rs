//! `ndjson`, `json` and `json_object`: one JSON object per sample, as lines, as an array, or each by itself.
//!
//! *In*: series and targets once, then values. *Out*: `{"name":…,"labels":{…},"timestamp":<ms>,"value":…,"type":…}`. *Bound*: no
//! state, no allocation per sample. *When full*: does not apply.
//!
//! The object: `labels` holds all labels but the name, the series' own first, then the target's. `timestamp` is in ms. `value` is a
//! number in the shortest form that reads back bit for bit (whole numbers up to 2^53 without a fraction, negative zero as `-0.0`),
//! or one of the strings `"NaN"`, `"+Inf"`, `"-Inf"`. A staleness marker is `"value":"NaN","stale":true`. `type` is the family's. A native histogram
//! has, in place of `value`, `"histogram":{"count":…,"sum":…,"buckets":[["0.5",3],["+Inf",7]]}`: cumulative, exact at the bounds it fills. Where
//! the page says since when a series counts, that is `start`, in ms, behind `timestamp`.

use config::{Kind, OptionsError};
use sample::NativeHistogram;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Encode, Encoded, EncoderKind, Form, Framing, Sample, classic, number};
use crate::filter::Series;

/// The registry's row of `ndjson`.
pub const NDJSON: EncoderKind = EncoderKind {
    kind: Kind {
        name: "ndjson",
        summary: "One JSON object per sample, one per line.",
        schema: || schemars::schema_for!(Options),
        example: "{}",
        check: |options| config::options::<Options>(options).map(drop),
    },
    build: |options| json(options, LINES, "application/x-ndjson"),
};

/// The registry's row of `json`.
pub const ARRAY: EncoderKind = EncoderKind {
    kind: Kind {
        name: "json",
        summary: "One JSON array per request, an object per sample in it.",
        schema: || schemars::schema_for!(Options),
        example: "{}",
        check: |options| config::options::<Options>(options).map(drop),
    },
    build: |options| json(options, LIST, "application/json"),
};

/// The registry's row of `json_object`.
pub const OBJECT: EncoderKind = EncoderKind {
    kind: Kind {
        name: "json_object",
        summary: "One JSON object per request: a sample each.",
        schema: || schemars::schema_for!(Options),
        example: "{}",
        check: |options| config::options::<Options>(options).map(drop),
    },
    build: |options| {
        let Options {} = config::options(options)?;
        Ok(Box::new(Json { framing: LINES, content_type: "application/json", items_max: 1 }))
    },
};

pub(super) const LINES: Framing = Framing { open: b"", separator: b"\n", close: b"\n", form: Form::Whole };
const LIST: Framing = Framing { open: b"[", separator: b",", close: b"]", form: Form::Whole };

/// Options of `ndjson`, `json` and `json_object`: none.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {}

struct Json {
    framing: Framing,
    content_type: &'static str,
    items_max: usize,
}

fn json(options: &Value, framing: Framing, content_type: &'static str) -> Result<Box<dyn Encode>, OptionsError> {
    let Options {} = config::options(options)?;
    Ok(Box::new(Json { framing, content_type, items_max: usize::MAX }))
}

impl Encode for Json {
    fn series(&self, series: &Series<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"name\":");
        string(series.name, out);
        out.extend_from_slice(b",\"labels\":{");
        pairs(series.labels, out);
    }

    fn target(&self, labels: &[(&str, &str)], out: &mut Vec<u8>) {
        pairs(labels, out);
    }

    fn sample(&self, sample: &Sample<'_>, out: &mut Vec<u8>) -> Encoded {
        head(sample, out);
        out.extend_from_slice(b",\"value\":");
        if sample::is_stale(sample.value) {
            out.extend_from_slice(b"\"NaN\",\"stale\":true");
        } else {
            float(f64::from_bits(sample.value), out);
        }
        tail(sample, out);
        Encoded::Item
    }

    fn histogram(&self, sample: &Sample<'_>, histogram: &NativeHistogram, out: &mut Vec<u8>) -> Encoded {
        head(sample, out);
        out.extend_from_slice(b",\"histogram\":{\"count\":");
        float(classic::count(histogram), out);
        out.extend_from_slice(b",\"sum\":");
        float(classic::sum(histogram), out);
        out.extend_from_slice(b",\"buckets\":");
        let mut before = b'[';
        classic::buckets(histogram, |bound, count| {
            out.extend([before, b'[']);
            if bound.is_finite() {
                out.push(b'"');
                number::write(bound, out);
                out.push(b'"');
            } else {
                float(bound, out);
            }
            out.push(b',');
            float(count, out);
            out.push(b']');
            before = b',';
        });
        out.extend_from_slice(b"]}");
        tail(sample, out);
        Encoded::Item
    }

    fn items_max(&self) -> usize {
        self.items_max
    }

    fn framing(&self) -> Framing {
        self.framing
    }

    fn content_type(&self) -> &'static str {
        self.content_type
    }
}

/// Appends an object up to its time.
fn head(sample: &Sample<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(sample.series);
    if !sample.target.is_empty() && !sample.series.ends_with(b"{") {
        out.push(b',');
    }
    out.extend_from_slice(sample.target);
    out.extend_from_slice(b"},\"timestamp\":");
    out.extend_from_slice(itoa::Buffer::new().format(sample.timestamp_ms).as_bytes());
    if let Some(start_ms) = sample.start_ms {
        out.extend_from_slice(b",\"start\":");
        out.extend_from_slice(itoa::Buffer::new().format(start_ms).as_bytes());
    }
}

/// Appends an object's end.
fn tail(sample: &Sample<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"type\":\"");
    out.extend_from_slice(sample.kind.as_str().as_bytes());
    out.extend_from_slice(b"\"}");
}

/// Appends a number, or the string that stands for what is none.
fn float(value: f64, out: &mut Vec<u8>) {
    if value.is_finite() {
        number::write(value, out);
    } else if value.is_nan() {
        out.extend_from_slice(b"\"NaN\"");
    } else {
        out.extend_from_slice(if value > 0.0 { b"\"+Inf\"" } else { b"\"-Inf\"" });
    }
}

/// Appends `"a":"b","c":"d"`; a label without a value is no label.
pub(super) fn pairs(labels: &[(&str, &str)], out: &mut Vec<u8>) {
    let start = out.len();
    for (name, value) in labels.iter().filter(|(_, value)| !value.is_empty()) {
        if out.len() > start {
            out.push(b',');
        }
        string(name, out);
        out.push(b':');
        string(value, out);
    }
}

/// Appends a JSON string: what JSON forces is escaped, all else stays UTF-8.
pub(super) fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    // Nearly all texts; looked through without a branch, many bytes at a time.
    if !bytes.iter().fold(false, |found, byte| found | matches!(byte, b'"' | b'\\' | 0x00..=0x1f)) {
        out.extend_from_slice(bytes);
        return out.push(b'"');
    }
    let mut done = 0;
    for (i, byte) in bytes.iter().enumerate() {
        let short: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0x00..=0x1f => b"",
            _ => continue,
        };
        out.extend_from_slice(&bytes[done..i]);
        done = i + 1;
        if short.is_empty() {
            let digits = b"0123456789abcdef";
            out.extend_from_slice(b"\\u00");
            out.extend([digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]);
        } else {
            out.extend_from_slice(short);
        }
    }
    out.extend_from_slice(&bytes[done..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sample::MetricType;
    use serde_json::json;

    use super::*;
    use crate::encode::tests::{built, encoded};

    #[track_caller]
    fn check(own: &[(&str, &str)], target: &[(&str, &str)], bits: u64, expect: &str) {
        let series = Series { name: "up", labels: own, kind: MetricType::Gauge, cumulative: false, help: "", unit: "" };
        let (outcome, text) = encoded(&*built("ndjson"), &series, target, bits, None);
        assert_eq!((outcome, text.as_str()), (Encoded::Item, expect));
    }

    #[test]
    fn a_line_is_exactly_this() {
        let target = [("instance", "h:1"), ("job", "j")];
        check(
            &[("code", "200")],
            &target,
            1.0_f64.to_bits(),
            r#"{"name":"up","labels":{"code":"200","instance":"h:1","job":"j"},"timestamp":1700000000123,"value":1,"type":"gauge"}"#,
        );
        check(
            &[],
            &target,
            0.1_f64.to_bits(),
            r#"{"name":"up","labels":{"instance":"h:1","job":"j"},"timestamp":1700000000123,"value":0.1,"type":"gauge"}"#,
        );
        check(
            &[("a", "b")],
            &[],
            f64::INFINITY.to_bits(),
            r#"{"name":"up","labels":{"a":"b"},"timestamp":1700000000123,"value":"+Inf","type":"gauge"}"#,
        );
        check(
            &[("a", "")],
            &[],
            f64::NEG_INFINITY.to_bits(),
            r#"{"name":"up","labels":{},"timestamp":1700000000123,"value":"-Inf","type":"gauge"}"#,
        );
        check(&[], &[], f64::NAN.to_bits(), r#"{"name":"up","labels":{},"timestamp":1700000000123,"value":"NaN","type":"gauge"}"#);
        check(&[], &[], (-0.0_f64).to_bits(), r#"{"name":"up","labels":{},"timestamp":1700000000123,"value":-0.0,"type":"gauge"}"#);
        check(
            &[],
            &[],
            sample::STALE_NAN,
            r#"{"name":"up","labels":{},"timestamp":1700000000123,"value":"NaN","stale":true,"type":"gauge"}"#,
        );
    }

    #[test]
    fn a_start_stands_behind_the_time() {
        let (encoder, mut constant) = (built("json"), Vec::new());
        encoder.series(&Series { name: "c", labels: &[], kind: MetricType::Counter, cumulative: true, help: "", unit: "" }, &mut constant);
        let sample = Sample {
            series: &constant,
            target: &[],
            kind: MetricType::Counter,
            timestamp_ms: 2000,
            value: 1.0_f64.to_bits(),
            delta: None,
            sum_delta: None,
            start_ms: Some(-1),
            exemplars: &[],
        };
        let (mut out, mut histogram) = (Vec::new(), Vec::new());
        encoder.sample(&sample, &mut out);
        assert_eq!(out, br#"{"name":"c","labels":{},"timestamp":2000,"start":-1,"value":1,"type":"counter"}"#);
        encoder.histogram(&sample, &NativeHistogram::default(), &mut histogram);
        assert!(histogram.starts_with(br#"{"name":"c","labels":{},"timestamp":2000,"start":-1,"histogram":{"#));
    }

    #[test]
    fn bodies_are_lines_or_a_list() {
        assert_eq!(built("ndjson").framing(), LINES);
        assert_eq!(built("json").framing(), LIST);
        assert_eq!((built("json_object").framing(), built("json_object").items_max()), (LINES, 1));
        assert_eq!(built("json").content_type(), "application/json");
        assert_eq!(built("ndjson").content_type(), "application/x-ndjson");
    }

    #[test]
    fn a_native_histogram_has_its_buckets() {
        let expect = r#"{"name":"h","labels":{"job":"j"},"timestamp":1700000000123,"histogram":{"count":12,"sum":12.5,"buckets":[["-2",1],["-1",5],["0.001",7],["1",8],["8",11],["+Inf",12]]},"type":"histogram"}"#;
        assert_eq!(crate::encode::tests::histogram_text(&*built("ndjson"), "h", &[("job", "j")]), expect);
    }

    proptest! {
        #[test]
        fn any_text_reads_back(name in ".*", key in ".+", value in "\\PC*|[\\x00-\\x1f\"\\\\]*") {
            prop_assume!(!value.is_empty());
            let labels = [(key.as_str(), value.as_str())];
            let series = Series { name: &name, labels: &labels, kind: MetricType::Counter, cumulative: true, help: "", unit: "" };
            let (_, text) = encoded(&*built("json"), &series, &[], 0, None);
            let read: Value = serde_json::from_str(&text).expect("JSON");
            prop_assert_eq!(read, json!({"name": name, "labels": {key: value}, "timestamp": 1_700_000_000_123_i64, "value": 0, "type": "counter"}));
        }

        #[test]
        fn any_value_reads_back_bit_for_bit(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            let series = Series { name: "x", labels: &[], kind: MetricType::Gauge, cumulative: false, help: "", unit: "" };
            let (_, text) = encoded(&*built("ndjson"), &series, &[], bits, None);
            let digits = text.split_once("\"value\":").and_then(|(_, rest)| rest.split_once(',')).expect("a value").0;
            prop_assert_eq!(digits.parse::<f64>().expect("a number").to_bits(), bits);
            prop_assert!(serde_json::from_str::<Value>(&text).expect("JSON")["value"].is_number());
        }
    }
}
