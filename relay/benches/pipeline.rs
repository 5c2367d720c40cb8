//! Samples per second from stream messages to batches, and of the silent read: `cargo bench -p relay --bench pipeline`.

use std::hint::black_box;
use std::sync::Arc;

use bundled_nats::port::{Headers, Message};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use relay::control::Control;
use relay::pipeline::{Parts, Pipeline};
use relay::read::Incoming;
use relay::sink::Limits;
use sample::{Columns, Encoder, Envelope, Flags, Layout, LayoutBuilder, MessageBuilder, MetricType, Origin, State, TargetId, checksum};
use tokio::sync::mpsc;

const TARGETS: u64 = 8;
const SERIES: usize = 2_000;
const ROUNDS: usize = 10;

fn layout() -> Arc<Layout> {
    let mut builder = LayoutBuilder::new();
    for i in 0..SERIES {
        let name = format!("http_request_duration_seconds_bucket_{}", i / 50);
        let family = builder.family(&name, MetricType::Counter, "How long requests took.", "seconds");
        builder.series(family, &name, [("code", "200"), ("handler", "/api/v1/query"), ("le", &format!("{}", i % 50))]);
    }
    Arc::new(builder.build())
}

/// Rounds of all targets, one message per round, a third of the values moving.
fn messages() -> Vec<Message> {
    let layout = layout();
    let mut encoders: Vec<Encoder> = (0..TARGETS)
        .map(|t| {
            let labels = vec![("instance".to_owned(), format!("10.0.0.{t}:9100")), ("job".to_owned(), "api".to_owned())];
            Encoder::new(Arc::new(Origin { target: TargetId(t), labels, attributes: vec![("job".to_owned(), "api".to_owned())] }), 0)
        })
        .collect();
    let mut columns = Columns { states: vec![State::Present; SERIES], ..Columns::default() };
    (0..ROUNDS)
        .map(|round| {
            columns.values = (0..SERIES).map(|i| ((i * 37 + if i % 3 == 0 { round * 7 } else { 0 }) as f64).to_bits()).collect();
            let mut message = MessageBuilder::new();
            for encoder in &mut encoders {
                let mut frame = Vec::new();
                encoder.encode(round as i64 * 15_000, 1, Flags::default(), &layout, &columns, &mut frame);
                message.push(&frame);
            }
            let payload = message.finish();
            let samples = TARGETS * SERIES as u64;
            let slot = round as i64 * 15_000;
            let envelope = Envelope {
                producer: "p".into(),
                epoch: 1,
                n: round as u64 + 1,
                samples,
                samples_total: samples * (round as u64 + 1),
                first_ms: slot,
                last_ms: slot,
                crc32c: checksum(&payload),
                ..Envelope::default()
            };
            let mut headers = Headers::default();
            envelope.headers().into_iter().for_each(|(name, value)| headers.insert(name, value));
            Message { seq: round as u64 + 1, subject: "s".into(), headers, payload: Bytes::from(payload), time_ms: slot }
        })
        .collect()
}

async fn run(messages: &[Message], encoder: &str, silent: bool) {
    let component = config::Component { name: encoder.into(), options: serde_json::Value::Null };
    let parts = Parts {
        filters: Vec::new(),
        encoder: Arc::from(relay::encode::build(&component).expect("a known encoder")),
        limits: Limits { bytes_max: 1 << 20, items_max: 10_000 },
        templates: Vec::new(),
        from: Vec::new(),
        external_labels: Vec::new(),
        config: "c".into(),
        warm_from: 1,
        layouts: Arc::default(),
        batch_time: std::time::Duration::ZERO,
        replay: None,
    };
    let mut pipeline = Pipeline::new(parts, Arc::new(Control::default()));
    let (steps, mut received) = mpsc::channel(4);
    let drain = async {
        while let Some(step) = received.recv().await {
            black_box(step);
        }
    };
    let feed = async {
        for message in messages {
            let envelope = Envelope::parse(|name| message.headers.get(name)).map_err(|error| error.to_string());
            let incoming = Incoming { message: message.clone(), envelope, silent, gap: None, restarted: false };
            pipeline.message(incoming, &steps).await.expect("it is drained");
        }
        drop(steps);
    };
    tokio::join!(feed, drain);
}

fn pipeline(criterion: &mut Criterion) {
    let messages = messages();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(TARGETS * (SERIES * ROUNDS) as u64)).sample_size(20);
    for (name, encoder, silent) in
        [("ndjson", "ndjson", false), ("statsd", "statsd", false), ("silent", "ndjson", true), ("silent deltas", "statsd", true)]
    {
        group.bench_function(name, |bench| bench.iter(|| runtime.block_on(run(&messages, encoder, silent))));
    }
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
