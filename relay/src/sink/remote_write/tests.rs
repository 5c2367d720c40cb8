//! Every rule of both versions, against a server that answers by script; what arrives is read by an independent decoder.

use prost::Message;
use sample::{Counts as BucketCounts, Exemplar, LayoutBuilder, MetricType, NativeHistogram, Origin, TargetId};
use serde_json::json;

use super::proto::{self, v2};
use super::*;
use crate::encode;
use crate::sink::Item;
use crate::sink::scripted::{Seen, server};
use crate::sink::tests::lines;
use crate::step::{Names, Section};

const OK: &str = "HTTP/1.1 204 No Content\r\n\r\n";
const WRITTEN: &str = "HTTP/1.1 204 No Content\r\nX-Prometheus-Remote-Write-Samples-Written: 3\r\n\r\n";
const V2: &str = "io.prometheus.write.v2.Request";

/// One sample to send.
#[derive(Clone)]
struct Row<'a> {
    name: &'a str,
    labels: &'a [(&'a str, &'a str)],
    at: i64,
    value: u64,
    start: Option<i64>,
    exemplars: Vec<(u32, Exemplar)>,
    histogram: Option<NativeHistogram>,
}

fn row<'a>(name: &'a str, labels: &'a [(&'a str, &'a str)], at: i64, value: f64) -> Row<'a> {
    Row { name, labels, at, value: value.to_bits(), start: None, exemplars: Vec::new(), histogram: None }
}

fn batch(rows: &[Row<'_>]) -> Batch {
    let encoder = encode::build(&config::Component { name: "remote_write".to_owned(), options: Value::Null }).expect("an encoder");
    let (mut batch, mut bytes, mut items) = (lines(&[]), Vec::new(), Vec::new());
    batch.framing = encoder.framing();
    batch.content_type = encoder.content_type();
    let mut layout = LayoutBuilder::new();
    let mut known: Vec<(&str, &[(&str, &str)])> = Vec::new();
    for row in rows {
        if !known.contains(&(row.name, row.labels)) {
            let family = layout.family(row.name, MetricType::Counter, "Help.", "seconds");
            layout.series(family, row.name, row.labels.iter().copied());
            known.push((row.name, row.labels));
        }
    }
    let layout = Arc::new(layout.build());
    let names = Arc::new(Names::new(&Names::default(), layout.clone(), &[("instance", "h:1"), ("job", "j")]));
    let origin = Arc::new(Origin { target: TargetId(7), labels: Vec::new(), attributes: Vec::new() });
    // Each slot is a section.
    let mut slots: Vec<i64> = Vec::new();
    for row in rows {
        let kind = MetricType::Counter;
        let sample = encode::Sample {
            series: &[],
            target: &[],
            kind,
            timestamp_ms: row.at,
            value: row.value,
            delta: None,
            sum_delta: None,
            start_ms: row.start,
            exemplars: &row.exemplars,
        };
        match &row.histogram {
            Some(histogram) => encoder.histogram(&sample, histogram, &mut bytes),
            None => encoder.sample(&sample, &mut bytes),
        };
        let section = slots.iter().position(|slot| *slot == row.at).unwrap_or_else(|| {
            slots.push(row.at);
            slots.len() - 1
        });
        let index = known.iter().position(|known| *known == (row.name, row.labels)).expect("known");
        // Two identities for all series: what tells them apart is what they are called.
        let item = Item { end: 0, section: 0, series: index as u64 % 2, index: 0, route: 0 };
        let number = |n: usize| u32::try_from(n).expect("small");
        items.push(Item { end: number(bytes.len()), section: number(section), index: number(index), ..item });
    }
    let section = |slot_ms| Section {
        origin: origin.clone(),
        layout: layout.clone(),
        columns: Arc::default(),
        names: names.clone(),
        slot_ms,
        items: 0,
    };
    batch.sections = slots.into_iter().map(section).collect();
    (batch.bytes, batch.items) = (bytes.into(), Arc::new(items));
    batch
}

/// Three samples of three series.
fn three() -> Batch {
    batch(&[row("a", &[], 1000, 1.0), row("b", &[("code", "200")], 1000, 2.0), row("b", &[("code", "500")], 1000, f64::NAN)])
}

/// A sink that tells no metadata unless it is asked to.
fn built(mut options: Value) -> RemoteWrite {
    if options.get("metadata_interval").is_none() {
        options["metadata_interval"] = json!("0s");
    }
    sink(&options).expect("options it takes")
}

fn v1(seen: &Seen) -> proto::WriteRequest {
    assert_eq!(seen.header("content-type"), Some("application/x-protobuf"));
    assert_eq!(seen.header("x-prometheus-remote-write-version"), Some("0.1.0"));
    proto::WriteRequest::decode(&raw(seen)[..]).expect("a request of 1.0")
}

fn v2(seen: &Seen) -> v2::Request {
    assert_eq!(seen.header("content-type"), Some("application/x-protobuf;proto=io.prometheus.write.v2.Request"));
    assert_eq!(seen.header("x-prometheus-remote-write-version"), Some("2.0.0"));
    let request = v2::Request::decode(&raw(seen)[..]).expect("a request of 2.0");
    sound(&request);
    request
}

/// A body out of snappy's block format; the framed one begins with other bytes and fails here.
fn raw(seen: &Seen) -> Vec<u8> {
    assert_eq!(seen.header("content-encoding"), Some("snappy"));
    assert!(seen.head.starts_with("POST /in?a=b HTTP/1.1\r\n"), "{}", seen.head);
    assert!(seen.header("user-agent").is_some_and(|agent| agent.starts_with("strata/")), "{}", seen.head);
    snap::raw::Decoder::new().decompress_vec(&seen.body).expect("snappy")
}

/// What 2.0 demands of every request.
fn sound(request: &v2::Request) {
    assert_eq!(request.symbols.first().map(String::as_str), Some(""));
    let mut once = request.symbols.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), request.symbols.len(), "symbols stand once");
    for series in &request.timeseries {
        let labels = labels(request, &series.labels_refs);
        assert!(labels.is_sorted_by(|a, b| a.0 < b.0), "{labels:?}");
        assert!(labels.iter().all(|(name, value)| !name.is_empty() && !value.is_empty()), "{labels:?}");
        assert!(labels.iter().any(|(name, _)| *name == "__name__"));
        assert!(series.samples.is_empty() != series.histograms.is_empty(), "samples or histograms: {series:?}");
        assert!(series.samples.is_sorted_by(|a, b| a.timestamp < b.timestamp), "{series:?}");
        assert_eq!(series.reserved, 0);
        assert!(series.exemplars.iter().all(|exemplar| exemplar.timestamp != 0));
    }
}

fn labels<'a>(request: &'a v2::Request, refs: &[u32]) -> Vec<(&'a str, &'a str)> {
    let (pairs, rest) = refs.as_chunks::<2>();
    assert!(rest.is_empty(), "an even number of references");
    let symbol = |i: u32| request.symbols[i as usize].as_str();
    pairs.iter().map(|[name, value]| (symbol(*name), symbol(*value))).collect()
}

/// Sends a batch and gives what arrived.
async fn sent(options: Value, batch: &Batch, answers: &[&str]) -> (Answer, Vec<Seen>) {
    let (url, task) = server(answers).await;
    let Value::Object(mut options) = options else { panic!("a map") };
    options.insert("url".to_owned(), json!(url));
    let answer = built(Value::Object(options)).send(batch, 0..batch.items.len()).await;
    (answer, task.await.expect("served"))
}

#[tokio::test]
async fn version_1_is_what_every_receiver_reads() {
    let (answer, seen) = sent(json!({}), &three(), &[OK]).await;
    assert_eq!(answer, Answer::Delivered);
    let request = v1(&seen[0]);
    let label = |name: &str, value: &str| proto::Label { name: name.to_owned(), value: value.to_owned() };
    let expect = [label("__name__", "b"), label("code", "200"), label("instance", "h:1"), label("job", "j")];
    assert_eq!((request.timeseries.len(), &request.timeseries[1].labels[..]), (3, &expect[..]));
    assert_eq!((request.timeseries[1].samples[0].value, request.timeseries[1].samples[0].timestamp), (2.0, 1000));
    // Nothing but what 1.0 has.
    assert!(request.timeseries.iter().all(|series| series.metadata.is_none() && series.start.is_none()));
    assert_eq!(request.encode_to_vec().len(), raw(&seen[0]).len());
}

#[tokio::test]
async fn version_2_has_symbols_metadata_and_starts() {
    let mut rows = vec![row("a", &[], 1000, 1.0), row("b", &[("code", "a")], 1000, 2.0)];
    rows[1].start = Some(500);
    rows.push(Row { value: sample::STALE_NAN, ..row("b", &[("code", "500")], 1000, 0.0) });
    let (answer, seen) = sent(json!({"protobuf_message": V2}), &batch(&rows), &[WRITTEN]).await;
    assert_eq!(answer, Answer::Delivered);
    let request = v2(&seen[0]);
    let [a, b, stale] = &request.timeseries[..] else { panic!("{request:?}") };
    assert_eq!(labels(&request, &a.labels_refs), [("__name__", "a"), ("instance", "h:1"), ("job", "j")]);
    assert_eq!(labels(&request, &b.labels_refs), [("__name__", "b"), ("code", "a"), ("instance", "h:1"), ("job", "j")]);
    assert_eq!(b.samples, [proto::Sample { value: 2.0, timestamp: 1000, start_timestamp: 500 }]);
    assert_eq!(a.samples[0].start_timestamp, 0);
    assert_eq!(stale.samples[0].value.to_bits(), 0x7ff0_0000_0000_0002);
    for series in &request.timeseries {
        let metadata = series.metadata.as_ref().expect("metadata");
        let symbol = |i: u32| request.symbols[i as usize].as_str();
        assert_eq!((metadata.kind, symbol(metadata.help_ref), symbol(metadata.unit_ref)), (1, "Help.", "seconds"));
    }
}

#[tokio::test]
async fn histograms_and_exemplars_go_out_in_both_versions() {
    let counts = sample::BucketCounts { count: 3, zero_count: 1, positive: vec![2], negative: Vec::new() };
    let spans = vec![sample::Span { offset: 1, length: 1 }];
    let histogram = NativeHistogram {
        schema: 3,
        zero_threshold: 0,
        sum: 4.0_f64.to_bits(),
        counts: BucketCounts::Integer(counts),
        positive: spans,
        negative: Vec::new(),
        custom_bounds: Vec::new(),
        reset_hint: sample::ResetHint::Unknown,
    };
    let exemplar = Exemplar { labels: vec![("trace_id".to_owned(), "t".to_owned())], value: 7.0_f64.to_bits(), timestamp_ms: Some(900) };
    let rows = [
        Row { histogram: Some(histogram), start: Some(10), exemplars: vec![(0, exemplar.clone())], ..row("h", &[], 1000, 0.0) },
        Row { exemplars: vec![(0, exemplar)], ..row("c", &[], 1000, 1.0) },
    ];
    let (_, seen) = sent(json!({}), &batch(&rows), &[OK]).await;
    let request = v1(&seen[0]);
    assert_eq!((request.timeseries[0].histograms[0].positive_deltas[0], request.timeseries[0].histograms[0].timestamp), (2, 1000));
    assert_eq!(request.timeseries[0].histograms[0].start_timestamp, 0);
    assert_eq!((request.timeseries[1].exemplars[0].value, request.timeseries[1].exemplars[0].timestamp), (7.0, 900));
    let written = "HTTP/1.1 204 N\r\nX-Prometheus-Remote-Write-Histograms-Written: 1\r\n\r\n";
    let (answer, seen) = sent(json!({"protobuf_message": V2}), &batch(&rows), &[written]).await;
    assert_eq!(answer, Answer::Delivered);
    let request = v2(&seen[0]);
    let got = &request.timeseries[0].histograms[0];
    assert_eq!((got.positive_deltas[0], got.timestamp, got.start_timestamp), (2, 1000, 10));
    for series in &request.timeseries {
        assert_eq!(labels(&request, &series.exemplars[0].labels_refs), [("trace_id", "t")]);
        assert_eq!((series.exemplars[0].value, series.exemplars[0].timestamp), (7.0, 900));
    }
}

#[tokio::test]
async fn samples_of_one_series_share_it_while_time_rises() {
    let rows = [
        row("a", &[], 1000, 1.0),
        row("b", &[], 1000, 1.0),
        row("a", &[], 2000, 2.0),
        row("a", &[], 1500, 3.0),
        row("b", &[], 2000, 5.0),
        row("a", &[("x", "1")], 3000, 4.0),
    ];
    for (message, answer) in [("prometheus.WriteRequest", OK), (V2, WRITTEN)] {
        let (_, seen) = sent(json!({"protobuf_message": message}), &batch(&rows), &[answer]).await;
        let times: Vec<Vec<i64>> = match message {
            V2 => v2(&seen[0]).timeseries.iter().map(|s| s.samples.iter().map(|s| s.timestamp).collect()).collect(),
            _ => v1(&seen[0]).timeseries.iter().map(|s| s.samples.iter().map(|s| s.timestamp).collect()).collect(),
        };
        assert_eq!(times, [vec![1000, 2000], vec![1000, 2000], vec![1500], vec![3000]]);
    }
    // Of a part of them too.
    let mut writer = message::Writer::default();
    let request = v2::Request::decode(writer.write(ProtobufMessage::V2, &batch(&rows), 1..5).expect("its own items").0).expect("a request");
    let said = request
        .timeseries
        .iter()
        .map(|series| (labels(&request, &series.labels_refs)[0].1, series.samples.iter().map(|sample| sample.value).collect::<Vec<_>>()));
    assert_eq!(said.collect::<Vec<_>>(), [("b", vec![1.0, 5.0]), ("a", vec![2.0]), ("a", vec![3.0])]);
}

#[tokio::test]
async fn a_receiver_without_version_2_gets_version_1_from_then_on() {
    let unsupported = "HTTP/1.1 415 U\r\ncontent-length: 0\r\n\r\n";
    for no in [unsupported, OK, "HTTP/1.1 200 O\r\ncontent-length: 0\r\n\r\n"] {
        let (url, task) = server(&[no, OK, OK]).await;
        let mut sink = built(json!({"url": url, "protobuf_message": V2}));
        assert_eq!(sink.send(&three(), 0..3).await, Answer::Delivered);
        assert_eq!(sink.send(&three(), 1..2).await, Answer::Delivered);
        let seen = task.await.expect("served");
        assert_eq!(v2(&seen[0]).timeseries.len(), 3);
        assert_eq!((v1(&seen[1]).timeseries.len(), v1(&seen[2]).timeseries.len()), (3, 1));
    }
    // All lanes know it.
    let (url, task) = server(&[unsupported, OK, OK]).await;
    let mut sink = built(json!({"url": url, "protobuf_message": V2, "requests_max": 2}));
    let mut lanes = sink.lanes();
    assert_eq!((lanes.len(), built(json!({"url": url, "requests_max": 1000})).lanes().len()), (1, 63));
    assert_eq!(sink.send(&three(), 0..3).await, Answer::Delivered);
    assert_eq!(lanes[0].send(&three(), 0..3).await, Answer::Delivered);
    v1(&task.await.expect("served")[2]);
    // To 1.0 there is nothing to fall back to, and nothing is asked of its answer.
    let (answer, _) = sent(json!({}), &three(), &[unsupported]).await;
    assert_eq!(answer, Answer::Fatal { reason: "415 Unsupported Media Type".to_owned() });
    let (answer, seen) = sent(json!({"protobuf_message": V2}), &three(), &[OK, unsupported]).await;
    assert_eq!((answer, seen.len()), (Answer::Fatal { reason: "415 Unsupported Media Type".to_owned() }, 2));
}

#[tokio::test]
async fn any_written_header_on_success_is_a_version_2_receiver() {
    for header in ["Samples-Written: 0", "Histograms-Written: 0", "exemplars-written: 0", "Samples-Written: 2"] {
        let answer = format!("HTTP/1.1 200 O\r\nX-Prometheus-Remote-Write-{header}\r\ncontent-length: 0\r\n\r\n");
        let (url, task) = server(&[&answer, WRITTEN]).await;
        let mut sink = built(json!({"url": url, "protobuf_message": V2}));
        for _ in 0..2 {
            assert_eq!(sink.send(&three(), 0..3).await, Answer::Delivered, "{header}");
        }
        assert!(task.await.expect("served").iter().all(|seen| v2(seen).timeseries.len() == 3));
    }
}

#[tokio::test]
async fn each_answer_is_classified_in_both_versions() {
    let retry = |secs: Option<u64>, reason: &str| Answer::Retry { after: secs.map(Duration::from_secs), reason: reason.to_owned() };
    let reject = |items: Option<Vec<usize>>, reason: &str| Answer::Reject { items, reason: reason.to_owned() };
    let partly = "X-Prometheus-Remote-Write-Samples-Written: 2\r\ncontent-length: 3\r\n\r\nooo";
    let all = "X-Prometheus-Remote-Write-Samples-Written: 3\r\ncontent-length: 3\r\n\r\nexe";
    let cases = [
        ("HTTP/1.1 429 T\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n".to_owned(), 0..3, retry(Some(7), "429 Too Many Requests")),
        ("HTTP/1.1 429 T\r\ncontent-length: 0\r\n\r\n".to_owned(), 0..3, retry(None, "429 Too Many Requests")),
        ("HTTP/1.1 500 S\r\ncontent-length: 4\r\n\r\nbusy".to_owned(), 0..3, retry(None, "500 Internal Server Error: busy")),
        ("HTTP/1.1 503 S\r\nretry-after: 2\r\ncontent-length: 0\r\n\r\n".to_owned(), 0..3, retry(Some(2), "503 Service Unavailable")),
        // Not all were written: which is found by halves, and those that were do no harm a second time.
        (format!("HTTP/1.1 400 B\r\n{partly}"), 0..3, reject(None, "400 Bad Request: ooo")),
        (format!("HTTP/1.1 400 B\r\n{all}"), 0..3, Answer::Delivered),
        ("HTTP/1.1 400 B\r\ncontent-length: 3\r\n\r\nbad".to_owned(), 0..3, reject(None, "400 Bad Request: bad")),
        ("HTTP/1.1 400 B\r\ncontent-length: 3\r\n\r\nbad".to_owned(), 1..2, reject(Some(vec![1]), "400 Bad Request: bad")),
        ("HTTP/1.1 413 P\r\ncontent-length: 0\r\n\r\n".to_owned(), 0..3, reject(None, "413 Payload Too Large")),
        ("HTTP/1.1 413 P\r\ncontent-length: 0\r\n\r\n".to_owned(), 2..3, reject(Some(vec![2]), "413 Payload Too Large")),
        ("HTTP/1.1 401 U\r\ncontent-length: 0\r\n\r\n".to_owned(), 0..3, Answer::Fatal { reason: "401 Unauthorized".to_owned() }),
        (
            "HTTP/1.1 301 M\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_owned(),
            0..3,
            Answer::Fatal { reason: "this redirect is not followed: 301 Moved Permanently".to_owned() },
        ),
    ];
    for message in ["prometheus.WriteRequest", V2] {
        for (answer, items, expect) in &cases {
            let (url, task) = server(&[answer]).await;
            let mut sink = built(json!({"url": url, "protobuf_message": message}));
            assert_eq!(sink.send(&three(), items.clone()).await, *expect, "{message} {answer}");
            task.await.expect("served");
        }
    }
}

#[tokio::test]
async fn silence_and_a_cut_connection_are_retries_of_the_same_bytes() {
    let (url, task) = server(&["", "HTTP/1.1 204 No Content\r\ncontent-le", WRITTEN]).await;
    let mut sink = built(json!({"url": url, "protobuf_message": V2, "timeout": "1s"}));
    assert_eq!(sink.send(&three(), 0..3).await, Answer::Retry { after: None, reason: "no answer within 1s".to_owned() });
    sink.bounds.timeout = Duration::from_secs(10);
    let answer = sink.send(&three(), 0..3).await;
    assert!(matches!(answer, Answer::Retry { after: None, .. }), "{answer:?}");
    assert_eq!(sink.send(&three(), 0..3).await, Answer::Delivered);
    let seen = task.await.expect("served");
    assert!(seen.iter().all(|request| request.body == seen[0].body));
    v2(&seen[0]);
}

#[tokio::test]
async fn headers_credentials_and_zstd_go_along() {
    let options = json!({"headers": {"X-Scope-OrgID": "team"}, "basic_auth": {"username": "u", "password": "p"}, "compression": "zstd"});
    let (_, seen) = sent(options, &three(), &[OK]).await;
    assert_eq!((seen[0].header("x-scope-orgid"), seen[0].header("authorization")), (Some("team"), Some("Basic dTpw")));
    assert_eq!(seen[0].header("content-encoding"), Some("zstd"));
    let body = zstd::decode_all(&seen[0].body[..]).expect("zstd");
    assert_eq!(proto::WriteRequest::decode(&body[..]).expect("a request").timeseries.len(), 3);
}

#[tokio::test]
async fn a_part_of_a_batch_is_a_request_of_its_own() {
    let (url, task) = server(&[WRITTEN, WRITTEN]).await;
    let mut sink = built(json!({"url": url, "protobuf_message": V2}));
    let batch = three();
    assert_eq!(sink.send(&batch, 0..1).await, Answer::Delivered);
    assert_eq!(sink.send(&batch, 1..3).await, Answer::Delivered);
    let seen = task.await.expect("served");
    assert_eq!(v2(&seen[0]).symbols, ["", "__name__", "instance", "h:1", "job", "j", "a", "Help.", "seconds"]);
    let second = v2(&seen[1]);
    assert_eq!(second.timeseries.len(), 2);
    assert!(!second.symbols.contains(&"a".to_owned()));
}

#[tokio::test]
async fn another_encoders_items_hold_the_sink() {
    let (answer, seen) = sent(json!({}), &lines(&["a"]), &[]).await;
    assert!(matches!(&answer, Answer::Fatal { reason } if reason.ends_with("remove the relay's 'encode'")), "{answer:?}");
    assert!(seen.is_empty());
    let mut broken = three();
    broken.bytes.truncate(20);
    broken.items = Arc::new(vec![Item { end: 20, ..broken.items[0] }]);
    let (answer, _) = sent(json!({}), &broken, &[]).await;
    assert!(matches!(answer, Answer::Fatal { .. }), "{answer:?}");
}

#[tokio::test]
async fn version_1_tells_metadata_in_requests_of_their_own() {
    let refused = "HTTP/1.1 400 B\r\ncontent-length: 0\r\n\r\n";
    let (url, task) = server(&[OK, OK, OK, OK, refused, OK]).await;
    let mut sink = built(json!({"url": url, "metadata_interval": "1h"}));
    for rows in [["a", "b", "b"], ["a", "a", "b"], ["c", "a", "b"], ["c", "a", "b"]] {
        let rows = rows.map(|name| row(name, &[], 1000, 1.0));
        assert_eq!(sink.send(&batch(&rows), 0..3).await, Answer::Delivered);
    }
    let seen = task.await.expect("served");
    let told = |i: usize| {
        let request = v1(&seen[i]);
        assert!(request.timeseries.is_empty() != request.metadata.is_empty(), "{request:?}");
        let metrics = request.metadata.into_iter();
        metrics.map(|m| (m.metric_family_name, m.kind, m.help, m.unit)).collect::<Vec<_>>()
    };
    let metric = |name: &str| (name.to_owned(), 1, "Help.".to_owned(), "seconds".to_owned());
    let nothing = Vec::new();
    // With the first batch, and what is new with the third; what is refused holds nothing up and is not told at once again.
    assert_eq!(
        [0, 1, 2, 3, 4, 5].map(told),
        [nothing.clone(), vec![metric("a"), metric("b")], nothing.clone(), nothing.clone(), vec![metric("c")], nothing]
    );
}

#[tokio::test]
async fn version_2_tells_metadata_with_the_series_only() {
    let (url, task) = server(&[WRITTEN, WRITTEN]).await;
    let mut sink = built(json!({"url": url, "metadata_interval": "1h", "protobuf_message": V2}));
    for _ in 0..2 {
        assert_eq!(sink.send(&three(), 0..3).await, Answer::Delivered);
    }
    assert!(task.await.expect("served").iter().all(|seen| v2(seen).timeseries.len() == 3));
}

#[tokio::test(start_paused = true)]
async fn metadata_is_told_again_after_its_interval_and_by_one_lane() {
    let told = Told::new(Duration::from_secs(60));
    let missing = |told: &Told| told.missing(&three(), 0..3);
    assert_eq!(told.missing(&three(), 0..1).len(), 1);
    let first = missing(&told);
    assert_eq!((first.len(), told.clone().begin(first.clone()).len()), (2, 2));
    assert_eq!((told.begin(first).len(), missing(&told).len()), (0, 0));
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(missing(&told).len(), 0);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(missing(&told).len(), 2);
    assert_eq!(missing(&Told::new(Duration::ZERO)).len(), 0);
}

#[test]
fn many_symbols_stand_once_each() {
    let names: Vec<String> = (0..5000).map(|i| format!("v{}", i % 3000)).collect();
    let labels: Vec<[(&str, &str); 1]> = names.iter().map(|name| [("path", name.as_str())]).collect();
    let rows: Vec<_> = labels.iter().map(|labels| row("a", labels, 1000, 1.0)).collect();
    let mut writer = message::Writer::default();
    writer.write(ProtobufMessage::V1, &three(), 0..3).expect("its own items");
    let (body, counts) = writer.write(ProtobufMessage::V2, &batch(&rows), 0..rows.len()).expect("its own items");
    let request = v2::Request::decode(body).expect("a request");
    sound(&request);
    assert_eq!((counts.samples, request.timeseries.len()), (5000, 5000));
    for (series, name) in request.timeseries.iter().zip(&names) {
        assert_eq!(super::tests::labels(&request, &series.labels_refs)[3], ("path", name.as_str()));
    }
}

#[test]
fn refuses_options_by_their_path() {
    let url = "http://h/";
    let unknown = "unknown key 'protobuf_mesage', did you mean 'protobuf_message'?";
    for (options, path, message) in [
        (json!({}), "", "'url' is missing"),
        (json!({"url": "h:1"}), "url", "'h:1' is no http:// or https:// URL"),
        (json!({"url": url, "headers": {"user-agent": "x"}}), "headers.user-agent", "remote write fixes 'user-agent': remove it"),
        (json!({"url": url, "headers": {"Content-Type": "x"}}), "headers.Content-Type", "remote write fixes 'Content-Type': remove it"),
        (
            json!({"url": url, "headers": {"X-Prometheus-Remote-Write-Version": "x"}}),
            "headers.X-Prometheus-Remote-Write-Version",
            "remote write fixes 'X-Prometheus-Remote-Write-Version': remove it",
        ),
        (
            json!({"url": url, "headers": {"CONTENT-ENCODING": "x"}}),
            "headers.CONTENT-ENCODING",
            "remote write fixes 'CONTENT-ENCODING': remove it",
        ),
        (json!({"url": url, "protobuf_mesage": V2}), "protobuf_mesage", unknown),
        (json!({"url": url, "items_max": 0}), "items_max", "'items_max' cannot be 0"),
        (json!({"url": url, "requests_max": 0}), "requests_max", "'requests_max' cannot be 0"),
        (
            json!({"url": url, "http_headers": {"Content-Type": {"values": ["x"]}}}),
            "http_headers.Content-Type",
            "remote write fixes 'Content-Type': remove it",
        ),
        (
            json!({"url": url, "http_headers": {"x-prometheus-remote-write-version": {"values": ["x"]}}}),
            "http_headers.x-prometheus-remote-write-version",
            "remote write fixes 'x-prometheus-remote-write-version': remove it",
        ),
        (json!({"url": url, "authorization": {}}), "authorization", "credentials or credentials_file is missing"),
    ] {
        let error = sink(&options).err().expect("refused");
        assert_eq!((error.path.as_str(), error.message.as_str()), (path, message));
    }
}
