//! A hundred rounds of random edits: values move, series come and go, families move; the parts equal a naive reading.

use std::fmt::Write;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use sample::Columns;

use super::*;

const ROUNDS: usize = 100;

/// An exporter whose page changes.
struct Exporter {
    random: StdRng,
    families: Vec<Family>,
    named: u32,
}

struct Family {
    name: String,
    kind: &'static str,
    help: u32,
    series: Vec<Series>,
    born: u32,
}

struct Series {
    number: u32,
    value: f64,
    time: Option<i64>,
}

impl Exporter {
    fn new(seed: u64) -> Self {
        let mut exporter = Self { random: StdRng::seed_from_u64(seed), families: Vec::new(), named: 0 };
        (0..20).for_each(|_| exporter.add_family());
        exporter
    }

    fn add_family(&mut self) {
        self.named += 1;
        let timed = self.random.random_bool(0.2);
        let count = self.random.random_range(1..30);
        let series = (0..count).map(|number| Series { number, value: f64::from(number), time: timed.then_some(1000) }).collect();
        let kind = ["counter", "gauge", "untyped"][self.random.random_range(0..3)];
        self.families.push(Family { name: format!("family_{}", self.named), kind, help: 0, series, born: count });
    }

    fn edit(&mut self) {
        for family in &mut self.families {
            for series in &mut family.series {
                if self.random.random_bool(0.33) {
                    series.value = match self.random.random_range(0..10) {
                        0 => f64::NAN,
                        1 => f64::NEG_INFINITY,
                        2 => f64::from_bits(self.random.random()),
                        3 => self.random.random_range(-1e9..1e9),
                        _ => (series.value + 1.0).trunc(),
                    };
                    series.time = series.time.map(|time| time + 15_000);
                }
            }
            if self.random.random_bool(0.1) && !family.series.is_empty() {
                let gone = self.random.random_range(0..family.series.len());
                family.series.remove(gone);
            }
            if self.random.random_bool(0.1) {
                let at = self.random.random_range(0..=family.series.len());
                family.series.insert(at, Series { number: family.born, value: 0.0, time: None });
                family.born += 1;
            }
            if self.random.random_bool(0.03) {
                family.series.shuffle(&mut self.random);
            }
            if self.random.random_bool(0.01) {
                family.help += 1;
            }
        }
        if self.random.random_bool(0.2) {
            let gone = self.random.random_range(0..self.families.len());
            self.families.remove(gone);
            self.add_family();
        }
        if self.random.random_bool(0.2) {
            let (one, other) = (self.random.random_range(0..self.families.len()), self.random.random_range(0..self.families.len()));
            self.families.swap(one, other);
        }
        if self.random.random_bool(0.05) {
            self.families.shuffle(&mut self.random);
        }
    }

    fn page(&mut self) -> String {
        let mut page = String::new();
        for family in &self.families {
            let name = &family.name;
            writeln!(page, "# HELP {name} Help {}.\n# TYPE {name} {}", family.help, family.kind).expect("a string takes all");
            for series in &family.series {
                // The same labels, in one spelling or another.
                let labels = match self.random.random_range(0..50) {
                    0 => format!("{{b=\"x,y}}\\\"\",a=\"{}\"}}", series.number),
                    _ => format!("{{a=\"{}\",b=\"x,y}}\\\"\"}}", series.number),
                };
                let time = series.time.map(|time| format!(" {time}")).unwrap_or_default();
                writeln!(page, "{name}{labels} {}{time}", series.value).expect("a string takes all");
            }
        }
        page
    }

    /// What a reader of the page must find.
    fn reading(&self) -> BTreeMap<String, (u64, Option<i64>)> {
        let families = self.families.iter().flat_map(|family| family.series.iter().map(move |series| (family, series)));
        families
            .map(|(family, series)| {
                let bits = if series.value.is_nan() { parse::NORMAL_NAN } else { series.value.to_bits() };
                (format!("{}{{a={},b=x,y}}\"}}", family.name, series.number), (bits, series.time))
            })
            .collect()
    }
}

fn check(seed: u64) {
    let mut exporter = Exporter::new(seed);
    let mut cache = SeriesCache::new(options());
    let mut before: BTreeMap<String, (u64, Option<i64>)> = BTreeMap::new();
    for round in 0..ROUNDS {
        exporter.edit();
        let page = exporter.page();
        let mut expect = exporter.reading();
        let failed = exporter.random.random_bool(0.05);
        if failed {
            assert!(cache.page(format!("{page}broken{{").as_bytes()).is_err());
            cache.failed();
            expect.clear();
        } else {
            let counts = cache.page(page.as_bytes()).expect("a good page");
            assert_eq!((counts.scraped, counts.duplicates), (expect.len() as u64, 0));
        }
        for (key, (bits, time)) in &before {
            if *bits != STALE_NAN && time.is_none() {
                expect.entry(key.clone()).or_insert((STALE_NAN, None));
            }
        }
        cache.synthetic(&[("up", f64::from(u8::from(!failed)))]);
        let mut found = said(&cache);
        assert_eq!(found.remove("up{}"), Some((f64::from(u8::from(!failed)).to_bits(), None)));
        assert_eq!(found, expect, "seed {seed}, round {round}");
        if !failed {
            for family in &exporter.families {
                let layouts = cache.parts().iter().flat_map(|part| part.layout.iter());
                for series in layouts.filter(|series| series.name() == family.name) {
                    let said = series.family();
                    assert_eq!(said.help, format!("Help {}.", family.help), "seed {seed}, round {round}");
                    assert_eq!(said.kind.as_str(), family.kind.replace("untyped", "unknown"));
                }
            }
        }
        before = found;
        // As a scrape ends, or as a page that is read at once behind another.
        if round % 3 > 0 {
            cache.rest();
        }
    }
}

#[test]
fn what_rests_is_as_large_as_its_target() {
    let page = |series: usize, round: usize| -> String {
        (0..series).map(|number| format!("m{{number=\"{number}\"}} {round} 1700000000000\n")).collect()
    };
    // As many as there is memory for to lend, and more targets than that: some hold what another one's page was read into.
    let mut caches: Vec<SeriesCache> =
        (0..20).map(|_| SeriesCache::new(Options { honor_timestamps: true, ..Options::default() })).collect();
    for round in 0..8 {
        for (number, cache) in caches.iter_mut().enumerate() {
            let series = if number % 2 == 0 { 4000 } else { 10 + round };
            assert!(cache.page(page(series, round).as_bytes()).is_ok());
            cache.rest();
            let Columns { values, states, timestamps, starts, .. } = &cache.parts()[0].columns;
            assert_eq!((states.len(), timestamps.len()), (series, series));
            let held = [values.capacity(), states.capacity() - series, timestamps.capacity() - series, starts.capacity()];
            assert!(held.into_iter().all(|more| more <= series / 8), "{series} series, round {round}: {held:?}");
        }
    }
}

#[test]
fn a_hundred_rounds_of_edits_are_read_as_a_naive_reader_reads_them() {
    (0..20).for_each(check);
}
