//! Per sample, filters and encoders allocate nothing: counted by the allocator.

use std::alloc::System;

use config::Component;
use relay::encode::Sample;
use relay::filter::Series;
use sample::MetricType;
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const LABELS: &[(&str, &str)] = &[("code", "200"), ("path", "/a b")];
const TARGET: &[(&str, &str)] = &[("instance", "h:1"), ("job", "j")];

// One test alone in its process, because the counter sees every thread; the one that started it allocates a few times beside it.
const OTHERS_MAX: usize = 50;

#[test]
fn a_sample_costs_no_allocation() {
    let filters: Vec<_> = [("clip", json!({"min": -1})), ("clamp", json!({"max": 9})), ("exclude", json!({"values": [3, "NaN"]}))]
        .map(|(name, options)| relay::filter::build(&Component { name: name.to_owned(), options }).expect("options it takes"))
        .into();
    let mut out = Vec::with_capacity(1 << 20);
    for kind in relay::encode::kinds() {
        let encoder = relay::encode::build(&Component { name: kind.name.to_owned(), options: Value::Null }).expect("a name");
        for cumulative in [false, true] {
            let series = Series { name: "x", labels: LABELS, kind: MetricType::Gauge, cumulative, help: "Help.", unit: "" };
            let (mut constant, mut target) = (Vec::new(), Vec::new());
            encoder.series(&series, &mut constant);
            encoder.target(TARGET, &mut target);
            let region = Region::new(ALLOCATOR);
            for i in 0..1000_u32 {
                let value = filters.iter().try_fold(f64::from(i) / 7.0 - 1.0, |value, filter| filter.value(value));
                let value = value.unwrap_or(0.5);
                let delta = cumulative.then_some(value);
                let value = value.to_bits();
                let sample = Sample {
                    series: &constant,
                    target: &target,
                    kind: series.kind,
                    timestamp_ms: 1,
                    value,
                    delta,
                    sum_delta: None,
                    start_ms: None,
                    exemplars: &[],
                };
                encoder.sample(&sample, &mut out);
            }
            let allocations = region.change().allocations;
            assert!(allocations < OTHERS_MAX, "{}: {allocations} for 1000 samples", kind.name);
            assert!(out.len() > 1000, "{}", kind.name);
            out.clear();
        }
    }
}
