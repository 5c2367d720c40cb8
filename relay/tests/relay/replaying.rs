use std::time::Duration;

use bundled_nats::port::{Log, State};
use bundled_nats::twin::Twin;
use relay::replay::{Bound, Error, Replay, Request};
use relay::sink::Answer;
use tokio_util::sync::CancellationToken;

use crate::harness::*;

pub fn asked(from: Bound, to: Bound) -> Request {
    Request { relay: "one".to_owned(), from, to, rate: None, again: false, selector: None, dry_run: false }
}

pub fn request(from_ms: i64, to_ms: i64) -> Request {
    asked(Bound::Slot(from_ms), Bound::Slot(to_ms))
}

async fn start(setup: &Setup, wanted: Request) -> Result<Replay, Error> {
    Replay::start(&setup.relays[0], wanted, &setup.twin.streams(), &setup.options(), &CancellationToken::new()).await
}

pub async fn published(twin: &Twin, at: i64, slots: std::ops::RangeInclusive<i64>) -> Producer {
    let mut producer = Producer::new(twin, "p", 1);
    for k in slots {
        producer.publish(&[scrape(1, at + k * SLOT, &[("a", k as f64), ("b_total", k as f64)])]).await;
    }
    producer
}

#[tokio::test(start_paused = true)]
async fn a_range_goes_out_again_by_slot_while_the_live_path_runs() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let sink = setup.sink("one");
    let at = slot(0);
    let relays = setup.start();
    let mut producer = published(&twin, at, 1..=20).await;
    // A late slot of the range, far behind it in the stream.
    producer.publish(&[scrape(2, at + 5 * SLOT, &[("late", 1.0)])]).await;
    let live = passed(&twin, "one", 21).await;
    let before = sink.calls().len();
    let replay = start(&setup, request(at + 4 * SLOT, at + 6 * SLOT)).await.expect("begins");
    let id = replay.id.clone();
    producer.publish(&[scrape(1, at + 21 * SLOT, &[("a", 21.0), ("b_total", 21.0)])]).await;
    let done = replay.finish().await.expect("ends");
    assert_eq!((done.totals.delivered, done.position, done.end), (7, 21, 21));
    let after = passed(&twin, "one", 22).await;
    assert_eq!(after.totals.delivered, live.totals.delivered + 2, "the live path counts its own only");
    let calls = sink.calls()[before..].to_vec();
    let (again, live): (Vec<Call>, Vec<Call>) = calls.into_iter().partition(|call| call.key.starts_with(&format!("{id}:")));
    assert_eq!((again.len(), live.len()), (4, 1));
    let past: Vec<Vec<String>> = sink.calls()[3..6].iter().map(|call| call.lines.clone()).collect();
    assert_eq!(again[..3].iter().map(|call| call.lines.clone()).collect::<Vec<_>>(), past, "the same bytes");
    assert!(twin.state.keys("replay.").await.expect("up").is_empty(), "it holds nothing any more");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_kept_and_its_place_in_the_stream_is_held() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::one(&twin);
    setup.options.trim = Some(twin.streams());
    setup.options.replay_window = Duration::ZERO;
    let at = slot(0);
    published(&twin, at, 1..=20).await;
    let relays = setup.start();
    passed(&twin, "one", 20).await;
    let wanted = Request { rate: Some(1), ..request(at, at + 100 * SLOT) };
    let began = tokio::time::Instant::now();
    let replay = start(&setup, wanted).await.expect("begins");
    let mut progress = replay.progress();
    progress.wait_for(|p| p.position >= 10).await.expect("runs");
    assert!(twin.raw.info().await.expect("up").first_seq <= 12);
    let done = replay.finish().await.expect("ends");
    assert_eq!(done.totals.delivered, 40);
    assert!(began.elapsed() >= Duration::from_secs(38), "{:?}", began.elapsed());
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_adds_up_is_not_given_the_same_again_unless_told() {
    let twin = Twin::new(u64::MAX);
    let statsd = config::Component { name: "statsd".into(), options: serde_json::Value::Null };
    let setup = Setup::new(&twin, &[config::Relay { encode: Some(statsd), ..relay("one") }]);
    let at = slot(0);
    published(&twin, at, 1..=9).await;
    let wanted = request(at + 3 * SLOT, at + 5 * SLOT);
    let refused = start(&setup, wanted.clone()).await.err().expect("refused");
    assert!(matches!(refused, Error::AddsUp { .. }), "{refused}");
    let replay = start(&setup, Request { again: true, ..wanted }).await.expect("begins");
    assert_eq!(replay.finish().await.expect("ends").totals.delivered, 6);
    let counts = setup.sink("one").delivered().iter().filter(|line| line.starts_with("b_total") && line.ends_with(":1|c")).count();
    assert_eq!(counts, 3, "increases against the slot before the range");
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_refuses_all_of_a_replay_gets_nothing_parked() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    setup.sink("one").set(|_| reject());
    let at = slot(0);
    published(&twin, at, 1..=2).await;
    let replay = start(&setup, request(at, at + 9 * SLOT)).await.expect("begins");
    assert!(replay.finish().await.is_err());
    assert!(twin.dead.messages().is_empty());
    let range = start(&setup, request(at, at - 1)).await.err();
    assert!(matches!(range, Some(Error::Range { .. })));
    let nothing = start(&setup, request(at + 3_600_000, at + 3_700_000)).await.expect("begins");
    assert_eq!(nothing.finish().await.expect("ends").totals.delivered, 0);
    assert!(setup.sink("one").calls().iter().all(|call| call.answer != Answer::Delivered));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_before_the_range_is_neither_lost_nor_parked() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let at = slot(0);
    let mut producer = published(&twin, at, 1..=2).await;
    producer.rebase();
    for k in 3..=9 {
        producer.publish(&[scrape(1, at + k * SLOT, &[("a", k as f64), ("b_total", k as f64)])]).await;
    }
    // The second message hangs on a base that is gone, as the first ones of any range do.
    twin.raw.purge(2).await.expect("up");
    let replay = async |from, to| {
        let replay = start(&setup, request(at + from * SLOT, at + to * SLOT)).await.expect("begins");
        let totals = replay.finish().await.expect("ends").totals;
        (totals.read, totals.delivered, totals.lost)
    };
    assert_eq!(replay(4, 6).await, (6, 6, 0));
    assert_eq!(replay(2, 3).await, (4, 2, 2), "what was wanted and cannot be read is said");
    assert!(twin.dead.messages().is_empty() && ledger(&twin).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_by_job_what_would_be_sent_and_a_selector_narrows_it() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let mut producer = Producer::new(&twin, "p", 1);
    let at = slot(0);
    for k in 0..4 {
        let other = Scrape { job: "other", ..scrape(2, at + k * SLOT, &[("a", 1.0)]) };
        producer.publish(&[scrape(1, at + k * SLOT, &[("a", 1.0), ("b", 2.0)]), other]).await;
    }
    let run = async |wanted: Request| {
        let replay = start(&setup, wanted).await.expect("it begins");
        let mut progress = replay.progress();
        let end = progress.borrow().end;
        progress.wait_for(|progress| progress.position >= end).await.expect("it goes on");
        let jobs = replay.by_job();
        (jobs, replay.finish().await.expect("it ends").totals)
    };
    let wanted = Request { dry_run: true, ..request(at, at + 2 * SLOT) };
    let (jobs, totals) = run(wanted.clone()).await;
    assert_eq!((jobs["local"], jobs["other"], totals.delivered), (6, 3, 9));
    assert!(setup.sink("one").calls().is_empty(), "nothing was sent");
    let selector = Some("{job=\"local\", __name__=\"b\"}".parse().expect("a selector"));
    let (jobs, totals) = run(Request { selector: selector.clone(), ..wanted.clone() }).await;
    assert_eq!((jobs["local"], jobs["other"], totals.delivered, totals.filtered), (3, 0, 3, 6));
    let (jobs, totals) = run(Request { selector, dry_run: false, ..wanted }).await;
    assert_eq!((jobs.len(), totals.delivered, setup.sink("one").delivered().len()), (0, 3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_range_of_sequences_is_what_their_messages_brought() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let at = slot(0);
    let mut producer = published(&twin, at, 1..=9).await;
    // Late, but in the range of sequences.
    producer.publish(&[scrape(2, at + 2 * SLOT, &[("late", 1.0)])]).await;
    producer.publish(&[scrape(1, at + 10 * SLOT, &[("a", 10.0), ("b_total", 10.0)])]).await;
    let run = async |from, to| start(&setup, asked(from, to)).await.expect("begins").finish().await.expect("ends");
    let done = run(Bound::Seq(8), Bound::Seq(10)).await;
    assert_eq!((done.begin, done.position, done.end, done.totals.delivered), (8, 10, 10, 5));
    let calls: Vec<Vec<String>> = setup.sink("one").calls().into_iter().map(|call| call.lines).collect();
    assert_eq!(calls.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    assert!(calls[0][0].contains("8.0") || calls[0][0].contains(":8"), "{calls:?}");
    assert_eq!(run(Bound::Seq(9), Bound::Slot(at + 9 * SLOT)).await.totals.delivered, 3, "the tenth slot is not wanted");
    assert_eq!(run(Bound::Slot(at + 3 * SLOT), Bound::Seq(4)).await.totals.delivered, 4);

    twin.raw.purge(6).await.expect("up");
    let refused = async |from, to| start(&setup, asked(from, to)).await.err().expect("refused").to_string();
    let to = Bound::Slot(i64::MAX);
    assert_eq!(refused(Bound::Seq(5), to).await, "cannot replay from sequence 5: it is gone, the stream begins at sequence 6");
    assert_eq!(refused(Bound::Seq(12), to).await, "cannot replay from sequence 12: the stream ends at sequence 11");
    assert_eq!(refused(Bound::Slot(at), Bound::Seq(12)).await, "cannot replay to sequence 12: the stream ends at sequence 11");
    assert_eq!(refused(Bound::Slot(at), Bound::Seq(2)).await, "cannot replay to sequence 2: it is gone, the stream begins at sequence 6");
    assert!(refused(Bound::Seq(8), Bound::Seq(7)).await.contains("the end is before the beginning"));
    assert!(twin.state.keys("replay.").await.expect("up").is_empty(), "what is refused holds nothing");
}
