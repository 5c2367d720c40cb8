//! Replays: a past range once more to one relay's sink, beside the live path.
//!
//! *In*: a relay's configuration and a range of nominal slots. *Out*: the same samples through the same filters and encoder, under
//! idempotency keys of the replay's own. *Bound*: an own reader, an own rate limit. *When full*: waits for the sink; its place in the stream is
//! held by a registration in `STRATA_STATE`. The live relay's position does not move.

mod nowhere;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bundled_nats::port::{Error as PortError, State, Streams};
use bytes::Bytes;
use config::{Component, OptionsError, Relay};
use prometheus::Registry;
use sample::KEY_FRAME_PERIOD;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, info_span, warn};

use crate::Options;
use crate::backoff::{nonce, now_ms};
use crate::book::Book;
use crate::checkpoint::{Checkpoint, Totals};
use crate::control::Control;
use crate::dead::{Dead, Role};
use crate::deliver::{self, Deliver, Lanes};
use crate::filter::{self, Selector};
use crate::pipeline::{self, Pipeline};
use crate::read::Reader;
use crate::run::{Components, config_hash, feed};
use crate::step::STEPS_MAX;
use crate::telemetry::{Gauges, Metrics, Shared};

use nowhere::Nowhere;

/// Why samples are filtered that were not asked for.
const UNSELECTED: &str = "unselected";

/// Prefix of the keys under which running replays hold space.
pub const KEY_PREFIX: &str = "replay.";

/// How long a replay that says nothing still holds space, ms.
const ALIVE_MS: i64 = 120_000;

/// Time between two registrations of the position.
const REGISTER_INTERVAL: Duration = Duration::from_secs(10);

/// How far before the range reading begins, beyond a key period: clocks of collectors and server may differ.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// A running replay, as `STRATA_STATE` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The lowest sequence it needs.
    pub position: u64,
    /// When it last said so, ms.
    pub at_ms: i64,
}

impl Registration {
    /// Whether it was heard of lately.
    pub fn is_alive(&self, now_ms: i64) -> bool {
        now_ms.saturating_sub(self.at_ms) < ALIVE_MS
    }
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Request {
    /// The relay whose filters, encoder and sink are used.
    pub relay: Relay,
    /// First nominal slot, ms.
    pub from_ms: i64,
    /// Last nominal slot, ms, inclusive.
    pub to_ms: i64,
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// First sequence that was read.
    pub begin: u64,
    /// Sequence of the last message that is done with.
    pub position: u64,
    /// Last sequence that will be read: the head when it began.
    pub end: u64,
    /// Lowest slot of the first message; above the wanted one: the range's beginning is no longer in the stream.
    pub oldest_ms: Option<i64>,
    /// What became of the samples so far.
    pub totals: Totals,
}

/// Why a replay did not begin, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The range ends before it begins.
    #[error("cannot replay from {from_ms} to {to_ms}: the end is before the beginning")]
    Range {
        /// First slot.
        from_ms: i64,
        /// Last slot.
        to_ms: i64,
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
    /// Delivery failed.
    #[error(transparent)]
    Deliver(#[from] deliver::Error),
    /// It was stopped before its end.
    #[error("stopped before the end")]
    Stopped,
}

/// Samples by job.
type Jobs = Arc<Mutex<BTreeMap<String, u64>>>;

/// A running replay.
pub struct Replay {
    /// Its name: the producer in its idempotency keys.
    pub id: String,
    progress: watch::Receiver<Progress>,
    shared: Arc<Shared>,
    jobs: Jobs,
    task: JoinHandle<Result<(), Error>>,
    stop: CancellationToken,
}

impl Replay {
    /// Registers the replay and starts it. Cancelling `token` ends it early.
    ///
    /// *Errors*: the range is empty, the sink adds up and `again` is not given, options, or the streams do not answer.
    pub async fn start(request: Request, streams: Streams, options: &Options, token: &CancellationToken) -> Result<Self, Error> {
        let Request { relay, from_ms, to_ms, .. } = &request;
        if from_ms > to_ms {
            return Err(Error::Range { from_ms: *from_ms, to_ms: *to_ms });
        }
        let name = relay.name.clone();
        let refused = |source| Error::Options { relay: name.clone(), source };
        let mut components = (options.build)(relay).map_err(refused)?;
        if components.encoder.wants_deltas() && !request.again && !request.dry_run {
            return Err(Error::AddsUp { relay: name });
        }
        if let Some(selector) = &request.selector {
            let keep = Component { name: "keep".to_owned(), options: selector.as_str().into() };
            components.filters.insert(0, (UNSELECTED.into(), filter::build(&keep).map_err(refused)?));
        }
        if request.dry_run {
            components.sink = Box::new(Nowhere(components.sink));
        }
        let id = format!("replay-{:012x}", nonce() >> 16);
        let warm = from_ms.saturating_sub((KEY_FRAME_PERIOD + CLOCK_SLACK).as_millis() as i64);
        let begin = streams.raw.seq_at(warm).await?;
        let end = streams.raw.info().await?.last_seq;
        let register = Register { state: streams.state.clone(), key: format!("{KEY_PREFIX}{name}.{id}") };
        register.put(begin).await?;
        // Only now is the beginning safe from the trim.
        let oldest_ms = streams
            .raw
            .get(begin)
            .await?
            .and_then(|message| sample::Envelope::parse(|header| message.headers.get(header)).ok().map(|envelope| envelope.first_ms));
        let first = Progress { begin, position: begin.saturating_sub(1), end, oldest_ms, totals: Totals::default() };
        let (report, progress) = watch::channel(first);
        let (stop, shared, jobs) = (token.child_token(), Arc::new(Shared::default()), Jobs::default());
        info!(relay = name, id, begin, end, "replay begins");
        let external_labels = options.external_labels.clone();
        let count = request.dry_run.then(|| by_job(jobs.clone()));
        let work = Work { request, components, streams, external_labels, id: id.clone(), begin, end, count };
        // Lines of delivery name the relay: the span tells them from the live relay's.
        let span = info_span!("replay", id);
        let task = tokio::spawn(work.run(register, report, shared.clone(), stop.clone()).instrument(span));
        Ok(Self { id, progress, shared, jobs, task, stop })
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
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for its end.
    pub async fn finish(mut self) -> Result<Progress, Error> {
        match (&mut self.task).await {
            Ok(ended) => ended?,
            Err(_) => return Err(Error::Stopped),
        }
        Ok(self.progress.borrow().clone())
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.stop.cancel();
    }
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

struct Register {
    state: Arc<dyn State>,
    key: String,
}

impl Register {
    async fn put(&self, position: u64) -> Result<(), PortError> {
        let registration = Registration { position, at_ms: now_ms() };
        let value = Bytes::from(serde_json::to_vec(&registration).unwrap_or_default());
        let revision = self.state.get(&self.key).await?.map_or(0, |entry| entry.revision);
        self.state.put(&self.key, value, revision).await.map(|_| ())
    }
}

struct Work {
    request: Request,
    components: Components,
    streams: Streams,
    external_labels: Vec<(String, String)>,
    id: String,
    begin: u64,
    end: u64,
    count: Option<deliver::Count>,
}

impl Work {
    async fn run(
        self,
        register: Register,
        report: watch::Sender<Progress>,
        shared: Arc<Shared>,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let progress = report.subscribe();
        let end = self.end;
        let result = {
            let work = self.replay(report, shared, stop.clone());
            tokio::pin!(work);
            loop {
                tokio::select! {
                    result = &mut work => break result,
                    () = tokio::time::sleep(REGISTER_INTERVAL) => {
                        let position = progress.borrow().position;
                        if let Err(error) = register.put(position + 1).await {
                            warn!(%error, "cannot register the replay's position");
                        }
                    }
                }
            }
        };
        if let Err(error) = register.state.delete(&register.key).await {
            warn!(%error, "cannot remove the replay's registration: it holds space for two minutes more");
        }
        result?;
        if stop.is_cancelled() && progress.borrow().position < end { Err(Error::Stopped) } else { Ok(()) }
    }

    async fn replay(self, report: watch::Sender<Progress>, shared: Arc<Shared>, stop: CancellationToken) -> Result<(), Error> {
        let Self { request, components, streams, external_labels, id, begin, end, count } = self;
        if begin > end {
            return Ok(());
        }
        let relay = &request.relay;
        let control = Arc::new(Control::default());
        let config = config_hash(relay, &external_labels);
        // Metrics of its own that nobody scrapes: the live ones do not move.
        let metrics = Metrics::register(&Registry::new())
            .map_err(|error| PortError::Unavailable { operation: "count", reason: error.to_string() })?;
        let gauges = Gauges { shared, metrics: metrics.relay(&relay.name, []) };
        let checkpoint = Checkpoint { owner: id.clone(), config: config.clone(), ..Checkpoint::at(begin.saturating_sub(1), begin) };
        let reader = Reader::new(streams.raw.clone(), &relay.name, &checkpoint);
        let lanes = Lanes::of(components.sink);
        let parts = pipeline::Parts {
            filters: components.filters,
            encoder: components.encoder,
            limits: lanes.limits(),
            templates: lanes.templates(),
            from: relay.from.clone(),
            external_labels,
            config,
            warm_from: begin,
            position: 0,
            layouts: Arc::default(),
            batch_time: relay.batch_time.duration(),
            replay: Some((id, request.from_ms, request.to_ms)),
        };
        let pipeline = Pipeline::new(parts, control.clone());
        let dead = Dead::beside(streams.dead.clone(), streams.ledger.clone(), &relay.name, Role::Replay, stop.clone());
        let (book, _) = Book::open(streams.ledger.clone(), &relay.name, u64::MAX, stop.clone()).await?;
        let deliver = Deliver::new(deliver::Parts {
            lanes,
            dead,
            book,
            store: None,
            count,
            checkpoint,
            control: control.clone(),
            gauges,
            trim: Arc::new(Notify::new()),
            stop: stop.clone(),
            rate: request.rate,
            progress: Some(report),
        });
        let (steps, received) = mpsc::channel(STEPS_MAX);
        let ((), delivered) = tokio::join!(feed(reader, pipeline, steps, &control, &stop, Some(end)), deliver.run(received));
        Ok(delivered?)
    }
}
