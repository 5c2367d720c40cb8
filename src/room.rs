//! Room: what a pause costs at the rate of the last minute, and whether something would be lost before it ends.
//!
//! *In*: what a relay holds and may hold, what comes in, a time. *Out*: sentences. *Bound*: pure. *When full*: does not apply.

use config::Hold;

use crate::pulse::span;
use crate::times;

/// A relay that is to wait.
pub(crate) struct Room<'a> {
    /// How far the stream holds space for it.
    pub(crate) hold: &'a Hold,
    /// Age of what it holds already, seconds.
    pub(crate) lag_seconds: f64,
    /// Bytes of that.
    pub(crate) lag_bytes: u64,
    /// Where the stream gives up; 0: not known.
    pub(crate) wall: f64,
    /// Bytes that come in per second.
    pub(crate) rate: f64,
    /// When the pause ends, ms; none: when somebody ends it.
    pub(crate) until_ms: Option<i64>,
}

impl Room<'_> {
    /// What it means, in a sentence.
    pub(crate) fn note(&self, now_ms: i64) -> String {
        let mut note = format!("it holds its place; {:.0} bytes come in per second", self.rate);
        if let Some((until, seconds)) = self.lasts(now_ms) {
            let bytes = self.rate * seconds;
            note.push_str(&format!(", so the {} until {} take about {bytes:.0} bytes", span(seconds), times::show(until)));
        }
        if let Some((left, limit)) = self.bytes_left() {
            note.push_str(&format!("; there is room ({limit}) for {}", span(left)));
        }
        if let Some(age) = self.hold.max_age {
            note.push_str(&format!("; what is older than hold.max_age ({age}) is given up"));
        }
        note
    }

    /// What would be lost before it ends; none: nothing, or it has no end.
    pub(crate) fn loses(&self, now_ms: i64) -> Option<String> {
        let (until, seconds) = self.lasts(now_ms)?;
        let age_left = self.hold.max_age.map(|age| ((age.0 as f64 / 1000.0 - self.lag_seconds).max(0.0), "hold.max_age"));
        let (left, limit) = self.bytes_left().into_iter().chain(age_left).min_by(|a, b| a.0.total_cmp(&b.0))?;
        (left < seconds).then(|| {
            format!(
                "at the present rate there is room ({limit}) for {}, and the pause until {} is {}",
                span(left),
                times::show(until),
                span(seconds)
            )
        })
    }

    fn lasts(&self, now_ms: i64) -> Option<(i64, f64)> {
        self.until_ms.map(|until| (until, until.saturating_sub(now_ms).max(0) as f64 / 1000.0))
    }

    /// Seconds until it has no bytes left, and what ends them.
    fn bytes_left(&self) -> Option<(f64, &'static str)> {
        let hold = self.hold.max_bytes.map_or(self.wall, |bytes| self.wall.min(bytes.0 as f64));
        let limit = if hold < self.wall { "hold.max_bytes" } else { "buffer.max_bytes" };
        (self.rate > 0.0 && self.wall > 0.0).then(|| (((hold - self.lag_bytes as f64) / self.rate).max(0.0), limit))
    }
}

#[cfg(test)]
mod tests {
    use config::{ByteSize, Millis};

    use super::*;

    fn check(hold: &Hold, lag: (f64, u64), seconds: Option<i64>, expect: Option<&str>) {
        let until_ms = seconds.map(|seconds| seconds * 1000);
        let room = Room { hold, lag_seconds: lag.0, lag_bytes: lag.1, wall: 1e6, rate: 100.0, until_ms };
        let found = room.loses(0);
        match expect {
            None => assert_eq!(found, None),
            Some(words) => assert!(found.as_ref().is_some_and(|found| found.contains(words)), "{found:?}"),
        }
    }

    #[test]
    fn a_pause_that_outlasts_a_limit_is_told_which_and_when() {
        let (free, aged) = (Hold::default(), Hold { max_age: Some(Millis(3_600_000)), ..Hold::default() });
        let small = Hold { max_bytes: Some(ByteSize(60_000)), ..Hold::default() };
        check(&free, (0.0, 0), Some(9_999), None);
        check(&free, (0.0, 0), Some(10_001), Some("(buffer.max_bytes) for 2 h 46 min"));
        check(&free, (0.0, 900_000), Some(1_001), Some("(buffer.max_bytes) for 16 min"));
        check(&aged, (0.0, 0), Some(3_599), None);
        check(&aged, (0.0, 0), Some(3_601), Some("(hold.max_age) for 60 min"));
        check(&aged, (1_800.0, 0), Some(1_801), Some("(hold.max_age) for 30 min"));
        check(&small, (0.0, 0), Some(601), Some("(hold.max_bytes) for 10 min"));
        // Without an end it is somebody's to watch.
        check(&small, (0.0, 60_000), None, None);
    }
}
