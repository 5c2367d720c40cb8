//! What became of the batches of the window in hand, and what a life before this one did of them.
//!
//! *In*: parts that are done. *Out*: sums, the same by target and slot, and what of it a checkpoint keeps. *Bound*: the sections of one window's parts.
//! *When full*: does not apply.

use super::Deliver;
use super::send::Outcome;
use crate::checkpoint::Partial;
use crate::minutes::{Fate, fates};
use crate::sink::LACKING;
use crate::step::Part;

/// What became of the batches of the window in hand.
#[derive(Debug, Default, Clone)]
pub(super) struct Progress {
    pub id: String,
    pub batches: u32,
    pub delivered: u64,
    pub rejected: u64,
    pub given_up: u64,
    /// Whether something of it is numbered apart, as with [`LACKING`].
    pub lacking: bool,
    /// The same by target and slot.
    pub fates: Vec<Fate>,
}

impl Progress {
    pub fn add(&mut self, other: &Self) {
        self.fates.extend_from_slice(&other.fates);
        self.delivered += other.delivered;
        self.rejected += other.rejected;
        self.given_up += other.given_up;
        self.lacking |= other.lacking;
    }

    /// Counts a part that is done.
    pub fn take(&mut self, part: &Part, outcome: &Outcome) {
        self.id = part.batch.key.split('/').next().unwrap_or_default().to_owned();
        self.batches = if part.is_numbered() { part.index() + 1 } else { 0 };
        self.lacking |= part.index() & LACKING != 0;
        self.delivered += outcome.delivered;
        self.rejected += outcome.offenders.len() as u64;
        self.given_up += outcome.given_up.len() as u64;
        let rejected = outcome.offenders.iter().map(|offender| offender.item);
        self.fates.extend(fates(part, rejected, outcome.given_up.iter().copied()));
    }

    /// What the next life must know of it.
    pub fn partial(&self) -> Partial {
        let rejects = self.fates.iter().filter(|fate| fate.rejected > 0).map(|fate| (fate.target.0, fate.slot_ms, fate.rejected));
        Partial {
            id: self.id.clone(),
            batches: self.batches,
            delivered: self.delivered,
            rejected: self.rejected,
            rejects: rejects.collect(),
        }
    }

    /// Takes up what was refused by a life before this one.
    fn refused(&mut self, rejects: &[(u64, i64, u64)]) {
        for (target, slot_ms, n) in rejects {
            let rejected = |fate: &&mut Fate| (fate.target.0, fate.slot_ms) == (*target, *slot_ms) && fate.delivered >= *n;
            if let Some(fate) = self.fates.iter_mut().find(rejected) {
                fate.delivered -= n;
                fate.rejected += n;
            }
        }
    }
}

impl Deliver {
    /// Whether a life before this one was done with a part already.
    pub(super) fn resume(&mut self, part: &Part) -> bool {
        let Some(partial) = self.resumed.take() else { return false };
        let ours = part.batch.key.ends_with(&format!("/{}", self.checkpoint.config))
            && part.batch.key.split('/').next() == Some(partial.id.as_str());
        if !ours {
            return false;
        }
        if part.index() >= partial.batches {
            self.resend(&partial, part.index() & !LACKING);
            return false;
        }
        if part.index() == 0 {
            self.progress = Progress {
                id: partial.id.clone(),
                batches: partial.batches,
                delivered: partial.delivered,
                rejected: partial.rejected,
                given_up: 0,
                lacking: false,
                fates: Vec::new(),
            };
        }
        self.progress.fates.extend(fates(part, std::iter::empty(), std::iter::empty()));
        if part.index() + 1 < partial.batches {
            self.resumed = Some(partial);
        } else {
            self.progress.refused(&partial.rejects);
        }
        true
    }

    /// Something of the message was there then and is missing now: but for the first of them, the batches that are done are none of those that come. What is
    /// left of these goes again.
    fn resend(&mut self, partial: &Partial, batches: u32) {
        self.repeats = self.repeats.max(1);
        let progress = &mut self.progress;
        progress.refused(&partial.rejects);
        progress.batches = batches;
        progress.delivered = progress.fates.iter().map(|fate| fate.delivered).sum();
        progress.rejected = progress.fates.iter().map(|fate| fate.rejected).sum();
    }
}
