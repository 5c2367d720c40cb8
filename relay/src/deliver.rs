//! Delivery: batches to the sink, and the position after the sink's own acknowledgement.
//!
//! *In*: [`Step`]s. *Out*: delivered samples, dead letters, ledger entries, checkpoints, in this order of durability. *Bound*: one part in
//! flight, spread over the sink's lanes; at most [`SUSPECTS_MAX`] wholly rejected batches wait for a judgement. *When full*: the reading task waits, the backlog stays in
//! the stream.

mod lanes;
mod outage;
mod progress;
mod send;
mod split;
mod suspect;
mod turn;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::checkpoint::{self, CHECKPOINT_INTERVAL, Checkpoint, Partial};
use crate::control::Control;
use crate::dead::{Dead, Stopped};
use crate::desk::{Desk, Seat, Side};
use crate::minutes::{Fate, fates};
use crate::replay::Track;
use crate::step::{Loss, Mark, Part, Step};
use crate::telemetry::{Activity, Gauges};

use outage::{GivenUp, Outage};
use progress::Progress;
use send::Sent;
use suspect::Suspect;

pub use lanes::Lanes;
pub use suspect::SUSPECTS_MAX;
pub use turn::Turn;

/// Wait between two tries at a sink that refuses everything. Larger: a mended sink waits longer; smaller: it is bothered more.
pub const HELD_RETRY: Duration = Duration::from_secs(15);

/// Why delivery ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint belongs to another process, or is not ours.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// Another process has taken the sink over.
    #[error("{reason}")]
    Fenced {
        /// The sink's answer.
        reason: String,
    },
    /// The sink took nothing of what came last, and nothing comes after it that could tell why: nothing of that was parked.
    #[error("the sink rejects every sample")]
    Refused,
}

/// Why a step could not be finished.
#[derive(Debug)]
enum Halt {
    /// The relay is asked to stop.
    Stopped,
    /// It must not go on.
    Failed(Error),
}

impl From<Stopped> for Halt {
    fn from(Stopped: Stopped) -> Self {
        Halt::Stopped
    }
}

/// Counts what became of the messages of a window.
pub type Count = Box<dyn FnMut(&[Mark], &[Fate]) + Send>;

/// What a delivery is made of.
pub struct Parts {
    /// The sink.
    pub lanes: Lanes,
    /// Where rejected samples go.
    pub dead: Dead,
    /// Where the relay's position goes, with its losses and what is counted; none: a replay.
    pub seat: Option<Seat>,
    /// Who else counts what became of the messages of a window.
    pub count: Option<Count>,
    /// The position to go on from.
    pub checkpoint: Checkpoint,
    /// What the trim wants.
    pub control: Arc<Control>,
    /// State and metrics.
    pub gauges: Gauges,
    /// Woken when the position has passed what was given up.
    pub trim: Arc<Notify>,
    /// Ends it.
    pub stop: CancellationToken,
    /// Samples a replay or a backlog may send per second.
    pub rate: Option<u64>,
    /// Where a replay's position goes.
    pub track: Option<Track>,
    /// When the relay turns to the newest samples; none: never, or it has.
    pub turn: Option<Turn>,
}

/// The delivering task of one relay.
pub struct Deliver {
    lanes: Lanes,
    dead: Dead,
    seat: Option<Seat>,
    count: Option<Count>,
    checkpoint: Checkpoint,
    control: Arc<Control>,
    gauges: Gauges,
    trim: Arc<Notify>,
    stop: CancellationToken,
    progress: Progress,
    resumed: Option<Partial>,
    suspects: VecDeque<Suspect>,
    retry_suspects_at: Option<Instant>,
    dirty: bool,
    /// Whether the stream was rolled back: what is silent since then may wait here, and is not done with.
    rolled_back: bool,
    /// Messages since the last write, and the most of recent intervals.
    pace: u64,
    /// Whether a part that was begun is left with some of it delivered: the next life sends that again.
    half_sent: bool,
    /// Whether nothing was sent yet.
    is_first: bool,
    /// Messages of a crashed life that may come again.
    repeats: u64,
    outage: Outage,
    given_up: GivenUp,
    rate: Option<send::Bucket>,
    track: Option<Track>,
    turn: Option<Turn>,
    /// The sink took samples that are so old that the relay turns to the newest.
    far_behind: bool,
}

impl Deliver {
    /// A delivery that begins at a checkpoint.
    pub fn new(parts: Parts) -> Self {
        let mut checkpoint = parts.checkpoint;
        let resumed = checkpoint.partial.take();
        let repeats = checkpoint.repeats_max();
        checkpoint.clean = false;
        {
            let mut live = parts.gauges.shared.live();
            live.at(&checkpoint);
            live.totals = checkpoint.totals.clone();
            live.activity = Activity::Running;
        }
        parts.gauges.metrics.up.set(1);
        Self {
            lanes: parts.lanes,
            dead: parts.dead,
            seat: parts.seat,
            count: parts.count,
            checkpoint,
            control: parts.control,
            gauges: parts.gauges,
            trim: parts.trim,
            stop: parts.stop,
            progress: Progress::default(),
            resumed,
            suspects: VecDeque::new(),
            retry_suspects_at: None,
            dirty: false,
            rolled_back: false,
            pace: 0,
            half_sent: false,
            is_first: true,
            repeats,
            outage: Outage::default(),
            given_up: GivenUp::default(),
            rate: parts.rate.map(send::Bucket::new),
            track: parts.track,
            turn: parts.turn,
            far_behind: false,
        }
    }

    /// Delivers until the steps end or it is asked to stop; then closes the sink and writes the last checkpoint.
    ///
    /// After the request to stop, what is in the channel is still delivered as long as the sink takes it at once.
    pub async fn run(mut self, mut steps: mpsc::Receiver<Step>) -> Result<(), Error> {
        let ended = self.steps(&mut steps).await;
        drop(steps);
        if let Err(Halt::Failed(error)) = ended {
            self.gauges.shared.trouble(Activity::Failed, error.to_string(), 0);
            self.gauges.metrics.up.set(0);
            return Err(error);
        }
        let result = self.close().await;
        self.gauges.shared.live().activity = Activity::Stopped;
        self.gauges.metrics.up.set(0);
        result
    }

    async fn steps(&mut self, steps: &mut mpsc::Receiver<Step>) -> Result<(), Halt> {
        let mut flush = interval(CHECKPOINT_INTERVAL);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let control = self.control.clone();
        loop {
            self.rest(self.checkpoint.seq + 1).await?;
            self.let_bases_go().await?;
            let step = if self.broken() {
                let at = self.retry_suspects_at.unwrap_or_else(Instant::now);
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return Err(Halt::Stopped),
                    () = control.sender.notified() => None,
                    () = sleep_until(at) => None,
                }
            } else {
                let idle = self.retry_suspects_at;
                tokio::select! {
                    biased;
                    _ = flush.tick(), if self.dirty && !self.skipping() => { self.write().await?; continue }
                    step = steps.recv() => match step {
                        Some(step) => Some(step),
                        None if self.stop.is_cancelled() => return Ok(()),
                        None if self.side() == Some(Side::Behind) => return self.end().await,
                        None if self.seat.is_none() && !self.suspects.is_empty() => return Err(Halt::Failed(Error::Refused)),
                        None => return Ok(()),
                    },
                    () = control.sender.notified() => None,
                    () = sleep_until(idle.unwrap_or_else(Instant::now)), if idle.is_some() => None,
                }
            };
            match step {
                Some(Step::Part(part)) => self.part(part).await?,
                Some(Step::Marks(marks)) => {
                    self.marks(marks).await?;
                    if self.turns().await? {
                        return Ok(());
                    }
                }
                Some(Step::Warm(seq)) => {
                    // What is put aside is not done with: a later life reads it again.
                    if seq > self.checkpoint.warm_from && self.suspects.is_empty() {
                        self.checkpoint.warm_from = seq;
                        self.dirty = true;
                        self.write().await?;
                        self.trim.notify_one();
                    }
                }
                None => self.reconsider().await?,
            }
        }
    }

    /// Whether a range is being given up: it is booked as one, and the position moves past it at once.
    fn skipping(&self) -> bool {
        self.skips(self.checkpoint.seq + 1)
    }

    fn skips(&self, seq: u64) -> bool {
        self.seat.is_some() && seq <= self.control.skipped()
    }

    async fn part(&mut self, part: Box<Part>) -> Result<(), Halt> {
        self.gauges.shared.live().oldest_ms.get_or_insert(part.first_ms);
        self.let_go().await?;
        if self.resume(&part) {
            return Ok(());
        }
        if self.skips(part.seq()) {
            let all = 0..part.batch.items.len();
            self.progress.given_up += all.len() as u64;
            self.progress.fates.extend(fates(&part, std::iter::empty(), all));
            return Ok(());
        }
        self.pay(&part).await?;
        match self.send(&part, true).await? {
            Sent::AllRejected(answer) => {
                self.suspect(part, &answer);
                self.write_if_due().await?;
            }
            Sent::Done(outcome) => {
                self.park(&part, &outcome).await?;
                if outcome.delivered > 0 && !self.suspects.is_empty() {
                    self.settle(false).await?;
                }
                self.progress.take(&part, &outcome);
            }
        }
        Ok(())
    }

    /// Parks what was rejected and counts the rest of one part.
    async fn settled(&mut self, part: &Part, outcome: send::Outcome) -> Result<(), Halt> {
        self.park(part, &outcome).await?;
        self.progress.take(part, &outcome);
        Ok(())
    }

    /// Parks what was rejected of one part, before the sink takes any other: it may keep in mind what it refused of the last one only.
    async fn park(&mut self, part: &Part, outcome: &send::Outcome) -> Result<(), Halt> {
        if !outcome.offenders.is_empty() {
            self.dead.park(part, &outcome.offenders).await?;
        }
        Ok(())
    }

    async fn marks(&mut self, marks: Vec<Mark>) -> Result<(), Halt> {
        if marks.iter().any(|mark| mark.restarted) {
            if let Some(seat) = &self.seat {
                self.checkpoint.voided = seat.void().await;
            }
            self.dead.void();
            self.rolled_back = true;
        }
        if let [mark] = &marks[..]
            && mark.silent
        {
            // What is silent in a backlog was passed, or is no part of it.
            let learns = !self.rolled_back && self.side() != Some(Side::Behind);
            if let Some(envelope) = mark.envelope.as_ref().filter(|_| learns) {
                self.checkpoint.positions.advance(envelope, &mark.subject, mark.at_ms);
                self.gauges.shared.live().positions.advance(envelope, &mark.subject, mark.at_ms);
            }
            return Ok(());
        }
        self.let_go().await?;
        let progress = std::mem::take(&mut self.progress);
        if self.suspects.is_empty() {
            return self.pass(marks, progress).await;
        }
        self.suspects.push_back(Suspect::Marks(marks, progress));
        Ok(())
    }

    /// Books, counts and moves the position past the messages of a window: past all of them before it is written anywhere.
    async fn pass(&mut self, marks: Vec<Mark>, mut progress: Progress) -> Result<(), Halt> {
        let items: u64 = marks.iter().map(|mark| mark.items).sum();
        debug_assert_eq!(progress.delivered + progress.rejected + progress.given_up, items, "every item has its fate");
        // A replay parks none: the relay itself did when it came by.
        for mark in marks.iter().filter(|mark| !mark.undecodable.is_empty() && self.seat.is_some()) {
            self.dead.park_frames(mark).await?;
        }
        let mut desk = match &self.seat {
            Some(seat) => Some((seat.side(), seat.take().await)),
            None => None,
        };
        if let Some((_, desk)) = &mut desk {
            desk.count(&marks, &progress.fates, self.control.why().as_str());
        }
        if let Some(count) = &mut self.count {
            count(&marks, &progress.fates);
        }
        let (mut given_up, mut skipping) = (0, false);
        let newest_ms = self.gauges.shared.live().stream_ms.filter(|_| progress.delivered > 0);
        for mark in marks {
            skipping |= self.skipping();
            self.far_behind |= self.turn.as_ref().is_some_and(|turn| turn.is_due(mark.at_ms, newest_ms));
            given_up += self.apply(mark, std::mem::take(&mut progress), desk.as_mut().map(|(side, desk)| (*side, &mut **desk)));
        }
        if let Some((side, desk)) = &mut desk {
            if desk.is_shared() {
                desk.put(*side, &self.checkpoint);
            }
            desk.relieve().await?;
        }
        drop(desk);
        let seq = self.checkpoint.seq;
        if self.seat.is_none() {
            self.report(seq);
        } else if skipping && !self.skipping() {
            self.control.skipped_to(seq);
            self.write().await?;
            self.tell_given_up(given_up, seq);
            self.trim.notify_one();
        }
        Ok(())
    }

    /// Books, counts and moves the position past one message; says what of it was given up.
    fn apply(&mut self, mut mark: Mark, progress: Progress, mut desk: Option<(Side, &mut Desk)>) -> u64 {
        let given_up = progress.given_up + mark.given_up;
        if given_up > 0 {
            let slots = mark.envelope.as_ref().map(|e| (e.first_ms, e.last_ms));
            let reason = self.control.why().as_str();
            for (k, slot_ms) in slots.map_or([None, None], |(first, last)| [Some(first), Some(last)]).into_iter().enumerate() {
                // Twice, so that the entry spans first and last slot; counted once.
                let (samples, frames) = if k == 0 { (given_up, 1) } else { (0, 0) };
                mark.losses.push(Loss { reason, stream: false, samples, frames, target: None, slot_ms });
            }
        }
        let producer = mark.envelope.as_ref().map(|e| e.producer.clone());
        let (mut lost, metrics) = (0, self.gauges.metrics.clone());
        for loss in &mark.losses {
            lost += loss.samples;
            metrics.lost(loss.reason, loss.samples);
            if let Some((side, desk)) = &mut desk {
                desk.lose(*side, mark.seq, producer.as_deref(), loss);
            }
        }
        let filtered: u64 = mark.filtered.iter().map(|(_, n)| n).sum();
        mark.filtered.iter().filter(|(_, n)| *n > 0).for_each(|(reason, n)| metrics.filtered(reason, *n));
        mark.left_alone.iter().for_each(|(filter, n)| metrics.left_alone(filter, *n));
        metrics.simplified(mark.simplified);
        let delivered = progress.delivered + mark.nothing;
        metrics.delivered.inc_by(delivered);
        metrics.rejected.inc_by(progress.rejected);
        if self.repeats > 0 {
            self.repeats -= 1;
            // A sink that knows what it has takes only what is numbered apart for another one.
            if !self.lanes.is_once() || progress.lacking {
                metrics.repeated.inc_by(progress.delivered);
            }
        }
        let totals = match &mut desk {
            Some((side, desk)) => {
                desk.pass(*side, &mark);
                desk.totals()
            }
            None => &mut self.checkpoint.totals,
        };
        totals.read += mark.read;
        totals.delivered += delivered;
        totals.filtered += filtered;
        totals.rejected += progress.rejected;
        totals.lost += lost;
        self.gauges.shared.live().totals = totals.clone();
        self.moved(mark);
        given_up
    }

    fn moved(&mut self, mark: Mark) {
        if let Some(track) = &self.track {
            track.miss(mark.seq.saturating_sub(self.checkpoint.seq + 1));
        }
        self.checkpoint.seq = mark.seq;
        self.checkpoint.id = Some(mark.id);
        self.checkpoint.waiting = Some(mark.waiting);
        self.checkpoint.warm_from = mark.warm_from.max(self.based_from(mark.seq));
        let mut live = self.gauges.shared.live();
        if let Some(envelope) = &mark.envelope {
            self.checkpoint.positions.advance(envelope, &mark.subject, mark.at_ms);
            live.positions.advance(envelope, &mark.subject, mark.at_ms);
        }
        live.position = mark.seq;
        live.oldest_ms = None;
        live.newest_ms = Some(mark.last_ms);
        self.dirty = true;
        self.pace += 1;
    }

    fn name(&self) -> String {
        self.gauges.metrics.name().to_owned()
    }
}
