//! Forgetting a relay that left the configuration: it holds no space any more, and a relay of its name begins anew.
//!
//! *In*: a name. *Out*: its checkpoint, its pause and the note of its leaving are gone; what it had not delivered is booked as lost before that. *Bound*: one
//! message at a time. *When full*: waits for the ledger.

use bundled_nats::ledger::{Entry, Stage};
use bundled_nats::port::{Error as PortError, Message, Streams};
use sample::Envelope;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::backoff::now_ms;
use crate::checkpoint::{self, Checkpoint, Place};
use crate::dead::Stopped;
use crate::existing::Existing;
use crate::reached::Reached;
use crate::read::identity;
use crate::{book, minutes, pause, trim};

/// Why its samples are lost.
pub const FORGOTTEN: &str = "forgotten";

/// What was forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Forgotten {
    /// The relay.
    pub relay: String,
    /// Samples after its position and of its backlog, of all jobs: lost for it.
    pub lost_samples: u64,
}

/// Why it was not.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The streams did not answer.
    #[error(transparent)]
    Port(#[from] PortError),
    /// It was stopped before its end.
    #[error("stopped before the end")]
    Stopped,
}

impl From<Stopped> for Error {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

/// Names of relays that have a checkpoint.
pub async fn names(streams: &Streams) -> Result<Vec<String>, PortError> {
    let prefix = checkpoint::key("");
    let keys = streams.state.keys(&prefix).await?;
    Ok(keys.iter().filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect())
}

/// Forgets a relay that does not run; none: there is nothing of it.
pub async fn forget(streams: &Streams, relay: &str, stop: &CancellationToken) -> Result<Option<Forgotten>, Error> {
    let found = streams.state.get(&checkpoint::key(relay)).await?;
    if found.is_none() && !minutes::is_begun(&streams.ledger, relay).await? {
        return Ok(None);
    }
    // Of one that cannot be read, or is gone, nobody knows what it had delivered.
    let known = found.and_then(|found| serde_json::from_slice::<Checkpoint>(&found.value).ok());
    let mut known = known.unwrap_or_else(|| Checkpoint::at(0, 1));
    let entry = undelivered(streams, relay, &mut known, u64::MAX, FORGOTTEN).await?;
    if entry.frames > 0 {
        book::book(&streams.ledger, &book::subject_of("relay", relay, FORGOTTEN), &entry, stop).await?;
    }
    minutes::end(&streams.ledger, relay).await?;
    for key in [checkpoint::key(relay), trim::left_key(relay), pause::key(relay)] {
        if streams.state.get(&key).await?.is_some() {
            streams.state.delete(&key).await?;
        }
    }
    Ok(Some(Forgotten { relay: relay.to_owned(), lost_samples: entry.samples }))
}

/// Whether the stream was torn below a position: sequences are not identity, and what has those up to there now was not delivered.
pub(crate) async fn is_torn(streams: &Streams, known: &Checkpoint) -> Result<bool, PortError> {
    Ok(match (&known.id, streams.raw.get(known.seq).await?) {
        (Some(id), Some(message)) => identity(&message, Envelope::parse(|name| message.headers.get(name)).ok().as_ref()) != *id,
        (None, Some(_)) => false,
        (_, None) => known.seq > streams.raw.info().await?.last_seq,
    })
}

/// Where what a relay has not delivered begins; anywhere, where the stream was torn.
pub(crate) async fn begins(streams: &Streams, known: &Checkpoint) -> Result<u64, PortError> {
    Ok(if is_torn(streams, known).await? { 1 } else { known.passed() + 1 })
}

/// What a relay that does not run has not delivered up to a sequence, of all jobs, and what no entry of this reason has yet; its checkpoint moves past it.
pub(crate) async fn undelivered(streams: &Streams, relay: &str, known: &mut Checkpoint, to: u64, reason: &str) -> Result<Entry, PortError> {
    let mut entry = Entry {
        at_ms: now_ms(),
        stage: Stage::Relay,
        relay: Some(relay.to_owned()),
        producer: None,
        reason: reason.to_owned(),
        samples: 0,
        frames: 0,
        seqs: None,
        slots: None,
        target: None,
    };
    let newest = streams.ledger.last(&book::subject_of("relay", relay, reason)).await?;
    let booked = newest.and_then(|message| Some((message.time_ms, serde_json::from_slice::<Entry>(&message.payload).ok()?)));
    let booked = booked.and_then(|(time_ms, entry)| Some((time_ms, entry.at_ms, entry.seqs?.1)));
    // Whoever was killed between the entry and what follows it makes no second one; a sequence that was stored after it is another message.
    let is_booked = |message: &Message| booked.is_some_and(|(time_ms, _, to)| message.seq <= to && message.time_ms <= time_ms);
    let begins = begins(streams, known).await?;
    let (seq, waiting) = (known.seq, known.let_go(to));
    if waiting > 0 && !booked.is_some_and(|(_, at_ms, to)| seq <= to && known.at_ms <= at_ms) {
        (entry.samples, entry.frames, entry.seqs) = (waiting, 1, Some((seq, seq)));
    }
    let is_torn = begins <= known.passed();
    let reached = Reached::default();
    reached.load(&*streams.state).await?;
    let mut messages = Existing::open(&streams.raw, begins).await?;
    while let Some(message) = messages.next().await?.filter(|message| message.seq <= to) {
        let envelope = Envelope::parse(|name| message.headers.get(name)).ok();
        let is_another = |envelope: &Envelope| known.is_own(envelope) && known.positions.place(envelope) != Place::Seen;
        if known.is_past(message.seq) && !(is_torn && envelope.as_ref().is_some_and(is_another)) {
            continue;
        }
        let gap = known.give_up(&message, envelope.as_ref(), &reached);
        if is_booked(&message) {
            continue;
        }
        entry.frames += 1 + gap.messages;
        entry.samples += gap.samples;
        entry.seqs = Some((entry.seqs.map_or(message.seq, |(first, _)| first), message.seq));
        if let Some(envelope) = envelope {
            entry.samples += envelope.samples;
            let slots = entry.slots.unwrap_or((envelope.first_ms, envelope.last_ms));
            entry.slots = Some((slots.0.min(envelope.first_ms), slots.1.max(envelope.last_ms)));
        }
        tokio::task::yield_now().await;
    }
    Ok(entry)
}
