//! A relay that delivers the newest samples first, and what it missed beside them.

use std::collections::BTreeMap;
use std::time::Duration;

use bundled_nats::ambient::now_ms;
use bundled_nats::ledger::Stage;
use bundled_nats::port::Log as _;
use bundled_nats::twin::Twin;
use config::{CatchUp, CatchUpOrder, Millis, Rate};
use relay::sink::Answer;
use tokio::time::{Instant, sleep};

use crate::harness::*;

/// How old what the sink takes must be.
const AFTER: Duration = Duration::from_secs(60);

fn fresh_first(rate: Option<u64>) -> config::Relay {
    let after = Millis(AFTER.as_millis() as u64);
    config::Relay { catch_up: CatchUp { order: CatchUpOrder::FreshFirst, after, rate: rate.map(Rate) }, ..relay("one") }
}

/// A stream that one message is stored in now and then, each with two samples; their values count on.
struct Stream {
    producer: Producer,
    begin_ms: i64,
    k: i64,
}

impl Stream {
    fn new(twin: &Twin) -> Self {
        Self { producer: Producer::new(twin, "p", 1), begin_ms: now_ms(), k: 0 }
    }

    fn next(&mut self) -> Scrape {
        self.k += 1;
        scrape(1, self.begin_ms + self.k * 1000, &[("a", self.k as f64), ("b", -self.k as f64)])
    }

    async fn publish(&mut self) -> u64 {
        let page = self.next();
        self.producer.publish(&[page]).await
    }

    async fn publish_all(&mut self, messages: usize) -> u64 {
        for _ in 1..messages {
            self.publish().await;
        }
        self.publish().await
    }

    /// Every sample so far, once.
    fn all(&self) -> Vec<i64> {
        let mut all: Vec<i64> = (1..=self.k).flat_map(|k| [k, -k]).collect();
        all.sort_unstable();
        all
    }
}

fn value(line: &str) -> i64 {
    serde_json::from_str::<serde_json::Value>(line).expect("JSON")["value"].as_f64().expect("a number") as i64
}

fn values(sink: &Scripted) -> Vec<i64> {
    sink.delivered().iter().map(|line| value(line)).collect()
}

fn sorted(mut values: Vec<i64>) -> Vec<i64> {
    values.sort_unstable();
    values
}

/// What came, without what came again under the same key with the same bytes.
fn once(sink: &Scripted) -> Vec<i64> {
    let calls = sink.calls().into_iter().filter(|call| call.answer == Answer::Delivered);
    let bodies: BTreeMap<String, Vec<String>> = calls.map(|call| (call.key, call.lines)).collect();
    sorted(bodies.values().flatten().map(|line| value(line)).collect())
}

/// Until the stream has been looked at again.
async fn looked() {
    sleep(Duration::from_secs(2)).await;
}

/// The sink is away while messages are stored, the last one of them after `pause`, and is back; says where that one is.
async fn outage(sink: &Scripted, stream: &mut Stream, messages: usize, pause: Duration) -> u64 {
    sink.set(|_| retry());
    stream.publish_all(messages - 1).await;
    sleep(pause).await;
    let last = stream.publish().await;
    looked().await;
    sink.set(|_| Answer::Delivered);
    last
}

/// A relay whose sink was away while 200 messages were stored, and is back; its backlog is what it has not delivered yet.
async fn behind(setup: &Setup, stream: &mut Stream) -> relay::Relays {
    let sink = setup.sink("one");
    sink.set(|_| retry());
    let relays = setup.start();
    outage(&sink, stream, 200, 2 * AFTER).await;
    until("it turns", || status(&relays, "one").behind.is_some()).await;
    relays
}

#[tokio::test(start_paused = true)]
async fn the_newest_come_first_and_all_come_once() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::new(&twin, &[fresh_first(Some(10))]);
    let mut stream = Stream::new(&twin);
    let relays = behind(&setup, &mut stream).await;
    let begun = Instant::now();
    let head = stream.publish_all(3).await;
    let checkpoint = passed(&twin, "one", head).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "what is new waits {:?}", begun.elapsed());
    let backlog = checkpoint.behind.clone().expect("it is not delivered yet");
    assert_eq!((backlog.end, checkpoint.version), (200, 2));
    let came = values(&setup.sink("one"));
    assert!(came.contains(&203) && came.len() < 20, "{came:?}");
    // What is not delivered is in the balance, in the gauges, and safe from the trim.
    looked().await;
    let now = status(&relays, "one");
    let left = now.behind.clone().expect("it is shown");
    assert!(left.pending_samples > 300 && now.pending_samples >= left.pending_samples, "{now:?}");
    assert!(now.lag_seconds >= AFTER.as_secs_f64() && left.fresh_lag_seconds < 10.0, "{now:?}");
    let statement = audited(&setup, (stream.begin_ms, now_ms() + 1_000_000)).await;
    assert!(statement.balanced, "{statement:?}");
    assert!(statement.relays[0].in_stream > 300, "{statement:?}");
    assert_eq!(statement.relays[0].scraped, 2 * 203);
    until("the backlog is delivered", || status(&relays, "one").behind.is_none()).await;
    // 10 per second, and a request of two may begin while there is room for one.
    assert!(begun.elapsed() > Duration::from_secs(36), "the backlog took {:?}", begun.elapsed());
    let last = passed(&twin, "one", head).await;
    balanced(&last);
    assert_eq!((last.behind, last.totals.delivered, last.version), (None, 2 * 203, 1));
    assert_eq!(sorted(values(&setup.sink("one"))), stream.all());
    let statement = audited(&setup, (stream.begin_ms, now_ms() + 1_000_000)).await;
    assert!(statement.balanced && statement.relays[0].in_stream == 0, "{statement:?}");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_is_short_keeps_the_order() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::new(&twin, &[fresh_first(Some(10))]);
    let mut stream = Stream::new(&twin);
    let sink = setup.sink("one");
    sink.set(|_| retry());
    let relays = setup.start();
    let last = outage(&sink, &mut stream, 50, AFTER / 2).await;
    let checkpoint = passed(&twin, "one", last).await;
    assert_eq!(checkpoint.behind, None);
    let came = values(&sink);
    assert!(came.iter().map(|value| value.abs()).is_sorted(), "{came:?}");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_backlog_outlives_kills_and_stops_under_the_same_keys() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::new(&twin, &[fresh_first(Some(20))]);
    let mut stream = Stream::new(&twin);
    let mut relays = behind(&setup, &mut stream).await;
    let end = checkpoint(&twin, "one").await.and_then(|c| c.behind).map(|behind| behind.end);
    for round in 0..6 {
        stream.publish_all(2).await;
        sleep(Duration::from_millis(1700)).await;
        match round % 2 {
            0 => drop(relays),
            _ => relays.stop(Duration::from_secs(5)).await,
        }
        let found = checkpoint(&twin, "one").await.expect("it is there");
        assert_eq!(found.behind.map(|behind| behind.end), end, "in round {round}");
        relays = setup.start();
    }
    until("the backlog is delivered", || {
        let now = status(&relays, "one");
        now.behind.is_none() && now.position as i64 == stream.k
    })
    .await;
    assert_eq!(once(&setup.sink("one")), stream.all());
    let last = passed(&twin, "one", stream.k as u64).await;
    balanced(&last);
    assert_eq!(last.totals.read, 2 * stream.k as u64);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_second_outage_waits_for_the_backlog_and_the_one_after_it_turns_again() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::new(&twin, &[fresh_first(Some(10))]);
    let mut stream = Stream::new(&twin);
    let relays = behind(&setup, &mut stream).await;
    let sink = setup.sink("one");
    let last = outage(&sink, &mut stream, 20, 2 * AFTER).await;
    let checkpoint = passed(&twin, "one", last).await;
    assert_eq!(checkpoint.behind.map(|behind| behind.end), Some(200));
    until("the backlog is delivered", || status(&relays, "one").behind.is_none()).await;
    outage(&sink, &mut stream, 20, 2 * AFTER).await;
    until("it turns again", || status(&relays, "one").behind.is_some_and(|behind| behind.end == 240)).await;
    until("that backlog is delivered", || status(&relays, "one").behind.is_none()).await;
    assert_eq!(sorted(values(&sink)), stream.all());
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_backlog_is_delivered_whatever_the_configuration_says_since() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::new(&twin, &[fresh_first(Some(1))]);
    let mut stream = Stream::new(&twin);
    drop(behind(&setup, &mut stream).await);
    assert!(checkpoint(&twin, "one").await.is_some_and(|checkpoint| checkpoint.behind.is_some()));
    setup.relays = vec![relay("one")];
    let (relays, begun) = (setup.start(), Instant::now());
    until("all is delivered", || once(&setup.sink("one")) == stream.all()).await;
    assert!(begun.elapsed() < Duration::from_secs(60), "nothing says a rate any more");
    relays.stop(Duration::from_secs(5)).await;
}

/// The last part of a slot is what is new, the first one is the backlog's.
#[tokio::test(start_paused = true)]
async fn a_slot_that_begins_in_the_backlog_and_ends_after_it_comes_once() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::new(&twin, &[fresh_first(Some(10))]);
    let mut stream = Stream::new(&twin);
    let sink = setup.sink("one");
    sink.set(|_| retry());
    let relays = setup.start();
    stream.publish_all(100).await;
    let at = stream.begin_ms + 500_000;
    let part = |producer: &mut Producer, number: u16, value: f64| producer.frame(&scrape(2, at, &[("p", value)]), number, 2);
    let first = part(&mut stream.producer, 0, 1000.0);
    sleep(2 * AFTER).await;
    let end = stream.producer.publish_frames(&[first], (at, at)).await;
    looked().await;
    sink.set(|_| Answer::Delivered);
    until("it turns", || status(&relays, "one").behind.is_some_and(|behind| behind.end == end)).await;
    let second = part(&mut stream.producer, 1, 2000.0);
    let last = stream.producer.publish_frames(&[second], (at, at)).await;
    assert!(passed(&twin, "one", last).await.behind.is_some(), "the backlog waits");
    let statement = audited(&setup, (stream.begin_ms, now_ms() + 1_000_000)).await;
    assert!(statement.balanced, "{statement:?}");
    until("the backlog is delivered", || status(&relays, "one").behind.is_none()).await;
    let mut expect = stream.all();
    expect.extend([1000, 2000]);
    assert_eq!(sorted(values(&sink)), sorted(expect));
    let statement = audited(&setup, (stream.begin_ms, now_ms() + 1_000_000)).await;
    assert!(statement.balanced && statement.relays[0].in_stream == 0, "{statement:?}");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_hold_does_not_cover_of_a_backlog_is_given_up_and_booked() {
    let twin = Twin::new(u64::MAX);
    let mut config = fresh_first(Some(1));
    config.hold.max_age = Some(Millis(4 * AFTER.as_millis() as u64));
    let mut setup = Setup::new(&twin, &[config]);
    setup.options.trim = Some(twin.streams());
    setup.options.replay_window = Duration::ZERO;
    let mut stream = Stream::new(&twin);
    let relays = behind(&setup, &mut stream).await;
    let head = stream.publish().await;
    passed(&twin, "one", head).await;
    assert_eq!(twin.raw.info().await.expect("up").first_seq, 1, "the backlog is in the stream");
    until("the backlog is given up", || status(&relays, "one").behind.is_none()).await;
    let last = passed(&twin, "one", head).await;
    balanced(&last);
    assert_eq!(last.totals.read, 2 * stream.k as u64);
    assert!(last.totals.lost > 100, "{:?}", last.totals);
    let booked: u64 = ledger(&twin).iter().filter(|entry| entry.reason == "max_age").map(|entry| entry.samples).sum();
    assert_eq!(booked, last.totals.lost);
    assert_eq!(sorted(values(&setup.sink("one"))).len() as u64, last.totals.delivered);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_torn_stream_takes_from_a_backlog_is_booked_and_what_comes_in_its_place_comes_once() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::new(&twin, &[fresh_first(Some(10))]);
    let mut stream = Stream::new(&twin);
    let relays = behind(&setup, &mut stream).await;
    drop(relays);
    twin.raw.tear(50);
    // The collector was told that they are stored.
    stream.producer.rebase();
    stream.publish_all(30).await;
    let relays = setup.start();
    until("the backlog is over", || status(&relays, "one").behind.is_none() && status(&relays, "one").position == 180).await;
    let last = passed(&twin, "one", 180).await;
    balanced(&last);
    let gone = |k: i64| (151..=200).contains(&k.abs());
    let expect: Vec<i64> = stream.all().into_iter().filter(|k| !gone(*k)).collect();
    assert_eq!(once(&setup.sink("one")).into_iter().filter(|k| !gone(*k)).collect::<Vec<_>>(), expect);
    let entries = ledger(&twin);
    let lost: u64 = entries.iter().filter(|entry| entry.stage == Stage::Stream).map(|entry| entry.samples).sum();
    assert_eq!((lost, last.totals.lost), (100, 100), "{entries:?}");
    relays.stop(Duration::from_secs(5)).await;
}

/// The sink refuses all of the last request of the backlog, and takes what is new.
#[tokio::test(start_paused = true)]
async fn what_the_sink_refuses_at_the_end_of_a_backlog_is_parked_once_it_takes_others() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::new(&twin, &[fresh_first(Some(10))]);
    let mut stream = Stream::new(&twin);
    let relays = behind(&setup, &mut stream).await;
    let sink = setup.sink("one");
    let is_bad = |lines: &[String]| lines.iter().any(|line| value(line).abs() == 200);
    sink.set(move |lines| if is_bad(lines) { reject() } else { Answer::Delivered });
    until("it waits for a word about the last ones", || {
        status(&relays, "one").behind.is_some_and(|behind| behind.position == 199 && behind.last_error.is_some())
    })
    .await;
    sleep(Duration::from_secs(60)).await;
    assert!(twin.dead.messages().is_empty(), "nobody knows yet whether the sink is broken");
    stream.publish().await;
    until("the backlog is over", || status(&relays, "one").behind.is_none()).await;
    assert_eq!(twin.dead.messages().len(), 1);
    let last = passed(&twin, "one", stream.k as u64).await;
    balanced(&last);
    assert_eq!(last.totals.rejected, 2);
    relays.stop(Duration::from_secs(5)).await;
}
