//! What comes again after a life that ended: under which keys, and that it is counted.

use std::collections::HashSet;
use std::time::Duration;

use bundled_nats::twin::{Fault, Twin};
use relay::sink::{Answer, Limits};

use crate::harness::*;

#[tokio::test(start_paused = true)]
async fn a_kill_between_answer_and_checkpoint_sends_the_same_bytes_under_the_same_keys() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::one(&twin);
    setup.limits = Limits { bytes_max: 1 << 20, items_max: 3 };
    let sink = setup.sink("one");
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, 15_000, &[("a", 1.0), ("b_total", 2.0), ("c", 3.0), ("d", 4.0)])]).await;
    passed(&twin, "one", 1).await;
    twin.state.set_down(true);
    for k in 2..5 {
        let v = k as f64;
        producer.publish(&[scrape(1, k * SLOT, &[("a", v), ("b_total", v), ("c", 3.0), ("d", 4.0)])]).await;
    }
    until("all is delivered", || sink.delivered().len() == 16).await;
    drop(relays);
    twin.state.set_down(false);
    let before = sink.calls();
    let relays = setup.start();
    let after = passed(&twin, "one", 4).await;
    balanced(&after);
    let again: Vec<Call> = sink.calls()[before.len()..].to_vec();
    assert_eq!(again, before[2..].to_vec(), "the same bytes under the same keys");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_clean_stop_repeats_nothing_even_in_the_middle_of_a_message() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::one(&twin);
    setup.limits = Limits { bytes_max: 1 << 20, items_max: 1 };
    let sink = setup.sink("one");
    sink.set(|lines| if lines[0].contains("\"c\"") { retry() } else { Answer::Delivered });
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, 15_000, &[("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0)])]).await;
    until("two are delivered", || sink.calls().len() > 4).await;
    relays.stop(Duration::from_secs(5)).await;
    sink.set(|_| Answer::Delivered);
    let relays = setup.start();
    let after = passed(&twin, "one", 1).await;
    assert_eq!(sink.delivered().len(), 4, "each once");
    assert_eq!(after.totals.delivered, 4);
    balanced(&after);
    relays.stop(Duration::from_secs(5)).await;
}

/// A sink that does not take a series of a target for now.
fn without(series: &'static str, target: &'static str) -> impl FnMut(&[String]) -> Answer {
    move |lines| if lines.iter().any(|line| line.contains(series) && line.contains(target)) { retry() } else { Answer::Delivered }
}

/// A message with a page of each of two targets, in three batches; two of them are delivered when a life ends, and then one of the bases is lost.
async fn without_a_base_of(lost: u64, killed: bool) {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::one(&twin);
    setup.limits.items_max = 2;
    let sink = setup.sink("one");
    let (relays, mut producer) = (setup.start(), Producer::new(&twin, "p", 1));
    let page = |target, k: i64| scrape(target, k * SLOT, &[("a", k as f64), ("b", k as f64), ("c", k as f64)]);
    producer.publish(&[page(1, 1)]).await;
    producer.publish(&[page(2, 1)]).await;
    passed(&twin, "one", 2).await;
    twin.state.set_down(killed);
    sink.set(without("\"b\"", "\"t2\""));
    producer.publish(&[page(1, 2), page(2, 2)]).await;
    until("two are delivered", || sink.delivered().len() == 10 && sink.calls().len() > 6).await;
    if killed {
        drop(relays);
    } else {
        relays.stop(Duration::from_secs(5)).await;
    }
    twin.state.set_down(false);
    twin.raw.corrupt(lost);

    // And once more, in the middle of what is left.
    let registries = [prometheus::Registry::new(), prometheus::Registry::new()];
    let (left, calls) = (if lost == 1 { "\"t2\"" } else { "\"t1\"" }, sink.calls().len());
    sink.set(without("\"c\"", left));
    let relays = setup.start_with(&registries[0]);
    until("the last of it is asked for", || sink.calls()[calls..].iter().any(|call| call.answer != Answer::Delivered)).await;
    relays.stop(Duration::from_secs(5)).await;
    sink.set(|_| Answer::Delivered);
    let relays = setup.start_with(&registries[1]);
    let after = passed(&twin, "one", 3).await;
    balanced(&after);
    assert_eq!((after.totals.read, after.totals.lost), (12, 3));
    let keys = by_key(&sink.calls());
    assert!(keys.values().all(|bodies| bodies.len() == 1), "a key came with other bytes: {keys:?}");
    let delivered = sink.delivered();
    let there: HashSet<&String> = delivered.iter().filter(|line| line.contains(left)).collect();
    assert_eq!(there.len(), 6, "what is left arrives: {delivered:?}");
    let repeated = delivered.len() - delivered.iter().collect::<HashSet<_>>().len();
    let counted = registries.iter().filter_map(|registry| metric(registry, "strata_relay_repeated_samples_total", "one")).sum::<f64>();
    assert!(repeated as f64 <= counted && counted <= 3.0, "{repeated} came again, {counted} are counted");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_message_that_lost_a_base_goes_again_under_keys_of_its_own() {
    for lost in [1, 2] {
        for killed in [true, false] {
            without_a_base_of(lost, killed).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_the_middle_of_a_bisection_is_not_called_clean() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let sink = setup.sink("one");
    // The first half is taken, the second one waits.
    sink.set(|lines| match (lines.len(), lines[0].contains("\"a\"")) {
        (4, _) => reject(),
        (_, true) => Answer::Delivered,
        _ => retry(),
    });
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, 15_000, &[("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0)])]).await;
    until("a half is delivered", || sink.calls().len() > 4).await;
    relays.stop(Duration::from_secs(5)).await;
    assert!(!checkpoint(&twin, "one").await.expect("it is written").clean);
    sink.set(|_| Answer::Delivered);
    let registry = prometheus::Registry::new();
    let relays = setup.start_with(&registry);
    balanced(&passed(&twin, "one", 1).await);
    assert_eq!(sink.delivered().len(), 6, "the first half goes again");
    assert_eq!(metric(&registry, "strata_relay_repeated_samples_total", "one"), Some(4.0), "and is counted");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_again_after_a_kill_is_counted_through_lives_that_deliver_little() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let sink = setup.sink("one");
    let mut producer = Producer::new(&twin, "p", 1);
    let page = |k: i64| [scrape(1, k * SLOT, &[("a", k as f64)])];
    for k in 1..=5 {
        producer.publish(&page(k)).await;
    }
    let relays = setup.start();
    assert_eq!(passed(&twin, "one", 5).await.pace, 4, "passed between two writes");
    twin.state.set_down(true);
    for k in 6..=14 {
        producer.publish(&page(k)).await;
    }
    until("all is delivered", || sink.delivered().len() == 14).await;
    drop(relays);
    twin.state.set_down(false);

    // Lives that are stopped before the sink takes anything, then after it took some, then all.
    let registries: [_; 6] = std::array::from_fn(|_| prometheus::Registry::new());
    for (registry, to) in registries.iter().zip([5, 5, 5, 5, 6, 14]) {
        let (calls, slot) = (sink.calls().len(), to * SLOT);
        sink.set(move |lines| if lines.iter().any(|line| time(line) > slot) { retry() } else { Answer::Delivered });
        let relays = setup.start_with(registry);
        let is_asked = || sink.calls()[calls..].iter().any(|call| call.answer != Answer::Delivered);
        until("the sink refuses what comes next", || to == 14 || is_asked()).await;
        balanced(&passed(&twin, "one", to as u64).await);
        relays.stop(Duration::from_secs(5)).await;
    }
    let delivered = sink.delivered();
    let repeated = delivered.len() - delivered.iter().collect::<HashSet<_>>().len();
    let counted = registries.iter().filter_map(|registry| metric(registry, "strata_relay_repeated_samples_total", "one")).sum::<f64>();
    assert_eq!((repeated, counted), (9, 9.0), "{delivered:?}");

    // Once nothing can come again, a stop is clean.
    sink.set(|_| Answer::Delivered);
    let relays = setup.start();
    for k in 15..=40 {
        producer.publish(&page(k)).await;
    }
    passed(&twin, "one", 40).await;
    relays.stop(Duration::from_secs(5)).await;
    assert!(checkpoint(&twin, "one").await.expect("it is written").clean);
}

/// When a line is of, ms.
fn time(line: &str) -> i64 {
    serde_json::from_str::<serde_json::Value>(line).expect("JSON")["timestamp"].as_i64().expect("ms")
}

/// Longer than the server recognises what comes again.
const AWAY: Duration = Duration::from_secs(180);

#[tokio::test(start_paused = true)]
async fn what_was_stored_right_before_a_long_outage_is_not_stored_again() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let relays = setup.start();
    passed(&twin, "one", 0).await;
    twin.dead.inject(Fault::Dies);
    let mut producer = Producer::new(&twin, "p", 1);
    let seq = producer.publish_payload(vec![9; 40], 2, (0, 0), true).await.expect("room in the stream");
    until("the letter is there", || !twin.dead.messages().is_empty()).await;
    tokio::time::sleep(AWAY).await;
    twin.ledger.inject(Fault::Dies);
    twin.dead.set_down(false);
    until("the entry is there", || !ledger(&twin).is_empty()).await;
    tokio::time::sleep(AWAY).await;
    twin.ledger.set_down(false);
    assert_eq!(passed(&twin, "one", seq).await.totals.lost, 2);
    assert_eq!((twin.dead.messages().len(), ledger(&twin).len()), (1, 1));
    relays.stop(Duration::from_secs(5)).await;
}
