//! A producer, a scripted sink, and waiting for a state.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bundled_nats::ledger::{Booking, Entry};
use bundled_nats::port::{Headers, Log, State};
use bundled_nats::twin::Twin;
use bytes::Bytes;
use relay::audit::{Request, Statement};
use relay::checkpoint::Checkpoint;
use relay::run::Components;
use relay::sink::{Answer, Batch, Limits, Sink};
use relay::{Options, Relays, Status};
use sample::{
    Columns, Encoder, Envelope, Flags, Layout, LayoutBuilder, MessageBuilder, MetricType, Origin, State as Has, TargetId, checksum,
};
use tokio_util::sync::CancellationToken;

/// One scrape of one target.
#[derive(Clone)]
pub struct Scrape {
    pub target: u64,
    pub job: &'static str,
    pub slot_ms: i64,
    pub flags: Flags,
    pub values: Vec<(String, f64)>,
}

pub fn scrape(target: u64, slot_ms: i64, values: &[(&str, f64)]) -> Scrape {
    let values = values.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
    Scrape { target, job: "local", slot_ms, flags: Flags::default(), values }
}

struct Target {
    names: Vec<String>,
    layout: Arc<Layout>,
    encoder: Encoder,
}

/// The collector's side.
pub struct Producer {
    twin: Twin,
    pub name: &'static str,
    pub epoch: u64,
    pub n: u64,
    pub total: u64,
    /// Labels of its targets beside job and instance.
    pub labels: Vec<(String, String)>,
    targets: HashMap<(u64, u16), Target>,
}

impl Producer {
    pub fn new(twin: &Twin, name: &'static str, epoch: u64) -> Self {
        Self { twin: twin.clone(), name, epoch, n: 0, total: 0, labels: Vec::new(), targets: HashMap::new() }
    }

    pub fn subject(&self) -> String {
        format!("strata.raw.0.{}", self.name)
    }

    /// The next frame of each target is a key frame.
    pub fn rebase(&mut self) {
        self.targets.values_mut().for_each(|target| target.encoder.rebase());
    }

    pub fn frame(&mut self, scrape: &Scrape, part: u16, parts: u16) -> (Vec<u8>, u64) {
        let target = self.targets.entry((scrape.target, part)).or_insert_with(|| {
            let mut labels = vec![("instance".into(), format!("t{}", scrape.target)), ("job".into(), scrape.job.into())];
            labels.extend(self.labels.iter().cloned());
            labels.sort();
            // Each target is in a namespace of its own.
            let attributes = vec![("job".into(), scrape.job.into()), ("namespace".into(), format!("n{}", scrape.target))];
            let origin = Origin { target: TargetId(scrape.target), labels, attributes };
            Target { names: Vec::new(), layout: Arc::new(LayoutBuilder::new().build()), encoder: Encoder::new(Arc::new(origin), part) }
        });
        let names: Vec<String> = scrape.values.iter().map(|(name, _)| name.clone()).collect();
        if target.names != names {
            let extends = names.starts_with(&target.names) && !target.names.is_empty();
            let mut builder = if extends { LayoutBuilder::append_to(&target.layout) } else { LayoutBuilder::new() };
            for name in &names[if extends { target.names.len() } else { 0 }..] {
                let kind = if name.ends_with("_total") { MetricType::Counter } else { MetricType::Gauge };
                let family = builder.family(name, kind, "", "");
                builder.series(family, name, [("k", "v")]);
            }
            target.layout = Arc::new(builder.build());
            target.names = names;
        }
        let columns = Columns {
            values: scrape.values.iter().map(|(_, value)| value.to_bits()).collect(),
            states: vec![Has::Present; scrape.values.len()],
            ..Columns::default()
        };
        let mut out = Vec::new();
        target.encoder.encode(scrape.slot_ms, parts, scrape.flags, &target.layout, &columns, &mut out);
        (out, scrape.values.len() as u64)
    }

    pub async fn publish(&mut self, scrapes: &[Scrape]) -> u64 {
        let frames: Vec<(Vec<u8>, u64)> = scrapes.iter().map(|scrape| self.frame(scrape, 0, 1)).collect();
        let slots = scrapes.iter().map(|s| s.slot_ms);
        self.publish_frames(&frames, (slots.clone().min().unwrap_or(0), slots.max().unwrap_or(0))).await
    }

    pub async fn publish_frames(&mut self, frames: &[(Vec<u8>, u64)], slots: (i64, i64)) -> u64 {
        let mut message = MessageBuilder::new();
        let mut samples = 0;
        for (frame, count) in frames {
            message.push(frame);
            samples += count;
        }
        let payload = message.finish();
        self.publish_payload(payload, samples, slots, false).await.expect("room in the stream")
    }

    pub async fn publish_payload(&mut self, payload: Vec<u8>, samples: u64, slots: (i64, i64), spoilt: bool) -> Option<u64> {
        self.n += 1;
        self.total += samples;
        let envelope = Envelope {
            producer: self.name.into(),
            partition: 0,
            epoch: self.epoch,
            n: self.n,
            samples,
            samples_total: self.total,
            dropped_total: 0,
            first_ms: slots.0,
            last_ms: slots.1,
            crc32c: checksum(&payload) ^ u32::from(spoilt),
        };
        let mut headers = Headers::default();
        for (name, value) in envelope.headers() {
            headers.insert(name, value);
        }
        match self.twin.raw.publish(&self.subject(), &headers, Bytes::from(payload), None).await {
            Ok(seq) => Some(seq),
            Err(_) => {
                self.n -= 1;
                self.total -= samples;
                None
            }
        }
    }
}

/// One call of the sink.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    pub key: String,
    pub lines: Vec<String>,
    pub answer: Answer,
}

type Rule = Box<dyn FnMut(&[String]) -> Answer + Send>;

/// What the sink answers, and what it was given.
pub struct Script {
    pub answers: VecDeque<Answer>,
    pub rule: Rule,
    pub calls: Vec<Call>,
}

impl Script {
    /// Lines that were delivered, in order.
    pub fn delivered(&self) -> Vec<String> {
        self.calls.iter().filter(|call| call.answer == Answer::Delivered).flat_map(|call| call.lines.clone()).collect()
    }
}

#[derive(Clone)]
pub struct Scripted(pub Arc<Mutex<Script>>);

impl Scripted {
    pub fn new() -> Self {
        Self::with(|_| Answer::Delivered)
    }

    pub fn with(rule: impl FnMut(&[String]) -> Answer + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Script { answers: VecDeque::new(), rule: Box::new(rule), calls: Vec::new() })))
    }

    pub fn set(&self, rule: impl FnMut(&[String]) -> Answer + Send + 'static) {
        self.script(|script| script.rule = Box::new(rule));
    }

    pub fn script<T>(&self, look: impl FnOnce(&mut Script) -> T) -> T {
        look(&mut self.0.lock().expect("no panics while it is held"))
    }

    pub fn delivered(&self) -> Vec<String> {
        self.script(|script| script.delivered())
    }

    pub fn calls(&self) -> Vec<Call> {
        self.script(|script| script.calls.clone())
    }
}

pub fn retry() -> Answer {
    Answer::Retry { after: None, reason: "busy".into() }
}

pub fn reject() -> Answer {
    Answer::Reject { items: None, reason: "no".into() }
}

struct ScriptedSink {
    script: Scripted,
    limits: Limits,
    /// With how many others it sends at the same time.
    lanes: usize,
    once: bool,
    /// Where those that send wait for each other.
    meet: Option<Arc<tokio::sync::Barrier>>,
}

#[async_trait]
impl Sink for ScriptedSink {
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer {
        tokio::task::yield_now().await;
        if let Some(meet) = &self.meet {
            meet.wait().await;
        }
        let lines: Vec<String> = items.map(|i| String::from_utf8_lossy(&batch.item(i)).trim().to_owned()).collect();
        self.script.script(|script| {
            let answer = script.answers.pop_front().unwrap_or_else(|| (script.rule)(&lines));
            script.calls.push(Call { key: batch.key.clone(), lines, answer: answer.clone() });
            answer
        })
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn is_once(&self) -> bool {
        self.once
    }

    fn lanes(&self) -> Vec<Box<dyn Sink>> {
        let lane = || Self { script: self.script.clone(), limits: self.limits, lanes: 0, once: self.once, meet: self.meet.clone() };
        (0..self.lanes).map(|_| Box::new(lane()) as Box<dyn Sink>).collect()
    }
}

/// A relay configuration as YAML would give it.
pub fn relay(name: &str) -> config::Relay {
    config::Relay {
        name: name.into(),
        from: Vec::new(),
        namespaces: Vec::new(),
        start: config::Start::Earliest,
        hold: config::Hold::default(),
        catch_up: config::CatchUp::default(),
        filters: Vec::new(),
        encode: None,
        batch_time: config::Millis(0),
        sink: config::Component { name: "scripted".into(), options: serde_json::Value::Null },
    }
}

/// What a test runs: relays whose sinks are scripted, by relay name.
pub struct Setup {
    pub twin: Twin,
    pub relays: Vec<config::Relay>,
    pub sinks: BTreeMap<String, Scripted>,
    pub limits: Limits,
    /// Lanes beside the sink itself.
    pub lanes: usize,
    /// Whether sinks keep in mind what they have.
    pub once: bool,
    /// Where requests wait for each other.
    pub meet: Option<Arc<tokio::sync::Barrier>>,
    pub options: Options,
}

impl Setup {
    pub fn new(twin: &Twin, relays: &[config::Relay]) -> Self {
        let sinks = relays.iter().map(|relay| (relay.name.clone(), Scripted::new())).collect();
        Self {
            twin: twin.clone(),
            relays: relays.to_vec(),
            sinks,
            limits: Limits { bytes_max: 1 << 20, items_max: 10_000 },
            lanes: 0,
            once: false,
            meet: None,
            options: Options::default(),
        }
    }

    pub fn one(twin: &Twin) -> Self {
        Self::new(twin, &[relay("one")])
    }

    pub fn sink(&self, name: &str) -> Scripted {
        self.sinks[name].clone()
    }

    pub fn options(&self) -> Options {
        let (sinks, limits, lanes, once, meet) = (self.sinks.clone(), self.limits, self.lanes, self.once, self.meet.clone());
        let build = move |relay: &config::Relay| {
            let named = |f: &config::Component| Ok((Arc::from(f.name.as_str()), relay::filter::build(f)?));
            let filters = relay.filters.iter().map(named).collect::<Result<_, config::OptionsError>>()?;
            let ndjson = config::Component { name: "ndjson".into(), options: serde_json::Value::Null };
            let encoder = Arc::from(relay::encode::build(relay.encode.as_ref().unwrap_or(&ndjson))?);
            let sink = Box::new(ScriptedSink { script: sinks[&relay.name].clone(), limits, lanes, once, meet: meet.clone() });
            Ok(Components { filters, encoder, sink })
        };
        Options { build: Arc::new(build), ..self.options.clone() }
    }

    /// Starts the relays; dropping them is a kill.
    pub fn start(&self) -> Relays {
        self.start_with(&prometheus::Registry::new())
    }

    pub fn start_with(&self, registry: &prometheus::Registry) -> Relays {
        let token = CancellationToken::new();
        Relays::start(&self.relays, self.twin.streams(), self.options(), registry, &token).expect("an own registry")
    }
}

/// Waits until something is so.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..200_000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never came true: {what}");
}

/// Waits until a relay's durable position is there.
/// Each request's samples by its key.
pub fn by_key(calls: &[Call]) -> HashMap<String, BTreeSet<Vec<String>>> {
    let mut keys: HashMap<String, BTreeSet<Vec<String>>> = HashMap::new();
    for call in calls {
        keys.entry(call.key.clone()).or_default().insert(call.lines.clone());
    }
    keys
}

pub async fn passed(twin: &Twin, name: &str, seq: u64) -> Checkpoint {
    for _ in 0..200_000 {
        if let Some(checkpoint) = checkpoint(twin, name).await
            && checkpoint.seq >= seq
        {
            return checkpoint;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("relay '{name}' never passed {seq}");
}

pub async fn checkpoint(twin: &Twin, name: &str) -> Option<Checkpoint> {
    let entry = twin.state.get(&relay::checkpoint::key(name)).await.ok()??;
    Some(serde_json::from_slice(&entry.value).expect("a checkpoint"))
}

pub fn ledger(twin: &Twin) -> Vec<Entry> {
    let messages = twin.ledger.messages();
    let entries = messages.iter().filter(|message| Booking::get(&message.headers).is_none());
    entries.map(|message| serde_json::from_slice(&message.payload).expect("an entry")).collect()
}

pub fn status(relays: &Relays, name: &str) -> Status {
    relays.status().into_iter().find(|status| status.name == name).expect("it runs")
}

/// A metric of a relay; none: it is not there.
pub fn metric(registry: &prometheus::Registry, metric: &str, relay: &str) -> Option<f64> {
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
    let line = text.lines().find(|line| line.starts_with(&format!("{metric}{{")) && line.contains(&format!("relay=\"{relay}\"")))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

/// What an audit of all relays says of a range of slots.
pub async fn audited(setup: &Setup, (from_ms, to_ms): (i64, i64)) -> Statement {
    let request = Request { relays: setup.relays.clone(), from_ms, to_ms, selector: None };
    relay::audit::audit(request, &setup.twin.streams(), |_| ()).await.expect("the twin is up")
}

/// The equation of a checkpoint.
#[track_caller]
pub fn balanced(checkpoint: &Checkpoint) {
    let t = &checkpoint.totals;
    assert_eq!(t.read, t.delivered + t.filtered + t.rejected + t.lost, "{t:?}");
}

pub const SLOT: i64 = 15_000;

/// A slot near now, so that nothing is too old.
pub fn slot(k: i64) -> i64 {
    relay::backoff::now_ms() / SLOT * SLOT + k * SLOT
}
