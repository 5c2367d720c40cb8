//! The book of one relay: losses on their way into the ledger.
//!
//! *In*: losses, message by message. *Out*: ledger entries, durable before the position passes what they tell of. *Bound*: one open entry per
//! reason. *When full*: waits for the ledger; the position does not move meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use bundled_nats::ledger::{Entry, Stage};
use bundled_nats::port::{Error as PortError, Headers, Log, Message, PublishError};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::backoff::{Backoff, nonce, now_ms};
use crate::control::Why;
use crate::dead::Stopped;
use crate::desk::Side;
use crate::step::Loss;

/// What the server recognises a message by that comes again.
const ID: &str = "Nats-Msg-Id";

/// All reasons under which a relay books.
pub const REASONS: [&str; 6] = ["rollback", "no_base", "corrupt", Why::MaxAge.as_str(), Why::MaxBytes.as_str(), Why::Full.as_str()];

/// Subject of ledger entries: one per stage, relay and reason, so that the newest of each can be found.
pub fn subject_of(stage: &str, relay: &str, reason: &str) -> String {
    format!("strata.ledger.{stage}.{relay}.{reason}")
}

/// The same of one of a relay's positions: the newest entry of a subject tells how far that one booked.
fn own_subject_of(stage: &str, relay: &str, side: Side, reason: &str) -> String {
    let subject = subject_of(stage, relay, reason);
    match side {
        Side::Head => subject,
        Side::Behind => format!("{subject}.behind"),
    }
}

/// One message on its way. Once an outcome is unknown it is looked for before each try, as the server recognises what comes again for two minutes only.
pub struct Sending<'a> {
    log: &'a Arc<dyn Log>,
    subject: &'a str,
    headers: &'a Headers,
    /// Where others write to the subject too: it is above this sequence, if it is there.
    above: Option<u64>,
    is_unknown: bool,
}

impl<'a> Sending<'a> {
    /// To a subject that nobody else writes to.
    pub const fn alone(log: &'a Arc<dyn Log>, subject: &'a str, headers: &'a Headers) -> Self {
        Self { log, subject, headers, above: None, is_unknown: false }
    }

    /// To a subject that others write to; `above`: a sequence from before the first try.
    pub const fn beside(log: &'a Arc<dyn Log>, subject: &'a str, headers: &'a Headers, above: u64) -> Self {
        Self { log, subject, headers, above: Some(above), is_unknown: false }
    }

    /// Tries it, or once more; says its sequence.
    pub async fn publish(&mut self, payload: Bytes) -> Result<u64, PublishError> {
        if self.is_unknown {
            match self.find().await {
                Ok(Some(seq)) => return Ok(seq),
                Ok(None) => {}
                Err(error) => return Err(PublishError::Unavailable(error.to_string())),
            }
        }
        let published = self.log.publish(self.subject, self.headers, payload, None).await;
        if let Err(PublishError::Unknown(_)) = published {
            self.is_unknown = true;
            if let Ok(Some(seq)) = self.find().await {
                return Ok(seq);
            }
        }
        published
    }

    /// Its sequence, where it is there.
    async fn find(&self) -> Result<Option<u64>, PortError> {
        let is_it = |message: &Message| message.headers.get(ID) == self.headers.get(ID);
        let Some(last) = self.log.last(self.subject).await? else { return Ok(None) };
        if is_it(&last) {
            return Ok(Some(last.seq));
        }
        let mut from = self.above.map_or(last.seq, |above| above.saturating_add(1));
        while from < last.seq
            && let Some(message) = self.log.next_of(self.subject, from).await?
        {
            if is_it(&message) {
                return Ok(Some(message.seq));
            }
            from = message.seq + 1;
        }
        Ok(None)
    }
}

/// An entry as a message: its headers and its payload.
fn message(entry: &Entry) -> (Headers, Bytes) {
    let mut headers = Headers::default();
    headers.insert(ID, format!("ledger:{:x}:{:x}", entry.at_ms, nonce()));
    (headers, Bytes::from(serde_json::to_vec(entry).unwrap_or_default()))
}

/// Books one entry and waits, as long as it takes, until it is stored.
pub async fn book(log: &Arc<dyn Log>, subject: &str, entry: &Entry, stop: &CancellationToken) -> Result<(), Stopped> {
    let (headers, payload) = message(entry);
    store(log, subject, &headers, &payload, stop).await.map(|_| ())
}

/// Books one entry now, unless its subject has another newest message than that of sequence `expect_last` (0: none).
pub async fn book_after(log: &Arc<dyn Log>, subject: &str, entry: &Entry, expect_last: u64) -> Result<u64, PublishError> {
    let (headers, payload) = message(entry);
    log.publish(subject, &headers, payload, Some(expect_last)).await
}

/// Books one entry now, for who looks again later where it cannot; `operation`: what it is for.
pub async fn book_now(log: &Arc<dyn Log>, subject: &str, entry: &Entry, operation: &'static str) -> Result<(), PortError> {
    let (headers, payload) = message(entry);
    let booked = Sending::alone(log, subject, &headers).publish(payload).await;
    booked.map(drop).map_err(|error| PortError::Unavailable { operation, reason: error.to_string() })
}

/// Publishes one message and waits, as long as it takes, until it is stored; says its sequence.
pub async fn store(
    log: &Arc<dyn Log>,
    subject: &str,
    headers: &Headers,
    payload: &Bytes,
    stop: &CancellationToken,
) -> Result<u64, Stopped> {
    let (mut backoff, mut told, mut sending) = (Backoff::default(), false, Sending::alone(log, subject, headers));
    loop {
        let error = match sending.publish(payload.clone()).await {
            Ok(seq) => return Ok(seq),
            Err(error) => error,
        };
        if !std::mem::replace(&mut told, true) {
            warn!(subject, %error, "cannot book, trying again without end");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Stopped),
            () = tokio::time::sleep(backoff.wait()) => {}
        }
    }
}

/// Losses of one relay that are not booked yet.
pub struct Book {
    log: Arc<dyn Log>,
    relay: String,
    side: Side,
    stop: CancellationToken,
    open: BTreeMap<&'static str, Entry>,
    /// Per reason: the sequence up to which a life before this one booked, above the checkpoint.
    booked: BTreeMap<&'static str, u64>,
    /// The newest of its entries in the ledger, of this life or one before.
    newest: u64,
}

impl Book {
    /// Looks what is booked already above a position, but for what was booked up to `voided` in the ledger. The second value: up to where samples were
    /// given up, and why.
    pub async fn open(
        log: Arc<dyn Log>,
        (relay, side): (&str, Side),
        (position, voided): (u64, u64),
        stop: CancellationToken,
    ) -> Result<(Self, Option<(u64, Why)>), PortError> {
        let (mut booked, mut newest) = (BTreeMap::new(), 0);
        for reason in REASONS {
            let stage = if reason == "rollback" { "stream" } else { "relay" };
            let Some(last) = log.last(&own_subject_of(stage, relay, side, reason)).await? else { continue };
            newest = newest.max(last.seq);
            let entry = serde_json::from_slice::<Entry>(&last.payload).ok();
            if let Some((_, to)) = entry.and_then(|entry| entry.seqs)
                && to > position
                && last.seq > voided
            {
                booked.insert(reason, to);
            }
        }
        let given_up = [Why::MaxAge, Why::MaxBytes, Why::Full]
            .into_iter()
            .filter_map(|why| Some((*booked.get(why.as_str())?, why)))
            .max_by_key(|(to, _)| *to);
        Ok((Self { log, relay: relay.to_owned(), side, stop, open: BTreeMap::new(), booked, newest }, given_up))
    }

    /// Notes a loss at a stream sequence.
    pub fn add(&mut self, seq: u64, producer: Option<&str>, loss: &Loss) {
        if self.booked.get(loss.reason).is_some_and(|to| seq <= *to) {
            return;
        }
        let entry = self.open.entry(loss.reason).or_insert_with(|| Entry {
            at_ms: now_ms(),
            stage: if loss.stream { Stage::Stream } else { Stage::Relay },
            relay: Some(self.relay.clone()),
            producer: producer.map(str::to_owned),
            reason: loss.reason.to_owned(),
            samples: 0,
            frames: 0,
            seqs: Some((seq, seq)),
            slots: None,
            target: loss.target.map(|target| target.to_string()),
        });
        entry.samples += loss.samples;
        entry.frames += loss.frames;
        entry.seqs = entry.seqs.map(|(from, to)| (from.min(seq), to.max(seq)));
        if let Some(slot) = loss.slot_ms {
            entry.slots = Some(entry.slots.map_or((slot, slot), |(from, to)| (from.min(slot), to.max(slot))));
        }
        if entry.producer.as_deref() != producer {
            entry.producer = None;
        }
        if entry.target != loss.target.map(|target| target.to_string()) {
            entry.target = None;
        }
    }

    /// Whether nothing that is booked lies above a sequence.
    pub fn is_past_all(&self, seq: u64) -> bool {
        self.booked.values().all(|to| *to <= seq)
    }

    /// The stream was rolled back: what was booked above the checkpoint says nothing of what is there now. Says up to where in the ledger that is so, for
    /// lives after this one.
    pub fn void(&mut self) -> u64 {
        self.booked.clear();
        self.newest
    }

    /// Writes all open entries and waits until they are stored.
    pub async fn flush(&mut self) -> Result<(), Stopped> {
        while let Some((reason, entry)) = self.open.first_key_value() {
            let reason = *reason;
            let stage = if entry.stage == Stage::Stream { "stream" } else { "relay" };
            let (headers, payload) = message(entry);
            let subject = own_subject_of(stage, &self.relay, self.side, reason);
            self.newest = store(&self.log, &subject, &headers, &payload, &self.stop).await?;
            self.open.remove(reason);
        }
        Ok(())
    }
}
