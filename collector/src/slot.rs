//! When a target is scraped: slots of a fixed phase, the same after every restart and in every collector.
//!
//! *In*: a target's id, its interval, the time. *Out*: the next nominal slot and how many were missed. *Bound*: nothing is stored but
//! the last slot. *When full*: a slot that cannot start in time is a counted miss; there is never a burst to catch up.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use sample::TargetId;

/// Goes on while the machine is suspended, so that such a time is none that somebody set the clock over.
#[cfg(target_os = "linux")]
const UPTIME: ClockId = ClockId::CLOCK_BOOTTIME;
#[cfg(not(target_os = "linux"))]
const UPTIME: ClockId = ClockId::CLOCK_MONOTONIC;

/// Between two looks at the uptime, ms, with one at the wall clock between them. Larger: a process that was stopped there takes that for a clock that
/// was set; smaller: a busy machine looks more often.
const LOOK_MAX_MS: i64 = 20;

/// The wall clock, in ms since the Unix epoch, and beside it one that nobody can set; passed in so that a test may hold them.
#[derive(Clone)]
pub struct Clock {
    wall_ms: Reading,
    uptime_ms: Reading,
}

type Reading = Arc<dyn Fn() -> i64 + Send + Sync>;

/// One target's schedule.
#[derive(Debug, Clone)]
pub struct Slots {
    interval_ms: i64,
    offset_ms: i64,
    last_ms: Option<i64>,
}

/// The slot to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// The nominal slot, ms since the Unix epoch.
    pub slot_ms: i64,
    /// How long until it is due; zero if it is due already.
    pub wait: Duration,
    /// Slots between the last one and this one in which nothing could start.
    pub missed: u64,
}

/// Why no scrape began in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// The scrape before it was still running.
    Overrun,
    /// The process did not run: suspended, or starved.
    Suspended,
    /// The wall clock was set forward over it.
    Clock,
    /// As many requests as are allowed were in flight.
    Busy,
}

impl Missed {
    /// Every reason.
    pub const ALL: [Missed; 4] = [Self::Overrun, Self::Suspended, Self::Clock, Self::Busy];

    /// The word in the metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overrun => "overrun",
            Self::Suspended => "suspended",
            Self::Clock => "clock",
            Self::Busy => "busy",
        }
    }
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        let wall_ms = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        };
        let uptime_ms = || {
            let up = Duration::from(clock_gettime(UPTIME).expect("every kernel that Strata runs on has this clock"));
            i64::try_from(up.as_millis()).unwrap_or(i64::MAX)
        };
        Self::set(wall_ms, uptime_ms)
    }

    /// A clock that starts at `start_ms` and follows tokio's time, so it stands still when that is paused.
    pub fn tokio(start_ms: i64) -> Self {
        let started = tokio::time::Instant::now();
        Self::from_fn(move || start_ms + i64::try_from(started.elapsed().as_millis()).unwrap_or(i64::MAX))
    }

    /// A clock of one's own, which nobody sets.
    pub fn from_fn(now_ms: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        let now_ms: Reading = Arc::new(now_ms);
        Self { wall_ms: now_ms.clone(), uptime_ms: now_ms }
    }

    /// A clock of one's own, which is set where the first of these differs from the second by more than before.
    pub fn set(wall_ms: impl Fn() -> i64 + Send + Sync + 'static, uptime_ms: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self { wall_ms: Arc::new(wall_ms), uptime_ms: Arc::new(uptime_ms) }
    }

    /// Now.
    ///
    /// *Units*: ms since the Unix epoch.
    pub fn now_ms(&self) -> i64 {
        (self.wall_ms)()
    }

    /// By how much the wall clock is ahead of the uptime: another number means that it was set.
    pub fn ahead_ms(&self) -> i64 {
        loop {
            let before_ms = (self.uptime_ms)();
            let wall_ms = (self.wall_ms)();
            if (self.uptime_ms)() - before_ms <= LOOK_MAX_MS {
                return wall_ms.saturating_sub(before_ms);
            }
        }
    }
}

impl Slots {
    /// The schedule of a target: every `interval`, at an offset to the Unix epoch that only its id decides.
    ///
    /// *Limits*: an interval below 1 ms counts as 1 ms.
    pub fn new(target: TargetId, interval: Duration) -> Self {
        let interval_ms = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1);
        let offset_ms = (target.0 % interval_ms.unsigned_abs()).cast_signed();
        Self { interval_ms, offset_ms, last_ms: None }
    }

    /// A schedule that takes over at a moment: every slot up to `until_ms` was another's business, the next one is this one's, even if
    /// it can only start late.
    pub fn after(target: TargetId, interval: Duration, until_ms: i64) -> Self {
        let fresh = Self::new(target, interval);
        Self { last_ms: Some(until_ms - (until_ms - fresh.offset_ms).rem_euclid(fresh.interval_ms)), ..fresh }
    }

    /// How late a slot may still start: half an interval.
    pub fn late_max(&self) -> Duration {
        Duration::from_millis((self.interval_ms / 2).unsigned_abs())
    }

    /// Between two slots, ms.
    pub fn every_ms(&self) -> i64 {
        self.interval_ms
    }

    /// The slot that was given out last.
    pub fn last_ms(&self) -> Option<i64> {
        self.last_ms
    }

    /// The slot after the last one that can still start in time; it becomes the last one.
    pub fn next(&mut self, now_ms: i64) -> Next {
        if self.last_ms.is_some_and(|last_ms| last_ms > now_ms.saturating_add(self.interval_ms)) {
            // A clock set back by more than an interval starts the schedule anew, or nothing would be scraped until it caught up. What is scraped at a
            // time that was there before is no twin of what was scraped then: the phase moves, so that the slots are others.
            self.last_ms = None;
            self.offset_ms = (self.offset_ms + 1) % self.interval_ms;
        }
        let (slot_ms, missed) = match self.last_ms {
            None => (self.at_or_after(now_ms), 0),
            Some(last) => {
                let due = last + self.interval_ms;
                let late_max = self.interval_ms / 2;
                let slot = if now_ms - due > late_max { self.at_or_after(now_ms - late_max) } else { due };
                (slot, ((slot - due) / self.interval_ms).unsigned_abs())
            }
        };
        self.last_ms = Some(slot_ms);
        Next { slot_ms, wait: Duration::from_millis((slot_ms - now_ms).max(0).unsigned_abs()), missed }
    }

    /// Whether `slot_ms` can no longer start at `now_ms`.
    pub fn is_late(&self, slot_ms: i64, now_ms: i64) -> bool {
        now_ms - slot_ms > self.interval_ms / 2
    }

    fn at_or_after(&self, now_ms: i64) -> i64 {
        now_ms + (self.offset_ms - now_ms).rem_euclid(self.interval_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_760_000_000_000;

    #[test]
    fn the_phase_is_the_same_after_a_restart() {
        let make = || Slots::new(TargetId(0x1234_5678_9abc_def0), Duration::from_secs(15));
        let first = make().next(NOW).slot_ms;
        let later = make().next(NOW + 1_000_003).slot_ms;
        assert_eq!((later - first) % 15_000, 0);
        assert!((NOW..NOW + 15_000).contains(&first));
        assert_eq!(first.rem_euclid(15_000).unsigned_abs(), 0x1234_5678_9abc_def0 % 15_000);
    }

    #[test]
    fn a_slot_in_time_misses_nothing() {
        let mut slots = Slots::new(TargetId(7), Duration::from_secs(10));
        let first = slots.next(NOW);
        let second = slots.next(first.slot_ms + 3_000);
        assert_eq!(second, Next { slot_ms: first.slot_ms + 10_000, wait: Duration::from_secs(7), missed: 0 });
    }

    #[test]
    fn a_scrape_as_long_as_its_interval_starts_the_next_slot_late_and_misses_none() {
        let mut slots = Slots::new(TargetId(7), Duration::from_secs(10));
        let first = slots.next(NOW);
        let second = slots.next(first.slot_ms + 10_005);
        assert_eq!(second, Next { slot_ms: first.slot_ms + 10_000, wait: Duration::ZERO, missed: 0 });
    }

    #[test]
    fn slots_that_passed_are_counted_and_never_caught_up() {
        let mut slots = Slots::new(TargetId(7), Duration::from_secs(10));
        let first = slots.next(NOW);
        let second = slots.next(first.slot_ms + 58_000);
        assert_eq!(second, Next { slot_ms: first.slot_ms + 60_000, wait: Duration::from_secs(2), missed: 5 });
        assert!(slots.is_late(second.slot_ms, second.slot_ms + 5_001));
        assert!(!slots.is_late(second.slot_ms, second.slot_ms + 5_000));
    }

    #[test]
    fn a_schedule_that_takes_over_begins_with_the_first_slot_after_that_even_if_it_is_due() {
        let (target, interval) = (TargetId(7), Duration::from_secs(10));
        let slot = Slots::new(target, interval).next(NOW).slot_ms;
        // Asked a moment before the slot, ready a moment after it.
        assert_eq!(Slots::after(target, interval, slot - 1).next(slot + 5), Next { slot_ms: slot, wait: Duration::ZERO, missed: 0 });
        assert_eq!(Slots::after(target, interval, slot).next(slot + 5).slot_ms, slot + 10_000);
        assert_eq!(Slots::after(target, interval, slot + 5).next(slot + 5).slot_ms, slot + 10_000);
    }

    #[test]
    fn a_clock_set_back_starts_anew_and_no_slot_comes_twice() {
        let mut slots = Slots::new(TargetId(7), Duration::from_secs(10));
        let mut seen = std::collections::HashSet::new();
        for start_ms in [NOW, NOW - 3_600_000, NOW + 3_600_000, NOW, NOW - 30_000] {
            let first = slots.next(start_ms);
            assert!(first.wait < Duration::from_secs(10), "{start_ms}");
            let mut slot_ms = first.slot_ms;
            for _ in 0..400 {
                assert!(seen.insert(slot_ms), "{slot_ms} came before");
                let next = slots.next(slot_ms + 1);
                assert_eq!((next.slot_ms, next.missed), (slot_ms + 10_000, 0));
                slot_ms = next.slot_ms;
            }
        }
    }

    #[test]
    fn a_clock_is_ahead_by_what_it_was_set() {
        let clock = Clock::set(|| NOW, || 5);
        assert_eq!(clock.ahead_ms(), NOW - 5);
        let real = Clock::system();
        assert!((real.ahead_ms() - real.ahead_ms()).abs() <= 2 * LOOK_MAX_MS, "nobody sets it here");
    }
}
