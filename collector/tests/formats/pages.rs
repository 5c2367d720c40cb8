//! Pages: real ones, and any.

use std::path::{Path, PathBuf};

use collector::parse::Format;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::proto;

fn corpora() -> PathBuf {
    std::env::var_os("STRATA_CORPORA").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpora"), PathBuf::from)
}

/// Every page of the corpus that is there.
pub(crate) fn real() -> Vec<(String, Format, Vec<u8>)> {
    let folders = std::fs::read_dir(corpora()).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let files = folders.filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut pages = Vec::new();
    for file in files {
        let format = match file.extension().and_then(|end| end.to_str()) {
            Some("prom") => Format::Text,
            Some("pb") => Format::Protobuf,
            _ => continue,
        };
        pages.push((file.display().to_string(), format, std::fs::read(&file).expect("a page")));
    }
    pages
}

/// Pieces that make lines, from right to nearly so.
const PIECES: [&str; 64] = [
    "a",
    "b:c",
    "_d9",
    "{",
    "}",
    "{}",
    "=",
    ",",
    "\"",
    "\\",
    "\\\\",
    "\\n",
    "\\\"",
    " ",
    "  ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "1",
    "-1",
    "+1",
    "0.5",
    ".",
    "e",
    "1e3",
    "1e400",
    "NaN",
    "+NaN",
    "nan",
    "Inf",
    "+Inf",
    "-inf",
    "infinity",
    "0x1p-2",
    "0x10",
    "1_000",
    "1700000000000",
    "99999999999999999999",
    "1.5",
    "# HELP ",
    "# TYPE ",
    "# UNIT ",
    "#",
    "# ",
    "# EOF\n",
    "# {",
    " # {",
    "counter",
    "gauge\n",
    "histogram",
    "summary\n",
    "untyped",
    "le",
    "quantile",
    "=\"1\"",
    "{b=\"c\"}",
    "{\"q.r\"",
    "{b=\"c\",",
    "a 1\n",
    "ä",
    "_total",
    "_bucket",
    " 1\n",
];

/// Lines that are right in both formats.
const LINES: [&str; 24] = [
    "a 1\n",
    "a{b=\"c\"} 2\n",
    "a{b=\"\"} 2.5\n",
    "a{b=\"x\\\\y\\\"z\\n\",c=\"ä\"} 3e-5\n",
    "{\"q.r\"} 4\n",
    "{b=\"c\",\"q.r\"} 5\n",
    "{\"q.r\",\"l.m\"=\"c\",} 5\n",
    "a{b=\"c\",} NaN\n",
    "a 1 1500\n",
    "b 1 17\n",
    "# HELP a Some text\n",
    "# HELP a with \\\\ and \\n\n",
    "# HELP \"q.r\" Some text\n",
    "# TYPE a counter\n",
    "# TYPE a gauge\n",
    "# TYPE h histogram\n",
    "# TYPE s summary\n",
    "h_bucket{le=\"1\"} 1\n",
    "h_bucket{le=\"+Inf\"} 1\n",
    "h_sum 1\n",
    "h_count 1\n",
    "s{quantile=\"0.5\"} 1\n",
    "a_total 12345678901234567890\n",
    "a_created 12.5\n",
];

const OPEN_METRICS_LINES: [&str; 12] = [
    "a_total 1 # {} 1\n",
    "a_total 1 # {b=\"c\"} 0.5 1.5\n",
    "a_total{b=\"c\"} 1 2.5 # {b=\"x\\\"y\",c=\"d\"} 0.5 -1\n",
    "a 1 -1.5\n",
    "a 1 1e3\n",
    "a 1 1e300\n",
    "a_total 1 # {b=\"c\"} 0.5 1e300\n",
    "# UNIT a_s s\n",
    "# UNIT a \n",
    "# TYPE a info\n",
    "# TYPE a gaugehistogram\n",
    "# EOF\n",
];

/// Some of its bytes put elsewhere, taken out or made others.
fn mutated(page: Vec<u8>, edits: &[(usize, u8, u8)]) -> Vec<u8> {
    let mut page = page;
    for (at, how, byte) in edits {
        if page.is_empty() {
            break;
        }
        let at = at % page.len();
        match how % 4 {
            0 => page[at] = *byte,
            1 => page.insert(at, *byte),
            2 => drop(page.remove(at)),
            _ => page.truncate(at),
        }
    }
    page
}

fn edits() -> impl Strategy<Value = Vec<(usize, u8, u8)>> {
    let byte =
        prop_oneof![select(b" \t\n\"\\{},=#+-.019aeE_:N".to_vec()), any::<u8>().prop_filter("the end, to Prometheus", |byte| *byte != 0)];
    prop_oneof![Just(Vec::new()), vec((any::<usize>(), any::<u8>(), byte), 1..4)]
}

fn of(lines: Vec<&'static str>, end: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let soup = vec(select(PIECES.to_vec()), 0..24).prop_map(|pieces| pieces.concat());
    let right = vec(select(lines), 0..10).prop_map(|lines| lines.concat());
    let page = prop_oneof![1 => soup, 4 => right];
    (page, any::<bool>(), edits()).prop_map(move |(page, ended, edits)| {
        let page = mutated(page.into_bytes(), &edits);
        if ended { [page, end.as_bytes().to_vec()].concat() } else { page }
    })
}

pub(crate) fn text() -> impl Strategy<Value = Vec<u8>> {
    of(LINES.to_vec(), "\n")
}

pub(crate) fn open_metrics() -> impl Strategy<Value = Vec<u8>> {
    of(LINES.iter().chain(&OPEN_METRICS_LINES).copied().collect(), "# EOF\n")
}

/// A metric of any kind; the numbers of its kind and of its message are chosen apart now and then.
fn metric() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let value = prop_oneof![Just(1.5), Just(-0.0), Just(f64::NAN), any::<f64>()];
    let exemplar = prop_oneof![
        Just(Vec::new()),
        (any::<bool>(), -5i64..5_000_000_000).prop_map(|(timed, at)| {
            let time = if timed { proto::time(3, at, 5_000_000) } else { Vec::new() };
            proto::exemplar(2, &[("trace", "x\"\\y")], 0.5, &time)
        })
    ];
    let simple = (0..4u64, value.clone(), exemplar, 0i64..3).prop_map(|(kind, value, exemplar, start)| {
        let start = if start > 0 { proto::time(3, start, 999_999_999) } else { Vec::new() };
        match kind {
            0 => (0, proto::counter(value, &[exemplar, start].concat())),
            1 => (1, proto::gauge(value)),
            2 => {
                let quantile = proto::message(3, &[proto::double(1, 0.5), proto::double(2, value)].concat());
                let fields = [proto::number(1, 3), proto::double(2, value), quantile];
                (2, proto::message(4, &fields.concat()))
            }
            _ => (3, proto::message(5, &proto::double(1, value))),
        }
    });
    let classic = (4..6u64, vec((any::<i8>(), 0u64..9), 0..4), value.clone(), any::<bool>()).prop_map(|(kind, buckets, sum, infinite)| {
        let mut fields = vec![proto::number(1, 9), proto::double(2, sum)];
        fields.extend(buckets.iter().map(|(bound, count)| proto::bucket(f64::from(*bound) / 8.0, *count, &[])));
        if infinite {
            fields.push(proto::bucket(f64::INFINITY, 9, &proto::exemplar(3, &[("a", "b")], 1.0, &[])));
        }
        (kind, proto::histogram(&fields))
    });
    let native = (4..6u64, vec((0i64..4, vec(0i64..5, 0..4)), 0..4), -5i64..9, any::<bool>(), 0u64..3, value).prop_map(
        |(kind, spans, schema, float, zero, sum)| {
            let counts: Vec<i64> = spans.iter().flat_map(|(_, counts)| counts.clone()).collect();
            let total = counts.iter().sum::<i64>() as u64 + zero;
            let mut fields: Vec<Vec<u8>> = spans.iter().map(|(offset, counts)| proto::span(12, *offset, counts.len() as u64)).collect();
            fields.extend([proto::signed(5, schema), proto::double(6, 0.001), proto::double(2, sum)]);
            if float && total > 0 {
                let counts: Vec<f64> = counts.iter().map(|count| *count as f64).collect();
                fields.extend([proto::doubles(14, &counts), proto::double(4, total as f64), proto::double(8, zero as f64)]);
            } else {
                let deltas: Vec<i64> = counts.iter().scan(0, |last, count| Some(count - std::mem::replace(last, *count))).collect();
                fields.extend([proto::deltas(13, &deltas), proto::number(1, total), proto::number(7, zero)]);
            }
            fields.push(proto::exemplar(16, &[("a", "b")], 1.0, &proto::time(3, 1, 0)));
            (kind, proto::histogram(&fields))
        },
    );
    prop_oneof![simple, classic, native]
}

pub(crate) fn protobuf() -> impl Strategy<Value = Vec<u8>> {
    let name = select(vec!["a", "b_total", "c.d", ""]);
    let labels =
        prop_oneof![Just(Vec::new()), Just(proto::label("x", "1")), Just([proto::label("y", "ä"), proto::label("x", "")].concat())];
    let time = prop_oneof![3 => Just(0u64), 1 => any::<u64>().prop_filter("none to Strata", |time| *time != 1 << 63)];
    let family = (name, metric(), labels, time).prop_map(|(name, (kind, metric), labels, time)| {
        let time = if time == 0 { Vec::new() } else { proto::number(6, time) };
        proto::family(name, kind, &[[labels, metric, time].concat()])
    });
    (vec(family, 0..5), edits()).prop_map(|(families, edits)| mutated(families.concat(), &edits))
}
