//! A steady OpenMetrics or protobuf page allocates nothing either, exemplars and native histograms included.

use std::alloc::System;
use std::fmt::Write;

use collector::parse::Format;
use collector::series::{Options, SeriesCache};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// 20 families of 50 counters, each with an exemplar and a start.
fn open_metrics(round: u32) -> Vec<u8> {
    let mut page = String::new();
    for family in 0..20 {
        writeln!(page, "# TYPE family_{family} counter\n# HELP family_{family} Help.").expect("a string takes all");
        for series in 0..50 {
            let (value, trace) = (series * round, 1000 + round);
            writeln!(page, "family_{family}_total{{series=\"{series}\"}} {value} # {{trace=\"{trace}\"}} 0.5 {round}.25")
                .expect("a string takes all");
            writeln!(page, "family_{family}_created{{series=\"{series}\"}} 1700000000.5").expect("a string takes all");
        }
    }
    (page + "# EOF\n").into_bytes()
}

fn message(field: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a small message");
    [&[field << 3 | 2, length as u8 & 0x7f | 0x80, (length >> 7) as u8][..], body].concat()
}

/// 20 families of 50 histograms, classic and native, each with an exemplar and a start.
fn protobuf(round: u32) -> Vec<u8> {
    let count = round as u8;
    let time = |field: u8| message(field, &[0x08, round as u8]);
    let mut page = Vec::new();
    for family in 0..20 {
        let mut body = [message(1, format!("family_{family}").as_bytes()), vec![0x18, 4]].concat();
        for series in 0..50 {
            let label = message(1, &[message(1, b"series"), message(2, format!("{series}").as_bytes())].concat());
            let exemplar =
                [message(1, &[message(1, b"trace"), message(2, format!("{}", 1000 + round).as_bytes())].concat()), time(3)].concat();
            let bucket = message(3, &[&[0x08, count, 0x11][..], &1.5f64.to_le_bytes(), &message(3, &exemplar)].concat());
            let native = [&[0x28, 6, 0x38, count][..], &message(12, &[0x08, 2, 0x10, 2]), &message(13, &[2, 4])].concat();
            let histogram = message(7, &[&[0x08, count + 4][..], &bucket, &native, &time(15)].concat());
            body.extend(message(4, &[label, histogram].concat()));
        }
        let mut length = body.len();
        while length >= 0x80 {
            page.push(length as u8 | 0x80);
            length >>= 7;
        }
        page.push(length as u8);
        page.extend(body);
    }
    page
}

fn check(format: Format, page: fn(u32) -> Vec<u8>, samples: u64) {
    let mut cache = SeriesCache::new(Options { honor_timestamps: true, ..Options::default() });
    let pages: Vec<Vec<u8>> = (1..41).map(page).collect();
    for (round, page) in pages.iter().enumerate() {
        let region = Region::new(ALLOCATOR);
        let counts = cache.page_in(format, page);
        let change = region.change();
        assert_eq!(counts.map(|counts| (counts.scraped, counts.added > 0)), Ok((samples, round == 0)), "{format:?}");
        let columns = &cache.parts()[0].columns;
        assert_eq!((columns.exemplars.len() >= 1000, columns.starts.len() as u64), (true, samples), "{format:?}");
        if round > 20 {
            assert_eq!((change.allocations, change.reallocations), (0, 0), "{format:?}, round {round}: {change:?}");
        }
    }
}

/// One test in this file: another thread's allocations would be counted too.
#[test]
fn a_steady_page_of_any_format_allocates_nothing() {
    check(Format::OpenMetrics, open_metrics, 2000);
    check(Format::Protobuf, protobuf, 5000);
}
