//! Pages whose parts come in messages of their own: what becomes of a part that waits for another when the stream loses some.

use std::time::Duration;

use bundled_nats::ledger::Stage;
use bundled_nats::twin::Twin;
use sample::KEY_FRAME_PERIOD;

use crate::harness::*;

/// Publishes one of the two parts of a page: the first one has two series, the second one has one.
async fn part(producer: &mut Producer, slot_ms: i64, part: u16) -> u64 {
    let value = (slot_ms / SLOT % 1000) as f64;
    let values: &[(&str, f64)] = if part == 0 { &[("a", value), ("b", value)] } else { &[("c", value)] };
    let frame = producer.frame(&scrape(1, slot_ms, values), part, 2);
    producer.publish_frames(&[frame], (slot_ms, slot_ms)).await
}

/// How the life of a relay ends at which a part waits.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// By itself, and so does one after it that reads nothing new.
    Stopped,
    Killed,
    /// It does not: it reads again.
    CutOff,
}

/// A part waits, and the disk loses a message: as what the part is booked then. `at`: the first slot.
async fn without(lost: u64, booked: (Stage, &str), end: End, at: i64) {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let (sink, mut producer) = (setup.sink("one"), Producer::new(&twin, "p", 1));
    let mut relays = setup.start();
    part(&mut producer, at, 0).await;
    part(&mut producer, at, 1).await;
    let waits = part(&mut producer, at + SLOT, 0).await;
    let before = passed(&twin, "one", waits).await;
    assert_eq!((before.totals.read, sink.delivered().len()), (3, 3));
    match end {
        End::Stopped => {
            relays.stop(Duration::from_secs(5)).await;
            twin.raw.corrupt(lost);
            setup.start().stop(Duration::from_secs(5)).await;
            relays = setup.start();
        }
        End::Killed => {
            drop(relays);
            twin.raw.corrupt(lost);
            relays = setup.start();
        }
        End::CutOff => {
            twin.raw.corrupt(lost);
            twin.raw.close_readers();
        }
    }
    part(&mut producer, at + SLOT, 1).await;
    producer.rebase();
    part(&mut producer, at + 2 * SLOT, 0).await;
    let last = part(&mut producer, at + 2 * SLOT, 1).await;
    let after = passed(&twin, "one", last).await;
    relays.stop(Duration::from_secs(5)).await;

    assert_eq!((after.totals.read, after.totals.delivered, after.totals.lost), (9, 7, 2), "{lost} {end:?}");
    balanced(&after);
    assert_eq!(sink.delivered().len(), 7, "nothing comes twice: {lost} {end:?}");
    let entries = ledger(&twin);
    let entries: Vec<_> = entries.iter().map(|entry| (entry.stage, entry.reason.as_str(), entry.samples, entry.slots)).collect();
    assert_eq!(entries, [(booked.0, booked.1, 2, Some((at + SLOT, at + SLOT)))], "{lost} {end:?}");
    let statement = audited(&setup, (at, at + 10 * SLOT)).await;
    assert!(statement.balanced, "{lost} {end:?}: {statement:?}");
}

#[tokio::test(start_paused = true)]
async fn a_part_that_waits_and_is_lost_is_booked_and_the_rest_of_a_page_before_it_is_not_sent_again() {
    // With its page in the minute of the one before it, and in the next one.
    let minute = slot(0) / 60_000 * 60_000;
    for at in [minute, minute - SLOT] {
        for end in [End::Stopped, End::Killed, End::CutOff] {
            // The part itself.
            without(3, (Stage::Stream, "rollback"), end, at).await;
        }
        for end in [End::Stopped, End::Killed] {
            // Its base: that page was delivered, and half of it is left.
            without(1, (Stage::Relay, "no_base"), end, at).await;
        }
    }
}

/// A relay that stopped by itself while a part of the page of a slot waited.
async fn waits(setup: &Setup, slot_ms: i64) -> Producer {
    let (mut producer, relays) = (Producer::new(&setup.twin, "p", 1), setup.start());
    let seq = part(&mut producer, slot_ms, 0).await;
    passed(&setup.twin, "one", seq).await;
    relays.stop(Duration::from_secs(5)).await;
    producer
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_page_that_was_delivered_is_not_sent_again() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let mut producer = waits(&setup, slot(0)).await;
    let relays = setup.start();
    let seq = part(&mut producer, slot(0), 1).await;
    passed(&twin, "one", seq).await;
    relays.stop(Duration::from_secs(5)).await;
    twin.raw.corrupt(1);
    let relays = setup.start();
    producer.rebase();
    let seq = producer.publish(&[scrape(1, slot(1), &[("a", 1.0)])]).await;
    let after = passed(&twin, "one", seq).await;
    assert_eq!((after.totals.read, after.totals.delivered, setup.sink("one").delivered().len()), (4, 4, 4));
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_lost_is_missed_by_time_where_its_producer_says_nothing_more() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let periods = KEY_FRAME_PERIOD.as_millis() as i64 / SLOT;
    waits(&setup, slot(-periods - 1)).await;
    twin.raw.corrupt(1);
    let relays = setup.start();
    let mut other = Producer::new(&twin, "q", 1);
    for (k, lost) in [(-periods - 1, 0), (-1, 0), (0, 2)] {
        let seq = other.publish(&[scrape(2, slot(k), &[("a", 1.0)])]).await;
        let after = passed(&twin, "one", seq).await;
        balanced(&after);
        assert_eq!(after.totals.lost, lost, "{k}");
    }
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_waited_is_not_missed_by_who_takes_other_targets_now() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::one(&twin);
    let mut producer = waits(&setup, slot(0)).await;
    setup.relays[0].from = vec!["others".to_owned()];
    let relays = setup.start();
    let seq = part(&mut producer, slot(0), 1).await;
    let after = passed(&twin, "one", seq).await;
    assert_eq!((after.totals.read, after.totals.lost), (0, 0));
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_part_that_waits_when_its_relay_is_forgotten_is_booked_once() {
    for (other, more, lost) in [(false, false, 2), (false, true, 3), (true, false, 2)] {
        let twin = Twin::new(u64::MAX);
        let setup = Setup::one(&twin);
        let mut producer = waits(&setup, slot(0)).await;
        if other {
            // Another life, that reads new messages of others.
            let relays = setup.start();
            let seq = Producer::new(&twin, "q", 1).publish(&[scrape(2, slot(0), &[("a", 1.0)])]).await;
            passed(&twin, "one", seq).await;
            relays.stop(Duration::from_secs(5)).await;
        }
        if more {
            part(&mut producer, slot(0), 1).await;
        }
        // Whoever forgets it does so later than it stopped.
        tokio::time::advance(Duration::from_secs(1)).await;
        let (streams, token) = (twin.streams(), tokio_util::sync::CancellationToken::new());
        let position = streams.state.get("relay.one").await.expect("up").expect("there").value;
        for life in 0..2 {
            let forgotten = relay::forget::forget(&streams, "one", &token).await.expect("up").expect("it was there");
            assert_eq!(forgotten.lost_samples, if life == 0 { lost } else { 0 }, "{other} {more}");
            let entries = ledger(&twin);
            let booked: Vec<_> = entries.iter().map(|entry| (entry.reason.as_str(), entry.samples)).collect();
            assert_eq!(booked, [("forgotten", lost)]);
            // As if it had been killed before the position was gone.
            streams.state.put("relay.one", position.clone(), 0).await.expect("up");
        }
    }
}
