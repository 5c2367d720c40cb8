//! The audit: what it says is what happened, and what does not add up has a name.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use bundled_nats::ledger::{Booking, Life, collector_minutes};
use bundled_nats::port::{Headers, Log, State};
use bundled_nats::twin::{Fault, Twin};
use relay::audit::{Hole, Statement, Terms};
use relay::minutes::Open;
use relay::sink::{Answer, Limits};
use sample::sheet::{Kind, Named, Sheet, minute_of};
use sample::{Flags, TargetId};

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
    let sheet = relay::minutes::read(&twin.streams().ledger, &open).await.expect("up").expect("readable");
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
    let line = sheet.line(TargetId(1), || sample::sheet::Named { id: TargetId(1), job: "local".into(), instance: "t1".into() });
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
async fn slots_without_a_frame_are_named_and_unbalance_nothing() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    let (at, mut last) = (slot(0), 0);
    for k in [0, 1, 2, 5, 6] {
        last = producer.publish(&[scrape(1, at + k * SLOT, &PAGE)]).await;
    }
    // Another life of the process.
    (producer.epoch, producer.n, producer.total) = (2, 0, 0);
    producer.rebase();
    for k in [9, 10] {
        last = producer.publish(&[scrape(1, at + k * SLOT, &PAGE)]).await;
    }
    passed(&twin, "one", last).await;
    relays.stop(Duration::from_secs(5)).await;
    let statement = audited(&setup, (at, at + 20 * SLOT)).await;
    assert!(statement.balanced);
    let gaps: Vec<_> = statement.holes.iter().map(|hole| (hole.reason.as_str(), hole.from_ms, hole.to_ms, hole.slots)).collect();
    assert_eq!(gaps, [("missed", at + 3 * SLOT, at + 4 * SLOT, 2), ("not_running", at + 7 * SLOT, at + 8 * SLOT, 2)]);
}

/// What a collector books.
struct Collector<'t> {
    twin: &'t Twin,
    producer: &'static str,
    number: u64,
}

impl Collector<'_> {
    async fn book(&mut self, life: Option<Life>, holes: &[(u64, Kind, &str, i64, u64)]) {
        let mut sheet = Sheet::default();
        for (target, kind, reason, first_ms, slots) in holes {
            let named = Named { id: TargetId(*target), job: "local".into(), instance: format!("t{target}").into() };
            let (line, term) = (sheet.line(TargetId(*target), || named), sheet.term(*kind, reason));
            sheet.add_slots(line, term, *first_ms, SLOT, *slots);
        }
        self.number += 1;
        let mut headers = Headers::default();
        Booking { number: self.number }.put(&mut headers);
        if let Some(life) = life {
            life.put(&mut headers);
        }
        let payload = sheet.encode(0).into();
        self.twin.ledger.publish(&collector_minutes(self.producer), &headers, payload, None).await.expect("room");
    }
}

/// Target, reason, first and last slot from `at` on, slots.
fn slots(statement: &Statement, at: i64) -> Vec<(&str, &str, i64, i64, u64)> {
    let of = |hole: &'_ &Hole| hole.stage == "scrape";
    let ms = |ms: i64| (ms - at) / SLOT;
    let told = statement.holes.iter().filter(of);
    told.map(|hole| (hole.target.instance.as_str(), hole.reason.as_str(), ms(hole.from_ms), ms(hole.to_ms), hole.slots)).collect()
}

fn failed(target: u64, slot_ms: i64) -> Scrape {
    Scrape { flags: Flags::FAILED, ..scrape(target, slot_ms, &PAGE) }
}

#[tokio::test(start_paused = true)]
async fn slots_are_named_with_what_the_collector_booked_and_with_how_its_processes_ended() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let (mut producer, mut collector) = (Producer::new(&twin, "p", 1), Collector { twin: &twin, producer: "p", number: 0 });
    // The beginning of a minute, so that minutes are the same in every run.
    let at = slot(0) / 60_000 * 60_000 + 60_000;
    let ms = |k: i64| at + k * SLOT;
    let until_slot = async |k: i64| {
        tokio::time::sleep(Duration::from_millis((ms(k) - relay::backoff::now_ms()).max(0).unsigned_abs())).await;
    };
    let epoch = |producer: &mut Producer, epoch: u64| {
        (producer.epoch, producer.n, producer.total) = (epoch, 0, 0);
        producer.rebase();
    };
    collector.book(Some(Life::Started(ms(0) - 1)), &[]).await;
    for k in 0..40 {
        until_slot(k).await;
        match k {
            5 | 6 | 30 => {}
            8 | 9 => drop(producer.publish(&[failed(1, ms(k)), scrape(2, ms(k), &PAGE)]).await),
            _ => drop(producer.publish(&[scrape(1, ms(k), &PAGE), scrape(2, ms(k), &PAGE)]).await),
        }
    }
    collector.book(None, &[(1, Kind::Missed, "overrun", ms(5), 2), (1, Kind::Failed, "timeout", ms(8), 2)]).await;
    collector.book(None, &[(1, Kind::Missed, "busy", ms(30), 1), (2, Kind::Missed, "suspended", ms(5), 1)]).await;
    // Killed, then stopped, each with a time in which nothing runs.
    epoch(&mut producer, 2);
    collector.book(Some(Life::Started(ms(44))), &[]).await;
    for k in 44..50 {
        until_slot(k).await;
        producer.publish(&[scrape(1, ms(k), &PAGE), scrape(2, ms(k), &PAGE)]).await;
    }
    collector.book(Some(Life::Stopped(ms(49) + 5)), &[]).await;
    epoch(&mut producer, 3);
    collector.book(Some(Life::Started(ms(52) - 5)), &[]).await;
    for k in 52..56 {
        until_slot(k).await;
        producer.publish(&[scrape(1, ms(k), &PAGE)]).await;
    }
    // Another interval is no hole.
    let mut last = 0;
    for k in 0..6 {
        until_slot(59 + 4 * k).await;
        last = producer.publish(&[scrape(1, ms(59 + 4 * k), &PAGE)]).await;
    }
    let relays = setup.start();
    passed(&twin, "one", last).await;
    relays.stop(Duration::from_secs(5)).await;
    let statement = audited(&setup, (at, ms(80))).await;
    let expect = [
        ("t1", "overrun", 5, 6, 2),
        ("t1", "busy", 30, 30, 1),
        ("t1", "killed", 40, 43, 4),
        ("t1", "stopped", 50, 51, 2),
        ("t2", "suspended", 5, 5, 1),
        // Nobody booked these.
        ("t2", "missed", 6, 6, 1),
        ("t2", "missed", 30, 30, 1),
        ("t2", "killed", 40, 43, 4),
        // A failed scrape is told by its minute.
        ("t1", "timeout", 8, 12, 2),
    ];
    assert_eq!(slots(&statement, at), expect);
    let collection = &statement.collection;
    let sums = |by_reason: &BTreeMap<String, u64>| by_reason.values().sum::<u64>();
    assert_eq!((sums(&collection.missed_slots), sums(&collection.failed_slots)), (16, 2));
    let starts: Vec<_> = collection.starts.iter().map(|start| (start.before.as_str(), start.ended_ms)).collect();
    assert_eq!(starts, [("killed", None), ("stopped", Some(ms(49) + 5))]);
    assert!(statement.balanced);
    // A gap that reaches into the range is seen whole by what came before; a half of it counts half.
    let half = audited(&setup, (ms(40), ms(43))).await;
    assert_eq!(slots(&half, at), [("t1", "killed", 40, 43, 4), ("t2", "killed", 40, 43, 4)]);
    let after = audited(&setup, (ms(48), ms(51))).await;
    assert_eq!(slots(&after, at), [("t1", "stopped", 50, 51, 2)]);
    // What is no longer in the stream is as it was booked.
    twin.raw.purge(last + 1).await.expect("up");
    let statement = audited(&setup, (at, ms(80))).await;
    let minute = |k: i64| (k / 4 * 4, k / 4 * 4 + 4);
    let expect = [("overrun", 5, 2), ("timeout", 8, 2), ("busy", 30, 1)].map(|(reason, k, n)| ("t1", reason, minute(k).0, minute(k).1, n));
    assert_eq!(slots(&statement, at), [&expect[..], &[("t2", "suspended", 4, 8, 1)]].concat());
    assert_eq!(statement.collection.starts.len(), 2);
}

/// Of the target 1 in a slot of `at`.
async fn one(producer: &mut Producer, slot_ms: i64, value: f64) -> u64 {
    producer.publish(&[scrape(1, slot_ms, &[("a", value), ("jobs_total", value)])]).await
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_another_member_covered_is_no_hole_and_comes_once() {
    let twin = Twin::new(u64::MAX);
    let mut statsd = relay("statsd");
    statsd.encode = Some(config::Component { name: "dogstatsd".into(), options: serde_json::json!({}) });
    let setup = Setup::new(&twin, &[relay("one"), statsd]);
    let (mut p, mut q) = (Producer::new(&twin, "p", 1), Producer::new(&twin, "q", 7));
    let mut books = Collector { twin: &twin, producer: "p", number: 0 };
    let at = slot(0) / 60_000 * 60_000 + 60_000;
    let ms = |k: i64| at + k * SLOT;
    books.book(Some(Life::Started(ms(0) - 1)), &[]).await;
    // `p` sleeps from 5 to 12; `q` takes over with 8, and has overlapped by two slots when it lets go. One scrape of each overlap fails at one of them.
    let fails = |k: i64| Scrape { values: vec![("a".into(), 0.0)], ..failed(1, ms(k)) };
    let mut last = 0;
    for k in 0..20 {
        let value = k as f64;
        if k < 5 || (13..=14).contains(&k) {
            last = if k == 13 { p.publish(&[fails(k)]).await } else { one(&mut p, ms(k), value).await };
        }
        if (8..=15).contains(&k) {
            last = if k == 14 { q.publish(&[fails(k)]).await } else { one(&mut q, ms(k), value).await };
        }
        if k > 14 {
            last = one(&mut p, ms(k), value).await;
        }
    }
    books.book(None, &[(1, Kind::Missed, "suspended", ms(5), 8), (1, Kind::Failed, "timeout", ms(13), 1)]).await;
    Collector { twin: &twin, producer: "q", number: 0 }.book(None, &[(1, Kind::Failed, "timeout", ms(14), 1)]).await;
    // `p` is killed and does not come back; later `q` goes on.
    for k in 24..30 {
        last = one(&mut q, ms(k), k as f64).await;
    }
    let relays = setup.start();
    passed(&twin, "one", last).await;
    passed(&twin, "statsd", last).await;
    relays.stop(Duration::from_secs(5)).await;
    let statement = audited(&setup, (at, ms(40))).await;
    assert_eq!(slots(&statement, at), [("t1", "suspended", 5, 7, 3), ("t1", "not_running", 20, 23, 4)]);
    assert_eq!(statement.collection.slots, 23, "of 30 slots seven are missing");
    assert_eq!(statement.collection.failed_slots, BTreeMap::new());
    assert!(statement.balanced, "{:?}", statement.holes);
    let twins = statement.relays.iter().map(|terms| (terms.relay.as_str(), terms.filtered.get("twin").copied()));
    // 13, 14 and 15 came twice, with two samples or, where it failed, one; at 13 what failed came first, and the page in its place.
    assert_eq!(twins.collect::<Vec<_>>(), [("one", Some(3)), ("statsd", Some(3))]);
    let delivered = setup.sink("one").delivered();
    let of = |k: i64| delivered.iter().filter(|line| line.contains("\"a\"") && line.contains(&ms(k).to_string())).count();
    for k in 0..30 {
        let expect = match k {
            5..=7 | 20..=23 => 0,
            13 => 2,
            _ => 1,
        };
        assert_eq!(of(k), expect, "slot {k}: {delivered:?}");
    }
    // Increases add up over both producers: 1 a slot, whoever scraped it, from the first value to the last.
    let increase = |line: &String| line.split_once("jobs_total:")?.1.split_once('|')?.0.parse::<f64>().ok();
    let increases: Vec<f64> = setup.sink("statsd").delivered().iter().filter_map(increase).collect();
    assert_eq!(increases.iter().sum::<f64>(), 29.0, "{increases:?}");
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
