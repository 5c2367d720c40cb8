//! Parts of slots whose siblings are not there yet.
//!
//! *In*: decoded parts. *Out*: all of them once they are complete, or what there is when they never will be. *Bound*: one incomplete slot per
//! producer and target, in practice within two adjacent messages. *When full*: a newer slot of the same producer ends the older one.
//!
//! A position passes parts that wait. Who reads them once more from there finds the same ones, or the stream has lost some since: these are told, and
//! what is left of a slot that was done with is not taken for one that waits.

use std::collections::BTreeMap;
use std::sync::Arc;

use sample::{Columns, Decoded, Envelope, FrameRef, TargetId};
use tokio::sync::mpsc;

use super::batch::Tally;
use super::{Closed, Message, Mode, Pipeline};
use crate::slots::{Fate, Header};
use crate::step::{Loss, Step, Waiting};

/// One producer's try at one slot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HeldKey {
    pub target: TargetId,
    pub producer: String,
    pub partition: u32,
    pub epoch: u64,
    pub slot_ms: i64,
}

impl HeldKey {
    /// That of a part of it.
    pub fn of(envelope: &Envelope, frame: &FrameRef<'_>) -> Self {
        let Envelope { producer, partition, epoch, .. } = envelope;
        Self { target: frame.target, producer: producer.clone(), partition: *partition, epoch: *epoch, slot_ms: frame.slot_ms }
    }

    /// Whether a new message of its producer says that none of its former ones comes after it.
    fn is_before(&self, envelope: &Envelope) -> bool {
        self.epoch <= envelope.epoch && self.partition == envelope.partition && self.producer == envelope.producer
    }
}

pub(super) struct HeldPart {
    pub decoded: Decoded,
    pub columns: Columns,
    pub failed: bool,
}

struct Slot {
    first_seq: u64,
    /// Whether it was done with before the position: some of it is missing now.
    is_done: bool,
    /// None: it came and cannot be decoded.
    parts: BTreeMap<u16, Option<HeldPart>>,
}

pub(super) struct Held {
    slots: BTreeMap<HeldKey, Slot>,
    /// The parts that waited at the position that is read on from, and were not looked for since, with their samples. None: that is not known, until
    /// something new is read.
    owed: Option<BTreeMap<(HeldKey, u16), u64>>,
}

impl Held {
    /// Nothing yet of what waited at a position; none: that is not known.
    pub fn at(waiting: Option<Vec<Waiting>>) -> Self {
        let owed = |Waiting { producer, partition, epoch, target, slot_ms, part, samples }| {
            ((HeldKey { target: TargetId(target), producer, partition, epoch, slot_ms }, part), samples)
        };
        Self { slots: BTreeMap::new(), owed: waiting.map(|waiting| waiting.into_iter().map(owed).collect()) }
    }

    /// What waits at this place.
    pub fn waiting(&self) -> Vec<Waiting> {
        let owed = || self.owed.iter().flatten();
        let here = self.slots.iter().filter(|(_, slot)| !slot.is_done).flat_map(|(key, slot)| {
            let parts = slot.parts.iter().filter_map(|(number, part)| Some((*number, u64::from(part.as_ref()?.decoded.samples))));
            parts.map(move |(number, samples)| (key, number, samples))
        });
        let here = here.filter(|(key, number, _)| !owed().any(|((other, part), _)| (other, part) == (*key, number)));
        let all = owed().map(|((key, number), samples)| (key, *number, *samples)).chain(here);
        let waiting = |(key, part, samples): (&HeldKey, u16, u64)| {
            let HeldKey { target, producer, partition, epoch, slot_ms } = key.clone();
            Waiting { producer, partition, epoch, target: target.0, slot_ms, part, samples }
        };
        all.map(waiting).collect()
    }

    /// Parts that waited and do not any more, each with whether it is there and cannot be decoded, and its samples; asked with each new message, and with the
    /// time before which nothing is waited for.
    fn missing(&mut self, envelope: Option<&Envelope>, before_ms: i64) -> Vec<(HeldKey, bool, u64)> {
        let Self { slots, owed } = self;
        let is_over = |key: &HeldKey| key.slot_ms < before_ms || envelope.is_some_and(|envelope| key.is_before(envelope));
        let over = owed.get_or_insert_default().extract_if(.., |(key, _), _| is_over(key));
        let lacks = |((key, number), samples): ((HeldKey, u16), u64)| {
            let part = slots.get(&key).and_then(|slot| slot.parts.get(&number));
            let is_decoded = matches!(part, Some(Some(_)));
            (!is_decoded).then(|| (key, part.is_some(), samples))
        };
        over.filter_map(lacks).collect()
    }

    /// Whether all parts are there with this one.
    pub fn completes(&self, key: &HeldKey, part: u16, parts: u16) -> bool {
        let there = self.slots.get(key).map_or(0, |slot| slot.parts.keys().filter(|p| **p != part && **p < parts).count());
        there + 1 >= usize::from(parts)
    }

    /// Keeps a part; none: it cannot be decoded.
    pub(super) fn put(&mut self, key: HeldKey, at: &Message, number: u16, part: Option<HeldPart>) {
        let waited = |owed: &BTreeMap<(HeldKey, u16), u64>| owed.keys().any(|(other, _)| *other == key);
        let is_done = at.mode == Mode::Silent && !self.owed.as_ref().is_none_or(waited);
        let slot = self.slots.entry(key).or_insert_with(|| Slot { first_seq: at.seq, is_done, parts: BTreeMap::new() });
        slot.parts.insert(number, part);
    }

    /// Whether what is there of a slot is the rest of one that was done with.
    fn is_done(&self, key: &HeldKey) -> bool {
        self.slots.get(key).is_some_and(|slot| slot.is_done)
    }

    pub fn take(&mut self, key: &HeldKey) -> Vec<HeldPart> {
        self.slots.remove(key).map(|slot| slot.parts.into_values().flatten().collect()).unwrap_or_default()
    }

    /// Another slot of the same producer and target that will never be complete.
    pub fn superseded(&self, producer: &str, target: TargetId, slot_ms: i64) -> Option<HeldKey> {
        self.slots.keys().find(|key| key.target == target && key.producer == producer && key.slot_ms != slot_ms).cloned()
    }

    /// A slot that nobody completed for too long.
    pub fn older(&self, slot_ms: i64) -> Option<HeldKey> {
        self.slots.keys().find(|key| key.slot_ms < slot_ms).cloned()
    }

    pub fn first_seq(&self) -> Option<u64> {
        self.slots.values().map(|slot| slot.first_seq).min()
    }

    /// All is read once more.
    pub fn restart(&mut self) {
        let waiting = self.owed.is_some().then(|| self.waiting());
        *self = Self::at(waiting);
    }
}

impl Pipeline {
    /// Tells what waited for others of its slot and is gone, before something new is taken.
    pub(super) fn settle(&mut self, envelope: Option<&Envelope>, before_ms: i64, tally: &mut Tally) {
        for (key, is_there, samples) in self.held.missing(envelope, before_ms) {
            if self.selects(key.slot_ms) {
                let (reason, target, slot_ms) = (if is_there { "no_base" } else { "rollback" }, Some(key.target), Some(key.slot_ms));
                tally.loss(Loss { reason, stream: !is_there, samples, frames: 1, target, slot_ms });
            }
        }
    }

    /// A newer slot came before the missing parts of an older one: what there is of it is better than nothing.
    pub(super) async fn incomplete(
        &mut self,
        at: &Message,
        key: &HeldKey,
        tally: &mut Tally,
        out: &mpsc::Sender<Step>,
    ) -> Result<(), Closed> {
        let mode = if self.held.is_done(key) { Mode::Silent } else { at.mode };
        let (at, parts) = (&Message { mode, ..*at }, self.held.take(key));
        let failed = parts.iter().any(|part| part.failed);
        match self.slots.take(&key.producer, Header { target: key.target, slot_ms: key.slot_ms, complete: true, failed }) {
            Fate::Take { late } => self.parts(at, parts, late, tally, out).await,
            Fate::Twin | Fate::Hold => {
                at.twin(tally, parts.iter().map(|part| &part.decoded));
                Ok(())
            }
        }
    }

    /// Emits the frame that was decoded last, which is whole by itself.
    pub(super) async fn whole(
        &mut self,
        at: &Message,
        decoded: &Decoded,
        late: bool,
        tally: &mut Tally,
        out: &mpsc::Sender<Step>,
    ) -> Result<(), Closed> {
        let columns = Arc::new(std::mem::take(&mut self.columns));
        let emitted = self.emit(at, decoded, &columns, late, tally, out).await;
        // What no batch has is used again.
        self.columns = Arc::into_inner(columns).unwrap_or_default();
        emitted
    }

    /// Emits the parts of a slot.
    pub(super) async fn parts(
        &mut self,
        at: &Message,
        mut parts: Vec<HeldPart>,
        late: bool,
        tally: &mut Tally,
        out: &mpsc::Sender<Step>,
    ) -> Result<(), Closed> {
        parts.sort_by_key(|part| part.decoded.part);
        for HeldPart { decoded, columns, .. } in parts {
            self.emit(at, &decoded, &Arc::new(columns), late, tally, out).await?;
        }
        Ok(())
    }
}
