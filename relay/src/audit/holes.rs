//! Holes: where samples or slots are missing, one line for neighbouring minutes of one target.
//!
//! *In*: places and numbers. *Out*: a list. *Bound*: [`super::HOLES_MAX`]. *When full*: they are counted.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::HOLES_MAX;

/// A place where something is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hole {
    /// The relay that misses it; none: it was never in the stream, so all do.
    pub relay: Option<String>,
    /// Where it was lost: `scrape`, `publish`, `stream`, `relay`.
    pub stage: String,
    /// Why, in the word of the metric and of the ledger.
    pub reason: String,
    /// Whose samples; without an identity: nobody knows.
    pub target: Place,
    /// Its first slot, or the minute of it, ms.
    pub from_ms: i64,
    /// Its last slot, or the end of the minute of it, ms.
    pub to_ms: i64,
    /// Slots that have no good scrape.
    pub slots: u64,
    /// Samples that are missing.
    pub samples: u64,
    /// Whether the equation has a term for it; a disagreement has none.
    pub accounted: bool,
    /// The numbers that disagree.
    pub detail: Option<String>,
}

/// A target, for a person.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    /// Its identity, hexadecimal.
    pub id: String,
    /// Its job.
    pub job: String,
    /// Its label `instance`.
    pub instance: String,
}

type Key = (Option<String>, String, String, String);

/// All holes so far.
#[derive(Default)]
pub(super) struct Holes {
    pub list: Vec<Hole>,
    pub more: u64,
    newest: HashMap<Key, usize>,
}

impl Holes {
    /// Adds one; what continues an earlier one makes that longer.
    pub fn add(&mut self, hole: Hole) {
        let key = (hole.relay.clone(), hole.stage.clone(), hole.reason.clone(), hole.target.id.clone());
        if let Some(known) = self.newest.get(&key).map(|place| &mut self.list[*place])
            && hole.from_ms <= known.to_ms
            && hole.to_ms >= known.from_ms
            && hole.detail.is_none()
        {
            known.from_ms = known.from_ms.min(hole.from_ms);
            known.to_ms = known.to_ms.max(hole.to_ms);
            known.samples += hole.samples;
            known.slots += hole.slots;
            return;
        }
        // What the equation has no term for is never left out.
        if self.list.len() >= HOLES_MAX && hole.accounted {
            self.more += 1;
            return;
        }
        self.newest.insert(key, self.list.len());
        self.list.push(hole);
    }
}
