//! Several requests at a time: each series keeps its order, each request its key and bytes, and the position waits for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bundled_nats::twin::Twin;
use relay::sink::{Answer, Limits};
use tokio::sync::Barrier;

use crate::harness::*;

/// Series of each message.
const SERIES: u64 = 53;

/// Four lanes of twenty samples a request: 70 fill a part, and 53 are more than three requests.
fn lanes(twin: &Twin) -> Setup {
    let mut setup = Setup::one(twin);
    setup.lanes = 3;
    setup.limits = Limits { bytes_max: 1 << 20, items_max: 20 };
    setup
}

/// Lanes whose sink has this answer for every request with one of the series in it.
fn refused(twin: &Twin, answer: fn() -> Answer) -> (Setup, Scripted) {
    let setup = lanes(twin);
    let sink = setup.sink("one");
    sink.set(move |lines| if lines.iter().any(|line| named(line) == "s_3") { answer() } else { Answer::Delivered });
    (setup, sink)
}

async fn publish(producer: &mut Producer, slots: std::ops::Range<i64>) {
    let names: Vec<String> = (0..SERIES).map(|i| format!("s_{i}")).collect();
    for k in slots {
        let values: Vec<(&str, f64)> = names.iter().map(|n| (n.as_str(), k as f64)).collect();
        producer.publish(&[scrape(1, k * SLOT, &values)]).await;
    }
}

fn named(line: &str) -> &str {
    line.split('"').nth(3).expect("a name")
}

#[tokio::test(start_paused = true)]
async fn the_requests_of_a_part_are_on_their_way_together_and_each_series_keeps_its_order() {
    let twin = Twin::new(u64::MAX);
    let mut setup = lanes(&twin);
    // Nobody is answered before all four are there.
    setup.meet = Some(Arc::new(Barrier::new(4)));
    publish(&mut Producer::new(&twin, "p", 1), 1..6).await;
    let relays = setup.start();
    let after = passed(&twin, "one", 5).await;
    balanced(&after);
    let calls = setup.sink("one").calls();
    assert_eq!((after.totals.delivered, calls.len()), (5 * SERIES, 20));
    assert!(calls.iter().all(|call| (1..=20).contains(&call.lines.len())), "{calls:?}");
    let mut series: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let delivered = setup.sink("one").delivered();
    delivered.iter().for_each(|line| series.entry(named(line)).or_default().push(line));
    assert_eq!(series.len() as u64, SERIES);
    for (name, lines) in series {
        let slots: Vec<String> = (1..6).map(|k| format!("\"timestamp\":{}", k * SLOT)).collect();
        assert!(lines.len() == 5 && lines.iter().zip(&slots).all(|(line, slot)| line.contains(slot)), "{name}: {lines:?}");
    }
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_fails_sends_its_own_again_and_the_position_waits_for_it() {
    let twin = Twin::new(u64::MAX);
    let (setup, sink) = refused(&twin, retry);
    publish(&mut Producer::new(&twin, "p", 1), 1..3).await;
    let relays = setup.start();
    until("the others are delivered, and it was tried again", || {
        sink.calls().iter().filter(|call| call.answer != Answer::Delivered).count() > 3
    })
    .await;
    let (calls, status) = (sink.calls(), status(&relays, "one"));
    assert_eq!(calls.iter().filter(|call| call.answer == Answer::Delivered).count(), 3, "no other message begins");
    assert_eq!((status.position, status.activity), (0, relay::Activity::Retrying));
    assert!(checkpoint(&twin, "one").await.is_none_or(|checkpoint| checkpoint.seq == 0 && checkpoint.partial.is_none()));
    assert!(by_key(&calls).values().all(|bodies| bodies.len() == 1), "the same samples under the same key");
    assert_eq!(by_key(&calls).len(), 4);
    sink.set(|_| Answer::Delivered);
    let after = passed(&twin, "one", 2).await;
    balanced(&after);
    let delivered = sink.delivered();
    assert_eq!((after.totals.delivered, delivered.len(), delivered.iter().collect::<BTreeSet<_>>().len()), (2 * SERIES, 106, 106));
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_lane_refuses_is_found_while_the_others_deliver() {
    let twin = Twin::new(u64::MAX);
    let (setup, sink) = refused(&twin, reject);
    publish(&mut Producer::new(&twin, "p", 1), 1..3).await;
    let relays = setup.start();
    let after = passed(&twin, "one", 2).await;
    balanced(&after);
    assert_eq!((after.totals.delivered, after.totals.rejected, sink.delivered().len()), (104, 2, 104));
    assert_eq!(twin.dead.messages().len(), 2);
    assert!(by_key(&sink.calls()).values().all(|bodies| bodies.len() == 1));
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_kill_the_same_requests_go_again_under_the_same_keys() {
    let twin = Twin::new(u64::MAX);
    let (setup, sink) = refused(&twin, retry);
    publish(&mut Producer::new(&twin, "p", 1), 1..2).await;
    let relays = setup.start();
    until("the others are delivered", || sink.delivered().len() > 30 && sink.calls().len() >= 4).await;
    drop(relays);
    sink.set(|_| Answer::Delivered);
    let relays = setup.start();
    let after = passed(&twin, "one", 1).await;
    balanced(&after);
    assert_eq!(after.totals.delivered, SERIES);
    let keys = by_key(&sink.calls());
    assert_eq!(keys.len(), 4, "{keys:?}");
    assert!(keys.values().all(|bodies| bodies.len() == 1));
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_the_lanes_that_are_answered_and_not_for_one_that_is_refused() {
    let twin = Twin::new(u64::MAX);
    let (setup, sink) = refused(&twin, retry);
    publish(&mut Producer::new(&twin, "p", 1), 1..2).await;
    let relays = setup.start();
    until("one is refused", || sink.calls().len() >= 5).await;
    let begun = tokio::time::Instant::now();
    relays.stop(Duration::from_secs(60)).await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    let left = checkpoint(&twin, "one").await.expect("a checkpoint");
    assert_eq!((left.seq, left.clean), (0, false), "some of the message was delivered: it goes again, counted");
}
