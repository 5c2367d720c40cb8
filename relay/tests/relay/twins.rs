//! Two collectors that publish the same scrapes: the second copy is dropped, and no key comes with other bytes where the first one is not read any more.

use std::collections::HashSet;
use std::time::Duration;

use bundled_nats::port::Log as _;
use bundled_nats::twin::Twin;
use bytes::Bytes;
use relay::sink::{Answer, LACKING};

use crate::harness::*;

/// Pages of three series.
fn page(target: u64, k: i64) -> Scrape {
    scrape(target, k * SLOT, &[("a", k as f64), ("b", k as f64), ("c", k as f64)])
}

/// What the disk does to a message.
#[derive(Debug, Clone, Copy)]
enum Disk {
    Keeps,
    Loses(u64),
    Flips(u64),
}

impl Disk {
    async fn spoil(self, twin: &Twin) {
        let Self::Flips(seq) = self else {
            return if let Self::Loses(seq) = self {
                twin.raw.corrupt(seq)
            };
        };
        let messages = twin.raw.messages();
        twin.raw.tear(messages.len());
        for message in messages {
            let payload = if message.seq == seq { Bytes::from_static(b"?") } else { message.payload };
            twin.raw.publish(&message.subject, &message.headers, payload, None).await.expect("room in the stream");
        }
    }
}

/// A message with a twin was delivered, and its position is not stored; in the lives after that its first copy is not read any more. `targets`: of the
/// pages before; the first of `stored` of them are behind a stored position. `rebased`: before which nothing is needed after them.
async fn with_a_twin(targets: [u64; 3], stored: u64, rebased: Option<i64>, disk: Disk, once: bool) {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup { once, ..Setup::one(&twin) };
    setup.limits.items_max = 2;
    let (sink, relays) = (setup.sink("one"), setup.start());
    let (mut producer, mut other) = (Producer::new(&twin, "p", 1), Producer::new(&twin, "q", 1));
    if stored == 0 {
        passed(&twin, "one", 0).await;
        twin.state.set_down(true);
    }
    for (k, target) in (1..).zip(targets) {
        if Some(k) == rebased {
            producer.rebase();
        }
        let seq = producer.publish(&[page(target, k)]).await;
        if seq == stored {
            passed(&twin, "one", seq).await;
            twin.state.set_down(true);
        }
    }
    until("what came first is there", || sink.delivered().len() == 9).await;
    let before = sink.calls().len();
    let last = other.publish(&[page(1, 2), page(3, 3)]).await;
    until("what is no twin is delivered", || sink.calls().len() == before + 2).await;
    drop(relays);
    disk.spoil(&twin).await;
    twin.state.set_down(false);

    // Twice, the first time without the end of the message.
    let calls = sink.calls().len();
    sink.set(|lines| if lines.iter().any(|line| line.contains("\"c\"") && line.contains("\"t3\"")) { retry() } else { Answer::Delivered });
    let relays = setup.start();
    until("its end is asked for", || sink.calls()[calls..].iter().any(|call| call.answer != Answer::Delivered)).await;
    passed(&twin, "one", 3).await;
    drop(relays);
    sink.set(|_| Answer::Delivered);
    let (registry, before) = (prometheus::Registry::new(), sink.delivered().len());
    let relays = setup.start_with(&registry);
    balanced(&passed(&twin, "one", last).await);
    let keys = by_key(&sink.calls());
    assert!(keys.values().all(|bodies| bodies.len() == 1), "a key came with other bytes: {keys:?}");
    let delivered = sink.delivered();
    let there: HashSet<&String> = delivered.iter().collect();
    assert_eq!(there.len(), 12, "everything arrives: {delivered:?}");
    let counted = metric(&registry, "strata_relay_repeated_samples_total", "one");
    assert_eq!(counted, Some((delivered.len() - before) as f64), "all of it was there before: {delivered:?}");
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_twin_whose_first_copy_the_disk_lost_comes_under_keys_of_its_own() {
    for (stored, seq) in [(3, 1), (3, 2), (2, 2), (1, 2), (0, 1), (0, 2)] {
        for disk in [Disk::Loses(seq), Disk::Flips(seq)] {
            for once in [false, true] {
                with_a_twin([1, 1, 2], stored, None, disk, once).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_twin_whose_first_copy_lies_before_what_a_position_needs_comes_under_keys_of_its_own() {
    with_a_twin([1, 1, 1], 3, Some(3), Disk::Keeps, false).await;
}

/// A stream of two collectors, from a slot on, that lost a message which a relay had read.
async fn damaged(twin: &Twin, setup: &Setup, from: i64) -> (relay::Relays, Producer) {
    let (mut producer, mut other) = (Producer::new(twin, "p", 1), Producer::new(twin, "q", 1));
    let relays = setup.start();
    other.publish(&[page(3, from)]).await;
    for k in 0..3 {
        producer.publish(&[page(1, from + k)]).await;
    }
    passed(twin, "one", 4).await;
    relays.stop(Duration::from_secs(5)).await;
    twin.raw.corrupt(3);
    (setup.start(), producer)
}

/// Whether a batch is numbered apart.
fn is_apart(call: &Call) -> bool {
    call.key.split('/').nth(1).and_then(|number| number.parse::<u32>().ok()).is_some_and(|number| number & LACKING != 0)
}

#[tokio::test(start_paused = true)]
async fn keys_are_the_usual_ones_again_when_nothing_of_what_is_lost_would_be_remembered() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::one(&twin);
    let (relays, mut producer) = damaged(&twin, &setup, 1).await;
    let before = setup.sink("one").calls().len();
    // Slots are remembered for twenty minutes.
    for k in [4, 60, 120, 180, 181] {
        let seq = producer.publish(&[page(1, k)]).await;
        passed(&twin, "one", seq).await;
    }
    let apart: Vec<bool> = setup.sink("one").calls()[before..].iter().map(is_apart).collect();
    assert_eq!(apart, [true, true, true, true, false]);
    assert!(checkpoint(&twin, "one").await.expect("written").warm_from > 3, "what is lost is needed no more");
    relays.stop(Duration::from_secs(5)).await;
}
