use std::time::Duration;

use bundled_nats::port::{Log, State};
use bundled_nats::twin::Twin;
use relay::replay::{Error, Replay, Request};
use relay::sink::Answer;
use tokio_util::sync::CancellationToken;

use crate::harness::*;

fn request(relay: &config::Relay, from_ms: i64, to_ms: i64) -> Request {
    Request { relay: relay.clone(), from_ms, to_ms, rate: None, again: false, selector: None, dry_run: false }
}

async fn published(twin: &Twin, at: i64, slots: std::ops::RangeInclusive<i64>) -> Producer {
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
    let token = CancellationToken::new();
    let replay = Replay::start(request(&setup.relays[0], at + 4 * SLOT, at + 6 * SLOT), twin.streams(), &setup.options(), &token)
        .await
        .expect("begins");
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
    let wanted = Request { rate: Some(1), ..request(&setup.relays[0], at, at + 100 * SLOT) };
    let began = tokio::time::Instant::now();
    let replay = Replay::start(wanted, twin.streams(), &setup.options(), &CancellationToken::new()).await.expect("begins");
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
    let token = CancellationToken::new();
    let wanted = request(&setup.relays[0], at + 3 * SLOT, at + 5 * SLOT);
    let refused = Replay::start(wanted.clone(), twin.streams(), &setup.options(), &token).await.err().expect("refused");
    assert!(matches!(refused, Error::AddsUp { .. }), "{refused}");
    let replay = Replay::start(Request { again: true, ..wanted }, twin.streams(), &setup.options(), &token).await.expect("begins");
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
    let token = CancellationToken::new();
    let replay =
        Replay::start(request(&setup.relays[0], at, at + 9 * SLOT), twin.streams(), &setup.options(), &token).await.expect("begins");
    assert!(replay.finish().await.is_err());
    assert!(twin.dead.messages().is_empty());
    let range = Replay::start(request(&setup.relays[0], at, at - 1), twin.streams(), &setup.options(), &token).await.err();
    assert!(matches!(range, Some(Error::Range { .. })));
    let later = request(&setup.relays[0], at + 3_600_000, at + 3_700_000);
    let nothing = Replay::start(later, twin.streams(), &setup.options(), &token).await.expect("begins");
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
    let token = CancellationToken::new();
    let replay = async |from, to| {
        let wanted = request(&setup.relays[0], at + from * SLOT, at + to * SLOT);
        let replay = Replay::start(wanted, twin.streams(), &setup.options(), &token).await.expect("begins");
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
        let replay = Replay::start(wanted, twin.streams(), &setup.options(), &CancellationToken::new()).await.expect("it begins");
        let mut progress = replay.progress();
        let end = progress.borrow().end;
        progress.wait_for(|progress| progress.position >= end).await.expect("it goes on");
        let jobs = replay.by_job();
        (jobs, replay.finish().await.expect("it ends").totals)
    };
    let wanted = Request { dry_run: true, ..request(&setup.relays[0], at, at + 2 * SLOT) };
    let (jobs, totals) = run(wanted.clone()).await;
    assert_eq!((jobs["local"], jobs["other"], totals.delivered), (6, 3, 9));
    assert!(setup.sink("one").calls().is_empty(), "nothing was sent");
    let selector = Some("{job=\"local\", __name__=\"b\"}".parse().expect("a selector"));
    let (jobs, totals) = run(Request { selector: selector.clone(), ..wanted.clone() }).await;
    assert_eq!((jobs["local"], jobs["other"], totals.delivered, totals.filtered), (3, 0, 3, 6));
    let (jobs, totals) = run(Request { selector, dry_run: false, ..wanted }).await;
    assert_eq!((jobs.len(), totals.delivered, setup.sink("one").delivered().len()), (0, 3, 3));
}
