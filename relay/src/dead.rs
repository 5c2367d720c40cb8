//! Dead letters: what a sink will never take, and what cannot be decoded, kept in `STRATA_DEAD` with the reason.
//!
//! *In*: rejected samples with the sink's answer; messages with undecodable frames. *Out*: messages on `strata.dead.<relay>`.
//! *Bound*: [`LETTER_BYTES_MAX`] per letter of samples, one message's payload for frames; the stream's own limit. *When full*: the oldest
//! letters are trimmed, each trim booked in the ledger first.

pub mod again;
mod attempts;
mod chunk;
mod letter;
mod room;
pub mod shelf;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bundled_nats::port::{Error as PortError, Headers, Log, Message, PublishError};
use bytes::Bytes;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::backoff::{Backoff, nonce, now_ms};
use crate::book::Sending;
use crate::deliver::SUSPECTS_MAX;
use crate::step::{Mark, Part};

use letter::Parked;
pub use letter::{Kept, Letter, Page, Sample};

/// Bytes of a letter of samples. Larger: nearer to the server's message limit; smaller: more messages.
pub const LETTER_BYTES_MAX: usize = 256 * 1024;

/// Bytes of a sink's answer that are kept.
const ANSWER_BYTES_MAX: usize = 2048;

/// Undecodable frames that a letter names one by one.
const FRAMES_NAMED_MAX: usize = 20;

/// Letters looked at for what a life before this one parked. Larger: a longer start after a crash; smaller: more may be parked twice.
const LETTERS_MAX: u64 = 4096;

/// What ends the key of a letter of frames.
const FRAMES: &str = "frames";

const SEQ: &str = "St-Seq";
const KEY: &str = "St-Key";
const SAMPLES: &str = "St-Samples";
const LETTER: &str = "St-Dead";
/// A letter of samples that the relay's minutes do not have as rejected.
const UNCOUNTED: &str = "St-Uncounted";
/// A letter that takes the place of an earlier one, by the attempt that made it: it counts once that has come to its end.
const ATTEMPT: &str = "St-Attempt";

/// The token ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// Subject of a relay's dead letters.
pub fn subject(relay: &str) -> String {
    format!("strata.dead.{relay}")
}

/// One rejected item of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offender {
    /// Its index in the part.
    pub item: usize,
    /// What the sink said.
    pub answer: Arc<str>,
}

/// Parks for one relay.
pub struct Dead {
    log: Arc<dyn Log>,
    ledger: Arc<dyn Log>,
    relay: String,
    stop: CancellationToken,
    /// Letters of a life before this one, above the checkpoint, by the key of their batch or message: the samples in them.
    there: BTreeMap<String, BTreeSet<Parked>>,
    /// What it stores next is above this sequence: replays and the other of a relay's positions write to the same subject.
    above: u64,
    role: Role,
}

/// For whom letters are parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The relay.
    Live,
    /// A replay, whose samples no minutes have.
    Replay,
    /// Dead letters that are sent again.
    Again {
        /// Whether the relay's minutes have them as rejected.
        is_counted: bool,
        /// Which attempt.
        attempt: u64,
    },
}

impl Dead {
    /// For a relay, or a replay of it by its name: looks which letters above its position are there already.
    pub async fn open(
        log: Arc<dyn Log>,
        ledger: Arc<dyn Log>,
        (relay, replay): (&str, Option<&str>),
        position: u64,
        stop: CancellationToken,
    ) -> Result<Self, PortError> {
        let role = if replay.is_some() { Role::Replay } else { Role::Live };
        let (own, first_seq) = (subject(relay), log.info().await?.first_seq.max(1));
        let last_seq = log.last(&own).await?.map_or(0, |last| last.seq);
        let (mut there, mut below): (BTreeMap<String, BTreeSet<Parked>>, _) = (BTreeMap::new(), BTreeSet::new());
        for seq in (first_seq.max(last_seq.saturating_sub(LETTERS_MAX))..=last_seq).rev() {
            let Some(message) = log.get(seq).await?.filter(|message| message.subject == own) else { continue };
            let key = message.headers.get(KEY).unwrap_or_default();
            let is_own = match replay {
                None => message.headers.get(UNCOUNTED).is_none(),
                Some(replay) => key.split(':').next() == Some(replay),
            };
            // Others' letters, and those that were moved, say nothing of where it was.
            if !is_own || message.headers.get(ATTEMPT).is_some() {
                continue;
            }
            let key = key.rsplit_once('#').filter(|(_, number)| *number != FRAMES).map_or(key, |(batch, _)| batch);
            if message.headers.get(SEQ).and_then(|seq| seq.parse::<u64>().ok()).is_none_or(|seq| seq <= position) {
                below.insert(key.to_owned());
                // What waited for a judgement was parked after what came later.
                if below.len() > SUSPECTS_MAX {
                    break;
                }
                continue;
            }
            let samples = Kept::of(&message).letter.into_iter().flat_map(|letter| letter.samples);
            there.entry(key.to_owned()).or_default().extend(samples.map(Parked::from));
        }
        Ok(Self { there, ..Self::beside((log, last_seq), ledger, relay, role, stop) })
    }

    /// For what runs beside the relay; with the log, the last sequence in it that is known.
    pub fn beside((log, above): (Arc<dyn Log>, u64), ledger: Arc<dyn Log>, relay: &str, role: Role, stop: CancellationToken) -> Self {
        Self { log, ledger, relay: relay.to_owned(), stop, there: BTreeMap::new(), above, role }
    }

    /// The stream was rolled back: which letters are there already is not known by sequence any more.
    pub fn void(&mut self) {
        self.there.clear();
    }

    /// Which items of a part a life before this one has parked, as far as it is not delivered yet.
    pub fn parked(&self, part: &Part) -> Vec<usize> {
        let Some(there) = self.there.get(&part.batch.key) else { return Vec::new() };
        (0..part.batch.items.len()).filter(|item| there.contains(&letter::parked(part, *item))).collect()
    }

    /// Parks rejected items and waits until they are stored.
    pub async fn park(&mut self, part: &Part, offenders: &[Offender]) -> Result<(), Stopped> {
        // The sink may refuse others than it did in a life before this one: what is there is known sample by sample.
        let there = self.there.remove(&part.batch.key).unwrap_or_default();
        let is_there = |offender: &&Offender| !there.is_empty() && there.contains(&letter::parked(part, offender.item));
        let offenders: Vec<Offender> = offenders.iter().filter(|offender| !is_there(offender)).cloned().collect();
        let (mut begin, mut bytes, mut letters) = (0, 0, 0);
        for (i, offender) in offenders.iter().enumerate() {
            // Item and series come twice: as text, and in a frame.
            bytes += 3 * part.batch.item(offender.item).len() + cut(&offender.answer).len() + 256;
            if bytes >= LETTER_BYTES_MAX || i + 1 == offenders.len() {
                self.letter(part, letters, &offenders[begin..=i]).await?;
                (begin, bytes, letters) = (i + 1, 0, letters + 1);
            }
        }
        Ok(())
    }

    async fn letter(&mut self, part: &Part, number: usize, offenders: &[Offender]) -> Result<(), Stopped> {
        let (samples, frames) = letter::of(part, offenders);
        let count = samples.len() as u64;
        let letter = Letter {
            relay: self.relay.clone(),
            reason: "rejected".to_owned(),
            seq: part.seq(),
            key: part.batch.key.clone(),
            at_ms: now_ms(),
            samples,
            frames,
        };
        let payload = serde_json::to_vec(&letter).unwrap_or_default();
        let key = format!("{}#{number}", part.batch.key);
        self.store(part.seq(), &key, count, None, Bytes::from(payload)).await
    }

    /// Parks a message with undecodable frames: its payload, with the reasons in a header.
    pub async fn park_frames(&mut self, mark: &Mark) -> Result<(), Stopped> {
        let samples = mark.undecodable.iter().map(|u| u.samples).sum();
        let frames: Vec<_> = mark
            .undecodable
            .iter()
            .take(FRAMES_NAMED_MAX)
            .map(|u| {
                json!({
                    "reason": u.reason, "detail": cut(&u.detail), "samples": u.samples,
                    "target": u.target.map(|t| t.to_string()), "slot_ms": u.slot_ms,
                })
            })
            .collect();
        let described = json!({
            "relay": self.relay, "reason": "undecodable", "seq": mark.seq, "id": mark.id, "at_ms": now_ms(),
            "count": mark.undecodable.len(), "frames": frames,
        });
        let key = format!("{}#{FRAMES}", mark.id);
        if self.there.remove(&key).is_some() {
            return Ok(());
        }
        self.store(mark.seq, &key, samples, Some(described.to_string()), mark.payload.clone()).await
    }

    async fn store(&mut self, seq: u64, key: &str, samples: u64, described: Option<String>, payload: Bytes) -> Result<(), Stopped> {
        let mut headers = Headers::default();
        headers.insert("Nats-Msg-Id", format!("{}:{key}:{:x}", self.relay, nonce()));
        headers.insert(SEQ, seq.to_string());
        headers.insert(KEY, key);
        headers.insert(SAMPLES, samples.to_string());
        if let Some(described) = described {
            headers.insert(LETTER, described);
        }
        if !matches!(self.role, Role::Live | Role::Again { is_counted: true, .. }) {
            headers.insert(UNCOUNTED, "1");
        }
        if let Role::Again { attempt, .. } = self.role {
            headers.insert(ATTEMPT, attempt.to_string());
        }
        self.put(&headers, payload).await
    }

    /// Stores a message as long as it takes; makes room where there is none.
    async fn put(&mut self, headers: &Headers, mut payload: Bytes) -> Result<(), Stopped> {
        let (key, subject) = (headers.get(KEY).unwrap_or_default(), subject(&self.relay));
        let mut sending = Sending::beside(&self.log, &subject, headers, self.above);
        let (mut backoff, mut told) = (Backoff::default(), false);
        loop {
            match sending.publish(payload.clone()).await {
                Ok(seq) => {
                    self.above = seq;
                    return Ok(());
                }
                Err(PublishError::Full(_)) if self.trim().await => continue,
                Err(PublishError::Full(_)) if told => {}
                Err(PublishError::Full(_)) => {
                    warn!(relay = self.relay, "the dead letters are full and cannot be trimmed further: trying again without end")
                }
                Err(PublishError::TooLarge { bytes }) if !payload.is_empty() => {
                    error!(relay = self.relay, key, bytes, "a dead letter is too large for the server: only its description is kept");
                    payload = Bytes::new();
                    continue;
                }
                Err(error) if told => debug!(relay = self.relay, %error, "cannot park a dead letter yet"),
                Err(error) => warn!(relay = self.relay, %error, "cannot park a dead letter, trying again without end"),
            }
            told = true;
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Stopped),
                () = tokio::time::sleep(backoff.wait()) => {}
            }
        }
    }

    /// Frees space by taking the oldest letters, booked before they go. False: there was nothing to take, or it could not.
    async fn trim(&self) -> bool {
        match room::make(&self.log, &self.ledger).await {
            Ok(any) => any,
            Err(error) => {
                debug!(relay = self.relay, %error, "cannot trim the dead letters");
                false
            }
        }
    }
}

/// Whose letter a message is.
fn relay_of(message: &Message) -> &str {
    message.subject.strip_prefix("strata.dead.").unwrap_or(&message.subject)
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(ANSWER_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
