use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bundled_nats::ledger::Stage;
use bundled_nats::port::{Entry, Error, Log as _, State, Streams};
use bundled_nats::twin::Twin;
use bytes::Bytes;
use relay::Relays;
use relay::sink::Answer;
use sample::Flags;
use tokio_util::sync::CancellationToken;

use crate::harness::*;

fn names(lines: &[String]) -> Vec<f64> {
    lines.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["value"].as_f64().expect("a number")).collect()
}

#[tokio::test(start_paused = true)]
async fn a_new_relay_reads_silently_what_it_needs_and_delivers_only_what_is_new() {
    let twin = Twin::new(u64::MAX);
    let mut config = relay("one");
    config.start = config::Start::Now;
    let setup = Setup::new(&twin, &[config]);
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 0..5 {
        producer.publish(&[scrape(1, slot(k), &[("a", k as f64), ("b", 5.0)])]).await;
    }
    let relays = setup.start();
    until("it runs", || status(&relays, "one").activity == relay::Activity::Running).await;
    producer.publish(&[scrape(1, slot(5), &[("a", 5.0), ("b", 5.0)])]).await;
    let after = passed(&twin, "one", 6).await;
    assert_eq!(names(&setup.sink("one").delivered()), [5.0, 5.0]);
    assert_eq!(after.warm_from, 1, "the base is in the first message");
    balanced(&after);
    drop(relays);
    // A restart reads the base again, silently.
    let relays = setup.start();
    producer.publish(&[scrape(1, slot(6), &[("a", 6.0), ("b", 5.0)])]).await;
    passed(&twin, "one", 7).await;
    assert_eq!(names(&setup.sink("one").delivered()), [5.0, 5.0, 6.0, 5.0]);
    relays.stop(Duration::from_secs(5)).await;
}

/// A state store that does not answer once the relay's first position is in it.
struct Resolved {
    state: Arc<dyn State>,
    taken: tokio::sync::watch::Sender<bool>,
}

#[async_trait]
impl State for Resolved {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.state.get(key).await
    }
    async fn put(&self, key: &str, value: Bytes, expect: u64) -> Result<u64, Error> {
        let put = self.state.put(key, value, expect).await;
        if key == relay::checkpoint::key("one") {
            self.taken.send_replace(true);
            std::future::pending::<()>().await;
        }
        put
    }
    async fn delete(&self, key: &str) -> Result<(), Error> {
        self.state.delete(key).await
    }
    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Error> {
        self.state.keys(prefix).await
    }
}

#[tokio::test(start_paused = true)]
async fn where_a_relay_starts_is_settled_before_it_reads_and_stays_so_over_a_kill() {
    for (start, expect) in [
        (config::Start::Now, vec![3.0, 4.0]),
        (config::Start::Earliest, vec![0.0, 1.0, 2.0, 3.0, 4.0]),
        (config::Start::Ago(config::Millis::from_secs(6 * 3600)), vec![0.0, 1.0, 2.0, 3.0, 4.0]),
    ] {
        let twin = Twin::new(u64::MAX);
        let setup = Setup::new(&twin, &[config::Relay { start, ..relay("one") }]);
        let mut producer = Producer::new(&twin, "p", 1);
        let mut publish = async |k: i64| producer.publish(&[scrape(1, slot(k), &[("a", k as f64)])]).await;
        for k in 0..3 {
            publish(k).await;
        }
        let (taken, mut is_taken) = tokio::sync::watch::channel(false);
        let state = Arc::new(Resolved { state: twin.state.clone(), taken });
        let streams = Streams { state, ..twin.streams() };
        let relays = Relays::start(&setup.relays, streams, setup.options(), &prometheus::Registry::new(), &CancellationToken::new())
            .expect("an own registry");
        is_taken.wait_for(|taken| *taken).await.expect("the store lives");
        assert!(setup.sink("one").calls().is_empty(), "nothing is read before");
        drop(relays);
        for k in 3..5 {
            publish(k).await;
        }
        let relays = setup.start();
        passed(&twin, "one", 5).await;
        assert_eq!(names(&setup.sink("one").delivered()), expect, "{start:?}");
        relays.stop(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn twins_are_delivered_once_and_a_failed_scrape_displaces_nothing() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let relays = setup.start();
    let (mut a, mut b) = (Producer::new(&twin, "a", 1), Producer::new(&twin, "b", 1));
    let failed = |k: i64| Scrape { flags: Flags::FAILED, ..scrape(1, slot(0) + k * SLOT, &[("up", 0.0)]) };
    let good = |k: i64| scrape(1, slot(0) + k * SLOT, &[("up", 1.0)]);
    a.publish(&[good(1)]).await;
    b.publish(&[good(1)]).await;
    b.publish(&[good(2), failed(3)]).await;
    a.publish(&[failed(2), good(3)]).await;
    b.publish(&[good(3)]).await;
    let after = passed(&twin, "one", 5).await;
    assert_eq!(names(&setup.sink("one").delivered()), [1.0, 1.0, 0.0, 1.0]);
    assert_eq!((after.totals.read, after.totals.filtered), (7, 3));
    balanced(&after);
    drop(relays);
    // Slots are known again after a restart.
    let relays = setup.start();
    b.publish(&[good(1)]).await;
    let after = passed(&twin, "one", 6).await;
    assert_eq!((after.totals.read, after.totals.filtered), (8, 4));
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn parts_of_one_producer_make_a_slot_across_messages_and_a_restart() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let (mut a, mut b) = (Producer::new(&twin, "a", 1), Producer::new(&twin, "b", 1));
    let at = slot(0);
    let (one, two) = (scrape(1, at, &[("a", 1.0)]), scrape(1, at, &[("b", 2.0)]));
    let relays = setup.start();
    let frame = a.frame(&one, 0, 2);
    a.publish_frames(&[frame], (at, at)).await;
    let after = passed(&twin, "one", 1).await;
    assert_eq!(after.totals.read, 0, "nothing is complete");
    drop(relays);
    let relays = setup.start();
    let frame = b.frame(&two, 1, 2);
    b.publish_frames(&[frame], (at, at)).await;
    let frame = a.frame(&two, 1, 2);
    a.publish_frames(&[frame], (at, at)).await;
    let after = passed(&twin, "one", 3).await;
    assert_eq!(names(&setup.sink("one").delivered()), [1.0, 2.0]);
    let frame = b.frame(&one, 0, 2);
    b.publish_frames(&[frame], (at, at)).await;
    let last = passed(&twin, "one", 4).await;
    assert_eq!((after.totals.read, last.totals.read, last.totals.filtered), (2, 4, 2));
    balanced(&last);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_torn_tail_of_delivered_messages_repeats_nothing_and_loses_nothing() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 1..=10 {
        producer.publish(&[scrape(1, slot(0) + k * SLOT, &[("a", k as f64)])]).await;
    }
    passed(&twin, "one", 10).await;
    twin.raw.tear(3);
    producer.rebase();
    for k in 11..=14 {
        producer.publish(&[scrape(1, slot(0) + k * SLOT, &[("a", k as f64)])]).await;
    }
    until("the new ones are there", || setup.sink("one").delivered().len() >= 14).await;
    relays.stop(Duration::from_secs(5)).await;
    let after = checkpoint(&twin, "one").await.expect("written");
    assert_eq!(names(&setup.sink("one").delivered()), (1..=14).map(|k| k as f64).collect::<Vec<_>>());
    assert_eq!((after.seq, after.totals.lost), (11, 0));
    balanced(&after);
    assert!(ledger(&twin).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_carried_out_late_takes_no_base_from_what_came_before_it() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let mut relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 1..=3 {
        producer.publish(&[scrape(1, slot(0) + k * SLOT, &[("a", k as f64)])]).await;
        producer.rebase();
    }
    producer.publish(&[scrape(1, slot(0) + 4 * SLOT, &[("a", 4.0)])]).await;
    let mut first = twin.raw.messages().remove(0);
    first.headers.insert("Nats-Msg-Id", "the server knows it no more");
    twin.raw.publish(&first.subject, &first.headers, first.payload, None).await.expect("room in the stream");
    for k in 5..=6 {
        // The second time by a life that reads it silently.
        let seq = producer.publish(&[scrape(1, slot(0) + k * SLOT, &[("a", k as f64)])]).await;
        let after = passed(&twin, "one", seq).await;
        assert_eq!((after.totals.lost, after.warm_from), (0, 4));
        relays.stop(Duration::from_secs(5)).await;
        relays = setup.start();
    }
    let seq = producer.publish(&[scrape(1, slot(0) + 7 * SLOT, &[("a", 7.0)])]).await;
    passed(&twin, "one", seq).await;
    // All is read once more, and then nothing of it is late.
    twin.raw.tear(1);
    producer.publish(&[scrape(1, slot(0) + 8 * SLOT, &[("a", 8.0)])]).await;
    until("the newest is there", || setup.sink("one").delivered().len() == 8).await;
    relays.stop(Duration::from_secs(5)).await;
    assert_eq!(names(&setup.sink("one").delivered()), (1..=8).map(|k| k as f64).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_torn_tail_of_undelivered_messages_is_booked_exactly() {
    for stopped in [false, true] {
        let twin = Twin::new(u64::MAX);
        let setup = Setup::one(&twin);
        let relays = setup.start();
        let mut producer = Producer::new(&twin, "p", 1);
        for k in 1..=6 {
            producer.publish(&[scrape(1, slot(0) + k * SLOT, &[("a", k as f64), ("b", 0.0)])]).await;
        }
        passed(&twin, "one", 6).await;
        let relays = if stopped {
            relays.stop(Duration::from_secs(5)).await;
            None
        } else {
            twin.raw.close_readers();
            Some(relays)
        };
        for k in 7..=10 {
            producer.publish(&[scrape(1, slot(0) + k * SLOT, &[("a", k as f64), ("b", 0.0)])]).await;
        }
        twin.raw.tear(4);
        producer.rebase();
        producer.publish(&[scrape(1, slot(0) + 11 * SLOT, &[("a", 11.0), ("b", 0.0)])]).await;
        let relays = relays.unwrap_or_else(|| setup.start());
        let after = passed(&twin, "one", 7).await;
        balanced(&after);
        assert_eq!((after.totals.delivered, after.totals.lost), (14, 8), "stopped: {stopped}");
        assert_eq!(names(&setup.sink("one").delivered())[12..], [11.0, 0.0]);
        let booked = ledger(&twin);
        assert_eq!(booked.len(), 1);
        assert_eq!((booked[0].stage, booked[0].samples, booked[0].frames), (Stage::Stream, 8, 4));
        assert_eq!((booked[0].reason.as_str(), booked[0].producer.as_deref()), ("rollback", Some("p")));
        relays.stop(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_is_booked_and_what_hung_on_it_is_parked() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let mut producer = Producer::new(&twin, "p", 1);
    let values = |k: i64| scrape(1, slot(0) + k * SLOT, &[("a", k as f64), ("b", 0.0)]);
    producer.publish(&[values(1)]).await;
    producer.publish(&[values(2)]).await;
    producer.rebase();
    producer.publish(&[values(3)]).await;
    producer.publish(&[values(4)]).await;
    producer.rebase();
    producer.publish(&[values(5)]).await;
    producer.publish_payload(vec![1, 0, 9, 9, 9], 2, (0, 0), true).await;
    producer.publish_payload(vec![9; 40], 2, (0, 0), false).await;
    producer.publish(&[values(6)]).await;
    twin.raw.corrupt(3);
    let relays = setup.start();
    let after = passed(&twin, "one", 8).await;
    balanced(&after);
    assert_eq!((after.totals.read, after.totals.delivered, after.totals.lost), (16, 8, 8));
    let booked: Vec<(String, u64)> = ledger(&twin).into_iter().map(|e| (e.reason, e.samples)).collect();
    assert_eq!(booked, [("corrupt".to_owned(), 4), ("no_base".to_owned(), 2), ("rollback".to_owned(), 2)]);
    let parked = twin.dead.messages();
    assert_eq!(parked.len(), 3);
    assert_eq!(parked[2].payload, vec![9; 40]);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_goes_and_comes_back_changes_nothing() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 1..=20 {
        producer.publish(&[scrape(1, slot(0) + k * SLOT, &[("a", k as f64)])]).await;
        match k % 4 {
            0 => twin.raw.close_readers(),
            2 => {
                twin.set_down(true);
                tokio::task::yield_now().await;
                twin.set_down(false);
            }
            _ => until("it is delivered", || setup.sink("one").delivered().len() == k as usize).await,
        }
    }
    let after = passed(&twin, "one", 20).await;
    assert_eq!(names(&setup.sink("one").delivered()), (1..=20).map(|k| k as f64).collect::<Vec<_>>());
    balanced(&after);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn two_processes_of_one_relay_one_stops() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let first = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, SLOT, &[("a", 1.0)])]).await;
    passed(&twin, "one", 1).await;
    let second = setup.start();
    until("the second runs", || status(&second, "one").activity == relay::Activity::Running).await;
    producer.publish(&[scrape(1, 2 * SLOT, &[("a", 2.0)])]).await;
    until("the first has stopped", || status(&first, "one").activity == relay::Activity::Failed).await;
    let text = status(&first, "one").last_error.expect("says why");
    assert!(text.contains("another process"), "{text}");
    passed(&twin, "one", 2).await;
    second.stop(Duration::from_secs(5)).await;
}

/// A store in which one that is gone writes once more: before the first write of the next one.
struct LastWord {
    state: Arc<dyn State>,
    value: Mutex<Option<Bytes>>,
}

#[async_trait]
impl State for LastWord {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.state.get(key).await
    }

    async fn put(&self, key: &str, value: Bytes, expect: u64) -> Result<u64, Error> {
        let last = self.value.lock().expect("nothing panics while it is held").take();
        if let Some(last) = last {
            self.state.put(key, last, expect).await?;
        }
        self.state.put(key, value, expect).await
    }

    async fn delete(&self, key: &str) -> Result<(), Error> {
        self.state.delete(key).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Error> {
        self.state.keys(prefix).await
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_word_of_a_killed_process_does_not_end_the_next_one() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, SLOT, &[("a", 1.0)])]).await;
    let mut last = passed(&twin, "one", 1).await;
    drop(relays);
    last.owner = "another".to_owned();
    let value = Mutex::new(Some(serde_json::to_vec(&last).expect("JSON").into()));
    let streams = Streams { state: Arc::new(LastWord { state: twin.state.clone(), value }), ..twin.streams() };
    let registry = prometheus::Registry::new();
    let relays = Relays::start(&setup.relays, streams, setup.options(), &registry, &CancellationToken::new()).expect("an own registry");
    producer.publish(&[scrape(1, 2 * SLOT, &[("a", 2.0)])]).await;
    until("it runs", || setup.sink("one").delivered().len() == 2).await;
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_store_that_lost_an_answer_or_was_rolled_back_is_written_again() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, SLOT, &[("a", 1.0)])]).await;
    let old = passed(&twin, "one", 1).await;
    twin.state.lose_answers(1);
    producer.publish(&[scrape(1, 2 * SLOT, &[("a", 2.0)])]).await;
    passed(&twin, "one", 2).await;
    producer.publish(&[scrape(1, 3 * SLOT, &[("a", 2.0)])]).await;
    passed(&twin, "one", 3).await;
    let streams = twin.streams();
    streams.state.delete("relay.one").await.expect("up");
    let value = serde_json::to_vec(&old).expect("JSON");
    streams.state.put("relay.one", value.into(), 0).await.expect("up");
    producer.publish(&[scrape(1, 4 * SLOT, &[("a", 2.0)])]).await;
    passed(&twin, "one", 4).await;
    assert_eq!(setup.sink("one").calls().iter().filter(|c| c.answer == Answer::Delivered).count(), 4);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn sequences_that_others_use_again_below_the_checkpoint_are_read_as_new() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 1..=5 {
        producer.publish(&[scrape(1, k * SLOT, &[("a", k as f64)])]).await;
    }
    let relays = setup.start();
    passed(&twin, "one", 5).await;
    relays.stop(Duration::from_secs(5)).await;
    twin.raw.tear(5);
    (producer.epoch, producer.n, producer.total) = (2, 0, 0);
    producer.rebase();
    for k in 6..=13 {
        producer.publish(&[scrape(1, k * SLOT, &[("a", k as f64)])]).await;
    }
    let relays = setup.start();
    let after = passed(&twin, "one", 8).await;
    balanced(&after);
    assert_eq!(names(&setup.sink("one").delivered()), (1..=13).map(|k| k as f64).collect::<Vec<_>>());
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_anew_below_the_lowest_base_is_read_after_a_rollback() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 1..=5 {
        producer.rebase();
        producer.publish(&[scrape(1, k * SLOT, &[("a", k as f64)])]).await;
    }
    let relays = setup.start();
    let before = passed(&twin, "one", 5).await;
    assert!(before.warm_from > 2, "{before:?}");
    relays.stop(Duration::from_secs(5)).await;
    twin.raw.tear(5);
    (producer.epoch, producer.n, producer.total) = (2, 0, 0);
    producer.rebase();
    for k in 6..=12 {
        producer.publish(&[scrape(1, k * SLOT, &[("a", k as f64)])]).await;
    }
    let relays = setup.start();
    until("it has passed all", || setup.sink("one").delivered().len() == 12).await;
    assert_eq!(names(&setup.sink("one").delivered()), (1..=12).map(|k| k as f64).collect::<Vec<_>>());
    let after = passed(&twin, "one", 7).await;
    assert_eq!(after.totals.lost, 0, "{after:?}");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_was_taken_over_does_not_take_itself_back_to_give_up() {
    let twin = Twin::new(u64::MAX);
    let hold = config::Hold { max_age: Some(config::Millis(2_000)), ..config::Hold::default() };
    let mut setup = Setup::new(&twin, &[config::Relay { hold, ..relay("one") }]);
    setup.options.trim = Some(twin.streams());
    let first = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, slot(0), &[("a", 1.0)])]).await;
    passed(&twin, "one", 1).await;
    let second = setup.start();
    until("the second runs", || status(&second, "one").activity == relay::Activity::Running).await;
    producer.publish(&[scrape(1, slot(1), &[("a", 2.0)])]).await;
    until("the first has stopped", || status(&first, "one").activity == relay::Activity::Failed).await;
    // Both trims ask for it: what is undelivered is older than what the relay may hold.
    setup.sink("one").set(|_| retry());
    let last = producer.publish(&[scrape(1, slot(2), &[("a", 3.0)])]).await;
    passed(&twin, "one", last).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((status(&first, "one").activity, status(&second, "one").position), (relay::Activity::Failed, last));
    setup.sink("one").set(|_| Answer::Delivered);
    let last = producer.publish(&[scrape(1, slot(3), &[("a", 4.0)])]).await;
    passed(&twin, "one", last).await;
    assert_eq!(status(&second, "one").activity, relay::Activity::Running, "what failed before was given up");
    second.stop(Duration::from_secs(5)).await;
}

/// A volume that is full makes a wall at which a base may be older than collectors would let it become.
#[tokio::test(start_paused = true)]
async fn a_base_in_use_outlasts_a_full_stream_though_its_frames_were_delivered_by_a_life_before() {
    let twin = Twin::new(1 << 20);
    let mut setup = Setup::one(&twin);
    let relays = setup.start();
    let (mut producer, at, mut last) = (Producer::new(&twin, "p", 1), slot(0), 0);
    for k in 0..30 {
        last = producer.publish(&[scrape(1, at + k * SLOT, &[("a", k as f64)])]).await;
    }
    passed(&twin, "one", last).await;
    relays.stop(Duration::from_secs(5)).await;
    last = producer.publish(&[scrape(1, at + 30 * SLOT, &[("a", 30.0)])]).await;
    // The trim asks for space before the relay reads.
    setup.options.trim = Some(twin.streams());
    setup.options.full.notify_one();
    twin.dead.set_down(true);
    let relays = setup.start();
    tokio::time::sleep(Duration::from_secs(5)).await;
    twin.dead.set_down(false);
    let after = passed(&twin, "one", last).await;
    assert_eq!((after.totals.delivered, after.totals.lost), (31, 0));
    relays.stop(Duration::from_secs(5)).await;
}
