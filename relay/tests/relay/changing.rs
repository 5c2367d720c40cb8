//! Another configuration while relays run: what is the same runs on, what changed goes on at its checkpoint.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bundled_nats::port::{Entry, Error, State, Streams};
use bundled_nats::twin::{Twin, TwinState};
use bytes::Bytes;
use config::{Component, Hold, Relay};
use prometheus::Registry;
use relay::sink::Answer;
use relay::{Changes, Configuration, Relays};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::harness::*;

fn filtered(name: &str, selector: &str) -> Relay {
    Relay { filters: vec![Component { name: "drop".into(), options: serde_json::json!(selector) }], ..relay(name) }
}

/// Configures, and waits until that runs.
async fn configure(relays: &Relays, wanted: &[Relay]) -> Changes {
    let wanted = Configuration { relays: wanted.to_vec(), ..Configuration::default() };
    let (changes, runs) = relays.configure(wanted);
    runs.await;
    changes
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Waits until a key is there, or is not.
async fn until_key(twin: &Twin, key: &str, is_there: bool) {
    for _ in 0..10_000 {
        if twin.state.get(key).await.is_ok_and(|entry| entry.is_some() == is_there) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{key} there: never {is_there}");
}

#[tokio::test(start_paused = true)]
async fn only_what_changed_is_started_anew_and_nothing_is_lost_or_repeated() {
    let twin = Twin::new(u64::MAX);
    let setup = Setup::new(&twin, &[relay("same"), filtered("edited", "c"), relay("gone")]);
    let registry = Registry::new();
    let relays = setup.start_with(&registry);
    let mut producer = Producer::new(&twin, "p", 1);
    // Told once, as the clock goes on.
    let at = slot(0);
    for k in 0..50 {
        producer.publish(&[scrape(1, at + k * SLOT, &[("a", k as f64), ("b", 1.0), ("c", 2.0)])]).await;
        let edited = filtered("edited", if k % 2 == 0 { "b" } else { "c" });
        let changes = configure(&relays, &[relay("same"), edited, relay("gone")]).await;
        assert_eq!(changes, Changes { restarted: names(&["edited"]), unchanged: 2, ..Changes::default() });
    }
    passed(&twin, "same", 50).await;
    let after = passed(&twin, "edited", 50).await;
    balanced(&after);
    assert_eq!((after.totals.read, after.totals.lost), (150, 0));
    let slots = |name: &str, series: &str| {
        let lines = setup.sink(name).delivered().into_iter().filter(|line| line.contains(&format!("\"name\":\"{series}\"")));
        lines.map(|line| serde_json::from_str::<serde_json::Value>(&line).expect("JSON")["timestamp"].to_string()).collect::<Vec<_>>()
    };
    let all: Vec<_> = (0..50).map(|k| (at + k * SLOT).to_string()).collect();
    assert_eq!(slots("same", "a"), all);
    assert_eq!(slots("edited", "a"), all, "in order, each once");
    assert_eq!(slots("edited", "b").len() + slots("edited", "c").len(), 50, "one of both is filtered, whichever life it was");
    let starts = |name| metric(&registry, "strata_relay_starts_total", name);
    assert_eq!((starts("same"), starts("edited"), starts("gone")), (Some(1.0), Some(51.0), Some(1.0)));
    assert_eq!(metric(&registry, "strata_relay_repeated_samples_total", "edited"), Some(0.0));

    // A relay that is gone leaves its checkpoint, and nothing in the metrics; back, it goes on there.
    let same = [relay("same"), filtered("edited", "c")];
    let changes = configure(&relays, &same).await;
    assert_eq!(changes, Changes { removed: names(&["gone"]), unchanged: 2, ..Changes::default() });
    assert!(checkpoint(&twin, "gone").await.expect("it stays").clean);
    until("its metrics are gone", || starts("gone").is_none()).await;
    assert_eq!(metric(&registry, "strata_relay_lost_samples_total", "gone"), None);
    producer.publish(&[scrape(1, at + 50 * SLOT, &[("a", 1.0)])]).await;
    passed(&twin, "same", 51).await;
    let changes = configure(&relays, &[same[0].clone(), relay("gone"), same[1].clone()]).await;
    assert_eq!(changes, Changes { added: names(&["gone"]), unchanged: 2, ..Changes::default() });
    passed(&twin, "gone", 51).await;
    assert_eq!(slots("gone", "a").len(), 51);
    assert_eq!(relays.status().into_iter().map(|status| status.name).collect::<Vec<_>>(), ["same", "gone", "edited"]);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn external_labels_concern_every_relay_and_a_hold_none_of_the_tasks() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::new(&twin, &[relay("one"), relay("two")]);
    setup.options.trim = Some(twin.streams());
    setup.sink("two").set(|_| retry());
    let registry = Registry::new();
    let relays = setup.start_with(&registry);
    let mut producer = Producer::new(&twin, "p", 1);
    producer.publish(&[scrape(1, slot(0), &[("a", 1.0)])]).await;
    passed(&twin, "one", 1).await;

    let tight = Relay { hold: Hold { max_bytes: Some(config::ByteSize(1)), ..Hold::default() }, ..relay("two") };
    let changes = configure(&relays, &[relay("one"), tight.clone()]).await;
    assert_eq!(changes, Changes { adjusted: names(&["two"]), unchanged: 1, ..Changes::default() });
    producer.publish(&[scrape(1, slot(1), &[("a", 2.0)])]).await;
    until("what it may no longer hold is given up", || ledger(&twin).iter().any(|entry| entry.reason == "max_bytes")).await;
    assert_eq!(metric(&registry, "strata_relay_starts_total", "two"), Some(1.0));

    let wanted = Configuration {
        relays: vec![relay("one"), tight],
        external_labels: vec![("site".to_owned(), "north".to_owned())],
        ..Configuration::default()
    };
    let (changes, runs) = relays.configure(wanted);
    runs.await;
    assert_eq!(changes, Changes { restarted: names(&["one", "two"]), ..Changes::default() });
    producer.publish(&[scrape(1, slot(2), &[("a", 3.0)])]).await;
    passed(&twin, "one", 3).await;
    let lines = setup.sink("one").delivered();
    let labelled: Vec<bool> = lines.iter().map(|line| line.contains("\"site\":\"north\"")).collect();
    assert_eq!(labelled, [false, false, true]);
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_delivered_of_a_message_before_a_change_goes_again_and_is_counted() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::one(&twin);
    setup.limits.items_max = 1;
    let sink = setup.sink("one");
    sink.set(|lines| if lines[0].contains("\"c\"") { retry() } else { Answer::Delivered });
    let registry = Registry::new();
    let relays = setup.start_with(&registry);
    Producer::new(&twin, "p", 1).publish(&[scrape(1, slot(0), &[("a", 1.0), ("b", 2.0), ("c", 3.0)])]).await;
    until("two are delivered", || sink.calls().len() > 4).await;
    configure(&relays, &[filtered("one", "c")]).await;
    let after = passed(&twin, "one", 1).await;
    assert_eq!((after.totals.delivered, after.totals.filtered), (2, 1));
    assert_eq!(sink.delivered().len(), 4);
    assert_eq!(metric(&registry, "strata_relay_repeated_samples_total", "one"), Some(2.0));
    relays.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_leaves_twice_holds_space_from_the_second_time_on() {
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::new(&twin, &[relay("stays"), relay("goes")]);
    setup.options.trim = Some(twin.streams());
    let relays = setup.start();
    Producer::new(&twin, "p", 1).publish(&[scrape(1, slot(0), &[("a", 1.0)])]).await;
    passed(&twin, "goes", 1).await;
    for _ in 0..3 {
        configure(&relays, &[relay("stays")]).await;
        until_key(&twin, "left.goes", true).await;
        configure(&relays, &[relay("stays"), relay("goes")]).await;
        until_key(&twin, "left.goes", false).await;
    }
    relays.stop(Duration::from_secs(5)).await;
}

/// Keys of which one is read only when it may be.
struct Held {
    state: Arc<TwinState>,
    key: &'static str,
    held: watch::Receiver<bool>,
}

#[async_trait]
impl State for Held {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        if key == self.key {
            self.held.clone().wait_for(|held| !held).await.expect("the test has the other end");
        }
        self.state.get(key).await
    }

    async fn put(&self, key: &str, value: Bytes, expect: u64) -> Result<u64, Error> {
        self.state.put(key, value, expect).await
    }

    async fn delete(&self, key: &str) -> Result<(), Error> {
        self.state.delete(key).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Error> {
        self.state.keys(prefix).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_comes_back_while_it_is_looked_what_it_holds_loses_nothing() {
    let twin = Twin::new(u64::MAX);
    let (hold, held) = watch::channel(false);
    let mut setup = Setup::new(&twin, &[relay("stays"), relay("goes")]);
    setup.options.trim = Some(twin.streams());
    let hour = Duration::from_secs(3600);
    setup.options.retired_hold = setup.options.replay_window + 6 * hour;
    setup.sink("goes").set(|_| retry());
    let state = Arc::new(Held { state: twin.state.clone(), key: "left.goes", held });
    let streams = Streams { state, ..twin.streams() };
    let relays =
        Relays::start(&setup.relays, streams, setup.options(), &Registry::new(), &CancellationToken::new()).expect("an own registry");
    let mut producer = Producer::new(&twin, "p", 1);
    for k in 0..3 {
        producer.publish(&[scrape(1, slot(k), &[("a", k as f64)])]).await;
    }
    passed(&twin, "stays", 3).await;
    configure(&relays, &[relay("stays")]).await;
    until_key(&twin, "left.goes", true).await;
    // Nobody else needs these three, and they are older than what is kept for replays.
    tokio::time::sleep(setup.options.replay_window + 2 * hour).await;
    producer.rebase();
    producer.publish(&[scrape(1, slot(3), &[("a", 3.0)])]).await;
    assert!(passed(&twin, "stays", 4).await.floor() > 3);
    hold.send_replace(true);
    // Its time is over; then it is back.
    tokio::time::sleep(5 * hour).await;
    configure(&relays, &[relay("stays"), relay("goes")]).await;
    until("it tries its sink", || status(&relays, "goes").last_error.is_some()).await;
    hold.send_replace(false);
    until_key(&twin, "left.goes", false).await;
    setup.sink("goes").set(|_| Answer::Delivered);
    let after = passed(&twin, "goes", 4).await;
    assert_eq!((after.totals.delivered, setup.sink("goes").delivered().len()), (4, 4));
    assert!(ledger(&twin).is_empty(), "{:?}", ledger(&twin));
    relays.stop(Duration::from_secs(5)).await;
}
