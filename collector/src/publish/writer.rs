//! The task that owns the producer's subject in `STRATA_RAW`.
//!
//! *In*: the queue. *Out*: messages, each acknowledged before the next. *Bound*: one message in flight. *When full*: it tries again with
//! growing pauses; the queue bounds what waits meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bundled_nats::port::{self, Headers, Log, Message};
use bytes::Bytes;
use sample::{Envelope, MESSAGE_BYTES_MAX, MessageBuilder};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::chain::{Backoff, Chain, Try};
use super::{CANARY_PERIOD, Error, MESSAGE_BYTES, Options, Outlet, PARTITION, Stops};
use crate::queue::{Dropped, Frame};
use crate::slot::Clock;

/// Tries in a row that only corrected the expectation before a pause is made.
const CORRECTIONS_MAX: u32 = 3;

pub(super) struct Writer {
    chain: Chain,
    outlet: Arc<Outlet>,
    producer: String,
    clock: Clock,
    full: Arc<Notify>,
    drain: CancellationToken,
    abort: CancellationToken,
    epoch: u64,
    /// Number of the last acknowledged message.
    acked: u64,
    samples_total: u64,
    seq_max: u64,
    /// Messages are closed at this size: smaller after the server refused one as too large.
    message_bytes: usize,
    /// Something went wrong since the last acknowledgement: every base is sent again.
    trouble: bool,
    dropped_seen: u64,
    idle_since: Instant,
    /// Since when no message could be stored; logged once at each end.
    stuck_since: Option<Instant>,
}

/// The message in flight.
struct Flight {
    frames: Vec<Frame>,
    headers: Headers,
    payload: Bytes,
    samples: u64,
    n: u64,
    /// A try may have been stored.
    unsure: bool,
}

/// Whether the task goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    End,
}

impl Writer {
    pub(super) fn new(options: &Options, raw: Arc<dyn Log>, outlet: Arc<Outlet>, stops: Stops) -> Self {
        Self {
            chain: Chain::new(raw, format!("strata.raw.{PARTITION}.{}", options.producer)),
            outlet,
            producer: options.producer.clone(),
            clock: options.clock.clone(),
            full: options.full.clone(),
            drain: stops.drain,
            abort: stops.abort,
            epoch: 0,
            acked: 0,
            samples_total: 0,
            seq_max: 0,
            message_bytes: MESSAGE_BYTES,
            trouble: false,
            dropped_seen: 0,
            idle_since: Instant::now(),
            stuck_since: None,
        }
    }

    pub(super) async fn run(mut self) -> Result<(), Error> {
        // The first message is a canary: readiness does not wait for the first scrape.
        if self.open().await == Flow::End || self.deliver(Vec::new()).await? == Flow::End {
            return Ok(());
        }
        while let Some(frames) = self.next().await {
            if self.deliver(frames).await? == Flow::End {
                break;
            }
        }
        Ok(())
    }

    /// Finds the end of our subject and chooses an epoch above all before it.
    async fn open(&mut self) -> Flow {
        let mut backoff = Backoff::default();
        loop {
            let Some(opened) = self.abort.run_until_cancelled(self.chain.open()).await else { return Flow::End };
            match opened {
                Ok(last) => {
                    let now = u64::try_from(self.clock.now_ms()).unwrap_or(0);
                    self.epoch = now.max(last.as_ref().map_or(0, after));
                    tracing::info!(producer = self.producer, epoch = self.epoch, "publishing");
                    return Flow::On;
                }
                Err(error) => self.failed("unavailable", &error.to_string()),
            }
            if self.abort.run_until_cancelled(tokio::time::sleep(backoff.pause())).await.is_none() {
                return Flow::End;
            }
        }
    }

    /// The frames of the next message; none of them: a canary; `None`: there will be no more.
    async fn next(&mut self) -> Option<Vec<Frame>> {
        loop {
            let (depth, draining, now) = (self.outlet.queue.depth(), self.drain.is_cancelled(), Instant::now());
            let canary_at = self.idle_since + CANARY_PERIOD;
            let due_at = depth.oldest.map_or(canary_at, |oldest| oldest + self.outlet.linger());
            match depth.oldest {
                _ if self.abort.is_cancelled() => return None,
                Some(_) if draining || depth.bytes >= self.message_bytes || due_at <= now => return Some(self.take()),
                None if draining => return None,
                None if canary_at <= now => return Some(Vec::new()),
                _ => {}
            }
            tokio::select! {
                biased;
                () = self.abort.cancelled() => return None,
                () = self.drain.cancelled() => {}
                () = self.outlet.queue.changed() => {}
                () = tokio::time::sleep_until(due_at) => {}
            }
        }
    }

    fn take(&self) -> Vec<Frame> {
        let mut bytes = 0;
        self.outlet.queue.take(|frame| {
            let first = bytes == 0;
            bytes += frame.bytes.len();
            first || bytes <= self.message_bytes
        })
    }

    /// Tries until the message is stored.
    async fn deliver(&mut self, frames: Vec<Frame>) -> Result<Flow, Error> {
        let mut flight = self.build(frames);
        let (mut backoff, mut corrections) = (Backoff::default(), 0);
        loop {
            let before = std::mem::replace(&mut flight.unsure, true);
            let Some(tried) = self.abort.run_until_cancelled(self.chain.send(&flight.headers, &flight.payload)).await else {
                return Ok(self.give_up(&flight));
            };
            match tried {
                Try::Stored(seq) => {
                    self.stored(flight, seq);
                    return Ok(Flow::On);
                }
                Try::Behind(last) => {
                    flight.unsure = false;
                    if let Err(error) = self.examine(last.as_deref(), flight.n) {
                        flight.unsure = before;
                        self.give_up(&flight);
                        return Err(error);
                    }
                    corrections += 1;
                    if corrections <= CORRECTIONS_MAX {
                        continue;
                    }
                    self.failed("wrong_last", "the subject's last sequence keeps changing");
                }
                Try::Unknown(reason) => {
                    self.trouble = true;
                    self.failed("unknown", &reason);
                }
                Try::Unavailable(reason) => {
                    flight.unsure = before;
                    self.trouble = true;
                    self.failed("unavailable", &reason);
                }
                Try::Full(reason) => {
                    flight.unsure = false;
                    self.full.notify_one();
                    self.failed("full", &reason);
                }
                Try::Refused(reason) => {
                    flight.unsure = before;
                    self.failed("refused", &reason);
                }
                Try::TooLarge(bytes) => {
                    self.shrink(flight, bytes);
                    return Ok(Flow::On);
                }
            }
            if self.abort.run_until_cancelled(tokio::time::sleep(backoff.pause())).await.is_none() {
                return Ok(self.give_up(&flight));
            }
        }
    }

    fn build(&self, frames: Vec<Frame>) -> Flight {
        let mut builder = MessageBuilder::new();
        let (mut samples, mut first_ms, mut last_ms) = (0, i64::MAX, i64::MIN);
        for frame in &frames {
            builder.push(&frame.bytes);
            samples += u64::from(frame.samples);
            first_ms = first_ms.min(frame.slot_ms);
            last_ms = last_ms.max(frame.slot_ms);
        }
        if frames.is_empty() {
            let now_ms = self.clock.now_ms();
            (first_ms, last_ms) = (now_ms, now_ms);
        }
        let payload = Bytes::from(builder.finish());
        debug_assert!(payload.len() <= MESSAGE_BYTES_MAX, "a frame is smaller than a message");
        let n = self.acked + 1;
        let envelope = Envelope {
            producer: self.producer.clone(),
            partition: PARTITION,
            epoch: self.epoch,
            n,
            samples,
            samples_total: self.samples_total + samples,
            dropped_total: self.outlet.queue.dropped_total(),
            first_ms,
            last_ms,
            crc32c: sample::checksum(&payload),
        };
        let mut headers = Headers::default();
        for (name, value) in envelope.headers() {
            headers.insert(name, value);
        }
        Flight { frames, headers, payload, samples, n, unsure: false }
    }

    /// Another message than expected is the subject's last: ours of an earlier number, one of an earlier epoch, or somebody else's.
    fn examine(&mut self, last: Option<&Message>, n: u64) -> Result<(), Error> {
        let Some(found) = last.and_then(envelope) else { return Ok(()) };
        if found.epoch > self.epoch || (found.epoch == self.epoch && found.n >= n) {
            return Err(Error::Displaced { producer: self.producer.clone(), ours: self.epoch, theirs: found.epoch });
        }
        if self.acked > 0 && (found.epoch, found.n) < (self.epoch, self.acked) {
            self.rolled_back(last.map_or(0, |message| message.seq));
        }
        Ok(())
    }

    fn stored(&mut self, flight: Flight, seq: u64) {
        if seq <= self.seq_max {
            self.rolled_back(seq);
        }
        self.seq_max = seq;
        self.acked = flight.n;
        self.samples_total += flight.samples;
        self.idle_since = Instant::now();
        let (outlet, now_ms) = (&self.outlet, self.clock.now_ms());
        outlet.queue.landed(&flight.frames);
        let bytes = flight.payload.len() as u64;
        let stored_bytes = port::stored_bytes(self.chain.subject(), &flight.headers, flight.payload.len());
        outlet.stored_bytes.fetch_add(stored_bytes, Ordering::AcqRel);
        outlet.last_ack_ms.store(now_ms, Ordering::Release);
        *outlet.stuck() = None;
        outlet.telemetry.published_samples.inc_by(flight.samples);
        outlet.telemetry.published_bytes.inc_by(bytes);
        outlet.telemetry.published_messages.inc();
        outlet.telemetry.last_ack.set(now_ms as f64 / 1000.0);
        let dropped = outlet.queue.dropped_total();
        if std::mem::take(&mut self.trouble) || dropped != self.dropped_seen {
            outlet.generation.fetch_add(1, Ordering::AcqRel);
        }
        if let Some(since) = self.stuck_since.take() {
            let (seconds, lost) = (since.elapsed().as_secs_f64(), dropped - self.dropped_seen);
            tracing::info!(producer = self.producer, seconds, dropped_samples = lost, "publishing again");
        }
        self.dropped_seen = dropped;
        if outlet.queue.has_tally() {
            outlet.bookable.notify_one();
        }
    }

    fn rolled_back(&mut self, seq: u64) {
        // Relays find the gap in our numbers and book it; here it only means that bases may be gone.
        tracing::error!(producer = self.producer, seq, "the stream lost messages that it had acknowledged");
        self.outlet.telemetry.rollbacks.inc();
        self.seq_max = seq;
        self.trouble = true;
    }

    /// The server takes smaller messages only: fewer frames go into one from now on. A single frame is given up.
    fn shrink(&mut self, flight: Flight, bytes: usize) {
        self.failed("too_large", &format!("a message of {bytes} bytes is too large for the server"));
        if flight.frames.len() > 1 {
            self.message_bytes = (self.message_bytes / 2).max(1);
            self.outlet.queue.put_back(flight.frames);
        } else {
            self.outlet.queue.give_up_with_dependents(&flight.frames, Dropped::TooLarge);
        }
    }

    fn give_up(&self, flight: &Flight) -> Flow {
        let why = if flight.unsure { Dropped::StoppedUnknown } else { Dropped::Stopped };
        self.outlet.queue.give_up(&flight.frames, why);
        Flow::End
    }

    /// Counts a try that came to nothing; the first of many is logged.
    fn failed(&mut self, reason: &'static str, detail: &str) {
        self.outlet.telemetry.publish_errors.with_label_values(&[reason]).inc();
        *self.outlet.stuck() = Some(detail.to_owned());
        if self.stuck_since.is_none() {
            self.stuck_since = Some(Instant::now());
            tracing::warn!(producer = self.producer, reason, "cannot publish for now, samples wait in memory: {detail}");
        } else {
            tracing::debug!(producer = self.producer, reason, "cannot publish yet: {detail}");
        }
    }
}

/// An epoch above that of a message; where that cannot be read, above the time at which it was stored.
fn after(last: &Message) -> u64 {
    let epoch = match envelope(last) {
        Some(envelope) => envelope.epoch,
        None => u64::try_from(last.time_ms).unwrap_or(0),
    };
    epoch.saturating_add(1)
}

fn envelope(message: &Message) -> Option<Envelope> {
    Envelope::parse(|name| message.headers.get(name)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_above_what_is_there_even_if_that_cannot_be_read() {
        let mut message = Message { seq: 1, subject: String::new(), headers: Headers::default(), payload: Bytes::new(), time_ms: 7 };
        assert_eq!(after(&message), 8);
        let envelope = Envelope { producer: "west".into(), epoch: 40, n: 1, ..Envelope::default() };
        envelope.headers().into_iter().for_each(|(name, value)| message.headers.insert(name, value));
        assert_eq!(after(&message), 41);
        message.headers.insert("St-Version", "2");
        assert_eq!(after(&message), 8);
    }
}
