//! How fast a replay is, and when it will be done.
//!
//! *In*: its position, now and then. *Out*: the time that is left. *Bound*: [`POINTS_MAX`] positions. *When full*: the oldest goes.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Time between two positions that are kept.
const EVERY: Duration = Duration::from_secs(1);

/// Positions that are kept: a minute. Larger: what was slow once is remembered longer; smaller: the time that is left jumps.
const POINTS_MAX: usize = 60;

/// Positions of the last minute.
#[derive(Debug, Default)]
pub(super) struct Pace(VecDeque<(Instant, u64)>);

impl Pace {
    /// Takes a look.
    pub fn look(&mut self, now: Instant, position: u64) {
        if self.0.back().is_some_and(|(at, _)| now.duration_since(*at) < EVERY) {
            return;
        }
        if self.0.len() >= POINTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((now, position));
    }

    /// How long it takes to the end if all goes on as in the last minute, in whole seconds, rounded up; none: that is not known yet.
    pub fn left(&self, now: Instant, position: u64, end: u64) -> Option<Duration> {
        let (since, from) = self.0.front()?;
        let done = position.saturating_sub(*from);
        if done == 0 {
            return None;
        }
        let seconds = now.duration_since(*since).as_secs_f64() * end.saturating_sub(position) as f64 / done as f64;
        Some(Duration::from_secs(seconds.ceil() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_is_left_goes_by_the_last_minute() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(pace.left(at(0), 0, 100), None);
        pace.look(at(0), 0);
        assert_eq!(pace.left(at(1000), 0, 100), None, "nothing is done yet");
        assert_eq!(pace.left(at(2000), 10, 100), Some(Duration::from_secs(18)));
        // A minute at five a second, then it is ten times as fast for a minute: what was is forgotten.
        for second in 1..=60 {
            pace.look(at(second * 1000), second * 5);
            pace.look(at(second * 1000 + 1), 0);
        }
        for second in 1..=60 {
            pace.look(at(60_000 + second * 1000), 300 + second * 50);
        }
        assert_eq!(pace.left(at(120_000), 3300, 3400), Some(Duration::from_secs(2)));
        assert_eq!(pace.left(at(120_000), 3400, 3400), Some(Duration::ZERO));
    }
}
