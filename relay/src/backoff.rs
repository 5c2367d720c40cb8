//! Waiting longer after each failure, with jitter.
//!
//! *In*: failures. *Out*: how long to wait. *Bound*: a lowest and a highest wait. *When full*: does not apply.

use std::time::Duration;

pub use bundled_nats::ambient::{jitter, nonce, now_ms};

/// Wait after the first failure.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);

/// Longest wait between two tries. Larger: a sink that is back waits longer; smaller: a dead sink is asked more often.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A doubling wait between [`BACKOFF_FIRST`] and [`BACKOFF_MAX`], each between half and all of it.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait.
    pub fn wait(&mut self) -> Duration {
        let full = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        jitter(full)
    }

    /// A success: the next wait is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}
