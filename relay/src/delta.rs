//! Deltas: cumulative values as increases, for sinks that add up.
//!
//! *In*: values of cumulative series, delivered or read silently. *Out*: the increase since the previous one. *Bound*: one previous value
//! per series of the targets seen within two key periods. *When full*: series not seen for that long go.

use std::collections::HashMap;

use sample::TargetId;

/// No start timestamp.
pub const NO_START: i64 = i64::MIN;

/// Place of a series without a previous value that is kept.
pub const NO_PLACE: u32 = u32::MAX;

/// Series of a target below which nothing is compacted.
const COMPACT_MIN: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Previous {
    value: f64,
    start_ms: i64,
    at_ms: i64,
}

/// The previous values of one target's series, by series identity, so that they outlive layouts and producers.
#[derive(Debug, Default)]
pub struct Previously {
    places: HashMap<u64, u32>,
    values: Vec<Option<Previous>>,
    newest_ms: i64,
    version: u32,
}

impl Previously {
    /// Where the previous value of a series is kept from now on.
    pub fn place(&mut self, series: u64) -> u32 {
        let next = self.values.len() as u32;
        let place = *self.places.entry(series).or_insert(next);
        if place == next {
            self.values.push(None);
        }
        place
    }

    /// Changes when places handed out before are void.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Drops series without a value since then, once they are most of all.
    fn compact(&mut self, slot_ms: i64) {
        let live = |v: &Option<Previous>| v.is_some_and(|v| v.at_ms >= slot_ms);
        let alive = self.values.iter().filter(|v| live(v)).count();
        if self.values.len() < COMPACT_MIN || alive * 2 > self.values.len() {
            return;
        }
        let old = std::mem::take(&mut self.values);
        self.places.retain(|_, place| {
            let value = old[*place as usize];
            let keep = live(&value);
            if keep {
                *place = self.values.len() as u32;
                self.values.push(value);
            }
            keep
        });
        self.version += 1;
    }

    /// The increase that a value means, and makes it the previous one. `None`: it is the base, or not a number.
    pub fn step(&mut self, place: u32, value: f64, start_ms: i64, at_ms: i64) -> Option<f64> {
        if !value.is_finite() {
            return None;
        }
        self.newest_ms = self.newest_ms.max(at_ms);
        let slot = self.values.get_mut(place as usize)?;
        let now = Previous { value, start_ms, at_ms };
        match slot.replace(now) {
            None if start_ms != NO_START => Some(value),
            None => None,
            Some(before) => {
                let newer_start = start_ms != NO_START && before.start_ms != NO_START && start_ms > before.start_ms;
                Some(if newer_start || value < before.value { value } else { value - before.value })
            }
        }
    }

    /// What a native histogram's count and sum grew by; a count that fell is a reset of both, and a sum may fall without one.
    pub fn grow(&mut self, place: u32, series: u64, count: f64, sum: f64, start_ms: i64, at_ms: i64) -> Option<(f64, f64)> {
        let before = self.values.get(place as usize).copied().flatten();
        let by = self.step(place, count, start_ms, at_ms);
        // The sum has a place of its own, beside that of the series.
        let sum_place = self.place(!series);
        let slot = self.values.get_mut(sum_place as usize)?;
        let sum_before = slot.replace(Previous { value: sum, start_ms, at_ms });
        let by = by?;
        let goes_on = before.is_some_and(|before| before.value + by == count && before.value <= count);
        let sum_by = match sum_before {
            Some(before) if goes_on => sum - before.value,
            _ => sum,
        };
        Some((by, if sum_by.is_finite() { sum_by } else { 0.0 }))
    }
}

/// Previous values of all targets.
#[derive(Debug, Default)]
pub struct Deltas {
    targets: HashMap<TargetId, Previously>,
}

impl Deltas {
    /// The previous values of one target.
    pub fn target(&mut self, target: TargetId) -> &mut Previously {
        self.targets.entry(target).or_default()
    }

    /// Drops targets and series without a value since then.
    pub fn forget_before(&mut self, slot_ms: i64) {
        self.targets.retain(|_, previously| {
            previously.compact(slot_ms);
            previously.newest_ms >= slot_ms
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn increases_resets_starts_and_bases() {
        let mut p = Previously::default();
        let a = p.place(1);
        assert_eq!(p.place(1), a);
        let cases: &[(f64, i64, Option<f64>)] = &[
            (10.0, NO_START, None),
            (12.0, NO_START, Some(2.0)),
            (12.0, NO_START, Some(0.0)),
            (3.0, NO_START, Some(3.0)),
            (f64::NAN, NO_START, None),
            (4.0, 100, Some(1.0)),
            (9.0, 200, Some(9.0)),
            (11.0, 200, Some(2.0)),
        ];
        for (i, (value, start, expect)) in cases.iter().enumerate() {
            assert_eq!(p.step(a, *value, *start, i as i64), *expect, "case {i}");
        }
        let h = p.place(3);
        let grown: Vec<_> =
            [(2.0, 5.0), (3.0, 4.0), (3.0, 4.0), (1.0, 7.0)].map(|(count, sum)| p.grow(h, 3, count, sum, NO_START, 1)).into();
        assert_eq!(grown, [None, Some((1.0, -1.0)), Some((0.0, 0.0)), Some((1.0, 7.0))], "a sum may fall, a count starts over");
        let b = p.place(2);
        assert_eq!(p.step(b, 7.0, 50, 1), Some(7.0), "new with a start counts from it");
    }
}
