//! Parts of slots whose siblings are not there yet.
//!
//! *In*: decoded parts. *Out*: all of them once they are complete, or what there is when they never will be. *Bound*: one incomplete slot per
//! producer and target, in practice within two adjacent messages. *When full*: a newer slot of the same producer ends the older one.

use std::collections::BTreeMap;

use sample::{Columns, Decoded, Envelope, FrameRef, TargetId};
use tokio::sync::mpsc;

use super::batch::Tally;
use super::{Closed, Message, Pipeline};
use crate::slots::{Fate, Header};
use crate::step::Step;

/// One producer's try at one slot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HeldKey {
    pub target: TargetId,
    pub producer: String,
    pub epoch: u64,
    pub slot_ms: i64,
}

impl HeldKey {
    /// That of a part of it.
    pub fn of(envelope: &Envelope, frame: &FrameRef<'_>) -> Self {
        Self { target: frame.target, producer: envelope.producer.clone(), epoch: envelope.epoch, slot_ms: frame.slot_ms }
    }
}

pub(super) struct HeldPart {
    pub decoded: Decoded,
    pub columns: Columns,
    pub failed: bool,
}

struct Slot {
    first_seq: u64,
    /// None: it came and cannot be decoded.
    parts: BTreeMap<u16, Option<HeldPart>>,
}

#[derive(Default)]
pub(super) struct Held {
    slots: BTreeMap<HeldKey, Slot>,
}

impl Held {
    /// Whether all parts are there with this one.
    pub fn completes(&self, key: &HeldKey, part: u16, parts: u16) -> bool {
        let there = self.slots.get(key).map_or(0, |slot| slot.parts.keys().filter(|p| **p != part && **p < parts).count());
        there + 1 >= usize::from(parts)
    }

    /// Keeps a part; none: it cannot be decoded.
    pub fn put(&mut self, key: HeldKey, seq: u64, number: u16, part: Option<HeldPart>) {
        let slot = self.slots.entry(key).or_insert_with(|| Slot { first_seq: seq, parts: BTreeMap::new() });
        slot.parts.insert(number, part);
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

    pub fn clear(&mut self) {
        self.slots.clear();
    }
}

impl Pipeline {
    /// A newer slot came before the missing parts of an older one: what there is of it is better than nothing.
    pub(super) async fn incomplete(
        &mut self,
        at: &Message,
        key: &HeldKey,
        tally: &mut Tally,
        out: &mpsc::Sender<Step>,
    ) -> Result<(), Closed> {
        let parts = self.held.take(key);
        let failed = parts.iter().any(|part| part.failed);
        match self.slots.take(&key.producer, Header { target: key.target, slot_ms: key.slot_ms, complete: true, failed }) {
            Fate::Take { late } => self.parts(at, parts, late, tally, out).await,
            Fate::Twin | Fate::Hold => {
                at.twin(tally, parts.iter().map(|part| &part.decoded));
                Ok(())
            }
        }
    }

    pub(super) async fn parts(
        &mut self,
        at: &Message,
        mut parts: Vec<HeldPart>,
        late: bool,
        tally: &mut Tally,
        out: &mpsc::Sender<Step>,
    ) -> Result<(), Closed> {
        parts.sort_by_key(|part| part.decoded.part);
        for part in &parts {
            self.emit(at, &part.decoded, &part.columns, late, tally, out).await?;
        }
        Ok(())
    }
}
