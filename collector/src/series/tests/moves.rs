//! Families and series that move, come and go: only the labels of what is new are read, and of one that stands elsewhere.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::formats::{double, family, label, message};
use super::*;

const FORMATS: [Format; 3] = [Format::Text, Format::OpenMetrics, Format::Protobuf];
const SERIES: u32 = 40;

/// A family of gauges; `described`: with its type, which protobuf cannot do without.
fn gauges(format: Format, name: &str, numbers: &[u32], value: f64, described: bool) -> Vec<u8> {
    match format {
        Format::Protobuf => {
            let metrics: Vec<Vec<u8>> = numbers
                .iter()
                .map(|number| [label("x", &number.to_string()), message(2, &double(1, value + f64::from(*number)))].concat())
                .collect();
            family(name, 1, &metrics.iter().map(Vec::as_slice).collect::<Vec<_>>())
        }
        _ => {
            let described = if described { format!("# TYPE {name} gauge\n") } else { String::new() };
            let lines: String = numbers.iter().map(|number| format!("{name}{{x=\"{number}\"}} {}\n", value + f64::from(*number))).collect();
            (described + &lines).into_bytes()
        }
    }
}

/// What a page of these families is in a format.
fn page(format: Format, families: &[(String, Vec<u32>)], value: f64, described: bool) -> Vec<u8> {
    let mut page: Vec<u8> = families.iter().flat_map(|(name, numbers)| gauges(format, name, numbers, value, described)).collect();
    if format == Format::OpenMetrics {
        page.extend(b"# EOF\n");
    }
    page
}

/// Edits a page; says how many series are new, and how many more may be looked for.
fn edit(random: &mut StdRng, families: &mut Vec<(String, Vec<u32>)>, named: &mut u32) -> (u64, u64) {
    let some = random.random_range(0..families.len());
    match random.random_range(0..6) {
        0 => {
            families.shuffle(random);
            (0, families.len() as u64)
        }
        1 => {
            families.rotate_left(1);
            (0, 2)
        }
        2 => {
            families.remove(some);
            (0, 1)
        }
        3 => {
            *named += 1;
            families.insert(some, (format!("f{named}"), (0..SERIES).collect()));
            (u64::from(SERIES), 1)
        }
        4 => {
            families[some].1.reverse();
            (0, families[some].1.len() as u64 + 1)
        }
        _ => {
            *named += 1;
            families[some].1.insert(1, 1000 + *named);
            (1, 1)
        }
    }
}

#[test]
fn what_moves_comes_or_goes_costs_its_own_lines_only() {
    for (format, described) in FORMATS.into_iter().flat_map(|format| [(format, true), (format, false)]) {
        let mut random = StdRng::seed_from_u64(7);
        let mut cache = SeriesCache::new(options());
        let mut families: Vec<_> = (0..12).map(|number| (format!("f{number}"), (0..SERIES).collect())).collect();
        let counts = cache.page_in(format, &page(format, &families, 0.5, described)).expect("a good page");
        assert_eq!((counts.searched, counts.scraped), (12 * u64::from(SERIES), 12 * u64::from(SERIES)));
        let mut named = 12;
        for round in 1..100 {
            let (new, moved) = edit(&mut random, &mut families, &mut named);
            // Now and then so many steady pages that what helps to find things is given back.
            for steady in 0..if round % 10 == 0 { 20 } else { 2 } {
                let body = page(format, &families, f64::from(round) + 0.5, described);
                let counts = cache.page_in(format, &body).expect("a good page");
                assert!(counts.added <= new && counts.scraped == families.iter().map(|(_, numbers)| numbers.len() as u64).sum::<u64>());
                let most = if steady == 0 { new + moved } else { 0 };
                assert!(
                    counts.searched <= most,
                    "{format:?}, {described}, round {round}: {} of {}, {most} at most",
                    counts.searched,
                    counts.scraped
                );
            }
        }
    }
}

/// A cache that has seen a page so often that what helps to find things is given back.
fn settled(format: Format, families: &[(String, Vec<u32>)], described: bool) -> SeriesCache {
    let mut cache = SeriesCache::new(options());
    for _ in 0..=CLEAN_PAGES {
        cache.page_in(format, &page(format, families, 0.5, described)).expect("a good page");
    }
    assert!(cache.lookup.is_none());
    cache
}

/// Three families of more series than are looked through for one that comes a little later.
fn three() -> Vec<(String, Vec<u32>)> {
    ["a", "b", "c"].map(|name| (name.to_owned(), (0..SERIES).collect())).into()
}

#[test]
fn behind_what_moved_the_page_goes_on_where_it_was_left() {
    for (format, described) in FORMATS.into_iter().flat_map(|format| [(format, true), (format, false)]) {
        let mut cache = settled(format, &three(), described);
        let mut families = three();
        // Ahead by more than is looked through: it is searched, what follows it in its new place and in its old one is not.
        let moved = families[1].1.remove(30);
        families[1].1.insert(2, moved);
        let counts = cache.page_in(format, &page(format, &families, 1.5, described)).expect("a good page");
        assert_eq!((counts.searched, counts.added), (1, 0), "{format:?}, {described}");
        families.swap(0, 2);
        families.swap(1, 2);
        let counts = cache.page_in(format, &page(format, &families, 2.5, described)).expect("a good page");
        assert!(counts.searched <= 1 && counts.added == 0, "{format:?}, {described}: {counts:?}");
    }
}

#[test]
fn what_is_gone_is_passed_without_looking_anything_up() {
    for (format, described) in FORMATS.into_iter().flat_map(|format| [(format, true), (format, false)]) {
        let mut families = three();
        families.insert(1, ("short".to_owned(), (0..10).collect()));
        let mut cache = settled(format, &families, described);
        families[0].1.drain(5..17);
        families.remove(1);
        families[1].1.drain(..3);
        let counts = cache.page_in(format, &page(format, &families, 1.5, described)).expect("a good page");
        // The first behind each gap.
        assert_eq!((counts.searched, counts.added), (2, 0), "{format:?}, {described}");
        assert!(cache.lookup.is_none(), "{format:?}, {described}");
    }
}
