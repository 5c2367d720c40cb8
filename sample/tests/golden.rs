//! The bytes of the wire: written as they always were, and read alike by this crate and by a reader made from docs/WIRE.md alone.
//!
//! `UPDATE_GOLDEN=1 cargo test -p sample --test golden` writes the files anew: only for a new version of the wire.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use sample::{
    BucketCounts, Columns, Counts, DecodeError, Decoder, Encoder, Exemplar, Flags, FrameKind, FrameRef, LayoutBuilder, MessageBuilder,
    MetricType, NO_TIME, NativeHistogram, Origin, ResetHint, STALE_NAN, Span, State, TargetId, frames,
};
use serde_json::{Value, json};

const SLOT: i64 = 1_700_000_000_000;
/// Series enough for bodies that are compressed each.
const WIDE: usize = 500;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn origin(target: u64) -> Arc<Origin> {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let labels = vec![pair("instance", "10.0.0.7:9100"), pair("job", "node")];
    Arc::new(Origin { target: TargetId(target), labels, attributes: vec![pair("job", "node-scrape"), pair("namespace", "größe")] })
}

fn builder() -> LayoutBuilder {
    let mut builder = LayoutBuilder::new();
    let family = builder.family("reads", MetricType::Counter, "Reads, by device.", "");
    ["sda", "sdb"].iter().for_each(|device| {
        builder.series(family, "reads_total", [("device", *device), ("job", "")]);
    });
    let family = builder.family("load_seconds", MetricType::Gauge, "Load with \"ünïcode\".", "seconds");
    builder.series(family, "load_seconds", []);
    let family = builder.family("wait", MetricType::Histogram, "", "");
    ["0.1", "1", "+Inf"].iter().for_each(|le| {
        builder.series(family, "wait_bucket", [("le", *le)]);
    });
    builder
}

fn columns(values: &[f64]) -> Columns {
    let values: Vec<u64> = values.iter().map(|value| value.to_bits()).collect();
    Columns { states: vec![State::Present; values.len()], values, ..Columns::default() }
}

/// Key, delta, patch, delta on the patch, a lost base, a failed scrape, a push, the end: as frames, not compressed.
fn kinds() -> Vec<Vec<u8>> {
    let mut encoder = Encoder::new(origin(0x0123_4567_89ab_cdef), 0);
    let six = Arc::new(builder().build());
    let mut more = LayoutBuilder::append_to(&six);
    let family = more.family("reads", MetricType::Counter, "Reads, by device.", "");
    more.series(family, "reads_total", [("device", "sdc")]);
    let seven = Arc::new(more.build());
    let mut all = Vec::new();
    let mut frame = |slot: i64, flags, layout: &Arc<_>, columns: &Columns| {
        let mut out = Vec::new();
        encoder.encode(SLOT + slot, 1, flags, layout, columns, &mut out);
        all.push(out);
    };
    let none = Flags::default();
    frame(0, none, &six, &columns(&[1027.0, 3.0, 0.25, 1.0, 2.0, 2.0]));
    frame(15_000, none, &six, &columns(&[1029.0, 3.0, 0.3, 1.0, -0.0, f64::NAN]));
    frame(30_000, none, &seven, &columns(&[1030.0, 3.0, std::f64::consts::PI, 1.0, f64::NEG_INFINITY, 2.0, 12.0]));
    frame(45_000, none, &seven, &columns(&[1027.0, 9_007_199_254_740_992.0, 5e-324, -1.5, 2e-9, 2.0, 13.0]));
    let mut stale = columns(&[0.0; 7]);
    stale.values.fill(STALE_NAN);
    stale.states[1] = State::Absent;
    frame(60_000, Flags::FAILED, &seven, &stale);
    frame(60_001, Flags::PUSHED, &six, &columns(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    frame(75_000, Flags::END, &seven, &stale);
    frame(90_000, none, &seven, &columns(&[0.0; 7]));
    all
}

/// Everything beside values: states, timestamps in groups, starts, exemplars, native histograms of both kinds, and two parts.
fn sections() -> Vec<Vec<u8>> {
    let layout = Arc::new(builder().build());
    let mut encoder = Encoder::new(origin(2), 1);
    let labels = vec![("trace_id".to_owned(), "abc".to_owned())];
    let exemplar = Exemplar { labels, value: 0.5f64.to_bits(), timestamp_ms: Some(SLOT - 3) };
    let counts = BucketCounts { count: 12, zero_count: 1, positive: vec![3, 1, 4], negative: vec![3] };
    let float = |counts: &BucketCounts| {
        let bits = |numbers: &[u64]| numbers.iter().map(|number| (*number as f64).to_bits()).collect();
        let BucketCounts { count, zero_count, positive, negative } = counts;
        let (count, zero_count) = ((*count as f64).to_bits(), (*zero_count as f64).to_bits());
        BucketCounts { count, zero_count, positive: bits(positive), negative: bits(negative) }
    };
    let mut histogram = NativeHistogram { schema: 3, sum: 18.4f64.to_bits(), zero_threshold: 1e-128f64.to_bits(), ..Default::default() };
    let floats = float(&counts);
    histogram.counts = Counts::Integer(counts);
    histogram.positive = vec![Span { offset: -2, length: 2 }, Span { offset: 3, length: 1 }];
    histogram.negative = vec![Span { offset: 0, length: 1 }];
    let custom = NativeHistogram {
        schema: -53,
        counts: Counts::Float(floats),
        custom_bounds: vec![0.1f64.to_bits(), 1f64.to_bits()],
        reset_hint: ResetHint::NotReset,
        ..histogram.clone()
    };
    let mut first = columns(&[1.0, 2.0, 3.0, 0.0, 0.0, 6.0]);
    first.states[3..5].copy_from_slice(&[State::Histogram, State::Absent]);
    first.timestamps = vec![SLOT + 7, SLOT + 7, NO_TIME, SLOT - 9, NO_TIME, SLOT - 9];
    first.starts = vec![SLOT - 100_000, SLOT - 100_000, NO_TIME, SLOT - 5, NO_TIME, i64::MAX];
    first.exemplars = vec![(5, exemplar.clone()), (0, Exemplar { timestamp_ms: None, labels: Vec::new(), ..exemplar })];
    first.histograms = vec![(3, histogram)];
    let mut second = first.clone();
    second.timestamps = vec![SLOT + 15_003, SLOT + 15_003, NO_TIME, SLOT + 14_000, NO_TIME, SLOT + 14_000];
    second.starts[1] = SLOT;
    second.states[3..5].copy_from_slice(&[State::Present, State::Histogram]);
    second.exemplars.clear();
    second.histograms = vec![(4, custom)];
    let mut third = columns(&[1.0; 6]);
    third.timestamps = vec![NO_TIME, 1, 2, i64::MAX, i64::MIN + 1, 0];
    let frame = |(columns, slot)| {
        let mut out = Vec::new();
        encoder.encode(slot, 2, Flags::default(), &layout, columns, &mut out);
        out
    };
    [(&first, SLOT), (&second, SLOT + 15_000), (&third, SLOT + 30_000)].map(frame).to_vec()
}

/// Bodies that are compressed; two times shared by all series but for two: exceptions from the base's groups.
fn large() -> Vec<Vec<u8>> {
    let mut builder = LayoutBuilder::new();
    let family = builder.family("wide", MetricType::Gauge, "Wide.", "");
    (0..WIDE).for_each(|at| {
        builder.series(family, "wide", [("at", &*format!("{at:04}"))]);
    });
    let layout = Arc::new(builder.build());
    let mut encoder = Encoder::new(origin(3), 0);
    let frame = |round: i64| {
        let mut columns = columns(&(0..WIDE).map(|at| (at as f64 * 1.25).sqrt() + (at as i64 % 3 * round) as f64).collect::<Vec<_>>());
        columns.timestamps = (0..WIDE as i64).map(|at| SLOT + round * 15_000 + at % 2).collect();
        columns.timestamps[497] += 5 * round;
        columns.timestamps[498] = NO_TIME;
        let mut out = Vec::new();
        encoder.encode(SLOT + round * 15_000, 1, Flags::default(), &layout, &columns, &mut out);
        out
    };
    (0..3).map(frame).collect()
}

/// A message of frames as they are.
fn plain(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = vec![1, 0];
    for frame in frames {
        let len = frame.len();
        assert!((128..16_384).contains(&len) || len < 128);
        if len >= 128 {
            payload.extend([len as u8 | 0x80, (len >> 7) as u8]);
        } else {
            payload.push(len as u8);
        }
        payload.extend_from_slice(frame);
    }
    payload
}

fn packed(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut message = MessageBuilder::new();
    frames.iter().for_each(|frame| message.push(frame));
    message.finish()
}

fn hex(bits: u64) -> String {
    format!("{bits:016x}")
}

fn histogram(series: u32, histogram: &NativeHistogram) -> Value {
    let NativeHistogram { schema, zero_threshold, sum, counts, positive, negative, custom_bounds, reset_hint } = histogram;
    let (floats, counts) = match counts {
        Counts::Integer(counts) => (false, counts),
        Counts::Float(counts) => (true, counts),
    };
    let spans = |spans: &[Span]| spans.iter().map(|span| json!([span.offset, span.length])).collect::<Vec<_>>();
    let hint = ["unknown", "reset", "not_reset", "gauge"][*reset_hint as usize];
    json!({
        "series": series, "reset_hint": hint, "floats": floats, "schema": schema, "zero_threshold": hex(*zero_threshold),
        "sum": hex(*sum), "count": counts.count, "zero_count": counts.zero_count,
        "positive_spans": spans(positive), "positive": counts.positive, "negative_spans": spans(negative), "negative": counts.negative,
        "custom_bounds": custom_bounds.iter().map(|bound| hex(*bound)).collect::<Vec<_>>(),
    })
}

/// What a frame says, in the form of the expected readings.
fn reading(decoder: &mut Decoder, frame: &FrameRef<'_>) -> Value {
    let mut out = Columns::default();
    let decoded = match decoder.decode("p", 1, frame, 1, &mut out) {
        Ok(decoded) => decoded,
        Err(DecodeError::NoBase { .. }) => return json!({"error": "no base"}),
        Err(_) => return json!({"error": "corrupt"}),
    };
    let series = decoded.layout.iter().map(|series| {
        let family = series.family();
        let labels: Vec<Value> = series.labels().map(|(name, value)| json!([name, value])).collect();
        json!({"family": [family.name, family.kind.as_str(), family.help, family.unit], "name": series.name(), "labels": labels})
    });
    let times = |times: &[i64]| -> Vec<Option<i64>> {
        (0..out.values.len()).map(|at| times.get(at).copied().filter(|time| *time != NO_TIME)).collect()
    };
    let exemplars = out.exemplars.iter().map(|(series, exemplar)| {
        let Exemplar { labels, value, timestamp_ms } = exemplar;
        json!({"series": series, "labels": labels, "value": hex(*value), "timestamp": timestamp_ms})
    });
    let kind = match decoded.kind {
        FrameKind::Key => "key",
        FrameKind::Patch => "patch",
        FrameKind::Delta => "delta",
    };
    json!({
        "kind": kind, "flags": decoded.flags.bits(), "target": frame.target.to_string(), "slot": decoded.slot_ms,
        "part": decoded.part, "parts": decoded.parts, "key": frame.key, "base": frame.base, "samples": decoded.samples,
        "origin": {"labels": decoded.origin.labels, "attributes": decoded.origin.attributes},
        "layout_id": decoded.layout.id().to_string(), "series": series.collect::<Vec<_>>(),
        "values": out.values.iter().map(|bits| hex(*bits)).collect::<Vec<_>>(),
        "states": out.states.iter().map(|state| ["present", "absent", "histogram"][*state as usize]).collect::<Vec<_>>(),
        "timestamps": times(&out.timestamps), "starts": times(&out.starts), "exemplars": exemplars.collect::<Vec<_>>(),
        "histograms": out.histograms.iter().map(|(series, value)| histogram(*series, value)).collect::<Vec<_>>(),
    })
}

fn readings(payload: &[u8]) -> Value {
    let mut decoder = Decoder::new();
    frames(payload).expect("a payload").map(|frame| reading(&mut decoder, &frame.expect("a frame"))).collect()
}

/// The golden messages; bytes that a compressor made are not compared, only what they say.
fn goldens() -> Vec<(&'static str, Vec<u8>, bool)> {
    let mut lost = kinds();
    lost.remove(0);
    vec![
        ("kinds", plain(&kinds()), true),
        ("no-base", plain(&lost), true),
        ("sections", plain(&sections()), true),
        ("compressed-message", packed(&kinds()), false),
        ("compressed-bodies", packed(&large()), false),
        ("empty", packed(&[]), true),
    ]
}

#[test]
fn bytes_stay_what_they_are() {
    for (name, payload, exact) in goldens() {
        let path = folder().join("golden").join(name);
        let (bytes, json) = (path.with_extension("bin"), path.with_extension("json"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(folder().join("golden")).expect("the folder can be made");
            std::fs::write(&bytes, &payload).expect("a golden file can be written");
            let text = serde_json::to_string(&readings(&payload)).expect("readings are JSON").replace("},{\"kind\"", "},\n{\"kind\"");
            std::fs::write(&json, text + "\n").expect("a golden file can be written");
        }
        let golden = std::fs::read(&bytes).expect("a golden message");
        let expect: Value = serde_json::from_slice(&std::fs::read(&json).expect("its reading")).expect("JSON");
        assert!(!exact || golden == payload, "{name}: the bytes changed");
        assert_eq!(readings(&golden), expect, "{name}: the reading changed");
        assert_eq!(readings(&payload), expect, "{name}: the writer says something else");
    }
}

#[test]
fn a_reader_made_from_the_documentation_reads_the_same() {
    let python = std::env::var("STRATA_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let install = format!("install it: {python} -m pip install --require-hashes -r sample/tests/requirements.txt");
    let ready = Command::new(&python).args(["-c", "import zstandard"]).output();
    assert!(ready.is_ok_and(|ready| ready.status.success()), "{python} (STRATA_PYTHON) with zstandard is needed; {install}");
    for (name, ..) in goldens() {
        let path = folder().join("golden").join(name);
        let read = Command::new(&python).arg(folder().join("decode.py")).arg(path.with_extension("bin")).output().expect("it ran just now");
        assert!(read.status.success(), "{name}: {}", String::from_utf8_lossy(&read.stderr));
        let read: Value = serde_json::from_slice(&read.stdout).expect("JSON");
        let expect: Value = serde_json::from_slice(&std::fs::read(path.with_extension("json")).expect("its reading")).expect("JSON");
        assert_eq!(read, expect, "{name}");
    }
}
