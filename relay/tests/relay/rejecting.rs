use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bundled_nats::ledger::Stage;
use bundled_nats::port::{Headers, Log};
use bundled_nats::twin::{Fault, Twin, TwinLog};
use bytes::Bytes;
use relay::Relays;
use relay::sink::Answer;

use crate::harness::*;

fn picky(lines: &[String]) -> Answer {
    if lines.iter().any(|line| line.contains("bad")) { reject() } else { Answer::Delivered }
}

#[tokio::test(start_paused = true)]
async fn one_sample_in_a_thousand_is_found_parked_and_counted() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let sink = setup.sink("one");
    sink.set(picky);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let names: Vec<String> = (0..2000).map(|i| if i % 1000 == 500 { format!("bad_{i}") } else { format!("s_{i}") }).collect();
    for k in 1..=3 {
        let values: Vec<(&str, f64)> = names.iter().map(|n| (n.as_str(), k as f64)).collect();
        producer.publish(&[scrape(1, k * SLOT, &values)]).await;
    }
    let after = passed(&twin, "one", 3).await;
    balanced(&after);
    assert_eq!((after.totals.delivered, after.totals.rejected), (5994, 6));
    let delivered = sink.delivered();
    assert_eq!(delivered.len(), 5994);
    let stripped: Vec<&str> = delivered[..1998].iter().map(|l| l.split('"').nth(3).expect("a name")).collect();
    let expect: Vec<&str> = names.iter().filter(|n| !n.starts_with("bad")).map(String::as_str).collect();
    assert_eq!(stripped, expect, "in order");
    let letters = twin.dead.messages();
    assert_eq!(letters.len(), 3);
    let letter: relay::dead::Letter = serde_json::from_slice(&letters[0].payload).expect("a letter");
    assert_eq!((letters[0].subject.as_str(), letter.seq, letter.samples.len()), ("strata.dead.one", 1, 2));
    assert_eq!(letter.samples[0].series, "bad_500{instance=\"t1\",job=\"local\",k=\"v\"}");
    assert_eq!(letter.samples[0].answer, "no");
    let item = base64::engine::general_purpose::STANDARD.decode(&letter.samples[0].item).expect("base64");
    assert!(String::from_utf8_lossy(&item).contains("bad_500"));
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn items_that_the_sink_names_are_parked_and_the_rest_is_not_sent_again() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    setup.sink("one").script(|s| s.answers.push_back(Answer::Reject { items: Some(vec![1]), reason: "too large".into() }));
    let relays = setup.start();
    Producer::new(&twin, "p", 1).publish(&[scrape(1, SLOT, &[("a", 1.0), ("b", 1.0), ("c", 1.0)])]).await;
    let after = passed(&twin, "one", 1).await;
    assert_eq!((after.totals.delivered, after.totals.rejected), (2, 1));
    assert_eq!(setup.sink("one").calls().len(), 1);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn the_first_batch_of_all_is_left_alone_before_it_is_taken_apart() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    setup.sink("one").set(picky);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let page = [("a", 1.0), ("bad", 1.0), ("c", 1.0)];
    for k in 1..=4 {
        producer.publish(&[scrape(1, k * SLOT, &page)]).await;
    }
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(setup.sink("one").calls().len(), 1, "a sink that may refuse everything is not bothered");
    let begun = tokio::time::Instant::now();
    let after = passed(&twin, "one", 4).await;
    assert_eq!((after.totals.delivered, after.totals.rejected), (8, 4));
    assert!(begun.elapsed() < Duration::from_secs(10), "once only: {:?}", begun.elapsed());
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_rejects_everything_is_held_and_nothing_is_parked() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let sink = setup.sink("one");
    sink.set(|_| reject());
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 1..=20 {
        producer.publish(&[scrape(1, k * SLOT, &[("a", k as f64), ("b", k as f64)])]).await;
    }
    until("it is held", || status(&relays, "one").activity == relay::Activity::Held).await;
    until("it was asked for long", || sink.calls().len() > 60).await;
    assert!(status(&relays, "one").last_error.expect("said").contains("every sample"));
    assert!(twin.dead.messages().is_empty());
    assert_eq!(checkpoint(&twin, "one").await.expect("written").seq, 0);
    sink.set(|_| Answer::Delivered);
    let after = passed(&twin, "one", 20).await;
    assert_eq!((after.totals.delivered, after.totals.rejected), (40, 0));
    balanced(&after);
    let values: Vec<String> = sink.delivered();
    let mut sorted = values.clone();
    sorted.sort_by_key(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON")["timestamp"].as_i64());
    assert_eq!(values, sorted, "in order");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_first_batch_of_only_poison_does_not_block_the_line() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let sink = setup.sink("one");
    sink.set(picky);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, SLOT, &[("bad_1", 1.0)])]).await;
    until("it was asked", || !sink.calls().is_empty()).await;
    assert!(twin.dead.messages().is_empty(), "not yet clear");
    producer.publish(&[scrape(2, SLOT, &[("good", 1.0)])]).await;
    let after = passed(&twin, "one", 2).await;
    assert_eq!((after.totals.delivered, after.totals.rejected), (1, 1));
    assert_eq!(twin.dead.messages().len(), 1);
    balanced(&after);
    until("fine again", || status(&relays, "one").last_error.is_none()).await;
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_mended_is_known_by_what_came_behind_the_poison() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let sink = setup.sink("one");
    sink.set(|_| reject());
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, SLOT, &[("bad", 1.0)])]).await;
    for k in 2..=20 {
        producer.publish(&[scrape(1, k * SLOT, &[("bad", 1.0), ("a", k as f64)])]).await;
    }
    until("it is taken for broken", || status(&relays, "one").last_error.is_some_and(|error| error.contains("nothing is parked"))).await;
    sink.set(picky);
    let after = passed(&twin, "one", 20).await;
    balanced(&after);
    assert_eq!((after.totals.delivered, after.totals.rejected, sink.delivered().len()), (19, 20, 19));
    relays.stop(Duration::from_secs(5)).await;
}

/// Relays that have parked a sample, and who publishes more.
async fn parking(twin: &Twin, names: &[&str]) -> (Setup, Relays, Producer) {
    let setup = Setup::new(twin, &names.iter().map(|name| relay(name)).collect::<Vec<_>>());
    names.iter().for_each(|name| setup.sink(name).set(picky));
    let (relays, mut producer) = (setup.start(), Producer::new(twin, "p", 1));
    producer.publish(&[scrape(1, SLOT, &[("a", 1.0), ("bad", 1.0)])]).await;
    for name in names {
        passed(twin, name, 1).await;
    }
    (setup, relays, producer)
}

#[tokio::test(start_paused = true)]
async fn letters_are_not_doubled_by_a_kill_after_parking() {
    let twin = Twin::new(u64::MAX);
    let (setup, relays, mut producer) = parking(&twin, &["one"]).await;
    twin.state.set_down(true);
    for k in 2..=4 {
        producer.publish(&[scrape(1, k * SLOT, &[("a", 1.0), ("bad", 1.0)])]).await;
    }
    until("three more are parked", || twin.dead.messages().len() == 4).await;
    drop(relays);
    twin.state.set_down(false);
    producer.publish(&[scrape(1, 5 * SLOT, &[("a", 1.0), ("bad", 1.0)])]).await;
    let relays = setup.start();
    let after = passed(&twin, "one", 5).await;
    assert_eq!(after.totals.rejected, 5);
    assert_eq!(twin.dead.messages().len(), 5);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_letter_whose_answer_was_lost_is_found_behind_those_of_others() {
    let twin = Twin::new(u64::MAX);
    let (_setup, relays, mut producer) = parking(&twin, &["one"]).await;
    twin.dead.inject(Fault::Dies);
    producer.publish(&[scrape(1, 2 * SLOT, &[("a", 1.0), ("bad", 1.0)])]).await;
    until("it is parked, which nobody said", || twin.dead.messages().len() == 2).await;
    // Longer than the server recognises what comes again; and a replay is the first to write then.
    tokio::time::sleep(Duration::from_secs(180)).await;
    twin.dead.set_down(false);
    for n in 0..3 {
        let mut headers = Headers::default();
        headers.insert("Nats-Msg-Id", format!("replay:{n}"));
        twin.dead.publish("strata.dead.one", &headers, Bytes::from_static(b"another's"), None).await.expect("the twin is up");
    }
    let after = passed(&twin, "one", 2).await;
    assert_eq!((after.totals.rejected, twin.dead.messages().len()), (2, 2 + 3), "it is there once");
    balanced(&after);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn full_dead_letters_lose_the_oldest_and_book_them() {
    let twin = Twin::new(u64::MAX);
    twin.dead.set_bytes_max(8_000);
    let setup = Setup::one(&twin);
    setup.sink("one").set(picky);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 1..=50 {
        producer.publish(&[scrape(1, k * SLOT, &[("a", 1.0), ("bad", 1.0)])]).await;
    }
    let after = passed(&twin, "one", 50).await;
    assert_eq!(after.totals.rejected, 50);
    let kept = twin.dead.messages().len() as u64;
    let entries = ledger(&twin);
    assert!(entries.iter().all(|e| e.stage == Stage::Dead));
    assert_eq!(entries.iter().map(|e| e.samples).sum::<u64>() + kept, 50);
    assert!(kept > 5);
    relays.stop(Duration::from_secs(5)).await;
}

/// Samples of which the ledger says that their letters had to go.
fn trimmed(twin: &Twin) -> u64 {
    ledger(twin).iter().filter(|entry| entry.stage == Stage::Dead).map(|entry| entry.samples).sum()
}

#[tokio::test(start_paused = true)]
async fn relays_that_make_room_at_the_same_time_book_each_letter_once() {
    let twin = Twin::new(u64::MAX);
    twin.dead.set_bytes_max(8_000);
    let (_setup, relays, mut producer) = parking(&twin, &["one", "two"]).await;
    twin.ledger.hold(true);
    for k in 2..=50 {
        producer.publish(&[scrape(1, k * SLOT, &[("a", 1.0), ("bad", 1.0)])]).await;
    }
    // Both have looked, and wait for the ledger.
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(trimmed(&twin), 0);
    twin.ledger.hold(false);
    for relay in ["one", "two"] {
        assert_eq!(passed(&twin, relay, 50).await.totals.rejected, 50);
    }
    assert_eq!(trimmed(&twin) + twin.dead.messages().len() as u64, 100);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn letters_that_were_booked_as_gone_before_a_kill_are_not_booked_again() {
    let twin = Twin::new(u64::MAX);
    twin.dead.set_bytes_max(8_000);
    let (setup, relays, mut producer) = parking(&twin, &["one"]).await;
    twin.ledger.hold(true);
    for k in 2..=50 {
        producer.publish(&[scrape(1, k * SLOT, &[("a", 1.0), ("bad", 1.0)])]).await;
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    twin.dead.set_down(true);
    twin.ledger.hold(false);
    until("the oldest are booked, and cannot go", || trimmed(&twin) > 0).await;
    drop(relays);
    twin.dead.set_down(false);
    let relays = setup.start();
    passed(&twin, "one", 50).await;
    assert_eq!(trimmed(&twin) + twin.dead.messages().len() as u64, 50);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn letters_of_a_stream_that_begins_anew_are_booked_under_the_sequences_of_earlier_ones() {
    let mut twin = Twin::new(u64::MAX);
    let mut producer = Producer::new(&twin, "p", 1);
    for round in 1..=2 {
        twin.dead = Arc::new(TwinLog::new(8_000));
        let setup = Setup::one(&twin);
        setup.sink("one").set(picky);
        let (relays, before) = (setup.start(), trimmed(&twin));
        for _ in 0..50 {
            let slot = (producer.n as i64 + 1) * SLOT;
            producer.publish(&[scrape(1, slot, &[("a", 1.0), ("bad", 1.0)])]).await;
        }
        passed(&twin, "one", 50 * round).await;
        assert_eq!(trimmed(&twin) - before + twin.dead.messages().len() as u64, 50);
        relays.stop(Duration::from_secs(5)).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_refuses_others_after_a_crash_has_these_parked_too() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::one(&twin);
    setup.limits.items_max = 2;
    let sink = setup.sink("one");
    sink.set(|lines| match lines.iter().any(|line| line.contains("late")) {
        true => retry(),
        false => {
            if lines.iter().any(|line| line.contains("first")) {
                reject()
            } else {
                Answer::Delivered
            }
        }
    });
    let relays = setup.start();
    until("it runs", || status(&relays, "one").activity == relay::Activity::Running).await;
    twin.state.set_down(true);
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, SLOT, &[("a", 1.0), ("first", 2.0), ("second", 3.0), ("late", 4.0)])]).await;
    until("the first is parked", || twin.dead.messages().len() == 1).await;
    drop(relays);
    twin.state.set_down(false);
    sink.set(|lines| if lines.iter().any(|line| line.contains("first") || line.contains("second")) { reject() } else { Answer::Delivered });
    let relays = setup.start();
    let after = passed(&twin, "one", 1).await;
    assert_eq!((after.totals.delivered, after.totals.rejected), (2, 2));
    let letters = twin.dead.messages().into_iter().map(|message| serde_json::from_slice(&message.payload).expect("a letter"));
    let parked: Vec<String> = letters.flat_map(|letter: relay::dead::Letter| letter.samples).map(|sample| sample.series).collect();
    let series = |name: &str| format!("{name}{{instance=\"t1\",job=\"local\",k=\"v\"}}");
    assert_eq!(parked, [series("first"), series("second")], "each once");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_while_the_sink_refuses_all_is_sent_after_a_rollback_and_a_restart() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let sink = setup.sink("one");
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, SLOT, &[("a", 1.0)])]).await;
    let relays = setup.start();
    passed(&twin, "one", 1).await;
    sink.set(|_| reject());
    for k in 2..=3 {
        producer.publish(&[scrape(1, k * SLOT, &[("a", k as f64)])]).await;
    }
    until("both are put aside", || sink.calls().len() > 3).await;
    // The last is gone; what is there is read again.
    twin.raw.tear(1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    relays.stop(Duration::from_secs(5)).await;
    sink.set(|_| Answer::Delivered);
    let relays = setup.start();
    until("the second is sent", || sink.delivered().iter().any(|line| line.contains("\"value\":2"))).await;
    relays.stop(Duration::from_secs(5)).await;
}
