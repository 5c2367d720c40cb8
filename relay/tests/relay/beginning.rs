//! What a damaged store takes before a relay has read anything of it, or of the end of a life, is booked; what was never the relay's own is not.

use std::time::Duration;

use bundled_nats::ledger::{Entry, Stage, folded_minutes, relay_minutes};
use bundled_nats::port::{Headers, Log as _, State as _};
use bundled_nats::twin::Twin;
use relay::backoff::now_ms;

use crate::harness::{Producer, SLOT, Setup, audited, balanced, checkpoint, ledger, passed, retry, scrape, slot};

/// A relay that has begun, and delivers nothing yet.
async fn waiting(twin: &Twin) -> (Setup, relay::Relays) {
    let setup = Setup::one(twin);
    setup.sink("one").set(|_| retry());
    let relays = setup.start();
    passed(twin, "one", 0).await;
    (setup, relays)
}

async fn publish(producer: &mut Producer, messages: u64) {
    producer.rebase();
    for _ in 0..messages {
        let slot_ms = slot(0) + producer.n as i64 * SLOT + producer.epoch as i64 % SLOT;
        producer.publish(&[scrape(1, slot_ms, &[("a", 1.0), ("b", 0.0)])]).await;
    }
}

/// The next life of a producer.
fn again(producer: &mut Producer) {
    (producer.epoch, producer.n, producer.total) = (producer.epoch + 1, 0, 0);
}

/// Waits until the relay has passed a sequence, and says what it delivered and lost; the ledger says the same.
async fn outcome(setup: &Setup, seq: u64) -> (u64, u64) {
    setup.sink("one").set(|_| relay::sink::Answer::Delivered);
    let after = passed(&setup.twin, "one", seq).await;
    balanced(&after);
    let booked = ledger(&setup.twin);
    assert!(booked.iter().all(|entry| (entry.stage, entry.reason.as_str()) == (Stage::Stream, "rollback")), "{booked:?}");
    assert_eq!(booked.iter().map(|entry| entry.samples).sum::<u64>(), after.totals.lost);
    assert_eq!(booked.iter().map(|entry| entry.frames).sum::<u64>() * 2, after.totals.lost, "two samples a message");
    (after.totals.delivered, after.totals.lost)
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_of_a_producer_that_began_later_is_booked() {
    for (epoch, lost) in [(now_ms() as u64, 6), (1, 0)] {
        let twin = Twin::new(u64::MAX);
        let (setup, relays) = waiting(&twin).await;
        let mut producer = Producer::new(&twin, "p", epoch);
        publish(&mut producer, 3).await;
        twin.raw.tear(3);
        publish(&mut producer, 1).await;
        assert_eq!(outcome(&setup, 1).await, (2, lost), "of epoch {epoch}");
        relays.stop(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_there_before_a_relay_began_is_not_its_own() {
    for (start, lost) in [(config::Start::Earliest, 4), (config::Start::Now, 0)] {
        let twin = Twin::new(u64::MAX);
        let mut producer = Producer::new(&twin, "p", now_ms() as u64);
        publish(&mut producer, 3).await;
        publish(&mut producer, 2).await;
        twin.raw.purge(4).await.expect("up");
        let mut setup = Setup::one(&twin);
        setup.relays[0].start = start;
        setup.sink("one").set(|_| retry());
        let relays = setup.start();
        passed(&twin, "one", 0).await;
        drop(relays);
        twin.raw.tear(2);
        publish(&mut producer, 4).await;
        let relays = setup.start();
        assert_eq!(outcome(&setup, 7).await, (8, lost), "of {start:?}");
        relays.stop(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_of_the_end_of_a_life_is_booked_when_the_next_one_is_met() {
    for killed in [false, true] {
        let twin = Twin::new(u64::MAX);
        let (setup, relays) = waiting(&twin).await;
        let mut producer = Producer::new(&twin, "p", now_ms() as u64);
        publish(&mut producer, 4).await;
        setup.sink("one").script(|script| script.answers.extend([relay::sink::Answer::Delivered]));
        passed(&twin, "one", 1).await;
        match killed {
            true => {
                tokio::time::sleep(Duration::from_secs(10)).await;
                drop(relays);
            }
            false => relays.stop(Duration::from_secs(5)).await,
        }
        twin.raw.tear(4);
        again(&mut producer);
        publish(&mut producer, 2).await;
        let relays = setup.start();
        assert_eq!(outcome(&setup, 2).await, (2 + 4, 3 * 2), "killed: {killed}");
        relays.stop(Duration::from_secs(5)).await;
        publish(&mut producer, 1).await;
        let relays = setup.start();
        assert_eq!(outcome(&setup, 3).await, (2 + 6, 3 * 2), "nothing is booked twice");
        relays.stop(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_life_that_went_whole_is_booked() {
    let twin = Twin::new(u64::MAX);
    let (setup, relays) = waiting(&twin).await;
    let mut producer = Producer::new(&twin, "p", now_ms() as u64);
    publish(&mut producer, 4).await;
    relays.stop(Duration::from_secs(5)).await;
    assert_eq!(checkpoint(&twin, "one").await.expect("written").seq, 0);
    twin.raw.tear(4);
    again(&mut producer);
    publish(&mut producer, 1).await;
    let relays = setup.start();
    assert_eq!(outcome(&setup, 1).await, (2, 8));
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_turns_knows_whom_it_had_met() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::one(&twin);
    setup.relays[0].catch_up = config::CatchUp { order: config::CatchUpOrder::FreshFirst, after: config::Millis(1_000), rate: None };
    let relays = setup.start();
    passed(&twin, "one", 0).await;
    let (mut silent, mut other) = (Producer::new(&twin, "silent", now_ms() as u64), Producer::new(&twin, "other", now_ms() as u64));
    publish(&mut silent, 3).await;
    passed(&twin, "one", 3).await;
    twin.raw.purge_of(&silent.subject(), 4).await.expect("up");
    setup.sink("one").set(|_| retry());
    for _ in 0..5 {
        publish(&mut other, 1).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    setup.sink("one").set(|_| relay::sink::Answer::Delivered);
    passed(&twin, "one", 8).await;
    publish(&mut silent, 1).await;
    assert_eq!(outcome(&setup, 9).await.1, 0);
    relays.stop(Duration::from_secs(5)).await;
}

/// What took the state store's block took the position: nobody knows what was delivered, so all that is there goes again, under the same keys.
#[tokio::test(start_paused = true)]
async fn who_lost_its_checkpoint_delivers_all_there_is_again_and_who_was_forgotten_begins_anew() {
    // Whether the checkpoint is lost, whether the ledger was folded, whether the relay was forgotten after that.
    for (lost, folded, forgotten) in [(true, false, false), (true, true, false), (false, false, true), (true, false, true)] {
        let twin = Twin::new(u64::MAX);
        let mut setup = Setup::one(&twin);
        setup.relays[0].start = config::Start::Now;
        setup.sink("one").script(|script| script.answers.extend([relay::sink::Answer::Delivered]));
        setup.sink("one").set(|_| retry());
        let relays = setup.start();
        passed(&twin, "one", 0).await;
        let mut producer = Producer::new(&twin, "p", now_ms() as u64);
        publish(&mut producer, 2).await;
        passed(&twin, "one", 1).await;
        drop(relays);
        if lost {
            twin.state.delete(&relay::checkpoint::key("one")).await.expect("up");
        }
        if folded {
            let subject = relay_minutes("one");
            let last = twin.ledger.last(&subject).await.expect("up").expect("it has begun");
            twin.ledger.publish(&folded_minutes(&subject), &Headers::default(), last.payload, None).await.expect("up");
            twin.ledger.purge_of(&subject, u64::MAX).await.expect("up");
        }
        if forgotten {
            let said = relay::forget::forget(&twin.streams(), "one", &Default::default()).await.expect("up").expect("it was there");
            assert_eq!(said.lost_samples, if lost { 4 } else { 2 });
            assert_eq!(relay::forget::forget(&twin.streams(), "one", &Default::default()).await.expect("up"), None);
        }
        setup.sink("one").set(|_| relay::sink::Answer::Delivered);
        let relays = setup.start();
        if forgotten {
            passed(&twin, "one", 2).await;
        }
        publish(&mut producer, 1).await;
        let after = passed(&twin, "one", 3).await;
        balanced(&after);
        assert_eq!((after.totals.delivered, after.totals.lost), (if forgotten { 2 } else { 6 }, 0), "{lost} {folded} {forgotten}");
        relays.stop(Duration::from_secs(5)).await;
        let taken = setup.sink("one").calls().into_iter().filter(|call| matches!(call.answer, relay::sink::Answer::Delivered));
        let keys: Vec<String> = taken.map(|call| call.key).collect();
        assert_eq!((keys.len(), keys[0] == keys[1]), (if forgotten { 2 } else { 4 }, !forgotten), "{keys:?}");
        let statement = audited(&setup, (slot(0), slot(9))).await;
        assert!(statement.balanced, "{lost} {folded} {forgotten}: {:?}", statement.holes);
    }
}

/// What was booked of messages that the stream has no more stays; of the others each counts once.
#[tokio::test(start_paused = true)]
async fn who_lost_its_checkpoint_keeps_what_it_had_booked_of_what_is_gone() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let (mut producer, began) = (Producer::new(&twin, "p", now_ms() as u64), now_ms());
    let relays = setup.start();
    for k in 0..4 {
        producer.rebase();
        let last = producer.publish(&[scrape(1, began + k * 700_000, &[("a", 1.0), ("b", 0.0)])]).await;
        passed(&twin, "one", last).await;
        // Long enough for a booking, which the next message takes along.
        tokio::time::sleep(Duration::from_secs(700)).await;
    }
    drop(relays);
    twin.raw.purge(3).await.expect("up");
    twin.state.delete(&relay::checkpoint::key("one")).await.expect("up");
    let relays = setup.start();
    assert_eq!(passed(&twin, "one", 4).await.totals.delivered, 4);
    relays.stop(Duration::from_secs(5)).await;
    let statement = audited(&setup, (began, began + 4 * 700_000)).await;
    let terms = &statement.relays[0];
    assert_eq!((terms.scraped, terms.delivered, statement.balanced), (8, 8, true), "{:?}", statement.holes);
}

/// One that waits for its sink has nothing to write, and without its position nothing can be trimmed.
#[tokio::test(start_paused = true)]
async fn a_position_that_is_gone_under_a_relay_that_waits_is_written_again() {
    let twin = Twin::new(1 << 20);
    let mut setup = Setup::one(&twin);
    setup.options.trim = Some(twin.streams());
    setup.sink("one").script(|script| script.answers.extend([relay::sink::Answer::Delivered]));
    setup.sink("one").set(|_| retry());
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", now_ms() as u64);
    publish(&mut producer, 2).await;
    passed(&twin, "one", 1).await;
    twin.state.delete(&relay::checkpoint::key("one")).await.expect("up");
    passed(&twin, "one", 1).await;
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_booked_means_nothing_for_other_messages_under_the_same_sequences() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let at = slot(0);
    producer.publish(&[scrape(1, at, &[("a", 0.0)])]).await;
    passed(&twin, "one", 1).await;
    relays.stop(Duration::from_secs(5)).await;
    // As if sequences up to 9 had been given up just before a kill, and then the tail was torn.
    let entry = Entry {
        at_ms: 1,
        stage: Stage::Relay,
        relay: Some("one".into()),
        producer: None,
        reason: "full".into(),
        samples: 8,
        frames: 8,
        seqs: Some((2, 9)),
        slots: None,
        target: None,
    };
    let payload = serde_json::to_vec(&entry).expect("JSON").into();
    twin.ledger.publish("strata.ledger.relay.one.full", &Default::default(), payload, None).await.expect("up");
    (producer.n, producer.total) = (9, 9);
    producer.rebase();
    for k in 10..=12 {
        producer.publish(&[scrape(1, at + k * SLOT, &[("a", k as f64)])]).await;
    }
    let relays = setup.start();
    let after = passed(&twin, "one", 4).await;
    balanced(&after);
    assert_eq!((after.totals.delivered, after.totals.lost), (4, 8));
    assert_eq!(ledger(&twin)[1].reason, "rollback");
    relays.stop(Duration::from_secs(5)).await;
    // Nor for a life after that, whose position is there.
    let relays = setup.start();
    producer.publish(&[scrape(1, at + 13 * SLOT, &[("a", 13.0)])]).await;
    let after = passed(&twin, "one", 5).await;
    balanced(&after);
    assert_eq!((after.totals.delivered, after.totals.lost), (5, 8));
    relays.stop(Duration::from_secs(5)).await;
}
