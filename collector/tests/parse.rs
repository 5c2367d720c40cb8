//! The parser against `prometheus-parse`, an independent one, on real pages: every series, every label, every value.
//!
//! The pages come from `STRATA_CORPORA` (default `../shared/corpora` beside the repository); where they are absent the test says so and
//! uses the page written out below. `prometheus-parse` is asked line by line and without `TYPE`, because with it histograms and summaries are
//! folded into one sample. It is known to differ, and is not asked, where
//! - a label value holds `,` or `=` (it splits there), `}` (it ends the labels there), or an escape (it leaves it in);
//! - a name holds `:` (it does not know it).

use std::path::{Path, PathBuf};

use collector::parse::{NORMAL_NAN, Page, Piece, Row, Sample, unescape};
use prometheus_parse::LineInfo;

const WRITTEN_OUT: &str = r#"# HELP go_gc_duration_seconds A summary of the pause duration of garbage collection cycles.
# TYPE go_gc_duration_seconds summary
go_gc_duration_seconds{quantile="0"} 1.1e-05
go_gc_duration_seconds{quantile="1"} 0.000384921
go_gc_duration_seconds_sum 0.030284724
go_gc_duration_seconds_count 231
# TYPE http_requests_total counter
http_requests_total{code="200",method="get"} 1.8446744073709552e+19
http_requests_total{code="500",method="get"} 0 1700000000000
# TYPE temperature gauge
temperature{room="attic",} -3.5
temperature NaN
temperature{room="cellar"} +Inf
"#;

/// Samples by the count of Prometheus itself, per page.
const PAGES: [(&str, usize); 7] = [
    ("k8s-1.35/apiserver.prom", 22_853),
    ("k8s-1.35/kubelet-cadvisor.prom", 4_621),
    ("k8s-1.35/kube-state-metrics.prom", 1_698),
    ("k8s-1.35/scheduler.prom", 2_334),
    ("k8s-1.35/controller-manager.prom", 2_852),
    ("k8s-1.35/etcd.prom", 1_461),
    ("node_exporter/e2e-output.prom", 3_027),
];

fn corpora() -> PathBuf {
    std::env::var_os("STRATA_CORPORA").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpora"), PathBuf::from)
}

/// Name, sorted labels, bits, timestamp.
type Reading = (String, Vec<(String, String)>, u64, Option<i64>);

fn own(sample: &Sample<'_>) -> Reading {
    let text = |bytes| String::from_utf8(unescape(bytes).into_owned()).expect("UTF-8");
    let (mut name, mut labels) = (String::new(), Vec::new());
    sample.pieces(|piece| match piece {
        Piece::Name(piece) => name = text(piece),
        Piece::Label(label, value) => labels.push((text(label), text(value))),
    });
    labels.sort();
    (name, labels, sample.value, sample.timestamp_ms)
}

fn foreign(line: &str) -> Reading {
    let scrape = prometheus_parse::Scrape::parse(std::iter::once(Ok(line.to_owned()))).expect("a line");
    let [sample] = scrape.samples.as_slice() else { panic!("{line:?} is {} samples to prometheus-parse", scrape.samples.len()) };
    let prometheus_parse::Value::Untyped(value) = sample.value else { panic!("{line:?} is {:?}", sample.value) };
    let LineInfo::Sample { timestamp, .. } = LineInfo::parse(line) else { panic!("{line:?} is no sample to prometheus-parse") };
    let mut labels: Vec<_> = sample.labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    labels.sort();
    let bits = if value.is_nan() { NORMAL_NAN } else { value.to_bits() };
    (sample.metric.clone(), labels, bits, timestamp.and_then(|time| time.parse().ok()))
}

/// Whether `prometheus-parse` is known to read this line in another way.
fn differs((name, labels, ..): &Reading) -> bool {
    name.contains(':') || labels.iter().any(|(_, value)| value.contains([',', '=', '}', '"', '\\', '\n']))
}

/// Compares line by line; samples, and how many of them were not compared.
fn compare(page: &str) -> (usize, usize) {
    let (mut samples, mut excluded) = (0, 0);
    let mut reader = Page::new(page.as_bytes());
    let mut lines = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    while let Some(row) = reader.row().expect("a good page") {
        let Row::Sample(sample) = row else { continue };
        let line = lines.next().expect("a line per sample");
        let reading = own(&sample);
        samples += 1;
        if differs(&reading) {
            excluded += 1;
        } else {
            assert_eq!(reading, foreign(line), "{line:?}");
        }
    }
    assert_eq!(lines.next(), None);
    (samples, excluded)
}

#[test]
fn every_series_and_value_is_what_another_parser_reads() {
    assert_eq!(compare(WRITTEN_OUT), (9, 0));
    let mut compared = 0;
    for (name, expect) in PAGES {
        let path = corpora().join(name);
        let Ok(page) = std::fs::read_to_string(&path) else {
            println!("{} is absent: only the page written out in this test was compared", path.display());
            continue;
        };
        let (samples, excluded) = compare(&page);
        println!("{name}: {samples} samples, {excluded} of them not comparable");
        assert_eq!(samples, expect, "{name}");
        assert!(excluded * 5 < samples, "{name}: too few lines are compared");
        compared += samples - excluded;
    }
    println!("{compared} samples of real pages compared");
}
