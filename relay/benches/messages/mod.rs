//! Messages as a stream has them: a few targets with one layout, a third of the values moving.

use std::sync::Arc;

use bundled_nats::port::{Headers, Message};
use bytes::Bytes;
use relay::pipeline::Parts;
use relay::read::Incoming;
use relay::sink::Limits;
use sample::{Columns, Encoder, Envelope, Flags, Layout, LayoutBuilder, MessageBuilder, MetricType, Origin, State, TargetId, checksum};

pub const TARGETS: u64 = 8;
pub const SERIES: usize = 2_000;
pub const ROUNDS: usize = 10;

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
pub fn messages() -> Vec<Message> {
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

/// A pipeline's parts for an encoder without options, no filter.
pub fn parts(encoder: &str) -> Parts {
    let component = config::Component { name: encoder.into(), options: serde_json::Value::Null };
    Parts {
        filters: Vec::new(),
        encoder: Arc::from(relay::encode::build(&component).expect("a known encoder")),
        limits: Limits { bytes_max: 1 << 20, items_max: 10_000 },
        templates: Vec::new(),
        takes: relay::takes::Takes::default(),
        external_labels: Vec::new(),
        config: "c".into(),
        warm_from: 1,
        position: 0,
        waiting: None,
        layouts: Arc::default(),
        batch_time: std::time::Duration::ZERO,
        replay: None,
    }
}

/// A message as the reader hands it out.
pub fn incoming(message: &Message, silent: bool) -> Incoming {
    let envelope = Envelope::parse(|name| message.headers.get(name));
    Incoming::alone(message.clone(), envelope, silent)
}
