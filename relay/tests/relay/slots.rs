//! Slots in the audit: those without a page are named, with what the collector booked or with how its process ended.

use std::collections::BTreeMap;
use std::time::Duration;

use bundled_nats::ledger::{Booking, Life, collector_minutes};
use bundled_nats::port::{Headers, Log};
use bundled_nats::twin::Twin;
use relay::audit::{Hole, Statement};
use sample::sheet::{Kind, Named, Sheet};
use sample::{Flags, TargetId};

use crate::harness::*;

const PAGE: [(&str, f64); 5] = [("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0), ("e", 5.0)];

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
            let named = Named { id: TargetId(*target), job: "local".into(), instance: format!("t{target}").into(), namespace: "".into() };
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

#[tokio::test(start_paused = true)]
async fn what_a_process_booked_explains_its_own_slots_before_those_between_two_processes() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let (mut producer, mut collector) = (Producer::new(&twin, "p", 1), Collector { twin: &twin, producer: "p", number: 0 });
    let at = slot(0) / 60_000 * 60_000 + 60_000;
    let (every_ms, mut last) = (SLOT / 10, 0);
    let ms = |k: i64| at + k * every_ms;
    collector.book(Some(Life::Started(ms(0) - 1)), &[]).await;
    for k in 0..4 {
        last = producer.publish(&[scrape(1, ms(k), &PAGE)]).await;
    }
    // Killed, and stopped for a while soon after its next start.
    (producer.epoch, producer.n, producer.total) = (2, 0, 0);
    producer.rebase();
    collector.book(Some(Life::Started(ms(8) - 1)), &[]).await;
    for k in [8, 9, 10, 15, 16, 17] {
        last = producer.publish(&[scrape(1, ms(k), &PAGE)]).await;
    }
    collector.book(None, &[11, 12, 13, 14].map(|k| (1, Kind::Missed, "suspended", ms(k), 1))).await;
    let relays = setup.start();
    passed(&twin, "one", last).await;
    relays.stop(Duration::from_secs(5)).await;
    let statement = audited(&setup, (at, at + 60_000)).await;
    let told: Vec<_> = statement.holes.iter().map(|hole| (hole.reason.as_str(), hole.from_ms, hole.to_ms, hole.slots)).collect();
    assert_eq!(told, [("killed", ms(4), ms(7), 4), ("suspended", ms(11), ms(14), 4)]);
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
