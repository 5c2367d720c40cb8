//! Replays: a past range once more to one relay's sink, beside the live path.
//!
//! *In*: a relay's configuration and a range of nominal slots or sequences. *Out*: the same samples through the same filters and encoder, under
//! idempotency keys of the replay's own. *Bound*: an own reader, an own rate limit. *When full*: waits for the sink; its place in the stream is
//! held by its [`Registration`]. The live relay's position does not move.
//!
//! A replay lives as a relay does: its position is written after the sink's answer, and who goes on with it after a crash begins there, reads
//! silently what it needs to know, and sends what it cannot know to be delivered again under the same keys.

mod nowhere;
mod range;
pub(crate) mod register;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use bundled_nats::port::{Error as PortError, Streams};
use config::{Component, OptionsError, Relay};
use futures::FutureExt as _;
use prometheus::Registry;
use sample::Envelope;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument as _, error, info, info_span, warn};

use crate::Options;
use crate::backoff::{Backoff, nonce, now_ms};
use crate::checkpoint::{self, Totals};
use crate::control::Control;
use crate::dead::Dead;
use crate::deliver::{self, Deliver};
use crate::filter::{self, Selector};
use crate::pipeline::{self, Pipeline};
use crate::read::Reader;
use crate::run::{Components, config_hash, feed};
use crate::sink::Opening;
use crate::step::STEPS_MAX;
use crate::telemetry::{Gauges, Metrics, Shared};

use nowhere::Nowhere;
use range::Span;

pub use range::Bound;
pub use register::{Ended, KEY_PREFIX, Outcome, Registration, Track};

/// Why samples are filtered that were not asked for.
const UNSELECTED: &str = "unselected";

/// What is wanted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// The relay whose filters, encoder and sink are used.
    pub relay: String,
    /// Where the range begins.
    pub from: Bound,
    /// Where it ends.
    pub to: Bound,
    /// Samples per second; none: as fast as the sink takes them.
    pub rate: Option<u64>,
    /// Whether a sink that adds up may be given what it was given before.
    pub again: bool,
    /// Only series that it takes, by name and labels before the relay's filters; none: all.
    pub selector: Option<Selector>,
    /// Whether nothing is sent, only counted.
    pub dry_run: bool,
}

/// How far a replay is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// First sequence that was read.
    pub begin: u64,
    /// Sequence of the last message that is done with.
    pub position: u64,
    /// Last sequence that will be read: the head when it was asked for, or where the range ends.
    pub end: u64,
    /// Lowest slot of the first message of a range of slots; above the wanted one: the range's beginning is no longer in the stream.
    pub oldest_ms: Option<i64>,
    /// What became of the samples so far.
    pub totals: Totals,
    /// Messages that were gone before they were read.
    pub gone: u64,
    /// Samples of them that may have been sent before, by a life of the replay that was killed: an upper estimate.
    pub repeated: u64,
}

/// Why a replay did not begin, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The range ends before it begins.
    #[error("cannot replay from {from} to {to}: the end is before the beginning")]
    Range {
        /// Where it begins.
        from: Bound,
        /// Where it ends.
        to: Bound,
    },
    /// A sequence of the range was trimmed: ask for a later one.
    #[error("cannot replay {which} sequence {seq}: it is gone, the stream begins at sequence {first}")]
    Gone {
        /// Which end: `from`, `to`.
        which: &'static str,
        /// The sequence.
        seq: u64,
        /// The first that is there.
        first: u64,
    },
    /// A sequence of the range is not there yet: ask for an earlier one.
    #[error("cannot replay {which} sequence {seq}: the stream ends at sequence {last}")]
    Beyond {
        /// Which end: `from`, `to`.
        which: &'static str,
        /// The sequence.
        seq: u64,
        /// The last that is there.
        last: u64,
    },
    /// The stream was full, and lost what the replay had not read yet; the rest was sent.
    #[error("{messages} messages of the range were gone before they were read: the stream was too full to hold them")]
    Trimmed {
        /// How many.
        messages: u64,
    },
    /// The sink adds up what it is given; say so to do it all the same.
    #[error(
        "the sink of relay '{relay}' adds up what it is given: samples that were delivered before would count twice; allow it with --again"
    )]
    AddsUp {
        /// The relay.
        relay: String,
    },
    /// The relay's components refuse their options.
    #[error("cannot build relay '{relay}': {source}")]
    Options {
        /// The relay.
        relay: String,
        /// Why.
        #[source]
        source: OptionsError,
    },
    /// The streams did not answer.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Its registration is another life's.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// Delivery failed.
    #[error(transparent)]
    Deliver(#[from] deliver::Error),
    /// A panic.
    #[error("a defect of Strata stopped the replay, the log has it; please report it")]
    Defect,
    /// It was stopped before its end.
    #[error("stopped before the end")]
    Stopped,
}

/// Samples by job.
type Jobs = Arc<Mutex<BTreeMap<String, u64>>>;

/// A running replay. Dropping it is a kill: who goes on with it begins at its last position.
pub struct Replay {
    /// Its name: the producer in its idempotency keys.
    pub id: String,
    /// What was asked for.
    pub request: Request,
    /// When, ms.
    pub asked_ms: i64,
    progress: watch::Receiver<Progress>,
    shared: Arc<Shared>,
    jobs: Jobs,
    task: AbortOnDropHandle<Result<(), Error>>,
    cancel: CancellationToken,
}

impl Replay {
    /// Registers the replay and starts it. `token`: stops this life of it; the next one goes on.
    ///
    /// *Errors*: the range is empty or not in the stream, the sink adds up and `again` is not given, options, or the streams do not answer.
    pub async fn start(
        relay: &Relay,
        request: Request,
        streams: &Streams,
        options: &Options,
        token: &CancellationToken,
    ) -> Result<Self, Error> {
        let Span { begin, end, warm_from } = Span::find(&streams.raw, request.from, request.to).await?;
        let components = components(relay, &request, options)?;
        if components.encoder.wants_deltas() && !request.again && !request.dry_run {
            return Err(Error::AddsUp { relay: relay.name.clone() });
        }
        let id = format!("replay-{:012x}", nonce() >> 16);
        let registration = Registration::new(request, now_ms(), begin, end, warm_from);
        register::register(&*streams.state, &register::name(&relay.name, &id), &registration).await?;
        info!(relay = relay.name, id, begin, end, "replay begins");
        Ok(Self::live(relay, id, registration, components, streams, options, token))
    }

    /// Goes on with one that is registered.
    ///
    /// *Errors*: options.
    pub(crate) fn go_on(
        relay: &Relay,
        id: &str,
        registration: Registration,
        streams: &Streams,
        options: &Options,
        token: &CancellationToken,
    ) -> Result<Self, Error> {
        let components = components(relay, &registration.request, options)?;
        let Progress { position, end, .. } = registration.progress;
        info!(relay = relay.name, id, position, end, "replay goes on");
        Ok(Self::live(relay, id.to_owned(), registration, components, streams, options, token))
    }

    fn live(
        relay: &Relay,
        id: String,
        registration: Registration,
        components: Components,
        streams: &Streams,
        options: &Options,
        token: &CancellationToken,
    ) -> Self {
        let Registration { request, asked_ms, progress, .. } = registration;
        let (report, progress) = watch::channel(progress);
        let (shared, jobs) = (Arc::new(Shared::default()), Jobs::default());
        let (stop, cancel) = (token.clone(), token.child_token());
        let work = Work {
            relay: relay.clone(),
            request: request.clone(),
            streams: streams.clone(),
            external_labels: options.external_labels.clone(),
            id: id.clone(),
            asked_ms,
            progress: progress.clone(),
            jobs: jobs.clone(),
            stop,
            cancel: cancel.clone(),
        };
        // Lines of delivery name the relay: the span tells them from the live relay's.
        let span = info_span!("replay", id);
        let task = AbortOnDropHandle::new(tokio::spawn(work.run(components, report, shared.clone()).instrument(span)));
        Self { id, request, asked_ms, progress, shared, jobs, task, cancel }
    }

    /// How far it is; changes with every message.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// What its sink says, while it takes nothing.
    pub fn last_error(&self) -> Option<String> {
        self.shared.live().last_error.clone()
    }

    /// Samples that a dry run would have sent so far, by job.
    pub fn by_job(&self) -> BTreeMap<String, u64> {
        taken(&self.jobs)
    }

    /// Ends it for good, once it is cancelled.
    pub fn cancel(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Waits for its end, which lasts then.
    ///
    /// *Errors*: it came to no end: `Stopped` where this life of it was ended, or it was cancelled.
    pub async fn finish(self) -> Result<Progress, Error> {
        match self.task.await {
            Ok(ended) => ended?,
            Err(_) => return Err(Error::Stopped),
        }
        Ok(self.progress.borrow().clone())
    }
}

/// What a relay's replay is delivered with.
fn components(relay: &Relay, request: &Request, options: &Options) -> Result<Components, Error> {
    let refused = |source| Error::Options { relay: relay.name.clone(), source };
    let mut components = (options.build)(relay).map_err(refused)?;
    if let Some(selector) = &request.selector {
        let keep = Component { name: "keep".to_owned(), options: selector.as_str().into() };
        components.filters.insert(0, (UNSELECTED.into(), filter::build(&keep).map_err(refused)?));
    }
    if request.dry_run {
        components.sink = Box::new(Nowhere(components.sink));
    }
    Ok(components)
}

fn taken(jobs: &Jobs) -> BTreeMap<String, u64> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Counts what would be sent: what no filter dropped.
fn by_job(jobs: Jobs) -> deliver::Count {
    Box::new(move |marks, _| {
        let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
        for line in marks.iter().flat_map(|mark| &mark.lines) {
            let filtered: u64 = line.filtered.iter().map(|(_, n)| n).sum();
            let job = line.origin.attribute("job").unwrap_or_default();
            *jobs.entry(job.to_owned()).or_default() += line.read.saturating_sub(filtered);
        }
    })
}

/// One life of a replay.
struct Work {
    relay: Relay,
    request: Request,
    streams: Streams,
    external_labels: Vec<(String, String)>,
    id: String,
    asked_ms: i64,
    progress: watch::Receiver<Progress>,
    jobs: Jobs,
    /// Ends this life.
    stop: CancellationToken,
    /// Ends the replay.
    cancel: CancellationToken,
}

/// What a life begins with.
struct Opened {
    track: Track,
    checkpoint: checkpoint::Checkpoint,
    dead: Dead,
}

impl Work {
    async fn run(self, components: Components, report: watch::Sender<Progress>, shared: Arc<Shared>) -> Result<(), Error> {
        let lived = AssertUnwindSafe(self.replay(components, report, shared)).catch_unwind().await;
        let result = lived.unwrap_or_else(|_| {
            error!(relay = self.relay.name, "a defect of Strata stopped a replay; please report it");
            Err(Error::Defect)
        });
        let (outcome, error) = match &result {
            Ok(()) => (Outcome::Done, None),
            Err(Error::Stopped) if !self.stop.is_cancelled() => (Outcome::Stopped, None),
            // Another life of it goes on, or does so already.
            Err(Error::Stopped | Error::Checkpoint(_) | Error::Deliver(deliver::Error::Checkpoint(_) | deliver::Error::Fenced { .. })) => {
                return result;
            }
            Err(error) => (Outcome::Failed, Some(error.to_string())),
        };
        let ended = Ended {
            request: self.request.clone(),
            asked_ms: self.asked_ms,
            ended_ms: now_ms(),
            outcome,
            error,
            progress: self.progress.borrow().clone(),
            jobs: taken(&self.jobs),
        };
        let (mut backoff, mut told) = (Backoff::default(), false);
        while let Err(error) = register::end(&*self.streams.state, &self.name(), &ended).await {
            if !std::mem::replace(&mut told, true) {
                warn!(relay = self.relay.name, %error, "cannot store the end of a replay, trying again without end");
            }
            if self.stop.run_until_cancelled(tokio::time::sleep(backoff.wait())).await.is_none() {
                return Err(Error::Stopped);
            }
        }
        info!(relay = self.relay.name, ?outcome, error = ended.error, "replay ended");
        result
    }

    fn name(&self) -> String {
        register::name(&self.relay.name, &self.id)
    }

    async fn replay(&self, components: Components, report: watch::Sender<Progress>, shared: Arc<Shared>) -> Result<(), Error> {
        let config = config_hash(&self.relay, &self.external_labels);
        let Opened { track, checkpoint, dead } = self.patiently(&config, report).await?;
        let Progress { position, end, .. } = *self.progress.borrow();
        if position >= end {
            return self.complete();
        }
        let control = Arc::new(Control::default());
        // Metrics of its own that nobody scrapes: the live ones do not move.
        let metrics = Metrics::register(&Registry::new())
            .map_err(|error| PortError::Unavailable { operation: "count", reason: error.to_string() })?;
        let gauges = Gauges { shared, metrics: metrics.relay(&self.relay.name, []) };
        let reader = Reader::new(self.streams.raw.clone(), &self.relay.name, &checkpoint);
        let (mut lanes, parts) = components.apart(&self.relay, &self.external_labels, &checkpoint);
        let opening = Opening { log: &self.streams.raw, beside: Some(&self.id) };
        if self.cancel.run_until_cancelled(lanes.open(opening)).await.is_none() {
            return Err(Error::Stopped);
        }
        let (from_ms, to_ms) = range::slots(self.request.from, self.request.to);
        let parts = pipeline::Parts { config, replay: Some((self.id.clone(), from_ms, to_ms)), ..parts };
        let pipeline = Pipeline::new(parts, control.clone());
        let deliver = Deliver::new(deliver::Parts {
            lanes,
            dead,
            seat: None,
            count: self.request.dry_run.then(|| by_job(self.jobs.clone())),
            checkpoint,
            control: control.clone(),
            gauges: gauges.clone(),
            trim: Arc::new(Notify::new()),
            stop: self.cancel.clone(),
            rate: self.request.rate,
            track: Some(track),
            turn: None,
        });
        let (steps, received) = mpsc::channel(STEPS_MAX);
        let reading = feed(reader, pipeline, steps, &control, Some(&gauges), &self.cancel, Some(end));
        let ((), delivered) = tokio::join!(reading, deliver.run(received));
        delivered?;
        if self.cancel.is_cancelled() && self.progress.borrow().position < end { Err(Error::Stopped) } else { self.complete() }
    }

    /// There is nothing more to read. *Errors*: something of the range was gone.
    fn complete(&self) -> Result<(), Error> {
        let Progress { position, end, gone, .. } = *self.progress.borrow();
        match gone + end.saturating_sub(position) {
            0 => Ok(()),
            messages => Err(Error::Trimmed { messages }),
        }
    }

    /// Opens everything that a life needs, as long as it takes.
    async fn patiently(&self, config: &str, report: watch::Sender<Progress>) -> Result<Opened, Error> {
        let (mut backoff, mut told) = (Backoff::default(), false);
        loop {
            let error = match self.open(config, &report).await {
                Err(error @ (Error::Port(_) | Error::Checkpoint(checkpoint::Error::Unavailable { .. }))) => error,
                opened => return opened,
            };
            if !std::mem::replace(&mut told, true) {
                warn!(relay = self.relay.name, %error, "cannot begin a replay yet, trying again without end");
            }
            if self.cancel.run_until_cancelled(tokio::time::sleep(backoff.wait())).await.is_none() {
                return Err(Error::Stopped);
            }
        }
    }

    async fn open(&self, config: &str, report: &watch::Sender<Progress>) -> Result<Opened, Error> {
        let Streams { raw, dead, ledger, state } = &self.streams;
        let owner = format!("{:016x}", nonce());
        let taken = register::take(state.clone(), &self.name(), &owner, config.to_owned()).await?;
        // Ended by another life of it.
        let Some((store, mut registration)) = taken else { return Err(Error::Stopped) };
        let Progress { begin, position, end, .. } = registration.progress;
        if position < begin && begin <= end {
            // Only now is the beginning safe from the trim, which may have been faster.
            let mut message = raw.get(begin).await?;
            if message.is_none() {
                let first = raw.info().await?.first_seq;
                if let Bound::Seq(seq) = self.request.from {
                    return Err(Error::Gone { which: "from", seq, first });
                }
                registration.begin_with(first);
                message = raw.get(first).await?;
            }
            if let (Some(message), Bound::Slot(_)) = (message, self.request.from) {
                let envelope = Envelope::parse(|header| message.headers.get(header)).ok();
                registration.progress.oldest_ms = envelope.map(|envelope| envelope.first_ms);
            }
        }
        let checkpoint = registration.checkpoint.clone();
        let parked =
            Dead::open(dead.clone(), ledger.clone(), (&self.relay.name, Some(&self.id)), checkpoint.seq, self.cancel.clone()).await?;
        Ok(Opened { track: Track::kept(report.clone(), store, registration), checkpoint, dead: parked })
    }
}
