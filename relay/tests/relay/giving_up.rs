use std::sync::Arc;
use std::time::Duration;

use bundled_nats::ledger::Stage;
use bundled_nats::port::Log;
use bundled_nats::twin::Twin;
use relay::sink::Answer;
use tokio::sync::Notify;

use crate::harness::*;

pub const WALL: u64 = 200_000;

pub fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("metric_{i}")).collect()
}

/// Publishes one message as a collector does: refused, it tells the trim and tries again; bases are renewed every eighth of the wall.
pub async fn patiently(producer: &mut Producer, twin: &Twin, full: &Arc<Notify>, scrapes: &[Scrape], since: &mut u64) -> bool {
    for _ in 0..2_000 {
        if *since > WALL / 8 {
            producer.rebase();
            *since = 0;
        }
        let frames: Vec<(Vec<u8>, u64)> = scrapes.iter().map(|scrape| producer.frame(scrape, 0, 1)).collect();
        let mut message = sample::MessageBuilder::new();
        frames.iter().for_each(|(frame, _)| message.push(frame));
        let payload = message.finish();
        let bytes = payload.len() as u64;
        let samples = frames.iter().map(|(_, n)| n).sum();
        let at = scrapes[0].slot_ms;
        if producer.publish_payload(payload, samples, (at, at), false).await.is_some() {
            *since += bytes + 200;
            // As a publisher waits for each acknowledgement: relays get their turn.
            tokio::time::sleep(Duration::from_millis(2)).await;
            return true;
        }
        // A frame that was dropped may have been a base.
        producer.rebase();
        full.notify_one();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(twin.raw.info().await.expect("up").bytes <= WALL);
    }
    false
}

/// Starts relays that begin to read when the trim has asked for what it wants.
async fn late(setup: &Setup) -> relay::Relays {
    setup.twin.dead.set_down(true);
    let relays = setup.start();
    tokio::time::sleep(Duration::from_secs(5)).await;
    setup.twin.dead.set_down(false);
    relays
}

pub fn page(names: &[String], target: u64, at: i64, k: i64) -> Scrape {
    let values: Vec<(&str, f64)> = names.iter().enumerate().map(|(i, n)| (n.as_str(), ((k * 7919 + i as i64) as f64).sin())).collect();
    scrape(target, at, &values)
}

#[tokio::test(start_paused = true)]
async fn ten_times_the_wall_with_one_relay_stopped_is_counted_to_the_sample() {
    let twin = Twin::new(WALL);
    let mut setup = Setup::new(&twin, &[relay("good"), relay("dead")]);
    setup.options.trim = Some(twin.streams());
    let full = setup.options.full.clone();
    setup.sink("dead").set(|_| retry());
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let (names, at) = (names(50), slot(0));
    let (mut since, mut published, mut bytes) = (0, 0u64, 0u64);
    let mut k = 0;
    while bytes < 10 * WALL {
        k += 1;
        let scrapes: Vec<Scrape> = (1..=3).map(|t| page(&names, t, at + k * SLOT, k)).collect();
        assert!(patiently(&mut producer, &twin, &full, &scrapes, &mut since).await, "the stream stays full at {k}");
        published += 150;
        bytes += 1_400;
    }
    let good = passed(&twin, "good", k as u64).await;
    balanced(&good);
    assert_eq!((good.totals.delivered, good.totals.lost), (published, 0));
    setup.sink("dead").set(|_| Answer::Delivered);
    let dead = passed(&twin, "dead", k as u64).await;
    balanced(&dead);
    assert_eq!(dead.totals.read, published);
    assert!(dead.totals.lost > 0 && dead.totals.delivered > 0, "{:?}", dead.totals);
    let booked = ledger(&twin);
    assert!(booked.iter().all(|e| e.stage == Stage::Relay && e.relay.as_deref() == Some("dead")));
    assert!(booked.iter().all(|e| e.reason == "full"), "nothing hung in the air: {booked:?}");
    assert_eq!(booked.iter().map(|e| e.samples).sum::<u64>(), dead.totals.lost);
    assert_eq!(setup.sink("dead").delivered().len() as u64, dead.totals.delivered);
    assert!(twin.dead.messages().is_empty());
    // Between the given up and the head nothing is missing.
    assert_eq!(setup.sink("good").delivered()[(published - dead.totals.delivered) as usize..], setup.sink("dead").delivered());
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_blocks_stops_the_publisher_until_it_moves() {
    let twin = Twin::new(WALL);
    let mut blocking = relay("one");
    blocking.hold.on_full = config::OnFull::Block;
    let mut setup = Setup::new(&twin, &[blocking]);
    setup.options.trim = Some(twin.streams());
    let full = setup.options.full.clone();
    let sink = setup.sink("one");
    sink.set(|_| retry());
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let (names, at) = (names(200), slot(0));
    let (mut since, mut k) = (0, 0);
    while patiently(&mut producer, &twin, &full, &[page(&names, 1, at + k * SLOT, k)], &mut since).await {
        k += 1;
        assert!(k < 1000, "never full");
    }
    assert!(ledger(&twin).is_empty());
    sink.set(|_| Answer::Delivered);
    until("all is delivered", || sink.delivered().len() as i64 == 200 * k).await;
    assert!(patiently(&mut producer, &twin, &full, &[page(&names, 1, at + k * SLOT, k)], &mut since).await);
    until("it goes on", || sink.delivered().len() as i64 == 200 * (k + 1)).await;
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn bases_of_targets_that_are_gone_stop_no_publisher_while_a_sink_is_away() {
    let twin = Twin::new(WALL);
    let mut setup = Setup::one(&twin);
    setup.options.trim = Some(twin.streams());
    let (full, sink) = (setup.options.full.clone(), setup.sink("one"));
    sink.set(|_| retry());
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let (names, at) = (names(1200), slot(0));
    let mut since = 0;
    // Each target is there once. No more is given up at a time than what waits for the sink already, with bases that were needed when it was read.
    for k in 1..=100_i64 {
        let one = page(&names, k.unsigned_abs(), at + k * SLOT, k);
        assert!(patiently(&mut producer, &twin, &full, &[one], &mut since).await, "the stream stays full at {k}");
    }
    sink.set(|_| Answer::Delivered);
    let after = passed(&twin, "one", 100).await;
    balanced(&after);
    assert_eq!((after.totals.read, sink.delivered().len() as u64), (120_000, after.totals.delivered));
    assert!(ledger(&twin).iter().all(|entry| entry.reason == "full"), "{:?}", ledger(&twin));
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_where_the_stream_was_torn_is_not_taken_for_delivered() {
    for on_full in [config::OnFull::Block, config::OnFull::Drop] {
        let twin = Twin::new(WALL);
        let mut setup = Setup::new(&twin, &[relay("one")]);
        setup.relays[0].hold.on_full = on_full;
        setup.options.trim = Some(twin.streams());
        let (full, sink) = (setup.options.full.clone(), setup.sink("one"));
        let mut producer = Producer::new(&twin, "p", 1);
        let (names, at) = (names(200), slot(0));
        for k in 0..5 {
            producer.rebase();
            producer.publish(&[page(&names, 1, at + k * SLOT, k)]).await;
        }
        let relays = setup.start();
        assert_eq!(passed(&twin, "one", 5).await.floor(), 5);
        relays.stop(Duration::from_secs(5)).await;
        twin.raw.tear(5);
        producer.rebase();
        sink.set(|_| retry());
        let relays = setup.start();
        let (mut since, mut k) = (0, 5);
        while k < 300 && patiently(&mut producer, &twin, &full, &[page(&names, 1, at + k * SLOT, k)], &mut since).await {
            k += 1;
        }
        assert_eq!(k == 300, on_full == config::OnFull::Drop, "{k} messages are there or given up");
        sink.set(|_| Answer::Delivered);
        let booked = || ledger(&twin).iter().map(|entry| entry.samples).sum::<u64>();
        until("all is delivered or booked", || sink.delivered().len() as u64 + booked() == 200 * k.unsigned_abs()).await;
        assert_eq!(booked() > 0, on_full == config::OnFull::Drop);
        relays.stop(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn hold_gives_up_what_is_too_old_even_in_the_middle_of_a_retry() {
    let twin = Twin::new(u64::MAX);
    let mut short = relay("short");
    short.hold.max_age = Some(config::Millis(60_000));
    let mut setup = Setup::new(&twin, &[short, relay("long")]);
    setup.options.trim = Some(twin.streams());
    setup.sink("short").set(|_| Answer::Retry { after: Some(Duration::from_secs(100_000)), reason: "much later".into() });
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let at = slot(0);
    for k in 0..20 {
        producer.publish(&[scrape(1, at + k * SLOT, &[("a", 1.0), ("b", 2.0)])]).await;
        tokio::time::sleep(Duration::from_secs(15)).await;
    }
    let after = passed(&twin, "short", 15).await;
    balanced(&after);
    assert_eq!(after.totals.lost, after.seq * 2);
    assert_eq!(ledger(&twin).iter().map(|e| e.samples).sum::<u64>(), after.totals.lost);
    assert!(ledger(&twin).iter().all(|e| e.reason == "max_age" && e.slots.is_some()));
    assert_eq!(passed(&twin, "long", 20).await.totals.delivered, 40);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_booked_before_a_kill_is_neither_sent_nor_booked_again() {
    let twin = Twin::new(u64::MAX);
    let mut config = relay("one");
    config.hold.max_bytes = Some(config::ByteSize(2_000));
    let mut setup = Setup::new(&twin, &[config]);
    setup.options.trim = Some(twin.streams());
    let sink = setup.sink("one");
    sink.set(|_| retry());
    let relays = setup.start();
    passed(&twin, "one", 0).await;
    let mut producer = Producer::new(&twin, "p", 1);
    let at = slot(0);
    for k in 0..30 {
        producer.publish(&[scrape(1, at + k * SLOT, &[("a", 1.0), ("b", 2.0)])]).await;
    }
    until("something is booked", || !ledger(&twin).is_empty()).await;
    let booked: u64 = ledger(&twin).iter().map(|e| e.samples).sum();
    drop(relays);
    // The checkpoint is as if it had not been written after the booking.
    let mut old = checkpoint(&twin, "one").await.expect("written");
    let passed_seq = old.seq;
    (old.seq, old.id, old.positions, old.totals) = (0, None, Default::default(), Default::default());
    old.warm_from = 1;
    let streams = twin.streams();
    streams.state.delete("relay.one").await.expect("up");
    streams.state.put("relay.one", serde_json::to_vec(&old).expect("JSON").into(), 0).await.expect("up");
    sink.set(|_| Answer::Delivered);
    let relays = setup.start();
    let after = passed(&twin, "one", 30).await;
    balanced(&after);
    assert!(passed_seq > 0);
    assert_eq!(after.totals.lost, booked);
    assert_eq!(ledger(&twin).iter().map(|e| e.samples).sum::<u64>(), booked);
    assert_eq!(sink.delivered().len() as u64, 60 - booked);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn delivered_messages_go_after_the_replay_window_and_the_bases_stay() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::one(&twin);
    setup.options.trim = Some(twin.streams());
    setup.options.replay_window = Duration::from_secs(600);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 0..240 {
        producer.publish(&[scrape(1, slot(0), &[("a", k as f64)])]).await;
        tokio::time::sleep(Duration::from_secs(15)).await;
    }
    passed(&twin, "one", 240).await;
    let info = twin.raw.info().await.expect("up");
    // 600 s of window and 1,200 s of two key periods are 120 messages.
    assert!((118..=124).contains(&info.messages), "{}", info.messages);
    assert!(checkpoint(&twin, "one").await.expect("written").warm_from >= info.first_seq);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_left_the_configuration_holds_space_for_a_while() {
    let twin = Twin::new(u64::MAX);
    let mut both = Setup::new(&twin, &[relay("stays"), relay("leaves")]);
    both.sink("leaves").set(|_| retry());
    both.options.trim = Some(twin.streams());
    both.options.replay_window = Duration::ZERO;
    both.options.retired_hold = Duration::from_secs(7200);
    let relays = both.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, slot(0), &[("a", 1.0)])]).await;
    passed(&twin, "stays", 1).await;
    relays.stop(Duration::from_secs(5)).await;
    both.relays.pop();
    let relays = both.start();
    for k in 0..=150 {
        producer.publish(&[scrape(1, slot(0), &[("a", k as f64)])]).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        if k == 100 {
            assert_eq!(twin.raw.info().await.expect("up").first_seq, 1);
        }
    }
    let first = twin.raw.info().await.expect("up").first_seq;
    // It held for two hours; what came later is none of its loss.
    let lost = left(&twin, "leaves", 1);
    assert!((119..=125).contains(&lost) && lost < first, "{lost} messages are booked, the stream begins at {first}");
    assert_eq!(checkpoint(&twin, "leaves").await.map(|known| known.totals.lost), Some(lost));
    relays.stop(Duration::from_secs(5)).await;
}

/// What is booked of a relay that left: range after range from the first message on, and nothing of anybody else; the last sequence of it.
fn left(twin: &Twin, relay: &str, samples: u64) -> u64 {
    ledger(twin).iter().fold(0, |before, entry| {
        assert_eq!((entry.stage, entry.relay.as_deref(), entry.reason.as_str()), (Stage::Relay, Some(relay), "left"));
        let (from, to) = entry.seqs.expect("it was in the stream");
        assert_eq!((from, entry.frames, entry.samples), (before + 1, to - before, (to - before) * samples));
        to
    })
}

#[tokio::test(start_paused = true)]
async fn neither_a_relay_that_left_nor_a_replay_that_hangs_stops_the_publisher() {
    let twin = Twin::new(WALL);
    let mut setup = Setup::new(&twin, &[relay("stays"), relay("leaves")]);
    setup.sink("leaves").set(|_| retry());
    setup.options.trim = Some(twin.streams());
    let full = setup.options.full.clone();
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[page(&names(200), 1, slot(0), 0)]).await;
    passed(&twin, "stays", 1).await;
    relays.stop(Duration::from_secs(5)).await;
    setup.relays.pop();
    let relays = setup.start();
    let hangs = Setup::new(&twin, &[relay("stays")]);
    hangs.sink("stays").set(|_| retry());
    let asked = relay::replay::Request { relay: "stays".to_owned(), ..crate::replaying::request(0, i64::MAX) };
    let token = tokio_util::sync::CancellationToken::new();
    let hung = relay::replay::Replay::start(&hangs.relays[0], asked, &twin.streams(), &hangs.options(), &token).await.expect("begins");
    let mut since = 0;
    for k in 1..=400 {
        assert!(patiently(&mut producer, &twin, &full, &[page(&names(200), 1, slot(k), k)], &mut since).await, "stuck at {k}");
    }
    let last = twin.raw.info().await.expect("up");
    assert!(last.first_seq > 100, "{last:?}");
    balanced(&passed(&twin, "stays", last.last_seq).await);
    // The relay that is configured lost nothing, and no message went that is not booked for the other.
    let lost = left(&twin, "leaves", 200);
    assert!(lost + 1 >= last.first_seq, "booked up to {lost}: {last:?}");
    assert_eq!(hung.progress().borrow().position, 0, "the replay hung all the time");
    relays.stop(Duration::from_secs(5)).await;
    // It comes back: what was booked is no second loss.
    setup.relays.push(relay("leaves"));
    setup.sink("leaves").set(|_| Answer::Delivered);
    let relays = setup.start();
    let back = passed(&twin, "leaves", last.last_seq).await;
    balanced(&back);
    assert_eq!(back.totals.read, last.last_seq * 200);
    assert!(ledger(&twin).iter().all(|entry| entry.reason != "rollback"), "{:?}", ledger(&twin));
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_forgotten_relay_had_not_delivered_is_booked_once() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let at = slot(0);
    for k in 0..5 {
        producer.publish(&[scrape(1, at + k * SLOT, &[("a", 1.0), ("b", 2.0)])]).await;
        passed(&twin, "one", 2.min(k.unsigned_abs() + 1)).await;
        if k == 1 {
            setup.sink("one").set(|_| retry());
        }
    }
    relays.stop(Duration::from_secs(5)).await;
    // What is gone from between is lost for it as well.
    twin.raw.corrupt(4);
    let (streams, token) = (twin.streams(), tokio_util::sync::CancellationToken::new());
    let position = streams.state.get("relay.one").await.expect("up").expect("there").value;
    for life in 0..2 {
        let forgotten = relay::forget::forget(&streams, "one", &token).await.expect("up").expect("it was there");
        assert_eq!(forgotten.lost_samples, if life == 0 { 6 } else { 0 });
        assert!(checkpoint(&twin, "one").await.is_none());
        let booked: Vec<_> = ledger(&twin).into_iter().map(|entry| (entry.reason, entry.samples, entry.seqs, entry.slots)).collect();
        assert_eq!(booked, [("forgotten".to_owned(), 6, Some((3, 5)), Some((at + 2 * SLOT, at + 4 * SLOT)))]);
        // As if it had been killed before the position was gone.
        streams.state.put("relay.one", position.clone(), 0).await.expect("up");
    }
    streams.state.delete("relay.one").await.expect("up");
    assert_eq!(relay::forget::forget(&streams, "one", &token).await.expect("up"), None);
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_checkpoint_yields_at_the_wall_and_is_booked() {
    let twin = Twin::new(WALL);
    let mut setup = Setup::new(&twin, &[relay("good"), relay("bad")]);
    setup.options.trim = Some(twin.streams());
    twin.streams().state.put("relay.bad", "{\"version\":7".into(), 0).await.expect("up");
    let (full, registry) = (setup.options.full.clone(), prometheus::Registry::new());
    let relays = setup.start_with(&registry);
    let mut producer = Producer::new(&twin, "p", 1);
    let (names, mut since) = (names(200), 0);
    for k in 1..=400 {
        assert!(patiently(&mut producer, &twin, &full, &[page(&names, 1, slot(k), k)], &mut since).await, "stuck at {k}");
    }
    let good = passed(&twin, "good", 400).await;
    assert_eq!((good.totals.delivered, good.totals.lost), (80_000, 0));
    assert_eq!(status(&relays, "bad").activity, relay::Activity::Failed);
    let first = twin.raw.info().await.expect("up").first_seq;
    let booked = ledger(&twin);
    assert!(first > 100 && booked.iter().all(|e| e.relay.as_deref() == Some("bad") && e.reason == "full"));
    // Range follows range, and no message went that is not in one.
    let mut next = 1;
    for entry in &booked {
        let (from, to) = entry.seqs.expect("it was in the stream");
        assert_eq!((from, entry.samples, entry.frames), (next, (to + 1 - from) * 200, to + 1 - from));
        next = to + 1;
    }
    assert!(first <= next);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_another_process_took_gives_up_when_that_is_gone() {
    let twin = Twin::new(WALL);
    let mut setup = Setup::one(&twin);
    setup.options.trim = Some(twin.streams());
    let full = setup.options.full.clone();
    setup.sink("one").set(|_| retry());
    let first = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let (names, mut since) = (names(200), 0);
    producer.publish(&[page(&names, 1, slot(0), 0)]).await;
    until("it tries", || !setup.sink("one").calls().is_empty()).await;
    let mut other = checkpoint(&twin, "one").await.expect("it is written at the start");
    other.owner = "another".into();
    let state = twin.streams().state;
    let entry = state.get("relay.one").await.expect("up").expect("there");
    state.put("relay.one", serde_json::to_vec(&other).expect("JSON").into(), entry.revision).await.expect("up");
    setup.sink("one").set(|_| Answer::Delivered);
    until("it has ended", || status(&first, "one").activity == relay::Activity::Failed).await;
    for k in 1..=400 {
        assert!(patiently(&mut producer, &twin, &full, &[page(&names, 1, slot(k), k)], &mut since).await, "stuck at {k}");
    }
    balanced(&passed(&twin, "one", 401).await);
    first.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_base_of_a_target_that_is_gone_holds_a_full_stream_not_after_a_restart_either() {
    let twin = Twin::new(WALL);
    let mut setup = Setup::one(&twin);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let (names, at) = (names(50), slot(0));
    let mut seq = producer.publish(&[page(&names, 2, at, 0)]).await;
    let (mut since, mut k) = (0, 0);
    while twin.raw.info().await.expect("up").bytes < WALL * 95 / 100 {
        k += 1;
        if k % 20 == 0 {
            producer.rebase();
        }
        seq = producer.publish(&[page(&names, 1, at + k * SLOT, k)]).await;
    }
    passed(&twin, "one", seq).await;
    relays.stop(Duration::from_secs(5)).await;
    setup.options.trim = Some(twin.streams());
    let full = setup.options.full.clone();
    let relays = late(&setup).await;
    for more in 1..=50 {
        let scrapes = [page(&names, 1, at + (k + more) * SLOT, k + more)];
        assert!(patiently(&mut producer, &twin, &full, &scrapes, &mut since).await, "the stream stays full at {more}");
    }
    until("all is delivered", || setup.sink("one").delivered().len() as i64 == 50 * (k + 51)).await;
    relays.stop(Duration::from_secs(5)).await;
}
