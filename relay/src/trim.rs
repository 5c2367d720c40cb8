//! The trim: the only thing that frees space in `STRATA_RAW`.
//!
//! *In*: every relay's durable checkpoint, running replays, the replay window. *Out*: purges of what nobody needs; requests to relays to give
//! up what their `hold` does not cover, or what a full stream has no room for. *Bound*: one look per [`TRIM_INTERVAL`], or [`CALM_INTERVAL`]. *When full*: first the
//! replay window shrinks, then relays that left the configuration and replays hold no more, then the relay that lags most gives up its oldest,
//! unless its `on_full` is `block`.

mod floor;
mod fold;
mod left;
mod unread;
mod watch;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bundled_nats::port::{Error, Info, Streams};
use config::{OnFull, Relay};
use futures::FutureExt as _;
use prometheus::IntCounter;
use sample::{Envelope, KEY_FRAME_PERIOD};
use tokio::sync::Notify;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::backoff::now_ms;
use crate::checkpoint::{self, Checkpoint};
use crate::control::{Control, Why};
use crate::lasting::Lasting;
use crate::telemetry::Gauges;
use crate::{forget, replay};

pub use floor::{GIVE_UP_ABOVE, GIVE_UP_KEEPS, Shares, WINDOW_ABOVE};
pub(crate) use fold::next;
pub use fold::{FOLD_ABOVE, FOLDED, Fold, sums};
pub use left::LEFT;
pub(crate) use left::left_key;
pub use watch::Watch;

use left::Left;

/// Time between two looks. Larger: a burst may fill the stream in between; smaller: more requests to the server.
pub const TRIM_INTERVAL: Duration = Duration::from_secs(1);

/// The same while no relay has a `hold` of its own and half of the stream is free, and will be. A look is a dozen requests, which an idle server feels.
const CALM_INTERVAL: Duration = Duration::from_secs(10);

/// How far ahead that is looked, at the present growth. Larger: more looks; smaller: a burst may fill the stream before the next one.
const CALM_AHEAD: Duration = Duration::from_secs(60);

/// Share of `max_bytes` below which "full" means another limit: the volume's. Above, a large message met the ordinary wall.
const LOWER_WALL_BELOW: f64 = 0.9;

/// How long a lower wall is believed in. Larger: space stays unused after the volume has room again; smaller: it is met more often.
const WALL_MEMORY: Duration = Duration::from_secs(600);

/// A configured relay, as the trim sees it.
#[derive(Clone)]
pub struct Subject {
    /// Its configuration.
    pub relay: Relay,
    /// How it is asked to give up.
    pub control: Arc<Control>,
    /// The same of its backlog.
    pub behind: Arc<Control>,
    /// Its state.
    pub gauges: Gauges,
}

/// What is to be looked after; another one comes with every configuration.
#[derive(Clone, Default)]
pub struct Plan {
    /// The configured relays.
    pub subjects: Arc<[Subject]>,
    /// How long delivered samples are kept for a replay.
    pub replay_window: Duration,
}

impl Plan {
    fn has(&self, relay: &str) -> bool {
        self.subjects.iter().any(|subject| subject.relay.name == relay)
    }
}

/// The trimming task.
pub struct Trim {
    streams: Streams,
    planned: Receiver<Plan>,
    /// As of the newest look.
    plan: Plan,
    retired_hold: Duration,
    full: Arc<Notify>,
    wake: Arc<Notify>,
    trimmed: IntCounter,
    named: HashSet<String>,
    /// Configured relays of which it is known that nothing says they left.
    returned: HashSet<String>,
    /// Configured relays whose checkpoint is there and cannot be understood.
    unreadable: HashSet<String>,
    /// Configured relays whose checkpoint is of before the stream was torn.
    torn: HashSet<String>,
    /// Relays whose bases alone held what is to go, and since when they are asked to forget them.
    asked: HashMap<String, Instant>,
    blocked: bool,
    /// The last look saw nothing that could become urgent before [`CALM_INTERVAL`] is over.
    calm: bool,
    /// Bytes in the stream at the last look.
    before: Option<(u64, Instant)>,
    /// Bytes at which a publisher was told the stream is full: the wall, where it is lower than `max_bytes`.
    wall: Option<(u64, Instant)>,
}

impl Trim {
    /// A trim over the configured relays. `full`: a publisher was refused; `wake`: it is worth to look now.
    pub fn new(
        streams: Streams,
        planned: Receiver<Plan>,
        retired_hold: Duration,
        full: Arc<Notify>,
        trimmed: IntCounter,
        wake: Arc<Notify>,
    ) -> Self {
        Self {
            streams,
            planned,
            plan: Plan::default(),
            retired_hold,
            full,
            wake,
            trimmed,
            named: HashSet::new(),
            returned: HashSet::new(),
            unreadable: HashSet::new(),
            torn: HashSet::new(),
            asked: HashMap::new(),
            blocked: false,
            calm: false,
            before: None,
            wall: None,
        }
    }

    /// One look: frees what nobody needs, asks for what must be given up. `told`: a publisher was refused.
    pub async fn look(&mut self, told: bool) -> Result<(), Error> {
        self.replan();
        let info = self.streams.raw.info().await?;
        let limited =
            self.plan.subjects.iter().any(|subject| subject.relay.hold.max_age.is_some() || subject.relay.hold.max_bytes.is_some());
        let now = Instant::now();
        let growth = self.before.replace((info.bytes, now)).map(|(bytes, at)| {
            let seconds = now.duration_since(at).as_secs_f64().max(0.001);
            info.bytes.saturating_sub(bytes) as f64 / seconds
        });
        let later = |growth: f64| info.bytes as f64 + growth * CALM_AHEAD.as_secs_f64();
        self.calm = !told && !limited && growth.is_some_and(|growth| later(growth) < info.max_bytes as f64 / 2.0);
        if info.messages == 0 {
            return Ok(());
        }
        if told && (info.bytes as f64) < info.max_bytes as f64 * LOWER_WALL_BELOW {
            self.wall = Some((info.bytes, now));
        }
        self.wall = self.wall.filter(|(wall, since)| info.bytes <= *wall && now.duration_since(*since) < WALL_MEMORY);
        let shares = Shares::new(&info, self.wall.map(|(wall, _)| wall), told);
        let Some(checkpoints) = self.checkpoints(&info).await? else {
            // A relay without a checkpoint is about to write one: until then nothing may go.
            if shares.at_wall() && !std::mem::replace(&mut self.blocked, true) {
                warn!("the stream is full and a relay has no checkpoint yet: nothing can be trimmed");
            }
            return Ok(());
        };
        let (held, left) = self.held(&info, &shares, &checkpoints).await?;
        let window = self.window(&shares).await?;
        let keep_from = held.min(window);
        if keep_from > info.first_seq {
            for left in left {
                // One that came back during this look goes on where it is: the next look asks what it needs.
                if self.planned.borrow().has(&left.relay) {
                    return Ok(());
                }
                left.give_up(&self.streams, keep_from).await?;
            }
            let purged = self.streams.raw.purge(keep_from).await?;
            self.trimmed.inc_by(purged);
            // Whoever was refused before this tries again, and says so if it still is.
            let _refused = self.full.notified().now_or_never();
        }
        self.holds(&info, &shares, &checkpoints).await?;
        self.at_wall(&shares, &checkpoints).await
    }

    /// Takes over the newest plan. What is remembered of a relay ends when it comes or goes: the next time counts as the first.
    fn replan(&mut self) {
        self.plan = self.planned.borrow().clone();
        self.returned.retain(|name| self.plan.has(name));
        self.unreadable.retain(|name| self.plan.has(name));
        self.torn.retain(|name| self.plan.has(name));
        self.asked.retain(|name, _| self.plan.has(name));
        self.named.retain(|note| !self.plan.has(note.trim_end_matches('!')));
    }

    /// The configured relays' checkpoints, or what stands for one that is unreadable, or of before the stream was torn; `None`: one is missing.
    async fn checkpoints(&mut self, info: &Info) -> Result<Option<Vec<Checkpoint>>, Error> {
        let mut all = Vec::with_capacity(self.plan.subjects.len());
        for subject in self.plan.subjects.clone().iter() {
            let name = &subject.relay.name;
            let Some(entry) = self.streams.state.get(&checkpoint::key(name)).await? else {
                // One that runs and waits for its sink does not know that its position is gone from a damaged store.
                subject.control.write_again();
                return Ok(None);
            };
            match serde_json::from_slice::<Checkpoint>(&entry.value) {
                Ok(checkpoint) if checkpoint.is_known() => {
                    self.unreadable.remove(name);
                    // What is there now at its sequences was not delivered: until the relay has found its place again it needs all.
                    let is_torn = forget::is_torn(&self.streams, &checkpoint).await?;
                    if is_torn {
                        self.torn.insert(name.clone())
                    } else {
                        self.torn.remove(name)
                    };
                    all.push(if is_torn { Checkpoint::at(info.first_seq.saturating_sub(1), info.first_seq) } else { checkpoint });
                }
                _ => {
                    if self.unreadable.insert(name.clone()) {
                        error!(relay = name, "the checkpoint is unreadable: the relay holds all there is until the stream is full");
                    }
                    all.push(unread::stand_in(&self.streams, name, info.first_seq).await?);
                }
            }
        }
        Ok(Some(all))
    }

    /// The lowest sequence that a relay, a replay, or a relay that left the configuration needs; and the relays that left.
    async fn held(&mut self, info: &Info, shares: &Shares, checkpoints: &[Checkpoint]) -> Result<(u64, Vec<Left>), Error> {
        let mut floor = checkpoints.iter().map(Checkpoint::floor).min().unwrap_or(info.last_seq + 1);
        let configured: BTreeSet<String> = self.plan.subjects.iter().map(|subject| subject.relay.name.clone()).collect();
        // At the wall a relay that left and a replay hold no more than what every relay may: ingest must not stop for them.
        let spared = if shares.at_wall() { shares.give_up_floor() } else { 0 };
        let mut all_left = Vec::new();
        for name in forget::names(&self.streams).await? {
            if configured.contains(&name) {
                continue;
            }
            if let Some(left) = self.left(name, info).await? {
                floor = floor.min(left.floor().map_or(u64::MAX, |held| held.max(spared)));
                all_left.push(left);
            }
        }
        for name in &configured {
            if self.returned.insert(name.clone()) && self.streams.state.get(&left_key(name)).await?.is_some() {
                self.streams.state.delete(&left_key(name)).await?;
            }
        }
        for key in self.streams.state.keys(replay::KEY_PREFIX).await? {
            let Some(entry) = self.streams.state.get(&key).await? else { continue };
            let Ok(running) = serde_json::from_slice::<replay::Registration>(&entry.value) else { continue };
            let needs = running.checkpoint.floor();
            floor = floor.min(needs.max(spared));
            if needs < spared && self.named.insert(key.clone()) {
                warn!(replay = key, "the stream is full: this replay lags too far behind and loses the oldest of what it wanted");
            }
        }
        Ok((floor, all_left))
    }

    /// The first sequence of the replay window and what its slots need; higher where the stream is too full for the window.
    async fn window(&self, shares: &Shares) -> Result<u64, Error> {
        let back = self.plan.replay_window + 2 * KEY_FRAME_PERIOD;
        let wished = self.streams.raw.seq_at(now_ms() - i64::try_from(back.as_millis()).unwrap_or(i64::MAX / 2)).await?;
        Ok(shares.window_shrunk_to().map_or(wished, |seq| seq.max(wished)))
    }

    /// Asks relays to give up what their `hold` does not cover.
    async fn holds(&self, info: &Info, shares: &Shares, checkpoints: &[Checkpoint]) -> Result<(), Error> {
        for (subject, checkpoint) in self.plan.subjects.iter().zip(checkpoints) {
            let hold = &subject.relay.hold;
            if let Some(age) = hold.max_age {
                let before = now_ms().saturating_sub(i64::try_from(age.0).unwrap_or(i64::MAX));
                let keep = self.streams.raw.seq_at(before).await?;
                self.give_up(subject, checkpoint, keep.saturating_sub(1).min(info.last_seq), Why::MaxAge).await?;
            }
            if let Some(bytes) = hold.max_bytes {
                self.give_up(subject, checkpoint, shares.keep_bytes(bytes.0).saturating_sub(1), Why::MaxBytes).await?;
            }
        }
        Ok(())
    }

    async fn give_up(&self, subject: &Subject, checkpoint: &Checkpoint, to: u64, why: Why) -> Result<(), Error> {
        if let Some(behind) = &checkpoint.behind {
            let (position, end) = (behind.checkpoint.seq, to.min(behind.end));
            if end > position && end > subject.behind.skipped() {
                debug!(relay = subject.relay.name, from = position + 1, end, why = why.as_str(), "giving up undelivered samples");
                subject.behind.skip_to(end, why);
            }
        }
        if to <= checkpoint.seq || to <= subject.control.skipped() {
            return Ok(());
        }
        if self.unreadable.contains(&subject.relay.name) {
            unread::give_up(&self.streams, subject, checkpoint.seq + 1, to, why).await?;
            self.wake.notify_one();
            return Ok(());
        }
        // The relay says so once it has done it.
        debug!(relay = subject.relay.name, from = checkpoint.seq + 1, to, why = why.as_str(), "giving up undelivered samples");
        subject.control.skip_to(to, why);
        Ok(())
    }

    /// At the wall: the relay that lags most gives up; the others are looked at again once it has.
    async fn at_wall(&mut self, shares: &Shares, checkpoints: &[Checkpoint]) -> Result<(), Error> {
        let before = std::mem::take(&mut self.asked);
        if !shares.at_wall() {
            self.blocked = false;
            return Ok(());
        }
        let floor = shares.give_up_floor();
        // What is delivered but not yet in the checkpoint needs no giving up, only the next write.
        let position = |subject: &Subject, checkpoint: &Checkpoint| match self.torn.contains(&subject.relay.name) {
            true => checkpoint.passed(),
            false => checkpoint.passed().max(subject.gauges.shared.live().passed()),
        };
        // What has been asked of a backlog is asked of the rest too, as far as that lags as well.
        let is_asked = |subject: &Subject, checkpoint: &Checkpoint, to: u64| match &checkpoint.behind {
            Some(behind) => subject.behind.skipped() >= to.min(behind.end) && (checkpoint.seq >= to || subject.control.skipped() >= to),
            None => subject.control.skipped() >= to,
        };
        let most =
            self.plan.subjects.iter().zip(checkpoints).filter(|(_, c)| c.floor() < floor).min_by_key(|(s, c)| (position(s, c), c.floor()));
        let Some((subject, checkpoint)) = most else { return Ok(()) };
        let to = shares.give_up_to();
        if position(subject, checkpoint) < to {
            if subject.relay.hold.on_full == OnFull::Block {
                if !std::mem::replace(&mut self.blocked, true) {
                    warn!(relay = subject.relay.name, "the stream is full and this relay blocks it: ingest is refused until it moves");
                }
                return Ok(());
            }
            self.give_up(subject, checkpoint, to, Why::Full).await?;
        } else if checkpoint.passed() < to {
            // In a store that is an older one again the next write may be long in coming.
            subject.control.write_again();
        }
        // Bases of targets that are gone must not hold what nobody else needs.
        let Some(message) = self.streams.raw.get(floor).await? else { return Ok(()) };
        let Ok(envelope) = Envelope::parse(|name| message.headers.get(name)) else { return Ok(()) };
        let done = |(s, c): &(&Subject, &Checkpoint)| c.floor() < floor && (position(s, c) >= to || is_asked(s, c, to));
        let based = self.plan.subjects.iter().zip(checkpoints).filter(done);
        self.asked = based
            .map(|(subject, checkpoint)| {
                let since = before.get(&subject.relay.name).copied().unwrap_or_else(Instant::now);
                // Of a backlog that came after this look nothing was asked yet.
                for control in [Some(&subject.control), checkpoint.behind.as_ref().map(|_| &subject.behind)].into_iter().flatten() {
                    control.forget_before(envelope.first_ms);
                    // Who waits for its sink cannot forget. It has in memory what it needs, and a life after it finds the bases of what it did not deliver.
                    if since.elapsed() >= TRIM_INTERVAL && checkpoint.passed() >= to {
                        control.base_from(shares.bases_from().min(floor));
                    }
                }
                (subject.relay.name.clone(), since)
            })
            .collect();
        Ok(())
    }
}

#[async_trait]
impl Lasting for Trim {
    const NAME: &'static str = "trim";

    async fn run(&mut self, stop: &CancellationToken) {
        let full = self.full.clone();
        let wake = self.wake.clone();
        let (mut told, mut failing) = (false, false);
        loop {
            let looked = self.look(told).await;
            match (&looked, std::mem::replace(&mut failing, looked.is_err())) {
                (Err(error), false) => info!(%error, "cannot trim now, trying again without end"),
                (Ok(()), true) => info!("trims again"),
                _ => {}
            }
            let pause = if looked.is_ok() && self.calm { CALM_INTERVAL } else { TRIM_INTERVAL };
            told = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = full.notified() => true,
                () = wake.notified() => false,
                () = tokio::time::sleep(pause) => false,
            };
        }
    }
}
