//! A steady OpenMetrics or protobuf page allocates nothing either, exemplars and native histograms included; one whose histograms are converted,
//! or whose series move, only what does not grow with its samples.

use std::alloc::System;
use std::fmt::Write;

use collector::parse::Format;
use collector::series::{Options, SeriesCache};
use sample::Columns;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations of a page that moves or is converted: lists that grow by doubling, and tables of where things stood.
const PAGE_MAX: usize = 30;

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

/// 100 histograms of 8 buckets, all one family.
fn histograms(round: u32) -> Vec<u8> {
    let mut page = "# TYPE h histogram\n# HELP h Help.\n".to_owned();
    for series in 0..100 {
        let mut count = series;
        for bucket in 0..8 {
            count += round % 3 + bucket;
            let bound = if bucket == 7 { "+Inf".to_owned() } else { format!("{bucket}.5") };
            writeln!(page, "h_bucket{{series=\"{series}\",le=\"{bound}\"}} {count}").expect("a string takes all");
        }
        writeln!(page, "h_sum{{series=\"{series}\"}} {round}.5\nh_count{{series=\"{series}\"}} {count}").expect("a string takes all");
    }
    page.into_bytes()
}

/// 20 families of 50 gauges, all of them and their series each time in another order.
fn moving(round: u32) -> Vec<u8> {
    let mut page = String::new();
    for family in (0..20).map(|family| (family * 7 + round) % 20) {
        writeln!(page, "# TYPE family_{family} gauge\n# HELP family_{family} Help.").expect("a string takes all");
        for series in (0..50).map(|series| (series * [7, 11, 13][round as usize % 3] + round) % 50) {
            writeln!(page, "family_{family}{{series=\"{series}\"}} {round}").expect("a string takes all");
        }
    }
    page.into_bytes()
}

/// Reads pages; how many allocations each takes once the cache is warm, at most.
fn most(options: Options, format: Format, page: fn(u32) -> Vec<u8>, samples: u64, check: impl Fn(&Columns)) -> usize {
    let mut cache = SeriesCache::new(options);
    let pages: Vec<Vec<u8>> = (1..41).map(page).collect();
    let mut most = 0;
    for (round, page) in pages.iter().enumerate() {
        let region = Region::new(ALLOCATOR);
        let counts = cache.page_in(format, page);
        let change = region.change();
        assert_eq!(counts.map(|counts| (counts.scraped, counts.added > 0)), Ok((samples, round == 0)), "{format:?}");
        check(&cache.parts()[0].columns);
        if round > 20 {
            most = most.max(change.allocations + change.reallocations);
        }
    }
    most
}

/// One test in this file: another thread's allocations would be counted too.
#[test]
fn a_steady_page_of_any_format_allocates_nothing() {
    let options = || Options { honor_timestamps: true, ..Options::default() };
    let has_all = |samples: usize| {
        move |columns: &Columns| {
            assert_eq!((columns.exemplars.len() >= 1000, columns.starts.len()), (true, samples), "exemplars and starts")
        }
    };
    assert_eq!(most(options(), Format::OpenMetrics, open_metrics, 2000, has_all(2000)), 0);
    assert_eq!(most(options(), Format::Protobuf, protobuf, 5000, has_all(5000)), 0);
    let convert = || Options { convert_histograms: true, ..options() };
    let converted = |histograms: usize| move |columns: &Columns| assert_eq!(columns.histograms.len(), histograms);
    // The rest is per page.
    let taken = most(convert(), Format::Text, histograms, 100, converted(100));
    assert!(taken <= PAGE_MAX, "{taken} for 100 histograms");
    let taken = most(options(), Format::Text, moving, 1000, converted(0));
    assert!(taken <= PAGE_MAX, "{taken} for 1000 series that moved");
}
