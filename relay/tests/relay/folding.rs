//! The ledger over its wall: it is folded, and its sums stay.

use std::collections::BTreeMap;
use std::time::Duration;

use bundled_nats::ledger::{Entry, Stage};
use bundled_nats::port::{Headers, Log, PublishError};
use bundled_nats::twin::{Fault, Twin};
use relay::Options;
use relay::trim::{Fold, Plan, sums};

use crate::harness::*;

const WALL: u64 = 60_000;

fn entry(stage: Stage, relay: Option<&str>, reason: &str, k: u64) -> Entry {
    let (relay, at) = (relay.map(str::to_owned), k as i64);
    let target = Some(format!("{k:016x}"));
    Entry {
        at_ms: at,
        stage,
        relay,
        producer: None,
        reason: reason.into(),
        samples: k,
        frames: 1,
        seqs: Some((k, k)),
        slots: Some((at, at)),
        target,
    }
}

/// Books as a collector or a relay does: refused, it tries again.
async fn book(twin: &Twin, subject: &str, entry: &Entry) {
    for _ in 0..1000 {
        let payload = serde_json::to_vec(entry).expect("JSON").into();
        match twin.ledger.publish(subject, &Headers::default(), payload, None).await {
            Ok(_) => return,
            Err(PublishError::Full(_)) => tokio::time::sleep(Duration::from_millis(500)).await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the ledger stays full");
}

#[tokio::test(start_paused = true)]
async fn a_ledger_over_its_wall_many_times_keeps_its_sums() {
    let twin = Twin::new(u64::MAX);
    twin.ledger.set_bytes_max(WALL);
    let setup = Setup { options: Options { trim: Some(twin.streams()), ..Options::default() }, ..Setup::one(&twin) };
    let relays = setup.start();
    let kinds = [
        (Stage::Publish, None, "buffer_full", "strata.ledger.publish.p"),
        (Stage::Publish, None, "no_base", "strata.ledger.publish.p"),
        (Stage::Relay, Some("gone"), "full", "strata.ledger.relay.gone.full"),
        (Stage::Dead, Some("one"), "trimmed", "strata.ledger.dead.one.trimmed"),
    ];
    let mut wanted: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for k in 1..=3_000 {
        let (stage, relay, reason, subject) = kinds[k as usize % kinds.len()];
        book(&twin, subject, &entry(stage, relay, reason, k)).await;
        let sum = wanted.entry((relay.unwrap_or_default().into(), reason.into())).or_default();
        *sum = (sum.0 + k, sum.1 + 1);
    }
    relays.stop(Duration::from_secs(5)).await;
    let said: BTreeMap<_, _> = sums(&twin.ledger.messages()).into_iter().map(|((_, relay, reason), sum)| ((relay, reason), sum)).collect();
    assert_eq!(said, wanted);
    assert!(twin.ledger.info().await.expect("up").first_seq > 2_000);
    let mut oldest = ledger(&twin).into_iter().filter(|entry| entry.reason == "buffer_full");
    assert!(
        oldest
            .any(|entry| entry.frames > 1 && (entry.slots.map(|s| s.0), entry.seqs.map(|s| s.0), entry.target) == (Some(4), Some(4), None))
    );
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_fold_is_done_again_and_counts_once() {
    for faults in [
        vec![Fault::LoseAnswer],
        vec![Fault::LoseRequest],
        vec![Fault::Unavailable],
        vec![Fault::Full],
        vec![Fault::Full, Fault::Full, Fault::LoseAnswer],
    ] {
        let twin = Twin::new(u64::MAX);
        for k in 1..=100 {
            book(&twin, "strata.ledger.publish.p", &entry(Stage::Publish, None, ["a", "b"][k as usize % 2], k)).await;
        }
        let before = sums(&twin.ledger.messages());
        twin.ledger.set_bytes_max(twin.ledger.info().await.expect("up").bytes + 2_000);
        faults.iter().for_each(|fault| twin.ledger.inject(*fault));
        let fold = Fold::new(twin.ledger.clone(), twin.state.clone(), tokio::sync::watch::channel(Plan::default()).1);
        for _ in 0..20 {
            // A failure is what a kill in between looks like.
            fold.look().await.unwrap_or_default();
        }
        assert_eq!(sums(&twin.ledger.messages()), before, "{faults:?}");
        assert!(twin.ledger.info().await.expect("up").messages < 90, "{faults:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_relay_must_find_again_is_not_folded() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let relays = setup.start();
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, slot(0), &[("a", 0.0)])]).await;
    passed(&twin, "one", 1).await;
    relays.stop(Duration::from_secs(5)).await;
    // Booked beyond the checkpoint, just before a kill.
    book(&twin, "strata.ledger.relay.one.full", &entry(Stage::Relay, Some("one"), "full", 2)).await;
    for k in 1..=60 {
        book(&twin, "strata.ledger.publish.p", &entry(Stage::Publish, None, "a", k)).await;
    }
    twin.ledger.set_bytes_max((twin.ledger.info().await.expect("up").bytes as f64 / 0.9) as u64);
    let setup = Setup { options: Options { trim: Some(twin.streams()), ..Options::default() }, ..setup };
    let relays = setup.start();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(twin.ledger.info().await.expect("up").first_seq, 1);
    // Passed, it is an entry like any other.
    producer.publish(&[scrape(1, slot(1), &[("a", 1.0)])]).await;
    passed(&twin, "one", 2).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(twin.ledger.info().await.expect("up").first_seq > 1);
    relays.stop(Duration::from_secs(5)).await;
}
