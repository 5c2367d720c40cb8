//! The time that the stream shows, and what is old by it.
//!
//! *In*: the times of messages. *Out*: now and then, what may be forgotten. *Bound*: two numbers. *When full*: does not apply.
//!
//! Collectors' clocks may be set, forward and back, so it is not the time that decides alone: what was old when it was last asked is forgotten.

use crate::slots::SLOT_MEMORY_MS;

/// How often old targets are looked for, in stream time. A target that is scraped less often than this loses its previous values when the clock is
/// set forward.
const FORGET_EVERY_MS: i64 = 30_000;

pub(super) struct Clock {
    now_ms: i64,
    forgot_ms: i64,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { now_ms: i64::MIN, forgot_ms: i64::MIN }
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.now_ms
    }

    /// Moves on; where it is time for it, before when everything is to be forgotten: two key periods before the last time.
    pub(super) fn tick(&mut self, now_ms: i64) -> Option<i64> {
        if now_ms < self.now_ms.saturating_sub(SLOT_MEMORY_MS) {
            // It was set back: nothing would be forgotten until it caught up.
            (self.now_ms, self.forgot_ms) = (now_ms, now_ms);
        }
        self.now_ms = self.now_ms.max(now_ms);
        let is_due = self.now_ms.saturating_sub(self.forgot_ms) >= FORGET_EVERY_MS;
        is_due.then(|| std::mem::replace(&mut self.forgot_ms, self.now_ms).saturating_sub(SLOT_MEMORY_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_760_000_000_000;
    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn what_was_not_old_before_a_step_forward_is_not_old_right_after_it() {
        let mut clock = Clock::new();
        assert_eq!(clock.tick(NOW), Some(i64::MIN), "nothing is old at the start");
        assert_eq!(clock.tick(NOW + 29_999), None);
        assert_eq!(clock.tick(NOW + HOUR_MS), Some(NOW - SLOT_MEMORY_MS));
        assert_eq!(clock.tick(NOW + HOUR_MS + 30_000), Some(NOW + HOUR_MS - SLOT_MEMORY_MS));
    }

    #[test]
    fn a_step_back_is_followed_where_it_is_longer_than_anything_is_late() {
        let mut clock = Clock::new();
        clock.tick(NOW);
        assert_eq!((clock.tick(NOW - SLOT_MEMORY_MS), clock.now_ms()), (None, NOW));
        assert_eq!((clock.tick(NOW - HOUR_MS), clock.now_ms()), (None, NOW - HOUR_MS));
        assert_eq!(clock.tick(NOW - HOUR_MS + 30_000), Some(NOW - HOUR_MS - SLOT_MEMORY_MS));
    }
}
