//! Sinks that know what a life before had delivered, and such that another process takes over.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bundled_nats::twin::Twin;
use relay::Activity;
use relay::sink::Answer;

use crate::harness::*;

#[tokio::test(start_paused = true)]
async fn what_the_sink_has_from_a_life_before_counts_with_what_was_refused_then() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let sink = setup.sink("one");
    let second = || Answer::Reject { items: Some(vec![1]), reason: "too large".into() };
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, SLOT, &[("a", 1.0), ("b", 1.0), ("c", 1.0)])]).await;
    passed(&twin, "one", 1).await;
    // The position is not stored any more: the sink and the dead letters know more than the checkpoint.
    twin.state.set_down(true);
    sink.set(move |_| second());
    producer.publish(&[scrape(1, 2 * SLOT, &[("a", 2.0), ("b", 2.0), ("c", 2.0)])]).await;
    until("one is parked", || twin.dead.messages().len() == 1).await;
    drop(relays);
    twin.state.set_down(false);
    producer.publish(&[scrape(1, 3 * SLOT, &[("a", 3.0), ("b", 3.0), ("c", 3.0)])]).await;
    sink.script(|script| {
        script.answers.push_back(Answer::Before { rejected: vec![], reason: String::new() });
        script.answers.push_back(Answer::Before { rejected: vec![2], reason: "too large".into() });
    });
    let relays = setup.start();
    let after = passed(&twin, "one", 3).await;
    balanced(&after);
    assert_eq!((after.totals.delivered, after.totals.rejected), (7, 2));
    let parked = |seq: usize| serde_json::from_slice::<relay::dead::Letter>(&twin.dead.messages()[seq].payload).expect("a letter");
    assert_eq!(twin.dead.messages().len(), 2, "what was parked is not parked again");
    assert!(parked(0).samples[0].series.starts_with("b{") && parked(1).samples[0].series.starts_with("c{"));
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_of_a_batch_is_parked_before_the_sink_takes_any_of_another() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let dead = twin.dead.clone();
    let (parked, mut refused) = (Arc::new(Mutex::new(Vec::new())), vec![vec![0], vec![1], vec![0, 1, 2]]);
    let seen = parked.clone();
    // The first is refused whole and waits; of the second one is refused, and so the first is tried again.
    setup.sink("one").set(move |_| {
        seen.lock().expect("no panics while it is held").push(dead.messages().len());
        Answer::Reject { items: refused.pop(), reason: "no".into() }
    });
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    for slot in [SLOT, 2 * SLOT] {
        producer.publish(&[scrape(1, slot, &[("a", 1.0), ("b", 1.0), ("c", 1.0)])]).await;
    }
    let after = passed(&twin, "one", 2).await;
    balanced(&after);
    assert_eq!((after.totals.delivered, after.totals.rejected), (4, 2));
    assert_eq!(*parked.lock().expect("no panics while it is held"), [0, 0, 1]);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn who_is_fenced_off_moves_nothing_says_so_and_begins_anew() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let sink = setup.sink("one");
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, SLOT, &[("a", 1.0)])]).await;
    passed(&twin, "one", 1).await;
    sink.set(|_| Answer::Fenced { reason: "fenced off".into() });
    producer.publish(&[scrape(1, 2 * SLOT, &[("a", 2.0)])]).await;
    until("it is held", || status(&relays, "one").activity == Activity::Held).await;
    assert_eq!(status(&relays, "one").last_error.as_deref(), Some("fenced off"));
    until("it was asked once more", || sink.calls().len() >= 3).await;
    assert_eq!(checkpoint(&twin, "one").await.expect("written").seq, 1);
    sink.set(|_| Answer::Delivered);
    let after = passed(&twin, "one", 2).await;
    assert_eq!(after.totals.delivered, 2);
    balanced(&after);
    relays.stop(Duration::from_secs(5)).await;
}
