//! Waiting for a state, never for a time.
//!
//! *In*: a probe and a deadline. *Out*: what the probe found. *Bound*: the deadline; the error names what never came.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a state is looked at: larger makes tests slower, smaller takes processor time from what is tested.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks again and again until `probe` gives a value.
///
/// *Errors*: nothing within `limit`; the text names `what`.
pub async fn until<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if let Some(value) = probe().await {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("not within {limit:?}: {what}");
        }
    }
}

/// [`until`] for a plain condition.
///
/// *Errors*: not true within `limit`.
pub async fn until_true(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, async || condition().then_some(())).await
}
