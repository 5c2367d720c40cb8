//! Sending one part: over the lanes, with retries without end and bisection of what is rejected.
//!
//! *In*: a part. *Out*: what was delivered, who offended, what was given up meanwhile. *Bound*: one request per lane. *When full*: waits. A part
//! is done when all of it is, so a series keeps its order whichever lane it takes.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::lanes::Lanes;
use super::split::{Range, Split};
use super::{Deliver, HELD_RETRY, Halt};
use crate::backoff::{BACKOFF_FIRST, Backoff, jitter};
use crate::checkpoint::CHECKPOINT_INTERVAL;
use crate::dead::Offender;
use crate::sink::{Answer, Batch, Sink};
use crate::step::Part;
use crate::telemetry::Activity;

/// Requests of a bisection without any success after which the whole batch counts as rejected for now. Larger: a broken sink is asked more
/// often; smaller: a batch that begins with many offenders is taken for wholly rejected, and waits for the next one's outcome.
const PROBES_MAX: usize = 64;

/// What became of a part's items.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub delivered: u64,
    pub offenders: Vec<Offender>,
    /// Items that are not tried any more.
    pub given_up: Vec<usize>,
}

/// How long a request may have taken when a stop no longer waits for it. Larger: a sink that hangs takes the time of the others; smaller: what a
/// slow one has taken goes again.
const SEND_GRACE: Duration = Duration::from_secs(5);

pub(super) enum Sent {
    Done(Outcome),
    /// Nothing was taken: the sink's answer.
    AllRejected(Arc<str>),
}

/// The last word on one request.
enum Word {
    Delivered,
    Rejected { items: Option<Vec<usize>>, answer: Arc<str> },
    GivenUp,
}

/// Samples per second.
pub(super) struct Bucket {
    rate: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1) as f64, level: 0.0, at: Instant::now() }
    }

    /// How long to wait before so many samples.
    pub fn take(&mut self, samples: u64) -> Duration {
        let now = Instant::now();
        self.level = (self.level - now.duration_since(self.at).as_secs_f64() * self.rate).max(0.0);
        self.at = now;
        let wait = self.level / self.rate;
        self.level += samples as f64;
        Duration::from_secs_f64(wait)
    }
}

/// One request: on its way, or waiting to go again.
struct Flight<'a> {
    lane: &'a mut dyn Sink,
    range: Range,
    /// What goes after it on this lane, the first on top.
    queue: Vec<Range>,
    batch: Cow<'a, Batch>,
    backoff: Backoff,
    tries: u64,
    /// It was refused, and is left alone for a while before it is taken apart.
    doubted: bool,
    due: Instant,
}

/// Requests on their way.
type Flying<'a> = FuturesUnordered<BoxFuture<'a, (Flight<'a>, Answer)>>;

/// A part that is being sent.
struct Work<'a> {
    part: &'a Part,
    probing: bool,
    /// It is the first of all. A sink that refuses that may refuse everything: it is not bothered with parts of a batch before it was left alone.
    patient: bool,
    order: Vec<usize>,
    /// What no lane has begun.
    queues: VecDeque<Vec<Range>>,
    /// Lanes with nothing on the way, each with the rest of its queue.
    lanes: Vec<(&'a mut dyn Sink, Vec<Range>)>,
    waiting: Vec<Flight<'a>>,
    outcome: Outcome,
    /// Ranges that were asked for.
    asked: usize,
    /// The last no.
    last: Arc<str>,
}

impl<'a> Flight<'a> {
    async fn go(self) -> (Self, Answer) {
        let answer = self.lane.send(&self.batch, 0..self.batch.items.len()).await;
        (self, answer)
    }
}

impl<'a> Work<'a> {
    fn new(part: &'a Part, probing: bool, patient: bool, lanes: &'a mut Lanes) -> Self {
        let Split { order, queues, unrouted } = Split::of(&part.batch, lanes.routes_apart(), lanes.request(), lanes.0.len());
        let last = unrouted.last().map_or_else(|| Arc::from(""), |(_, answer)| answer.clone());
        let offenders = unrouted.into_iter().map(|(item, answer)| Offender { item, answer }).collect();
        Self {
            part,
            probing,
            patient,
            order,
            queues,
            // The last is taken first.
            lanes: lanes.0.iter_mut().rev().map(|lane| (lane.as_mut() as &mut dyn Sink, Vec::new())).collect(),
            waiting: Vec::new(),
            outcome: Outcome { offenders, ..Outcome::default() },
            asked: 0,
            last,
        }
    }

    /// The sink takes nothing of it: it is not asked for every item.
    fn is_hopeless(&self) -> bool {
        self.probing && self.outcome.delivered == 0 && self.outcome.given_up.is_empty() && self.asked >= PROBES_MAX
    }

    fn is_done(&self) -> bool {
        let left = !self.queues.is_empty() || self.lanes.iter().any(|(_, queue)| !queue.is_empty());
        self.waiting.is_empty() && (self.is_hopeless() || !left)
    }

    /// When the first of those that wait goes again.
    fn due(&self) -> Option<Instant> {
        self.waiting.iter().map(|flight| flight.due).min()
    }

    /// What may go now.
    fn next(&mut self) -> Option<Flight<'a>> {
        let now = Instant::now();
        if let Some(i) = self.waiting.iter().position(|flight| flight.due <= now) {
            return Some(self.waiting.swap_remove(i));
        }
        if self.is_hopeless() {
            return None;
        }
        let begun = self.lanes.iter().rposition(|(_, queue)| !queue.is_empty());
        let (lane, mut queue) = match begun {
            Some(i) => self.lanes.remove(i),
            None if self.queues.is_empty() => return None,
            None => self.lanes.pop().map(|(lane, _)| (lane, self.queues.pop_front().unwrap_or_default()))?,
        };
        let range = queue.pop()?;
        self.asked += 1;
        let Range { from, to, key } = &range;
        let batch = if to - from == self.part.batch.items.len() && key.is_empty() {
            Cow::Borrowed(&self.part.batch)
        } else {
            let name = if key.is_empty() { format!("{from}-{to}") } else { key.clone() };
            Cow::Owned(self.part.batch.share(&self.order[*from..*to], &name))
        };
        Some(Flight { lane, range, queue, batch, backoff: Backoff::default(), tries: 0, doubted: false, due: now })
    }

    /// Takes the last word on a request; its lane is free again.
    fn ended(&mut self, flight: Flight<'a>, word: Word) {
        let Flight { lane, range, mut queue, .. } = flight;
        let outcome = &mut self.outcome;
        let items = &self.order[range.from..range.to];
        match word {
            Word::Delivered => outcome.delivered += items.len() as u64,
            Word::GivenUp => outcome.given_up.extend(items),
            Word::Rejected { items: Some(named), answer } => {
                // The sink names them: it has taken the others.
                let mut named: Vec<usize> = named.into_iter().filter(|item| *item < items.len()).collect();
                named.sort_unstable();
                named.dedup();
                outcome.delivered += (items.len() - named.len()) as u64;
                outcome.offenders.extend(named.into_iter().map(|item| Offender { item: items[item], answer: answer.clone() }));
                self.last = answer;
            }
            Word::Rejected { items: None, answer } => {
                self.patient = false;
                if items.len() <= 1 {
                    outcome.offenders.extend(items.iter().map(|item| Offender { item: *item, answer: answer.clone() }));
                } else {
                    queue.extend(range.halves());
                }
                self.last = answer;
            }
        }
        self.lanes.push((lane, queue));
    }

    fn sent(mut self) -> Sent {
        let all = !self.outcome.offenders.is_empty() && self.outcome.offenders.len() == self.part.batch.items.len();
        if self.is_hopeless() || self.probing && all {
            return Sent::AllRejected(self.last);
        }
        self.outcome.offenders.sort_by_key(|offender| offender.item);
        Sent::Done(self.outcome)
    }
}

impl Deliver {
    /// Waits until a replay or a backlog may send a part, or that is given up.
    pub(super) async fn pay(&mut self, part: &Part) -> Result<(), Halt> {
        let Some(bucket) = &mut self.rate else { return Ok(()) };
        let wait = bucket.take(part.batch.items.len() as u64);
        let due = Instant::now() + wait;
        if wait > CHECKPOINT_INTERVAL {
            // A kill meanwhile must not repeat what came before.
            self.write_if_due().await?;
        }
        let control = self.control.clone();
        while !self.skips(part.seq()) {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Halt::Stopped),
                () = control.sender.notified() => {}
                () = sleep_until(due) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Sends a part's items, taking it apart where the sink rejects. `probing`: a sink that takes nothing of it is not asked for every item.
    pub(super) async fn send(&mut self, part: &Part, probing: bool) -> Result<Sent, Halt> {
        let mut lanes = std::mem::take(&mut self.lanes);
        // Who replays was told to ask.
        let patient = std::mem::take(&mut self.is_first) && self.seat.is_some();
        let (mut work, mut flying) = (Work::new(part, probing, patient, &mut lanes), Flying::new());
        let ended = self.work(&mut work, &mut flying, part.seq()).await;
        self.half_sent |= ended.is_err() && (work.outcome.delivered > 0 || !flying.is_empty());
        drop(flying);
        let sent = work.sent();
        self.lanes = lanes;
        ended.map(|()| sent)
    }

    /// Keeps the lanes busy until the sink has a last word on all of it, or its samples are given up.
    async fn work<'a>(&mut self, work: &mut Work<'a>, flying: &mut Flying<'a>, seq: u64) -> Result<(), Halt> {
        let (control, stop) = (self.control.clone(), self.stop.clone());
        let mut begun = Instant::now();
        loop {
            if flying.is_empty() {
                self.rest(seq).await?;
            }
            self.let_bases_go().await?;
            // What a stop meets waiting does not go again; what is on its way is waited for.
            let ending = stop.is_cancelled() && !work.waiting.is_empty();
            let skips = self.skips(seq);
            let may_go = !ending && (skips || control.paused().is_none());
            while may_go && let Some(mut flight) = work.next() {
                if skips {
                    work.ended(flight, Word::GivenUp);
                    continue;
                }
                flight.tries += 1;
                if flight.tries > 1 {
                    self.gauges.metrics.retries.inc();
                }
                begun = Instant::now();
                flying.push(Box::pin(flight.go()));
            }
            match flying.is_empty() {
                true if ending => return Err(Halt::Stopped),
                true if work.is_done() => return Ok(()),
                _ => {}
            }
            let late = async {
                stop.cancelled().await;
                sleep_until(begun + SEND_GRACE).await;
            };
            let due = work.due().filter(|_| may_go);
            tokio::select! {
                biased;
                Some((flight, answer)) = flying.next() => self.answered(work, flight, answer).await?,
                () = late, if !flying.is_empty() => {
                    warn!(relay = self.name(), "the sink does not answer: its batch is not waited for, and goes again under the same key");
                    return Err(Halt::Stopped);
                }
                () = stop.cancelled(), if due.is_some() => {}
                () = control.sender.notified(), if due.is_some() => {
                    if self.skips(seq) || control.paused().is_some() {
                        work.waiting.iter_mut().for_each(|flight| flight.due = begun);
                    }
                }
                () = sleep_until(due.unwrap_or(begun)), if due.is_some() => {}
            }
        }
    }

    /// Takes an answer: the last word, or a wait.
    async fn answered<'a>(&mut self, work: &mut Work<'a>, mut flight: Flight<'a>, answer: Answer) -> Result<(), Halt> {
        let (activity, reason, wait) = match answer {
            Answer::Delivered => {
                // What was tried before may have been given up.
                if self.outage.is_open() && work.waiting.is_empty() {
                    self.fine();
                }
                work.ended(flight, Word::Delivered);
                return Ok(());
            }
            Answer::Reject { items: None, reason } if work.patient && !flight.doubted => {
                flight.doubted = true;
                (
                    Activity::Held,
                    format!("the sink refuses its first batch (it is taken apart after a pause): {reason}"),
                    jitter(HELD_RETRY),
                )
            }
            Answer::Reject { items, reason } => {
                work.ended(flight, Word::Rejected { items, answer: reason.into() });
                return Ok(());
            }
            Answer::Before { rejected, reason } => {
                if self.outage.is_open() && work.waiting.is_empty() {
                    self.fine();
                }
                let parked = self.dead.parked(work.part);
                let items = &work.order[flight.range.from..flight.range.to];
                let was_refused = |at: &usize| rejected.contains(at) || parked.contains(&items[*at]);
                let refused = (0..items.len()).filter(was_refused).collect();
                work.ended(flight, Word::Rejected { items: Some(refused), answer: reason.into() });
                return Ok(());
            }
            Answer::Fenced { reason } => return Err(Halt::Failed(super::Error::Fenced { reason })),
            Answer::Retry { after, reason } => {
                let own = flight.backoff.wait();
                // A sink may ask to be called again at once, to look for answers that are on their way.
                let wait = after.unwrap_or(own);
                let wait = if wait.is_zero() && flight.tries > 1 { own.min(BACKOFF_FIRST) } else { wait };
                (Activity::Retrying, reason, wait)
            }
            Answer::Fatal { reason } => (Activity::Held, reason, jitter(HELD_RETRY)),
        };
        self.trouble(activity, reason, wait);
        flight.due = Instant::now() + wait;
        work.waiting.push(flight);
        self.write_if_due().await
    }
}
