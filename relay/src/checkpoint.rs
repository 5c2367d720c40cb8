//! Checkpoints: the only position of a relay, kept in `STRATA_STATE` under `relay.<name>`.
//!
//! *In*: what the sink acknowledged. *Out*: a JSON value, written only if nobody else wrote since. *Bound*: one write per
//! [`CHECKPOINT_INTERVAL`], one entry per producer seen within [`PRODUCER_MEMORY`]. *When full*: does not apply; while the state store is
//! away the relay goes on and repeats more after a crash.

mod positions;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bundled_nats::port::{Error as PortError, Message, State};
use bytes::Bytes;
use sample::Envelope;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backoff::now_ms;
use crate::minutes::Open;
use crate::newer;
use crate::reached::Reached;
use crate::step::Waiting;

pub use positions::{Gap, Mark, PRODUCER_MEMORY, Place, Positions};

/// Time between two writes. Larger: a crash repeats more; smaller: more fsyncs.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(250);

/// Version of a checkpoint that is one position.
pub(crate) const VERSION: u32 = 1;

/// Version of one with a backlog: a program that does not know of that must not go on from it.
pub(crate) const VERSION_BEHIND: u32 = 2;

/// Whether this program understands checkpoints of a version.
pub(crate) const fn is_known(version: u32) -> bool {
    matches!(version, VERSION | VERSION_BEHIND)
}

/// Key of a relay's checkpoint.
pub fn key(relay: &str) -> String {
    format!("relay.{relay}")
}

/// A relay's checkpoint as others see it; none: there is none, or none that can be understood.
pub async fn stored(state: &dyn State, relay: &str) -> Result<Option<Checkpoint>, PortError> {
    Ok(state.get(&key(relay)).await?.and_then(|entry| serde_json::from_slice(&entry.value).ok()))
}

/// Who wrote a relay's checkpoint last; none: there is none, or none that can be understood.
pub(crate) async fn owner(state: &dyn State, relay: &str) -> Result<Option<String>, PortError> {
    Ok(stored(state, relay).await?.map(|checkpoint| checkpoint.owner))
}

/// Samples that the checkpoint has passed, by what became of them: `read = delivered + filtered + rejected + lost`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Samples of the relay's jobs that were decoded, or known to be missing.
    pub read: u64,
    /// Acknowledged by the sink, or of no consequence for it (a zero delta).
    pub delivered: u64,
    /// Dropped by a filter, late, a twin, or inexpressible.
    pub filtered: u64,
    /// Parked because the sink will never take them.
    pub rejected: u64,
    /// Booked in the ledger.
    pub lost: u64,
}

/// Batches of one message that are done with while others are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// Idempotency key of the first batch that is not done, without its number and configuration: the message.
    pub id: String,
    /// Number of batches, from the first.
    pub batches: u32,
    /// Samples of them that were delivered.
    pub delivered: u64,
    /// Samples of them that were rejected.
    pub rejected: u64,
    /// The rejected ones, by target and slot.
    #[serde(default)]
    pub rejects: Vec<(u64, i64, u64)>,
}

/// What a relay that turned to the newest samples has not delivered of what came before them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backlog {
    /// The position in it. What is counted is in the relay's own.
    pub checkpoint: Checkpoint,
    /// Sequence of its last message.
    pub end: u64,
    /// The last message of each producer and partition that is part of it: sequences are not identity.
    pub until: Positions,
}

/// A relay's position and what it needs to go on from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Version of this value.
    pub version: u32,
    /// The life of the relay that wrote it.
    pub owner: String,
    /// Stream sequence of the last message that is done with; 0: none.
    pub seq: u64,
    /// That message's identity; none: nothing was there.
    pub id: Option<String>,
    /// The last message of each producer and partition.
    pub positions: Positions,
    /// A producer that is not among them came after the relay began if its life did not begin before this: all its messages are the relay's. None:
    /// that is known of nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newcomers_from: Option<u64>,
    /// Lowest sequence that still holds a base.
    pub warm_from: u64,
    /// What the position has passed and waits for other parts of its slot; none: that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Vec<Waiting>>,
    /// What is already done of the message after `seq`.
    #[serde(default)]
    pub partial: Option<Partial>,
    /// Hash of the relay's configuration.
    pub config: String,
    /// Whether the relay stopped by itself: nothing will be repeated.
    pub clean: bool,
    /// When it was written, ms.
    pub at_ms: i64,
    /// Messages passed in the busiest recent interval between two writes.
    #[serde(default)]
    pub pace: u64,
    /// Up to where in the ledger what is booked says nothing of what is above the position: the stream was torn since, and sequences are used again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub voided: u64,
    /// What became of the samples so far.
    pub totals: Totals,
    /// The same by target and minute; none: written before there was such a thing.
    #[serde(default)]
    pub minutes: Option<Open>,
    /// What lies before the position and is not delivered; none: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<Box<Backlog>>,
}

const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Checkpoint {
    /// A position that nothing was delivered up to yet: after `seq`, with what is needed from `warm_from` on.
    pub fn at(seq: u64, warm_from: u64) -> Self {
        Self {
            version: VERSION,
            owner: String::new(),
            seq,
            id: None,
            positions: Positions::default(),
            newcomers_from: None,
            warm_from: warm_from.min(seq + 1),
            waiting: None,
            partial: None,
            config: String::new(),
            clean: true,
            at_ms: now_ms(),
            pace: 0,
            voided: 0,
            totals: Totals::default(),
            minutes: None,
            behind: None,
        }
    }

    /// Messages that the next life may repeat: none after a clean stop; else what was passed since the write, which may be more than of late, and the
    /// message in hand.
    pub(crate) fn repeats_max(&self) -> u64 {
        if self.clean { 0 } else { self.pace.saturating_mul(2).saturating_add(1) }
    }

    /// Makes it a new life's, whose configuration has this hash; says whether the one before stopped by itself.
    pub(crate) fn take_over(&mut self, owner: &str, config: String) -> bool {
        if self.config != config {
            self.config = config;
            // Others may be its targets now.
            self.waiting = None;
            if self.partial.take().is_some() {
                // What was delivered of the message in hand is no part of what the new configuration makes of it: it goes again, counted.
                self.clean = false;
                self.pace = 1;
            }
        }
        self.owner = owner.to_owned();
        self.at_ms = now_ms();
        std::mem::replace(&mut self.clean, false)
    }

    /// Whether a message is of a producer that was met, or came after the relay began.
    pub(crate) fn is_own(&self, envelope: &Envelope) -> bool {
        self.positions.knows(envelope) || self.newcomers_from.is_some_and(|from| envelope.epoch >= from)
    }

    /// Drops producers that were silent for [`PRODUCER_MEMORY`]: who comes back is no newcomer.
    pub(crate) fn forget(&mut self) {
        let above = self.positions.forget(self.at_ms);
        self.newcomers_from = self.newcomers_from.map(|from| from.max(above));
    }

    /// The lowest sequence that must stay in the stream for this relay.
    pub fn floor(&self) -> u64 {
        let behind = self.behind.as_ref().map_or(u64::MAX, |behind| behind.checkpoint.floor());
        self.warm_from.min(self.seq.max(1)).min(behind)
    }

    /// The last sequence up to which the relay is done with all.
    pub fn passed(&self) -> u64 {
        self.behind.as_ref().map_or(self.seq, |behind| behind.checkpoint.seq)
    }

    /// Moves past the next message without delivering it, for a relay that does not run; says what is missing before it. Its bases are about to go.
    pub(crate) fn give_up(&mut self, message: &Message, envelope: Option<&Envelope>, reached: &Reached) -> Gap {
        let newcomers_from = self.newcomers_from;
        let part = match self.behind.as_mut().filter(|behind| message.seq <= behind.end) {
            Some(behind) => &mut behind.checkpoint,
            None => &mut *self,
        };
        (part.seq, part.id, part.partial, part.warm_from) = (message.seq, None, None, message.seq + 1);
        let mut gap = Gap::default();
        if let Some(envelope) = envelope {
            if let Place::After(missing) = reached.place(envelope, &part.positions, newcomers_from) {
                gap = missing;
            }
            part.positions.advance(envelope, &message.subject, message.time_ms);
        }
        let samples = envelope.map_or(0, |envelope| envelope.samples) + gap.samples;
        self.totals.read += samples;
        self.totals.lost += samples;
        self.behind.take_if(|behind| message.seq >= behind.end);
        gap
    }

    /// What waits for other parts of its slot does so no more, as all up to a sequence is given up; says how many samples that are.
    pub(crate) fn let_go(&mut self, to: u64) -> u64 {
        let behind = self.behind.as_mut().map_or(0, |behind| behind.checkpoint.let_go(to));
        let own = if self.seq <= to { self.waiting.replace(Vec::new()) } else { None };
        behind + own.iter().flatten().map(|waiting| waiting.samples).sum::<u64>()
    }

    /// Whether the relay is done with a sequence.
    pub fn is_past(&self, seq: u64) -> bool {
        seq <= self.seq && self.behind.as_ref().is_none_or(|behind| seq > behind.end || seq <= behind.checkpoint.seq)
    }

    /// Whether it is of a version that this program understands.
    pub(crate) const fn is_known(&self) -> bool {
        is_known(self.version)
    }
}

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state store did not answer: again later.
    #[error("cannot reach the checkpoint of relay '{relay}'")]
    Unavailable {
        /// The relay.
        relay: String,
        /// Why.
        #[source]
        source: PortError,
    },
    /// Another process runs this relay: stop.
    #[error("relay '{relay}' is run by another process too ('{owner}'): this one stops")]
    Owned {
        /// The relay.
        relay: String,
        /// Who wrote.
        owner: String,
    },
    /// Another life has ended what was written here: stop.
    #[error("'{relay}' was ended by another process: this one stops")]
    Ended {
        /// What.
        relay: String,
    },
    /// The value is not one of ours: a human must look.
    #[error("cannot understand the checkpoint of relay '{relay}': {reason}")]
    Foreign {
        /// The relay.
        relay: String,
        /// Why.
        reason: String,
    },
}

/// What is stored under one key: a checkpoint, alone or with what it belongs to.
pub trait Stored: Serialize + DeserializeOwned {
    /// Whether a value that is gone was ended by another life, and must not be written again.
    const ENDS: bool;

    /// The checkpoint.
    fn checkpoint(&self) -> &Checkpoint;
}

impl Stored for Checkpoint {
    const ENDS: bool = false;

    fn checkpoint(&self) -> &Checkpoint {
        self
    }
}

/// The place of one checkpoint, with the revision it was last seen at.
pub struct Store<T = Checkpoint> {
    state: Arc<dyn State>,
    key: String,
    relay: String,
    owner: String,
    predecessor: Option<String>,
    revision: u64,
    stored: PhantomData<fn() -> T>,
}

impl Store {
    /// Reads what is there of a relay. The first write takes it over.
    pub async fn open(state: Arc<dyn State>, relay: &str, owner: String) -> Result<(Self, Option<Checkpoint>), Error> {
        Self::open_at(state, key(relay), relay, owner).await
    }
}

impl<T: Stored> Store<T> {
    /// As [`Store::open`], under any key.
    pub async fn open_at(state: Arc<dyn State>, key: String, relay: &str, owner: String) -> Result<(Self, Option<T>), Error> {
        let mut store = Self { state, key, relay: relay.to_owned(), owner, predecessor: None, revision: 0, stored: PhantomData };
        let found = store.read().await?;
        let stored = found.map(|(stored, revision)| {
            store.revision = revision;
            store.predecessor = Some(stored.checkpoint().owner.clone());
            stored
        });
        Ok((store, stored))
    }

    /// Who writes here.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Writes what was made of what `open` found.
    ///
    /// *Errors*: `Unavailable`: read it again, as somebody wrote meanwhile, or the store is away.
    pub async fn take(&mut self, stored: &T) -> Result<(), Error> {
        let value = serde_json::to_vec(stored).map_err(|e| self.foreign(e.to_string()))?;
        let put = self.state.put(&self.key, Bytes::from(value), self.revision).await;
        self.revision = put.map_err(|source| self.unavailable(source))?;
        Ok(())
    }

    /// Writes, if nobody else did since the last look.
    ///
    /// *Errors*: `Unavailable`: the same again later; `Owned`, `Ended`: stop. A store that was rolled back to an older value of this life is written again.
    pub async fn write(&mut self, stored: &T) -> Result<(), Error> {
        let value = Bytes::from(serde_json::to_vec(stored).map_err(|e| self.foreign(e.to_string()))?);
        let first = self.state.put(&self.key, value.clone(), self.revision).await;
        match first {
            Ok(revision) => {
                self.revision = revision;
                return Ok(());
            }
            Err(PortError::Conflict { .. }) => {}
            Err(source) => return Err(self.unavailable(source)),
        }
        self.revision = match self.read().await? {
            None if T::ENDS => return Err(Error::Ended { relay: self.relay.clone() }),
            None => 0,
            Some((found, revision)) => {
                let owner = &found.checkpoint().owner;
                if *owner != self.owner && Some(owner) != self.predecessor.as_ref() {
                    return Err(Error::Owned { relay: self.relay.clone(), owner: owner.clone() });
                }
                revision
            }
        };
        self.revision = self.state.put(&self.key, value, self.revision).await.map_err(|source| self.unavailable(source))?;
        Ok(())
    }

    async fn read(&self) -> Result<Option<(T, u64)>, Error> {
        let entry = self.state.get(&self.key).await.map_err(|source| self.unavailable(source))?;
        let Some(entry) = entry else { return Ok(None) };
        let stored: T = serde_json::from_slice(&entry.value).map_err(|e| self.foreign(e.to_string()))?;
        let checkpoint = stored.checkpoint();
        if !checkpoint.is_known() {
            return Err(self.foreign(newer::words("checkpoint", checkpoint.version.into())));
        }
        Ok(Some((stored, entry.revision)))
    }

    fn unavailable(&self, source: PortError) -> Error {
        Error::Unavailable { relay: self.relay.clone(), source }
    }

    fn foreign(&self, reason: String) -> Error {
        Error::Foreign { relay: self.relay.clone(), reason }
    }
}

#[cfg(test)]
mod tests {
    use bundled_nats::twin::Twin;

    use super::*;

    #[test]
    fn a_backlog_holds_its_place_and_nothing_of_it_is_passed() {
        let backlog = Backlog { checkpoint: Checkpoint::at(10, 4), end: 50, until: Positions::default() };
        let checkpoint = Checkpoint { behind: Some(Box::new(backlog)), ..Checkpoint::at(70, 45) };
        assert_eq!((checkpoint.floor(), checkpoint.passed()), (4, 10));
        let passed: Vec<u64> = [1, 10, 11, 50, 51, 70, 71].into_iter().filter(|seq| checkpoint.is_past(*seq)).collect();
        assert_eq!(passed, [1, 10, 51, 70]);
        let whole = Checkpoint { behind: None, ..checkpoint };
        assert_eq!((whole.floor(), whole.passed(), whole.is_past(11)), (45, 70, true));
    }

    #[test]
    fn who_comes_back_after_it_was_forgotten_is_no_newcomer() {
        let mut checkpoint = Checkpoint { newcomers_from: Some(5), ..Checkpoint::at(1, 1) };
        for (epoch, at_ms) in [(7, 0), (9, checkpoint.at_ms)] {
            let envelope = Envelope { producer: format!("p{epoch}"), epoch, n: 1, ..Envelope::default() };
            checkpoint.positions.advance(&envelope, "strata.raw.0.p", at_ms);
        }
        checkpoint.forget();
        assert_eq!((checkpoint.positions.iter().count(), checkpoint.newcomers_from), (1, Some(8)));
    }

    #[tokio::test]
    async fn a_version_of_later_is_left_alone() {
        let twin = Twin::new(1 << 20);
        for (version, is_known) in [(VERSION, true), (VERSION_BEHIND, true), (3, false)] {
            let Ok((mut store, _)) = Store::open(twin.state.clone(), "one", "me".to_owned()).await else { panic!("it is known") };
            store.take(&Checkpoint { version, ..Checkpoint::at(1, 1) }).await.expect("nobody else writes");
            let opened = Store::open(twin.state.clone(), "one", "me".to_owned()).await;
            assert_eq!(opened.is_ok(), is_known, "{version}");
            if let Err(error) = opened {
                assert!(error.to_string().ends_with("(checkpoint version 3): run that version, or let it deliver what waits"), "{error}");
            }
        }
    }
}
