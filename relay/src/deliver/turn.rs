//! When a relay turns to the newest samples, and how the delivery of a backlog ends.
//!
//! *In*: how old the samples are that the sink takes; the end of the steps. *Out*: a delivery that ends. *Bound*: one look per window. *When full*: does
//! not apply.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::{Deliver, Halt};
use crate::checkpoint::CHECKPOINT_INTERVAL;
use crate::desk::{Seat, Side};

/// When a relay turns to the newest samples: its delivery ends, and the next life of it begins there.
pub struct Turn {
    /// By how much what the sink takes is older than the newest of the stream.
    pub after: Duration,
    /// Told that it does.
    pub far: Arc<AtomicBool>,
}

impl Turn {
    /// Whether what was stored then is old enough. Both times are the server's: clocks that differ turn nobody.
    pub(super) fn is_due(&self, at_ms: i64, newest_ms: Option<i64>) -> bool {
        let after = i64::try_from(self.after.as_millis()).unwrap_or(i64::MAX);
        newest_ms.is_some_and(|newest_ms| newest_ms.saturating_sub(at_ms) > after)
    }
}

impl Deliver {
    /// Which position it moves; none: a replay's.
    pub(super) fn side(&self) -> Option<Side> {
        self.seat.as_ref().map(Seat::side)
    }

    /// Whether it ends here, for the relay to turn. Not while something is put aside, and not where the next life would find another position: what is sent
    /// or booked above that would be once more.
    pub(super) async fn turns(&mut self) -> Result<bool, Halt> {
        let is_due = std::mem::take(&mut self.far_behind) && self.suspects.is_empty() && !self.skipping();
        let Some(seat) = self.seat.clone().filter(|_| is_due) else { return Ok(false) };
        if !seat.may_turn(self.checkpoint.seq).await {
            return Ok(false);
        }
        self.write().await?;
        let Some(turn) = self.turn.as_ref().filter(|_| !self.dirty) else { return Ok(false) };
        turn.far.store(true, Ordering::Release);
        Ok(true)
    }

    /// Ends a backlog: nothing comes after it that could tell a picky sink from a broken one, so what the other delivery sees does; then its end is made to
    /// last.
    pub(super) async fn end(&mut self) -> Result<(), Halt> {
        while !self.suspects.is_empty() {
            let before = self.gauges.metrics.delivered.get();
            let at = self.retry_suspects_at.unwrap_or_else(Instant::now);
            let control = self.control.clone();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Halt::Stopped),
                () = control.sender.notified() => {}
                () = sleep_until(at) => {}
            }
            self.rest(self.checkpoint.seq + 1).await?;
            if self.gauges.metrics.delivered.get() > before {
                debug!(relay = self.name(), "the sink takes what is new, so it refuses some of the backlog");
                self.settle(false).await?;
            } else {
                self.reconsider().await?;
            }
        }
        while self.dirty && !self.stop.is_cancelled() {
            self.write().await?;
            if self.dirty {
                sleep(CHECKPOINT_INTERVAL).await;
            }
        }
        Ok(())
    }
}
