//! Golden pages, and what an independent parser reads of any.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::encode::tests::{built, built_with, encoded, histogram_text};
use crate::sink::Batch;
use crate::sink::tests::batch;

const TARGET: &[(&str, &str)] = &[("instance", "h:1"), ("job", "j")];

fn of<'a>(kind: MetricType, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> Series<'a> {
    Series { name, labels, kind, cumulative: false, help: "", unit: "" }
}

#[track_caller]
fn check(series: &Series<'_>, value: f64, expect: &str) {
    let (outcome, text) = encoded(&*built("prometheus"), series, TARGET, value.to_bits(), None);
    assert_eq!((outcome, text.as_str()), (Encoded::Item, expect));
}

#[test]
fn an_item_is_exactly_this() {
    use MetricType::*;
    check(
        &of(Counter, "c_total", &[("code", "200")]),
        3.0,
        "# TYPE c_total counter\nc_total{code=\"200\",instance=\"h:1\",job=\"j\"} 3 1700000000123\n",
    );
    check(
        &of(Gauge, "a:b", &[("p", "a\"\\\n")]),
        f64::NAN,
        "# TYPE a:b gauge\na:b{p=\"a\\\"\\\\\\n\",instance=\"h:1\",job=\"j\"} NaN 1700000000123\n",
    );
    check(
        &of(Histogram, "h_bucket", &[("le", "+Inf")]),
        2.0,
        "# TYPE h histogram\nh_bucket{le=\"+Inf\",instance=\"h:1\",job=\"j\"} 2 1700000000123\n",
    );
    check(&of(Summary, "s_sum", &[]), f64::INFINITY, "# TYPE s summary\ns_sum{instance=\"h:1\",job=\"j\"} +Inf 1700000000123\n");
    check(&of(Info, "i_info", &[]), 1.0, "# TYPE i_info gauge\ni_info{instance=\"h:1\",job=\"j\"} 1 1700000000123\n");
    check(&of(Histogram, "h_created", &[]), 1.0, "# TYPE h_created gauge\nh_created{instance=\"h:1\",job=\"j\"} 1 1700000000123\n");
    check(
        &of(Unknown, "0é.b", &[("ö", "ü")]),
        -0.0,
        "# TYPE _0__b untyped\n_0__b{_=\"ü\",instance=\"h:1\",job=\"j\"} -0.0 1700000000123\n",
    );
}

#[test]
fn without_times_and_with_quoted_names() {
    let series = of(MetricType::Gauge, "a.b", &[("c.d", "x")]);
    let text = |options| encoded(&*built_with("prometheus", options), &series, &[], 1.0_f64.to_bits(), None).1;
    assert_eq!(text(json!({"timestamps": false})), "# TYPE a_b gauge\na_b{c_d=\"x\"} 1\n");
    assert_eq!(text(json!({"timestamps": false, "utf8": true})), "# TYPE \"a.b\" gauge\n{\"a.b\",\"c.d\"=\"x\"} 1\n");
    let bare = of(MetricType::Gauge, "x", &[]);
    assert_eq!(encoded(&*built_with("prometheus", json!({"timestamps": false})), &bare, &[], 0, None).1, "# TYPE x gauge\nx 0\n");
}

#[test]
fn a_staleness_marker_cannot_be_said() {
    let outcome = encoded(&*built("prometheus"), &of(MetricType::Gauge, "x", &[]), TARGET, sample::STALE_NAN, None);
    assert_eq!(outcome, (Encoded::Inexpressible("stale"), String::new()));
}

#[test]
fn a_native_histogram_becomes_a_classic_one() {
    let expect = "# TYPE h histogram\n\
        h_bucket{job=\"j\",le=\"-2\"} 1 1700000000123\nh_bucket{job=\"j\",le=\"-1\"} 5 1700000000123\nh_bucket{job=\"j\",le=\"0.001\"} 7 1700000000123\n\
        h_bucket{job=\"j\",le=\"1\"} 8 1700000000123\nh_bucket{job=\"j\",le=\"8\"} 11 1700000000123\nh_bucket{job=\"j\",le=\"+Inf\"} 12 1700000000123\n\
        h_sum{job=\"j\"} 12.5 1700000000123\nh_count{job=\"j\"} 12 1700000000123\n";
    assert_eq!(histogram_text(&*built("prometheus"), "h", &[("job", "j")]), expect);
}

fn page(texts: &[String]) -> Batch {
    batch(&texts.iter().map(String::as_str).collect::<Vec<_>>(), built("prometheus").framing())
}

#[test]
fn a_body_has_every_family_once() {
    let item = |kind, name: &str, labels: &[(&str, &str)]| {
        encoded(&*built_with("prometheus", json!({"timestamps": false})), &of(kind, name, labels), &[], 0, None).1
    };
    let texts = [
        item(MetricType::Counter, "c", &[("i", "1")]),
        item(MetricType::Gauge, "g", &[]),
        item(MetricType::Counter, "c", &[("i", "2")]),
        item(MetricType::Gauge, "c", &[("i", "3")]),
    ];
    let batch = page(&texts);
    let mut body = Vec::new();
    batch.body(0..4, &mut body);
    assert_eq!(
        String::from_utf8(body).expect("UTF-8"),
        "# TYPE c counter\nc{i=\"1\"} 0\nc{i=\"2\"} 0\nc{i=\"3\"} 0\n# TYPE g gauge\ng 0\n"
    );
    let mut part = Vec::new();
    batch.body(1..2, &mut part);
    assert_eq!(part, texts[1].as_bytes());
}

proptest! {
    /// `prometheus-parse` (which knows neither escapes nor odd names) reads the page line by line, with the values as they were.
    #[test]
    fn an_independent_parser_reads_the_page(
        samples in prop::collection::vec(("[a-c]|[a-zé.-]{1,6}", "[a-h.é]{1,5}", "[a-z0-9.-]{1,8}", any::<u64>(), 0_u8..4), 1..12),
    ) {
        let mut names = BTreeSet::new();
        let (mut texts, mut values) = (Vec::new(), Vec::new());
        for (i, (name, label, text, bits, kind)) in samples.iter().enumerate() {
            if sample::is_stale(*bits) {
                continue;
            }
            let id = i.to_string();
            let labels = [("id", id.as_str()), (label.as_str(), text.as_str())];
            let kind = [MetricType::Counter, MetricType::Gauge, MetricType::Unknown, MetricType::StateSet][usize::from(*kind)];
            let (outcome, item) = encoded(&*built("prometheus"), &of(kind, name, &labels), &[], *bits, None);
            prop_assert_eq!(outcome, Encoded::Item);
            names.insert(item.split(' ').nth(2).unwrap_or_default().to_owned());
            values.push(f64::from_bits(*bits));
            texts.push(item);
        }
        let mut body = Vec::new();
        page(&texts).body(0..texts.len(), &mut body);
        let body = String::from_utf8(body).expect("UTF-8");
        prop_assert_eq!(body.lines().filter(|line| line.starts_with("# TYPE ")).count(), names.len());
        let read = prometheus_parse::Scrape::parse(body.lines().map(|line| Ok(line.to_owned()))).expect("a page");
        prop_assert_eq!(read.samples.len(), values.len(), "{}", body);
        for sample in read.samples {
            let id: usize = sample.labels.get("id").and_then(|id| id.parse().ok()).unwrap_or(usize::MAX);
            let got = match sample.value {
                prometheus_parse::Value::Counter(v) | prometheus_parse::Value::Gauge(v) | prometheus_parse::Value::Untyped(v) => v,
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            };
            let kept: Vec<usize> = (0..samples.len()).filter(|i| !sample::is_stale(samples[*i].3)).collect();
            let expect = kept.iter().position(|i| *i == id).map(|at| values[at]);
            prop_assert!(expect.is_some_and(|expect| expect.to_bits() == got.to_bits() || (expect.is_nan() && got.is_nan())), "{:?} {}", expect, got);
        }
    }
}
