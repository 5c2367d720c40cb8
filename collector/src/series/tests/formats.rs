//! OpenMetrics and protobuf pages through the cache: what they say beyond values, on the first page and on steady ones.

use sample::{BucketCounts, Counts as Buckets, NativeHistogram, ResetHint, Span};

use super::*;
use crate::parse::{self, Defect};

/// Start timestamps and exemplars, by series, and native histograms.
fn extras(cache: &SeriesCache) -> Vec<String> {
    let mut extras = Vec::new();
    for part in cache.parts() {
        assert!(part.columns.starts.is_empty() || part.columns.starts.len() == part.layout.len());
        let name = |index: u32| key(part.layout.series(index as usize));
        let starts = part.columns.starts.iter().zip(0..).filter(|(start, _)| **start != NO_TIME);
        extras.extend(starts.map(|(start, index)| format!("{} since {start}", name(index))));
        for (index, exemplar) in &part.columns.exemplars {
            let time = exemplar.timestamp_ms.map(|time| format!(" @{time}")).unwrap_or_default();
            let labels: Vec<_> = exemplar.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            extras.push(format!("{} like {} {}{time}", name(*index), labels.join(","), f64::from_bits(exemplar.value)));
        }
        for (index, histogram) in &part.columns.histograms {
            assert_eq!(part.columns.states[*index as usize], State::Histogram);
            extras.push(format!("{} is {:?}", name(*index), histogram.counts));
        }
    }
    extras.sort();
    extras
}

/// The page three times: built, with spare columns, steady.
fn steady(format: Format, page: &[u8], expect: &[&str]) -> (SeriesCache, Counts) {
    let mut cache = SeriesCache::new(options());
    let mut counts = Counts::default();
    for round in 0..3 {
        counts = cache.page_in(format, page).expect("a good page");
        assert_eq!(extras(&cache), expect, "round {round}");
        assert_eq!(counts.added > 0, round == 0);
    }
    (cache, counts)
}

const OPEN_METRICS: &str = "\
# TYPE a counter
a_total{x=\"1\"} 5 # {trace_id=\"t\\\"1\"} 0.5 1.5
a_created{x=\"1\"} 1700000000.5
a_total{x=\"2\"} 6
# TYPE h histogram
h_bucket{le=\"1.0\"} 1
h_bucket{le=\"+Inf\"} 2 # {} 7
h_count 2
h_sum 8
h_created 12
# TYPE g gauge
g_created 5
# EOF
";

#[test]
fn created_series_stay_and_say_when_their_siblings_began() {
    let (mut cache, counts) = steady(
        Format::OpenMetrics,
        OPEN_METRICS.as_bytes(),
        &[
            "a_total{x=1} like trace_id=t\"1 0.5 @1500",
            "a_total{x=1} since 1700000000500",
            "h_bucket{le=+Inf} like  7",
            "h_bucket{le=+Inf} since 12000",
            "h_bucket{le=1.0} since 12000",
            "h_count{} since 12000",
            "h_sum{} since 12000",
        ],
    );
    assert_eq!(counts.scraped, 9);
    assert!(text(&cache).contains("a_created{x=1} 1700000000.5; "), "{}", text(&cache));
    cache.page_in(Format::OpenMetrics, b"# TYPE a counter\na_total{x=\"1\"} 5\n# EOF\n").expect("a good page");
    assert_eq!(extras(&cache), [""; 0], "neither starts nor exemplars outlive their page");
}

#[test]
fn a_start_moves_with_a_restart_and_survives_compaction() {
    let page = |start: u32, others: u32| {
        let others: String = (0..others).map(|other| format!("# TYPE g{other} gauge\ng{other} 1\n")).collect();
        format!("{others}# TYPE a counter\na_total 1 # {{b=\"c\"}} 1\na_created {start}\n# EOF\n")
    };
    let mut cache = SeriesCache::new(options());
    for (start, others) in [(1, 40), (2, 40), (2, 2), (3, 2), (4, 2), (4, 3)] {
        cache.page_in(Format::OpenMetrics, page(start, others).as_bytes()).expect("a good page");
        assert_eq!(extras(&cache), ["a_total{} like b=c 1".to_owned(), format!("a_total{{}} since {start}000")]);
    }
    assert!(cache.parts()[0].layout.len() < 20, "the layout was compacted");
}

#[test]
fn defects_are_taken_and_counted() {
    let long = "x".repeat(125);
    let page = format!("# TYPE a counter\na 1 # {{t_id=\"{long}\"}} 1\nb 2 1e300\nc 3 # {{}} 1 -1e300\n# EOF\n");
    let mut cache = SeriesCache::new(options());
    for _ in 0..3 {
        let counts = cache.page_in(Format::OpenMetrics, page.as_bytes()).expect("a page with defects");
        let found: Vec<_> = counts.defects.found().collect();
        assert_eq!(found, [(Defect::ExemplarTooLong, 1), (Defect::TimestampRange, 2)]);
        assert_eq!((text(&cache).as_str(), counts.scraped), ("a{} 1; c{} 3", 3));
    }
}

#[test]
fn a_broken_open_metrics_page_changes_nothing() {
    let mut cache = SeriesCache::new(options());
    cache.page_in(Format::OpenMetrics, OPEN_METRICS.as_bytes()).expect("a good page");
    let before = (text(&cache), extras(&cache));
    let cut = OPEN_METRICS.strip_suffix("# EOF\n").expect("it ends so");
    assert_eq!(cache.page_in(Format::OpenMetrics, cut.as_bytes()).expect_err("no end").reason(), "parse");
    assert_eq!((text(&cache), extras(&cache)), before);
}

#[test]
fn a_target_may_change_its_format() {
    let mut cache = SeriesCache::new(options());
    cache.page_in(Format::OpenMetrics, b"# TYPE a counter\na_total{x=\"1\"} 1\n# EOF\n").expect("a good page");
    cache.page(b"# TYPE a_total counter\na_total{x=\"1\"} 2\n").expect("a good page");
    assert_eq!(text(&cache), "a_total{x=1} 2");
    let metric = [label("x", "1"), message(3, &double(1, 3.0))].concat();
    cache.page_in(Format::Protobuf, &family("a_total", 0, &[&metric])).expect("a good page");
    assert_eq!(text(&cache), "a_total{x=1} 3");
    assert_eq!(cache.parts()[0].layout.len(), 1);
}

#[test]
fn a_format_that_changes_adds_no_series_that_text_spells_alike() {
    let lines: String = (0..2000).map(|i| format!("a{{x=\"{i}\"}} 1\n")).collect();
    let mut cache = SeriesCache::new(options());
    let mut added = |format, page: &str| cache.page_in(format, page.as_bytes()).map(|counts| counts.added).ok();
    assert_eq!(added(Format::OpenMetrics, &format!("{lines}# EOF\n")), Some(2000));
    assert_eq!(added(Format::Text, &format!("{lines}b 1\n")), Some(1));
    assert_eq!(added(Format::OpenMetrics, &lines), None, "without its end");
    assert_eq!(added(Format::Text, "<html>"), None);
    assert_eq!(added(Format::Text, &format!("{lines}c 1\n")), Some(1));
}

pub(in crate::series) fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn signed(field: u64, value: i64) -> Vec<u8> {
    number(field, (value << 1 ^ value >> 63) as u64)
}

pub(in crate::series) fn double(field: u64, value: f64) -> Vec<u8> {
    [varint(field << 3 | 1), value.to_le_bytes().to_vec()].concat()
}

pub(in crate::series) fn message(field: u64, body: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(body.len() as u64), body.to_vec()].concat()
}

pub(in crate::series) fn label(name: &str, value: &str) -> Vec<u8> {
    message(1, &[message(1, name.as_bytes()), message(2, value.as_bytes())].concat())
}

/// A delimited family; the unit comes last, as Go writes it.
pub(in crate::series) fn family(name: &str, kind: u64, metrics: &[&[u8]]) -> Vec<u8> {
    let metrics: Vec<u8> = metrics.iter().flat_map(|metric| message(4, metric)).collect();
    let body = [message(1, name.as_bytes()), message(2, b"Help."), number(3, kind), metrics, message(5, b"bytes")].concat();
    [varint(body.len() as u64), body].concat()
}

fn time(field: u64, seconds: u64, nanos: u64) -> Vec<u8> {
    message(field, &[number(1, seconds), number(2, nanos)].concat())
}

fn exemplar(field: u64, trace: &str, seconds: Option<u64>) -> Vec<u8> {
    let time = seconds.map(|seconds| time(3, seconds, 500_000_000)).unwrap_or_default();
    message(field, &[label("trace", trace), double(2, 0.25), time].concat())
}

fn bucket(bound: f64, count: u64, exemplar: &[u8]) -> Vec<u8> {
    message(3, &[number(1, count), double(2, bound), exemplar.to_vec()].concat())
}

/// Spans 1..=2 and 4 with counts 3, 1, 2; a zero bucket with 4.
fn native() -> Vec<u8> {
    let span = |field, offset, length| message(field, &[signed(1, offset), number(2, length)].concat());
    let deltas = [3i64, -2, 1].map(|delta| varint((delta << 1 ^ delta >> 63) as u64)).concat();
    [signed(5, 3), double(6, 1e-128), number(7, 4), span(12, 1, 2), span(12, 1, 1), message(13, &deltas)].concat()
}

#[test]
fn classic_metrics_are_expanded_as_in_prometheus() {
    let counter = [label("x", "1"), message(3, &[double(1, 5.0), exemplar(2, "t1", None), time(3, 7, 999_999_999)].concat())].concat();
    let gauge = [message(2, &double(1, f64::from_bits(STALE_NAN))), number(6, 1500)].concat();
    let quantile = message(3, &[double(1, 0.5), double(2, 1.5)].concat());
    let summary = message(4, &[number(1, 3), double(2, 4.5), quantile, time(4, 8, 0)].concat());
    let buckets = [bucket(1.0, 1, &exemplar(3, "t2", Some(9))), bucket(1e6, 2, &[])].concat();
    let histogram = message(7, &[number(1, 3), double(2, 6.5), buckets].concat());
    let page = [
        family("c_total", 0, &[&counter]),
        family("g_bytes", 1, &[&gauge]),
        family("s", 2, &[&summary]),
        family("h", 4, &[&histogram]),
        family("empty", 1, &[]),
    ]
    .concat();
    let (cache, counts) = steady(
        Format::Protobuf,
        &page,
        &[
            "c_total{x=1} like trace=t1 0.25",
            "c_total{x=1} since 7999",
            "h_bucket{le=1.0} like trace=t2 0.25 @9500",
            "s_count{} since 8000",
            "s_sum{} since 8000",
            "s{quantile=0.5} since 8000",
        ],
    );
    assert_eq!(
        text(&cache),
        "c_total{x=1} 5; g_bytes{} stale @1500; h_bucket{le=+Inf} 3; h_bucket{le=1.0} 1; h_bucket{le=1e+06} 2; h_count{} 3; h_sum{} 6.5; \
         s_count{} 3; s_sum{} 4.5; s{quantile=0.5} 1.5"
    );
    assert_eq!((counts.scraped, counts.duplicates), (10, 0));
    for series in cache.parts()[0].layout.iter() {
        let family = series.family();
        let expect = match &series.name()[..1] {
            "c" => ("c_total", MetricType::Counter),
            "g" => ("g_bytes", MetricType::Gauge),
            "s" => ("s", MetricType::Summary),
            _ => ("h", MetricType::Histogram),
        };
        assert_eq!((family.name, family.kind, family.help, family.unit), (expect.0, expect.1, "Help.", "bytes"));
    }
}

fn columns(page: &[u8], options: Options) -> (String, Vec<NativeHistogram>, Counts) {
    let mut cache = SeriesCache::new(options);
    cache.page_in(Format::Protobuf, page).expect("a good page");
    let counts = cache.page_in(Format::Protobuf, page).expect("a good page");
    let histograms = cache.parts()[0].columns.histograms.iter().map(|(_, histogram)| histogram.clone()).collect();
    (text(&cache), histograms, counts)
}

#[test]
fn native_histograms_are_kept_bit_for_bit() {
    let body = [number(1, 10), double(2, 12.5), native(), exemplar(16, "t", Some(1)), exemplar(16, "late", None), time(15, 2, 0)].concat();
    let page = family("h", 4, &[&message(7, &body)]);
    let (cache, counts) = steady(
        Format::Protobuf,
        &page,
        &[
            "h{} is Integer(BucketCounts { count: 10, zero_count: 4, positive: [3, 1, 2], negative: [] })",
            "h{} like trace=t 0.25 @1500",
            "h{} since 2000",
        ],
    );
    assert_eq!(counts.defects.found().collect::<Vec<_>>(), [(Defect::ExemplarTime, 1)]);
    assert_eq!(
        cache.parts()[0].columns.histograms[0].1,
        NativeHistogram {
            schema: 3,
            zero_threshold: 1e-128f64.to_bits(),
            sum: 12.5f64.to_bits(),
            counts: Buckets::Integer(BucketCounts { count: 10, zero_count: 4, positive: vec![3, 1, 2], negative: vec![] }),
            positive: vec![Span { offset: 1, length: 2 }, Span { offset: 1, length: 1 }],
            reset_hint: ResetHint::Unknown,
            ..NativeHistogram::default()
        }
    );
}

#[test]
fn float_and_gauge_histograms_say_so() {
    let span = message(9, &[signed(1, -5), number(2, 2)].concat());
    let counts = message(11, &[1.5f64.to_le_bytes(), f64::NAN.to_le_bytes()].concat());
    let body = [double(4, 2.5), double(8, 1.0), number(1, 99), double(2, -1.0), span, counts].concat();
    let (_, histograms, _) = columns(&family("h", 5, &[&message(7, &body)]), options());
    assert_eq!(histograms[0].reset_hint, ResetHint::Gauge);
    assert_eq!(histograms[0].negative, [Span { offset: -5, length: 2 }]);
    let negative = vec![1.5f64.to_bits(), f64::NAN.to_bits()];
    let expect = BucketCounts { count: 2.5f64.to_bits(), zero_count: 1f64.to_bits(), positive: vec![], negative };
    assert_eq!(histograms[0].counts, Buckets::Float(expect));
}

#[test]
fn both_parts_of_a_histogram_are_taken_unless_one_is_turned_off() {
    let body = [number(1, 10), double(2, 12.5), bucket(1.0, 4, &[]), native()].concat();
    let page = family("h", 4, &[&message(7, &body)]);
    let classic = "h_bucket{le=+Inf} 10; h_bucket{le=1.0} 4; h_count{} 10; h_sum{} 12.5";
    let (text, histograms, counts) = columns(&page, options());
    assert_eq!((text.as_str(), histograms.len(), counts.scraped), (classic, 1, 5));
    let (text, histograms, _) = columns(&page, Options { ignore_native_histograms: true, ..options() });
    assert_eq!((text.as_str(), histograms.len()), (classic, 0));
    let (text, histograms, _) = columns(&page, Options { native_histograms_only: true, ..options() });
    assert_eq!((text.as_str(), histograms.len()), ("", 1));
}

#[test]
fn a_native_histogram_that_vanishes_is_stale_once() {
    let page = family("h", 4, &[&message(7, &[number(1, 10), native()].concat())]);
    let mut cache = SeriesCache::new(options());
    cache.page_in(Format::Protobuf, &page).expect("a good page");
    cache.page_in(Format::Protobuf, b"").expect("an empty page");
    assert_eq!((text(&cache).as_str(), extras(&cache).len()), ("h{} stale", 0));
    cache.page_in(Format::Protobuf, b"").expect("an empty page");
    assert_eq!(text(&cache), "");
}

#[test]
fn broken_native_histograms_are_refused() {
    for (broken, rule) in [
        (message(12, &number(2, 4)), parse::protobuf::Rule::Spans),
        (message(13, &varint(15)), parse::protobuf::Rule::Buckets),
        (
            [message(12, &number(2, u64::from(u32::MAX))), message(12, &number(2, u64::from(u32::MAX)))].concat(),
            parse::protobuf::Rule::Spans,
        ),
    ] {
        let page = family("h", 4, &[&message(7, &[native(), broken].concat())]);
        let error = SeriesCache::new(options()).page_in(Format::Protobuf, &page).expect_err("broken");
        assert!(matches!(error, PageError::Protobuf(parse::protobuf::Error { rule: found, .. }) if found == rule), "{error}");
    }
}

#[test]
fn long_labels_times_many_buckets_are_bounded() {
    let long = label("x", &"x".repeat(100_000));
    let histogram = |buckets: u32| {
        let buckets: Vec<u8> = (0..buckets).flat_map(|bound| bucket(f64::from(bound), 1, &[])).collect();
        family("h", 4, &[&[long.clone(), message(7, &buckets)].concat()])
    };
    let taken = |page: &[u8]| SeriesCache::new(options()).page_in(Format::Protobuf, page);
    assert_eq!(taken(&histogram(5)).map(|counts| counts.scraped), Ok(8));
    let error = taken(&histogram(50)).expect_err("5 MB of labels in a page of 100 kB");
    assert!(matches!(error, PageError::Protobuf(parse::protobuf::Error { rule: parse::protobuf::Rule::TooMuchText, .. })), "{error}");
}

#[test]
fn a_metric_without_its_value_is_no_sample() {
    let page = family("a", 0, &[&label("x", "1"), &message(2, &double(1, 1.0)), &message(3, &[])]);
    let mut cache = SeriesCache::new(options());
    let counts = cache.page_in(Format::Protobuf, &page).expect("a good page");
    assert_eq!((text(&cache).as_str(), counts.scraped), ("a{} 0", 1));
    assert_eq!(counts.defects.found().collect::<Vec<_>>(), [(Defect::ValueMissing, 2)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn mutated_protobuf_is_survived(at in 0usize..400, byte in any::<u8>(), cut in 0usize..400) {
        let body = [number(1, 10), double(2, 12.5), bucket(1.0, 4, &exemplar(3, "t", Some(1))), native(), time(15, 2, 0)].concat();
        let counter = [label("x", "1"), message(3, &[double(1, 5.0), exemplar(2, "t1", None)].concat())].concat();
        let good = [family("h", 4, &[&message(7, &body)]), family("c_total", 0, &[&counter])].concat();
        let mut bad = good.clone();
        let length = bad.len();
        bad[at % length] = byte;
        bad.truncate(length - cut % 40 * usize::from(cut % 2 == 0));
        let mut cache = SeriesCache::new(options());
        for page in [&good, &bad, &good] {
            if cache.page_in(Format::Protobuf, page).is_err() {
                cache.failed();
            }
            let _ = (said(&cache), extras(&cache));
        }
        let mut fresh = SeriesCache::new(options());
        fresh.page_in(Format::Protobuf, &good).expect("a good page");
        let live = |cache: &SeriesCache| said(cache).into_iter().filter(|(_, (bits, _))| *bits != STALE_NAN).collect::<Vec<_>>();
        prop_assert_eq!(live(&cache), live(&fresh));
    }
}
