//! Trouble with a sink: what the status shows at once, and the log says once.
//!
//! *In*: failures and successes of requests; pauses. *Out*: the relay's activity; one line when it begins to hold, one when the reason is
//! another one, one when it goes on, with how long it took and how much waited. *Bound*: one outage at a time. *When full*: a sink that fails
//! again soon after it recovered is not told of again, but its failures are counted (`strata_relay_retries_total`) and named with the next line.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use super::{Deliver, Halt};
use crate::backoff::now_ms;
use crate::telemetry::Activity;

/// Failures in a row before a line is written. Larger: an outage is told later; smaller: every hiccup is told.
const TOLD_FROM: u32 = 2;
/// Time after a recovery in which the next outage is not told of. Larger: a sink that fails anew is silent longer; smaller: one that flaps
/// fills the log.
const QUIET: Duration = Duration::from_secs(60);
/// Time between two lines of one outage whose reasons differ. Larger: a new reason is told later; smaller: two that take turns fill the log.
const REASON_TOLD: Duration = Duration::from_secs(60);
/// Characters of a reason that tell it from others. Larger: a text that changes with each answer is news; smaller: two reasons look alike.
const REASON_CHARS: usize = 48;
/// Time between two lines about samples that are given up. Larger: a loss that goes on is told later; smaller: it fills the log.
const GIVEN_UP_TOLD: Duration = Duration::from_secs(600);
/// Longest single wait of a pause: clocks may be set.
const PAUSE_LOOK: Duration = Duration::from_secs(60);

/// What is known of the present trouble and the last one.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// Since when it fails, and how often.
    failing: Option<(Instant, u32)>,
    /// What of it was told, and when.
    told: Option<(Activity, String, Instant)>,
    recovered: Option<Instant>,
    /// Outages that were not told of.
    untold: u32,
}

/// What is worth a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Over {
    lasted: Duration,
    untold: u32,
}

/// What tells a reason from others: its beginning, without what counts and differs from one answer to the next.
fn reason(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).take(REASON_CHARS).collect()
}

impl Outage {
    /// A failure; whether it is worth a line.
    fn failed(&mut self, activity: Activity, text: &str, now: Instant) -> bool {
        let (_, count) = self.failing.get_or_insert((now, 0));
        *count += 1;
        let held = activity == Activity::Held;
        let reason = reason(text);
        if let Some((told, before, at)) = &self.told {
            let worse = held && *told != Activity::Held;
            let other = *before != reason && now.duration_since(*at) >= REASON_TOLD;
            if !worse && !other {
                return false;
            }
        } else if !held && (*count < TOLD_FROM || self.recovered.is_some_and(|at| now.duration_since(at) < QUIET)) {
            return false;
        }
        self.told = Some((activity, reason, now));
        true
    }

    /// Whether the last word was a failure.
    pub(super) const fn is_open(&self) -> bool {
        self.failing.is_some()
    }

    /// A success; the outage that it ends, if that was told of.
    fn over(&mut self, now: Instant) -> Option<Over> {
        let (since, count) = self.failing.take()?;
        if self.told.take().is_none() {
            self.untold += u32::from(count >= TOLD_FROM);
            return None;
        }
        self.recovered = Some(now);
        Some(Over { lasted: now.duration_since(since), untold: std::mem::take(&mut self.untold) })
    }
}

/// Lines about samples that are given up: the first at once, then seldom, with what came together.
#[derive(Debug, Default)]
pub(super) struct GivenUp {
    told: Option<Instant>,
    samples: u64,
}

impl GivenUp {
    /// So many more; how many to tell of now, if any.
    fn more(&mut self, samples: u64, now: Instant) -> Option<u64> {
        self.samples += samples;
        if self.told.is_some_and(|at| now.duration_since(at) < GIVEN_UP_TOLD) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.samples))
    }
}

impl Deliver {
    /// The sink does not take samples: `next` is when it is asked again.
    pub(super) fn trouble(&mut self, activity: Activity, text: String, next: Duration) {
        self.gauges.metrics.up.set(0);
        if self.outage.failed(activity, &text, Instant::now()) {
            let (relay, pending_samples) = (self.name(), self.gauges.shared.live().pending);
            match activity {
                Activity::Held => error!(relay, pending_samples, "held: the sink refuses until something is changed: {text}"),
                _ => warn!(relay, pending_samples, "holding: the sink does not take samples, trying again without end: {text}"),
            }
        }
        self.gauges.shared.trouble(activity, text, now_ms().saturating_add(i64::try_from(next.as_millis()).unwrap_or(i64::MAX)));
    }

    /// The sink takes samples.
    pub(super) fn fine(&mut self) {
        self.gauges.metrics.up.set(1);
        if let Some(Over { lasted, untold }) = self.outage.over(Instant::now()) {
            let (relay, waiting_samples) = (self.name(), self.gauges.shared.live().pending);
            let seconds = lasted.as_secs();
            match untold {
                0 => info!(relay, seconds, waiting_samples, "the sink takes samples again"),
                _ => info!(relay, seconds, waiting_samples, short_outages = untold, "the sink takes samples again"),
            }
        }
        self.gauges.shared.fine();
    }

    /// Tells of samples that were given up.
    pub(super) fn tell_given_up(&mut self, samples: u64, to: u64) {
        if let Some(samples) = self.given_up.more(samples, Instant::now()) {
            let why = self.control.why().as_str();
            let next_minutes = GIVEN_UP_TOLD.as_secs() / 60;
            warn!(relay = self.name(), samples, to, why, next_minutes, "gave up undelivered samples, booked in the ledger");
        }
    }

    /// Waits while the relay is paused; ends early when what it holds is given up. `seq`: the message in hand.
    pub(super) async fn rest(&mut self, seq: u64) -> Result<(), Halt> {
        if self.control.paused().is_none() {
            return Ok(());
        }
        self.write_if_due().await?;
        self.gauges.metrics.up.set(0);
        let before = std::mem::replace(&mut self.gauges.shared.live().activity, Activity::Paused);
        info!(relay = self.name(), "paused: it holds its place in the stream");
        let control = self.control.clone();
        while let Some(pause) = self.control.paused() {
            if self.skips(seq) {
                // Whoever waits for it next must see it too.
                self.control.sender.notify_one();
                return Ok(());
            }
            self.let_bases_go().await?;
            let left = pause.until_ms.map(|until| Duration::from_millis(until.saturating_sub(now_ms()).max(1).unsigned_abs()));
            let look = left.map_or(PAUSE_LOOK, |left| left.min(PAUSE_LOOK));
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Halt::Stopped),
                () = control.sender.notified() => {}
                () = sleep(look) => {}
            }
        }
        info!(relay = self.name(), "goes on after its pause");
        self.gauges.metrics.paused.set(0);
        self.gauges.metrics.up.set(i64::from(before == Activity::Running));
        self.gauges.shared.live().activity = before;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: &str = "503 Service Unavailable: 17 requests wait";
    const DENIED: &str = "401 Unauthorized";

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_two_lines_however_long_it_is() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!outage.failed(Activity::Retrying, BUSY, at(0)), "a hiccup");
        assert!(outage.failed(Activity::Retrying, BUSY, at(1)));
        assert!((2..100).all(|second| !outage.failed(Activity::Retrying, BUSY, at(second))));
        assert!(outage.failed(Activity::Held, DENIED, at(100)), "another state");
        assert!(!outage.failed(Activity::Retrying, BUSY, at(101)) && !outage.failed(Activity::Held, DENIED, at(102)));
        assert_eq!(outage.over(at(103)), Some(Over { lasted: Duration::from_secs(103), untold: 0 }));
        assert_eq!(outage.over(at(104)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_flaps_is_told_of_once_a_while() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!outage.failed(Activity::Retrying, BUSY, at(0)) && outage.failed(Activity::Retrying, BUSY, at(1)));
        assert!(outage.over(at(2)).is_some());
        for k in 1..5 {
            assert!(!outage.failed(Activity::Retrying, BUSY, at(10 * k)) && !outage.failed(Activity::Retrying, BUSY, at(10 * k + 1)));
            assert_eq!(outage.over(at(10 * k + 2)), None);
        }
        assert!(!outage.failed(Activity::Retrying, BUSY, at(90)) && outage.failed(Activity::Retrying, BUSY, at(91)));
        assert_eq!(outage.over(at(95)), Some(Over { lasted: Duration::from_secs(5), untold: 4 }));
    }

    #[tokio::test(start_paused = true)]
    async fn another_reason_is_another_line_but_not_with_each_answer() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(outage.failed(Activity::Held, DENIED, at(0)), "nobody but a person ends it");
        assert!((1..100).all(|k| !outage.failed(Activity::Held, DENIED, at(15 * k))), "the same");
        assert!(outage.failed(Activity::Held, "404 Not Found", at(1500)));
        assert!(
            (0..50).all(|k| !outage.failed(Activity::Held, if k % 2 == 0 { DENIED } else { "404 Not Found" }, at(1501 + k))),
            "in turns"
        );
        assert!(outage.failed(Activity::Retrying, BUSY, at(1600)), "it asks for patience now");
        let other = BUSY.replace("17", "18");
        assert!((0..50).all(|k| !outage.failed(Activity::Retrying, &other, at(1700 + k))), "only a number differs");
        assert!(outage.over(at(1800)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_loss_that_goes_on_is_told_with_its_sum() {
        let (mut given_up, start) = (GivenUp::default(), Instant::now());
        assert_eq!(given_up.more(5, start), Some(5));
        assert!((1..600).all(|second| given_up.more(1, start + Duration::from_secs(second)).is_none()));
        assert_eq!(given_up.more(1, start + Duration::from_secs(600)), Some(600));
    }
}
