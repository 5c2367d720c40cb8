//! Speed from a page's bytes to columns: `cargo bench -p collector --bench page [-- steady/apiserver]`.
//!
//! `steady`: the second and later pages of a target, every series where it was (two pages in turn, a third of the values moved).
//! `open-metrics`, `protobuf`: the same in those formats. `shuffled`: families in another order on every other page.
//! `cold`, `cold-open-metrics`, `cold-protobuf`: the first page of a target. `one-new`: a steady page, but one series in its middle that
//! comes for the one of the page before; `one-new-late`: the same on the first page of that kind after twenty steady ones, which are not counted.
//! `framed-…` goes on to the compressed frames, all of them key frames where the page is a target's first.
//! The pages come from `STRATA_CORPORA` (default `../shared/corpora` beside the repository); without
//! it a page made on the spot is used, and its name says so.

use std::hint::black_box;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use collector::parse::Format;
use collector::series::{Options, SeriesCache};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sample::{Encoder, Flags, Origin, TargetId};

const PAGES: [&str; 7] = [
    "k8s-1.35/apiserver",
    "k8s-1.35/kubelet-cadvisor",
    "k8s-1.35/kube-state-metrics",
    "k8s-1.35/scheduler",
    "k8s-1.35/controller-manager",
    "k8s-1.35/etcd",
    "node_exporter/e2e-output",
];

fn corpora() -> PathBuf {
    std::env::var_os("STRATA_CORPORA").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpora"), PathBuf::from)
}

fn pages() -> Vec<(String, Vec<u8>)> {
    let real: Vec<_> =
        PAGES.iter().filter_map(|name| Some(((*name).to_owned(), std::fs::read(corpora().join(format!("{name}.prom"))).ok()?))).collect();
    if real.is_empty() {
        let lines = (0..5000).map(|line| format!("made_up_total{{code=\"{}\",path=\"/api/v1/things/{line}\"}} {line}\n", line % 7));
        return vec![("made-up".to_owned(), lines.collect::<String>().into_bytes())];
    }
    real
}

/// The page with the last digit of every third value moved.
fn moved(page: &[u8]) -> Vec<u8> {
    let mut page = page.to_vec();
    let ends: Vec<usize> = (0..page.len()).filter(|at| page[*at] == b'\n').collect();
    for end in ends.into_iter().step_by(3).filter(|end| *end > 0) {
        let start = page[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        if page[start] != b'#' && page[end - 1].is_ascii_digit() {
            page[end - 1] = b'0' + (page[end - 1] - b'0' + 1) % 10;
        }
    }
    page
}

/// A protobuf page with the numbers of every third metric moved by one, those of buckets not.
fn moved_protobuf(page: &[u8]) -> Vec<u8> {
    /// `Metric.{gauge, counter, summary, untyped, histogram}`, each a message whose numbers are its fields of eight bytes.
    const VALUES: [u64; 5] = [2, 3, 4, 5, 7];
    const METRIC: u64 = 4;
    let (mut moved, mut metrics, mut at) = (page.to_vec(), 0, 0);
    while at < page.len() {
        let family = varint(page, &mut at) as usize;
        let end = at + family;
        each_field(page, at..end, |field, metric| {
            metrics += u64::from(field == METRIC);
            if field != METRIC || metrics % 3 != 0 {
                return;
            }
            each_field(page, metric, |field, value| {
                if VALUES.contains(&field) {
                    each_field(page, value, |_, number| {
                        if let Some(bytes) = moved[number].as_mut_array::<8>() {
                            *bytes = (f64::from_le_bytes(*bytes) + 1.0).to_le_bytes();
                        }
                    });
                }
            });
        });
        at = end;
    }
    moved
}

/// The fields of a message: their numbers, and where their bytes are.
fn each_field(page: &[u8], message: Range<usize>, mut take: impl FnMut(u64, Range<usize>)) {
    let mut at = message.start;
    while at < message.end {
        let key = varint(page, &mut at);
        let from = at;
        let length = match key & 7 {
            0 => {
                varint(page, &mut at);
                continue;
            }
            1 => 8,
            5 => 4,
            _ => varint(page, &mut at) as usize,
        };
        let from = if key & 7 == 2 { at } else { from };
        at = from + length;
        take(key >> 3, from..at);
    }
}

fn varint(page: &[u8], at: &mut usize) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = page[*at];
        *at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    number
}

/// The page with its families in reverse order.
fn shuffled(page: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(page);
    let mut families: Vec<String> = Vec::new();
    for line in text.lines() {
        if families.is_empty() || line.starts_with("# HELP") {
            families.push(String::new());
        }
        if let Some(family) = families.last_mut() {
            *family += line;
            family.push('\n');
        }
    }
    families.reverse();
    families.concat().into_bytes()
}

fn options() -> Options {
    let target_labels = vec![("instance".to_owned(), "127.0.0.1:9100".to_owned()), ("job".to_owned(), "bench".to_owned())];
    Options { honor_timestamps: true, target_labels, ..Options::default() }
}

/// What makes the frames of a target's parts.
#[derive(Default)]
struct Framing {
    encoders: Vec<Encoder>,
    slot_ms: i64,
    out: Vec<u8>,
}

impl Framing {
    /// The frames of the last page.
    fn frames(&mut self, cache: &SeriesCache) -> &[u8] {
        self.slot_ms += 15_000;
        self.out.clear();
        let origin = || Arc::new(Origin { target: TargetId(1), ..Origin::default() });
        for (index, part) in cache.parts().iter().enumerate() {
            if index == self.encoders.len() {
                self.encoders.push(Encoder::new(origin(), index as u16));
            }
            self.encoders[index].encode(self.slot_ms, 1, Flags::default(), &part.layout, &part.columns, &mut self.out);
        }
        &self.out
    }
}

fn bench(criterion: &mut Criterion) {
    for (name, page) in pages() {
        let mut cache = SeriesCache::new(options());
        let samples = cache.page(&page).expect("a real page").scraped;
        for (kind, other) in [("steady", moved(&page)), ("shuffled", shuffled(&page))] {
            let mut group = criterion.benchmark_group(kind);
            group.throughput(Throughput::Elements(samples));
            group.bench_function(&name, |bencher| {
                let mut turn = false;
                bencher.iter(|| {
                    turn = !turn;
                    black_box(cache.page(black_box(if turn { &other } else { &page })))
                });
            });
            group.finish();
            bench_framed(criterion, kind, &name, (Format::Text, [&other, &page]), &mut cache, samples);
        }
        bench_cold(criterion, "cold", &name, Format::Text, &page, samples);
        bench_one_new(criterion, &name, page, samples);
    }
}

/// Two pages in turn, of a target that had them before, and their frames.
fn bench_framed(
    criterion: &mut Criterion,
    kind: &str,
    name: &str,
    (format, pages): (Format, [&[u8]; 2]),
    cache: &mut SeriesCache,
    samples: u64,
) {
    let (mut framing, mut turn) = (Framing::default(), 0);
    let mut group = criterion.benchmark_group(format!("framed-{kind}"));
    group.throughput(Throughput::Elements(samples));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            turn = 1 - turn;
            cache.page_in(format, black_box(pages[turn])).expect("a real page");
            black_box(framing.frames(cache).len())
        });
    });
    group.finish();
}

fn bench_cold(criterion: &mut Criterion, kind: &str, name: &str, format: Format, page: &[u8], samples: u64) {
    let mut group = criterion.benchmark_group(kind);
    group.throughput(Throughput::Elements(samples)).sample_size(20);
    group.bench_function(name, |bencher| {
        bencher.iter_batched(
            || SeriesCache::new(options()),
            |mut cache| cache.page_in(format, black_box(page)).map(|_| cache),
            BatchSize::LargeInput,
        );
    });
    group.finish();
    let mut group = criterion.benchmark_group(format!("framed-{kind}"));
    group.throughput(Throughput::Elements(samples)).sample_size(20);
    group.bench_function(name, |bencher| {
        bencher.iter_batched(
            || (SeriesCache::new(options()), Framing::default()),
            |(mut cache, mut framing)| {
                cache.page_in(format, black_box(page)).expect("a real page");
                let bytes = framing.frames(&cache).len();
                (cache, framing, bytes)
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

/// The cost of the page is in it: compare with `steady`.
fn bench_one_new(criterion: &mut Criterion, name: &str, mut page: Vec<u8>, samples: u64) {
    /// More than a target's search tables are kept for.
    const STEADY_PAGES: usize = 20;
    const LINE: &str = "one_new_total{number=\"00000000\"} 1\n";
    let half = page.len() / 2;
    let middle = page[half..].iter().position(|byte| *byte == b'\n').map_or(page.len(), |newline| half + newline + 1);
    page.splice(middle..middle, LINE.bytes());
    let digits = middle + "one_new_total{number=\"".len();
    let (mut cache, mut number) = (SeriesCache::new(options()), 0);
    cache.page(&page).expect("a real page");
    let mut next = |page: &mut Vec<u8>| {
        number += 1;
        page[digits..digits + 8].copy_from_slice(format!("{number:08}").as_bytes());
    };
    let mut group = criterion.benchmark_group("one-new");
    group.throughput(Throughput::Elements(samples));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            next(&mut page);
            black_box(cache.page(black_box(&page)))
        });
    });
    group.finish();
    let mut group = criterion.benchmark_group("one-new-late");
    group.throughput(Throughput::Elements(samples)).sample_size(20);
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                (0..STEADY_PAGES).for_each(|_| assert!(cache.page(&page).is_ok()));
                next(&mut page);
                let began = Instant::now();
                black_box(cache.page(black_box(&page))).expect("a real page");
                took += began.elapsed();
            }
            took
        });
    });
    group.finish();
}

/// Steady pages in the other formats: the text page as OpenMetrics, and its protobuf form where the corpora have one.
fn bench_formats(criterion: &mut Criterion) {
    for (name, page) in pages() {
        let text = String::from_utf8_lossy(&page).replace(" untyped\n", " unknown\n");
        let mut open_metrics = text.into_bytes();
        open_metrics.extend_from_slice(b"# EOF\n");
        let protobuf = std::fs::read(corpora().join(format!("{name}.via-pushgateway.pb")));
        let formats = [
            ("open-metrics", Format::OpenMetrics, Some(open_metrics), moved as fn(&[u8]) -> Vec<u8>),
            ("protobuf", Format::Protobuf, protobuf.ok(), moved_protobuf),
        ];
        for (kind, format, page, moved) in formats {
            let mut cache = SeriesCache::new(options());
            // Not every text page is good OpenMetrics: timestamps in ms are fine, comments are not.
            let Some((page, samples)) = page.and_then(|page| cache.page_in(format, &page).ok().map(|counts| (page, counts.scraped))) else {
                continue;
            };
            let other = moved(&page);
            let mut turn = false;
            let mut group = criterion.benchmark_group(kind);
            group.throughput(Throughput::Elements(samples));
            group.bench_function(&name, |bencher| {
                bencher.iter(|| {
                    turn = !turn;
                    black_box(cache.page_in(format, black_box(if turn { &other } else { &page })))
                });
            });
            group.finish();
            bench_framed(criterion, kind, &name, (format, [&other, &page]), &mut cache, samples);
            bench_cold(criterion, &format!("cold-{kind}"), &name, format, &page, samples);
        }
    }
}

criterion_group!(benches, bench, bench_formats);
criterion_main!(benches);
