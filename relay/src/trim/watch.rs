//! The watch: how far each relay is behind, and how far the stream had come.
//!
//! *In*: the newest message of each known producer. *Out*: pending samples and lag per relay; [`Reached`]. *Bound*: one look per second, one request per
//! producer and partition, and a search of at most [`GETS_MAX`] messages per life of a producer that is new to it. *When full*: does not
//! apply; while the stream is away the old numbers stay, and the lag grows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bundled_nats::port::{Error, Info, Log, Streams};
use sample::Envelope;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Plan, Subject};
use crate::backoff::now_ms;
use crate::checkpoint::Positions;
use crate::lasting::Lasting;
use crate::reached::Reached;
use crate::telemetry::{Behind, Live};

/// Time between two looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two writes of how far the stream had come. Larger: less is known of what a damaged store loses after a kill; smaller: more fsyncs.
const KEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long the last look at a stop may take: it is worth no more where the server is away.
const LAST_LOOK_MAX: Duration = Duration::from_secs(1);

/// Lives of a producer that are told apart. Larger: more searching at the start; smaller: what a relay lags behind in older ones is not counted.
const EPOCHS_MAX: usize = 64;

/// Messages looked at to find where one life ends. Larger: a longer look where many producers share a stream; smaller: see [`EPOCHS_MAX`].
const GETS_MAX: usize = 4096;

/// How far each producer's chain goes: cumulative samples by epoch, by subject.
#[derive(Default)]
struct Heads {
    last_seq: u64,
    /// When the last message was stored, ms.
    last_ms: Option<i64>,
    heads: HashMap<String, BTreeMap<u64, u64>>,
    /// The newest messages at the last look, and when they were stored: noted one look later, when a relay in step has written that it delivered them.
    fresh: Vec<(Envelope, i64)>,
}

/// Keeps pending samples and lag up to date.
pub struct Watch {
    streams: Streams,
    planned: watch::Receiver<Plan>,
    seen: watch::Sender<Option<Info>>,
    reached: Reached,
    heads: Heads,
}

impl Watch {
    /// `streams`: where relays read; `seen`: what the stream last said of itself; `reached`: where it is noted how far that had come.
    pub(crate) fn new(streams: Streams, planned: watch::Receiver<Plan>, seen: watch::Sender<Option<Info>>, reached: Reached) -> Self {
        Self { streams, planned, seen, reached, heads: Heads::default() }
    }

    /// Looks, and shows what relays have not delivered.
    async fn look(&mut self) {
        let Plan { subjects, .. } = self.planned.borrow().clone();
        // Unreachable: the old heads, and lag by the clock.
        let reachable = self.heads.look(&self.streams, &subjects, &self.seen).await.is_ok();
        for subject in subjects.iter() {
            self.heads.show(subject, reachable);
        }
    }

    async fn keep(&self) {
        if let Err(error) = self.reached.store(&*self.streams.state).await {
            debug!(%error, "how far the stream had come is kept in memory for now");
        }
    }
}

#[async_trait]
impl Lasting for Watch {
    const NAME: &'static str = "watch";

    async fn run(&mut self, stop: &CancellationToken) {
        let mut kept = Instant::now();
        loop {
            self.heads.note(&self.reached);
            self.look().await;
            if kept.elapsed() >= KEEP_INTERVAL {
                self.keep().await;
                kept = Instant::now();
            }
            if stop.run_until_cancelled(tokio::time::sleep(WATCH_INTERVAL)).await.is_none() {
                break;
            }
        }
        let last = async {
            self.look().await;
            self.heads.note(&self.reached);
            self.keep().await;
        };
        if timeout(LAST_LOOK_MAX, last).await.is_err() {
            debug!("how far the stream had come in the end could not be kept");
        }
    }
}

impl Heads {
    /// Notes what was there at the last look.
    fn note(&mut self, reached: &Reached) {
        self.fresh.drain(..).for_each(|(envelope, at_ms)| reached.note(&envelope, at_ms));
    }

    async fn look(&mut self, streams: &Streams, subjects: &[Subject], seen: &watch::Sender<Option<Info>>) -> Result<(), Error> {
        let info = streams.raw.info().await?;
        seen.send_replace(Some(info));
        let last_seq = info.last_seq;
        if last_seq == self.last_seq {
            return Ok(());
        }
        let mut names: Vec<String> = Vec::new();
        for subject in subjects {
            names.extend(subject.gauges.shared.live().positions.iter().map(|mark| mark.subject.clone()));
        }
        // The newest message of all may be of a producer that no relay has met.
        let newest = streams.raw.get(last_seq).await?;
        names.extend(newest.iter().map(|message| message.subject.clone()));
        names.sort_unstable();
        names.dedup();
        for name in names {
            let message = match &newest {
                Some(newest) if newest.subject == name => Some(newest.clone()),
                _ => streams.raw.last(&name).await?,
            };
            if let Some(message) = message
                && let Ok(envelope) = Envelope::parse(|header| message.headers.get(header))
            {
                let epochs = self.heads.entry(name.clone()).or_default();
                if !epochs.contains_key(&envelope.epoch) {
                    // The totals begin anew with each life: how far those before it came is looked up once.
                    let mut before = (envelope.epoch, message.seq);
                    for _ in 0..EPOCHS_MAX {
                        let Some((epoch, total, seq)) = end_before(&streams.raw, &name, before, info.first_seq).await? else { break };
                        if epochs.insert(epoch, total).is_some() {
                            break;
                        }
                        before = (epoch, seq);
                    }
                }
                epochs.insert(envelope.epoch, envelope.samples_total);
                self.fresh.push((envelope.clone(), message.time_ms));
                // Newer ones were rolled back.
                epochs.retain(|epoch, _| *epoch <= envelope.epoch);
                while epochs.len() > EPOCHS_MAX {
                    epochs.pop_first();
                }
            }
        }
        self.last_seq = last_seq;
        self.last_ms = newest.map(|message| message.time_ms);
        Ok(())
    }

    fn show(&self, subject: &Subject, reachable: bool) {
        let mut live = subject.gauges.shared.live();
        live.stream_ms = self.last_ms;
        let behind = live.behind.clone().map_or(0, |Behind { shared, end, until }| {
            let mut there = shared.live();
            self.look_at(&mut there, Some(&until), end, reachable);
            there.pending
        });
        self.look_at(&mut live, None, self.last_seq, reachable);
        let (lag, pending) = live.undelivered();
        let metrics = &subject.gauges.metrics;
        metrics.behind.set(i64::try_from(behind).unwrap_or(i64::MAX));
        metrics.pending.set(i64::try_from(pending).unwrap_or(i64::MAX));
        metrics.lag.set(lag);
    }

    /// Says how far a position is behind `end`. `until`: where each producer's part of a backlog ends.
    fn look_at(&self, live: &mut Live, until: Option<&Positions>, end: u64, reachable: bool) {
        let mut pending = 0;
        for (name, epochs) in &self.heads {
            let at = live.positions.of(name);
            let until = until.map(|until| until.of(name));
            let after = |(epoch, total): (&u64, &u64)| {
                let total = match &until {
                    None => *total,
                    Some(Some(mark)) if mark.epoch == *epoch => mark.samples.min(*total),
                    Some(Some(mark)) if mark.epoch > *epoch => *total,
                    Some(_) => 0,
                };
                match &at {
                    Some(mark) if mark.epoch == *epoch => total.saturating_sub(mark.samples),
                    Some(mark) if mark.epoch > *epoch => 0,
                    _ => total,
                }
            };
            pending += epochs.iter().map(after).sum::<u64>();
        }
        let behind = live.position < end;
        let since = live.oldest_ms.or_else(|| live.newest_ms.filter(|_| behind || !reachable));
        live.lag_seconds = since.map_or(0.0, |at| (now_ms().saturating_sub(at).max(0)) as f64 / 1000.0);
        live.pending = if behind { pending } else { 0 };
    }
}

/// The last message of a subject before a life of its producer: epoch, samples in it, sequence; none: nothing of it is in the stream.
/// `life`: the epoch, and a sequence that has a message of it.
async fn end_before(raw: &Arc<dyn Log>, subject: &str, life: (u64, u64), first: u64) -> Result<Option<(u64, u64, u64)>, Error> {
    let (mut low, mut high, mut found, mut gets) = (first, life.1, None, 0);
    while low < high {
        let middle = low + (high - low) / 2;
        let mut at = middle;
        // The newest message of the subject at or below the middle.
        let here = loop {
            gets += 1;
            if gets > GETS_MAX {
                return Ok(None);
            }
            let message = raw.get(at).await?.filter(|message| message.subject == subject);
            match message.and_then(|message| Envelope::parse(|header| message.headers.get(header)).ok()) {
                Some(envelope) => break Some(envelope),
                None if at == low => break None,
                None => at -= 1,
            }
        };
        match here {
            Some(envelope) if envelope.epoch >= life.0 => high = at,
            older => {
                found = older.map(|envelope| (envelope.epoch, envelope.samples_total, at)).or(found);
                low = middle + 1;
            }
        }
    }
    Ok(found)
}
