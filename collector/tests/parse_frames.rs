//! Pages through cache, encoder and decoder: what comes out of the frames is what a line-by-line reading of the page says.
//!
//! The pages come from `STRATA_CORPORA` (default `../shared/corpora` beside the repository); where they are absent the test says so and
//! uses a page made on the spot. A series is known here by the bytes of its text, split by hand at the last brace or the first blank: real
//! exporters spell a series the same way on every page.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use collector::series::{Options, SeriesCache};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sample::{Columns, Decoder, Encoder, Flags, FrameRef, NO_TIME, Origin, STALE_NAN, State, TargetId};

const PAGES: [&str; 4] =
    ["k8s-1.35/kubelet-cadvisor.prom", "k8s-1.35/kube-state-metrics.prom", "k8s-1.35/etcd.prom", "node_exporter/e2e-output.prom"];
const ROUNDS: i64 = 100;
const SLOT_MS: i64 = 15_000;

/// One line of the page: a comment, or a series with its text and moving value.
enum Line {
    Comment(String),
    Series { text: String, value: f64, time: Option<i64>, shown: bool },
}

/// Bits and explicit time.
type Said = (u64, Option<i64>);

fn corpora() -> PathBuf {
    std::env::var_os("STRATA_CORPORA").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpora"), PathBuf::from)
}

fn lines(page: &str) -> Vec<Line> {
    let line = |line: &str| {
        if line.starts_with('#') {
            return Line::Comment(line.to_owned());
        }
        let (text, rest) = match line.rfind('}') {
            Some(brace) => line.split_at(brace + 1),
            None => line.split_at(line.find(' ').expect("a blank")),
        };
        let mut rest = rest.split_whitespace();
        let value = rest.next().and_then(|value| value.parse().ok()).expect("a value");
        Line::Series { text: text.to_owned(), value, time: rest.next().and_then(|time| time.parse().ok()), shown: true }
    };
    page.lines().filter(|line| !line.is_empty()).map(line).collect()
}

fn edit(lines: &mut [Line], random: &mut StdRng) {
    for line in lines {
        let Line::Series { value, time, shown, .. } = line else { continue };
        if random.random_bool(0.33) {
            *value = if random.random_bool(0.8) { value.trunc() + 1.0 } else { random.random_range(-1e6..1e6) };
            *time = time.map(|time| time + SLOT_MS);
        }
        if random.random_bool(if *shown { 0.005 } else { 0.2 }) {
            *shown = !*shown;
        }
    }
}

fn page(lines: &[Line]) -> String {
    let line = |line: &Line| match line {
        Line::Comment(comment) => format!("{comment}\n"),
        Line::Series { shown: false, .. } => String::new(),
        Line::Series { text, value, time: None, .. } => format!("{text} {value}\n"),
        Line::Series { text, value, time: Some(time), .. } => format!("{text} {value} {time}\n"),
    };
    lines.iter().map(line).collect()
}

fn reading(lines: &[Line]) -> BTreeMap<&str, Said> {
    let shown = |line| match line {
        &Line::Series { ref text, value, time, shown: true } => Some((text.as_str(), (value.to_bits(), time))),
        _ => None,
    };
    lines.iter().filter_map(shown).collect()
}

/// The text of a series as exporters write it, in the page's own order of labels: found by its sorted labels.
struct Names(HashMap<String, String>);

impl Names {
    fn of(lines: &[Line]) -> Self {
        let mut names = HashMap::new();
        for line in lines {
            let Line::Series { text, .. } = line else { continue };
            let mut cache = SeriesCache::new(Options::default());
            cache.page(format!("{text} 1\n").as_bytes()).expect("one series");
            names.insert(key(cache.parts()[0].layout.series(0)), text.clone());
        }
        Self(names)
    }
}

fn key(series: sample::Series<'_>) -> String {
    format!("{} {:?}", series.name(), series.labels().collect::<Vec<_>>())
}

/// Sends the parts over the wire and reads them back.
fn over_the_wire(
    cache: &SeriesCache,
    encoders: &mut Vec<Encoder>,
    decoder: &mut Decoder,
    slot_ms: i64,
    names: &Names,
) -> (BTreeMap<String, Said>, usize) {
    let (mut said, mut bytes) = (BTreeMap::new(), 0);
    let mut columns = Columns::default();
    for (index, part) in cache.parts().iter().enumerate() {
        if encoders.len() == index {
            let origin = Origin { target: TargetId(7), labels: Vec::new(), attributes: Vec::new() };
            encoders.push(Encoder::new(Arc::new(origin), index as u16));
        }
        let mut frame = Vec::new();
        encoders[index].encode(slot_ms, cache.parts().len() as u16, Flags::default(), &part.layout, &part.columns, &mut frame);
        bytes += frame.len();
        let frame = FrameRef::parse(&frame).expect("a frame");
        let decoded = decoder.decode("producer", 1, &frame, slot_ms as u64, &mut columns).expect("a frame with its base");
        for (index, series) in decoded.layout.iter().enumerate() {
            if columns.states[index] == State::Present {
                let time = columns.timestamps.get(index).copied().filter(|time| *time != NO_TIME);
                let name = names.0.get(&key(series)).expect("a series of the page").clone();
                assert!(said.insert(name, (columns.values[index], time)).is_none());
            }
        }
    }
    (said, bytes)
}

fn check(name: &str, text: &str) {
    let mut random = StdRng::seed_from_u64(3);
    let mut lines = lines(text);
    let names = Names::of(&lines);
    let mut cache = SeriesCache::new(Options { honor_timestamps: true, ..Options::default() });
    let (mut encoders, mut decoder) = (Vec::new(), Decoder::new());
    let mut before: BTreeMap<String, Said> = BTreeMap::new();
    let (mut samples, mut bytes) = (0, 0);
    for round in 1..=ROUNDS {
        edit(&mut lines, &mut random);
        let counts = cache.page(page(&lines).as_bytes()).expect("a good page");
        let reading = reading(&lines);
        assert_eq!((counts.scraped, counts.duplicates), (reading.len() as u64, 0));
        let (said, frames) = over_the_wire(&cache, &mut encoders, &mut decoder, round * SLOT_MS, &names);
        let gone = before.iter().filter(|(text, said)| said.0 != STALE_NAN && said.1.is_none() && !reading.contains_key(text.as_str()));
        let stale = gone.map(|(text, _)| (text.as_str(), (STALE_NAN, None)));
        let expect: BTreeMap<&str, Said> = reading.iter().map(|(text, said)| (*text, *said)).chain(stale).collect();
        assert!(said.iter().map(|(text, said)| (text.as_str(), *said)).eq(expect), "{name}, round {round}");
        samples += said.len();
        bytes += frames;
        before = said;
    }
    println!(
        "{name}: {samples} samples in {ROUNDS} rounds, {:.2} bytes each before the message's own compression",
        bytes as f64 / samples as f64
    );
}

#[test]
fn frames_say_what_the_pages_say() {
    let made: String = (0..300).map(|series| format!("made_total{{path=\"/api/{series}\"}} {series}\n")).collect();
    check("a page made on the spot", &format!("# TYPE made counter\n{made}"));
    for name in PAGES {
        let path = corpora().join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => check(name, &text),
            Err(_) => println!("{} is absent: only a page made on the spot was used", path.display()),
        }
    }
}

/// A page of 22,853 series, as many as an API server has, gets one more.
#[test]
fn one_new_series_costs_the_bytes_of_one() {
    const SERIES: u32 = 22_853;
    let line = |series: u32| format!("made_total{{path=\"/api/v1/things/{series}\",code=\"{}\"}} {series}\n", series % 7);
    let page = |count: u32| format!("# TYPE made counter\n{}", (0..count).map(line).collect::<String>());
    let mut cache = SeriesCache::new(Options::default());
    let origin = Origin { target: TargetId(7), labels: Vec::new(), attributes: Vec::new() };
    let (mut encoders, origin) = (Vec::new(), Arc::new(origin));
    let mut frames = |count: u32, slot_ms: i64| {
        cache.page(page(count).as_bytes()).expect("a good page");
        let frame = |(index, part): (usize, &collector::series::Part)| {
            if encoders.len() == index {
                encoders.push(Encoder::new(Arc::clone(&origin), index as u16));
            }
            let mut frame = Vec::new();
            encoders[index].encode(slot_ms, 2, Flags::default(), &part.layout, &part.columns, &mut frame).bytes
        };
        cache.parts().iter().enumerate().map(frame).sum::<usize>()
    };
    let key = frames(SERIES, SLOT_MS);
    let steady = frames(SERIES, 2 * SLOT_MS);
    let patch = frames(SERIES + 1, 3 * SLOT_MS);
    let more = frames(SERIES + 101, 4 * SLOT_MS);
    println!("{key} bytes of key frames, {steady} steady, {patch} with a new series, {more} with a hundred");
    assert!(key > 10_000 && patch < steady + 200 && more < steady + 100 * 100, "{key}, {steady}, {patch}, {more}");
}
