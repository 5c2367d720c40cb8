//! After warm-up, frames cost no allocation per sample.

use std::alloc::System;
use std::sync::Arc;

use sample::{Columns, Decoder, Encoder, Flags, FrameKind, FrameRef, LayoutBuilder, MetricType, Origin, State};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SERIES: usize = 5000;

fn scrape(round: usize) -> Columns {
    let value = |at: usize| match at % 6 {
        0 => (at * round) as f64,
        1 => at as f64 + round as f64 / 8.0,
        2 => (at as f64 + round as f64).sqrt(),
        _ => at as f64,
    };
    let mut columns = Columns { states: vec![State::Present; SERIES], ..Columns::default() };
    columns.values.extend((0..SERIES).map(|at| value(at).to_bits()));
    columns.timestamps.extend((0..SERIES).map(|at| (round * 15_000 + at % 50) as i64));
    columns.starts.extend((0..SERIES).map(|at| -((at % 7) as i64)));
    columns
}

/// One test only: the counter is the process's.
#[test]
fn deltas_allocate_nothing_per_sample() {
    let mut builder = LayoutBuilder::new();
    let family = builder.family("f", MetricType::Counter, "", "");
    (0..SERIES).for_each(|at| {
        builder.series(family, "f", [("at", &*at.to_string())]);
    });
    let layout = Arc::new(builder.build());
    let (mut encoder, mut decoder) = (Encoder::new(Arc::new(Origin::default()), 0), Decoder::new());
    let (mut bytes, mut out) = (Vec::new(), Columns::default());
    let rounds: Vec<Columns> = (0..12).map(scrape).collect();
    for (round, columns) in rounds.iter().enumerate() {
        bytes.clear();
        let region = Region::new(ALLOCATOR);
        let encoded = encoder.encode(round as i64, 1, Flags::default(), &layout, columns, &mut bytes);
        let writing = region.change();
        let frame = FrameRef::parse(&bytes).expect("a header");
        let region = Region::new(ALLOCATOR);
        drop(decoder.decode("p", 1, &frame, 1, &mut out).expect("its base was read"));
        let reading = region.change();
        assert_eq!(&out, columns);
        if round > 1 {
            assert_eq!(encoded.kind, FrameKind::Delta);
            assert_eq!((writing.allocations, writing.reallocations), (0, 0), "writing round {round}");
            // A constant number per frame would be fine; there is one, the table of the time groups.
            assert!(reading.allocations + reading.reallocations <= 1, "reading round {round}: {reading:?}");
        }
    }
}
