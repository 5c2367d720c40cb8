//! Taps: what passes through the stream now, for a person who looks.
//!
//! *In*: the raw stream from its head on, a selector, optionally a relay's filters and encoder. *Out*: lines of JSON. *Bound*: an own reader with
//! [`crate::read::BYTES_IN_FLIGHT`], [`CHUNKS_MAX`] chunks that wait for the listener, a rate. *When full*: samples are left out and counted, or, where it
//! shows the past, wait in the stream; nobody else waits for a tap.
//!
//! A line is a sample, or `{"tap":{…}}`: how many samples went by over the rate, and how many the listener was too slow for.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bundled_nats::port::{Error as PortError, Streams};
use bytes::Bytes;
use config::{Component, OptionsError, Relay};
use sample::KEY_FRAME_PERIOD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::backoff::now_ms;
use crate::checkpoint::Checkpoint;
use crate::control::Control;
use crate::encode;
use crate::filter;
use crate::pipeline::{self, Pipeline};
use crate::read::Reader;
use crate::run::feed;
use crate::sink::{Batch, Limits};
use crate::step::{STEPS_MAX, Step};
use crate::takes::Takes;

/// Chunks that wait for the listener. Larger: memory per tap; smaller: a short pause of the listener costs samples.
const CHUNKS_MAX: usize = 64;
/// Bytes and samples of one chunk.
const LIMITS: Limits = Limits { bytes_max: 64 << 10, items_max: 500 };
/// How long a tap that shows nothing stays silent: its listener may be gone.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How far before now reading begins, so that every live target's base is known.
const WARM_BEFORE: Duration = Duration::from_secs(KEY_FRAME_PERIOD.as_secs() + 60);

/// Where on its way a sample is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// As it is in the stream.
    Raw,
    /// After the relay's filters.
    Filtered,
    /// As the relay's encoder writes it.
    Encoded,
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Request {
    /// A PromQL selector; none: everything.
    pub selector: Option<String>,
    /// Name of the relay whose filters and encoder are used.
    pub relay: Option<String>,
    /// Where on its way.
    pub stage: Stage,
    /// Jobs; empty: all, or all of the relay.
    pub jobs: Vec<String>,
    /// Begin with what was stored at this time, ms, and show all of it, at the rate; none: with what comes next.
    pub at_ms: Option<i64>,
    /// Samples per second.
    pub rate: u32,
    /// How long the listener may take nothing.
    pub stalled: Duration,
}

/// Why a tap is not opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The selector is none.
    #[error("{0}")]
    Selector(String),
    /// The relay takes none of the jobs.
    #[error("relay '{relay}' takes none of these jobs: it takes {}", takes.join(", "))]
    Jobs {
        /// The relay.
        relay: String,
        /// What it takes.
        takes: Vec<String>,
    },
    /// The relay's components refuse their options.
    #[error("cannot build the relay: {0}")]
    Options(OptionsError),
    /// The stream does not answer.
    #[error(transparent)]
    Port(#[from] PortError),
}

/// An open tap; dropping it closes it.
pub struct Tap {
    chunks: mpsc::Receiver<Bytes>,
    task: AbortHandle,
}

impl Tap {
    /// Begins to read at the head of the stream, or at a time. `relay`: the one that the request names.
    pub async fn open(
        request: Request,
        relay: Option<&Relay>,
        streams: &Streams,
        external_labels: Vec<(String, String)>,
        stop: &CancellationToken,
    ) -> Result<Self, Error> {
        let parts = parts(&request, relay, external_labels)?;
        let seq = match request.at_ms {
            None => streams.raw.info().await?.last_seq,
            Some(at_ms) => streams.raw.seq_at(at_ms).await?.saturating_sub(1),
        };
        let warm_from = request.at_ms.unwrap_or_else(now_ms).saturating_sub(WARM_BEFORE.as_millis() as i64);
        let warm_from = streams.raw.seq_at(warm_from).await?.max(1);
        let checkpoint = Checkpoint { owner: "tap".to_owned(), ..Checkpoint::at(seq, warm_from) };
        let reader = Reader::new(streams.raw.clone(), "tap", &checkpoint);
        let control = Arc::new(Control::default());
        let pipeline = Pipeline::new(pipeline::Parts { warm_from: checkpoint.warm_from, ..parts }, control.clone());
        let (steps, received) = mpsc::channel(STEPS_MAX);
        let (sent, chunks) = mpsc::channel(CHUNKS_MAX);
        let show = Show::new(&request, sent);
        let stop = stop.child_token();
        let task = tokio::spawn(async move {
            // Showing ends with the listener; that closes the steps, which ends the reading.
            tokio::join!(feed(reader, pipeline, steps, &control, None, &stop, None), show.run(received));
        });
        Ok(Self { chunks, task: task.abort_handle() })
    }

    /// The next lines; none: the tap has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.chunks.recv().await
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn parts(request: &Request, relay: Option<&Relay>, external_labels: Vec<(String, String)>) -> Result<pipeline::Parts, Error> {
    let mut jobs = request.jobs.clone();
    if let Some(relay) = relay.filter(|relay| !relay.from.is_empty()) {
        jobs = relay.from.iter().filter(|job| request.jobs.is_empty() || request.jobs.contains(job)).cloned().collect();
        if jobs.is_empty() {
            return Err(Error::Jobs { relay: relay.name.clone(), takes: relay.from.clone() });
        }
    }
    let stage = if relay.is_some() { request.stage } else { Stage::Raw };
    let of_relay = relay.filter(|_| stage != Stage::Raw);
    let mut filters = Vec::new();
    for component in of_relay.iter().flat_map(|relay| &relay.filters) {
        filters.push((Arc::from(component.name.as_str()), filter::build(component).map_err(Error::Options)?));
    }
    if let Some(selector) = &request.selector {
        let keep = Component { name: "keep".to_owned(), options: Value::String(selector.clone()) };
        filters.push((Arc::from("tap"), filter::build(&keep).map_err(|error| Error::Selector(error.message))?));
    }
    let encoder = match of_relay.filter(|_| stage == Stage::Encoded) {
        None => named("ndjson"),
        Some(relay) => relay.encode.clone().unwrap_or_else(|| named(crate::sink::default_encoder(&relay.sink.name))),
    };
    Ok(pipeline::Parts {
        filters,
        encoder: Arc::from(encode::build(&encoder).map_err(Error::Options)?),
        limits: LIMITS,
        templates: Vec::new(),
        takes: relay.map(Takes::of).unwrap_or_default().of_jobs(jobs),
        // Raw is what was stored; on its way to a sink a sample gets them.
        external_labels: if of_relay.is_some() { external_labels } else { Vec::new() },
        config: String::new(),
        warm_from: 1,
        position: 0,
        waiting: None,
        layouts: Arc::default(),
        batch_time: Duration::ZERO,
        replay: None,
    })
}

fn named(encoder: &str) -> Component {
    Component { name: encoder.to_owned(), options: Value::Null }
}

/// Turns batches into chunks, within the rate, without ever waiting for the listener.
struct Show {
    encoded: bool,
    /// Whether nothing is left out: what is over the rate waits.
    is_whole: bool,
    rate: u32,
    stalled: Duration,
    chunks: mpsc::Sender<Bytes>,
    /// Samples that may still be shown in this second.
    left: u32,
    over_rate: u64,
    missed: u64,
    /// What the listener was told.
    told: (u64, u64),
    spoke: Instant,
    taken: Instant,
}

impl Show {
    fn new(request: &Request, chunks: mpsc::Sender<Bytes>) -> Self {
        let now = Instant::now();
        Self {
            encoded: request.stage == Stage::Encoded && request.relay.is_some(),
            is_whole: request.at_ms.is_some(),
            rate: request.rate,
            stalled: request.stalled,
            chunks,
            left: request.rate,
            over_rate: 0,
            missed: 0,
            told: (0, 0),
            spoke: now,
            taken: now,
        }
    }

    async fn run(mut self, mut steps: mpsc::Receiver<Step>) {
        let mut seconds = interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let gone = self.chunks.clone();
        loop {
            tokio::select! {
                biased;
                () = gone.closed() => return,
                _ = seconds.tick() => {
                    if !self.second() {
                        return;
                    }
                }
                step = steps.recv(), if !self.is_whole || (self.left > 0 && self.chunks.capacity() > 0) => match step {
                    Some(Step::Part(part)) => self.batch(&part.batch),
                    Some(Step::Marks(_) | Step::Warm(_)) => {}
                    None => return,
                },
            }
        }
    }

    /// A new second: the rate begins anew, and what was left out is told. False: the listener takes nothing.
    fn second(&mut self) -> bool {
        self.left = self.rate;
        let counts = (self.over_rate, self.missed);
        if counts != self.told || self.spoke.elapsed() >= HEARTBEAT {
            let line = json!({ "tap": { "over_rate": counts.0, "missed": counts.1 } });
            if self.send(format!("{line}\n").into_bytes(), 0) {
                self.told = counts;
            }
        }
        if self.chunks.capacity() > 0 {
            self.taken = Instant::now();
        }
        self.taken.elapsed() < self.stalled
    }

    fn batch(&mut self, batch: &Batch) {
        let shown = if self.is_whole { batch.items.len() } else { batch.items.len().min(self.left as usize) };
        self.left = self.left.saturating_sub(shown as u32);
        self.over_rate += (batch.items.len() - shown) as u64;
        if shown == 0 {
            return;
        }
        let mut lines = Vec::with_capacity(batch.bytes.len() + shown);
        for i in 0..shown {
            let item = batch.item(i);
            if self.encoded {
                let wrapped = match std::str::from_utf8(&item) {
                    Ok(text) => json!({ "encoded": text.trim_end_matches('\n') }),
                    Err(_) => json!({ "encoded_base64": STANDARD.encode(&item) }),
                };
                lines.extend_from_slice(wrapped.to_string().as_bytes());
            } else {
                lines.extend_from_slice(&item);
            }
            lines.push(b'\n');
        }
        self.send(lines, shown as u64);
    }

    fn send(&mut self, lines: Vec<u8>, samples: u64) -> bool {
        match self.chunks.try_send(Bytes::from(lines)) {
            Ok(()) => {
                self.spoke = Instant::now();
                true
            }
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {
                self.missed += samples;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{Form, Framing};
    use crate::sink::{Item, Stretch};

    fn request(rate: u32) -> Request {
        let stalled = Duration::from_secs(30);
        Request { selector: None, relay: None, stage: Stage::Raw, jobs: Vec::new(), at_ms: None, rate, stalled }
    }

    fn batch(items: u32) -> Batch {
        Batch {
            sections: Arc::default(),
            routes: Default::default(),
            bytes: b"{}".repeat(items as usize).into(),
            items: Arc::new((1..=items).map(|i| Item { end: 2 * i, section: 0, series: 0, index: 0, route: 0 }).collect()),
            framing: Framing { open: b"", separator: b"\n", close: b"\n", form: Form::Whole },
            content_type: "application/x-ndjson",
            slots_ms: (0, 0),
            stretch: Stretch::default(),
            key: String::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_out_is_counted_and_nobody_waits() {
        let (sent, mut chunks) = mpsc::channel(2);
        let mut show = Show::new(&request(3), sent);
        show.batch(&batch(2));
        show.batch(&batch(2));
        assert_eq!((show.over_rate, show.missed), (1, 0));
        assert!(show.second());
        show.batch(&batch(3));
        assert_eq!((show.over_rate, show.missed), (1, 3), "two chunks wait, the third has no room");
        assert_eq!(chunks.recv().await.expect("a chunk"), "{}\n{}\n");
        assert!(show.second());
        assert_eq!(chunks.recv().await.expect("a chunk"), "{}\n");
        assert_eq!(chunks.recv().await.expect("a chunk"), "{\"tap\":{\"over_rate\":1,\"missed\":3}}\n");
        show.batch(&batch(1));
        show.batch(&batch(1));
        let full_for = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        full_for(20).await;
        assert!(show.second());
        full_for(20).await;
        assert!(!show.second(), "cut after {:?}", show.stalled);
    }

    #[tokio::test(start_paused = true)]
    async fn the_past_is_shown_whole_at_the_rate() {
        let (sent, mut chunks) = mpsc::channel(64);
        let show = Show::new(&Request { at_ms: Some(0), ..request(3) }, sent);
        let (steps, received) = mpsc::channel(16);
        let part = |items| {
            let part = crate::step::Part { first_ms: 0, is_shared: false, batch: batch(items) };
            Step::Part(Box::new(part))
        };
        for items in [2, 2, 2] {
            steps.send(part(items)).await.expect("room");
        }
        drop(steps);
        let started = Instant::now();
        show.run(received).await;
        let mut samples = 0;
        while let Some(chunk) = chunks.recv().await {
            samples += chunk.iter().filter(|byte| **byte == b'\n').count();
        }
        assert_eq!((samples, started.elapsed().as_secs()), (6, 1), "the third one is over the first second's rate");
    }

    #[test]
    fn a_selector_that_is_none_and_a_job_that_is_not_taken_are_refused() {
        let relay: Relay = serde_json::from_value(json!({ "name": "one", "from": ["a", "b"], "sink": { "stdout": {} } })).expect("a relay");
        let bad = Request { selector: Some("{a=".to_owned()), ..request(1) };
        assert!(matches!(parts(&bad, None, Vec::new()), Err(Error::Selector(_))));
        let bad = Request { jobs: vec!["c".to_owned()], ..request(1) };
        assert!(matches!(parts(&bad, Some(&relay), Vec::new()), Err(Error::Jobs { .. })));
        let good = Request { jobs: vec!["b".to_owned()], ..request(1) };
        assert_eq!(parts(&good, Some(&relay), Vec::new()).map(|parts| parts.takes).ok(), Some(Takes::default().of_jobs(["b".to_owned()])));
    }
}
