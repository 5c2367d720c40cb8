//! Frames of real pages: samples per second and bytes per sample, for key frames and for deltas with a third of the values moving.
//!
//! `cargo bench -p sample --bench frame`; pages are looked for in `STRATA_CORPORA` (default: `../shared/corpora` beside the repository).

use std::collections::HashMap;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use sample::{
    Columns, Decoder, Encoder, FamilyRef, Flags, FrameRef, Layout, LayoutBuilder, MetricType, NO_TIME, Origin, PART_SERIES_MAX, State,
    TargetId,
};

const PAGES: [&str; 7] = [
    "k8s-1.35/apiserver.prom",
    "k8s-1.35/kubelet-cadvisor.prom",
    "k8s-1.35/kube-state-metrics.prom",
    "k8s-1.35/scheduler.prom",
    "k8s-1.35/controller-manager.prom",
    "k8s-1.35/etcd.prom",
    "node_exporter/e2e-output.prom",
];
const SLOT: i64 = 1_700_000_000_000;
const STEP: i64 = 15_000;
/// Scrapes of one key frame period at the default interval.
const ROUNDS: usize = 40;

/// One part of a page: its layout and the columns of its rounds, the first one for the key frame.
struct Page {
    name: String,
    layout: Arc<Layout>,
    rounds: Vec<Columns>,
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Reads a page the simple way: enough for real pages, no more.
fn read(text: &str) -> Vec<(Arc<Layout>, Columns)> {
    let mut parts = Vec::new();
    let (mut builder, mut columns) = (LayoutBuilder::new(), Columns::default());
    let mut kinds: HashMap<&str, MetricType> = HashMap::new();
    let mut helps: HashMap<&str, &str> = HashMap::new();
    let mut family: Option<(&str, FamilyRef)> = None;
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            helps.insert(name, help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name, kind.parse().unwrap_or_default());
            family = None;
            let family_ref = builder.family(name, kinds[name], helps.get(name).unwrap_or(&""), "");
            family = family.or(Some((name, family_ref)));
        } else if !line.starts_with('#') && !line.is_empty() {
            if columns.values.len() == PART_SERIES_MAX {
                parts.push((Arc::new(std::mem::take(&mut builder).build()), std::mem::take(&mut columns)));
                family = family.map(|(name, _)| (name, builder.family(name, kinds[name], helps.get(name).unwrap_or(&""), "")));
            }
            let end = line.rfind('}').map_or_else(|| line.find(' ').unwrap_or(line.len()), |at| at + 1);
            let (series, rest) = line.split_at(end);
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let family = family.map_or_else(|| builder.family(name, MetricType::Unknown, "", ""), |(_, family)| family);
            builder.series(family, name, split_labels(&labels[..labels.len() - 1]));
            let mut words = rest.split_whitespace();
            let value: f64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN);
            columns.values.push(value.to_bits());
            columns.states.push(State::Present);
            columns.timestamps.push(words.next().and_then(|word| word.parse().ok()).unwrap_or(NO_TIME));
        }
    }
    parts.push((Arc::new(builder.build()), columns));
    parts
}

fn split_labels(mut text: &str) -> Vec<(&str, &str)> {
    let mut labels = Vec::new();
    while let Some((name, rest)) = text.split_once("=\"") {
        let bytes = rest.as_bytes();
        let end = (0..bytes.len()).find(|at| bytes[*at] == b'"' && (*at == 0 || bytes[at - 1] != b'\\')).unwrap_or(bytes.len());
        labels.push((name.trim_start_matches(','), &rest[..end]));
        text = &rest[(end + 1).min(rest.len())..];
    }
    labels
}

/// The next scrape: a third of the values move, whole ones by small steps; explicit timestamps go on by the step.
fn scrape(before: &Columns, fixed: bool, random: &mut Random) -> Columns {
    let mut next = before.clone();
    for (index, value) in next.values.iter_mut().enumerate() {
        let moves = if fixed { (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33 & 0xff < 85 } else { random.below(3) == 0 };
        let float = f64::from_bits(*value);
        if moves && float.is_finite() {
            let whole = float.fract() == 0.0;
            let by = if whole { random.below(16) as f64 } else { (random.below(1000) as f64 + 1.0) * float.abs().max(1e-9) * 1e-5 };
            *value = (float + by).to_bits();
        }
    }
    let mut jitter: HashMap<i64, i64> = HashMap::new();
    for time in next.timestamps.iter_mut().filter(|time| **time != NO_TIME) {
        *time += *jitter.entry(*time).or_insert_with(|| STEP - 500 + random.below(1000) as i64);
    }
    next
}

fn pages(fixed: bool) -> Vec<Page> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpora");
    let folder = std::env::var_os("STRATA_CORPORA").map_or_else(beside, PathBuf::from);
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut pages = Vec::new();
    for name in PAGES {
        let Ok(text) = std::fs::read_to_string(folder.join(name)) else {
            println!("{name}: not in {}", folder.display());
            continue;
        };
        for (layout, first) in read(&text) {
            let mut rounds = vec![first];
            (0..ROUNDS).for_each(|round| rounds.push(scrape(&rounds[round], fixed, &mut random)));
            pages.push(Page { name: name.to_owned(), layout, rounds });
        }
    }
    pages
}

fn encoder() -> Encoder {
    Encoder::new(Arc::new(Origin { target: TargetId(1), ..Origin::default() }), 0)
}

/// Encodes a key frame and the deltas of a whole period.
fn encode(page: &Page, out: &mut Vec<u8>) -> Vec<usize> {
    let mut encoder = encoder();
    let slots = (0..).map(|round| SLOT + round * STEP);
    let encode = |(columns, slot)| encoder.encode(slot, 1, Flags::default(), &page.layout, columns, out).bytes;
    page.rounds.iter().take(ROUNDS).zip(slots).map(encode).collect()
}

fn sizes(fixed: bool) {
    println!(
        "\n{:<36} {:>7} {:>9} {:>9} {:>9}",
        if fixed { "the same third moves" } else { "any third moves" },
        "series",
        "key",
        "delta",
        "all"
    );
    let (mut samples, mut keys, mut deltas) = (0, 0, 0);
    for page in pages(fixed) {
        let bytes = encode(&page, &mut Vec::new());
        let len = page.layout.len();
        let delta: usize = bytes[1..].iter().sum();
        let per = |bytes: usize, frames: usize| bytes as f64 / (frames * len) as f64;
        println!(
            "{:<36} {len:>7} {:>9.3} {:>9.3} {:>9.3}",
            page.name,
            per(bytes[0], 1),
            per(delta, ROUNDS - 1),
            per(bytes[0] + delta, ROUNDS)
        );
        (samples, keys, deltas) = (samples + len, keys + bytes[0], deltas + delta);
    }
    let per = |bytes: usize, frames: usize| bytes as f64 / (frames * samples.max(1)) as f64;
    println!("{:<36} {samples:>7} {:>9.3} {:>9.3} {:>9.3}", "all", per(keys, 1), per(deltas, ROUNDS - 1), per(keys + deltas, ROUNDS));
}

/// Times only what `run` measures of `iterations` rounds over all pages.
fn speed(c: &mut Criterion) {
    let pages = pages(true);
    let samples: u64 = pages.iter().map(|page| page.layout.len() as u64).sum();
    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Elements(samples)).sample_size(10);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    let mut out = Vec::new();
    let mut encoders: Vec<Encoder> = pages.iter().map(|_| encoder()).collect();
    for (name, rebase) in [("encode key", true), ("encode delta", false)] {
        group.bench_function(name, |bencher| {
            let mut round = 0;
            bencher.iter(|| {
                round = 1 + round % (ROUNDS - 1);
                for (page, encoder) in pages.iter().zip(&mut encoders) {
                    if rebase {
                        encoder.rebase();
                    }
                    out.clear();
                    black_box(encoder.encode(SLOT + STEP, 1, Flags::default(), &page.layout, &page.rounds[round], &mut out));
                }
            });
        });
    }
    let frames: Vec<Vec<Vec<u8>>> = pages
        .iter()
        .map(|page| {
            let mut encoder = encoder();
            let encode = |columns| {
                let mut out = Vec::new();
                encoder.encode(SLOT, 1, Flags::default(), &page.layout, columns, &mut out);
                out
            };
            page.rounds.iter().map(encode).collect()
        })
        .collect();
    let mut columns = Columns::default();
    let mut decode = |decoder: &mut Decoder, epoch: usize, bytes: &[u8]| {
        let frame = FrameRef::parse(bytes).expect("own frame");
        black_box(decoder.decode("p", epoch as u64, &frame, 1, &mut columns).expect("own frame"));
    };
    group.bench_function("decode key, layout new", |bencher| {
        bencher.iter_custom(|iterations| {
            let start = Instant::now();
            for _ in 0..iterations {
                let mut decoder = Decoder::new();
                frames.iter().enumerate().for_each(|(page, frames)| decode(&mut decoder, page, &frames[0]));
            }
            start.elapsed()
        });
    });
    let mut decoder = Decoder::new();
    for (name, key) in [("decode key, layout known", true), ("decode delta", false)] {
        group.bench_function(name, |bencher| {
            frames.iter().enumerate().for_each(|(page, frames)| decode(&mut decoder, page, &frames[0]));
            let mut round = 0;
            bencher.iter(|| {
                round = if key { 0 } else { 1 + round % (ROUNDS - 1) };
                frames.iter().enumerate().for_each(|(page, frames)| decode(&mut decoder, page, &frames[round]));
            });
        });
    }
    group.finish();
}

fn main() {
    sizes(true);
    sizes(false);
    let mut criterion = Criterion::default().configure_from_args();
    speed(&mut criterion);
    criterion.final_summary();
}
