//! Golden lines, and what an independent parser reads of any.

use influxdb_line_protocol::{FieldValue, parse_lines};
use proptest::prelude::*;
use sample::MetricType;
use serde_json::json;

use super::*;
use crate::encode::tests::{built, built_with, encoded, histogram_text};

const TARGET: &[(&str, &str)] = &[("instance", "web-1:9100"), ("job", "a b")];

fn gauge<'a>(name: &'a str, labels: &'a [(&'a str, &'a str)]) -> Series<'a> {
    Series { name, labels, kind: MetricType::Gauge, cumulative: false, help: "", unit: "" }
}

#[test]
fn a_line_is_exactly_this() {
    let line =
        |name, labels: &[(&str, &str)], value: f64| encoded(&*built("influx"), &gauge(name, labels), TARGET, value.to_bits(), None).1;
    assert_eq!(line("up", &[], 1.0), r"up,instance=web-1:9100,job=a\ b value=1 1700000000123000000");
    assert_eq!(
        line("a,b c", &[("k=,", "v=\\,\n")], 0.5),
        r"a\,b\ c,k\=\,=v\=/\,\ ,instance=web-1:9100,job=a\ b value=0.5 1700000000123000000"
    );
    assert_eq!(line("#x", &[("e", "")], -2.0), r"_x,instance=web-1:9100,job=a\ b value=-2 1700000000123000000");
}

#[test]
fn times_in_the_unit_asked_for() {
    for (precision, expect) in [("ns", "1700000000123000000"), ("us", "1700000000123000"), ("ms", "1700000000123"), ("s", "1700000000")] {
        let encoder = built_with("influx", json!({"precision": precision, "field": "gauge"}));
        assert_eq!(encoded(&*encoder, &gauge("x", &[]), &[], 0, None).1, format!("x gauge=0 {expect}"));
    }
    assert!(encoder(&json!({"precision": "m"})).is_err());
    assert_eq!(encoder(&json!({"field": ""})).err().map(|error| error.path).as_deref(), Some("field"));
}

#[test]
fn what_the_protocol_has_no_words_for_is_named() {
    for (bits, reason) in
        [(sample::STALE_NAN, "stale"), (f64::NAN.to_bits(), "nan"), (f64::INFINITY.to_bits(), "inf"), (f64::NEG_INFINITY.to_bits(), "inf")]
    {
        let outcome = encoded(&*built("influx"), &gauge("x", &[]), TARGET, bits, None);
        assert_eq!(outcome, (Encoded::Inexpressible(reason), String::new()));
    }
}

#[test]
fn a_native_histogram_is_one_line() {
    assert_eq!(
        histogram_text(&*built("influx"), "h", TARGET),
        r"h,instance=web-1:9100,job=a\ b count=12,sum=12.5,-2=1,-1=5,0.001=7,1=8,8=11,+Inf=12 1700000000123000000"
    );
}

proptest! {
    /// Whatever the texts are: one line, one field, and the value bit for bit; texts of harmless characters read back as they were.
    #[test]
    fn an_independent_parser_reads_the_line(
        name in "\\PC{1,20}|[\\x00-\\x7f]{1,20}|[a-z, =#\\\\\"]{1,12}",
        labels in prop::collection::btree_map("[a-z, =\\\\]{1,8}|\\PC{1,4}", "[a-z, =\\\\\"\n]{0,10}|\\PC{0,6}", 0..4),
        bits in any::<u64>(),
    ) {
        let value = f64::from_bits(bits);
        prop_assume!(value.is_finite());
        let labels: Vec<(&str, &str)> = labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let (outcome, text) = encoded(&*built("influx"), &gauge(&name, &labels), &[], bits, None);
        prop_assert_eq!(outcome, Encoded::Item);
        let lines: Vec<_> = parse_lines(&text).collect::<Result<_, _>>().map_err(|error| TestCaseError::fail(format!("{text:?}: {error}")))?;
        prop_assert_eq!(lines.len(), 1, "{:?}", text);
        let line = &lines[0];
        prop_assert_eq!(line.timestamp, Some(1_700_000_000_123_000_000));
        prop_assert_eq!(line.field_set.len(), 1);
        prop_assert_eq!(line.field_set[0].0.as_str(), "value");
        match &line.field_set[0].1 {
            FieldValue::F64(read) => prop_assert_eq!(read.to_bits(), bits),
            other => prop_assert!(false, "{:?}", other),
        }
        let plain = |text: &str| !text.contains('\\') && !text.chars().any(|c| c.is_ascii_control());
        if plain(&name) && !name.starts_with('#') {
            prop_assert_eq!(line.series.measurement.as_str(), name.as_str());
        }
        let tags = line.series.tag_set.iter().flatten().map(|(n, v)| (n.as_str().to_owned(), v.as_str().to_owned())).collect::<Vec<_>>();
        let expect: Vec<_> = labels.iter().filter(|(_, v)| !v.is_empty()).collect();
        prop_assert_eq!(tags.len(), expect.len());
        for ((n, v), (expect_n, expect_v)) in tags.iter().zip(expect) {
            prop_assert!(!plain(expect_n) || n == expect_n, "{} {}", n, expect_n);
            prop_assert!(!plain(expect_v) || v == expect_v, "{} {}", v, expect_v);
        }
    }
}
