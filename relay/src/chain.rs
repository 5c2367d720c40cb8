//! The filter chain of a relay: asked once per series, and per sample only what depends on the sample.
//!
//! *In*: series, then their samples. *Out*: per series a [`Rule`], interned; per sample a value or the filter that dropped it. *Bound*: one
//! rule per combination of verdicts; the gates of filters that count series. *When full*: see [`crate::gate`].
//!
//! The filters stand in the order of the configuration, and each sees the labels and values that the ones before it left. Two series that
//! relabeling made one cannot both pass: the first that came has the name for as long as it lives, the others are dropped as `collision`.

use std::collections::HashMap;
use std::sync::Arc;

use config::relabel::Labels;
use sample::{State, TargetId, is_stale};
use xxhash_rust::xxh3::Xxh3;

use crate::filter::{Filter, Limit, Series, Verdict};
use crate::gate::{Gate, Place, Seat};

/// Most filters of one relay: what they say of a slot is remembered as bits.
pub const FILTERS_MAX: usize = 31;

/// How long a name that relabeling gave to a series of which nothing comes any more is kept for it: Prometheus' own patience with a series.
const COLLISION_MS: i64 = 5 * 60 * 1000;

/// Why samples are dropped that relabeling gave the name of another series.
pub const COLLISION: &str = "collision";

const NAME: &str = "__name__";

/// What a filter does with a sample, where that is not said by its series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    /// Ask for the value.
    Value(u8),
    /// Ask once per slot.
    Slot(u8),
    /// Ask the gate (second).
    Limit(u8, u8),
    /// Ask the gate of names.
    Name(u8),
}

/// What the filter chain said of one series.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    drop: Option<u8>,
    steps: Box<[Step]>,
    left_alone: Box<[u8]>,
}

/// The rule of a series that every filter keeps; the first of all.
pub const KEEP: u32 = 0;

/// What became of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on, with this value.
    Pass(u64),
    /// A filter dropped it.
    Drop(usize),
    /// Another series has its name.
    Collision,
}

/// What there is to know of the frame of a sample.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Its slot, ms.
    pub slot_ms: i64,
    /// Which filters drop the slot, as bits.
    drops: u32,
    /// Whether it is no slot of a scrape: pushed samples come when they come.
    pushed: bool,
}

/// A series after the chain.
#[derive(Debug)]
pub struct Resolved {
    /// Its rule's number.
    pub rule: u32,
    /// Name and labels, where relabeling changed them.
    pub rewritten: Option<(String, Vec<(String, String)>)>,
}

/// The filters, their rules and their gates.
pub struct Chain {
    filters: Vec<(Arc<str>, Box<dyn Filter>)>,
    rules: Vec<Rule>,
    by_rule: HashMap<Rule, u32>,
    gates: Vec<Gate>,
    /// Per gate: the filter and its limit; none: the gate of names.
    limits: Vec<Option<(u8, Limit)>>,
    /// Whether any filter may ask for [`Filter::slot`].
    thins: bool,
    /// Per target its newest slot and the one before, where that is asked for.
    slots: HashMap<TargetId, (i64, Option<i64>)>,
}

impl Chain {
    /// A chain of filters with their names.
    pub fn new(filters: Vec<(Arc<str>, Box<dyn Filter>)>) -> Self {
        let mut limits: Vec<Option<(u8, Limit)>> = Vec::new();
        for (i, (_, filter)) in filters.iter().enumerate() {
            limits.extend(filter.limit().map(|limit| Some((i as u8, limit))));
        }
        if filters.iter().any(|(_, filter)| filter.relabels()) {
            limits.push(None);
        }
        let gates = limits.iter().map(|limit| match limit {
            Some((_, limit)) => Gate::new(Some(limit.series), limit.stale_after_ms),
            None => Gate::new(None, COLLISION_MS),
        });
        let thins = filters.iter().any(|(_, filter)| filter.thins());
        let gates = gates.collect();
        Self {
            filters,
            rules: vec![Rule::default()],
            by_rule: HashMap::from([(Rule::default(), KEEP)]),
            gates,
            limits,
            thins,
            slots: HashMap::new(),
        }
    }

    /// How many filters there are.
    pub fn len(&self) -> usize {
        self.filters.len()
    }

    /// Whether there is no filter.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// The filters' names, in order.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.filters.iter().map(|(name, _)| name)
    }

    /// How many gates every series has a place at.
    pub fn gates(&self) -> usize {
        self.gates.len()
    }

    /// Whether it must see what was delivered before, to judge what comes.
    pub fn remembers(&self) -> bool {
        self.thins || !self.gates.is_empty()
    }

    /// The rule of a number.
    pub fn rule(&self, rule: u32) -> &Rule {
        &self.rules[rule as usize]
    }

    /// Lets series leave of which nothing came for long, and forgets targets without a slot since `slots_before`.
    pub fn forget(&mut self, now_ms: i64, slots_before: i64) {
        self.gates.iter_mut().for_each(|gate| gate.forget(now_ms));
        self.slots.retain(|_, (newest, _)| *newest >= slots_before);
    }

    /// Asks every filter about a series, once; its places at the gates are appended to `places`, one per gate.
    pub fn resolve(&mut self, series: &Series<'_>, places: &mut Vec<Place>) -> Resolved {
        let first = places.len();
        let mut rule = Building::default();
        let mut rewritten: Option<(String, Vec<(String, String)>)> = None;
        let original = if self.gates.is_empty() { 0 } else { identity(series) };
        for (i, (_, filter)) in self.filters.iter().enumerate() {
            let labels: Vec<(&str, &str)>;
            let seen = match &rewritten {
                Some((name, own)) => {
                    labels = own.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                    Series { name, labels: &labels, ..*series }
                }
                None => *series,
            };
            let i = i as u8;
            match filter.verdict(&seen) {
                Verdict::Keep => {}
                Verdict::Drop => {
                    rule.drop = Some(i);
                    break;
                }
                Verdict::Values => rule.steps.push(Step::Value(i)),
                Verdict::LeftAlone => rule.left_alone.push(i),
                Verdict::Slots => rule.steps.push(Step::Slot(i)),
                Verdict::Limit => {
                    let gate = self.limits.iter().position(|limit| matches!(limit, Some((at, _)) if *at == i));
                    if let Some((gate, Some((_, limit)))) = gate.map(|gate| (gate, &self.limits[gate])) {
                        let key = identity(&seen);
                        while places.len() < first + gate {
                            places.push(Place { seat: Seat::Unknown, key: 0, owner: 0, group: 0 });
                        }
                        places.push(Place { seat: Seat::Unknown, key, owner: key, group: limit.group(&seen) });
                        rule.steps.push(Step::Limit(i, gate as u8));
                    }
                }
                Verdict::Relabel => {
                    let mut labels = Labels::new([(NAME, seen.name)].into_iter().chain(seen.labels.iter().copied()));
                    if !filter.relabel(&mut labels) || labels.get(NAME).is_empty() {
                        rule.drop = Some(i);
                        break;
                    }
                    let changed = after(&labels, &seen);
                    rewritten = changed.or(rewritten);
                }
            }
        }
        while places.len() < first + self.gates.len() {
            let key = match &rewritten {
                Some((name, own)) => {
                    let labels: Vec<(&str, &str)> = own.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                    identity(&Series { name, labels: &labels, ..*series })
                }
                None => original,
            };
            places.push(Place { seat: Seat::Unknown, key, owner: original, group: 0 });
        }
        if rule.drop.is_none() && matches!(self.limits.last(), Some(None)) {
            rule.steps.push(Step::Name(self.gates.len() as u8 - 1));
        }
        Resolved { rule: self.intern(rule), rewritten }
    }

    fn intern(&mut self, rule: Building) -> u32 {
        let rule = Rule { drop: rule.drop, steps: rule.steps.into(), left_alone: rule.left_alone.into() };
        if let Some(known) = self.by_rule.get(&rule) {
            return *known;
        }
        let number = self.rules.len() as u32;
        self.rules.push(rule.clone());
        self.by_rule.insert(rule, number);
        number
    }

    /// Asks the filters about a slot of a target, once for all its series. `late`: another producer's slot, a newer one, came before.
    pub fn moment(&mut self, target: TargetId, slot_ms: i64, late: bool, pushed: bool) -> Moment {
        let mut drops = 0;
        if self.thins && !pushed {
            let known = self.slots.entry(target).or_insert((slot_ms, None));
            if slot_ms > known.0 {
                *known = (slot_ms, Some(known.0));
            } else if slot_ms < known.0 && !late {
                // Its clock was set back.
                *known = (slot_ms, None);
            }
            // All parts of the newest slot come after the same one; a late slot comes after the newest.
            let previous = if slot_ms == known.0 { known.1 } else { Some(known.0) };
            for (i, (_, filter)) in self.filters.iter().enumerate() {
                drops |= u32::from(!filter.slot(previous, slot_ms)) << i;
            }
        }
        Moment { slot_ms, drops, pushed }
    }

    /// Asks about one sample of a series. `alone` is told of filters that leave it alone.
    pub fn judge(
        &mut self,
        rule: u32,
        places: &mut [Place],
        state: State,
        bits: u64,
        moment: &Moment,
        mut alone: impl FnMut(usize),
    ) -> Outcome {
        let Rule { drop, steps, left_alone } = &self.rules[rule as usize];
        if let Some(filter) = drop {
            return Outcome::Drop(usize::from(*filter));
        }
        left_alone.iter().for_each(|filter| alone(usize::from(*filter)));
        let stale = state == State::Present && is_stale(bits);
        let mut bits = bits;
        for step in steps {
            match *step {
                Step::Value(_) | Step::Slot(_) if stale => {}
                // A native histogram has no single value.
                Step::Value(filter) if state == State::Histogram => alone(usize::from(filter)),
                Step::Value(filter) => {
                    let value = f64::from_bits(bits);
                    match self.filters[usize::from(filter)].1.value(value) {
                        // An untouched value keeps its very bits.
                        Some(passed) if passed.to_bits() == value.to_bits() => {}
                        Some(passed) => bits = passed.to_bits(),
                        None => return Outcome::Drop(usize::from(filter)),
                    }
                }
                Step::Slot(filter) if moment.pushed => alone(usize::from(filter)),
                Step::Slot(filter) if moment.drops & (1 << filter) != 0 => return Outcome::Drop(usize::from(filter)),
                Step::Slot(_) => {}
                Step::Limit(filter, gate) => {
                    if !passes(&mut self.gates[usize::from(gate)], &mut places[usize::from(gate)], stale, moment.slot_ms) {
                        return Outcome::Drop(usize::from(filter));
                    }
                }
                Step::Name(gate) => {
                    if !passes(&mut self.gates[usize::from(gate)], &mut places[usize::from(gate)], stale, moment.slot_ms) {
                        return Outcome::Collision;
                    }
                }
            }
        }
        Outcome::Pass(bits)
    }
}

#[derive(Default)]
struct Building {
    drop: Option<u8>,
    steps: Vec<Step>,
    left_alone: Vec<u8>,
}

impl Rule {
    /// The filter that drops every sample.
    pub fn drops(&self) -> Option<usize> {
        self.drop.map(usize::from)
    }
}

#[inline]
fn passes(gate: &mut Gate, place: &mut Place, stale: bool, at_ms: i64) -> bool {
    if stale { gate.leave(place, at_ms) } else { gate.admit(place, at_ms) }
}

/// Name and labels after relabeling, if it changed any.
fn after(labels: &Labels, before: &Series<'_>) -> Option<(String, Vec<(String, String)>)> {
    let name = labels.get(NAME);
    let mut own: Vec<(&str, &str)> = labels.iter().filter(|(name, _)| *name != NAME).collect();
    own.sort_unstable();
    if name == before.name && own == before.labels {
        return None;
    }
    Some((name.to_owned(), own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
}

/// Hash of name and all labels.
pub(crate) fn identity(series: &Series<'_>) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(series.name.as_bytes());
    for (name, value) in series.labels {
        hash.update(&[0xff]);
        hash.update(name.as_bytes());
        hash.update(&[0xfe]);
        hash.update(value.as_bytes());
    }
    hash.digest()
}

#[cfg(test)]
mod tests;
