//! A steady page allocates nothing, however many samples it has.

use std::alloc::System;
use std::fmt::Write;

use collector::series::{Options, SeriesCache};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn page(round: u32) -> String {
    let mut page = String::new();
    for family in 0..50 {
        writeln!(page, "# HELP family_{family} Help.\n# TYPE family_{family} gauge").expect("a string takes all");
        for series in 0..100 {
            let time = if family % 5 == 0 { format!(" {}", 1_700_000_000_000_u64 + u64::from(round)) } else { String::new() };
            writeln!(page, "family_{family}{{series=\"{series}\"}} {}.5{time}", series * round).expect("a string takes all");
        }
    }
    page
}

/// One test in this file: another thread's allocations would be counted too.
#[test]
fn a_steady_page_allocates_nothing() {
    let mut cache = SeriesCache::new(Options { honor_timestamps: true, ..Options::default() });
    let pages: Vec<String> = (0..40).map(page).collect();
    for (round, page) in pages.iter().enumerate() {
        let region = Region::new(ALLOCATOR);
        let counts = cache.page(page.as_bytes());
        cache.synthetic(&[("up", 1.0), ("scrape_duration_seconds", 0.1)]);
        let change = region.change();
        assert_eq!(counts.map(|counts| counts.scraped), Ok(5000));
        // The first page builds everything, the second the spare columns; the lookup is dropped after some clean pages.
        if round > 1 {
            assert!(change.allocations + change.reallocations <= 1, "round {round}: {change:?}");
        }
        if round > 20 {
            assert_eq!((change.allocations, change.reallocations), (0, 0), "round {round}: {change:?}");
        }
    }
}
