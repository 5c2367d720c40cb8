//! Items, read by the independent decoder.

use std::sync::Arc;

use proptest::prelude::*;
use prost::Message;
use sample::{BucketCounts, Counts, ResetHint, Span};

use super::*;
use crate::encode::tests::{built, built_with};
use crate::sink::remote_write::proto;

const AT: i64 = 1_700_000_000_123;

fn series<'a>(name: &'a str, labels: &'a [(&'a str, &'a str)]) -> Series<'a> {
    Series { name, labels, kind: MetricType::Counter, cumulative: true, help: "All requests.", unit: "requests" }
}

/// One sample as one item, read as a whole request.
fn item(
    encoder: &dyn Encode,
    of: &Series<'_>,
    target: &[(&str, &str)],
    value: u64,
    start_ms: Option<i64>,
    exemplars: &[(u32, Exemplar)],
    histogram: Option<&NativeHistogram>,
) -> proto::TimeSeries {
    let mut layout = sample::LayoutBuilder::new();
    let family = layout.family(of.name, of.kind, of.help, of.unit);
    layout.series(family, of.name, of.labels.iter().copied());
    let names = Names::new(&Names::default(), Arc::new(layout.build()), target);
    let (mut said, mut out) = (Vec::new(), Vec::new());
    let sample =
        Sample { series: &[], target: &[], kind: of.kind, timestamp_ms: AT, value, delta: None, sum_delta: None, start_ms, exemplars };
    let encoded = match histogram {
        Some(histogram) => encoder.histogram(&sample, histogram, &mut said),
        None => encoder.sample(&sample, &mut said),
    };
    assert_eq!(encoded, Encoded::Item);
    let Form::Unnamed { metadata } = encoder.framing().form else { panic!("its items have no names") };
    named(&names, 0, metadata, &said, &mut out);
    assert!(out.len() <= said.len() + names.bytes(0));
    let request = proto::WriteRequest::decode(&out[..]).expect("a request of 1.0");
    let [one] = &request.timeseries[..] else { panic!("one series: {request:?}") };
    one.clone()
}

fn names(series: &proto::TimeSeries) -> Vec<&str> {
    series.labels.iter().map(|label| label.name.as_str()).collect()
}

#[test]
fn labels_are_sorted_over_series_and_target_and_none_is_empty() {
    let of = series("up", &[("Zone", "z"), ("code", "200"), ("empty", ""), ("method", "GET"), ("zz", "1")]);
    let one = item(&*built("remote_write"), &of, &[("Area", "a"), ("instance", "h:1"), ("job", "j")], 0, None, &[], None);
    assert_eq!(names(&one), ["Area", "Zone", "__name__", "code", "instance", "job", "method", "zz"]);
    let text: Vec<_> = one.labels.iter().map(|label| label.value.as_str()).collect();
    assert_eq!(text, ["a", "z", "up", "200", "h:1", "j", "GET", "1"]);
    let bare = item(&*built("remote_write"), &series("up", &[]), &[], 0, None, &[], None);
    assert_eq!(names(&bare), ["__name__"]);
    let upper = item(&*built("remote_write"), &series("up", &[("A", "1")]), &[("B", "2")], 0, None, &[], None);
    assert_eq!(names(&upper), ["A", "B", "__name__"]);
}

#[test]
fn values_keep_their_bits_and_start_and_metadata_go_along() {
    for bits in [sample::STALE_NAN, 0x7ff8_0000_0000_0001, f64::NEG_INFINITY.to_bits(), 1, (-0.0_f64).to_bits(), 0] {
        let one = item(&*built("remote_write"), &series("x_total", &[]), &[], bits, Some(AT - 5000), &[], None);
        assert_eq!((one.samples[0].value.to_bits(), one.samples[0].timestamp), (bits, AT));
        assert_eq!(one.start, Some(AT - 5000));
        let metadata = one.metadata.expect("metadata");
        assert_eq!((metadata.kind, metadata.help.as_str(), metadata.unit.as_str()), (1, "All requests.", "requests"));
    }
    let plain = built_with("remote_write", serde_json::json!({"metadata": false}));
    let one = item(&*plain, &series("x_total", &[]), &[], 0, Some(0), &[], None);
    assert_eq!((one.start, one.metadata), (None, None));
}

#[test]
fn what_a_receiver_does_not_know_is_left_out() {
    let encoder = built_with("remote_write", serde_json::json!({"exemplars": false, "native_histograms": false}));
    let exemplars = [(0, Exemplar { labels: Vec::new(), value: 0, timestamp_ms: Some(7) })];
    let one = item(&*encoder, &series("x", &[]), &[], 0, None, &exemplars, None);
    assert_eq!((one.samples.len(), one.exemplars.len()), (1, 0));
    let histogram = NativeHistogram {
        schema: 0,
        zero_threshold: 0,
        sum: 0,
        counts: Counts::Integer(BucketCounts { count: 0, zero_count: 0, positive: Vec::new(), negative: Vec::new() }),
        positive: Vec::new(),
        negative: Vec::new(),
        custom_bounds: Vec::new(),
        reset_hint: ResetHint::Unknown,
    };
    let mut out = Vec::new();
    let sample = Sample {
        series: &[],
        target: &[],
        kind: MetricType::Histogram,
        timestamp_ms: AT,
        value: 0,
        delta: None,
        sum_delta: None,
        start_ms: None,
        exemplars: &[],
    };
    assert_eq!((encoder.histogram(&sample, &histogram, &mut out), out.len()), (Encoded::Inexpressible("native_histogram"), 0));
}

#[test]
fn a_metric_is_its_series_without_the_ends_of_its_type() {
    let of = |name: &str, kind| family(name, kind).to_owned();
    for end in ["_bucket", "_count", "_sum"] {
        assert_eq!(of(&format!("h{end}"), MetricType::Histogram), "h");
        assert_eq!(of(&format!("h{end}"), MetricType::Gauge), format!("h{end}"));
    }
    assert_eq!((of("s_bucket", MetricType::Summary), of("s_sum", MetricType::Summary)), ("s_bucket".to_owned(), "s".to_owned()));
    assert_eq!((of("g_gcount", MetricType::GaugeHistogram), of("g_bucket", MetricType::GaugeHistogram)), ("g".to_owned(), "g".to_owned()));
    assert_eq!(of("c_total", MetricType::Counter), "c_total");
}

#[test]
fn an_exemplar_has_sorted_labels_and_always_a_time() {
    let labels = [("trace_id", "t"), ("a", "1"), ("none", "")].map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
    let exemplars = [
        (3, Exemplar { labels, value: 0.5_f64.to_bits(), timestamp_ms: Some(7) }),
        (3, Exemplar { labels: Vec::new(), value: 1.5_f64.to_bits(), timestamp_ms: None }),
    ];
    let one = item(&*built("remote_write"), &series("x", &[]), &[], 0, None, &exemplars, None);
    let labels: Vec<_> = one.exemplars[0].labels.iter().map(|l| (l.name.as_str(), l.value.as_str())).collect();
    assert_eq!(labels, [("a", "1"), ("trace_id", "t")]);
    assert_eq!((one.exemplars[0].value, one.exemplars[0].timestamp), (0.5, 7));
    assert_eq!((one.exemplars[1].value, one.exemplars[1].timestamp), (1.5, AT));
}

#[test]
fn a_native_histogram_has_deltas_of_whole_counts_and_absolute_floats() {
    let counts = BucketCounts { count: 12, zero_count: 2, positive: vec![1, 4, 3], negative: vec![2] };
    let mut histogram = NativeHistogram {
        schema: -3,
        zero_threshold: 0.001_f64.to_bits(),
        sum: 18.5_f64.to_bits(),
        counts: Counts::Integer(counts),
        positive: vec![Span { offset: -2, length: 2 }, Span { offset: 3, length: 1 }],
        negative: vec![Span { offset: 0, length: 1 }],
        custom_bounds: Vec::new(),
        reset_hint: ResetHint::Gauge,
    };
    let one = item(&*built("remote_write"), &series("h", &[]), &[], 0, None, &[], Some(&histogram));
    let expect = proto::Histogram {
        count: Some(proto::Count::Int(12)),
        sum: 18.5,
        schema: -3,
        zero_threshold: 0.001,
        zero_count: Some(proto::ZeroCount::Int(2)),
        negative_spans: vec![proto::BucketSpan { offset: 0, length: 1 }],
        negative_deltas: vec![2],
        positive_spans: vec![proto::BucketSpan { offset: -2, length: 2 }, proto::BucketSpan { offset: 3, length: 1 }],
        positive_deltas: vec![1, 3, -1],
        reset_hint: 3,
        timestamp: AT,
        ..Default::default()
    };
    assert_eq!((one.samples.len(), &one.histograms[..]), (0, &[expect][..]));
    let bits = |value: f64| value.to_bits();
    let floats = BucketCounts { count: bits(2.5), zero_count: bits(0.5), positive: vec![bits(1.25), bits(0.75)], negative: Vec::new() };
    histogram.counts = Counts::Float(floats);
    histogram.schema = -53;
    histogram.positive = vec![Span { offset: 0, length: 2 }];
    histogram.negative = Vec::new();
    histogram.custom_bounds = vec![bits(1.0), bits(2.0)];
    histogram.reset_hint = ResetHint::Unknown;
    let one = item(&*built("remote_write"), &series("h", &[]), &[], 0, None, &[], Some(&histogram));
    let got = &one.histograms[0];
    assert_eq!((got.count.clone(), got.zero_count.clone()), (Some(proto::Count::Float(2.5)), Some(proto::ZeroCount::Float(0.5))));
    assert_eq!((&got.positive_counts[..], &got.positive_deltas[..]), (&[1.25, 0.75][..], &[][..]));
    assert_eq!((got.schema, &got.custom_values[..], got.reset_hint), (-53, &[1.0, 2.0][..], 0));
}

proptest! {
    #[test]
    fn any_labels_merge_sorted(
        own in prop::collection::btree_map("[a-zA-Z_.\\PC]{1,8}", ".{0,200}", 0..8),
        target in prop::collection::btree_map("[a-zA-Z_]{1,8}", ".{0,8}", 0..8),
    ) {
        let own: Vec<_> = own.iter().filter(|(name, _)| !target.contains_key(*name)).map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let shared: Vec<_> = target.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let one = item(&*built("remote_write"), &series("up", &own), &shared, 0, None, &[], None);
        let mut expect: Vec<_> = own.iter().chain(&shared).chain(&[("__name__", "up")]).filter(|(_, v)| !v.is_empty()).copied().collect();
        expect.sort_unstable();
        let got: Vec<_> = one.labels.iter().map(|l| (l.name.as_str(), l.value.as_str())).collect();
        prop_assert_eq!(got, expect);
    }
}
