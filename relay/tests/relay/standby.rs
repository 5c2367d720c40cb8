//! Several processes with the same relays: one runs them, the others stand by and take over.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bundled_nats::port::{Entry, Error, State, Streams};
use bundled_nats::twin::Twin;
use bytes::Bytes;
use relay::lease::Applicant;
use relay::{Activity, Options, Relays};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::harness::*;

/// How long a takeover may take on the paused clock.
pub const TAKEOVER_MAX: std::time::Duration = std::time::Duration::from_secs(5);

pub fn process(setup: &Setup, id: &str, streams: Streams) -> Relays {
    let applicant = Some(Applicant { id: id.to_owned(), name: id.to_owned() });
    let options = Options { applicant, trim: Some(streams.clone()), ..setup.options() };
    Relays::start(&setup.relays, streams, options, &prometheus::Registry::new(), &Default::default()).expect("an own registry")
}

pub async fn stands_by(relays: &Relays, owner: &str) {
    until("it stands by", || {
        let status = status(relays, "one");
        status.activity == Activity::Standby && status.owner.as_deref() == Some(owner)
    })
    .await;
}

async fn publish(producer: &mut Producer, from: i64, to: i64) -> u64 {
    let mut last = 0;
    for k in from..to {
        last = producer.publish(&[scrape(1, slot(k), &[("a", k as f64), ("b", 1.0)])]).await;
    }
    last
}

/// What came more than once came under the same key with the same lines; says how many requests did.
fn repeats(sink: &Scripted) -> usize {
    let (mut first, mut repeated): (HashMap<String, Vec<String>>, usize) = (HashMap::new(), 0);
    for call in sink.calls() {
        match first.get(&call.key) {
            Some(lines) => {
                assert_eq!(*lines, call.lines, "key {}", call.key);
                repeated += 1;
            }
            None => drop(first.insert(call.key, call.lines)),
        }
    }
    let mut all: Vec<&String> = first.values().flatten().collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count, "no line is under two keys");
    repeated
}

fn lines(sink: &Scripted) -> usize {
    let mut lines = sink.delivered();
    lines.sort_unstable();
    lines.dedup();
    lines.len()
}

#[tokio::test(start_paused = true)]
async fn another_process_takes_over_when_the_owner_is_gone() {
    let twin = Twin::new(1 << 30);
    let setup = Setup::one(&twin);
    let (sink, mut producer) = (setup.sink("one"), Producer::new(&twin, "p", 1));
    let first = process(&setup, "first", twin.streams());
    let last = publish(&mut producer, 0, 5).await;
    passed(&twin, "one", last).await;
    let second = process(&setup, "second", twin.streams());
    stands_by(&second, "first").await;
    let seen = passed(&twin, "one", last).await;
    until("it shows how far the owner is", || status(&second, "one").position == seen.seq).await;

    let killed = Instant::now();
    drop(first);
    let last = publish(&mut producer, 5, 10).await;
    passed(&twin, "one", last).await;
    assert!(killed.elapsed() < TAKEOVER_MAX, "{:?}", killed.elapsed());
    until("it says so", || status(&second, "one").activity == Activity::Running && status(&second, "one").owner.is_none()).await;
    assert_eq!(lines(&sink), 20);
    assert!(repeats(&sink) <= 5, "what lay between sink and checkpoint");

    // What it owned before is its own at once, also after a kill.
    drop(second);
    let again = process(&setup, "second", twin.streams());
    let started = Instant::now();
    let last = publish(&mut producer, 10, 12).await;
    passed(&twin, "one", last).await;
    assert!(started.elapsed() < relay::lease::EXPIRY, "{:?}", started.elapsed());
    again.stop(TAKEOVER_MAX).await;
}

#[tokio::test(start_paused = true)]
async fn a_clean_stop_hands_over_at_once_and_repeats_nothing() {
    let twin = Twin::new(1 << 30);
    let setup = Setup::one(&twin);
    let (sink, mut producer) = (setup.sink("one"), Producer::new(&twin, "p", 1));
    let first = process(&setup, "first", twin.streams());
    passed(&twin, "one", publish(&mut producer, 0, 5).await).await;
    let second = process(&setup, "second", twin.streams());
    stands_by(&second, "first").await;
    first.stop(TAKEOVER_MAX).await;
    let stopped = Instant::now();
    passed(&twin, "one", publish(&mut producer, 5, 10).await).await;
    assert!(stopped.elapsed() < relay::lease::RENEW, "{:?}", stopped.elapsed());
    assert_eq!((lines(&sink), repeats(&sink)), (20, 0));
    let checkpoint = checkpoint(&twin, "one").await.expect("it ran");
    balanced(&checkpoint);
    assert_eq!(checkpoint.totals.delivered, 20);
    second.stop(TAKEOVER_MAX).await;
}

/// A state store whose calls hang while it is frozen, as those of a process that is stopped.
struct Freezing {
    state: Arc<dyn State>,
    frozen: watch::Receiver<bool>,
}

impl Freezing {
    async fn thawed(&self) {
        self.frozen.clone().wait_for(|frozen| !frozen).await.expect("the test holds the other end");
    }
}

#[async_trait]
impl State for Freezing {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.thawed().await;
        self.state.get(key).await
    }
    async fn put(&self, key: &str, value: Bytes, expect: u64) -> Result<u64, Error> {
        self.thawed().await;
        self.state.put(key, value, expect).await
    }
    async fn delete(&self, key: &str) -> Result<(), Error> {
        self.thawed().await;
        self.state.delete(key).await
    }
    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Error> {
        self.thawed().await;
        self.state.keys(prefix).await
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_was_stopped_steps_back_and_moves_nothing() {
    let twin = Twin::new(1 << 30);
    let setup = Setup::one(&twin);
    let (sink, mut producer) = (setup.sink("one"), Producer::new(&twin, "p", 1));
    let (freeze, frozen) = watch::channel(false);
    let slow: Arc<dyn State> = Arc::new(Freezing { state: twin.state.clone(), frozen });
    let first = process(&setup, "first", Streams { state: slow, ..twin.streams() });
    passed(&twin, "one", publish(&mut producer, 0, 5).await).await;
    let second = process(&setup, "second", twin.streams());
    stands_by(&second, "first").await;

    freeze.send_replace(true);
    let last = publish(&mut producer, 5, 10).await;
    let taken = passed(&twin, "one", last).await;
    until("the second runs it", || status(&second, "one").activity == Activity::Running).await;
    freeze.send_replace(false);
    stands_by(&first, "second").await;
    let last = publish(&mut producer, 10, 15).await;
    let after = passed(&twin, "one", last).await;
    assert_eq!(after.owner, taken.owner, "the checkpoint stays the second's");
    balanced(&after);
    assert_eq!((after.totals.delivered, lines(&sink)), (30, 30));
    assert!(repeats(&sink) <= 5, "what the first still sent, once");
    let statement = audited(&setup, (slot(-1), slot(20))).await;
    assert!(statement.balanced, "{statement:?}");

    // And back, when the second is gone.
    drop(second);
    passed(&twin, "one", publish(&mut producer, 15, 20).await).await;
    until("the first runs it", || status(&first, "one").activity == Activity::Running).await;
    assert_eq!(lines(&sink), 40);
    first.stop(TAKEOVER_MAX).await;
}

#[tokio::test(start_paused = true)]
async fn who_could_not_look_takes_nothing_over() {
    let twin = Twin::new(1 << 30);
    let setup = Setup::one(&twin);
    let mut producer = Producer::new(&twin, "p", 1);
    let first = process(&setup, "first", twin.streams());
    passed(&twin, "one", publish(&mut producer, 0, 2).await).await;
    let second = process(&setup, "second", twin.streams());
    stands_by(&second, "first").await;
    // The server is away for all: when it is back, its owner has the time of a lease to come back too.
    twin.set_down(true);
    tokio::time::advance(relay::lease::EXPIRY * 4).await;
    twin.set_down(false);
    let owner = checkpoint(&twin, "one").await.expect("it ran").owner;
    let after = passed(&twin, "one", publish(&mut producer, 2, 6).await).await;
    assert_eq!(after.owner, owner);
    stands_by(&second, "first").await;
    second.stop(TAKEOVER_MAX).await;
    first.stop(TAKEOVER_MAX).await;
}
