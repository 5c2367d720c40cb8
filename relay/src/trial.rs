//! A trial: samples through a relay's filters and encoder, without a stream and without a sink.
//!
//! *In*: the payloads of messages. *Out*: what the relay would have sent of the last one. *Bound*: [`LIMITS`] per batch, as for a sink.
//! *When full*: another batch.

use std::sync::Arc;
use std::time::Duration;

use bundled_nats::port::{Headers, Message};
use bytes::Bytes;
use config::{Component, OptionsError, Relay};
use sample::{Envelope, checksum};
use tokio::sync::mpsc;

use crate::control::Control;
use crate::pipeline::{Parts, Pipeline};
use crate::read::Incoming;
use crate::sink::Limits;
use crate::step::{STEPS_MAX, Step};
use crate::takes::Takes;
use crate::{encode, filter, sink};

/// What one batch may carry; a trial has a few samples.
const LIMITS: Limits = Limits { bytes_max: 4 << 20, items_max: 10_000 };

/// How samples are written in a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writing {
    /// As the relay's encoder does it.
    Own,
    /// As objects of the encoder `ndjson`, whatever the relay's is.
    Plain,
}

/// The payload of a message, and the slot of the samples in it.
#[derive(Debug, Clone)]
pub struct Page {
    /// As the collector packs it.
    pub payload: Vec<u8>,
    /// Nominal slot, ms.
    pub slot_ms: i64,
    /// Samples in it.
    pub samples: u64,
}

/// What became of the last page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Samples of it that the relay takes at all: 0 where its job is none of the relay's.
    pub read: u64,
    /// Encoded samples, in order.
    pub items: Vec<Vec<u8>>,
    /// Bodies as a sink would get them, one after the other.
    pub body: Vec<u8>,
    /// Samples filtered, by reason.
    pub filtered: Vec<(Arc<str>, u64)>,
}

/// Sends pages through a relay; all but the last only teach it (bases of increases, for encoders that want those).
///
/// *Errors*: options that a component refuses.
pub async fn run(relay: &Relay, writing: Writing, external_labels: Vec<(String, String)>, pages: &[Page]) -> Result<Outcome, OptionsError> {
    let component = match (writing, &relay.encode) {
        (Writing::Own, Some(component)) => component.clone(),
        (Writing::Own, None) => bare(sink::default_encoder(&relay.sink.name)),
        (Writing::Plain, _) => bare("ndjson"),
    };
    let filters = relay.filters.iter().map(|f| Ok((Arc::from(f.name.as_str()), filter::build(f)?))).collect::<Result<_, OptionsError>>()?;
    let parts = Parts {
        filters,
        encoder: Arc::from(encode::build(&component)?),
        limits: LIMITS,
        templates: Vec::new(),
        takes: Takes::of(relay),
        external_labels,
        config: String::new(),
        warm_from: 1,
        position: 0,
        waiting: None,
        layouts: Arc::default(),
        batch_time: Duration::ZERO,
        replay: None,
    };
    let mut pipeline = Pipeline::new(parts, Arc::new(Control::default()));
    let (steps, mut received) = mpsc::channel(STEPS_MAX);
    let feed = async {
        for (index, page) in pages.iter().enumerate() {
            let incoming = incoming(index, page, index + 1 < pages.len());
            if pipeline.message(incoming, &steps).await.is_err() {
                break;
            }
        }
        drop(steps);
    };
    let mut outcome = Outcome::default();
    let drain = async {
        while let Some(step) = received.recv().await {
            match step {
                Step::Part(part) => {
                    let items = part.batch.items.len();
                    outcome.items.extend((0..items).map(|i| part.batch.item(i).to_vec()));
                    part.batch.body(0..items, &mut outcome.body);
                }
                Step::Marks(marks) => {
                    for mark in marks {
                        outcome.read += mark.read;
                        outcome.filtered = mark.filtered.into_iter().filter(|(_, n)| *n > 0).collect();
                    }
                }
                Step::Warm(_) => {}
            }
        }
    };
    tokio::join!(feed, drain);
    Ok(outcome)
}

fn bare(name: &str) -> Component {
    Component { name: name.to_owned(), options: serde_json::Value::Null }
}

/// A page as it would come from the stream.
fn incoming(index: usize, page: &Page, silent: bool) -> Incoming {
    let n = index as u64 + 1;
    let envelope = Envelope {
        producer: "trial".into(),
        epoch: 1,
        n,
        samples: page.samples,
        samples_total: page.samples * n,
        first_ms: page.slot_ms,
        last_ms: page.slot_ms,
        crc32c: checksum(&page.payload),
        ..Envelope::default()
    };
    let mut headers = Headers::default();
    envelope.headers().into_iter().for_each(|(name, value)| headers.insert(name, value));
    let message = Message { seq: n, subject: "trial".into(), headers, payload: Bytes::from(page.payload.clone()), time_ms: page.slot_ms };
    Incoming::alone(message, Ok(envelope), silent)
}
