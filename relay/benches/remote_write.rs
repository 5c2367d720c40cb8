//! Bytes per sample of remote write requests, on the pages of the corpus: `cargo bench -p relay --bench remote_write`.
//!
//! A request has 10,000 samples at most, all pages one after the other, each sample once (as when a sink keeps up) or in four slots (as when it
//! catches up). What is counted is what a receiver on loopback gets, bodies only.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bundled_nats::feed::Feeds;
use config::Component;
use regex::Regex;
use relay::encode::{Encode, Sample};
use relay::sink::{Answer, Batch, Files, Item, Place, Stretch};
use relay::step::{Names, Section};
use sample::{LayoutBuilder, MetricType, Origin, TargetId};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const SAMPLES: usize = 10_000;
const AT: i64 = 1_763_700_000_123;
const SLOT: i64 = 15_000;

/// One series of a page.
struct Row {
    name: String,
    labels: Vec<(String, String)>,
    kind: MetricType,
    help: String,
    value: f64,
}

fn main() {
    let pages = pages();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        println!("{:<44} {:>8} {:>12} {:>12}", "bytes per sample", "samples", "1 slot", "4 slots");
        for message in ["prometheus.WriteRequest", "io.prometheus.write.v2.Request"] {
            for compression in ["snappy", "zstd"] {
                let mut columns = Vec::new();
                for slots in [1, 4] {
                    columns.push(measure(message, compression, slots, &pages).await);
                }
                let (samples, _) = columns[0];
                let each = columns.iter().map(|(samples, bytes)| *bytes as f64 / *samples as f64).collect::<Vec<_>>();
                println!("{:<44} {samples:>8} {:>12.2} {:>12.2}", format!("{message}, {compression}"), each[0], each[1]);
            }
        }
    });
}

/// The pages of the corpus, each with its name.
fn pages() -> Vec<(String, Vec<Row>)> {
    let folder =
        std::env::var("STRATA_CORPORA").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/corpora").to_owned());
    let names = ["apiserver", "controller-manager", "etcd", "kube-state-metrics", "kubelet-cadvisor", "scheduler"];
    let files = names.iter().map(|name| format!("k8s-1.35/{name}.prom")).chain(["node_exporter/e2e-output.prom".to_owned()]);
    files
        .map(|name| {
            let path = Path::new(&folder).join(&name);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}: set STRATA_CORPORA", path.display()));
            (name, rows(&text))
        })
        .collect()
}

fn rows(text: &str) -> Vec<Row> {
    let line = Regex::new(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)").expect("a pattern");
    let label = Regex::new(r#"(\w+)="((?:[^"\\]|\\.)*)""#).expect("a pattern");
    let (mut kinds, mut helps, mut rows) = (HashMap::new(), HashMap::new(), Vec::new());
    for text in text.lines() {
        if let Some((name, rest)) = text.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let kind = match rest {
                "counter" => MetricType::Counter,
                "gauge" => MetricType::Gauge,
                "histogram" => MetricType::Histogram,
                "summary" => MetricType::Summary,
                _ => MetricType::Unknown,
            };
            kinds.insert(name.to_owned(), kind);
        } else if let Some((name, rest)) = text.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            helps.insert(name.to_owned(), rest.to_owned());
        } else if let Some(found) = line.captures(text) {
            let name = found[1].to_owned();
            let parts = ["_bucket", "_count", "_sum"].iter().filter_map(|end| name.strip_suffix(end));
            let family = parts.map(str::to_owned).find(|family| kinds.contains_key(family)).unwrap_or_else(|| name.clone());
            let labels = found.get(2).map_or("", |labels| labels.as_str());
            let mut labels: Vec<_> = label.captures_iter(labels).map(|pair| (pair[1].to_owned(), pair[2].to_owned())).collect();
            labels.sort();
            let kind = kinds.get(&family).copied().unwrap_or(MetricType::Unknown);
            let help = helps.get(&family).cloned().unwrap_or_default();
            rows.push(Row { name, labels, kind, help, value: found[3].parse().unwrap_or(f64::NAN) });
        }
    }
    rows
}

/// Samples and bytes of all requests that it takes.
async fn measure(message: &str, compression: &str, slots: usize, pages: &[(String, Vec<Row>)]) -> (usize, usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    let (sender, mut bytes) = mpsc::channel(1024);
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, sender.clone()));
        }
    });
    let encoder = relay::encode::build(&Component { name: "remote_write".to_owned(), options: json!(null) }).expect("a name");
    let options = json!({"url": url, "protobuf_message": message, "compression": compression, "metadata_interval": "0s"});
    let place = Place { files: &Files::default(), feeds: &Feeds::default(), relay: "bench", encoder: "remote_write" };
    let mut sink = relay::sink::build(&Component { name: "remote_write".to_owned(), options }, &place).expect("options it takes");
    let mut samples = 0;
    let all: Vec<(&str, &Row)> = pages.iter().flat_map(|(page, rows)| rows.iter().map(move |row| (page.as_str(), row))).collect();
    for rows in all.chunks(SAMPLES / slots) {
        let batch = batch(&*encoder, rows, slots);
        samples += batch.items.len();
        assert_eq!(sink.send(&batch, 0..batch.items.len()).await, Answer::Delivered);
    }
    server.abort();
    let mut sum = 0;
    while let Ok(body) = bytes.try_recv() {
        sum += body;
    }
    (samples, sum)
}

/// Some samples in so many slots; counters move from slot to slot.
fn batch(encoder: &dyn Encode, rows: &[(&str, &Row)], slots: usize) -> Batch {
    let pages: Vec<&[(&str, &Row)]> = rows.chunk_by(|a, b| a.0 == b.0).collect();
    let (mut bytes, mut items) = (Vec::new(), Vec::new());
    let names: Vec<Arc<Names>> = pages.iter().map(|rows| Arc::new(names(rows))).collect();
    let mut sections = Vec::new();
    for slot in 0..slots {
        for (page, names) in pages.iter().zip(&names) {
            let slot_ms = AT + SLOT * slot as i64;
            let origin = Origin { target: TargetId(Arc::as_ptr(names).addr() as u64), labels: Vec::new(), attributes: Vec::new() };
            sections.push(Section {
                origin: Arc::new(origin),
                layout: names.layout.clone(),
                names: names.clone(),
                columns: Arc::default(),
                slot_ms,
                items: 0,
            });
            for (index, (_, row)) in page.iter().enumerate() {
                let moves = row.kind != MetricType::Gauge && row.value != 0.0;
                let value = (row.value + if moves { slot as f64 } else { 0.0 }).to_bits();
                let (kind, timestamp_ms) = (row.kind, slot_ms);
                let sample = Sample {
                    series: &[],
                    target: &[],
                    kind,
                    timestamp_ms,
                    value,
                    delta: None,
                    sum_delta: None,
                    start_ms: None,
                    exemplars: &[],
                };
                encoder.sample(&sample, &mut bytes);
                let number = |n: usize| u32::try_from(n).expect("small");
                let series = (Arc::as_ptr(names).addr() + index) as u64;
                let section = number(sections.len() - 1);
                items.push(Item { end: number(bytes.len()), section, series, index: number(index), route: 0 });
            }
        }
    }
    Batch {
        bytes: bytes.into(),
        items: Arc::new(items),
        sections: sections.into(),
        routes: Vec::new(),
        framing: encoder.framing(),
        content_type: encoder.content_type(),
        slots_ms: (AT, AT),
        stretch: Stretch::default(),
        key: "p:1:1/0/0".to_owned(),
    }
}

fn names(rows: &[(&str, &Row)]) -> Names {
    let mut layout = LayoutBuilder::new();
    for (_, row) in rows {
        let family = layout.family(&row.name, row.kind, &row.help, "");
        layout.series(family, &row.name, row.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    }
    let instance = rows.first().map_or("", |(page, _)| page);
    Names::new(&Names::default(), Arc::new(layout.build()), &[("instance", instance), ("job", "kubernetes")])
}

/// Takes every request, and tells the length of its body.
async fn serve(mut stream: TcpStream, bytes: mpsc::Sender<usize>) {
    let mut read = Vec::new();
    loop {
        if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
            return;
        }
        let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
        let length: usize =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).and_then(|text| text.parse().ok()).expect("a length");
        if read.len() < end + 4 + length {
            continue;
        }
        read.drain(..end + 4 + length);
        bytes.send(length).await.expect("counted");
        let answer = b"HTTP/1.1 204 No Content\r\nX-Prometheus-Remote-Write-Samples-Written: 1\r\n\r\n";
        stream.write_all(answer).await.expect("answered");
    }
}
