//! The audit: what it says is what happened, and what does not add up has a name.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use bundled_nats::ledger::{Booking, Entry, Life, Stage, collector_minutes};
use bundled_nats::port::{Headers, Log, State};
use bundled_nats::twin::{Fault, Twin};
use relay::audit::{Hole, Statement, Terms};
use relay::minutes::Open;
use relay::sink::{Answer, Limits};
use sample::TargetId;
use sample::sheet::{Kind, Sheet, minute_of};

use crate::harness::*;

const PAGE: [(&str, f64); 5] = [("a", 1.0), ("b", 2.0), ("bad", 3.0), ("low_1", 4.0), ("low_2", 5.0)];

/// A relay with a filter, and a sink that takes nothing "bad".
fn picky(twin: &Twin) -> Setup {
    let mut one = relay("one");
    let options = serde_json::json!("{__name__=~\"low_.*\"}");
    one.filters = vec![config::Component { name: "drop".into(), options }];
    let setup = Setup::new(twin, &[one]);
    setup.sink("one").set(|lines| if lines.iter().any(|line| line.contains("bad")) { reject() } else { Answer::Delivered });
    setup
}

/// Scraped, delivered, filtered, rejected, lost, still in the stream.
type Told<'s> = (u64, u64, Vec<(&'s str, u64)>, u64, Vec<(&'s str, u64)>, u64);

fn terms(statement: &Statement) -> Told<'_> {
    fn list(reasons: &BTreeMap<String, u64>) -> Vec<(&str, u64)> {
        reasons.iter().map(|(reason, n)| (reason.as_str(), *n)).collect()
    }
    let Terms { scraped, delivered, filtered, rejected, lost, in_stream, .. } = &statement.relays[0];
    (*scraped, *delivered, list(filtered), *rejected, list(lost), *in_stream)
}

/// Reason, target, samples, whether there is a term for it.
fn told(holes: &[Hole]) -> Vec<(&str, &str, u64, bool)> {
    let of = |hole: &'_ Hole| hole.stage != "scrape";
    holes
        .iter()
        .filter(|hole| of(hole))
        .map(|hole| (hole.reason.as_str(), hole.target.instance.as_str(), hole.samples, hole.accounted))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn every_term_is_what_became_of_the_samples_over_kills_and_bookings() {
    let twin = Twin::new(u64::MAX);
    let setup = picky(&twin);
    let mut producer = Producer::new(&twin, "p", 1);
    let (at, mut last) = (slot(0), 0);
    for k in 0..30 {
        let relays = setup.start();
        last = producer.publish(&[scrape(1, at + k * SLOT, &PAGE), scrape(2, at + k * SLOT, &PAGE)]).await;
        passed(&twin, "one", last).await;
        if k % 5 == 4 {
            // Long enough for a booking, which the next message takes along.
            tokio::time::sleep(Duration::from_secs(700)).await;
            last = producer.publish(&[scrape(3, at + k * SLOT, &[("a", 0.0)])]).await;
            passed(&twin, "one", last).await;
        }
        // A kill.
        drop(relays);
    }
    assert!(twin.ledger.messages().iter().filter(|m| Booking::get(&m.headers).is_some()).count() >= 6);
    // What no relay has read yet.
    producer.publish(&[scrape(1, at + 30 * SLOT, &PAGE)]).await;
    let statement = audited(&setup, (at, at + 40 * SLOT)).await;
    assert_eq!(terms(&statement), (311, 126, vec![("drop", 120)], 60, vec![], 5));
    assert_eq!((statement.balanced, told(&statement.holes)), (true, vec![]));
    assert_eq!((statement.collection.targets, statement.collection.slots, statement.collection.samples), (3, 67, 311));
    assert_eq!(passed(&twin, "one", last).await.totals.delivered, 126);
    // Parts of it are balanced as well.
    let half = audited(&setup, (at, at + 15 * SLOT)).await;
    assert!(half.balanced && half.relays[0].scraped < 311, "{:?}", half.holes);
}

#[tokio::test(start_paused = true)]
async fn a_relay_of_a_namespace_takes_its_samples_only_and_the_audit_balances() {
    let twin = Twin::new(u64::MAX);
    let mut one = relay("one");
    one.namespaces = vec!["n1".to_owned(), "n3".to_owned()];
    let setup = Setup::new(&twin, &[one]);
    let mut producer = Producer::new(&twin, "p", 1);
    let at = slot(0);
    for k in 0..12 {
        let relays = setup.start();
        let last = producer.publish(&[scrape(1, at + k * SLOT, &[("mine", 1.0)]), scrape(2, at + k * SLOT, &PAGE)]).await;
        passed(&twin, "one", last).await;
        if k == 6 {
            // Long enough for a booking, which the next message takes along.
            tokio::time::sleep(Duration::from_secs(700)).await;
        }
        drop(relays);
    }
    producer.publish(&[scrape(1, at + 12 * SLOT, &[("mine", 1.0)]), scrape(2, at + 12 * SLOT, &PAGE)]).await;
    assert!(setup.sink("one").delivered().iter().all(|line| line.contains("mine")));
    let statement = audited(&setup, (at, at + 40 * SLOT)).await;
    assert_eq!(terms(&statement), (13, 12, vec![], 0, vec![], 1));
    assert_eq!((statement.balanced, told(&statement.holes)), (true, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_booking_of_which_no_checkpoint_knows_is_made_again_and_counts_once() {
    let twin = Twin::new(u64::MAX);
    let setup = picky(&twin);
    let mut producer = Producer::new(&twin, "p", 1);
    let (at, mut sheets) = (slot(0), 0);
    for k in 0..8 {
        let relays = setup.start();
        let last = producer.publish(&[scrape(1, at + k * SLOT, &PAGE)]).await;
        passed(&twin, "one", last).await;
        tokio::time::sleep(Duration::from_secs(700)).await;
        // The booking is stored, the checkpoint is not: it dies in between.
        twin.state.set_down(true);
        producer.publish(&[scrape(2, at + k * SLOT, &PAGE)]).await;
        let booked = || twin.ledger.messages().iter().filter(|m| Booking::get(&m.headers).is_some()).count();
        until("a booking", || booked() > sheets).await;
        sheets = booked();
        drop(relays);
        twin.state.set_down(false);
    }
    let relays = setup.start();
    passed(&twin, "one", 16).await;
    relays.stop(Duration::from_secs(5)).await;
    let numbers: Vec<u64> = twin.ledger.messages().iter().filter_map(|m| Some(Booking::get(&m.headers)?.number)).collect();
    assert!(numbers.windows(2).any(|pair| pair[1] <= pair[0]), "some were made again: {numbers:?}");
    let statement = audited(&setup, (at, at + 10 * SLOT)).await;
    assert_eq!(terms(&statement), (80, 32, vec![("drop", 32)], 16, vec![], 0));
    assert_eq!((statement.balanced, told(&statement.holes)), (true, vec![]));
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_is_named_with_its_reason_and_the_sums_still_add_up() {
    let twin = Twin::new(u64::MAX);
    let mut one = relay("one");
    one.hold.max_age = Some(config::Millis(60_000));
    let mut setup = Setup::new(&twin, &[one]);
    setup.options.trim = Some(twin.streams());
    setup.sink("one").set(|_| retry());
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let at = slot(0);
    producer.publish(&[scrape(1, at, &PAGE)]).await;
    producer.publish(&[scrape(2, at, &PAGE)]).await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    setup.sink("one").set(|_| Answer::Delivered);
    // A message whose bytes changed, one that is gone from the middle, and a good one.
    let (frame, samples) = producer.frame(&scrape(1, at + SLOT, &PAGE), 0, 1);
    let mut message = sample::MessageBuilder::new();
    message.push(&frame);
    producer.publish_payload(message.finish(), samples, (at + SLOT, at + SLOT), true).await;
    let last = producer.publish(&[scrape(1, at + 2 * SLOT, &PAGE)]).await;
    passed(&twin, "one", last).await;
    relays.stop(Duration::from_secs(5)).await;
    let gone = producer.publish(&[scrape(2, at + 3 * SLOT, &PAGE)]).await;
    let last = producer.publish(&[scrape(1, at + 3 * SLOT, &PAGE)]).await;
    twin.raw.corrupt(gone);
    let relays = setup.start();
    passed(&twin, "one", last).await;
    relays.stop(Duration::from_secs(5)).await;
    let statement = audited(&setup, (at, at + 10 * SLOT)).await;
    assert_eq!(terms(&statement), (30, 10, vec![], 0, vec![("corrupt", 5), ("max_age", 10), ("rollback", 5)], 0));
    let mut holes = told(&statement.holes);
    holes.sort_unstable();
    assert_eq!(holes, [("corrupt", "", 5, true), ("max_age", "t1", 5, true), ("max_age", "t2", 5, true), ("rollback", "", 5, true)]);
    assert!(statement.balanced);
}

/// Slots, and samples by kind, of each target in the open sheet of a relay.
async fn by_target(twin: &Twin) -> BTreeMap<String, (u32, BTreeMap<Kind, i64>)> {
    let open = checkpoint(twin, "one").await.and_then(|checkpoint| checkpoint.minutes).expect("it was counted");
    let (sheet, _) = relay::minutes::read(&twin.streams().ledger, "one", &open).await.expect("up").expect("readable");
    let mut all: BTreeMap<String, (u32, BTreeMap<Kind, i64>)> = BTreeMap::new();
    sheet.each(|cell| {
        let (slots, kinds) = all.entry(cell.target.instance.to_string()).or_default();
        *slots += cell.slots;
        for (term, n) in sheet.terms().iter().zip(cell.counts).filter(|(_, n)| **n != 0) {
            *kinds.entry(term.kind).or_default() += n;
        }
    });
    all
}

#[tokio::test(start_paused = true)]
async fn messages_of_a_window_and_requests_of_a_part_count_at_their_own_targets() {
    let twin = Twin::new(u64::MAX);
    let mut setup = picky(&twin);
    setup.relays[0].batch_time = config::Millis(1000);
    setup.relays[0].hold.max_age = Some(config::Millis(60_000));
    setup.options.trim = Some(twin.streams());
    setup.lanes = 3;
    setup.limits = Limits { bytes_max: 1 << 20, items_max: 6 };
    // One series is away and is given up, wherever its request has others with it; one is refused.
    let sink = setup.sink("one");
    sink.set(|lines| match lines.iter().any(|line| line.contains("bad")) {
        _ if lines.iter().any(|line| line.contains("\"b\"") && line.contains("\"t1\"")) => retry(),
        true => reject(),
        false => Answer::Delivered,
    });
    let mut producer = Producer::new(&twin, "p", 1);
    let (at, mut last) = (slot(0), 0);
    for k in 0..4 {
        for target in 1..=4 {
            last = producer.publish(&[scrape(target, at + k * SLOT, &PAGE)]).await;
        }
    }
    let relays = setup.start();
    passed(&twin, "one", last).await;
    relays.stop(Duration::from_secs(5)).await;
    let delivered = sink.delivered();
    let of = |target: u64| delivered.iter().filter(|line| line.contains(&format!("\"t{target}\""))).count() as i64;
    let calls = sink.calls();
    let targets = |call: &Call| (1..=4).filter(|t| call.lines.iter().any(|line| line.contains(&format!("\"t{t}\"")))).count();
    assert!(calls.iter().any(|call| targets(call) > 1), "some requests have samples of several messages: {calls:?}");
    let told = by_target(&twin).await;
    assert_eq!(told.keys().collect::<Vec<_>>(), ["t1", "t2", "t3", "t4"]);
    for target in 1..=4 {
        let (slots, kinds) = &told[&format!("t{target}")];
        let n = |kind| kinds.get(&kind).copied().unwrap_or(0);
        assert_eq!((*slots, n(Kind::Read), n(Kind::Filtered), n(Kind::Delivered)), (4, 20, 8, of(target)), "t{target}: {kinds:?}");
        assert_eq!(n(Kind::Rejected) + n(Kind::Lost), 12 - of(target), "t{target}: {kinds:?}");
    }
    let statement = audited(&setup, (at, at + 10 * SLOT)).await;
    let (scraped, delivered, _, rejected, lost, _) = terms(&statement);
    let (parked, lost) = (twin.dead.messages(), lost.iter().map(|(_, n)| n).sum::<u64>());
    assert!(statement.balanced && rejected > 0 && lost > 0 && delivered > 0 && !parked.is_empty(), "{:?}", terms(&statement));
    assert_eq!(scraped, delivered + 32 + rejected + lost);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_add_up_is_named() {
    let twin = Twin::new(u64::MAX);
    let setup = picky(&twin);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let at = slot(0);
    let last = producer.publish(&[scrape(1, at, &PAGE), scrape(2, at, &PAGE)]).await;
    passed(&twin, "one", last).await;
    relays.stop(Duration::from_secs(5)).await;
    // As a relay would book that forgot a filtered sample, and another target as a whole.
    let mut sheet = Sheet::default();
    let counts = [
        (sheet.term(Kind::Read, ""), 5),
        (sheet.term(Kind::Delivered, ""), 2),
        (sheet.term(Kind::Rejected, ""), 1),
        (sheet.term(Kind::Filtered, "drop"), 1),
    ];
    let line = sheet.line(TargetId(1), || sample::sheet::Named {
        id: TargetId(1),
        job: "local".into(),
        instance: "t1".into(),
        namespace: "".into(),
    });
    sheet.add(line, minute_of(at), 1, &counts.map(|(term, n)| (term, n)));
    let mut checkpoint = checkpoint(&twin, "one").await.expect("it has run");
    let open = checkpoint.minutes.take().expect("it was counted");
    checkpoint.minutes = Some(Open { sheet: base64::engine::general_purpose::STANDARD.encode(sheet.encode(0)), ..open });
    let key = relay::checkpoint::key("one");
    let revision = twin.state.get(&key).await.expect("up").expect("it is there").revision;
    twin.state.put(&key, serde_json::to_vec(&checkpoint).expect("JSON").into(), revision).await.expect("nobody else writes");
    let statement = audited(&setup, (at, at)).await;
    assert!(!statement.balanced && !statement.relays[0].balanced);
    assert_eq!(told(&statement.holes), [("unaccounted", "t1", 1, false), ("not_booked", "t2", 5, false)]);
    assert_eq!(statement.holes[0].detail.as_deref(), Some("read 5, booked 4"));
    assert_eq!(statement.holes[1].detail.as_deref(), Some("counted 5, booked 0"));
}

#[tokio::test(start_paused = true)]
async fn folded_minutes_keep_their_sums() {
    let twin = Twin::new(u64::MAX);
    let setup = picky(&twin);
    let mut producer = Producer::new(&twin, "p", 1);
    let at = slot(0);
    let relays = setup.start();
    for k in 0..40 {
        let last = producer.publish(&[scrape(1, at + k * 4 * SLOT, &PAGE)]).await;
        tokio::time::sleep(Duration::from_secs(700)).await;
        passed(&twin, "one", last).await;
    }
    relays.stop(Duration::from_secs(5)).await;
    let range = (at, at + 200 * SLOT);
    let before = audited(&setup, range).await;
    assert_eq!(before.relays[0].scraped, 200);
    let bookings = || twin.ledger.messages().len();
    let all = bookings();
    for faults in [vec![], vec![Fault::Full], vec![Fault::LoseRequest]] {
        twin.ledger.set_bytes_max(twin.ledger.info().await.expect("up").bytes + 500);
        faults.iter().for_each(|fault| twin.ledger.inject(*fault));
        let fold =
            relay::trim::Fold::new(twin.ledger.clone(), twin.state.clone(), tokio::sync::watch::channel(relay::trim::Plan::default()).1);
        for _ in 0..3 {
            fold.look().await.unwrap_or_default();
        }
        twin.ledger.set_bytes_max(u64::MAX);
        fold.look().await.expect("there is room");
        let after = audited(&setup, range).await;
        assert_eq!((after.balanced, &after.relays), (true, &before.relays), "{:?}", after.holes);
    }
    assert!(bookings() < all - 10, "{} of {all}", bookings());
    // Another headerless message of the ledger is none of its business.
    twin.ledger.publish("strata.ledger.relay.one.full", &Headers::default(), "{}".into(), None).await.expect("room");
    assert!(audited(&setup, range).await.balanced);
}

/// A collector whose targets are well books its start and nothing more; a relay that has nothing to deliver goes on from what it booked long ago.
#[tokio::test(start_paused = true)]
async fn what_silent_writers_booked_last_stops_no_fold_and_still_counts() {
    for faults in [vec![], vec![Fault::LoseAnswer], vec![Fault::LoseRequest], vec![Fault::Full]] {
        let twin = Twin::new(u64::MAX);
        let setup = picky(&twin);
        let (silent, mut headers) = (collector_minutes("silent"), Headers::default());
        Booking { number: 1 }.put(&mut headers);
        Life::Started(slot(0)).put(&mut headers);
        twin.ledger.publish(&silent, &headers, Sheet::default().encode(0).into(), None).await.expect("room");
        let mut producer = Producer::new(&twin, "p", 1);
        let at = slot(0);
        let relays = setup.start();
        for k in 0..8 {
            let last = producer.publish(&[scrape(1, at + k * 4 * SLOT, &PAGE)]).await;
            tokio::time::sleep(Duration::from_secs(if k < 7 { 700 } else { 1 })).await;
            passed(&twin, "one", last).await;
        }
        relays.stop(Duration::from_secs(5)).await;
        let open = checkpoint(&twin, "one").await.and_then(|checkpoint| checkpoint.minutes).expect("it was counted");
        assert!(open.base > 0, "the last page is counted beside a booking");
        for k in 0..400 {
            twin.ledger.publish("strata.ledger.relay.other.full", &Headers::default(), entry(k), None).await.expect("room");
        }
        let range = (at, at + 200 * SLOT);
        let before = audited(&setup, range).await;
        assert!(before.balanced && before.relays[0].scraped == 40, "{before:?}");
        let fold =
            relay::trim::Fold::new(twin.ledger.clone(), twin.state.clone(), tokio::sync::watch::channel(relay::trim::Plan::default()).1);
        for fault in faults.iter().map(Some).chain(std::iter::repeat_n(None, 100)) {
            let info = twin.ledger.info().await.expect("up");
            twin.ledger.set_bytes_max(info.bytes * 10 / 9);
            fault.into_iter().for_each(|fault| twin.ledger.inject(*fault));
            fold.look().await.unwrap_or_default();
            let after = audited(&setup, range).await;
            assert_eq!((after.balanced, &after.relays, &after.collection), (true, &before.relays, &before.collection), "{:?}", after.holes);
        }
        let info = twin.ledger.info().await.expect("up");
        assert!(info.messages < 25 && info.first_seq > 400, "{faults:?}: {info:?}");
        let relays = setup.start();
        let last = producer.publish(&[scrape(1, at + 32 * SLOT, &PAGE)]).await;
        passed(&twin, "one", last).await;
        relays.stop(Duration::from_secs(5)).await;
        let after = audited(&setup, range).await;
        assert!(after.balanced && after.relays[0].scraped == 45, "it goes on from there: {after:?}");
    }
}

/// An entry that has nothing to do with the relay of these tests.
fn entry(k: u64) -> bytes::Bytes {
    let (at_ms, relay) = (k as i64, Some("other".to_owned()));
    let entry = Entry {
        at_ms,
        stage: Stage::Relay,
        relay,
        producer: None,
        reason: "full".to_owned(),
        samples: 1,
        frames: 1,
        seqs: None,
        slots: None,
        target: None,
    };
    serde_json::to_vec(&entry).expect("JSON").into()
}

#[tokio::test(start_paused = true)]
async fn what_was_delivered_of_a_stream_that_lost_its_beginning_is_no_disagreement() {
    let twin = Twin::new(u64::MAX);
    let setup = picky(&twin);
    let mut producer = Producer::new(&twin, "p", 1);
    let at = slot(0);
    let relays = setup.start();
    for k in 0..4 {
        producer.publish(&[scrape(1, at + k * SLOT, &PAGE)]).await;
    }
    passed(&twin, "one", 4).await;
    twin.raw.tear(4);
    producer.rebase();
    let last = producer.publish(&[scrape(1, at + 4 * SLOT, &PAGE)]).await;
    until("what came after is read", || status(&relays, "one").position == last && status(&relays, "one").totals.read == 25).await;
    relays.stop(Duration::from_secs(5)).await;
    let statement = audited(&setup, (at, at + 5 * SLOT)).await;
    assert!(statement.balanced, "{:?}", statement.holes);
}

#[tokio::test(start_paused = true)]
async fn of_a_relay_without_a_checkpoint_it_is_told_whether_that_is_gone() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let at = slot(0);
    let trouble = async || audited(&setup, (at, at)).await.relays[0].trouble.clone().unwrap_or_default();
    assert!(trouble().await.contains("did not run yet"));
    let relays = setup.start();
    let last = Producer::new(&twin, "p", 1).publish(&[scrape(1, at, &PAGE)]).await;
    passed(&twin, "one", last).await;
    relays.stop(Duration::from_secs(5)).await;
    assert_eq!(trouble().await, "");
    twin.state.delete("relay.one").await.expect("up");
    assert!(trouble().await.contains("its checkpoint is gone from STRATA_STATE"));
}
