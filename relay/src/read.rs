//! A relay's reader: silent from `warm_from` to the checkpoint, then live, over reconnects and rollbacks.
//!
//! *In*: a checkpoint and the raw stream. *Out*: messages in order, each marked silent or live, with the gap before it if there is one.
//! *Bound*: [`BYTES_IN_FLIGHT`]. *When full*: it stops pulling; the backlog stays in the stream.

use std::sync::Arc;

use bundled_nats::port::{Error, Log, Message, Read};
use sample::{Envelope, EnvelopeError};
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::checkpoint::{Backlog, Checkpoint, Gap, Place, Positions};
use crate::reached::Reached;
use crate::step::{Loss, Mark};

/// Bytes that wait between server and relay. Larger: memory per relay; smaller: round trips show.
pub const BYTES_IN_FLIGHT: usize = 8 * 1024 * 1024;

/// A message, and what it means for the relay.
#[derive(Debug)]
pub struct Incoming {
    /// The message.
    pub message: Message,
    /// Its envelope, or why it has none.
    pub envelope: Result<Envelope, EnvelopeError>,
    /// It was delivered before, or lies before the relay's start: only learn from it.
    pub silent: bool,
    /// Messages are gone for good before it.
    pub gap: Option<Gap>,
    /// Sequences before it that should be there are not, delivered or not: the stream is damaged in its middle.
    pub torn_out: bool,
    /// What its producer published after it was read before it: a request that was carried out late. Its bases are not those that come next are made with.
    pub straggles: bool,
    /// More than one collector is known: their pages may be twins.
    pub shared: bool,
    /// The reader began again at `warm_from`: what was learned from the stream is void.
    pub restarted: bool,
}

impl Incoming {
    /// A message of which nothing else is known.
    pub fn alone(message: Message, envelope: Result<Envelope, EnvelopeError>, silent: bool) -> Self {
        Self { message, envelope, silent, gap: None, torn_out: false, straggles: false, shared: false, restarted: false }
    }
}

/// Reads for one relay.
pub struct Reader {
    log: Arc<dyn Log>,
    relay: String,
    positions: Positions,
    /// How far it has read what producers published since it last began at `warm_from`.
    read: Positions,
    /// As in [`Checkpoint`].
    newcomers_from: Option<u64>,
    /// How far lives had come that have ended.
    reached: Reached,
    /// The last message handed out (or the checkpoint's).
    seq: u64,
    id: Option<String>,
    /// The sequence that comes next in a stream that nothing was torn out of; none: any may.
    expected: Option<u64>,
    /// Below this sequence everything is silent; 0 after a rollback, where only identity counts.
    silent_to: u64,
    /// The checkpoint's message: it must be met on the way.
    check: Option<(u64, String)>,
    /// The last message handed out before a reconnect: it must come first, and is not handed out again.
    resume: Option<(u64, String)>,
    open: Option<Box<dyn Read>>,
    /// Where to open next: the last message itself, or further back.
    reopen: Reopen,
    /// A gap that was met and read again for: the second time it is one.
    confirmed: Option<(String, Gap)>,
    restarted: bool,
    /// Where it ends; none: nowhere.
    bounds: Option<Bounds>,
    backoff: Backoff,
    /// Whether it was said that reading fails.
    told: bool,
}

/// The end of a backlog.
struct Bounds {
    end: u64,
    until: Positions,
    /// What came of its producers that is no part of it.
    beyond: Positions,
    /// The stream was torn before its end: what comes at its sequences may be no part of it.
    is_torn: bool,
    /// It was read again for what is missing of it.
    is_confirmed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reopen {
    /// At the start: from `warm_from`, checking the checkpoint on the way.
    Start(u64),
    /// After a broken connection: from the last message itself.
    Here,
    /// After a rollback: from `warm_from`, by identity.
    Again,
}

enum Seen {
    Pass(bool, Option<Gap>),
    Drop,
    Rollback(&'static str),
}

impl Reader {
    /// A reader that will begin at a checkpoint.
    pub fn new(log: Arc<dyn Log>, relay: &str, checkpoint: &Checkpoint) -> Self {
        Self {
            log,
            relay: relay.to_owned(),
            positions: checkpoint.positions.clone(),
            read: Positions::default(),
            newcomers_from: checkpoint.newcomers_from,
            reached: Reached::default(),
            seq: checkpoint.seq,
            id: None,
            // The trim leaves what a position needs.
            expected: Some(checkpoint.warm_from.max(1)),
            silent_to: checkpoint.seq,
            check: checkpoint.id.clone().filter(|_| checkpoint.seq > 0).map(|id| (checkpoint.seq, id)),
            resume: None,
            open: None,
            reopen: Reopen::Start(checkpoint.warm_from),
            confirmed: None,
            restarted: false,
            bounds: None,
            backoff: Backoff::default(),
            told: false,
        }
    }

    /// A reader of a backlog: what is no part of it is silent, and it comes to an end.
    pub fn behind(log: Arc<dyn Log>, relay: &str, backlog: &Backlog) -> Self {
        let Backlog { checkpoint, end, until } = backlog;
        let bounds = Bounds { end: *end, until: until.clone(), beyond: Positions::default(), is_torn: false, is_confirmed: false };
        Self { bounds: Some(bounds), ..Self::new(log, relay, checkpoint) }
    }

    /// The same, which also finds out what is missing at the end of lives.
    #[must_use]
    pub fn knowing(self, reached: &Reached) -> Self {
        Self { reached: reached.clone(), ..self }
    }

    /// The end of a backlog, once all of it was handed out, with what of it is gone.
    pub fn ended(&self) -> Option<Mark> {
        let bounds = self.bounds.as_ref().filter(|bounds| bounds.is_over(self.seq, &self.positions))?;
        let loss = |(mark, gap): (&crate::checkpoint::Mark, Gap)| Loss {
            reason: "rollback",
            stream: true,
            samples: gap.samples,
            frames: gap.messages,
            target: None,
            slot_ms: Some(mark.at_ms),
        };
        let losses: Vec<Loss> = self.positions.missing(&bounds.until).map(loss).collect();
        let read = losses.iter().map(|loss| loss.samples).sum();
        let at_ms = bounds.until.iter().map(|mark| mark.at_ms).max().unwrap_or(0);
        Some(Mark { seq: bounds.end, at_ms, last_ms: at_ms, read, losses, ends: true, ..Mark::default() })
    }

    /// The next message; waits for it as long as it takes. `warm_from`: the lowest base that is needed now, to go back to.
    ///
    /// *Shape*: cancel safe.
    pub async fn next(&mut self, warm_from: u64) -> Incoming {
        loop {
            if self.open.is_none()
                && let Err(error) = self.reopen(warm_from).await
            {
                self.failed(&error).await;
                continue;
            }
            let Some(read) = self.open.as_mut() else { continue };
            let message = match read.next().await {
                Ok(message) => message,
                Err(error) => {
                    self.open = None;
                    self.failed(&error).await;
                    continue;
                }
            };
            self.backoff.reset();
            if std::mem::take(&mut self.told) {
                info!(relay = self.relay, "reads on");
            }
            let envelope = envelope_of(&message);
            let (silent, gap) = match self.judge(&message, envelope.as_ref().ok()) {
                Seen::Pass(silent, gap) => (silent, gap),
                Seen::Drop => continue,
                Seen::Rollback(why) => {
                    warn!(relay = self.relay, seq = message.seq, why, "the stream was rolled back: reading again from {warm_from}");
                    self.rolled_back();
                    continue;
                }
            };
            self.seq = message.seq;
            self.id = Some(identity(&message, envelope.as_ref().ok()));
            let straggles = envelope.as_ref().is_ok_and(|envelope| self.read.is_behind(envelope));
            let torn_out = self.expected.replace(message.seq + 1).is_some_and(|expected| message.seq > expected);
            if let Ok(envelope) = &envelope {
                self.read.advance(envelope, &message.subject, message.time_ms);
                match self.bounds.as_mut().filter(|bounds| bounds.is_beyond(message.seq, Some(envelope))) {
                    Some(bounds) => bounds.beyond.advance(envelope, &message.subject, message.time_ms),
                    None => self.positions.advance(envelope, &message.subject, message.time_ms),
                }
            }
            if self.lacks_some() {
                warn!(relay = self.relay, "messages of the backlog are missing: reading again from {warm_from}");
                self.rolled_back();
                continue;
            }
            let (shared, restarted) = (self.positions.iter().nth(1).is_some(), std::mem::take(&mut self.restarted));
            return Incoming { message, envelope, silent, gap, torn_out, straggles: silent && straggles, shared, restarted };
        }
    }

    /// For whom it reads.
    pub fn relay(&self) -> &str {
        &self.relay
    }

    /// The last sequence of the stream now; none: it does not say.
    pub fn end(&self) -> impl Future<Output = Option<u64>> + Send + use<> {
        let log = Arc::clone(&self.log);
        async move { log.info().await.ok().map(|info| info.last_seq) }
    }

    /// Whether the end of a backlog was met without all of it, for the first time.
    fn lacks_some(&mut self) -> bool {
        let Self { bounds: Some(bounds), positions, seq, .. } = self else { return false };
        let lacks = bounds.is_over(*seq, positions) && positions.missing(&bounds.until).next().is_some();
        lacks && !std::mem::replace(&mut bounds.is_confirmed, true)
    }

    async fn failed(&mut self, error: &Error) {
        let wait = self.backoff.wait();
        if !std::mem::replace(&mut self.told, true) {
            info!(relay = self.relay, %error, "cannot read on, trying again without end");
        }
        tokio::time::sleep(wait).await;
    }

    fn rolled_back(&mut self) {
        self.open = None;
        self.check = None;
        self.resume = None;
        self.silent_to = 0;
        self.reopen = Reopen::Again;
        if let Some(bounds) = &mut self.bounds {
            bounds.beyond = Positions::default();
        }
    }

    async fn reopen(&mut self, warm_from: u64) -> Result<(), Error> {
        let info = self.log.info().await?;
        if let Some(bounds) = &mut self.bounds {
            bounds.is_torn |= info.last_seq < bounds.end;
        }
        let known = self.check.as_ref().map_or(self.seq, |(seq, _)| self.seq.max(*seq));
        if self.reopen != Reopen::Again && info.last_seq < known {
            warn!(relay = self.relay, position = known, last = info.last_seq, "the stream ends before the position: it was rolled back");
            self.rolled_back();
        }
        let from = match self.reopen {
            Reopen::Start(warm) => warm.clamp(1, self.seq.max(1)),
            Reopen::Here => {
                self.resume = self.id.clone().map(|id| (self.seq, id));
                self.seq.max(1)
            }
            Reopen::Again => {
                self.restarted = true;
                self.expected = None;
                self.read = Positions::default();
                self.again_from(warm_from.max(1)).await?
            }
        };
        // A start beyond the end is silently clamped: what comes first is looked at, never assumed.
        let open = self.log.read(from.min(info.last_seq + 1), BYTES_IN_FLIGHT).await?;
        // What is at reused sequences below the checkpoint was not delivered. Only now, as a stream that is torn from here on ends the reading.
        if let Some((seq, id)) = &self.check {
            let there = self.log.get(*seq).await?;
            if there.is_none_or(|message| identity(&message, envelope_of(&message).ok().as_ref()) != *id) {
                warn!(relay = self.relay, position = seq, "another message is at the checkpoint: the stream was rolled back");
                self.rolled_back();
                return Ok(());
            }
        }
        self.open = Some(open);
        Ok(())
    }

    /// Where to read again: from the lowest base; from the beginning where another message is there, as the stream was torn below it and what
    /// lies there may be new.
    async fn again_from(&mut self, warm_from: u64) -> Result<u64, Error> {
        let there = self.log.get(warm_from).await?;
        let is_known =
            there.and_then(|message| envelope_of(&message).ok()).is_some_and(|there| self.positions.place(&there) == Place::Seen);
        Ok(if is_known { warm_from } else { 1 })
    }

    /// Says what a message is to the relay.
    fn judge(&mut self, message: &Message, envelope: Option<&Envelope>) -> Seen {
        if let Some((seq, id)) = self.resume.take() {
            return match message.seq == seq && id == identity(message, envelope) {
                true => Seen::Drop,
                false => Seen::Rollback("another message is at the position"),
            };
        }
        if let Some((seq, id)) = &self.check
            && message.seq >= *seq
        {
            if message.seq > *seq || *id != identity(message, envelope) {
                return Seen::Rollback("another message is at the checkpoint");
            }
            self.check = None;
        }
        if self.bounds.as_ref().is_some_and(|bounds| bounds.is_beyond(message.seq, envelope)) {
            self.reopen = Reopen::Here;
            return Seen::Pass(true, None);
        }
        let place = envelope.map(|envelope| self.reached.place(envelope, &self.positions, self.newcomers_from));
        let below = message.seq <= self.silent_to;
        let seen = match place {
            _ if below => Seen::Pass(true, None),
            Some(Place::Seen) => Seen::Pass(true, None),
            Some(Place::After(gap)) => {
                let id = identity(message, envelope);
                if self.confirmed.as_ref() == Some(&(id.clone(), gap)) {
                    self.confirmed = None;
                    Seen::Pass(false, Some(gap))
                } else {
                    self.confirmed = Some((id, gap));
                    Seen::Rollback("messages are missing")
                }
            }
            // Without an envelope there is no identity: after a rollback it may be parked a second time.
            Some(Place::Next) | None => Seen::Pass(false, None),
        };
        if matches!(seen, Seen::Pass(..)) {
            self.reopen = Reopen::Here;
        }
        seen
    }
}

impl Bounds {
    /// Whether a message is no part of the backlog.
    fn is_beyond(&self, seq: u64, envelope: Option<&Envelope>) -> bool {
        envelope.map_or(seq > self.end, |envelope| self.until.place(envelope) != Place::Seen)
    }

    /// Whether nothing of the backlog comes any more.
    fn is_over(&self, seq: u64, positions: &Positions) -> bool {
        seq >= self.end || self.is_torn && positions.reach(&self.until, &self.beyond)
    }
}

fn envelope_of(message: &Message) -> Result<Envelope, EnvelopeError> {
    Envelope::parse(|name| message.headers.get(name))
}

/// What tells a message from any other: producer, epoch and n; for a foreign one its subject and time.
pub fn identity(message: &Message, envelope: Option<&Envelope>) -> String {
    match envelope {
        Some(envelope) => envelope.id(),
        None => format!("?{}:{}", message.subject, message.time_ms),
    }
}
