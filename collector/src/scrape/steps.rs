//! Steps of the wall clock: it was set forward or back while this process ran.
//!
//! *In*: the clock, looked at by every scrape. *Out*: by how much it is ahead; each step is logged and counted once per process. *Bound*: one
//! number. *When full*: does not apply.

use std::sync::{Mutex, PoisonError};

use prometheus::IntCounterVec;

use crate::slot::Clock;

/// What is told as a step, ms. Larger: slots are missed for a reason that is not told; smaller: a clock that is drawn near to another is told of.
const STEP_MIN_MS: u64 = 500;

/// Label values: where it was set to.
pub(crate) const DIRECTIONS: [&str; 2] = ["forward", "back"];

pub(super) struct Steps {
    clock: Clock,
    /// Held over the look, so that looks are in order.
    last_ms: Mutex<i64>,
    told: IntCounterVec,
}

impl Steps {
    pub(super) fn new(clock: Clock, told: IntCounterVec) -> Self {
        Self { last_ms: Mutex::new(clock.ahead_ms()), clock, told }
    }

    /// By how much the wall clock is ahead of the uptime.
    pub(super) fn ahead_ms(&self) -> i64 {
        let mut last_ms = self.last_ms.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead_ms = self.clock.ahead_ms();
        let by_ms = ahead_ms.saturating_sub(std::mem::replace(&mut *last_ms, ahead_ms));
        if by_ms.unsigned_abs() >= STEP_MIN_MS {
            let direction = DIRECTIONS[usize::from(by_ms < 0)];
            self.told.with_label_values(&[direction]).inc();
            let seconds = by_ms.unsigned_abs() as f64 / 1000.0;
            tracing::warn!(direction, seconds, "the wall clock was set: samples carry the new time from here on");
        }
        ahead_ms
    }
}
