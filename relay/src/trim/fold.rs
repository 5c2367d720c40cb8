//! The fold: keeps `STRATA_LEDGER` below its wall without changing what it says.
//!
//! *In*: the oldest eighth of a ledger that is fuller than [`FOLD_ABOVE`]. *Out*: one entry per stage, relay and reason with the same sums, stored
//! before the purge. *Bound*: one entry of each kind in memory, one look per [`FOLD_INTERVAL`]. *When full*: a ledger without room for the
//! summary: that waits in `STRATA_STATE` from before the purge until there is.
//!
//! A summary carries [`FOLDED`], the sequence up to which it speaks: an entry of its kind at or below that sequence counts no more. So the sums
//! are right at every moment, also between the summary and the purge, and a fold that was interrupted is only done again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bundled_nats::ledger::{Entry, Stage};
use bundled_nats::port::{Error, Headers, Info, Log, Message, PublishError, Read, State};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Plan;
use crate::backoff::now_ms;
use crate::book;
use crate::checkpoint::{self, Checkpoint};
use crate::lasting::Lasting;

/// Header of a summary: the last sequence it speaks for.
pub const FOLDED: &str = "St-Folded";

/// Share of the ledger's wall above which its oldest entries are folded. Larger: less room for a burst; smaller: less detail is kept.
pub const FOLD_ABOVE: f64 = 0.8;

/// Share above which an entry that a relay may still want to find is folded too: full, it would stop every relay.
const URGENT_ABOVE: f64 = 0.95;

/// The oldest such part of the messages is folded at a time.
const FOLD_SHARE: u64 = 8;

/// Time between two looks. Larger: a burst may fill the ledger in between; smaller: more requests to the server.
const FOLD_INTERVAL: Duration = Duration::from_secs(5);

/// How long the next old entry may take; it is there, so nothing but a broken connection takes longer.
const READ_MAX: Duration = Duration::from_secs(10);

/// Bytes of entries on their way.
const BYTES_IN_FLIGHT: usize = 1 << 20;

/// Where summaries wait that the ledger has no room for.
const PENDING_KEY: &str = "ledger.fold";

/// Stage, relay, reason.
type Kind = (&'static str, String, String);

/// Summaries on their way, as `STRATA_STATE` has them.
#[derive(Serialize, Deserialize)]
struct Pending {
    upto: u64,
    entries: Vec<Entry>,
}

/// Folds the ledger.
pub struct Fold {
    ledger: Arc<dyn Log>,
    state: Arc<dyn State>,
    planned: watch::Receiver<Plan>,
}

impl Fold {
    /// `ledger`: with the right to purge it; `planned`: relays that look for their newest entries when they start.
    pub fn new(ledger: Arc<dyn Log>, state: Arc<dyn State>, planned: watch::Receiver<Plan>) -> Self {
        Self { ledger, state, planned }
    }

    /// One look; whether another one now would help.
    pub async fn look(&self) -> Result<bool, Error> {
        self.finish().await?;
        let info = self.ledger.info().await?;
        let fill = info.bytes as f64 / info.max_bytes.max(1) as f64;
        if fill <= FOLD_ABOVE {
            return Ok(false);
        }
        let (upto, count, kinds) = self.oldest(&info, fill > URGENT_ABOVE).await?;
        if count <= kinds.len() as u64 {
            warn!(entries = info.messages, "the ledger is nearly full and cannot be folded further: losses may wait to be booked");
            return Ok(false);
        }
        let entries: Vec<Entry> = kinds.into_values().flatten().collect();
        for (k, entry) in entries.iter().enumerate() {
            match self.publish(entry, upto).await {
                Ok(()) => {}
                // In the state the rest is as durable; what is published already is found again there.
                Err(PublishError::Full(_)) => {
                    self.put(&Pending { upto, entries: entries[k..].to_vec() }).await?;
                    break;
                }
                Err(error) => return Err(unavailable(&error)),
            }
        }
        let purged = self.ledger.purge(upto + 1).await?;
        info!(entries = purged, into = entries.len(), "the ledger's oldest entries were folded: their sums stay");
        self.finish().await?;
        Ok(purged > 0)
    }

    /// Publishes what waits in the state since there was no room.
    async fn finish(&self) -> Result<(), Error> {
        let Some(entry) = self.state.get(PENDING_KEY).await? else { return Ok(()) };
        let Ok(pending) = serde_json::from_slice::<Pending>(&entry.value) else {
            return Err(Error::Unavailable {
                operation: "read the folded entries",
                reason: format!("'{PENDING_KEY}' is not JSON of ours"),
            });
        };
        // It was written before the purge, so the purge may be still to come.
        self.ledger.purge(pending.upto + 1).await?;
        for entry in &pending.entries {
            if self.folded(&kind_of(entry)).await? < pending.upto {
                self.publish(entry, pending.upto).await.map_err(|error| unavailable(&error))?;
            }
        }
        self.state.delete(PENDING_KEY).await
    }

    async fn put(&self, pending: &Pending) -> Result<(), Error> {
        let value = serde_json::to_vec(pending).map_err(|e| Error::Unavailable { operation: "write", reason: e.to_string() })?;
        self.state.put(PENDING_KEY, Bytes::from(value), 0).await.map(|_| ())
    }

    async fn publish(&self, entry: &Entry, upto: u64) -> Result<(), PublishError> {
        let mut headers = Headers::default();
        headers.insert("Nats-Msg-Id", format!("fold:{upto}:{:x}", rand::random::<u64>()));
        headers.insert(FOLDED, upto.to_string());
        book::publish(&self.ledger, &subject_of(&kind_of(entry)), &headers, Bytes::from(serde_json::to_vec(entry).unwrap_or_default()))
            .await
    }

    /// Up to where a kind is folded already.
    async fn folded(&self, kind: &Kind) -> Result<u64, Error> {
        Ok(self.ledger.last(&subject_of(kind)).await?.as_ref().and_then(folded_to).unwrap_or(0))
    }

    /// Adds up the oldest entries: up to where, how many, and what is not said by a summary yet, by kind.
    async fn oldest(&self, info: &Info, urgent: bool) -> Result<(u64, u64, BTreeMap<Kind, Option<Entry>>), Error> {
        let wanted = info.first_seq + (info.messages / FOLD_SHARE).max(1);
        let mut read = self.ledger.read(info.first_seq, BYTES_IN_FLIGHT).await?;
        let (mut upto, mut count) = (info.first_seq.saturating_sub(1), 0);
        let mut kinds: BTreeMap<Kind, Option<Entry>> = BTreeMap::new();
        let mut folded: BTreeMap<Kind, u64> = BTreeMap::new();
        while upto + 1 < wanted {
            let message = next(&mut read).await?;
            let Ok(entry) = serde_json::from_slice::<Entry>(&message.payload) else {
                warn!(subject = message.subject, payload = %String::from_utf8_lossy(&message.payload), "an entry of the ledger is unreadable: it goes");
                (upto, count) = (message.seq, count + 1);
                continue;
            };
            if !urgent && self.is_wanted(&message, &entry).await? {
                break;
            }
            (upto, count) = (message.seq, count + 1);
            let kind = kind_of(&entry);
            let done = match folded.get(&kind) {
                Some(done) => *done,
                None => {
                    let done = self.folded(&kind).await?;
                    folded.insert(kind.clone(), done);
                    done
                }
            };
            let sum = kinds.entry(kind).or_default();
            if message.seq > done {
                match sum {
                    Some(sum) => add(sum, &entry),
                    None => *sum = Some(Entry { at_ms: now_ms(), ..entry }),
                }
            }
        }
        Ok((upto, count, kinds))
    }

    /// Whether a relay that starts again must find this entry, so as not to book the same once more; without a checkpoint, all that is known.
    async fn is_wanted(&self, message: &Message, entry: &Entry) -> Result<bool, Error> {
        let (Some(relay), Some((_, to)), Stage::Relay | Stage::Stream) = (&entry.relay, entry.seqs, entry.stage) else { return Ok(false) };
        if message.headers.get(FOLDED).is_some() || !self.planned.borrow().subjects.iter().any(|subject| subject.relay.name == *relay) {
            return Ok(false);
        }
        if self.ledger.last(&message.subject).await?.is_none_or(|last| last.seq != message.seq) {
            return Ok(false);
        }
        let found = self.state.get(&checkpoint::key(relay)).await?;
        let checkpoint = found.and_then(|found| serde_json::from_slice::<Checkpoint>(&found.value).ok());
        Ok(checkpoint.is_none_or(|checkpoint| to > checkpoint.seq))
    }
}

#[async_trait]
impl Lasting for Fold {
    const NAME: &'static str = "fold";

    async fn run(&mut self, stop: &CancellationToken) {
        loop {
            let more = match self.look().await {
                Ok(more) => more,
                Err(error) => {
                    tracing::debug!(%error, "cannot fold the ledger now");
                    false
                }
            };
            let pause = if more { Duration::ZERO } else { FOLD_INTERVAL };
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }
}

/// What a ledger says, by stage, relay and reason: samples and frames. The messages of all of it, in order.
pub fn sums(messages: &[Message]) -> BTreeMap<(&'static str, String, String), (u64, u64)> {
    let entries: Vec<(u64, Option<u64>, Entry)> = messages
        .iter()
        .filter_map(|message| Some((message.seq, folded_to(message), serde_json::from_slice::<Entry>(&message.payload).ok()?)))
        .collect();
    let mut folded: BTreeMap<Kind, u64> = BTreeMap::new();
    for (_, upto, entry) in &entries {
        if let Some(upto) = upto {
            let newest = folded.entry(kind_of(entry)).or_default();
            *newest = (*newest).max(*upto);
        }
    }
    let mut sums: BTreeMap<Kind, (u64, u64)> = BTreeMap::new();
    for (seq, _, entry) in &entries {
        let kind = kind_of(entry);
        if folded.get(&kind).is_none_or(|upto| seq > upto) {
            let sum = sums.entry(kind).or_default();
            *sum = (sum.0 + entry.samples, sum.1 + entry.frames);
        }
    }
    sums
}

pub(super) async fn next(read: &mut Box<dyn Read>) -> Result<Message, Error> {
    match tokio::time::timeout(READ_MAX, read.next()).await {
        Ok(message) => message,
        Err(_) => Err(Error::Unavailable { operation: "read what is there", reason: "no answer".to_owned() }),
    }
}

fn add(sum: &mut Entry, entry: &Entry) {
    fn wider<T: Ord + Copy>(a: Option<(T, T)>, b: Option<(T, T)>) -> Option<(T, T)> {
        match (a, b) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (one, other) => one.or(other),
        }
    }
    sum.samples = sum.samples.saturating_add(entry.samples);
    sum.frames = sum.frames.saturating_add(entry.frames);
    sum.seqs = wider(sum.seqs, entry.seqs);
    sum.slots = wider(sum.slots, entry.slots);
    if sum.producer != entry.producer {
        sum.producer = None;
    }
    if sum.target != entry.target {
        sum.target = None;
    }
}

fn folded_to(message: &Message) -> Option<u64> {
    message.headers.get(FOLDED)?.parse().ok()
}

fn kind_of(entry: &Entry) -> Kind {
    (stage(entry.stage), entry.relay.clone().unwrap_or_default(), entry.reason.clone())
}

const fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Scrape => "scrape",
        Stage::Publish => "publish",
        Stage::Stream => "stream",
        Stage::Relay => "relay",
        Stage::Dead => "dead",
    }
}

/// A subject of their own: the newest message of the others tells their writers where they are.
fn subject_of((stage, relay, reason): &Kind) -> String {
    // Relay names and reasons are words; an empty token is no subject.
    format!("strata.ledger.folded.{stage}.{}.{reason}", if relay.is_empty() { "-" } else { relay })
}

fn unavailable(error: &PublishError) -> Error {
    Error::Unavailable { operation: "fold the ledger", reason: error.to_string() }
}
