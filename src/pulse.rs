//! The pulse: what moves per second, how far each relay is behind, and how long nothing is lost.
//!
//! *In*: a look at stream, collector and relays every [`LOOK`]. *Out*: rates, histories, retention, ready when somebody asks. *Bound*:
//! [`WINDOW`] looks and [`POINTS`] points per relay. *When full*: the oldest go. While the stream is away its last numbers stay.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bundled_nats::port::{Info, Streams};
use config::{Hold, OnFull};
use relay::Status;
use relay::checkpoint::Totals;
use relay::trim::{GIVE_UP_ABOVE, GIVE_UP_KEEPS};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::model::{CollectionHistory, History, Lag, Rates, Retention};
use crate::board::Board;
use crate::telemetry::Outlook;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks that rates are taken over. Larger: steadier numbers; smaller: they follow sooner.
const WINDOW: usize = 60;
/// Looks per point of a history.
const LOOKS_PER_POINT: u64 = 2;
/// Looks per question for the dead letters. Larger: they are seen later; smaller: more requests to an idle server.
const LOOKS_PER_DEAD: u64 = 5;
/// Points of a history: the last five minutes.
const POINTS: usize = 150;
/// Shortest time that says something about a rate.
const SPAN_MIN: Duration = Duration::from_secs(5);
/// Lag below which nobody is told that data will be lost: a relay between two batches is not behind.
const LAG_MIN_SECONDS: f64 = 10.0;
/// Share of a limit above which it is the reason of a loss: giving up at the wall leaves so much of it.
const AT_LIMIT: f64 = GIVE_UP_KEEPS / GIVE_UP_ABOVE;

/// One look.
struct Point {
    at: Instant,
    scraped: u64,
    published_bytes: u64,
    relays: BTreeMap<String, Seen>,
}

/// One relay in one look.
#[derive(Clone)]
struct Seen {
    totals: Totals,
    lag_seconds: f64,
    undelivered_bytes: u64,
}

/// What was seen lately.
#[derive(Default)]
pub(crate) struct Pulse {
    /// The stream of samples, when it last answered.
    pub(crate) stream: Option<Info>,
    /// The stream of dead letters, when it last answered.
    pub(crate) dead: Option<Info>,
    /// How many letters each subject of it has.
    pub(crate) letters: BTreeMap<String, u64>,
    points: VecDeque<Point>,
    looks: u64,
    histories: BTreeMap<String, History>,
    /// The last minutes of what is collected.
    pub(crate) collected: CollectionHistory,
    /// Relays that the metrics show.
    pub(crate) shown: BTreeSet<String>,
}

/// Looks until the token ends it.
pub(crate) async fn run(board: std::sync::Arc<Board>, streams: Streams, stop: CancellationToken) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for look in 0_u64.. {
        let seen = async {
            looks.tick().await;
            // Where there are relays, they look at it for themselves.
            let stream = if board.role().relays() { None } else { streams.raw.info().await.ok() };
            match board.role().sees_dead() && look.is_multiple_of(LOOKS_PER_DEAD) {
                true => (stream, streams.dead.info().await.ok(), streams.dead.subjects().await.ok()),
                false => (stream, None, None),
            }
        };
        let Some((stream, dead, letters)) = stop.run_until_cancelled(seen).await else { return };
        board.look(stream, dead, letters);
    }
}

impl Pulse {
    /// Takes one look. `scraped`, `published_bytes`: the collector's counters.
    pub(crate) fn look(
        &mut self,
        at: Instant,
        stream: Option<Info>,
        dead: Option<Info>,
        scraped: u64,
        published_bytes: u64,
        relays: &[Status],
    ) {
        self.stream = stream.or(self.stream);
        self.dead = dead.or(self.dead);
        let of = |status: &Status| Seen {
            totals: status.totals.clone(),
            lag_seconds: status.lag_seconds,
            undelivered_bytes: self.undelivered(status).1,
        };
        let relays: BTreeMap<String, Seen> = relays.iter().map(|status| (status.name.clone(), of(status))).collect();
        let before = self.points.back();
        if self.looks.is_multiple_of(LOOKS_PER_POINT) {
            self.histories.retain(|name, _| relays.contains_key(name));
            let every = LOOK.as_secs_f64() * LOOKS_PER_POINT as f64;
            self.collected.every_seconds = every;
            let rate = before.map(|point| per_second(scraped.saturating_sub(point.scraped), at - point.at));
            push(&mut self.collected.scraped_samples, rate.unwrap_or(0.0));
            for (name, seen) in &relays {
                let history = self.histories.entry(name.clone()).or_default();
                history.every_seconds = every;
                let rate = before.and_then(|point| {
                    let was = point.relays.get(name)?;
                    Some(per_second(seen.totals.delivered.saturating_sub(was.totals.delivered), at - point.at))
                });
                push(&mut history.lag_seconds, seen.lag_seconds);
                push(&mut history.delivered_samples, rate.unwrap_or(0.0));
            }
        }
        self.looks += 1;
        if self.points.len() > WINDOW {
            self.points.pop_front();
        }
        self.points.push_back(Point { at, scraped, published_bytes, relays });
    }

    /// Letters of a relay that are kept.
    pub(crate) fn letters(&self, relay: &str) -> u64 {
        self.letters.get(&relay::dead::subject(relay)).copied().unwrap_or(0)
    }

    /// Scraped samples and published bytes per second.
    pub(crate) fn collection(&self) -> (f64, f64) {
        let (Some(first), Some(last)) = (self.points.front(), self.points.back()) else { return (0.0, 0.0) };
        let over = last.at - first.at;
        let rate = |then: u64, now: u64| per_second(now.saturating_sub(then), over);
        (rate(first.scraped, last.scraped), rate(first.published_bytes, last.published_bytes))
    }

    /// What a relay has not delivered.
    pub(crate) fn lag(&self, status: &Status) -> Lag {
        let (messages, bytes) = self.undelivered(status);
        let catch_up_seconds = self.ends(&status.name).and_then(|(over, first, last)| catch_up(over, first, last));
        Lag { seconds: status.lag_seconds, samples: status.pending_samples, messages, bytes, catch_up_seconds }
    }

    /// Messages that a relay is not done with, and their bytes.
    fn undelivered(&self, status: &Status) -> (u64, u64) {
        let info = self.stream.unwrap_or_default();
        let after = |position: u64, end: u64| (end + 1).saturating_sub(info.first_seq.max(position + 1));
        let behind = status.behind.as_ref().map_or(0, |behind| after(behind.position, behind.end));
        let messages = after(status.position, info.last_seq) + behind;
        (messages, messages.saturating_mul(info.bytes / info.messages.max(1)).min(info.bytes))
    }

    /// What is foreseen for a relay; none: it was not seen the last time.
    pub(crate) fn outlook(&self, relay: &str, hold: &Hold) -> Option<Outlook> {
        let (over, first, last) = self.ends(relay)?;
        Some(Outlook {
            pending_bytes: last.undelivered_bytes,
            left_seconds: self.retention(relay, hold).left_seconds,
            catch_up_seconds: catch_up(over, first, last),
            letters: self.letters(relay),
        })
    }

    /// Samples of a relay per second.
    pub(crate) fn rates(&self, relay: &str) -> Rates {
        let Some((over, first, last)) = self.ends(relay) else { return Rates::default() };
        Rates {
            read_samples: per_second(last.totals.read.saturating_sub(first.totals.read), over),
            delivered_samples: per_second(last.totals.delivered.saturating_sub(first.totals.delivered), over),
        }
    }

    /// The last minutes of a relay.
    pub(crate) fn history(&self, relay: &str) -> History {
        self.histories.get(relay).cloned().unwrap_or_default()
    }

    /// How long nothing of a relay is lost.
    pub(crate) fn retention(&self, relay: &str, hold: &Hold) -> Retention {
        let wall = self.stream.map_or(u64::MAX, |info| info.max_bytes);
        match self.ends(relay) {
            Some((over, first, last)) => retention(over, first, last, hold, wall),
            None => Retention { text: "not known yet".to_owned(), ..Retention::default() },
        }
    }

    /// First and last look at a relay, and the time between them.
    fn ends(&self, relay: &str) -> Option<(Duration, &Seen, &Seen)> {
        let (at, first) = self.points.iter().find_map(|point| Some((point.at, point.relays.get(relay)?)))?;
        let last = self.points.back()?;
        Some((last.at - at, first, last.relays.get(relay)?))
    }
}

fn retention(over: Duration, first: &Seen, last: &Seen, hold: &Hold, wall: u64) -> Retention {
    let kept = |text: &str| Retention { text: text.to_owned(), ..Retention::default() };
    if over < SPAN_MIN || last.lag_seconds < LAG_MIN_SECONDS {
        return kept("nothing is lost at the present rate");
    }
    let seconds = over.as_secs_f64();
    let (lag, bytes) = (last.lag_seconds, last.undelivered_bytes as f64);
    let (aging, growth) = ((lag - first.lag_seconds) / seconds, (bytes - first.undelivered_bytes as f64) / seconds);
    let limits = [
        (hold.max_age.map(|age| age.0 as f64 / 1000.0), lag, aging, "hold.max_age"),
        (hold.max_bytes.map(|bytes| bytes.0 as f64), bytes, growth, "hold.max_bytes"),
        (Some(wall as f64 * GIVE_UP_ABOVE), bytes, growth, "buffer.max_bytes"),
    ];
    // At its limit a relay that loses stays where it is: only what it lost tells.
    let is_losing = last.totals.lost > first.totals.lost;
    let left = |(max, at, per_second, limit): (Option<f64>, f64, f64, &'static str)| match max? {
        max if is_losing && at >= max * AT_LIMIT => Some((0.0, limit)),
        max if per_second > 0.0 => Some(((max - at).max(0.0) / per_second, limit)),
        _ => None,
    };
    let soonest = limits.into_iter().filter_map(left).min_by(|a, b| a.0.total_cmp(&b.0));
    let Some((left, limit)) = soonest else {
        return match catch_up(over, first, last) {
            Some(left) => kept(&format!("caught up in {}", span(left as f64))),
            None => kept("nothing is lost at the present rate"),
        };
    };
    let what = if limit == "buffer.max_bytes" && hold.on_full == OnFull::Block { "ingest is refused" } else { "loses data" };
    let when = if left < 1.0 { "now".to_owned() } else { format!("in {}", span(left)) };
    Retention { left_seconds: Some(left as u64), limit: Some(limit.to_owned()), text: format!("{what} {when} ({limit})") }
}

/// Seconds until nothing waits; none: it is not behind, does not catch up, or what became less was lost.
fn catch_up(over: Duration, first: &Seen, last: &Seen) -> Option<u64> {
    if over < SPAN_MIN || last.lag_seconds < LAG_MIN_SECONDS || last.totals.lost > first.totals.lost {
        return None;
    }
    let fell = first.undelivered_bytes.checked_sub(last.undelivered_bytes).filter(|fell| *fell > 0)?;
    Some((last.undelivered_bytes as f64 * over.as_secs_f64() / fell as f64) as u64)
}

/// Seconds as a person says them: `47 min`, `3 h 20 min`, `12 d`.
pub(crate) fn span(seconds: f64) -> String {
    let whole = seconds.clamp(0.0, 1e10) as u64;
    match whole {
        0..120 => format!("{whole} s"),
        120..7200 => format!("{} min", whole / 60),
        7200..172_800 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d", whole / 86_400),
    }
}

fn per_second(count: u64, over: Duration) -> f64 {
    if over < Duration::from_millis(100) { 0.0 } else { count as f64 / over.as_secs_f64() }
}

fn push(points: &mut Vec<f64>, point: f64) {
    if points.len() >= POINTS {
        points.remove(0);
    }
    points.push(point);
}

#[cfg(test)]
mod tests {
    use config::{ByteSize, Millis};

    use super::*;

    fn seen(lag_seconds: f64, undelivered_bytes: u64) -> Seen {
        Seen { totals: Totals::default(), lag_seconds, undelivered_bytes }
    }

    #[test]
    fn retention_is_what_ends_first() {
        let minute = Duration::from_secs(60);
        let left = |first: Seen, last: Seen, hold: Hold, wall: u64| {
            let found = retention(minute, &first, &last, &hold, wall);
            (found.left_seconds, found.limit.unwrap_or_default(), found.text)
        };
        let none = (None, String::new(), "nothing is lost at the present rate".to_owned());
        let hold = |age: u64, bytes: u64| Hold {
            max_age: (age > 0).then(|| Millis::from_secs(age)),
            max_bytes: (bytes > 0).then_some(ByteSize(bytes)),
            ..Hold::default()
        };
        assert_eq!(left(seen(0.0, 0), seen(2.0, 6000), hold(60, 0), 1000), none, "not behind");
        let kept = (None, String::new(), "caught up in 2 min".to_owned());
        assert_eq!(left(seen(90.0, 9000), seen(60.0, 6000), hold(100, 9000), 10_000), kept, "30 of 90 in the last minute");
        let at = |seconds: u64, limit: &str, text: &str| (Some(seconds), limit.to_owned(), text.to_owned());
        // 100 bytes a second; 92,000 is where relays give up.
        let full = at(860, "buffer.max_bytes", "loses data in 14 min (buffer.max_bytes)");
        assert_eq!(left(seen(0.0, 0), seen(60.0, 6000), Hold::default(), 100_000), full);
        let block = Hold { on_full: OnFull::Block, ..Hold::default() };
        assert_eq!(left(seen(0.0, 0), seen(60.0, 6000), block, 100_000).2, "ingest is refused in 14 min (buffer.max_bytes)");
        let age = at(40, "hold.max_age", "loses data in 40 s (hold.max_age)");
        assert_eq!(left(seen(0.0, 0), seen(60.0, 6000), hold(100, 50_000), 100_000), age);
        let now = at(0, "hold.max_bytes", "loses data now (hold.max_bytes)");
        assert_eq!(left(seen(0.0, 0), seen(60.0, 6000), hold(100, 6000), 100_000), now);
        // At its limit it stands still, and is losing all the same.
        let losing = |lag: f64, bytes: u64, lost: u64| Seen { totals: Totals { lost, ..Totals::default() }, ..seen(lag, bytes) };
        let now = at(0, "hold.max_age", "loses data now (hold.max_age)");
        assert_eq!(left(losing(61.0, 6000, 5), losing(60.0, 6000, 9), hold(60, 0), 100_000), now);
        assert_eq!(left(losing(61.0, 6000, 9), losing(60.0, 6000, 9), hold(60, 0), 100_000).0, None, "it lost before");
    }

    #[test]
    fn catching_up_is_what_was_delivered_beyond_what_came_in() {
        let (minute, lost) = (Duration::from_secs(60), |mut seen: Seen| {
            seen.totals.lost += 1;
            seen
        });
        assert_eq!(catch_up(minute, &seen(600.0, 9000), &seen(400.0, 6000)), Some(120));
        assert_eq!(catch_up(minute, &seen(600.0, 6000), &seen(600.0, 6000)), None, "as much came in");
        assert_eq!(catch_up(minute, &seen(60.0, 6000), &seen(2.0, 60)), None, "it has caught up");
        assert_eq!(catch_up(minute, &seen(600.0, 9000), &lost(seen(400.0, 6000))), None, "it gave up what is missing");
        assert_eq!(catch_up(Duration::from_secs(2), &seen(600.0, 9000), &seen(400.0, 6000)), None, "too short a look");
    }

    #[test]
    fn what_is_seen_of_a_relay_is_what_the_metrics_foresee() {
        let (mut pulse, start) = (Pulse::default(), Instant::now());
        let status = |lag_seconds, position| Status { lag_seconds, position, ..Status::default() };
        for k in 0..=20 {
            let info = Info { messages: 100, bytes: 100_000, max_bytes: 1 << 30, first_seq: 1, last_seq: 100, ..Info::default() };
            pulse.look(start + LOOK * k, Some(info), None, u64::from(k) * 500, 0, &[status(90.0 - f64::from(k), u64::from(k))]);
        }
        let outlook = pulse.outlook("", &Hold::default()).expect("it was seen");
        assert_eq!(outlook, Outlook { pending_bytes: 80_000, left_seconds: None, catch_up_seconds: Some(80), letters: 0 });
        let lag = pulse.lag(&status(70.0, 20));
        assert_eq!((lag.messages, lag.bytes, lag.catch_up_seconds), (80, 80_000, Some(80)));
        let behind = relay::telemetry::Backlog { position: 20, end: 90, pending_samples: 7, fresh_lag_seconds: 1.0, last_error: None };
        let lag = pulse.lag(&Status { behind: Some(behind), ..status(70.0, 95) });
        assert_eq!((lag.messages, lag.bytes), (75, 75_000), "five that are new, and the backlog");
        assert_eq!(pulse.retention("", &Hold::default()).text, "caught up in 80 s");
        assert_eq!(pulse.collected.scraped_samples.last(), Some(&500.0));
        assert_eq!(pulse.outlook("gone", &Hold::default()), None);
    }

    #[test]
    fn spans_are_said_in_two_units_at_most() {
        for (seconds, text) in
            [(0.0, "0 s"), (119.0, "119 s"), (2820.0, "47 min"), (12_000.0, "3 h 20 min"), (1e6, "11 d"), (f64::NAN, "0 s")]
        {
            assert_eq!(span(seconds), text);
        }
    }
}
