//! What a process takes from its machine: the time of day, and chance.
//!
//! *In*: the system's clock and its randomness; where a simulation has pinned them, tokio's clock and a seed. *Out*: ms, and waits of uneven
//! length. *Bound*: no state. *When full*: does not apply.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

thread_local! {
    static PINNED: RefCell<Option<Pinned>> = const { RefCell::new(None) };
}

struct Pinned {
    start_ms: i64,
    start: Instant,
    random: StdRng,
}

/// While it lives, time and chance of its thread come from a start and a seed, so that what runs on it runs the same way each time.
pub struct Pin(PhantomData<*const ()>);

/// Pins time and chance of this thread: it is `start_ms` now, and goes on with tokio's clock.
///
/// *Limits*: a runtime of this thread alone, whose clock is paused; otherwise the order of its tasks is chance too.
pub fn pin(start_ms: i64, seed: u64) -> Pin {
    let pinned = Pinned { start_ms, start: Instant::now(), random: StdRng::seed_from_u64(seed) };
    PINNED.set(Some(pinned));
    Pin(PhantomData)
}

impl Drop for Pin {
    fn drop(&mut self) {
        PINNED.set(None);
    }
}

/// Now, ms since the Unix epoch: the wall clock, moved along with `tokio`'s clock where that is paused.
pub fn now_ms() -> i64 {
    let pinned = PINNED.with_borrow(|pinned| pinned.as_ref().map(|pinned| pinned.start_ms + pinned.start.elapsed().as_millis() as i64));
    pinned.unwrap_or_else(|| {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
        let (virtual_now, now) = (Instant::now().into_std(), std::time::Instant::now());
        let ahead = virtual_now.saturating_duration_since(now).as_millis() as i64;
        let behind = now.saturating_duration_since(virtual_now).as_millis() as i64;
        wall + ahead - behind
    })
}

/// Any number: for a name that nothing else has.
pub fn nonce() -> u64 {
    let number = PINNED.with_borrow_mut(|pinned| pinned.as_mut().map(|pinned| pinned.random.random()));
    number.unwrap_or_else(rand::random)
}

/// Between half and all of a wait.
pub fn jitter(full: Duration) -> Duration {
    let part = PINNED.with_borrow_mut(|pinned| pinned.as_mut().map(|pinned| pinned.random.random_range(0.5..=1.0)));
    full.mul_f64(part.unwrap_or_else(|| rand::random_range(0.5..=1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_pinned_is_the_same_each_time_and_only_as_long() {
        let waits = || -> Vec<Duration> { (0..8).map(|_| jitter(Duration::from_secs(1))).collect() };
        let pinned = pin(1_000, 7);
        let (first, named) = (waits(), nonce());
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(now_ms(), 1_250);
        drop(pinned);
        assert!(now_ms() > 1_600_000_000_000, "the wall clock again");
        let _pinned = pin(1_000, 7);
        assert_eq!((now_ms(), waits(), nonce()), (1_000, first, named));
    }
}
