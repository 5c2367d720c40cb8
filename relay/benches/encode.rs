//! Filter and encode, samples per second: `cargo bench -p relay --bench encode`.
//!
//! One layout of 10,000 series with three own labels, verdicts and constant parts at hand, as in a relay past its first frame.

use std::hint::black_box;

use config::Component;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use relay::encode::Sample;
use relay::filter::{Series, Verdict};
use sample::MetricType;
use serde_json::json;

const SERIES: usize = 10_000;

fn values() -> Vec<f64> {
    // A third whole numbers, a third fractions, a third large counters.
    (0_u32..10_000)
        .map(|i| match i % 3 {
            0 => f64::from(i),
            1 => f64::from(i) / 7.0,
            _ => f64::from(i) * 1e6,
        })
        .collect()
}

fn encode(c: &mut Criterion) {
    let codes: Vec<String> = (0..SERIES).map(|i| format!("/api/v1/path{i}")).collect();
    let labels: Vec<[(&str, &str); 3]> = codes.iter().map(|path| [("code", "200"), ("method", "GET"), ("path", path.as_str())]).collect();
    let series: Vec<Series<'_>> = labels
        .iter()
        .map(|labels| Series { name: "http_requests_in_flight", labels, kind: MetricType::Gauge, cumulative: false, help: "", unit: "" })
        .collect();
    let values = values();
    let clamp = Component { name: "clamp".to_owned(), options: json!({"min": 0, "max": 1e9}) };
    let clamp = relay::filter::build(&clamp).expect("options it takes");
    let mut group = c.benchmark_group("filter+encode");
    group.throughput(Throughput::Elements(SERIES as u64));
    for name in ["ndjson", "prometheus", "influx", "statsd", "dogstatsd", "remote_write"] {
        let encoder = relay::encode::build(&Component { name: name.to_owned(), options: json!(null) }).expect("a name");
        let mut target = Vec::new();
        encoder.target(&[("instance", "10.0.0.1:9100"), ("job", "api")], &mut target);
        let parts: Vec<Vec<u8>> = series
            .iter()
            .map(|series| {
                let mut part = Vec::new();
                encoder.series(series, &mut part);
                part
            })
            .collect();
        let mut out = Vec::with_capacity(4 << 20);
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                for (part, value) in parts.iter().zip(&values) {
                    let Some(value) = clamp.value(*value) else { continue };
                    let kind = MetricType::Gauge;
                    let sample = Sample {
                        series: part,
                        target: &target,
                        kind,
                        timestamp_ms: 1_763_700_000_123,
                        value: value.to_bits(),
                        delta: None,
                        sum_delta: None,
                        start_ms: None,
                        exemplars: &[],
                    };
                    encoder.sample(black_box(&sample), &mut out);
                }
                black_box(out.len())
            });
        });
    }
    let selector = Component { name: "drop".to_owned(), options: json!(r#"{__name__=~"go_.*|process_.*", path!~"/api/v1/path1.*"}"#) };
    let filter = relay::filter::build(&selector).expect("options it takes");
    group.bench_function("verdict", |b| b.iter(|| series.iter().filter(|series| filter.verdict(series) == Verdict::Keep).count()));
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);
