//! Slots: which of them brought no page, and why.
//!
//! *In*: what collectors booked, when their processes began and ended, the slots that have a frame. *Out*: holes. *Bound*: one line per target and its gaps;
//! the target's minutes in which something was booked, at most [`super::CELLS_MAX`]; one line per start. *When full*: the audit ends.
//!
//! A collector books what it missed and what failed, so a gap of one process is what it booked for it. Between two processes nobody books: the
//! schedule says which slots there were.
//!
//! Where several collectors share the targets, a slot is a hole only if no one had it: what one of them booked is no hole where another one's page is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bundled_nats::ledger::Life;
use sample::sheet::{HOUR, Kind, Sheet, minute_of};
use sample::{Flags, FrameRef, TargetId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Collection, Hole, Holes, Scope};

/// No start of a process is known that says how the one before it ended.
const NOT_RUNNING: &str = "not_running";
/// Nobody booked it.
const MISSED: &str = "missed";
/// Nobody booked why.
const FAILED: &str = "failed";
/// Distances after a gap that are looked at. Larger: an interval that has changed is known later; smaller: a slot that is missed soon after passes for one.
const LOOKS: u8 = 3;

/// A start of a collector's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Start {
    /// The collector's name.
    pub producer: String,
    /// When it began, ms.
    pub at_ms: i64,
    /// How the one before it ended: `stopped`, `killed`; `none`: it is the first one that is known.
    pub before: String,
    /// When that one ended, where it could say so, ms.
    pub ended_ms: Option<i64>,
}

/// What is known of slots.
#[derive(Default)]
pub(super) struct Slots {
    /// What collectors booked: target, first minute, minutes.
    booked: BTreeMap<(TargetId, i64, u8), Vec<Booked>>,
    /// Frames of failed scrapes.
    failed: HashMap<(TargetId, i64), u64>,
    /// Frames of failed scrapes whose slots another collector has a page of.
    covered: HashMap<(TargetId, i64), u64>,
    /// Losses before the stream: first and last slot.
    dropped: HashMap<TargetId, Vec<(i64, i64)>>,
    targets: HashMap<TargetId, Rhythm>,
    /// By producer, in order.
    lives: BTreeMap<String, Vec<Life>>,
}

/// Slots of a target and minute that share their reason.
struct Booked {
    producer: Arc<str>,
    kind: Kind,
    reason: Box<str>,
    slots: u64,
    /// Those of them that are holes already.
    told: u64,
}

/// When a target was scraped.
struct Rhythm {
    slot_ms: i64,
    /// The scrape of that slot failed.
    is_failed: bool,
    process: Process,
    /// The time between two slots; 0: there was one only.
    every_ms: i64,
    gaps: Vec<Gap>,
    /// Who scraped it when, in order.
    stretches: Vec<Stretch>,
    /// It was gone after that slot: what comes later begins anew.
    is_ended: bool,
}

/// Slots of a target, one after the other, of one producer.
struct Stretch {
    producer: Arc<str>,
    from_ms: i64,
    to_ms: i64,
}

/// A process, by its producer and epoch.
type Process = (String, u64);

/// Two neighbouring slots that are further apart than those before them.
#[derive(Clone)]
struct Gap {
    from_ms: i64,
    to_ms: i64,
    /// The time between two slots before it; 0: there was one slot only.
    before_ms: i64,
    /// The shortest time between two slots right after it; 0: there was none yet.
    after_ms: i64,
    looks: u8,
    /// The producers before and after it, if it is another process than before.
    other: Option<(String, String)>,
}

/// Slots of a gap in a row that share their reason.
#[derive(Clone)]
struct Run {
    kind: Kind,
    reason: String,
    from_ms: i64,
    to_ms: i64,
    slots: u64,
}

/// Where holes go.
struct Teller<'a> {
    scope: &'a Scope,
    collection: &'a mut Collection,
    holes: &'a mut Holes,
}

impl Slots {
    /// Takes a moment of a process' life, in the order of the ledger; one that the fold stored anew may be there twice.
    pub fn lived(&mut self, producer: &str, life: Life) {
        let lives = self.lives.entry(producer.to_owned()).or_default();
        if lives.last() != Some(&life) {
            lives.push(life);
        }
    }

    /// Takes a loss before the stream.
    pub fn dropped(&mut self, target: TargetId, slots: (i64, i64)) {
        self.dropped.entry(target).or_default().push(slots);
    }

    /// Takes what a collector booked; a booking that cannot be read tells nothing.
    pub fn book(&mut self, producer: &str, payload: &[u8], scope: &Scope) {
        let Ok(sheet) = Sheet::decode(payload, None) else { return };
        let producer: Arc<str> = producer.into();
        sheet.each(|cell| {
            let end = cell.minute + i64::from(cell.span);
            if end <= scope.from || cell.minute >= scope.to || !scope.selects(cell.target.id) {
                return;
            }
            let here = self.booked.entry((cell.target.id, cell.minute, cell.span)).or_default();
            for (term, n) in sheet.terms().iter().zip(cell.counts).filter(|(_, n)| **n > 0) {
                let is_same = |known: &&mut Booked| known.kind == term.kind && known.reason == term.reason && known.producer == producer;
                match here.iter_mut().find(is_same) {
                    Some(known) => known.slots += n.unsigned_abs(),
                    None => here.push(Booked {
                        producer: producer.clone(),
                        kind: term.kind,
                        reason: term.reason.clone(),
                        slots: n.unsigned_abs(),
                        told: 0,
                    }),
                }
            }
        });
    }

    /// The minutes that something is booked in.
    pub fn len(&self) -> usize {
        self.booked.len()
    }

    /// Takes the first frame of a slot; those before and after the range show where a gap that reaches into it begins and ends. Whether the slot had
    /// none before.
    pub fn take(&mut self, producer: &str, epoch: u64, frame: &FrameRef<'_>, scope: &Scope) -> bool {
        let (slot_ms, is_failed) = (frame.slot_ms, frame.flags.contains(Flags::FAILED));
        if frame.flags.contains(Flags::END) {
            if let Some(known) = self.targets.get_mut(&frame.target) {
                known.is_ended = true;
            }
            return false;
        }
        let known = self.targets.entry(frame.target).or_insert_with(|| Rhythm::new(producer, epoch, slot_ms));
        let is_new = known.take(producer, epoch, slot_ms);
        let minute = (frame.target, minute_of(slot_ms));
        if is_new && slot_ms == known.slot_ms {
            known.is_failed = is_failed;
        }
        if is_failed && scope.holds(minute.1) {
            let counts = if is_new { &mut self.failed } else { &mut self.covered };
            *counts.entry(minute).or_default() += 1;
        } else if !is_new && slot_ms == known.slot_ms && std::mem::take(&mut known.is_failed) && scope.holds(minute.1) {
            // A page in the place of what failed elsewhere.
            *self.failed.entry(minute).or_default() -= 1;
            *self.covered.entry(minute).or_default() += 1;
        }
        is_new
    }

    /// Says which slots of the range brought no page. `is_torn`: whether messages are gone from the middle of the stream in a minute.
    pub fn finish(mut self, scope: &Scope, is_torn: impl Fn(i64) -> bool, collection: &mut Collection, holes: &mut Holes) {
        collection.starts = self.starts(scope);
        let rhythms: BTreeMap<_, _> = std::mem::take(&mut self.targets).into_iter().collect();
        let mut to = Teller { scope, collection, holes };
        let gaps_of = |(target, rhythm): (&TargetId, &'_ Rhythm)| -> Vec<_> {
            rhythm.gaps.iter().filter_map(|gap| Some((*target, gap.clone(), gap.every_ms()?))).collect()
        };
        let gaps: Vec<(TargetId, Gap, i64)> = rhythms.iter().flat_map(gaps_of).collect();
        let mut runs = vec![Vec::new(); gaps.len()];
        // Bookings are told of by number: first those slots in which a process ran, as how another one ended explains nothing of them.
        for is_between in [false, true] {
            for ((target, gap, every_ms), runs) in gaps.iter().zip(&mut runs).filter(|((_, gap, _), _)| gap.other.is_some() == is_between) {
                *runs = self.gap(*target, gap, *every_ms, &is_torn, scope);
            }
        }
        for ((target, ..), runs) in gaps.iter().zip(runs) {
            runs.into_iter().for_each(|run| to.tell(run.kind, &run.reason, *target, (run.from_ms, run.to_ms), run.slots));
        }
        self.tell_booked(&rhythms, &mut to);
    }

    /// Goes through the slots of a gap.
    fn gap(&mut self, target: TargetId, gap: &Gap, every_ms: i64, is_torn: &impl Fn(i64) -> bool, scope: &Scope) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut is_run = false;
        // The first slot of the gap that is in the range.
        let steps = (scope.from * 60_000 - gap.from_ms).max(1).unsigned_abs().div_ceil(every_ms.unsigned_abs());
        let mut slot_ms = gap.from_ms.saturating_add(every_ms.saturating_mul(steps.cast_signed()));
        // What is nearer to its end than half an interval is that one, of an interval that has changed.
        let end_ms = (scope.to * 60_000).min(gap.to_ms - every_ms / 2);
        while slot_ms < end_ms {
            let why = self.reason(target, slot_ms, gap.other.as_ref(), is_torn);
            let was_run = std::mem::replace(&mut is_run, why.is_some());
            match (runs.last_mut().filter(|_| was_run), why) {
                (Some(run), Some((kind, reason))) if run.kind == kind && run.reason == reason => {
                    (run.to_ms, run.slots) = (slot_ms, run.slots + 1);
                }
                (_, Some((kind, reason))) => runs.push(Run { kind, reason, from_ms: slot_ms, to_ms: slot_ms, slots: 1 }),
                (_, None) => {}
            }
            slot_ms = slot_ms.saturating_add(every_ms);
        }
        runs
    }

    /// Why a slot of a gap has no frame; none: it had one, which was lost later and is told of elsewhere.
    fn reason(
        &mut self,
        target: TargetId,
        slot_ms: i64,
        other: Option<&(String, String)>,
        is_torn: &impl Fn(i64) -> bool,
    ) -> Option<(Kind, String)> {
        let minute = minute_of(slot_ms);
        for (first, span) in [(minute, 1), (minute.div_euclid(i64::from(HOUR)) * i64::from(HOUR), HOUR)] {
            let minutes = first..first + i64::from(span);
            let Some(all) = self.booked.get_mut(&(target, first, span)) else { continue };
            let counted = |minute| self.failed.get(&(target, minute)).into_iter().chain(self.covered.get(&(target, minute)));
            let frames: u64 = minutes.flat_map(counted).sum();
            let failed: u64 = all.iter().filter(|booked| booked.kind == Kind::Failed).map(|booked| booked.slots - booked.told).sum();
            // A scrape may have failed and left no frame.
            let kind = |kind| if failed > frames { matches!(kind, Kind::Missed | Kind::Failed) } else { kind == Kind::Missed };
            if let Some(booked) = all.iter_mut().find(|booked| kind(booked.kind) && booked.told < booked.slots) {
                booked.told += 1;
                return Some((booked.kind, booked.reason.to_string()));
            }
        }
        let was_dropped = self.dropped.get(&target).is_some_and(|all| all.iter().any(|(from, to)| (*from..=*to).contains(&slot_ms)));
        if was_dropped || is_torn(minute) {
            return None;
        }
        let why = match other {
            None => MISSED,
            Some((before, after)) if before == after => self.ended(after, slot_ms),
            Some((before, _)) => self.left(before, slot_ms),
        };
        Some((Kind::Missed, why.to_owned()))
    }

    /// How a process ended whose target another one took over; it may not have begun again since.
    fn left(&self, producer: &str, slot_ms: i64) -> &'static str {
        let mut last = None;
        for life in self.lives.get(producer).into_iter().flatten() {
            if matches!(life, Life::Started(at_ms) if *at_ms >= slot_ms) {
                return word(last);
            }
            last = Some(life);
        }
        if let Some(Life::Stopped(_)) = last { word(last) } else { NOT_RUNNING }
    }

    /// How the process ended that did not run in a slot.
    fn ended(&self, producer: &str, slot_ms: i64) -> &'static str {
        let mut ended = NOT_RUNNING;
        let mut before = None;
        for life in self.lives.get(producer).into_iter().flatten() {
            if let Life::Started(at_ms) = life {
                ended = word(before);
                if *at_ms >= slot_ms {
                    break;
                }
            }
            before = Some(life);
        }
        ended
    }

    /// What is booked and not told of yet.
    fn tell_booked(&mut self, rhythms: &BTreeMap<TargetId, Rhythm>, to: &mut Teller<'_>) {
        for ((target, first, span), all) in &self.booked {
            let (first, end) = (*first, *first + i64::from(*span));
            for booked in all.iter().filter(|booked| booked.told < booked.slots) {
                let mut left = booked.slots - booked.told;
                if booked.kind == Kind::Missed {
                    let had = |rhythm: &Rhythm| rhythm.had(&booked.producer, first * 60_000, end * 60_000);
                    left -= left.min(rhythms.get(target).map_or(0, had));
                }
                for minute in (first..end).filter(|_| booked.kind == Kind::Failed) {
                    left -= take_some(&mut self.covered, (*target, minute), left);
                }
                if left == 0 {
                    continue;
                }
                to.tell(booked.kind, &booked.reason, *target, (first * 60_000, end * 60_000), left);
                if booked.kind != Kind::Failed {
                    continue;
                }
                for minute in first..end {
                    left -= take_some(&mut self.failed, (*target, minute), left);
                }
            }
        }
        let mut nobodys: Vec<_> = self.failed.iter().filter(|(_, frames)| **frames > 0).collect();
        nobodys.sort_unstable();
        for ((target, minute), frames) in nobodys {
            to.tell(Kind::Failed, FAILED, *target, (minute * 60_000, (minute + 1) * 60_000), *frames);
        }
    }

    /// The starts that are in the range, or end a time without a process that reaches into it.
    fn starts(&self, scope: &Scope) -> Vec<Start> {
        let mut starts = Vec::new();
        for (producer, lives) in &self.lives {
            let mut before: Option<&Life> = None;
            for life in lives {
                if let Life::Started(at_ms) = *life {
                    let ended_ms = before.and_then(|life| if let Life::Stopped(at_ms) = life { Some(*at_ms) } else { None });
                    let word = before.map_or("none", |life| word(Some(life))).to_owned();
                    if (ended_ms.unwrap_or(at_ms) < scope.to * 60_000) && at_ms >= scope.from * 60_000 {
                        starts.push(Start { producer: producer.clone(), at_ms, before: word, ended_ms });
                    }
                }
                before = Some(life);
            }
        }
        starts.sort_unstable_by_key(|start| start.at_ms);
        starts
    }
}

impl Rhythm {
    fn new(producer: &str, epoch: u64, slot_ms: i64) -> Self {
        let process = (producer.to_owned(), epoch);
        Self { slot_ms, is_failed: false, process, every_ms: 0, gaps: Vec::new(), stretches: Vec::new(), is_ended: false }
    }

    /// Takes a slot; whether it had no frame before.
    fn take(&mut self, producer: &str, epoch: u64, slot_ms: i64) -> bool {
        if std::mem::take(&mut self.is_ended) {
            (self.slot_ms, self.every_ms, self.process) = (slot_ms, 0, (producer.to_owned(), epoch));
            self.stretch(producer, slot_ms);
            return true;
        }
        let distance = slot_ms - self.slot_ms;
        if distance <= 0 {
            let is_first = self.stretches.first().is_none_or(|first| slot_ms < first.from_ms);
            if self.stretches.is_empty() {
                self.stretch(producer, slot_ms);
            }
            // The clock of a process that goes on was set back: its slots are others than those that came before.
            let is_set_back = distance < 0 && (self.process.0.as_str(), self.process.1) == (producer, epoch);
            return self.fill(slot_ms) || is_first || is_set_back;
        }
        self.settle(distance);
        let is_other = (self.process.0.as_str(), self.process.1) != (producer, epoch);
        if is_other || distance > self.every_ms {
            let (from_ms, before_ms) = (self.slot_ms, self.every_ms);
            let other = is_other.then(|| (self.process.0.clone(), producer.to_owned()));
            self.gaps.push(Gap { from_ms, to_ms: slot_ms, before_ms, after_ms: 0, looks: 0, other });
        }
        self.slot_ms = slot_ms;
        if self.every_ms == 0 || distance < self.every_ms {
            self.every_ms = distance;
        }
        if is_other {
            self.process = (producer.to_owned(), epoch);
        }
        self.stretch(producer, slot_ms);
        true
    }

    fn stretch(&mut self, producer: &str, slot_ms: i64) {
        match self.stretches.last_mut() {
            Some(last) if *last.producer == *producer => last.to_ms = slot_ms,
            _ => self.stretches.push(Stretch { producer: producer.into(), from_ms: slot_ms, to_ms: slot_ms }),
        }
    }

    /// About how many slots of a time others than a producer have frames of.
    fn had(&self, producer: &str, from_ms: i64, end_ms: i64) -> u64 {
        let slots = |stretch: &Stretch| {
            let (first, last) = (stretch.from_ms.max(from_ms), stretch.to_ms.min(end_ms - 1));
            let every = self.every_ms.max(1);
            // By their distance to the last one of the stretch.
            let steps = (stretch.to_ms - first).div_euclid(every) - (stretch.to_ms - last + every - 1).div_euclid(every) + 1;
            if first <= last { steps.max(0).unsigned_abs() } else { 0 }
        };
        self.stretches.iter().filter(|stretch| *stretch.producer != *producer).map(slots).sum()
    }

    /// It came late: whether it fills a gap.
    fn fill(&mut self, slot_ms: i64) -> bool {
        let Some(at) = self.gaps.iter().position(|gap| (gap.from_ms + 1..gap.to_ms).contains(&slot_ms)) else { return false };
        let gap = self.gaps.remove(at);
        let before = Gap { to_ms: slot_ms, ..gap.clone() };
        self.gaps.extend([before, Gap { from_ms: slot_ms, ..gap }]);
        true
    }

    /// Knows better of the newest gaps, by the distances after them: where these are as long, the interval has changed.
    fn settle(&mut self, distance: i64) {
        let newest = self.gaps.len().saturating_sub(usize::from(LOOKS));
        for gap in self.gaps[newest..].iter_mut().filter(|gap| gap.looks < LOOKS) {
            gap.looks += 1;
            gap.after_ms = if gap.after_ms == 0 { distance } else { gap.after_ms.min(distance) };
            if gap.looks == LOOKS && gap.every_ms().is_none() {
                self.every_ms = gap.after_ms;
            }
        }
        self.gaps.retain(|gap| gap.looks < LOOKS || gap.every_ms().is_some());
    }
}

impl Gap {
    /// The time between two of its slots; none: it is not known to have any.
    fn every_ms(&self) -> Option<i64> {
        let length = self.to_ms - self.from_ms;
        match (self.before_ms, self.after_ms) {
            (0, 0) => None,
            (_, after) if after >= length => None,
            (0, every) | (every, 0) => Some(every),
            (before, after) => Some(before.min(after)),
        }
    }
}

impl Teller<'_> {
    fn tell(&mut self, kind: Kind, reason: &str, target: TargetId, (from_ms, to_ms): (i64, i64), slots: u64) {
        let by_reason = if kind == Kind::Failed { &mut self.collection.failed_slots } else { &mut self.collection.missed_slots };
        *by_reason.entry(reason.to_owned()).or_default() += slots;
        self.holes.add(Hole {
            stage: "scrape".to_owned(),
            reason: reason.to_owned(),
            target: self.scope.place(target),
            from_ms,
            to_ms,
            slots,
            accounted: true,
            ..Hole::default()
        });
    }
}

/// Takes up to `n` of a count.
fn take_some(counts: &mut HashMap<(TargetId, i64), u64>, at: (TargetId, i64), n: u64) -> u64 {
    let Some(count) = counts.get_mut(&at) else { return 0 };
    let taken = n.min(*count);
    *count -= taken;
    taken
}

/// How a process ended after which another one began; `last`: the last that is known of it.
fn word(last: Option<&Life>) -> &'static str {
    match last {
        Some(Life::Stopped(_)) => "stopped",
        Some(Life::Started(_)) => "killed",
        None => NOT_RUNNING,
    }
}
