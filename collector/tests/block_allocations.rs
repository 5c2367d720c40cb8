//! A large page in blocks takes a block at a time: the memory of its columns and no more of its text.

use std::alloc::System;
use std::fmt::Write;

use collector::parse::{Format, LINE_BYTES_MAX};
use collector::series::{Counts, Options, SeriesCache};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const FAMILIES: u32 = 600;
const SERIES: u32 = 1200;
const BLOCK_BYTES: usize = 64 << 10;

fn family(family: u32, round: u32, out: &mut Vec<u8>) {
    let mut text = String::new();
    writeln!(text, "# HELP family_number_{family}_of_a_large_page Help.\n# TYPE family_number_{family}_of_a_large_page gauge")
        .expect("a string");
    for series in 0..SERIES {
        writeln!(
            text,
            "family_number_{family}_of_a_large_page{{namespace=\"something\",pod=\"something-else-{series}\",zone=\"a\"}} {round}.5"
        )
        .expect("a string");
    }
    out.extend_from_slice(text.as_bytes());
}

/// Makes a page and has it read as it comes; its bytes.
fn page(cache: &mut SeriesCache, round: u32, block: &mut Vec<u8>) -> (usize, Counts) {
    let (mut reading, mut bytes) = (cache.begin(Format::Text), 0);
    for number in 0..FAMILIES {
        let before = block.len();
        family(number, round, block);
        bytes += block.len() - before;
        while block.len() > BLOCK_BYTES {
            let done = cache.block(&mut reading, &block[..BLOCK_BYTES]).expect("a good page");
            block.drain(..done);
        }
    }
    let counts = cache.finish(reading, block).expect("a good page");
    block.clear();
    (bytes, counts)
}

/// One test in this file: another thread's allocations would be counted too.
#[test]
fn a_steady_page_of_sixty_megabytes_takes_a_few() {
    let mut cache = SeriesCache::new(Options::default());
    let mut block = Vec::with_capacity(LINE_BYTES_MAX);
    let mut text = Vec::new();
    // The columns of a page that follows a rest are new.
    for (round, columns) in [(0, None), (1, None), (2, Some(0)), (3, Some(9 * (FAMILIES * SERIES) as usize))] {
        let region = Region::new(ALLOCATOR);
        (0..FAMILIES).for_each(|number| {
            text.clear();
            family(number, round, &mut text);
        });
        let making = region.change().bytes_allocated;
        let region = Region::new(ALLOCATOR);
        if round == 3 {
            cache.rest();
        }
        let (bytes, counts) = page(&mut cache, round, &mut block);
        // All that was ever allocated, freed again or not, above what making the page took.
        let taken = region.change().bytes_allocated.saturating_sub(making);
        assert_eq!((counts.scraped, bytes > 60 << 20), (u64::from(FAMILIES * SERIES), true), "{bytes} bytes");
        if let Some(columns) = columns {
            assert!(taken < columns + (1 << 20), "round {round}: {taken} bytes beside columns of {columns}");
        }
    }
}
