//! What a collector books of its slots: the same as its counters say, between a start and a stop.

use std::collections::BTreeMap;

use bundled_nats::ledger::{Booking, Life, collector_minutes};
use sample::sheet::{Kind, Sheet};

use super::*;

/// Booked slots by kind and reason, and the lives.
fn booked(twin: &Twin) -> (BTreeMap<(Kind, String), u64>, Vec<&'static str>) {
    let (mut sums, mut lives, mut number) = (BTreeMap::new(), Vec::new(), 0);
    for message in twin.ledger.messages().iter().filter(|message| message.subject == collector_minutes("west")) {
        number += 1;
        assert_eq!(Booking::get(&message.headers), Some(Booking { number }));
        match Life::get(&message.headers) {
            Some(Life::Started(_)) => lives.push("started"),
            Some(Life::Stopped(_)) => lives.push("stopped"),
            None => {}
        }
        let sheet = Sheet::decode(&message.payload, None).expect("a sheet");
        sheet.each(|cell| {
            assert_eq!(&*cell.target.job, if cell.target.instance.contains(':') { "down" } else { "" });
            for (term, n) in sheet.terms().iter().zip(cell.counts).filter(|(_, n)| **n != 0) {
                *sums.entry((term.kind, term.reason.to_string())).or_default() += n.unsigned_abs();
            }
        });
    }
    (sums, lives)
}

#[tokio::test]
async fn every_slot_that_is_counted_as_missed_or_failed_is_booked_and_none_else() {
    let down = Server::new(|number, _| if number % 3 == 2 { Answer::Hang } else { Answer::Bytes(response("500 No", b"")) }).await;
    let twin = Twin::new(1 << 30);
    twin.ledger.set_down(true);
    let config = configuration(&job("down", &down.address, ""));
    // A clock three times as fast as the timers: slots pass while a scrape hangs.
    let (started, real) = (Instant::now(), Clock::system());
    let start_ms = real.now_ms();
    let fast = move || start_ms + i64::try_from(started.elapsed().as_millis()).unwrap_or(0) * 3;
    let bench = Bench::over(twin.clone(), config.clone(), Clock::from_fn(fast));
    let missed = |bench: &Bench| bench.target("down").missed;
    wait("slots failed and were missed", || bench.failed("http_status") > 3 && bench.failed("timeout") > 0 && missed(&bench) > 2).await;
    assert!(twin.ledger.messages().is_empty());
    twin.ledger.set_down(false);
    bench.collector.booked().await;
    let Bench { collector, telemetry, .. } = bench;
    assert_eq!(collector.stop(Duration::from_secs(5)).await, collector::publish::Left::default());
    let mut expect = BTreeMap::new();
    for reason in ["overrun", "suspended", "busy"] {
        expect.insert((Kind::Missed, reason.to_owned()), telemetry.slots_missed.with_label_values(&[reason]).get());
    }
    for reason in collector::client::Failure::REASONS {
        expect.insert((Kind::Failed, reason.to_owned()), telemetry.scrapes_failed.with_label_values(&[reason]).get());
    }
    expect.retain(|_, n| *n > 0);
    let (sums, lives) = booked(&twin);
    assert_eq!((sums, lives), (expect, vec!["started", "stopped"]));

    // A killed process says nothing of its end.
    let killed = Bench::over(twin.clone(), config.clone(), Clock::from_fn(fast));
    killed.collector.booked().await;
    drop(killed);
    let next = Bench::over(twin.clone(), config, Clock::from_fn(fast));
    next.collector.booked().await;
    assert_eq!(booked(&twin).1, ["started", "stopped", "started", "started"]);
}

#[tokio::test]
async fn a_target_that_is_well_costs_the_ledger_a_start_and_a_stop() {
    let server = Server::new(|_, _| page(PAGE)).await;
    let bench = Bench::new(configuration(&job("good", &server.address, "")));
    wait("some scrapes", || server.requests().len() > 4).await;
    bench.collector.booked().await;
    let Bench { collector, twin, .. } = bench;
    collector.stop(Duration::from_secs(5)).await;
    assert_eq!((twin.ledger.messages().len(), booked(&twin).0), (2, BTreeMap::new()));
}
