//! Slots: which (target, nominal slot) was taken already, so that twins are taken once.
//!
//! *In*: the header of each frame. *Out*: take it, take it late, hold it until its parts are there, or leave it as a twin.
//! *Bound*: runs of equally spaced slots per target, for two key periods. *When full*: the oldest runs go.

use std::collections::HashMap;

use sample::{KEY_FRAME_PERIOD, TargetId};

/// How far back slots are remembered, ms.
pub const SLOT_MEMORY_MS: i64 = 2 * KEY_FRAME_PERIOD.as_millis() as i64;

/// Runs per target. Larger: more memory for targets without a rhythm; smaller: their old twins pass.
const RUNS_MAX: usize = 4096;

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is the first complete one of its slot.
    Take {
        /// A newer slot of its target, of another producer, was taken before. One producer's slots come in the order of their scrapes: where a
        /// later one has an earlier slot, its clock was set back.
        late: bool,
    },
    /// It is a part whose siblings are not all there.
    Hold,
    /// Another one was taken for its slot.
    Twin,
}

/// The header fields that decide.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Its target.
    pub target: TargetId,
    /// Nominal slot, ms.
    pub slot_ms: i64,
    /// Whether all parts of this producer's scrape are there with this one.
    pub complete: bool,
    /// Whether the scrape failed.
    pub failed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    start_ms: i64,
    step_ms: i64,
    count: u32,
    failed: bool,
}

impl Run {
    fn last(&self) -> i64 {
        self.start_ms + self.step_ms * (i64::from(self.count) - 1)
    }

    fn contains(&self, slot_ms: i64) -> bool {
        let from = slot_ms - self.start_ms;
        from == 0 || (from > 0 && slot_ms <= self.last() && self.step_ms > 0 && from % self.step_ms == 0)
    }

    fn extend(&mut self, slot_ms: i64) -> bool {
        let step = slot_ms - self.last();
        if step <= 0 || (self.count > 1 && step != self.step_ms) {
            return false;
        }
        self.step_ms = step;
        self.count += 1;
        true
    }
}

#[derive(Debug, Default)]
struct Target {
    runs: Vec<Run>,
    newest: Option<(i64, Box<str>)>,
}

/// The slots taken so far.
#[derive(Debug, Default)]
pub struct Slots {
    targets: HashMap<TargetId, Target>,
}

impl Slots {
    /// Says what becomes of a producer's frame, and remembers it if it is taken.
    pub fn take(&mut self, producer: &str, header: Header) -> Fate {
        let target = self.targets.entry(header.target).or_default();
        let seen = target.runs.iter().rev().find(|run| run.contains(header.slot_ms));
        let displaced = match seen {
            Some(run) if !run.failed || header.failed => return Fate::Twin,
            Some(_) => true,
            None => false,
        };
        if !header.complete {
            return Fate::Hold;
        }
        let late = target.newest.as_ref().is_some_and(|(newest_ms, whose)| header.slot_ms < *newest_ms && **whose != *producer);
        if displaced {
            target.remove_failed(header.slot_ms);
        }
        target.insert(header.slot_ms, header.failed);
        match &mut target.newest {
            Some((newest_ms, whose)) if **whose == *producer => *newest_ms = header.slot_ms,
            newest if !late => *newest = Some((header.slot_ms, producer.into())),
            _ => {}
        }
        Fate::Take { late }
    }

    /// Drops slots and targets that nothing was seen of since.
    pub fn forget_before(&mut self, slot_ms: i64) {
        self.targets.retain(|_, target| {
            target.runs.retain(|run| run.last() >= slot_ms);
            !target.runs.is_empty()
        });
    }
}

impl Target {
    fn insert(&mut self, slot_ms: i64, failed: bool) {
        if let Some(run) = self.runs.last_mut()
            && run.failed == failed
            && run.extend(slot_ms)
        {
            return;
        }
        self.runs.push(Run { start_ms: slot_ms, step_ms: 0, count: 1, failed });
        if self.runs.len() > RUNS_MAX {
            let oldest = self.runs.iter().enumerate().min_by_key(|(_, run)| run.last()).map(|(i, _)| i);
            if let Some(i) = oldest {
                self.runs.remove(i);
            }
        }
    }

    /// Splits the failed run that holds a slot.
    fn remove_failed(&mut self, slot_ms: i64) {
        let Some(i) = self.runs.iter().position(|run| run.failed && run.contains(slot_ms)) else { return };
        let run = self.runs.remove(i);
        for k in 0..i64::from(run.count) {
            let slot = run.start_ms + k * run.step_ms;
            if slot != slot_ms {
                self.runs.insert(i.min(self.runs.len()), Run { start_ms: slot, step_ms: 0, count: 1, failed: true });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(slots: &mut Slots, slot_ms: i64, complete: bool, failed: bool) -> Fate {
        take_from("a", slots, slot_ms, complete, failed)
    }

    fn take_from(producer: &str, slots: &mut Slots, slot_ms: i64, complete: bool, failed: bool) -> Fate {
        slots.take(producer, Header { target: TargetId(1), slot_ms, complete, failed })
    }

    const TAKE: Fate = Fate::Take { late: false };

    #[test]
    fn a_steady_target_costs_one_run() {
        let mut slots = Slots::default();
        for k in 0..1000 {
            assert_eq!(take(&mut slots, k * 15_000, true, false), TAKE);
        }
        assert_eq!(slots.targets[&TargetId(1)].runs.len(), 1);
        for k in 0..1000 {
            assert_eq!(take(&mut slots, k * 15_000, true, false), Fate::Twin);
        }
        assert_eq!(take_from("b", &mut slots, 999 * 15_000 - 1, true, false), Fate::Take { late: true });
    }

    #[test]
    fn a_producer_whose_clock_was_set_back_is_not_late_and_another_one_is() {
        let mut slots = Slots::default();
        assert_eq!(take(&mut slots, 3_600_000, true, false), TAKE);
        assert_eq!(take(&mut slots, 15_001, true, false), TAKE);
        assert_eq!(take_from("b", &mut slots, 15_000, true, false), Fate::Take { late: true });
        assert_eq!(take_from("b", &mut slots, 30_000, true, false), TAKE);
        assert_eq!(take(&mut slots, 15_002, true, false), Fate::Take { late: true });
    }

    #[test]
    fn a_failed_scrape_never_displaces_a_good_one_and_a_good_one_displaces_it() {
        let mut slots = Slots::default();
        assert_eq!(take(&mut slots, 1, true, false), TAKE);
        assert_eq!(take(&mut slots, 1, true, true), Fate::Twin);
        for slot in 2..6 {
            assert_eq!(take(&mut slots, slot, true, true), TAKE);
        }
        assert_eq!(take(&mut slots, 3, true, true), Fate::Twin);
        assert_eq!(take_from("b", &mut slots, 3, true, false), Fate::Take { late: true });
        assert_eq!(take(&mut slots, 3, true, false), Fate::Twin);
        assert_eq!(take(&mut slots, 4, true, true), Fate::Twin);
        assert_eq!(take_from("b", &mut slots, 4, true, false), Fate::Take { late: true });
    }

    #[test]
    fn an_incomplete_slot_is_held_and_takes_nothing() {
        let mut slots = Slots::default();
        assert_eq!(take(&mut slots, 1, false, false), Fate::Hold);
        assert_eq!(take(&mut slots, 1, true, false), TAKE);
        assert_eq!(take(&mut slots, 1, false, false), Fate::Twin);
    }

    #[test]
    fn old_targets_are_forgotten() {
        let mut slots = Slots::default();
        take(&mut slots, 10, true, false);
        slots.forget_before(11);
        assert!(slots.targets.is_empty());
    }
}
