//! What holds for any page: it says the same whatever came before it, every series of a page is in its frames, and what is fuzzed
//! (`fuzz/`) holds for every case, for their mutations and for the frames that the wire format's golden bytes are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use collector::parse::Format;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng as _, SeedableRng};

use crate::cases::suites;
use crate::{Read, cache, pages, proto, read, samples};

#[path = "../../../fuzz/hold.rs"]
mod fuzz;
#[path = "../../../fuzz/src/pages.rs"]
mod targets;

/// Mutations of each input: about two seconds of them all.
const MUTATIONS: usize = 10;

/// A series, its value and its time in ms.
type Series = (String, Vec<(String, String)>, f64, Option<i64>);

fn golden_frames() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample/tests/golden");
    let files = std::fs::read_dir(folder).expect("the golden bytes").map(|entry| entry.expect("a file").path());
    files.map(|file| std::fs::read(file).expect("its bytes")).collect()
}

/// What fuzzing begins with, beside the saved corpus: the cases of the format, or the golden bytes of the wire format.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    match suites().into_iter().find(|suite| suite.name == name) {
        Some(suite) => suite.rules.into_iter().flat_map(|rule| rule.cases).map(|case| case.page).collect(),
        None => golden_frames(),
    }
}

#[test]
fn what_is_fuzzed_holds_for_the_corpus_every_case_and_their_mutations() {
    for (name, target) in targets::TARGETS {
        fuzz::hold(target, &[fuzz::corpus(name), seeds(name)].concat(), MUTATIONS);
    }
}

/// Writes what fuzzing begins with into the folder that `STRATA_SEEDS` names, one folder per target; `make fuzz` asks for it.
#[test]
fn seeds_of_fuzzing_can_be_written() {
    let kept;
    let folder = match std::env::var_os("STRATA_SEEDS") {
        Some(folder) => PathBuf::from(folder),
        None => {
            kept = tempfile::tempdir().expect("a folder");
            kept.path().to_owned()
        }
    };
    for (name, _) in targets::TARGETS {
        let (folder, inputs) = (folder.join(name), seeds(name));
        std::fs::create_dir_all(&folder).expect("made");
        inputs.iter().zip(0..).for_each(|(input, number): (&Vec<u8>, usize)| {
            std::fs::write(folder.join(format!("{number:03}")), input).expect("written");
        });
        // What earlier runs found may be there too.
        assert!(!inputs.is_empty() && std::fs::read_dir(folder).expect("made").count() >= inputs.len(), "{name}");
    }
}

fn any_series() -> impl Strategy<Value = Vec<Series>> {
    let name = prop_oneof!["[a-c_:][a-z0-9_:]{0,3}", "\\PC{1,4}"];
    let label = prop_oneof!["[a-d]", "\\PC{1,3}"].prop_filter("not the name's", |name| name != "__name__");
    let value =
        prop_oneof![any::<f64>(), (-9i32..9).prop_map(f64::from), Just(f64::NAN), Just(f64::NEG_INFINITY), Just(-0.0), Just(5e-324)];
    // Halves of seconds are exact in floats, too.
    let time = prop_oneof![3 => Just(None), 1 => (1i64..1 << 40).prop_map(|halves| Some(500 * halves))];
    let labels = btree_map(label, "\\PC{0,4}|[\n\"\\\\x]{0,3}", 0..4).prop_map(|labels| labels.into_iter().collect());
    vec((name, labels, value, time), 0..12)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// A page of the series, in their order.
fn page(format: Format, all: &[Series]) -> Vec<u8> {
    if format == Format::Protobuf {
        let family = |(name, labels, value, time): &Series| {
            let labels: Vec<u8> = labels.iter().flat_map(|(name, value)| proto::label(name, value)).collect();
            let time = time.map(|time| proto::number(6, time as u64)).unwrap_or_default();
            proto::family(name, 1, &[[labels, proto::gauge(*value), time].concat()])
        };
        return all.iter().flat_map(family).collect();
    }
    let line = |(name, labels, value, time): &Series| {
        let labels: String = labels.iter().map(|(name, value)| format!(",{}={}", quoted(name), quoted(value))).collect();
        let time = match time {
            Some(time) if format == Format::OpenMetrics => format!(" {}.{:03}", time / 1000, time % 1000),
            Some(time) => format!(" {time}"),
            None => String::new(),
        };
        format!("{{{}{labels}}} {value:?}{time}\n", quoted(name))
    };
    let end = if format == Format::OpenMetrics { "# EOF\n" } else { "" };
    (all.iter().map(line).collect::<String>() + end).into_bytes()
}

/// Everything but what is said of families: of that a series keeps what the last page said.
fn without_families(mut read: Read) -> Read {
    read.values_mut().for_each(|sample| sample.family = Default::default());
    read
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Page → cache: every series is there with its bits and its time; the frames are `targets::pages`' business.
    #[test]
    fn every_series_of_a_page_is_read(all in any_series(), format in 0..3usize) {
        let format = [Format::Text, Format::OpenMetrics, Format::Protobuf][format];
        let page = page(format, &all);
        targets::pages(format, &page);
        let (read, counts) = read(format, &page).expect("a good page");
        prop_assert_eq!(counts.scraped, all.len() as u64);
        let mut expect = BTreeMap::new();
        for (name, labels, value, time) in &all {
            let mut labels: Vec<_> = labels.iter().filter(|(_, value)| !value.is_empty()).cloned().collect();
            labels.push(("__name__".to_owned(), name.clone()));
            labels.sort();
            let nan = if format == Format::Protobuf { value.to_bits() } else { collector::parse::NORMAL_NAN };
            let bits = if value.is_nan() { nan } else { value.to_bits() };
            match expect.get_mut(&labels) {
                None => drop(expect.insert(labels, (bits, *time))),
                // The newest stays, of one time the first; without a time it is of the scrape.
                Some((_, before)) if time.unwrap_or(i64::MAX) <= before.unwrap_or(i64::MAX) => {}
                Some(kept) => *kept = (bits, *time),
            }
        }
        expect.retain(|_, (bits, _)| !sample::is_stale(*bits));
        let got: BTreeMap<_, _> = read.into_iter().map(|(labels, sample)| (labels, (sample.value, sample.time))).collect();
        prop_assert_eq!(got, expect);
    }

    /// Lines that move, come and go: each page as if nothing had come before it.
    #[test]
    fn a_steady_reading_equals_a_cold_one(all in any_series(), format in 0..3usize, seed in any::<u64>()) {
        let format = [Format::Text, Format::OpenMetrics, Format::Protobuf][format];
        let mut random = StdRng::seed_from_u64(seed);
        let mut cache = cache();
        for round in 0..12 {
            let mut some: Vec<Series> = all.iter().filter(|_| round == 0 || random.random_bool(0.8)).cloned().collect();
            some.iter_mut().for_each(|series| series.2 += f64::from(round));
            if random.random_bool(0.5) {
                some.shuffle(&mut random);
            }
            let page = page(format, &some);
            let counts = cache.page_in(format, &page).expect("a good page");
            let (cold, expect) = read(format, &page).expect("a good page");
            prop_assert_eq!((counts.scraped, counts.duplicates), (expect.scraped, expect.duplicates));
            prop_assert_eq!(without_families(samples(&cache)), without_families(cold));
        }
    }

    /// The same of pages of any kind, right and wrong.
    #[test]
    fn any_pages_one_after_another_are_read_as_if_alone(
        text in vec(pages::text(), 1..4), open_metrics in vec(pages::open_metrics(), 1..4), protobuf in vec(pages::protobuf(), 1..4)
    ) {
        targets::text(&text.join(&b"\xff\xfe"[..]));
        targets::open_metrics(&open_metrics.join(&b"\xff\xfe"[..]));
        targets::protobuf(&protobuf.join(&b"\xff\xfe"[..]));
    }
}
