//! One relay's life: its checkpoint, then a reading and a delivering task until it is asked to stop.
//!
//! *In*: a configuration and the streams. *Out*: delivered samples. *Bound*: the reader's bytes in flight and a few batches.
//! *When full*: see [`crate::read`] and [`crate::deliver`].

mod first;
mod live;

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bundled_nats::feed::Feeds;
use bundled_nats::port::{Error as PortError, Streams};
use config::{OptionsError, OutOfOrder, Relay};
use futures::FutureExt as _;
use sample::Interner;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use xxhash_rust::xxh3::xxh3_64;

use crate::backoff::now_ms;
use crate::chain::FILTERS_MAX;
use crate::checkpoint::{self, Checkpoint};
use crate::control::Control;
use crate::deliver::{self, HELD_RETRY, Lanes};
use crate::encode::{self, Encode};
use crate::filter::{self, Filter};
use crate::lease::{self, Standing, Term};
use crate::newer;
use crate::pipeline::{self, Pipeline};
use crate::reached::Reached;
use crate::read::{Incoming, Reader};
use crate::sink::{self, Answer, Batch, Files, Limits, Place, Sink};
use crate::step::Step;
use crate::takes::Takes;
use crate::telemetry::{Activity, Gauges};

/// How often it is asked whether a window that is over is read whole. Larger: it ends later; smaller: a reader that lags asks more.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How often a relay that stands by looks how far it is. Larger: its lag is shown later; smaller: more requests.
const FOLLOW: Duration = Duration::from_secs(1);

/// What a relay delivers with.
pub struct Components {
    /// Filters with their names, in order.
    pub filters: Vec<(Arc<str>, Box<dyn Filter>)>,
    /// The encoder.
    pub encoder: Arc<dyn Encode>,
    /// The sink.
    pub sink: Box<dyn Sink>,
}

impl Components {
    /// The lanes of its sink, and what every pipeline of the relay has that begins at a position.
    pub(crate) fn apart(self, relay: &Relay, external_labels: &[(String, String)], at: &Checkpoint) -> (Lanes, pipeline::Parts) {
        let lanes = Lanes::of(self.sink);
        let parts = pipeline::Parts {
            filters: self.filters,
            encoder: self.encoder,
            limits: lanes.limits(),
            templates: lanes.templates(),
            takes: Takes::of(relay),
            external_labels: external_labels.to_vec(),
            config: at.config.clone(),
            warm_from: at.warm_from,
            // A message that is begun needs its bases once more as well.
            position: at.seq + u64::from(at.partial.is_some()),
            waiting: at.waiting.clone(),
            layouts: Arc::default(),
            batch_time: relay.batch_time.duration(),
            replay: None,
        };
        (lanes, parts)
    }
}

/// Makes the components of a relay; a seam for tests.
pub type Build = Arc<dyn Fn(&Relay) -> Result<Components, OptionsError> + Send + Sync>;

/// Makes the components that a relay's configuration names; all that one builder makes may write to the same file.
pub fn builder(feeds: Feeds) -> Build {
    let files = Files::default();
    Arc::new(move |relay| build(relay, &files, &feeds))
}

fn build(relay: &Relay, files: &Files, feeds: &Feeds) -> Result<Components, OptionsError> {
    if relay.filters.len() > FILTERS_MAX {
        return Err(OptionsError::new("filters", format!("{} filters are more than the {FILTERS_MAX} of one relay", relay.filters.len())));
    }
    let filters = relay.filters.iter().map(|f| Ok((Arc::from(f.name.as_str()), filter::build(f)?))).collect::<Result<_, OptionsError>>()?;
    if let Some(message) = relay.encode.as_ref().and_then(|encode| sink::refuses(&relay.sink.name, &encode.name)) {
        return Err(OptionsError::new("encode", message));
    }
    if let Some(OutOfOrder::Refused(message)) = sink::out_of_order(relay).filter(|_| relay.catch_up.is_fresh_first()) {
        return Err(OptionsError::new("catch_up.order", message));
    }
    let encoder = match &relay.encode {
        Some(component) => encode::build(component)?,
        None => {
            let name = sink::default_encoder(&relay.sink.name).to_owned();
            encode::build(&config::Component { name, options: serde_json::Value::Null })?
        }
    };
    let named = relay.encode.as_ref().map_or_else(|| sink::default_encoder(&relay.sink.name), |encode| encode.name.as_str());
    let place = Place { files, feeds, relay: &relay.name, encoder: named };
    Ok(Components { filters, encoder: Arc::from(encoder), sink: sink::build(&relay.sink, &place)? })
}

/// Components of a relay whose own cannot be built: it holds its place and says why, and what must be given up is still counted exactly.
fn refusing(error: &OptionsError) -> Result<Components, Error> {
    let ndjson = config::Component { name: "ndjson".to_owned(), options: serde_json::Value::Null };
    let encoder = Arc::from(encode::build(&ndjson).map_err(Error::Options)?);
    let reason = if error.path.is_empty() { error.to_string() } else { format!("{}: {error}", error.path) };
    Ok(Components { filters: Vec::new(), encoder, sink: Box::new(Refusing(format!("cannot build the relay: {reason}"))) })
}

/// A sink that takes nothing.
struct Refusing(String);

#[async_trait]
impl Sink for Refusing {
    async fn send(&mut self, _: &Batch, _: Range<usize>) -> Answer {
        Answer::Fatal { reason: self.0.clone() }
    }

    fn limits(&self) -> Limits {
        Limits { bytes_max: 1 << 20, items_max: 10_000 }
    }
}

/// Hash over what decides about the bytes of a relay's batches, and whose they are: what two relays send to one place has different keys.
pub fn config_hash(relay: &Relay, external_labels: &[(String, String)]) -> String {
    let filters: Vec<(&str, String)> = relay.filters.iter().map(|f| (f.name.as_str(), f.options.to_string())).collect();
    let encode = relay.encode.as_ref().map(|e| (e.name.as_str(), e.options.to_string()));
    let Relay { name, from, namespaces, batch_time, sink, .. } = relay;
    // Without namespaces it is the hash that it was before there were any.
    let namespaces = if namespaces.is_empty() { String::new() } else { format!("{namespaces:?}") };
    let text = format!("{name}:{from:?}{namespaces}{batch_time}{filters:?}{encode:?}{}{}{external_labels:?}", sink.name, sink.options);
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

/// What one relay is run with.
pub(crate) struct Life {
    pub relay: Relay,
    pub streams: Streams,
    pub external_labels: Vec<(String, String)>,
    pub build: Build,
    pub layouts: Arc<Interner>,
    pub control: Arc<Control>,
    /// Of its backlog, while it has one.
    pub behind: Arc<Control>,
    pub gauges: Gauges,
    pub reached: Reached,
    pub trim: Arc<Notify>,
    pub standing: watch::Receiver<Standing>,
    pub stop: CancellationToken,
}

/// Why a relay could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its components refuse their options.
    #[error("cannot build the relay: {0}")]
    Options(OptionsError),
    /// Its checkpoint is somebody else's.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// Delivery failed.
    #[error(transparent)]
    Deliver(#[from] deliver::Error),
    /// The streams did not answer.
    #[error(transparent)]
    Port(#[from] PortError),
    /// It was asked to stop before it began.
    #[error("stopped")]
    Stopped,
}

impl Error {
    /// Whether a start is tried again. One that found another's write between its look and its own has taken nothing over yet: that may have
    /// been the last word of a process that is gone.
    fn is_transient(&self) -> bool {
        matches!(self, Error::Port(_) | Error::Checkpoint(checkpoint::Error::Unavailable { .. } | checkpoint::Error::Owned { .. }))
    }
}

impl Life {
    /// Runs until the token ends it, or until it must not go on; a defect ends one life, and the next one begins at the checkpoint.
    pub async fn run(self) {
        let name = &self.relay.name;
        let shared = &self.gauges.shared;
        let far = Arc::default();
        while let Some(term) = self.turn().await {
            let own = self.stop.child_token();
            let lived = AssertUnwindSafe(lease::during(&term, &own, self.live(&own, &far))).catch_unwind().await;
            self.gauges.metrics.up.set(0);
            match lived {
                Ok(Ok(()) | Err(Error::Stopped)) if self.stop.is_cancelled() => break,
                Ok(Ok(()) | Err(Error::Stopped)) => {}
                // Its successor has begun, and the lease will say so.
                Ok(Err(Error::Deliver(deliver::Error::Checkpoint(error @ checkpoint::Error::Owned { .. })))) if term.is_shared() => {
                    warn!(relay = name, %error);
                    drop(tokio::time::timeout(HELD_RETRY, self.stop.run_until_cancelled(term.over())).await);
                }
                // The lease says whose it is; where there is none, the other is not one of ours.
                Ok(Err(Error::Deliver(error @ deliver::Error::Fenced { .. }))) => {
                    tracing::error!(relay = name, %error);
                    shared.trouble(Activity::Held, error.to_string(), now_ms() + HELD_RETRY.as_millis() as i64);
                    drop(tokio::time::timeout(HELD_RETRY, self.stop.run_until_cancelled(term.over())).await);
                }
                Ok(Err(error)) => {
                    tracing::error!(relay = name, %error, "the relay has ended");
                    shared.trouble(Activity::Failed, error.to_string(), 0);
                    // What must be given up meanwhile stops the others: then, and only then, it is tried once more.
                    let asked = async {
                        let mut known = (shared.live().passed(), 0);
                        loop {
                            if !self.holds(known) {
                                tokio::select! {
                                    () = self.control.sender.notified() => {}
                                    () = self.behind.sender.notified() => {}
                                }
                                continue;
                            }
                            tokio::time::sleep(HELD_RETRY).await;
                            // A process that took it over and lives has given up itself: to begin again would end it there.
                            let Ok(stored) = self.stored_position().await else { continue };
                            known = stored;
                            if self.holds(known) {
                                return;
                            }
                        }
                    };
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = term.over() => continue,
                        () = asked => {}
                    }
                    warn!(relay = name, "the relay has ended but holds what must go: it starts again");
                }
                Err(_) => {
                    tracing::error!(
                        relay = name,
                        "a defect of Strata stopped the relay: it starts again in {HELD_RETRY:?}; please report it"
                    );
                    shared.trouble(Activity::Held, "a defect of Strata stopped the relay, the log has it: it starts again".to_owned(), 0);
                    self.stop.run_until_cancelled(tokio::time::sleep(HELD_RETRY)).await;
                }
            }
        }
        shared.live().activity = Activity::Stopped;
        info!(relay = name, "stopped");
    }

    /// Waits until the relay is this process' own; none: it was stopped.
    async fn turn(&self) -> Option<Term> {
        let mut standing = self.standing.clone();
        let term = tokio::select! {
            biased;
            term = lease::turn(&mut standing, &self.stop) => term?,
            () = self.follow() => return None,
        };
        self.gauges.metrics.standby.set(0);
        let mut live = self.gauges.shared.live();
        live.owner = None;
        live.activity = Activity::Starting;
        drop(live);
        Some(term)
    }

    /// Shows how far the relay is where it runs, for ever.
    async fn follow(&self) {
        let mut looks = interval(FOLLOW);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let now = self.standing.borrow().clone();
            if let Standing::Standby { owner } = now {
                // What was asked of it here is another's now.
                for control in [&self.control, &self.behind] {
                    control.void();
                    control.pause(None);
                }
                self.gauges.metrics.standby.set(1);
                let seen = checkpoint::stored(&*self.streams.state, &self.relay.name).await;
                self.gauges.shared.stand_by(&owner, seen.ok().flatten());
            }
        }
    }

    /// The position that is stored, and the lowest sequence that it needs; 0: none that can be read.
    async fn stored_position(&self) -> Result<(u64, u64), PortError> {
        let checkpoint = checkpoint::stored(&*self.streams.state, &self.relay.name).await?;
        Ok(checkpoint.map_or((0, 0), |checkpoint| (checkpoint.passed(), checkpoint.floor())))
    }

    /// Whether anything above a position is to be given up, or anything below it held no more.
    fn holds(&self, (passed, floor): (u64, u64)) -> bool {
        let based_from = self.control.based_from().max(self.behind.based_from());
        self.control.skipped().max(self.behind.skipped()) > passed || floor < based_from && based_from <= passed
    }
}

/// What the reading task does next.
enum Next {
    Message(Box<Incoming>),
    /// The trim wants something forgotten.
    Release,
    /// The time of the open window is over.
    Over,
}

/// The reading task: messages through the pipeline until the token or the other end says stop, or the reader comes to its end. `gauges`: where it is shown
/// that it waits; none: it never does. `end`: the last sequence of a replay.
pub(crate) async fn feed(
    mut reader: Reader,
    mut pipeline: Pipeline,
    steps: mpsc::Sender<Step>,
    control: &Control,
    gauges: Option<&Gauges>,
    stop: &CancellationToken,
    end: Option<u64>,
) {
    let mut looked = Instant::now();
    loop {
        let warm_from = pipeline.warm_from();
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = steps.closed() => return,
            () = control.reader.notified() => Next::Release,
            incoming = reader.next(warm_from) => Next::Message(Box::new(incoming)),
            () = over(pipeline.over_ms(), looked) => Next::Over,
        };
        let done = match next {
            Next::Release => pipeline.release(&steps).await,
            Next::Over => {
                looked = Instant::now();
                // Before the stream is asked: what it stores after this has another time.
                let is_over = pipeline.over_ms().is_some_and(|over_ms| now_ms() >= over_ms);
                match stop.run_until_cancelled(reader.end()).await {
                    None => return,
                    // What was stored in its time and is not read yet belongs to it.
                    Some(Some(end)) if is_over && pipeline.has_read(end) => pipeline.end_window(&steps).await,
                    Some(_) => Ok(()),
                }
            }
            Next::Message(incoming) => {
                let seq = incoming.message.seq;
                if let Some(gauges) = gauges {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        () = steps.closed() => return,
                        () = newer::wait(&incoming, reader.relay(), control, gauges) => {}
                    }
                }
                let ended = reader.ended();
                let done = match end.is_some_and(|end| seq > end) {
                    true => Ok(()),
                    false => pipeline.message(*incoming, &steps).await,
                };
                if let Some(mark) = ended {
                    if done.is_ok() && pipeline.end_window(&steps).await.is_ok() {
                        // Nobody may be left to listen.
                        let _heard = steps.send(Step::Marks(vec![mark])).await;
                    }
                    return;
                }
                if end.is_some_and(|end| seq >= end) {
                    // Nobody may be left to listen.
                    let _heard = pipeline.end_window(&steps).await;
                    return;
                }
                done
            }
        };
        if done.is_err() {
            return;
        }
    }
}

/// Waits until a window is over, and not too often; for ever where there is none.
async fn over(over_ms: Option<i64>, looked: Instant) {
    let Some(over_ms) = over_ms else { return std::future::pending().await };
    let left = Duration::from_millis(u64::try_from(over_ms.saturating_sub(now_ms())).unwrap_or(0));
    sleep_until((looked + LOOK_AGAIN).max(Instant::now() + left)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_that_differ_in_their_names_only_have_different_keys() {
        let relay = |name: &str| -> Relay {
            serde_json::from_value(serde_json::json!({"name": name, "sink": {"http": {"url": "http://h/"}}})).expect("a relay")
        };
        assert_eq!(config_hash(&relay("a"), &[]), config_hash(&relay("a"), &[]));
        assert_ne!(config_hash(&relay("a"), &[]), config_hash(&relay("b"), &[]));
    }
}
